#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# "rebase" killed or cut off from power at any moment, or failing at any request: the guest's view of the image, and of
# those above it, stays what it was; the header names the old backing file or the new one; and a run that
# ends with 0 has named the new one.
#
# CRASH_STATES=N tries N states of each change (give it time: TEST_TIMEOUT).

bats_require_minimum_version 1.5.0
load lib/common
load lib/crash

# make_chain OPTIONS: base <- mid <- top, and "other" and "short", which hold other data. Beside them what
# top and mid show.
make_chain() {
    qemu-img create -q -f qcow2 -o "$1" base 3M
    qemu-io -c 'write -P 1 0 300k' -c 'write -P 2 2M 700k' base >/dev/null
    qemu-img create -q -f qcow2 -o "$1" -b base -F qcow2 mid 3M
    qemu-io -c 'write -P 3 100k 500k' -c 'write -P 4 1500k 64k' -c 'write -z 2100k 100k' mid >/dev/null
    qemu-img create -q -f qcow2 -o "$1" -b mid -F qcow2 top 3M
    qemu-io -c 'write -P 5 200k 70k' -c 'write -z 300k 64k' -c 'write -P 6 2500k 10k' top >/dev/null
    qemu-img create -q -f raw other 4M
    qemu-io -f raw -c 'write -P 7 0 1M' -c 'write -P 8 2M 2M' other >/dev/null
    qemu-img create -q -f raw short 1M
    qemu-io -f raw -c 'write -P 9 500k 500k' short >/dev/null
    qemu-img convert -O raw top top.raw
    qemu-img convert -O raw mid mid.raw
}

# named IMAGE OLD NEW: the judge of the header, as a command: the old name or the new one, and the new one after a
# status of 0.
named() {
    echo "python3 $SRCDIR/tests/tools/check_backing.py --image $1 --old '$2' --new '$3'"
}

# rebase_crashes IMAGE SHOWN OLD NEW ARG...: rebases IMAGE; SHOWN is the image whose view is looked
# at.
rebase_crashes() {
    local image=$1 shown=$2 old=$3 new=$4 file others=
    shift 4
    for file in base mid top other short; do
        [[ $file == "$image" ]] || others+=:$file
    done
    crashes --files "$image" --also "${others#:}" --image "$shown" --old "$shown.raw" \
        --new "$shown.raw" --atomic --check "$(named "$image" "$old" "$new")" \
        -- "$BLKIMG" rebase "$@" "$image"
}

@test "onto the image below" {
    local options
    for options in cluster_size=64k cluster_size=512 cluster_size=4k,compat=0.10 extended_l2=on; do
        make_chain "$options"
        rebase_crashes top top mid base -b base -F qcow2
    done
}

@test "onto another image" {
    local options
    for options in cluster_size=64k cluster_size=512 cluster_size=4k,compat=0.10 extended_l2=on; do
        make_chain "$options"
        rebase_crashes top top mid other -b other -F raw
    done
}

@test "onto a shorter image, compressed" {
    make_chain cluster_size=16k
    rebase_crashes top top mid short -b short -F raw -c
}

@test "onto nothing" {
    local options
    for options in cluster_size=64k cluster_size=1k extended_l2=on; do
        make_chain "$options"
        rebase_crashes top top mid '' -b ''
    done
}

@test "the middle of a chain" {
    make_chain cluster_size=16k
    rebase_crashes mid top base other -b other -F raw
    rebase_crashes mid mid base '' -b ''
}

@test "only the name" {
    make_chain cluster_size=64k
    cp base a-much-longer-name-of-the-very-same-image
    rebase_crashes mid top base "$PWD/base" -u -b "$PWD/base" -F qcow2
}

@test "single faults" {
    need_unsanitized
    local sticky new
    for new in 'base -F qcow2' 'other -F raw' "'' -c"; do
        for sticky in '' --sticky; do
            make_chain cluster_size=16k
            eval "set -- $new"
            # shellcheck disable=SC2086 # a list
            TMPDIR=$memory python3 "$SRCDIR/tests/tools/faultloop.py" --files top:base:mid:other:short \
                --image top --old top.raw --new top.raw --strict $sticky \
                --calls write,sync,truncate,close,fallocate --check "$(named top mid "$1")" \
                -- "$BLKIMG" rebase -b "$@" top >fault.out 2>&1 || fail "$(tail -30 fault.out)"
            echo "# rebase -b $* $sticky: $(tail -1 fault.out)" >&3
        done
    done
}

# Requests instead of system calls: reads and maps of the overlay and of the backing files too.
@test "every request to every image of the chain" {
    local iotype nth file tried=0 rules=$T/rules
    make_chain cluster_size=16k
    cp top top.kept
    for file in top mid base other; do
        for iotype in read write write-zeroes flush block-status close; do
            for ((nth = 1; nth < 200; nth++)); do
                printf '[inject-error]\niotype = "%s"\nnth = "%s"\nonce = "on"\nstats = "%s"\n' \
                    "$iotype" "$nth" "$T/stats" >"$rules"
                cp top.kept top
                rm -f stats
                case $file in
                top) run --separate-stderr blkimg rebase -b other -F raw "blkdebug:$rules:top" ;;
                mid)
                    run --separate-stderr blkimg rebase --image-opts -b other -F raw \
                        "driver=qcow2,file.filename=top,backing.driver=qcow2,backing.file.driver=blkdebug,backing.file.config=$rules,backing.file.image.driver=file,backing.file.image.filename=mid"
                    ;;
                base)
                    run --separate-stderr blkimg rebase --image-opts -b other -F raw \
                        "driver=qcow2,file.filename=top,backing.driver=qcow2,backing.file.filename=mid,backing.backing.driver=qcow2,backing.backing.file.driver=blkdebug,backing.backing.file.config=$rules,backing.backing.file.image.driver=file,backing.backing.file.image.filename=base"
                    ;;
                other)
                    run --separate-stderr blkimg rebase -F raw \
                        -b "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"blkdebug\",\"config\":\"$rules\",\"image\":{\"driver\":\"file\",\"filename\":\"other\"}}}" top
                    ;;
                esac
                # shellcheck disable=SC2154 # run sets it
                [[ $(<stats) != *'errors injected: 0'* ]] || break
                tried=$((tried + 1))
                [[ $status != 0 && -n $stderr ]] || fail "$file $iotype $nth: status $status, said: $stderr"
                # QEMU's injector knows less: a name of "other" with it is no name for qemu-img.
                [[ $file != other ]] || ! grep -q blkdebug top || qemu-img rebase -u -b other -F raw top
                qemu-img check -q top >check.out 2>&1 || (($? == 3)) || fail "$file $iotype $nth: $(<check.out)"
                qemu-img convert -U -O raw top now.raw
                cmp now.raw top.raw || fail "$file $iotype $nth: another view"
            done
            [[ $status == 0 && -z $stderr ]] || fail "$file $iotype $nth: $output $stderr"
        done
    done
    echo "# $tried faults" >&3
    ((tried > 40))
}
