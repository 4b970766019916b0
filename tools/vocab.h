/*  vocab.h: a published tokenizer.json into the tokenizer section of a .mamba file.
 *
 *      unsigned char *section;
 *      size_t bytes;
 *      voc_ids ids = {0, 0, VOC_NONE};      bos, eos, pad of the model's configuration
 *      if (voc_read("tokenizer.json", ids, &section, &bytes, &err) == TL_OK) {
 *          ...
 *          tl_free(section);
 *      }
 *
 *  What is read: the "BPE" model with merges as strings ("a b") or pairs (["a", "b"]), and added
 *  tokens, in two forms.
 *    Over the byte alphabet of GPT-2: normalizer NFC or none; decoder "ByteLevel"; pre-tokenizer
 *      "ByteLevel", or the sequence of four that Falcon's models share.
 *    Over characters, with byte_fallback: U+2581 for spaces by normalizers "Prepend" and "Replace" or
 *      by pre-tokenizer "Metaspace" without splits; decoder "Replace", "ByteFallback", "Fuse" and
 *      maybe "Strip" of one space.
 *  Post-processors only add special tokens around a text, which mamba_encode never does, so the
 *  known ones are passed over. Any other type or option changes what text becomes and is refused by
 *  name. voc_bytes makes the plain vocabulary of 256 bytes.
 *
 *  Include base.h, json.h and mamba.h with MAMBA_IMPLEMENTATION first: the finished section is
 *  checked by the reader's own validation, so what this writes will open.
 */
#ifndef TL_VOCAB_H
#define TL_VOCAB_H

#define VOC_NONE MBI_TOK_NONE
#define VOC_JSON_LIMIT ((uint64_t)512 << 20)

typedef struct {
    uint32_t bos, eos, pad; /* those that the vocabulary lacks become VOC_NONE */
} voc_ids;

typedef struct {
    const char *ptr; /* as in the file: in GPT-2's byte alphabet, or an added token's content */
    uint32_t len;
    uint32_t id;
    uint32_t added; /* 1 + index of the added token, 0: of the model's vocabulary */
} voc_token;

typedef struct {
    const char *name; /* of the file, for messages */
    const json_doc *doc;
    tl_error *err;
    voc_token *tokens; /* the model's vocabulary, then added tokens that it lacks */
    size_t n_tokens, n_model;
    uint64_t *sorted; /* hash << 32 | index of the model's tokens, rising */
    uint32_t *by_id;  /* (n_ids) 1 + index in tokens, 0: a gap */
    uint32_t n_ids;
    uint64_t *chars; /* code point << 32 | id, rising */
    size_t n_chars;
    uint32_t *added; /* (n_added, 2) id, flags */
    size_t n_added, n_added_raw;
    uint32_t (*merges)[4]; /* left, right, merged, rank */
    size_t n_merges;
    const char *tokens_field, *merges_field; /* where they were, for messages */
    uint32_t kind, flags, split;
    int spaces_early; /* a normalizer, so a stage before the search of added tokens, changes spaces */
    int needs_all_bytes; /* there is an unknown token: with all 256 bytes it is never used */
} voc_reader;

/* ---- the byte alphabet of GPT-2: printable bytes stand for themselves, the others for U+0100 and
 * on ---- */

TL_FN int voc_printable(unsigned b)
{
    return (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
}

/* The code point that stands for a byte. */
TL_FN unsigned voc_alphabet(unsigned byte)
{
    unsigned next = 256;
    if (voc_printable(byte)) {
        return byte;
    }
    for (unsigned b = 0; b < byte; b++) {
        next += !voc_printable(b);
    }
    return next;
}

/* The byte that "<0x0A>" stands for, -1 for any other text. */
TL_FN int voc_byte_token(const char *ptr, size_t len)
{
    int value = 0;
    if (len != 6 || memcmp(ptr, "<0x", 3) != 0 || ptr[5] != '>') {
        return -1;
    }
    for (int i = 3; i < 5; i++) {
        char c = ptr[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                           : -1;
        if (digit < 0) {
            return -1;
        }
        value = 16 * value + digit;
    }
    return value;
}

/* Where U+2581 is in [at, len), or len. */
TL_FN size_t voc_low_line(const char *ptr, size_t len, size_t at)
{
    while (at + 3 <= len && memcmp(ptr + at, "\xE2\x96\x81", 3) != 0) {
        at++;
    }
    return at + 3 <= len ? at : len;
}

/* Does a text mean itself where U+2581 means a space and "<0x0A>" a byte? */
TL_FN int voc_is_plain(const char *ptr, size_t len)
{
    return voc_byte_token(ptr, len) < 0 && voc_low_line(ptr, len, 0) == len;
}

/* The bytes that a token with U+2581 for spaces stands for. */
TL_FN uint32_t voc_unmap_spaces(const voc_token *t, unsigned char *out)
{
    uint32_t n = 0;
    int byte = voc_byte_token(t->ptr, t->len);
    if (byte >= 0) {
        out[0] = (unsigned char)byte;
        return 1;
    }
    for (size_t at = 0; at < t->len;) {
        size_t line = voc_low_line(t->ptr, t->len, at);
        memcpy(out + n, t->ptr + at, line - at);
        n += (uint32_t)(line - at);
        at = line;
        if (line < t->len) {
            out[n++] = ' ';
            at += 3;
        }
    }
    return n;
}

/* The bytes that a token stands for; out has room for t->len. A token with a character outside the
 * alphabet stands for its own UTF-8, as it does for the decoder that this follows; so do added
 * tokens. */
TL_FN uint32_t voc_unmap(const voc_token *t, const short *byte_of, unsigned char *out)
{
    const unsigned char *p = (const unsigned char *)t->ptr, *end = p + t->len;
    uint32_t n = 0;
    int mapped = t->added == 0;
    while (mapped && p < end) {
        uint32_t cp;
        p += mbi_utf8_get(p, end, &cp);
        mapped = cp < 512 && byte_of[cp] >= 0;
        if (mapped) {
            out[n++] = (unsigned char)byte_of[cp];
        }
    }
    if (!mapped) {
        memcpy(out, t->ptr, t->len);
        n = t->len;
    }
    return n;
}

/* ---- options ---- */

TL_FN tl_status voc_refuse(voc_reader *r, const char *where, json_id id, const char *allowed)
{
    tl_quoted q;
    return tl_fail(r->err, TL_ERR_UNSUPPORTED, "%s: %s: found %s, supported: %s", r->name, where,
                   json_brief(&q, r->doc, id), allowed);
}

/* Every member of an object must be listed (names end with NULL). */
TL_FN tl_status voc_members(voc_reader *r, json_id object, const char *where,
                            const char *const *names)
{
    for (json_id m = json_first(r->doc, object); m != JSON_NONE; m = json_next(r->doc, m)) {
        json_text key = json_key(r->doc, m);
        size_t i = 0;
        while (names[i] != NULL && !json_is(key, names[i])) {
            i++;
        }
        if (names[i] == NULL) {
            tl_quoted q;
            return tl_fail(r->err, TL_ERR_UNSUPPORTED, "%s: %s: unknown option \"%s\"", r->name,
                           where, tl_quote(&q, key.ptr, key.len));
        }
    }
    return TL_OK;
}

/* A member that must be absent, null, or (where a word is given) that string. */
TL_FN tl_status voc_nothing(voc_reader *r, json_id object, const char *key, const char *word)
{
    json_id m = json_get(r->doc, object, key);
    json_type kind = json_kind(r->doc, m);
    if (kind == JSON_MISSING || kind == JSON_NULL
        || (word != NULL && json_str_is(r->doc, m, word))) {
        return TL_OK;
    }
    return voc_refuse(r, key, m, word != NULL ? "null or \"\"" : "null");
}

/* A boolean that may be absent. */
TL_FN tl_status voc_flag(voc_reader *r, json_id object, const char *key, int missing, int *value)
{
    json_id m = json_get(r->doc, object, key);
    *value = missing;
    if (json_kind(r->doc, m) != JSON_MISSING && !json_bool(r->doc, m, value)) {
        return voc_refuse(r, key, m, "true or false");
    }
    return TL_OK;
}

/* A stage given as one object or as {"type": "Sequence", list: [at most one object]}.
 * JSON_NONE: none given. */
TL_FN tl_status voc_stage(voc_reader *r, const char *key, const char *list, json_id *stage)
{
    json_id m = json_get(r->doc, JSON_ROOT, key);
    *stage = JSON_NONE;
    if (json_kind(r->doc, m) == JSON_MISSING || json_kind(r->doc, m) == JSON_NULL) {
        return TL_OK;
    }
    if (json_str_is(r->doc, json_get(r->doc, m, "type"), "Sequence")) {
        const char *names[] = {"type", list, NULL};
        json_id items = json_get(r->doc, m, list);
        if (voc_members(r, m, key, names) != TL_OK) {
            return TL_ERR_UNSUPPORTED;
        }
        if (json_kind(r->doc, items) != JSON_ARRAY || json_count(r->doc, items) > 1) {
            return voc_refuse(r, key, items, "a sequence of one or none");
        }
        if (json_count(r->doc, items) == 0) {
            return TL_OK;
        }
        m = json_first(r->doc, items);
    }
    if (json_kind(r->doc, m) != JSON_OBJECT) {
        return voc_refuse(r, key, m, "an object or null");
    }
    *stage = m;
    return TL_OK;
}

/* Is this value written so?  A boolean, a number or a string. */
TL_FN int voc_is(const voc_reader *r, json_id id, const char *text)
{
    int value;
    uint64_t number;
    size_t n = strlen(text);
    if (*text == '"') {
        json_text t = json_str(r->doc, id);
        return t.ptr != NULL && t.len == n - 2 && memcmp(t.ptr, text + 1, n - 2) == 0;
    }
    if (*text >= '0' && *text <= '9') {
        return json_u64(r->doc, id, &number) && number == (uint64_t)(*text - '0');
    }
    return json_bool(r->doc, id, &value) && value == (*text == 't');
}

/* What one stage must look like. */
typedef struct {
    const char *type;
    struct {
        const char *key, *inner; /* inner: the value is an object of this one member */
        const char *value;       /* as written in JSON; NULL: does not matter, may be absent */
        int may_lack;
    } members[4];
} voc_form;

#define VOC_LOW_LINE "\"\xE2\x96\x81\"" /* U+2581, which stands for a space in tokens */

/* Refuses a stage that differs from its form; `where` is its place. */
TL_FN tl_status voc_check_form(voc_reader *r, json_id item, const char *where, const voc_form *form)
{
    const char *names[6] = {"type"}, *inner[2] = {NULL, NULL};
    char place[160];
    size_t n = 0;
    (void)snprintf(place, sizeof place, "%s.type", where);
    if (!voc_is(r, json_get(r->doc, item, "type"), form->type)) {
        return voc_refuse(r, place, json_get(r->doc, item, "type"), form->type);
    }
    for (; n < 4 && form->members[n].key != NULL; n++) {
        names[n + 1] = form->members[n].key;
    }
    if (voc_members(r, item, where, names) != TL_OK) {
        return r->err->status;
    }
    for (size_t i = 0; i < n; i++) {
        json_id value = json_get(r->doc, item, form->members[i].key);
        int missing = json_kind(r->doc, value) == JSON_MISSING;
        (void)snprintf(place, sizeof place, "%s.%s", where, form->members[i].key);
        if (form->members[i].value == NULL || (form->members[i].may_lack && missing)) {
            continue;
        }
        inner[0] = form->members[i].inner;
        if (inner[0] != NULL) {
            if (voc_members(r, value, place, inner) != TL_OK) {
                return r->err->status;
            }
            value = json_get(r->doc, value, inner[0]);
            (void)snprintf(place, sizeof place, "%s.%s.%s", where, form->members[i].key, inner[0]);
        }
        if (!voc_is(r, value, form->members[i].value)) {
            return voc_refuse(r, place, value, form->members[i].value);
        }
    }
    return TL_OK;
}

/* A list of stages, each of which must have its form. */
TL_FN tl_status voc_check_forms(voc_reader *r, json_id list, const char *where,
                                const voc_form *forms, size_t n)
{
    json_id item = json_first(r->doc, list);
    for (size_t i = 0; i < n; i++, item = json_next(r->doc, item)) {
        char place[80];
        (void)snprintf(place, sizeof place, "%s[%lu]", where, (unsigned long)i);
        if (voc_check_form(r, item, place, &forms[i]) != TL_OK) {
            return r->err->status;
        }
    }
    return TL_OK;
}

/* The list of a stage that is {"type": "Sequence", list: [...]}, JSON_NONE if it is not one. */
TL_FN json_id voc_sequence(const voc_reader *r, const char *key, const char *list, size_t *n)
{
    json_id m = json_get(r->doc, JSON_ROOT, key);
    json_id items = json_get(r->doc, m, list);
    *n = 0;
    if (!json_str_is(r->doc, json_get(r->doc, m, "type"), "Sequence")
        || json_kind(r->doc, items) != JSON_ARRAY) {
        return JSON_NONE;
    }
    *n = json_count(r->doc, items);
    return items;
}

/* How text is cut into words. */
TL_FN tl_status voc_pre_tokenizer(voc_reader *r)
{
    static const char *const sequence[] = {"type", "pretokenizers", NULL};
    static const char *const byte_level[] = {"type", "add_prefix_space", "trim_offsets",
                                             "use_regex", NULL};
    static const voc_form falcon[4] = {
        {"\"Punctuation\"", {{"behavior", NULL, "\"Contiguous\"", 0}}},
        {"\"ByteLevel\"",
         {{"add_prefix_space", NULL, "false", 0},
          {"use_regex", NULL, "true", 1},
          {"trim_offsets", NULL, NULL, 0}}},
        {"\"Digits\"", {{"individual_digits", NULL, "false", 0}}},
        {"\"Split\"",
         {{"pattern", "Regex", "\"[0-9][0-9][0-9]\"", 0},
          {"behavior", NULL, "\"Isolated\"", 0},
          {"invert", NULL, "false", 0}}},
    };
    json_id m = json_get(r->doc, JSON_ROOT, "pre_tokenizer");
    size_t n;
    json_id list = voc_sequence(r, "pre_tokenizer", "pretokenizers", &n);
    int regex, prefix;
    if (n == 4) {
        r->split = MBI_TOK_SPLIT_FALCON;
        return voc_members(r, m, "pre_tokenizer", sequence) == TL_OK
                   ? voc_check_forms(r, list, "pre_tokenizer.pretokenizers", falcon, 4)
                   : r->err->status;
    }
    if (voc_stage(r, "pre_tokenizer", "pretokenizers", &m) != TL_OK) {
        return r->err->status;
    }
    if (!json_str_is(r->doc, json_get(r->doc, m, "type"), "ByteLevel")) {
        return voc_refuse(r, "pre_tokenizer.type", m == JSON_NONE ? m : json_get(r->doc, m, "type"),
                          "\"ByteLevel\"");
    }
    if (voc_members(r, m, "pre_tokenizer", byte_level) != TL_OK
        || voc_flag(r, m, "add_prefix_space", 1, &prefix) != TL_OK
        || voc_flag(r, m, "use_regex", 1, &regex) != TL_OK) {
        return r->err->status;
    }
    r->flags |= prefix ? MBI_TOK_PREFIX_SPACE : 0;
    r->split = regex ? MBI_TOK_SPLIT_GPT2 : MBI_TOK_SPLIT_NONE;
    return TL_OK;
}

TL_FN tl_status voc_stages(voc_reader *r)
{
    static const char *const plain[] = {"type", NULL};
    static const char *const byte_level[] = {"type", "add_prefix_space", "trim_offsets",
                                             "use_regex", NULL};
    json_id m;
    if (voc_stage(r, "normalizer", "normalizers", &m) != TL_OK) {
        return r->err->status;
    }
    if (m != JSON_NONE) {
        if (!json_str_is(r->doc, json_get(r->doc, m, "type"), "NFC")) {
            return voc_refuse(r, "normalizer.type", json_get(r->doc, m, "type"), "\"NFC\"");
        }
        r->flags |= MBI_TOK_NFC;
        if (voc_members(r, m, "normalizer", plain) != TL_OK) {
            return r->err->status;
        }
    }
    if (voc_pre_tokenizer(r) != TL_OK) {
        return r->err->status;
    }
    if (voc_stage(r, "decoder", "decoders", &m) != TL_OK) {
        return r->err->status;
    }
    if (!json_str_is(r->doc, json_get(r->doc, m, "type"), "ByteLevel")) {
        return voc_refuse(r, "decoder.type", m == JSON_NONE ? m : json_get(r->doc, m, "type"),
                          "\"ByteLevel\"");
    }
    return voc_members(r, m, "decoder", byte_level);
}

/* ---- options of vocabularies with byte fallback: U+2581 for spaces, "<0x0A>" for bytes ---- */

/* Normalizers [Prepend U+2581, Replace " " by U+2581], or only the second; none: *found = 0. */
TL_FN tl_status voc_space_normalizer(voc_reader *r, int *found)
{
    static const voc_form forms[2] = {
        {"\"Prepend\"", {{"prepend", NULL, VOC_LOW_LINE, 0}}},
        {"\"Replace\"", {{"pattern", "String", "\" \"", 0}, {"content", NULL, VOC_LOW_LINE, 0}}},
    };
    static const char *const sequence[] = {"type", "normalizers", NULL};
    json_id m = json_get(r->doc, JSON_ROOT, "normalizer");
    size_t n;
    json_id list = voc_sequence(r, "normalizer", "normalizers", &n);
    if (list != JSON_NONE && voc_members(r, m, "normalizer", sequence) != TL_OK) {
        return r->err->status;
    }
    *found = n != 0
             || (list == JSON_NONE && json_kind(r->doc, m) != JSON_MISSING
                 && json_kind(r->doc, m) != JSON_NULL);
    if (!*found) {
        return TL_OK;
    }
    if (n == 2) {
        r->flags |= MBI_TOK_PREFIX_SPACE | MBI_TOK_PREFIX_ALWAYS;
        return voc_check_forms(r, list, "normalizer.normalizers", forms, 2);
    }
    return n == 0 || n == 1
               ? voc_check_form(r, n == 1 ? json_first(r->doc, list) : m, "normalizer", &forms[1])
               : voc_refuse(r, "normalizer.normalizers", list, "\"Prepend\" and \"Replace\"");
}

/* Pre-tokenizer Metaspace, which does what the normalizers above do, or none beside these. */
TL_FN tl_status voc_metaspace(voc_reader *r, int normalized)
{
    static const voc_form form = {"\"Metaspace\"",
                                  {{"replacement", NULL, VOC_LOW_LINE, 0},
                                   {"split", NULL, "false", 0},
                                   {"prepend_scheme", NULL, NULL, 0},
                                   {"add_prefix_space", NULL, NULL, 0}}};
    json_id m, scheme;
    int prefix;
    if (voc_stage(r, "pre_tokenizer", "pretokenizers", &m) != TL_OK) {
        return r->err->status;
    }
    if (m == JSON_NONE && normalized) {
        return TL_OK;
    }
    if (m != JSON_NONE && normalized) {
        return voc_refuse(r, "pre_tokenizer", m, "null beside a normalizer of spaces");
    }
    if (voc_check_form(r, m, "pre_tokenizer", &form) != TL_OK
        || voc_flag(r, m, "add_prefix_space", 1, &prefix) != TL_OK) {
        return r->err->status;
    }
    scheme = json_get(r->doc, m, "prepend_scheme");
    if (voc_is(r, scheme, "\"never\"")) {
        return TL_OK;
    }
    if (!prefix) {
        return voc_refuse(r, "pre_tokenizer.prepend_scheme", scheme,
                          "\"never\" with add_prefix_space false");
    }
    r->flags |= MBI_TOK_PREFIX_SPACE;
    if (voc_is(r, scheme, "\"first\"")) {
        r->flags |= MBI_TOK_PREFIX_FIRST;
    } else if (json_kind(r->doc, scheme) != JSON_MISSING && !voc_is(r, scheme, "\"always\"")) {
        return voc_refuse(r, "pre_tokenizer.prepend_scheme", scheme,
                          "\"always\", \"first\", \"never\"");
    }
    return TL_OK;
}

TL_FN tl_status voc_fallback_stages(voc_reader *r)
{
    static const voc_form forms[4] = {
        {"\"Replace\"", {{"pattern", "String", VOC_LOW_LINE, 0}, {"content", NULL, "\" \"", 0}}},
        {"\"ByteFallback\"", {{NULL, NULL, NULL, 0}}},
        {"\"Fuse\"", {{NULL, NULL, NULL, 0}}},
        {"\"Strip\"",
         {{"content", NULL, "\" \"", 0}, {"start", NULL, "1", 0}, {"stop", NULL, "0", 0}}},
    };
    static const char *const sequence[] = {"type", "decoders", NULL};
    size_t n;
    json_id list = voc_sequence(r, "decoder", "decoders", &n), m;
    r->kind = MBI_TOK_CHARS;
    if (voc_space_normalizer(r, &r->spaces_early) != TL_OK
        || voc_metaspace(r, r->spaces_early) != TL_OK) {
        return r->err->status;
    }
    m = json_get(r->doc, JSON_ROOT, "decoder");
    if (n < 3 || n > 4) {
        return voc_refuse(r, "decoder", n == 0 ? m : list,
                          "a sequence of Replace, ByteFallback, Fuse and maybe Strip");
    }
    r->flags |= n == 4 ? MBI_TOK_STRIP_SPACE : 0;
    return voc_members(r, m, "decoder", sequence) == TL_OK
               ? voc_check_forms(r, list, "decoder.decoders", forms, n)
               : r->err->status;
}

/* Post-processors never change the ids of the text itself. */
TL_FN tl_status voc_post_processor(voc_reader *r)
{
    json_id m = json_get(r->doc, JSON_ROOT, "post_processor");
    json_id item = m;
    int sequence = json_str_is(r->doc, json_get(r->doc, m, "type"), "Sequence");
    if (json_kind(r->doc, m) == JSON_MISSING || json_kind(r->doc, m) == JSON_NULL) {
        return TL_OK;
    }
    if (sequence) {
        item = json_first(r->doc, json_get(r->doc, m, "processors"));
    }
    for (; item != JSON_NONE; item = sequence ? json_next(r->doc, item) : JSON_NONE) {
        json_id type = json_get(r->doc, item, "type");
        if (!json_str_is(r->doc, type, "ByteLevel")
            && !json_str_is(r->doc, type, "TemplateProcessing")) {
            return voc_refuse(r, "post_processor.type", type,
                              "\"ByteLevel\", \"TemplateProcessing\"");
        }
    }
    return TL_OK;
}

TL_FN tl_status voc_options(voc_reader *r)
{
    static const char *const top[] = {
        "version",       "truncation",     "padding", "added_tokens", "normalizer",
        "pre_tokenizer", "post_processor", "decoder", "model",        NULL};
    static const char *const bpe[] = {"type",
                                      "dropout",
                                      "unk_token",
                                      "continuing_subword_prefix",
                                      "end_of_word_suffix",
                                      "fuse_unk",
                                      "byte_fallback",
                                      "ignore_merges",
                                      "vocab",
                                      "merges",
                                      NULL};
    json_id model = json_get(r->doc, JSON_ROOT, "model");
    json_id type = json_get(r->doc, model, "type");
    json_id dropout = json_get(r->doc, model, "dropout");
    json_id unknown = json_get(r->doc, model, "unk_token");
    double p = 0;
    int on, fallback;
    if (json_kind(r->doc, JSON_ROOT) != JSON_OBJECT || json_kind(r->doc, model) != JSON_OBJECT) {
        return tl_fail(r->err, TL_ERR_FORMAT, "%s: model: found nothing, allowed: an object",
                       r->name);
    }
    if (json_kind(r->doc, type) != JSON_MISSING && !json_str_is(r->doc, type, "BPE")) {
        return voc_refuse(r, "model.type", type, "\"BPE\"");
    }
    if (voc_members(r, JSON_ROOT, "tokenizer", top) != TL_OK
        || voc_members(r, model, "model", bpe) != TL_OK
        || voc_nothing(r, JSON_ROOT, "truncation", NULL) != TL_OK
        || voc_nothing(r, JSON_ROOT, "padding", NULL) != TL_OK
        || voc_nothing(r, model, "continuing_subword_prefix", "") != TL_OK
        || voc_nothing(r, model, "end_of_word_suffix", "") != TL_OK) {
        return r->err->status;
    }
    if (json_kind(r->doc, dropout) != JSON_MISSING && json_kind(r->doc, dropout) != JSON_NULL
        && (!json_f64(r->doc, dropout, &p) || p != 0)) {
        return voc_refuse(r, "model.dropout", dropout, "null or 0");
    }
    if (voc_flag(r, model, "byte_fallback", 0, &fallback) != TL_OK) {
        return r->err->status;
    }
    if (voc_flag(r, model, "ignore_merges", 0, &on) != TL_OK || on) {
        return voc_refuse(r, "model.ignore_merges", json_get(r->doc, model, "ignore_merges"),
                          "false");
    }
    if (voc_flag(r, model, "fuse_unk", 0, &on) != TL_OK) {
        return r->err->status;
    }
    r->needs_all_bytes =
        fallback
        || (json_kind(r->doc, unknown) != JSON_MISSING && json_kind(r->doc, unknown) != JSON_NULL);
    return (fallback ? voc_fallback_stages(r) : voc_stages(r)) == TL_OK ? voc_post_processor(r)
                                                                        : r->err->status;
}

/* ---- vocabulary ---- */

TL_FN int voc_order(const void *context, uint32_t a, uint32_t b)
{
    const voc_reader *r = (const voc_reader *)context;
    return tl_compare(r->tokens[a].ptr, r->tokens[a].len, r->tokens[b].ptr, r->tokens[b].len);
}

TL_FN int voc_number_order(const void *context, uint32_t a, uint32_t b)
{
    (void)context;
    return a < b ? -1 : a > b;
}

/* Index in tokens of a string of the model's vocabulary; n_tokens if there is none. */
TL_FN size_t voc_find(const voc_reader *r, const char *ptr, size_t len)
{
    uint32_t hash = tl_hash(ptr, len);
    size_t lo = 0, hi = r->n_model;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        uint32_t h = (uint32_t)(r->sorted[mid] >> 32);
        const voc_token *t = &r->tokens[(uint32_t)r->sorted[mid]];
        int order = h != hash ? (h < hash ? -1 : 1) : tl_compare(t->ptr, t->len, ptr, len);
        if (order == 0) {
            return (uint32_t)r->sorted[mid];
        }
        if (order < 0) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return r->n_tokens;
}

/* An id from the file: at most twice as large as the entries could explain, so that a short file
 * cannot ask for a long table. */
TL_FN tl_status voc_id(voc_reader *r, const char *where, json_id value, uint64_t limit,
                       uint32_t *id)
{
    uint64_t v;
    if (!json_u64(r->doc, value, &v) || v >= limit) {
        tl_quoted q;
        return tl_fail(r->err, TL_ERR_FORMAT, "%s: %s: found id %s, allowed: 0 to %llu", r->name,
                       where, json_brief(&q, r->doc, value), (unsigned long long)(limit - 1));
    }
    *id = (uint32_t)v;
    r->n_ids = *id >= r->n_ids ? *id + 1 : r->n_ids;
    return TL_OK;
}

TL_FN tl_status voc_vocabulary(voc_reader *r, json_id vocab, uint64_t limit)
{
    uint64_t *spare;
    for (json_id m = json_first(r->doc, vocab); m != JSON_NONE; m = json_next(r->doc, m)) {
        json_text key = json_key(r->doc, m);
        voc_token *t = &r->tokens[r->n_tokens];
        t->ptr = key.ptr;
        t->len = (uint32_t)key.len;
        t->added = 0;
        if (voc_id(r, "model.vocab", m, limit, &t->id) != TL_OK) {
            return r->err->status;
        }
        r->sorted[r->n_tokens] = (uint64_t)tl_hash(key.ptr, key.len) << 32 | r->n_tokens;
        r->n_tokens++;
    }
    r->n_model = r->n_tokens;
    spare = (uint64_t *)tl_malloc(r->n_model, sizeof *spare, r->err);
    if (spare == NULL) {
        return TL_ERR_MEMORY;
    }
    tl_sort(r->sorted, spare, r->n_model, voc_order, r);
    tl_free(spare);
    return TL_OK;
}

/* The flags of an added token. */
TL_FN tl_status voc_added_flags(voc_reader *r, json_id token, json_text content, uint32_t *flags)
{
    static const char *const names[] = {"id",     "content",    "single_word", "lstrip",
                                        "rstrip", "normalized", "special",     NULL};
    int special, normalized, lstrip, rstrip, single;
    const unsigned char *p = (const unsigned char *)content.ptr;
    mbi_uc_cursor cursor = {0, 0, 0};
    if (voc_members(r, token, "added_tokens", names) != TL_OK
        || voc_flag(r, token, "special", 0, &special) != TL_OK
        || voc_flag(r, token, "normalized", !special, &normalized) != TL_OK
        || voc_flag(r, token, "lstrip", 0, &lstrip) != TL_OK
        || voc_flag(r, token, "rstrip", 0, &rstrip) != TL_OK
        || voc_flag(r, token, "single_word", 0, &single) != TL_OK) {
        return r->err->status;
    }
    if (single) {
        return voc_refuse(r, "added_tokens.single_word", json_get(r->doc, token, "single_word"),
                          "false");
    }
    if (normalized && (r->flags & MBI_TOK_NFC) != 0
        && mbi_nfc_needed(&cursor, p, p + content.len)) {
        return voc_refuse(r, "added_tokens.normalized", json_get(r->doc, token, "content"),
                          "text that NFC leaves as it is");
    }
    if (normalized && r->spaces_early) {
        return voc_refuse(r, "added_tokens.normalized", json_get(r->doc, token, "content"),
                          "false beside a normalizer of spaces");
    }
    if (r->kind == MBI_TOK_CHARS && !voc_is_plain(content.ptr, content.len)) {
        return voc_refuse(r, "added_tokens.content", json_get(r->doc, token, "content"),
                          "no U+2581 and not \"<0x00>\" to \"<0xFF>\"");
    }
    *flags = (special ? MBI_ADDED_SPECIAL : 0u) | (normalized ? MBI_ADDED_NORMALIZED : 0u)
             | (lstrip ? MBI_ADDED_LSTRIP : 0u) | (rstrip ? MBI_ADDED_RSTRIP : 0u);
    return TL_OK;
}

TL_FN tl_status voc_added(voc_reader *r, json_id list, uint64_t limit)
{
    for (json_id m = json_first(r->doc, list); m != JSON_NONE; m = json_next(r->doc, m)) {
        json_text content = json_str(r->doc, json_get(r->doc, m, "content"));
        uint32_t *entry = &r->added[2 * r->n_added];
        size_t known;
        tl_quoted q;
        if (content.ptr == NULL || content.len == 0 || content.len > MBI_TOK_MAX_ADDED_BYTES) {
            return tl_fail(
                r->err, TL_ERR_FORMAT,
                "%s: added_tokens[%lu].content: found %s, allowed: a string of 1 to %u bytes",
                r->name, (unsigned long)r->n_added,
                json_brief(&q, r->doc, json_get(r->doc, m, "content")), MBI_TOK_MAX_ADDED_BYTES);
        }
        if (voc_id(r, "added_tokens", json_get(r->doc, m, "id"), limit, &entry[0]) != TL_OK
            || voc_added_flags(r, m, content, &entry[1]) != TL_OK) {
            return r->err->status;
        }
        known = voc_find(r, content.ptr, content.len);
        if (known == r->n_tokens) {
            known = r->n_tokens++;
            r->tokens[known].ptr = content.ptr;
            r->tokens[known].len = (uint32_t)content.len;
            r->tokens[known].id = entry[0];
        } else if (r->tokens[known].id != entry[0] || r->tokens[known].added != 0) {
            return tl_fail(
                r->err, TL_ERR_FORMAT,
                "%s: added_tokens[%lu]: \"%s\" is in the vocabulary as id %lu, found id %lu",
                r->name, (unsigned long)r->n_added, tl_quote(&q, content.ptr, content.len),
                (unsigned long)r->tokens[known].id, (unsigned long)entry[0]);
        }
        r->n_added++;
        r->tokens[known].added = (uint32_t)r->n_added;
        r->n_added_raw += (entry[1] & MBI_ADDED_NORMALIZED) == 0;
    }
    return TL_OK;
}

/* Sorts tokens that came as a list. Two of the same text would make the ids of that text a matter of
 * chance: `twin` is the later of them, right behind the other in `sorted`, or 0. */
TL_FN tl_status voc_sort(voc_reader *r, size_t *twin)
{
    uint64_t *spare = (uint64_t *)tl_malloc(r->n_tokens, sizeof *spare, r->err);
    *twin = 0;
    if (spare == NULL) {
        return TL_ERR_MEMORY;
    }
    tl_sort(r->sorted, spare, r->n_tokens, voc_order, r);
    tl_free(spare);
    for (size_t i = 1; i < r->n_tokens && *twin == 0; i++) {
        *twin = tl_key_order(r->sorted[i - 1], r->sorted[i], voc_order, r) == 0 ? i : 0;
    }
    return TL_OK;
}

/* The same, and refuses such twins. */
TL_FN tl_status voc_sort_tokens(voc_reader *r)
{
    size_t twin;
    tl_status status = voc_sort(r, &twin);
    if (status == TL_OK && twin != 0) {
        const voc_token *t = &r->tokens[(uint32_t)r->sorted[twin]];
        tl_quoted q;
        status = tl_fail(r->err, TL_ERR_FORMAT,
                         "%s: %s: found \"%s\" as %lu and %lu, allowed: each text once", r->name,
                         r->tokens_field, tl_quote(&q, t->ptr, t->len),
                         (unsigned long)r->tokens[(uint32_t)r->sorted[twin - 1]].id,
                         (unsigned long)t->id);
    }
    return status;
}

/* One token per id. */
TL_FN tl_status voc_index(voc_reader *r)
{
    if (r->n_ids == 0) {
        return tl_fail(r->err, TL_ERR_FORMAT,
                       "%s: model.vocab: found no tokens, allowed: 1 or more", r->name);
    }
    r->by_id = (uint32_t *)tl_calloc(r->n_ids, sizeof *r->by_id, r->err);
    if (r->by_id == NULL) {
        return TL_ERR_MEMORY;
    }
    for (size_t i = 0; i < r->n_tokens; i++) {
        voc_token *t = &r->tokens[i];
        if (r->by_id[t->id] != 0) {
            tl_quoted q, other;
            const voc_token *o = &r->tokens[r->by_id[t->id] - 1];
            return tl_fail(r->err, TL_ERR_FORMAT, "%s: id %lu is given to \"%s\" and to \"%s\"",
                           r->name, (unsigned long)t->id, tl_quote(&other, o->ptr, o->len),
                           tl_quote(&q, t->ptr, t->len));
        }
        r->by_id[t->id] = (uint32_t)i + 1;
    }
    return TL_OK;
}

/* ---- merges ---- */

/* "left right" at its only space. */
TL_FN int voc_split(json_text whole, json_text *left, json_text *right)
{
    const char *space =
        whole.ptr != NULL ? (const char *)memchr(whole.ptr, ' ', whole.len) : NULL;
    if (space == NULL) {
        return 0;
    }
    left->ptr = whole.ptr;
    left->len = (size_t)(space - whole.ptr);
    right->ptr = space + 1;
    right->len = whole.len - left->len - 1;
    return memchr(right->ptr, ' ', right->len) == NULL;
}

/* The two halves of a merge. */
TL_FN int voc_halves(const voc_reader *r, json_id m, json_text *left, json_text *right)
{
    if (json_kind(r->doc, m) == JSON_ARRAY && json_count(r->doc, m) == 2) {
        *left = json_str(r->doc, json_first(r->doc, m));
        *right = json_str(r->doc, json_next(r->doc, json_first(r->doc, m)));
        return left->ptr != NULL && right->ptr != NULL;
    }
    return voc_split(json_str(r->doc, m), left, right);
}

/* Room for the two halves of a merge as one string. */
typedef struct {
    char *ptr;
    size_t capacity;
} voc_joined;

/* Adds the merge of half[0] and half[1]; all three strings must be tokens. */
TL_FN tl_status voc_merge(voc_reader *r, json_text half[3], voc_joined *joined)
{
    tl_quoted q;
    half[2].len = half[0].len + half[1].len;
    if (half[2].len >= joined->capacity) {
        tl_free(joined->ptr);
        joined->capacity = 2 * half[2].len + 64;
        joined->ptr = (char *)tl_malloc(joined->capacity, 1, r->err);
        if (joined->ptr == NULL) {
            return TL_ERR_MEMORY;
        }
    }
    memcpy(joined->ptr, half[0].ptr, half[0].len);
    memcpy(joined->ptr + half[0].len, half[1].ptr, half[1].len);
    half[2].ptr = joined->ptr;
    for (int k = 0; k < 3; k++) {
        size_t found = voc_find(r, half[k].ptr, half[k].len);
        if (found == r->n_tokens) {
            return tl_fail(r->err, TL_ERR_FORMAT, "%s: %s[%lu]: found \"%s\", allowed: strings of %s",
                           r->name, r->merges_field, (unsigned long)r->n_merges,
                           tl_quote(&q, half[k].ptr, half[k].len), r->tokens_field);
        }
        r->merges[r->n_merges][k] = r->tokens[found].id;
    }
    r->merges[r->n_merges][3] = (uint32_t)r->n_merges;
    r->n_merges++;
    return TL_OK;
}

TL_FN tl_status voc_merges(voc_reader *r, json_id list)
{
    tl_status status = TL_OK;
    voc_joined joined = {NULL, 0};
    for (json_id m = json_first(r->doc, list); m != JSON_NONE && status == TL_OK;
         m = json_next(r->doc, m)) {
        json_text half[3], line = json_str(r->doc, m);
        tl_quoted q;
        if (line.len >= 8 && memcmp(line.ptr, "#version", 8) == 0) {
            continue;                /* the first line of a merges.txt; it has no rank */
        }
        if (voc_halves(r, m, &half[0], &half[1])) {
            status = voc_merge(r, half, &joined);
        } else {
            status = tl_fail(
                r->err, TL_ERR_FORMAT,
                "%s: model.merges[%lu]: found %s, allowed: \"left right\" or [\"left\", \"right\"]",
                r->name, (unsigned long)r->n_merges, json_brief(&q, r->doc, m));
        }
    }
    tl_free(joined.ptr);
    return status;
}

/* ---- merges of vocabularies with scores ----
 *
 * Two neighbours merge if their text together is a token, the one of the highest score first, and of
 * several the leftmost: so ranks are scores in falling order, equal ones the same rank. */

#define VOC_MAX_SCORED 256u /* bytes of a token with parts: bounds the work of looking for them */

/* A token that text can become: not an added one, not one for a byte. */
TL_FN int voc_is_normal(const voc_reader *r, size_t index)
{
    return index < r->n_tokens && r->tokens[index].added == 0
           && voc_byte_token(r->tokens[index].ptr, r->tokens[index].len) < 0;
}

/* Every character of a token must be a token: merging starts from them. */
TL_FN tl_status voc_scored_characters(voc_reader *r, const voc_token *t)
{
    const unsigned char *p = (const unsigned char *)t->ptr, *end = p + t->len;
    tl_quoted q;
    while (p < end) {
        uint32_t cp;
        size_t n = (size_t)mbi_utf8_get(p, end, &cp);
        if (cp == MBI_UC_BAD || !voc_is_normal(r, voc_find(r, (const char *)p, n))) {
            return tl_fail(
                r->err, TL_ERR_UNSUPPORTED,
                "%s: %s: found token %lu \"%s\", supported: UTF-8 of characters that are "
                "tokens themselves",
                r->name, r->tokens_field, (unsigned long)t->id, tl_quote(&q, t->ptr, t->len));
        }
        p += n;
    }
    return TL_OK;
}

/* All pairs that merge into token i. */
TL_FN tl_status voc_scored_pairs(voc_reader *r, size_t i, uint32_t rank, size_t *capacity)
{
    const voc_token *t = &r->tokens[i];
    for (size_t at = 1; at < t->len; at++) {
        size_t left, right;
        void *merges = r->merges;
        if (((unsigned char)t->ptr[at] & 0xC0) == 0x80) {
            continue;
        }
        left = voc_find(r, t->ptr, at);
        right = voc_is_normal(r, left) ? voc_find(r, t->ptr + at, t->len - at) : r->n_tokens;
        if (!voc_is_normal(r, right)) {
            continue;
        }
        if (!tl_grow(&merges, capacity, r->n_merges, sizeof *r->merges, r->err)) {
            return TL_ERR_MEMORY;
        }
        r->merges = (uint32_t(*)[4])merges;
        r->merges[r->n_merges][0] = r->tokens[left].id;
        r->merges[r->n_merges][1] = r->tokens[right].id;
        r->merges[r->n_merges][2] = t->id;
        r->merges[r->n_merges++][3] = rank;
    }
    return TL_OK;
}

/* A key that rises while scores fall. */
TL_FN uint32_t voc_score_key(float score)
{
    uint32_t bits;
    score = score == 0 ? 0 : score; /* no -0 */
    memcpy(&bits, &score, 4);
    return (bits & 0x80000000u) != 0 ? bits : 0x7FFFFFFFu - bits;
}

/* The merges of all tokens; scores by index in tokens, which are sorted for voc_find. */
TL_FN tl_status voc_scored_merges(voc_reader *r, const float *scores)
{
    size_t capacity = 0;
    uint32_t rank = 0;
    tl_status status = TL_OK;
    uint64_t *keys = (uint64_t *)tl_malloc(r->n_model, 2 * sizeof *keys, r->err);
    if (keys == NULL) {
        return TL_ERR_MEMORY;
    }
    for (size_t i = 0; i < r->n_model && status == TL_OK; i++) {
        keys[i] = (uint64_t)voc_score_key(scores[i]) << 32 | i;
        if (scores[i] != scores[i]) {
            status = tl_fail(r->err, TL_ERR_FORMAT,
                             "%s: %s: found score NaN of token %lu, allowed: a number", r->name,
                             r->tokens_field, (unsigned long)r->tokens[i].id);
        } else if (voc_is_normal(r, i) && r->tokens[i].len > VOC_MAX_SCORED) {
            status = tl_fail(r->err, TL_ERR_UNSUPPORTED,
                             "%s: %s: found token %lu of %lu bytes, supported: at most %u", r->name,
                             r->tokens_field, (unsigned long)r->tokens[i].id,
                             (unsigned long)r->tokens[i].len, VOC_MAX_SCORED);
        } else if (voc_is_normal(r, i)) {
            status = voc_scored_characters(r, &r->tokens[i]);
        }
    }
    if (status == TL_OK) {
        tl_sort(keys, keys + r->n_model, r->n_model, voc_number_order, NULL);
    }
    for (size_t k = 0; k < r->n_model && status == TL_OK; k++) {
        rank += k != 0 && keys[k] >> 32 != keys[k - 1] >> 32;
        if (voc_is_normal(r, (uint32_t)keys[k])) {
            status = voc_scored_pairs(r, (uint32_t)keys[k], rank, &capacity);
        }
    }
    tl_free(keys);
    return status;
}

TL_FN void voc_put32(unsigned char *p, uint32_t v)
{
    p[0] = (unsigned char)v;
    p[1] = (unsigned char)(v >> 8);
    p[2] = (unsigned char)(v >> 16);
    p[3] = (unsigned char)(v >> 24);
}

/* Fills the table of merges; of a pair that is listed twice the later rank holds, as in the library
 * that wrote the file. 0: the table is too small to keep searches short. */
TL_FN int voc_hash(const voc_reader *r, unsigned char *slots, uint32_t n_slots, uint32_t *n_taken)
{
    *n_taken = 0;
    memset(slots, 0xff, (size_t)16 * n_slots);
    for (size_t i = 0; i < r->n_merges; i++) {
        const uint32_t *m = r->merges[i];
        uint32_t at = mbi_tok_home(m[0], m[1], n_slots);
        uint32_t probes = 0;
        while (tl_le32(slots + (size_t)16 * at) != MBI_TOK_NONE
               && (tl_le32(slots + (size_t)16 * at) != m[0]
                   || tl_le32(slots + (size_t)16 * at + 4) != m[1])) {
            at = (at + 1) & (n_slots - 1);
            if (++probes > MBI_TOK_MAX_CLUSTER) {
                return 0;
            }
        }
        *n_taken += tl_le32(slots + (size_t)16 * at) == MBI_TOK_NONE;
        voc_put32(slots + (size_t)16 * at, m[0]);
        voc_put32(slots + (size_t)16 * at + 4, m[1]);
        voc_put32(slots + (size_t)16 * at + 8, m[3]);
        voc_put32(slots + (size_t)16 * at + 12, m[2]);
    }
    return 1;
}

/* ---- writing the section ---- */

/* Orders added tokens as the section wants them: those searched in the raw text first, then by
 * bytes. */
TL_FN int voc_added_order(const void *context, uint32_t a, uint32_t b)
{
    const voc_reader *r = (const voc_reader *)context;
    uint32_t x = r->added[2 * a], y = r->added[2 * b];
    uint32_t late_x = r->added[2 * a + 1] & MBI_ADDED_NORMALIZED;
    uint32_t late_y = r->added[2 * b + 1] & MBI_ADDED_NORMALIZED;
    if (late_x != late_y) {
        return late_x < late_y ? -1 : 1;
    }
    return voc_order(context, r->by_id[x] - 1, r->by_id[y] - 1);
}

TL_FN tl_status voc_put_added(const voc_reader *r, unsigned char *out, unsigned char *id_flags)
{
    uint64_t *keys = (uint64_t *)tl_malloc(r->n_added, 2 * sizeof *keys, r->err);
    if (keys == NULL) {
        return TL_ERR_MEMORY;
    }
    for (size_t i = 0; i < r->n_added; i++) {
        keys[i] = i;
    }
    tl_sort(keys, keys + r->n_added, r->n_added, voc_added_order, r);
    for (size_t i = 0; i < r->n_added; i++) {
        const uint32_t *entry = &r->added[2 * (uint32_t)keys[i]];
        voc_put32(out + 8 * i, entry[0]);
        voc_put32(out + 8 * i + 4, entry[1]);
        id_flags[entry[0]] |=
            (unsigned char)(MBI_TOK_ADDED
                            | ((entry[1] & MBI_ADDED_SPECIAL) != 0 ? MBI_TOK_SPECIAL : 0));
    }
    tl_free(keys);
    return TL_OK;
}

/* Is a found token the one of a single byte? An added token stands for its content as it is. */
TL_FN int voc_stands_for(const voc_reader *r, size_t found, unsigned byte)
{
    const voc_token *t = &r->tokens[found];
    return found < r->n_tokens
           && (r->kind == MBI_TOK_CHARS || t->added == 0
               || (t->len == 1 && (unsigned char)t->ptr[0] == byte));
}

/* Offsets, flags and bytes of all ids, and the ids of single bytes. Returns the bytes of the heap.
 */
TL_FN uint32_t voc_put_ids(const voc_reader *r, unsigned char *offsets, unsigned char *byte_ids,
                           unsigned char *id_flags, unsigned char *heap, uint32_t *longest)
{
    short byte_of[512];
    uint32_t at = 0;
    *longest = 0;
    for (int i = 0; i < 512; i++) {
        byte_of[i] = -1;
    }
    for (unsigned b = 0; b < 256; b++) {
        char name[8];
        unsigned cp = voc_alphabet(b);
        size_t found = r->kind == MBI_TOK_CHARS
                           ? voc_find(r, name, (size_t)snprintf(name, sizeof name, "<0x%02X>", b))
                           : voc_find(r, name, (size_t)mbi_utf8_put(cp, (unsigned char *)name));
        byte_of[cp] = (short)b;
        voc_put32(byte_ids + (size_t)4 * b,
                  voc_stands_for(r, found, b) ? r->tokens[found].id : VOC_NONE);
    }
    for (uint32_t id = 0; id < r->n_ids; id++) {
        uint32_t n = 0;
        voc_put32(offsets + (size_t)4 * id, at);
        id_flags[id] = r->by_id[id] != 0 ? MBI_TOK_EXISTS : 0;
        if (r->by_id[id] != 0) {
            const voc_token *t = &r->tokens[r->by_id[id] - 1];
            n = r->kind == MBI_TOK_CHARS ? voc_unmap_spaces(t, heap + at)
                                         : voc_unmap(t, byte_of, heap + at);
        }
        *longest = n > *longest ? n : *longest;
        at += n;
    }
    voc_put32(offsets + (size_t)4 * r->n_ids, at);
    return at;
}

/* With an unknown token in use, a missing byte would become that token; here it would be an error.
 */
TL_FN tl_status voc_check_bytes(const voc_reader *r, const unsigned char *byte_ids)
{
    for (unsigned b = 0; b < 256 && r->needs_all_bytes; b++) {
        if (tl_le32(byte_ids + (size_t)4 * b) == VOC_NONE) {
            return tl_fail(
                r->err, TL_ERR_UNSUPPORTED,
                "%s: %s and no token for byte %u, supported: all 256 bytes in %s", r->name,
                r->kind == MBI_TOK_CHARS ? "found byte fallback" : "model.unk_token: found one", b,
                r->tokens_field);
        }
    }
    return TL_OK;
}

/* The section through the reader's own validation. */
TL_FN tl_status voc_validate(const voc_reader *r, const unsigned char *section, size_t bytes)
{
    mamba_tokenizer t;
    mamba_error e;
    char text[400];
    memset(&e, 0, sizeof e);
    if (mbi_tok_open(&t, section, bytes, NULL, &e) != MAMBA_OK) {
        (void)mamba_error_text(&e, text, sizeof text);
        return tl_fail(r->err, TL_ERR_FORMAT, "%s: does not make a valid vocabulary: %s", r->name,
                       text);
    }
    return TL_OK;
}

TL_FN uint32_t voc_known(const voc_reader *r, uint32_t id)
{
    return id < r->n_ids && r->by_id[id] != 0 ? id : VOC_NONE;
}

/* Sections are written in the oldest version that has what they need. */
TL_FN uint32_t voc_version(const voc_reader *r)
{
    return r->kind == MBI_TOK_CHARS || r->split > MBI_TOK_SPLIT_GPT2 ? 2 : 1;
}

TL_FN void voc_put_header(const voc_reader *r, voc_ids ids, uint32_t n_slots, uint32_t n_taken,
                          uint32_t bytes, uint32_t heap_bytes, uint32_t longest, unsigned char *p)
{
    uint32_t header[16];
    memset(header, 0, sizeof header);
    header[0] = MBI_TOK_MAGIC;
    header[1] = voc_version(r);
    header[2] = bytes;
    header[3] = r->kind;
    header[4] = r->flags;
    header[5] = r->split;
    header[6] = r->n_ids;
    header[7] = (uint32_t)r->n_added;
    header[8] = (uint32_t)r->n_added_raw;
    header[9] = n_slots;
    header[10] = n_taken;
    header[11] = heap_bytes;
    header[12] = longest;
    header[13] = voc_known(r, ids.bos);
    header[14] = voc_known(r, ids.eos);
    header[15] = voc_known(r, ids.pad);
    for (size_t i = 0; i < 16; i++) {
        voc_put32(p + 4 * i, header[i]);
    }
    if (header[1] > 1) {
        memset(p + MBI_TOK_HEADER, 0, MBI_TOK_HEADER_2 - MBI_TOK_HEADER);
        voc_put32(p + MBI_TOK_HEADER, (uint32_t)r->n_chars);
    }
}

/* The code point of a token that is one character; U+2581 gives a space, others MBI_UC_BAD. */
TL_FN uint32_t voc_char(const voc_token *t)
{
    const unsigned char *p = (const unsigned char *)t->ptr;
    uint32_t cp = MBI_UC_BAD;
    if (t->len == 0 || (size_t)mbi_utf8_get(p, p + t->len, &cp) != t->len || cp == ' ') {
        return MBI_UC_BAD; /* a space in a token is never met */
    }
    return cp == 0x2581 ? ' ' : cp;
}

/* All characters that are tokens, by code point. */
TL_FN tl_status voc_chars(voc_reader *r)
{
    uint64_t *spare = NULL;
    r->chars = (uint64_t *)tl_malloc(r->n_model, sizeof *r->chars, r->err);
    spare = r->chars != NULL ? (uint64_t *)tl_malloc(r->n_model, sizeof *spare, r->err) : NULL;
    if (spare == NULL) {
        return TL_ERR_MEMORY;
    }
    for (size_t i = 0; i < r->n_model; i++) {
        uint32_t cp = voc_char(&r->tokens[i]);
        if (cp != MBI_UC_BAD) {
            r->chars[r->n_chars++] = (uint64_t)cp << 32 | r->tokens[i].id;
        }
    }
    tl_sort(r->chars, spare, r->n_chars, voc_number_order, NULL);
    tl_free(spare);
    if (voc_find(r, "\xE2\x96\x81", 3) == r->n_tokens) {
        return tl_fail(r->err, TL_ERR_UNSUPPORTED,
                       "%s: %s: found no token for U+2581, allowed: one, which stands for a space",
                       r->name, r->tokens_field);
    }
    return TL_OK;
}

/* The section with n_slots places for merges, in new memory. *retry: the table needs more places.
 */
TL_FN tl_status voc_write(const voc_reader *r, voc_ids ids, uint32_t n_slots,
                          unsigned char **section, size_t *bytes, int *retry)
{
    uint64_t text = 0, total;
    size_t head = voc_version(r) > 1 ? MBI_TOK_HEADER_2 : MBI_TOK_HEADER;
    uint32_t n_taken = 0, longest;
    unsigned char *p, *offsets, *byte_ids, *chars, *added, *id_flags, *heap;
    tl_status status;
    for (size_t i = 0; i < r->n_tokens; i++) {
        text += r->tokens[i].len;
    }
    total = head + (uint64_t)16 * n_slots + 4 * ((uint64_t)r->n_ids + 1) + 1024
            + (uint64_t)8 * r->n_chars + (uint64_t)8 * r->n_added + r->n_ids
            + text; /* the heap may turn out smaller */
    if (total > UINT32_MAX) {
        return tl_fail(r->err, TL_ERR_UNSUPPORTED,
                       "%s: found a vocabulary of %llu bytes, supported: 4 GiB", r->name,
                       (unsigned long long)total);
    }
    p = (unsigned char *)tl_malloc(total, 1, r->err);
    if (p == NULL) {
        return TL_ERR_MEMORY;
    }
    offsets = p + head + (size_t)16 * n_slots;
    byte_ids = offsets + 4 * ((size_t)r->n_ids + 1);
    chars = byte_ids + 1024;
    added = chars + 8 * r->n_chars;
    id_flags = added + 8 * r->n_added;
    heap = id_flags + r->n_ids;
    *retry = n_slots != 0 && !voc_hash(r, p + head, n_slots, &n_taken);
    if (*retry) {
        tl_free(p);
        return TL_OK;
    }
    text = voc_put_ids(r, offsets, byte_ids, id_flags, heap, &longest);
    *bytes = (size_t)(heap - p) + (size_t)text;
    voc_put_header(r, ids, n_slots, n_taken, (uint32_t)*bytes, (uint32_t)text, longest, p);
    for (size_t i = 0; i < r->n_chars; i++) {
        voc_put32(chars + 8 * i, (uint32_t)(r->chars[i] >> 32));
        voc_put32(chars + 8 * i + 4, (uint32_t)r->chars[i]);
    }
    status = voc_put_added(r, added, id_flags);
    if (status == TL_OK) {
        status = voc_check_bytes(r, byte_ids);
    }
    if (status == TL_OK) {
        status = voc_validate(r, p, *bytes);
    }
    if (status != TL_OK) {
        tl_free(p);
        return status;
    }
    *section = p;
    return TL_OK;
}

/* The section, with a table of merges as large as it must be. */
TL_FN tl_status voc_finish(const voc_reader *r, voc_ids ids, unsigned char **section, size_t *bytes)
{
    uint64_t n_slots;
    int retry = 1;
    for (n_slots = r->n_merges != 0; n_slots < 2 * r->n_merges; n_slots *= 2) {
    }
    for (int tries = 0; retry && tries < 4 && n_slots <= MBI_TOK_MAX_SLOTS; tries++, n_slots *= 2) {
        tl_status status = voc_write(r, ids, (uint32_t)n_slots, section, bytes, &retry);
        if (status != TL_OK) {
            return status;
        }
    }
    if (retry) {
        return tl_fail(r->err, TL_ERR_UNSUPPORTED,
                       "%s: %s: found %lu that hash badly or are too many", r->name,
                       r->merges_field, (unsigned long)r->n_merges);
    }
    return TL_OK;
}

TL_FN void voc_free(voc_reader *r)
{
    tl_free(r->tokens);
    tl_free(r->sorted);
    tl_free(r->by_id);
    tl_free(r->chars);
    tl_free(r->added);
    tl_free(r->merges);
}

TL_FN tl_status voc_build(voc_reader *r, voc_ids ids, unsigned char **section, size_t *bytes)
{
    json_id model = json_get(r->doc, JSON_ROOT, "model");
    json_id vocab = json_get(r->doc, model, "vocab"), merges = json_get(r->doc, model, "merges");
    json_id added = json_get(r->doc, JSON_ROOT, "added_tokens");
    uint64_t n = (uint64_t)json_count(r->doc, vocab) + json_count(r->doc, added), limit;
    if (voc_options(r) != TL_OK) {
        return r->err->status;
    }
    if (json_kind(r->doc, vocab) != JSON_OBJECT || json_kind(r->doc, merges) != JSON_ARRAY) {
        return voc_refuse(r, "model.vocab, model.merges",
                          json_kind(r->doc, vocab) != JSON_OBJECT ? vocab : merges,
                          "an object and an array");
    }
    limit = 2 * n + 65536 < MBI_TOK_MAX_IDS ? 2 * n + 65536 : MBI_TOK_MAX_IDS;
    r->tokens = (voc_token *)tl_calloc(n, sizeof *r->tokens, r->err);
    r->sorted = (uint64_t *)tl_malloc(n, sizeof *r->sorted, r->err);
    r->added = (uint32_t *)tl_malloc(json_count(r->doc, added), 2 * sizeof *r->added, r->err);
    r->merges = (uint32_t(*)[4])tl_malloc(json_count(r->doc, merges), sizeof *r->merges, r->err);
    if (r->tokens == NULL || r->sorted == NULL || r->added == NULL || r->merges == NULL) {
        return TL_ERR_MEMORY;
    }
    if (voc_vocabulary(r, vocab, limit) != TL_OK || voc_added(r, added, limit) != TL_OK
        || voc_index(r) != TL_OK || voc_merges(r, merges) != TL_OK
        || (r->kind == MBI_TOK_CHARS && voc_chars(r) != TL_OK)) {
        return r->err->status;
    }
    return voc_finish(r, ids, section, bytes);
}

/* The section of a parsed tokenizer.json; `name` is for messages. */
TL_FN tl_status voc_convert(const json_doc *doc, const char *name, voc_ids ids,
                            unsigned char **section, size_t *bytes, tl_error *err)
{
    voc_reader r;
    tl_quoted q;
    tl_error own;
    tl_status status;
    memset(&r, 0, sizeof r);
    memset(&own, 0, sizeof own);
    *section = NULL;
    *bytes = 0;
    r.name = tl_quote(&q, name, strlen(name));
    r.doc = doc;
    r.err = &own;
    r.kind = MBI_TOK_BPE;
    r.tokens_field = "model.vocab";
    r.merges_field = "model.merges";
    status = voc_build(&r, ids, section, bytes);
    voc_free(&r);
    if (status != TL_OK) {
        *bytes = 0;
        tl_fail(err, own.status, "%s", own.message);
    }
    return status;
}

TL_FN tl_status voc_read(const char *path, voc_ids ids, unsigned char **section, size_t *bytes,
                         tl_error *err)
{
    json_doc doc;
    tl_status status;
    *section = NULL;
    *bytes = 0;
    status = json_read(path, VOC_JSON_LIMIT, 0, &doc, err);
    if (status == TL_OK) {
        status = voc_convert(&doc, path, ids, section, bytes, err);
        json_free(&doc);
    }
    return status;
}

/* The vocabulary of all 256 bytes, id = byte, for models over bytes. */
TL_FN tl_status voc_bytes(voc_ids ids, unsigned char **section, size_t *bytes, tl_error *err)
{
    static const uint32_t start[13] = {MBI_TOK_MAGIC,
                                       1,
                                       64 + 4 * 257 + 1024 + 512,
                                       MBI_TOK_BYTES,
                                       0,
                                       MBI_TOK_SPLIT_NONE,
                                       256,
                                       0,
                                       0,
                                       0,
                                       0,
                                       256,
                                       1};
    unsigned char *p = (unsigned char *)tl_malloc(start[2], 1, err);
    *section = NULL;
    *bytes = 0;
    if (p == NULL) {
        return TL_ERR_MEMORY;
    }
    for (size_t i = 0; i < 13; i++) {
        voc_put32(p + 4 * i, start[i]);
    }
    voc_put32(p + 52, ids.bos < 256 ? ids.bos : VOC_NONE);
    voc_put32(p + 56, ids.eos < 256 ? ids.eos : VOC_NONE);
    voc_put32(p + 60, ids.pad < 256 ? ids.pad : VOC_NONE);
    for (uint32_t i = 0; i < 257; i++) {
        voc_put32(p + 64 + 4 * i, i);
    }
    for (uint32_t i = 0; i < 256; i++) {
        voc_put32(p + 64 + 4 * 257 + 4 * i, i);
        p[64 + 4 * 257 + 1024 + i] = MBI_TOK_EXISTS;
        p[64 + 4 * 257 + 1024 + 256 + i] = (unsigned char)i;
    }
    *section = p;
    *bytes = start[2];
    return TL_OK;
}

#endif /* TL_VOCAB_H */
