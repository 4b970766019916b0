/*  ops.c: the public operators on every target this machine can run, against double precision (ref.h) and against
 *  the reference's own outputs (golden/ops).  Bounds are those of mamba.h, scaled by the size of the terms.
 */
#include "mamba.h"

#include "golden.h"
#include "ref.h"
#include "test.h"

static const mamba_target *target;

enum { EDGE = 8 }; /* floats in front of and behind an array that must keep their value */
#define EDGE_VALUE 12345.0f

static uint32_t seed = 1;

static float random_float(float lo, float hi)
{
    seed = seed * 1664525u + 1013904223u;
    return lo + (hi - lo) * (float)(seed >> 8) * (1.0f / 16777216.0f);
}

/* n random floats at an address that is a multiple of 4 and nothing more, with edges. */
static float *array(size_t n, float lo, float hi)
{
    float *p = (float *)malloc((n + 2 * EDGE + 1) * sizeof(float));
    size_t i;
    if (p == NULL) {
        golden_die("ops", "out of memory");
        return NULL;
    }
    for (i = 0; i < n + 2 * EDGE + 1; i++) {
        p[i] = EDGE_VALUE;
    }
    p += EDGE + 1;
    for (i = 0; i < n; i++) {
        p[i] = random_float(lo, hi);
    }
    return p;
}

/* Frees it; 1 if nothing was written beside it. */
static int release(float *p, size_t n)
{
    int ok = 1;
    size_t i;
    if (p == NULL) {
        return 1;
    }
    for (i = 0; i < EDGE; i++) {
        ok = ok && p[-(int)i - 1] == EDGE_VALUE && p[n + i] == EDGE_VALUE;
    }
    free(p - EDGE - 1);
    return ok;
}

static float *copy_of(const float *x, size_t n)
{
    float *p = array(n, 0.0f, 0.0f);
    memcpy(p, x, n * sizeof(float));
    return p;
}

static double *doubles(size_t n)
{
    double *p = (double *)calloc(n + 1, sizeof(double));
    if (p == NULL) {
        golden_die("ops", "out of memory");
    }
    return p;
}

static int same_bits(const float *a, const float *b, size_t n)
{
    return n == 0 || memcmp(a, b, n * sizeof(float)) == 0;
}

static void check_softplus(const float *x, const float *y, size_t n)
{
    size_t i;
    for (i = 0; i < n; i++) {
        double want = ref_softplus((double)x[i]);
        CHECK_NEAR(y[i], want, 4e-7 * want + 2e-38);
    }
}

TEST(softplus)
{
    size_t n;
    for (n = 0; n <= 50; n++) {
        float *x = array(n, -30.0f, 30.0f);
        float *y = array(n, 0.0f, 0.0f);
        mamba_softplus(target, x, y, n);
        check_softplus(x, y, n);
        mamba_softplus(target, x, x, n); /* in place */
        CHECK(same_bits(x, y, n));
        CHECK(release(x, n) && release(y, n));
    }
    n = 200001;
    {
        float *x = array(n, -120.0f, 120.0f);
        float *y = array(n, 0.0f, 0.0f);
        mamba_softplus(target, x, y, n);
        check_softplus(x, y, n);
        CHECK(release(x, n) && release(y, n));
    }
}

TEST(softplus_edges)
{
    const float inf = (float)INFINITY;
    const float x[12] = {0.0f, -0.0f, 20.0f, 20.000002f, 1e38f, -1e38f, inf, -inf, (float)NAN, 1e-40f, -87.0f, -104.0f};
    float y[12];
    mamba_softplus(target, x, y, 12);
    check_softplus(x, y, 5);
    CHECK(y[5] == 0.0f && y[7] == 0.0f);
    CHECK(y[6] == inf);
    CHECK(y[8] != y[8]);
    CHECK_NEAR(y[9], 0.6931471805599453, 1e-7);
    CHECK_NEAR(y[10], ref_softplus(-87.0), 1e-6 * ref_softplus(-87.0));
    CHECK(y[11] >= 0.0f && y[11] < 1e-44f);
    mamba_softplus(NULL, x, y, 1);
    CHECK_NEAR(y[0], 0.6931471805599453, 1e-7);
}

static void check_silu(const float *x, const float *y, size_t n)
{
    size_t i;
    for (i = 0; i < n; i++) {
        double want = ref_silu((double)x[i]);
        CHECK_NEAR(y[i], want, 4e-7 * ref_abs(want) + 4e-37);
    }
}

TEST(silu)
{
    size_t n;
    for (n = 0; n <= 50; n++) {
        float *x = array(n, -30.0f, 30.0f);
        float *y = array(n, 0.0f, 0.0f);
        mamba_silu(target, x, y, n);
        check_silu(x, y, n);
        mamba_silu(target, x, x, n);
        CHECK(same_bits(x, y, n));
        CHECK(release(x, n) && release(y, n));
    }
    n = 200001;
    {
        float *x = array(n, -120.0f, 120.0f);
        float *y = array(n, 0.0f, 0.0f);
        mamba_silu(target, x, y, n);
        check_silu(x, y, n);
        CHECK(release(x, n) && release(y, n));
    }
}

TEST(silu_edges)
{
    const float inf = (float)INFINITY;
    const float x[7] = {0.0f, -0.0f, 1e38f, -1e38f, inf, (float)NAN, 1e-40f};
    float y[7];
    mamba_silu(target, x, y, 7);
    CHECK(y[0] == 0.0f && y[1] == 0.0f && y[2] == 1e38f && y[3] == 0.0f && y[4] == inf);
    CHECK(y[5] != y[5]);
    CHECK_NEAR(y[6], 5e-41, 2e-44);
}

static void check_rmsnorm(int n_tokens, int n, int with_w, float scale)
{
    size_t all = (size_t)n_tokens * (size_t)n;
    float *x = array(all, -scale, scale);
    float *w = with_w ? array((size_t)n, -2.0f, 2.0f) : NULL;
    float *y = array(all, 0.0f, 0.0f);
    double *want = doubles((size_t)n);
    const float eps = 1e-5f;
    int t, i;
    mamba_rmsnorm(target, x, w, eps, n_tokens, n, y);
    for (t = 0; t < n_tokens; t++) {
        ref_rmsnorm(x + (size_t)t * (size_t)n, w, (double)eps, n, want);
        for (i = 0; i < n; i++) {
            CHECK_NEAR(y[(size_t)t * (size_t)n + (size_t)i], want[i],
                       ref_abs(want[i]) * (4e-7 + 6e-8 * (double)n / 32.0));
        }
    }
    mamba_rmsnorm(target, x, w, eps, n_tokens, n, x);
    CHECK(same_bits(x, y, all));
    CHECK(release(x, all) && release(y, all) && release(w, (size_t)n));
    free(want);
}

TEST(rmsnorm)
{
    const int sizes[] = {1, 2, 3, 5, 15, 16, 17, 31, 32, 33, 48, 100, 768, 1001, 2560};
    size_t i;
    int t;
    for (i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        for (t = 0; t <= 5; t++) {
            check_rmsnorm(t, sizes[i], t % 2, 3.0f);
        }
        check_rmsnorm(2, sizes[i], 1, 1e-4f); /* eps dominates */
        check_rmsnorm(2, sizes[i], 0, 1e15f);
    }
}

TEST(rmsnorm_edges)
{
    int n;
    for (n = 15; n <= 17; n++) {
        float x[3 * 17];
        float y[3 * 17];
        int i;
        for (i = 0; i < 3 * n; i++) {
            x[i] = i < n ? 0.0f : 1.0f; /* row 0: all zero */
        }
        x[2 * n + 1] = (float)NAN;      /* row 2: one NaN */
        mamba_rmsnorm(target, x, NULL, 1e-6f, 3, n, y);
        for (i = 0; i < n; i++) {
            CHECK(y[i] == 0.0f);
            CHECK_NEAR(y[n + i], 1.0, 1e-6);
            CHECK(y[2 * n + i] != y[2 * n + i]);
        }
    }
}

static void check_conv(int n_tokens, int channels, int d_conv, int silu, int with_bias, int with_state)
{
    size_t all = (size_t)n_tokens * (size_t)channels;
    size_t n_state = (size_t)(d_conv - 1) * (size_t)channels;
    float *x = array(all, -2.0f, 2.0f);
    float *w = array((size_t)(channels * d_conv), -1.0f, 1.0f);
    float *bias = with_bias ? array((size_t)channels, -1.0f, 1.0f) : NULL;
    float *state = with_state ? array(n_state, -2.0f, 2.0f) : NULL;
    float *before = with_state ? copy_of(state, n_state) : NULL;
    float *y = array(all, 0.0f, 0.0f);
    float *halves = array(all, 0.0f, 0.0f);
    float *state2 = with_state ? copy_of(state, n_state) : NULL;
    int t, c, half = n_tokens / 2;
    mamba_conv1d(target, x, w, bias, n_tokens, channels, d_conv, silu, state, y);
    for (t = 0; t < n_tokens; t++) {
        for (c = 0; c < channels; c++) {
            double magnitude;
            double want = ref_conv(x, w, bias, before, channels, d_conv, c, t, &magnitude);
            CHECK_NEAR(y[(size_t)t * (size_t)channels + (size_t)c], silu ? ref_silu(want) : want,
                       1e-6 * magnitude + 1e-37);
        }
    }
    for (t = 0; with_state && t < d_conv - 1; t++) {
        for (c = 0; c < channels; c++) {
            CHECK((double)state[t * channels + c] ==
                  ref_conv_input(x, before, channels, d_conv, c, n_tokens - (d_conv - 1) + t));
        }
    }
    if (with_state) { /* cut in two: the same bits */
        mamba_conv1d(target, x, w, bias, half, channels, d_conv, silu, state2, halves);
        mamba_conv1d(target, x + half * channels, w, bias, n_tokens - half, channels, d_conv, silu, state2,
                     halves + half * channels);
        CHECK(same_bits(y, halves, all) && same_bits(state, state2, n_state));
    }
    CHECK(release(x, all) && release(w, (size_t)(channels * d_conv)) && release(bias, (size_t)channels));
    CHECK(release(state, n_state) && release(state2, n_state) && release(before, n_state));
    CHECK(release(y, all) && release(halves, all));
}

TEST(conv1d)
{
    const int widths[] = {1, 3, 15, 16, 17, 40};
    const int lengths[] = {0, 1, 2, 3, 7, 31, 32, 33, 70};
    size_t i, j;
    int k;
    for (i = 0; i < sizeof widths / sizeof widths[0]; i++) {
        for (j = 0; j < sizeof lengths / sizeof lengths[0]; j++) {
            for (k = 1; k <= 8; k++) {
                int bits = (int)(i + j + (size_t)k);
                check_conv(lengths[j], widths[i], k, bits & 1, bits & 2, 1);
                check_conv(lengths[j], widths[i], k, bits & 2, bits & 1, 0);
            }
        }
    }
}

TEST(discretize)
{
    const int sizes[] = {1, 2, 8, 15, 16, 17, 33, 128};
    size_t s;
    int channels;
    for (s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
        for (channels = 1; channels <= 5; channels++) {
            size_t n = (size_t)sizes[s];
            size_t all = n * (size_t)channels;
            float *dt = array((size_t)channels, 0.0f, 4.0f);
            float *A = array(all, -16.0f, 0.0f);
            float *B = array(n, -2.0f, 2.0f);
            float *dA = array(all, 0.0f, 0.0f);
            float *dB = array(all, 0.0f, 0.0f);
            size_t i;
            mamba_discretize(target, dt, A, B, channels, (int)n, dA, dB);
            for (i = 0; i < all; i++) {
                double x = (double)dt[i / n] * (double)A[i];
                CHECK_NEAR(dA[i], exp(x), exp(x) * (4e-7 + 1.2e-7 * ref_abs(x)));
                CHECK_NEAR(dB[i], (double)dt[i / n] * (double)B[i % n], 1e-6);
            }
            CHECK(release(dt, (size_t)channels) && release(A, all) && release(B, n));
            CHECK(release(dA, all) && release(dB, all));
        }
    }
}

TEST(recurrence)
{
    const int sizes[] = {1, 3, 16, 17, 64};
    size_t s;
    int channels;
    for (s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
        for (channels = 1; channels <= 7; channels++) {
            size_t n = (size_t)sizes[s];
            size_t all = n * (size_t)channels;
            float *dA = array(all, 0.0f, 1.0f);
            float *dB = array(all, -1.0f, 1.0f);
            float *C = array(n, -1.0f, 1.0f);
            float *D = channels % 2 ? array((size_t)channels, -1.0f, 1.0f) : NULL;
            float *x = array((size_t)channels, -1.0f, 1.0f);
            float *h = array(all, -1.0f, 1.0f);
            float *before = copy_of(h, all);
            float *y = array((size_t)channels, 0.0f, 0.0f);
            size_t i, j;
            mamba_recurrence(target, dA, dB, C, D, x, channels, (int)n, h, y);
            for (i = 0; i < (size_t)channels; i++) {
                double sum = D != NULL ? (double)D[i] * (double)x[i] : 0.0;
                for (j = 0; j < n; j++) {
                    size_t at = i * n + j;
                    double want = (double)dA[at] * (double)before[at] + (double)dB[at] * (double)x[i];
                    CHECK_NEAR(h[at], want, 1.3e-7);
                    sum += (double)C[j] * want;
                }
                CHECK_NEAR(y[i], sum, 1.3e-7 * (double)(n + 1));
            }
            CHECK(release(dA, all) && release(dB, all) && release(C, n) && release(D, (size_t)channels));
            CHECK(release(x, (size_t)channels) && release(h, all) && release(before, all));
            CHECK(release(y, (size_t)channels));
        }
    }
}

/* ---- the scan ---------------------------------------------------------------------------------------------- */

typedef struct {
    mamba_scan s;
    size_t all, n_bc, n_h;
    float *dt, *x, *dt_bias, *A, *B, *C, *D, *z, *state; /* state: the initial one */
    ref_scan want;
} scan_case;

enum { HAS_STATE = 1, HAS_D = 2, HAS_Z = 4, HAS_BIAS = 8, HAS_SOFTPLUS = 16 };

static scan_case make_scan(int n_tokens, int channels, int d_state, int n_groups, int has)
{
    scan_case k;
    size_t i;
    memset(&k, 0, sizeof k);
    k.all = (size_t)n_tokens * (size_t)channels;
    k.n_bc = (size_t)n_tokens * (size_t)n_groups * (size_t)d_state;
    k.n_h = (size_t)channels * (size_t)d_state;
    k.x = array(k.all, -2.0f, 2.0f);
    k.dt = has & HAS_SOFTPLUS ? array(k.all, -4.0f, 1.0f) : array(k.all, 0.01f, 0.5f);
    k.dt_bias = has & HAS_BIAS ? array((size_t)channels, 0.0f, 0.5f) : NULL;
    k.A = array(k.n_h, -8.0f, -0.05f);
    k.B = array(k.n_bc, -1.0f, 1.0f);
    k.C = array(k.n_bc, -1.0f, 1.0f);
    k.D = has & HAS_D ? array((size_t)channels, -1.0f, 1.0f) : NULL;
    k.z = has & HAS_Z ? array(k.all, -3.0f, 3.0f) : NULL;
    k.state = has & HAS_STATE ? array(k.n_h, -1.0f, 1.0f) : NULL;
    k.s.n_tokens = n_tokens;
    k.s.channels = channels;
    k.s.d_state = d_state;
    k.s.n_groups = n_groups == 1 ? 0 : n_groups;
    k.s.x = k.x;
    k.s.dt = k.dt;
    k.s.dt_bias = k.dt_bias;
    k.s.dt_softplus = (has & HAS_SOFTPLUS) != 0;
    k.s.A = k.A;
    k.s.B = k.B;
    k.s.C = k.C;
    k.s.D = k.D;
    k.s.z = k.z;
    k.want.n_tokens = n_tokens;
    k.want.channels = channels;
    k.want.d_state = d_state;
    k.want.n_groups = n_groups;
    k.want.softplus = k.s.dt_softplus;
    k.want.x = k.x;
    k.want.dt = k.dt;
    k.want.dt_bias = k.dt_bias;
    k.want.A = k.A;
    k.want.B = k.B;
    k.want.C = k.C;
    k.want.D = k.D;
    k.want.z = k.z;
    k.want.h = doubles(k.n_h);
    k.want.y = doubles(k.all);
    k.want.magnitude = doubles(k.all);
    for (i = 0; k.state != NULL && i < k.n_h; i++) {
        k.want.h[i] = (double)k.state[i];
    }
    ref_scan_run(&k.want);
    return k;
}

static void free_scan(scan_case *k)
{
    CHECK(release(k->x, k->all) && release(k->dt, k->all) && release(k->A, k->n_h) && release(k->B, k->n_bc));
    CHECK(release(k->C, k->n_bc) && release(k->D, (size_t)k->s.channels) && release(k->z, k->all));
    CHECK(release(k->dt_bias, (size_t)k->s.channels) && release(k->state, k->n_h));
    free(k->want.h);
    free(k->want.y);
    free(k->want.magnitude);
}

/* Runs tasks from the last to the first. */
static void run_backwards(void *user, int n_tasks, mamba_task task, void *arg)
{
    int i;
    (void)user;
    for (i = n_tasks - 1; i >= 0; i--) {
        task(arg, i);
    }
}

static const mamba_parallel backwards = {run_backwards, NULL};

/* chunk -1: the sequential scan.  y and state are new arrays. */
static mamba_status run_scan(const scan_case *k, int chunk, int n_threads, const mamba_parallel *parallel,
                             float **y, float **state)
{
    mamba_scan s = k->s;
    mamba_error err;
    *y = array(k->all, 0.0f, 0.0f);
    *state = k->state != NULL ? copy_of(k->state, k->n_h) : NULL;
    s.y = *y;
    s.state = *state;
    return chunk < 0 ? mamba_selective_scan(target, &s, n_threads, parallel, NULL, &err)
                     : mamba_scan_time_parallel(target, &s, chunk, n_threads, parallel, NULL, &err);
}

/* Errors against float64: of y, in units of the channel's largest sum of absolute terms times the gate; of h, in
 * units of the largest state. */
static void scan_error(const scan_case *k, const float *y, const float *state, double *worst_y, double *worst_h)
{
    size_t n = (size_t)k->s.channels;
    size_t i, c;
    for (c = 0; c < n; c++) {
        double largest = 1e-30;
        for (i = c; i < k->all; i += n) {
            largest = k->want.magnitude[i] > largest ? k->want.magnitude[i] : largest;
        }
        for (i = c; i < k->all; i += n) {
            double gate = k->z != NULL ? ref_abs(ref_silu((double)k->z[i])) : 1.0;
            double e = ref_abs((double)y[i] - k->want.y[i]) / (largest * gate + 1e-30);
            *worst_y = e <= *worst_y ? *worst_y : e;
        }
    }
    for (i = 0; state != NULL && i < k->n_h; i++) {
        double e = ref_abs((double)state[i] - k->want.h[i]) / (k->want.largest_h + 1e-30);
        *worst_h = e <= *worst_h ? *worst_h : e;
    }
}

static double most_y, most_h; /* largest errors seen */

static void check_scan(int n_tokens, int channels, int d_state, int n_groups, int has)
{
    static const int threads[] = {2, 3, 8};
    scan_case k = make_scan(n_tokens, channels, d_state, n_groups, has);
    const int chunks[] = {-1, n_tokens < 100 ? 1 : 64, 16, 37, 0, n_tokens + 5};
    float *y, *h;
    size_t c, i;
    for (c = 0; c < sizeof chunks / sizeof chunks[0]; c++) {
        double worst_y = 0.0;
        double worst_h = 0.0;
        CHECK_INT(run_scan(&k, chunks[c], 1, NULL, &y, &h), MAMBA_OK);
        scan_error(&k, y, h, &worst_y, &worst_h);
        CHECK_NEAR(worst_y, 0.0, 2e-6);
        most_y = worst_y > most_y ? worst_y : most_y;
        most_h = worst_h > most_h ? worst_h : most_h;
        CHECK_NEAR(worst_h, 0.0, 2e-6);
        for (i = 0; i < sizeof threads / sizeof threads[0]; i++) { /* 2 through OpenMP, then a hook */
            float *y2, *h2;
            CHECK_INT(run_scan(&k, chunks[c], threads[i], i > 0 ? &backwards : NULL, &y2, &h2), MAMBA_OK);
            CHECK(same_bits(y, y2, k.all) && (h == NULL || same_bits(h, h2, k.n_h)));
            CHECK(release(y2, k.all) && release(h2, k.n_h));
        }
        CHECK(release(y, k.all) && release(h, k.n_h));
    }
    free_scan(&k);
}

TEST(scan)
{
    const int states[] = {1, 2, 8, 16, 17, 32, 64};
    const int lengths[] = {1, 2, 15, 16, 33, 100, 257};
    size_t i;
    int has;
    most_y = most_h = 0.0;
    for (has = 0; has < 32; has++) { /* every combination of options */
        check_scan(21, 5, 4, 1, has);
        check_scan(40, 36, 16, 2, has);
    }
    for (i = 0; i < sizeof states / sizeof states[0]; i++) {
        check_scan(50, 18, states[i], i % 2 ? 3 : 1, 31);
    }
    for (i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        check_scan(lengths[i], 33, 16, 1, 31);
        check_scan(lengths[i], 24, 5, 8, 27); /* groups of 3 channels */
    }
    check_scan(3000, 20, 16, 1, 31);
    if (getenv("MAMBA_TEST_FIGURES") != NULL) {
        printf("scans on %s against float64: largest error of y %.2g, of h %.2g\n", mamba_target_name(target),
               most_y, most_h);
    }
}

/* Cutting the sequence in two and carrying the state gives the bits of the whole. */
TEST(scan_carries_its_state)
{
    scan_case k = make_scan(97, 21, 16, 3, 31);
    int cut;
    float *y, *h;
    CHECK_INT(run_scan(&k, -1, 1, NULL, &y, &h), MAMBA_OK);
    for (cut = 0; cut <= 96; cut += 16) { /* states are flushed at fixed positions: see scan_block */
        float *y2 = array(k.all, 0.0f, 0.0f);
        float *h2 = copy_of(k.state, k.n_h);
        mamba_scan s = k.s;
        size_t at = (size_t)cut * (size_t)k.s.channels;
        size_t bc = (size_t)cut * (size_t)(k.s.n_groups * k.s.d_state);
        s.y = y2;
        s.state = h2;
        s.n_tokens = cut;
        CHECK_INT(mamba_selective_scan(target, &s, 1, NULL, NULL, NULL), MAMBA_OK);
        s.n_tokens = k.s.n_tokens - cut;
        s.x += at;
        s.dt += at;
        s.z += at;
        s.y += at;
        s.B += bc;
        s.C += bc;
        CHECK_INT(mamba_selective_scan(target, &s, 1, NULL, NULL, NULL), MAMBA_OK);
        CHECK(same_bits(y, y2, k.all) && same_bits(h, h2, k.n_h));
        CHECK(release(y2, k.all) && release(h2, k.n_h));
    }
    CHECK(release(y, k.all) && release(h, k.n_h));
    free_scan(&k);
}

/* Decays so strong, so weak and states so small that a careless implementation overflows or stalls. */
TEST(scan_edges)
{
    const float A[4] = {-1e30f, -1e-30f, -80.0f, 0.0f};
    const float x[3] = {1.0f, 0.0f, -2.0f};
    const float dt[3] = {0.5f, 100.0f, 0.25f};
    const float B[12] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    float h[4] = {1e-30f, 1e-35f, 1e30f, 3.0f};
    float y[3] = {7.0f, 7.0f, 7.0f};
    mamba_scan s;
    memset(&s, 0, sizeof s);
    s.n_tokens = 3;
    s.channels = 1;
    s.d_state = 4;
    s.x = x;
    s.dt = dt;
    s.A = A;
    s.B = B;
    s.C = B;
    s.state = h;
    s.y = y;
    CHECK_INT(mamba_selective_scan(target, &s, 1, NULL, NULL, NULL), MAMBA_OK);
    CHECK_NEAR(h[0], -0.5, 1e-6);
    CHECK_NEAR(h[1], 0.0, 1e-6);
    CHECK_NEAR(h[2], -0.5, 1e-6);
    CHECK_NEAR(h[3], 3.0, 1e-6);
    CHECK_NEAR(y[2], 2.0, 1e-5);
    s.n_tokens = 0;
    y[0] = 7.0f;
    CHECK_INT(mamba_selective_scan(target, &s, 1, NULL, NULL, NULL), MAMBA_OK);
    CHECK(y[0] == 7.0f);
    CHECK_NEAR(h[3], 3.0, 1e-6);
}

typedef struct {
    int left;  /* allocations that still succeed */
    int live;
} counter;

static void *counted_alloc(void *user, size_t bytes, size_t align)
{
    counter *c = (counter *)user;
    void *p = NULL;
    if (c->left-- > 0 && posix_memalign(&p, align < 8 ? 8 : align, bytes) == 0) {
        c->live++;
        return p;
    }
    return NULL;
}

static void counted_free(void *user, void *p, size_t bytes)
{
    (void)bytes;
    ((counter *)user)->live -= p != NULL;
    free(p);
}

TEST(scan_refuses)
{
    scan_case k = make_scan(9, 6, 4, 2, 31);
    mamba_scan bad;
    mamba_error err;
    mamba_memory memory;
    counter count = {0, 0};
    float *y = array(k.all, 0.0f, 0.0f);
    int i;
    k.s.y = y;
    memory.alloc = counted_alloc;
    memory.free = counted_free;
    memory.user = &count;
    CHECK_INT(mamba_selective_scan(target, &k.s, 2, &backwards, &memory, &err), MAMBA_ERR_MEMORY);
    CHECK_INT(err.status, MAMBA_ERR_MEMORY);
    CHECK_INT(mamba_scan_time_parallel(target, &k.s, 3, 2, &backwards, &memory, &err), MAMBA_ERR_MEMORY);
    count.left = 1000;
    CHECK_INT(mamba_scan_time_parallel(target, &k.s, 3, 2, &backwards, &memory, &err), MAMBA_OK);
    CHECK_INT(mamba_selective_scan(target, &k.s, 2, &backwards, &memory, &err), MAMBA_OK);
    CHECK_INT(count.live, 0);
    CHECK_INT(mamba_selective_scan(target, NULL, 1, NULL, NULL, &err), MAMBA_ERR_ARG);
    for (i = 0; i < 12; i++) {
        bad = k.s;
        switch (i) {
        case 0: bad.n_tokens = -1; break;
        case 1: bad.channels = 0; break;
        case 2: bad.channels = (1 << 24) + 1; break;
        case 3: bad.d_state = 0; break;
        case 4: bad.n_groups = 4; break;
        case 5: bad.n_groups = -1; break;
        case 6: bad.x = NULL; break;
        case 7: bad.dt = NULL; break;
        case 8: bad.A = NULL; break;
        case 9: bad.B = NULL; break;
        case 10: bad.C = NULL; break;
        default: bad.y = NULL; break;
        }
        CHECK_INT(mamba_selective_scan(target, &bad, 1, NULL, NULL, &err), MAMBA_ERR_ARG);
        CHECK(err.name[0] != 0);
    }
    CHECK_INT(mamba_scan_time_parallel(target, &k.s, -1, 1, NULL, NULL, &err), MAMBA_ERR_ARG);
    CHECK_INT(mamba_selective_scan(target, &k.s, -1, NULL, NULL, &err), MAMBA_ERR_ARG);
    CHECK(release(y, k.all));
    free_scan(&k);
}

/* (n, length) channel-major to (length, n); NULL stays NULL. */
static float *turned(const float *p, size_t n, size_t length)
{
    float *q;
    size_t i, t;
    if (p == NULL) {
        return NULL;
    }
    q = array(n * length, 0.0f, 0.0f);
    for (i = 0; i < n; i++) {
        for (t = 0; t < length; t++) {
            q[t * n + i] = p[i * length + t];
        }
    }
    return q;
}

static void check_close(const float *got, const float *want, size_t n, const char *what, const char *path)
{
    double largest = 0.0;
    size_t i;
    for (i = 0; i < n; i++) {
        largest = ref_abs((double)want[i]) > largest ? ref_abs((double)want[i]) : largest;
    }
    for (i = 0; i < n; i++) {
        double allowed = 1e-5 * ref_abs((double)want[i]) + 1e-6 * largest;
        if (!(ref_abs((double)got[i] - (double)want[i]) <= allowed)) {
            printf("%s: %s[%d]\n", path, what, (int)i);
            CHECK_NEAR(got[i], want[i], allowed);
            return;
        }
    }
}

/* One batch row of a golden file: sequential and time-parallel. */
static void check_golden_row(const char *path, mamba_scan s, const float *want_y, const float *want_h)
{
    size_t all = (size_t)s.n_tokens * (size_t)s.channels;
    size_t n_h = (size_t)s.channels * (size_t)s.d_state;
    int chunk;
    for (chunk = 0; chunk < 2; chunk++) {
        float *y = array(all, 0.0f, 0.0f);
        float *h = array(n_h, 0.0f, 0.0f);
        memset(h, 0, n_h * sizeof(float));
        s.y = y;
        s.state = h;
        CHECK_INT(chunk == 0 ? mamba_selective_scan(target, &s, 1, NULL, NULL, NULL)
                             : mamba_scan_time_parallel(target, &s, 64, 2, NULL, NULL, NULL),
                  MAMBA_OK);
        check_close(y, want_y, all, "out", path);
        check_close(h, want_h, n_h, "last_state", path);
        CHECK(release(y, all) && release(h, n_h));
    }
}

static void check_golden(const char *path)
{
    golden g = golden_open(path);
    golden_tensor u = golden_get(&g, "u"), delta = golden_get(&g, "delta"), A = golden_get(&g, "A");
    golden_tensor B = golden_get(&g, "B"), C = golden_get(&g, "C"), D = golden_get(&g, "D");
    golden_tensor z = golden_get(&g, "z"), bias = golden_get(&g, "delta_bias");
    golden_tensor out = golden_get(&g, "out"), last = golden_get(&g, "last_state");
    size_t dim = u.shape[1], length = u.shape[2], groups = B.shape[1], n = A.shape[1], b;
    REQUIRE(u.n != 0 && out.n == u.n && last.n == u.shape[0] * dim * n && B.rank == 4);
    for (b = 0; b < u.shape[0]; b++) {
        size_t row = b * dim * length;
        size_t bc = b * groups * n * length;
        float *x = turned(u.u.f + row, dim, length);
        float *dt = turned(delta.u.f + row, dim, length);
        float *gate = turned(z.n ? z.u.f + row : NULL, dim, length);
        float *want = turned(out.u.f + row, dim, length);
        float *Bt = turned(B.u.f + bc, groups * n, length);
        float *Ct = turned(C.u.f + bc, groups * n, length);
        mamba_scan s;
        memset(&s, 0, sizeof s);
        s.n_tokens = (int32_t)length;
        s.channels = (int32_t)dim;
        s.d_state = (int32_t)n;
        s.n_groups = (int32_t)groups;
        s.x = x;
        s.dt = dt;
        s.dt_bias = bias.u.f;
        s.dt_softplus = strstr(g.data + 8, "\"delta_softplus\":\"1\"") != NULL;
        s.A = A.u.f;
        s.B = Bt;
        s.C = Ct;
        s.D = D.u.f;
        s.z = gate;
        check_golden_row(path, s, want, last.u.f + b * dim * n);
        CHECK(release(x, dim * length) && release(dt, dim * length) && release(gate, dim * length));
        CHECK(release(Bt, groups * n * length) && release(Ct, groups * n * length) && release(want, dim * length));
    }
    free(u.u.p);
    free(delta.u.p);
    free(A.u.p);
    free(B.u.p);
    free(C.u.p);
    free(D.u.p);
    free(z.u.p);
    free(bias.u.p);
    free(out.u.p);
    free(last.u.p);
    golden_close(&g);
}

TEST(scan_golden)
{
    static const int numbers[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 17, 18, 19, 20};
    size_t i;
    for (i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        char path[100];
        (void)snprintf(path, sizeof path, "tests/golden/ops/selective_scan_%02d.safetensors", numbers[i]);
        check_golden(path);
    }
}

TEST(usable)
{
    char why[100];
    (void)snprintf(why, sizeof why, "target %s needs another CPU", mamba_target_name(target));
    SKIP(why);
}

#define RUN_ON_TARGET(name)                                                             \
    do {                                                                                \
        char full[80];                                                                  \
        (void)snprintf(full, sizeof full, "%s on %s", #name, mamba_target_name(target)); \
        test_run(full, test_##name);                                                    \
    } while (0)

TEST_MAIN("ops")
{
    int i;
    for (i = 0; mamba_target_at(i) != NULL; i++) {
        target = mamba_target_at(i);
        if (!mamba_target_usable(target)) {
            RUN(usable);
            continue;
        }
        RUN_ON_TARGET(softplus);
        RUN_ON_TARGET(softplus_edges);
        RUN_ON_TARGET(silu);
        RUN_ON_TARGET(silu_edges);
        RUN_ON_TARGET(rmsnorm);
        RUN_ON_TARGET(rmsnorm_edges);
        RUN_ON_TARGET(conv1d);
        RUN_ON_TARGET(discretize);
        RUN_ON_TARGET(recurrence);
        RUN_ON_TARGET(scan);
        RUN_ON_TARGET(scan_carries_its_state);
        RUN_ON_TARGET(scan_edges);
        RUN_ON_TARGET(scan_refuses);
        RUN_ON_TARGET(scan_golden);
    }
}
