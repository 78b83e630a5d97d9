# SPDX-License-Identifier: MIT
# Every close(2) of an image fails once, in every command, that of a file which was only read from
# included: the status is not 0, and a line on stderr names the file.

load lib/common

setup() {
    common_setup
    need_unsanitized
    mkdir d
    cd d || return 1
    blkimg create -q -f qcow2 base 256k
    blkimg io -c 'write -q -P 5 0 64k' base
    cp base copy
    blkimg create -q -f qcow2 -b base -F qcow2 over
    blkimg create -q -f qcow2 -b base -F qcow2 over2
    blkimg io -c 'write -q -P 6 64k 64k' over
    fill raw 0 256k 5
    calls=$T/calls
}

# each_close ARG...: fails each close of a file in d in "blkimg ARG...", in copies of d.
each_close() {
    local call nth before=$faults
    for call in close close-read; do
        for ((nth = 1; nth < 100; nth++)); do
            one_close "$@" || break
        done
        [[ $status == 0 ]] || fail "status $status: $(<../err): $*"
    done
    ((faults > before)) || fail "nothing was closed: $*"
}

# Returns 1 when there was no such close.
one_close() {
    local line
    rm -rf ../run "$calls"
    cp -a . ../run
    LD_PRELOAD="$TEST_TOOLS/fault-preload.so" FAULT_CALL=$call FAULT_N=$nth FAULT_ONCE=1 \
        FAULT_FILES=$(printf "$T/run/%s:" * new) FAULT_COUNT_FILE=$calls \
        in_run "$@" >../out 2>../err && status=0 || status=$?
    line=$(sed -n "${nth}p" "$calls")
    [[ -n $line ]] || return 1
    # Nothing can be lost with the descriptor of a directory.
    [[ $line != 'close run '* ]] || return 0
    [[ $status != 0 ]] || fail "status 0: $line of: $*"
    grep -q "^blkimg: .*'.*': .*Input/output error" ../err || fail "$(<../err), after $line of: $*"
    faults=$((faults + 1))
}

in_run() {
    (cd ../run && exec "$BLKIMG" "$@")
}

@test "commands that only read" {
    faults=0
    each_close info over
    each_close info --backing-chain over
    each_close map over
    each_close check over
    each_close checksum over
    each_close compare base copy
    each_close measure -O qcow2 over
    each_close close-check over
    each_close snapshot -l over
    each_close bitmap --list over
    each_close io -r -c 'read -q 0 64k' over
    ((faults > 12))
}

@test "commands that make an image" {
    faults=0
    each_close create -q -f qcow2 -b over -F qcow2 new
    each_close convert -O qcow2 -B base -F qcow2 over new
    each_close convert -f raw -O qcow2 raw copy
    each_close dd -f raw -O raw if=raw of=new
    each_close mirror base new --pivot=over --pivot=over2
    blkimg backup -q --new-bitmap=b over full
    each_close backup -q --bitmap=b --base=full over new
    each_close backup -q --verify over new
    each_close backup -q --list-chain=full
    ((faults > 30))
}

@test "commands that change an image" {
    faults=0
    each_close commit over
    each_close rebase -b copy -F qcow2 over
    each_close rebase -u -b copy -F qcow2 over
    each_close pivot --to=copy --witness=witness over over2
    each_close resize -q over +64k
    each_close amend -o lazy_refcounts=on over
    each_close snapshot -c s over
    blkimg bitmap --add base b
    each_close bitmap --add --merge b -b base over c
    each_close bench -c 4 -w base
    each_close io -c 'write -q 0 64k' over
    ((faults > 30))
}

@test "pivot puts all back when a backing file cannot be closed" {
    local nth name
    for ((nth = 1; nth < 20; nth++)); do
        LD_PRELOAD="$TEST_TOOLS/fault-preload.so" FAULT_CALL=close-read FAULT_N=$nth FAULT_ONCE=1 \
            FAULT_FILES=$PWD/copy:$PWD/base run "$BLKIMG" pivot --to=copy --witness=w over over2
        [[ $status != 0 ]] || break
        for name in over over2; do
            blkimg info $name | grep -q '^backing file: base' || fail "$name, close $nth: $output"
        done
        [[ ! -s w ]]
    done
    ((nth > 6))
    assert_equal "$status" 0
}
