#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# What a killed "blkimg check -r" leaves behind can be repaired again; and how much memory a check takes.

bats_require_minimum_version 1.5.0
load lib/common
load lib/qcow2-check

# crash_states WAY EDIT...: "a" is the base with these edits of mkimage. In every state that a killed "check -r WAY" of it
# leaves, the data is there, what qemu-img finds wrong is not worse than before, and a repair run again makes it whole.
crash_states() {
    need_unsanitized 'preloading'
    need python3
    local way=$1 states=${QCOW2_CRASH_STATES:-120}
    shift
    make_base -o cluster_size=4k
    cp base a
    mkimage edit a "$@"
    cat >judge <<JUDGE
#!/bin/sh
cd "\$1" || exit 1
qemu-img compare -q -f qcow2 -F raw a "$T/base.raw" || exit 1
"$BLKIMG" check -q -r all a >/dev/null || { echo "the repair cannot be run again"; exit 1; }
"$BLKIMG" check -q a && qemu-img check -q a || { echo "not whole after the second repair"; exit 1; }
qemu-img compare -q -f qcow2 -F raw a "$T/base.raw" || exit 1
qemu-img convert -l one -O raw a one.raw && cmp one.raw "$T/one.raw"
JUDGE
    chmod +x judge
    # The image is small, so that memory is enough for the states.
    run -0 python3 "$SRCDIR/tests/tools/crashstates.py" run --files a --states "$states" --seed 7 \
        --check "$T/judge" -- "$(realpath "$BLKIMG")" check -r "$way" a
    echo "# $way: ${lines[-1]}" >&3
}

@test "crash states of check -r all" {
    crash_states all 'refcount[0]=0' 'l2[0]=old^COPIED' 'l2[17]=old^COPIED' 'l1[0]=old^COPIED' 'reftable[0]=0'
}

@test "crash states of check -r all, sound structure" {
    crash_states all 'refcount[3]=0' 'refcount[9]=77' 'refcount[12]=0' 'l2[3]=old^COPIED' 'l2[18]=old^COPIED'
}

@test "crash states of check -r leaks" {
    crash_states leaks 'refcount[3]=5' 'refcount[400]=77' 'refcount[900]=3' 'refcount[1500]=1' 'file_bytes=1600*4096'
}

@test "memory is two bits for each cluster" {
    need_unsanitized 'memory use'
    qemu-img create -q -f qcow2 -o preallocation=metadata,cluster_size=64k big 1T
    # 2^24 clusters: 4 MiB.
    run -0 python3 - "$BLKIMG" <<'PY'
import resource, subprocess, sys
subprocess.run([sys.argv[1], "check", "-q", "big"], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
PY
    echo "# peak memory of a check of 1 TiB: $output KiB" >&3
    ((output < 24 * 1024))
}
