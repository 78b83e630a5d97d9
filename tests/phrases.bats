#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# What scripts look for in qemu-img's messages is in this program's, in the same situations: both
# programs run, and both say it, with the same status.

bats_require_minimum_version 1.5.0
load lib/common

# The images that the rows use. `set` is the bit of the incompatible features that is set.
make_images() {
    rm -rf work
    mkdir work
    cd work || return 1
    qemu-img create -q -f raw r 1M
    qemu-img create -q -f qcow2 a 1M
    qemu-img create -q -f qcow2 other 1M
    qemu-img create -q -f qcow2 -b a -F qcow2 over
    qemu-img create -q -f qcow2 -b gone -F qcow2 -u orphan 1M
    qemu-img create -q -f qcow2 bm 1M
    qemu-img bitmap --add bm b0
    cp bm bm2
    qemu-img create -q -f qcow2 feature 1M
    set_incompatible feature 40
    qemu-img create -q -f qcow2 corrupt 1M
    set_incompatible corrupt 02
    cd ..
}

set_incompatible() {
    printf '%b' "\\x$2" | dd of="$1" bs=1 seek=79 conv=notrunc status=none
}

@test "phrases that scripts look for" {
    need qemu-img
    make_images
    local phrase args theirs ours count=0
    while IFS='|' read -r phrase args; do
        [[ $phrase ]] || continue
        read -r phrase <<<"$phrase"
        count=$((count + 1))
        rm -rf peer mine
        cp -a work peer
        cp -a work mine
        # The last column is a list of words; '' is an empty one.
        theirs=0 ours=0
        (cd peer && eval "qemu-img $args") >peer.out 2>&1 </dev/null || theirs=$?
        (cd mine && eval "blkimg $args") 2>mine.out >mine.stdout </dev/null || ours=$?
        grep -qF -- "$phrase" peer.out || fail "qemu-img $args: not '$phrase': $(<peer.out)"
        grep -qF -- "$phrase" mine.out || fail "blkimg $args: not '$phrase': $(<mine.out)"
        assert_equal "$args: $ours" "$args: $theirs"
        assert_equal "$(wc -l <mine.out)" 1
    done <<'END'
Could not open 'missing': No such file or directory        | info missing
Could not open 'missing': No such file or directory        | convert -O raw missing t
Could not open 'missing': No such file or directory        | convert -n -O qcow2 a missing
Could not open 'missing': No such file or directory        | compare a missing
Could not open 'missing': No such file or directory        | create -f qcow2 -b missing -F qcow2 t
Could not open 'missing': No such file or directory        | rebase -b missing -F qcow2 over
Could not open 'missing': No such file or directory        | resize missing 2M
Could not open 'missing': No such file or directory        | snapshot -l missing
Could not open 'missing': No such file or directory        | measure -O qcow2 missing
Could not open 'missing': No such file or directory        | map missing
Could not open 'missing': No such file or directory        | commit missing
Could not open 'missing': No such file or directory        | amend -o compat=1.1 missing
Could not open 'missing': No such file or directory        | bitmap --add missing b
Could not open 'missing': No such file or directory        | dd if=missing of=t
Could not open 'missing': No such file or directory        | bench -c 1 missing
Could not open 'missing': No such file or directory        | check missing
Could not open 'gone': No such file or directory           | convert -O raw orphan t
Could not open 'r': Image is not in qcow2 format           | info -f qcow2 r
Could not open 'r': Image is not in qcow2 format           | convert -f qcow2 -O raw r t
Could not open 'a': Unknown driver 'bogus'                 | info -f bogus a
Unknown driver 'bogus'                                      | create -f qcow2 -b a -F bogus t
Unknown file format 'bogus'                                | create -f bogus t 1M
Unknown file format 'bogus'                                | create -f bogus -o help
Unknown file format 'bogus'                                | convert -O bogus a t
Unknown file format 'bogus'                                | convert -O bogus -o help
Unknown file format 'bogus'                                | measure -O bogus a
Unknown file format 'bogus'                                | amend -f bogus -o help
Unknown file format                                        | dd -O bogus if=a of=t
Could not open 'feature': Unsupported qcow2 feature(s):    | info feature
Unsupported qcow2 feature(s):                              | check feature
Could not open 'corrupt'                                   | resize corrupt 2M
Image is corrupt                                           | resize corrupt 2M
Image is corrupt                                           | snapshot -c s corrupt
This image format does not support checks                  | check -f raw r
Backing file specified without backing format              | create -f qcow2 -b a t
Backing file specified without backing format              | create -f qcow2 -u -b a t 1M
backing format must be specified                           | rebase -b other over
backing format must be specified                           | rebase -u -b other over
Use the --shrink option                                    | resize -f raw r 512k
Use the --shrink option                                    | resize a 512k
Did not find 'other' in the backing chain of 'over'        | commit -b other over
Image does not have a backing file                         | commit a
Image does not have a backing file                         | commit -f raw r
Dirty bitmap 'nosuch' not found                            | bitmap --remove bm nosuch
Dirty bitmap 'nosuch' not found                            | bitmap --clear bm nosuch
Dirty bitmap 'nosuch' not found                            | bitmap --enable bm nosuch
Dirty bitmap 'nosuch' not found                            | bitmap --merge nosuch bm b0
Bitmap already exists: b0                                  | bitmap --add bm b0
Bitmap already exists: b0                                  | convert --bitmaps -n -f qcow2 -O qcow2 bm bm2
Unsupported preallocation mode: metadata                   | create -f raw -o preallocation=metadata t 1M
Unsupported preallocation mode: metadata                   | convert -O raw -o preallocation=metadata a t
Unsupported preallocation mode: metadata                   | resize -f raw --preallocation=metadata r 2M
END
    ((count > 40)) || fail "only $count rows"
}

@test "persistent bitmaps that cannot be stored are said to be lost" {
    # Nothing can be written when the bitmap is stored: both say so. Only ours is a failure.
    qemu-img create -q -f qcow2 a 1M
    printf '[inject-error]\nevent = "%s"\nerrno = "28"\n' pwritev_done >rules
    cp a peer
    run qemu-img bitmap --add blkdebug:rules:peer b
    assert_output --partial 'Lost persistent bitmaps'
    run -5 --separate-stderr blkimg bitmap --add blkdebug:rules:a b
    [[ $stderr == *'Lost persistent bitmaps'* ]] || fail "$stderr"
}
