/*  model.c: whole Mamba-1 models through the public API, on every target this machine can run: the logits of the
 *  golden checkpoints, and that neither the cut of the prompt, nor threads, nor save, restore and fork, nor the way
 *  the file was opened changes a bit.  Reads build/golden/NAME.mamba (made by mamba-convert) and tests/golden/NAME.
 */
#include "mamba.h"

#include "golden.h"
#include "test.h"

#include <math.h>
#include <pthread.h>

#ifndef BUILD_DIR
#define BUILD_DIR "build"
#endif

static const mamba_target *target;

static const char *const all_models[] = {
    "mamba1-base", "mamba1-long", "mamba1-odd", "mamba1-untied", "mamba1-bf16", "mamba1-f16", "mamba1-sharded",
    "mamba1-original-f32", "mamba1-original-f16", "mamba1-original-bf16", "mamba1-original-legacy", "falcon-mamba"};
/* the ones that differ in what they compute */
static const char *const kinds[] = {"mamba1-base", "mamba1-odd", "mamba1-untied", "falcon-mamba"};
enum { N_ALL = sizeof all_models / sizeof all_models[0], N_KINDS = sizeof kinds / sizeof kinds[0] };

static void model_path(const char *name, char path[300])
{
    (void)snprintf(path, 300, BUILD_DIR "/golden/%s.mamba", name);
}

static golden open_expected(const char *name)
{
    char path[300];
    (void)snprintf(path, sizeof path, "tests/golden/%s/expected.safetensors", name);
    return golden_open(path);
}

static mamba_config config_here(void)
{
    mamba_config c;
    memset(&c, 0, sizeof c);
    c.target = target;
    c.n_threads = 1;
    c.memory.alloc = golden_alloc;
    c.memory.free = golden_free;
    return c;
}

static mamba_model *open_with(const char *name, const mamba_config *cfg)
{
    mamba_model *m = NULL;
    mamba_error err;
    char path[300];
    model_path(name, path);
    if (mamba_open(path, strlen(path), cfg, &m, &err) != MAMBA_OK) {
        char text[600];
        mamba_error_text(&err, text, sizeof text);
        golden_die(path, text);
    }
    return m;
}

static mamba_model *open_model(const char *name)
{
    mamba_config c = config_here();
    return open_with(name, &c);
}

static mamba_state *new_state(const mamba_model *m, int n_threads, int chunk)
{
    mamba_state_options o;
    mamba_state *s = NULL;
    memset(&o, 0, sizeof o);
    o.n_threads = n_threads;
    o.prefill_chunk = chunk;
    if (mamba_state_create(m, &o, &s, NULL) != MAMBA_OK) {
        golden_die("state", "can't create");
    }
    return s;
}

static size_t vocab(const mamba_model *m)
{
    mamba_info info;
    mamba_model_info(m, &info);
    return (size_t)info.n_vocab;
}

static float *floats(size_t n)
{
    float *p = (float *)calloc(n + 1, sizeof(float));
    if (p == NULL) {
        golden_die("model", "out of memory");
    }
    return p;
}

static mamba_status run_all(mamba_state *s, const int32_t *tokens, size_t n, float *logits, size_t n_vocab)
{
    mamba_io io;
    memset(&io, 0, sizeof io);
    io.tokens = tokens;
    io.n = n;
    io.want_logits = MAMBA_WANT_ALL;
    io.logits = logits;
    io.n_logits = n * n_vocab;
    return mamba_run(s, &io, NULL);
}

/* Logits of all tokens by one call. */
static float *logits_of(const mamba_model *m, const int32_t *tokens, size_t n, int n_threads, int chunk)
{
    mamba_state *s = new_state(m, n_threads, chunk);
    float *out = floats(n * vocab(m));
    CHECK_INT(run_all(s, tokens, n, out, vocab(m)), MAMBA_OK);
    mamba_state_free(s);
    return out;
}

static int same(const void *a, const void *b, size_t n_floats)
{
    return memcmp(a, b, n_floats * sizeof(float)) == 0;
}

static int32_t argmax(const float *x, size_t n)
{
    size_t best = 0, i;
    for (i = 1; i < n; i++) {
        best = x[i] > x[best] ? i : best;
    }
    return (int32_t)best;
}

static double deviation(const float *x, size_t n)
{
    double sum = 0.0, squares = 0.0;
    size_t i;
    for (i = 0; i < n; i++) {
        sum += (double)x[i];
        squares += (double)x[i] * (double)x[i];
    }
    return sqrt(squares / (double)n - sum / (double)n * (sum / (double)n));
}

/* Largest difference in units of the expected values' standard deviation. */
static double distance(const float *got, const float *want, size_t n)
{
    double worst = 0.0;
    size_t i;
    for (i = 0; i < n; i++) {
        double d = fabs((double)got[i] - (double)want[i]);
        worst = d <= worst ? worst : d;
    }
    return worst / deviation(want, n);
}

static int figures(void)
{
    return getenv("MAMBA_TEST_FIGURES") != NULL;
}

/* Under sanitizers and emulators (MAMBA_TEST_QUICK set) the trained model and some repetitions are cut short. */
static int quick(void)
{
#if defined(__SANITIZE_ADDRESS__)
    return 1;
#else
    return getenv("MAMBA_TEST_QUICK") != NULL;
#endif
}

/* ---- against the reference --------------------------------------------------------------------------------- */

static void check_greedy(const mamba_model *m, const int32_t *prompt, size_t n_prompt, const int32_t *want,
                         size_t n_want, const char *name)
{
    mamba_state *s = new_state(m, 1, 0);
    size_t n_vocab = vocab(m), i;
    float *logits = floats(n_vocab);
    CHECK_INT(mamba_prefill(s, prompt, n_prompt, logits, n_vocab, NULL), MAMBA_OK);
    for (i = 0; i < n_want; i++) {
        int32_t token = argmax(logits, n_vocab);
        if (token != want[i]) {
            printf("%s: greedy token %d\n", name, (int)i);
            CHECK_INT(token, want[i]);
            break;
        }
        CHECK_INT(mamba_step(s, token, logits, n_vocab, NULL), MAMBA_OK);
    }
    mamba_state_free(s);
    free(logits);
}

TEST(golden_logits)
{
    size_t i, b;
    double most = 0.0;
    for (i = 0; i < N_ALL; i++) {
        golden g = open_expected(all_models[i]);
        golden_tensor ids = golden_get(&g, "input_ids"), want = golden_get(&g, "logits");
        golden_tensor greedy = golden_get(&g, "greedy");
        mamba_model *m = open_model(all_models[i]);
        size_t n = ids.shape[1], n_vocab = vocab(m);
        REQUIRE(want.rank == 3 && want.shape[2] == n_vocab && want.shape[1] == n && n > 0);
        for (b = 0; b < ids.shape[0]; b++) {
            float *got = logits_of(m, ids.u.i + b * n, n, 1, 0);
            double d = distance(got, want.u.f + b * n * n_vocab, n * n_vocab);
            most = d > most ? d : most;
            if (!(d <= 1e-4)) {
                printf("%s, row %d\n", all_models[i], (int)b);
                CHECK_NEAR(d, 0.0, 1e-4);
            }
            free(got);
        }
        if (greedy.n != 0) {
            check_greedy(m, ids.u.i, n, greedy.u.i, greedy.n, all_models[i]);
        }
        CHECK_INT(mamba_model_check(m, MAMBA_CHECK_ALL, NULL), MAMBA_OK);
        mamba_close(m);
        free(ids.u.p);
        free(want.u.p);
        free(greedy.u.p);
        golden_close(&g);
    }
    if (figures()) {
        printf("golden logits on %s: largest error %.2g standard deviations\n", mamba_target_name(target), most);
    }
}

/* Mean negative log-likelihood of the targets, in double. */
static double mean_nll(const mamba_model *m, const golden_tensor *ids, const golden_tensor *targets,
                       const golden_tensor *last)
{
    size_t n_vocab = vocab(m), n = ids->n, piece = 128, i, j;
    mamba_state *s = new_state(m, 2, 0);
    float *logits = floats(piece * n_vocab);
    double total = 0.0;
    for (i = 0; i < n; i++) {
        const float *row = logits + i % piece * n_vocab;
        double sum = 0.0;
        float largest;
        if (i % piece == 0) {
            CHECK_INT(run_all(s, ids->u.i + i, piece, logits, n_vocab), MAMBA_OK);
        }
        largest = row[argmax(row, n_vocab)];
        for (j = 0; j < n_vocab; j++) {
            sum += exp((double)row[j] - (double)largest);
        }
        total += log(sum) + (double)largest - (double)row[targets->u.i[i]];
    }
    if (last != NULL) {
        double d = distance(logits + (piece - 64) * n_vocab, last->u.f, 64 * n_vocab);
        CHECK_NEAR(d, 0.0, 1e-4);
        if (figures()) {
            printf("tales on %s: last 64 logits within %.2g standard deviations\n", mamba_target_name(target), d);
        }
    }
    mamba_state_free(s);
    free(logits);
    return total / (double)n;
}

/* `exact`: the logits and the greedy text must be those of float32. */
static void check_tales(const char *name, double bound, int exact)
{
    golden g = open_expected("mamba1-tales");
    golden_tensor ids = golden_get(&g, "input_ids"), targets = golden_get(&g, "targets");
    golden_tensor nll = golden_get(&g, "nll"), last = golden_get(&g, "logits_last64");
    golden_tensor prompt = golden_get(&g, "prompt"), greedy = golden_get(&g, "greedy");
    mamba_model *m = open_model(name);
    double got, want = 0.0;
    int whole;
    size_t i;
    REQUIRE(ids.n == 2048 && targets.n == 2048 && nll.n == 2048 && prompt.n != 0 && greedy.n == 64);
    whole = target == mamba_target_best(); /* the slower targets see the first tokens only */
    whole = whole && !quick();
    ids.n = whole ? ids.n : quick() ? 128 : 384;
    for (i = 0; i < ids.n; i++) {
        want += (double)nll.u.f[i] / (double)ids.n;
    }
    got = mean_nll(m, &ids, &targets, exact && whole ? &last : NULL);
    CHECK_NEAR(got, want, bound);
    if (figures()) {
        printf("%s on %s: nll %.6f, expected %.6f, off by %.2g\n", name, mamba_target_name(target), got, want,
               got - want);
    }
    if (exact && !quick()) {
        check_greedy(m, prompt.u.i, prompt.n, greedy.u.i, greedy.n, name);
    }
    mamba_close(m);
    free(ids.u.p);
    free(targets.u.p);
    free(nll.u.p);
    free(last.u.p);
    free(prompt.u.p);
    free(greedy.u.p);
    golden_close(&g);
}

TEST(tales_bf16)
{
    /* activations rounded to bf16 move a log-probability by 0.005 (a divergence of 1.2e-5), and a mean of 128 by 4e-4 */
    int rounds = strcmp(mamba_target_name(target), "avx512bf16") == 0;
    check_tales("mamba1-tales-bf16", rounds ? 1e-3 : 1e-4, !rounds);
}

TEST(tales_q8)
{
    check_tales("mamba1-tales-q8", 0.005, 0);
}

/* ---- the same bits however the work was cut ------------------------------------------------------------------ */

typedef struct {
    mamba_model *m;
    size_t n, n_vocab;
    int32_t *tokens;
    float *want; /* logits of all tokens, one thread, one call */
} sample;

static sample open_sample(const char *name, const char *expected, size_t n_most)
{
    golden g = open_expected(expected);
    golden_tensor ids = golden_get(&g, "input_ids");
    sample s;
    s.m = open_model(name);
    s.n = ids.shape[1] < n_most ? ids.shape[1] : n_most;
    s.n_vocab = vocab(s.m);
    s.tokens = ids.u.i;
    s.want = logits_of(s.m, s.tokens, s.n, 1, 0);
    golden_close(&g);
    return s;
}

static void close_sample(sample *s)
{
    mamba_close(s->m);
    free(s->tokens);
    free(s->want);
}

/* Feeds calls of `piece` tokens; n_threads and chunk as given. */
static void check_pieces(const sample *s, size_t piece, int n_threads, int chunk)
{
    mamba_state *state = new_state(s->m, n_threads, chunk);
    float *got = floats(s->n * s->n_vocab);
    size_t at;
    for (at = 0; at < s->n; at += piece) {
        size_t n = s->n - at < piece ? s->n - at : piece;
        CHECK_INT(run_all(state, s->tokens + at, n, got + at * s->n_vocab, s->n_vocab), MAMBA_OK);
    }
    CHECK_INT(mamba_state_position(state), s->n);
    if (!same(got, s->want, s->n * s->n_vocab)) {
        printf("pieces of %d, %d threads, chunk %d\n", (int)piece, n_threads, chunk);
        FAIL("bits differ");
    }
    mamba_state_free(state);
    free(got);
}

static void check_cuts(const char *name, const char *expected, size_t n_most)
{
    static const int pieces[] = {1, 2, 7, 16, 17, 64};
    sample s = open_sample(name, expected, n_most);
    size_t i, j;
    for (i = 0; i < sizeof pieces / sizeof pieces[0]; i++) {
        check_pieces(&s, (size_t)pieces[i], 1, 0);
        check_pieces(&s, s.n, 1, pieces[i]);
        for (j = i % 2; j < sizeof pieces / sizeof pieces[0] && s.n <= 64 && !quick(); j += 2) {
            check_pieces(&s, (size_t)pieces[i], 1, pieces[j]);
        }
    }
    close_sample(&s);
}

TEST(cuts)
{
    size_t i;
    for (i = 0; i < N_KINDS; i++) {
        check_cuts(kinds[i], kinds[i], 1000);
    }
    check_cuts("mamba1-long", "mamba1-long", quick() ? 100 : 700);
    check_cuts("mamba1-tales-bf16", "mamba1-tales", quick() ? 3 : 18);
    check_cuts("mamba1-tales-q8", "mamba1-tales", quick() ? 3 : 18);
}

static void run_backwards(void *user, int n_tasks, mamba_task task, void *arg)
{
    int i;
    ++*(int *)user;
    for (i = n_tasks - 1; i >= 0; i--) {
        task(arg, i);
    }
}

static void check_threads(const char *name, const char *expected, size_t n_most)
{
    static const int threads[] = {2, 3, 8};
    sample s = open_sample(name, expected, n_most);
    sample hooked = s;
    mamba_config c = config_here();
    int used = 0;
    size_t i;
    c.parallel.run = run_backwards;
    c.parallel.user = &used;
    hooked.m = open_with(name, &c);
    for (i = 0; i < sizeof threads / sizeof threads[0]; i++) {
        check_pieces(&s, s.n, threads[i], 0);
        check_pieces(&s, s.n, threads[i], 64);
        check_pieces(&hooked, s.n, threads[i], 0);
        check_pieces(&hooked, 40, threads[i], 33);
        check_pieces(&hooked, 5, threads[i], 0);
    }
    CHECK(used > 0);
    check_pieces(&hooked, 1, 8, 0);
    used = 0;
    check_pieces(&hooked, s.n, 1, 0); /* one thread never enters the hook */
    CHECK_INT(used, 0);
    mamba_close(hooked.m);
    close_sample(&s);
}

TEST(threads)
{
    size_t i;
    for (i = 0; i < N_KINDS; i++) {
        check_threads(kinds[i], kinds[i], 1000);
    }
    check_threads("mamba1-long", "mamba1-long", quick() ? 70 : 300);
    check_threads("mamba1-tales-bf16", "mamba1-tales", quick() ? 3 : 36);
    check_threads("mamba1-tales-q8", "mamba1-tales", quick() ? 3 : 36);
}

/* Chunks in parallel over time: within the bound, and the same bits for any number of threads. */
TEST(time_chunks)
{
    sample s = open_sample("mamba1-long", "mamba1-long", 1000);
    float *first = NULL;
    int n_threads;
    for (n_threads = 1; n_threads <= 8; n_threads = n_threads * 3 - 1) { /* 1, 2, 5 */
        mamba_state_options o;
        mamba_state *state = NULL;
        float *got = floats(s.n * s.n_vocab);
        memset(&o, 0, sizeof o);
        o.n_threads = n_threads;
        o.prefill_chunk = 300;
        o.time_chunk = 64;
        REQUIRE(mamba_state_create(s.m, &o, &state, NULL) == MAMBA_OK);
        CHECK_INT(run_all(state, s.tokens, s.n, got, s.n_vocab), MAMBA_OK);
        CHECK_NEAR(distance(got, s.want, s.n * s.n_vocab), 0.0, 5e-5);
        CHECK(!same(got, s.want, s.n * s.n_vocab)); /* it really took another way */
        if (first == NULL) {
            first = got;
        } else {
            CHECK(same(got, first, s.n * s.n_vocab));
            free(got);
        }
        mamba_state_free(state);
    }
    free(first);
    close_sample(&s);
}

typedef struct {
    const sample *s;
    int ok;
} worker;

static void *work(void *arg)
{
    worker *w = (worker *)arg;
    const sample *s = w->s;
    int round;
    w->ok = 1;
    for (round = 0; round < 5; round++) {
        mamba_state *state = new_state(s->m, 1, round * 7);
        float *got = floats(s->n * s->n_vocab);
        size_t i;
        for (i = 0; i < s->n; i++) {
            w->ok = w->ok && run_all(state, s->tokens + i, 1, got + i * s->n_vocab, s->n_vocab) == MAMBA_OK;
        }
        w->ok = w->ok && same(got, s->want, s->n * s->n_vocab);
        mamba_state_free(state);
        free(got);
    }
    return NULL;
}

/* Several states of one model on several threads, on stacks of 64 KiB. */
TEST(sessions)
{
    sample s = open_sample("mamba1-base", "mamba1-base", 1000);
    pthread_t threads[6];
    worker workers[6];
    pthread_attr_t attributes;
    int i;
    (void)pthread_attr_init(&attributes);
#ifndef __SANITIZE_ADDRESS__
    (void)pthread_attr_setstacksize(&attributes, 65536);
#endif
    for (i = 0; i < 6; i++) {
        workers[i].s = &s;
        REQUIRE(pthread_create(&threads[i], &attributes, work, &workers[i]) == 0);
    }
    for (i = 0; i < 6; i++) {
        (void)pthread_join(threads[i], NULL);
        CHECK(workers[i].ok);
    }
    (void)pthread_attr_destroy(&attributes);
    close_sample(&s);
}

/* ---- save, restore, fork --------------------------------------------------------------------------------------- */

static unsigned char *snapshot(const mamba_state *s, size_t *bytes)
{
    unsigned char *p;
    size_t written = 0;
    *bytes = mamba_state_save_bytes(s);
    p = (unsigned char *)malloc(*bytes);
    if (p == NULL) {
        golden_die("snapshot", "out of memory");
    }
    CHECK_INT(mamba_state_save(s, p, *bytes, &written, NULL), MAMBA_OK);
    CHECK_INT(written, *bytes);
    return p;
}

/* The rest of the sample from `at` must give the known bits. */
static void check_rest(const sample *s, mamba_state *state, size_t at, size_t n_most)
{
    size_t n = s->n - at < n_most ? s->n - at : n_most;
    float *got = floats(n * s->n_vocab);
    CHECK_INT(mamba_state_position(state), at);
    CHECK_INT(run_all(state, s->tokens + at, n, got, s->n_vocab), MAMBA_OK);
    CHECK(same(got, s->want + at * s->n_vocab, n * s->n_vocab));
    free(got);
}

static void check_save(const char *name, const char *expected, size_t n_most)
{
    sample s = open_sample(name, expected, n_most);
    mamba_config plain;
    mamba_model *other; /* the same file, opened again, on the scalar target */
    mamba_state *state = new_state(s.m, 1, 0);
    mamba_state *restored = new_state(s.m, 3, 5);
    mamba_state *fork = new_state(s.m, 1, 100);
    mamba_state *elsewhere;
    size_t at;
    memset(&plain, 0, sizeof plain);
    plain.target = mamba_target_at(0);
    other = open_with(name, &plain);
    elsewhere = new_state(other, 1, 0);
    for (at = 0; at <= s.n; at++) {
        size_t bytes, bytes2;
        unsigned char *p = snapshot(state, &bytes);
        unsigned char *p2;
        CHECK_INT(mamba_state_restore(restored, p, bytes, NULL), MAMBA_OK);
        CHECK_INT(mamba_state_copy(fork, state, NULL), MAMBA_OK);
        CHECK_INT(mamba_state_restore(elsewhere, p, bytes, NULL), MAMBA_OK);
        p2 = snapshot(elsewhere, &bytes2);
        CHECK(bytes == bytes2 && memcmp(p, p2, bytes) == 0);
        check_rest(&s, restored, at, 12);
        check_rest(&s, fork, at, 1000);
        if (at < s.n) {
            check_rest(&s, state, at, 1); /* and the original goes on undisturbed */
        }
        free(p);
        free(p2);
    }
    mamba_state_reset(state);
    check_rest(&s, state, 0, 1000);
    mamba_state_free(state);
    mamba_state_free(restored);
    mamba_state_free(fork);
    mamba_state_free(elsewhere);
    mamba_close(other);
    close_sample(&s);
}

TEST(save_restore_fork)
{
    size_t i;
    for (i = 0; i < N_KINDS; i++) {
        check_save(kinds[i], kinds[i], 1000);
    }
    check_save("mamba1-long", "mamba1-long", quick() ? 10 : 40);
    check_save("mamba1-tales-q8", "mamba1-tales", quick() ? 2 : 6);
}

static void check_refused(mamba_state *s, const unsigned char *p, size_t bytes, const unsigned char *before,
                          size_t n_before)
{
    mamba_error err;
    size_t n;
    unsigned char *after;
    mamba_status status = mamba_state_restore(s, p, bytes, &err);
    CHECK(status != MAMBA_OK && err.status == status && err.what[0] != 0 && err.name[0] != 0);
    after = snapshot(s, &n);
    CHECK(n == n_before && memcmp(after, before, n) == 0);
    free(after);
}

/* Every truncation and every flipped bit of a snapshot is refused and leaves the state as it was. */
TEST(snapshot_damage)
{
    sample s = open_sample("mamba1-long", "mamba1-long", 30);
    sample other = open_sample("mamba1-base", "mamba1-base", 5);
    mamba_state *state = new_state(s.m, 1, 0);
    mamba_state *second = new_state(s.m, 1, 0);
    mamba_state *foreign = new_state(other.m, 1, 0);
    size_t bytes, n_before, i;
    unsigned char *p, *exact, *before;
    mamba_error err;
    CHECK_INT(mamba_prefill(state, s.tokens, 20, NULL, 0, NULL), MAMBA_OK);
    CHECK_INT(mamba_prefill(second, s.tokens, 9, NULL, 0, NULL), MAMBA_OK);
    p = snapshot(state, &bytes);
    before = snapshot(second, &n_before);
    for (i = 0; i < bytes; i++) { /* a block of exactly that size, so that a read past it shows */
        exact = (unsigned char *)malloc(i + (i == 0));
        REQUIRE(exact != NULL);
        memcpy(exact, p, i);
        check_refused(second, exact, i, before, n_before);
        free(exact);
    }
    for (i = 0; i < 8 * bytes; i++) {
        p[i / 8] = (unsigned char)(p[i / 8] ^ 1u << i % 8);
        if (mamba_state_restore(second, p, bytes, NULL) == MAMBA_OK || i % 97 == 0) {
            check_refused(second, p, bytes, before, n_before);
        }
        p[i / 8] = (unsigned char)(p[i / 8] ^ 1u << i % 8);
    }
    exact = (unsigned char *)calloc(1, bytes + 9);
    REQUIRE(exact != NULL);
    memcpy(exact, p, bytes);
    check_refused(second, exact, bytes + 1, before, n_before);
    check_refused(second, exact, bytes + 8, before, n_before);
    CHECK_INT(mamba_state_restore(foreign, p, bytes, &err), MAMBA_ERR_CHECK);
    CHECK_CONTAINS(err.what, "another model");
    CHECK_INT(mamba_state_copy(foreign, state, &err), MAMBA_ERR_ARG);
    CHECK_INT(mamba_state_restore(second, NULL, 0, &err), MAMBA_ERR_ARG);
    CHECK_INT(mamba_state_save(state, exact, bytes - 1, NULL, &err), MAMBA_ERR_RANGE);
    CHECK_INT(mamba_state_restore(second, p, bytes, NULL), MAMBA_OK); /* at last the good one */
    check_rest(&s, second, 20, 10);
    free(p);
    free(exact);
    free(before);
    mamba_state_free(state);
    mamba_state_free(second);
    mamba_state_free(foreign);
    close_sample(&s);
    close_sample(&other);
}

/* ---- inputs and outputs ------------------------------------------------------------------------------------------ */

TEST(vectors)
{
    golden weights = golden_open("tests/golden/mamba1-base/model.safetensors");
    golden_tensor e = golden_get(&weights, "backbone.embeddings.weight");
    sample s = open_sample("mamba1-base", "mamba1-base", 1000);
    mamba_state *state = new_state(s.m, 1, 0);
    size_t d = e.shape[1], i;
    float *rows = floats(s.n * d);
    float *got = floats(s.n * s.n_vocab);
    mamba_io io;
    REQUIRE(e.rank == 2 && e.shape[0] == s.n_vocab);
    for (i = 0; i < s.n; i++) {
        memcpy(rows + i * d, e.u.f + (size_t)s.tokens[i] * d, d * sizeof(float));
    }
    memset(&io, 0, sizeof io);
    io.vectors = rows;
    io.n = s.n;
    io.want_logits = MAMBA_WANT_ALL;
    io.logits = got;
    io.n_logits = s.n * s.n_vocab;
    CHECK_INT(mamba_run(state, &io, NULL), MAMBA_OK);
    CHECK(same(got, s.want, s.n * s.n_vocab));
    mamba_state_free(state);
    close_sample(&s);
    free(rows);
    free(got);
    free(e.u.p);
    golden_close(&weights);
}

/* Hidden states times the (tied) embedding give the logits; LAST is the last row of ALL, of every prefix. */
TEST(hidden_and_last)
{
    golden weights = golden_open("tests/golden/mamba1-base/model.safetensors");
    golden_tensor e = golden_get(&weights, "backbone.embeddings.weight");
    sample s = open_sample("mamba1-base", "mamba1-base", 1000);
    size_t d = e.shape[1], n, i, j;
    float *hidden = floats(s.n * d);
    float *last_hidden = floats(d);
    float *last = floats(s.n_vocab);
    mamba_state *state = new_state(s.m, 1, 0);
    mamba_io io;
    memset(&io, 0, sizeof io);
    io.tokens = s.tokens;
    io.n = s.n;
    io.want_hidden = MAMBA_WANT_ALL;
    io.hidden = hidden;
    io.n_hidden = s.n * d;
    CHECK_INT(mamba_run(state, &io, NULL), MAMBA_OK);
    for (i = 0; i < s.n * s.n_vocab; i++) {
        double sum = 0.0, magnitude = 0.0;
        for (j = 0; j < d; j++) {
            double term = (double)hidden[i / s.n_vocab * d + j] * (double)e.u.f[i % s.n_vocab * d + j];
            sum += term;
            magnitude += fabs(term);
        }
        CHECK_NEAR(s.want[i], sum, 1e-6 * magnitude);
    }
    for (n = 1; n <= s.n; n++) {
        mamba_state_reset(state);
        memset(&io, 0, sizeof io);
        io.tokens = s.tokens;
        io.n = n;
        io.want_logits = io.want_hidden = MAMBA_WANT_LAST;
        io.logits = last;
        io.n_logits = s.n_vocab;
        io.hidden = last_hidden;
        io.n_hidden = d;
        CHECK_INT(mamba_run(state, &io, NULL), MAMBA_OK);
        CHECK(same(last, s.want + (n - 1) * s.n_vocab, s.n_vocab));
        CHECK(same(last_hidden, hidden + (n - 1) * d, d));
    }
    mamba_state_free(state);
    close_sample(&s);
    free(hidden);
    free(last_hidden);
    free(last);
    free(e.u.p);
    golden_close(&weights);
}

static void check_run_refused(mamba_state *s, const mamba_io *io, mamba_status want, const char *name)
{
    mamba_error err;
    uint64_t position = mamba_state_position(s);
    CHECK_INT(mamba_run(s, io, &err), want);
    CHECK_INT(err.status, want);
    CHECK_CONTAINS(err.name, name);
    CHECK_INT(mamba_state_position(s), position);
}

TEST(arguments)
{
    sample s = open_sample("mamba1-base", "mamba1-base", 1000);
    mamba_state *state = new_state(s.m, 1, 0);
    float *logits = floats(s.n * s.n_vocab);
    float vector[64] = {0};
    int32_t bad[3] = {1, 2, -1};
    mamba_state_options o;
    mamba_state *none = NULL;
    mamba_layer_info layer;
    mamba_tensor_info tensor;
    uint64_t bytes = 9;
    mamba_io io;
    CHECK_INT(run_all(state, s.tokens, 10, logits, s.n_vocab), MAMBA_OK);
    memset(&io, 0, sizeof io);
    CHECK_INT(mamba_run(state, &io, NULL), MAMBA_OK); /* no token, nothing wanted: nothing happens */
    io.want_logits = MAMBA_WANT_LAST;
    io.logits = logits;
    io.n_logits = s.n_vocab;
    check_run_refused(state, &io, MAMBA_ERR_ARG, "logits");
    io.n = 3;
    check_run_refused(state, &io, MAMBA_ERR_ARG, "tokens"); /* neither tokens nor vectors */
    io.tokens = bad;
    io.vectors = vector;
    check_run_refused(state, &io, MAMBA_ERR_ARG, "tokens"); /* both */
    io.vectors = NULL;
    check_run_refused(state, &io, MAMBA_ERR_ARG, "tokens"); /* id -1 */
    bad[2] = (int32_t)s.n_vocab;
    check_run_refused(state, &io, MAMBA_ERR_ARG, "tokens");
    bad[2] = (int32_t)s.n_vocab - 1;
    io.n_logits = s.n_vocab - 1;
    check_run_refused(state, &io, MAMBA_ERR_RANGE, "logits");
    io.n_logits = s.n_vocab;
    io.want_logits = MAMBA_WANT_ALL;
    check_run_refused(state, &io, MAMBA_ERR_RANGE, "logits");
    io.want_logits = (mamba_want)3;
    check_run_refused(state, &io, MAMBA_ERR_ARG, "logits");
    io.want_logits = MAMBA_WANT_NONE;
    io.want_hidden = MAMBA_WANT_LAST;
    check_run_refused(state, &io, MAMBA_ERR_RANGE, "hidden");
    CHECK_INT(mamba_step(state, -5, NULL, 0, NULL), MAMBA_ERR_ARG);
    check_rest(&s, state, 10, 10); /* all that left no trace */

    memset(&o, 0, sizeof o);
    o.n_threads = -1;
    CHECK_INT(mamba_state_create(s.m, &o, &none, NULL), MAMBA_ERR_ARG);
    o.n_threads = 1000000; /* far too many is cut down, not refused */
    CHECK_INT(mamba_state_create(s.m, &o, &none, NULL), MAMBA_OK);
    mamba_state_free(none);
    o.n_threads = 0;
    o.prefill_chunk = 4097;
    CHECK_INT(mamba_state_create(s.m, &o, &none, NULL), MAMBA_ERR_ARG);
    o.prefill_chunk = 0;
    o.time_chunk = 63;
    CHECK_INT(mamba_state_create(s.m, &o, &none, NULL), MAMBA_ERR_ARG);
    o.time_chunk = 0;
    o.max_tokens = -1;
    CHECK_INT(mamba_state_create(s.m, &o, &none, NULL), MAMBA_ERR_ARG);
    CHECK(none == NULL);
    CHECK_INT(mamba_model_layer(s.m, -1, &layer), MAMBA_ERR_ARG);
    CHECK_INT(mamba_model_layer(s.m, 1, &layer), MAMBA_OK);
    CHECK_INT(layer.d_inner, 64);
    CHECK_INT(mamba_model_layer(s.m, 2, &layer), MAMBA_ERR_ARG);
    CHECK_INT(mamba_model_tensor(s.m, 0, &tensor), MAMBA_OK);
    CHECK_INT(mamba_model_tensor(s.m, 100000, &tensor), MAMBA_ERR_ARG);
    CHECK(mamba_model_section(s.m, "no such", 7, &bytes) == NULL && bytes == 0);
    CHECK(mamba_model_section(s.m, "config", 6, &bytes) != NULL && bytes == 256);
    mamba_state_free(NULL);
    mamba_close(NULL);
    mamba_state_free(state);
    close_sample(&s);
    free(logits);
}

/* ---- ways to open, memory ---------------------------------------------------------------------------------------- */

typedef struct {
    int left;               /* allocations that still succeed */
    int calls, live;
    size_t live_bytes;
} counter;

static void *counted_alloc(void *user, size_t bytes, size_t align)
{
    counter *c = (counter *)user;
    void *p;
    c->calls++;
    p = c->left-- > 0 ? golden_alloc(NULL, bytes, align) : NULL;
    if (p == NULL) {
        return NULL;
    }
    c->live++;
    c->live_bytes += bytes;
    return p;
}

static void counted_free(void *user, void *p, size_t bytes)
{
    counter *c = (counter *)user;
    if (p != NULL) {
        c->live--;
        c->live_bytes -= bytes;
    }
    golden_free(NULL, p, bytes);
}

typedef struct {
    const char *data;
    size_t bytes;
    int fail_at, calls;
} source;

static int read_source(void *user, uint64_t offset, void *dst, size_t bytes)
{
    source *s = (source *)user;
    if (s->calls++ == s->fail_at || offset > s->bytes || bytes > s->bytes - offset) {
        return -1;
    }
    memcpy(dst, s->data + offset, bytes);
    return 0;
}

enum { OPEN_MAP, OPEN_COPY, OPEN_MEMORY, OPEN_UNALIGNED, OPEN_READER, N_OPENS };

typedef struct {
    char path[300];
    char *block;      /* of the file's bytes at a multiple of 64 */
    char *aligned;
    source from;
} file_bytes;

static file_bytes load_file(const char *name)
{
    file_bytes f;
    size_t bytes;
    char *data;
    memset(&f, 0, sizeof f);
    model_path(name, f.path);
    data = golden_read(f.path, &bytes);
    f.block = (char *)malloc(bytes + 128);
    if (f.block == NULL) {
        golden_die(f.path, "out of memory");
        return f;
    }
    f.aligned = f.block + (64 - (uintptr_t)f.block % 64) % 64;
    memcpy(f.aligned, data, bytes);
    free(data);
    f.from.data = f.aligned;
    f.from.bytes = bytes;
    f.from.fail_at = -1;
    return f;
}

static mamba_status open_as(int how, file_bytes *f, mamba_config *c, mamba_model **m, mamba_error *err)
{
    mamba_reader reader;
    reader.read = read_source;
    reader.user = &f->from;
    reader.total_bytes = f->from.bytes;
    f->from.calls = 0;
    c->copy = how == OPEN_COPY;
    switch (how) {
    case OPEN_MEMORY: return mamba_open_memory(f->aligned, f->from.bytes, c, m, err);
    case OPEN_UNALIGNED: {
        mamba_status status;
        memmove(f->aligned + 1, f->aligned, f->from.bytes);
        status = mamba_open_memory(f->aligned + 1, f->from.bytes, c, m, err);
        memmove(f->aligned, f->aligned + 1, f->from.bytes); /* copied: may be moved away */
        return status;
    }
    case OPEN_READER: return mamba_open_reader(&reader, c, m, err);
    default: return mamba_open(f->path, strlen(f->path), c, m, err);
    }
}

TEST(opens)
{
    sample s = open_sample("mamba1-odd", "mamba1-odd", 1000);
    file_bytes f = load_file("mamba1-odd");
    mamba_info first, info;
    int how;
    mamba_model_info(s.m, &first);
    CHECK_INT(first.file_bytes, f.from.bytes);
    CHECK_INT(first.d_model, 20);
    CHECK(strcmp(first.target, mamba_target_name(target)) == 0);
    for (how = 0; how < N_OPENS; how++) {
        mamba_config c = config_here();
        mamba_model *m = NULL;
        mamba_error err;
        sample again = s;
        c.check = MAMBA_CHECK_ALL;
        CHECK_INT(open_as(how, &f, &c, &m, &err), MAMBA_OK);
        REQUIRE(m != NULL);
        CHECK_INT(err.status, MAMBA_OK);
        mamba_model_info(m, &info);
        CHECK(memcmp(&info, &first, sizeof info) == 0);
        again.m = m;
        check_pieces(&again, 8, 1, 0);
        mamba_close(m);
    }
    {
        mamba_config c = config_here();
        mamba_model *m = NULL;
        mamba_error err;
        f.from.fail_at = 0;
        CHECK_INT(open_as(OPEN_READER, &f, &c, &m, &err), MAMBA_ERR_IO);
        CHECK(m == NULL);
        CHECK_CONTAINS(err.name, "reader");
        c.struct_size = sizeof c; /* an older, shorter struct is taken as far as it goes */
        CHECK_INT(open_as(OPEN_MAP, &f, &c, &m, &err), MAMBA_OK);
        mamba_close(m);
    }
    free(f.block);
    close_sample(&s);
}

/* Running allocates nothing; everything is freed. */
TEST(allocations)
{
    sample s = open_sample("mamba1-base", "mamba1-base", 1000);
    counter count = {1000000, 0, 0, 0};
    mamba_config c = config_here();
    mamba_model *m;
    mamba_state *state;
    float *got = floats(s.n * s.n_vocab);
    int calls;
    unsigned char *p;
    size_t bytes;
    c.memory.alloc = counted_alloc;
    c.memory.free = counted_free;
    c.memory.user = &count;
    m = open_with("mamba1-base", &c);
    state = new_state(m, 2, 0);
    calls = count.calls;
    CHECK_INT(run_all(state, s.tokens, s.n, got, s.n_vocab), MAMBA_OK);
    CHECK(same(got, s.want, s.n * s.n_vocab));
    CHECK_INT(mamba_step(state, 1, got, s.n_vocab, NULL), MAMBA_OK);
    p = snapshot(state, &bytes);
    mamba_state_reset(state);
    CHECK_INT(mamba_state_restore(state, p, bytes, NULL), MAMBA_OK);
    CHECK_INT(count.calls, calls);
    mamba_state_free(state);
    mamba_close(m);
    CHECK_INT(count.live, 0);
    CHECK_INT(count.live_bytes, 0);
    free(p);
    free(got);
    close_sample(&s);
}

/* Opens, checks, makes a state, runs; 1 if all went well, -1 if the status was not MEMORY. */
static int life(int how, file_bytes *f, counter *count)
{
    mamba_config c = config_here();
    mamba_model *m = NULL;
    mamba_state *state = NULL;
    mamba_error err;
    mamba_status status;
    c.memory.alloc = counted_alloc;
    c.memory.free = counted_free;
    c.memory.user = count;
    status = open_as(how, f, &c, &m, &err);
    if (status == MAMBA_OK) {
        status = mamba_model_check(m, MAMBA_CHECK_ALL, &err);
    }
    if (status == MAMBA_OK) {
        status = mamba_state_create(m, NULL, &state, &err);
    }
    if (status == MAMBA_OK) {
        status = mamba_step(state, 1, NULL, 0, &err);
    }
    mamba_state_free(state);
    mamba_close(m);
    if (err.status != status || (status != MAMBA_OK && status != MAMBA_ERR_MEMORY)) {
        return -1;
    }
    return status == MAMBA_OK;
}

TEST(failing_allocations)
{
    file_bytes f = load_file("mamba1-long");
    int how, k, result;
    for (how = 0; how < N_OPENS; how++) {
        for (k = 0; k < 1000; k++) {
            counter count;
            memset(&count, 0, sizeof count);
            count.left = k;
            result = life(how, &f, &count);
            CHECK(result >= 0);
            CHECK_INT(count.live, 0);
            CHECK_INT(count.live_bytes, 0);
            if (result == 1) {
                CHECK(k >= 3); /* it did fail before */
                break;
            }
        }
        CHECK(k < 1000);
    }
    free(f.block);
}

TEST(state_in_given_memory)
{
    sample s = open_sample("mamba1-base", "mamba1-base", 1000);
    mamba_state *state = NULL;
    mamba_error err;
    size_t bytes = 0;
    char *block, *aligned;
    REQUIRE(mamba_state_bytes(s.m, NULL, &bytes, &err) == MAMBA_OK);
    block = (char *)malloc(bytes + 128);
    REQUIRE(block != NULL);
    aligned = block + (64 - (uintptr_t)block % 64) % 64;
    memset(aligned, 0xff, bytes + 1);
    CHECK_INT(mamba_state_init(s.m, NULL, NULL, bytes, &state, &err), MAMBA_ERR_ARG);
    CHECK_INT(mamba_state_init(s.m, NULL, aligned + 4, bytes, &state, &err), MAMBA_ERR_ARG);
    CHECK_INT(mamba_state_init(s.m, NULL, aligned, bytes - 1, &state, &err), MAMBA_ERR_RANGE);
    CHECK(state == NULL);
    CHECK_INT(mamba_state_init(s.m, NULL, aligned, bytes, &state, &err), MAMBA_OK);
    REQUIRE(state != NULL);
    check_rest(&s, state, 0, 1000);
    mamba_state_free(state); /* does nothing */
    CHECK((unsigned char)aligned[bytes] == 0xff);
    free(block);
    close_sample(&s);
}

TEST(unusable)
{
    char why[100], path[300];
    mamba_config c = config_here();
    mamba_model *m = NULL;
    mamba_error err;
    model_path("mamba1-base", path);
    CHECK_INT(mamba_open(path, strlen(path), &c, &m, &err), MAMBA_ERR_UNSUPPORTED);
    CHECK(m == NULL);
    (void)snprintf(why, sizeof why, "target %s needs another CPU", mamba_target_name(target));
    SKIP(why);
}

#define RUN_ON_TARGET(name)                                                             \
    do {                                                                                \
        char full[80];                                                                  \
        (void)snprintf(full, sizeof full, "%s on %s", #name, mamba_target_name(target)); \
        test_run(full, test_##name);                                                    \
    } while (0)

TEST_MAIN("model")
{
    int i;
    for (i = 0; mamba_target_at(i) != NULL; i++) {
        target = mamba_target_at(i);
        if (!mamba_target_usable(target)) {
            RUN(unusable);
            continue;
        }
        RUN_ON_TARGET(golden_logits);
        RUN_ON_TARGET(tales_bf16);
        RUN_ON_TARGET(tales_q8);
        RUN_ON_TARGET(cuts);
        RUN_ON_TARGET(threads);
        RUN_ON_TARGET(time_chunks);
        RUN_ON_TARGET(sessions);
        RUN_ON_TARGET(save_restore_fork);
        RUN_ON_TARGET(vectors);
        RUN_ON_TARGET(hidden_and_last);
        RUN_ON_TARGET(arguments);
        RUN_ON_TARGET(opens);
        RUN_ON_TARGET(allocations);
        RUN_ON_TARGET(failing_allocations);
        RUN_ON_TARGET(state_in_given_memory);
    }
    target = mamba_target_best();
    RUN(snapshot_damage);
}
