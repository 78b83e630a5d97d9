#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# "blkimg info" prints what qemu-img prints, needs no -U, and is small and quick.

bats_require_minimum_version 1.5.0
load lib/common

both_forms() {
    same_output info "$@"
    same_output info --output=json "$@"
}

@test "raw images of any size" {
    local size
    for size in 0 1 511 512 1000 1M 3G 5T; do
        truncate -s "$size" "i$size"
        both_forms -f raw "i$size"
    done
    fill i1M 64k 128k
    both_forms i1M
    both_forms --backing-chain i1M
    both_forms -U i1M
    both_forms -f file i1M
    both_forms "$PWD/i1M"
    both_forms ./i1M
    both_forms file:i1M
}

@test "named by options and json:" {
    truncate -s 1M a
    both_forms --image-opts driver=raw,file.filename=a
    both_forms --image-opts driver=raw,file.driver=file,file.filename=a,file.locking=off
    both_forms 'json:{"driver": "raw", "file": {"driver": "file", "filename": "a"}}'
    both_forms 'json:{"file.filename": "a"}'
}

@test "names with everything in them" {
    local name
    for name in 'a b' $'new\nline' $'quo"te\\' $'\xff\xc3x\xe2\x82' 'ünï' $'\xf0\x9f\x98\x80'; do
        truncate -s 1M "$name"
        both_forms -f raw "$name"
    done
}

@test "qcow2: format, snapshots, bitmaps" {
    need_format qcow2
    qemu-img create -q -f qcow2 a 64M
    both_forms a
    qemu-io -c 'write 0 1M' a >/dev/null
    qemu-img snapshot -c one a
    qemu-img snapshot -c 'a longer name than the column' a
    qemu-img bitmap --add a b0
    qemu-img bitmap --add -g 4k --disable a b1
    both_forms a
    local options
    for options in compat=0.10 compat=1.1,lazy_refcounts=on refcount_bits=1,cluster_size=512 \
        extended_l2=on compression_type=zstd data_file=d,data_file_raw=on; do
        qemu-img create -q -f qcow2 -o "$options" o 64M
        both_forms o
    done
}

@test "qcow2: bitmaps and data files whose names are not UTF-8" {
    need_format qcow2
    blkimg create -q -f qcow2 b.qcow2 1M
    blkimg bitmap --add b.qcow2 $'a\xffb'
    both_forms b.qcow2
    blkimg create -q -f qcow2 -o "data_file=$PWD/"$'d\xff.raw' d.qcow2 1M
    both_forms d.qcow2
}

@test "qcow2: chains" {
    need_format qcow2
    mkdir sub
    qemu-img create -q -f raw sub/base 16M
    qemu-img create -q -f qcow2 -b base -F raw sub/mid
    qemu-img create -q -f qcow2 -b sub/mid -F qcow2 top 32M
    both_forms top
    both_forms sub/mid
    both_forms --backing-chain top
    both_forms --backing-chain "$PWD/top"
    rm sub/base
    both_forms top
    same_output info --backing-chain top
    assert_equal "$status" 1
}

@test "qcow2: a chain that leads back to itself is refused" {
    need_format qcow2
    qemu-img create -q -f qcow2 a 1M
    qemu-img create -q -f qcow2 -b a -F qcow2 b
    qemu-img rebase -u -b ./b -F qcow2 a
    run -0 blkimg info a
    run -1 --separate-stderr timeout 10 "$BLKIMG" info --backing-chain a
    [[ $stderr == *"leads back to itself"* ]]
}

@test "an image in use is described, and the output says so" {
    qemu-img create -q -f raw a 1M
    coproc qemu-io -f raw a
    local holder=$COPROC_PID
    echo 'write 0 512' >&"${COPROC[1]}"
    wait_for 10 test -n "$(head -c 1 <&"${COPROC[0]}")"
    run -0 --separate-stderr blkimg info -f raw a
    assert_equal "$stderr" ''
    assert_line --regexp '^in use: yes'
    run -0 --separate-stderr blkimg info -f raw --output=json a
    assert_equal "$stderr" ''
    jq -e '."in-use" == true and ."virtual-size" == 1048576' <<<"$output"
    same_output info -f raw -U a
    echo quit >&"${COPROC[1]}"
    wait "$holder"
    both_forms -f raw a
}

@test "works within 1,000,000,000 bytes of address space" {
    need_unsanitized "the address space is"
    truncate -s 1G a
    (ulimit -v 976562 && blkimg info a) >mine
    qemu-img info a | cmp - mine
}

@test "no slower than qemu-img" {
    need_unsanitized "time is"
    need python3
    truncate -s 1M a
    python3 - "$BLKIMG" <<'EOF'
import statistics, subprocess, sys, time

def seconds(program):
    start = time.monotonic()
    subprocess.run([program, "info", "a"], stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - start

for attempt in range(3):
    runs = [(seconds(sys.argv[1]), seconds("qemu-img")) for _ in range(20)]
    mine, peer = (statistics.median(times) for times in zip(*runs))
    print(f"blkimg {mine * 1000:.2f} ms, qemu-img {peer * 1000:.2f} ms")
    if mine <= peer:
        sys.exit(0)
sys.exit(1)
EOF
}

@test "what a short run does not need is not loaded with the program" {
    need_unsanitized "what is loaded is"
    truncate -s 1M a
    run -0 --separate-stderr env LD_DEBUG=statistics "$BLKIMG" info a
    [[ $stderr == *relocations* ]] || skip "the dynamic linker does not count"
    # libcrypto alone has 20,000.
    local total
    total=$(sed -n 's/.*number of \(relative \)*relocations: *//p' <<<"$stderr" | paste -sd+)
    ((total < 8000)) || fail "$total relocations"
    run env LD_TRACE_LOADED_OBJECTS=1 "$BLKIMG"
    refute_output --partial libcrypto
}

@test "peak memory is below 8 MiB" {
    need_unsanitized "memory is"
    need python3
    truncate -s 1M a
    # Its output goes into a pipe that is full: it waits there at the end of its work, to be looked at.
    python3 - "$BLKIMG" <<'EOF'
import os, subprocess, sys, time

out, into = os.pipe()
os.set_blocking(into, False)
try:
    while True:
        os.write(into, b"x" * 4096)
except BlockingIOError:
    os.set_blocking(into, True)
child = subprocess.Popen([sys.argv[1], "info", "a"], stdout=into)
os.close(into)
for _ in range(200):
    with open(f"/proc/{child.pid}/wchan") as where:
        if "pipe" in where.read():
            break
    time.sleep(0.02)
with open(f"/proc/{child.pid}/status") as status:
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
while os.read(out, 65536):
    pass
print(f"peak {peak} KiB")
sys.exit(child.wait() != 0 or peak >= 8192)
EOF
}

@test "--limits: what requests must be aligned to, of every layer" {
    blkimg create -q -f raw a 1M
    blkimg create -q -f qcow2 -b a -F raw b
    run -0 jq -c '[.[].limits["request-alignment"]]' \
        <("$BLKIMG" info --limits --backing-chain --output=json b)
    assert_output '[1,1]'
    run -0 jq '.limits["write-zeroes-alignment"]' <("$BLKIMG" info --limits --output=json b)
    assert_output 65536
    run -0 jq 'has("limits")' <("$BLKIMG" info --output=json b)
    assert_output false
    run -0 blkimg info --limits b
    assert_line 'Block limits:'
    assert_line '    request alignment: 1'
    run -0 blkimg info b
    refute_output --partial limits
}
