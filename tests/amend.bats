#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# "blkimg amend" against qemu-img.

bats_require_minimum_version 1.5.0
load lib/common

@test "formats that have nothing to amend, and what cannot be meant" {
    truncate -s 1M a
    local args
    for args in '' a '-o size=1M' '-f raw -o size=1M a' '-o size=1M nosuch' '-f raw -o help' \
        '-f bogus -o help' '-f raw -o size=1M -t bogus a'; do
        # shellcheck disable=SC2086 # a list
        same_output amend $args
        assert_equal "$status" 1
        # shellcheck disable=SC2086
        run -1 --separate-stderr blkimg amend $args
        assert_equal "${#stderr_lines[@]}" 1
    done
}

@test "qcow2: changes that can be made" {
    need_format qcow2
    qemu-img create -q -f qcow2 a 10M
    qemu-io -c 'write -P 5 0 1M' a >/dev/null
    local options
    for options in compat=0.10 compat=1.1 lazy_refcounts=on lazy_refcounts=off size=20M \
        refcount_bits=8 refcount_bits=64 compat=1.1,refcount_bits=16; do
        cp a peer
        qemu-img amend -o "$options" peer
        run -0 --separate-stderr blkimg amend -o "$options" a
        assert_equal "$output$stderr" ''
        qemu-img check -q a
        diff <(qemu-img info peer | grep -v '^image\|^disk') <(qemu-img info a | grep -v '^image\|^disk')
        qemu-img compare -q a peer
    done
    run -0 --separate-stderr blkimg amend -p -o refcount_bits=32 a
    [[ $output == *'(100.00/100%)'* ]]
    run -0 --separate-stderr blkimg amend -p -q -o refcount_bits=16 a
    assert_equal "$output" ''
}

@test "qcow2: changes that cannot, by name and without effect" {
    need_format qcow2
    qemu-img create -q -f qcow2 a 10M
    cp a before
    local options
    for options in bogus=1 cluster_size=4k refcount_bits=9 compat=2.0 backing_file=before \
        lazy_refcounts=maybe; do
        run -1 --separate-stderr blkimg amend -o "$options" a
        assert_equal "${#stderr_lines[@]}" 1
        [[ $stderr == *"${options%%=*}"* ]] || fail "$stderr"
        qemu-img compare -q a before
        qemu-img check -q a
    done
    blkimg amend -f qcow2 -o help | grep -q '^  compat=<str> '
    blkimg amend -o help a | grep -q '^  refcount_bits=<num> '
}

@test "-p: a step for each L1 entry, as qemu-img counts them" {
    need_format qcow2
    qemu-img create -q -f qcow2 a 3G
    qemu-io -c 'write -P 5 0 1M' -c 'write -z 1G 1M' a
    qemu-img snapshot -c s a
    cp a peer
    qemu-img amend -p -o compat=0.10 peer >theirs
    blkimg amend -p -o compat=0.10 a >ours
    diff <(tr '\r' '\n' <theirs) <(tr '\r' '\n' <ours)
    (($(tr '\r' '\n' <ours | wc -l) > 12))
}

@test "-p: the progress of every command, in the form that scripts read, goes up to 100" {
    need_format qcow2
    fill r 0 8M 0x33
    qemu-img create -q -f qcow2 -o cluster_size=512,preallocation=metadata a 16M
    qemu-img create -q -f qcow2 -b r -F raw ov
    qemu-io -c 'write -P 6 0 6M' ov
    cp r other
    cp r copy
    local args steps least
    while read -r least args; do
        # shellcheck disable=SC2086 # a list
        "$BLKIMG" $args >out || fail "$args: $?"
        steps=$(tr '\r' '\n' <out | grep -v -e Image -e '^$')
        run grep -Evx ' *\([0-9]+\.[0-9]{2}/100%\)' <<<"$steps"
        assert_output ''
        [[ $steps == *'(0.00/100%)'*'(100.00/100%)' ]] || fail "$args: $steps"
        sort -c -t'(' -g -k2 <<<"$steps" || fail "$args: $steps"
        (($(wc -l <<<"$steps") >= least)) || fail "$args: $steps"
    done <<'END'
20 amend -p -o refcount_bits=64 a
5 convert -p -O qcow2 ov t
5 compare -p r copy
4 rebase -p -b other -F raw ov
4 commit -p ov
END
}
