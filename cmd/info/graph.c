/* SPDX-License-Identifier: MIT */
/*
 * The graph is opened without asking for locks, so that an image in use can be shown; then each
 * file is asked what others hold of it. "writable" is what a command that writes the image would
 * have: its own files, as far as the user may, but not its backing files.
 */
#include "cmd/info/graph.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blockcore/base/memory.h"
#include "blockcore/bitmap/bitmaps.h"
#include "cmd/common/common.h"

int graph_form_parse(const char *text, enum graph_form *form)
{
    *form = !text ? GRAPH_NONE : strcmp(text, "dot") == 0 ? GRAPH_DOT : GRAPH_TEXT;
    if (!text || *form == GRAPH_DOT || strcmp(text, "text") == 0)
        return EXIT_OK;
    return report_failure("--graph: '%s' is neither text nor dot", text);
}

static const char *const role_names[BLK_ROLE_COUNT] = {
    [BLK_ROLE_FILE] = "file",
    [BLK_ROLE_BACKING] = "backing",
    [BLK_ROLE_DATA] = "data-file",
    [BLK_ROLE_TARGET] = "target",
};

/* ---- locks ---- */

/*
 * QEMU's lock bytes: 100 + p says that somebody uses p, 200 + p that he lets nobody else use it. p
 * 1: writing.
 */
enum { BYTE_WRITES = 101, BYTE_ALLOWS_NO_WRITER = 201 };

static bool is_held(int fd, off_t byte)
{
    struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1 };
    return fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

/* What others do with the file of a protocol node; NULL where that cannot be known. */
static const char *lock_state(const struct blk_node *node)
{
    struct stat st;
    if (blk_kind_of(node) != BLK_PROTOCOL || stat(node->name, &st) < 0 ||
        !(S_ISREG(st.st_mode) || S_ISBLK(st.st_mode)))
        return NULL;
    int fd = open(node->name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return NULL;
    const char *state = is_held(fd, BYTE_WRITES)             ? "in use by a writer"
                        : is_held(fd, BYTE_ALLOWS_NO_WRITER) ? "in use by a reader"
                                                             : "not in use";
    /* Nothing was written: what closing says has no meaning here. */
    (void)close(fd);
    return state;
}

/* ---- what is said of a node ---- */

static void describe_bitmaps(FILE *to, const struct blk_node *node)
{
    for (struct blk_dirty_bitmap *b = node->bitmaps ? node->bitmaps->first : NULL; b; b = b->next) {
        char size[32];
        blk_format_size(UINT64_C(1) << b->granularity_bits, size);
        fprintf(to, "\nbitmap %s: %s, %s", b->name, size,
                b->inconsistent ? "marked in use"
                : b->enabled    ? "enabled"
                                : "disabled");
    }
}

/* The lines about a node, malloc()ed. `writable`: its parents would let it be written. */
static char *node_label(struct blk_node *node, bool writable)
{
    char *text = NULL, size[32];
    size_t bytes;
    FILE *to = open_memstream(&text, &bytes);
    if (!to)
        blk_out_of_memory();

    bool may_write = writable && access(blk_bottom(node)->name, W_OK) == 0;
    blk_format_size(blk_size(node), size);
    fprintf(to, "%s\n%s%s, %s, %s", node->name, blk_format_name(node),
            node->probed ? " (guessed)" : "", size, may_write ? "writable" : "read-only");
    const char *lock = lock_state(node);
    if (lock)
        fprintf(to, ", %s", lock);
    describe_bitmaps(to, node);
    bool lost = ferror(to);
    if (fclose(to) != 0 || lost)
        blk_out_of_memory();
    return text;
}

/* ---- text ---- */

static const struct blk_node *last_child(const struct blk_node *node)
{
    const struct blk_node *last = NULL;
    for (int role = 0; role < BLK_ROLE_COUNT; role++)
        if (node->children[role])
            last = node->children[role];
    return last;
}

/*
 * Prints a node and all below. `before` begins each line of it; `role`: what it is to its parent,
 * NULL for the root.
 */
static void print_text(struct blk_node *node, const char *role, const char *before, bool is_last,
                       bool writable)
{
    BLK_AUTOFREE char *text = node_label(node, writable);
    BLK_AUTOFREE char *below = blk_xasprintf("%s%s", before,
                                             !role     ? ""
                                             : is_last ? "    "
                                                       : "|   ");
    bool has_children = last_child(node);

    if (role)
        printf("%s%s-- %s: ", before, is_last ? "`" : "|", role);
    char *rest = text;
    for (bool first = true; rest; first = false) {
        char *line = strsep(&rest, "\n");
        if (!first)
            printf("%s%s", below, has_children ? "|   " : "    ");
        print_escaped(stdout, line);
        putchar('\n');
    }
    for (int i = 0; i < BLK_ROLE_COUNT; i++) {
        struct blk_node *child = node->children[i];
        if (child)
            print_text(child, role_names[i], below, child == last_child(node),
                       writable && i != BLK_ROLE_BACKING);
    }
}

/* ---- Graphviz ---- */

/* A string of the DOT language; a newline stands for a new line of a label. */
static void print_quoted(const char *text)
{
    putchar('"');
    for (const char *p = text; *p; p++) {
        if (*p == '\n')
            fputs("\\n", stdout);
        else if (*p == '"' || *p == '\\')
            printf("\\%c", *p);
        else
            putchar((unsigned char)*p < 0x20 ? '?' : *p);
    }
    putchar('"');
}

/* Prints a node and all below as n<number>...; returns the next free number. */
static unsigned print_dot(struct blk_node *node, unsigned number, bool writable)
{
    static const char *const shapes[] = {
        [BLK_PROTOCOL] = "cylinder",
        [BLK_FORMAT] = "box",
        [BLK_FILTER] = "hexagon",
    };
    BLK_AUTOFREE char *text = node_label(node, writable);
    unsigned next = number + 1;

    printf("    n%u [shape=%s, label=", number, shapes[blk_kind_of(node)]);
    print_quoted(text);
    puts("];");
    for (int i = 0; i < BLK_ROLE_COUNT; i++) {
        struct blk_node *child = node->children[i];
        if (!child)
            continue;
        printf("    n%u -> n%u [label=\"%s\"];\n", number, next, role_names[i]);
        next = print_dot(child, next, writable && i != BLK_ROLE_BACKING);
    }
    return next;
}

int print_graph(const struct image_args *args, const char *name, enum graph_form form)
{
    struct image_args sharing = *args;
    struct blk_error err = BLK_ERROR_INIT;
    struct blk_node *root;

    sharing.force_share = true;
    sharing.trust = true; /* what does not fit is to be seen */
    if (image_open(&sharing, name, 0, NULL, &root, &err) < 0)
        return report_error(&err);
    if (form == GRAPH_TEXT) {
        print_text(root, NULL, "", true, true);
    } else {
        puts("digraph blkimg {");
        print_dot(root, 0, true);
        puts("}");
    }
    return finish(EXIT_OK, &root, 1, NULL);
}
