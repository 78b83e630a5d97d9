# SPDX-License-Identifier: MIT
# The file and raw drivers on real media: what they accept, holes, sizes, O_DIRECT, devices.

bats_require_minimum_version 1.5.0
load lib/common

# --- what can be opened ----------------------------------------------------------------------

@test "what is neither file nor block device is refused at once" {
    mkfifo pipe
    mkdir folder
    for name in pipe folder /dev/zero /dev/tty missing/x; do
        for command in "info" "map" "io -c quit" "io -r -c quit" "create -q -f raw -o size=1k"; do
            # shellcheck disable=SC2086 # a command and its options
            run -1 timeout 10 "$BLKIMG" $command "$name"
            assert_output --partial "'$name'"
        done
    done
    assert_equal "$(ls -A)" "$(printf '%s\n' folder pipe)"
}

@test "one line names the file and the cause" {
    mkdir folder
    run -1 blkimg info folder
    assert_output "blkimg: Could not open 'folder': it is a directory, not a file or block device"
    run -1 blkimg info missing
    assert_output "blkimg: Could not open 'missing': No such file or directory"
}

@test "prefixes" {
    truncate -s 1M a:b
    run -1 blkimg info a:b
    same_output info file:a:b
    same_output info ./a:b
    run -1 blkimg info host_device:a:b
    assert_output --partial "it is a regular file"
}

@test "unknown values of options are refused, known ones accepted" {
    truncate -s 1M a
    image=driver=raw,file.filename=a
    run -0 blkimg io --image-opts -c quit $image,file.aio=native,file.drop-cache=off
    run -1 blkimg io --image-opts -c quit $image,file.aio=fast
    run -1 blkimg io --image-opts -c quit $image,file.nonsense=on
    assert_output --partial "nonsense"
}

# --- holes and zeroes ------------------------------------------------------------------------

@test "maps and sizes of sparse files are qemu-img's" {
    truncate -s 8M a
    fill a 0 64k
    fill a 1M 100k
    fill a 8388096 512
    same_output map -f raw --output=json a
    same_output info a
    head -c 1000 a >odd
    same_output map -f raw --output=json odd
    same_output map --output=json odd
    same_output info odd
    : >empty
    same_output map -f raw --output=json empty
    same_output info empty
}

# About how many MiB of the file are allocated; the file system's own blocks do not matter.
allocated_mib() {
    echo $((($(stat -c %b "$1") + 512) / 2048))
}

@test "zeroes are allocated or not as asked" {
    fill a 0 8M
    blkimg io -f raw -d unmap -c "write -z -u 1M 1M" -c "discard 3M 1M" a
    assert_equal "$(allocated_mib a)" 6
    blkimg io -f raw -d unmap -c "write -z 4M 1M" a
    assert_equal "$(allocated_mib a)" 6
    blkimg io -f raw -c "read -P 0 1M 1M" -c "read -P 0 4M 1M" -c "read -P 0x5a 5M 3M" a
    blkimg io -f raw -d ignore -c "discard 5M 1M" a
    assert_equal "$(allocated_mib a)" 6
}

@test "zeroes of any alignment" {
    fill a 0 64k
    cp a b
    blkimg io -f raw -c "write -z 1 1" -c "write -z 4095 4098" -c "write -z -u 20001 9999" a
    for range in "1 1" "4095 4098" "20001 9999"; do
        # shellcheck disable=SC2086 # offset and length
        fill b ${range} 0
    done
    run -0 cmp a b
}

# --- sizes -----------------------------------------------------------------------------------

@test "preallocation" {
    for mode in off falloc full; do
        blkimg create -q -f raw -o preallocation=$mode $mode 4M
        assert_equal "$(stat -c %s $mode)" 4194304
        run -0 cmp -n 4194304 $mode /dev/zero
    done
    assert_equal "$(stat -c %b off)" 0
    assert_equal "$(stat -c %b falloc)" "$(stat -c %b full)"
    run -1 blkimg create -q -f raw -o preallocation=metadata a 4M
    assert_output --partial "preallocation mode: metadata"
    blkimg resize -q -f raw --preallocation=falloc off 8M
    assert_equal "$(stat -c %b off)" 8192
    run -1 blkimg resize -q -f raw --shrink --preallocation=full off 1M
    assert_equal "$(stat -c %s off)" 8388608
    blkimg resize -q -f raw --shrink off 1M
    assert_equal "$(stat -c %s off)" 1048576
}

@test "a window of a file" {
    fill a 0 64k
    blkimg io --image-opts -c "write -P 1 0 1k" -c "read -P 1 0 1k" -c "length" \
        driver=raw,offset=4100,size=1k,file.filename=a
    fill b 0 64k
    fill b 4100 1k 1
    run -0 cmp a b
    run -1 blkimg io --image-opts -c "write 0 2k" driver=raw,offset=4100,size=1k,file.filename=a
    for window in offset=65k size=65k size=1000 offset=64k,size=512 size=x; do
        run -1 blkimg io --image-opts -c quit "driver=raw,$window,file.filename=a"
        assert_output --partial "'a'" || assert_output --partial "size"
    done
}

@test "a probed raw image cannot be turned into another format" {
    need qemu-img
    blkimg info --help >/dev/null
    qemu-img create -q -f qcow2 q 1M
    truncate -s 1M a
    [[ $(blkimg info --output=json q) == *'"format": "qcow2"'* ]] || skip "qcow2 is not built in"
    head -c 512 q >header
    run -1 blkimg io -c "write -s header 0 512" a
    assert_output --partial "Operation not permitted"
    run -1 blkimg io -c "write -s header 0 64k" a
    # In pieces: the one that completes it is refused.
    head -c 4 q >magic
    tail -c +5 header >rest
    run -1 blkimg io -c "write -s rest 4 508" -c "write -s magic 0 4" a
    assert_output --partial "Operation not permitted"
    run -0 blkimg info --output=json a
    assert_output --partial '"format": "raw"'
    run -0 blkimg io -f raw -c "write -s header 0 512" a
}

# --- O_DIRECT --------------------------------------------------------------------------------

@test "requests of any alignment with O_DIRECT" {
    fill a 0 100000
    cp a b
    blkimg io -f raw -t none -c "write -P 1 1 1" -c "write -P 2 4000 5000" \
        -c "write -P 3 99990 10" -c "read -P 2 4000 5000" -c "read -P 3 99990 10" a ||
        skip "no O_DIRECT here"
    fill b 1 1 1
    fill b 4000 5000 2
    fill b 99990 10 3
    run -0 cmp a b
    same_output map -f raw --output=json a
    blkimg create -q -f raw c 1000
    blkimg io -f raw -t none -c "write -P 1 1000 24" -c "read -P 0 0 1000" c
    assert_equal "$(stat -c %s c)" 1024
}

@test "sectors of 4096 bytes" {
    truncate -s 8M disk
    loop_device disk -b 4096
    blkimg io -f raw -t none -c "write -P 1 512 1024" -c "read -P 1 512 1024" -c "read -P 0 0 512" \
        -c "write -z 1000 10000" -c "read -P 0 1000 10000" -c "write -z -u 1M 1M" -c flush "$LOOP"
    blkimg create -q -f raw "$LOOP" 8M
}

# --- file systems and devices ----------------------------------------------------------------

@test "a block device" {
    fill disk 0 8M
    loop_device disk
    same_output info "$LOOP"
    same_output map -f raw --output=json "$LOOP"
    blkimg io -f raw -d unmap -c "write -P 1 100 100" -c "write -z 1M 1M" -c "write -z -u 2M 1M" \
        -c "discard 3M 1M" -c "read -P 0 1M 2M" "$LOOP"
    fill want 0 8M
    fill want 100 100 1
    run -0 cmp -n 1048576 want "$LOOP"
    run -1 blkimg resize -f raw "$LOOP" 16M
    run -0 blkimg info "host_device:$LOOP"
}

@test "XFS" {
    loop_xfs 400M x
    blkimg create -q -f raw -o preallocation=falloc x/a 8M
    blkimg io -f raw -t none -c "write -P 1 1M 64k" -c "write -z 2M 1M" -c "write -z -u 4M 1M" x/a
    same_output map -f raw --output=json x/a
    same_output info x/a
    blkimg create -q -f raw x/a 1M
    assert_equal "$(ls -A x)" a
}

@test "an extent size hint is set" {
    loop_xfs 400M x
    need xfs_io
    blkimg create -q -f raw -o extent_size_hint=1M x/a 8M
    run -0 xfs_io -r -c extsize x/a
    assert_output --partial "1048576"
}

# --- null-co ---------------------------------------------------------------------------------

@test "null-co swallows writes and reads zeroes" {
    same_output info null-co://
    same_output map --output=json null-co://
    same_io_output -f raw -c "write 0 64k" -c "flush" -c length null-co://
    blkimg io -f raw -c "write -P 1 0 64k" -c "read -P 0 0 64k" null-co://
    run -1 blkimg info null-co:x
    same_output map --output=json \
        'json:{"driver":"raw","file":{"driver":"null-co","size":65536,"read-zeroes":true}}'
    start=${EPOCHREALTIME/./}
    blkimg io --image-opts -c "read 0 512" driver=null-co,latency-ns=200000000
    ((${EPOCHREALTIME/./} - start >= 200000))
}

# --- flush -----------------------------------------------------------------------------------

# syncs ARG...: how many syncs "blkimg io ARG... a" makes.
syncs() {
    strace -f -qq -o trace -e trace=fsync,fdatasync "$BLKIMG" io -f raw "$@" a >/dev/null
    grep -c sync trace || true
}

@test "one sync where something was written, none where nothing was" {
    need strace
    need_unsanitized
    truncate -s 1M a
    assert_equal "$(syncs -c "write 0 4k" -c flush -c flush)" 1
    assert_equal "$(syncs -c "read 0 4k" -c flush)" 0
    assert_equal "$(syncs -t unsafe -c "write 0 4k" -c flush)" 0
}
