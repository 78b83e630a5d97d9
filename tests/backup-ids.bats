#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# A chain of backups is read only where it fits: each overlay through the backup that it was made on. Every command that
# reads content refuses another, names both files and both ids, and reads it with --trust.

bats_require_minimum_version 1.5.0
load lib/common
load lib/chain

setup() {
    common_setup
    chain_setup
}

parent_of() {
    blkimg info --output=json "$1" | jq -r '.backup.parent'
}

# Each line is a command that reads what "inc" shows; @ is the image.
readers() {
    cat <<'END'
convert -O raw @ new
convert -O qcow2 -n @ existing
convert -O qcow2 -B full -F qcow2 @ new
dd if=@ of=new
checksum @
compare @ disk
compare disk @
map @
measure -O raw @
io -r -c "read 0 64k" @
io -c "write 0 64k" @
bench -c 1 @
commit @
commit -d @
rebase -b "" @
rebase -b disk -F qcow2 @
resize @ 2M
amend -o lazy_refcounts=on @
mirror @ new
mirror --mode=top @ new
backup @ new
backup --mode=top @ new
backup --bitmap=b --base=@ disk new
create -q -f qcow2 -b @ -F qcow2 new
close-check @
pivot --to=full @
END
}

# refused_by_all IMAGE TEXT: no reader takes it, each says why in one line, and nothing has changed.
refused_by_all() {
    local image=$1 text=$2 command count=0 before
    before=$(find . -type f -exec sha256sum {} +)
    while read -r command; do
        eval "run --separate-stderr blkimg ${command//@/$image}"
        ((status != 0 && status < 128)) || fail "$command: status $status, $output$stderr"
        [[ $command == pivot* && $stderr == *"it has no backing file"* ||
            $stderr == *"$text"* && ${#stderr_lines[@]} -le 3 ]] || fail "$command: $stderr"
        count=$((count + 1))
    done < <(readers)
    assert_equal "$(find . -type f -exec sha256sum {} +)" "$before"
    ((count > 20))
}

@test "a base that was overwritten by another backup: no command reads its overlay" {
    qemu-img create -q -f qcow2 existing 1M
    mv full first
    blkimg backup disk full
    local other
    other=$(id_of full)
    refused_by_all inc "'inc' was made on backup $FULL, but its backing file 'full' is backup $other"
    # Whoever trusts it reads it.
    blkimg convert --trust -O raw inc raw
    run -0 blkimg checksum --trust inc
    blkimg compare --image-opts driver=qcow2,trust=on,file.filename=inc driver=qcow2,file.filename=disk
    run -0 blkimg io -r --trust -c 'read -P 2 256k 64k' inc
    # The way back: the base that it was made on, whatever that is called.
    blkimg rebase -u -b first -F qcow2 inc
    qemu-img compare disk inc
    blkimg convert -O raw inc new
    qemu-img compare -f qcow2 -F raw inc new
}

@test "a base that was written to: also through another backing chain" {
    qemu-img create -q -f qcow2 existing 1M
    blkimg io -c 'write -P 9 0 64k' full >out
    refused_by_all inc "'inc' was made on backup $FULL, but its backing file 'full' has no id"
    qemu-img create -q -f qcow2 -b inc -F qcow2 over
    run -1 --separate-stderr blkimg convert -O raw over new
    assert_equal "${#stderr_lines[@]}" 1
    [[ $stderr == *"backing file of 'over': 'inc' was made on backup $FULL, but its backing file 'full'"* ]]
    run -1 blkimg io -r -c 'open -o backing.driver=qcow2,backing.file.filename=full inc'
    assert_output --partial 'the chain does not fit'
}

@test "a partial backup without its base is not a disk" {
    qemu-img create -q -f qcow2 existing 1M
    blkimg io -c 'write -P 3 128k 64k' disk >out
    blkimg backup --bitmap=b disk part
    # What is below is not there, so what names only the base is left out.
    refused_by_all part "'part' holds only what differs from backup $INC, and has no backing file"
    run -0 blkimg info part
    assert_line --partial 'partial: yes'
    assert_line "made on backup: $INC"
    assert_line --partial 'warning: this is only part of a disk'
    assert_equal "$(blkimg info --output=json part | jq -c '.backup | [.parent, .partial]')" "[\"$INC\",true]"
    blkimg convert --trust -O raw part raw
    blkimg rebase -u -b inc -F qcow2 part
    blkimg convert -O raw part new
    qemu-img compare -f qcow2 -F raw disk new
    run -0 blkimg backup --list-chain=part
    # Without a backing file by the options, too.
    run -1 --separate-stderr blkimg checksum 'json:{"driver":"qcow2","backing":null,"file":{"driver":"file","filename":"part"}}'
    [[ $stderr == *"holds only what differs from backup $INC"* ]]
    # An own layer whose base has no id says that it is a part.
    qemu-img create -q -f qcow2 -b disk -F qcow2 over
    blkimg backup --mode=top over top
    run -1 --separate-stderr blkimg checksum top
    [[ $stderr == *"'top' holds only what differs from another image, and has no backing file"* ]]
    blkimg rebase -u -b disk -F qcow2 top
    blkimg compare over top
}

@test "what a failed run has kept of a whole disk is not a disk" {
    blkimg resize -q disk 8M
    blkimg io -c 'write -P 7 0 8M' disk >out
    spawn "$BLKIMG" backup --keep-failed -r 1M disk new
    sleep 0.5
    kill -TERM "$pid"
    finish
    assert_equal "$status" 143
    assert_file_contains spawn.err "the incomplete target is 'new.partial'"
    run -1 --separate-stderr blkimg convert -O raw new.partial raw
    [[ $stderr == *"holds only what differs from another image"* ]]
    run -0 blkimg info new.partial
    assert_line --partial 'partial: yes'
}

@test "info, check, snapshot, bitmap and --list-chain need no chain that fits" {
    local other
    mv full first
    blkimg backup disk full
    other=$(id_of full)
    run -0 --separate-stderr blkimg info inc
    assert_equal "$stderr" ''
    assert_line "backup id: $INC"
    assert_line "made on backup: $FULL"
    assert_line 'chain fits: no'
    assert_line --partial "made on backup $FULL, and its backing file is backup $other"
    assert_equal "$(blkimg info --output=json inc | jq -c '.backup | [.id, .parent, ."chain-fits", .below]')" \
        "[\"$INC\",\"$FULL\",false,\"$other\"]"
    run -0 blkimg info --backing-chain inc
    run -0 blkimg info --graph=text inc
    run -0 blkimg check inc
    run -0 blkimg snapshot -l inc
    run -0 blkimg bitmap --list inc
    run -1 --separate-stderr blkimg backup --list-chain=inc
    assert_equal "$stderr" \
        "blkimg: 'inc': the file below it is not its parent: it was made on backup $FULL, and 'full' is backup $other"
    assert_equal "${#lines[@]}" 2
    run -1 blkimg backup --list-chain=inc --output=json
    # One that fits says so, and a base that is gone is no error of info's.
    mv first full
    run -0 blkimg info inc
    assert_line 'chain fits: yes'
    rm full
    run -0 blkimg info inc
    refute_line --partial 'chain fits'
}

@test "which backup each bitmap counts from" {
    blkimg bitmap --add disk other
    run -0 blkimg bitmap --list disk
    assert_line --regexp "^b: .*, counts from backup $INC\$"
    assert_line --regexp '^other: .* bytes dirty$'
    assert_equal "$(blkimg bitmap --list --output=json disk | jq -c '[.[].since]')" "[\"$INC\",null]"
    assert_equal "$(blkimg info --output=json disk | jq -c '[."format-specific".data.bitmaps[].since]')" "[\"$INC\",null]"
    run -0 blkimg info disk
    assert_line --regexp " since: $INC\$"
    # A base that does not continue it is refused with both ids.
    run -1 --separate-stderr blkimg backup --bitmap=b --base=full disk new
    [[ ${stderr_lines[0]} == *"it is $FULL, and bitmap 'b' counts from $INC "* ]]
    # What is no backup has no id to list.
    run -1 --separate-stderr blkimg backup --list-chain=disk
    assert_equal "$output|$stderr" "|blkimg: 'disk' is not a backup, or was changed since: it has no id"
}

@test "rebase -u takes another backup only with --trust, and then says so" {
    mv full first
    blkimg backup disk full
    run -1 --separate-stderr blkimg rebase -u -b full -F qcow2 inc
    [[ $stderr == *"'inc' was made on backup $FULL, but its backing file 'full' is backup $(id_of full)"* ]]
    blkimg rebase -u --trust -b full -F qcow2 inc
    assert_equal "$(parent_of inc)" "$(id_of full)"
    blkimg compare disk inc
    # Another image of the same content has no id: that it is a part of a disk is kept.
    qemu-img convert -O raw full copy
    blkimg rebase -u --trust -b copy -F raw inc
    blkimg compare disk inc
    blkimg rebase -u -b '' inc
    run -1 blkimg checksum inc
    assert_output --partial 'holds only what differs from another image'
}

@test "commit, rebase, mirror and pivot leave chains that fit" {
    local point
    blkimg io -c 'write -P 3 0 64k' disk >out
    blkimg backup --bitmap=b --base=inc disk inc2
    blkimg io -c 'write -P 4 64k 64k' disk >out
    blkimg backup --bitmap=b --base=inc2 disk inc3
    # The emptied overlay is what it was, on what its base is now.
    blkimg commit -q inc
    assert_equal "$(id_of full) $(parent_of inc) $(id_of inc)" "$INC $INC $INC"
    blkimg compare disk inc3
    blkimg rebase -b full -F qcow2 inc2
    assert_equal "$(parent_of inc2)" "$INC"
    # Over a layer: what was between is no more.
    point=$(id_of inc3)
    qemu-img convert -O raw inc3 inc3.raw
    blkimg commit -q -b full inc3
    run -1 blkimg checksum inc2
    assert_output --partial 'the chain does not fit'
    assert_equal "$(id_of full)" "$point"
    blkimg compare -f qcow2 -F raw full inc3.raw
    blkimg io -c 'write -P 5 128k 64k' disk >out
    blkimg backup --bitmap=b --base=full disk inc4
    # A verified copy is the same backup; over another one the overlay is a part of what is not known; and back.
    blkimg mirror -q --pivot=inc4 full moved
    assert_equal "$(id_of moved) $(parent_of inc4)" "$point $point"
    blkimg compare disk inc4
    qemu-img convert -O qcow2 full plain
    blkimg pivot --to=plain inc4
    assert_equal "$(parent_of inc4)" null
    blkimg compare disk inc4
    blkimg pivot --to=full inc4
    assert_equal "$(parent_of inc4)" "$point"
    blkimg compare disk inc4
    # A live disk above takes no notice.
    qemu-img create -q -f qcow2 -b inc4 -F qcow2 live
    blkimg io -c 'write -P 6 0 64k' live >out
    blkimg commit -q live
    blkimg checksum live
    assert_equal "$(id_of inc4)" null
}

@test "a commit that is cut off leaves an overlay that can be read and committed again" {
    qemu-img convert -O raw inc inc.raw
    printf '[inject-error]\niotype = "write"\nerrno = "EIO"\nnth = "3"\nonce = "off"\n' | sed 's/"EIO"/"5"/' >rules
    run blkimg commit -q --image-opts \
        driver=qcow2,file.filename=inc,backing.driver=qcow2,backing.file.driver=blkdebug,backing.file.config=rules,backing.file.image.filename=full
    ((status != 0))
    assert_equal "$(id_of full)" null
    blkimg compare -f qcow2 -F raw inc inc.raw
    blkimg commit -q inc
    assert_equal "$(id_of full) $(parent_of inc)" "$INC $INC"
    blkimg compare -f qcow2 -F raw full inc.raw
}

# kept COMMAND...: status 1, `full` is said to be needed by `inc`, and nothing has changed.
kept() {
    local before
    before=$(find . -type f -exec sha256sum {} +)
    run -1 --separate-stderr blkimg "$@"
    [[ $stderr == *"overwriting '"*"', which is backup $FULL: '"*"/inc' depends on it (--force"* ]] || fail "$*: $stderr"
    assert_equal "$(find . -type f -exec sha256sum {} +)" "$before"
}

@test "a backup that another image depends on is not overwritten without --force" {
    mkdir sub
    ln -s ../full sub/link
    kept backup disk full
    kept backup disk sub/link
    kept backup disk "$PWD/full"
    kept backup -n --mode=full disk full
    kept convert -O qcow2 disk full
    kept convert -O raw disk full
    kept convert -n -O qcow2 disk full
    kept dd -O qcow2 if=disk of=full
    kept create -q -f qcow2 full 1M
    kept mirror disk full
    kept create -q -f qcow2 -o data_file=full image 1M
    kept convert -O qcow2 -o data_file=full disk image
    kept backup -o data_file=full disk image
    kept mirror -o data_file=full disk image
    kept convert --in-place -O qcow2 -o data_file=full disk image
    blkimg create -q -f qcow2 -o data_file=data image 1M
    kept amend -o data_file=full image
    kept amend -o data_file=sub/link image
    rm image data
    # The image that depends on it need not be the one that names it by this name, nor have an id.
    qemu-img rebase -u -b "$PWD/full" -F qcow2 inc
    kept backup disk full
    # One that is a copy of it is not needed, nor is what nothing depends on.
    cp full copy
    blkimg backup disk copy
    blkimg backup disk copy
    blkimg convert -O qcow2 disk inc
    blkimg convert -O qcow2 disk full
}

@test "--force overwrites it, and then its overlay is refused" {
    blkimg convert --force -O qcow2 disk full
    run -1 blkimg checksum inc
    assert_output --partial 'the chain does not fit'
}

@test "a part without its base keeps its base, too" {
    blkimg io -c 'write -P 3 0 64k' disk >out
    blkimg backup --bitmap=b disk part
    run -1 --separate-stderr blkimg backup disk inc
    [[ $stderr == *"overwriting 'inc', which is backup $INC: '$PWD/part' depends on it"* ]] || fail "$stderr"
}

@test "no target is in the chain of the base of any disk" {
    blkimg create -q -f qcow2 disk2 1M
    blkimg backup --new-bitmap=b disk2 full2
    blkimg io -c 'write -P 3 0 64k' disk >out
    local before
    before=$(find . -type f -exec sha256sum {} +)
    run -1 --separate-stderr blkimg backup --force --bitmap=b --base=inc disk full
    [[ $stderr == *"the target 'full' is 'full', a part of the base 'inc'"* ]] || fail "$stderr"
    run -1 --separate-stderr blkimg backup --force --bitmap=b --base=inc --base=full2 --disk disk=new --disk disk2=full
    [[ $stderr == *"the target 'full' is 'full', a part of the base 'inc'"* ]] || fail "$stderr"
    assert_equal "$(find . -type f -exec sha256sum {} +)" "$before"
}
