/*  tools.c: tests of what the tools read: JSON, safetensors, zip, pickle, whole checkpoints,
 *  configurations.
 *
 *  Malformed files are made here, one named case per class of hostile input (the letters and
 *  numbers in the names: J JSON, S safetensors, Z zip, P pickle, G any container); each states the
 *  status and a piece of the message that it must get. Besides: every truncated prefix, every
 *  flipped bit of small files, the k-th allocation and the k-th system call failing for every k. No
 *  memory block and no descriptor may be left.
 *
 *  Reads tests/golden or the folder in MAMBA_GOLDEN; writes to a folder of its own below TMPDIR or
 *  /tmp.
 */
#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

/* ---- hooks: counting, and failing on request ------------------------------------------------- */

static struct {
    long blocks, descriptors;         /* live now */
    long calls, fail_at;              /* allocations so far; the one to fail, 0: none */
    long io_calls, io_fail_at;
    int persistent;                   /* also fail all later ones */
    int fired;
    int dribble;                      /* short reads and EINTR */
} hook;

static int hook_fails(long *calls, long fail_at)
{
    ++*calls;
    if (fail_at != 0 && (*calls == fail_at || (hook.persistent && *calls > fail_at))) {
        hook.fired = 1;
        return 1;
    }
    return 0;
}

static void *hook_malloc(size_t n)
{
    void *p = hook_fails(&hook.calls, hook.fail_at) ? NULL : malloc(n);
    hook.blocks += p != NULL;
    return p;
}

static void *hook_realloc(void *p, size_t n)
{
    void *q = hook_fails(&hook.calls, hook.fail_at) ? NULL : realloc(p, n);
    hook.blocks += p == NULL && q != NULL;
    return q;
}

static void hook_free(void *p)
{
    hook.blocks -= p != NULL;
    free(p);
}

static int hook_io(void)
{
    if (hook_fails(&hook.io_calls, hook.io_fail_at)) {
        errno = EIO;
        return 1;
    }
    return 0;
}

static int hook_open(const char *path, int flags)
{
    int fd = hook_io() ? -1 : open(path, flags);
    hook.descriptors += fd >= 0;
    return fd;
}

static int hook_fstat(int fd, struct stat *st)
{
    return hook_io() ? -1 : fstat(fd, st);
}

static ssize_t hook_pread(int fd, void *buffer, size_t n, off_t offset)
{
    if (hook_io()) {
        return -1;
    }
    if (hook.dribble) {
        if (hook.io_calls % 3 == 0) {
            errno = EINTR;
            return -1;
        }
        n = n > 7 ? 7 : n;
    }
    return pread(fd, buffer, n, offset);
}

static int hook_close(int fd)
{
    hook.descriptors--;
    return close(fd);
}

#define TL_MALLOC(n)                   hook_malloc(n)
#define TL_REALLOC(p, n)               hook_realloc((p), (n))
#define TL_FREE(p)                     hook_free(p)
#define TL_SYS_OPEN(path, flags, mode) hook_open((path), (flags))
#define TL_SYS_FSTAT(fd, st)           hook_fstat((fd), (st))
#define TL_SYS_PREAD(fd, buf, n, off)  hook_pread((fd), (buf), (n), (off))
#define TL_SYS_WRITE(fd, buf, n)       write((fd), (buf), (n))
#define TL_SYS_FSYNC(fd)               fsync(fd)
#define TL_SYS_CLOSE(fd)               hook_close(fd)
#define TL_SYS_RENAME(from, to)        rename((from), (to))
#define TL_SYS_UNLINK(path)            unlink(path)

#include "../tools/config.h"
#include "test.h"

static void check_clean(const char *id)
{
    if (hook.blocks != 0 || hook.descriptors != 0) {
        printf("%s: left %ld blocks, %ld descriptors\n", id, hook.blocks, hook.descriptors);
    }
    CHECK_INT(hook.blocks, 0);
    CHECK_INT(hook.descriptors, 0);
    hook.blocks = hook.descriptors = 0;
}

/* Compares a result with what a case expects. */
static void check_result(const char *id, tl_status status, const tl_error *err, tl_status want,
                         const char *piece)
{
    if (status != want || (want != TL_OK && strstr(err->message, piece) == NULL)) {
        printf("case %s: status %d \"%s\"\n      wanted %d \"%s\"\n", id, (int)status, err->message,
               (int)want, piece);
        FAIL("this case");
    }
    CHECK(status == err->status);
    check_clean(id);
}

/* ---- files ----------------------------------------------------------------------------------- */

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

static void buf_text(buf *b, const char *text)
{
    buf_put(b, text, strlen(text));
}

static void buf_set(buf *b, size_t at, unsigned width, uint64_t value)
{
    for (unsigned i = 0; i < width; i++) {
        b->bytes[at + i] = (unsigned char)(value >> (8 * i));
    }
}

static void buf_le(buf *b, unsigned width, uint64_t value)
{
    static const unsigned char zero[8];
    buf_put(b, zero, width);
    buf_set(b, b->n - width, width, value);
}

static void buf_free(buf *b)
{
    free(b->bytes);
    memset(b, 0, sizeof *b);
}

static char scratch_folder[512];
static char scratch_files[64][64];
static int scratch_count;

static const char *scratch(const char *name)
{
    static char path[600];
    int known = 0;
    if (snprintf(path, sizeof path, "%s/%s", scratch_folder, name) >= (int)sizeof path) {
        abort();
    }
    for (int i = 0; i < scratch_count; i++) {
        known = known || strcmp(scratch_files[i], name) == 0;
    }
    if (!known && scratch_count < 64 && name[0] != '\0') {
        (void)snprintf(scratch_files[scratch_count++], 64, "%s", name);
    }
    return path;
}

static void scratch_put(const char *name, const void *bytes, size_t n)
{
    FILE *f;
    /* a new file: some file systems flush what replaces an old one */
    (void)unlink(scratch(name));
    f = fopen(scratch(name), "wb");
    if (f == NULL || fwrite(bytes, 1, n, f) != n || fclose(f) != 0) {
        printf("cannot write %s\n", name);
        exit(2);
    }
}

static void put_text(const char *name, const char *text)
{
    scratch_put(name, text, strlen(text));
}

static void scratch_clear(void)
{
    for (int i = 0; i < scratch_count; i++) {
        (void)unlink(scratch(scratch_files[i]));
    }
    scratch_count = 0;
}

static void scratch_begin(void)
{
    const char *base = getenv("TMPDIR");
    (void)snprintf(scratch_folder, sizeof scratch_folder, "%s/mamba-tools-XXXXXX",
                   base != NULL ? base : "/tmp");
    if (mkdtemp(scratch_folder) == NULL) {
        printf("cannot make %s\n", scratch_folder);
        exit(2);
    }
}

static void scratch_end(void)
{
    scratch_clear();
    (void)rmdir(scratch_folder);
}

/* ---- JSON ------------------------------------------------------------------------------------ */

/* Parses an exact-size copy, so that one byte too far is an error of the sanitizer. */
static tl_status parse_copy(const char *text, size_t n, unsigned flags, json_doc *doc, char **copy,
                            tl_error *err)
{
    *copy = (char *)malloc(n != 0 ? n : 1);
    if (*copy == NULL) {
        abort();
    }
    memcpy(*copy, text, n);
    memset(err, 0, sizeof *err);
    return json_parse(*copy, n, "x.json", flags, doc, err);
}

static void json_case(const char *id, const char *text, size_t n, unsigned flags, const char *piece)
{
    json_doc doc;
    tl_error err;
    char *copy;
    tl_status status = parse_copy(text, n, flags, &doc, &copy, &err);
    json_free(&doc);
    free(copy);
    check_result(id, status, &err, piece == NULL ? TL_OK : TL_ERR_FORMAT, piece);
}

#define T(text) (text), sizeof(text) - 1

static const struct {
    const char *id, *text;
    size_t n;
    unsigned flags;
    const char *piece;   /* of the message; NULL: accepted */
} json_cases[] = {
    {"y null", T("null"), 0, NULL},
    {"y space", T(" \t\r\n[ ] \n"), 0, NULL},
    {"y object", T("{}"), 0, NULL},
    {"y nested", T("{\"a\":[1,{\"b\":[]}],\"c\":{}}"), 0, NULL},
    {"y string", T("\"a\\\"\\\\\\/\\b\\f\\n\\r\\t\""), 0, NULL},
    {"y numbers", T("[0,-0,1.5,-1e5,1E+2,1e-2,0.1e1,123456789012345678901234567890]"), 0, NULL},
    {"y pair", T("\"\\ud83d\\ude00\""), 0, NULL},
    {"y utf8", T("\"\xf0\x9f\x98\x80\xc3\xa9\xe2\x82\xac\""), 0, NULL},
    {"y nul escape", T("\"\\u0000\""), 0, NULL},
    {"y del", T("\"\x7f\""), 0, NULL},
    {"y empty key", T("{\"\":0}"), 0, NULL},
    {"y noncharacter", T("\"\xef\xbf\xbf\""), 0, NULL},
    {"y unescaped slash", T("\"/\""), 0, NULL},
    {"J02 same key", T("{\"a\":1,\"b\":2,\"a\":3}"), 0, "byte 14: found key \"a\" twice"},
    {"J02 same key escaped", T("{\"a\":1,\"\\u0061\":3}"), 0, "twice"},
    {"J02 same key inside", T("[{\"x\":{\"k\":0,\"k\":0}}]"), 0, "\"k\" twice"},
    {"J02 same key elsewhere", T("[{\"k\":0},{\"k\":{\"k\":0}}]"), 0, NULL},
    {"J03 leading zero", T("[01]"), 0, "byte 1: found '0', allowed: no leading zero"},
    {"J03 minus zero one", T("[-01]"), 0, "leading zero"},
    {"J03 plus", T("[+1]"), 0, "found '+'"},
    {"J03 point first", T("[.5]"), 0, "allowed: a value"},
    {"J03 point last", T("[5.]"), 0, "a digit behind the point"},
    {"J03 no exponent", T("[1e]"), 0, "a digit in the exponent"},
    {"J03 no exponent sign", T("[1e+]"), 0, "a digit in the exponent"},
    {"J03 minus", T("-"), 0, "end of the text, allowed: a digit"},
    {"J03 double minus", T("[--1]"), 0, "allowed: a digit"},
    {"J03 hex", T("[0x1]"), 0, "found 'x'"},
    {"J03 space", T("[1 2]"), 0, "found '2', allowed: ',' or ']'"},
    {"J03 separators", T("[1_000]"), 0, "found '_'"},
    {"J04 nan", T("[NaN]"), 0, "found 'N', allowed: a value"},
    {"J04 infinity", T("[Infinity]"), 0, "found 'I'"},
    {"J04 -infinity", T("[-Infinity]"), 0, "a digit"},
    {"J04 nan allowed", T("[NaN,Infinity,-Infinity]"), JSON_NONFINITE, NULL},
    {"J04 -nan", T("[-NaN]"), JSON_NONFINITE, "a digit"},
    {"J04 nan word", T("[NaNa]"), JSON_NONFINITE, "found 'a'"},
    {"J04 inf", T("[Inf]"), JSON_NONFINITE, "a value"},
    {"J04 comment", T("[1/*x*/]"), 0, "found '/'"},
    {"J04 comment line", T("//x\n1"), 0, "found '/'"},
    {"J04 trailing comma", T("[1,]"), 0, "found ']', allowed: a value"},
    {"J04 trailing comma object", T("{\"a\":1,}"), 0, "found '}', allowed: a key in quotes"},
    {"J04 leading comma", T("[,1]"), 0, "found ','"},
    {"J04 double comma", T("[1,,2]"), 0, "found ','"},
    {"J04 BOM", T("\xef\xbb\xbf{}"), 0, "byte 0: found '\\xef'"},
    {"J04 UTF-16", T("\xff\xfe[\0]\0"), 0, "byte 0: found '\\xff'"},
    {"J04 single quotes", T("{'a':1}"), 0, "found ''', allowed: a key in quotes"},
    {"J04 bare key", T("{a:1}"), 0, "a key in quotes"},
    {"J04 number key", T("{1:1}"), 0, "a key in quotes"},
    {"J04 capital", T("[True]"), 0, "found 'T'"},
    {"J04 cut word", T("[nul]"), 0, "found 'n'"},
    {"J04 long word", T("[nullx]"), 0, "found 'x'"},
    {"J04 form feed", T("[\f1]"), 0, "found '\\x0c'"},
    {"J04 no-break space", T("[\xc2\xa0]"), 0, "found '\\xc2'"},
    {"J05 raw tab", T("\"\t\""), 0,
     "byte 1: found '\\x09', allowed: control characters only as escapes"},
    {"J05 raw nul", T("\"\0\""), 0, "control characters"},
    {"J05 raw newline", T("\"a\nb\""), 0, "control characters"},
    {"J05 lone high", T("\"\\ud800\""), 0, "a low surrogate behind a high one"},
    {"J05 lone low", T("\"\\udc00\""), 0, "only behind a high one"},
    {"J05 high high", T("\"\\ud800\\ud800\""), 0, "a low surrogate behind a high one"},
    {"J05 high text", T("\"\\ud800xxxxxxx\""), 0, "a low surrogate"},
    {"J05 overlong", T("\"\xc0\xaf\""), 0, "valid UTF-8"},
    {"J05 overlong 3", T("\"\xe0\x80\x80\""), 0, "valid UTF-8"},
    {"J05 overlong 4", T("\"\xf0\x80\x80\x80\""), 0, "valid UTF-8"},
    {"J05 surrogate", T("\"\xed\xa0\x80\""), 0, "valid UTF-8"},
    {"J05 too high", T("\"\xf4\x90\x80\x80\""), 0, "valid UTF-8"},
    {"J05 lone continuation", T("\"\x80\""), 0, "valid UTF-8"},
    {"J05 cut sequence", T("\"\xe2\x82\""), 0, "valid UTF-8"},
    {"J05 f5", T("\"\xf5\x80\x80\x80\""), 0, "valid UTF-8"},
    {"J05 bad escape", T("\"\\x41\""), 0, "behind a backslash"},
    {"J05 nul escape byte", T("\"\\\0\""), 0, "behind a backslash"},
    {"J05 short hex", T("\"\\u12\""), 0, "four hexadecimal digits"},
    {"J05 bad hex", T("\"\\u12g4\""), 0, "four hexadecimal digits"},
    {"J05 capital U", T("\"\\U0041\""), 0, "behind a backslash"},
    {"J09 empty", T(""), 0, "found the end of the text, allowed: a value"},
    {"J09 space only", T(" "), 0, "end of the text"},
    {"J09 open array", T("["), 0, "end of the text"},
    {"J09 open object", T("{\"a\""), 0, "allowed: ':'"},
    {"J09 open string", T("\"abc"), 0, "a quote that ends the string"},
    {"J09 closers", T("]"), 0, "found ']'"},
    {"J09 mixed", T("[1}"), 0, "',' or ']'"},
    {"J09 mixed object", T("{\"a\":1]"), 0, "',' or '}'"},
    {"J09 no colon", T("{\"a\" 1}"), 0, "':'"},
    {"J09 double colon", T("{\"a\"::1}"), 0, "found ':'"},
    {"J09 no value", T("{\"a\":}"), 0, "found '}', allowed: a value"},
    {"J09 garbage", T("{}x"), 0, "byte 2: found 'x', allowed: nothing behind the value"},
    {"J09 two values", T("1 2"), 0, "nothing behind"},
    {"J09 two objects", T("{}{}"), 0, "nothing behind"},
    {"J09 nul behind", T("1\0"), 0, "nothing behind"},
    {"J09 comma behind", T("[1],"), 0, "nothing behind"}};

TEST(json_table)
{
    for (size_t i = 0; i < sizeof json_cases / sizeof json_cases[0]; i++) {
        json_case(json_cases[i].id, json_cases[i].text, json_cases[i].n, json_cases[i].flags,
                  json_cases[i].piece);
    }
}

TEST(json_J01_depth)
{
    char text[400];
    for (int depth = 127; depth <= 129; depth++) {
        for (int kind = 0; kind < 2; kind++) {
            size_t n = 0;
            for (int i = 0; i < depth; i++) {
                text[n++] = '[';
            }
            for (int i = 0; i < depth; i++) {
                text[n++] = ']';
            }
            json_case("J01", text, n, 0,
                      depth <= 128 ? NULL : "byte 128: found '[', allowed: at most 128 levels");
        }
    }
    {
        size_t n = 1000000;
        char *deep = (char *)malloc(n);
        REQUIRE(deep != NULL);
        memset(deep, '[', n);
        json_case("J01 million", deep, n, 0, "at most 128 levels");
        free(deep);
    }
}

TEST(json_J03_integers)
{
    static const struct {
        const char *text;
        int ok;
        uint64_t value;
    } cases[] = {{"0", 1, 0},
                 {"768", 1, 768},
                 {"18446744073709551615", 1, UINT64_MAX},
                 {"18446744073709551616", 0, 0},
                 {"99999999999999999999", 0, 0},
                 {"9007199254740993", 1, 9007199254740993u},
                 {"9223372036854775808", 1, 9223372036854775808u},
                 {"-0", 0, 0},
                 {"-1", 0, 0},
                 {"768.0", 0, 0},
                 {"1e3", 0, 0},
                 {"\"768\"", 0, 0},
                 {"true", 0, 0},
                 {"null", 0, 0},
                 {"[1]", 0, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        json_doc doc;
        tl_error err;
        char *copy;
        uint64_t value;
        REQUIRE(parse_copy(cases[i].text, strlen(cases[i].text), 0, &doc, &copy, &err) == TL_OK);
        CHECK_INT(json_u64(&doc, JSON_ROOT, &value), cases[i].ok);
        CHECK(value == cases[i].value);
        json_free(&doc);
        free(copy);
    }
    check_clean("J03");
}

TEST(json_J03_floats)
{
    static const struct {
        const char *text;
        uint64_t bits;
    } cases[] = {{"1e-05", 0x3ee4f8b588e368f1u},
                 {"0.1", 0x3fb999999999999au},
                 {"-0", 0x8000000000000000u},
                 {"1", 0x3ff0000000000000u},
                 {"0.0001", 0x3f1a36e2eb1c432du},
                 {"9007199254740993", 0x4340000000000000u},
                 {"1e-400", 0},
                 {"9007199254740995", 0x4340000000000002u},
                 {"4.9406564584124654e-324", 1},
                 {"2.4703282292062327e-324", 0},
                 {"2.2250738585072011e-308", 0x000fffffffffffffu},
                 {"2.2250738585072014e-308", 0x0010000000000000u},
                 {"1.7976931348623157e308", 0x7fefffffffffffffu},
                 {"0e999999999999999999", 0},
                 {"Infinity", 0x7ff0000000000000u},
                 {"-Infinity", 0xfff0000000000000u},
                 {"NaN", 0x7ff8000000000000u},
                 {"123456789012345678901234567890", 0x45f8ee90ff6c373eu},
                 {"100000000000000000000000000000000000000000000000000", 0x4a511b0ec57e649au},
                 {"0.00000000000000000000000000000000000000000000000001e50", 0x3ff0000000000000u}};
    static const char *const refused[] = {"1e400", "1.7976931348623159e308", "-1e309",
                                          "1e999999999999999999999"};
    json_doc doc;
    tl_error err;
    char *copy;
    double value;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint64_t bits;
        REQUIRE(parse_copy(cases[i].text, strlen(cases[i].text), JSON_NONFINITE, &doc, &copy,
                           &err) == TL_OK);
        CHECK(json_f64(&doc, JSON_ROOT, &value));
        memcpy(&bits, &value, sizeof bits);
        if (bits != cases[i].bits) {
            printf("%s gave %016llx\n", cases[i].text, (unsigned long long)bits);
        }
        CHECK(bits == cases[i].bits);
        json_free(&doc);
        free(copy);
    }
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        REQUIRE(parse_copy(refused[i], strlen(refused[i]), 0, &doc, &copy, &err) == TL_OK);
        CHECK(!json_f64(&doc, JSON_ROOT, &value));
        json_free(&doc);
        free(copy);
    }
}

TEST(json_access)
{
    static const char text[] =
        "{\"a\":[1,\"x\\u0000y\\ud83d\\ude00\",{\"k\":true}],\"b\":null,\"c\\n\":{}}";
    json_doc doc;
    tl_error err;
    char *copy;
    json_id a, m;
    int flag;
    REQUIRE(parse_copy(text, sizeof text - 1, 0, &doc, &copy, &err) == TL_OK);
    CHECK_INT(json_count(&doc, JSON_ROOT), 3);
    a = json_get(&doc, JSON_ROOT, "a");
    CHECK_INT(json_count(&doc, a), 3);
    m = json_next(&doc, json_first(&doc, a));
    CHECK_INT(json_str(&doc, m).len, 7);
    CHECK(memcmp(json_str(&doc, m).ptr, "x\0y\xf0\x9f\x98\x80", 7) == 0);
    m = json_next(&doc, m);
    CHECK(json_bool(&doc, json_get(&doc, m, "k"), &flag) && flag == 1);
    CHECK(json_next(&doc, m) == JSON_NONE);
    CHECK(json_kind(&doc, json_get(&doc, JSON_ROOT, "b")) == JSON_NULL);
    CHECK(json_kind(&doc, json_get(&doc, JSON_ROOT, "c\n")) == JSON_OBJECT);
    CHECK(json_get(&doc, JSON_ROOT, "nothing") == JSON_NONE);
    CHECK(json_get(&doc, a, "a") == JSON_NONE);
    CHECK(json_first(&doc, JSON_NONE) == JSON_NONE && json_next(&doc, JSON_NONE) == JSON_NONE);
    json_free(&doc);
    free(copy);
    check_clean("access");
}

TEST(json_escapes)
{
    static const char text[] = "\"\\u0041\\u00e9\\u20AC\\ud83D\\uDe00\\/\\\\\\t\"";
    static const char want[] = "A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80/\\\t";
    json_doc doc;
    tl_error err;
    char *copy;
    REQUIRE(parse_copy(text, sizeof text - 1, 0, &doc, &copy, &err) == TL_OK);
    CHECK_INT(json_str(&doc, JSON_ROOT).len, sizeof want - 1);
    CHECK(json_is(json_str(&doc, JSON_ROOT), want));
    json_free(&doc);
    free(copy);
    check_clean("escapes");
}

TEST(json_J06_sizes)
{
    json_doc doc;
    tl_error err;
    char text[2] = "1";
    memset(&err, 0, sizeof err);
    CHECK(json_parse(text, (size_t)1 << 31, "x", 0, &doc, &err) == TL_ERR_UNSUPPORTED);
    CHECK_CONTAINS(err.message, "found 2147483648 bytes of JSON, allowed: at most 2147483647");
    memset(&err, 0, sizeof err);
    put_text("x.json", "[1,2]");
    CHECK(json_read(scratch("x.json"), 4, 0, &doc, &err) == TL_ERR_UNSUPPORTED);
    CHECK_CONTAINS(err.message, "x.json: found 5 bytes, allowed: at most 4");
    check_clean("J06");
}

TEST(long_paths)
{
    char path[300];
    ck_source *ck;
    tl_error err;
    memset(&err, 0, sizeof err);
    memset(path, 'd', sizeof path);
    memcpy(path + 284, "/x\n.safetensors", 16);
    CHECK(ck_open_weights(path, &ck, &err) == TL_ERR_IO && ck == NULL);
    CHECK_CONTAINS(err.message, "...ddd");
    CHECK_CONTAINS(err.message, "ddd/x\\x0a.safetensors: cannot open: ");
    memset(&err, 0, sizeof err);
    CHECK(ck_open_weights("", &ck, &err) == TL_ERR_IO);
    memset(&err, 0, sizeof err);
    CHECK(ck_open("no such file", &ck, &err) == TL_ERR_IO);
    CHECK_CONTAINS(err.message, "no such file: cannot open: ");
    check_clean("paths");
}

TEST(json_prefixes)
{
    static const char text[] = " {\"a\": [1, -2.5e+3, \"x\\u0041\\ud83d\\ude00\xc3\xa9\"], \"b\": "
                               "{\"c\": true, \"d\": null}}";
    for (size_t n = 0; n < sizeof text - 1; n++) {
        json_case("prefix", text, n, 0, "allowed:");
    }
    json_case("whole", text, sizeof text - 1, 0, NULL);
}

/* Large objects: linear-ish time, whatever the keys. */
TEST(json_G14_large)
{
    buf b = {NULL, 0, 0};
    json_doc doc;
    tl_error err;
    char *copy, line[64];
    clock_t start = clock();
    buf_text(&b, "{\"first\":0");
    for (int i = 0; i < 200000; i++) {
        (void)snprintf(line, sizeof line, ",\"key%d\":%d", i, i);
        buf_text(&b, line);
    }
    buf_text(&b, "}");
    REQUIRE(parse_copy((const char *)b.bytes, b.n, 0, &doc, &copy, &err) == TL_OK);
    CHECK_INT(json_count(&doc, JSON_ROOT), 200001);
    json_free(&doc);
    free(copy);
    b.n--;
    buf_text(&b, ",\"key77777\":1}");
    json_case("J02 among 200000", (const char *)b.bytes, b.n, 0, "\"key77777\" twice");
    buf_free(&b);
    CHECK((double)(clock() - start) / CLOCKS_PER_SEC < 10.0);
}

/* ---- safetensors ----------------------------------------------------------------------------- */

/* Writes x.safetensors from a header and `data` bytes that count up. */
static void put_safetensors(const char *name, const char *header, size_t data)
{
    buf b = {NULL, 0, 0};
    buf_le(&b, 8, strlen(header));
    buf_text(&b, header);
    for (size_t i = 0; i < data; i++) {
        buf_le(&b, 1, i);
    }
    scratch_put(name, b.bytes, b.n);
    buf_free(&b);
}

static void weights_case(const char *id, const char *name, tl_status want, const char *piece)
{
    ck_source *ck = NULL;
    tl_error err;
    tl_status status;
    memset(&err, 0, sizeof err);
    status = ck_open_weights(scratch(name), &ck, &err);
    CHECK((status == TL_OK) == (ck != NULL));
    ck_close(ck);
    check_result(id, status, &err, want, piece);
}

#define E(name, dtype, shape, a, b)                                                                \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":[" shape "],\"data_offsets\":[" #a "," #b "]" \
                                                                                               "}"

static const struct {
    const char *id, *header;
    size_t data;
    const char *piece;
} st_cases[] = {
    {"y one", "{" E("a", "F32", "2,3", 0, 24) "}", 24, NULL},
    {"y spaces behind", "{" E("a", "F32", "1", 0, 4) "}    ", 4, NULL},
    {"y empty", "{}", 0, NULL},
    {"y unordered", "{" E("b", "U8", "2", 4, 6) "," E("a", "F32", "1", 0, 4) "}", 6, NULL},
    {"S11 rank 0", "{" E("a", "F64", "", 0, 8) "}", 8, NULL},
    {"S11 no elements", "{" E("a", "F32", "0,5", 0, 0) "," E("b", "F16", "2", 0, 4) "}", 4, NULL},
    {"S11 two empty", "{" E("a", "F32", "0", 0, 0) "," E("b", "F32", "3,0", 0, 0) "}", 0, NULL},
    {"y metadata", "{\"__metadata__\":{\"format\":\"pt\"}," E("a", "BF16", "1", 0, 2) "}", 2, NULL},
    {"S02 space first", " {}", 0, "byte 8: found 0x20, allowed: '{'"},
    {"S02 array", "[1]", 0, "allowed: '{'"},
    {"S02 cut JSON", "{\"a\":", 0, "byte 13: found the end of the text"},
    {"S03 UTF-8", "{\"a\xff\":1}", 0, "byte 11: found '\\xff', allowed: valid UTF-8"},
    {"S04 same name", "{" E("a", "U8", "1", 0, 1) "," E("a", "U8", "1", 1, 2) "}", 2,
     "key \"a\" twice"},
    {"S04 same field",
     "{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
     "key \"dtype\" twice"},
    {"S05 reversed", "{" E("a", "U8", "2", 2, 0) "}", 2,
     "data_offsets: found [2, 0], allowed: 2 bytes"},
    {"S05 overlap", "{" E("a", "U8", "2", 0, 2) "," E("b", "U8", "2", 1, 3) "}", 3,
     "tensor \"b\": data_offsets: found an overlap at 1, allowed: 2"},
    {"S05 same bytes", "{" E("a", "U8", "2", 0, 2) "," E("b", "U8", "2", 0, 2) "}", 2,
     "an overlap at 0"},
    {"S05 hole", "{" E("a", "U8", "1", 0, 1) "," E("b", "U8", "1", 2, 3) "}", 3,
     "a hole at 2, allowed: 1"},
    {"S05 hole first", "{" E("a", "U8", "1", 1, 2) "}", 2, "a hole at 1"},
    {"S05 beyond", "{" E("a", "U8", "4", 0, 4) "}", 3, "the file's"},
    {"S05 float", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0.0,1]}}", 1,
     "data_offsets: found 0.0, allowed: integers"},
    {"S05 exponent", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1e0]}}", 1,
     "data_offsets: found 1e0"},
    {"S05 negative", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[-1,0]}}", 1,
     "found -1"},
    {"S05 2^63", "{" E("a", "U8", "1", 9223372036854775808, 9223372036854775809) "}", 1,
     "a hole at 9223372036854775808"},
    {"S05 2^64", "{" E("a", "U8", "1", 18446744073709551616, 18446744073709551617) "}", 1,
     "found 18446744073709551616"},
    {"S05 2^64-1", "{" E("a", "U8", "1", 18446744073709551615, 0) "}", 1,
     "data_offsets: found [18446744073709551615, 0]"},
    {"S05 three", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,2]}}", 1,
     "found an array of 3, allowed: [begin, end]"},
    {"S05 none", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"offsets\":[0,1]}}", 1,
     "data_offsets: found nothing"},
    {"S06 product", "{" E("a", "U8", "4294967296,4294967296", 0, 0) "}", 0,
     "shape: found (4294967296, 4294967296)"},
    {"S06 bytes", "{" E("a", "F64", "2305843009213693952", 0, 0) "}", 0, "below 2^63 bytes"},
    {"S06 hidden by zero", "{" E("a", "U8", "4294967296,4294967296,0", 0, 0) "}", 0,
     "below 2^63 bytes"},
    {"S06 2^63", "{" E("a", "U8", "9223372036854775808", 0, 0) "}", 0, "below 2^63 bytes"},
    {"S07 size", "{" E("a", "F32", "2", 0, 7) "}", 7, "found [0, 7], allowed: 8 bytes"},
    {"S07 more", "{" E("a", "F16", "2", 0, 8) "}", 8, "allowed: 4 bytes"},
    {"S08 unknown", "{" E("a", "F31", "1", 0, 4) "}", 4, "dtype: found \"F31\", allowed: F64, F32"},
    {"S08 sub-byte", "{" E("a", "F4", "3", 0, 1) "}", 1, "dtype: found \"F4\""},
    {"S08 lower case", "{" E("a", "f32", "1", 0, 4) "}", 4, "dtype: found \"f32\""},
    {"S08 number", "{\"a\":{\"dtype\":3,\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
     "dtype: found 3"},
    {"S09 number", "{\"__metadata__\":{\"a\":1}}", 0,
     "__metadata__: found 1, allowed: an object of strings"},
    {"S09 array", "{\"__metadata__\":[]}", 0, "__metadata__: found an array of 0"},
    {"S10 trailing", "{" E("a", "U8", "1", 0, 1) "}", 2,
     "found 1 bytes behind the last tensor, allowed: none"},
    {"S10 trailing empty", "{}", 1, "behind the last tensor"},
    {"S10 missing", "{" E("a", "U8", "2", 0, 2) "}", 1, "the file's"},
    {"shape float", "{" E("a", "U8", "1.0", 0, 1) "}", 1, "shape: found 1.0"},
    {"shape negative", "{" E("a", "U8", "-1", 0, 1) "}", 1, "shape: found -1"},
    {"shape text", "{" E("a", "U8", "\"1\"", 0, 1) "}", 1, "shape: found \"1\""},
    {"shape rank 9", "{" E("a", "U8", "1,1,1,1,1,1,1,1,1", 0, 1) "}", 1,
     "shape: found an array of 9"},
    {"shape object", "{\"a\":{\"dtype\":\"U8\",\"shape\":{},\"data_offsets\":[0,1]}}", 1,
     "shape: found an object of 0"},
    {"entry number", "{\"a\":1}", 0, "entry: found 1"},
    {"entry extra", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":0}}", 1,
     "entry: found an object of 4"},
    {"shape many digits",
     "{" E("a", "F64",
           "9223372036854775807,9223372036854775807,9223372036854775807,9223372036854775807,"
           "9223372036854775807,9223372036854775807",
           0, 8) "}",
     8, "9223372036854775807...)"},
    {"G11 empty name", "{" E("", "U8", "1", 0, 1) "}", 1, "an empty name"},
    {"G11 NUL", "{" E("a\\u0000b", "U8", "1", 0, 1) "}", 1,
     "tensor \"a\\x00b\": name: found a name with NUL"},
    {"C10 escape", "{" E("\\u001b[31m", "F31", "1", 0, 1) "}", 1, "tensor \"\\x1b[31m\""}};

TEST(safetensors_table)
{
    for (size_t i = 0; i < sizeof st_cases / sizeof st_cases[0]; i++) {
        put_safetensors("x.safetensors", st_cases[i].header, st_cases[i].data);
        weights_case(st_cases[i].id, "x.safetensors",
                     st_cases[i].piece == NULL ? TL_OK : TL_ERR_FORMAT, st_cases[i].piece);
    }
}

TEST(safetensors_S01_lengths)
{
    static const struct {
        uint64_t length;
        const char *piece;
    } cases[] = {{0, "header length: found 0, allowed: 2 to 2"},
                 {1, "found 1,"},
                 {3, "found 3,"},
                 {100000001, "found 100000001"},
                 {UINT64_MAX, "found 18446744073709551615"},
                 {(uint64_t)1 << 63, "found 9223372036854775808"},
                 {UINT64_MAX - 7, "found 18446744073709551608"},
                 {(uint64_t)1 << 32, "found 4294967296"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        buf b = {NULL, 0, 0};
        buf_le(&b, 8, cases[i].length);
        buf_text(&b, "{}");
        scratch_put("x.safetensors", b.bytes, b.n);
        weights_case("S01", "x.safetensors", TL_ERR_FORMAT, cases[i].piece);
        buf_free(&b);
    }
}

TEST(safetensors_values)
{
    static const char header[] =
        "{\"__metadata__\":{\"k\":\"v\"}," E("f32", "F32", "3", 0, 12) "," E(
            "f16", "F16", "2,2", 12, 20) "," E("bf16", "BF16", "3", 20,
                                               26) "," E("f64", "F64", "2", 26,
                                                         42) "," E("i32", "I32", "1", 42, 46) "}";
    static const uint32_t f32[3] = {0x3f800000u, 0xff800000u, 0x00000001u};
    static const uint16_t f16[4] = {0x3c00, 0x0001, 0xfc00, 0x7bff},
                          bf16[3] = {0x3f80, 0xc0a0, 0x0080};
    static const uint64_t f64[2] = {0x3fe0000000000000u, 0x7fefffffffffffffu};
    buf b = {NULL, 0, 0};
    ck_source *ck;
    tl_error err;
    float out[4];
    const ck_tensor *t;
    memset(&err, 0, sizeof err);
    buf_le(&b, 8, sizeof header - 1);
    buf_text(&b, header);
    for (int i = 0; i < 3; i++) {
        buf_le(&b, 4, f32[i]);
    }
    for (int i = 0; i < 4; i++) {
        buf_le(&b, 2, f16[i]);
    }
    for (int i = 0; i < 3; i++) {
        buf_le(&b, 2, bf16[i]);
    }
    buf_le(&b, 8, f64[0]);
    buf_le(&b, 8, f64[1]);
    buf_le(&b, 4, 7);
    scratch_put("x.safetensors", b.bytes, b.n);
    buf_free(&b);
    REQUIRE(ck_open_weights(scratch("x.safetensors"), &ck, &err) == TL_OK);
    CHECK(json_is(ck_metadata(ck, "k"), "v") && ck_metadata(ck, "x").ptr == NULL);
    t = ck_find(ck, "f32");
    CHECK(ck_read_f32(ck, t, 0, 3, out, &err) == TL_OK && out[0] == 1.0f && out[1] < -3e38f &&
          out[2] > 0.0f && out[2] < 2.5e-45f);
    t = ck_find(ck, "f16");
    CHECK(ck_read_f32(ck, t, 0, 4, out, &err) == TL_OK && out[0] == 1.0f &&
          out[1] == 1.0f / 16777216.0f && out[2] < -3e38f && out[3] == 65504.0f);
    CHECK(ck_read_f32(ck, t, 3, 1, out, &err) == TL_OK && out[0] == 65504.0f);
    t = ck_find(ck, "bf16");
    CHECK(ck_read_f32(ck, t, 0, 3, out, &err) == TL_OK && out[0] == 1.0f && out[1] == -5.0f &&
          out[2] > 1.1e-38f && out[2] < 1.2e-38f);
    t = ck_find(ck, "f64");
    CHECK(ck_read_f32(ck, t, 0, 2, out, &err) == TL_OK && out[0] == 0.5f && out[1] > 3.4e38f);
    CHECK(ck_read_f32(ck, t, 2, 0, out, &err) == TL_OK && err.status == TL_OK);
    CHECK(ck_read_f32(ck, t, 1, 2, out, &err) == TL_ERR_FORMAT);
    CHECK_CONTAINS(err.message, "tensor \"f64\": found a request outside the tensor");
    memset(&err, 0, sizeof err);
    CHECK(ck_read_f32(ck, t, UINT64_MAX, 2, out, &err) == TL_ERR_FORMAT);
    memset(&err, 0, sizeof err);
    CHECK(ck_read_f32(ck, ck_find(ck, "i32"), 0, 1, out, &err) == TL_ERR_FORMAT);
    CHECK_CONTAINS(err.message, "found I32, allowed: F32, F16, BF16 or F64");
    ck_close(ck);
    check_clean("values");
}

TEST(f16_all)
{
    for (uint32_t h = 0; h < 65536; h++) {
        uint32_t e = h >> 10 & 31, f = h & 1023;
        double want = e == 0 ? f / 16777216.0 : (1024.0 + f) / 1024.0;
        float got = tl_f32_of_f16((uint16_t)h);
        if (e == 31) {
            CHECK(f == 0 ? (double)got * 0.0 != 0.0 && (got > 0.0f) == (h < 32768) : got != got);
            continue;
        }
        for (uint32_t i = e; e != 0 && i < 15; i++) {
            want /= 2;
        }
        for (uint32_t i = 15; i < e; i++) {
            want *= 2;
        }
        CHECK((double)got == (h >= 32768 ? -want : want));
    }
}

TEST(safetensors_S12_many)
{
    buf b = {NULL, 0, 0};
    clock_t start = clock();
    char line[128];
    buf_le(&b, 8, 0);
    buf_text(&b, "{");
    for (int i = 0; i < 100000; i++) {
        (void)snprintf(line, sizeof line,
                       "%s\"t%d\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%d,%d]}",
                       i == 0 ? "" : ",", i, i, i + 1);
        buf_text(&b, line);
    }
    buf_text(&b, "}");
    buf_set(&b, 0, 8, b.n - 8);
    for (int i = 0; i < 100000; i++) {
        buf_le(&b, 1, 0);
    }
    scratch_put("x.safetensors", b.bytes, b.n);
    buf_free(&b);
    weights_case("S12", "x.safetensors", TL_OK, "");
    CHECK((double)(clock() - start) / CLOCKS_PER_SEC < 10.0);
}

/* ---- zip ------------------------------------------------------------------------------------- */

typedef struct {
    const char *name;
    buf data;
} zip_part;

/* Where things lie in the archive that was built last. */
static struct {
    size_t local[8], data[8], descriptor[8], central[8], directory, wide, locator, end;
} zip_at;

enum { ZIP_TORCH = 0, ZIP_PLAIN = 1, ZIP_NO_WIDE = 2, ZIP_WIDE_DESCRIPTOR = 4, ZIP_WIDE_ENTRY = 8 };

static void build_zip_local(buf *b, const zip_part *p, int i, int form, uint32_t crc)
{
    int plain = (form & ZIP_PLAIN) != 0;
    size_t pad;
    zip_at.local[i] = b->n;
    buf_le(b, 4, 0x04034b50);
    buf_le(b, 2, 0);
    buf_le(b, 2, plain ? 0 : 0x0808);
    buf_le(b, 6, 0);                        /* method, time, date */
    buf_le(b, 4, plain ? crc : 0);
    buf_le(b, 4, plain ? p->data.n : 0);
    buf_le(b, 4, plain ? p->data.n : 0);
    buf_le(b, 2, strlen(p->name));
    pad = (64 - (b->n + 2 + strlen(p->name) + 4) % 64) % 64;
    buf_le(b, 2, plain ? 0 : pad + 4);
    buf_text(b, p->name);
    if (!plain) {
        buf_text(b, "FB");
        buf_le(b, 2, pad);
        for (size_t k = 0; k < pad; k++) {
            buf_text(b, "Z");
        }
    }
    zip_at.data[i] = b->n;
    buf_put(b, p->data.bytes, p->data.n);
    zip_at.descriptor[i] = b->n;
    if (!plain) {
        buf_le(b, 4, 0x08074b50);
        buf_le(b, 4, crc);
        buf_le(b, form & ZIP_WIDE_DESCRIPTOR ? 8 : 4, p->data.n);
        buf_le(b, form & ZIP_WIDE_DESCRIPTOR ? 8 : 4, p->data.n);
    }
}

static void build_zip_central(buf *b, const zip_part *p, int i, int form, uint32_t crc)
{
    int wide = (form & ZIP_WIDE_ENTRY) != 0;
    zip_at.central[i] = b->n;
    buf_le(b, 4, 0x02014b50);
    buf_le(b, 4, 0);
    buf_le(b, 2, form & ZIP_PLAIN ? 0 : 0x0808);
    buf_le(b, 6, 0);
    buf_le(b, 4, crc);
    buf_le(b, 4, wide ? 0xffffffffu : p->data.n);
    buf_le(b, 4, wide ? 0xffffffffu : p->data.n);
    buf_le(b, 2, strlen(p->name));
    buf_le(b, 2, wide ? 28 : 0);
    buf_le(b, 8, 0);                        /* comment, disk, attributes */
    buf_le(b, 2, 0);
    buf_le(b, 4, wide ? 0xffffffffu : zip_at.local[i]);
    buf_text(b, p->name);
    if (wide) {
        buf_le(b, 2, 1);
        buf_le(b, 2, 24);
        buf_le(b, 8, p->data.n);
        buf_le(b, 8, p->data.n);
        buf_le(b, 8, zip_at.local[i]);
    }
}

/* An archive as torch.save writes it (or the named deviations, all of them legal). */
static void build_zip(buf *b, const zip_part *parts, int n, int form)
{
    uint32_t crc[8];
    size_t size;
    b->n = 0;
    for (int i = 0; i < n; i++) {
        crc[i] = zip_crc(0, parts[i].data.bytes, parts[i].data.n);
        build_zip_local(b, &parts[i], i, form, crc[i]);
    }
    zip_at.directory = b->n;
    for (int i = 0; i < n; i++) {
        build_zip_central(b, &parts[i], i, form, crc[i]);
    }
    size = b->n - zip_at.directory;
    zip_at.wide = zip_at.locator = b->n;
    if ((form & ZIP_NO_WIDE) == 0) {
        buf_le(b, 4, 0x06064b50);
        buf_le(b, 8, 44);
        buf_le(b, 4, 0x002d031e);
        buf_le(b, 8, 0);
        buf_le(b, 8, (uint64_t)n);
        buf_le(b, 8, (uint64_t)n);
        buf_le(b, 8, size);
        buf_le(b, 8, zip_at.directory);
        zip_at.locator = b->n;
        buf_le(b, 4, 0x07064b50);
        buf_le(b, 4, 0);
        buf_le(b, 8, zip_at.wide);
        buf_le(b, 4, 1);
    }
    zip_at.end = b->n;
    buf_le(b, 4, 0x06054b50);
    buf_le(b, 4, 0);
    buf_le(b, 2, (uint64_t)n);
    buf_le(b, 2, (uint64_t)n);
    buf_le(b, 4, size);
    buf_le(b, 4, zip_at.directory);
    buf_le(b, 2, 0);
}

/* ---- pickles --------------------------------------------------------------------------------- */

static void pk_string(buf *b, const char *text)
{
    buf_text(b, "X");
    buf_le(b, 4, strlen(text));
    buf_text(b, text);
}

static void pk_int(buf *b, int64_t v)
{
    buf_put(b, "\x8a\x08", 2);
    buf_le(b, 8, (uint64_t)v);
}

static void pk_ints(buf *b, const int64_t *v, int n)
{
    buf_text(b, "(");
    for (int i = 0; i < n; i++) {
        pk_int(b, v[i]);
    }
    buf_text(b, "t");
}

/* What a tensor of the state dict says of itself; the defaults are consistent. */
typedef struct {
    const char *name, *storage, *key;
    int64_t elements, offset;
    int rank;
    int64_t shape[10], strides[10];
} pk_tensor;

static void pk_put_tensor(buf *b, const pk_tensor *t)
{
    pk_string(b, t->name);
    buf_text(b, "ctorch._utils\n_rebuild_tensor_v2\n((");
    pk_string(b, "storage");
    buf_text(b, "ctorch\n");
    buf_text(b, t->storage);
    buf_text(b, "\n");
    pk_string(b, t->key);
    pk_string(b, "cpu");
    pk_int(b, t->elements);
    buf_text(b, "tQ");
    pk_int(b, t->offset);
    pk_ints(b, t->shape, t->rank);
    pk_ints(b, t->strides, t->rank);
    buf_text(b, "\x89" "ccollections\nOrderedDict\n)RtR");
}

static void pk_state_dict(buf *b, const pk_tensor *t, int n)
{
    b->n = 0;
    buf_put(b, "\x80\x02}(", 4);
    for (int i = 0; i < n; i++) {
        pk_put_tensor(b, &t[i]);
    }
    buf_text(b, "u.");
}

static const pk_tensor pk_good[2] = {
    {"a.weight", "FloatStorage", "0", 6, 0, 2, {2, 3}, {3, 1}},
    {"b.weight", "HalfStorage", "1", 4, 0, 1, {4}, {1}}};

enum { PART_PICKLE, PART_ORDER, PART_0, PART_1, PART_VERSION, PARTS };

static zip_part torch_parts[PARTS] = {{"m/data.pkl", {NULL, 0, 0}}, {"m/byteorder", {NULL, 0, 0}},
                                      {"m/data/0", {NULL, 0, 0}}, {"m/data/1", {NULL, 0, 0}},
                                      {"m/version", {NULL, 0, 0}}};

/* The parts of a good file: a (2, 3) f32 with the values 0..5 and a (4) f16 of ones. */
static void torch_good(void)
{
    for (int i = 0; i < PARTS; i++) {
        torch_parts[i].data.n = 0;
    }
    pk_state_dict(&torch_parts[PART_PICKLE].data, pk_good, 2);
    buf_text(&torch_parts[PART_ORDER].data, "little");
    for (int i = 0; i < 6; i++) {
        float f = (float)i;
        uint32_t bits;
        memcpy(&bits, &f, 4);
        buf_le(&torch_parts[PART_0].data, 4, bits);
    }
    for (int i = 0; i < 4; i++) {
        buf_le(&torch_parts[PART_1].data, 2, 0x3c00);
    }
    buf_text(&torch_parts[PART_VERSION].data, "3\n");
}

static void torch_free(void)
{
    for (int i = 0; i < PARTS; i++) {
        buf_free(&torch_parts[i].data);
    }
}

static void torch_put(int form)
{
    buf b = {NULL, 0, 0};
    build_zip(&b, torch_parts, PARTS, form);
    scratch_put("x.bin", b.bytes, b.n);
    buf_free(&b);
}

TEST(zip_accepts)
{
    static const int forms[] = {ZIP_TORCH,
                                ZIP_PLAIN,
                                ZIP_NO_WIDE,
                                ZIP_PLAIN | ZIP_NO_WIDE,
                                ZIP_WIDE_DESCRIPTOR,
                                ZIP_WIDE_ENTRY,
                                ZIP_WIDE_ENTRY | ZIP_PLAIN | ZIP_NO_WIDE};
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        ck_source *ck;
        tl_error err;
        float out[6];
        const ck_tensor *t;
        memset(&err, 0, sizeof err);
        torch_good();
        torch_put(forms[i]);
        CHECK_INT(ck_open_weights(scratch("x.bin"), &ck, &err), TL_OK);
        if (err.status != TL_OK) {
            printf("form %d: %s\n", forms[i], err.message);
            continue;
        }
        t = ck_find(ck, "a.weight");
        CHECK(t != NULL && t->rank == 2 && t->shape[0] == 2 && t->shape[1] == 3 &&
              t->dtype == CK_F32);
        CHECK(ck_read_f32(ck, t, 0, 6, out, &err) == TL_OK && out[0] == 0.0f && out[5] == 5.0f);
        CHECK(ck_verify(ck, t, &err) == TL_OK);
        t = ck_find(ck, "b.weight");
        CHECK(ck_read_f32(ck, t, 0, 4, out, &err) == TL_OK && out[0] == 1.0f && out[3] == 1.0f);
        CHECK(ck_find(ck, "c.weight") == NULL && ck->tensor_count == 2);
        ck_close(ck);
        check_clean("zip");
    }
    torch_free();
}

/* One field of a good archive gets another value. */
enum { LOCAL, DATA, DESCRIPTOR, CENTRAL, WIDE, LOCATOR, END };

static const struct {
    const char *id;
    int where, part;
    size_t at;
    unsigned width;
    uint64_t value;
    int relative;          /* add to the old value */
    const char *piece;
} zip_cases[] = {
    {"Z01 no end", END, 0, 0, 4, 0, 0, "no end record (is the file cut short?)"},
    {"Z01 comment", END, 0, 20, 2, 5, 0, "no end record"},
    {"Z02 locator offset", LOCATOR, 0, 8, 8, 1, 1, "a zip64 end record elsewhere"},
    {"Z02 locator offset huge", LOCATOR, 0, 8, 8, UINT64_MAX, 0, "a zip64 end record elsewhere"},
    {"Z02 locator disks", LOCATOR, 0, 16, 4, 2, 0, "several disks"},
    {"Z02 record magic", WIDE, 0, 0, 4, 0, 0, "no zip64 end record of 56 bytes"},
    {"Z02 record size", WIDE, 0, 4, 8, UINT64_MAX - 11, 0, "no zip64 end record of 56 bytes"},
    {"Z02 directory size", WIDE, 0, 40, 8, 1, 1, "two end records that disagree"},
    {"Z02 directory offset", WIDE, 0, 48, 8, UINT64_MAX, 0, "two end records that disagree"},
    {"Z02 both offsets", END, 0, 16, 4, 0xffffffff, 0, NULL},
    {"Z02 narrow offset", END, 0, 16, 4, 1, 1, "two end records that disagree"},
    {"Z03 name", LOCAL, 2, 30, 1, 'x', 0, "another name in its local header"},
    {"Z03 name length", LOCAL, 2, 26, 2, 1, 1, "another name in its local header"},
    {"Z03 method", LOCAL, 2, 8, 2, 8, 0, "other flags or method"},
    {"Z03 flags", LOCAL, 2, 6, 2, 0x0800, 0, "other flags or method"},
    {"Z03 size", LOCAL, 2, 22, 4, 23, 0, "other sizes or checksum"},
    {"Z03 packed size", LOCAL, 2, 18, 4, 1, 0, "other sizes or checksum"},
    {"Z03 crc", LOCAL, 2, 14, 4, 1, 0, "other sizes or checksum"},
    {"Z03 magic", LOCAL, 2, 0, 4, 0x04034b51, 0, "no local header"},
    {"Z03 descriptor size", DESCRIPTOR, 2, 8, 4, 1, 1, "a data descriptor that disagrees"},
    {"Z03 descriptor crc", DESCRIPTOR, 2, 4, 4, 1, 1, "a data descriptor that disagrees"},
    {"Z03 descriptor magic", DESCRIPTOR, 2, 0, 4, 0, 0, "a data descriptor that disagrees"},
    {"Z03 central crc", CENTRAL, 2, 16, 4, 1, 1, "a data descriptor that disagrees"},
    {"Z04 central offset", CENTRAL, 2, 42, 4, 1, 1, "no local header"},
    {"Z05 name ..", CENTRAL, 2, 46, 3, 0x2f2e2e, 0, "zip record \"../ata/0\": found this name"},
    {"Z05 name /", CENTRAL, 2, 46, 1, '/', 0, "found this name"},
    {"Z05 name NUL", CENTRAL, 2, 46, 1, 0, 0, "found this name"},
    {"Z05 name backslash", CENTRAL, 2, 47, 1, '\\', 0, "found this name"},
    {"Z05 name colon", CENTRAL, 2, 47, 1, ':', 0, "found this name"},
    {"Z05 name UTF-8", CENTRAL, 2, 46, 1, 0xff, 0, "zip record \"\\xff/data/0\": found this name"},
    {"Z06 deflate", CENTRAL, 2, 10, 2, 8, 0,
     "found compression method 8, allowed: method 0 (stored)"},
    {"Z07 encrypted", CENTRAL, 2, 8, 2, 0x0809, 0, "an encrypted record (flag 0x1)"},
    {"Z07 patched", CENTRAL, 2, 8, 2, 0x0828, 0, "a patched record (flag 0x20)"},
    {"Z07 strong", CENTRAL, 2, 8, 2, 0x0848, 0, "strong encryption (flag 0x40)"},
    {"Z07 reserved", CENTRAL, 2, 8, 2, 0x8808, 0, "flags 0x8808"},
    {"Z07 entry disk", CENTRAL, 2, 34, 2, 1, 0, "a record on another disk"},
    {"Z07 disk", END, 0, 4, 2, 1, 0, "several disks"},
    {"Z07 directory disk", END, 0, 6, 2, 1, 0, "several disks"},
    {"Z07 entries here", END, 0, 8, 2, 1, 1, "several disks"},
    {"Z07 wide disk", WIDE, 0, 16, 4, 1, 0, "several disks"},
    {"Z08 size 4 GiB", CENTRAL, 2, 24, 4, 0xfffffffe, 0, "two sizes that differ"},
    {"Z09 extra length", CENTRAL, 4, 30, 2, 1, 1, "an entry that leaves the directory"},
    {"Z09 local extra", LOCAL, 2, 40, 2, 1, 1, "extra fields that do not fit"},
    {"Z09 local extra length", LOCAL, 2, 28, 2, 0xffff, 0, "runs into the directory"},
    {"Z11 name length", CENTRAL, 4, 28, 2, 0xffff, 0, "an entry that leaves the directory"},
    {"Z11 comment length", CENTRAL, 4, 32, 2, 9, 0, "an entry that leaves the directory"},
    {"Z11 shorter name", CENTRAL, 1, 28, 2, UINT64_MAX, 1, "no directory entry"},
    {"Z11 entry magic", CENTRAL, 1, 0, 4, 0, 0, "no directory entry"}};

static size_t zip_place(int where, int part)
{
    switch (where) {
    case LOCAL:
        return zip_at.local[part];
    case DATA:
        return zip_at.data[part];
    case DESCRIPTOR:
        return zip_at.descriptor[part];
    case CENTRAL:
        return zip_at.central[part];
    case WIDE:
        return zip_at.wide;
    case LOCATOR:
        return zip_at.locator;
    default:
        return zip_at.end;
    }
}

TEST(zip_table)
{
    buf b = {NULL, 0, 0};
    torch_good();
    for (size_t i = 0; i < sizeof zip_cases / sizeof zip_cases[0]; i++) {
        size_t at;
        uint64_t value = zip_cases[i].value;
        build_zip(&b, torch_parts, PARTS, ZIP_TORCH);
        at = zip_place(zip_cases[i].where, zip_cases[i].part) + zip_cases[i].at;
        for (unsigned k = 0; zip_cases[i].relative && k < zip_cases[i].width; k++) {
            value += (uint64_t)b.bytes[at + k] << (8 * k);
        }
        buf_set(&b, at, zip_cases[i].width, value);
        scratch_put("x.bin", b.bytes, b.n);
        weights_case(zip_cases[i].id, "x.bin", zip_cases[i].piece == NULL ? TL_OK : TL_ERR_FORMAT,
                     zip_cases[i].piece);
    }
    buf_free(&b);
    torch_free();
}

static void zip_parts_case(const char *id, const zip_part *parts, int n, int form,
                           const char *piece)
{
    buf b = {NULL, 0, 0};
    build_zip(&b, parts, n, form);
    scratch_put("x.bin", b.bytes, b.n);
    weights_case(id, "x.bin", TL_ERR_FORMAT, piece);
    buf_free(&b);
}

TEST(zip_structures)
{
    zip_part parts[PARTS];
    buf b = {NULL, 0, 0};
    torch_good();
    memcpy(parts, torch_parts, sizeof parts);
    parts[PART_VERSION].name = "m/byteorder";
    zip_parts_case("Z05 duplicate", parts, PARTS, ZIP_TORCH,
                   "\"m/byteorder\": found this name twice");
    parts[PART_VERSION].name = "n/data.pkl";
    zip_parts_case("Z05 two data.pkl", parts, PARTS, ZIP_TORCH, "a second data.pkl");
    parts[PART_VERSION].name = "m/constants.pkl";
    zip_parts_case("P15 TorchScript", parts, PARTS, ZIP_TORCH,
                   "a TorchScript archive, allowed: a state dict");
    zip_parts_case("no data.pkl", torch_parts + 1, PARTS - 1, ZIP_TORCH,
                   "record \"data.pkl\": found none");
    /* Z04: two entries of one record; then one inside the data of another */
    build_zip(&b, torch_parts, PARTS, ZIP_PLAIN);
    memcpy(b.bytes + zip_at.central[3] + 16, b.bytes + zip_at.central[2] + 16, 12);
    memcpy(b.bytes + zip_at.central[3] + 42, b.bytes + zip_at.central[2] + 42, 4);
    scratch_put("x.bin", b.bytes, b.n);
    weights_case("Z04 same record", "x.bin", TL_ERR_FORMAT, "another name in its local header");
    build_zip(&b, torch_parts, PARTS, ZIP_PLAIN);
    buf_set(&b, zip_at.local[1] + 18, 4, 100);
    buf_set(&b, zip_at.local[1] + 22, 4, 100);
    buf_set(&b, zip_at.central[1] + 20, 4, 100);
    buf_set(&b, zip_at.central[1] + 24, 4, 100);
    scratch_put("x.bin", b.bytes, b.n);
    weights_case("Z04 overlap", "x.bin", TL_ERR_FORMAT, "a record that overlaps another");
    build_zip(&b, torch_parts, PARTS, ZIP_PLAIN);
    for (unsigned k = 0; k < 2; k++) {
        buf_set(&b, zip_at.local[4] + 18 + 4 * k, 4, 100);
        buf_set(&b, zip_at.central[4] + 20 + 4 * k, 4, 100);
    }
    scratch_put("x.bin", b.bytes, b.n);
    weights_case("Z04 over the directory", "x.bin", TL_ERR_FORMAT,
                 "runs into the directory or leaves the file");
    /* Z08: 4 GiB, and 2^64 - 1 through zip64 fields, in a small file */
    build_zip(&b, torch_parts, PARTS, ZIP_TORCH);
    buf_set(&b, zip_at.central[2] + 20, 8, 0xfffffffefffffffe);
    scratch_put("x.bin", b.bytes, b.n);
    weights_case("Z08 4 GiB", "x.bin", TL_ERR_FORMAT, "runs into the directory or leaves the file");
    build_zip(&b, torch_parts, PARTS, ZIP_WIDE_ENTRY);
    buf_set(&b, zip_at.central[2] + 46 + 8 + 4, 8, UINT64_MAX);
    buf_set(&b, zip_at.central[2] + 46 + 8 + 12, 8, UINT64_MAX);
    scratch_put("x.bin", b.bytes, b.n);
    weights_case("Z08 2^64-1", "x.bin", TL_ERR_FORMAT,
                 "runs into the directory or leaves the file");
    build_zip(&b, torch_parts, PARTS, ZIP_WIDE_ENTRY);
    buf_set(&b, zip_at.central[2] + 46 + 8 + 20, 8, UINT64_MAX - 10);
    scratch_put("x.bin", b.bytes, b.n);
    weights_case("Z02 offset 2^64-11", "x.bin", TL_ERR_FORMAT, "a local header outside the data");
    build_zip(&b, torch_parts, PARTS, ZIP_WIDE_ENTRY);
    buf_set(&b, zip_at.central[2] + 46 + 8 + 2, 2, 16);
    scratch_put("x.bin", b.bytes, b.n);
    weights_case("Z09 short zip64 field", "x.bin", TL_ERR_FORMAT,
                 "extra fields that do not fit their length");
    buf_free(&b);
    torch_free();
}

TEST(zip_ends)
{
    buf b = {NULL, 0, 0};
    torch_good();
    build_zip(&b, torch_parts, PARTS, ZIP_TORCH);
    buf_text(&b, "x");
    scratch_put("x.bin", b.bytes, b.n);
    weights_case("Z01 byte behind", "x.bin", TL_ERR_FORMAT, "no end record");
    buf_set(&b, zip_at.end + 20, 2, 1);
    scratch_put("x.bin", b.bytes, b.n);
    weights_case("Z01 real comment", "x.bin", TL_ERR_FORMAT,
                 "an archive comment, allowed: no comment");
    b.n--;
    buf_set(&b, zip_at.end + 20, 2, 22);
    buf_put(&b, b.bytes + zip_at.end, 22);
    buf_set(&b, b.n - 2, 2, 0);
    scratch_put("x.bin", b.bytes, b.n);
    weights_case("Z01 two ends", "x.bin", TL_ERR_FORMAT,
                 "more than one end record, allowed: exactly one");
    build_zip(&b, torch_parts, PARTS, ZIP_NO_WIDE);
    buf_set(&b, zip_at.end + 8, 2, 6);
    buf_set(&b, zip_at.end + 10, 2, 6);
    scratch_put("x.bin", b.bytes, b.n);
    weights_case("Z11 one entry more", "x.bin", TL_ERR_FORMAT,
                 "no directory entry, allowed: as many");
    buf_set(&b, zip_at.end + 8, 2, 4);
    buf_set(&b, zip_at.end + 10, 2, 4);
    scratch_put("x.bin", b.bytes, b.n);
    weights_case("Z11 one entry less", "x.bin", TL_ERR_FORMAT, "more directory than entries");
    buf_set(&b, zip_at.end + 8, 2, 65000);
    buf_set(&b, zip_at.end + 10, 2, 65000);
    scratch_put("x.bin", b.bytes, b.n);
    weights_case("Z11 65000 entries", "x.bin", TL_ERR_FORMAT,
                 "more entries than the directory has room for");
    build_zip(&b, torch_parts, PARTS, ZIP_NO_WIDE);
    buf_set(&b, zip_at.end + 12, 4, 0xfffffff0);
    scratch_put("x.bin", b.bytes, b.n);
    weights_case("Z02 directory size", "x.bin", TL_ERR_FORMAT, "a directory that ends elsewhere");
    buf_free(&b);
    torch_free();
}

TEST(zip_Z10_checksums)
{
    buf b = {NULL, 0, 0};
    ck_source *ck;
    tl_error err;
    memset(&err, 0, sizeof err);
    torch_good();
    build_zip(&b, torch_parts, PARTS, ZIP_TORCH);
    b.bytes[zip_at.data[PART_PICKLE] + 40] ^= 1;
    scratch_put("x.bin", b.bytes, b.n);
    weights_case("Z10 pickle", "x.bin", TL_ERR_FORMAT,
                 "\"m/data.pkl\": found bytes that differ from their checksum");
    b.bytes[zip_at.data[PART_PICKLE] + 40] ^= 1;
    b.bytes[zip_at.data[PART_0] + 5] ^= 1;
    scratch_put("x.bin", b.bytes, b.n);
    REQUIRE(ck_open_weights(scratch("x.bin"), &ck, &err) == TL_OK);
    CHECK(ck_verify(ck, ck_find(ck, "b.weight"), &err) == TL_OK);
    CHECK(ck_verify(ck, ck_find(ck, "a.weight"), &err) == TL_ERR_FORMAT);
    CHECK_CONTAINS(err.message, "\"m/data/0\": found bytes that differ from their checksum");
    ck_close(ck);
    check_clean("Z10");
    CHECK(zip_crc(0, (const unsigned char *)"123456789", 9) == 0xcbf43926u);
    CHECK(zip_crc(zip_crc(0, (const unsigned char *)"1234", 4), (const unsigned char *)"56789",
                  5) == 0xcbf43926u);
    buf_free(&b);
    torch_free();
}

/* ---- pickle ---------------------------------------------------------------------------------- */

static const struct {
    const char *id, *text;
    size_t n;
    tl_status status;
    const char *piece;
} pickle_cases[] = {
    {"y empty dict", T("\x80\x02}."), TL_OK, ""},
    {"y frame", T("\x80\x04\x95\x02\0\0\0\0\0\0\0}."), TL_OK, ""},
    {"y memo", T("\x80\x02}q\0h\0\x86."), TL_OK, ""},
    {"y shared", T("\x80\x02]q\x05(h\x05h\x05\x65."), TL_OK, ""},
    {"y long", T("\x80\x02\x8a\x02\xff\x80."), TL_OK, ""},
    {"y memoize", T("\x80\x04]\x94\x8c\x01x\x94\x61(h\0h\x01\x65."), TL_OK, ""},
    {"P01 unknown", T("\x80\x02\xff."), TL_ERR_UNSUPPORTED,
     "byte 102: pickle: found opcode 0xff (unknown)"},
    {"P01 INST", T("\x80\x02(ios\nsystem\n."), TL_ERR_UNSUPPORTED,
     "byte 103: pickle: found opcode 0x69 (INST)"},
    {"P01 OBJ", T("\x80\x02(o."), TL_ERR_UNSUPPORTED, "(OBJ)"},
    {"P01 NEWOBJ", T("\x80\x02))\x81."), TL_ERR_UNSUPPORTED, "(NEWOBJ)"},
    {"P01 NEWOBJ_EX", T("\x80\x04)))\x92."), TL_ERR_UNSUPPORTED, "(NEWOBJ_EX)"},
    {"P01 EXT1", T("\x80\x02\x82\x01."), TL_ERR_UNSUPPORTED, "(EXT1)"},
    {"P01 PERSID", T("\x80\x02Px\n."), TL_ERR_UNSUPPORTED, "(PERSID)"},
    {"P01 DUP", T("\x80\x02}2."), TL_ERR_UNSUPPORTED, "(DUP)"},
    {"P01 POP", T("\x80\x02}0."), TL_ERR_UNSUPPORTED, "(POP)"},
    {"P01 bytes",
     T("\x80\x03"
       "C\x01x."),
     TL_ERR_UNSUPPORTED, "(SHORT_BINBYTES)"},
    {"P02 os.system",
     T("\x80\x02"
       "cos\nsystem\nX\x02\0\0\0ls\x85R."),
     TL_ERR_UNSUPPORTED, "the name 'os system', allowed: tensors"},
    {"P02 builtins",
     T("\x80\x02"
       "c__builtin__\neval\n."),
     TL_ERR_UNSUPPORTED, "'__builtin__ eval'"},
    {"P02 stack global", T("\x80\x04\x8c\x05posix\x8c\x06system\x93."), TL_ERR_UNSUPPORTED,
     "'posix system'"},
    {"P02 prefix",
     T("\x80\x02"
       "ctorch\nFloatStorag\n."),
     TL_ERR_UNSUPPORTED, "'torch FloatStorag'"},
    {"P02 longer",
     T("\x80\x02"
       "ctorch\nFloatStoragex\n."),
     TL_ERR_UNSUPPORTED, "'torch FloatStoragex'"},
    {"P02 attribute",
     T("\x80\x04\x8c\x05torch\x8c\x0a"
       "serializer\x93."),
     TL_ERR_UNSUPPORTED, "'torch serializer'"},
    {"P02 old tensor",
     T("\x80\x02"
       "ctorch._utils\n_rebuild_tensor\n."),
     TL_ERR_UNSUPPORTED, "'torch._utils _rebuild_tensor'"},
    {"P02 with NUL",
     T("\x80\x02"
       "ctorch\nFloatStorage\0\n."),
     TL_ERR_UNSUPPORTED, "FloatStorage\\x00"},
    {"P03 REDUCE no tuple",
     T("\x80\x02"
       "ccollections\nOrderedDict\n]R."),
     TL_ERR_FORMAT, "REDUCE on something else"},
    {"P03 REDUCE no name", T("\x80\x02})R."), TL_ERR_FORMAT, "REDUCE on something else"},
    {"P03 OrderedDict args",
     T("\x80\x02"
       "ccollections\nOrderedDict\nK\x01\x85R."),
     TL_ERR_FORMAT, "OrderedDict with arguments"},
    {"P03 storage call",
     T("\x80\x02"
       "ctorch\nFloatStorage\n)R."),
     TL_ERR_FORMAT, "a call of a storage class"},
    {"P03 tensor args",
     T("\x80\x02"
       "ctorch._utils\n_rebuild_tensor_v2\n)R."),
     TL_ERR_FORMAT, "other arguments of _rebuild_tensor_v2"},
    {"P03 tensor ints",
     T("\x80\x02"
       "ctorch._utils\n_rebuild_tensor_v2\n(K\0K\0K\0K\0K\0K\0tR."),
     TL_ERR_FORMAT, "other arguments of _rebuild_tensor_v2"},
    {"P03 parameter args",
     T("\x80\x02"
       "ctorch._utils\n_rebuild_parameter\nK\x01\x88}\x87R."),
     TL_ERR_FORMAT, "other arguments of _rebuild_parameter"},
    {"P03 BUILD on int", T("\x80\x02K\x01}b."), TL_ERR_FORMAT, "BUILD on something else"},
    {"P03 BUILD with int",
     T("\x80\x02}K\x01"
       "b."),
     TL_ERR_FORMAT, "BUILD on something else"},
    {"P04 underflow R", T("\x80\x02R."), TL_ERR_FORMAT, "byte 102: pickle: found too few values"},
    {"P04 underflow tuple", T("\x80\x02K\x01\x86."), TL_ERR_FORMAT, "too few values"},
    {"P04 underflow mark", T("\x80\x02K\x01(\x85."), TL_ERR_FORMAT, "too few values"},
    {"P04 underflow append",
     T("\x80\x02K\x01"
       "a."),
     TL_ERR_FORMAT, "too few values"},
    {"P04 underflow setitem", T("\x80\x02}K\x01s."), TL_ERR_FORMAT, "too few values"},
    {"P04 underflow setitems", T("\x80\x02(K\x01K\x02u."), TL_ERR_FORMAT, "too few values"},
    {"P04 underflow put", T("\x80\x02q\0."), TL_ERR_FORMAT, "too few values"},
    {"P04 underflow persid", T("\x80\x02Q."), TL_ERR_FORMAT, "another persistent id"},
    {"P04 underflow build", T("\x80\x02}b."), TL_ERR_FORMAT, "too few values"},
    {"P04 underflow global", T("\x80\x04}\x93."), TL_ERR_FORMAT, "too few values"},
    {"P04 no mark t", T("\x80\x02}t."), TL_ERR_FORMAT, "found no mark"},
    {"P04 no mark u", T("\x80\x02}u."), TL_ERR_FORMAT, "found no mark"},
    {"P04 no STOP", T("\x80\x02}"), TL_ERR_FORMAT, "found the end of the pickle, allowed: STOP"},
    {"P04 empty", T(""), TL_ERR_FORMAT, "no pickle, allowed: PROTO first"},
    {"P04 two values", T("\x80\x02}}."), TL_ERR_FORMAT, "STOP with more or less"},
    {"P04 no value", T("\x80\x02."), TL_ERR_FORMAT, "STOP with more or less"},
    {"P04 open mark", T("\x80\x02(}."), TL_ERR_FORMAT, "STOP with more or less"},
    {"P04 cut int", T("\x80\x02J\x01\x02"), TL_ERR_FORMAT, "inside an opcode"},
    {"P04 cut string", T("\x80\x02X\x05\0\0\0abc"), TL_ERR_FORMAT, "inside an opcode"},
    {"P04 cut global",
     T("\x80\x02"
       "ctorch\nFloat"),
     TL_ERR_FORMAT, "inside an opcode"},
    {"P04 cut global name",
     T("\x80\x02"
       "ctorch"),
     TL_ERR_FORMAT, "inside an opcode"},
    {"P04 cut float", T("\x80\x02G\0\0"), TL_ERR_FORMAT, "inside an opcode"},
    {"P05 get missing", T("\x80\x02h\x07."), TL_ERR_FORMAT, "a memo index that nothing was put to"},
    {"P05 get hole", T("\x80\x02}q\x02h\x01."), TL_ERR_FORMAT, "nothing was put to"},
    {"P05 put 2^32-1", T("\x80\x02}r\xff\xff\xff\xff."), TL_ERR_FORMAT,
     "a memo index above the length"},
    {"P05 get 2^32-1", T("\x80\x02j\xff\xff\xff\xff."), TL_ERR_FORMAT, "nothing was put to"},
    {"P05 put beyond mark", T("\x80\x02}(q\0."), TL_ERR_FORMAT, "too few values"},
    {"P08 odd", T("\x80\x02}(K\x01u."), TL_ERR_FORMAT, "SETITEMS with an odd number"},
    {"P08 on list", T("\x80\x02](K\x01K\x02u."), TL_ERR_FORMAT,
     "SETITEM on something else, allowed: a dict"},
    {"P08 on int", T("\x80\x02K\x01K\x01K\x02s."), TL_ERR_FORMAT, "SETITEM on something else"},
    {"P08 append on dict",
     T("\x80\x02}K\x01"
       "a."),
     TL_ERR_FORMAT, "APPEND on something else"},
    {"P08 appends on tuple", T("\x80\x02)(K\x01\x65."), TL_ERR_FORMAT, "APPEND on something else"},
    {"P09 LONG1 9", T("\x80\x02\x8a\x09\0\0\0\0\0\0\0\0\0."), TL_ERR_FORMAT, "more than 8 bytes"},
    {"P09 LONG1 255", T("\x80\x02\x8a\xff."), TL_ERR_FORMAT, "more than 8 bytes"},
    {"P09 LONG4", T("\x80\x02\x8b\xff\xff\xff\xff."), TL_ERR_FORMAT, "more than 8 bytes"},
    {"P09 LONG4 9", T("\x80\x02\x8b\x09\0\0\0\0\0\0\0\0\0\0\0\0."), TL_ERR_FORMAT,
     "more than 8 bytes"},
    {"P09 string 2^31",
     T("\x80\x02X\0\0\0\x80"
       "abc."),
     TL_ERR_FORMAT, "inside an opcode"},
    {"P09 not UTF-8", T("\x80\x02X\x01\0\0\0\xff."), TL_ERR_FORMAT, "not UTF-8"},
    {"P10 text int", T("I1\n."), TL_ERR_FORMAT, "allowed: PROTO first"},
    {"P10 INT", T("\x80\x02I1\n."), TL_ERR_UNSUPPORTED, "(INT)"},
    {"P10 STRING", T("\x80\x02S'x'\n."), TL_ERR_UNSUPPORTED, "(STRING)"},
    {"P10 UNICODE", T("\x80\x02Vx\n."), TL_ERR_UNSUPPORTED, "(UNICODE)"},
    {"P10 PUT", T("\x80\x02}p0\n."), TL_ERR_UNSUPPORTED, "(PUT)"},
    {"P10 GET", T("\x80\x02g0\n."), TL_ERR_UNSUPPORTED, "(GET)"},
    {"P10 protocol 1", T("\x80\x01}."), TL_ERR_FORMAT, "protocol 2 to 5"},
    {"P10 protocol 6", T("\x80\x06}."), TL_ERR_FORMAT, "protocol 2 to 5"},
    {"P10 PROTO twice", T("\x80\x02\x80\x02}."), TL_ERR_FORMAT, "second PROTO"},
    {"P10 frame lies", T("\x80\x04\x95\xff\0\0\0\0\0\0\0}."), TL_ERR_FORMAT,
     "a frame longer than the pickle"},
    {"P10 frame huge", T("\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff}."), TL_ERR_FORMAT,
     "a frame longer"},
    {"P10 BINUNICODE8", T("\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fx."), TL_ERR_FORMAT,
     "inside an opcode"},
    {"P11 persid text", T("\x80\x02X\x01\0\0\0xQ."), TL_ERR_FORMAT,
     "another persistent id, allowed: ('storage'"},
    {"P11 persid empty", T("\x80\x02)Q."), TL_ERR_FORMAT, "another persistent id"},
    {"P11 persid class",
     T("\x80\x02(X\x07\0\0\0storageK\x01X\x01\0\0\0"
       "0X\x03\0\0\0cpuK\x01tQ."),
     TL_ERR_FORMAT, "another persistent id"},
    {"P11 persid OrderedDict",
     T("\x80\x02(X\x07\0\0\0storageccollections\nOrderedDict\nX\x01\0\0\0"
       "0X\x03\0\0\0cpuK\x01tQ."),
     TL_ERR_FORMAT, "another persistent id"},
    {"P11 persid word",
     T("\x80\x02(X\x07\0\0\0storbgectorch\nFloatStorage\nX\x01\0\0\0"
       "0X\x03\0\0\0cpuK\x01tQ."),
     TL_ERR_FORMAT, "another persistent id"},
    {"P11 persid count",
     T("\x80\x02(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0"
       "0X\x03\0\0\0cpu\x8a\x01\xfftQ."),
     TL_ERR_FORMAT, "another persistent id"},
    {"P11 persid six",
     T("\x80\x02(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0"
       "0X\x03\0\0\0cpuK\x01NtQ."),
     TL_ERR_FORMAT, "another persistent id"}};

TEST(pickle_table)
{
    for (size_t i = 0; i < sizeof pickle_cases / sizeof pickle_cases[0]; i++) {
        size_t n = pickle_cases[i].n;
        char *copy = (char *)malloc(n != 0 ? n : 1);
        pkl_data data;
        tl_error err;
        tl_status status;
        REQUIRE(copy != NULL);
        memcpy(copy, pickle_cases[i].text, n);
        memset(&err, 0, sizeof err);
        status = pkl_parse(copy, n, "x.pkl", 100, 0, &data, &err);
        pkl_free(&data);
        free(copy);
        check_result(pickle_cases[i].id, status, &err, pickle_cases[i].status,
                     pickle_cases[i].piece);
    }
}

TEST(pickle_integers)
{
    static const struct {
        const char *text;
        size_t n;
        int64_t value;
    } cases[] = {{T("\x80\x02K\xff."), 255},
                 {T("\x80\x02M\xff\xff."), 65535},
                 {T("\x80\x02J\xff\xff\xff\xff."), -1},
                 {T("\x80\x02J\0\0\0\x80."), INT32_MIN},
                 {T("\x80\x02J\xff\xff\xff\x7f."), INT32_MAX},
                 {T("\x80\x02\x8a\0."), 0},
                 {T("\x80\x02\x8a\x01\x80."), -128},
                 {T("\x80\x02\x8a\x02\x80\0."), 128},
                 {T("\x80\x02\x8a\x08\0\0\0\0\0\0\0\x80."), INT64_MIN},
                 {T("\x80\x02\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f."), INT64_MAX},
                 {T("\x80\x02\x8b\x01\0\0\0\xfe."), -2}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        pkl_data data;
        tl_error err;
        memset(&err, 0, sizeof err);
        REQUIRE(pkl_parse(cases[i].text, cases[i].n, "x", 0, 0, &data, &err) == TL_OK);
        CHECK_INT(data.nodes[data.root].type, PKL_INT);
        CHECK_INT(data.nodes[data.root].value, cases[i].value);
        pkl_free(&data);
    }
    check_clean("integers");
}

/* P06, P07: a memo bomb of 2^1000 tuples, and 100000 nested lists: time and memory of the bytes. */
TEST(pickle_P06_bombs)
{
    buf b = {NULL, 0, 0};
    pkl_data data;
    tl_error err;
    memset(&err, 0, sizeof err);
    buf_put(&b, "\x80\x02]r\0\0\0\0", 8);
    for (uint32_t i = 0; i < 1000; i++) {
        buf_text(&b, "j");
        buf_le(&b, 4, i);
        buf_text(&b, "j");
        buf_le(&b, 4, i);
        buf_put(&b, "\x86r", 2);
        buf_le(&b, 4, i + 1);
        buf_put(&b, "\x85\x85\x85", 3);
    }
    buf_put(&b, "\x85.", 2);
    (void)pkl_parse((const char *)b.bytes, b.n, "x", 0, 0, &data, &err);
    CHECK_CONTAINS(err.message, "STOP with more or less than one value");
    b.n = 0;
    memset(&err, 0, sizeof err);
    buf_put(&b, "\x80\x02", 2);
    for (int i = 0; i < 100000; i++) {
        buf_text(&b, "]");
    }
    for (int i = 1; i < 100000; i++) {
        buf_text(&b, "a");
    }
    buf_text(&b, ".");
    CHECK_INT(pkl_parse((const char *)b.bytes, b.n, "x", 0, 0, &data, &err), TL_OK);
    CHECK(data.node_count == 100000 && data.cell_count == 99999);
    pkl_free(&data);
    b.n = 0;      /* a list that contains itself */
    buf_put(&b, "\x80\x02]q\0h\0" "a.", 9);
    CHECK_INT(pkl_parse((const char *)b.bytes, 9, "x", 0, 0, &data, &err), TL_OK);
    pkl_free(&data);
    buf_free(&b);
    check_clean("P06");
}

/* ---- state dicts in archives ----------------------------------------------------------------- */

static void dict_case(const char *id, const pk_tensor *t, int n, tl_status status,
                      const char *piece)
{
    torch_good();
    pk_state_dict(&torch_parts[PART_PICKLE].data, t, n);
    torch_put(ZIP_TORCH);
    weights_case(id, "x.bin", status, piece);
}

TEST(dict_P11_P12_places)
{
    static const struct {
        const char *id;
        pk_tensor t;
        const char *piece;
    } cases[] = {
        {"y part", {"a", "FloatStorage", "0", 6, 2, 1, {4}, {1}}, NULL},
        {"y rank 0", {"a", "FloatStorage", "0", 6, 5, 0, {0}, {0}}, NULL},
        {"y stride of 1", {"a", "FloatStorage", "0", 6, 0, 3, {2, 1, 3}, {3, 77, 1}}, NULL},
        {"y no elements", {"a", "FloatStorage", "0", 6, 6, 2, {0, 3}, {99, 1}}, NULL},
        {"P11 numel", {"a", "FloatStorage", "0", 7, 0, 1, {6}, {1}}, "a record of another size"},
        {"P11 numel 2^62",
         {"a", "FloatStorage", "0", INT64_MAX, 0, 1, {6}, {1}},
         "a record of another size"},
        {"P11 dtype", {"a", "HalfStorage", "0", 6, 0, 1, {6}, {1}}, "a record of another size"},
        {"P11 no record",
         {"a", "FloatStorage", "9", 6, 0, 1, {6}, {1}},
         "storage \"9\": found no record"},
        {"P11 key ..", {"a", "FloatStorage", "../m/data/0", 6, 0, 1, {6}, {1}}, "found no record"},
        {"P11 negative numel",
         {"a", "FloatStorage", "0", -6, 0, 1, {6}, {1}},
         "another persistent id"},
        {"P12 transposed",
         {"a", "FloatStorage", "0", 6, 0, 2, {2, 3}, {1, 2}},
         "found (1, 2), allowed: strides of a contiguous tensor of shape (2, 3)"},
        {"P12 expanded", {"a", "FloatStorage", "0", 6, 0, 2, {2, 3}, {0, 1}}, "found (0, 1)"},
        {"P12 overlap", {"a", "FloatStorage", "0", 6, 0, 2, {2, 3}, {1, 1}}, "found (1, 1)"},
        {"P12 steps", {"a", "FloatStorage", "0", 6, 0, 1, {3}, {2}}, "found (2)"},
        {"P12 negative stride",
         {"a", "FloatStorage", "0", 6, 0, 1, {6}, {-1}},
         "other arguments of _rebuild_tensor_v2"},
        {"P12 negative shape",
         {"a", "FloatStorage", "0", 6, 0, 1, {-6}, {1}},
         "other arguments of _rebuild_tensor_v2"},
        {"P12 negative offset",
         {"a", "FloatStorage", "0", 6, -1, 1, {6}, {1}},
         "other arguments of _rebuild_tensor_v2"},
        {"P12 larger", {"a", "FloatStorage", "0", 6, 0, 1, {7}, {1}}, "leave the storage"},
        {"P12 offset", {"a", "FloatStorage", "0", 6, 1, 1, {6}, {1}}, "leave the storage"},
        {"P12 offset 2^63-1",
         {"a", "FloatStorage", "0", 6, INT64_MAX, 1, {1}, {1}},
         "leave the storage"},
        {"P12 product",
         {"a", "FloatStorage", "0", 6, 0, 2, {INT64_MAX, INT64_MAX}, {1, 1}},
         "a shape of 2^63 bytes or more"},
        {"P12 rank 9",
         {"a",
          "FloatStorage",
          "0",
          6,
          0,
          9,
          {1, 1, 1, 1, 1, 1, 1, 1, 6},
          {1, 1, 1, 1, 1, 1, 1, 1, 1}},
         "more than 8 dimensions"},
        {"G11 empty name", {"", "FloatStorage", "0", 6, 0, 1, {6}, {1}}, "an empty name"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        dict_case(cases[i].id, &cases[i].t, 1, cases[i].piece == NULL ? TL_OK : TL_ERR_FORMAT,
                  cases[i].piece);
    }
    torch_free();
}

TEST(dict_P13_to_P17)
{
    pk_tensor t[3];
    buf *p = &torch_parts[PART_PICKLE].data;
    ck_source *ck;
    tl_error err;
    memset(&err, 0, sizeof err);
    memcpy(t, pk_good, 2 * sizeof t[0]);
    t[2] = t[0];
    t[2].name = "tied";
    torch_good();
    pk_state_dict(p, t, 3);
    torch_put(ZIP_TORCH);
    REQUIRE(ck_open_weights(scratch("x.bin"), &ck, &err) == TL_OK);
    CHECK(ck_same(ck_find(ck, "tied"), ck_find(ck, "a.weight")) &&
          !ck_same(ck_find(ck, "tied"), ck_find(ck, "b.weight")));
    ck_close(ck);
    check_clean("P13");
    t[2].name = t[0].name;
    dict_case("P14 duplicate", t, 3, TL_ERR_FORMAT, "tensor \"a.weight\": found its name twice");
    torch_good();
    torch_parts[PART_ORDER].data.n = 0;
    buf_text(&torch_parts[PART_ORDER].data, "big");
    torch_put(ZIP_TORCH);
    weights_case("P16 big", "x.bin", TL_ERR_FORMAT, "byteorder \"big\": found another byte order");
    torch_good();
    p->n -= 2;
    pk_string(p, "step");
    buf_put(p, "K\x05u.", 4);
    torch_put(ZIP_TORCH);
    weights_case("P17 a number", "x.bin", TL_ERR_FORMAT,
                 "tensor \"step\": found something else, allowed: a tensor");
    torch_good();
    p->n -= 2;
    buf_put(p, "K\x05K\x05u.", 6);
    torch_put(ZIP_TORCH);
    weights_case("P17 a number as key", "x.bin", TL_ERR_FORMAT, "a key that is no string");
    torch_good();
    buf_text(p, ".");
    torch_put(ZIP_TORCH);
    weights_case("P04 behind STOP", "x.bin", TL_ERR_FORMAT, "found bytes behind STOP");
    torch_good();
    p->n = 0;
    buf_put(p, "\x80\x02].", 4);
    torch_put(ZIP_TORCH);
    weights_case("root list", "x.bin", TL_ERR_FORMAT,
                 "found something else, allowed: a state dict");
    /* a module's state dict: an OrderedDict with _metadata, and a parameter */
    torch_good();
    p->n = 0;
    buf_text(p, "\x80\x02" "ccollections\nOrderedDict\n)R(");
    pk_string(p, "a.weight");
    buf_text(p, "ctorch._utils\n_rebuild_parameter\n(");
    {
        buf inner = {NULL, 0, 0};
        pk_put_tensor(&inner, &pk_good[0]);
        buf_put(p, inner.bytes + 5 + 8, inner.n - 5 - 8);
        buf_free(&inner);
    }
    buf_text(p, "\x88" "ccollections\nOrderedDict\n)RtRu}");
    pk_string(p, "_metadata");
    buf_text(p, "ccollections\nOrderedDict\n)Rsb.");
    torch_put(ZIP_TORCH);
    weights_case("y parameter and metadata", "x.bin", TL_OK, "");
    torch_free();
}

TEST(recognise)
{
    static const struct {
        const char *id, *name, *text;
        size_t n;
        tl_status status;
        const char *piece;
    } cases[] = {
        {"G01 empty", "x.safetensors", T(""), TL_ERR_FORMAT, "found 0 bytes, allowed: at least 8"},
        {"G01 7 bytes", "x.safetensors", T("1234567"), TL_ERR_FORMAT, "found 7 bytes"},
        {"G01 empty bin", "x.bin", T(""), TL_ERR_FORMAT, "found no torch file (0 bytes)"},
        {"LFS", "x.safetensors", T("version https://git-lfs.github.com/spec/v1\noid"),
         TL_ERR_UNSUPPORTED, "a Git LFS pointer"},
        {"GGUF", "x.bin", T("GGUF\3\0\0\0"), TL_ERR_FORMAT, "the end of the file at 8"},
        {"P15 pickle", "x.bin", T("\x80\x02}."), TL_ERR_FORMAT, "found no torch file (4 bytes)"},
        {"HTML", "x.safetensors", T("<!DOCTYPE html><html>"), TL_ERR_FORMAT,
         "header length: found 5789751444030890300"}};
    char tar[512];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        scratch_put(cases[i].name, cases[i].text, cases[i].n);
        weights_case(cases[i].id, cases[i].name, cases[i].status, cases[i].piece);
    }
    memset(tar, 0, sizeof tar);
    memcpy(tar + 257, "ustar", 5);
    scratch_put("x.bin", tar, sizeof tar);
    weights_case("P15 tar", "x.bin", TL_ERR_UNSUPPORTED, "re-saved with torch 1.6 or later");
}

TEST(G13_not_a_file)
{
    weights_case("G13 missing", "nothing.safetensors", TL_ERR_IO, "cannot open");
    REQUIRE(mkfifo(scratch("fifo.safetensors"), 0600) == 0);
    weights_case("G13 FIFO", "fifo.safetensors", TL_ERR_IO,
                 "found a device, pipe or socket, allowed: a regular file");
    REQUIRE(symlink("/dev/zero", scratch("zero.safetensors")) == 0);
    weights_case("G13 device", "zero.safetensors", TL_ERR_IO, "a device, pipe or socket");
    put_safetensors("x.safetensors", "{" E("a", "F32", "1", 0, 4) "}", 4);
    REQUIRE(symlink("x.safetensors", scratch("link.safetensors")) == 0);
    weights_case("G13 link", "link.safetensors", TL_OK, "");
}

/* R18: data and records behind 4 GiB, in sparse files. As in real torch files, the zip64 field of a
 * record behind 4 GiB holds only its offset, and its descriptor has sizes of 8 bytes. */
static int put_large_zip(const char *name)
{
    const uint64_t gap = ((uint64_t)5 << 30) + 64;
    buf b = {NULL, 0, 0}, *pickle = &torch_parts[PART_PICKLE].data;
    zip_part big = {"m/data/0", {NULL, 0, 0}};
    FILE *f;
    uint64_t directory, at[2];
    int ok;
    torch_good();
    pk_state_dict(pickle, pk_good, 1);
    at[0] = 0;
    build_zip_local(&b, &torch_parts[PART_PICKLE], 0, ZIP_TORCH,
                    zip_crc(0, pickle->bytes, pickle->n));
    scratch_put(name, b.bytes, b.n);
    b.n = 0;
    at[1] = gap;
    big.data = torch_parts[PART_0].data;
    build_zip_local(&b, &big, 1, ZIP_WIDE_DESCRIPTOR, zip_crc(0, big.data.bytes, big.data.n));
    directory = gap + b.n;
    for (int i = 0; i < 2; i++) {
        const zip_part *p = i == 0 ? &torch_parts[PART_PICKLE] : &big;
        size_t start = b.n;
        zip_at.local[i] = 0;
        build_zip_central(&b, p, i, ZIP_TORCH, zip_crc(0, p->data.bytes, p->data.n));
        if (i == 1) {
            buf_set(&b, start + 30, 2, 12);
            buf_set(&b, start + 42, 4, 0xffffffffu);
            buf_le(&b, 2, 1);
            buf_le(&b, 2, 8);
            buf_le(&b, 8, at[1]);
        }
    }
    {
        uint64_t size = gap + b.n - directory, wide = gap + b.n;
        buf_le(&b, 4, 0x06064b50);
        buf_le(&b, 8, 44);
        buf_le(&b, 4, 0x002d031e);
        buf_le(&b, 8, 0);
        buf_le(&b, 8, 2);
        buf_le(&b, 8, 2);
        buf_le(&b, 8, size);
        buf_le(&b, 8, directory);
        buf_le(&b, 4, 0x07064b50);
        buf_le(&b, 4, 0);
        buf_le(&b, 8, wide);
        buf_le(&b, 4, 1);
        buf_le(&b, 4, 0x06054b50);
        buf_le(&b, 4, 0);
        buf_le(&b, 4, 0x00020002);
        buf_le(&b, 4, size);
        buf_le(&b, 4, 0xffffffffu);
        buf_le(&b, 2, 0);
    }
    f = fopen(scratch(name), "r+b");
    ok = f != NULL && fseeko(f, (off_t)gap, SEEK_SET) == 0 && fwrite(b.bytes, 1, b.n, f) == b.n;
    ok = f != NULL && fclose(f) == 0 && ok;
    buf_free(&b);
    return ok;
}

TEST(R18_large)
{
    static const char header[] = "{" E("big", "U8", "5368709120", 0, 5368709120) ","
                                 E("tail", "F32", "2", 5368709120, 5368709128) "}";
    static const unsigned char two[8] = {0, 0, 0x80, 0x3f, 0, 0, 0, 0x40};
    ck_source *ck;
    tl_error err;
    float out[6];
    FILE *f;
    memset(&err, 0, sizeof err);
    put_safetensors("x.safetensors", header, 0);
    f = fopen(scratch("x.safetensors"), "r+b");
    REQUIRE(f != NULL);
    if (fseeko(f, (off_t)(8 + sizeof header - 1) + ((off_t)5 << 30), SEEK_SET) != 0 ||
        fwrite(two, 1, 8, f) != 8 || fclose(f) != 0) {
        scratch_clear();
        SKIP("this file system holds no sparse file of 5 GiB");
    }
    REQUIRE(ck_open_weights(scratch("x.safetensors"), &ck, &err) == TL_OK);
    CHECK(ck_read_f32(ck, ck_find(ck, "tail"), 0, 2, out, &err) == TL_OK);
    CHECK(out[0] == 1.0f && out[1] == 2.0f && ck_find(ck, "big")->count == (uint64_t)5 << 30);
    CHECK(ck_read_raw(ck, ck_find(ck, "big"), ((uint64_t)5 << 30) - 1, 1, out, &err) == TL_OK);
    ck_close(ck);
    REQUIRE(put_large_zip("x.bin"));
    if (ck_open_weights(scratch("x.bin"), &ck, &err) != TL_OK) {
        FAIL(err.message);
    } else {
        CHECK(ck_read_f32(ck, ck_find(ck, "a.weight"), 0, 6, out, &err) == TL_OK);
        CHECK(out[0] == 0.0f && out[5] == 5.0f);
        CHECK(ck_verify(ck, ck_find(ck, "a.weight"), &err) == TL_OK);
        ck_close(ck);
    }
    torch_free();
    scratch_clear();
    check_clean("large");
}

/* ---- shards and folders ---------------------------------------------------------------------- */

static void folder_case(const char *id, tl_status want, const char *piece)
{
    ck_source *ck = NULL;
    tl_error err;
    tl_status status;
    memset(&err, 0, sizeof err);
    status = ck_open(scratch_folder, &ck, &err);
    ck_close(ck);
    check_result(id, status, &err, want, piece);
}

TEST(S13_index)
{
    static const struct {
        const char *id, *index;
        tl_status status;
        const char *piece;
    } cases[] = {
        {"y",
         "{\"metadata\":{\"total_size\":8},\"weight_map\":{\"a\":\"s1.safetensors\",\"b\":\"s2."
         "safetensors\"}}",
         TL_OK, ""},
        {"absolute", "{\"weight_map\":{\"a\":\"/etc/passwd\"}}", TL_ERR_FORMAT,
         "tensor \"a\": found \"/etc/passwd\", allowed: a plain file name"},
        {"..", "{\"weight_map\":{\"a\":\"..\"}}", TL_ERR_FORMAT, "a plain file name"},
        {".", "{\"weight_map\":{\"a\":\".\"}}", TL_ERR_FORMAT, "a plain file name"},
        {"../", "{\"weight_map\":{\"a\":\"../s1.safetensors\"}}", TL_ERR_FORMAT,
         "a plain file name"},
        {"sub", "{\"weight_map\":{\"a\":\"sub/s1.safetensors\"}}", TL_ERR_FORMAT,
         "a plain file name"},
        {"drive", "{\"weight_map\":{\"a\":\"C:s1.safetensors\"}}", TL_ERR_FORMAT,
         "a plain file name"},
        {"backslash", "{\"weight_map\":{\"a\":\"..\\\\s1.safetensors\"}}", TL_ERR_FORMAT,
         "a plain file name"},
        {"NUL", "{\"weight_map\":{\"a\":\"s1.safetensors\\u0000x\"}}", TL_ERR_FORMAT,
         "a plain file name"},
        {"empty", "{\"weight_map\":{\"a\":\"\"}}", TL_ERR_FORMAT, "a plain file name"},
        {"number", "{\"weight_map\":{\"a\":1}}", TL_ERR_FORMAT,
         "found 1, allowed: a plain file name"},
        {"no map", "{}", TL_ERR_FORMAT, "weight_map: found nothing"},
        {"empty map", "{\"weight_map\":{}}", TL_ERR_FORMAT, "weight_map: found an object of 0"},
        {"map array", "{\"weight_map\":[]}", TL_ERR_FORMAT, "weight_map: found an array of 0"},
        {"not JSON", "{\"weight_map\":", TL_ERR_FORMAT, "the end of the text"},
        {"same key", "{\"weight_map\":{\"a\":\"s1.safetensors\",\"a\":\"s2.safetensors\"}}",
         TL_ERR_FORMAT, "\"a\" twice"},
        {"missing shard", "{\"weight_map\":{\"a\":\"s9.safetensors\"}}", TL_ERR_IO,
         "s9.safetensors: cannot open"},
        {"lacks", "{\"weight_map\":{\"a\":\"s1.safetensors\",\"c\":\"s1.safetensors\"}}",
         TL_ERR_FORMAT, "tensor \"c\": found a shard that lacks it"},
        {"other shard", "{\"weight_map\":{\"a\":\"s2.safetensors\",\"b\":\"s1.safetensors\"}}",
         TL_ERR_FORMAT, "found it in another shard"},
        {"two shards", "{\"weight_map\":{\"a\":\"s1.safetensors\",\"b\":\"s3.safetensors\"}}",
         TL_ERR_FORMAT, "tensor \"a\": found its name twice (the other in "},
        {"unlisted tensor", "{\"weight_map\":{\"b\":\"s2.safetensors\"}}", TL_OK, ""}};
    put_text("config.json", "{}");
    put_safetensors("s1.safetensors", "{" E("a", "F32", "1", 0, 4) "}", 4);
    put_safetensors("s2.safetensors",
                    "{" E("b", "F32", "1", 0, 4) "," E("extra", "U8", "1", 4, 5) "}", 5);
    put_safetensors("s3.safetensors", "{" E("a", "F32", "1", 0, 4) "," E("b", "F32", "1", 4, 8) "}",
                    8);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        put_text("model.safetensors.index.json", cases[i].index);
        folder_case(cases[i].id, cases[i].status, cases[i].piece);
    }
    scratch_clear();
}

TEST(folders)
{
    ck_source *ck;
    tl_error err;
    memset(&err, 0, sizeof err);
    folder_case("no config", TL_ERR_IO, "found none of config.json, params.json");
    put_text("config.json", "{}");
    folder_case("no weights", TL_ERR_IO,
                "found none of model.safetensors, model.safetensors.index.json");
    put_safetensors("model.safetensors", "{" E("a", "F32", "1", 0, 4) "}", 4);
    folder_case("y", TL_OK, "");
    put_text("config.json", "[]");
    folder_case("config array", TL_ERR_FORMAT,
                "config.json: found an array of 0, allowed: an object");
    put_text("config.json", "{\"a\":Infinity}");
    for (int i = 0; i < 3; i++) {             /* each goes before those that were there */
        static const char *const names[] = {"tokenizer.model.v3", "tokenizer.model", "tokenizer.json"};
        put_text(names[i], "{}");
        REQUIRE(ck_open(scratch("model.safetensors"), &ck, &err) == TL_OK);
        CHECK_CONTAINS(ck->tokenizer_path, names[i]);
        CHECK(strcmp(strrchr(ck->tokenizer_path, '/') + 1, names[i]) == 0);
        ck_close(ck);
    }
    REQUIRE(ck_open(scratch("model.safetensors"), &ck, &err) == TL_OK);
    CHECK(ck->tokenizer_path != NULL && strstr(ck->tokenizer_path, "/tokenizer.json") != NULL);
    CHECK(ck->config.count != 0 && ck->tensor_count == 1);
    ck_close(ck);
    scratch_clear();
    memset(&err, 0, sizeof err);
    put_safetensors("x.safetensors", "{" E("a", "F32", "1", 0, 4) "}", 4);
    CHECK(ck_open(scratch("x.safetensors"), &ck, &err) == TL_ERR_IO);
    CHECK_CONTAINS(err.message, "found none of config.json");
    scratch_clear();
    check_clean("folders");
}

/* ---- configurations -------------------------------------------------------------------------- */

typedef struct {
    const char *name;
    int rank;
    int shape[3];
} cfg_shape;

/* d_model 4, d_inner 8, d_state 2, d_conv 4, dt_rank 1, vocabulary 10 */
static const cfg_shape mamba1_shapes[] = {
    {"backbone.embeddings.weight", 2, {10, 4, 0}},
    {"backbone.norm_f.weight", 1, {4, 0, 0}},
    {"backbone.layers.0.norm.weight", 1, {4, 0, 0}},
    {"backbone.layers.0.mixer.in_proj.weight", 2, {16, 4, 0}},
    {"backbone.layers.0.mixer.conv1d.weight", 3, {8, 1, 4}},
    {"backbone.layers.0.mixer.conv1d.bias", 1, {8, 0, 0}},
    {"backbone.layers.0.mixer.x_proj.weight", 2, {5, 8, 0}},
    {"backbone.layers.0.mixer.dt_proj.weight", 2, {8, 1, 0}},
    {"backbone.layers.0.mixer.dt_proj.bias", 1, {8, 0, 0}},
    {"backbone.layers.0.mixer.A_log", 2, {8, 2, 0}},
    {"backbone.layers.0.mixer.D", 1, {8, 0, 0}},
    {"backbone.layers.0.mixer.out_proj.weight", 2, {4, 8, 0}}};

/* d_model 4, d_inner 8, d_state 2, d_conv 4, head width 4, 2 groups */
static const cfg_shape mamba2_shapes[] = {
    {"backbone.embeddings.weight", 2, {10, 4, 0}},
    {"backbone.norm_f.weight", 1, {4, 0, 0}},
    {"backbone.layers.0.norm.weight", 1, {4, 0, 0}},
    {"backbone.layers.0.mixer.in_proj.weight", 2, {26, 4, 0}},
    {"backbone.layers.0.mixer.conv1d.weight", 3, {16, 1, 4}},
    {"backbone.layers.0.mixer.conv1d.bias", 1, {16, 0, 0}},
    {"backbone.layers.0.mixer.dt_bias", 1, {2, 0, 0}},
    {"backbone.layers.0.mixer.A_log", 1, {2, 0, 0}},
    {"backbone.layers.0.mixer.D", 1, {2, 0, 0}},
    {"backbone.layers.0.mixer.norm.weight", 1, {8, 0, 0}},
    {"backbone.layers.0.mixer.out_proj.weight", 2, {4, 8, 0}}};

/* Writes the tensors; `change` replaces or adds the one of its name (or drops it: rank -1),
 * `prefix` goes before each name. */
static void put_shapes(const cfg_shape *shapes, size_t n, const cfg_shape *change,
                       const char *dtype, const char *prefix)
{
    buf b = {NULL, 0, 0};
    char line[256], list[64];
    size_t at = 0;
    int added = change == NULL;
    buf_text(&b, "{");
    for (size_t i = 0; i <= n; i++) {
        const cfg_shape *s = i < n ? &shapes[i] : change;
        size_t count = 1;
        if (i < n && change != NULL && strcmp(s->name, change->name) == 0) {
            s = change;
            added = 1;
        }
        if ((i == n && added) || s->rank < 0) {
            continue;
        }
        list[0] = '\0';
        for (int k = 0; k < s->rank; k++) {
            size_t used = strlen(list);
            (void)snprintf(list + used, sizeof list - used, k == 0 ? "%d" : ",%d", s->shape[k]);
            count *= (size_t)s->shape[k];
        }
        (void)snprintf(line, sizeof line,
                       "%s\"%s%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%lu,%lu]}",
                       b.n == 1 ? "" : ",", prefix, s->name, dtype, list, (unsigned long)at,
                       (unsigned long)(at + 4 * count));
        at += 4 * count;
        buf_text(&b, line);
    }
    buf_text(&b, "}");
    buf_le(&b, 1, 0);
    put_safetensors("model.safetensors", (const char *)b.bytes, at);
    buf_free(&b);
}

/* Mistral's names and fixed sizes: d_model 32, d_inner 64, d_state 128, one head of 64. */
static const cfg_shape mistral_shapes[] = {
    {"backbone.embedding.weight", 2, {10, 32, 0}},
    {"backbone.norm_f.weight", 1, {32, 0, 0}},
    {"backbone.layers.0.norm.weight", 1, {32, 0, 0}},
    {"backbone.layers.0.mixer.in_proj.weight", 2, {385, 32, 0}},
    {"backbone.layers.0.mixer.conv1d.weight", 3, {320, 1, 4}},
    {"backbone.layers.0.mixer.conv1d.bias", 1, {320, 0, 0}},
    {"backbone.layers.0.mixer.dt_bias", 1, {1, 0, 0}},
    {"backbone.layers.0.mixer.A_log", 1, {1, 0, 0}},
    {"backbone.layers.0.mixer.D", 1, {1, 0, 0}},
    {"backbone.layers.0.mixer.norm.weight", 1, {64, 0, 0}},
    {"backbone.layers.0.mixer.out_proj.weight", 2, {32, 64, 0}},
    {"lm_head.weight", 2, {10, 32, 0}}};

static void describe_case(const char *id, const char *arch, tl_status want, const char *piece)
{
    ck_source *ck = NULL;
    ck_model m;
    tl_error err;
    tl_status status;
    memset(&err, 0, sizeof err);
    status = ck_open(scratch_folder, &ck, &err);
    if (status == TL_OK) {
        status = ck_describe(ck, arch, &m, &err);
        if (status == TL_OK) {
            ck_model_free(&m);
        }
        ck_close(ck);
    }
    check_result(id, status, &err, want, piece);
}

#define HF1                                                                                       \
    "\"architectures\":[\"MambaForCausalLM\"],\"hidden_size\":4,\"num_hidden_layers\":1,\"vocab_" \
    "size\":10,\"state_size\":2,\"time_step_rank\":1"
#define HF2                                                                                        \
    "\"architectures\":[\"Mamba2ForCausalLM\"],\"hidden_size\":4,\"num_hidden_layers\":1,\"vocab_" \
    "size\":10,\"state_size\":2,\"head_dim\":4,\"n_groups\":2,\"tie_word_embeddings\":true"
#define SSM1 "\"d_model\":4,\"n_layer\":1,\"vocab_size\":10,\"pad_vocab_size_multiple\":1"

static const struct {
    const char *id;
    int two;               /* which set of tensors */
    const char *config;
    const char *piece;     /* NULL: accepted */
} config_cases[] = {
    {"y", 0, "{" HF1 "}", NULL},
    {"y auto rank", 0,
     "{\"model_type\":\"mamba\",\"hidden_size\":4,\"num_hidden_layers\":1,\"vocab_size\":10,"
     "\"state_size\":2,\"time_step_rank\":\"auto\"}",
     NULL},
    {"y wrong expand", 0, "{" HF1 ",\"expand\":16,\"intermediate_size\":8}", NULL},
    {"y null", 0, "{" HF1 ",\"conv_kernel\":null,\"use_bias\":null}", NULL},
    {"y leftovers", 0, "{" HF1 ",\"d_inner\":160,\"ssm_cfg\":{},\"d_model\":7,\"n_layer\":9}",
     NULL},
    {"y untied key", 0,
     "{" HF1 ",\"tie_word_embeddings\":true,\"use_bias\":false,\"use_conv_bias\":true}", NULL},
    {"y mamba_ssm", 0, "{" SSM1 ",\"ssm_cfg\":{\"d_state\":2}}", NULL},
    {"y mamba_ssm Mamba1", 0,
     "{" SSM1
     ",\"ssm_cfg\":{\"layer\":\"Mamba1\",\"d_state\":2,\"dt_rank\":\"auto\",\"expand\":2.0}}",
     NULL},
    {"y mamba_ssm fraction", 0, "{" SSM1 ",\"ssm_cfg\":{\"d_state\":2,\"expand\":2.2}}", NULL},
    {"y falcon", 0,
     "{\"architectures\":[\"FalconMambaForCausalLM\"],\"hidden_size\":4,\"num_hidden_layers\":1,"
     "\"vocab_size\":10,\"state_size\":2,\"time_step_rank\":1,\"tie_word_embeddings\":true}",
     NULL},
    {"y mamba2", 1, "{" HF2 "}", NULL},
    {"y mamba2 heads", 1, "{" HF2 ",\"num_heads\":2,\"norm_before_gate\":true}", NULL},
    {"y limits", 1, "{" HF2 ",\"time_step_limit\":[0.0,Infinity]}", NULL},
    {"y limits word", 1, "{" HF2 ",\"time_step_limit\":[0.0,{\"__float__\":\"Infinity\"}]}", NULL},
    {"y limits null", 1, "{" HF2 ",\"time_step_limit\":null}", NULL},
    {"y limits nulls", 1, "{" HF2 ",\"time_step_limit\":[null,null]}", NULL},
    {"y mamba_ssm Mamba2", 1,
     "{" SSM1 ",\"ssm_cfg\":{\"layer\":\"Mamba2\",\"d_state\":2,\"headdim\":4,\"ngroups\":2,\"d_"
              "ssm\":null}}",
     NULL},
    {"J10 model_type", 0, "{\"model_type\":\"llama\",\"hidden_size\":4}",
     "field 'model_type': found \"llama\", allowed: mamba (MambaForCausalLM)"},
    {"J10 architecture", 0, "{\"architectures\":[\"JambaForCausalLM\"],\"hidden_size\":4}",
     "field 'architectures': found \"JambaForCausalLM\", allowed: mamba"},
    {"J10 no architecture", 0, "{\"hidden_size\":4}", "field 'model_type': found nothing"},
    {"J10 nothing", 0, "{}", "found neither hidden_size nor d_model"},
    {"J10 Mamba3", 0, "{" SSM1 ",\"ssm_cfg\":{\"layer\":\"Mamba3\"}}",
     "field 'ssm_cfg.layer': found \"Mamba3\""},
    {"J10 layer number", 0, "{" SSM1 ",\"ssm_cfg\":{\"layer\":2}}",
     "field 'ssm_cfg.layer': found 2"},
    {"J10 ssm_cfg", 0, "{" SSM1 ",\"ssm_cfg\":[]}", "field 'ssm_cfg': found an array of 0"},
    {"J10 attention", 0, "{" SSM1 ",\"ssm_cfg\":{\"d_state\":2},\"attn_layer_idx\":[1]}",
     "field 'attn_cfg'"},
    {"J10 layer norm", 0, "{" SSM1 ",\"ssm_cfg\":{\"d_state\":2},\"rms_norm\":false}",
     "field 'rms_norm': found false, allowed: true"},
    {"J10 activation", 0, "{" HF1 ",\"hidden_act\":\"gelu\"}",
     "field 'hidden_act': found \"gelu\", allowed: \"silu\""},
    {"J10 missing", 0, "{\"model_type\":\"mamba\",\"hidden_size\":4,\"num_hidden_layers\":1}",
     "field 'vocab_size': found nothing, allowed: an integer from 1"},
    {"J10 eps 0", 0, "{" HF1 ",\"layer_norm_epsilon\":0}",
     "field 'layer_norm_epsilon': found 0, allowed: a number above 0"},
    {"J10 eps NaN", 0, "{" HF1 ",\"layer_norm_epsilon\":NaN}", "found NaN"},
    {"J10 eps -1", 0, "{" HF1 ",\"layer_norm_epsilon\":-1e-5}", "found -1e-5"},
    {"J10 eps text", 0, "{" HF1 ",\"layer_norm_epsilon\":\"1e-5\"}", "found \"1e-5\""},
    {"J10 flag", 0, "{" HF1 ",\"use_bias\":0}",
     "field 'use_bias': found 0, allowed: true or false"},
    {"J10 rank text", 0, "{" HF1 ",\"conv_kernel\":\"auto\"}",
     "field 'conv_kernel': found \"auto\""},
    {"J03 width 4.0", 0,
     "{\"model_type\":\"mamba\",\"hidden_size\":4.0,\"num_hidden_layers\":1,\"vocab_size\":10}",
     "field 'hidden_size': found 4.0, allowed: an integer from 1 to 1048576"},
    {"J03 width text", 0,
     "{\"model_type\":\"mamba\",\"hidden_size\":\"4\",\"num_hidden_layers\":1,\"vocab_size\":10}",
     "found \"4\""},
    {"J03 width 0", 0,
     "{\"model_type\":\"mamba\",\"hidden_size\":0,\"num_hidden_layers\":1,\"vocab_size\":10}",
     "found 0, allowed"},
    {"J03 width -4", 0,
     "{\"model_type\":\"mamba\",\"hidden_size\":-4,\"num_hidden_layers\":1,\"vocab_size\":10}",
     "found -4"},
    {"J03 width 2^64", 0,
     "{\"model_type\":\"mamba\",\"hidden_size\":18446744073709551616,\"num_hidden_layers\":1,"
     "\"vocab_size\":10}",
     "found 18446744073709551616"},
    {"J10 quantised", 0, "{" HF1 ",\"quantization_config\":{\"bits\":4}}",
     "field 'quantization_config': found an object of 1, allowed: none"},
    {"J10 other file", 0, "{\"model_type\":\"gpt2\",\"n_embd\":4}",
     "field 'model_type': found \"gpt2\""},
    {"G10 d_inner", 0,
     "{\"model_type\":\"mamba\",\"hidden_size\":1048576,\"num_hidden_layers\":1,\"vocab_size\":10}",
     "found a d_inner of 2097152, allowed: at most 1048576"},
    {"J10 layers 0", 0,
     "{\"model_type\":\"mamba\",\"hidden_size\":4,\"num_hidden_layers\":0,\"vocab_size\":10}",
     "field 'num_hidden_layers': found 0"},
    {"G10 layers 2", 0,
     "{\"model_type\":\"mamba\",\"hidden_size\":4,\"num_hidden_layers\":2,\"vocab_size\":10,"
     "\"state_size\":2}",
     "tensor \"backbone.layers.1.norm.weight\": found none, allowed: one of shape (d_model) = (4)"},
    {"G10 layers 4000", 0,
     "{\"model_type\":\"mamba\",\"hidden_size\":4,\"num_hidden_layers\":4000,\"vocab_size\":10}",
     "found 4000 layers, allowed: at most the 12 tensors"},
    {"G10 width", 0,
     "{\"model_type\":\"mamba\",\"hidden_size\":8,\"num_hidden_layers\":1,\"vocab_size\":10}",
     "tensor \"backbone.embeddings.weight\": found (10, 4), allowed: (padded vocab_size, d_model) "
     "= (10, 8) by config.json"},
    {"G10 vocabulary", 0,
     "{\"model_type\":\"mamba\",\"hidden_size\":4,\"num_hidden_layers\":1,\"vocab_size\":11}",
     "found (10, 4), allowed: (padded vocab_size, d_model) = (11, 4)"},
    {"G10 state", 0, "{" SSM1 ",\"ssm_cfg\":{\"d_state\":3}}",
     "x_proj.weight\": found (5, 8), allowed: (dt_rank + 2 d_state, d_inner) = (7, 8)"},
    {"G10 kernel", 0, "{" HF1 ",\"conv_kernel\":3}",
     "conv1d.weight\": found (8, 1, 4), allowed: (d_inner, 1, d_conv) = (8, 1, 3)"},
    {"G10 expand", 0, "{" HF1 ",\"expand\":3}",
     "in_proj.weight\": found (16, 4), allowed: (2 d_inner, d_model) = (24, 4)"},
    {"G10 expand 0", 0, "{" HF1 ",\"expand\":0}", "field 'expand': found 0"},
    {"G10 expand tiny", 0, "{" HF1 ",\"expand\":0.1}", "at least 1 channel"},
    {"G10 intermediate", 0, "{" HF1 ",\"intermediate_size\":9}", "= (18, 4)"},
    {"G10 rank", 0,
     "{\"model_type\":\"mamba\",\"hidden_size\":4,\"num_hidden_layers\":1,\"vocab_size\":10,"
     "\"state_size\":2,\"time_step_rank\":2}",
     "x_proj.weight\": found (5, 8), allowed: (dt_rank + 2 d_state, d_inner) = (6, 8)"},
    {"G10 bias", 0, "{" HF1 ",\"use_bias\":true}", "in_proj.bias\": found none"},
    {"G10 no conv bias", 0, "{" HF1 ",\"use_conv_bias\":false}",
     "conv1d.bias\": found this tensor, allowed: none, as 'use_conv_bias' is false"},
    {"G10 untied", 0, "{" HF1 ",\"tie_word_embeddings\":false}",
     "tensor \"lm_head.weight\": found none"},
    {"G10 MLP", 0, "{" SSM1 ",\"ssm_cfg\":{\"d_state\":2},\"d_intermediate\":5}",
     "norm2.weight\": found none"},
    {"G10 heads", 1, "{" HF2 ",\"num_heads\":3}",
     "field 'num_heads': found 3, allowed: expand * hidden_size / head_dim = 8 / 4"},
    {"G10 groups", 1,
     "{" SSM1 ",\"ssm_cfg\":{\"layer\":\"Mamba2\",\"d_state\":2,\"headdim\":4,\"ngroups\":3}}",
     "found 3 groups"},
    {"G10 head width", 1,
     "{" SSM1 ",\"ssm_cfg\":{\"layer\":\"Mamba2\",\"d_state\":2,\"headdim\":3}}",
     "found a head width of 3, allowed: a divisor of d_ssm = 8"},
    {"G10 d_ssm", 1,
     "{" SSM1 ",\"ssm_cfg\":{\"layer\":\"Mamba2\",\"d_state\":2,\"headdim\":4,\"d_ssm\":16}}",
     "found a d_ssm of 16"},
    {"G10 no gated norm", 1,
     "{" SSM1 ",\"ssm_cfg\":{\"layer\":\"Mamba2\",\"d_state\":2,\"headdim\":4,\"ngroups\":2,"
              "\"rmsnorm\":false}}",
     "mixer.norm.weight\": found this tensor, allowed: none, as 'ssm_cfg.rmsnorm' is false"},
    {"G10 D width", 1,
     "{" SSM1 ",\"ssm_cfg\":{\"layer\":\"Mamba2\",\"d_state\":2,\"headdim\":4,\"ngroups\":2,\"D_"
              "has_hdim\":true}}",
     "mixer.D\": found (2), allowed: (d_ssm) = (8)"},
    {"J10 limits", 1, "{" HF2 ",\"time_step_limit\":[0.1]}",
     "field 'time_step_limit': found an array of 1, allowed: [low, high]"},
    {"J10 limits crossed", 1, "{" HF2 ",\"time_step_limit\":[0.2,0.1]}",
     "found 0.1, allowed: a high end"},
    {"J10 limits negative", 1, "{" HF2 ",\"time_step_limit\":[-0.1,0.1]}",
     "found -0.1, allowed: a finite low end"},
    {"J10 limits NaN", 1, "{" HF2 ",\"time_step_limit\":[0,NaN]}", "found NaN"},
    {"J10 limits infinite", 1, "{" HF2 ",\"time_step_limit\":[Infinity,Infinity]}",
     "found Infinity, allowed: a finite low end"},
    {"J10 limits word", 1, "{" HF2 ",\"time_step_limit\":[0,{\"__float__\":\"NaN\"}]}",
     "found an object of 1"},
    {"Mistral state", 1,
     "{\"dim\":4,\"n_layers\":1,\"vocab_size\":10,\"n_groups\":2,\"model_type\":\"mamba\"}",
     "found a head width of 64, allowed: a divisor of d_ssm = 8"},
    {"Mistral type", 1,
     "{\"dim\":4,\"n_layers\":1,\"vocab_size\":10,\"model_type\":\"transformer\"}",
     "field 'model_type': found \"transformer\""}};

TEST(config_table)
{
    for (size_t i = 0; i < sizeof config_cases / sizeof config_cases[0]; i++) {
        const char *piece = config_cases[i].piece;
        int unsupported =
            piece != NULL &&
            (strstr(piece, "found neither") != NULL || strstr(piece, "model_type'") != NULL ||
             strstr(piece, "architectures'") != NULL || strstr(piece, "layer'") != NULL ||
                           strstr(piece, "quantization") != NULL);
        put_text("config.json", config_cases[i].config);
        if (config_cases[i].two) {
            put_shapes(mamba2_shapes, sizeof mamba2_shapes / sizeof mamba2_shapes[0], NULL, "F32",
                       "");
        } else {
            put_shapes(mamba1_shapes, sizeof mamba1_shapes / sizeof mamba1_shapes[0], NULL, "F32",
                       "");
        }
        describe_case(config_cases[i].id, NULL,
                      piece == NULL ? TL_OK
                      : unsupported ? TL_ERR_UNSUPPORTED
                                    : TL_ERR_FORMAT,
                      piece);
    }
    scratch_clear();
}

TEST(config_tensors)
{
    static const struct {
        const char *id;
        cfg_shape change;
        const char *piece;
    } cases[] = {
        {"G09 missing",
         {"backbone.layers.0.mixer.A_log", -1, {0, 0, 0}},
         "tensor \"backbone.layers.0.mixer.A_log\": found none, allowed: one of shape (d_inner, "
         "d_state) = (8, 2)"},
        {"G09 no embedding",
         {"backbone.embeddings.weight", -1, {0, 0, 0}},
         "tensor \"backbone.embeddings.weight\": found none"},
        {"G09 extra layer",
         {"backbone.layers.1.norm.weight", 1, {4, 0, 0}},
         "tensor \"backbone.layers.1.norm.weight\": found a part of a layer that the configuration "
         "does not describe"},
        {"G09 extra part",
         {"backbone.layers.0.mlp.fc1.weight", 2, {4, 4, 0}},
         "does not describe, allowed: the tensors of the 1 layers"},
        {"y extra outside", {"something.else", 1, {4, 0, 0}}, NULL},
        {"G10 rank 2 conv",
         {"backbone.layers.0.mixer.conv1d.weight", 2, {8, 4, 0}},
         "conv1d.weight\": found (8, 4), allowed: (d_inner, 1, d_conv) = (8, 1, 4)"},
        {"G10 transposed",
         {"backbone.layers.0.mixer.out_proj.weight", 2, {8, 4, 0}},
         "out_proj.weight\": found (8, 4), allowed: (d_model, d_inner) = (4, 8)"},
        {"G10 one bias",
         {"backbone.layers.0.mixer.in_proj.bias", 1, {16, 0, 0}},
         "found a bias at one of in_proj and out_proj"},
        {"y no conv bias", {"backbone.layers.0.mixer.conv1d.bias", -1, {0, 0, 0}}, NULL},
        {"y separate head", {"lm_head.weight", 2, {10, 4, 0}}, NULL},
        {"G10 head", {"lm_head.weight", 2, {9, 4, 0}}, "tensor \"lm_head.weight\": found (9, 4)"},
        {"G10 norm",
         {"backbone.layers.0.norm.weight", 1, {5, 0, 0}},
         "norm.weight\": found (5), allowed: (d_model) = (4)"}};
    size_t n = sizeof mamba1_shapes / sizeof mamba1_shapes[0];
    put_text("config.json", "{" HF1 "}");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        put_shapes(mamba1_shapes, n, &cases[i].change, "F32", "");
        describe_case(cases[i].id, NULL, cases[i].piece == NULL ? TL_OK : TL_ERR_FORMAT,
                      cases[i].piece);
    }
    put_shapes(mamba1_shapes, n, NULL, "I32", "");
    describe_case("G08 integers", NULL, TL_ERR_FORMAT, "found I32, allowed: F32, F16, BF16 or F64");
    put_shapes(mamba1_shapes, n, NULL, "F32", "model.");
    describe_case("y prefix", NULL, TL_OK, "");
    describe_case("y forced", "falcon-mamba", TL_OK, "");
    describe_case("forced unknown", "rwkv", TL_ERR_USAGE,
                  "found 'rwkv', allowed: mamba, falcon-mamba, mamba2");
    describe_case("forced wrong", "mamba2", TL_ERR_FORMAT, "head width of 64");
    scratch_clear();
}

TEST(config_mistral)
{
    size_t n = sizeof mistral_shapes / sizeof mistral_shapes[0];
    ck_source *ck;
    ck_model m;
    tl_error err;
    char path[700];
    memset(&err, 0, sizeof err);
    put_text("params.json",
             "{\"dim\":32,\"n_layers\":1,\"vocab_size\":10,\"n_groups\":1,\"rms_norm\":true,"
             "\"pad_vocab_size_multiple\":1,\"tie_embeddings\":false,\"model_type\":\"mamba\"}");
    put_shapes(mistral_shapes, n, NULL, "F32", "model.");
    (void)snprintf(path, sizeof path, "%s", scratch("model.safetensors"));
    REQUIRE(rename(path, scratch("consolidated.safetensors")) == 0);
    REQUIRE(ck_open(scratch_folder, &ck, &err) == TL_OK);
    REQUIRE(ck_describe(ck, NULL, &m, &err) == TL_OK);
    CHECK(m.arch == CK_ARCH_MAMBA2 && m.keys == CK_KEYS_MISTRAL && !m.tied && m.rms_gated);
    CHECK(m.head == ck_find(ck, "model.lm_head.weight") && m.unused_count == 0);
    CHECK(m.d_state == 128 && m.headdim == 64 && m.d_inner == 64 && m.d_in_proj == 385);
    ck_model_free(&m);
    ck_close(ck);
    put_shapes(mistral_shapes, n - 1, NULL, "F32", "model.");
    describe_case("Mistral without head", NULL, TL_ERR_FORMAT,
                  "tensor \"model.lm_head.weight\": found none");
    scratch_clear();
    check_clean("mistral");
}

TEST(config_meaning)
{
    ck_source *ck;
    ck_model m;
    tl_error err;
    cfg_shape head = {"lm_head.weight", 2, {10, 4, 0}};
    memset(&err, 0, sizeof err);
    put_text("config.json",
             "{" HF1 ",\"layer_norm_epsilon\":1e-6,\"bos_token_id\":3,\"eos_token_id\":[7,8]}");
    put_shapes(mamba1_shapes, sizeof mamba1_shapes / sizeof mamba1_shapes[0], &head, "F32", "");
    REQUIRE(ck_open(scratch_folder, &ck, &err) == TL_OK &&
            ck_describe(ck, "falcon-mamba", &m, &err) == TL_OK);
    CHECK(m.arch == CK_ARCH_FALCON_MAMBA && m.bcdt_rms && m.eps == 1e-6 && m.mixer_rms_eps == 1e-6);
    CHECK(m.bos == 3 && m.eos == 7 && !m.tied && m.head == ck_find(ck, "lm_head.weight"));
    CHECK(m.conv_bias && !m.proj_bias && m.unused_count == 0 && m.warning == NULL);
    CHECK(m.layers[0].dt_bias == ck_find(ck, "backbone.layers.0.mixer.dt_proj.bias"));
    ck_model_free(&m);
    ck_close(ck);
    put_text("config.json",
             "{" SSM1 ",\"ssm_cfg\":{\"layer\":\"Mamba2\",\"d_state\":2,\"headdim\":4,\"ngroups\":"
                      "2,\"norm_before_gate\":true,\"dt_limit\":[0.01,0.5]}}");
    put_shapes(mamba2_shapes, sizeof mamba2_shapes / sizeof mamba2_shapes[0], NULL, "F32", "");
    REQUIRE(ck_open(scratch_folder, &ck, &err) == TL_OK &&
            ck_describe(ck, NULL, &m, &err) == TL_OK);
    CHECK(m.arch == CK_ARCH_MAMBA2 && m.n_heads == 2 && m.headdim == 4 && m.n_groups == 2 &&
          m.d_in_proj == 26);
    CHECK(m.norm_before_gate && m.rms_gated && m.dt_limit[0] == 0.01 && m.dt_limit[1] == 0.5 &&
          m.tied);
    CHECK(m.bos == -1 && m.eos == -1 && m.conv_channels == 16 && m.d_ssm == 8);
    ck_model_free(&m);
    ck_close(ck);
    scratch_clear();
    check_clean("meaning");
}

/* ---- every prefix, every bit, every failure -------------------------------------------------- */

static char *slurp(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    char *bytes = NULL;
    if (f != NULL && fseek(f, 0, SEEK_END) == 0) {
        long size = ftell(f);
        bytes = (char *)malloc(size > 0 ? (size_t)size : 1);
        rewind(f);
        *n = bytes != NULL ? fread(bytes, 1, (size_t)size, f) : 0;
    }
    if (f != NULL) {
        (void)fclose(f);
    }
    return bytes;
}

/* Whatever the file holds: an answer, no leak; and what is accepted can be read to its end. */
static tl_status try_weights(const char *name, tl_error *err)
{
    ck_source *ck = NULL;
    tl_status status;
    memset(err, 0, sizeof *err);
    status = ck_open_weights(scratch(name), &ck, err);
    CHECK(status == TL_OK || (ck == NULL && err->message[0] != '\0'));
    if (status == TL_OK) {
        for (size_t i = 0; i < ck->tensor_count; i++) {
            const ck_tensor *t = &ck->tensors[i];
            char *raw = (char *)malloc(t->bytes != 0 ? (size_t)t->bytes : 1);
            CHECK(raw != NULL && ck_read_raw(ck, t, 0, t->count, raw, err) == TL_OK);
            free(raw);
        }
        ck_close(ck);
    }
    if (hook.blocks != 0 || hook.descriptors != 0) {
        check_clean("damaged file");
    }
    return status;
}

/* All truncations must be refused; each single-bit flip must get an answer (of larger files, each
 * third). */
static void damage(const char *name)
{
    size_t n = 0, refused = 0;
    char *bytes = slurp(scratch(name), &n);
    tl_error err;
    REQUIRE(bytes != NULL && n != 0);
    for (size_t cut = 0; cut < n; cut++) {
        scratch_put(name, bytes, cut);
        CHECK(try_weights(name, &err) != TL_OK);
    }
    for (size_t bit = 0; bit < 8 * n; bit += n < 1000 ? 1 : 3) {
        bytes[bit / 8] = (char)(bytes[bit / 8] ^ 1 << bit % 8);
        scratch_put(name, bytes, n);
        refused += try_weights(name, &err) != TL_OK;
        bytes[bit / 8] = (char)(bytes[bit / 8] ^ 1 << bit % 8);
    }
    CHECK(refused > n);
    free(bytes);
}

TEST(damage_safetensors)
{
    put_safetensors("x.safetensors",
                    "{\"__metadata__\":{\"a\":\"b\"}," E("a", "F32", "2,3", 0,
                                                         24) "," E("b", "F16", "4", 24, 32) "}",
                    32);
    damage("x.safetensors");
}

TEST(damage_torch)
{
    torch_good();
    torch_put(ZIP_TORCH);
    damage("x.bin");
    torch_free();
}

/* The format before torch 1.6, by hand: magic, version, sys_info, state dict, names of storages,
 * data. */
static void put_legacy(const char *name, int fault)
{
    buf b = {NULL, 0, 0};
    buf_put(&b, "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", 15);
    buf_put(&b, fault == 1 ? "\x80\x02M\xea\x03." : "\x80\x02M\xe9\x03.", 6);
    buf_put(&b, "\x80\x02}(", 4);
    pk_string(&b, "little_endian");
    buf_put(&b, fault == 2 ? "\x89u." : "\x88u.", 3);
    if (fault == 9) {
        b.n = 21;
        buf_put(&b, "\x80\x02].", 4);
    }
    buf_put(&b, "\x80\x02}", 3);
    pk_string(&b, "a");
    buf_text(&b, "ctorch._utils\n_rebuild_tensor_v2\n((");
    pk_string(&b, "storage");
    buf_text(&b, "ctorch\nFloatStorage\n");
    pk_string(&b, "4711");
    pk_string(&b, "cpu");
    buf_put(&b, fault == 3 ? "K\x02tQ" : "K\x02NtQ", fault == 3 ? 4 : 5);
    buf_put(&b, "K\0K\x02\x85K\x01\x85\x89", 9);
    buf_text(&b, "ccollections\nOrderedDict\n)RtRs.");
    if (fault == 10) {
        buf_put(&b, "\x80\x02].", 4);      /* no names */
    } else if (fault == 11) {
        buf_put(&b, "\x80\x02}.", 4);
    } else {
        buf_put(&b, "\x80\x02](", 4);
        pk_string(&b, fault == 4 ? "4712" : "4711");
        if (fault == 5) {
            pk_string(&b, "4711");
        }
        buf_put(&b, "e.", 2);
    }
    buf_le(&b, 8, fault == 6 ? 3 : fault == 7 ? UINT64_MAX : 2);
    buf_le(&b, 4, 0x3f800000u);
    buf_le(&b, 4, 0x40000000u);
    if (fault == 5 || fault == 8) {
        buf_le(&b, 8, 2);
        buf_le(&b, 8, 0);
    }
    scratch_put(name, b.bytes, b.n);
    buf_free(&b);
}

TEST(P15_legacy)
{
    static const char *const pieces[] = {NULL,
                                         "protocol version \"\": found another, allowed: 1001",
                                         "little_endian",
                                         "another persistent id",
                                         "storage \"4712\": found no tensor that uses it",
                                         "its name twice in the list",
                                         "another number of elements",
                                         "another number of elements",
                                         "bytes behind the last storage",
                                         "sys_info \"little_endian\": found something else",
                                         "storage \"4711\": found no data",
                                         "list of storages \"\": found something else"};
    ck_source *ck;
    tl_error err;
    float out[2] = {0.0f, 0.0f};
    for (int fault = 0; fault <= 11; fault++) {
        put_legacy("x.bin", fault);
        weights_case("P15 legacy", "x.bin", fault == 0 ? TL_OK : TL_ERR_FORMAT, pieces[fault]);
    }
    memset(&err, 0, sizeof err);
    put_legacy("x.bin", 0);
    REQUIRE(ck_open_weights(scratch("x.bin"), &ck, &err) == TL_OK);
    CHECK(ck_read_f32(ck, ck_find(ck, "a"), 0, 2, out, &err) == TL_OK && out[0] == 1.0f &&
          out[1] == 2.0f);
    CHECK(ck_verify(ck, ck_find(ck, "a"), &err) == TL_OK);
    ck_close(ck);
    damage("x.bin");
}

/* Several bits and bytes at once, with checksums of the pickle mended so that the damage gets
 * inside. */
TEST(damage_mended)
{
    uint64_t seed = 88172645463325252u;
    size_t n = 0, accepted = 0;
    char *good;
    buf *p = &torch_parts[PART_PICKLE].data;
    torch_good();
    n = p->n;
    good = (char *)malloc(n);
    REQUIRE(good != NULL);
    memcpy(good, p->bytes, n);
    for (int round = 0; round < 6000; round++) {
        tl_error err;
        p->n = 0;
        buf_put(p, good, n);
        for (int k = 0; k < 1 + round % 3; k++) {
            size_t at;
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            at = (size_t)(seed >> 20) % n;
            if (round % 2 != 0) {
                p->bytes[at] = (unsigned char)(seed >> 8);
            } else {
                p->bytes[at] = (unsigned char)(p->bytes[at] ^ (1u << (seed & 7)));
            }
        }
        torch_put(ZIP_TORCH);
        accepted += try_weights("x.bin", &err) == TL_OK;
    }
    CHECK(accepted > 0 && accepted < 6000);
    free(good);
    torch_free();
}

/* Where a golden model lies: in the repository or in MAMBA_SHARED (default ../shared). */
static int golden_path(char out[700], const char *model)
{
    const char *shared = getenv("MAMBA_SHARED");
    (void)snprintf(out, 700, "tests/golden/%s", model);
    if (access(out, R_OK) != 0) {
        (void)snprintf(out, 700, "%s/golden/%s", shared != NULL ? shared : "../shared", model);
    }
    return access(out, R_OK) == 0;
}

/* Copies the weights of a golden folder beside a configuration in the scratch folder. */
static int copy_golden(const char *model, const char *file)
{
    char folder[700], path[800];
    size_t n = 0;
    char *bytes;
    if (!golden_path(folder, model)) {
        return 0;
    }
    (void)snprintf(path, sizeof path, "%s/%s", folder, file);
    bytes = slurp(path, &n);
    if (bytes == NULL) {
        return 0;
    }
    scratch_put(file, bytes, n);
    free(bytes);
    return 1;
}

/* A whole use of a checkpoint. */
static tl_status use(const char *folder, tl_error *err)
{
    ck_source *ck;
    ck_model m;
    tl_status status;
    memset(err, 0, sizeof *err);
    status = ck_open(folder, &ck, err);
    if (status != TL_OK) {
        return status;
    }
    status = ck_describe(ck, NULL, &m, err);
    if (status == TL_OK) {
        float out[40];
        status = ck_read_f32(ck, m.embedding, 0, 40, out, err);
        if (status == TL_OK) {
            status = ck_verify(ck, m.embedding, err);
        }
        ck_model_free(&m);
    }
    ck_close(ck);
    return status;
}

/* Lets the k-th allocation or system call fail, once and for good, for every k. */
static void fail_everything(const char *what)
{
    tl_error err;
    for (int kind = 0; kind < 4; kind++) {
        long k = 1;
        hook.persistent = kind & 1;
        for (;; k++) {
            tl_status status;
            hook.fired = 0;
            hook.calls = hook.io_calls = 0;
            hook.fail_at = kind < 2 ? k : 0;
            hook.io_fail_at = kind < 2 ? 0 : k;
            status = use(scratch_folder, &err);
            hook.fail_at = hook.io_fail_at = 0;
            if (!hook.fired) {
                CHECK_INT(status, TL_OK);
                break;
            }
            if (status != (kind < 2 ? TL_ERR_MEMORY : TL_ERR_IO)) {
                printf("%s: failure %ld of kind %d gave %d \"%s\"\n", what, k, kind, (int)status,
                       err.message);
                FAIL("the failure has another status");
            }
            CHECK(err.message[0] != '\0');
            check_clean(what);
            CHECK(k < 10000);
        }
        CHECK(k > 5);
        CHECK_INT(use(scratch_folder, &err), TL_OK);
        check_clean(what);
    }
    hook.dribble = 1;
    CHECK_INT(use(scratch_folder, &err), TL_OK);
    hook.dribble = 0;
    check_clean(what);
}

static void make_shards(void)
{
    size_t n = sizeof mamba1_shapes / sizeof mamba1_shapes[0];
    buf b = {NULL, 0, 0};
    char line[200];
    put_shapes(mamba1_shapes, n / 2, NULL, "F32", "");
    {
        size_t size = 0;
        char *half = slurp(scratch("model.safetensors"), &size);
        if (half != NULL) {
            scratch_put("one.safetensors", half, size);
        }
        free(half);
        put_shapes(mamba1_shapes + n / 2, n - n / 2, NULL, "F32", "");
        half = slurp(scratch("model.safetensors"), &size);
        if (half != NULL) {
            scratch_put("two.safetensors", half, size);
        }
        free(half);
        (void)unlink(scratch("model.safetensors"));
    }
    for (size_t i = 0; i < n; i++) {
        (void)snprintf(line, sizeof line, "%s\"%s\":\"%s.safetensors\"",
                       i == 0 ? "{\"weight_map\":{" : ",", mamba1_shapes[i].name,
                       i < n / 2 ? "one" : "two");
        buf_text(&b, line);
    }
    buf_text(&b, "}}");
    scratch_put("model.safetensors.index.json", b.bytes, b.n);
    buf_free(&b);
}

TEST(failures_safetensors)
{
    put_text("config.json", "{" HF1 "}");
    put_text("tokenizer.json", "{}");
    put_shapes(mamba1_shapes, sizeof mamba1_shapes / sizeof mamba1_shapes[0], NULL, "F32", "");
    fail_everything("safetensors");
    scratch_clear();
}

TEST(failures_large_config)
{
    if (!copy_golden("mamba1-base", "config.json") ||
        !copy_golden("mamba1-base", "model.safetensors")) {
        SKIP("no golden files");
    }
    fail_everything("31 keys");
    scratch_clear();
}

TEST(failures_shards)
{
    put_text("config.json", "{" HF1 "}");
    make_shards();
    fail_everything("shards");
    scratch_clear();
}

/* ---- real files ------------------------------------------------------------------------------ */

TEST(failures_torch)
{
    if (!copy_golden("mamba1-original-bf16", "config.json") ||
        !copy_golden("mamba1-original-bf16", "pytorch_model.bin")) {
        SKIP("no golden files");
    }
    fail_everything("torch zip");
    scratch_clear();
}

TEST(failures_legacy)
{
    if (!copy_golden("mamba1-original-legacy", "config.json") ||
        !copy_golden("mamba1-original-legacy", "pytorch_model.bin")) {
        SKIP("no golden files");
    }
    fail_everything("torch legacy");
    scratch_clear();
}

static const struct {
    const char *name;
    ck_arch arch;
    unsigned tensors, layers, vocab, heads, mlp;
    int tied, dtype;
} golden_models[] = {{"falcon-mamba", CK_ARCH_FALCON_MAMBA, 23, 2, 80, 64, 0, 0, CK_F32},
                     {"mamba1-base", CK_ARCH_MAMBA1, 22, 2, 97, 64, 0, 1, CK_F32},
                     {"mamba1-bf16", CK_ARCH_MAMBA1, 22, 2, 97, 64, 0, 1, CK_BF16},
                     {"mamba1-f16", CK_ARCH_MAMBA1, 22, 2, 97, 64, 0, 1, CK_F16},
                     {"mamba1-long", CK_ARCH_MAMBA1, 22, 2, 32, 32, 0, 1, CK_F32},
                     {"mamba1-odd", CK_ARCH_MAMBA1, 38, 3, 61, 60, 0, 1, CK_F32},
                     {"mamba1-original-bf16", CK_ARCH_MAMBA1, 23, 2, 97, 64, 0, 1, CK_BF16},
                     {"mamba1-original-f16", CK_ARCH_MAMBA1, 23, 2, 97, 64, 0, 1, CK_F16},
                     {"mamba1-original-f32", CK_ARCH_MAMBA1, 23, 2, 97, 64, 0, 1, CK_F32},
                     {"mamba1-original-legacy", CK_ARCH_MAMBA1, 23, 2, 97, 64, 0, 1, CK_F32},
                     {"mamba1-sharded", CK_ARCH_MAMBA1, 22, 2, 97, 64, 0, 1, CK_F32},
                     {"mamba1-untied", CK_ARCH_MAMBA1, 21, 2, 64, 48, 0, 0, CK_F32},
                     {"mamba2-base", CK_ARCH_MAMBA2, 21, 2, 96, 4, 0, 0, CK_F32},
                     {"mamba2-dhdim", CK_ARCH_MAMBA2, 25, 2, 96, 4, 0, 0, CK_F32},
                     {"mamba2-dssm", CK_ARCH_MAMBA2, 21, 2, 96, 2, 0, 1, CK_F32},
                     {"mamba2-dtlimit", CK_ARCH_MAMBA2, 19, 2, 96, 8, 0, 1, CK_F32},
                     {"mamba2-groups", CK_ARCH_MAMBA2, 21, 2, 96, 8, 0, 1, CK_F32},
                     {"mamba2-long", CK_ARCH_MAMBA2, 19, 2, 48, 2, 0, 0, CK_F32},
                     {"mamba2-nonorm", CK_ARCH_MAMBA2, 19, 2, 96, 4, 0, 1, CK_F32},
                     {"mamba2-normfirst", CK_ARCH_MAMBA2, 27, 2, 96, 4, 128, 1, CK_F32},
                     {"mamba2-original", CK_ARCH_MAMBA2, 21, 2, 96, 4, 0, 1, CK_F32},
                     {"mamba2-original-long", CK_ARCH_MAMBA2, 21, 2, 48, 2, 0, 1, CK_F32}};

static void golden_model(size_t i, const char *path)
{
    ck_source *ck;
    ck_model m;
    tl_error err;
    memset(&err, 0, sizeof err);
    if (ck_open(path, &ck, &err) != TL_OK) {
        test_fail(__FILE__, __LINE__, err.message);
        return;
    }
    if (ck_describe(ck, NULL, &m, &err) != TL_OK) {
        test_fail(__FILE__, __LINE__, err.message);
        ck_close(ck);
        return;
    }
    CHECK(m.arch == golden_models[i].arch && m.n_layer == golden_models[i].layers &&
          m.padded_vocab == golden_models[i].vocab);
    CHECK(m.n_heads == golden_models[i].heads && m.d_mlp == golden_models[i].mlp &&
          m.tied == golden_models[i].tied);
    CHECK(ck->tensor_count == golden_models[i].tensors && m.unused_count == 0);
    CHECK(m.embedding->dtype == (ck_dtype)golden_models[i].dtype);
    for (size_t k = 0; k < ck->tensor_count; k++) {
        const ck_tensor *t = &ck->tensors[k];
        float *values = (float *)malloc((size_t)t->count * sizeof(float));
        int finite = values != NULL && ck_read_f32(ck, t, 0, t->count, values, &err) == TL_OK;
        for (uint64_t j = 0; finite && j < t->count; j++) {
            finite = values[j] > -1e3f && values[j] < 1e3f;
        }
        CHECK(finite && ck_verify(ck, t, &err) == TL_OK);
        free(values);
    }
    ck_model_free(&m);
    ck_close(ck);
    check_clean(golden_models[i].name);
}

static void golden_family(ck_arch from, ck_arch to)
{
    char path[700];
    int missing = 0;
    for (size_t i = 0; i < sizeof golden_models / sizeof golden_models[0]; i++) {
        if (golden_models[i].arch < from || golden_models[i].arch > to) {
            continue;
        }
        if (golden_path(path, golden_models[i].name)) {
            golden_model(i, path);
        } else {
            printf("%s is not here\n", golden_models[i].name);
            missing = 1;
        }
    }
    if (missing) {
        SKIP("some golden models are missing");
    }
}

TEST(golden_mamba1)
{
    golden_family(CK_ARCH_MAMBA1, CK_ARCH_FALCON_MAMBA);
}

TEST(golden_mamba2)
{
    golden_family(CK_ARCH_MAMBA2, CK_ARCH_MAMBA2);
}

/* The largest difference of two checkpoints' values, relative to the value; -1 if something is
 * wrong. */
static double compare_golden(const char *a, const char *b)
{
    const char *const names[2] = {a, b};
    ck_source *ck[2] = {NULL, NULL};
    tl_error err;
    double worst = 0.0;
    memset(&err, 0, sizeof err);
    for (int i = 0; i < 2; i++) {
        char folder[700], path[800];
        (void)golden_path(folder, names[i]);
        (void)snprintf(path, sizeof path, "%s/pytorch_model.bin", folder);
        if (ck_open(path, &ck[i], &err) != TL_OK) {
            ck_close(ck[0]);
            return -1.0;
        }
    }
    for (size_t k = 0; k < ck[0]->tensor_count; k++) {
        const ck_tensor *t = &ck[0]->tensors[k], *u = ck_find_n(ck[1], t->name, t->name_length);
        for (uint64_t j = 0; j < t->count; j++) {
            float x, y;
            double d;
            if (u == NULL || u->count != t->count ||
                ck_read_f32(ck[0], t, j, 1, &x, &err) != TL_OK ||
                ck_read_f32(ck[1], u, j, 1, &y, &err) != TL_OK) {
                worst = 9.0;
                break;
            }
            d = (double)x == 0.0 ? (double)y : ((double)y - (double)x) / (double)x;
            worst = d > worst ? d : -d > worst ? -d : worst;
        }
    }
    CHECK(ck_same(ck_find(ck[0], "lm_head.weight"), ck_find(ck[0], "backbone.embedding.weight")));
    ck_close(ck[0]);
    ck_close(ck[1]);
    check_clean(a);
    return worst;
}

/* One model in four files: the same numbers, up to the rounding of the 16-bit types. */
TEST(golden_agree)
{
    char path[700];
    if (!golden_path(path, "mamba1-original-f32") || !golden_path(path, "mamba1-original-legacy") ||
        !golden_path(path, "mamba1-original-bf16") || !golden_path(path, "mamba1-original-f16")) {
        SKIP("no golden files");
    }
    CHECK_NEAR(compare_golden("mamba1-original-f32", "mamba1-original-legacy"), 0.0, 0.0);
    CHECK_NEAR(compare_golden("mamba1-original-f32", "mamba1-original-bf16"), 0.0, 1.0 / 256);
    CHECK_NEAR(compare_golden("mamba1-original-f32", "mamba1-original-f16"), 0.0, 1.0 / 1024);
}

TEST_MAIN("tools")
{
    scratch_begin();
    RUN(json_table);
    RUN(json_J01_depth);
    RUN(json_J03_integers);
    RUN(json_J03_floats);
    RUN(json_access);
    RUN(json_escapes);
    RUN(json_J06_sizes);
    RUN(json_prefixes);
    RUN(json_G14_large);
    RUN(safetensors_table);
    RUN(safetensors_S01_lengths);
    RUN(safetensors_values);
    RUN(safetensors_S12_many);
    RUN(f16_all);
    RUN(zip_accepts);
    RUN(zip_table);
    RUN(zip_structures);
    RUN(zip_ends);
    RUN(zip_Z10_checksums);
    RUN(pickle_table);
    RUN(pickle_integers);
    RUN(pickle_P06_bombs);
    RUN(dict_P11_P12_places);
    RUN(dict_P13_to_P17);
    RUN(recognise);
    RUN(G13_not_a_file);
    RUN(long_paths);
    scratch_clear();
    RUN(S13_index);
    RUN(folders);
    RUN(config_table);
    RUN(config_tensors);
    RUN(config_mistral);
    RUN(config_meaning);
    RUN(R18_large);
    RUN(damage_safetensors);
    RUN(damage_torch);
    RUN(P15_legacy);
    RUN(damage_mended);
    scratch_clear();
    RUN(failures_safetensors);
    RUN(failures_large_config);
    RUN(failures_shards);
    RUN(failures_torch);
    RUN(failures_legacy);
    RUN(golden_mamba1);
    RUN(golden_mamba2);
    RUN(golden_agree);
    scratch_end();
}
