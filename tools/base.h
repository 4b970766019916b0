/*  base.h: what the tools share: errors, memory, checked arithmetic, sorting, file input and
 *  output.
 *
 *  Include it before any system header (it selects the POSIX interfaces). Everything is static:
 *  each tool is one translation unit. Every allocation goes through TL_MALLOC, TL_REALLOC, TL_FREE
 *  and every system call through the TL_SYS_ macros, so that a test can define them first and let
 *  the k-th one fail. Sizes from files go through tl_add, tl_mul, tl_fits and nothing else.
 */
#ifndef TL_BASE_H
#define TL_BASE_H

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#ifndef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64
#endif

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#ifndef TL_MALLOC
#define TL_MALLOC(n)     malloc(n)
#define TL_REALLOC(p, n) realloc((p), (n))
#define TL_FREE(p)       free(p)
#endif
#ifndef TL_SYS_OPEN
#define TL_SYS_OPEN(path, flags, mode)  open((path), (flags), (mode))
#define TL_SYS_FSTAT(fd, st)            fstat((fd), (st))
#define TL_SYS_PREAD(fd, buf, n, off)   pread((fd), (buf), (n), (off))
#define TL_SYS_WRITE(fd, buf, n)        write((fd), (buf), (n))
#define TL_SYS_FSYNC(fd)                fsync(fd)
#define TL_SYS_CLOSE(fd)                close(fd)
#define TL_SYS_RENAME(from, to)         rename((from), (to))
#define TL_SYS_UNLINK(path)             unlink(path)
#endif

#if defined(__GNUC__)
#define TL_FN static __attribute__((unused))   /* a tool need not use every function of a header */
#define TL_PRINTF(f, a) __attribute__((format(printf, f, a)))
#else
#define TL_FN static
#define TL_PRINTF(f, a)
#endif

/* ---- errors ---------------------------------------------------------------------------------- */

typedef enum {
    TL_OK = 0,
    TL_ERR_USAGE,        /* the caller asked for something that cannot be */
    TL_ERR_IO,           /* open, read, write, rename failed */
    TL_ERR_MEMORY,       /* an allocation failed */
    TL_ERR_FORMAT,       /* the file contradicts its format */
    TL_ERR_UNSUPPORTED   /* the file is well-formed and asks for something these tools lack */
} tl_status;

typedef struct {
    tl_status status;
    char message[512];   /* names file, field or tensor, byte offset, value found, value allowed */
} tl_error;

/* Sets the error (the first one stays: what follows is a consequence) and returns `status`. */
TL_PRINTF(3, 4)
TL_FN tl_status tl_fail(tl_error *err, tl_status status, const char *format, ...)
{
    if (err != NULL && err->status == TL_OK) {
        va_list args;
        va_start(args, format);
        err->status = status;
        (void)vsnprintf(err->message, sizeof err->message, format, args);
        va_end(args);
    }
    return status;
}

/* Room for a piece of a file inside a message. */
typedef struct {
    char text[112];
} tl_quoted;

/* Bytes from a file, made fit for a terminal: printable ASCII stays, quotes, backslashes and all
 * else become \xNN, and what is long is cut with an ellipsis. */
TL_FN const char *tl_quote(tl_quoted *out, const char *bytes, size_t length)
{
    static const char hex[] = "0123456789abcdef";
    size_t o = 0;
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)bytes[i];
        if (o + 8 > sizeof out->text) {
            memcpy(out->text + o, "...", 3);
            o += 3;
            break;
        }
        if (c >= 0x20 && c < 0x7f && c != '\\' && c != '"') {
            out->text[o++] = (char)c;
        } else {
            out->text[o++] = '\\';
            out->text[o++] = 'x';
            out->text[o++] = hex[c >> 4];
            out->text[o++] = hex[c & 15];
        }
    }
    out->text[o] = '\0';
    return out->text;
}

/* The same for a path; of a long one the end stays, which names the file. */
TL_FN const char *tl_path(tl_quoted *out, const char *path)
{
    tl_quoted tail;
    size_t n = strlen(path), keep = 88;
    if (n <= 104) {
        return tl_quote(out, path, n);
    }
    tl_quote(&tail, path + n - keep, keep);
    (void)snprintf(out->text, sizeof out->text, "...%.104s", tail.text);
    return out->text;
}

/* ---- checked arithmetic ---------------------------------------------------------------------- */

TL_FN int tl_add(uint64_t a, uint64_t b, uint64_t *sum)
{
    *sum = a + b;
    return *sum >= a;
}

TL_FN int tl_mul(uint64_t a, uint64_t b, uint64_t *product)
{
    if (a != 0 && b > UINT64_MAX / a) {
        *product = 0;
        return 0;
    }
    *product = a * b;
    return 1;
}

/* Does [offset, offset + length) lie inside [0, size)? */
TL_FN int tl_fits(uint64_t offset, uint64_t length, uint64_t size)
{
    return offset <= size && length <= size - offset;
}

/* ---- memory ---------------------------------------------------------------------------------- */

TL_FN void *tl_malloc(uint64_t count, uint64_t size, tl_error *err)
{
    uint64_t bytes;
    void *p;
    if (!tl_mul(count, size, &bytes) || bytes > SIZE_MAX / 2) {
        tl_fail(err, TL_ERR_MEMORY, "out of memory: %llu items of %llu bytes",
                (unsigned long long)count, (unsigned long long)size);
        return NULL;
    }
    p = TL_MALLOC(bytes != 0 ? (size_t)bytes : 1);
    if (p == NULL) {
        tl_fail(err, TL_ERR_MEMORY, "out of memory: %llu bytes", (unsigned long long)bytes);
    }
    return p;
}

TL_FN void *tl_calloc(uint64_t count, uint64_t size, tl_error *err)
{
    void *p = tl_malloc(count, size, err);
    if (p != NULL) {
        memset(p, 0, (size_t)(count * size));
    }
    return p;
}

/* Like realloc, but a size of 0 asks for one byte; on failure the old block stays valid. */
TL_FN void *tl_realloc(void *p, uint64_t count, uint64_t size, tl_error *err)
{
    uint64_t bytes;
    void *q = NULL;
    if (tl_mul(count, size, &bytes) && bytes <= SIZE_MAX / 2) {
        q = TL_REALLOC(p, bytes != 0 ? (size_t)bytes : 1);
    }
    if (q == NULL) {
        tl_fail(err, TL_ERR_MEMORY, "out of memory: %llu items of %llu bytes",
                (unsigned long long)count, (unsigned long long)size);
    }
    return q;
}

TL_FN void tl_free(void *p)
{
    if (p != NULL) {
        TL_FREE(p);
    }
}

/* Makes room for one more item in an array that grows by half; on failure *items stays. */
TL_FN int tl_grow(void **items, size_t *capacity, size_t used, size_t size, tl_error *err)
{
    size_t more;
    void *p;
    if (used < *capacity) {
        return 1;
    }
    more = used + used / 2 + 16;
    p = tl_realloc(*items, more, size, err);
    if (p == NULL) {
        return 0;
    }
    *items = p;
    *capacity = more;
    return 1;
}

TL_FN char *tl_strndup(const char *text, size_t length, tl_error *err)
{
    char *copy = (char *)tl_malloc((uint64_t)length + 1, 1, err);
    if (copy != NULL) {
        if (length != 0) {
            memcpy(copy, text, length);
        }
        copy[length] = '\0';
    }
    return copy;
}

/* "folder/name" in new memory. */
TL_FN char *tl_join(const char *folder, const char *name, size_t name_length, tl_error *err)
{
    size_t n = strlen(folder);
    char *path = (char *)tl_malloc((uint64_t)n + name_length + 2, 1, err);
    if (path != NULL) {
        memcpy(path, folder, n);
        if (n != 0 && folder[n - 1] != '/') {
            path[n++] = '/';
        }
        memcpy(path + n, name, name_length);
        path[n + name_length] = '\0';
    }
    return path;
}

/* ---- hashing, sorting, searching ------------------------------------------------------------- */

/* FNV-1a. Collisions cost a comparison, never a quadratic search: see tl_sort. */
TL_FN uint32_t tl_hash(const char *bytes, size_t length)
{
    uint32_t h = 2166136261u;
    for (size_t i = 0; i < length; i++) {
        h = (h ^ (unsigned char)bytes[i]) * 16777619u;
    }
    return h;
}

TL_FN int tl_compare(const char *a, size_t a_length, const char *b, size_t b_length)
{
    size_t n = a_length < b_length ? a_length : b_length;
    int order = n != 0 ? memcmp(a, b, n) : 0;
    if (order != 0) {
        return order;
    }
    return a_length < b_length ? -1 : a_length > b_length;
}

/* Orders two items by their indices; ties of the upper 32 bits of a sort key only. */
typedef int (*tl_order_fn)(const void *context, uint32_t a, uint32_t b);

TL_FN int tl_key_order(uint64_t a, uint64_t b, tl_order_fn order, const void *context)
{
    uint32_t x = (uint32_t)(a >> 32), y = (uint32_t)(b >> 32);
    if (x != y) {
        return x < y ? -1 : 1;
    }
    return order(context, (uint32_t)a, (uint32_t)b);
}

/* Stable merge sort of keys (hash << 32 | index): by hash, ties by `order`. `spare` has n places.
 * n log n whatever the input, so hostile names cannot buy quadratic time. */
TL_FN void tl_sort(uint64_t *keys, uint64_t *spare, size_t n, tl_order_fn order,
                   const void *context)
{
    for (size_t width = 1; width < n; width *= 2) {
        for (size_t lo = 0; lo < n; lo += 2 * width) {
            size_t mid = n - lo < width ? n : lo + width;
            size_t hi = n - lo < 2 * width ? n : lo + 2 * width;
            size_t i = lo, j = mid;
            for (size_t k = lo; k < hi; k++) {
                if (i < mid && (j >= hi || tl_key_order(keys[i], keys[j], order, context) <= 0)) {
                    spare[k] = keys[i++];
                } else {
                    spare[k] = keys[j++];
                }
            }
        }
        memcpy(keys, spare, n * sizeof keys[0]);
    }
}

/* ---- reading files --------------------------------------------------------------------------- */

typedef struct {
    int fd;
    uint64_t size;
    char *path;    /* for messages */
} tl_file;

TL_FN void tl_file_close(tl_file *file)
{
    if (file->path != NULL) {
        (void)TL_SYS_CLOSE(file->fd);
        tl_free(file->path);
    }
    file->path = NULL;
    file->fd = -1;
    file->size = 0;
}

/* Opens a regular file once; every later check and read uses this descriptor. Symbolic links are
 * followed (caches of published models consist of them). O_NONBLOCK: a FIFO must not hold the
 * program. */
TL_FN tl_status tl_file_open(tl_file *file, const char *path, tl_error *err)
{
    struct stat st;
    tl_quoted q;
    int fd;
    file->fd = -1;
    file->size = 0;
    file->path = tl_strndup(path, strlen(path), err);
    if (file->path == NULL) {
        return TL_ERR_MEMORY;
    }
    tl_path(&q, path);
    do {
        fd = TL_SYS_OPEN(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY, 0);
    } while (fd < 0 && errno == EINTR);
    if (fd < 0) {
        tl_fail(err, TL_ERR_IO, "%s: cannot open: %s", q.text, strerror(errno));
        tl_free(file->path);
        file->path = NULL;
        return TL_ERR_IO;
    }
    file->fd = fd;
    if (TL_SYS_FSTAT(fd, &st) != 0) {
        tl_fail(err, TL_ERR_IO, "%s: cannot read its size: %s", q.text, strerror(errno));
        tl_file_close(file);
        return TL_ERR_IO;
    }
    if (!S_ISREG(st.st_mode) || st.st_size < 0) {
        tl_fail(err, TL_ERR_IO, "%s: found %s, allowed: a regular file", q.text,
                S_ISDIR(st.st_mode) ? "a folder" : "a device, pipe or socket");
        tl_file_close(file);
        return TL_ERR_IO;
    }
    file->size = (uint64_t)st.st_size;
    return TL_OK;
}

/* Reads exactly n bytes at offset. */
TL_FN tl_status tl_file_read(const tl_file *file, uint64_t offset, void *buffer, size_t n,
                             tl_error *err)
{
    char *at = (char *)buffer;
    tl_quoted q;
    tl_path(&q, file->path);
    if (!tl_fits(offset, n, file->size)) {
        return tl_fail(err, TL_ERR_FORMAT,
                       "%s: byte %llu: found a need of %llu bytes, the file ends at %llu", q.text,
                       (unsigned long long)offset, (unsigned long long)n,
                       (unsigned long long)file->size);
    }
    while (n > 0) {
        ssize_t got =
            TL_SYS_PREAD(file->fd, at, n < ((size_t)1 << 30) ? n : (size_t)1 << 30, (off_t)offset);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            return tl_fail(err, TL_ERR_IO, "%s: byte %llu: cannot read: %s", q.text,
                           (unsigned long long)offset, strerror(errno));
        }
        if (got == 0) {
            return tl_fail(err, TL_ERR_IO,
                           "%s: byte %llu: the file became shorter while being read", q.text,
                           (unsigned long long)offset);
        }
        at += got;
        offset += (uint64_t)got;
        n -= (size_t)got;
    }
    return TL_OK;
}

/* All of a file of at most `limit` bytes, with a NUL behind it that *length does not count. */
TL_FN tl_status tl_read_all(const char *path, uint64_t limit, char **text, size_t *length,
                            tl_error *err)
{
    tl_file file;
    tl_status status = tl_file_open(&file, path, err);
    char *buffer = NULL;
    tl_quoted q;
    *text = NULL;
    *length = 0;
    if (status != TL_OK) {
        return status;
    }
    if (file.size > limit) {
        status = tl_fail(err, TL_ERR_UNSUPPORTED, "%s: found %llu bytes, allowed: at most %llu",
                         tl_path(&q, path), (unsigned long long)file.size,
                         (unsigned long long)limit);
    } else {
        buffer = (char *)tl_malloc(file.size + 1, 1, err);
        status =
            buffer == NULL ? TL_ERR_MEMORY : tl_file_read(&file, 0, buffer, (size_t)file.size, err);
    }
    if (status == TL_OK) {
        buffer[file.size] = '\0';
        *text = buffer;
        *length = (size_t)file.size;
    } else {
        tl_free(buffer);
    }
    tl_file_close(&file);
    return status;
}

/* Is there something at this path? (A look before a choice of layout; opening decides.) */
TL_FN int tl_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

/* ---- writing --------------------------------------------------------------------------------- */

/* Writes all n bytes; `path` is for the message. */
TL_FN tl_status tl_write_all(int fd, const void *bytes, size_t n, const char *path, tl_error *err)
{
    const char *at = (const char *)bytes;
    tl_quoted q;
    while (n > 0) {
        ssize_t put = TL_SYS_WRITE(fd, at, n < ((size_t)1 << 30) ? n : (size_t)1 << 30);
        if (put < 0 && errno == EINTR) {
            continue;
        }
        if (put <= 0) {
            return tl_fail(err, TL_ERR_IO, "%s: cannot write: %s", tl_path(&q, path),
                           put < 0 ? strerror(errno) : "no progress");
        }
        at += put;
        n -= (size_t)put;
    }
    return TL_OK;
}

/* ---- little-endian and 16-bit floats --------------------------------------------------------- */

TL_FN uint16_t tl_le16(const unsigned char *p)
{
    return (uint16_t)(p[0] | (unsigned)p[1] << 8);
}

TL_FN uint32_t tl_le32(const unsigned char *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

TL_FN uint64_t tl_le64(const unsigned char *p)
{
    return (uint64_t)tl_le32(p) | (uint64_t)tl_le32(p + 4) << 32;
}

TL_FN float tl_f32_of_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

TL_FN float tl_f32_of_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, fraction = h & 1023u;
    if (exponent == 31) {
        return tl_f32_of_bits(sign | 0x7f800000u | fraction << 13);
    }
    if (exponent != 0) {
        return tl_f32_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
    }
    if (fraction == 0) {
        return tl_f32_of_bits(sign);
    }
    /* a denormal half is a normal float */
    for (exponent = 113; (fraction & 1024u) == 0; exponent--) {
        fraction <<= 1;
    }
    return tl_f32_of_bits(sign | exponent << 23 | (fraction & 1023u) << 13);
}

TL_FN float tl_f32_of_bf16(uint16_t h)
{
    return tl_f32_of_bits((uint32_t)h << 16);
}

#endif /* TL_BASE_H */
