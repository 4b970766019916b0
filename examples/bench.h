/*  bench.h: `mamba bench`: this machine's limits, then prefill and decode as rates and as shares.
 *
 *  Every figure is the median of some repetitions with its spread (largest - smallest) / median.
 *  share_of_limit compares each repetition with the limit measured right before it (the speed of a
 *  shared machine moves from second to second), and is the median of that:
 *    decode   bytes moved for a token (weights read, state read and written) * tokens/s  /
 *             streaming read bandwidth
 *    prefill  2 * weights of the matrix products * tokens/s  /  peak of the arithmetic that the
 *             target uses for the weight type: for q8, q6 and q4 AMX int8 on "amx" and int8 dot
 *             products on "avxvnni", "avx512vnni" and "avx512bf16"; for 16 bits AMX bf16 on
 *             "amx", for bf16 its dot products on "avx512bf16"; else float32 FMA.  Scan, convolution
 *             and norms do not count as work: the share says how much of the machine the whole
 *             model reaches.
 *  Limits are measured with as many threads as the model uses.  A model smaller than the last-level
 *  cache can decode above the bandwidth of memory.  Decoding is compared with a second limit too,
 *  "matrices": the same reads of the model's own matrices, one after the other, each by all
 *  threads, which then wait for the last one, as a token's products must.
 */
#ifndef BENCH_H
#define BENCH_H

#include "limits.h"
#include "synthetic.h"

#if defined(__linux__)
#define BENCH_LINUX 1
#else
#define BENCH_LINUX 0
#endif

enum { BENCH_MAX_LIST = 16, BENCH_MAX_REPS = 101 };

enum { BENCH_MATRICES = LIMIT_COUNT }; /* besides the limits of the machine, one of the model */

typedef struct {
    double median, spread;
    int n; /* 0 = not measured */
} bench_figure;

typedef struct {
    cli_model m;
    const char *synthetic, *type, *threads, *prefill, *write;
    int64_t decode, reps, limit_mib, length, chunk, prefill_chunk, time_chunk, scan;
    double seconds;
    int json, profile;

    char name[128];
    synthetic_model image;
    int threads_list[BENCH_MAX_LIST], prefill_list[BENCH_MAX_LIST];
    int n_threads, n_prefill;
    unsigned char *buffer;            /* for the read bandwidth; NULL = no limits */
    limits_fn read[BENCH_MAX_LIST];   /* what reads it fastest with so many threads */
    long rounds[LIMIT_COUNT];         /* of a measurement; 0 = this machine has no such limit */
    double decode_bytes, prefill_ops; /* for one token */
    int32_t *tokens;
    float *logits;
} bench_job;

static const struct {
    const char *name, *type, *unit;
    double scale;
} bench_limit_names[LIMIT_COUNT + 1] = {{"read", "", "GB/s", 1e-9},
                                        {"fma", "f32", "GFLOP/s", 1e-9},
                                        {"avx512bf16", "bf16", "GFLOP/s", 1e-9},
                                        {"avxvnni", "int8", "GOP/s", 1e-9},
                                        {"avx512vnni", "int8", "GOP/s", 1e-9},
                                        {"amx", "bf16", "GFLOP/s", 1e-9},
                                        {"amx", "int8", "GOP/s", 1e-9},
                                        {"matrices", "", "GB/s", 1e-9}};

static int bench_order(const void *a, const void *b) {
    double x = *(const double *)a;
    double y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static bench_figure bench_summary(double *values, int n) {
    bench_figure f = {0.0, 0.0, n};
    qsort(values, (size_t)n, sizeof *values, bench_order);
    f.median = n % 2 ? values[n / 2] : 0.5 * (values[n / 2 - 1] + values[n / 2]);
    f.spread = f.median > 0.0 ? (values[n - 1] - values[0]) / f.median : 0.0;
    return f;
}

/* "1,2,8" into list; every number from lo to hi. */
static int bench_read_list(const char *text, const char *name, int lo, int hi, int *list, int *n) {
    cli_ids ids = {NULL, 0, 0};
    size_t i;
    int code = cli_ids_parse(&ids, text, strlen(text), lo, (int64_t)hi + 1, name);
    if (code == CLI_OK && (ids.n < 1 || ids.n > BENCH_MAX_LIST)) {
        code = cli_fail(CLI_USAGE, "%s: found %llu numbers, allowed: 1 to %d", name,
                        (unsigned long long)ids.n, BENCH_MAX_LIST);
    }
    for (i = 0; code == CLI_OK && i < ids.n; i++) {
        list[i] = ids.ids[i];
    }
    *n = (int)ids.n;
    free(ids.ids);
    return code == CLI_FAILED ? CLI_USAGE : code;
}

/* A JSON string with its quotes. */
static void bench_print_string(const char *text) {
    (void)putchar('"');
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\') {
            (void)printf("\\%c", c);
        } else if (c < 0x20) {
            (void)printf("\\u%04x", (unsigned)c);
        } else {
            (void)putchar(c);
        }
    }
    (void)putchar('"');
}

/* ---- limits ---------------------------------------------------------------------------------- */

static void bench_print_limit(const bench_job *j, int which, int threads, bench_figure f) {
    double value = f.median * bench_limit_names[which].scale;
    if (j->json) {
        (void)printf("{\"test\":\"limit\",\"name\":\"%s\",\"model\":",
                     bench_limit_names[which].name);
        if (which == BENCH_MATRICES) {
            bench_print_string(j->name);
        } else {
            (void)printf("null");
        }
        (void)printf(",\"type\":\"%s\",\"threads\":%d,\"tokens\":null,\"tokens_per_s\":null,"
                     "\"value\":%.6g,\"unit\":\"%s\",\"spread\":%.4f,\"share_of_limit\":1}\n",
                     bench_limit_names[which].type, threads, value, bench_limit_names[which].unit,
                     f.spread);
    } else {
        (void)printf("%-9s %-15s %-5s %7d %8s %11.1f %-8s %5.1f %%\n", "limit",
                     bench_limit_names[which].name, bench_limit_names[which].type, threads, "",
                     value, bench_limit_names[which].unit, 100.0 * f.spread);
    }
}

static size_t bench_buffer_bytes(const bench_job *j) {
    return (size_t)j->limit_mib << 20;
}

/* One measurement of a limit, with the t-th number of threads. */
static double bench_limit_once(const bench_job *j, int which, int t) {
    limits_fn f = which == LIMIT_READ ? j->read[t] : limits_find(which);
    return limits_once(f, j->buffer, bench_buffer_bytes(j), j->rounds[which], j->threads_list[t]);
}

static bench_figure bench_limit(const bench_job *j, int which, int t) {
    double values[BENCH_MAX_REPS];
    int r;
    for (r = 0; r < (int)j->reps; r++) {
        values[r] = bench_limit_once(j, which, t);
    }
    return bench_summary(values, (int)j->reps);
}

/* Reads are measured with and without asking ahead; what is faster is the limit. */
static bench_figure bench_limit_of_reads(bench_job *j, int t) {
    bench_figure f[2];
    int ahead;
    for (ahead = 0; ahead < 2; ahead++) {
        j->read[t] = limits_read(ahead);
        f[ahead] = bench_limit(j, LIMIT_READ, t);
    }
    ahead = f[1].median > f[0].median;
    j->read[t] = limits_read(ahead);
    return f[ahead];
}

static int bench_limits(bench_job *j) {
    size_t bytes = bench_buffer_bytes(j);
    int which;
    int t;
    if (j->limit_mib == 0) {
        return CLI_OK;
    }
    /* on huge pages, as weights are */
    j->buffer = (unsigned char *)mbi_default_alloc(NULL, bytes, 4096);
    if (j->buffer == NULL) {
        return cli_fail(CLI_FAILED, "out of memory: %lld MiB for the bandwidth; use --limit-mib N",
                        (long long)j->limit_mib);
    }
    memset(j->buffer, 1, bytes);
    for (which = 0; which < LIMIT_COUNT; which++) {
        limits_fn f = limits_find(which);
        if (f == NULL) {
            continue;
        }
        j->rounds[which] = which == LIMIT_READ ? 1 : limits_rounds(f);
        for (t = 0; t < j->n_threads && !cli_stop; t++) {
            bench_print_limit(j, which, j->threads_list[t],
                              which == LIMIT_READ ? bench_limit_of_reads(j, t)
                                                  : bench_limit(j, which, t));
            (void)fflush(stdout);
        }
    }
    return CLI_OK;
}

/* The limit of prefill for the target in use and the model's weight type. */
static int bench_prefill_limit(const bench_job *j) {
    const char *type = j->m.info.weight_type;
    const char *target = j->m.info.target;
    int integers = type[0] == 'q';
    if (strcmp(target, "amx") == 0 && integers) {
        return LIMIT_AMX_INT8;
    }
    if (strcmp(target, "amx") == 0 && strcmp(type, "f32") != 0) {
        return LIMIT_AMX_BF16;
    }
    if (strcmp(target, "avx512bf16") == 0 && strcmp(type, "bf16") == 0) {
        return LIMIT_BF16;
    }
    if ((strcmp(target, "avx512vnni") == 0 || strcmp(target, "avx512bf16") == 0) && integers) {
        return LIMIT_AVX512VNNI;
    }
    if (strcmp(target, "avxvnni") == 0 && integers) {
        return LIMIT_AVXVNNI;
    }
    return LIMIT_F32;
}

/* ---- the model ------------------------------------------------------------------------------- */

static int bench_type(const char *name, mamba_type *type) {
    int i;
    for (i = MAMBA_F32; i <= MAMBA_Q4; i++) {
        if (strcmp(name, mbi_type_name((uint32_t)i)) == 0) {
            *type = (mamba_type)i;
            return 1;
        }
    }
    return 0;
}

static int bench_generate(bench_job *j) {
    const synthetic_geometry *g = synthetic_find(j->synthetic);
    mamba_config config;
    mamba_error err;
    mamba_type type = MAMBA_Q8;
    cli_quoted q;
    int code;
    if (g == NULL) {
        (void)cli_fail(CLI_USAGE,
                       "bench: --synthetic: found '%s'; `mamba bench --help` lists the geometries",
                       cli_quote(&q, j->synthetic, strlen(j->synthetic)));
        return CLI_USAGE;
    }
    if (!bench_type(j->type ? j->type : "q8", &type)) {
        return cli_fail(CLI_USAGE, "bench: --type: found '%s', allowed: f32, f16, bf16, q8, q6, q4",
                        cli_quote(&q, j->type, strlen(j->type)));
    }
    memset(&config, 0, sizeof config);
    code = cli_find_target(j->m.target, &config.target);
    if (code == CLI_OK) {
        code = synthetic_build(&j->image, g, type, j->write != NULL);
    }
    if (code == CLI_OK && j->write != NULL) {
        cli_output out;
        code = cli_output_open(&out, j->write);
        if (code == CLI_OK) {
            code = cli_output_close(&out,
                                    cli_output_write(&out, j->image.image, (size_t)j->image.bytes));
        }
    }
    if (code == CLI_OK &&
        mamba_open_memory(j->image.image, j->image.bytes, &config, &j->m.model, &err) != MAMBA_OK) {
        return cli_error(&err);
    }
    return code;
}

/* What a decoded token reads of the weights: not a table of which it takes a row. */
static int bench_reads(const bench_job *j, const char *tensor) {
    return j->m.info.tied || strncmp(tensor, "embedding", 9) != 0;
}

/* Opens or generates the model; counts the work of a token. */
static int bench_open(bench_job *j) {
    mamba_tensor_info t;
    int code;
    int i;
    if (j->synthetic != NULL) {
        code = bench_generate(j);
        (void)snprintf(j->name, sizeof j->name, "%s", j->synthetic);
    } else {
        const char *base = strrchr(j->m.path, '/');
        code = cli_open_model(&j->m, "bench");
        (void)snprintf(j->name, sizeof j->name, "%s", base ? base + 1 : j->m.path);
    }
    if (code != CLI_OK) {
        return code;
    }
    mamba_model_info(j->m.model, &j->m.info);
    j->decode_bytes = 2.0 * (double)j->m.info.state_bytes;
    for (i = 0; mamba_model_tensor(j->m.model, i, &t) == MAMBA_OK; i++) {
        if (bench_reads(j, t.name)) {
            j->decode_bytes += (double)t.bytes;
        }
        if (strncmp(t.name, "layer.", 6) == 0 &&
            j->m.model->tensors[i].layout == MBI_LAYOUT_PANELS) {
            j->prefill_ops += 2.0 * (double)t.rows * (double)t.cols;
        }
    }
    return CLI_OK;
}

static int bench_state(const bench_job *j, int threads, mamba_state **state) {
    mamba_state_options options;
    mamba_error err;
    memset(&options, 0, sizeof options);
    options.n_threads = threads;
    options.max_tokens = j->length > 0 ? j->length : 8192;
    options.prefill_chunk = (int32_t)j->prefill_chunk;
    options.time_chunk = (int32_t)j->time_chunk;
    return mamba_state_create(j->m.model, &options, state, &err) == MAMBA_OK ? CLI_OK
                                                                             : cli_error(&err);
}

/* Seconds for n tokens of prompt, from an empty state, with the logits of the last. */
static int bench_prefill_once(const bench_job *j, mamba_state *state, int n, double *seconds) {
    mamba_error err;
    double start;
    mamba_state_reset(state);
    start = cli_seconds();
    if (mamba_prefill(state, j->tokens, (size_t)n, j->logits, (size_t)j->m.info.n_vocab, &err) !=
        MAMBA_OK) {
        return cli_error(&err);
    }
    *seconds = cli_seconds() - start;
    return CLI_OK;
}

/* Seconds for n steps behind a short prompt, each with its logits. */
static int bench_decode_once(const bench_job *j, mamba_state *state, int n, double *seconds) {
    mamba_error err;
    double start;
    int i;
    int code = bench_prefill_once(j, state, 8, seconds);
    start = cli_seconds();
    for (i = 0; i < n && code == CLI_OK; i++) {
        if (mamba_step(state, j->tokens[8 + i], j->logits, (size_t)j->m.info.n_vocab, &err) !=
            MAMBA_OK) {
            code = cli_error(&err);
        }
    }
    *seconds = cli_seconds() - start;
    return code;
}

/* The matrices, only read, `passes` times. */
typedef struct {
    const bench_job *j;
    mbi_ctx ctx;
    limits_fn read;
    const unsigned char *panels; /* of the matrix that is read now */
    size_t panel_bytes;
    int passes;
    double bytes;
} bench_matrices;

static void bench_matrices_range(void *arg, int begin, int end, int worker) {
    bench_matrices *b = (bench_matrices *)arg;
    (void)worker;
    (void)b->read(b->panels + (size_t)begin * b->panel_bytes,
                  (size_t)(end - begin) * b->panel_bytes, 1);
}

static void bench_matrices_run(void *arg, const mamba_parallel *parallel) {
    bench_matrices *b = (bench_matrices *)arg;
    const mamba_model *m = b->j->m.model;
    int pass;
    int i;
    b->ctx.parallel = parallel;
    for (pass = 0; pass < b->passes; pass++) {
        for (i = 0; i < m->n_tensors; i++) {
            const mbi_tensor *t = &m->tensors[i];
            if (t->layout == MBI_LAYOUT_PANELS && bench_reads(b->j, t->name)) {
                b->panels = m->bytes.data + t->offset;
                b->panel_bytes = (size_t)mbi_panel_bytes((mamba_type)t->type, t->cols);
                mbi_region(&b->ctx, (int)(t->bytes / b->panel_bytes), 1, 1, bench_matrices_range,
                           b);
                b->bytes += (double)t->bytes;
            }
        }
    }
}

/* Bytes a second of about as much as the buffer holds, after one pass for the caches. */
static double bench_matrices_once(const bench_job *j, const mamba_state *state, limits_fn read) {
    bench_matrices b;
    double start;
    memset(&b, 0, sizeof b);
    b.j = j;
    b.read = read;
    b.ctx = state->ctx;
    b.ctx.n_tokens = 1;
    b.ctx.own = mbi_own_share(&b.ctx, 1);
    b.passes = 1;
    mbi_with_team(NULL, b.ctx.n_tasks, bench_matrices_run, &b);
    b.passes = 1 + (int)((double)bench_buffer_bytes(j) / b.bytes);
    b.bytes = 0.0;
    start = cli_seconds();
    mbi_with_team(NULL, b.ctx.n_tasks, bench_matrices_run, &b);
    return b.bytes / (cli_seconds() - start);
}

/* share: of the limit `which`; its n is 0 when limits are off.  of_matrices: of that limit, if n is
 * not 0. */
static void bench_print_rate(const bench_job *j, const char *test, int t, int tokens,
                             bench_figure f, int which, bench_figure share,
                             bench_figure of_matrices) {
    if (j->json) {
        (void)printf("{\"test\":\"%s\",\"model\":", test);
        bench_print_string(j->name);
        (void)printf(
            ",\"type\":\"%s\",\"target\":\"%s\",\"threads\":%d,\"tokens\":%d,\"tokens_per_s\":%.6g,"
            "\"spread\":%.4f,\"reps\":%d,",
            j->m.info.weight_type, j->m.info.target, j->threads_list[t], tokens, f.median, f.spread,
            f.n);
        if (of_matrices.n > 0) {
            (void)printf("\"share_of_matrices\":%.4f,", of_matrices.median);
        }
        if (share.n > 0) {
            (void)printf("\"share_of_limit\":%.4f,\"limit\":\"%s %s\"}\n", share.median,
                         bench_limit_names[which].name, bench_limit_names[which].type);
        } else {
            (void)printf("\"share_of_limit\":null,\"limit\":null}\n");
        }
    } else {
        (void)printf("%-9s %-15.15s %-5s %7d %8d %11.1f %-8s %5.1f %%", test, j->name,
                     j->m.info.weight_type, j->threads_list[t], tokens, f.median, "tok/s",
                     100.0 * f.spread);
        if (share.n > 0) {
            (void)printf("  %5.1f %% of %s%s%s", 100.0 * share.median,
                         bench_limit_names[which].name,
                         bench_limit_names[which].type[0] ? " " : "",
                         bench_limit_names[which].type);
        }
        if (of_matrices.n > 0) {
            (void)printf(", %.1f %% of matrices", 100.0 * of_matrices.median);
        }
        (void)putchar('\n');
    }
    (void)fflush(stdout);
}

/* One row: warm up once, then repeat until `reps` or the time is used, each time right behind a
 * measurement of the limit. */
static int bench_rate(bench_job *j, const char *test, int t, int tokens) {
    int decode = strcmp(test, "decode") == 0;
    int which = decode ? LIMIT_READ : bench_prefill_limit(j);
    double work = decode ? j->decode_bytes : j->prefill_ops;
    mamba_state *state = NULL;
    double rates[BENCH_MAX_REPS];
    double shares[BENCH_MAX_REPS];
    double matrices[BENCH_MAX_REPS]; /* bytes a second */
    double of_matrices[BENCH_MAX_REPS];
    bench_figure share = {0.0, 0.0, 0};
    bench_figure share_of_matrices = {0.0, 0.0, 0};
    double began = cli_seconds();
    double seconds;
    int n = 0;
    int code = bench_state(j, j->threads_list[t], &state);
    if (code == CLI_OK) { /* touches the weights and the state */
        code = decode ? bench_decode_once(j, state, tokens < 8 ? tokens : 8, &seconds)
                      : bench_prefill_once(j, state, tokens < 128 ? tokens : 128, &seconds);
    }
    while (code == CLI_OK && n < (int)j->reps && !cli_stop &&
           (n == 0 || cli_seconds() - began < j->seconds)) {
        double limit = j->buffer ? bench_limit_once(j, which, t) : 0.0;
        matrices[n] = j->buffer && decode ? bench_matrices_once(j, state, j->read[t]) : 0.0;
        code = decode ? bench_decode_once(j, state, tokens, &seconds)
                      : bench_prefill_once(j, state, tokens, &seconds);
        rates[n] = (double)tokens / seconds;
        shares[n] = limit > 0.0 ? work * rates[n] / limit : 0.0;
        of_matrices[n] = matrices[n] > 0.0 ? work * rates[n] / matrices[n] : 0.0;
        n++;
    }
    mamba_state_free(state);
    if (code == CLI_OK && n > 0) {
        if (j->buffer) {
            share = bench_summary(shares, n);
        }
        if (j->buffer && decode) {
            share_of_matrices = bench_summary(of_matrices, n);
            bench_print_limit(j, BENCH_MATRICES, j->threads_list[t], bench_summary(matrices, n));
        }
        bench_print_rate(j, test, t, tokens, bench_summary(rates, n), which, share,
                         share_of_matrices);
    }
    return code;
}

/* ---- where the time goes --------------------------------------------------------------------- */

static void bench_print_profile(const bench_job *j, const char *test, int threads) {
    double total = 0.0;
    int i;
    for (i = 0; i < profile.n; i++) {
        total += profile.seconds[i];
    }
    for (i = 0; i < profile.n; i++) {
        double share = total > 0.0 ? profile.seconds[i] / total : 0.0;
        if (j->json) {
            (void)printf("{\"test\":\"profile\",\"of\":\"%s\",\"model\":", test);
            bench_print_string(j->name);
            (void)printf(",\"type\":\"%s\",\"threads\":%d,\"operator\":\"%s\",\"seconds\":%.6g,"
                         "\"share\":%.4f}\n",
                         j->m.info.weight_type, threads, profile.names[i], profile.seconds[i],
                         share);
        } else {
            (void)printf("profile   %-15s %-20s %10.3f ms %6.1f %%\n", test, profile.names[i],
                         1e3 * profile.seconds[i], 100.0 * share);
        }
    }
}

static int bench_profile(bench_job *j, int t) {
    mamba_state *state = NULL;
    double seconds;
    int decode;
    int code = bench_state(j, j->threads_list[t], &state);
    for (decode = 0; decode < 2 && code == CLI_OK; decode++) {
        int tokens = decode ? 32 : 512;
        code = decode ? bench_decode_once(j, state, 8, &seconds)
                      : bench_prefill_once(j, state, 64, &seconds);
        memset(&profile, 0, sizeof profile);
        profile.current = -1;
        profile.on = 1;
        if (code == CLI_OK) {
            code = decode ? bench_decode_once(j, state, tokens, &seconds)
                          : bench_prefill_once(j, state, tokens, &seconds);
        }
        profile_mark(NULL);
        profile.on = 0;
        if (code == CLI_OK) {
            bench_print_profile(j, decode ? "decode 8+32" : "prefill 512", j->threads_list[t]);
        }
    }
    mamba_state_free(state);
    return code;
}

/* ---- a long stream --------------------------------------------------------------------------- */

/* Bytes of memory in use, 0 where the system does not say. */
static uint64_t bench_resident(void) {
    uint64_t pages = 0;
#if BENCH_LINUX
    cli_text t = {NULL, 0, 0};
    size_t i = 0;
    size_t start;
    if (cli_read_file("/proc/self/statm", &t) == CLI_OK) {
        while (i < t.n && t.bytes[i] != ' ') {
            i++;
        }
        for (start = ++i; i < t.n && t.bytes[i] != ' ';) {
            i++;
        }
        if (i > t.n || !cli_read_u64(t.bytes + start, i - start, &pages)) {
            pages = 0;
        }
    }
    free(t.bytes);
    pages *= (uint64_t)sysconf(_SC_PAGESIZE);
#endif
    return pages;
}

static void bench_print_length(const bench_job *j, int threads, uint64_t done, double rate) {
    uint64_t resident = bench_resident();
    if (j->json) {
        (void)printf("{\"test\":\"length\",\"model\":");
        bench_print_string(j->name);
        (void)printf(
            ",\"type\":\"%s\",\"threads\":%d,\"tokens\":%llu,\"tokens_per_s\":%.6g,\"spread\":null,"
            "\"share_of_limit\":null,\"resident_bytes\":%llu}\n",
            j->m.info.weight_type, threads, (unsigned long long)done, rate,
            (unsigned long long)resident);
    } else {
        (void)printf("length    %-15.15s %-5s %7d %10llu %11.1f tok/s  resident %.2f MiB\n",
                     j->name, j->m.info.weight_type, threads, (unsigned long long)done, rate,
                     (double)resident / 1048576.0);
    }
    (void)fflush(stdout);
}

/* Streams tokens in pieces of --chunk; a row at each power of ten (from the piece on) and at the
 * end, with the rate since the row before. */
static int bench_length(bench_job *j, int threads) {
    uint64_t total = (uint64_t)j->length;
    uint64_t done = 0;
    uint64_t reported = 0;
    uint64_t next = 10;
    double start;
    mamba_state *state = NULL;
    mamba_error err;
    int code = bench_state(j, threads, &state);
    while (next < (uint64_t)j->chunk) {
        next *= 10;
    }
    start = cli_seconds();
    while (code == CLI_OK && done < total && !cli_stop) {
        uint64_t goal = next < total ? next : total;
        uint64_t n = goal - done < (uint64_t)j->chunk ? goal - done : (uint64_t)j->chunk;
        if (mamba_prefill(state, j->tokens + done % 1024, (size_t)n, j->logits,
                          (size_t)j->m.info.n_vocab, &err)) {
            code = cli_error(&err);
        }
        done += n;
        if (code == CLI_OK && done == goal) {
            double now = cli_seconds();
            bench_print_length(j, threads, done, (double)(done - reported) / (now - start));
            reported = done;
            next *= 10;
            start = cli_seconds();
        }
    }
    mamba_state_free(state);
    return code;
}

/* ---- the scan ---------------------------------------------------------------------------------- */

/* One Mamba-1 scan (d_state 16) of s->n_tokens tokens, in sequence or parallel over time. */
static int bench_scan_once(const bench_job *j, const mamba_target *target, const mamba_scan *s,
                           int threads, int parallel, double *seconds) {
    mamba_error err;
    double start = cli_seconds();
    if (parallel ? mamba_scan_time_parallel(target, s, (int)j->time_chunk, threads, NULL, NULL, &err)
                 : mamba_selective_scan(target, s, threads, NULL, NULL, &err)) {
        return cli_error(&err);
    }
    *seconds = cli_seconds() - start;
    return CLI_OK;
}

static void bench_print_scan(const bench_job *j, int channels, int threads, const double *rate,
                             const bench_figure *ratio) {
    if (j->json) {
        (void)printf("{\"test\":\"scan\",\"channels\":%d,\"threads\":%d,\"tokens\":%lld,"
                     "\"sequential_tokens_per_s\":%.6g,\"parallel_tokens_per_s\":%.6g,"
                     "\"ratio\":%.4f,\"spread\":%.4f}\n",
                     channels, threads, (long long)j->scan, rate[0], rate[1], ratio->median,
                     ratio->spread);
    } else {
        (void)printf("scan %6d channels %3d threads  in sequence %12.0f tok/s  over time %12.0f "
                     "tok/s  ratio %5.2f  spread %5.1f %%\n",
                     channels, threads, rate[0], rate[1], ratio->median, 100.0 * ratio->spread);
    }
    (void)fflush(stdout);
}

/* Where the scan over time pays: both forms in turn, by the number of channels.  The ratio is the
 * median of those of the repetitions. */
static int bench_scan(const bench_job *j, const mamba_target *target, int threads) {
    enum { STATES = 16, MOST = 2048 };
    size_t n = (size_t)j->scan * MOST;
    uint64_t seed = 88172645463325252u;
    float *x = (float *)malloc(3 * n * sizeof(float));
    float *bc = (float *)malloc((size_t)j->scan * 2 * STATES * sizeof(float));
    float *a = (float *)malloc((size_t)MOST * STATES * sizeof(float));
    int code = x && bc && a ? CLI_OK : cli_fail(CLI_FAILED, "out of memory");
    int channels;
    size_t i;
    for (i = 0; i < 3 * n && code == CLI_OK; i++) {
        x[i] = 0.001f * (float)(1 + synthetic_random(&seed) % 100);
    }
    for (i = 0; i < (size_t)j->scan * 2 * STATES && code == CLI_OK; i++) {
        bc[i] = 0.01f * (float)(synthetic_random(&seed) % 100);
    }
    for (i = 0; i < (size_t)MOST * STATES && code == CLI_OK; i++) {
        a[i] = -(float)(1 + i % STATES);
    }
    for (channels = 16; channels <= MOST && code == CLI_OK && !cli_stop; channels *= 2) {
        double seconds[2][BENCH_MAX_REPS];
        double ratio[BENCH_MAX_REPS];
        double rate[2];
        bench_figure f;
        mamba_scan s;
        int r;
        memset(&s, 0, sizeof s);
        s.n_tokens = (int32_t)j->scan;
        s.channels = channels;
        s.d_state = STATES;
        s.x = x;
        s.dt = x + n;
        s.y = x + 2 * n;
        s.A = a;
        s.B = bc;
        s.C = bc + (size_t)j->scan * STATES;
        for (r = -1; r < (int)j->reps && code == CLI_OK; r++) { /* the first one only warms up */
            int at = r < 0 ? 0 : r;
            code = bench_scan_once(j, target, &s, threads, 0, &seconds[0][at]);
            if (code == CLI_OK) {
                code = bench_scan_once(j, target, &s, threads, 1, &seconds[1][at]);
            }
            ratio[at] = seconds[0][at] / seconds[1][at];
        }
        if (code == CLI_OK) {
            for (r = 0; r < 2; r++) {
                rate[r] = (double)j->scan / bench_summary(seconds[r], (int)j->reps).median;
            }
            f = bench_summary(ratio, (int)j->reps);
            bench_print_scan(j, channels, threads, rate, &f);
        }
    }
    free(x);
    free(bc);
    free(a);
    return code;
}

/* ---- the command ----------------------------------------------------------------------------- */

static void bench_print_machine(const bench_job *j) {
    cli_text t = {NULL, 0, 0};
    char cpu[128] = "unknown CPU";
    cli_quoted q;
#if BENCH_LINUX
    size_t i;
    if (access("/proc/cpuinfo", R_OK) == 0 && cli_read_file("/proc/cpuinfo", &t) == CLI_OK) {
        for (i = 0; i + 13 < t.n; i++) {
            if (memcmp(t.bytes + i, "model name\t: ", 13) == 0) {
                size_t n = 0;
                while (i + 13 + n < t.n && t.bytes[i + 13 + n] != '\n' && n + 1 < sizeof cpu) {
                    n++;
                }
                memcpy(cpu, t.bytes + i + 13, n);
                cpu[n] = '\0';
                break;
            }
        }
    }
#endif
    if (j->json) {
        (void)printf("{\"test\":\"machine\",\"cpu\":");
        bench_print_string(cpu);
        (void)printf(",\"cores\":%ld,\"compiler\":", sysconf(_SC_NPROCESSORS_ONLN));
#ifdef __VERSION__
        bench_print_string(__VERSION__);
#else
        bench_print_string("unknown");
#endif
        (void)printf(",\"version\":\"%s\"}\n", mamba_version());
    } else {
        (void)printf("%s, %ld cores, mamba.h %s\n", cli_quote(&q, cpu, strlen(cpu)),
                     sysconf(_SC_NPROCESSORS_ONLN), mamba_version());
    }
    free(t.bytes);
}

static void bench_print_model(const bench_job *j) {
    if (!j->json) {
        (void)printf("%s %s, target %s: %.1f M parameters, %.1f MB of weights read for a token\n",
                     j->name, j->m.info.weight_type, j->m.info.target,
                     1e-6 * (double)j->m.info.n_parameters, 1e-6 * j->decode_bytes);
        (void)printf("%-9s %-15s %-5s %7s %8s %11s %-8s %7s  %s\n", "test", "model", "type",
                     "threads", "tokens", "median", "", "spread", "share of limit");
    }
}

/* Tokens that never repeat in a way a cache could learn from. */
static int bench_tokens(bench_job *j) {
    size_t n = 1024 + 1000000;
    uint64_t seed = 88172645463325252u;
    size_t i;
    if ((uint64_t)j->chunk + 1024 > n) {
        n = (size_t)j->chunk + 1024;
    }
    j->tokens = (int32_t *)malloc(n * sizeof *j->tokens);
    j->logits = (float *)malloc((size_t)j->m.info.n_vocab * sizeof *j->logits);
    if (j->tokens == NULL || j->logits == NULL) {
        return cli_fail(CLI_FAILED, "out of memory");
    }
    for (i = 0; i < n; i++) {
        j->tokens[i] = (int32_t)(synthetic_random(&seed) % (uint64_t)j->m.info.n_vocab);
    }
    return CLI_OK;
}

static int bench_measure(bench_job *j) {
    int code = CLI_OK;
    int t;
    int p;
    bench_print_machine(j);
    bench_print_model(j);
    if (j->length > 0) {
        for (t = 0; t < j->n_threads && code == CLI_OK; t++) {
            code = bench_length(j, j->threads_list[t]);
        }
        return code;
    }
    code = bench_limits(j);
    for (t = 0; t < j->n_threads && code == CLI_OK; t++) {
        for (p = 0; p < j->n_prefill && code == CLI_OK; p++) {
            code = bench_rate(j, "prefill", t, j->prefill_list[p]);
        }
        if (j->decode > 0 && code == CLI_OK) {
            code = bench_rate(j, "decode", t, (int)j->decode);
        }
        if (j->profile && code == CLI_OK) {
            code = bench_profile(j, t);
        }
    }
    return code;
}

static int bench_go(bench_job *j) {
    int cores = mbi_n_threads(0, NULL);
    int code = CLI_OK;
    if (j->scan > 0 ? j->synthetic != NULL || j->m.path != NULL
                    : (j->synthetic != NULL) == (j->m.path != NULL)) {
        return cli_fail(CLI_USAGE, "bench: give -m FILE or --synthetic NAME, or --scan N alone (see "
                                   "mamba bench --help)");
    }
    if (j->synthetic == NULL && (j->type != NULL || j->write != NULL)) {
        return cli_fail(CLI_USAGE, "bench: --type and --write go with --synthetic");
    }
    j->threads_list[0] = 1;
    j->threads_list[1] = cores;
    j->n_threads = cores > 1 ? 2 : 1;
    if (j->threads != NULL) {
        code = bench_read_list(j->threads, "bench: --threads", 1, MBI_MAX_THREADS, j->threads_list,
                               &j->n_threads);
    }
    if (code == CLI_OK && strcmp(j->prefill, "0") != 0) {
        code = bench_read_list(j->prefill, "bench: --prefill", 1, 1000000, j->prefill_list,
                               &j->n_prefill);
    }
    if (j->scan > 0) {
        const mamba_target *target = NULL;
        int t;
        if (code == CLI_OK) {
            code = cli_find_target(j->m.target, &target);
        }
        if (code == CLI_OK) {
            bench_print_machine(j);
        }
        for (t = 0; t < j->n_threads && code == CLI_OK; t++) {
            code = bench_scan(j, target ? target : mamba_target_best(), j->threads_list[t]);
        }
        return code == CLI_OK && cli_stop ? CLI_INTERRUPTED : code;
    }
    if (code == CLI_OK) {
        code = bench_open(j);
    }
    if (code == CLI_OK) {
        code = cli_need_vocabulary(&j->m, "bench");
    }
    if (code == CLI_OK) {
        code = bench_tokens(j);
    }
    if (code == CLI_OK) {
        code = bench_measure(j);
    }
    mamba_close(j->m.model);
    synthetic_free(&j->image);
    mbi_default_free(NULL, j->buffer, bench_buffer_bytes(j));
    free(j->tokens);
    free(j->logits);
    return code == CLI_OK && cli_stop ? CLI_INTERRUPTED : code;
}

static int cmd_bench(int argc, char **argv) {
    bench_job j = {.prefill = "128,512,2048",
                   .decode = 128,
                   .reps = 5,
                   .seconds = 20.0,
                   .limit_mib = 1024,
                   .chunk = 256};
    int n_rest;
    int code;
    cli_option options[] = {
        {"model", 'm', CLI_TEXT, &j.m.path, 0, 0, "FILE", "the .mamba file to measure", 0},
        {"synthetic", 0, CLI_TEXT, &j.synthetic, 0, 0, "NAME",
         "or generated weights in a published geometry: 130m,\n370m, 790m, 1.4b, 2.8b, mamba2-130m, "
         "-370m, -780m,\n-1.3b, -2.7b (or tiny, mamba2-tiny)",
         0},
        {"type", 0, CLI_TEXT, &j.type, 0, 0, "T",
         "of --synthetic: f32, f16, bf16, q8, q6, q4 (default: q8)", 0},
        {"write", 0, CLI_TEXT, &j.write, 0, 0, "FILE", "keep the generated model as a file", 0},
        {"target", 0, CLI_TEXT, &j.m.target, 0, 0, "NAME",
         "kernels to use (default: the best of this machine)", 0},
        {"copy", 0, CLI_FLAG, &j.m.copy, 0, 0, NULL,
         "read the file into memory instead of mapping it", 0},
        {"threads", 't', CLI_TEXT, &j.threads, 0, 0, "LIST",
         "thread counts (default: 1 and all cores)", 0},
        {"prefill", 0, CLI_TEXT, &j.prefill, 0, 0, "LIST",
         "prompt lengths, 0 = none (default: 128,512,2048)", 0},
        {"decode", 0, CLI_INT, &j.decode, 0, 1000000, "N",
         "tokens to decode, 0 = none (default: 128)", 0},
        {"reps", 0, CLI_INT, &j.reps, 1, BENCH_MAX_REPS, "R",
         "repetitions of each measurement (default: 5)", 0},
        {"seconds", 0, CLI_FLOAT, &j.seconds, 0, 1e6, "S",
         "start no further repetition after S (default: 20)", 0},
        {"limit-mib", 0, CLI_INT, &j.limit_mib, 0, 1 << 20, "N",
         "buffer for the read bandwidth, 0 = no limits\n(default: 1024)", 0},
        {"profile", 0, CLI_FLAG, &j.profile, 0, 0, NULL, "also the time by operator", 0},
        {"length", 0, CLI_INT, &j.length, 1, 1e12, "N",
         "instead: stream N tokens; speed and resident memory\nat every power of ten", 0},
        {"chunk", 0, CLI_INT, &j.chunk, 1, 1000000, "N",
         "tokens in a piece of --length (default: 256)", 0},
        {"prefill-chunk", 0, CLI_INT, &j.prefill_chunk, 1, 4096, "N",
         "tokens worked on at once (default: the library's)", 0},
        {"time-chunk", 0, CLI_INT, &j.time_chunk, 0, 4096, "N",
         "scan chunks of N tokens in parallel, 64 or more,\n0 = scan in sequence (default: 0)", 0},
        {"scan", 0, CLI_INT, &j.scan, 256, 65536, "N",
         "instead, without a model: scans of N tokens in sequence\nand parallel over time, by "
         "channels", 0},
        {"json", 0, CLI_FLAG, &j.json, 0, 0, NULL, "one JSON object a line instead of a table", 0}};
    const cli_page page = {
        "bench",
        "(-m MODEL | --synthetic NAME [--type T] | --scan N) [options]",
        "Measures what this machine can do at most (streaming reads, float32 FMA, 16- and 8-bit\n"
        "products), then how fast the model runs, also as a share of those limits.",
        "Each line: median of the repetitions; spread = (largest - smallest) / median.\n"
        "matrices: the model's matrices only read, one after the other, each by all threads.\n"
        "Example: mamba bench --synthetic 130m --type q8 --threads 1,2 --json\n",
        options,
        (int)(sizeof options / sizeof options[0])};
    code = cli_parse(&page, argc, argv, 0, &n_rest);
    return code >= 0 ? code : bench_go(&j);
}

#endif /* BENCH_H */
