# bats file for faults at places that other tests do not reach: each was once a way to a wrong
# result, a damaged image or a status that was not true.


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
