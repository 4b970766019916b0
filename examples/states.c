/*  states: read a prompt once, fork its state for several continuations, save it, restore it.
 *
 *      cc -O2 -fopenmp -I. examples/states.c -o states -lm && ./states examples/tales.mamba "Once
 * upon a time"
 */
#define MAMBA_IMPLEMENTATION
#include "mamba.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    mamba_model *model;
    mamba_info info;
    float *first;  /* logits behind the prompt */
    float *logits; /* the same, then those behind the last token */
    mamba_error err;
} program;

/* Prints n tokens drawn from `state`, which is just behind the prompt. */
static int continue_text(program *p, mamba_state *state, uint64_t seed, int n) {
    const mamba_tokenizer *tokenizer = mamba_model_tokenizer(p->model);
    size_t n_vocab = (size_t)p->info.n_vocab;
    mamba_utf8_stream utf8 = {{0}, 0};
    mamba_sampler sampler;
    int32_t token;
    char text[512];
    size_t n_text;
    int i;
    mamba_sampler_init(&sampler, seed);
    sampler.temperature = 0.8f;
    sampler.top_p = 0.95f;
    memcpy(p->logits, p->first, n_vocab * sizeof(float));
    for (i = 0; i < n; i++) {
        if (mamba_sample(&sampler, p->logits, n_vocab, (size_t)p->info.n_vocab_used, &token,
                         &p->err) ||
            mamba_stream_decode(tokenizer, &utf8, token, text, sizeof text, &n_text, &p->err) ||
            mamba_step(state, token, p->logits, n_vocab, &p->err)) {
            return 1;
        }
        fwrite(text, 1, n_text, stdout);
    }
    printf("\n");
    return 0;
}

/* The prompt is read once; three texts continue it, the last one from a saved copy. */
static int tell(program *p, const char *prompt, mamba_state *base, mamba_state *fork) {
    int32_t ids[1024];
    size_t n = 0;
    size_t bytes;
    void *snapshot;
    int bad;
    if (mamba_encode(mamba_model_tokenizer(p->model), prompt, strlen(prompt), 0, ids, 1024, &n,
                     &p->err) ||
        mamba_prefill(base, ids, n, p->first, (size_t)p->info.n_vocab, &p->err)) {
        return 1;
    }
    bytes = mamba_state_save_bytes(base);
    snapshot = malloc(bytes);
    if (snapshot == NULL) {
        return 1;
    }
    printf("the state after %d tokens takes %lu bytes, whatever the length\n", (int)n,
           (unsigned long)bytes);
    printf("\n[fork, seed 1] %s", prompt);
    bad = mamba_state_save(base, snapshot, bytes, NULL, &p->err) ||
          mamba_state_copy(fork, base, &p->err) || continue_text(p, fork, 1, 40);
    printf("\n[fork, seed 2] %s", prompt);
    bad = bad || mamba_state_copy(fork, base, &p->err) || continue_text(p, fork, 2, 40);
    printf("\n[restored, seed 1: the first text again] %s", prompt);
    bad =
        bad || mamba_state_restore(fork, snapshot, bytes, &p->err) || continue_text(p, fork, 1, 40);
    free(snapshot);
    return bad;
}

int main(int argc, char **argv) {
    const char *path = argc > 1 ? argv[1] : "examples/tales.mamba";
    program p;
    mamba_state *base = NULL;
    mamba_state *fork = NULL;
    int bad;
    memset(&p, 0, sizeof p);
    bad = mamba_open(path, strlen(path), NULL, &p.model, &p.err) ||
          mamba_state_create(p.model, NULL, &base, &p.err) ||
          mamba_state_create(p.model, NULL, &fork, &p.err);
    if (!bad) {
        mamba_model_info(p.model, &p.info);
        p.first = (float *)malloc((size_t)p.info.n_vocab * sizeof(float));
        p.logits = (float *)malloc((size_t)p.info.n_vocab * sizeof(float));
        bad = p.first == NULL || p.logits == NULL ||
              tell(&p, argc > 2 ? argv[2] : "Once upon a time", base, fork);
    }
    if (bad) {
        char text[256];
        mamba_error_text(&p.err, text, sizeof text);
        fprintf(stderr, "states: %s\n", text);
    }
    free(p.first);
    free(p.logits);
    mamba_state_free(base);
    mamba_state_free(fork);
    mamba_close(p.model);
    return bad;
}
