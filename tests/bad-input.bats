#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# Input that is wrong in some way: one line that names the file and the cause, the right status, and no crash.

bats_require_minimum_version 1.5.0
load lib/common

# bad STATUS NAME CAUSE COMMAND...: the command fails with this status and one line on stderr that has
# the name and the cause.
bad() {
    local wanted=$1 name=$2 cause=$3 status=0
    shift 3
    timeout 20 "$BLKIMG" "$@" >out 2>err </dev/null || status=$?
    [[ $status == "$wanted" && $(wc -l <err) == 1 && $(<err) == blkimg:*"$name"*"$cause"* ]] ||
        fail "$*: status $status: $(head -c 2000 err)"
}

has_command() {
    blkimg help | grep -q "^  $1 "
}

# every NAME CAUSE IMAGE...: all commands that open an image refuse this one.
every() {
    local name=$1 cause=$2 image=$3
    bad 1 "$name" "$cause" info "$image"
    bad 1 "$name" "$cause" info --output=json "$image"
    bad 1 "$name" "$cause" info --backing-chain "$image"
    bad 1 "$name" "$cause" map "$image"
    bad 1 "$name" "$cause" measure "$image"
    bad 1 "$name" "$cause" resize "$image" 1M
    truncate -s 1M good
    if has_command convert; then
        bad 1 "$name" "$cause" convert -O raw "$image" target
        bad 1 "$name" "$cause" convert -n -O raw good "$image"
    fi
    if has_command dd; then
        bad 1 "$name" "$cause" dd if="$image" of=target
    fi
    if has_command compare; then
        bad 2 "$name" "$cause" compare "$image" good
        bad 2 "$name" "$cause" compare good "$image"
    fi
    if has_command close-check; then
        bad 1 "$name" "$cause" close-check "$image"
    fi
    if has_command io; then
        bad 1 "$name" "$cause" io -c 'read 0 512' "$image"
    fi
    assert_file_not_exists target
}

@test "missing" {
    every nosuch "No such file or directory" nosuch
    every nosuch/x "No such file or directory" nosuch/x
}

@test "a directory" {
    mkdir folder
    every folder "a directory" folder
}

@test "a FIFO, without waiting for a writer" {
    mkfifo fifo
    every fifo pipe fifo
}

@test "a character device" {
    every /dev/null "character device" /dev/null
}

@test "a socket" {
    need python3
    python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("sock")'
    bad 1 sock '' info sock
}

@test "unreadable" {
    truncate -s 1M secret
    chmod 0 secret
    if ((EUID == 0)); then
        need setpriv
        chmod 755 "$T"
        local status=0
        setpriv --reuid=65534 --regid=65534 --clear-groups "$BLKIMG" info "$T/secret" >out 2>err ||
            status=$?
        [[ $status == 1 && $(<err) == *secret*"Permission denied"* ]] || fail "$status $(<err)"
        [[ $(wc -l <err) == 1 ]]
    else
        every secret "Permission denied" secret
    fi
}

@test "an empty name" {
    every "''" empty ''
}

@test "a name that is too long, a link to itself, a file as a directory" {
    local long
    printf -v long '%0300d' 0
    bad 1 000 "File name too long" info "$long"
    ln -s loop loop
    bad 1 loop "Too many levels of symbolic links" info loop
    truncate -s 1M file
    bad 1 file/x "Not a directory" info file/x
}

@test "an empty file is an empty raw image" {
    : >empty
    run -0 blkimg info empty
    assert_line 'virtual size: 0 B (0 bytes)'
    run -0 blkimg map empty
    run -0 blkimg measure empty
}

@test "a protocol that does not exist" {
    every ftpx: "no such protocol" ftpx:file
    truncate -s 1M a:b
    run -0 blkimg info ./a:b
}

@test "a format that does not exist or is not the image's" {
    truncate -s 1M a
    bad 1 "'a'" "Unknown driver 'bogus'" info -f bogus a
    bad 1 "'a'" "Unknown driver 'bogus'" resize -f bogus a 2M
    bad 1 bogus '' info --image-opts driver=bogus,file.filename=a
    if supports qcow2; then
        bad 1 "'a'" "Image is not in qcow2 format" info -f qcow2 a
    fi
}

@test "an image of qcow version 1 is not taken for a raw one" {
    need qemu-img
    qemu-img create -q -f qcow a 1M
    local command
    for command in 'info a' 'map a' 'convert -O raw a target' 'resize a 2M' 'check a'; do
        # shellcheck disable=SC2086 # a command line
        bad 1 "'a'" 'qcow version 1 is not supported' $command
    done
    assert_file_not_exist target
    run -0 blkimg info -f raw a
}

@test "options of the image that nobody knows" {
    truncate -s 1M a
    bad 1 a "'bogus'" info --image-opts driver=raw,file.filename=a,bogus=1
    bad 1 a "'bogus'" info --image-opts driver=raw,file.filename=a,file.bogus=1
    bad 1 a "'bogus'" info 'json:{"driver": "raw", "bogus": 1, "file": {"filename": "a"}}'
    bad 1 '' 'exclude each other' info -f raw --image-opts driver=raw,file.filename=a
}

@test "json: that is broken, empty, deep or endless" {
    need python3
    bad 1 json: '' info 'json:{'
    bad 1 json: '' info 'json:'
    bad 1 json: 'not an object' info 'json:[1]'
    bad 1 '' '' info 'json:{}'
    bad 1 '' '' info 'json:{"file": {"file": {}}}'
    bad 1 json: '' info 'json:{"driver": "raw", "driver": "file"}'
    bad 1 json: '' info "$(python3 -c 'print("json:" + "{\"file\":" * 10000 + "{}" + "}" * 10000)')"
    bad 1 json: '' info "$(python3 -c 'print("json:" + "[" * 100000)')"
    bad 1 '' '' info "$(python3 -c 'print("json:" + "{\"file\":" * 1000 + "{\"filename\": \"x\"}" + "}" * 1000)')"
}

@test "a locked file: the name, the lock, and no change" {
    qemu-img create -q -f raw a 1M
    fill a 0 64k
    cp a before
    coproc qemu-io -f raw a
    local holder=$COPROC_PID
    echo 'read 0 512' >&"${COPROC[1]}"
    wait_for 10 test -n "$(head -c 1 <&"${COPROC[0]}")"
    bad 1 "'a'" 'Failed to get ' resize -f raw a 2M
    bad 1 "'a'" 'Failed to get ' create -f raw a 2M
    if has_command convert; then
        bad 1 "'a'" 'Failed to get ' convert -f raw -O raw before a
        bad 1 "'a'" 'Failed to get ' convert -n -f raw -O raw before a
    fi
    if has_command io; then
        bad 1 "'a'" 'Failed to get ' io -f raw -c 'write 0 512' a
    fi
    echo quit >&"${COPROC[1]}"
    wait "$holder"
    cmp a before
}

@test "-U is for reading" {
    truncate -s 1M a
    bad 1 a '-U' resize -U -f raw a 2M
    [[ $(stat -c %s a) == 1048576 ]]
}

@test "a full disk: no partial target" {
    small_tmpfs 1m full
    fill big 0 4M
    bad 1 full/x "No space left on device" create -o preallocation=full full/x 4M
    assert_equal "$(ls -A full)" ''
    if has_command convert; then
        bad 1 full/x "No space left on device" convert -f raw -O raw big full/x
        assert_equal "$(ls -A full)" ''
        fill full/old 0 64k
        bad 1 full/old "No space left on device" convert -f raw -O raw big full/old
        assert_equal "$(stat -c %s full/old)" 65536
    fi
    fill full/r 0 64k
    bad 1 full/r "No space left on device" resize -f raw --preallocation=full full/r 4M
}

@test "a file-size limit is an error, not a signal" {
    local status=0
    (ulimit -f 512 && "$BLKIMG" create -o preallocation=full x 4M) >out 2>err || status=$?
    [[ $status == 1 && $(wc -l <err) == 1 && $(<err) == *"File too large"* ]] || fail "$status $(<err)"
    assert_file_not_exists x
}
