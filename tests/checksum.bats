#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# "blkimg checksum": one digest for one content, whatever the format and the allocation.

bats_require_minimum_version 1.5.0
load lib/common

setup() {
    common_setup
    blkimg --version | grep -q libcrypto || skip "no libcrypto in this build"
    truncate -s 20M sparse.raw
    fill sparse.raw 70000 5000 0x21
    fill sparse.raw 3145728 2097152 0x22
    fill sparse.raw 20971008 512 0x23
}

# digest ARG...: the digest that checksum prints.
digest() {
    run --separate-stderr blkimg checksum "$@"
    assert_success
    [[ -z $stderr ]] || fail "$stderr"
    output=${output%% *}
    [[ $output =~ ^[0-9a-f]{64}$ ]] || fail "no digest: $output"
}

# The definition of blkimg-checksum(1).
reference() {
    need python3
    python3 - "$1" <<'END'
import hashlib, sys

BLOCK = 1 << 20
content = open(sys.argv[1], "rb").read()
hashed = lambda *parts: hashlib.sha256(b"".join(parts)).digest()
leaves = 1
while leaves * BLOCK < len(content):
    leaves *= 2
level = [hashed(b"\0", content[i * BLOCK:(i + 1) * BLOCK].ljust(BLOCK, b"\0")) for i in range(leaves)]
while len(level) > 1:
    level = [hashed(b"\1", level[i], level[i + 1]) for i in range(0, len(level), 2)]
print(hashed(b"\2", len(content).to_bytes(8, "big"), level[0]).hex())
END
}

@test "the digest is what its definition says" {
    digest -f raw sparse.raw
    assert_equal "$output" "$(reference sparse.raw)"
    truncate -s 0 empty.raw
    digest -f raw empty.raw
    assert_equal "$output" "$(reference empty.raw)"
}

@test "raw, sparse, full, qcow2, compressed and overlay give one digest" {
    need qemu-img
    digest -f raw sparse.raw
    local want=$output
    cp --sparse=never sparse.raw full.raw
    qemu-img convert -f raw -O qcow2 sparse.raw a.qcow2
    qemu-img convert -f raw -O qcow2 -S 0 -o cluster_size=4k sparse.raw b.qcow2
    qemu-img convert -f raw -O qcow2 -c sparse.raw c.qcow2
    qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 -o cluster_size=2M d.qcow2
    qemu-io -c 'write -P 0x22 3M 1M' d.qcow2 >/dev/null
    local image workers
    for image in full.raw a.qcow2 b.qcow2 c.qcow2 d.qcow2; do
        for workers in 1 3 16; do
            digest -m "$workers" "$image" -f "${image#*.}"
            assert_equal "$output" "$want"
        done
    done
}

@test "a byte, its place and the size change it" {
    digest -f raw sparse.raw
    local first=$output
    cp sparse.raw other.raw
    fill other.raw 70001 1 0x20
    digest -f raw other.raw
    refute [ "$output" = "$first" ]
    cp sparse.raw longer.raw
    truncate -s 21M longer.raw
    digest -f raw longer.raw
    refute [ "$output" = "$first" ]
    fill sparse.raw 70000 5000 0
    fill sparse.raw 1118576 5000 0x21
    digest -f raw sparse.raw
    refute [ "$output" = "$first" ]
}

@test "zeroes are not read" {
    need_unsanitized
    need qemu-img
    qemu-img create -q -f qcow2 huge.qcow2 1P
    qemu-io -c 'write -P 1 500T 64k' huge.qcow2 >/dev/null
    run timeout 20 "$BLKIMG" checksum huge.qcow2
    assert_success
}

@test "json" {
    digest -f raw sparse.raw
    local want=$output
    run blkimg checksum -f raw --output=json sparse.raw
    assert_success
    assert_line '    "algorithm": "sha256-tree",'
    assert_line --partial '"virtual-size": 20971520'
    assert_line --partial "\"digest\": \"$want\""
    assert_line --partial '"filename": "sparse.raw"'
}

@test "options" {
    digest -f raw sparse.raw
    local want=$output
    digest -U --lock-wait=1 --image-opts driver=raw,file.filename=sparse.raw
    assert_equal "$output" "$want"
    run blkimg checksum -p -f raw sparse.raw
    assert_success
    assert_output --partial "(100.00/100%)"
    assert_output --partial "$want  sparse.raw"
}

@test "failures are one line and a status" {
    local arguments
    for arguments in "" "a b" "missing" "-m 0 sparse.raw" "-m 17 sparse.raw" \
        "--output=xml sparse.raw" "-f nosuch sparse.raw"; do
        # shellcheck disable=SC2086 # a list
        run --separate-stderr blkimg checksum $arguments
        assert_failure 1
        refute_output
        assert_equal "${#stderr_lines[@]}" 1
    done
    run --separate-stderr blkimg checksum --image-opts \
        driver=raw,file.driver=blkdebug,file.image.filename=sparse.raw,file.inject-error.0.iotype=read,file.inject-error.0.event=none
    assert_failure 1
    refute_output
    [[ $stderr == *sparse.raw*"Input/output error"* ]] || fail "$stderr"
}

@test "a libcrypto that cannot be loaded" {
    need_unsanitized "the library path is"
    local name
    name=$(LC_ALL=C grep -ao 'libcrypto\.so\.[0-9.]*[0-9]' "$BLKIMG" | sed 1q)
    [[ -n $name ]] || skip "libcrypto is part of this build"
    mkdir lib
    echo "no library" >"lib/$name"
    run -1 --separate-stderr env LD_LIBRARY_PATH="$PWD/lib" "$BLKIMG" checksum -f raw sparse.raw
    assert_equal "$output" ''
    [[ $stderr == *"$name"* ]] || fail "$stderr"
    run -1 env LD_LIBRARY_PATH="$PWD/lib" "$BLKIMG" backup -q --checksum -f raw sparse.raw b.qcow2
    [[ ! -e b.qcow2 ]]
    run -0 env LD_LIBRARY_PATH="$PWD/lib" "$BLKIMG" backup -q -f raw sparse.raw b.qcow2
}
