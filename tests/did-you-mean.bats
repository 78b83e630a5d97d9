#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# What was mistyped: the message says what was probably meant, on one line, and nothing is made.

bats_require_minimum_version 1.5.0
load lib/common

# says TEXT COMMAND...: fails with one line that has the text.
says() {
    local text=$1 status=0
    shift
    timeout 20 "$BLKIMG" "$@" >out 2>err </dev/null || status=$?
    [[ $status != 0 && $(wc -l <err) == 1 && $(<err) == blkimg:*"$text"* ]] || fail "$*: status $status: $(<err)"
}

setup() {
    common_setup
    blkimg create -q -f qcow2 x.q 1M
}

@test "a format" {
    says "Unknown file format 'qcow3': did you mean 'qcow2'?" create -f qcow3 y 1M
    says "Unknown driver 'qcow3': did you mean 'qcow2'?" info -f qcow3 x.q
    says "Unknown driver 'qcow3': did you mean 'qcow2'?" info --image-opts driver=qcow3,file.filename=x.q
    says "Unknown driver 'qcow3': did you mean 'qcow2'?" create -f qcow2 -b x.q -F qcow3 y
    says "Unknown file format 'qcow3': did you mean 'qcow2'?" convert -O qcow3 x.q y
    # getopt makes "=qcow2" the value, and so do scripts' expectations.
    says "Unknown driver '=qcow2': did you mean 'qcow2'?" info -f=qcow2 x.q
    says "Unknown file format 'vmdk': this format (a VMware disk) is not supported" convert -O vmdk x.q y
    says "Unknown file format 'qcow': this format (the predecessor of qcow2) is not supported" create -f qcow y 1M
    says "Unknown driver 'qcow': this format (the predecessor of qcow2) is not supported" info -f qcow x.q
    says "Unknown driver 'elephant': no such format or protocol" info -f elephant x.q
    assert_not_exist y
}

@test "a long option, and an option of a format" {
    says "unknown option '--formt'; did you mean '--format'?" info --formt=qcow2 x.q
    says "unknown option '--ouptut'; did you mean '--output'?" map --ouptut json x.q
    says "unknown option '--elephant' (see" info --elephant x.q
    says "option 'clustersize': there is no such option (-o help lists them); did you mean 'cluster_size'?" \
        create -f qcow2 -o clustersize=4k y 1M
    says "did you mean 'preallocation'?" convert -O raw -o prealocation=full x.q y
    says "did you mean 'refcount_bits'?" amend -o refcount-bits=64 x.q
    assert_not_exist y
}

@test "a choice is one of those that the message lists" {
    says "--mode: 'incremental' is none of full, top, bitmap" backup --mode=incremental x.q y
    says "--bitmap-sync: 'often' is none of on-success, never, always" backup --bitmap-sync=often x.q y
    assert_not_exist y
}

@test "a size before the image" {
    says "the image comes first: create ... y 10G" create 10G y
    says "the image comes first: create ... y 10G" create -f qcow2 10G y
    says "the image comes first: resize ... x.q +1G" resize +1G x.q
    # A file of that name is meant, and so are two sizes.
    blkimg create -q 10G 1M
    blkimg resize -q -f raw 10G 2M
    [[ $(stat -c %s 10G) == 2097152 ]]
    says "'y' is not a size" create 10G y
    assert_not_exist y
}
