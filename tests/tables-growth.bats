#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# Work on large tables: exact where counts are large, and bounded in memory and instructions.

bats_require_minimum_version 1.5.0
load lib/common

# peak LIMIT_KIB COMMAND...: the command succeeds and never holds more memory than that.
peak() {
    local limit=$1
    shift
    /usr/bin/env time -f %M -o peak "$@" >out
    (($(tail -1 peak) <= limit)) || fail "$*: $(<peak) KiB"
}

# instructions COMMAND...: how many it executes.
instructions() {
    valgrind --tool=callgrind --callgrind-out-file=/dev/null "$@" 2>&1 >/dev/null |
        sed -n 's/.*Collected : //p'
}

# full_image NAME CLUSTERS: of 64 KiB, all mapped in order.
full_image() {
    python3 - "$@" <<'EOF'
import struct, sys
name, count, size = sys.argv[1], int(sys.argv[2]), 65536
tables, blocks = count // 8192, (count + 65536) // 32768 + 1
l2, first = 3 + blocks, 3 + blocks + tables
with open(name, "wb") as f:
    f.write(struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, 16, count * size, 0, tables,
                        2 * size, size, 1, 0, 0, 0, 0, 0, 4, 104))
    f.seek(size)
    f.write(struct.pack(">%dQ" % blocks, *((3 + i) * size for i in range(blocks))))
    f.seek(2 * size)
    f.write(struct.pack(">%dQ" % tables, *((1 << 63) | (l2 + i) * size for i in range(tables))))
    f.seek(3 * size)
    f.write(b"\0\1" * (first + count))
    f.seek(l2 * size)
    f.write(struct.pack(">%dQ" % count, *((1 << 63) | (first + i) * size for i in range(count))))
    f.truncate((first + count) * size)
EOF
}

@test "more references than a byte counts" {
    local i
    qemu-img create -q -f qcow2 -o cluster_size=4k a 64M
    qemu-io -c 'write -P 1 0 256k' -c 'write -P 2 32M 256k' a >/dev/null
    for ((i = 0; i < 300; i++)); do
        blkimg snapshot -c "s$i" a
    done
    run -0 blkimg check a
    run -0 qemu-img check a
    # The count of the first data cluster is one too low, then one too high.
    offset=$(qemu-img map --output=json a | sed -n 's/.*"offset": \([0-9]*\).*/\1/p' | head -1)
    for wrong in 300 302; do
        cp a b
        python3 - "$offset" "$wrong" <<'EOF'
import struct, sys
cluster, wrong = int(sys.argv[1]) // 4096, int(sys.argv[2])
with open("b", "r+b") as f:
    f.seek(48)
    table, = struct.unpack(">Q", f.read(8))
    f.seek(table + cluster // 2048 * 8)
    block, = struct.unpack(">Q", f.read(8))
    f.seek(block + cluster % 2048 * 2)
    f.write(struct.pack(">H", wrong))
EOF
        run ! blkimg check b
        assert_output --partial "cluster $((offset / 4096)) refcount=$wrong reference=301"
        run -0 blkimg check -r all b
        run -0 qemu-img check b
    done
}

@test "check and map of 1 TiB keep to a little memory" {
    need_unsanitized 'memory use'
    full_image a 16777216
    peak 24576 "$BLKIMG" check a
    peak 24576 "$BLKIMG" map --output=json a
    peak 24576 "$BLKIMG" measure -O qcow2 a
}

@test "deleting a snapshot does not look for each new table from the start" {
    command -v valgrind >/dev/null || skip 'no valgrind'
    need_unsanitized 'valgrind'
    local few many
    # QEMU leaves the tables where they were, in front of the data.
    full_image a 65536
    full_image b 524288
    qemu-img snapshot -c s a
    qemu-img snapshot -c s b
    few=$(instructions "$BLKIMG" snapshot -d s a)
    many=$(instructions "$BLKIMG" snapshot -d s b)
    ((few && many < 10 * few)) || fail "$few instructions for 65536 clusters, $many for 524288"
}
