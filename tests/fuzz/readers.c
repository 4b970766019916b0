/*  readers.c: fuzzes what the tools read: safetensors, torch files, JSON, pickles.
 *
 *      clang -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
 *          tests/fuzz/readers.c -o build/fuzz-readers
 *      build/fuzz-readers -max_len=4096 -timeout=5 -rss_limit_mb=512 CORPUS
 *
 *  The first byte of an input chooses the reader, the rest is the file, held in memory. A crash,
 *  an abort, a leak, an allocation out of proportion and a broken promise all count as findings: a
 *  status without its message, an accepted tensor that cannot be read to its end or found by name.
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
    st->st_mode = 0100000;   /* a regular file */
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
    if (n > 400 * fuzz.size + (1u << 20)) {
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

#define TL_MALLOC(n)                  fuzz_realloc(NULL, (n))
#define TL_REALLOC(p, n)              fuzz_realloc((p), (n))
#define TL_FREE(p)                    fuzz_free(p)
#define TL_SYS_OPEN(path, flags, m)   ((void)(path), 77)
#define TL_SYS_FSTAT(fd, st)          fuzz_fstat(st)
#define TL_SYS_PREAD(fd, buf, n, off) fuzz_pread((buf), (n), (off))
#define TL_SYS_WRITE(fd, buf, n)      ((void)(fd), (void)(buf), (void)(n), -1)
#define TL_SYS_FSYNC(fd)              (-1)
#define TL_SYS_CLOSE(fd)              0
#define TL_SYS_RENAME(from, to)       (-1)
#define TL_SYS_UNLINK(path)           (-1)

#include "../../tools/checkpoint.h"

static void fuzz_promise(int kept)
{
    if (!kept) {
        abort();
    }
}

static void fuzz_weights(const char *name)
{
    ck_source *ck = NULL;
    tl_error err;
    tl_status status;
    memset(&err, 0, sizeof err);
    status = ck_open_weights(name, &ck, &err);
    fuzz_promise(status == err.status && (status == TL_OK) == (ck != NULL));
    fuzz_promise(status == TL_OK || err.message[0] != '\0');
    for (size_t i = 0; ck != NULL && i < ck->tensor_count; i++) {
        const ck_tensor *t = &ck->tensors[i];
        char *out;
        fuzz_promise(t->bytes <= fuzz.size && ck_find_n(ck, t->name, t->name_length) == t);
        out = (char *)malloc(t->bytes != 0 ? (size_t)t->bytes : 1);
        fuzz_promise(out == NULL || ck_read_raw(ck, t, 0, t->count, out, &err) == TL_OK);
        free(out);
        (void)ck_verify(ck, t, &err);
    }
    ck_close(ck);
}

static void fuzz_json(unsigned flags)
{
    json_doc doc;
    tl_error err;
    char *text = (char *)malloc(fuzz.size != 0 ? fuzz.size : 1);
    fuzz_promise(text != NULL);
    memcpy(text, fuzz.bytes, fuzz.size);
    memset(&err, 0, sizeof err);
    fuzz_promise(json_parse(text, fuzz.size, "x", flags, &doc, &err) == err.status);
    for (size_t i = 0; i < doc.count; i++) {
        json_id id = (json_id)i;
        size_t n = 0;
        uint64_t whole;
        double number;
        tl_quoted q;
        (void)json_u64(&doc, id, &whole);
        (void)json_f64(&doc, id, &number);
        (void)json_brief(&q, &doc, id);
        for (json_id m = json_first(&doc, id); m != JSON_NONE; m = json_next(&doc, m)) {
            n++;
        }
        fuzz_promise(n == json_count(&doc, id));
    }
    json_free(&doc);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *copy;
    if (size == 0) {
        return 0;
    }
    copy = (uint8_t *)malloc(size);   /* exactly as long, so that one byte too far is noticed */
    fuzz_promise(copy != NULL);
    memcpy(copy, data + 1, size - 1);
    copy[size - 1] = 0;
    copy = size > 1 ? (uint8_t *)realloc(copy, size - 1) : copy;
    fuzz.bytes = copy;
    fuzz.size = size - 1;
    if (data[0] % 4 < 2) {
        fuzz_weights(data[0] % 4 == 0 ? "x.safetensors" : "x.bin");
    } else if (data[0] % 4 == 2) {
        fuzz_json(data[0] >> 2 & 1);
    } else {
        pkl_data pickle;
        tl_error err;
        memset(&err, 0, sizeof err);
        fuzz_promise(pkl_parse((const char *)copy, fuzz.size, "x", 0, data[0] >> 2 & 1, &pickle,
                               &err) == err.status);
        pkl_free(&pickle);
    }
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
