/* SPDX-License-Identifier: MIT */
/* The tables of the drivers that live with the jobs they serve; drivers/registry.c lists them. */
#ifndef BLOCKCORE_FILTERS_FILTERS_H
#define BLOCKCORE_FILTERS_FILTERS_H

#include "blockcore/graph/driver.h"

extern const struct blk_driver blk_driver_copy_before_write;
extern const struct blk_driver blk_driver_snapshot_access;
extern const struct blk_driver blk_driver_mirror;

#endif
