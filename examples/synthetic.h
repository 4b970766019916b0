/*  synthetic.h: .mamba images of published geometries with generated weights, for measuring without
 * a file.
 *
 *  Weights are uniform with the variance of a fresh initialisation, dt lies between 0.001 and 0.1,
 * A = -1..-N, so that activations stay sane and no denormals appear.  The same name and type give
 * the same bytes everywhere. Include it behind the implementation of mamba.h: the format's records
 * and sizes come from there.
 */
#ifndef SYNTHETIC_H
#define SYNTHETIC_H

typedef struct {
    const char *name;
    int kind; /* mamba_layer_kind */
    int d_model, n_layers, n_vocab, d_state;
} synthetic_geometry;

/* Geometries of state-spaces/mamba-* and mamba2-* (vocabulary rows as stored there). */
static const synthetic_geometry synthetic_list[] = {
    {"tiny", MAMBA_LAYER_MAMBA1, 96, 3, 500, 16},
    {"130m", MAMBA_LAYER_MAMBA1, 768, 24, 50280, 16},
    {"370m", MAMBA_LAYER_MAMBA1, 1024, 48, 50280, 16},
    {"790m", MAMBA_LAYER_MAMBA1, 1536, 48, 50280, 16},
    {"1.4b", MAMBA_LAYER_MAMBA1, 2048, 48, 50280, 16},
    {"2.8b", MAMBA_LAYER_MAMBA1, 2560, 64, 50280, 16},
    {"mamba2-tiny", MAMBA_LAYER_MAMBA2, 96, 3, 500, 32},
    {"mamba2-130m", MAMBA_LAYER_MAMBA2, 768, 24, 50288, 128},
    {"mamba2-370m", MAMBA_LAYER_MAMBA2, 1024, 48, 50288, 128},
    {"mamba2-780m", MAMBA_LAYER_MAMBA2, 1536, 48, 50288, 128},
    {"mamba2-1.3b", MAMBA_LAYER_MAMBA2, 2048, 48, 50288, 128},
    {"mamba2-2.7b", MAMBA_LAYER_MAMBA2, 2560, 64, 50288, 128},
};
enum { SYNTHETIC_COUNT = sizeof synthetic_list / sizeof synthetic_list[0] };

/* How the numbers of a tensor are drawn. */
typedef enum { SYN_UNIFORM, SYN_ONE, SYN_A, SYN_A_HEAD, SYN_DT_BIAS } synthetic_fill;

typedef struct {
    mbi_tensor t;
    synthetic_fill fill;
    float amplitude;
} synthetic_tensor;

typedef struct {
    synthetic_tensor *list;
    size_t n, cap;
    unsigned char *image;
    uint64_t bytes;
} synthetic_model;

static void synthetic_free(synthetic_model *s) {
    free(s->list);
    mbi_default_free(NULL, s->image, (size_t)s->bytes);
    memset(s, 0, sizeof *s);
}

static synthetic_tensor *synthetic_add(synthetic_model *s, int layer, const char *what,
                                       synthetic_fill fill, double amplitude) {
    synthetic_tensor *t = &s->list[s->n++]; /* reserved by the caller */
    memset(t, 0, sizeof *t);
    mbi_tensor_name(layer, what, t->t.name);
    t->t.count = 1;
    t->fill = fill;
    t->amplitude = (float)amplitude;
    return t;
}

static void synthetic_vector(synthetic_model *s, int layer, const char *what, int rows, int cols,
                             synthetic_fill fill, double amplitude) {
    synthetic_tensor *t = synthetic_add(s, layer, what, fill, amplitude);
    t->t.rows = t->t.segments[0] = (uint32_t)rows;
    t->t.cols = (uint32_t)cols;
    t->t.n_segments = 1;
}

/* A matrix whose rows are up to four segments; 0 ends them. */
static void synthetic_matrix(synthetic_model *s, int layer, const char *what, mamba_type type,
                             int cols, const int rows[4], double amplitude) {
    synthetic_tensor *t = synthetic_add(s, layer, what, SYN_UNIFORM, amplitude);
    int i;
    t->t.type = (uint32_t)type;
    t->t.layout = MBI_LAYOUT_PANELS;
    t->t.cols = (uint32_t)cols;
    for (i = 0; i < 4 && rows[i] > 0; i++) {
        t->t.segments[t->t.n_segments++] = (uint32_t)rows[i];
        t->t.rows += (uint32_t)rows[i];
    }
}

static void synthetic_mamba1(synthetic_model *s, const synthetic_geometry *g, int layer,
                             mamba_type type, mamba_type sensitive, mbi_layer_record *record) {
    int inner = 2 * g->d_model;
    int rank = (g->d_model + 15) / 16;
    double fan = sqrt(3.0 / (double)inner);
    record->u[0] = (uint32_t)inner;
    record->u[1] = (uint32_t)g->d_state;
    record->u[2] = 4;
    record->u[3] = (uint32_t)rank;
    {
        const int in_rows[4] = {inner, inner, 0, 0};
        const int x_rows[4] = {rank, g->d_state, g->d_state, 0};
        const int dt_rows[4] = {inner, 0, 0, 0};
        const int out_rows[4] = {g->d_model, 0, 0, 0};
        synthetic_matrix(s, layer, "in_proj", type, g->d_model, in_rows, sqrt(3.0 / g->d_model));
        synthetic_matrix(s, layer, "x_proj", type, inner, x_rows, fan);
        synthetic_matrix(s, layer, "dt_proj", sensitive, rank, dt_rows, 0.1 / sqrt(rank));
        synthetic_matrix(s, layer, "out_proj", type, inner, out_rows, fan / sqrt(g->n_layers));
    }
    synthetic_vector(s, layer, "norm", 1, g->d_model, SYN_ONE, 1);
    synthetic_vector(s, layer, "conv_w", 4, inner, SYN_UNIFORM, 0.5);
    synthetic_vector(s, layer, "conv_b", 1, inner, SYN_UNIFORM, 0.1);
    synthetic_vector(s, layer, "dt_bias", 1, inner, SYN_DT_BIAS, 1);
    synthetic_vector(s, layer, "A", (inner + 15) / 16 * g->d_state, 16, SYN_A, g->d_state);
    synthetic_vector(s, layer, "D", 1, inner, SYN_ONE, 1);
}

static void synthetic_mamba2(synthetic_model *s, const synthetic_geometry *g, int layer,
                             mamba_type type, mamba_type sensitive, mbi_layer_record *record) {
    int inner = 2 * g->d_model;
    int heads = inner / 64;
    int channels = inner + 2 * g->d_state;
    const int in_rows[4] = {inner, inner, g->d_state, g->d_state}; /* z, x, B, C */
    const int dt_rows[4] = {heads, 0, 0, 0};
    const int out_rows[4] = {g->d_model, 0, 0, 0};
    const uint32_t parameters[10] = {(uint32_t)inner,
                                     (uint32_t)g->d_state,
                                     4,
                                     (uint32_t)heads,
                                     64,
                                     1,
                                     0,
                                     mbi_f32_bits(1e-5f),
                                     mbi_f32_bits(0.0f),
                                     mbi_f32_bits(1e30f)};
    memcpy(record->u, parameters, sizeof parameters);
    record->flags = 1; /* gated norm */
    synthetic_matrix(s, layer, "in_proj", type, g->d_model, in_rows, sqrt(3.0 / g->d_model));
    synthetic_matrix(s, layer, "dt_in", sensitive, g->d_model, dt_rows, 0.1 / sqrt(g->d_model));
    synthetic_matrix(s, layer, "out_proj", type, inner, out_rows,
                     sqrt(3.0 / inner) / sqrt(g->n_layers));
    synthetic_vector(s, layer, "norm", 1, g->d_model, SYN_ONE, 1);
    synthetic_vector(s, layer, "gated_norm", 1, inner, SYN_ONE, 1);
    synthetic_vector(s, layer, "conv_w", 4, channels, SYN_UNIFORM, 0.5);
    synthetic_vector(s, layer, "conv_b", 1, channels, SYN_UNIFORM, 0.1);
    synthetic_vector(s, layer, "dt_bias", 1, heads, SYN_DT_BIAS, 1);
    synthetic_vector(s, layer, "A", 1, heads, SYN_A_HEAD, 1);
    synthetic_vector(s, layer, "D", 1, inner, SYN_ONE, 1);
}

static int synthetic_order(const void *a, const void *b) {
    return memcmp(((const synthetic_tensor *)a)->t.name, ((const synthetic_tensor *)b)->t.name, 64);
}

/* xorshift64*; a state of 0 would stay 0. */
static uint64_t synthetic_random(uint64_t *x) {
    *x ^= *x >> 12;
    *x ^= *x << 25;
    *x ^= *x >> 27;
    return *x * 0x2545F4914F6CDD1Du;
}

/* In [-1, 1). */
static float synthetic_float(uint64_t *x) {
    return (float)(int32_t)(synthetic_random(x) >> 40) * (1.0f / 8388608.0f) - 1.0f;
}

/* Toward zero, small ones to 0. */
static uint16_t synthetic_f16(float f) {
    uint32_t u = mbi_f32_bits(f);
    uint32_t sign = u >> 16 & 0x8000u;
    u &= 0x7fffffffu;
    return (uint16_t)(u < 0x38800000u ? sign : sign | ((u - 0x38000000u) >> 13 & 0x7fffu));
}

static void synthetic_fill_vector(const synthetic_tensor *s, unsigned char *at, uint64_t seed) {
    uint64_t width = mbi_pad(s->t.cols, MBI_LANES);
    uint64_t r;
    uint64_t c;
    for (r = 0; r < s->t.rows; r++) {
        for (c = 0; c < s->t.cols; c++) {
            float v = 1.0f;
            if (s->fill == SYN_UNIFORM) {
                v = s->amplitude * synthetic_float(&seed);
            } else if (s->fill == SYN_A) { /* rows are [block of 16 channels][state] */
                v = -(float)(r % (uint64_t)s->amplitude + 1);
            } else if (s->fill == SYN_A_HEAD) {
                v = -8.5f - 7.5f * synthetic_float(&seed);
            } else if (s->fill == SYN_DT_BIAS) { /* softplus(v) is log-uniform in 0.001 .. 0.1 */
                double dt =
                    exp(-6.907755 + 4.605170 * (0.5 + 0.5 * (double)synthetic_float(&seed)));
                v = (float)log(exp(dt) - 1.0);
            }
            memcpy(at + (r * width + c) * 4, &v, 4);
        }
    }
}

/* Bytes of one panel; rows from n_rows on stay zero. */
static void synthetic_fill_panel(const synthetic_tensor *s, unsigned char *at, int n_rows,
                                 uint64_t seed) {
    uint64_t cols = s->t.cols;
    uint64_t c;
    int r;
    for (c = 0; c < cols; c++) {
        for (r = 0; r < n_rows; r++) {
            if (s->t.type == MAMBA_F32) {
                float v = s->amplitude * synthetic_float(&seed);
                memcpy(at + (c * 16 + (uint64_t)r) * 4, &v, 4);
            } else if (s->t.type == MAMBA_F16 || s->t.type == MAMBA_BF16) {
                float v = s->amplitude * synthetic_float(&seed);
                uint16_t h =
                    s->t.type == MAMBA_F16 ? synthetic_f16(v) : (uint16_t)(mbi_f32_bits(v) >> 16);
                memcpy(at + (c / 2 * 16 + (uint64_t)r) * 4 + c % 2 * 2, &h, 2);
            }
        }
    }
}

/* The same for quantized types: any bytes are integers, so the units are random; all scales are the same. */
static void synthetic_fill_quantized(const synthetic_tensor *s, unsigned char *at, int n_rows,
                                     uint64_t seed) {
    size_t group = mbi_group_bytes((mamba_type)s->t.type);
    int n_groups = mbi_groups((int)s->t.cols);
    int g;
    for (g = 0; g < n_groups; g++) {
        unsigned char *units = at + mbi_units_at(group, g);
        size_t i;
        for (i = 0; i < group; i += 8) {
            uint64_t v = synthetic_random(&seed);
            memcpy(units + i, &v, 8);
        }
        memset(at + mbi_codes_at(group, g), 127, (size_t)n_rows); /* rows from n_rows on stay zero */
    }
}

/* The largest integer of a type, times the scale, is the amplitude. */
static void synthetic_fill_bases(const synthetic_tensor *s, unsigned char *at) {
    float base = s->amplitude / (s->t.type == MAMBA_Q6 ? 32.0f : 127.0f) / (127.0f * 127.0f);
    uint64_t i;
    for (i = 0; i < mbi_bases_bytes((mamba_type)s->t.type, mbi_padded_rows(&s->t) / 16); i += 4) {
        memcpy(at + i, &base, 4);
    }
}

static void synthetic_fill_tensor(const synthetic_tensor *s, unsigned char *image) {
    uint64_t seed = mbi_hash_bytes(s->t.name, sizeof s->t.name) | 1;
    unsigned char *at = image + s->t.offset;
    uint64_t panel_bytes = mbi_panel_bytes((mamba_type)s->t.type, s->t.cols);
    uint32_t i;
    if (s->t.layout == MBI_LAYOUT_VECTOR) {
        synthetic_fill_vector(s, at, seed);
        return;
    }
    for (i = 0; i < s->t.n_segments; i++) {
        int n = (int)((s->t.segments[i] + 15) / 16);
        int p;
#if MBI_OPENMP
#pragma omp parallel for
#endif
        for (p = 0; p < n; p++) {
            int rows = (int)s->t.segments[i] - 16 * p;
            (mbi_is_quantized((mamba_type)s->t.type) ? synthetic_fill_quantized
                                                     : synthetic_fill_panel)(
                s, at + (uint64_t)p * panel_bytes, rows < 16 ? rows : 16,
                seed + ((uint64_t)p + ((uint64_t)i << 32)) * 0x9E3779B97F4A7C15u);
        }
        at += (uint64_t)n * panel_bytes;
    }
    synthetic_fill_bases(s, at);
}

/* Header, sections and tensor records into the zeroed image. */
static void synthetic_meta(synthetic_model *s, const mbi_config_record *config,
                           const mbi_layer_record *layers, uint64_t meta_bytes) {
    static const char names[3][16] = {"config", "layers", "tensors"};
    const uint64_t bytes[3] = {sizeof *config, config->n_layers * sizeof *layers,
                               s->n * sizeof(mbi_tensor)};
    const uint32_t words[2] = {MBI_FILE_VERSION, MBI_BYTE_ORDER};
    const uint32_t n_sections = 3;
    unsigned char *p = s->image;
    uint64_t end = MBI_HEADER_BYTES + 3 * MBI_SECTION_BYTES;
    uint64_t hash;
    size_t i;
    memcpy(p, MBI_MAGIC, 8);
    memcpy(p + 8, words, 8);
    memcpy(p + 16, &s->bytes, 8);
    memcpy(p + 24, &meta_bytes, 8);
    memcpy(p + 48, &n_sections, 4);
    for (i = 0; i < 3; i++) {
        mbi_section section;
        memset(&section, 0, sizeof section);
        memcpy(section.name, names[i], 16);
        section.offset = mbi_pad(end, 64);
        section.bytes = bytes[i];
        end = section.offset + section.bytes;
        memcpy(p + MBI_HEADER_BYTES + i * MBI_SECTION_BYTES, &section, sizeof section);
        if (i < 2) {
            memcpy(p + section.offset, i == 0 ? (const void *)config : (const void *)layers,
                   (size_t)section.bytes);
        } else {
            size_t k;
            for (k = 0; k < s->n; k++) {
                memcpy(p + section.offset + k * sizeof(mbi_tensor), &s->list[k].t,
                       sizeof(mbi_tensor));
            }
        }
    }
    hash = mbi_hash_bytes(p + 40, (size_t)meta_bytes - 40);
    memcpy(p + 32, &hash, 8);
}

/* Places tensors behind the metadata, allocates the image and fills it. */
static int synthetic_layout(synthetic_model *s, const mbi_config_record *config,
                            const mbi_layer_record *layers, int with_hash) {
    uint64_t meta = mbi_pad(MBI_HEADER_BYTES + 3 * MBI_SECTION_BYTES, 64) + sizeof *config +
                    mbi_pad(config->n_layers * sizeof *layers, 64) + s->n * sizeof(mbi_tensor);
    uint64_t end;
    size_t i;
    meta = mbi_pad(meta, MBI_DATA_ALIGN);
    qsort(s->list, s->n, sizeof *s->list, synthetic_order);
    for (i = 0, end = meta; i < s->n; i++) {
        s->list[i].t.offset = end;
        s->list[i].t.bytes = mbi_tensor_bytes(&s->list[i].t);
        end = mbi_pad(end + s->list[i].t.bytes, 64);
    }
    s->bytes = end;
    s->image = end > SIZE_MAX / 2 ? NULL : (unsigned char *)mbi_default_alloc(NULL, (size_t)end, 4096);
    if (s->image == NULL) {
        return cli_fail(CLI_FAILED, "out of memory: %llu bytes for the generated model",
                        (unsigned long long)end);
    }
    memset(s->image, 0, (size_t)end);
    for (i = 0; i < s->n; i++) {
        synthetic_fill_tensor(&s->list[i], s->image);
    }
    if (with_hash) {
        uint64_t hash = mbi_hash_bytes(s->image + meta, (size_t)(end - meta));
        memcpy(s->image + 40, &hash, 8);
    }
    synthetic_meta(s, config, layers, meta);
    return CLI_OK;
}

/* Builds the model called `name`; with_hash: the checksum of the weights too, for writing it to a
 * file. */
static int synthetic_build(synthetic_model *s, const synthetic_geometry *g, mamba_type type,
                           int with_hash) {
    mamba_type sensitive = type < MAMBA_Q8 ? type : MAMBA_F16; /* as mamba-convert does */
    const int vocab_rows[4] = {g->n_vocab, 0, 0, 0};
    mbi_config_record config;
    mbi_layer_record *layers = (mbi_layer_record *)calloc((size_t)g->n_layers, sizeof *layers);
    int code;
    int i;
    memset(s, 0, sizeof *s);
    memset(&config, 0, sizeof config);
    s->cap = 2 + 16 * (size_t)g->n_layers;
    s->list = (synthetic_tensor *)calloc(s->cap, sizeof *s->list);
    if (layers == NULL || s->list == NULL) {
        free(layers);
        return cli_fail(CLI_FAILED, "out of memory");
    }
    config.d_model = (uint32_t)g->d_model;
    config.n_layers = (uint32_t)g->n_layers;
    config.n_vocab = config.n_vocab_used = (uint32_t)g->n_vocab;
    config.flags = MBI_MODEL_TIED;
    config.main_type = (uint32_t)type;
    config.norm_eps = 1e-5f;
    config.embedding_scale = config.residual_scale = config.logit_scale = 1.0f;
    config.bos = config.eos = config.pad = -1;
    memcpy(config.architecture, g->kind == MAMBA_LAYER_MAMBA2 ? "mamba2" : "mamba", 6);
    synthetic_matrix(s, -1, "embedding", type, g->d_model, vocab_rows, 0.035);
    synthetic_vector(s, -1, "norm_f", 1, g->d_model, SYN_ONE, 1);
    for (i = 0; i < g->n_layers; i++) {
        layers[i].kind = (uint32_t)g->kind;
        layers[i].norm_eps = 1e-5f;
        if (g->kind == MAMBA_LAYER_MAMBA2) {
            synthetic_mamba2(s, g, i, type, sensitive, &layers[i]);
        } else {
            synthetic_mamba1(s, g, i, type, sensitive, &layers[i]);
        }
    }
    code = synthetic_layout(s, &config, layers, with_hash);
    free(layers);
    return code;
}

static const synthetic_geometry *synthetic_find(const char *name) {
    int i;
    for (i = 0; i < SYNTHETIC_COUNT; i++) {
        if (strcmp(synthetic_list[i].name, name) == 0) {
            return &synthetic_list[i];
        }
    }
    return NULL;
}

#endif /* SYNTHETIC_H */
