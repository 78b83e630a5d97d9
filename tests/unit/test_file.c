/* SPDX-License-Identifier: MIT */
/*
 * The file driver through the public interface: what is under a name at which moment, and that
 * every failing system call is heard of. Faults come from a copy of the table of system calls.
 */
#include <errno.h>
#include <ftw.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "blockcore/base/bytes.h"
#include "blockcore/base/memory.h"
#include "blockcore/base/sys.h"
#include "blockcore/graph/close.h"
#include "blockcore/graph/create.h"
#include "blockcore/graph/driver.h"
#include "blockcore/graph/flush.h"
#include "blockcore/graph/io.h"
#include "blockcore/graph/open.h"
#include "blockcore/graph/open_files.h"
#include "blockcore/graph/reopen.h"
#include "blockcore/graph/status.h"
#include "tests/unit/check.h"

/* ---- a private folder ---- */

static char folder[200];

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

static void leave_folder(void)
{
    if (chdir("/") == 0)
        nftw(folder, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

static void enter_folder(void)
{
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof(folder), "%s/blkimg-unit.XXXXXX", base ? base : "/tmp");
    if (!mkdtemp(folder) || chdir(folder) < 0)
        abort();
    umask(022);
}

/* Number of entries, "." and ".." not counted. */
static int entries(void)
{
    int count = 0;
    FILE *list = popen("ls -A | wc -l", "r");
    if (!list || fscanf(list, "%d", &count) != 1)
        count = -1;
    if (list)
        pclose(list);
    return count;
}

static void put_file(const char *name, const char *text)
{
    FILE *file = fopen(name, "w");
    if (!file || fputs(text, file) < 0 || fclose(file) != 0)
        abort();
}

/* The first bytes of a file as text; "" when there is no such file. */
static const char *text_of(const char *name)
{
    static char text[64];
    memset(text, 0, sizeof(text));
    FILE *file = fopen(name, "r");
    if (!file)
        return text;
    if (fread(text, 1, sizeof(text) - 1, file) == 0)
        text[0] = '\0';
    fclose(file);
    return text;
}

static struct stat stat_of(const char *name)
{
    struct stat st = { .st_size = -1 };
    if (stat(name, &st) < 0)
        st.st_size = -1;
    return st;
}

/* ---- graphs ---- */

static struct blk_error err;
static const struct blk_cache_mode writeback = { .direct = false };

static struct blk_node *open_image(const char *name, unsigned flags)
{
    struct blk_open how = { .filename = name, .format = "raw", .flags = flags };
    struct blk_node *root;
    blk_error_clear(&err);
    return blk_open(&how, &root, &err) < 0 ? NULL : root;
}

static struct blk_node *create_cached(const char *name, const char *size, const char *prealloc,
                                      struct blk_cache_mode cache)
{
    struct blk_create create = {
        .filename = name,
        .driver = blk_driver_find("raw"),
        .options = blk_options_new(),
        .cache = cache,
    };
    struct blk_node *root;
    blk_error_clear(&err);
    blk_options_set(create.options, "size", size);
    if (prealloc)
        blk_options_set(create.options, "preallocation", prealloc);
    int ret = blk_create(&create, &root, &err);
    blk_options_free(create.options);
    return ret < 0 ? NULL : root;
}

static struct blk_node *create_image(const char *name, const char *size)
{
    return create_cached(name, size, NULL, writeback);
}

static int write_text(struct blk_node *node, uint64_t offset, const char *text)
{
    return blk_pwrite(node, offset, strlen(text), text, 0, &err);
}

static int close_image(struct blk_node *node)
{
    blk_error_clear(&err);
    return blk_close(node, NULL, &err);
}

/* ---- faults ---- */

static struct blk_sys faulty;
static int fail_at, calls; /* the fail_at-th call fails (from 1); 0: none */

static bool failing(void)
{
    return ++calls == fail_at;
}

static void begin_faults(int at)
{
    faulty = blk_sys_real;
    blk_sys = &faulty;
    fail_at = at;
    calls = 0;
}

static void end_faults(void)
{
    blk_sys = &blk_sys_real;
}

static int with_errno(int code)
{
    errno = code;
    return -1;
}

static int faulty_fdatasync(int fd)
{
    return failing() ? with_errno(EIO) : fdatasync(fd);
}

static int faulty_fsync(int fd)
{
    return failing() ? with_errno(EIO) : fsync(fd);
}

static int faulty_close(int fd)
{
    int ret = close(fd);
    return failing() ? with_errno(EDQUOT) : ret;
}

static int faulty_linkat(int a, const char *b, int c, const char *d, int flags)
{
    return failing() ? with_errno(ENOSPC) : linkat(a, b, c, d, flags);
}

static int faulty_renameat(int a, const char *b, int c, const char *d)
{
    return failing() ? with_errno(EIO) : renameat(a, b, c, d);
}

static int faulty_renameat2(int a, const char *b, int c, const char *d, unsigned flags)
{
    return failing() ? with_errno(EIO) : renameat2(a, b, c, d, flags);
}

/* NFS, and FUSE without the newer operation. */
static int no_renameat2(int a, const char *b, int c, const char *d, unsigned flags)
{
    (void)a, (void)b, (void)c, (void)d, (void)flags;
    return with_errno(EINVAL);
}

/* Confined by path: only what has its final name may be opened or named. */
static int confined_openat(int at, const char *path, int flags, mode_t mode)
{
    return flags & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY)) ? with_errno(EACCES)
                                                          : openat(at, path, flags, mode);
}

static int confined_linkat(int a, const char *b, int c, const char *d, int flags)
{
    (void)a, (void)b, (void)c, (void)d, (void)flags;
    return with_errno(EACCES);
}

static int no_linkat(int a, const char *b, int c, const char *d, int flags)
{
    (void)a, (void)b, (void)c, (void)d, (void)flags;
    return with_errno(EPERM);
}

static int no_tmpfile(int at, const char *path, int flags, mode_t mode)
{
    if ((flags & O_TMPFILE) == O_TMPFILE)
        return with_errno(EOPNOTSUPP);
    return openat(at, path, flags, mode);
}

static int no_fallocate(int fd, int mode, off_t offset, off_t bytes)
{
    (void)fd, (void)mode, (void)offset, (void)bytes;
    return with_errno(EOPNOTSUPP);
}

static ssize_t short_pread(int fd, void *buf, size_t bytes, off_t offset)
{
    if (++calls % 3 == 0)
        return with_errno(EINTR);
    return pread(fd, buf, bytes > 100 ? 100 : bytes, offset);
}

static ssize_t short_pwrite(int fd, const void *buf, size_t bytes, off_t offset)
{
    if (++calls % 3 == 0)
        return with_errno(EINTR);
    return pwrite(fd, buf, bytes > 100 ? 100 : bytes, offset);
}

/* ---- reading and writing ---- */

TEST(reads_what_was_written)
{
    enter_folder();
    put_file("a", "hello");
    struct blk_node *node = open_image("a", BLK_WRITABLE);
    REQUIRE(node);
    CHECK_INT(blk_size(node), 512);
    char buf[600];
    CHECK_INT(blk_pread(node, 0, 512, buf, &err), 0);
    CHECK(memcmp(buf, "hello\0\0\0", 8) == 0);
    CHECK(bytes_are_zero(buf + 5, 507));
    CHECK_INT(blk_pread(node, 500, 13, buf, &err), -EIO);
    CHECK_INT(write_text(node, 2, "LL"), 0);
    CHECK_INT(close_image(node), 0);
    CHECK_STR(text_of("a"), "heLLo");
    leave_folder();
}

TEST(short_and_interrupted_transfers_are_continued)
{
    enter_folder();
    put_file("a", "");
    CHECK_INT(truncate("a", 8192), 0);
    begin_faults(0);
    faulty.pread = short_pread;
    faulty.pwrite = short_pwrite;
    struct blk_node *node = open_image("a", BLK_WRITABLE);
    char out[5000], in[5000];
    memset(out, 'x', sizeof(out));
    CHECK_INT(blk_pwrite(node, 100, sizeof(out), out, 0, &err), 0);
    CHECK_INT(blk_pread(node, 100, sizeof(in), in, &err), 0);
    CHECK(memcmp(in, out, sizeof(in)) == 0);
    CHECK_INT(close_image(node), 0);
    end_faults();
    leave_folder();
}

TEST(refuses_what_is_no_file)
{
    enter_folder();
    CHECK_INT(mkdir("folder", 0755), 0);
    CHECK_INT(mkfifo("pipe", 0644), 0);
    static const char *const names[] = { "folder", "pipe", "/dev/zero", "missing", "" };
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        CHECK(!open_image(names[i], 0));
        CHECK(err.code && strstr(err.what, names[i]));
        CHECK(!open_image(names[i], BLK_WRITABLE));
    }
    CHECK(!create_image("folder", "1k"));
    CHECK(!create_image("pipe", "1k"));
    CHECK(!create_image("nowhere/a", "1k"));
    CHECK(!create_image("new/", "1k"));
    CHECK_INT(entries(), 2);
    leave_folder();
}

TEST(zeroes_extend_and_punch)
{
    enter_folder();
    for (int fallback = 0; fallback < 2; fallback++) {
        begin_faults(0);
        if (fallback)
            faulty.fallocate = no_fallocate;
        put_file("a", "abcdefgh");
        CHECK_INT(truncate("a", 65536), 0);
        struct blk_node *node = open_image("a", BLK_WRITABLE);
        REQUIRE(node);
        CHECK_INT(blk_write_zeroes(node, 2, 3, 0, &err), 0);
        CHECK_INT(blk_child_write_zeroes(node, 65536, 65536, BLK_REQ_MAY_UNMAP, &err), 0);
        CHECK_INT(blk_child_write_zeroes(node, 131072, 512, 0, &err), 0);
        CHECK_INT(blk_size(node), 131584);
        CHECK_INT(close_image(node), 0);
        CHECK_INT(stat_of("a").st_size, 131584);
        CHECK(memcmp(text_of("a"), "ab\0\0\0fgh", 8) == 0);
        end_faults();
    }
    leave_folder();
}

TEST(status_tells_data_from_holes)
{
    enter_folder();
    put_file("a", "");
    CHECK_INT(truncate("a", 1 << 20), 0);
    struct blk_node *node = open_image("a", BLK_WRITABLE);
    char block[4096];
    memset(block, 1, sizeof(block));
    CHECK_INT(blk_pwrite(node, 65536, sizeof(block), block, 0, &err), 0);
    struct blk_extent extent;
    CHECK_INT(blk_block_status(node, 0, 1 << 20, 0, &extent, &err), 0);
    CHECK(extent.flags & BLK_EXT_ZERO && extent.bytes == 65536);
    CHECK_INT(blk_block_status(node, 65536 + 512, 1 << 19, 0, &extent, &err), 0);
    CHECK(extent.flags & BLK_EXT_DATA && extent.bytes == 4096 - 512);
    CHECK_INT(extent.host_offset, 65536 + 512);
    CHECK_INT(close_image(node), 0);
    leave_folder();
}

/* ---- growing from several threads ---- */

#define THREADS 4
#define ROUNDS 200

struct grower {
    struct blk_node *node;
    unsigned number;
    int ret;
};

/* Each writes its own blocks, interleaved with the others', every third as zeroes. */
static void *grow(void *opaque)
{
    struct grower *g = opaque;
    char block[1024];
    memset(block, 'a' + (int)g->number, sizeof(block));
    for (unsigned i = 0; i < ROUNDS && g->ret == 0; i++) {
        uint64_t offset = (uint64_t)(i * THREADS + g->number) * sizeof(block);
        unsigned unmap = i % 2 ? BLK_REQ_MAY_UNMAP : 0;
        g->ret = i % 3 == 2 ? blk_child_write_zeroes(g->node, offset, sizeof(block), unmap, NULL)
                            : blk_child_pwrite(g->node, offset, sizeof(block), block, 0, NULL);
    }
    return NULL;
}

TEST(writers_that_extend_the_file_do_not_cut_each_other_off)
{
    enter_folder();
    struct blk_node *node = create_image("a", "0");
    REQUIRE(node);
    pthread_t threads[THREADS];
    struct grower growers[THREADS];
    for (unsigned i = 0; i < THREADS; i++) {
        growers[i] = (struct grower){ .node = node, .number = i };
        REQUIRE(pthread_create(&threads[i], NULL, grow, &growers[i]) == 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        CHECK_INT(growers[i].ret, 0);
    }
    CHECK_INT(blk_size(node), THREADS * ROUNDS * 1024);
    int wrong = 0;
    for (unsigned i = 0; i < THREADS * ROUNDS; i++) {
        char block[1024];
        char want = i / THREADS % 3 == 2 ? '\0' : (char)('a' + (int)(i % THREADS));
        if (blk_pread(node, (uint64_t)i * 1024, 1024, block, &err) < 0 || block[0] != want ||
            block[1023] != want)
            wrong++;
    }
    CHECK_INT(wrong, 0);
    CHECK_INT(close_image(node), 0);
    leave_folder();
}

/* ---- copying ---- */

static int no_ioctl(int fd, unsigned long request, void *argument)
{
    (void)fd, (void)request, (void)argument;
    return with_errno(ENOTTY);
}

static ssize_t no_copy(int from, off_t *from_offset, int to, off_t *to_offset, size_t bytes,
                       unsigned flags)
{
    (void)from, (void)from_offset, (void)to, (void)to_offset, (void)bytes, (void)flags;
    return with_errno(EXDEV);
}

TEST(ranges_are_copied_by_the_kernel)
{
    enter_folder();
    put_file("a", "hello");
    CHECK_INT(truncate("a", 65536), 0);
    for (int way = 0; way < 3; way++) {
        begin_faults(0);
        if (way > 0)
            faulty.ioctl = no_ioctl;
        if (way > 1)
            faulty.copy_file_range = no_copy;
        struct blk_node *source = open_image("a", 0);
        struct blk_node *target = create_image("b", "128k");
        REQUIRE(source && target);
        struct blk_node *file = blk_bottom(source);
        int want = way > 1 ? -ENOTSUP : 0;
        CHECK_INT(blk_copy_range(target, 65536,
                                 &(struct blk_copy_from){ .node = file, .offset = 0 }, 65536, &err),
                  want);
        CHECK_INT(blk_copy_range(target, 100, &(struct blk_copy_from){ .node = file, .offset = 1 },
                                 5, &err),
                  want);
        /* Past the end of the source there is nothing to copy. */
        CHECK_INT(blk_copy_range(target, 0, &(struct blk_copy_from){ .node = file, .offset = 4096 },
                                 65536, &err),
                  -ENOTSUP);
        CHECK_INT(close_image(source), 0);
        char buf[8] = "";
        CHECK_INT(blk_pread(target, 65536, 5, buf, &err), 0);
        CHECK_STR(buf, way > 1 ? "" : "hello");
        CHECK_INT(blk_pread(target, 100, 5, buf, &err), 0);
        CHECK_STR(buf, way > 1 ? "" : "ello");
        CHECK_INT(close_image(target), 0);
        CHECK_INT(unlink("b"), 0);
        end_faults();
    }
    leave_folder();
}

/* ---- raw ---- */

TEST(a_window_ends_where_it_says)
{
    enter_folder();
    put_file("a", "");
    CHECK_INT(truncate("a", 4096), 0);
    char full[4096], buf[1024];
    memset(full, 7, sizeof(full));
    struct blk_open how = { .filename = "json:{\"driver\":\"raw\",\"offset\":100,\"size\":512,"
                                        "\"file\":{\"driver\":\"file\",\"filename\":\"a\"}}",
                            .flags = BLK_WRITABLE };
    struct blk_node *node = open_image("a", BLK_WRITABLE);
    CHECK_INT(blk_pwrite(node, 0, sizeof(full), full, 0, &err), 0);
    CHECK_INT(close_image(node), 0);
    REQUIRE(blk_open(&how, &node, &err) == 0);
    CHECK_INT(blk_size(node), 512);
    CHECK_INT(blk_child_pread(node, 0, 1024, buf, &err), 0);
    CHECK(buf[511] == 7 && bytes_are_zero(buf + 512, 512));
    CHECK_INT(blk_child_pwrite(node, 500, 13, buf, 0, &err), -ENOSPC);
    CHECK_INT(blk_truncate(node, 1024, BLK_PREALLOC_OFF, true, &err), -ENOTSUP);
    CHECK_INT(close_image(node), 0);
    leave_folder();
}

/* ---- flush ---- */

TEST(a_sync_that_has_nothing_to_do_is_not_made)
{
    enter_folder();
    put_file("a", "hello");
    begin_faults(0);
    faulty.fdatasync = faulty_fdatasync;
    struct blk_node *node = open_image("a", BLK_WRITABLE);
    CHECK_INT(blk_flush(node, &err), 0);
    CHECK_INT(calls, 0);
    write_text(node, 0, "x");
    CHECK_INT(blk_flush(node, &err), 0);
    CHECK_INT(blk_flush(node, &err), 0);
    CHECK_INT(calls, 1);
    write_text(node, 0, "y");
    CHECK_INT(close_image(node), 0);
    CHECK_INT(calls, 2);
    end_faults();
    leave_folder();
}

TEST(a_failed_flush_stays_failed)
{
    enter_folder();
    put_file("a", "hello");
    begin_faults(1);
    faulty.fdatasync = faulty_fdatasync;
    struct blk_node *node = open_image("a", BLK_WRITABLE);
    write_text(node, 0, "x");
    CHECK_INT(blk_flush(node, &err), -EIO);
    CHECK_INT(blk_flush(node, &err), -EIO);
    CHECK_INT(close_image(node), -EIO);
    end_faults();
    leave_folder();
}

TEST(a_failed_close_is_reported)
{
    enter_folder();
    put_file("a", "hello");
    struct blk_node *node = open_image("a", BLK_WRITABLE);
    begin_faults(1);
    faulty.close = faulty_close;
    CHECK_INT(close_image(node), -EDQUOT);
    CHECK(strstr(err.what, "'a'"));
    end_faults();
    leave_folder();
}

/* ---- new files ---- */

TEST(a_new_file_has_no_name_before_close)
{
    enter_folder();
    struct blk_node *node = create_image("a", "1000");
    REQUIRE(node);
    CHECK(node->unnamed && node->reads_zero);
    CHECK_INT(write_text(node, 0, "hello"), 0);
    CHECK_INT(entries(), 0);
    CHECK_INT(close_image(node), 0);
    CHECK_INT(stat_of("a").st_size, 1024);
    CHECK_INT(stat_of("a").st_mode & 07777, 0644);
    CHECK_STR(text_of("a"), "hello");
    leave_folder();
}

TEST(a_dropped_or_abandoned_file_leaves_nothing)
{
    enter_folder();
    for (int without_tmpfile = 0; without_tmpfile < 2; without_tmpfile++) {
        begin_faults(0);
        if (without_tmpfile)
            faulty.openat = no_tmpfile;
        blk_drop(create_image("a", "1k"));
        CHECK_INT(entries(), 0);
        struct blk_node *node = create_image("a", "1k");
        REQUIRE(node);
        CHECK_INT(entries(), without_tmpfile);
        blk_abandon(node);
        CHECK_INT(close_image(node), 0);
        CHECK_INT(entries(), 0);
        CHECK(!create_cached("a", "1k", "nonsense", writeback));
        CHECK_INT(entries(), 0);
        end_faults();
    }
    leave_folder();
}

TEST(without_unnamed_files_a_temporary_name_serves)
{
    enter_folder();
    begin_faults(0);
    faulty.openat = no_tmpfile;
    struct blk_node *node = create_image("a", "1k");
    REQUIRE(node);
    CHECK_INT(access("a", F_OK), -1);
    CHECK_INT(close_image(node), 0);
    CHECK_INT(entries(), 1);
    CHECK_INT(stat_of("a").st_size, 1024);

    put_file("b", "old");
    CHECK_INT(chmod("b", 0600), 0);
    node = create_image("b", "1k");
    write_text(node, 0, "new");
    CHECK_STR(text_of("b"), "old");
    CHECK_INT(close_image(node), 0);
    CHECK_STR(text_of("b"), "new");
    CHECK_INT(stat_of("b").st_mode & 07777, 0600);
    CHECK_INT(entries(), 2);
    end_faults();
    leave_folder();
}

TEST(a_name_taken_meanwhile_is_not_overwritten)
{
    enter_folder();
    for (int without_tmpfile = 0; without_tmpfile < 2; without_tmpfile++) {
        begin_faults(0);
        if (without_tmpfile)
            faulty.openat = no_tmpfile;
        struct blk_node *node = create_image("a", "1k");
        put_file("a", "theirs");
        CHECK_INT(close_image(node), -EEXIST);
        CHECK(strstr(err.what, "'a'"));
        CHECK_STR(text_of("a"), "theirs");
        CHECK_INT(entries(), 1);
        CHECK_INT(unlink("a"), 0);
        end_faults();
    }
    put_file("a", "old");
    struct blk_node *node = create_image("a", "1k");
    put_file("b", "theirs");
    CHECK_INT(rename("b", "a"), 0);
    CHECK_INT(close_image(node), -EEXIST);
    CHECK_STR(text_of("a"), "theirs");
    CHECK_INT(entries(), 1);
    leave_folder();
}

/* Each step before the name fails in turn: the folder is what it was. */
static void publish_with_fault(const char *old, int at, void (*install)(void), int code)
{
    if (old)
        put_file("a", old);
    struct blk_node *node = create_image("a", "1k");
    REQUIRE(node);
    write_text(node, 0, "new");
    begin_faults(at);
    install();
    CHECK_INT(close_image(node), -code);
    end_faults();
    CHECK_STR(text_of("a"), old ? old : "");
    CHECK_INT(entries(), old ? 1 : 0);
}

static void install_fdatasync(void)
{
    faulty.fdatasync = faulty_fdatasync;
}
static void install_fsync(void)
{
    faulty.fsync = faulty_fsync;
}
static void install_close(void)
{
    faulty.close = faulty_close;
}
static void install_linkat(void)
{
    faulty.linkat = faulty_linkat;
}
static void install_renameat2(void)
{
    faulty.renameat2 = faulty_renameat2;
}

static void install_renameat(void)
{
    faulty.renameat2 = no_renameat2;
    faulty.renameat = faulty_renameat;
}

TEST(a_failed_publication_leaves_what_was_there)
{
    enter_folder();
    publish_with_fault(NULL, 1, install_fdatasync, EIO);
    publish_with_fault(NULL, 1, install_fsync, EIO);
    /* The folder's: the name is taken away again. */
    publish_with_fault(NULL, 2, install_fsync, EIO);
    publish_with_fault(NULL, 1, install_close, EDQUOT);
    publish_with_fault(NULL, 1, install_linkat, ENOSPC);
    publish_with_fault("old", 1, install_fdatasync, EIO);
    publish_with_fault("old", 1, install_fsync, EIO);
    publish_with_fault("old", 1, install_close, EDQUOT);
    publish_with_fault("old", 1, install_linkat, ENOSPC);
    publish_with_fault("old", 2, install_fsync, EIO);
    publish_with_fault("old", 1, install_renameat2, EIO);
    publish_with_fault("old", 1, install_renameat, EIO);
    leave_folder();
}

static int links_to(const char *name)
{
    return (int)stat_of(name).st_nlink;
}

/* Closes a new "a" that replaces `old` (NULL: nothing) with the at-th close(2) failing. */
static int close_with_fault(const char *old, int at, void (*prepare)(void))
{
    unlink("a");
    if (old)
        put_file("a", old);
    prepare();
    struct blk_node *node = create_image("a", "1k");
    if (!node)
        return -EINVAL;
    write_text(node, 0, "new");
    calls = 0;
    fail_at = at;
    faulty.close = faulty_close;
    int ret = close_image(node);
    fail_at = 0;
    return ret;
}

/* Every close(2) fails in turn: the last one, too, leaves no target or the old one. */
static void closes_with_faults(const char *old, void (*prepare)(void), const char *left)
{
    int failed = 0, ret;

    for (int at = 1; at == 1 || calls >= at - 1; at++) {
        begin_faults(0);
        ret = close_with_fault(old, at, prepare);
        end_faults();
        if (ret == 0) { /* that of a directory: nothing can be lost there */
            CHECK_STR(text_of("a"), "new");
            continue;
        }
        CHECK_INT(ret, -EDQUOT);
        CHECK_STR(text_of("a"), left);
        failed++;
    }
    CHECK(failed >= 2);
}

static void as_it_is(void)
{
}
static void without_exchange(void)
{
    faulty.renameat2 = no_renameat2;
}

static void with_a_second_name(void)
{
    unlink("b");
    CHECK_INT(link("a", "b"), 0);
}

TEST(the_last_close_leaves_no_target_or_the_old_one)
{
    enter_folder();
    closes_with_faults(NULL, as_it_is, "");
    CHECK_STR(err.left, "");
    closes_with_faults("old", as_it_is, "old");
    CHECK_INT(entries(), 1);
    closes_with_faults("old", without_exchange, "old");
    CHECK_INT(entries(), 1);
    CHECK_INT(links_to("a"), 1);
    leave_folder();
}

TEST(a_failure_after_the_name_says_what_is_left)
{
    enter_folder();
    publish_with_fault(NULL, 2, install_fsync, EIO);
    CHECK_STR(err.left, "there is no 'a'");
    publish_with_fault("old", 2, install_fsync, EIO);
    CHECK_STR(err.left, "'a' is what it was before");
    leave_folder();
}

/* What is overwritten in place loses its first sector again: nothing takes it for an image. */
TEST(the_last_close_in_place_leaves_no_image)
{
    enter_folder();
    closes_with_faults("old", with_a_second_name, "");
    leave_folder();
}

/* Replaces "a" under some confinement; returns its inode. */
static ino_t replace_confined(bool named_files)
{
    put_file("a", "old");
    begin_faults(0);
    faulty.linkat = confined_linkat;
    if (!named_files)
        faulty.openat = confined_openat;
    struct blk_node *node = create_image("a", "1k");
    CHECK(node != NULL);
    if (!node)
        return 0;
    write_text(node, 0, "new");
    CHECK_INT(close_image(node), 0);
    end_faults();
    CHECK_STR(text_of("a"), "new");
    CHECK_INT(entries(), 1);
    return stat_of("a").st_ino;
}

TEST(confinement_by_path_is_found_out_before_the_copy)
{
    enter_folder();
    put_file("a", "old");
    ino_t inode = stat_of("a").st_ino;
    /* No name beside it may be made: in place. */
    CHECK(replace_confined(false) == inode);
    /* A file with a name may be made, one without cannot be linked. */
    CHECK(replace_confined(true) != inode);
    leave_folder();
}

TEST(a_file_system_that_cannot_keep_the_old_file_says_so)
{
    enter_folder();
    put_file("a", "old");
    begin_faults(0);
    faulty.openat = no_tmpfile;
    faulty.renameat2 = no_renameat2;
    faulty.linkat = no_linkat;
    struct blk_node *node = create_image("a", "1k");
    REQUIRE(node);
    write_text(node, 0, "new");
    CHECK_INT(close_image(node), 0);
    CHECK_STR(text_of("a"), "new");
    CHECK_INT(entries(), 1);
    end_faults();
    leave_folder();
}

TEST(unsafe_syncs_nothing)
{
    enter_folder();
    begin_faults(0);
    faulty.fdatasync = faulty_fdatasync;
    faulty.fsync = faulty_fsync;
    struct blk_node *node =
        create_cached("a", "1k", NULL, (struct blk_cache_mode){ .no_flush = true });
    write_text(node, 0, "new");
    CHECK_INT(close_image(node), 0);
    CHECK_INT(calls, 0);
    CHECK_STR(text_of("a"), "new");
    end_faults();
    leave_folder();
}

/* ---- existing files ---- */

TEST(a_file_is_replaced_as_a_whole_and_keeps_its_attributes)
{
    enter_folder();
    put_file("a", "old");
    CHECK_INT(chmod("a", 0640), 0);
    bool attributes = setxattr("a", "user.note", "kept", 4, 0) == 0;
    if (geteuid() == 0)
        CHECK_INT(chown("a", 1234, 4321), 0);
    CHECK_INT(symlink("a", "link"), 0);
    ino_t old_inode = stat_of("a").st_ino;

    struct blk_node *node = create_image("link", "1k");
    REQUIRE(node);
    CHECK_INT(write_text(node, 0, "new"), 0);
    CHECK_STR(text_of("a"), "old");
    CHECK_INT(entries(), 2);
    CHECK_INT(close_image(node), 0);

    CHECK_STR(text_of("a"), "new");
    CHECK_STR(text_of("link"), "new");
    struct stat now = stat_of("a");
    CHECK(now.st_ino != old_inode);
    CHECK_INT(now.st_mode & 07777, 0640);
    if (geteuid() == 0)
        CHECK(now.st_uid == 1234 && now.st_gid == 4321);
    char value[5] = "";
    if (attributes)
        CHECK(getxattr("a", "user.note", value, 4) == 4 && strcmp(value, "kept") == 0);
    CHECK_INT(entries(), 2);
    leave_folder();
}

static int attribute_error;

static int faulty_fsetxattr(int fd, const char *name, const void *value, size_t bytes, int flags)
{
    (void)fd, (void)name, (void)value, (void)bytes, (void)flags;
    errno = attribute_error;
    return -1;
}

/* Not allowed: the old file itself is written. A medium that fails: it stays what it was. */
TEST(a_medium_that_fails_does_not_lead_to_the_old_file_being_overwritten)
{
    static const int failures[] = { ENOSPC, EIO, EDQUOT, ENOMEM };
    enter_folder();
    put_file("a", "old");
    if (setxattr("a", "user.note", "kept", 4, 0) == 0) {
        ino_t inode = stat_of("a").st_ino;
        for (size_t i = 0; i < sizeof(failures) / sizeof(failures[0]); i++) {
            begin_faults(0);
            faulty.fsetxattr = faulty_fsetxattr;
            attribute_error = failures[i];
            CHECK(!create_image("a", "1k"));
            CHECK_INT(err.code, failures[i]);
            end_faults();
            CHECK_STR(text_of("a"), "old");
            CHECK_INT(entries(), 1);
        }
        begin_faults(0);
        faulty.fsetxattr = faulty_fsetxattr;
        attribute_error = EPERM;
        struct blk_node *node = create_image("a", "1k");
        REQUIRE(node);
        CHECK_INT(close_image(node), 0);
        end_faults();
        CHECK(stat_of("a").st_ino == inode && stat_of("a").st_size == 1024);
    }
    leave_folder();
}

TEST(a_dangling_symlink_is_created_where_it_points)
{
    enter_folder();
    CHECK_INT(mkdir("sub", 0755), 0);
    CHECK_INT(symlink("sub/b", "link"), 0);
    CHECK_INT(symlink("link", "link2"), 0);
    struct blk_node *node = create_image("link2", "1k");
    REQUIRE(node);
    CHECK_INT(close_image(node), 0);
    CHECK_INT(stat_of("sub/b").st_size, 1024);
    CHECK_INT(symlink("loop", "loop"), 0);
    CHECK(!create_image("loop", "1k"));
    CHECK_INT(err.code, ELOOP);
    leave_folder();
}

TEST(a_hard_link_is_overwritten_in_place)
{
    enter_folder();
    put_file("a", "old magic");
    CHECK_INT(truncate("a", 100000), 0);
    CHECK_INT(link("a", "b"), 0);
    struct blk_node *node = create_image("a", "64k");
    REQUIRE(node);
    CHECK_INT(write_text(node, 0, "new"), 0);
    CHECK_INT(write_text(node, 510, "across"), 0);
    CHECK_INT(blk_flush(node, &err), 0);

    char buf[1024], disk[1024];
    CHECK_INT(blk_pread(node, 0, sizeof(buf), buf, &err), 0);
    CHECK(memcmp(buf, "new", 4) == 0 && memcmp(buf + 510, "across", 6) == 0);
    FILE *file = fopen("b", "r");
    CHECK_INT(fread(disk, 1, sizeof(disk), file), sizeof(disk));
    fclose(file);
    CHECK(bytes_are_zero(disk, 512));
    CHECK(memcmp(disk + 512, "ross", 4) == 0);

    CHECK_INT(close_image(node), 0);
    CHECK_STR(text_of("b"), "new");
    CHECK_INT(stat_of("b").st_size, 65536);
    CHECK_INT(stat_of("b").st_nlink, 2);

    node = create_image("a", "0");
    REQUIRE(node);
    CHECK_INT(close_image(node), 0);
    CHECK_INT(stat_of("b").st_size, 0);
    leave_folder();
}

TEST(nothing_is_overwritten_before_the_first_change)
{
    enter_folder();
    put_file("a", "old magic");
    CHECK_INT(link("a", "b"), 0);
    CHECK(!create_cached("a", "1M", "nonsense", writeback));
    CHECK_STR(text_of("a"), "old magic");

    /* An old magic that cannot be destroyed for good: nothing new is written. */
    begin_faults(1);
    faulty.fdatasync = faulty_fdatasync;
    CHECK(!create_image("a", "1M"));
    CHECK_INT(err.code, EIO);
    CHECK(bytes_are_zero(text_of("a"), 9));
    end_faults();

    /* A first sector that does not reach the medium. */
    put_file("a", "old magic");
    struct blk_node *node = create_image("a", "1M");
    REQUIRE(node);
    CHECK_INT(write_text(node, 0, "new"), 0);
    begin_faults(2);
    faulty.fsync = faulty_fsync;
    CHECK_INT(close_image(node), -EIO);
    end_faults();
    leave_folder();
}

TEST(the_target_cannot_be_the_source)
{
    enter_folder();
    put_file("a", "hello");
    struct blk_node *source = open_image("a", 0);
    CHECK(!create_image("a", "1k"));
    CHECK_INT(err.code, ENOTUNIQ);
    CHECK(strstr(err.why, "the same file as 'a', which this command reads"));
    CHECK_INT(close_image(source), 0);
    CHECK_STR(text_of("a"), "hello");
    leave_folder();
}

/* ---- locks ---- */

/* The held bytes among `bytes`, as another process would see them. */
static int held_byte(const char *name, off_t byte)
{
    int fd = open(name, O_RDWR | O_CLOEXEC);
    struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1 };
    int ret = fcntl(fd, F_OFD_GETLK, &lock);
    close(fd);
    return ret < 0 ? -1 : lock.l_type != F_UNLCK;
}

static void check_bytes(const char *name, const char *held)
{
    static const int bytes[] = { 100, 101, 102, 103, 200, 201, 202, 203 };
    char seen[64] = "";
    for (size_t i = 0; i < sizeof(bytes) / sizeof(bytes[0]); i++)
        if (held_byte(name, bytes[i]))
            snprintf(seen + strlen(seen), sizeof(seen) - strlen(seen), "%d ", bytes[i]);
    CHECK_STR(seen, held);
}

/* As if another process had opened it: only the locks tell of it. */
static void disown_image(const struct blk_node *node)
{
    blk_open_files_remove(blk_child(node, BLK_ROLE_FILE));
}

TEST(what_is_written_is_open_once_whatever_the_locks_say)
{
    enter_folder();
    put_file("a", "hello");
    CHECK_INT(link("a", "b"), 0);
    struct blk_node *first = open_image("a", BLK_FORCE_SHARE);
    struct blk_node *second = open_image("b", 0);
    REQUIRE(first && second);
    CHECK_INT(blk_reopen(second, true, second->cache, &err), -ENOTUNIQ);
    CHECK_INT(close_image(second), 0);
    CHECK(!open_image("b", BLK_WRITABLE));
    CHECK_INT(err.code, ENOTUNIQ);
    CHECK_INT(close_image(first), 0);

    first = create_image("new", "1k");
    CHECK(!create_image("./new", "1k"));
    CHECK_INT(err.code, ENOTUNIQ);
    CHECK(!open_image("../new", 0));
    CHECK_INT(err.code, ENOENT);
    CHECK(!open_image("new", 0));
    CHECK_INT(err.code, ENOTUNIQ);
    CHECK_INT(close_image(first), 0);
    first = open_image("new", BLK_WRITABLE);
    CHECK(first);
    CHECK_INT(close_image(first), 0);
    leave_folder();
}

TEST(locks_follow_the_mode)
{
    enter_folder();
    put_file("a", "hello");
    struct blk_node *node = open_image("a", BLK_WRITABLE);
    disown_image(node);
    check_bytes("a", "100 101 103 201 203 ");
    CHECK_INT(blk_reopen(node, false, node->cache, &err), 0);
    check_bytes("a", "100 201 203 ");

    struct blk_node *second = open_image("a", 0);
    REQUIRE(second);
    disown_image(second);
    CHECK_INT(blk_reopen(node, true, node->cache, &err), -EAGAIN);
    check_bytes("a", "100 201 203 ");
    CHECK_INT(close_image(second), 0);
    CHECK_INT(blk_reopen(node, true, node->cache, &err), 0);
    check_bytes("a", "100 101 103 201 203 ");
    CHECK_INT(write_text(node, 0, "j"), 0);

    CHECK(!open_image("a", 0));
    CHECK(strstr(err.why, "Failed to get shared \"write\" lock"));
    CHECK(!open_image("a", BLK_WRITABLE));
    CHECK(strstr(err.why, "Failed to get \"write\" lock"));
    second = open_image("a", BLK_FORCE_SHARE);
    CHECK(second);
    CHECK_INT(close_image(second), 0);
    CHECK_INT(close_image(node), 0);
    check_bytes("a", "");
    CHECK_STR(text_of("a"), "jello");
    leave_folder();
}

TEST(what_is_published_stays_locked_until_it_is_closed)
{
    enter_folder();
    put_file("a", "old");
    struct blk_node *node = create_image("a", "1k");
    check_bytes("a", "100 101 103 201 203 ");
    CHECK_INT(close_image(node), 0);
    check_bytes("a", "");
    leave_folder();
}

TEST(waiting_for_a_lock_ends_with_the_new_file)
{
    enter_folder();
    put_file("a", "old");
    struct blk_node *node = create_image("a", "1k");
    write_text(node, 0, "new");
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        struct blk_open how = { .filename = "json:{\"driver\":\"raw\",\"file\":{\"driver\":"
                                            "\"file\",\"filename\":\"a\",\"lock-wait\":10}}",
                                .flags = BLK_WRITABLE };
        struct blk_node *root;
        char buf[4] = "";
        disown_image(node);
        /* Inherited descriptions would hold the parent's locks for ever. */
        int ret = close_range(3, ~0u, 0);
        if (ret == 0)
            ret = blk_open(&how, &root, NULL);
        if (ret == 0)
            ret = blk_pread(root, 0, 3, buf, NULL);
        _exit(ret == 0 && strcmp(buf, "new") == 0 ? 0 : 1);
    }
    usleep(200000);
    CHECK_INT(close_image(node), 0);
    int status;
    CHECK_INT(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    leave_folder();
}

/* ---- size ---- */

TEST(preallocation_and_shrinking)
{
    enter_folder();
    static const char *const modes[] = { "off", "falloc", "full" };
    for (int i = 0; i < 3; i++) {
        struct blk_node *node = create_cached("a", "1M", modes[i], writeback);
        REQUIRE(node);
        CHECK_INT(close_image(node), 0);
        CHECK_INT(stat_of("a").st_size, 1 << 20);
        CHECK_INT(stat_of("a").st_blocks >= 2048, i > 0);
    }
    CHECK(!create_cached("b", "1M", "metadata", writeback));
    struct blk_node *node = open_image("a", BLK_WRITABLE);
    CHECK_INT(blk_truncate(node, 512, BLK_PREALLOC_OFF, true, &err), 0);
    CHECK_INT(blk_size(node), 512);
    CHECK_INT(blk_truncate(node, 4096, BLK_PREALLOC_FULL, true, &err), 0);
    CHECK(blk_truncate(node, 1024, BLK_PREALLOC_FALLOC, true, &err) < 0);
    CHECK_INT(blk_size(node), 4096);
    CHECK_INT(close_image(node), 0);
    leave_folder();
}

/* ---- reads that give less than there is ---- */

static off_t nothing_at = -1; /* a read across it ends there, and one at it gives nothing */
static int nothing_times;     /* so often */

static ssize_t gap_pread(int fd, void *buf, size_t bytes, off_t offset)
{
    bool covers = offset <= nothing_at && nothing_at < offset + (off_t)bytes;
    if (!covers || !nothing_times)
        return pread(fd, buf, bytes, offset);
    if (offset == nothing_at)
        nothing_times--;
    return pread(fd, buf, (size_t)(nothing_at - offset), offset);
}

static ssize_t nothing_copied(int from, off_t *from_offset, int to, off_t *to_offset, size_t bytes,
                              unsigned flags)
{
    (void)from, (void)from_offset, (void)to, (void)to_offset, (void)bytes, (void)flags;
    return 0;
}

/* "a" with 8,192 bytes of 'x', read with `times` empty reads at 4096: what blk_pread() returns. */
static int read_with_nothing(int times, bool direct, char *buf)
{
    struct blk_open how = { .filename = "a", .format = "raw", .cache.direct = direct };
    struct blk_node *root;
    blk_error_clear(&err);
    if (blk_open(&how, &root, &err) < 0)
        return 1;
    nothing_at = 4096;
    nothing_times = times;
    int ret = blk_pread(root, 0, 8192, buf, &err);
    nothing_at = -1;
    blk_drop(root);
    return ret;
}

TEST(nothing_read_in_the_middle_of_a_file_is_no_zeroes)
{
    enter_folder();
    char want[8193] = "";
    memset(want, 'x', 8192);
    put_file("a", want);
    for (int direct = 0; direct < 2; direct++) {
        BLK_AUTOFREE char *buf = blk_buffer_alloc(8192);
        begin_faults(0);
        faulty.pread = gap_pread;
        int ret = read_with_nothing(1, direct, buf);
        if (direct && ret > 0) { /* a file system without O_DIRECT */
            end_faults();
            break;
        }
        CHECK_INT(ret, 0);
        CHECK(memcmp(buf, want, 8192) == 0);
        CHECK_INT(read_with_nothing(1000, direct, buf), -EIO);
        CHECK_STR(err.what, "reading 'a' at offset 4096");
        end_faults();
    }
    leave_folder();
}

TEST(nothing_copied_in_the_middle_of_a_file_is_read_and_written)
{
    enter_folder();
    put_file("a", "hello");
    CHECK_INT(truncate("a", 65536), 0);
    begin_faults(0);
    faulty.ioctl = no_ioctl;
    faulty.copy_file_range = nothing_copied;
    struct blk_node *source = open_image("a", 0), *target = create_image("b", "64k");
    REQUIRE(source && target);
    CHECK_INT(blk_copy_range(target, 0,
                             &(struct blk_copy_from){ .node = blk_bottom(source), .offset = 0 },
                             65536, &err),
              -ENOTSUP);
    CHECK_INT(close_image(source), 0);
    CHECK_INT(close_image(target), 0);
    end_faults();
    leave_folder();
}

TEST(a_file_that_was_cut_does_not_end_in_zeroes)
{
    enter_folder();
    put_file("a", "hello");
    CHECK_INT(truncate("a", 8192), 0);
    struct blk_node *node = open_image("a", 0);
    REQUIRE(node);
    char buf[4096];
    struct blk_extent extent;
    CHECK_INT(truncate("a", 1000), 0);
    CHECK_INT(blk_pread(node, 0, 1000, buf, &err), 0);
    CHECK_INT(blk_pread(node, 0, 4096, buf, &err), -EIO);
    CHECK_STR(err.what, "reading 'a', which ends at offset 1000");
    CHECK_INT(blk_block_status(node, 4096, 4096, BLK_WANT_ZERO, &extent, &err), -EIO);
    /* What lies past the size that it had when it was opened is no loss. */
    CHECK_INT(truncate("a", 8192), 0);
    CHECK_INT(blk_pread(node, 4096, 4096, buf, &err), 0);
    CHECK_INT(close_image(node), 0);
    leave_folder();
}

/* After the length was found out, another thread appends to the file. */
static struct blk_node *appended_to;

static int fstat_then_append(int fd, struct stat *st)
{
    int ret = fstat(fd, st);
    struct blk_node *node = appended_to;
    appended_to = NULL;
    if (node)
        CHECK_INT(blk_child_pwrite(node, 8192, 5, "later", 0, &err), 0);
    return ret;
}

TEST(a_file_that_grows_meanwhile_has_not_shrunk)
{
    for (int status = 0; status < 2; status++) {
        enter_folder();
        put_file("a", "hello");
        CHECK_INT(truncate("a", 4096), 0);
        struct blk_node *node = open_image("a", BLK_WRITABLE);
        REQUIRE(node);
        CHECK_INT(blk_truncate(node, 16384, BLK_PREALLOC_OFF, false, &err), 0);
        struct blk_node *file = blk_bottom(node);
        blk_node_set_size(file, 4096);
        CHECK_INT(truncate("a", 4096), 0);

        char buf[4096];
        struct blk_extent extent;
        begin_faults(0);
        faulty.fstat = fstat_then_append;
        appended_to = file;
        int ret = status ? blk_child_block_status(file, 2048, 2048, BLK_WANT_ZERO, &extent, &err)
                         : blk_child_pread(file, 4096, 4096, buf, &err);
        end_faults();
        CHECK_INT(ret, 0);
        CHECK(status || bytes_are_zero(buf, 4096));
        CHECK_INT(close_image(node), 0);
        leave_folder();
    }
}
