#!/usr/bin/env bats
# --output=json of the commands that change something: one object that says what was done, what became of it, and how
# each step of the close went.

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
assert isinstance(r["close"], list)
if s == 0:
    assert r["close"] and all(e["outcome"] == "ok" for e in r["close"]), r
assert eval(sys.argv[1]), r' "$expression" "$output" "$status" || fail "$*: $output $stderr"
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
