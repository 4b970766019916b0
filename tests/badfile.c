/*  badfile.c: hostile and damaged .mamba files.  A valid small file is taken apart, one thing is broken, checksums are
 *  made right again (so that the checks behind them are reached), and the opening must be refused with the status and
 *  message given here.  Ids in brackets (G01 …) are the classes of faults of container files; N: of snapshots.
 */
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE 1 /* MAP_ANONYMOUS */
#endif
#define MAMBA_IMPLEMENTATION
#include "mamba.h"

#include "golden.h"
#include "test.h"


#ifndef BUILD_DIR
#define BUILD_DIR "build"
#endif

#define SMALL BUILD_DIR "/golden/mamba1-long.mamba"

typedef struct {
    unsigned char *data; /* aligned to 64, exactly `bytes` long, so that a sanitizer sees a read past it */
    size_t bytes;
} blob;

static blob new_blob(size_t bytes)
{
    blob b;
    void *p = NULL;
    if (posix_memalign(&p, 64, bytes ? bytes : 1) != 0) {
        golden_die("badfile", "out of memory");
    }
    b.data = (unsigned char *)p;
    b.bytes = bytes;
    return b;
}

static blob load(const char *path)
{
    size_t n;
    char *data = golden_read(path, &n);
    blob b = new_blob(n);
    memcpy(b.data, data, n);
    free(data);
    return b;
}

static blob copy(const blob *from, size_t bytes)
{
    blob b = new_blob(bytes);
    memcpy(b.data, from->data, bytes < from->bytes ? bytes : from->bytes);
    if (bytes > from->bytes) {
        memset(b.data + from->bytes, 0, bytes - from->bytes);
    }
    return b;
}

static void put32(unsigned char *p, uint32_t v)
{
    memcpy(p, &v, 4);
}

static void put64(unsigned char *p, uint64_t v)
{
    memcpy(p, &v, 8);
}

/* Makes both checksums right where the sizes allow it. */
static void fix(blob *b)
{
    uint64_t meta;
    if (b->bytes < 64) {
        return;
    }
    meta = mbi_load_u64(b->data + 24);
    if (meta >= 64 && meta <= b->bytes) {
        put64(b->data + 40, mbi_hash_bytes(b->data + meta, b->bytes - (size_t)meta));
        put64(b->data + 32, mbi_hash_bytes(b->data + 40, (size_t)meta - 40));
    }
}

/* Offset of a section's entry in the table. */
static size_t entry_of(const blob *b, const char *name)
{
    uint32_t n = mbi_load_u32(b->data + 48), i;
    for (i = 0; i < n; i++) {
        if (strncmp((const char *)b->data + 64 + 32 * i, name, 16) == 0) {
            return 64 + 32 * (size_t)i;
        }
    }
    golden_die(SMALL, name);
    return 0;
}

static size_t section_of(const blob *b, const char *name)
{
    return (size_t)mbi_load_u64(b->data + entry_of(b, name) + 16);
}

static size_t n_tensors(const blob *b)
{
    return (size_t)mbi_load_u64(b->data + entry_of(b, "tensors") + 24) / MBI_TENSOR_BYTES;
}

static size_t tensor_at(const blob *b, size_t i)
{
    return section_of(b, "tensors") + i * MBI_TENSOR_BYTES;
}

static size_t tensor_of(const blob *b, const char *name)
{
    size_t i;
    for (i = 0; i < n_tensors(b); i++) {
        if (strncmp((const char *)b->data + tensor_at(b, i), name, 64) == 0) {
            return tensor_at(b, i);
        }
    }
    golden_die(SMALL, name);
    return 0;
}

/* Opens; what opens must also run a token and close. */
static mamba_status try_open(const blob *b, mamba_error *err)
{
    mamba_model *m = NULL;
    mamba_config c;
    mamba_status status;
    memset(&c, 0, sizeof c);
    c.n_threads = 1;
    status = mamba_open_memory(b->data, b->bytes, &c, &m, err);
    CHECK((m != NULL) == (status == MAMBA_OK) && err->status == status);
    if (m != NULL) {
        mamba_state *s = NULL;
        if (mamba_state_create(m, NULL, &s, NULL) == MAMBA_OK) {
            (void)mamba_step(s, 0, NULL, 0, NULL);
        }
        mamba_state_free(s);
        mamba_close(m);
    }
    return status;
}

/* Must be refused with this status and these words, naming what and where. */
static void expect(const char *id, const blob *b, mamba_status want, const char *words)
{
    mamba_error err;
    char text[600];
    mamba_status status = try_open(b, &err);
    size_t n = mamba_error_text(&err, text, sizeof text);
    if (status != want || strstr(text, words) == NULL || err.name[0] == 0 || n != strlen(text)) {
        char found[900];
        (void)snprintf(found, sizeof found, "%s: status %d \"%s\", expected %d \"%s\"", id, (int)status, text, (int)want,
                       words);
        test_fail(__FILE__, __LINE__, found);
    }
}

/* One field of the good file set to a value, checksums right. */
static void expect_field(const char *id, const blob *good, size_t at, int width, uint64_t value, mamba_status want,
                         const char *words)
{
    blob b = copy(good, good->bytes);
    memcpy(b.data + at, &value, (size_t)width);
    fix(&b);
    expect(id, &b, want, words);
    free(b.data);
}

TEST(good_file)
{
    blob good = load(SMALL);
    blob b = copy(&good, good.bytes);
    mamba_error err;
    CHECK_INT(try_open(&good, &err), MAMBA_OK);
    fix(&b); /* and fix() computes what the converter wrote */
    CHECK(memcmp(b.data, good.data, good.bytes) == 0);
    free(b.data);
    free(good.data);
}

/* [G01 G06] every length, as is, and with the size in the header and the checksums made to fit */
TEST(truncated)
{
    blob good = load(SMALL);
    size_t n;
    for (n = 0; n < good.bytes; n++) {
        blob b = copy(&good, n);
        if (n < 64) {
            expect("G01", &b, MAMBA_ERR_FORMAT, "too short for a header");
        } else {
            expect("G06", &b, MAMBA_ERR_FORMAT, "truncated");
            if (n % 61 == 0 || n % 64 == 0 || n < 5000) {
                mamba_error err;
                put64(b.data + 16, n);
                fix(&b);
                CHECK(try_open(&b, &err) != MAMBA_OK && err.name[0] != 0);
            }
        }
        free(b.data);
    }
    for (n = 1; n <= 129; n += 64) { /* [G05] bytes behind the end */
        blob b = copy(&good, good.bytes + n);
        expect("G05 trailing", &b, MAMBA_ERR_FORMAT, "after the end");
        put64(b.data + 16, b.bytes);
        fix(&b);
        expect("G05 trailing, counted", &b, MAMBA_ERR_FORMAT, "file ends");
        free(b.data);
    }
    free(good.data);
}

/* [G02 …] every flipped bit of the metadata */
TEST(flipped_bits)
{
    blob good = load(SMALL);
    size_t meta = (size_t)mbi_load_u64(good.data + 24), i;
    blob b = copy(&good, good.bytes);
    for (i = 0; i < 8 * meta; i++) {
        mamba_error err;
        b.data[i / 8] = (unsigned char)(b.data[i / 8] ^ 1u << i % 8);
        if (try_open(&b, &err) == MAMBA_OK || err.name[0] == 0) {
            printf("bit %d of byte %d\n", (int)(i % 8), (int)(i / 8));
            FAIL("accepted");
        }
        b.data[i / 8] = (unsigned char)(b.data[i / 8] ^ 1u << i % 8);
    }
    for (i = meta; i < good.bytes; i += 7) { /* the weights: found by the full check */
        mamba_model *m = NULL;
        mamba_error err;
        b.data[i] ^= 1;
        REQUIRE(mamba_open_memory(b.data, b.bytes, NULL, &m, NULL) == MAMBA_OK);
        CHECK_INT(mamba_model_check(m, MAMBA_CHECK_CHECKSUM, &err), MAMBA_ERR_CHECK);
        mamba_close(m);
        b.data[i] ^= 1;
    }
    free(b.data);
    free(good.data);
}

TEST(header)
{
    blob good = load(SMALL);
    uint64_t bytes = good.bytes;
    expect_field("G02 magic", &good, 0, 1, 'm', MAMBA_ERR_FORMAT, "not a .mamba file");
    expect_field("G02 text mode", &good, 5, 1, '\n', MAMBA_ERR_FORMAT, "text mode");
    expect_field("G02 version 0", &good, 8, 4, 0, MAMBA_ERR_VERSION, "version");
    expect_field("G02 version 2", &good, 8, 4, 2, MAMBA_ERR_VERSION, "convert the checkpoint again (found 2, allowed 3");
    expect_field("G02 version 4", &good, 8, 4, 4, MAMBA_ERR_VERSION, "found 4, allowed 3");
    expect_field("G02 order", &good, 12, 4, 0x04030201u, MAMBA_ERR_FORMAT, "other byte order");
    expect_field("G02 order", &good, 12, 4, 7, MAMBA_ERR_FORMAT, "byte order mark");
    expect_field("G05 size", &good, 16, 8, bytes + 64, MAMBA_ERR_FORMAT, "truncated");
    expect_field("G03 size", &good, 16, 8, UINT64_MAX, MAMBA_ERR_FORMAT, "truncated");
    expect_field("G05 size", &good, 16, 8, bytes - 64, MAMBA_ERR_FORMAT, "after the end");
    expect_field("G07 meta", &good, 24, 8, 4095, MAMBA_ERR_FORMAT, "multiple of 4096");
    expect_field("G07 meta", &good, 24, 8, 0, MAMBA_ERR_FORMAT, "multiple of 4096");
    expect_field("G05 meta", &good, 24, 8, (uint64_t)1 << 63, MAMBA_ERR_FORMAT, "within the file");
    expect_field("G04 sections", &good, 48, 4, 2, MAMBA_ERR_FORMAT, "number of sections");
    expect_field("G04 sections", &good, 48, 4, 65, MAMBA_ERR_FORMAT, "number of sections");
    expect_field("G04 sections", &good, 48, 4, UINT32_MAX, MAMBA_ERR_FORMAT, "number of sections");
    expect_field("reserved", &good, 52, 4, 1, MAMBA_ERR_FORMAT, "reserved");
    expect_field("reserved", &good, 60, 4, 1u << 31, MAMBA_ERR_FORMAT, "reserved");
    free(good.data);
}

TEST(sections)
{
    blob good = load(SMALL);
    size_t config = entry_of(&good, "config"), layers = entry_of(&good, "layers");
    uint64_t offset = mbi_load_u64(good.data + layers + 16);
    blob b;
    expect_field("G05 offset", &good, layers + 16, 8, offset + 64, MAMBA_ERR_FORMAT, "follow the one before");
    expect_field("G05 offset", &good, layers + 16, 8, offset - 64, MAMBA_ERR_FORMAT, "follow the one before");
    expect_field("G05 offset", &good, layers + 16, 8, offset + 1, MAMBA_ERR_FORMAT, "follow the one before");
    expect_field("G05 wrap", &good, layers + 24, 8, UINT64_MAX, MAMBA_ERR_FORMAT, "metadata");
    expect_field("G05 wrap", &good, layers + 24, 8, UINT64_MAX - offset + 1, MAMBA_ERR_FORMAT, "metadata");
    expect_field("G11 empty name", &good, config, 1, 0, MAMBA_ERR_FORMAT, "NUL-padded");
    expect_field("G11 after NUL", &good, config + 12, 1, 'x', MAMBA_ERR_FORMAT, "NUL-padded");
    expect_field("G09 missing", &good, config, 1, 'k', MAMBA_ERR_FORMAT, "section is missing");
    expect_field("G09 missing", &good, layers, 1, 'k', MAMBA_ERR_FORMAT, "section is missing");
    expect_field("G09 missing", &good, entry_of(&good, "tensors"), 1, 'k', MAMBA_ERR_FORMAT, "section is missing");
    b = copy(&good, good.bytes);
    memcpy(b.data + layers, b.data + config, 16);
    fix(&b);
    expect("G09 duplicate", &b, MAMBA_ERR_FORMAT, "one name");
    free(b.data);
    expect_field("G10 config size", &good, config + 24, 8, 255, MAMBA_ERR_FORMAT, "config");
    expect_field("G10 config size", &good, config + 24, 8, 512, MAMBA_ERR_FORMAT, "");
    free(good.data);
}

TEST(configuration)
{
    blob good = load(SMALL);
    size_t c = section_of(&good, "config"), l = section_of(&good, "layers");
    const float inf = (float)INFINITY;
    uint64_t bits = mbi_f32_bits(inf);
    expect_field("G03 d_model", &good, c, 4, 0, MAMBA_ERR_FORMAT, "d_model");
    expect_field("G03 d_model", &good, c, 4, 65537, MAMBA_ERR_FORMAT, "allowed 1..65536");
    expect_field("G10 d_model", &good, c, 4, 17, MAMBA_ERR_FORMAT, "disagree with the configuration");
    expect_field("G03 n_layers", &good, c + 4, 4, 0, MAMBA_ERR_FORMAT, "n_layers");
    expect_field("G10 n_layers", &good, c + 4, 4, 1, MAMBA_ERR_FORMAT, "n_layers");
    expect_field("G04 n_layers", &good, c + 4, 4, 4096, MAMBA_ERR_FORMAT, "n_layers");
    expect_field("G03 n_vocab", &good, c + 8, 4, 1u << 31, MAMBA_ERR_FORMAT, "n_vocab");
    expect_field("G10 n_vocab", &good, c + 8, 4, 33, MAMBA_ERR_FORMAT, "rows disagree");
    expect_field("G10 n_vocab_used", &good, c + 12, 4, 33, MAMBA_ERR_FORMAT, "n_vocab_used");
    expect_field("flags", &good, c + 16, 4, 0x80, MAMBA_ERR_FORMAT, "flags");
    expect_field("G10 untied", &good, c + 16, 4, 0, MAMBA_ERR_FORMAT, "head");
    expect_field("G08 type", &good, c + 20, 4, 6, MAMBA_ERR_FORMAT, "weight type");
    expect_field("eps 0", &good, c + 24, 4, 0, MAMBA_ERR_FORMAT, "positive");
    expect_field("eps infinite", &good, c + 24, 4, bits, MAMBA_ERR_FORMAT, "positive");
    expect_field("eps NaN", &good, c + 24, 4, 0x7fc00000u, MAMBA_ERR_FORMAT, "positive");
    expect_field("scale -1", &good, c + 28, 4, 0xbf800000u, MAMBA_ERR_FORMAT, "positive");
    expect_field("reserved", &good, c + 52, 4, 1, MAMBA_ERR_FORMAT, "reserved");
    expect_field("reserved", &good, c + 252, 4, 1, MAMBA_ERR_FORMAT, "reserved");
    expect_field("architecture", &good, c + 64, 1, 0, MAMBA_ERR_FORMAT, "architecture");
    expect_field("architecture", &good, c + 95, 1, 'x', MAMBA_ERR_FORMAT, "architecture");
    expect_field("kind 0", &good, l, 4, 0, MAMBA_ERR_UNSUPPORTED, "kind of layer");
    expect_field("kind 2^32-1", &good, l, 4, UINT32_MAX, MAMBA_ERR_UNSUPPORTED, "kind of layer");
    expect_field("layer eps", &good, l + 8, 4, 0, MAMBA_ERR_FORMAT, "eps");
    expect_field("layer reserved", &good, l + 12, 4, 1, MAMBA_ERR_FORMAT, "reserved");
    expect_field("layer flags", &good, l + 4, 4, 8, MAMBA_ERR_FORMAT, "flags");
    expect_field("G03 d_inner", &good, l + 16, 4, 0, MAMBA_ERR_FORMAT, "layer.00000.d_inner");
    expect_field("G10 d_inner", &good, l + 16, 4, 31, MAMBA_ERR_FORMAT, "disagree");
    expect_field("G03 d_inner", &good, l + 16, 4, 0x7fffffffu, MAMBA_ERR_FORMAT, "d_inner");
    expect_field("G03 d_state", &good, l + 20, 4, 0, MAMBA_ERR_FORMAT, "d_state");
    expect_field("G10 d_state", &good, l + 20, 4, 17, MAMBA_ERR_FORMAT, "disagree");
    expect_field("G03 d_conv", &good, l + 24, 4, 9, MAMBA_ERR_FORMAT, "d_conv");
    expect_field("G10 d_conv", &good, l + 24, 4, 3, MAMBA_ERR_FORMAT, "disagree");
    expect_field("G03 dt_rank", &good, l + 28, 4, 0, MAMBA_ERR_FORMAT, "dt_rank");
    expect_field("G10 dt_rank", &good, l + 28, 4, 2, MAMBA_ERR_FORMAT, "disagree");
    free(good.data);
}

TEST(tensors)
{
    blob good = load(SMALL);
    size_t e = tensor_of(&good, "embedding"), t1 = tensor_at(&good, 1), last = tensor_at(&good, n_tensors(&good) - 1);
    size_t norm = tensor_of(&good, "norm_f");
    uint64_t offset = mbi_load_u64(good.data + t1 + 120), bytes = mbi_load_u64(good.data + e + 128);
    blob b;
    expect_field("G08 type", &good, e + 64, 4, 6, MAMBA_ERR_FORMAT, "embedding");
    expect_field("G08 type -1", &good, e + 64, 4, UINT32_MAX, MAMBA_ERR_FORMAT, "embedding");
    expect_field("G08 q8 of f32 bytes", &good, e + 64, 4, MAMBA_Q8, MAMBA_ERR_FORMAT, "bytes must be");
    expect_field("G08 vector", &good, norm + 64, 4, MAMBA_F16, MAMBA_ERR_FORMAT, "vectors must be f32");
    expect_field("layout", &good, e + 68, 4, 2, MAMBA_ERR_FORMAT, "embedding");
    expect_field("layout", &good, norm + 68, 4, 1, MAMBA_ERR_FORMAT, "norm_f");
    expect_field("G03 rows", &good, e + 72, 4, 0, MAMBA_ERR_FORMAT, "embedding");
    expect_field("G10 rows", &good, e + 72, 4, 33, MAMBA_ERR_FORMAT, "segments must add up");
    expect_field("G03 rows", &good, e + 72, 4, (1u << 24) + 1, MAMBA_ERR_FORMAT, "embedding");
    expect_field("G03 cols", &good, e + 76, 4, 0, MAMBA_ERR_FORMAT, "embedding");
    expect_field("G10 cols", &good, e + 76, 4, 1u << 24, MAMBA_ERR_FORMAT, "bytes must be");
    expect_field("G04 segments", &good, e + 80, 4, 0, MAMBA_ERR_FORMAT, "embedding");
    expect_field("G04 segments", &good, e + 80, 4, 9, MAMBA_ERR_FORMAT, "embedding");
    expect_field("G04 segments", &good, e + 80, 4, 2, MAMBA_ERR_FORMAT, "segment");
    expect_field("segment past the last", &good, e + 84 + 28, 4, 1, MAMBA_ERR_FORMAT, "segment");
    expect_field("G04 count", &good, e + 116, 4, 0, MAMBA_ERR_FORMAT, "embedding");
    expect_field("G04 count", &good, e + 116, 4, 4097, MAMBA_ERR_FORMAT, "embedding");
    expect_field("G10 count", &good, e + 116, 4, 2, MAMBA_ERR_FORMAT, "bytes must be");
    expect_field("G05 offset", &good, t1 + 120, 8, offset + 64, MAMBA_ERR_FORMAT, "follow the one before");
    expect_field("G05 overlap", &good, t1 + 120, 8, offset - 64, MAMBA_ERR_FORMAT, "follow the one before");
    expect_field("G05 misaligned", &good, t1 + 120, 8, offset + 4, MAMBA_ERR_FORMAT, "follow the one before");
    expect_field("G05 outside", &good, t1 + 120, 8, UINT64_MAX - 63, MAMBA_ERR_FORMAT, "follow the one before");
    expect_field("G05 bytes", &good, e + 128, 8, bytes + 64, MAMBA_ERR_FORMAT, "bytes must be");
    expect_field("G05 bytes", &good, e + 128, 8, 0, MAMBA_ERR_FORMAT, "bytes must be");
    expect_field("G05 bytes", &good, e + 128, 8, UINT64_MAX, MAMBA_ERR_FORMAT, "bytes must be");
    expect_field("reserved", &good, e + 152, 8, 1, MAMBA_ERR_FORMAT, "reserved");
    expect_field("G11 empty", &good, e, 1, 0, MAMBA_ERR_FORMAT, "NUL-padded");
    expect_field("G11 inner NUL", &good, e + 3, 1, 0, MAMBA_ERR_FORMAT, "NUL-padded");
    expect_field("G11 63 bytes only", &good, e + 63, 1, 'x', MAMBA_ERR_FORMAT, "NUL-padded");
    expect_field("G09 order", &good, e, 1, 'z', MAMBA_ERR_FORMAT, "ascending");
    expect_field("G09 unknown", &good, e, 1, 'a', MAMBA_ERR_FORMAT, "embedding: tensor is missing");
    expect_field("G09 unknown", &good, last + 5, 1, 'g', MAMBA_ERR_FORMAT, "norm_f: tensor is missing");
    b = copy(&good, good.bytes);
    memcpy(b.data + t1, b.data + e, 64);
    fix(&b);
    expect("G09 duplicate", &b, MAMBA_ERR_FORMAT, "unique and ascending");
    memcpy(b.data + t1, good.data + t1, 64);
    b.data[e + 2] = '\x1b'; /* [C10] a message must not carry control bytes to a terminal */
    put32(b.data + e + 64, 9);
    fix(&b);
    expect("C10", &b, MAMBA_ERR_FORMAT, "em?edding");
    free(b.data);
    free(good.data);
}

/* [G03 G04 G05 G10] every integer field with every value where sizes break; refused, or harmless. */
TEST(boundaries)
{
    static const uint64_t values[] = {0, 1, 0x7fffffffu, 0x80000000u, 0x80000001u, 0xffffffffu, 0x100000000u,
                                      0x100000001u, 0x7fffffffffffffffu, 0x8000000000000000u, 0x8000000000000001u,
                                      UINT64_MAX};
    enum { N_VALUES = sizeof values / sizeof values[0] };
    blob good = load(SMALL);
    blob b = copy(&good, good.bytes);
    size_t at[400], n = 0, i, v;
    int width[400];
    int accepted = 0, refused = 0;
    size_t config = section_of(&good, "config"), layers = section_of(&good, "layers");
    for (i = 8; i < 64; i += i < 16 || i >= 48 ? 4 : 8) {
        at[n] = i;
        width[n++] = i < 16 || i >= 48 ? 4 : 8;
    }
    for (i = 0; i < mbi_load_u32(good.data + 48); i++) {
        at[n] = 64 + 32 * i + 16;
        width[n++] = 8;
        at[n] = 64 + 32 * i + 24;
        width[n++] = 8;
    }
    for (i = 0; i < 64; i += 4) {
        at[n] = config + i;
        width[n++] = 4;
    }
    for (i = 0; i < 2 * MBI_LAYER_BYTES; i += 4) {
        at[n] = layers + i;
        width[n++] = 4;
    }
    for (i = 0; i < n_tensors(&good) && n + 17 < 400; i += 5) {
        size_t f;
        for (f = 64; f < 160; f += f < 120 ? 4 : 8) {
            at[n] = tensor_at(&good, i) + f;
            width[n++] = f < 120 ? 4 : 8;
        }
    }
    for (i = 0; i < n; i++) {
        uint64_t right = width[i] == 4 ? mbi_load_u32(good.data + at[i]) : mbi_load_u64(good.data + at[i]);
        for (v = 0; v < N_VALUES + 2; v++) {
            uint64_t value = v < N_VALUES ? values[v] : v == N_VALUES ? right - 1 : right + 1;
            int round;
            for (round = 0; round < 2 && value != right; round++) { /* checksums wrong, then right */
                mamba_error err;
                mamba_status status;
                memcpy(b.data + at[i], &value, (size_t)width[i]);
                if (round == 1) {
                    fix(&b);
                }
                status = try_open(&b, &err);
                CHECK(status == MAMBA_OK || (err.name[0] != 0 && err.what[0] != 0));
                if (memcmp(b.data, good.data, good.bytes) != 0) {
                    CHECK(round == 1 || status != MAMBA_OK);
                }
                accepted += status == MAMBA_OK;
                refused += status != MAMBA_OK;
                memcpy(b.data, good.data, (size_t)mbi_load_u64(good.data + 24));
            }
        }
    }
    CHECK(refused > 3500);
    printf("boundaries: %d values refused, %d harmless\n", refused, accepted);
    free(b.data);
    free(good.data);
}

/* Random damage of the metadata with right checksums: whatever opens must run without harm. */
TEST(random_damage)
{
    blob good = load(SMALL);
    blob b = copy(&good, good.bytes);
    size_t meta = (size_t)mbi_load_u64(good.data + 24);
    uint32_t seed = 7;
    int i, j, opened = 0;
    for (i = 0; i < 20000; i++) {
        mamba_error err;
        for (j = 0; j <= i % 4; j++) {
            size_t at;
            seed = seed * 1664525u + 1013904223u;
            at = 48 + seed / 65536u * 1031u % (meta - 48);
            seed = seed * 1664525u + 1013904223u;
            b.data[at] = (unsigned char)(seed & 0x1000000u ? seed >> 26 : seed >> 16);
        }
        fix(&b);
        opened += try_open(&b, &err) == MAMBA_OK;
        memcpy(b.data, good.data, meta);
    }
    CHECK(opened < 20000);
    free(b.data);
    free(good.data);
}

/* [G12] */
TEST(contents)
{
    blob good = load(SMALL);
    size_t i;
    for (i = 0; i < n_tensors(&good); i++) {
        blob b = copy(&good, good.bytes);
        const unsigned char *t = b.data + tensor_at(&b, i);
        size_t at = (size_t)mbi_load_u64(t + 120) + (size_t)mbi_load_u64(t + 128) / 8 * 4;
        mamba_model *m = NULL;
        mamba_error err;
        put32(b.data + at, i % 2 ? 0x7f800000u : 0xffc00000u);
        fix(&b);
        REQUIRE(mamba_open_memory(b.data, b.bytes, NULL, &m, &err) == MAMBA_OK);
        CHECK_INT(mamba_model_check(m, MAMBA_CHECK_CHECKSUM, &err), MAMBA_OK);
        CHECK_INT(mamba_model_check(m, MAMBA_CHECK_FINITE, &err), MAMBA_ERR_NONFINITE);
        CHECK(strcmp(err.name, (const char *)t) == 0);
        CHECK_INT(err.offset, at);
        mamba_close(m);
        free(b.data);
    }
    free(good.data);
}

static void check_selftest(const blob *good, size_t at, uint32_t value, mamba_status want, const char *words)
{
    blob b = copy(good, good->bytes);
    mamba_model *m = NULL;
    mamba_error err;
    char text[600];
    mamba_status status;
    put32(b.data + at, value);
    fix(&b);
    status = mamba_open_memory(b.data, b.bytes, NULL, &m, &err);
    if (status == MAMBA_OK) {
        status = mamba_model_check(m, MAMBA_CHECK_SELFTEST, &err);
    }
    mamba_error_text(&err, text, sizeof text);
    CHECK_INT(status, want);
    CHECK_CONTAINS(text, "selftest");
    CHECK_CONTAINS(text, words);
    mamba_close(m);
    free(b.data);
}

TEST(selftest)
{
    blob good = load(SMALL);
    size_t s = section_of(&good, "selftest");
    uint32_t n_tokens = mbi_load_u32(good.data + s), n_values = mbi_load_u32(good.data + s + 4);
    size_t logit = s + 16 + 4 * ((size_t)n_tokens + n_values);
    mamba_model *m = NULL;
    mamba_error err;
    mamba_config c;
    blob b;
    check_selftest(&good, s, 0, MAMBA_ERR_FORMAT, "disagree");
    check_selftest(&good, s, 65, MAMBA_ERR_FORMAT, "disagree");
    check_selftest(&good, s, UINT32_MAX, MAMBA_ERR_FORMAT, "disagree");
    check_selftest(&good, s + 4, n_values + 1, MAMBA_ERR_FORMAT, "disagree");
    check_selftest(&good, s + 4, 0x40000000u, MAMBA_ERR_FORMAT, "disagree");
    check_selftest(&good, s + 8, 0x7fc00000u, MAMBA_ERR_FORMAT, "disagree");
    check_selftest(&good, s + 16, UINT32_MAX, MAMBA_ERR_FORMAT, "id out of range");
    check_selftest(&good, s + 16, 32, MAMBA_ERR_FORMAT, "id out of range");
    check_selftest(&good, s + 16 + 4 * (size_t)n_tokens, 1u << 31, MAMBA_ERR_FORMAT, "id out of range");
    check_selftest(&good, logit, 0x7fc00000u, MAMBA_ERR_CHECK, "differs");
    check_selftest(&good, logit, 0x42c80000u, MAMBA_ERR_CHECK, "differs");
    b = copy(&good, good.bytes); /* damaged weights are seen by the self-test during open */
    memset(b.data + mbi_load_u64(b.data + tensor_of(&b, "embedding") + 120), 0x40, 64);
    fix(&b);
    memset(&c, 0, sizeof c);
    c.check = MAMBA_CHECK_ALL;
    CHECK_INT(mamba_open_memory(b.data, b.bytes, &c, &m, &err), MAMBA_ERR_CHECK);
    CHECK(m == NULL);
    free(b.data);
    free(good.data);
}

static mamba_status open_path(const char *path, size_t n, int copying, mamba_model **m, mamba_error *err)
{
    mamba_config c;
    memset(&c, 0, sizeof c);
    c.copy = (uint32_t)copying;
    return mamba_open(path, n, &c, m, err);
}

static void expect_path(const char *path, mamba_status want, const char *words)
{
    int copying;
    for (copying = 0; copying < 2; copying++) {
        mamba_model *m = NULL;
        mamba_error err;
        char text[600];
        CHECK_INT(open_path(path, strlen(path), copying, &m, &err), want);
        CHECK(m == NULL);
        mamba_error_text(&err, text, sizeof text);
        CHECK_CONTAINS(text, path);
        CHECK_CONTAINS(text, words);
    }
}

static void write_file(const char *path, const unsigned char *data, size_t n)
{
    FILE *f = fopen(path, "wb");
    CHECK(f != NULL && fwrite(data, 1, n, f) == n);
    if (f != NULL) {
        (void)fclose(f);
    }
}

/* [G13] and paths */
TEST(paths)
{
    static const char empty[] = BUILD_DIR "/tests/empty.mamba";
    static const char fifo[] = BUILD_DIR "/tests/fifo.mamba";
    char longest[5000];
    mamba_model *m = NULL;
    mamba_error err;
    write_file(empty, (const unsigned char *)"", 0);
    (void)remove(fifo);
    CHECK_INT(mkfifo(fifo, 0600), 0);
    expect_path(empty, MAMBA_ERR_FORMAT, "too short");
    expect_path(fifo, MAMBA_ERR_IO, "not a regular file");
    expect_path(BUILD_DIR, MAMBA_ERR_IO, "not a regular file");
    expect_path("/dev/zero", MAMBA_ERR_IO, "not a regular file");
    expect_path("/proc/self/status", MAMBA_ERR_FORMAT, "too short");
    expect_path(BUILD_DIR "/tests/no such file.mamba", MAMBA_ERR_IO, "no such file");
    expect_path("tests/golden.h", MAMBA_ERR_FORMAT, "not a .mamba file");
    (void)remove(fifo);
    (void)remove(empty);
    memset(longest, 'a', sizeof longest);
    CHECK_INT(mamba_open(NULL, 3, NULL, &m, &err), MAMBA_ERR_ARG);
    CHECK_INT(mamba_open("", 0, NULL, &m, &err), MAMBA_ERR_ARG);
    CHECK_INT(mamba_open("a\0b", 3, NULL, &m, &err), MAMBA_ERR_ARG);
    CHECK_INT(mamba_open(longest, sizeof longest, NULL, &m, &err), MAMBA_ERR_ARG);
    CHECK_INT(mamba_open(longest, 4000, NULL, &m, &err), MAMBA_ERR_IO);
    CHECK_INT(mamba_open_memory(NULL, 100, NULL, &m, &err), MAMBA_ERR_FORMAT);
    CHECK_INT(mamba_open_reader(NULL, NULL, &m, &err), MAMBA_ERR_ARG);
}

/* [R01 R02] A file replaced by rename does not disturb an open model; a copy survives truncation in place. */
TEST(replaced)
{
    static const char path[] = BUILD_DIR "/tests/replaced.mamba";
    static const char other[] = BUILD_DIR "/tests/other.mamba";
    blob good = load(SMALL);
    int copying;
    for (copying = 0; copying < 2; copying++) {
        mamba_model *m = NULL;
        write_file(path, good.data, good.bytes);
        write_file(other, good.data, 10);
        REQUIRE(open_path(path, strlen(path), copying, &m, NULL) == MAMBA_OK);
        if (copying) {
            write_file(path, good.data, 10); /* truncated and rewritten in place */
        } else {
            CHECK_INT(rename(other, path), 0);
        }
        CHECK_INT(mamba_model_check(m, MAMBA_CHECK_ALL, NULL), MAMBA_OK);
        mamba_close(m);
        CHECK(open_path(path, strlen(path), copying, &m, NULL) != MAMBA_OK);
    }
    (void)remove(path);
    (void)remove(other);
    free(good.data);
}

static void run_some(const mamba_model *m, float *out, size_t n_vocab)
{
    static const int32_t tokens[37] = {1, 5, 9, 30, 2, 7};
    mamba_state *s = NULL;
    mamba_io io;
    REQUIRE(mamba_state_create(m, NULL, &s, NULL) == MAMBA_OK);
    memset(&io, 0, sizeof io);
    io.tokens = tokens;
    io.n = 37;
    io.want_logits = MAMBA_WANT_ALL;
    io.logits = out;
    io.n_logits = 37 * n_vocab;
    CHECK_INT(mamba_run(s, &io, NULL), MAMBA_OK);
    CHECK_INT(mamba_step(s, 31, out, n_vocab, NULL), MAMBA_OK);
    mamba_state_free(s);
}

/* [G15] The file between two pages that can't be touched: no kernel reads beside it, on any target. */
static void check_guarded(const char *path)
{
    blob good = load(path);
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t room = (good.bytes + page - 1) / page * page;
    unsigned char *p = (unsigned char *)mmap(NULL, room + 2 * page, PROT_READ | PROT_WRITE,
                                             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    unsigned char *at;
    int i;
    REQUIRE(p != MAP_FAILED);
    at = p + page + (room - good.bytes); /* file sizes are multiples of 64 */
    memcpy(at, good.data, good.bytes);
    CHECK(mprotect(p, page, PROT_NONE) == 0 && mprotect(p + page + room, page, PROT_NONE) == 0);
    CHECK(mprotect(p + page, room, PROT_READ) == 0);
    for (i = 0; mamba_target_at(i) != NULL; i++) {
        mamba_config c;
        mamba_model *m = NULL;
        mamba_info info;
        memset(&c, 0, sizeof c);
        c.target = mamba_target_at(i);
        c.check = MAMBA_CHECK_CHECKSUM | MAMBA_CHECK_FINITE;
        if (mamba_target_usable(c.target)) {
            float *out;
            REQUIRE(mamba_open_memory(at, good.bytes, &c, &m, NULL) == MAMBA_OK);
            mamba_model_info(m, &info);
            out = (float *)malloc(37 * (size_t)info.n_vocab * sizeof(float));
            REQUIRE(out != NULL);
            run_some(m, out, (size_t)info.n_vocab);
            free(out);
            mamba_close(m);
        }
    }
    (void)munmap(p, room + 2 * page);
    free(good.data);
}

TEST(guard_pages)
{
    check_guarded(SMALL);
    check_guarded(BUILD_DIR "/golden/mamba1-odd.mamba");
    check_guarded(BUILD_DIR "/golden/mamba1-untied.mamba");
    check_guarded(BUILD_DIR "/golden/falcon-mamba.mamba");
    check_guarded(BUILD_DIR "/golden/mamba1-tales-bf16.mamba");
    check_guarded(BUILD_DIR "/golden/mamba1-tales-q8.mamba");
}

static void expect_snapshot(mamba_state *s, const blob *good, size_t at, int width, uint64_t value, mamba_status want,
                            const char *words)
{
    blob b = copy(good, good->bytes);
    mamba_error err;
    uint64_t hash;
    memcpy(b.data + at, &value, (size_t)width);
    hash = mbi_snapshot_hash(b.data, b.bytes);
    put64(b.data + 56, hash);
    CHECK_INT(mamba_state_restore(s, b.data, b.bytes, &err), want);
    CHECK_CONTAINS(err.what, words);
    CHECK_INT(mamba_state_position(s), 3);
    free(b.data);
}

/* [N01 N02 N07 N08] forged snapshots whose checksum is right */
TEST(snapshots)
{
    static const int32_t tokens[3] = {1, 2, 3};
    mamba_model *m = NULL;
    mamba_state *s = NULL;
    size_t i;
    blob good;
    REQUIRE(open_path(SMALL, strlen(SMALL), 0, &m, NULL) == MAMBA_OK);
    REQUIRE(mamba_state_create(m, NULL, &s, NULL) == MAMBA_OK);
    CHECK_INT(mamba_prefill(s, tokens, 3, NULL, 0, NULL), MAMBA_OK);
    good = new_blob(mamba_state_save_bytes(s));
    CHECK_INT(mamba_state_save(s, good.data, good.bytes, NULL, NULL), MAMBA_OK);
    expect_snapshot(s, &good, 0, 1, 'm', MAMBA_ERR_FORMAT, "not a state snapshot");
    expect_snapshot(s, &good, 8, 4, 0, MAMBA_ERR_VERSION, "version");
    expect_snapshot(s, &good, 8, 4, 1, MAMBA_ERR_VERSION, "version");
    expect_snapshot(s, &good, 8, 4, 3, MAMBA_ERR_VERSION, "version");
    expect_snapshot(s, &good, 12, 4, 0x04030201u, MAMBA_ERR_FORMAT, "byte order");
    expect_snapshot(s, &good, 16, 8, good.bytes + 4, MAMBA_ERR_FORMAT, "truncated");
    expect_snapshot(s, &good, 24, 8, 1, MAMBA_ERR_CHECK, "another model");
    expect_snapshot(s, &good, 32, 8, UINT64_MAX, MAMBA_ERR_FORMAT, "out of range");
    expect_snapshot(s, &good, 40, 8, 0, MAMBA_ERR_FORMAT, "number of floats");
    expect_snapshot(s, &good, 40, 8, (uint64_t)1 << 62, MAMBA_ERR_FORMAT, "number of floats");
    expect_snapshot(s, &good, 48, 8, 1, MAMBA_ERR_FORMAT, "reserved");
    for (i = 64; i < good.bytes; i += 4) {
        expect_snapshot(s, &good, i, 4, i % 8 ? 0x7f800000u : 0xffffffffu, MAMBA_ERR_NONFINITE, "not finite");
    }
    expect_snapshot(s, &good, 32, 8, 3, MAMBA_OK, ""); /* nothing changed: taken */
    {
        blob far = copy(&good, good.bytes); /* [R23] positions beyond 2^32 */
        put64(far.data + 32, ((uint64_t)1 << 33) - 1);
        put64(far.data + 56, mbi_snapshot_hash(far.data, far.bytes));
        CHECK_INT(mamba_state_restore(s, far.data, far.bytes, NULL), MAMBA_OK);
        CHECK_INT(mamba_step(s, 1, NULL, 0, NULL), MAMBA_OK);
        CHECK(mamba_state_position(s) == (uint64_t)1 << 33);
        free(far.data);
    }
    mamba_state_free(s);
    mamba_close(m);
    free(good.data);
}

TEST_MAIN("badfile")
{
    RUN(good_file);
    RUN(truncated);
    RUN(flipped_bits);
    RUN(header);
    RUN(sections);
    RUN(configuration);
    RUN(tensors);
    RUN(boundaries);
    RUN(random_damage);
    RUN(contents);
    RUN(selftest);
    RUN(paths);
    RUN(replaced);
    RUN(guard_pages);
    RUN(snapshots);
}
