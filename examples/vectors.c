/*  vectors: float vectors in, hidden states out: a model as the backbone of something that is not
 * text.
 *
 *      cc -O2 -fopenmp -I. examples/vectors.c -o vectors -lm && ./vectors examples/tales.mamba
 *
 *  Here the vectors are a sine wave written into the channels; the hidden states behind the final
 * norm would go to the caller's own head (a regressor, a classifier, a vocoder).
 */
#define MAMBA_IMPLEMENTATION
#include "mamba.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FRAMES = 64 };

int main(int argc, char **argv) {
    const char *path = argc > 1 ? argv[1] : "examples/tales.mamba";
    mamba_model *model = NULL;
    mamba_state *state = NULL;
    mamba_info info;
    mamba_error err;
    mamba_io io;
    float *in = NULL;
    float *out = NULL;
    size_t d;
    size_t i;
    int bad = mamba_open(path, strlen(path), NULL, &model, &err) ||
              mamba_state_create(model, NULL, &state, &err);
    if (bad) {
        char text[256];
        mamba_error_text(&err, text, sizeof text);
        fprintf(stderr, "vectors: %s\n", text);
        mamba_close(model);
        return 1;
    }
    mamba_model_info(model, &info);
    d = (size_t)info.d_model;
    in = (float *)malloc(FRAMES * d * sizeof(float));
    out = (float *)malloc(FRAMES * d * sizeof(float));
    for (i = 0; in && i < FRAMES * d; i++) {
        in[i] = 0.1f * sinf(0.2f * (float)(i / d) + (float)(i % d));
    }
    memset(&io, 0, sizeof io);
    io.vectors = in;
    io.n = FRAMES;
    io.want_hidden = MAMBA_WANT_ALL;
    io.hidden = out;
    io.n_hidden = FRAMES * d;
    bad = !in || !out || mamba_run(state, &io, &err);
    for (i = 0; !bad && i < FRAMES; i += 16) {
        float sum = 0.0f;
        size_t k;
        for (k = 0; k < d; k++) {
            sum += out[i * d + k] * out[i * d + k];
        }
        printf("frame %2d: hidden state of %d floats, norm %.3f, first %.4f %.4f %.4f\n", (int)i,
               (int)d, (double)sqrtf(sum), (double)out[i * d], (double)out[i * d + 1],
               (double)out[i * d + 2]);
    }
    free(in);
    free(out);
    mamba_state_free(state);
    mamba_close(model);
    return bad;
}
