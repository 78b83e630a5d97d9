# SPDX-License-Identifier: MIT
# A disk with a bitmap, a full backup of it and one that was made on that; and their ids. To be
# loaded after lib/common.
# shellcheck shell=bash

# In the current directory: "disk" with the bitmap "b", "full", and "inc", whose base is "full".
chain_setup() {
    need qemu-img jq
    blkimg create -q -f qcow2 disk 1M
    blkimg io -c 'write -P 1 0 512k' disk >out
    blkimg backup --new-bitmap=b disk full
    blkimg io -c 'write -P 2 256k 64k' disk >out
    blkimg backup --bitmap=b --base=full disk inc
    # shellcheck disable=SC2034 # for the tests
    FULL=$(id_of full)
    # shellcheck disable=SC2034
    INC=$(id_of inc)
}

id_of() {
    blkimg info --output=json "$1" | jq -r '.backup.id'
}
