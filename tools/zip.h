/*  zip.h: the directory of a zip archive as PyTorch writes it; stored (uncompressed) records only.
 *
 *  One canonical reading or none: a single end record without a comment at the very end, a
 *  directory that is consumed exactly and ends where the end records begin, local headers that
 *  agree with the directory, disjoint records, unique harmless names. Genuine torch files have the
 *  general purpose bits 3 (sizes follow the data) and 11 (UTF-8 names), data descriptors, an "FB"
 *  extra field that pads the data to 64 bytes, and zip64 end records; all of that is accepted and
 *  checked. Nothing is ever inflated.
 *
 *      zip_archive zip;
 *      if (zip_open(&zip, &file, &err) == TL_OK) {
 *          const zip_entry *e = zip_find(&zip, "archive/data.pkl", 16);
 *          ... e->offset, e->size: the bytes in the file ...
 *          zip_free(&zip);
 *      }
 */
#ifndef TL_ZIP_H
#define TL_ZIP_H

#include "base.h"
#include "json.h"   /* json_utf8 */

#define ZIP_MAX_DIRECTORY ((uint64_t)64 << 20)

typedef struct {
    const char *name;
    uint32_t name_length;
    uint32_t crc;
    uint32_t flags;
    uint64_t header;     /* offset of the local header */
    uint64_t offset;     /* offset of the data */
    uint64_t size;       /* bytes of data */
    uint64_t end;        /* behind the data and its descriptor */
} zip_entry;

typedef struct {
    zip_entry *entries;
    size_t count;
    uint64_t *by_name;   /* hash << 32 | index, sorted */
    unsigned char *directory;
    uint64_t directory_offset, directory_size;
} zip_archive;

TL_FN void zip_free(zip_archive *zip)
{
    tl_free(zip->entries);
    tl_free(zip->by_name);
    tl_free(zip->directory);
    memset(zip, 0, sizeof *zip);
}

/* CRC-32 of zip. Start with 0; the result of one piece is the start of the next. */
TL_FN uint32_t zip_crc(uint32_t crc, const unsigned char *p, size_t n)
{
    static const uint32_t table[16] = {/* the remainders of the 16 possible nibbles */
                                       0x00000000u, 0x1db71064u, 0x3b6e20c8u, 0x26d930acu,
                                       0x76dc4190u, 0x6b6b51f4u, 0x4db26158u, 0x5005713cu,
                                       0xedb88320u, 0xf00f9344u, 0xd6d6a3e8u, 0xcb61b38cu,
                                       0x9b64c2b0u, 0x86d3d2d4u, 0xa00ae278u, 0xbdbdf21cu};
    crc = ~crc;
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        crc = crc >> 4 ^ table[crc & 15];
        crc = crc >> 4 ^ table[crc & 15];
    }
    return ~crc;
}

/* Says what is wrong at a byte of the file. */
TL_FN tl_status zip_fault(const tl_file *file, uint64_t at, const char *found, const char *allowed,
                          tl_error *err)
{
    tl_quoted q;
    return tl_fail(err, TL_ERR_FORMAT, "%s: byte %llu: zip: found %s, allowed: %s",
                   tl_path(&q, file->path), (unsigned long long)at, found,
                   allowed);
}

TL_FN tl_status zip_fault_entry(const tl_file *file, const zip_entry *e, const char *found,
                                const char *allowed, tl_error *err)
{
    tl_quoted q, name;
    return tl_fail(err, TL_ERR_FORMAT, "%s: byte %llu: zip record \"%s\": found %s, allowed: %s",
                   tl_path(&q, file->path), (unsigned long long)e->header,
                   tl_quote(&name, e->name, e->name_length), found, allowed);
}

/* The end record: the last 22 bytes. Another signature in reach whose comment would also end the
 * file makes the archive ambiguous. */
TL_FN tl_status zip_find_end(const tl_file *file, unsigned char end[22], tl_error *err)
{
    uint64_t reach = file->size < 65557 ? file->size : 65557, from = file->size - reach;
    unsigned char *tail;
    size_t candidates = 0, last = 0;
    tl_status status;
    if (file->size < 22) {
        return zip_fault(file, 0, "a file too short for a zip archive", "at least 22 bytes", err);
    }
    tail = (unsigned char *)tl_malloc(reach, 1, err);
    if (tail == NULL) {
        return TL_ERR_MEMORY;
    }
    status = tl_file_read(file, from, tail, (size_t)reach, err);
    for (size_t i = 0; status == TL_OK && i + 22 <= reach; i++) {
        if (tl_le32(tail + i) == 0x06054b50u && i + 22 + tl_le16(tail + i + 20) == reach) {
            candidates++;
            last = i;
        }
    }
    if (status == TL_OK && candidates == 0) {
        status = zip_fault(file, file->size - 22, "no end record (is the file cut short?)",
                           "one end record at the end of the file", err);
    } else if (status == TL_OK && candidates > 1) {
        status = zip_fault(file, from + last, "more than one end record", "exactly one", err);
    } else if (status == TL_OK && last + 22 != reach) {
        status = zip_fault(file, from + last, "an archive comment", "no comment", err);
    }
    if (status == TL_OK) {
        memcpy(end, tail + last, 22);
    }
    tl_free(tail);
    return status;
}

/* Finds where the directory lies and how many entries it declares. */
TL_FN tl_status zip_locate(zip_archive *zip, const tl_file *file, uint64_t *count, tl_error *err)
{
    unsigned char end[22] = {0}, locator[20], wide[56];
    uint64_t end_at, offset, size, entries, record, sum;
    tl_status status = zip_find_end(file, end, err);
    if (status != TL_OK) {
        return status;
    }
    end_at = file->size - 22;
    entries = tl_le16(end + 10);
    size = tl_le32(end + 12);
    offset = tl_le32(end + 16);
    if (tl_le16(end + 4) != 0 || tl_le16(end + 6) != 0 || tl_le16(end + 8) != entries) {
        return zip_fault(file, end_at, "an archive of several disks", "one disk", err);
    }
    if (end_at >= 20) {
        status = tl_file_read(file, end_at - 20, locator, 20, err);
        if (status != TL_OK) {
            return status;
        }
    }
    if (end_at >= 20 && tl_le32(locator) == 0x07064b50u) {
        record = tl_le64(locator + 8);
        if (tl_le32(locator + 4) != 0 || tl_le32(locator + 16) != 1) {
            return zip_fault(file, end_at - 20, "an archive of several disks", "one disk", err);
        }
        if (end_at < 76 || record != end_at - 76) {
            return zip_fault(file, end_at - 20, "a zip64 end record elsewhere",
                             "directly before its locator", err);
        }
        status = tl_file_read(file, record, wide, 56, err);
        if (status != TL_OK) {
            return status;
        }
        if (tl_le32(wide) != 0x06064b50u || tl_le64(wide + 4) != 44) {
            return zip_fault(file, record, "no zip64 end record of 56 bytes", "one", err);
        }
        if (tl_le32(wide + 16) != 0 || tl_le32(wide + 20) != 0 ||
            tl_le64(wide + 24) != tl_le64(wide + 32)) {
            return zip_fault(file, record, "an archive of several disks", "one disk", err);
        }
        if ((entries != 0xffff && entries != tl_le64(wide + 32)) ||
            (size != 0xffffffffu && size != tl_le64(wide + 40)) ||
            (offset != 0xffffffffu && offset != tl_le64(wide + 48))) {
            return zip_fault(file, record, "two end records that disagree", "agreement", err);
        }
        entries = tl_le64(wide + 32);
        size = tl_le64(wide + 40);
        offset = tl_le64(wide + 48);
        end_at = record;
    }
    if (!tl_add(offset, size, &sum) || sum != end_at) {
        return zip_fault(file, end_at, "a directory that ends elsewhere",
                         "directly before the end record", err);
    }
    if (size > ZIP_MAX_DIRECTORY || entries > size / 46) {
        return zip_fault(file, end_at, "more entries than the directory has room for",
                         "one per 46 bytes, at most 64 MiB", err);
    }
    zip->directory_offset = offset;
    zip->directory_size = size;
    *count = entries;
    return TL_OK;
}

/* Walks the extra fields; with `e`, takes the zip64 values that stand for the 32-bit sentinels. */
TL_FN int zip_extra(const unsigned char *p, size_t n, zip_entry *e, uint64_t *packed)
{
    size_t at = 0;
    int wide = 0;
    while (n - at >= 4) {
        unsigned id = tl_le16(p + at), length = tl_le16(p + at + 2);
        const unsigned char *field = p + at + 4;
        if (length > n - at - 4) {
            return 0;
        }
        if (id == 1 && e != NULL) {
            uint64_t *want[3];
            int wanted = 0;
            if (wide++) {
                return 0;
            }
            if (e->size == 0xffffffffu) {
                want[wanted++] = &e->size;
            }
            if (*packed == 0xffffffffu) {
                want[wanted++] = packed;
            }
            if (e->header == 0xffffffffu) {
                want[wanted++] = &e->header;
            }
            if (length < 8 * (unsigned)wanted) {
                return 0;
            }
            for (int i = 0; i < wanted; i++) {
                *want[i] = tl_le64(field + 8 * i);
            }
        }
        at += 4 + length;
    }
    return at == n;
}

TL_FN int zip_name_ok(const char *name, size_t n)
{
    size_t start = 0;
    if (n == 0 || name[0] == '/') {
        return 0;
    }
    for (size_t i = 0; i <= n; i++) {
        if (i == n || name[i] == '/') {
            if (i - start == 2 && name[start] == '.' && name[start + 1] == '.') {
                return 0;
            }
            start = i + 1;
        }
        if (i < n && (name[i] == '\0' || name[i] == '\\' || name[i] == ':')) {
            return 0;
        }
    }
    for (size_t i = 0; i < n;) {
        size_t step = json_utf8((const unsigned char *)name + i, n - i);
        if (step == 0) {
            return 0;
        }
        i += step;
    }
    return 1;
}

/* What a record may not ask for. */
TL_FN tl_status zip_supported(const tl_file *file, const zip_entry *e, unsigned method,
                              tl_error *err)
{
    char found[48];
    if ((e->flags & ~0x0808u) != 0) {
        const char *what = (e->flags & 1) != 0    ? "an encrypted record (flag 0x1)"
                         : (e->flags & 0x20) != 0 ? "a patched record (flag 0x20)"
                         : (e->flags & 0x40) != 0 ? "strong encryption (flag 0x40)" : NULL;
        (void)snprintf(found, sizeof found, "flags 0x%04x", e->flags);
        return zip_fault_entry(file, e, what != NULL ? what : found, "bits 3 and 11 only", err);
    }
    if (method != 0) {
        (void)snprintf(found, sizeof found, "compression method %u", method);
        return zip_fault_entry(file, e, found, "method 0 (stored), as torch.save writes", err);
    }
    return TL_OK;
}

/* One entry of the directory at byte `at` of it; *length becomes its size. */
TL_FN tl_status zip_entry_read(zip_archive *zip, const tl_file *file, size_t at, zip_entry *e,
                               size_t *length, tl_error *err)
{
    const unsigned char *p = zip->directory + at;
    uint64_t left = zip->directory_size - at, packed, where = zip->directory_offset + at;
    size_t name_length, extra_length;
    tl_status status;
    if (left < 46 || tl_le32(p) != 0x02014b50u) {
        return zip_fault(file, where, "no directory entry", "as many entries as declared", err);
    }
    name_length = tl_le16(p + 28);
    extra_length = tl_le16(p + 30);
    *length = 46 + name_length + extra_length + tl_le16(p + 32);
    if (*length > left) {
        return zip_fault(file, where, "an entry that leaves the directory", "entries inside it",
                         err);
    }
    e->flags = tl_le16(p + 8);
    e->crc = tl_le32(p + 16);
    packed = tl_le32(p + 20);
    e->size = tl_le32(p + 24);
    e->header = tl_le32(p + 42);
    e->name = (const char *)p + 46;
    e->name_length = (uint32_t)name_length;
    if (!zip_extra(p + 46 + name_length, extra_length, e, &packed)) {
        return zip_fault(file, where, "extra fields that do not fit their length", "whole fields",
                         err);
    }
    if (!zip_name_ok(e->name, name_length)) {
        return zip_fault_entry(file, e, "this name",
                               "relative UTF-8 names without '..', '\\', ':' and NUL", err);
    }
    status = zip_supported(file, e, tl_le16(p + 10), err);
    if (status != TL_OK) {
        return status;
    }
    if (tl_le16(p + 34) != 0) {
        return zip_fault_entry(file, e, "a record on another disk", "one disk", err);
    }
    if (packed != e->size) {
        return zip_fault_entry(file, e, "two sizes that differ", "equal sizes of a stored record",
                               err);
    }
    return TL_OK;
}

/* The descriptor behind the data: signature, CRC, two sizes of 4 or (zip64) 8 bytes. */
TL_FN tl_status zip_descriptor(const tl_file *file, zip_entry *e, uint64_t limit, tl_error *err)
{
    unsigned char d[24];
    uint64_t at = e->offset + e->size, left = limit - at;
    size_t n = left < 24 ? (size_t)left : 24;
    tl_status status = tl_file_read(file, at, d, n, err);
    if (status != TL_OK) {
        return status;
    }
    if (n >= 16 && tl_le32(d) == 0x08074b50u && tl_le32(d + 4) == e->crc) {
        if (tl_le32(d + 8) == e->size && tl_le32(d + 12) == e->size) {
            e->end = at + 16;
            return TL_OK;
        }
        if (n == 24 && tl_le64(d + 8) == e->size && tl_le64(d + 16) == e->size) {
            e->end = at + 24;
            return TL_OK;
        }
    }
    return zip_fault_entry(file, e, "a data descriptor that disagrees with the directory",
                           "agreement", err);
}

/* Compares the local header with the directory's entry and finds the data. */
TL_FN tl_status zip_local(const zip_archive *zip, const tl_file *file, zip_entry *e,
                          unsigned char *scratch, tl_error *err)
{
    unsigned char h[30];
    uint64_t limit = zip->directory_offset;
    size_t name_length, extra_length;
    tl_status status;
    int deferred = (e->flags & 8) != 0, same;
    if (!tl_fits(e->header, 30, limit)) {
        return zip_fault_entry(file, e, "a local header outside the data", "before the directory",
                               err);
    }
    status = tl_file_read(file, e->header, h, 30, err);
    if (status != TL_OK) {
        return status;
    }
    name_length = tl_le16(h + 26);
    extra_length = tl_le16(h + 28);
    if (tl_le32(h) != 0x04034b50u) {
        return zip_fault_entry(file, e, "no local header", "one where the directory points", err);
    }
    if (!tl_fits(e->header + 30, name_length + extra_length, limit)) {
        return zip_fault_entry(file, e, "a local header that runs into the directory", "before it",
                               err);
    }
    status = tl_file_read(file, e->header + 30, scratch, name_length + extra_length, err);
    if (status != TL_OK) {
        return status;
    }
    if (name_length != e->name_length || memcmp(scratch, e->name, name_length) != 0) {
        return zip_fault_entry(file, e, "another name in its local header", "the directory's name",
                               err);
    }
    if (tl_le16(h + 6) != e->flags || tl_le16(h + 8) != 0) {
        return zip_fault_entry(file, e, "other flags or method in its local header",
                               "the directory's", err);
    }
    if (!zip_extra(scratch + name_length, extra_length, NULL, NULL)) {
        return zip_fault_entry(file, e, "extra fields that do not fit their length", "whole fields",
                               err);
    }
    same = tl_le32(h + 14) == e->crc;
    for (int i = 18; i <= 22; i += 4) {
        uint32_t size = tl_le32(h + i);
        same = same && (size == e->size || (size == 0xffffffffu && e->size >= 0xffffffffu));
    }
    if (!same &&
        !(deferred && tl_le32(h + 14) == 0 && tl_le32(h + 18) == 0 && tl_le32(h + 22) == 0)) {
        return zip_fault_entry(file, e, "other sizes or checksum in its local header",
                               "the directory's", err);
    }
    e->offset = e->header + 30 + name_length + extra_length;
    if (!tl_fits(e->offset, e->size, limit)) {
        return zip_fault_entry(file, e, "a size that runs into the directory or leaves the file",
                               "data before the directory", err);
    }
    e->end = e->offset + e->size;
    return deferred ? zip_descriptor(file, e, limit, err) : TL_OK;
}

TL_FN int zip_name_order(const void *context, uint32_t a, uint32_t b)
{
    const zip_entry *e = (const zip_entry *)context;
    return tl_compare(e[a].name, e[a].name_length, e[b].name, e[b].name_length);
}

TL_FN int zip_offset_order(const void *context, uint32_t a, uint32_t b)
{
    const zip_entry *e = (const zip_entry *)context;
    return e[a].header < e[b].header ? -1 : e[a].header > e[b].header;
}

/* Refuses overlaps and duplicate names; leaves by_name sorted. */
TL_FN tl_status zip_check(zip_archive *zip, const tl_file *file, uint64_t *spare, tl_error *err)
{
    zip_entry *e = zip->entries;
    for (size_t i = 0; i < zip->count; i++) {
        zip->by_name[i] = i;
    }
    tl_sort(zip->by_name, spare, zip->count, zip_offset_order, e);
    for (size_t i = 1; i < zip->count; i++) {
        const zip_entry *a = &e[zip->by_name[i - 1]], *b = &e[zip->by_name[i]];
        if (a->end > b->header) {
            return zip_fault_entry(file, b, "a record that overlaps another", "disjoint records",
                                   err);
        }
    }
    for (size_t i = 0; i < zip->count; i++) {
        zip->by_name[i] = (uint64_t)tl_hash(e[i].name, e[i].name_length) << 32 | i;
    }
    tl_sort(zip->by_name, spare, zip->count, zip_name_order, e);
    for (size_t i = 1; i < zip->count; i++) {
        if (tl_key_order(zip->by_name[i - 1], zip->by_name[i], zip_name_order, e) == 0) {
            return zip_fault_entry(file, &e[(uint32_t)zip->by_name[i]], "this name twice", "once",
                                   err);
        }
    }
    return TL_OK;
}

TL_FN tl_status zip_read_directory(zip_archive *zip, const tl_file *file, tl_error *err)
{
    unsigned char *scratch;
    size_t at = 0;
    tl_status status = tl_file_read(file, zip->directory_offset, zip->directory,
                                    (size_t)zip->directory_size, err);
    for (size_t i = 0; status == TL_OK && i < zip->count; i++) {
        size_t length = 0;
        status = zip_entry_read(zip, file, at, &zip->entries[i], &length, err);
        at += length;
    }
    if (status == TL_OK && at != zip->directory_size) {
        status = zip_fault(file, zip->directory_offset + at, "more directory than entries",
                           "as many entries as declared", err);
    }
    if (status != TL_OK) {
        return status;
    }
    scratch = (unsigned char *)tl_malloc(2 * 65536, 1, err);
    if (scratch == NULL) {
        return TL_ERR_MEMORY;
    }
    for (size_t i = 0; status == TL_OK && i < zip->count; i++) {
        status = zip_local(zip, file, &zip->entries[i], scratch, err);
    }
    tl_free(scratch);
    return status;
}

TL_FN tl_status zip_open(zip_archive *zip, const tl_file *file, tl_error *err)
{
    uint64_t count = 0, *spare = NULL;
    tl_status status;
    memset(zip, 0, sizeof *zip);
    status = zip_locate(zip, file, &count, err);
    if (status != TL_OK) {
        return status;
    }
    zip->count = (size_t)count;
    zip->directory = (unsigned char *)tl_malloc(zip->directory_size, 1, err);
    zip->entries = (zip_entry *)tl_calloc(count, sizeof zip->entries[0], err);
    zip->by_name = (uint64_t *)tl_malloc(count, sizeof zip->by_name[0], err);
    spare = (uint64_t *)tl_malloc(count, sizeof spare[0], err);
    if (zip->directory == NULL || zip->entries == NULL || zip->by_name == NULL || spare == NULL) {
        status = TL_ERR_MEMORY;
    } else {
        status = zip_read_directory(zip, file, err);
    }
    if (status == TL_OK) {
        status = zip_check(zip, file, spare, err);
    }
    tl_free(spare);
    if (status != TL_OK) {
        zip_free(zip);
    }
    return status;
}

TL_FN const zip_entry *zip_find(const zip_archive *zip, const char *name, size_t length)
{
    uint32_t hash = tl_hash(name, length);
    size_t lo = 0, hi = zip->count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        const zip_entry *e = &zip->entries[(uint32_t)zip->by_name[mid]];
        uint32_t h = (uint32_t)(zip->by_name[mid] >> 32);
        int order =
            hash != h ? (hash < h ? -1 : 1) : tl_compare(name, length, e->name, e->name_length);
        if (order == 0) {
            return e;
        }
        if (order < 0) {
            hi = mid;
        } else {
            lo = mid + 1;
        }
    }
    return NULL;
}

/* Reads a whole record of at most `limit` bytes and verifies its CRC; the caller frees. */
TL_FN tl_status zip_read(const tl_file *file, const zip_entry *e, uint64_t limit, char **text,
                         tl_error *err)
{
    tl_status status;
    *text = NULL;
    if (e->size > limit) {
        return zip_fault_entry(file, e, "more bytes than this reader takes", "a smaller record",
                               err);
    }
    *text = (char *)tl_malloc(e->size, 1, err);
    if (*text == NULL) {
        return TL_ERR_MEMORY;
    }
    status = tl_file_read(file, e->offset, *text, (size_t)e->size, err);
    if (status == TL_OK && zip_crc(0, (const unsigned char *)*text, (size_t)e->size) != e->crc) {
        status = zip_fault_entry(file, e, "bytes that differ from their checksum",
                                 "an undamaged record", err);
    }
    if (status != TL_OK) {
        tl_free(*text);
        *text = NULL;
    }
    return status;
}

/* Reads a record of any size in pieces and verifies its CRC. */
TL_FN tl_status zip_verify(const tl_file *file, const zip_entry *e, tl_error *err)
{
    unsigned char *buffer = (unsigned char *)tl_malloc(1 << 16, 1, err);
    uint32_t crc = 0;
    tl_status status = buffer == NULL ? TL_ERR_MEMORY : TL_OK;
    for (uint64_t at = 0; status == TL_OK && at < e->size; at += 1 << 16) {
        size_t n = e->size - at < 1 << 16 ? (size_t)(e->size - at) : 1 << 16;
        status = tl_file_read(file, e->offset + at, buffer, n, err);
        if (status == TL_OK) {
            crc = zip_crc(crc, buffer, n);
        }
    }
    if (status == TL_OK && crc != e->crc) {
        status = zip_fault_entry(file, e, "bytes that differ from their checksum",
                                 "an undamaged record", err);
    }
    tl_free(buffer);
    return status;
}

#endif /* TL_ZIP_H */
