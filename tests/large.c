/*  large.c: files beyond 4 GiB. A model of 2.8 billion parameters in 16 bits is laid out as a sparse file of
 *  5.6 GB; opening it must check everything and touch no weight. (Time is printed, not tested.)
 */
#define _DEFAULT_SOURCE
#include "../tools/base.h"

#include <sys/mman.h>
#include <time.h>

#define MAMBA_NO_DISPATCH /* nothing is computed: compiles faster */
#define MAMBA_IMPLEMENTATION
#include "../mamba.h"

#include "../tools/writer.h"
#include "test.h"

enum { D_MODEL = 2560, D_INNER = 5120, D_STATE = 16, DT_RANK = 160, N_LAYERS = 64, N_VOCAB = 50280 };

static const char large_path[] = "build/large.mamba";

static void large_matrix(wr_file *w, int layer, const char *what, uint32_t cols, uint32_t a, uint32_t b, uint32_t c)
{
    wr_item *item = wr_add(w, layer, what, MAMBA_BF16, MBI_LAYOUT_PANELS, NULL);
    const uint32_t rows[3] = {a, b, c};
    item->t.cols = cols;
    for (int i = 0; i < 3 && rows[i] != 0; i++) {
        wr_segment(item, rows[i]);
    }
}

static void large_vector(wr_file *w, int layer, const char *what, uint32_t rows, uint32_t cols)
{
    wr_item *item = wr_add(w, layer, what, MAMBA_F32, MBI_LAYOUT_VECTOR, NULL);
    item->t.cols = cols;
    wr_segment(item, rows);
}

/* Metadata of the model; the data is a hole. */
static int large_write(uint64_t *file_bytes)
{
    wr_file w;
    tl_error err;
    int ok;
    memset(&w, 0, sizeof w);
    memset(&err, 0, sizeof err);
    w.config.d_model = D_MODEL;
    w.config.n_layers = N_LAYERS;
    w.config.n_vocab = w.config.n_vocab_used = N_VOCAB;
    w.config.flags = MBI_MODEL_TIED;
    w.config.main_type = MAMBA_BF16;
    w.config.norm_eps = 1e-5f;
    w.config.embedding_scale = w.config.residual_scale = w.config.logit_scale = 1.0f;
    w.config.bos = w.config.eos = w.config.pad = -1;
    memcpy(w.config.architecture, "mamba", 5);
    w.layers = (mbi_layer_record *)tl_calloc(N_LAYERS, sizeof *w.layers, &err);
    large_matrix(&w, -1, "embedding", D_MODEL, N_VOCAB, 0, 0);
    large_vector(&w, -1, "norm_f", 1, D_MODEL);
    for (int i = 0; i < N_LAYERS; i++) {
        w.layers[i].kind = MAMBA_LAYER_MAMBA1;
        w.layers[i].norm_eps = 1e-5f;
        w.layers[i].u[0] = D_INNER;
        w.layers[i].u[1] = D_STATE;
        w.layers[i].u[2] = 4;
        w.layers[i].u[3] = DT_RANK;
        large_vector(&w, i, "norm", 1, D_MODEL);
        large_matrix(&w, i, "in_proj", D_MODEL, D_INNER, D_INNER, 0);
        large_matrix(&w, i, "x_proj", D_INNER, DT_RANK, D_STATE, D_STATE);
        large_matrix(&w, i, "dt_proj", DT_RANK, D_INNER, 0, 0);
        large_matrix(&w, i, "out_proj", D_INNER, D_MODEL, 0, 0);
        large_vector(&w, i, "conv_w", 4, D_INNER);
        large_vector(&w, i, "dt_bias", 1, D_INNER);
        large_vector(&w, i, "D", 1, D_INNER);
        large_vector(&w, i, "A", D_INNER / 16 * D_STATE, 16);
    }
    w.temporary = tl_strndup(large_path, strlen(large_path), &err);
    w.path = large_path;
    ok = wr_layout(&w, &err) == TL_OK;
    w.fd = open(large_path, O_RDWR | O_CREAT | O_TRUNC, 0666);
    mbi_hash_init(&w.hash);
    ok = ok && w.fd >= 0 && wr_meta(&w, &err) == TL_OK && ftruncate(w.fd, (off_t)w.file_bytes) == 0;
    if (w.fd >= 0) {
        close(w.fd);
    }
    *file_bytes = w.file_bytes;
    wr_free(&w);
    return ok;
}

/* Pages of the mapping that are in memory, from byte `from` on. */
static size_t large_resident(const mamba_model *m, uint64_t from)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), n = (size_t)(m->bytes.bytes - from) / page, count = 0;
    unsigned char *map = (unsigned char *)malloc(n + 1);
    if (map == NULL || mincore((void *)(uintptr_t)(m->bytes.data + from), n * page, map) != 0) {
        n = 0;
        count = 1;
    }
    for (size_t i = 0; i < n; i++) {
        count += map[i] & 1u;
    }
    free(map);
    return count;
}

TEST(opens_without_touching_weights)
{
    mamba_model *m = NULL;
    mamba_error err;
    mamba_info info;
    mamba_status status;
    uint64_t bytes = 0;
    struct timespec a, b;
    if (!large_write(&bytes)) {
        unlink(large_path);
        SKIP("the file system takes no sparse file of 5.6 GB");
    }
    clock_gettime(CLOCK_MONOTONIC, &a);
    status = mamba_open(large_path, strlen(large_path), NULL, &m, &err);
    clock_gettime(CLOCK_MONOTONIC, &b);
    if (sizeof(size_t) < 8) {
        CHECK_INT(status, MAMBA_ERR_UNSUPPORTED);
        CHECK_CONTAINS(err.what, "file too large for this build");
        unlink(large_path);
        return;
    }
    CHECK_INT(status, MAMBA_OK);
    if (status == MAMBA_OK) {
        /* the kernel reads ahead around the metadata: 1 MiB is left for that */
        CHECK_INT(large_resident(m, m->meta_bytes + (1 << 20)), 0);
        mamba_model_info(m, &info);
        CHECK(info.file_bytes == bytes && bytes > (uint64_t)5 << 30);
        /* the published count, less the convolution biases that this one lacks */
        CHECK_INT(info.n_parameters, 2768345600 - N_LAYERS * D_INNER);
        printf("large: %.2f GB ready in %.2f ms\n", (double)bytes / 1e9,
               1e3 * (double)(b.tv_sec - a.tv_sec) + 1e-6 * (double)(b.tv_nsec - a.tv_nsec));
    }
    mamba_close(m);
    unlink(large_path);
}

TEST_MAIN("large")
{
    RUN(opens_without_touching_weights);
}
