/* SPDX-License-Identifier: MIT */
/*
 * What an image says about itself, for info. What only one format has is a tree of named values:
 * the drivers need not know how it is printed.
 */
#ifndef BLOCKCORE_GRAPH_INFO_H
#define BLOCKCORE_GRAPH_INFO_H

#include <stdbool.h>
#include <stdint.h>

enum blk_value_type {
    BLK_VALUE_OBJECT, /* members with names, in the order in which they were added */
    BLK_VALUE_LIST,   /* items without */
    BLK_VALUE_BOOL,
    BLK_VALUE_NUMBER,
    BLK_VALUE_TEXT,
};

/* A zeroed one is an object without members. */
struct blk_value {
    enum blk_value_type type;
    const char *name; /* of a member of an object: a literal; else NULL */
    union {
        bool boolean;
        uint64_t number;
        char *text; /* any bytes */
        struct {
            struct blk_value *first, *last;
        } of; /* an object or a list */
    };
    struct blk_value *next; /* in the same object or list */
};

/*
 * These add a value at the end of an object (`name` is a literal) or a list (NULL). A text is
 * copied. What the last two return belongs to `to`, too, and is to be filled by further calls.
 */
void blk_value_add_bool(struct blk_value *to, const char *name, bool value);
void blk_value_add_number(struct blk_value *to, const char *name, uint64_t value);
void blk_value_add_text(struct blk_value *to, const char *name, const char *value);
struct blk_value *blk_value_add_list(struct blk_value *to, const char *name);
struct blk_value *blk_value_add_object(struct blk_value *to, const char *name);

/* What `info` shows of one node. Zeroed by the caller, who also frees it. */
struct blk_info {
    uint64_t cluster_bytes;   /* 0: no clusters */
    uint64_t vm_state_offset; /* where a machine's state would begin, or 0 */
    bool dirty;
    bool encrypted;
    bool corrupt;
    bool has_snapshots;        /* format can have them */
    const char *specific_type; /* the format that `specific` is about; NULL: there is nothing */
    struct blk_value specific; /* an object */
};

void blk_info_free(struct blk_info *info);

/* For a variable that is freed at the end of its scope. */
#define BLK_AUTO_INFO __attribute__((cleanup(blk_info_free)))

#endif
