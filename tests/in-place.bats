# SPDX-License-Identifier: MIT
# A target that has to stay the same file is overwritten in place: its inode is kept.

load lib/common

setup() {
    common_setup
    blkimg create -q -f qcow2 source 1M
    blkimg io -c 'write -q -P 5 0 1M' source
    fill t 0 4M 1
    inode=$(stat -c %i t)
}

# Same inode, and the content of source.
is_in_place() {
    assert_equal "$(stat -c %i t)" "$inode"
    run -0 blkimg compare -f qcow2 -F "$1" source t
}

@test "--in-place, for every command that makes a target" {
    blkimg convert -O qcow2 --in-place source t
    is_in_place qcow2
    blkimg convert -O raw --in-place source t
    is_in_place raw
    blkimg dd -f qcow2 -O raw --in-place if=source of=t
    is_in_place raw
    blkimg mirror --in-place source t
    is_in_place qcow2
    blkimg backup -q --in-place source t
    is_in_place qcow2
    blkimg create -q -f qcow2 --in-place t 2M
    assert_equal "$(stat -c %i t)" "$inode"
    # A name that is free is as ever.
    blkimg convert -O qcow2 --in-place source new
    run -0 blkimg compare source new
}

@test "BLKIMG_IN_PLACE=1 is the same" {
    export BLKIMG_IN_PLACE=1
    blkimg convert -O qcow2 source t
    is_in_place qcow2
    blkimg dd -f qcow2 -O raw if=source of=t
    is_in_place raw
    blkimg mirror source t
    is_in_place qcow2
    blkimg backup -q source t
    is_in_place qcow2
    blkimg create -q -f raw t 1M
    assert_equal "$(stat -c %i t)" "$inode"
    BLKIMG_IN_PLACE=0 blkimg convert -O qcow2 source t
    [[ $(stat -c %i t) != "$inode" ]]
}

@test "an external data file stays the same file, too" {
    fill data 0 64k 2
    local data
    data=$(stat -c %i data)
    blkimg convert -O qcow2 -o data_file=data --in-place source t
    is_in_place qcow2
    assert_equal "$(stat -c %i data)" "$data"
}

@test "a descriptor" {
    exec 5<>t
    local name
    for name in /dev/fd/5 /proc/self/fd/5 "/proc/$BASHPID/fd/5"; do
        fill t 0 4M 1
        blkimg convert -O qcow2 source "$name"
        is_in_place qcow2
        # Who holds it reads the result.
        head -c 3 <&5 | grep -q QFI
        exec 5<>t
    done
    ln -s /dev/fd/5 link
    fill t 0 4M 1
    blkimg convert -O qcow2 source link
    is_in_place qcow2
    assert_link_exists link
    exec 5>&-
}

@test "standard output" {
    blkimg convert -O qcow2 source /dev/stdout 1<>t
    is_in_place qcow2
}

@test "a file that a loop device shows" {
    loop_device t
    blkimg convert -O raw source t
    assert_equal "$(stat -c %i t)" "$inode"
    run -0 blkimg compare -f qcow2 -F raw source t
    # Another file of that directory is replaced.
    fill u 0 4M 1
    inode=$(stat -c %i u)
    blkimg convert -O raw source u
    [[ $(stat -c %i u) != "$inode" ]]
}

@test "a file that a loop device shows, where there is no /sys" {
    need unshare
    loop_device t
    unshare -m mount -t tmpfs none /sys 2>/dev/null || skip "no mount namespace here"
    # shellcheck disable=SC2016 # for the inner shell
    unshare -m sh -e -c 'mount -t tmpfs none /sys; exec "$@"' sh \
        "$BLKIMG" convert -O raw source t
    assert_equal "$(stat -c %i t)" "$inode"
    run -0 blkimg compare -f qcow2 -F raw source t
}

@test "Python's NamedTemporaryFile" {
    need python3
    python3 - "$BLKIMG" <<'END'
import subprocess, sys, tempfile
with tempfile.NamedTemporaryFile() as file:
    subprocess.run([sys.argv[1], "convert", "-O", "raw", "--in-place", "source", file.name], check=True)
    assert file.read() == b"\5" * (1 << 20)
END
}

@test "what fails before the first write leaves the old content" {
    fill before 0 4M 1
    run -1 blkimg convert -O qcow2 -o preallocation=nonsense --in-place source t
    cmp t before
    run -1 blkimg convert -O qcow2 --in-place nothing t
    cmp t before
}

@test "what fails later leaves nothing that looks like an image" {
    need_unsanitized
    blkimg create -q -f qcow2 --in-place t 8M
    LD_PRELOAD="$TEST_TOOLS/fault-preload.so" FAULT_FILES="$PWD/t" FAULT_CALL=write FAULT_N=3 \
        run -1 "$BLKIMG" convert -O qcow2 --in-place source t
    assert_equal "$(stat -c %i t)" "$inode"
    run ! grep -q QFI t
}
