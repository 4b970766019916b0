/*  clang -std=c99 -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -I. \
 *      tests/fuzz/fuzz_model.c -o build/fuzz_model -lm
 *  build/fuzz_model -max_total_time=60 -timeout=10 -rss_limit_mb=2048 -max_len=4096      (or: make fuzz)
 *
 *  The first byte chooses what the others are: 0 a file as it is; 1 patches (16-bit offset, byte) of the metadata of a
 *  good file whose checksums are then made right; 2 the same of a good snapshot; 3 the same of metadata, opened with
 *  every check.  What opens must run; what is refused must say why and leave the state as it was.
 */
#define MAMBA_IMPLEMENTATION
#include "mamba.h"

#include <stdio.h>

#ifndef FUZZ_MODEL
#define FUZZ_MODEL "build/golden/mamba1-long.mamba"
#endif

static unsigned char *good, *work;
static size_t n_good, n_meta;
static mamba_model *model;
static mamba_state *state;

static void must(int ok)
{
    if (!ok) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void prepare(void)
{
    FILE *f = fopen(FUZZ_MODEL, "rb");
    void *p = NULL;
    long n;
    must(f != NULL && fseek(f, 0, SEEK_END) == 0 && (n = ftell(f)) > 4096 && fseek(f, 0, SEEK_SET) == 0);
    n_good = (size_t)n;
    p = mbi_default_alloc(NULL, n_good, 64);
    good = (unsigned char *)p;
    work = (unsigned char *)mbi_default_alloc(NULL, n_good, 64);
    must(good != NULL && work != NULL && fread(good, 1, n_good, f) == n_good);
    fclose(f);
    memcpy(work, good, n_good);
    n_meta = (size_t)mbi_load_u64(good + 24);
    must(mamba_open_memory(good, n_good, NULL, &model, NULL) == MAMBA_OK);
    must(mamba_state_create(model, NULL, &state, NULL) == MAMBA_OK);
    must(mamba_step(state, 1, NULL, 0, NULL) == MAMBA_OK);
}

static void patch(unsigned char *p, size_t n, const uint8_t *data, size_t size)
{
    for (; size >= 3; data += 3, size -= 3) {
        p[(data[0] | (size_t)data[1] << 8) % n] = data[2];
    }
}

static void open_and_run(const unsigned char *p, size_t n, uint32_t check)
{
    static const int32_t tokens[5] = {0, 1, 0, 1, 1};
    mamba_config c;
    mamba_model *m = NULL;
    mamba_error err;
    mamba_status status;
    memset(&c, 0, sizeof c);
    c.n_threads = 1;
    c.check = check;
    status = mamba_open_memory(p, n, &c, &m, &err);
    must((m != NULL) == (status == MAMBA_OK) && err.status == status);
    must(status == MAMBA_OK || (err.what[0] != 0 && err.name[0] != 0));
    if (m != NULL) {
        mamba_state *s = NULL;
        if (mamba_state_create(m, NULL, &s, NULL) == MAMBA_OK) {
            (void)mamba_prefill(s, tokens, 5, NULL, 0, NULL);
        }
        mamba_state_free(s);
        mamba_close(m);
    }
}

static void restore(const uint8_t *data, size_t size)
{
    size_t n = mamba_state_save_bytes(state);
    unsigned char *p = (unsigned char *)malloc(n);
    unsigned char *before = (unsigned char *)malloc(n);
    mamba_error err;
    uint64_t hash;
    must(p != NULL && before != NULL && mamba_state_save(state, p, n, NULL, NULL) == MAMBA_OK);
    memcpy(before, p, n);
    patch(p, n, data, size);
    hash = mbi_snapshot_hash(p, n);
    memcpy(p + 56, &hash, 8);
    if (mamba_state_restore(state, p, n, &err) == MAMBA_OK) {
        must(mamba_step(state, 1, NULL, 0, NULL) == MAMBA_OK);
        must(mamba_state_restore(state, before, n, NULL) == MAMBA_OK);
    } else {
        must(mamba_state_save(state, p, n, NULL, NULL) == MAMBA_OK && memcmp(p, before, n) == 0);
    }
    free(p);
    free(before);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (good == NULL) {
        prepare();
    }
    if (size == 0) {
        return 0;
    }
    if (data[0] % 4 == 0) {
        open_and_run(data + 1, size - 1, MAMBA_CHECK_ALL);
    } else if (data[0] % 4 == 2) {
        restore(data + 1, size - 1);
    } else {
        uint64_t hash;
        patch(work + 40, n_meta - 40, data + 1, size - 1);
        hash = mbi_hash_bytes(work + 40, n_meta - 40);
        memcpy(work + 32, &hash, 8);
        open_and_run(work, n_good, data[0] % 4 == 3 ? MAMBA_CHECK_ALL : 0);
        memcpy(work, good, n_meta);
    }
    return 0;
}
