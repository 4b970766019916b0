/*  stream.c: converting is a stream. A sharded checkpoint of 1.5 billion parameters, with the
 *  widths of falcon-mamba-7b, is laid out as sparse files of 3 GB and converted by the program
 *  itself under a limit of the system on all memory that it can write to: heap, stacks and data
 *  together. The limit is an eighth of the largest tensor. (Time and resident memory are printed,
 *  not tested.)
 */
#define _DEFAULT_SOURCE
#define _FILE_OFFSET_BITS 64

#include <fcntl.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "mamba.h"
#include "test.h"

enum { D_MODEL = 4096, D_INNER = 8192, D_STATE = 16, DT_RANK = 256, N_LAYERS = 9, N_VOCAB = 65024 };

static const uint64_t limit_bytes = (uint64_t)64 << 20; /* the embedding has 533 MB */
static const uint64_t disk_bytes = (uint64_t)2
                                   << 30; /* the output has 1.6 GB, the input hardly any */

static char folder[512];

static const char *inside(const char *name)
{
    static char paths[2][600];
    static int turn;
    char *path = paths[turn++ % 2];
    (void)snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

typedef struct {
    char header[8192]; /* of the shard being written */
    size_t n;
    uint64_t bytes; /* of its data so far */
    FILE *index;
    int shard, ok;
    uint64_t total;
} shards;

static const char *shard_name(int i)
{
    static char name[64];
    (void)snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", i + 1, N_LAYERS + 2);
    return name;
}

/* A tensor of bf16 zeros, b and c 0 where absent. */
static void put(shards *s, const char *name, int a, int b, int c)
{
    uint64_t n = (uint64_t)a * (uint64_t)(b != 0 ? b : 1) * (uint64_t)(c != 0 ? c : 1) * 2;
    char shape[64];
    (void)snprintf(shape, sizeof shape, c != 0 ? "%d,%d,%d" : b != 0 ? "%d,%d" : "%d", a, b, c);
    s->n += (size_t)snprintf(
        s->header + s->n, sizeof s->header - s->n,
        "%s\"%s\":{\"dtype\":\"BF16\",\"shape\":[%s],\"data_offsets\":[%llu,%llu]}",
        s->n == 0 ? "{" : ",", name, shape, (unsigned long long)s->bytes,
        (unsigned long long)(s->bytes + n));
    fprintf(s->index, "%s\"%s\":\"%s\"", s->total == 0 ? "" : ",", name, shard_name(s->shard));
    s->bytes += n;
    s->total += n;
}

/* The header, and a hole for the data. */
static void finish(shards *s)
{
    unsigned char length[8];
    int fd = open(inside(shard_name(s->shard)), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    s->header[s->n++] = '}';
    for (int i = 0; i < 8; i++) {
        length[i] = (unsigned char)(s->n >> 8 * i);
    }
    s->ok = s->ok && fd >= 0 && write(fd, length, 8) == 8
            && write(fd, s->header, s->n) == (ssize_t)s->n
            && ftruncate(fd, (off_t)(8 + s->n + s->bytes)) == 0;
    if (fd >= 0) {
        close(fd);
    }
    s->n = 0;
    s->bytes = 0;
    s->shard++;
}

static int checkpoint(uint64_t *bytes)
{
    static const struct {
        const char *name;
        int a, b, c;
    } parts[] = {{"norm.weight", D_MODEL, 0, 0},
                 {"mixer.in_proj.weight", 2 * D_INNER, D_MODEL, 0},
                 {"mixer.conv1d.weight", D_INNER, 1, 4},
                 {"mixer.conv1d.bias", D_INNER, 0, 0},
                 {"mixer.x_proj.weight", DT_RANK + 2 * D_STATE, D_INNER, 0},
                 {"mixer.dt_proj.weight", D_INNER, DT_RANK, 0},
                 {"mixer.dt_proj.bias", D_INNER, 0, 0},
                 {"mixer.A_log", D_INNER, D_STATE, 0},
                 {"mixer.D", D_INNER, 0, 0},
                 {"mixer.out_proj.weight", D_MODEL, D_INNER, 0}};
    shards s;
    FILE *f = fopen(inside("config.json"), "w");
    memset(&s, 0, sizeof s);
    s.ok = 1;
    s.index = fopen(inside("model.safetensors.index.json"), "w");
    if (f == NULL || s.index == NULL) {
        return 0;
    }
    fprintf(f,
            "{\"model_type\":\"falcon_mamba\",\"hidden_size\":%d,\"intermediate_size\":%d,\"state_"
            "size\":%d,"
            "\"conv_kernel\":4,\"time_step_rank\":%d,\"num_hidden_layers\":%d,\"vocab_size\":%d,"
            "\"tie_word_embeddings\":false}",
            D_MODEL, D_INNER, D_STATE, DT_RANK, N_LAYERS, N_VOCAB);
    s.ok = fclose(f) == 0;
    fprintf(s.index, "{\"weight_map\":{");
    put(&s, "backbone.embeddings.weight", N_VOCAB, D_MODEL, 0);
    put(&s, "backbone.norm_f.weight", D_MODEL, 0, 0);
    finish(&s);
    for (int i = 0; i < N_LAYERS; i++) {
        for (size_t k = 0; k < sizeof parts / sizeof parts[0]; k++) {
            char name[128];
            (void)snprintf(name, sizeof name, "backbone.layers.%d.%s", i, parts[k].name);
            put(&s, name, parts[k].a, parts[k].b, parts[k].c);
        }
        finish(&s);
    }
    put(&s, "lm_head.weight", N_VOCAB, D_MODEL, 0);
    finish(&s);
    fprintf(s.index, "}}");
    *bytes = s.total;
    return fclose(s.index) == 0 && s.ok;
}

static void clean(void)
{
    unlink(inside("config.json"));
    unlink(inside("model.safetensors.index.json"));
    unlink(inside("out.mamba"));
    for (int i = 0; i < N_LAYERS + 2; i++) {
        unlink(inside(shard_name(i)));
    }
    rmdir(folder);
}

static int limited(void)
{
    struct rlimit r;
    r.rlim_cur = r.rlim_max = (rlim_t)limit_bytes;
    return setrlimit(RLIMIT_DATA, &r) == 0;
}

/* Does the limit hold a program back at all? */
static int limit_works(void)
{
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        volatile char *p = limited() ? (volatile char *)malloc((size_t)limit_bytes) : NULL;
        if (p != NULL) {
            p[0] = 1;
        }
        _exit(p == NULL ? 0 : 1);
    }
    return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status)
           && WEXITSTATUS(status) == 0;
}

/* Runs the converter; its exit code, or -1. */
static int convert(const char *program, double *seconds, long *resident)
{
    int status = 0;
    struct timeval a, b;
    struct rusage usage;
    pid_t child;
    (void)gettimeofday(&a, NULL);
    child = fork();
    if (child == 0) {
        char in[600], out[600];
        (void)snprintf(in, sizeof in, "%s", folder);
        (void)snprintf(out, sizeof out, "%s", inside("out.mamba"));
        if (limited()) {
            execl(program, program, in, "-o", out, "--type", "q8", "--tokenizer", "none", "-q",
                  (char *)NULL);
        }
        _exit(127);
    }
    if (child < 0 || waitpid(child, &status, 0) != child) {
        return -1;
    }
    (void)gettimeofday(&b, NULL);
    (void)getrusage(RUSAGE_CHILDREN, &usage);
    *seconds = (double)(b.tv_sec - a.tv_sec) + 1e-6 * (double)(b.tv_usec - a.tv_usec);
    *resident = usage.ru_maxrss;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(converts_in_bounded_memory)
{
    const char *tmp = getenv("TMPDIR"), *build = getenv("B");
    char program[600];
    struct statvfs disk;
    mamba_model *m = NULL;
    mamba_error err;
    mamba_info info;
    uint64_t bytes = 0;
    double seconds = 0;
    long resident = 0;
    int code;
#if defined(__SANITIZE_ADDRESS__)
    SKIP("the sanitizer itself needs more memory than the limit");
#endif
    (void)snprintf(program, sizeof program, "%s/mamba-convert", build != NULL ? build : "build");
    (void)snprintf(folder, sizeof folder, "%.400s/mamba-stream-%ld", tmp != NULL ? tmp : "/tmp",
                   (long)getpid());
    if (access(program, X_OK) != 0) {
        SKIP("no mamba-convert beside the tests");
    }
    if (!limit_works()) {
        SKIP("this system does not limit memory by RLIMIT_DATA");
    }
    REQUIRE(mkdir(folder, 0700) == 0);
    if (statvfs(folder, &disk) != 0 || (uint64_t)disk.f_bavail * disk.f_frsize < disk_bytes) {
        rmdir(folder);
        SKIP("less than 2 GB free where temporary files go");
    }
    if (!checkpoint(&bytes)) {
        clean();
        SKIP("the file system takes no sparse files of 3 GB");
    }
    code = convert(program, &seconds, &resident);
    CHECK_INT(code, 0);
    if (code == 0) {
        CHECK(mamba_open(inside("out.mamba"), strlen(inside("out.mamba")), NULL, &m, &err)
              == MAMBA_OK);
    }
    if (m != NULL) {
        mamba_model_info(m, &info);
        CHECK(info.n_layers == N_LAYERS && info.n_parameters > 1400000000u);
        printf("%.2f GB in %d shards to %.2f GB of q8: %.1f s, at most %d MiB writable, %ld MiB "
               "resident "
               "with mapped files\n",
               (double)bytes * 1e-9, N_LAYERS + 2, (double)info.file_bytes * 1e-9, seconds,
               (int)(limit_bytes >> 20), resident / 1024);
        mamba_close(m);
    }
    clean();
}

TEST_MAIN("stream")
{
    RUN(converts_in_bounded_memory);
}
