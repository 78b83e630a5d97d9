#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# Command lines that contradict themselves or ask for what cannot be: refused with status 1 and one line that says what
# is wrong, before anything is touched. qemu-img refuses the same ones.

bats_require_minimum_version 1.5.0
load lib/common

setup() {
    common_setup
    truncate -s 1M raw
    qemu-img create -q -f qcow2 q 1M
    qemu-img create -q -f qcow2 -b q -F qcow2 over
    # A header that calls its raw backing file qcow2, and a chain that bites its tail.
    qemu-img create -q -f qcow2 -u -b raw -F qcow2 mismatch 1M
    qemu-img create -q -f qcow2 -u -b loop2 -F qcow2 loop1 1M
    qemu-img create -q -f qcow2 -u -b loop1 -F qcow2 loop2 1M
}

state() {
    ls -lA --time-style=full-iso
    md5sum raw q over mismatch loop1 loop2
}

# Reads lines "MESSAGE | ARGUMENTS" from stdin. PEER is what to run for the same refusal, or nothing.
all_refused() {
    local peer=$1 message arguments before words count=0 lines expected
    before=$(state)
    while IFS='|' read -r message arguments; do
        message=${message%"${message##*[! ]}"}
        eval "words=($arguments)"
        run --separate-stderr blkimg "${words[@]}" </dev/null
        # shellcheck disable=SC2154 # run sets it
        lines=$(wc -l <<<"$stderr")
        # To a script, status 1 of compare says that the images differ.
        expected=1
        [[ ${words[0]} != compare ]] || expected=2
        [[ $status == "$expected" && $lines == 1 && $stderr == 'blkimg: '*"$message"* ]] ||
            fail "blkimg$arguments: status $status, expected '$message', said: $stderr"
        [[ $(state) == "$before" ]] || fail "blkimg$arguments changed: $(diff <(echo "$before") <(state))"
        if [[ -n $peer ]]; then
            run timeout 10 "$peer" "${words[@]}" </dev/null
            [[ $status == 1 ]] || fail "$peer$arguments: status $status"
            rm -f x # it leaves some
            before=$(state)
        fi
        count=$((count + 1))
    done
    echo "# $count command lines" >&3
    ((count > 3))
}

@test "options that exclude or need each other" {
    all_refused qemu-img <<'END'
exclude each other                   | info --image-opts -f raw driver=raw,file.filename=raw
-o has no effect with -n             | convert -n -o cluster_size=4k -O qcow2 raw q
--target-is-zero needs -n            | convert --target-is-zero -O raw raw x
--target-image-opts needs -n         | convert --target-image-opts -O qcow2 raw driver=qcow2,file.filename=q
-C and -c exclude each other         | convert -c -C -O qcow2 raw x
-C and -S exclude each other         | convert -C -S 4k -O qcow2 raw x
--skip-broken-bitmaps needs --bitmap | convert --skip-broken-bitmaps -O qcow2 q x
cannot be preallocated               | convert -o preallocation=full -c -O qcow2 raw x
does not support compression          | convert -c -O raw raw x
either --size or one image           | measure raw --size 1M
either --size or one image           | measure
-l, -a, -c and -d exclude each other | snapshot -c a -d b q
-l, -a, -c and -d exclude each other | snapshot -l -c a q
-U is for reading only               | snapshot -U -c s q
at least one of --add                | bitmap q b
expects an image and a bitmap        | bitmap --add q
-F needs -b                          | bitmap --merge x -F raw q b
-g needs --add                       | bitmap --clear -g 64k q b
expects a backing file (-b) or -u    | rebase q
is for write tests                   | bench --flush-interval 5 q
smaller than the depth               | bench -w --no-drain --flush-interval 5 q
the size is given twice              | create -f qcow2 -o size=1M x 1M
is for growing only                  | resize -f raw --preallocation=full raw 512k
--shrink                             | resize q 512k
expects options (-o)                 | amend q
expects both if=INPUT and of=OUTPUT  | dd if=raw
END
}

@test "operands missing or too many" {
    all_refused qemu-img <<'END'
expects        | info
expects        | info raw q
expects        | create
expects two    | compare raw
expects        | check
expects        | map
expects        | convert raw
expects        | commit
expects        | rebase -u
expects        | resize -q raw
expects        | bench
needs a size   | create -f qcow2 x
unknown option | compare -m raw raw
unknown option | info --bogus raw
needs a value  | info -f
END
}

@test "backing files" {
    all_refused qemu-img <<'END'
'q' looks like qcow2                | create -f qcow2 -b q x
'raw' looks like raw                | create -f qcow2 -b raw x
'q' looks like qcow2                | create -f qcow2 -o backing_file=q x
it looks like qcow2                 | convert -B q -O qcow2 raw x
it looks like qcow2                 | rebase -b q over
it looks like raw                   | rebase -u -b raw over
without backing format              | create -u -f qcow2 -b missing x 1M
Image is not in qcow2 format        | create -f qcow2 -b raw -F qcow2 x
Image is not in qcow2 format        | convert -B raw -F qcow2 -O qcow2 raw x
Image is not in qcow2 format        | rebase -b raw -F qcow2 over
Image is not in qcow2 format        | convert -O raw mismatch x
Image is not in qcow2 format        | map mismatch
Unknown driver 'nofmt'              | create -f qcow2 -b q -F nofmt x
Unknown driver 'nofmt'              | rebase -b q -F nofmt over
a backing format was given, but no  | create -f qcow2 -F qcow2 x 1M
has no backing files                | create -f raw -b q -F qcow2 x
has no backing files                | convert -B q -F qcow2 -O raw raw x
has no backing file                 | rebase -f raw -b q -F qcow2 raw
its own backing file                | create -f qcow2 -b x -F qcow2 x
No such file or directory           | create -f qcow2 -b missing -F qcow2 x
No such file or directory           | rebase -b missing -F qcow2 over
have a backing file                   | commit q
have a backing file                   | commit -f raw raw
in the backing chain                | commit -b raw over
END
}

# qemu-img hangs on most of these.
@test "chains that lead back to themselves" {
    all_refused '' <<'END'
leads back to itself | info --backing-chain loop1
leads back to itself | map loop1
leads back to itself | convert -O raw loop1 x
leads back to itself | commit loop1
leads back to itself | commit -b q loop1
leads back to itself | rebase -b q -F qcow2 loop1
leads back to itself | rebase -b q -F qcow2 -p loop2
leads back to itself | rebase -b over -F qcow2 q
leads back to itself | rebase -b q -F qcow2 q
leads back to itself | measure -O qcow2 loop1
END
}

@test "sizes" {
    all_refused qemu-img <<'END'
too large            | create -f qcow2 x 8E
too large            | create -f qcow2 x 16E
too large            | create -f qcow2 x 7E
too large            | create -f qcow2 x 9223372036854775807
too large            | create -f raw x 8E
too large            | create -f raw x 9223372036854775296
too large            | create -f qcow2 -o cluster_size=512 x 200G
too large            | create -f qcow2 x 99999999999999999999999999
is not a size        | create -f qcow2 x 1.5.2G
is not a size        | create -f qcow2 x 1Q
is not a size        | create -f qcow2 x ''
a power of two       | create -f qcow2 -o cluster_size=3000 x 1M
too large            | resize -f raw raw 8E
too large            | resize -f raw raw +9223372036854775807
too large            | resize q 16E
leave nothing        | resize -f raw raw -2M
too large            | measure --size 8E
a power of two       | measure -o cluster_size=3 -O qcow2 --size 1M
is not a size        | map --start-offset=x raw
-S takes             | convert -S 3 -O raw raw x
-m takes             | convert -m 0 -O raw raw x
-m takes             | convert -m 17 -O raw raw x
between 1 and        | dd if=raw of=x bs=0
is not a size        | dd if=raw of=x bs=-1
is not a             | dd if=raw of=x count=x
power of two         | bitmap --add -g 3 q b
too large            | bench -s 3G q
not a byte           | bench -w --pattern 300 q
END
}

@test "words that are none" {
    all_refused qemu-img <<'END'
'fast'                    | convert -t fast -O raw raw x
'fast'                    | rebase -t fast -b '' over
'nofmt'                   | info -f nofmt raw
'nofmt'                   | convert -O nofmt raw x
'nofmt'                   | measure -O nofmt --size 1M
'xml'                     | info --output=xml raw
'foo'                     | resize -f raw --preallocation=foo raw 2M
'foo'                     | check -r foo q
'foo'                     | amend -o foo=1 q
'foo'                     | create -f qcow2 -o foo=1 x 1M
0.10 (v2) or 1.1          | amend -o compat=0.9 q
can be changed            | amend -f raw -o size=1M raw
there is no such snapshot | snapshot -a none q
there is no such snapshot | convert -l nosnap -O raw q x
has no snapshots          | snapshot -c s raw
'none' not found         | bitmap --remove q none
'foo'                     | bench -i foo q
only 'secret' objects     | info --object bogus,id=s raw
it has no id              | info --object secret,data=s raw
END
}

# Encryption is not supported: a secret is fine as long as nothing needs it.
@test "secrets that something would use" {
    all_refused '' <<'END'
encrypt | create -f qcow2 --object secret,id=s,data=x -o encrypt.format=luks,encrypt.key-secret=s x 1M
encrypt | amend --object secret,id=s,data=x -o encrypt.new-secret=s q
encrypt | info --object secret,id=s,data=x --image-opts driver=qcow2,file.filename=q,encrypt.key-secret=s
luks    | create -f luks --object secret,id=s,data=x -o key-secret=s x 1M
END
}
