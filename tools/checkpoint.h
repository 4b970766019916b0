/*  checkpoint.h: one view of the published layouts of a model: its configuration and its named
 *  tensors.
 *
 *  ck_open takes a folder or one weight file that lies beside its configuration:
 *    config.json (or params.json) with the first of
 *      model.safetensors, model.safetensors.index.json + shards, consolidated.safetensors,
 *      pytorch_model.bin (zip, or the format before torch 1.6),
 *      pytorch_model.bin.index.json + shards.
 *  or one GGUF file, which holds its configuration and tokenizer itself.
 *  ck_open_weights takes one weight file alone. Files that an index does not name are not looked
 *  at; a tensor that it names must be in the shard that it names; a tensor in two shards is
 *  refused.
 *
 *  Opening reads headers only. Values are read by pread in pieces, straight to where the caller
 *  wants them; nothing is mapped, and no tensor is ever held. Each file is opened once and checked
 *  on that descriptor.
 *
 *      ck_source *ck;
 *      if (ck_open(path, &ck, &err) == TL_OK) {
 *          const ck_tensor *t = ck_find(ck, "backbone.norm_f.weight");
 *          if (t != NULL && ck_read_f32(ck, t, 0, t->count, out, &err) == TL_OK) ...
 *          ck_close(ck);
 *      }
 */
#ifndef TL_CHECKPOINT_H
#define TL_CHECKPOINT_H

#include "gguf.h"
#include "json.h"
#include "pickle.h"
#include "safetensors.h"
#include "tensor.h"
#include "zip.h"

#define CK_MAX_SHARDS   512
#define CK_MAX_CONFIG   ((uint64_t)16 << 20)
#define CK_MAX_PICKLE   ((uint64_t)16 << 20)
#define CK_NO_RECORD    0xffffffffu

typedef enum {
    CK_NOTHING, CK_SAFETENSORS, CK_TORCH_ZIP, CK_TORCH_LEGACY, CK_GGUF
} ck_kind;

typedef struct {
    tl_file file;
    ck_kind kind;
    st_file st;
    zip_archive zip;
    pkl_data pickle;
    gguf_file gguf;
    char *text;              /* of the pickle */
    size_t place_after;      /* legacy: where the storages begin */
} ck_file;

typedef struct {
    char *folder;            /* where the weights lie */
    char *config_path;       /* NULL after ck_open_weights; the file itself for GGUF */
    char *tokenizer_path;    /* tokenizer.json or .model beside it, NULL if none */
    json_doc config;
    ck_file *files;
    size_t file_count, file_capacity;
    ck_tensor *tensors;
    size_t tensor_count, tensor_capacity;
    uint64_t *by_name;       /* hash << 32 | index, sorted */
} ck_source;

TL_FN void ck_close(ck_source *ck)
{
    if (ck == NULL) {
        return;
    }
    for (size_t i = 0; i < ck->file_count; i++) {
        ck_file *f = &ck->files[i];
        st_free(&f->st);
        zip_free(&f->zip);
        pkl_free(&f->pickle);
        gguf_free(&f->gguf);
        tl_free(f->text);
        tl_file_close(&f->file);
    }
    json_free(&ck->config);
    tl_free(ck->files);
    tl_free(ck->tensors);
    tl_free(ck->by_name);
    tl_free(ck->folder);
    tl_free(ck->config_path);
    tl_free(ck->tokenizer_path);
    tl_free(ck);
}

/* ---- looking --------------------------------------------------------------------------------- */

TL_FN int ck_name_order(const void *context, uint32_t a, uint32_t b)
{
    const ck_tensor *t = (const ck_tensor *)context;
    return tl_compare(t[a].name, t[a].name_length, t[b].name, t[b].name_length);
}

TL_FN const ck_tensor *ck_find_n(const ck_source *ck, const char *name, size_t length)
{
    uint32_t hash = tl_hash(name, length);
    size_t lo = 0, hi = ck->tensor_count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        const ck_tensor *t = &ck->tensors[(uint32_t)ck->by_name[mid]];
        uint32_t h = (uint32_t)(ck->by_name[mid] >> 32);
        int order =
            hash != h ? (hash < h ? -1 : 1) : tl_compare(name, length, t->name, t->name_length);
        if (order == 0) {
            return t;
        }
        if (order < 0) {
            hi = mid;
        } else {
            lo = mid + 1;
        }
    }
    return NULL;
}

/* The tensor of that name, NULL if there is none. */
TL_FN const ck_tensor *ck_find(const ck_source *ck, const char *name)
{
    return ck_find_n(ck, name, strlen(name));
}

/* The GGUF file, NULL if the checkpoint is none. */
TL_FN const gguf_file *ck_gguf(const ck_source *ck)
{
    return ck->file_count == 1 && ck->files[0].kind == CK_GGUF ? &ck->files[0].gguf : NULL;
}

/* Do two tensors share their bytes, as tied weights do? */
TL_FN int ck_same(const ck_tensor *a, const ck_tensor *b)
{
    return a->file == b->file && a->offset == b->offset && a->bytes == b->bytes &&
           a->dtype == b->dtype;
}

/* A value of the first safetensors file's __metadata__, NULL text if absent. */
TL_FN json_text ck_metadata(const ck_source *ck, const char *key)
{
    json_text none = {NULL, 0};
    return ck->file_count != 0 && ck->files[0].kind == CK_SAFETENSORS
             ? st_metadata(&ck->files[0].st, key)
             : none;
}

TL_FN tl_status ck_fault(const ck_source *ck, const ck_tensor *t, const char *found,
                         const char *allowed, tl_error *err)
{
    const char *path = ck->files[t->file].file.path;
    tl_quoted q, name;
    return tl_fail(err, TL_ERR_FORMAT, "%s: tensor \"%s\": found %s, allowed: %s",
                   tl_path(&q, path), tl_quote(&name, t->name, t->name_length),
                   found, allowed);
}

/* ---- reading values -------------------------------------------------------------------------- */

/* Elements [first, first + n) as stored (little-endian); of block types, whole blocks. */
TL_FN tl_status ck_read_raw(const ck_source *ck, const ck_tensor *t, uint64_t first, uint64_t n,
                            void *out, tl_error *err)
{
    unsigned block = ck_types[t->dtype].block, bytes = ck_types[t->dtype].bytes;
    if (!tl_fits(first, n, t->count) || first % block != 0 || n % block != 0) {
        return ck_fault(ck, t, "a request outside the tensor", "its elements, in whole blocks",
                        err);
    }
    return tl_file_read(&ck->files[t->file].file, t->offset + first / block * bytes, out,
                        (size_t)(n / block * bytes), err);
}

/* Elements [first, first + n) of a type of blocks, wherever in a block they begin and end. */
TL_FN tl_status ck_read_blocks(const ck_source *ck, const ck_tensor *t, uint64_t first, uint64_t n,
                               float *out, tl_error *err)
{
    unsigned block = ck_types[t->dtype].block, bytes = ck_types[t->dtype].bytes;
    unsigned char raw[4096];
    float values[256];
    if (!tl_fits(first, n, t->count)) {
        return ck_fault(ck, t, "a request outside the tensor", "its elements", err);
    }
    for (uint64_t b = first / block, done = 0; done < n;) {
        uint64_t last = (first + n - 1) / block + 1, held = sizeof raw / bytes;
        uint64_t m = last - b < held ? last - b : held;
        tl_status status = ck_read_raw(ck, t, b * block, m * block, raw, err);
        if (status != TL_OK) {
            return status;
        }
        for (uint64_t i = 0; i < m; i++) {
            uint64_t skip = first + done - (b + i) * block;
            uint64_t take = n - done < block - skip ? n - done : block - skip;
            gguf_dequantise(t->dtype, raw + i * bytes, values);
            memcpy(out + done, values + skip, (size_t)take * sizeof values[0]);
            done += take;
        }
        b += m;
    }
    return TL_OK;
}

/* Elements [first, first + n) of any float type, as float. 16-bit values are read into the upper
 * half of `out` and widened from the front: writing element i at 4i reaches 2n + 2i last. */
TL_FN tl_status ck_read_f32(const ck_source *ck, const ck_tensor *t, uint64_t first, uint64_t n,
                            float *out, tl_error *err)
{
    unsigned char *bytes = (unsigned char *)out, block[4096];
    tl_status status;
    if (!ck_types[t->dtype].is_float) {
        return ck_fault(ck, t, ck_types[t->dtype].name, "F32, F16, BF16 or F64", err);
    }
    if (t->dtype == CK_F32) {
        status = ck_read_raw(ck, t, first, n, out, err);
        for (uint64_t i = 0; status == TL_OK && i < n; i++) {
            out[i] = tl_f32_of_bits(tl_le32(bytes + 4 * i));
        }
        return status;
    }
    if (ck_types[t->dtype].block != 1) {
        return ck_read_blocks(ck, t, first, n, out, err);
    }
    if (t->dtype != CK_F64) {
        status = ck_read_raw(ck, t, first, n, bytes + 2 * n, err);
        for (uint64_t i = 0; status == TL_OK && i < n; i++) {
            uint16_t h = tl_le16(bytes + 2 * n + 2 * i);
            out[i] = t->dtype == CK_F16 ? tl_f32_of_f16(h) : tl_f32_of_bf16(h);
        }
        return status;
    }
    if (!tl_fits(first, n, t->count)) {
        return ck_fault(ck, t, "a request outside the tensor", "its elements", err);
    }
    for (uint64_t done = 0; done < n;) {
        uint64_t m = n - done < sizeof block / 8 ? n - done : sizeof block / 8;
        status = ck_read_raw(ck, t, first + done, m, block, err);
        if (status != TL_OK) {
            return status;
        }
        for (uint64_t i = 0; i < m; i++) {
            uint64_t bits = tl_le64(block + 8 * i);
            double v;
            memcpy(&v, &bits, sizeof v);
            out[done + i] = (float)v;
        }
        done += m;
    }
    return TL_OK;
}

/* Reads all of the zip record that holds a tensor, if one does, and compares its checksum. */
TL_FN tl_status ck_verify(const ck_source *ck, const ck_tensor *t, tl_error *err)
{
    const ck_file *f = &ck->files[t->file];
    return t->record == CK_NO_RECORD ? TL_OK
                                     : zip_verify(&f->file, &f->zip.entries[t->record], err);
}

/* ---- torch files ----------------------------------------------------------------------------- */

/* in the order of pkl_globals from PKL_STORAGES on */
static const ck_dtype ck_storage_types[] = {
    CK_F32, CK_F16, CK_BF16, CK_F64, CK_I64, CK_I32, CK_I16, CK_I8, CK_U8, CK_BOOL};

TL_FN ck_dtype ck_storage_type(const pkl_node *storage)
{
    return ck_storage_types[storage->value - PKL_STORAGES];
}

TL_FN tl_status ck_new_tensor(ck_source *ck, ck_tensor **t, tl_error *err)
{
    void *p = ck->tensors;
    int ok = tl_grow(&p, &ck->tensor_capacity, ck->tensor_count, sizeof ck->tensors[0], err);
    ck->tensors = (ck_tensor *)p;
    if (!ok) {
        return TL_ERR_MEMORY;
    }
    *t = &ck->tensors[ck->tensor_count++];
    memset(*t, 0, sizeof **t);
    (*t)->record = CK_NO_RECORD;
    (*t)->file = (uint32_t)(ck->file_count - 1);
    return TL_OK;
}

/* Rows must follow each other without gaps; the stride of a dimension of 1 means nothing. */
TL_FN tl_status ck_torch_strides(const ck_source *ck, const pkl_data *d, const ck_tensor *t,
                                 const pkl_node *strides, tl_error *err)
{
    uint64_t given[CK_MAX_RANK], expected = 1;
    int n = 0;
    tl_quoted q;
    char allowed[160];
    for (uint32_t c = strides->first; c != PKL_NIL; c = d->cells[c].next) {
        given[n++] = (uint64_t)d->nodes[d->cells[c].node].value;
    }
    for (int i = t->rank - 1; i >= 0 && t->count != 0; i--) {
        if (t->shape[i] != 1 && given[i] != expected) {
            (void)snprintf(allowed, sizeof allowed, "strides of a contiguous tensor of shape %s "
                           "(save it after .contiguous())", ck_shape_text(&q, t->rank, t->shape));
            return ck_fault(ck, t, ck_shape_text(&q, n, given), allowed, err);
        }
        expected *= t->shape[i];
    }
    return TL_OK;
}

/* One entry of the state dict. */
TL_FN tl_status ck_torch_tensor(ck_source *ck, const pkl_data *d, const pkl_node *key,
                                const pkl_node *value, tl_error *err)
{
    ck_tensor *t;
    const pkl_node *storage, *shape;
    const char *fault;
    tl_status status = ck_new_tensor(ck, &t, err);
    if (status != TL_OK) {
        return status;
    }
    t->name = "";
    if (key->type != PKL_STRING) {
        return ck_fault(ck, t, "a key that is no string", "names of tensors", err);
    }
    t->name = d->text + key->value;
    t->name_length = key->count;
    fault = ck_name_fault(t->name, t->name_length);
    if (fault != NULL) {
        return ck_fault(ck, t, fault, "1 to 1024 bytes without NUL", err);
    }
    if (value->type != PKL_TENSOR) {
        return ck_fault(ck, t, "something else", "a tensor (the file must be a plain state dict)",
                        err);
    }
    storage = &d->nodes[value->first];
    shape = &d->nodes[value->last];
    t->dtype = ck_storage_type(storage);
    t->record = storage->last;
    if (shape->count > CK_MAX_RANK) {
        return ck_fault(ck, t, "more than 8 dimensions", "0 to 8", err);
    }
    for (uint32_t c = shape->first; c != PKL_NIL; c = d->cells[c].next) {
        t->shape[t->rank++] = (uint64_t)d->nodes[d->cells[c].node].value;
    }
    if (!ck_measure(t)) {
        return ck_fault(ck, t, "a shape of 2^63 bytes or more", "a smaller one", err);
    }
    if (!tl_fits((uint64_t)value->value, t->count, (uint64_t)storage->extra)) {
        return ck_fault(ck, t, "a shape and offset that leave the storage", "elements inside it",
                        err);
    }
    t->offset = storage->place + (uint64_t)value->value * ck_types[t->dtype].bytes;
    return ck_torch_strides(ck, d, t, &d->nodes[value->count], err);
}

TL_FN tl_status ck_torch_tensors(ck_source *ck, const ck_file *f, tl_error *err)
{
    const pkl_data *d = &f->pickle;
    const pkl_node *root = &d->nodes[d->root];
    tl_status status = TL_OK;
    tl_quoted q;
    if (root->type != PKL_DICT) {
        return tl_fail(err, TL_ERR_FORMAT,
                       "%s: found something else, allowed: a state dict (names and tensors)",
                       tl_path(&q, f->file.path));
    }
    for (uint32_t c = root->first; status == TL_OK && c != PKL_NIL;) {
        uint32_t v = d->cells[c].next;
        status =
            ck_torch_tensor(ck, d, &d->nodes[d->cells[c].node], &d->nodes[d->cells[v].node], err);
        c = d->cells[v].next;
    }
    return status;
}

TL_FN tl_status ck_torch_fault(const ck_file *f, const char *what, const char *text, size_t length,
                               const char *found, const char *allowed, tl_error *err)
{
    tl_quoted q, t;
    return tl_fail(err, TL_ERR_FORMAT, "%s: %s \"%s\": found %s, allowed: %s",
                   tl_path(&q, f->file.path), what,
                   tl_quote(&t, text, length), found, allowed);
}

/* ROOT/data.pkl, the only one at that depth. */
TL_FN tl_status ck_zip_root(const ck_file *f, const zip_entry **pickle, tl_error *err)
{
    *pickle = NULL;
    for (size_t i = 0; i < f->zip.count; i++) {
        const zip_entry *e = &f->zip.entries[i];
        const char *slash = (const char *)memchr(e->name, '/', e->name_length);
        const char *rest = slash == NULL ? e->name : slash + 1;
        size_t n = e->name_length - (size_t)(rest - e->name);
        if (tl_compare(rest, n, "constants.pkl", 13) == 0) {
            return ck_torch_fault(f, "record", e->name, e->name_length, "a TorchScript archive",
                                  "a state dict (torch.save(model.state_dict(), ...))", err);
        }
        if (slash != NULL && tl_compare(rest, n, "data.pkl", 8) == 0) {
            if (*pickle != NULL) {
                return ck_torch_fault(f, "record", e->name, e->name_length, "a second data.pkl",
                                      "one", err);
            }
            *pickle = e;
        }
    }
    if (*pickle == NULL) {
        return ck_torch_fault(f, "record", "data.pkl", 8, "none",
                              "a zip archive that torch.save wrote", err);
    }
    return TL_OK;
}

/* Finds the record of every storage and compares the sizes. */
TL_FN tl_status ck_zip_storages(ck_file *f, const char *root, size_t root_length, tl_error *err)
{
    pkl_data *d = &f->pickle;
    for (size_t i = 0; i < d->node_count; i++) {
        pkl_node *s = &d->nodes[i];
        const pkl_node *key;
        const zip_entry *e;
        const char *text;
        uint64_t bytes;
        char name[512];
        int n;
        if (s->type != PKL_STORAGE) {
            continue;
        }
        key = &d->nodes[s->first];
        text = d->text + key->value;
        if (key->count > 64 || root_length > 256 || memchr(text, '\0', key->count) != NULL) {
            return ck_torch_fault(f, "storage", text, key->count, "this name",
                                  "at most 64 bytes without NUL", err);
        }
        n = snprintf(name, sizeof name, "%.*sdata/%.*s", (int)root_length, root, (int)key->count,
                     text);
        e = zip_find(&f->zip, name, (size_t)n);
        if (e == NULL) {
            return ck_torch_fault(f, "storage", text, key->count, "no record", "data/ and its name",
                                  err);
        }
        if (!tl_mul((uint64_t)s->extra, ck_types[ck_storage_type(s)].bytes, &bytes) ||
            bytes != e->size) {
            return ck_torch_fault(f, "storage", text, key->count, "a record of another size",
                                  "its number of elements times the size of its type", err);
        }
        s->place = e->offset;
        s->last = (uint32_t)(e - f->zip.entries);
    }
    return TL_OK;
}

TL_FN tl_status ck_zip_open(ck_source *ck, ck_file *f, tl_error *err)
{
    const zip_entry *pickle, *order;
    size_t root;
    char name[512], *text;
    tl_status status = zip_open(&f->zip, &f->file, err);
    if (status == TL_OK) {
        status = ck_zip_root(f, &pickle, err);
    }
    if (status != TL_OK) {
        return status;
    }
    root = pickle->name_length - 8;
    if (root <= 256) {
        int n = snprintf(name, sizeof name, "%.*sbyteorder", (int)root, pickle->name);
        order = zip_find(&f->zip, name, (size_t)n);
        if (order != NULL) {
            status = zip_read(&f->file, order, 64, &text, err);
            if (status == TL_OK && tl_compare(text, (size_t)order->size, "little", 6) != 0) {
                status =
                    ck_torch_fault(f, "byteorder", text, (size_t)order->size, "another byte order",
                                   "little (re-save on a little-endian machine)", err);
            }
            tl_free(text);
        }
    }
    if (status == TL_OK) {
        status = zip_read(&f->file, pickle, CK_MAX_PICKLE, &f->text, err);
    }
    if (status == TL_OK) {
        status = pkl_parse(f->text, (size_t)pickle->size, f->file.path, pickle->offset, 0,
                           &f->pickle, err);
    }
    if (status == TL_OK && f->pickle.length != pickle->size) {
        status = ck_torch_fault(f, "record", pickle->name, pickle->name_length, "bytes behind STOP",
                                "none", err);
    }
    if (status == TL_OK) {
        status = ck_zip_storages(f, pickle->name, root, err);
    }
    return status == TL_OK ? ck_torch_tensors(ck, f, err) : status;
}

/* ---- torch files before 1.6: five pickles, then the storages --------------------------------- */

/* pickle of the number 0x1950a86a20f9469cfc6c */
static const unsigned char ck_legacy_magic[15] = {
    0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, 0x2e};

TL_FN int ck_key_order(const void *context, uint32_t a, uint32_t b)
{
    const pkl_data *d = (const pkl_data *)context;
    const pkl_node *x = &d->nodes[d->nodes[a].first], *y = &d->nodes[d->nodes[b].first];
    return tl_compare(d->text + x->value, x->count, d->text + y->value, y->count);
}

/* The storage called `key` begins at *at with its number of elements; sets its place in all its
 * nodes (keys: the storage nodes sorted by hash and name) and moves *at behind it. */
TL_FN tl_status ck_legacy_storage(ck_file *f, const uint64_t *keys, size_t count, const char *key,
                                  size_t n, uint64_t *at, tl_error *err)
{
    pkl_data *d = &f->pickle;
    uint64_t elements, bytes, hash = (uint64_t)tl_hash(key, n) << 32;
    unsigned char head[8];
    size_t lo = 0, hi = count, used = 0;
    tl_status status = tl_file_read(&f->file, *at, head, 8, err);
    if (status != TL_OK) {
        return status;
    }
    elements = tl_le64(head);
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        const pkl_node *name = &d->nodes[d->nodes[(uint32_t)keys[mid]].first];
        int order = keys[mid] >> 32 != hash >> 32 ? (keys[mid] < hash ? -1 : 1)
                  : tl_compare(d->text + name->value, name->count, key, n);
        if (order < 0) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    bytes = 0;
    for (; lo < count; lo++, used++) {
        pkl_node *s = &d->nodes[(uint32_t)keys[lo]];
        const pkl_node *name = &d->nodes[s->first];
        uint64_t size;
        if (tl_compare(d->text + name->value, name->count, key, n) != 0) {
            break;
        }
        if (s->place != 0) {
            return ck_torch_fault(f, "storage", key, n, "its name twice in the list", "once", err);
        }
        if ((uint64_t)s->extra != elements ||
            !tl_mul(elements, ck_types[ck_storage_type(s)].bytes, &size) ||
            (used != 0 && size != bytes) || !tl_fits(*at + 8, size, f->file.size)) {
            return ck_torch_fault(f, "storage", key, n, "another number of elements",
                                  "the number in the pickle, inside the file", err);
        }
        bytes = size;
        s->place = *at + 8;
        s->last = CK_NO_RECORD;
    }
    if (used == 0) {
        return ck_torch_fault(f, "storage", key, n, "no tensor that uses it", "used storages only",
                              err);
    }
    *at += 8 + bytes;
    return TL_OK;
}

TL_FN tl_status ck_legacy_storages(ck_file *f, const pkl_data *list, tl_error *err)
{
    pkl_data *d = &f->pickle;
    uint64_t *keys = (uint64_t *)tl_malloc(d->node_count, 2 * sizeof keys[0], err);
    uint64_t at = f->place_after;
    size_t count = 0;
    const pkl_node *names = &list->nodes[list->root];
    tl_status status = keys == NULL ? TL_ERR_MEMORY : TL_OK;
    for (size_t i = 0; status == TL_OK && i < d->node_count; i++) {
        if (d->nodes[i].type == PKL_STORAGE) {
            const pkl_node *name = &d->nodes[d->nodes[i].first];
            keys[count++] = (uint64_t)tl_hash(d->text + name->value, name->count) << 32 | i;
        }
    }
    if (status == TL_OK) {
        tl_sort(keys, keys + d->node_count, count, ck_key_order, d);
    }
    for (uint32_t c = names->first; status == TL_OK && c != PKL_NIL; c = list->cells[c].next) {
        const pkl_node *key = &list->nodes[list->cells[c].node];
        status = key->type == PKL_STRING
               ? ck_legacy_storage(f, keys, count, list->text + key->value, key->count, &at, err)
               : ck_torch_fault(f, "list of storages", "", 0, "something else", "names", err);
    }
    for (size_t i = 0; status == TL_OK && i < count; i++) {
        const pkl_node *s = &d->nodes[(uint32_t)keys[i]], *name = &d->nodes[s->first];
        if (s->place == 0) {
            status = ck_torch_fault(f, "storage", d->text + name->value, name->count, "no data",
                                    "its name in the list of storages", err);
        }
    }
    if (status == TL_OK && at != f->file.size) {
        status = ck_torch_fault(f, "end", "", 0, "bytes behind the last storage", "none", err);
    }
    tl_free(keys);
    return status;
}

/* sys_info must say little_endian: True. */
TL_FN int ck_legacy_little(const pkl_data *info)
{
    const pkl_node *root = &info->nodes[info->root];
    if (root->type != PKL_DICT) {
        return 0;
    }
    for (uint32_t c = root->first; c != PKL_NIL;) {
        const pkl_node *key = &info->nodes[info->cells[c].node];
        uint32_t v = info->cells[c].next;
        const pkl_node *value = &info->nodes[info->cells[v].node];
        if (key->type == PKL_STRING && value->type == PKL_BOOL && value->value == 1 &&
            tl_compare(info->text + key->value, key->count, "little_endian", 13) == 0) {
            return 1;
        }
        c = info->cells[v].next;
    }
    return 0;
}

/* The pickle at *at of the text; *at moves behind it. */
TL_FN tl_status ck_legacy_pickle(const ck_file *f, size_t n, size_t *at, pkl_data *data,
                                 tl_error *err)
{
    tl_status status = pkl_parse(f->text + *at, n - *at, f->file.path, *at, 1, data, err);
    *at += data->length;
    return status;
}

TL_FN tl_status ck_legacy_open(ck_source *ck, ck_file *f, tl_error *err)
{
    size_t n = (size_t)(f->file.size < CK_MAX_PICKLE ? f->file.size : CK_MAX_PICKLE);
    size_t at = 15, pickle_at;
    pkl_data version, info, list;
    char *less;
    tl_status status;
    memset(&version, 0, sizeof version);
    memset(&info, 0, sizeof info);
    memset(&list, 0, sizeof list);
    f->text = (char *)tl_malloc(n, 1, err);
    if (f->text == NULL) {
        return TL_ERR_MEMORY;
    }
    status = tl_file_read(&f->file, 0, f->text, n, err);
    if (status == TL_OK) {
        status = ck_legacy_pickle(f, n, &at, &version, err);
    }
    if (status == TL_OK && (version.nodes[version.root].type != PKL_INT ||
                            version.nodes[version.root].value != 1001)) {
        status = ck_torch_fault(f, "protocol version", "", 0, "another", "1001", err);
    }
    if (status == TL_OK) {
        status = ck_legacy_pickle(f, n, &at, &info, err);
    }
    if (status == TL_OK && !ck_legacy_little(&info)) {
        status = ck_torch_fault(f, "sys_info", "little_endian", 13, "something else", "True", err);
    }
    pickle_at = at;
    if (status == TL_OK) {
        status = ck_legacy_pickle(f, n, &at, &f->pickle, err);
    }
    if (status == TL_OK) {
        status = ck_legacy_pickle(f, n, &at, &list, err);
    }
    if (status == TL_OK && list.nodes[list.root].type != PKL_LIST) {
        status = ck_torch_fault(f, "list of storages", "", 0, "something else", "a list", err);
    }
    f->place_after = at;
    if (status == TL_OK) {
        status = ck_legacy_storages(f, &list, err);
    }
    pkl_free(&version);
    pkl_free(&info);
    pkl_free(&list);
    less = status == TL_OK ? (char *)tl_realloc(f->text, at, 1, err) : NULL;
    if (status == TL_OK && less == NULL) {
        return TL_ERR_MEMORY;
    }
    if (less != NULL) {   /* the weights that were read along are not kept */
        f->text = less;
        f->pickle.text = less + pickle_at;
    }
    return status == TL_OK ? ck_torch_tensors(ck, f, err) : status;
}

/* ---- any weight file ------------------------------------------------------------------------- */

TL_FN int ck_ends(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

TL_FN tl_status ck_safetensors_open(ck_source *ck, ck_file *f, tl_error *err)
{
    tl_status status = st_open(&f->st, &f->file, err);
    for (size_t i = 0; status == TL_OK && i < f->st.count; i++) {
        ck_tensor *t;
        status = ck_new_tensor(ck, &t, err);
        if (status == TL_OK) {
            f->st.tensors[i].file = t->file;
            f->st.tensors[i].record = t->record;
            *t = f->st.tensors[i];
        }
    }
    tl_free(f->st.tensors);
    f->st.tensors = NULL;
    f->st.count = 0;
    return status;
}

TL_FN tl_status ck_gguf_open(ck_source *ck, ck_file *f, tl_error *err)
{
    tl_status status = gguf_open(&f->gguf, &f->file, err);
    tl_quoted q;
    if (status == TL_OK && ck->tensor_count != 0) {
        status = tl_fail(err, TL_ERR_UNSUPPORTED,
                         "%s: found a GGUF file among shards, allowed: alone",
                         tl_path(&q, f->file.path));
    }
    if (status == TL_OK) { /* the list is taken over */
        tl_free(ck->tensors);
        ck->tensors = f->gguf.tensors;
        ck->tensor_count = ck->tensor_capacity = f->gguf.tensor_count;
        f->gguf.tensors = NULL;
        f->gguf.tensor_count = 0;
    }
    for (size_t i = 0; status == TL_OK && i < ck->tensor_count; i++) {
        ck->tensors[i].file = (uint32_t)(ck->file_count - 1);
        ck->tensors[i].record = CK_NO_RECORD;
    }
    return status;
}

/* Tells the formats apart by their first bytes. */
TL_FN tl_status ck_recognise(ck_file *f, tl_error *err)
{
    static const struct {
        size_t offset;
        const char *bytes, *found;
    } strangers[] = {
        {0, "version https://git-lfs",
         "a Git LFS pointer, allowed: the weights themselves (git lfs pull)"},
        {0, "\x89HDF", "an HDF5 file, allowed: safetensors, torch or GGUF files"},
        {257, "ustar",
         "a tar file of an early torch, allowed: a file re-saved with torch 1.6 or later"}};
    unsigned char head[264];
    size_t n = f->file.size < sizeof head ? (size_t)f->file.size : sizeof head;
    tl_quoted q;
    tl_status status = tl_file_read(&f->file, 0, head, n, err);
    int torch = ck_ends(f->file.path, ".bin") || ck_ends(f->file.path, ".pt") ||
                ck_ends(f->file.path, ".pth");
    if (status != TL_OK) {
        return status;
    }
    tl_path(&q, f->file.path);
    for (size_t i = 0; i < sizeof strangers / sizeof strangers[0]; i++) {
        size_t m = strlen(strangers[i].bytes);
        if (n >= strangers[i].offset + m &&
            memcmp(head + strangers[i].offset, strangers[i].bytes, m) == 0) {
            return tl_fail(err, TL_ERR_UNSUPPORTED, "%s: byte %lu: found %s", q.text,
                           (unsigned long)strangers[i].offset, strangers[i].found);
        }
    }
    if (n >= 4 && memcmp(head, "PK\003\004", 4) == 0) {
        f->kind = CK_TORCH_ZIP;
    } else if (n >= 4 && memcmp(head, "GGUF", 4) == 0) {
        f->kind = CK_GGUF;
    } else if (ck_ends(f->file.path, ".gguf")) {
        return tl_fail(err, TL_ERR_FORMAT,
                       "%s: byte 0: found no GGUF file (%llu bytes), allowed: \"GGUF\" and what "
                       "follows it", q.text, (unsigned long long)f->file.size);
    } else if (n >= 15 && memcmp(head, ck_legacy_magic, 15) == 0) {
        f->kind = CK_TORCH_LEGACY;
    } else if (torch) {
        return tl_fail(err, TL_ERR_FORMAT,
                       "%s: byte 0: found no torch file (%llu bytes), allowed: a zip "
                       "archive or a legacy pickle that torch.save wrote",
                       q.text, (unsigned long long)f->file.size);
    } else {
        f->kind = CK_SAFETENSORS;
    }
    return TL_OK;
}

TL_FN tl_status ck_add_file(ck_source *ck, const char *path, tl_error *err)
{
    void *p = ck->files;
    int ok = tl_grow(&p, &ck->file_capacity, ck->file_count, sizeof ck->files[0], err);
    ck_file *f;
    tl_status status;
    ck->files = (ck_file *)p;
    if (!ok) {
        return TL_ERR_MEMORY;
    }
    f = &ck->files[ck->file_count];
    memset(f, 0, sizeof *f);
    status = tl_file_open(&f->file, path, err);
    if (status != TL_OK) {
        return status;
    }
    ck->file_count++;
    status = ck_recognise(f, err);
    if (status != TL_OK) {
        return status;
    }
    switch (f->kind) {
    case CK_TORCH_ZIP:
        return ck_zip_open(ck, f, err);
    case CK_TORCH_LEGACY:
        return ck_legacy_open(ck, f, err);
    case CK_GGUF:
        return ck_gguf_open(ck, f, err);
    default:
        return ck_safetensors_open(ck, f, err);
    }
}

/* Sorts the names and refuses duplicates, within a file or over shards. */
TL_FN tl_status ck_sort_names(ck_source *ck, tl_error *err)
{
    size_t n = ck->tensor_count;
    uint64_t *spare = (uint64_t *)tl_malloc(n, sizeof spare[0], err);
    tl_status status = TL_OK;
    ck->by_name = (uint64_t *)tl_malloc(n, sizeof spare[0], err);
    if (spare == NULL || ck->by_name == NULL) {
        tl_free(spare);
        return TL_ERR_MEMORY;
    }
    for (size_t i = 0; i < n; i++) {
        ck->by_name[i] =
            (uint64_t)tl_hash(ck->tensors[i].name, ck->tensors[i].name_length) << 32 | i;
    }
    tl_sort(ck->by_name, spare, n, ck_name_order, ck->tensors);
    for (size_t i = 1; status == TL_OK && i < n; i++) {
        if (tl_key_order(ck->by_name[i - 1], ck->by_name[i], ck_name_order, ck->tensors) == 0) {
            const ck_tensor *a = &ck->tensors[(uint32_t)ck->by_name[i - 1]];
            const ck_tensor *b = &ck->tensors[(uint32_t)ck->by_name[i]];
            const char *other = ck->files[a->file].file.path;
            char found[160];
            tl_quoted q;
            (void)snprintf(found, sizeof found, "its name twice (the other in %s)",
                           tl_path(&q, other));
            status = ck_fault(ck, b, found, "once", err);
        }
    }
    tl_free(spare);
    return status;
}

/* ---- shards ---------------------------------------------------------------------------------- */

TL_FN int ck_shard_order(const void *context, uint32_t a, uint32_t b)
{
    const json_doc *doc = (const json_doc *)context;
    json_text x = json_str(doc, a), y = json_str(doc, b);
    return tl_compare(x.ptr, x.len, y.ptr, y.len);
}

/* A plain file name: nothing that could lead out of the folder, on any system. */
TL_FN int ck_plain_name(json_text t)
{
    if (t.ptr == NULL || t.len == 0 || t.len > 255 || json_is(t, ".") || json_is(t, "..")) {
        return 0;
    }
    for (size_t i = 0; i < t.len; i++) {
        unsigned char c = (unsigned char)t.ptr[i];
        if (c == '/' || c == '\\' || c == ':' || c < 0x20 || c == 0x7f) {
            return 0;
        }
    }
    return 1;
}

TL_FN tl_status ck_index_fault(const char *path, json_text tensor, const char *found,
                               const char *allowed, tl_error *err)
{
    tl_quoted q, t;
    return tl_fail(err, TL_ERR_FORMAT, "%s: weight_map: tensor \"%s\": found %s, allowed: %s",
                   tl_path(&q, path), tl_quote(&t, tensor.ptr, tensor.len), found,
                   allowed);
}

/* Opens each shard that the sorted members name. The low half of each key becomes the member, the
 * high half the number of its file. */
TL_FN tl_status ck_open_shards(ck_source *ck, const json_doc *doc, const char *index_path,
                               uint64_t *keys, size_t n, tl_error *err)
{
    for (size_t i = 0; i < n; i++) {
        json_id member = (json_id)keys[i];
        if (i == 0 || ck_shard_order(doc, (json_id)keys[i - 1], member) != 0) {
            json_text name = json_str(doc, member);
            char *path;
            tl_status status;
            if (ck->file_count == CK_MAX_SHARDS) {
                return ck_index_fault(index_path, json_key(doc, member), "more shards",
                                      "at most 512", err);
            }
            path = tl_join(ck->folder, name.ptr, name.len, err);
            status = path == NULL ? TL_ERR_MEMORY : ck_add_file(ck, path, err);
            tl_free(path);
            if (status != TL_OK) {
                return status;
            }
        }
        keys[i] = (uint64_t)(ck->file_count - 1) << 32 | member;
    }
    return TL_OK;
}

TL_FN tl_status ck_read_index(ck_source *ck, const json_doc *doc, const char *path, tl_error *err)
{
    json_id map = json_get(doc, JSON_ROOT, "weight_map");
    size_t n = json_count(doc, map), k = 0;
    uint64_t *keys;
    tl_status status = TL_OK;
    tl_quoted q, b;
    if (json_kind(doc, map) != JSON_OBJECT || n == 0) {
        return tl_fail(err, TL_ERR_FORMAT,
                       "%s: weight_map: found %s, allowed: an object of tensors and files",
                       tl_path(&q, path), json_brief(&b, doc, map));
    }
    keys = (uint64_t *)tl_malloc(n, 2 * sizeof keys[0], err);
    if (keys == NULL) {
        return TL_ERR_MEMORY;
    }
    for (json_id m = json_first(doc, map); status == TL_OK && m != JSON_NONE;
         m = json_next(doc, m)) {
        json_text name = json_str(doc, m);
        if (!ck_plain_name(name)) {
            status = ck_index_fault(path, json_key(doc, m), json_brief(&b, doc, m),
                                    "a plain file name in the same folder", err);
        } else {
            keys[k++] = (uint64_t)tl_hash(name.ptr, name.len) << 32 | m;
        }
    }
    if (status == TL_OK) {
        tl_sort(keys, keys + n, n, ck_shard_order, doc);
        status = ck_open_shards(ck, doc, path, keys, n, err);
    }
    if (status == TL_OK) {
        status = ck_sort_names(ck, err);
    }
    for (size_t i = 0; status == TL_OK && i < n; i++) {
        json_text name = json_key(doc, (json_id)keys[i]);
        const ck_tensor *t = ck_find_n(ck, name.ptr, name.len);
        if (t == NULL || t->file != keys[i] >> 32) {
            status = ck_index_fault(path, name,
                                    t == NULL ? "a shard that lacks it" : "it in another shard",
                                    "tensors in the shard that the index names", err);
        }
    }
    tl_free(keys);
    return status;
}

TL_FN tl_status ck_open_index(ck_source *ck, const char *path, tl_error *err)
{
    json_doc doc;
    tl_status status = json_read(path, ST_MAX_HEADER, 0, &doc, err);
    if (status == TL_OK) {
        status = ck_read_index(ck, &doc, path, err);
        json_free(&doc);
    }
    return status;
}

/* ---- opening --------------------------------------------------------------------------------- */

/* The first of the names that exists in the folder, as a path to free; NULL if none does (or no
 * memory). */
TL_FN char *ck_first(const char *folder, const char *const *names, tl_error *err)
{
    for (; *names != NULL; names++) {
        char *path = tl_join(folder, *names, strlen(*names), err);
        if (path == NULL || tl_exists(path)) {
            return path;
        }
        tl_free(path);
    }
    return NULL;
}

TL_FN int ck_is_folder(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

TL_FN tl_status ck_missing(const char *folder, const char *names, tl_error *err)
{
    tl_quoted q;
    return tl_fail(err, TL_ERR_IO, "%s: found none of %s, allowed: a folder with one of them",
                   tl_path(&q, folder), names);
}

TL_FN tl_status ck_open_config(ck_source *ck, tl_error *err)
{
    static const char *const names[] = {"config.json", "params.json", NULL};
    static const char *const tokenizers[] = {"tokenizer.json", "tokenizer.model",
                                             "tokenizer.model.v3", NULL};
    tl_status status;
    tl_quoted q, b;
    ck->config_path = ck_first(ck->folder, names, err);
    if (ck->config_path == NULL) {
        return err->status == TL_ERR_MEMORY
                 ? TL_ERR_MEMORY
                 : ck_missing(ck->folder, "config.json, params.json", err);
    }
    ck->tokenizer_path = ck_first(ck->folder, tokenizers, err);
    if (ck->tokenizer_path == NULL && err->status != TL_OK) {
        return err->status;
    }
    status = json_read(ck->config_path, CK_MAX_CONFIG, JSON_NONFINITE, &ck->config, err);
    if (status == TL_OK && json_kind(&ck->config, JSON_ROOT) != JSON_OBJECT) {
        status = tl_fail(err, TL_ERR_FORMAT, "%s: found %s, allowed: an object of fields",
                         tl_path(&q, ck->config_path),
                         json_brief(&b, &ck->config, JSON_ROOT));
    }
    return status;
}

TL_FN tl_status ck_open_folder(ck_source *ck, tl_error *err)
{
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json",
                                        "consolidated.safetensors", "pytorch_model.bin",
                                        "pytorch_model.bin.index.json", NULL};
    char *path = ck_first(ck->folder, names, err);
    tl_status status;
    if (path == NULL) {
        static const char list[] = "model.safetensors, model.safetensors.index.json, "
                                   "consolidated.safetensors, pytorch_model.bin, "
                                   "pytorch_model.bin.index.json";
        return err->status == TL_ERR_MEMORY ? TL_ERR_MEMORY : ck_missing(ck->folder, list, err);
    }
    if (ck_ends(path, ".json")) {
        status = ck_open_index(ck, path, err);
    } else {
        status = ck_add_file(ck, path, err);
        if (status == TL_OK) {
            status = ck_sort_names(ck, err);
        }
    }
    tl_free(path);
    return status;
}

TL_FN tl_status ck_open_any(const char *path, int with_config, ck_source **out, tl_error *err)
{
    ck_source *ck = (ck_source *)tl_calloc(1, sizeof *ck, err);
    const char *slash = strrchr(path, '/');
    int folder = ck_is_folder(path);
    tl_status status = TL_OK;
    *out = NULL;
    if (ck == NULL) {
        return TL_ERR_MEMORY;
    }
    if (folder) {
        ck->folder = tl_strndup(path, strlen(path), err);
    } else if (slash == NULL) {
        ck->folder = tl_strndup(".", 1, err);
    } else {
        ck->folder = tl_strndup(path, slash == path ? 1 : (size_t)(slash - path), err);
    }
    if (ck->folder == NULL) {
        status = TL_ERR_MEMORY;
    } else if (folder) {
        status = with_config ? ck_open_config(ck, err) : TL_OK;
        status = status == TL_OK ? ck_open_folder(ck, err) : status;
    } else {   /* the weights first: a wrong path should be the first complaint */
        status = ck_ends(path, ".index.json") ? ck_open_index(ck, path, err)
                                              : ck_add_file(ck, path, err);
        if (status == TL_OK && ck->by_name == NULL) {
            status = ck_sort_names(ck, err);
        }
        if (status == TL_OK && with_config && ck_gguf(ck) != NULL) {
            ck->config_path = tl_strndup(path, strlen(path), err);
            status = ck->config_path == NULL ? TL_ERR_MEMORY : TL_OK;
        } else if (status == TL_OK && with_config) {
            status = ck_open_config(ck, err);
        }
    }
    if (status != TL_OK) {
        ck_close(ck);
    } else {
        *out = ck;
    }
    return status;
}

/* Opens a published model: a folder, or weights beside their configuration. err must be zeroed. */
TL_FN tl_status ck_open(const char *path, ck_source **out, tl_error *err)
{
    return ck_open_any(path, 1, out, err);
}

/* Opens weights alone; ck->config stays empty. */
TL_FN tl_status ck_open_weights(const char *path, ck_source **out, tl_error *err)
{
    return ck_open_any(path, 0, out, err);
}

#endif /* TL_CHECKPOINT_H */
