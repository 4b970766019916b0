/*  hello: from a model file to text in 25 lines: open, encode, prefill; then sample, print, step.
 *
 *      cc -O2 -fopenmp -I. examples/hello.c -o hello -lm
 *      ./hello examples/tales.mamba "Once upon a time"
 */
#define MAMBA_IMPLEMENTATION
#include "mamba.h"
#include <stdio.h>
int main(int argc, char **argv) {
    static float logits[1 << 18]; // room for one per row of the vocabulary
    mamba_model *model = NULL; // the file: shared, never changes
    mamba_state *run = NULL;   // the memory of one text
    mamba_sampler sampler = {.temperature = 0.8f, .top_p = 0.95f, .seed = 1};
    mamba_utf8_stream utf8 = {{0}, 0};
    mamba_error err = {.what = "usage: hello MODEL PROMPT"};
    int32_t id[1024];
    char text[1024];
    size_t n = 0;
    int bad = argc != 3 || mamba_open(argv[1], strlen(argv[1]), NULL, &model, &err);
    const mamba_tokenizer *words = bad ? NULL : mamba_model_tokenizer(model);
    bad = bad || mamba_encode(words, argv[2], strlen(argv[2]), 0, id, 1024, &n, &err) ||
          mamba_state_create(model, NULL, &run, &err) ||
          mamba_prefill(run, id, n, logits, 1 << 18, &err);
    for (int i = 0; i < 200 && !bad; i++) {
        bad = mamba_sample(&sampler, logits, (size_t)mamba_token_count(words), 0, id, &err) ||
              mamba_stream_decode(words, &utf8, id[0], text, sizeof text, &n, &err) ||
              fwrite(text, 1, n, stdout) != n || mamba_step(run, *id, logits, 1 << 18, &err);
    }
    mamba_state_free(run), mamba_close(model);
    return bad && fprintf(stderr, "%.*s\n", (int)mamba_error_text(&err, text, 256), text);
}
