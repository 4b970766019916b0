/*  gguf_config.h: the keys and tensors of a GGUF file of architecture "mamba" or "mamba2" as one
 *  ck_model. Part of config.h.
 *
 *  What the format's converter changed is undone or recorded: ssm_a holds A = -exp(A_log) itself
 *  (A_stored), the convolution has no middle axis, Mamba-2's A and D are columns, a head equal to
 *  the embedding is left out. ssm.time_step_rank means heads for Mamba-2. The norms of FalconMamba
 *  (ssm.dt_b_c_rms) have the eps of the blocks, as in the program that the file is made for. What
 *  the keys cannot express (limits of dt, norm before gate, D per channel) is not there.
 */
#ifndef TL_GGUF_CONFIG_H
#define TL_GGUF_CONFIG_H

typedef struct {
    cfg_reader *c;
    const gguf_file *g;
    const tl_file *file;
    const char *arch; /* "mamba" or "mamba2" */
} gg_reader;

/* "ARCH.SUFFIX" */
TL_FN const char *gg_key(const gg_reader *r, const char *suffix, tl_quoted *out)
{
    (void)snprintf(out->text, sizeof out->text, "%s.%s", r->arch, suffix);
    return out->text;
}

/* An integer from 1 to max, or `absent` if there is no such key. */
TL_FN uint64_t gg_u64(const gg_reader *r, const char *suffix, uint64_t absent, uint64_t max)
{
    tl_quoted key, q;
    const gguf_value *v = gguf_find(r->g, gg_key(r, suffix, &key));
    uint64_t value;
    char allowed[64], found[32];
    if (v == NULL && absent != CFG_REQUIRED) {
        return absent;
    }
    if (v != NULL && gguf_integer(v, &value) && value >= 1 && value <= max) {
        return value;
    }
    (void)snprintf(allowed, sizeof allowed, "an integer from 1 to %llu", (unsigned long long)max);
    if (v != NULL && gguf_integer(v, &value)) {
        (void)snprintf(found, sizeof found, "%llu", (unsigned long long)value);
        gguf_value_fault(r->file, key.text, v, found, allowed, r->c->err);
    } else {
        gguf_value_fault(r->file, key.text, v, v != NULL ? gguf_kind(&q, v) : NULL, allowed,
                         r->c->err);
    }
    return 1;
}

TL_FN double gg_eps(const gg_reader *r, const char *suffix)
{
    tl_quoted key, q;
    const gguf_value *v = gguf_find(r->g, gg_key(r, suffix, &key));
    double value = 0.0;
    if (v == NULL || !gguf_number(v, &value) || !(value > 0.0 && value <= 1.0)) {
        gguf_value_fault(r->file, key.text, v,
                         v == NULL      ? NULL
                         : value != 0.0 ? "a number out of range"
                                        : gguf_kind(&q, v),
                         "an f32 above 0, at most 1", r->c->err);
    }
    return value;
}

/* A boolean; false if absent. */
TL_FN int gg_bool(const gg_reader *r, const char *suffix)
{
    tl_quoted key, q;
    const gguf_value *v = gguf_find(r->g, gg_key(r, suffix, &key));
    if (v != NULL && (v->is_array || v->type != GGUF_BOOL)) {
        gguf_value_fault(r->file, key.text, v, gguf_kind(&q, v), "a bool", r->c->err);
    }
    return v != NULL && v->bits != 0;
}

/* The id of a special token, below `limit`; -1 if absent. */
TL_FN int64_t gg_token(const gg_reader *r, const char *key, uint64_t limit)
{
    const gguf_value *v = gguf_find(r->g, key);
    uint64_t id;
    char found[32], allowed[96];
    tl_quoted q;
    if (v == NULL) {
        return -1;
    }
    (void)snprintf(allowed, sizeof allowed, "ids below the %llu rows of token_embd.weight",
                   (unsigned long long)limit);
    if (!gguf_integer(v, &id)) {
        gguf_value_fault(r->file, key, v, gguf_kind(&q, v), allowed, r->c->err);
        return -1;
    }
    if (id >= limit) {
        (void)snprintf(found, sizeof found, "id %llu", (unsigned long long)id);
        gguf_value_fault(r->file, key, v, found, allowed, r->c->err);
        return -1;
    }
    return (int64_t)id;
}

/* Which architecture; refuses files that are a part of something. */
TL_FN tl_status gg_recognise(gg_reader *r, const char *arch)
{
    ck_model *m = r->c->m;
    tl_error *err = r->c->err;
    const gguf_value *type = gguf_find(r->g, "general.type"),
                     *split = gguf_find(r->g, "split.count");
    const gguf_value *v = gguf_find(r->g, "general.architecture");
    tl_quoted q;
    uint64_t n;
    if (v == NULL || v->is_array || v->type != GGUF_STRING) {
        return gguf_value_fault(r->file, "general.architecture", v,
                                v != NULL ? gguf_kind(&q, v) : NULL, "a string", err);
    }
    if (gguf_is(r->file, v, "mamba", err)) {
        r->arch = "mamba";
        m->arch = gg_bool(r, "ssm.dt_b_c_rms") ? CK_ARCH_FALCON_MAMBA : CK_ARCH_MAMBA1;
    } else if (gguf_is(r->file, v, "mamba2", err)) {
        r->arch = "mamba2";
        m->arch = CK_ARCH_MAMBA2;
    } else {
        gguf_value_fault(r->file, "general.architecture", v, gguf_brief(&q, r->file, v, err),
                         "mamba, mamba2", err);
        err->status = err->status == TL_ERR_FORMAT ? TL_ERR_UNSUPPORTED : err->status;
        return err->status;
    }
    if (type != NULL && !gguf_is(r->file, type, "model", err)) {
        return gguf_value_fault(r->file, "general.type", type, gguf_brief(&q, r->file, type, err),
                                "model", err);
    }
    if (split != NULL && (!gguf_integer(split, &n) || n > 1)) {
        return gguf_value_fault(r->file, "split.count", split, "a part of a model in several files",
                                "one file (llama-gguf-split --merge makes it)", err);
    }
    if (arch != NULL) {
        json_text name = {arch, strlen(arch)};
        ck_arch forced = cfg_arch_named(name);
        if (forced == CK_ARCH_UNKNOWN
            || (forced == CK_ARCH_MAMBA2) != (m->arch == CK_ARCH_MAMBA2)) {
            return tl_fail(err, TL_ERR_USAGE,
                           "architecture: found '%.40s', allowed for this GGUF file: %s", arch,
                           m->arch == CK_ARCH_MAMBA2 ? "mamba2" : "mamba, falcon-mamba");
        }
        m->arch = forced;
    }
    return err->status;
}

/* The tensor `name` of shape (a) or (a, b), b 0 where absent; axes of length 1 do not count, as
 * some writers drop them. */
TL_FN const ck_tensor *gg_tensor(const gg_reader *r, const char *name, uint64_t a, uint64_t b,
                                 const char *what)
{
    const ck_tensor *t = cfg_find(r->c, name);
    const uint64_t wanted[2] = {a, b != 0 ? b : 1};
    uint64_t axes[2] = {1, 1};
    int rank = b != 0 ? 2 : 1, n = 0, k = 0, same;
    tl_quoted x, y, z;
    char allowed[200];
    if (t == NULL) {
        tl_fail(r->c->err, TL_ERR_FORMAT,
                "%s: tensor \"%s\": found none, allowed: one of shape %s = %s",
                tl_path(&x, r->file->path), tl_quote(&z, name, strlen(name)), what,
                ck_shape_text(&y, rank, wanted));
        return NULL;
    }
    for (int i = 0; i < 2; i++) {
        axes[k] = wanted[i];
        k += wanted[i] != 1;
    }
    same = 1;
    for (int i = 0; i < t->rank; i++) {
        if (t->shape[i] != 1) {
            same = same && n < k && t->shape[i] == axes[n];
            n++;
        }
    }
    if (!same || n != k) {
        (void)snprintf(allowed, sizeof allowed, "%s = %s by the file's keys", what,
                       ck_shape_text(&y, rank, wanted));
        ck_fault(r->c->ck, t, ck_shape_text(&x, t->rank, t->shape), allowed, r->c->err);
        return NULL;
    }
    if (!ck_types[t->dtype].is_float) {
        ck_fault(r->c->ck, t, ck_types[t->dtype].name, GGUF_TYPES, r->c->err);
        return NULL;
    }
    return t;
}

TL_FN const ck_tensor *gg_part(const gg_reader *r, uint64_t layer, const char *part, uint64_t a,
                               uint64_t b, const char *what)
{
    char name[64];
    (void)snprintf(name, sizeof name, "blk.%llu.%s", (unsigned long long)layer, part);
    return gg_tensor(r, name, a, b, what);
}

TL_FN void gg_layer(const gg_reader *r, uint64_t i, ck_layer *l)
{
    const ck_model *m = r->c->m;
    uint64_t d = m->d_model;
    char name[64];
    int two = m->arch == CK_ARCH_MAMBA2;
    l->norm = gg_part(r, i, "attn_norm.weight", d, 0, "(embedding_length)");
    l->in_proj = gg_part(r, i, "ssm_in.weight", m->d_in_proj, d,
                         two ? "(2 inner_size + 2 group_count state_size + heads, embedding_length)"
                             : "(2 inner_size, embedding_length)");
    l->conv = gg_part(r, i, "ssm_conv1d.weight", m->conv_channels, m->d_conv,
                      two ? "(inner_size + 2 group_count state_size, conv_kernel)"
                          : "(inner_size, conv_kernel)");
    (void)snprintf(name, sizeof name, "blk.%llu.ssm_conv1d.bias", (unsigned long long)i);
    l->conv_bias = ck_find(r->c->ck, name) != NULL
                       ? gg_tensor(r, name, m->conv_channels, 0, "(channels of ssm_conv1d)")
                       : NULL;
    l->out_proj = gg_part(r, i, "ssm_out.weight", d, m->d_inner, "(embedding_length, inner_size)");
    if (two) {
        l->dt_bias = gg_part(r, i, "ssm_dt.bias", m->n_heads, 0, "(heads)");
        l->A_log = gg_part(r, i, "ssm_a", m->n_heads, 1, "(heads, 1)");
        l->D = gg_part(r, i, "ssm_d", m->n_heads, 1, "(heads, 1)");
        l->gated_norm = gg_part(r, i, "ssm_norm.weight", m->n_groups, m->d_ssm / m->n_groups,
                                "(group_count, inner_size / group_count)");
        return;
    }
    l->x_proj = gg_part(r, i, "ssm_x.weight", m->dt_rank + 2 * m->d_state, m->d_inner,
                        "(time_step_rank + 2 state_size, inner_size)");
    l->dt_proj =
        gg_part(r, i, "ssm_dt.weight", m->d_inner, m->dt_rank, "(inner_size, time_step_rank)");
    l->dt_bias = gg_part(r, i, "ssm_dt.bias", m->d_inner, 0, "(inner_size)");
    l->A_log = gg_part(r, i, "ssm_a", m->d_inner, m->d_state, "(inner_size, state_size)");
    l->D = gg_part(r, i, "ssm_d", m->d_inner, 0, "(inner_size)");
}

/* The sizes, but for the vocabulary. */
TL_FN void gg_sizes(const gg_reader *r)
{
    ck_model *m = r->c->m;
    uint64_t rank;
    char found[64], allowed[64];
    tl_quoted key;
    m->d_model = gg_u64(r, "embedding_length", CFG_REQUIRED, CFG_MAX_WIDTH);
    m->n_layer = gg_u64(r, "block_count", CFG_REQUIRED, CFG_MAX_LAYERS);
    m->d_inner = m->d_ssm = gg_u64(r, "ssm.inner_size", CFG_REQUIRED, CFG_MAX_WIDTH);
    m->d_state = gg_u64(r, "ssm.state_size", CFG_REQUIRED, CFG_MAX_STATE);
    m->d_conv = gg_u64(r, "ssm.conv_kernel", CFG_REQUIRED, CFG_MAX_CONV);
    m->eps = gg_eps(r, "attention.layer_norm_rms_epsilon");
    rank = gg_u64(r, "ssm.time_step_rank", CFG_REQUIRED, CFG_MAX_WIDTH);
    (void)snprintf(found, sizeof found, "%llu",
                   (unsigned long long)(m->arch == CK_ARCH_MAMBA2 ? rank : m->d_inner));
    if (m->arch != CK_ARCH_MAMBA2) {
        m->dt_rank = rank;
        m->mixer_rms_eps = m->arch == CK_ARCH_FALCON_MAMBA ? m->eps : 0.0;
        if (m->d_inner != 2 * m->d_model) {
            (void)snprintf(allowed, sizeof allowed, "2 * embedding_length = %llu",
                           (unsigned long long)(2 * m->d_model));
            gguf_value_fault(r->file, gg_key(r, "ssm.inner_size", &key),
                             gguf_find(r->g, gg_key(r, "ssm.inner_size", &key)), found, allowed,
                             r->c->err);
        }
        return;
    }
    m->n_groups = gg_u64(r, "ssm.group_count", CFG_REQUIRED, CFG_MAX_WIDTH);
    m->rms_gated = 1;
    if (m->d_inner % rank != 0) {
        (void)snprintf(allowed, sizeof allowed, "heads that divide ssm.inner_size = %llu",
                       (unsigned long long)m->d_inner);
        gguf_value_fault(r->file, gg_key(r, "ssm.time_step_rank", &key),
                         gguf_find(r->g, gg_key(r, "ssm.time_step_rank", &key)), found, allowed,
                         r->c->err);
        return;
    }
    m->headdim = m->d_inner / rank;
    m->dt_limit[1] = json_infinity();
}

/* Embedding, head and special tokens. The rows of the embedding are the vocabulary. */
TL_FN void gg_ends(const gg_reader *r)
{
    ck_model *m = r->c->m;
    const ck_tensor *t = ck_find(r->c->ck, "token_embd.weight");
    uint64_t rows = t != NULL && t->rank == 2   ? t->shape[0]
                    : t != NULL && t->rank == 1 ? 1
                                                : 0,
             said;
    tl_quoted q;
    if (rows == 0 || rows > CFG_MAX_VOCAB) {
        tl_fail(r->c->err, TL_ERR_FORMAT,
                "%s: tensor \"token_embd.weight\": found %s, allowed: one of shape "
                "(vocabulary, embedding_length) with 1 to %llu rows",
                tl_path(&q, r->file->path), t == NULL ? "none" : "another shape",
                (unsigned long long)CFG_MAX_VOCAB);
        return;
    }
    m->padded_vocab = rows;
    said = gg_u64(r, "vocab_size", rows, rows);
    m->vocab_size = said;
    m->embedding =
        gg_tensor(r, "token_embd.weight", rows, m->d_model, "(vocabulary, embedding_length)");
    m->norm_f = gg_tensor(r, "output_norm.weight", m->d_model, 0, "(embedding_length)");
    m->tied = ck_find(r->c->ck, "output.weight") == NULL;
    m->head =
        m->tied ? m->embedding
                : gg_tensor(r, "output.weight", rows, m->d_model, "(vocabulary, embedding_length)");
    m->bos = gg_token(r, "tokenizer.ggml.bos_token_id", rows);
    m->eos = gg_token(r, "tokenizer.ggml.eos_token_id", rows);
}

/* Every tensor must have a place: any other would take part in the computation that the file is
 * made for. */
TL_FN void gg_unused(const gg_reader *r)
{
    for (size_t i = 0; i < r->c->ck->tensor_count; i++) {
        if (!r->c->used[i]) {
            ck_fault(r->c->ck, &r->c->ck->tensors[i], "a tensor without a place",
                     "those of the architecture and the layers that the keys give", r->c->err);
            return;
        }
    }
}

/* Describes an opened GGUF file. */
TL_FN tl_status gg_describe(cfg_reader *c, const char *arch)
{
    gg_reader r;
    ck_model *m = c->m;
    r.c = c;
    r.g = ck_gguf(c->ck);
    r.file = &c->ck->files[0].file;
    r.arch = "";
    m->keys = CK_KEYS_GGUF;
    m->A_stored = 1;
    m->conv_bias = 1;
    c->prefix = "blk.";
    gg_recognise(&r, arch);
    if (c->err->status == TL_OK) {
        gg_sizes(&r);
    }
    if (c->err->status == TL_OK) {
        cfg_derive(c);
    }
    if (c->err->status == TL_OK) {
        c->used = (unsigned char *)tl_calloc(c->ck->tensor_count, 1, c->err);
        m->layers = (ck_layer *)tl_calloc(m->n_layer, sizeof m->layers[0], c->err);
    }
    if (c->err->status == TL_OK) {
        gg_ends(&r);
    }
    for (uint64_t i = 0; c->err->status == TL_OK && i < m->n_layer; i++) {
        gg_layer(&r, i, &m->layers[i]);
    }
    if (c->err->status == TL_OK) {
        cfg_settle(c);
    }
    if (c->err->status == TL_OK) {
        gg_unused(&r);
    }
    return c->err->status;
}

#endif /* TL_GGUF_CONFIG_H */
