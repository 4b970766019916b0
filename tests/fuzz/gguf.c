/*  gguf.c: fuzzes what the converter reads of GGUF files: metadata, description, tokenizer, values.
 *
 *      clang -std=c99 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -I. \
 *          tests/fuzz/gguf.c -o build/fuzz-gguf -lm
 *      build/fuzz-gguf -max_len=200000 -timeout=5 -rss_limit_mb=512 CORPUS
 *
 *  An input is the file, held in memory. A crash, an abort, a leak, an allocation out of proportion
 *  and a broken promise all count as findings: a status without its message, an accepted tensor
 *  that cannot be read to its end, a tokenizer that does not give back the bytes of a text.
 *  With -DREPLAY the program reads files named on its command line instead (any compiler).
 */
#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>

static struct {
    const uint8_t *bytes;
    size_t size;
    long blocks;
} fuzz;

static int fuzz_fstat(struct stat *st)
{
    memset(st, 0, sizeof *st);
    st->st_mode = 0100000; /* a regular file */
    st->st_size = (off_t)fuzz.size;
    return 0;
}

static ssize_t fuzz_pread(void *buffer, size_t n, off_t offset)
{
    size_t at = (size_t)offset;
    if (at >= fuzz.size) {
        return 0;
    }
    n = n > fuzz.size - at ? fuzz.size - at : n;
    memcpy(buffer, fuzz.bytes + at, n);
    return (ssize_t)n;
}

static void *fuzz_realloc(void *p, size_t n)
{
    if (n > 40 * fuzz.size + (1u << 20)) {
        fprintf(stderr, "%zu bytes asked for a file of %zu\n", n, fuzz.size);
        abort();
    }
    fuzz.blocks += p == NULL;
    return realloc(p, n);
}

static void fuzz_free(void *p)
{
    fuzz.blocks -= p != NULL;
    free(p);
}

#define TL_MALLOC(n) fuzz_realloc(NULL, (n))
#define TL_REALLOC(p, n) fuzz_realloc((p), (n))
#define TL_FREE(p) fuzz_free(p)
#define TL_SYS_OPEN(path, flags, m) ((void)(path), 77)
#define TL_SYS_FSTAT(fd, st) fuzz_fstat(st)
#define TL_SYS_PREAD(fd, buf, n, off) fuzz_pread((buf), (n), (off))
#define TL_SYS_WRITE(fd, buf, n) ((void)(fd), (void)(buf), (void)(n), -1)
#define TL_SYS_FSYNC(fd) (-1)
#define TL_SYS_CLOSE(fd) 0
#define TL_SYS_RENAME(from, to) (-1)
#define TL_SYS_UNLINK(path) (-1)

#include "../../tools/base.h"

#define MAMBA_IMPLEMENTATION
#define MAMBA_NO_DISPATCH
#include "../../mamba.h"

#include "../../tools/config.h"
#include "../../tools/gguf_vocab.h"

static void fuzz_promise(int kept)
{
    if (!kept) {
        abort();
    }
}

static void fuzz_vocabulary(const ck_source *ck)
{
    static const char text[] = "The  cat's 12 \xc3\xa9\xcc\x81 <s>\n\xff";
    voc_ids ids = {0, 1, VOC_NONE};
    unsigned char *section = NULL;
    size_t bytes = 0, n, n_out;
    tl_error err;
    mamba_tokenizer t;
    int32_t out[100];
    char back[4000];
    memset(&err, 0, sizeof err);
    fuzz_promise(voc_read_gguf(ck_gguf(ck), &ck->files[0].file, ids, &section, &bytes, &err)
                 == err.status);
    fuzz_promise((section != NULL) == (err.status == TL_OK) && (section != NULL || err.message[0]));
    if (section != NULL) {
        fuzz_promise(mbi_tok_open(&t, section, bytes, NULL, NULL) == MAMBA_OK);
        t.memory = mbi_memory_or_default(NULL);
        if (mamba_encode(&t, text, sizeof text - 1, MAMBA_NO_NORMALIZE, out, 100, &n, NULL)
                == MAMBA_OK
            && mamba_decode(&t, out, n, back, sizeof back, &n_out, NULL) == MAMBA_OK) {
            fuzz_promise(n_out == sizeof text - 1 && memcmp(back, text, n_out) == 0);
        }
    }
    tl_free(section);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *copy = (uint8_t *)malloc(size != 0 ? size : 1); /* exactly as long */
    ck_source *ck = NULL;
    ck_model m;
    tl_error err;
    fuzz_promise(copy != NULL);
    if (size != 0) {
        memcpy(copy, data, size);
    }
    fuzz.bytes = copy;
    fuzz.size = size;
    memset(&err, 0, sizeof err);
    fuzz_promise(ck_open("x.gguf", &ck, &err) == err.status && (ck != NULL) == (err.status == TL_OK));
    fuzz_promise(ck != NULL || err.message[0] != '\0');
    for (size_t i = 0; ck != NULL && i < ck->tensor_count; i++) {
        const ck_tensor *t = &ck->tensors[i];
        float x[300];
        fuzz_promise(t->bytes <= size && ck_find_n(ck, t->name, t->name_length) == t);
        for (uint64_t at = 0; ck_types[t->dtype].is_float && at < t->count; at += 300) {
            uint64_t n = t->count - at < 300 ? t->count - at : 300;
            fuzz_promise(ck_read_f32(ck, t, at, n, x, &err) == TL_OK);
        }
    }
    if (ck != NULL) {
        fuzz_promise(ck_describe(ck, NULL, &m, &err) == err.status);
        fuzz_promise(err.status == TL_OK || err.message[0] != '\0');
        if (err.status == TL_OK) {
            fuzz_promise(m.embedding->count == m.padded_vocab * m.d_model && m.vocab_size >= 1);
            ck_model_free(&m);
        }
        fuzz_vocabulary(ck);
    }
    ck_close(ck);
    fuzz_promise(fuzz.blocks == 0);
    free(copy);
    return 0;
}

#ifdef REPLAY
int main(int argc, char **argv)
{
    static uint8_t input[1 << 20];
    for (int i = 1; i < argc; i++) {
        FILE *f = fopen(argv[i], "rb");
        if (f != NULL) {
            size_t n = fread(input, 1, sizeof input, f);
            (void)fclose(f);
            (void)LLVMFuzzerTestOneInput(input, n);
        }
    }
    return 0;
}
#endif
