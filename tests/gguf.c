/*  gguf.c: tests of what the converter makes of GGUF files.
 *
 *  The files are made here: golden checkpoints under the names and with the value transformations
 *  of the format's own converter, quantised by round-to-nearest into every tensor type; one
 *  malformed file for every class of hostile input (numbers F01 to F42); every truncated prefix;
 *  every flipped byte of the metadata; the k-th allocation failing for every k. Reads tests/golden;
 *  writes to TMPDIR or /tmp.
 */
#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- hooks: counting bytes, failing on request -------------------------------------------------
 */

static struct {
    long blocks, calls, fail_at;
    int persistent;
    size_t bytes, peak; /* live, and the most since it was last set */
} hook;

/* Every block is preceded by its size. */
static void *hook_realloc(void *p, size_t n)
{
    char *old = p != NULL ? (char *)p - 16 : NULL, *q;
    size_t before = 0;
    ++hook.calls;
    if (hook.fail_at != 0
        && (hook.calls == hook.fail_at || (hook.persistent && hook.calls > hook.fail_at))) {
        return NULL;
    }
    if (old != NULL) {
        memcpy(&before, old, sizeof before);
    }
    q = (char *)realloc(old, n + 16);
    if (q == NULL) {
        return NULL;
    }
    memcpy(q, &n, sizeof n);
    hook.blocks += p == NULL;
    hook.bytes += n - before;
    hook.peak = hook.bytes > hook.peak ? hook.bytes : hook.peak;
    return q + 16;
}

static void hook_free(void *p)
{
    size_t n;
    memcpy(&n, (char *)p - 16, sizeof n);
    hook.blocks--;
    hook.bytes -= n;
    free((char *)p - 16);
}

#define TL_MALLOC(n) hook_realloc(NULL, (n))
#define TL_REALLOC(p, n) hook_realloc((p), (n))
#define TL_FREE(p) hook_free(p)

int cv_main(int argc, char **argv);
#define main cv_main
#include "../tools/convert.c"
#undef main

#include "test.h"

/* ---- bytes, scratch files ----------------------------------------------------------------------
 */

typedef struct {
    unsigned char *bytes;
    size_t n, capacity;
} buf;

static void buf_put(buf *b, const void *bytes, size_t n)
{
    if (b->n + n > b->capacity) {
        b->capacity = (b->n + n) * 2;
        b->bytes = (unsigned char *)realloc(b->bytes, b->capacity);
        if (b->bytes == NULL) {
            abort();
        }
    }
    if (n != 0) {
        memcpy(b->bytes + b->n, bytes, n);
    }
    b->n += n;
}

static void buf_le(buf *b, unsigned width, uint64_t value)
{
    for (unsigned i = 0; i < width; i++) {
        unsigned char c = (unsigned char)(value >> 8 * i);
        buf_put(b, &c, 1);
    }
}

static void buf_string_n(buf *b, const char *text, size_t n)
{
    buf_le(b, 8, n);
    buf_put(b, text, n);
}

static void buf_string(buf *b, const char *text)
{
    buf_string_n(b, text, strlen(text));
}

static void buf_free(buf *b)
{
    free(b->bytes);
    memset(b, 0, sizeof *b);
}

static const char *scratch(const char *name)
{
    static char paths[4][600];
    static int turn;
    const char *folder = getenv("TMPDIR");
    char *path = paths[turn++ % 4];
    (void)snprintf(path, sizeof paths[0], "%.400s/mamba-gguf-%ld-%s",
                   folder != NULL ? folder : "/tmp", (long)getpid(), name);
    return path;
}

static int save(const char *path, const unsigned char *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");
    int ok = f != NULL && (n == 0 || fwrite(bytes, 1, n, f) == n);
    return f != NULL && fclose(f) == 0 && ok;
}

/* ---- writing GGUF ------------------------------------------------------------------------------
 */

typedef struct {
    char name[64];
    int n_dims;
    uint64_t ne[4]; /* fastest first */
    ck_dtype type;
    float *values; /* what the tensor says, exactly */
    uint64_t count;
    unsigned char *data;
    size_t bytes;
    int large; /* a matrix that quantised files quantise */
} gt_tensor;

typedef struct {
    gt_tensor t[128];
    int n;
    buf kv;
    uint64_t n_kv;
} gt_file;

static void kv_key(gt_file *f, const char *key, uint32_t type)
{
    buf_string(&f->kv, key);
    buf_le(&f->kv, 4, type);
    f->n_kv++;
}

static void kv_u32(gt_file *f, const char *key, uint64_t value)
{
    kv_key(f, key, GGUF_U32);
    buf_le(&f->kv, 4, value);
}

static void kv_f32(gt_file *f, const char *key, float value)
{
    kv_key(f, key, GGUF_F32);
    buf_le(&f->kv, 4, mbi_f32_bits(value));
}

static void kv_bool(gt_file *f, const char *key, int value)
{
    kv_key(f, key, GGUF_BOOL);
    buf_le(&f->kv, 1, (uint64_t)value);
}

static void kv_string(gt_file *f, const char *key, const char *value)
{
    kv_key(f, key, GGUF_STRING);
    buf_string(&f->kv, value);
}

static void kv_array(gt_file *f, const char *key, uint32_t type, uint64_t n)
{
    kv_key(f, key, GGUF_ARRAY);
    buf_le(&f->kv, 4, type);
    buf_le(&f->kv, 8, n);
}

/* The numbers of the types in the file. */
static uint32_t gt_number(ck_dtype type)
{
    static const struct {
        ck_dtype type;
        uint32_t number;
    } list[] = {{CK_F32, 0},   {CK_F16, 1},   {CK_Q4_0, 2},  {CK_Q4_1, 3},  {CK_Q5_0, 6},
                {CK_Q5_1, 7},  {CK_Q8_0, 8},  {CK_Q2_K, 10}, {CK_Q3_K, 11}, {CK_Q4_K, 12},
                {CK_Q5_K, 13}, {CK_Q6_K, 14}, {CK_BF16, 30}};
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) {
        if (list[i].type == type) {
            return list[i].number;
        }
    }
    return 999;
}

static void gt_info(buf *out, const gt_tensor *t, uint64_t offset)
{
    buf_string(out, t->name);
    buf_le(out, 4, (uint64_t)t->n_dims);
    for (int i = 0; i < t->n_dims; i++) {
        buf_le(out, 8, t->ne[i]);
    }
    buf_le(out, 4, gt_number(t->type));
    buf_le(out, 8, offset);
}

static void gt_pad(buf *out, size_t alignment)
{
    while (out->n % alignment != 0) {
        buf_le(out, 1, 0);
    }
}

static void gt_bytes(const gt_file *f, buf *out, size_t alignment)
{
    uint64_t offset = 0;
    memset(out, 0, sizeof *out);
    buf_put(out, "GGUF", 4);
    buf_le(out, 4, 3);
    buf_le(out, 8, (uint64_t)f->n);
    buf_le(out, 8, f->n_kv);
    buf_put(out, f->kv.bytes, f->kv.n);
    for (int i = 0; i < f->n; i++) {
        gt_info(out, &f->t[i], offset);
        offset += (f->t[i].bytes + alignment - 1) / alignment * alignment;
    }
    gt_pad(out, alignment);
    for (int i = 0; i < f->n; i++) {
        buf_put(out, f->t[i].data, f->t[i].bytes);
        gt_pad(out, alignment);
    }
}

static int gt_save(const gt_file *f, const char *path)
{
    buf out;
    int ok;
    gt_bytes(f, &out, 32);
    ok = save(path, out.bytes, out.n);
    buf_free(&out);
    return ok;
}

static void gt_free(gt_file *f)
{
    for (int i = 0; i < f->n; i++) {
        free(f->t[i].values);
        free(f->t[i].data);
    }
    buf_free(&f->kv);
    memset(f, 0, sizeof *f);
}

/* ---- quantising by round-to-nearest, written down the other way round than the reader ---------
 */

static float half_of(float x)
{
    return tl_f32_of_f16(pack_f16(x));
}

static void put_half(unsigned char *p, float x)
{
    uint16_t h = pack_f16(x);
    p[0] = (unsigned char)h;
    p[1] = (unsigned char)(h >> 8);
}

static int clamp_round(float x, int lo, int hi)
{
    float r = floorf(x + 0.5f);
    return r < (float)lo ? lo : r > (float)hi ? hi : (int)r;
}

static void extent(const float *x, int n, float *lo, float *hi, float *most)
{
    *lo = *hi = x[0];
    *most = 0;
    for (int i = 0; i < n; i++) {
        *lo = x[i] < *lo ? x[i] : *lo;
        *hi = x[i] > *hi ? x[i] : *hi;
        *most = fabsf(x[i]) > *most ? fabsf(x[i]) : *most;
    }
}

/* Q8_0, Q4_0, Q5_0, Q4_1, Q5_1; v receives what the block says. */
static void quant_32(ck_dtype type, const float *x, unsigned char *p, float *v)
{
    int bits = type == CK_Q8_0 ? 8 : type == CK_Q5_0 || type == CK_Q5_1 ? 5 : 4;
    int minimum = type == CK_Q4_1 || type == CK_Q5_1, steps = 1 << bits, q;
    int header = 2 + (minimum ? 2 : 0) + (bits == 5 ? 4 : 0);
    float lo, hi, most, d, m;
    extent(x, 32, &lo, &hi, &most);
    d = half_of(minimum ? (hi - lo) / (float)(steps - 1) : most / (float)(steps / 2 - 1));
    m = minimum ? half_of(lo) : 0.0f;
    memset(p, 0, ck_types[type].bytes);
    put_half(p, d);
    if (minimum) {
        put_half(p + 2, m);
    }
    for (int i = 0; i < 32; i++) {
        float r = d != 0 ? (x[i] - m) / d : 0;
        q = minimum ? clamp_round(r, 0, steps - 1) : clamp_round(r, -steps / 2, steps / 2 - 1);
        v[i] = minimum ? (float)q * d + m : (float)q * d;
        q += minimum || bits == 8 ? 0 : steps / 2;
        if (bits == 8) {
            p[2 + i] = (unsigned char)q;
            continue;
        }
        p[header + i % 16] = (unsigned char)(p[header + i % 16] | (q & 15) << (i < 16 ? 0 : 4));
        if (bits == 5) {
            p[header - 4 + i / 8] = (unsigned char)(p[header - 4 + i / 8] | (q >> 4) << i % 8);
        }
    }
}

/* Scales and minima of groups that leave x = a q - b with q in [0, steps). */
static void quant_affine(const float *x, int groups, int width, int steps, int levels, float *d,
                         float *least, int *scale, int *minimum)
{
    float lo, hi, most, top = 0, bottom = 0;
    for (int g = 0; g < groups; g++) {
        extent(x + g * width, width, &lo, &hi, &most);
        lo = lo > 0 ? 0 : lo;
        top = (hi - lo) / (float)(steps - 1) > top ? (hi - lo) / (float)(steps - 1) : top;
        bottom = -lo > bottom ? -lo : bottom;
    }
    *d = half_of(top / (float)levels);
    *least = half_of(bottom / (float)levels);
    for (int g = 0; g < groups; g++) {
        extent(x + g * width, width, &lo, &hi, &most);
        lo = lo > 0 ? 0 : lo;
        scale[g] = *d != 0 ? clamp_round((hi - lo) / (float)(steps - 1) / *d, 0, levels) : 0;
        minimum[g] = *least != 0 ? clamp_round(-lo / *least, 0, levels) : 0;
    }
}

static void quant_k45(ck_dtype type, const float *x, unsigned char *p, float *v)
{
    int five = type == CK_Q5_K, steps = five ? 32 : 16, scale[8], minimum[8];
    unsigned char *high = p + 16, *low = five ? p + 48 : p + 16;
    float d, least;
    quant_affine(x, 8, 32, steps, 63, &d, &least, scale, minimum);
    memset(p, 0, ck_types[type].bytes);
    put_half(p, d);
    put_half(p + 2, least);
    for (int g = 0; g < 8; g++) { /* 6-bit fields: the upper two bits of 4..7 lie above 0..3 */
        if (g < 4) {
            p[4 + g] = (unsigned char)(p[4 + g] | scale[g]);
            p[8 + g] = (unsigned char)(p[8 + g] | minimum[g]);
        } else {
            p[8 + g] = (unsigned char)((scale[g] & 15) | (minimum[g] & 15) << 4);
            p[g] = (unsigned char)(p[g] | scale[g] >> 4 << 6);
            p[4 + g] = (unsigned char)(p[4 + g] | minimum[g] >> 4 << 6);
        }
    }
    for (int i = 0; i < 256; i++) {
        int g = i / 32;
        float a = d * (float)scale[g], b = least * (float)minimum[g];
        int q = a != 0 ? clamp_round((x[i] + b) / a, 0, steps - 1) : 0;
        int at = i / 64 * 32 + i % 32;
        v[i] = a * (float)q - b;
        low[at] = (unsigned char)(low[at] | (q & 15) << (g % 2 != 0 ? 4 : 0));
        if (five) {
            high[i % 32] = (unsigned char)(high[i % 32] | (q >> 4) << g);
        }
    }
}

static void quant_q2(const float *x, unsigned char *p, float *v)
{
    int scale[16], minimum[16];
    float d, least;
    quant_affine(x, 16, 16, 4, 15, &d, &least, scale, minimum);
    memset(p, 0, ck_types[CK_Q2_K].bytes);
    put_half(p + 80, d);
    put_half(p + 82, least);
    for (int i = 0; i < 256; i++) {
        int g = i / 16, at = 16 + i / 128 * 32 + i % 32;
        float a = d * (float)scale[g], b = least * (float)minimum[g];
        int q = a != 0 ? clamp_round((x[i] + b) / a, 0, 3) : 0;
        v[i] = a * (float)q - b;
        p[g] = (unsigned char)(scale[g] | minimum[g] << 4);
        p[at] = (unsigned char)(p[at] | q << i / 32 % 4 * 2);
    }
}

/* Q6_K, Q3_K: symmetric, groups of 16; odd groups get a negative scale. */
static void quant_q63(ck_dtype type, const float *x, unsigned char *p, float *v)
{
    int six = type == CK_Q6_K, half = six ? 32 : 4, levels = six ? 127 : 31;
    float lo, hi, most, top = 0, d;
    memset(p, 0, ck_types[type].bytes);
    for (int g = 0; g < 16; g++) {
        extent(x + 16 * g, 16, &lo, &hi, &most);
        top = most / (float)(half - 1) > top ? most / (float)(half - 1) : top;
    }
    d = half_of(top / (float)levels);
    put_half(p + (six ? 208 : 108), d);
    for (int i = 0; i < 256; i++) {
        int g = i / 16, s, q, at;
        extent(x + 16 * g, 16, &lo, &hi, &most);
        s = d != 0 ? clamp_round(most / (float)(half - 1) / d, 0, levels) * (g % 2 != 0 ? -1 : 1)
                   : 0;
        q = s != 0 ? clamp_round(x[i] / (d * (float)s), -half, half - 1) : 0;
        v[i] = d * (float)s * (float)q;
        q += half;
        if (six) {
            p[192 + g] = (unsigned char)s;
            at = i / 128 * 64 + i % 64;
            p[at] = (unsigned char)(p[at] | (q & 15) << (i % 128 < 64 ? 0 : 4));
            at = 128 + i / 128 * 32 + i % 32;
            p[at] = (unsigned char)(p[at] | (q >> 4) << i % 128 / 32 * 2);
            continue;
        }
        s += 32;
        p[i % 32] = (unsigned char)(p[i % 32] | (q >> 2) << i / 32);
        at = 32 + i / 128 * 32 + i % 32;
        p[at] = (unsigned char)(p[at] | (q & 3) << i / 32 % 4 * 2);
        if (i % 16 == 0) {
            p[96 + g % 8] = (unsigned char)(p[96 + g % 8] | (s & 15) << (g < 8 ? 0 : 4));
            p[104 + g % 4] = (unsigned char)(p[104 + g % 4] | (s >> 4) << g / 4 * 2);
        }
    }
}

static void quant_block(ck_dtype type, const float *x, unsigned char *p, float *v)
{
    switch (type) {
    case CK_Q4_K:
    case CK_Q5_K:
        quant_k45(type, x, p, v);
        break;
    case CK_Q2_K:
        quant_q2(x, p, v);
        break;
    case CK_Q3_K:
    case CK_Q6_K:
        quant_q63(type, x, p, v);
        break;
    default:
        quant_32(type, x, p, v);
        break;
    }
}

/* Encodes t->values as `type` and makes t->values what the data then says. */
static void gt_encode(gt_tensor *t, ck_dtype type)
{
    unsigned block = ck_types[type].block;
    t->type = type;
    t->bytes = (size_t)(t->count / block * ck_types[type].bytes);
    free(t->data);
    t->data = (unsigned char *)malloc(t->bytes);
    if (t->data == NULL) {
        abort();
    }
    for (uint64_t i = 0; i < t->count; i += block) {
        unsigned char *p = t->data + i / block * ck_types[type].bytes;
        if (type == CK_F32) {
            memcpy(p, &t->values[i], 4);
        } else if (type == CK_F16) {
            put_half(p, t->values[i]);
            t->values[i] = half_of(t->values[i]);
        } else if (type == CK_BF16) {
            uint16_t h = mbi_f32_to_bf16(t->values[i]);
            memcpy(p, &h, 2);
            t->values[i] = tl_f32_of_bf16(h);
        } else {
            float v[256];
            quant_block(type, t->values + i, p, v);
            memcpy(t->values + i, v, block * sizeof v[0]);
        }
    }
}

/* All large matrices whose rows are whole blocks. Returns how many. */
static int gt_quantise(gt_file *f, ck_dtype type)
{
    int n = 0;
    for (int i = 0; i < f->n; i++) {
        if (f->t[i].large && f->t[i].ne[0] % ck_types[type].block == 0) {
            gt_encode(&f->t[i], type);
            n++;
        }
    }
    return n;
}

/* ---- checkpoints as GGUF -----------------------------------------------------------------------
 */

static void gt_add(gt_file *f, const ck_source *ck, const ck_tensor *from, const char *name,
                   uint64_t ne0, uint64_t ne1)
{
    gt_tensor *t = &f->t[f->n];
    tl_error err;
    memset(&err, 0, sizeof err);
    if (from == NULL) {
        return;
    }
    (void)snprintf(t->name, sizeof t->name, "%s", name);
    t->n_dims = ne1 != 0 ? 2 : 1;
    t->ne[0] = ne0;
    t->ne[1] = ne1;
    t->count = ne0 * (ne1 != 0 ? ne1 : 1);
    t->large = ne1 != 0 && strstr(name, "conv1d") == NULL && strstr(name, ".weight") != NULL;
    t->values = (float *)malloc(t->count * sizeof(float));
    if (t->values == NULL || from->count != t->count
        || ck_read_f32(ck, from, 0, t->count, t->values, &err) != TL_OK) {
        abort();
    }
    for (uint64_t i = 0; strstr(name, "ssm_a") != NULL && i < t->count; i++) {
        t->values[i] = (float)-exp((double)t->values[i]);
    }
    gt_encode(t, CK_F32);
    f->n++;
}

static void gt_layer(gt_file *f, const ck_source *ck, const ck_model *m, int i)
{
    const ck_layer *l = &m->layers[i];
    int two = m->arch == CK_ARCH_MAMBA2;
    char name[64];
#define ADD(tensor, part, a, b)                                    \
    do {                                                           \
        (void)snprintf(name, sizeof name, "blk.%d.%s", i, (part)); \
        gt_add(f, ck, (tensor), name, (a), (b));                   \
    } while (0)
    ADD(l->norm, "attn_norm.weight", m->d_model, 0);
    ADD(l->in_proj, "ssm_in.weight", m->d_model, m->d_in_proj);
    ADD(l->conv, "ssm_conv1d.weight", m->d_conv, m->conv_channels);
    ADD(l->conv_bias, "ssm_conv1d.bias", m->conv_channels, 0);
    ADD(l->x_proj, "ssm_x.weight", m->d_inner, m->dt_rank + 2 * m->d_state);
    ADD(l->dt_proj, "ssm_dt.weight", m->dt_rank, m->d_inner);
    ADD(l->dt_bias, "ssm_dt.bias", two ? m->n_heads : m->d_inner, 0);
    ADD(l->A_log, "ssm_a", two ? 1 : m->d_state, two ? m->n_heads : m->d_inner);
    ADD(l->D, "ssm_d", two ? 1 : m->d_inner, two ? m->n_heads : 0);
    ADD(l->gated_norm, "ssm_norm.weight", m->d_ssm / m->n_groups, m->n_groups);
    ADD(l->out_proj, "ssm_out.weight", m->d_inner, m->d_model);
#undef ADD
}

static void gt_keys(gt_file *f, const ck_model *m)
{
    const char *arch = m->arch == CK_ARCH_MAMBA2 ? "mamba2" : "mamba";
    char key[64];
#define KEY(suffix) ((void)snprintf(key, sizeof key, "%s.%s", arch, (suffix)), key)
    kv_string(f, "general.architecture", arch);
    kv_string(f, "general.type", "model");
    kv_u32(f, KEY("context_length"), 1048576);
    kv_u32(f, KEY("embedding_length"), m->d_model);
    kv_u32(f, KEY("feed_forward_length"), 0);
    kv_u32(f, KEY("attention.head_count"), 0);
    kv_u32(f, KEY("block_count"), m->n_layer);
    kv_u32(f, KEY("ssm.conv_kernel"), m->d_conv);
    kv_u32(f, KEY("ssm.inner_size"), m->d_inner);
    kv_u32(f, KEY("ssm.state_size"), m->d_state);
    kv_u32(f, KEY("ssm.time_step_rank"), m->arch == CK_ARCH_MAMBA2 ? m->n_heads : m->dt_rank);
    kv_f32(f, KEY("attention.layer_norm_rms_epsilon"), (float)m->eps);
    if (m->arch == CK_ARCH_MAMBA2) {
        kv_u32(f, KEY("ssm.group_count"), m->n_groups);
    } else {
        kv_bool(f, KEY("ssm.dt_b_c_rms"), m->arch == CK_ARCH_FALCON_MAMBA);
    }
#undef KEY
    kv_u32(f, "general.file_type", 0);
}

/* A golden checkpoint as the F32 file that the format's converter would write. */
static int gt_golden(gt_file *f, const char *name)
{
    char path[600];
    ck_source *ck = NULL;
    ck_model m;
    tl_error err;
    memset(f, 0, sizeof *f);
    memset(&m, 0, sizeof m);
    memset(&err, 0, sizeof err);
    (void)snprintf(path, sizeof path, "tests/golden/%s", name);
    if (!tl_exists(path)) {
        return 0;
    }
    if (ck_open(path, &ck, &err) != TL_OK || ck_describe(ck, NULL, &m, &err) != TL_OK) {
        printf("%s\n", err.message);
        ck_close(ck);
        return 0;
    }
    gt_keys(f, &m);
    gt_add(f, ck, m.embedding, "token_embd.weight", m.d_model, m.padded_vocab);
    gt_add(f, ck, m.norm_f, "output_norm.weight", m.d_model, 0);
    if (!m.tied) {
        gt_add(f, ck, m.head, "output.weight", m.d_model, m.padded_vocab);
    }
    for (uint64_t i = 0; i < m.n_layer; i++) {
        gt_layer(f, ck, &m, (int)i);
    }
    ck_model_free(&m);
    ck_close(ck);
    return 1;
}

/* ---- running -----------------------------------------------------------------------------------
 */

static tl_status convert(const char *in, const char *out, int type, const char *tokenizer,
                         tl_error *err)
{
    cv_options o;
    memset(&o, 0, sizeof o);
    memset(err, 0, sizeof *err);
    o.in = in;
    o.out = out;
    o.type = type;
    o.quiet = 1;
    o.tokenizer = tokenizer;
    return cv_convert(&o, err);
}

typedef struct {
    float *logits; /* (n, n_vocab) */
    size_t n, n_vocab;
    mamba_info info;
} answer;

/* All logits of a .mamba file. */
static int run(const char *path, const int32_t *ids, size_t n, answer *a)
{
    mamba_model *m = NULL;
    mamba_state *s = NULL;
    mamba_io io;
    mamba_error err;
    int ok;
    memset(a, 0, sizeof *a);
    memset(&err, 0, sizeof err);
    ok = mamba_open(path, strlen(path), NULL, &m, &err) == MAMBA_OK;
    if (ok) {
        mamba_model_info(m, &a->info);
        a->n = n;
        a->n_vocab = (size_t)a->info.n_vocab;
        a->logits = (float *)malloc(n * a->n_vocab * sizeof(float));
        memset(&io, 0, sizeof io);
        io.tokens = ids;
        io.n = n;
        io.want_logits = MAMBA_WANT_ALL;
        io.logits = a->logits;
        io.n_logits = n * a->n_vocab;
        ok = a->logits != NULL && mamba_state_create(m, NULL, &s, &err) == MAMBA_OK
             && mamba_run(s, &io, &err) == MAMBA_OK;
    }
    if (!ok) {
        char text[400];
        mamba_error_text(&err, text, sizeof text);
        printf("%s\n", text);
    }
    mamba_state_free(s);
    mamba_close(m);
    return ok;
}

static double deviation(const float *x, size_t n)
{
    double sum = 0, square = 0;
    for (size_t i = 0; i < n; i++) {
        sum += (double)x[i];
        square += (double)x[i] * (double)x[i];
    }
    sum /= (double)n;
    return sqrt(square / (double)n - sum * sum);
}

/* Largest difference, root of the mean square in *rms. */
static double distance(const float *x, const float *y, size_t n, double *rms)
{
    double most = 0, square = 0;
    for (size_t i = 0; i < n; i++) {
        double e = fabs((double)x[i] - (double)y[i]);
        most = e > most || e != e ? e : most;
        square += e * e;
    }
    *rms = sqrt(square / (double)n);
    return most;
}

/* Prompt and logits of a golden folder: row 0. */
static int expected(const char *name, int32_t **ids, size_t *n, float **logits, size_t *n_vocab)
{
    char path[600];
    ck_source *ck = NULL;
    tl_error err;
    const ck_tensor *i, *l;
    int ok = 0;
    *ids = NULL;
    *logits = NULL;
    memset(&err, 0, sizeof err);
    (void)snprintf(path, sizeof path, "tests/golden/%s/expected.safetensors", name);
    if (ck_open_weights(path, &ck, &err) != TL_OK) {
        return 0;
    }
    i = ck_find(ck, "input_ids");
    l = ck_find(ck, "logits");
    if (i != NULL && l != NULL && i->dtype == CK_I32 && l->rank == 3) {
        *n = (size_t)l->shape[1];
        *n_vocab = (size_t)l->shape[2];
        *ids = (int32_t *)malloc(*n * 4);
        *logits = (float *)malloc(*n * *n_vocab * 4);
        ok = *ids != NULL && *logits != NULL && ck_read_raw(ck, i, 0, *n, *ids, &err) == TL_OK
             && ck_read_f32(ck, l, 0, *n * *n_vocab, *logits, &err) == TL_OK;
    }
    ck_close(ck);
    return ok;
}

/* ---- blocks by hand ----------------------------------------------------------------------------
 */

TEST(blocks_by_hand)
{
    unsigned char p[256];
    float v[256];
    memset(p, 0, sizeof p);
    p[1] = 0x38; /* d = 0.5 */
    p[2] = 0xf1;
    p[17] = 0x08;
    gguf_dequantise(CK_Q4_0, p, v);
    CHECK(v[0] == -3.5f && v[16] == 3.5f && v[15] == 0.0f && v[31] == -4.0f && v[1] == -4.0f);
    p[3] = 0x3c; /* d = 0.5, m = 1 (bytes 2, 3; the first nibbles move to byte 4) */
    p[2] = 0;
    p[4] = 0xf1;
    gguf_dequantise(CK_Q4_1, p, v);
    CHECK(v[0] == 1.5f && v[16] == 8.5f && v[1] == 1.0f);
    memset(p, 0, sizeof p);
    p[1] = 0x40; /* d = 2 */
    p[2] = 0x01; /* fifth bit of value 0 */
    p[4] = 0x01; /* and of value 16 */
    p[6] = 0x23;
    gguf_dequantise(CK_Q5_0, p, v);
    CHECK(v[0] == 6.0f && v[16] == 4.0f && v[1] == -32.0f);
    memset(p, 0, sizeof p);
    p[1] = 0x3c;
    p[3] = 0xc0; /* m = -2 */
    p[7] = 0x80; /* fifth bit of value 31 */
    p[23] = 0xf0;
    gguf_dequantise(CK_Q5_1, p, v);
    CHECK(v[31] == 29.0f && v[0] == -2.0f && v[15] == -2.0f);
    memset(p, 0, sizeof p);
    p[1] = 0xbc; /* d = -1 */
    p[2] = 0x80;
    p[33] = 0x7f;
    gguf_dequantise(CK_Q8_0, p, v);
    CHECK(v[0] == 128.0f && v[31] == -127.0f && v[1] == 0.0f);
}

TEST(super_blocks_by_hand)
{
    unsigned char p[256];
    float v[256];
    memset(p, 0, sizeof p);
    p[1] = 0x3c;       /* Q4_K: d = 1 */
    p[3] = 0x38;       /* least = 0.5 */
    p[4] = 0x40 | 3;   /* scale 0 = 3; scale 4 gets 1 << 4 */
    p[8] = 0x80 | 5;   /* minimum 0 = 5; minimum 4 gets 2 << 4 */
    p[12] = 0x72;      /* scale 4 = 0x12, minimum 4 = 0x27 */
    p[16] = 0x0f;      /* value 0 = 15, value 32 = 0 */
    p[16 + 64] = 0x09; /* value 128 = 9 (group 4) */
    gguf_dequantise(CK_Q4_K, p, v);
    CHECK(v[0] == 42.5f && v[1] == -2.5f && v[32] == 0.0f);
    CHECK(v[128] == 18.0f * 9.0f - 19.5f && v[129] == -19.5f);
    p[16] = 0x11; /* Q5_K: the high bits: value 0 (bit 0) and 128 (bit 4) */
    p[48] = 0x0f;
    p[48 + 64] = 0x09;
    memset(p + 17, 0, 31);
    gguf_dequantise(CK_Q5_K, p, v);
    CHECK(v[0] == 3.0f * 31.0f - 2.5f && v[128] == 18.0f * 25.0f - 19.5f && v[1] == -2.5f);
    memset(p, 0, sizeof p);
    p[209] = 0x3c;     /* Q6_K: d = 1 */
    p[192] = 2;        /* group 0 */
    p[192 + 4] = 0xff; /* group 4 (values 64..79): -1 */
    p[0] = 0x5a;       /* low nibbles of values 0 and 64 */
    p[128] = 0x21;     /* high bits: value 0: 1, 32: 0, 64: 2, 96: 0 */
    gguf_dequantise(CK_Q6_K, p, v);
    CHECK(v[0] == 2.0f * (26.0f - 32.0f) && v[64] == -(37.0f - 32.0f) && v[1] == -64.0f);
    memset(p, 0, sizeof p);
    p[81] = 0x3c; /* Q2_K: d = 1, least = 0.5 */
    p[83] = 0x38;
    p[0] = 0x43;  /* group 0: scale 3, minimum 4 */
    p[10] = 0x11; /* group 10 (values 160..175): 1, 1 */
    p[16] = 0x02; /* value 0 = 2 */
    p[48] = 0x08; /* values 128, 160: 0, 2 */
    gguf_dequantise(CK_Q2_K, p, v);
    CHECK(v[0] == 4.0f && v[1] == -2.0f && v[160] == 1.5f && v[161] == -0.5f && v[16] == 0.0f);
    memset(p, 0, sizeof p);
    p[109] = 0x3c; /* Q3_K: d = 1 */
    p[96] = 0x21;  /* low scale bits: group 0: 1, group 8: 2 */
    p[104] = 0x23; /* high: group 0: 3, 4: 0, 8: 2, 12: 0 */
    p[0] = 0x01;   /* third bit of value 0, not of value 128 */
    p[32] = 0x03;
    p[64] = 0x01;
    gguf_dequantise(CK_Q3_K, p, v);
    CHECK(v[0] == 17.0f * 3.0f && v[1] == 17.0f * -4.0f && v[128] == 2.0f * -3.0f
          && v[64] == 128.0f);
}

/* Every position of every type, and reads that begin and end inside blocks. */
TEST(types_through_files)
{
    static const ck_dtype types[] = {CK_F32,  CK_F16,  CK_BF16, CK_Q4_0, CK_Q4_1, CK_Q5_0, CK_Q5_1,
                                     CK_Q8_0, CK_Q2_K, CK_Q3_K, CK_Q4_K, CK_Q5_K, CK_Q6_K};
    static const double allowed[] = {0,     3e-4, 2e-3, 0.105, 0.085, 0.05, 0.042,
                                     0.006, 0.36, 0.22, 0.085, 0.042, 0.021};
    enum { N = 512, ROWS = 40 };
    for (size_t k = 0; k < sizeof types / sizeof types[0]; k++) {
        gt_file f;
        gt_tensor *t = &f.t[0];
        ck_source *ck = NULL;
        tl_error err;
        float *original = (float *)malloc(N * ROWS * sizeof(float)),
              *got = (float *)malloc(N * ROWS * sizeof(float));
        uint32_t seed = 12345;
        double rms;
        memset(&f, 0, sizeof f);
        memset(&err, 0, sizeof err);
        memcpy(t->name, "x", 2);
        t->n_dims = 2;
        t->ne[0] = N;
        t->ne[1] = ROWS;
        t->count = N * ROWS;
        t->values = (float *)malloc(N * ROWS * sizeof(float));
        for (int i = 0; i < N * ROWS; i++) {
            float sum = -6.0f;
            for (int j = 0; j < 12; j++) {
                seed = seed * 1664525u + 1013904223u;
                sum += (float)(seed >> 8) / 16777216.0f;
            }
            t->values[i] = original[i] = sum * (i % 700 == 3 ? 3.0f : 1.0f);
        }
        gt_encode(t, types[k]);
        f.n = 1;
        CHECK(gt_save(&f, scratch("type.gguf")));
        CHECK_INT(ck_open_weights(scratch("type.gguf"), &ck, &err), TL_OK);
        if (ck != NULL) {
            const ck_tensor *x = ck_find(ck, "x");
            CHECK(x != NULL && x->dtype == types[k] && x->count == N * ROWS);
            CHECK_INT(ck_read_f32(ck, x, 0, N * ROWS, got, &err), TL_OK);
            CHECK(memcmp(got, t->values, N * ROWS * sizeof(float)) == 0);
            (void)distance(got, original, N * ROWS, &rms);
            CHECK(rms <= allowed[k]);
            for (uint64_t first = 0; first < 600; first += 37) {
                for (uint64_t n = 1; n < 600; n += 93) {
                    CHECK_INT(ck_read_f32(ck, x, first, n, got, &err), TL_OK);
                    CHECK(memcmp(got, t->values + first, n * sizeof(float)) == 0);
                }
            }
            CHECK(ck_read_f32(ck, x, N * ROWS - 1, 2, got, &err) != TL_OK);
            ck_close(ck);
        }
        free(original);
        free(got);
        gt_free(&f);
    }
    unlink(scratch("type.gguf"));
    CHECK_INT(hook.blocks, 0);
}

/* ---- models ------------------------------------------------------------------------------------
 */

static const char *const type_names[] = {"f32", "f16", "bf16", "q8", "q6", "q4"};

/* The F32 file gives the golden logits; a file of each type gives those of its own weights as
 * floats. */
static void golden_case(const char *name, const ck_dtype *types, size_t n_types, size_t n_ids)
{
    gt_file f;
    answer a, b;
    tl_error err;
    int32_t *ids = NULL;
    float *logits = NULL;
    size_t n = 0, n_vocab = 0;
    double sigma, rms;
    int wanted = expected(name, &ids, &n, &logits, &n_vocab);
    if (!wanted) { /* trained models: no logits of all positions; any ids will do */
        n = n_ids;
        ids = (int32_t *)malloc(n * sizeof ids[0]);
        for (size_t i = 0; ids != NULL && i < n; i++) {
            ids[i] = (int32_t)(i * i * 31 % 4001);
        }
    }
    REQUIRE(ids != NULL && gt_golden(&f, name));
    CHECK(gt_save(&f, scratch("m.gguf")));
    CHECK_INT(convert(scratch("m.gguf"), scratch("m.mamba"), -1, "none", &err), TL_OK);
    CHECK(run(scratch("m.mamba"), ids, n, &a));
    CHECK(strcmp(a.info.weight_type, "f32") == 0);
    if (wanted) {
        REQUIRE(a.n_vocab == n_vocab);
        CHECK_NEAR(distance(a.logits, logits, n * n_vocab, &rms), 0,
                   1e-4 * deviation(logits, n * n_vocab));
    }
    sigma = deviation(a.logits, n * a.n_vocab);
    for (size_t k = 0; k < n_types; k++) {
        ck_dtype type = types[k];
        mamba_type nearest = cv_nearest(type);
        answer c;
        CHECK(gt_quantise(&f, type) >= 2);
        CHECK(gt_save(&f, scratch("q.gguf")));
        CHECK_INT(convert(scratch("q.gguf"), scratch("q.mamba"), MAMBA_F32, "none", &err), TL_OK);
        CHECK(run(scratch("q.mamba"), ids, n, &b));
        CHECK(distance(b.logits, a.logits, n * a.n_vocab, &rms) > 0);
        if (k == 0) {
            CHECK(rms < 0.3 * sigma); /* the first type given is a good one */
        }
        if (k == 0 || wanted) { /* rounding millions of weights to 4 bits takes its time: small
                                   models only */
            CHECK_INT(convert(scratch("q.gguf"), scratch("d.mamba"), -1, "none", &err), TL_OK);
            CHECK(run(scratch("d.mamba"), ids, n, &c));
            CHECK(strcmp(c.info.weight_type, type_names[nearest]) == 0);
            (void)distance(c.logits, b.logits, n * a.n_vocab, &rms);
            CHECK(rms < (nearest == MAMBA_Q4 ? 1.0 : nearest == MAMBA_Q6 ? 0.3 : nearest == MAMBA_Q8 ? 0.05 : 0.01) * sigma);
            free(c.logits);
        }
        for (int i = 0; i < f.n; i++) { /* the same weights as floats */
            gt_encode(&f.t[i], CK_F32);
        }
        CHECK(gt_save(&f, scratch("r.gguf")));
        CHECK_INT(convert(scratch("r.gguf"), scratch("r.mamba"), -1, "none", &err), TL_OK);
        CHECK(run(scratch("r.mamba"), ids, n, &c));
        CHECK_NEAR(distance(c.logits, b.logits, n * a.n_vocab, &rms), 0, 1e-4 * sigma);
        free(c.logits);
        free(b.logits);
        gt_free(&f);
        REQUIRE(gt_golden(&f, name));
    }
    free(a.logits);
    free(ids);
    free(logits);
    gt_free(&f);
    unlink(scratch("m.gguf"));
    unlink(scratch("m.mamba"));
    unlink(scratch("q.gguf"));
    unlink(scratch("q.mamba"));
    unlink(scratch("d.mamba"));
    unlink(scratch("r.gguf"));
    unlink(scratch("r.mamba"));
    CHECK_INT(hook.blocks, 0);
}

static const ck_dtype of_32[] = {CK_F16, CK_BF16, CK_Q8_0, CK_Q5_0, CK_Q5_1, CK_Q4_0, CK_Q4_1};
static const ck_dtype of_256[] = {CK_Q6_K, CK_Q8_0, CK_Q5_K, CK_Q4_K, CK_Q3_K, CK_Q2_K};

TEST(mamba)
{
    golden_case("mamba1-base", of_32, 7, 0);
}

TEST(mamba_untied_without_conv_bias)
{
    golden_case("mamba1-untied", of_32, 2, 0);
}

TEST(mamba_super_blocks)
{
    golden_case("mamba1-tales", of_256, 6, 24);
}

TEST(mamba2)
{
    if (!tl_exists("tests/golden/mamba2-base")) {
        SKIP("no tests/golden/mamba2-base");
    }
    golden_case("mamba2-base", of_32, 7, 0);
}

TEST(mamba2_groups)
{
    if (!tl_exists("tests/golden/mamba2-groups")) {
        SKIP("no tests/golden/mamba2-groups");
    }
    golden_case("mamba2-groups", of_32, 3, 0);
}

/* The type of a matrix of a converted file; -1 if it is not there. */
static int type_in(const char *path, const char *name)
{
    mamba_model *m = NULL;
    mamba_error e;
    int type = -1;
    CHECK_INT(mamba_open(path, strlen(path), NULL, &m, &e), MAMBA_OK);
    for (int i = 0; m != NULL && i < m->n_tensors; i++) {
        type = strcmp(m->tensors[i].name, name) == 0 ? (int)m->tensors[i].type : type;
    }
    mamba_close(m);
    return type;
}

/* As stored, the embedding keeps the nearest type of its own; --type means all. */
TEST(embedding_of_its_own_type)
{
    gt_file f;
    tl_error err;
    int found = 0;
    REQUIRE(gt_golden(&f, "mamba1-base"));
    CHECK(gt_quantise(&f, CK_Q4_0) >= 2);
    for (int i = 0; i < f.n; i++) {
        if (strcmp(f.t[i].name, "token_embd.weight") == 0) {
            gt_encode(&f.t[i], CK_Q8_0);
            found++;
        }
    }
    CHECK_INT(found, 1);
    CHECK(gt_save(&f, scratch("q.gguf")));
    CHECK_INT(convert(scratch("q.gguf"), scratch("d.mamba"), -1, "none", &err), TL_OK);
    CHECK_INT(type_in(scratch("d.mamba"), "embedding"), MAMBA_Q8);
    CHECK_INT(type_in(scratch("d.mamba"), "layer.00001.in_proj"), MAMBA_Q4);
    CHECK_INT(convert(scratch("q.gguf"), scratch("d.mamba"), MAMBA_Q4, "none", &err), TL_OK);
    CHECK_INT(type_in(scratch("d.mamba"), "embedding"), MAMBA_Q4);
    gt_free(&f);
    unlink(scratch("q.gguf"));
    unlink(scratch("d.mamba"));
    CHECK_INT(hook.blocks, 0);
}

/* GGUF holds one eps: that of the blocks (1e-5), where the checkpoint's norms of dt, B, C have
 * 1e-6. So the logits must be those of the checkpoint with that eps, and all but those of the
 * golden file. */
TEST(falcon_mamba)
{
    gt_file f;
    answer a, b;
    tl_error err;
    int32_t *ids = NULL;
    float *logits = NULL;
    size_t n = 0, n_vocab = 0;
    double rms, sigma;
    buf config = {NULL, 0, 0};
    char *text = NULL, *at;
    size_t bytes = 0;
    REQUIRE(expected("falcon-mamba", &ids, &n, &logits, &n_vocab) && gt_golden(&f, "falcon-mamba"));
    sigma = deviation(logits, n * n_vocab);
    CHECK(gt_save(&f, scratch("m.gguf")));
    CHECK_INT(convert(scratch("m.gguf"), scratch("m.mamba"), -1, "none", &err), TL_OK);
    CHECK(run(scratch("m.mamba"), ids, n, &a));
    CHECK(strcmp(a.info.architecture, "falcon_mamba") == 0);
    CHECK(distance(a.logits, logits, n * n_vocab, &rms) < 0.02 * sigma);
    /* the same checkpoint with mixer_rms_eps 1e-05 */
    CHECK(mkdir(scratch("falcon"), 0700) == 0);
    memset(&err, 0, sizeof err);
    CHECK_INT(tl_read_all("tests/golden/falcon-mamba/config.json", 1 << 20, &text, &bytes, &err),
              TL_OK);
    REQUIRE(text != NULL);
    at = strstr(text, "1e-06");
    REQUIRE(at != NULL);
    at[4] = '5';
    buf_put(&config, text, bytes);
    tl_free(text);
    {
        char path[700];
        (void)snprintf(path, sizeof path, "%s/config.json", scratch("falcon"));
        CHECK(save(path, config.bytes, config.n));
        CHECK_INT(tl_read_all("tests/golden/falcon-mamba/model.safetensors", 1 << 24, &text, &bytes,
                              &err),
                  TL_OK);
        (void)snprintf(path, sizeof path, "%s/model.safetensors", scratch("falcon"));
        CHECK(text != NULL && save(path, (unsigned char *)text, bytes));
        tl_free(text);
        CHECK_INT(convert(scratch("falcon"), scratch("r.mamba"), -1, "none", &err), TL_OK);
        CHECK(run(scratch("r.mamba"), ids, n, &b));
        CHECK_NEAR(distance(a.logits, b.logits, n * n_vocab, &rms), 0, 1e-4 * sigma);
        unlink(path);
        (void)snprintf(path, sizeof path, "%s/config.json", scratch("falcon"));
        unlink(path);
        rmdir(scratch("falcon"));
    }
    free(a.logits);
    free(b.logits);
    free(ids);
    free(logits);
    buf_free(&config);
    gt_free(&f);
    unlink(scratch("m.gguf"));
    unlink(scratch("m.mamba"));
    unlink(scratch("r.mamba"));
    CHECK_INT(hook.blocks, 0);
}

/* ---- tokenizers --------------------------------------------------------------------------------
 */

/* The tokenizer of a tokenizer.json in the keys of the format, as its converter writes them: texts
 * by id, places that no token has as unused ones up to n_rows. */
static void kv_tokenizer(gt_file *f, const json_doc *doc, const char *pre, uint32_t n_rows)
{
    json_id model = json_get(doc, JSON_ROOT, "model");
    json_id vocab = json_get(doc, model, "vocab"), merges = json_get(doc, model, "merges");
    json_id added = json_get(doc, JSON_ROOT, "added_tokens");
    json_text *texts = (json_text *)calloc(n_rows, sizeof texts[0]);
    unsigned char *types = (unsigned char *)calloc(n_rows, 1);
    uint64_t id;
    if (texts == NULL || types == NULL) {
        abort();
    }
    for (json_id m = json_first(doc, vocab); m != JSON_NONE; m = json_next(doc, m)) {
        if (json_u64(doc, m, &id) && id < n_rows) {
            texts[id] = json_key(doc, m);
            types[id] = VOC_NORMAL;
        }
    }
    for (json_id m = json_first(doc, added); m != JSON_NONE; m = json_next(doc, m)) {
        int special = 0;
        if (json_u64(doc, json_get(doc, m, "id"), &id) && id < n_rows) {
            (void)json_bool(doc, json_get(doc, m, "special"), &special);
            texts[id] = json_str(doc, json_get(doc, m, "content"));
            types[id] = special ? VOC_CONTROL : VOC_USER;
        }
    }
    kv_string(f, "tokenizer.ggml.model", "gpt2");
    if (pre != NULL) {
        kv_string(f, "tokenizer.ggml.pre", pre);
    }
    kv_array(f, "tokenizer.ggml.tokens", GGUF_STRING, n_rows);
    for (uint32_t i = 0; i < n_rows; i++) {
        char pad[32];
        (void)snprintf(pad, sizeof pad, "[PAD%lu]", (unsigned long)i);
        if (types[i] != 0) {
            buf_string_n(&f->kv, texts[i].ptr, texts[i].len);
        } else {
            buf_string(&f->kv, pad);
        }
    }
    kv_array(f, "tokenizer.ggml.token_type", GGUF_I32, n_rows);
    for (uint32_t i = 0; i < n_rows; i++) {
        buf_le(&f->kv, 4, types[i] != 0 ? types[i] : VOC_UNUSED);
    }
    kv_array(f, "tokenizer.ggml.merges", GGUF_STRING, json_count(doc, merges));
    for (json_id m = json_first(doc, merges); m != JSON_NONE; m = json_next(doc, m)) {
        json_text left, right;
        voc_reader r;
        memset(&r, 0, sizeof r);
        r.doc = doc;
        if (!voc_halves(&r, m, &left, &right)) {
            abort();
        }
        buf_le(&f->kv, 8, left.len + 1 + right.len);
        buf_put(&f->kv, left.ptr, left.len);
        buf_put(&f->kv, " ", 1);
        buf_put(&f->kv, right.ptr, right.len);
    }
    kv_u32(f, "tokenizer.ggml.bos_token_id", 0);
    kv_u32(f, "tokenizer.ggml.eos_token_id", 0);
    free(texts);
    free(types);
}

/* The tokenizer section of a GGUF file. */
static tl_status read_section(const char *path, unsigned char **section, size_t *bytes,
                              tl_error *err)
{
    voc_ids ids = {0, 0, VOC_NONE};
    ck_source *ck = NULL;
    tl_status status;
    memset(err, 0, sizeof *err);
    *section = NULL;
    status = ck_open(path, &ck, err);
    if (status == TL_OK) {
        status = voc_read_gguf(ck_gguf(ck), &ck->files[0].file, ids, section, bytes, err);
    }
    ck_close(ck);
    return status;
}

static const char tales_path[] = "tests/golden/tokenizer/tales.tokenizer.json";

/* The same bytes as from tokenizer.json. */
TEST(tokenizer_same_section)
{
    json_doc doc;
    gt_file f;
    tl_error err;
    voc_ids ids = {0, 0, VOC_NONE};
    unsigned char *a = NULL, *b = NULL;
    size_t a_bytes = 0, b_bytes = 0;
    memset(&f, 0, sizeof f);
    memset(&err, 0, sizeof err);
    REQUIRE(json_read(tales_path, 1 << 26, 0, &doc, &err) == TL_OK);
    kv_string(&f, "general.architecture", "mamba");
    kv_tokenizer(&f, &doc, "olmo", 4104);
    json_free(&doc);
    CHECK(gt_save(&f, scratch("t.gguf")));
    CHECK_INT(read_section(scratch("t.gguf"), &a, &a_bytes, &err), TL_OK);
    CHECK_INT(voc_read(tales_path, ids, &b, &b_bytes, &err), TL_OK);
    CHECK(a_bytes == b_bytes && a != NULL && b != NULL && memcmp(a, b, a_bytes) == 0);
    tl_free(a);
    tl_free(b);
    gt_free(&f);
    unlink(scratch("t.gguf"));
    CHECK_INT(hook.blocks, 0);
}

/* A whole model with its tokenizer: text to ids, places without a token never sampled. */
TEST(tokenizer_in_model)
{
    json_doc doc;
    gt_file f;
    tl_error err;
    mamba_model *m = NULL;
    mamba_error e;
    mamba_info info;
    int32_t ids[32];
    size_t n = 0;
    memset(&err, 0, sizeof err);
    memset(&e, 0, sizeof e);
    REQUIRE(gt_golden(&f, "mamba1-tales"));
    REQUIRE(json_read(tales_path, 1 << 26, 0, &doc, &err) == TL_OK);
    kv_tokenizer(&f, &doc, "mpt", 4096);
    json_free(&doc);
    CHECK(gt_quantise(&f, CK_Q4_K) > 2);
    CHECK(gt_save(&f, scratch("t.gguf")));
    CHECK_INT(convert(scratch("t.gguf"), scratch("t.mamba"), MAMBA_F16, NULL, &err), TL_OK);
    REQUIRE(mamba_open(scratch("t.mamba"), strlen(scratch("t.mamba")), NULL, &m, &e) == MAMBA_OK);
    mamba_model_info(m, &info);
    CHECK_INT(info.bos, 0);
    CHECK_INT(info.n_vocab_used, 4096);
    CHECK(mamba_model_tokenizer(m) != NULL);
    CHECK_INT(mamba_encode(mamba_model_tokenizer(m), "Once upon a time", 16, 0, ids, 32, &n, &e),
              MAMBA_OK);
    CHECK(n >= 3 && n < 10);
    mamba_close(m);
    gt_free(&f);
    unlink(scratch("t.gguf"));
    unlink(scratch("t.mamba"));
    CHECK_INT(hook.blocks, 0);
}

/* GPT-NeoX-20B, whose files say this or that about the cut: its published cases. */
TEST(tokenizer_neox)
{
    static const char *const pres[] = {"olmo", "gpt-2", "default", NULL};
    const char *shared = getenv("MAMBA_SHARED"), *folder = shared != NULL ? shared : "../shared";
    char path[600];
    json_doc doc, cases;
    tl_error err;
    memset(&err, 0, sizeof err);
    (void)snprintf(path, sizeof path, "%.500s/tokenizers/gpt-neox-20b.tokenizer.json", folder);
    if (!tl_exists(path)) {
        SKIP("no tokenizers/gpt-neox-20b.tokenizer.json in MAMBA_SHARED");
    }
    REQUIRE(json_read(path, 1 << 26, 0, &doc, &err) == TL_OK);
    (void)snprintf(path, sizeof path, "%.500s/tokenizers/gpt-neox-20b.cases.json", folder);
    REQUIRE(json_read(path, 1 << 26, 0, &cases, &err) == TL_OK);
    for (int k = 0; k < 4; k++) {
        gt_file f;
        mamba_tokenizer t;
        mamba_error e;
        unsigned char *section = NULL;
        size_t bytes = 0, n_cases = 0, wrong = 0;
        memset(&f, 0, sizeof f);
        memset(&e, 0, sizeof e);
        kv_string(&f, "general.architecture", "mamba");
        kv_tokenizer(&f, &doc, pres[k], 50280);
        CHECK(gt_save(&f, scratch("n.gguf")));
        CHECK_INT(read_section(scratch("n.gguf"), &section, &bytes, &err), TL_OK);
        REQUIRE(section != NULL && mbi_tok_open(&t, section, bytes, NULL, &e) == MAMBA_OK);
        for (json_id m = json_first(&cases, JSON_ROOT); m != JSON_NONE; m = json_next(&cases, m)) {
            json_text text = json_str(&cases, json_get(&cases, m, "text"));
            json_id want = json_get(&cases, m, "ids");
            int32_t *ids = (int32_t *)malloc((4 * text.len + 1) * sizeof ids[0]);
            size_t n = 0, i = 0;
            int same =
                mamba_encode(&t, text.ptr, text.len, MAMBA_PARSE_SPECIAL, ids, 4 * text.len, &n, &e)
                == MAMBA_OK;
            same = same && n == json_count(&cases, want);
            for (json_id id = json_first(&cases, want); same && id != JSON_NONE;
                 id = json_next(&cases, id)) {
                uint64_t v = 0;
                same = json_u64(&cases, id, &v) && (uint64_t)ids[i++] == v;
            }
            wrong += !same;
            n_cases++;
            free(ids);
        }
        CHECK(n_cases > 10);
        CHECK_INT(wrong, 0);
        tl_free(section);
        gt_free(&f);
    }
    json_free(&doc);
    json_free(&cases);
    unlink(scratch("n.gguf"));
    CHECK_INT(hook.blocks, 0);
}

/* ---- malformed files ---------------------------------------------------------------------------
 */

static void head(buf *b, uint32_t version, uint64_t tensors, uint64_t keys)
{
    buf_put(b, "GGUF", 4);
    buf_le(b, 4, version);
    buf_le(b, 8, tensors);
    buf_le(b, 8, keys);
}

static void key(buf *b, const char *name, uint32_t type)
{
    buf_string(b, name);
    buf_le(b, 4, type);
}

/* A tensor of 0 to 2 dimensions, or of n of them: d0, d1, 1, ... */
static void info(buf *b, const char *name, uint32_t n, uint64_t d0, uint64_t d1, uint32_t type,
                 uint64_t offset)
{
    buf_string(b, name);
    buf_le(b, 4, n);
    for (uint32_t i = 0; i < n; i++) {
        buf_le(b, 8, i == 0 ? d0 : i == 1 ? d1 : 1);
    }
    buf_le(b, 4, type);
    buf_le(b, 8, offset);
}

static void fill(buf *b, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        buf_le(b, 1, 0);
    }
}

/* Opens the bytes as a GGUF file and compares. No block stays, and the heap stays in proportion. */
static void check_bytes(const char *id, buf *b, tl_status want, const char *piece)
{
    ck_source *ck = NULL;
    tl_error err;
    tl_status status;
    memset(&err, 0, sizeof err);
    CHECK(save(scratch("bad.gguf"), b->bytes, b->n));
    hook.peak = hook.bytes;
    status = ck_open_weights(scratch("bad.gguf"), &ck, &err);
    ck_close(ck);
    if (status != want || (want != TL_OK && strstr(err.message, piece) == NULL)) {
        printf("case %s: status %d \"%s\"\n      wanted %d \"%s\"\n", id, (int)status, err.message,
               (int)want, piece);
        test_fail(__FILE__, __LINE__, "this case");
    }
    if (hook.blocks != 0 || hook.peak > 5 * b->n + (1 << 20)) {
        printf("case %s: %ld blocks left, at most %lu bytes of heap for %lu of file\n", id,
               hook.blocks, (unsigned long)hook.peak, (unsigned long)b->n);
        test_fail(__FILE__, __LINE__, "heap");
    }
    buf_free(b);
}

#define CASE(id, want, piece, ...)              \
    do {                                        \
        buf b = {NULL, 0, 0};                   \
        __VA_ARGS__;                            \
        check_bytes((id), &b, (want), (piece)); \
    } while (0)

TEST(malformed_header)
{
    CASE("G01", TL_ERR_FORMAT, "found no GGUF file", buf_put(&b, "", 0));
    CASE("G01 short", TL_ERR_FORMAT, "the end of the file at 20", head(&b, 3, 0, 0); b.n = 20);
    CASE("F01", TL_ERR_FORMAT, "found no GGUF file", buf_put(&b, "FUGG", 4); fill(&b, 28));
    CASE("F02", TL_ERR_FORMAT, "byte 4: header: found version 0, allowed: 2 and 3",
         head(&b, 0, 0, 0));
    CASE("F03", TL_ERR_UNSUPPORTED, "found version 1, allowed: versions 2 and 3 (convert",
         head(&b, 1, 0, 0));
    CASE("F04", TL_ERR_UNSUPPORTED, "found version 4", head(&b, 4, 0, 0));
    CASE("F05", TL_ERR_UNSUPPORTED, "the other byte order", head(&b, 0x03000000, 0, 0));
    CASE("F06", TL_ERR_FORMAT, "found a number of tensors of 18446744073709551615",
         head(&b, 3, UINT64_MAX, 0));
    CASE("F06 by one", TL_ERR_FORMAT, "a number of tensors of 2, allowed: at most 1 in the 49",
         head(&b, 3, 2, 0);
         fill(&b, 49));
    CASE("F07", TL_ERR_FORMAT, "found a number of keys of 18446744073709551615",
         head(&b, 3, 0, UINT64_MAX));
    CASE("F07 cap", TL_ERR_UNSUPPORTED, "a number of keys of 65537", head(&b, 3, 0, 65537);
         fill(&b, 1 << 20));
    CASE("F06 cap", TL_ERR_UNSUPPORTED, "a number of tensors of 65537", head(&b, 3, 65537, 0);
         fill(&b, 1 << 21));
    CASE("F08 accepted", TL_OK, "", head(&b, 3, 0, 0));
    CASE("F08 padded, version 2", TL_OK, "", head(&b, 2, 0, 0); fill(&b, 8));
    CASE("F08 trailing", TL_ERR_FORMAT, "1 bytes behind the last tensor", head(&b, 3, 0, 0);
         fill(&b, 9));
}

TEST(malformed_keys)
{
    char name[2000];
    memset(name, 'k', sizeof name);
    name[1025] = 0;
    CASE("F09", TL_ERR_FORMAT, "byte 24: key 0: found a string of length 18446744073709551615",
         head(&b, 3, 0, 1);
         buf_le(&b, 8, UINT64_MAX); fill(&b, 64));
    CASE("F09 backed", TL_ERR_FORMAT, "a string of length 65, allowed: at most 64",
         head(&b, 3, 0, 1);
         buf_le(&b, 8, 65); fill(&b, 64));
    CASE("F09 long", TL_ERR_FORMAT, "a string of length 1025, allowed: at most 1024",
         head(&b, 3, 0, 1);
         key(&b, name, GGUF_U8); fill(&b, 64));
    CASE("F10", TL_ERR_FORMAT, "found an empty name", head(&b, 3, 0, 1); key(&b, "", GGUF_U8);
         fill(&b, 64));
    CASE("G11 NUL", TL_ERR_FORMAT, "found a name with NUL", head(&b, 3, 0, 1);
         buf_string_n(&b, "a\0b", 3); buf_le(&b, 4, GGUF_U8); fill(&b, 64));
    CASE("F11", TL_ERR_FORMAT, "key \"a\": found a value of type 13", head(&b, 3, 0, 1);
         key(&b, "a", 13); fill(&b, 64));
    CASE("F11 negative", TL_ERR_FORMAT, "a value of type 4294967295", head(&b, 3, 0, 1);
         key(&b, "a", UINT32_MAX); fill(&b, 64));
    CASE("F12", TL_ERR_FORMAT, "key \"a\": found this key twice", head(&b, 3, 0, 3);
         key(&b, "a", GGUF_U8); fill(&b, 1); key(&b, "b", GGUF_U8); fill(&b, 1);
         key(&b, "a", GGUF_U16); fill(&b, 64));
    CASE("F13", TL_ERR_FORMAT, "key \"general.alignment\": found 13, allowed: a power of two",
         head(&b, 3, 0, 1);
         key(&b, "general.alignment", GGUF_U32); buf_le(&b, 4, 13));
    CASE("F14", TL_ERR_FORMAT, "found a i32, allowed: a u32", head(&b, 3, 0, 1);
         key(&b, "general.alignment", GGUF_I32); buf_le(&b, 4, 32));
    CASE("G07 zero", TL_ERR_FORMAT, "found 0, allowed: a power of two up to 65536",
         head(&b, 3, 0, 1);
         key(&b, "general.alignment", GGUF_U32); buf_le(&b, 4, 0));
    CASE("G07 large", TL_ERR_FORMAT, "found 2147483648, allowed", head(&b, 3, 0, 1);
         key(&b, "general.alignment", GGUF_U32); buf_le(&b, 4, 0x80000000u));
    CASE("string", TL_ERR_FORMAT, "a string of length 9, allowed: at most 8 in the 8",
         head(&b, 3, 0, 1);
         key(&b, "s", GGUF_STRING); buf_le(&b, 8, 9); fill(&b, 8));
    CASE("string of 1 GiB", TL_ERR_FORMAT, "at most 1073741824 bytes", head(&b, 3, 0, 1);
         key(&b, "s", GGUF_STRING); buf_le(&b, 8, ((uint64_t)1 << 30) + 1));
    CASE("G04 array", TL_ERR_FORMAT,
         "an array of length 9223372036854775808, allowed: at most 2 in the 8", head(&b, 3, 0, 1);
         key(&b, "s", GGUF_ARRAY); buf_le(&b, 4, GGUF_U32); buf_le(&b, 8, (uint64_t)1 << 63);
         fill(&b, 8));
    CASE("G04 strings", TL_ERR_FORMAT, "an array of length 3, allowed: at most 2 in the 16",
         head(&b, 3, 0, 1);
         key(&b, "s", GGUF_ARRAY); buf_le(&b, 4, GGUF_STRING); buf_le(&b, 8, 3); fill(&b, 16));
    CASE("string in array", TL_ERR_FORMAT,
         "key \"s\": found a string of length 5, allowed: at most 4", head(&b, 3, 0, 1);
         key(&b, "s", GGUF_ARRAY); buf_le(&b, 4, GGUF_STRING); buf_le(&b, 8, 2); buf_le(&b, 8, 0);
         buf_le(&b, 8, 5); fill(&b, 4));
    CASE("F38", TL_ERR_UNSUPPORTED, "found an array of arrays", head(&b, 3, 0, 1);
         key(&b, "s", GGUF_ARRAY); buf_le(&b, 4, GGUF_ARRAY); fill(&b, 64));
    CASE("F39", TL_ERR_FORMAT, "found a bool of 2, allowed: 0 or 1", head(&b, 3, 0, 1);
         key(&b, "s", GGUF_BOOL); buf_le(&b, 1, 2));
    CASE("F39 array", TL_ERR_FORMAT, "found a bool of 255", head(&b, 3, 0, 1);
         key(&b, "s", GGUF_ARRAY); buf_le(&b, 4, GGUF_BOOL); buf_le(&b, 8, 3);
         buf_le(&b, 3, 0xff0001));
    CASE(
        "accepted: every type", TL_OK, "", head(&b, 3, 0, 26); for (uint32_t t = 0; t < 13; t++) {
            char k[2] = {(char)('a' + t), 0};
            key(&b, k, t == GGUF_ARRAY ? GGUF_U8 : t);
            fill(&b, gguf_types[t == GGUF_ARRAY ? 0 : t].bytes);
            k[0] = (char)('A' + t);
            key(&b, k, GGUF_ARRAY);
            buf_le(&b, 4, t == GGUF_ARRAY ? GGUF_U8 : t);
            buf_le(&b, 8, t % 4);
            fill(&b, gguf_types[t == GGUF_ARRAY ? 0 : t].bytes * (t % 4));
        });
}

TEST(malformed_tensors)
{
    char name[80];
    memset(name, 'n', sizeof name);
    name[65] = 0;
    CASE("F17", TL_ERR_FORMAT, "a string of length 65, allowed: at most 64", head(&b, 3, 1, 0);
         info(&b, name, 1, 4, 0, 0, 0); gt_pad(&b, 32); fill(&b, 32));
    CASE("F17 empty", TL_ERR_FORMAT, "an empty name", head(&b, 3, 1, 0);
         info(&b, "", 1, 4, 0, 0, 0); gt_pad(&b, 32); fill(&b, 32));
    CASE("F18", TL_ERR_FORMAT, "tensor \"x\": found a number of dimensions of 5, allowed: 0 to 4",
         head(&b, 3, 1, 0);
         info(&b, "x", 5, 4, 1, 0, 0); gt_pad(&b, 32); fill(&b, 32));
    CASE("F19", TL_ERR_FORMAT, "a dimension of 18446744073709551615", head(&b, 3, 1, 0);
         info(&b, "x", 1, UINT64_MAX, 0, 0, 0); gt_pad(&b, 32); fill(&b, 32));
    CASE("F20 accepted", TL_OK, "", head(&b, 3, 1, 0); info(&b, "x", 2, 0, 4, 0, 0);
         gt_pad(&b, 32));
    CASE("F21", TL_ERR_FORMAT, "allowed: fewer than 2^63 bytes", head(&b, 3, 1, 0);
         info(&b, "x", 2, (uint64_t)1 << 62, (uint64_t)1 << 3, 0, 0); gt_pad(&b, 32); fill(&b, 32));
    CASE("F21 behind a zero", TL_ERR_FORMAT, "fewer than 2^63 bytes", head(&b, 3, 1, 0);
         buf_string(&b, "x"); buf_le(&b, 4, 4); buf_le(&b, 8, 0); buf_le(&b, 8, INT64_MAX);
         buf_le(&b, 8, INT64_MAX); buf_le(&b, 8, 1); buf_le(&b, 4, 0); buf_le(&b, 8, 0);
         gt_pad(&b, 32));
    CASE("F22", TL_ERR_FORMAT, "of type I64, allowed: fewer than 2^63 bytes", head(&b, 3, 1, 0);
         info(&b, "x", 1, (uint64_t)1 << 61, 0, 27, 0); gt_pad(&b, 32); fill(&b, 32));
    CASE("F22 blocks", TL_ERR_FORMAT, "of type Q8_0, allowed: fewer than 2^63 bytes",
         head(&b, 3, 1, 0);
         info(&b, "x", 2, (uint64_t)1 << 32, ((uint64_t)1 << 31) - 1, 8, 0); gt_pad(&b, 32);
         fill(&b, 32));
    CASE("F23", TL_ERR_FORMAT, "found type 999, allowed: F32", head(&b, 3, 1, 0);
         info(&b, "x", 1, 4, 0, 999, 0); gt_pad(&b, 32); fill(&b, 32));
    CASE("F23 negative", TL_ERR_FORMAT, "found type 4294967295", head(&b, 3, 1, 0);
         info(&b, "x", 1, 4, 0, UINT32_MAX, 0); gt_pad(&b, 32); fill(&b, 32));
    CASE("G08 known", TL_ERR_UNSUPPORTED, "found type 20 (IQ4_NL), allowed: F32", head(&b, 3, 1, 0);
         info(&b, "x", 1, 32, 0, 20, 0); gt_pad(&b, 32); fill(&b, 32));
    CASE("G08 block", TL_ERR_FORMAT,
         "found shape (1, 33) of type Q8_0, allowed: rows of whole blocks of 32", head(&b, 3, 1, 0);
         info(&b, "x", 2, 33, 1, 8, 0); gt_pad(&b, 32); fill(&b, 64));
    CASE("G08 no row", TL_ERR_FORMAT, "rows of whole blocks of 256", head(&b, 3, 1, 0);
         info(&b, "x", 0, 0, 0, 12, 0); gt_pad(&b, 32); fill(&b, 160));
    CASE("F24", TL_ERR_FORMAT, "an offset of 32 in the data, allowed: 0", head(&b, 3, 1, 0);
         info(&b, "x", 1, 4, 0, 0, 32); gt_pad(&b, 32); fill(&b, 64));
    CASE("F24 overlap", TL_ERR_FORMAT,
         "tensor \"y\": found an offset of 0 in the data, allowed: 32", head(&b, 3, 2, 0);
         info(&b, "x", 1, 4, 0, 0, 0); info(&b, "y", 1, 4, 0, 0, 0); gt_pad(&b, 32); fill(&b, 64));
    CASE("F25", TL_ERR_FORMAT, "tensor \"x\": found its name twice", head(&b, 3, 2, 0);
         info(&b, "x", 1, 4, 0, 0, 0); info(&b, "x", 1, 4, 0, 0, 32); gt_pad(&b, 32); fill(&b, 64));
    CASE("F27", TL_ERR_FORMAT, "an offset of 16 in the data, allowed: 32", head(&b, 3, 2, 0);
         info(&b, "x", 1, 4, 0, 0, 0); info(&b, "y", 1, 4, 0, 0, 16); gt_pad(&b, 32); fill(&b, 64));
    CASE("F28", TL_ERR_FORMAT, "tensor \"y\": found 16 bytes of data, allowed: the 15 to the end",
         head(&b, 3, 2, 0);
         info(&b, "x", 1, 4, 0, 0, 0); info(&b, "y", 1, 4, 0, 0, 32); gt_pad(&b, 32); fill(&b, 47));
    CASE("F28 none", TL_ERR_FORMAT, "found 16 bytes of data, allowed: the 0", head(&b, 3, 1, 0);
         info(&b, "x", 1, 4, 0, 0, 0));
    CASE("F31", TL_ERR_FORMAT, "tensor \"x\": found 9223372036854775744 bytes of data",
         head(&b, 3, 2, 0);
         info(&b, "x", 1, 0x7fffffffffffffc0, 0, 24, 0);
         info(&b, "y", 1, 0x7fffffffffffffc0, 0, 24, 0x7fffffffffffffc0); gt_pad(&b, 32);
         fill(&b, 64));
    CASE("F32 accepted", TL_OK, "", head(&b, 3, 2, 0); info(&b, "x", 1, 4, 0, 0, 0);
         info(&b, "y", 2, 32, 2, 8, 32); gt_pad(&b, 32); fill(&b, 32 + 68));
    CASE("F32 padded", TL_OK, "", head(&b, 3, 2, 0); info(&b, "x", 1, 4, 0, 0, 0);
         info(&b, "y", 2, 32, 2, 8, 32); gt_pad(&b, 32); fill(&b, 32 + 96));
    CASE("G05 trailing", TL_ERR_FORMAT, "1 bytes behind the last tensor", head(&b, 3, 1, 0);
         info(&b, "x", 1, 4, 0, 0, 0); gt_pad(&b, 32); fill(&b, 33));
    CASE("F33 accepted", TL_OK, "", head(&b, 3, 2, 1); key(&b, "general.alignment", GGUF_U32);
         buf_le(&b, 4, 1); info(&b, "x", 1, 1, 0, 24, 0); info(&b, "y", 1, 4, 0, 24, 1);
         fill(&b, 5));
    CASE("F33 of 4096", TL_OK, "", head(&b, 3, 2, 1); key(&b, "general.alignment", GGUF_U32);
         buf_le(&b, 4, 4096); info(&b, "x", 1, 1, 0, 24, 0); info(&b, "y", 1, 4, 0, 0, 4096);
         gt_pad(&b, 4096); fill(&b, 4096 + 16));
    CASE("F30", TL_ERR_FORMAT, "an offset of 32 in the data, allowed: 4096", head(&b, 3, 2, 1);
         key(&b, "general.alignment", GGUF_U32); buf_le(&b, 4, 4096); info(&b, "x", 1, 1, 0, 24, 0);
         info(&b, "y", 1, 4, 0, 0, 32); gt_pad(&b, 4096); fill(&b, 4096 + 16));
}

/* Names by the ten thousands: a quadratic search for duplicates would take minutes. */
TEST(many_names)
{
    buf b = {NULL, 0, 0};
    head(&b, 3, 0, 60000);
    for (int i = 0; i < 60000; i++) {
        char name[16];
        (void)snprintf(name, sizeof name, "k%d", i);
        key(&b, name, GGUF_U8);
        fill(&b, 1);
    }
    check_bytes("G14 keys", &b, TL_OK, "");
    head(&b, 3, 60000, 0);
    for (int i = 0; i < 60000; i++) {
        char name[16];
        (void)snprintf(name, sizeof name, "t%d", i);
        info(&b, name, 1, 0, 0, 0, 0);
    }
    gt_pad(&b, 32);
    check_bytes("G14 tensors", &b, TL_OK, "");
}

/* A tensor of 4.4 GB that is a hole, and one behind it. */
TEST(beyond_4_gib)
{
    gt_file f;
    buf b = {NULL, 0, 0};
    ck_source *ck = NULL;
    tl_error err;
    uint64_t large = (uint64_t)2100 << 21;
    float x[64];
    int fd;
    memset(&f, 0, sizeof f);
    memset(&err, 0, sizeof err);
    if (sizeof(off_t) < 8) {
        SKIP("no large files here");
    }
    f.n = 1;
    memcpy(f.t[0].name, "y", 2);
    f.t[0].n_dims = 1;
    f.t[0].ne[0] = f.t[0].count = 64;
    f.t[0].values = (float *)malloc(64 * sizeof(float));
    for (int i = 0; i < 64; i++) {
        f.t[0].values[i] = (float)(i - 20);
    }
    gt_encode(&f.t[0], CK_Q8_0);
    head(&b, 3, 2, 0);
    info(&b, "x", 2, (uint64_t)1 << 20, 2100, gt_number(CK_BF16), 0);
    info(&b, "y", 1, 64, 0, gt_number(CK_Q8_0), large);
    gt_pad(&b, 32);
    CHECK(save(scratch("l.gguf"), b.bytes, b.n));
    fd = open(scratch("l.gguf"), O_WRONLY);
    if (fd < 0
        || pwrite(fd, f.t[0].data, f.t[0].bytes, (off_t)(b.n + large)) != (ssize_t)f.t[0].bytes) {
        close(fd);
        unlink(scratch("l.gguf"));
        gt_free(&f);
        buf_free(&b);
        SKIP("the file system takes no sparse file of 4.4 GB");
    }
    close(fd);
    CHECK_INT(ck_open_weights(scratch("l.gguf"), &ck, &err), TL_OK);
    if (ck != NULL) {
        CHECK_INT(ck_read_f32(ck, ck_find(ck, "y"), 0, 64, x, &err), TL_OK);
        CHECK(memcmp(x, f.t[0].values, sizeof x) == 0);
        CHECK_INT(ck_read_f32(ck, ck_find(ck, "x"), (large >> 1) - 64, 64, x, &err), TL_OK);
        CHECK(x[0] == 0.0f && x[63] == 0.0f);
        ck_close(ck);
    }
    CHECK(truncate(scratch("l.gguf"), (off_t)(b.n + large + 67)) == 0);
    CHECK_INT(ck_open_weights(scratch("l.gguf"), &ck, &err), TL_ERR_FORMAT);
    CHECK_CONTAINS(err.message, "tensor \"y\": found 68 bytes of data, allowed: the 67");
    CHECK_INT(hook.blocks, 0);
    gt_free(&f);
    buf_free(&b);
    unlink(scratch("l.gguf"));
}

/* ---- well-formed files that contradict themselves ----------------------------------------------
 */

/* Overwrites the value of a key (the key's text must occur once) or renames it. */
static void patch(buf *b, const char *find, size_t skip, const void *bytes, size_t n)
{
    size_t m = strlen(find);
    for (size_t i = 0; i + m + skip + n <= b->n; i++) {
        if (memcmp(b->bytes + i, find, m) == 0) {
            memcpy(b->bytes + i + m + skip, bytes, n);
            return;
        }
    }
    test_fail(__FILE__, __LINE__, "the text to patch");
}

static void patch_u32(buf *b, const char *find, uint32_t value)
{
    unsigned char p[4] = {(unsigned char)value, (unsigned char)(value >> 8),
                          (unsigned char)(value >> 16), (unsigned char)(value >> 24)};
    patch(b, find, 4, p, 4);
}

static void check_model(const char *id, buf *b, tl_status want, const char *piece)
{
    ck_source *ck = NULL;
    ck_model m;
    tl_error err;
    tl_status status;
    memset(&err, 0, sizeof err);
    CHECK(save(scratch("bad.gguf"), b->bytes, b->n));
    status = ck_open(scratch("bad.gguf"), &ck, &err);
    if (status == TL_OK) {
        status = ck_describe(ck, NULL, &m, &err);
        if (status == TL_OK) {
            ck_model_free(&m);
        }
    }
    ck_close(ck);
    if (status != want || (want != TL_OK && strstr(err.message, piece) == NULL)) {
        printf("case %s: status %d \"%s\"\n      wanted %d \"%s\"\n", id, (int)status, err.message,
               (int)want, piece);
        test_fail(__FILE__, __LINE__, "this case");
    }
    CHECK_INT(hook.blocks, 0);
    buf_free(b);
}

#define MODEL(id, want, piece, ...)             \
    do {                                        \
        buf b;                                  \
        gt_bytes(&f, &b, 32);                   \
        __VA_ARGS__;                            \
        check_model((id), &b, (want), (piece)); \
    } while (0)

TEST(models_refused)
{
    gt_file f;
    REQUIRE(gt_golden(&f, "mamba1-base"));
    kv_u32(&f, "tokenizer.ggml.bos_token_id", 0);
    MODEL("accepted", TL_OK, "", (void)0);
    MODEL("architecture", TL_ERR_UNSUPPORTED,
          "key \"general.architecture\": found llama, allowed: mamba, mamba2",
          patch(&b, "general.architecture", 12, "llama", 5));
    MODEL("no architecture", TL_ERR_FORMAT, "key \"general.architecture\": found none",
          patch(&b, "general.", 0, "Architecture", 12));
    MODEL("part", TL_ERR_FORMAT, "key \"general.type\": found adapt, allowed: model",
          patch(&b, "general.type", 12, "adapt", 5));
    MODEL("no layers", TL_ERR_FORMAT, "key \"mamba.block_count\": found 0",
          patch_u32(&b, "mamba.block_count", 0));
    MODEL("G10 many layers", TL_ERR_FORMAT, "key \"mamba.block_count\": found 2147483648",
          patch_u32(&b, "mamba.block_count", 0x80000000u));
    MODEL("G10 three layers", TL_ERR_FORMAT, "tensor \"blk.2.attn_norm.weight\": found none",
          patch_u32(&b, "mamba.block_count", 3));
    MODEL("G10 one layer", TL_ERR_FORMAT,
          "tensor \"blk.1.attn_norm.weight\": found a tensor without a place",
          patch_u32(&b, "mamba.block_count", 1));
    MODEL("inner size", TL_ERR_FORMAT,
          "key \"mamba.ssm.inner_size\": found 96, allowed: 2 * embedding_length = 64",
          patch_u32(&b, "mamba.ssm.inner_size", 96));
    MODEL("G10 width", TL_ERR_FORMAT, "ssm.inner_size",
          patch_u32(&b, "mamba.embedding_length", 33));
    MODEL("G10 state", TL_ERR_FORMAT, "tensor \"blk.0.ssm_x.weight\": found (34, 64), allowed",
          patch_u32(&b, "mamba.ssm.state_size", 17));
    MODEL("G10 conv", TL_ERR_FORMAT, "tensor \"blk.0.ssm_conv1d.weight\": found (64, 4)",
          patch_u32(&b, "mamba.ssm.conv_kernel", 3));
    MODEL("G10 rank", TL_ERR_FORMAT, "found (34, 64), allowed: (time_step_rank + 2 state_size",
          patch_u32(&b, "mamba.ssm.time_step_rank", 4));
    MODEL("eps", TL_ERR_FORMAT, "layer_norm_rms_epsilon\": found a number out of range",
          patch_u32(&b, "mamba.attention.layer_norm_rms_epsilon", 0x7fc00000));
    MODEL("type of a key", TL_ERR_FORMAT,
          "key \"mamba.ssm.state_size\": found a f32, allowed: an integer",
          patch(&b, "mamba.ssm.state_size", 0, "\6", 1));
    MODEL("F36", TL_ERR_FORMAT,
          "key \"tokenizer.ggml.bos_token_id\": found id 97, allowed: ids below the 97",
          patch_u32(&b, "tokenizer.ggml.bos_token_id", 97));
    kv_u32(&f, "split.count", 2);
    MODEL("F42", TL_ERR_FORMAT, "key \"split.count\": found a part of a model", (void)0);
    MODEL("split of one", TL_OK, "", patch_u32(&b, "split.count", 1));
    gt_free(&f);
    REQUIRE(gt_golden(&f, "mamba1-base"));
    kv_u32(&f, "mamba.vocab_size", 98);
    MODEL("rows", TL_ERR_FORMAT,
          "key \"mamba.vocab_size\": found 98, allowed: an integer from 1 to 97", (void)0);
    MODEL("fewer used", TL_OK, "", patch_u32(&b, "mamba.vocab_size", 90));
    f.t[f.n] = f.t[1];
    memcpy(f.t[f.n].name, "blk.536870912.attn_norm.weight", 31);
    f.t[f.n].values = NULL;
    f.t[f.n].data = (unsigned char *)calloc(1, f.t[f.n].bytes);
    f.n++;
    MODEL("F41", TL_ERR_FORMAT,
          "tensor \"blk.536870912.attn_norm.weight\": found a tensor without a place",
          patch_u32(&b, "mamba.vocab_size", 97));
    gt_free(&f);
    REQUIRE(gt_golden(&f, "mamba1-base"));
    for (int i = 0; i < f.n; i++) {
        if (strcmp(f.t[i].name, "blk.1.ssm_a") == 0) {
            f.t[i].n_dims = 1;
            f.t[i].ne[0] = f.t[i].ne[1];
            f.t[i].bytes = (size_t)f.t[i].ne[0] * 4;
        }
    }
    MODEL("G10 an axis less", TL_ERR_FORMAT,
          "tensor \"blk.1.ssm_a\": found (64), allowed: (inner_size", (void)0);
    gt_free(&f);
    if (gt_golden(&f, "mamba2-groups")) {
        MODEL("mamba2 accepted", TL_OK, "", (void)0);
        MODEL("mamba2 heads", TL_ERR_FORMAT,
              "key \"mamba2.ssm.time_step_rank\": found 7, allowed: heads that divide",
              patch_u32(&b, "mamba2.ssm.time_step_rank", 7));
        MODEL("mamba2 groups", TL_ERR_FORMAT, "groups, allowed: a divisor",
              patch_u32(&b, "mamba2.ssm.group_count", 3));
        MODEL("mamba2 other groups", TL_ERR_FORMAT, "tensor \"blk.0.ssm_in.weight\": found",
              patch_u32(&b, "mamba2.ssm.group_count", 1));
        gt_free(&f);
    }
    unlink(scratch("bad.gguf"));
}

/* ---- vocabularies ------------------------------------------------------------------------------
 */

typedef struct {
    const char *model, *pre; /* NULL: absent */
    const char *tokens[8], *merges[4];
    int types[8];       /* 0 ends the list; the first 0: absent */
    uint32_t type_type; /* 0: i32 */
    int extra_types, prefix;
} small;

static void small_bytes(const small *s, buf *out)
{
    gt_file f;
    int n = 0;
    memset(&f, 0, sizeof f);
    kv_string(&f, "general.architecture", "mamba");
    if (s->model != NULL) {
        kv_string(&f, "tokenizer.ggml.model", s->model);
    }
    if (s->pre != NULL) {
        kv_string(&f, "tokenizer.ggml.pre", s->pre);
    }
    while (n < 8 && s->tokens[n] != NULL) {
        n++;
    }
    kv_array(&f, "tokenizer.ggml.tokens", GGUF_STRING, (uint64_t)n);
    for (int i = 0; i < n; i++) {
        buf_string(&f.kv, s->tokens[i]);
    }
    for (n = 0; n < 8 && s->types[n] != 0; n++) {
    }
    if (n != 0) {
        uint32_t type = s->type_type != 0 ? s->type_type : GGUF_I32;
        kv_array(&f, "tokenizer.ggml.token_type", type, (uint64_t)n);
        for (int i = 0; i < n; i++) {
            buf_le(&f.kv, gguf_types[type].bytes, (uint64_t)s->types[i]);
        }
    }
    for (n = 0; n < 4 && s->merges[n] != NULL; n++) {
    }
    kv_array(&f, "tokenizer.ggml.merges", GGUF_STRING, (uint64_t)n);
    for (int i = 0; i < n; i++) {
        buf_string(&f.kv, s->merges[i]);
    }
    if (s->prefix) {
        kv_bool(&f, "tokenizer.ggml.add_space_prefix", 1);
    }
    gt_bytes(&f, out, 32);
    gt_free(&f);
}

static void check_small(const char *id, const small *s, tl_status want, const char *piece)
{
    buf b;
    tl_error err;
    unsigned char *section = NULL;
    size_t bytes = 0;
    tl_status status;
    small_bytes(s, &b);
    CHECK(save(scratch("v.gguf"), b.bytes, b.n));
    status = read_section(scratch("v.gguf"), &section, &bytes, &err);
    if (status != want || (want != TL_OK && strstr(err.message, piece) == NULL)) {
        printf("case %s: status %d \"%s\"\n      wanted %d \"%s\"\n", id, (int)status, err.message,
               (int)want, piece);
        test_fail(__FILE__, __LINE__, "this case");
    }
    tl_free(section);
    CHECK_INT(hook.blocks, 0);
    buf_free(&b);
    unlink(scratch("v.gguf"));
}

#define SMALL(id, want, piece, ...)                                                               \
    do {                                                                                          \
        small                                                                                     \
            s = {"gpt2", "gpt-2", {"a", "b", "ab", "<s>", "[PAD4]"}, {"a b"}, {1, 1, 1, 3, 5}, 0, \
                 0,      0};                                                                      \
        __VA_ARGS__;                                                                              \
        check_small((id), &s, (want), (piece));                                                   \
    } while (0)

/* Places without a token: type 5, or type 4 with the text that early files give them. */
TEST(padding_is_no_token)
{
    static const int types[] = {VOC_UNUSED, VOC_USER, VOC_CONTROL};
    for (int k = 0; k < 3; k++) {
        small s = {
            "gpt2", "gpt-2", {"a", "b", "ab", "<s>", "[PAD4]", "[PAD5]"}, {"a b"}, {1, 1, 1, 3}, 0,
            0,      0};
        buf b;
        tl_error err;
        unsigned char *section = NULL;
        size_t bytes = 0;
        s.types[4] = s.types[5] = types[k];
        small_bytes(&s, &b);
        CHECK(save(scratch("v.gguf"), b.bytes, b.n));
        CHECK_INT(read_section(scratch("v.gguf"), &section, &bytes, &err), TL_OK);
        CHECK_INT(section != NULL ? tl_le32(section + 24) : 0, k < 2 ? 4 : 6); /* ids */
        CHECK_INT(section != NULL ? tl_le32(section + 28) : 0, k < 2 ? 1 : 3); /* added tokens */
        tl_free(section);
        buf_free(&b);
        unlink(scratch("v.gguf"));
    }
}

TEST(names_of_splits)
{
    static const struct {
        const char *pre;
        uint32_t version, split;
    } cases[] = {{"gpt-2", 1, MBI_TOK_SPLIT_GPT2}, {"falcon", 2, MBI_TOK_SPLIT_FALCON}};
    for (int k = 0; k < 2; k++) {
        small s = {"gpt2", cases[k].pre, {"a", "b", "ab"}, {"a b"}, {1, 1, 1}, 0, 0, 0};
        buf b;
        tl_error err;
        unsigned char *section = NULL;
        size_t bytes = 0;
        small_bytes(&s, &b);
        CHECK(save(scratch("v.gguf"), b.bytes, b.n));
        CHECK_INT(read_section(scratch("v.gguf"), &section, &bytes, &err), TL_OK);
        CHECK_INT(section != NULL ? tl_le32(section + 4) : 0, cases[k].version);
        CHECK_INT(section != NULL ? tl_le32(section + 20) : 0, cases[k].split);
        tl_free(section);
        buf_free(&b);
        unlink(scratch("v.gguf"));
    }
}

/* A vocabulary with scores; `damage` makes it one that must be refused. */
static void scored_bytes(buf *out, int damage)
{
    static const struct {
        const char *text;
        float score;
    } pieces[] = {{"\xE2\x96\x81t", -1},
                  {"he", -2},
                  {"\xE2\x96\x81the", -3},
                  {"aa", -4},
                  {"aaa", -4},
                  {"\xE2\x96\x81", -9},
                  {"t", -9},
                  {"h", -9},
                  {"e", -9},
                  {"a", -9},
                  {"\xC3\xA9", -9}};
    const int n_pieces = sizeof pieces / sizeof pieces[0];
    gt_file f;
    memset(&f, 0, sizeof f);
    kv_string(&f, "general.architecture", "mamba");
    kv_string(&f, "tokenizer.ggml.model", "llama");
    if (damage != 1) {
        kv_string(&f, "tokenizer.ggml.pre", damage == 2 ? "gpt-2" : "default");
    }
    if (damage == 3) {
        kv_bool(&f, "tokenizer.ggml.remove_extra_whitespaces", 1);
    }
    if (damage == 4) {
        kv_bool(&f, "tokenizer.ggml.precompiled_charsmap", 1);
    }
    if (damage == 5) {
        kv_string(&f, "tokenizer.ggml.add_space_prefix", "no");
    }
    kv_array(&f, "tokenizer.ggml.tokens", GGUF_STRING, (uint64_t)(260 + n_pieces));
    buf_string(&f.kv, "<unk>");
    buf_string(&f.kv, "<s>");
    buf_string(&f.kv, "</s>");
    for (unsigned b = 0; b < 256; b++) {
        char name[8];
        (void)snprintf(name, sizeof name, "<0x%02X>", b);
        buf_string(&f.kv, name);
    }
    buf_string(&f.kv, "<gap>");
    for (int i = 0; i < n_pieces; i++) {
        buf_string(&f.kv, pieces[i].text);
    }
    if (damage != 6) {
        kv_array(&f, "tokenizer.ggml.token_type", GGUF_I32, (uint64_t)(260 + n_pieces));
        for (int i = 0; i < 260 + n_pieces; i++) {
            int type = i == 0 ? VOC_UNKNOWN : i < 3 ? VOC_CONTROL : i < 259 ? VOC_BYTE : VOC_NORMAL;
            type = i == 259 ? VOC_UNUSED : i == 265 && damage == 8 ? VOC_CONTROL : type;
            buf_le(&f.kv, 4, i == 100 && damage == 7 ? VOC_NORMAL : (uint64_t)type);
        }
    }
    if (damage != 9) {
        kv_array(&f, "tokenizer.ggml.scores", GGUF_F32, (uint64_t)(260 + n_pieces));
        for (int i = 0; i < 260 + n_pieces; i++) {
            uint32_t bits;
            float score = i < 260 ? 0 : pieces[i - 260].score;
            memcpy(&bits, &score, 4);
            buf_le(&f.kv, 4, i == 262 && damage == 10 ? 0x7FC00000u : bits);
        }
    }
    gt_bytes(&f, out, 32);
    gt_free(&f);
}

TEST(vocabularies_with_scores)
{
    static const struct {
        tl_status status;
        const char *message;
    } cases[] = {
        {TL_OK, ""},
        {TL_OK, ""},
        {TL_ERR_UNSUPPORTED, "key \"tokenizer.ggml.pre\": found gpt-2, allowed: none or default"},
        {TL_ERR_UNSUPPORTED, "remove_extra_whitespaces\": found true, allowed: false"},
        {TL_ERR_UNSUPPORTED, "precompiled_charsmap\": found"},
        {TL_ERR_FORMAT, "add_space_prefix\": found"},
        {TL_ERR_FORMAT, "tokenizer.ggml.token_type"},
        {TL_ERR_FORMAT, "found type 1 of token 100"},
        {TL_ERR_FORMAT, "found type 3 of token 265"},
        {TL_ERR_FORMAT, "tokenizer.ggml.scores"},
        {TL_ERR_FORMAT, "found score NaN of token 262"},
    };
    for (int k = 0; k < (int)(sizeof cases / sizeof cases[0]); k++) {
        buf b;
        tl_error err;
        unsigned char *section = NULL;
        size_t bytes = 0;
        scored_bytes(&b, k);
        CHECK(save(scratch("v.gguf"), b.bytes, b.n));
        CHECK_INT(read_section(scratch("v.gguf"), &section, &bytes, &err), cases[k].status);
        CHECK_CONTAINS(err.message, cases[k].message);
        CHECK((section != NULL) == (cases[k].status == TL_OK));
        if (section != NULL) {
            static const int32_t want[] = {262, 265, 264, 269, 270, 3 + 0xE2, 3 + 0x82, 3 + 0xAC};
            static const char text[] = "the aaaa\xC3\xA9\xE2\x82\xAC";
            mamba_tokenizer t;
            int32_t ids[16];
            char out[32];
            size_t n = 0;
            CHECK_INT(mbi_tok_open(&t, section, bytes, NULL, NULL), MAMBA_OK);
            CHECK_INT(mamba_encode(&t, text, sizeof text - 1, 0, ids, 16, &n, NULL), MAMBA_OK);
            CHECK(n == 8 && memcmp(ids, want, sizeof want) == 0);
            CHECK_INT(mamba_decode(&t, ids, n, out, sizeof out, &n, NULL), MAMBA_OK);
            CHECK(n == sizeof text - 1 && memcmp(out, text, n) == 0);
        }
        tl_free(section);
        buf_free(&b);
        unlink(scratch("v.gguf"));
        CHECK_INT(hook.blocks, 0);
    }
}

TEST(vocabularies_refused)
{
    SMALL("accepted", TL_OK, "", (void)0);
    SMALL("without types", TL_OK, "", s.types[0] = 0);
    SMALL("T05 model", TL_ERR_UNSUPPORTED,
          "key \"tokenizer.ggml.model\": found bert, allowed: gpt2, llama; give the "
          "tokenizer.json with --tokenizer FILE",
          s.model = "bert");
    SMALL("falcon", TL_OK, "", s.pre = "falcon");
    SMALL("T05 llama-bpe", TL_ERR_UNSUPPORTED,
          "key \"tokenizer.ggml.pre\": found llama-bpe, allowed: gpt-2", s.pre = "llama-bpe");
    SMALL("T05 falcon3", TL_ERR_UNSUPPORTED, "found falcon3, allowed: gpt-2", s.pre = "falcon3");
    SMALL("T05 none", TL_ERR_UNSUPPORTED, "key \"tokenizer.ggml.pre\": found none", s.pre = NULL);
    SMALL("T05 default", TL_ERR_UNSUPPORTED, "found default", s.pre = "default");
    SMALL("T05 long name", TL_ERR_UNSUPPORTED, "found qqqqqqqqqqqqqqqqqqqq",
          s.pre =
              "qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq");
    SMALL("prefix", TL_ERR_FORMAT, "add_space_prefix\": found true", s.prefix = 1);
    SMALL("F34", TL_ERR_FORMAT, "token_type\": found an array of i8, allowed: an array of i32",
          s.type_type = GGUF_I8);
    SMALL("F35 fewer", TL_ERR_FORMAT,
          "token_type\": found 4 elements, allowed: one for each of the 5", s.types[4] = 0);
    SMALL("F35 more", TL_ERR_FORMAT, "found 6 elements", s.types[5] = 1);
    SMALL("F37", TL_ERR_FORMAT, "found type 6 of token 1", s.types[1] = 6; s.tokens[1] = "<0x-1>");
    SMALL("type", TL_ERR_FORMAT, "found type 4294967295 of token 2", s.types[2] = -1);
    SMALL("T01 duplicate", TL_ERR_FORMAT, "found \"a\" as token 0 and 1", s.tokens[1] = "a";
          s.merges[0] = NULL);
    SMALL("T09 empty", TL_ERR_FORMAT, "found token 1 of 0 bytes", s.tokens[1] = "";
          s.merges[0] = NULL);
    SMALL("T03", TL_ERR_FORMAT,
          "tokenizer.ggml.merges[1]: found \"c\", allowed: strings of tokenizer.ggml.tokens",
          s.merges[1] = "a c");
    SMALL("T03 joined", TL_ERR_FORMAT, "found \"ba\"", s.merges[0] = "b a");
    SMALL("T03 syntax", TL_ERR_FORMAT, "merges[0]: found \"ab\", allowed: \"left right\"",
          s.merges[0] = "ab");
    SMALL("T03 spaces", TL_ERR_FORMAT, "allowed: \"left right\"", s.merges[0] = "a b b");
    SMALL("no tokens", TL_ERR_FORMAT, "found no tokens", memset(s.tokens, 0, sizeof s.tokens);
          memset(s.types, 0, sizeof s.types); s.merges[0] = NULL);
}

/* ---- every prefix, every byte, every allocation ------------------------------------------------
 */

/* The model of tests/golden/mamba1-base with a small vocabulary, of one layer, without its padding.
 */
static void tiny(buf *b)
{
    gt_file f;
    memset(b, 0, sizeof *b);
    if (!gt_golden(&f, "mamba1-base")) {
        abort();
    }
    kv_string(&f, "tokenizer.ggml.model", "gpt2");
    kv_string(&f, "tokenizer.ggml.pre", "olmo");
    kv_array(&f, "tokenizer.ggml.tokens", GGUF_STRING, 4);
    buf_string(&f.kv, "a");
    buf_string(&f.kv, "b");
    buf_string(&f.kv, "ab");
    buf_string(&f.kv, "<s>");
    kv_array(&f, "tokenizer.ggml.token_type", GGUF_I32, 4);
    buf_le(&f.kv, 8, (uint64_t)1 << 32 | 1);
    buf_le(&f.kv, 8, (uint64_t)3 << 32 | 1);
    kv_array(&f, "tokenizer.ggml.merges", GGUF_STRING, 1);
    buf_string(&f.kv, "a b");
    gt_bytes(&f, b, 32);
    gt_free(&f);
}

/* Everything that converting reads before it writes. */
static tl_status read_all(const char *path, tl_error *err)
{
    ck_source *ck = NULL;
    ck_model m;
    voc_ids ids = {0, 0, VOC_NONE};
    unsigned char *section = NULL;
    size_t bytes;
    tl_status status;
    memset(&m, 0, sizeof m);
    memset(err, 0, sizeof *err);
    status = ck_open(path, &ck, err);
    status = status == TL_OK ? ck_describe(ck, NULL, &m, err) : status;
    if (status == TL_OK) {
        status = voc_read_gguf(ck_gguf(ck), &ck->files[0].file, ids, &section, &bytes, err);
    }
    for (size_t i = 0; status == TL_OK && i < ck->tensor_count; i++) {
        float x[32];
        const ck_tensor *t = &ck->tensors[i];
        status = t->count >= 32 ? ck_read_f32(ck, t, t->count - 32, 32, x, err) : TL_OK;
    }
    tl_free(section);
    ck_model_free(&m);
    ck_close(ck);
    return status;
}

TEST(every_prefix)
{
    buf b;
    tl_error err;
    int refused = 1;
    tiny(&b);
    CHECK(save(scratch("p.gguf"), b.bytes, b.n));
    CHECK_INT(read_all(scratch("p.gguf"), &err), TL_OK);
    for (size_t n = b.n - 31; n-- > 0;) { /* whole tensors are multiples of 32 bytes here */
        if (n > 4000 && n % 61 != 0) {
            continue;
        }
        if (truncate(scratch("p.gguf"), (off_t)n) != 0 || read_all(scratch("p.gguf"), &err) == TL_OK
            || err.message[0] == 0 || hook.blocks != 0) {
            printf("prefix of %lu bytes: \"%s\", %ld blocks\n", (unsigned long)n, err.message,
                   hook.blocks);
            refused = 0;
            break;
        }
    }
    CHECK(refused);
    buf_free(&b);
    unlink(scratch("p.gguf"));
}

/* Each byte of the metadata with each of three changes: an answer, no block left, no large heap. */
TEST(every_byte)
{
    static const unsigned char flips[] = {0x01, 0x80, 0xff};
    buf b;
    tl_error err;
    size_t meta;
    FILE *f;
    tiny(&b);
    CHECK(save(scratch("b.gguf"), b.bytes, b.n));
    meta = 24;
    {
        ck_source *ck = NULL;
        memset(&err, 0, sizeof err);
        CHECK_INT(ck_open(scratch("b.gguf"), &ck, &err), TL_OK);
        meta = ck != NULL ? (size_t)ck->tensors[0].offset : 24;
        ck_close(ck);
    }
    f = fopen(scratch("b.gguf"), "r+b");
    REQUIRE(f != NULL && setvbuf(f, NULL, _IONBF, 0) == 0);
    for (size_t i = 0; i < meta * 3; i++) {
        unsigned char changed = b.bytes[i / 3] ^ flips[i % 3];
        if (fseek(f, (long)(i / 3), SEEK_SET) != 0 || fwrite(&changed, 1, 1, f) != 1) {
            test_fail(__FILE__, __LINE__, "writing");
        }
        hook.peak = hook.bytes;
        if (read_all(scratch("b.gguf"), &err) != TL_OK && err.message[0] == 0) {
            test_fail(__FILE__, __LINE__, "a message");
        }
        if (hook.blocks != 0 || hook.peak > 5 * b.n + (1 << 20)) {
            printf("byte %lu ^ %02x: %ld blocks left, %lu bytes of heap\n", (unsigned long)(i / 3),
                   flips[i % 3], hook.blocks, (unsigned long)hook.peak);
            test_fail(__FILE__, __LINE__, "heap");
            break;
        }
        if (fseek(f, (long)(i / 3), SEEK_SET) != 0 || fwrite(&b.bytes[i / 3], 1, 1, f) != 1) {
            test_fail(__FILE__, __LINE__, "writing");
        }
    }
    fclose(f);
    CHECK_INT(read_all(scratch("b.gguf"), &err), TL_OK);
    buf_free(&b);
    unlink(scratch("b.gguf"));
}

TEST(every_allocation)
{
    buf b;
    tl_error err;
    tiny(&b);
    CHECK(save(scratch("a.gguf"), b.bytes, b.n));
    for (hook.persistent = 0; hook.persistent < 2; hook.persistent++) {
        long k;
        for (k = 1; k < 10000; k++) {
            tl_status status;
            hook.calls = 0;
            hook.fail_at = k;
            status = read_all(scratch("a.gguf"), &err);
            hook.fail_at = 0;
            if (hook.calls < k) {
                CHECK_INT(status, TL_OK);
                break;
            }
            if (status != TL_ERR_MEMORY || hook.blocks != 0) {
                printf("allocation %ld: status %d \"%s\", %ld blocks left\n", k, (int)status,
                       err.message, hook.blocks);
                test_fail(__FILE__, __LINE__, "this allocation");
                break;
            }
        }
        CHECK(k > 10 && k < 10000);
    }
    hook.persistent = 0;
    buf_free(&b);
    unlink(scratch("a.gguf"));
}

TEST_MAIN("gguf")
{
    RUN(blocks_by_hand);
    RUN(super_blocks_by_hand);
    RUN(types_through_files);
    RUN(mamba);
    RUN(mamba_untied_without_conv_bias);
    RUN(mamba_super_blocks);
    RUN(falcon_mamba);
    RUN(mamba2);
    RUN(mamba2_groups);
    RUN(embedding_of_its_own_type);
    RUN(tokenizer_same_section);
    RUN(tokenizer_in_model);
    RUN(tokenizer_neox);
    RUN(malformed_header);
    RUN(malformed_keys);
    RUN(malformed_tensors);
    RUN(many_names);
    RUN(beyond_4_gib);
    RUN(models_refused);
    RUN(names_of_splits);
    RUN(vocabularies_with_scores);
    RUN(vocabularies_refused);
    RUN(padding_is_no_token);
    RUN(every_prefix);
    RUN(every_byte);
    RUN(every_allocation);
}
