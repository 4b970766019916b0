/*  pack.h: 16 rows of floats into one panel of the .mamba file, in any weight type.
 *
 *  The byte layout is specified in mamba.h (@@format). Quantised types choose the scale of every group of 32
 *  columns by the squared error it leaves, not by the largest value alone.
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

/* Scale for one group by trial: the best of `n_trials` around the one that maps the largest value to the
 * end of the range. encode(x/scale) gives the stored value. Returns the scale as the half that is stored. */
typedef int (*pack_encode)(float x);

TL_FN int pack_encode_q8(float x)
{
    float r = x < -127.0f ? -127.0f : x > 127.0f ? 127.0f : x;
    return (int)(r < 0 ? r - 0.5f : r + 0.5f);
}

/* Index of the codebook value nearest to x. */
TL_FN int pack_index_q4(float x)
{
    int best = 0;
    for (int i = 1; i < 16; i++) {
        if (fabsf(x - mbi_q4_value((unsigned)i)) < fabsf(x - mbi_q4_value((unsigned)best))) {
            best = i;
        }
    }
    return best;
}

TL_FN double pack_error(const float *x, int n, float scale, mamba_type type)
{
    double sum = 0;
    for (int i = 0; i < n; i++) {
        float q = scale > 0 || scale < 0 ? x[i] / scale : 0;
        float v = type == MAMBA_Q8 ? (float)pack_encode_q8(q) : mbi_q4_value((unsigned)pack_index_q4(q));
        double e = (double)x[i] - (double)(v * scale);
        sum += e * e;
    }
    return sum;
}

TL_FN uint16_t pack_scale(const float *x, int n, mamba_type type)
{
    float most = 0;       /* the value of largest magnitude, with its sign */
    double best_error = -1;
    uint16_t best = 0;
    for (int i = 0; i < n; i++) {
        most = fabsf(x[i]) > fabsf(most) ? x[i] : most;
    }
    if (most == 0.0f) {   /* exactly zero: a group of zeros */
        return 0;
    }
    for (int trial = 0; trial < (type == MAMBA_Q8 ? 5 : 40); trial++) {
        uint16_t half;
        double error;
        if (type == MAMBA_Q8) {
            half = pack_f16(fabsf(most) / (126.5f + 0.25f * (float)trial));
        } else {          /* both signs: the codebook is not symmetric */
            float end = 88.0f + 2.5f * (float)(trial / 2);
            half = pack_f16(most / (trial % 2 ? end : -end));
        }
        error = pack_error(x, n, mbi_f16_to_f32(half), type);
        if (best_error < 0 || error < best_error) {
            best_error = error;
            best = half;
        }
    }
    return best;
}

/* One group of 32 columns of one row into its block. */
TL_FN void pack_group(const float *x, int lane, int group, mamba_type type, unsigned char *block)
{
    size_t data = type == MAMBA_Q8 ? 1024 : 512;
    uint16_t half = pack_scale(x, 32, type);
    float scale = mbi_f16_to_f32(half);
    for (int i = 0; i < 32; i++) {
        int col = group * 32 + i;
        float q = half != 0 ? x[i] / scale : 0.0f;
        if (type == MAMBA_Q8) {
            block[col / 4 * 64 + 4 * lane + col % 4] = (unsigned char)pack_encode_q8(q);
        } else {
            unsigned char *byte = block + col / 8 * 64 + 4 * lane + col % 4;
            unsigned v = (unsigned)pack_index_q4(q);
            *byte = (unsigned char)(col % 8 < 4 ? (*byte & 0xf0u) | v : (*byte & 0x0fu) | v << 4);
        }
    }
    memcpy(block + data + 32 * group + 2 * lane, &half, 2);
}

/* Can the type hold these values? (f16 and the f16 scales end at 65504.) */
TL_FN int pack_fits(const float *x, size_t n, mamba_type type)
{
    float limit = type == MAMBA_F16 ? 65504.0f : type == MAMBA_Q8 || type == MAMBA_Q4 ? 5.0e6f : 3.4e38f;
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
    for (int lane = 0; lane < 16; lane++) {
        const float *x = rows + (size_t)lane * cols_pad;
        for (size_t c = 0; c < cols_pad; c++) {
            uint16_t half;
            switch (type) {
            case MAMBA_F32: memcpy(panel + c * 64 + 4 * (size_t)lane, &x[c], 4); break;
            case MAMBA_F16:
            case MAMBA_BF16:
                half = type == MAMBA_F16 ? pack_f16(x[c]) : mbi_f32_to_bf16(x[c]);
                memcpy(panel + c / 2 * 64 + 4 * (size_t)lane + c % 2 * 2, &half, 2);
                break;
            case MAMBA_Q8:
            case MAMBA_Q4:
                if (c % 32 == 0) {
                    pack_group(x + c, lane, (int)(c / 32 % 2), type,
                               panel + c / 64 * (type == MAMBA_Q8 ? 1088u : 576u));
                }
                break;
            }
        }
    }
}

#endif /* TL_PACK_H */
