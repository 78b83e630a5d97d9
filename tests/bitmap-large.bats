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

@test "very many bitmaps" {
    need qemu-img python3
    quick create -q -f qcow2 -o cluster_size=512 a 64k
    quick bitmap --add -g 64k a b
    # What says of itself that it has 60,000 of them, by one directory of copies of its entry. Each
    # has a table of its own, as a bitmap without one is no bitmap.
    python3 - <<'END'
import struct
data = bytearray(open("a", "rb").read())
at = 104 if int.from_bytes(data[100:104], "big") == 104 else int.from_bytes(data[100:104], "big")
while struct.unpack_from(">I", data, at)[0] != 0x23852875:
    at += 8 + -(-struct.unpack_from(">I", data, at + 4)[0] // 8) * 8
count, _, size, offset = struct.unpack_from(">IIQQ", data, at + 8)
entry = data[offset:offset + 24]
entry[18:20] = struct.pack(">H", 8)
tables = 4 << 20
directory = b"".join(struct.pack(">Q", tables + i * 512) + bytes(entry[8:]) + b"%08d" % i for i in range(60000))
struct.pack_into(">IIQQ", data, at + 8, 60000, 0, len(directory), 1 << 20)
data += bytes((1 << 20) - len(data))
data += directory
open("a", "wb").write(data + bytes(tables + 60000 * 512 - len(data)))
END
    run -0 timeout 20 "$BLKIMG" check -q -r all a
    run -0 timeout 20 "$BLKIMG" bitmap --remove a 00000000
    run -0 timeout 20 "$BLKIMG" check -q a
    blkimg bitmap --list a | wc -l | grep -qx 59999
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
