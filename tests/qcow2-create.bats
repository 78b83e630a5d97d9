#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# Images that create makes are laid out as QEMU's: qemu-img describes them alike, finds no fault in
# them, and qemu-io writes and reads them.

bats_require_minimum_version 1.5.0
load lib/common

# make_both OPTIONS SIZE [ARG...]: the image "mine" by blkimg and "peer" by qemu-img, in folders of
# these names; both get the files of the folder "given".
make_both() {
    local options=$1 size=$2
    shift 2
    rm -rf mine peer
    mkdir mine peer
    [[ ! -d given ]] || { cp -a given/. mine && cp -a given/. peer; }
    (cd peer && qemu-img create -q -f qcow2 ${options:+-o "$options"} "$@" x $size) || fail "qemu-img: $options"
    (cd mine && run -0 --separate-stderr blkimg create -q -f qcow2 ${options:+-o "$options"} "$@" x $size &&
        [[ -z $output$stderr ]]) || fail "blkimg: $options"
}

# What both programs say of "x" in both folders, which must be one thing.
same_info() {
    local json
    for json in '' --output=json; do
        diff <(cd peer && qemu-img info $json x) <(cd mine && qemu-img info $json x) || fail "info: $*"
    done
    diff <(cd peer && qemu-img info x) <(cd mine && blkimg info x) || fail "our info: $*"
}

# A pattern here and there, written and read back by qemu-io and read by us.
write_and_read() (
    cd mine || exit
    local size=$1
    qemu-io -c "write -P 1 0 512" -c "write -P 2 $((size / 2)) 1k" -c "write -P 3 $((size - 512)) 512" x >out
    [[ $(grep -c ^wrote out) == 3 ]] || fail "$(<out)"
    qemu-img check -q x || fail "not sound after writing"
    local program
    for program in qemu-io "$BLKIMG io"; do
        $program -c "read -P 1 0 512" -c "read -P 0 512 $((size / 2 - 512))" -c "read -P 2 $((size / 2)) 1k" \
            -c "read -P 3 $((size - 512)) 512" x >out
        [[ $(grep -c ^read out) == 4 ]] || fail "$program: $(<out)"
        refute grep -q verification out
    done
)

sound() {
    (cd mine && qemu-img check x >out) || fail "$*: $(<mine/out)"
    grep -q 'No errors were found' mine/out
    diff <(cd peer && qemu-img check x) mine/out || fail "check: $*"
}

one_case() {
    make_both "$@"
    same_info "$@"
    sound "$@"
    write_and_read "$(qemu-img info --output=json mine/x | sed -n 's/.*"virtual-size": \([0-9]*\).*/\1/p')"
}

@test "cluster sizes by refcount widths" {
    local cluster width
    for cluster in 512 1k 4k 16k 64k 256k 2M; do
        for width in 1 4 16 64; do
            one_case "cluster_size=$cluster,refcount_bits=$width" 10M
        done
    done
}

@test "versions, flags, extended L2, compression types" {
    local options
    for options in '' compat=0.10 compat=v2 compat=1.1 compat=v3 lazy_refcounts=on compression_type=zstd \
        compression_type=zlib extended_l2=on extended_l2=on,cluster_size=16k extended_l2=on,cluster_size=2M \
        refcount_bits=2 refcount_bits=8 refcount_bits=32 encryption=off nocow=off \
        compat=0.10,cluster_size=512 extended_l2=on,lazy_refcounts=on,refcount_bits=1,compression_type=zstd; do
        one_case "$options" 8M
    done
}

@test "sizes" {
    local size
    for size in 512 1000 65536 65537 512M 1G 513G 16T; do
        make_both '' "$size"
        same_info "$size"
        sound "$size"
    done
    make_both '' 0
    same_info 0
    (cd mine && qemu-img check x)
    # L1 tables and refcount structures of many clusters.
    make_both cluster_size=512,refcount_bits=64 20G
    (cd mine && qemu-img check x)
    diff <(cd peer && qemu-img info x | grep -v '^disk') <(cd mine && qemu-img info x | grep -v '^disk')
    one_case cluster_size=512 1G
    make_both cluster_size=2M 1024T
    same_info 1024T
    sound 1024T
}

# Whether all, nothing or some of the image is allocated.
presence() {
    qemu-img map --output=json "$1" | grep -o '"present": [a-z]*' | sort -u
}

@test "preallocation" {
    local mode options
    for mode in metadata falloc full; do
        for options in cluster_size=64k cluster_size=512 cluster_size=4k,refcount_bits=64 extended_l2=on \
            compat=0.10 cluster_size=2M; do
            make_both "preallocation=$mode,$options" 9M
            diff <(cd peer && qemu-img info x | grep -v '^disk') <(cd mine && qemu-img info x | grep -v '^disk')
            (cd mine && qemu-img check -q x)
            assert_equal "$(presence mine/x)" "$(presence peer/x)"
            qemu-img compare -q mine/x peer/x
            [[ $mode == metadata ]] || (($(stat -c %b mine/x) * 512 >= 9 << 20)) || fail "$mode, $options: no space"
            write_and_read $((9 << 20))
        done
    done
}

@test "backing files" {
    mkdir given
    qemu-img create -q -f raw given/base 6M
    fill given/base 0 6M 7
    local options
    for options in '' compat=0.10 cluster_size=512 extended_l2=on; do
        make_both "$options" '' -b base -F raw
        same_info "$options"
        sound "$options"
        qemu-img compare -q mine/x given/base
        make_both "$options" 9M -b base -F raw
        same_info "$options"
    done
    make_both backing_file=base,backing_fmt=raw 3M
    same_info
    make_both preallocation=metadata,extended_l2=on '' -b base -F raw
    (cd mine && qemu-img check -q x)
    qemu-img compare -q mine/x given/base
    # A name as long as it may be.
    local name
    name=$(printf './%.0s' {1..509})/base
    make_both '' '' -b "$name" -F raw
    same_info long name
    sound long name
    qemu-img compare -q mine/x given/base
    make_both cluster_size=512 1M -u -b base -F raw
    (cd mine && qemu-img check -q x)
}

@test "external data files" {
    local options
    for options in '' data_file_raw=on cluster_size=4k extended_l2=on data_file_raw=on,cluster_size=2M; do
        make_both "data_file=d${options:+,$options}" 9M
        same_info "$options"
        sound "$options"
        # QEMU makes a raw data file of whole clusters.
        cmp -n $((9 << 20)) mine/d peer/d
        [[ $(stat -c %s mine/d) == $((9 << 20)) ]]
        write_and_read $((9 << 20))
        [[ $options != data_file_raw* ]] || (cd mine && qemu-img compare -q -f raw -F qcow2 d x)
    done
    local mode
    for mode in metadata falloc full; do
        make_both "data_file=d,preallocation=$mode" 4M
        diff <(cd peer && qemu-img info x | grep -v '^disk') <(cd mine && qemu-img info x | grep -v '^disk')
        (cd mine && qemu-img check -q x)
        cmp mine/d peer/d
    done
    # The name is seen from the current folder, as QEMU sees it.
    mkdir sub
    blkimg create -q -f qcow2 -o data_file=e sub/x 1M
    assert_file_exists e
    qemu-io -c 'write -P 9 0 1M' sub/x >out
    blkimg io -r -c 'read -P 9 0 1M' sub/x >out
    refute grep -q verification out
}

@test "an existing data file is replaced only when all is done" {
    fill d 0 1M 5
    cp d before
    run -1 blkimg create -q -f qcow2 -o data_file=d,cluster_size=512 x 16T
    cmp d before
    assert_file_not_exists x
    run -1 blkimg create -q -f qcow2 -o data_file=d,backing_file=none,backing_fmt=raw,data_file_raw=on x 1M
    cmp d before
    blkimg create -q -f qcow2 -o data_file=d x 1M
    cmp d <(head -c 1M /dev/zero)
}

@test "what does not go together is refused by name, and nothing is left" {
    local options text
    while read -r options text; do
        run -1 --separate-stderr blkimg create -q -f qcow2 -o "$options" x 1M
        [[ ${#stderr_lines[@]} == 1 && $stderr == *"$text"* ]] || fail "$options: $stderr"
        assert_file_not_exists x
        run -1 qemu-img create -q -f qcow2 -o "$options" peer 1M
    done <<'EOF'
cluster_size=1000 cluster_size
cluster_size=256 cluster_size
cluster_size=4M cluster_size
refcount_bits=3 refcount_bits
refcount_bits=128 refcount_bits
refcount_bits=0 refcount_bits
compat=2 compat
compat=0.10,refcount_bits=8 refcount_bits
compat=0.10,lazy_refcounts=on lazy_refcounts
compat=0.10,extended_l2=on extended_l2
compat=0.10,compression_type=zstd compression_type
compat=0.10,data_file=d data_file
extended_l2=on,cluster_size=8k extended_l2
compression_type=lzma compression_type
preallocation=some preallocation
data_file_raw=on data_file_raw
backing_fmt=raw backing
encryption=on encryption
encrypt.format=luks encrypt.format
encrypt.iter-time=5 encrypt.iter-time
encrypt.key-secret=s encrypt.key-secret
lazy_refcounts=perhaps lazy_refcounts
EOF
    qemu-img create -q -f raw base 1M
    run -1 --separate-stderr blkimg create -q -f qcow2 -o preallocation=metadata -b base -F raw x
    [[ $stderr == *preallocation* ]]
    run -1 --separate-stderr blkimg create -q -f qcow2 -o data_file=d,data_file_raw=on -b base -F raw x
    [[ $stderr == *data_file_raw* ]]
    assert_file_not_exists x
    assert_file_not_exists d
    run -1 --separate-stderr blkimg create -q -f qcow2 -u -b "$(printf '%01024d' 0)" -F raw x 1M
    [[ ${#stderr_lines[@]} == 1 ]]
    run -1 --separate-stderr blkimg create -q -f qcow2 -u -b "$(printf '%0400d' 0)" -F raw -o cluster_size=512 x 1M
    [[ ${#stderr_lines[@]} == 1 ]]
    run -1 --separate-stderr blkimg create -q -f qcow2 x 3E
    [[ $stderr == *'too large'* ]]
    assert_file_not_exists x
}

@test "single faults: none is swallowed, and nothing is left under the name" {
    need_unsanitized 'the preloaded fault injector and sanitizers exclude each other'
    cat >check <<'EOF'
#!/bin/sh
[ "${FAULT_N:-0}" -gt 0 ] || exit 0
[ "$FAULT_STATUS" -ne 0 ] || { echo 'a fault was swallowed'; exit 1; }
# The last close comes after the complete file got its name.
[ "$FAULT_CALL,$FAULT_STATUS" != close,5 ] || exit 0
[ ! -e "$1/x" ] || { echo 'an image is left'; exit 1; }
EOF
    chmod +x check
    local options
    for options in cluster_size=64k preallocation=metadata,cluster_size=4k preallocation=full data_file=d; do
        python3 "$SRCDIR/tests/tools/faultloop.py" --files x:d --check "$PWD/check" --calls write,sync,truncate,close,link \
            -- "$BLKIMG" create -q -f qcow2 -o "$options" x 3M >fault.out 2>&1 || fail "$options: $(tail -20 fault.out)"
        echo "# create -o $options: $(tail -1 fault.out)" >&3
    done
}
@test "the space that a preallocation sets aside is in the data file" {
    for mode in falloc full; do
        for raw in off on; do
            blkimg create -q -f qcow2 -o "data_file=d,data_file_raw=$raw,preallocation=$mode" x 4M
            (($(stat -c %b d) * 512 >= 4 << 20)) || fail "$mode, raw $raw: $(ls -ls d)"
            qemu-img check -q x
            rm x d
        done
        truncate -s 4M zeroes
        fill zeroes 1M 64k
        blkimg convert -O qcow2 -o "data_file=d,preallocation=$mode" zeroes x
        (($(stat -c %b d) * 512 >= 4 << 20)) || fail "convert, $mode: $(ls -ls d)"
        qemu-img compare -q zeroes x
        blkimg resize -q --preallocation=$mode x 6M
        (($(stat -c %b d) * 512 >= 6 << 20)) || fail "resize, $mode: $(ls -ls d)"
        rm x d
    done
    blkimg create -q -f qcow2 -o data_file=d,preallocation=metadata x 4M
    (($(stat -c %b d) * 512 < 1 << 20)) || fail "metadata: $(ls -ls d)"
}

@test "no space for a preallocated data file is an error that leaves nothing" {
    small_tmpfs 2m full
    run -1 blkimg create -q -f qcow2 -o data_file=full/d,preallocation=falloc x 4M
    assert_output --partial "full/d"
    [[ ! -e full/d && ! -e x ]]
}

