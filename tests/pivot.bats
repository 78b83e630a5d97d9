#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# "pivot": overlays get another backing file all together or not at all, and a witness says which.

bats_require_minimum_version 1.5.0
load lib/common
load lib/locks

setup() {
    common_setup
    make_chain
}

# make_chain: base <- mid <- one and two; "new" shows what mid shows, "wrong" does not. Beside them what one and two show.
make_chain() {
    rm -f ./*
    qemu-img create -q -f qcow2 base 3M
    qemu-io -c 'write -P 1 0 1M' base >/dev/null
    qemu-img create -q -f qcow2 -b base -F qcow2 mid
    qemu-io -c 'write -P 2 500k 1M' -c 'write -z 100k 100k' mid >/dev/null
    qemu-img convert -O qcow2 mid new
    qemu-img convert -O raw mid wrong
    printf x | dd of=wrong bs=1 seek=2500000 conv=notrunc status=none
    local name
    for name in one two; do
        qemu-img create -q -f qcow2 -b mid -F qcow2 $name
        qemu-io -c "write -P ${#name} 2M 64k" $name >/dev/null
        qemu-img convert -O raw $name $name.raw
    done
    sha256sum one two >sums
}

# stand_on NAME FORMAT IMAGE...: their headers name it, and the guest sees what it saw.
stand_on() {
    local image
    for image in "${@:3}"; do
        run -0 qemu-img info -U "$image"
        assert_line "backing file: $1"
        assert_line "backing file format: $2"
        qemu-img check -q "$image"
        qemu-img convert -U -O raw "$image" now.raw
        cmp now.raw "$image.raw"
    done
}

unchanged() {
    sha256sum --quiet -c sums
}

# says STATE: what the witness "w" says by itself.
says() {
    case $1 in
    nothing) [[ ! -s w ]] ;;
    begin) [[ $(wc -l <w) == 1 ]] && grep -q '"begin"' w ;;
    finished) [[ $(wc -l <w) == 2 && $(sed -n 2p w) == '{"state":"done"}' ]] ;;
    esac
}

@test "two overlays and a witness" {
    run -0 --separate-stderr blkimg pivot one two --to new --witness w
    [[ -z $output && -z $stderr ]]
    stand_on new qcow2 one two
    says finished
    python3 -c '
import json, os, sys
begin = json.loads(open("w").readline())
assert [o["file"] for o in begin["overlays"]] == [os.path.realpath("one"), os.path.realpath("two")]
for o in begin["overlays"]:
    assert (o["old-backing"], o["old-format"], o["new-backing"], o["new-format"]) == ("mid", "qcow2", "new", "qcow2")'
    # And back, to a raw image elsewhere.
    mkdir far
    qemu-img convert -O raw new far/raw
    blkimg pivot one two --to far/raw -F raw
    stand_on "$PWD/far/raw" raw one two
}

@test "the result" {
    run -0 blkimg pivot --output=json one two --to new
    python3 -c '
import json, sys
r = json.loads(sys.argv[1])
assert r["command"] == "pivot" and r["overlays"] == 2 and r["complete"] is True and r["exit-status"] == 0
assert {"one", "two", "new"} <= {s["node"] for s in r["close"]}' "$output"
    run -1 --separate-stderr blkimg pivot --output=json one --to wrong -F raw
    python3 -c '
import json, sys
r = json.loads(sys.argv[1])
assert r["complete"] is False and r["exit-status"] == 1' "$output"
}

@test "another content is refused, unless it is trusted" {
    run -1 blkimg pivot one two --to wrong -F raw --witness w
    assert_output --partial 'they differ'
    unchanged
    assert_file_not_exist w
    blkimg pivot one --to wrong -F raw --trust
    run -0 qemu-img info one
    assert_line 'backing file: wrong'
}

@test "what cannot be pivoted" {
    qemu-img create -q -f raw plain 1M
    qemu-img create -q -f qcow2 -b one -F qcow2 above
    local case
    for case in 'one plain --to new' 'one base --to new' 'one one --to new' "one ../${PWD##*/}/one --to new" \
        'one new --to new' 'one --to missing' 'one missing --to new' 'one --to one' 'one --to above' 'one' '--to new' \
        '--undo one --to new' 'one --to new --recover w' '-U one --to new' '--recover missing' \
        'one --to new --witness no/such/folder' 'one --to new --witness .' 'one --to new --witness two'; do
        # shellcheck disable=SC2086 # a list
        run -1 --separate-stderr blkimg pivot $case
        # shellcheck disable=SC2154 # run sets it
        [[ -n $stderr ]] || fail "$case said nothing"
        unchanged || fail "$case"
    done
    # Neither do locks switched off make it possible.
    run -1 blkimg pivot one --to above --trust
    unchanged
}

@test "the second one is locked, unwritable, or has no room in its header" {
    hold_writable two
    run -1 blkimg pivot one two --to new --witness w
    assert_output --partial two
    release
    unchanged
    assert_file_not_exist w

    mkdir -p ro
    cp two ro/two
    qemu-img rebase -u -b "$PWD/mid" -F qcow2 ro/two
    if ((EUID == 0)); then
        mount --bind ro ro 2>/dev/null && mount -o remount,bind,ro ro || skip 'no bind mount here'
    else
        chmod a-w ro/two
    fi
    run -1 blkimg pivot one ro/two --to new --witness w
    unchanged
    assert_file_not_exist w

    # 512 bytes a cluster: the header has no room for a long name.
    qemu-img create -q -f qcow2 -o cluster_size=512 -b mid -F qcow2 small
    local deep
    deep=$PWD/$(printf 'd%.0s' {1..120})
    deep=$deep/${deep##*/}/${deep##*/}
    mkdir -p "$deep"
    cp new "$deep/new"
    qemu-img rebase -u -b "$PWD/base" -F qcow2 "$deep/new"
    run -1 blkimg pivot one small --to "$deep/new" --witness w
    assert_output --partial small
    unchanged
    assert_file_not_exist w
}

@test "the second one fails at its header, by injected errors" {
    local iotype nth tried=0
    for iotype in write flush; do
        for ((nth = 1; nth < 40; nth++)); do
            make_chain
            printf '[inject-error]\niotype = "%s"\nnth = "%s"\nonce = "on"\n' "$iotype" "$nth" >rules
            run --separate-stderr blkimg pivot one "blkdebug:rules:two" --to new --witness w
            # shellcheck disable=SC2154
            [[ $status != 0 ]] || break
            tried=$((tried + 1))
            [[ -n $stderr ]]
            # The first is as it was. The injector hits the putting back of the second one, too.
            stand_on mid qcow2 one
            if says nothing; then
                stand_on mid qcow2 two
                continue
            fi
            says begin || fail "$iotype $nth: $(<w)"
            stand_on mid qcow2 two || stand_on new qcow2 two
            : >rules
            blkimg pivot --recover w --undo
            says nothing
            stand_on mid qcow2 one two
        done
        [[ -z $stderr ]]
        stand_on new qcow2 one two
        says finished
    done
    echo "# $tried faults" >&3
    ((tried >= 2))
}

@test "a witness that is in use or says something is not overwritten" {
    echo precious >w
    run -1 blkimg pivot one two --to new --witness w
    assert_output --partial 'not empty'
    [[ $(<w) == precious ]]
    unchanged
    run -1 blkimg pivot --recover w
    assert_output --partial 'is not a pivot witness'
    [[ $(<w) == precious ]]
    : >w
    flock w "$BLKIMG" pivot one --to new --witness w && fail 'it was locked'
    unchanged
    blkimg pivot one two --to new --witness w
    says finished
    run -1 blkimg pivot one two --to mid --witness w
    stand_on new qcow2 one two
}

@test "a witness on a full disk" {
    small_tmpfs 64k full
    : >full/w
    head -c 1M /dev/zero >full/filler 2>/dev/null || :
    run -1 blkimg pivot one two --to new --witness full/w
    assert_output --partial 'No space left'
    unchanged
    [[ ! -s full/w ]]
    rm full/filler
    blkimg pivot one two --to new --witness full/w
    stand_on new qcow2 one two
}

@test "recovery finishes or undoes any mix" {
    local mix way want
    blkimg pivot one two --to new --witness whole
    for mix in mid,mid new,mid mid,new new,new; do
        for way in '' --undo; do
            qemu-img rebase -u -b "${mix%,*}" -F qcow2 one
            qemu-img rebase -u -b "${mix#*,}" -F qcow2 two
            head -1 whole >w
            # The beginning of a line that the power cut off.
            [[ $mix != new,new ]] || printf '{"state":"do' >>w
            # shellcheck disable=SC2086 # nothing, or an option
            run -0 --separate-stderr blkimg pivot --recover w $way
            [[ -z $output && -z $stderr ]]
            want=new
            [[ -z $way ]] || want=mid
            stand_on "$want" qcow2 one two
            if [[ -z $way ]]; then says finished; else says nothing; fi
            blkimg pivot --recover w
        done
    done
}

@test "recovery with nothing to do, and with nothing that can be done" {
    : >w
    run -0 blkimg pivot --recover w
    assert_output ''
    blkimg pivot one two --to new --witness w
    cp w whole
    run -0 blkimg pivot --recover w --output=json
    assert_output --partial '"found": "done"'
    cmp w whole
    run -1 blkimg pivot --recover w --undo
    assert_output --partial 'finished'
    head -c 100 whole >w
    blkimg pivot --recover w
    says nothing
    head -c 512 /dev/zero >w
    blkimg pivot --recover w
    says nothing
    stand_on new qcow2 one two

    # Somebody has changed one of them since, or the images do not hold the same any more.
    head -1 whole >w
    blkimg rebase -b base -F qcow2 two
    cp two two.kept
    run -1 blkimg pivot --recover w --undo
    assert_output --partial 'changed since'
    cmp two two.kept
    stand_on new qcow2 one
    says begin
    qemu-img rebase -u -b new -F qcow2 two
    qemu-io -c 'write -P 99 0 1k' mid >/dev/null
    run -1 blkimg pivot --recover w --undo
    assert_output --partial 'they differ'
    says begin
    # It finishes, since all are where they should be.
    blkimg pivot --recover w
    says finished
    head -1 whole >w
    blkimg pivot --recover w --undo --trust
    run -0 qemu-img info one
    assert_line 'backing file: mid'
}

@test "a name that the witness cannot hold" {
    local odd=$'o\xffdd'
    cp one "$odd"
    cp "$odd" kept
    run -1 blkimg pivot "$odd" --to new --witness w
    assert_output --partial 'UTF-8'
    cmp "$odd" kept
    says nothing
    blkimg pivot "$odd" --to new
}

@test "a signal before the switch" {
    qemu-img create -q -f raw big 400M
    qemu-io -f raw -c 'write -P 1 0 400M' big >/dev/null
    cp big same
    qemu-img create -q -f qcow2 -b big -F raw one
    sha256sum one two >sums
    spawn "$BLKIMG" pivot one --to same -F raw --witness w
    sleep 0.03
    # shellcheck disable=SC2154 # spawn sets it
    kill -INT "$pid" || :
    finish
    # shellcheck disable=SC2154 # finish sets it
    [[ $status != 0 ]] || skip 'it was over before'
    [[ $status == 130 ]]
    unchanged
    says nothing
}

@test "an overlay that is a symlink: recovery resolves names from where the link is" {
    mkdir links real
    cp base mid links/
    cp mid links/new
    cp one real/one
    ln -s ../real/one links/one
    (cd links && blkimg pivot one --to new --witness ../w)
    run -0 qemu-img info links/one
    assert_line --partial 'backing file: new'
    # As after a kill before the first header write.
    head -1 w >begun
    qemu-img rebase -u -b mid -F qcow2 real/one
    blkimg pivot --recover begun
    run -0 qemu-img info links/one
    assert_line --partial 'backing file: new'
    # An overlay given by its options is found again, too.
    cp one opts
    blkimg pivot --image-opts driver=qcow2,file.filename=opts --to new --witness w2
    grep -q '"file":"[^"]*/opts"' w2
}
