# Faults and odd situations where other tests do not look: a wrong result, a damaged image or a status
# that is not true could hide there.

bats_require_minimum_version 1.5.0

load lib/common

# An image with the name $2, of whose events $1 the N-th ($3) fails.
failing() {
    printf '[inject-error]\nevent = "%s"\nerrno = "5"\nnth = "%s"\n' "$1" "$3" >faults
    echo "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"blkdebug\",\"config\":\"faults\",
          \"image\":{\"driver\":\"file\",\"filename\":\"$2\"}}}"
}

@test "shrink: an L2 table of which a part cannot be read keeps what it maps" {
    blkimg create -q -f qcow2 -o cluster_size=2M a 1T
    blkimg io -c 'write 0 64k' -c 'write 520G 64k' a >/dev/null
    local n hits=0
    for n in 2 33 34 35 36 37; do
        cp --sparse=always a b
        run -1 --separate-stderr blkimg resize --shrink "$(failing l2_load b "$n")" 1G
        [[ $stderr != *"reading 65536 bytes"* ]] || hits=$((hits + 1))
        run qemu-img check b
        ((status == 0 || status == 3)) || fail "read $n: $output"
    done
    ((hits >= 4))
}

@test "create: not over a file of its own backing chain" {
    blkimg create -q -f qcow2 base 4M
    blkimg create -q -f qcow2 -b base -F qcow2 middle
    blkimg create -q -f qcow2 -b middle -F qcow2 top
    ln -s base link
    cp base before
    local target
    for target in base ./base link; do
        run -1 --separate-stderr blkimg create -q -f qcow2 -b top -F qcow2 "$target"
        [[ $stderr == *'is the same file as'* ]] || fail "$stderr"
        run -1 --separate-stderr blkimg create -q -f qcow2 -b top -F qcow2 "$target" 4M
        cmp base before
    done
    rm link
    ln base link
    run -1 --separate-stderr blkimg create -q -f qcow2 -b top -F qcow2 link
    cmp base before
}

@test "create: an image is not its own data file" {
    mkdir folder
    local name
    for name in new ./new folder/../new "$PWD/new"; do
        run -1 --separate-stderr blkimg create -q -f qcow2 -o data_file="$name" new 4M
        [[ $stderr == *"data file '$name'"*itself* ]] || fail "$stderr"
        assert_not_exists new
    done
    blkimg create -q -f qcow2 -o data_file=folder/new new 4M
}
