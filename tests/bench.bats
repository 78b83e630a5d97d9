#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# "bench": the requests that were asked for, and a failure of any of them is one of the run.

bats_require_minimum_version 1.5.0
load lib/common

# Times differ.
mask() {
    sed -E 's/in [0-9.]+ seconds/in X seconds/'
}

same_bench() {
    need qemu-img
    same_as 'qemu-img bench' "$BLKIMG bench" mask "$@"
}

@test "the same output as the other program" {
    fill a 0 4M
    same_bench -f raw -c 20 a
    same_bench -f raw -c 20 -d 4 -q a
    same_bench -f raw -c 0 a
    same_bench -f raw -c 5 -s 0 a
    same_bench -f raw -c 4 -s 3 a
    same_bench -f raw -c 10 -s 64k -S 1M -o 512k a
    same_bench -f raw -c 20 -d 2 -w --pattern 5 a
    same_bench -f raw -c 20 -d 2 -w --flush-interval 5 a
    same_bench -f raw -c 20 -d 2 -w --flush-interval 5 --no-drain a
    same_bench -f raw -c 20 -i threads -t none a
    same_bench -f raw -c 20 --pattern 3 --no-drain a
    same_bench -f raw -c 20 -U a
}

@test "reads and writes are what was asked for" {
    fill a 0 1M 1
    cp a want
    blkimg bench -f raw -w -c 8 -d 3 -s 4k -S 64k -o 128k --pattern 9 a
    for i in 2 3 4 5 6 7 8 9; do
        fill want $((i * 65536)) 4096 9
    done
    cmp a want
    # Behind the end it goes on at the begin.
    blkimg bench -f raw -w -c 2 -d 1 -s 64k -o 960k --pattern 3 a
    fill want 983040 65536 3
    fill want 0 65536 3
    cmp a want
}

@test "into a qcow2 image with a backing file" {
    fill base 0 4M 1
    qemu-img create -q -f qcow2 -b base -F raw a
    blkimg bench -w -c 500 -d 16 -s 4k -S 8k --pattern 7 --flush-interval 50 a
    qemu-img check -q a
    run -0 blkimg io -r -c 'read -P 7 0 4k' -c 'read -P 1 4k 4k' a
    refute_output --partial 'failed'
}

@test "flushes" {
    need strace
    fill a 0 1M
    strace -f -e trace=fdatasync,pwrite64 -o trace "$BLKIMG" bench -f raw -w -c 20 -d 4 --flush-interval 5 a ||
        skip 'strace does not work here'
    # Four, and that of the close.
    (($(grep -c 'fdatasync(' trace) >= 4))
    # No write begins while one is flushed, and none is under way.
    awk '/pwrite64\(/ && !/unfinished/ { n++ } /pwrite64\(.*unfinished/ { n++; open++ }
        /pwrite64 resumed/ { open-- } /fdatasync\(/ { if (open || n % 5) exit 1 }' trace
}

@test "a failed request is a failed run" {
    fill a 0 1M
    local kind
    for kind in read write flush close; do
        printf '[inject-error]\niotype = "%s"\nnth = "2"\nonce = "on"\n' "$kind" >rules
        [[ $kind != close ]] || sed -i /nth/d rules
        local writing=(-w --flush-interval 10)
        [[ $kind != read ]] || writing=()
        run --separate-stderr blkimg bench -f raw -c 50 -d 4 "${writing[@]}" blkdebug:rules:a
        # shellcheck disable=SC2154 # run sets it
        [[ $status == 1 || $kind == close && $status == 5 ]] || fail "$kind: $status $stderr"
        [[ -n $stderr && ($kind == close || $output != *completed*) ]]
    done
}

@test "io_uring: each request goes through a ring" {
    fill a 0 1M
    if ! "$BLKIMG" --version | grep -q liburing; then
        run -1 blkimg bench -f raw -i io_uring a
        assert_output --partial 'built without liburing'
        skip 'no liburing in this build'
    fi
    "$BLKIMG" bench -f raw -i io_uring -c 1 a >/dev/null || skip 'no io_uring in this kernel'
    run -0 blkimg bench -f raw -i io_uring -c 200 -d 4 -w --pattern 7 --flush-interval 20 a
    assert_output --partial 'completed'
    blkimg io -r -f raw -c 'read -q -P 7 0 800k' a
    run -0 blkimg io --image-opts -c 'write -q -P 9 100 5000' -c 'read -q -P 9 100 5000' -c 'read -q -P 7 0 100' \
        driver=raw,file.driver=file,file.filename=a,file.aio=io_uring
    refute_output
    if strace -f -e trace=pread64,pwrite64,io_uring_enter -o trace "$BLKIMG" bench -f raw -i io_uring -c 50 a; then
        (($(grep -c 'io_uring_enter(' trace) >= 50))
    fi >/dev/null
    truncate -s 1M small
    (ulimit -f 512; trap '' XFSZ; exec "$BLKIMG" bench -f raw -i io_uring -w -c 256 -d 1 small) >out 2>err &&
        fail 'wrote past the limit'
    grep -q 'File too large' err
}

@test "refused" {
    fill a 0 1M
    refused() {
        local message=$1
        shift
        run -1 --separate-stderr blkimg bench "$@"
        [[ $stderr == blkimg:*"$message"* && $(wc -l <<<"$stderr") == 1 ]] || fail "$*: $stderr"
    }
    refused "AIO 'native' is not supported" -f raw -t none -i native a
    refused "AIO 'native' is not supported" -f raw -t none -n a
    refused "AIO 'x' is not one of" -f raw -i x a
    refused 'past the end' -f raw -o 1M -c 1 a
    refused 'past the end' -f raw -s 2M -c 1 a
    refused 'is for write tests' -f raw --flush-interval 5 a
    refused 'smaller than the depth' -f raw -w --no-drain --flush-interval 5 a
    refused 'not a byte' -f raw -w --pattern 256 a
    refused 'is not a number' -f raw -c x a
    refused 'from 1 to' -f raw -d 0 a
    refused 'too large' -f raw -s 3G a
    refused 'too large' -f raw -c 3000000000 a
    refused 'for reading only' -f raw -U -w a
    refused 'expects one image' -f raw
    refused 'No such file' -f raw missing
}

@test "a signal" {
    fill a 0 1M
    spawn "$BLKIMG" bench -f raw -c 2000000000 -d 2 a
    sleep 0.2
    kill -INT "$pid"
    finish
    # shellcheck disable=SC2154 # finish sets it
    [[ $status == 130 && $output != *completed* ]]
}
