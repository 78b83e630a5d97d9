# Crash tests with tests/tools/crashstates.py: a command killed or cut off from power at any moment.
# shellcheck shell=bash

# Thousands of copies of an image are made: in memory where that can be.
memory=/dev/shm
[[ -w $memory ]] || memory=${TMPDIR:-/tmp}

# How many states a command, unless CRASH_STATES says it; a file may set it.
states=110

# crashes ARG...: tries so many states. The test fails if one is bad; else a line says how many were
# tried. SEED=... repeats a run.
crashes() {
    [[ -z $SANITIZERS ]] || skip 'the preloaded recorder and sanitizers exclude each other'
    TMPDIR=$memory python3 "$SRCDIR/tests/tools/crashstates.py" run --quiet \
        --states "${CRASH_STATES:-$states}" ${SEED:+--seed "$SEED"} "$@" >crash.out 2>&1 || fail "$(tail -40 crash.out)"
    echo "# $BATS_TEST_DESCRIPTION: $(tail -1 crash.out)" >&3
}
