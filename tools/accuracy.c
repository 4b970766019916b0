/*  accuracy.c: what the weight types cost: mamba-accuracy REFERENCE.mamba TEXT FILE.mamba...
 *
 *  Perplexity on a text, in windows of 512 tokens and as one stream, against the reference (an f32 file of the
 *  same model), and the mean Kullback-Leibler divergence of the next-token distributions from the reference's.
 *  TEXT is a text file, or a .safetensors file with input_ids. Both models see each chunk in turn, so the memory
 *  does not grow with the text.
 */
#include "base.h"

#define MAMBA_IMPLEMENTATION
#include "../mamba.h"

#include "checkpoint.h"

enum { AC_WINDOW = 512, AC_MAX = 16 };

typedef struct {
    const char *path;
    mamba_model *m;
    mamba_state *s;
    mamba_info info;
    float *logits;      /* (AC_WINDOW, n_vocab) */
    double log_sum[AC_WINDOW], divergence[AC_WINDOW];   /* of each token */
    double nll, kl;     /* sums */
    double bits;        /* per weight of matrices of 8 and 4 bits, or of all matrices when there are none */
} ac_model;

static int ac_fail(const char *text)
{
    fprintf(stderr, "mamba-accuracy: %s\n", text);
    return 1;
}

static int ac_fault(const mamba_error *e)
{
    char text[400];
    mamba_error_text(e, text, sizeof text);
    return ac_fail(text);
}

/* Bits per weight of the quantized matrices, everything in the file counted; of all matrices if none is quantized. */
static double ac_bits(const mamba_model *m)
{
    double weights[2] = {0, 0}, bits[2] = {0, 0};
    for (int i = 0; i < m->n_tensors; i++) {
        const mbi_tensor *t = &m->tensors[i];
        int quantized = mbi_is_quantized((mamba_type)t->type);
        if (t->layout == MBI_LAYOUT_PANELS) {
            weights[quantized] += (double)t->rows * t->cols;
            bits[quantized] += 8.0 * (double)t->bytes;
        }
    }
    return weights[1] > 0 ? bits[1] / weights[1] : bits[0] / weights[0];
}

static int ac_open(ac_model *a, const char *path, const mamba_target *target)
{
    mamba_config cfg;
    mamba_error e;
    mamba_state_options opt;
    memset(a, 0, sizeof *a);
    memset(&cfg, 0, sizeof cfg);
    memset(&opt, 0, sizeof opt);
    cfg.target = target;
    opt.prefill_chunk = AC_WINDOW;
    a->path = path;
    if (mamba_open(path, strlen(path), &cfg, &a->m, &e) != MAMBA_OK ||
        mamba_state_create(a->m, &opt, &a->s, &e) != MAMBA_OK) {
        return ac_fault(&e);
    }
    mamba_model_info(a->m, &a->info);
    a->logits = (float *)malloc((size_t)AC_WINDOW * (size_t)a->info.n_vocab * sizeof(float));
    a->bits = ac_bits(a->m);
    return a->logits != NULL ? 0 : ac_fail("out of memory");
}

/* log(sum(exp)) of one token's logits, in double. */
static double ac_log_sum(const float *logits, int n)
{
    double most = (double)logits[0], sum = 0;
    for (int i = 1; i < n; i++) {
        most = (double)logits[i] > most ? (double)logits[i] : most;
    }
    for (int i = 0; i < n; i++) {
        sum += exp((double)logits[i] - most);
    }
    return most + log(sum);
}

/* Divergence of q from p, given the logarithms of their sums. */
static double ac_divergence(const float *p, double log_p, const float *q, double log_q, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++) {
        double a = (double)p[i] - log_p;
        sum += exp(a) * (a - ((double)q[i] - log_q));
    }
    return sum;
}

/* Fills in what the chunk's tokens say, each on its own. */
static void ac_measure(ac_model *a, const ac_model *reference, int n)
{
    int n_vocab = a->info.n_vocab;
#if defined(_OPENMP)
#pragma omp parallel for
#endif
    for (int i = 0; i < n; i++) {
        const float *q = a->logits + (size_t)i * (size_t)n_vocab, *p = reference->logits + (size_t)i * (size_t)n_vocab;
        a->log_sum[i] = ac_log_sum(q, n_vocab);
        a->divergence[i] = a == reference ? 0.0 : ac_divergence(p, reference->log_sum[i], q, a->log_sum[i], n_vocab);
    }
}

/* Runs all models over the tokens; targets[i] follows tokens[i], or is -1. Sums go into the models. */
static int ac_run(ac_model *models, int n_models, const int32_t *tokens, const int32_t *targets, size_t n, int windows,
                  size_t *scored)
{
    int n_vocab = models[0].info.n_vocab;
    *scored = 0;
    for (int k = 0; k < n_models; k++) {
        models[k].nll = models[k].kl = 0;
        mamba_state_reset(models[k].s);
    }
    for (size_t start = 0; start < n; start += AC_WINDOW) {
        size_t length = n - start < AC_WINDOW ? n - start : AC_WINDOW;
        for (int k = 0; k < n_models; k++) {
            ac_model *a = &models[k];
            mamba_io io;
            mamba_error e;
            memset(&io, 0, sizeof io);
            io.tokens = tokens + start;
            io.n = length;
            io.want_logits = MAMBA_WANT_ALL;
            io.logits = a->logits;
            io.n_logits = length * (size_t)n_vocab;
            if (windows) {
                mamba_state_reset(a->s);
            }
            if (mamba_run(a->s, &io, &e) != MAMBA_OK) {
                return ac_fault(&e);
            }
            ac_measure(a, &models[0], (int)length);
            for (size_t i = 0; i < length; i++) {
                int32_t target = windows && i + 1 == length ? -1 : targets[start + i];
                if (target >= 0) {
                    a->nll += a->log_sum[i] - (double)a->logits[i * (size_t)n_vocab + (size_t)target];
                    *scored += k == 0;
                }
                a->kl += a->divergence[i];
            }
        }
    }
    return 0;
}

/* The tokens of the text, and for each the one that follows. */
static int32_t *ac_tokens(const char *path, const mamba_model *m, size_t *n, int32_t **targets)
{
    tl_error err;
    size_t length = strlen(path), bytes = 0;
    int32_t *ids = NULL;
    char *text = NULL;
    ck_source *ck = NULL;
    memset(&err, 0, sizeof err);
    if (length > 12 && strcmp(path + length - 12, ".safetensors") == 0) {
        const ck_tensor *t;
        if (ck_open_weights(path, &ck, &err) == TL_OK && (t = ck_find(ck, "input_ids")) != NULL) {
            *n = (size_t)t->count;
            ids = (int32_t *)tl_malloc(*n + 1, sizeof(int32_t), &err);
            (void)(ids != NULL && ck_read_raw(ck, t, 0, *n, ids, &err));
        }
        ck_close(ck);
    } else if (tl_read_all(path, 1u << 30, &text, &bytes, &err) == TL_OK) {
        const mamba_tokenizer *t = mamba_model_tokenizer(m);
        mamba_error e;
        ids = (int32_t *)tl_malloc(bytes + 1, sizeof(int32_t), &err);
        if (ids == NULL || t == NULL || mamba_encode(t, text, bytes, 0, ids, bytes + 1, n, &e) != MAMBA_OK) {
            tl_fail(&err, TL_ERR_FORMAT, "%s: the reference's tokenizer can't encode it", path);
        }
    }
    tl_free(text);
    *targets = (int32_t *)tl_malloc(*n + 1, sizeof(int32_t), &err);
    if (err.status != TL_OK || ids == NULL || *targets == NULL) {
        (void)ac_fail(err.status != TL_OK ? err.message : "no tokens");
        return NULL;
    }
    for (size_t i = 0; i < *n; i++) {
        (*targets)[i] = i + 1 < *n ? ids[i + 1] : -1;
    }
    return ids;
}

static int ac_table(ac_model *models, int n_models, const int32_t *tokens, const int32_t *targets, size_t n)
{
    double base[2] = {0, 0};
    static double nll[AC_MAX][2], kl[AC_MAX][2];
    for (int mode = 0; mode < 2; mode++) {
        size_t scored;
        if (ac_run(models, n_models, tokens, targets, n, mode == 0, &scored) != 0) {
            return 1;
        }
        for (int k = 0; k < n_models; k++) {
            nll[k][mode] = models[k].nll / (double)scored;
            kl[k][mode] = models[k].kl / (double)n;
        }
        base[mode] = nll[0][mode];
    }
    printf("%zu tokens; perplexity of the reference %.4f in windows of %d, %.4f as one stream\n\n", n, exp(base[0]),
           AC_WINDOW, exp(base[1]));
    printf("| type | bits per weight | file, MB | target | perplexity, windows | stream | KL, windows | stream |\n"
           "|---|---|---|---|---|---|---|---|\n");
    for (int k = 0; k < n_models; k++) {
        printf("| %s | %.2f | %.2f | %s | %.3f %% | %.3f %% | %.6f | %.6f |\n", models[k].info.weight_type,
               models[k].bits, (double)models[k].info.file_bytes / 1e6, models[k].info.target,
               100 * exp(nll[k][0] - base[0]), 100 * exp(nll[k][1] - base[1]), kl[k][0], kl[k][1]);
    }
    return 0;
}

int main(int argc, char **argv)
{
    static ac_model models[AC_MAX];
    const mamba_target *target = NULL;
    int32_t *tokens, *targets = NULL;
    size_t n = 0;
    int first = 1, code;
    if (argc > 2 && strcmp(argv[1], "--target") == 0) {
        target = mamba_target_find(argv[2], strlen(argv[2]));
        if (target == NULL || !mamba_target_usable(target)) {
            return ac_fail("no such target here");
        }
        first = 3;
    }
    if (argc - first < 3 || argc - first - 1 > AC_MAX) {
        fprintf(stderr, "usage: mamba-accuracy [--target NAME] REFERENCE.mamba TEXT FILE.mamba...\n");
        return 2;
    }
    if (ac_open(&models[0], argv[first], target) != 0) {
        return 1;
    }
    tokens = ac_tokens(argv[first + 1], models[0].m, &n, &targets);
    if (tokens == NULL) {
        return 1;
    }
    for (int k = 1; k < argc - first - 1; k++) {
        if (ac_open(&models[k], argv[first + 1 + k], target) != 0) {
            return 1;
        }
        if (models[k].info.n_vocab != models[0].info.n_vocab) {
            return ac_fail("the files are not of one model: their vocabularies differ");
        }
    }
    code = ac_table(models, argc - first - 1, tokens, targets, n);
    for (int k = 0; k < argc - first - 1; k++) {
        mamba_state_free(models[k].s);
        mamba_close(models[k].m);
        free(models[k].logits);
    }
    tl_free(tokens);
    tl_free(targets);
    return code;
}
