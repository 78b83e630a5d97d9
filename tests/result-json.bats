#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# --output=json of the commands that do something: one object that says what was done, what became of it, how each step
# of the close went, and what failed. Every run prints one, whenever it fails.

bats_require_minimum_version 1.5.0
load lib/common

# says EXPRESSION ARG...: runs "blkimg ARG..." and evaluates the expression with r as the object and s as the status.
says() {
    local expression=$1
    shift
    run --separate-stderr blkimg "$@"
    # shellcheck disable=SC2154 # run sets it
    python3 -c '
import json, sys
r, s = json.loads(sys.argv[2]), int(sys.argv[3])
assert r["exit-status"] == s and r["complete"] == (s == 0), r
assert isinstance(r["close"], list) and r["command"] == sys.argv[4], r
assert s == 0 or r["error"]["what"], r
if s == 0:
    assert r["close"] and all(e["outcome"] == "ok" for e in r["close"]), r
assert eval(sys.argv[1]), r' "$expression" "$output" "$status" "$1" || fail "$*: $output $stderr"
    [[ $status == 0 && -z $stderr || $status != 0 && -n $stderr ]]
}

@test "what was done" {
    says 'r["command"] == "create" and r["filename"] == "base" and r["format"] == "raw" and r["virtual-size"] == 1048576' \
        create --output=json base 1M
    says 'r["backing-filename"] == "base" and r["backing-filename-format"] == "raw" and r["virtual-size"] == 1048576' \
        create --output=json -f qcow2 -b base -F raw top
    says 'r["command"] == "bitmap" and r["bitmap"] == "b" and r["actions"] == ["add", "disable"]' \
        bitmap --output=json --add --disable top b
    says '[e for e in r["close"] if e["step"] == "store"]' bitmap --output=json --clear top b
    qemu-io -c 'write -P 1 0 64k' top >/dev/null
    says 'r["command"] == "resize" and r["old-virtual-size"] == 1048576 and r["virtual-size"] == 2097152' \
        resize --output=json top +1M
    says 'r["command"] == "commit" and r["base"] == "base" and r["emptied"] is True' commit --output=json top
    says 'r["emptied"] is False' commit -d --output=json top
    says 'r["command"] == "convert" and r["filename"] == "copy" and r["format"] == "qcow2" and r["virtual-size"] == 2097152' \
        convert -p --output=json -O qcow2 top copy
    says '[e for e in r["close"] if e["step"] == "publish" and e["node"] == "copy"]' \
        convert --output=json -O raw top copy
    says 'r["command"] == "rebase" and r["mode"] == "safe" and "backing-filename" not in r' rebase --output=json -b '' top
}

@test "what failed" {
    qemu-img create -q -f qcow2 top 1M
    printf '[inject-error]\niotype = "close"\n' >rules
    says 's == 5 and [e for e in r["close"] if e["outcome"] == "failed" and e["step"] == "release" and e["errno"] == 5]' \
        resize --output=json blkdebug:rules:top 2M
    printf '[inject-error]\niotype = "flush"\n' >rules
    says 's in (1, 5)' bitmap --output=json --add blkdebug:rules:top b
    says 's == 1 and "virtual-size" in r' resize --output=json top 1k
    says 's == 1 and r["actions"] == ["remove"]' bitmap --output=json --remove top none
    says 's == 1' commit --output=json top
    says 's == 1' create --output=json missing-folder/x 1M
    says 's == 1' convert --output=json top missing-folder/x
}

# answers EXPRESSION STATUS ARG...: as says, for a command with answers beside 0.
answers() {
    local expression=$1 expected=$2
    shift 2
    run "-$expected" --separate-stderr blkimg "$@"
    python3 -c '
import json, sys
r = json.loads(sys.argv[2])
assert r["command"] == sys.argv[4] and r["exit-status"] == int(sys.argv[3]), r
assert r["complete"] == ("error" not in r), r
assert isinstance(r["close"], list) and eval(sys.argv[1]), r' "$expression" "$output" "$status" "$1" ||
        fail "$*: $output $stderr"
}

@test "compare: identical, different, and neither" {
    qemu-img create -q -f qcow2 a 1M
    truncate -s 1M b
    truncate -s 2M c
    answers 'r["complete"] and r["identical"] and r["other-filename"] == "b"' 0 compare --output=json a b
    fill b 65536 512
    answers 'r["complete"] and not r["identical"] and r["difference"] == "content" and r["offset"] == 65536' 1 \
        compare --output=json a b
    answers 'r["difference"] == "size" and "offset" not in r' 1 compare -s --output=json a c
    answers '"identical" not in r and "none" in r["error"]["what"]' 2 compare --output=json a none
    answers '"identical" not in r' 2 compare --output=json a
}

@test "snapshot, amend, dd, bench, checksum, close-check" {
    qemu-img create -q -f qcow2 a 1M
    qemu-io -c 'write -q -P 1 0 128k' a
    says 'r["action"] == "create" and r["snapshot"] == "s"' snapshot --output=json -c s a
    says 'r["action"] == "list" and r["snapshots"][0]["name"] == "s"' snapshot --output=json -l a
    says 'r["action"] == "delete"' snapshot --output=json -d s a
    says 's == 1' snapshot --output=json -d s a
    says 'r["filename"] == "a"' amend -p --output=json -o lazy_refcounts=on a
    says 's == 1' amend --output=json -o bogus=on a
    says 'r["filename"] == "n" and r["virtual-size"] == 65536' dd --output=json if=a of=n bs=64k count=1
    says 's == 1' dd --output=json if=none of=m
    says 'r["mode"] == "read" and r["requests"] == 4 and r["bytes"] == 16384 and r["nanoseconds"] > 0' \
        bench --output=json -c 4 a
    says 'r["algorithm"] and r["digest"] and r["virtual-size"] == 1048576' checksum -p --output=json a
    says 's == 1 and "digest" not in r' checksum --output=json none
    says 'r["clean"]' close-check --output=json a
    says 's == 1' close-check --output=json none
}

@test "bytes are those that were read and written" {
    qemu-img create -q -f qcow2 base 8M
    qemu-img create -q -f qcow2 -b base -F qcow2 a 8M
    qemu-img bitmap --add a b
    qemu-io -c 'write -q -P 1 0 128k' -c 'write -q -P 2 4M 64k' a
    says 'r["bytes"] == 196608' convert --output=json -O qcow2 a n
    says 'r["disks"][0]["bytes"] == 196608' backup --output=json a full
    says 'r["disks"][0]["bytes"] == 196608' backup --output=json --bitmap=b a part
    says 'r["bytes"] == 196608' mirror --output=json a m
    says 'r["bytes"] == 131072' dd --output=json if=a of=d bs=64k count=2
    says 'r["bytes"] == 196608' commit --output=json a
}

@test "a run that fails before it begins" {
    local command
    while read -r command; do
        # shellcheck disable=SC2086 # a command line
        says 's in (1, 2)' $command --output=json
    done <<'END'
amend -o compat=1.1 none
backup none b
bitmap --add none b
commit none
convert none b
create -f bogus b 1M
mirror none b
pivot --to=none none
rebase -b '' none
resize none 1M
snapshot -c s none
create --bogus
END
}

@test "a form that is none" {
    local command
    qemu-img create -q -f qcow2 top 1M
    for command in 'create x 1M' 'resize top 2M' 'commit top' 'bitmap --add top b' 'convert top x' 'rebase -u top'; do
        # shellcheck disable=SC2086 # a command line
        run -1 --separate-stderr blkimg $command --output=xml
        [[ -z $output && $stderr == *xml* ]]
    done
    [[ ! -e x ]]
}

@test "SIGUSR1 shows the progress" {
    need_unsanitized
    fill base 0 4M 1
    qemu-img create -q -f qcow2 -b base -F raw top
    qemu-io -c 'write -P 3 0 4M' top >/dev/null
    local command
    for command in 'convert -r 4M -O raw top x' 'commit -r 4M -d top'; do
        # shellcheck disable=SC2086 # a command line
        spawn "$BLKIMG" $command
        sleep 0.3
        kill -USR1 "$pid"
        finish
        [[ $status == 0 ]]
        grep -Eq '^    \([0-9.]+/100%\)$' spawn.err || fail "$command: $output"
    done
}
