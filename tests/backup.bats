#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# "backup": its options, what it refuses, and what it says about the two files when it fails.

bats_require_minimum_version 1.5.0
load lib/common

setup() {
    common_setup
    need qemu-img jq
    blkimg create -q -f qcow2 disk 8M
    blkimg io -c 'write -P 1 0 2M' disk >out
}

# refused TEXT ARG...: status 1, the text in the first line on stderr, no change to what is there.
refused() {
    local text=$1 before
    shift
    before=$(sha256sum -- * | grep -v ' out$')
    run -1 --separate-stderr blkimg backup "$@"
    [[ ${stderr%%$'\n'*} == *"$text"* ]] || fail "$stderr"
    assert_equal "$output" ''
    assert_equal "$(sha256sum -- * | grep -v ' out$')" "$before"
}

dirty_bytes() {
    blkimg map --bitmap "$2" --output=json "$1" | jq '[.[].length] | add // 0'
}

full_and_write() {
    blkimg backup --new-bitmap=b disk full
    blkimg io -c 'write -P 2 1M 100k' disk >out
}

in_use() {
    run -137 blkimg io -c "write -P 9 0 512" -c 'sigraise 9' disk
}

@test "full, silent, the disk is not touched" {
    local before
    before=$(sha256sum <disk)
    run -0 --separate-stderr blkimg backup --verify disk full
    assert_equal "$output$stderr" ''
    qemu-img compare disk full
    qemu-img check -q full
    assert_equal "$(sha256sum <disk)" "$before"
}

@test "an incremental backup holds what its bitmap marks, and nothing else" {
    full_and_write
    blkimg backup --bitmap=b --base=full disk inc
    qemu-img compare disk inc
    assert_equal "$(qemu-img map --output=json inc | jq -c '[.[] | select(.depth == 0) | .start, .length]')" \
        '[1048576,131072]'
    assert_equal "$(dirty_bytes disk b)" 0
    # The base lies beside it, and both can be moved together.
    assert_equal "$(qemu-img info --output=json inc | jq -r '."backing-filename"')" full
    mkdir other && mv full inc other/
    qemu-img compare disk other/inc
}

@test "--bitmap-sync" {
    full_and_write
    blkimg backup --bitmap=b --base=full --bitmap-sync=never disk one
    assert_equal "$(dirty_bytes disk b)" 131072
    # It still counts from the full one.
    blkimg io -c 'write -P 3 4M 64k' disk >out
    blkimg backup --bitmap=b --base=full --bitmap-sync=on-success disk two
    qemu-img compare disk two
    assert_equal "$(dirty_bytes disk b)" 0
    refused '--bitmap-sync=always needs --keep-failed' --bitmap=b --bitmap-sync=always disk three
}

@test "bitmaps of other granularities than the cluster size, alone and together" {
    local granularity cluster
    for granularity in 512 4k 2M; do
        blkimg bitmap --add -g "$granularity" disk "g$granularity"
    done
    for cluster in 512 64k 2M; do
        rm -f full inc
        blkimg backup --mode=full --bitmap=g512 --bitmap=g4k --bitmap=g2M disk full
        blkimg io -c 'write -P 4 1000 1' -c 'write -P 5 3M 700k' -c 'write -z 100k 5k' disk >out
        for granularity in 512 4k 2M; do
            rm -f inc
            blkimg backup --bitmap="g$granularity" --bitmap-sync=never --base=full --verify \
                -o "cluster_size=$cluster" disk inc
            qemu-img compare disk inc
        done
        rm -f inc
        blkimg backup --bitmap=g512 --bitmap=g2M --bitmap-sync=never --base=full -c \
            -o "cluster_size=$cluster" disk inc
        qemu-img compare disk inc
    done
}

@test "a missing bitmap, one in use, and --on-broken-bitmap=full" {
    refused "'disk': Dirty bitmap 'b' not found" --bitmap=b disk new
    [[ $stderr == *"the source and its bitmaps are as they were, there is no target 'new'"* ]]
    run -0 --separate-stderr blkimg backup --bitmap=b --on-broken-bitmap=full disk full
    assert_equal "${lines[0]}" \
        "disk: making a full backup: bitmap 'b' does not exist; it starts over with this backup"
    assert_equal "$stderr" ""
    qemu-img compare disk full
    blkimg io -c 'write -P 3 3M 64k' disk >out
    blkimg backup --bitmap=b --base=full disk inc
    qemu-img compare disk inc

    in_use
    refused "bitmap 'b' of 'disk'" --bitmap=b --base=inc disk new
    [[ $stderr == *"blkimg bitmap --remove"* ]]
    run -0 --separate-stderr blkimg backup --bitmap=b --base=inc --on-broken-bitmap=full disk again
    assert_equal "${lines[0]}" "disk: making a full backup: bitmap 'b' was in use when the disk was \
last written, so it may have missed writes; it starts over with this backup"
    qemu-img compare disk again
    assert_equal "$(qemu-img info --output=json again | jq '."backing-filename"')" null
    blkimg io -c 'write -P 4 4M 64k' disk >out
    blkimg backup --bitmap=b --base=again disk inc2
    qemu-img compare disk inc2
}

@test "a base is known by its id" {
    full_and_write
    blkimg backup disk stranger
    qemu-img convert -O qcow2 disk foreign
    refused "base 'stranger' for 'disk': it is not the backup" --bitmap=b --base=stranger disk new
    refused "base 'foreign': it does not say which backup it is" --bitmap=b --base=foreign disk new
    refused "Could not open 'none'" --bitmap=b --base=none disk new
    refused 'a full backup has no --base' --base=full disk new
    refused "it is also the target, and would be overwritten" --bitmap=b --base=full disk full
    refused 'given once for each disk' --bitmap=b --base=full --base=full disk new
    blkimg backup --bitmap=b --bitmap-sync=never --base=stranger --trust disk trusted
    # What QEMU rewrites keeps its id.
    qemu-img bitmap --add full theirs
    qemu-img bitmap --add disk theirs
    qemu-io -c 'write -P 7 5M 64k' disk >out
    blkimg backup --bitmap=b --base=full disk inc
    qemu-img compare disk inc
}

@test "a bitmap that was cleared, made anew or disabled continues nothing" {
    local change
    full_and_write
    for change in "--clear disk b" "--remove disk b"; do
        rm -f full
        blkimg bitmap --enable disk b
        blkimg backup --mode=full --bitmap=b disk full
        blkimg io -c 'write -P 3 1M 64k' disk >out
        # shellcheck disable=SC2086 # its arguments
        blkimg bitmap $change
        [[ $change != --remove* ]] || blkimg bitmap --add disk b
        refused "base 'full' for 'disk': it is not the backup" --bitmap=b --base=full disk new
    done
}

@test "a disabled bitmap misses writes, so no backup builds on it" {
    full_and_write
    blkimg bitmap --disable disk b
    refused "bitmap 'b' of 'disk': it is disabled" --bitmap=b --base=full disk new
    refused "bitmap 'b' of 'disk': it is disabled" --mode=full --bitmap=b disk new
    run -0 blkimg backup --bitmap=b --on-broken-bitmap=full disk new
    assert_equal "${lines[0]}" "disk: making a full backup: bitmap 'b' is disabled, so it has missed \
writes; it starts over with this backup"
    blkimg io -c 'write -P 9 2M 64k' disk >out
    blkimg backup --bitmap=b --base=new disk inc
    qemu-img compare disk inc
}

# changes: each change of the backup "whole" makes it useless as a base.
changes() {
    local change
    for change in 'io -c "write -q -P 9 0 512" full' 'io -c "discard -q 0 1M" full' 'resize -q full 16M' \
        'convert -n -O qcow2 disk full' 'snapshot -a s full' 'io -c "write -q -c -P 9 0 64k" full'; do
        cp whole full
        eval "blkimg $change"
        refused "base 'full': it does not say which backup it is" --bitmap=b --base=full disk new
        run -1 blkimg backup --list-chain=full
        assert_output --partial 'is not a backup, or was changed since'
    done
}

@test "a backup that was changed is no base any more" {
    full_and_write
    cp full whole
    qemu-img snapshot -c s whole
    changes
    # QEMU writes the id behind the first sector.
    qemu-img bitmap --add whole theirs
    qemu-img bitmap --remove whole theirs
    changes
    cp whole full
    # What does not change the content changes nothing.
    blkimg snapshot -c t full
    blkimg snapshot -d t full
    blkimg bitmap --add full x
    blkimg amend -o lazy_refcounts=on full
    blkimg io -r -c 'read -q 0 1M' full
    blkimg backup --bitmap=b --base=full disk inc
    qemu-img compare disk inc
}

@test "a write that cannot take the id away fails, and has changed nothing" {
    full_and_write
    cp full whole
    printf '[inject-error]\niotype = "write"\nnth = "1"\n' >rules
    run -5 blkimg io -c 'write -P 9 0 64k' blkdebug:rules:full
    qemu-img compare full whole
    blkimg backup --bitmap=b --base=full disk inc
}

@test "commit and rebase pass ids on" {
    full_and_write
    blkimg backup --bitmap=b --base=full disk inc
    blkimg io -c 'write -P 5 3M 64k' disk >out
    blkimg backup --bitmap=b --base=inc disk inc2
    # Retention: the oldest increment goes into the full backup.
    blkimg commit -q -d inc
    blkimg rebase -b full -F qcow2 inc2
    run -0 blkimg backup --list-chain=inc2
    assert_output --partial 'full: ok'
    qemu-img compare disk inc2
    blkimg io -c 'write -P 6 4M 64k' disk >out
    blkimg backup --bitmap=b --base=inc2 disk inc3
    qemu-img compare disk inc3
    blkimg rebase -b '' inc3
    run -0 blkimg backup --list-chain=inc3
    assert_output --partial 'full: ok'
}

@test "a target that exists is no larger than the source, and an overlay is empty" {
    full_and_write
    qemu-img create -q -f qcow2 -b full -F qcow2 over
    cp over empty
    qemu-io -c 'write -P 99 5M 64k' over >out
    refused 'holds data of its own' -n --bitmap=b disk over
    blkimg backup -n --bitmap=b disk empty
    qemu-img compare disk empty
    qemu-img create -q -f qcow2 large 1G
    qemu-io -c 'write -P 99 100M 64k' large >out
    cp large before
    refused "it is larger than the source" -n --mode=full disk large
    [[ $stderr == *"and so is 'large'"* ]]
    cmp large before
}

@test "a partial backup does not pass for a full one" {
    qemu-img bitmap --add disk theirs
    qemu-io -c 'write -P 3 1M 64k' disk >out
    blkimg backup --bitmap=theirs disk part
    run -1 blkimg backup --list-chain=part
    assert_output --partial 'its parent is missing'
    qemu-img create -q -f qcow2 -b disk -F qcow2 over
    blkimg backup --mode=top over top
    run -1 blkimg backup --list-chain=top
    assert_output --partial 'its parent is missing'
    # Put on what it was a layer of it is whole, though that has no id.
    qemu-img rebase -u -b disk -F qcow2 top
    run -1 blkimg backup --list-chain=top
    assert_output --partial 'on an unknown image: ok'
    qemu-img compare over top
    # With nothing below it the layer is the disk.
    blkimg backup --mode=top disk all
    run -0 blkimg backup --list-chain=all
}

@test "a target that was not touched is not called bad" {
    full_and_write
    cp full before
    run -1 --separate-stderr blkimg backup none full
    [[ $stderr == *"and so is 'full'"* ]]
    run -1 --separate-stderr blkimg backup --bitmap=none disk full
    [[ $stderr == *"and so is 'full'"* ]]
    cmp full before
}

@test "a base whose name has a colon" {
    full_and_write
    mv full full-12:00.qcow2
    blkimg backup --bitmap=b --base="$PWD/full-12:00.qcow2" disk "$PWD/inc"
    qemu-img compare disk inc
    run -0 qemu-img info inc
    assert_line --partial 'backing file: ./full-12:00.qcow2'
}

@test "what came under the target's name meanwhile is not removed" {
    fill disk.raw 0 8M 3
    spawn "$BLKIMG" backup -f raw -r 4M -o data_file=data.raw disk.raw new
    sleep 0.7
    echo precious >new
    finish
    ((status != 0))
    assert_equal "$(<new)" precious
}

@test "four bitmaps are remembered, however long the name of the backing file" {
    local folder i
    folder=$(printf 'x%.0s' {1..200})
    folder=$folder/$folder/$folder
    mkdir -p "$folder"
    mv disk "$folder/low"
    qemu-img create -q -f qcow2 -b "$PWD/$folder/low" -F qcow2 disk
    for i in 1 2 3 4 5; do
        blkimg backup "--new-bitmap=b$i" disk "f$i"
    done
    blkimg io -c 'write -P 2 1M 100k' disk >out
    blkimg backup --bitmap=b2 --base=f2 disk inc
    qemu-img compare disk inc
    # The one used longest ago is not known any more, which is refused.
    run -1 --separate-stderr blkimg backup --bitmap=b1 --base=f1 disk other
    [[ $stderr == *"it is not the backup"* ]]
    blkimg backup --bitmap=b1 --base=f1 --trust disk other
    qemu-img compare disk other
}

@test "--new-bitmap" {
    blkimg backup --new-bitmap=b disk full
    refused 'Bitmap already exists: b' --new-bitmap=b disk other
    refused "raw" -f raw --new-bitmap=b full other
    blkimg io -c 'write -P 2 1M 64k' disk >out
    blkimg backup --bitmap=b --base=full --new-bitmap=c disk inc
    blkimg io -c 'write -P 2 2M 64k' disk >out
    blkimg backup --bitmap=c --base=inc disk inc2
    qemu-img compare disk inc2
}

@test "a raw source" {
    qemu-img convert -O raw disk disk.raw
    blkimg backup -f raw --checksum disk.raw full >digest
    qemu-img compare disk full
    assert_equal "$(cut -d' ' -f1 <digest)" "$(blkimg checksum disk | cut -d' ' -f1)"
    refused 'layers' -f raw --mode=top disk.raw new
    refused 'raw' -f raw --bitmap=b disk.raw new
    refused 'raw' -f raw --bitmap=b --on-broken-bitmap=full disk.raw new
}

@test "raw targets hold whole disks only" {
    local format
    for format in raw file; do
        blkimg backup -O "$format" --verify disk full.raw
        qemu-img compare -f qcow2 -F raw disk full.raw
    done
    full_and_write
    refused 'partial backup' --bitmap=b -O raw disk inc.raw
    refused 'partial backup' --bitmap=b --base=full -O raw disk inc.raw
    # One that is kept up to date in place, which only the caller can know.
    refused "target 'full.raw': it does not say which backup it is" -n -O raw --bitmap=b disk full.raw
    blkimg backup -n -O raw --trust --bitmap=b disk full.raw
    qemu-img compare -f qcow2 -F raw disk full.raw
}

@test "-n: the last backup brought up to date, an empty overlay of it" {
    full_and_write
    qemu-img create -q -f qcow2 -b full -F qcow2 overlay
    blkimg backup -n --bitmap=b --bitmap-sync=never disk overlay
    qemu-img compare disk overlay
    blkimg backup --list-chain=overlay >out
    refused "overwriting 'full', which is backup" -n --bitmap=b disk full
    rm overlay
    blkimg backup -n --bitmap=b --verify disk full
    qemu-img compare disk full
    blkimg io -c 'write -P 5 6M 64k' disk >out
    blkimg backup --bitmap=b --base=full disk inc
    qemu-img compare disk inc
    refused "target 'full' for 'disk': it is not the backup" --force -n --bitmap=b disk full
    rm inc
    refused "-o is for a new target" -n -o cluster_size=4k disk full
    refused "exclude each other" -n --bitmap=b --base=full disk inc
    # Options in place of a name.
    blkimg backup -n --target-image-opts disk driver=qcow2,file.filename=full
    qemu-img compare disk full
}

@test "-n: a target that failed half way does not say any more that it is a backup" {
    full_and_write
    cp full first
    local nth changed=0
    for nth in {1..14}; do
        printf '[inject-error]\niotype = "write"\nnth = "%d"\n' "$nth" >rules
        cp first full
        run --separate-stderr blkimg backup -n --bitmap-sync=never --target-image-opts --bitmap=b disk \
            driver=qcow2,file.driver=blkdebug,file.config=rules,file.image.filename=full
        ((status != 0)) || break
        [[ $stderr == *"do not use the target"* ]]
        if ! qemu-img compare -q first full; then
            changed=$((changed + 1))
            run -1 blkimg backup --list-chain=full
            run -1 --separate-stderr blkimg backup --bitmap=b --base=full disk inc
            [[ $stderr == *"does not say which backup it is"* ]]
            # In place it can still be repaired, for the bitmap marks what was to be written.
            blkimg backup -n --trust --bitmap-sync=never --bitmap=b disk full
            qemu-img compare -q disk full
        fi
    done
    ((changed > 0 && status == 0))
}

@test "a target that is smaller, locked, the source, or on no folder" {
    full_and_write
    qemu-img create -q -f qcow2 small 4M
    refused "it is smaller than the source" -n disk small
    [[ $stderr == *"and so is 'small'"* ]]
    qemu-img create -q -f qcow2 busy 8M
    mkfifo commands
    "$BLKIMG" io busy <commands >said 2>&1 3>&- &
    local io=$!
    exec 7>commands
    echo 'write 0 512' >&7
    wait_for 10 grep -q wrote said
    rm commands
    run -1 --separate-stderr blkimg backup -n disk busy 7>&-
    [[ $stderr == *"busy"*"lock"*"and so is 'busy'"* ]]
    run -1 --separate-stderr blkimg backup disk busy 7>&-
    [[ $stderr == *"busy"*"lock"* ]]
    exec 7>&-
    wait "$io"
    refused "same file" disk disk
    refused "nowhere" disk nowhere/target
    refused "backing" --bitmap=b --base=full -o backing_file=small disk new
    refused "size" -o size=1M disk new
}

@test "a disk that shrank or grew since" {
    full_and_write
    blkimg resize -q --shrink disk 5M
    blkimg backup --bitmap=b --base=full disk inc
    qemu-img compare disk inc
    blkimg resize -q disk 9M
    blkimg backup --bitmap=b --base=inc disk inc2
    qemu-img compare disk inc2
    qemu-img create -q -f qcow2 old 8M
    refused "it is smaller than the source" -n disk old
}

@test "a full disk: nothing that looks like a backup, and the bitmap stands" {
    small_tmpfs 1m space
    full_and_write
    blkimg io -c 'write -P 6 2M 4M' disk >out
    local before
    before=$(sha256sum <disk)
    run -1 --separate-stderr blkimg backup --bitmap=b disk space/inc
    [[ $stderr == *"No space left"*"the source and its bitmaps are as they were, there is no target 'space/inc'"* ]]
    assert_equal "$(ls -A space)" ''
    assert_equal "$(sha256sum <disk)" "$before"
    # One that was there stays.
    echo keep >space/inc
    run -1 --separate-stderr blkimg backup --bitmap=b disk space/inc
    [[ $stderr == *"and so is 'space/inc'"* ]]
    assert_equal "$(<space/inc)" keep
    blkimg backup --bitmap=b --base=full disk inc
    qemu-img compare disk inc
}

@test "--keep-failed" {
    full_and_write
    blkimg backup --keep-failed --verify --bitmap=b --base=full disk inc
    [[ ! -e inc.partial ]]
    qemu-img compare disk inc
    refused "'full': it exists" --keep-failed disk full
    touch other.partial
    refused "'other.partial': it exists" --keep-failed disk other
    refused "--keep-failed is for a new target" --keep-failed -n disk full
}

@test "signals" {
    full_and_write
    blkimg io -c 'write -P 2 0 8M' disk >out
    local before signal
    before=$(sha256sum <disk)
    for signal in INT:130 TERM:143 HUP:129 KILL:137; do
        spawn "$BLKIMG" backup -r 1M --bitmap=b --base=full disk inc
        sleep 0.3
        kill "-${signal%:*}" "$pid"
        finish
        assert_equal "$status" "${signal#*:}"
        [[ ! -e inc ]]
        assert_equal "$(sha256sum <disk)" "$before"
    done
    blkimg backup --bitmap=b --base=full disk inc
    qemu-img compare disk inc
}

@test "--verify finds a difference" {
    fill disk.raw 0 8M 3
    # What is not so when it is compared as it was when it was copied.
    spawn "$BLKIMG" backup -U -f raw -r 4M --verify disk.raw new
    sleep 0.5
    fill disk.raw 0 512 7
    finish
    assert_equal "$status" 1
    [[ $output == *"verifying 'new' from offset 0: its content is not what was written"* ]]
    [[ $output == *"there is no target 'new'"* ]]
    [[ ! -e new ]]
    spawn "$BLKIMG" backup -U -f raw -r 4M --verify --keep-failed disk.raw new
    sleep 0.5
    fill disk.raw 0 512 8
    finish
    assert_equal "$status" 1
    [[ $output == *"the incomplete target is 'new.partial'"* ]]
}

@test "the manifest" {
    full_and_write
    blkimg backup --bitmap=b --base=full --output=json --verify --checksum disk inc >m
    assert_equal "$(jq -c '[.status, .disks[0].mode, .disks[0].bytes, .disks[0].base, .disks[0].verified,
        .disks[0]."target-complete"]' m)" '[0,"bitmap",131072,"full",true,true]'
    assert_equal "$(jq -r '.disks[0].digest' m)" "$(blkimg checksum disk | cut -d' ' -f1)"
    jq -e '[.disks[0]."target-close"[], .disks[0]."source-close"[]] | all(.outcome == "ok")' m
    blkimg backup --list-chain=inc --output=json --verify >c
    assert_equal "$(jq -r '.[0].id, .[0].parent, .[0].digest' c)" \
        "$(jq -r '.disks[0].id, .disks[0].parent, .disks[0].digest' m)"
    assert_equal "$(jq -r '.[1].id' c)" "$(jq -r '.disks[0].parent' m)"
    # A failure is one too.
    run -1 --separate-stderr blkimg backup --bitmap=b --base=full --output=json disk new
    assert_equal "$(jq -c '[.status, .disks[0]."target-complete"]' <<<"$output")" '[1,false]'
}

@test "--list-chain finds what is wrong" {
    full_and_write
    blkimg backup --bitmap=b --base=full disk inc
    cp full first
    blkimg io -c 'write -P 2 2M 64k' disk >out
    blkimg backup --bitmap=b --base=inc disk inc2
    run -0 --separate-stderr blkimg backup --list-chain=inc2
    assert_equal "${#lines[@]}" 3
    # Another backup of the same name.
    refused "overwriting 'full', which is backup" disk full
    blkimg backup --force disk full
    run -1 --separate-stderr blkimg backup --list-chain=inc2
    [[ $stderr == "blkimg: 'inc': the file below it is not its parent: it was made on backup "* ]]
    mv first full
    run -0 blkimg backup --list-chain=inc2
    rm full
    run -1 --separate-stderr blkimg backup --list-chain=inc2
    [[ $stderr == *full*"No such file"* ]]
}

@test "options that do not go together" {
    refused 'expects a source and a target' disk
    refused "--mode: 'half' is none of full, top, bitmap" --mode=half disk new
    refused "--mode: 'incremental' is none of full, top, bitmap" --mode=incremental disk new
    refused "--bitmap-sync: 'yes' is none of on-success, never, always" --bitmap-sync=yes disk new
    refused "--on-broken-bitmap: 'x' is none of fail, full" --on-broken-bitmap=x disk new
    refused "--on-cbw-error: 'x' is none of break-guest-write, break-snapshot" --on-cbw-error=x disk new
    refused '--mode=bitmap needs --bitmap' --mode=bitmap disk new
    refused "-F needs --base" -F qcow2 disk new
    refused 'given twice' --bitmap=b --bitmap=b disk new
    refused '--guest-io excludes -c' --guest-io=x -c disk new
    refused '--target-image-opts needs -n' --target-image-opts disk driver=qcow2,file.filename=new
    refused '-m takes' -m 17 disk new
    refused 'takes no source' --list-chain=disk disk
    refused 'nothing' -O nothing disk new
}

# examples: the commands of the manual's EXAMPLES, without line breaks.
examples() {
    sed -n '/^\.Sh EXAMPLES/,/^\.Sh SEE/p' "$SRCDIR/man/blkimg-backup.1" |
        sed -n '/^\.Bd -literal/,/^\.Ed/{/^\./d;p}' | sed -e ':more' -e '/\\e$/{N;s/\\e\n *//;bmore}'
}

@test "the manual's examples" {
    local command count=0
    blkimg io -c 'write -P 1 0 1M' disk >out
    mv disk disk.qcow2
    blkimg create -q -f qcow2 root.qcow2 1M
    blkimg create -q -f qcow2 data.qcow2 1M
    while read -r command; do
        run -0 --separate-stderr bash -c "blkimg() { '$BLKIMG' \"\$@\"; }; $command"
        assert_equal "$command: $stderr" "$command: "
        # The disk goes on after each backup.
        [[ $command != *' disk.qcow2 '* ]] ||
            { cp disk.qcow2 "${command##* }.was"; blkimg io -c "write -P $((++count)) ${count}M 64k" disk.qcow2 >out; }
    done < <(examples)
    ((count == 3))
    qemu-img compare -f raw -F qcow2 restored.raw tuesday.qcow2.was
    qemu-img compare wednesday.qcow2 wednesday.qcow2.was
    run -0 blkimg backup --list-chain=wednesday.qcow2
    assert_equal "${#lines[@]}" 2
}
