/*  sentencepiece.h: a SentencePiece model (tokenizer.model) into the tokenizer section of a .mamba
 *  file.
 *
 *      status = voc_read_sentencepiece("tokenizer.model", &section, &bytes, &err);
 *
 *  Read are models of type BPE with byte fallback that keep text as it is: no character map, no
 *  removal of spaces, U+2581 for spaces. Others (Unigram is the common one) are refused by name, and
 *  so are pieces that are user-defined or unused, and fields that this reader does not know, except
 *  in the part that tells how the model was trained. Control pieces and the unknown one become
 *  special tokens, found in text only on request. Bytes that are no UTF-8 fall back to their pieces
 *  too; the original replaces them by U+FFFD first. bos, eos and pad are those of the model itself.
 *
 *  The file is a protocol buffer: fields of (number << 3 | kind of value), then the value.
 */
#ifndef TL_SENTENCEPIECE_H
#define TL_SENTENCEPIECE_H

#include "vocab.h"

#define SP_LIMIT ((uint64_t)16 << 20)

enum {
    SP_VARINT = 0,
    SP_FIXED64 = 1,
    SP_BYTES = 2,
    SP_FIXED32 = 5
}; /* kinds of values */

enum {
    SP_NORMAL = 1,
    SP_UNKNOWN = 2,
    SP_CONTROL = 3,
    SP_USER = 4,
    SP_UNUSED = 5,
    SP_BYTE = 6
}; /* types of pieces */

typedef struct {
    uint64_t number, value; /* value: of the numbers; of bytes the length */
    unsigned kind;
    size_t key, from; /* where the field and where its bytes are */
} sp_field;

typedef struct {
    voc_reader r;
    const unsigned char *p; /* the file */
    size_t size;
    float *scores;
    uint64_t model_type;
    int byte_fallback, space_suffix, prefix, remove_spaces, escape;
    int seen_trainer, seen_normalizer;
    voc_ids ids;
} sp_model;

TL_FN tl_status sp_bad(const sp_model *s, size_t at, const char *what)
{
    return tl_fail(s->r.err, TL_ERR_FORMAT, "%s: byte %llu: %s", s->r.name, (unsigned long long)at,
                   what);
}

TL_FN tl_status sp_refuse(const sp_model *s, const char *field, const char *found,
                          const char *supported)
{
    return tl_fail(s->r.err, TL_ERR_UNSUPPORTED, "%s: %s: found %s, supported: %s", s->r.name,
                   field, found, supported);
}

TL_FN int sp_varint(const sp_model *s, size_t *at, size_t end, uint64_t *value)
{
    size_t from = *at;
    *value = 0;
    for (int shift = 0; shift < 70; shift += 7) {
        unsigned char b;
        if (*at == end) {
            sp_bad(s, from, "found the end within a number");
            return 0;
        }
        b = s->p[(*at)++];
        if (shift == 63 && b > 1) {
            break;
        }
        *value |= (uint64_t)(b & 0x7F) << shift;
        if (b < 0x80) {
            return 1;
        }
    }
    sp_bad(s, from, "found a number of more than 64 bits");
    return 0;
}

/* The field at *at, which moves behind it. 0: the end, or an error. */
TL_FN int sp_next(const sp_model *s, size_t *at, size_t end, sp_field *f)
{
    uint64_t key, fixed = 0;
    f->key = *at;
    if (*at == end || !sp_varint(s, at, end, &key)) {
        return 0;
    }
    f->number = key >> 3;
    f->kind = (unsigned)(key & 7);
    if (f->number == 0) {
        sp_bad(s, f->key, "found field 0, allowed: 1 and on");
        return 0;
    }
    if (f->kind == SP_VARINT) {
        return sp_varint(s, at, end, &f->value);
    }
    if (f->kind == SP_BYTES) {
        if (!sp_varint(s, at, end, &f->value)) {
            return 0;
        }
        fixed = f->value;
    } else if (f->kind == SP_FIXED32 || f->kind == SP_FIXED64) {
        fixed = f->kind == SP_FIXED32 ? 4 : 8;
    } else {
        sp_bad(s, f->key, "found a value of unknown kind, allowed: 0, 1, 2, 5");
        return 0;
    }
    if (fixed > end - *at) {
        sp_bad(s, f->key, "found a value that is longer than what is around it");
        return 0;
    }
    f->from = *at;
    *at += (size_t)fixed;
    if (f->kind == SP_FIXED32) {
        f->value = tl_le32(s->p + f->from);
    }
    return 1;
}

/* A field that this reader knows must have its kind. */
TL_FN int sp_is(const sp_model *s, const sp_field *f, const char *part, unsigned kind)
{
    if (f->kind != kind) {
        tl_fail(s->r.err, TL_ERR_FORMAT,
                "%s: byte %llu: %s, field %llu: found a value of kind %u, allowed: %u", s->r.name,
                (unsigned long long)f->key, part, (unsigned long long)f->number, f->kind, kind);
        return 0;
    }
    return 1;
}

TL_FN tl_status sp_unknown(const sp_model *s, const sp_field *f, const char *part)
{
    return tl_fail(s->r.err, TL_ERR_UNSUPPORTED, "%s: byte %llu: %s: unknown field %llu", s->r.name,
                   (unsigned long long)f->key, part, (unsigned long long)f->number);
}

/* How text is normalized; `denormalizer`: how decoded text is, which only may say that it is not. */
TL_FN tl_status sp_normalizer(sp_model *s, size_t at, size_t end, int denormalizer)
{
    const char *part = denormalizer ? "denormalizer_spec" : "normalizer_spec";
    sp_field f;
    while (sp_next(s, &at, end, &f)) {
        int is_flag = f.number >= 3 && f.number <= 5;
        if (f.number < 1 || f.number > 6) {
            return sp_unknown(s, &f, part);
        }
        if (!sp_is(s, &f, part, is_flag ? SP_VARINT : SP_BYTES)) {
            return s->r.err->status;
        }
        if (f.number == 2 && f.value != 0) {
            return sp_refuse(s, part, "a precompiled_charsmap", "none (rule \"identity\")");
        }
        if (is_flag && !denormalizer) {
            *(f.number == 3 ? &s->prefix : f.number == 4 ? &s->remove_spaces : &s->escape) =
                f.value != 0;
        }
    }
    return s->r.err->status;
}

/* How the model was trained: only some of it matters to its use. */
TL_FN tl_status sp_trainer(sp_model *s, size_t at, size_t end)
{
    sp_field f;
    while (sp_next(s, &at, end, &f)) {
        uint32_t id = f.value < MBI_TOK_MAX_IDS ? (uint32_t)f.value : VOC_NONE;
        if ((f.number == 3 || f.number == 24 || f.number == 35
             || (f.number >= 41 && f.number <= 43))
            && !sp_is(s, &f, "trainer_spec", SP_VARINT)) {
            return s->r.err->status;
        }
        switch (f.number) {
        case 3: s->model_type = f.value; break;
        case 24: s->space_suffix = f.value != 0; break;
        case 35: s->byte_fallback = f.value != 0; break;
        case 41: s->ids.bos = id; break;
        case 42: s->ids.eos = id; break;
        case 43: s->ids.pad = id; break;
        default: break;
        }
    }
    return s->r.err->status;
}

TL_FN tl_status sp_piece_type(const sp_model *s, const voc_token *t, uint64_t type)
{
    char found[64];
    tl_quoted q;
    int byte = voc_byte_token(t->ptr, t->len) >= 0;
    if (type == SP_USER || type == SP_UNUSED) {
        (void)snprintf(found, sizeof found, "piece %lu %s", (unsigned long)t->id,
                       type == SP_USER ? "user-defined" : "unused");
        return sp_refuse(s, "pieces", found, "normal, unknown, control and byte ones");
    }
    if (type < SP_NORMAL || type > SP_BYTE || byte != (type == SP_BYTE)) {
        return tl_fail(s->r.err, TL_ERR_FORMAT,
                       "%s: pieces: found type %llu of piece %lu \"%s\", allowed: 1 to 6, 6 for "
                       "\"<0x00>\" to \"<0xFF>\" only",
                       s->r.name, (unsigned long long)type, (unsigned long)t->id,
                       tl_quote(&q, t->ptr, t->len));
    }
    return TL_OK;
}

TL_FN tl_status sp_piece(sp_model *s, size_t at, size_t end)
{
    voc_reader *r = &s->r;
    voc_token *t = &r->tokens[r->n_tokens];
    uint64_t type = SP_NORMAL;
    uint32_t score = 0;
    size_t start = at;
    sp_field f;
    t->id = (uint32_t)r->n_tokens;
    while (sp_next(s, &at, end, &f)) {
        static const unsigned kinds[4] = {0, SP_BYTES, SP_FIXED32, SP_VARINT};
        if (f.number > 3) {
            return sp_unknown(s, &f, "pieces");
        }
        if (!sp_is(s, &f, "pieces", kinds[f.number])) {
            return r->err->status;
        }
        if (f.number == 1) {
            t->ptr = (const char *)s->p + f.from;
            t->len = (uint32_t)f.value;
        } else if (f.number == 2) {
            score = (uint32_t)f.value;
        } else {
            type = f.value;
        }
    }
    if (r->err->status != TL_OK) {
        return r->err->status;
    }
    if (t->len == 0 || t->len > MBI_TOK_MAX_ADDED_BYTES) {
        return sp_bad(s, start, "found a piece without text or too long, allowed: 1 to 1024 bytes");
    }
    if (sp_piece_type(s, t, type) != TL_OK) {
        return r->err->status;
    }
    if (type == SP_UNKNOWN || type == SP_CONTROL) {
        if (!voc_is_plain(t->ptr, t->len)) {
            return sp_refuse(s, "pieces", "a control piece with U+2581", "none");
        }
        r->added[2 * r->n_added] = t->id;
        r->added[2 * r->n_added + 1] = MBI_ADDED_SPECIAL;
        t->added = (uint32_t)++r->n_added;
    }
    s->scores[r->n_tokens] = tl_f32_of_bits(score);
    r->sorted[r->n_tokens] = (uint64_t)tl_hash(t->ptr, t->len) << 32 | r->n_tokens;
    r->n_tokens++;
    r->n_ids = (uint32_t)r->n_tokens;
    return TL_OK;
}

/* All fields; first only counts the pieces, then reads. */
TL_FN tl_status sp_fields(sp_model *s, int counting, size_t *n_pieces)
{
    static const char *const parts[] = {"", "pieces", "trainer_spec", "normalizer_spec",
                                        "self_test_data", "denormalizer_spec"};
    sp_field f;
    size_t at = 0;
    while (sp_next(s, &at, s->size, &f)) {
        size_t end = f.from + (size_t)f.value;
        tl_status status = TL_OK;
        if (f.number > 5) {
            return sp_unknown(s, &f, "model");
        }
        if (!sp_is(s, &f, parts[f.number], SP_BYTES)) {
            return s->r.err->status;
        }
        if (counting) {
            *n_pieces += f.number == 1;
            if ((f.number == 2 && s->seen_trainer++ != 0)
                || (f.number == 3 && s->seen_normalizer++ != 0)) {
                return sp_bad(s, f.key, "found a second trainer_spec or normalizer_spec, allowed: 1");
            }
            continue;
        }
        status = f.number == 1   ? sp_piece(s, f.from, end)
                 : f.number == 2 ? sp_trainer(s, f.from, end)
                 : f.number == 4 ? TL_OK
                                 : sp_normalizer(s, f.from, end, f.number == 5);
        if (status != TL_OK) {
            return status;
        }
    }
    return s->r.err->status;
}

/* What the model asks for beyond its pieces. */
TL_FN tl_status sp_options(sp_model *s)
{
    static const char *const types[] = {"0", "UNIGRAM", "BPE", "WORD", "CHAR"};
    if (s->model_type != 2) {
        return sp_refuse(s, "trainer_spec.model_type",
                         s->model_type < 5 ? types[s->model_type] : "an unknown type", "BPE");
    }
    if (!s->byte_fallback) {
        return sp_refuse(s, "trainer_spec.byte_fallback", "false", "true");
    }
    if (s->space_suffix) {
        return sp_refuse(s, "trainer_spec.treat_whitespace_as_suffix", "true", "false");
    }
    if (s->remove_spaces) {
        return sp_refuse(s, "normalizer_spec.remove_extra_whitespaces", "true", "false");
    }
    if (!s->escape) {
        return sp_refuse(s, "normalizer_spec.escape_whitespaces", "false", "true");
    }
    s->r.flags = s->prefix ? MBI_TOK_PREFIX_SPACE | MBI_TOK_PREFIX_ALWAYS | MBI_TOK_PREFIX_FIRST
                                 | MBI_TOK_STRIP_SPACE
                           : 0u;
    s->r.needs_all_bytes = 1;
    return TL_OK;
}

TL_FN tl_status sp_build(sp_model *s, unsigned char **section, size_t *bytes)
{
    voc_reader *r = &s->r;
    size_t n = 0;
    if (sp_fields(s, 1, &n) != TL_OK) {
        return r->err->status;
    }
    r->tokens = (voc_token *)tl_calloc(n, sizeof *r->tokens, r->err);
    r->sorted = (uint64_t *)tl_malloc(n, sizeof *r->sorted, r->err);
    r->added = (uint32_t *)tl_malloc(n, 2 * sizeof *r->added, r->err);
    s->scores = (float *)tl_malloc(n, sizeof *s->scores, r->err);
    if (r->err->status != TL_OK) {
        return r->err->status;
    }
    if (sp_fields(s, 0, &n) != TL_OK || sp_options(s) != TL_OK) {
        return r->err->status;
    }
    r->n_model = r->n_tokens;
    r->n_added_raw = r->n_added;
    if (voc_sort_tokens(r) != TL_OK || voc_index(r) != TL_OK
        || voc_scored_merges(r, s->scores) != TL_OK || voc_chars(r) != TL_OK) {
        return r->err->status;
    }
    return voc_finish(r, s->ids, section, bytes);
}

/* The section of a SentencePiece model of n bytes; `name` is for messages. */
TL_FN tl_status voc_convert_sentencepiece(const unsigned char *model, size_t n, const char *name,
                                          unsigned char **section, size_t *bytes, tl_error *err)
{
    sp_model s;
    tl_quoted q;
    tl_error own;
    tl_status status;
    memset(&s, 0, sizeof s);
    memset(&own, 0, sizeof own);
    *section = NULL;
    *bytes = 0;
    s.r.name = tl_path(&q, name);
    s.r.err = &own;
    s.r.kind = MBI_TOK_CHARS;
    s.r.tokens_field = "pieces";
    s.r.merges_field = "pieces";
    s.p = model;
    s.size = n;
    s.model_type = 1;
    s.prefix = s.remove_spaces = s.escape = 1; /* what the format takes for absent */
    s.ids.bos = 1;
    s.ids.eos = 2;
    s.ids.pad = VOC_NONE;
    status = sp_build(&s, section, bytes);
    voc_free(&s.r);
    tl_free(s.scores);
    if (status != TL_OK) {
        *bytes = 0;
        tl_fail(err, own.status, "%s", own.message);
    }
    return status;
}

TL_FN tl_status voc_read_sentencepiece(const char *path, unsigned char **section, size_t *bytes,
                                       tl_error *err)
{
    char *model;
    size_t n;
    tl_status status = tl_read_all(path, SP_LIMIT, &model, &n, err);
    *section = NULL;
    *bytes = 0;
    if (status == TL_OK) {
        status = voc_convert_sentencepiece((const unsigned char *)model, n, path, section, bytes,
                                           err);
        tl_free(model);
    }
    return status;
}

#endif /* TL_SENTENCEPIECE_H */
