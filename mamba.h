/* mamba.h - v0.1.0 - CPU inference for Mamba models - MIT licence, text at end of file
 *
 * Runs selective state space models (the Mamba family) from one flat file that is mapped and used
 * in place: text, log-probabilities, hidden states or plain scans, on any CPU, with libc and libm
 * only.  Kernels for several instruction sets are compiled side by side and chosen at run time.
 * It does NOT train, does not read Python checkpoints itself (tools/mamba-convert does), does not
 * use a GPU, and never prints, exits, reads the environment or keeps global state.
 *
 * QUICK START
 *   In exactly one C or C++ file:
 *       #define MAMBA_IMPLEMENTATION
 *       #include "mamba.h"
 *   and a program (examples/hello.c):
 *
 *       (see examples/hello.c)
 *
 * BUILD
 *   cc -O2 app.c -lm                 one thread
 *   cc -O2 -fopenmp app.c -lm        all cores (or give your own thread pool in mamba_config)
 *   No -march and no -ffast-math: compile the implementation at the baseline of the platform; the
 *   faster kernels carry their own target attributes and are chosen by CPUID at run time.
 *   GCC 11+ / Clang 14+ get every x86 target; older compilers get those they know.
 *
 * MACROS (all optional; define before including, in the implementation file unless said otherwise)
 *   MAMBA_IMPLEMENTATION   emit the function bodies here
 *   MAMBA_STATIC           all public functions static (every file that includes the header)
 *   MAMBA_API              linkage of public functions; default extern (every file)
 *   MAMBA_HEADER_NAME      how the file includes itself, default "mamba.h"; set it when renamed
 *   MAMBA_NO_DISPATCH      baseline kernels only; the file then never includes itself
 *   MAMBA_NO_AVX2, MAMBA_NO_AVX512, MAMBA_NO_AVX512VNNI, MAMBA_NO_AVX512BF16, MAMBA_NO_AMX,
 *   MAMBA_NO_NEON          leave a target out
 *   MAMBA_NO_STDIO         no file access at all: open from memory or through read hooks
 *   MAMBA_NO_MMAP          open by copying
 *   MAMBA_NO_THREADS       never enter OpenMP even where compiled with it
 *   MAMBA_ASSERT(x)        check of internal invariants; default: nothing
 *
 * CONCEPTS
 *   Model: immutable after opening, shared by any number of states and threads.
 *   State: the memory of one sequence: per layer the last d_conv-1 convolution inputs and the SSM
 *     state; attention layers add a key/value cache.  One thread at a time.  Its size does not grow
 *     with the number of tokens (but for attention layers, whose capacity is fixed at creation).
 *   Prefill and step: mamba_run takes any number of tokens.  Feeding a prompt at once, in chunks
 *     or token by token gives the same bits.
 *   Memory: everything is allocated by open and by state creation, through the hooks of
 *     mamba_config; running allocates nothing.
 *   Threads: a call may use n_threads cores through OpenMP or the caller's pool.  One thread never
 *     enters OpenMP.  The library starts no thread on its own.
 *   Errors: functions return a status; the optional mamba_error says file, field, byte offset,
 *     value found and values allowed.  A failed call leaves its objects as they were.
 *
 * DETERMINISM AND ACCURACY
 *   Same model file, same target, same calls: same bits, for any number of threads, any chunking
 *   of the prompt and single steps.  Every output of a matrix product is accumulated over its
 *   inputs in one fixed order by one accumulator; threads split outputs, never inputs.  Between
 *   targets results differ by rounding; @@kernel_list states the bound of each kernel.
 *   State, dt, exp(dt*A), norms, convolution and residual stream are float32 on every target.
 *   Time-parallel scan (mamba_scan_time_parallel) rounds differently from the sequential scan; the
 *   model never uses it unless mamba_state_options.time_chunk asks for it.
 *
 * CONTENTS  (grep for the tag)
 *   @@version        Version of the header
 *   @@status         Status codes and error details
 *   @@hooks          Allocator, parallel-for, reader, log
 *   @@target         Instruction sets
 *   @@model          Open and ask
 *   @@state          The memory of one sequence
 *   @@infer          Run the model
 *   @@operators      The mathematics on the caller's own arrays
 *   @@tokenizer      Text to ids and back
 *   @@platform       Compiler, CPU family, operating system: the only place that asks
 *   @@base           Checked sizes, byte order, 16-bit floats, hash, errors, memory
 *   @@threads        Parallel-for behind the hook
 *   @@cpu            What this CPU and operating system can run
 *   @@kernel_list    What every target must provide, with contracts
 *   @@kernel_passes  Read part 3 again for each extra target
 *   @@ops_scalar     Vector vocabulary: one lane
 *   @@ops_avx2       Vector vocabulary: AVX2 + FMA + F16C, 8 lanes
 *   @@ops_avx512     Vector vocabulary: AVX-512 F, BW, DQ, VL, 16 lanes
 *   @@kernels        The mathematics of each kernel, once, in the vocabulary above
 *   @@kernel_table   The tables of this pass
 *   @@dispatch       The list of targets and the choice among them
 *   @@format         The .mamba file, byte by byte
 *   @@mapping        Bytes of the file: mapped, copied, or the caller's
 *   @@loader         Header to bound layers: every check of the structure
 *   @@matmul         Weight matrix times activations, split over the threads
 *   @@mamba1         Mamba-1 and FalconMamba layers
 *   @@layers         The table of kinds
 *   @@forward        A state, and tokens through the layers
 *   @@stateio        Snapshots of a state
 *   @@checks         Checksum, finite scan, self-test
 *   @@api            Public functions: check arguments, call inward
 */

#ifndef MBI_PASS /* parts 1 and 2: read once; part 3 is re-read once per extra target */

#ifndef MAMBA_H
#define MAMBA_H

#include <stddef.h>
#include <stdint.h>

/* ------------------------------------------------------------------------------------------------
 * @@version   Version of the header                                                       (public)
 * ---------------------------------------------------------------------------------------------- */
#define MAMBA_VERSION_MAJOR 0
#define MAMBA_VERSION_MINOR 1
#define MAMBA_VERSION_PATCH 0
#define MAMBA_VERSION_TEXT "0.1.0"

#ifndef MAMBA_API
#ifdef MAMBA_STATIC
#define MAMBA_API static
#else
#define MAMBA_API extern
#endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* "0.1.0": the version that was compiled into the implementation.  Threads: any. */
MAMBA_API const char *mamba_version(void);

/* ------------------------------------------------------------------------------------------------
 * @@status   Status codes and error details                                               (public)
 * ---------------------------------------------------------------------------------------------- */
typedef enum mamba_status {
    MAMBA_OK = 0,
    MAMBA_ERR_ARG = -1,         /* a caller's argument is out of its documented range */
    MAMBA_ERR_MEMORY = -2,      /* the allocator returned NULL */
    MAMBA_ERR_IO = -3,          /* open, stat, map, read or write failed */
    MAMBA_ERR_FORMAT = -4,      /* the bytes are not a valid file of this kind */
    MAMBA_ERR_VERSION = -5,     /* a valid file of a version this build can't read */
    MAMBA_ERR_UNSUPPORTED = -6, /* well-formed, but asks for something this build lacks */
    MAMBA_ERR_RANGE = -7,       /* output buffer or capacity too small */
    MAMBA_ERR_NONFINITE = -8,   /* NaN or infinity where a number is needed */
    MAMBA_ERR_CHECK = -9        /* checksum, fingerprint or self-test mismatch */
} mamba_status;

/* Details of a failure.  Functions that take one accept NULL; otherwise it is always written
 * (status MAMBA_OK and zeroes on success). */
typedef struct mamba_error {
    mamba_status status;
    int has_values;          /* 1: found and allowed_* below are meaningful */
    const char *what;        /* static text: which rule was broken */
    uint64_t offset;         /* byte in the file or buffer, or 0 */
    int64_t found;           /* the value that broke the rule */
    int64_t allowed_min;     /* smallest value allowed */
    int64_t allowed_max;     /* largest value allowed */
    char name[64];           /* field, tensor or argument; NUL-terminated, control bytes replaced */
    char file[192];          /* path as given to open (its end, when longer), or "" */
} mamba_error;

/* Short static text for a status: "bad argument", …  Threads: any. */
MAMBA_API const char *mamba_status_text(mamba_status status);

/* Writes one line "file: name at byte N: what (found F, allowed A..B)" into out (always
 * NUL-terminated when cap > 0); returns its length without the NUL.  Threads: any. */
MAMBA_API size_t mamba_error_text(const mamba_error *err, char *out, size_t cap);

/* ------------------------------------------------------------------------------------------------
 * @@hooks   Allocator, parallel-for, reader, log                                          (public)
 * ---------------------------------------------------------------------------------------------- */
/* Memory.  alloc returns `bytes` bytes aligned to `align` (a power of two <= 64) or NULL;
 * free takes what alloc gave and the same size.  Both NULL: aligned malloc. */
typedef struct mamba_memory {
    void *(*alloc)(void *user, size_t bytes, size_t align);
    void (*free)(void *user, void *ptr, size_t bytes);
    void *user;
} mamba_memory;

typedef void (*mamba_task)(void *arg, int i_task);

/* Parallel-for: run must call task(arg, i) once for every i in [0, n_tasks), in any order, on any
 * threads, and return when all are done.  NULL: OpenMP where compiled with it, else in order. */
typedef struct mamba_parallel {
    void (*run)(void *user, int n_tasks, mamba_task task, void *arg);
    void *user;
} mamba_parallel;

/* Random-access source for mamba_open_reader: fills dst with `bytes` bytes from `offset`, returns
 * 0 on success.  Used during open only: the contents are copied into memory. */
typedef struct mamba_reader {
    int (*read)(void *user, uint64_t offset, void *dst, size_t bytes);
    void *user;
    uint64_t total_bytes;
} mamba_reader;

/* Warnings that are not errors (level 1) and information (level 2); text is not NUL-terminated. */
typedef struct mamba_log {
    void (*write)(void *user, int level, const char *text, size_t n_text);
    void *user;
} mamba_log;

/* ------------------------------------------------------------------------------------------------
 * @@target   Instruction sets                                                             (public)
 * ---------------------------------------------------------------------------------------------- */
/* One way of doing the arithmetic: "scalar", "avx2", "avx512", "avx512vnni", "avx512bf16", "amx",
 * "neon", … */
typedef struct mamba_target mamba_target;

/* The targets compiled in, in rising order of preference; NULL past the last.  Threads: any. */
MAMBA_API const mamba_target *mamba_target_at(int i);
MAMBA_API const char *mamba_target_name(const mamba_target *target);
/* 1 if this CPU and this operating system can run it.  Asks the CPU every time (microseconds). */
MAMBA_API int mamba_target_usable(const mamba_target *target);
/* The target a model uses by default on this machine; never NULL. */
MAMBA_API const mamba_target *mamba_target_best(void);
/* By name; NULL if not compiled in. */
MAMBA_API const mamba_target *mamba_target_find(const char *name, size_t n_name);

/* ------------------------------------------------------------------------------------------------
 * @@model   Open and ask                                                                  (public)
 * ---------------------------------------------------------------------------------------------- */
typedef struct mamba_model mamba_model;

/* All zero is valid and means the defaults. */
typedef struct mamba_config {
    uint32_t struct_size;       /* sizeof(mamba_config), or 0 = as compiled */
    uint32_t copy;              /* 0: map the file; 1: read it into memory (no SIGBUS can happen) */
    uint32_t check;             /* MAMBA_CHECK_* to run during open; 0 = structure only */
    int32_t n_threads;          /* default for states: 0 = all cores this process may use */
    const mamba_target *target; /* NULL = best usable; an unusable one makes open fail */
    mamba_memory memory;
    mamba_parallel parallel;
    mamba_log log;
} mamba_config;

#define MAMBA_CHECK_CHECKSUM 1u /* hash of every weight byte */
#define MAMBA_CHECK_FINITE 2u   /* no NaN or infinity in any float or scale */
#define MAMBA_CHECK_SELFTEST 4u /* run the tokens in the file, compare the logits in the file */
#define MAMBA_CHECK_ALL 7u

/* Weight types of the file. */
typedef enum mamba_type {
    MAMBA_F32 = 0,
    MAMBA_F16 = 1,
    MAMBA_BF16 = 2,
    MAMBA_Q8 = 3, /* int8, f16 scale per 32 columns: 8.5 bits per weight */
    MAMBA_Q4 = 4  /* 4-bit codebook index, f16 scale per 32 columns: 4.5 bits per weight */
} mamba_type;

/* Kinds of layers; a layer is one pre-norm residual branch  r += f(norm(r)). */
typedef enum mamba_layer_kind {
    MAMBA_LAYER_MAMBA1 = 1, /* Mamba, Gu & Dao 2023; FalconMamba with norms on dt, B, C */
    MAMBA_LAYER_MAMBA2 = 2, /* Mamba-2 (SSD), Dao & Gu 2024 */
    MAMBA_LAYER_MAMBA3 = 3,
    MAMBA_LAYER_ATTENTION = 4,
    MAMBA_LAYER_MLP = 5, /* gated MLP */
    MAMBA_LAYER_MOE = 6
} mamba_layer_kind;

typedef struct mamba_info {
    int32_t d_model;        /* width of the residual stream */
    int32_t n_layers;       /* residual branches */
    int32_t n_vocab;        /* rows of the head = floats per logits vector (padding included) */
    int32_t n_vocab_used;   /* ids below this may be sampled: the tokenizer's or n_vocab */
    int32_t tied;           /* 1: the head is the embedding */
    uint64_t n_parameters;  /* elements of all tensors, without padding */
    uint64_t file_bytes;
    uint64_t weight_bytes;  /* bytes of the tensors with their padding */
    uint64_t state_bytes;   /* recurrent state of one sequence (without scratch) */
    uint64_t fingerprint;   /* identifies the file's contents; part of every saved state */
    const char *target;     /* name of the target in use */
    char architecture[32];  /* "mamba", "falcon_mamba", "mamba2", … */
    char weight_type[16];   /* "f32", "f16", "bf16", "q8", "q4": type of the large matrices */
} mamba_info;

typedef struct mamba_layer_info {
    mamba_layer_kind kind;
    int32_t d_inner, d_state, d_conv; /* 0 where the kind has none */
    int32_t dt_rank;                  /* Mamba-1 */
    int32_t n_heads, headdim;         /* Mamba-2, attention */
    int32_t n_groups;                 /* Mamba-2 groups; attention: key/value heads */
} mamba_layer_info;

typedef struct mamba_tensor_info {
    char name[64];
    mamba_type type;
    uint64_t rows, cols; /* logical shape; vectors have cols 1 */
    uint64_t offset, bytes;
} mamba_tensor_info;

/* Open a .mamba file.  path: bytes as the operating system takes them (UTF-8 on Windows), n_path
 * without a NUL.  Maps the file (or copies, cfg->copy) and checks its whole structure without
 * touching a weight byte.  A mapped file must not be truncated or rewritten in place while the
 * model is open (replace it by rename); with cfg->copy it may.  cfg and err may be NULL.
 * Errors: IO, FORMAT, VERSION, UNSUPPORTED, MEMORY, ARG, CHECK.  Threads: any. */
MAMBA_API mamba_status mamba_open(const char *path, size_t n_path, const mamba_config *cfg,
                                  mamba_model **model, mamba_error *err);
/* The same from bytes in memory, which must outlive the model.  Used in place when `data` is
 * aligned to 64 bytes, else copied. */
MAMBA_API mamba_status mamba_open_memory(const void *data, uint64_t bytes, const mamba_config *cfg,
                                         mamba_model **model, mamba_error *err);
/* The same through a reader: everything is read once into memory. */
MAMBA_API mamba_status mamba_open_reader(const mamba_reader *reader, const mamba_config *cfg,
                                         mamba_model **model, mamba_error *err);
/* Unmap and free.  All its states must be freed before.  NULL is allowed. */
MAMBA_API void mamba_close(mamba_model *model);

/* Full checks of the contents, MAMBA_CHECK_*.  Errors: CHECK, NONFINITE, UNSUPPORTED (no
 * self-test in the file), MEMORY.  Threads: any. */
MAMBA_API mamba_status mamba_model_check(const mamba_model *model, uint32_t what,
                                         mamba_error *err);
MAMBA_API void mamba_model_info(const mamba_model *model, mamba_info *info);
/* Layer i / tensor i of the file; ERR_ARG past the last. */
MAMBA_API mamba_status mamba_model_layer(const mamba_model *model, int i, mamba_layer_info *info);
MAMBA_API mamba_status mamba_model_tensor(const mamba_model *model, int i,
                                          mamba_tensor_info *info);
/* Bytes of an optional named section (not NUL-terminated name of n_name <= 16 bytes); NULL and
 * *bytes = 0 if absent.  Valid until close. */
MAMBA_API const void *mamba_model_section(const mamba_model *model, const char *name,
                                          size_t n_name, uint64_t *bytes);

/* ------------------------------------------------------------------------------------------------
 * @@state   The memory of one sequence                                                    (public)
 * ---------------------------------------------------------------------------------------------- */
typedef struct mamba_state mamba_state;

/* All zero is valid and means the defaults. */
typedef struct mamba_state_options {
    uint32_t struct_size;  /* sizeof(mamba_state_options), or 0 = as compiled */
    int32_t n_threads;     /* 0 = the model's default; more than the machine has is safe */
    int32_t prefill_chunk; /* tokens worked on at once, 1..4096; 0 = 256.  More scratch memory,
                              fewer passes over the weights; never changes a bit of the result */
    int32_t time_chunk;    /* 0: sequential scan, split over channels.  >= 64: Mamba-1 layers scan
                              chunks of this many tokens in parallel (see mamba_scan_time_parallel);
                              then results depend on how the prompt was cut, within its bound */
    int64_t max_tokens;    /* capacity of attention caches; 0 = 4096; ignored without attention */
} mamba_state_options;

/* Bytes that a state needs (recurrent state and scratch).  opt may be NULL. */
MAMBA_API mamba_status mamba_state_bytes(const mamba_model *model, const mamba_state_options *opt,
                                         size_t *bytes, mamba_error *err);
/* Create with the model's allocator; the state is reset.  Errors: MEMORY, ARG. */
MAMBA_API mamba_status mamba_state_create(const mamba_model *model, const mamba_state_options *opt,
                                          mamba_state **state, mamba_error *err);
/* Create in the caller's memory (aligned to 64, at least mamba_state_bytes); mamba_state_free is
 * then not needed and does nothing. */
MAMBA_API mamba_status mamba_state_init(const mamba_model *model, const mamba_state_options *opt,
                                        void *memory, size_t bytes, mamba_state **state,
                                        mamba_error *err);
MAMBA_API void mamba_state_free(mamba_state *state);
/* Back to the empty sequence. */
MAMBA_API void mamba_state_reset(mamba_state *state);
/* dst becomes src (fork).  Both of the same model; options may differ.  Errors: ARG; RANGE when
 * src holds more tokens than dst's attention capacity. */
MAMBA_API mamba_status mamba_state_copy(mamba_state *dst, const mamba_state *src,
                                        mamba_error *err);
/* Tokens fed since reset. */
MAMBA_API uint64_t mamba_state_position(const mamba_state *state);
/* Bytes that mamba_state_save will write now. */
MAMBA_API size_t mamba_state_save_bytes(const mamba_state *state);
/* A versioned, checksummed snapshot (format: @@stateio).  Same bytes on every target. */
MAMBA_API mamba_status mamba_state_save(const mamba_state *state, void *out, size_t cap,
                                        size_t *written, mamba_error *err);
/* Take a snapshot back.  Refused (state untouched) unless it is whole, unaltered and of this very
 * model.  Errors: FORMAT, VERSION, CHECK, RANGE, NONFINITE. */
MAMBA_API mamba_status mamba_state_restore(mamba_state *state, const void *data, size_t bytes,
                                           mamba_error *err);

/* ------------------------------------------------------------------------------------------------
 * @@infer   Run the model                                                                 (public)
 * ---------------------------------------------------------------------------------------------- */
typedef enum mamba_want { MAMBA_WANT_NONE = 0, MAMBA_WANT_LAST = 1, MAMBA_WANT_ALL = 2 } mamba_want;

/* One call's input and output.  Zero it, fill what you need. */
typedef struct mamba_io {
    const int32_t *tokens; /* (n), each in [0, n_vocab); or NULL and … */
    const float *vectors;  /* (n, d_model) in place of embeddings: backbones that are not text */
    size_t n;              /* 0 is allowed and does nothing (want LAST then fails) */
    mamba_want want_logits;
    float *logits;         /* LAST: (n_vocab); ALL: (n, n_vocab), row-major */
    size_t n_logits;       /* floats available at logits */
    mamba_want want_hidden;
    float *hidden;         /* after the final norm.  LAST: (d_model); ALL: (n, d_model) */
    size_t n_hidden;       /* floats available at hidden */
} mamba_io;

/* Feed n tokens or vectors.  The head is computed only for the tokens that asked.  Allocates
 * nothing.  Arguments are checked before anything changes.  Errors: ARG, RANGE.
 * Threads: one per state. */
MAMBA_API mamba_status mamba_run(mamba_state *state, const mamba_io *io, mamba_error *err);
/* mamba_run for a prompt with the logits of its last token (logits NULL: none). */
MAMBA_API mamba_status mamba_prefill(mamba_state *state, const int32_t *tokens, size_t n,
                                     float *logits, size_t n_logits, mamba_error *err);
/* mamba_run for one token. */
MAMBA_API mamba_status mamba_step(mamba_state *state, int32_t token, float *logits,
                                  size_t n_logits, mamba_error *err);

/* ------------------------------------------------------------------------------------------------
 * @@operators   The mathematics on the caller's own arrays                                (public)
 *
 * All arrays are float32, row-major, tokens first: (T, n) means token t, element i at t*n + i.
 * target NULL = scalar.  Inputs and outputs must not overlap unless said otherwise.
 * Symbols as in the papers: Mamba [Gu & Dao 2023, arXiv 2312.00752], Mamba-2 [Dao & Gu 2024,
 * arXiv 2405.21060].  Dimensions 1..2^24; sizes are the caller's to get right.
 * ---------------------------------------------------------------------------------------------- */
/* y[i] = log(1 + exp(x[i])), x[i] above 20.  In place allowed. */
MAMBA_API void mamba_softplus(const mamba_target *target, const float *x, float *y, size_t n);
/* y[i] = x[i] / (1 + exp(-x[i])).  In place allowed. */
MAMBA_API void mamba_silu(const mamba_target *target, const float *x, float *y, size_t n);
/* y = x * rsqrt(mean(x^2) + eps) * w for each of T rows of n; w NULL = ones.  In place allowed. */
MAMBA_API void mamba_rmsnorm(const mamba_target *target, const float *x, const float *w, float eps,
                             int n_tokens, int n, float *y);
/* Causal depthwise convolution, cross-correlation as in the reference:
 *   y[t][c] = bias[c] + sum_j w[c][j] * x[t - (d_conv-1) + j][c],   then SiLU if `silu`.
 * x, y (T, channels); w (channels, d_conv); bias (channels) or NULL; state (d_conv-1, channels),
 * the inputs before the first token, oldest first: read, then replaced by the last d_conv-1
 * inputs; NULL = zeros before the start.  d_conv 1..8. */
MAMBA_API void mamba_conv1d(const mamba_target *target, const float *x, const float *w,
                            const float *bias, int n_tokens, int channels, int d_conv, int silu,
                            float *state, float *y);

/* Discretization of one token [Mamba, eq. 4 and section 3.2]: zero-order hold for A, Euler for B:
 *   dA[i][n] = exp(dt[i] * A[i][n])      dB[i][n] = dt[i] * B[n]
 * dt (channels) after softplus; A (channels, d_state), < 0; B (d_state). */
MAMBA_API void mamba_discretize(const mamba_target *target, const float *dt, const float *A,
                                const float *B, int channels, int d_state, float *dA, float *dB);
/* One token of the recurrence [Mamba, eq. 2a-2b]:
 *   h[i][n] = dA[i][n] * h[i][n] + dB[i][n] * x[i]       y[i] = sum_n C[n] * h[i][n] + D[i] * x[i]
 * h (channels, d_state) is updated; D NULL = 0. */
MAMBA_API void mamba_recurrence(const mamba_target *target, const float *dA, const float *dB,
                                const float *C, const float *D, const float *x, int channels,
                                int d_state, float *h, float *y);

/* Selective scan over T tokens [Mamba, alg. 2].  Zero it, fill what you have. */
typedef struct mamba_scan {
    int32_t n_tokens, channels, d_state;
    int32_t n_groups;        /* of B and C; 0 = 1; channel i uses group i / (channels / n_groups) */
    const float *x;          /* (T, channels) input, "u" of the reference */
    const float *dt;         /* (T, channels) */
    const float *dt_bias;    /* (channels) or NULL */
    int32_t dt_softplus;     /* 1: dt = softplus(dt + dt_bias) */
    const float *A;          /* (channels, d_state), negative: -exp(A_log) */
    const float *B, *C;      /* (T, n_groups, d_state) */
    const float *D;          /* (channels) or NULL */
    const float *z;          /* (T, channels) gate, y *= silu(z), or NULL */
    float *state;            /* (channels, d_state) initial state, replaced by the final one;
                                NULL = zero, final state dropped */
    float *y;                /* (T, channels) */
} mamba_scan;

/* Sequential in time, vectorised over channels, split over channels when parallel is given with
 * n_threads > 1 (parallel NULL: OpenMP if compiled in).  Bits don't depend on n_threads.
 * memory NULL = malloc.  Errors: ARG, MEMORY. */
MAMBA_API mamba_status mamba_selective_scan(const mamba_target *target, const mamba_scan *scan,
                                            int n_threads, const mamba_parallel *parallel,
                                            const mamba_memory *memory, mamba_error *err);
/* The same function by the associative scan over time [Mamba, section 3.3.2; Blelloch 1990]:
 * chunks of `chunk` tokens (0 = 256) run in parallel from a zero state, a short pass joins them by
 *   (a2, b2) o (a1, b1) = (a2*a1, a2*b1 + b2),
 * where a whole chunk's decay is exp(A * sum dt), and each chunk runs again from its true start.
 * Bits depend on `chunk`, never on n_threads.  Against the sequential scan: states and outputs
 * agree to 2e-6 of the largest |h| and of sum_n |C h| (forward error of exp(A sum dt) in float32,
 * measured against float64 in tests).  Faster where channels/16 is less than the cores. */
MAMBA_API mamba_status mamba_scan_time_parallel(const mamba_target *target, const mamba_scan *scan,
                                                int chunk, int n_threads,
                                                const mamba_parallel *parallel,
                                                const mamba_memory *memory, mamba_error *err);

/* ------------------------------------------------------------------------------------------------
 * @@tokenizer   Text to ids and back                                                      (public)
 * ---------------------------------------------------------------------------------------------- */
typedef struct mamba_tokenizer mamba_tokenizer; /* part of a model; immutable */

/* The model's tokenizer, NULL if the file has none.  Valid until close. */
MAMBA_API const mamba_tokenizer *mamba_model_tokenizer(const mamba_model *model);


#ifdef __cplusplus
}
#endif
#endif /* MAMBA_H */

/* ============================================================================================= */
#if defined(MAMBA_IMPLEMENTATION) && !defined(MBI_IMPLEMENTED)
#define MBI_IMPLEMENTED

#ifdef __FAST_MATH__
#error "mamba.h: compile without -ffast-math; it breaks NaN checks and the accuracy bounds"
#endif

/* ------------------------------------------------------------------------------------------------
 * @@platform   Compiler, CPU family, operating system: the only place that asks          (private)
 * ---------------------------------------------------------------------------------------------- */
#if defined(_WIN32)
#define MBI_OS_WINDOWS 1
#else
#define MBI_OS_WINDOWS 0
#endif
#if defined(__unix__) || defined(__APPLE__)
#define MBI_OS_POSIX 1
#else
#define MBI_OS_POSIX 0
#endif
#if defined(__linux__)
#define MBI_OS_LINUX 1
#else
#define MBI_OS_LINUX 0
#endif

#if defined(__x86_64__) || defined(_M_X64)
#define MBI_ARCH_X86 1
#else
#define MBI_ARCH_X86 0
#endif
#if defined(__aarch64__)
#define MBI_ARCH_ARM64 1
#else
#define MBI_ARCH_ARM64 0
#endif
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "mamba.h: the file format is used in place and needs a little-endian machine"
#endif

#if defined(__clang__)
#define MBI_CLANG __clang_major__
#define MBI_GCC 0
#elif defined(__GNUC__)
#define MBI_CLANG 0
#define MBI_GCC __GNUC__
#else
#define MBI_CLANG 0
#define MBI_GCC 0
#endif

/* Which extra targets this compiler can build by per-function attributes. */
#if MBI_ARCH_X86 && !defined(MAMBA_NO_DISPATCH) && (MBI_GCC >= 9 || MBI_CLANG >= 9) &&             \
    !defined(MAMBA_NO_AVX2)
#define MBI_BUILD_AVX2 1
#else
#define MBI_BUILD_AVX2 0
#endif
#if MBI_BUILD_AVX2 && !defined(MAMBA_NO_AVX512)
#define MBI_BUILD_AVX512 1
#else
#define MBI_BUILD_AVX512 0
#endif
#if MBI_BUILD_AVX512 && !defined(MAMBA_NO_AVX512VNNI)
#define MBI_BUILD_AVX512VNNI 1
#else
#define MBI_BUILD_AVX512VNNI 0
#endif
#if MBI_BUILD_AVX512 && (MBI_GCC >= 11 || MBI_CLANG >= 14) && !defined(MAMBA_NO_AVX512BF16)
#define MBI_BUILD_AVX512BF16 1
#else
#define MBI_BUILD_AVX512BF16 0
#endif
#if MBI_BUILD_AVX512BF16 && MBI_OS_LINUX && !defined(MAMBA_NO_AMX)
#define MBI_BUILD_AMX 1
#else
#define MBI_BUILD_AMX 0
#endif
#if MBI_ARCH_ARM64 && !defined(MAMBA_NO_NEON)
#define MBI_BUILD_NEON 1
#else
#define MBI_BUILD_NEON 0
#endif
#if defined(__wasm_simd128__)
#define MBI_BUILD_WASM 1
#else
#define MBI_BUILD_WASM 0
#endif

#include <math.h>
#include <stdlib.h>
#include <string.h>
#if !defined(MAMBA_NO_STDIO)
#if MBI_OS_POSIX
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>
#elif MBI_OS_WINDOWS
#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>
#else
#include <stdio.h>
#endif
#endif
#if MBI_BUILD_AVX2
#include <cpuid.h>
#include <immintrin.h>
#endif
#if MBI_BUILD_NEON
#include <arm_neon.h>
#endif
#if MBI_BUILD_WASM
#include <wasm_simd128.h>
#endif
#if defined(_OPENMP) && !defined(MAMBA_NO_THREADS)
#define MBI_OPENMP 1
#include <omp.h>
#else
#define MBI_OPENMP 0
#endif

#if MBI_GCC || MBI_CLANG
#define MBI_RESTRICT __restrict__
#define MBI_ALIGN64 __attribute__((aligned(64)))
#define MBI_NOINLINE __attribute__((noinline))
#define MBI_UNUSED __attribute__((unused))
#else
#define MBI_RESTRICT
#define MBI_ALIGN64
#define MBI_NOINLINE
#define MBI_UNUSED
#endif

#ifndef MAMBA_ASSERT
#define MAMBA_ASSERT(x) ((void)0)
#endif
#ifndef MAMBA_HEADER_NAME
#define MAMBA_HEADER_NAME "mamba.h"
#endif

/* ------------------------------------------------------------------------------------------------
 * @@base   Checked sizes, byte order, 16-bit floats, hash, errors, memory                (private)
 * ---------------------------------------------------------------------------------------------- */
enum { MBI_LANES = 16 }; /* rows of a weight panel, channels of a block: fixed by the file format */

/* Checked arithmetic: 0 and *r untouched when the true result does not fit. */
static int mbi_mul_ok(uint64_t a, uint64_t b, uint64_t *r) {
    if (b != 0 && a > UINT64_MAX / b) {
        return 0;
    }
    *r = a * b;
    return 1;
}

static int mbi_add_ok(uint64_t a, uint64_t b, uint64_t *r) {
    if (a > UINT64_MAX - b) {
        return 0;
    }
    *r = a + b;
    return 1;
}

/* n rounded up to a multiple of `to`, a power of two; n <= 2^63. */
static uint64_t mbi_pad(uint64_t n, uint64_t to) {
    return (n + to - 1) & ~(to - 1);
}

static int mbi_pad_int(int n, int to) {
    return (n + to - 1) / to * to;
}

static size_t mbi_min_size(size_t a, size_t b) {
    return a < b ? a : b;
}

static int mbi_min_int(int a, int b) {
    return a < b ? a : b;
}

/* Unaligned little-endian loads (the machine is little-endian, see @@platform). */
static uint32_t mbi_load_u32(const void *p) {
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static uint64_t mbi_load_u64(const void *p) {
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static float mbi_bits_f32(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static uint32_t mbi_f32_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

/* IEEE half to float, exact, including subnormals, infinities and NaN. */
static float mbi_f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t magnitude = h & 0x7fffu;
    if (magnitude >= 0x7c00u) {
        return mbi_bits_f32(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
    }
    if (magnitude < 0x0400u) { /* subnormal: magnitude * 2^-24 */
        return mbi_bits_f32(sign | mbi_f32_bits((float)magnitude * 5.9604644775390625e-8f));
    }
    return mbi_bits_f32(sign | ((magnitude << 13) + 0x38000000u));
}

static float mbi_bf16_to_f32(uint16_t h) {
    return mbi_bits_f32((uint32_t)h << 16);
}

/* Float to bfloat16, round to nearest even; NaN stays NaN. */
static MBI_UNUSED uint16_t mbi_f32_to_bf16(float f) {
    uint32_t u = mbi_f32_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) {
        return (uint16_t)((u >> 16) | 0x40u);
    }
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

/* XXH64 as specified by its author (xxHash specification 0.1.1), streaming. */
typedef struct mbi_hash {
    uint64_t v[4];
    uint64_t total;
    unsigned char tail[32];
    uint32_t n_tail;
} mbi_hash;

static const uint64_t mbi_hash_p1 = 0x9E3779B185EBCA87u;
static const uint64_t mbi_hash_p2 = 0xC2B2AE3D27D4EB4Fu;
static const uint64_t mbi_hash_p3 = 0x165667B19E3779F9u;
static const uint64_t mbi_hash_p4 = 0x85EBCA77C2B2AE63u;
static const uint64_t mbi_hash_p5 = 0x27D4EB2F165667C5u;

static uint64_t mbi_rotl(uint64_t x, int r) {
    return (x << r) | (x >> (64 - r));
}

static uint64_t mbi_hash_round(uint64_t acc, uint64_t lane) {
    return mbi_rotl(acc + lane * mbi_hash_p2, 31) * mbi_hash_p1;
}

static void mbi_hash_init(mbi_hash *h) {
    memset(h, 0, sizeof *h);
    h->v[0] = mbi_hash_p1 + mbi_hash_p2;
    h->v[1] = mbi_hash_p2;
    h->v[3] = 0u - mbi_hash_p1;
}

static void mbi_hash_stripes(mbi_hash *h, const unsigned char *p, size_t n_stripes) {
    uint64_t a = h->v[0];
    uint64_t b = h->v[1];
    uint64_t c = h->v[2];
    uint64_t d = h->v[3];
    for (; n_stripes != 0; n_stripes--, p += 32) {
        a = mbi_hash_round(a, mbi_load_u64(p));
        b = mbi_hash_round(b, mbi_load_u64(p + 8));
        c = mbi_hash_round(c, mbi_load_u64(p + 16));
        d = mbi_hash_round(d, mbi_load_u64(p + 24));
    }
    h->v[0] = a;
    h->v[1] = b;
    h->v[2] = c;
    h->v[3] = d;
}

static void mbi_hash_add(mbi_hash *h, const void *data, size_t n) {
    const unsigned char *p = (const unsigned char *)data;
    if (n == 0) {
        return;
    }
    h->total += n;
    if (h->n_tail != 0) {
        size_t take = mbi_min_size(n, 32u - h->n_tail);
        memcpy(h->tail + h->n_tail, p, take);
        h->n_tail += (uint32_t)take;
        p += take;
        n -= take;
        if (h->n_tail < 32) {
            return;
        }
        mbi_hash_stripes(h, h->tail, 1);
        h->n_tail = 0;
    }
    mbi_hash_stripes(h, p, n / 32);
    p += n / 32 * 32;
    n %= 32;
    if (n != 0) {
        memcpy(h->tail, p, n);
    }
    h->n_tail = (uint32_t)n;
}

static uint64_t mbi_hash_end(const mbi_hash *h) {
    uint64_t x = mbi_hash_p5;
    const unsigned char *p = h->tail;
    uint32_t n = h->n_tail;
    int i;
    if (h->total >= 32) {
        x = mbi_rotl(h->v[0], 1) + mbi_rotl(h->v[1], 7) + mbi_rotl(h->v[2], 12) +
            mbi_rotl(h->v[3], 18);
        for (i = 0; i < 4; i++) {
            x = (x ^ mbi_hash_round(0, h->v[i])) * mbi_hash_p1 + mbi_hash_p4;
        }
    }
    x += h->total;
    for (; n >= 8; n -= 8, p += 8) {
        x = mbi_rotl(x ^ mbi_hash_round(0, mbi_load_u64(p)), 27) * mbi_hash_p1 + mbi_hash_p4;
    }
    if (n >= 4) {
        x = mbi_rotl(x ^ (mbi_load_u32(p) * mbi_hash_p1), 23) * mbi_hash_p2 + mbi_hash_p3;
        n -= 4;
        p += 4;
    }
    for (; n != 0; n--, p++) {
        x = mbi_rotl(x ^ (*p * mbi_hash_p5), 11) * mbi_hash_p1;
    }
    x = (x ^ (x >> 33)) * mbi_hash_p2;
    x = (x ^ (x >> 29)) * mbi_hash_p3;
    return x ^ (x >> 32);
}

static uint64_t mbi_hash_bytes(const void *data, size_t n) {
    mbi_hash h;
    mbi_hash_init(&h);
    mbi_hash_add(&h, data, n);
    return mbi_hash_end(&h);
}

/* Copies at most cap-1 bytes with control bytes replaced by '?', always NUL-terminated. */
static void mbi_copy_name(char *out, size_t cap, const char *name, size_t n) {
    size_t i;
    if (n > cap - 1) {
        n = cap - 1;
    }
    for (i = 0; i < n; i++) {
        unsigned char c = (unsigned char)name[i];
        out[i] = c < 0x20 || c == 0x7f ? '?' : name[i];
    }
    out[n] = 0;
}

static void mbi_error_clear(mamba_error *err) {
    if (err) {
        memset(err, 0, sizeof *err);
        err->what = "";
    }
}

/* Fill err (if any) and return the status, so that callers can `return mbi_fail(...)`. */
static mamba_status mbi_fail(mamba_error *err, mamba_status status, const char *what,
                             const char *name, uint64_t offset) {
    if (err) {
        err->status = status;
        err->what = what;
        err->offset = offset;
        err->has_values = 0;
        mbi_copy_name(err->name, sizeof err->name, name, strlen(name));
    }
    return status;
}

/* The same with the value found and the values allowed. */
static mamba_status mbi_fail_value(mamba_error *err, mamba_status status, const char *what,
                                   const char *name, uint64_t offset, int64_t found,
                                   int64_t allowed_min, int64_t allowed_max) {
    mbi_fail(err, status, what, name, offset);
    if (err) {
        err->has_values = 1;
        err->found = found;
        err->allowed_min = allowed_min;
        err->allowed_max = allowed_max;
    }
    return status;
}

static int64_t mbi_clamp_i64(uint64_t v) {
    return v > (uint64_t)INT64_MAX ? INT64_MAX : (int64_t)v;
}

/* Default allocator: malloc with the start kept in front of the aligned block. */
static void *mbi_default_alloc(void *user, size_t bytes, size_t align) {
    unsigned char *raw;
    uintptr_t at;
    (void)user;
    if (bytes > SIZE_MAX - align - sizeof(void *)) {
        return NULL;
    }
    raw = (unsigned char *)malloc(bytes + align + sizeof(void *));
    if (!raw) {
        return NULL;
    }
    at = ((uintptr_t)raw + sizeof(void *) + align - 1) & ~(uintptr_t)(align - 1);
    memcpy((unsigned char *)at - sizeof(void *), &raw, sizeof raw);
    return (void *)at;
}

static void mbi_default_free(void *user, void *ptr, size_t bytes) {
    void *raw;
    (void)user;
    (void)bytes;
    if (ptr) {
        memcpy(&raw, (unsigned char *)ptr - sizeof(void *), sizeof raw);
        free(raw);
    }
}

static mamba_memory mbi_memory_or_default(const mamba_memory *memory) {
    mamba_memory m;
    if (memory && memory->alloc && memory->free) {
        return *memory;
    }
    m.alloc = mbi_default_alloc;
    m.free = mbi_default_free;
    m.user = NULL;
    return m;
}

/* ------------------------------------------------------------------------------------------------
 * @@threads   Parallel-for behind the hook                                               (private)
 * ---------------------------------------------------------------------------------------------- */
/* Cores this process may use. */
static int mbi_n_cores(void) {
#if MBI_OPENMP
    int n = omp_get_num_procs();
    return n < 1 ? 1 : n;
#else
    return 1;
#endif
}

/* n_threads of a config: 0 = all cores; never more than 1024. */
static int mbi_n_threads(int n_threads, const mamba_parallel *parallel) {
    if (n_threads == 0 && !(parallel && parallel->run)) {
        n_threads = mbi_n_cores();
    }
    return n_threads < 1 ? 1 : mbi_min_int(n_threads, 1024);
}

/* Calls task(arg, i) for each i in [0, n_tasks).  The tasks are the caller's fixed split; who runs
 * them does not matter to the result.  OpenMP may give fewer threads than asked: each thread walks
 * the tasks with the real team size.  One task never enters OpenMP. */
static void mbi_parallel_for(const mamba_parallel *parallel, int n_tasks, mamba_task task,
                             void *arg) {
    int i;
    if (n_tasks > 1 && parallel && parallel->run) {
        parallel->run(parallel->user, n_tasks, task, arg);
        return;
    }
#if MBI_OPENMP
    if (n_tasks > 1) {
        int n = mbi_min_int(n_tasks, mbi_n_cores());
        if (n > 1) {
#pragma omp parallel num_threads(n) private(i)
            {
                int team = omp_get_num_threads();
                for (i = omp_get_thread_num(); i < n_tasks; i += team) {
                    task(arg, i);
                }
            }
            return;
        }
    }
#endif
    for (i = 0; i < n_tasks; i++) {
        task(arg, i);
    }
}

/* Start of the i-th of n_tasks contiguous ranges of n items; the end is the start of i+1. */
static int mbi_split(int n, int n_tasks, int i) {
    return (int)((int64_t)n * i / n_tasks);
}

/* ------------------------------------------------------------------------------------------------
 * @@cpu   What this CPU and operating system can run                                     (private)
 * ---------------------------------------------------------------------------------------------- */
enum {
    MBI_CPU_AVX2,
    MBI_CPU_AVX512,
    MBI_CPU_AVX512VNNI,
    MBI_CPU_AVX512BF16,
    MBI_CPU_AMX,
    MBI_CPU_DOTPROD,
    MBI_CPU_I8MM,
    MBI_CPU_BF16
};

#if MBI_BUILD_AVX2
static uint64_t mbi_xgetbv(void) {
    uint32_t lo;
    uint32_t hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return ((uint64_t)hi << 32) | lo;
}
#endif

#if MBI_BUILD_AMX
/* Linux lets a process use the tile registers only after it asked: arch_prctl(0x1023, 18). */
static int mbi_request_amx(void) {
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(158L), "D"(0x1023L), "S"(18L)
                     : "rcx", "r11", "memory");
    return result == 0;
}
#endif

/* Bit set of MBI_CPU_*.  A bit means: the CPU has it and the OS saves its registers. */
static uint32_t mbi_cpu_features(void) {
    uint32_t f = 0;
#if MBI_BUILD_AVX2
    unsigned a, b, c, d, b7, c7, d7;
    unsigned a71 = 0;
    uint64_t os;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & (1u << 27))) {
        return 0;
    }
    os = mbi_xgetbv();
    if ((os & 6) != 6 || !(c & (1u << 12)) || !(c & (1u << 29)) ||
        !__get_cpuid_count(7, 0, &a, &b7, &c7, &d7)) {
        return 0;
    }
    if (a >= 1) {
        __get_cpuid_count(7, 1, &a71, &b, &c, &d);
    }
    f |= (uint32_t)(b7 >> 5 & 1) << MBI_CPU_AVX2;
    if ((os & 0xe6) == 0xe6 && f && (b7 >> 16 & 1) && (b7 >> 17 & 1) && (b7 >> 30 & 1) &&
        (b7 >> 31 & 1)) { /* F, DQ, BW, VL */
        f |= 1u << MBI_CPU_AVX512;
        f |= (uint32_t)(c7 >> 11 & 1) << MBI_CPU_AVX512VNNI;
        f |= (uint32_t)(a71 >> 5 & 1) << MBI_CPU_AVX512BF16;
#if MBI_BUILD_AMX
        if ((f >> MBI_CPU_AVX512BF16 & 1) && (d7 >> 22 & 1) && (d7 >> 24 & 1) &&
            (d7 >> 25 & 1) && (os & 0x60000) == 0x60000 && mbi_request_amx()) {
            f |= 1u << MBI_CPU_AMX;
        }
#endif
    }
#endif
    return f;
}

/* ------------------------------------------------------------------------------------------------
 * @@kernel_list   What every target must provide, with contracts                         (private)
 *
 * Layouts.  A *blocked* activation of n channels and T tokens is float[n_pad/16][T][16]: channel c
 * of token t at (c/16)*T*16 + t*16 + c%16, n_pad = n rounded up to 16, padding zero.  For T = 1 it
 * is the plain vector.  A *panel* is 16 rows of a weight matrix, interleaved along the columns
 * (byte layout: @@format).
 *
 * Arithmetic.  Every output of gemm has one accumulator and adds its columns in ascending order,
 * so GEMV and GEMM, any token range and any panel range give the same bits.  Multiplications that
 * feed additions are explicit FMAs where the target has them (scalar: only if the baseline has),
 * so contraction by the compiler can't make two call sites differ.
 * ---------------------------------------------------------------------------------------------- */
/* One weight matrix, ready for the kernels. */
typedef struct mbi_mat {
    const unsigned char *data;
    uint64_t panel_bytes;
    mamba_type type;
    int n_panels;
    int rows; /* logical rows when there is one segment; else n_panels*16 */
    int cols; /* logical */
} mbi_mat;

/* y[p*y_panel + t*y_token + lane] (+)= sum_k w[p*16+lane][k] * x[k][t] for panels [p0, p1) and
 * tokens [t0, t1), k over the logical columns.  The sum starts from `bias` (16 per panel) or zero;
 * with `add` the finished sum is added to y.  Rows >= w->rows are not stored when `exact_rows`. */
typedef struct mbi_gemm {
    const mbi_mat *w;
    const void *x;     /* what the target's prepare made of the blocked activations */
    int n_tokens;      /* T of x */
    int add;
    int exact_rows;
    const float *bias; /* (n_panels*16) or NULL */
    float *y;
    size_t y_panel, y_token;
    void *scratch;     /* MBI_GEMM_SCRATCH bytes, 64-aligned, one per concurrent call */
} mbi_gemm;

enum { MBI_GEMM_SCRATCH = 256 * 1024 };

/* One block of 16 channels of a Mamba-1 scan over T tokens:
 *   h[n] = exp(dt[t]*A[n]) * h[n] + (dt[t]*x[t]) * B[t][n]
 *   y[t] = (sum_n C[t][n]*h[n] + D*x[t]) * silu(z[t])
 * x, dt, z, y: [T][16].  A, h: [d_state][16].  B, C: element n of token t at
 * (n/16)*bc_block + t*bc_token + n%16.  D [16] or NULL, z NULL = no gate.  y may be x.
 * State values below 2^-100 in magnitude become 0 at every token whose absolute position is
 * 15 modulo 16, so that no denormal lives long.  Needs dt >= 0 and A <= 0. */
typedef struct mbi_scan_block {
    const float *x, *dt, *z, *A, *B, *C, *D;
    float *h, *y;
    size_t bc_block, bc_token;
    uint64_t position; /* of token 0 */
    int n_tokens, d_state;
} mbi_scan_block;

/* X(return type, name, arguments): every full target defines mbi_k_<name>_<target>. */
#define MBI_KERNEL_LIST(X)                                                                         \
    /* Bytes that prepare writes for T tokens of n channels; 0: gemm reads blocked floats as is.    \
     * Never less for more tokens or channels. */                                                  \
    X(size_t, prepared_bytes, (mamba_type type, int n, int n_tokens))                              \
    /* Tokens [t0, t1) of n channels of blocked x into the form that gemm of this type reads;      \
     * t0 is a multiple of 16, and t1 too or n_tokens. */                                          \
    X(void, prepare, (mamba_type type, const float *x, int n, int n_tokens, int t0, int t1,        \
                      void *out))                                                                  \
    X(void, gemm, (const mbi_gemm *g, int p0, int p1, int t0, int t1))                             \
    /* Row `row` of w as floats, out[0..cols): the exact values gemm multiplies with (before the   \
     * target's own rounding). out has stride: element k at (k/16)*out_block + k%16. */            \
    X(void, row, (const mbi_mat *w, int row, float *out, size_t out_block))                        \
    /* Blocked RMSNorm of tokens [t0, t1): y = x * rsqrt(mean(x^2) + eps) * w over n channels;     \
     * w [n_pad] or NULL.  y may be x. */                                                          \
    X(void, rmsnorm, (const float *x, const float *w, float eps, int n, int n_tokens, int t0,      \
                      int t1, float *y))                                                           \
    /* y = log(1+exp(x + bias[lane])), x above 20; n multiple of 16; bias [16] or NULL. */         \
    X(void, softplus, (const float *x, const float *bias, float *y, size_t n))                     \
    X(void, silu, (const float *x, float *y, size_t n))                                            \
    /* Causal conv of one block of 16 channels: y[t] = act(bias + sum_j w[j]*x[t-(K-1)+j]).        \
     * x, y [T][16]; w K rows and state K-1 rows (replaced), `stride` floats apart.  y may be x. */ \
    X(void, conv, (const float *x, const float *w, const float *bias, int d_conv, int silu,        \
                   int n_tokens, float *state, size_t stride, float *y))                           \
    X(void, scan_block, (const mbi_scan_block *s))                                                 \
    /* dA = exp(dt*A), h = dA*h + dB*x …: see mamba_discretize, mamba_recurrence. */               \
    X(void, exp, (const float *x, float *y, size_t n))

typedef struct mbi_kernels {
#define MBI_X(type, name, args) type(*name) args;
    MBI_KERNEL_LIST(MBI_X)
#undef MBI_X
} mbi_kernels;

struct mamba_target {
    const char *name;
    int feature; /* bit of mbi_cpu_features that must be set, or -1 */
    mbi_kernels k;
};

/* 4-bit codebook: value = codebook[index] * scale.  Denser near zero, where weights are. */
#define MBI_Q4_VALUES -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113
static MBI_UNUSED float mbi_q4_value(unsigned index) {
    const signed char values[16] = {MBI_Q4_VALUES};
    return (float)values[index & 15u];
}

/* Bytes of `cols` columns of one panel; 0 when the product overflows. */
static uint64_t mbi_panel_bytes(mamba_type type, uint64_t cols) {
    switch (type) {
    case MAMBA_F32: return mbi_pad(cols, 32) * 64;
    case MAMBA_F16:
    case MAMBA_BF16: return mbi_pad(cols, 32) * 32;
    case MAMBA_Q8: return mbi_pad(cols, 64) / 64 * (1024 + 64);
    case MAMBA_Q4: return mbi_pad(cols, 64) / 64 * (512 + 64);
    }
    return 0;
}

/* ------------------------------------------------------------------------------------------------
 * @@kernel_passes   Read part 3 again for each extra target                              (private)
 * ---------------------------------------------------------------------------------------------- */
#define MBI_SCALAR 1
#define MBI_NEON 2
#define MBI_WASM 3
#define MBI_AVX2 4
#define MBI_AVX512 5
#if MBI_BUILD_NEON
#define MBI_BASELINE MBI_NEON
#elif MBI_BUILD_WASM
#define MBI_BASELINE MBI_WASM
#else
#define MBI_BASELINE MBI_SCALAR
#endif
#define MBI_PASTE2(a, b) a##_##b
#define MBI_PASTE(a, b) MBI_PASTE2(a, b)

#if MBI_BASELINE != MBI_SCALAR && !defined(MAMBA_NO_DISPATCH)
#define MBI_PASS MBI_SCALAR
#include MAMBA_HEADER_NAME
#endif
#if MBI_BUILD_AVX2
#define MBI_PASS MBI_AVX2
#include MAMBA_HEADER_NAME
#endif
#if MBI_BUILD_AVX512
#define MBI_PASS MBI_AVX512
#include MAMBA_HEADER_NAME
#endif
#define MBI_PASS MBI_BASELINE
#define MBI_LAST_PASS 1

#endif /* MAMBA_IMPLEMENTATION: parts 1-2 of the implementation */
#endif /* !MBI_PASS */

/* ============================================================================================= */
#ifdef MBI_PASS

#if MBI_GCC /* GCC's own AVX-512 header warns when inlined (its bug 105593) */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

/* ------------------------------------------------------------------------------------------------
 * @@ops_scalar   Vector vocabulary: one lane                                             (private)
 *
 * Every target gives: vf (float vector), V_LANES, and the V_ operations below; all but V_FMA are
 * single roundings.  Weight loads read V_LANES rows of a 64-byte unit at p (see @@format).
 * ---------------------------------------------------------------------------------------------- */
#if MBI_PASS == MBI_SCALAR
#define MBI_T(name) MBI_PASTE(name, scalar)
#define MBI_FN static MBI_UNUSED inline
#define MBI_KERNEL static
#define V_LANES 1
#define vf float
#define V_SET1(x) (x)
#define V_LOAD(p) (*(p))
#define V_STORE(p, v) (*(p) = (v))
#define V_ADD(a, b) ((a) + (b))
#define V_SUB(a, b) ((a) - (b))
#define V_MUL(a, b) ((a) * (b))
#define V_DIV(a, b) ((a) / (b))
#if defined(__FP_FAST_FMAF)
#define V_FMA(a, b, c) fmaf((a), (b), (c)) /* a*b + c */
#else
#define V_FMA(a, b, c) ((a) * (b) + (c))
#endif
#define V_MIN(a, b) ((a) < (b) ? (a) : (b)) /* b when a is NaN */
#define V_MAX(a, b) ((a) > (b) ? (a) : (b))
#define V_ABS(a) fabsf(a)
#define V_ROUND(a) nearbyintf(a)
#define V_GT_SELECT(a, b, x, y) ((a) > (b) ? (x) : (y))
/* v * 2^n for integral n in [-252, 254]: two factors, so that the result may be denormal. */
MBI_FN float MBI_T(v_scale2)(float v, float n) {
    int i = n == n ? (int)n : 0; /* NaN: v is NaN too */
    int half = i / 2;
    return v * mbi_bits_f32((uint32_t)(half + 127) << 23) *
           mbi_bits_f32((uint32_t)(i - half + 127) << 23);
}
#define V_SCALE2(v, n) MBI_T(v_scale2)((v), (n))
#define V_LOAD_F16(p) mbi_f16_to_f32(MBI_T(v_u16)(p))
MBI_FN uint16_t MBI_T(v_u16)(const unsigned char *p) {
    return (uint16_t)(p[0] | (p[1] << 8));
}
#define V_LOAD_F16_COL(p, i) mbi_f16_to_f32(MBI_T(v_u16)((p) + 2 * (i)))
#define V_LOAD_BF16_COL(p, i) mbi_bf16_to_f32(MBI_T(v_u16)((p) + 2 * (i)))
#define V_LOAD_I8_COL(p, i) ((float)(signed char)(p)[i])
#define V_LOAD_Q4_COL(p, i) mbi_q4_value((i) < 4 ? (p)[i] & 15u : (unsigned)(p)[(i) - 4] >> 4)
#endif /* MBI_SCALAR */

/* ------------------------------------------------------------------------------------------------
 * @@ops_avx2   Vector vocabulary: AVX2 + FMA + F16C, 8 lanes                             (private)
 * ---------------------------------------------------------------------------------------------- */
#if MBI_PASS == MBI_AVX2
#define MBI_T(name) MBI_PASTE(name, avx2)
#define MBI_ATTRIBUTE __attribute__((target("avx2,fma,f16c")))
#define MBI_FN static MBI_UNUSED inline MBI_ATTRIBUTE
#define MBI_KERNEL static MBI_ATTRIBUTE MBI_NOINLINE
#define V_LANES 8
#define vf __m256
#define V_SET1(x) _mm256_set1_ps(x)
#define V_LOAD(p) _mm256_loadu_ps(p)
#define V_STORE(p, v) _mm256_storeu_ps((p), (v))
#define V_ADD(a, b) _mm256_add_ps((a), (b))
#define V_SUB(a, b) _mm256_sub_ps((a), (b))
#define V_MUL(a, b) _mm256_mul_ps((a), (b))
#define V_DIV(a, b) _mm256_div_ps((a), (b))
#define V_FMA(a, b, c) _mm256_fmadd_ps((a), (b), (c))
#define V_MIN(a, b) _mm256_min_ps((a), (b))
#define V_MAX(a, b) _mm256_max_ps((a), (b))
#define V_ABS(a) _mm256_andnot_ps(_mm256_set1_ps(-0.0f), (a))
#define V_ROUND(a) _mm256_round_ps((a), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define V_GT_SELECT(a, b, x, y) _mm256_blendv_ps((y), (x), _mm256_cmp_ps((a), (b), _CMP_GT_OQ))
MBI_FN __m256 MBI_T(v_scale2)(__m256 v, __m256 n) {
    const __m256i bias = _mm256_set1_epi32(127);
    __m256i i = _mm256_cvttps_epi32(n);
    __m256i half = _mm256_srai_epi32(i, 1);
    __m256i rest = _mm256_sub_epi32(i, half);
    v = _mm256_mul_ps(v, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23)));
    return _mm256_mul_ps(
        v, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23)));
}
#define V_SCALE2(v, n) MBI_T(v_scale2)((v), (n))
#define V_LOAD_U32(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define V_LOAD_F16(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p)))
MBI_FN __m256 MBI_T(v_f16_col)(const unsigned char *p, int i) {
    __m256i u = _mm256_srl_epi32(V_LOAD_U32(p), _mm_cvtsi32_si128(16 * i));
    u = _mm256_and_si256(u, _mm256_set1_epi32(0xffff));
    u = _mm256_permute4x64_epi64(_mm256_packus_epi32(u, u), 0x08);
    return _mm256_cvtph_ps(_mm256_castsi256_si128(u));
}
#define V_LOAD_F16_COL(p, i) MBI_T(v_f16_col)((p), (i))
MBI_FN __m256 MBI_T(v_bf16_col)(const unsigned char *p, int i) {
    __m256i u = V_LOAD_U32(p);
    return _mm256_castsi256_ps(i == 0 ? _mm256_slli_epi32(u, 16)
                                      : _mm256_and_si256(u, _mm256_set1_epi32((int)0xffff0000)));
}
#define V_LOAD_BF16_COL(p, i) MBI_T(v_bf16_col)((p), (i))
MBI_FN __m256 MBI_T(v_i8_col)(const unsigned char *p, int i) {
    __m256i u = _mm256_sll_epi32(V_LOAD_U32(p), _mm_cvtsi32_si128(24 - 8 * i));
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(u, 24));
}
#define V_LOAD_I8_COL(p, i) MBI_T(v_i8_col)((p), (i))
MBI_FN __m256 MBI_T(v_q4_col)(const unsigned char *p, int i) {
    const __m256i values = _mm256_broadcastsi128_si256(_mm_setr_epi8(MBI_Q4_VALUES));
    int shift = i < 4 ? 8 * i : 8 * (i - 4) + 4;
    __m256i u = _mm256_srl_epi32(V_LOAD_U32(p), _mm_cvtsi32_si128(shift));
    u = _mm256_and_si256(u, _mm256_set1_epi32(15));
    u = _mm256_slli_epi32(_mm256_shuffle_epi8(values, u), 24); /* byte 0 holds the value */
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(u, 24));
}
#define V_LOAD_Q4_COL(p, i) MBI_T(v_q4_col)((p), (i))
#endif /* MBI_AVX2 */

/* ------------------------------------------------------------------------------------------------
 * @@ops_avx512   Vector vocabulary: AVX-512 F, BW, DQ, VL, 16 lanes                      (private)
 * ---------------------------------------------------------------------------------------------- */
#if MBI_PASS == MBI_AVX512
#define MBI_T(name) MBI_PASTE(name, avx512)
#define MBI_ATTRIBUTE                                                                              \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))
#define MBI_FN static MBI_UNUSED inline MBI_ATTRIBUTE
#define MBI_KERNEL static MBI_ATTRIBUTE MBI_NOINLINE
#define V_LANES 16
#define vf __m512
#define V_SET1(x) _mm512_set1_ps(x)
#define V_LOAD(p) _mm512_loadu_ps(p)
#define V_STORE(p, v) _mm512_storeu_ps((p), (v))
#define V_ADD(a, b) _mm512_add_ps((a), (b))
#define V_SUB(a, b) _mm512_sub_ps((a), (b))
#define V_MUL(a, b) _mm512_mul_ps((a), (b))
#define V_DIV(a, b) _mm512_div_ps((a), (b))
#define V_FMA(a, b, c) _mm512_fmadd_ps((a), (b), (c))
#define V_MIN(a, b) _mm512_min_ps((a), (b))
#define V_MAX(a, b) _mm512_max_ps((a), (b))
#define V_ABS(a) _mm512_abs_ps(a)
#define V_ROUND(a) _mm512_roundscale_ps((a), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define V_GT_SELECT(a, b, x, y)                                                                    \
    _mm512_mask_blend_ps(_mm512_cmp_ps_mask((a), (b), _CMP_GT_OQ), (y), (x))
#define V_SCALE2(v, n) _mm512_scalef_ps((v), (n))
#define V_LOAD_U32(p) _mm512_loadu_si512((const void *)(p))
#define V_LOAD_F16(p) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(p)))
#define V_LOAD_F16_COL(p, i)                                                                       \
    _mm512_cvtph_ps(_mm512_cvtepi32_epi16(                                                         \
        _mm512_srl_epi32(V_LOAD_U32(p), _mm_cvtsi32_si128(16 * (i)))))
MBI_FN __m512 MBI_T(v_bf16_col)(const unsigned char *p, int i) {
    __m512i u = V_LOAD_U32(p);
    return _mm512_castsi512_ps(i == 0 ? _mm512_slli_epi32(u, 16)
                                      : _mm512_and_si512(u, _mm512_set1_epi32((int)0xffff0000)));
}
#define V_LOAD_BF16_COL(p, i) MBI_T(v_bf16_col)((p), (i))
#define V_LOAD_I8_COL(p, i)                                                                        \
    _mm512_cvtepi32_ps(_mm512_srai_epi32(                                                          \
        _mm512_sll_epi32(V_LOAD_U32(p), _mm_cvtsi32_si128(24 - 8 * (i))), 24))
MBI_FN __m512 MBI_T(v_q4_col)(const unsigned char *p, int i) {
    const __m128i bytes = _mm_setr_epi8(MBI_Q4_VALUES);
    const __m512 values = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
    int shift = i < 4 ? 8 * i : 8 * (i - 4) + 4;
    /* permutexvar reads the low 4 bits of each index only */
    return _mm512_permutexvar_ps(_mm512_srl_epi32(V_LOAD_U32(p), _mm_cvtsi32_si128(shift)),
                                 values);
}
#define V_LOAD_Q4_COL(p, i) MBI_T(v_q4_col)((p), (i))
#endif /* MBI_AVX512 */

/* ------------------------------------------------------------------------------------------------
 * @@kernels   The mathematics of each kernel, once, in the vocabulary above              (private)
 * ---------------------------------------------------------------------------------------------- */
/* exp(x): x = n*ln2 + r, |r| <= ln2/2, exp(r) = 1 + r + r^2 P(r) with P of
 * degree 5 (minimax), times 2^n.  Below -87.3 the result decays through the denormals to 0, above 88.7 +inf;
 * error <= 2 ulp for normal results.  NaN gives NaN. */
MBI_FN vf MBI_T(v_exp)(vf x) {
    vf n;
    vf r;
    vf p;
    x = V_MIN(V_SET1(128.0f), x);
    x = V_MAX(V_SET1(-150.0f), x);
    n = V_ROUND(V_MUL(x, V_SET1(1.44269504f)));
    r = V_FMA(n, V_SET1(-0.693359375f), x);
    r = V_FMA(n, V_SET1(2.12194440e-4f), r);
    p = V_SET1(1.9875691500e-4f);
    p = V_FMA(p, r, V_SET1(1.3981999507e-3f));
    p = V_FMA(p, r, V_SET1(8.3334519073e-3f));
    p = V_FMA(p, r, V_SET1(4.1665795894e-2f));
    p = V_FMA(p, r, V_SET1(1.6666665459e-1f));
    p = V_FMA(p, r, V_SET1(5.0000001201e-1f));
    p = V_FMA(p, V_MUL(r, r), r);
    return V_SCALE2(V_ADD(p, V_SET1(1.0f)), n);
}

/* exp(dt*A) with A2 = A*log2(e): 2^x for x <= 0. */
MBI_FN vf MBI_T(v_exp2)(vf x) {
    vf n;
    vf r;
    vf p;
    x = V_MAX(V_SET1(-150.0f), x);
    n = V_ROUND(x);
    r = V_SUB(x, n);
    p = V_SET1(1.5403530e-4f);
    p = V_FMA(p, r, V_SET1(1.3333558e-3f));
    p = V_FMA(p, r, V_SET1(9.6181291e-3f));
    p = V_FMA(p, r, V_SET1(5.5504109e-2f));
    p = V_FMA(p, r, V_SET1(2.4022651e-1f));
    p = V_FMA(p, r, V_SET1(6.9314718e-1f));
    p = V_FMA(p, r, V_SET1(1.0f));
    return V_SCALE2(p, n);
}

MBI_FN vf MBI_T(v_silu)(vf x) {
    vf e = MBI_T(v_exp)(V_SUB(V_SET1(0.0f), x));
    return V_DIV(x, V_ADD(V_SET1(1.0f), e));
}

/* log(1+exp(x)) = max(x,0) + log1p(u), u = exp(-|x|) in (0,1];
 * log1p(u) = 2 atanh(s) = 2 (s + s^3/3 + s^5/5 + ...), s = u/(2+u) <= 1/3; 9 terms leave 3e-10. */
MBI_FN vf MBI_T(v_softplus)(vf x) {
    vf u = MBI_T(v_exp)(V_SUB(V_SET1(0.0f), V_ABS(x)));
    vf s = V_DIV(u, V_ADD(V_SET1(2.0f), u));
    vf s2 = V_MUL(s, s);
    vf p = V_SET1(2.0f / 17.0f);
    p = V_FMA(p, s2, V_SET1(2.0f / 15.0f));
    p = V_FMA(p, s2, V_SET1(2.0f / 13.0f));
    p = V_FMA(p, s2, V_SET1(2.0f / 11.0f));
    p = V_FMA(p, s2, V_SET1(2.0f / 9.0f));
    p = V_FMA(p, s2, V_SET1(2.0f / 7.0f));
    p = V_FMA(p, s2, V_SET1(2.0f / 5.0f));
    p = V_FMA(p, s2, V_SET1(2.0f / 3.0f));
    p = V_FMA(p, s2, V_SET1(2.0f));
    p = V_FMA(p, s, V_MAX(x, V_SET1(0.0f)));
    return V_GT_SELECT(x, V_SET1(20.0f), x, p);
}

MBI_KERNEL void MBI_T(mbi_k_exp)(const float *x, float *y, size_t n) {
    size_t i;
    for (i = 0; i < n; i += V_LANES) {
        V_STORE(y + i, MBI_T(v_exp)(V_LOAD(x + i)));
    }
}

MBI_KERNEL void MBI_T(mbi_k_silu)(const float *x, float *y, size_t n) {
    size_t i;
    for (i = 0; i < n; i += V_LANES) {
        V_STORE(y + i, MBI_T(v_silu)(V_LOAD(x + i)));
    }
}

MBI_KERNEL void MBI_T(mbi_k_softplus)(const float *x, const float *bias, float *y, size_t n) {
    size_t i;
    for (i = 0; i < n; i += V_LANES) {
        vf v = V_LOAD(x + i);
        if (bias) {
            v = V_ADD(v, V_LOAD(bias + i % MBI_LANES));
        }
        V_STORE(y + i, MBI_T(v_softplus)(v));
    }
}

/* 16 partial sums over the channel blocks, then a fixed tree. */
MBI_KERNEL void MBI_T(mbi_k_rmsnorm)(const float *x, const float *w, float eps, int n, int n_tokens,
                                     int t0, int t1, float *y) {
    size_t block = (size_t)n_tokens * MBI_LANES;
    int n_blocks = (n + MBI_LANES - 1) / MBI_LANES;
    int t;
    for (t = t0; t < t1; t++) {
        const float *in = x + (size_t)t * MBI_LANES;
        float *out = y + (size_t)t * MBI_LANES;
        float sum[MBI_LANES];
        float scale;
        int b;
        int i;
        for (i = 0; i < MBI_LANES; i += V_LANES) {
            vf acc = V_SET1(0.0f);
            for (b = 0; b < n_blocks; b++) {
                vf v = V_LOAD(in + (size_t)b * block + i);
                acc = V_FMA(v, v, acc);
            }
            V_STORE(sum + i, acc);
        }
        for (i = 8; i > 0; i /= 2) {
            for (b = 0; b < i; b++) {
                sum[b] += sum[b + i];
            }
        }
        scale = 1.0f / sqrtf(sum[0] / (float)n + eps);
        for (b = 0; b < n_blocks; b++) {
            for (i = 0; i < MBI_LANES; i += V_LANES) {
                size_t at = (size_t)b * block + (size_t)i;
                vf v = V_MUL(V_LOAD(in + at), V_SET1(scale));
                if (w) {
                    v = V_MUL(v, V_LOAD(w + b * MBI_LANES + i));
                }
                V_STORE(out + at, v);
            }
        }
    }
}

MBI_KERNEL void MBI_T(mbi_k_conv)(const float *x, const float *w, const float *bias, int d_conv,
                                  int silu, int n_tokens, float *state, size_t stride, float *y) {
    enum { MAX_CONV = 8 };
    int i;
    for (i = 0; i < MBI_LANES; i += V_LANES) {
        vf past[MAX_CONV]; /* inputs t-(K-1) .. t */
        vf taps[MAX_CONV];
        vf b = bias ? V_LOAD(bias + i) : V_SET1(0.0f);
        int j;
        int t;
        for (j = 0; j < d_conv; j++) {
            taps[j] = V_LOAD(w + (size_t)j * stride + i);
        }
        for (j = 0; j < d_conv - 1; j++) {
            past[j] = V_LOAD(state + (size_t)j * stride + i);
        }
        for (t = 0; t < n_tokens; t++) {
            vf acc = b;
            past[d_conv - 1] = V_LOAD(x + (size_t)t * MBI_LANES + i);
            for (j = 0; j < d_conv; j++) {
                acc = V_FMA(taps[j], past[j], acc);
            }
            for (j = 0; j < d_conv - 1; j++) {
                past[j] = past[j + 1];
            }
            V_STORE(y + (size_t)t * MBI_LANES + i, silu ? MBI_T(v_silu)(acc) : acc);
        }
        for (j = 0; j < d_conv - 1; j++) {
            V_STORE(state + (size_t)j * stride + i, past[j]);
        }
    }
}

/* One token of V_LANES channels; h in memory.  The order of n is the order of the sum. */
MBI_KERNEL void MBI_T(mbi_k_scan_block)(const mbi_scan_block *s) {
    const vf tiny = V_SET1(7.888609052210118e-31f); /* 2^-100 */
    const vf zero = V_SET1(0.0f);
    int i;
    int t;
    int n;
    for (i = 0; i < MBI_LANES; i += V_LANES) {
        vf d = s->D ? V_LOAD(s->D + i) : zero;
        for (t = 0; t < s->n_tokens; t++) {
            size_t at = (size_t)t * MBI_LANES + (size_t)i;
            vf x = V_LOAD(s->x + at);
            vf dt = V_LOAD(s->dt + at);
            vf dt2 = V_MUL(dt, V_SET1(1.44269504f));
            vf dtx = V_MUL(dt, x);
            vf y = zero;
            for (n = 0; n < s->d_state; n++) {
                size_t bc = (size_t)(n / MBI_LANES) * s->bc_block + (size_t)t * s->bc_token +
                            (size_t)(n % MBI_LANES);
                float *hp = s->h + n * MBI_LANES + i;
                vf a = MBI_T(v_exp2)(V_MUL(dt2, V_LOAD(s->A + n * MBI_LANES + i)));
                vf h = V_FMA(a, V_LOAD(hp), V_MUL(dtx, V_SET1(s->B[bc])));
                y = V_FMA(h, V_SET1(s->C[bc]), y);
                V_STORE(hp, h);
            }
            y = V_FMA(d, x, y);
            if (s->z) {
                y = V_MUL(y, MBI_T(v_silu)(V_LOAD(s->z + at)));
            }
            V_STORE(s->y + at, y);
            if (((s->position + (uint64_t)t) & 15u) == 15u) {
                for (n = 0; n < s->d_state; n++) {
                    float *hp = s->h + n * MBI_LANES + i;
                    vf h = V_LOAD(hp);
                    V_STORE(hp, V_GT_SELECT(V_ABS(h), tiny, h, zero));
                }
            }
        }
    }
}

MBI_KERNEL size_t MBI_T(mbi_k_prepared_bytes)(mamba_type type, int n, int n_tokens) {
    (void)type;
    (void)n;
    (void)n_tokens;
    return 0;
}

MBI_KERNEL void MBI_T(mbi_k_prepare)(mamba_type type, const float *x, int n, int n_tokens,
                                     int t0, int t1, void *out) {
    (void)type;
    (void)x;
    (void)n;
    (void)n_tokens;
    (void)t0;
    (void)t1;
    (void)out;
}

/* Columns [16*b, 16*b+16) of a panel as floats, [16 columns][16 rows]: exact values, the one
 * place that knows the byte layout of each type. */
MBI_FN void MBI_T(mbi_columns)(const mbi_mat *w, const unsigned char *panel, int b, float *out) {
    int i;
    int c;
    switch (w->type) {
    case MAMBA_F32: memcpy(out, panel + (size_t)b * 1024, 1024); break;
    case MAMBA_F16:
    case MAMBA_BF16:
        for (c = 0; c < 16; c++) {
            const unsigned char *unit = panel + (size_t)b * 512 + (size_t)(c / 2) * 64;
            for (i = 0; i < MBI_LANES; i += V_LANES) {
                vf v = w->type == MAMBA_F16 ? V_LOAD_F16_COL(unit + 4 * i, c % 2)
                                            : V_LOAD_BF16_COL(unit + 4 * i, c % 2);
                V_STORE(out + c * MBI_LANES + i, v);
            }
        }
        break;
    case MAMBA_Q8:
    case MAMBA_Q4: {
        size_t data = w->type == MAMBA_Q8 ? 1024 : 512;
        const unsigned char *block = panel + (size_t)(b / 4) * (data + 64);
        const unsigned char *scale = block + data + (size_t)(b % 4 / 2) * 32;
        for (i = 0; i < MBI_LANES; i += V_LANES) {
            vf s = V_LOAD_F16(scale + 2 * i);
            for (c = 0; c < 16; c++) {
                int col = b % 4 * 16 + c;
                vf v = w->type == MAMBA_Q8
                           ? V_LOAD_I8_COL(block + (size_t)(col / 4) * 64 + 4 * i, col % 4)
                           : V_LOAD_Q4_COL(block + (size_t)(col / 8) * 64 + 4 * i, col % 8);
                V_STORE(out + c * MBI_LANES + i, V_MUL(v, s));
            }
        }
        break;
    }
    }
}

MBI_KERNEL void MBI_T(mbi_k_row)(const mbi_mat *w, int row, float *out, size_t out_block) {
    float columns[16 * MBI_LANES];
    const unsigned char *panel = w->data + (size_t)(row / MBI_LANES) * w->panel_bytes;
    int b;
    int c;
    for (b = 0; b * 16 < w->cols; b++) {
        MBI_T(mbi_columns)(w, panel, b, columns);
        for (c = 0; c < 16; c++) {
            out[(size_t)b * out_block + (size_t)c] =
                b * 16 + c < w->cols ? columns[c * MBI_LANES + row % MBI_LANES] : 0.0f;
        }
    }
}

/* Generic product: 16 columns of a panel are expanded to floats once and used for all tokens; the
 * accumulators live in acc[t][16].  Token ranges are cut so that acc fits the scratch. */
MBI_KERNEL void MBI_T(mbi_k_gemm)(const mbi_gemm *g, int p0, int p1, int t0, int t1) {
    enum { MAX_T = 1024 };
    const mbi_mat *w = g->w;
    const float *x = (const float *)g->x;
    float *acc = (float *)g->scratch;
    float columns[16 * MBI_LANES];
    size_t x_block = (size_t)g->n_tokens * MBI_LANES;
    int n_blocks = (w->cols + 15) / 16;
    int p;
    int start;
    for (p = p0; p < p1; p++) {
        const unsigned char *panel = w->data + (size_t)p * w->panel_bytes;
        int n_rows = g->exact_rows ? mbi_min_int(MBI_LANES, w->rows - p * MBI_LANES) : MBI_LANES;
        for (start = t0; start < t1; start += MAX_T) {
            int n = mbi_min_int(MAX_T, t1 - start);
            int b;
            int c;
            int i;
            int t;
            for (t = 0; t < n; t++) {
                for (i = 0; i < MBI_LANES; i++) {
                    acc[t * MBI_LANES + i] = g->bias ? g->bias[p * MBI_LANES + i] : 0.0f;
                }
            }
            for (b = 0; b < n_blocks; b++) {
                MBI_T(mbi_columns)(w, panel, b, columns);
                for (t = 0; t < n; t++) {
                    const float *xt = x + (size_t)b * x_block + (size_t)(start + t) * MBI_LANES;
                    for (i = 0; i < MBI_LANES; i += V_LANES) {
                        vf a = V_LOAD(acc + t * MBI_LANES + i);
                        for (c = 0; c < 16; c++) {
                            a = V_FMA(V_LOAD(columns + c * MBI_LANES + i), V_SET1(xt[c]), a);
                        }
                        V_STORE(acc + t * MBI_LANES + i, a);
                    }
                }
            }
            for (t = 0; t < n; t++) {
                float *y = g->y + (size_t)p * g->y_panel + (size_t)(start + t) * g->y_token;
                for (i = 0; i < n_rows; i++) {
                    y[i] = g->add ? y[i] + acc[t * MBI_LANES + i] : acc[t * MBI_LANES + i];
                }
            }
        }
    }
}

/* ------------------------------------------------------------------------------------------------
 * @@kernel_table   The tables of this pass                                               (private)
 * ---------------------------------------------------------------------------------------------- */
#define MBI_X(type, name, args) MBI_T(mbi_k_##name),
#if MBI_PASS == MBI_SCALAR
static const mamba_target mbi_target_scalar = {"scalar", -1, {MBI_KERNEL_LIST(MBI_X)}};
#elif MBI_PASS == MBI_AVX2
static const mamba_target mbi_target_avx2 = {"avx2", MBI_CPU_AVX2, {MBI_KERNEL_LIST(MBI_X)}};
#elif MBI_PASS == MBI_AVX512
static const mamba_target mbi_target_avx512 = {"avx512", MBI_CPU_AVX512, {MBI_KERNEL_LIST(MBI_X)}};
#endif
#undef MBI_X

#undef MBI_T
#undef MBI_ATTRIBUTE
#undef MBI_FN
#undef MBI_KERNEL
#undef V_LANES
#undef vf
#undef V_SET1
#undef V_LOAD
#undef V_STORE
#undef V_ADD
#undef V_SUB
#undef V_MUL
#undef V_DIV
#undef V_FMA
#undef V_MIN
#undef V_MAX
#undef V_ABS
#undef V_ROUND
#undef V_GT_SELECT
#undef V_SCALE2
#undef V_LOAD_U32
#undef V_LOAD_F16
#undef V_LOAD_F16_COL
#undef V_LOAD_BF16_COL
#undef V_LOAD_I8_COL
#undef V_LOAD_Q4_COL
#undef MBI_PASS
#if MBI_GCC
#pragma GCC diagnostic pop
#endif
#endif /* MBI_PASS */

/* ============================================================================================= */
#if defined(MBI_LAST_PASS) && !defined(MBI_PART4)
#define MBI_PART4

/* ------------------------------------------------------------------------------------------------
 * @@dispatch   The list of targets and the choice among them                             (private)
 * ---------------------------------------------------------------------------------------------- */
static const mamba_target *mbi_target_at(int i) {
    const mamba_target *const list[] = {
#if MBI_BASELINE == MBI_SCALAR || !defined(MAMBA_NO_DISPATCH)
        &mbi_target_scalar,
#endif
#if MBI_BASELINE == MBI_NEON
        &mbi_target_neon,
#endif
#if MBI_BASELINE == MBI_WASM
        &mbi_target_wasm,
#endif
#if MBI_BUILD_AVX2
        &mbi_target_avx2,
#endif
#if MBI_BUILD_AVX512
        &mbi_target_avx512,
#endif
        NULL};
    int n = (int)(sizeof list / sizeof list[0]) - 1;
    return i >= 0 && i < n ? list[i] : NULL;
}

static int mbi_target_usable(const mamba_target *target, uint32_t features) {
    return target->feature < 0 || (features >> target->feature & 1) != 0;
}

/* ------------------------------------------------------------------------------------------------
 * @@format   The .mamba file, byte by byte                                               (private)
 *
 * Little-endian throughout.  Offsets are from the start of the file.  All reserved bytes and all
 * padding are zero.
 *
 * Header, 64 bytes
 *    0  8  magic  "MAMBA\r\n\x1a"
 *    8  4  version = 1
 *   12  4  0x01020304 (another byte order shows as 0x04030201)
 *   16  8  file_bytes: exact size of the file
 *   24  8  meta_bytes: start of the tensor data, a multiple of 4096; [0, meta_bytes) is metadata
 *   32  8  meta_hash: XXH64 (seed 0) of [40, meta_bytes)
 *   40  8  data_hash: XXH64 (seed 0) of [meta_bytes, file_bytes)
 *   48  4  n_sections, 3..64
 *   52 12  reserved
 * Section table at 64: n_sections entries of 32 bytes
 *    0 16  name, NUL-padded, unique
 *   16  8  offset: the end of the previous section (the first: of this table) rounded up to 64
 *   24  8  bytes
 *   The last section, rounded up to 4096, ends at meta_bytes.  Sections with unknown names are
 *   carried and ignored.
 *
 * "config", 256 bytes
 *    0  4  d_model, 1..65536         4  4  n_layers, 1..4096
 *    8  4  n_vocab: rows of embedding and head, 0 = no embedding (vectors in, hidden states out)
 *   12  4  n_vocab_used: ids below this may be sampled, <= n_vocab
 *   16  4  flags: 1 = head is the embedding (tied); 2 = LayerNorm instead of RMSNorm (reserved)
 *   20  4  main weight type (mamba_type), informative
 *   24  4  f32 eps of the final norm, > 0
 *   28 12  f32 factors on embedding, on residual branches, on logits (1 = none)
 *   40  4  bos id, 44 4 eos id, 48 4 pad id (int32, -1 = none)
 *   64 32  architecture name, NUL-padded
 *   96 160 reserved
 * "layers", n_layers records of 128 bytes
 *    0  4  kind (mamba_layer_kind)   4  4  flags, by kind     8  4  f32 eps of the norm in front
 *   12  4  reserved                 16 112 parameters, by kind, 4 bytes each:
 *   Mamba-1: d_inner, d_state, d_conv, dt_rank, f32 eps of the norms on dt, B and C
 *            flags: 1 = those norms exist (FalconMamba)
 *   Mamba-2: d_ssm, d_state, d_conv, n_heads, headdim, n_groups, d_mlp, f32 eps of the gated norm,
 *            f32 dt_min, f32 dt_max
 *            flags: 1 = gated norm exists, 2 = norm before gate, 4 = D per channel
 *   Attention: n_heads, n_kv_heads, headdim, rotary_dim, d_conv, f32 rotary base, f32 scale,
 *            flags: 1 = rotary pairs are adjacent
 *   MLP:     d_ff; flags: 0 = value * silu(gate)
 * "tensors", records of 160 bytes, names strictly ascending (as bytes)
 *    0 64  name, NUL-padded: "embedding", "head", "norm_f", "layer.00012.in_proj", …
 *   64  4  type (mamba_type)        68  4  layout: 0 vector, 1 panels
 *   72  4  rows, 76 4 cols: logical shape
 *   80  4  n_segments, 1..8        84 32  rows of each segment; their sum is `rows`
 *  116  4  count: matrices in a row (experts), 1..4096
 *  120  8  offset: the end of the previous tensor (the first: meta_bytes) rounded up to 64
 *  128  8  bytes, exactly as type, layout and shape say
 *  136 24  reserved.   The last tensor's end, rounded up to 64, is file_bytes.
 *
 * Layout 0, vector (f32 only): rows x cols floats, row-major, each row padded to 16.
 * Layout 1, panels: each segment is padded to 16 rows; panels of 16 rows follow each other.  One
 *   panel holds, along the columns (padded with zeros to 32; q8 and q4: to 64):
 *   f32        per column: 16 rows x 4 bytes
 *   f16, bf16  per 2 columns: 16 rows x (column 2j, column 2j+1)
 *   q8         per 64 columns: 16 units of 64 bytes, a unit being 16 rows x 4 columns of int8; then
 *              16 f16 scales for columns 0..31 of the block and 16 for columns 32..63
 *   q4         per 64 columns: 8 units of 64 bytes, a unit being 16 rows x 8 columns: byte 4r+i of
 *              a unit holds column i of row r in its low and column 4+i in its high nibble, an
 *              index into the codebook MBI_Q4_VALUES; then the scales as for q8
 *
 * Tensors of a layer (P panels, V vector; "?" = may be absent)
 *   all:      norm V (d_model)
 *   Mamba-1:  in_proj P (2*d_inner, d_model) segments x, z; in_proj_bias? V; conv_w V (d_conv,
 *             d_inner), the taps transposed; conv_b? V (d_inner); x_proj P (dt_rank + 2*d_state,
 *             d_inner) segments dt, B, C; dt_proj P (d_inner, dt_rank); dt_bias V (d_inner);
 *             A V (d_inner/16 rounded up * d_state, 16): -exp(A_log) of 16 channels by state, lane
 *             = channel; D V (d_inner); out_proj P (d_model, d_inner); out_proj_bias? V
 *   biases of panels are padded like the rows of their matrix, segment by segment.
 *
 * "tokenizer": see @@text.
 * "selftest": u32 n_tokens 1..64, u32 n_values 1..4096, f32 tolerance, u32 0; n_tokens int32 token
 *   ids; n_values int32 positions in the logits vector; n_values f32 logits after the last token.
 *   Passes when |got - expected| <= tolerance for all.
 * ---------------------------------------------------------------------------------------------- */
enum {
    MBI_HEADER_BYTES = 64,
    MBI_SECTION_BYTES = 32,
    MBI_MAX_SECTIONS = 64,
    MBI_CONFIG_BYTES = 256,
    MBI_LAYER_BYTES = 128,
    MBI_TENSOR_BYTES = 160,
    MBI_FILE_VERSION = 1,
    MBI_DATA_ALIGN = 4096,
    MBI_MAX_LAYERS = 4096,
    MBI_MAX_TENSORS = 1 << 17,
    MBI_MAX_SEGMENTS = 8,
    MBI_MAX_DIM = 1 << 24,
    MBI_LAYOUT_VECTOR = 0,
    MBI_LAYOUT_PANELS = 1,
    MBI_MODEL_TIED = 1
};
#define MBI_BYTE_ORDER 0x01020304u
#define MBI_MAGIC "MAMBA\r\n\x1a"

typedef struct mbi_tensor {
    char name[64];
    uint32_t type, layout;
    uint32_t rows, cols;
    uint32_t n_segments;
    uint32_t segments[MBI_MAX_SEGMENTS];
    uint32_t count;
    uint64_t offset, bytes;
    uint64_t reserved[3];
} mbi_tensor;

typedef struct mbi_section {
    char name[16];
    uint64_t offset, bytes;
} mbi_section;

typedef struct mbi_layer_record {
    uint32_t kind, flags;
    float norm_eps;
    uint32_t reserved;
    uint32_t u[28]; /* floats among them as bits */
} mbi_layer_record;

typedef struct mbi_config_record {
    uint32_t d_model, n_layers, n_vocab, n_vocab_used, flags, main_type;
    float norm_eps, embedding_scale, residual_scale, logit_scale;
    int32_t bos, eos, pad;
    uint32_t reserved0[3];
    char architecture[32];
    uint32_t reserved1[40];
} mbi_config_record;

/* The structs are the bytes of the file. */
typedef char mbi_assert_tensor[sizeof(mbi_tensor) == MBI_TENSOR_BYTES ? 1 : -1];
typedef char mbi_assert_section[sizeof(mbi_section) == MBI_SECTION_BYTES ? 1 : -1];
typedef char mbi_assert_layer[sizeof(mbi_layer_record) == MBI_LAYER_BYTES ? 1 : -1];
typedef char mbi_assert_config[sizeof(mbi_config_record) == MBI_CONFIG_BYTES ? 1 : -1];

/* Length of a NUL-padded name; the padding must be all zero (-1 if not, or if empty). */
static int mbi_name_length(const char *name, int cap) {
    int n = 0;
    int i;
    while (n < cap && name[n] != 0) {
        n++;
    }
    for (i = n; i < cap; i++) {
        if (name[i] != 0) {
            return -1;
        }
    }
    return n == 0 ? -1 : n;
}

/* Rows of a tensor with every segment padded to 16. */
static uint64_t mbi_padded_rows(const mbi_tensor *t) {
    uint64_t n = 0;
    uint32_t i;
    for (i = 0; i < t->n_segments; i++) {
        n += mbi_pad(t->segments[i], MBI_LANES);
    }
    return n;
}

/* Exact bytes of a tensor from its type, layout and (checked) shape; 0 on overflow. */
static uint64_t mbi_tensor_bytes(const mbi_tensor *t) {
    uint64_t bytes;
    if (t->layout == MBI_LAYOUT_VECTOR) {
        if (!mbi_mul_ok(mbi_pad(t->cols, MBI_LANES) * 4, t->rows, &bytes)) {
            return 0;
        }
    } else if (!mbi_mul_ok(mbi_panel_bytes((mamba_type)t->type, t->cols),
                           mbi_padded_rows(t) / MBI_LANES, &bytes)) {
        return 0;
    }
    return mbi_mul_ok(bytes, t->count, &bytes) ? bytes : 0;
}

/* ------------------------------------------------------------------------------------------------
 * @@mapping   Bytes of the file: mapped, copied, or the caller's                         (private)
 * ---------------------------------------------------------------------------------------------- */
enum { MBI_BORROWED, MBI_OWNED, MBI_MAPPED };

typedef struct mbi_bytes {
    const unsigned char *data;
    uint64_t bytes;
    int kind;
    mamba_memory memory; /* of an owned copy */
} mbi_bytes;

static void mbi_bytes_free(mbi_bytes *b) {
    if (b->kind == MBI_OWNED) {
        b->memory.free(b->memory.user, (void *)(uintptr_t)b->data, (size_t)b->bytes);
    }
#if !defined(MAMBA_NO_STDIO) && !defined(MAMBA_NO_MMAP)
#if MBI_OS_POSIX
    if (b->kind == MBI_MAPPED) {
        munmap((void *)(uintptr_t)b->data, (size_t)b->bytes);
    }
#elif MBI_OS_WINDOWS
    if (b->kind == MBI_MAPPED) {
        UnmapViewOfFile((void *)(uintptr_t)b->data);
    }
#endif
#endif
    memset(b, 0, sizeof *b);
}

/* Room for a copy of `bytes` bytes. */
static mamba_status mbi_bytes_alloc(mbi_bytes *b, uint64_t bytes, const mamba_memory *memory,
                                    mamba_error *err) {
    void *p;
    if (bytes > SIZE_MAX / 2) {
        return mbi_fail_value(err, MAMBA_ERR_UNSUPPORTED, "file too large for this build", "file",
                              0, mbi_clamp_i64(bytes), 0, (int64_t)(SIZE_MAX / 2));
    }
    p = memory->alloc(memory->user, (size_t)bytes, 64);
    if (!p) {
        return mbi_fail(err, MAMBA_ERR_MEMORY, "out of memory for a copy of the file", "file", 0);
    }
    b->data = (const unsigned char *)p;
    b->bytes = bytes;
    b->kind = MBI_OWNED;
    b->memory = *memory;
    return MAMBA_OK;
}

static mamba_status mbi_too_short(mamba_error *err, uint64_t bytes) {
    return mbi_fail_value(err, MAMBA_ERR_FORMAT, "file too short for a header", "file", 0,
                          mbi_clamp_i64(bytes), MBI_HEADER_BYTES, INT64_MAX);
}

#if !defined(MAMBA_NO_STDIO) && MBI_OS_POSIX
/* Non-blocking, so that a FIFO is refused and not waited for. */
#if defined(O_CLOEXEC)
#define MBI_OPEN_FLAGS (O_RDONLY | O_NONBLOCK | O_CLOEXEC)
#else
#define MBI_OPEN_FLAGS (O_RDONLY | O_NONBLOCK)
#endif

/* Reads exactly b->bytes bytes into the owned copy. */
static mamba_status mbi_read_all(int fd, mbi_bytes *b, mamba_error *err) {
    unsigned char *p = (unsigned char *)(uintptr_t)b->data;
    uint64_t done = 0;
    while (done < b->bytes) {
        ssize_t n = read(fd, p + done, mbi_min_size((size_t)(b->bytes - done), (size_t)1 << 30));
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return mbi_fail(err, MAMBA_ERR_IO, n < 0 ? "read failed" : "file shrank while read",
                            "file", done);
        }
        done += (uint64_t)n;
    }
    return MAMBA_OK;
}

static mamba_status mbi_bytes_from_fd(int fd, int copy, const mamba_memory *memory, mbi_bytes *b,
                                      mamba_error *err) {
    struct stat st;
    mamba_status status;
    if (fstat(fd, &st) != 0) {
        return mbi_fail(err, MAMBA_ERR_IO, "can't get the size", "file", 0);
    }
    if (!S_ISREG(st.st_mode)) {
        return mbi_fail(err, MAMBA_ERR_IO, "not a regular file", "file", 0);
    }
    if (st.st_size < MBI_HEADER_BYTES) {
        return mbi_too_short(err, (uint64_t)st.st_size);
    }
#if !defined(MAMBA_NO_MMAP)
    if (!copy) {
        void *p;
        if ((uint64_t)st.st_size > SIZE_MAX / 2) {
            return mbi_fail_value(err, MAMBA_ERR_UNSUPPORTED, "file too large for this build",
                                  "file", 0, (int64_t)st.st_size, 0, (int64_t)(SIZE_MAX / 2));
        }
        p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) {
            return mbi_fail(err, MAMBA_ERR_IO, "can't map the file", "file", 0);
        }
        b->data = (const unsigned char *)p;
        b->bytes = (uint64_t)st.st_size;
        b->kind = MBI_MAPPED;
        return MAMBA_OK;
    }
#endif
    (void)copy;
    status = mbi_bytes_alloc(b, (uint64_t)st.st_size, memory, err);
    if (status == MAMBA_OK) {
        status = mbi_read_all(fd, b, err);
        if (status != MAMBA_OK) {
            mbi_bytes_free(b);
        }
    }
    return status;
}

static mamba_status mbi_bytes_from_path(const char *path, int copy, const mamba_memory *memory,
                                        mbi_bytes *b, mamba_error *err) {
    mamba_status status;
    int fd;
    do {
        fd = open(path, MBI_OPEN_FLAGS);
    } while (fd < 0 && errno == EINTR);
    if (fd < 0) {
        return mbi_fail(err, MAMBA_ERR_IO,
                        errno == ENOENT   ? "no such file"
                        : errno == EACCES ? "permission denied"
                                          : "can't open",
                        "file", 0);
    }
    status = mbi_bytes_from_fd(fd, copy, memory, b, err);
    close(fd);
    return status;
}
#elif !defined(MAMBA_NO_STDIO) && MBI_OS_WINDOWS
static mamba_status mbi_bytes_from_handle(HANDLE file, int copy, const mamba_memory *memory,
                                          mbi_bytes *b, mamba_error *err) {
    LARGE_INTEGER size;
    mamba_status status;
    uint64_t done = 0;
    if (!GetFileSizeEx(file, &size)) {
        return mbi_fail(err, MAMBA_ERR_IO, "can't get the size", "file", 0);
    }
    if (size.QuadPart < MBI_HEADER_BYTES) {
        return mbi_too_short(err, (uint64_t)size.QuadPart);
    }
#if !defined(MAMBA_NO_MMAP)
    if (!copy) {
        HANDLE mapping = CreateFileMappingW(file, NULL, PAGE_READONLY, 0, 0, NULL);
        void *p = mapping ? MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, 0) : NULL;
        if (mapping) {
            CloseHandle(mapping);
        }
        if (!p) {
            return mbi_fail(err, MAMBA_ERR_IO, "can't map the file", "file", 0);
        }
        b->data = (const unsigned char *)p;
        b->bytes = (uint64_t)size.QuadPart;
        b->kind = MBI_MAPPED;
        return MAMBA_OK;
    }
#endif
    (void)copy;
    status = mbi_bytes_alloc(b, (uint64_t)size.QuadPart, memory, err);
    while (status == MAMBA_OK && done < b->bytes) {
        DWORD got = 0;
        DWORD want = (DWORD)mbi_min_size((size_t)(b->bytes - done), (size_t)1 << 30);
        if (!ReadFile(file, (unsigned char *)(uintptr_t)b->data + done, want, &got, NULL) ||
            got == 0) {
            mbi_bytes_free(b);
            return mbi_fail(err, MAMBA_ERR_IO, "read failed", "file", done);
        }
        done += got;
    }
    return status;
}

static mamba_status mbi_bytes_from_path(const char *path, int copy, const mamba_memory *memory,
                                        mbi_bytes *b, mamba_error *err) {
    WCHAR wide[32768];
    mamba_status status;
    HANDLE file;
    if (!MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, wide, 32768)) {
        return mbi_fail(err, MAMBA_ERR_ARG, "path is not UTF-8 or too long", "path", 0);
    }
    file = CreateFileW(wide, GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_DELETE, NULL,
                       OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, NULL);
    if (file == INVALID_HANDLE_VALUE) {
        return mbi_fail(err, MAMBA_ERR_IO, "can't open", "file", 0);
    }
    status = mbi_bytes_from_handle(file, copy, memory, b, err);
    CloseHandle(file);
    return status;
}
#elif !defined(MAMBA_NO_STDIO)
static mamba_status mbi_bytes_from_path(const char *path, int copy, const mamba_memory *memory,
                                        mbi_bytes *b, mamba_error *err) {
    mamba_status status = MAMBA_ERR_IO;
    long size;
    FILE *f = fopen(path, "rb");
    (void)copy;
    if (!f) {
        return mbi_fail(err, MAMBA_ERR_IO, "can't open", "file", 0);
    }
    if (fseek(f, 0, SEEK_END) != 0 || (size = ftell(f)) < 0 || fseek(f, 0, SEEK_SET) != 0) {
        mbi_fail(err, MAMBA_ERR_IO, "can't get the size", "file", 0);
    } else if (size < MBI_HEADER_BYTES) {
        status = mbi_too_short(err, (uint64_t)size);
    } else if ((status = mbi_bytes_alloc(b, (uint64_t)size, memory, err)) == MAMBA_OK &&
               fread((void *)(uintptr_t)b->data, 1, (size_t)size, f) != (size_t)size) {
        mbi_bytes_free(b);
        status = mbi_fail(err, MAMBA_ERR_IO, "read failed", "file", 0);
    }
    fclose(f);
    return status;
}
#endif

/* ------------------------------------------------------------------------------------------------
 * @@loader   Header to bound layers: every check of the structure                        (private)
 * ---------------------------------------------------------------------------------------------- */
/* Parameters and weights of the kinds of layers.  "seg" = padded to 16. */
typedef struct mbi_mamba1 {
    int d_inner, d_state, d_conv, dt_rank;
    int norm_bcdt; /* FalconMamba */
    float bcdt_eps;
    mbi_mat in_proj, x_proj, dt_proj, out_proj;
    const float *in_bias, *out_bias; /* padded like the rows */
    const float *conv_w, *conv_b;    /* (d_conv, d_inner seg), (d_inner seg) */
    const float *dt_bias, *A, *D;    /* (d_inner seg), [d_inner seg/16][d_state][16], (d_inner seg) */
} mbi_mamba1;

typedef struct mbi_layer mbi_layer;
typedef struct mbi_binder mbi_binder;
typedef struct mbi_ctx mbi_ctx;

/* What a kind of layer does.  State: floats per sequence, a fixed part followed by a part that
 * grows by per_token floats with every token (attention).  Scratch: floats for a chunk of T. */
typedef struct mbi_layer_ops {
    mamba_layer_kind kind;
    void (*bind)(mbi_binder *b, mbi_layer *l, const mbi_layer_record *record);
    void (*describe)(const mbi_layer *l, mamba_layer_info *info);
    size_t (*state_fixed)(const mbi_layer *l);
    size_t (*state_per_token)(const mbi_layer *l);
    size_t (*scratch)(const mbi_layer *l, int n_tokens);
    void (*forward)(mbi_ctx *ctx, const mbi_layer *l, float *state); /* r += f(norm(r)) */
} mbi_layer_ops;

struct mbi_layer {
    const mbi_layer_ops *ops;
    const float *norm; /* (d_model seg) */
    float norm_eps;
    union {
        mbi_mamba1 mamba1;
    } u;
};

struct mamba_model {
    mbi_bytes bytes;
    mamba_memory memory;
    mamba_parallel parallel;
    mamba_log log;
    int n_threads;
    const mamba_target *target;
    mbi_config_record config;
    mbi_section sections[MBI_MAX_SECTIONS];
    int n_sections;
    const mbi_tensor *tensors; /* in the file */
    int n_tensors;
    mbi_layer *layers;
    mbi_mat embedding, head;
    const float *norm_f;
    const unsigned char *tokenizer;
    size_t tokenizer_bytes;
    uint64_t fingerprint, data_hash, meta_bytes;
    char file[192];
};

struct mbi_binder {
    mamba_model *m;
    mamba_error *err;
    mamba_status status; /* of the first failure; later binds do nothing */
    int layer;           /* -1: names without a layer */
    unsigned char *bound; /* one flag per tensor */
};

static const mbi_layer_ops *mbi_layer_ops_of(uint32_t kind);

static mamba_status mbi_check_header(mamba_model *m, mamba_error *err) {
    const unsigned char *p = m->bytes.data;
    uint64_t file_bytes;
    if (m->bytes.bytes < MBI_HEADER_BYTES) {
        return mbi_too_short(err, m->bytes.bytes);
    }
    if (memcmp(p, MBI_MAGIC, 8) != 0) {
        return mbi_fail(err, MAMBA_ERR_FORMAT,
                        memcmp(p, "MAMBA", 5) == 0
                            ? "magic damaged: the file was copied in text mode"
                            : "not a .mamba file (convert checkpoints with mamba-convert)",
                        "magic", 0);
    }
    if (mbi_load_u32(p + 12) != MBI_BYTE_ORDER) {
        return mbi_fail(err, MAMBA_ERR_FORMAT,
                        mbi_load_u32(p + 12) == 0x04030201u ? "file has the other byte order"
                                                            : "byte order mark is damaged",
                        "byte order", 12);
    }
    if (mbi_load_u32(p + 8) != MBI_FILE_VERSION) {
        return mbi_fail_value(err, MAMBA_ERR_VERSION, "file version not known to this build",
                              "version", 8, mbi_load_u32(p + 8), 1, MBI_FILE_VERSION);
    }
    file_bytes = mbi_load_u64(p + 16);
    if (file_bytes != m->bytes.bytes) {
        return mbi_fail_value(err, MAMBA_ERR_FORMAT,
                              file_bytes > m->bytes.bytes ? "file is truncated"
                                                          : "bytes after the end of the data",
                              "file_bytes", 16, mbi_clamp_i64(m->bytes.bytes),
                              mbi_clamp_i64(file_bytes), mbi_clamp_i64(file_bytes));
    }
    m->meta_bytes = mbi_load_u64(p + 24);
    if (m->meta_bytes % MBI_DATA_ALIGN != 0 || m->meta_bytes < MBI_DATA_ALIGN ||
        m->meta_bytes > file_bytes) {
        return mbi_fail_value(err, MAMBA_ERR_FORMAT,
                              "start of the data must be a multiple of 4096 within the file",
                              "meta_bytes", 24, mbi_clamp_i64(m->meta_bytes), MBI_DATA_ALIGN,
                              mbi_clamp_i64(file_bytes));
    }
    m->fingerprint = mbi_load_u64(p + 32);
    m->data_hash = mbi_load_u64(p + 40);
    if (mbi_hash_bytes(p + 40, (size_t)m->meta_bytes - 40) != m->fingerprint) {
        return mbi_fail(err, MAMBA_ERR_CHECK, "metadata does not match its checksum", "meta_hash",
                        32);
    }
    return MAMBA_OK;
}

static mamba_status mbi_check_sections(mamba_model *m, mamba_error *err) {
    const unsigned char *p = m->bytes.data;
    uint32_t n = mbi_load_u32(p + 48);
    uint64_t end;
    int i;
    int j;
    if (n < 3 || n > MBI_MAX_SECTIONS) {
        return mbi_fail_value(err, MAMBA_ERR_FORMAT, "number of sections", "n_sections", 48, n, 3,
                              MBI_MAX_SECTIONS);
    }
    m->n_sections = (int)n;
    end = MBI_HEADER_BYTES + (uint64_t)n * MBI_SECTION_BYTES; /* <= 4096 <= meta_bytes */
    memcpy(m->sections, p + MBI_HEADER_BYTES, (size_t)n * MBI_SECTION_BYTES);
    for (i = 0; i < m->n_sections; i++) {
        const mbi_section *s = &m->sections[i];
        uint64_t at = MBI_HEADER_BYTES + (uint64_t)i * MBI_SECTION_BYTES;
        if (mbi_name_length(s->name, 16) < 0) {
            return mbi_fail(err, MAMBA_ERR_FORMAT, "section name is empty or not NUL-padded",
                            "sections", at);
        }
        for (j = 0; j < i; j++) {
            if (memcmp(s->name, m->sections[j].name, 16) == 0) {
                return mbi_fail(err, MAMBA_ERR_FORMAT, "two sections have one name", "sections",
                                at);
            }
        }
        if (s->offset != mbi_pad(end, 64) || s->offset > m->meta_bytes ||
            s->bytes > m->meta_bytes - s->offset) {
            return mbi_fail_value(err, MAMBA_ERR_FORMAT,
                                  "section must follow the one before it and end in the metadata",
                                  "sections", at + 16, mbi_clamp_i64(s->offset),
                                  mbi_clamp_i64(mbi_pad(end, 64)),
                                  mbi_clamp_i64(mbi_pad(end, 64)));
        }
        end = s->offset + s->bytes;
    }
    if (mbi_pad(end, MBI_DATA_ALIGN) != m->meta_bytes) {
        return mbi_fail_value(err, MAMBA_ERR_FORMAT, "sections must end where the data starts",
                              "meta_bytes", 24, mbi_clamp_i64(m->meta_bytes),
                              mbi_clamp_i64(mbi_pad(end, MBI_DATA_ALIGN)),
                              mbi_clamp_i64(mbi_pad(end, MBI_DATA_ALIGN)));
    }
    return MAMBA_OK;
}

static const mbi_section *mbi_find_section(const mamba_model *m, const char *name, size_t n) {
    int i;
    for (i = 0; i < m->n_sections && n <= 16; i++) {
        if ((size_t)mbi_name_length(m->sections[i].name, 16) == n &&
            memcmp(m->sections[i].name, name, n) == 0) {
            return &m->sections[i];
        }
    }
    return NULL;
}

/* A section that must exist, with a size that is a multiple of `record`. */
static const mbi_section *mbi_need_section(mamba_model *m, const char *name, uint64_t record,
                                           mamba_error *err, mamba_status *status) {
    const mbi_section *s = mbi_find_section(m, name, strlen(name));
    if (!s) {
        *status = mbi_fail(err, MAMBA_ERR_FORMAT, "section is missing", name, 0);
        return NULL;
    }
    if (s->bytes % record != 0) {
        *status = mbi_fail_value(err, MAMBA_ERR_FORMAT, "size is no multiple of the record's",
                                 name, s->offset, mbi_clamp_i64(s->bytes), mbi_clamp_i64(record),
                                 mbi_clamp_i64(record));
        return NULL;
    }
    return s;
}

static int mbi_positive(float f) {
    return f > 0.0f && f <= 3.4028234e38f;
}

static mamba_status mbi_check_range(mamba_error *err, const char *name, uint64_t offset,
                                    uint64_t found, uint64_t lo, uint64_t hi) {
    if (found < lo || found > hi) {
        return mbi_fail_value(err, MAMBA_ERR_FORMAT, "value out of range", name, offset,
                              mbi_clamp_i64(found), mbi_clamp_i64(lo), mbi_clamp_i64(hi));
    }
    return MAMBA_OK;
}

static mamba_status mbi_check_config(mamba_model *m, mamba_error *err) {
    mamba_status status = MAMBA_OK;
    const mbi_section *s = mbi_need_section(m, "config", MBI_CONFIG_BYTES, err, &status);
    mbi_config_record *c = &m->config;
    if (!s) {
        return status;
    }
    if (s->bytes != MBI_CONFIG_BYTES) {
        return mbi_check_range(err, "config", s->offset, s->bytes, MBI_CONFIG_BYTES,
                               MBI_CONFIG_BYTES);
    }
    memcpy(c, m->bytes.data + s->offset, sizeof *c);
    if ((status = mbi_check_range(err, "d_model", s->offset, c->d_model, 1, 65536)) ||
        (status = mbi_check_range(err, "n_layers", s->offset + 4, c->n_layers, 1,
                                  MBI_MAX_LAYERS)) ||
        (status = mbi_check_range(err, "n_vocab", s->offset + 8, c->n_vocab, 0, MBI_MAX_DIM)) ||
        (status = mbi_check_range(err, "n_vocab_used", s->offset + 12, c->n_vocab_used, 0,
                                  c->n_vocab)) ||
        (status = mbi_check_range(err, "flags", s->offset + 16, c->flags, 0, MBI_MODEL_TIED)) ||
        (status = mbi_check_range(err, "main weight type", s->offset + 20, c->main_type, 0,
                                  MAMBA_Q4))) {
        return status;
    }
    if (!mbi_positive(c->norm_eps) || !mbi_positive(c->embedding_scale) ||
        !mbi_positive(c->residual_scale) || !mbi_positive(c->logit_scale)) {
        return mbi_fail(err, MAMBA_ERR_FORMAT, "eps and factors must be positive and finite",
                        "config", s->offset + 24);
    }
    if (mbi_name_length(c->architecture, 32) < 0 || c->architecture[31] != 0) {
        return mbi_fail(err, MAMBA_ERR_FORMAT, "architecture name is empty or not NUL-padded",
                        "config", s->offset + 64);
    }
    return MAMBA_OK;
}

/* One tensor record; `end` is the end of the data before it and moves on. */
static mamba_status mbi_check_tensor(const mbi_tensor *t, const mbi_tensor *before,
                                     uint64_t file_bytes, uint64_t at, uint64_t *end,
                                     mamba_error *err) {
    char name[64];
    uint64_t sum = 0;
    uint64_t bytes;
    uint32_t i;
    mamba_status status;
    int n = mbi_name_length(t->name, 64);
    if (n < 0 || n > 63) {
        return mbi_fail(err, MAMBA_ERR_FORMAT, "tensor name is empty, too long or not NUL-padded",
                        "tensors", at);
    }
    memcpy(name, t->name, 64);
    if (before && memcmp(before->name, t->name, 64) >= 0) {
        return mbi_fail(err, MAMBA_ERR_FORMAT, "tensor names must be unique and ascending", name,
                        at);
    }
    if ((status = mbi_check_range(err, name, at + 64, t->type, 0, MAMBA_Q4)) ||
        (status = mbi_check_range(err, name, at + 68, t->layout, 0, MBI_LAYOUT_PANELS)) ||
        (status = mbi_check_range(err, name, at + 72, t->rows, 1, MBI_MAX_DIM)) ||
        (status = mbi_check_range(err, name, at + 76, t->cols, 1, MBI_MAX_DIM)) ||
        (status = mbi_check_range(err, name, at + 80, t->n_segments, 1, MBI_MAX_SEGMENTS)) ||
        (status = mbi_check_range(err, name, at + 116, t->count, 1, 4096))) {
        return status;
    }
    if (t->layout == MBI_LAYOUT_VECTOR && t->type != MAMBA_F32) {
        return mbi_fail_value(err, MAMBA_ERR_FORMAT, "vectors must be f32", name, at + 64, t->type,
                              MAMBA_F32, MAMBA_F32);
    }
    for (i = 0; i < MBI_MAX_SEGMENTS; i++) {
        if ((i < t->n_segments) != (t->segments[i] != 0) || t->segments[i] > MBI_MAX_DIM) {
            return mbi_fail_value(err, MAMBA_ERR_FORMAT, "rows of a segment", name, at + 84 + 4 * i,
                                  t->segments[i], i < t->n_segments ? 1 : 0,
                                  i < t->n_segments ? MBI_MAX_DIM : 0);
        }
        sum += t->segments[i];
    }
    if (sum != t->rows) {
        return mbi_fail_value(err, MAMBA_ERR_FORMAT, "segments must add up to the rows", name,
                              at + 84, mbi_clamp_i64(sum), t->rows, t->rows);
    }
    bytes = mbi_tensor_bytes(t);
    if (bytes == 0 || bytes != t->bytes) {
        return mbi_fail_value(err, MAMBA_ERR_FORMAT, "bytes must be as type and shape say", name,
                              at + 128, mbi_clamp_i64(t->bytes), mbi_clamp_i64(bytes),
                              mbi_clamp_i64(bytes));
    }
    if (t->offset != *end) {
        return mbi_fail_value(err, MAMBA_ERR_FORMAT, "tensor must follow the one before it", name,
                              at + 120, mbi_clamp_i64(t->offset), mbi_clamp_i64(*end),
                              mbi_clamp_i64(*end));
    }
    if (t->bytes > file_bytes - t->offset) {
        return mbi_fail_value(err, MAMBA_ERR_FORMAT, "tensor extends past the end of the file",
                              name, at + 120, mbi_clamp_i64(t->bytes), 0,
                              mbi_clamp_i64(file_bytes - t->offset));
    }
    *end = mbi_pad(t->offset + t->bytes, 64);
    if (*end > file_bytes) {
        return mbi_fail(err, MAMBA_ERR_FORMAT, "padding after the tensor is missing", name, at);
    }
    return MAMBA_OK;
}

static mamba_status mbi_check_tensors(mamba_model *m, mamba_error *err) {
    mamba_status status = MAMBA_OK;
    const mbi_section *s = mbi_need_section(m, "tensors", MBI_TENSOR_BYTES, err, &status);
    uint64_t end = m->meta_bytes;
    int i;
    if (!s) {
        return status;
    }
    if ((status = mbi_check_range(err, "number of tensors", s->offset, s->bytes / MBI_TENSOR_BYTES,
                                  1, MBI_MAX_TENSORS))) {
        return status;
    }
    m->tensors = (const mbi_tensor *)(const void *)(m->bytes.data + s->offset);
    m->n_tensors = (int)(s->bytes / MBI_TENSOR_BYTES);
    for (i = 0; i < m->n_tensors; i++) {
        status = mbi_check_tensor(&m->tensors[i], i > 0 ? &m->tensors[i - 1] : NULL,
                                  m->bytes.bytes, s->offset + (uint64_t)i * MBI_TENSOR_BYTES, &end,
                                  err);
        if (status) {
            return status;
        }
    }
    if (end != m->bytes.bytes) {
        return mbi_fail_value(err, MAMBA_ERR_FORMAT, "tensors must end where the file ends",
                              "file_bytes", 16, mbi_clamp_i64(m->bytes.bytes), mbi_clamp_i64(end),
                              mbi_clamp_i64(end));
    }
    return MAMBA_OK;
}

/* "layer.00012.in_proj", NUL-padded to 64. */
static void mbi_tensor_name(int layer, const char *what, char name[64]) {
    size_t n = 0;
    size_t i;
    memset(name, 0, 64);
    if (layer >= 0) {
        memcpy(name, "layer.00000.", 12);
        for (i = 10; i > 5; i--, layer /= 10) {
            name[i] = (char)('0' + layer % 10);
        }
        n = 12;
    }
    for (i = 0; what[i] != 0 && n < 63; i++) {
        name[n++] = what[i];
    }
}

/* Binary search; marks the tensor as bound.  NULL and an error when it must exist and does not. */
static const mbi_tensor *mbi_bind(mbi_binder *b, const char *what, int optional) {
    char name[64];
    int lo = 0;
    int hi = b->m->n_tensors;
    if (b->status) {
        return NULL;
    }
    mbi_tensor_name(b->layer, what, name);
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2;
        int c = memcmp(b->m->tensors[mid].name, name, 64);
        if (c == 0) {
            b->bound[mid] = 1;
            return &b->m->tensors[mid];
        }
        if (c < 0) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    if (!optional) {
        b->status = mbi_fail(b->err, MAMBA_ERR_FORMAT, "tensor is missing", name, 0);
    }
    return NULL;
}

static int mbi_bind_shape(mbi_binder *b, const mbi_tensor *t, uint32_t layout, uint64_t rows,
                          uint64_t cols) {
    uint64_t at = (uint64_t)((const unsigned char *)t - b->m->bytes.data);
    if (t->layout != layout || t->count != 1) {
        b->status = mbi_fail_value(b->err, MAMBA_ERR_FORMAT, "tensor has another layout than its "
                                   "layer needs", t->name, at + 68, t->layout, layout, layout);
    } else if (t->rows != rows) {
        b->status = mbi_fail_value(b->err, MAMBA_ERR_FORMAT, "rows disagree with the configuration",
                                   t->name, at + 72, t->rows, mbi_clamp_i64(rows),
                                   mbi_clamp_i64(rows));
    } else if (t->cols != cols) {
        b->status = mbi_fail_value(b->err, MAMBA_ERR_FORMAT,
                                   "columns disagree with the configuration", t->name, at + 76,
                                   t->cols, mbi_clamp_i64(cols), mbi_clamp_i64(cols));
    }
    return b->status == MAMBA_OK;
}

/* A float vector (rows, cols), rows padded to 16 floats; NULL when optional and absent. */
static const float *mbi_bind_vector(mbi_binder *b, const char *what, uint64_t rows, uint64_t cols,
                                    int optional) {
    const mbi_tensor *t = mbi_bind(b, what, optional);
    if (!t || !mbi_bind_shape(b, t, MBI_LAYOUT_VECTOR, rows, cols)) {
        return NULL;
    }
    return (const float *)(const void *)(b->m->bytes.data + t->offset);
}

/* A weight matrix whose rows are the given segments (n_segments entries). */
static void mbi_bind_panels(mbi_binder *b, const char *what, const int *segments, int n_segments,
                            int cols, mbi_mat *w) {
    const mbi_tensor *t = mbi_bind(b, what, 0);
    uint64_t rows = 0;
    int i;
    for (i = 0; i < n_segments; i++) {
        rows += (uint64_t)segments[i];
    }
    if (!t || !mbi_bind_shape(b, t, MBI_LAYOUT_PANELS, rows, (uint64_t)cols)) {
        return;
    }
    for (i = 0; i < n_segments; i++) {
        if (t->n_segments != (uint32_t)n_segments || t->segments[i] != (uint32_t)segments[i]) {
            uint64_t at = (uint64_t)((const unsigned char *)t - b->m->bytes.data);
            b->status = mbi_fail_value(b->err, MAMBA_ERR_FORMAT,
                                       "segments disagree with the configuration", t->name,
                                       at + 84 + 4 * (uint64_t)i, t->segments[i], segments[i],
                                       segments[i]);
            return;
        }
    }
    w->data = b->m->bytes.data + t->offset;
    w->type = (mamba_type)t->type;
    w->cols = cols;
    w->panel_bytes = mbi_panel_bytes(w->type, t->cols);
    w->n_panels = (int)(mbi_padded_rows(t) / MBI_LANES);
    w->rows = n_segments == 1 ? (int)t->rows : w->n_panels * MBI_LANES;
}

/* A parameter of a layer record within its range; 1 when it is not. */
static int mbi_bind_param(mbi_binder *b, const char *name, uint32_t found, uint32_t lo,
                          uint32_t hi) {
    char full[64];
    if (b->status == MAMBA_OK && (found < lo || found > hi)) {
        mbi_tensor_name(b->layer, name, full);
        b->status = mbi_check_range(b->err, full, 0, found, lo, hi);
    }
    return b->status != MAMBA_OK;
}

static mamba_status mbi_bind_layers(mbi_binder *b) {
    mamba_model *m = b->m;
    const mbi_section *s = mbi_need_section(m, "layers", MBI_LAYER_BYTES, b->err, &b->status);
    size_t bytes;
    int i;
    if (!s) {
        return b->status;
    }
    if (s->bytes / MBI_LAYER_BYTES != m->config.n_layers) {
        return mbi_fail_value(b->err, MAMBA_ERR_FORMAT, "layer records disagree with n_layers",
                              "layers", s->offset, mbi_clamp_i64(s->bytes / MBI_LAYER_BYTES),
                              m->config.n_layers, m->config.n_layers);
    }
    bytes = (size_t)m->config.n_layers * sizeof(mbi_layer);
    m->layers = (mbi_layer *)m->memory.alloc(m->memory.user, bytes, 64);
    if (!m->layers) {
        return mbi_fail(b->err, MAMBA_ERR_MEMORY, "out of memory for the layers", "layers", 0);
    }
    memset(m->layers, 0, bytes);
    for (i = 0; i < (int)m->config.n_layers; i++) {
        mbi_layer *l = &m->layers[i];
        mbi_layer_record record;
        uint64_t at = s->offset + (uint64_t)i * MBI_LAYER_BYTES;
        memcpy(&record, m->bytes.data + at, sizeof record);
        b->layer = i;
        l->ops = mbi_layer_ops_of(record.kind);
        if (!l->ops) {
            return mbi_fail_value(b->err, MAMBA_ERR_UNSUPPORTED,
                                  "kind of layer not known to this build", "layers", at,
                                  record.kind, MAMBA_LAYER_MAMBA1, MAMBA_LAYER_MAMBA1);
        }
        if (!mbi_positive(record.norm_eps)) {
            return mbi_fail(b->err, MAMBA_ERR_FORMAT, "eps of the norm must be positive",
                            "layers", at + 8);
        }
        l->norm_eps = record.norm_eps;
        l->norm = mbi_bind_vector(b, "norm", 1, m->config.d_model, 0);
        if (b->status == MAMBA_OK) {
            l->ops->bind(b, l, &record);
        }
        if (b->status) {
            return b->status;
        }
    }
    return MAMBA_OK;
}

static mamba_status mbi_bind_globals(mbi_binder *b) {
    mamba_model *m = b->m;
    int n_vocab = (int)m->config.n_vocab;
    int d_model = (int)m->config.d_model;
    b->layer = -1;
    m->norm_f = mbi_bind_vector(b, "norm_f", 1, m->config.d_model, 0);
    if (n_vocab > 0) {
        mbi_bind_panels(b, "embedding", &n_vocab, 1, d_model, &m->embedding);
        if (m->config.flags & MBI_MODEL_TIED) {
            m->head = m->embedding;
        } else {
            mbi_bind_panels(b, "head", &n_vocab, 1, d_model, &m->head);
        }
    }
    return b->status;
}

static mamba_status mbi_bind_all(mamba_model *m, mamba_error *err) {
    mbi_binder b;
    int i;
    memset(&b, 0, sizeof b);
    b.m = m;
    b.err = err;
    b.bound = (unsigned char *)m->memory.alloc(m->memory.user, (size_t)m->n_tensors, 64);
    if (!b.bound) {
        return mbi_fail(err, MAMBA_ERR_MEMORY, "out of memory", "tensors", 0);
    }
    memset(b.bound, 0, (size_t)m->n_tensors);
    b.status = mbi_bind_globals(&b);
    if (b.status == MAMBA_OK) {
        b.status = mbi_bind_layers(&b);
    }
    for (i = 0; i < m->n_tensors && b.status == MAMBA_OK; i++) {
        if (!b.bound[i]) {
            b.status = mbi_fail(err, MAMBA_ERR_FORMAT, "no layer uses this tensor",
                                m->tensors[i].name, 0);
        }
    }
    m->memory.free(m->memory.user, b.bound, (size_t)m->n_tensors);
    return b.status;
}

/* ------------------------------------------------------------------------------------------------
 * @@matmul   Weight matrix times activations, split over the threads                     (private)
 * ---------------------------------------------------------------------------------------------- */
/* Everything one chunk of tokens needs while it passes through the layers. */
struct mbi_ctx {
    const mamba_model *model;
    const mbi_kernels *k;
    const mamba_parallel *parallel;
    int n_tasks;             /* = threads; every region is cut into at most so many tasks */
    int n_tokens;            /* T of this chunk */
    uint64_t position;       /* of its first token */
    int time_chunk;
    float *r;                /* residual stream, blocked (d_model, T) */
    float *u;                /* normalised input of the layer, blocked */
    unsigned char *prepared; /* activations as gemm wants them */
    unsigned char *task_scratch;
    size_t task_bytes;       /* per task: MBI_GEMM_SCRATCH, then a [T][16] block */
    float *scratch;          /* the layer's own */
};

/* Blocked activation on its way into a product. */
typedef struct mbi_prepare_job {
    const mbi_ctx *ctx;
    mamba_type type;
    const float *x;
    int n, n_tasks;
    /* with a norm in front: x is normalised into u first */
    const float *norm;
    float eps;
    float *u;
    int normalise;
} mbi_prepare_job;

static void mbi_prepare_task(void *arg, int i) {
    const mbi_prepare_job *j = (const mbi_prepare_job *)arg;
    const mbi_ctx *ctx = j->ctx;
    int n_tiles = (ctx->n_tokens + 15) / 16;
    int t0 = mbi_split(n_tiles, j->n_tasks, i) * 16;
    int t1 = mbi_min_int(mbi_split(n_tiles, j->n_tasks, i + 1) * 16, ctx->n_tokens);
    const float *x = j->x;
    if (t0 >= t1) {
        return;
    }
    if (j->normalise) {
        ctx->k->rmsnorm(x, j->norm, j->eps, j->n, ctx->n_tokens, t0, t1, j->u);
        x = j->u;
    }
    if (ctx->k->prepared_bytes(j->type, j->n, ctx->n_tokens) != 0) {
        ctx->k->prepare(j->type, x, j->n, ctx->n_tokens, t0, t1, ctx->prepared);
    }
}

/* Runs the job over token tiles and returns what gemm shall read. */
static const void *mbi_prepare_run(const mbi_ctx *ctx, mbi_prepare_job *j) {
    int prepared = ctx->k->prepared_bytes(j->type, j->n, ctx->n_tokens) != 0;
    const float *x = j->normalise ? j->u : j->x;
    j->ctx = ctx;
    if (prepared || j->normalise) {
        j->n_tasks = mbi_min_int(ctx->n_tasks, (ctx->n_tokens + 15) / 16);
        mbi_parallel_for(ctx->parallel, j->n_tasks, mbi_prepare_task, j);
    }
    return prepared ? (const void *)ctx->prepared : (const void *)x;
}

static const void *mbi_prepare(const mbi_ctx *ctx, mamba_type type, const float *x, int n) {
    mbi_prepare_job j;
    memset(&j, 0, sizeof j);
    j.type = type;
    j.x = x;
    j.n = n;
    return mbi_prepare_run(ctx, &j);
}

/* ctx->u = rmsnorm(ctx->r), prepared for products with weights of this type. */
static const void *mbi_norm_prepare(const mbi_ctx *ctx, mamba_type type, const float *norm,
                                    float eps) {
    mbi_prepare_job j;
    memset(&j, 0, sizeof j);
    j.type = type;
    j.x = ctx->r;
    j.n = (int)ctx->model->config.d_model;
    j.norm = norm;
    j.eps = eps;
    j.u = ctx->u;
    j.normalise = 1;
    return mbi_prepare_run(ctx, &j);
}

typedef struct mbi_matmul_job {
    const mbi_ctx *ctx;
    mbi_gemm g;
    int n_tasks, by_token;
} mbi_matmul_job;

static void mbi_matmul_task(void *arg, int i) {
    const mbi_matmul_job *j = (const mbi_matmul_job *)arg;
    mbi_gemm g = j->g;
    g.scratch = j->ctx->task_scratch + (size_t)i * j->ctx->task_bytes;
    if (j->by_token) {
        int n_tiles = (g.n_tokens + 15) / 16;
        int t0 = mbi_split(n_tiles, j->n_tasks, i) * 16;
        int t1 = mbi_min_int(mbi_split(n_tiles, j->n_tasks, i + 1) * 16, g.n_tokens);
        if (t0 < t1) {
            j->ctx->k->gemm(&g, 0, g.w->n_panels, t0, t1);
        }
    } else {
        j->ctx->k->gemm(&g, mbi_split(g.w->n_panels, j->n_tasks, i),
                        mbi_split(g.w->n_panels, j->n_tasks, i + 1), 0, g.n_tokens);
    }
}

/* The product described by g (its scratch is filled in here), all panels, all tokens.  Matrices
 * with few panels are cut over tokens instead, so that no thread idles. */
static void mbi_matmul(const mbi_ctx *ctx, const mbi_gemm *g) {
    mbi_matmul_job j;
    j.ctx = ctx;
    j.g = *g;
    j.by_token = g->w->n_panels < 8 * ctx->n_tasks && g->n_tokens >= 32 * ctx->n_tasks;
    j.n_tasks = mbi_min_int(ctx->n_tasks, j.by_token ? g->n_tokens / 16 : g->w->n_panels);
    mbi_parallel_for(ctx->parallel, j.n_tasks, mbi_matmul_task, &j);
}

/* y (blocked, rows of w) = bias + w x, or y += that. */
static void mbi_linear(const mbi_ctx *ctx, const mbi_mat *w, const void *x, const float *bias,
                       int add, float *y) {
    mbi_gemm g;
    memset(&g, 0, sizeof g);
    g.w = w;
    g.x = x;
    g.n_tokens = ctx->n_tokens;
    g.add = add;
    g.bias = bias;
    g.y = y;
    g.y_panel = (size_t)ctx->n_tokens * MBI_LANES;
    g.y_token = MBI_LANES;
    mbi_matmul(ctx, &g);
}

/* ------------------------------------------------------------------------------------------------
 * @@mamba1   Mamba-1 and FalconMamba layers                                              (private)
 *
 * Per token [Gu & Dao 2023, fig. 3 and alg. 2; names as in mamba_ssm mamba_simple.py]:
 *   [x | z] = in_proj u + b;  x = silu(conv1d(x));  [dt | B | C] = x_proj x
 *   FalconMamba: dt, B, C each RMS-normalised without weights
 *   dt = softplus(dt_proj dt + dt_bias)
 *   h = exp(dt A) h + dt B x;  y = C h + D x;  r += out_proj (y silu(z)) + b
 * State: conv inputs (d_conv-1, d_inner seg), oldest first; then h [d_inner seg/16][d_state][16].
 * ---------------------------------------------------------------------------------------------- */
static int mbi_mamba1_width(const mbi_mamba1 *m) {
    return mbi_pad_int(m->d_inner, MBI_LANES);
}

static void mbi_mamba1_bind(mbi_binder *b, mbi_layer *l, const mbi_layer_record *record) {
    mbi_mamba1 *m = &l->u.mamba1;
    int d_model = (int)b->m->config.d_model;
    int in_segments[2];
    int x_segments[3];
    uint64_t width;
    if (mbi_bind_param(b, "d_inner", record->u[0], 1, 1 << 20) ||
        mbi_bind_param(b, "d_state", record->u[1], 1, 1024) ||
        mbi_bind_param(b, "d_conv", record->u[2], 1, 8) ||
        mbi_bind_param(b, "dt_rank", record->u[3], 1, 1 << 16) ||
        mbi_bind_param(b, "flags", record->flags, 0, 1)) {
        return;
    }
    m->d_inner = (int)record->u[0];
    m->d_state = (int)record->u[1];
    m->d_conv = (int)record->u[2];
    m->dt_rank = (int)record->u[3];
    m->norm_bcdt = (int)(record->flags & 1);
    m->bcdt_eps = mbi_bits_f32(record->u[4]);
    if (m->norm_bcdt && !mbi_positive(m->bcdt_eps)) {
        b->status = mbi_fail(b->err, MAMBA_ERR_FORMAT, "eps of the norms on dt, B, C must be "
                             "positive", "layers", 0);
        return;
    }
    width = (uint64_t)mbi_mamba1_width(m);
    in_segments[0] = in_segments[1] = m->d_inner;
    x_segments[0] = m->dt_rank;
    x_segments[1] = x_segments[2] = m->d_state;
    mbi_bind_panels(b, "in_proj", in_segments, 2, d_model, &m->in_proj);
    mbi_bind_panels(b, "x_proj", x_segments, 3, m->d_inner, &m->x_proj);
    mbi_bind_panels(b, "dt_proj", &m->d_inner, 1, m->dt_rank, &m->dt_proj);
    mbi_bind_panels(b, "out_proj", &d_model, 1, m->d_inner, &m->out_proj);
    m->in_bias = mbi_bind_vector(b, "in_proj_bias", 1, 2 * width, 1);
    m->out_bias = mbi_bind_vector(b, "out_proj_bias", 1, (uint64_t)mbi_pad_int(d_model, 16), 1);
    m->conv_w = mbi_bind_vector(b, "conv_w", (uint64_t)m->d_conv, (uint64_t)m->d_inner, 0);
    m->conv_b = mbi_bind_vector(b, "conv_b", 1, (uint64_t)m->d_inner, 1);
    m->dt_bias = mbi_bind_vector(b, "dt_bias", 1, (uint64_t)m->d_inner, 0);
    m->A = mbi_bind_vector(b, "A", width / MBI_LANES * (uint64_t)m->d_state, MBI_LANES, 0);
    m->D = mbi_bind_vector(b, "D", 1, (uint64_t)m->d_inner, 0);
}

static void mbi_mamba1_describe(const mbi_layer *l, mamba_layer_info *info) {
    info->d_inner = l->u.mamba1.d_inner;
    info->d_state = l->u.mamba1.d_state;
    info->d_conv = l->u.mamba1.d_conv;
    info->dt_rank = l->u.mamba1.dt_rank;
}

static size_t mbi_mamba1_state(const mbi_layer *l) {
    const mbi_mamba1 *m = &l->u.mamba1;
    return (size_t)mbi_mamba1_width(m) * (size_t)(m->d_conv - 1 + m->d_state);
}

static size_t mbi_no_floats(const mbi_layer *l) {
    (void)l;
    return 0;
}

/* [x | z] then [dt | B | C], blocked. */
static size_t mbi_mamba1_scratch(const mbi_layer *l, int n_tokens) {
    const mbi_mamba1 *m = &l->u.mamba1;
    return (size_t)(m->in_proj.n_panels + m->x_proj.n_panels) * MBI_LANES * (size_t)n_tokens;
}

/* The work on one range of channel blocks; tasks share it. */
typedef struct mbi_mamba1_job {
    mbi_ctx *ctx;
    const mbi_mamba1 *m;
    float *x, *z;         /* blocked (d_inner, T) */
    float *dt, *B, *C;    /* blocked (dt_rank, T), (d_state, T) */
    const void *dt_ready; /* dt prepared for dt_proj */
    float *conv_state, *h;
    int n_tasks;
} mbi_mamba1_job;

static void mbi_mamba1_conv_task(void *arg, int i) {
    const mbi_mamba1_job *j = (const mbi_mamba1_job *)arg;
    const mbi_mamba1 *m = j->m;
    int n_tokens = j->ctx->n_tokens;
    int width = mbi_mamba1_width(m);
    int b = mbi_split(width / MBI_LANES, j->n_tasks, i);
    int end = mbi_split(width / MBI_LANES, j->n_tasks, i + 1);
    for (; b < end; b++) {
        float *x = j->x + (size_t)b * (size_t)n_tokens * MBI_LANES;
        int c = b * MBI_LANES;
        j->ctx->k->conv(x, m->conv_w + c, m->conv_b ? m->conv_b + c : NULL, m->d_conv, 1,
                        n_tokens, j->conv_state + c, (size_t)width, x);
    }
}

/* dt_proj, softplus, scan and gate of 16 channels at a time; y replaces x. */
static void mbi_mamba1_scan_task(void *arg, int i) {
    const mbi_mamba1_job *j = (const mbi_mamba1_job *)arg;
    const mbi_mamba1 *m = j->m;
    mbi_ctx *ctx = j->ctx;
    size_t block = (size_t)ctx->n_tokens * MBI_LANES;
    unsigned char *scratch = ctx->task_scratch + (size_t)i * ctx->task_bytes;
    float *dt = (float *)(void *)(scratch + MBI_GEMM_SCRATCH);
    int n_blocks = mbi_mamba1_width(m) / MBI_LANES;
    int b = mbi_split(n_blocks, j->n_tasks, i);
    int end = mbi_split(n_blocks, j->n_tasks, i + 1);
    mbi_gemm g;
    memset(&g, 0, sizeof g);
    g.w = &m->dt_proj;
    g.x = j->dt_ready;
    g.n_tokens = ctx->n_tokens;
    g.y = dt;
    g.y_token = MBI_LANES;
    g.scratch = scratch;
    for (; b < end; b++) {
        mbi_scan_block s;
        ctx->k->gemm(&g, b, b + 1, 0, ctx->n_tokens);
        ctx->k->softplus(dt, m->dt_bias + b * MBI_LANES, dt, block);
        s.x = s.y = j->x + (size_t)b * block;
        s.dt = dt;
        s.z = j->z + (size_t)b * block;
        s.A = m->A + (size_t)b * (size_t)m->d_state * MBI_LANES;
        s.B = j->B;
        s.C = j->C;
        s.D = m->D + b * MBI_LANES;
        s.h = j->h + (size_t)b * (size_t)m->d_state * MBI_LANES;
        s.bc_block = block;
        s.bc_token = MBI_LANES;
        s.position = ctx->position;
        s.n_tokens = ctx->n_tokens;
        s.d_state = m->d_state;
        ctx->k->scan_block(&s);
    }
}

static void mbi_mamba1_forward(mbi_ctx *ctx, const mbi_layer *l, float *state) {
    const mbi_mamba1 *m = &l->u.mamba1;
    size_t block = (size_t)ctx->n_tokens * MBI_LANES;
    int width = mbi_mamba1_width(m);
    int n_dt = mbi_pad_int(m->dt_rank, MBI_LANES) / MBI_LANES;
    int n_bc = mbi_pad_int(m->d_state, MBI_LANES) / MBI_LANES;
    float *bcdt = ctx->scratch + (size_t)m->in_proj.n_panels * block;
    mbi_mamba1_job j;
    j.ctx = ctx;
    j.m = m;
    j.x = ctx->scratch;
    j.z = ctx->scratch + (size_t)width / MBI_LANES * block;
    j.dt = bcdt;
    j.B = bcdt + (size_t)n_dt * block;
    j.C = j.B + (size_t)n_bc * block;
    j.conv_state = state;
    j.h = state + (size_t)width * (size_t)(m->d_conv - 1);
    j.n_tasks = mbi_min_int(ctx->n_tasks, width / MBI_LANES);

    mbi_linear(ctx, &m->in_proj,
               mbi_norm_prepare(ctx, m->in_proj.type, l->norm, l->norm_eps), m->in_bias, 0, j.x);
    mbi_parallel_for(ctx->parallel, j.n_tasks, mbi_mamba1_conv_task, &j);
    mbi_linear(ctx, &m->x_proj, mbi_prepare(ctx, m->x_proj.type, j.x, m->d_inner), NULL, 0, bcdt);
    if (m->norm_bcdt) {
        int T = ctx->n_tokens;
        ctx->k->rmsnorm(j.dt, NULL, m->bcdt_eps, m->dt_rank, T, 0, T, j.dt);
        ctx->k->rmsnorm(j.B, NULL, m->bcdt_eps, m->d_state, T, 0, T, j.B);
        ctx->k->rmsnorm(j.C, NULL, m->bcdt_eps, m->d_state, T, 0, T, j.C);
    }
    j.dt_ready = mbi_prepare(ctx, m->dt_proj.type, j.dt, m->dt_rank);
    mbi_parallel_for(ctx->parallel, j.n_tasks, mbi_mamba1_scan_task, &j);
    mbi_linear(ctx, &m->out_proj, mbi_prepare(ctx, m->out_proj.type, j.x, m->d_inner),
               m->out_bias, 1, ctx->r);
}

/* ------------------------------------------------------------------------------------------------
 * @@layers   The table of kinds                                                          (private)
 * ---------------------------------------------------------------------------------------------- */
static const mbi_layer_ops mbi_layer_table[] = {
    {MAMBA_LAYER_MAMBA1, mbi_mamba1_bind, mbi_mamba1_describe, mbi_mamba1_state, mbi_no_floats,
     mbi_mamba1_scratch, mbi_mamba1_forward},
};

static const mbi_layer_ops *mbi_layer_ops_of(uint32_t kind) {
    size_t i;
    for (i = 0; i < sizeof mbi_layer_table / sizeof mbi_layer_table[0]; i++) {
        if ((uint32_t)mbi_layer_table[i].kind == kind) {
            return &mbi_layer_table[i];
        }
    }
    return NULL;
}

/* ------------------------------------------------------------------------------------------------
 * @@forward   A state, and tokens through the layers                                     (private)
 * ---------------------------------------------------------------------------------------------- */
struct mamba_state {
    const mamba_model *model;
    void *memory; /* owned allocation or NULL */
    size_t bytes;
    int n_tasks, chunk, time_chunk;
    uint64_t max_tokens; /* of attention layers; 0: the model has none */
    uint64_t position;
    size_t n_recurrent;
    float *recurrent;    /* all layers' states, in order */
    float *last;         /* one token's residual, blocked = plain */
    mbi_ctx ctx;         /* buffers for chunks of up to `chunk` tokens */
};

/* Takes pieces from a block of memory; with base NULL it only measures. */
typedef struct mbi_arena {
    unsigned char *base;
    uint64_t used;
    int overflow;
} mbi_arena;

static void *mbi_arena_take(mbi_arena *a, uint64_t n, uint64_t size) {
    uint64_t bytes;
    uint64_t at = a->used;
    if (!mbi_mul_ok(n, size, &bytes) || bytes > (uint64_t)1 << 62 ||
        !mbi_add_ok(a->used, mbi_pad(bytes, 64), &a->used)) {
        a->overflow = 1;
        return NULL;
    }
    return a->base ? a->base + at : NULL;
}

static size_t mbi_layer_state_floats(const mbi_layer *l, uint64_t max_tokens) {
    return l->ops->state_fixed(l) + l->ops->state_per_token(l) * (size_t)max_tokens;
}

/* Largest prepared activation of any product of the model, for T tokens. */
static size_t mbi_prepared_bytes(const mamba_model *m, int n_tokens) {
    size_t most = 0;
    int i;
    for (i = 0; i < m->n_tensors; i++) {
        const mbi_tensor *t = &m->tensors[i];
        if (t->layout == MBI_LAYOUT_PANELS) {
            size_t n = m->target->k.prepared_bytes((mamba_type)t->type, (int)t->cols, n_tokens);
            most = n > most ? n : most;
        }
    }
    return most;
}

static mamba_status mbi_state_options_of(const mamba_model *m, const mamba_state_options *opt,
                                         mamba_state *s, mamba_error *err) {
    mamba_state_options o;
    int i;
    memset(&o, 0, sizeof o);
    if (opt) {
        size_t n = opt->struct_size ? opt->struct_size : sizeof o;
        memcpy(&o, opt, mbi_min_size(n, sizeof o));
    }
    if (o.n_threads < 0) {
        return mbi_fail_value(err, MAMBA_ERR_ARG, "value out of range", "n_threads", 0,
                              o.n_threads, 0, 1 << 20);
    }
    if (o.prefill_chunk < 0 || o.prefill_chunk > 4096) {
        return mbi_fail_value(err, MAMBA_ERR_ARG, "value out of range", "prefill_chunk", 0,
                              o.prefill_chunk, 0, 4096);
    }
    if (o.time_chunk != 0 && (o.time_chunk < 64 || o.time_chunk > 4096)) {
        return mbi_fail_value(err, MAMBA_ERR_ARG, "value out of range", "time_chunk", 0,
                              o.time_chunk, 64, 4096);
    }
    if (o.max_tokens < 0 || o.max_tokens > (int64_t)1 << 31) {
        return mbi_fail_value(err, MAMBA_ERR_ARG, "value out of range", "max_tokens", 0,
                              o.max_tokens, 0, (int64_t)1 << 31);
    }
    memset(s, 0, sizeof *s);
    s->model = m;
    s->n_tasks = o.n_threads ? mbi_n_threads(o.n_threads, &m->parallel) : m->n_threads;
    s->chunk = o.prefill_chunk ? o.prefill_chunk : 256;
    s->time_chunk = o.time_chunk;
    for (i = 0; i < (int)m->config.n_layers; i++) {
        if (m->layers[i].ops->state_per_token(&m->layers[i]) != 0) {
            s->max_tokens = o.max_tokens ? (uint64_t)o.max_tokens : 4096;
        }
    }
    return MAMBA_OK;
}

/* Fills the pointers of s from the arena (or only measures). */
static void mbi_state_layout(mamba_state *s, mbi_arena *a) {
    const mamba_model *m = s->model;
    uint64_t T = (uint64_t)s->chunk;
    uint64_t width = mbi_pad(m->config.d_model, MBI_LANES);
    uint64_t scratch = 0;
    uint64_t recurrent = 0;
    mbi_ctx *c = &s->ctx;
    int i;
    for (i = 0; i < (int)m->config.n_layers; i++) {
        const mbi_layer *l = &m->layers[i];
        uint64_t n = l->ops->scratch(l, s->chunk);
        scratch = n > scratch ? n : scratch;
        recurrent += mbi_layer_state_floats(l, s->max_tokens);
    }
    mbi_arena_take(a, 1, sizeof *s);
    s->n_recurrent = (size_t)recurrent;
    s->recurrent = (float *)mbi_arena_take(a, recurrent, 4);
    s->last = (float *)mbi_arena_take(a, 2 * width, 4);
    c->r = (float *)mbi_arena_take(a, width * T, 4);
    c->u = (float *)mbi_arena_take(a, width * T, 4);
    c->prepared = (unsigned char *)mbi_arena_take(a, mbi_prepared_bytes(m, s->chunk), 1);
    c->task_bytes = (size_t)(MBI_GEMM_SCRATCH + mbi_pad(T * MBI_LANES * 4, 64));
    c->task_scratch = (unsigned char *)mbi_arena_take(a, (uint64_t)s->n_tasks, c->task_bytes);
    c->scratch = (float *)mbi_arena_take(a, scratch, 4);
    c->model = m;
    c->k = &m->target->k;
    c->parallel = m->parallel.run ? &m->parallel : NULL;
    c->n_tasks = s->n_tasks;
    c->time_chunk = s->time_chunk;
}

static void mbi_embed(mbi_ctx *c, const mamba_io *io, size_t start) {
    const mamba_model *m = c->model;
    size_t block = (size_t)c->n_tokens * MBI_LANES;
    size_t d_model = m->config.d_model;
    float scale = m->config.embedding_scale;
    size_t i;
    int t;
    for (t = 0; t < c->n_tokens; t++) {
        float *r = c->r + (size_t)t * MBI_LANES;
        if (io->tokens) {
            c->k->row(&m->embedding, io->tokens[start + (size_t)t], r, block);
        } else {
            const float *v = io->vectors + (start + (size_t)t) * d_model;
            for (i = 0; i < mbi_pad(d_model, MBI_LANES); i++) {
                r[i / MBI_LANES * block + i % MBI_LANES] = i < d_model ? v[i] : 0.0f;
            }
        }
        if (scale < 1.0f || scale > 1.0f) {
            for (i = 0; i < d_model; i++) {
                r[i / MBI_LANES * block + i % MBI_LANES] *= scale;
            }
        }
    }
}

/* Blocked x of T tokens to rows of d floats. */
static void mbi_unblock(const float *x, int n_tokens, size_t d, float *out) {
    size_t i;
    int t;
    for (t = 0; t < n_tokens; t++) {
        for (i = 0; i < d; i++) {
            out[(size_t)t * d + i] = x[i / MBI_LANES * (size_t)n_tokens * MBI_LANES +
                                       (size_t)t * MBI_LANES + i % MBI_LANES];
        }
    }
}

/* Final norm of the chunk in c->r, then the hidden states and logits that were asked for. */
static void mbi_output(mbi_ctx *c, float *hidden, float *logits) {
    const mamba_model *m = c->model;
    const void *x = mbi_norm_prepare(c, m->config.n_vocab ? m->head.type : MAMBA_F32, m->norm_f,
                                     m->config.norm_eps);
    if (hidden) {
        mbi_unblock(c->u, c->n_tokens, m->config.d_model, hidden);
    }
    if (logits) {
        mbi_gemm g;
        memset(&g, 0, sizeof g);
        g.w = &m->head;
        g.x = x;
        g.n_tokens = c->n_tokens;
        g.exact_rows = 1;
        g.y = logits;
        g.y_panel = MBI_LANES;
        g.y_token = m->config.n_vocab;
        mbi_matmul(c, &g);
        if (m->config.logit_scale < 1.0f || m->config.logit_scale > 1.0f) {
            size_t n = (size_t)c->n_tokens * m->config.n_vocab;
            size_t i;
            for (i = 0; i < n; i++) {
                logits[i] *= m->config.logit_scale;
            }
        }
    }
}

/* One chunk of at most s->chunk tokens from io, starting at `start`. */
static void mbi_forward(mamba_state *s, const mamba_io *io, size_t start, int n_tokens) {
    const mamba_model *m = s->model;
    mbi_ctx c = s->ctx;
    float *state = s->recurrent;
    int is_last = start + (size_t)n_tokens == io->n;
    int i;
    c.n_tokens = n_tokens;
    c.position = s->position;
    mbi_embed(&c, io, start);
    for (i = 0; i < (int)m->config.n_layers; i++) {
        const mbi_layer *l = &m->layers[i];
        l->ops->forward(&c, l, state);
        state += mbi_layer_state_floats(l, s->max_tokens);
    }
    s->position += (uint64_t)n_tokens;
    if (io->want_logits == MAMBA_WANT_ALL || io->want_hidden == MAMBA_WANT_ALL) {
        mbi_output(&c,
                   io->want_hidden == MAMBA_WANT_ALL ? io->hidden + start * m->config.d_model
                                                     : NULL,
                   io->want_logits == MAMBA_WANT_ALL ? io->logits + start * m->config.n_vocab
                                                     : NULL);
    }
    if (is_last && (io->want_logits == MAMBA_WANT_LAST || io->want_hidden == MAMBA_WANT_LAST)) {
        size_t width = mbi_pad(m->config.d_model, MBI_LANES);
        size_t b;
        for (b = 0; b < width / MBI_LANES; b++) {
            memcpy(s->last + b * MBI_LANES,
                   c.r + (b * (size_t)n_tokens + (size_t)n_tokens - 1) * MBI_LANES,
                   MBI_LANES * sizeof(float));
        }
        c.r = s->last;
        c.u = s->last + width;
        c.n_tokens = 1;
        mbi_output(&c, io->want_hidden == MAMBA_WANT_LAST ? io->hidden : NULL,
                   io->want_logits == MAMBA_WANT_LAST ? io->logits : NULL);
    }
}

/* Room for n rows of `width` floats, in the want asked for. */
static mamba_status mbi_check_output(mamba_want want, const float *out, size_t n_out, size_t n,
                                     size_t width, const char *name, mamba_error *err) {
    uint64_t need = want == MAMBA_WANT_ALL ? n : 1;
    if (want == MAMBA_WANT_NONE) {
        return MAMBA_OK;
    }
    if (want != MAMBA_WANT_LAST && want != MAMBA_WANT_ALL) {
        return mbi_fail_value(err, MAMBA_ERR_ARG, "not a mamba_want", name, 0, want, 0, 2);
    }
    if (want == MAMBA_WANT_LAST && n == 0) {
        return mbi_fail(err, MAMBA_ERR_ARG, "no token, so there is no last one", name, 0);
    }
    if (width == 0) {
        return mbi_fail(err, MAMBA_ERR_ARG, "the model has no vocabulary: ask for hidden states",
                        name, 0);
    }
    if (!mbi_mul_ok(need, width, &need) || need > n_out || (!out && need != 0)) {
        return mbi_fail_value(err, MAMBA_ERR_RANGE, "output too small", name, 0,
                              mbi_clamp_i64(out ? n_out : 0), mbi_clamp_i64(need), INT64_MAX);
    }
    return MAMBA_OK;
}

static mamba_status mbi_check_io(const mamba_state *s, const mamba_io *io, mamba_error *err) {
    const mbi_config_record *c = &s->model->config;
    mamba_status status;
    size_t i;
    if (io->n != 0 && (io->tokens != NULL) == (io->vectors != NULL)) {
        return mbi_fail(err, MAMBA_ERR_ARG, "give either tokens or vectors", "tokens", 0);
    }
    for (i = 0; io->tokens && i < io->n; i++) {
        if (io->tokens[i] < 0 || (uint32_t)io->tokens[i] >= c->n_vocab) {
            return mbi_fail_value(err, MAMBA_ERR_ARG, "token id out of range", "tokens", i,
                                  io->tokens[i], 0, (int64_t)c->n_vocab - 1);
        }
    }
    if (s->max_tokens != 0 && io->n > s->max_tokens - s->position) {
        return mbi_fail_value(err, MAMBA_ERR_RANGE, "attention cache is full (max_tokens)",
                              "tokens", 0, mbi_clamp_i64(io->n), 0,
                              mbi_clamp_i64(s->max_tokens - s->position));
    }
    if ((status = mbi_check_output(io->want_logits, io->logits, io->n_logits, io->n, c->n_vocab,
                                   "logits", err)) ||
        (status = mbi_check_output(io->want_hidden, io->hidden, io->n_hidden, io->n, c->d_model,
                                   "hidden", err))) {
        return status;
    }
    return MAMBA_OK;
}

/* ------------------------------------------------------------------------------------------------
 * @@stateio   Snapshots of a state                                                       (private)
 *
 * Little-endian, 64 bytes of header, then floats:
 *    0  8  magic "MAMBAST\n"        8  4  version = 1        12  4  0x01020304
 *   16  8  total bytes             24  8  fingerprint of the model file
 *   32  8  position                40  8  number of floats   48  8  reserved, 0
 *   56  8  XXH64 (seed 0) of bytes [0, 56) followed by [64, total)
 *   64     per layer: the fixed part of its state, then the per-token part of the tokens fed
 * ---------------------------------------------------------------------------------------------- */
enum { MBI_SNAPSHOT_HEADER = 64, MBI_SNAPSHOT_VERSION = 1 };
#define MBI_SNAPSHOT_MAGIC "MAMBAST\n"

static size_t mbi_layer_used_floats(const mbi_layer *l, uint64_t position) {
    return l->ops->state_fixed(l) + l->ops->state_per_token(l) * (size_t)position;
}

static size_t mbi_used_floats(const mamba_model *m, uint64_t position) {
    size_t n = 0;
    int i;
    for (i = 0; i < (int)m->config.n_layers; i++) {
        n += mbi_layer_used_floats(&m->layers[i], position);
    }
    return n;
}

/* Copies the used floats of every layer from one state to another. */
static void mbi_copy_used(const mamba_model *m, uint64_t position, float *dst,
                          uint64_t dst_tokens, const float *src, uint64_t src_tokens) {
    int i;
    for (i = 0; i < (int)m->config.n_layers; i++) {
        const mbi_layer *l = &m->layers[i];
        memcpy(dst, src, mbi_layer_used_floats(l, position) * sizeof(float));
        dst += mbi_layer_state_floats(l, dst_tokens);
        src += mbi_layer_state_floats(l, src_tokens);
    }
}

static uint64_t mbi_snapshot_hash(const unsigned char *p, size_t bytes) {
    mbi_hash h;
    mbi_hash_init(&h);
    mbi_hash_add(&h, p, 56);
    mbi_hash_add(&h, p + MBI_SNAPSHOT_HEADER, bytes - MBI_SNAPSHOT_HEADER);
    return mbi_hash_end(&h);
}

static void mbi_snapshot_write(const mamba_state *s, unsigned char *out, size_t bytes) {
    const uint32_t words[2] = {MBI_SNAPSHOT_VERSION, MBI_BYTE_ORDER};
    const uint64_t longs[5] = {bytes, s->model->fingerprint, s->position,
                               (bytes - MBI_SNAPSHOT_HEADER) / sizeof(float), 0};
    unsigned char *p = out + MBI_SNAPSHOT_HEADER;
    const float *src = s->recurrent;
    uint64_t hash;
    int i;
    memcpy(out, MBI_SNAPSHOT_MAGIC, 8);
    memcpy(out + 8, words, sizeof words);
    memcpy(out + 16, longs, sizeof longs);
    for (i = 0; i < (int)s->model->config.n_layers; i++) {
        const mbi_layer *l = &s->model->layers[i];
        size_t used = mbi_layer_used_floats(l, s->position) * sizeof(float);
        memcpy(p, src, used);
        p += used;
        src += mbi_layer_state_floats(l, s->max_tokens);
    }
    hash = mbi_snapshot_hash(out, bytes);
    memcpy(out + 56, &hash, 8);
}

/* The floats behind the header of a checked snapshot, for s->position tokens. */
static void mbi_snapshot_read(mamba_state *s, const unsigned char *p) {
    float *dst = s->recurrent;
    int i;
    for (i = 0; i < (int)s->model->config.n_layers; i++) {
        const mbi_layer *l = &s->model->layers[i];
        size_t used = mbi_layer_used_floats(l, s->position) * sizeof(float);
        memcpy(dst, p, used);
        p += used;
        dst += mbi_layer_state_floats(l, s->max_tokens);
    }
}

static mamba_status mbi_snapshot_check(const mamba_state *s, const unsigned char *p, size_t bytes,
                                       mamba_error *err) {
    uint64_t position;
    uint64_t n;
    size_t i;
    if (bytes < MBI_SNAPSHOT_HEADER) {
        return mbi_fail_value(err, MAMBA_ERR_FORMAT, "snapshot too short for a header", "bytes", 0,
                              mbi_clamp_i64(bytes), MBI_SNAPSHOT_HEADER, INT64_MAX);
    }
    if (memcmp(p, MBI_SNAPSHOT_MAGIC, 8) != 0) {
        return mbi_fail(err, MAMBA_ERR_FORMAT, "not a state snapshot", "magic", 0);
    }
    if (mbi_load_u32(p + 12) != MBI_BYTE_ORDER) {
        return mbi_fail(err, MAMBA_ERR_FORMAT, "snapshot has another byte order", "byte order",
                        12);
    }
    if (mbi_load_u32(p + 8) != MBI_SNAPSHOT_VERSION) {
        return mbi_fail_value(err, MAMBA_ERR_VERSION, "snapshot version not known to this build",
                              "version", 8, mbi_load_u32(p + 8), 1, MBI_SNAPSHOT_VERSION);
    }
    if (mbi_load_u64(p + 16) != bytes) {
        return mbi_fail_value(err, MAMBA_ERR_FORMAT, "snapshot is truncated or has extra bytes",
                              "total bytes", 16, mbi_clamp_i64(bytes),
                              mbi_clamp_i64(mbi_load_u64(p + 16)),
                              mbi_clamp_i64(mbi_load_u64(p + 16)));
    }
    if (mbi_load_u64(p + 24) != s->model->fingerprint) {
        return mbi_fail(err, MAMBA_ERR_CHECK, "snapshot belongs to another model file",
                        "fingerprint", 24);
    }
    if (mbi_snapshot_hash(p, bytes) != mbi_load_u64(p + 56)) {
        return mbi_fail(err, MAMBA_ERR_CHECK, "snapshot does not match its checksum", "hash", 56);
    }
    position = mbi_load_u64(p + 32);
    if (position > (uint64_t)1 << 62) {
        return mbi_fail_value(err, MAMBA_ERR_FORMAT, "value out of range", "position", 32,
                              mbi_clamp_i64(position), 0, (int64_t)1 << 62);
    }
    if (s->max_tokens != 0 && position > s->max_tokens) {
        return mbi_fail_value(err, MAMBA_ERR_RANGE, "more tokens than the attention cache holds",
                              "position", 32, mbi_clamp_i64(position), 0,
                              mbi_clamp_i64(s->max_tokens));
    }
    n = mbi_used_floats(s->model, position);
    if (mbi_load_u64(p + 40) != n || bytes - MBI_SNAPSHOT_HEADER != n * sizeof(float)) {
        return mbi_fail_value(err, MAMBA_ERR_FORMAT, "number of floats", "floats", 40,
                              mbi_clamp_i64(mbi_load_u64(p + 40)), mbi_clamp_i64(n),
                              mbi_clamp_i64(n));
    }
    if (mbi_load_u64(p + 48) != 0) {
        return mbi_fail(err, MAMBA_ERR_FORMAT, "reserved bytes must be zero", "reserved", 48);
    }
    for (i = 0; i < n; i++) {
        uint64_t at = MBI_SNAPSHOT_HEADER + (uint64_t)i * sizeof(float);
        if ((mbi_load_u32(p + at) & 0x7f800000u) == 0x7f800000u) {
            return mbi_fail(err, MAMBA_ERR_NONFINITE, "state value is not finite", "state", at);
        }
    }
    return MAMBA_OK;
}

/* ------------------------------------------------------------------------------------------------
 * @@checks   Checksum, finite scan, self-test                                            (private)
 * ---------------------------------------------------------------------------------------------- */
static int mbi_f16_finite(const unsigned char *p) {
    return (p[1] & 0x7c) != 0x7c;
}

/* Offset of the first non-finite number of a tensor, or its end. */
static uint64_t mbi_first_nonfinite(const unsigned char *p, const mbi_tensor *t) {
    uint64_t i;
    uint64_t block = t->type == MAMBA_Q8 ? 1024 + 64 : 512 + 64;
    switch (t->type) {
    case MAMBA_F32:
        for (i = 0; i < t->bytes && (mbi_load_u32(p + i) & 0x7f800000u) != 0x7f800000u; i += 4) {
        }
        return i;
    case MAMBA_BF16:
        for (i = 0; i < t->bytes && ((p[i] & 0x80) != 0x80 || (p[i + 1] & 0x7f) != 0x7f);
             i += 2) {
        }
        return i;
    case MAMBA_F16:
        for (i = 0; i < t->bytes && mbi_f16_finite(p + i); i += 2) {
        }
        return i;
    default:
        for (i = block - 64; i < t->bytes; i += i % block == block - 2 ? block - 62 : 2) {
            if (!mbi_f16_finite(p + i)) {
                return i;
            }
        }
        return t->bytes;
    }
}

static mamba_status mbi_check_finite(const mamba_model *m, mamba_error *err) {
    int i;
    for (i = 0; i < m->n_tensors; i++) {
        const mbi_tensor *t = &m->tensors[i];
        uint64_t at = mbi_first_nonfinite(m->bytes.data + t->offset, t);
        if (at < t->bytes) {
            return mbi_fail(err, MAMBA_ERR_NONFINITE, "weight is not finite", t->name,
                            t->offset + at);
        }
    }
    return MAMBA_OK;
}

/* Sizes and ids of the self-test section; NULL and a status when absent or wrong. */
static const unsigned char *mbi_selftest(const mamba_model *m, uint32_t *n_tokens,
                                         uint32_t *n_values, mamba_error *err,
                                         mamba_status *status) {
    const mbi_section *s = mbi_find_section(m, "selftest", 8);
    const unsigned char *p;
    uint32_t i;
    if (!s) {
        *status = mbi_fail(err, MAMBA_ERR_UNSUPPORTED, "the file has no self-test", "selftest", 0);
        return NULL;
    }
    p = m->bytes.data + s->offset;
    *n_tokens = s->bytes >= 16 ? mbi_load_u32(p) : 0;
    *n_values = s->bytes >= 16 ? mbi_load_u32(p + 4) : 0;
    if (*n_tokens < 1 || *n_tokens > 64 || *n_values < 1 || *n_values > 4096 ||
        s->bytes != 16 + 4 * (uint64_t)*n_tokens + 8 * (uint64_t)*n_values ||
        !mbi_positive(mbi_bits_f32(mbi_load_u32(p + 8)))) {
        *status = mbi_fail(err, MAMBA_ERR_FORMAT, "sizes disagree", "selftest", s->offset);
        return NULL;
    }
    for (i = 0; i < *n_tokens + *n_values; i++) {
        if (mbi_load_u32(p + 16 + 4 * (size_t)i) >= m->config.n_vocab) {
            *status = mbi_fail_value(err, MAMBA_ERR_FORMAT, "id out of range", "selftest",
                                     s->offset + 16 + 4 * (uint64_t)i,
                                     mbi_load_u32(p + 16 + 4 * (size_t)i), 0,
                                     (int64_t)m->config.n_vocab - 1);
            return NULL;
        }
    }
    return p;
}

static mamba_status mbi_run_selftest(const mamba_model *m, mamba_error *err) {
    mamba_status status = MAMBA_OK;
    uint32_t n_tokens;
    uint32_t n_values;
    uint32_t i;
    const unsigned char *p = mbi_selftest(m, &n_tokens, &n_values, err, &status);
    size_t bytes = (size_t)m->config.n_vocab * sizeof(float);
    mamba_state_options opt;
    mamba_state *s = NULL;
    float *logits;
    int32_t tokens[64];
    if (!p) {
        return status;
    }
    logits = (float *)m->memory.alloc(m->memory.user, bytes, 64);
    if (!logits) {
        return mbi_fail(err, MAMBA_ERR_MEMORY, "out of memory", "selftest", 0);
    }
    memset(&opt, 0, sizeof opt);
    opt.prefill_chunk = 64;
    memcpy(tokens, p + 16, (size_t)n_tokens * 4);
    status = mamba_state_create(m, &opt, &s, err);
    if (status == MAMBA_OK) {
        status = mamba_prefill(s, tokens, n_tokens, logits, m->config.n_vocab, err);
    }
    for (i = 0; i < n_values && status == MAMBA_OK; i++) {
        size_t at = 16 + 4 * ((size_t)n_tokens + i);
        float got = logits[mbi_load_u32(p + at)];
        float expected = mbi_bits_f32(mbi_load_u32(p + at + 4 * (size_t)n_values));
        if (!(fabsf(got - expected) <= mbi_bits_f32(mbi_load_u32(p + 8)))) {
            status = mbi_fail_value(err, MAMBA_ERR_CHECK, "logit differs from the self-test's",
                                    "selftest", at, mbi_load_u32(p + at), 0, 0);
            if (err) {
                err->has_values = 0;
            }
        }
    }
    mamba_state_free(s);
    m->memory.free(m->memory.user, logits, bytes);
    return status;
}

/* ------------------------------------------------------------------------------------------------
 * @@api   Public functions: check arguments, call inward                                 (private)
 * ---------------------------------------------------------------------------------------------- */
MAMBA_API const char *mamba_version(void) {
    return MAMBA_VERSION_TEXT;
}

MAMBA_API const char *mamba_status_text(mamba_status status) {
    switch (status) {
    case MAMBA_OK: return "ok";
    case MAMBA_ERR_ARG: return "bad argument";
    case MAMBA_ERR_MEMORY: return "out of memory";
    case MAMBA_ERR_IO: return "input/output error";
    case MAMBA_ERR_FORMAT: return "malformed data";
    case MAMBA_ERR_VERSION: return "unknown version";
    case MAMBA_ERR_UNSUPPORTED: return "not supported";
    case MAMBA_ERR_RANGE: return "capacity too small";
    case MAMBA_ERR_NONFINITE: return "not a finite number";
    case MAMBA_ERR_CHECK: return "check failed";
    }
    return "unknown status";
}

/* A bounded writer for messages: counts what does not fit. */
typedef struct mbi_writer {
    char *out;
    size_t cap, n;
} mbi_writer;

static void mbi_write_text(mbi_writer *w, const char *text) {
    for (; *text; text++, w->n++) {
        if (w->n + 1 < w->cap) {
            w->out[w->n] = *text;
        }
    }
}

static void mbi_write_int(mbi_writer *w, int64_t v) {
    char digits[24];
    int i = 23;
    uint64_t u = v < 0 ? 0u - (uint64_t)v : (uint64_t)v;
    digits[i] = 0;
    do {
        digits[--i] = (char)('0' + u % 10);
        u /= 10;
    } while (u != 0);
    if (v < 0) {
        digits[--i] = '-';
    }
    mbi_write_text(w, digits + i);
}

MAMBA_API size_t mamba_error_text(const mamba_error *err, char *out, size_t cap) {
    mbi_writer w;
    w.out = out;
    w.cap = cap;
    w.n = 0;
    if (err->file[0]) {
        mbi_write_text(&w, err->file);
        mbi_write_text(&w, ": ");
    }
    if (err->name[0]) {
        mbi_write_text(&w, err->name);
        if (err->offset) {
            mbi_write_text(&w, " at byte ");
            mbi_write_int(&w, mbi_clamp_i64(err->offset));
        }
        mbi_write_text(&w, ": ");
    }
    mbi_write_text(&w, err->what && err->what[0] ? err->what : mamba_status_text(err->status));
    if (err->has_values) {
        mbi_write_text(&w, " (found ");
        mbi_write_int(&w, err->found);
        mbi_write_text(&w, ", allowed ");
        mbi_write_int(&w, err->allowed_min);
        if (err->allowed_max == INT64_MAX) {
            mbi_write_text(&w, " or more");
        } else if (err->allowed_max != err->allowed_min) {
            mbi_write_text(&w, "..");
            mbi_write_int(&w, err->allowed_max);
        }
        mbi_write_text(&w, ")");
    }
    if (cap > 0) {
        out[mbi_min_size(w.n, cap - 1)] = 0;
    }
    return w.n;
}

MAMBA_API const mamba_target *mamba_target_at(int i) {
    return mbi_target_at(i);
}

MAMBA_API const char *mamba_target_name(const mamba_target *target) {
    return target->name;
}

MAMBA_API int mamba_target_usable(const mamba_target *target) {
    return mbi_target_usable(target, mbi_cpu_features());
}

MAMBA_API const mamba_target *mamba_target_best(void) {
    uint32_t features = mbi_cpu_features();
    const mamba_target *best = mbi_target_at(0);
    int i;
    for (i = 1; mbi_target_at(i); i++) {
        if (mbi_target_usable(mbi_target_at(i), features)) {
            best = mbi_target_at(i);
        }
    }
    return best;
}

MAMBA_API const mamba_target *mamba_target_find(const char *name, size_t n_name) {
    int i;
    for (i = 0; mbi_target_at(i); i++) {
        if (strlen(mbi_target_at(i)->name) == n_name &&
            memcmp(mbi_target_at(i)->name, name, n_name) == 0) {
            return mbi_target_at(i);
        }
    }
    return NULL;
}

/* The model around bytes that were obtained; takes them over, also on failure. */
static mamba_status mbi_open_bytes(mbi_bytes *bytes, const mamba_config *cfg, const char *file,
                                   mamba_model **out, mamba_error *err) {
    mamba_model *m = (mamba_model *)cfg->memory.alloc(cfg->memory.user, sizeof *m, 64);
    mamba_status status;
    const mbi_section *tok;
    if (!m) {
        mbi_bytes_free(bytes);
        return mbi_fail(err, MAMBA_ERR_MEMORY, "out of memory", "model", 0);
    }
    memset(m, 0, sizeof *m);
    m->bytes = *bytes;
    m->memory = cfg->memory;
    m->parallel = cfg->parallel;
    m->log = cfg->log;
    m->n_threads = mbi_n_threads(cfg->n_threads, &cfg->parallel);
    m->target = cfg->target;
    memcpy(m->file, file, sizeof m->file);
    if ((status = mbi_check_header(m, err)) == MAMBA_OK &&
        (status = mbi_check_sections(m, err)) == MAMBA_OK &&
        (status = mbi_check_config(m, err)) == MAMBA_OK &&
        (status = mbi_check_tensors(m, err)) == MAMBA_OK) {
        status = mbi_bind_all(m, err);
    }
    if (status == MAMBA_OK && (tok = mbi_find_section(m, "tokenizer", 9)) != NULL) {
        m->tokenizer = m->bytes.data + tok->offset;
        m->tokenizer_bytes = (size_t)tok->bytes;
    }
    if (status == MAMBA_OK && cfg->check) {
        status = mamba_model_check(m, cfg->check, err);
    }
    if (status != MAMBA_OK) {
        mamba_close(m);
        return status;
    }
    *out = m;
    return MAMBA_OK;
}

/* Defaults filled in, target usable; the file name goes into err for messages. */
static mamba_status mbi_open_config(const mamba_config *cfg, mamba_config *c, mamba_model **model,
                                    mamba_error *err) {
    mbi_error_clear(err);
    if (!model) {
        return mbi_fail(err, MAMBA_ERR_ARG, "must not be NULL", "model", 0);
    }
    *model = NULL;
    memset(c, 0, sizeof *c);
    if (cfg) {
        size_t n = cfg->struct_size ? cfg->struct_size : sizeof *c;
        memcpy(c, cfg, mbi_min_size(n, sizeof *c));
    }
    if (c->check & ~MAMBA_CHECK_ALL) {
        return mbi_fail_value(err, MAMBA_ERR_ARG, "unknown check", "check", 0, c->check, 0,
                              MAMBA_CHECK_ALL);
    }
    if (c->n_threads < 0) {
        return mbi_fail_value(err, MAMBA_ERR_ARG, "value out of range", "n_threads", 0,
                              c->n_threads, 0, 1 << 20);
    }
    c->memory = mbi_memory_or_default(&c->memory);
    if (!c->target) {
        c->target = mamba_target_best();
    } else if (!mamba_target_usable(c->target)) {
        return mbi_fail(err, MAMBA_ERR_UNSUPPORTED, "this machine can't run the target",
                        c->target->name, 0);
    }
    return MAMBA_OK;
}

/* The end of the path, for messages. */
static void mbi_error_file(mamba_error *err, char file[192], const char *path, size_t n) {
    size_t skip = n > 191 ? n - 191 : 0;
    memset(file, 0, 192);
    mbi_copy_name(file, 192, path + skip, n - skip);
    if (err) {
        memcpy(err->file, file, 192);
    }
}

#if defined(MAMBA_NO_STDIO)
MAMBA_API mamba_status mamba_open(const char *path, size_t n_path, const mamba_config *cfg,
                                  mamba_model **model, mamba_error *err) {
    (void)path;
    (void)n_path;
    (void)cfg;
    mbi_error_clear(err);
    if (model) {
        *model = NULL;
    }
    return mbi_fail(err, MAMBA_ERR_UNSUPPORTED, "compiled with MAMBA_NO_STDIO", "path", 0);
}
#else
MAMBA_API mamba_status mamba_open(const char *path, size_t n_path, const mamba_config *cfg,
                                  mamba_model **model, mamba_error *err) {
    char zero_terminated[4096];
    char file[192];
    mbi_bytes bytes;
    mamba_config c;
    mamba_status status = mbi_open_config(cfg, &c, model, err);
    if (status) {
        return status;
    }
    if (!path || n_path == 0 || n_path >= sizeof zero_terminated ||
        memchr(path, 0, n_path) != NULL) {
        return mbi_fail(err, MAMBA_ERR_ARG, "path must have 1..4095 bytes and no NUL", "path", 0);
    }
    memcpy(zero_terminated, path, n_path);
    zero_terminated[n_path] = 0;
    mbi_error_file(err, file, path, n_path);
    memset(&bytes, 0, sizeof bytes);
    status = mbi_bytes_from_path(zero_terminated, (int)c.copy, &c.memory, &bytes, err);
    if (status == MAMBA_OK) {
        status = mbi_open_bytes(&bytes, &c, file, model, err);
    }
    return status;
}
#endif

MAMBA_API mamba_status mamba_open_memory(const void *data, uint64_t bytes, const mamba_config *cfg,
                                         mamba_model **model, mamba_error *err) {
    char file[192];
    mbi_bytes b;
    mamba_config c;
    mamba_status status = mbi_open_config(cfg, &c, model, err);
    if (status) {
        return status;
    }
    mbi_error_file(err, file, "(memory)", 8);
    memset(&b, 0, sizeof b);
    if (!data || bytes < MBI_HEADER_BYTES) {
        return mbi_too_short(err, data ? bytes : 0);
    }
    if (((uintptr_t)data & 63u) != 0 || c.copy) {
        status = mbi_bytes_alloc(&b, bytes, &c.memory, err);
        if (status) {
            return status;
        }
        memcpy((void *)(uintptr_t)b.data, data, (size_t)bytes);
    } else {
        b.data = (const unsigned char *)data;
        b.bytes = bytes;
    }
    return mbi_open_bytes(&b, &c, file, model, err);
}

MAMBA_API mamba_status mamba_open_reader(const mamba_reader *reader, const mamba_config *cfg,
                                         mamba_model **model, mamba_error *err) {
    enum { PIECE = 1 << 24 };
    char file[192];
    mbi_bytes b;
    mamba_config c;
    uint64_t at;
    mamba_status status = mbi_open_config(cfg, &c, model, err);
    if (status) {
        return status;
    }
    if (!reader || !reader->read) {
        return mbi_fail(err, MAMBA_ERR_ARG, "must not be NULL", "reader", 0);
    }
    mbi_error_file(err, file, "(reader)", 8);
    if (reader->total_bytes < MBI_HEADER_BYTES) {
        return mbi_too_short(err, reader->total_bytes);
    }
    memset(&b, 0, sizeof b);
    status = mbi_bytes_alloc(&b, reader->total_bytes, &c.memory, err);
    if (status) {
        return status;
    }
    for (at = 0; at < b.bytes; at += PIECE) {
        size_t n = b.bytes - at < (uint64_t)PIECE ? (size_t)(b.bytes - at) : (size_t)PIECE;
        if (reader->read(reader->user, at, (unsigned char *)(uintptr_t)b.data + at, n) != 0) {
            mbi_bytes_free(&b);
            return mbi_fail(err, MAMBA_ERR_IO, "the reader failed", "reader", at);
        }
    }
    return mbi_open_bytes(&b, &c, file, model, err);
}

MAMBA_API void mamba_close(mamba_model *model) {
    if (model) {
        mamba_memory memory = model->memory;
        if (model->layers) {
            memory.free(memory.user, model->layers,
                        (size_t)model->config.n_layers * sizeof(mbi_layer));
        }
        mbi_bytes_free(&model->bytes);
        memory.free(memory.user, model, sizeof *model);
    }
}

MAMBA_API mamba_status mamba_model_check(const mamba_model *model, uint32_t what,
                                         mamba_error *err) {
    mamba_status status = MAMBA_OK;
    mbi_error_clear(err);
    if (err) {
        memcpy(err->file, model->file, sizeof err->file);
    }
    if ((what & MAMBA_CHECK_CHECKSUM) &&
        mbi_hash_bytes(model->bytes.data + model->meta_bytes,
                       (size_t)(model->bytes.bytes - model->meta_bytes)) != model->data_hash) {
        return mbi_fail(err, MAMBA_ERR_CHECK, "weights do not match their checksum", "data_hash",
                        40);
    }
    if (what & MAMBA_CHECK_FINITE) {
        status = mbi_check_finite(model, err);
    }
    if (status == MAMBA_OK && (what & MAMBA_CHECK_SELFTEST)) {
        status = mbi_run_selftest(model, err);
    }
    return status;
}

MAMBA_API void mamba_model_info(const mamba_model *model, mamba_info *info) {
    static const char names[5][8] = {"f32", "f16", "bf16", "q8", "q4"};
    const mbi_config_record *c = &model->config;
    int i;
    memset(info, 0, sizeof *info);
    info->d_model = (int32_t)c->d_model;
    info->n_layers = (int32_t)c->n_layers;
    info->n_vocab = (int32_t)c->n_vocab;
    info->n_vocab_used = (int32_t)c->n_vocab_used;
    info->tied = (int32_t)(c->flags & MBI_MODEL_TIED);
    for (i = 0; i < model->n_tensors; i++) {
        const mbi_tensor *t = &model->tensors[i];
        info->n_parameters += (uint64_t)t->rows * t->cols * t->count;
        info->weight_bytes += t->bytes;
    }
    info->file_bytes = model->bytes.bytes;
    info->state_bytes = (uint64_t)mbi_used_floats(model, 0) * sizeof(float);
    info->fingerprint = model->fingerprint;
    info->target = model->target->name;
    memcpy(info->architecture, c->architecture, sizeof info->architecture);
    memcpy(info->weight_type, names[c->main_type], 8);
}

MAMBA_API mamba_status mamba_model_layer(const mamba_model *model, int i, mamba_layer_info *info) {
    memset(info, 0, sizeof *info);
    if (i < 0 || i >= (int)model->config.n_layers) {
        return MAMBA_ERR_ARG;
    }
    info->kind = model->layers[i].ops->kind;
    model->layers[i].ops->describe(&model->layers[i], info);
    return MAMBA_OK;
}

MAMBA_API mamba_status mamba_model_tensor(const mamba_model *model, int i,
                                          mamba_tensor_info *info) {
    memset(info, 0, sizeof *info);
    if (i < 0 || i >= model->n_tensors) {
        return MAMBA_ERR_ARG;
    }
    memcpy(info->name, model->tensors[i].name, sizeof info->name);
    info->type = (mamba_type)model->tensors[i].type;
    info->rows = model->tensors[i].rows;
    info->cols = model->tensors[i].cols;
    info->offset = model->tensors[i].offset;
    info->bytes = model->tensors[i].bytes;
    return MAMBA_OK;
}

MAMBA_API const void *mamba_model_section(const mamba_model *model, const char *name,
                                          size_t n_name, uint64_t *bytes) {
    const mbi_section *s = mbi_find_section(model, name, n_name);
    *bytes = s ? s->bytes : 0;
    return s ? model->bytes.data + s->offset : NULL;
}

MAMBA_API const mamba_tokenizer *mamba_model_tokenizer(const mamba_model *model) {
    return model->tokenizer ? (const mamba_tokenizer *)(const void *)model : NULL;
}

/* Bytes of a state with these options; s gets the options. */
static mamba_status mbi_state_measure(const mamba_model *model, const mamba_state_options *opt,
                                      mamba_state *s, size_t *bytes, mamba_error *err) {
    mbi_arena a;
    mamba_status status = mbi_state_options_of(model, opt, s, err);
    if (status) {
        return status;
    }
    memset(&a, 0, sizeof a);
    mbi_state_layout(s, &a);
    if (a.overflow || a.used > SIZE_MAX / 2) {
        return mbi_fail(err, MAMBA_ERR_MEMORY, "state too large for this build", "state", 0);
    }
    *bytes = (size_t)a.used;
    return MAMBA_OK;
}

MAMBA_API mamba_status mamba_state_bytes(const mamba_model *model, const mamba_state_options *opt,
                                         size_t *bytes, mamba_error *err) {
    mamba_state s;
    mbi_error_clear(err);
    *bytes = 0;
    return mbi_state_measure(model, opt, &s, bytes, err);
}

MAMBA_API mamba_status mamba_state_init(const mamba_model *model, const mamba_state_options *opt,
                                        void *memory, size_t bytes, mamba_state **state,
                                        mamba_error *err) {
    mamba_state s;
    mbi_arena a;
    size_t need;
    mamba_status status;
    mbi_error_clear(err);
    *state = NULL;
    status = mbi_state_measure(model, opt, &s, &need, err);
    if (status) {
        return status;
    }
    if (!memory || ((uintptr_t)memory & 63u) != 0) {
        return mbi_fail(err, MAMBA_ERR_ARG, "must be aligned to 64 bytes", "memory", 0);
    }
    if (bytes < need) {
        return mbi_fail_value(err, MAMBA_ERR_RANGE, "memory too small", "memory", 0,
                              mbi_clamp_i64(bytes), mbi_clamp_i64(need), INT64_MAX);
    }
    memset(&a, 0, sizeof a);
    a.base = (unsigned char *)memory;
    mbi_state_layout(&s, &a);
    s.bytes = need;
    memset(memory, 0, need);
    memcpy(memory, &s, sizeof s);
    *state = (mamba_state *)memory;
    return MAMBA_OK;
}

MAMBA_API mamba_status mamba_state_create(const mamba_model *model, const mamba_state_options *opt,
                                          mamba_state **state, mamba_error *err) {
    size_t bytes;
    void *memory;
    mamba_status status = mamba_state_bytes(model, opt, &bytes, err);
    *state = NULL;
    if (status) {
        return status;
    }
    memory = model->memory.alloc(model->memory.user, bytes, 64);
    if (!memory) {
        return mbi_fail(err, MAMBA_ERR_MEMORY, "out of memory", "state", 0);
    }
    status = mamba_state_init(model, opt, memory, bytes, state, err);
    if (status) {
        model->memory.free(model->memory.user, memory, bytes);
    } else {
        (*state)->memory = memory;
    }
    return status;
}

MAMBA_API void mamba_state_free(mamba_state *state) {
    if (state && state->memory) {
        const mamba_memory *memory = &state->model->memory;
        memory->free(memory->user, state->memory, state->bytes);
    }
}

MAMBA_API void mamba_state_reset(mamba_state *state) {
    memset(state->recurrent, 0, state->n_recurrent * sizeof(float));
    state->position = 0;
}

MAMBA_API mamba_status mamba_state_copy(mamba_state *dst, const mamba_state *src,
                                        mamba_error *err) {
    mbi_error_clear(err);
    if (dst->model->fingerprint != src->model->fingerprint) {
        return mbi_fail(err, MAMBA_ERR_ARG, "states of different models", "src", 0);
    }
    if (dst == src) {
        return MAMBA_OK;
    }
    if (dst->max_tokens != 0 && src->position > dst->max_tokens) {
        return mbi_fail_value(err, MAMBA_ERR_RANGE, "more tokens than the attention cache holds",
                              "src", 0, mbi_clamp_i64(src->position), 0,
                              mbi_clamp_i64(dst->max_tokens));
    }
    mbi_copy_used(dst->model, src->position, dst->recurrent, dst->max_tokens, src->recurrent,
                  src->max_tokens);
    dst->position = src->position;
    return MAMBA_OK;
}

MAMBA_API uint64_t mamba_state_position(const mamba_state *state) {
    return state->position;
}

MAMBA_API size_t mamba_state_save_bytes(const mamba_state *state) {
    return MBI_SNAPSHOT_HEADER + mbi_used_floats(state->model, state->position) * sizeof(float);
}

MAMBA_API mamba_status mamba_state_save(const mamba_state *state, void *out, size_t cap,
                                        size_t *written, mamba_error *err) {
    size_t need = mamba_state_save_bytes(state);
    mbi_error_clear(err);
    if (written) {
        *written = 0;
    }
    if (!out || cap < need) {
        return mbi_fail_value(err, MAMBA_ERR_RANGE, "output too small", "out", 0,
                              mbi_clamp_i64(out ? cap : 0), mbi_clamp_i64(need), INT64_MAX);
    }
    mbi_snapshot_write(state, (unsigned char *)out, need);
    if (written) {
        *written = need;
    }
    return MAMBA_OK;
}

MAMBA_API mamba_status mamba_state_restore(mamba_state *state, const void *data, size_t bytes,
                                           mamba_error *err) {
    const unsigned char *p = (const unsigned char *)data;
    mamba_status status;
    mbi_error_clear(err);
    if (!p) {
        return mbi_fail(err, MAMBA_ERR_ARG, "must not be NULL", "data", 0);
    }
    status = mbi_snapshot_check(state, p, bytes, err);
    if (status == MAMBA_OK) {
        state->position = mbi_load_u64(p + 32);
        mbi_snapshot_read(state, p + MBI_SNAPSHOT_HEADER);
    }
    return status;
}

MAMBA_API mamba_status mamba_run(mamba_state *state, const mamba_io *io, mamba_error *err) {
    mamba_status status;
    size_t start;
    mbi_error_clear(err);
    status = mbi_check_io(state, io, err);
    if (status) {
        return status;
    }
    for (start = 0; start < io->n; start += (size_t)state->chunk) {
        mbi_forward(state, io, start, (int)mbi_min_size((size_t)state->chunk, io->n - start));
    }
    return MAMBA_OK;
}

MAMBA_API mamba_status mamba_prefill(mamba_state *state, const int32_t *tokens, size_t n,
                                     float *logits, size_t n_logits, mamba_error *err) {
    mamba_io io;
    memset(&io, 0, sizeof io);
    io.tokens = tokens;
    io.n = n;
    io.want_logits = logits ? MAMBA_WANT_LAST : MAMBA_WANT_NONE;
    io.logits = logits;
    io.n_logits = n_logits;
    return mamba_run(state, &io, err);
}

MAMBA_API mamba_status mamba_step(mamba_state *state, int32_t token, float *logits,
                                  size_t n_logits, mamba_error *err) {
    return mamba_prefill(state, &token, 1, logits, n_logits, err);
}

#undef MBI_LAST_PASS
#endif /* part 4 */

/*
 * MIT License
 *
 * Copyright (c) 2026 The mamba.h authors
 *
 * Permission is hereby granted, free of charge, to any person obtaining a copy
 * of this software and associated documentation files (the "Software"), to deal
 * in the Software without restriction, including without limitation the rights
 * to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
 * copies of the Software, and to permit persons to whom the Software is
 * furnished to do so, subject to the following conditions:
 *
 * The above copyright notice and this permission notice shall be included in all
 * copies or substantial portions of the Software.
 *
 * THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
 * IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
 * FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
 * AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
 * LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
 * OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
 * SOFTWARE.
 */
