/*  gguf.h: reads and checks the metadata of a GGUF file, and turns its quantised blocks into
 *  floats.
 *
 *  Versions 2 and 3, little-endian. The whole layout is checked against the size of the open file:
 *  every count and length is backed by bytes that are there before anything is allocated or looped
 *  over; keys and tensor names are unique; the alignment is a power of two; tensors have at most 4
 *  dimensions, a known type, whole blocks in a row, and offsets that follow each other without hole
 *  or overlap to the end of the file (of the padding behind the last tensor any part may be
 *  missing). Arrays of arrays are refused, as are booleans other than 0 and 1.
 *
 *  Names and the places of values are kept, arrays and strings stay in the file. Block types
 *  dequantise to the floats that the format defines: every product but the last of Q6_K is exact in
 *  float, so that a fused multiply-add gives the same bits.
 */
#ifndef TL_GGUF_H
#define TL_GGUF_H

#include "tensor.h"

#define GGUF_MAX_KEYS 65536u
#define GGUF_MAX_TENSORS 65536u
#define GGUF_MAX_KEY 1024u /* bytes of a key */
#define GGUF_MAX_NAME 64u  /* bytes of a tensor's name */
#define GGUF_MAX_STRING ((uint64_t)1 << 30)
#define GGUF_MAX_ALIGNMENT 65536u
#define GGUF_MAX_DIMS 4
#define GGUF_WINDOW 65536u /* bytes read at a time */
#define GGUF_TYPES "F32, F16, BF16, F64, Q8_0, Q6_K, Q5_0, Q5_1, Q5_K, Q4_0, Q4_1, Q4_K, Q3_K, Q2_K"

typedef enum {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_TYPE_COUNT
} gguf_type;

static const struct {
    const char *name;
    unsigned bytes; /* of a scalar; of a string or array in an array: at least */
} gguf_types[GGUF_TYPE_COUNT] = {{"u8", 1},  {"i8", 1},  {"u16", 2},  {"i16", 2},    {"u32", 4},
                                 {"i32", 4}, {"f32", 4}, {"bool", 1}, {"string", 8}, {"array", 12},
                                 {"u64", 8}, {"i64", 8}, {"f64", 8}};

typedef struct {
    const char *key;
    size_t key_length;
    gguf_type type; /* of the value, of an array's elements */
    int is_array;
    uint64_t count;  /* elements of an array; bytes of a string; 1 */
    uint64_t offset; /* of a string's first byte, an array's first element, a scalar */
    uint64_t bytes;  /* from there; strings of arrays with their lengths */
    uint64_t bits;   /* of a scalar, zero-extended */
} gguf_value;

typedef struct gguf_chunk gguf_chunk;
struct gguf_chunk {
    gguf_chunk *next;
    size_t used;
    char text[16384];
};

typedef struct {
    uint32_t version;
    uint64_t alignment;
    gguf_value *values; /* in the order of the file */
    size_t value_count;
    uint64_t *by_key;   /* hash << 32 | index, sorted */
    ck_tensor *tensors; /* in the order of the file; shapes slowest first */
    size_t tensor_count;
    gguf_chunk *names; /* of keys and tensors; never moved */
} gguf_file;

TL_FN void gguf_free(gguf_file *g)
{
    while (g->names != NULL) {
        gguf_chunk *next = g->names->next;
        tl_free(g->names);
        g->names = next;
    }
    tl_free(g->values);
    tl_free(g->by_key);
    tl_free(g->tensors);
    memset(g, 0, sizeof *g);
}

/* ---- reading the metadata
 * ------------------------------------------------------------------------------ */

/* A place in the file, moving forward, and what lies there for messages. */
typedef struct {
    const tl_file *file;
    tl_error *err;
    uint64_t at;
    uint64_t window_at;
    size_t window_bytes;
    unsigned char *window; /* GGUF_WINDOW bytes */
    const char *what;      /* "header", "key", "tensor" */
    const char *name;      /* of the key or tensor, NULL while it is not known */
    size_t name_length;
    uint64_t index; /* of the key or tensor */
} gguf_cursor;

TL_FN tl_status gguf_fault(const gguf_cursor *c, tl_status status, uint64_t at, const char *found,
                           const char *allowed)
{
    tl_quoted q, n;
    char item[160];
    tl_path(&q, c->file->path);
    if (c->name != NULL) {
        (void)snprintf(item, sizeof item, "%s \"%s\"", c->what,
                       tl_quote(&n, c->name, c->name_length));
    } else if (strcmp(c->what, "header") == 0) {
        (void)snprintf(item, sizeof item, "header");
    } else {
        (void)snprintf(item, sizeof item, "%s %llu", c->what, (unsigned long long)c->index);
    }
    return tl_fail(c->err, status, "%s: byte %llu: %s: found %s, allowed: %s", q.text,
                   (unsigned long long)at, item, found, allowed);
}

TL_FN tl_status gguf_fault_number(const gguf_cursor *c, tl_status status, uint64_t at,
                                  const char *what, uint64_t found, const char *allowed)
{
    char text[96];
    (void)snprintf(text, sizeof text, "%s %llu", what, (unsigned long long)found);
    return gguf_fault(c, status, at, text, allowed);
}

/* Are there `count` items of at least `bytes` bytes each from here on? Says so if not. */
TL_FN tl_status gguf_backed(const gguf_cursor *c, uint64_t count, uint64_t bytes, const char *what)
{
    uint64_t left = c->file->size - c->at;
    char allowed[96];
    if (count <= left / bytes) {
        return TL_OK;
    }
    (void)snprintf(allowed, sizeof allowed, "at most %llu in the %llu bytes that follow",
                   (unsigned long long)(left / bytes), (unsigned long long)left);
    return gguf_fault_number(c, TL_ERR_FORMAT, c->at, what, count, allowed);
}

/* The next n <= GGUF_WINDOW bytes; NULL at the end of the file. They are valid until the next call.
 */
TL_FN const unsigned char *gguf_take(gguf_cursor *c, size_t n, const char *what)
{
    uint64_t left = c->file->size - c->at;
    const unsigned char *p;
    char found[96];
    if (n > left) {
        (void)snprintf(found, sizeof found, "the end of the file at %llu",
                       (unsigned long long)c->file->size);
        gguf_fault(c, TL_ERR_FORMAT, c->at, found, what);
        return NULL;
    }
    if (c->at < c->window_at || c->at - c->window_at > c->window_bytes
        || n > c->window_bytes - (size_t)(c->at - c->window_at)) {
        size_t more = left < GGUF_WINDOW ? (size_t)left : GGUF_WINDOW;
        if (tl_file_read(c->file, c->at, c->window, more, c->err) != TL_OK) {
            return NULL;
        }
        c->window_at = c->at;
        c->window_bytes = more;
    }
    p = c->window + (size_t)(c->at - c->window_at);
    c->at += n;
    return p;
}

TL_FN tl_status gguf_u32(gguf_cursor *c, uint32_t *value, const char *what)
{
    const unsigned char *p = gguf_take(c, 4, what);
    *value = p != NULL ? tl_le32(p) : 0;
    return p != NULL ? TL_OK : c->err->status;
}

TL_FN tl_status gguf_u64(gguf_cursor *c, uint64_t *value, const char *what)
{
    const unsigned char *p = gguf_take(c, 8, what);
    *value = p != NULL ? tl_le64(p) : 0;
    return p != NULL ? TL_OK : c->err->status;
}

/* The length of a string; its bytes follow. */
TL_FN tl_status gguf_length(gguf_cursor *c, uint64_t limit, uint64_t *length)
{
    char allowed[64];
    tl_status status = gguf_u64(c, length, "8 bytes of a string's length");
    if (status == TL_OK && *length > limit) {
        (void)snprintf(allowed, sizeof allowed, "at most %llu bytes", (unsigned long long)limit);
        return gguf_fault_number(c, TL_ERR_FORMAT, c->at - 8, "a string of length", *length,
                                 allowed);
    }
    return status == TL_OK ? gguf_backed(c, *length, 1, "a string of length") : status;
}

/* A name of 1 to `limit` bytes into g->names. */
TL_FN tl_status gguf_name(gguf_cursor *c, gguf_file *g, uint64_t limit, const char **name,
                          size_t *length)
{
    uint64_t n;
    const unsigned char *p;
    const char *fault;
    char allowed[64];
    tl_status status;
    c->name = NULL;
    status = gguf_length(c, limit, &n);
    if (status != TL_OK) {
        return status;
    }
    p = gguf_take(c, (size_t)n, "the bytes of a name");
    if (p == NULL) {
        return c->err->status;
    }
    fault = ck_name_fault((const char *)p, (size_t)n);
    if (fault != NULL) {
        (void)snprintf(allowed, sizeof allowed, "1 to %llu bytes without NUL",
                       (unsigned long long)limit);
        return gguf_fault(c, TL_ERR_FORMAT, c->at - n, fault, allowed);
    }
    if (g->names == NULL || n > sizeof g->names->text - g->names->used) {
        gguf_chunk *chunk = (gguf_chunk *)tl_malloc(1, sizeof *chunk, c->err);
        if (chunk == NULL) {
            return TL_ERR_MEMORY;
        }
        chunk->next = g->names;
        chunk->used = 0;
        g->names = chunk;
    }
    memcpy(g->names->text + g->names->used, p, (size_t)n);
    *name = c->name = g->names->text + g->names->used;
    *length = c->name_length = (size_t)n;
    g->names->used += (size_t)n;
    return TL_OK;
}

/* Walks over booleans or strings, and checks them. */
TL_FN tl_status gguf_walk(gguf_cursor *c, gguf_type type, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        if (type == GGUF_STRING) {
            uint64_t length;
            tl_status status = gguf_length(c, GGUF_MAX_STRING, &length);
            if (status != TL_OK) {
                return status;
            }
            c->at += length;
        } else {
            const unsigned char *p = gguf_take(c, 1, "a bool");
            if (p == NULL) {
                return c->err->status;
            }
            if (*p > 1) {
                return gguf_fault_number(c, TL_ERR_FORMAT, c->at - 1, "a bool of", *p, "0 or 1");
            }
        }
    }
    return TL_OK;
}

/* Key and value. */
TL_FN tl_status gguf_pair(gguf_cursor *c, gguf_file *g, gguf_value *v)
{
    uint32_t type;
    tl_status status = gguf_name(c, g, GGUF_MAX_KEY, &v->key, &v->key_length);
    status = status == TL_OK ? gguf_u32(c, &type, "4 bytes of a value's type") : status;
    if (status == TL_OK && type == GGUF_ARRAY) {
        v->is_array = 1;
        status = gguf_u32(c, &type, "4 bytes of the elements' type");
        if (status == TL_OK && type == GGUF_ARRAY) {
            return gguf_fault(c, TL_ERR_UNSUPPORTED, c->at - 4, "an array of arrays",
                              "arrays of scalars and strings");
        }
    }
    if (status == TL_OK && type >= GGUF_TYPE_COUNT) {
        return gguf_fault_number(c, TL_ERR_FORMAT, c->at - 4, "a value of type", type,
                                 "types 0 to 12");
    }
    if (status != TL_OK) {
        return status;
    }
    v->type = (gguf_type)type;
    v->count = 1;
    if (v->is_array) {
        status = gguf_u64(c, &v->count, "8 bytes of an array's length");
        status = status == TL_OK
                     ? gguf_backed(c, v->count, gguf_types[type].bytes, "an array of length")
                     : status;
    } else if (v->type == GGUF_STRING) {
        status = gguf_length(c, GGUF_MAX_STRING, &v->count);
    }
    v->offset = c->at;
    if (status != TL_OK) {
        return status;
    }
    if (!v->is_array && v->type != GGUF_STRING) {
        const unsigned char *p = gguf_take(c, gguf_types[type].bytes, "a value");
        for (unsigned i = 0; p != NULL && i < gguf_types[type].bytes; i++) {
            v->bits |= (uint64_t)p[i] << 8 * i;
        }
        c->at = v->offset; /* below: over it again */
        if (p == NULL) {
            return c->err->status;
        }
    }
    if (v->type == GGUF_BOOL || (v->is_array && v->type == GGUF_STRING)) {
        status = gguf_walk(c, v->type, v->count);
    } else {
        c->at += v->count * (v->type == GGUF_STRING ? 1 : gguf_types[type].bytes);
    }
    v->bytes = c->at - v->offset;
    return status;
}

/* ---- looking
 * ------------------------------------------------------------------------------------------- */

TL_FN int gguf_key_order(const void *context, uint32_t a, uint32_t b)
{
    const gguf_value *v = (const gguf_value *)context;
    return tl_compare(v[a].key, v[a].key_length, v[b].key, v[b].key_length);
}

/* The value of a key, NULL if there is none. */
TL_FN const gguf_value *gguf_find(const gguf_file *g, const char *key)
{
    size_t length = strlen(key), lo = 0, hi = g->value_count;
    uint32_t hash = tl_hash(key, length);
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        const gguf_value *v = &g->values[(uint32_t)g->by_key[mid]];
        uint32_t h = (uint32_t)(g->by_key[mid] >> 32);
        int order =
            hash != h ? (hash < h ? -1 : 1) : tl_compare(key, length, v->key, v->key_length);
        if (order == 0) {
            return v;
        }
        if (order < 0) {
            hi = mid;
        } else {
            lo = mid + 1;
        }
    }
    return NULL;
}

/* "a string", "an array of u32" for messages. */
TL_FN const char *gguf_kind(tl_quoted *out, const gguf_value *v)
{
    (void)snprintf(out->text, sizeof out->text, v->is_array ? "an array of %s" : "a %s",
                   v->type < GGUF_TYPE_COUNT ? gguf_types[v->type].name : "?");
    return out->text;
}

TL_FN tl_status gguf_value_fault(const tl_file *file, const char *key, const gguf_value *v,
                                 const char *found, const char *allowed, tl_error *err)
{
    tl_quoted q, n;
    tl_path(&q, file->path);
    tl_quote(&n, key, strlen(key));
    if (v == NULL) {
        return tl_fail(err, TL_ERR_FORMAT, "%s: key \"%s\": found none, allowed: %s", q.text,
                       n.text, allowed);
    }
    return tl_fail(err, TL_ERR_FORMAT, "%s: byte %llu: key \"%s\": found %s, allowed: %s", q.text,
                   (unsigned long long)v->offset, n.text, found, allowed);
}

/* A non-negative integer of any width; 0 if it is none. */
TL_FN int gguf_integer(const gguf_value *v, uint64_t *value)
{
    *value = v->bits;
    if (v->is_array) {
        return 0;
    }
    switch (v->type) {
    case GGUF_U8:
    case GGUF_U16:
    case GGUF_U32:
    case GGUF_U64:
        return 1;
    case GGUF_I8:
        return v->bits <= INT8_MAX;
    case GGUF_I16:
        return v->bits <= INT16_MAX;
    case GGUF_I32:
        return v->bits <= INT32_MAX;
    case GGUF_I64:
        return v->bits <= INT64_MAX;
    default:
        return 0;
    }
}

TL_FN int gguf_number(const gguf_value *v, double *value)
{
    if (v->is_array || (v->type != GGUF_F32 && v->type != GGUF_F64)) {
        return 0;
    }
    if (v->type == GGUF_F32) {
        *value = (double)tl_f32_of_bits((uint32_t)v->bits);
    } else {
        memcpy(value, &v->bits, sizeof *value);
    }
    return 1;
}

/* Is the value that text? (Strings of at most 63 bytes; an error of reading counts as no, and is in
 * err.) */
TL_FN int gguf_is(const tl_file *file, const gguf_value *v, const char *text, tl_error *err)
{
    char held[64];
    size_t n = strlen(text);
    return v != NULL && !v->is_array && v->type == GGUF_STRING && v->count == n && n <= sizeof held
           && tl_file_read(file, v->offset, held, n, err) == TL_OK && memcmp(held, text, n) == 0;
}

/* A string for messages, cut where it is long. */
TL_FN const char *gguf_brief(tl_quoted *out, const tl_file *file, const gguf_value *v,
                             tl_error *err)
{
    char held[64];
    size_t n = v->count < sizeof held ? (size_t)v->count : sizeof held;
    if (v->is_array || v->type != GGUF_STRING) {
        return gguf_kind(out, v);
    }
    return tl_file_read(file, v->offset, held, n, err) == TL_OK ? tl_quote(out, held, n) : "?";
}

/* ---- tensors
 * ------------------------------------------------------------------------------------------- */

/* The numbers of the types in the file. */
TL_FN int gguf_dtype(uint32_t number, ck_dtype *dtype, const char **name)
{
    static const struct {
        const char *name;
        int dtype; /* -1: known and not supported */
    } types[] = {{"F32", CK_F32},    {"F16", CK_F16},    {"Q4_0", CK_Q4_0},  {"Q4_1", CK_Q4_1},
                 {"Q4_2", -1},       {"Q4_3", -1},       {"Q5_0", CK_Q5_0},  {"Q5_1", CK_Q5_1},
                 {"Q8_0", CK_Q8_0},  {"Q8_1", -1},       {"Q2_K", CK_Q2_K},  {"Q3_K", CK_Q3_K},
                 {"Q4_K", CK_Q4_K},  {"Q5_K", CK_Q5_K},  {"Q6_K", CK_Q6_K},  {"Q8_K", -1},
                 {"IQ2_XXS", -1},    {"IQ2_XS", -1},     {"IQ3_XXS", -1},    {"IQ1_S", -1},
                 {"IQ4_NL", -1},     {"IQ3_S", -1},      {"IQ2_S", -1},      {"IQ4_XS", -1},
                 {"I8", CK_I8},      {"I16", CK_I16},    {"I32", CK_I32},    {"I64", CK_I64},
                 {"F64", CK_F64},    {"IQ1_M", -1},      {"BF16", CK_BF16},  {"Q4_0_4_4", -1},
                 {"Q4_0_4_8", -1},   {"Q4_0_8_8", -1},   {"TQ1_0", -1},      {"TQ2_0", -1},
                 {"IQ4_NL_4_4", -1}, {"IQ4_NL_4_8", -1}, {"IQ4_NL_8_8", -1}, {"MXFP4", -1}};
    *name = number < sizeof types / sizeof types[0] ? types[number].name : NULL;
    if (*name == NULL || types[number].dtype < 0) {
        return 0;
    }
    *dtype = (ck_dtype)types[number].dtype;
    return 1;
}

/* Dimensions, fastest first in the file. */
TL_FN tl_status gguf_shape(gguf_cursor *c, ck_tensor *t)
{
    uint32_t n;
    uint64_t ne;
    tl_status status = gguf_u32(c, &n, "4 bytes of the number of dimensions");
    if (status == TL_OK && n > GGUF_MAX_DIMS) {
        return gguf_fault_number(c, TL_ERR_FORMAT, c->at - 4, "a number of dimensions of", n,
                                 "0 to 4");
    }
    t->rank = status == TL_OK ? (int)n : 0;
    for (int i = t->rank - 1; status == TL_OK && i >= 0; i--) {
        status = gguf_u64(c, &ne, "8 bytes of a dimension");
        if (status == TL_OK && ne > INT64_MAX) {
            return gguf_fault_number(c, TL_ERR_FORMAT, c->at - 8, "a dimension of", ne,
                                     "0 to 2^63 - 1");
        }
        t->shape[i] = ne;
    }
    return status;
}

/* Name, shape, type, offset in the data. */
TL_FN tl_status gguf_info(gguf_cursor *c, gguf_file *g, ck_tensor *t)
{
    uint32_t number;
    uint64_t at;
    const char *name;
    char found[160];
    tl_quoted q;
    tl_status status = gguf_name(c, g, GGUF_MAX_NAME, &t->name, &t->name_length);
    at = c->at;
    status = status == TL_OK ? gguf_shape(c, t) : status;
    status = status == TL_OK ? gguf_u32(c, &number, "4 bytes of a tensor's type") : status;
    if (status == TL_OK && !gguf_dtype(number, &t->dtype, &name)) {
        (void)snprintf(found, sizeof found, name != NULL ? "type %lu (%s)" : "type %lu",
                       (unsigned long)number, name);
        return gguf_fault(c, name != NULL ? TL_ERR_UNSUPPORTED : TL_ERR_FORMAT, c->at - 4, found,
                          GGUF_TYPES);
    }
    status = status == TL_OK ? gguf_u64(c, &t->offset, "8 bytes of a tensor's offset") : status;
    if (status == TL_OK && !ck_measure(t)) {
        unsigned block = ck_types[t->dtype].block;
        (void)snprintf(found, sizeof found, "shape %s of type %s",
                       ck_shape_text(&q, t->rank, t->shape), ck_types[t->dtype].name);
        if (block != 1 && (t->rank == 0 || t->shape[t->rank - 1] % block != 0)) {
            char allowed[64];
            (void)snprintf(allowed, sizeof allowed, "rows of whole blocks of %u", block);
            return gguf_fault(c, TL_ERR_FORMAT, at, found, allowed);
        }
        return gguf_fault(c, TL_ERR_FORMAT, at, found, "fewer than 2^63 bytes");
    }
    return status;
}

/* Offsets must be those of tensors that lie one behind the other, each at the alignment. Makes them
 * absolute. */
TL_FN tl_status gguf_place(gguf_cursor *c, gguf_file *g)
{
    uint64_t size = c->file->size, mask = g->alignment - 1, at = c->at, start, end;
    char found[96], allowed[96];
    if (!tl_add(at, mask, &start)) {
        return gguf_fault(c, TL_ERR_FORMAT, at, "no room for data", "a shorter file");
    }
    start &= ~mask;
    end = start;
    c->what = "tensor";
    for (size_t i = 0; i < g->tensor_count; i++) {
        ck_tensor *t = &g->tensors[i];
        uint64_t padded;
        c->name = t->name;
        c->name_length = t->name_length;
        if (t->offset != end - start) {
            (void)snprintf(found, sizeof found, "an offset of %llu in the data",
                           (unsigned long long)t->offset);
            (void)snprintf(allowed, sizeof allowed,
                           "%llu (tensors follow each other, aligned to %llu)",
                           (unsigned long long)(end - start), (unsigned long long)g->alignment);
            return gguf_fault(c, TL_ERR_FORMAT, at, found, allowed);
        }
        t->offset = end;
        if (!tl_fits(end, t->bytes, size)) {
            (void)snprintf(found, sizeof found, "%llu bytes of data", (unsigned long long)t->bytes);
            (void)snprintf(allowed, sizeof allowed, "the %llu to the end of the file at %llu",
                           (unsigned long long)(end < size ? size - end : 0),
                           (unsigned long long)size);
            return gguf_fault(c, TL_ERR_FORMAT, end, found, allowed);
        }
        at = end + t->bytes; /* <= size: no overflow; its padding may overflow */
        if (!tl_add(at, mask, &padded)) {
            return gguf_fault(c, TL_ERR_FORMAT, at, "no room for padding", "a shorter file");
        }
        end = padded & ~mask;
    }
    if (size > end) {
        c->what = "header";
        c->name = NULL;
        (void)snprintf(found, sizeof found, "%llu bytes behind the last tensor",
                       (unsigned long long)(size - end));
        return gguf_fault(c, TL_ERR_FORMAT, end, found, "none");
    }
    return TL_OK;
}

/* ---- the whole
 * ----------------------------------------------------------------------------------------- */

TL_FN tl_status gguf_header(gguf_cursor *c, gguf_file *g, uint64_t *tensors, uint64_t *pairs)
{
    const unsigned char *p = gguf_take(c, 4, "4 bytes of magic");
    tl_status status;
    if (p == NULL) {
        return c->err->status;
    }
    if (memcmp(p, "GGUF", 4) != 0) {
        return gguf_fault(c, TL_ERR_FORMAT, 0, "another magic", "\"GGUF\"");
    }
    status = gguf_u32(c, &g->version, "4 bytes of the version");
    if (status != TL_OK) {
        return status;
    }
    if ((g->version & 0xffffu) == 0 && g->version != 0) {
        return gguf_fault_number(c, TL_ERR_UNSUPPORTED, 4, "the other byte order: version",
                                 g->version, "little-endian, versions 2 and 3");
    }
    if (g->version == 1) {
        return gguf_fault(c, TL_ERR_UNSUPPORTED, 4, "version 1",
                          "versions 2 and 3 (convert the model again)");
    }
    if (g->version != 2 && g->version != 3) {
        return gguf_fault_number(c, g->version == 0 ? TL_ERR_FORMAT : TL_ERR_UNSUPPORTED, 4,
                                 "version", g->version, "2 and 3");
    }
    status = gguf_u64(c, tensors, "8 bytes of the number of tensors");
    status = status == TL_OK ? gguf_u64(c, pairs, "8 bytes of the number of keys") : status;
    if (status != TL_OK) {
        return status;
    }
    /* the shortest: a name of 1 byte, no dimensions; a key of 1 byte, a value of 1 */
    status = gguf_backed(c, *tensors, 8 + 1 + 4 + 4 + 8, "a number of tensors of");
    status =
        status == TL_OK ? gguf_backed(c, *pairs, 8 + 1 + 4 + 1, "a number of keys of") : status;
    if (status == TL_OK && *tensors > GGUF_MAX_TENSORS) {
        return gguf_fault_number(c, TL_ERR_UNSUPPORTED, 8, "a number of tensors of", *tensors,
                                 "at most 65536");
    }
    if (status == TL_OK && *pairs > GGUF_MAX_KEYS) {
        return gguf_fault_number(c, TL_ERR_UNSUPPORTED, 16, "a number of keys of", *pairs,
                                 "at most 65536");
    }
    return status;
}

/* Sorts the keys and refuses duplicates. */
TL_FN tl_status gguf_sort_keys(gguf_cursor *c, gguf_file *g)
{
    size_t n = g->value_count;
    uint64_t *spare = (uint64_t *)tl_malloc(n, sizeof spare[0], c->err);
    tl_status status = TL_OK;
    g->by_key = (uint64_t *)tl_malloc(n, sizeof spare[0], c->err);
    if (spare == NULL || g->by_key == NULL) {
        tl_free(spare);
        return TL_ERR_MEMORY;
    }
    for (size_t i = 0; i < n; i++) {
        g->by_key[i] = (uint64_t)tl_hash(g->values[i].key, g->values[i].key_length) << 32 | i;
    }
    tl_sort(g->by_key, spare, n, gguf_key_order, g->values);
    for (size_t i = 1; status == TL_OK && i < n; i++) {
        if (tl_key_order(g->by_key[i - 1], g->by_key[i], gguf_key_order, g->values) == 0) {
            const gguf_value *v = &g->values[(uint32_t)g->by_key[i]];
            c->name = v->key;
            c->name_length = v->key_length;
            status = gguf_fault(c, TL_ERR_FORMAT, v->offset, "this key twice", "once");
        }
    }
    tl_free(spare);
    return status;
}

TL_FN tl_status gguf_alignment(const gguf_cursor *c, gguf_file *g)
{
    const gguf_value *v = gguf_find(g, "general.alignment");
    tl_quoted q;
    char found[64];
    g->alignment = 32;
    if (v == NULL) {
        return TL_OK;
    }
    if (v->is_array || v->type != GGUF_U32) {
        return gguf_value_fault(c->file, "general.alignment", v, gguf_kind(&q, v), "a u32", c->err);
    }
    if (v->bits == 0 || (v->bits & (v->bits - 1)) != 0 || v->bits > GGUF_MAX_ALIGNMENT) {
        (void)snprintf(found, sizeof found, "%llu", (unsigned long long)v->bits);
        return gguf_value_fault(c->file, "general.alignment", v, found,
                                "a power of two up to 65536", c->err);
    }
    g->alignment = v->bits;
    return TL_OK;
}

TL_FN tl_status gguf_read(gguf_cursor *c, gguf_file *g)
{
    uint64_t tensors = 0, pairs = 0;
    tl_status status = gguf_header(c, g, &tensors, &pairs);
    if (status != TL_OK) {
        return status;
    }
    g->values = (gguf_value *)tl_calloc(pairs, sizeof g->values[0], c->err);
    g->tensors = (ck_tensor *)tl_calloc(tensors, sizeof g->tensors[0], c->err);
    if (g->values == NULL || g->tensors == NULL) {
        return TL_ERR_MEMORY;
    }
    c->what = "key";
    for (c->index = 0; status == TL_OK && c->index < pairs; c->index++) {
        status = gguf_pair(c, g, &g->values[g->value_count]);
        g->value_count += status == TL_OK;
    }
    status = status == TL_OK ? gguf_sort_keys(c, g) : status;
    status = status == TL_OK ? gguf_alignment(c, g) : status;
    c->what = "tensor";
    for (c->index = 0; status == TL_OK && c->index < tensors; c->index++) {
        status = gguf_info(c, g, &g->tensors[g->tensor_count]);
        g->tensor_count += status == TL_OK;
    }
    return status == TL_OK ? gguf_place(c, g) : status;
}

/* Reads and checks all but the values; on failure g is to be freed too. Duplicate tensor names are
 * left to the one who sorts them. */
TL_FN tl_status gguf_open(gguf_file *g, const tl_file *file, tl_error *err)
{
    gguf_cursor c;
    tl_status status = TL_ERR_MEMORY;
    memset(g, 0, sizeof *g);
    memset(&c, 0, sizeof c);
    c.file = file;
    c.err = err;
    c.what = "header";
    c.window = (unsigned char *)tl_malloc(GGUF_WINDOW, 1, err);
    if (c.window != NULL) {
        status = gguf_read(&c, g);
    }
    tl_free(c.window);
    return status;
}

/* ---- blocks into floats
 * -------------------------------------------------------------------------------- */

/* Q4_0, Q4_1, Q5_0, Q5_1: 32 values q d + m; the low nibbles are the first 16. */
TL_FN void gguf_blocks_of_32(ck_dtype dtype, const unsigned char *p, float *out)
{
    int five = dtype == CK_Q5_0 || dtype == CK_Q5_1, minimum = dtype == CK_Q4_1 || dtype == CK_Q5_1;
    float d = tl_f32_of_f16(tl_le16(p)), m = minimum ? tl_f32_of_f16(tl_le16(p + 2)) : 0.0f;
    uint32_t high = five ? tl_le32(p + (minimum ? 4 : 2)) : 0;
    int zero = minimum ? 0 : five ? 16 : 8;
    const unsigned char *q = p + 2 + (minimum ? 2 : 0) + (five ? 4 : 0);
    for (unsigned i = 0; i < 32; i++) {
        unsigned low = i < 16 ? q[i] & 15u : (unsigned)q[i - 16] >> 4;
        int value = (int)(low | (high >> i & 1u) << 4) - zero;
        out[i] = minimum ? (float)value * d + m : (float)value * d;
    }
}

/* The i-th of 8 scales and minima of 6 bits in 12 bytes. */
TL_FN void gguf_scale_of_6(const unsigned char *p, int i, unsigned *scale, unsigned *minimum)
{
    if (i < 4) {
        *scale = p[i] & 63u;
        *minimum = p[i + 4] & 63u;
    } else {
        *scale = (p[i + 4] & 15u) | (unsigned)p[i - 4] >> 6 << 4;
        *minimum = (unsigned)p[i + 4] >> 4 | (unsigned)p[i] >> 6 << 4;
    }
}

/* Q4_K, Q5_K: 8 groups of 32, each with scale and minimum; two groups share 32 bytes of nibbles. */
TL_FN void gguf_block_of_k45(int five, const unsigned char *p, float *out)
{
    float d = tl_f32_of_f16(tl_le16(p)), least = tl_f32_of_f16(tl_le16(p + 2));
    const unsigned char *high = p + 16, *q = five ? p + 48 : p + 16;
    for (int g = 0; g < 8; g++) {
        unsigned scale, minimum;
        float a, b;
        gguf_scale_of_6(p + 4, g, &scale, &minimum);
        a = d * (float)scale;
        b = least * (float)minimum;
        for (int i = 0; i < 32; i++) {
            unsigned v = (unsigned)q[g / 2 * 32 + i] >> g % 2 * 4 & 15u;
            v |= five ? ((unsigned)high[i] >> g & 1u) << 4 : 0;
            out[g * 32 + i] = a * (float)v - b;
        }
    }
}

/* Q6_K: 16 groups of 16 with signed 8-bit scales; low nibbles in ql, two high bits in qh. */
TL_FN void gguf_block_of_q6(const unsigned char *p, float *out)
{
    float d = tl_f32_of_f16(tl_le16(p + 208));
    for (int i = 0; i < 256; i++) {
        int half = i / 128, quarter = i % 128 / 32, l = i % 32;
        unsigned low = (unsigned)p[half * 64 + quarter % 2 * 32 + l] >> quarter / 2 * 4 & 15u;
        unsigned high = (unsigned)p[128 + half * 32 + l] >> quarter * 2 & 3u;
        int scale = (int)p[192 + i / 16] - (p[192 + i / 16] >= 128 ? 256 : 0);
        out[i] = d * (float)scale * (float)((int)(low | high << 4) - 32);
    }
}

/* Q2_K: 16 groups of 16, a byte of scale (low) and minimum (high nibble) each. */
TL_FN void gguf_block_of_q2(const unsigned char *p, float *out)
{
    float d = tl_f32_of_f16(tl_le16(p + 80)), least = tl_f32_of_f16(tl_le16(p + 82));
    for (int i = 0; i < 256; i++) {
        unsigned v = (unsigned)p[16 + i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3u;
        float a = d * (float)(p[i / 16] & 15u), b = least * (float)((unsigned)p[i / 16] >> 4);
        out[i] = a * (float)v - b;
    }
}

/* Q3_K: 16 groups of 16 with scales of 6 bits less 32; a third bit per value in hmask, 0 there
 * means -4. */
TL_FN void gguf_block_of_q3(const unsigned char *p, float *out)
{
    const unsigned char *scales = p + 96;
    float d = tl_f32_of_f16(tl_le16(p + 108));
    for (int i = 0; i < 256; i++) {
        int g = i / 16;
        unsigned low = (unsigned)scales[g % 8] >> g / 8 * 4 & 15u;
        unsigned high = (unsigned)scales[8 + g % 4] >> g / 4 * 2 & 3u;
        int v = (int)((unsigned)p[32 + i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3u);
        v -= ((unsigned)p[i % 32] >> i / 32 & 1u) != 0 ? 0 : 4;
        out[i] = d * (float)((int)(low | high << 4) - 32) * (float)v;
    }
}

/* One block of a quantised type. */
TL_FN void gguf_dequantise(ck_dtype dtype, const unsigned char *p, float *out)
{
    switch (dtype) {
    case CK_Q8_0:
        for (int i = 0; i < 32; i++) {
            out[i] =
                (float)((int)p[2 + i] - (p[2 + i] >= 128 ? 256 : 0)) * tl_f32_of_f16(tl_le16(p));
        }
        break;
    case CK_Q4_K:
    case CK_Q5_K:
        gguf_block_of_k45(dtype == CK_Q5_K, p, out);
        break;
    case CK_Q6_K:
        gguf_block_of_q6(p, out);
        break;
    case CK_Q2_K:
        gguf_block_of_q2(p, out);
        break;
    case CK_Q3_K:
        gguf_block_of_q3(p, out);
        break;
    default:
        gguf_blocks_of_32(dtype, p, out);
        break;
    }
}

#endif /* TL_GGUF_H */
