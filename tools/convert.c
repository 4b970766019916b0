/*  convert.c: mamba-convert IN -o OUT [--type T]: a published checkpoint into one .mamba file.
 */
#include "base.h"

#define MAMBA_NO_AVXVNNI /* what is written is checked by scalar or AVX2 arithmetic: compiles faster */
#define MAMBA_NO_AVX512
#define MAMBA_IMPLEMENTATION
#include "../mamba.h"

#include "checkpoint.h"
#include "config.h"
#include "gguf_vocab.h"
#include "pack.h"
#include "program.h"
#include "sentencepiece.h"
#include "vocab.h"
#include "writer.h"

static const char cv_help[] =
    "Usage: mamba-convert IN -o OUT.mamba [options]\n"
    "\n"
    "Turns a published checkpoint into one file that mamba.h maps and runs.\n"
    "\n"
    "IN is a folder with config.json and model.safetensors (or shards with an index) or\n"
    "pytorch_model.bin, and tokenizer.json if there is one; or one such weight file beside its\n"
    "config.json; or a folder of Mistral's (params.json, consolidated.safetensors); or a GGUF\n"
    "file of architecture mamba or mamba2 with its own tokenizer (F32, F16, BF16, Q8_0, Q6_K,\n"
    "Q5_0, Q5_1, Q5_K, Q4_0, Q4_1, Q4_K, Q3_K, Q2_K).\n"
    "\n"
    "  -o, --output FILE    where to write; an existing file is replaced only on success\n"
    "  --type T             f32, f16, bf16, q8, q6 or q4 for the large matrices (default: as\n"
    "                       stored); what the recurrence is sensitive to stays in float; q4 gives\n"
    "                       the first layer and frequent tokens 6 bits, 4.7 on average at most.\n"
    "                       GGUF: quantized blocks become exact floats first, then q8 (Q8_0,\n"
    "                       Q6_K), q6 (Q5_*) or q4 (Q4_*, Q3_K, Q2_K): rounded once more, to this\n"
    "                       file's own blocks; --type q8 keeps what 4-bit blocks said, f32 all;\n"
    "                       as stored, embedding and head may be q8 or q6 in a q4 file\n"
    "  --tokenizer FILE     tokenizer.json to embed, or a SentencePiece model with .model in its\n"
    "                       name (default: the one beside the weights, or inside the GGUF file);\n"
    "                       'bytes' = a plain byte vocabulary, 'none' = ids in, ids out\n"
    "  --arch NAME          override the architecture: mamba, falcon-mamba, mamba2\n"
    "                       (early copies of falcon-mamba call themselves mamba)\n"
    "  -q, --quiet          no progress bar and no summary\n"
    "  -h, --help           this text\n"
    "\n"
    "Exit codes: 0 success, 1 the conversion failed (nothing is written), 2 wrong usage.\n"
    "Example: mamba-convert ./mamba-130m-hf -o mamba-130m.mamba --type q8\n";

typedef struct {
    const char *in, *out, *tokenizer, *arch;
    int type;   /* mamba_type or -1 = as stored */
    int quiet;
} cv_options;

/* ---- where the floats come from --------------------------------------------------------------------------- */

/* One row of a matrix of the checkpoint. */
static tl_status cv_row(const wr_item *item, uint64_t row, float *out, tl_error *err)
{
    const ck_tensor *t = (const ck_tensor *)item->tensor;
    return ck_read_f32((const ck_source *)item->from, t, (item->first + row) * item->t.cols, item->t.cols, out, err);
}

/* A vector whose d[0] segments of d[1] floats are each padded to 16. */
static tl_status cv_vector(const wr_item *item, uint64_t row, float *out, tl_error *err)
{
    tl_status status = TL_OK;
    uint64_t n = (uint64_t)item->d[1];
    (void)row;
    for (uint64_t s = 0; s < (uint64_t)item->d[0] && status == TL_OK; s++) {
        status = ck_read_f32((const ck_source *)item->from, (const ck_tensor *)item->tensor, item->first + s * n, n,
                             out + s * mbi_pad(n, 16), err);
    }
    return status;
}

/* Convolution taps: (channels, 1, d_conv) to d_conv rows of channels. */
static tl_status cv_conv(const wr_item *item, uint64_t row, float *out, tl_error *err)
{
    uint64_t channels = item->t.cols, d_conv = item->t.rows;
    float *all = (float *)tl_malloc(channels * d_conv, sizeof(float), err);
    tl_status status = TL_ERR_MEMORY;
    (void)row;
    if (all != NULL) {
        status = ck_read_f32((const ck_source *)item->from, (const ck_tensor *)item->tensor, 0, channels * d_conv,
                             all, err);
        for (uint64_t i = 0; i < channels * d_conv && status == TL_OK; i++) {
            out[i % d_conv * mbi_pad(channels, 16) + i / d_conv] = all[i];
        }
    }
    tl_free(all);
    return status;
}

/* A = -exp(A_log), or as it is where d[2] is 0: (d[0] channels, d[1] states) to blocks of 16 channels,
 * state by lane. */
static tl_status cv_A(const wr_item *item, uint64_t row, float *out, tl_error *err)
{
    uint64_t channels = (uint64_t)item->d[0], d_state = (uint64_t)item->d[1];
    float *line = (float *)tl_malloc(d_state, sizeof(float), err);
    tl_status status = line != NULL ? TL_OK : TL_ERR_MEMORY;
    (void)row;
    for (uint64_t c = 0; c < channels && status == TL_OK; c++) {
        status = ck_read_f32((const ck_source *)item->from, (const ck_tensor *)item->tensor, c * d_state, d_state,
                             line, err);
        for (uint64_t n = 0; n < d_state; n++) {
            float a = item->d[2] != 0 ? (float)-exp((double)line[n]) : line[n];
            out[(c / 16 * d_state + n) * 16 + c % 16] = a;
        }
    }
    tl_free(line);
    return status;
}

/* ---- Mamba-2: groups padded to 16, see mamba.h, @@format ----------------------------------------------------- */

/* Index among n_groups groups of `width` that each are padded to 16 -> index without padding, or -1. */
static int64_t cv_unpad(uint64_t i, uint64_t n_groups, uint64_t width)
{
    uint64_t padded = mbi_pad(width, 16);
    return i / padded < n_groups && i % padded < width ? (int64_t)(i / padded * width + i % padded) : -1;
}

/* The axes of one Mamba-2 layer, from item->d = {d_mlp, d_ssm, d_state, n_groups}. */
typedef struct {
    uint64_t mlp, ssm, bc;                  /* stored rows of the segments */
    uint64_t d_mlp, d_ssm, n_bc;            /* rows of the checkpoint */
    uint64_t n_groups, d_state;
} cv_axes;

static cv_axes cv_axes_of(const int d[4])
{
    cv_axes a;
    a.d_mlp = a.mlp = (uint64_t)d[0];
    a.d_ssm = (uint64_t)d[1];
    a.d_state = (uint64_t)d[2];
    a.n_groups = (uint64_t)d[3];
    a.n_bc = a.n_groups * a.d_state;
    a.ssm = mbi_group_rows(a.n_groups, a.d_ssm / a.n_groups);
    a.bc = mbi_group_rows(a.n_groups, a.d_state);
    return a;
}

/* Stored segments of in_proj [z0 | z | x0 | x | B | C] against the checkpoint's [z0 | x0 | z | x | B | C]: row of
 * the checkpoint for row r of segment s, or -1 for padding. */
static int64_t cv_in_row(const cv_axes *a, int s, uint64_t r)
{
    const uint64_t start[6] = {0, 2 * a->d_mlp, a->d_mlp, 2 * a->d_mlp + a->d_ssm, 2 * (a->d_mlp + a->d_ssm),
                               2 * (a->d_mlp + a->d_ssm) + a->n_bc};
    int64_t i = s == 0 || s == 2 ? (int64_t)r
              : s < 4 ? cv_unpad(r, a->n_groups, a->d_ssm / a->n_groups) : cv_unpad(r, a->n_groups, a->d_state);
    return i < 0 ? -1 : (int64_t)start[s] + i;
}

static tl_status cv_in_proj2(const wr_item *item, uint64_t row, float *out, tl_error *err)
{
    cv_axes a = cv_axes_of(item->d);
    const uint64_t rows[6] = {a.mlp, a.ssm, a.mlp, a.ssm, a.bc, a.bc};
    int64_t from;
    int s = 0;
    while (row >= rows[s]) {
        row -= rows[s++];
    }
    from = cv_in_row(&a, s, row);
    return from < 0 ? TL_OK : ck_read_f32((const ck_source *)item->from, (const ck_tensor *)item->tensor,
                                          (uint64_t)from * item->t.cols, item->t.cols, out, err);
}

/* The bias of in_proj, each segment padded to 16. */
static tl_status cv_in_bias2(const wr_item *item, uint64_t row, float *out, tl_error *err)
{
    cv_axes a = cv_axes_of(item->d);
    const uint64_t rows[6] = {a.mlp, a.ssm, a.mlp, a.ssm, a.bc, a.bc};
    tl_status status = TL_OK;
    (void)row;
    for (int s = 0; s < 6; s++) {
        for (uint64_t r = 0; r < rows[s] && status == TL_OK; r++) {
            int64_t from = cv_in_row(&a, s, r);
            if (from >= 0) {
                status = ck_read_f32((const ck_source *)item->from, (const ck_tensor *)item->tensor, (uint64_t)from,
                                     1, out + r, err);
            }
        }
        out += mbi_pad(rows[s], 16);
    }
    return status;
}

/* Taps (channels, 1, d_conv) or bias (channels) of the convolution over [x | B | C]: item->t.rows rows. */
static tl_status cv_conv2(const wr_item *item, uint64_t row, float *out, tl_error *err)
{
    cv_axes a = cv_axes_of(item->d);
    const uint64_t rows[3] = {a.ssm, a.bc, a.bc};
    uint64_t d_conv = item->t.rows, at = 0;
    float taps[64];
    tl_status status = TL_OK;
    (void)row;
    for (int s = 0; s < 3; s++) {
        for (uint64_t r = 0; r < rows[s] && status == TL_OK; r++) {
            int64_t from = cv_in_row(&a, 3 + s, r);
            if (from >= 0) {
                from -= (int64_t)(2 * a.d_mlp + a.d_ssm);
                status = ck_read_f32((const ck_source *)item->from, (const ck_tensor *)item->tensor,
                                     (uint64_t)from * d_conv, d_conv, taps, err);
                for (uint64_t j = 0; j < d_conv; j++) {
                    out[j * mbi_pad(item->t.cols, 16) + at + r] = taps[j];
                }
            }
        }
        at += mbi_pad(rows[s], 16);
    }
    return status;
}

/* A vector over the SSM's channels: one value per channel, or per head of item->first channels. */
static tl_status cv_channels2(const wr_item *item, uint64_t row, float *out, tl_error *err)
{
    cv_axes a = cv_axes_of(item->d);
    tl_status status = TL_OK;
    (void)row;
    for (uint64_t r = 0; r < a.ssm && status == TL_OK; r++) {
        int64_t from = cv_unpad(r, a.n_groups, a.d_ssm / a.n_groups);
        if (from >= 0) {
            status = ck_read_f32((const ck_source *)item->from, (const ck_tensor *)item->tensor,
                                 (uint64_t)from / item->first, 1, out + r, err);
        }
    }
    return status;
}

/* One row of out_proj: columns [MLP padded to 16 | SSM]. */
static tl_status cv_out_proj2(const wr_item *item, uint64_t row, float *out, tl_error *err)
{
    cv_axes a = cv_axes_of(item->d);
    uint64_t cols = a.d_mlp + a.d_ssm;
    float *line = (float *)tl_malloc(cols, sizeof(float), err);
    tl_status status = line == NULL ? TL_ERR_MEMORY
                                    : ck_read_f32((const ck_source *)item->from, (const ck_tensor *)item->tensor,
                                                  row * cols, cols, line, err);
    if (status == TL_OK) {
        memcpy(out, line, a.d_mlp * sizeof(float));
        out += mbi_pad(a.d_mlp, 16);
        for (uint64_t r = 0; r < a.ssm; r++) {
            int64_t from = cv_unpad(r, a.n_groups, a.d_ssm / a.n_groups);
            out[r] = from >= 0 ? line[a.d_mlp + (uint64_t)from] : 0.0f;
        }
    }
    tl_free(line);
    return status;
}

/* ---- attention: heads padded to 16 ------------------------------------------------------------ */

/* Stored rows [gate | k | v | up | q] against the checkpoint's [q | k | v | up | gate]; item->d =
 * {n_heads, n_kv, headdim, d_mlp}. Row of the checkpoint for row r of segment s, or -1. */
static int64_t cv_qkv_row(const int d[4], int s, uint64_t r)
{
    uint64_t hd = (uint64_t)d[2], q = (uint64_t)d[0] * hd, kv = (uint64_t)d[1] * hd;
    uint64_t mlp = (uint64_t)d[3];
    const uint64_t start[5] = {q + 2 * kv + mlp, q, q + kv, q + 2 * kv, 0};
    int64_t i = s == 0 || s == 3 ? (int64_t)r : cv_unpad(r, (uint64_t)d[s == 4 ? 0 : 1], hd);
    return i < 0 ? -1 : (int64_t)start[s] + i;
}

static void cv_qkv_rows(const int d[4], uint64_t rows[5])
{
    rows[0] = rows[3] = (uint64_t)d[3];
    rows[1] = rows[2] = mbi_group_rows((uint64_t)d[1], (uint64_t)d[2]);
    rows[4] = mbi_group_rows((uint64_t)d[0], (uint64_t)d[2]);
}

static tl_status cv_qkv(const wr_item *item, uint64_t row, float *out, tl_error *err)
{
    uint64_t rows[5];
    int64_t from;
    int s = 0;
    cv_qkv_rows(item->d, rows);
    while (row >= rows[s]) {
        row -= rows[s++];
    }
    from = cv_qkv_row(item->d, s, row);
    return from < 0 ? TL_OK
                    : ck_read_f32((const ck_source *)item->from, (const ck_tensor *)item->tensor,
                                  (uint64_t)from * item->t.cols, item->t.cols, out, err);
}

/* A bias of in_proj (item->first = 0), or taps and bias of the convolution over [k | v | q] alone
 * (item->first = 1): item->t.rows values a channel, each segment padded to 16. */
static tl_status cv_qkv_vector(const wr_item *item, uint64_t row, float *out, tl_error *err)
{
    uint64_t rows[5], n = item->t.rows, at = 0;
    float taps[64];
    tl_status status = TL_OK;
    (void)row;
    cv_qkv_rows(item->d, rows);
    for (int s = 0; s < 5; s++) {
        for (uint64_t r = 0; r < rows[s] && status == TL_OK; r++) {
            int64_t from = cv_qkv_row(item->d, s, r);
            if (from < 0 || (item->first != 0 && (s == 0 || s == 3))) {
                continue;
            }
            status = ck_read_f32((const ck_source *)item->from, (const ck_tensor *)item->tensor,
                                 (uint64_t)from * n, n, taps, err);
            for (uint64_t j = 0; j < n; j++) {
                out[j * mbi_pad(item->t.cols, 16) + at + r] = taps[j];
            }
        }
        at += item->first != 0 && (s == 0 || s == 3) ? 0 : mbi_pad(rows[s], 16);
    }
    return status;
}

/* One row of out_proj: the checkpoint's columns [heads | MLP] as [MLP padded to 16 | heads]. */
static tl_status cv_attention_out(const wr_item *item, uint64_t row, float *out, tl_error *err)
{
    uint64_t heads = (uint64_t)item->d[0] * (uint64_t)item->d[2], mlp = (uint64_t)item->d[3];
    uint64_t n = mbi_group_rows((uint64_t)item->d[0], (uint64_t)item->d[2]);
    float *line = (float *)tl_malloc(heads + mlp, sizeof(float), err);
    tl_status status = line == NULL
                           ? TL_ERR_MEMORY
                           : ck_read_f32((const ck_source *)item->from,
                                         (const ck_tensor *)item->tensor, row * (heads + mlp),
                                         heads + mlp, line, err);
    if (status == TL_OK) {
        memcpy(out, line + heads, mlp * sizeof(float));
        out += mbi_pad(mlp, 16);
        for (uint64_t r = 0; r < n; r++) {
            int64_t from = cv_unpad(r, (uint64_t)item->d[0], (uint64_t)item->d[2]);
            out[r] = from >= 0 ? line[from] : 0.0f;
        }
    }
    tl_free(line);
    return status;
}

/* A per head, as it is. */
static tl_status cv_A2_stored(const wr_item *item, uint64_t row, float *out, tl_error *err)
{
    (void)row;
    return ck_read_f32((const ck_source *)item->from, (const ck_tensor *)item->tensor, 0,
                       item->t.cols, out, err);
}

/* A = -exp(A_log) per head. */
static tl_status cv_A2(const wr_item *item, uint64_t row, float *out, tl_error *err)
{
    tl_status status = ck_read_f32((const ck_source *)item->from, (const ck_tensor *)item->tensor, 0, item->t.cols,
                                   out, err);
    (void)row;
    for (uint64_t i = 0; i < item->t.cols && status == TL_OK; i++) {
        out[i] = (float)-exp((double)out[i]);
    }
    return status;
}

/* dt_bias, with the bias that in_proj's dt rows may have (item->extra, from element item->first). */
static tl_status cv_dt_bias2(const wr_item *item, uint64_t row, float *out, tl_error *err)
{
    uint64_t n = item->t.cols;
    const ck_source *ck = (const ck_source *)item->from;
    tl_status status = ck_read_f32(ck, (const ck_tensor *)item->tensor, 0, n, out, err);
    (void)row;
    for (uint64_t i = 0; item->extra != NULL && i < n && status == TL_OK; i++) {
        float b;
        status = ck_read_f32(ck, (const ck_tensor *)item->extra, item->first + i, 1, &b, err);
        out[i] += b;
    }
    return status;
}

/* ---- the list of tensors ---------------------------------------------------------------------------------- */

typedef struct {
    wr_file *w;
    const ck_source *ck;
    mamba_type type, sensitive;   /* of large matrices; of those the recurrence is sensitive to */
    int layer;
    tl_error *err;
} cv_plan;

static wr_item *cv_add(const cv_plan *p, const char *what, mamba_type type, uint32_t layout, const ck_tensor *t,
                       wr_source source)
{
    wr_item *item = wr_add(p->w, p->layer, what, type, layout, p->err);
    if (item != NULL) {
        item->source = source;
        item->from = p->ck;
        item->tensor = t;
    }
    return item;
}

/* A matrix whose rows are cut into segments (0 ends the list). */
static void cv_matrix(const cv_plan *p, const char *what, mamba_type type, const ck_tensor *t, uint64_t cols,
                      uint64_t a, uint64_t b, uint64_t c)
{
    wr_item *item = cv_add(p, what, type, MBI_LAYOUT_PANELS, t, cv_row);
    const uint64_t rows[3] = {a, b, c};
    if (item != NULL) {
        item->t.cols = (uint32_t)cols;
        for (int i = 0; i < 3 && rows[i] != 0; i++) {
            wr_segment(item, rows[i]);
        }
    }
}

/* A vector of `segments` pieces of n floats; nothing if the checkpoint lacks it. One piece keeps its length,
 * several are padded like the rows of the matrix they belong to. */
static void cv_floats(const cv_plan *p, const char *what, const ck_tensor *t, int segments, uint64_t n, int padded)
{
    wr_item *item = t != NULL ? cv_add(p, what, MAMBA_F32, MBI_LAYOUT_VECTOR, t, cv_vector) : NULL;
    if (item != NULL) {
        item->d[0] = segments;
        item->d[1] = (int)n;
        item->t.cols = (uint32_t)(padded ? (uint64_t)segments * mbi_pad(n, 16) : n);
        wr_segment(item, 1);
    }
}

static void cv_mamba1(const cv_plan *p, const ck_model *m, const ck_layer *l, mbi_layer_record *record)
{
    wr_item *item;
    float eps = (float)m->mixer_rms_eps;
    record->kind = MAMBA_LAYER_MAMBA1;
    record->flags = m->bcdt_rms ? 1 : 0;
    record->u[0] = (uint32_t)m->d_inner;
    record->u[1] = (uint32_t)m->d_state;
    record->u[2] = (uint32_t)m->d_conv;
    record->u[3] = (uint32_t)m->dt_rank;
    record->u[4] = m->bcdt_rms ? mbi_f32_bits(eps) : 0;
    cv_matrix(p, "in_proj", p->type, l->in_proj, m->d_model, m->d_inner, m->d_inner, 0);
    cv_floats(p, "in_proj_bias", l->in_proj_bias, 2, m->d_inner, 1);
    cv_matrix(p, "x_proj", p->type, l->x_proj, m->d_inner, m->dt_rank, m->d_state, m->d_state);
    cv_matrix(p, "dt_proj", p->sensitive, l->dt_proj, m->dt_rank, m->d_inner, 0, 0);
    cv_matrix(p, "out_proj", p->type, l->out_proj, m->d_inner, m->d_model, 0, 0);
    cv_floats(p, "out_proj_bias", l->out_proj_bias, 1, m->d_model, 1);
    cv_floats(p, "conv_b", l->conv_bias, 1, m->d_inner, 0);
    cv_floats(p, "dt_bias", l->dt_bias, 1, m->d_inner, 0);
    cv_floats(p, "D", l->D, 1, m->d_inner, 0);
    item = cv_add(p, "conv_w", MAMBA_F32, MBI_LAYOUT_VECTOR, l->conv, cv_conv);
    if (item != NULL) {
        item->t.cols = (uint32_t)m->d_inner;
        wr_segment(item, m->d_conv);
    }
    item = cv_add(p, "A", MAMBA_F32, MBI_LAYOUT_VECTOR, l->A_log, cv_A);
    if (item != NULL) {
        item->d[0] = (int)m->d_inner;
        item->d[1] = (int)m->d_state;
        item->d[2] = !m->A_stored;
        item->t.cols = 16;
        wr_segment(item, mbi_pad(m->d_inner, 16) / 16 * m->d_state);
    }
}

/* An item of a Mamba-2 layer that knows the axes. */
static wr_item *cv_add2(const cv_plan *p, const ck_model *m, const char *what, mamba_type type, uint32_t layout,
                        const ck_tensor *t, wr_source source)
{
    wr_item *item = t != NULL ? cv_add(p, what, type, layout, t, source) : NULL;
    if (item != NULL) {
        item->d[0] = (int)(m->d_inner - m->d_ssm);
        item->d[1] = (int)m->d_ssm;
        item->d[2] = (int)m->d_state;
        item->d[3] = (int)m->n_groups;
    }
    return item;
}

/* A vector of `rows` rows of n floats. */
static wr_item *cv_vector2(const cv_plan *p, const ck_model *m, const char *what, const ck_tensor *t,
                           wr_source source, uint64_t rows, uint64_t n)
{
    wr_item *item = cv_add2(p, m, what, MAMBA_F32, MBI_LAYOUT_VECTOR, t, source);
    if (item != NULL) {
        item->t.cols = (uint32_t)n;
        wr_segment(item, rows);
    }
    return item;
}

static void cv_mamba2(const cv_plan *p, const ck_model *m, const ck_layer *l, mbi_layer_record *record)
{
    const int d[4] = {(int)(m->d_inner - m->d_ssm), (int)m->d_ssm, (int)m->d_state, (int)m->n_groups};
    cv_axes a = cv_axes_of(d);
    const uint64_t rows[6] = {a.mlp, a.ssm, a.mlp, a.ssm, a.bc, a.bc};
    uint64_t width = mbi_pad(a.ssm, 16), n_bc = mbi_pad(a.bc, 16), mlp = mbi_pad(a.mlp, 16);
    uint64_t dt_row = 2 * (a.d_mlp + a.d_ssm + a.n_bc);
    wr_item *item;
    record->kind = MAMBA_LAYER_MAMBA2;
    record->flags = (m->rms_gated ? 1u : 0u) | (m->rms_gated && m->norm_before_gate ? 2u : 0u);
    record->u[0] = (uint32_t)m->d_ssm;
    record->u[1] = (uint32_t)m->d_state;
    record->u[2] = (uint32_t)m->d_conv;
    record->u[3] = (uint32_t)m->n_heads;
    record->u[4] = (uint32_t)m->headdim;
    record->u[5] = (uint32_t)m->n_groups;
    record->u[6] = (uint32_t)a.d_mlp;
    record->u[7] = mbi_f32_bits((float)m->eps);
    record->u[8] = mbi_f32_bits((float)m->dt_limit[0]);
    record->u[9] = mbi_f32_bits((float)m->dt_limit[1]);
    item = cv_add2(p, m, "in_proj", p->type, MBI_LAYOUT_PANELS, l->in_proj, cv_in_proj2);
    if (item != NULL) {
        item->t.cols = (uint32_t)m->d_model;
        for (int s = 0; s < 6; s++) {
            if (rows[s] != 0) {
                wr_segment(item, rows[s]);
            }
        }
    }
    cv_vector2(p, m, "in_proj_bias", l->in_proj_bias, cv_in_bias2, 1, 2 * (mlp + width + n_bc));
    item = cv_add2(p, m, "dt_in", p->sensitive, MBI_LAYOUT_PANELS, l->in_proj, cv_row);
    if (item != NULL) {
        item->first = dt_row;
        item->t.cols = (uint32_t)m->d_model;
        wr_segment(item, m->n_heads);
    }
    item = cv_add2(p, m, "out_proj", p->type, MBI_LAYOUT_PANELS, l->out_proj, cv_out_proj2);
    if (item != NULL) {
        item->t.cols = (uint32_t)(mlp + a.ssm);
        wr_segment(item, m->d_model);
    }
    cv_floats(p, "out_proj_bias", l->out_proj_bias, 1, m->d_model, 1);
    cv_vector2(p, m, "conv_w", l->conv, cv_conv2, m->d_conv, width + 2 * n_bc);
    cv_vector2(p, m, "conv_b", l->conv_bias, cv_conv2, 1, width + 2 * n_bc);
    item = cv_vector2(p, m, "dt_bias", l->dt_bias, cv_dt_bias2, 1, m->n_heads);
    if (item != NULL) {
        item->extra = l->in_proj_bias;
        item->first = dt_row;
    }
    cv_vector2(p, m, "A", l->A_log, m->A_stored ? cv_A2_stored : cv_A2, 1, m->n_heads);
    item = cv_vector2(p, m, "D", l->D, cv_channels2, 1, a.ssm);
    if (item != NULL) {
        item->first = m->D_has_hdim ? 1 : m->headdim;
    }
    item = cv_vector2(p, m, "gated_norm", l->gated_norm, cv_channels2, 1, a.ssm);
    if (item != NULL) {
        item->first = 1;
    }
}

static wr_item *cv_add_attention(const cv_plan *p, const ck_model *m, const char *what,
                                 mamba_type type, uint32_t layout, const ck_tensor *t,
                                 wr_source source)
{
    wr_item *item = t != NULL ? cv_add(p, what, type, layout, t, source) : NULL;
    if (item != NULL) {
        item->d[0] = (int)m->attention.n_heads;
        item->d[1] = (int)m->attention.n_kv;
        item->d[2] = (int)m->attention.headdim;
        item->d[3] = (int)m->attention.d_mlp;
    }
    return item;
}

static void cv_attention(const cv_plan *p, const ck_model *m, const ck_layer *l,
                         mbi_layer_record *record)
{
    const ck_attention *a = &m->attention;
    const int d[4] = {(int)a->n_heads, (int)a->n_kv, (int)a->headdim, (int)a->d_mlp};
    uint64_t rows[5], channels, mlp = mbi_pad(a->d_mlp, 16);
    wr_item *item;
    cv_qkv_rows(d, rows);
    channels = 2 * mbi_pad(rows[1], 16) + mbi_pad(rows[4], 16);
    record->kind = MAMBA_LAYER_ATTENTION;
    record->flags = a->adjacent ? 1 : 0;
    record->u[0] = (uint32_t)a->n_heads;
    record->u[1] = (uint32_t)a->n_kv;
    record->u[2] = (uint32_t)a->headdim;
    record->u[3] = (uint32_t)a->rotary_dim;
    record->u[4] = (uint32_t)a->d_conv;
    record->u[5] = mbi_f32_bits((float)a->rotary_base);
    record->u[6] = mbi_f32_bits((float)a->scale);
    record->u[7] = (uint32_t)a->d_mlp;
    item = cv_add_attention(p, m, "in_proj", p->type, MBI_LAYOUT_PANELS, l->in_proj, cv_qkv);
    if (item != NULL) {
        item->t.cols = (uint32_t)m->d_model;
        for (int s = 0; s < 5; s++) {
            if (rows[s] != 0) {
                wr_segment(item, rows[s]);
            }
        }
    }
    item = cv_add_attention(p, m, "in_proj_bias", MAMBA_F32, MBI_LAYOUT_VECTOR, l->in_proj_bias,
                            cv_qkv_vector);
    if (item != NULL) {
        item->t.cols = (uint32_t)(channels + 2 * mlp);
        wr_segment(item, 1);
    }
    item = cv_add_attention(p, m, "conv_w", MAMBA_F32, MBI_LAYOUT_VECTOR, l->conv, cv_qkv_vector);
    if (item != NULL) {
        item->first = 1;
        item->t.cols = (uint32_t)channels;
        wr_segment(item, a->d_conv);
    }
    item = cv_add_attention(p, m, "conv_b", MAMBA_F32, MBI_LAYOUT_VECTOR, l->conv_bias,
                            cv_qkv_vector);
    if (item != NULL) {
        item->first = 1;
        item->t.cols = (uint32_t)channels;
        wr_segment(item, 1);
    }
    item = cv_add_attention(p, m, "out_proj", p->type, MBI_LAYOUT_PANELS, l->out_proj,
                            cv_attention_out);
    if (item != NULL) {
        item->t.cols = (uint32_t)(mlp + rows[4]);
        wr_segment(item, m->d_model);
    }
    cv_floats(p, "out_proj_bias", l->out_proj_bias, 1, m->d_model, 1);
}

static void cv_mlp(const cv_plan *p, const ck_model *m, const ck_layer *l, mbi_layer_record *record)
{
    record->kind = MAMBA_LAYER_MLP;
    record->u[0] = (uint32_t)m->d_mlp;
    cv_matrix(p, "fc1", p->type, l->fc1, m->d_model, m->d_mlp, m->d_mlp, 0);
    cv_matrix(p, "fc2", p->type, l->fc2, m->d_mlp, m->d_model, 0, 0);
}

/* The records of the layers: each mixer, and its MLP as a layer of its own. */
static void cv_layers(cv_plan *p, const ck_model *m, mbi_layer_record *records)
{
    mbi_layer_record *r = records;
    for (uint64_t i = 0; i < m->n_layer; i++, r++) {
        const ck_layer *l = &m->layers[i];
        p->layer = (int)(r - records);
        r->norm_eps = (float)m->eps;
        cv_floats(p, "norm", l->norm, 1, m->d_model, 0);
        if (l->attention) {
            cv_attention(p, m, l, r);
        } else if (m->arch == CK_ARCH_MAMBA2) {
            cv_mamba2(p, m, l, r);
        } else {
            cv_mamba1(p, m, l, r);
        }
        if (m->d_mlp != 0) {
            r++;
            p->layer++;
            r->norm_eps = (float)m->eps;
            cv_floats(p, "norm", l->norm2, 1, m->d_model, 0);
            cv_mlp(p, m, l, r);
        }
    }
}

/* The type closest to the one that is stored. */
static mamba_type cv_nearest(ck_dtype stored)
{
    switch (stored) {
    case CK_BF16:
        return MAMBA_BF16;
    case CK_F16:
        return MAMBA_F16;
    case CK_Q8_0:
    case CK_Q6_K:
        return MAMBA_Q8;
    case CK_Q5_0:
    case CK_Q5_1:
    case CK_Q5_K:
        return MAMBA_Q6;
    case CK_Q4_0:
    case CK_Q4_1:
    case CK_Q4_K:
    case CK_Q3_K:
    case CK_Q2_K:
        return MAMBA_Q4;
    default:
        return MAMBA_F32;
    }
}

/* The type of the embedding or the head: of what is stored quantized, the nearest, whatever the layers are: a
 * GGUF file of 4 bits often keeps them in 6, and in 4 they would cost a third more than the rest of its rounding. */
static mamba_type cv_vocabulary_type(const ck_tensor *t, mamba_type type, const cv_options *o)
{
    mamba_type nearest = cv_nearest(t->dtype);
    return o->type < 0 && type >= MAMBA_Q8 && nearest >= MAMBA_Q8 ? nearest : type;
}

/* Configuration, layers and tensors of the file to write. */
static tl_status cv_describe(wr_file *w, const ck_source *ck, const ck_model *m, const cv_options *o, tl_error *err)
{
    mbi_config_record *c = &w->config;
    ck_dtype stored = m->layers[0].in_proj->dtype;
    cv_plan p;
    static const char *const names[] = {"unknown", "mamba", "falcon_mamba", "mamba2"};
    memset(&p, 0, sizeof p);
    p.w = w;
    p.ck = ck;
    p.err = err;
    p.type = o->type >= 0 ? (mamba_type)o->type : cv_nearest(stored);
    p.sensitive = p.type < MAMBA_Q8 ? p.type : stored == CK_BF16 ? MAMBA_BF16 : MAMBA_F16;
    c->d_model = (uint32_t)m->d_model;
    c->n_layers = (uint32_t)(m->d_mlp != 0 ? 2 * m->n_layer : m->n_layer);
    c->n_vocab = (uint32_t)m->padded_vocab;
    c->n_vocab_used = (uint32_t)(m->vocab_size < m->padded_vocab ? m->vocab_size : m->padded_vocab);
    c->flags = m->tied ? MBI_MODEL_TIED : 0;
    c->main_type = (uint32_t)p.type;
    c->norm_eps = (float)m->eps;
    c->embedding_scale = c->residual_scale = c->logit_scale = 1.0f;
    c->bos = (int32_t)m->bos;
    c->eos = (int32_t)m->eos;
    c->pad = -1;
    memcpy(c->architecture, names[m->arch], strlen(names[m->arch]));
    w->selftest = 1;
    w->layers = (mbi_layer_record *)tl_calloc(c->n_layers, sizeof *w->layers, err);
    if (w->layers == NULL) {
        return TL_ERR_MEMORY;
    }
    p.layer = -1;
    cv_matrix(&p, "embedding", cv_vocabulary_type(m->embedding, p.type, o), m->embedding, m->d_model,
              m->padded_vocab, 0, 0);
    if (!m->tied) {
        cv_matrix(&p, "head", cv_vocabulary_type(m->head, p.type, o), m->head, m->d_model, m->padded_vocab, 0, 0);
    }
    cv_floats(&p, "norm_f", m->norm_f, 1, m->d_model, 0);
    cv_layers(&p, m, w->layers);
    return err->status;
}

/* ---- the program ------------------------------------------------------------------------------------------ */

/* Ids of the finished tokenizer section limit what may be sampled, and must have rows. */
static tl_status cv_vocabulary(wr_file *w, const ck_model *m, const unsigned char *section, tl_error *err)
{
    uint32_t n_ids = tl_le32(section + 24);   /* mamba.h, @@vocabulary */
    if (n_ids > m->padded_vocab) {
        return tl_fail(err, TL_ERR_FORMAT, "tokenizer: found %u ids, allowed: at most the %llu rows of the embedding",
                       (unsigned)n_ids, (unsigned long long)m->padded_vocab);
    }
    if (m->bos < 0 && m->eos < 0) { /* then what the tokenizer says, if it does: NONE is -1 */
        w->config.bos = (int32_t)tl_le32(section + 52);
        w->config.eos = (int32_t)tl_le32(section + 56);
    }
    w->config.n_vocab_used = n_ids < w->config.n_vocab_used ? n_ids : w->config.n_vocab_used;
    return TL_OK;
}

/* tokenizer.model, tokenizer.model.v3, …: known by its name. */
static int cv_is_sentencepiece(const char *path)
{
    const char *name = strrchr(path, '/');
    return strstr(name != NULL ? name : path, ".model") != NULL;
}

/* Reads the tokenizer into *section (NULL: none). */
static tl_status cv_tokenizer(const cv_options *o, const ck_source *ck, const ck_model *m, unsigned char **section,
                              size_t *bytes, tl_error *err)
{
    const char *path = o->tokenizer != NULL ? o->tokenizer : ck->tokenizer_path;
    voc_ids ids = {VOC_NONE, VOC_NONE, VOC_NONE};
    int inside = path == NULL && ck_gguf(ck) != NULL
              && gguf_find(ck_gguf(ck), "tokenizer.ggml.model") != NULL;
    ids.bos = m->bos >= 0 ? (uint32_t)m->bos : VOC_NONE;
    ids.eos = m->eos >= 0 ? (uint32_t)m->eos : VOC_NONE;
    if (inside) {
        return voc_read_gguf(ck_gguf(ck), &ck->files[0].file, ids, section, bytes, err);
    }
    if (path == NULL) {
        fprintf(stderr, "mamba-convert: warning: no tokenizer.json or tokenizer.model beside the "
                        "weights: the file will take and give "
                        "token ids, not text (add one with --tokenizer FILE)\n");
        return TL_OK;
    }
    if (strcmp(path, "none") == 0) {
        return TL_OK;
    }
    if (strcmp(path, "bytes") == 0) {
        ids.bos = ids.eos = VOC_NONE;
        return voc_bytes(ids, section, bytes, err);
    }
    if (cv_is_sentencepiece(path)) {
        return voc_read_sentencepiece(path, section, bytes, err);
    }
    return voc_read(path, ids, section, bytes, err);
}

/* The output must not be one of the inputs. */
static tl_status cv_check_output(const char *out, const ck_source *ck, tl_error *err)
{
    tl_status status = TL_OK;
    for (size_t i = 0; i < ck->file_count && status == TL_OK; i++) {
        status = pr_check_output(out, ck->files[i].file.path, err);
    }
    return status;
}

static tl_status cv_convert(const cv_options *o, tl_error *err)
{
    ck_source *ck = NULL;
    ck_model m;
    wr_file w;
    unsigned char *tokenizer = NULL;
    size_t tokenizer_bytes = 0;
    tl_status status;
    memset(&m, 0, sizeof m);
    memset(&w, 0, sizeof w);
    w.progress = pr_progress;
    w.progress_user = (void *)(uintptr_t)&o->quiet;
    status = ck_open(o->in, &ck, err);
    if (status == TL_OK) {
        status = cv_check_output(o->out, ck, err);
    }
    if (status == TL_OK) {
        status = ck_describe(ck, o->arch, &m, err);
    }
    if (status == TL_OK && m.warning != NULL && !o->quiet) {
        fprintf(stderr, "mamba-convert: warning: %s\n", m.warning);
    }
    if (status == TL_OK) {
        status = cv_describe(&w, ck, &m, o, err);
    }
    if (status == TL_OK) {
        status = cv_tokenizer(o, ck, &m, &tokenizer, &tokenizer_bytes, err);
    }
    if (status == TL_OK && tokenizer != NULL) {
        status = cv_vocabulary(&w, &m, tokenizer, err);
        wr_section(&w, "tokenizer", tokenizer, tokenizer_bytes);
    }
    if (status == TL_OK) {
        status = wr_write(&w, o->out, err);
    }
    if (status == TL_OK && !o->quiet && isatty(2)) {
        fprintf(stderr, "%s: %llu bytes\n", o->out, (unsigned long long)w.file_bytes);
    }
    wr_free(&w);
    ck_model_free(&m);
    ck_close(ck);
    tl_free(tokenizer);
    return status;
}

int main(int argc, char **argv)
{
    cv_options o;
    tl_error err;
    int plain = 0;
    memset(&o, 0, sizeof o);
    memset(&err, 0, sizeof err);
    o.type = -1;
    for (int i = 1; i < argc; i++) {
        const char *v;
        if (plain || argv[i][0] != '-' || argv[i][1] == 0) {
            if (o.in != NULL) {
                return pr_usage("mamba-convert", "one input only, found a second", argv[i]);
            }
            o.in = argv[i];
        } else if (strcmp(argv[i], "--") == 0) {
            plain = 1;
        } else if (strcmp(argv[i], "-h") == 0 || strcmp(argv[i], "--help") == 0) {
            fputs(cv_help, stdout);
            return fflush(stdout) == 0 ? 0 : 1;
        } else if (strcmp(argv[i], "-q") == 0 || strcmp(argv[i], "--quiet") == 0) {
            o.quiet = 1;
        } else if ((v = pr_value(argc, argv, &i, "-o")) != NULL || (v = pr_value(argc, argv, &i, "--output")) != NULL) {
            o.out = v;
        } else if ((v = pr_value(argc, argv, &i, "--tokenizer")) != NULL) {
            if (v[0] == 0) {
                return pr_usage("mamba-convert", "--tokenizer needs a file, 'bytes' or 'none'", NULL);
            }
            o.tokenizer = v;
        } else if ((v = pr_value(argc, argv, &i, "--arch")) != NULL) {
            o.arch = v;
        } else if ((v = pr_value(argc, argv, &i, "--type")) != NULL) {
            o.type = pr_type(v);
            if (o.type < 0) {
                return pr_usage("mamba-convert", "--type must be f32, f16, bf16, q8, q6 or q4, found", v);
            }
        } else {
            return pr_usage("mamba-convert", "unknown option", argv[i]);
        }
    }
    if (o.in == NULL || o.in[0] == 0) {
        return pr_usage("mamba-convert", "give the checkpoint to convert", NULL);
    }
    if (o.out == NULL || o.out[0] == 0) {
        return pr_usage("mamba-convert", "give the output with -o FILE", NULL);
    }
    pr_catch_signals();
    if (cv_convert(&o, &err) != TL_OK) {
        fprintf(stderr, "mamba-convert: %s\n", err.message);
        return err.status == TL_ERR_USAGE ? 2 : 1;
    }
    return 0;
}
