# SPDX-License-Identifier: MIT
# Fault loops: a command runs once for each request (or system call) that it makes, with that one
# failing.
#
# A test lays out its files in the directory $SCENE. Each run gets a copy of it and works in that
# directory. What must hold after a fault is in check-fault.bash.
# shellcheck shell=bash

# Call in setup, after common_setup.
faults_setup() {
    SCENE=$T/scene
    FAULTS=0
    MAX_FAULTS=300 # of one kind in one command: more would not end in time
    mkdir "$SCENE"
}

# Call at the end of a test that has fault loops.
report_faults() {
    echo "# $FAULTS faults tried: $BATS_TEST_DESCRIPTION" >&3
    ((FAULTS > 0))
}

# request_faults EXPECT FILE IOTYPES ARG...: fails each request of these types to FILE in "blkimg
# ARG...", where "@" at the end of an argument is replaced by the file name with the
# injector in front. Each type must occur. With FAULT_ONCE=off all later requests of the type fail too.
request_faults() {
    local expect=$1 file=$2 iotypes=$3 iotype
    shift 3
    for iotype in $iotypes; do
        each_request "$expect" "$file" "$iotype" "$@" || return 1
    done
}

each_request() {
    local expect=$1 file=$2 iotype=$3 nth status
    shift 3
    for ((nth = 1; nth <= MAX_FAULTS; nth++)); do
        run_with_fault "$file" "$iotype" "$nth" "$@"
        if [[ ! -s $T/stats ]]; then
            explain "$iotype $nth" "$@"
            echo "the injector did not report"
            return 1
        fi
        [[ $(sed -n 's/errors injected: //p' "$T/stats") != 0 ]] || break
        FAULTS=$((FAULTS + 1))
        # io says on stdout what became of a request, as qemu-io does.
        if ! FAULT_STATUS=$status FAULT_CALL=$iotype FAULT_STDERR=$(<"$T/err") \
            FAULT_SAID=$(grep ' failed: ' "$T/out") \
            bash "$SRCDIR/tests/lib/check-fault.bash" "$expect" "$file" "$SCENE" "$T/run"; then
            explain "$iotype $nth" "$@"
            return 1
        fi
    done
    if ((nth == 1 || nth > MAX_FAULTS || status != 0)) || [[ -s $T/err ]]; then
        explain "$iotype, no fault in request $nth" "$@"
        return 1
    fi
}

# Leaves: status, $T/out, $T/err, $T/stats, $T/run.
run_with_fault() {
    local file=$1 iotype=$2 nth=$3 arg args=()
    shift 3
    for arg; do
        args+=("${arg/%@/blkdebug:$T/rules:$file}")
    done
    cat >"$T/rules" <<END
[inject-error]
iotype = "$iotype"
nth = "$nth"
once = "${FAULT_ONCE:-on}"
errno = "${FAULT_ERRNO:-5}"
stats = "$T/stats"
END
    rm -rf "$T/run" "$T/stats"
    cp -a --sparse=always "$SCENE" "$T/run"
    status=0
    (cd "$T/run" && exec "$BLKIMG" "${args[@]}") >"$T/out" 2>"$T/err" </dev/null || status=$?
}

explain() {
    local fault=$1
    shift
    printf 'fault: %s\ncommand: blkimg %s\nstatus: %s\n' "$fault" "$*" "$status"
    sed 's/^/stdout: /' "$T/out"
    sed 's/^/stderr: /' "$T/err"
}

# call_faults EXPECT FILE CALLS ARG...: fails each system call of these kinds (see
# tools/README.md) on the files of the scene, FILE among them whether it exists or not.
call_faults() {
    local expect=$1 file=$2 calls=$3 names
    local -x FAULT_SAID=
    shift 3
    # What io says on stdout is not seen here; request_faults looks at it.
    [[ $1 != io ]] || FAULT_SAID=perhaps
    names=$({ ls -A "$SCENE"; echo "$file"; } | sort -u | sed "s|^|$SCENE/|" | paste -sd:)
    rm -rf "$T/result"
    cp -a --sparse=always "$SCENE" "$T/result"
    (cd "$T/result" && exec "$BLKIMG" "$@") >"$T/out" </dev/null || return 1
    local sticky=
    [[ ${FAULT_ONCE:-on} == on ]] || sticky=--sticky
    FAULT_RESULT=$T/result \
        python3 "$SRCDIR/tests/tools/faultloop.py" --files "$names" --calls "$calls" \
        --errno "${FAULT_ERRNO:-5}" $sticky --jobs 2 --workdir "$T" \
        --check "bash $SRCDIR/tests/lib/check-fault.bash $expect $file $SCENE" \
        -- "$BLKIMG" "$@" >"$T/loop" ||
        {
            printf 'command: blkimg %s\n' "$*"
            cat "$T/loop"
            return 1
        }
    FAULTS=$((FAULTS + $(sed -n 's/^faults: \([0-9]*\) tried.*/\1/p' "$T/loop")))
}
