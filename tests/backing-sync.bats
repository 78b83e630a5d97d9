# SPDX-License-Identifier: MIT
# What a header begins to name is on stable storage before the header is: whoever made that file
# ("cp base new") may have synced nothing. Seen by the order of the calls.

load lib/common

setup() {
    common_setup
    need_unsanitized
    mkdir d
    cd d || return 1
}

# traced NAMES ARG...: runs blkimg and lists, in the file calls, what it did to these files (in d).
traced() {
    local names=$1
    shift
    rm -f ../calls
    # shellcheck disable=SC2086 # a list
    LD_PRELOAD="$TEST_TOOLS/fault-preload.so" FAULT_FILES=$(printf "$PWD/%s:" $names) \
        FAULT_COUNT_FILE=../calls "$BLKIMG" "$@"
}

# The number of the first, or last, line of calls that begins with a text.
first() { grep -n "^$1 " ../calls | head -1 | cut -d: -f1; }
last() { grep -n "^$1 " ../calls | tail -1 | cut -d: -f1; }

# synced_before CALL NAME...: each file, and the directory, is synced before the last such call.
synced_before() {
    local switch name at
    switch=$(last "$1")
    [[ -n $switch ]] || fail "no '$1': $(<../calls)"
    shift
    for name in "$@" d; do
        at=$(first "sync $name")
        [[ -n $at ]] && ((at < switch)) || fail "'$name' is synced too late: $(<../calls)"
    done
}

# base <- over; new, on new-base, is a copy that nobody has synced.
chain() {
    blkimg create -q -f qcow2 base 1M
    blkimg io -c 'write -q -P 5 0 64k' base
    blkimg create -q -f qcow2 -b base -F qcow2 over
    cp base new-base
    blkimg create -q -f qcow2 -b new-base -F qcow2 new
}

@test "rebase syncs the chain that the header is to name" {
    chain
    traced 'new new-base over' rebase -b new -F qcow2 over
    synced_before 'write over offset 0' new new-base
}

@test "rebase -u syncs it too, where it exists" {
    chain
    traced 'new new-base over' rebase -u -b new -F qcow2 over
    synced_before 'write over offset 0' new new-base
    blkimg rebase -u -b nothing -F qcow2 over
    run -0 blkimg info over
    assert_output --partial 'backing file: nothing'
    # What is no image yet is a file.
    fill torn 0 64k
    traced 'torn over' rebase -u -b torn -F qcow2 over
    synced_before 'write over offset 0' torn
}

@test "pivot syncs it before the first overlay is switched" {
    chain
    traced 'new new-base over' pivot --to=new over
    synced_before 'write over offset 0' new new-base
}

@test "mirror --pivot syncs the copy" {
    chain
    traced 'copy over' mirror base copy --pivot=over
    synced_before 'write over offset 0' copy
}

@test "create -b and convert -B sync it before the image gets its name" {
    chain
    blkimg create -q -f qcow2 source 1M
    local arguments
    for arguments in 'create -q -f qcow2 -b new -F qcow2 x' 'create -q -u -f qcow2 -b new -F qcow2 x 1M' \
        'convert -O qcow2 -B new -F qcow2 source x'; do
        rm -f x
        # shellcheck disable=SC2086 # a list
        traced 'new new-base x' $arguments
        synced_before 'link x' new new-base
    done
}

@test "backup --base syncs the base" {
    chain
    blkimg backup -q --new-bitmap=b over full
    blkimg io -c 'write -q -P 6 0 64k' over
    traced 'full next' backup -q --bitmap=b --base=full over next
    synced_before 'link next' full
}

@test "amend syncs the data file that it names" {
    blkimg create -q -f qcow2 -o data_file=data image 1M
    cp data moved
    traced 'moved image' amend -o data_file=moved image
    synced_before 'write image offset 0' moved
}

@test "a symlink, and where it leads, are synced" {
    chain
    mkdir ../elsewhere
    mv new-base ../elsewhere/far
    ln -s ../elsewhere/far link
    FAULT_FILES=$PWD/link LD_PRELOAD="$TEST_TOOLS/fault-preload.so" FAULT_COUNT_FILE=../all \
        "$BLKIMG" create -q -f qcow2 -b link -F qcow2 x
    run -0 cat ../all
    assert_line --partial 'sync far '
    assert_line --partial 'sync elsewhere '
}

@test "an external data file in the chain is synced" {
    blkimg create -q -f qcow2 -o data_file=data image 1M
    traced 'data image x' create -q -f qcow2 -b image -F qcow2 x
    synced_before 'link x' data image
}

@test "cache mode unsafe syncs nothing" {
    chain
    traced 'new new-base over' rebase -t unsafe -b new -F qcow2 over
    run ! grep '^sync' ../calls
}

@test "a sync that fails leaves the header as it was" {
    chain
    cp over before
    local command
    for command in 'rebase -b new -F qcow2 over' 'rebase -u -b new -F qcow2 over' 'pivot --to=new over' \
        'create -q -f qcow2 -b new -F qcow2 x'; do
        # shellcheck disable=SC2086 # a list
        LD_PRELOAD="$TEST_TOOLS/fault-preload.so" FAULT_FILES="$PWD/new" FAULT_CALL=sync FAULT_N=1 \
            FAULT_ONCE=1 run -1 "$BLKIMG" $command
        assert_output --partial "which 'over' is to name" || assert_output --partial "which 'x' is to name"
        assert_output --partial "flushing '"
        assert_output --partial "Input/output error"
        run -0 cmp over before
        assert_file_not_exist x
    done
}
