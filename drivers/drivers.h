/* SPDX-License-Identifier: MIT */
/* The tables of all drivers, for registry.c alone: drivers do not know each other. */
#ifndef DRIVERS_DRIVERS_H
#define DRIVERS_DRIVERS_H

#include "blockcore/graph/driver.h"

extern const struct blk_driver blk_driver_file;
extern const struct blk_driver blk_driver_host_device;
extern const struct blk_driver blk_driver_blkdebug;
extern const struct blk_driver blk_driver_compress;
extern const struct blk_driver blk_driver_copy_on_read;
extern const struct blk_driver blk_driver_null_co;
extern const struct blk_driver blk_driver_null_aio;
extern const struct blk_driver blk_driver_qcow2;
extern const struct blk_driver blk_driver_raw;

#endif
