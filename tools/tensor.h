/*  tensor.h: what a tensor of a checkpoint is, whatever file holds it: name, type, shape, place.
 */
#ifndef TL_TENSOR_H
#define TL_TENSOR_H

#include "base.h"

#define CK_MAX_RANK 8

typedef enum {
    CK_F32, CK_F16, CK_BF16, CK_F64, CK_I64, CK_I32, CK_I16, CK_I8, CK_U64, CK_U32, CK_U16, CK_U8,
    CK_BOOL, CK_F8_E4M3, CK_F8_E5M2,
    CK_Q4_0, CK_Q4_1, CK_Q5_0, CK_Q5_1, CK_Q8_0, /* blocks: gguf.h */
    CK_Q2_K, CK_Q3_K, CK_Q4_K, CK_Q5_K, CK_Q6_K,
    CK_DTYPE_COUNT
} ck_dtype;

/* A type stores `block` elements in `bytes` bytes; quantised types have blocks of more than one. */
static const struct {
    const char *name;
    unsigned block, bytes;
    int is_float;        /* ck_read_f32 converts it */
} ck_types[CK_DTYPE_COUNT] = {{"F32", 1, 4, 1},  {"F16", 1, 2, 1},     {"BF16", 1, 2, 1},
                              {"F64", 1, 8, 1},  {"I64", 1, 8, 0},     {"I32", 1, 4, 0},
                              {"I16", 1, 2, 0},  {"I8", 1, 1, 0},      {"U64", 1, 8, 0},
                              {"U32", 1, 4, 0},  {"U16", 1, 2, 0},     {"U8", 1, 1, 0},
                              {"BOOL", 1, 1, 0}, {"F8_E4M3", 1, 1, 0}, {"F8_E5M2", 1, 1, 0},
                              {"Q4_0", 32, 18, 1}, {"Q4_1", 32, 20, 1},   {"Q5_0", 32, 22, 1},
                              {"Q5_1", 32, 24, 1}, {"Q8_0", 32, 34, 1},   {"Q2_K", 256, 84, 1},
                              {"Q3_K", 256, 110, 1}, {"Q4_K", 256, 144, 1}, {"Q5_K", 256, 176, 1},
                              {"Q6_K", 256, 210, 1}};

typedef struct {
    const char *name;
    size_t name_length;
    ck_dtype dtype;
    int rank;
    uint64_t shape[CK_MAX_RANK];   /* slowest first; C-contiguous always */
    uint64_t count;                /* elements */
    uint64_t bytes;
    uint32_t file;                 /* of the checkpoint's files */
    uint32_t record;               /* of a zip archive */
    uint64_t offset;               /* of the first byte in that file; equal for tied tensors */
} ck_tensor;

/* Sets count and bytes from dtype and shape; 0 if they overflow or rows are no whole blocks. */
TL_FN int ck_measure(ck_tensor *t)
{
    uint64_t count = 1;
    unsigned block = ck_types[t->dtype].block;
    int empty = 0;
    for (int i = 0; i < t->rank; i++) {
        empty = empty || t->shape[i] == 0;
    }
    for (int i = 0; i < t->rank; i++) {   /* a zero must not hide an overflow of the others */
        if (t->shape[i] != 0 && !tl_mul(count, t->shape[i], &count)) {
            return 0;
        }
    }
    if (block != 1 && (t->rank == 0 || t->shape[t->rank - 1] % block != 0)) {
        return 0;
    }
    if (!tl_mul(count / block, ck_types[t->dtype].bytes, &t->bytes) || t->bytes > INT64_MAX) {
        return 0;
    }
    t->count = empty ? 0 : count;
    t->bytes = empty ? 0 : t->bytes;
    return 1;
}

/* "(50280, 768)" for messages. */
TL_FN const char *ck_shape_text(tl_quoted *out, int rank, const uint64_t *shape)
{
    size_t o = 0;
    out->text[o++] = '(';
    for (int i = 0; i < rank; i++) {
        int n = snprintf(out->text + o, sizeof out->text - o, i == 0 ? "%llu" : ", %llu",
                         (unsigned long long)shape[i]);
        if (n < 0 || (size_t)n >= sizeof out->text - o - 4) {
            memcpy(out->text + o, "...", 3);
            o += 3;
            break;
        }
        o += (size_t)n;
    }
    out->text[o++] = ')';
    out->text[o] = '\0';
    return out->text;
}

/* Why a tensor's name is refused, NULL if it is fine. */
TL_FN const char *ck_name_fault(const char *name, size_t length)
{
    if (length == 0) {
        return "an empty name";
    }
    if (length > 1024) {
        return "a name of more than 1024 bytes";
    }
    return memchr(name, '\0', length) != NULL ? "a name with NUL" : NULL;
}

#endif /* TL_TENSOR_H */
