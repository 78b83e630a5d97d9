#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# "blkimg check" against qemu-img: the same summary and status. What a check finds is told in own words.

bats_require_minimum_version 1.5.0
load lib/common

both_forms() {
    same_output check "$@"
    same_output check --output=json "$@"
    same_output check -q "$@"
    same_output check -q --output=json "$@"
}

# A qcow2 image "a" with data in its first MiB, whose refcount block is at $refcounts.
make_image() {
    qemu-img create -q -f qcow2 a 10M
    qemu-io -c 'write 0 1M' -c 'write -c 4M 64k' a >/dev/null
    local table
    table=$(number a 48)
    refcounts=$(number a "$table")
}

# The 64-bit number at an offset of a file.
number() {
    echo $((16#$(od -An -tx1 -j "$2" -N 8 "$1" | tr -d ' \n')))
}

# set_refcount FILE CLUSTER HIGH_BYTE LOW_BYTE (octal)
set_refcount() {
    printf '%b' "\\0$3\\0$4" | dd of="$1" bs=1 seek=$((refcounts + 2 * $2)) conv=notrunc status=none
}

@test "formats that have nothing to check" {
    truncate -s 1M a
    both_forms -f raw a
    assert_equal "$status" 63
    both_forms -f raw -r all a
    assert_equal "$status" 63
}

@test "what cannot be meant" {
    truncate -s 1M a
    local args
    for args in '' 'a a' nosuch '-r bogus a' '-T bogus a' '--output=bogus a'; do
        # shellcheck disable=SC2086 # a list
        same_output check $args
        assert_equal "$status" 1
    done
}

@test "qcow2: nothing wrong" {
    need_format qcow2
    make_image
    both_forms a
    both_forms -U a
    same_output check -r all a
    same_output check -r leaks a
    qemu-img create -q -f qcow2 empty 1M
    both_forms empty
    qemu-img snapshot -c one a
    both_forms a
}

@test "qcow2: leaks are found and repaired" {
    need_format qcow2
    make_image
    truncate -s 2M a
    set_refcount a 30 0 1
    set_refcount a 31 0 1
    both_forms a
    assert_equal "$status" 3
    run -3 --separate-stderr blkimg check a
    assert_equal "${#stderr_lines[@]}" 2
    run -0 --separate-stderr blkimg check -r leaks a
    assert_equal "$stderr" ''
    assert_line 'The following inconsistencies were found and repaired:'
    assert_line '    2 leaked clusters'
    both_forms a
    assert_equal "$status" 0
}

@test "qcow2: corruption is found and repaired" {
    need_format qcow2
    make_image
    set_refcount a 6 0 0
    run -2 --separate-stderr blkimg check a
    [[ -n $stderr ]]
    run -2 --separate-stderr blkimg check --output=json a
    jq -e '.corruptions > 0 and ."check-errors" == 0' <<<"$output"
    qemu-io -r -c 'read -v 0 1M' a | grep -v ' ops; ' >before
    run -0 --separate-stderr blkimg check -r all --output=json a
    assert_equal "$stderr" ''
    jq -e '."corruptions-fixed" > 0 and (has("corruptions") | not)' <<<"$output"
    qemu-img check -q a
    qemu-io -r -c 'read -v 0 1M' a | grep -v ' ops; ' | cmp - before
}

# What scripts look for in qemu-img's output.
@test "the words of qemu-img" {
    need_format qcow2
    truncate -s 1M raw
    run -63 blkimg check -f raw raw
    assert_output --partial 'This image format does not support checks'
    make_image
    cp a b
    set_refcount a 6 0 0
    set_refcount a 7 0 2
    run -2 blkimg check a
    assert_line 'ERROR cluster 6 refcount=0 reference=1'
    assert_line 'Leaked cluster 7 refcount=2 reference=1'
    assert_line --partial 'ERROR OFLAG_COPIED data cluster: l2_entry=80000'
    run -0 blkimg check -r all a
    assert_line 'Repairing cluster 6 refcount=0 reference=1'
    assert_line 'Repairing cluster 7 refcount=2 reference=1'
    # Bits 0 and 1 of the incompatible features are known, 5 is not.
    printf '\2' | dd of=b bs=1 seek=79 conv=notrunc status=none
    run -1 blkimg io -c 'write 0 512' b
    assert_output --partial 'Image is corrupt'
    printf '\40' | dd of=b bs=1 seek=79 conv=notrunc status=none
    run -1 blkimg check b
    assert_output --partial 'Unsupported qcow2 feature(s): '
}
