#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# The filters compress and copy-on-read, and detect-zeroes, which every node has.
# shellcheck disable=SC2154 # set by run

load lib/common

# extents IMAGE: map without host offsets, one extent a line.
extents() {
    "${2:-qemu-img}" map --output=json "$1" | sed 's/, "offset": [0-9]*//; s/, "compressed": [a-z]*//'
}

# io in silence: what is read fits, and nothing fails.
mine() {
    run "$BLKIMG" io "$@"
    assert_success
    refute_output
}

# --- compress --------------------------------------------------------------------------------

@test "compress: a convert into it leaves a compressed image" {
    need qemu-img
    fill source 900k 64k 0x41
    truncate -s 5000k source
    for format in zlib zstd; do
        qemu-img create -q -f qcow2 -o compression_type="$format" image 5000k
        run "$BLKIMG" convert -n -f raw --target-image-opts source \
            driver=compress,file.driver=qcow2,file.file.filename=image
        assert_success
        refute_output
        qemu-img compare -q -f raw -F qcow2 source image
        # Nothing but compressed clusters and zeroes.
        run "$BLKIMG" check --output=json image
        assert_success
        assert_equal "$(jq '."compressed-clusters" == ."allocated-clusters"' <<<"$output")" true
        (($(stat -c %b image) * 512 < 1500000))
        rm image
    done
}

@test "compress: small writes are widened, and replace what was there" {
    need qemu-io
    qemu-img create -q -f qcow2 image 1000k
    mine -c 'write -qP 1 0 128k' -c 'write -qP 2 1000 1000' -c 'write -qP 3 120k 16k' \
        -c 'write -qz 64k 64k' -c 'write -qP 5 990k 10k' -c 'read -qP 1 0 1000' \
        -c 'read -qP 2 1000 1000' -c 'read -qP 0 64k 64k' -c 'read -qP 3 128k 8k' \
        -c 'discard -q 0 64k' --image-opts driver=compress,file.driver=qcow2,file.file.filename=image
    qemu-img check -q image
    run qemu-io -c 'read -qP 0 0 128k' -c 'read -qP 3 128k 8k' -c 'read -qP 5 990k 10k' image
    refute_output
}

@test "compress: a format that cannot hold compressed data is refused" {
    truncate -s 1M image
    run "$BLKIMG" io -c 'read 0 512' --image-opts \
        driver=compress,file.driver=raw,file.file.filename=image
    assert_failure 1
    assert_output --partial 'Compression is not supported for underlying format: raw'
}

# --- copy-on-read ----------------------------------------------------------------------------

# A base of $1 below a disk of 640 KiB, whose clusters have $2 bytes; the same for both programs.
make_chain() {
    local tool
    qemu-img create -q -f qcow2 base "$1"
    qemu-io -c 'write -q -P 1 0 100k' -c 'write -q -z 128k 64k' -c 'write -q -P 3 200k 9k' base
    for tool in peer mine; do
        qemu-img create -q -f qcow2 -b base -F qcow2 -o cluster_size="$2" "$tool" 640k
        qemu-io -c 'write -q -P 4 30k 1k' "$tool"
    done
}

@test "copy-on-read: what is read stays, by the driver and by -C, as in qemu-io" {
    need qemu-io
    local commands=(-c 'read -qP 1 10k 1k' -c 'read -q 150k 1k' -c 'read -q 90k 30k'
        -c 'read -q 500k 100k' -c 'write -q -P 9 1k 1k' -c 'read -q 200k 1k')
    local size cluster way
    local -a options
    for size in 300k 1M; do
        for cluster in 4k 64k; do
            for way in -C driver; do
                make_chain "$size" "$cluster"
                for tool in mine peer; do
                    options=(-C "$tool")
                    [[ $way == -C ]] || options=(--image-opts
                        "driver=copy-on-read,file.driver=qcow2,file.file.filename=$tool")
                    if [[ $tool == mine ]]; then
                        mine "${commands[@]}" "${options[@]}"
                    else
                        qemu-io "${commands[@]}" "${options[@]}"
                    fi
                done
                diff -u <(extents peer) <(extents mine)
                qemu-img compare -q peer mine
                qemu-img check -q mine
            done
        done
    done
}

@test "copy-on-read: many readers and writers at once lose no write" {
    need qemu-io
    local i
    local -a lines=()
    qemu-img create -q -f qcow2 base 4M
    qemu-io -c 'write -q -P 1 0 4M' base
    qemu-img create -q -f qcow2 -b base -F qcow2 image 4M
    for ((i = 0; i < 64; i++)); do
        lines+=("aio_write -qP 2 $((i * 65536 + 4096)) 4k" "aio_read -q $((i * 65536)) 64k"
            "aio_write -qP 3 $((i * 65536 + 32768)) 4k")
    done
    run "$BLKIMG" io -C image < <(printf '%s\n' "${lines[@]}" aio_flush)
    assert_success
    refute_output
    lines=()
    for ((i = 0; i < 64; i++)); do
        lines+=("read -qP 1 $((i * 65536)) 4k" "read -qP 2 $((i * 65536 + 4096)) 4k"
            "read -qP 3 $((i * 65536 + 32768)) 4k")
    done
    run "$BLKIMG" io image < <(printf '%s\n' "${lines[@]}")
    assert_success
    refute_output
    run extents image
    refute_output --partial '"depth": 1'
}

@test "copy-on-read: read-only it is refused, and a copy that fails fails the read" {
    need qemu-io
    qemu-img create -q -f qcow2 base 1M
    qemu-io -c 'write -q -P 1 0 1M' base
    qemu-img create -q -f qcow2 -b base -F qcow2 image 1M
    run "$BLKIMG" io -r -C -c 'read 0 1' image
    assert_failure 1
    assert_output --partial "Can't use copy-on-read on read-only device"
    run "$BLKIMG" io -C -c 'read 0 512' -f qcow2 \
        'json:{"driver":"qcow2","file":{"driver":"blkdebug","image":{"driver":"file",
         "filename":"image"},"inject-error":[{"event":"none","iotype":"write","errno":28}]}}'
    assert_failure
    assert_output --partial 'read failed: No space left on device'
}

# --- detect-zeroes ---------------------------------------------------------------------------

@test "detect-zeroes: writes of zeroes become zeroes, as in qemu-io" {
    need qemu-io
    local options tool
    local -a commands=(-c 'write -q -P 1 0 1M' -c 'write -q -P 0 64k 128k' -c 'write -q -P 0 500k 8k'
        -c 'write -q -P 0 2M 64k')
    for options in detect-zeroes=on detect-zeroes=unmap,discard=unmap detect-zeroes=off; do
        for tool in peer mine; do
            qemu-img create -q -f qcow2 "$tool" 4M
        done
        qemu-io "${commands[@]}" --image-opts "driver=qcow2,$options,file.filename=peer"
        mine "${commands[@]}" --image-opts "driver=qcow2,$options,file.filename=mine"
        diff -u <(extents peer) <(extents mine)
        assert_equal "$(stat -c %b mine)" "$(stat -c %b peer)"
        qemu-img check -q mine
    done
}

@test "detect-zeroes: on a target of convert" {
    truncate -s 4M source
    fill source 1M 64k
    "$BLKIMG" create -q -f raw image 4M
    run "$BLKIMG" convert -n -S 0 -f raw --target-image-opts source \
        driver=raw,detect-zeroes=unmap,discard=unmap,file.filename=image
    assert_success
    cmp source image
    (($(stat -c %b image) <= 128))
}

@test "detect-zeroes: unmap needs discard=unmap, and nonsense is refused" {
    truncate -s 1M image
    run "$BLKIMG" info --image-opts driver=raw,detect-zeroes=unmap,file.filename=image
    assert_failure 1
    assert_output --partial \
        'setting detect-zeroes to unmap is not allowed without setting discard operation to unmap'
    run "$BLKIMG" info --image-opts driver=raw,detect-zeroes=x,file.filename=image
    assert_failure 1
    assert_output --partial "'x'"
    run "$BLKIMG" io -f raw -c 'reopen -o discard=ignore,detect-zeroes=unmap' \
        -c 'reopen -o detect-zeroes=on' image
    assert_failure 1
    assert_output --partial 'without setting discard operation to unmap'
}
