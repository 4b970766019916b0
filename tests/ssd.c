/*  ssd.c: the Mamba-2 core on caller's arrays, by recurrence and by chunks, on every target:
 *  against the reference operators of mamba_ssm (tests/golden/ops/ssd_*) and against a recurrence
 *  in double written from the equations.
 */
#include "mamba.h"

#include "golden.h"
#include "test.h"

#include <math.h>

static const mamba_target *target;

static float *floats(size_t n) {
    float *p = (float *)calloc(n + 1, sizeof(float));
    if (p == NULL) {
        golden_die("ssd", "out of memory");
    }
    return p;
}

static double *doubles(size_t n) {
    double *p = (double *)calloc(n + 1, sizeof(double));
    if (p == NULL) {
        golden_die("ssd", "out of memory");
    }
    return p;
}

static void every_target(void (*test)(void)) {
    for (int i = 0; mamba_target_at(i) != NULL; i++) {
        target = mamba_target_at(i);
        if (mamba_target_usable(target)) {
            test();
        }
    }
}

/* ---- the equations in double ----------------------------------------------------------------- */

typedef struct {
    double *y, *h;           /* (T, H, P), (H, P, N) */
    double *y_size, *h_size; /* the same sums of absolute values */
} reference;

/* y before the gate is what y_size bounds; both are multiplied by it. */
static reference reference_of(const mamba_ssd *s, const float *state) {
    int H = s->n_heads, P = s->headdim, N = s->d_state, G = s->n_groups ? s->n_groups : 1;
    reference r;
    r.y = doubles((size_t)s->n_tokens * (size_t)(H * P));
    r.y_size = doubles((size_t)s->n_tokens * (size_t)(H * P));
    r.h = doubles((size_t)(H * P * N));
    r.h_size = doubles((size_t)(H * P * N));
    for (int i = 0; i < H * P * N && state != NULL; i++) {
        r.h[i] = (double)state[i];
        r.h_size[i] = fabs(r.h[i]);
    }
    for (int t = 0; t < s->n_tokens; t++) {
        for (int c = 0; c < H * P; c++) {
            int p = c / P, g = p / (H / G);
            size_t at = (size_t)t * (size_t)(H * P) + (size_t)c,
                   bc = (size_t)(t * G + g) * (size_t)N;
            double x = (double)s->x[at], dt = (double)s->dt[t * H + p], a, gate = 1.0, d = 0.0;
            if (s->dt_softplus) {
                dt += s->dt_bias != NULL ? (double)s->dt_bias[p] : 0.0;
                dt = dt > 20.0 ? dt : log1p(exp(dt));
            }
            dt = dt < (double)s->dt_min ? (double)s->dt_min : dt;
            dt = s->dt_max > 0.0f && dt > (double)s->dt_max ? (double)s->dt_max : dt;
            a = exp(dt * (double)s->A[p]);
            if (s->D != NULL) {
                d = (double)s->D[s->D_per_channel ? c : p] * x;
            }
            r.y[at] = d;
            r.y_size[at] = fabs(d);
            for (int n = 0; n < N; n++) {
                size_t k = (size_t)c * (size_t)N + (size_t)n;
                double b = dt * x * (double)s->B[bc + (size_t)n];
                r.h[k] = a * r.h[k] + b;
                r.h_size[k] = a * r.h_size[k] + fabs(b);
                r.y[at] += (double)s->C[bc + (size_t)n] * r.h[k];
                r.y_size[at] += fabs((double)s->C[bc + (size_t)n]) * r.h_size[k];
            }
            if (s->z != NULL) {
                gate = (double)s->z[at] / (1.0 + exp(-(double)s->z[at]));
            }
            r.y[at] *= gate;
            r.y_size[at] *= fabs(gate);
        }
    }
    return r;
}

static void reference_free(reference *r) {
    free(r->y);
    free(r->h);
    free(r->y_size);
    free(r->h_size);
}

/* ---- golden operators ------------------------------------------------------------------------ */

/* Largest difference over the largest expected value. */
static double relative(const float *got, const float *expected, size_t n) {
    double worst = 0.0, most = 0.0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)got[i] - (double)expected[i]);
        worst = d > worst || !(d == d) ? d : worst;
        most = fabs((double)expected[i]) > most ? fabs((double)expected[i]) : most;
    }
    return worst / most;
}

static void golden_file(const char *name, int chunk) {
    static const char *const names[] = {"x", "dt", "A", "B",        "C",
                                        "D", "z",  "y", "y_nogate", "final_state"};
    char path[200];
    golden g;
    golden_tensor t[10];
    mamba_ssd s;
    size_t batch, per_x, per_state;
    float *y, *state;
    (void)snprintf(path, sizeof path, "tests/golden/ops/%s.safetensors", name);
    g = golden_open(path);
    for (int i = 0; i < 10; i++) {
        t[i] = golden_get(&g, names[i]);
        REQUIRE(t[i].n != 0);
    }
    memset(&s, 0, sizeof s);
    batch = t[0].shape[0];
    s.n_tokens = (int32_t)t[0].shape[1];
    s.n_heads = (int32_t)t[0].shape[2];
    s.headdim = (int32_t)t[0].shape[3];
    s.n_groups = (int32_t)t[3].shape[2];
    s.d_state = (int32_t)t[3].shape[3];
    s.A = t[2].u.f;
    per_x = t[0].n / batch;
    per_state = t[9].n / batch;
    y = floats(per_x);
    state = floats(per_state);
    for (size_t b = 0; b < batch; b++) {
        for (int full = 0; full < 2; full++) {
            mamba_status status;
            memset(state, 0, per_state * sizeof(float));
            s.x = t[0].u.f + b * per_x;
            s.dt = t[1].u.f + b * (t[1].n / batch);
            s.B = t[3].u.f + b * (t[3].n / batch);
            s.C = t[4].u.f + b * (t[4].n / batch);
            s.D = full ? t[5].u.f : NULL;
            s.z = full ? t[6].u.f + b * per_x : NULL;
            s.state = state;
            s.y = y;
            status = chunk ? mamba_ssd_chunked(target, &s, chunk, 1, NULL, NULL, NULL)
                           : mamba_ssd_recurrence(target, &s, 1, NULL, NULL, NULL);
            CHECK_INT(status, MAMBA_OK);
            CHECK_NEAR(relative(y, t[full ? 7 : 8].u.f + b * per_x, per_x), 0.0, 1e-5);
            CHECK_NEAR(relative(state, t[9].u.f + b * per_state, per_state), 0.0, 1e-5);
        }
    }
    free(y);
    free(state);
    for (int i = 0; i < 10; i++) {
        free(t[i].u.p);
    }
    golden_close(&g);
}

static void golden_here(void) {
    static const int chunks[] = {0, 16, 64, 80};
    for (int i = 0; i < 4; i++) {
        golden_file("ssd_00", chunks[i]);
        golden_file("ssd_01", chunks[i]);
    }
}

TEST(golden_operators) {
    every_target(golden_here);
}

/* ---- random shapes --------------------------------------------------------------------------- */

static uint64_t seed;

static double uniform(void) /* in [-1, 1) */
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(int32_t)(seed >> 32) / 2147483648.0;
}

static float *random_floats(size_t n, double middle, double spread) {
    float *p = floats(n);
    for (size_t i = 0; i < n; i++) {
        p[i] = (float)(middle + spread * uniform());
    }
    return p;
}

typedef struct {
    int T, H, P, N, G, options;
} shape;

enum {
    SOFTPLUS = 1,
    BIAS = 2,
    LIMITS = 4,
    D_HEAD = 8,
    D_CHANNEL = 16,
    GATE = 32,
    STATE = 64,
    SLOW = 128,
    FAST = 256 /* decays down to exp(-200) and 0 */
};

typedef struct {
    mamba_ssd s;
    float *x, *dt, *bias, *A, *B, *C, *D, *z, *start;
    size_t n_y, n_state;
} problem;

static problem problem_of(const shape *f) {
    problem p;
    size_t T = (size_t)f->T, H = (size_t)f->H, I = H * (size_t)f->P, GN = (size_t)(f->G * f->N);
    memset(&p, 0, sizeof p);
    seed = 17 + (uint64_t)(f->T * 31 + f->H * 7 + f->P);
    p.n_y = T * I;
    p.n_state = I * (size_t)f->N;
    p.x = random_floats(p.n_y, 0, 1);
    p.dt = f->options & SOFTPLUS ? random_floats(T * H, -1, 3) : random_floats(T * H, 0.5, 0.5);
    p.bias = random_floats(H, -1, 1);
    p.A = f->options & SLOW ? random_floats(H, -0.02, 0.019)
          : f->options & FAST ? random_floats(H, -50, 49.9)
                              : random_floats(H, -4, 3.9);
    p.B = random_floats(T * GN, 0, 1);
    p.C = random_floats(T * GN, 0, 1);
    p.D = random_floats(f->options & D_CHANNEL ? I : H, 0, 1);
    p.z = random_floats(p.n_y, 0, 3);
    p.start = random_floats(p.n_state, 0, 2);
    p.s.n_tokens = f->T;
    p.s.n_heads = f->H;
    p.s.headdim = f->P;
    p.s.d_state = f->N;
    p.s.n_groups = f->G;
    p.s.dt_softplus = (f->options & SOFTPLUS) != 0;
    p.s.D_per_channel = (f->options & D_CHANNEL) != 0;
    p.s.dt_min = f->options & LIMITS ? 0.05f : 0.0f;
    p.s.dt_max = f->options & LIMITS ? 1.5f : 0.0f;
    p.s.x = p.x;
    p.s.dt = p.dt;
    p.s.dt_bias = f->options & BIAS ? p.bias : NULL;
    p.s.A = p.A;
    p.s.B = p.B;
    p.s.C = p.C;
    p.s.D = f->options & (D_HEAD | D_CHANNEL) ? p.D : NULL;
    p.s.z = f->options & GATE ? p.z : NULL;
    return p;
}

static void problem_free(problem *p) {
    float *const all[] = {p->x, p->dt, p->bias, p->A, p->B, p->C, p->D, p->z, p->start};
    for (int i = 0; i < 9; i++) {
        free(all[i]);
    }
}

/* Runs it: chunk 0 is the recurrence. The state goes in and out at `state` (NULL: none). */
static void run(problem *p, int chunk, int n_threads, float *y, float *state) {
    mamba_status status;
    p->s.y = y;
    p->s.state = state;
    status = chunk ? mamba_ssd_chunked(target, &p->s, chunk, n_threads, NULL, NULL, NULL)
                   : mamba_ssd_recurrence(target, &p->s, n_threads, NULL, NULL, NULL);
    CHECK_INT(status, MAMBA_OK);
}

/* Largest difference in units of the sum of absolute terms (1e-25 is added for flushed states). */
static double error_of(const float *got, const double *expected, const double *size, size_t n) {
    double worst = 0.0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)got[i] - expected[i]) / (size[i] + 1e-25);
        worst = d > worst || !(d == d) ? d : worst;
    }
    return worst;
}

static double most_recurrence, most_chunked;

static void check_shape(const shape *f) {
    static const int chunks[] = {0, 16, 48, 64, 256};
    problem p = problem_of(f);
    const float *start = f->options & STATE ? p.start : NULL;
    reference r = reference_of(&p.s, start);
    float *y = floats(p.n_y), *state = floats(p.n_state), *y2 = floats(p.n_y),
          *state2 = floats(p.n_state);
    for (int i = 0; i < 5; i++) {
        double ey, eh;
        if (start != NULL) {
            memcpy(state, start, p.n_state * sizeof(float));
        } else {
            memset(state, 0, p.n_state * sizeof(float));
        }
        memcpy(state2, state, p.n_state * sizeof(float));
        run(&p, chunks[i], 1, y, state);
        ey = error_of(y, r.y, r.y_size, p.n_y);
        eh = error_of(state, r.h, r.h_size, p.n_state);
        CHECK_NEAR(ey, 0.0, 2e-6);
        CHECK_NEAR(eh, 0.0, 2e-6);
        ey = eh > ey ? eh : ey;
        if (chunks[i] == 0) {
            most_recurrence = ey > most_recurrence ? ey : most_recurrence;
        } else {
            most_chunked = ey > most_chunked ? ey : most_chunked;
        }
        run(&p, chunks[i], 3, y2, state2); /* threads change no bit */
        CHECK(memcmp(y, y2, p.n_y * sizeof(float)) == 0);
        CHECK(memcmp(state, state2, p.n_state * sizeof(float)) == 0);
        if (start == NULL) { /* no state is a zero state */
            run(&p, chunks[i], 1, y2, NULL);
            CHECK(memcmp(y, y2, p.n_y * sizeof(float)) == 0);
        }
    }
    free(y);
    free(y2);
    free(state);
    free(state2);
    reference_free(&r);
    problem_free(&p);
}

static void shapes_here(void) {
    static const shape shapes[] = {{1, 2, 16, 16, 1, STATE},
                                   {63, 2, 16, 16, 1, SOFTPLUS | BIAS | D_HEAD | GATE | STATE},
                                   {64, 3, 64, 32, 1, SOFTPLUS | D_CHANNEL},
                                   {65, 4, 8, 24, 2, SOFTPLUS | BIAS | LIMITS | GATE | STATE},
                                   {300, 2, 64, 128, 1, SOFTPLUS | BIAS | D_HEAD | GATE | STATE},
                                   {530, 6, 12, 17, 3, SLOW | STATE},
                                   {257, 5, 7, 5, 1, GATE | D_CHANNEL | STATE},
                                   {100, 1, 1, 1, 1, SOFTPLUS},
                                   {90, 3, 80, 16, 1, LIMITS | STATE},
                                   {150, 7, 32, 20, 1, SOFTPLUS | FAST | STATE},
                                   {61, 5, 6, 16, 1, FAST | GATE | STATE},
                                   {40, 2, 3, 300, 2, SOFTPLUS | STATE}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        check_shape(&shapes[i]);
    }
}

TEST(against_double) {
    every_target(shapes_here);
    if (getenv("MAMBA_TEST_FIGURES") != NULL) {
        printf("largest error: recurrence %.2e, chunked %.2e of the sum of absolute terms\n",
               most_recurrence, most_chunked);
    }
}

/* Cut into calls that carry the state: the recurrence keeps its bits, the chunked form where cuts
 * are chunks' ends. */
static void carried_here(void) {
    static const shape f = {200, 4, 24, 20, 2, SOFTPLUS | GATE | D_HEAD};
    problem p = problem_of(&f), part;
    float *y = floats(p.n_y), *state = floats(p.n_state), *y2 = floats(p.n_y),
          *state2 = floats(p.n_state);
    size_t I = 96, GN = 40;
    for (int chunk = 0; chunk <= 32; chunk += 32) {
        memset(state, 0, p.n_state * sizeof(float));
        memset(state2, 0, p.n_state * sizeof(float));
        run(&p, chunk, 1, y, state);
        for (size_t t = 0; t < 200; t += 64) {
            part = p;
            part.s.n_tokens = 200 - t < 64 ? (int)(200 - t) : 64;
            part.s.x += t * I;
            part.s.z += t * I;
            part.s.dt += t * 4;
            part.s.B += t * GN;
            part.s.C += t * GN;
            run(&part, chunk, 2, y2 + t * I, state2);
        }
        CHECK(memcmp(y, y2, p.n_y * sizeof(float)) == 0);
        CHECK(memcmp(state, state2, p.n_state * sizeof(float)) == 0);
    }
    free(y);
    free(y2);
    free(state);
    free(state2);
    problem_free(&p);
}

TEST(carried_state) {
    every_target(carried_here);
}

static void *no_memory(void *user, size_t bytes, size_t align) {
    (void)user;
    (void)bytes;
    (void)align;
    return NULL;
}

static void no_free(void *user, void *p, size_t bytes) {
    (void)user;
    (void)p;
    (void)bytes;
}

TEST(arguments) {
    static const shape f = {10, 4, 4, 4, 2, 0};
    problem p = problem_of(&f);
    float *y = floats(p.n_y);
    mamba_ssd bad;
    mamba_error err;
    mamba_memory none;
    target = NULL;
    p.s.y = y;
    memset(&none, 0, sizeof none);
    none.alloc = no_memory;
    none.free = no_free;
    CHECK_INT(mamba_ssd_recurrence(NULL, NULL, 1, NULL, NULL, &err), MAMBA_ERR_ARG);
    CHECK_INT(mamba_ssd_chunked(NULL, &p.s, 257, 1, NULL, NULL, &err), MAMBA_ERR_ARG);
    CHECK_CONTAINS(err.name, "chunk");
    CHECK_INT(mamba_ssd_chunked(NULL, &p.s, 0, -1, NULL, NULL, &err), MAMBA_ERR_ARG);
    CHECK_INT(mamba_ssd_chunked(NULL, &p.s, 0, 1, NULL, &none, &err), MAMBA_ERR_MEMORY);
    CHECK_INT(mamba_ssd_recurrence(NULL, &p.s, 1, NULL, &none, &err), MAMBA_ERR_MEMORY);
    bad = p.s;
    bad.n_groups = 3;
    CHECK_INT(mamba_ssd_recurrence(NULL, &bad, 1, NULL, NULL, &err), MAMBA_ERR_ARG);
    CHECK_CONTAINS(err.name, "n_groups");
    bad = p.s;
    bad.dt_min = 2;
    bad.dt_max = 1;
    CHECK_INT(mamba_ssd_recurrence(NULL, &bad, 1, NULL, NULL, &err), MAMBA_ERR_ARG);
    bad = p.s;
    bad.B = NULL;
    CHECK_INT(mamba_ssd_recurrence(NULL, &bad, 1, NULL, NULL, &err), MAMBA_ERR_ARG);
    bad = p.s;
    bad.headdim = 1 << 20;
    CHECK_INT(mamba_ssd_recurrence(NULL, &bad, 1, NULL, NULL, &err), MAMBA_ERR_ARG);
    bad = p.s;
    bad.n_tokens = 0;
    bad.x = NULL;
    CHECK_INT(mamba_ssd_chunked(NULL, &bad, 0, 1, NULL, NULL, &err), MAMBA_OK);
    free(y);
    problem_free(&p);
}

TEST_MAIN("ssd") {
    RUN(golden_operators);
    RUN(against_double);
    RUN(carried_state);
    RUN(arguments);
}
