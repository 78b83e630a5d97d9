#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# Other containers, archives and compressed streams: read as raw they would give garbage and status 0, so each is refused
# by name where the format is guessed, by every command, and is used as it is where the format raw is given.

bats_require_minimum_version 1.5.0
load lib/common

# refused FORMAT IMAGE COMMAND...: the first line names the image, its format and the way out.
refused() {
    local format=$1 image=$2 status=0
    shift 2
    timeout 20 "$BLKIMG" "$@" >out 2>err </dev/null || status=$?
    [[ $status != 0 && $(head -n 1 err) == blkimg:*"'$image'"*"its format is $format ("*"-f raw"* ]] ||
        fail "$*: status $status: $(head -c 2000 err)"
}

# foreign FORMAT FILE: guessed it is refused; as raw it is what it is.
foreign() {
    local format=$1 file=$2
    refused "$format" "$file" info "$file"
    blkimg info -f raw "$file" >out
    grep -q '^file format: raw$' out
}

# bytes FILE TEXT: a file of 1 MiB that begins with these bytes (printf's escapes).
bytes() {
    truncate -s 1M "$1"
    # shellcheck disable=SC2059 # the escapes are the point
    printf "$2" | dd of="$1" conv=notrunc status=none
}

make_vdi() {
    bytes "$1" "$(printf '\\0%.0s' {1..64})\\x7f\\x10\\xda\\xbe"
}

@test "what qemu-img makes and this program cannot read is refused by name" {
    need qemu-img
    local format
    for format in vmdk vdi vhdx vpc qed parallels; do
        qemu-img create -q -f $format "x.$format" 8M
        foreign $format "x.$format"
    done
    qemu-img create -q -f vmdk -o subformat=monolithicFlat flat.vmdk 1M
    foreign vmdk flat.vmdk
    qemu-img create -q -f vpc -o subformat=fixed fixed.vhd 8M
    foreign vpc fixed.vhd
    qemu-img create -q -f qcow x.qcow 1M
    refute blkimg info x.qcow
}

@test "signatures of disk images that nothing here can make" {
    bytes cowd 'COWD\1\0\0\0'
    foreign vmdk cowd
    bytes sesparse '\xbe\xba\xfe\xca\0\0\0\0'
    foreign vmdk sesparse
    printf '# made by hand\r\n\r\nversion=3\r\nCID=1\r\n' >descriptor
    foreign vmdk descriptor
    bytes old.hdd WithoutFreeSpace
    foreign parallels old.hdd
    bytes x.luks 'LUKS\xba\xbe\0\1aes'
    foreign luks x.luks
    bytes x.bochs 'Bochs Virtual HD Image'
    foreign bochs x.bochs
    bytes x.cloop '#!/bin/sh\n#V2.0 Format\n'
    foreign cloop x.cloop
    bytes x.simg '\x3a\xff\x26\xed\1\0'
    foreign android-sparse x.simg
    truncate -s 1M x.dmg
    printf 'koly\0\0\0\4\0\0\2\0' | dd of=x.dmg bs=512 seek=2047 conv=notrunc status=none
    foreign dmg x.dmg
}

@test "a fixed VHD is known by its footer of 512 or 511 bytes, and only with its checksum" {
    need qemu-img
    qemu-img create -q -f vpc -o subformat=fixed x.vhd 1M
    foreign vpc x.vhd
    # The old one lacks the last byte, which is 0 and counts nothing in the checksum.
    cp x.vhd old.vhd
    truncate -s -1 old.vhd
    foreign vpc old.vhd
    cp x.vhd other
    printf x | dd of=other bs=1 seek=$(($(stat -c %s other) - 200)) conv=notrunc status=none
    blkimg info other >out
    grep -q '^file format: raw$' out
}

@test "compressed streams and archives" {
    head -c 100000 /dev/urandom >plain
    local tool
    for tool in gzip xz zstd bzip2 lz4; do
        command -v $tool >/dev/null || continue
        $tool -c plain >"x.$tool"
        foreign $tool "x.$tool"
    done
    : | bzip2 -c >empty.bz2 2>/dev/null && foreign bzip2 empty.bz2
    tar -cf x.ova plain
    foreign tar x.ova
    bytes x.zip 'PK\3\4'
    foreign zip x.zip
}

@test "what is no container stays raw: a file system, an ISO, text, nothing" {
    printf 'hello\n' >text
    : >empty
    bytes boot '#!/bin/sh\nexit 1\n'
    truncate -s 1M iso
    printf '\1CD001' | dd of=iso bs=2048 seek=16 conv=notrunc status=none
    local file
    for file in text empty boot iso; do
        blkimg info "$file" >out
        grep -q '^file format: raw$' out
    done
}

@test "every command that opens an image refuses one, and leaves it as it was" {
    make_vdi x
    cp x before
    truncate -s 1M good
    blkimg create -q -f qcow2 good.q 1M
    refused vdi x info x
    refused vdi x info --backing-chain --output=json x
    refused vdi x check x
    refused vdi x check -r all x
    refused vdi x map x
    refused vdi x measure -O qcow2 x
    refused vdi x resize x 2M
    refused vdi x convert -O raw x target
    refused vdi x convert -O qcow2 good x target
    refused vdi x convert -n --target-image-opts good file.filename=x
    refused vdi x dd if=x of=target
    refused vdi x compare x good
    refused vdi x compare good x
    refused vdi x checksum x
    refused vdi x bench -c 1 x
    refused vdi x bench -w -c 1 x
    refused vdi x io -c 'write 0 512' x
    refused vdi x snapshot -l x
    refused vdi x amend -o compat=1.1 x
    refused vdi x commit x
    refused vdi x rebase -u -b good x
    refused vdi x bitmap --add x b
    refused vdi x bitmap --merge b -b x good.q c
    refused vdi x backup x target
    refused vdi x mirror x target
    refused vdi x close-check x
    refused vdi x create -f qcow2 -b x target
    refused vdi x convert -O qcow2 -B x good target
    refused vdi x info --image-opts file.filename=x
    refused vdi x info 'json:{"file":{"driver":"file","filename":"x"}}'
    assert_not_exist target
    cmp before x
}

@test "a backing file without a format is refused; with one it is what the header says" {
    make_vdi x
    blkimg create -q -f qcow2 -b x -F raw top.q
    blkimg convert -O raw top.q copy
    cmp copy x
    # The header forgets the format: the first extension becomes the end of all.
    printf '\0\0\0\0' | dd of=top.q bs=1 seek="$((16#$(xxd -s 100 -l 4 -p top.q)))" conv=notrunc status=none
    refused vdi x convert -O raw top.q target
    refused vdi x map top.q
    grep -q 'rebase -u -F raw' err
    blkimg rebase -u -b x -F raw top.q
    blkimg convert -O raw top.q copy
    cmp copy x
}

@test "a format that is given is never doubted" {
    make_vdi x
    cp x before
    blkimg convert -f raw -O qcow2 x x.q
    blkimg convert -O raw x.q copy
    cmp copy before
    blkimg convert -n -f raw -O raw before x
    cmp x before
    blkimg resize -f raw x 2M
    blkimg io -f raw -c 'read 0 4k' x >out
    blkimg info --image-opts driver=raw,file.filename=x >out
    blkimg dd if=x of=y -f raw
    cmp x y
    blkimg backup -f raw x target
    blkimg create -q -f raw x 1M
}

@test "a guest cannot turn an image that was guessed to be raw into one" {
    truncate -s 1M x
    local status=0
    blkimg io -c 'write -P 0 0 4k' x >out
    printf 'conectix' >pattern
    blkimg io -c 'write -s pattern 0 4k' x >out 2>err || status=$?
    [[ $status == 1 ]]
    blkimg io -c 'read -P 0 0 4k' x >out
    blkimg io -f raw -c 'write -s pattern 0 4k' x >out
    refused vpc x info x
}

@test "the end of an image that cannot be read does not pass for no footer" {
    truncate -s 1M x
    printf '[inject-error]\nevent = "none"\nsector = "2047"\niotype = "read"\n' >rules
    run -1 blkimg info --image-opts file.driver=blkdebug,file.config=rules,file.image.filename=x
    assert_output --partial 'probing the format'
    blkimg info --image-opts driver=raw,file.driver=blkdebug,file.config=rules,file.image.filename=x >out
}
