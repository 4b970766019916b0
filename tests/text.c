/*  text.c: the tokenizer: published cases, arbitrary bytes, oracles, bounded work, hostile sections
 *  and files.
 *
 *  tests/golden/tokenizer holds the tokenizer of the tales models, and small ones whose merges cross
 *  every boundary that splitting must keep: "falcon" with the stages of falcon-mamba-7b's
 *  tokenizer.json, "mistral" with byte fallback and the stages of Mistral's, "llama" with Llama's in
 *  their place. Their cases were made by the npm package tokenizers 0.23.2 (encode without special
 *  tokens, decode with them); those of "sentencepiece", the same vocabulary as a model whose scores
 *  are often equal, by the original in the npm package sentencepiece-js 1.1.0. The cases of GPT-NeoX
 *  need its tokenizer.json, which is not part of this repository: folder MAMBA_SHARED, default
 *  ../shared.
 */
static void *text_malloc(unsigned long bytes);
static void *text_realloc(void *p, unsigned long bytes);
static void text_free(void *p);
#define TL_MALLOC(n) text_malloc(n)
#define TL_REALLOC(p, n) text_realloc((p), (n))
#define TL_FREE(p) text_free(p)
#include "base.h"
#include "json.h"

static uint64_t text_work;
#define MBI_TEXT_WORK(n) (text_work += (uint64_t)(n))
#define MAMBA_IMPLEMENTATION
#define MAMBA_NO_DISPATCH
#include "mamba.h"
#include "sentencepiece.h"
#include "test.h"

/* ---- memory that can fail, and counts ---- */

static long fail_at = -1; /* the allocation that fails, counted down; -1: none */
static long live_blocks, n_allocations;
static size_t live_bytes, peak_bytes;

static int text_fails(void)
{
    n_allocations++;
    return fail_at >= 0 && fail_at-- == 0;
}

static void *text_malloc(unsigned long bytes)
{
    void *p = text_fails() ? NULL : malloc(bytes);
    live_blocks += p != NULL;
    return p;
}

static void *text_realloc(void *p, unsigned long bytes)
{
    void *q = text_fails() ? NULL : realloc(p, bytes);
    live_blocks += p == NULL && q != NULL;
    return q;
}

static void text_free(void *p)
{
    live_blocks--;
    free(p);
}

static void *hook_alloc(void *user, size_t bytes, size_t align)
{
    void *p = text_fails() ? NULL : mbi_default_alloc(user, bytes, align);
    if (p != NULL) {
        live_blocks++;
        live_bytes += bytes;
        peak_bytes = live_bytes > peak_bytes ? live_bytes : peak_bytes;
    }
    return p;
}

static void hook_free(void *user, void *p, size_t bytes)
{
    live_blocks--;
    live_bytes -= bytes;
    mbi_default_free(user, p, bytes);
}

static const mamba_memory hooks = {hook_alloc, hook_free, NULL};
static const voc_ids no_ids = {VOC_NONE, VOC_NONE, VOC_NONE};

/* ---- random bytes ---- */

static uint64_t rng = 12345;

static uint32_t random_below(uint32_t n)
{
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(((rng >> 33) * n) >> 31);
}

/* Characters where something happens: case, class, NFC, contractions. */
static uint32_t random_cp(void)
{
    static const uint32_t interesting[] = {
        ' ',    ' ',    ' ',     '\n',     '\t',   '\r',   '\'',   's',    't',     'r',   'e',
        'v',    'l',    'L',     'm',      'd',    'a',    'Z',    '0',    '9',     '.',   '<',
        '|',    0,      0xA0,    0x85,     0x2003, 0x3000, 0x200B, 0x301,  0x316,   0x327, 0x345,
        0x1100, 0x1161, 0x11A8,  0xAC00,   0xAC01, 0xE9,   0x212B, 0xF900, 0x2F800, 0xBD,  0x2167,
        0x660,  0x4E00, 0x1F600, 0x10FFFF, 0x958,  0x344,  0x1E9B, 0x323,  0xFEFF};
    uint32_t cp;
    if (random_below(4) != 0) {
        return interesting[random_below(sizeof interesting / sizeof interesting[0])];
    }
    do {
        cp = random_below(random_below(2) ? 0x3100 : 0x110000);
    } while (cp >= 0xD800 && cp <= 0xDFFF);
    return cp;
}

/* kind 0: any bytes; 1: valid UTF-8; 2: valid with a few bytes broken; 3: small letters */
static size_t random_text(unsigned char *out, size_t cap, int kind)
{
    size_t n = random_below((uint32_t)cap - 3), at = 0;
    while (at < n) {
        if (kind == 0) {
            out[at++] = (unsigned char)random_below(256);
        } else if (kind == 3) {
            out[at++] = (unsigned char)("aehirnst"[random_below(8)]);
        } else {
            at += (size_t)mbi_utf8_put(random_cp(), out + at);
            if (kind == 2 && random_below(10) == 0) {
                out[random_below((uint32_t)at)] = (unsigned char)random_below(256);
            }
        }
    }
    return at;
}

/* ---- tokenizers ---- */

typedef struct {
    mamba_tokenizer t;
    unsigned char *section;
    size_t bytes;
} owned;

static void owned_free(owned *o)
{
    tl_free(o->section);
    memset(o, 0, sizeof *o);
}

static int owned_open(owned *o)
{
    mamba_error err;
    memset(&err, 0, sizeof err);
    if (mbi_tok_open(&o->t, o->section, o->bytes, &hooks, &err) != MAMBA_OK) {
        test_fail(__FILE__, __LINE__, err.what);
        return 0;
    }
    return 1;
}

static int owned_read(owned *o, const char *path)
{
    tl_error err;
    memset(&err, 0, sizeof err);
    memset(o, 0, sizeof *o);
    if (voc_read(path, no_ids, &o->section, &o->bytes, &err) != TL_OK) {
        test_fail(__FILE__, __LINE__, err.message);
        return 0;
    }
    return owned_open(o);
}

static const char tales_json[] = "tests/golden/tokenizer/tales.tokenizer.json";

/* The parts of a small tokenizer.json; NULL takes the default. */
typedef struct {
    const char *top; /* before "model", with a comma behind: added_tokens, … */
    const char *normalizer, *pre, *post, *decoder;
    const char *options; /* of the model, with a comma behind */
    const char *vocab;   /* more tokens, with a comma in front; ids from 256 on */
    const char *merges;
    int without; /* 1 + a byte that the vocabulary lacks */
    int fallback; /* bytes are "<0x00>" to "<0xFF>"; spaces U+2581, id 256 */
} recipe;

/* Stages of vocabularies with byte fallback. */
#define LINE "\\u2581"
#define METASPACE(more) "{\"type\":\"Metaspace\",\"replacement\":\"" LINE "\"" more "}"
#define SPACES(first, last)                                                                        \
    "{\"type\":\"Sequence\",\"decoders\":[" first                                                  \
    "{\"type\":\"Replace\",\"pattern\":{\"String\":\"" LINE                                        \
    "\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}" last "]}"
#define STRIP(n) ",{\"type\":\"Strip\",\"content\":\" \",\"start\":" n ",\"stop\":0}"
#define REPLACE "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"" LINE "\"}"
#define PREPEND                                                                                    \
    "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"" LINE            \
    "\"}," REPLACE "]}"

static char small_text[200000];

static size_t small_json(const recipe *r)
{
    char *p = small_text;
    const char *comma = "";
    p += sprintf(p, "{\"version\":\"1.0\",%s", r->top != NULL ? r->top : "\"added_tokens\":[],");
    p += sprintf(p, "\"normalizer\":%s,", r->normalizer != NULL ? r->normalizer : "null");
    p += sprintf(p, "\"pre_tokenizer\":%s,",
                 r->pre != NULL ? r->pre
                 : r->fallback  ? METASPACE(",\"prepend_scheme\":\"never\",\"split\":false")
                                : "{\"type\":\"ByteLevel\",\"add_prefix_space\":false}");
    p += sprintf(p, "\"post_processor\":%s,", r->post != NULL ? r->post : "null");
    p += sprintf(p, "\"decoder\":%s,",
                 r->decoder != NULL ? r->decoder
                 : r->fallback      ? SPACES("", "")
                                    : "{\"type\":\"ByteLevel\"}");
    p += sprintf(p, "\"model\":{\"type\":\"BPE\",%s\"vocab\":{",
                 r->options != NULL ? r->options
                 : r->fallback      ? "\"byte_fallback\":true,"
                                    : "");
    for (unsigned b = 0; b < 256; b++) {
        if ((int)b + 1 != r->without) {
            p += r->fallback ? sprintf(p, "%s\"<0x%02X>\":%u", comma, b, b)
                             : sprintf(p, "%s\"\\u%04x\":%u", comma, voc_alphabet(b), b);
            comma = ",";
        }
    }
    p += sprintf(p, "%s%s},\"merges\":[%s]}}", r->fallback == 1 ? ",\"" LINE "\":256" : "",
                 r->vocab != NULL ? r->vocab : "", r->merges != NULL ? r->merges : "");
    return (size_t)(p - small_text);
}

static tl_status small_convert(const recipe *r, owned *o, tl_error *err)
{
    json_doc doc;
    tl_status status;
    memset(err, 0, sizeof *err);
    memset(o, 0, sizeof *o);
    status = json_parse(small_text, small_json(r), "small", 0, &doc, err);
    if (status == TL_OK) {
        status = voc_convert(&doc, "small", no_ids, &o->section, &o->bytes, err);
    }
    json_free(&doc);
    return status;
}

static int small_open(const recipe *r, owned *o)
{
    tl_error err;
    if (small_convert(r, o, &err) != TL_OK) {
        test_fail(__FILE__, __LINE__, err.message);
        return 0;
    }
    return owned_open(o);
}

/* Encodes and compares with expected ids, -1 behind the last. */
static void check_ids(const mamba_tokenizer *t, const char *text, size_t n_text, unsigned flags,
                      const int *expected, int line)
{
    int32_t ids[4000];
    size_t n = 0, i = 0;
    if (mamba_encode(t, text, n_text, flags, ids, 4000, &n, NULL) != MAMBA_OK) {
        test_fail(__FILE__, line, "does not encode");
        return;
    }
    while (i < n && expected[i] == ids[i]) {
        i++;
    }
    if (i != n || expected[i] != -1) {
        test_fail(__FILE__, line, "other ids");
        for (i = 0; i < n; i++) {
            printf(" %ld", (long)ids[i]);
        }
        printf("\n");
    }
}
#define IDS(t, text, flags, ...)                                                                   \
    do {                                                                                           \
        static const int expected_ids[] = {__VA_ARGS__, -1};                                       \
        check_ids((t), (text), sizeof(text) - 1, (flags), expected_ids, __LINE__);                 \
    } while (0)

/* decode(encode(x)) == x, and what the streaming decoder gives is the same. */
static int round_trip(const mamba_tokenizer *t, const unsigned char *text, size_t n, unsigned flags,
                      int stream)
{
    static int32_t ids[5000];
    static char out[5000 * 64];
    char piece[70000];
    size_t n_ids = 0, n_out = 0, n_count = 0, at = 0, n_piece;
    mamba_utf8_stream s;
    if (mamba_encode(t, (const char *)text, n, flags, ids, 5000, &n_ids, NULL) != MAMBA_OK
        || mamba_encode(t, (const char *)text, n, flags, NULL, 0, &n_count, NULL) != MAMBA_OK
        || n_count != n_ids
        || mamba_decode(t, ids, n_ids, out, sizeof out, &n_out, NULL) != MAMBA_OK || n_out != n
        || memcmp(out, text, n) != 0) {
        return 0;
    }
    memset(&s, 0, sizeof s);
    for (size_t i = 0; stream && i <= n_ids; i++) {
        mamba_status status =
            i < n_ids ? mamba_stream_decode(t, &s, ids[i], piece, sizeof piece, &n_piece, NULL)
                      : mamba_stream_flush(&s, piece, sizeof piece, &n_piece, NULL);
        if (status != MAMBA_OK || n_piece > n - at || memcmp(piece, text + at, n_piece) != 0) {
            return 0;
        }
        at += n_piece;
        if (i < n_ids && mbi_utf8_open(text, at) != 0 && mbi_utf8_valid(text, text + n)) {
            return 0; /* half a character went out */
        }
    }
    return !stream || at == n;
}

/* ---- published cases ---- */

static int stream_is_bytes(const mamba_tokenizer *t, const int32_t *ids, size_t n_ids)
{
    mamba_utf8_stream s;
    int same = 1;
    size_t held = 0;
    memset(&s, 0, sizeof s);
    for (size_t i = 0; i < n_ids && same; i++) {
        const char *bytes;
        char piece[256];
        size_t n = 0, n_piece = 0;
        same =
            mamba_token_bytes(t, ids[i], &bytes, &n, NULL) == MAMBA_OK
            && mamba_stream_decode(t, &s, ids[i], piece, sizeof piece, &n_piece, NULL) == MAMBA_OK
            && n_piece + s.n_pending == held + n
            && (n_piece <= held || memcmp(piece + held, bytes, n_piece - held) == 0);
        held = s.n_pending;
    }
    return same;
}

static void run_open_cases(owned o, const char *cases, int n_cases, unsigned flags)
{
    json_doc doc;
    tl_error err;
    int n = 0;
    memset(&err, 0, sizeof err);
    REQUIRE(json_read(cases, (uint64_t)1 << 24, 0, &doc, &err) == TL_OK);
    for (json_id m = json_first(&doc, JSON_ROOT); m != JSON_NONE; m = json_next(&doc, m)) {
        json_text text = json_str(&doc, json_get(&doc, m, "text"));
        json_text decoded = json_str(&doc, json_get(&doc, m, "decoded"));
        json_id list = json_get(&doc, m, "ids"), item = json_first(&doc, list);
        int32_t ids[4096];
        char out[65536];
        size_t n_ids = 0, n_out = 0;
        CHECK_INT(mamba_encode(&o.t, text.ptr, text.len, flags, ids, 4096, &n_ids, NULL), MAMBA_OK);
        CHECK_INT(n_ids, json_count(&doc, list));
        for (size_t i = 0; i < n_ids && item != JSON_NONE; i++, item = json_next(&doc, item)) {
            uint64_t id = 0;
            CHECK(json_u64(&doc, item, &id));
            CHECK_INT(ids[i], id);
        }
        CHECK_INT(mamba_decode(&o.t, ids, n_ids, out, sizeof out, &n_out, NULL), MAMBA_OK);
        CHECK(n_out == decoded.len && memcmp(out, decoded.ptr, n_out) == 0);
        CHECK(stream_is_bytes(&o.t, ids, n_ids));
        n++;
        if ((o.t.flags & MBI_TOK_PREFIX_SPACE) != 0) {
            continue;
        }
        CHECK(round_trip(&o.t, (const unsigned char *)text.ptr, text.len,
                         MAMBA_PARSE_SPECIAL | MAMBA_NO_NORMALIZE, 1));
        CHECK(round_trip(&o.t, (const unsigned char *)text.ptr, text.len, MAMBA_NO_NORMALIZE, 1));
        CHECK(round_trip(&o.t, (const unsigned char *)decoded.ptr, decoded.len, MAMBA_PARSE_SPECIAL,
                         1));
    }
    CHECK_INT(n, n_cases);
    json_free(&doc);
    owned_free(&o);
}

static void run_cases(const char *tokenizer, const char *cases, int n_cases)
{
    owned o;
    REQUIRE(owned_read(&o, tokenizer));
    run_open_cases(o, cases, n_cases, MAMBA_PARSE_SPECIAL);
}

TEST(cases_tales)
{
    run_cases(tales_json, "tests/golden/tokenizer/tales.cases.json", 155);
}

static const char falcon_json[] = "tests/golden/tokenizer/falcon.tokenizer.json";

TEST(cases_falcon)
{
    run_cases(falcon_json, "tests/golden/tokenizer/falcon.cases.json", 203);
}

static const char mistral_json[] = "tests/golden/tokenizer/mistral.tokenizer.json";

/* The same vocabulary with Llama's stages. */
static int open_llama(owned *o)
{
    static const char old[] = "\"normalizer\":null,\"pre_tokenizer\":";
    static const char stages[] = "\"normalizer\":" PREPEND ",\"pre_tokenizer\":null";
    char *text, *cut, *rest, *changed;
    size_t n;
    json_doc doc;
    tl_error err;
    memset(&err, 0, sizeof err);
    memset(o, 0, sizeof *o);
    if (tl_read_all(mistral_json, (uint64_t)1 << 20, &text, &n, &err) != TL_OK) {
        test_fail(__FILE__, __LINE__, err.message);
        return 0;
    }
    changed = (char *)malloc(n + sizeof stages);
    cut = strstr(text, old);
    rest = cut != NULL ? strchr(cut, '}') : NULL;
    if (changed == NULL || rest == NULL) {
        test_fail(__FILE__, __LINE__, "no such stages");
        return 0;
    }
    n = (size_t)sprintf(changed, "%.*s%s%s", (int)(cut - text), text, stages, rest + 1);
    tl_free(text);
    if (json_parse(changed, n, "llama", 0, &doc, &err) != TL_OK
        || voc_convert(&doc, "llama", no_ids, &o->section, &o->bytes, &err) != TL_OK) {
        test_fail(__FILE__, __LINE__, err.message);
    }
    json_free(&doc);
    free(changed);
    return o->section != NULL && owned_open(o);
}

TEST(cases_with_byte_fallback)
{
    owned o;
    run_cases(mistral_json, "tests/golden/tokenizer/mistral.cases.json", 201);
    REQUIRE(open_llama(&o));
    CHECK_INT(o.t.kind, MBI_TOK_CHARS);
    run_open_cases(o, "tests/golden/tokenizer/llama.cases.json", 201, MAMBA_PARSE_SPECIAL);
    CHECK_INT(live_blocks, 0);
}

static int shared_path(char *out, size_t cap, const char *name)
{
    const char *folder = getenv("MAMBA_SHARED");
    (void)snprintf(out, cap, "%s/tokenizers/%s", folder != NULL ? folder : "../shared", name);
    return tl_exists(out);
}

TEST(cases_gpt_neox)
{
    char tokenizer[600], cases[600];
    owned o;
    if (!shared_path(tokenizer, sizeof tokenizer, "gpt-neox-20b.tokenizer.json")
        || !shared_path(cases, sizeof cases, "gpt-neox-20b.cases.json")) {
        SKIP("no tokenizers/gpt-neox-20b.tokenizer.json in MAMBA_SHARED");
    }
    run_cases(tokenizer, cases, 155);
    REQUIRE(owned_read(&o, tokenizer));
    CHECK_INT(mamba_token_count(&o.t), 50277);
    /* runs of spaces are added tokens, but not special: always parsed, the longest first */
    IDS(&o.t, "a   b", 0, 66, 50275, 67);
    IDS(&o.t, "<|endoftext|>", MAMBA_PARSE_SPECIAL, 0);
    CHECK(round_trip(&o.t, (const unsigned char *)"x<|endoftext|>   y", 18, 0, 1));
    owned_free(&o);
}

TEST(special_tokens_only_on_request)
{
    owned o;
    int32_t ids[64];
    size_t n = 0;
    REQUIRE(owned_read(&o, tales_json));
    IDS(&o.t, "<|endoftext|>", MAMBA_PARSE_SPECIAL, 0);
    IDS(&o.t, "<|padding|><|endoftext|>", MAMBA_PARSE_SPECIAL, 1, 0);
    CHECK_INT(mamba_encode(&o.t, "a<|endoftext|><|padding|>", 25, 0, ids, 64, &n, NULL), MAMBA_OK);
    CHECK(n > 10);
    for (size_t i = 0; i < n; i++) {
        CHECK(ids[i] > 1);
    }
    CHECK(round_trip(&o.t, (const unsigned char *)"a<|endoftext|>", 14, 0, 1));
    owned_free(&o);
}

/* ---- any bytes ---- */

TEST(any_bytes_come_back)
{
    static const recipe merging = {
        NULL,
        "{\"type\":\"NFC\"}",
        NULL,
        NULL,
        NULL,
        NULL,
        ",\"th\":256,\"\\u0120t\":257,\"\\u0120the\":258,\"he\":259,\"\\u00e9\\u00a9\":260",
        "\"t h\",[\"\\u0120\",\"t\"],\"h e\",[\"\\u0120t\",\"he\"],\"\\u00e9 \\u00a9\"",
        0, 0};
    static const recipe fallback = {.fallback = 1,
                                    .vocab = ",\"th\":257,\"" LINE "t\":258,\"" LINE
                                             "th\":259,\"t\":260,\"h\":261,\"\\u00e9\":262,"
                                             "\"" LINE LINE
                                             "\":263,\"\\u00e9\\u0301\":264,\"\\u0301\":265",
                                    .merges = "\"" LINE " t\",\"t h\",[\"" LINE "t\",\"h\"],\"" LINE
                                              " " LINE "\",\"\\u00e9 \\u0301\""};
    owned o[5];
    unsigned char text[400];
    tl_error err;
    memset(&err, 0, sizeof err);
    REQUIRE(owned_read(&o[0], tales_json));
    REQUIRE(small_open(&merging, &o[1]));
    REQUIRE(voc_bytes(no_ids, &o[2].section, &o[2].bytes, &err) == TL_OK && owned_open(&o[2]));
    REQUIRE(owned_read(&o[3], falcon_json));
    REQUIRE(small_open(&fallback, &o[4]));
    IDS(&o[4].t, " th\xC3\xA9\xCC\x81", 0, 259, 264);
    IDS(&o[4].t, "h\n\xE2\x96\x81 ", 0, 261, '\n', 263);
    IDS(&o[4].t, "\xE2\x96\x81 ", MAMBA_NO_NORMALIZE, 0xE2, 0x96, 0x81, 256);
    CHECK_INT(mamba_token_count(&o[2].t), 256);
    IDS(&o[2].t, "a\0\xff", 0, 'a', 0, 255);
    for (int i = 0; i < 50000; i++) {
        const mamba_tokenizer *t = &o[i % 5].t;
        size_t n = random_text(text, i % 50 == 0 ? sizeof text : 40, i / 5 % 4);
        CHECK(round_trip(t, text, n, MAMBA_NO_NORMALIZE, 1));
        CHECK(round_trip(t, text, n, MAMBA_NO_NORMALIZE | MAMBA_PARSE_SPECIAL, 1));
        if (!mbi_utf8_valid(text, text + n) || i % 5 >= 2) {
            CHECK(i % 5 == 4
                  || round_trip(t, text, n, 0, 1)); /* what is not UTF-8 is never normalized */
        } else {
            int32_t ids[500], again[500];
            char out[2000];
            size_t n_ids = 0, n_out = 0, n_again = 0;
            CHECK_INT(mamba_encode(t, (const char *)text, n, 0, ids, 500, &n_ids, NULL), MAMBA_OK);
            CHECK_INT(mamba_decode(t, ids, n_ids, out, sizeof out, &n_out, NULL), MAMBA_OK);
            CHECK(round_trip(t, (const unsigned char *)out, n_out, 0, 1)); /* NFC is stable */
            CHECK_INT(mamba_encode(t, out, n_out, 0, again, 500, &n_again, NULL), MAMBA_OK);
            CHECK(n_again == n_ids && memcmp(ids, again, n_ids * sizeof *ids) == 0);
        }
        if (test_state.failures != 0) {
            break;
        }
    }
    for (int i = 0; i < 5; i++) {
        owned_free(&o[i]);
    }
    CHECK_INT(live_blocks, 0);
}

/* A space in front comes and goes: decoding all ids of a text gives the text. */
TEST(spaces_come_and_go)
{
    owned o;
    unsigned char text[300];
    int32_t ids[600];
    char out[600];
    size_t n_ids = 0, n_out = 0;
    REQUIRE(open_llama(&o));
    for (int i = 0; i < 8000 && test_state.failures == 0; i++) {
        size_t n = random_text(text, i % 50 == 0 ? sizeof text : 40, i % 4);
        CHECK_INT(
            mamba_encode(&o.t, (const char *)text, n, MAMBA_NO_NORMALIZE, ids, 600, &n_ids, NULL),
            MAMBA_OK);
        CHECK(n_ids <= n + 1 && stream_is_bytes(&o.t, ids, n_ids));
        CHECK_INT(mamba_decode(&o.t, ids, n_ids, NULL, 0, &n_out, NULL), MAMBA_OK);
        CHECK_INT(n_out, n);
        CHECK_INT(mamba_decode(&o.t, ids, n_ids, out, n, &n_out, NULL), MAMBA_OK);
        CHECK(n_out == n && memcmp(out, text, n) == 0);
        CHECK_INT(n == 0 ? MAMBA_ERR_RANGE
                         : mamba_decode(&o.t, ids, n_ids, out, n - 1, &n_out, NULL),
                  MAMBA_ERR_RANGE);
    }
    owned_free(&o);
}

/* Byte pair encoding by its definition: look at all pairs, merge the first of the lowest rank,
 * again. */
static size_t bpe_by_definition(const mamba_tokenizer *t, const unsigned char *p, size_t n,
                                int32_t *ids)
{
    size_t n_bytes = n;
    n = 0;
    for (size_t i = 0; i < n_bytes;) {
        uint32_t cp, k = t->n_chars, one = 1;
        uint32_t length = (uint32_t)mbi_utf8_get(p + i, p + n_bytes, &cp);
        for (k = 0; k < t->n_chars; k++) {
            if (mbi_load_u32(t->chars + 8 * (size_t)k) == (cp == 0x2581 ? ' ' : cp)) {
                break;
            }
        }
        one = k == t->n_chars;
        ids[n++] = (int32_t)(one ? mbi_load_u32(t->byte_ids + 4 * (size_t)p[i])
                                 : mbi_load_u32(t->chars + 8 * (size_t)k + 4));
        i += one ? 1 : length;
    }
    for (;;) {
        size_t best = n;
        uint32_t best_rank = 0, best_id = 0;
        for (size_t i = 0; i + 1 < n; i++) {
            const unsigned char *slot = mbi_tok_find(t, (uint32_t)ids[i], (uint32_t)ids[i + 1]);
            if (slot != NULL && (best == n || mbi_load_u32(slot + 8) < best_rank)) {
                best = i;
                best_rank = mbi_load_u32(slot + 8);
                best_id = mbi_load_u32(slot + 12);
            }
        }
        if (best == n) {
            return n;
        }
        ids[best] = (int32_t)best_id;
        n--;
        memmove(ids + best + 1, ids + best + 2, (n - best - 1) * sizeof *ids);
    }
}

static void run_definition(const char *tokenizer)
{
    owned o;
    unsigned char text[600];
    int32_t expected[600], ids[600];
    REQUIRE(owned_read(&o, tokenizer));
    for (int i = 0; i < 3000 && test_state.failures == 0; i++) {
        size_t n = random_text(text, i % 20 == 0 ? 600 : 90, i % 4 == 0 ? 1 : 3), n_ids = 0;
        size_t n_expected = bpe_by_definition(&o.t, text, n, expected);
        mbi_encoder e;
        memset(&e, 0, sizeof e);
        e.t = &o.t;
        e.ids = ids;
        e.cap = 600;
        if (n <= MBI_BPE_SHORT) { /* both ways for every length both can do */
            CHECK_INT(mbi_bpe_short(&e, text, n), MAMBA_OK);
            n_ids = e.n;
            CHECK(n_ids == n_expected && memcmp(ids, expected, n_ids * sizeof *ids) == 0);
            e.n = 0;
        }
        if (n > 0) {
            CHECK_INT(mbi_bpe_long(&e, text, n), MAMBA_OK);
            n_ids = e.n;
        }
        CHECK(n_ids == n_expected && memcmp(ids, expected, n_ids * sizeof *ids) == 0);
        mbi_encode_end(&e);
    }
    owned_free(&o);
}

TEST(merges_by_definition)
{
    run_definition(tales_json);
    run_definition(mistral_json);
}

/* ---- splitting ---- */

static unsigned class_of(uint32_t cp)
{
    mbi_uc_cursor k = {0, 0, 0};
    return mbi_uc_class(&k, cp) & MBI_UC_KIND;
}

/* The pattern, alternative by alternative, with the longest match of each and one step back for
 * (?!\S). */
static size_t split_by_definition(const uint32_t *c, size_t n)
{
    static const char *const words[] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
    static const unsigned kinds[] = {MBI_UC_LETTER, MBI_UC_NUMBER, MBI_UC_OTHER};
    size_t k;
    for (int i = 0; i < 7; i++) {
        for (k = 0; words[i][k] != 0 && k < n && c[k] == (uint32_t)words[i][k]; k++) {
        }
        if (words[i][k] == 0) {
            return k;
        }
    }
    for (int i = 0; i < 3; i++) {
        size_t from = c[0] == ' ';
        for (int optional = 0; optional < 2; optional++, from = 0) {
            for (k = from; k < n && class_of(c[k]) == kinds[i]; k++) {
            }
            if (k > from) {
                return k;
            }
        }
    }
    for (k = 0; k < n && class_of(c[k]) == MBI_UC_SPACE; k++) {
    }
    return k == n || k == 1 ? k : k - 1;
}

TEST(split_by_the_pattern)
{
    mbi_encoder e;
    memset(&e, 0, sizeof e);
    for (int i = 0; i < 20000 && test_state.failures == 0; i++) {
        unsigned char text[200];
        uint32_t cps[200];
        size_t offsets[201], n = random_text(text, 60, i % 3), n_cp = 0, at = 0;
        while (at < n) {
            offsets[n_cp] = at;
            at += (size_t)mbi_utf8_get(text + at, text + n, &cps[n_cp++]);
        }
        offsets[n_cp] = n;
        for (at = 0; at < n_cp;) {
            const unsigned char *end = mbi_split_gpt2(&e, text + offsets[at], text + n);
            at += split_by_definition(cps + at, n_cp - at);
            CHECK(end == text + offsets[at]);
        }
    }
    CHECK_INT(class_of(0x85), MBI_UC_SPACE);
    CHECK_INT(class_of(0x180E), MBI_UC_OTHER);
    CHECK_INT(class_of(0x2028), MBI_UC_SPACE);
    CHECK_INT(class_of(0x200B), MBI_UC_OTHER);
    CHECK_INT(class_of(0xBD), MBI_UC_NUMBER);
    CHECK_INT(class_of(0x2167), MBI_UC_NUMBER);
    CHECK_INT(class_of(0xAA), MBI_UC_LETTER);
    CHECK_INT(class_of(0x301), MBI_UC_OTHER);
    CHECK_INT(class_of(0x4E00), MBI_UC_LETTER);
    CHECK_INT(class_of(0x9FFF), MBI_UC_LETTER);
    CHECK_INT(class_of(0xE000), MBI_UC_OTHER);
    CHECK_INT(class_of(0x10FFFF), MBI_UC_OTHER);
    CHECK_INT(class_of(MBI_UC_BAD), MBI_UC_OTHER);
}

/* Falcon's pieces by their definition, on whole code points and then bytes: where words may end. */
TEST(split_of_falcon)
{
    static const struct {
        const char *text, *cuts; /* one digit per part: its bytes */
    } cases[] = {
        {"1234567", "331"},
        {"12 345x", "2131"},
        {"a1b22", "1112"},
        {" 12", "12"},
        {"10\xC2\xB2", "211"},        /* two digits, byte C2, byte B2: that one is a number */
        {"\xD0\xB2\xD0\xB2", "1111"}, /* so it is in Cyrillic letters */
        {"\xB2"
         "12345",
         "132"},
        {"it's", "211"},
        {" ...", "13"},
        {"a--b", "121"},
        {"  (", "21"},
        {" \xD8\x9D", "3"},      /* punctuation only since Unicode 14 */
        {" \xE1\x99\xAD", "13"}, /* punctuation only until Unicode 11 */
        {" \xE3\x80\x81", "13"},
        {"\xFF!", "11"},
    };
    owned o;
    REQUIRE(owned_read(&o, falcon_json));
    CHECK_INT(o.t.split, MBI_TOK_SPLIT_FALCON);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const unsigned char *p = (const unsigned char *)cases[i].text;
        const unsigned char *end = p + strlen(cases[i].text);
        char cuts[16];
        size_t n = 0;
        mbi_encoder e;
        memset(&e, 0, sizeof e);
        while (p < end) {
            const unsigned char *piece = mbi_split_punctuation(p, end);
            while (p < piece) {
                const unsigned char *word = mbi_split_gpt2(&e, p, piece);
                while (p < word && n < 15) {
                    const unsigned char *part = mbi_split_digits(p, word);
                    cuts[n++] = (char)('0' + (part - p));
                    p = part;
                }
            }
        }
        cuts[n] = 0;
        if (strcmp(cuts, cases[i].cuts) != 0) {
            printf("\"%s\": %s, wanted %s\n", cases[i].text, cuts, cases[i].cuts);
            FAIL("split");
        }
    }
    CHECK(mbi_uc_is_punctuation('$') && mbi_uc_is_punctuation('~') && mbi_uc_is_punctuation('\''));
    CHECK(!mbi_uc_is_punctuation('0') && !mbi_uc_is_punctuation(' ') && !mbi_uc_is_punctuation(0));
    CHECK(mbi_uc_is_punctuation(0x2014) && !mbi_uc_is_punctuation(0x2E43));
    CHECK(!mbi_uc_is_punctuation(MBI_UC_BAD));
    owned_free(&o);
}

/* ---- NFC ---- */

static int nfc_is(const uint32_t *in, size_t n_in, const uint32_t *out, size_t n_out)
{
    unsigned char a[400], b[400], got[1600];
    size_t n_a = 0, n_b = 0, n = 0, n_again = 0;
    mamba_tokenizer t;
    mbi_encoder e;
    mamba_status status;
    int same;
    memset(&t, 0, sizeof t);
    t.memory = hooks;
    memset(&e, 0, sizeof e);
    e.t = &t;
    for (size_t i = 0; i < n_in; i++) {
        n_a += (size_t)mbi_utf8_put(in[i], a + n_a);
    }
    for (size_t i = 0; i < n_out; i++) {
        n_b += (size_t)mbi_utf8_put(out[i], b + n_b);
    }
    status = mbi_nfc_text(&e, a, a + n_a, NULL, &n);
    if (status == MAMBA_OK && n <= sizeof got) {
        status = mbi_nfc_text(&e, a, a + n_a, got, &n_again);
    }
    mbi_encode_end(&e);
    same = status == MAMBA_OK && n == n_again && n == n_b && memcmp(got, b, n) == 0;
    return same
           && (mbi_nfc_needed(&e.cursor, a, a + n_a) || (n_a == n_b && memcmp(a, b, n_a) == 0));
}

TEST(nfc_samples)
{
    static const struct {
        uint32_t in[8], out[8];
    } cases[] = {
        {{0x65, 0x301}, {0xE9}},            /* composes */
        {{0x1E0A, 0x323}, {0x1E0C, 0x307}}, /* reorders, then composes otherwise */
        {{0x958}, {0x915, 0x93C}},          /* excluded from composition */
        {{0x344}, {0x308, 0x301}},          /* non-starter decomposition */
        {{0x212B}, {0xC5}},                 /* singleton that composes again */
        {{0xF900}, {0x8C48}},
        {{0x2F800}, {0x4E3D}},
        {{0x2FA1D}, {0x2A600}},
        {{0xFA0E}, {0xFA0E}},
        {{0x1100, 0x1161, 0x11A8}, {0xAC01}},
        {{0xAC00, 0x11A8}, {0xAC01}},
        {{0xAC01, 0x11A8}, {0xAC01, 0x11A8}},
        {{0x1100, 0x301, 0x1161}, {0x1100, 0x301, 0x1161}}, /* blocked */
        {{0x61, 0x5AE, 0x300, 0x315, 0x62}, {0xE0, 0x5AE, 0x315, 0x62}},
        {{0x301, 0x65}, {0x301, 0x65}}, /* nothing before it */
        {{0x9C7, 0x9D7}, {0x9CC}},      /* second half is a starter */
        {{0x110A5, 0x110BA}, {0x110AB}},
        {{0x3D, 0x338}, {0x2260}},
        {{0x1FED, 0x301}, {0x1FED, 0x301}},
        {{0x387}, {0xB7}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        size_t n_in = 0, n_out = 0;
        while (n_in < 8 && cases[i].in[n_in] != 0) {
            n_in++;
        }
        while (n_out < 8 && cases[i].out[n_out] != 0) {
            n_out++;
        }
        if (!nfc_is(cases[i].in, n_in, cases[i].out, n_out)) {
            printf("U+%04lX\n", (unsigned long)cases[i].in[0]);
            FAIL("NFC");
        }
    }
    CHECK_INT(live_blocks, 0);
}

/* All of the Unicode consortium's conformance test, where Debian's unicode-data is installed. */
TEST(nfc_conformance)
{
    FILE *f;
    char line[2048];
    uint32_t column[5][40];
    size_t n[5];
    int lines = 0;
    if (!tl_exists("/usr/share/unicode/NormalizationTest.txt.bz2")) {
        SKIP("unicode-data is not installed");
    }
    f = popen("bzip2 -dc /usr/share/unicode/NormalizationTest.txt.bz2", "r");
    REQUIRE(f != NULL);
    while (fgets(line, sizeof line, f) != NULL) {
        char *p = line;
        int parts = 0;
        if (*p == '#' || *p == '@') {
            continue;
        }
        for (; parts < 5; parts++) {
            for (n[parts] = 0; *p != ';' && *p != 0 && n[parts] < 40;) {
                char *end;
                unsigned long cp = strtoul(p, &end, 16);
                if (end == p) {
                    break;
                }
                column[parts][n[parts]++] = (uint32_t)cp;
                p = end;
            }
            if (*p++ != ';') {
                break;
            }
        }
        CHECK_INT(parts, 5);
        CHECK(nfc_is(column[0], n[0], column[1], n[1]) && nfc_is(column[1], n[1], column[1], n[1])
              && nfc_is(column[2], n[2], column[1], n[1])
              && nfc_is(column[3], n[3], column[3], n[3])
              && nfc_is(column[4], n[4], column[3], n[3]));
        lines++;
    }
    (void)pclose(f);
    if (lines == 0) {
        SKIP("bzip2 is not installed");
    }
    CHECK(lines > 18000);
}

/* ---- bounded work ---- */

/* Steps of encoding n bytes of a pattern; checks the memory bound and that all is given back. */
static uint64_t steps(const mamba_tokenizer *t, const char *pattern, size_t n_pattern, size_t n,
                      int line)
{
    char *text = (char *)malloc(n);
    size_t n_ids = 0;
    if (text == NULL) {
        test_fail(__FILE__, line, "out of memory");
        return 0;
    }
    for (size_t i = 0; i < n; i++) {
        text[i] = n_pattern != 0 ? pattern[i % n_pattern] : (char)('a' + random_below(26));
    }
    text_work = 0;
    peak_bytes = 0;
    if (mamba_encode(t, text, n, 0, NULL, 0, &n_ids, NULL) != MAMBA_OK || n_ids == 0
        || n_ids > n + 1) {
        test_fail(__FILE__, line, "does not encode");
    }
    if (live_bytes != 0 || peak_bytes > 36 * n) {
        test_fail(__FILE__, line, "memory");
    }
    free(text);
    return text_work;
}

TEST(work_is_n_log_n)
{
    static const struct {
        const char *text;
        size_t n;
    } patterns[] = {{"a", 1},
                    {" ", 1},
                    {"\n", 1},
                    {"\xCC\x81", 2},
                    {"\xCC\x81\xCC\x96", 4},
                    {"'", 1},
                    {"", 0},
                    {"the", 3},
                    {"\xE3\x80\x80", 3},
                    {"<|endoftext|", 12},
                    {"\xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8", 9},
                    {"\xFF", 1},
                    {" \t", 2},
                    {"e\xCC\x81", 3},
                    {"0", 1},
                    {"<", 1},
                    {"-=", 2}};
    static const char *const tokenizers[] = {tales_json, falcon_json, mistral_json};
    for (size_t k = 0; k < sizeof tokenizers / sizeof tokenizers[0]; k++) {
        owned o;
        REQUIRE(owned_read(&o, tokenizers[k]));
        for (size_t i = 0; i < sizeof patterns / sizeof patterns[0]; i++) {
            size_t small = (size_t)9 << 13, large = (size_t)9 << 17; /* 1.2 MB */
            long blocks = live_blocks;
            uint64_t a = steps(&o.t, patterns[i].text, patterns[i].n, small, __LINE__);
            uint64_t b = steps(&o.t, patterns[i].text, patterns[i].n, large, __LINE__);
            CHECK_INT(live_blocks, blocks);
            /* 16 times the text: with n log n at most 16 * 21 / 17 times the steps */
            CHECK(b <= a * 21 && b <= (uint64_t)large * 120);
        }
        owned_free(&o);
    }
}

/* ---- streams and arguments ---- */

TEST(streams_give_whole_characters)
{
    static const struct {
        const char *bytes;
        size_t n;
        const char *emitted; /* bytes written after each byte fed */
    } cases[] = {
        {"\xE2\x82\xAC", 3, "003"},
        {"\xF0\x9F\x98\x80", 4, "0004"},
        {"\xC3\xA9", 2, "02"},
        {"\xE2\x41", 2, "02"},
        {"\xE2\x82\x41", 3, "003"},
        {"\xF0\x9F\x98\x41", 4, "0004"},
        {"\x80", 1, "1"},
        {"\xFF\xC3", 2, "10"},
        {"\xC0\x80", 2, "11"},
        {"\xE0\x80", 2, "02"},
        {"\xED\xA0", 2, "02"},
        {"\xF4\x90", 2, "02"},
        {"\xE2\xE2\x82\xAC", 4, "0103"},
        {"\xF5", 1, "1"},
        {"\xC3\xC3\xA9", 3, "012"},
        {"\xF0\x90\x80", 3, "000"},
    };
    owned o;
    tl_error err;
    memset(&err, 0, sizeof err);
    memset(&o, 0, sizeof o);
    REQUIRE(voc_bytes(no_ids, &o.section, &o.bytes, &err) == TL_OK && owned_open(&o));
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        mamba_utf8_stream s;
        char out[16], all[16];
        size_t n = 0, at = 0;
        memset(&s, 0, sizeof s);
        for (size_t k = 0; k < cases[i].n; k++) {
            CHECK_INT(mamba_stream_decode(&o.t, &s, (unsigned char)cases[i].bytes[k], out,
                                          sizeof out, &n, NULL),
                      MAMBA_OK);
            CHECK_INT(n, cases[i].emitted[k] - '0');
            memcpy(all + at, out, n);
            at += n;
        }
        CHECK_INT(mamba_stream_flush(&s, out, sizeof out, &n, NULL), MAMBA_OK);
        memcpy(all + at, out, n);
        CHECK(at + n == cases[i].n && memcmp(all, cases[i].bytes, at + n) == 0);
        CHECK_INT(s.n_pending, 0);
    }
    {
        mamba_utf8_stream s, before;
        char out[4];
        size_t n = 9;
        memset(&s, 0, sizeof s);
        CHECK_INT(mamba_stream_decode(&o.t, &s, 0xE2, out, 4, &n, NULL), MAMBA_OK);
        before = s;
        CHECK_INT(mamba_stream_decode(&o.t, &s, 0x82, out, 1, &n, NULL), MAMBA_ERR_RANGE);
        CHECK_INT(n, 2);
        CHECK_INT(mamba_stream_decode(&o.t, &s, 256, out, 4, &n, NULL), MAMBA_ERR_ARG);
        CHECK_INT(mamba_stream_decode(&o.t, &s, -1, out, 4, &n, NULL), MAMBA_ERR_ARG);
        CHECK_INT(mamba_stream_flush(&s, out, 0, &n, NULL), MAMBA_ERR_RANGE);
        CHECK(memcmp(&s, &before, sizeof s) == 0);
        s.n_pending = 4;
        CHECK_INT(mamba_stream_decode(&o.t, &s, 0, out, 4, &n, NULL), MAMBA_ERR_ARG);
        CHECK_INT(mamba_stream_flush(&s, out, 4, &n, NULL), MAMBA_ERR_ARG);
        CHECK_INT(mamba_stream_decode(&o.t, NULL, 0, out, 4, &n, NULL), MAMBA_ERR_ARG);
    }
    owned_free(&o);
}

TEST(arguments)
{
    static const recipe gap = {NULL, NULL, NULL, NULL, NULL, NULL, ",\"ab\":300", "\"a b\"", 0, 0};
    owned o;
    int32_t ids[4] = {7, 7, 7, 7}, bad[3] = {'a', 0, 'b'};
    size_t n = 5;
    char out[8];
    const char *bytes;
    mamba_error err;
    REQUIRE(small_open(&gap, &o));
    CHECK_INT(mamba_token_count(&o.t), 301);
    CHECK_INT(mamba_token_count(NULL), 0);
    CHECK_INT(mamba_encode(&o.t, "abab abab", 9, 0, ids, 2, &n, &err), MAMBA_ERR_RANGE);
    CHECK_INT(n, 5);
    CHECK_INT(err.found, 2);
    CHECK_INT(err.allowed_min, 5);
    CHECK(ids[0] == 300 && ids[1] == 300 && ids[2] == 7);
    CHECK_INT(mamba_encode(&o.t, NULL, 0, 0, ids, 4, &n, &err), MAMBA_OK);
    CHECK_INT(n, 0);
    CHECK_INT(err.status, MAMBA_OK);
    CHECK_INT(mamba_encode(&o.t, "", 0, 0, NULL, 0, &n, NULL), MAMBA_OK);
    CHECK_INT(mamba_encode(&o.t, NULL, 1, 0, ids, 4, &n, &err), MAMBA_ERR_ARG);
    CHECK_INT(mamba_encode(NULL, "a", 1, 0, ids, 4, &n, &err), MAMBA_ERR_ARG);
    CHECK_INT(mamba_encode(&o.t, "a", 1, 0, ids, 4, NULL, &err), MAMBA_ERR_ARG);
    CHECK_INT(mamba_encode(&o.t, "a", 1, 4, ids, 4, &n, &err), MAMBA_ERR_ARG);
    CHECK_CONTAINS(err.name, "flags");
    CHECK_INT(mamba_encode(&o.t, "a", (size_t)-1, 0, ids, 4, &n, &err), MAMBA_ERR_RANGE);
    CHECK_INT(mamba_decode(&o.t, ids, 2, out, 3, &n, &err), MAMBA_ERR_RANGE);
    CHECK_INT(n, 4);
    CHECK_INT(mamba_decode(&o.t, ids, 2, NULL, 0, &n, &err), MAMBA_OK);
    CHECK_INT(n, 4);
    for (int i = 0; i < 4; i++) {
        static const int32_t values[] = {-1, 301, INT32_MAX, 260}; /* 260: a gap */
        bad[1] = values[i];
        CHECK_INT(mamba_decode(&o.t, bad, 3, out, 8, &n, &err), MAMBA_ERR_ARG);
        CHECK_INT(n, 0);
        CHECK_INT(err.found, values[i]);
        CHECK_INT(mamba_token_bytes(&o.t, values[i], &bytes, &n, &err), MAMBA_ERR_ARG);
        CHECK(bytes == NULL && n == 0);
    }
    CHECK_INT(mamba_token_bytes(&o.t, 300, &bytes, &n, &err), MAMBA_OK);
    CHECK(n == 2 && memcmp(bytes, "ab", 2) == 0);
    CHECK_INT(mamba_token_bytes(NULL, 0, &bytes, &n, &err), MAMBA_ERR_ARG);
    CHECK_INT(mamba_token_bytes(&o.t, 0, NULL, &n, &err), MAMBA_ERR_ARG);
    CHECK_INT(mamba_decode(NULL, ids, 2, out, 8, &n, &err), MAMBA_ERR_ARG);
    CHECK_INT(mamba_decode(&o.t, NULL, 2, out, 8, &n, &err), MAMBA_ERR_ARG);
    CHECK_INT(mamba_decode(&o.t, ids, 2, out, 8, NULL, &err), MAMBA_ERR_ARG);
    owned_free(&o);
}

/* ---- options of tokenizer.json ---- */

TEST(added_tokens)
{
    static const recipe r = {
        "\"added_tokens\":["
        "{\"id\":256,\"content\":\"<a>\",\"special\":true,\"normalized\":false},"
        "{\"id\":257,\"content\":\"<a><b>\",\"special\":false,\"normalized\":false},"
        "{\"id\":258,\"content\":\"<l>\",\"special\":false,\"normalized\":false,\"lstrip\":true},"
        "{\"id\":259,\"content\":\"<r>\",\"special\":false,\"normalized\":false,\"rstrip\":true},"
        "{\"id\":260,\"content\":\"aa\",\"special\":false,\"normalized\":true},"
        "{\"id\":261,\"content\":\"aaaa\",\"special\":false,\"normalized\":true},"
        "{\"id\":262,\"content\":\"\\u00e9x\",\"special\":false,\"normalized\":true},"
        "{\"id\":263,\"content\":\"e\\u0301y\",\"special\":false,\"normalized\":false},"
        "{\"id\":264,\"content\":\"a<\",\"special\":false,\"normalized\":false}],",
        "{\"type\":\"NFC\"}",
        NULL,
        NULL,
        NULL,
        NULL,
        NULL,
        NULL,
        0, 0};
    owned o;
    REQUIRE(small_open(&r, &o));
    IDS(&o.t, "<a>", MAMBA_PARSE_SPECIAL, 256);
    IDS(&o.t, "<a>", 0, '<', 'a', '>');
    IDS(&o.t, "<a><b>", MAMBA_PARSE_SPECIAL, 257); /* the longest */
    IDS(&o.t, "<a><b>", 0, 257);
    IDS(&o.t, "<a><a><b", MAMBA_PARSE_SPECIAL, 256, 256, '<', 'b');
    IDS(&o.t, "aaaaaaa", 0, 261, 260, 'a');
    IDS(&o.t, "a<a>", MAMBA_PARSE_SPECIAL, 264, 'a', '>'); /* leftmost before longest */
    IDS(&o.t, "x \xE3\x80\x80\n<l> y", 0, 'x', 258, ' ', 'y');
    IDS(&o.t, " <l>", 0, 258);
    IDS(&o.t, "x <r> \t y", 0, 'x', ' ', 259, 'y');
    IDS(&o.t, "<r>  <l>  z", 0, 259, 258, ' ', ' ', 'z');
    IDS(&o.t, "e\xCC\x81x", 0, 262); /* found in the normalized text */
    IDS(&o.t, "e\xCC\x81x", MAMBA_NO_NORMALIZE, 'e', 0xCC, 0x81, 'x');
    IDS(&o.t, "e\xCC\x81y", 0, 263); /* found in the text as given */
    IDS(&o.t, "\xC3\xA9y", 0, 0xC3, 0xA9, 'y');
    owned_free(&o);
    {
        /* added tokens that the vocabulary has too: "a" stays the byte, U+00C3 stops being byte C3 */
        static const recipe both = {
            "\"added_tokens\":[{\"id\":97,\"content\":\"a\",\"special\":true},"
            "{\"id\":195,\"content\":\"\\u00c3\",\"special\":true}],",
            NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, 0};
        int32_t ids[4];
        size_t n = 0;
        REQUIRE(small_open(&both, &o));
        IDS(&o.t, "ab", 0, 97, 'b');
        IDS(&o.t, "\xC3\x83", MAMBA_PARSE_SPECIAL, 195);
        CHECK_INT(mamba_encode(&o.t, "\xC3\x83", 2, 0, ids, 4, &n, NULL), MAMBA_ERR_UNSUPPORTED);
        owned_free(&o);
    }
}

TEST(prefix_space_and_no_pattern)
{
    static const recipe prefix = {
        "\"added_tokens\":[{\"id\":300,\"content\":\"<x>\",\"special\":false,\"normalized\":"
        "false}],",
        NULL,
        "{\"type\":\"ByteLevel\"}",
        NULL,
        NULL,
        NULL,
        ",\"\\u0120a\":256",
        "\"\\u0120 a\"",
        0, 0};
    static const recipe whole = {
        NULL,
        NULL,
        "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}",
        NULL,
        NULL,
        NULL,
        ",\"b\\u0120a\":257,\"b\\u0120\":256",
        "\"b \\u0120\",\"b\\u0120 a\"",
        0, 0};
    owned o;
    REQUIRE(small_open(&prefix, &o));
    IDS(&o.t, "a", 0, 256);
    IDS(&o.t, " a", 0, 256);
    IDS(&o.t, "\ta", 0, ' ', '\t', 'a');
    IDS(&o.t, "a<x>a", 0, 256, 300, 256);
    owned_free(&o);
    REQUIRE(small_open(&whole, &o));
    IDS(&o.t, "b ab", 0, 257, 'b');
    owned_free(&o);
}

TEST(missing_bytes_are_errors)
{
    static const recipe r = {NULL, NULL, NULL, NULL, NULL, NULL, ",\"ab\":256", "\"a b\"", 1 + 'x', 0};
    owned o;
    int32_t ids[100];
    size_t n = 3;
    mamba_error err;
    char longer[100];
    REQUIRE(small_open(&r, &o));
    IDS(&o.t, "aby", 0, 256, 'y');
    CHECK_INT(mamba_encode(&o.t, "abx", 3, 0, ids, 100, &n, &err), MAMBA_ERR_UNSUPPORTED);
    CHECK_INT(err.found, 'x');
    CHECK_INT(n, 0);
    memset(longer, 'a', sizeof longer);
    longer[99] = 'x';
    CHECK_INT(mamba_encode(&o.t, longer, 100, 0, ids, 100, &n, &err), MAMBA_ERR_UNSUPPORTED);
    CHECK_INT(live_blocks, 1); /* the section */
    owned_free(&o);
}

/* The four pre-tokenizers of Falcon. */
#define FALCON(punctuation, bytes, digits, split)                                                  \
    "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Punctuation\"" punctuation              \
    "},{\"type\":\"ByteLevel\"" bytes "},{\"type\":\"Digits\"" digits                              \
    "},{\"type\":\"Split\"" split "}]}"
#define CONTIGUOUS ",\"behavior\":\"Contiguous\""
#define NO_SPACE ",\"add_prefix_space\":false,\"trim_offsets\":true"
#define TOGETHER ",\"individual_digits\":false"
#define THREE                                                                                      \
    ",\"pattern\":{\"Regex\":\"[0-9][0-9][0-9]\"},\"behavior\":\"Isolated\",\"invert\":false"

TEST(conversion_refuses_what_it_does_not_know)
{
#define A "\"added_tokens\":[],"
    static const struct {
        recipe r;
        tl_status status;
        const char *message;
    } cases[] = {
        {{.normalizer = "{\"type\":\"NFKC\"}"},
         TL_ERR_UNSUPPORTED,
         "normalizer.type: found \"NFKC\""},
        {{.normalizer = "{\"type\":\"NFC\",\"x\":1}"}, TL_ERR_UNSUPPORTED, "unknown option \"x\""},
        {{.normalizer =
              "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":\"NFC\"}]}"},
         TL_ERR_UNSUPPORTED,
         "normalizer: found an array of 2"},
        {{.normalizer = "\"NFC\""}, TL_ERR_UNSUPPORTED, "normalizer: found \"NFC\""},
        {{.pre = "null"}, TL_ERR_UNSUPPORTED, "pre_tokenizer.type: found nothing"},
        {{.pre = "{\"type\":\"Whitespace\"}"},
         TL_ERR_UNSUPPORTED,
         "pre_tokenizer.type: found \"Whitespace\""},
        {{.pre = "{\"type\":\"ByteLevel\",\"use_regex\":1}"},
         TL_ERR_UNSUPPORTED,
         "use_regex: found 1"},
        {{.pre = "{\"type\":\"ByteLevel\",\"new\":true}"},
         TL_ERR_UNSUPPORTED,
         "unknown option \"new\""},
        {{.pre = FALCON(CONTIGUOUS, NO_SPACE, TOGETHER, THREE)}, TL_OK, ""},
        {{.pre = FALCON(CONTIGUOUS, NO_SPACE ",\"use_regex\":true", TOGETHER, THREE)}, TL_OK, ""},
        {{.pre = FALCON("", NO_SPACE, TOGETHER, THREE)},
         TL_ERR_UNSUPPORTED,
         "pre_tokenizer.pretokenizers[0].behavior: found nothing, supported: \"Contiguous\""},
        {{.pre = FALCON(CONTIGUOUS ",\"x\":1", NO_SPACE, TOGETHER, THREE)},
         TL_ERR_UNSUPPORTED,
         "pre_tokenizer.pretokenizers[0]: unknown option \"x\""},
        {{.pre = FALCON(CONTIGUOUS, "", TOGETHER, THREE)},
         TL_ERR_UNSUPPORTED,
         "pretokenizers[1].add_prefix_space: found nothing, supported: false"},
        {{.pre = FALCON(CONTIGUOUS, NO_SPACE ",\"use_regex\":false", TOGETHER, THREE)},
         TL_ERR_UNSUPPORTED,
         "pretokenizers[1].use_regex: found false, supported: true"},
        {{.pre = FALCON(CONTIGUOUS, NO_SPACE, ",\"individual_digits\":true", THREE)},
         TL_ERR_UNSUPPORTED,
         "pretokenizers[2].individual_digits: found true, supported: false"},
        {{.pre = FALCON(CONTIGUOUS, NO_SPACE, TOGETHER,
                        ",\"pattern\":{\"Regex\":\"[0-9]\"},\"behavior\":\"Isolated\",\"invert\":"
                        "false")},
         TL_ERR_UNSUPPORTED,
         "pretokenizers[3].pattern.Regex: found \"[0-9]\", supported: \"[0-9][0-9][0-9]\""},
        {{.pre = FALCON(CONTIGUOUS, NO_SPACE, TOGETHER,
                        ",\"pattern\":{\"String\":\"[0-9][0-9][0-9]\"},\"behavior\":\"Isolated\","
                        "\"invert\":false")},
         TL_ERR_UNSUPPORTED,
         "pretokenizers[3].pattern: unknown option \"String\""},
        {{.pre = FALCON(CONTIGUOUS, NO_SPACE, TOGETHER, "")},
         TL_ERR_UNSUPPORTED,
         "pretokenizers[3].pattern.Regex: found nothing"},
        {{.pre = "{\"type\":\"Sequence\",\"pretokenizers\":[1,2,3,4]}"},
         TL_ERR_UNSUPPORTED,
         "pretokenizers[0].type: found nothing, supported: \"Punctuation\""},
        {{.pre = "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\"},{\"type\":"
                 "\"ByteLevel\"}]}"},
         TL_ERR_UNSUPPORTED,
         "pre_tokenizer: found an array of 2"},
        {{.fallback = 1}, TL_OK, ""},
        {{.fallback = 1, .normalizer = REPLACE, .pre = "null"}, TL_OK, ""},
        {{.fallback = 1, .normalizer = PREPEND, .pre = "null"}, TL_OK, ""},
        {{.fallback = 1, .decoder = SPACES("", STRIP("1"))}, TL_OK, ""},
        {{.fallback = 2}, TL_ERR_UNSUPPORTED, "model.vocab: found no token for U+2581"},
        {{.fallback = 1, .without = 1 + 0xAB}, TL_ERR_UNSUPPORTED, "no token for byte 171"},
        {{.fallback = 1, .pre = "null"}, TL_ERR_UNSUPPORTED, "pre_tokenizer.type: found nothing"},
        {{.fallback = 1, .normalizer = REPLACE},
         TL_ERR_UNSUPPORTED,
         "pre_tokenizer: found an object of 4, supported: null beside a normalizer of spaces"},
        {{.fallback = 1, .normalizer = "{\"type\":\"NFC\"}"},
         TL_ERR_UNSUPPORTED,
         "normalizer.type: found \"NFC\", supported: \"Replace\""},
        {{.fallback = 1,
          .normalizer = "{\"type\":\"Sequence\",\"normalizers\":[" REPLACE "," REPLACE "]}"},
         TL_ERR_UNSUPPORTED,
         "normalizer.normalizers[0].type: found \"Replace\", supported: \"Prepend\""},
        {{.fallback = 1, .pre = METASPACE(",\"prepend_scheme\":\"first\"")},
         TL_ERR_UNSUPPORTED,
         "pre_tokenizer.split: found nothing, supported: false"},
        {{.fallback = 1, .pre = METASPACE(",\"prepend_scheme\":\"last\",\"split\":false")},
         TL_ERR_UNSUPPORTED,
         "pre_tokenizer.prepend_scheme: found \"last\""},
        {{.fallback = 1,
          .pre = METASPACE(
              ",\"prepend_scheme\":\"first\",\"split\":false,\"add_prefix_space\":false")},
         TL_ERR_UNSUPPORTED,
         "pre_tokenizer.prepend_scheme: found \"first\", supported: \"never\""},
        {{.fallback = 1, .pre = "{\"type\":\"Metaspace\",\"replacement\":\"_\",\"split\":false}"},
         TL_ERR_UNSUPPORTED,
         "pre_tokenizer.replacement: found \"_\""},
        {{.fallback = 1, .decoder = "{\"type\":\"Metaspace\"}"},
         TL_ERR_UNSUPPORTED,
         "decoder: found an object of 1"},
        {{.fallback = 1, .decoder = SPACES("", STRIP("2"))},
         TL_ERR_UNSUPPORTED,
         "decoder.decoders[3].start: found 2, supported: 1"},
        {{.fallback = 1, .decoder = SPACES("{\"type\":\"Fuse\"},", "")},
         TL_ERR_UNSUPPORTED,
         "decoder.decoders[0].type: found \"Fuse\", supported: \"Replace\""},
        {{.fallback = 1, .top = "\"added_tokens\":[{\"id\":65,\"content\":\"<0x41>\"}],"},
         TL_ERR_UNSUPPORTED,
         "added_tokens.content: found \"<0x41>\""},
        {{.fallback = 1, .top = "\"added_tokens\":[{\"id\":300,\"content\":\"a" LINE "\"}],"},
         TL_ERR_UNSUPPORTED,
         "added_tokens.content: found"},
        {{.fallback = 1,
          .normalizer = PREPEND,
          .pre = "null",
          .top = "\"added_tokens\":[{\"id\":300,\"content\":\"ab\",\"normalized\":true}],"},
         TL_ERR_UNSUPPORTED,
         "added_tokens.normalized: found \"ab\", supported: false beside a normalizer"},
        {{.decoder = "null"}, TL_ERR_UNSUPPORTED, "decoder.type: found nothing"},
        {{.decoder = "{\"type\":\"WordPiece\"}"},
         TL_ERR_UNSUPPORTED,
         "decoder.type: found \"WordPiece\""},
        {{.post = "{\"type\":\"BertProcessing\"}"}, TL_ERR_UNSUPPORTED, "post_processor.type"},
        {{.options = "\"dropout\":0.1,"}, TL_ERR_UNSUPPORTED, "model.dropout: found 0.1"},
        {{.options = "\"byte_fallback\":true,"},
         TL_ERR_UNSUPPORTED,
         "pre_tokenizer.type: found \"ByteLevel\", supported: \"Metaspace\""},
        {{.options = "\"ignore_merges\":true,"},
         TL_ERR_UNSUPPORTED,
         "model.ignore_merges: found true"},
        {{.options = "\"continuing_subword_prefix\":\"##\","},
         TL_ERR_UNSUPPORTED,
         "continuing_subword_prefix: found"},
        {{.options = "\"end_of_word_suffix\":\"</w>\","},
         TL_ERR_UNSUPPORTED,
         "end_of_word_suffix: found"},
        {{.options = "\"later\":1,"}, TL_ERR_UNSUPPORTED, "unknown option \"later\""},
        {{.options = "\"unk_token\":\"a\",", .without = 2},
         TL_ERR_UNSUPPORTED,
         "no token for byte 1"},
        {{.top = A "\"truncation\":{},"}, TL_ERR_UNSUPPORTED, "truncation: found an object of 0"},
        {{.top = A "\"padding\":true,"}, TL_ERR_UNSUPPORTED, "padding: found true"},
        {{.top = A "\"extra\":true,"}, TL_ERR_UNSUPPORTED, "unknown option \"extra\""},
        {{.vocab = ",\"ab\":-1"}, TL_ERR_FORMAT, "model.vocab: found id -1"},
        {{.vocab = ",\"ab\":256.0"}, TL_ERR_FORMAT, "model.vocab: found id 256.0"},
        {{.vocab = ",\"ab\":\"256\""}, TL_ERR_FORMAT, "model.vocab: found id \"256\""},
        {{.vocab = ",\"ab\":66300"}, TL_ERR_FORMAT, "found id 66300"},
        {{.vocab = ",\"ab\":99999999999999999999"}, TL_ERR_FORMAT, "found id 99999999999999999999"},
        {{.vocab = ",\"ab\":97"}, TL_ERR_FORMAT, "id 97 is given to \"a\" and to \"ab\""},
        {{.vocab = ",\"a\":256"}, TL_ERR_FORMAT, "small"},
        {{.merges = "\"a b\""},
         TL_ERR_FORMAT,
         "model.merges[0]: found \"ab\", allowed: strings of model.vocab"},
        {{.merges = "\"a zz\"", .vocab = ",\"ab\":256"}, TL_ERR_FORMAT, "found \"zz\""},
        {{.merges = "\"ab\"", .vocab = ",\"ab\":256"},
         TL_ERR_FORMAT,
         "model.merges[0]: found \"ab\""},
        {{.merges = "\"a b c\"", .vocab = ",\"abc\":256"},
         TL_ERR_FORMAT,
         "model.merges[0]: found \"a b c\""},
        {{.merges = "[\"a\"]"}, TL_ERR_FORMAT, "model.merges[0]: found an array of 1"},
        {{.merges = "[\"a\",1]"}, TL_ERR_FORMAT, "model.merges[0]: found an array of 2"},
        {{.merges = "7"}, TL_ERR_FORMAT, "model.merges[0]: found 7"},
        {{.merges = "[\"\\u4e00\",\"a\"]", .vocab = ",\"\\u4e00\":256,\"\\u4e00a\":257"},
         TL_OK,
         ""},
        {{.merges = "[\"\\u0120\",\"\\u4e00\"]",
          .vocab = ",\"\\u4e00\":256,\"\\u0120\\u4e00\":257"},
         TL_ERR_FORMAT,
         "bytes of the merged token are not those of its halves"},
        {{.top = "\"added_tokens\":[{\"id\":256,\"content\":\"\"}],"},
         TL_ERR_FORMAT,
         "added_tokens[0].content"},
        {{.top = "\"added_tokens\":[{\"id\":256}],"},
         TL_ERR_FORMAT,
         "added_tokens[0].content: found nothing"},
        {{.top = "\"added_tokens\":[{\"content\":\"x\"}],"},
         TL_ERR_FORMAT,
         "added_tokens: found id nothing"},
        {{.top = "\"added_tokens\":[{\"id\":256,\"content\":\"a\"}],"},
         TL_ERR_FORMAT,
         "as id 97, found id 256"},
        {{.top = "\"added_tokens\":[{\"id\":97,\"content\":\"xyz\"}],"},
         TL_ERR_FORMAT,
         "id 97 is given to"},
        {{.top = "\"added_tokens\":[{\"id\":97,\"content\":\"a\"},{\"id\":97,\"content\":\"a\"}],"},
         TL_ERR_FORMAT,
         "added_tokens[1]"},
        {{.top = "\"added_tokens\":[{\"id\":256,\"content\":\"xx\",\"single_word\":true}],"},
         TL_ERR_UNSUPPORTED,
         "single_word: found true"},
        {{.top = "\"added_tokens\":[{\"id\":256,\"content\":\"xx\",\"lstrip\":0}],"},
         TL_ERR_UNSUPPORTED,
         "lstrip: found 0"},
        {{.top = "\"added_tokens\":[{\"id\":256,\"content\":\"xx\",\"color\":0}],"},
         TL_ERR_UNSUPPORTED,
         "unknown option \"color\""},
        {{.top = "\"added_tokens\":[{\"id\":256,\"content\":\"e\\u0301\"}],",
          .normalizer = "{\"type\":\"NFC\"}"},
         TL_ERR_UNSUPPORTED,
         "added_tokens.normalized"},
        {{.options = "\"unk_token\":\"a\",\"fuse_unk\":false,\"continuing_subword_prefix\":\"\","
                     "\"dropout\":0.0,"},
         TL_OK,
         ""},
        {{.post = "{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"},{\"type\":"
                  "\"TemplateProcessing\"}]}"},
         TL_OK,
         ""},
        {{.pre = "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"ByteLevel\",\"use_regex\":"
                 "true}]}"},
         TL_OK,
         ""},
        {{.vocab = ",\"\":256"}, TL_OK, ""},
        {{.normalizer = "{\"type\":\"Sequence\",\"normalizers\":[]}"}, TL_OK, ""},
        {{.merges = "\"#version: 0.2\",\"a b\"", .vocab = ",\"ab\":256"}, TL_OK, ""},
        {{.top = "\"added_tokens\":[{\"id\":195,\"content\":\"\\u00c3\"}],"}, TL_OK, ""},
        {{.merges = "\"a b\",\"a c\",\"a b\"", .vocab = ",\"ab\":256,\"ac\":257"}, TL_OK, ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        owned o;
        tl_error err;
        CHECK_INT(small_convert(&cases[i].r, &o, &err), cases[i].status);
        CHECK_CONTAINS(err.message, cases[i].message);
        CHECK((o.section != NULL) == (cases[i].status == TL_OK));
        owned_free(&o);
        CHECK_INT(live_blocks, 0);
    }
}

TEST(a_token_of_64_kib)
{
    /* "aa", "aaaa", … up to 65536 letters, each the double of the one before */
    static char vocab[150000];
    char *v = vocab;
    recipe r;
    owned o;
    static char text[65536 * 2 + 5];
    size_t n = 0;
    int32_t ids[10];
    memset(&r, 0, sizeof r);
    for (unsigned k = 1; k <= 16; k++) {
        *v++ = ',';
        *v++ = '"';
        memset(v, 'a', (size_t)1 << k);
        v += (size_t)1 << k;
        v += sprintf(v, "\":%u", 255 + k);
    }
    *v = 0;
    r.vocab = vocab;
    r.merges = "\"a a\"";
    CHECK((size_t)(v - vocab) < sizeof vocab);
    REQUIRE(small_open(&r, &o));
    CHECK_INT(o.t.max_token_bytes, 65536);
    memset(text, 'a', sizeof text);
    CHECK_INT(mamba_encode(&o.t, text, 4, 0, ids, 10, &n, NULL), MAMBA_OK);
    CHECK(n == 2 && ids[0] == 256 && ids[1] == 256);
    {
        size_t n_out = 0;
        int32_t big = 271;
        CHECK_INT(mamba_decode(&o.t, &big, 1, text, sizeof text, &n_out, NULL), MAMBA_OK);
        CHECK_INT(n_out, 65536);
    }
    owned_free(&o);
}

/* ---- hostile sections ---- */

static const recipe hostile = {
    "\"added_tokens\":[{\"id\":270,\"content\":\"<e>\",\"special\":true,\"normalized\":false},"
    "{\"id\":261,\"content\":\"  \",\"special\":false,\"normalized\":true}],",
    "{\"type\":\"NFC\"}",
    NULL,
    NULL,
    NULL,
    NULL,
    ",\"th\":256,\"\\u0120t\":257,\"\\u0120th\":258,\"he\":259,\"the\":260",
    "\"t h\",\"\\u0120 t\",\"\\u0120 th\",\"h e\",\"th e\"",
    0, 0};

static const recipe fallback_hostile = {
    "\"added_tokens\":[{\"id\":270,\"content\":\"<e>\",\"special\":true,\"normalized\":false},"
    "{\"id\":261,\"content\":\"  \",\"special\":false,\"normalized\":true}],",
    NULL,
    METASPACE(",\"prepend_scheme\":\"never\",\"split\":false"),
    NULL,
    NULL,
    NULL,
    ",\"t\":257,\"h\":258,\"th\":259,\"" LINE "th\":260,\"\\u00e9\":262",
    "\"t h\",\"" LINE " th\"",
    0,
    1};

/* A section that was accepted must be safe, whatever it holds. Exactly sized heap copies let the
 * address sanitizer see one byte too far. 1: accepted. */
static int try_section(const unsigned char *bytes, size_t n)
{
    static const char text[] = "the then  th\xC3\xA9 e\xCC\x81<e> \xFF\x00 the";
    unsigned char *copy = (unsigned char *)malloc(n != 0 ? n : 1);
    mamba_tokenizer t;
    mamba_error err;
    mamba_status status;
    memset(&err, 0, sizeof err);
    if (copy == NULL) {
        return 0;
    }
    memcpy(copy, bytes, n);
    status = mbi_tok_open(&t, copy, n, &hooks, &err);
    if (status == MAMBA_OK) {
        size_t n_ids, n_out;
        int32_t ids[100];
        char out[4000];
        for (unsigned flags = 0; flags < 4; flags++) {
            size_t used = flags < 2 ? sizeof text - 10 : sizeof text - 1; /* valid UTF-8, or not */
            status = mamba_encode(&t, text, used, flags, ids, 100, &n_ids, NULL);
            CHECK(status == MAMBA_OK || status == MAMBA_ERR_UNSUPPORTED);
            if (status == MAMBA_OK) {
                CHECK_INT(mamba_decode(&t, ids, n_ids, out, sizeof out, &n_out, NULL), MAMBA_OK);
            }
            if (status == MAMBA_OK && flags >= 2
                && (t.flags & (MBI_TOK_PREFIX_SPACE | MBI_TOK_STRIP_SPACE)) == 0
                && ((mbi_load_u32(t.added + 4) | mbi_load_u32(t.added + 12)) & 12) == 0) {
                CHECK(n_out == used && memcmp(out, text, used) == 0);
            }
        }
        for (int32_t id = -1; id <= mamba_token_count(&t); id++) {
            (void)mamba_decode(&t, &id, 1, out, sizeof out, &n_out, NULL);
        }
        free(copy);
        return 1;
    }
    CHECK(status == MAMBA_ERR_FORMAT || status == MAMBA_ERR_VERSION);
    CHECK(err.status == status && err.what[0] != 0 && strncmp(err.name, "tokenizer", 9) == 0);
    free(copy);
    return 0;
}

static void run_hostile(const recipe *r)
{
    static const uint32_t values[] = {0,          1,          2,          0x7FFFFFFE, 0x7FFFFFFF,
                                      0x80000000, 0x80000001, 0xFFFFFFFE, 0xFFFFFFFF};
    owned o;
    unsigned char *copy;
    int accepted = 0;
    REQUIRE(small_open(r, &o));
    CHECK(o.t.n_added == 2);
    copy = (unsigned char *)malloc(o.bytes + 1);
    REQUIRE(copy != NULL);
    CHECK_INT(try_section(o.section, o.bytes), 1);
    for (size_t n = 0; n < o.bytes && test_state.failures == 0; n++) {
        memcpy(copy, o.section, o.bytes);
        CHECK_INT(try_section(copy, n), 0);
        voc_put32(copy + 8, (uint32_t)n); /* also with a size that agrees */
        CHECK_INT(n < 64 ? 0 : try_section(copy, n), 0);
    }
    memcpy(copy, o.section, o.bytes);
    copy[o.bytes] = 0;
    CHECK_INT(try_section(copy, o.bytes + 1), 0);
    for (size_t bit = 0; bit < 8 * o.bytes && test_state.failures == 0; bit++) {
        memcpy(copy, o.section, o.bytes);
        copy[bit / 8] ^= (unsigned char)(1u << bit % 8);
        accepted += try_section(copy, o.bytes);
    }
    for (size_t at = 0; at + 4 <= o.bytes && test_state.failures == 0; at += 4) {
        uint32_t old = mbi_load_u32(o.section + at);
        for (size_t k = 0; k < 11; k++) {
            memcpy(copy, o.section, o.bytes);
            voc_put32(copy + at, k < 9 ? values[k] : k == 9 ? old + 1 : old - 1);
            accepted += try_section(copy, o.bytes);
        }
    }
    for (int i = 0; i < 20000 && test_state.failures == 0; i++) { /* several fields at once */
        memcpy(copy, o.section, o.bytes);
        for (uint32_t k = 1 + random_below(4); k > 0; k--) {
            size_t at = 4 * (size_t)random_below((uint32_t)(random_below(2) ? 16 : o.bytes / 4));
            voc_put32(copy + at,
                      mbi_load_u32(o.section + 4 * (size_t)random_below((uint32_t)(o.bytes / 4))));
        }
        accepted += try_section(copy, o.bytes);
    }
    printf("hostile_sections: %d of the damaged sections were valid and harmless\n", accepted);
    free(copy);
    owned_free(&o);
    CHECK_INT(live_blocks, 0);
}

TEST(hostile_sections)
{
    recipe falcon = hostile;
    falcon.pre = FALCON(CONTIGUOUS, NO_SPACE, TOGETHER, THREE);
    run_hostile(&hostile);
    run_hostile(&falcon);
    run_hostile(&fallback_hostile);
}

/* A table full of one key's neighbours, a wrapped size, a token of 4 GiB: the checks by name. */
TEST(hostile_sections_by_name)
{
    owned o;
    unsigned char *p;
    mamba_tokenizer t;
    mamba_error err;
    size_t slots, taken = 0, free_slot = 0;
    REQUIRE(small_open(&hostile, &o));
    p = o.section;
    slots = o.t.n_slots;
    memset(&err, 0, sizeof err);
#define REFUSED(offset, value, field, text)                                                        \
    do {                                                                                           \
        uint32_t old = mbi_load_u32(p + (offset));                                                 \
        voc_put32(p + (offset), (value));                                                          \
        CHECK(mbi_tok_open(&t, p, o.bytes, &hooks, &err) != MAMBA_OK);                             \
        CHECK_CONTAINS(err.name, field);                                                           \
        CHECK_CONTAINS(err.what, text);                                                            \
        voc_put32(p + (offset), old);                                                              \
    } while (0)
    for (size_t i = 0; i < slots; i++) {
        *(mbi_load_u32(p + 64 + 16 * i) != MBI_TOK_NONE ? &taken : &free_slot) = i;
    }
    REFUSED(0, 1, "tokenizer.magic", "out of range");
    REFUSED(4, 3, "tokenizer.version", "out of range");
    CHECK_INT(err.status, MAMBA_ERR_VERSION);
    REFUSED(8, (uint32_t)o.bytes + 1, "tokenizer.bytes", "out of range");
    REFUSED(12, 3, "tokenizer.kind", "out of range");
    REFUSED(12, 1, "tokenizer.n_slots", "power of two");
    REFUSED(16, 4, "tokenizer.flags", "out of range");
    REFUSED(20, 2, "tokenizer.split", "out of range");
    REFUSED(24, 0, "tokenizer.n_ids", "out of range");
    REFUSED(24, 1u << 25, "tokenizer.n_ids", "out of range");
    REFUSED(28, 1, "tokenizer.heap", "does not fit");
    REFUSED(32, 2, "tokenizer.added", "flags contradict");
    REFUSED(36, (uint32_t)slots + 1, "tokenizer.n_slots", "power of two");
    REFUSED(40, 0, "tokenizer.n_merges", "number of taken slots");
    REFUSED(48, 2, "tokenizer.max_token_bytes", "longest");
    REFUSED(52, 269, "tokenizer.special", "no such id");
    REFUSED(56, 271, "tokenizer.special", "no such id");
    REFUSED(64 + 16 * taken, 269, "tokenizer.merges", "no such id");
    REFUSED(64 + 16 * taken + 4, 999, "tokenizer.merges", "no such id");
    REFUSED(64 + 16 * taken + 8, MBI_TOK_NONE, "tokenizer.merges", "without a rank");
    REFUSED(64 + 16 * taken + 12, 'a', "tokenizer.merges", "not those of its halves");
    REFUSED(64 + 16 * free_slot, 'a', "tokenizer.n_merges", "number of taken slots");
    REFUSED((size_t)(o.t.offsets - p) + 4, 70000, "tokenizer.offsets", "not rising");
    REFUSED((size_t)(o.t.byte_ids - p), 1, "tokenizer.byte_ids", "not an id of that one byte");
    REFUSED((size_t)(o.t.added - p), 'a', "tokenizer.added", "not the id of an added token");
    REFUSED((size_t)(o.t.added - p) + 4, 16, "tokenizer.added", "flags contradict");
    REFUSED((size_t)(o.t.id_flags - p), 0x01010800, "tokenizer.id_flags", "unknown flags");
    CHECK_INT(mbi_tok_open(&t, p, o.bytes, &hooks, &err), MAMBA_OK);
    owned_free(&o);
    { /* what came with version 2 is refused in version 1, and its header has more to check */
        recipe falcon = hostile;
        falcon.pre = FALCON(CONTIGUOUS, NO_SPACE, TOGETHER, THREE);
        REQUIRE(small_open(&falcon, &o));
        p = o.section;
        CHECK_INT(mbi_load_u32(p + 4), 2);
        REFUSED(4, 1, "tokenizer.split", "out of range");
        REFUSED(20, 3, "tokenizer.split", "out of range");
        REFUSED(76, 1, "tokenizer.reserved", "not zero");
        REFUSED(64, 1, "tokenizer.n_chars", "out of range");
        CHECK_INT(mbi_tok_open(&t, p, 72, &hooks, &err), MAMBA_ERR_FORMAT);
        owned_free(&o);
    }
    { /* characters */
        size_t chars;
        REQUIRE(small_open(&fallback_hostile, &o));
        p = o.section;
        chars = (size_t)(o.t.chars - p);
        CHECK_INT(o.t.n_chars, 4);
        REFUSED(4, 1, "tokenizer.kind", "out of range");
        REFUSED(12, 2, "tokenizer.n_chars", "out of range");
        REFUSED(16, 32, "tokenizer.flags", "out of range");
        REFUSED(64, 272, "tokenizer.n_chars", "out of range");
        REFUSED(chars, 0x110000, "tokenizer.chars", "not a code point");
        REFUSED(chars + 8, ' ', "tokenizer.chars", "not rising");
        REFUSED(chars + 8, 'i', "tokenizer.chars", "not an id of that character");
        REFUSED(chars + 12, 257, "tokenizer.chars", "not an id of that character");
        REFUSED(chars + 12, 999, "tokenizer.chars", "not an id of that character");
        owned_free(&o);
    }
    { /* 512 slots, 256 taken in a row: one more look-up step than allowed would follow */
        static const recipe many = {NULL, NULL,          NULL,      NULL, NULL,
                                    NULL, ",\"ab\":256", "\"a b\"", 0, 0};
        unsigned char *big;
        size_t extra = 16 * 1022;
        REQUIRE(small_open(&many, &o));
        CHECK_INT(o.t.n_slots, 2);
        big = (unsigned char *)malloc(o.bytes + extra);
        REQUIRE(big != NULL);
        memcpy(big, o.section, 64);
        memset(big + 64, 0xFF, 16 * 1024);
        memcpy(big + 64 + 16 * 1024, o.section + 64 + 32, o.bytes - 64 - 32);
        for (uint32_t i = 0; i < 300; i++) {
            voc_put32(big + 64 + (size_t)16 * i, 'a');
        }
        voc_put32(big + 8, (uint32_t)(o.bytes + extra));
        voc_put32(big + 36, 1024);
        voc_put32(big + 40, 300);
        CHECK_INT(mbi_tok_open(&t, big, o.bytes + extra, &hooks, &err), MAMBA_ERR_FORMAT);
        CHECK_CONTAINS(err.what, "too many taken slots in a row");
        free(big);
        owned_free(&o);
    }
}

/* ---- SentencePiece models ---- */

typedef struct {
    unsigned char bytes[40000];
    size_t n;
} proto;

static void proto_varint(proto *p, uint64_t v)
{
    for (; v >= 0x80; v >>= 7) {
        p->bytes[p->n++] = (unsigned char)(v | 0x80);
    }
    p->bytes[p->n++] = (unsigned char)v;
}

static void proto_number(proto *p, unsigned field, uint64_t v)
{
    proto_varint(p, field << 3);
    proto_varint(p, v);
}

static void proto_bytes(proto *p, unsigned field, const void *bytes, size_t n)
{
    proto_varint(p, field << 3 | 2);
    proto_varint(p, n);
    memcpy(p->bytes + p->n, bytes, n);
    p->n += n;
}

static void proto_piece(proto *p, const char *text, size_t n, float score, unsigned type)
{
    proto piece;
    uint32_t bits;
    piece.n = 0;
    memcpy(&bits, &score, 4);
    proto_bytes(&piece, 1, text, n);
    piece.bytes[piece.n++] = 2 << 3 | 5;
    voc_put32(piece.bytes + piece.n, bits);
    piece.n += 4;
    if (type != 1) {
        proto_number(&piece, 3, type);
    }
    proto_bytes(p, 1, piece.bytes, piece.n);
}

/* The parts of a model behind its pieces; fields are left out where they have the default. */
typedef struct {
    unsigned type, fallback, suffix, extra_spaces, no_prefix, no_escape;
    const char *map, *back; /* character maps */
    const char *piece;      /* one more piece, of score and type */
    float score;
    unsigned piece_type;
    const char *tail; /* bytes at the end, tail_bytes of them */
    size_t tail_bytes;
} sp_recipe;

static void proto_specs(proto *p, const sp_recipe *r)
{
    proto part;
    if (r->piece != NULL) {
        proto_piece(p, r->piece, strlen(r->piece), r->score, r->piece_type);
    }
    part.n = 0;
    proto_bytes(&part, 2, "name", 4);
    proto_number(&part, 3, r->type);
    proto_number(&part, 35, r->fallback);
    if (r->suffix) {
        proto_number(&part, 24, 1);
    }
    proto_number(&part, 43, UINT64_MAX);
    proto_bytes(p, 2, part.bytes, part.n);
    part.n = 0;
    proto_bytes(&part, 1, "identity", 8);
    proto_bytes(&part, 2, r->map != NULL ? r->map : "", r->map != NULL ? strlen(r->map) : 0);
    proto_number(&part, 4, r->extra_spaces);
    if (r->no_prefix) {
        proto_number(&part, 3, 0);
    }
    if (r->no_escape) {
        proto_number(&part, 5, 0);
    }
    proto_bytes(p, 3, part.bytes, part.n);
    if (r->back != NULL) {
        part.n = 0;
        proto_bytes(&part, 2, r->back, strlen(r->back));
        proto_bytes(p, 5, part.bytes, part.n);
    }
    memcpy(p->bytes + p->n, r->tail, r->tail_bytes);
    p->n += r->tail_bytes;
}

static const sp_recipe sp_plain = {2, 1, 0, 0, 0, 0, NULL, NULL, NULL, 0, 0, "", 0};

/* A small model: control pieces, all bytes, a few more. */
static void proto_small(proto *p, const sp_recipe *r)
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
    p->n = 0;
    proto_piece(p, "<unk>", 5, 0, SP_UNKNOWN);
    proto_piece(p, "<s>", 3, 0, SP_CONTROL);
    proto_piece(p, "</s>", 4, 0, SP_CONTROL);
    for (unsigned b = 0; b < 256; b++) {
        char name[8];
        proto_piece(p, name, (size_t)sprintf(name, "<0x%02X>", b), 0, SP_BYTE);
    }
    for (size_t i = 0; i < sizeof pieces / sizeof pieces[0]; i++) {
        proto_piece(p, pieces[i].text, strlen(pieces[i].text), pieces[i].score, SP_NORMAL);
    }
    proto_specs(p, r);
}

static tl_status proto_convert(const unsigned char *bytes, size_t n, owned *o, tl_error *err)
{
    unsigned char *copy = (unsigned char *)malloc(n != 0 ? n : 1); /* exactly as long */
    tl_status status;
    memset(err, 0, sizeof *err);
    memset(o, 0, sizeof *o);
    if (copy == NULL) {
        return TL_ERR_MEMORY;
    }
    memcpy(copy, bytes, n);
    status = voc_convert_sentencepiece(copy, n, "small.model", &o->section, &o->bytes, err);
    free(copy);
    return status;
}

TEST(sentencepiece_cases)
{
    json_doc doc;
    tl_error err;
    proto p;
    owned o;
    json_id vocab;
    memset(&err, 0, sizeof err);
    p.n = 0;
    REQUIRE(json_read(mistral_json, (uint64_t)1 << 20, 0, &doc, &err) == TL_OK);
    vocab = json_get(&doc, json_get(&doc, JSON_ROOT, "model"), "vocab");
    for (json_id m = json_first(&doc, vocab); m != JSON_NONE; m = json_next(&doc, m)) {
        uint64_t id = 0; /* they are in order */
        CHECK(json_u64(&doc, m, &id));
        proto_piece(&p, json_key(&doc, m).ptr, json_key(&doc, m).len,
                    id < 261 ? 0.0f : -(float)((id - 261) / 25),
                    id == 0    ? SP_UNKNOWN
                    : id < 5   ? SP_CONTROL
                    : id < 261 ? SP_BYTE
                               : SP_NORMAL);
    }
    json_free(&doc);
    proto_specs(&p, &sp_plain);
    CHECK_INT(proto_convert(p.bytes, p.n, &o, &err), TL_OK);
    REQUIRE(o.section != NULL && owned_open(&o));
    CHECK_INT(o.t.special[0], 1);
    CHECK_INT(o.t.special[1], 2);
    CHECK_INT(o.t.special[2], MBI_TOK_NONE);
    run_open_cases(o, "tests/golden/tokenizer/sentencepiece.cases.json", 201, 0);
    CHECK_INT(live_blocks, 0);
}

TEST(sentencepiece_options)
{
    static const struct {
        sp_recipe r;
        tl_status status;
        const char *message;
    } cases[] = {
        {{2, 1, 0, 0, 0, 0, NULL, NULL, NULL, 0, 0, "", 0}, TL_OK, ""},
        {{2, 1, 0, 0, 1, 0, NULL, NULL, NULL, 0, 0, "", 0}, TL_OK, ""},
        {{1, 1, 0, 0, 0, 0, NULL, NULL, NULL, 0, 0, "", 0},
         TL_ERR_UNSUPPORTED,
         "small.model: trainer_spec.model_type: found UNIGRAM, supported: BPE"},
        {{9, 1, 0, 0, 0, 0, NULL, NULL, NULL, 0, 0, "", 0}, TL_ERR_UNSUPPORTED, "unknown type"},
        {{2, 0, 0, 0, 0, 0, NULL, NULL, NULL, 0, 0, "", 0},
         TL_ERR_UNSUPPORTED,
         "trainer_spec.byte_fallback: found false"},
        {{2, 1, 1, 0, 0, 0, NULL, NULL, NULL, 0, 0, "", 0},
         TL_ERR_UNSUPPORTED,
         "trainer_spec.treat_whitespace_as_suffix: found true"},
        {{2, 1, 0, 1, 0, 0, NULL, NULL, NULL, 0, 0, "", 0},
         TL_ERR_UNSUPPORTED,
         "normalizer_spec.remove_extra_whitespaces: found true"},
        {{2, 1, 0, 0, 0, 1, NULL, NULL, NULL, 0, 0, "", 0},
         TL_ERR_UNSUPPORTED,
         "normalizer_spec.escape_whitespaces: found false"},
        {{2, 1, 0, 0, 0, 0, "x", NULL, NULL, 0, 0, "", 0},
         TL_ERR_UNSUPPORTED,
         "normalizer_spec: found a precompiled_charsmap"},
        {{2, 1, 0, 0, 0, 0, NULL, "x", NULL, 0, 0, "", 0},
         TL_ERR_UNSUPPORTED,
         "denormalizer_spec: found a precompiled_charsmap"},
        {{2, 1, 0, 0, 0, 0, NULL, NULL, "xy", 0, SP_USER, "", 0},
         TL_ERR_UNSUPPORTED,
         "pieces: found piece 270 user-defined"},
        {{2, 1, 0, 0, 0, 0, NULL, NULL, "xy", 0, SP_UNUSED, "", 0},
         TL_ERR_UNSUPPORTED,
         "pieces: found piece 270 unused"},
        {{2, 1, 0, 0, 0, 0, NULL, NULL, "xy", 0, 7, "", 0}, TL_ERR_FORMAT, "type 7 of piece 270"},
        {{2, 1, 0, 0, 0, 0, NULL, NULL, "xy", 0, SP_BYTE, "", 0},
         TL_ERR_FORMAT,
         "type 6 of piece 270"},
        {{2, 1, 0, 0, 0, 0, NULL, NULL, "<0xab>", 0, SP_NORMAL, "", 0},
         TL_ERR_FORMAT,
         "type 1 of piece 270"},
        {{2, 1, 0, 0, 0, 0, NULL, NULL, "\xE2\x96\x81", 0, SP_CONTROL, "", 0},
         TL_ERR_UNSUPPORTED,
         "control piece with U+2581"},
        {{2, 1, 0, 0, 0, 0, NULL, NULL, "ax", 0, SP_NORMAL, "", 0},
         TL_ERR_UNSUPPORTED,
         "pieces: found token 270 \"ax\", supported: UTF-8 of characters that are tokens"},
        {{2, 1, 0, 0, 0, 0, NULL, NULL, "a\xFF", 0, SP_NORMAL, "", 0},
         TL_ERR_UNSUPPORTED,
         "pieces: found token 270"},
        {{2, 1, 0, 0, 0, 0, NULL, NULL, "aa", 0, SP_NORMAL, "", 0},
         TL_ERR_FORMAT,
         "pieces: found \"aa\" as 262 and 270"},
        {{2, 1, 0, 0, 0, 0, NULL, NULL, "", 0, SP_NORMAL, "", 0},
         TL_ERR_FORMAT,
         "found a piece without text"},
        {{2, 1, 0, 0, 0, 0, NULL, NULL, "aaaa", 1e38f * 1e38f - 1e38f * 1e38f, SP_NORMAL, "", 0},
         TL_ERR_FORMAT,
         "found score NaN of token 270"},
        {{2, 1, 0, 0, 0, 0, NULL, NULL, NULL, 0, 0, "\x32\x00", 2},
         TL_ERR_UNSUPPORTED,
         "model: unknown field 6"},
        {{2, 1, 0, 0, 0, 0, NULL, NULL, NULL, 0, 0, "\x22\x02xx", 4}, TL_OK, ""},
        {{2, 1, 0, 0, 0, 0, NULL, NULL, NULL, 0, 0, "\x12\x00", 2},
         TL_ERR_FORMAT,
         "found a second trainer_spec"},
        {{2, 1, 0, 0, 0, 0, NULL, NULL, NULL, 0, 0, "\x10\x00", 2},
         TL_ERR_FORMAT,
         "trainer_spec, field 2: found a value of kind 0, allowed: 2"},
        {{2, 1, 0, 0, 0, 0, NULL, NULL, NULL, 0, 0, "\x02\x00", 2}, TL_ERR_FORMAT, "found field 0"},
        {{2, 1, 0, 0, 0, 0, NULL, NULL, NULL, 0, 0, "\x0B", 1},
         TL_ERR_FORMAT,
         "found a value of unknown kind"},
        {{2, 1, 0, 0, 0, 0, NULL, NULL, NULL, 0, 0, "\x0A\x7F", 2},
         TL_ERR_FORMAT,
         "longer than what is around it"},
        {{2, 1, 0, 0, 0, 0, NULL, NULL, NULL, 0, 0, "\x0A", 1},
         TL_ERR_FORMAT,
         "found the end within a number"},
        {{2, 1, 0, 0, 0, 0, NULL, NULL, NULL, 0, 0, "\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x02",
          11},
         TL_ERR_FORMAT,
         "found a number of more than 64 bits"},
        {{2, 1, 0, 0, 0, 0, NULL, NULL, NULL, 0, 0, "\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01",
          11},
         TL_ERR_FORMAT,
         "longer than what is around it"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        proto p;
        owned o;
        tl_error err;
        proto_small(&p, &cases[i].r);
        CHECK_INT(proto_convert(p.bytes, p.n, &o, &err), cases[i].status);
        CHECK_CONTAINS(err.message, cases[i].message);
        CHECK((o.section != NULL) == (cases[i].status == TL_OK));
        owned_free(&o);
        CHECK_INT(live_blocks, 0);
    }
}

TEST(sentencepiece_files)
{
    proto p, q;
    owned o;
    tl_error err;
    int accepted = 0;
    proto_small(&p, &sp_plain);
    CHECK_INT(proto_convert(p.bytes, p.n, &o, &err), TL_OK);
    REQUIRE(o.section != NULL && owned_open(&o));
    IDS(&o.t, "the", 0, 261);
    IDS(&o.t, " ", 0, 264, 264);
    IDS(&o.t, "aaaa", 0, 264, 263, 268); /* of equal scores the leftmost pair first */
    IDS(&o.t, "aaa\xC3\xA9\xE2\x82\xAC\xFF", 0, 264, 263, 269, 3 + 0xE2, 3 + 0x82, 3 + 0xAC,
        3 + 0xFF);
    IDS(&o.t, "<s>a", MAMBA_PARSE_SPECIAL, 1, 268);
    owned_free(&o);
    for (size_t n = 0; n < p.n; n++) { /* cut anywhere */
        CHECK(proto_convert(p.bytes, n, &o, &err) != TL_OK);
        CHECK(o.section == NULL && strncmp(err.message, "small.model: ", 13) == 0);
    }
    for (size_t i = 0; i < 8 * p.n; i += i < 8 * p.n - 1200 && i > 400 ? 7 : 1) { /* bits */
        q = p;
        q.bytes[i / 8] ^= (unsigned char)(1u << i % 8);
        if (proto_convert(q.bytes, q.n, &o, &err) == TL_OK && owned_open(&o)) {
            accepted++;
        }
        owned_free(&o);
    }
    printf("sentencepiece_files: %d of the damaged models were valid\n", accepted);
    for (long k = 0;; k++) { /* each allocation fails once */
        tl_status status;
        fail_at = k;
        status = proto_convert(p.bytes, p.n, &o, &err);
        if (fail_at >= 0) {
            fail_at = -1;
            CHECK_INT(status, TL_OK);
            owned_free(&o);
            CHECK(k >= 10);
            break;
        }
        CHECK_INT(status, TL_ERR_MEMORY);
        CHECK_INT(live_blocks, 0);
    }
    CHECK_INT(live_blocks, 0);
}

/* ---- memory that runs out ---- */

TEST(every_allocation_fails_once)
{
    owned o;
    char text[500];
    int32_t ids[600], control[600];
    size_t n = 0, n_control = 0;
    static const recipe prefix = {NULL,
                                  "{\"type\":\"NFC\"}",
                                  "{\"type\":\"ByteLevel\"}",
                                  NULL,
                                  NULL,
                                  NULL,
                                  ",\"aa\":256",
                                  "\"a a\"",
                                  0, 0};
    REQUIRE(small_open(&prefix, &o));
    memset(text, 'a', sizeof text);
    memcpy(text, "e\xCC\x81", 3); /* normalized, prefixed, a long word */
    CHECK_INT(mamba_encode(&o.t, text, sizeof text, 0, control, 600, &n_control, NULL), MAMBA_OK);
    for (long k = 0;; k++) {
        mamba_error err;
        mamba_status status;
        long blocks = live_blocks;
        fail_at = k;
        status = mamba_encode(&o.t, text, sizeof text, 0, ids, 600, &n, &err);
        CHECK_INT(live_blocks, blocks);
        if (fail_at >= 0) {
            fail_at = -1;
            CHECK_INT(status, MAMBA_OK);
            CHECK(k >= 4);
            break;
        }
        CHECK_INT(status, MAMBA_ERR_MEMORY);
        CHECK_INT(err.status, MAMBA_ERR_MEMORY);
        CHECK_INT(n, 0);
    }
    CHECK(n == n_control && memcmp(ids, control, n * sizeof *ids) == 0);
    owned_free(&o);
    for (int i = 0; i < 2; i++) {
        for (long k = 0;; k++) {
            tl_error err;
            tl_status status;
            fail_at = k;
            status = small_convert(i == 0 ? &hostile : &fallback_hostile, &o, &err);
            if (fail_at >= 0) {
                fail_at = -1;
                CHECK_INT(status, TL_OK);
                owned_free(&o);
                CHECK(k >= 8 + 2 * i);
                break;
            }
            CHECK_INT(status, TL_ERR_MEMORY);
            CHECK(o.section == NULL && err.message[0] != 0);
            CHECK_INT(live_blocks, 0);
        }
    }
}

TEST_MAIN("text")
{
    RUN(cases_tales);
    RUN(cases_falcon);
    RUN(cases_with_byte_fallback);
    RUN(cases_gpt_neox);
    RUN(special_tokens_only_on_request);
    RUN(any_bytes_come_back);
    RUN(spaces_come_and_go);
    RUN(merges_by_definition);
    RUN(split_by_the_pattern);
    RUN(split_of_falcon);
    RUN(nfc_samples);
    RUN(nfc_conformance);
    RUN(work_is_n_log_n);
    RUN(streams_give_whole_characters);
    RUN(arguments);
    RUN(added_tokens);
    RUN(prefix_space_and_no_pattern);
    RUN(missing_bytes_are_errors);
    RUN(conversion_refuses_what_it_does_not_know);
    RUN(a_token_of_64_kib);
    RUN(hostile_sections);
    RUN(hostile_sections_by_name);
    RUN(sentencepiece_cases);
    RUN(sentencepiece_options);
    RUN(sentencepiece_files);
    RUN(every_allocation_fails_once);
}
