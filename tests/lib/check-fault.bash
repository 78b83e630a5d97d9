#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Judges what a command left behind after something failed under it; prints what is wrong.
#
#   check-fault.bash EXPECT FILE SCENE FOLDER
#
# FOLDER is where the command ran, on copies of the files in SCENE. FILE is the image at which the
# fault happened. EXPECT says what must hold for FILE; all others must be unchanged, and there must
# be no new ones:
#   untouched   it is unchanged
#   named       or, if only what it replaced could not be removed, the complete result
#   in-place    it may have changed
#
# Environment (as faultloop.py sets it): FAULT_STATUS the exit status, FAULT_CALL what failed,
# FAULT_N which one of them (0: none), FAULT_LINE more about it, and FAULT_STDERR; also
# FAULT_RESULT, the directory that a run without a fault left (for "named"), FAULT_SAID, set when the command has reported a failure on stdout, and FAULT_STATUSES, the statuses of a failure
# as a regular expression, for a command with more of them.
set -u

expect=$1 file=$2 scene=$3 folder=$4
bad=0
if [[ ${FAULT_N-} == 0 ]]; then
    exit 0
fi
statuses=${FAULT_STATUSES:-^[15]$}
FAULT_STDERR=${FAULT_STDERR%$'\n'}

wrong() {
    printf '%s\n' "$*"
    bad=1
}

# The message must name the step. System calls have other names than requests.
case $FAULT_CALL in
read) step='read' ;;
write | fallocate) step='writ|zero|resiz|allocat|copy' ;;
write-zeroes) step='zero|writ|resiz' ;;
discard) step='discard' ;;
flush | sync) step='flush|sync|publish' ;;
block-status) step='map|status' ;;
truncate) step='resiz|truncat|creat|allocat' ;;
create) step='creat' ;;
publish | link | rename) step='publish|nam|replac|link' ;;
close) step='clos|release' ;;
*) step='.' ;;
esac

check_status() {
    case $FAULT_CALL in
    # Whether the target can get its name is tried before the work, with an empty file.
    publish | close)
        [[ $FAULT_STATUS == 5 || $FAULT_STDERR == *" a file beside '"* ]] ||
            wrong "status $FAULT_STATUS, expected 5"
        ;;
    *) [[ $FAULT_STATUS =~ $statuses ]] || wrong "status $FAULT_STATUS, expected $statuses" ;;
    esac
}

check_message() {
    local first=${FAULT_STDERR%%$'\n'*}
    if [[ -z $FAULT_STDERR ]]; then
        [[ -n ${FAULT_SAID-} ]] || wrong "nothing was said"
        return
    fi
    ! grep -v '^blkimg: ' <<<"$FAULT_STDERR" || wrong "a line without 'blkimg: '"
    [[ $first == *"$file"* ]] || wrong "the message does not name $file: $first"
    [[ ${first,,} =~ $step ]] || wrong "the message does not name the step ($FAULT_CALL): $first"
    [[ -z $(sort <<<"$FAULT_STDERR" | uniq -d) ]] || wrong "said twice: $FAULT_STDERR"
}

# Whether the name belongs to the complete result, and the fault was one that comes after that: what
# was replaced could not be removed.
is_named() {
    [[ $expect == named && $FAULT_CALL == unlink ]] &&
        cmp -s "$FAULT_RESULT/$file" "$folder/$file"
}

may_differ() {
    [[ $1 == "$file" ]] && { [[ $expect == in-place ]] || is_named; }
}

check_files() {
    local name
    for name in $(cd "$scene" && ls -A); do
        cmp -s "$scene/$name" "$folder/$name" || may_differ "$name" ||
            wrong "$name is not what it was"
    done
    for name in $(cd "$folder" && ls -A); do
        [[ -e $scene/$name ]] || may_differ "$name" || wrong "$name is left behind"
    done
}

check_status
check_message
check_files
exit $bad
