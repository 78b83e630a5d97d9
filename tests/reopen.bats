#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# Reopening as a transaction: every request at the bottom of a three-level chain fails in turn; what
# others do to bitmaps while an image is only read; what must not be reopened. tests/unit/test_reopen.c fails each
# level itself.

bats_require_minimum_version 1.5.0
load lib/common

setup() {
    common_setup
    need qemu-img python3 jq
    tool=$SRCDIR/tests/tools/mkimage.py
}

# The image of the tests: qcow2 over raw over the injector over a file.
chain() {
    echo "driver=qcow2,file.driver=raw,file.file.driver=blkdebug,file.file.config=$T/rules,file.file.image.driver=file,file.file.image.filename=$1"
}

# fails IOTYPE COMMAND...: the n-th such request fails, for each n. The session goes on afterwards: it must still
# read, and nothing is lost that the image calls stored.
fails() {
    local iotype=$1 n status command arguments=()
    shift
    for command; do
        arguments+=(-c "$command")
    done
    rm -rf after && cp scene after
    printf '[inject-error]\niotype = "none"\n' >rules
    "$BLKIMG" io "${arguments[@]}" after >out || fail "$(<out)"
    for ((n = 1; n < 300; n++)); do
        cp scene a
        printf '[inject-error]\niotype = "%s"\nnth = "%d"\nerrno = "5"\nstats = "%s"\n' "$iotype" $n "$T/stats" >rules
        status=0
        "$BLKIMG" io --image-opts "${arguments[@]}" -c 'read -P 2 512k 64k' "$(chain a)" >out 2>err || status=$?
        [[ $(sed -n 's/errors injected: //p' stats) != 0 ]] || break
        ((status != 0)) || fail "$iotype $n: status 0"
        grep -q 'read 65536/65536' out || [[ $iotype == read ]] || fail "$iotype $n: unusable: $(<out) $(<err)"
        refute grep -q 'verification failed' out
        FAULT_STATUS=$status FAULT_N=$n python3 "$SRCDIR/tests/tools/check_bitmaps.py" --image a \
            --before scene --after after --old old.raw . >verdict || fail "$iotype $n: $(<verdict)"
        faults=$((faults + 1))
    done
    ((status == 0)) || fail "without a fault: $(<err)"
}

@test "every request of a three-level chain fails in turn" {
    local iotype
    faults=0
    qemu-img create -q -f qcow2 scene 8M
    blkimg bitmap --add scene b0
    blkimg bitmap --add --disable -g 512 scene b1
    blkimg io -c 'write -P 2 512k 64k' scene >out
    qemu-img convert -O raw scene old.raw
    for iotype in write flush; do
        fails $iotype 'write -P 3 1M 64k' 'reopen -r' 'reopen -w' 'write -P 5 3M 1'
    done
    for iotype in write flush read; do
        fails $iotype 'reopen -r' 'reopen -w' 'write -P 4 2M 64k' 'reopen -r'
    done
    echo "# $faults faults tried" >&3
    ((faults > 40))
}

@test "commit through three levels: every call fails in turn, in the base and on top" {
    mkdir scene after
    qemu-img create -q -f qcow2 scene/base 8M
    blkimg bitmap --add scene/base b0
    blkimg io -c 'write -P 2 512k 64k' scene/base >out
    (cd scene && qemu-img create -q -f qcow2 -b base -F qcow2 mid &&
        qemu-img create -q -f qcow2 -b mid -F qcow2 top)
    blkimg io -c 'write -P 3 1M 64k' scene/mid >out
    blkimg io -c 'write -P 4 2M 100k' scene/top >out
    qemu-img convert -O raw scene/base old.raw
    cp -r scene/. after
    (cd after && "$BLKIMG" commit -q -b base top)
    python3 "$SRCDIR/tests/tools/faultloop.py" --files "$T/scene/base:$T/scene/mid:$T/scene/top" \
        --calls write,sync,truncate,close --strict --jobs 2 \
        --check "python3 $SRCDIR/tests/tools/check_bitmaps.py --image base --before $T/scene/base \
            --after $T/after/base --old $T/old.raw" -- "$BLKIMG" commit -q -b base top >loop ||
        fail "$(<loop)"
    echo "# $(tail -1 loop)" >&3
}

# meanwhile EDIT...: an image is opened read-only; somebody changes it; it is reopened for writing and written to. Leaves
# out, err and the image a.
meanwhile() {
    mkfifo commands
    "$BLKIMG" io -r a <commands >out 2>err 3>&- &
    local session=$!
    exec 7>commands
    echo 'read 0 1' >&7
    wait_for 10 grep -q 'read 1/1' out
    python3 "$tool" edit a "$@"
    {
        echo 'reopen -w'
        echo 'write 4M 64k'
    } >&7
    exec 7>&-
    status=0
    wait $session || status=$?
    rm commands
}

two_bitmaps() {
    rm -f a
    qemu-img create -q -f qcow2 a 8M
    blkimg bitmap --add a b0
    blkimg bitmap --add -g 4k a b1
    blkimg io -c 'write -P 2 512k 64k' a >out
}

extents() {
    blkimg map --bitmap "$1" --output=json a | jq -c '[.[] | [.start, .length]]'
}

@test "in memory and in the image: equal" {
    two_bitmaps
    meanwhile u8[end]=0
    assert_equal "$status" 0
    assert_equal "$(extents b0)" '[[524288,65536],[4194304,65536]]'
    assert_equal "$(extents b1)" '[[524288,65536],[4194304,65536]]'
}

@test "in memory and in the image: somebody has it in use" {
    two_bitmaps
    meanwhile 'bitmap[0].flags=old|1'
    assert_equal "$status" 0
    run -1 blkimg map --bitmap b0 a
    assert_equal "$(qemu-img info --output=json a | jq -c '."format-specific".data.bitmaps[0].flags')" '["in-use","auto"]'
    assert_equal "$(extents b1)" '[[524288,65536],[4194304,65536]]'
}

@test "in memory and in the image: another granularity, other flags" {
    two_bitmaps
    meanwhile 'bitmap[0].granularity_bits=17' 'bitmap[1].flags=0'
    assert_equal "$status" 0
    # The image's bits are those of the image's granularity.
    assert_equal "$(blkimg bitmap --list --output=json a | jq -c '[.[].granularity]')" '[131072,4096]'
    assert_equal "$(extents b0)" '[[1048576,131072],[4194304,131072]]'
    assert_equal "$(extents b1)" '[[524288,65536]]'
}

@test "in memory only: somebody removed it, and it does not come back" {
    two_bitmaps
    cp a more
    blkimg bitmap --remove a b1
    cp a less
    cp more a
    local directory
    directory=$(python3 "$tool" get less bitmaps.directory_bytes)
    # As if b1 had been removed: the directory ends behind b0.
    meanwhile bitmaps.count=1 "bitmaps.directory_bytes=$directory"
    assert_equal "$status" 0
    assert_equal "$(blkimg bitmap --list --output=json a | jq -c '[.[].name]')" '["b0"]'
    assert_equal "$(extents b0)" '[[524288,65536],[4194304,65536]]'
}

@test "in the image only: somebody made it, and it records from then on" {
    two_bitmaps
    local count size
    read -r count size < <(python3 "$tool" get a bitmaps.count bitmaps.directory_bytes | xargs)
    cp a both
    blkimg bitmap --remove both b1
    local less
    less=$(python3 "$tool" get both bitmaps.directory_bytes)
    python3 "$tool" edit a bitmaps.count=1 "bitmaps.directory_bytes=$less"
    meanwhile "bitmaps.count=$((count))" "bitmaps.directory_bytes=$((size))"
    assert_equal "$status" 0
    assert_equal "$(extents b0)" '[[524288,65536],[4194304,65536]]'
    assert_equal "$(extents b1)" '[[524288,65536],[4194304,65536]]'
}

@test "more than the bitmaps was changed: refused, and nothing is written" {
    two_bitmaps
    cp a expected
    python3 "$tool" edit expected size=old+512
    meanwhile size=old+512
    ((status != 0))
    grep -q "another program changed it" err
    cmp a expected
}

@test "what cannot become writable stays what it was, and usable" {
    two_bitmaps
    run -1 --separate-stderr blkimg io -r -U -c 'reopen -w' -c 'read -P 2 512k 1k' a
    [[ $stderr == *"force-share"* && $output == *"read 1024/1024"* ]]
    # Marked as corrupt.
    python3 "$tool" edit a 'incompatible=2'
    local before
    before=$(sha256sum <a)
    run -1 --separate-stderr blkimg io -r -c 'reopen -w' -c 'read -P 2 512k 1k' -c 'write 0 1' a
    [[ $stderr == *corrupt* && $output == *"read 1024/1024"* ]]
    assert_equal "$(sha256sum <a)" "$before"
    # Somebody else writes it.
    two_bitmaps
    need qemu-io
    coproc qemu-io -r a
    wait_for 10 test -n "$(head -c 1 <&"${COPROC[0]}")"
    run -1 --separate-stderr blkimg io -r -c 'reopen -w' -c 'read -P 2 512k 1k' -c 'write 0 1' a
    [[ $output == *"read 1024/1024"* ]]
    kill "$COPROC_PID"
}

@test "cache modes change with the bitmaps kept" {
    two_bitmaps
    blkimg io -c 'write 1M 1' -c 'reopen -c none' -c 'write 2M 1' -c 'reopen -c unsafe' -c 'write 3M 1' \
        -c 'reopen -c writethrough' -c 'write 4M 1' a >out
    assert_equal "$(extents b1)" '[[524288,65536],[1048576,4096],[2097152,4096],[3145728,4096],[4194304,4096]]'
}

@test "raw's window moves with a reopen" {
    local way
    truncate -s 2M raw
    qemu-io -f raw -c 'write -q -P 7 1M 64k' raw
    for way in qemu-io "$BLKIMG io"; do
        # shellcheck disable=SC2086 # two words
        run $way -f raw -c 'reopen -o offset=1M' -c length -c 'read -qP 7 0 64k' \
            -c 'reopen -o size=64k' -c length -c 'reopen -o offset=512k' -c length \
            -c 'read -qP 0 0 64k' -c 'reopen -r -o offset=1M,size=512k' -c length raw
        assert_success
        assert_output $'1 MiB\n64 KiB\n64 KiB\n512 KiB'
    done
    for way in offset=3M size=3M size=1000 offset=1M,size=1536k; do
        run -1 blkimg io -f raw -c "reopen -o $way" -c length raw
        [[ $output == *$'\n2 MiB' || $output == $'2 MiB\n'* ]]
    done
}

@test "an option that does not change is no change" {
    qemu-img create -q -f qcow2 base 1M
    qemu-img create -q -f qcow2 -b base -F qcow2 q 1M
    local options=driver=qcow2,node-name=top,file.driver=file,file.filename=q,file.locking=auto
    local unchanged
    for unchanged in driver=qcow2 node-name=top file.driver=file file.filename=q file.locking=auto \
        backing.driver=qcow2 auto-read-only=on "$options"; do
        run -0 blkimg io -c "reopen -o $unchanged" -c 'write -q 0 512' --image-opts "$options"
        refute_output
    done
    for unchanged in driver=raw node-name=x file.filename=base file.locking=off \
        file.nonsense=1 backing.driver=raw; do
        run -1 blkimg io -c "reopen -o $unchanged" --image-opts "$options"
        assert_output --partial "Cannot change the option '${unchanged%%=*}'"
    done
    # What changed last is what counts.
    run -1 blkimg io -c 'reopen -o size=64k' -c 'reopen -o size=64k,driver=raw' \
        -c 'reopen -o driver=qcow2' --image-opts driver=raw,file.filename=base
    assert_output --partial "option 'driver'"
}

@test "the driver's options change with a reopen, or are refused by name" {
    qemu-img create -q -f qcow2 q 64M
    run -0 blkimg io -c 'reopen -o cache-size=512k' -c 'write -q -P 1 0 8M' \
        -c 'reopen -r -o l2-cache-size=64k' -c 'read -q -P 1 0 8M' q
    refute_output
    local option
    for option in l2-cache-entry-size=512:l2-cache-entry-size cache-size=1M,l2-cache-size=2M:cache-size \
        data-file.filename=x:data-file nonsense=1:nonsense file.filename=x:file.filename; do
        run -1 --separate-stderr blkimg io -c "reopen -r -o ${option%:*}" -c 'write -q 0 512' q
        # Nothing has changed: it can still be written.
        [[ $stderr == *"${option#*:}"* && $(wc -l <<<"$stderr") == 1 ]] || fail "$option: $stderr"
    done
    qemu-img check -q q
}
