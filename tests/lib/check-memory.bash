#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Judges what a command left behind when an allocation failed under it; prints what is wrong.
#
#   check-memory.bash FILE ALLOWED SCENE FOLDER
#
# As check-fault.bash, with the same environment. FILE is the image that the command makes or
# changes, "-" for none. Either the command did its work anyway (status 0, and everything is as after
# a run without a fault), or it failed with a line; then FILE is what it was, or complete, and all
# others are what they were. With ALLOWED "killed" all later allocations failed too, and the run may have
# ended as if killed: a bitmap of FILE may be in use, and what the run had finished may remain.
set -u

file=$1 allowed=$2 scene=$3 folder=$4
bad=0

wrong() {
    printf '%s\n' "$*"
    bad=1
}

# For images only the content counts: ids, times and offsets differ from run to run.
same() {
    cmp -s "$1" "$2" || {
        qemu-img compare -q "$1" "$2" 2>/dev/null && qemu-img check -q "$2" 2>/dev/null
        (($? == 0 || $? == 3 || $? == 63)) && same_bitmaps "$1" "$2"
    }
}

same_bitmaps() {
    local one two
    one=$("$BLKIMG" bitmap --list "$1" 2>&1 | masked_ids)
    two=$("$BLKIMG" bitmap --list "$2" 2>&1 | masked_ids)
    [[ ${one//$1/} == "${two//$2/}" ]] || [[ $allowed == killed && $two == *"in use"* ]]
}

# A bitmap's line names the backup it counts from, which has a random id.
masked_ids() {
    sed -E 's/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/ID/g'
}

# Times, and the disk space of copies, differ from run to run.
masked() {
    sed -E 's/[0-9.]+ sec \([^)]*\)//; /"actual-size"|^disk size/d'
}

succeeded() {
    local name
    [[ $(masked <<<"$FAULT_STDOUT") == "$(masked <"$FAULT_RESULT.out")" ]] || wrong "status 0, and prints something else"
    [[ -z $FAULT_STDERR ]] || wrong "status 0, and says: $FAULT_STDERR"
    [[ $(ls -A "$folder") == "$(ls -A "$FAULT_RESULT")" ]] || wrong "status 0, and other files"
    for name in $(cd "$FAULT_RESULT" && ls -A); do
        same "$FAULT_RESULT/$name" "$folder/$name" || wrong "status 0, and $name is not the result"
    done
}

# What a command writes in place is, sector by sector, the old or the new content.
mixed() {
    local i work files=("$scene/$file" "$FAULT_RESULT/$file" "$folder/$file")
    qemu-img check -q "$folder/$file" 2>/dev/null
    (($? == 0 || $? == 3)) || return 1
    same_bitmaps "$scene/$file" "$folder/$file" || same_bitmaps "$FAULT_RESULT/$file" "$folder/$file" || return 1
    work=$(mktemp -d "$folder.mixed.XXXXXX")
    for i in 0 1 2; do
        qemu-img convert -O raw "${files[i]}" "$work/$i" || return 1
    done
    python3 -c '
import sys
old, new, now = (open(f"{sys.argv[1]}/{i}", "rb").read() for i in range(3))
sys.exit(any(now[at:at + 512] not in (old[at:at + 512], new[at:at + 512]) for at in range(0, len(now), 512)))
' "$work"
    i=$?
    rm -r "$work"
    return $i
}

failed() {
    local name
    [[ $FAULT_STATUS =~ ${FAULT_STATUSES:-^[15]$} ]] || wrong "status $FAULT_STATUS"
    # io says on stdout what became of a request, as qemu-io does.
    [[ $FAULT_STDOUT != *" failed: "* ]] || FAULT_STDERR+="blkimg: (on stdout)"
    [[ -n $FAULT_STDERR ]] || wrong "nothing was said"
    ! grep -v '^blkimg: ' <<<"${FAULT_STDERR%$'\n'}" || wrong "a line without 'blkimg: '"
    for name in $(cd "$folder" && ls -A); do
        [[ -e $scene/$name ]] && cmp -s "$scene/$name" "$folder/$name" && continue
        [[ $name == "$file" || ($file != - && -e $scene/$name) ]] || { wrong "$name is changed or left behind"; continue; }
        [[ -e $scene/$name ]] && same "$scene/$name" "$folder/$name" && continue
        same "$FAULT_RESULT/$name" "$folder/$name" || mixed || wrong "$name is neither the old one nor the result"
    done
    for name in $(cd "$scene" && ls -A); do
        [[ -e $folder/$name ]] || wrong "$name is gone"
    done
}

[[ ${FAULT_N-} != 0 ]] || exit 0
if [[ $FAULT_STATUS == 0 ]]; then succeeded; else failed; fi
exit $bad
