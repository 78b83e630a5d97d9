# SPDX-License-Identifier: MIT
# The fault injector: rules of QEMU mean what they mean there, and its own additions do what they
# say.

load lib/common

setup() {
    common_setup
    truncate -s 1M t.raw
}

# The options of a raw image over an injector with one rule: rule KEY=VALUE,... [OPTION,...]
rule() {
    local options=driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename=t.raw
    [[ -z $1 ]] || options+=,file.inject-error.0.${1//,/,file.inject-error.0.}
    echo "$options${2:+,$2}"
}

# --- as in QEMU ------------------------------------------------------------------------------

@test "rules in a file" {
    cat >rules <<'END'
# the second write fails

[set-state]
event = "pwritev"
state = "1"
new_state = "2"

[inject-error "second"]
event = "pwritev"
state = "2"
errno = "28"
once = "on"
END
    same_io_output -f raw -c "write 0 4k" -c "write 4k 4k" -c "write 8k 4k" -c "read 0 4k" \
        blkdebug:rules:t.raw
    assert_output --partial "write failed: No space left on device"
    assert_equal "$status" 1
}

@test "an error has a number or a name" {
    local name
    for name in ENOSPC 28; do
        run -1 blkimg io --image-opts -c "write 0 4k" "$(rule iotype=write,errno=$name)"
        assert_output "write failed: No space left on device"
        printf '[inject-error]\niotype = "read"\nerrno = "%s"\n' "$name" >rules
        run -1 blkimg io -f raw -c "read 0 4k" blkdebug:rules:t.raw
        assert_output "read failed: No space left on device"
    done
    run -1 --separate-stderr blkimg io --image-opts -c "write 0 4k" "$(rule iotype=write,errno=ENOSUCH)"
    [[ $stderr == *"errno 'ENOSUCH': there is no such error"* ]]
}

@test "a name without rules" {
    same_io_output -f raw -c "write -P 7 0 4k" -c "read -P 7 0 4k" blkdebug::t.raw
    assert_equal "$status" 0
}

@test "rules in options, with and without an index" {
    same_io_output --image-opts -c "write 0 4k" -c "write 0 4k" \
        "$(rule event=pwritev,errno=28,once=on)"
    assert_equal "$status" 1
    same_io_output --image-opts -c "write 0 4k" -c "write 0 4k" \
        "$(rule event=pwritev,errno=28,once=on | sed 's/error\.0\./error./g')"
    assert_equal "$status" 1
}

@test "rules in json:" {
    same_io_output -c "read 0 512" -c "read 0 512" 'json:{"driver": "raw", "file": {
        "driver": "blkdebug", "image": {"driver": "file", "filename": "t.raw"},
        "inject-error": [{"event": "none", "iotype": "read", "errno": 5, "once": true}]}}'
    assert_equal "$status" 1
}

@test "blkdebug as the top node" {
    local options=driver=blkdebug,image.driver=file,image.filename=t.raw
    same_io_output --image-opts -c "read 0 512" -c "write 0 512" \
        $options,inject-error.0.event=none,inject-error.0.iotype=read
    assert_output --partial "read failed: Input/output error"
}

@test "two injectors on top of each other" {
    printf '[inject-error]\nevent = "none"\niotype = "read"\nerrno = "1"\n' >upper
    printf '[inject-error]\nevent = "none"\niotype = "write"\nerrno = "28"\n' >lower
    same_io_output -f raw -c "read 0 512" -c "write 0 512" blkdebug:upper:blkdebug:lower:t.raw
    assert_output --partial "read failed: Operation not permitted"
    assert_output --partial "write failed: No space left on device"
}

@test "every event of a raw image fires" {
    local event
    for event in pwritev pwritev_zero pwritev_done flush_to_os flush_to_disk read_aio write_aio; do
        same_io_output -t writeback --image-opts -c "read 0 4k" -c "write 0 4k" \
            -c "write -z 4k 4k" -c flush -c "read 0 4k" "$(rule "event=$event,iotype=read,once=on")"
        assert_equal "$event $status" "$event 1"
    done
}

@test "events of an unaligned write" {
    local event options
    for event in pwritev_rmw_head pwritev_rmw_after_head pwritev_rmw_tail pwritev_rmw_after_tail; do
        options=driver=blkdebug,align=4096,image.driver=file,image.filename=t.raw
        options+=,inject-error.0.event=$event
        same_io_output -t writeback --image-opts -c "write 4096 8192" "$options"
        assert_equal "$event $status" "$event 0"
        options+=,inject-error.0.iotype=write
        same_io_output -t writeback --image-opts -c "write 5000 9000" "$options"
        assert_equal "$event $status" "$event 1"
    done
}

# qemu-io 7.2 goes on with whatever was in its buffer.
@test "an unaligned write whose surroundings cannot be read writes nothing" {
    local event options
    fill t.raw 0 65536
    cp t.raw before.raw
    for event in pwritev_rmw_head pwritev_rmw_tail; do
        options=driver=blkdebug,align=4096,image.driver=file,image.filename=t.raw
        options+=,inject-error.0.event=$event,inject-error.0.once=on
        run blkimg io --image-opts -c "write -P 1 5000 9000" "$options"
        assert_failure 1
        assert_output --partial "write failed: Input/output error"
        cmp t.raw before.raw
    done
}

@test "iotype chooses the requests" {
    local iotype unmap=discard=unmap,file.discard=unmap,file.image.discard=unmap
    for iotype in read write write-zeroes discard; do
        same_io_output -t writeback --image-opts -c "read 0 4k" -c "write 0 4k" \
            -c "write -z 4k 4k" -c "discard 8k 4k" \
            "$(rule "event=none,iotype=$iotype,once=on" $unmap)"
        assert_equal "$iotype $status" "$iotype 1"
    done
    run blkimg io -c flush --image-opts "$(rule iotype=flush)"
    assert_failure
    run blkimg map --image-opts "$(rule iotype=block-status)"
    assert_failure 1
    assert_output --partial "t.raw"
}

@test "sector means requests that hold it" {
    same_io_output --image-opts -c "read 0 4k" -c "read 4k 512" -c "read 4608 512" -c "read 0 8k" \
        "$(rule event=none,sector=8)"
    assert_equal "$(grep -c 'read failed' <<<"$output")" 2
}

@test "rules of a sector without an errno shield it" {
    same_io_output --image-opts -c "read 0 512" -c "read 512 512" \
        "$(rule event=none,errno=0,sector=0 \
            file.inject-error.1.event=none,file.inject-error.1.iotype=read)"
    assert_equal "$(grep -c 'read failed' <<<"$output")" 1
}

@test "limits" {
    # A request of 64k is split: the second piece holds the sector.
    same_io_output --image-opts -c "write 0 64k" -c "write 0 4k" \
        "$(rule event=none,sector=8,iotype=write file.align=4096,file.max-transfer=4096)"
    assert_equal "$status" 1
    same_io_output --image-opts -c "write -z 0 64k" -c "read -P 0 0 64k" \
        "$(rule "" file.align=512,file.opt-write-zero=4096,file.max-write-zero=8192)"
    same_io_output --image-opts -c "discard 0 64k" -c "length" \
        "$(rule "" file.opt-discard=4096,file.max-discard=8192,discard=unmap,file.discard=unmap)"
    for bad in align=3 align=3G align=512,max-transfer=100 align=512,opt-write-zero=100 \
        opt-write-zero=8192,max-write-zero=4096 opt-discard=8192,max-discard=4096 align=x; do
        run blkimg io -c length --image-opts "driver=blkdebug,image.filename=t.raw,$bad"
        assert_failure 1
        bad=${bad##*,}
        assert_output --partial "${bad%=*}"
    done
}

# What a disk of 4 MiB that is full looks like after zeroing and discarding here and there.
after_zeroing() {
    local image=$1
    shift
    qemu-img create -q -f qcow2 "$image" 4M
    run "$@" -c 'write -q -P 22 0 4M' -c 'write -zq 500003 900000' -c 'write -zuq 1500k 600k' \
        -c 'discard -q 100000 200000' -c 'discard -q 2500001 1000000' -c 'discard -q 300000 100'
    assert_success
    refute_output
    qemu-img map --output=json "$image" | sed 's/, "offset": [0-9]*//' >"$image.map"
}

@test "units that are no power of two, heads and tails: as in qemu-io" {
    need qemu-io
    local limits
    for limits in opt-write-zero=192k,max-write-zero=384k,opt-discard=96k,max-discard=192k \
        max-write-zero=100k,max-discard=100k opt-write-zero=320k,opt-discard=1536 \
        align=4k,opt-write-zero=12k,opt-discard=12k,max-discard=72k,max-write-zero=60k; do
        local open="open -o driver=blkdebug,image.driver=qcow2,$limits blkdebug::"
        after_zeroing peer qemu-io -c "${open}peer"
        after_zeroing mine "$BLKIMG" io -c "${open}mine"
        diff -u peer.map mine.map
        qemu-img compare -q peer mine
    done
}

@test "a name with prefix or without, and options for what is below" {
    need qemu-io
    local options name
    qemu-img create -q -f qcow2 q 1M
    truncate -s 256k q # whole sectors
    for options in driver=blkdebug,image.driver=qcow2 driver=blkdebug,image.driver=qcow2,align=512 \
        driver=blkdebug,align=512 driver=blkdebug driver=blkdebug,image.driver=raw; do
        for name in q blkdebug::q; do
            run qemu-io -c "open -o $options $name" -c length -c info
            local expected=$output
            assert_success
            run "$BLKIMG" io -c "open -o $options $name" -c length -c info
            assert_success
            assert_output "$expected"
        done
    done
    # The rules of the name count, and those of the options.
    printf '[inject-error]\nevent = "none"\niotype = "read"\nonce = "on"\n' >rules
    run "$BLKIMG" io -c 'open -o driver=blkdebug,image.driver=qcow2,align=512 blkdebug:rules:q' \
        -c 'read -q 0 512' -c 'read -q 0 512'
    assert_failure 1
    assert_output 'read failed: Input/output error'
}

@test "what is no rule is refused, with its place" {
    printf '[inject-error]\nevent = "none"\n\n[inject-error]\nevent = "nope"\n' >rules
    run blkimg io -f raw -c length blkdebug:rules:t.raw
    assert_failure 1
    assert_line --index 0 --regexp "rules.*line 5.*nope"
    assert_equal "${#lines[@]}" 1
    run blkimg io -f raw -c length blkdebug:missing:t.raw
    assert_failure 1
    assert_output --regexp "missing.*No such file or directory"
    run blkimg io -f raw -c length blkdebug:t.raw
    assert_failure 1
    assert_output --partial "blkdebug:t.raw"
    for bad in event=nope iotype=nope errno=x once=perhaps nope=1; do
        run blkimg io --image-opts -c length "$(rule "$bad")"
        assert_failure 1
        assert_output --partial "${bad%=*}"
        assert_equal "${#lines[@]}" 1
    done
}

@test "permissions for the child are accepted" {
    same_io_output --image-opts -c "write 0 512" \
        "$(rule "" file.take-child-perms.0=resize,file.unshare-child-perms.0=resize)"
    assert_equal "$status" 0
}

@test "a map goes through" {
    fill t.raw 4096 8192
    same_output map --output=json -f raw blkdebug::t.raw
    same_output map -f raw blkdebug::t.raw
}

@test "its name" {
    touch rules
    for name in blkdebug::t.raw blkdebug:rules:t.raw; do
        run blkimg info -f raw "$name"
        assert_line --index 0 "$(qemu-img info -f raw "$name" | head -1)"
    done
}

# --- breakpoints -----------------------------------------------------------------------------

@test "a request stops at a breakpoint" {
    same_io_output -f raw -c "break pwritev A" -c "aio_write -P 1 0 512" -c "wait_break A" \
        -c "read 4k 512" -c "write 4k 512" -c "resume A" -c "aio_flush" -c "read -P 1 0 512" \
        blkdebug::t.raw
    assert_equal "$status" 0
}

@test "breakpoints that are not there" {
    same_io_output -f raw -c "resume A" -c "remove_break A" -c "break nope A" -c "break pwritev A" \
        -c "remove_break A" -c "write 0 512" blkdebug::t.raw
}

@test "removing a breakpoint lets its requests go" {
    run blkimg io -f raw -c "break pwritev A" -c "aio_write -P 1 0 512" -c "wait_break A" \
        -c "remove_break A" -c aio_flush -c "read -P 1 0 512" blkdebug::t.raw
    assert_success
}

@test "a signal ends the wait at a breakpoint" {
    blkimg io -f raw -c "break pwritev A" -c "write 0 512" blkdebug::t.raw >out 2>&1 3>&- &
    local pid=$! status=0
    sleep 0.3
    kill -TERM $pid
    wait $pid || status=$?
    assert_equal $status 143
}

# --- beyond QEMU -----------------------------------------------------------------------------

@test "nth fails that request and no other" {
    run blkimg io --image-opts -c "write 0 512" -c "write 512 512" -c "write 1k 512" \
        -c "read 0 512" "$(rule iotype=write,nth=2,errno=28)"
    assert_failure 1
    assert_line --index 0 "wrote 512/512 bytes at offset 0"
    assert_line --index 2 "write failed: No space left on device"
    assert_line --index 3 "wrote 512/512 bytes at offset 1024"
}

@test "nth with once=off fails all from there on" {
    run blkimg io --image-opts -c "write 0 512" -c "write 512 512" -c "write 1k 512" \
        "$(rule iotype=write,nth=2,once=off)"
    assert_failure 1
    assert_equal "$(grep -c 'write failed' <<<"$output")" 2
}

@test "stats tell whether there was an n-th request" {
    run blkimg io --image-opts -c "write 0 512" -c "write 512 512" \
        "$(rule iotype=write,nth=2,stats=s)"
    assert_failure 1
    assert_equal "$(<s)" $'requests matched: 2\nerrors injected: 1'
    run blkimg io --image-opts -c "write 0 512" -c "write 512 512" \
        "$(rule iotype=write,nth=3,stats=s)"
    assert_success
    assert_equal "$(<s)" $'requests matched: 2\nerrors injected: 0'
    run blkimg io --image-opts -c "write 0 512" "$(rule iotype=write,nth=3,stats=/dev/full)"
    assert_failure 5
    assert_output --partial "/dev/full"
}

@test "a truncate can fail" {
    run blkimg io --image-opts -c "truncate 2M" "$(rule iotype=truncate)"
    assert_failure 1
    assert_equal "$(stat -c %s t.raw)" 1048576
}

@test "a durable write is a write and a flush: either can fail" {
    for iotype in write flush; do
        run blkimg io --image-opts -c "write -f 0 512" "$(rule "iotype=$iotype,errno=28")"
        assert_failure
        assert_output --partial "write failed: No space left on device"
    done
}

@test "a flush that fails once fails every later one" {
    run blkimg io --image-opts -c "write 0 512" -c flush -c flush -c "write 0 512" -c flush \
        "$(rule iotype=flush,once=on,stats=s)"
    # The run failed, and the close that would have had to keep the data failed as well.
    assert_failure
    assert_line --regexp "flush.*t.raw.*Input/output error"
    assert_line --regexp "clos.*t.raw.*flush"
    assert_line --partial "an earlier flush failed"
    assert_equal "$(tail -1 s)" "errors injected: 1"
}

@test "a close that fails is status 5" {
    run blkimg io --image-opts -c "write 0 512" "$(rule iotype=close)"
    assert_failure 5
    assert_line --regexp "closing 't.raw'.*release.*Input/output error"
    run blkimg io -r --image-opts -c "read 0 512" "$(rule iotype=close)"
    assert_failure 5
}

@test "creating can fail, and then leaves nothing" {
    for iotype in create publish close; do
        printf '[inject-error]\niotype = "%s"\nerrno = "28"\n' $iotype >rules
        run blkimg create -q -f raw blkdebug:rules:new.raw 1M
        assert_failure
        assert_output --regexp "new.raw.*No space left on device"
        assert_not_exists new.raw
        run blkimg create -q -f raw blkdebug:rules:t.raw 2M
        assert_failure
        assert_equal "$(stat -c %s t.raw)" 1048576
    done
    printf '[inject-error]\niotype = "close"\nnth = "2"\n' >rules
    blkimg create -q -f raw blkdebug:rules:new.raw 1M
    assert_file_exist new.raw
}
