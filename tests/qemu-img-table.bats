#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# The rows of qemu-img-table.tsv, executed: where blkimg does the same as qemu-img it is compared, where not it must end as
# the row says. And the table is complete: each option of qemu-img's own help has a row.

bats_require_minimum_version 1.5.0
load lib/common

setup() {
    common_setup
    table=$BATS_TEST_DIRNAME/qemu-img-table.tsv
    mkdir scene
    cd scene || return 1
    fill raw 0 64k 1
    truncate -s 1M raw
    cp raw raw2
    truncate -s 1M zero
    qemu-img create -q -f qcow2 q 1M
    qemu-io -c 'write -P 2 128k 200k' -c 'write -z 512k 64k' q >/dev/null
    cp q q2
    qemu-img create -q -f qcow2 -b q -F qcow2 over
    qemu-io -c 'write -P 3 64k 100k' over >/dev/null
    qemu-img create -q -f qcow2 base 1M
    qemu-io -c 'write -P 4 0 300k' base >/dev/null
    qemu-img create -q -f qcow2 -b base -F qcow2 mid
    qemu-io -c 'write -P 5 200k 300k' mid >/dev/null
    qemu-img create -q -f qcow2 -b mid -F qcow2 top
    qemu-io -c 'write -P 6 400k 64k' top >/dev/null
    cp top snap
    qemu-img snapshot -c s1 snap
    qemu-io -c 'write -P 7 0 64k' snap >/dev/null
    cp q bm
    qemu-img bitmap --add bm b0
    qemu-img bitmap --add --disable bm b1
    qemu-io -c 'write -P 8 700k 64k' bm >/dev/null
    cp snap snapbm
    qemu-img bitmap --add snapbm b
    cp q bm2
    qemu-img bitmap --add bm2 b
    cd ..
}

# What differs from run to run, or from one correct image to another.
mask() {
    sed -E -e 's/in [0-9.]+ seconds/in X seconds/' -e 's/( *\([0-9.]+\/100%\)\r)+/PROGRESS/' -e '/^disk size:|"actual-size"/d' \
        -e 's/[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8}/DATE/' -e 's/"date-n?sec": [0-9]+/"date": X/'
}

# A line about each file: what a guest sees in it, and what is known of it.
describe() { # FOLDER
    local file
    cd "$1" || return 1
    for file in *; do
        if cmp -s "$file" "../scene/$file"; then
            echo "$file is as before"
            continue
        fi
        echo "$file:"
        qemu-img info -U --output=json "$file" | grep -Ev '"(actual-size|vm-clock-n?sec|date-n?sec|id)"'
        # A backing file that does not exist cannot be looked through.
        if qemu-img convert -U -O raw "$file" "../$1.raw" 2>/dev/null; then
            md5sum <"../$1.raw"
        else
            echo "cannot be read"
        fi
    done
    cd ..
}

run_row() { # COMMAND VERDICT ARGUMENTS EXPECTED
    local command=$1 verdict=$2 expected=$4 words status=0 peer_status=0
    eval "words=($3)"
    rm -rf mine peer
    cp -a --sparse=always scene mine
    (cd mine && exec "$BLKIMG" "$command" "${words[@]}") >mine.out 2>mine.err </dev/null || status=$?
    if [[ $verdict != same ]]; then
        [[ $status == "${expected%% *}" ]] || fail "$command $3: status $status instead of $expected: $(<mine.err)"
        [[ $expected != *' '* ]] || grep -qF -- "${expected#* }" mine.out mine.err ||
            fail "$command $3: said $(<mine.out)$(<mine.err)"
        [[ $status == 0 && ! -s mine.err || $status != 0 && -s mine.err ]]
        return
    fi
    cp -a --sparse=always scene peer
    (cd peer && exec qemu-img "$command" "${words[@]}") >peer.out 2>peer.err </dev/null || peer_status=$?
    [[ $status == "$peer_status" ]] || fail "$command $3: status $status, qemu-img $peer_status: $(<mine.err)"
    diff <(mask <peer.out) <(mask <mine.out) || fail "$command $3: another output"
    diff <(describe peer) <(describe mine) || fail "$command $3: another result"
}

# run_rows COMMAND...: all rows of these commands.
run_rows() {
    local command option verdict note arguments expected count=0
    while IFS=$'\x1f' read -r command option verdict note arguments expected; do
        [[ " $* " == *" $command "* ]] || continue
        [[ $verdict =~ ^(same|better|not here)$ && ($verdict == same || -n $note) ]] ||
            fail "the row '$command $option' gives no reason"
        run_row "$command" "$verdict" "$arguments" "$expected"
        count=$((count + 1))
    done < <(grep -v '^#' "$table" | tr '\t' '\037')
    echo "# $count rows" >&3
    ((count > 0))
}

@test "amend, resize, create" { run_rows amend resize create; }
@test "bench, dd" { run_rows bench dd; }
@test "bitmap, snapshot" { run_rows bitmap snapshot; }
@test "check, compare, info, map, measure" { run_rows check compare info map measure; }
@test "commit, rebase" { run_rows commit rebase; }
@test "convert" { run_rows convert; }
@test "the program itself" { run_rows --help --version; }

@test "each option in qemu-img's help has a row" {
    local command rest option missing=
    while read -r command rest; do
        while read -r option; do
            cut -f1,2 "$table" | grep -qxF -- "$command	$option" || missing+=" $command:$option"
        done < <(grep -oE '(^|[[( |])(--?[a-zA-Z][a-z-]*|[a-z]+=)' <<<"$rest" | grep -oE -- '-.*|[a-z]+=$' | sort -u)
    done < <(qemu-img --help | sed -n '/^Command syntax/,/^Command parameters/p' | grep '^  ')
    [[ -z $missing ]] || fail "no row for$missing"
}
