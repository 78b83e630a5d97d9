# SPDX-License-Identifier: MIT
# What every bats file loads: "load lib/common".
#
# Each test starts in a private directory $T. When it ends, however it ends, the processes it started,
# what it mounted below $T and the loop devices it made are gone, and so is $T.
#
# Set by tests/run: BLKIMG (the program), SRCDIR, BUILDDIR, TEST_TOOLS (the programs of
# tests/tools), SANITIZERS (what the program was built with, or empty).
# A bats file with its own setup or teardown calls common_setup or common_teardown in it.
# shellcheck shell=bash

# The files of bats' libraries themselves, if they are where Debian puts them: each load.bash starts a
# program for each of its files, which is half of what a short test costs.
load_library() {
    local file files=(/usr/lib/bats/"$1"/src/*.bash)
    if [[ ! -e ${files[0]} ]]; then
        bats_load_library "$1"
        return
    fi
    for file in "${files[@]}"; do
        # shellcheck disable=SC1090 # theirs
        source "$file"
    done
}
load_library bats-support
load_library bats-assert
load_library bats-file

setup() { common_setup; }
teardown() { common_teardown; }

common_setup() {
    SRCDIR=${SRCDIR:-$(cd "$BATS_TEST_DIRNAME/.." && pwd -P)}
    BUILDDIR=${BUILDDIR:-$SRCDIR}
    BLKIMG=${BLKIMG:-$BUILDDIR/blkimg}
    TEST_TOOLS=${TEST_TOOLS:-$BUILDDIR/tests/tools}
    SANITIZERS=${SANITIZERS-}
    # Exported: every process started from here on is known by it (see kill_leftovers).
    T=$(mktemp -d "${TMPDIR:-/tmp}/blkimg-test.XXXXXX")
    export SRCDIR BUILDDIR BLKIMG TEST_TOOLS SANITIZERS T
    # Messages are compared with qemu-img's.
    export LC_ALL=C
    cd "$T" || return 1
    start_watchdog
    trace_failures_only
}

# bats notes the place of every command before it runs (a DEBUG trap), so that it can name the one that
# fails. The failure itself knows it, too, and without the trap a loop runs fifty times as fast.
# What ends a test otherwise (exit, set -u) is said to have no place but the test.
# shellcheck disable=SC2034 # variables of bats
trace_failures_only() {
    trap - DEBUG
    trap note_failure ERR
    BATS_DEBUG_LAST_STACK_TRACE=("1 $BATS_TEST_NAME $BATS_TEST_FILENAME")
    BATS_DEBUG_LASTLAST_STACK_TRACE=("${BATS_DEBUG_LAST_STACK_TRACE[@]}")
}

note_failure() {
    local status=$?
    bats_capture_stack_trace
    # shellcheck disable=SC2034 # for bats
    BATS_DEBUG_LAST_STACK_TRACE_IS_VALID=1
    (exit "$status") || bats_check_status_from_trap
}

common_teardown() {
    cd / || return 1
    kill_leftovers
    # The watchdog was started without T, so it outlived the line above.
    [[ -z ${watchdog_pid-} ]] || kill "$watchdog_pid" 2>/dev/null || true
    unmount_leftovers
    rm -rf --one-file-system "$T"
    [[ ! -e $BATS_TEST_TMPDIR/timeout ]] || fail "time limit of ${TEST_TIMEOUT:-300} s"
}

# --- cleaning up -----------------------------------------------------------------------------

# The processes of this test: those with T=$T in their environment. bash itself and its subshells
# show the environment they were started with, so they are not among them.
leftovers() {
    local env
    env -u T grep -lzxF "T=$T" /proc/[0-9]*/environ 2>/dev/null | while read -r env; do
        env=${env%/environ}
        echo "${env#/proc/}"
    done
}

# Kills what the test left running, and waits until it is gone.
kill_leftovers() {
    local pids tries
    for ((tries = 0; tries < 100; tries++)); do
        pids=$(leftovers)
        [[ -n $pids ]] || return 0
        # shellcheck disable=SC2086 # a list
        kill -KILL $pids 2>/dev/null || true
        sleep 0.02
    done
    echo "processes that cannot be killed: $pids" >&2
    return 1
}

# The time limit of a test. bats' own (BATS_TEST_TIMEOUT, not used) ends only its direct children; a
# command substitution would wait on for a grandchild, and "run" would hide the signal. Nor is bats'
# timer ended with a test that is very short, and the file then waits for it. This one ends all that
# belongs to the test, then the test itself if that still runs, which then is a failure.
start_watchdog() {
    local limit=${TEST_TIMEOUT:-300} test=$BASHPID
    # Descriptors are closed: bats waits until nobody holds them any more.
    (
        exec </dev/null >/dev/null 2>&1 3>&- 4>&-
        env -u T sleep "$limit" &
        trap 'kill $!; exit' TERM
        # Ended early means that the test is over and its processes are being cleared away.
        wait $! || exit
        touch "$BATS_TEST_TMPDIR/timeout"
        kill_leftovers
        # A loop of the shell alone is not among them.
        env -u T sleep 5 &
        wait $! || exit
        kill -TERM "$test"
    ) &
    watchdog_pid=$!
}

# Unmounts what is mounted below $T, newest first.
unmount_leftovers() {
    local where mounts=()
    while read -r _ _ _ _ where _; do
        [[ $where != "$T"/* ]] || mounts=("$where" "${mounts[@]}")
    done </proc/self/mountinfo
    for where in "${mounts[@]}"; do
        umount "$where" 2>/dev/null || umount -l "$where" || true
    done
}

# --- what a test needs -----------------------------------------------------------------------

# need PROGRAM...: skips the test unless all are installed.
need() {
    local program
    for program; do
        command -v "$program" >/dev/null || skip "$program is not installed"
    done
}

# Whether this build has the format.
supports() {
    blkimg --help | grep -Eq "^Supported formats:.* $1( |$)"
}

# Skips the test unless this build has the format.
need_format() {
    supports "$1" || skip "no $1 in this build"
}

# Skips the test unless script(1) can make a terminal, which some containers do not allow.
need_terminal() {
    need script
    script -qec true /dev/null </dev/null >/dev/null 2>&1 || skip "no pseudo-terminal here"
}

# Skips the test unless it runs as root.
need_root() {
    ((EUID == 0)) || skip "only root can do this"
}

# need_unsanitized [WHY]: skips the test for a program built with sanitizers, whose memory use,
# speed and system calls are not the real ones.
need_unsanitized() {
    [[ -z $SANITIZERS ]] || skip "${1:-not meaningful} with -fsanitize=$SANITIZERS"
}

# small_tmpfs SIZE DIR: a file system that fills up soon, as in "small_tmpfs 1m full".
small_tmpfs() {
    need_root
    mkdir -p "$2"
    mount -t tmpfs -o "size=$1" blkimg-test "$2" 2>/dev/null || skip "cannot mount a tmpfs here"
}

# loop_device FILE [OPTION...]: a block device over the file; its name is in $LOOP. It is detached
# at once, which takes effect when nobody has it open any more: when this test has ended, even if it
# was killed, and whether or not /sys is there to find it by.
loop_device() {
    local file=$1 held
    shift
    need_root
    need losetup
    LOOP=$(losetup --show "$@" -f "$(realpath "$file")" 2>/dev/null) || skip "no loop device here"
    # shellcheck disable=SC2034 # held open until the test ends
    exec {held}<"$LOOP" || { losetup -d "$LOOP"; return 1; }
    losetup -d "$LOOP"
}

# loop_xfs SIZE DIR: an XFS (with reflinks) in a file of at least 300M, mounted on DIR.
loop_xfs() {
    need_root
    need mkfs.xfs
    local image
    image=$(mktemp "$T/xfs.XXXXXX")
    mkdir -p "$2"
    truncate -s "$1" "$image"
    mkfs.xfs -q -m reflink=1 "$image" || return 1
    mount -o loop "$image" "$2" 2>/dev/null || skip "cannot mount an XFS here"
}

# --- running and comparing -------------------------------------------------------------------

# The program under test, for "run blkimg …".
blkimg() {
    "$BLKIMG" "$@"
}

# qio FILE COMMAND...: qemu-io runs the commands on the file; what it prints is dropped.
qio() {
    local file=$1 command commands=()
    shift
    for command; do commands+=(-c "$command"); done
    qemu-io "${commands[@]}" "$file" >/dev/null
}

# spawn COMMAND...: starts it in the background; its pid is in $pid, its output in the files
# spawn.out and spawn.err. Unlike after a plain "&" it gets SIGINT, and bats does not wait for it.
spawn() {
    # Here and not in the child: who waits for output must not find that of the one before.
    : >spawn.out
    : >spawn.err
    env --default-signal "$@" </dev/null >spawn.out 2>spawn.err 3>&- &
    pid=$!
}

# Waits for what spawn started: $status is its status, $output what it wrote to stdout and stderr.
finish() {
    status=0
    wait "$pid" || status=$?
    # shellcheck disable=SC2034 # for the test
    output=$(cat spawn.out spawn.err)
}

# Times and rates of qemu-io's result lines, which differ from run to run, become X.
mask_io_times() {
    sed -E 's/[0-9.]+ sec \([^)]*\)/X sec (X)/'
}

# Both programs with the same arguments, one after the other in this directory: same stdout, same
# status. stderr must be empty in both or in neither; its wording may differ.
# Afterwards $output is the common stdout and $status the common status.
same_as() {
    local peer=$1 mine=$2 filter=$3
    local peer_status=0 mine_status=0
    shift 3
    # shellcheck disable=SC2086 # a command and its subcommand
    $peer "$@" >"$T/.peer.out" 2>"$T/.peer.err" </dev/null || peer_status=$?
    # shellcheck disable=SC2086
    $mine "$@" >"$T/.mine.out" 2>"$T/.mine.err" </dev/null || mine_status=$?
    "$filter" <"$T/.peer.out" >"$T/.peer" && "$filter" <"$T/.mine.out" >"$T/.mine"
    if ! diff -u --label "$peer" --label blkimg "$T/.peer" "$T/.mine" ||
        ((peer_status != mine_status)) ||
        [[ -s $T/.peer.err && ! -s $T/.mine.err || ! -s $T/.peer.err && -s $T/.mine.err ]]; then
        printf 'arguments: %s\n' "$*"
        printf '%s: status %d, stderr: %s\n' "$peer" "$peer_status" "$(<"$T/.peer.err")"
        printf 'blkimg: status %d, stderr: %s\n' "$mine_status" "$(<"$T/.mine.err")"
        return 1
    fi
    # shellcheck disable=SC2034 # for the test
    output=$(<"$T/.mine") status=$mine_status
    rm -f "$T"/.peer* "$T"/.mine*
}

# same_output CMD ARG...: as same_as, with qemu-img.
same_output() {
    need qemu-img
    same_as qemu-img "$BLKIMG" cat "$@"
}

# same_io_output ARG...: as same_as, qemu-io against "blkimg io"; times are not compared.
same_io_output() {
    need qemu-io
    same_as qemu-io "$BLKIMG io" mask_io_times "$@"
}

# wait_for SECONDS COMMAND...: polls until the command succeeds; fails when time is up.
wait_for() {
    local seconds=$1 end
    shift
    end=$((${EPOCHREALTIME/./} + seconds * 1000000))
    until "$@"; do
        if ((${EPOCHREALTIME/./} > end)); then
            echo "not within $seconds s: $*"
            return 1
        fi
        sleep 0.05
    done
}

# fill FILE OFFSET LENGTH [BYTE]: writes a pattern, without help from either program under test.
fill() {
    head -c "$3" /dev/zero | tr '\0' "\\$(printf %o "${4:-0x5a}")" |
        dd of="$1" bs=64k oflag=seek_bytes seek="$2" conv=notrunc iflag=fullblock status=none
}
