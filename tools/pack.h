/*  pack.h: 16 rows of floats into one panel of the .mamba file, in any weight type.
 *
 *  The byte layout is specified in mamba.h (@@format). Quantised types choose the scale of every group of 32
 *  columns by the squared error that it leaves, not by the largest value.
 */
#ifndef TL_PACK_H
#define TL_PACK_H

#include "base.h"

/* Float to IEEE half, round to nearest even; too large becomes infinity. */
TL_FN uint16_t pack_f16(float f)
{
    uint32_t u = mbi_f32_bits(f);
    uint32_t sign = u >> 16 & 0x8000u;
    uint32_t magnitude = u & 0x7fffffffu;
    if (magnitude >= 0x7f800000u) {
        return (uint16_t)(sign | 0x7c00u | (magnitude > 0x7f800000u ? 0x200u : 0));
    }
    if (magnitude >= 0x477ff000u) {   /* 65520 and above round to infinity */
        return (uint16_t)(sign | 0x7c00u);
    }
    if (magnitude < 0x38800000u) {    /* below 2^-14: subnormal, in units of 2^-24; adding 2^-1 rounds */
        float shifted = mbi_bits_f32(magnitude) + 0.5f;
        return (uint16_t)(sign | (mbi_f32_bits(shifted) - 0x3f000000u));
    }
    magnitude += 0xfffu + (magnitude >> 13 & 1u);
    return (uint16_t)(sign | ((magnitude - 0x38000000u) >> 13));
}

/* ---- groups of 32 -----------------------------------------------------------------------------------------
 *
 * A group is stored as scale * q[i], q in -127..127 (q8) or in the codebook (q4).
 *
 * q8 takes the largest magnitude to 127: mean squared error 2.8e-5 of the mean square of Gaussian weights; the
 * best of 5 scales gives 2.6e-5 at half the speed, and neither shows in a perplexity.
 *
 * q4 searches. For given q the best scale is the least-squares one, (x.q)/(q.q), which leaves the squared error
 * x.x - (x.q)^2/(q.q); so the search maximises (x.q)^2/(q.q) over assignments, each made of the values nearest
 * to x over some trial scale. It works on x in units of 2^-15 of the group's largest magnitude, in integers:
 * fast without intrinsics, and the same bytes from every compiler and CPU. That the scale is stored as a half
 * costs nothing measurable. Mean squared error over the mean square, Gaussian weights (those of two trained
 * models differ by less than 1 %): 3 trials for each sign of the scale 0.0062, 7 trials 0.00534, with one step
 * of refinement (used) 0.00533, 48 trials with refinement 0.00530. Weighting the errors by the squared norm
 * weight of their column made the KL divergence of the logits 1 % larger.
 */
enum {
    PACK_GROUP = 32,
    PACK_TRIALS = 7           /* for each sign of the scale */
};

/* Nearest codebook entry to v, found at floor(2v) + 512: entries are integers, so the borders between them are
 * multiples of one half. */
typedef struct {
    int16_t value[1024];
    unsigned char index[1024];
} pack_codebook;

TL_FN void pack_codebook_init(pack_codebook *book)
{
    int k = 0;
    for (int i = 0; i < 1024; i++) {
        while (k < 15 && (float)(i - 512) >= mbi_q4_value((unsigned)k) + mbi_q4_value((unsigned)k + 1)) {
            k++;
        }
        book->index[i] = (unsigned char)k;
        book->value[i] = (int16_t)mbi_q4_value((unsigned)k);
    }
}

/* The best assignment so far, as the scale that it asks for: num / den, in units of x. */
typedef struct {
    double gain;
    int32_t num, den;
} pack_best;

/* Tries the values nearest to x * factor / 131072. */
TL_FN void pack_try(const pack_codebook *book, const int16_t *x, int factor, pack_best *best)
{
    int16_t q[PACK_GROUP];
    int32_t num = 0, den = 0;
    double gain;
    for (int i = 0; i < PACK_GROUP; i++) {
        q[i] = (int16_t)(x[i] * factor >> 16);
    }
    for (int i = 0; i < PACK_GROUP; i++) {
        q[i] = book->value[q[i] + 512];
    }
    for (int i = 0; i < PACK_GROUP; i++) {
        num += x[i] * q[i];
        den += q[i] * q[i];
    }
    gain = den != 0 ? (double)num * (double)num / (double)den : 0.0;
    if (gain > best->gain) {
        best->gain = gain;
        best->num = num;
        best->den = den;
    }
}

/* A scale as the half that is stored: finite, and not zero, since with the smallest half as its scale a group
 * still keeps what it can. */
TL_FN uint16_t pack_half_scale(double scale)
{
    uint16_t half = pack_f16((float)scale);
    if ((half & 0x7fffu) == 0) {
        half |= 1u;
    }
    return (uint16_t)((half & 0x7fffu) > 0x7bffu ? (half & 0x8000u) | 0x7bffu : half);
}

/* The q4 scale of a group whose largest magnitude is `most`. */
TL_FN double pack_search(const float *x, float most, const pack_codebook *book)
{
    pack_best best = {0.0, 0, 1};
    int16_t units[PACK_GROUP];
    float inverse = 32767.0f / most;
    double factor;
    for (int i = 0; i < PACK_GROUP; i++) {
        units[i] = (int16_t)(x[i] * inverse);
    }
    for (int trial = 0; trial < PACK_TRIALS; trial++) {
        /* the largest to 94 .. 140 from either end; the codebook is not symmetric */
        int end = 4 * 94 + 4 * 46 * trial / (PACK_TRIALS - 1);
        pack_try(book, units, end, &best);
        pack_try(book, units, -end, &best);
    }
    factor = 131072.0 * (double)best.den / (double)best.num;
    pack_try(book, units, (int)(factor > 1000.0 ? 1000.0 : factor < -1000.0 ? -1000.0 : factor), &best);
    return (double)best.num / (double)best.den * ((double)most / 32767.0);
}

/* The scale of a group; 0 for a group of zeros (or of values that even the smallest half makes zeros). `book`
 * is NULL for q8. */
TL_FN uint16_t pack_scale(const float *x, const pack_codebook *book)
{
    float most = 0.0f;
    uint16_t half;
    for (int i = 0; i < PACK_GROUP; i++) {
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    }
    if (most < 1.49011612e-8f) {   /* 2^-26 */
        return 0;
    }
    if (book != NULL) {
        return pack_half_scale(pack_search(x, most, book));
    }
    half = pack_half_scale((double)most / 127.0);
    /* the smallest halves are far apart: rounded down, they would cut the largest value off */
    return (uint16_t)(half + (127.5f * mbi_f16_to_f32(half) < most ? 1u : 0u));
}

/* One group of 32 columns of one row into its block. `book` is NULL for q8. */
TL_FN void pack_group(const float *x, int lane, int group, const pack_codebook *book, unsigned char *block)
{
    uint16_t half = pack_scale(x, book);
    float scale = mbi_f16_to_f32(half), v[PACK_GROUP];
    for (int i = 0; i < PACK_GROUP; i++) {
        v[i] = half != 0 ? x[i] / scale : 0.0f;
    }
    if (book == NULL) {
        unsigned char *unit = block + group * 512 + 4 * lane;
        for (int i = 0; i < PACK_GROUP; i++) {
            float r = v[i] < -127.0f ? -127.0f : v[i] > 127.0f ? 127.0f : v[i];
            unit[i / 4 * 64 + i % 4] = (unsigned char)(int)(r < 0 ? r - 0.5f : r + 0.5f);
        }
    } else {
        unsigned char *unit = block + group * 256 + 4 * lane, index[PACK_GROUP];
        for (int i = 0; i < PACK_GROUP; i++) {
            float at = 2.0f * v[i] + 512.0f;
            index[i] = book->index[at < 0.0f ? 0 : at > 1023.0f ? 1023 : (int)at];
        }
        for (int i = 0; i < PACK_GROUP / 2; i++) {
            const unsigned char *pair = index + i / 4 * 8 + i % 4;
            unit[i / 4 * 64 + i % 4] = (unsigned char)(pair[0] | pair[4] << 4);
        }
    }
    memcpy(block + (book == NULL ? 1024 : 512) + 32 * group + 2 * lane, &half, 2);
}

/* The columns of one row into a panel of q8 or q4. */
TL_FN void pack_row(const float *x, size_t cols_pad, int lane, const pack_codebook *book, unsigned char *panel)
{
    size_t block = book == NULL ? 1024 + 64 : 512 + 64;
    for (size_t c = 0; c < cols_pad; c += PACK_GROUP) {
        pack_group(x + c, lane, (int)(c / 32 % 2), book, panel + c / 64 * block);
    }
}

/* Can the type hold these values? f16 ends at 65504; q8 and q4 at 1000, below the 1023 where the expansion of
 * mamba.h's AMX kernels (@@kernels_amx) ends: no model's weights come near. */
TL_FN int pack_fits(const float *x, size_t n, mamba_type type)
{
    float limit = type == MAMBA_F16 ? 65504.0f : type == MAMBA_Q8 || type == MAMBA_Q4 ? 1000.0f : 3.4e38f;
    for (size_t i = 0; i < n; i++) {
        if (!(fabsf(x[i]) <= limit)) {
            return 0;
        }
    }
    return 1;
}

/* rows: 16 rows of cols_pad floats (cols_pad = columns padded for the type, zero-filled).
 * panel: mbi_panel_bytes(type, cols) bytes. */
TL_FN void pack_panel(const float *rows, size_t cols_pad, mamba_type type, unsigned char *panel)
{
    pack_codebook book;
    if (type == MAMBA_Q4) {
        pack_codebook_init(&book);
    }
    for (int lane = 0; lane < 16; lane++) {
        const float *x = rows + (size_t)lane * cols_pad;
        if (type == MAMBA_Q8 || type == MAMBA_Q4) {
            pack_row(x, cols_pad, lane, type == MAMBA_Q4 ? &book : NULL, panel);
            continue;
        }
        for (size_t c = 0; c < cols_pad; c++) {
            if (type == MAMBA_F32) {
                memcpy(panel + c * 64 + 4 * (size_t)lane, &x[c], 4);
            } else {
                uint16_t half = type == MAMBA_F16 ? pack_f16(x[c]) : mbi_f32_to_bf16(x[c]);
                memcpy(panel + c / 2 * 64 + 4 * (size_t)lane + c % 2 * 2, &half, 2);
            }
        }
    }
}

#endif /* TL_PACK_H */
