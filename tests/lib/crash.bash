# SPDX-License-Identifier: MIT
# Crash tests with tests/tools/crashstates.py: a command killed or cut off from power at any moment.
# shellcheck shell=bash

# Thousands of copies of an image are made: in memory where possible.
memory=/dev/shm
[[ -w $memory ]] || memory=${TMPDIR:-/tmp}

# The number of states per command, unless CRASH_STATES is set; a file may set it.
states=110

# crashes ARG...: tries that many states. The test fails if one is bad; else a line says how many
# were tried. SEED=... repeats a run.
crashes() {
    [[ -z $SANITIZERS ]] || skip 'the preloaded recorder and sanitizers exclude each other'
    TMPDIR=$memory python3 "$SRCDIR/tests/tools/crashstates.py" run --quiet \
        --states "${CRASH_STATES:-$states}" ${SEED:+--seed "$SEED"} "$@" >crash.out 2>&1 || fail "$(tail -40 crash.out)"
    echo "# $BATS_TEST_DESCRIPTION: $(tail -1 crash.out)" >&3
}
