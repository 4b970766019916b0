/*  golden.h: reads the expected values under tests/golden: safetensors files of known good shape.  It shares no
 *  code with the converter's reader, so that one bug can't hide in both.  Anything unexpected ends the program.
 */
#ifndef GOLDEN_H
#define GOLDEN_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    char *data;           /* the whole file */
    size_t bytes, header; /* header: bytes of JSON after the first 8 */
    char path[300];
} golden;

typedef struct {
    union {
        float *f;
        int32_t *i;
        void *p;
    } u;                  /* a copy; the caller frees it */
    size_t n;             /* elements, 0 if the file has no such tensor */
    int rank;
    size_t shape[4];
} golden_tensor;

static inline void golden_die(const char *path, const char *what)
{
    printf("%s: %s\n", path, what);
    exit(2);
}

/* All bytes of a file, followed by a NUL that is not counted. */
static inline char *golden_read(const char *path, size_t *bytes)
{
    FILE *f = fopen(path, "rb");
    char *data = NULL;
    long size = -1;
    if (f != NULL && fseek(f, 0, SEEK_END) == 0) {
        size = ftell(f);
        rewind(f);
    }
    if (size < 0 || (data = (char *)malloc((size_t)size + 1)) == NULL ||
        fread(data, 1, (size_t)size, f) != (size_t)size) {
        golden_die(path, "can't read");
        return NULL;
    }
    data[size] = 0;
    (void)fclose(f);
    *bytes = (size_t)size;
    return data;
}

/* The memory of a mamba_config, full of NaNs: no float may be read before it is written. */
static inline void *golden_alloc(void *user, size_t bytes, size_t align)
{
    void *p = NULL;
    (void)user;
    if (posix_memalign(&p, align < sizeof(void *) ? sizeof(void *) : align, bytes) != 0) {
        return NULL;
    }
    memset(p, 0xff, bytes);
    return p;
}

static inline void golden_free(void *user, void *p, size_t bytes)
{
    (void)user;
    (void)bytes;
    free(p);
}

static inline golden golden_open(const char *path)
{
    golden g;
    uint64_t n;
    memset(&g, 0, sizeof g);
    (void)snprintf(g.path, sizeof g.path, "%s", path);
    g.data = golden_read(path, &g.bytes);
    if (g.bytes < 8) {
        golden_die(path, "no safetensors file");
    }
    memcpy(&n, g.data, 8);
    if (n > g.bytes - 8) {
        golden_die(path, "header too long");
    }
    g.header = (size_t)n;
    return g;
}

static inline void golden_close(golden *g)
{
    free(g->data);
    memset(g, 0, sizeof *g);
}

/* The numbers of [a,b,c] behind key in the JSON text at p. */
static inline int golden_list(const char *p, const char *key, size_t out[4])
{
    int n = 0;
    p = strstr(p, key);
    if (p != NULL && (p = strchr(p, '[')) != NULL) {
        while (*p != ']' && n < 4) {
            out[n++] = (size_t)strtoull(p + 1, NULL, 10);
            p += strcspn(p + 1, ",]") + 1;
        }
    }
    return n;
}

/* Tensor of 4-byte elements (F32 or I32). */
static inline golden_tensor golden_get(const golden *g, const char *name)
{
    golden_tensor t;
    char key[80];
    char *json = (char *)malloc(g->header + 1);
    const char *p;
    size_t offsets[4] = {0, 0, 0, 0};
    int i;
    memset(&t, 0, sizeof t);
    if (json == NULL) {
        golden_die(g->path, "out of memory");
        return t;
    }
    memcpy(json, g->data + 8, g->header);
    json[g->header] = 0;
    (void)snprintf(key, sizeof key, "\"%s\":", name);
    p = strstr(json, key);
    if (p != NULL) {
        t.rank = golden_list(p, "\"shape\"", t.shape);
        t.n = 1;
        for (i = 0; i < t.rank; i++) {
            t.n *= t.shape[i];
        }
        if (golden_list(p, "\"data_offsets\"", offsets) != 2 || offsets[1] - offsets[0] != 4 * t.n ||
            8 + g->header + offsets[1] > g->bytes || (t.u.p = malloc(4 * t.n + 4)) == NULL) {
            golden_die(g->path, name);
            return t;
        }
        memcpy(t.u.p, g->data + 8 + g->header + offsets[0], 4 * t.n);
    }
    free(json);
    return t;
}

#endif /* GOLDEN_H */
