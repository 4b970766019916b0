/*  quant.c: tests of the weight types: 16-bit floats, packing against the byte specification, the error that
 *  q8 and q4 leave, and mamba-quantize.
 *
 *  The layout is decoded here from the text of @@format, not with the kernels' code. Both tools are part of this
 *  program (their main under another name), so their exit codes and messages can be tested without a shell.
 *  Reads tests/golden or the folder in MAMBA_GOLDEN; writes to a folder of its own below /tmp.
 */
int convert_main(int argc, char **argv);
int quantize_main(int argc, char **argv);
#define main convert_main
#include "../tools/convert.c"
#undef main
#define main quantize_main
#include "../tools/quantize.c"
#undef main

#include "test.h"

/* ---- random numbers: Gaussian by the sum of twelve ----------------------------------------------------------- */

static uint32_t random_state = 1;

static double random_uniform(void)
{
    random_state = random_state * 1664525u + 1013904223u;
    return (double)(random_state >> 8) / 16777216.0;
}

static float random_normal(void)
{
    double sum = -6.0;
    for (int i = 0; i < 12; i++) {
        sum += random_uniform();
    }
    return (float)sum;
}

/* ---- 16-bit floats ------------------------------------------------------------------------------------------- */

/* Value of a finite half: sign, 5 bits of exponent, 10 of fraction. */
static double half_value(unsigned h)
{
    int exponent = (int)(h >> 10 & 31u);
    double fraction = (double)(h & 1023u);
    double v = exponent == 0 ? ldexp(fraction, -24) : ldexp(1024.0 + fraction, exponent - 25);
    return (h & 0x8000u) != 0 ? -v : v;
}

TEST(f16_all_values)
{
    int bad = 0;
    for (unsigned h = 0; h < 65536; h++) {
        if ((h & 0x7c00u) == 0x7c00u) {
            continue;
        }
        bad += (double)mbi_f16_to_f32((uint16_t)h) != half_value(h);
        bad += pack_f16((float)half_value(h)) != h;
    }
    CHECK_INT(bad, 0);
    CHECK_INT(pack_f16(INFINITY), 0x7c00);
    CHECK_INT(pack_f16(-INFINITY), 0xfc00);
    CHECK((pack_f16(NAN) & 0x7fff) > 0x7c00);
    CHECK_INT(pack_f16(-0.0f), 0x8000);
}

/* Halfway between two neighbours the even one wins; a hair beside it the nearer one. */
TEST(f16_ties)
{
    int bad = 0;
    for (unsigned h = 0; h < 0x7bffu; h++) {
        float middle = (float)((half_value(h) + half_value(h + 1)) / 2);
        unsigned even = (h & 1u) == 0 ? h : h + 1;
        bad += pack_f16(middle) != even;
        bad += pack_f16(-middle) != (even | 0x8000u);
        bad += pack_f16(nextafterf(middle, 0.0f)) != h;
        bad += pack_f16(nextafterf(middle, 1e9f)) != h + 1;
    }
    CHECK_INT(bad, 0);
    CHECK_INT(pack_f16(nextafterf(65520.0f, 0.0f)), 0x7bff);
    CHECK_INT(pack_f16(65520.0f), 0x7c00);
    CHECK_INT(pack_f16(nextafterf((float)ldexp(1, -25), 0.0f)), 0);
}

TEST(bf16_ties)
{
    int bad = 0;
    for (uint32_t h = 0; h < 0x7f7fu; h++) {
        float at = mbi_bits_f32(h << 16), middle = mbi_bits_f32(h << 16 | 0x8000u);
        bad += mbi_f32_to_bf16(at) != h;
        bad += mbi_f32_to_bf16(middle) != ((h & 1u) == 0 ? h : h + 1);
        bad += mbi_f32_to_bf16(mbi_bits_f32(h << 16 | 0x7fffu)) != h;
        bad += mbi_f32_to_bf16(mbi_bits_f32(h << 16 | 0x8001u)) != h + 1;
    }
    CHECK_INT(bad, 0);
}

/* ---- panels -------------------------------------------------------------------------------------------------- */

static const int widths[] = {1, 5, 31, 32, 33, 48, 63, 64, 65, 100, 256, 257, 320};
enum { N_WIDTHS = 13, MAX_COLS = 320 };

static float weights[16 * MAX_COLS], wanted[MAX_COLS / 2];
static unsigned char panel[16 * MAX_COLS * 4 + 64];   /* and what must stay untouched */
static float panel_base;

static size_t padded(int cols, mamba_type type)
{
    size_t unit = type >= MAMBA_Q8 ? 64 : 32;
    return ((size_t)cols + unit - 1) / unit * unit;
}

/* Packs 16 rows; weights beyond cols are zero. */
static void pack(int cols, mamba_type type)
{
    memset(panel, 0xa5, sizeof panel);
    memset(panel, 0, (size_t)mbi_panel_bytes(type, (uint64_t)cols));
    panel_base = pack_panel(weights, padded(cols, type), type, wanted, panel);
}

static void fill(int cols, mamba_type type, float scale)
{
    size_t n = padded(cols, type);
    memset(weights, 0, sizeof weights);
    for (size_t r = 0; r < 16; r++) {
        for (size_t c = 0; c < (size_t)cols; c++) {
            weights[r * n + c] = scale * random_normal();
        }
    }
}

/* The codebook, written down once more. */
static const int codebook[16] = {-127, -99, -78, -61, -47, -34, -22, -10, 0, 12, 23, 36, 49, 64, 82, 105};

/* Bytes of the units of 64 columns of 16 rows. */
static size_t group_bytes(mamba_type type)
{
    return type == MAMBA_Q8 ? 1024 : type == MAMBA_Q6 ? 768 : 512;
}

/* Scale of the group that holds (row, col) of a panel of a quantized type. */
static float spec_scale(mamba_type type, int row, int col)
{
    int code = panel[(size_t)(col / 256) * (64 + 4 * group_bytes(type)) + (size_t)(col % 256 / 64 * 16 + row)];
    code = code >= 128 ? code - 256 : code;
    return panel_base * (float)(code * abs(code));
}

/* Element (row, col) of the panel, from the text of @@format. */
static double spec_value(mamba_type type, int row, int col)
{
    float f;
    uint32_t u;
    const unsigned char *p, *units = panel + (size_t)(col / 256) * (64 + 4 * group_bytes(type)) + 64 +
                                     (size_t)(col % 256 / 64) * group_bytes(type);
    int v;
    switch (type) {
    case MAMBA_F32:
        memcpy(&f, panel + ((size_t)col * 16 + (size_t)row) * 4, 4);
        return (double)f;
    case MAMBA_F16:
    case MAMBA_BF16:
        p = panel + ((size_t)(col / 2) * 16 + (size_t)row) * 4 + (size_t)(col % 2) * 2;
        u = (uint32_t)(p[0] | p[1] << 8);
        if (type == MAMBA_F16) {
            return half_value(u);
        }
        u <<= 16;
        memcpy(&f, &u, 4);
        return (double)f;
    case MAMBA_Q8:
        p = units + (size_t)(col % 64 / 4) * 64 + 4 * row + col % 4;
        v = *p >= 128 ? (int)*p - 256 : (int)*p;
        return (double)((float)v * spec_scale(type, row, col));
    case MAMBA_Q6:
        p = units + (size_t)(col % 64 / 16) * 192 + 4 * row + col % 4;
        v = p[col % 16 / 8 * 64] >> (col % 8 < 4 ? 0 : 4) & 15;
        v += (p[128] >> col % 16 / 4 * 2 & 3) * 16 - 32;
        return (double)((float)v * spec_scale(type, row, col));
    default:
        p = units + (size_t)(col % 64 / 8) * 64 + 4 * row + col % 4;
        v = codebook[col % 8 < 4 ? *p & 15 : *p >> 4];
        return (double)((float)v * spec_scale(type, row, col));
    }
}

/* Largest error allowed for x in a group: half a step; 14 is half of the codebook's widest gap. */
static double bound(mamba_type type, double x, double scale)
{
    double low = scale * (scale < 0 ? 105 : -127), high = scale * (scale < 0 ? -127 : 105), a = fabs(scale);
    switch (type) {
    case MAMBA_F32: return 0;
    case MAMBA_F16: return fabs(x) / 2048 + ldexp(1, -25);
    case MAMBA_BF16: return fabs(x) / 256;
    case MAMBA_Q8: return a * 0.5001 + (fabs(x) > 127 * a ? fabs(x) - 127 * a : 0);
    case MAMBA_Q6:
        low = scale * (scale < 0 ? 31 : -32);
        high = scale * (scale < 0 ? -32 : 31);
        return a * 0.5001 + (x < low ? low - x : x > high ? x - high : 0);
    default: return a * 14.001 + (x < low ? low - x : x > high ? x - high : 0);
    }
}

TEST(layout_and_error)
{
    static const float sizes[] = {1.0f, 0.02f, 300.0f, 1e-6f};
    for (int type = 0; type < 6; type++) {
        for (int k = 0; k < N_WIDTHS * 4; k++) {
            int cols = widths[k % N_WIDTHS], bad = 0, moved = 0;
            float out[MAX_COLS];
            mbi_mat w;
            fill(cols, (mamba_type)type, sizes[k / N_WIDTHS]);
            pack(cols, (mamba_type)type);
            CHECK_INT(panel[mbi_panel_bytes((mamba_type)type, (uint64_t)cols)], 0xa5);
            w = mbi_mat_of((mamba_type)type, panel, 1, 16, cols);
            w.bases = &panel_base;
            for (int r = 0; r < 16; r++) {
                mamba_target_find("scalar", 6)->k.row(&w, r, out, 16);
                for (int c = 0; c < cols; c++) {
                    double x = (double)weights[(size_t)r * padded(cols, w.type) + (size_t)c];
                    double v = spec_value(w.type, r, c), s = type >= MAMBA_Q8 ? (double)spec_scale(w.type, r, c) : 0;
                    bad += !(fabs(x - v) <= bound(w.type, x, s));
                    moved += (double)out[c] != v;
                }
                for (size_t c = (size_t)cols; c < padded(cols, w.type); c++) {
                    bad += spec_value(w.type, r, (int)c) != 0;
                }
            }
            CHECK_INT(bad, 0);
            CHECK_INT(moved, 0);
        }
    }
}

/* Squared error of a group's best q4 scale among 2 x 400, each with the nearest codebook values. */
static double exhaustive_q4(const float *x)
{
    double most = 0, best = 1e300;
    for (int i = 0; i < 64; i++) {
        most = fabs((double)x[i]) > most ? fabs((double)x[i]) : most;
    }
    for (int t = 0; t < 800; t++) {
        double scale = most / (60.0 + 0.25 * (t / 2)) * (t % 2 ? 1 : -1), sum = 0;
        for (int i = 0; i < 64; i++) {
            double e = 1e300;
            for (int k = 0; k < 16; k++) {
                double d = (double)x[i] - codebook[k] * scale;
                e = d * d < e ? d * d : e;
            }
            sum += e;
        }
        best = sum < best ? sum : best;
    }
    return best;
}

/* The fast search stays within 2 % of an exhaustive one, for bell-shaped and for heavy-tailed groups. */
TEST(q4_search)
{
    double mean_square = 0, error[2] = {0, 0};
    for (int heavy = 0; heavy < 2; heavy++) {
        error[0] = error[1] = mean_square = 0;
        for (int k = 0; k < 4; k++) {
            fill(64, MAMBA_Q4, 1.0f);
            for (int i = 0; i < 16 * 64 && heavy; i++) {
                weights[i] *= weights[i] * weights[i];
            }
            pack(64, MAMBA_Q4);
            for (int i = 0; i < 16 * 64; i++) {
                double d = (double)weights[i] - spec_value(MAMBA_Q4, i / 64, i % 64);
                error[0] += d * d;
                mean_square += (double)weights[i] * (double)weights[i];
            }
            for (int g = 0; g < 16; g++) {
                error[1] += exhaustive_q4(weights + 64 * g);
            }
        }
        CHECK_NEAR(error[0] / error[1], 1.0, 0.02);
        CHECK(heavy || error[0] < 0.0068 * mean_square);
    }
}

/* Mean squared error over the mean square, on Gaussian weights. */
static double relative_error(mamba_type type)
{
    double error = 0, mean_square = 0;
    fill(256, type, 1.0f);
    pack(256, type);
    for (int i = 0; i < 16 * 256; i++) {
        double d = (double)weights[i] - spec_value(type, i / 256, i % 256);
        error += d * d;
        mean_square += (double)weights[i] * (double)weights[i];
    }
    return error / mean_square;
}

TEST(q8_and_q6_error)
{
    CHECK(relative_error(MAMBA_Q8) < 3.6e-5);
    CHECK(relative_error(MAMBA_Q6) < 5.3e-4);
}

/* Rows of very different size share a panel's base: none loses more than a few per cent by it. */
TEST(rows_of_every_size)
{
    for (int type = MAMBA_Q8; type <= MAMBA_Q4; type++) {
        double most = type == MAMBA_Q8 ? 7.5e-5 : type == MAMBA_Q6 ? 1.1e-3 : 0.011;
        fill(256, (mamba_type)type, 1.0f);
        for (int i = 0; i < 16 * 256; i++) {
            weights[i] *= powf(0.5f, (float)(i / 256) * 0.5f);   /* down to 1/180 */
        }
        pack(256, (mamba_type)type);
        for (int r = 0; r < 16; r++) {
            double error = 0, mean_square = 0;
            for (int c = 0; c < 256; c++) {
                double x = (double)weights[r * 256 + c], d = x - spec_value((mamba_type)type, r, c);
                error += d * d;
                mean_square += x * x;
            }
            CHECK(error < most * mean_square);
        }
    }
}

TEST(zeros)
{
    for (int type = MAMBA_Q8; type <= MAMBA_Q4; type++) {
        int bad = 0;
        fill(64, (mamba_type)type, 1.0f);
        for (int i = 0; i < 16 * 64; i++) {
            weights[i] = i / 64 == 3 || i % 7 == 0 ? 0.0f : weights[i];   /* row 3, and holes elsewhere */
        }
        pack(64, (mamba_type)type);
        for (int i = 0; i < 16 * 64; i++) {
            bad += weights[i] == 0.0f && spec_value((mamba_type)type, i / 64, i % 64) != 0;
        }
        CHECK_INT(bad, 0);
        CHECK(spec_scale((mamba_type)type, 3, 0) == 0);
    }
}

/* From the largest values that a type takes to denormals. */
TEST(huge_and_tiny)
{
    static const float sizes[] = {1000.0f, 800.0f, 1e-4f, 1.06e-5f, 3e-6f, 4e-7f, 6e-8f, 1e-8f, 1e-12f, 1e-40f};
    for (int type = MAMBA_Q8; type <= MAMBA_Q4; type++) {
        for (int k = 0; k < 10; k++) {
            double size = (double)sizes[k], step = type == MAMBA_Q8 ? size / 254 : type == MAMBA_Q6 ? size / 31.5 : size / 4; /* cut from 140 to 105 at worst */
            int bad = 0;
            memset(weights, 0, sizeof weights);
            for (int i = 0; i < 16 * 64; i++) {
                weights[i] = sizes[k] * (float)(2 * random_uniform() - 1);
                weights[i] = i % 64 == 5 ? sizes[k] : i % 64 == 6 ? 1e-20f * sizes[k] : weights[i];
            }
            CHECK(pack_fits(weights, 16 * 64, (mamba_type)type));
            pack(64, (mamba_type)type);
            for (int i = 0; i < 16 * 64; i++) {
                double v = spec_value((mamba_type)type, i / 64, i % 64), s = (double)spec_scale((mamba_type)type, i / 64, i % 64);
                double slack = size < 1e-30 ? size : 0;   /* below 2^-100 everything is zero */
                bad += !(fabs(s) <= 1000) || !(fabs((double)weights[i] - v) <= 1.04 * step + slack);
            }
            CHECK_INT(bad, 0);
        }
    }
}

TEST(refused_values)
{
    static const float limits[] = {3.4e38f, 65504.0f, 3.3e38f, 1000.0f, 1000.0f, 1000.0f};
    for (int type = 0; type < 6; type++) {
        float x[3] = {0, 0, 0};
        const float bad[] = {NAN, INFINITY, -INFINITY, limits[type] * 1.05f};
        x[1] = -limits[type];
        CHECK(pack_fits(x, 3, (mamba_type)type));
        for (int i = 0; i < 4; i++) {
            x[1] = bad[i];
            CHECK(!pack_fits(x, 3, (mamba_type)type));
        }
    }
}

/* ---- the tools ----------------------------------------------------------------------------------------------- */

static char folder[64];
static char said[4096];      /* what a tool printed */

static const char *at(const char *name)
{
    static char paths[4][1400];
    static int next;
    next = (next + 1) % 4;
    (void)snprintf(paths[next], sizeof paths[next], "%s/%s", folder, name);
    return paths[next];
}

static const char *golden_path(const char *name)
{
    static char path[400];
    const char *root = getenv("MAMBA_GOLDEN");
    (void)snprintf(path, sizeof path, "%s/%s", root != NULL ? root : "tests/golden", name);
    return path;
}

/* Runs a tool; its exit code. Words are separated by single spaces; stderr goes to `said`. */
static int tool(int (*tool_main)(int, char **), const char *words)
{
    static char text[2000];
    char *argv[16];
    int argc = 0, code, saved;
    FILE *f = fopen(at("stderr"), "w+b");
    size_t n;
    (void)snprintf(text, sizeof text, "tool %s", words);
    for (char *p = strtok(text, " "); p != NULL && argc < 15; p = strtok(NULL, " ")) {
        argv[argc++] = p;
    }
    argv[argc] = NULL;
    (void)fflush(stderr);
    saved = dup(2);
    if (f == NULL || saved < 0 || dup2(fileno(f), 2) < 0) {
        return -1;
    }
    pr_stop = 0;
    code = tool_main(argc, argv);
    (void)fflush(stderr);
    (void)dup2(saved, 2);
    (void)close(saved);
    rewind(f);
    n = fread(said, 1, sizeof said - 1, f);
    said[n] = 0;
    (void)fclose(f);
    return code;
}

static int convert(const char *checkpoint, const char *out, const char *type)
{
    char words[1200];
    (void)snprintf(words, sizeof words, "-q %s -o %s%s%s", golden_path(checkpoint), at(out), *type ? " --type " : "",
                   type);
    return tool(convert_main, words);
}

static int quantize(const char *in, const char *out, const char *options)
{
    char words[1200];
    (void)snprintf(words, sizeof words, "-q %s -o %s %s", at(in), at(out), options);
    return tool(quantize_main, words);
}

static char *read_file(const char *name, size_t *n)
{
    tl_error err;
    char *data = NULL;
    memset(&err, 0, sizeof err);
    (void)tl_read_all(at(name), 1u << 28, &data, n, &err);
    return data;
}

static void write_file(const char *name, const char *data, size_t n)
{
    FILE *f = fopen(at(name), "wb");
    CHECK(f != NULL && fwrite(data, 1, n, f) == n);
    if (f != NULL) {
        (void)fclose(f);
    }
}

static int same_files(const char *a, const char *b)
{
    size_t n = 0, m = 0;
    char *x = read_file(a, &n), *y = read_file(b, &m);
    int same = x != NULL && y != NULL && n == m && memcmp(x, y, n) == 0;
    free(x);
    free(y);
    return same;
}

static int exists(const char *name)
{
    struct stat st;
    return stat(at(name), &st) == 0;
}

/* What the checkpoint's own type becomes through mamba-quantize is what mamba-convert makes of it directly. */
TEST(same_as_convert)
{
    static const char *const models[] = {"mamba1-base", "mamba1-odd", "mamba1-bf16", "mamba1-f16", "mamba1-untied",
                                         "mamba1-tales", "falcon-mamba", "mamba2-groups", "mamba2-normfirst"};
    static const char *const types[] = {"f16", "bf16", "q8", "q6", "q4"};
    for (size_t i = 0; i < sizeof models / sizeof models[0]; i++) {
        CHECK_INT(convert(models[i], "stored", ""), 0);
        for (int k = strstr(models[i], "16") || strstr(models[i], "tales") ? 2 : 0; k < 5; k++) {
            char options[32];
            (void)snprintf(options, sizeof options, "--type %s", types[k]);
            CHECK_INT(convert(models[i], "direct", types[k]), 0);
            CHECK_INT(quantize("stored", "through", options), 0);
            if (!same_files("direct", "through")) {
                test_fail(__FILE__, __LINE__, models[i]);
            }
        }
    }
}

static mamba_model *open_model(const char *name)
{
    mamba_config cfg;
    mamba_model *m = NULL;
    mamba_error e;
    const char *path = at(name);
    memset(&cfg, 0, sizeof cfg);
    cfg.check = MAMBA_CHECK_ALL;
    CHECK_INT(mamba_open(path, strlen(path), &cfg, &m, &e), MAMBA_OK);
    return m;
}

/* q8 to f32 and back loses nothing; q8 to q4 works; the tokenizer travels. */
TEST(chains)
{
    mamba_model *a, *b;
    uint64_t n = 0, k = 0;
    const void *p, *q;
    REQUIRE(convert("mamba1-tales", "q8", "q8") == 0);
    CHECK_INT(quantize("q8", "f32", "--type f32 --larger"), 0);
    CHECK_INT(quantize("f32", "back", "--type q8"), 0);
    CHECK_INT(quantize("q8", "q4", "--type q4"), 0);
    a = open_model("q8");
    b = open_model("q4");
    REQUIRE(a != NULL && b != NULL);
    CHECK(b->bytes.bytes < a->bytes.bytes * 2 / 3);
    p = mamba_model_section(a, "tokenizer", 9, &n);
    q = mamba_model_section(b, "tokenizer", 9, &k);
    CHECK(n > 0 && n == k && p != NULL && q != NULL && memcmp(p, q, (size_t)n) == 0);
    mamba_close(b);
    b = open_model("back");
    REQUIRE(b != NULL && a->n_tensors == b->n_tensors);
    for (int i = 0; i < a->n_tensors; i++) {
        const mbi_tensor *t = &a->tensors[i], *u = &b->tensors[i];
        if (t->layout == MBI_LAYOUT_PANELS && t->type == MAMBA_Q8) {
            CHECK(u->type == MAMBA_Q8 &&
                  memcmp(a->bytes.data + t->offset, b->bytes.data + u->offset, (size_t)t->bytes) == 0);
        }
    }
    mamba_close(a);
    mamba_close(b);
}

/* q4 spends at most 4.7 bits on average, and spends them on the first layer and the first rows of the embedding. */
TEST(q4_average)
{
    static const char *const models[] = {"mamba1-tales", "mamba1-base", "mamba2-base"};
    for (int k = 0; k < 3; k++) {
        double w = 0, bits = 0;
        int raised = 0;
        mamba_model *m;
        REQUIRE(convert(models[k], "q4", "q4") == 0);
        m = open_model("q4");
        REQUIRE(m != NULL);
        for (int i = 0; i < m->n_tensors; i++) {
            const mbi_tensor *t = &m->tensors[i];
            if (t->layout == MBI_LAYOUT_PANELS && t->type >= MAMBA_Q8) {
                w += (double)t->rows * t->cols;
                bits += 8.0 * (double)t->bytes;
                raised += t->type != MAMBA_Q4;
            }
            if (k == 0 && strncmp(t->name, "layer.00000.", 12) == 0 && strstr(t->name, "t_proj") == NULL &&
                t->layout == MBI_LAYOUT_PANELS) {
                CHECK_INT(t->type, MAMBA_Q6);
            }
            if (k == 0 && strcmp(t->name, "embedding") == 0) {
                CHECK_INT(t->type, MAMBA_Q6);
                CHECK(t->rows >= 2000 && t->rows % 16 == 0);
            }
            if (strstr(t->name, "dt_proj") != NULL || strstr(t->name, "dt_in") != NULL) {
                CHECK(t->type < MAMBA_Q8);
            }
        }
        /* in matrices of few columns the padding alone takes more: nothing is raised there */
        CHECK(w > 0 && bits / w >= (k == 0 ? 4.69 : 4.25) && (bits / w <= 4.7 || raised == 0));
        mamba_close(m);
    }
}

TEST(refused_commands)
{
    REQUIRE(convert("mamba1-base", "q8", "q8") == 0);
    CHECK_INT(quantize("q8", "out", "--type bf16"), 2);
    CHECK_CONTAINS(said, "--larger");
    CHECK_INT(quantize("q8", "out", "--type q8"), 2);
    CHECK_CONTAINS(said, "already");
    CHECK_INT(quantize("q8", "q8", "--type q4"), 2);
    CHECK_CONTAINS(said, "is the input");
    CHECK_INT(quantize("q8", "out", "--type q5"), 2);
    CHECK_INT(quantize("q8", "out", ""), 2);
    CHECK_INT(quantize("q8", "out", "--type q4 --fast"), 2);
    CHECK_INT(quantize("q8", "out", "--type q4 third"), 2);
    CHECK_INT(quantize("q8", "", "--type q4"), 2);
    CHECK_INT(quantize("missing", "out", "--type q4"), 1);
    CHECK_INT(quantize("q8", "no/folder", "--type q4"), 1);
    CHECK(!exists("out"));
}

/* The hashes of a .mamba file, after something in it changed. */
static void seal(char *file, size_t n)
{
    uint64_t meta, hash;
    memcpy(&meta, file + 24, 8);
    hash = mbi_hash_bytes((const unsigned char *)file + meta, n - (size_t)meta);
    memcpy(file + 40, &hash, 8);
    hash = mbi_hash_bytes((const unsigned char *)file + 40, (size_t)meta - 40);
    memcpy(file + 32, &hash, 8);
}

/* Logits of a few tokens from everywhere in the vocabulary, on a target that computes in floats. */
static float *logits_of(const char *name, const char *target, size_t *n)
{
    static const int32_t tokens[] = {4095, 1, 300, 2500, 0, 3231, 3232, 3233, 3248, 700, 4000};
    mamba_config cfg;
    mamba_model *m = NULL;
    mamba_state *s = NULL;
    mamba_error e;
    float *logits = NULL;
    const char *path = at(name);
    memset(&cfg, 0, sizeof cfg);
    cfg.target = mamba_target_find(target, strlen(target));
    if (mamba_open(path, strlen(path), &cfg, &m, &e) == MAMBA_OK && mamba_state_create(m, NULL, &s, &e) == MAMBA_OK) {
        *n = m->config.n_vocab;
        logits = (float *)malloc(*n * sizeof(float));
        if (logits == NULL || mamba_prefill(s, tokens, sizeof tokens / sizeof tokens[0], logits, *n, &e) != MAMBA_OK) {
            free(logits);
            logits = NULL;
        }
    }
    mamba_state_free(s);
    mamba_close(m);
    return logits;
}

/* A q4 file with its vocabulary in two parts says bit for bit what the same numbers say as floats. */
TEST(q4_is_its_floats)
{
    static const char *const targets[] = {"scalar", "avx2", "avx512", "neon"};
    REQUIRE(convert("mamba1-tales", "q4", "q4") == 0);
    REQUIRE(quantize("q4", "f32", "--type f32 --larger") == 0);
    for (size_t k = 0; k < sizeof targets / sizeof targets[0]; k++) {
        size_t n = 0, m = 0;
        const mamba_target *t = mamba_target_find(targets[k], strlen(targets[k]));
        if (t != NULL && mamba_target_usable(t)) {
            float *a = logits_of("q4", targets[k], &n), *b = logits_of("f32", targets[k], &m);
            CHECK(a != NULL && b != NULL && n == 4096 && n == m && memcmp(a, b, n * sizeof(float)) == 0);
            free(a);
            free(b);
        }
    }
}

/* The file again with `embedding_rest`, a matrix of floats, in bf16 (its bytes: the first half of what was there). */
static size_t shrink_rest(const char *file, char *out)
{
    uint64_t meta, end, bytes, table = 0;
    uint32_t n_tensors = 0;
    memcpy(&meta, file + 24, 8);
    for (size_t i = 0; table == 0; i++) {
        const char *section = file + 64 + 32 * i;
        if (strcmp(section, "tensors") == 0) {
            memcpy(&table, section + 16, 8);
            memcpy(&bytes, section + 24, 8);
            n_tensors = (uint32_t)(bytes / sizeof(mbi_tensor));
        }
    }
    memcpy(out, file, (size_t)meta);
    end = meta;
    for (uint32_t i = 0; i < n_tensors; i++) {
        mbi_tensor *t = (mbi_tensor *)(void *)(out + table) + i;
        uint64_t from = t->offset;
        if (strcmp(t->name, "embedding_rest") == 0) {
            t->type = MAMBA_BF16;
            t->bytes /= 2;
        }
        t->offset = end;
        memset(out + end, 0, (size_t)mbi_pad(t->bytes, 64));
        memcpy(out + end, file + from, (size_t)t->bytes);
        end += mbi_pad(t->bytes, 64);
    }
    memcpy(out + 16, &end, 8);
    seal(out, (size_t)end);
    return (size_t)end;
}

/* Parts of the vocabulary that don't fit together. */
TEST(vocabulary_refused)
{
    size_t n = 0;
    char *data, *copy;
    mamba_error e;
    char text[400];
    uint64_t config;
    REQUIRE(convert("mamba1-tales", "q4", "q4") == 0);
    REQUIRE(quantize("q4", "f32", "--type f32 --larger") == 0);
    data = read_file("q4", &n);
    copy = (char *)malloc(1u << 25);
    REQUIRE(data != NULL && copy != NULL && n < 1u << 25);
    memcpy(&config, data + 64 + 16, 8);
    for (int k = 0; k < 3; k++) {
        static const uint32_t sizes[] = {4090, 864, 4112};   /* not in whole panels; no first part; one panel too many */
        mamba_model *m = NULL;
        memcpy(copy, data, n);
        memcpy(copy + config + 8, &sizes[k], 4);
        memcpy(copy + config + 12, &sizes[k], 4);
        seal(copy, n);
        CHECK(mamba_open_memory(copy, n, NULL, &m, &e) == MAMBA_ERR_FORMAT && m == NULL);
        mamba_error_text(&e, text, sizeof text);
        CHECK_CONTAINS(text, k < 2 ? "multiple of 16" : "embedding");
        mamba_close(m);
    }
    free(data);
    data = read_file("f32", &n);
    REQUIRE(data != NULL);
    {
        mamba_model *m = NULL;
        size_t bytes = shrink_rest(data, copy);
        CHECK(mamba_open_memory(copy, bytes, NULL, &m, &e) == MAMBA_ERR_FORMAT && m == NULL);
        mamba_error_text(&e, text, sizeof text);
        CHECK_CONTAINS(text, "both parts must be quantized or of the same type");
        mamba_close(m);
    }
    free(data);
    free(copy);
}

/* MAMBA_CHECK_FINITE finds a base that is no number. */
TEST(base_not_finite)
{
    size_t n = 0;
    char *data;
    uint32_t word = 0x7f800000u;
    mamba_config cfg;
    mamba_model *m = NULL;
    mamba_error e;
    const mbi_tensor *t;
    REQUIRE(convert("mamba1-tales", "q4", "q4") == 0);
    data = read_file("q4", &n);
    REQUIRE(data != NULL && mamba_open_memory(data, n, NULL, &m, &e) == MAMBA_OK);
    t = &m->tensors[1];
    CHECK(strcmp(t->name, "embedding_rest") == 0 && t->type == MAMBA_Q4);
    memcpy(data + t->offset + t->bytes - mbi_bases_bytes(MAMBA_Q4, t->rows / 16) + 4, &word, 4);
    mamba_close(m);
    m = NULL;
    seal(data, n);
    memset(&cfg, 0, sizeof cfg);
    cfg.check = MAMBA_CHECK_FINITE;
    CHECK_INT(mamba_open_memory(data, n, &cfg, &m, &e), MAMBA_ERR_NONFINITE);
    mamba_close(m);
    free(data);
}

/* A damaged input: each must be refused, without a file left behind. */
TEST(hostile_inputs)
{
    size_t n = 0;
    char *data, *copy;
    REQUIRE(convert("mamba1-base", "f32", "f32") == 0);
    data = read_file("f32", &n);
    copy = (char *)malloc(n);
    REQUIRE(data != NULL && copy != NULL);
    write_file("bad", data, n - 1);
    CHECK_INT(quantize("bad", "out", "--type q8"), 1);
    write_file("bad", data, 100);
    CHECK_INT(quantize("bad", "out", "--type q8"), 1);
    write_file("bad", "", 0);
    CHECK_INT(quantize("bad", "out", "--type q8"), 1);
    memcpy(copy, data, n);
    copy[n - 65] = (char)(copy[n - 65] ^ 1);
    write_file("bad", copy, n);
    CHECK_INT(quantize("bad", "out", "--type q8"), 1);
    CHECK_CONTAINS(said, "checksum");
    for (int k = 0; k < 2; k++) {   /* a NaN or infinity with good checksums */
        const uint32_t word = k == 0 ? 0x7fc00000u : 0xff800000u;
        uint64_t meta;
        memcpy(copy, data, n);
        memcpy(&meta, copy + 24, 8);
        memcpy(copy + meta + 4096, &word, 4);
        seal(copy, n);
        write_file("bad", copy, n);
        CHECK_INT(quantize("bad", "out", "--type q8"), 1);
        CHECK_CONTAINS(said, "not finite");
    }
    CHECK(!exists("out"));
    free(data);
    free(copy);
}

static int stop_at_once(int argc, char **argv)
{
    pr_stop = 1;   /* as Ctrl-C would */
    return quantize_main(argc, argv);
}

TEST(interrupted)
{
    char words[1200];
    REQUIRE(convert("mamba1-base", "f32", "f32") == 0);
    (void)snprintf(words, sizeof words, "-q %s -o %s --type q8", at("f32"), at("out"));
    CHECK_INT(tool(stop_at_once, words), 1);
    CHECK_CONTAINS(said, "interrupted");
    CHECK(!exists("out"));
    (void)snprintf(words, sizeof words, "out.%ld.tmp", (long)getpid());
    CHECK(!exists(words));
}

TEST_MAIN("quant")
{
    static const char *const leftovers[] = {"stderr", "stored", "direct", "through", "q8", "q4", "f32", "back", "bad"};
    (void)snprintf(folder, sizeof folder, "/tmp/mamba-quant-XXXXXX");
    if (mkdtemp(folder) == NULL) {
        test_fail(__FILE__, __LINE__, "no folder below /tmp");
        return;
    }
    RUN(f16_all_values);
    RUN(f16_ties);
    RUN(bf16_ties);
    RUN(layout_and_error);
    RUN(q4_search);
    RUN(q8_and_q6_error);
    RUN(rows_of_every_size);
    RUN(zeros);
    RUN(huge_and_tiny);
    RUN(refused_values);
    RUN(same_as_convert);
    RUN(chains);
    RUN(q4_average);
    RUN(refused_commands);
    RUN(q4_is_its_floats);
    RUN(vocabulary_refused);
    RUN(base_not_finite);
    RUN(hostile_inputs);
    RUN(interrupted);
    for (size_t i = 0; i < sizeof leftovers / sizeof leftovers[0]; i++) {
        (void)unlink(at(leftovers[i]));
    }
    (void)rmdir(folder);
}
