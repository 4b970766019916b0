/*  clang -std=c99 -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -I. -Itools
 *      tests/fuzz/fuzz_text.c -o build/fuzz_text -lm
 *  build/fuzz_text -max_total_time=60 -timeout=10 -rss_limit_mb=512 -max_len=20000
 *
 *  The first byte chooses what the others are: 0 a tokenizer section, 1 a tokenizer.json, 2 a text,
 *  3 settings and logits of the sampler, 4 a SentencePiece model. What is accepted must do what it promises; abort() is a
 *  finding. Without libFuzzer (-DFUZZ_MAIN) the program takes files and runs each.
 */
#include "base.h"
#include "json.h"

#define MAMBA_IMPLEMENTATION
#define MAMBA_NO_DISPATCH
#include "mamba.h"
#include "sentencepiece.h"

#define EXPECT(x)                                                                                  \
    do {                                                                                           \
        if (!(x)) {                                                                                \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* "the", runs of two spaces and <e>, over all bytes, with NFC. */
static const char small_tail[] =
    ",\"th\":256,\"\\u0120t\":257,\"\\u0120th\":258,\"he\":259,\"the\":260},\"merges\":[\"t "
    "h\",\"\\u0120 t\","
    "\"\\u0120 th\",\"h e\",\"th "
    "e\"]},\"normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":{\"type\":\"ByteLevel\","
    "\"add_prefix_space\":false},\"decoder\":{\"type\":\"ByteLevel\"},\"added_tokens\":[{\"id\":"
    "270,\"content\":\"<e>\","
    "\"special\":true,\"normalized\":false},{\"id\":261,\"content\":\"  "
    "\",\"special\":false,\"normalized\":true}]}";

static void use(const mamba_tokenizer *t, const unsigned char *text, size_t n, unsigned flags)
{
    size_t n_ids, n_out, cap = 4 * n + 1;
    int32_t *ids = (int32_t *)malloc(cap * sizeof *ids);
    char *out;
    mamba_status status;
    EXPECT(ids != NULL);
    status = mamba_encode(t, (const char *)text, n, flags, ids, cap, &n_ids, NULL);
    EXPECT(status == MAMBA_OK || status == MAMBA_ERR_UNSUPPORTED);
    if (status == MAMBA_OK) {
        uint32_t strips = t->flags & (MBI_TOK_PREFIX_SPACE | MBI_TOK_STRIP_SPACE);
        int keeps = (flags & MAMBA_NO_NORMALIZE) != 0
                    || (t->kind != MBI_TOK_CHARS && !mbi_utf8_valid(text, text + n));
        for (uint32_t i = 0; i < t->n_added; i++) {
            strips |=
                mbi_load_u32(t->added + (size_t)8 * i + 4) & (MBI_ADDED_LSTRIP | MBI_ADDED_RSTRIP);
        }
        EXPECT(mamba_decode(t, ids, n_ids, NULL, 0, &n_out, NULL) == MAMBA_OK);
        out = (char *)malloc(n_out + 1);
        EXPECT(out != NULL);
        EXPECT(mamba_decode(t, ids, n_ids, out, n_out, &n_out, NULL) == MAMBA_OK);
        if (strips == 0 && keeps) {
            EXPECT(n_out == n && memcmp(out, text, n) == 0);
        }
        free(out);
    }
    free(ids);
}

static void fuzz_section(const unsigned char *p, size_t n)
{
    static const char text[] = "the then  th\xC3\xA9 e\xCC\x81<e> \xFF\x00 the "
                               "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                               "aaaaaaaaaaaaaaaaaaaaaaaaaaa";
    mamba_tokenizer t;
    if (mbi_tok_open(&t, p, n, NULL, NULL) == MAMBA_OK) {
        for (unsigned flags = 0; flags < 4; flags++) {
            use(&t, (const unsigned char *)text, sizeof text, flags);
        }
    }
}

static void fuzz_json(const unsigned char *p, size_t n)
{
    char *text = (char *)malloc(n + 1);
    json_doc doc;
    tl_error err;
    unsigned char *section;
    size_t bytes;
    voc_ids ids = {0, 1, VOC_NONE};
    memset(&err, 0, sizeof err);
    EXPECT(text != NULL);
    memcpy(text, p, n);
    if (json_parse(text, n, "fuzz", 0, &doc, &err) == TL_OK) {
        if (voc_convert(&doc, "fuzz", ids, &section, &bytes, &err) == TL_OK) {
            fuzz_section(section, bytes);
        } else {
            EXPECT(section == NULL && err.message[0] != 0);
        }
        tl_free(section);
    }
    json_free(&doc);
    free(text);
}

static void fuzz_sentencepiece(const unsigned char *p, size_t n)
{
    unsigned char *section;
    size_t bytes;
    tl_error err;
    memset(&err, 0, sizeof err);
    if (voc_convert_sentencepiece(p, n, "fuzz", &section, &bytes, &err) == TL_OK) {
        fuzz_section(section, bytes);
    } else {
        EXPECT(section == NULL && err.message[0] != 0);
    }
    tl_free(section);
}

static void fuzz_text(const unsigned char *p, size_t n)
{
    static unsigned char *section;
    static size_t bytes;
    mamba_tokenizer t;
    if (section == NULL) {
        char json[20000], *q = json;
        voc_ids ids = {VOC_NONE, VOC_NONE, VOC_NONE};
        json_doc doc;
        tl_error err;
        memset(&err, 0, sizeof err);
        q += sprintf(q, "{\"model\":{\"vocab\":{\"\\u0100\":0");
        for (unsigned b = 1; b < 256; b++) {
            q += sprintf(q, ",\"\\u%04x\":%u", voc_alphabet(b), b);
        }
        q += sprintf(q, "%s", small_tail);
        EXPECT(json_parse(json, (size_t)(q - json), "small", 0, &doc, &err) == TL_OK);
        EXPECT(voc_convert(&doc, "small", ids, &section, &bytes, &err) == TL_OK);
        json_free(&doc);
    }
    EXPECT(mbi_tok_open(&t, section, bytes, NULL, NULL) == MAMBA_OK);
    for (unsigned flags = 0; flags < 4; flags++) {
        use(&t, p, n, flags);
    }
}

static void fuzz_sampler(const unsigned char *p, size_t n)
{
    mamba_sampler s, before;
    float *logits;
    size_t n_logits, n_allowed;
    if (n < sizeof s + 2) {
        return;
    }
    memcpy(&s, p, sizeof s);
    n_allowed = p[sizeof s];
    p += sizeof s + 1;
    n_logits = (n - sizeof s - 1) / 4;
    logits = (float *)malloc(4 * n_logits + 4);
    EXPECT(logits != NULL);
    for (int round = 0; round < 2; round++) {
        int32_t token = -2;
        mamba_status status;
        memcpy(logits, p, 4 * n_logits);
        before = s;
        status = mamba_sample(&s, logits, n_logits, n_allowed, &token, NULL);
        if (status == MAMBA_OK) {
            EXPECT(token >= 0 && (size_t)token < n_logits);
            EXPECT(n_allowed == 0 || (size_t)token < n_allowed);
            EXPECT(mbi_f32_bits(logits[token]) != 0xFF800000u);
        } else {
            EXPECT(status == MAMBA_ERR_ARG || status == MAMBA_ERR_NONFINITE);
            EXPECT(token == -1 && memcmp(&s, &before, sizeof s) == 0);
            EXPECT(memcmp(logits, p, 4 * n_logits) == 0);
        }
    }
    free(logits);
}

int LLVMFuzzerTestOneInput(const unsigned char *p, size_t n);
int LLVMFuzzerTestOneInput(const unsigned char *p, size_t n)
{
    if (n > 0) {
        switch (p[0] & 7) {
        case 0:
            fuzz_section(p + 1, n - 1);
            break;
        case 1:
            fuzz_json(p + 1, n - 1);
            break;
        case 2:
            fuzz_text(p + 1, n - 1);
            break;
        case 4:
            fuzz_sentencepiece(p + 1, n - 1);
            break;
        default:
            fuzz_sampler(p + 1, n - 1);
            break;
        }
    }
    return 0;
}

#ifdef FUZZ_MAIN
int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        char *text;
        size_t n;
        tl_error err;
        memset(&err, 0, sizeof err);
        if (tl_read_all(argv[i], (uint64_t)1 << 30, &text, &n, &err) != TL_OK) {
            fprintf(stderr, "%s\n", err.message);
            return 1;
        }
        (void)LLVMFuzzerTestOneInput((const unsigned char *)text, n);
        tl_free(text);
    }
    printf("%d files\n", argc - 1);
    return 0;
}
#endif
