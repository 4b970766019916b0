/*  embed: a model compiled into the program: one executable, no file to open.
 *
 *      make build/embed && build/embed
 *  or by hand:
 *      cc -O2 tools/bin2c.c -o bin2c && ./bin2c examples/tales.mamba tales > tales.inc
 *      cc -O2 -fopenmp -I. examples/embed.c -o embed -lm
 *
 *  tools/bin2c.c writes the file as an array of 64-bit numbers, aligned to 64 bytes, so that the
 * weights are used where the loader put them: nothing is copied, and pages that are not needed are
 * not read.
 */
#define MAMBA_IMPLEMENTATION
#include "mamba.h"
#include <stdio.h>
#include <string.h>

#include "tales.inc" /* tales[], tales_bytes */

static float logits[1 << 13];

int main(void) {
    static const char prompt[] = "Once upon a time";
    mamba_model *model = NULL;
    mamba_state *state = NULL;
    mamba_utf8_stream utf8 = {{0}, 0};
    mamba_sampler sampler;
    mamba_info info;
    mamba_error err;
    int32_t ids[64];
    char text[256];
    size_t n = 0;
    int i;
    int bad = mamba_open_memory(tales, tales_bytes, NULL, &model, &err) ||
              mamba_encode(mamba_model_tokenizer(model), prompt, sizeof prompt - 1, 0, ids, 64, &n,
                           &err) ||
              mamba_state_create(model, NULL, &state, &err) ||
              mamba_prefill(state, ids, n, logits, sizeof logits / sizeof logits[0], &err);
    if (!bad) {
        mamba_model_info(model, &info);
        mamba_sampler_init(&sampler, 4);
        sampler.temperature = 0.8f;
        sampler.top_p = 0.95f;
        printf("%s", prompt);
    }
    for (i = 0; i < 100 && !bad; i++) {
        bad = mamba_sample(&sampler, logits, (size_t)info.n_vocab, (size_t)info.n_vocab_used, ids,
                           &err) ||
              mamba_stream_decode(mamba_model_tokenizer(model), &utf8, ids[0], text, sizeof text,
                                  &n, &err) ||
              fwrite(text, 1, n, stdout) != n ||
              mamba_step(state, ids[0], logits, sizeof logits / sizeof logits[0], &err);
    }
    printf("\n");
    if (bad) {
        mamba_error_text(&err, text, sizeof text);
        fprintf(stderr, "embed: %s\n", text);
    }
    mamba_state_free(state);
    mamba_close(model);
    return bad;
}
