#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# Output that does not get out is a failure, in every command: stdout closed, full, or a pipe that
# nobody reads. A command that has nothing to say does not care.

bats_require_minimum_version 1.5.0
load lib/common

setup() {
    common_setup
    need qemu-img
    mkdir start
    cd start || return
    qemu-img create -q -f qcow2 base 1M
    qemu-img create -q -f qcow2 -b base -F qcow2 a 1M
    qemu-img bitmap --add a b0
    qemu-img snapshot -c s a
    truncate -s 1M raw
    cd ..
}

# Each line is a command that prints.
talkers() {
    cat <<'END'
--help
--version
help convert
amend -p -o compat=1.1 a
backup -p base n
backup --output=json base n
bench -c 1 a
bitmap --list a
bitmap --list --output=json a
bitmap --add --output=json a b1
check a
check --output=json a
checksum a
close-check a
close-check --output=json a
commit -p a
commit --output=json a
commit a
compare a base
compare -p a base
convert -p -O raw a n
convert --output=json -O raw a n
create -f raw n 1M
create --output=json -f raw n 1M
dd --output=json if=raw of=n
info a
info --output=json a
info --backing-chain a
info --list-chain a
io -c 'read 0 512' a
io -c length a
map a
map --output=json a
map --bitmap=b0 a
measure -O raw a
measure --output=json -O raw a
mirror -p base n
mirror --output=json base n
pivot --to=base --output=json a
rebase -p -b '' a
rebase --output=json -b '' a
resize a 2M
resize --output=json a 2M
snapshot -l a
END
}

silent() {
    cat <<'END'
amend -o compat=1.1 a
backup -q base n
bitmap --add a b1
check -q a
close-check -q a
commit -q a
compare -q a base
convert -O raw a n
create -q -f raw n 1M
dd if=raw of=n
io -c 'aio_flush' a
mirror -q base n
pivot --to=base a
rebase -b '' a
resize -q a 2M
snapshot -c t a
END
}

# each LIST WAY STATUSES: runs every command of the list on fresh copies, with its stdout lost in
# that way.
each() {
    local line arguments status bad=0
    while IFS= read -r line; do
        rm -rf run
        cp -r start run
        eval "arguments=($line)"
        status=0
        (cd run && lose_to "$2" "${arguments[@]}") 2>err </dev/null || status=$?
        [[ $status =~ $3 ]] || {
            echo "blkimg $line: status $status: $(<err)"
            bad=1
        }
        [[ $status == 0 || $(tail -n 1 err) == "blkimg: "* ]] || {
            echo "blkimg $line: $(<err)"
            bad=1
        }
    done < <("$1")
    return $bad
}

lose_to() {
    local way=$1
    shift
    case $way in
    closed) "$BLKIMG" "$@" >&- ;;
    full) "$BLKIMG" "$@" >/dev/full ;;
    pipe)
        # Its reader is gone before anything is written.
        mkfifo pipe.$$
        exec 8<>pipe.$$ 7>pipe.$$ 8<&-
        rm pipe.$$
        "$BLKIMG" "$@" >&7 7>&-
        ;;
    esac
}

@test "every command is in both lists, or always has something to say" {
    local command talk quiet
    talk=$(talkers | cut -d' ' -f1)
    quiet=$(silent | cut -d' ' -f1)
    for command in $("$BLKIMG" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z-]*\) .*/\1/p'); do
        grep -qx "$command" <<<"$talk" || fail "$command is not among those that print"
        [[ $command =~ ^(bench|checksum|info|map|measure)$ ]] || grep -qx "$command" <<<"$quiet" ||
            fail "$command is not among the silent ones"
    done
}

@test "stdout is closed" {
    each talkers closed '^[12]$'
    each silent closed '^0$'
}

@test "stdout is full" {
    [[ -c /dev/full ]] || skip "no /dev/full"
    each talkers full '^[12]$'
    each silent full '^0$'
}

@test "stdout is a pipe that nobody reads" {
    each talkers pipe '^[12]$'
    each silent pipe '^0$'
}

@test "compare: that the result was lost is not that the images differ" {
    run -2 lose_to closed compare start/a start/base
    run -2 lose_to full compare start/a start/base
}

@test "a closed stdout is not taken for a target, nor written into an image" {
    run -1 lose_to closed convert -O raw start/a /dev/stdout
    run lose_to closed io -c 'write -P 9 0 64k' start/a
    assert_equal "$status" 1
    run -0 blkimg io -c 'read -P 9 0 64k' start/a
    run -0 qemu-img check -q start/a
}

@test "all three closed" {
    local status=0
    (exec "$BLKIMG" create -q -f qcow2 n 1M) <&- >&- 2>&- || status=$?
    assert_equal "$status" 0
    run -0 qemu-img check -q n
}
