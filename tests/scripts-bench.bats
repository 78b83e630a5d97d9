#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# scripts/bench: a wrong result is found and reported, a right one measured, and what is done is not done again.

bats_require_minimum_version 1.5.0
load lib/common

setup() {
    common_setup
    need qemu-img python3
}

# bench ARG...: tiny inputs, in the directory w.
bench() {
    "$SRCDIR/scripts/bench" --scale 1024 --runs 1 --dir w --blkimg "${FAKE:-$BLKIMG}" "$@"
}

# fake COMMAND: a blkimg that notes each call in the file "calls", and runs COMMAND after what it does.
fake() {
    FAKE=$T/fake
    printf '#!/bin/sh\necho "$1" >>%s/calls\n%s "$@" || exit\n%s\n' "$T" "$BLKIMG" "$1" >"$FAKE"
    chmod +x "$FAKE"
}

# results EXPRESSION: evaluates it with "data" as the object in out/benchmarks.json.
results() {
    python3 -c 'import json, sys; data = json.load(open("out/benchmarks.json")); assert eval(sys.argv[1]), data' "$1"
}

@test "--list shows each row with its target" {
    run -0 "$SRCDIR/scripts/bench" --list
    assert_line --regexp '^raw-qcow2 +0\.7 +raw to qcow2'
    assert_line --regexp '^info-300-bitmaps +0\.5 '
    run -0 "$SRCDIR/scripts/bench" --list --growth
    assert_line --regexp '^chain of 100: convert +count$'
    run -2 "$SRCDIR/scripts/bench" --row nothing
    assert_output --partial "no row is called 'nothing'"
}

@test "a row: table, document and JSON, and nothing of this machine's paths in them" {
    run -0 --separate-stderr bench --row raw-qcow2 --row check-fragmented --output out
    assert_line --regexp '^raw-qcow2 +[0-9.]+ '
    assert_line 'Only 1 runs each: rough figures.'
    results '[row["name"] for row in data["rows"]] == ["raw-qcow2", "check-fragmented"]'
    results 'all(row["ratio"] > 0 and row["limit_seconds"] > 0 and row["blkimg_peak_kib"] > 1000 for row in data["rows"])'
    results 'data["rows"][0]["goal"] == 0.7 and data["pairs"] == 1 and data["machine"]["processors"] > 0'
    run -0 cat out/benchmarks.md
    assert_line --regexp '^\| raw to qcow2, page cache \| \*\*[0-9.]+\*\* \|'
    run -1 grep -rF -e "$T" -e "$SRCDIR" -e "$(uname -n)" out
}

@test "a copy that is not the same fails the row and the run" {
    need qemu-io
    # shellcheck disable=SC2016 # for the fake
    fake 'case $1 in convert) qemu-io -f qcow2 -c "write -q -P 5 100k 4k" target.qcow2 ;; esac'
    run -1 bench --row raw-qcow2 --row qcow2-raw --output out
    assert_output --partial 'raw-qcow2: failed: the result of blkimg is wrong: target.qcow2 is not source.raw'
    results 'data["rows"][0]["status"] == "failed" and "ratio" not in data["rows"][0]'
    run -0 cat out/benchmarks.md
    assert_line --regexp '^\| raw to qcow2, page cache .* failed: the result of blkimg is wrong'
}

@test "other output and other statuses fail the row" {
    fake 'echo'
    run -1 bench --row check-fragmented
    assert_output --partial 'failed: blkimg prints something else than qemu-img'
    fake 'exit 3'
    run -1 bench --row info
    assert_output --partial 'failed: blkimg info: status 3'
}

@test "what is measured is kept, for this program and these sizes" {
    fake :
    bench --row info 2>/dev/null
    rm calls
    bench --row info 2>/dev/null
    assert_equal "$(cat calls)" --version
    bench --row info --runs 2 2>/dev/null
    assert_equal "$(sort calls | uniq -c | xargs)" '2 --version 3 info'
}

@test "a run that is ended leaves no process and no temporary directory" {
    TMPDIR=$T spawn "$SRCDIR/scripts/bench" --blkimg "$BLKIMG" --row raw-qcow2
    wait_for 20 compgen -G "$T/blkimg-bench.*/source.raw*"
    kill "$pid"
    finish
    assert_equal "$status" 143
    run -0 find "$T" -maxdepth 1 -name 'blkimg-bench.*'
    assert_output ''
    run leftovers
    assert_output ''
}

@test "growth: three sizes and their slope" {
    run -0 --separate-stderr bench --growth --row 'data: raw to qcow2' --row 'chain of 100: map' --output out
    results '[case["name"] for case in data["growth"]] == ["data: raw to qcow2", "chain of 100: map"]'
    results 'all([point["factor"] for point in case["points"]] == [1, 4, 16] for case in data["growth"])'
    run -0 cat out/benchmarks.md
    assert_line --regexp '^\| chain of 100: map \| count \|'
}
