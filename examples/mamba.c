/*  mamba: the command line of mamba.h: run, score, logits, tokenize, detokenize, info, bench.
 *
 *      make build/mamba        or        cc -O2 -fopenmp -I. examples/mamba.c -o mamba -lm
 *      build/mamba run -m examples/tales.mamba -p "Once upon a time" -n 200
 *
 *  It carries the implementation itself; cli.h holds options, files and messages, bench.h the
 * measurements.
 */
#include "cli.h"

#include "profile.h"

#define MAMBA_IMPLEMENTATION
#include "../mamba.h"

/* ---- the model ------------------------------------------------------------------------------- */

typedef struct {
    const char *path, *target;
    int64_t threads;
    int copy;
    mamba_model *model;
    mamba_info info;
} cli_model;

/* The options that every command with a model takes. */
#define CLI_MODEL_OPTIONS(m)                                                                       \
    {"model", 'm', CLI_TEXT, &(m).path, 0, 0, "FILE", "the .mamba file (required)", 0},            \
    {"target", 0, CLI_TEXT, &(m).target, 0, 0, "NAME", cli_target_help, 0},                        \
    {"threads", 't', CLI_INT, &(m).threads, 0, 1024, "T", cli_threads_help, 0},                    \
    {"copy", 0, CLI_FLAG, &(m).copy, 0, 0, NULL, cli_copy_help, 0}

static const char cli_target_help[] =
    "kernels to use: a name that `mamba info` lists\n(default: the best of this machine)";
static const char cli_threads_help[] = "threads, 0 = all cores (default: 0)";
static const char cli_copy_help[] = "read the file into memory instead of mapping it";

static int cli_error(const mamba_error *err) {
    char text[512];
    (void)mamba_error_text(err, text, sizeof text);
    return cli_fail(CLI_FAILED, "%s", text);
}

static int cli_find_target(const char *name, const mamba_target **target) {
    char names[256] = "";
    cli_quoted q;
    int i;
    *target = NULL;
    if (name == NULL) {
        return CLI_OK;
    }
    *target = mamba_target_find(name, strlen(name));
    if (*target != NULL && mamba_target_usable(*target)) {
        return CLI_OK;
    }
    for (i = 0; mamba_target_at(i) != NULL; i++) {
        if (mamba_target_usable(mamba_target_at(i))) {
            size_t n = strlen(names);
            (void)snprintf(names + n, sizeof names - n, " %s",
                           mamba_target_name(mamba_target_at(i)));
        }
    }
    return cli_fail(
        *target ? CLI_FAILED : CLI_USAGE, "--target: found '%s', %s; on this machine there are:%s",
        cli_quote(&q, name, strlen(name)),
        *target ? "which this machine cannot run" : "which this program does not know", names);
}

static int cli_open_model(cli_model *m, const char *command) {
    mamba_config config;
    mamba_error err;
    int code;
    if (m->path == NULL) {
        return cli_fail(CLI_USAGE,
                        "%s: no model: give -m FILE (mamba-convert makes one from a checkpoint)",
                        command);
    }
    memset(&config, 0, sizeof config);
    config.copy = (uint32_t)m->copy;
    config.n_threads = (int32_t)m->threads;
    code = cli_find_target(m->target, &config.target);
    if (code != CLI_OK) {
        return code;
    }
    if (mamba_open(m->path, strlen(m->path), &config, &m->model, &err) != MAMBA_OK) {
        return cli_error(&err);
    }
    mamba_model_info(m->model, &m->info);
    return CLI_OK;
}

static int cli_need_vocabulary(const cli_model *m, const char *command) {
    if (m->info.n_vocab == 0) {
        return cli_fail(CLI_FAILED,
                        "%s: this model takes vectors, not tokens; see examples/vectors.c",
                        command);
    }
    return CLI_OK;
}

/* Appends the ids of n bytes of text. */
static int cli_encode(const cli_model *m, const char *text, size_t n, unsigned flags,
                      cli_ids *list) {
    const mamba_tokenizer *t = mamba_model_tokenizer(m->model);
    mamba_error err;
    size_t room = n / 2 + 64;
    size_t need = 0;
    mamba_status status;
    if (t == NULL) {
        return cli_fail(
            CLI_FAILED,
            "this model has no tokenizer: give ids with --tokens, or convert again with "
            "--tokenizer FILE");
    }
    do {
        if (cli_ids_reserve(list, room) != CLI_OK) {
            return CLI_FAILED;
        }
        status =
            mamba_encode(t, text, n, flags, list->ids + list->n, list->cap - list->n, &need, &err);
        room = need;
    } while (status == MAMBA_ERR_RANGE && need > list->cap - list->n);
    if (status != MAMBA_OK) {
        return cli_error(&err);
    }
    list->n += need;
    return CLI_OK;
}

/* The text given with -p or -f, else standard input. */
static int cli_read_text(const cli_page *page, const char *text, const char *path, cli_text *out) {
    if (text != NULL && path != NULL) {
        return cli_fail(CLI_USAGE, "%s: give -p or -f, not both", page->name);
    }
    if (text != NULL) {
        return cli_append(out, text, strlen(text));
    }
    if (path == NULL && isatty(0)) {
        (void)fputs("mamba: reading text from the keyboard; end it with Ctrl-D\n", stderr);
    }
    return cli_read_file(path ? path : "-", out);
}

/* A state and room for `rows` logits vectors. */
static int cli_create(const cli_model *m, int64_t max_tokens, size_t rows, mamba_state **state,
                      float **logits) {
    mamba_state_options options;
    mamba_error err;
    uint64_t floats;
    memset(&options, 0, sizeof options);
    options.max_tokens = max_tokens > (int64_t)1 << 31 ? (int64_t)1 << 31 : max_tokens;
    *logits = NULL;
    *state = NULL;
    if (!mbi_mul_ok(rows, (uint64_t)m->info.n_vocab, &floats) || floats > SIZE_MAX / 8 ||
        (*logits = (float *)malloc((size_t)floats * sizeof(float))) == NULL) {
        return cli_fail(CLI_FAILED, "out of memory: %llu rows of logits%s",
                        (unsigned long long)rows, rows > 1 ? "; use --chunk N" : "");
    }
    if (mamba_state_create(m->model, &options, state, &err) != MAMBA_OK) {
        return cli_error(&err);
    }
    return CLI_OK;
}

/* Feeds tokens piece by piece so that Ctrl-C and the bar get their turn; the last one's logits. */
static int cli_feed(mamba_state *state, const cli_ids *list, size_t n, float *logits,
                    size_t n_logits) {
    enum { PIECE = 512 };
    mamba_error err;
    cli_progress bar;
    size_t at;
    cli_progress_start(&bar, "prompt");
    for (at = 0; at < n; at += PIECE) {
        size_t piece = n - at < PIECE ? n - at : (size_t)PIECE;
        int last = at + piece == n;
        if (cli_stop) {
            break;
        }
        if (mamba_prefill(state, list->ids + at, piece, last ? logits : NULL, last ? n_logits : 0,
                          &err)) {
            cli_progress_end(&bar);
            return cli_error(&err);
        }
        cli_progress_show(&bar, at + piece, n);
    }
    cli_progress_end(&bar);
    return at < n ? CLI_INTERRUPTED : CLI_OK;
}

/* ---- run ------------------------------------------------------------------------------------- */

/* A generation: what the options say and what it needs while it runs. */
typedef struct {
    cli_model m;
    const char *prompt, *file, *tokens, *state_in, *state_out;
    int64_t n, top_k;
    double temperature, top_p, min_p, repeat_penalty;
    uint64_t seed;
    int greedy, ignore_eos, special, echo, ids_out, stats;

    cli_ids list; /* tokens to feed before the first draw */
    mamba_state *state;
    float *logits;
    mamba_sampler sampler;
    mamba_utf8_stream utf8;
    cli_text out;
    int32_t pending; /* the last token, not yet fed; -1 = none */
    uint64_t n_printed, n_prompt, n_drawn, n_steps;
    double loaded, prompt_seconds, step_seconds;
} run_job;

/* A session file: all that the continuation depends on.  Little-endian:
 *    0  8 "MAMBASES"   8 4 version 1   12 4 bytes of the sampler   16 8 bytes of the snapshot
 *   24  4 token drawn but not fed (-1: none)   28 4 n   32 4 the first n bytes of an unfinished
 * character 36  4 zero   40 .. sampler, snapshot (mamba_state_save), XXH64 of all before */
enum { RUN_SESSION_HEADER = 40, RUN_SESSION_VERSION = 1 };
#define RUN_SESSION_MAGIC "MAMBASES"

static int run_save_session(run_job *j) {
    size_t snapshot = mamba_state_save_bytes(j->state);
    size_t total = RUN_SESSION_HEADER + sizeof j->sampler + snapshot + 8;
    unsigned char *p = (unsigned char *)calloc(total, 1);
    const uint32_t words[2] = {RUN_SESSION_VERSION, (uint32_t)sizeof j->sampler};
    uint64_t wide = snapshot;
    cli_output out;
    mamba_error err;
    int code;
    if (p == NULL) {
        return cli_fail(CLI_FAILED, "out of memory: %llu bytes for --state-out",
                        (unsigned long long)total);
    }
    memcpy(p, RUN_SESSION_MAGIC, 8);
    memcpy(p + 8, words, 8);
    memcpy(p + 16, &wide, 8);
    memcpy(p + 24, &j->pending, 4);
    memcpy(p + 28, &j->utf8.n_pending, 4);
    memcpy(p + 32, j->utf8.pending, j->utf8.n_pending);
    memcpy(p + RUN_SESSION_HEADER, &j->sampler, sizeof j->sampler);
    if (mamba_state_save(j->state, p + RUN_SESSION_HEADER + sizeof j->sampler, snapshot, NULL,
                         &err)) {
        free(p);
        return cli_error(&err);
    }
    wide = mbi_hash_bytes(p, total - 8);
    memcpy(p + total - 8, &wide, 8);
    code = cli_output_open(&out, j->state_out);
    if (code == CLI_OK) {
        code = cli_output_close(&out, cli_output_write(&out, p, total));
    }
    free(p);
    return code;
}

static int run_session_fail(const run_job *j, const char *what) {
    cli_quoted q;
    return cli_fail(CLI_FAILED, "--state-in '%s': %s",
                    cli_quote(&q, j->state_in, strlen(j->state_in)), what);
}

/* Checks a session file before anything of it is used. */
static int run_check_session(const run_job *j, const cli_text *t) {
    const char *p = t->bytes;
    size_t fixed = RUN_SESSION_HEADER + sizeof j->sampler + 8;
    if (t->n < 12 || memcmp(p, RUN_SESSION_MAGIC, 8) != 0) {
        return run_session_fail(j, "not a session file; `mamba run --state-out` writes them");
    }
    if (mbi_load_u32(p + 8) != RUN_SESSION_VERSION) {
        return run_session_fail(j, "its version is not known to this program");
    }
    if (t->n < fixed || mbi_load_u32(p + 12) != sizeof j->sampler ||
        mbi_load_u64(p + 16) != t->n - fixed) {
        return run_session_fail(j, "it is truncated or its sizes are damaged");
    }
    if (mbi_hash_bytes(p, t->n - 8) != mbi_load_u64(p + t->n - 8)) {
        return run_session_fail(j, "it does not match its checksum: the file is damaged");
    }
    if (mbi_load_u32(p + 28) > 3 || (int32_t)mbi_load_u32(p + 24) < -1 ||
        (int32_t)mbi_load_u32(p + 24) >= j->m.info.n_vocab) {
        return run_session_fail(j, "its token does not belong to this model");
    }
    return CLI_OK;
}

/* Takes state, token and random numbers from the session file; settings stay those of the options.
 */
static int run_load_session(run_job *j, const cli_page *page, const cli_text *t) {
    mamba_sampler saved;
    mamba_error err;
    const char *p = t->bytes;
    if (mamba_state_restore(j->state, p + RUN_SESSION_HEADER + sizeof saved,
                            t->n - RUN_SESSION_HEADER - sizeof saved - 8, &err) != MAMBA_OK) {
        char text[512];
        (void)mamba_error_text(&err, text, sizeof text);
        return run_session_fail(j, text);
    }
    memcpy(&saved, p + RUN_SESSION_HEADER, sizeof saved);
    memcpy(j->sampler.history, saved.history, sizeof saved.history);
    j->sampler.n_history = saved.n_history;
    if (!cli_given(page, "seed")) {
        j->sampler.seed = saved.seed;
        j->sampler.n_draws = saved.n_draws;
    }
    memcpy(&j->pending, p + 24, 4);
    memcpy(&j->utf8.n_pending, p + 28, 4);
    memcpy(j->utf8.pending, p + 32, 4);
    return CLI_OK;
}

/* Text so far decoded goes out; ids go out separated by spaces. */
static int run_print(run_job *j, int32_t id) {
    const mamba_tokenizer *t = mamba_model_tokenizer(j->m.model);
    mamba_error err;
    size_t n = 0;
    int code;
    if (j->ids_out) {
        char text[24];
        int length = snprintf(text, sizeof text, "%s%ld", j->n_printed++ ? " " : "", (long)id);
        return cli_put(text, (size_t)length);
    }
    if (id >= mamba_token_count(t)) { /* a padding row of the vocabulary: no text */
        return CLI_OK;
    }
    while (mamba_stream_decode(t, &j->utf8, id, j->out.bytes, j->out.cap, &n, &err) != MAMBA_OK) {
        if (err.status != MAMBA_ERR_RANGE) {
            return cli_error(&err);
        }
        j->out.n = 0;
        code = cli_reserve(&j->out, n);
        if (code != CLI_OK) {
            return code;
        }
    }
    return cli_put(j->out.bytes, n);
}

/* Draws and prints until n tokens, the end token or Ctrl-C. */
static int run_generate(run_job *j) {
    size_t n_vocab = (size_t)j->m.info.n_vocab;
    mamba_error err;
    double start = cli_seconds();
    int code = CLI_OK;
    while (code == CLI_OK && (j->n < 0 || j->n_drawn < (uint64_t)j->n)) {
        if (j->n_drawn > 0) {
            if (cli_stop) {
                code = CLI_INTERRUPTED;
                break;
            }
            if (mamba_step(j->state, j->pending, j->logits, n_vocab, &err) != MAMBA_OK) {
                code = cli_error(&err);
                break;
            }
            j->n_steps++;
        }
        if (mamba_sample(&j->sampler, j->logits, n_vocab, (size_t)j->m.info.n_vocab_used,
                         &j->pending, &err)) {
            code = cli_error(&err);
            break;
        }
        j->n_drawn++;
        if (j->pending == j->m.info.eos && !j->ignore_eos) {
            break;
        }
        code = run_print(j, j->pending);
    }
    j->step_seconds = cli_seconds() - start;
    if (code == CLI_OK && cli_stop) {
        code = CLI_INTERRUPTED;
    }
    return code;
}

/* Bytes that still wait; with --state-out they wait in the file. */
static int run_print_end(run_job *j, int code) {
    char rest[4];
    size_t n = 0;
    int put = CLI_OK;
    if (!j->ids_out && j->state_out == NULL &&
        mamba_stream_flush(&j->utf8, rest, sizeof rest, &n, NULL) == MAMBA_OK) {
        put = cli_put(rest, n);
    }
    if (put == CLI_OK && (isatty(1) || (j->ids_out && j->n_printed))) {
        put = cli_put("\n", 1);
    }
    return code == CLI_OK || code == CLI_INTERRUPTED ? (put == CLI_OK ? code : put) : code;
}

static void run_print_stats(const run_job *j) {
    double prompt = j->prompt_seconds;
    double step = j->step_seconds;
    (void)fprintf(stderr, "model:     %s %s, target %s, opened in %.2f ms\n",
                  j->m.info.architecture, j->m.info.weight_type, j->m.info.target, 1e3 * j->loaded);
    (void)fprintf(stderr, "prompt:    %llu tokens in %.3f s, %.1f tokens/s\n",
                  (unsigned long long)j->n_prompt, prompt,
                  prompt > 0 ? (double)j->n_prompt / prompt : 0.0);
    (void)fprintf(stderr, "generated: %llu tokens in %.3f s, %.1f tokens/s\n",
                  (unsigned long long)j->n_drawn, step, step > 0 ? (double)j->n_steps / step : 0.0);
    (void)fprintf(stderr, "state:     %llu bytes at token %llu, seed %llu\n",
                  (unsigned long long)j->m.info.state_bytes,
                  (unsigned long long)mamba_state_position(j->state),
                  (unsigned long long)j->sampler.seed);
}

/* The prompt's ids, behind the session's last token if there is one. */
static int run_prompt(run_job *j, const cli_page *page) {
    cli_text text = {NULL, 0, 0};
    int code = CLI_OK;
    if ((j->prompt != NULL) + (j->file != NULL) + (j->tokens != NULL) > 1) {
        return cli_fail(CLI_USAGE, "run: give one of -p, -f and --tokens");
    }
    if (j->tokens != NULL) {
        code = cli_ids_argument(&j->list, j->tokens, j->m.info.n_vocab);
    } else if (j->prompt != NULL || j->file != NULL || j->state_in == NULL) {
        code = cli_read_text(page, j->prompt, j->file, &text);
        if (code == CLI_OK && text.n != 0) {
            code = cli_encode(&j->m, text.bytes, text.n, j->special ? MAMBA_PARSE_SPECIAL : 0,
                              &j->list);
        }
        if (code == CLI_OK && j->echo) {
            code = cli_put(text.bytes, text.n);
        }
    }
    free(text.bytes);
    if (code == CLI_OK && mamba_model_tokenizer(j->m.model) == NULL) {
        j->ids_out = 1;
    }
    return code;
}

/* With nothing to go on, a text starts behind the model's bos or eos token. */
static int run_start_token(run_job *j) {
    int32_t id = j->m.info.bos >= 0 ? j->m.info.bos : j->m.info.eos;
    if (id < 0 || id >= j->m.info.n_vocab) {
        return cli_fail(
            CLI_FAILED,
            "the prompt is empty and the model names no token to start from: give -p TEXT");
    }
    if (cli_ids_reserve(&j->list, 1) != CLI_OK) {
        return CLI_FAILED;
    }
    j->list.ids[j->list.n++] = id;
    return CLI_OK;
}

static void run_settings(run_job *j) {
    mamba_sampler_init(&j->sampler, j->seed);
    j->sampler.temperature = j->greedy ? 0.0f : (float)j->temperature;
    j->sampler.top_k = (int32_t)j->top_k;
    j->sampler.top_p = (float)j->top_p;
    j->sampler.min_p = (float)j->min_p;
    j->sampler.repeat_penalty = (float)j->repeat_penalty;
}

/* Prompt, session and state are ready: feed and generate. */
static int run_feed(run_job *j) {
    double start = cli_seconds();
    size_t n = j->list.n;
    size_t i;
    int code;
    if (j->n == 0) { /* the last token waits for the draw of a later run */
        j->pending = j->list.ids[--n];
    }
    for (i = j->n_prompt < j->list.n ? j->list.n - (size_t)j->n_prompt : 0; i < j->list.n; i++) {
        mamba_sampler_accept(&j->sampler, j->list.ids[i]);
    }
    code = cli_feed(j->state, &j->list, n, j->n == 0 ? NULL : j->logits, (size_t)j->m.info.n_vocab);
    j->prompt_seconds = cli_seconds() - start;
    j->n_prompt = n;
    if (code != CLI_OK || j->n == 0) {
        return code;
    }
    code = run_generate(j);
    return run_print_end(j, code);
}

static int run_start(run_job *j, const cli_page *page) {
    cli_text session = {NULL, 0, 0};
    uint64_t before = 0;
    int64_t room;
    double start = cli_seconds();
    int code = cli_open_model(&j->m, "run");
    j->loaded = cli_seconds() - start;
    if (code == CLI_OK) {
        code = cli_need_vocabulary(&j->m, "run");
    }
    if (code == CLI_OK && j->state_in != NULL) {
        code = cli_read_file(j->state_in, &session);
        code = code == CLI_OK ? run_check_session(j, &session) : code;
        if (code == CLI_OK && session.n >= RUN_SESSION_HEADER + sizeof j->sampler + 48) {
            before = mbi_load_u64(session.bytes + RUN_SESSION_HEADER + sizeof j->sampler + 32);
        }
    }
    if (code == CLI_OK) {
        code = run_prompt(j, page);
    }
    if (code == CLI_OK) {
        run_settings(j);
        room = before > (uint64_t)1 << 31
                   ? 0
                   : (int64_t)before + (int64_t)j->list.n + 2 + (j->n < 0 ? 65536 : j->n);
        code = cli_create(&j->m, room < 4096 ? 4096 : room, 1, &j->state, &j->logits);
    }
    j->pending = -1;
    if (code == CLI_OK && j->state_in != NULL) {
        code = run_load_session(j, page, &session);
    }
    free(session.bytes);
    j->n_prompt = j->list.n;
    if (code == CLI_OK && j->pending >= 0) {
        code = cli_ids_reserve(&j->list, 1);
        if (code == CLI_OK) {
            memmove(j->list.ids + 1, j->list.ids, j->list.n * sizeof *j->list.ids);
            j->list.ids[0] = j->pending;
            j->list.n++;
        }
    }
    if (code == CLI_OK && j->list.n == 0) {
        code = run_start_token(j);
        j->n_prompt = 1;
    }
    return code == CLI_OK ? cli_reserve(&j->out, 256) : code;
}

static int run_go(run_job *j, const cli_page *page) {
    int code;
    if (j->greedy && cli_given(page, "temp") && j->temperature > 0.0) {
        return cli_fail(CLI_USAGE, "run: --greedy means --temp 0; give one of them");
    }
    if (!cli_given(page, "seed")) {
        struct timespec t;
        (void)clock_gettime(CLOCK_REALTIME, &t);
        j->seed = ((uint64_t)t.tv_sec * 1000003u + (uint64_t)t.tv_nsec) & 0xffffffffu;
    }
    code = run_start(j, page);
    if (code == CLI_OK) {
        code = run_feed(j);
        if (j->state_out != NULL &&
            (code == CLI_OK || (code == CLI_INTERRUPTED && j->n_drawn > 0))) {
            int saved = run_save_session(j);
            code = saved == CLI_OK ? code : saved;
        }
        if (j->stats) {
            run_print_stats(j);
        }
    }
    mamba_state_free(j->state);
    mamba_close(j->m.model);
    free(j->logits);
    free(j->list.ids);
    free(j->out.bytes);
    return code;
}

static int cmd_run(int argc, char **argv) {
    run_job j = {.n = 128, .temperature = 0.8, .top_k = 40, .top_p = 0.95, .repeat_penalty = 1.0};
    int n_rest;
    int code;
    cli_option options[] = {
        CLI_MODEL_OPTIONS(j.m),
        {"prompt", 'p', CLI_ANY_TEXT, &j.prompt, 0, 0, "TEXT",
         "text to continue; empty = start from the model's\nbos or eos token", 0},
        {"file", 'f', CLI_TEXT, &j.file, 0, 0, "FILE",
         "read the prompt from FILE, - = standard input", 0},
        {"tokens", 0, CLI_TEXT, &j.tokens, 0, 0, "IDS", "the prompt as ids: 5,17,3 or @FILE", 0},
        {"special", 0, CLI_FLAG, &j.special, 0, 0, NULL,
         "special tokens in the prompt's text become their ids", 0},
        {"n", 'n', CLI_INT, &j.n, -1, 2147483647, "N",
         "tokens to generate; 0 = only take in the prompt,\n-1 = until the end token (default: "
         "128)",
         0},
        {"temp", 0, CLI_FLOAT, &j.temperature, 0, 100, "X",
         "temperature, 0 = greedy (default: 0.8)", 0},
        {"top-k", 0, CLI_INT, &j.top_k, 0, 16777216, "K",
         "keep the K most probable, 0 = off (default: 40)", 0},
        {"top-p", 0, CLI_FLOAT, &j.top_p, 0, 1, "X",
         "keep a total probability of X, 1 = off (default: 0.95)", 0},
        {"min-p", 0, CLI_FLOAT, &j.min_p, 0, 1, "X",
         "keep p >= X * the largest p, 0 = off (default: 0)", 0},
        {"repeat-penalty", 0, CLI_FLOAT, &j.repeat_penalty, 1, 100, "X",
         "weaken tokens among the last 64, 1 = off (default: 1)", 0},
        {"seed", 's', CLI_SEED, &j.seed, 0, 0, "S",
         "same seed, same text (default: from the clock;\n--stats shows it)", 0},
        {"greedy", 0, CLI_FLAG, &j.greedy, 0, 0, NULL,
         "always the most probable token, as --temp 0", 0},
        {"ignore-eos", 0, CLI_FLAG, &j.ignore_eos, 0, 0, NULL, "go on behind the end token", 0},
        {"echo", 0, CLI_FLAG, &j.echo, 0, 0, NULL, "print the prompt's text first", 0},
        {"ids", 0, CLI_FLAG, &j.ids_out, 0, 0, NULL, "print token ids instead of text", 0},
        {"state-in", 0, CLI_TEXT, &j.state_in, 0, 0, "FILE",
         "go on where --state-out stopped, as if never stopped;\nthen no prompt is needed", 0},
        {"state-out", 0, CLI_TEXT, &j.state_out, 0, 0, "FILE",
         "keep the session in FILE (same model only)", 0},
        {"stats", 0, CLI_FLAG, &j.stats, 0, 0, NULL, "times and rates on standard error", 0}};
    const cli_page page = {
        "run",
        "-m MODEL [-p PROMPT | -f FILE | --tokens IDS] [-n N] [options]",
        "Continues a text; the continuation goes to standard output as it is made.\n"
        "Without -p, -f, --tokens and --state-in the prompt is standard input.",
        "Give every option once; values as `--opt value` or `--opt=value`.\n"
        "Example: mamba run -m tales.mamba -p \"Once upon a time\" -n 200 --seed 1 --echo\n",
        options,
        (int)(sizeof options / sizeof options[0])};
    code = cli_parse(&page, argc, argv, 0, &n_rest);
    return code >= 0 ? code : run_go(&j, &page);
}

/* ---- score ----------------------------------------------------------------------------------- */

/* A stream of token ids out of a file of text or of ids, in constant memory. */
typedef struct {
    const cli_model *m;
    cli_source source;
    cli_text text; /* read, not yet turned into ids */
    cli_ids list;  /* turned, not yet scored, from list.ids[at] on */
    size_t at;
    int is_ids;
    unsigned flags;
} score_feed;

/* Where text may be cut so that its pieces give the ids of the whole: behind the last line end in
 * front of a printable ASCII character that is no space (tokens begin there in every split
 * pattern); ids: behind a separator.  0 = nowhere. */
static size_t score_cut(const score_feed *f) {
    size_t i;
    for (i = f->text.n; i-- > 1;) {
        const char *p = f->text.bytes + i;
        if (f->is_ids ? cli_is_separator(p[-1]) : (p[-1] == '\n' && p[0] > 0x20 && p[0] < 0x7f)) {
            return i;
        }
    }
    return 0;
}

/* More ids into f->list; at_end of the source and an empty list mean the end. */
static int score_fill(score_feed *f) {
    enum { BLOCK = 1 << 14 };
    size_t cut = 0;
    int code = CLI_OK;
    f->list.n = f->at = 0;
    while (code == CLI_OK && cut == 0 && !f->source.at_end) {
        size_t want = f->text.n < BLOCK ? (size_t)BLOCK : f->text.n;
        size_t before = f->text.n;
        while (code == CLI_OK && !f->source.at_end && f->text.n - before < want) {
            code = cli_source_read(&f->source, &f->text, want - (f->text.n - before));
        }
        cut = f->source.at_end ? f->text.n : score_cut(f);
    }
    if (code == CLI_OK && cut > 0) {
        code = f->is_ids
                   ? cli_ids_parse(&f->list, f->text.bytes, cut, 0, f->m->info.n_vocab,
                                   f->source.path)
                   : cli_encode(f->m, f->text.bytes, cut, f->flags, &f->list);
        memmove(f->text.bytes, f->text.bytes + cut, f->text.n - cut);
        f->text.n -= cut;
    }
    return code;
}

/* Up to cap ids; *n = 0 at the end. */
static int score_next(score_feed *f, int32_t *ids, size_t cap, size_t *n) {
    *n = 0;
    while (*n < cap) {
        size_t take = f->list.n - f->at < cap - *n ? f->list.n - f->at : cap - *n;
        if (take == 0) {
            int code;
            if (f->source.at_end && f->text.n == 0) {
                return CLI_OK;
            }
            code = score_fill(f);
            if (code != CLI_OK) {
                return code;
            }
            continue;
        }
        memcpy(ids + *n, f->list.ids + f->at, take * sizeof *ids);
        *n += take;
        f->at += take;
    }
    return CLI_OK;
}

typedef struct {
    cli_model m;
    const char *file, *tokens;
    int per_token, bos, special;
    score_feed feed;
    mamba_state *state;
    float *logits; /* SCORE_CHUNK + 1 rows: row 0 is the last one of the chunk before */
    int have_row;
    uint64_t n_read, n_scored;
    double sum;
} score_job;

enum { SCORE_CHUNK = 128 };

/* -log p(id) in nats; NaN when the logits are no numbers. */
static double score_nll(const float *logits, size_t n, int32_t id) {
    float most = logits[0];
    double sum = 0.0;
    size_t i;
    for (i = 1; i < n; i++) {
        most = logits[i] > most ? logits[i] : most;
    }
    for (i = 0; i < n; i++) {
        sum += exp((double)logits[i] - (double)most);
    }
    return log(sum) + (double)most - (double)logits[id];
}

static int score_chunk(score_job *j, const int32_t *ids, size_t n, int first_is_context) {
    size_t n_vocab = (size_t)j->m.info.n_vocab;
    mamba_error err;
    mamba_io io;
    size_t i;
    memset(&io, 0, sizeof io);
    io.tokens = ids;
    io.n = n;
    io.want_logits = MAMBA_WANT_ALL;
    io.logits = j->logits + n_vocab;
    io.n_logits = n * n_vocab;
    if (mamba_run(j->state, &io, &err) != MAMBA_OK) {
        return cli_error(&err);
    }
    for (i = 0; i < n; i++) {
        double nll;
        uint64_t position = j->n_read + i;
        if (i == 0 && (!j->have_row || first_is_context)) {
            continue;
        }
        nll = score_nll(j->logits + i * n_vocab, n_vocab, ids[i]);
        if (!(nll <= 1e300)) {
            return cli_fail(
                CLI_FAILED,
                "the logits for token %llu are not finite: check the model with `mamba info "
                "--check`",
                (unsigned long long)position);
        }
        j->sum += nll;
        j->n_scored++;
        if (j->per_token &&
            printf("%llu %ld %.6f\n", (unsigned long long)position, (long)ids[i], nll) < 0) {
            return CLI_FAILED;
        }
    }
    memcpy(j->logits, j->logits + n * n_vocab, n_vocab * sizeof(float));
    j->have_row = 1;
    j->n_read += n;
    return CLI_OK;
}

static int score_all(score_job *j) {
    int32_t ids[SCORE_CHUNK];
    size_t n = 0;
    cli_progress bar;
    int code = CLI_OK;
    cli_progress_start(&bar, "score");
    if (j->bos) {
        ids[0] = j->m.info.bos >= 0 ? j->m.info.bos : j->m.info.eos;
        if (ids[0] < 0 || ids[0] >= j->m.info.n_vocab) {
            return cli_fail(CLI_FAILED,
                            "score: --bos, but the model names neither a bos nor an eos token");
        }
        code = score_chunk(j, ids, 1, 1);
        j->n_read = 0;
    }
    while (code == CLI_OK) {
        code = score_next(&j->feed, ids, SCORE_CHUNK, &n);
        if (code != CLI_OK || n == 0) {
            break;
        }
        code = score_chunk(j, ids, n, 0);
        cli_progress_show(&bar, j->n_read, 0);
        if (cli_stop && code == CLI_OK) {
            code = CLI_INTERRUPTED;
        }
    }
    cli_progress_end(&bar);
    return code;
}

/* Tokens that attention layers must have room for: no text has more tokens than bytes.  (Other
 * layers need no room.) */
static int64_t score_room(const cli_source *source) {
    struct stat st;
    if (fstat(source->fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size > (1 << 20)) {
        return (int64_t)1 << 20;
    }
    return (int64_t)st.st_size + 16;
}

static int score_go(score_job *j, const cli_page *page) {
    int code;
    if ((j->file != NULL) == (j->tokens != NULL)) {
        return cli_fail(CLI_USAGE, "score: give -f TEXT or --tokens FILE (see mamba %s --help)",
                        page->name);
    }
    code = cli_open_model(&j->m, "score");
    if (code == CLI_OK) {
        code = cli_need_vocabulary(&j->m, "score");
    }
    j->feed.m = &j->m;
    j->feed.is_ids = j->tokens != NULL;
    j->feed.flags = j->special ? MAMBA_PARSE_SPECIAL : 0;
    j->feed.source.fd = -1;
    if (code == CLI_OK) {
        const char *path = j->tokens ? j->tokens : j->file;
        code = cli_source_open(&j->feed.source, j->tokens && path[0] == '@' ? path + 1 : path);
    }
    if (code == CLI_OK) {
        code = cli_create(&j->m, score_room(&j->feed.source), SCORE_CHUNK + 1, &j->state,
                          &j->logits);
    }
    if (code == CLI_OK) {
        code = score_all(j);
    }
    if ((code == CLI_OK || code == CLI_INTERRUPTED) && j->n_scored == 0) {
        code = code != CLI_OK
                   ? code
                   : cli_fail(CLI_FAILED,
                              "score: nothing to score: found %llu tokens, allowed: at least %d",
                              (unsigned long long)j->n_read, j->bos ? 1 : 2);
    } else if (code == CLI_OK || code == CLI_INTERRUPTED) {
        double mean = j->sum / (double)j->n_scored;
        (void)printf("tokens %llu\nscored %llu\nnll %.6f\nperplexity %.6f\n",
                     (unsigned long long)j->n_read, (unsigned long long)j->n_scored, mean,
                     exp(mean));
    }
    mamba_state_free(j->state);
    mamba_close(j->m.model);
    free(j->logits);
    free(j->feed.text.bytes);
    free(j->feed.list.ids);
    if (j->feed.source.fd >= 0) {
        cli_source_close(&j->feed.source);
    }
    return code;
}

static int cmd_score(int argc, char **argv) {
    score_job j = {.per_token = 0};
    int n_rest;
    int code;
    cli_option options[] = {
        CLI_MODEL_OPTIONS(j.m),
        {"file", 'f', CLI_TEXT, &j.file, 0, 0, "TEXT",
         "score the bytes of this file, - = standard input", 0},
        {"tokens", 0, CLI_TEXT, &j.tokens, 0, 0, "FILE",
         "score the ids in this file (- = standard input),\nseparated by spaces, commas or line "
         "ends",
         0},
        {"per-token", 0, CLI_FLAG, &j.per_token, 0, 0, NULL,
         "first one line for each scored token: position (from 0),\nid, -ln p", 0},
        {"bos", 0, CLI_FLAG, &j.bos, 0, 0, NULL,
         "put the model's bos (or eos) token in front and score\nthe first token too", 0},
        {"special", 0, CLI_FLAG, &j.special, 0, 0, NULL,
         "special tokens in the text become their ids", 0}};
    const cli_page page = {
        "score",
        "-m MODEL (-f TEXT | --tokens FILE) [options]",
        "Mean negative log-likelihood (natural logarithm) and perplexity of a text of any length,\n"
        "in constant memory.  Token 1 has nothing in front and is not scored (see --bos).",
        "Prints the lines: tokens N, scored N, nll X, perplexity X.\n"
        "Example: mamba score -m tales.mamba -f book.txt\n",
        options,
        (int)(sizeof options / sizeof options[0])};
    code = cli_parse(&page, argc, argv, 0, &n_rest);
    return code >= 0 ? code : score_go(&j, &page);
}

/* ---- logits ---------------------------------------------------------------------------------- */

typedef struct {
    cli_model m;
    const char *tokens, *out;
    int64_t chunk;
    int steps;
    cli_ids list;
    mamba_state *state;
    float *logits;
    cli_output output;
} logits_job;

static int logits_write(logits_job *j) {
    size_t n_vocab = (size_t)j->m.info.n_vocab;
    size_t piece = (size_t)j->chunk;
    mamba_error err;
    cli_progress bar;
    size_t at;
    int code = CLI_OK;
    cli_progress_start(&bar, "logits");
    for (at = 0; at < j->list.n && code == CLI_OK; at += piece) {
        mamba_io io;
        memset(&io, 0, sizeof io);
        io.tokens = j->list.ids + at;
        io.n = j->list.n - at < piece ? j->list.n - at : piece;
        io.want_logits = MAMBA_WANT_ALL;
        io.logits = j->logits;
        io.n_logits = piece * n_vocab;
        if (cli_stop) {
            code = CLI_INTERRUPTED;
        } else if ((j->steps ? mamba_step(j->state, io.tokens[0], j->logits, n_vocab, &err)
                             : mamba_run(j->state, &io, &err)) != MAMBA_OK) {
            code = cli_error(&err);
        } else {
            code = cli_output_write(&j->output, j->logits, io.n * n_vocab * sizeof(float));
        }
        cli_progress_show(&bar, at + io.n, j->list.n);
    }
    cli_progress_end(&bar);
    return code;
}

static int logits_go(logits_job *j, const cli_page *page) {
    int code;
    if (j->tokens == NULL || j->out == NULL) {
        return cli_fail(CLI_USAGE,
                        "logits: --tokens IDS and -o OUT are needed (see mamba %s --help)",
                        page->name);
    }
    if (j->steps && cli_given(page, "chunk")) {
        return cli_fail(CLI_USAGE, "logits: give --steps or --chunk N, not both");
    }
    code = cli_open_model(&j->m, "logits");
    if (code == CLI_OK) {
        code = cli_need_vocabulary(&j->m, "logits");
    }
    if (code == CLI_OK) {
        code = cli_ids_argument(&j->list, j->tokens, j->m.info.n_vocab);
    }
    if (code == CLI_OK && j->list.n == 0) {
        code = cli_fail(CLI_FAILED, "logits: no token ids in --tokens, at least one is needed");
    }
    if (code == CLI_OK) {
        if (j->steps) {
            j->chunk = 1;
        } else if (j->chunk == 0 || (uint64_t)j->chunk > j->list.n) {
            j->chunk = (int64_t)j->list.n;
        }
        code = cli_create(&j->m, (int64_t)j->list.n, (size_t)j->chunk, &j->state, &j->logits);
    }
    if (code == CLI_OK) {
        code = cli_output_open(&j->output, j->out);
        if (code == CLI_OK) {
            code = cli_output_close(&j->output, logits_write(j));
        }
    }
    mamba_state_free(j->state);
    mamba_close(j->m.model);
    free(j->logits);
    free(j->list.ids);
    return code;
}

static int cmd_logits(int argc, char **argv) {
    logits_job j = {.chunk = 0};
    int n_rest;
    int code;
    cli_option options[] = {
        CLI_MODEL_OPTIONS(j.m),
        {"tokens", 0, CLI_TEXT, &j.tokens, 0, 0, "IDS", "5,17,3 or @FILE (required)", 0},
        {"out", 'o', CLI_TEXT, &j.out, 0, 0, "FILE",
         "where to write, - = standard output (required)", 0},
        {"steps", 0, CLI_FLAG, &j.steps, 0, 0, NULL, "one token at a time", 0},
        {"chunk", 0, CLI_INT, &j.chunk, 1, 2147483647, "N",
         "N tokens at a time (default: the whole prompt at once)", 0}};
    const cli_page page = {
        "logits",
        "-m MODEL --tokens IDS -o OUT.f32 [--steps | --chunk N] [options]",
        "Writes the logits of every token as raw little-endian float32, [tokens, vocabulary].\n"
        "The bits do not depend on --steps, --chunk and --threads.  The file appears whole or\n"
        "not at all.",
        "Example: mamba logits -m tales.mamba --tokens 5,17,3 -o out.f32\n",
        options,
        (int)(sizeof options / sizeof options[0])};
    code = cli_parse(&page, argc, argv, 0, &n_rest);
    return code >= 0 ? code : logits_go(&j, &page);
}

/* ---- tokenize, detokenize -------------------------------------------------------------------- */

static int cmd_tokenize(int argc, char **argv) {
    cli_model m = {NULL, NULL, 1, 0, NULL, {0}};
    const char *prompt = NULL;
    const char *file = NULL;
    int special = 0;
    int no_normalize = 0;
    cli_text text = {NULL, 0, 0};
    cli_ids list = {NULL, 0, 0};
    size_t i;
    int n_rest;
    int code;
    cli_option options[] = {CLI_MODEL_OPTIONS(m),
                            {"prompt", 'p', CLI_ANY_TEXT, &prompt, 0, 0, "TEXT", "the text", 0},
                            {"file", 'f', CLI_TEXT, &file, 0, 0, "FILE",
                             "the bytes of FILE, - = standard input (the default)", 0},
                            {"special", 0, CLI_FLAG, &special, 0, 0, NULL,
                             "special tokens in the text become their ids", 0},
                            {"no-normalize", 0, CLI_FLAG, &no_normalize, 0, 0, NULL,
                             "keep the bytes even where the tokenizer asks for NFC", 0}};
    const cli_page page = {
        "tokenize",
        "-m MODEL [-p TEXT | -f FILE] [options]",
        "Prints the ids of exactly these bytes, separated by spaces, on one line.",
        "Example: mamba tokenize -m tales.mamba -p \"Once upon a time\"\n",
        options,
        (int)(sizeof options / sizeof options[0])};
    code = cli_parse(&page, argc, argv, 0, &n_rest);
    if (code >= 0) {
        return code;
    }
    code = cli_open_model(&m, "tokenize");
    if (code == CLI_OK) {
        code = cli_read_text(&page, prompt, file, &text);
    }
    if (code == CLI_OK) {
        code = cli_encode(
            &m, text.bytes ? text.bytes : "", text.n,
            (special ? MAMBA_PARSE_SPECIAL : 0) | (no_normalize ? MAMBA_NO_NORMALIZE : 0), &list);
    }
    for (i = 0; i < list.n && code == CLI_OK; i++) {
        code = printf("%s%ld", i ? " " : "", (long)list.ids[i]) < 0 ? CLI_FAILED : CLI_OK;
    }
    if (code == CLI_OK) {
        (void)putchar('\n');
    }
    free(list.ids);
    free(text.bytes);
    mamba_close(m.model);
    return code;
}

/* Prints the bytes of the ids: those of a whole text, without the space that some tokenizers put in
 * front. */
static int detokenize_print(const cli_model *m, const cli_ids *list) {
    const mamba_tokenizer *t = mamba_model_tokenizer(m->model);
    mamba_error err;
    char *text;
    size_t n = 0;
    int code = CLI_OK;
    if (t == NULL) {
        return cli_fail(CLI_FAILED,
                        "this model has no tokenizer: convert it again with --tokenizer FILE");
    }
    if (mamba_decode(t, list->ids, list->n, NULL, 0, &n, &err) != MAMBA_OK) {
        return cli_error(&err);
    }
    text = (char *)malloc(n + 1);
    if (text == NULL) {
        return cli_fail(CLI_FAILED, "out of memory");
    }
    if (mamba_decode(t, list->ids, list->n, text, n, &n, &err) != MAMBA_OK) {
        code = cli_error(&err);
    } else if (n != 0 && fwrite(text, 1, n, stdout) != n) {
        code = CLI_FAILED; /* the reason is told when output ends */
    }
    free(text);
    return code;
}

static int cmd_detokenize(int argc, char **argv) {
    cli_model m = {NULL, NULL, 1, 0, NULL, {0}};
    const char *file = NULL;
    cli_ids list = {NULL, 0, 0};
    int n_rest;
    int code;
    int i;
    cli_option options[] = {CLI_MODEL_OPTIONS(m),
                            {"file", 'f', CLI_TEXT, &file, 0, 0, "FILE",
                             "read the ids from FILE, - = standard input", 0}};
    const cli_page page = {
        "detokenize",
        "-m MODEL [IDS... | -f FILE]",
        "Prints exactly the bytes of these token ids, special tokens included, nothing else.\n"
        "IDS are separated by spaces or commas; without any they are read from standard input.",
        "Example: mamba detokenize -m tales.mamba 5 17 3\n",
        options,
        (int)(sizeof options / sizeof options[0])};
    code = cli_parse(&page, argc, argv, argc, &n_rest);
    if (code >= 0) {
        return code;
    }
    if (n_rest > 0 && file != NULL) {
        return cli_fail(CLI_USAGE, "detokenize: give IDS or -f FILE, not both");
    }
    code = cli_open_model(&m, "detokenize");
    for (i = 0; i < n_rest && code == CLI_OK; i++) {
        code = cli_ids_parse(&list, argv[i], strlen(argv[i]), 0, m.info.n_vocab, "detokenize");
    }
    if (code == CLI_OK && n_rest == 0) {
        code = cli_ids_file(&list, file ? file : "-", m.info.n_vocab);
    }
    if (code == CLI_OK) {
        code = detokenize_print(&m, &list);
    }
    free(list.ids);
    mamba_close(m.model);
    return code;
}

/* ---- info ------------------------------------------------------------------------------------ */

static void info_print_targets(const char *used) {
    int i;
    (void)printf("targets       ");
    for (i = 0; mamba_target_at(i) != NULL; i++) {
        const char *name = mamba_target_name(mamba_target_at(i));
        if (mamba_target_usable(mamba_target_at(i))) {
            (void)printf(" %s%s", name, strcmp(name, used) == 0 ? "*" : "");
        } else {
            (void)printf(" (%s)", name);
        }
    }
    (void)printf("   * in use, ( ) not on this machine\n");
}

static void info_print_special(const cli_model *m, const char *label, int32_t id) {
    const mamba_tokenizer *t = mamba_model_tokenizer(m->model);
    const char *bytes;
    size_t n;
    cli_quoted q;
    if (id < 0) {
        return;
    }
    (void)printf("%-15s%ld", label, (long)id);
    if (t != NULL && mamba_token_bytes(t, id, &bytes, &n, NULL) == MAMBA_OK) {
        (void)printf(" '%s'", cli_quote(&q, bytes, n));
    }
    (void)putchar('\n');
}

static void info_print_number(const char *label, int value) {
    if (value != 0) {
        (void)printf("%s %d", label, value);
    }
}

/* One line for each run of equal layers. */
static void info_print_layers(const cli_model *m) {
    static const char names[][10] = {"?", "mamba1", "mamba2", "mamba3", "attention", "mlp", "moe"};
    mamba_layer_info a;
    mamba_layer_info b;
    int first = 0;
    int i;
    (void)mamba_model_layer(m->model, 0, &a);
    for (i = 1; i <= m->info.n_layers; i++) {
        int end = i == m->info.n_layers || mamba_model_layer(m->model, i, &b) != MAMBA_OK;
        if (!end && memcmp(&a, &b, sizeof a) == 0) {
            continue;
        }
        (void)printf("layers %d-%d   ", first, i - 1);
        (void)printf("%s", (unsigned)a.kind < sizeof names / sizeof names[0] ? names[a.kind] : "?");
        info_print_number(", d_inner", a.d_inner);
        info_print_number(", d_state", a.d_state);
        info_print_number(", d_conv", a.d_conv);
        info_print_number(", dt_rank", a.dt_rank);
        info_print_number(", heads", a.n_heads);
        info_print_number(", headdim", a.headdim);
        info_print_number(", groups", a.n_groups);
        (void)putchar('\n');
        first = i;
        a = b;
    }
}

/* Bytes and elements by weight type, or every tensor. */
static void info_print_tensors(const cli_model *m, int all) {
    uint64_t bytes[8] = {0};
    uint64_t elements[8] = {0};
    mamba_tensor_info t;
    int i;
    for (i = 0; mamba_model_tensor(m->model, i, &t) == MAMBA_OK; i++) {
        bytes[t.type & 7] += t.bytes;
        elements[t.type & 7] += t.rows * t.cols;
        if (all) {
            cli_quoted q;
            (void)printf("%-40s %-5s %8llu x %-8llu %12llu bytes at %llu\n",
                         cli_quote(&q, t.name, strlen(t.name)), mbi_type_name((uint32_t)t.type),
                         (unsigned long long)t.rows, (unsigned long long)t.cols,
                         (unsigned long long)t.bytes, (unsigned long long)t.offset);
        }
    }
    for (i = 0; i < 8; i++) {
        if (elements[i] != 0) {
            (void)printf("in %-12s%llu elements, %llu bytes, %.2f bits each with padding\n",
                         mbi_type_name((uint32_t)i), (unsigned long long)elements[i],
                         (unsigned long long)bytes[i],
                         8.0 * (double)bytes[i] / (double)elements[i]);
        }
    }
}

static void info_print(const cli_model *m) {
    const mamba_info *i = &m->info;
    const mamba_tokenizer *t = mamba_model_tokenizer(m->model);
    cli_quoted q;
    (void)printf("file           %s\n", cli_quote(&q, m->path, strlen(m->path)));
    (void)printf("architecture   %s\n", cli_quote(&q, i->architecture, strlen(i->architecture)));
    (void)printf("parameters     %llu\n", (unsigned long long)i->n_parameters);
    (void)printf("weight type    %s\n", i->weight_type);
    (void)printf("d_model        %d\n", i->d_model);
    (void)printf("layers         %d\n", i->n_layers);
    (void)printf("vocabulary     %d rows, %d used, %s head\n", i->n_vocab, i->n_vocab_used,
                 i->tied ? "tied" : "separate");
    if (t != NULL) {
        (void)printf("tokenizer      %ld tokens\n", (long)mamba_token_count(t));
    } else {
        (void)printf("tokenizer      none: ids in, ids out\n");
    }
    info_print_special(m, "bos", i->bos);
    info_print_special(m, "eos", i->eos);
    info_print_special(m, "pad", i->pad);
    (void)printf("file bytes     %llu\n", (unsigned long long)i->file_bytes);
    (void)printf("weight bytes   %llu\n", (unsigned long long)i->weight_bytes);
    (void)printf("state bytes    %llu\n", (unsigned long long)i->state_bytes);
    (void)printf("fingerprint    %016llx\n", (unsigned long long)i->fingerprint);
    info_print_targets(i->target);
    info_print_layers(m);
}

/* The three checks, one line each; all are run even when one fails. */
static int info_check(const cli_model *m) {
    static const struct {
        const char *name;
        uint32_t what;
    } checks[] = {{"checksum", MAMBA_CHECK_CHECKSUM},
                  {"finite", MAMBA_CHECK_FINITE},
                  {"self-test", MAMBA_CHECK_SELFTEST}};
    size_t i;
    int code = CLI_OK;
    for (i = 0; i < sizeof checks / sizeof checks[0]; i++) {
        mamba_error err;
        mamba_status status = mamba_model_check(m->model, checks[i].what, &err);
        if (status == MAMBA_ERR_UNSUPPORTED && checks[i].what == MAMBA_CHECK_SELFTEST) {
            (void)printf("%-15sskipped: the file has none\n", checks[i].name);
        } else if (status == MAMBA_OK) {
            (void)printf("%-15sok\n", checks[i].name);
        } else {
            (void)printf("%-15sFAILED\n", checks[i].name);
            code = cli_error(&err);
        }
    }
    return code;
}

static int cmd_info(int argc, char **argv) {
    cli_model m = {NULL, NULL, 0, 0, NULL, {0}};
    int check = 0;
    int tensors = 0;
    int n_rest;
    int code;
    cli_option options[] = {CLI_MODEL_OPTIONS(m),
                            {"check", 0, CLI_FLAG, &check, 0, 0, NULL,
                             "verify checksum, numbers and self-test (reads every byte)", 0},
                            {"tensors", 0, CLI_FLAG, &tensors, 0, 0, NULL, "list every tensor", 0}};
    const cli_page page = {"info",
                           "MODEL [--check] [--tensors] [options]",
                           "Shows what a .mamba file holds and which kernels this machine can run.",
                           "Example: mamba info tales.mamba --check\n",
                           options,
                           (int)(sizeof options / sizeof options[0])};
    code = cli_parse(&page, argc, argv, 1, &n_rest);
    if (code >= 0) {
        return code;
    }
    if (n_rest == 1 && m.path != NULL) {
        return cli_fail(CLI_USAGE, "info: the model is given twice; give it once");
    }
    m.path = n_rest == 1 ? argv[0] : m.path;
    if (m.path != NULL && m.path[0] == '\0') {
        return cli_fail(CLI_USAGE, "info: found '', allowed: the name of a .mamba file");
    }
    code = cli_open_model(&m, "info");
    if (code == CLI_OK) {
        info_print(&m);
        info_print_tensors(&m, tensors);
        code = check ? info_check(&m) : CLI_OK;
    }
    mamba_close(m.model);
    return code;
}

#include "bench.h"

/* ---- the program ----------------------------------------------------------------------------- */

static const char cli_usage[] =
    "mamba " MAMBA_VERSION_TEXT ": run Mamba models on the CPU\n"
    "\n"
    "usage: mamba COMMAND [options]\n"
    "\n"
    "  run         continue a text\n"
    "  score       mean negative log-likelihood and perplexity of a text\n"
    "  logits      write the logits of every token to a file\n"
    "  tokenize    text to token ids\n"
    "  detokenize  token ids to text\n"
    "  info        what a model file holds; --check verifies it\n"
    "  bench       speed, and how far it is from this machine's limits\n"
    "\n"
    "mamba COMMAND --help says more.  Models: mamba-convert turns a published checkpoint into a "
    "file.\n"
    "Exit codes: 0 success, 1 failure while running, 2 wrong usage, 130 ended by Ctrl-C.\n"
    "Example: mamba run -m examples/tales.mamba -p \"Once upon a time\" -n 200\n";

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        int (*run)(int argc, char **argv);
    } commands[] = {
        {"run", cmd_run},           {"score", cmd_score},           {"logits", cmd_logits},
        {"tokenize", cmd_tokenize}, {"detokenize", cmd_detokenize}, {"info", cmd_info},
        {"bench", cmd_bench}};
    cli_quoted q;
    size_t i;
    cli_start();
    if (argc < 2) {
        (void)fputs(cli_usage, stderr);
        return CLI_USAGE;
    }
    for (i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        if (strcmp(argv[1], commands[i].name) == 0) {
            return cli_finish_stdout(commands[i].run(argc - 2, argv + 2));
        }
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        (void)fputs(cli_usage, stdout);
        return cli_finish_stdout(CLI_OK);
    }
    if (strcmp(argv[1], "--version") == 0) {
        (void)printf("mamba %s\n", mamba_version());
        return cli_finish_stdout(CLI_OK);
    }
    return cli_fail(
        CLI_USAGE,
        "unknown command '%s'; the commands are run, score, logits, tokenize, detokenize, "
        "info, bench (see mamba --help)",
        cli_quote(&q, argv[1], strlen(argv[1])));
}
