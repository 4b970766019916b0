/*  kernels.c: every kernel of every target that this machine can run, against references in double written
 *  from the contracts in @@kernel_list and the byte layouts in @@format, and bit for bit against itself under
 *  other cuts of the same work.
 */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#define MAMBA_STATIC
#define MAMBA_IMPLEMENTATION
#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wunused-function"
#endif
#include "mamba.h"
#include "test.h"

#ifndef KERNELS_NAME /* amx.c gives its own */
#define KERNELS_NAME "kernels"
#define KERNELS_ONLY "" /* one target alone */
#define KERNELS_USABLE(t) mamba_target_usable(t)
#endif

static const mamba_target *target; /* under test */
static uint32_t seed = 1;

static float uniform(void) { /* (-1, 1) */
    seed = seed * 1664525u + 1013904223u;
    return (float)(int32_t)seed * (1.0f / 2147483648.0f);
}

/* Roughly normal, with a rare large one. */
static float value(void) {
    float v = (uniform() + uniform() + uniform()) * 0.7f;
    return (seed & 0x3f000u) == 0 ? v * 8.0f : v;
}

static void *take(size_t bytes) {
    void *p = NULL;
    bytes = (bytes + 127) / 64 * 64;
    if (posix_memalign(&p, 64, bytes) != 0) {
        abort();
    }
    memset(p, 0, bytes);
    return p;
}

/* ---- weights: a matrix in the bytes of the file and, apart from it, as doubles ---------------- */
typedef struct weights {
    mbi_mat mat;
    unsigned char *bytes;
    double *w; /* (rows, cols) */
} weights;

static const mamba_type types[] = {MAMBA_F32, MAMBA_F16, MAMBA_BF16, MAMBA_Q8, MAMBA_Q6, MAMBA_Q4};
static const char *const type_names[] = {"f32", "f16", "bf16", "q8", "q6", "q4"};
static const signed char codebook[16] = {MBI_Q4_VALUES};

static double half_value(unsigned h) {
    int e = (int)(h >> 10 & 31);
    double m = (double)(h & 1023) / 1024.0;
    double v = e == 0 ? ldexp(m, -14) : ldexp(1.0 + m, e - 15);
    return h & 0x8000 ? -v : v;
}

static void put16(unsigned char *p, unsigned v) {
    p[0] = (unsigned char)v;
    p[1] = (unsigned char)(v >> 8);
}

/* One weight of a zeroed panel, written where @@format says, and its value, for quantized types before the scale. */
static double put_weight(unsigned char *panel, mamba_type type, int r, int c) {
    size_t group = type == MAMBA_Q8 ? 1024 : type == MAMBA_Q6 ? 768 : 512; /* bytes of 64 columns */
    unsigned char *units = panel + (size_t)(c / 256) * (64 + 4 * group) + 64 + (size_t)(c % 256 / 64) * group;
    float f = value() * 0.1f;
    uint32_t bits;
    unsigned h;
    memcpy(&bits, &f, 4);
    switch (type) {
    case MAMBA_F32:
        memcpy(panel + (size_t)c * 64 + r * 4, &f, 4);
        return (double)f;
    case MAMBA_F16: /* any half below 0.25, subnormals too */
        h = bits % 0x3400u + (bits & 0x8000u);
        put16(panel + (size_t)(c / 2) * 64 + r * 4 + c % 2 * 2, h);
        return half_value(h);
    case MAMBA_BF16:
        put16(panel + (size_t)(c / 2) * 64 + r * 4 + c % 2 * 2, bits >> 16);
        bits &= 0xffff0000u;
        memcpy(&f, &bits, 4);
        return (double)f;
    case MAMBA_Q8: {
        int q = (int)(bits >> 5 & 255) - 128;
        q = q < -127 ? -127 : q;
        units[c % 64 / 4 * 64 + r * 4 + c % 4] = (unsigned char)q;
        return q;
    }
    case MAMBA_Q6: {
        unsigned char *unit = units + c % 64 / 16 * 192 + r * 4 + c % 4;
        unsigned q = bits >> 5 & 63;
        unit[c % 16 / 8 * 64] |= (unsigned char)((q & 15u) << (c % 8 < 4 ? 0 : 4));
        unit[128] |= (unsigned char)((q >> 4) << c % 16 / 4 * 2);
        return (double)q - 32;
    }
    case MAMBA_Q4: {
        unsigned q = bits >> 5 & 15;
        units[c % 64 / 8 * 64 + r * 4 + c % 4] |= (unsigned char)(c % 8 < 4 ? q : q << 4);
        return codebook[q];
    }
    }
    return 0;
}

static void weights_make(weights *w, mamba_type type, int rows, int cols) {
    int n_panels = (rows + 15) / 16;
    size_t panel_bytes = (size_t)mbi_panel_bytes(type, (uint64_t)cols);
    size_t block = 64 + 4 * (type == MAMBA_Q8 ? 1024 : type == MAMBA_Q6 ? 768 : 512); /* of 256 columns */
    float *bases;
    int r;
    int c;
    w->bytes = (unsigned char *)take((panel_bytes + 64) * (size_t)n_panels);
    memset(w->bytes, 0, (panel_bytes + 64) * (size_t)n_panels);
    w->w = (double *)take(sizeof(double) * (size_t)rows * (size_t)cols);
    w->mat = mbi_mat_of(type, w->bytes, n_panels, rows, cols);
    w->mat.prefetch = n_panels % 2; /* without and with, on every machine */
    bases = (float *)(void *)(w->bytes + panel_bytes * (size_t)n_panels);
    for (r = 0; r < n_panels && type >= MAMBA_Q8; r++) {
        bases[r] = (2.0f + uniform()) * 1e-7f; /* scales up to 0.0005 to 0.005 */
    }
    for (r = 0; r < rows; r++) {
        unsigned char *panel = w->bytes + (size_t)(r / 16) * panel_bytes;
        for (c = 0; c < cols; c++) {
            double v = put_weight(panel, type, r % 16, c);
            if (type >= MAMBA_Q8) {
                signed char *code = (signed char *)panel + (size_t)(c / 256) * block + c % 256 / 64 * 16 + r % 16;
                if (c % 64 == 0) {
                    *code = (signed char)(127.9f * uniform());
                }
                v = (double)((float)v * (bases[r / 16] * (float)(*code * (*code < 0 ? -*code : *code))));
            }
            w->w[(size_t)r * (size_t)cols + (size_t)c] = v;
        }
    }
}

static void weights_free(weights *w) {
    free(w->bytes);
    free(w->w);
}

/* ---- activations: blocked, and the product in double ---------------------------------------- */
static float *blocked_make(int n, int n_tokens) {
    float *x = (float *)take(sizeof(float) * (size_t)((n + 15) / 16 * 16) * (size_t)n_tokens);
    int c;
    int t;
    for (t = 0; t < n_tokens; t++) {
        for (c = 0; c < n; c++) {
            x[(c / 16 * n_tokens + t) * 16 + c % 16] = value();
        }
    }
    return x;
}

static float at(const float *x, int n_tokens, int c, int t) {
    return x[(c / 16 * n_tokens + t) * 16 + c % 16];
}

/* One product through prepare and gemm, cut into n_cuts ranges of panels or of tokens. */
static void product(const weights *w, const float *x, int n_tokens, const float *bias, int add, int exact,
                    float *y, size_t y_panel, size_t y_token, int n_cuts, int by_token) {
    const mbi_kernels *k = &target->k;
    size_t bytes = k->prepared_bytes(w->mat.type, w->mat.cols, n_tokens);
    void *prepared = take(bytes);
    int n_tiles = (n_tokens + 15) / 16;
    int i;
    mbi_gemm g;
    memset(&g, 0, sizeof g);
    g.w = &w->mat;
    g.x = x;
    g.n_tokens = n_tokens;
    g.add = add;
    g.exact_rows = exact;
    g.bias = bias;
    g.y = y;
    g.y_panel = y_panel;
    g.y_token = y_token;
    g.scratch = take(MBI_GEMM_SCRATCH);
    memset(g.scratch, 0xff, MBI_GEMM_SCRATCH); /* NaNs: nothing may be read before it is written */
    if (bytes != 0) {
        memset(prepared, 0xff, bytes);
        for (i = n_cuts - 1; i >= 0; i--) {
            int t0 = mbi_split(n_tiles, n_cuts, i) * 16;
            int t1 = mbi_min_int(mbi_split(n_tiles, n_cuts, i + 1) * 16, n_tokens);
            if (t0 < t1) {
                int n_groups = (w->mat.cols + 63) / 64;
                int cut = i % 2 == 0 ? n_groups / 2 : n_groups; /* in one piece, or in two */
                k->prepare(w->mat.type, x, w->mat.cols, n_tokens, t0, t1, cut, n_groups, prepared);
                k->prepare(w->mat.type, x, w->mat.cols, n_tokens, t0, t1, 0, cut, prepared);
            }
        }
        g.x = prepared;
    }
    for (i = 0; i < n_cuts; i++) {
        if (by_token) {
            int t0 = mbi_split(n_tiles, n_cuts, i) * 16;
            int t1 = mbi_min_int(mbi_split(n_tiles, n_cuts, i + 1) * 16, n_tokens);
            if (t0 < t1) {
                k->gemm(&g, 0, w->mat.n_panels, t0, t1);
            }
        } else {
            k->gemm(&g, mbi_split(w->mat.n_panels, n_cuts, i), mbi_split(w->mat.n_panels, n_cuts, i + 1), 0,
                    n_tokens);
        }
    }
    free(g.scratch);
    free(prepared);
}

/* Largest error of one output allowed by the arithmetic that @@kernel_list states for the target and type:
 * `sum` is sum |w x|, `group` is sum over groups of 64 columns of sum |w| * max |x|. */
static double product_bound(mamba_type type, int cols, double sum, double group) {
    const char *name = target->name;
    double bound = (cols + 8) * ldexp(sum, -24);
    if (strcmp(name, "avx512bf16") == 0 && type == MAMBA_BF16) {
        bound += ldexp(sum, -8) * 1.01 + 1e-30; /* products of denormals count as 0 */
    } else if (strcmp(name, "amx") == 0 && (type == MAMBA_BF16 || type == MAMBA_F16)) {
        bound += ldexp(sum, -15) + 1e-30; /* products of denormals count as 0 */
    } else if ((strcmp(name, "avx512vnni") == 0 || strcmp(name, "avx512bf16") == 0 ||
                strcmp(name, "neondot") == 0 ||
                strcmp(name, "neoni8mm") == 0 || strcmp(name, "neonbf16") == 0 ||
                strcmp(name, "avx2int8") == 0 || strcmp(name, "avxvnni") == 0 ||
                strcmp(name, "amx") == 0) &&
               type >= MAMBA_Q8) {
        bound += group / 254 * 1.01;
    } else if (strcmp(name, "neonbf16") == 0 && type == MAMBA_BF16) {
        bound += ldexp(sum, -16) + 1e-30; /* products of denormals count as 0 */
    }
    return bound;
}

static void check_product(mamba_type type, int rows, int cols, int n_tokens) {
    weights w;
    float *x = blocked_make(cols, n_tokens);
    int width = (rows + 15) / 16 * 16;
    size_t n_y = (size_t)width * (size_t)n_tokens;
    float *y = (float *)take(sizeof(float) * n_y);
    float *other = (float *)take(sizeof(float) * n_y);
    float *bias = (float *)take(sizeof(float) * (size_t)width);
    float *out = (float *)take(sizeof(float) * (size_t)(cols + 16));
    int bad = 0;
    int r;
    int t;
    int c;
    int i;
    weights_make(&w, type, rows, cols);
    for (i = 0; i < rows; i++) {
        bias[i] = value();
    }
    product(&w, x, n_tokens, NULL, 0, 0, y, (size_t)n_tokens * 16, 16, 1, 0);
    for (r = 0; r < rows && !bad; r++) {
        for (t = 0; t < n_tokens && !bad; t++) {
            double exact = 0;
            double sum = 0;
            double group = 0;
            double most = 0;
            double weight = 0;
            for (c = 0; c < cols; c++) {
                double a = w.w[(size_t)r * (size_t)cols + (size_t)c];
                double b = (double)at(x, n_tokens, c, t);
                if (c % 64 == 0) {
                    group += most * weight;
                    most = weight = 0;
                }
                most = fabs(b) > most ? fabs(b) : most;
                weight += fabs(a);
                exact += a * b;
                sum += fabs(a * b);
            }
            group += most * weight;
            if (!(fabs((double)at(y, n_tokens, r, t) - exact) <= product_bound(type, cols, sum, group))) {
                printf("%s %s (%d, %d) x %d: row %d token %d: %g, exact %g, allowed %g\n", target->name,
                       type_names[type], rows, cols, n_tokens, r, t, (double)at(y, n_tokens, r, t), exact,
                       product_bound(type, cols, sum, group));
                bad = 1;
            }
        }
    }
    CHECK(!bad);
    /* the same bits for every cut, whether weights are asked for ahead or not */
    for (i = 2; i <= 4; i++) {
        w.mat.prefetch = !w.mat.prefetch;
        memset(other, 0, sizeof(float) * n_y);
        product(&w, x, n_tokens, NULL, 0, 0, other, (size_t)n_tokens * 16, 16, i, i == 4);
        CHECK(memcmp(y, other, sizeof(float) * n_y) == 0);
    }
    /* one token at a time, with a bias, added to what is there, stored row-major and only the true rows */
    product(&w, x, n_tokens, bias, 0, 0, y, (size_t)n_tokens * 16, 16, 1, 0);
    for (t = 0; t < n_tokens; t++) {
        float *one = (float *)take(sizeof(float) * (size_t)((cols + 15) / 16 * 16));
        float *row = (float *)take(sizeof(float) * (size_t)width);
        for (c = 0; c < cols; c++) {
            one[c] = at(x, n_tokens, c, t);
        }
        for (r = 0; r < width; r++) {
            row[r] = r < rows ? (float)r : 777.0f;
        }
        product(&w, one, 1, bias, 1, 1, row, 16, (size_t)width, 1, 0);
        for (r = 0; r < width; r++) {
            bad |= r < rows ? row[r] != (float)r + at(y, n_tokens, r, t) : row[r] != 777.0f;
        }
        free(one);
        free(row);
    }
    CHECK(!bad);
    for (r = 0; r < rows; r += 7) {
        target->k.row(&w.mat, r, out, 16);
        for (c = 0; c < cols; c++) {
            bad |= (double)out[c] != w.w[(size_t)r * (size_t)cols + (size_t)c];
        }
    }
    CHECK(!bad);
    weights_free(&w);
    free(x);
    free(y);
    free(other);
    free(bias);
    free(out);
}

TEST(products) {
    static const int rows[] = {1, 16, 48, 83, 160};
    static const int cols[] = {1, 16, 31, 48, 63, 65, 130, 200, 777};
    int type;
    int i;
    int j;
    int turn = 0;
    int quick = getenv("MAMBA_TEST_QUICK") != NULL; /* under emulators: a third of the shapes, none large */
    for (type = 0; type < 6; type++) {
        for (i = 0; i < 5; i++) {
            for (j = 0; j < 9; j++, turn++) {
                if (!quick || (i + j) % 3 == 2) {
                    check_product(types[type], rows[i], cols[j], 1 + turn % 40);
                }
            }
        }
        if (quick) {
            continue;
        }
        check_product(types[type], 40, 1100, 100);
        check_product(types[type], 33, 70, 530);
        check_product(types[type], 400, 70, 3); /* several panels asked for at a time */
    }
}

/* ---- targets that promise each other's bits --------------------------------------------------- */
static void check_same_bits(const mamba_target *a, const mamba_target *b, mamba_type type, int rows, int cols,
                            int n_tokens) {
    weights w;
    float *x = blocked_make(cols, n_tokens);
    size_t n_y = (size_t)((rows + 15) / 16 * 16) * (size_t)n_tokens;
    float *y[2];
    int i;
    weights_make(&w, type, rows, cols);
    for (i = 0; i < 2; i++) {
        y[i] = (float *)take(sizeof(float) * n_y);
        target = i == 0 ? a : b;
        product(&w, x, n_tokens, NULL, 0, 0, y[i], (size_t)n_tokens * 16, 16, 1, 0);
    }
    if (memcmp(y[0], y[1], sizeof(float) * n_y) != 0) {
        printf("%s, %s, %s (%d, %d) x %d: other bits\n", a->name, b->name, type_names[type], rows, cols,
               n_tokens);
        FAIL("the same bits");
    }
    weights_free(&w);
    free(x);
    free(y[0]);
    free(y[1]);
}

/* For every type that is not in the set `others`. */
static void check_twins(const char *name, const char *twin, unsigned others) {
    static const int shapes[][2] = {{16, 31}, {33, 130}, {48, 777}, {17, 1700}};
    const mamba_target *a = mamba_target_find(name, strlen(name));
    const mamba_target *b = mamba_target_find(twin, strlen(twin));
    int type;
    int i;
    int n_tokens;
    if (!a || !b || !KERNELS_USABLE(a) || !mamba_target_usable(b)) {
        SKIP("this machine can't run them");
    }
    for (type = MAMBA_F32; type <= MAMBA_Q4; type++) {
        if ((others >> types[type] & 1) != 0) {
            continue;
        }
        for (i = 0; i < (int)(sizeof shapes / sizeof shapes[0]); i++) {
            for (n_tokens = 1; n_tokens <= 21; n_tokens++) {
                check_same_bits(a, b, types[type], shapes[i][0], shapes[i][1], n_tokens);
            }
            for (n_tokens = 62; n_tokens <= 67; n_tokens++) {
                check_same_bits(a, b, types[type], shapes[i][0], shapes[i][1], n_tokens);
            }
        }
        check_same_bits(a, b, types[type], 20, 4100, 250); /* amx: tokens in two parts */
    }
}

/* Tokens of x whose product with weights of a type differs in bits when they come alone. */
static int differ_alone(mamba_type type, const float *x, int cols, int n_tokens) {
    enum { ROWS = 32 };
    float *y = (float *)take(sizeof(float) * ROWS * (size_t)n_tokens);
    float *one = (float *)take(sizeof(float) * (size_t)((cols + 15) / 16 * 16));
    weights w;
    int bad = 0;
    int t;
    int c;
    weights_make(&w, type, ROWS, cols);
    product(&w, x, n_tokens, NULL, 0, 0, y, (size_t)n_tokens * 16, 16, 1, 0);
    for (t = 0; t < n_tokens; t++) {
        float alone[ROWS];
        for (c = 0; c < (cols + 15) / 16 * 16; c++) {
            one[c] = at(x, n_tokens, c, t);
        }
        product(&w, one, 1, NULL, 0, 0, alone, 16, 16, 1, 0);
        bad += memcmp(alone, y + t * 16, 64) != 0 || memcmp(alone + 16, y + (n_tokens + t) * 16, 64) != 0;
    }
    weights_free(&w);
    free(one);
    free(y);
    return bad;
}

/* Where activations are rounded to int8, odd ones are rounded alike alone and among others: NaNs, groups of zeros,
 * groups of denormals. */
TEST(odd_activations) {
    enum { COLS = 130, T = 21 };
    float *x = blocked_make(COLS, T);
    int type;
    int t;
    int c;
    for (t = 0; t < T; t++) {
        for (c = 0; c < COLS; c++) {
            float *v = &x[(c / 16 * T + t) * 16 + c % 16];
            int kind = (t + c / 64) % 4;
            *v = kind == 0 ? 0.0f : kind == 1 ? *v * 1e-40f : kind == 2 && (c + t) % 5 == 0 ? NAN : *v;
        }
    }
    for (type = MAMBA_Q8; type <= MAMBA_Q4; type++) {
        if (target->k.prepared_bytes((mamba_type)type, COLS, T) != 0) {
            CHECK_INT(differ_alone((mamba_type)type, x, COLS, T), 0);
        }
    }
    free(x);
}

/* Activations whose products, sums, or low halves are denormals: a target may take them for zero, but then always. */
TEST(tiny_activations) {
    enum { COLS = 130, T = 21 };
    float *x = blocked_make(COLS, T);
    int type;
    int i;
    for (i = 0; i < (COLS + 15) / 16 * T * 16; i++) {
        x[i] *= ldexpf(1.0f, -150 + 2 * (i / 16 % T));
    }
    for (type = MAMBA_F32; type <= MAMBA_BF16; type++) {
        CHECK_INT(differ_alone((mamba_type)type, x, COLS, T), 0);
    }
    free(x);
}

/* The largest sums that a group of columns can have, of either sign. */
TEST(largest_sums) {
    enum { COLS = 256, T = 21, BLOCK = 64 + 4 * 1024 };
    float *x = blocked_make(COLS, T);
    weights w;
    float y[T * 16];
    int t;
    int i;
    weights_make(&w, MAMBA_Q8, 16, COLS);
    memset(w.bytes, 127, 64);
    memset(w.bytes + 64, 0x80, BLOCK - 64); /* -128 */
    for (t = 0; t < T; t++) {
        for (i = 0; i < COLS; i++) {
            x[(i / 16 * T + t) * 16 + i % 16] = t % 2 ? -2.5f : 2.5f;
        }
    }
    product(&w, x, T, NULL, 0, 0, y, (size_t)T * 16, 16, 1, 0);
    for (t = 0; t < T; t++) {
        double exact = (t % 2 ? 1 : -1) * 2.5 * 128 * COLS * 127 * 127 * (double)w.mat.bases[0];
        for (i = 0; i < 16; i++) {
            CHECK_NEAR(y[t * 16 + i], exact, ldexp(fabs(exact), -24) * (COLS + 8));
        }
    }
    weights_free(&w);
    free(x);
}

#if MBI_BUILD_AMX
TEST(amx_is_avx512vnni) { /* in the types that have integers */
    check_twins("amx", "avx512vnni", 1u << MAMBA_F16 | 1u << MAMBA_BF16);
}
#endif
#if MBI_BUILD_AVXVNNI
TEST(avxvnni_is_avx2int8) {
    check_twins("avxvnni", "avx2int8", 0);
}
#endif
#if MBI_BUILD_AVX512BF16
TEST(avx512bf16_is_avx512vnni) { /* but for bf16 */
    check_twins("avx512bf16", "avx512vnni", 1u << MAMBA_BF16);
}
#endif
#if MBI_BUILD_NEON_I8MM
TEST(neoni8mm_is_neondot) {
    check_twins("neoni8mm", "neondot", 0);
}
#endif
#if MBI_BUILD_NEON_BF16
TEST(neonbf16_is_neoni8mm) { /* but for bf16 */
    check_twins("neonbf16", "neoni8mm", 1u << MAMBA_BF16);
}
#endif

/* ---- element by element --------------------------------------------------------------------- */
static double ulps(double got, double exact) {
    int e;
    if (got == exact) {
        return 0;
    }
    (void)frexp(exact, &e);
    return fabs(got - exact) / ldexp(1.0, e - 24 < -149 ? -149 : e - 24);
}

static double silu(double x) {
    return x / (1.0 + exp(-x));
}

static double softplus(double x) {
    return x > 20 ? x : log1p(exp(x));
}

TEST(elementary) {
    enum { N = 1 << 16 };
    float *x = (float *)take(sizeof(float) * N);
    float *y = (float *)take(sizeof(float) * N);
    float bias[16];
    double worst[3] = {0, 0, 0};
    int i;
    for (i = 0; i < N; i++) {
        x[i] = uniform() * (i % 3 == 0 ? 86.0f : i % 3 == 1 ? 8.0f : 0.01f);
    }
    for (i = 0; i < 16; i++) {
        bias[i] = uniform() * 4;
    }
    target->k.exp(x, y, N);
    for (i = 0; i < N; i++) {
        worst[0] = fmax(worst[0], ulps((double)y[i], exp((double)x[i])));
    }
    target->k.silu(x, y, N);
    for (i = 0; i < N; i++) {
        worst[1] = fmax(worst[1], ulps((double)y[i], silu((double)x[i])));
    }
    target->k.softplus(x, NULL, y, N);
    for (i = 0; i < N; i++) {
        worst[2] = fmax(worst[2], ulps((double)y[i], softplus((double)x[i])));
    }
    CHECK_NEAR(worst[0], 0, 2.0);
    CHECK_NEAR(worst[1], 0, 4.0);
    CHECK_NEAR(worst[2], 0, 4.0);
    target->k.softplus(x, bias, y, N);
    for (i = 0; i < N; i += 5) {
        double exact = softplus((double)(float)(x[i] + bias[i % 16]));
        CHECK_NEAR(y[i], exact, 4e-7 * exact + 1e-37);
    }
    for (i = 0; i < 16; i++) {
        static const float special[] = {0.0f, 1e30f, -1e30f, 88.8f, -88.8f, 100.0f, -100.0f, -104.5f};
        x[i] = special[i % 8];
    }
    target->k.exp(x, y, 16);
    CHECK(y[0] == 1.0f && y[2] == 0.0f && y[3] > 3e38f && y[5] > 3e38f && y[7] <= 1e-38f);
    target->k.silu(x, y, 16);
    CHECK(y[0] == 0.0f && y[1] == 1e30f && fabsf(y[2]) <= 1e-30f && y[5] == 100.0f && fabsf(y[6]) < 1e-36f);
    target->k.softplus(x, NULL, y, 16);
    CHECK(fabs((double)y[0] - 0.6931471805599453) < 1e-7 && y[1] == 1e30f && y[2] == 0.0f && y[5] == 100.0f);
    for (i = 0; i < 16; i++) {
        x[i] = i % 2 ? (float)NAN : 1.0f;
    }
    target->k.exp(x, y, 16);
    CHECK(y[1] != y[1] && y[0] == y[0]);
    target->k.silu(x, y, 16);
    CHECK(y[1] != y[1] && y[0] == y[0]);
    target->k.softplus(x, NULL, y, 16);
    CHECK(y[1] != y[1] && y[0] == y[0]);
    free(x);
    free(y);
}

TEST(rmsnorm) {
    static const int widths[] = {1, 16, 17, 100, 768};
    int i;
    for (i = 0; i < 5; i++) {
        int n = widths[i];
        int n_tokens = 21;
        float *x = blocked_make(n, n_tokens);
        float *y = blocked_make(n, n_tokens);
        float *z = blocked_make(n, n_tokens);
        float *w = blocked_make(n, 1);
        int t;
        int c;
        target->k.rmsnorm(x, w, 1e-5f, n, n_tokens, 0, n_tokens, y);
        for (t = 0; t < n_tokens; t++) {
            double sum = 0;
            for (c = 0; c < n; c++) {
                sum += (double)at(x, n_tokens, c, t) * (double)at(x, n_tokens, c, t);
            }
            for (c = 0; c < n; c++) {
                double exact = (double)at(x, n_tokens, c, t) / sqrt(sum / n + 1e-5) * (double)w[c];
                CHECK_NEAR(at(y, n_tokens, c, t), exact, fabs(exact) * (n / 16.0 + 8) * 6e-8);
            }
        }
        memcpy(z, x, sizeof(float) * (size_t)((n + 15) / 16 * 16 * n_tokens));
        target->k.rmsnorm(z, w, 1e-5f, n, n_tokens, 16, n_tokens, z);
        target->k.rmsnorm(z, w, 1e-5f, n, n_tokens, 0, 16, z);
        CHECK(memcmp(y, z, sizeof(float) * (size_t)((n + 15) / 16 * 16 * n_tokens)) == 0);
        free(x);
        free(y);
        free(z);
        free(w);
    }
}

TEST(convolution) {
    int d_conv;
    for (d_conv = 1; d_conv <= 8; d_conv++) {
        enum { T = 37 };
        float *x = blocked_make(16, T);
        float *y = blocked_make(16, T);
        float *z = blocked_make(16, T);
        float *w = blocked_make(16 * 8, 1);
        float *state = blocked_make(16 * 8, 1);
        float *start = (float *)take(16 * 8 * 4);
        float *b = blocked_make(16, 1);
        int t;
        int c;
        int j;
        memcpy(start, state, 16 * 8 * 4);
        target->k.conv(x, w, b, d_conv, 1, T, state, 16, y);
        for (t = 0; t < T; t++) {
            for (c = 0; c < 16; c++) {
                double sum = (double)b[c];
                double size = fabs(sum);
                for (j = 0; j < d_conv; j++) {
                    int from = t - (d_conv - 1) + j;
                    double in = (double)(from >= 0 ? x[from * 16 + c] : start[(from + d_conv - 1) * 16 + c]);
                    sum += (double)w[j * 16 + c] * in;
                    size += fabs((double)w[j * 16 + c] * in);
                }
                CHECK_NEAR(y[t * 16 + c], silu(sum), 1e-6 * size);
            }
        }
        for (j = 0; j < d_conv - 1; j++) {
            CHECK(memcmp(state + j * 16, x + (T - (d_conv - 1) + j) * 16, 64) == 0);
        }
        /* cut anywhere: the same bits */
        memcpy(z, x, sizeof(float) * 16 * T);
        target->k.conv(z, w, b, d_conv, 1, 2, start, 16, z);
        target->k.conv(z + 32, w, b, d_conv, 1, 1, start, 16, z + 32);
        target->k.conv(z + 48, w, b, d_conv, 1, T - 3, start, 16, z + 48);
        CHECK(memcmp(y, z, sizeof(float) * 16 * T) == 0);
        CHECK(memcmp(state, start, (size_t)(d_conv - 1) * 64) == 0);
        target->k.conv(x, w, NULL, d_conv, 0, 1, start, 16, y);
        free(x);
        free(y);
        free(z);
        free(w);
        free(state);
        free(start);
        free(b);
    }
}

static void check_scan(int d_state, int n_tokens, int gate) {
    int blocks = (d_state + 15) / 16;
    float *x = blocked_make(16, n_tokens);
    float *dt = blocked_make(16, n_tokens);
    float *z = blocked_make(16, n_tokens);
    float *B = blocked_make(d_state, n_tokens);
    float *C = blocked_make(d_state, n_tokens);
    float *A = (float *)take(sizeof(float) * (size_t)d_state * 16);
    float *h = (float *)take(sizeof(float) * (size_t)blocks * 256);
    float *h2 = (float *)take(sizeof(float) * (size_t)blocks * 256);
    float *y = (float *)take(sizeof(float) * (size_t)n_tokens * 16);
    float *x2 = (float *)take(sizeof(float) * (size_t)n_tokens * 16);
    float *D = blocked_make(16, 1);
    mbi_scan_block s;
    int bad = 0;
    int c;
    int n;
    int t;
    for (t = 0; t < n_tokens * 16; t++) {
        dt[t] = (float)softplus((double)dt[t] * 3 - 2);
        x2[t] = x[t];
    }
    for (n = 0; n < d_state * 16; n++) {
        A[n] = -(float)(n / 16 + 1) * (1.0f + 0.3f * uniform());
        h2[n] = h[n] = value();
    }
    memset(&s, 0, sizeof s);
    s.x = x;
    s.dt = dt;
    s.z = gate ? z : NULL;
    s.A = A;
    s.B = B;
    s.C = C;
    s.D = gate ? D : NULL;
    s.h = h2;
    s.y = y;
    s.bc_block = (size_t)n_tokens * 16;
    s.bc_token = 16;
    s.position = 5;
    s.n_tokens = n_tokens;
    s.d_state = d_state;
    target->k.scan_block(&s);
    for (c = 0; c < 16; c++) {
        double state[160];
        double size[160]; /* of the terms that made the state */
        for (n = 0; n < d_state; n++) {
            state[n] = (double)h[n * 16 + c];
            size[n] = fabs(state[n]);
        }
        for (t = 0; t < n_tokens; t++) {
            double sum = gate ? (double)D[c] * (double)x[t * 16 + c] : 0;
            double scale = fabs(sum);
            for (n = 0; n < d_state; n++) {
                double a = exp((double)dt[t * 16 + c] * (double)A[n * 16 + c]);
                double in = (double)dt[t * 16 + c] * (double)x[t * 16 + c] * (double)at(B, n_tokens, n, t);
                state[n] = a * state[n] + in;
                size[n] = a * size[n] + fabs(in);
                sum += state[n] * (double)at(C, n_tokens, n, t);
                scale += size[n] * fabs((double)at(C, n_tokens, n, t));
            }
            if (gate) {
                sum *= silu((double)z[t * 16 + c]);
                scale *= fabs((double)z[t * 16 + c]);
            }
            if (!(fabs((double)y[t * 16 + c] - sum) <= (30 + d_state) * 6e-8 * scale + 1e-30)) {
                if (!bad) {
                    printf("%s d_state %d token %d: %g, exact %g\n", target->name, d_state, t,
                           (double)y[t * 16 + c], sum);
                }
                bad = 1;
            }
        }
    }
    CHECK(!bad);
    /* in place and cut into pieces: the same bits */
    for (t = 0; t < n_tokens;) {
        int piece = mbi_min_int(t == 0 ? 1 : 9, n_tokens - t);
        s.x = s.y = x2 + t * 16;
        s.dt = dt + t * 16;
        s.z = gate ? z + t * 16 : NULL;
        s.B = B + t * 16;
        s.C = C + t * 16;
        s.h = h;
        s.position = 5 + (uint64_t)t;
        s.n_tokens = piece;
        target->k.scan_block(&s);
        t += piece;
    }
    CHECK(memcmp(y, x2, sizeof(float) * (size_t)n_tokens * 16) == 0);
    CHECK(memcmp(h, h2, sizeof(float) * (size_t)d_state * 16) == 0);
    free(x);
    free(dt);
    free(z);
    free(B);
    free(C);
    free(A);
    free(h);
    free(h2);
    free(y);
    free(x2);
    free(D);
}

TEST(scan) {
    static const int states[] = {1, 2, 7, 8, 9, 15, 16, 17, 24, 32, 40, 128};
    int i;
    for (i = 0; i < 12; i++) {
        check_scan(states[i], 1 + i * 13, i % 2);
        check_scan(states[i], 20, 1 - i % 2);
    }
}

/* No state stays denormal past the next flush, and a decay far below the range is a clean zero. */
TEST(scan_tiny_states) {
    enum { T = 64 };
    float *zero = (float *)take(sizeof(float) * T * 16);
    float *dt = (float *)take(sizeof(float) * T * 16);
    float *y = (float *)take(sizeof(float) * T * 16);
    float *A = (float *)take(sizeof(float) * 256);
    float *h = (float *)take(sizeof(float) * 256);
    mbi_scan_block s;
    int i;
    for (i = 0; i < T * 16; i++) {
        dt[i] = 1.0f;
    }
    for (i = 0; i < 256; i++) {
        A[i] = i < 128 ? -8.0f : -1e6f;
        h[i] = 1.0f;
    }
    memset(&s, 0, sizeof s);
    s.x = zero;
    s.dt = dt;
    s.A = A;
    s.B = s.C = zero;
    s.h = h;
    s.y = y;
    s.bc_block = T * 16;
    s.bc_token = 16;
    s.n_tokens = 1;
    s.d_state = 16;
    target->k.scan_block(&s);
    CHECK(h[0] > 3e-4f && h[0] < 4e-4f && h[255] == 0.0f);
    s.position = 1;
    s.n_tokens = 15;
    target->k.scan_block(&s);
    for (i = 0; i < 256; i++) {
        CHECK(h[i] == 0.0f || fabsf(h[i]) >= 7.8e-31f);
    }
    free(zero);
    free(dt);
    free(y);
    free(A);
    free(h);
}

/* Every task of a job runs once, and all before the next job: in teams of one, of as many as there are cores, and of
 * more, whose members have to wait for each other's cores. */
typedef struct {
    int count[40];
    int n_jobs, bad;
} team_work;

static void team_task(void *arg, int i) {
    ((team_work *)arg)->count[i]++;
}

static void team_jobs(void *arg, const mamba_parallel *parallel) {
    team_work *w = (team_work *)arg;
    int i;
    for (w->n_jobs = 0; w->n_jobs < 3000; w->n_jobs++) {
        int n = 1 + w->n_jobs * 7 % 40;
        memset(w->count, 0, sizeof w->count);
        mbi_parallel_for(parallel, 3, n, team_task, w);
        for (i = 0; i < 40; i++) {
            w->bad += w->count[i] != (i < n);
        }
    }
}

TEST(teams) {
    static const int sizes[] = {1, 2, 3, 1000};
    team_work w;
    int i;
    w.bad = 0;
    for (i = 0; i < 4; i++) {
        w.n_jobs = 0;
        mbi_with_team(NULL, sizes[i], team_jobs, &w);
        CHECK(w.bad == 0 && w.n_jobs == 3000);
    }
#if MBI_OPENMP
    for (i = 2; i <= 6; i += 2) {
        w.n_jobs = 0;
        mbi_team_of(i, team_jobs, &w);
        CHECK(w.bad == 0 && w.n_jobs == 3000);
    }
#endif
}

TEST(target_built) {
    if (KERNELS_ONLY[0] && !mamba_target_find(KERNELS_ONLY, strlen(KERNELS_ONLY))) {
        SKIP("this compiler or CPU family has no such target");
    }
}

TEST_MAIN(KERNELS_NAME) {
    const char *only = KERNELS_ONLY;
    int i;
    RUN(target_built);
    if (!only[0]) {
        RUN(teams);
    }
    for (i = 0; mamba_target_at(i); i++) {
        target = mamba_target_at(i);
        if (only[0] && strcmp(target->name, only) != 0) {
            continue;
        }
        if (!KERNELS_USABLE(target)) {
            printf("target %s: skipped: this machine can't run it\n", target->name);
            continue;
        }
        RUN(products);
        RUN(odd_activations);
        RUN(tiny_activations);
        RUN(largest_sums);
        RUN(elementary);
        RUN(rmsnorm);
        RUN(convolution);
        RUN(scan);
        RUN(scan_tiny_states);
    }
#if MBI_BUILD_AMX
    RUN(amx_is_avx512vnni);
#endif
#if MBI_BUILD_AVXVNNI
    RUN(avxvnni_is_avx2int8);
#endif
#if MBI_BUILD_AVX512BF16
    RUN(avx512bf16_is_avx512vnni);
#endif
#if MBI_BUILD_NEON_I8MM
    RUN(neoni8mm_is_neondot);
#endif
#if MBI_BUILD_NEON_BF16
    RUN(neonbf16_is_neoni8mm);
#endif
}
