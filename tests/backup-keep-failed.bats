# SPDX-License-Identifier: MIT
# backup --keep-failed: the target is made as NAME.partial and renamed when it is complete.

load lib/common

setup() {
    common_setup
    fill raw 0 1M 5
    fill raw2 0 1M 6
    mkdir d
}

keep_failed() {
    "$BLKIMG" backup -q -f raw --keep-failed "$@"
}

@test "a file system without RENAME_NOREPLACE" {
    need strace
    need_unsanitized
    strace -f -qq -o trace -e trace=renameat2,linkat -e inject=renameat2:error=EINVAL \
        -e inject=linkat:error=EPERM:when=2+ "$BLKIMG" backup -q -f raw --keep-failed raw d/a
    assert_equal "$(ls -A d)" a
    run -0 blkimg compare -f raw -F qcow2 raw d/a
}

@test "FUSE" {
    need_root
    need fuse2fs
    truncate -s 20M ext4
    mke2fs -q -t ext4 ext4
    fuse2fs ext4 d 2>/dev/null 3>&- && mountpoint -q d || skip 'no FUSE here'
    rmdir d/lost+found
    keep_failed raw d/a
    assert_equal "$(ls -A d)" a
    run -0 blkimg compare -f raw -F qcow2 raw d/a
}

@test "a full disk: what could not be kept is named, with the reason" {
    small_tmpfs 512k full
    run -1 keep_failed raw full/a
    assert_line --regexp "No space left on device \(so 'full/a.partial' could not be kept\)$"
    assert_equal "$(ls -A full)" ""
    # A raw one holds what was written.
    run -1 keep_failed -O raw raw full/a
    assert_line --partial "the incomplete target is 'full/a.partial'"
    assert_equal "$(ls -A full)" a.partial
}

@test "several disks get their names together, or all keep .partial" {
    need_unsanitized
    # Two links make NAME.partial, two more the names.
    LD_PRELOAD="$TEST_TOOLS/fault-preload.so" FAULT_FILES="$PWD/d/b:$PWD/d/b.partial" FAULT_CALL=link \
        FAULT_N=4 FAULT_ONCE=1 run -5 "$BLKIMG" backup -q -f raw --keep-failed --disk raw=d/a --disk raw2=d/b
    assert_equal "$(ls -A d)" $'a.partial\nb.partial'
    assert_output --partial "the incomplete target is 'd/a.partial'"
    assert_output --partial "the incomplete target is 'd/b.partial'"
    run -0 blkimg compare -f raw -F qcow2 raw d/a.partial
}
