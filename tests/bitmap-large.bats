#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# Bitmaps of very large disks: what is stored and read costs what it holds, not its square.

bats_require_minimum_version 1.5.0
load lib/common

# Each took 45 seconds to many minutes when a piece was looked at beyond its end.
quick() {
    run -0 timeout 15 "$BLKIMG" "$@"
}

@test "a clean bitmap of 8 TiB" {
    quick create -q -f qcow2 a 8T
    quick bitmap --add -g 4k a b
    quick bitmap --list a
    assert_output "b: granularity 4 KiB, enabled, 0 bytes dirty"
    quick check -q a
}

@test "small clusters: a table of many entries" {
    quick create -q -f qcow2 -o cluster_size=4k a 1T
    quick bitmap --add a b
    quick bitmap --add a c
    quick bitmap --merge b a c
    quick check -q a
    quick create -q -f qcow2 -o cluster_size=512 s 64G
    quick bitmap --add -g 512 s b
    quick bitmap --add -g 512 s c
    quick check -q s
}

@test "a wholly dirty one" {
    quick create -q -f qcow2 -o cluster_size=4k a 1M
    quick bitmap --add -g 4k a b
    quick resize -q a 4T
    quick map --bitmap=b --output=json a
    assert_output '[{ "start": 1048576, "length": 4398045462528, "dirty": true}]'
    quick check -q a
}

# many_bitmaps IMAGE COUNT CLUSTER: gives an image with one bitmap a directory of COUNT copies of its
# entry. Each has a table of its own, as a bitmap without one is no bitmap.
many_bitmaps() {
    python3 - "$@" <<'END'
import struct, sys
name, count, cluster = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
data = bytearray(open(name, "rb").read())
at = 104 if int.from_bytes(data[100:104], "big") == 104 else int.from_bytes(data[100:104], "big")
while struct.unpack_from(">I", data, at)[0] != 0x23852875:
    at += 8 + -(-struct.unpack_from(">I", data, at + 4)[0] // 8) * 8
_, _, size, offset = struct.unpack_from(">IIQQ", data, at + 8)
entry = data[offset:offset + 24]
entry[18:20] = struct.pack(">H", 8)
tables = 4 << 20
directory = b"".join(struct.pack(">Q", tables + i * cluster) + bytes(entry[8:]) + b"%08d" % i for i in range(count))
struct.pack_into(">IIQQ", data, at + 8, count, 0, len(directory), 1 << 20)
data += bytes((1 << 20) - len(data))
data += directory
open(name, "wb").write(data)
open(name, "r+b").truncate(tables + count * cluster)
END
    run -0 timeout 20 "$BLKIMG" check -q -r all "$1"
}

@test "very many bitmaps" {
    need qemu-img python3
    quick create -q -f qcow2 -o cluster_size=512 a 64k
    quick bitmap --add -g 64k a b
    many_bitmaps a 60000 512
    run -0 timeout 20 "$BLKIMG" bitmap --remove a 00000000
    run -0 timeout 20 "$BLKIMG" check -q a
    blkimg bitmap --list a | wc -l | grep -qx 59999
}

# peak_below KIB ARG...: "blkimg ARG..." succeeds in that much memory.
peak_below() {
    local limit=$1
    shift
    run -0 timeout 15 /usr/bin/env time -f %M -o peak "$BLKIMG" "$@"
    (($(<peak) < limit)) || fail "$*: $(<peak) KiB"
}

# calls_below COUNT ARG...: and reads and writes the image that few times.
calls_below() {
    local limit=$1
    shift
    run -0 strace -f -qq -o trace -e trace=pread64,pwrite64 "$BLKIMG" "$@"
    (($(wc -l <trace) < limit)) || fail "$*: $(wc -l <trace) calls"
}

@test "many bitmaps of a large disk cost what they mark, and only where they are used" {
    need_unsanitized "memory is"
    need qemu-img python3 strace time
    # 2 MiB of bits each.
    quick create -q -f qcow2 a 1T
    quick bitmap --add -g 64k a b
    many_bitmaps a 200 65536
    peak_below 16384 io -c 'write 0 64k' -c 'write 900G 64k' a
    peak_below 16384 bitmap --list a
    assert_line "00000199: granularity 64 KiB, enabled, 131072 bytes dirty"
    run -0 qemu-img check -q a
    # Bits and tables are written once: two pieces of bits and a table of each bitmap.
    calls_below 1300 io -c 'write 300G 64k' a
    run -0 qemu-img check -q a
    calls_below 20 info a
    calls_below 60 bitmap --merge 00000003 a 00000007
    calls_below 60 bitmap --clear a 00000005
    calls_below 60 bitmap --disable a 00000006
    calls_below 20 map --bitmap=00000009 --output=json a
    calls_below 100 backup -q --mode=bitmap --bitmap=00000009 a out
    # A disabled bitmap is not loaded by a write: the image keeps it as it is.
    local i
    for i in {010..199}; do
        blkimg bitmap --disable a "00000$i"
    done
    calls_below 150 io -c 'write 500G 64k' a
    run -0 blkimg bitmap --list a
    assert_line "00000100: granularity 64 KiB, disabled, 196608 bytes dirty"
    assert_line "00000008: granularity 64 KiB, enabled, 262144 bytes dirty"
    run -0 qemu-img check -q a
}

@test "few marks in a very large disk" {
    need_unsanitized "memory is"
    need strace time
    quick create -q -f qcow2 a 8T
    quick bitmap --add -g 64k a b
    peak_below 8192 io -c 'write 0 64k' -c 'write 4T 64k' -c 'write 8191G 64k' a
    calls_below 60 bitmap --add -g 64k a c
    peak_below 8192 bitmap --merge b a c
    calls_below 60 bitmap --clear a c
    calls_below 150 backup -q --mode=bitmap --bitmap=b a out
    rm out
    peak_below 8192 backup -q --mode=bitmap --bitmap=c a out
    # All of it: as little, since long dirty stretches have no memory either.
    quick create -q -f qcow2 -o cluster_size=64k d 1M
    quick bitmap --add -g 4k d b
    peak_below 8192 resize -q d 4T
    peak_below 8192 bitmap --list d
}

@test "a snapshot that says of itself that it is huge: rebase" {
    need qemu-img python3
    qemu-img create -q -f qcow2 base 1M
    qemu-img create -q -f qcow2 -b base -F qcow2 a 1M
    qemu-img snapshot -c s a
    python3 - <<'END'
import struct
data = bytearray(open("a", "rb").read())
table = struct.unpack_from(">Q", data, 64)[0]
struct.pack_into(">Q", data, table + 48, 1 << 49)
open("a", "wb").write(data)
END
    run timeout 20 "$BLKIMG" rebase -b "" a
    ((status <= 1)) || fail "status $status: $output"
    run -0 qemu-img check -q a
}

@test "backup --mode=top of 1 PiB" {
    quick create -q -f qcow2 -o cluster_size=2M base 1P
    quick create -q -f qcow2 -o cluster_size=64k -b base -F qcow2 a 1P
    run -0 --separate-stderr timeout 30 "$BLKIMG" backup --mode=top a b
    quick info --output=json b
}
