#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# The manual pages and the program agree: commands, options, and examples that run as they stand.

bats_require_minimum_version 1.5.0
load lib/common

pages() {
    local page
    for page in "$SRCDIR"/man/*.1; do
        basename "$page" .1
    done
}

commands() {
    blkimg help | sed -n '/^Commands:/,/^$/s/^  \([a-z-]*\)  .*/\1/p'
}

# The page with its markup taken away as far as options are concerned: "-p", "--output".
plain() {
    sed -e 's/\\-/-/g' -e 's/\bFl -/--/g' -e 's/\bFl \([A-Za-z]\)/-\1/g' -e 's/\\fB\|\\fR\|\\fI//g' \
        "$SRCDIR/man/$1.1"
}

# "-p --progress", or one of them: an option a line, but for -h.
options_of() {
    blkimg "$1" --help | sed -nE 's/^ {2}(-[A-Za-z])?,? +(--[a-z-]+)?.*/\1 \2/p' | grep -v -e '^ $' -e --help
}

@test "blkimg(1) lists every command and every page" {
    local command page
    [[ $(commands | wc -l) -gt 20 ]]
    for command in $(commands); do
        assert_file_exist "$SRCDIR/man/blkimg-$command.1"
        grep -qx "\.It Cm $command" "$SRCDIR/man/blkimg.1" || fail "blkimg(1): no command $command"
    done
    for page in $(pages); do
        [[ $page == blkimg ]] || grep -q "^\.Xr $page 1" "$SRCDIR/man/blkimg.1" || fail "no link to $page"
    done
}

@test "every option of a command is on its page, or among the common options" {
    local command short long text common
    common=$(plain blkimg | sed -n '/COMMON OPTIONS/,/SIGNALS/p')
    for command in $(commands); do
        text=$(plain "blkimg-$command")$common
        while read -r short long; do
            [[ $short == --* ]] && long=$short short=
            [[ -z $long ]] || grep -qE -- "(^|[^a-z-])$long([^a-z-]|$)" <<<"$text" ||
                fail "blkimg-$command(1) does not have $long"
            [[ -z $short ]] || grep -qE -- "(^|[ .\"\\\\B])-[A-Za-z]*${short#-}" <<<"$text" ||
                fail "blkimg-$command(1) does not have $short"
        done < <(options_of "$command")
    done
}

@test "every synopsis has --trust where it is taken" {
    local command
    for command in $(commands); do
        options_of "$command" | grep -qw -- --trust || continue
        plain "blkimg-$command" | sed '/DESCRIPTION/q' | grep -q -- --trust || fail "blkimg-$command(1)"
        blkimg "$command" --help | sed '/^$/q' | grep -qF -- '[--trust]' || fail "$command --help"
    done
}

@test "every option on a command's page is one that it takes" {
    local command option known lines
    for command in $(commands); do
        known=$(options_of "$command" | tr ' ' '\n')
        # Behind COMMANDS are the commands of io, which have options of their own.
        lines=$(plain "blkimg-$command" | sed '/^\.Sh COMMANDS/,$d' | grep -E '^\.(It|Op) ')
        for option in $(grep -oE -- '--[a-z][a-z-]+' <<<"$lines" | sort -u); do
            grep -qxF -- "$option" <<<"$known" || fail "blkimg-$command(1): $option"
        done
        for option in $(grep -oE -- ' -[A-Za-z]\b' <<<"$lines" | sort -u); do
            grep -qxF -- "$option" <<<"$known" || fail "blkimg-$command(1): $option"
        done
    done
}

@test "the synopsis and the option list of every page are those of --help" {
    local -a names
    mapfile -t names < <(commands)
    ((${#names[@]} > 20))
    run -0 "$SRCDIR/tests/tools/manual_options.py" "$BLKIMG" "$SRCDIR/man" "${names[@]}"
}

@test "the usage of a command: made of its options, within 80 columns" {
    local command option
    for command in $(commands); do
        blkimg "$command" --help | sed '/^$/Q' >usage
        [[ $(wc -L <usage) -le 80 ]] || fail "$(<usage)"
        # Each option is in it once in a form, by its letter or, without one, by its name.
        while read -r option _; do
            [[ $option == --* ]] || option=-${option#-}
            grep -qE -- "(^|[^a-z-])$option([^a-z-]|$)" usage ||
                { [[ $option == -[A-Za-z] ]] && grep -qE -- "\[-[A-Za-z]*${option#-}" usage; } ||
                fail "$command $option: $(<usage)"
        done < <(options_of "$command")
    done
}

# The commands of a page's EXAMPLES.
examples() {
    awk '/^\.S[hH] /{ in_examples = $2 == "EXAMPLES" }
        !in_examples { next }
        /^\.(Bd -literal|nf)/ { literal = 1; next }
        /^\.(Ed|fi)/ { literal = 0; next }
        literal { print; next }
        /^\.Dl / { print substr($0, 5) }' "$SRCDIR/man/$1.1" |
        sed -e 's/\\e/\\/g' -e 's/\\(dq/"/g' -e 's/\\-/-/g' \
            -e 's,^\$ ,,' -e 's,/dev/vg/lv,lv.raw,g' -e 's,/new/,new/,g'
}

# What the examples work with.
given_files() {
    local name
    mkdir given
    cd given || return 1
    truncate -s 10G disk.raw
    fill disk.raw 1048576 3000000 0x41
    cp disk.raw disk.img
    truncate -s 10G lv.raw
    qemu-img convert -f raw -O qcow2 disk.raw disk.qcow2
    qemu-img create -q -f qcow2 base.qcow2 64M
    qemu-io -c 'write -P 1 0 1M' base.qcow2
    cp base.qcow2 old.qcow2
    cp base.qcow2 copy.qcow2
    qemu-img create -q -f qcow2 root.qcow2 16M
    qemu-img create -q -f qcow2 data.qcow2 16M
    for name in overlay top; do
        qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 "$name.qcow2"
        qemu-io -c 'write -P 2 512k 1M' "$name.qcow2"
    done
    for name in a b; do
        qemu-img create -q -f qcow2 -b old.qcow2 -F qcow2 "$name.qcow2"
    done
    mkdir new
    cd ..
}

@test "the examples of every page run" {
    need qemu-img qemu-io
    given_files
    local page text
    for page in $(pages); do
        text=$(examples "$page")
        [[ $text == *blkimg* ]] || fail "$page(1) has no example"
        rm -rf work
        cp -a given work
        (cd work && PATH=$(dirname "$BLKIMG"):$PATH bash -e -c "$text") >out 2>err </dev/null ||
            fail "$page(1): status $? of: $text: $(<err)"
        [[ $page == blkimg-blkdebug ]] || assert_file_empty err
    done
}
