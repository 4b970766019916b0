/*  writer.h: writes a .mamba file (format: mamba.h, @@format) as a stream, whole or not at all.
 *
 *      wr_file w;                                   zeroed
 *      fill w.config, w.layers, then wr_add(...) for each tensor, wr_section(...) for optional sections
 *      wr_write(&w, "out.mamba", &err)
 *
 *  Nothing larger than 16 rows of a matrix, or one small vector, is in memory at a time. The data goes to a
 *  temporary file beside the output, is hashed on the way, opened and run once for the self-test, synced
 *  and renamed; on any failure the temporary file is removed and an existing output stays as it was.
 */
#ifndef TL_WRITER_H
#define TL_WRITER_H

#include "base.h"
#include "pack.h"

typedef struct wr_item wr_item;

/* Fills floats of a tensor: panels: row `row` (counted over all segments, without padding), `cols` floats;
 * vectors: everything, rows * cols padded to 16 floats, zeroed before. */
typedef tl_status (*wr_source)(const wr_item *item, uint64_t row, float *out, tl_error *err);

struct wr_item {
    mbi_tensor t;          /* offset and bytes are filled in by the writer */
    wr_source source;
    const void *from;      /* the source's own: container, tensor, parameters */
    const void *tensor;
    const void *extra;     /* a second tensor, or NULL */
    uint64_t first;        /* first element or row in the source tensor */
    uint64_t skip;         /* rows that the source counts before those of a matrix */
    int d[4];
};

typedef struct {
    char name[16];
    const void *data;      /* not owned */
    uint64_t bytes;
} wr_extra;

typedef struct {
    mbi_config_record config;
    mbi_layer_record *layers;     /* config.n_layers of them; owned */
    wr_item *items;               /* owned */
    size_t item_count, item_capacity;
    wr_extra extras[8];
    int extra_count;
    int selftest;                 /* 1: add one */
    int (*progress)(void *user, uint64_t done, uint64_t total);   /* not 0: stop */
    void *progress_user;
    /* while writing */
    int fd;
    const char *path;
    char *temporary;
    uint64_t meta_bytes, file_bytes, at;
    mbi_hash hash;
    unsigned char *meta;
} wr_file;

TL_FN void wr_free(wr_file *w)
{
    tl_free(w->layers);
    tl_free(w->items);
    tl_free(w->temporary);
    tl_free(w->meta);
    memset(w, 0, sizeof *w);
}

/* Adds a tensor; layer -1 for names without a layer. NULL when out of memory. */
TL_FN wr_item *wr_add(wr_file *w, int layer, const char *what, mamba_type type, uint32_t layout, tl_error *err)
{
    wr_item *item;
    void *items = w->items;
    if (!tl_grow(&items, &w->item_capacity, w->item_count, sizeof *w->items, err)) {
        return NULL;
    }
    w->items = (wr_item *)items;
    item = &w->items[w->item_count++];
    memset(item, 0, sizeof *item);
    mbi_tensor_name(layer, what, item->t.name);
    item->t.type = (uint32_t)type;
    item->t.layout = layout;
    item->t.count = 1;
    return item;
}

TL_FN void wr_segment(wr_item *item, uint64_t rows)
{
    item->t.segments[item->t.n_segments++] = (uint32_t)rows;
    item->t.rows += (uint32_t)rows;
}

TL_FN void wr_section(wr_file *w, const char *name, const void *data, uint64_t bytes)
{
    wr_extra *e = &w->extras[w->extra_count++];
    memset(e, 0, sizeof *e);
    memcpy(e->name, name, strlen(name));
    e->data = data;
    e->bytes = bytes;
}

TL_FN int wr_order(const void *a, const void *b)
{
    return memcmp(((const wr_item *)a)->t.name, ((const wr_item *)b)->t.name, 64);
}

/* For bsearch by name. */
TL_FN int wr_find_order(const void *name, const void *item)
{
    return memcmp(name, ((const wr_item *)item)->t.name, 64);
}

/* ---- types by sensitivity ---------------------------------------------------------------------------------
 *
 * A q4 file may use 4.7 bits per quantised weight on average, 0.57 more than q4 itself: what gains most from q6 gets
 * it. First the matrices of the first layer, since nothing averages out what they do to the residual stream; then
 * the rows of the head (or of the embedding, when it is the head too) from the first on, as many as the bits allow:
 * ids are numbered by falling frequency in the vocabularies of byte pair encoding, and an error in the logit of a
 * token costs in proportion to its probability; then the layers from the second on.
 *
 * Measured on mamba1-tales as KL divergence x 1000 that q4 in one part alone causes, per 100,000 weights: embedding
 * 2.0, 5.0, 1.6, 0.7 and 0.3 for the rows from 0, 256, 512, 1024 and 2048 on; in the first layer out_proj 1.5,
 * in_proj 1.2, x_proj 0.4; in the others 0.4, 0.25, 0.4. q6 leaves a twelfth of it. */
typedef struct {
    wr_file *w;
    double bits, limit;   /* bits so far, and allowed, of all quantised matrices */
} wr_budget;

TL_FN double wr_bits(const mbi_tensor *t, mamba_type type)
{
    mbi_tensor as = *t;
    as.type = (uint32_t)type;
    return 8.0 * (double)mbi_tensor_bytes(&as);
}

TL_FN wr_item *wr_find(const wr_file *w, int layer, const char *what)
{
    char name[64];
    mbi_tensor_name(layer, what, name);
    return (wr_item *)bsearch(name, w->items, w->item_count, sizeof *w->items, wr_find_order);
}

/* Raises a matrix if the bits allow it; 0 when they don't. */
TL_FN int wr_raise(wr_budget *b, wr_item *item)
{
    double more;
    if (item == NULL || item->t.layout != MBI_LAYOUT_PANELS || item->t.type != MAMBA_Q4) {
        return 1;
    }
    more = wr_bits(&item->t, MAMBA_Q6) - wr_bits(&item->t, MAMBA_Q4);
    if (b->bits + more > b->limit) {
        return 0;
    }
    b->bits += more;
    item->t.type = MAMBA_Q6;
    return 1;
}

/* Raises as many of the first rows as the bits allow; the other rows become an item of their own. */
TL_FN tl_status wr_raise_rows(wr_budget *b, const char *what, const char *what_rest, tl_error *err)
{
    wr_item *item = wr_find(b->w, -1, what), *rest;
    double room, per_panel;
    uint32_t rows;
    size_t at;
    char name[64];
    if (item == NULL || item->t.type != MAMBA_Q4 || wr_find(b->w, -1, what_rest) != NULL || wr_raise(b, item)) {
        return TL_OK;
    }
    per_panel = 8.0 * (double)(mbi_panel_bytes(MAMBA_Q6, item->t.cols) - mbi_panel_bytes(MAMBA_Q4, item->t.cols));
    room = b->limit - b->bits - 1024.0;   /* 1024: the bases are padded twice */
    rows = room >= per_panel ? 16 * (uint32_t)(room / per_panel) : 0;
    if (rows == 0 || rows >= item->t.rows) {
        return TL_OK;
    }
    at = (size_t)(item - b->w->items);
    rest = wr_add(b->w, -1, what_rest, MAMBA_Q4, MBI_LAYOUT_PANELS, err);
    if (rest == NULL) {
        return TL_ERR_MEMORY;
    }
    item = &b->w->items[at];   /* wr_add may have moved them */
    b->bits += rows / 16 * per_panel;
    memcpy(name, rest->t.name, sizeof name);
    *rest = *item;
    memcpy(rest->t.name, name, sizeof name);
    rest->skip += rows;
    rest->t.rows = rest->t.segments[0] = item->t.rows - rows;
    item->t.type = MAMBA_Q6;
    item->t.rows = item->t.segments[0] = rows;
    qsort(b->w->items, b->w->item_count, sizeof *b->w->items, wr_order);
    return TL_OK;
}

TL_FN tl_status wr_choose(wr_file *w, tl_error *err)
{
    static const char *const names[] = {"out_proj", "x_proj", "in_proj", "fc1", "fc2"};
    wr_budget b = {w, 0, 0};
    int room = 1;
    tl_status status = TL_OK;
    for (size_t i = 0; i < w->item_count; i++) {
        const mbi_tensor *t = &w->items[i].t;
        if (t->layout == MBI_LAYOUT_PANELS && mbi_is_quantized((mamba_type)t->type)) {
            b.limit += 4.7 * (double)t->rows * t->cols;
            b.bits += wr_bits(t, (mamba_type)t->type);
        }
    }
    for (uint32_t layer = 0; layer < w->config.n_layers && room && status == TL_OK; layer++) {
        for (size_t k = 0; k < sizeof names / sizeof names[0]; k++) {
            room = wr_raise(&b, wr_find(w, (int)layer, names[k])) && room;
        }
        if (layer == 0) {
            status = (w->config.flags & MBI_MODEL_TIED) != 0
                         ? wr_raise_rows(&b, "embedding", "embedding_rest", err)
                         : wr_raise_rows(&b, "head", "head_rest", err);
        }
    }
    return status;
}

enum { WR_SELFTEST_TOKENS = 8, WR_SELFTEST_VALUES = 64 };

static const uint64_t wr_selftest_bytes = 16 + 4 * WR_SELFTEST_TOKENS + 8 * WR_SELFTEST_VALUES;

/* Places tensors and sections; fills w->meta but for hashes and the self-test's logits. */
TL_FN tl_status wr_layout(wr_file *w, tl_error *err)
{
    mbi_section sections[MBI_MAX_SECTIONS];
    const void *data[MBI_MAX_SECTIONS];
    mbi_tensor *records;
    uint64_t end;
    uint32_t n = 0;
    qsort(w->items, w->item_count, sizeof *w->items, wr_order);
    if (w->config.main_type == MAMBA_Q4) {
        tl_status status = wr_choose(w, err);
        if (status != TL_OK) {
            return status;
        }
    }
    memset(sections, 0, sizeof sections);
    memcpy(sections[n].name, "config", 6);
    data[n] = &w->config;
    sections[n++].bytes = sizeof w->config;
    memcpy(sections[n].name, "layers", 6);
    data[n] = w->layers;
    sections[n++].bytes = w->config.n_layers * sizeof(mbi_layer_record);
    memcpy(sections[n].name, "tensors", 7);
    data[n] = NULL;
    sections[n++].bytes = w->item_count * sizeof(mbi_tensor);
    for (int i = 0; i < w->extra_count; i++) {
        memcpy(sections[n].name, w->extras[i].name, 16);
        data[n] = w->extras[i].data;
        sections[n++].bytes = w->extras[i].bytes;
    }
    if (w->selftest) {
        memcpy(sections[n].name, "selftest", 8);
        data[n] = NULL;
        sections[n++].bytes = wr_selftest_bytes;
    }
    end = MBI_HEADER_BYTES + (uint64_t)n * MBI_SECTION_BYTES;
    for (uint32_t i = 0; i < n; i++) {
        sections[i].offset = mbi_pad(end, 64);
        end = sections[i].offset + sections[i].bytes;
    }
    w->meta_bytes = mbi_pad(end, MBI_DATA_ALIGN);
    w->meta = (unsigned char *)tl_calloc(w->meta_bytes, 1, err);
    if (w->meta == NULL) {
        return TL_ERR_MEMORY;
    }
    end = w->meta_bytes;
    records = (mbi_tensor *)(void *)(w->meta + sections[2].offset);
    for (size_t i = 0; i < w->item_count; i++) {
        mbi_tensor *t = &w->items[i].t;
        t->bytes = mbi_tensor_bytes(t);
        t->offset = end;
        end = mbi_pad(end + t->bytes, 64);
        records[i] = *t;
    }
    w->file_bytes = end;
    memcpy(w->meta, MBI_MAGIC, 8);
    {
        const uint32_t words[2] = {MBI_FILE_VERSION, MBI_BYTE_ORDER};
        memcpy(w->meta + 8, words, 8);
    }
    memcpy(w->meta + 16, &w->file_bytes, 8);
    memcpy(w->meta + 24, &w->meta_bytes, 8);
    memcpy(w->meta + 48, &n, 4);
    memcpy(w->meta + MBI_HEADER_BYTES, sections, n * sizeof *sections);
    for (uint32_t i = 0; i < n; i++) {
        if (data[i] != NULL) {
            memcpy(w->meta + sections[i].offset, data[i], (size_t)sections[i].bytes);
        }
    }
    return TL_OK;
}

/* Appends data and hashes it. */
TL_FN tl_status wr_put(wr_file *w, const void *bytes, uint64_t n, tl_error *err)
{
    mbi_hash_add(&w->hash, bytes, (size_t)n);
    w->at += n;
    return tl_write_all(w->fd, bytes, (size_t)n, w->temporary, err);
}

/* What it takes to pack one panel after the other. */
typedef struct {
    size_t cols_pad, panel_bytes, bases_bytes;
    float *rows;           /* 16 of cols_pad floats */
    float *wanted;         /* see pack_panel */
    float *bases;          /* one for each panel, padded like bases_bytes */
    unsigned char *panel;
} wr_packer;

TL_FN void wr_packer_free(wr_packer *k)
{
    tl_free(k->rows);
    tl_free(k->wanted);
    tl_free(k->bases);
    tl_free(k->panel);
}

TL_FN tl_status wr_packer_init(wr_packer *k, const mbi_tensor *t, tl_error *err)
{
    mamba_type type = (mamba_type)t->type;
    memset(k, 0, sizeof *k);
    k->cols_pad = (size_t)mbi_pad(t->cols, mbi_is_quantized(type) ? 64 : 32);
    k->panel_bytes = (size_t)mbi_panel_bytes(type, t->cols);
    k->bases_bytes = (size_t)mbi_bases_bytes(type, mbi_padded_rows(t) / 16);
    k->rows = (float *)tl_malloc(16 * k->cols_pad, sizeof(float), err);
    k->wanted = (float *)tl_malloc(k->cols_pad / 2, sizeof(float), err);
    k->bases = (float *)tl_calloc(k->bases_bytes + 1, 1, err);
    k->panel = (unsigned char *)tl_malloc(k->panel_bytes, 1, err);
    return k->rows != NULL && k->wanted != NULL && k->bases != NULL && k->panel != NULL ? TL_OK : TL_ERR_MEMORY;
}

/* Rows [row, row + n) of the item as one panel. */
TL_FN tl_status wr_pack(wr_packer *k, const wr_item *item, uint64_t row, uint64_t n, float *base, tl_error *err)
{
    mamba_type type = (mamba_type)item->t.type;
    tl_status status = TL_OK;
    memset(k->rows, 0, 16 * k->cols_pad * sizeof(float));
    memset(k->panel, 0, k->panel_bytes);
    for (uint64_t i = 0; i < n && status == TL_OK; i++) {
        status = item->source(item, item->skip + row + i, k->rows + i * k->cols_pad, err);
    }
    if (status == TL_OK && !pack_fits(k->rows, 16 * k->cols_pad, type)) {
        return tl_fail(err, TL_ERR_UNSUPPORTED, pack_fits(k->rows, 16 * k->cols_pad, MAMBA_F32)
                           ? "%s: a weight is too large for this type (f16: 65504; q8, q6, q4: 1000): use --type bf16 or f32"
                           : "%s: found a weight that is not finite", item->t.name);
    }
    if (status == TL_OK) {
        *base = pack_panel(k->rows, k->cols_pad, type, k->wanted, k->panel);
    }
    return status;
}

TL_FN tl_status wr_panels(wr_file *w, const wr_item *item, tl_error *err)
{
    const mbi_tensor *t = &item->t;
    wr_packer k;
    tl_status status = wr_packer_init(&k, t, err);
    uint64_t first = 0, panel = 0;
    for (uint32_t s = 0; s < t->n_segments && status == TL_OK; s++) {
        for (uint64_t r = 0; r < t->segments[s] && status == TL_OK; r += 16) {
            uint64_t n = t->segments[s] - r;
            float base = 0.0f;
            status = wr_pack(&k, item, first + r, n < 16 ? n : 16, &base, err);
            if (status == TL_OK) {
                status = wr_put(w, k.panel, k.panel_bytes, err);
            }
            if (status == TL_OK && w->progress != NULL &&
                w->progress(w->progress_user, w->at, w->file_bytes) != 0) {
                status = tl_fail(err, TL_ERR_IO, "interrupted; nothing was written to %s", w->path);
            }
            if (status == TL_OK && k.bases_bytes != 0) {
                k.bases[panel++] = base;
            }
        }
        first += t->segments[s];
    }
    if (status == TL_OK) {
        status = wr_put(w, k.bases, k.bases_bytes, err);
    }
    wr_packer_free(&k);
    return status;
}

TL_FN tl_status wr_vector(wr_file *w, const wr_item *item, tl_error *err)
{
    float *all = (float *)tl_calloc(item->t.bytes, 1, err);
    tl_status status = all != NULL ? item->source(item, 0, all, err) : TL_ERR_MEMORY;
    if (status == TL_OK) {
        status = wr_put(w, all, item->t.bytes, err);
    }
    tl_free(all);
    return status;
}

TL_FN tl_status wr_data(wr_file *w, tl_error *err)
{
    static const unsigned char zeros[64];
    tl_status status = TL_OK;
    mbi_hash_init(&w->hash);
    w->at = w->meta_bytes;
    for (size_t i = 0; i < w->item_count && status == TL_OK; i++) {
        const wr_item *item = &w->items[i];
        status = item->t.layout == MBI_LAYOUT_PANELS ? wr_panels(w, item, err) : wr_vector(w, item, err);
        if (status == TL_OK) {
            status = wr_put(w, zeros, mbi_pad(w->at, 64) - w->at, err);
        }
    }
    return status;
}

/* Hashes and writes the metadata at the start of the file. */
TL_FN tl_status wr_meta(wr_file *w, tl_error *err)
{
    uint64_t hash = mbi_hash_end(&w->hash);
    memcpy(w->meta + 40, &hash, 8);
    hash = mbi_hash_bytes(w->meta + 40, (size_t)w->meta_bytes - 40);
    memcpy(w->meta + 32, &hash, 8);
    if (lseek(w->fd, 0, SEEK_SET) != 0) {
        return tl_fail(err, TL_ERR_IO, "%s: can't seek: %s", w->temporary, strerror(errno));
    }
    return tl_write_all(w->fd, w->meta, (size_t)w->meta_bytes, w->temporary, err);
}

TL_FN tl_status wr_engine_fault(const wr_file *w, const mamba_error *e, tl_error *err)
{
    char text[400];
    mamba_error_text(e, text, sizeof text);
    return tl_fail(err, e->status == MAMBA_ERR_MEMORY ? TL_ERR_MEMORY : TL_ERR_FORMAT,
                   "%s: the written file does not run: %s", w->path, text);
}

/* Runs the new file and puts the logits into the self-test: on the scalar target, which needs nothing of
 * the machine, or on the best float32 one when that would take long. */
TL_FN tl_status wr_run_selftest(wr_file *w, const mamba_model *m, unsigned char *out, tl_error *err)
{
    mamba_state_options opt;
    mamba_state *s = NULL;
    mamba_error e;
    uint32_t n_vocab = w->config.n_vocab;
    uint32_t n_used = w->config.n_vocab_used != 0 ? w->config.n_vocab_used : n_vocab;
    const uint32_t counts[2] = {WR_SELFTEST_TOKENS, WR_SELFTEST_VALUES};
    int32_t tokens[WR_SELFTEST_TOKENS], ids[WR_SELFTEST_VALUES];
    float values[WR_SELFTEST_VALUES], tolerance, most = 0;
    float *logits = (float *)tl_malloc(n_vocab, sizeof(float), err);
    tl_status status = logits != NULL ? TL_OK : TL_ERR_MEMORY;
    for (uint32_t i = 0; i < WR_SELFTEST_TOKENS; i++) {
        tokens[i] = (int32_t)((uint64_t)(i * 2654435761u + 12345u) % n_used);
    }
    memset(&opt, 0, sizeof opt);
    opt.prefill_chunk = WR_SELFTEST_TOKENS;
    if (status == TL_OK && (mamba_state_create(m, &opt, &s, &e) != MAMBA_OK ||
                            mamba_prefill(s, tokens, WR_SELFTEST_TOKENS, logits, n_vocab, &e) != MAMBA_OK)) {
        status = wr_engine_fault(w, &e, err);
    }
    for (uint32_t i = 0; i < WR_SELFTEST_VALUES && status == TL_OK; i++) {
        ids[i] = (int32_t)((uint64_t)i * n_vocab / WR_SELFTEST_VALUES);
        values[i] = logits[ids[i]];
        if (!(fabsf(values[i]) <= 3.4e38f)) {
            status = tl_fail(err, TL_ERR_FORMAT, "%s: the model's logits are not finite: its weights are damaged",
                             w->path);
        }
        most = fabsf(values[i]) > most ? fabsf(values[i]) : most;
    }
    /* targets may round activations to 8 bits of mantissa for 8- and 4-bit weights only */
    /* int8 activations and few columns: a random network of 64 channels was off by 0.055 in q4 */
    tolerance = (w->config.main_type == MAMBA_Q4   ? 0.1f
                 : w->config.main_type == MAMBA_Q8 ? 0.05f
                                                   : 0.002f) * (1.0f + most);
    memcpy(out, counts, 8);
    memcpy(out + 8, &tolerance, 4);
    memcpy(out + 16, tokens, sizeof tokens);
    memcpy(out + 16 + sizeof tokens, ids, sizeof ids);
    memcpy(out + 16 + sizeof tokens + sizeof ids, values, sizeof values);
    mamba_state_free(s);
    tl_free(logits);
    return status;
}

TL_FN tl_status wr_selftest(wr_file *w, tl_error *err)
{
    mamba_config cfg;
    mamba_error e;
    mamba_model *m = NULL;
    uint64_t bytes = 0;
    tl_status status;
    const void *section;
    memset(&cfg, 0, sizeof cfg);
    cfg.target = mamba_target_find("scalar", 6);
    if (w->file_bytes > (uint64_t)1 << 30 && mamba_target_find("avx2", 4) != NULL &&
        mamba_target_usable(mamba_target_find("avx2", 4))) {
        cfg.target = mamba_target_find("avx2", 4);
    }
    if (mamba_open(w->temporary, strlen(w->temporary), &cfg, &m, &e) != MAMBA_OK) {
        return wr_engine_fault(w, &e, err);
    }
    section = mamba_model_section(m, "selftest", 8, &bytes);
    status = w->selftest && section != NULL
                 ? wr_run_selftest(w, m, w->meta + ((const unsigned char *)section - m->bytes.data), err)
                 : TL_OK;
    mamba_close(m);
    return status == TL_OK && w->selftest ? wr_meta(w, err) : status;
}

/* Syncs the folder of `path`, so that the rename itself survives a power cut; a file system that can't do
 * that is no error. */
TL_FN void wr_sync_folder(const char *path)
{
    char folder[4096];
    const char *slash = strrchr(path, '/');
    size_t n = slash != NULL ? (size_t)(slash - path) + (slash == path) : 1;
    int fd;
    if (n >= sizeof folder) {
        return;
    }
    memcpy(folder, slash != NULL ? path : ".", n);
    folder[n] = 0;
    fd = open(folder, O_RDONLY);
    if (fd >= 0) {
        (void)fsync(fd);
        (void)close(fd);
    }
}

/* Writes everything to a temporary file beside `path`, then renames it. */
TL_FN tl_status wr_write(wr_file *w, const char *path, tl_error *err)
{
    tl_status status;
    size_t n = strlen(path);
    w->path = path;
    w->temporary = (char *)tl_malloc(n + 32, 1, err);
    if (w->temporary == NULL) {
        return TL_ERR_MEMORY;
    }
    (void)snprintf(w->temporary, n + 32, "%s.%ld.tmp", path, (long)getpid());
    status = wr_layout(w, err);
    if (status != TL_OK) {
        return status;
    }
    w->fd = TL_SYS_OPEN(w->temporary, O_RDWR | O_CREAT | O_EXCL, 0666);
    if (w->fd < 0) {
        return tl_fail(err, TL_ERR_IO, "%s: can't create: %s", w->temporary, strerror(errno));
    }
    if (lseek(w->fd, (off_t)w->meta_bytes, SEEK_SET) < 0) {
        status = tl_fail(err, TL_ERR_IO, "%s: can't seek: %s", w->temporary, strerror(errno));
    }
    if (status == TL_OK) {
        status = wr_data(w, err);
    }
    if (status == TL_OK) {
        status = wr_meta(w, err);
    }
    if (status == TL_OK) {
        status = wr_selftest(w, err);
    }
    if (status == TL_OK && TL_SYS_FSYNC(w->fd) != 0) {
        status = tl_fail(err, TL_ERR_IO, "%s: can't sync: %s", w->temporary, strerror(errno));
    }
    if (TL_SYS_CLOSE(w->fd) != 0 && status == TL_OK) {
        status = tl_fail(err, TL_ERR_IO, "%s: can't close: %s", w->temporary, strerror(errno));
    }
    if (status == TL_OK && TL_SYS_RENAME(w->temporary, path) != 0) {
        status = tl_fail(err, TL_ERR_IO, "%s: can't rename to it: %s", path, strerror(errno));
    }
    if (status != TL_OK) {
        (void)TL_SYS_UNLINK(w->temporary);
    } else {
        wr_sync_folder(path);
    }
    return status;
}

#endif /* TL_WRITER_H */
