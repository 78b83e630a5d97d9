#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# Many background requests at once. Built with -fsanitize=thread these tests also show that there
# are no data races; the sanitizer makes the program end with another status.

load lib/common

# Disjoint writes of different lengths and patterns, all read back, in the background too.
disjoint() {
    local format=$1 i at=0 length
    local -a writes=() reads=()
    for ((i = 0; i < 200; i++)); do
        length=$((1 + (i * 7919) % 30000))
        writes+=("aio_write -qP $((i % 255 + 1)) $at $length")
        reads+=("aio_read -qP $((i % 255 + 1)) $at $length")
        at=$((at + length))
    done
    run blkimg io -f "$format" image < <(printf '%s\n' "${writes[@]}" aio_flush "${reads[@]}" \
        "read -qP 0 $at 64k")
    assert_success
    refute_output
    # And from the medium.
    run blkimg io -r -f "$format" image < <(printf '%s\n' "${reads[@]}")
    assert_success
    refute_output
}

# Overlapping writes, reads, zeroes and discards: any order is right, but every sector holds what
# one of them wrote, and what is written after aio_flush is there.
overlapping() {
    local format=$1 i
    local -a lines=()
    for ((i = 0; i < 120; i++)); do
        lines+=("aio_write -qP $((i % 4 + 1)) $((i % 16 * 4096)) 64k"
            "aio_read -q $((i % 13 * 5000)) 40000")
        ((i % 10)) || lines+=("aio_write -qzu $((i % 7 * 16384)) 32k" "discard -q 1M 64k" flush)
    done
    run blkimg io -f "$format" image < <(printf '%s\n' "${lines[@]}" aio_flush \
        'write -qP 9 30000 1000' 'read -qP 9 30000 1000')
    assert_success
    refute_output

    qemu-img convert -f "$format" -O raw image flat
    # shellcheck disable=SC2016 # perl's
    run perl -0777 -ne '
        substr($_, 30000, 1000) = "";
        for (my $i = 0; $i < 29696; $i += 512) {
            my $sector = substr($_, $i, 512);
            $sector =~ /^(.)\1*$/s && ord($1) <= 4 or die "sector at $i is torn\n";
        }' flat
    assert_success
}

# Unaligned neighbours in one sector: read-modify-write must not lose one of them.
neighbours() {
    local format=$1 i
    local -a writes=() reads=()
    for ((i = 0; i < 150; i++)); do
        writes+=("aio_write -qP $((i % 250 + 1)) $((i * 37)) 37")
        reads+=("aio_read -qP $((i % 250 + 1)) $((i * 37)) 37")
    done
    run blkimg io -t none -f "$format" image \
        < <(printf '%s\n' "${writes[@]}" aio_flush "${reads[@]}")
    [[ $output != *'Invalid argument'* ]] || skip 'no O_DIRECT here'
    assert_success
    refute_output
}

@test "raw: disjoint background requests" {
    truncate -s 8M image
    disjoint raw
}

@test "raw: overlapping background requests" {
    need perl
    truncate -s 8M image
    overlapping raw
}

@test "raw: neighbours within a sector, O_DIRECT" {
    truncate -s 8M image
    neighbours raw
}

@test "structural changes wait for background requests" {
    truncate -s 8M image
    run blkimg io -f raw image <<'EOF'
aio_write -qP 1 0 1M
aio_write -qP 2 1M 1M
truncate 16M
aio_write -qP 3 12M 1M
aio_write -qP 4 13M 1M
reopen -r
aio_read -qP 3 12M 1M
reopen -w -c unsafe
aio_write -qP 5 14M 1M
close
open -o driver=raw image
read -qP 1 0 1M
read -qP 2 1M 1M
read -qP 4 13M 1M
read -qP 5 14M 1M
EOF
    assert_success
    refute_output
}

@test "more requests than threads, many of them held by breakpoints" {
    truncate -s 8M image
    local i
    local -a lines=()
    for ((i = 0; i < 40; i++)); do
        lines+=("break pwritev T$i" "aio_write -qP $((i + 1)) $((i * 1000)) 1000" "wait_break T$i")
    done
    for ((i = 0; i < 100; i++)); do
        lines+=("aio_read -q 4M 4k")
    done
    for ((i = 39; i >= 0; i--)); do
        lines+=("resume T$i")
    done
    lines+=(aio_flush)
    for ((i = 0; i < 40; i++)); do
        lines+=("read -qP $((i + 1)) $((i * 1000)) 1000")
    done
    run blkimg io -f raw blkdebug::image < <(printf '%s\n' "${lines[@]}")
    assert_success
    ((${#lines[@]} > 0)) && refute_line --regexp 'failed|blkimg:'
}

@test "qcow2: disjoint background requests" {
    supports qcow2 || skip "no qcow2 driver"
    qemu-img create -q -f qcow2 image 8M
    disjoint qcow2
    qemu-img check -q image
}

@test "qcow2: overlapping background requests" {
    need perl
    supports qcow2 || skip "no qcow2 driver"
    qemu-img create -q -f qcow2 -o cluster_size=4k image 8M
    overlapping qcow2
    qemu-img check -q image
}

@test "qcow2: neighbours within a cluster" {
    supports qcow2 || skip "no qcow2 driver"
    qemu-img create -q -f qcow2 image 8M
    neighbours qcow2
    qemu-img check -q image
}
