# SPDX-License-Identifier: MIT
# --lock-wait: what was true of a file before its lock was had is not believed afterwards.
#
# All commands of a table wait for the same holder, each in a directory of its own. While they wait
# the holder grows, cuts or replaces the files. Then every command must end as it does where the
# files have been so from the beginning and nobody holds them: same status, output and content.

bats_require_minimum_version 1.5.0
load lib/common
load lib/locks

# One command a line, "subject: arguments". The subject is the file that is held and changed: i, a
# qcow2 image, or r, a raw one. Beside them: over-i and over-r (overlays), o (another image, as
# large as the large i), s (a small one), p (a copy of the large i), db (r is its data file).
commands() {
    cat <<'END'
i: check i
i: check -r all i
i: check -r leaks i
i: amend -o refcount_bits=64 i
i: amend -o lazy_refcounts=on i
i: resize i +1M
i: resize --shrink i -128k
i: commit over-i
i: convert -O raw i out
i: convert -O qcow2 over-i out
i: convert -O qcow2 o i
i: convert -n -O qcow2 s i
i: create -f qcow2 i 1M
i: create -f raw i 64k
i: backup --verify --checksum i out
i: backup o i
i: checksum i
i: checksum over-i
i: compare i p
i: compare o i
i: rebase -b o -F qcow2 over-i
i: rebase -b i -F qcow2 over-o
i: bitmap --add --disable i b1
i: bitmap --list i
i: bitmap --remove i kept
i: snapshot -c new i
i: snapshot -a old i
i: snapshot -d old i
i: snapshot -l i
i: map --output=json i
i: map over-i
i: measure -O raw i
i: measure -O qcow2 over-i
i: info i
i: dd if=i of=out bs=64k
i: dd -O qcow2 if=o of=i bs=64k
i: mirror i out
i: mirror o i
i: pivot --to=p over-i
i: io -c write~-P~9~0~64k i
i: io -r -c read~-v~0~512 i
i: bench -c 16 i
i: bench -w --pattern=3 -c 16 i
i: close-check i
r: resize -f raw r +1M
r: resize -f raw --shrink r -64k
r: commit over-r
r: convert -f raw -O qcow2 r out
r: convert -O raw over-r out
r: convert -O raw o r
r: convert -n -O raw s r
r: create -f raw r 64k
r: backup -f raw --verify --checksum r out
r: checksum -f raw r
r: compare over-r o
r: rebase -b o -F qcow2 over-r
r: map -f raw --output=json r
r: map --output=json db
r: measure -f raw -O qcow2 r
r: info -f raw r
r: dd -f raw if=r of=out bs=64k
r: mirror -f raw r out
r: io -f raw -c write~-P~9~0~64k r
r: bench -f raw -c 16 r
r: close-check -f raw r
r: convert -O raw db out
r: commit over-db
r: io -c write~-P~9~0~64k db
r: resize db +1M
END
}

# small and large: the two states of i and r. rest and read-only: what the commands find beside
# them.
make_images() {
    need qemu-img python3
    mkdir small large rest read-only
    (
        cd small || exit
        "$BLKIMG" create -q -f qcow2 i 1M
        "$BLKIMG" io -c "write -P 1 0 128k" -c "write -P 2 512k 64k" i
        "$BLKIMG" snapshot -q -c old i
        "$BLKIMG" bitmap --add i kept
        fill r 0 256k 17
        cd ../large || exit
        "$BLKIMG" create -q -f qcow2 -o cluster_size=32k i 2M
        "$BLKIMG" io -c "write -P 3 0 1M" -c "write -P 4 1536k 256k" i
        "$BLKIMG" snapshot -q -c old i
        "$BLKIMG" bitmap --add i kept
        "$BLKIMG" io -c "write -P 5 64k 192k" i
        fill r 0 1M 34
        cd ../rest || exit
        "$BLKIMG" create -q -f qcow2 o 2M
        "$BLKIMG" io -c "write -P 6 256k 256k" o
        "$BLKIMG" create -q -f qcow2 s 512k
        cp ../large/i p
        "$BLKIMG" create -q -f qcow2 -o data_file=r,data_file_raw=on db 128k
        cp ../small/* .
        "$BLKIMG" create -q -f qcow2 -b i -F qcow2 over-i 1M
        "$BLKIMG" create -q -f qcow2 -b o -F qcow2 over-o 1M
        "$BLKIMG" create -q -f qcow2 -b r -F raw over-r 256k
        "$BLKIMG" create -q -f qcow2 -b db -F qcow2 over-db 128k
        for overlay in over-i over-o over-r over-db; do
            "$BLKIMG" io -c "write -P 7 64k 64k" "$overlay"
        done
        rm i r
        mv o s p ../read-only
    ) >log
}

# read_command LINE: sets subject and words. "~" stands for a blank within a word.
read_command() {
    subject=${1%%:*}
    read -ra words <<<"${1#*: }"
    words=("${words[@]//\~/ }")
}

# What differs from run to run: times, and blocks that a file system has given.
mask() {
    sed -E -e '/^disk size|^Run completed|ops\/sec/d' -e 's/[0-9]{4}-[0-9-]+ +[0-9:.]+/DATE/'
}

# Whether a process has a file open, as one that waits for its lock does.
has_open() {
    local fd
    for fd in "/proc/$1"/fd/*; do
        [[ $fd -ef $2 ]] && return 0
    done
    return 1
}

all_wait() {
    local n
    for n in "${!pids[@]}"; do
        has_open "${pids[n]}" "${held[n]}" || {
            echo "not waiting: ${lines[n]}" >waiting
            return 1
        }
    done
}

# change_all FROM HOW: each held file becomes as it is in directory FROM.
change_all() {
    local file
    for file in "${held[@]}"; do
        if [[ $2 == replace ]]; then
            cp "$1/${file##*/}" "$file.new"
            mv "$file.new" "$file"
        else
            cat "$1/${file##*/}" >"$file"
        fi
    done
}

# The same content: the same bytes, or images that a guest cannot tell apart and that are sound.
same_file() {
    cmp -s "$1" "$2" && return 0
    [[ $(head -c 3 "$1") == QFI && $(head -c 3 "$2") == QFI ]] || return 1
    qemu-img compare -q "$1" "$2" && qemu-img check -q "$2"
}

# same_outcome N: what command N left in wait.N, and said, is what it left in free.N.
same_outcome() {
    local file
    [[ $(<"free.$1.status") == "$(<"wait.$1.status")" ]] || return 1
    cmp -s "free.$1.out" "wait.$1.out" ||
        diff <(mask <"free.$1.out") <(mask <"wait.$1.out") || return 1
    diff -rq "free.$1" "wait.$1" >different && return 0
    ! grep -v '^Files .* differ$' different || return 1
    while read -r _ file _; do
        same_file "$file" "wait.${file#free.}" || return 1
    done <different
}

# run_in DIRECTORY WORD...: the command in the background, its output beside it; adds to pids.
run_in() {
    (
        cd "$1" || exit
        exec "$BLKIMG" "${@:2}" >"../$1.out" 2>"../$1.err" </dev/null 3>&- 8>&-
    ) &
    pids+=($!)
}

# finish_all WHERE: waits for all that run, and writes down how they ended.
finish_all() {
    local n
    for n in "${!pids[@]}"; do
        local status=0
        wait "${pids[n]}" || status=$?
        echo "$status" >"$1.$n.status"
    done
    pids=()
}

# wait_through FROM TO HOW: runs all commands while i and r become what they are in TO.
wait_through() {
    local lines=() n words subject failed=0
    pids=() held=()
    make_images
    mapfile -t lines < <(commands)
    for n in "${!lines[@]}"; do
        read_command "${lines[n]}"
        mkdir "free.$n" "wait.$n"
        cp rest/* "$1"/* "free.$n"
        cp "$2/$subject" "free.$n"
        cp rest/* "$1"/* "wait.$n"
        ln read-only/* "free.$n"
        ln read-only/* "wait.$n"
        held[n]=wait.$n/$subject
        run_in "free.$n" "${words[@]}"
    done
    finish_all free
    # What fails by itself shows nothing; but images may differ, and be too small or not alike.
    [[ $2 == small ]] || assert_equal "$(cat free.*.status | grep -c 1)" 2
    hold "$SRCDIR/tests/tools/holdlocks.py" "${held[@]}"
    wait_for 10 is_held "${held[-1]}" "$writer"
    for n in "${!lines[@]}"; do
        read_command "${lines[n]}"
        run_in "wait.$n" "${words[0]}" --lock-wait=60 "${words[@]:1}"
    done
    wait_for 30 all_wait || fail "$(cat waiting wait.*.err)"
    change_all "$2" "$3"
    exec 8>&-
    finish_all wait
    for n in "${!lines[@]}"; do
        same_outcome "$n" && continue
        echo "${lines[n]}: not as if nobody had held it: $(<"wait.$n.err")"
        failed=1
    done
    return $failed
}

@test "a file that grows while its lock is waited for" {
    wait_through small large cat
}

@test "a file that is cut while its lock is waited for" {
    wait_through large small cat
}

@test "a file that is replaced while its lock is waited for" {
    wait_through small large replace
}

# --- targets that go away --------------------------------------------------------------------

# start_waiting WORD...: starts it, and waits until it has a, which is held.
start_waiting() {
    hold "$BLKIMG" io -f raw a
    wait_for 10 is_held a "$writer"
    spawn "$BLKIMG" "$@" 8>&-
    wait_for 10 has_open "$pid" a
}

@test "a target that is removed while its lock is waited for is made" {
    fill a 0 64k
    start_waiting create -q -f raw --lock-wait=60 a 128k
    rm a
    release
    finish
    assert_equal "$status" 0
    assert_equal "$(stat -c %s a)" 131072
}

@test "a target's symlink that leads elsewhere after the wait is followed anew" {
    fill a 0 64k
    fill b 0 64k 1
    cp a a.old
    ln -s a link
    start_waiting create -q -f raw --lock-wait=60 link 128k
    ln -sfn b link
    release
    finish
    assert_equal "$status" 0
    assert_equal "$(stat -c %s b)" 131072
    cmp a a.old
    [[ -L link ]]
}

# --- read-only, then for writing -------------------------------------------------------------

# change_between SIZE COMMAND...: io opens a, which then gets another size from somebody who takes
# no locks; $output is what io says of the commands.
change_between() {
    mkfifo in
    "$BLKIMG" io -r -f raw a <in >io.out 2>&1 3>&- &
    pid=$!
    exec 8>in
    wait_for 10 is_held a "100 201 203"
    truncate -s "$1" a
    printf '%s\n' "${@:2}" >&8
    exec 8>&-
    wait "$pid" || true
    output=$(<io.out)
}

@test "what got another size without locks is not reopened for writing" {
    fill a 0 64k
    change_between 128k "reopen -w" "write 0 512"
    assert_output --partial "another program changed its size"
    refute_output --partial "wrote"
    fill old 0 64k
    cmp -n 65536 a old
}

@test "what was cut while it was open is not read as zeroes" {
    fill a 0 64k
    change_between 32k "read 0 64k" "read 0 32k"
    assert_output --partial "read failed"
    assert_output --partial "read 32768/32768 bytes"
    refute_output --partial "read 65536"
}

@test "a hole past the end of a file that was cut is none" {
    truncate -s 64k a
    change_between 32k map
    assert_output --partial "it shrank while it was open"
}

@test "what shares its file is not reopened for writing" {
    fill a 0 64k
    cp a old
    run -1 blkimg io -r -c "reopen -w" -c "write 0 512" --image-opts \
        driver=raw,file.filename=a,file.force-share=on
    assert_output --partial "force-share goes with read-only access only"
    cmp a old
}

# --- many at once ----------------------------------------------------------------------------

# all_at_once COUNT WORD...: as many processes, "%" being the number of each; all must succeed.
all_at_once() {
    local pids=() words n
    for ((n = 1; n <= $1; n++)); do
        words=("${@:2}")
        "$BLKIMG" "${words[@]//%/$n}" 2>"err.$n" >/dev/null 3>&- &
        pids+=($!)
    done
    for n in "${!pids[@]}"; do
        wait "${pids[n]}" || fail "$(cat err.*)"
    done
}

@test "12 processes each add a bitmap" {
    "$BLKIMG" create -q -f qcow2 a 1M
    all_at_once 12 bitmap --add --lock-wait=60 a b%
    run -0 "$BLKIMG" bitmap --list a
    assert_equal "$(grep -oE '\bb[0-9]+\b' <<<"$output" | sort -u | wc -l)" 12
    run -0 "$BLKIMG" check a
}

@test "8 processes each take a snapshot, and each grow the image" {
    "$BLKIMG" create -q -f qcow2 a 1M
    all_at_once 8 snapshot -q -c s% --lock-wait=60 a
    run -0 "$BLKIMG" snapshot -l a
    assert_equal "$(grep -oE '\bs[0-9]\b' <<<"$output" | sort -u | wc -l)" 8
    all_at_once 8 resize -q --lock-wait=60 a +1M
    run -0 "$BLKIMG" info a
    assert_output --partial "virtual size: 9 MiB"
    all_at_once 6 amend -q -o lazy_refcounts=on --lock-wait=60 a
    all_at_once 8 io --lock-wait=60 -c "write -P % %00k 4k" a
    for n in 1 2 3 4 5 6 7 8; do
        run -0 "$BLKIMG" io -r -c "read -P $n ${n}00k 4k" a
        refute_output --partial "failed"
    done
    run -0 "$BLKIMG" check a
}

# Each reads the base before it writes it, and so keeps the others from writing it.
@test "8 overlays are committed to one base" {
    "$BLKIMG" create -q -f qcow2 base 1M
    for n in 1 2 3 4 5 6 7 8; do
        "$BLKIMG" create -q -f qcow2 -b base -F qcow2 over"$n"
        "$BLKIMG" io -c "write -P $n ${n}00k 4k" over"$n"
    done
    all_at_once 8 commit -q --lock-wait=60 over%
    for n in 1 2 3 4 5 6 7 8; do
        run -0 "$BLKIMG" io -r -c "read -P $n ${n}00k 4k" base
        refute_output --partial "failed"
    done
    run -0 "$BLKIMG" check base
}

@test "two that wait for a reader, and then for each other" {
    "$BLKIMG" create -q -f qcow2 base 1M
    "$BLKIMG" create -q -f qcow2 -b base -F qcow2 over1
    "$BLKIMG" create -q -f qcow2 -b base -F qcow2 over2
    local pids=() n
    hold "$BLKIMG" io -r base
    wait_for 10 is_held base "100 201 203"
    for n in 1 2; do
        "$BLKIMG" io -c "write -P $n ${n}00k 4k" over"$n"
        timeout 30 "$BLKIMG" commit -q --lock-wait=60 over"$n" 2>err.$n 3>&- 8>&- &
        pids+=($!)
    done
    sleep 0.5
    release
    for n in 0 1; do
        wait "${pids[n]}" || fail "$(cat err.*)"
    done
    for n in 1 2; do
        "$BLKIMG" io -r -c "read -P $n ${n}00k 4k" base >out
        refute grep -q failed out
    done
}

@test "8 rebases of one overlay" {
    "$BLKIMG" create -q -f qcow2 base 1M
    "$BLKIMG" create -q -f qcow2 other 1M
    "$BLKIMG" create -q -f qcow2 -b base -F qcow2 over
    "$BLKIMG" io -c "write -P 5 0 64k" over
    all_at_once 8 rebase -b other -F qcow2 --lock-wait=60 over
    run -0 "$BLKIMG" io -r -c "read -P 5 0 64k" over
    refute_output --partial "failed"
    run -0 "$BLKIMG" check over
}
