/*  ranges.c: regions dealt out to workers (mbi_parallel_ranges): that every item is done once, that
 *  a worker which is late finds its share taken by the others and begins with less the next time,
 *  and that no bit of a model's result depends on who did what.
 */
static int short_region; /* 0: every region is dealt out; large: none is */
#define MBI_SHORT_REGION short_region

#if defined(_OPENMP)
#include <omp.h>
static int times_asked; /* for the number of cores */

static int count_asked(void) {
    times_asked++;
    return omp_get_num_procs();
}
#define omp_get_num_procs count_asked
#endif
#define MAMBA_NO_AVXVNNI /* two targets do: compiles in half the time */
#define MAMBA_NO_AVX512
#define MAMBA_IMPLEMENTATION
#include "mamba.h"

#include <limits.h>
#include <stdarg.h>

#include "test.h"

/* What synthetic.h asks of a program: a message, and the exit code to give back. */
enum { CLI_OK, CLI_FAILED };

static int cli_fail(int code, const char *format, ...) {
    va_list list;
    va_start(list, format);
    (void)vprintf(format, list);
    va_end(list);
    (void)putchar('\n');
    return code;
}

#include "../examples/synthetic.h"

/* ---- hooks ----------------------------------------------------------------------------------- */

/* A caller's parallel-for on one thread: the last task comes first, and takes what all others do not
 * own. */
static void run_backwards(void *user, int n_tasks, mamba_task task, void *arg) {
    int i;
    (void)user;
    for (i = n_tasks - 1; i >= 0; i--) {
        task(arg, i);
    }
}

static const mamba_parallel backwards = {run_backwards, NULL};

/* The same, the first task first. */
static void run_forwards(void *user, int n_tasks, mamba_task task, void *arg) {
    int i;
    (void)user;
    for (i = 0; i < n_tasks; i++) {
        task(arg, i);
    }
}

static const mamba_parallel forwards = {run_forwards, NULL};

/* ---- every item once ------------------------------------------------------------------------- */

enum { MAX_ITEMS = 1000, MAX_WORKERS = 64 };

typedef struct count_job {
    int n, n_threads;
    int done[MAX_ITEMS];
    int of_worker[MAX_WORKERS]; /* items */
    int ranges, bad, smallest;
} count_job;

static void count_range(void *arg, int begin, int end, int worker) {
    count_job *j = (count_job *)arg;
    int i;
    if (begin < 0 || begin >= end || end > j->n || worker < 0 || worker >= j->n_threads) {
        j->bad++;
        return;
    }
    for (i = begin; i < end; i++) {
        j->done[i]++; /* nobody else's, if all is well */
    }
    j->of_worker[worker] += end - begin;
#if MBI_OPENMP
#pragma omp atomic
#endif
    j->ranges++;
}

static int count_once(count_job *j, const mamba_parallel *parallel, int n, int n_threads, int unit,
                      int least, int own, mbi_worker *workers) {
    int i;
    int bad;
    memset(j, 0, sizeof *j);
    j->n = n;
    j->n_threads = n_threads;
    mbi_parallel_ranges(parallel, n_threads, n, unit, least, own, workers, count_range, j);
    bad = j->bad;
    for (i = 0; i < n; i++) {
        bad += j->done[i] != 1;
    }
    return bad;
}

/* In order and backwards, with equal shares, with none, and with all for one. */
static void check_every_item(int n, int n_threads, int unit, int least, int own) {
    int i;
    for (i = 0; i < 6; i++) {
        count_job j;
        mbi_worker workers[MAX_WORKERS];
        memset(workers, 0, sizeof workers);
        workers[n_threads / 2].share = i < 4 ? 0 : MBI_ALL_WORK;
        CHECK_INT(count_once(&j, i % 2 ? &backwards : NULL, n, n_threads, unit, least, own,
                             i < 2 ? NULL : workers),
                  0);
        if (own == 8 || n_threads == 1) {
            CHECK(j.ranges <= n_threads);
        }
    }
}

TEST(every_item_once) {
    static const int threads[] = {1, 2, 3, 7, 16, 64};
    static const int items[] = {1, 2, 3, 5, 12, 20, 31, 64, 96, 97, 320, 1000};
    static const int units[][2] = {{1, 1}, {2, 2}, {4, 2}, {16, 16}};
    count_job j;
    size_t t;
    size_t i;
    size_t u;
    int own;
    for (t = 0; t < sizeof threads / sizeof *threads; t++) {
        for (i = 0; i < sizeof items / sizeof *items; i++) {
            for (u = 0; u < sizeof units / sizeof *units; u++) {
                for (own = 4; own <= 8; own++) {
                    check_every_item(items[i], threads[t], units[u][0], units[u][1], own);
                }
            }
        }
    }
    CHECK_INT(count_once(&j, NULL, 0, 4, 1, 1, 4, NULL), 0);
    CHECK_INT(j.ranges, 0);
}

/* Four workers, 96 items: each owns 12; whoever comes first takes the other 48, in ranges that get
 * smaller. */
TEST(the_late_do_less) {
    count_job j;
    if (!MBI_ATOMICS) {
        SKIP("no atomic operations with this compiler: equal shares");
    }
    CHECK_INT(count_once(&j, &backwards, 96, 4, 4, 2, 4, NULL), 0);
    CHECK_INT(j.of_worker[3], 12 + 48);
    CHECK_INT(j.of_worker[0], 12);
    CHECK_INT(j.of_worker[1], 12);
    CHECK_INT(j.of_worker[2], 12);
    CHECK(j.ranges > 8);
    CHECK_INT(count_once(&j, &backwards, 96, 4, 4, 2, 8, NULL), 0);
    CHECK_INT(j.of_worker[3], 24);
}

/* Who did more begins with more, a quarter of the way each time; who does little keeps a range. */
TEST(shares_follow_the_work) {
    count_job j;
    mbi_worker w[4] = {{1 << 14, 0}, {1 << 14, 0}, {1 << 14, 0}, {1 << 14, 0}};
    int i;
    if (!MBI_ATOMICS) {
        SKIP("no atomic operations with this compiler: equal shares");
    }
    CHECK_INT(count_once(&j, &backwards, 96, 4, 4, 2, 4, w), 0);
    CHECK_INT(j.of_worker[3], 12 + 48);
    CHECK_INT(w[3].share, (3 * (1 << 14) + MBI_ALL_WORK * 60 / 96) / 4);
    CHECK_INT(w[0].share, (3 * (1 << 14) + MBI_ALL_WORK * 12 / 96) / 4);
    CHECK_INT(count_once(&j, &backwards, 96, 4, 4, 2, 4, w), 0);
    CHECK_INT(j.of_worker[0], 8); /* 96 * 14336 / 65536 / 2 = 10.5 */
    CHECK_INT(j.of_worker[2], 8);
    CHECK_INT(j.of_worker[3], 72);
    for (i = 0; i < 100; i++) {
        CHECK_INT(count_once(&j, &backwards, 96, 4, 4, 2, 4, w), 0);
    }
    CHECK_INT(j.of_worker[0], 2);
    CHECK_INT(j.of_worker[3], 90);
    for (i = 0; i < 100; i++) {
        CHECK_INT(count_once(&j, &forwards, 96, 4, 4, 2, 4, w), 0);
    }
    CHECK_INT(j.of_worker[0], 90);
    CHECK_INT(j.of_worker[3], 2);
    i = w[0].share;
    CHECK_INT(count_once(&j, &forwards, 31, 4, 4, 2, 4, w), 0); /* too few to tell */
    CHECK_INT(w[0].share, i);
    CHECK_INT(j.of_worker[3], 2);
}

/* ---- the same bits, whoever did what --------------------------------------------------------- */

enum { TOKENS = 150, DECODED = 3 };

/* What workers begin with: draw below 1: equal shares; 1: the last one has all that the others leave;
 * more: each draw others. */
static void give_shares(mbi_worker *workers, int n, int draw) {
    uint64_t seed = 77 + (uint64_t)draw;
    int left = MBI_ALL_WORK;
    int i;
    for (i = 0; draw > 0 && i < n; i++) {
        int share = draw == 1 ? 0 : (int)(synthetic_random(&seed) % (uint64_t)(left + 1));
        workers[i].share = i < n - 1 ? share : left;
        left -= workers[i].share;
    }
}

/* Logits of a prompt and of some tokens behind it; NULL if something failed. */
static float *run_model(const synthetic_model *image, int n_threads, const mamba_parallel *parallel,
                        int time_chunk, int draw) {
    mamba_config c;
    mamba_state_options o;
    mamba_model *m = NULL;
    mamba_state *s = NULL;
    mamba_error err;
    int32_t tokens[TOKENS];
    float *logits = NULL;
    size_t n_vocab = 0;
    int i;
    int ok;
    memset(&c, 0, sizeof c);
    memset(&o, 0, sizeof o);
    c.n_threads = n_threads;
    if (parallel) {
        c.parallel = *parallel;
    }
    o.time_chunk = time_chunk;
    ok = mamba_open_memory(image->image, image->bytes, &c, &m, &err) == MAMBA_OK &&
         mamba_state_create(m, &o, &s, &err) == MAMBA_OK;
    if (ok) {
        give_shares(s->ctx.workers, n_threads, draw);
    }
#if MBI_OPENMP
    times_asked = 0;
#endif
    if (ok) {
        mamba_info info;
        mamba_model_info(m, &info);
        n_vocab = (size_t)info.n_vocab;
        logits = (float *)calloc((DECODED + 1) * n_vocab, sizeof(float));
        for (i = 0; i < TOKENS; i++) {
            tokens[i] = i * 7 % (int)n_vocab;
        }
        ok = logits != NULL &&
             mamba_prefill(s, tokens, TOKENS, logits, n_vocab, &err) == MAMBA_OK;
    }
    for (i = 0; i < DECODED && ok; i++) {
        ok = mamba_step(s, i, logits + (size_t)(i + 1) * n_vocab, n_vocab, &err) == MAMBA_OK;
    }
    mamba_state_free(s);
    mamba_close(m);
    if (!ok) {
        free(logits);
        logits = NULL;
    }
    return logits;
}

static void check_bits(mamba_layer_kind kind, int d_model, mamba_type type, int time_chunk) {
    enum { WAYS = 5 };
    static const int threads[] = {2, 3, 5, 16};
    synthetic_geometry g;
    synthetic_model image;
    float *want;
    size_t t;
    int dealt;
    g = *synthetic_find("tiny");
    g.kind = kind;
    g.d_model = d_model;
    g.n_layers = 2;
    g.n_vocab = 300;
    g.d_state = kind == MAMBA_LAYER_MAMBA1 ? 16 : 64;
    REQUIRE(synthetic_build(&image, &g, type, 0) == 0);
    want = run_model(&image, 1, NULL, time_chunk, 0);
    CHECK(want != NULL);
    for (dealt = 0; dealt < 2 && want; dealt++) {
        short_region = dealt ? 0 : INT_MAX;
        for (t = 0; t < WAYS * sizeof threads / sizeof *threads; t++) {
            int n = threads[t / WAYS];
            int way = (int)(t % WAYS); /* OpenMP, a hook, and the hook with other shares */
            float *got = run_model(&image, n, way ? &backwards : NULL, time_chunk, way - 1);
            if (got == NULL || memcmp(got, want, (DECODED + 1) * 300 * sizeof(float)) != 0) {
                char text[200];
                (void)snprintf(text, sizeof text, "d_model %d, type %d, %d threads, way %d, %s",
                               d_model, (int)type, n, way, dealt ? "dealt out" : "even");
                FAIL(text);
            }
            free(got);
        }
    }
    free(want);
    synthetic_free(&image);
}

static void check_types(mamba_layer_kind kind, int d_model, int time_chunk) {
    static const mamba_type types[] = {MAMBA_F32, MAMBA_BF16, MAMBA_Q8, MAMBA_Q4};
    size_t i;
    for (i = 0; i < sizeof types / sizeof *types; i++) {
        check_bits(kind, d_model, types[i], time_chunk);
    }
}

/* 12, 20 and 48 blocks of 16 channels: groups of 64 come whole, and cut among workers. */
TEST(mamba1_bits) {
    check_types(MAMBA_LAYER_MAMBA1, 96, 0);
    check_types(MAMBA_LAYER_MAMBA1, 160, 0);
    check_types(MAMBA_LAYER_MAMBA1, 384, 0);
    check_types(MAMBA_LAYER_MAMBA1, 160, 64);
}

TEST(mamba2_bits) {
    check_types(MAMBA_LAYER_MAMBA2, 96, 0);
    check_types(MAMBA_LAYER_MAMBA2, 320, 0);
    check_types(MAMBA_LAYER_MAMBA2, 160, 64);
}

/* ---- the team -------------------------------------------------------------------------------- */

#if MBI_OPENMP
enum { TEAM = 150, JOBS = 3 }; /* more members than lines to say that they are done */

typedef struct team_job {
    int done[JOBS][2 * TEAM], job;
    int wrong;
} team_job;

static void team_task(void *arg, int i) {
    team_job *j = (team_job *)arg;
    j->done[j->job][i]++;
}

/* Jobs with as many tasks as members, with fewer and with more: all are done when the next begins. */
static void team_body(void *arg, const mamba_parallel *parallel) {
    static const int n_tasks[JOBS] = {TEAM, 20, 2 * TEAM};
    team_job *j = (team_job *)arg;
    for (j->job = 0; j->job < JOBS; j->job++) {
        int i;
        parallel->run(parallel->user, n_tasks[j->job], team_task, arg);
        for (i = 0; i < 2 * TEAM; i++) {
            j->wrong += j->done[j->job][i] != (i < n_tasks[j->job]);
        }
    }
}
#endif

TEST(team_larger_than_its_lines) {
#if MBI_OPENMP
    team_job j;
    memset(&j, 0, sizeof j);
    CHECK((int)TEAM > (int)MBI_TEAM_LINES);
    mbi_team_of(TEAM, team_body, &j);
    CHECK_INT(j.job, JOBS);
    CHECK_INT(j.wrong, 0);
#else
    SKIP("compiled without OpenMP");
#endif
}

/* The system is asked for the number of cores once a call, and not at all for one thread or where a
 * hook runs everything: it takes as long as a small region. */
TEST(cores_are_asked_for_once) {
#if MBI_OPENMP
    synthetic_model image;
    REQUIRE(synthetic_build(&image, synthetic_find("tiny"), MAMBA_Q8, 0) == 0);
    free(run_model(&image, 1, NULL, 0, 0));
    CHECK_INT(times_asked, 0);
    free(run_model(&image, 2, &backwards, 0, 0));
    CHECK_INT(times_asked, 0);
    free(run_model(&image, 2, NULL, 0, 0));
    CHECK_INT(times_asked, 1 + DECODED);
    synthetic_free(&image);
#else
    SKIP("compiled without OpenMP");
#endif
}

TEST_MAIN("ranges") {
    RUN(every_item_once);
    RUN(the_late_do_less);
    RUN(shares_follow_the_work);
    RUN(mamba1_bits);
    RUN(mamba2_bits);
    RUN(team_larger_than_its_lines);
    RUN(cores_are_asked_for_once);
}
