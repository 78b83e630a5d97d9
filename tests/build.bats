# SPDX-License-Identifier: MIT
# What the build does beside compiling: archives, and where they come from.

load lib/common

configured() {
    mkdir "$1" && cd "$1" && "${2:-$SRCDIR}/configure" >/dev/null
}

@test "make dist: the committed tree, the same bytes each time" {
    need git
    [[ -e $SRCDIR/.git ]] || skip "not a git checkout"
    configured a
    run -0 make -s dist
    run -0 tar -tzf blkimg-*.tar.gz
    assert_output --partial /blockcore/graph/close.c
    refute_output --partial .o
    mv blkimg-*.tar.gz ../one.tar.gz
    assert_equal "$(ls)" $'Makefile\nconfig.h\nconfig.log\nconfig.mk'
    run -0 make -s dist
    cmp blkimg-*.tar.gz ../one.tar.gz
}

@test "make dist outside a checkout fails and leaves no archive" {
    mkdir source
    cp -r "$SRCDIR"/{Makefile,configure,blockcore,drivers,cmd,man} source
    configured a "$T/source"
    run ! make -s dist
    assert_output --partial 'is not a git checkout'
    run -0 ls
    refute_output --partial .tar
}
