/* SPDX-License-Identifier: MIT */
/* The only list of drivers. Formats are probed in this order; the highest score wins. */
#include "blockcore/filters/filters.h"
#include "drivers/drivers.h"

const struct blk_driver *const blk_drivers[] = {
    &blk_driver_raw,
    &blk_driver_qcow2,
    &blk_driver_file,
    &blk_driver_host_device,
    &blk_driver_blkdebug,
    &blk_driver_compress,
    &blk_driver_copy_before_write,
    &blk_driver_copy_on_read,
    &blk_driver_snapshot_access,
    &blk_driver_mirror,
    &blk_driver_null_co,
    &blk_driver_null_aio,
    NULL,
};
