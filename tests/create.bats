#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# "blkimg create" against qemu-img: the same line, the same image; and nothing where it fails.

bats_require_minimum_version 1.5.0
load lib/common

# Both programs create with these arguments, each in its folder: same output, same status, and
# images that qemu-img describes alike but for their size on disk.
same_create() {
    local peer_status=0 mine_status=0
    rm -rf peer mine
    mkdir peer mine
    if [[ -d given ]]; then
        cp -a given/. peer
        cp -a given/. mine
    fi
    (cd peer && qemu-img create "$@") >peer.out 2>peer.err || peer_status=$?
    (cd mine && blkimg create "$@") >mine.out 2>mine.err || mine_status=$?
    diff -u peer.out mine.out || fail "create $*"
    [[ $peer_status == "$mine_status" ]] || fail "create $*: $peer_status, $mine_status: $(<mine.err)"
    assert_file_empty mine.err
    diff <(describe peer) <(describe mine) || fail "create $*"
}

describe() (
    cd "$1" || exit
    local file
    for file in *; do
        [[ -f $file ]] || continue
        stat -c '%n %A' "$file"
        qemu-img info "$file" | grep -v '^disk size'
    done
)

# refuses TEXT ARG...: create fails with one line that has the text, and leaves the folder as it was.
refuses() {
    local text=$1 status=0 before message
    shift
    before=$(stat -c '%n %s %a %i' -- * .[!.]* 2>/dev/null || :)
    message=$(blkimg create "$@" 2>&1 >/dev/null </dev/null) || status=$?
    assert_equal "$status" 1
    [[ $message != *$'\n'* && $message == blkimg:*"$text"* ]] || fail "create $*: $message"
    assert_equal "$(stat -c '%n %s %a %i' -- * .[!.]* 2>/dev/null || :)" "$before"
}

@test "raw: sizes and options" {
    mkdir given
    local size
    for size in 0 1 511 1000 1M 1.5G 0x1000 1.5k 10T ' 1M' +1M ' +1M'; do
        same_create -f raw x "$size"
        same_create x "$size"
    done
    same_create -f raw -o size=3M x
    same_create -f raw -o size=1k,size=2k x
    same_create -f raw -o 'size= +3M' x
    same_create -f raw -o preallocation=off x 1M
    same_create -f raw -o preallocation=falloc x 1M
    same_create -f raw x 1M -o preallocation=full
    same_create -q -f raw x 1M
    same_create -f file x 1M
    same_create -f raw 'a,b' 1M
    same_create -f raw $'a\nb' 1M
    same_create x --object secret,id=s,data=d 1M
}

@test "preallocated raw images occupy their space" {
    blkimg create -q -o preallocation=falloc a 2M
    blkimg create -q -o preallocation=full b 2M
    blkimg create -q -o preallocation=off c 2M
    (($(stat -c %b a) * 512 >= 2097152))
    (($(stat -c %b b) * 512 >= 2097152))
    (($(stat -c %b c) * 512 < 65536))
    cmp a b
    cmp a c
}

@test "an existing file is replaced and keeps its owner and mode" {
    fill a 0 1M
    chmod 640 a
    blkimg create -q a 2M
    [[ $(stat -c '%s %a' a) == '2097152 640' ]]
    cmp -n 2097152 a /dev/zero
    ln -s a link
    blkimg create -q link 1M
    [[ -L link && $(stat -c %s a) == 1048576 ]]
}

@test "refused, with one line that says why, and nothing left" {
    truncate -s 1M other
    refuses "'x': the image needs a size" x
    refuses "expects the name of the image"
    refuses "'c' is one operand too many" a 1 c
    refuses "size: '-1' is not a size" x -1
    refuses "size: '1.5.2G' is not a size" x 1.5.2G
    refuses "size: '16E' is too large" x 16E
    refuses "size: '8E' is too large" x 8E
    refuses "'x': the size is given twice" -o size=1M x 1M
    refuses "option 'bogus'" -o bogus=1 x 1M
    refuses "'sizee'" -o sizee=1 x 1M
    refuses "'maybe'" -o nocow=maybe x 1M
    refuses "Unknown file format 'bogus'" -f bogus x 1M
    refuses "preallocation" -o preallocation=metadata x 1M
    refuses "preallocation" -o preallocation=lots x 1M
    refuses "'raw' has no backing files" -b other -F raw x
    refuses "'null-co'" -f null-co x 1M
    refuses "'blkdebug'" -f blkdebug x 1M
    refuses "null-co://" null-co:// 1M
    refuses "'nosuch/x': No such file or directory" nosuch/x 1M
    refuses "is a directory" . 1M
    refuses "empty" '' 1M
    refuses "'x'" x 7E
}

@test "a full disk: one line, and no image" {
    small_tmpfs 1m full
    local status=0
    blkimg create -o preallocation=full full/x 4M >out 2>err || status=$?
    assert_equal "$status" 1
    [[ $(wc -l <err) == 1 && $(<err) == *full/x*"No space left on device"* ]] || fail "$(<err)"
    assert_equal "$(ls -A full)" ''
}

@test "-o help lists the options" {
    local name
    blkimg create -f raw -o help x >options
    for name in size preallocation nocow extent_size_hint; do
        grep -q "^  $name=<" options
    done
    assert_file_not_exists x
    blkimg create -f raw -o '?' | grep -q '^  size=<size>            - '
    # The names and types are qemu-img's.
    diff <(qemu-img create -f raw -o help x | cut -d- -f1) <(cut -d- -f1 options)
}

@test "qcow2: options" {
    need_format qcow2
    local options
    same_create -f qcow2 x 64M
    same_create -f qcow2 x 1001
    for options in compat=0.10 compat=v3 cluster_size=4k lazy_refcounts=on refcount_bits=64 \
        extended_l2=on,cluster_size=128k preallocation=metadata preallocation=falloc \
        preallocation=full compression_type=zstd data_file=d data_file=d,data_file_raw=on \
        cluster_size=4096,refcount_bits=1,compat=1.1,preallocation=off; do
        same_create -f qcow2 -o "$options" x 8M
    done
    for options in compat=1.2 cluster_size=1000 cluster_size=4M refcount_bits=3 bogus=1 \
        compat=0.10,lazy_refcounts=on compression_type=lzma data_file_raw=on; do
        local status=0
        blkimg create -f qcow2 -o "$options" y 8M >/dev/null 2>err || status=$?
        assert_equal "$status" 1
        [[ $(wc -l <err) == 1 ]] || fail "$options: $(<err)"
        assert_file_not_exists y
    done
    # libvirt asks this way.
    blkimg create -o '?' -f qcow2 /dev/null | grep -q '^ *compat='
}

@test "qcow2: backing files" {
    need_format qcow2
    mkdir given
    qemu-img create -q -f qcow2 given/base 64M
    qemu-img create -q -f raw given/odd 1000
    qemu-img create -q -f raw given/a,b 1M
    same_create -f qcow2 -b base -F qcow2 x
    same_create -f qcow2 -b base -F qcow2 x 128M
    same_create -f qcow2 -b odd -F raw x
    same_create -f qcow2 -o backing_file=base,backing_fmt=qcow2 x
    same_create -f qcow2 -b a,b -F raw x
    same_create -u -f qcow2 -b nosuch -F raw x 1M
    cp -a given/. .
    refuses "Backing file specified without backing format" -f qcow2 -b base x
    refuses "nosuch" -f qcow2 -b nosuch -F qcow2 x
    refuses "nosuch" -f qcow2 -b nosuch -F qcow2 x 1M
    refuses "needs a size" -u -f qcow2 -b nosuch -F qcow2 x
    refuses "no backing file" -f qcow2 -F qcow2 x 1M
    refuses "its own backing file" -f qcow2 -b base -F qcow2 base 1M
    refuses "its own backing file" -f qcow2 -b ./base -F qcow2 base 1M
    refuses "empty" -f qcow2 -b '' x 1M
    refuses "bogus" -f qcow2 -b base -F bogus x
}
