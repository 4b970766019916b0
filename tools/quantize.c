/*  quantize.c: mamba-quantize IN.mamba -o OUT.mamba --type T: one of our files into a smaller one.
 *
 *  Rows come out of the mapped input through the scalar target, which gives the exact values that products use,
 *  and go through the converter's writer: the result is byte for byte what mamba-convert makes of the checkpoint
 *  with the same --type, if the input holds the checkpoint's own type.
 */
#include "base.h"

#define MAMBA_NO_AVXVNNI /* what is written is checked by scalar or AVX2 arithmetic: compiles faster */
#define MAMBA_NO_AVX512
#define MAMBA_IMPLEMENTATION
#include "../mamba.h"

#include "pack.h"
#include "program.h"
#include "writer.h"

static const char qz_help[] =
    "Usage: mamba-quantize IN.mamba -o OUT.mamba --type T [options]\n"
    "\n"
    "Writes a .mamba file again with its large matrices in another, smaller type. What the recurrence is\n"
    "sensitive to stays in float. The tokenizer and all other sections are carried along.\n"
    "\n"
    "  -o, --output FILE    where to write; an existing file is replaced only on success\n"
    "  --type T             f32, f16, bf16, q8, q6 or q4; q4 gives the first layer and frequent tokens\n"
    "                       6 bits, 4.7 on average at most\n"
    "  --larger             allow a type that makes the file larger (nothing that was rounded away comes back)\n"
    "  -q, --quiet          no progress bar and no summary\n"
    "  -h, --help           this text\n"
    "\n"
    "Exit codes: 0 success, 1 it failed (nothing is written), 2 wrong usage, such as a larger type.\n"
    "Example: mamba-quantize mamba-130m.mamba -o mamba-130m-q4.mamba --type q4\n";

typedef struct {
    const char *in, *out;
    int type;   /* mamba_type or -1 */
    int quiet, larger;
} qz_options;

static int qz_bits(mamba_type type)
{
    static const int bits[] = {32, 16, 16, 8, 6, 4};
    return bits[type];
}

/* One row of a matrix of the input; rows count without the padding of the segments. */
static tl_status qz_row(const wr_item *item, uint64_t row, float *out, tl_error *err)
{
    const mamba_model *m = (const mamba_model *)item->from;
    const mbi_tensor *t = (const mbi_tensor *)item->tensor;
    uint64_t first = 0;
    mbi_mat w;
    int n_panels;
    (void)err;
    for (uint32_t s = 0; s < t->n_segments && row >= t->segments[s]; s++) {
        row -= t->segments[s];
        first += mbi_pad(t->segments[s], MBI_LANES);
    }
    n_panels = (int)(mbi_padded_rows(t) / MBI_LANES);
    w = mbi_mat_of((mamba_type)t->type, m->bytes.data + t->offset, n_panels, n_panels * MBI_LANES, (int)t->cols);
    mamba_target_find("scalar", 6)->k.row(&w, (int)(first + row), out, MBI_LANES);
    return TL_OK;
}

static tl_status qz_vector(const wr_item *item, uint64_t row, float *out, tl_error *err)
{
    const mamba_model *m = (const mamba_model *)item->from;
    const mbi_tensor *t = (const mbi_tensor *)item->tensor;
    (void)row;
    (void)err;
    memcpy(out, m->bytes.data + t->offset, (size_t)t->bytes);
    return TL_OK;
}

/* What steps are made of stays in float: dt_proj of Mamba-1, the dt rows of Mamba-2. */
static int qz_sensitive(const mbi_tensor *t)
{
    return strcmp(t->name + 12, "dt_proj") == 0 || strcmp(t->name + 12, "dt_in") == 0;
}

/* The type that a matrix gets. */
static mamba_type qz_choose(const mbi_tensor *t, const qz_options *o)
{
    mamba_type from = (mamba_type)t->type, to = (mamba_type)o->type;
    if (to >= MAMBA_Q8 && qz_sensitive(t)) {
        return from == MAMBA_F32 ? MAMBA_F16 : from;
    }
    return qz_bits(from) < qz_bits(to) && !o->larger ? from : to;
}

static tl_status qz_tensors(wr_file *w, const mamba_model *m, const qz_options *o, tl_error *err)
{
    for (int i = 0; i < m->n_tensors; i++) {
        const mbi_tensor *t = &m->tensors[i];
        wr_item *item;
        if (t->count != 1) {
            return tl_fail(err, TL_ERR_UNSUPPORTED, "%s: found %u matrices in a row, allowed: 1", t->name,
                           (unsigned)t->count);
        }
        item = wr_add(w, -1, "", MAMBA_F32, t->layout, err);
        if (item == NULL) {
            return TL_ERR_MEMORY;
        }
        item->t = *t;
        item->from = m;
        item->tensor = t;
        item->source = t->layout == MBI_LAYOUT_PANELS ? qz_row : qz_vector;
        if (t->layout == MBI_LAYOUT_PANELS) {
            item->t.type = (uint32_t)qz_choose(t, o);
        }
    }
    return TL_OK;
}

/* Everything of the input but its types: configuration, layers, other sections. */
static tl_status qz_sections(wr_file *w, const mamba_model *m, tl_error *err)
{
    static const char *const own[] = {"config", "layers", "tensors", "selftest"};
    w->config = m->config;
    w->selftest = m->config.n_vocab != 0;
    w->layers = (mbi_layer_record *)tl_calloc(m->config.n_layers, sizeof *w->layers, err);
    if (w->layers == NULL) {
        return TL_ERR_MEMORY;
    }
    for (int i = 0; i < m->n_sections; i++) {
        const mbi_section *s = &m->sections[i];
        const unsigned char *data = m->bytes.data + s->offset;
        int known = 0;
        for (int k = 0; k < 4; k++) {
            known = known || strncmp(s->name, own[k], sizeof s->name) == 0;
        }
        if (strncmp(s->name, "layers", sizeof s->name) == 0) {
            memcpy(w->layers, data, (size_t)s->bytes);
        } else if (!known) {
            if (w->extra_count == (int)(sizeof w->extras / sizeof w->extras[0])) {
                return tl_fail(err, TL_ERR_UNSUPPORTED, "sections: found more than %d besides those of the model",
                               w->extra_count);
            }
            memcpy(w->extras[w->extra_count].name, s->name, sizeof s->name);
            w->extras[w->extra_count].data = data;
            w->extras[w->extra_count++].bytes = s->bytes;
        }
    }
    return TL_OK;
}

/* Refuses what cannot help. */
static tl_status qz_check_type(const mamba_model *m, const qz_options *o, tl_error *err)
{
    mamba_type from = (mamba_type)m->config.main_type, to = (mamba_type)o->type;
    if (from == to) {
        return tl_fail(err, TL_ERR_USAGE, "%s: is of type %s already", o->in, mbi_type_name((uint32_t)to));
    }
    if (qz_bits(from) < qz_bits(to) && !o->larger) {
        return tl_fail(err, TL_ERR_USAGE, "%s: is of type %s; %s would make it larger and no better (--larger does "
                       "it all the same)", o->in, mbi_type_name((uint32_t)from), mbi_type_name((uint32_t)to));
    }
    return TL_OK;
}

static tl_status qz_open(const qz_options *o, mamba_model **m, tl_error *err)
{
    mamba_config cfg;
    mamba_error e;
    char text[400];
    memset(&cfg, 0, sizeof cfg);
    cfg.check = MAMBA_CHECK_CHECKSUM | MAMBA_CHECK_FINITE;   /* every weight is read anyway */
    if (mamba_open(o->in, strlen(o->in), &cfg, m, &e) == MAMBA_OK) {
        return TL_OK;
    }
    mamba_error_text(&e, text, sizeof text);
    return tl_fail(err, e.status == MAMBA_ERR_MEMORY ? TL_ERR_MEMORY : TL_ERR_FORMAT, "%s", text);
}

static tl_status qz_quantize(const qz_options *o, tl_error *err)
{
    mamba_model *m = NULL;
    wr_file w;
    uint64_t before;
    tl_status status = pr_check_output(o->out, o->in, err);
    memset(&w, 0, sizeof w);
    w.progress = pr_progress;
    w.progress_user = (void *)(uintptr_t)&o->quiet;
    if (status == TL_OK) {
        status = qz_open(o, &m, err);
    }
    if (status == TL_OK) {
        status = qz_check_type(m, o, err);
    }
    if (status == TL_OK) {
        status = qz_sections(&w, m, err);
    }
    if (status == TL_OK) {
        w.config.main_type = (uint32_t)o->type;
        status = qz_tensors(&w, m, o, err);
    }
    if (status == TL_OK) {
        status = wr_write(&w, o->out, err);
    }
    before = m != NULL ? m->bytes.bytes : 0;
    if (status == TL_OK && !o->quiet && isatty(2)) {
        fprintf(stderr, "%s: %llu bytes, were %llu\n", o->out, (unsigned long long)w.file_bytes,
                (unsigned long long)before);
    }
    wr_free(&w);
    mamba_close(m);
    return status;
}

int main(int argc, char **argv)
{
    qz_options o;
    tl_error err;
    int plain = 0;
    memset(&o, 0, sizeof o);
    memset(&err, 0, sizeof err);
    o.type = -1;
    for (int i = 1; i < argc; i++) {
        const char *v;
        if (plain || argv[i][0] != '-' || argv[i][1] == 0) {
            if (o.in != NULL) {
                return pr_usage("mamba-quantize", "one input only, found a second", argv[i]);
            }
            o.in = argv[i];
        } else if (strcmp(argv[i], "--") == 0) {
            plain = 1;
        } else if (strcmp(argv[i], "-h") == 0 || strcmp(argv[i], "--help") == 0) {
            fputs(qz_help, stdout);
            return fflush(stdout) == 0 ? 0 : 1;
        } else if (strcmp(argv[i], "-q") == 0 || strcmp(argv[i], "--quiet") == 0) {
            o.quiet = 1;
        } else if (strcmp(argv[i], "--larger") == 0) {
            o.larger = 1;
        } else if ((v = pr_value(argc, argv, &i, "-o")) != NULL || (v = pr_value(argc, argv, &i, "--output")) != NULL) {
            o.out = v;
        } else if ((v = pr_value(argc, argv, &i, "--type")) != NULL) {
            o.type = pr_type(v);
            if (o.type < 0) {
                return pr_usage("mamba-quantize", "--type must be f32, f16, bf16, q8, q6 or q4, found", v);
            }
        } else {
            return pr_usage("mamba-quantize", "unknown option", argv[i]);
        }
    }
    if (o.in == NULL || o.in[0] == 0) {
        return pr_usage("mamba-quantize", "give the .mamba file to read", NULL);
    }
    if (o.out == NULL || o.out[0] == 0) {
        return pr_usage("mamba-quantize", "give the output with -o FILE", NULL);
    }
    if (o.type < 0) {
        return pr_usage("mamba-quantize", "give the type with --type", NULL);
    }
    pr_catch_signals();
    if (qz_quantize(&o, &err) != TL_OK) {
        fprintf(stderr, "mamba-quantize: %s\n", err.message);
        return err.status == TL_ERR_USAGE ? 2 : 1;
    }
    return 0;
}
