/*  safetensors.h: reads and checks the header of a safetensors file.
 *
 *  The rules of the format, all of them: a header of at most 100,000,000 bytes that begins with '{'
 *  (not with white space, as the specification says and its reference code does not check), strict
 *  JSON, unique names, __metadata__ from strings to strings, offsets that tile the data without
 *  hole, overlap or trailing byte, sizes that equal type times shape. Tensors of rank 0 and of no
 *  elements are valid; values are not looked at. Types below one byte are refused.
 */
#ifndef TL_SAFETENSORS_H
#define TL_SAFETENSORS_H

#include "json.h"
#include "tensor.h"

#define ST_MAX_HEADER 100000000u

typedef struct {
    json_doc header;        /* keeps the names of the tensors */
    ck_tensor *tensors;     /* in the order of the header */
    size_t count;
} st_file;

TL_FN void st_free(st_file *st)
{
    json_free(&st->header);
    tl_free(st->tensors);
    memset(st, 0, sizeof *st);
}

/* A value of __metadata__, NULL text if absent. */
TL_FN json_text st_metadata(const st_file *st, const char *key)
{
    return json_str(&st->header,
                    json_get(&st->header, json_get(&st->header, JSON_ROOT, "__metadata__"), key));
}

TL_FN tl_status st_fault(const tl_file *file, const ck_tensor *t, const char *field,
                         const char *found, const char *allowed, tl_error *err)
{
    tl_quoted q, name;
    return tl_fail(err, TL_ERR_FORMAT, "%s: tensor \"%s\": %s: found %s, allowed: %s",
                   tl_path(&q, file->path),
                   tl_quote(&name, t->name, t->name_length), field, found, allowed);
}

TL_FN tl_status st_dtype(const tl_file *file, const json_doc *doc, json_id id, ck_tensor *t,
                         tl_error *err)
{
    json_text text = json_str(doc, id);
    tl_quoted q;
    for (int i = 0; i < CK_DTYPE_COUNT; i++) {
        if (ck_types[i].block == 1 && json_is(text, ck_types[i].name)) {
            t->dtype = (ck_dtype)i;
            return TL_OK;
        }
    }
    return st_fault(
        file, t, "dtype", json_brief(&q, doc, id),
        "F64, F32, F16, BF16, F8_E4M3, F8_E5M2, I64, I32, I16, I8, U64, U32, U16, U8, BOOL", err);
}

/* One entry of the header; begin and end of its data go to t->offset and *end, still relative. */
TL_FN tl_status st_tensor(const tl_file *file, const json_doc *doc, json_id entry, ck_tensor *t,
                          tl_error *err)
{
    json_text name = json_key(doc, entry);
    json_id shape, offsets, id;
    const char *fault = ck_name_fault(name.ptr, name.len);
    uint64_t end;
    tl_quoted q;
    char found[64], allowed[64];
    memset(t, 0, sizeof *t);
    t->name = name.ptr;
    t->name_length = name.len;
    if (fault != NULL) {
        return st_fault(file, t, "name", fault, "1 to 1024 bytes without NUL", err);
    }
    if (json_kind(doc, entry) != JSON_OBJECT || json_count(doc, entry) != 3) {
        return st_fault(file, t, "entry", json_brief(&q, doc, entry),
                        "an object of dtype, shape and data_offsets", err);
    }
    if (st_dtype(file, doc, json_get(doc, entry, "dtype"), t, err) != TL_OK) {
        return TL_ERR_FORMAT;
    }
    shape = json_get(doc, entry, "shape");
    if (json_kind(doc, shape) != JSON_ARRAY || json_count(doc, shape) > CK_MAX_RANK) {
        return st_fault(file, t, "shape", json_brief(&q, doc, shape),
                        "an array of at most 8 integers", err);
    }
    for (id = json_first(doc, shape); id != JSON_NONE; id = json_next(doc, id)) {
        if (!json_u64(doc, id, &t->shape[t->rank++])) {
            return st_fault(file, t, "shape", json_brief(&q, doc, id), "integers from 0 to 2^64-1",
                            err);
        }
    }
    if (!ck_measure(t)) {
        return st_fault(file, t, "shape", ck_shape_text(&q, t->rank, t->shape),
                        "a size below 2^63 bytes", err);
    }
    offsets = json_get(doc, entry, "data_offsets");
    if (json_kind(doc, offsets) != JSON_ARRAY || json_count(doc, offsets) != 2) {
        return st_fault(file, t, "data_offsets", json_brief(&q, doc, offsets), "[begin, end]", err);
    }
    id = json_first(doc, offsets);
    if (!json_u64(doc, id, &t->offset) || !json_u64(doc, json_next(doc, id), &end)) {
        id = json_u64(doc, id, &t->offset) ? json_next(doc, id) : id;
        return st_fault(file, t, "data_offsets", json_brief(&q, doc, id),
                        "integers from 0 to 2^64-1", err);
    }
    if (end < t->offset || end - t->offset != t->bytes) {
        (void)snprintf(found, sizeof found, "[%llu, %llu]", (unsigned long long)t->offset,
                       (unsigned long long)end);
        (void)snprintf(allowed, sizeof allowed, "%llu bytes, as dtype and shape say",
                       (unsigned long long)t->bytes);
        return st_fault(file, t, "data_offsets", found, allowed, err);
    }
    return TL_OK;
}

TL_FN tl_status st_check_metadata(const tl_file *file, const json_doc *doc, json_id meta,
                                  tl_error *err)
{
    tl_quoted q, b;
    json_id id = meta;
    int ok = json_kind(doc, meta) == JSON_OBJECT;
    for (json_id m = json_first(doc, meta); ok && m != JSON_NONE; m = json_next(doc, m)) {
        ok = json_kind(doc, m) == JSON_STRING;
        id = m;
    }
    if (!ok) {
        return tl_fail(err, TL_ERR_FORMAT,
                       "%s: __metadata__: found %s, allowed: an object of strings",
                       tl_path(&q, file->path), json_brief(&b, doc, id));
    }
    return TL_OK;
}

TL_FN int st_place_order(const void *context, uint32_t a, uint32_t b)
{
    const ck_tensor *t = (const ck_tensor *)context;
    if (t[a].offset != t[b].offset) {
        return t[a].offset < t[b].offset ? -1 : 1;
    }
    return t[a].bytes < t[b].bytes ? -1 : t[a].bytes > t[b].bytes;
}

/* The data must tile [0, data_size) exactly. Makes the offsets absolute. */
TL_FN tl_status st_check_places(st_file *st, const tl_file *file, uint64_t data, tl_error *err)
{
    uint64_t *keys = (uint64_t *)tl_malloc(st->count, 2 * sizeof keys[0], err), at = 0;
    tl_status status = keys == NULL ? TL_ERR_MEMORY : TL_OK;
    tl_quoted q;
    char found[64], allowed[64];
    for (size_t i = 0; status == TL_OK && i < st->count; i++) {
        keys[i] = i;
    }
    if (status == TL_OK) {
        tl_sort(keys, keys + st->count, st->count, st_place_order, st->tensors);
    }
    for (size_t i = 0; status == TL_OK && i < st->count; i++) {
        ck_tensor *t = &st->tensors[keys[i]];
        if (t->offset != at) {
            (void)snprintf(found, sizeof found, "%s at %llu",
                           t->offset < at ? "an overlap" : "a hole", (unsigned long long)t->offset);
            (void)snprintf(allowed, sizeof allowed, "%llu, where the tensor before ends",
                           (unsigned long long)at);
            status = st_fault(file, t, "data_offsets", found, allowed, err);
        } else if (t->bytes > file->size - data - at) {
            (void)snprintf(found, sizeof found, "an end at byte %llu",
                           (unsigned long long)(data + at) + (unsigned long long)t->bytes);
            (void)snprintf(allowed, sizeof allowed, "the file's %llu bytes",
                           (unsigned long long)file->size);
            status = st_fault(file, t, "data_offsets", found, allowed, err);
        }
        at += t->bytes;
        t->offset += data;
    }
    if (status == TL_OK && at != file->size - data) {
        status =
            tl_fail(err, TL_ERR_FORMAT,
                    "%s: byte %llu: found %llu bytes behind the last tensor, "
                    "allowed: none",
                    tl_path(&q, file->path), (unsigned long long)(data + at),
                    (unsigned long long)(file->size - data - at));
    }
    tl_free(keys);
    return status;
}

TL_FN tl_status st_read_header(st_file *st, const tl_file *file, uint64_t *data, tl_error *err)
{
    unsigned char head[9];
    uint64_t length;
    char *text;
    tl_quoted q;
    tl_status status;
    tl_path(&q, file->path);
    if (file->size < 8) {
        return tl_fail(err, TL_ERR_FORMAT,
                       "%s: found %llu bytes, allowed: at least 8 (safetensors)", q.text,
                       (unsigned long long)file->size);
    }
    status = tl_file_read(file, 0, head, file->size < 9 ? 8 : 9, err);
    if (status != TL_OK) {
        return status;
    }
    length = tl_le64(head);
    if (length > ST_MAX_HEADER || length > file->size - 8 || length < 2) {
        return tl_fail(
            err, TL_ERR_FORMAT,
            "%s: byte 0: header length: found %llu, allowed: 2 to %llu "
            "(safetensors)",
            q.text, (unsigned long long)length,
            (unsigned long long)(file->size - 8 < ST_MAX_HEADER ? file->size - 8 : ST_MAX_HEADER));
    }
    if (head[8] != '{') {
        return tl_fail(err, TL_ERR_FORMAT, "%s: byte 8: found 0x%02x, allowed: '{' (safetensors)",
                       q.text, head[8]);
    }
    text = (char *)tl_malloc(length, 1, err);
    if (text == NULL) {
        return TL_ERR_MEMORY;
    }
    status = tl_file_read(file, 8, text, (size_t)length, err);
    if (status == TL_OK) {
        status = json_parse_at(text, (size_t)length, file->path, 8, 0, &st->header, err);
    }
    if (status != TL_OK) {
        tl_free(text);
        return status;
    }
    st->header.owned = text;
    *data = 8 + length;
    return TL_OK;
}

TL_FN tl_status st_open(st_file *st, const tl_file *file, tl_error *err)
{
    uint64_t data = 0;
    const json_doc *doc = &st->header;
    tl_status status;
    memset(st, 0, sizeof *st);
    status = st_read_header(st, file, &data, err);
    if (status == TL_OK) {
        st->tensors =
            (ck_tensor *)tl_malloc(json_count(doc, JSON_ROOT), sizeof st->tensors[0], err);
        status = st->tensors == NULL ? TL_ERR_MEMORY : TL_OK;
    }
    for (json_id m = json_first(doc, JSON_ROOT); status == TL_OK && m != JSON_NONE;
         m = json_next(doc, m)) {
        if (json_is(json_key(doc, m), "__metadata__")) {
            status = st_check_metadata(file, doc, m, err);
        } else {
            status = st_tensor(file, doc, m, &st->tensors[st->count++], err);
        }
    }
    if (status == TL_OK) {
        status = st_check_places(st, file, data, err);
    }
    if (status != TL_OK) {
        st_free(st);
    }
    return status;
}

#endif /* TL_SAFETENSORS_H */
