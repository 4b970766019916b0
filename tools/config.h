/*  config.h: turns a checkpoint's configuration and tensor shapes into one neutral description.
 *
 *  Reads Mamba-1, FalconMamba and Mamba-2 in the key sets of Hugging Face, mamba_ssm and Mistral's
 *  params.json, and GGUF files (gguf_config.h). Missing keys get the defaults of mamba_ssm; a bias
 *  or norm that no key mentions is there if its tensor is. Each relation between fields and tensor
 *  shapes is checked here, so that whoever takes the description can trust it; what contradicts it
 *  is refused by field or tensor, found and allowed.
 *
 *      ck_model model;
 *      if (ck_describe(ck, NULL, &model, &err) == TL_OK) {
 *          ... model.layers[i].in_proj ...
 *          ck_model_free(&model);
 *      }
 */
#ifndef TL_CONFIG_H
#define TL_CONFIG_H

#include "checkpoint.h"

#include <math.h>

#define CK_SUPPORTED                                                           \
    "mamba (MambaForCausalLM), falcon_mamba (FalconMambaForCausalLM), mamba2 " \
    "(Mamba2ForCausalLM), mamba_ssm files of Mamba1 and Mamba2, Mistral's Codestral-Mamba"

typedef enum {
    CK_ARCH_UNKNOWN, CK_ARCH_MAMBA1, CK_ARCH_FALCON_MAMBA, CK_ARCH_MAMBA2
} ck_arch;

typedef enum {
    CK_KEYS_HF, CK_KEYS_MAMBA_SSM, CK_KEYS_MISTRAL, CK_KEYS_GGUF
} ck_keys;

/* The tensors of one layer; NULL where the model has none. Shapes as in the file: (out, in),
 * row-major. */
typedef struct {
    int attention;                   /* 1: an attention layer; else the model's mixer */
    const ck_tensor *norm;           /* (d_model) */
    const ck_tensor *in_proj;        /* Mamba-1: (2 d_inner, d_model), rows [x | z];
                                        Mamba-2: (d_in_proj, d_model), [z0|x0|z|x|B|C|dt] */
    const ck_tensor *in_proj_bias;   /* its rows */
    const ck_tensor *conv;           /* (conv_channels, 1, d_conv) */
    const ck_tensor *conv_bias;      /* (conv_channels) */
    const ck_tensor *x_proj;         /* Mamba-1: (dt_rank + 2 d_state, d_inner), [dt | B | C] */
    const ck_tensor *dt_proj;        /* Mamba-1: (d_inner, dt_rank) */
    const ck_tensor *dt_bias;        /* Mamba-1: dt_proj.bias (d_inner); Mamba-2: (n_heads) */
    const ck_tensor *A_log;          /* Mamba-1: (d_inner, d_state); Mamba-2: (n_heads) */
    const ck_tensor *D;              /* Mamba-1: (d_inner); Mamba-2: (n_heads) or (d_ssm) */
    const ck_tensor *gated_norm;     /* Mamba-2, if rms_gated: (d_ssm) */
    const ck_tensor *out_proj;       /* (d_model, d_inner) */
    const ck_tensor *out_proj_bias;  /* (d_model) */
    const ck_tensor *norm2;          /* with an MLP: (d_model) */
    const ck_tensor *fc1;            /* with an MLP: (2 d_mlp, d_model), rows [value | gate] */
    const ck_tensor *fc2;            /* with an MLP: (d_model, d_mlp) */
} ck_layer;

/* Attention layers of mamba_ssm files: in_proj rows [q | k | v | up | gate]. */
typedef struct {
    uint64_t n_heads, n_kv, headdim;   /* n_heads 0: the model has no attention layers */
    uint64_t rotary_dim, d_conv;       /* of each head; taps over q, k, v: 0 = none */
    uint64_t d_mlp;                    /* rows of up and of gate */
    double rotary_base, scale;
    int adjacent;                      /* rotary pairs (2i, 2i+1) instead of (i, i + rotary_dim/2) */
    int qkv_bias, out_bias;
} ck_attention;

typedef struct {
    ck_arch arch;
    ck_keys keys;
    uint64_t d_model, n_layer;
    uint64_t vocab_size;             /* as the configuration says */
    uint64_t padded_vocab;           /* rows of the embedding */
    uint64_t d_inner;                /* expand * d_model */
    uint64_t d_ssm;                  /* = d_inner but for Mamba-2 with a gated MLP beside the SSM */
    uint64_t d_state, d_conv;
    uint64_t dt_rank;                /* Mamba-1 */
    uint64_t n_heads, headdim, n_groups;   /* Mamba-2 (Mamba-1: d_inner, 1, 1) */
    uint64_t conv_channels;          /* d_inner, or d_ssm + 2 n_groups d_state */
    uint64_t d_in_proj;              /* rows of in_proj */
    uint64_t d_mlp;                  /* 0: no MLP blocks; else its stored width */
    double eps;                      /* of the block norms and the gated norm */
    double mixer_rms_eps;            /* FalconMamba: of the norms of dt, B, C */
    double dt_limit[2];              /* Mamba-2: clamp of dt after softplus; may be infinite */
    int bcdt_rms;                    /* FalconMamba: dt, B, C are normalised, without weights */
    int rms_gated;                   /* Mamba-2: a gated norm before out_proj */
    int norm_before_gate;
    int D_has_hdim;
    int proj_bias, conv_bias;
    int A_stored;                    /* the A_log tensors hold A = -exp(A_log) itself, as in GGUF */
    int tied;                        /* head == embedding */
    int64_t bos, eos;                /* -1 if not in the configuration; the first of several */
    ck_attention attention;
    const ck_tensor *embedding;      /* (padded_vocab, d_model) */
    const ck_tensor *norm_f;         /* (d_model) */
    const ck_tensor *head;           /* (padded_vocab, d_model) */
    ck_layer *layers;
    size_t unused_count;             /* tensors of the checkpoint that no part of the model uses */
    const ck_tensor *unused;         /* the first of them */
    const char *warning;             /* something the user should know, or NULL */
} ck_model;

TL_FN void ck_model_free(ck_model *m)
{
    tl_free(m->layers);
    memset(m, 0, sizeof *m);
}

/* ---- fields ---------------------------------------------------------------------------------- */

/* A reader of fields. The first error stays in err: a run of reads is checked once at its end. */
typedef struct {
    const ck_source *ck;
    const json_doc *doc;
    json_id top, ssm;        /* the configuration and its ssm_cfg (or JSON_NONE) */
    json_id attention;       /* attn_cfg (or JSON_NONE) */
    ck_model *m;
    const char *prefix;      /* of the tensors' names: "backbone." or "model.backbone." */
    unsigned char *used;     /* by tensor */
    tl_error *err;
} cfg_reader;

TL_FN const char *cfg_scope(const cfg_reader *c, json_id object)
{
    return object == c->top ? "" : object == c->attention ? "attn_cfg." : "ssm_cfg.";
}

TL_FN tl_status cfg_fault(const cfg_reader *c, json_id object, const char *key, const char *found,
                          const char *allowed)
{
    tl_quoted q;
    return tl_fail(c->err, TL_ERR_FORMAT, "%s: field '%s%s': found %s, allowed: %s",
                   tl_path(&q, c->ck->config_path),
                   cfg_scope(c, object), key, found, allowed);
}

/* The value of a key; null counts as absent, as None does in Python. */
TL_FN json_id cfg_get(const cfg_reader *c, json_id object, const char *key)
{
    json_id id = json_get(c->doc, object, key);
    return json_kind(c->doc, id) == JSON_NULL ? JSON_NONE : id;
}

TL_FN int cfg_has(const cfg_reader *c, json_id object, const char *key)
{
    return cfg_get(c, object, key) != JSON_NONE;
}

#define CFG_REQUIRED UINT64_MAX

/* An exact integer in [1, max] ([0, max] if absent means 0); `absent` if the key is missing. */
TL_FN uint64_t cfg_u64(const cfg_reader *c, json_id object, const char *key, uint64_t absent,
                       uint64_t max)
{
    json_id id = cfg_get(c, object, key);
    uint64_t value = 1, min = absent == 0 ? 0 : 1;
    tl_quoted q;
    char allowed[64];
    if (id == JSON_NONE && absent != CFG_REQUIRED) {
        return absent;
    }
    if (!json_u64(c->doc, id, &value) || value < min || value > max) {
        (void)snprintf(allowed, sizeof allowed, "an integer from %llu to %llu",
                       (unsigned long long)min, (unsigned long long)max);
        cfg_fault(c, object, key, json_brief(&q, c->doc, id), allowed);
        return 1;
    }
    return value;
}

/* true, false, or -1 if absent. */
TL_FN int cfg_bool(const cfg_reader *c, json_id object, const char *key, int absent)
{
    json_id id = cfg_get(c, object, key);
    int value = 0;
    tl_quoted q;
    if (id == JSON_NONE) {
        return absent;
    }
    if (!json_bool(c->doc, id, &value)) {
        cfg_fault(c, object, key, json_brief(&q, c->doc, id), "true or false");
    }
    return value;
}

TL_FN double cfg_eps(const cfg_reader *c, const char *key, double absent)
{
    json_id id = cfg_get(c, c->top, key);
    double value = absent;
    tl_quoted q;
    if (id != JSON_NONE && (!json_f64(c->doc, id, &value) || !(value > 0.0 && value <= 1.0))) {
        cfg_fault(c, c->top, key, json_brief(&q, c->doc, id), "a number above 0, at most 1");
        return absent;
    }
    return value;
}

/* A flag that must have one value here. */
TL_FN void cfg_must(const cfg_reader *c, json_id object, const char *key, int wanted,
                    const char *allowed)
{
    if (cfg_bool(c, object, key, wanted) != wanted) {
        cfg_fault(c, object, key, wanted ? "false" : "true", allowed);
    }
}

TL_FN void cfg_activation(const cfg_reader *c, json_id object, const char *key)
{
    json_id id = cfg_get(c, object, key);
    tl_quoted q;
    if (id != JSON_NONE && !json_str_is(c->doc, id, "silu") && !json_str_is(c->doc, id, "swish")) {
        cfg_fault(c, object, key, json_brief(&q, c->doc, id), "\"silu\" or \"swish\"");
    }
}

/* expand * d_model, rounded down as Python's int() does; `expand` may be a fraction. */
TL_FN uint64_t cfg_expand(const cfg_reader *c, json_id object)
{
    json_id id = cfg_get(c, object, "expand");
    double factor = 2.0;
    uint64_t value;
    tl_quoted q;
    if (id != JSON_NONE && (!json_f64(c->doc, id, &factor) || !(factor > 0.0 && factor <= 64.0))) {
        cfg_fault(c, object, "expand", json_brief(&q, c->doc, id), "a number above 0, at most 64");
        return 1;
    }
    value = (uint64_t)(factor * (double)c->m->d_model);
    if (value == 0) {
        cfg_fault(c, object, "expand", json_brief(&q, c->doc, id),
                  "a factor that gives at least 1 channel");
        return 1;
    }
    return value;
}

/* One end of a time step limit: a number, Infinity, null or {"__float__": "Infinity"}. */
TL_FN int cfg_limit(const cfg_reader *c, json_id id, double absent, double *value)
{
    json_id word = json_get(c->doc, id, "__float__");
    *value = absent;
    if (json_kind(c->doc, id) == JSON_NULL) {
        return 1;
    }
    if (word != JSON_NONE) {
        *value = json_infinity();
        return json_str_is(c->doc, word, "Infinity");
    }
    return json_f64(c->doc, id, value);
}

TL_FN void cfg_dt_limit(const cfg_reader *c, json_id object, const char *key)
{
    json_id id = cfg_get(c, object, key), lo = json_first(c->doc, id), hi = json_next(c->doc, lo);
    double *limit = c->m->dt_limit;
    tl_quoted q;
    limit[0] = 0.0;
    limit[1] = json_infinity();
    if (id == JSON_NONE) {
        return;
    }
    if (json_kind(c->doc, id) != JSON_ARRAY || json_count(c->doc, id) != 2) {
        cfg_fault(c, object, key, json_brief(&q, c->doc, id), "[low, high]");
    } else if (!cfg_limit(c, lo, 0.0, &limit[0]) ||
               !(limit[0] >= 0.0 && limit[0] < json_infinity())) {
        cfg_fault(c, object, key, json_brief(&q, c->doc, lo), "a finite low end of at least 0");
    } else if (!cfg_limit(c, hi, json_infinity(), &limit[1]) || !(limit[1] >= limit[0])) {
        cfg_fault(c, object, key, json_brief(&q, c->doc, hi), "a high end not below the low end");
    }
}

TL_FN int64_t cfg_token(const cfg_reader *c, const char *key)
{
    json_id id = cfg_get(c, c->top, key);
    uint64_t value;
    if (json_kind(c->doc, id) == JSON_ARRAY) {
        id = json_first(c->doc, id);
    }
    return json_u64(c->doc, id, &value) && value <= INT32_MAX ? (int64_t)value : -1;
}

/* ---- which architecture, which keys ---------------------------------------------------------- */

TL_FN ck_arch cfg_arch_named(json_text name)
{
    static const struct {
        const char *name;
        ck_arch arch;
    } known[] = {{"mamba", CK_ARCH_MAMBA1},
                 {"MambaForCausalLM", CK_ARCH_MAMBA1},
                 {"MambaLMHeadModel", CK_ARCH_MAMBA1},
                 {"mamba1", CK_ARCH_MAMBA1},
                 {"Mamba1", CK_ARCH_MAMBA1},
                 {"falcon_mamba", CK_ARCH_FALCON_MAMBA},
                 {"falcon-mamba", CK_ARCH_FALCON_MAMBA},
                 {"FalconMambaForCausalLM", CK_ARCH_FALCON_MAMBA},
                 {"mamba2", CK_ARCH_MAMBA2},
                 {"Mamba2", CK_ARCH_MAMBA2},
                 {"Mamba2ForCausalLM", CK_ARCH_MAMBA2}};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (json_is(name, known[i].name)) {
            return known[i].arch;
        }
    }
    return CK_ARCH_UNKNOWN;
}

TL_FN tl_status cfg_unknown(const cfg_reader *c, const char *key, json_id id)
{
    tl_quoted q, b;
    return tl_fail(c->err, TL_ERR_UNSUPPORTED, "%s: field '%s': found %s, allowed: %s",
                   tl_path(&q, c->ck->config_path), key,
                   json_brief(&b, c->doc, id), CK_SUPPORTED);
}

TL_FN tl_status cfg_recognise(cfg_reader *c)
{
    json_id name = json_first(c->doc, cfg_get(c, c->top, "architectures")), layer;
    const char *key = "architectures";
    tl_quoted q;
    if (name == JSON_NONE) {
        key = "model_type";
        name = cfg_get(c, c->top, key);
    }
    c->ssm = JSON_NONE;
    if (cfg_has(c, c->top, "dim") && cfg_has(c, c->top, "n_layers")) {
        c->m->keys = CK_KEYS_MISTRAL;   /* its model_type says "mamba"; it is Mamba-2 */
        if (!json_str_is(c->doc, cfg_get(c, c->top, "model_type"), "mamba")) {
            return cfg_unknown(c, "model_type", cfg_get(c, c->top, "model_type"));
        }
        c->m->arch = CK_ARCH_MAMBA2;
        return TL_OK;
    }
    if (cfg_has(c, c->top, "hidden_size")) {
        c->m->keys = CK_KEYS_HF;
        c->m->arch = cfg_arch_named(json_str(c->doc, name));
        return c->m->arch == CK_ARCH_UNKNOWN ? cfg_unknown(c, key, name) : TL_OK;
    }
    c->m->keys = CK_KEYS_MAMBA_SSM;
    if (!cfg_has(c, c->top, "d_model") || !cfg_has(c, c->top, "n_layer")) {
        return name != JSON_NONE && cfg_arch_named(json_str(c->doc, name)) == CK_ARCH_UNKNOWN
                 ? cfg_unknown(c, key, name)
                 : tl_fail(c->err, TL_ERR_UNSUPPORTED,
                           "%s: found neither hidden_size nor d_model and n_layer, "
                           "allowed: the configuration of %s",
                           tl_path(&q, c->ck->config_path),
                           CK_SUPPORTED);
    }
    c->ssm = cfg_get(c, c->top, "ssm_cfg");
    if (c->ssm != JSON_NONE && json_kind(c->doc, c->ssm) != JSON_OBJECT) {
        return cfg_fault(c, c->top, "ssm_cfg", json_brief(&q, c->doc, c->ssm), "an object");
    }
    layer = cfg_get(c, c->ssm, "layer");
    if (layer == JSON_NONE) {
        c->m->arch = CK_ARCH_MAMBA1;
        return TL_OK;
    }
    c->m->arch = json_str_is(c->doc, layer, "Mamba1") ? CK_ARCH_MAMBA1
               : json_str_is(c->doc, layer, "Mamba2") ? CK_ARCH_MAMBA2 : CK_ARCH_UNKNOWN;
    return c->m->arch == CK_ARCH_UNKNOWN ? cfg_unknown(c, "ssm_cfg.layer", layer) : TL_OK;
}

/* ---- the three key sets ---------------------------------------------------------------------- */

#define CFG_MAX_WIDTH  ((uint64_t)1 << 20)
#define CFG_MAX_VOCAB  ((uint64_t)1 << 24)
#define CFG_MAX_LAYERS 4096u
#define CFG_MAX_STATE  65536u
#define CFG_MAX_CONV   64u

TL_FN uint64_t cfg_dt_rank(const cfg_reader *c, json_id object, const char *key)
{
    json_id id = cfg_get(c, object, key);
    if (id == JSON_NONE || json_str_is(c->doc, id, "auto")) {
        return (c->m->d_model + 15) / 16;
    }
    return cfg_u64(c, object, key, CFG_REQUIRED, CFG_MAX_WIDTH);
}

/* A compressed copy keeps its weights in ways that only its own library reads. */
TL_FN void cfg_refuse_quantised(const cfg_reader *c)
{
    json_id id = cfg_get(c, c->top, "quantization_config");
    tl_quoted q, b;
    if (id != JSON_NONE) {
        tl_fail(c->err, TL_ERR_UNSUPPORTED,
                "%s: field 'quantization_config': found %s, allowed: none (take the original "
                "weights; the converter quantises itself)",
                tl_path(&q, c->ck->config_path), json_brief(&b, c->doc, id));
    }
}

TL_FN void cfg_read_hf(cfg_reader *c)
{
    ck_model *m = c->m;
    json_id top = c->top;
    uint64_t heads;
    tl_quoted q;
    m->d_model = cfg_u64(c, top, "hidden_size", CFG_REQUIRED, CFG_MAX_WIDTH);
    m->n_layer = cfg_u64(c, top, "num_hidden_layers", CFG_REQUIRED, CFG_MAX_LAYERS);
    m->vocab_size = cfg_u64(c, top, "vocab_size", CFG_REQUIRED, CFG_MAX_VOCAB);
    m->padded_vocab = m->vocab_size;
    m->d_state = cfg_u64(c, top, "state_size", m->arch == CK_ARCH_MAMBA2 ? 128 : 16, CFG_MAX_STATE);
    m->d_conv = cfg_u64(c, top, "conv_kernel", 4, CFG_MAX_CONV);
    m->eps = cfg_eps(c, "layer_norm_epsilon", 1e-5);
    m->tied = cfg_bool(c, top, "tie_word_embeddings", -1);
    m->proj_bias = cfg_bool(c, top, "use_bias", -1);
    m->conv_bias = cfg_bool(c, top, "use_conv_bias", -1);
    cfg_activation(c, top, "hidden_act");
    cfg_refuse_quantised(c);
    /* falcon-mamba says expand 16: intermediate_size is the one that holds */
    if (m->arch != CK_ARCH_MAMBA2) {
        m->d_inner = cfg_has(c, top, "intermediate_size")
                       ? cfg_u64(c, top, "intermediate_size", CFG_REQUIRED, CFG_MAX_WIDTH)
                       : cfg_expand(c, top);
        m->dt_rank = cfg_dt_rank(c, top, "time_step_rank");
        m->mixer_rms_eps =
            m->arch == CK_ARCH_FALCON_MAMBA ? cfg_eps(c, "mixer_rms_eps", 1e-6) : 0.0;
        return;
    }
    m->d_inner = cfg_expand(c, top);
    m->d_ssm = m->d_inner;
    m->headdim = cfg_u64(c, top, "head_dim", 64, CFG_MAX_WIDTH);
    m->n_groups = cfg_u64(c, top, "n_groups", 8, CFG_MAX_WIDTH);
    m->rms_gated = -1;
    m->norm_before_gate = 0;           /* the key exists in Codestral's files and is dead */
    cfg_dt_limit(c, top, "time_step_limit");
    heads = 0;
    if (cfg_has(c, top, "num_heads")) {
        heads = cfg_u64(c, top, "num_heads", CFG_REQUIRED, CFG_MAX_WIDTH);
    }
    if (heads != 0 && heads * m->headdim != m->d_inner) {
        char allowed[96];
        (void)snprintf(allowed, sizeof allowed, "expand * hidden_size / head_dim = %llu / %llu",
                       (unsigned long long)m->d_inner, (unsigned long long)m->headdim);
        cfg_fault(c, top, "num_heads", json_brief(&q, c->doc, cfg_get(c, top, "num_heads")),
                  allowed);
    }
}

/* A positive finite number of attn_cfg. */
TL_FN double cfg_attention_number(const cfg_reader *c, const char *key, double absent)
{
    json_id id = cfg_get(c, c->attention, key);
    double value = absent;
    tl_quoted q;
    if (id != JSON_NONE && (!json_f64(c->doc, id, &value) || !(value > 1e-30 && value < 1e30))) {
        cfg_fault(c, c->attention, key, json_brief(&q, c->doc, id), "a positive number");
        return absent;
    }
    return value;
}

/* attn_cfg, with the defaults of mamba_ssm's MHA class. */
TL_FN void cfg_attention(cfg_reader *c)
{
    ck_attention *a = &c->m->attention;
    json_id list = cfg_get(c, c->top, "attn_layer_idx"), cfg;
    tl_quoted q;
    if (list == JSON_NONE || (json_kind(c->doc, list) == JSON_ARRAY && json_count(c->doc, list) == 0)) {
        return;
    }
    if (json_kind(c->doc, list) != JSON_ARRAY) {
        cfg_fault(c, c->top, "attn_layer_idx", json_brief(&q, c->doc, list), "a list of layers");
        return;
    }
    cfg = c->attention = cfg_get(c, c->top, "attn_cfg");
    if (json_kind(c->doc, cfg) != JSON_OBJECT) {
        cfg_fault(c, c->top, "attn_cfg", json_brief(&q, c->doc, cfg), "an object");
        return;
    }
    a->n_heads = cfg_u64(c, cfg, "num_heads", CFG_REQUIRED, 4096);
    a->n_kv = cfg_u64(c, cfg, "num_heads_kv", a->n_heads, 4096);
    a->headdim = cfg_u64(c, cfg, "head_dim", c->m->d_model / a->n_heads, 1024);
    a->d_mlp = (cfg_u64(c, cfg, "mlp_dim", 0, CFG_MAX_WIDTH) + 255) / 256 * 256 / 2;
    a->d_conv = cfg_u64(c, cfg, "d_conv", 0, CFG_MAX_CONV);
    a->rotary_dim = cfg_u64(c, cfg, "rotary_emb_dim", 0, 1024);
    a->adjacent = cfg_bool(c, cfg, "rotary_emb_interleaved", 0);
    a->rotary_base = cfg_attention_number(c, "rotary_emb_base", 10000.0);
    a->scale = cfg_attention_number(c, "softmax_scale",
                                    a->headdim != 0 ? 1.0 / sqrt((double)a->headdim) : 1.0);
    a->qkv_bias = cfg_bool(c, cfg, "qkv_proj_bias", 1);
    a->out_bias = cfg_bool(c, cfg, "out_proj_bias", 1);
    if (cfg_bool(c, cfg, "causal", 0) != 1) {
        cfg_fault(c, cfg, "causal", "false", "true");
    }
    if (c->err->status == TL_OK && (a->n_heads % a->n_kv != 0 || a->headdim == 0 ||
                                    a->rotary_dim > a->headdim || a->rotary_dim % 2 != 0)) {
        tl_quote(&q, c->ck->config_path, strlen(c->ck->config_path));
        tl_fail(c->err, TL_ERR_FORMAT,
                "%s: attn_cfg: found %llu heads, %llu key heads, a head width of %llu, %llu rotated, "
                "allowed: key heads that divide the heads, an even number rotated, at most the width",
                q.text, (unsigned long long)a->n_heads, (unsigned long long)a->n_kv,
                (unsigned long long)a->headdim, (unsigned long long)a->rotary_dim);
    }
}

/* Marks the layers that attn_layer_idx lists. */
TL_FN void cfg_attention_layers(const cfg_reader *c)
{
    json_id id = json_first(c->doc, cfg_get(c, c->top, "attn_layer_idx"));
    tl_quoted q;
    for (; id != JSON_NONE && c->m->attention.n_heads != 0; id = json_next(c->doc, id)) {
        uint64_t i = 0;
        if (!json_u64(c->doc, id, &i) || i >= c->m->n_layer || c->m->layers[i].attention) {
            cfg_fault(c, c->top, "attn_layer_idx", json_brief(&q, c->doc, id),
                      "different numbers of layers");
            return;
        }
        c->m->layers[i].attention = 1;
    }
}

TL_FN void cfg_read_mamba_ssm(cfg_reader *c)
{
    ck_model *m = c->m;
    json_id top = c->top, ssm = c->ssm;
    uint64_t multiple = cfg_u64(c, top, "pad_vocab_size_multiple", 8, 65536), width;
    m->d_model = cfg_u64(c, top, "d_model", CFG_REQUIRED, CFG_MAX_WIDTH);
    m->n_layer = cfg_u64(c, top, "n_layer", CFG_REQUIRED, CFG_MAX_LAYERS);
    m->vocab_size = cfg_u64(c, top, "vocab_size", 50277, CFG_MAX_VOCAB);
    m->padded_vocab = (m->vocab_size + multiple - 1) / multiple * multiple;
    m->eps = 1e-5;
    m->tied = cfg_bool(c, top, "tie_embeddings", -1);
    cfg_must(c, top, "rms_norm", 1, "true (LayerNorm models are not supported)");
    cfg_attention(c);
    width = cfg_u64(c, top, "d_intermediate", 0, CFG_MAX_WIDTH);
    m->d_mlp = (width + 127) / 128 * 128;
    m->d_state = cfg_u64(c, ssm, "d_state", m->arch == CK_ARCH_MAMBA2 ? 128 : 16, CFG_MAX_STATE);
    m->d_conv = cfg_u64(c, ssm, "d_conv", 4, CFG_MAX_CONV);
    m->d_inner = cfg_expand(c, ssm);
    m->proj_bias = cfg_bool(c, ssm, "bias", 0);
    m->conv_bias = cfg_bool(c, ssm, "conv_bias", 1);
    cfg_activation(c, ssm, "activation");
    if (m->arch != CK_ARCH_MAMBA2) {
        m->dt_rank = cfg_dt_rank(c, ssm, "dt_rank");
        m->mixer_rms_eps = m->arch == CK_ARCH_FALCON_MAMBA ? 1e-6 : 0.0;
        return;
    }
    m->d_ssm = cfg_u64(c, ssm, "d_ssm", m->d_inner, CFG_MAX_WIDTH);
    m->headdim = cfg_u64(c, ssm, "headdim", 64, CFG_MAX_WIDTH);
    m->n_groups = cfg_u64(c, ssm, "ngroups", 1, CFG_MAX_WIDTH);
    m->rms_gated = cfg_bool(c, ssm, "rmsnorm", 1);
    m->norm_before_gate = cfg_bool(c, ssm, "norm_before_gate", 0);
    m->D_has_hdim = cfg_bool(c, ssm, "D_has_hdim", 0);
    cfg_dt_limit(c, ssm, "dt_limit");
}

TL_FN void cfg_read_mistral(cfg_reader *c)
{
    ck_model *m = c->m;
    json_id top = c->top;
    uint64_t multiple = cfg_u64(c, top, "pad_vocab_size_multiple", 1, 65536);
    m->d_model = cfg_u64(c, top, "dim", CFG_REQUIRED, CFG_MAX_WIDTH);
    m->n_layer = cfg_u64(c, top, "n_layers", CFG_REQUIRED, CFG_MAX_LAYERS);
    m->vocab_size = cfg_u64(c, top, "vocab_size", CFG_REQUIRED, CFG_MAX_VOCAB);
    m->padded_vocab = (m->vocab_size + multiple - 1) / multiple * multiple;
    m->n_groups = cfg_u64(c, top, "n_groups", 8, CFG_MAX_WIDTH);
    m->tied = cfg_bool(c, top, "tie_embeddings", -1);
    cfg_must(c, top, "rms_norm", 1, "true (LayerNorm models are not supported)");
    m->eps = 1e-5;
    m->d_state = 128;
    m->d_conv = 4;
    m->d_inner = m->d_ssm = 2 * m->d_model;
    m->headdim = 64;
    m->rms_gated = 1;
    m->conv_bias = 1;
    m->dt_limit[1] = json_infinity();
}

/* What follows from the fields, and what they must fulfil among themselves. */
TL_FN tl_status cfg_derive(cfg_reader *c)
{
    ck_model *m = c->m;
    tl_quoted q;
    tl_path(&q, c->ck->config_path);
    if (m->d_inner > CFG_MAX_WIDTH) {
        return tl_fail(c->err, TL_ERR_FORMAT, "%s: found a d_inner of %llu, allowed: at most %llu",
                       q.text, (unsigned long long)m->d_inner, (unsigned long long)CFG_MAX_WIDTH);
    }
    if (m->n_layer > c->ck->tensor_count) {
        return tl_fail(c->err, TL_ERR_FORMAT,
                       "%s: found %llu layers, allowed: at most the %lu tensors of the checkpoint",
                       q.text, (unsigned long long)m->n_layer, (unsigned long)c->ck->tensor_count);
    }
    if (m->arch != CK_ARCH_MAMBA2) {
        m->d_ssm = m->n_heads = m->conv_channels = m->d_inner;
        m->headdim = m->n_groups = 1;
        m->d_in_proj = 2 * m->d_inner;
        m->bcdt_rms = m->arch == CK_ARCH_FALCON_MAMBA;
        m->dt_limit[1] = json_infinity();
        return TL_OK;
    }
    if (m->d_ssm > m->d_inner) {
        return tl_fail(c->err, TL_ERR_FORMAT,
                       "%s: found a d_ssm of %llu, allowed: at most d_inner = %llu", q.text,
                       (unsigned long long)m->d_ssm, (unsigned long long)m->d_inner);
    }
    if (m->d_ssm % m->headdim != 0) {
        return tl_fail(c->err, TL_ERR_FORMAT,
                       "%s: found a head width of %llu, allowed: a divisor of d_ssm = %llu",
                       q.text, (unsigned long long)m->headdim, (unsigned long long)m->d_ssm);
    }
    m->n_heads = m->d_ssm / m->headdim;
    if (m->n_heads % m->n_groups != 0) {
        return tl_fail(c->err, TL_ERR_FORMAT,
                       "%s: found %llu groups, allowed: a divisor of the %llu heads", q.text,
                       (unsigned long long)m->n_groups, (unsigned long long)m->n_heads);
    }
    m->conv_channels = m->d_ssm + 2 * m->n_groups * m->d_state;
    m->d_in_proj = 2 * m->d_inner + 2 * m->n_groups * m->d_state + m->n_heads;
    return TL_OK;
}

/* ---- tensors --------------------------------------------------------------------------------- */

TL_FN const ck_tensor *cfg_find(const cfg_reader *c, const char *name)
{
    const ck_tensor *t = ck_find(c->ck, name);
    if (t != NULL) {
        c->used[t - c->ck->tensors] = 1;
    }
    return t;
}

/* The tensor `name` of shape (a), (a, b) or (a, b, k), b and k 0 where absent; `what` says the
 * shape in fields. */
TL_FN const ck_tensor *cfg_tensor(const cfg_reader *c, const char *name, uint64_t a, uint64_t b,
                                  uint64_t k, const char *what)
{
    const ck_tensor *t = cfg_find(c, name);
    const uint64_t shape[3] = {a, b, k};
    int rank = k != 0 ? 3 : b != 0 ? 2 : 1, same;
    tl_quoted x, y;
    char allowed[200];
    if (t == NULL) {
        const char *path = c->ck->file_count == 1 ? c->ck->files[0].file.path : c->ck->folder;
        tl_fail(c->err, TL_ERR_FORMAT,
                "%s: tensor \"%s\": found none, allowed: one of shape %s = %s",
                tl_path(&x, path), name, what, ck_shape_text(&y, rank, shape));
        return NULL;
    }
    same = t->rank == rank;
    for (int i = 0; same && i < rank; i++) {
        same = t->shape[i] == shape[i];
    }
    if (!same) {
        (void)snprintf(
            allowed, sizeof allowed, "%s = %s by %s", what, ck_shape_text(&y, rank, shape),
            strrchr(c->ck->config_path, '/') != NULL ? strrchr(c->ck->config_path, '/') + 1
                                                     : c->ck->config_path);
        ck_fault(c->ck, t, ck_shape_text(&x, t->rank, t->shape), allowed, c->err);
        return NULL;
    }
    if (!ck_types[t->dtype].is_float) {
        ck_fault(c->ck, t, ck_types[t->dtype].name, "F32, F16, BF16 or F64", c->err);
        return NULL;
    }
    return t;
}

/* A tensor of a layer. */
TL_FN const ck_tensor *cfg_part(const cfg_reader *c, uint64_t layer, const char *part, uint64_t a,
                                uint64_t b, uint64_t k, const char *what)
{
    char name[128];
    (void)snprintf(name, sizeof name, "%slayers.%llu.%s", c->prefix, (unsigned long long)layer,
                   part);
    return cfg_tensor(c, name, a, b, k, what);
}

/* A vector that `flag` says is there (1), is not (0) or decides by itself (-1). */
TL_FN const ck_tensor *cfg_optional(const cfg_reader *c, uint64_t layer, const char *part,
                                    uint64_t n, int flag, const char *what, const char *field)
{
    char name[128], allowed[160];
    const ck_tensor *t;
    (void)snprintf(name, sizeof name, "%slayers.%llu.%s", c->prefix, (unsigned long long)layer,
                   part);
    t = ck_find(c->ck, name);
    if (flag == 0 && t != NULL) {
        (void)snprintf(allowed, sizeof allowed, "none, as '%s' is false", field);
        ck_fault(c->ck, t, "this tensor", allowed, c->err);
    }
    return flag == 1 || (flag == -1 && t != NULL) ? cfg_tensor(c, name, n, 0, 0, what) : NULL;
}

TL_FN void cfg_attention_layer(const cfg_reader *c, uint64_t i, ck_layer *l)
{
    const ck_attention *a = &c->m->attention;
    uint64_t heads = a->n_heads * a->headdim, qkv = heads + 2 * a->n_kv * a->headdim;
    uint64_t rows = qkv + 2 * a->d_mlp, d = c->m->d_model;
    l->in_proj = cfg_part(c, i, "mixer.in_proj.weight", rows, d, 0,
                          "((num_heads + 2 num_heads_kv) head_dim + mlp_dim, d_model)");
    l->in_proj_bias = cfg_optional(c, i, "mixer.in_proj.bias", rows, a->qkv_bias,
                                   "(rows of in_proj)", "attn_cfg.qkv_proj_bias");
    if (a->d_conv != 0) {
        l->conv = cfg_part(c, i, "mixer.conv1d.weight", qkv, 1, a->d_conv,
                           "((num_heads + 2 num_heads_kv) head_dim, 1, d_conv)");
        l->conv_bias = cfg_optional(c, i, "mixer.conv1d.bias", qkv, -1, "(channels of conv1d)", "");
    }
    l->out_proj = cfg_part(c, i, "mixer.out_proj.weight", d, heads + a->d_mlp, 0,
                           "(d_model, num_heads head_dim + mlp_dim / 2)");
    l->out_proj_bias = cfg_optional(c, i, "mixer.out_proj.bias", d, a->out_bias, "(d_model)",
                                    "attn_cfg.out_proj_bias");
}

TL_FN void cfg_layer(const cfg_reader *c, uint64_t i, ck_layer *l)
{
    const ck_model *m = c->m;
    uint64_t d = m->d_model, inner = m->d_inner;
    int two = m->arch == CK_ARCH_MAMBA2, hf = m->keys == CK_KEYS_HF;
    const char *bias = hf ? "use_bias" : "ssm_cfg.bias",
               *conv_bias = hf ? "use_conv_bias" : "ssm_cfg.conv_bias";
    l->norm = cfg_part(c, i, "norm.weight", d, 0, 0, "(d_model)");
    if (m->d_mlp != 0) {
        l->norm2 = cfg_part(c, i, "norm2.weight", d, 0, 0, "(d_model)");
        l->fc1 = cfg_part(c, i, "mlp.fc1.weight", 2 * m->d_mlp, d, 0,
                          "(2 d_intermediate rounded up to 128, d_model)");
        l->fc2 = cfg_part(c, i, "mlp.fc2.weight", d, m->d_mlp, 0,
                          "(d_model, d_intermediate rounded up to 128)");
    }
    if (l->attention) {
        cfg_attention_layer(c, i, l);
        return;
    }
    l->in_proj = cfg_part(c, i, "mixer.in_proj.weight", m->d_in_proj, d, 0,
                          two ? "(2 d_inner + 2 n_groups d_state + n_heads, d_model)"
                              : "(2 d_inner, d_model)");
    l->in_proj_bias = cfg_optional(c, i, "mixer.in_proj.bias", m->d_in_proj, m->proj_bias,
                                   "(rows of in_proj)", bias);
    l->conv = cfg_part(c, i, "mixer.conv1d.weight", m->conv_channels, 1, m->d_conv,
                       two ? "(d_ssm + 2 n_groups d_state, 1, d_conv)" : "(d_inner, 1, d_conv)");
    l->conv_bias = cfg_optional(c, i, "mixer.conv1d.bias", m->conv_channels, m->conv_bias,
                                "(channels of conv1d)", conv_bias);
    l->out_proj = cfg_part(c, i, "mixer.out_proj.weight", d, inner, 0, "(d_model, d_inner)");
    l->out_proj_bias =
        cfg_optional(c, i, "mixer.out_proj.bias", d, m->proj_bias, "(d_model)", bias);
    if (two) {
        l->dt_bias = cfg_part(c, i, "mixer.dt_bias", m->n_heads, 0, 0, "(n_heads)");
        l->A_log = cfg_part(c, i, "mixer.A_log", m->n_heads, 0, 0, "(n_heads)");
        l->D = m->D_has_hdim ? cfg_part(c, i, "mixer.D", m->d_ssm, 0, 0, "(d_ssm)")
                             : cfg_part(c, i, "mixer.D", m->n_heads, 0, 0, "(n_heads)");
        l->gated_norm = cfg_optional(c, i, "mixer.norm.weight", m->d_ssm, m->rms_gated, "(d_ssm)",
                                     "ssm_cfg.rmsnorm");
    } else {
        l->x_proj = cfg_part(c, i, "mixer.x_proj.weight", m->dt_rank + 2 * m->d_state, inner, 0,
                             "(dt_rank + 2 d_state, d_inner)");
        l->dt_proj =
            cfg_part(c, i, "mixer.dt_proj.weight", inner, m->dt_rank, 0, "(d_inner, dt_rank)");
        l->dt_bias = cfg_part(c, i, "mixer.dt_proj.bias", inner, 0, 0, "(d_inner)");
        l->A_log = cfg_part(c, i, "mixer.A_log", inner, m->d_state, 0, "(d_inner, d_state)");
        l->D = cfg_part(c, i, "mixer.D", inner, 0, 0, "(d_inner)");
    }
}

/* Embedding, final norm and head; finds out how the names begin. */
TL_FN void cfg_ends(cfg_reader *c)
{
    static const char *const embeddings[][2] = {
        {"backbone.embeddings.weight", "backbone."}, {"backbone.embedding.weight", "backbone."},
        {"model.backbone.embedding.weight", "model.backbone."},
        {"model.backbone.embeddings.weight", "model.backbone."}};
    ck_model *m = c->m;
    const ck_tensor *head;
    int usual = m->keys == CK_KEYS_HF ? 0 : m->keys == CK_KEYS_MAMBA_SSM ? 1 : 2;
    const char *name = embeddings[usual][0];
    char text[64];
    c->prefix = "backbone.";
    for (size_t i = 0; i < sizeof embeddings / sizeof embeddings[0]; i++) {
        if (ck_find(c->ck, embeddings[i][0]) != NULL) {
            name = embeddings[i][0];
            c->prefix = embeddings[i][1];
            break;
        }
    }
    m->embedding =
        cfg_tensor(c, name, m->padded_vocab, m->d_model, 0, "(padded vocab_size, d_model)");
    (void)snprintf(text, sizeof text, "%snorm_f.weight", c->prefix);
    m->norm_f = cfg_tensor(c, text, m->d_model, 0, 0, "(d_model)");
    (void)snprintf(text, sizeof text, "%slm_head.weight", c->prefix[0] == 'm' ? "model." : "");
    head = ck_find(c->ck, text);
    if (m->tied == -1) {   /* no key: a separate head is a head */
        m->tied = head == NULL || (m->embedding != NULL && ck_same(head, m->embedding));
    }
    if (!m->tied || head != NULL) {
        m->head =
            cfg_tensor(c, text, m->padded_vocab, m->d_model, 0, "(padded vocab_size, d_model)");
    }
    if (m->tied) {
        m->head = m->embedding;
    }
}

/* Flags that the tensors decided must be the same in all layers. */
TL_FN void cfg_settle(const cfg_reader *c)
{
    ck_model *m = c->m;
    tl_quoted q;
    const ck_layer *first = NULL;
    for (uint64_t i = 0; i < m->n_layer; i++) {
        const ck_layer *l = &m->layers[i];
        if (l->attention) {
            continue;
        }
        first = first == NULL ? l : first;
        if ((l->in_proj_bias == NULL) != (first->in_proj_bias == NULL) ||
            (l->out_proj_bias == NULL) != (first->out_proj_bias == NULL) ||
            (l->conv_bias == NULL) != (first->conv_bias == NULL) ||
            (l->gated_norm == NULL) != (first->gated_norm == NULL)) {
            tl_fail(c->err, TL_ERR_FORMAT,
                    "%s: layer %llu: found other biases or norms than in the first layer, "
                    "allowed: the same in all layers",
                    tl_path(&q, c->ck->folder), (unsigned long long)i);
        }
    }
    if (first == NULL) {   /* attention only */
        return;
    }
    m->proj_bias = first->in_proj_bias != NULL;
    if (m->proj_bias != (first->out_proj_bias != NULL)) {
        tl_fail(c->err, TL_ERR_FORMAT,
                "%s: found a bias at one of in_proj and out_proj, allowed: both or none",
                tl_path(&q, c->ck->folder));
    }
    m->conv_bias = first->conv_bias != NULL;
    m->rms_gated = first->gated_norm != NULL;
}

/* Counts what the model does not use. Inside the layers that is an error: such a tensor would take
 * part in the computation that the file was made for. */
TL_FN void cfg_unused(const cfg_reader *c)
{
    ck_model *m = c->m;
    char layers[32];
    size_t n = (size_t)snprintf(layers, sizeof layers, "%slayers.", c->prefix);
    char allowed[64];
    for (size_t i = c->ck->tensor_count; i-- > 0;) {
        const ck_tensor *t = &c->ck->tensors[i];
        if (c->used[i]) {
            continue;
        }
        m->unused_count++;
        m->unused = t;
        if (t->name_length >= n && memcmp(t->name, layers, n) == 0) {
            (void)snprintf(allowed, sizeof allowed,
                           "the tensors of the %llu layers that it describes",
                           (unsigned long long)m->n_layer);
            ck_fault(c->ck, t, "a part of a layer that the configuration does not describe",
                     allowed, c->err);
        }
    }
}

TL_FN tl_status cfg_tensors(cfg_reader *c)
{
    ck_model *m = c->m;
    cfg_ends(c);
    for (uint64_t i = 0; c->err->status == TL_OK && i < m->n_layer; i++) {
        cfg_layer(c, i, &m->layers[i]);
    }
    if (c->err->status == TL_OK) {
        cfg_settle(c);
    }
    if (c->err->status == TL_OK) {
        cfg_unused(c);
    }
    return c->err->status;
}

#include "gguf_config.h"

/* Describes an opened checkpoint. `arch` forces the architecture ("mamba", "falcon-mamba",
 * "mamba2"; NULL: what the file says): some early copies of falcon-mamba call themselves mamba, and
 * no tensor tells. */
TL_FN tl_status ck_describe(const ck_source *ck, const char *arch, ck_model *m, tl_error *err)
{
    cfg_reader c;
    json_text name = {arch, arch != NULL ? strlen(arch) : 0};
    memset(&c, 0, sizeof c);
    memset(m, 0, sizeof *m);
    c.ck = ck;
    c.doc = &ck->config;
    c.m = m;
    c.err = err;
    c.top = JSON_ROOT;
    c.attention = JSON_NONE;
    if (ck_gguf(ck) != NULL) {
        gg_describe(&c, arch);
        tl_free(c.used);
        if (err->status != TL_OK) {
            ck_model_free(m);
        }
        return err->status;
    }
    cfg_recognise(&c);
    if (err->status == TL_OK && arch != NULL) {
        m->arch = cfg_arch_named(name);
        if (m->arch == CK_ARCH_UNKNOWN) {
            tl_fail(err, TL_ERR_USAGE,
                    "architecture: found '%.40s', allowed: mamba, falcon-mamba, mamba2", arch);
        }
    }
    if (err->status == TL_OK) {
        if (m->keys == CK_KEYS_HF) {
            cfg_read_hf(&c);
        } else if (m->keys == CK_KEYS_MAMBA_SSM) {
            cfg_read_mamba_ssm(&c);
        } else {
            cfg_read_mistral(&c);
        }
    }
    if (err->status == TL_OK) {
        cfg_derive(&c);
    }
    if (err->status == TL_OK) {
        m->bos = cfg_token(&c, "bos_token_id");
        m->eos = cfg_token(&c, "eos_token_id");
        c.used = (unsigned char *)tl_calloc(ck->tensor_count, 1, err);
        m->layers = (ck_layer *)tl_calloc(m->n_layer, sizeof m->layers[0], err);
    }
    if (err->status == TL_OK) {
        cfg_attention_layers(&c);
    }
    if (err->status == TL_OK) {
        cfg_tensors(&c);
    }
    if (m->arch == CK_ARCH_MAMBA1 && arch == NULL && m->d_model == 4096 && m->vocab_size == 65024) {
        m->warning = "these are the sizes of FalconMamba, and early copies of it call themselves "
                     "mamba; if it is one, give the architecture falcon-mamba";
    }
    tl_free(c.used);
    if (err->status != TL_OK) {
        ck_model_free(m);
    }
    return err->status;
}

#endif /* TL_CONFIG_H */
