# SPDX-License-Identifier: MIT
# When a target appears under its name, what it inherits, and what a failed or killed run leaves
# (C6).

bats_require_minimum_version 1.5.0
load lib/common
load lib/target

# Everything that tells two files apart: mode, owner, group, links, attributes.
attributes() {
    stat -c '%a %u %g %h' "$1"
    getfattr -d -m- --absolute-names "$1" | tail -n +2
}

# Runs a command as a user without rights.
as_nobody() {
    setpriv --reuid 65534 --regid 65534 --clear-groups "$@"
}

# A folder that nobody may write to, and the program where nobody can run it.
need_nobody() {
    need_root
    need setpriv
    chmod 755 "$T"
    cp "$BLKIMG" "$T/program"
    mkdir -m 777 ours
    mkdir -m 755 theirs
}

# --- new files -------------------------------------------------------------------------------

@test "a new file has the mode that qemu-img gives it" {
    need qemu-img
    for mask in 000 022 027 077; do
        (umask $mask && blkimg create -q -f raw "mine$mask" 1M)
        (umask $mask && qemu-img create -q -f raw "peer$mask" 1M)
        assert_equal "$(stat -c '%a %u %g' mine$mask)" "$(stat -c '%a %u %g' peer$mask)"
    done
}

@test "a new file inherits from its folder as any other" {
    need qemu-img setfacl getfacl
    mkdir d
    chmod g+s d
    [[ $EUID != 0 ]] || chgrp 4321 d
    setfacl -d -m u:1234:rw,g::r,m::rw d || skip "no access control lists here"
    blkimg create -q -f raw d/mine 1M
    qemu-img create -q -f raw d/peer 1M
    assert_equal "$(getfacl -c d/mine)" "$(getfacl -c d/peer)"
    assert_equal "$(stat -c '%a %g' d/mine)" "$(stat -c '%a %g' d/peer)"
}

@test "a dangling symlink is created where it points" {
    mkdir d
    ln -s d/image link
    ln -s link link2
    blkimg create -q -f raw link2 1M
    assert_equal "$(stat -c %s d/image)" 1048576
    assert_link_exists link2
}

@test "a file system without unnamed files gets a temporary name, which goes away" {
    need_root
    need fuse2fs
    truncate -s 20M ext4
    mke2fs -q -t ext4 ext4
    mkdir d
    fuse2fs ext4 d 2>/dev/null 3>&- && mountpoint -q d || skip 'no FUSE here'
    rmdir d/lost+found
    blkimg create -q -f raw d/a 1M
    assert_equal "$(ls -A d)" a
    blkimg create -q -f raw d/a 2M
    assert_equal "$(ls -A d)" a
    assert_equal "$(stat -c %s d/a)" 2097152
    run ! blkimg create -q -f raw -o preallocation=full d/b 30M
    assert_equal "$(ls -A d)" a
    qemu-img create -q -f qcow2 d/q 4M
    blkimg io -c 'write -q -P 3 1M 64k' -c 'reopen -r' -c 'reopen -w' -c 'write -q -P 4 2M 64k' d/q
    blkimg convert -O qcow2 d/q d/a
    qemu-img compare -q d/q d/a
}

# --- existing files --------------------------------------------------------------------------

@test "a replaced file keeps owner, mode, attributes and lists" {
    need setfattr getfattr
    fill a 0 1M
    chmod 640 a
    [[ $EUID != 0 ]] || chown 1234:4321 a
    setfattr -n user.note -v kept a || skip "no extended attributes here"
    setfacl -m u:77:rw a
    attributes a >before
    inode=$(stat -c %i a)
    ln -s a link

    blkimg create -q -f raw link 2M
    attributes a >after
    run -0 diff before after
    assert_link_exists link
    [[ $(stat -c %i a) != "$inode" ]]
    assert_equal "$(stat -c %s a)" 2097152
    assert_equal "$(ls -A)" "$(printf '%s\n' a after before link)"
}

@test "a file with another name is overwritten in place" {
    fill a 0 1M
    ln a b
    inode=$(stat -c %i a)
    blkimg create -q -f raw a 2M
    assert_equal "$(stat -c '%i %h %s' b)" "$inode 2 2097152"
    run -0 cmp -n 2097152 a /dev/zero
}

@test "a refused command leaves a file with another name as it was" {
    fill a 0 1M
    ln a b
    cp a before
    run -1 blkimg create -q -f raw -o preallocation=nonsense a 2M
    run -0 cmp a before
}

@test "a file in a folder that cannot be written is overwritten in place" {
    need_nobody
    fill theirs/a 0 1M
    chown 65534 theirs/a
    inode=$(stat -c %i theirs/a)
    as_nobody ./program create -q -f raw theirs/a 2M
    assert_equal "$(stat -c '%i %s' theirs/a)" "$inode 2097152"
}

@test "a file whose owner cannot be passed on is overwritten in place" {
    need_nobody
    fill ours/a 0 1M
    chmod 666 ours/a
    inode=$(stat -c %i ours/a)
    as_nobody ./program create -q -f raw ours/a 2M
    assert_equal "$(stat -c '%i %u %a %s' ours/a)" "$inode 0 666 2097152"
    assert_equal "$(ls -A ours)" a
}

@test "a file of another in a sticky folder is overwritten in place" {
    need_nobody
    chmod 1777 ours
    fill ours/a 0 1M
    chown 77:65534 ours/a
    chmod 660 ours/a
    inode=$(stat -c %i ours/a)
    as_nobody ./program create -q -f raw ours/a 2M
    assert_equal "$(stat -c '%i %u %s' ours/a)" "$inode 77 2097152"
}

@test "a file that is mounted by itself is overwritten in place" {
    need_root
    fill inner 0 1M
    touch outer
    mount --bind inner outer 2>/dev/null || skip "cannot mount here"
    blkimg create -q -f raw outer 2M
    assert_equal "$(stat -c %s inner)" 2097152
}

@test "a file that may not be written is refused and kept" {
    need_nobody
    fill ours/a 0 1M
    chmod 444 ours/a
    cp ours/a before
    run -1 as_nobody ./program create -q -f raw ours/a 2M
    assert_output "blkimg: Could not open 'ours/a' for writing: Permission denied"
    run -0 cmp ours/a before
}

@test "a folder that may not be written is named" {
    need_nobody
    run -1 as_nobody ./program create -q -f raw theirs/a 2M
    assert_output "blkimg: creating 'theirs/a': Permission denied"
}

# --- devices ---------------------------------------------------------------------------------

@test "a device is created in place, if it is large enough" {
    need qemu-img
    qemu-img create -q -f qcow2 disk 1M
    truncate -s 8M disk
    cp disk before
    loop_device disk
    run -1 blkimg create -q -f raw "$LOOP" 16M
    assert_output --partial "$LOOP"
    assert_output --partial "the device is too small"
    run -0 cmp "$LOOP" before

    blkimg create -q -f raw "$LOOP" 4M
    run -0 blkimg info "$LOOP"
    assert_line "file format: raw"
    assert_line "virtual size: 8 MiB (8388608 bytes)"
    blkimg create -q -f raw "$LOOP" 8M
}

# --- what is left ----------------------------------------------------------------------------

@test "a full disk leaves no target, and keeps the old one" {
    small_tmpfs 1m d
    run -1 blkimg create -q -f raw -o preallocation=full d/a 4M
    assert_output --partial "'d/a'"
    assert_output --partial "No space left on device"
    assert_equal "$(ls -A d)" ""
    fill d/a 0 4k
    cp d/a before
    run -1 blkimg create -q -f raw -o preallocation=falloc d/a 4M
    assert_equal "$(ls -A d)" a
    run -0 cmp d/a before
    run -1 blkimg resize -q -f raw --preallocation=full d/a 4M
    run -0 cmp d/a before
}

@test "SIGKILL leaves nothing, and keeps the old target" {
    mkdir d
    start_target d/a
    assert_equal "$(ls -A d)" ""
    kill -KILL "$target_pid"
    wait "$target_pid" || true
    assert_equal "$(ls -A d)" ""

    fill d/a 0 64k
    cp d/a before
    start_target d/a
    kill -KILL "$target_pid"
    wait "$target_pid" || true
    assert_equal "$(ls -A d)" a
    run -0 cmp d/a before
}

@test "SIGTERM leaves nothing and is told by the status" {
    mkdir d
    start_target d/a
    kill -TERM "$target_pid"
    kill -CONT "$target_pid"
    status=0
    wait "$target_pid" || status=$?
    assert_equal $status 143
    assert_equal "$(ls -A d)" ""
}

@test "everything is synced before the name is given, and the folder after" {
    need strace
    need_unsanitized
    strace -f -qq -o trace -e trace=fsync,fdatasync,linkat,renameat,renameat2 \
        "$BLKIMG" create -q -f raw a 1M
    run -0 sed -E 's/^[0-9]+ +([a-z0-9]+)\(.*/\1/' trace
    assert_output --regexp $'fsync\nlinkat\nfsync$'
    strace -f -qq -o trace -e trace=fsync,fdatasync,linkat,renameat,renameat2 \
        "$BLKIMG" create -q -f raw a 1M
    run -0 sed -E 's/^[0-9]+ +([a-z0-9]+)\(.*/\1/' trace
    assert_output --regexp $'fsync\nlinkat\nrenameat2\nfsync$'
}

@test "a failing call of the publication is reported and leaves no target" {
    need strace
    need_unsanitized
    mkdir d
    for call in fsync linkat fdatasync; do
        for nth in 1 2; do
            rm -f d/a
            run strace -f -qq -o trace -e "trace=$call" -e "inject=$call:error=EIO:when=$nth" \
                "$BLKIMG" create -q -f raw d/a 1M
            grep -q INJECTED trace || continue
            assert_equal "$status" 5
            assert_output --partial "'d/a'"
            assert_output --partial "Input/output error"
            assert_equal "$(ls -A d)" ""
        done
    done
}

# What is written in place is lost once it is begun, so all that can be known comes before.
@test "a conversion that cannot be leaves a target that is written in place as it was" {
    need qemu-img
    truncate -s 1M raw
    qemu-img create -q -f qcow2 a 4M
    qemu-io -c 'write -P 5 0 1M' a >/dev/null
    ln a b
    cp a kept
    qemu-img create -q -f qcow2 -b a -F qcow2 over
    qemu-img create -q -f qcow2 marked 1M
    qemu-img bitmap --add marked bitmap
    local arguments
    for arguments in '-B none -F raw raw' '-B raw -F qcow2 raw' '-B raw -F bogus raw' '-B over -F qcow2 raw' \
        '--bitmaps -O raw marked' '--bitmaps -o compat=0.10 marked'; do
        # shellcheck disable=SC2086 # a command line
        run -1 blkimg convert -O qcow2 $arguments a
        [[ -n $output ]]
        cmp a kept || fail "$arguments"
    done
}

@test "preallocation is refused by a device that keeps what it held" {
    need_root
    need qemu-img
    truncate -s 16M medium
    loop_device medium
    qemu-img create -q -f qcow2 "$LOOP" 4M
    qemu-io -c 'write -P 5 0 1M' "$LOOP" >/dev/null
    local mode
    truncate -s 1M raw
    for mode in falloc full; do
        run -1 blkimg create -q -f qcow2 -o "preallocation=$mode" "$LOOP" 1M
        assert_output --partial 'Unsupported preallocation mode: a device has none'
        run -1 blkimg convert -O qcow2 -o "preallocation=$mode" raw "$LOOP"
        qemu-img check -q "$LOOP"
        qemu-io -r -c 'read -P 5 0 1M' "$LOOP" | grep -q 'read 1048576'
    done
}

# each_late_fault TARGETS COMMAND...: each sync and each close of the targets (in d, a list with
# spaces) fails once. Nothing but status 5 and what was in d before will do; $said has all messages.
each_late_fault() {
    local targets=$1 call nth
    shift
    local failed=0
    said=
    rm -rf kept
    cp -a d kept
    for call in close sync; do
        for ((nth = 1; nth < 50; nth++)); do
            rm -rf d count
            cp -a kept d
            # shellcheck disable=SC2086 # a list
            LD_PRELOAD="$TEST_TOOLS/fault-preload.so" FAULT_FILES=$(printf "$PWD/d/%s:" $targets) \
                FAULT_CALL=$call FAULT_N=$nth FAULT_ONCE=1 FAULT_COUNT_FILE=$PWD/count \
                run "$BLKIMG" "$@"
            [[ -f count ]] && (($(wc -l <count) >= nth)) || break
            [[ $status == 5 || $output == *"closing a file beside '"* ]] || fail "status $status with $call $nth of: $*"
            diff -r kept d || fail "$call $nth of: $*"
            said+=$output$'\n'
            failed=$((failed + 1))
        done
        [[ $status == 0 ]]
    done
    rm -rf d
    mv kept d
    ((failed >= 5)) || fail "only $failed faults: $*"
}

# scene: sources of 256 KiB, and the targets' directory.
late_scene() {
    need_unsanitized
    fill raw 0 256k 7
    fill raw2 0 256k 9
    blkimg convert -f raw -O qcow2 raw source
    mkdir d
    case $1 in old) fill d/a 0 4k 1 && fill d/b 0 4k 2 ;; esac
}

late_faults() {
    each_late_fault 'a b' create -q -f qcow2 -o data_file=d/b d/a 1M
    each_late_fault a dd -f raw -O raw bs=64k if=raw of=d/a
    each_late_fault a mirror source d/a
    each_late_fault 'a b' backup -q -f raw --disk raw=d/a --disk raw2=d/b
}

@test "a last close or a directory's sync that fails leaves no target" {
    late_scene new
    late_faults
    each_late_fault a convert -f raw -O qcow2 raw d/a
    [[ $said == *"(there is no 'd/a')"* ]]
}

@test "a last close or a directory's sync that fails leaves the old target" {
    late_scene old
    late_faults
    each_late_fault a convert -f raw -O qcow2 raw d/a
    [[ $said == *"('d/a' is what it was before)"* ]]
}

@test "a last close that fails in place leaves no image" {
    need_unsanitized
    fill raw 0 256k 7
    blkimg create -q -f qcow2 a 1M
    ln a b
    local nth
    for ((nth = 1; nth < 20; nth++)); do
        blkimg convert -f raw -O qcow2 raw b
        LD_PRELOAD="$TEST_TOOLS/fault-preload.so" FAULT_FILES="$PWD/a" FAULT_CALL=close FAULT_N=$nth \
            FAULT_ONCE=1 FAULT_COUNT_FILE="$PWD/count" run "$BLKIMG" convert -f raw -O qcow2 raw a
        [[ $status != 0 ]] || break
        assert_equal "$status" 5
        assert_output --partial "'a'"
        run -0 cmp -n 512 a /dev/zero
        rm count
    done
    ((nth > 3))
    run -0 blkimg compare -f raw -F qcow2 raw a
}

# --- several files ----------------------------------------------------------------------------

# make_pair: the image "d/p" with its data in "d/raw", and what the guest sees in "view".
make_pair() {
    mkdir d
    qemu-img create -q -f qcow2 -o data_file=d/raw d/p 3M
    qemu-io -c 'write -P 7 0 3M' d/p >/dev/null
    qemu-img convert -O raw d/p view
    qemu-img create -q -f qcow2 source 8M
    qemu-io -c 'write -P 1 0 8M' source >/dev/null
}

@test "an image and its data file are replaced together or not at all" {
    need qemu-img strace
    need_unsanitized
    make_pair
    chmod 640 d/p d/raw
    sha256sum d/p d/raw >sums
    cp -pr d kept
    local call nth failed=0
    for call in fsync linkat renameat2 unlinkat; do
        for nth in 1 2 3 4 5 6; do
            cp -p kept/* d/
            run strace -f -qq -o trace -e "trace=$call" -e "inject=$call:error=EIO:when=$nth" \
                "$BLKIMG" convert -O qcow2 -o data_file=d/raw source d/p
            grep -q INJECTED trace || break
            [[ $status == [15] ]]
            failed=$((failed + 1))
            # What was replaced could not be removed: all is new, and the message says what is left.
            [[ $call != unlinkat || $status == 1 ]] || break
            sha256sum --quiet -c sums
            assert_equal "$(ls -A d)" $'p\nraw'
        done
    done
    ((failed >= 8))
    assert_output --regexp "what it was before is '\.(p|raw)\.blkimg-[A-Za-z0-9]+' in the same directory"
    rm d/.??*
    blkimg convert -O qcow2 -o data_file=d/raw source d/p
    qemu-img compare -q source d/p
    assert_equal "$(ls -A d)" $'p\nraw'
    assert_equal "$(stat -c %a d/p d/raw)" $'640\n640'
}

@test "no data file stays behind without its image" {
    need qemu-img strace jq
    need_unsanitized
    make_pair
    mv d/raw view
    run strace -f -qq -o trace -e trace=linkat -e inject=linkat:error=EIO:when=2 \
        "$BLKIMG" convert -O qcow2 -o data_file=d/raw source d/q --output=json
    assert_equal "$status" 5
    assert_equal "$(ls -A d)" p
    run -0 jq -r '.close[] | select(.step == "publish") | "\(.node) \(.outcome)"' <<<"${output#*$'\n'}"
    assert_output $'d/raw skipped\nd/q failed'
}

@test "a name that is taken meanwhile does not cost the data file" {
    need qemu-img strace
    need_unsanitized
    make_pair
    sha256sum d/raw >sums
    run strace -f -qq -o trace -e trace=linkat -e inject=linkat:error=EEXIST:when=3 \
        "$BLKIMG" convert -O qcow2 -o data_file=d/raw source d/q
    assert_equal "$status" 5
    assert_output --partial "'d/q': a file of that name has appeared meanwhile"
    sha256sum --quiet -c sums
    assert_equal "$(ls -A d)" $'p\nraw'
}
