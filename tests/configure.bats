#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# configure takes what packagers' tools give to every configure script.

bats_require_minimum_version 1.5.0
load lib/common

configure() {
    mkdir -p build
    (cd build && CC="${CC:-cc}" "$SRCDIR/configure" "$@")
}

# setting NAME: what make makes of a variable.
setting() {
    # shellcheck disable=SC2016 # for make
    printf 'include config.mk\nshow:\n\t@echo $(%s)\n' "$1" | make -s -C build -f - show
}

@test "as debhelper calls it" {
    # shellcheck disable=SC2016 # make expands it
    configure --build=x86_64-linux-gnu --prefix=/usr '--includedir=${prefix}/include' '--mandir=${prefix}/share/man' \
        '--infodir=${prefix}/share/info' --sysconfdir=/etc --localstatedir=/var --disable-option-checking \
        --disable-silent-rules '--libdir=${prefix}/lib/x86_64-linux-gnu' --runstatedir=/run \
        --disable-maintainer-mode --disable-dependency-tracking --with-nonsense --enable-nonsense >out 2>err
    [[ ! -s err ]]
    assert_equal "$(setting bindir)" /usr/bin
    assert_equal "$(setting mandir)" /usr/share/man
}

@test "as rpm's %configure calls it" {
    configure --build=x86_64-redhat-linux-gnu --host=x86_64-redhat-linux-gnu --program-prefix= \
        --disable-dependency-tracking --prefix=/usr --exec-prefix=/usr --bindir=/usr/bin --sbindir=/usr/sbin \
        --sysconfdir=/etc --datadir=/usr/share --includedir=/usr/include --libdir=/usr/lib64 \
        --libexecdir=/usr/libexec --localstatedir=/var --runstatedir=/run --sharedstatedir=/var/lib \
        --mandir=/usr/share/man --infodir=/usr/share/info >out 2>err
    [[ ! -s err ]]
    assert_equal "$(setting bindir)" /usr/bin
    # What was given is given again when configure runs by itself.
    grep -q -- "'--libdir=/usr/lib64'" build/config.mk
}

@test "a directory and its value may be two words; the parts follow their whole" {
    configure --prefix /opt/x --exec-prefix /opt/y --datarootdir=/opt/z --libdir /opt/l >out
    assert_equal "$(setting bindir)" /opt/y/bin
    assert_equal "$(setting mandir)" /opt/z/man
}

@test "what is unknown is refused, all of it in one line, before anything is written" {
    run --separate-stderr -1 configure --enable-nonsense --with-more
    [[ $stderr == *--enable-nonsense*--with-more* && $stderr == *--disable-option-checking* ]]
    run -1 configure --nonsense --disable-option-checking
    run -1 configure --prefix
    run -1 configure --bindir=relative
    assert_not_exist build/config.mk
}
