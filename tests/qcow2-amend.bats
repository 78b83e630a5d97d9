#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# amend on qcow2: the same image as after qemu-img amend, with the same content; and sound in between.

bats_require_minimum_version 1.5.0
load lib/common

sound() {
    qemu-img check -q "$1" || fail "qemu-img check: $(qemu-img check "$1")"
    blkimg check "$1" >/dev/null || fail "check: $(blkimg check "$1")"
}

# amend_both OPTIONS: "mine" and "peer" by their programs; then described alike, sound, with equal content.
amend_both() {
    run -0 --separate-stderr blkimg amend -o "$1" mine
    assert_equal "$output$stderr" ''
    qemu-img amend -o "$1" peer || fail "qemu-img amend -o $1"
    alike "$1"
}

alike() {
    diff <(describe mine) <(describe peer) || fail "$1"
    sound mine
    qemu-img compare -q mine peer || fail "$1: other content"
    blkimg compare -q mine peer || fail "$1: other content"
}

describe() {
    qemu-img info --output=json "$1" | grep -v '"filename"\|"actual-size"\|"date-\|"icount"'
}

# Data, compressed pieces, zeroes with and without a host cluster, holes.
make_image() {
    rm -f mine peer
    qemu-img create -q -f qcow2 -o "$@" mine 3M
    qemu-io -c 'write -P 1 0 300k' -c 'write -c -P 2 1M 64k' -c 'write -P 3 2M 700k' -c 'write -z 2100k 64k' \
        -c 'write -z -u 2300k 64k' -c 'write -z 1500k 100k' mine >/dev/null
    cp mine peer
}

@test "versions there and back" {
    local options
    for options in cluster_size=64k cluster_size=512 lazy_refcounts=on compat=0.10; do
        make_image "$options"
        amend_both compat=0.10
        amend_both compat=0.10
        amend_both compat=1.1
        amend_both compat=v3
        amend_both compat=v2
    done
}

@test "every refcount width to every other" {
    local from to
    for from in 1 2 4 8 16 32 64; do
        for to in 1 2 4 8 16 32 64; do
            make_image "refcount_bits=$from,cluster_size=4k"
            # Pieces that share a cluster may need a width that is no longer there.
            if cp peer other && qemu-img amend -o "refcount_bits=$to" other 2>/dev/null; then
                amend_both "refcount_bits=$to"
            else
                run -1 blkimg amend -o "refcount_bits=$to" mine
                alike "refcount_bits=$to"
            fi
        done
    done
    make_image cluster_size=512
    for to in 64 8 16; do
        amend_both "refcount_bits=$to"
    done
}

@test "a width that is too small for the counts" {
    make_image refcount_bits=16
    qemu-img snapshot -c s mine
    cp mine before
    run -1 --separate-stderr blkimg amend -o refcount_bits=1 mine
    [[ ${#stderr_lines[@]} == 1 && $stderr == *'mine'* ]]
    sound mine
    qemu-img compare -q mine before
    blkimg amend -o refcount_bits=2 mine
    sound mine
}

@test "flags, sizes, several at once" {
    make_image cluster_size=64k
    amend_both lazy_refcounts=on
    amend_both lazy_refcounts=off
    amend_both size=9M
    amend_both size=2M
    amend_both lazy_refcounts=on,refcount_bits=8,size=5M
    amend_both compat=0.10,refcount_bits=16
    amend_both compat=1.1,lazy_refcounts=on,refcount_bits=1
    amend_both size=5M,compat=1.1
}

@test "zero clusters above a backing file become data in version 2" {
    qemu-img create -q -f raw base 3M
    fill base 0 3M 9
    local options
    for options in cluster_size=64k cluster_size=4k; do
        make_image "$options" -b base -F raw
        amend_both compat=0.10
        amend_both compat=1.1
    done
}

@test "snapshots are expanded with the image" {
    qemu-img create -q -f raw base 3M
    fill base 0 3M 9
    local backing
    for backing in '' '-b base -F raw'; do
        # shellcheck disable=SC2086 # a list
        make_image cluster_size=4k $backing
        qemu-img snapshot -c one mine
        qemu-io -c 'write -P 4 2080k 100k' -c 'write -z 100k 100k' mine >/dev/null
        qemu-img snapshot -c two mine
        qemu-io -c 'write -P 5 2M 10k' mine >/dev/null
        cp mine before
        cp mine peer
        local name
        blkimg amend -o compat=0.10 mine
        sound mine
        qemu-img compare -q mine before
        for name in one two; do
            qemu-img convert -l $name -O raw before old.raw
            qemu-img convert -l $name -O raw mine new.raw
            cmp old.raw new.raw
        done
        blkimg amend -o compat=1.1 mine
        sound mine
        for name in one two; do
            qemu-img snapshot -a $name mine
            sound mine
            qemu-img convert -l $name -O raw before old.raw
            qemu-img compare -q -f qcow2 -F raw mine old.raw
        done
    done
}

@test "data files" {
    qemu-img create -q -f qcow2 -o data_file=d,data_file_raw=on mine 3M
    cp mine peer
    qemu-io -c 'write -P 1 0 1M' mine >/dev/null
    cp mine peer
    amend_both data_file_raw=off
    amend_both data_file=./d
    amend_both data_file_raw=off,lazy_refcounts=on
    run -0 blkimg amend -o data_file= mine
    qemu-img amend -o data_file= peer
    cmp <(head -c 512 mine) <(head -c 512 peer) || true
    diff <(qemu-img info mine | grep 'data file') <(qemu-img info peer | grep 'data file')
}

@test "what cannot be is refused by name, and nothing changes" {
    make_image cluster_size=64k
    qemu-img create -q -f qcow2 -o extended_l2=on extended 1M
    qemu-img create -q -f qcow2 -o compat=0.10 old 1M
    qemu-img create -q -f qcow2 -o refcount_bits=8 narrow 1M
    qemu-img create -q -f qcow2 -o data_file=d outside 1M
    qemu-img create -q -f qcow2 grown 1M
    qemu-img snapshot -c s grown
    qemu-img resize -q grown 2M
    local image options text
    while read -r image options text; do
        cp "$image" before
        run -1 --separate-stderr blkimg amend -o "$options" "$image"
        [[ ${#stderr_lines[@]} == 1 && $stderr == *"$text"* ]] || fail "$image, $options: $stderr"
        cmp "$image" before
        cp "$image" other
        run -1 qemu-img amend -o "$options" other
    done <<'EOF'
mine compat=0.9 compat
mine refcount_bits=3 refcount_bits
mine backing_file=other backing_file
mine backing_fmt=raw backing_fmt
mine data_file=x data_file
mine data_file_raw=on data_file_raw
mine cluster_size=128k cluster_size
mine preallocation=full preallocation
mine compression_type=zstd compression_type
mine encrypt.iter-time=5 encrypt.iter-time
mine bogus=1 bogus
mine compat=0.10,refcount_bits=8 refcount_bits
old lazy_refcounts=on lazy_refcounts
old refcount_bits=8 refcount_bits
old compat=0.10,lazy_refcounts=on lazy_refcounts
narrow compat=0.10 compat
extended compat=0.10 extended
outside compat=0.10 data
outside data_file_raw=on data_file_raw
grown compat=0.10 snapshot
EOF
    # QEMU drops the bitmaps here, and their clusters leak.
    qemu-img bitmap --add mine b
    run -1 --separate-stderr blkimg amend -o compat=0.10 mine
    [[ ${#stderr_lines[@]} == 1 && $stderr == *bitmap* ]]
    run -1 --separate-stderr blkimg amend --force -o compat=0.10 mine
    [[ ${#stderr_lines[@]} == 1 && $stderr == *bitmap* ]]
    qemu-img info mine | grep -q 'name: b'
    blkimg amend -o refcount_bits=64 mine
    qemu-img info mine | grep -q 'name: b'
    sound mine
}

@test "the backing file named as it is is no change" {
    qemu-img create -q -f raw base 3M
    make_image cluster_size=64k -b base -F raw
    amend_both backing_file=base,backing_fmt=raw,lazy_refcounts=on
}

@test "zstd pieces cannot be in version 2" {
    blkimg --version | grep -qi zstd || skip 'no zstd in this build'
    qemu-img create -q -f qcow2 -o compression_type=zstd mine 1M
    blkimg amend -o compat=0.10 mine
    qemu-img info mine | grep -q 'compat: 0.10'
    sound mine
    qemu-img create -q -f qcow2 -o compression_type=zstd mine 1M
    qemu-io -c 'write -c -P 1 0 64k' mine >/dev/null
    run -1 --separate-stderr blkimg amend -o compat=0.10 mine
    [[ ${#stderr_lines[@]} == 1 && $stderr == *zstd* ]]
    sound mine
}

@test "-o help has qemu-img's options" {
    diff <(qemu-img amend -f qcow2 -o help | cut -d- -f1 | sed 's/ *$//') \
        <(blkimg amend -f qcow2 -o help | cut -d- -f1 | sed 's/ *$//')
    diff <(qemu-img create -f qcow2 -o help | grep -o '^ *[a-z0-9_.-]*=<[^>]*>') \
        <(blkimg create -f qcow2 -o help | grep -o '^ *[a-z0-9_.-]*=<[^>]*>')
}
