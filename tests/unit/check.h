/* SPDX-License-Identifier: MIT */
/*
 * The frame of a unit test program. A test file includes this header and holds
 *
 *     TEST(rounds_up) { CHECK_INT(round_up(5, 4), 8); }
 *
 * and nothing else is needed: main is here, and every TEST registers itself before main. Output is
 * TAP; the exit status is 0 when all passed. With an argument only the tests whose name contains it
 * run. After a failed CHECK the test goes on; a failed REQUIRE returns from the function.
 *
 * A random test starts from check_seed(), which is the same during a run, is printed, and can be
 * set with SEED=N in the environment.
 */
#ifndef TESTS_UNIT_CHECK_H
#define TESTS_UNIT_CHECK_H

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct check_test {
    const char *name;
    void (*run)(void);
    struct check_test *next;
};

static struct check_test *check_first, **check_last = &check_first;
static int check_failures; /* of the running test; only its main thread may CHECK */

#define TEST(id) \
    static void test_##id(void); \
    __attribute__((constructor)) static void register_##id(void) \
    { \
        static struct check_test entry = { #id, test_##id, NULL }; \
        *check_last = &entry; \
        check_last = &entry.next; \
    } \
    static void test_##id(void)

/* All compare and report in here, so that each argument is evaluated once. Return: did it hold? */
static inline bool check_true(bool held, const char *file, int line, const char *what)
{
    if (!held && ++check_failures)
        printf("# %s:%d: %s\n", file, line, what);
    return held;
}

static inline bool check_int(intmax_t got, intmax_t want, const char *file, int line,
                             const char *what)
{
    if (!check_true(got == want, file, line, what))
        printf("#   got %" PRIdMAX ", expected %" PRIdMAX "\n", got, want);
    return got == want;
}

static inline bool check_str(const char *got, const char *want, const char *file, int line,
                             const char *what)
{
    if (!check_true(strcmp(got, want) == 0, file, line, what))
        printf("#   got \"%s\", expected \"%s\"\n", got, want);
    return strcmp(got, want) == 0;
}

#define CHECK(cond) check_true((cond), __FILE__, __LINE__, "CHECK(" #cond ")")
#define CHECK_INT(got, want) check_int((got), (want), __FILE__, __LINE__, #got " == " #want)
#define CHECK_STR(got, want) check_str((got), (want), __FILE__, __LINE__, #got " == " #want)
#define REQUIRE(cond) \
    do { \
        if (!CHECK(cond)) \
            return; \
    } while (0)

static unsigned check_seed_of_run;
static bool check_seed_shown; /* in the running test */

static inline unsigned check_seed(void)
{
    if (!check_seed_shown)
        printf("# seed %u\n", check_seed_of_run);
    check_seed_shown = true;
    return check_seed_of_run;
}

int main(int argc, char **argv)
{
    int number = 0, failed = 0;
    const char *seed = getenv("SEED");

    check_seed_of_run = seed ? (unsigned)strtoul(seed, NULL, 10) : (unsigned)time(NULL);
    setvbuf(stdout, NULL, _IOLBF, 0); /* a crash must not swallow what was said before it */
    for (struct check_test *t = check_first; t; t = t->next) {
        if (argc > 1 && !strstr(t->name, argv[1]))
            continue;
        check_failures = 0;
        check_seed_shown = false;
        t->run();
        failed += check_failures > 0;
        printf("%s %d - %s\n", check_failures ? "not ok" : "ok", ++number, t->name);
    }
    printf("1..%d\n", number);
    return failed > 0 || number == 0;
}

#endif
