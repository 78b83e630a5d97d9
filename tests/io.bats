#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# "blkimg io" against qemu-io: the same commands on identical images print the same and leave the
# same image. Then what is different on purpose, and what only a session of ours does.
# stderr is set by run; a shell that bats starts expands:
# shellcheck disable=SC2154,SC2016

bats_require_minimum_version 1.5.0
load lib/common

# --- helpers ---------------------------------------------------------------------------------

# What differs from run to run in a report: time and rates.
mask_times() {
    sed -E 's/^(.*, [0-9]+ ops); .*/\1; X/; s/^([0-9]+,[0-9]+),[0-9]+:.*/\1,X/'
}

# Two folders with the same images: 4 MiB of raw and qcow2, data in some places.
make_images() {
    mkdir peer mine
    qemu-img create -q -f raw peer/raw 4M
    fill peer/raw 1M 64k
    fill peer/raw $((2 * 1048576 + 100)) 1000 0x11
    qemu-img convert -f raw -O qcow2 peer/raw peer/qcow2
    seq 1 1000 >peer/source
    : >peer/empty
    cp -a --sparse=always peer/. mine
}

# in_both FORMAT COMMANDS: runs the commands, separated by ";", with both programs. Leaves the
# masked output in peer.out and mine.out and what was on stderr in *.err; sets peer_status and
# mine_status.
in_both() {
    local format=$1 line=$2 command
    local -a words=() commands
    peer_status=0 mine_status=0
    IFS=';' read -ra commands <<<"$line"
    for command in "${commands[@]}"; do
        words+=(-c "$command")
    done
    rm -rf peer mine
    cp -a images/peer images/mine .
    (cd peer && qemu-io -f "$format" "${words[@]}" "$format" </dev/null) \
        >peer.raw-out 2>peer.err || peer_status=$?
    (cd mine && "$BLKIMG" io -f "$format" "${words[@]}" "$format" </dev/null) \
        >mine.raw-out 2>mine.err || mine_status=$?
    mask_times <peer.raw-out >peer.out
    mask_times <mine.raw-out >mine.out
}

differs() {
    printf '%s\n' "commands: $1" "qemu-io: status $peer_status, stderr: $(<peer.err)" \
        "blkimg io: status $mine_status, stderr: $(<mine.err)"
    return 1
}

same_content() {
    if [[ $1 == raw ]]; then
        cmp peer/raw mine/raw
    else
        qemu-img check -q -f "$1" "mine/$1" &&
            qemu-img compare -q -f "$1" -F "$1" "peer/$1" "mine/$1"
    fi
}

# Reads lines "STATUS commands" and runs them on images of the format. STATUS is "=" where both
# programs agree, "1" where ours is 1 although qemu-io ends with 0.
compare_table() {
    local format=$1 expected line
    need qemu-io
    supports "$format" || skip "no $format driver"
    mkdir images && (cd images && make_images)
    while read -r expected line; do
        [[ -n $expected && $expected != '#' ]] || continue
        in_both "$format" "$line"
        diff -u --label qemu-io --label blkimg peer.out mine.out || differs "$line"
        if [[ $expected == = ]]; then
            ((peer_status == mine_status)) || differs "$line"
        else
            ((peer_status == 0 && mine_status == expected)) || differs "$line"
        fi
        [[ -s peer.err || ! -s mine.err ]] || differs "$line"
        same_content "$format" || differs "$line"
    done
}

# --- the same as qemu-io ---------------------------------------------------------------------

@test "reads and writes print what qemu-io prints" {
    compare_table raw <<'EOF'
= read 0 512
= r 0 512
= read 0 0
= read 1 1
= read 100 1k
= read -q 0 512
= read -C 0 512
= read -v 0 512
= read -v 0x100008 33
= read -v 2M 1200
= read -vq 0 512
= read -vC 0 20
= read -p 0 512
= read 0 4M
= read 1M 0x10000
= read 1.5M 1.5k
= read 4M 1
= read 4M 0
= read 3M 2M
= read 9P 1
= read 0 512 -v
= read -P 0x5a 1M 64k
= read -P 0x5a 1M 65537
= read -P 0 0 1M
= read -qP 1 0 1k;read 0 1
= read -P 0x5a -s 512 -l 1k 1047552 4k
= read -P 0x5a -s 1k -l 1k 1047552 4k
= read -P 0x5a -s 1k 1047552 4k
= read -P 0x5a -l 1k 1M 4k
= readv 0 512 512
= readv -v 0 20 20
= readv -P 0x5a 1M 512 1k 8
= readv -P 0 1M 512 1k 8
= readv -C 0 512
= readv 5M 1k
= write 0 512;read -v 0 16
= w 0 64k
= write 1 1;read -v 0 3
= write 511 2;read -P 0xcd 511 2
= write -P 0xa5 0 2M;read -P 165 0 2M
= write -P 0 1M 64k
= write -C 0 4k
= write -q 0 4k
= write -f 0 4k
= write -p 0 4k
= write 0 0
= write 4M 1
= write 4194303 2
= write -z 1M 64k;read -P 0 1M 64k
= write -zu 1M 64k;read -P 0 1M 64k
= write -zuf 1M 64k
= write -zc 1M 64k
= write -zn 1M 64k
= write -zC 0 4M
= write -z 100 5000
= write -z 4M 1
= write -s source 0 10000
= write -s source 3 100;read -v 0 110
= writev 0 512 1k;read -P 0xcd 0 1536
= writev -P 7 100 1 2 3;readv -P 7 100 6
= writev 5M 1k
= write -c 0 64k
= write -b 0 512
= read -b 0 512
EOF
}

@test "background requests print what qemu-io prints" {
    compare_table raw <<'EOF'
= aio_write 0 64k;aio_flush;aio_read -P 0xcd 0 64k;aio_flush
= aio_write -P 3 0 1k 2k 3k;aio_flush;read -P 3 0 6k
= aio_write -q 0 64k
= aio_write -z 1M 64k;aio_flush;read -P 0 1M 64k
= aio_write -zu 1M 64k;aio_flush
= aio_write -fC 0 512;aio_flush
= aio_read -v 0 40;aio_flush
= aio_read -C 0 512 512
= aio_read -i 0 512;aio_write -i 0 512
= aio_write 0 1M;quit;read 0 1
1 aio_write 5M 64k;aio_flush
1 aio_read 5M 64k
1 aio_read -P 1 0 512;aio_flush
EOF
}

@test "discard, flush, map, alloc, length, truncate and info print what qemu-io prints" {
    compare_table raw <<'EOF'
= discard 0 64k;read -P 0 0 64k
= discard -C 1M 64k
= discard -q 100 1000
= d 4M 1
= flush
= f;aio_flush
= map
= alloc 0
= alloc 0 4M
= alloc 1M 128k
= a 100 200
= alloc 5M 1k
= alloc 0 5M
= length
= truncate 8M;length;map
= truncate 1M;length;read 1M 1
= truncate 5000;length
= truncate -m falloc 5M;l
= truncate -m full 5M;l
= t 0;map;l;alloc 0
= info
= i;info
EOF
}

@test "the session behaves as qemu-io's" {
    compare_table raw <<'EOF'
= read 0 1;quit;read 0 1
= q;read 0 1
= read   0   1
=   read 0 1
= close
= close;open -o driver=raw raw;read 0 1
= close;open -r -o driver=raw raw;length
= c;o -n -o driver=raw raw;write 0 4k
= close;open -t unsafe -d off -o driver=raw raw;write 0 4k
= close;open -o driver=raw,file.filename=raw;read 0 1
= close;open -rU -o driver=raw raw;read 0 1
= reopen -r;read 0 1;reopen -w;write 0 1
= reopen -c unsafe;write 0 1
= reopen -c none;write 0 512;read -P 0xcd 0 512
= reopen -o cache.no-flush=on;flush
= reopen
= sleep 1
= break pwritev A
= resume A
= remove_break A
= sigraise 0
EOF
}

@test "numbers that cannot be used are answered as in qemu-io" {
    compare_table raw <<'EOF'
= read a 1
= read 0 a
= read 0 1x
= read 0 1kk
= read 0 1e1
= read 0 1.3
= read 0 0.5k
= read 010 1
= write 9223372036854775808 1
= read 0 9E
= read 0 3G
= write 0 3G
= write 1 9223372036854775807
= readv 0 3G
= readv 0 2G 2G
= aio_read 0 3G
= discard 0 3G
= read -P 256 0 1
= read -P x 0 1
= write -P -1 0 1
= write -c 100 512
= write -c 0 100
= read -b 0 100
= aio_write 0 1 x
= alloc x
= alloc 0 x
= truncate x
= sleep x
= sigraise x
EOF
}

@test "qcow2: output and content as with qemu-io" {
    compare_table qcow2 <<'EOF'
= read 0 512
= read -P 0x5a 1M 64k
= write 0 64k;read -P 0xcd 0 64k
= write 65000 1000;read -v 65000 20
= write -z 1M 64k;read -P 0 1M 64k
= write -zu 1M 64k
= write -c 0 64k;read -P 0xcd 0 64k
= write -c -P 3 0 128k;read -P 3 0 128k
= write -c 100 64k
= write -c 0 4k
= write -c -P 9 4032k 128k;map
= write -c -P 9 4032k 100k;map
= write -c -P 9 64k 100k;map
= write -c -P 9 32k 128k;map
= write -c 0 0
= write -c 8M 0
= truncate 1000k;write -c -P 9 960k 40k;read -P 9 960k 40k;map
= discard 1M 64k;read -P 0 1M 64k
= map
= write 0 64k;map
= alloc 0 4M
= alloc 1M 128k
= alloc 100 200
= length
= truncate 8M;length
= truncate -m falloc 64k;length
= truncate -m full 64k;length
= truncate -m metadata 64k;length
= truncate -m falloc 4M;length
= info
= aio_write 0 64k;aio_flush;aio_write 1M 64k;aio_flush
= reopen -r;reopen -w;write 0 512
= reopen -o lazy-refcounts=on;write 0 512
= reopen -o driver=qcow2,file.driver=file,file.filename=qcow2;write 0 512
= reopen -o auto-read-only=on,discard=ignore,detect-zeroes=on;write -P 0 0 64k;map
= reopen -o discard=ignore;write 1M 64k;discard 1M 64k;read 1M 64k
= write -b -P 3 0 64k;read -b -P 3 0 64k;read -b -P 0 64k 64k
= reopen -o l2-cache-size=64k,pass-discard-other=on;write 0 1M;read -P 0xcd 0 1M
= reopen -w -o cache.no-flush=on,refcount-cache-size=256k;write 0 1M
EOF
}

@test "a compressed write replaces what is allocated, unlike qemu-io's" {
    supports qcow2 || skip "no qcow2 driver"
    blkimg create -q -f qcow2 a 1M
    run -0 blkimg io -f qcow2 -c "write -P 1 0 128k" -c "write -c -P 2 0 64k" \
        -c "read -P 2 0 64k" -c "read -P 1 64k 64k" a
    run -0 blkimg check -q a
}

# --- misuse ----------------------------------------------------------------------------------

@test "a misused command fails with one line on stderr, as it fails in qemu-io" {
    need qemu-io
    mkdir images && (cd images && make_images)
    while read -r line; do
        in_both raw "$line"
        ((peer_status == 1 && mine_status == 1)) || differs "$line"
        [[ ! -s mine.raw-out && $(wc -l <mine.err) == 1 && $(<mine.err) == "blkimg: "* ]] ||
            differs "$line"
    done <<'EOF'
nonsense
read
read 0
read -X 0 1
read -1 5
read -s 1 0 10
read -l 1 0 10
read -P 0 -s 5 -l 6 0 10
read -P 0 -s 11 0 10
read 0 1 2
write -n 0 1
write -u 0 1
write -z -P 1 0 1
write -P 1 -s source 0 1
write -b -c 0 512
write -b -z 0 512
write -c -f 0 512
write -s missing 0 1
write -s empty 0 1
aio_write -z 0 1 1
aio_write -u 0 1
readv 0 1G 1G 1G
map 1
length 1
truncate
truncate -m nonsense 1M
sleep
sleep 1 2
reopen -r -w
reopen -c nonsense
reopen -o nonsense=1
reopen x
open raw
close;close
close;read 0 1
close;open missing
close;open
close;open -t nonsense raw
close;open -d nonsense raw
close;open -o driver=raw,nonsense=1 raw
close;open -U -o driver=raw raw
close;open raw qcow2
break x
reopen -r;write 0 1
reopen -r;discard 0 1
reopen -r;truncate 1M
reopen -r;aio_write 0 1
EOF
}

@test "what cannot be done is refused, not ignored" {
    truncate -s 1M raw
    # qemu-io takes the first size.
    run blkimg io -f raw -c 'truncate 2M 4M' -c length raw
    assert_failure 1
    assert_line '1 MiB'
}

@test "a temporary overlay takes the writes, and nothing is left of it" {
    need qemu-io
    local option
    truncate -s 1M raw
    mkdir tmp
    for option in -s --snapshot; do
        TMPDIR=$T/tmp run blkimg io -f raw "$option" -c 'write -qP 5 1000 1000' -c flush \
            -c 'read -qP 5 1000 1000' -c 'read -qP 0 0 1000' -c map raw
        assert_success
        assert_output "$(cp raw peer && qemu-io -f raw -s -c 'write -qP 5 1000 1000' -c map peer)"
    done
    TMPDIR=$T/tmp run blkimg io -c 'open -s raw' -c 'write -qP 5 0 512' -c close \
        -c 'open -rs raw' -c 'read -qP 0 0 512' -c 'write 0 512'
    assert_failure 1
    assert_output --partial "'raw' is open read-only"
    cmp raw <(head -c 1M /dev/zero)
    assert_equal "$(ls tmp)" ''
    # The image below is open read-only: others may read it meanwhile.
    chmod 444 raw
    TMPDIR=$T/tmp run blkimg io -f raw -s -c 'write -q 0 512' raw
    assert_success
}

@test "a misused command: qemu-io's words in our lines" {
    truncate -s 1M raw
    local command words
    while IFS='|' read -r command words; do
        run blkimg io -f raw -c "$command" raw
        assert_failure 1
        assert_output --partial "$words"
    done <<'EOF'
nonsense|command "nonsense" not found
read|bad argument count 0 to read, expected at least 2 arguments
map 1|bad argument count 1 to map, expected 0 arguments
truncate|bad argument count 0 to truncate, expected between 1 and 3 arguments
read -X 0 1|invalid option -- 'X'
write -n 0 1|-n requires -z to be specified
open x|file open already, try 'help close'
reopen -r -w|Only one -r/-w option may be given
EOF
    run blkimg io -c 'read 0 1'
    assert_output --partial "no file open, try 'help open'"
}

@test "a read that meets damage says what it is" {
    supports qcow2 || skip "no qcow2 driver"
    blkimg create -q -f qcow2 damaged 1M
    blkimg io -c 'write -q 0 1M' damaged
    truncate -s 800000 damaged
    for read in read aio_read; do
        run --separate-stderr blkimg io -r -c "$read 900k 512" damaged
        assert_failure 1
        [[ $output == *'failed: Input/output error' ]]
        [[ $stderr == 'blkimg: '*"'damaged'"*'the file is cut short at 800000' ]] || fail "$stderr"
    done
}

@test "wrong options of the command itself" {
    truncate -s 1M raw
    for options in '-Z raw' '-t nonsense raw' '-d nonsense raw' '-i nonsense raw' 'raw raw' \
        'missing' '-U raw' '-f nonsense raw' '--image-opts -f raw driver=raw,file.filename=raw'; do
        # shellcheck disable=SC2086 # words
        run --separate-stderr blkimg io -c 'read 0 1' $options
        assert_failure 1
        refute_output
        [[ $stderr == "blkimg: "* && $stderr != *$'\n'* ]]
    done
    run blkimg io -f raw -rU -k -m -T x -i native -d ignore -t none -c 'read -q 0 1' raw
    assert_success
    refute_output
}

# --- the truth in the exit status ------------------------------------------------------------

@test "a failed command does not stop the others, and fails the session" {
    truncate -s 1M raw
    run blkimg io -f raw -c 'write -q 0 512' -c nonsense -c 'write -q -P 1 512 512' raw
    assert_failure 1
    run blkimg io -f raw -c 'read -qP 0xcd 0 512' -c 'read -qP 1 512 512' raw
    assert_success
    refute_output
}

@test "a failed flush fails the command and the close, status 5" {
    truncate -s 1M raw
    local image=driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename=raw
    image+=,file.inject-error.0.iotype=flush,file.inject-error.0.once=on
    run --separate-stderr blkimg io --image-opts -c 'write -q 0 512' -c flush "$image"
    assert_failure 5
    refute_output
    [[ $stderr == *Input/output* ]]
    run --separate-stderr blkimg io --image-opts -c 'write -q 0 512' -c close -c 'open raw' \
        -c 'read -qP 0xcd 0 512' "$image"
    assert_failure 5
}

@test "a failed write is a result line and status 1" {
    truncate -s 1M raw
    local image=driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename=raw
    image+=,file.inject-error.0.iotype=write,file.inject-error.0.errno=28
    image+=,file.inject-error.0.once=on
    run blkimg io --image-opts -c 'write 0 512' -c 'write -q 512 512' "$image"
    assert_failure 1
    assert_output 'write failed: No space left on device'
    image=${image/.once=on/.nth=2}
    run blkimg io --image-opts -c 'aio_write -q 0 512' -c aio_flush -c 'aio_write -q 1024 512' \
        "$image"
    assert_failure 1
    assert_output 'aio_write failed: No space left on device'
}

@test "every single fault fails the session" {
    local iotype nth tried=0 image status out
    for iotype in read write write-zeroes discard flush truncate close; do
        for ((nth = 1; nth < 100; nth++)); do
            rm -f raw stats
            truncate -s 1M raw
            image=driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename=raw
            image+=,file.inject-error.0.iotype=$iotype
            image+=,file.inject-error.0.nth=$nth,file.inject-error.0.stats=stats
            status=0
            out=$(blkimg io --image-opts -c 'write -q 0 64k' -c 'aio_write -qP 1 64k 64k' \
                -c 'writev -q 200 1k 1k' -c 'write -qzu 128k 64k' -c 'aio_write -qf 256k 512' \
                -c aio_flush -c flush -c 'read -qP 1 64k 64k' -c 'aio_read -q 0 64k' \
                -c 'discard -q 512k 64k' -c 'truncate 2M' -c 'truncate 1M' -c 'reopen -r' \
                -c 'reopen -w' -c 'write -q 0 512' "$image" 2>&1) || status=$?
            if grep -q '^errors injected: 0$' stats; then
                ((status == 0)) && [[ -z $out ]]
                break
            fi
            tried=$((tried + 1))
            ((status == 1 || status == 5)) && [[ -n $out ]] ||
                fail "$iotype $nth: status $status, output: $out"
            [[ $iotype != close ]] || ((status == 5))
        done
        ((nth > 1 && nth < 100)) || fail "$iotype: $nth faults"
    done
    echo "# $tried faults tried" >&3
}

@test "writethrough makes each write durable, unsafe none, and the flush of the others one" {
    need strace
    need_unsanitized
    truncate -s 1M raw
    local mode syncs
    for mode in writethrough:2 writeback:1 unsafe:0; do
        strace -f -e trace=fsync,fdatasync -o trace "$BLKIMG" io -f raw -t "${mode%:*}" \
            -c 'write -q 0 512' -c 'write -q 512 512' -c flush raw
        syncs=$(grep -c 'sync(' trace) || true
        # How often a flush or close with nothing new syncs is its own business.
        ((syncs >= ${mode#*:} && (${mode#*:} > 0 || syncs == 0))) || fail "$mode: $syncs syncs"
    done
}

@test "results on a full device fail the session" {
    truncate -s 1M raw
    run bash -c '"$BLKIMG" io -f raw -c "read 0 1" raw >/dev/full'
    assert_failure 1
}

# --- breakpoints -----------------------------------------------------------------------------

@test "breakpoints order requests as in qemu-io" {
    need qemu-io
    local commands=(-c 'break pwritev A' -c 'aio_write 0 512' -c 'wait_break A' -c 'read 512 512'
        -c 'resume A' -c aio_flush -c 'break nonsense A' -c 'resume X' -c 'remove_break X')
    local status=0
    truncate -s 1M raw
    qemu-io -f raw "${commands[@]}" blkdebug::raw | mask_times >peer.out
    blkimg io -f raw "${commands[@]}" blkdebug::raw >mine.raw-out || status=$?
    mask_times <mine.raw-out | diff -u peer.out -
    ((status == 1))
}

@test "a request that overlaps a waiting one only, or reads, does not wait with it" {
    need qemu-io
    local tool
    cat >script <<'EOF'
break write_aio A
aio_write -P 1 128k 64k
wait_break A
aio_write -P 2 64k 192k
write -P 3 192k 64k
write -P 4 0 64k
read -P 3 192k 64k
read -P 0 128k 64k
resume A
aio_flush
read -P 4 0 64k
read -P 2 64k 192k
EOF
    for tool in qemu-io "$BLKIMG io"; do
        qemu-img create -q -f qcow2 image.qcow2 1M
        # shellcheck disable=SC2086 # two words
        run timeout 20 $tool blkdebug::image.qcow2 <script
        assert_success
        printf '%s\n' "$output" | sed 's/qemu-io> //g; /^$/d' | mask_times | sort \
            >"out.${tool##* }"
    done
    diff -u out.qemu-io out.io
    qemu-img check -q image.qcow2
}

@test "quit and close let go what a breakpoint holds" {
    truncate -s 1M raw
    run timeout 20 "$BLKIMG" io -f raw -c 'break pwritev A' -c 'aio_write -q 0 512' \
        -c 'wait_break A' -c quit blkdebug::raw
    assert_success
    run timeout 20 "$BLKIMG" io -f raw -c 'break pwritev A' -c 'aio_write -qP 1 512 512' \
        -c 'wait_break A' -c close -c 'open raw' -c 'read -qP 0xcd 0 512' \
        -c 'read -qP 1 512 512' blkdebug::raw
    assert_success
}

# --- input -----------------------------------------------------------------------------------

@test "commands from a pipe are run line by line, without a prompt" {
    truncate -s 1M raw
    run --separate-stderr blkimg io -f raw raw \
        <<<$'write -q 0 512\n\n   \nlength\nread -qP 0xcd 0 512'
    assert_success
    assert_output '1 MiB'
    run blkimg io -f raw raw < <(printf 'length\nnonsense\nlength')
    assert_failure 1
    assert_line --index 0 '1 MiB'
    assert_line --index 2 '1 MiB'
    run blkimg io <<<$'open -r -o driver=raw raw\nlength\nquit\nlength'
    assert_success
    assert_output '1 MiB'
}

@test "results are out while the session goes on" {
    truncate -s 1M raw
    mkfifo commands
    "$BLKIMG" io -f raw raw <commands >out &
    local pid=$!
    exec 7>commands
    echo 'length' >&7
    wait_for 10 grep -q '1 MiB' out
    exec 7>&-
    wait "$pid"
}

@test "on a terminal there is a prompt" {
    need_terminal
    truncate -s 1M raw
    run script -qec '"$BLKIMG" io -f raw raw' /dev/null < <(sleep 0.3; echo length; echo quit)
    assert_success
    assert_output --partial 'blkimg io> '
    assert_output --partial '1 MiB'
}

@test "help knows every command" {
    local command count=0
    run blkimg io -c help
    assert_success
    for command in abort aio_flush aio_read aio_write alloc break close discard flush help info \
        length map open quit read readv remove_break reopen resume sigraise sleep truncate \
        wait_break write writev; do
        assert_line --regexp "^$command .*-- "
        count=$((count + 1))
    done
    ((count == 26))
    run blkimg io -c 'help write' -c '? r'
    assert_success
    assert_line --partial 'write [-bcCfnquz]'
    run blkimg io -c 'help nonsense'
    assert_failure 1
}

# --- signals ---------------------------------------------------------------------------------

@test "a signal ends the session after a clean close" {
    truncate -s 1M raw
    run blkimg io -f raw -c 'write -q 0 512' -c 'sigraise 15' -c 'write -q 512 512' raw
    assert_failure 143
    run blkimg io -f raw -c 'read -qP 0xcd 0 512' -c 'read -qP 0 512 512' raw
    assert_success

    "$BLKIMG" io -f raw -c length -c 'sleep 60000' raw >out 2>err &
    local pid=$! status=0
    wait_for 10 grep -q MiB out
    kill -INT "$pid" || kill -TERM "$pid"
    kill -TERM "$pid"
    wait "$pid" || status=$?
    ((status == 130 || status == 143))

    # One that holds a request does not hang.
    "$BLKIMG" io -f raw -c 'break pwritev A' -c 'aio_write -q 0 512' -c 'wait_break A' \
        -c aio_flush blkdebug::raw >out 2>err &
    pid=$! status=0
    wait_for 10 grep -q Suspended out
    kill -TERM "$pid"
    wait "$pid" || status=$?
    ((status == 143))
}

@test "abort and deadly signals end the process" {
    truncate -s 1M raw
    ulimit -c 0
    run --separate-stderr blkimg io -f raw -c 'write -q 0 512' -c abort raw
    assert_failure 134
    run --separate-stderr blkimg io -f raw -c length -c 'sigraise 9' raw
    assert_failure 137
    assert_output '1 MiB'
}

@test "misaligned memory works with O_DIRECT" {
    truncate -s 1M raw
    run blkimg io -f raw -m -t none -c 'write -qP 5 512 8192' -c 'write -qP 6 100 7' \
        -c 'read -qP 5 512 8192' -c 'read -qP 6 100 7' raw
    [[ $output != *'Invalid argument'* ]] || skip 'no O_DIRECT here'
    assert_success
    refute_output
}
