/*  pack.h: 16 rows of floats into one panel of the .mamba file, in any weight type.
 *
 *  The byte layout is specified in mamba.h (@@format). Quantised types choose the scale of every group of 64
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

/* ---- groups of 64 -----------------------------------------------------------------------------------------
 *
 * Groups of 32 leave a sixth less squared error for 0.125 bits more: with q4 at 4.7 bits in both, the divergence from
 * f32 is 0.0112 instead of 0.0126 (mamba1-tales) and 0.0087 instead of 0.0097 (mamba2-tales), the perplexity 0.47 and
 * 0.45 instead of 0.24 and 0.37 % higher. 64 columns fill a tile of AMX int8 and halve the scaling of products.
 *
 * A group is stored as scale * q[i], q in -127..127 (q8), in -32..31 (q6) or in the codebook (q4); the scale as
 * code * |code| times the base of the panel, which takes the largest scale of the panel to the code 127. What a
 * group asks for is rounded to that grid, and of the three nearest codes the one with the least squared error is
 * taken: on Gaussian weights and on those of two trained models the grid costs 0.4 % of the squared error of
 * exact scales in q4, where scales linear in the code would cost 0.2 % but lose rows that are 100 times smaller
 * than others of their panel, and 8-bit floats 2.6 %.
 *
 * q8 takes the largest magnitude to 127, q6 to -32 (the scale's sign is free): mean squared error 3.3e-5 and 4.8e-4
 * of the mean square.
 *
 * q4 searches. For given q the best scale is the least-squares one, (x.q)/(q.q), which leaves the squared error
 * x.x - (x.q)^2/(q.q); so the search maximises (x.q)^2/(q.q) over assignments, each made of the values nearest
 * to x over some trial scale. It works on x in units of 2^-15 of the group's largest magnitude, in integers:
 * fast without intrinsics, and the same bytes from every compiler and CPU. Mean squared error over the mean
 * square, bell-shaped weights: 3 trials for each sign of the scale 0.00660, 7 trials (used) 0.00634, 48 trials
 * 0.00633; a last step of refinement gains nothing there but some in heavy-tailed groups.
 * Weighting the errors by the squared norm weight of their column made the KL divergence of the logits 1 % larger.
 */
enum {
    PACK_GROUP = MBI_GROUP,
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

/* The scale that a group asks for; 0 for a group of zeros, or of values so small that a base would be denormal. */
TL_FN float pack_wanted(const float *x, mamba_type type, const pack_codebook *book)
{
    float most = 0.0f, extreme = 0.0f;
    for (int i = 0; i < PACK_GROUP; i++) {
        if (fabsf(x[i]) > most) {
            most = fabsf(x[i]);
            extreme = x[i];
        }
    }
    if (most < 7.9e-31f) {   /* 2^-100 */
        return 0.0f;
    }
    return type == MAMBA_Q8 ? most / 127.0f : type == MAMBA_Q6 ? extreme / -32.0f : (float)pack_search(x, most, book);
}

/* The integers nearest to x / scale, as stored (q4: indices), and the squared error that they leave; gives up, with
 * what the error is by then, once it is above `limit`. */
TL_FN double pack_round(const float *x, float scale, mamba_type type, const pack_codebook *book, double limit, int *q)
{
    float low = type == MAMBA_Q8 ? -127.0f : -32.0f, high = type == MAMBA_Q8 ? 127.0f : 31.0f;
    double error = 0.0;
    for (int i = 0; i < PACK_GROUP && error <= limit; i++) {
        float v = x[i] / scale, value, product;
        double missed;
        if (type == MAMBA_Q4) {
            float at = 2.0f * v + 512.0f;
            int k = at < 0.0f ? 0 : at > 1023.0f ? 1023 : (int)at;
            q[i] = book->index[k];
            value = (float)book->value[k];
        } else {
            v = v < low ? low : v > high ? high : v;
            q[i] = (int)(v < 0.0f ? v - 0.5f : v + 0.5f);
            value = (float)q[i];
        }
        product = value * scale;
        missed = (double)x[i] - (double)product;
        error += missed * missed;
    }
    return error;
}

/* The integers of a group of one row into its units. */
TL_FN void pack_units(const int *q, int lane, mamba_type type, unsigned char *units)
{
    for (int c = 0; c < PACK_GROUP; c++) {
        int byte = 4 * lane + c % 4, nibble = c / 4 % 2 * 4;
        if (type == MAMBA_Q8) {
            units[c / 4 * 64 + byte] = (unsigned char)q[c];
        } else if (type == MAMBA_Q6) {
            unsigned char *unit = units + c / 16 * 192 + byte;
            unsigned v = (unsigned)(q[c] + 32);
            unit[c / 8 % 2 * 64] |= (unsigned char)((v & 15u) << nibble);
            unit[128] |= (unsigned char)(v >> 4 << c / 4 % 4 * 2);
        } else {
            units[c / 8 * 64 + byte] |= (unsigned char)(q[c] << nibble);
        }
    }
}

/* One group of 64 columns of one row, which asks for the scale `wanted`; returns the code of its scale. The codes two
 * away from the nearest are taken only if they leave no error: numbers that came from q8 or q6 keep their scale. */
TL_FN int pack_group(const float *x, float wanted, float base, int lane, mamba_type type, const pack_codebook *book,
                     unsigned char *units)
{
    int best[PACK_GROUP], q[PACK_GROUP], code = 0;
    int middle = fabsf(wanted) > 0.0f ? (int)(sqrtf(fabsf(wanted) / base) + 0.5f) : -2;
    double least = 1e300;
    for (int c = middle < 127 ? middle - 2 : 127; c <= middle + 2; c++) {
        if (c >= 1 && c <= 127) {
            float scale = (float)(c * c) * (wanted < 0.0f ? -base : base);
            double exact = 1e-12 * (double)scale * (double)scale;
            double limit = (c == middle - 2 || c == middle + 2) && exact < least ? exact : least;
            double error = pack_round(x, scale, type, book, limit, q);
            if (error <= limit && error < least) {
                least = error;
                code = wanted < 0.0f ? -c : c;
                memcpy(best, q, sizeof best);
            }
        }
    }
    if (code != 0) {   /* with code 0 any integers are zeros */
        pack_units(best, lane, type, units);
    }
    return code;
}

/* Can the type hold these values? f16 ends at 65504; q8, q6 and q4 at 1000, below the 1023 where the expansion of
 * mamba.h's AMX kernels (@@kernels_amx) ends: no model's weights come near. */
TL_FN int pack_fits(const float *x, size_t n, mamba_type type)
{
    float limit = type == MAMBA_F16 ? 65504.0f : mbi_is_quantized(type) ? 1000.0f : 3.4e38f;
    for (size_t i = 0; i < n; i++) {
        if (!(fabsf(x[i]) <= limit)) {
            return 0;
        }
    }
    return 1;
}

/* A panel of a quantized type; returns its base. */
TL_FN float pack_quantized(const float *rows, size_t cols_pad, mamba_type type, float *wanted, unsigned char *panel)
{
    size_t n_groups = cols_pad / PACK_GROUP, group_bytes = mbi_group_bytes(type);
    float most = 0.0f, base;
    pack_codebook book;
    if (type == MAMBA_Q4) {
        pack_codebook_init(&book);
    }
    for (size_t g = 0; g < n_groups; g++) {
        for (size_t lane = 0; lane < 16; lane++) {
            float w = pack_wanted(rows + lane * cols_pad + g * PACK_GROUP, type, &book);
            wanted[g * 16 + lane] = w;
            most = fabsf(w) > most ? fabsf(w) : most;
        }
    }
    /* 10 significant bits: then every scale is exact, and q8 of floats that came from q8 is what it was before */
    base = mbi_bits_f32((mbi_f32_bits(most / (127.0f * 127.0f)) + 0x2000u) & ~0x3fffu);
    for (size_t g = 0; g < n_groups; g++) {
        unsigned char *units = panel + mbi_units_at(group_bytes, (int)g);
        unsigned char *codes = panel + mbi_codes_at(group_bytes, (int)g);
        for (size_t lane = 0; lane < 16; lane++) {
            int code = pack_group(rows + lane * cols_pad + g * PACK_GROUP, wanted[g * 16 + lane], base, (int)lane, type,
                                  &book, units);
            codes[lane] = (unsigned char)code;
        }
    }
    return base;
}

/* rows: 16 rows of cols_pad floats (cols_pad = columns padded for the type, zero-filled).
 * wanted: cols_pad / 2 floats to work in. panel: mbi_panel_bytes(type, cols) bytes, zeroed.
 * Returns the base of the panel's scales; 0 for float types. */
TL_FN float pack_panel(const float *rows, size_t cols_pad, mamba_type type, float *wanted, unsigned char *panel)
{
    if (mbi_is_quantized(type)) {
        return pack_quantized(rows, cols_pad, type, wanted, panel);
    }
    for (size_t lane = 0; lane < 16; lane++) {
        const float *x = rows + lane * cols_pad;
        for (size_t c = 0; c < cols_pad; c++) {
            if (type == MAMBA_F32) {
                memcpy(panel + c * 64 + 4 * lane, &x[c], 4);
            } else {
                uint16_t half = type == MAMBA_F16 ? pack_f16(x[c]) : mbi_f32_to_bf16(x[c]);
                memcpy(panel + c / 2 * 64 + 4 * lane + c % 2 * 2, &half, 2);
            }
        }
    }
    return 0.0f;
}

#endif /* TL_PACK_H */
