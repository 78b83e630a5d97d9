# SPDX-License-Identifier: MIT
# Every request, and every system call, of every command fails once: the command says so by its
# status and on stderr, names the step and the file, and leaves no unfinished target.

load lib/common
load lib/faults

setup() {
    common_setup
    faults_setup
}

# An image of 4 MiB: data, zeroes and a hole in every 512 KiB.
scene_image() {
    local at
    truncate -s 4M "$SCENE/$1"
    for ((at = 0; at < 4194304; at += 524288)); do
        fill "$SCENE/$1" $at 65536 "${2:-0x11}"
        fill "$SCENE/$1" $((at + 65536)) 65536 0
    done
}

@test "create" {
    request_faults untouched new.raw "create truncate flush publish close" create -q -f raw @ 4M
    request_faults untouched new.raw "truncate flush publish close" \
        create -q -f raw -o preallocation=full @ 1M
    call_faults named new.raw write,sync,truncate,close,fallocate,link,rename \
        create -q -f raw -o preallocation=full new.raw 1M
    report_faults
}

@test "create in place of an image" {
    scene_image t.raw
    request_faults untouched t.raw "create truncate flush publish close" create -q -f raw @ 2M
    call_faults named t.raw write,sync,truncate,close,link,rename create -q -f raw t.raw 2M
    report_faults
}

@test "info" {
    scene_image t.raw
    request_faults untouched t.raw "read close" info @
    request_faults untouched t.raw close info -f raw @
    report_faults
}

@test "map" {
    scene_image t.raw
    request_faults untouched t.raw "block-status close" map -f raw @
    request_faults untouched t.raw "block-status close" map --output=json -f raw @
    report_faults
}

@test "io" {
    scene_image t.raw
    request_faults untouched t.raw "read close" \
        io -r -f raw -c "read 0 1M" -c "read -P 0x11 1M 64k" @
    request_faults in-place t.raw "write flush close" \
        io -f raw -c "write 0 64k" -c flush -c "write 1M 64k" @
    request_faults in-place t.raw "write-zeroes flush close" \
        io -f raw -c "write -z 0 64k" -c flush -c "write -z -u 1M 64k" -c "reopen -r" @
    request_faults in-place t.raw "discard flush close" io -f raw -d unmap -c "discard 0 64k" @
    request_faults in-place t.raw "truncate flush close" \
        io -f raw -c "truncate 6M" -c "truncate 1M" @
    request_faults in-place t.raw "write flush close" io -f raw -t writethrough -c "write 0 64k" @
    call_faults in-place t.raw write,sync,truncate,close \
        io -f raw -c "write 0 64k" -c flush -c "truncate 6M" -c "write 5M 4k" t.raw
    report_faults
}

@test "resize" {
    scene_image t.raw
    request_faults in-place t.raw "truncate flush close" resize -q -f raw @ 6M
    request_faults in-place t.raw "truncate flush close" resize -q -f raw --shrink @ 1M
    request_faults in-place t.raw "truncate flush close" \
        resize -q -f raw --preallocation=full @ 6M
    call_faults in-place t.raw write,sync,truncate,close,fallocate \
        resize -q -f raw --preallocation=full t.raw 6M
    report_faults
}

@test "measure" {
    scene_image t.raw
    request_faults untouched t.raw close measure -f raw -O raw @
    report_faults
}

@test "convert to a new image" {
    scene_image s.raw
    request_faults untouched s.raw "read block-status close" convert -f raw -O raw @ new.raw
    request_faults untouched s.raw "read close" convert -f raw -O raw -S 0 -W -m 4 @ new.raw
    request_faults untouched new.raw "create truncate write flush publish close" \
        convert -f raw -O raw s.raw @
    request_faults untouched new.raw "write flush close" \
        convert -f raw -O raw -t writethrough -W -m 4 s.raw @
    call_faults named new.raw write,sync,truncate,close,fallocate,link,rename \
        convert -f raw -O raw -o preallocation=falloc s.raw new.raw
    report_faults
}

@test "convert over an image" {
    scene_image s.raw
    scene_image t.raw 0x77
    request_faults untouched s.raw "read block-status close" convert -f raw -O raw @ t.raw
    request_faults untouched t.raw "create truncate write flush publish close" \
        convert -f raw -O raw s.raw @
    call_faults named t.raw write,sync,truncate,close,link,rename convert -f raw -O raw s.raw t.raw
    report_faults
}

@test "convert into an image" {
    scene_image s.raw
    scene_image t.raw 0x77
    request_faults in-place t.raw "write write-zeroes flush close" convert -n -f raw -O raw s.raw @
    call_faults in-place t.raw write,sync,close convert -n -f raw -O raw s.raw t.raw
    report_faults
}

@test "convert by copies in the kernel" {
    scene_image s.raw
    call_faults named new.raw write,sync,truncate,close,link convert -C -f raw -O raw s.raw new.raw
    report_faults
}

@test "a disk that is full from the n-th write on" {
    # shellcheck disable=SC2034 # read by the functions of lib/faults.bash
    local FAULT_ONCE=off FAULT_ERRNO=28
    scene_image s.raw
    scene_image t.raw 0x77
    request_faults untouched new.raw "truncate write flush" convert -f raw -O raw s.raw @
    request_faults untouched t.raw "truncate write" convert -f raw -O raw -W -m 4 s.raw @
    request_faults in-place t.raw "write write-zeroes" convert -n -f raw -O raw s.raw @
    request_faults in-place t.raw "truncate flush" resize -q -f raw @ 6M
    request_faults in-place t.raw "write flush" \
        io -f raw -c "write 0 64k" -c flush -c "write 1M 64k" @
    call_faults named new.raw write,truncate,fallocate convert -f raw -O raw s.raw new.raw
    report_faults
}

@test "dd" {
    scene_image s.raw
    request_faults untouched s.raw "read close" dd -f raw -O raw bs=256k if=@ of=new.raw
    request_faults untouched new.raw "create truncate write flush publish close" \
        dd -f raw -O raw bs=256k if=s.raw of=@
    call_faults named new.raw write,sync,truncate,close,link \
        dd -f raw -O raw bs=256k if=s.raw of=new.raw
    report_faults
}

@test "compare" {
    local -x FAULT_STATUSES='^[2-5]$'
    scene_image s.raw
    cp "$SCENE/s.raw" "$SCENE/t.raw"
    request_faults untouched s.raw "read block-status close" compare -f raw -F raw @ t.raw
    request_faults untouched t.raw "read block-status close" compare -s -f raw -F raw s.raw @
    report_faults
}

@test "close-check" {
    scene_image t.raw
    request_faults untouched t.raw "flush close" close-check -f raw @
    call_faults untouched t.raw sync,close close-check -f raw t.raw
    report_faults
}

@test "a sync that fails once fails the run, whatever is synced after it" {
    local n
    scene_image t.raw
    assert_file_exist "$TEST_TOOLS/fault-preload.so"
    for ((n = 1; n <= 3; n++)); do
        cp "$SCENE/t.raw" t.raw
        run env LD_PRELOAD="$TEST_TOOLS/fault-preload.so" FAULT_FILES="$PWD/t.raw" \
            FAULT_CALL=sync FAULT_N=$n FAULT_ONCE=1 "$BLKIMG" io -f raw -c "write 0 4k" -c flush \
            -c "write 4k 4k" -c flush -c "write 8k 4k" -c flush -c flush t.raw
        assert_failure
        assert_line --regexp "^blkimg: flushing 't.raw': Input/output error"
        assert_line --regexp "closing 't.raw'.*flush"
        assert_equal "$(grep -c "flushing 't.raw'" <<<"$output")" $((4 - n + 1 + 2))
    done
}
