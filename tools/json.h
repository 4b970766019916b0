/*  json.h: a strict JSON reader into one flat array of nodes.
 *
 *  RFC 8259 without leniency: UTF-8 only and checked, no byte order mark, no duplicate keys, no
 *  lone surrogates, no raw control characters, nothing behind the value, at most 128 levels. No
 *  recursion, no locale, no libc number parsing. Text up to 2 GiB; 16 bytes per value or key; O(n
 *  log n) in the worst case, linear otherwise. JSON_NONFINITE also accepts the bare words NaN,
 *  Infinity and -Infinity, which the config files of published models contain.
 *
 *      json_doc doc;
 *      if (json_read("config.json", 16 << 20, JSON_NONFINITE, &doc, &err) == TL_OK) {
 *          json_id d = json_get(&doc, JSON_ROOT, "d_model");
 *          uint64_t value;
 *          if (json_u64(&doc, d, &value)) ...
 *          for (json_id m = json_first(&doc, JSON_ROOT); m != JSON_NONE; m = json_next(&doc, m)) {
 *              json_text key = json_key(&doc, m), text = json_str(&doc, m);
 *          }
 *          json_free(&doc);
 *      }
 *
 *  Strings are unescaped in place, so the text must be writable and outlive the document; they are
 *  (pointer, length) and may hold NUL.
 */
#ifndef TL_JSON_H
#define TL_JSON_H

#include "base.h"

#define JSON_ROOT      0u
#define JSON_NONE      0xffffffffu
#define JSON_MAX_DEPTH 128
#define JSON_MAX_BYTES 0x7fffffffu
#define JSON_NONFINITE 1u            /* flag: accept NaN, Infinity, -Infinity */

typedef enum {
    JSON_MISSING = 0,                /* the type of JSON_NONE */
    JSON_NULL, JSON_FALSE, JSON_TRUE, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT, JSON_KEY
} json_type;

typedef uint32_t json_id;            /* index of a value; a member goes by its value, not its key */

typedef struct {
    const char *ptr;                 /* NULL where the value is no string */
    size_t len;
} json_text;

typedef struct {
    uint32_t offset;                 /* first byte in the text; of strings: behind the quote */
    uint32_t length;                 /* bytes of a scalar; children of an array or object */
    uint32_t next;                   /* next sibling, 0 if none; while open: the last child */
    uint32_t type;
} json_node;

typedef struct {
    char *text;
    json_node *nodes;                /* content follows its container, a value follows its key */
    size_t count, capacity;
    char *owned;                     /* the text, where json_read made it */
} json_doc;

TL_FN void json_free(json_doc *doc)
{
    tl_free(doc->nodes);
    tl_free(doc->owned);
    memset(doc, 0, sizeof *doc);
}

/* ---- looking at a document ------------------------------------------------------------------- */

TL_FN json_type json_kind(const json_doc *doc, json_id id)
{
    return id < doc->count ? (json_type)doc->nodes[id].type : JSON_MISSING;
}

/* Number of elements or members. */
TL_FN size_t json_count(const json_doc *doc, json_id id)
{
    json_type type = json_kind(doc, id);
    return type == JSON_ARRAY || type == JSON_OBJECT ? doc->nodes[id].length : 0;
}

/* The first element of an array, the first member's value of an object. */
TL_FN json_id json_first(const json_doc *doc, json_id id)
{
    if (json_count(doc, id) == 0) {
        return JSON_NONE;
    }
    return id + (doc->nodes[id].type == JSON_OBJECT ? 2u : 1u);
}

TL_FN json_id json_next(const json_doc *doc, json_id id)
{
    uint32_t next = id < doc->count ? doc->nodes[id].next : 0;
    return next != 0 ? next : JSON_NONE;
}

/* The key of a member. */
TL_FN json_text json_key(const json_doc *doc, json_id id)
{
    json_text t = {NULL, 0};
    if (id != JSON_ROOT && id < doc->count && doc->nodes[id - 1].type == JSON_KEY) {
        t.ptr = doc->text + doc->nodes[id - 1].offset;
        t.len = doc->nodes[id - 1].length;
    }
    return t;
}

TL_FN json_text json_str(const json_doc *doc, json_id id)
{
    json_text t = {NULL, 0};
    if (json_kind(doc, id) == JSON_STRING) {
        t.ptr = doc->text + doc->nodes[id].offset;
        t.len = doc->nodes[id].length;
    }
    return t;
}

TL_FN int json_is(json_text t, const char *word)
{
    return t.ptr != NULL && t.len == strlen(word) && memcmp(t.ptr, word, t.len) == 0;
}

TL_FN int json_str_is(const json_doc *doc, json_id id, const char *word)
{
    return json_is(json_str(doc, id), word);
}

/* The member of an object, JSON_NONE if there is none (or `id` is no object). Looks at the members
 * in turn: walk large objects with json_first and json_next instead. */
TL_FN json_id json_get(const json_doc *doc, json_id id, const char *key)
{
    if (json_kind(doc, id) != JSON_OBJECT) {
        return JSON_NONE;
    }
    for (json_id m = json_first(doc, id); m != JSON_NONE; m = json_next(doc, m)) {
        if (json_is(json_key(doc, m), key)) {
            return m;
        }
    }
    return JSON_NONE;
}

/* Exact: only digits without sign, point, exponent or leading zero, up to 2^64 - 1. 768.0, 1e3,
 * "768", -0 are no integers. */
TL_FN int json_u64(const json_doc *doc, json_id id, uint64_t *value)
{
    const char *p;
    uint64_t v = 0;
    *value = 0;
    if (json_kind(doc, id) != JSON_NUMBER) {
        return 0;
    }
    p = doc->text + doc->nodes[id].offset;
    for (uint32_t i = 0; i < doc->nodes[id].length; i++) {
        unsigned digit = (unsigned)(unsigned char)p[i] - '0';
        if (digit > 9 || v > (UINT64_MAX - digit) / 10) {
            return 0;
        }
        v = v * 10 + digit;
    }
    *value = v;
    return 1;
}

TL_FN int json_bool(const json_doc *doc, json_id id, int *value)
{
    json_type type = json_kind(doc, id);
    *value = type == JSON_TRUE;
    return type == JSON_TRUE || type == JSON_FALSE;
}

/* What a value is, for messages: "768" stays as written, containers become "an array of 3". */
TL_FN const char *json_brief(tl_quoted *out, const json_doc *doc, json_id id)
{
    tl_quoted inner;
    json_text t;
    switch (json_kind(doc, id)) {
    case JSON_NULL:
    case JSON_FALSE:
    case JSON_TRUE:
    case JSON_NUMBER:
        return tl_quote(out, doc->text + doc->nodes[id].offset, doc->nodes[id].length);
    case JSON_STRING:
        t = json_str(doc, id);
        tl_quote(&inner, t.ptr, t.len < 60 ? t.len : 60);
        (void)snprintf(out->text, sizeof out->text, "\"%.100s\"%s", inner.text,
                       t.len < 60 ? "" : "...");
        return out->text;
    case JSON_ARRAY:
    case JSON_OBJECT:
        (void)snprintf(out->text, sizeof out->text, "an %s of %lu",
                       doc->nodes[id].type == JSON_ARRAY ? "array" : "object",
                       (unsigned long)doc->nodes[id].length);
        return out->text;
    default:
        return tl_quote(out, "nothing", 7);
    }
}

/* ---- decimal to double, correctly rounded, without locale ------------------------------------ */

#define JSON_BIG 64                  /* 2048 bits: 40 digits times 10^400 with room */

typedef struct {
    uint32_t limb[JSON_BIG];         /* little-endian */
} json_big;

TL_FN void json_big_mul_add(json_big *b, uint32_t factor, uint32_t addend)
{
    uint64_t carry = addend;
    for (int i = 0; i < JSON_BIG; i++) {
        carry += (uint64_t)b->limb[i] * factor;
        b->limb[i] = (uint32_t)carry;
        carry >>= 32;
    }
}

TL_FN int json_big_bits(const json_big *b)
{
    for (int i = JSON_BIG - 1; i >= 0; i--) {
        if (b->limb[i] != 0) {
            int bits = 32 * i;
            for (uint32_t v = b->limb[i]; v != 0; v >>= 1) {
                bits++;
            }
            return bits;
        }
    }
    return 0;
}

TL_FN int json_big_compare(const json_big *a, const json_big *b)
{
    for (int i = JSON_BIG - 1; i >= 0; i--) {
        if (a->limb[i] != b->limb[i]) {
            return a->limb[i] < b->limb[i] ? -1 : 1;
        }
    }
    return 0;
}

TL_FN void json_big_subtract(json_big *a, const json_big *b)
{
    uint64_t borrow = 0;
    for (int i = 0; i < JSON_BIG; i++) {
        uint64_t d = (uint64_t)a->limb[i] - b->limb[i] - borrow;
        a->limb[i] = (uint32_t)d;
        borrow = d >> 63;
    }
}

TL_FN void json_big_shift(json_big *b, int bits)   /* left */
{
    int words = bits / 32, rest = bits % 32;
    for (int i = JSON_BIG - 1; i >= 0; i--) {
        uint32_t hi = i >= words ? b->limb[i - words] : 0;
        uint32_t lo = i > words ? b->limb[i - words - 1] : 0;
        b->limb[i] = rest == 0 ? hi : hi << rest | lo >> (32 - rest);
    }
}

/* The double nearest to n / d (ties to even); both positive. Binary long division, 60 digits and a
 * sticky bit. Returns 0 on overflow. */
TL_FN int json_ratio(json_big *n, json_big *d, double *value)
{
    int shift = json_big_bits(n) - json_big_bits(d), exponent, drop;
    uint64_t q = 0, bits, half;
    if (shift > 0) {
        json_big_shift(d, shift);
    } else {
        json_big_shift(n, -shift);
    }
    if (json_big_compare(n, d) < 0) {     /* now 1 <= n/d < 2, and the value is n/d * 2^shift */
        json_big_shift(n, 1);
        shift--;
    }
    for (int i = 0; i < 60; i++) {
        q <<= 1;
        if (json_big_compare(n, d) >= 0) {
            json_big_subtract(n, d);
            q |= 1;
        }
        json_big_shift(n, 1);
    }
    exponent = shift + 1023;
    drop = exponent > 0 ? 7 : 8 - exponent;   /* 60 -> 53 bits, fewer for a denormal */
    if (drop > 62) {
        *value = 0.0;
        return 1;
    }
    if (json_big_bits(n) != 0) {
        q = q << 1 | 1;
    } else {
        q <<= 1;
    }
    drop++;
    half = (uint64_t)1 << (drop - 1);
    bits = q >> drop;
    q &= (half << 1) - 1;
    if (q > half || (q == half && (bits & 1) != 0)) {
        bits++;
    }
    if (exponent > 0) {
        /* the leading one adds the last unit of the exponent */
        bits += (uint64_t)(exponent - 1) << 52;
    }
    if (exponent >= 2047 || bits >= (uint64_t)2047 << 52) {
        return 0;
    }
    memcpy(value, &bits, sizeof *value);
    return 1;
}

/* digits[0..n) * 10^exponent, n <= 40 */
TL_FN int json_decimal(const char *digits, int n, int64_t exponent, double *value)
{
    json_big num, den;
    memset(&num, 0, sizeof num);
    memset(&den, 0, sizeof den);
    *value = 0.0;
    if (n == 0 || exponent < -400) {
        return 1;
    }
    if (exponent > 400) {
        return 0;
    }
    for (int i = 0; i < n; i++) {
        json_big_mul_add(&num, 10, (uint32_t)(digits[i] - '0'));
    }
    den.limb[0] = 1;
    for (; exponent > 0; exponent--) {
        json_big_mul_add(&num, 10, 0);
    }
    for (; exponent < 0; exponent++) {
        json_big_mul_add(&den, 10, 0);
    }
    return json_ratio(&num, &den, value);
}

TL_FN double json_infinity(void)
{
    uint64_t bits = UINT64_C(0x7ff0000000000000);
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Any number; correctly rounded up to 40 significant digits (more are cut). Overflow is refused.
 * NaN and infinities come out where the reader accepted the words. */
TL_FN int json_f64(const json_doc *doc, json_id id, double *value)
{
    const char *p, *end;
    char digits[40];
    int n = 0, negative = 0, point = 0, minus = 0;
    int64_t exponent = 0, e = 0;
    *value = 0.0;
    if (json_kind(doc, id) != JSON_NUMBER) {
        return 0;
    }
    p = doc->text + doc->nodes[id].offset;
    end = p + doc->nodes[id].length;
    if (*p == '-') {
        negative = 1;
        p++;
    }
    if (*p == 'I' || *p == 'N') {
        uint64_t bits = *p == 'N' ? UINT64_C(0x7ff8000000000000)
                                  : UINT64_C(0x7ff0000000000000) | (uint64_t)negative << 63;
        memcpy(value, &bits, sizeof *value);
        return 1;
    }
    for (; p < end && *p != 'e' && *p != 'E'; p++) {
        if (*p == '.') {
            point = 1;
        } else if (n == 40) {
            exponent += !point;
        } else {
            if (n != 0 || *p != '0') {
                digits[n++] = *p;
            }
            exponent -= point;
        }
    }
    if (p < end) {
        p++;
        minus = *p == '-';
        p += *p == '-' || *p == '+';
        for (; p < end; p++) {
            e = e < 1000000000000 ? e * 10 + (*p - '0') : e;
        }
    }
    while (n > 0 && digits[n - 1] == '0') {
        n--;
        exponent++;
    }
    if (!json_decimal(digits, n, exponent + (minus ? -e : e), value)) {
        return 0;
    }
    *value = negative ? -*value : *value;
    return 1;
}

/* ---- reading --------------------------------------------------------------------------------- */

typedef struct {
    json_doc *doc;
    const char *name;                /* of the file, for messages */
    unsigned flags;
    uint64_t base;                   /* offset of the text in its file, for messages */
    size_t at, end;
    int depth;
    uint32_t open[JSON_MAX_DEPTH];   /* the containers around the current place */
    tl_error *err;
} json_reader;

TL_FN tl_status json_expect(json_reader *r, size_t at, const char *allowed)
{
    tl_quoted q, name;
    tl_path(&name, r->name);
    if (at >= r->end) {
        return tl_fail(r->err, TL_ERR_FORMAT,
                       "%s: byte %llu: found the end of the text, allowed: %s", name.text,
                       (unsigned long long)(r->base + r->end), allowed);
    }
    return tl_fail(r->err, TL_ERR_FORMAT, "%s: byte %llu: found '%s', allowed: %s", name.text,
                   (unsigned long long)(r->base + at), tl_quote(&q, r->doc->text + at, 1), allowed);
}

TL_FN void json_skip_space(json_reader *r)
{
    const char *text = r->doc->text;
    while (r->at < r->end && (text[r->at] == ' ' || text[r->at] == '\n' || text[r->at] == '\r' ||
                              text[r->at] == '\t')) {
        r->at++;
    }
}

TL_FN tl_status json_push(json_reader *r, json_type type, size_t offset, size_t length)
{
    json_doc *doc = r->doc;
    void *nodes = doc->nodes;
    json_node *node;
    int ok = tl_grow(&nodes, &doc->capacity, doc->count, sizeof(json_node), r->err);
    doc->nodes = (json_node *)nodes;
    if (!ok) {
        return TL_ERR_MEMORY;
    }
    node = &doc->nodes[doc->count++];
    node->offset = (uint32_t)offset;
    node->length = (uint32_t)length;
    node->next = 0;
    node->type = (uint32_t)type;
    return TL_OK;
}

/* Bytes of the UTF-8 sequence at p, 0 if it is none (overlong, surrogate, above U+10FFFF, cut
 * short). */
TL_FN size_t json_utf8(const unsigned char *p, size_t n)
{
    size_t length = p[0] < 0x80 ? 1
                  : p[0] < 0xc2 ? 0
                  : p[0] < 0xe0 ? 2
                  : p[0] < 0xf0 ? 3
                  : p[0] < 0xf5 ? 4
                                : 0;
    if (length == 0 || length > n) {
        return 0;
    }
    for (size_t i = 1; i < length; i++) {
        if ((p[i] & 0xc0) != 0x80) {
            return 0;
        }
    }
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) ||
        (p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f)) {
        return 0;
    }
    return length;
}

TL_FN int json_hex4(const json_reader *r, size_t at, uint32_t *value)
{
    uint32_t v = 0;
    if (r->end - at < 4 || at > r->end) {
        return 0;
    }
    for (size_t i = at; i < at + 4; i++) {
        char c = r->doc->text[i];
        uint32_t digit = c >= '0' && c <= '9' ? (uint32_t)(c - '0')
                       : c >= 'a' && c <= 'f' ? (uint32_t)(c - 'a' + 10)
                       : c >= 'A' && c <= 'F' ? (uint32_t)(c - 'A' + 10) : 16;
        if (digit == 16) {
            return 0;
        }
        v = v << 4 | digit;
    }
    *value = v;
    return 1;
}

/* A code point as UTF-8 at `out`, returns its length. */
TL_FN size_t json_put_utf8(char *out, uint32_t c)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xc0 | c >> 6);
        out[1] = (char)(0x80 | (c & 63));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xe0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 63));
        out[2] = (char)(0x80 | (c & 63));
        return 3;
    }
    out[0] = (char)(0xf0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 63));
    out[2] = (char)(0x80 | (c >> 6 & 63));
    out[3] = (char)(0x80 | (c & 63));
    return 4;
}

/* The escape behind a backslash at r->at - 1; writes to *out, which never overtakes the reading. */
TL_FN tl_status json_escape(json_reader *r, size_t *out)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    char *text = r->doc->text;
    uint32_t c, low;
    const char *hit = r->at < r->end && text[r->at] != '\0' ? strchr(from, text[r->at]) : NULL;
    if (hit != NULL) {
        text[(*out)++] = to[hit - from];
        r->at++;
        return TL_OK;
    }
    if (r->at >= r->end || text[r->at] != 'u') {
        return json_expect(r, r->at, "one of \"\\/bfnrtu behind a backslash");
    }
    if (!json_hex4(r, r->at + 1, &c)) {
        return json_expect(r, r->at, "four hexadecimal digits behind \\u");
    }
    if (c >= 0xdc00 && c < 0xe000) {
        return json_expect(r, r->at, "a low surrogate only behind a high one");
    }
    if (c >= 0xd800 && c < 0xdc00) {
        if (r->end - r->at < 7 || text[r->at + 5] != '\\' || text[r->at + 6] != 'u' ||
            !json_hex4(r, r->at + 7, &low) || low < 0xdc00 || low >= 0xe000) {
            return json_expect(r, r->at, "a low surrogate behind a high one");
        }
        c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
        r->at += 6;
    }
    r->at += 5;
    *out += json_put_utf8(text + *out, c);
    return TL_OK;
}

/* A string whose opening quote is at r->at; becomes a node of the given type. */
TL_FN tl_status json_string(json_reader *r, json_type type)
{
    char *text = r->doc->text;
    size_t start = ++r->at, out = start;
    while (r->at < r->end && text[r->at] != '"') {
        unsigned char c = (unsigned char)text[r->at];
        size_t length;
        if (c == '\\') {
            tl_status status;
            r->at++;
            status = json_escape(r, &out);
            if (status != TL_OK) {
                return status;
            }
            continue;
        }
        if (c < 0x20) {
            return json_expect(r, r->at, "control characters only as escapes");
        }
        length = json_utf8((const unsigned char *)text + r->at, r->end - r->at);
        if (length == 0) {
            return json_expect(r, r->at, "valid UTF-8");
        }
        if (out != r->at) {
            memmove(text + out, text + r->at, length);
        }
        out += length;
        r->at += length;
    }
    if (r->at >= r->end) {
        return json_expect(r, r->at, "a quote that ends the string");
    }
    r->at++;
    return json_push(r, type, start, out - start);
}

TL_FN size_t json_digits(const json_reader *r, size_t at)
{
    size_t n = 0;
    while (at + n < r->end && r->doc->text[at + n] >= '0' && r->doc->text[at + n] <= '9') {
        n++;
    }
    return n;
}

TL_FN int json_word(const json_reader *r, size_t at, const char *word)
{
    size_t n = strlen(word);
    return r->end - at >= n && memcmp(r->doc->text + at, word, n) == 0;
}

TL_FN tl_status json_number(json_reader *r)
{
    const char *text = r->doc->text;
    size_t at = r->at, start = r->at, n;
    at += text[at] == '-';
    if ((r->flags & JSON_NONFINITE) != 0 && json_word(r, at, "Infinity")) {
        r->at = at + 8;
        return json_push(r, JSON_NUMBER, start, r->at - start);
    }
    n = json_digits(r, at);
    if (n == 0) {
        return json_expect(r, at, "a digit");
    }
    if (n > 1 && text[at] == '0') {
        return json_expect(r, at, "no leading zero");
    }
    at += n;
    if (at < r->end && text[at] == '.') {
        n = json_digits(r, ++at);
        if (n == 0) {
            return json_expect(r, at, "a digit behind the point");
        }
        at += n;
    }
    if (at < r->end && (text[at] == 'e' || text[at] == 'E')) {
        at++;
        at += at < r->end && (text[at] == '+' || text[at] == '-');
        n = json_digits(r, at);
        if (n == 0) {
            return json_expect(r, at, "a digit in the exponent");
        }
        at += n;
    }
    r->at = at;
    return json_push(r, JSON_NUMBER, start, at - start);
}

TL_FN int json_key_order(const void *context, uint32_t a, uint32_t b)
{
    const json_doc *doc = (const json_doc *)context;
    return tl_compare(doc->text + doc->nodes[a].offset, doc->nodes[a].length,
                      doc->text + doc->nodes[b].offset, doc->nodes[b].length);
}

/* Refuses an object with two equal keys, by sorting. */
TL_FN tl_status json_check_keys(json_reader *r, json_id object)
{
    json_doc *doc = r->doc;
    size_t n = doc->nodes[object].length, k = 0;
    uint64_t few[2 * 16], *keys = few;
    tl_quoted q, name;
    tl_status status = TL_OK;
    if (n < 2) {
        return TL_OK;
    }
    if (n > 16) {
        keys = (uint64_t *)tl_malloc(n, 2 * sizeof keys[0], r->err);
        if (keys == NULL) {
            return TL_ERR_MEMORY;
        }
    }
    for (json_id m = json_first(doc, object); m != JSON_NONE; m = json_next(doc, m)) {
        json_text key = json_key(doc, m);
        keys[k++] = (uint64_t)tl_hash(key.ptr, key.len) << 32 | (m - 1);
    }
    tl_sort(keys, keys + n, n, json_key_order, doc);
    for (k = 1; k < n; k++) {
        uint32_t a = (uint32_t)keys[k - 1], b = (uint32_t)keys[k];
        if (keys[k - 1] >> 32 == keys[k] >> 32 && json_key_order(doc, a, b) == 0) {
            status = tl_fail(r->err, TL_ERR_FORMAT,
                             "%s: byte %llu: found key \"%s\" twice, allowed: once",
                             tl_path(&name, r->name),
                             (unsigned long long)(r->base + doc->nodes[b].offset),
                             tl_quote(&q, doc->text + doc->nodes[b].offset, doc->nodes[b].length));
            break;
        }
    }
    if (keys != few) {
        tl_free(keys);
    }
    return status;
}

/* Links the value that was just begun at node `id` to its container. */
TL_FN void json_link(json_reader *r, json_id id)
{
    json_node *nodes = r->doc->nodes;
    json_id parent;
    if (r->depth == 0) {
        return;
    }
    parent = r->open[r->depth - 1];
    if (nodes[parent].next != 0) {
        nodes[nodes[parent].next].next = id;
    }
    nodes[parent].next = id;
    nodes[parent].length++;
}

/* One value; a container is only begun. */
TL_FN tl_status json_value(json_reader *r)
{
    static const struct {
        const char *word;
        json_type type;
        unsigned flag;
    } words[] = {{"null", JSON_NULL, 0}, {"true", JSON_TRUE, 0}, {"false", JSON_FALSE, 0},
                 {"NaN", JSON_NUMBER, JSON_NONFINITE}, {"Infinity", JSON_NUMBER, JSON_NONFINITE}};
    char c = r->at < r->end ? r->doc->text[r->at] : '\0';
    json_id id = (json_id)r->doc->count;
    tl_status status;
    if (r->at < r->end && c == '"') {
        status = json_string(r, JSON_STRING);
    } else if (c == '-' || (c >= '0' && c <= '9')) {
        status = json_number(r);
    } else if (c == '{' || c == '[') {
        if (r->depth == JSON_MAX_DEPTH) {
            return json_expect(r, r->at, "at most 128 levels");
        }
        status = json_push(r, c == '{' ? JSON_OBJECT : JSON_ARRAY, r->at, 0);
        r->at++;
    } else {
        size_t i = 0, n = sizeof words / sizeof words[0];
        while (i < n && ((words[i].flag & ~r->flags) != 0 || r->at >= r->end ||
                         !json_word(r, r->at, words[i].word))) {
            i++;
        }
        if (i == n) {
            return json_expect(r, r->at, "a value");
        }
        status = json_push(r, words[i].type, r->at, strlen(words[i].word));
        r->at += strlen(words[i].word);
    }
    if (status == TL_OK) {
        json_link(r, id);
        if (c == '{' || c == '[') {
            r->open[r->depth++] = id;
        }
    }
    return status;
}

/* The key and colon before a member's value. */
TL_FN tl_status json_member(json_reader *r)
{
    tl_status status;
    if (r->at >= r->end || r->doc->text[r->at] != '"') {
        return json_expect(r, r->at, "a key in quotes");
    }
    status = json_string(r, JSON_KEY);
    if (status != TL_OK) {
        return status;
    }
    json_skip_space(r);
    if (r->at >= r->end || r->doc->text[r->at] != ':') {
        return json_expect(r, r->at, "':'");
    }
    r->at++;
    json_skip_space(r);
    return TL_OK;
}

/* Behind a value or an opening bracket: closes what closes, then stands before the next value.
 * `fresh`: the innermost container has just been opened. */
TL_FN tl_status json_advance(json_reader *r, int fresh)
{
    char *text = r->doc->text;
    for (;;) {
        json_node *node;
        tl_status status;
        int object;
        char c;
        json_skip_space(r);
        if (r->depth == 0) {
            return r->at == r->end ? TL_OK : json_expect(r, r->at, "nothing behind the value");
        }
        node = &r->doc->nodes[r->open[r->depth - 1]];
        object = node->type == JSON_OBJECT;
        c = r->at < r->end ? text[r->at] : '\0';
        if (c == (object ? '}' : ']')) {
            r->at++;
            r->depth--;
            node->next = 0;
            status = object ? json_check_keys(r, r->open[r->depth]) : TL_OK;
            if (status != TL_OK) {
                return status;
            }
            fresh = 0;
            continue;
        }
        if (!fresh) {
            if (c != ',') {
                return json_expect(r, r->at, object ? "',' or '}'" : "',' or ']'");
            }
            r->at++;
            json_skip_space(r);
        }
        return object ? json_member(r) : TL_OK;
    }
}

/* Reads n bytes of text. `name` and `base` (where the text begins in its file) are for messages
 * only. On failure *doc is empty; json_free is harmless. */
TL_FN tl_status json_parse_at(char *text, size_t n, const char *name, uint64_t base, unsigned flags,
                              json_doc *doc, tl_error *err)
{
    json_reader r;
    tl_status status;
    memset(doc, 0, sizeof *doc);
    memset(&r, 0, sizeof r);
    doc->text = text;
    r.doc = doc;
    r.name = name;
    r.base = base;
    r.flags = flags;
    r.end = n;
    r.err = err;
    if (n > JSON_MAX_BYTES) {
        tl_quoted q;
        return tl_fail(err, TL_ERR_UNSUPPORTED,
                       "%s: found %llu bytes of JSON, allowed: at most %lu",
                       tl_path(&q, name), (unsigned long long)n,
                       (unsigned long)JSON_MAX_BYTES);
    }
    json_skip_space(&r);
    status = TL_OK;
    do {
        int depth = r.depth;
        status = json_value(&r);
        if (status == TL_OK) {
            status = json_advance(&r, r.depth > depth);
        }
    } while (status == TL_OK && r.depth > 0);
    if (status != TL_OK) {
        json_free(doc);
    }
    return status;
}

TL_FN tl_status json_parse(char *text, size_t n, const char *name, unsigned flags, json_doc *doc,
                           tl_error *err)
{
    return json_parse_at(text, n, name, 0, flags, doc, err);
}

/* Reads a file of at most `limit` bytes; the document owns the text. */
TL_FN tl_status json_read(const char *path, uint64_t limit, unsigned flags, json_doc *doc,
                          tl_error *err)
{
    char *text;
    size_t n;
    tl_status status;
    memset(doc, 0, sizeof *doc);
    status = tl_read_all(path, limit, &text, &n, err);
    if (status != TL_OK) {
        return status;
    }
    status = json_parse(text, n, path, flags, doc, err);
    if (status != TL_OK) {
        tl_free(text);
    } else {
        doc->owned = text;
    }
    return status;
}

#endif /* TL_JSON_H */
