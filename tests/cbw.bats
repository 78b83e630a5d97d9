#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# The drivers copy-before-write and snapshot-access as nodes of any graph.

bats_require_minimum_version 1.5.0
load lib/common

setup() {
    common_setup
    truncate -s 4M source target
    fill source 0 2097152 0x11
    fill source 3000000 1000000 0x22
    cp source frozen
}

# filter [OPTION]...: options of a filter above "source" that saves to "target".
filter() {
    local options=driver=copy-before-write,file.driver=raw,file.file.filename=source
    options+=,target.driver=raw,target.file.driver=file,target.file.filename=target
    local option
    for option; do
        options+=,$option
    done
    echo "$options"
}

# The options of the view above the filter.
view() {
    local options
    options=$(filter)
    echo "driver=snapshot-access,file.${options//,/,file.}"
}

# guest COMMAND...: io commands as a guest's, through a filter with the options in $options.
guest() {
    local command commands=()
    for command; do
        commands+=(-c "$command")
    done
    run --separate-stderr blkimg io --image-opts "$(filter "${options[@]}")" "${commands[@]}"
}

# same_range FILE FILE OFFSET LENGTH
same_range() {
    cmp <(tail -c +$(($3 + 1)) "$1" | head -c "$4") <(tail -c +$(($3 + 1)) "$2" | head -c "$4")
}

fault=target.file.driver=blkdebug,target.file.inject-error.0.event=none
fault+=,target.file.inject-error.0.iotype=write

# A target whose writes fail: the filter's options.
failing_target() {
    echo "driver=copy-before-write,file.driver=raw,file.file.filename=source,target.driver=raw,$fault,target.file.image.filename=target${1:+,$1}"
}

# A target that takes three seconds for everything.
slow_target() {
    echo "driver=copy-before-write,file.driver=raw,file.file.filename=source,target.driver=null-co,target.size=4M,target.latency-ns=3000000000,$1"
}

@test "old data of the clusters touched goes to the target, once" {
    options=(discard=unmap)
    guest 'write -P 0x33 70000 1000' 'write -P 0x44 70000 1000' 'write -z 1000000 10' \
        'discard 2031616 65536' 'write -P 0x55 3999990 1000'
    assert_success
    [[ -z $stderr ]]
    same_range frozen target 65536 65536
    same_range frozen target 983040 65536
    same_range frozen target 2031616 65536
    same_range frozen target 3997696 65536
    # Nothing else is there.
    truncate -s 4M empty
    same_range empty target 0 65536
    same_range empty target 131072 $((983040 - 131072))
    same_range empty target 2097152 $((3997696 - 2097152))
    run blkimg io -r -f raw -c 'read -P 0x44 70000 1000' -c 'read -P 0 1000000 10' \
        -c 'read -P 0x55 3999990 1000' -c 'read -P 0x11 71000 10' source
    assert_success
    refute_output --partial failed
}

@test "a whole disk overwritten by many requests at a time: the target is the frozen disk" {
    local commands=() at
    for ((at = 0; at < 4194304; at += 32768)); do
        commands+=("aio_write -q -P $((at / 32768 % 250 + 1)) $at 32768")
    done
    options=()
    guest "${commands[@]}" aio_flush
    assert_success
    cmp target frozen
    run blkimg io -r -f raw -c 'read -P 128 4161536 32768' source
    refute_output --partial failed
}

@test "qemu's filter leaves the same target and the same source" {
    need qemu-io
    local commands=(-c 'write -P 0x33 70000 1000' -c 'write -z 1048576 1M' -c 'write -P 1 4000000 512')
    run qemu-io --image-opts "$(filter)" "${commands[@]}"
    assert_success
    refute_output --partial failed
    mv source their-source && mv target their-target
    cp frozen source && truncate -s 4M target
    run blkimg io --image-opts "$(filter)" "${commands[@]}"
    assert_success
    cmp source their-source
    cmp target their-target
}

@test "min-cluster-size: what is saved at once" {
    local size saved
    for size in 0:64 512:64 128k:128 1M:1024; do
        saved=${size#*:}
        cp frozen source
        rm -f target && truncate -s 4M target
        run blkimg io --image-opts "$(filter "min-cluster-size=${size%:*}")" -c 'write -P 0x33 1M 512'
        assert_success
        cmp <(dd if=frozen bs=1k skip=1024 count="$saved" status=none) \
            <(dd if=target bs=1k skip=1024 count="$saved" status=none)
        # Nothing else.
        cmp -n $((4 * 1048576 - (1024 + saved) * 1024)) /dev/zero \
            <(dd if=target bs=1k skip=$((1024 + saved)) status=none)
        cmp -n 1M /dev/zero target
    done
}

@test "qcow2 above qcow2, with the larger cluster" {
    need qemu-img
    qemu-img convert -f raw -O qcow2 -o cluster_size=4k source source.qcow2
    qemu-img create -q -f qcow2 -o cluster_size=256k target.qcow2 4M
    run blkimg io --image-opts driver=copy-before-write,file.driver=qcow2,file.file.filename=source.qcow2,target.driver=qcow2,target.file.filename=target.qcow2 \
        -c 'write -P 0x33 0 4M' -c 'write -P 0x34 1M 1M'
    assert_success
    refute_output --partial failed
    run qemu-img compare -f raw -F qcow2 frozen target.qcow2
    assert_success
    run qemu-img check target.qcow2
    assert_success
    run qemu-io -c 'read -P 0x33 0 1M' -c 'read -P 0x34 1M 1M' source.qcow2
    refute_output --partial failed
}

@test "break-guest-write: a write whose old data cannot be saved fails and changes nothing" {
    local how
    for how in '' on-cbw-error=break-guest-write cbw-timeout=60; do
        run --separate-stderr blkimg io --image-opts "$(failing_target "$how")" \
            -c 'write -P 0x33 0 64k' -c 'write -z 1M 1k' -c 'read -P 0x11 0 64k'
        assert_failure
        assert_equal "$(grep -c 'Input/output error' <<<"$output$stderr")" 2
        refute_line --partial 'wrote'
        cmp source frozen
    done
}

@test "break-snapshot: no write fails" {
    local how
    for how in '' ,cbw-timeout=60; do
        cp frozen source
        run --separate-stderr blkimg io \
            --image-opts "$(failing_target "on-cbw-error=break-snapshot$how")" \
            -c 'write -P 0x33 0 64k' -c 'write -z 1M 1k' -c 'read -P 0x33 0 64k' -c flush
        assert_success
        refute_line --partial failed
        [[ -z $stderr ]] || fail "$stderr"
        run blkimg io -r -f raw -c 'read -P 0x33 0 64k' -c 'read -P 0 1M 1k' source
        refute_output --partial failed
    done
}

@test "cbw-timeout bounds the wait" {
    local start=$SECONDS
    run blkimg io --image-opts "$(slow_target cbw-timeout=1)" -c 'write -P 0x33 0 64k'
    assert_failure
    assert_output --partial 'Connection timed out'
    cmp source frozen
    ((SECONDS - start < 20))
    run blkimg io --image-opts "$(slow_target cbw-timeout=1,on-cbw-error=break-snapshot)" \
        -c 'write -P 0x33 0 64k' -c 'write -P 0x33 1M 64k'
    assert_success
    refute_output --partial failed
    run blkimg io -r -f raw -c 'read -P 0x33 0 64k' -c 'read -P 0x33 1M 64k' source
    refute_output --partial failed
}

@test "a failed flush of the target is a failed close, not a failed flush of the guest" {
    local graph=driver=copy-before-write,file.driver=raw,file.file.filename=source,target.driver=raw
    graph+=,target.file.driver=blkdebug,target.file.image.filename=target
    graph+=,target.file.inject-error.0.event=none,target.file.inject-error.0.iotype=flush
    run --separate-stderr blkimg io --image-opts "$graph" -c 'write 0 64k' -c flush
    assert_failure 5
    refute_line --partial failed
    [[ $stderr == *target*"Input/output error"* ]] || fail "$stderr"
}

@test "snapshot-access shows the frozen disk and cannot be written" {
    run blkimg compare --image-opts "$(view)" driver=raw,file.filename=frozen
    assert_success
    blkimg convert --image-opts -O raw "$(view)" copy
    cmp copy frozen
    run --separate-stderr blkimg io --image-opts "$(view)" -c 'write 0 64k'
    assert_failure
    assert_equal "${#stderr_lines[@]}" 1
    cmp source frozen
    run --separate-stderr blkimg info --image-opts \
        driver=snapshot-access,file.driver=raw,file.file.filename=source
    assert_failure 1
    [[ $stderr == *"copy-before-write"* ]] || fail "$stderr"
}

# refused TEXT OPTIONS
refused() {
    run --separate-stderr blkimg io --image-opts "$2" -c 'write 0 64k'
    assert_failure 1
    refute_output
    assert_equal "${#stderr_lines[@]}" 1
    [[ $stderr == *"$1"* ]] || fail "$stderr"
    cmp source frozen
}

@test "options that cannot be meant" {
    local base=driver=copy-before-write,file.driver=raw,file.file.filename=source
    refused bitmap "$(filter bitmap.node=x bitmap.name=y)"
    refused on-cbw-error "$(filter on-cbw-error=report)"
    refused cbw-timeout "$(filter cbw-timeout=soon)"
    refused cbw-timeout "$(filter cbw-timeout=4294967296)"
    refused min-cluster-size "$(filter min-cluster-size=100000)"
    refused min-cluster-size "$(filter min-cluster-size=128M)"
    refused min-cluster-size "$(filter min-cluster-size=x)"
    refused "'nonsense'" "$(filter nonsense=1)"
    refused target "$base"
    refused "'disk1'" "$base,target=disk1"
    refused missing "$base,target.driver=raw,target.file.filename=missing"
    refused source "$base,target.driver=raw,target.file.filename=source"
    truncate -s 3M small
    refused small "$base,target.driver=raw,target.file.filename=small"
}

@test "a target that runs full" {
    small_tmpfs 1m full
    truncate -s 4M full/target
    local graph=driver=copy-before-write,file.driver=raw,file.file.filename=source
    graph+=,target.driver=raw,target.file.filename=full/target
    run blkimg io --image-opts "$graph" -c 'write -P 0x33 0 2M' -c 'write -P 0x34 3M 64k'
    assert_failure
    assert_output --partial 'No space left on device'
    run blkimg io --image-opts "$graph,on-cbw-error=break-snapshot" -c 'write -P 0x33 0 2M'
    assert_success
    run blkimg io -r -f raw -c 'read -P 0x33 0 2M' source
    refute_output --partial failed
}
