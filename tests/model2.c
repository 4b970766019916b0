/*  model2.c: Mamba-2, gated MLP and attention layers.  The golden checkpoints mamba2-*, and
 *  checkpoints that this program draws at random in geometries that no published model has,
 *  against a forward pass in double that is written from the formulas below and knows nothing of
 *  blocks, padding, chunks or caches; on every target. And that neither the cut of the prompt, nor
 *  threads, nor save, restore and fork change a bit. The converter is compiled in and run on the
 *  written folders.
 */
static int short_region; /* 0: what the threads do is dealt out, as for large models */
#define MBI_SHORT_REGION short_region

int cv_main(int argc, char **argv);
#define main cv_main
#include "../tools/convert.c"
#undef main

#include "golden.h"
#include "test.h"

#ifndef BUILD_DIR
#define BUILD_DIR "build"
#endif

static const mamba_target *target;

/* ---- models and states ----------------------------------------------------------------------- */

static float *floats(size_t n) {
    float *p = (float *)calloc(n + 1, sizeof(float));
    if (p == NULL) {
        golden_die("model2", "out of memory");
    }
    return p;
}

static double *doubles(size_t n) {
    double *p = (double *)calloc(n + 1, sizeof(double));
    if (p == NULL) {
        golden_die("model2", "out of memory");
    }
    return p;
}

static mamba_model *open_path(const char *path) {
    mamba_config c;
    mamba_model *m = NULL;
    mamba_error err;
    memset(&c, 0, sizeof c);
    c.target = target;
    c.n_threads = 1;
    c.memory.alloc = golden_alloc;
    c.memory.free = golden_free;
    if (mamba_open(path, strlen(path), &c, &m, &err) != MAMBA_OK) {
        char text[600];
        mamba_error_text(&err, text, sizeof text);
        golden_die(path, text);
    }
    return m;
}

static mamba_state *new_state(const mamba_model *m, int n_threads, int chunk, int max_tokens) {
    mamba_state_options o;
    mamba_state *s = NULL;
    memset(&o, 0, sizeof o);
    o.n_threads = n_threads;
    o.prefill_chunk = chunk;
    o.max_tokens = max_tokens;
    if (mamba_state_create(m, &o, &s, NULL) != MAMBA_OK) {
        golden_die("state", "can't create");
    }
    return s;
}

static size_t vocab_of(const mamba_model *m) {
    mamba_info info;
    mamba_model_info(m, &info);
    return (size_t)info.n_vocab;
}

static mamba_status run_all(mamba_state *s, const int32_t *tokens, size_t n, float *logits,
                            size_t n_vocab) {
    mamba_io io;
    memset(&io, 0, sizeof io);
    io.tokens = tokens;
    io.n = n;
    io.want_logits = MAMBA_WANT_ALL;
    io.logits = logits;
    io.n_logits = n * n_vocab;
    return mamba_run(s, &io, NULL);
}

static float *logits_of(const mamba_model *m, const int32_t *tokens, size_t n, int n_threads,
                        int chunk) {
    mamba_state *s = new_state(m, n_threads, chunk, 0);
    float *out = floats(n * vocab_of(m));
    CHECK_INT(run_all(s, tokens, n, out, vocab_of(m)), MAMBA_OK);
    mamba_state_free(s);
    return out;
}

static double deviation(const float *x, size_t n) {
    double sum = 0.0, squares = 0.0;
    for (size_t i = 0; i < n; i++) {
        sum += (double)x[i];
        squares += (double)x[i] * (double)x[i];
    }
    return sqrt(squares / (double)n - sum / (double)n * (sum / (double)n));
}

static int same(const float *a, const float *b, size_t n) {
    return memcmp(a, b, n * sizeof(float)) == 0;
}

static int32_t argmax(const float *x, size_t n) {
    size_t best = 0;
    for (size_t i = 1; i < n; i++) {
        best = x[i] > x[best] ? i : best;
    }
    return (int32_t)best;
}

/* Other cuts of the prompt, other numbers of threads, single steps, a snapshot and a fork in the
 * middle: the same bits as `expected`, the logits of all tokens by one call of one thread. */
static void check_bits(const mamba_model *m, const int32_t *tokens, size_t n,
                       const float *expected) {
    static const int chunks[] = {1, 7, 16, 33, 4096}, threads[] = {2, 3};
    size_t V = vocab_of(m), half = n / 2;
    float *got = floats(n * V);
    mamba_state *s = new_state(m, 1, 64, (int)n), *t = new_state(m, 2, 5, (int)n + 3);
    size_t bytes, written = 0;
    void *snapshot;
    for (int i = 0; i < 5; i++) {
        float *other = logits_of(m, tokens, n, 1, chunks[i]);
        CHECK(same(other, expected, n * V));
        free(other);
    }
    for (int i = 0; i < 2; i++) {
        float *other = logits_of(m, tokens, n, threads[i], 50);
        CHECK(same(other, expected, n * V));
        free(other);
    }
    for (size_t i = 0; i < n; i++) {
        CHECK_INT(mamba_step(s, tokens[i], got + i * V, V, NULL), MAMBA_OK);
    }
    CHECK(same(got, expected, n * V));
    mamba_state_reset(s);
    CHECK_INT(run_all(s, tokens, half, got, V), MAMBA_OK);
    bytes = mamba_state_save_bytes(s);
    snapshot = malloc(bytes);
    REQUIRE(snapshot != NULL);
    CHECK_INT(mamba_state_save(s, snapshot, bytes, &written, NULL), MAMBA_OK);
    CHECK_INT(written, bytes);
    CHECK_INT(mamba_state_restore(t, snapshot, bytes, NULL), MAMBA_OK);
    CHECK_INT(run_all(t, tokens + half, n - half, got + half * V, V), MAMBA_OK);
    CHECK(same(got, expected, n * V));
    memset(got + half * V, 0, (n - half) * V * sizeof(float));
    CHECK_INT(mamba_state_copy(t, s, NULL), MAMBA_OK);
    CHECK_INT(run_all(t, tokens + half, n - half, got + half * V, V), MAMBA_OK);
    CHECK(same(got, expected, n * V));
    free(snapshot);
    free(got);
    mamba_state_free(s);
    mamba_state_free(t);
}

/* The chunked form of Mamba-2 layers: near `expected`, in units of its deviation, and threads
 * change no bit; also in turn with single tokens, which take the recurrence. */
static void check_chunked(const mamba_model *m, const int32_t *tokens, size_t n,
                          const float *expected, double bound) {
    size_t V = vocab_of(m);
    mamba_state_options o;
    float *got[3];
    double worst = 0.0;
    for (int i = 0; i < 3; i++) {
        mamba_state *s = NULL;
        memset(&o, 0, sizeof o);
        o.n_threads = 1 + 2 * i;
        o.time_chunk = 64;
        got[i] = floats(n * V);
        CHECK_INT(mamba_state_create(m, &o, &s, NULL), MAMBA_OK);
        for (size_t at = 0; at < n;) {
            size_t part = i < 2 ? n : at % 3 == 0 ? 5 : 1;
            part = part < n - at ? part : n - at;
            CHECK_INT(run_all(s, tokens + at, part, got[i] + at * V, V), MAMBA_OK);
            at += part;
        }
        mamba_state_free(s);
    }
    CHECK(same(got[0], got[1], n * V));
    for (size_t i = 0; i < n * V; i++) {
        double d = fabs((double)got[0][i] - (double)expected[i]);
        double e = fabs((double)got[2][i] - (double)expected[i]);
        worst = d > worst || !(d == d) ? d : worst;
        worst = e > worst || !(e == e) ? e : worst;
    }
    CHECK_NEAR(worst / deviation(expected, n * V), 0.0, bound);
    for (int i = 0; i < 3; i++) {
        free(got[i]);
    }
}

/* ---- golden checkpoints ---------------------------------------------------------------------- */

static const char *const golden_names[] = {
    "mamba2-base",    "mamba2-long",  "mamba2-original",  "mamba2-original-long", "mamba2-groups",
    "mamba2-dtlimit", "mamba2-dhdim", "mamba2-normfirst", "mamba2-nonorm",        "mamba2-dssm"};
enum { N_GOLDEN = sizeof golden_names / sizeof golden_names[0] };

static void check_golden(const char *name) {
    char path[300];
    golden g;
    golden_tensor ids, logits, greedy;
    mamba_model *m;
    size_t B, L, V;
    double bound, worst = 0.0;
    (void)snprintf(path, sizeof path, "tests/golden/%s/expected.safetensors", name);
    g = golden_open(path);
    ids = golden_get(&g, "input_ids");
    logits = golden_get(&g, "logits");
    greedy = golden_get(&g, "greedy");
    (void)snprintf(path, sizeof path, BUILD_DIR "/golden/%s.mamba", name);
    m = open_path(path);
    REQUIRE(logits.rank == 3 && ids.rank == 2);
    B = logits.shape[0];
    L = logits.shape[1];
    V = logits.shape[2];
    CHECK_INT(vocab_of(m), V);
    bound = 1e-4 * deviation(logits.u.f, logits.n);
    for (size_t b = 0; b < B; b++) {
        float *got = logits_of(m, ids.u.i + b * L, L, 1, 0);
        for (size_t i = 0; i < L * V; i++) {
            double d = fabs((double)got[i] - (double)logits.u.f[b * L * V + i]);
            worst = d > worst || !(d == d) ? d : worst;
        }
        if (b == 0) {
            check_bits(m, ids.u.i, L, got);
            check_chunked(m, ids.u.i, L, logits.u.f, 1e-4);
        }
        free(got);
    }
    test_near(worst, 0.0, bound, __FILE__, __LINE__, name);
    if (greedy.n != 0) {
        mamba_state *s = new_state(m, 1, 0, 0);
        float *one = floats(V);
        CHECK_INT(mamba_prefill(s, ids.u.i, L, one, V, NULL), MAMBA_OK);
        for (size_t i = 0; i < greedy.n; i++) {
            int32_t token = argmax(one, V);
            CHECK_INT(token, greedy.u.i[i]);
            CHECK_INT(mamba_step(s, token, one, V, NULL), MAMBA_OK);
        }
        free(one);
        mamba_state_free(s);
    }
    free(ids.u.p);
    free(logits.u.p);
    free(greedy.u.p);
    golden_close(&g);
    mamba_close(m);
}

static void every_target(void (*test)(void)) {
    for (int i = 0; mamba_target_at(i) != NULL; i++) {
        target = mamba_target_at(i);
        if (mamba_target_usable(target)) {
            test();
        }
    }
    target = NULL;
}

static void golden_all(void) {
    for (int i = 0; i < N_GOLDEN; i++) {
        check_golden(golden_names[i]);
    }
}

TEST(golden_logits) {
    every_target(golden_all);
}

/* ---- random checkpoints ---------------------------------------------------------------------- */

typedef struct {
    const char *config; /* the rest of config.json */
    int d, n_layers, vocab, d_mlp;
    unsigned attention; /* bit i: layer i is one */
    int d_inner, d_ssm, d_state, headdim, n_groups, d_conv;
    int norm, norm_first, D_channel, bias, conv_bias;
    double dt_lo, dt_hi;
    int heads, kv, hd, rotary, adjacent, attn_conv, attn_mlp, qkv_bias;
    double scale;
    const char *prefix; /* of the tensors' names */
    int mistral;
} net;

typedef struct {
    char name[96];
    size_t shape[3], n;
    int rank;
    float *data;
} weight;

typedef struct {
    weight list[200];
    int n;
    uint64_t seed;
} weights;

static double uniform(uint64_t *seed) /* in [-1, 1) */
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(int32_t)(*seed >> 32) / 2147483648.0;
}

static void draw(weights *w, const char *prefix, const char *name, size_t a, size_t b, size_t c,
                 double middle, double spread) {
    weight *t = &w->list[w->n++];
    memset(t, 0, sizeof *t);
    (void)snprintf(t->name, sizeof t->name, "%s%s", prefix, name);
    t->shape[0] = a;
    t->shape[1] = b;
    t->shape[2] = c;
    t->rank = c != 0 ? 3 : b != 0 ? 2 : 1;
    t->n = a * (b != 0 ? b : 1) * (c != 0 ? c : 1);
    t->data = floats(t->n);
    for (size_t i = 0; i < t->n; i++) {
        t->data[i] = (float)(middle + spread * uniform(&w->seed));
    }
}

static const float *find(const weights *w, const net *net_, int layer, const char *name) {
    char full[160];
    if (layer >= 0) {
        (void)snprintf(full, sizeof full, "%sbackbone.layers.%d.%s", net_->prefix, layer, name);
    } else {
        (void)snprintf(full, sizeof full, "%s%s", net_->prefix, name);
    }
    for (int i = 0; i < w->n; i++) {
        if (strcmp(w->list[i].name, full) == 0) {
            return w->list[i].data;
        }
    }
    return NULL;
}

static void draw_all(const net *n, weights *w) {
    size_t d = (size_t)n->d;
    char p[96];
    memset(w, 0, sizeof *w);
    w->seed = 7 + (uint64_t)n->d;
    draw(w, n->prefix, "backbone.embedding.weight", (size_t)n->vocab, d, 0, 0, 1);
    draw(w, n->prefix, "backbone.norm_f.weight", d, 0, 0, 1, 0.3);
    draw(w, n->prefix, "lm_head.weight", (size_t)n->vocab, d, 0, 0, 0.5);
    for (int i = 0; i < n->n_layers; i++) {
        (void)snprintf(p, sizeof p, "%sbackbone.layers.%d.", n->prefix, i);
        draw(w, p, "norm.weight", d, 0, 0, 1, 0.3);
        if (n->attention >> i & 1) {
            size_t q = (size_t)(n->heads * n->hd), qkv = q + 2 * (size_t)(n->kv * n->hd);
            size_t rows = qkv + 2 * (size_t)n->attn_mlp;
            draw(w, p, "mixer.in_proj.weight", rows, d, 0, 0, 0.5);
            draw(w, p, "mixer.out_proj.weight", d, q + (size_t)n->attn_mlp, 0, 0, 0.3);
            if (n->qkv_bias) {
                draw(w, p, "mixer.in_proj.bias", rows, 0, 0, 0, 0.5);
                draw(w, p, "mixer.out_proj.bias", d, 0, 0, 0, 0.5);
            }
            if (n->attn_conv != 0) {
                draw(w, p, "mixer.conv1d.weight", qkv, 1, (size_t)n->attn_conv, 0, 0.7);
                draw(w, p, "mixer.conv1d.bias", qkv, 0, 0, 0, 0.2);
            }
        } else {
            size_t bc = (size_t)(n->n_groups * n->d_state), H = (size_t)(n->d_ssm / n->headdim);
            size_t channels = (size_t)n->d_ssm + 2 * bc, rows = 2 * (size_t)n->d_inner + 2 * bc + H;
            draw(w, p, "mixer.in_proj.weight", rows, d, 0, 0, 0.5);
            draw(w, p, "mixer.conv1d.weight", channels, 1, (size_t)n->d_conv, 0, 0.7);
            draw(w, p, "mixer.dt_bias", H, 0, 0, -2, 2);
            draw(w, p, "mixer.A_log", H, 0, 0, 1, 1);
            draw(w, p, "mixer.D", n->D_channel ? (size_t)n->d_ssm : H, 0, 0, 1, 0.5);
            draw(w, p, "mixer.out_proj.weight", d, (size_t)n->d_inner, 0, 0, 0.3);
            if (n->norm) {
                draw(w, p, "mixer.norm.weight", (size_t)n->d_ssm, 0, 0, 1, 0.3);
            }
            if (n->bias) {
                draw(w, p, "mixer.in_proj.bias", rows, 0, 0, 0, 0.5);
                draw(w, p, "mixer.out_proj.bias", d, 0, 0, 0, 0.5);
            }
            if (n->conv_bias) {
                draw(w, p, "mixer.conv1d.bias", channels, 0, 0, 0, 0.3);
            }
        }
        if (n->d_mlp != 0) {
            draw(w, p, "norm2.weight", d, 0, 0, 1, 0.3);
            draw(w, p, "mlp.fc1.weight", 2 * (size_t)n->d_mlp, d, 0, 0, 0.4);
            draw(w, p, "mlp.fc2.weight", d, (size_t)n->d_mlp, 0, 0, 0.2);
        }
    }
}

static void put(FILE *f, const void *p, size_t n) {
    if (fwrite(p, 1, n, f) != n) {
        golden_die("model2", "can't write");
    }
}

static void write_checkpoint(const net *n, const weights *w, const char *folder) {
    char path[400], *json = (char *)malloc(200 * 200);
    uint64_t length = 0, at = 0;
    FILE *f;
    if (json == NULL) {
        golden_die("model2", "out of memory");
        return;
    }
    length = (uint64_t)sprintf(json, "{");
    for (int i = 0; i < w->n; i++) {
        const weight *t = &w->list[i];
        length += (uint64_t)sprintf(json + length, "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[%lu",
                                    i ? "," : "", t->name, (unsigned long)t->shape[0]);
        for (int k = 1; k < t->rank; k++) {
            length += (uint64_t)sprintf(json + length, ",%lu", (unsigned long)t->shape[k]);
        }
        length += (uint64_t)sprintf(json + length, "],\"data_offsets\":[%lu,%lu]}",
                                    (unsigned long)at, (unsigned long)(at + 4 * t->n));
        at += 4 * t->n;
    }
    length += (uint64_t)sprintf(json + length, "}");
    (void)mkdir(folder, 0777);
    (void)snprintf(path, sizeof path, "%s/%s", folder,
                   n->mistral ? "consolidated.safetensors" : "model.safetensors");
    f = fopen(path, "wb");
    if (f == NULL) {
        golden_die(path, "can't write");
        return;
    }
    put(f, &length, 8);
    put(f, json, (size_t)length);
    for (int i = 0; i < w->n; i++) {
        put(f, w->list[i].data, 4 * w->list[i].n);
    }
    (void)fclose(f);
    (void)snprintf(path, sizeof path, "%s/%s", folder, n->mistral ? "params.json" : "config.json");
    f = fopen(path, "wb");
    if (f == NULL) {
        golden_die(path, "can't write");
        return;
    }
    put(f, n->config, strlen(n->config));
    (void)fclose(f);
    free(json);
}

/* ---- the forward pass in double -------------------------------------------------------------- */

static double ref_softplus(double x) {
    return x > 20.0 ? x : log1p(exp(x));
}

static double ref_silu(double x) {
    return x / (1.0 + exp(-x));
}

/* y (T, rows) = x (T, cols) W^T + b */
static double *linear(const double *x, const float *W, const float *b, int T, int rows, int cols) {
    double *y = doubles((size_t)T * (size_t)rows);
    for (int t = 0; t < T; t++) {
        for (int o = 0; o < rows; o++) {
            double sum = b != NULL ? (double)b[o] : 0.0;
            for (int i = 0; i < cols; i++) {
                sum += (double)W[(size_t)o * (size_t)cols + (size_t)i] *
                       x[(size_t)t * (size_t)cols + (size_t)i];
            }
            y[(size_t)t * (size_t)rows + (size_t)o] = sum;
        }
    }
    return y;
}

/* In blocks of `block`, rows of n with stride. */
static void norm_rows(double *x, const float *w, int T, int stride, int n, int block) {
    for (int t = 0; t < T; t++) {
        for (int start = 0; start < n; start += block) {
            double *row = x + (size_t)t * (size_t)stride + start, sum = 0.0;
            for (int i = 0; i < block; i++) {
                sum += row[i] * row[i];
            }
            for (int i = 0; i < block; i++) {
                row[i] *= (double)w[start + i] / sqrt(sum / block + 1e-5);
            }
        }
    }
}

static double *normed(const double *r, const float *w, int T, int d) {
    double *u = doubles((size_t)T * (size_t)d);
    memcpy(u, r, sizeof(double) * (size_t)T * (size_t)d);
    norm_rows(u, w, T, d, d, d);
    return u;
}

/* Channels [first, first+n) of x (T, stride), in place; w (n, K), from the last token down. */
static void conv_rows(double *x, const float *w, const float *b, int T, int stride, int first,
                      int n, int K, int silu) {
    for (int c = 0; c < n; c++) {
        for (int t = T - 1; t >= 0; t--) {
            double sum = b != NULL ? (double)b[c] : 0.0;
            for (int j = 0; j < K; j++) {
                int s = t - (K - 1) + j;
                sum += s >= 0 ? (double)w[c * K + j] *
                                    x[(size_t)s * (size_t)stride + (size_t)(first + c)]
                              : 0.0;
            }
            x[(size_t)t * (size_t)stride + (size_t)(first + c)] = silu ? ref_silu(sum) : sum;
        }
    }
}

static double *mamba2_mixer(const net *n, const weights *w, int l, const double *u, int T) {
    int I = n->d_ssm, N = n->d_state, P = n->headdim, H = I / P, GN = n->n_groups * N,
        m = n->d_inner - I;
    int rows = 2 * n->d_inner + 2 * GN + H, x0 = 2 * m + I;
    const float *A_log = find(w, n, l, "mixer.A_log"), *D = find(w, n, l, "mixer.D");
    const float *dt_bias = find(w, n, l, "mixer.dt_bias");
    double *in = linear(u, find(w, n, l, "mixer.in_proj.weight"),
                        find(w, n, l, "mixer.in_proj.bias"), T, rows, n->d);
    double *y = doubles((size_t)T * (size_t)n->d_inner), *S = doubles((size_t)(I * N)), *out;
    conv_rows(in, find(w, n, l, "mixer.conv1d.weight"), find(w, n, l, "mixer.conv1d.bias"), T, rows,
              x0, I + 2 * GN, n->d_conv, 1);
    for (int t = 0; t < T; t++) {
        const double *v = in + (size_t)t * (size_t)rows;
        double *row = y + (size_t)t * (size_t)n->d_inner;
        for (int i = 0; i < m; i++) {
            row[i] = ref_silu(v[i]) * v[m + i];
        }
        for (int c = 0; c < I; c++) {
            int h = c / P, g = h / (H / n->n_groups);
            double dt = ref_softplus(v[x0 + I + 2 * GN + h] + (double)dt_bias[h]), x = v[x0 + c],
                   sum;
            dt = dt < n->dt_lo ? n->dt_lo : dt > n->dt_hi ? n->dt_hi : dt;
            sum = (double)D[n->D_channel ? c : h] * x;
            for (int k = 0; k < N; k++) {
                double *s = &S[c * N + k];
                *s = exp(-exp((double)A_log[h]) * dt) * *s + dt * x * v[x0 + I + g * N + k];
                sum += *s * v[x0 + I + GN + g * N + k];
            }
            row[m + c] = n->norm && n->norm_first ? sum : sum * ref_silu(v[2 * m + c]);
        }
    }
    if (n->norm) {
        norm_rows(y + m, find(w, n, l, "mixer.norm.weight"), T, n->d_inner, I, I / n->n_groups);
    }
    for (int t = 0; t < T && n->norm && n->norm_first; t++) {
        for (int c = 0; c < I; c++) {
            y[(size_t)t * (size_t)n->d_inner + (size_t)(m + c)] *=
                ref_silu(in[(size_t)t * (size_t)rows + (size_t)(2 * m + c)]);
        }
    }
    out = linear(y, find(w, n, l, "mixer.out_proj.weight"), find(w, n, l, "mixer.out_proj.bias"), T,
                 n->d, n->d_inner);
    free(in);
    free(y);
    free(S);
    return out;
}

static void rotate(const net *n, double *head, int t) {
    for (int i = 0; i < n->rotary / 2; i++) {
        double angle = t * pow(10000.0, -2.0 * i / n->rotary), c = cos(angle), s = sin(angle);
        double *a = head + (n->adjacent ? 2 * i : i), *b = n->adjacent ? a + 1 : a + n->rotary / 2;
        double x = *a, y = *b;
        *a = x * c - y * s;
        *b = x * s + y * c;
    }
}

static double *attention_mixer(const net *n, const weights *w, int l, const double *u, int T) {
    int q = n->heads * n->hd, kv = n->kv * n->hd, qkv = q + 2 * kv, m = n->attn_mlp,
        rows = qkv + 2 * m, cols = q + m;
    double *in = linear(u, find(w, n, l, "mixer.in_proj.weight"),
                        find(w, n, l, "mixer.in_proj.bias"), T, rows, n->d);
    double *y = doubles((size_t)T * (size_t)cols), *p = doubles((size_t)T), *out;
    if (n->attn_conv != 0) {
        conv_rows(in, find(w, n, l, "mixer.conv1d.weight"), find(w, n, l, "mixer.conv1d.bias"), T,
                  rows, 0, qkv, n->attn_conv, 0);
    }
    for (int t = 0; t < T; t++) {
        for (int h = 0; h < n->heads + n->kv; h++) { /* the heads of k follow those of q */
            rotate(n, in + (size_t)t * (size_t)rows + (size_t)(h * n->hd), t);
        }
    }
    for (int t = 0; t < T; t++) {
        double *row = y + (size_t)t * (size_t)cols, *mine = in + (size_t)t * (size_t)rows;
        for (int h = 0; h < n->heads; h++) {
            int k = h / (n->heads / n->kv);
            double total = 0.0;
            for (int s = 0; s <= t; s++) {
                double dot = 0.0;
                for (int i = 0; i < n->hd; i++) {
                    dot += mine[h * n->hd + i] *
                           in[(size_t)s * (size_t)rows + (size_t)(q + k * n->hd + i)];
                }
                p[s] = exp(dot * n->scale);
                total += p[s];
            }
            for (int i = 0; i < n->hd; i++) {
                double sum = 0.0;
                for (int s = 0; s <= t; s++) {
                    sum += p[s] / total *
                           in[(size_t)s * (size_t)rows + (size_t)(q + kv + k * n->hd + i)];
                }
                row[h * n->hd + i] = sum;
            }
        }
        for (int i = 0; i < m; i++) {
            row[q + i] = mine[qkv + i] * ref_silu(mine[qkv + m + i]);
        }
    }
    out = linear(y, find(w, n, l, "mixer.out_proj.weight"), find(w, n, l, "mixer.out_proj.bias"), T,
                 n->d, cols);
    free(in);
    free(y);
    free(p);
    return out;
}

static void add_to(double *r, double *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        r[i] += x[i];
    }
    free(x);
}

/* Logits (T, vocab). */
static double *oracle(const net *n, const weights *w, const int32_t *tokens, int T) {
    size_t d = (size_t)n->d, all = (size_t)T * d;
    double *r = doubles(all), *out;
    const float *embedding = find(w, n, -1, "backbone.embedding.weight");
    for (size_t t = 0; t < (size_t)T; t++) {
        for (size_t i = 0; i < d; i++) {
            r[t * d + i] = (double)embedding[(size_t)tokens[t] * d + i];
        }
    }
    for (int l = 0; l < n->n_layers; l++) {
        double *u = normed(r, find(w, n, l, "norm.weight"), T, n->d);
        add_to(r,
               n->attention >> l & 1 ? attention_mixer(n, w, l, u, T) : mamba2_mixer(n, w, l, u, T),
               all);
        free(u);
        if (n->d_mlp != 0) {
            double *hidden;
            u = normed(r, find(w, n, l, "norm2.weight"), T, n->d);
            hidden = linear(u, find(w, n, l, "mlp.fc1.weight"), NULL, T, 2 * n->d_mlp, n->d);
            for (int t = 0; t < T; t++) {
                double *v = hidden + (size_t)t * 2 * (size_t)n->d_mlp,
                       *to = hidden + (size_t)t * (size_t)n->d_mlp;
                for (int i = 0; i < n->d_mlp; i++) {
                    to[i] = v[i] * ref_silu(v[n->d_mlp + i]);
                }
            }
            add_to(r, linear(hidden, find(w, n, l, "mlp.fc2.weight"), NULL, T, n->d, n->d_mlp),
                   all);
            free(hidden);
            free(u);
        }
    }
    norm_rows(r, find(w, n, -1, "backbone.norm_f.weight"), T, n->d, n->d, n->d);
    out = linear(r, find(w, n, -1, "lm_head.weight"), NULL, T, n->vocab, n->d);
    free(r);
    return out;
}

/* ---- the nets -------------------------------------------------------------------------------- */

static const double none = 1e300;

static net hybrid(void) /* everything at once, no width a multiple of 16 */
{
    net n;
    memset(&n, 0, sizeof n);
    n.config =
        "{\"d_model\":40,\"n_layer\":4,\"vocab_size\":64,\"d_intermediate\":100,\"attn_layer_idx\":"
        "[1,3],"
        "\"ssm_cfg\":{\"layer\":\"Mamba2\",\"d_state\":20,\"headdim\":12,\"ngroups\":2,\"d_ssm\":"
        "48,"
        "\"d_conv\":3,\"bias\":true,\"D_has_hdim\":true,\"norm_before_gate\":true,\"dt_limit\":[0."
        "05,0.9]},"
        "\"attn_cfg\":{\"causal\":true,\"num_heads\":4,\"num_heads_kv\":2,\"head_dim\":24,\"d_"
        "conv\":4,"
        "\"rotary_emb_dim\":12,\"mlp_dim\":100},\"rms_norm\":true,\"pad_vocab_size_multiple\":16,"
        "\"tie_embeddings\":false}";
    n.d = 40;
    n.n_layers = 4;
    n.vocab = 64;
    n.d_mlp = 128;
    n.attention = 2 | 8;
    n.d_inner = 80;
    n.d_ssm = 48;
    n.d_state = 20;
    n.headdim = 12;
    n.n_groups = 2;
    n.d_conv = 3;
    n.norm = n.norm_first = n.D_channel = n.bias = n.conv_bias = 1;
    n.dt_lo = (double)0.05f;
    n.dt_hi = (double)0.9f;
    n.heads = 4;
    n.kv = 2;
    n.hd = 24;
    n.rotary = 12;
    n.attn_conv = 4;
    n.attn_mlp = 128;
    n.qkv_bias = 1;
    n.scale = 1.0 / sqrt(24.0);
    n.prefix = "";
    return n;
}

static net
attention_only(void) /* one key head, adjacent pairs, no convolution, no bias, own scale */
{
    net n;
    memset(&n, 0, sizeof n);
    n.config = "{\"d_model\":32,\"n_layer\":2,\"vocab_size\":50,\"attn_layer_idx\":[0,1],\"ssm_"
               "cfg\":{\"layer\":"
               "\"Mamba2\"},\"attn_cfg\":{\"causal\":true,\"num_heads\":3,\"num_heads_kv\":1,"
               "\"head_dim\":16,"
               "\"rotary_emb_dim\":16,\"rotary_emb_interleaved\":true,\"softmax_scale\":0.1,\"qkv_"
               "proj_bias\":false,"
               "\"out_proj_bias\":false},\"rms_norm\":true,\"pad_vocab_size_multiple\":1,\"tie_"
               "embeddings\":false}";
    n.d = 32;
    n.n_layers = 2;
    n.vocab = 50;
    n.attention = 3;
    n.heads = 3;
    n.kv = 1;
    n.hd = n.rotary = 16;
    n.adjacent = 1;
    n.scale = 0.1;
    n.prefix = "";
    return n;
}

static net
groups(void) /* three groups of 16 channels that hold two heads each, no gated norm, no conv bias */
{
    net n;
    memset(&n, 0, sizeof n);
    n.config = "{\"d_model\":24,\"n_layer\":2,\"vocab_size\":33,\"ssm_cfg\":{\"layer\":\"Mamba2\","
               "\"d_state\":17,"
               "\"headdim\":8,\"ngroups\":3,\"rmsnorm\":false,\"conv_bias\":false,\"d_conv\":2},"
               "\"rms_norm\":true,"
               "\"pad_vocab_size_multiple\":1,\"tie_embeddings\":false}";
    n.d = 24;
    n.n_layers = 2;
    n.vocab = 33;
    n.d_inner = n.d_ssm = 48;
    n.d_state = 17;
    n.headdim = 8;
    n.n_groups = 3;
    n.d_conv = 2;
    n.dt_hi = none;
    n.prefix = "";
    return n;
}

static net
codestral(void) /* Mistral's layout: params.json, consolidated.safetensors, names behind "model." */
{
    net n;
    memset(&n, 0, sizeof n);
    n.config = "{\"dim\":128,\"n_layers\":2,\"vocab_size\":48,\"n_groups\":4,\"rms_norm\":true,"
               "\"residual_in_fp32\":true,\"fused_add_norm\":true,\"pad_vocab_size_multiple\":1,"
               "\"tie_embeddings\":false,\"model_type\":\"mamba\"}";
    n.d = 128;
    n.n_layers = 2;
    n.vocab = 48;
    n.d_inner = n.d_ssm = 256;
    n.d_state = 128;
    n.headdim = 64;
    n.n_groups = 4;
    n.d_conv = 4;
    n.norm = n.conv_bias = 1;
    n.dt_hi = none;
    n.prefix = "model.";
    n.mistral = 1;
    return n;
}

static void convert(const char *folder, const char *out, const char *type) {
    char a[] = "mamba-convert", b[400], c[] = "-o", d[400], e[] = "--type", f[16], g[] = "-q",
         h[] = "--tokenizer", i[] = "none";
    char *argv[10];
    argv[0] = a;
    argv[1] = b;
    argv[2] = c;
    argv[3] = d;
    argv[4] = e;
    argv[5] = f;
    argv[6] = g;
    argv[7] = h;
    argv[8] = i;
    argv[9] = NULL;
    (void)snprintf(b, sizeof b, "%s", folder);
    (void)snprintf(d, sizeof d, "%s", out);
    (void)snprintf(f, sizeof f, "%s", type);
    CHECK_INT(cv_main(9, argv), 0);
}

/* Converted to out (f32), with the expected logits of `count` tokens. */
static double *prepare(const net *n, const char *name, char out[300], int32_t *tokens, int count) {
    char folder[300];
    weights w;
    double *expected;
    uint64_t seed = 99;
    draw_all(n, &w);
    (void)snprintf(folder, sizeof folder, BUILD_DIR "/tests/%s", name);
    (void)snprintf(out, 300, BUILD_DIR "/tests/%s.mamba", name);
    write_checkpoint(n, &w, folder);
    convert(folder, out, "f32");
    for (int i = 0; i < count; i++) {
        tokens[i] = (int32_t)((uniform(&seed) + 1.0) / 2.0 * n->vocab);
    }
    expected = oracle(n, &w, tokens, count);
    for (int i = 0; i < w.n; i++) {
        free(w.list[i].data);
    }
    return expected;
}

/* Largest difference in units of the logits' standard deviation. */
static double difference(const float *got, const double *expected, size_t n) {
    double worst = 0.0, sum = 0.0, squares = 0.0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)got[i] - expected[i]);
        worst = d > worst || !(d == d) ? d : worst;
        sum += expected[i];
        squares += expected[i] * expected[i];
    }
    return worst / sqrt(squares / (double)n - sum / (double)n * (sum / (double)n));
}

static void check_net(const net *n, const char *name) {
    enum { T = 150 };
    int32_t tokens[T];
    char path[300];
    double *expected = prepare(n, name, path, tokens, T);
    for (int i = 0; mamba_target_at(i) != NULL; i++) {
        mamba_model *m;
        float *got;
        double worst;
        target = mamba_target_at(i);
        if (!mamba_target_usable(target)) {
            continue;
        }
        m = open_path(path);
        got = logits_of(m, tokens, T, 1, 0);
        worst = difference(got, expected, (size_t)(T * n->vocab));
        test_near(worst, 0.0, 2e-5, __FILE__, __LINE__, mamba_target_name(target));
        check_bits(m, tokens, T, got);
        check_chunked(m, tokens, T, got, 2e-5);
        free(got);
        mamba_close(m);
    }
    target = NULL;
    free(expected);
}

TEST(hybrid) {
    net n = hybrid();
    check_net(&n, "hybrid");
}

TEST(attention) {
    net n = attention_only();
    check_net(&n, "attention");
}

TEST(groups) {
    net n = groups();
    check_net(&n, "groups");
}

TEST(codestral) {
    net n = codestral();
    check_net(&n, "codestral");
}

/* Quantized: dt's rows stay in 16 bits, and the logits stay near: the mean square of the
 * difference, in units of the logits' deviation. (This net is drawn at random: it amplifies
 * errors as no trained one does.) */
TEST(quantized) {
    enum { T = 60 };
    static const char *const types[] = {"bf16", "q8"};
    static const double bounds[] = {0.02, 0.04};
    int32_t tokens[T];
    char path[300];
    net n = codestral();
    double *expected = prepare(&n, "codestral", path, tokens, T);
    for (int i = 0; i < 2; i++) {
        mamba_model *m;
        mamba_tensor_info info;
        float *got;
        double sum = 0.0;
        int found = 0;
        convert(BUILD_DIR "/tests/codestral", path, types[i]);
        m = open_path(path);
        for (int k = 0; mamba_model_tensor(m, k, &info) == MAMBA_OK; k++) {
            if (strcmp(info.name, "layer.00001.dt_in") == 0) {
                found = 1;
                CHECK(info.type != MAMBA_Q8);
                CHECK_INT(info.rows, 4);
            }
        }
        CHECK(found);
        got = logits_of(m, tokens, T, 1, 0);
        for (size_t k = 0; k < (size_t)(T * n.vocab); k++) {
            double d = (double)got[k] - expected[k];
            sum += d * d;
        }
        if (getenv("MAMBA_TEST_FIGURES") != NULL) {
            printf("%s: rms difference %.4f\n", types[i],
                   sqrt(sum / (T * n.vocab)) / deviation(got, (size_t)(T * n.vocab)));
        }
        test_near(sqrt(sum / (T * n.vocab)) / deviation(got, (size_t)(T * n.vocab)), 0.0, bounds[i],
                  __FILE__, __LINE__, types[i]);
        check_bits(m, tokens, T, got);
        free(got);
        mamba_close(m);
    }
    free(expected);
}

/* The cache of attention layers: its capacity, what a snapshot holds of it, what the layers say
 * of themselves. */
TEST(cache) {
    enum { T = 40 };
    int32_t tokens[T];
    char path[300];
    net n = hybrid();
    double *expected = prepare(&n, "hybrid", path, tokens, T);
    mamba_model *m = open_path(path);
    mamba_state *small = new_state(m, 1, 16, 20), *large = new_state(m, 1, 16, T);
    mamba_layer_info info;
    mamba_error err;
    size_t V = (size_t)n.vocab, before, after, written;
    float *logits = floats(T * V);
    char snapshot[1 << 18];
    before = mamba_state_save_bytes(large);
    CHECK_INT(run_all(small, tokens, 20, logits, V), MAMBA_OK);
    CHECK_INT(mamba_step(small, tokens[20], logits, V, &err), MAMBA_ERR_RANGE);
    CHECK_CONTAINS(err.what, "attention cache is full");
    CHECK_INT(mamba_state_position(small), 20);
    CHECK_INT(run_all(large, tokens, 21, logits, V), MAMBA_OK);
    after = mamba_state_save_bytes(large);
    CHECK_INT(after - before, 21 * 2 * (2 * 2 * 32) *
                                  4); /* tokens, layers, k and v of 2 heads of 24 -> 32, floats */
    REQUIRE(after <= sizeof snapshot);
    CHECK_INT(mamba_state_save(large, snapshot, sizeof snapshot, &written, NULL), MAMBA_OK);
    CHECK_INT(mamba_state_restore(small, snapshot, written, &err), MAMBA_ERR_RANGE);
    CHECK_INT(mamba_state_copy(small, large, &err), MAMBA_ERR_RANGE);
    CHECK_INT(mamba_state_position(small), 20);
    CHECK_INT(mamba_model_layer(m, 0, &info), MAMBA_OK);
    CHECK_INT(info.kind, MAMBA_LAYER_MAMBA2);
    CHECK_INT(info.d_inner, 80);
    CHECK_INT(info.n_heads, 4);
    CHECK_INT(info.headdim, 12);
    CHECK_INT(info.n_groups, 2);
    CHECK_INT(info.d_state, 20);
    CHECK_INT(mamba_model_layer(m, 1, &info), MAMBA_OK);
    CHECK_INT(info.kind, MAMBA_LAYER_MLP);
    CHECK_INT(info.d_inner, 128);
    CHECK_INT(mamba_model_layer(m, 2, &info), MAMBA_OK);
    CHECK_INT(info.kind, MAMBA_LAYER_ATTENTION);
    CHECK_INT(info.n_heads, 4);
    CHECK_INT(info.n_groups, 2);
    CHECK_INT(info.headdim, 24);
    CHECK_INT(mamba_model_layer(m, 8, &info), MAMBA_ERR_ARG);
    free(logits);
    free(expected);
    mamba_state_free(small);
    mamba_state_free(large);
    mamba_close(m);
}

/* Every parameter of every layer record with hostile values: opening fails with a message that
 * names something, or the model runs. */
TEST(records) {
    static const uint32_t values[] = {0,          1,          2,           3,
                                      7,          17,         31,          4096,
                                      65536,      0x7fffffff, 0x80000000u, 0xffffffffu,
                                      0x7f800000, 0x7fc00000, 0xbf800000u, 0x3f800000};
    int32_t tokens[4] = {0, 0, 0, 0};
    char path[300];
    net n = hybrid();
    double *expected = prepare(&n, "hybrid", path, tokens, 4);
    size_t bytes = 0, layers = 0;
    char *file = golden_read(path, &bytes);
    void *image = NULL;
    uint64_t meta, hash;
    int opened = 0, refused = 0;
    REQUIRE(posix_memalign(&image, 64, bytes) == 0);
    memcpy(&meta, file + 24, 8);
    for (size_t at = 64; at < 64 + 8 * 32; at += 32) {
        if (memcmp(file + at, "layers\0", 7) == 0) {
            uint64_t offset;
            memcpy(&offset, file + at + 16, 8);
            layers = (size_t)offset;
        }
    }
    REQUIRE(layers != 0);
    for (int l = 0; l < 4; l++) { /* Mamba-2, MLP, attention, MLP */
        for (int field = 0; field < 16; field++) {
            for (size_t v = 0; v < sizeof values / sizeof values[0]; v++) {
                mamba_model *m = NULL;
                mamba_error err;
                memcpy(image, file, bytes);
                memcpy((char *)image + layers + 128 * (size_t)l + 4 * (size_t)field, &values[v], 4);
                hash = mbi_hash_bytes((const unsigned char *)image + 40, (size_t)meta - 40);
                memcpy((char *)image + 32, &hash, 8);
                if (mamba_open_memory(image, bytes, NULL, &m, &err) == MAMBA_OK) {
                    mamba_state *s = new_state(m, 1, 4, 8);
                    float logits[64];
                    CHECK_INT(mamba_prefill(s, tokens, 4, logits, 64, NULL), MAMBA_OK);
                    mamba_state_free(s);
                    mamba_close(m);
                    opened++;
                } else {
                    CHECK(err.what != NULL && err.what[0] != 0);
                    CHECK(err.name[0] != 0);
                    refused++;
                }
            }
        }
    }
    CHECK(opened > 50);
    CHECK(refused > 300);
    free(image);
    free(file);
    free(expected);
}

/* ---- the trained checkpoint ------------------------------------------------------------------ */

TEST(tales) {
    static const char folder[] = "../shared/checkpoints/mamba2-tales";
    const char *shared = getenv("MAMBA_SHARED");
    char path[290], text[256];
    FILE *f;
    golden g;
    golden_tensor ids, targets, nll;
    mamba_model *m;
    float *logits;
    size_t V;
    double sum = 0.0, expected = 0.0;
    (void)snprintf(text, sizeof text, "%s%s", shared != NULL ? shared : "",
                   shared != NULL ? folder + 9 : folder);
    (void)snprintf(path, sizeof path, "%s/expected.safetensors", text);
    f = fopen(path, "rb");
    if (f == NULL) {
        SKIP("no ../shared/checkpoints/mamba2-tales (give its folder's parent in MAMBA_SHARED)");
    }
    (void)fclose(f);
    g = golden_open(path);
    ids = golden_get(&g, "input_ids");
    targets = golden_get(&g, "targets");
    nll = golden_get(&g, "nll");
    convert(text, BUILD_DIR "/tests/mamba2-tales.mamba", "bf16");
    m = open_path(BUILD_DIR "/tests/mamba2-tales.mamba");
    V = vocab_of(m);
    logits = logits_of(m, ids.u.i, ids.n, 2, 0);
    for (size_t t = 0; t < ids.n; t++) {
        const float *row = logits + t * V;
        double most = (double)row[argmax(row, V)], total = 0.0;
        for (size_t i = 0; i < V; i++) {
            total += exp((double)row[i] - most);
        }
        sum += most + log(total) - (double)row[targets.u.i[t]];
        expected += (double)nll.u.f[t];
    }
    CHECK_NEAR(sum / (double)ids.n, expected / (double)nll.n, 1e-4);
    free(logits);
    free(ids.u.p);
    free(targets.u.p);
    free(nll.u.p);
    golden_close(&g);
    mamba_close(m);
}

TEST_MAIN("model2") {
    RUN(golden_logits);
    RUN(hybrid);
    RUN(attention);
    RUN(groups);
    RUN(codestral);
    RUN(quantized);
    RUN(cache);
    RUN(records);
    RUN(tales);
}
