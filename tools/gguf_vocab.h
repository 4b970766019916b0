/*  gguf_vocab.h: the tokenizer of a GGUF file into the tokenizer section of a .mamba file.
 *
 *      status = voc_read_gguf(ck_gguf(ck), &ck->files[0].file, ids, &section, &bytes, &err);
 *
 *  Read are vocabularies of model "gpt2": byte-level BPE. tokenizer.ggml.pre names how text is cut
 *  into words; the names whose cut is GPT-2's or Falcon's are taken, every other one is refused by
 *  name. Normal tokens are written in GPT-2's byte alphabet; control (3), unknown (2) and
 *  user-defined (4) ones are their own text, searched in the raw text; unused ones (5) are places
 *  that only fill the embedding.
 *    Those of model "llama" are SentencePiece's: U+2581 for spaces, merges by scores, bytes (6) as
 *  "<0x0A>". A space is put in front of text, also behind special tokens, unless
 *  tokenizer.ggml.add_space_prefix says no.
 *
 *  GGUF does not say whether text is brought to NFC first. This reader does so for the vocabularies
 *  that were published with NFC: "mpt" and "olmo" (both of the GPT-NeoX family), and the vocabulary
 *  of GPT-NeoX-20B itself, known by its tokens, whatever its file says: early files lack
 *  tokenizer.ggml.pre or say "default" or "gpt-2".
 */
#ifndef TL_GGUF_VOCAB_H
#define TL_GGUF_VOCAB_H

#include "gguf.h"
#include "vocab.h"

#define VOC_GGUF_LIMIT ((uint64_t)64 << 20) /* bytes of all tokens, of all merges */
#define VOC_CURE "; give the tokenizer.json with --tokenizer FILE, or --tokenizer none for ids only"

enum {
    VOC_NORMAL = 1,
    VOC_UNKNOWN,
    VOC_CONTROL,
    VOC_USER,
    VOC_UNUSED,
    VOC_BYTE
}; /* tokenizer.ggml.token_type */

typedef struct {
    voc_reader r;
    const gguf_file *g;
    const tl_file *file;
    const gguf_value *tokens, *types, *merges, *scores;
    char *token_text, *merge_text, *type_bytes, *score_bytes; /* the arrays as in the file */
    float *token_scores;                                      /* by index in r.tokens */
    size_t token_bytes, merge_bytes;
} voc_gguf;

/* One of the arrays; NULL if absent and not required. */
TL_FN const gguf_value *voc_gguf_array(const voc_gguf *v, const char *key, gguf_type type,
                                       uint64_t count, int required)
{
    const gguf_value *a = gguf_find(v->g, key);
    tl_quoted q;
    char found[64], allowed[96];
    if (a == NULL && !required) {
        return NULL;
    }
    (void)snprintf(allowed, sizeof allowed, "an array of %s", gguf_types[type].name);
    if (a == NULL || !a->is_array || a->type != type) {
        gguf_value_fault(v->file, key, a, a != NULL ? gguf_kind(&q, a) : NULL, allowed, v->r.err);
        return NULL;
    }
    if (count != UINT64_MAX && a->count != count) {
        (void)snprintf(found, sizeof found, "%llu elements", (unsigned long long)a->count);
        (void)snprintf(allowed, sizeof allowed, "one for each of the %llu tokens",
                       (unsigned long long)count);
        gguf_value_fault(v->file, key, a, found, allowed, v->r.err);
        return NULL;
    }
    if (a->bytes > VOC_GGUF_LIMIT || a->count > MBI_TOK_MAX_IDS) {
        (void)snprintf(found, sizeof found, "%llu elements in %llu bytes",
                       (unsigned long long)a->count, (unsigned long long)a->bytes);
        gguf_value_fault(v->file, key, a, found, "at most 2^24 in 64 MiB", v->r.err);
        return NULL;
    }
    return a;
}

TL_FN char *voc_gguf_bytes(const voc_gguf *v, const gguf_value *a)
{
    char *text = (char *)tl_malloc(a->bytes, 1, v->r.err);
    if (text != NULL
        && tl_file_read(v->file, a->offset, text, (size_t)a->bytes, v->r.err) != TL_OK) {
        tl_free(text);
        text = NULL;
    }
    return text;
}

/* The string at *at of an array's bytes; a file that changed since it was checked ends in an error.
 */
TL_FN int voc_gguf_next(const voc_gguf *v, const char *text, size_t bytes, size_t *at,
                        json_text *out)
{
    uint64_t length;
    if (bytes - *at < 8) {
        tl_fail(v->r.err, TL_ERR_IO, "%s: the file changed while being read", v->r.name);
        return 0;
    }
    length = tl_le64((const unsigned char *)text + *at);
    *at += 8;
    if (length > bytes - *at) {
        tl_fail(v->r.err, TL_ERR_IO, "%s: the file changed while being read", v->r.name);
        return 0;
    }
    out->ptr = text + *at;
    out->len = (size_t)length;
    *at += (size_t)length;
    return 1;
}

TL_FN tl_status voc_gguf_type_fault(const voc_gguf *v, uint64_t i, uint32_t type)
{
    char found[96];
    (void)snprintf(found, sizeof found, "type %lu of token %llu", (unsigned long)type,
                   (unsigned long long)i);
    return gguf_value_fault(
        v->file, "tokenizer.ggml.token_type", v->types, found,
        v->r.kind == MBI_TOK_CHARS
            ? "1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte; "
              "6 for \"<0x00>\" to \"<0xFF>\" only, no U+2581 in 2 to 4"
            : "1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused",
        v->r.err);
}

/* Is this the text of a place without a token, "[PAD" its id "]"? Early files give it type 4. */
TL_FN int voc_gguf_is_pad(json_text text, uint64_t id)
{
    char name[32];
    int n = snprintf(name, sizeof name, "[PAD%llu]", (unsigned long long)id);
    return text.len == (size_t)n && memcmp(text.ptr, name, text.len) == 0;
}

/* Does the text of a token of a vocabulary with byte fallback go with its type? */
TL_FN int voc_gguf_goes_with(json_text text, uint32_t type)
{
    int byte = voc_byte_token(text.ptr, text.len) >= 0;
    return type == VOC_BYTE ? byte : type == VOC_NORMAL ? !byte : voc_is_plain(text.ptr, text.len);
}

/* All tokens that are in use, by rising id. */
TL_FN tl_status voc_gguf_tokens(voc_gguf *v)
{
    voc_reader *r = &v->r;
    size_t at = 0;
    for (uint64_t i = 0; i < v->tokens->count; i++) {
        json_text text;
        uint32_t type = VOC_NORMAL;
        voc_token *t = &r->tokens[r->n_tokens];
        char found[96];
        if (!voc_gguf_next(v, v->token_text, v->token_bytes, &at, &text)) {
            return r->err->status;
        }
        if (v->types != NULL) {
            type = tl_le32((const unsigned char *)v->type_bytes + 4 * i);
        }
        if (type < VOC_NORMAL || type > (r->kind == MBI_TOK_CHARS ? VOC_BYTE : VOC_UNUSED)) {
            return voc_gguf_type_fault(v, i, type);
        }
        if (type == VOC_UNUSED || (type == VOC_USER && voc_gguf_is_pad(text, i))) {
            continue;
        }
        if (r->kind == MBI_TOK_CHARS && !voc_gguf_goes_with(text, type)) {
            return voc_gguf_type_fault(v, i, type);
        }
        if (text.len == 0 || (type != VOC_NORMAL && text.len > MBI_TOK_MAX_ADDED_BYTES)) {
            (void)snprintf(found, sizeof found, "token %llu of %llu bytes", (unsigned long long)i,
                           (unsigned long long)text.len);
            return gguf_value_fault(v->file, "tokenizer.ggml.tokens", v->tokens, found,
                                    "1 byte or more, 1 to 1024 for special ones", r->err);
        }
        t->ptr = text.ptr;
        t->len = (uint32_t)text.len;
        t->id = (uint32_t)i;
        if (v->token_scores != NULL) {
            v->token_scores[r->n_tokens] =
                tl_f32_of_bits(tl_le32((const unsigned char *)v->score_bytes + 4 * i));
        }
        if (type != VOC_NORMAL && type != VOC_BYTE) {
            r->added[2 * r->n_added] = (uint32_t)i;
            r->added[2 * r->n_added + 1] = type == VOC_USER ? 0 : MBI_ADDED_SPECIAL;
            t->added = (uint32_t)++r->n_added;
        }
        r->sorted[r->n_tokens] = (uint64_t)tl_hash(text.ptr, text.len) << 32 | r->n_tokens;
        r->n_tokens++;
        r->n_ids = (uint32_t)i + 1;
    }
    r->n_model = r->n_tokens;
    r->n_added_raw = r->n_added;
    return TL_OK;
}

/* Sorts the tokens; refuses two of the same text. */
TL_FN tl_status voc_gguf_sort(voc_gguf *v)
{
    voc_reader *r = &v->r;
    size_t twin;
    tl_status status = voc_sort(r, &twin);
    if (status == TL_OK && twin != 0) {
        const voc_token *t = &r->tokens[(uint32_t)r->sorted[twin]];
        char found[200];
        tl_quoted q;
        (void)snprintf(found, sizeof found, "\"%s\" as token %lu and %lu",
                       tl_quote(&q, t->ptr, t->len),
                       (unsigned long)r->tokens[(uint32_t)r->sorted[twin - 1]].id,
                       (unsigned long)t->id);
        status = gguf_value_fault(v->file, "tokenizer.ggml.tokens", v->tokens, found,
                                  "each text once", r->err);
    }
    return status;
}

TL_FN tl_status voc_gguf_merges(voc_gguf *v)
{
    voc_joined joined = {NULL, 0};
    tl_status status = TL_OK;
    size_t at = 0;
    for (uint64_t i = 0; i < v->merges->count && status == TL_OK; i++) {
        json_text whole, half[3];
        tl_quoted q;
        if (!voc_gguf_next(v, v->merge_text, v->merge_bytes, &at, &whole)) {
            status = v->r.err->status;
        } else if (!voc_split(whole, &half[0], &half[1])) {
            status = tl_fail(v->r.err, TL_ERR_FORMAT,
                             "%s: %s[%llu]: found \"%s\", allowed: \"left right\"", v->r.name,
                             v->r.merges_field, (unsigned long long)i,
                             tl_quote(&q, whole.ptr, whole.len));
        } else {
            status = voc_merge(&v->r, half, &joined);
        }
    }
    tl_free(joined.ptr);
    return status;
}

/* Is this the vocabulary of GPT-NeoX-20B? By a hash over the texts of its ids 2 to 50253. */
TL_FN int voc_gguf_is_neox(const voc_reader *r)
{
    uint32_t hash = 2166136261u;
    if (r->n_tokens < 50254 || r->tokens[50253].id != 50253
        || tl_compare(r->tokens[0].ptr, r->tokens[0].len, "<|endoftext|>", 13) != 0) {
        return 0;
    }
    for (size_t i = 2; i < 50254; i++) {
        for (uint32_t k = 0; k <= r->tokens[i].len; k++) { /* each text and a 0 */
            unsigned char c = k < r->tokens[i].len ? (unsigned char)r->tokens[i].ptr[k] : 0;
            hash = (hash ^ c) * 16777619u;
        }
    }
    return hash == 0xb1bbaf52u;
}

/* A boolean that may be absent; 0: of another type, and said so. */
TL_FN int voc_gguf_flag(const voc_gguf *v, const char *key, int missing, int *value)
{
    const gguf_value *a = gguf_find(v->g, key);
    tl_quoted q;
    *value = missing;
    if (a != NULL && (a->is_array || a->type != GGUF_BOOL)) {
        gguf_value_fault(v->file, key, a, gguf_kind(&q, a), "a bool", v->r.err);
        return 0;
    }
    *value = a != NULL ? a->bits != 0 : missing;
    return 1;
}

/* The options of SentencePiece's vocabularies. */
TL_FN tl_status voc_gguf_spaces(voc_gguf *v)
{
    static const char map_key[] = "tokenizer.ggml.precompiled_charsmap";
    static const char extra_key[] = "tokenizer.ggml.remove_extra_whitespaces";
    const gguf_value *pre = gguf_find(v->g, "tokenizer.ggml.pre");
    const gguf_value *map = gguf_find(v->g, map_key);
    tl_error *err = v->r.err;
    int prefix, extra;
    tl_quoted q;
    if (!voc_gguf_flag(v, "tokenizer.ggml.add_space_prefix", 1, &prefix)
        || !voc_gguf_flag(v, extra_key, 0, &extra)) {
        return err->status;
    }
    if (pre != NULL && !gguf_is(v->file, pre, "default", err)) {
        gguf_value_fault(v->file, "tokenizer.ggml.pre", pre, gguf_brief(&q, v->file, pre, err),
                         "none or default" VOC_CURE, err);
    } else if (map != NULL) {
        gguf_value_fault(v->file, map_key, map, gguf_kind(&q, map), "none" VOC_CURE, err);
    } else if (extra) {
        gguf_value_fault(v->file, extra_key, gguf_find(v->g, extra_key), "true", "false" VOC_CURE,
                         err);
    }
    if (err->status == TL_ERR_FORMAT) {
        err->status = TL_ERR_UNSUPPORTED;
    }
    v->r.flags = prefix ? MBI_TOK_PREFIX_SPACE | MBI_TOK_PREFIX_ALWAYS | MBI_TOK_STRIP_SPACE : 0u;
    v->r.needs_all_bytes = 1;
    return err->status;
}

/* How text is cut, and whether it is normalised. */
TL_FN tl_status voc_gguf_pre(voc_gguf *v)
{
    static const struct {
        const char *name;
        int nfc;
        uint32_t split;
    } known[] = {{"gpt-2", 0, MBI_TOK_SPLIT_GPT2},    {"phi-2", 0, MBI_TOK_SPLIT_GPT2},
                 {"mpt", 1, MBI_TOK_SPLIT_GPT2},      {"olmo", 1, MBI_TOK_SPLIT_GPT2},
                 {"jais", 0, MBI_TOK_SPLIT_GPT2},     {"trillion", 0, MBI_TOK_SPLIT_GPT2},
                 {"falcon", 0, MBI_TOK_SPLIT_FALCON}, {"granite-docling", 0, MBI_TOK_SPLIT_GPT2}};
    const gguf_value *pre = gguf_find(v->g, "tokenizer.ggml.pre");
    const gguf_value *space = gguf_find(v->g, "tokenizer.ggml.add_space_prefix");
    int neox = voc_gguf_is_neox(&v->r), found = -1;
    tl_error *err = v->r.err;
    tl_quoted q;
    if (space != NULL && (space->is_array || space->type != GGUF_BOOL || space->bits != 0)) {
        return gguf_value_fault(v->file, "tokenizer.ggml.add_space_prefix", space,
                                space->type == GGUF_BOOL ? "true" : gguf_kind(&q, space),
                                "false" VOC_CURE, err);
    }
    for (size_t i = 0; i < sizeof known / sizeof known[0] && found < 0; i++) {
        found = gguf_is(v->file, pre, known[i].name, err) ? (int)i : -1;
    }
    if (err->status != TL_OK) {
        return err->status;
    }
    if (found < 0 && !(neox && (pre == NULL || gguf_is(v->file, pre, "default", err)))) {
        gguf_value_fault(
            v->file, "tokenizer.ggml.pre", pre,
            pre != NULL ? gguf_brief(&q, v->file, pre, err) : NULL,
            "gpt-2, phi-2, mpt, olmo, jais, trillion, falcon, granite-docling" VOC_CURE, err);
        err->status = err->status == TL_ERR_FORMAT ? TL_ERR_UNSUPPORTED : err->status;
        return err->status;
    }
    v->r.split = found < 0 ? MBI_TOK_SPLIT_GPT2 : known[found].split;
    v->r.flags = neox || known[found].nfc ? MBI_TOK_NFC : 0;
    return TL_OK;
}

TL_FN tl_status voc_gguf_build(voc_gguf *v, voc_ids ids, unsigned char **section, size_t *bytes)
{
    voc_reader *r = &v->r;
    const gguf_value *model = gguf_find(v->g, "tokenizer.ggml.model");
    tl_status status;
    tl_quoted q;
    int scored = gguf_is(v->file, model, "llama", r->err);
    r->kind = scored ? MBI_TOK_CHARS : MBI_TOK_BPE;
    if (!scored && !gguf_is(v->file, model, "gpt2", r->err)) {
        gguf_value_fault(v->file, "tokenizer.ggml.model", model,
                         model != NULL ? gguf_brief(&q, v->file, model, r->err) : NULL,
                         "gpt2, llama" VOC_CURE, r->err);
        r->err->status = r->err->status == TL_ERR_FORMAT ? TL_ERR_UNSUPPORTED : r->err->status;
        return r->err->status;
    }
    v->tokens = voc_gguf_array(v, "tokenizer.ggml.tokens", GGUF_STRING, UINT64_MAX, 1);
    v->merges = v->tokens != NULL && !scored
                    ? voc_gguf_array(v, "tokenizer.ggml.merges", GGUF_STRING, UINT64_MAX, 1)
                    : NULL;
    v->types = r->err->status == TL_OK ? voc_gguf_array(v, "tokenizer.ggml.token_type", GGUF_I32,
                                                        v->tokens->count, scored)
                                       : NULL;
    /* of no use for merges by list; their number must be right all the same */
    v->scores = r->err->status == TL_OK
                    ? voc_gguf_array(v, "tokenizer.ggml.scores", GGUF_F32, v->tokens->count, scored)
                    : NULL;
    if (r->err->status != TL_OK) {
        return r->err->status;
    }
    v->token_text = voc_gguf_bytes(v, v->tokens);
    v->token_bytes = (size_t)v->tokens->bytes;
    if (scored) {
        v->score_bytes = voc_gguf_bytes(v, v->scores);
        v->token_scores = (float *)tl_malloc(v->tokens->count, sizeof *v->token_scores, r->err);
    } else {
        v->merge_text = voc_gguf_bytes(v, v->merges);
        v->merge_bytes = (size_t)v->merges->bytes;
        r->merges = (uint32_t(*)[4])tl_malloc(v->merges->count, sizeof *r->merges, r->err);
    }
    v->type_bytes = v->types != NULL ? voc_gguf_bytes(v, v->types) : NULL;
    r->tokens = (voc_token *)tl_calloc(v->tokens->count, sizeof *r->tokens, r->err);
    r->sorted = (uint64_t *)tl_malloc(v->tokens->count, sizeof *r->sorted, r->err);
    r->added = (uint32_t *)tl_malloc(v->tokens->count, 2 * sizeof *r->added, r->err);
    if (r->err->status != TL_OK) {
        return r->err->status;
    }
    status = voc_gguf_tokens(v);
    status = status == TL_OK ? voc_gguf_sort(v) : status;
    status = status != TL_OK ? status : scored ? voc_gguf_spaces(v) : voc_gguf_pre(v);
    status = status == TL_OK ? voc_index(r) : status;
    status = status != TL_OK ? status
             : scored        ? voc_scored_merges(r, v->token_scores)
                             : voc_gguf_merges(v);
    status = status == TL_OK && scored ? voc_chars(r) : status;
    return status == TL_OK ? voc_finish(r, ids, section, bytes) : status;
}

/* The section of a GGUF file's tokenizer, in new memory. */
TL_FN tl_status voc_read_gguf(const gguf_file *g, const tl_file *file, voc_ids ids,
                              unsigned char **section, size_t *bytes, tl_error *err)
{
    voc_gguf v;
    tl_quoted q;
    tl_error own;
    tl_status status;
    memset(&v, 0, sizeof v);
    memset(&own, 0, sizeof own);
    *section = NULL;
    *bytes = 0;
    v.r.name = tl_path(&q, file->path);
    v.r.err = &own;
    v.r.tokens_field = "tokenizer.ggml.tokens";
    v.r.merges_field = "tokenizer.ggml.merges";
    v.g = g;
    v.file = file;
    status = voc_gguf_build(&v, ids, section, bytes);
    voc_free(&v.r);
    tl_free(v.token_text);
    tl_free(v.merge_text);
    tl_free(v.type_bytes);
    tl_free(v.score_bytes);
    tl_free(v.token_scores);
    if (status != TL_OK) {
        *bytes = 0;
        tl_fail(err, own.status, "%s", own.message);
    }
    return status;
}

#endif /* TL_GGUF_VOCAB_H */
