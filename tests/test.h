/*  test.h: the few lines that every test program shares.
 *
 *      #include "test.h"
 *      TEST(adds) { CHECK(1 + 1 == 2); CHECK_NEAR(0.1 + 0.2, 0.3, 1e-15); CHECK_INT(2 + 2, 4); }
 *      TEST(fast_path) { if (!cpu_has_it()) { SKIP("no such instruction here"); } ... }
 *      TEST_MAIN("sums") { RUN(adds); RUN(fast_path); }
 *
 *  Prints what failed and what was skipped, then one line "sums: 2 passed, 0 failed, 1 skipped"
 *  that counts tests; returns 1 if anything failed. A test goes on after a failed check (REQUIRE
 *  leaves it). With arguments, only the tests whose names contain one of them run.
 */
#ifndef TEST_H
#define TEST_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct {
    const char *name;          /* of the running test */
    int failures;              /* of its checks */
    int skipped;
    int total_passed, total_failed, total_skipped;
    int argc;
    char **argv;
} test_state;

#define TEST(name) static void test_##name(void)
#define RUN(name)  test_run(#name, test_##name)

/* Reports one failed check; at most 20 per test are printed. */
static void test_fail(const char *file, int line, const char *what)
{
    if (++test_state.failures <= 20) {
        printf("%s:%d: %s: FAILED: %s\n", file, line, test_state.name, what);
    }
}

static int test_check(int ok, const char *file, int line, const char *what)
{
    if (!ok) {
        test_fail(file, line, what);
    }
    return ok;
}

static void test_near(double a, double b, double bound, const char *file, int line,
                      const char *what)
{
    double d = a > b ? a - b : b - a;
    char text[400];
    if (!(d <= bound)) {       /* also when one is NaN */
        (void)snprintf(text, sizeof text, "%.200s: %.9g against %.9g, off by %.3g, allowed %.3g",
                       what, a, b, d, bound);
        test_fail(file, line, text);
    }
}

static void test_int(long long a, long long b, const char *file, int line, const char *what)
{
    char text[400];
    if (a != b) {
        (void)snprintf(text, sizeof text, "%.200s: %lld against %lld", what, a, b);
        test_fail(file, line, text);
    }
}

/* Does a message contain a piece of text? */
static void test_contains(const char *text, const char *piece, const char *file, int line)
{
    char line_text[900];
    if (strstr(text, piece) == NULL) {
        (void)snprintf(line_text, sizeof line_text, "\"%.300s\" lacks \"%.300s\"", text, piece);
        test_fail(file, line, line_text);
    }
}

#define CHECK(x)                  ((void)test_check((x) != 0, __FILE__, __LINE__, #x))
#define CHECK_NEAR(a, b, bound)                                          \
    test_near((double)(a), (double)(b), (bound), __FILE__, __LINE__, #a)
#define CHECK_INT(a, b)           test_int((long long)(a), (long long)(b), __FILE__, __LINE__, #a)
#define CHECK_CONTAINS(text, p)   test_contains((text), (p), __FILE__, __LINE__)
#define FAIL(what)                test_fail(__FILE__, __LINE__, (what))
#define REQUIRE(x)                                                       \
    do {                                                                 \
        if (!test_check((x) != 0, __FILE__, __LINE__, #x)) {             \
            return;                                                      \
        }                                                                \
    } while (0)
#define SKIP(why)                                                        \
    do {                                                                 \
        printf("%s: skipped: %s\n", test_state.name, (why));             \
        test_state.skipped = 1;                                          \
        return;                                                          \
    } while (0)

static void test_run(const char *name, void (*test)(void))
{
    int wanted = test_state.argc < 2;
    for (int i = 1; i < test_state.argc; i++) {
        wanted = wanted || strstr(name, test_state.argv[i]) != NULL;
    }
    if (!wanted) {
        return;
    }
    test_state.name = name;
    test_state.failures = 0;
    test_state.skipped = 0;
    test();
    (void)fflush(stdout);
    if (test_state.failures != 0) {
        test_state.total_failed++;
    } else if (test_state.skipped) {
        test_state.total_skipped++;
    } else {
        test_state.total_passed++;
    }
}

static int test_end(const char *program)
{
    printf("%s: %d passed, %d failed, %d skipped\n", program, test_state.total_passed,
           test_state.total_failed, test_state.total_skipped);
    return test_state.total_failed != 0;
}

#define TEST_MAIN(program)                                               \
    static void test_all(void);                                          \
    int main(int argc, char **argv)                                      \
    {                                                                    \
        (void)test_int;                                                  \
        (void)test_near;                                                 \
        (void)test_contains;                                             \
        test_state.argc = argc;                                          \
        test_state.argv = argv;                                          \
        test_all();                                                      \
        return test_end(program);                                        \
    }                                                                    \
    static void test_all(void)

#endif /* TEST_H */
