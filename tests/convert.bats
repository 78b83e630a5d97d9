#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# "blkimg convert" beside qemu-img: the same status, the same image; and nothing where it fails.

bats_require_minimum_version 1.5.0
load lib/common

# An image of 8 MiB with data, written zeroes and holes whose borders are not those of clusters.
make_image() {
    truncate -s 8M "$1"
    fill "$1" 0 70000 "${2:-0x21}"
    fill "$1" 1000000 300000 "${2:-0x21}"
    fill "$1" 2000000 500000 0
    fill "$1" 5242880 1048576 "${2:-0x21}"
    fill "$1" 8388096 512 "${2:-0x21}"
}

# Both programs convert with these arguments, each in its copy of the folder "given": same output,
# same status; the targets, all named t.*, have the same content and nearly the same blocks.
same_convert() {
    local peer_status=0 mine_status=0 file
    rm -rf peer mine
    cp -a given peer
    cp -a given mine
    (cd peer && qemu-img convert "$@") >peer.out 2>peer.err || peer_status=$?
    (cd mine && blkimg convert "$@") >mine.out 2>mine.err || mine_status=$?
    diff -u peer.out mine.out || fail "convert $*"
    ((peer_status == mine_status)) || fail "convert $*: $peer_status, $mine_status: $(<mine.err)"
    if ((mine_status)); then
        assert_equal "$(wc -l <mine.err)" 1
        assert_equal "$(cd mine && stat -c '%n %s' -- *)" "$(cd given && stat -c '%n %s' -- *)"
        return
    fi
    assert_file_empty mine.err
    for file in peer/t.*; do
        same_image "$file" "mine/${file#*/}" || fail "convert $*"
    done
}

same_image() {
    qemu-img compare -q "$1" "$2" || return 1
    cmp <(describe "$1") <(describe "$2") || return 1
    local theirs ours
    theirs=$(stat -c %b "$1") ours=$(stat -c %b "$2")
    ((ours <= theirs + theirs / 50 + 64)) || {
        echo "$ours blocks instead of $theirs"
        return 1
    }
}

describe() {
    qemu-img info "$1" | grep -v -e '^image:' -e '^disk size'
}

# refuses TEXT ARG...: one line with the text, status 1, and the folder is as it was.
refuses() {
    local text=$1 status=0 before message
    shift
    before=$(stat -c '%n %s %a %i' -- * .[!.]* 2>/dev/null || :)
    message=$(blkimg convert "$@" 2>&1 >/dev/null </dev/null) || status=$?
    assert_equal "$status" 1
    [[ $message != *$'\n'* && $message == blkimg:*"$text"* ]] || fail "convert $*: $message"
    assert_equal "$(stat -c '%n %s %a %i' -- * .[!.]* 2>/dev/null || :)" "$before"
}

@test "raw to raw: content and holes" {
    mkdir given
    make_image given/a
    same_convert a t.raw
    same_convert -f raw -O raw a t.raw
    same_convert -O file a t.raw
    same_convert -S 64k a t.raw
    same_convert -S 1M a t.raw
    same_convert -S 16M a t.raw
    same_convert -S 0 a t.raw
    same_convert -S 6144 a t.raw
    same_convert -t none -T none a t.raw
    same_convert -t unsafe a t.raw
    same_convert -t directsync -T writeback a t.raw
    same_convert -m 1 a t.raw
    same_convert -m 16 -W a t.raw
    same_convert -C a t.raw
    same_convert -q -p a t.raw
    same_convert -r 1G a t.raw
    same_convert -r 0 a t.raw
    same_convert -U a t.raw
    same_convert --salvage a t.raw
    same_convert -o preallocation=falloc a t.raw
    same_convert -o preallocation=full a t.raw
    same_convert -o size=1M a t.raw
    same_convert --object secret,id=s,data=x a t.raw
    same_convert --image-opts driver=raw,file.filename=a t.raw
    same_convert 'json:{"file.driver": "file", "file.filename": "a"}' t.raw
    same_convert a -O raw t.raw -p -q
}

# lay_out FILE WORD...: after 64 KiB of nothing, runs of data (D4: 4 KiB), of zeroes that are
# written (Z4) and of nothing (H4).
lay_out() {
    local file=$1 at=65536 word
    shift
    rm -f "$file"
    for word; do
        case $word in
        D*) fill "$file" $at $((${word#D} * 1024)) 0x55 ;;
        Z*) fill "$file" $at $((${word#Z} * 1024)) 0 ;;
        esac
        at=$((at + ${word:1} * 1024))
        truncate -s $at "$file"
    done
}

@test "-S: zeroes at the end of data, shorter than that, become a hole as with qemu-img" {
    local layout size words
    while read -r layout; do
        read -ra words <<<"$layout"
        lay_out a "${words[@]}"
        for size in 4k 8k 64k 256k; do
            qemu-img convert -f raw -O raw -S $size a theirs
            "$BLKIMG" convert -f raw -O raw -S $size a ours
            cmp theirs ours
            # The first block is always there in what qemu-img makes.
            cmp <(data_runs theirs) <(data_runs ours) || fail "-S $size: $layout"
        done
    done <<'END'
Z4 H80 D4 H64
Z12 H56
D4 Z4 D4 H52
H8 D16 D16 Z8 Z256 D8 D4 Z32
Z20 D16 Z64 H20
D32 Z4 H8 Z4
D8 H52 Z512 Z4 D80
Z2 Z64 Z64
D28 Z192
Z4 D8 Z4
Z60 D4 Z64 H64 D4
END
}

# The ranges of a raw file that hold data, but for the first block.
data_runs() {
    qemu-img map -f raw --output=json "$1" |
        jq -r '.[] | select(.data and .start >= 4096) | "\(.start) \(.length)"'
}

@test "sizes that are no multiple of a sector" {
    mkdir given
    local size
    for size in 0 1 511 513 1000 65537; do
        truncate -s "$size" given/a
        [[ $size == 0 ]] || fill given/a $((size - 1)) 1
        same_convert a t.raw
        same_convert -S 0 a t.raw
        same_convert -t none -T none a t.raw
    done
}

@test "several inputs are joined" {
    mkdir given
    make_image given/a
    make_image given/b 0x42
    truncate -s 1000 given/c
    fill given/c 0 1000 0x17
    same_convert a b t.raw
    same_convert c a c b t.raw
    same_convert -S 0 c b c t.raw
    same_convert a a t.raw
    truncate -s 20M given/t.there
    fill given/t.there 0 20971520 0x99
    same_convert -n c a c t.there
}

@test "-n: an existing target" {
    mkdir given
    make_image given/a
    # What a zero extent overwrites, and what lies behind the source, in targets of both kinds.
    truncate -s 10M given/t.full
    fill given/t.full 0 10485760 0x99
    cp given/t.full given/t.same
    truncate -s 8M given/t.same
    truncate -s 9M given/t.empty
    same_convert -n a t.full
    same_convert -n a t.same
    same_convert -n a t.empty
    same_convert -n -S 0 a t.full
    same_convert -n --target-is-zero a t.empty
    same_convert -n --target-is-zero -W -S 1M -O raw -t none -U --image-opts \
        driver=raw,file.filename=a t.empty
    same_convert -n --target-image-opts a driver=raw,file.filename=t.full
    # What was asserted is believed: what is not written stays.
    same_convert -n --target-is-zero a t.full
    truncate -s 7M given/t.small
    same_convert -n a t.small
    same_convert -n a missing
}

@test "an existing target is replaced, with owner and mode, when all is done" {
    make_image a
    fill t.raw 0 1000 0x77
    chmod 640 t.raw
    ((EUID)) || chown 12:34 t.raw
    local before
    before=$(stat -c '%u %g %a' t.raw)
    run blkimg convert a t.raw
    assert_success
    assert_output ""
    cmp a t.raw
    assert_equal "$(stat -c '%u %g %a' t.raw)" "$before"
}

@test "a target that is a device" {
    need_root
    make_image a
    truncate -s 16M disk
    fill disk 0 16777216 0x99
    loop_device disk
    run blkimg convert a "$LOOP"
    assert_success
    cmp -n 8388608 a "$LOOP"
    run blkimg convert -n -t none a "$LOOP"
    assert_success
    cmp -n 8388608 a "$LOOP"
    # What lies behind is nobody's business.
    cmp <(tail -c 8388608 disk) <(head -c 8388608 /dev/zero | tr '\0' '\231')
}

@test "the target is one of the files that are read" {
    make_image a
    ln a hard
    ln -s a soft
    local name
    for name in a hard soft ./a; do
        refuses "same file" a "$name"
        refuses "same file" -U a "$name"
        refuses "same file" -n a "$name"
        refuses "same file" -n --target-image-opts a \
            "driver=raw,file.filename=$name,file.locking=off"
    done
    refuses "same file" --image-opts driver=raw,file.filename=a,file.locking=off soft
    make_image b
    refuses "same file" b a b hard
}

@test "the target is the backing file of the source" {
    need_format qcow2
    make_image a
    ln -s a soft
    qemu-img create -q -f qcow2 -b a -F raw top.qcow2
    refuses "same file" top.qcow2 a
    refuses "same file" -U top.qcow2 a
    refuses "same file" -n -U top.qcow2 soft
}

@test "a source that becomes shorter meanwhile is noticed" {
    make_image a
    fill a 0 8388608 0x31
    spawn "$BLKIMG" convert -r 2M -m 1 a t.raw
    sleep 0.7
    truncate -s 3M a
    finish
    assert_equal "$status" 1
    [[ $output == *"it shrank while"* ]]
    assert_not_exists t.raw
}

@test "combinations that make no sense" {
    make_image a
    truncate -s 8M there
    refuses "-C and -c" -c -C -O qcow2 a t
    refuses "-C and -S" -S 4k -C a t
    refuses "-C and --salvage" --salvage -C a t
    refuses "--target-is-zero needs -n" --target-is-zero a t
    refuses "needs -n" --target-image-opts a driver=raw,file.filename=t
    refuses "exclude each other" -n -O raw --target-image-opts a driver=raw,file.filename=there
    refuses "exclude each other" --image-opts -f raw driver=raw,file.filename=a t
    refuses "no effect" -n -o preallocation=off a there
    refuses "needs --bitmaps" --skip-broken-bitmaps a t
    refuses "no bitmaps" --bitmaps a t
    refuses "single input" --bitmaps a a t
    refuses "compress" -c -O raw a t
    refuses "compress" -n -c a there
    refuses "backing" -B a -F raw a t
    refuses "no backing file" -F raw a t
    refuses "single input" -l x a a t
    refuses "exclude each other" -n --target-is-zero -B a -F raw a there
    refuses "-S" -S 100 a t
    refuses "-S" -S 17M a t
    refuses "-m" -m 0 a t
    refuses "-m" -m 17 a t
    refuses "not a number" -m x a t
    refuses "not a size" -r x a t
    refuses "cache" -t foo a t
    refuses "cache" -T foo a t
    refuses "foo" -O foo a t
    refuses "foo" -f foo a t
    refuses "bar" -o bar=1 a t
    refuses "preallocation" -o preallocation=some a t
    refuses "snapshot" -l x a t
    refuses "expects" a
    refuses "expects"
    refuses "No such file" missing t
    refuses "No such file" a missing/t
    refuses "is a directory" a .
    refuses "is a directory" . t
    refuses "empty" a ""
    refuses "empty" "" t
}

@test "what qemu-img refuses" {
    mkdir given
    make_image given/a
    same_convert -S 4k -C a t.raw
    same_convert --salvage -C a t.raw
    same_convert --target-is-zero a t.raw
    same_convert -S 100 a t.raw
    same_convert -m 17 a t.raw
    same_convert -t foo a t.raw
    same_convert -O foo a t.raw
    same_convert a
    same_convert a a
    same_convert -f raw -l x a t.raw
}

@test "-o help lists the options" {
    local peer mine
    peer=$(qemu-img convert -O raw -o help a b | sed -n 's/^  \([a-z_]*\)=.*/\1/p')
    mine=$(blkimg convert -O raw -o help a b | sed -n 's/^  \([a-z_]*\)=.*/\1/p')
    assert_equal "$mine" "$peer"
    run blkimg convert -o '?'
    assert_success
    assert_line --partial "preallocation="
}

@test "--help mentions what callers look for" {
    run blkimg --help
    assert_output --partial "--target-is-zero"
    assert_output --partial "--bitmaps"
}

@test "-p: the progress in the form that scripts read" {
    make_image a
    run blkimg convert -p a t.raw
    assert_success
    local first last
    first=$(tr '\r' '\n' <<<"$output" | head -1)
    last=$(tr '\r' '\n' <<<"$output" | grep . | tail -1)
    assert_equal "$first" "    (0.00/100%)"
    assert_equal "$last" "    (100.00/100%)"
    ! tr '\r' '\n' <<<"$output" | grep . | grep -Evx ' *\([0-9]{1,3}\.[0-9]{2}/100%\)'
}

@test "--salvage: what cannot be read becomes zeroes, and is told" {
    make_image a 0x31
    cat >rules <<'END'
[inject-error]
event = "read_aio"
errno = "5"
sector = "2000"
END
    refuses "read" blkdebug:rules:a t.raw
    run --separate-stderr blkimg convert --salvage blkdebug:rules:a t.raw
    assert_success
    [[ -n $stderr ]]
    run --separate-stderr blkimg convert -q --salvage blkdebug:rules:a t2.raw
    assert_success
    assert_equal "$stderr" ""
    cp a expected
    fill expected $((2000 * 512)) 512 0
    cmp expected t.raw
    cmp expected t2.raw
}

@test "--salvage says each range once, and not too many" {
    need qemu-img qemu-io
    qemu-img create -q -f qcow2 a 256M
    qemu-io -c 'write -P 7 0 64M' a >/dev/null
    # All that the L1 table led to.
    truncate -s 192k a
    refuses "cut short at 196608" a t.raw
    run --separate-stderr blkimg convert --salvage -O raw a t.raw
    assert_success
    assert_equal "${#stderr_lines[@]}" 2
    assert_regex "${stderr_lines[0]}" 'bytes 0 to 268435455 cannot be read and become zeroes: .*cut short at 196608'
    assert_equal "${stderr_lines[1]}" 'blkimg: 268435456 bytes cannot be read and become zeroes'
    # Every second cluster.
    qemu-img create -q -f qcow2 -o cluster_size=512 b 1M
    qemu-io -c 'write -P 7 0 1M' b >/dev/null
    python3 - <<'END'
import struct
with open("b", "r+b") as f:
    def u64(at):
        f.seek(at)
        return struct.unpack(">Q", f.read(8))[0]
    l1 = u64(40)
    for i in range(1, 2048, 2):
        f.seek((u64(l1 + i // 64 * 8) & 0x00fffffffffffe00) + i % 64 * 8)
        f.write(struct.pack(">Q", 1 << 50))
END
    rm t.raw
    run --separate-stderr blkimg convert --salvage -m 8 -W -O raw b t.raw
    assert_success
    assert_equal "${#stderr_lines[@]}" 101
    assert_equal "${stderr_lines[-1]}" \
        'blkimg: 524288 bytes cannot be read and become zeroes; more places than are listed'
    python3 -c 'd = open("t.raw", "rb").read(); assert d == (b"\7" * 512 + bytes(512)) * 1024'
}

@test "--salvage: what a table led to is not read when the table cannot be" {
    need qemu-img qemu-io
    # The L1 table lies at 192k, and an L2 table at 256k, whose second slice maps bytes 32M to 64M.
    qemu-img create -q -f qcow2 large 4T
    qemu-io -c 'write -P 7 16M 64k' large >/dev/null
    qemu-img create -q -f qcow2 a 96M
    qemu-io -c 'write -P 7 16M 64k' -c 'write -P 8 40M 64k' -c 'write -P 9 80M 64k' a >/dev/null
    cat >l1 <<'END'
[inject-error]
event = "none"
iotype = "read"
errno = "5"
sector = "384"
END
    cat >l2 <<'END'
[inject-error]
event = "l2_load"
errno = "5"
sector = "520"
END
    local l2=driver=qcow2,l2-cache-entry-size=4k,file.driver=blkdebug,file.config=l2,file.image.filename=a
    refuses "read" -O qcow2 blkdebug:l1:large t
    run --separate-stderr timeout 20 "$BLKIMG" convert --salvage -O qcow2 blkdebug:l1:large t
    assert_success
    assert_equal "${#stderr_lines[@]}" 2
    assert_regex "${stderr_lines[0]}" 'bytes 0 to 4398046511103 cannot be read'
    assert_equal "$(qemu-img map --output=json t | grep -c '"data": true')" 0

    run --separate-stderr blkimg convert --salvage --image-opts -O qcow2 "$l2" t
    assert_success
    assert_equal "${#stderr_lines[@]}" 2
    assert_regex "${stderr_lines[0]}" 'bytes 33554432 to 67108863 cannot be read'
    qemu-io -c 'read -P 7 16M 64k' -c 'read -P 0 32M 32M' -c 'read -P 9 80M 64k' t >out
    run ! grep -E 'failed|error' out

    # Everything is written out; compressed, a cluster is lost in part only.
    run --separate-stderr blkimg convert --salvage -S 0 --image-opts -O raw "$l2" t.raw
    assert_success
    assert_regex "${stderr_lines[0]}" 'bytes 33554432 to 67108863 cannot be read'
    run blkimg convert --salvage -q -c --image-opts -O qcow2 -o cluster_size=2M "$l2" t
    assert_success
    qemu-img compare t t.raw
    blkimg convert -q -O raw t t2.raw
    cmp t.raw t2.raw
}

@test "a locked source or target" {
    need qemu-io
    make_image a
    truncate -s 8M t.raw
    coproc qemu-io -f raw t.raw
    local holder=$COPROC_PID
    echo 'read 0 512' >&"${COPROC[1]}"
    wait_for 10 test -n "$(head -c 1 <&"${COPROC[0]}")"
    refuses "lock" a t.raw
    refuses "lock" -n a t.raw
    refuses "lock" t.raw other
    run blkimg convert -U t.raw other
    assert_success
    echo quit >&"${COPROC[1]}"
    wait "$holder"
    run blkimg convert a t.raw
    assert_success
}

@test "cache modes: what is synced" {
    need strace
    need_unsanitized
    make_image a
    run strace -f -qq -o trace -e trace=fsync,fdatasync,sync_file_range,syncfs \
        "$BLKIMG" convert -t unsafe a t1.raw
    assert_success
    run ! grep -q 'sync(.*= 0' trace
    run strace -f -qq -o trace -e trace=fsync,fdatasync "$BLKIMG" convert a t2.raw
    assert_success
    grep -q 'sync(.*= 0' trace
}

@test "a full disk leaves no target" {
    small_tmpfs 4m full
    make_image a
    fill a 0 8388608 0x31
    cd full
    refuses "space" ../a t.raw
    truncate -s 8M there
    fill there 0 4096 0x11
    refuses "space" ../a there
}
