# SPDX-License-Identifier: MIT
# What the tests of "blkimg check" for qcow2 share; load lib/common first.
# shellcheck shell=bash disable=SC2154

setup() {
    common_setup
    need qemu-img qemu-io python3
    need_format qcow2
}

mkimage() {
    python3 -IS "$SRCDIR/tests/tools/mkimage.py" "$@"
}

# An image "base" with all structures: shared and own L2 tables, compressed pieces, zeroes, a snapshot and a bitmap.
# Its content is in "base.raw", that of the snapshot in "one.raw". Options go to create. Each is made once for a file.
make_base() {
    local made=$BATS_FILE_TMPDIR/base${*//[^a-z0-9_]/-}
    if [[ ! -d $made ]]; then
        make_new_base "$@"
        mkdir "$made"
        cp base base.raw one.raw "$made"
    fi
    cp "$made"/* .
}

make_new_base() {
    qemu-img create -q -f qcow2 "$@" base 8M
    qio base 'write -P 1 0 300k' 'write -P 2 1M 64k' 'write -z 2M 128k' 'write -P 3 3M 200k' 'write -P 8 7M 64k'
    qio base 'write -c -P 4 4M 64k' 'write -c -P 5 4160k 64k' 2>/dev/null || true
    qemu-img snapshot -c one base
    qio base 'write -P 6 64k 64k' 'write -P 7 5M 128k' 'discard 3M 64k'
    qemu-img bitmap --add base b0 2>/dev/null || true
    qemu-img check -q base
    qemu-img convert -O raw base base.raw
    qemu-img convert -l one -O raw base one.raw
}

# finds STATUS CHANGE...: a copy "a" of the base with these changes; the check must end with that status and say
# something about it, in both forms of output.
finds() {
    local want=$1
    shift
    cp base a
    mkimage edit a "$@"
    cp a before
    run "-$want" --separate-stderr blkimg check a
    [[ $want == 0 || -n $stderr ]] || fail "nothing said about $*"
    run "-$want" --separate-stderr blkimg check --output=json a
    jq -e '."check-errors" == 0' <<<"$output" >/dev/null
    cmp a before || fail 'a check without -r wrote'
}

# Both programs find nothing wrong with "a", and its content is that of the base.
is_whole() {
    run -0 --separate-stderr blkimg check a
    run -0 --separate-stderr qemu-img check a
    same_content
}

same_content() {
    qemu-img compare -q -f qcow2 -F raw a base.raw
    qemu-img convert -l one -O raw a a.raw
    cmp a.raw one.raw
}

# repairs WAY: "check -r WAY" of "a" ends with 0, after which it is whole. Run again it has nothing to do.
repairs() {
    run -0 --separate-stderr blkimg check -r "$1" a
    [[ -z $stderr ]] || fail "-r $1 said: $stderr"
    is_whole
    run -0 --separate-stderr blkimg check -r "$1" a
    refute_line --partial 'repaired'
}

# finds and repairs in one; $1 is the status.
finds_and_repairs() {
    finds "$@"
    echo "repairing $*"
    repairs all
}

# lost RANGE WAY...: guest data of "a" is lost, which both commands say; -r leaks and -r all leave the file as it is,
# to the byte.
keeps_lost() {
    local way
    for way in leaks all; do
        run -2 --separate-stderr blkimg check -r "$way" a
        [[ $stderr == *"guest bytes $1 are lost: "* ]] || fail "$way: $stderr"
        cmp a before || fail "-r $way changed the image"
    done
    run -2 --separate-stderr blkimg check --output=json a
    jq -e '."lost-bytes" > 0' <<<"$output" >/dev/null
}

# Given up on demand, the lost range reads as zeroes and the rest is what it was.
gives_up_lost() {
    run -0 --separate-stderr blkimg check -r lost a
    assert_line --regexp '^[0-9]+ bytes of guest data are given up as lost$'
    [[ -z $stderr ]]
    run -0 blkimg check a
    refute_output --partial lost
    run -0 qemu-img check a
}
