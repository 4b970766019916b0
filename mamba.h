/* mamba.h - v0.4.5 - CPU inference for Mamba models - MIT licence, text at end of file
 *
 * Runs selective state space models (the Mamba family) from one flat file that is mapped and used
 * in place: text, log-probabilities, hidden states or plain scans, on any CPU, with libc and libm
 * only.  Kernels for several instruction sets are compiled side by side and chosen at run time.
 * It does NOT train, does not read Python checkpoints itself (tools/mamba-convert does), does not
 * use a GPU, and never prints, exits, reads the environment or keeps global state.
 *
 * QUICK START
 *   In exactly one C or C++ file:
 *     #define MAMBA_IMPLEMENTATION
 *     #include "mamba.h"
 *   and a program (examples/hello.c):
 *
 *     #include <stdio.h>
 *     int main(int argc, char **argv) {
 *         static float logits[1 << 18]; // room for one per row of the vocabulary
 *         mamba_model *model = NULL; // the file: shared, never changes
 *         mamba_state *run = NULL;   // the memory of one text
 *         mamba_sampler sampler = {.temperature = 0.8f, .top_p = 0.95f, .seed = 1};
 *         mamba_utf8_stream utf8 = {{0}, 0};
 *         mamba_error err = {.what = "usage: hello MODEL PROMPT"};
 *         int32_t id[1024];
 *         char text[1024];
 *         size_t n = 0;
 *         int bad = argc != 3 || mamba_open(argv[1], strlen(argv[1]), NULL, &model, &err);
 *         const mamba_tokenizer *words = bad ? NULL : mamba_model_tokenizer(model);
 *         bad = bad || mamba_encode(words, argv[2], strlen(argv[2]), 0, id, 1024, &n, &err) ||
 *               mamba_state_create(model, NULL, &run, &err) ||
 *               mamba_prefill(run, id, n, logits, 1 << 18, &err);
 *         for (int i = 0; i < 200 && !bad; i++) {
 *             bad = mamba_sample(&sampler, logits, (size_t)mamba_token_count(words), 0, id, &err) ||
 *                   mamba_stream_decode(words, &utf8, id[0], text, sizeof text, &n, &err) ||
 *                   fwrite(text, 1, n, stdout) != n || mamba_step(run, *id, logits, 1 << 18, &err);
 *         }
 *         mamba_state_free(run), mamba_close(model);
 *         return bad && fprintf(stderr, "%.*s\n", (int)mamba_error_text(&err, text, 256), text);
 *     }
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
 *   MAMBA_NO_AVX2, MAMBA_NO_AVXVNNI, MAMBA_NO_AVX512, MAMBA_NO_AVX512VNNI, MAMBA_NO_AVX512BF16,
 *   MAMBA_NO_AMX, MAMBA_NO_NEON, MAMBA_NO_NEONI8MM, MAMBA_NO_NEONBF16
 *                          leave a target out
 *   MAMBA_NO_STDIO         no file access at all: open from memory or through read hooks
 *   MAMBA_NO_MMAP          open by copying
 *   MAMBA_NO_THREADS       never enter OpenMP even where compiled with it
 *   MAMBA_ASSERT(x)        check of internal invariants; default: nothing
 *   MAMBA_PROFILE(name)    mark: from here on the calling thread works on the operator `name` (a
 *                          string literal; NULL = on none); default: nothing
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
 *   inputs in one fixed order; threads split outputs, never inputs.  Between targets results
 *   differ by rounding; @@kernel_list states the bound of each kernel.
 *   State, dt, exp(dt*A), norms, convolution and residual stream are float32 on every target.
 *   Time-parallel scan (mamba_scan_time_parallel) and chunked form (mamba_ssd_chunked) round
 *   differently from the sequential recurrence, and depend on where chunks start; models never
 *   use them unless mamba_state_options.time_chunk asks for it.
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
 *   @@sampler        A token from logits
 *   @@platform       Compiler, CPU family, operating system: the only place that asks
 *   @@base           Checked sizes, byte order, 16-bit floats, hash, errors, memory
 *   @@threads        Parallel-for behind the hook, work dealt out
 *   @@cpu            What this CPU and operating system can run
 *   @@kernel_list    What every target must provide, with contracts
 *   @@kernel_passes  Read part 3 again for each extra target
 *   @@ops_scalar     Vector vocabulary: one lane
 *   @@ops_avx2       Vector vocabulary: AVX2 + FMA + F16C, 8 lanes
 *   @@ops_avx512     Vector vocabulary: AVX-512 F, BW, DQ, VL, 16 lanes
 *   @@ops_neon       Vector vocabulary: AArch64 Advanced SIMD, 4 lanes
 *   @@ops_wasm       Vector vocabulary: WebAssembly SIMD128, 4 lanes (no FMA)
 *   @@kernels        The mathematics of each kernel, once, in the vocabulary above
 *   @@kernels_int8   Products of q8 and q4 weights by integer dot instructions
 *   @@kernels_amx    Products by AMX matrix tiles
 *   @@kernels_bf16   Products of bf16 weights by AVX-512 and NEON bf16 instructions
 *   @@kernel_table   The tables of this pass
 *   @@dispatch       The list of targets and the choice among them
 *   @@format         The .mamba file, byte by byte
 *   @@vocabulary     The tokenizer section: layout and checks
 *   @@mapping        Bytes of the file: mapped, copied, or the caller's
 *   @@loader         Header to bound layers: every check of the structure
 *   @@matmul         Weight matrix times activations, split over the threads
 *   @@mamba1         Mamba-1 and FalconMamba layers
 *   @@gates          Gates and norms between a layer's core and its last product
 *   @@mamba2         Mamba-2 layers
 *   @@mlp            Gated MLP layers
 *   @@attention      Attention layers
 *   @@layers         The table of kinds
 *   @@forward        A state, and tokens through the layers
 *   @@stateio        Snapshots of a state
 *   @@checks         Checksum, finite scan, self-test
 *   @@unicode        Tables, classes, UTF-8, decomposition and composition
 *   @@text           Added tokens, normalization, splitting, byte pair encoding
 *   @@sampling       Choosing a token, in integers
 *   @@operators_impl The public operators on top of the kernels
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
#define MAMBA_VERSION_MINOR 4
#define MAMBA_VERSION_PATCH 5
#define MAMBA_VERSION_TEXT "0.4.5"

#ifndef MAMBA_API
#if defined(MAMBA_STATIC) && defined(__GNUC__)
#define MAMBA_API static __attribute__((unused))
#elif defined(MAMBA_STATIC)
#define MAMBA_API static
#else
#define MAMBA_API extern
#endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* "0.4.5": the version that was compiled into the implementation.  Threads: any. */
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
 * threads, and return when all are done.  Most tasks deal out their work among themselves: one that
 * starts late, or has a slow core, finds less to do.  NULL: OpenMP where compiled with it, else in
 * order; then a call of mamba_run and its like enters OpenMP once, and its threads wait for each
 * other awake, though they yield their cores. */
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
/* One way of doing the arithmetic: "scalar", "avx2", "avx2int8", "avxvnni", "avx512", "avx512bf16",
 * "avx512vnni", "amx", "neon", "neondot", "neoni8mm", "neonbf16", "wasm".  avx512bf16 is avx512vnni
 * but for bf16 weights: it rounds what they are multiplied with to bf16, which makes prompts up to
 * 1.7 times as fast on CPUs with quick bf16 products (Zen 5); it is only used if asked for. */
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
    MAMBA_Q8 = 3, /* int8 with an 8-bit scale per 64 columns: 8.13 bits per weight */
    MAMBA_Q6 = 4, /* 6 bits, the same scales: 6.13 bits per weight */
    MAMBA_Q4 = 5  /* 4-bit codebook index, the same scales: 4.13 bits per weight */
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
    char weight_type[16];   /* "f32", "f16", "bf16", "q8", "q6", "q4": type of the large matrices */
    int32_t bos, eos, pad;  /* ids of the special tokens, -1 = none */
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
    int32_t prefill_chunk; /* tokens worked on at once, 1..4096; 0 = 512.  More scratch memory,
                              fewer passes over the weights; never changes a bit of the result */
    int32_t time_chunk;    /* 0: sequential scan, split over channels.  64..4096: Mamba-1 layers
                              scan chunks of this many tokens (rounded up to a multiple of 16) of
                              each prefill chunk in parallel (see mamba_scan_time_parallel), and
                              Mamba-2 layers use the form by matrix products with chunks of this
                              many, at most 256 (see mamba_ssd_chunked);
                              then results depend on how the prompt was cut, within their bounds */
    int64_t max_tokens;    /* capacity of attention caches; 0 = 4096; ignored without attention */
} mamba_state_options;

/* Bytes that a state needs (recurrent state and scratch).  opt may be NULL.  Scratch is touched by
 * the calls that need it: while a state has only decoded, most of it takes no memory of the system. */
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
 * measured against float64 in tests).  It does twice the work.  The crossover, measured (mamba bench
 * --scan 4096, d_state 16, 16 cores): faster where channels/16 is at most half the threads. With 16
 * threads 2.2 times at 16 channels, 1.9 at 64, even at 128, half the speed from 256 on; with 8
 * threads even at 32 to 64 channels, with 4 at 16, with 2 never. */
MAMBA_API mamba_status mamba_scan_time_parallel(const mamba_target *target, const mamba_scan *scan,
                                                int chunk, int n_threads,
                                                const mamba_parallel *parallel,
                                                const mamba_memory *memory, mamba_error *err);

/* The Mamba-2 layer's core (SSD) over T tokens [Dao & Gu 2024, eq. 1 with A = a I, section 3].
 * Zero it, fill what you have.  For head p with group g = p / (n_heads / n_groups):
 *   dt  = min(max(softplus(dt + dt_bias), dt_min), dt_max)       (softplus if dt_softplus)
 *   h_p = exp(dt_p A_p) h_p + dt_p x_p B_g^T       y_p = (h_p C_g + D x_p) * silu(z_p)          */
typedef struct mamba_ssd {
    int32_t n_tokens, n_heads, headdim, d_state;
    int32_t n_groups;        /* of B and C, divides n_heads; 0 = 1 */
    int32_t dt_softplus;     /* 1: dt = softplus(dt + dt_bias) */
    int32_t D_per_channel;   /* 1: D is (n_heads, headdim) */
    float dt_min, dt_max;    /* limits of dt; dt_max 0 = none */
    const float *x;          /* (T, n_heads, headdim) */
    const float *dt;         /* (T, n_heads), not negative after bias and softplus */
    const float *dt_bias;    /* (n_heads) or NULL */
    const float *A;          /* (n_heads), negative: -exp(A_log) */
    const float *B, *C;      /* (T, n_groups, d_state) */
    const float *D;          /* (n_heads), or per channel, or NULL */
    const float *z;          /* (T, n_heads, headdim) gate, or NULL */
    float *state;            /* (n_heads, headdim, d_state) initial state, replaced by the final
                                one; NULL = zero, final state dropped */
    float *y;                /* (T, n_heads, headdim) */
} mamba_ssd;

/* By the recurrence, token by token: what models run.  Bits depend neither on n_threads nor on how
 * the tokens are cut into calls, if every cut is at a multiple of 16 (states below 2^-100 become 0
 * at every 16th token of a call).  memory NULL = malloc.  Errors: ARG, MEMORY. */
MAMBA_API mamba_status mamba_ssd_recurrence(const mamba_target *target, const mamba_ssd *ssd,
                                            int n_threads, const mamba_parallel *parallel,
                                            const mamba_memory *memory, mamba_error *err);
/* The same function by the chunked form [Dao & Gu 2024, section 6]: inside chunks of `chunk` tokens
 * (0 = 64; 1..256, rounded up to 16) as products of matrices, the states passed from chunk to
 * chunk.  Bits depend on where the chunks start, so on the cuts between calls and on `chunk`, never
 * on n_threads.  Against the recurrence y agrees to 2e-6 of sum_s |exp(..) (C_t.B_s) dt_s x_s| over
 * all tokens s <= t, the states to 2e-6 of the same sums with B (measured in tests/ssd.c). */
MAMBA_API mamba_status mamba_ssd_chunked(const mamba_target *target, const mamba_ssd *ssd,
                                         int chunk, int n_threads, const mamba_parallel *parallel,
                                         const mamba_memory *memory, mamba_error *err);

/* ------------------------------------------------------------------------------------------------
 * @@tokenizer   Text to ids and back                                                      (public)
 * ---------------------------------------------------------------------------------------------- */
typedef struct mamba_tokenizer mamba_tokenizer; /* part of a model; immutable */

/* The model's tokenizer, NULL if the file has none.  Valid until close. */
MAMBA_API const mamba_tokenizer *mamba_model_tokenizer(const mamba_model *model);

#define MAMBA_PARSE_SPECIAL 1u /* "<|endoftext|>" in the text becomes its token; else it is text */
#define MAMBA_NO_NORMALIZE 2u  /* keep the bytes: no NFC, U+2581 is not a space */

/* Ids of the tokenizer; every id is below this.  (A model may have more rows: padding.) */
MAMBA_API int32_t mamba_token_count(const mamba_tokenizer *t);

/* Ids of a text, without special tokens before or after it.  *n_ids: how many there are; at most
 * cap of them are written.  ids NULL: only count.  RANGE when cap is too small, with *n_ids = the
 * room needed: never more than n_text, with NFC or a space in front never more than 4 * n_text.
 * Any bytes are allowed.  Decoding the ids gives back the very bytes, except that a tokenizer with
 * NFC turns valid UTF-8 into its NFC form (text that is not valid UTF-8 is never normalized), that
 * one of SentencePiece's kind reads U+2581 as a space (neither with MAMBA_NO_NORMALIZE), and that
 * one may put a space in front or strip spaces around its added tokens if its file says so.
 * Time O(n log n), memory 32 bytes per byte of the longest word (for SentencePiece's kind the whole
 * text is one word), and a copy of text that normalization changes, from the model's memory hook,
 * freed before return.
 * Errors: ARG, RANGE, MEMORY, UNSUPPORTED (the vocabulary lacks a byte of the text).
 * Threads: any. */
MAMBA_API mamba_status mamba_encode(const mamba_tokenizer *t, const char *text, size_t n_text,
                                    unsigned flags, int32_t *ids, size_t cap, size_t *n_ids,
                                    mamba_error *err);
/* The bytes of ids, special tokens included; not NUL-terminated, maybe not whole characters.
 * Tokenizers of SentencePiece's kind put a space in front of a text, and here take one away: ids
 * that continue a text go through mamba_stream_decode, which never does.
 * *n_out bytes are needed and, on success, written; out NULL: only count.  Errors: ARG (also for
 * an id that the tokenizer lacks), RANGE.  Threads: any. */
MAMBA_API mamba_status mamba_decode(const mamba_tokenizer *t, const int32_t *ids, size_t n_ids,
                                    char *out, size_t cap, size_t *n_out, mamba_error *err);
/* The bytes of one id, inside the model.  Errors: ARG.  Threads: any. */
MAMBA_API mamba_status mamba_token_bytes(const mamba_tokenizer *t, int32_t id, const char **bytes,
                                         size_t *n, mamba_error *err);

/* The start of a character whose end has not come yet.  Zeroed = empty. */
typedef struct mamba_utf8_stream {
    unsigned char pending[4];
    uint32_t n_pending; /* 0..3 */
} mamba_utf8_stream;

/* Decodes id after id without ever writing half a UTF-8 character: such bytes wait in s.  Bytes
 * that can't become a character pass through.  out needs room for the token's bytes + 3; RANGE
 * (with *n_out = room needed) and ARG leave s as it was.  Threads: one per stream. */
MAMBA_API mamba_status mamba_stream_decode(const mamba_tokenizer *t, mamba_utf8_stream *s,
                                           int32_t id, char *out, size_t cap, size_t *n_out,
                                           mamba_error *err);
/* What still waits (at most 3 bytes), at the end of the text. */
MAMBA_API mamba_status mamba_stream_flush(mamba_utf8_stream *s, char *out, size_t cap,
                                          size_t *n_out, mamba_error *err);

/* ------------------------------------------------------------------------------------------------
 * @@sampler   A token from logits                                                      (public)
 * ---------------------------------------------------------------------------------------------- */
#define MAMBA_SAMPLER_HISTORY 64

/* Plain data: copy it, save it.  All zero is valid and means greedy.  Steps, in this order:
 *   1. repetition penalty: of each token among the last repeat_last_n, logit > 0 is divided by
 *      repeat_penalty, else multiplied
 *   2. temperature 0: the largest logit, the lowest id of equal ones, and done;
 *      else p(i) ~ exp((logit(i) - largest) / temperature)
 *   3. top_k: keep the k most probable
 *   4. top_p: keep the fewest most probable that together have at least top_p of what step 3 kept
 *   5. min_p: keep p(i) >= min_p * largest p
 *   6. draw among the kept in proportion to p
 * Of equal ones the lower ids are kept.  Steps 2 to 6 are exact in integers after one rounding of
 * each p, so the same seed and the same logits give the same token with every compiler and CPU. */
typedef struct mamba_sampler {
    float temperature;      /* 0 = greedy */
    float top_p;            /* 0 or 1 = off */
    float min_p;            /* 0 = off */
    float repeat_penalty;   /* 0 or 1 = off */
    int32_t top_k;          /* 0 = off */
    int32_t repeat_last_n;  /* 0 = as many as are kept */
    uint64_t seed;          /* every value is good */
    uint64_t n_draws;       /* random numbers used so far */
    uint64_t n_history;     /* tokens so far; the last ones are kept: token i in history[i % 64] */
    int32_t history[MAMBA_SAMPLER_HISTORY];
} mamba_sampler;

/* Temperature 1, nothing else on, empty history. */
MAMBA_API void mamba_sampler_init(mamba_sampler *s, uint64_t seed);
/* Adds a token to the history: those of a prompt (drawn ones are added by mamba_sample). */
MAMBA_API void mamba_sampler_accept(mamba_sampler *s, int32_t token);
/* Chooses a token from n_logits <= 2^24 logits, which are changed in place.  Ids from n_allowed on
 * (padding of the vocabulary) are never chosen; 0 = all allowed.  Allocates nothing.
 * Errors, which leave s and the logits as they were and set *token = -1: ARG (a setting out of
 * range, named in err), NONFINITE (an allowed logit is NaN or +infinity, or all are -infinity).
 * Threads: one per sampler. */
MAMBA_API mamba_status mamba_sample(mamba_sampler *s, float *logits, size_t n_logits,
                                    size_t n_allowed, int32_t *token, mamba_error *err);


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
#if MBI_BUILD_AVX2 && (MBI_GCC >= 11 || MBI_CLANG >= 14) && !defined(MAMBA_NO_AVXVNNI)
#define MBI_BUILD_AVXVNNI 1
#else
#define MBI_BUILD_AVXVNNI 0
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
#if MBI_BUILD_AVX512VNNI && (MBI_GCC >= 11 || MBI_CLANG >= 14) && !defined(MAMBA_NO_AVX512BF16)
#define MBI_BUILD_AVX512BF16 1
#else
#define MBI_BUILD_AVX512BF16 0
#endif
#if MBI_BUILD_AVX512BF16 && MBI_OS_LINUX && (MBI_GCC >= 12 || MBI_CLANG >= 14) &&                  \
    !defined(MAMBA_NO_AMX)
#define MBI_BUILD_AMX 1
#else
#define MBI_BUILD_AMX 0
#endif
#if MBI_ARCH_ARM64 && !defined(MAMBA_NO_NEON)
#define MBI_BUILD_NEON 1
#else
#define MBI_BUILD_NEON 0
#endif
#if MBI_BUILD_NEON && (MBI_GCC >= 9 || MBI_CLANG >= 16) && !defined(MAMBA_NO_DISPATCH)
#define MBI_BUILD_NEON_DOT 1
#else
#define MBI_BUILD_NEON_DOT 0
#endif
#if MBI_BUILD_NEON_DOT && (MBI_GCC >= 10 || MBI_CLANG >= 16) && !defined(MAMBA_NO_NEONI8MM)
#define MBI_BUILD_NEON_I8MM 1
#else
#define MBI_BUILD_NEON_I8MM 0
#endif
#if MBI_BUILD_NEON_I8MM && !defined(MAMBA_NO_NEONBF16)
#define MBI_BUILD_NEON_BF16 1
#else
#define MBI_BUILD_NEON_BF16 0
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
#if MBI_BUILD_NEON_DOT && MBI_OS_LINUX
#include <sys/auxv.h>
#endif
#if MBI_BUILD_WASM
#include <wasm_simd128.h>
#endif
#if defined(_OPENMP) && !defined(MAMBA_NO_THREADS)
#define MBI_OPENMP 1
#include <omp.h>
#if MBI_OS_POSIX
#include <poll.h>
#include <sched.h>
#endif
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

/* Asks for a line into the second-level cache, where that was seen to pay.  GCC takes a function that
 * does nothing else for one without effect and drops its calls, unless MBI_EFFECT is in it. */
#if (MBI_GCC || MBI_CLANG) && MBI_ARCH_X86
#define MBI_PREFETCH(p) __builtin_prefetch((p), 0, 2)
#define MBI_EFFECT() __asm__ volatile("")
#else
#define MBI_PREFETCH(p) ((void)(p))
#define MBI_EFFECT() ((void)0)
#endif

/* Asks for all lines of n floats. */
static void mbi_ask(const float *x, size_t n) {
    size_t i;
    for (i = 0; i < n; i += 64 / sizeof(float)) {
        MBI_PREFETCH(x + i);
    }
    MBI_EFFECT();
}

#ifndef MAMBA_ASSERT
#define MAMBA_ASSERT(x) ((void)0)
#endif
#ifndef MAMBA_PROFILE
#define MAMBA_PROFILE(name) ((void)0)
#endif
#ifndef MAMBA_HEADER_NAME
#define MAMBA_HEADER_NAME "mamba.h"
#endif

/* ------------------------------------------------------------------------------------------------
 * @@base   Checked sizes, byte order, 16-bit floats, hash, errors, memory                (private)
 * ---------------------------------------------------------------------------------------------- */
/* Rows of a weight panel, channels of a block: fixed by the file format.  (A macro: C++20 warns of
 * arithmetic between enumerations.) */
#define MBI_LANES 16

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

static int mbi_max_int(int a, int b) {
    return a > b ? a : b;
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

/* Default allocator: malloc with the start kept in front of the aligned block.  Blocks of several
 * huge pages are laid on such pages where Linux has them to give: weights read into memory then
 * stream 12 % faster (1.4b q8, two Zen 5 cores), their prompts are read 6 % faster. */
#if MBI_OS_LINUX && defined(POSIX_MADV_NORMAL)
#define MBI_HUGE_PAGE ((size_t)2 << 20)
enum { MBI_ADVICE_HUGE_PAGE = 14 /* MADV_HUGEPAGE, which only <sys/mman.h> beyond POSIX names */ };
#endif

static void *mbi_default_alloc(void *user, size_t bytes, size_t align) {
    unsigned char *raw;
    uintptr_t at;
    (void)user;
#if defined(MBI_HUGE_PAGE)
    if (bytes >= 2 * MBI_HUGE_PAGE && align < MBI_HUGE_PAGE) {
        align = MBI_HUGE_PAGE;
    }
#endif
    if (bytes > SIZE_MAX - align - sizeof(void *)) {
        return NULL;
    }
    raw = (unsigned char *)malloc(bytes + align + sizeof(void *));
    if (!raw) {
        return NULL;
    }
    at = ((uintptr_t)raw + sizeof(void *) + align - 1) & ~(uintptr_t)(align - 1);
    memcpy((unsigned char *)at - sizeof(void *), &raw, sizeof raw);
#if defined(MBI_HUGE_PAGE)
    if (bytes >= 2 * MBI_HUGE_PAGE) {
        (void)posix_madvise((void *)at, bytes, MBI_ADVICE_HUGE_PAGE);
    }
#endif
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
 * @@threads   Parallel-for behind the hook, work dealt out                               (private)
 * ---------------------------------------------------------------------------------------------- */
/* Cores this process may use: what the system grants, or less if OpenMP was told so. */
static int mbi_n_cores(void) {
#if MBI_OPENMP
    int n = omp_get_num_procs() < omp_get_max_threads() ? omp_get_num_procs()
                                                        : omp_get_max_threads();
    return n < 1 ? 1 : n;
#else
    return 1;
#endif
}

/* How many of some threads can run at once.  GCC's runtime asks the system for its cores every time
 * (2.6 us on Zen 5), so one thread does not ask. */
static int mbi_at_once(int n_threads) {
    return n_threads > 1 ? mbi_min_int(n_threads, mbi_n_cores()) : n_threads;
}

enum { MBI_MAX_THREADS = 1024 };

/* n_threads of a config: 0 = all cores; never more than MBI_MAX_THREADS. */
static int mbi_n_threads(int n_threads, const mamba_parallel *parallel) {
    if (n_threads == 0 && !(parallel && parallel->run)) {
        n_threads = mbi_n_cores();
    }
    return n_threads < 1 ? 1 : mbi_min_int(n_threads, MBI_MAX_THREADS);
}

/* Calls task(arg, i) for each i in [0, n_tasks).  The tasks are the caller's fixed split; who runs
 * them does not matter to the result.  OpenMP may give fewer threads than asked: each thread walks
 * the tasks with the real team size.  One task, or one thread, never enters OpenMP.  The team has
 * n_threads members even when there are fewer tasks: GCC's runtime ends and starts threads when the
 * size changes from one region to the next (0.5 ms a region on 16 cores, ten times the work). */
static void mbi_parallel_for(const mamba_parallel *parallel, int n_threads, int n_tasks,
                             mamba_task task, void *arg) {
    int i;
    if (n_tasks > 1 && parallel && parallel->run) {
        parallel->run(parallel->user, n_tasks, task, arg);
        return;
    }
#if MBI_OPENMP
    n_threads = n_tasks > 1 ? mbi_at_once(n_threads) : 1;
    if (n_threads > 1) {
#pragma omp parallel num_threads(n_threads) private(i)
        {
            int team = omp_get_num_threads();
            for (i = omp_get_thread_num(); i < n_tasks; i += team) {
                task(arg, i);
            }
        }
        return;
    }
#endif
    (void)n_threads;
    for (i = 0; i < n_tasks; i++) {
        task(arg, i);
    }
}

#if MBI_OPENMP
enum { MBI_TEAM_LINES = 64 };

/* The threads of one OpenMP region, which wait for jobs of the first until it sends them home.  A
 * decoded token has a hundred regions and more: one of OpenMP's takes 3.2 us on two Zen 5 cores, one
 * of these 0.5.  A job is one cache line to read, and a member is done by writing to a line of its
 * own: on 16 Xeon threads 0.6 to 0.8 us, with a counter that all of them change 1.5 to 2.3. */
typedef struct mbi_team {
    MBI_ALIGN64 unsigned turn; /* how many jobs were given out */
    int n_members, n_tasks;
    mamba_task task; /* NULL: go home */
    void *arg;
    MBI_ALIGN64 unsigned done[MBI_TEAM_LINES][MBI_MAX_THREADS / MBI_TEAM_LINES];
} mbi_team;

/* How many jobs a member is done with.  The first 64 have lines of their own. */
static unsigned *mbi_team_done(mbi_team *team, int member) {
    return &team->done[member % MBI_TEAM_LINES][member / MBI_TEAM_LINES];
}

/* Between two looks at a number that another thread will change.  Now and then it lets others run, in
 * case that thread has no core, and after some 50 ms it sleeps, in case others means equals only. */
static void mbi_team_wait(int *looks) {
    enum { YIELD = 1000, SLEEP = 2000000 };
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
#if MBI_OS_POSIX
    if (++*looks == SLEEP) {
        *looks = SLEEP - YIELD;
        (void)poll(NULL, 0, 1);
    } else if (*looks % YIELD == 0) {
        (void)sched_yield();
    }
#else
    (void)looks;
#endif
}

/* Gives out a job; a mamba_parallel. */
static void mbi_team_run(void *user, int n_tasks, mamba_task task, void *arg) {
    mbi_team *team = (mbi_team *)user;
    unsigned turn = team->turn + 1;
    int looks = 0;
    int i;
    team->n_tasks = n_tasks;
    team->task = task;
    team->arg = arg;
    __atomic_store_n(&team->turn, turn, __ATOMIC_RELEASE);
    for (i = 0; task && i < n_tasks; i += team->n_members) {
        task(arg, i);
    }
    for (i = 1; i < team->n_members; i++) {
        const unsigned *done = mbi_team_done(team, i);
        while (__atomic_load_n(done, __ATOMIC_ACQUIRE) != turn) {
            mbi_team_wait(&looks);
        }
    }
}

/* What the other members do. */
static void mbi_team_serve(mbi_team *team, int member, int n_members) {
    unsigned *done = mbi_team_done(team, member);
    unsigned turn = 0;
    mamba_task task;
    do {
        int looks = 0;
        int i;
        while (__atomic_load_n(&team->turn, __ATOMIC_ACQUIRE) == turn) {
            mbi_team_wait(&looks);
        }
        turn++;
        task = team->task;
        for (i = member; task && i < team->n_tasks; i += n_members) {
            task(team->arg, i);
        }
        __atomic_store_n(done, turn, __ATOMIC_RELEASE);
    } while (task);
}

/* Calls body(arg, parallel) on the first of as many threads as OpenMP gives, n_threads at most; the
 * others are its team. */
static void mbi_team_of(int n_threads, void (*body)(void *arg, const mamba_parallel *parallel),
                        void *arg) {
    mbi_team team;
    memset(&team, 0, sizeof team);
#pragma omp parallel num_threads(n_threads)
    {
        if (omp_get_thread_num() == 0) {
            mamba_parallel parallel;
            parallel.run = mbi_team_run;
            parallel.user = &team;
            team.n_members = omp_get_num_threads();
            body(arg, &parallel);
            mbi_team_run(&team, 0, NULL, NULL);
        } else {
            mbi_team_serve(&team, omp_get_thread_num(), omp_get_num_threads());
        }
    }
}
#endif

/* Calls body(arg, parallel) with a parallel-for for all its regions: the caller's hook, or a team,
 * which enters OpenMP once, or NULL where there is but one thread. */
static void mbi_with_team(const mamba_parallel *parallel, int n_threads,
                          void (*body)(void *arg, const mamba_parallel *parallel), void *arg) {
#if MBI_OPENMP
    n_threads = parallel && parallel->run ? 1 : mbi_at_once(n_threads);
    if (n_threads > 1) {
        mbi_team_of(n_threads, body, arg);
        return;
    }
#endif
    (void)n_threads;
    body(arg, parallel);
}

/* Start of the i-th of n_parts contiguous ranges of n items; the end is the start of i+1. */
static int mbi_split(int n, int n_parts, int i) {
    return (int)((int64_t)n * i / n_parts);
}

enum { MBI_WHOLE_SHARE = 8, MBI_HALF_SHARE = 4 }; /* eighths */

/* Items [begin, end) of a region; no two calls at the same time have the same worker, a number
 * below n_threads. */
typedef void (*mbi_range)(void *arg, int begin, int end, int worker);

/* What a worker did in the regions before, as its share of MBI_ALL_WORK (the last one counts for a
 * quarter), and how many items of this one.  Some cores stay slower than others for a while: they lie
 * farther from the memory, or another virtual machine runs on the same one.  A worker that begins
 * with what it will manage ends with the others: decode of 1.4b on 16 Xeon threads is 13 % (q8) and
 * 2 % (bf16) faster than with equal shares. */
typedef struct mbi_worker {
    int share, done;
} mbi_worker;

enum { MBI_ALL_WORK = 1 << 16 };

/* A region of n items, dealt out.  Every worker begins with a range of its own, some eighths of its
 * share, and then takes one range after the other of what is left: a core that is slower than the
 * others, or not the process's alone, does less instead of holding up all.
 * Workers are the tasks of a parallel-for, so that the caller's hook needs to know nothing of
 * this. */
typedef struct mbi_ranges {
    mbi_range run;
    void *arg;
    int n, n_workers;
    int unit, least;      /* items in a range: a multiple of `unit`, or `least` if that is too many */
    int own;              /* eighths */
    mbi_worker *workers;  /* NULL: shares are equal, */
    int first;            /* and so many items are each worker's first range */
    int dealt;            /* the first item behind the first ranges */
    MBI_ALIGN64 int next; /* the first range behind them that nobody has taken: all write here */
} mbi_ranges;

/* Without atomic operations a region is cut into equal shares of whole units. */
#if defined(__GNUC__)
#define MBI_ATOMICS 1
#else
#define MBI_ATOMICS 0
#endif

/* A range of some items. */
static int mbi_range_of(const mbi_ranges *r, int64_t n) {
    return n >= r->unit ? (int)n / r->unit * r->unit : r->least;
}

/* Whether n items are enough ranges of the least size for each worker, so that shares can differ. */
static int mbi_ranges_enough(int n, int least, int n_workers) {
    enum { ENOUGH = 4 };
    return n / least / ENOUGH >= n_workers;
}

/* So many eighths of an equal share of the items left. */
static int mbi_range_equal(const mbi_ranges *r, int left, int eighths) {
    return mbi_min_int(
        mbi_range_of(r, (int64_t)left * eighths / (MBI_WHOLE_SHARE * r->n_workers)), left);
}

/* A worker's first range. */
static int mbi_range_first(const mbi_ranges *r, int worker) {
    return r->workers ? mbi_range_of(r, (int64_t)r->n * r->own * r->workers[worker].share /
                                            (MBI_WHOLE_SHARE * (int64_t)MBI_ALL_WORK))
                      : r->first;
}

/* Where it begins: behind those of the workers before. */
static int mbi_range_begin(const mbi_ranges *r, int worker) {
    int begin = 0;
    int i;
    for (i = 0; i < worker; i++) {
        begin += mbi_min_int(mbi_range_first(r, i), r->n - begin);
    }
    return begin;
}

#if MBI_ATOMICS
/* Takes a range behind the first ones, empty if there is none.  They come in rounds, one each for all
 * workers, and a round makes up half of what is left, as far as ranges can be so small.  So their
 * numbers are all that workers contend for, by an addition that never fails. */
static int mbi_range_take(mbi_ranges *r, int *end) {
    int i = __atomic_fetch_add(&r->next, 1, __ATOMIC_RELAXED);
    int begin = r->dealt;
    int size = mbi_range_equal(r, r->n - begin, MBI_HALF_SHARE);
    while (i >= r->n_workers && size > r->least) {
        i -= r->n_workers;
        begin += r->n_workers * size;
        size = mbi_range_equal(r, r->n - begin, MBI_HALF_SHARE);
    }
    begin = mbi_min_int(begin + i * size, r->n);
    *end = mbi_min_int(begin + size, r->n);
    return begin;
}
#endif

static void mbi_ranges_task(void *arg, int worker) {
    mbi_ranges *r = (mbi_ranges *)arg;
    int begin = mbi_range_begin(r, worker);
    int end = begin + mbi_min_int(mbi_range_first(r, worker), r->n - begin);
    int done = 0;
    while (begin < end) {
        r->run(r->arg, begin, end, worker);
        done += end - begin;
        begin = end;
#if MBI_ATOMICS
        if (r->dealt < r->n) {
            begin = mbi_range_take(r, &end);
        }
#endif
    }
    if (r->workers) {
        r->workers[worker].done = done;
    }
}

/* Calls run for ranges that make up [0, n).  Who gets which depends on the moment: no result may.
 * `own`: the eighths of its share that a worker begins with; MBI_WHOLE_SHARE: nothing is dealt
 * out.  workers [n_threads]: what they did before; NULL, or too few items: shares are equal. */
static void mbi_parallel_ranges(const mamba_parallel *parallel, int n_threads, int n, int unit,
                                int least, int own, mbi_worker *workers, mbi_range run, void *arg) {
    int dealt = MBI_ATOMICS && own < MBI_WHOLE_SHARE && n_threads > 1;
    mbi_ranges r;
    int i;
    if (n < 1) {
        return;
    }
    r.run = run;
    r.arg = arg;
    r.n = n;
    r.n_workers = n_threads;
    r.unit = unit;
    r.least = least;
    r.own = own;
    r.workers = dealt && mbi_ranges_enough(n, least, n_threads) ? workers : NULL;
    r.first = dealt ? mbi_range_equal(&r, n, own)
                    : mbi_pad_int((n + n_threads - 1) / n_threads, MBI_ATOMICS ? 1 : unit);
    r.n_workers = mbi_min_int(n_threads, (n + r.first - 1) / r.first);
    r.dealt = mbi_range_begin(&r, r.n_workers);
    r.next = 0;
    mbi_parallel_for(parallel, n_threads, r.n_workers, mbi_ranges_task, &r);
    for (i = 0; r.workers && i < r.n_workers; i++) { /* all n_threads: there are enough items */
        int64_t share = (int64_t)r.workers[i].done * MBI_ALL_WORK / n;
        r.workers[i].share = (int)((3 * (int64_t)r.workers[i].share + share) / 4);
    }
}

/* ------------------------------------------------------------------------------------------------
 * @@cpu   What this CPU and operating system can run                                     (private)
 * ---------------------------------------------------------------------------------------------- */
enum {
    MBI_CPU_AVX2,
    MBI_CPU_AVXVNNI,
    MBI_CPU_AVX512,
    MBI_CPU_AVX512VNNI,
    MBI_CPU_AVX512BF16,
    MBI_CPU_AMX,
    MBI_CPU_PREFETCH, /* see mbi_mat */
    MBI_CPU_DOTPROD,
    MBI_CPU_I8MM,
    MBI_CPU_NEONBF16
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
#if MBI_BUILD_NEON_DOT && defined(__APPLE__)
    f |= 1u << MBI_CPU_DOTPROD; /* every Apple silicon has it */
#elif MBI_BUILD_NEON_DOT && MBI_OS_LINUX
    f |= (uint32_t)(getauxval(16) >> 20 & 1) << MBI_CPU_DOTPROD; /* AT_HWCAP, HWCAP_ASIMDDP */
#if MBI_BUILD_NEON_I8MM
    if (f >> MBI_CPU_DOTPROD & 1) {
        unsigned long hwcap2 = getauxval(26); /* AT_HWCAP2 */
        f |= (uint32_t)(hwcap2 >> 13 & 1) << MBI_CPU_I8MM; /* HWCAP2_I8MM */
        f |= (uint32_t)(hwcap2 >> 13 & hwcap2 >> 14 & 1) << MBI_CPU_NEONBF16; /* and HWCAP2_BF16 */
    }
#endif
#endif
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
    if (__get_cpuid(0, &a, &b, &c, &d) && c == 0x6c65746eu) { /* GenuineIntel */
        f |= 1u << MBI_CPU_PREFETCH;
    }
    f |= (uint32_t)(b7 >> 5 & 1) << MBI_CPU_AVX2;
    f |= (uint32_t)(a71 >> 4 & b7 >> 5 & 1) << MBI_CPU_AVXVNNI; /* and AVX2 */
    if ((os & 0xe6) == 0xe6 && (f >> MBI_CPU_AVX2 & 1) && (b7 >> 16 & 1) && (b7 >> 17 & 1) && (b7 >> 30 & 1) &&
        (b7 >> 31 & 1)) { /* F, DQ, BW, VL */
        f |= 1u << MBI_CPU_AVX512;
        f |= (uint32_t)(c7 >> 11 & 1) << MBI_CPU_AVX512VNNI;
        f |= (uint32_t)(a71 >> 5 & c7 >> 11 & 1) << MBI_CPU_AVX512BF16; /* and VNNI */
#if MBI_BUILD_AMX
        if ((f >> MBI_CPU_AVX512BF16 & 1) && (d7 >> 23 & 1) &&
            (d7 >> 22 & 1) && (d7 >> 24 & 1) && (d7 >> 25 & 1) && (os & 0x60000) == 0x60000 &&
            mbi_request_amx()) {
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
 * Arithmetic.  Every output of gemm has one accumulator (neonbf16: one for each half of x) and
 * adds its columns in ascending order, so GEMV and GEMM, any token range and any panel range give
 * the same bits.  Multiplications that feed additions are explicit FMAs where the target has them
 * (scalar: only if the baseline has), so contraction by the compiler can't make two call sites
 * differ.
 * ---------------------------------------------------------------------------------------------- */
/* One weight matrix, ready for the kernels. */
typedef struct mbi_mat {
    const unsigned char *data;
    const float *bases; /* of the panels' scales; NULL for float types */
    uint64_t panel_bytes;
    mamba_type type;
    int n_panels;
    int rows; /* logical rows when there is one segment; else n_panels*16 */
    int cols; /* logical */
    int prefetch; /* this CPU reads faster what was asked for in software */
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
    int next;          /* panels up to here follow in the next calls: worth asking for meanwhile */
    void *scratch;     /* MBI_GEMM_SCRATCH bytes, 64-aligned, one per concurrent call */
} mbi_gemm;

/* MBI_TASK_BLOCKS: [T][16] behind that scratch; as many as a group of 64 channels has. */
enum { MBI_GEMM_SCRATCH = 512 * 1024, MBI_TASK_BLOCKS = 4 };

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

/* One block of 16 channels of a Mamba-2 recurrence over T tokens.  All states of a head decay
 * alike, so they are kept as g = h / P, where P is the product of the decays since the position was
 * last a multiple of 16; that saves the decay of every state at every token, a third of the work:
 *   g[n] = f[t]*g[n] + (w[t]*x[t]) * B[t][n]           w = dt / P, f = 1 (see ssd_scale)
 *   y[t] = (P[t] * sum_n C[t][n]*g[n] + D*x[t]) * silu(z[t])
 * and after a token whose absolute position is 15 modulo 16 g becomes P*g, which is h, or 0 if that
 * is below 2^-100.  x, z, y: [T][16].  f, w and P: with one_head, of token t at f[t*16] for all
 * lanes; else [T][16], those of the head of each lane.  g: [d_state][16].  D [16] or NULL, z NULL =
 * no gate.  y may be x.  B, C: see mbi_turn.  Each token's sum runs over ascending n in one
 * accumulator, however many tokens are worked on together. */
typedef struct mbi_ssd_block {
    const float *x, *f, *w, *P, *z, *B, *C, *D;
    float *g, *y;
    uint64_t position; /* of token 0 */
    int n_tokens, d_state, one_head;
} mbi_ssd_block;

/* Tokens from t on up to where the absolute position is a multiple of 16, or all there are. */
static int mbi_up_to_16(uint64_t position, int t, int n_tokens) {
    return mbi_min_int(n_tokens - t, 16 - (int)((position + (uint64_t)t) & 15u));
}

/* Causal softmax attention of one head for one query over n_keys keys [Milakov & Gimelshein 2018]:
 *   out = sum_j softmax_j(scale * q.k_j) v_j
 * in one pass over blocks of 64 keys, counted from the first key ever, with a running maximum; sums
 * run over ascending j, so nothing depends on how the prompt was cut.  q and out: width floats (a
 * multiple of 16, at most 1024) in blocks of 16 `stride` floats apart; out may be q.  Key j at
 * k + j*kv_stride, width floats in a row; v the same. */
typedef struct mbi_attend {
    const float *q, *k, *v;
    float *out;
    size_t stride, kv_stride;
    uint64_t n_keys;
    int width;
    float scale;
} mbi_attend;

/* X(return type, name, arguments): every full target defines mbi_k_<name>_<target>; a target that
 * only has its own products takes the rest from the target below it. */
#define MBI_PRODUCT_LIST(X)                                                                        \
    /* Bytes that prepare writes for T tokens of n channels; 0: gemm reads blocked floats as is.    \
     * Never less for more tokens or channels. */                                                  \
    X(size_t, prepared_bytes, (mamba_type type, int n, int n_tokens))                              \
    /* Tokens [t0, t1) of groups [g0, g1) of 64 of the n channels of blocked x into the form that  \
     * gemm of this type reads; t0 is a multiple of 16, and t1 too or n_tokens. */                 \
    X(void, prepare, (mamba_type type, const float *x, int n, int n_tokens, int t0, int t1,        \
                      int g0, int g1, void *out))                                                  \
    X(void, gemm, (const mbi_gemm *g, int p0, int p1, int t0, int t1))

#define MBI_REST_LIST(X)                                                                           \
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
    X(void, ssd_block, (const mbi_ssd_block *s))                                                   \
    X(void, attend, (const mbi_attend *a))                                                         \
    /* dt = min(max(softplus(dt + bias[lane]), lo), hi), a = exp(dt * A[lane]); n multiple of 16;  \
     * bias NULL: dt is used as it is, but for the limits. */                                      \
    X(void, ssd_decay, (float *dt, const float *bias, const float *A, float lo, float hi,          \
                        size_t n, float *a))                                                       \
    /* From the decays a and time steps dt of 16 heads, [T][16] each, to what ssd_block takes: a   \
     * becomes f, dt becomes w, P [T][16] is written; last [16] is the P of the token before, then \
     * that of the last one.  Where P would fall to 2^-64 it starts again from 1, and f is what it \
     * would have been; everywhere else f is 1. */                                                 \
    X(void, ssd_scale, (float *a, float *dt, float *P, float *last, uint64_t position,             \
                        int n_tokens))                                                             \
    /* y = x * silu(z); n multiple of 16; y may be x or z. */                                      \
    X(void, gate, (const float *x, const float *z, float *y, size_t n))                            \
    /* dA = exp(dt*A), h = dA*h + dB*x …: see mamba_discretize, mamba_recurrence. */               \
    X(void, exp, (const float *x, float *y, size_t n))

#define MBI_KERNEL_LIST(X) MBI_PRODUCT_LIST(X) MBI_REST_LIST(X)

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

/* 4-bit codebook: value = codebook[index] * scale, the scale of either sign.  Lloyd's iteration on
 * Gaussian weights and on the matrices of two trained models (their optima are the same within 1 %)
 * with the best scale for each group, one entry held at zero so that zeros stay exact: mean squared
 * error 0.0065 of the mean square (0.0053 in groups of 32); 0.7 % less without the zero. */
#define MBI_Q4_VALUES -127, -99, -78, -61, -47, -34, -22, -10, 0, 12, 23, 36, 49, 64, 82, 105
static MBI_UNUSED float mbi_q4_value(unsigned index) {
    const signed char values[16] = {MBI_Q4_VALUES};
    return (float)values[index & 15u];
}

/* Of a mamba_type; 8 bytes, padded with NUL. */
static const char *mbi_type_name(uint32_t type) {
    static const char names[7][8] = {"f32", "f16", "bf16", "q8", "q6", "q4", "?"};
    return names[type < 6 ? type : 6];
}

/* Types of integers with scales: everything from q8 on. */
static int mbi_is_quantized(mamba_type type) {
    return type >= MAMBA_Q8;
}

/* Columns that share a scale in each row.  Bytes of a group: of a panel expanded to int8, with scales
 * in float; of one token's activations, see @@kernels_int8. */
enum {
    MBI_GROUP = 64,
    MBI_INT8_EXPANDED_BYTES = MBI_GROUP * MBI_LANES + MBI_LANES * 4,
    MBI_INT8_TOKEN_BYTES = MBI_GROUP + 8
};

static MBI_UNUSED int mbi_groups(int cols) {
    return (cols + MBI_GROUP - 1) / MBI_GROUP;
}

/* Bytes of the units of a group. */
static size_t mbi_group_bytes(mamba_type type) {
    return type == MAMBA_Q8 ? 1024 : type == MAMBA_Q6 ? 768 : 512;
}

/* Where in a panel group g, of mbi_group_bytes each, has its units and the codes of its scales: 4
 * groups of codes lie in front of the units of those groups. */
static size_t mbi_units_at(size_t group_bytes, int g) {
    return (size_t)g * group_bytes + (size_t)(g / 4 + 1) * 64;
}

static size_t mbi_codes_at(size_t group_bytes, int g) {
    return (size_t)(g / 4) * (4 * group_bytes + 64) + (size_t)(g % 4) * 16;
}

/* Bytes of `cols` columns of one panel. */
static uint64_t mbi_panel_bytes(mamba_type type, uint64_t cols) {
    switch (type) {
    case MAMBA_F32: return mbi_pad(cols, 32) * 64;
    case MAMBA_F16:
    case MAMBA_BF16: return mbi_pad(cols, 32) * 32;
    case MAMBA_Q8:
    case MAMBA_Q6:
    case MAMBA_Q4:
        cols = mbi_pad(cols, MBI_GROUP) / MBI_GROUP;
        return cols * mbi_group_bytes(type) + (cols + 3) / 4 * 64;
    }
    return 0;
}

/* Bytes of the bases behind the panels of a matrix. */
static uint64_t mbi_bases_bytes(mamba_type type, uint64_t n_panels) {
    return mbi_is_quantized(type) ? mbi_pad(n_panels * sizeof(float), 64) : 0;
}

/* A matrix of one segment out of its bytes: n_panels panels, then their bases. */
static mbi_mat mbi_mat_of(mamba_type type, const unsigned char *data, int n_panels, int rows,
                          int cols) {
    mbi_mat w;
    memset(&w, 0, sizeof w);
    w.data = data;
    w.type = type;
    w.panel_bytes = mbi_panel_bytes(type, (uint64_t)cols);
    w.bases = mbi_is_quantized(type)
                  ? (const float *)(const void *)(data + (size_t)n_panels * w.panel_bytes)
                  : NULL;
    w.n_panels = n_panels;
    w.rows = rows;
    w.cols = cols;
    return w;
}

/* The panels of w from p on. */
static mbi_mat mbi_mat_from(const mbi_mat *w, int p) {
    mbi_mat m = *w;
    m.data += (size_t)p * w->panel_bytes;
    m.bases = w->bases ? w->bases + p : NULL;
    m.n_panels -= p;
    m.rows -= p * MBI_LANES;
    return m;
}

/* ------------------------------------------------------------------------------------------------
 * @@kernel_passes   Read part 3 again for each extra target                              (private)
 * ---------------------------------------------------------------------------------------------- */
#define MBI_SCALAR 1
#define MBI_NEON 2
#define MBI_WASM 3
#define MBI_AVX2 4
#define MBI_AVXVNNI 5 /* @@kernels_int8 again; everything else is MBI_AVX2's */
#define MBI_AVX512 6
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
#if MBI_BUILD_AVXVNNI
#define MBI_PASS MBI_AVXVNNI
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
#ifndef __OPTIMIZE__ /* intrinsics are macros then, with signed masks inside */
#pragma GCC diagnostic ignored "-Wsign-conversion"
#endif
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
#define V_GROUP 8 /* vectors of state that the scan may hold in registers */
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
/* v * 2^n for integral n in [-127, 0]; 0 at -127. */
#define V_SCALE2_NEG(v, n) ((v) * mbi_bits_f32((uint32_t)((n) == (n) ? (int)(n) + 127 : 0) << 23))
#define V_LOAD_F16(p) mbi_f16_to_f32(MBI_T(v_u16)(p))
MBI_FN uint16_t MBI_T(v_u16)(const unsigned char *p) {
    return (uint16_t)(p[0] | (p[1] << 8));
}
#define V_LOAD_F16_COL(p, i) mbi_f16_to_f32(MBI_T(v_u16)((p) + 2 * (i)))
#define V_LOAD_BF16_COL(p, i) mbi_bf16_to_f32(MBI_T(v_u16)((p) + 2 * (i)))
#define V_LOAD_I8(p) ((float)(signed char)(p)[0])
#define V_LOAD_I8_COL(p, i) ((float)(signed char)(p)[i])
#define V_LOAD_Q6_COL(p, i) MBI_T(v_q6_col)((p), (i))
MBI_FN float MBI_T(v_q6_col)(const unsigned char *p, int i) {
    int low = p[64 * (i / 8) + i % 4] >> 4 * (i / 4 % 2) & 15;
    int high = p[128 + i % 4] >> 2 * (i / 4) & 3;
    return (float)(low + 16 * high - 32);
}
#define V_LOAD_Q4_COL(p, i)                                                                        \
    mbi_q4_value((i) < 4 ? (p)[(i) % 4] & 15u : (unsigned)(p)[(i) % 4] >> 4)
/* Register blocking of the products: see mbi_k_gemm. */
#define V_GEMM_V MBI_V2
#define V_GEMM_NV 2
#define V_GEMV_V MBI_V4
#define V_GEMV_NV 4
#endif /* MBI_SCALAR */

/* ------------------------------------------------------------------------------------------------
 * @@ops_avx2   Vector vocabulary: AVX2 + FMA + F16C, 8 lanes                             (private)
 * ---------------------------------------------------------------------------------------------- */
#if MBI_PASS == MBI_AVX2 || MBI_PASS == MBI_AVXVNNI
#define MBI_T(name) MBI_PASTE(name, avx2)
#define MBI_ATTRIBUTE __attribute__((target("avx2,fma,f16c")))
#define MBI_FN static MBI_UNUSED inline MBI_ATTRIBUTE
#define MBI_KERNEL static MBI_ATTRIBUTE MBI_NOINLINE
#define V_LANES 8
#define V_GROUP 8
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
#define V_SCALE2(v, n) MBI_T(v_scale2)((v), (n))
#define V_SCALE2_NEG(v, n)                                                                         \
    _mm256_mul_ps((v), _mm256_castsi256_ps(_mm256_slli_epi32(                                      \
                           _mm256_add_epi32(_mm256_cvttps_epi32(n), _mm256_set1_epi32(127)), 23)))
#define V_LOAD_U32(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define V_LOAD_F16(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p)))
/* i is a literal in all of these */
#define V_LOAD_F16_COL(p, i) MBI_T(v_f16_low)(_mm256_srli_epi32(V_LOAD_U32(p), 16 * (i)))
#define V_LOAD_BF16_COL(p, i)                                                                      \
    _mm256_castsi256_ps((i) == 0 ? _mm256_slli_epi32(V_LOAD_U32(p), 16)                            \
                                 : _mm256_and_si256(V_LOAD_U32(p),                                 \
                                                    _mm256_set1_epi32((int)0xffff0000)))
#define V_LOAD_I8_COL(p, i)                                                                        \
    _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(V_LOAD_U32(p), 24 - 8 * (i)), 24))
#define V_LOAD_I8(p)                                                                               \
    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(p))))
#define V_LOAD_Q6_COL(p, i)                                                                        \
    MBI_T(v_q6)(                                                                                   \
        _mm256_srli_epi32(V_LOAD_U32((p) + 64 * ((i) / 8)), 8 * ((i) % 4) + 4 * ((i) / 4 % 2)),    \
        _mm256_srli_epi32(V_LOAD_U32((p) + 128), 8 * ((i) % 4) + 2 * ((i) / 4)))
#define V_LOAD_Q4_COL(p, i)                                                                        \
    MBI_T(v_q4_top)(_mm256_slli_epi32(                                                             \
        (i) < 4 ? V_LOAD_U32(p) : _mm256_srli_epi32(V_LOAD_U32(p), 4), 24 - 8 * ((i) % 4)))
#define V_GEMM_V MBI_V2
#define V_GEMM_NV 2
#define V_GEMV_V MBI_V8
#define V_GEMV_NV 8
#if MBI_PASS == MBI_AVX2 /* once, though two passes use them */
MBI_FN __m256 MBI_T(v_scale2)(__m256 v, __m256 n) {
    const __m256i bias = _mm256_set1_epi32(127);
    __m256i i = _mm256_cvttps_epi32(n);
    __m256i half = _mm256_srai_epi32(i, 1);
    __m256i rest = _mm256_sub_epi32(i, half);
    v = _mm256_mul_ps(v, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23)));
    return _mm256_mul_ps(
        v, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23)));
}
MBI_FN __m256 MBI_T(v_f16_low)(__m256i u) { /* the low halves of 8 words */
    u = _mm256_and_si256(u, _mm256_set1_epi32(0xffff));
    u = _mm256_permute4x64_epi64(_mm256_packus_epi32(u, u), 0x08);
    return _mm256_cvtph_ps(_mm256_castsi256_si128(u));
}
MBI_FN __m256 MBI_T(v_q6)(__m256i low, __m256i high) { /* the lowest 4 and 2 bits of each */
    low = _mm256_and_si256(low, _mm256_set1_epi32(15));
    high = _mm256_slli_epi32(_mm256_and_si256(high, _mm256_set1_epi32(3)), 4);
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_or_si256(low, high), _mm256_set1_epi32(32)));
}
/* The shuffle reads the low 4 bits of a byte and needs its bit 7 clear: keep one nibble, in byte 3,
 * look it up there, and shift the sign down. */
MBI_FN __m256 MBI_T(v_q4_top)(__m256i u) {
    const __m256i values = _mm256_broadcastsi128_si256(_mm_setr_epi8(MBI_Q4_VALUES));
    u = _mm256_shuffle_epi8(values, _mm256_and_si256(u, _mm256_set1_epi32(0x0f000000)));
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(u, 24));
}
#endif
#endif /* MBI_AVX2 || MBI_AVXVNNI */

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
#define V_GROUP 16
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
/* 2^x, x <= 0, as MBI_T(v_exp2) of @@kernels, degree 5 on [-0.5, 0.5]: error 9.2e-8, and none at
 * x = 0.  On [0, 1), with scalef taking the floor of x by itself, one operation less gives a slow
 * decay (x near 0) a constant error of 8e-8 that hundreds of tokens add up: 1.5e-4 of the logits'
 * deviation on a model of 700 tokens, against 6e-6.  Denormal results are kept. */
MBI_FN __m512 MBI_T(v_exp2)(__m512 x) {
    __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 p = _mm512_set1_ps(0.00132647273f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.00967151299f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.0555073358f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.240222424f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.693147004f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, _mm512_sub_ps(x, r));
}
#define MBI_HAVE_EXP2 1
#define V_LOAD_U32(p) _mm512_loadu_si512((const void *)(p))
#define V_LOAD_F16(p) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(p)))
#define V_LOAD_F16_COL(p, i)                                                                       \
    _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(V_LOAD_U32(p), 16 * (i))))
#define V_LOAD_BF16_COL(p, i)                                                                      \
    _mm512_castsi512_ps((i) == 0 ? _mm512_slli_epi32(V_LOAD_U32(p), 16)                            \
                                 : _mm512_and_si512(V_LOAD_U32(p),                                 \
                                                    _mm512_set1_epi32((int)0xffff0000)))
#define V_LOAD_I8_COL(p, i)                                                                        \
    _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(V_LOAD_U32(p), 24 - 8 * (i)), 24))
#define V_LOAD_I8(p)                                                                               \
    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(p))))
#define V_LOAD_Q6_COL(p, i)                                                                        \
    MBI_T(v_q6)(                                                                                   \
        _mm512_srli_epi32(V_LOAD_U32((p) + 64 * ((i) / 8)), 8 * ((i) % 4) + 4 * ((i) / 4 % 2)),    \
        _mm512_srli_epi32(V_LOAD_U32((p) + 128), 8 * ((i) % 4) + 2 * ((i) / 4)))
MBI_FN __m512 MBI_T(v_q6)(__m512i low, __m512i high) { /* the lowest 4 and 2 bits of each */
    low = _mm512_and_si512(low, _mm512_set1_epi32(15));
    high = _mm512_slli_epi32(_mm512_and_si512(high, _mm512_set1_epi32(3)), 4);
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_or_si512(low, high), _mm512_set1_epi32(32)));
}
/* permutexvar reads the low 4 bits of each index only */
#define V_LOAD_Q4_COL(p, i)                                                                        \
    _mm512_permutexvar_ps(_mm512_srli_epi32(V_LOAD_U32(p), 8 * ((i) % 4) + 4 * ((i) / 4)),         \
                          _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_setr_epi8(MBI_Q4_VALUES))))
#define V_GEMM_V MBI_V4
#define V_GEMM_NV 4
#define V_GEMV_V MBI_V4
#define V_GEMV_NV 4
#endif /* MBI_AVX512 */

/* ------------------------------------------------------------------------------------------------
 * @@ops_neon   Vector vocabulary: AArch64 Advanced SIMD, 4 lanes                         (private)
 * ---------------------------------------------------------------------------------------------- */
#if MBI_PASS == MBI_NEON
#define MBI_T(name) MBI_PASTE(name, neon)
#define MBI_FN static MBI_UNUSED inline
#define MBI_KERNEL static MBI_NOINLINE
#define V_LANES 4
#define V_GROUP 16
#define vf float32x4_t
#define V_SET1(x) vdupq_n_f32(x)
#define V_LOAD(p) vld1q_f32(p)
#define V_STORE(p, v) vst1q_f32((p), (v))
#define V_ADD(a, b) vaddq_f32((a), (b))
#define V_SUB(a, b) vsubq_f32((a), (b))
#define V_MUL(a, b) vmulq_f32((a), (b))
#define V_DIV(a, b) vdivq_f32((a), (b))
#define V_FMA(a, b, c) vfmaq_f32((c), (a), (b))
#define V_MIN(a, b) vminq_f32((a), (b))
#define V_MAX(a, b) vmaxq_f32((a), (b))
#define V_ABS(a) vabsq_f32(a)
#define V_ROUND(a) vrndnq_f32(a)
#define V_GT_SELECT(a, b, x, y) vbslq_f32(vcgtq_f32((a), (b)), (x), (y))
MBI_FN float32x4_t MBI_T(v_pow2)(int32x4_t n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
}
MBI_FN float32x4_t MBI_T(v_scale2)(float32x4_t v, float32x4_t n) {
    int32x4_t i = vcvtq_s32_f32(n);
    int32x4_t half = vshrq_n_s32(i, 1);
    return vmulq_f32(vmulq_f32(v, MBI_T(v_pow2)(half)), MBI_T(v_pow2)(vsubq_s32(i, half)));
}
#define V_SCALE2(v, n) MBI_T(v_scale2)((v), (n))
#define V_SCALE2_NEG(v, n) vmulq_f32((v), MBI_T(v_pow2)(vcvtq_s32_f32(n)))
#define V_LOAD_U32(p) vreinterpretq_u32_u8(vld1q_u8(p))
#define V_LOAD_F16(p) vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)))
MBI_FN float32x4_t MBI_T(v_f16_col)(const unsigned char *p, int i) {
    uint32x4_t u = vshlq_u32(V_LOAD_U32(p), vdupq_n_s32(-16 * i));
    return vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(u)));
}
#define V_LOAD_F16_COL(p, i) MBI_T(v_f16_col)((p), (i))
MBI_FN float32x4_t MBI_T(v_bf16_col)(const unsigned char *p, int i) {
    uint32x4_t u = V_LOAD_U32(p);
    return vreinterpretq_f32_u32(i == 0 ? vshlq_n_u32(u, 16)
                                        : vandq_u32(u, vdupq_n_u32(0xffff0000u)));
}
#define V_LOAD_BF16_COL(p, i) MBI_T(v_bf16_col)((p), (i))
MBI_FN float32x4_t MBI_T(v_i8_col)(const unsigned char *p, int i) {
    int32x4_t u = vreinterpretq_s32_u32(vshlq_u32(V_LOAD_U32(p), vdupq_n_s32(24 - 8 * i)));
    return vcvtq_f32_s32(vshrq_n_s32(u, 24));
}
#define V_LOAD_I8_COL(p, i) MBI_T(v_i8_col)((p), (i))
MBI_FN float32x4_t MBI_T(v_i8)(const unsigned char *p) {
    int16x8_t u = vmovl_s8(vcreate_s8(mbi_load_u32(p)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(u)));
}
#define V_LOAD_I8(p) MBI_T(v_i8)(p)
MBI_FN float32x4_t MBI_T(v_q6_col)(const unsigned char *p, int i) {
    int column = 8 * (i % 4);
    int nibble = 4 * (i / 4 % 2);
    uint32x4_t low = vshlq_u32(V_LOAD_U32(p + 64 * (i / 8)), vdupq_n_s32(-column - nibble));
    uint32x4_t high = vshlq_u32(V_LOAD_U32(p + 128), vdupq_n_s32(-column - 2 * (i / 4)));
    low = vandq_u32(low, vdupq_n_u32(15));
    high = vshlq_n_u32(vandq_u32(high, vdupq_n_u32(3)), 4);
    return vcvtq_f32_s32(vsubq_s32(vreinterpretq_s32_u32(vorrq_u32(low, high)), vdupq_n_s32(32)));
}
#define V_LOAD_Q6_COL(p, i) MBI_T(v_q6_col)((p), (i))
MBI_FN float32x4_t MBI_T(v_q4_col)(const unsigned char *p, int i) {
    const signed char values[16] = {MBI_Q4_VALUES};
    int shift = i < 4 ? 8 * i : 8 * (i - 4) + 4;
    uint32x4_t u = vandq_u32(vshlq_u32(V_LOAD_U32(p), vdupq_n_s32(-shift)), vdupq_n_u32(15));
    int8x16_t v = vqtbl1q_s8(vld1q_s8(values), vreinterpretq_u8_u32(u)); /* byte 0 of each lane */
    return vcvtq_f32_s32(vshrq_n_s32(vshlq_n_s32(vreinterpretq_s32_s8(v), 24), 24));
}
#define V_LOAD_Q4_COL(p, i) MBI_T(v_q4_col)((p), (i))
#define V_GEMM_V MBI_V4
#define V_GEMM_NV 4
#define V_GEMV_V MBI_V8
#define V_GEMV_NV 8
#endif /* MBI_NEON */

/* ------------------------------------------------------------------------------------------------
 * @@ops_wasm   Vector vocabulary: WebAssembly SIMD128, 4 lanes (no FMA)                  (private)
 * ---------------------------------------------------------------------------------------------- */
#if MBI_PASS == MBI_WASM
#define MBI_T(name) MBI_PASTE(name, wasm)
#define MBI_FN static MBI_UNUSED inline
#define MBI_KERNEL static MBI_NOINLINE
#define V_LANES 4
#define V_GROUP 16
#define vf v128_t
#define V_SET1(x) wasm_f32x4_splat(x)
#define V_LOAD(p) wasm_v128_load(p)
#define V_STORE(p, v) wasm_v128_store((p), (v))
#define V_ADD(a, b) wasm_f32x4_add((a), (b))
#define V_SUB(a, b) wasm_f32x4_sub((a), (b))
#define V_MUL(a, b) wasm_f32x4_mul((a), (b))
#define V_DIV(a, b) wasm_f32x4_div((a), (b))
#define V_FMA(a, b, c) wasm_f32x4_add(wasm_f32x4_mul((a), (b)), (c))
#define V_MIN(a, b) wasm_f32x4_min((a), (b))
#define V_MAX(a, b) wasm_f32x4_max((a), (b))
#define V_ABS(a) wasm_f32x4_abs(a)
#define V_ROUND(a) wasm_f32x4_nearest(a)
#define V_GT_SELECT(a, b, x, y) wasm_v128_bitselect((x), (y), wasm_f32x4_gt((a), (b)))
MBI_FN v128_t MBI_T(v_pow2)(v128_t n) {
    return wasm_i32x4_shl(wasm_i32x4_add(n, wasm_i32x4_splat(127)), 23);
}
MBI_FN v128_t MBI_T(v_scale2)(v128_t v, v128_t n) {
    v128_t i = wasm_i32x4_trunc_sat_f32x4(n);
    v128_t half = wasm_i32x4_shr(i, 1);
    return V_MUL(V_MUL(v, MBI_T(v_pow2)(half)), MBI_T(v_pow2)(wasm_i32x4_sub(i, half)));
}
#define V_SCALE2(v, n) MBI_T(v_scale2)((v), (n))
#define V_SCALE2_NEG(v, n) V_MUL((v), MBI_T(v_pow2)(wasm_i32x4_trunc_sat_f32x4(n)))
#define V_LOAD_U32(p) wasm_v128_load(p)
/* Halves in the low 16 bits of each lane to floats: shift into place, scale the exponent by 2^112
 * (which also normalises subnormals), put infinities and NaNs back. */
MBI_FN v128_t MBI_T(v_f16_bits)(v128_t u) {
    v128_t sign = wasm_i32x4_shl(wasm_v128_and(u, wasm_i32x4_splat(0x8000)), 16);
    v128_t rest = wasm_i32x4_shl(wasm_v128_and(u, wasm_i32x4_splat(0x7fff)), 13);
    v128_t v = V_MUL(rest, wasm_f32x4_splat(5.192296858534828e33f));
    v128_t special = wasm_i32x4_ge(rest, wasm_i32x4_splat(0x0f800000));
    v = wasm_v128_or(v, wasm_v128_and(special, wasm_i32x4_splat(0x7f800000)));
    return wasm_v128_or(v, sign);
}
#define V_LOAD_F16(p) MBI_T(v_f16_bits)(wasm_u32x4_load16x4(p))
#define V_LOAD_F16_COL(p, i) MBI_T(v_f16_bits)(wasm_u32x4_shr(V_LOAD_U32(p), 16u * (unsigned)(i)))
#define V_LOAD_BF16_COL(p, i)                                                                      \
    ((i) == 0 ? wasm_i32x4_shl(V_LOAD_U32(p), 16)                                                  \
              : wasm_v128_and(V_LOAD_U32(p), wasm_i32x4_splat((int)0xffff0000)))
MBI_FN v128_t MBI_T(v_i8_col)(const unsigned char *p, int i) {
    v128_t u = wasm_i32x4_shl(V_LOAD_U32(p), (unsigned)(24 - 8 * i));
    return wasm_f32x4_convert_i32x4(wasm_i32x4_shr(u, 24));
}
#define V_LOAD_I8_COL(p, i) MBI_T(v_i8_col)((p), (i))
#define V_LOAD_I8(p)                                                                               \
    wasm_f32x4_convert_i32x4(                                                                      \
        wasm_i32x4_extend_low_i16x8(wasm_i16x8_extend_low_i8x16(wasm_v128_load32_zero(p))))
MBI_FN v128_t MBI_T(v_q6_col)(const unsigned char *p, int i) {
    unsigned column = 8u * ((unsigned)i % 4);
    v128_t low = wasm_u32x4_shr(V_LOAD_U32(p + 64 * (i / 8)), column + 4u * ((unsigned)i / 4 % 2));
    v128_t high = wasm_u32x4_shr(V_LOAD_U32(p + 128), column + 2u * ((unsigned)i / 4));
    low = wasm_v128_and(low, wasm_i32x4_splat(15));
    high = wasm_i32x4_shl(wasm_v128_and(high, wasm_i32x4_splat(3)), 4);
    return wasm_f32x4_convert_i32x4(
        wasm_i32x4_sub(wasm_v128_or(low, high), wasm_i32x4_splat(32)));
}
#define V_LOAD_Q6_COL(p, i) MBI_T(v_q6_col)((p), (i))
MBI_FN v128_t MBI_T(v_q4_col)(const unsigned char *p, int i) {
    const signed char values[16] = {MBI_Q4_VALUES};
    int shift = i < 4 ? 8 * i : 8 * (i - 4) + 4;
    v128_t u = wasm_u32x4_shr(V_LOAD_U32(p), (unsigned)shift);
    u = wasm_i8x16_swizzle(wasm_v128_load(values), wasm_v128_and(u, wasm_i32x4_splat(15)));
    return wasm_f32x4_convert_i32x4(wasm_i32x4_shr(wasm_i32x4_shl(u, 24), 24));
}
#define V_LOAD_Q4_COL(p, i) MBI_T(v_q4_col)((p), (i))
#define V_GEMM_V MBI_V2
#define V_GEMM_NV 2
#define V_GEMV_V MBI_V8
#define V_GEMV_NV 8
#endif /* MBI_WASM */

/* ------------------------------------------------------------------------------------------------
 * @@kernels   The mathematics of each kernel, once, in the vocabulary above              (private)
 * ---------------------------------------------------------------------------------------------- */
#if MBI_PASS != MBI_AVXVNNI
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

/* 2^x for x <= 0, within 2 ulp, exactly 1 at 0; 0 below -127.  NaN gives NaN. */
#ifndef MBI_HAVE_EXP2
MBI_FN vf MBI_T(v_exp2)(vf x) {
    vf n;
    vf r;
    vf p;
    x = V_MAX(V_SET1(-127.0f), x);
    n = V_ROUND(x);
    r = V_SUB(x, n);
    p = V_SET1(1.55946778e-4f);
    p = V_FMA(p, r, V_SET1(1.34066434e-3f));
    p = V_FMA(p, r, V_SET1(9.61769279e-3f));
    p = V_FMA(p, r, V_SET1(5.55031039e-2f));
    p = V_FMA(p, r, V_SET1(2.40226522e-1f));
    p = V_FMA(p, r, V_SET1(6.93147242e-1f));
    p = V_FMA(p, r, V_SET1(1.0f));
    return V_SCALE2_NEG(p, n);
}
#endif

MBI_FN vf MBI_T(v_silu)(vf x) {
    vf e = MBI_T(v_exp)(V_SUB(V_SET1(0.0f), x));
    return V_DIV(x, V_ADD(V_SET1(1.0f), e));
}

/* log(1+exp(x)) = max(x,0) + log1p(u), u = exp(-|x|) in (0,1]; log1p(u) = u P(u), P of degree 9
 * (minimax of the relative error: 4.7e-9).  Above 20: x. */
MBI_FN vf MBI_T(v_softplus)(vf x) {
    vf u = MBI_T(v_exp)(V_SUB(V_SET1(0.0f), V_ABS(x)));
    vf p = V_SET1(-0.0032440247f);
    p = V_FMA(p, u, V_SET1(0.0198514592f));
    p = V_FMA(p, u, V_SET1(-0.0569595285f));
    p = V_FMA(p, u, V_SET1(0.106036544f));
    p = V_FMA(p, u, V_SET1(-0.153055921f));
    p = V_FMA(p, u, V_SET1(0.196759388f));
    p = V_FMA(p, u, V_SET1(-0.249541342f));
    p = V_FMA(p, u, V_SET1(0.333299637f));
    p = V_FMA(p, u, V_SET1(-0.499999017f));
    p = V_FMA(p, u, V_SET1(1.0f));
    p = V_FMA(p, u, V_MAX(x, V_SET1(0.0f)));
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

/* Per token 16 partial sums over the channel blocks, then a fixed tree.  16 tokens at a time: blocks
 * lie far apart, and each brings a kilobyte; the next tokens are asked for while these are
 * written. */
MBI_KERNEL void MBI_T(mbi_k_rmsnorm)(const float *x, const float *w, float eps, int n, int n_tokens,
                                     int t0, int t1, float *y) {
    enum { TILE = 16 };
    size_t block = (size_t)n_tokens * MBI_LANES;
    int n_blocks = (n + MBI_LANES - 1) / MBI_LANES;
    int t;
    for (t = t0; t < t1; t += TILE) {
        const float *in = x + (size_t)t * MBI_LANES;
        float *out = y + (size_t)t * MBI_LANES;
        int width = mbi_min_int(TILE, t1 - t) * MBI_LANES;
        float sum[TILE * MBI_LANES];
        float scale[TILE * MBI_LANES];
        int b;
        int i;
        int k;
        for (i = 0; i < width; i += V_LANES) {
            V_STORE(sum + i, V_SET1(0.0f));
        }
        for (b = 0; b < n_blocks; b++) {
            for (i = 0; i < width; i += V_LANES) {
                vf v = V_LOAD(in + (size_t)b * block + i);
                V_STORE(sum + i, V_FMA(v, v, V_LOAD(sum + i)));
            }
        }
        for (k = 0; k < width; k += MBI_LANES) {
            for (i = 8; i > 0; i /= 2) {
                for (b = 0; b < i; b++) {
                    sum[k + b] += sum[k + b + i];
                }
            }
            for (i = 0; i < MBI_LANES; i += V_LANES) {
                V_STORE(scale + k + i, V_SET1(1.0f / sqrtf(sum[k] / (float)n + eps)));
            }
        }
        for (b = 0; b < n_blocks; b++) {
            for (i = 0; i < width; i += V_LANES) {
                size_t at = (size_t)b * block + (size_t)i;
                vf v = V_MUL(V_LOAD(in + at), V_LOAD(scale + i));
                __builtin_prefetch(in + at + width);
                if (w) {
                    v = V_MUL(v, V_LOAD(w + b * MBI_LANES + i % MBI_LANES));
                }
                V_STORE(out + at, v);
            }
        }
    }
}

/* The usual 4 taps with everything in registers: 1.8 times faster than the loop below, same bits. */
MBI_FN void MBI_T(mbi_conv4)(const float *x, const float *w, vf b, int silu, int n_tokens,
                             float *state, size_t stride, float *y) {
    vf w0 = V_LOAD(w);
    vf w1 = V_LOAD(w + stride);
    vf w2 = V_LOAD(w + 2 * stride);
    vf w3 = V_LOAD(w + 3 * stride);
    vf x0 = V_LOAD(state);
    vf x1 = V_LOAD(state + stride);
    vf x2 = V_LOAD(state + 2 * stride);
    int t;
    for (t = 0; t < n_tokens; t++) {
        vf x3 = V_LOAD(x + (size_t)t * MBI_LANES);
        vf v = V_FMA(w3, x3, V_FMA(w2, x2, V_FMA(w1, x1, V_FMA(w0, x0, b))));
        V_STORE(y + (size_t)t * MBI_LANES, silu ? MBI_T(v_silu)(v) : v);
        x0 = x1;
        x1 = x2;
        x2 = x3;
    }
    V_STORE(state, x0);
    V_STORE(state + stride, x1);
    V_STORE(state + 2 * stride, x2);
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
        if (d_conv == 4) {
            MBI_T(mbi_conv4)(x + i, w + i, b, silu, n_tokens, state + i, stride, y + i);
            continue;
        }
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

/* Scan of V_LANES channels, tokens inside, V_GROUP states in registers at a time.  y gets
 * sum_n C[n]*h[n], n ascending, from the groups one after the other.  The token loop is cut where
 * the states are to be flushed.  Registers: V_GROUP states, 4 to 7 more; the rest are memory
 * operands. */
#if V_GROUP == 16
#define MBI_EACH_STATE(X)                                                                          \
    X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#else
#define MBI_EACH_STATE(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#endif
#define MBI_SCAN_LOAD(k) vf h##k = V_LOAD(h + (k) * MBI_LANES);
#define MBI_SCAN_STORE(k) V_STORE(h + (k) * MBI_LANES, h##k);
#define MBI_SCAN_FLUSH(k) h##k = V_GT_SELECT(V_ABS(h##k), tiny, h##k, V_SET1(0.0f));
#define MBI_SCAN_STEP(k)                                                                           \
    h##k = V_FMA(MBI_T(v_exp2)(V_MUL(dt2, V_LOAD(A + (k) * MBI_LANES))), h##k,                     \
                 V_MUL(dtx, V_SET1(B[k])));                                                        \
    acc = V_FMA(h##k, V_SET1(C[k]), acc);
#define MBI_SCAN_TOKENS(each, first)                                                               \
    const vf tiny = V_SET1(7.888609052210118e-31f); /* 2^-100 */                                   \
    int t = t0;                                                                                    \
    each(MBI_SCAN_LOAD) while (t < t1) {                                                           \
        int end = mbi_min_int(t1, t + 16 - (int)((s->position + (uint64_t)t) & 15u));              \
        for (; t < end; t++) {                                                                     \
            const float *B = s->B + bc + (size_t)t * s->bc_token;                                  \
            const float *C = s->C + bc + (size_t)t * s->bc_token;                                  \
            vf dt = V_LOAD(s->dt + (size_t)t * MBI_LANES + i);                                     \
            vf dtx = V_MUL(dt, V_LOAD(s->x + (size_t)t * MBI_LANES + i));                          \
            vf dt2 = V_MUL(dt, V_SET1(1.44269504f));                                               \
            vf acc = (first) ? V_SET1(0.0f) : V_LOAD(y + (t - t0) * V_LANES);                      \
            each(MBI_SCAN_STEP) V_STORE(y + (t - t0) * V_LANES, acc);                              \
        }                                                                                          \
        if (((s->position + (uint64_t)t) & 15u) == 0) {                                            \
            each(MBI_SCAN_FLUSH)                                                                   \
        }                                                                                          \
    }                                                                                              \
    each(MBI_SCAN_STORE)
#define MBI_ONE_STATE(X) X(0)

MBI_KERNEL void MBI_T(mbi_scan_group)(const mbi_scan_block *s, int i, int n, int t0, int t1,
                                      float *MBI_RESTRICT y) {
    const float *A = s->A + n * MBI_LANES + i;
    float *h = s->h + n * MBI_LANES + i;
    size_t bc = (size_t)(n / MBI_LANES) * s->bc_block + (size_t)(n % MBI_LANES);
    MBI_SCAN_TOKENS(MBI_EACH_STATE, n == 0)
}

MBI_KERNEL void MBI_T(mbi_scan_one)(const mbi_scan_block *s, int i, int n, int t0, int t1,
                                    float *MBI_RESTRICT y) {
    const float *A = s->A + n * MBI_LANES + i;
    float *h = s->h + n * MBI_LANES + i;
    size_t bc = (size_t)(n / MBI_LANES) * s->bc_block + (size_t)(n % MBI_LANES);
    MBI_SCAN_TOKENS(MBI_ONE_STATE, n == 0)
}

MBI_KERNEL void MBI_T(mbi_k_scan_block)(const mbi_scan_block *s) {
    enum { TILE = 64 }; /* tokens whose y wait between two groups of states */
    MBI_ALIGN64 float y[TILE * V_LANES];
    int i;
    int t0;
    for (i = 0; i < MBI_LANES; i += V_LANES) {
        vf d = s->D ? V_LOAD(s->D + i) : V_SET1(0.0f);
        for (t0 = 0; t0 < s->n_tokens; t0 += TILE) {
            int t1 = mbi_min_int(t0 + TILE, s->n_tokens);
            int n = 0;
            int t;
            for (t = t0; t < t1 && s->z; t++) { /* long gone from the near caches */
                __builtin_prefetch(s->z + t * MBI_LANES + i);
            }
            for (; n + V_GROUP <= s->d_state; n += V_GROUP) {
                MBI_T(mbi_scan_group)(s, i, n, t0, t1, y);
            }
            for (; n < s->d_state; n++) {
                MBI_T(mbi_scan_one)(s, i, n, t0, t1, y);
            }
            for (t = t0; t < t1; t++) {
                size_t at = (size_t)t * MBI_LANES + (size_t)i;
                vf v = V_FMA(d, V_LOAD(s->x + at), V_LOAD(y + (t - t0) * V_LANES));
                if (s->z) {
                    v = V_MUL(v, MBI_T(v_silu)(V_LOAD(s->z + at)));
                }
                V_STORE(s->y + at, v);
            }
        }
    }
}
#undef MBI_EACH_STATE
#undef MBI_ONE_STATE
#undef MBI_SCAN_LOAD
#undef MBI_SCAN_STORE
#undef MBI_SCAN_FLUSH
#undef MBI_SCAN_STEP
#undef MBI_SCAN_TOKENS

/* K tokens in one pass over the states, as many as the target has registers for. */
#if MBI_PASS == MBI_AVX512 || MBI_PASS == MBI_NEON /* 32 registers */
#define MBI_SSD_TILE 8
#define MBI_SSD_EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#else
#define MBI_SSD_TILE 4
#define MBI_SSD_EACH(X) X(0) X(1) X(2) X(3)
#endif
#define MBI_SSD_ONE(X) X(0)
#define MBI_SSD_OF(v, k)                                                                           \
    (s->one_head ? V_SET1((v)[(t + (k)) * MBI_LANES]) : V_LOAD((v) + at + (k) * MBI_LANES))
#define MBI_SSD_LOAD(k)                                                                            \
    vf u##k = V_MUL(MBI_SSD_OF(s->w, k), V_LOAD(s->x + at + (k) * MBI_LANES));                     \
    vf y##k = V_SET1(0.0f);
#define MBI_SSD_FACTOR(k) vf f##k = MBI_SSD_OF(s->f, k);
#define MBI_SSD_STEP(k)                                                                            \
    g = V_FMA(u##k, V_SET1(B[k]), g);                                                              \
    y##k = V_FMA(V_SET1(C[k]), g, y##k);
#define MBI_SSD_STEP_F(k)                                                                          \
    g = V_MUL(f##k, g);                                                                            \
    MBI_SSD_STEP(k)
#define MBI_SSD_STORE(k)                                                                           \
    y##k = V_FMA(d, V_LOAD(s->x + at + (k) * MBI_LANES), V_MUL(MBI_SSD_OF(s->P, k), y##k));        \
    if (s->z) {                                                                                    \
        y##k = V_MUL(y##k, MBI_T(v_silu)(V_LOAD(s->z + at + (k) * MBI_LANES)));                    \
    }                                                                                              \
    V_STORE(s->y + at + (k) * MBI_LANES, y##k);
/* Lanes from i on of N tokens from t on, which are part of the `width` tokens from `start` on that
 * mbi_turn took together; with `settle` the states end as h. */
#define MBI_SSD_PASS(name, N, EACH, FACTORS, STEP)                                                 \
    MBI_FN void MBI_T(name)(const mbi_ssd_block *s, int i, int t, int start, int width,            \
                            int settle) {                                                          \
        const vf tiny = V_SET1(7.888609052210118e-31f); /* 2^-100 */                               \
        size_t at = (size_t)t * MBI_LANES + (size_t)i;                                             \
        size_t from = (size_t)start * (size_t)mbi_pad_int(s->d_state, MBI_LANES);                  \
        const float *B = s->B + from + (t - start);                                                \
        const float *C = s->C + from + (t - start);                                                \
        float *to = s->g + i;                                                                      \
        float *end = to + (size_t)s->d_state * MBI_LANES;                                          \
        vf d = s->D ? V_LOAD(s->D + i) : V_SET1(0.0f);                                             \
        vf P = MBI_SSD_OF(s->P, (N) - 1);                                                          \
        EACH(MBI_SSD_LOAD)                                                                         \
        FACTORS                                                                                    \
        for (; to != end; to += MBI_LANES, B += width, C += width) {                               \
            vf g = V_LOAD(to);                                                                     \
            EACH(STEP)                                                                             \
            if (settle) {                                                                          \
                g = V_MUL(P, g);                                                                   \
                g = V_GT_SELECT(V_ABS(g), tiny, g, V_SET1(0.0f));                                  \
            }                                                                                      \
            V_STORE(to, g);                                                                        \
        }                                                                                          \
        EACH(MBI_SSD_STORE)                                                                        \
    }
MBI_SSD_PASS(mbi_ssd_tile, MBI_SSD_TILE, MBI_SSD_EACH, , MBI_SSD_STEP)
MBI_SSD_PASS(mbi_ssd_tile_f, MBI_SSD_TILE, MBI_SSD_EACH, MBI_SSD_EACH(MBI_SSD_FACTOR),
             MBI_SSD_STEP_F)
MBI_SSD_PASS(mbi_ssd_one, 1, MBI_SSD_ONE, MBI_SSD_ONE(MBI_SSD_FACTOR), MBI_SSD_STEP_F)

/* Are all factors of a tile 1? */
MBI_FN int MBI_T(mbi_ssd_steady)(const mbi_ssd_block *s, int i, int t) {
    int n = s->one_head ? 1 : V_LANES;
    const float *f = s->f + (size_t)t * MBI_LANES + (s->one_head ? 0 : i);
    int steady = 1;
    int k;
    int l;
    for (k = 0; k < MBI_SSD_TILE; k++, f += MBI_LANES) {
        for (l = 0; l < n; l++) {
            steady &= f[l] == 1.0f;
        }
    }
    return steady;
}

MBI_KERNEL void MBI_T(mbi_k_ssd_block)(const mbi_ssd_block *s) {
    int i;
    int start;
    int width;
    for (i = 0; i < MBI_LANES; i += V_LANES) {
        for (start = 0; start < s->n_tokens; start += width) {
            int t = start;
            int end = start + (width = mbi_up_to_16(s->position, start, s->n_tokens));
            int whole = ((s->position + (uint64_t)end) & 15u) == 0;
            while (t < end) {
                int tile = end - t >= MBI_SSD_TILE;
                int next = t + (tile ? MBI_SSD_TILE : 1);
                (!tile                            ? MBI_T(mbi_ssd_one)
                 : MBI_T(mbi_ssd_steady)(s, i, t) ? MBI_T(mbi_ssd_tile)
                                                  : MBI_T(mbi_ssd_tile_f))(
                    s, i, t, start, width, whole && next == end);
                t = next;
            }
        }
    }
}
#undef MBI_SSD_TILE
#undef MBI_SSD_EACH
#undef MBI_SSD_ONE
#undef MBI_SSD_OF
#undef MBI_SSD_LOAD
#undef MBI_SSD_FACTOR
#undef MBI_SSD_STEP
#undef MBI_SSD_STEP_F
#undef MBI_SSD_STORE
#undef MBI_SSD_PASS

MBI_KERNEL void MBI_T(mbi_k_ssd_scale)(float *a, float *dt, float *P, float *last,
                                       uint64_t position, int n_tokens) {
    const vf least = V_SET1(5.421010862427522e-20f); /* 2^-64 */
    const vf one = V_SET1(1.0f);
    int i;
    int t;
    for (i = 0; i < MBI_LANES; i += V_LANES) {
        vf p = V_LOAD(last + i);
        for (t = 0; t < n_tokens; t++) {
            size_t at = (size_t)t * MBI_LANES + (size_t)i;
            vf now = V_MUL(((position + (uint64_t)t) & 15u) == 0 ? one : p, V_LOAD(a + at));
            p = V_GT_SELECT(now, least, now, one);
            V_STORE(a + at, V_GT_SELECT(now, least, one, now));
            V_STORE(dt + at, V_DIV(V_LOAD(dt + at), p));
            V_STORE(P + at, p);
        }
        V_STORE(last + i, p);
    }
}

MBI_KERNEL void MBI_T(mbi_k_ssd_decay)(float *dt, const float *bias, const float *A, float lo,
                                       float hi, size_t n, float *a) {
    size_t i;
    for (i = 0; i < n; i += V_LANES) {
        vf v = V_LOAD(dt + i);
        if (bias) {
            v = MBI_T(v_softplus)(V_ADD(v, V_LOAD(bias + i % MBI_LANES)));
        }
        v = V_MAX(V_SET1(lo), V_MIN(V_SET1(hi), v));
        V_STORE(dt + i, v);
        V_STORE(a + i, MBI_T(v_exp)(V_MUL(v, V_LOAD(A + i % MBI_LANES))));
    }
}

MBI_KERNEL void MBI_T(mbi_k_gate)(const float *x, const float *z, float *y, size_t n) {
    size_t i;
    for (i = 0; i < n; i += V_LANES) {
        V_STORE(y + i, V_MUL(V_LOAD(x + i), MBI_T(v_silu)(V_LOAD(z + i))));
    }
}

/* q.k of `width` floats: 16 partial sums, then a fixed tree. */
MBI_FN float MBI_T(mbi_dot)(const float *q, const float *k, int width) {
    float sum[MBI_LANES];
    int i;
    int b;
    for (i = 0; i < MBI_LANES; i += V_LANES) {
        vf acc = V_SET1(0.0f);
        for (b = 0; b < width; b += MBI_LANES) {
            acc = V_FMA(V_LOAD(q + b + i), V_LOAD(k + b + i), acc);
        }
        V_STORE(sum + i, acc);
    }
    for (i = 8; i > 0; i /= 2) {
        for (b = 0; b < i; b++) {
            sum[b] += sum[b + i];
        }
    }
    return sum[0];
}

MBI_KERNEL void MBI_T(mbi_k_attend)(const mbi_attend *a) {
    enum { BLOCK = 64, MAX_WIDTH = 1024 };
    float q[MAX_WIDTH];
    float out[MAX_WIDTH];
    float p[BLOCK];
    float most = -3.4028234e38f;
    vf total = V_SET1(0.0f);
    uint64_t start;
    int i;
    int j;
    for (i = 0; i < a->width; i += V_LANES) {
        V_STORE(q + i, V_LOAD(a->q + (size_t)(i / MBI_LANES) * a->stride + i % MBI_LANES));
        V_STORE(out + i, V_SET1(0.0f));
    }
    for (start = 0; start < a->n_keys; start += BLOCK) {
        const float *k = a->k + (size_t)start * a->kv_stride;
        const float *v = a->v + (size_t)start * a->kv_stride;
        int n = a->n_keys - start < BLOCK ? (int)(a->n_keys - start) : BLOCK;
        float before = most;
        float sum = 0.0f;
        vf decay;
        for (j = 0; j < n; j++) {
            p[j] = a->scale * MBI_T(mbi_dot)(q, k + (size_t)j * a->kv_stride, a->width);
            most = p[j] > most ? p[j] : most;
        }
        for (j = n; j < BLOCK; j++) {
            p[j] = -3.4028234e38f;
        }
        for (j = 0; j < BLOCK; j += V_LANES) {
            V_STORE(p + j, MBI_T(v_exp)(V_SUB(V_LOAD(p + j), V_SET1(most))));
        }
        for (j = 0; j < n; j++) {
            sum += p[j];
        }
        decay = MBI_T(v_exp)(V_SUB(V_SET1(before), V_SET1(most)));
        total = V_FMA(total, decay, V_SET1(sum));
        for (i = 0; i < a->width; i += V_LANES) {
            vf acc = V_MUL(V_LOAD(out + i), decay);
            for (j = 0; j < n; j++) {
                acc = V_FMA(V_SET1(p[j]), V_LOAD(v + (size_t)j * a->kv_stride + i), acc);
            }
            V_STORE(out + i, acc);
        }
    }
    for (i = 0; i < a->width; i += V_LANES) {
        V_STORE(a->out + (size_t)(i / MBI_LANES) * a->stride + i % MBI_LANES,
                V_DIV(V_LOAD(out + i), total));
    }
}

MBI_KERNEL size_t MBI_T(mbi_k_prepared_bytes)(mamba_type type, int n, int n_tokens) {
    (void)type;
    (void)n;
    (void)n_tokens;
    return 0;
}

MBI_KERNEL void MBI_T(mbi_k_prepare)(mamba_type type, const float *x, int n, int n_tokens,
                                     int t0, int t1, int g0, int g1, void *out) {
    (void)type;
    (void)x;
    (void)n;
    (void)n_tokens;
    (void)t0;
    (void)t1;
    (void)g0;
    (void)g1;
    (void)out;
}

/* The scales of V_LANES rows: base * code * |code|. */
MBI_FN vf MBI_T(mbi_scales)(const unsigned char *codes, float base) {
    vf c = V_LOAD_I8(codes);
    return V_MUL(V_MUL(c, V_ABS(c)), V_SET1(base));
}

/* Columns [16*b, 16*b+16) of panel p as floats, [16 columns][16 rows]: exact values, the one
 * place that knows the byte layout of each type. */
MBI_FN void MBI_T(mbi_columns)(const mbi_mat *w, int p, int b, float *MBI_RESTRICT out) {
    const unsigned char *panel = w->data + (size_t)p * w->panel_bytes;
    int i;
    int c;
#define MBI_COLUMN(LOAD, k) V_STORE(out + (c + (k)) * MBI_LANES + i, V_MUL(LOAD(u, k), s));
    switch (w->type) {
    case MAMBA_F32: memcpy(out, panel + (size_t)b * 1024, 1024); break;
    case MAMBA_F16:
        for (i = 0; i < MBI_LANES; i += V_LANES) {
            const unsigned char *u = panel + (size_t)b * 512 + 4 * i;
            for (c = 0; c < 16; c += 2, u += 64) {
                V_STORE(out + c * MBI_LANES + i, V_LOAD_F16_COL(u, 0));
                V_STORE(out + (c + 1) * MBI_LANES + i, V_LOAD_F16_COL(u, 1));
            }
        }
        break;
    case MAMBA_BF16:
        for (i = 0; i < MBI_LANES; i += V_LANES) {
            const unsigned char *u = panel + (size_t)b * 512 + 4 * i;
            for (c = 0; c < 16; c += 2, u += 64) {
                V_STORE(out + c * MBI_LANES + i, V_LOAD_BF16_COL(u, 0));
                V_STORE(out + (c + 1) * MBI_LANES + i, V_LOAD_BF16_COL(u, 1));
            }
        }
        break;
    case MAMBA_Q8:
        for (i = 0; i < MBI_LANES; i += V_LANES) {
            const unsigned char *u =
                panel + mbi_units_at(1024, b / 4) + (size_t)(b % 4) * 256 + 4 * i;
            vf s = MBI_T(mbi_scales)(panel + mbi_codes_at(1024, b / 4) + i, w->bases[p]);
            for (c = 0; c < 16; c += 4, u += 64) {
                MBI_COLUMN(V_LOAD_I8_COL, 0) MBI_COLUMN(V_LOAD_I8_COL, 1)
                MBI_COLUMN(V_LOAD_I8_COL, 2) MBI_COLUMN(V_LOAD_I8_COL, 3)
            }
        }
        break;
    case MAMBA_Q6:
        for (i = 0; i < MBI_LANES; i += V_LANES) {
            const unsigned char *u =
                panel + mbi_units_at(768, b / 4) + (size_t)(b % 4) * 192 + 4 * i;
            vf s = MBI_T(mbi_scales)(panel + mbi_codes_at(768, b / 4) + i, w->bases[p]);
            c = 0;
            MBI_COLUMN(V_LOAD_Q6_COL, 0) MBI_COLUMN(V_LOAD_Q6_COL, 1)
            MBI_COLUMN(V_LOAD_Q6_COL, 2) MBI_COLUMN(V_LOAD_Q6_COL, 3)
            MBI_COLUMN(V_LOAD_Q6_COL, 4) MBI_COLUMN(V_LOAD_Q6_COL, 5)
            MBI_COLUMN(V_LOAD_Q6_COL, 6) MBI_COLUMN(V_LOAD_Q6_COL, 7)
            MBI_COLUMN(V_LOAD_Q6_COL, 8) MBI_COLUMN(V_LOAD_Q6_COL, 9)
            MBI_COLUMN(V_LOAD_Q6_COL, 10) MBI_COLUMN(V_LOAD_Q6_COL, 11)
            MBI_COLUMN(V_LOAD_Q6_COL, 12) MBI_COLUMN(V_LOAD_Q6_COL, 13)
            MBI_COLUMN(V_LOAD_Q6_COL, 14) MBI_COLUMN(V_LOAD_Q6_COL, 15)
        }
        break;
    case MAMBA_Q4:
        for (i = 0; i < MBI_LANES; i += V_LANES) {
            const unsigned char *u =
                panel + mbi_units_at(512, b / 4) + (size_t)(b % 4) * 128 + 4 * i;
            vf s = MBI_T(mbi_scales)(panel + mbi_codes_at(512, b / 4) + i, w->bases[p]);
            for (c = 0; c < 16; c += 8, u += 64) {
                MBI_COLUMN(V_LOAD_Q4_COL, 0) MBI_COLUMN(V_LOAD_Q4_COL, 1)
                MBI_COLUMN(V_LOAD_Q4_COL, 2) MBI_COLUMN(V_LOAD_Q4_COL, 3)
                MBI_COLUMN(V_LOAD_Q4_COL, 4) MBI_COLUMN(V_LOAD_Q4_COL, 5)
                MBI_COLUMN(V_LOAD_Q4_COL, 6) MBI_COLUMN(V_LOAD_Q4_COL, 7)
            }
        }
        break;
#undef MBI_COLUMN
    }
}

MBI_KERNEL void MBI_T(mbi_k_row)(const mbi_mat *w, int row, float *out, size_t out_block) {
    float columns[16 * MBI_LANES];
    int b;
    int c;
    for (b = 0; b * 16 < w->cols; b++) {
        MBI_T(mbi_columns)(w, row / MBI_LANES, b, columns);
        for (c = 0; c < 16; c++) {
            out[(size_t)b * out_block + (size_t)c] =
                b * 16 + c < w->cols ? columns[c * MBI_LANES + row % MBI_LANES] : 0.0f;
        }
    }
}

/* acc [n tokens][width] for the panels from p on: their bias, or zero. */
MBI_FN void MBI_T(mbi_gemm_start)(const mbi_gemm *g, int p, int n, int width, float *acc) {
    int i;
    int t;
    for (i = 0; i < width; i += V_LANES) {
        vf first = g->bias ? V_LOAD(g->bias + p * MBI_LANES + i) : V_SET1(0.0f);
        for (t = 0; t < n; t++) {
            V_STORE(acc + t * width + i, first);
        }
    }
}

/* Sums of panel p and n tokens, `stride` floats from one token to the next, into y. */
MBI_FN void MBI_T(mbi_gemm_finish)(const mbi_gemm *g, int p, int start, int n, const float *sum,
                                   int stride) {
    int n_rows = g->exact_rows ? mbi_min_int(MBI_LANES, g->w->rows - p * MBI_LANES) : MBI_LANES;
    float *y = g->y + (size_t)p * g->y_panel + (size_t)start * g->y_token;
    int t;
    int i;
    for (t = 0; t < n; t++, y += g->y_token, sum += stride) {
        if (n_rows < MBI_LANES) {
            for (i = 0; i < n_rows; i++) {
                y[i] = g->add ? y[i] + sum[i] : sum[i];
            }
        } else if (g->add) {
            for (i = 0; i < MBI_LANES; i += V_LANES) {
                V_STORE(y + i, V_ADD(V_LOAD(y + i), V_LOAD(sum + i)));
            }
        } else {
            for (i = 0; i < MBI_LANES; i += V_LANES) {
                V_STORE(y + i, V_LOAD(sum + i));
            }
        }
    }
}

/* One register block of a product: acc[t][v] += sum over 16*n_blocks columns of w[v] * x[t], for NV
 * vectors of V_LANES rows and NT tokens.  Vector v lies in panel v*V_LANES/16 of w (`stride` floats
 * apart).  Each accumulator stays in its register; per column NV loads, NT broadcasts and NV*NT
 * FMAs.  acc: [token][acc_token]; x: blocked, x_block floats from one block of columns to the next. */
#define MBI_V1(X, t) X(0, t)
#define MBI_V2(X, t) X(0, t) X(1, t)
#define MBI_V4(X, t) X(0, t) X(1, t) X(2, t) X(3, t)
#define MBI_V8(X, t) MBI_V4(X, t) X(4, t) X(5, t) X(6, t) X(7, t)
#define MBI_N1(V, X) X(V, 0)
#define MBI_N6(V, X) X(V, 0) X(V, 1) X(V, 2) X(V, 3) X(V, 4) X(V, 5)
#define MBI_N12(V, X) MBI_N6(V, X) X(V, 6) X(V, 7) X(V, 8) X(V, 9) X(V, 10) X(V, 11)
#define MBI_FMA_W(v, t)                                                                            \
    vf w##v = V_LOAD(w[(v) * V_LANES / MBI_LANES] + c * MBI_LANES + (v) * V_LANES % MBI_LANES);
#define MBI_FMA_IN(v, t) vf a##v##_##t = V_LOAD(acc + (t) * acc_token + (v) * V_LANES);
#define MBI_FMA_OUT(v, t) V_STORE(acc + (t) * acc_token + (v) * V_LANES, a##v##_##t);
#define MBI_FMA_ADD(v, t) a##v##_##t = V_FMA(w##v, xt, a##v##_##t);
#define MBI_FMA_LOAD(V, t) V(MBI_FMA_IN, t)
#define MBI_FMA_STORE(V, t) V(MBI_FMA_OUT, t)
#define MBI_FMA_TOKEN(V, t)                                                                        \
    xt = V_SET1(x[(t) * MBI_LANES + c]);                                                           \
    V(MBI_FMA_ADD, t)
#define MBI_FMA_KERNEL(name, NV, V, N)                                                             \
    MBI_KERNEL void MBI_T(name)(const float *panel, size_t stride, const float *x, size_t x_block, \
                                int n_blocks, float *acc, int acc_token) {                         \
        const float *w[((NV) * V_LANES + MBI_LANES - 1) / MBI_LANES];                              \
        int c;                                                                                     \
        for (c = 0; c < (int)(sizeof w / sizeof w[0]); c++) {                                      \
            w[c] = panel + (size_t)c * stride;                                                     \
        }                                                                                          \
        N(V, MBI_FMA_LOAD)                                                                         \
        for (; n_blocks > 0; n_blocks--) {                                                         \
            for (c = 0; c < 16; c++) {                                                             \
                vf xt;                                                                             \
                V(MBI_FMA_W, 0)                                                                    \
                N(V, MBI_FMA_TOKEN)                                                                \
            }                                                                                      \
            for (c = 0; c < (int)(sizeof w / sizeof w[0]); c++) {                                  \
                w[c] += 16 * MBI_LANES;                                                            \
            }                                                                                      \
            x += x_block;                                                                          \
        }                                                                                          \
        N(V, MBI_FMA_STORE)                                                                        \
    }
MBI_FMA_KERNEL(mbi_fma_6, V_GEMM_NV, V_GEMM_V, MBI_N6)
MBI_FMA_KERNEL(mbi_fma_1, V_GEMV_NV, V_GEMV_V, MBI_N1)
MBI_FMA_KERNEL(mbi_fma_v6, 1, MBI_V1, MBI_N6)
MBI_FMA_KERNEL(mbi_fma_v12, 1, MBI_V1, MBI_N12)
MBI_FMA_KERNEL(mbi_fma_two12, 2, MBI_V2, MBI_N12)
MBI_FMA_KERNEL(mbi_fma_v1, 1, MBI_V1, MBI_N1)
#undef MBI_N1
#undef MBI_N6
#undef MBI_N12
#undef MBI_FMA_W
#undef MBI_FMA_IN
#undef MBI_FMA_OUT
#undef MBI_FMA_ADD
#undef MBI_FMA_LOAD
#undef MBI_FMA_STORE
#undef MBI_FMA_TOKEN
#undef MBI_FMA_KERNEL

/* Lines still to be asked for, of some columns of some panels, while other weights are multiplied:
 * one of each panel in turn, since memory gives more to several streams. */
typedef struct MBI_T(mbi_ahead) {
    const unsigned char *at; /* the line of the first panel */
    size_t panel_bytes;
    int n_panels, panel;
    int left, step; /* step: how many at a time */
} MBI_T(mbi_ahead);

/* So many bytes from byte `first` on of `step` panels from p on, as far as those are below p1 or
 * g->next. */
MBI_FN MBI_T(mbi_ahead) MBI_T(mbi_ahead_panels)(const mbi_gemm *g, int p, int step, int p1,
                                                size_t first, size_t bytes) {
    MBI_T(mbi_ahead) a;
    memset(&a, 0, sizeof a);
    p1 = mbi_max_int(p1, g->next);
    p = mbi_min_int(p, p1);
    a.at = g->w->data + (size_t)p * g->w->panel_bytes + first;
    a.panel_bytes = (size_t)g->w->panel_bytes;
    a.n_panels = mbi_min_int(step, p1 - p);
    a.left = a.n_panels * (int)(bytes / 64);
    return a;
}

MBI_FN void MBI_T(mbi_ahead_some)(MBI_T(mbi_ahead) *a, int n) {
    const unsigned char *at = a->at; /* in registers: in *a they cost more than the lines */
    const size_t panel_bytes = a->panel_bytes;
    const int n_panels = a->n_panels;
    int panel = a->panel;
    a->left -= n = mbi_min_int(n, a->left);
    for (; n > 0; n--) {
        MBI_PREFETCH(at + (size_t)panel * panel_bytes);
        if (++panel == n_panels) {
            panel = 0;
            at += 64;
        }
    }
    a->at = at;
    a->panel = panel;
}

/* acc (n tokens, n_panels*16) += panels * x over n_blocks blocks of 16 columns: the largest
 * register blocks that fit, then smaller ones.  Rows too few for the largest (1 to 3 panels in
 * AVX-512) take more tokens instead.  Every output sees its columns in the same order. */
MBI_FN void MBI_T(mbi_fma_block)(const float *panel, size_t stride, int n_panels, const float *x,
                                 size_t x_block, int n_blocks, int n, float *acc,
                                 MBI_T(mbi_ahead) *ahead) {
    const int few = n_panels * MBI_LANES < V_GEMM_NV * V_LANES;
    int width = n_panels * MBI_LANES;
    int t;
    int step;
    for (t = 0; t < n; t += step) {
        const float *xt = x + (size_t)t * MBI_LANES;
        float *a = acc + (size_t)t * (size_t)width;
        int v = 0;
        int wide; /* vectors at a time, while there are so many */
        step = few && n - t >= 12 ? 12 : n - t >= 6 ? 6 : 1;
        wide = step == 12 ? 2 : step == 6 ? V_GEMM_NV : V_GEMV_NV;
        MBI_T(mbi_ahead_some)(ahead, step * ahead->step);
        while (v < width) {
            int single = width - v < wide * V_LANES;
            (step == 12  ? single ? MBI_T(mbi_fma_v12) : MBI_T(mbi_fma_two12)
             : step == 6 ? single ? MBI_T(mbi_fma_v6) : MBI_T(mbi_fma_6)
             : single    ? MBI_T(mbi_fma_v1)
                         : MBI_T(mbi_fma_1))(
                panel + (size_t)(v / MBI_LANES) * stride + v % MBI_LANES, stride, xt, x_block,
                n_blocks, a + v, width);
            v += single ? V_LANES : wide * V_LANES;
        }
    }
}

/* One token and weights that are no floats yet: the same sums, but the weights are converted in
 * registers on their way from memory.  Expanding them into the scratch first, as mbi_k_gemm does
 * for many tokens, halves the speed: bf16 on one Zen 5 core 37 % of the read bandwidth instead of
 * 90 %.  NV vectors of V_LANES rows from row `row` of the panel on, `stride` bytes from one panel to
 * the next; n_blocks blocks of 16 columns. */
#define MBI_GEMV_IN(v, t)                                                                          \
    const unsigned char *p##v = panel + (size_t)((row + (v) * V_LANES) / MBI_LANES) * stride;      \
    const int r##v = (row + (v) * V_LANES) % MBI_LANES;                                            \
    vf a##v = V_LOAD(acc + (v) * V_LANES);
#define MBI_GEMV_OUT(v, t) V_STORE(acc + (v) * V_LANES, a##v);
#define MBI_GEMV_UNIT(v, t) const unsigned char *u##v = p##v + at + 4 * r##v;
#define MBI_GEMV_SCALE(v, t)                                                                       \
    vf s##v = MBI_T(mbi_scales)(p##v + codes_at + r##v, bases[(row + (v) * V_LANES) / MBI_LANES]);
#define MBI_GEMV_NEXT(v, t) u##v += 64;
#define MBI_GEMV_F16(v, i) a##v = V_FMA(V_LOAD_F16_COL(u##v, i), xt, a##v);
#define MBI_GEMV_BF16(v, i) a##v = V_FMA(V_LOAD_BF16_COL(u##v, i), xt, a##v);
#define MBI_GEMV_Q8(v, i) a##v = V_FMA(V_MUL(V_LOAD_I8_COL(u##v, i), s##v), xt, a##v);
#define MBI_GEMV_Q6(v, i) a##v = V_FMA(V_MUL(V_LOAD_Q6_COL(u##v, i), s##v), xt, a##v);
#define MBI_GEMV_Q4(v, i) a##v = V_FMA(V_MUL(V_LOAD_Q4_COL(u##v, i), s##v), xt, a##v);
#define MBI_GEMV_COLUMN(V, ADD, i)                                                                 \
    xt = V_SET1(x[c + (i)]);                                                                       \
    V(ADD, i)
#define MBI_GEMV_2(V, ADD) MBI_GEMV_COLUMN(V, ADD, 0) MBI_GEMV_COLUMN(V, ADD, 1)
#define MBI_GEMV_4(V, ADD)                                                                         \
    MBI_GEMV_2(V, ADD) MBI_GEMV_COLUMN(V, ADD, 2) MBI_GEMV_COLUMN(V, ADD, 3)
#define MBI_GEMV_8(V, ADD)                                                                         \
    MBI_GEMV_4(V, ADD) MBI_GEMV_COLUMN(V, ADD, 4) MBI_GEMV_COLUMN(V, ADD, 5)                       \
    MBI_GEMV_COLUMN(V, ADD, 6) MBI_GEMV_COLUMN(V, ADD, 7)
#define MBI_GEMV_16(V, ADD)                                                                        \
    MBI_GEMV_8(V, ADD)                                                                             \
    MBI_GEMV_COLUMN(V, ADD, 8) MBI_GEMV_COLUMN(V, ADD, 9) MBI_GEMV_COLUMN(V, ADD, 10)              \
    MBI_GEMV_COLUMN(V, ADD, 11) MBI_GEMV_COLUMN(V, ADD, 12) MBI_GEMV_COLUMN(V, ADD, 13)            \
    MBI_GEMV_COLUMN(V, ADD, 14) MBI_GEMV_COLUMN(V, ADD, 15)
/* A unit holds UNIT columns, BYTES are those of 16 columns; SCALES loads their scales. */
#define MBI_GEMV_KERNEL(name, V, UNIT, EACH, ADD, BYTES, SCALES)                                   \
    MBI_KERNEL void MBI_T(name)(const unsigned char *panel, size_t stride, const float *bases,     \
                                int row, const float *x, size_t x_block, int n_blocks,             \
                                float *acc) {                                                      \
        int b;                                                                                     \
        V(MBI_GEMV_IN, 0)                                                                          \
        for (b = 0; b < n_blocks; b++, x += x_block) {                                             \
            size_t at = bases ? mbi_units_at(4 * (BYTES), b / 4) + (size_t)(b % 4) * (BYTES)       \
                              : (size_t)b * (BYTES);                                               \
            size_t codes_at = mbi_codes_at(4 * (BYTES), b / 4);                                    \
            int c;                                                                                 \
            V(SCALES, 0)                                                                           \
            V(MBI_GEMV_UNIT, 0)                                                                    \
            (void)codes_at;                                                                        \
            for (c = 0; c < 16; c += (UNIT)) {                                                     \
                vf xt;                                                                             \
                EACH(V, ADD)                                                                       \
                V(MBI_GEMV_NEXT, 0)                                                                \
            }                                                                                      \
        }                                                                                          \
        V(MBI_GEMV_OUT, 0)                                                                         \
    }
#define MBI_GEMV_NONE(v, t)
#define MBI_GEMV_TYPE(name, V, UNIT, EACH, ADD, BYTES, SCALES)                                     \
    MBI_GEMV_KERNEL(name, V, UNIT, EACH, ADD, BYTES, SCALES)                                       \
    MBI_GEMV_KERNEL(name##_v1, MBI_V1, UNIT, EACH, ADD, BYTES, SCALES)
MBI_GEMV_TYPE(mbi_gemv_f16, V_GEMV_V, 2, MBI_GEMV_2, MBI_GEMV_F16, 512, MBI_GEMV_NONE)
MBI_GEMV_TYPE(mbi_gemv_bf16, V_GEMV_V, 2, MBI_GEMV_2, MBI_GEMV_BF16, 512, MBI_GEMV_NONE)
MBI_GEMV_TYPE(mbi_gemv_q8, V_GEMM_V, 4, MBI_GEMV_4, MBI_GEMV_Q8, 256, MBI_GEMV_SCALE)
MBI_GEMV_TYPE(mbi_gemv_q6, V_GEMM_V, 16, MBI_GEMV_16, MBI_GEMV_Q6, 192, MBI_GEMV_SCALE)
MBI_GEMV_TYPE(mbi_gemv_q4, V_GEMM_V, 8, MBI_GEMV_8, MBI_GEMV_Q4, 128, MBI_GEMV_SCALE)
#undef MBI_GEMV_IN
#undef MBI_GEMV_OUT
#undef MBI_GEMV_UNIT
#undef MBI_GEMV_SCALE
#undef MBI_GEMV_NEXT
#undef MBI_GEMV_F16
#undef MBI_GEMV_BF16
#undef MBI_GEMV_Q8
#undef MBI_GEMV_Q6
#undef MBI_GEMV_Q4
#undef MBI_GEMV_COLUMN
#undef MBI_GEMV_2
#undef MBI_GEMV_4
#undef MBI_GEMV_8
#undef MBI_GEMV_16
#undef MBI_GEMV_KERNEL
#undef MBI_GEMV_NONE
#undef MBI_GEMV_TYPE
#undef MBI_V1
#undef MBI_V2
#undef MBI_V4
#undef MBI_V8

MBI_KERNEL void MBI_T(mbi_gemv)(const mbi_gemm *g, int p0, int p1, int t) {
    enum { GROUP = 4 };
    typedef void kernel(const unsigned char *, size_t, const float *, int, const float *, size_t,
                        int, float *);
    static kernel *const kernels[5][2] = {{MBI_T(mbi_gemv_f16), MBI_T(mbi_gemv_f16_v1)},
                                          {MBI_T(mbi_gemv_bf16), MBI_T(mbi_gemv_bf16_v1)},
                                          {MBI_T(mbi_gemv_q8), MBI_T(mbi_gemv_q8_v1)},
                                          {MBI_T(mbi_gemv_q6), MBI_T(mbi_gemv_q6_v1)},
                                          {MBI_T(mbi_gemv_q4), MBI_T(mbi_gemv_q4_v1)}};
    const mbi_mat *w = g->w;
    kernel *const *of_type = kernels[w->type - MAMBA_F16];
    int step = V_LANES * (mbi_is_quantized(w->type) ? V_GEMM_NV : V_GEMV_NV); /* rows of [0] */
    const float *x = (const float *)g->x + (size_t)t * MBI_LANES;
    int p;
    for (p = p0; p < p1; p += GROUP) {
        MBI_ALIGN64 float acc[GROUP * MBI_LANES];
        int n_panels = mbi_min_int(GROUP, p1 - p);
        int i;
        int row;
        for (i = 0; i < n_panels * MBI_LANES; i++) {
            acc[i] = g->bias ? g->bias[p * MBI_LANES + i] : 0.0f;
        }
        for (row = 0; row < n_panels * MBI_LANES;) {
            int full = n_panels * MBI_LANES - row >= step;
            const unsigned char *panel = w->data + (size_t)(p + row / MBI_LANES) * w->panel_bytes;
            of_type[!full](panel, (size_t)w->panel_bytes,
                           w->bases ? w->bases + p + row / MBI_LANES : NULL, row % MBI_LANES, x,
                           (size_t)g->n_tokens * MBI_LANES, (w->cols + 15) / 16, acc + row);
            row += full ? step : V_LANES;
        }
        for (i = 0; i < n_panels; i++) {
            MBI_T(mbi_gemm_finish)(g, p + i, t, 1, acc + i * MBI_LANES, MBI_LANES);
        }
    }
}

/* The product in float32: groups of 4 panels; 128 columns of them at a time, expanded to floats in
 * the scratch unless they are floats already (32 KiB: the first-level cache), then used for all
 * tokens, while the next ones come into the second-level cache where this CPU gains by it; the sums
 * wait in the scratch from one block of columns to the next. */
MBI_KERNEL void MBI_T(mbi_k_gemm)(const mbi_gemm *g, int p0, int p1, int t0, int t1) {
    enum { GROUP = 4, COLUMNS = 8, PANEL = COLUMNS * 16 * MBI_LANES, MAX_T = 768, MANY = 16 };
    const mbi_mat *w = g->w;
    float *expanded = (float *)g->scratch;
    float *acc = expanded + GROUP * PANEL;
    const float *x = (const float *)g->x;
    size_t x_block = (size_t)g->n_tokens * MBI_LANES;
    size_t block_bytes = w->type == MAMBA_F32 ? 1024 : 512;
    int n_blocks = (w->cols + 15) / 16;
    int start;
    int p;
    if (t1 - t0 == 1 && w->type != MAMBA_F32) {
        MBI_T(mbi_gemv)(g, p0, p1, t0);
        return;
    }
    for (start = t0; start < t1; start += MAX_T) {
        int n = mbi_min_int(MAX_T, t1 - start);
        for (p = p0; p < p1; p += GROUP) {
            int n_panels = mbi_min_int(GROUP, p1 - p);
            int width = n_panels * MBI_LANES;
            const unsigned char *data = w->data + (size_t)p * w->panel_bytes;
            int b;
            int i;
            int t;
            MBI_T(mbi_gemm_start)(g, p, n, width, acc);
            for (b = 0; b < n_blocks; b += COLUMNS) {
                int count = mbi_min_int(COLUMNS, n_blocks - b);
                const float *panel = (const float *)(const void *)(data + (size_t)b * block_bytes);
                size_t stride = (size_t)w->panel_bytes / sizeof(float);
                MBI_T(mbi_ahead) ahead;
                memset(&ahead, 0, sizeof ahead);
                if (w->prefetch && n >= MANY && !mbi_is_quantized(w->type)) {
                    int next = b + count < n_blocks ? b + count : 0;
                    ahead = MBI_T(mbi_ahead_panels)(
                        g, next ? p : p + GROUP, GROUP, p1, (size_t)next * block_bytes,
                        (size_t)mbi_min_int(COLUMNS, n_blocks - next) * block_bytes);
                    ahead.step = ahead.left / n + 1;
                }
                if (w->type != MAMBA_F32) {
                    for (i = 0; i < n_panels; i++) {
                        for (t = 0; t < count; t++) {
                            MBI_T(mbi_columns)(w, p + i, b + t,
                                               expanded + i * PANEL + t * 16 * MBI_LANES);
                        }
                    }
                    panel = expanded;
                    stride = PANEL;
                }
                MBI_T(mbi_fma_block)(panel, stride, n_panels,
                                     x + (size_t)b * x_block + (size_t)start * MBI_LANES, x_block,
                                     count, n, acc, &ahead);
            }
            for (i = 0; i < n_panels; i++) {
                MBI_T(mbi_gemm_finish)(g, p + i, start, n, acc + i * MBI_LANES, width);
            }
        }
    }
}
#endif /* !MBI_AVXVNNI */

/* ------------------------------------------------------------------------------------------------
 * @@kernels_int8   Products of q8 and q4 weights by integer dot instructions             (private)
 *
 * For CPUs with 8-bit products and nothing better (AVX2, AVX-VNNI, AVX-512 VNNI, NEON dotprod).
 * Activations are rounded to int8 with one scale per token and 64 columns, absmax/127; products
 * inside a group are exact integers; each group enters the float accumulator by one FMA, groups
 * ascending:
 *   y = sum_g (w_scale[g] * x_scale[g]) * float(sum_{k in g} w[k] * q[k])
 * Error against the float32 product: at most 0.4 % of sum_g 64 absmax_g(x) |w|_g, in practice the
 * perplexity moves by less than 0.05 %.  Float weight types run as in the target below.
 *
 * Prepared activations, per group of 64 columns: T x 64 bytes, then T x (float scale, int32
 * correction): VNNI multiplies unsigned by signed bytes, so it takes w + 128 and starts its sums
 * from the correction -128 * sum(q).
 * ---------------------------------------------------------------------------------------------- */
#if MBI_PASS == MBI_AVX512 && MBI_BUILD_AVX512VNNI
#define MBI_I(name) MBI_PASTE(name, avx512vnni)
#define MBI_INT8_ATTRIBUTE                                                                         \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")))
#define MBI_INT8_BIAS 128
#define vi __m512i
#define I_SET1(x) _mm512_set1_epi32(x)
#define I_TO_FLOAT(v) _mm512_cvtepi32_ps(v)
#define I_BITS(v) _mm512_castps_si512(v)
#define I_LOAD(p) V_LOAD_U32(p)
#define I_STORE(p, v) _mm512_storeu_si512((void *)(p), (v))
#define I_LOAD_Q8(p) _mm512_xor_si512(V_LOAD_U32(p), _mm512_set1_epi8((char)-128))
/* 4 columns of 16 rows out of a unit of 8: the codebook plus 128, by nibble. */
MBI_FN __m512i MBI_I(i_load_q4)(const unsigned char *p, int high) {
    const __m512i values = _mm512_xor_si512(
        _mm512_broadcast_i32x4(_mm_setr_epi8(MBI_Q4_VALUES)), _mm512_set1_epi8((char)-128));
    __m512i u = V_LOAD_U32(p);
    u = _mm512_and_si512(high ? _mm512_srli_epi16(u, 4) : u, _mm512_set1_epi8(15));
    return _mm512_shuffle_epi8(values, u);
}
#define I_LOAD_Q4(p, high) MBI_I(i_load_q4)((p), (high))
MBI_FN __m512i MBI_I(i_q6)(__m512i low, __m512i high) { /* the lowest 4 and 2 bits of each byte */
    low = _mm512_and_si512(low, _mm512_set1_epi8(15));
    high = _mm512_and_si512(_mm512_slli_epi16(high, 4), _mm512_set1_epi8(48));
    return _mm512_add_epi8(_mm512_or_si512(low, high), _mm512_set1_epi8(128 - 32));
}
#define I_LOAD_Q6(p, j)                                                                            \
    MBI_I(i_q6)(_mm512_srli_epi16(V_LOAD_U32((p) + 64 * ((j) / 2)), 4 * ((j) % 2)),                \
                _mm512_srli_epi16(V_LOAD_U32((p) + 128), 2 * (j)))
#define I_DOT(acc, w, x) _mm512_dpbusd_epi32((acc), (w), (x)) /* acc[row] += sum of 4 columns */
/* For activations: the largest lane; of 1.5*2^23 + integer as bits the low bytes in a row; sums of
 * lanes. */
#define I_MAX(v) _mm512_reduce_max_ps(v)
#define I_PACK(p, v) _mm_storeu_si128((__m128i *)(void *)(p), _mm512_cvtepi32_epi8(v))
#define I_ADD(a, b) _mm512_add_epi32((a), (b))
/* The signed byte of each lane, plus 128. */
#define I_CODE(v) _mm512_ternarylogic_epi32((v), I_SET1(255), I_SET1(128), 0x6a /* a & b ^ c */)
#define I_SUM(v) _mm512_reduce_add_epi32(v)
/* Register blocking: vectors and tokens of a tile; the vectors of a panel. */
#define I_TILE_V MBI_V2
#define I_TILE_NV 2
#define I_TILE_N MBI_N6
#define I_TILE_NT 6
#define I_REST_N MBI_N4 /* what 6 leave over of a multiple of 16: one tile of these, or two */
#define I_REST_NT 4
#define I_PANEL_V MBI_V1
#elif MBI_PASS == MBI_AVX2 || MBI_PASS == MBI_AVXVNNI
#if MBI_PASS == MBI_AVXVNNI
#define MBI_I(name) MBI_PASTE(name, avxvnni)
#define MBI_INT8_ATTRIBUTE __attribute__((target("avx2,fma,f16c,avxvnni")))
#define MBI_INT8_BIAS 128
#else
#define MBI_I(name) MBI_PASTE(name, avx2int8)
#define MBI_INT8_ATTRIBUTE MBI_ATTRIBUTE
#define MBI_INT8_BIAS 0
#endif
#define vi __m256i
#define I_SET1(x) _mm256_set1_epi32(x)
#define I_TO_FLOAT(v) _mm256_cvtepi32_ps(v)
#define I_BITS(v) _mm256_castps_si256(v)
#define I_LOAD(p) V_LOAD_U32(p)
#define I_STORE(p, v) _mm256_storeu_si256((__m256i *)(void *)(p), (v))
#define I_LOAD_Q8(p) _mm256_xor_si256(V_LOAD_U32(p), _mm256_set1_epi8((char)-MBI_INT8_BIAS))
MBI_FN __m256i MBI_I(i_load_q4)(const unsigned char *p, int high) {
    const __m256i values =
        _mm256_xor_si256(_mm256_broadcastsi128_si256(_mm_setr_epi8(MBI_Q4_VALUES)),
                         _mm256_set1_epi8((char)-MBI_INT8_BIAS));
    __m256i u = V_LOAD_U32(p);
    u = _mm256_and_si256(high ? _mm256_srli_epi16(u, 4) : u, _mm256_set1_epi8(15));
    return _mm256_shuffle_epi8(values, u);
}
#define I_LOAD_Q4(p, high) MBI_I(i_load_q4)((p), (high))
MBI_FN __m256i MBI_I(i_q6)(__m256i low, __m256i high) { /* the lowest 4 and 2 bits of each byte */
    low = _mm256_and_si256(low, _mm256_set1_epi8(15));
    high = _mm256_and_si256(_mm256_slli_epi16(high, 4), _mm256_set1_epi8(48));
    return _mm256_add_epi8(_mm256_or_si256(low, high),
                           _mm256_set1_epi8((char)(MBI_INT8_BIAS - 32)));
}
#define I_LOAD_Q6(p, j)                                                                            \
    MBI_I(i_q6)(_mm256_srli_epi16(V_LOAD_U32((p) + 64 * ((j) / 2)), 4 * ((j) % 2)),                \
                _mm256_srli_epi16(V_LOAD_U32((p) + 128), 2 * (j)))
#if MBI_INT8_BIAS
#define I_DOT(acc, w, x) _mm256_dpbusd_avx_epi32((acc), (w), (x))
#define I_ADD(a, b) _mm256_add_epi32((a), (b))
#define I_CODE(v) _mm256_xor_si256(_mm256_and_si256((v), I_SET1(255)), I_SET1(128))
MBI_FN int MBI_I(i_sum)(__m256i v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
#define I_SUM(v) MBI_I(i_sum)(v)
#else
/* maddubs wants unsigned by signed: |w| * (x with the sign of w).  Two products add up to at most
 * 2*128*127, so that nothing saturates. */
MBI_FN __m256i MBI_I(i_dot)(__m256i acc, __m256i w, __m256i x) {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#define I_DOT(acc, w, x) MBI_I(i_dot)((acc), (w), (x))
#endif
MBI_FN float MBI_I(i_max)(__m256 v) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
#define I_MAX(v) MBI_I(i_max)(v)
MBI_FN void MBI_I(i_pack)(unsigned char *p, __m256i v) {
    __m128i u;
    v = _mm256_and_si256(v, _mm256_set1_epi32(255));
    u = _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64((__m128i *)(void *)p, _mm_packus_epi16(u, u));
}
#define I_PACK(p, v) MBI_I(i_pack)((p), (v))
#if MBI_INT8_BIAS
#define I_TILE_V MBI_V2
#define I_TILE_NV 2
#define I_TILE_N MBI_N6
#define I_TILE_NT 6
#define I_REST_N MBI_N4
#define I_REST_NT 4
#else
#define I_TILE_V MBI_V1
#define I_TILE_NV 1
#define I_TILE_N MBI_N4
#define I_TILE_NT 4
#define I_REST_N MBI_N2
#define I_REST_NT 2
#endif
#define I_PANEL_V MBI_V2
#elif MBI_PASS == MBI_NEON && MBI_BUILD_NEON_DOT
#define MBI_I(name) MBI_PASTE(name, neondot)
#define MBI_INT8_ATTRIBUTE __attribute__((target("arch=armv8.2-a+dotprod")))
#define MBI_INT8_BIAS 0
#define vi int32x4_t
#define I_SET1(x) vdupq_n_s32(x)
#define I_TO_FLOAT(v) vcvtq_f32_s32(v)
#define I_BITS(v) vreinterpretq_s32_f32(v)
#define I_LOAD(p) vreinterpretq_s32_u8(vld1q_u8(p))
#define I_STORE(p, v) vst1q_u8((p), vreinterpretq_u8_s32(v))
#define I_LOAD_Q8(p) I_LOAD(p)
MBI_FN int32x4_t MBI_I(i_load_q4)(const unsigned char *p, int high) {
    const signed char values[16] = {MBI_Q4_VALUES};
    uint8x16_t u = vld1q_u8(p);
    u = high ? vshrq_n_u8(u, 4) : vandq_u8(u, vdupq_n_u8(15));
    return vreinterpretq_s32_s8(vqtbl1q_s8(vld1q_s8(values), u));
}
#define I_LOAD_Q4(p, high) MBI_I(i_load_q4)((p), (high))
MBI_FN int32x4_t MBI_I(i_load_q6)(const unsigned char *p, int j) {
    uint8x16_t low = vshlq_u8(vld1q_u8(p + 64 * (j / 2)), vdupq_n_s8((signed char)(-4 * (j % 2))));
    uint8x16_t high = vshlq_u8(vld1q_u8(p + 128), vdupq_n_s8((signed char)(-2 * j)));
    low = vandq_u8(low, vdupq_n_u8(15));
    high = vshlq_n_u8(vandq_u8(high, vdupq_n_u8(3)), 4);
    return vreinterpretq_s32_u8(vsubq_u8(vorrq_u8(low, high), vdupq_n_u8(32)));
}
#define I_LOAD_Q6(p, j) MBI_I(i_load_q6)((p), (j))
#define I_DOT(acc, w, x) vdotq_s32((acc), vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(x))
#define I_MAX(v) vmaxvq_f32(v)
MBI_FN void MBI_I(i_pack)(unsigned char *p, int32x4_t v) {
    uint16x4_t u = vmovn_u32(vreinterpretq_u32_s32(v));
    vst1_lane_u32((uint32_t *)(void *)p, vreinterpret_u32_u8(vmovn_u16(vcombine_u16(u, u))), 0);
}
#define I_PACK(p, v) MBI_I(i_pack)((p), (v))
#define I_TILE_V MBI_V4
#define I_TILE_NV 4
#define I_TILE_N MBI_N2
#define I_TILE_NT 2
#define I_REST_N MBI_N1
#define I_REST_NT 1
#define I_PANEL_V MBI_V4
#endif

#if defined(MBI_I)
#define MBI_INT8_FN static MBI_INT8_ATTRIBUTE MBI_NOINLINE

MBI_INT8_FN size_t MBI_I(mbi_k_prepared_bytes)(mamba_type type, int n, int n_tokens) {
    if (!mbi_is_quantized(type)) {
        return MBI_T(mbi_k_prepared_bytes)(type, n, n_tokens);
    }
    return (size_t)mbi_groups(n) * (size_t)n_tokens * MBI_INT8_TOKEN_BYTES;
}

/* One token's group from four blocks of 16, of which n_blocks exist; the rest are zero. */
MBI_FN void MBI_I(mbi_int8_group)(const float *x, size_t block, int n_blocks, unsigned char *q,
                                  unsigned char *scale_and_sum) {
    MBI_ALIGN64 float v[MBI_GROUP];
    vf peak = V_SET1(0.0f);
    vf inverse;
    float most;
    float scale;
    uint32_t correction = 0;
    int i;
#if MBI_INT8_BIAS
    vi sum = I_SET1(-MBI_GROUP / V_LANES * 128);
#endif
    for (i = 0; i < MBI_GROUP; i += V_LANES) {
        vf in = i / MBI_LANES < n_blocks
                    ? V_LOAD(x + (size_t)(i / MBI_LANES) * block + i % MBI_LANES)
                    : V_SET1(0.0f);
        V_STORE(v + i, in);
        peak = V_MAX(V_ABS(in), peak);
    }
    most = I_MAX(peak);
    scale = most / 127.0f;
    inverse = V_SET1(most > 0.0f ? 127.0f / most : 0.0f);
    for (i = 0; i < MBI_GROUP; i += V_LANES) {
        /* adding 1.5*2^23 rounds to nearest even, into the low byte; |v * inverse| <= 127.00001 */
        vi bits = I_BITS(V_FMA(V_LOAD(v + i), inverse, V_SET1(12582912.0f)));
        I_PACK(q + i, bits);
#if MBI_INT8_BIAS
        sum = I_ADD(sum, I_CODE(bits)); /* whatever a NaN became counts as that byte */
#endif
    }
#if MBI_INT8_BIAS
    correction -= (uint32_t)MBI_INT8_BIAS * (uint32_t)I_SUM(sum);
#endif
    memcpy(scale_and_sum, &scale, 4);
    memcpy(scale_and_sum + 4, &correction, 4);
}

#if MBI_PASS == MBI_AVX512
/* 16 values each of four tokens to one in the four lanes of each, by OP. */
#define MBI_INT8_FOLD(out, OP, a, b, c, d)                                                         \
    {                                                                                              \
        __m512 ab = OP(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));        \
        __m512 cd = OP(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));        \
        (out) = OP(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));        \
        (out) = OP((out), _mm512_permute_ps((out), 0x4e));                                         \
        (out) = OP((out), _mm512_permute_ps((out), 0xb1));                                         \
    }
#define MBI_INT8_ADD(a, b)                                                                         \
    _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)))
/* The same for four tokens at once, whose reductions share their shuffles: 1.9 times as fast. */
#define MBI_INT8_FOUR(X) X(0) X(1) X(2) X(3)
#define MBI_INT8_BLOCK(t, b)                                                                       \
    (n_blocks > (b) ? V_LOAD(x + (size_t)(b) * block + (t) * MBI_LANES) : V_SET1(0.0f))
#define MBI_INT8_PEAK(t)                                                                           \
    __m512 a##t = MBI_INT8_BLOCK(t, 0);                                                            \
    __m512 b##t = MBI_INT8_BLOCK(t, 1);                                                            \
    __m512 c##t = MBI_INT8_BLOCK(t, 2);                                                            \
    __m512 d##t = MBI_INT8_BLOCK(t, 3);                                                            \
    __m512 s##t = V_MAX(V_ABS(a##t), V_SET1(0.0f)); /* as for one token: NaNs count as 0 */        \
    s##t = V_MAX(V_ABS(b##t), s##t);                                                               \
    s##t = V_MAX(V_ABS(c##t), s##t);                                                               \
    s##t = V_MAX(V_ABS(d##t), s##t);
#define MBI_INT8_CODE(v, mine, at)                                                                 \
    v = V_FMA(v, mine, V_SET1(12582912.0f));                                                       \
    I_PACK(q + (at), I_BITS(v));                                                                   \
    v = _mm512_castsi512_ps(I_CODE(I_BITS(v)));
#define MBI_INT8_CODES_OF(t)                                                                       \
    {                                                                                              \
        __m512 mine = _mm512_shuffle_f32x4(inverse, inverse, 0x55 * (t));                          \
        MBI_INT8_CODE(a##t, mine, (t) * MBI_GROUP)                                                 \
        MBI_INT8_CODE(b##t, mine, (t) * MBI_GROUP + 16)                                            \
        MBI_INT8_CODE(c##t, mine, (t) * MBI_GROUP + 32)                                            \
        MBI_INT8_CODE(d##t, mine, (t) * MBI_GROUP + 48)                                            \
        s##t = MBI_INT8_ADD(MBI_INT8_ADD(a##t, b##t), MBI_INT8_ADD(c##t, d##t));                   \
    }
MBI_FN void MBI_I(mbi_int8_group4)(const float *x, size_t block, int n_blocks, unsigned char *q,
                                   unsigned char *scales_and_sums) {
    const __m512i pairs = _mm512_set_epi64(0, 0, 0, 0, 6, 4, 2, 0);
    __m512 most;
    __m512 sums;
    __m512 inverse;
    __m512i fix;
    MBI_INT8_FOUR(MBI_INT8_PEAK)
    MBI_INT8_FOLD(most, V_MAX, s0, s1, s2, s3)
    inverse = V_DIV(V_SET1(127.0f), most);
    inverse = V_GT_SELECT(most, V_SET1(0.0f), inverse, V_SET1(0.0f));
    MBI_INT8_FOUR(MBI_INT8_CODES_OF)
    MBI_INT8_FOLD(sums, MBI_INT8_ADD, s0, s1, s2, s3)
    fix = _mm512_sub_epi32(I_BITS(sums), I_SET1(MBI_GROUP * 128));
    fix = _mm512_mullo_epi32(fix, I_SET1(-MBI_INT8_BIAS));
    most = _mm512_unpacklo_ps(V_DIV(most, V_SET1(127.0f)), _mm512_castsi512_ps(fix));
    fix = _mm512_permutexvar_epi64(pairs, I_BITS(most));
    _mm256_storeu_si256((__m256i *)(void *)scales_and_sums, _mm512_castsi512_si256(fix));
}
#undef MBI_INT8_FOUR
#undef MBI_INT8_BLOCK
#undef MBI_INT8_PEAK
#undef MBI_INT8_CODE
#undef MBI_INT8_CODES_OF
#undef MBI_INT8_FOLD
#undef MBI_INT8_ADD
#endif

/* Groups [g0, g1) of tokens [t0, t1) of T, whose n channels lie in blocks `block` floats apart. */
MBI_INT8_FN void MBI_I(mbi_int8_prepare)(const float *x, size_t block, int n, int T, int t0, int t1,
                                         int g0, int g1, unsigned char *out) {
    int g;
    int t;
    out += (size_t)g0 * (size_t)T * MBI_INT8_TOKEN_BYTES;
    for (g = g0; g < g1; g++, out += (size_t)T * MBI_INT8_TOKEN_BYTES) {
        t = t0;
#if MBI_PASS == MBI_AVX512
        for (; t1 - t >= 4; t += 4) {
            MBI_I(mbi_int8_group4)(x + (size_t)g * 4 * block + (size_t)t * MBI_LANES, block,
                                   (n + 15) / 16 - g * 4, out + (size_t)t * MBI_GROUP,
                                   out + (size_t)T * MBI_GROUP + (size_t)t * 8);
        }
#endif
        for (; t < t1; t++) {
            MBI_I(mbi_int8_group)(x + (size_t)g * 4 * block + (size_t)t * MBI_LANES, block,
                                  (n + 15) / 16 - g * 4, out + (size_t)t * MBI_GROUP,
                                  out + (size_t)T * MBI_GROUP + (size_t)t * 8);
        }
    }
}

MBI_INT8_FN void MBI_I(mbi_k_prepare)(mamba_type type, const float *x, int n, int n_tokens, int t0,
                                      int t1, int g0, int g1, void *out) {
    if (mbi_is_quantized(type)) {
        MBI_I(mbi_int8_prepare)(x, (size_t)n_tokens * MBI_LANES, n, n_tokens, t0, t1, g0, g1,
                                (unsigned char *)out);
    } else {
        MBI_T(mbi_k_prepare)(type, x, n, n_tokens, t0, t1, g0, g1, out);
    }
}

/* What follows groups [k, k+span) of panels [p, p+step): the next ones of the same panels, or the first
 * ones of the next panels. */
MBI_FN MBI_T(mbi_ahead) MBI_I(mbi_ahead_of)(const mbi_gemm *g, int p, int step, int p1, int k,
                                            int span) {
    const mbi_mat *w = g->w;
    size_t bytes = mbi_group_bytes(w->type);
    size_t first;
    int more = k + span < mbi_groups(w->cols);
    int last;
    k = more ? k + span : 0;
    last = mbi_min_int(k + span, mbi_groups(w->cols)) - 1;
    first = mbi_units_at(bytes, k) - 64; /* perhaps the codes in front */
    return MBI_T(mbi_ahead_panels)(g, more ? p : p + step, step, p1, first,
                                   mbi_units_at(bytes, last) + bytes - first);
}

/* Columns 4j to 4j+3 of a group, whose first unit is at p. */
#define MBI_INT8_Q8(p, j) I_LOAD_Q8((p) + 64 * (j))
#define MBI_INT8_Q6(p, j) I_LOAD_Q6((p) + 192 * ((j) / 4), (j) % 4)
#define MBI_INT8_Q4(p, j) I_LOAD_Q4((p) + 64 * ((j) / 2), (j) % 2)
#define MBI_INT8_READY(p, j) I_LOAD((p) + 64 * (j))
#define MBI_INT8_EACH(X, V, N, LOAD)                                                               \
    X(V, N, LOAD, 0) X(V, N, LOAD, 1) X(V, N, LOAD, 2) X(V, N, LOAD, 3)                            \
    X(V, N, LOAD, 4) X(V, N, LOAD, 5) X(V, N, LOAD, 6) X(V, N, LOAD, 7)                            \
    X(V, N, LOAD, 8) X(V, N, LOAD, 9) X(V, N, LOAD, 10) X(V, N, LOAD, 11)                          \
    X(V, N, LOAD, 12) X(V, N, LOAD, 13) X(V, N, LOAD, 14) X(V, N, LOAD, 15)

/* Groups [g, g+n) of panel p as bytes that I_DOT takes, each followed by its scales as floats. */
MBI_INT8_FN void MBI_I(mbi_int8_expand)(const mbi_mat *w, int p, int g, int n,
                                        unsigned char *out) {
    const unsigned char *panel = w->data + (size_t)p * w->panel_bytes;
    size_t bytes = mbi_group_bytes(w->type);
    for (; n > 0; n--, g++, out += MBI_INT8_EXPANDED_BYTES) {
        const unsigned char *unit = panel + mbi_units_at(bytes, g);
        int i;
        for (i = 0; i < MBI_LANES; i += V_LANES) {
#define MBI_INT8_EXPAND(V, N, LOAD, j) I_STORE(out + 64 * (j) + 4 * i, LOAD(unit + 4 * i, j));
            if (w->type == MAMBA_Q8) {
                MBI_INT8_EACH(MBI_INT8_EXPAND, , , MBI_INT8_Q8)
            } else if (w->type == MAMBA_Q6) {
                MBI_INT8_EACH(MBI_INT8_EXPAND, , , MBI_INT8_Q6)
            } else {
                MBI_INT8_EACH(MBI_INT8_EXPAND, , , MBI_INT8_Q4)
            }
#undef MBI_INT8_EXPAND
            V_STORE((float *)(void *)(out + MBI_GROUP * MBI_LANES) + i,
                    MBI_T(mbi_scales)(panel + mbi_codes_at(bytes, g) + i, w->bases[p]));
        }
    }
}

/* One register block over n groups, for NV vectors of V_LANES rows from row `row` of the panel at w
 * on (panels `stride` bytes apart) and N tokens from x on.  Group k of the weights lies at w + UNITS,
 * its scales, or their codes for `bases`, at w + SCALES; group k of the activations x_group bytes
 * after group k-1, scales of activations x_scales bytes behind their bytes.  Row r of panel p and
 * token t starts from in[p*16 + t*in_token + r] and ends in out[p*out_panel + t*out_token + r].
 * MBI_INT8_STEP_AHEAD asks for weights AHEAD bytes, or a panel, before they are read; behind the end
 * of these panels come those `next` bytes after them; 0: none. */
#define MBI_V1(X, t) X(0, t)
#define MBI_V2(X, t) X(0, t) X(1, t)
#define MBI_V4(X, t) X(0, t) X(1, t) X(2, t) X(3, t)
#define MBI_N1(V, X) X(V, 0)
#define MBI_N2(V, X) X(V, 0) X(V, 1)
#define MBI_N4(V, X) X(V, 0) X(V, 1) X(V, 2) X(V, 3)
#define MBI_N6(V, X) MBI_N4(V, X) X(V, 4) X(V, 5)
#define MBI_INT8_AT(v, t)                                                                          \
    const size_t at##v = (size_t)(row + (v) * V_LANES) / MBI_LANES;                                \
    const int r##v = (row + (v) * V_LANES) % MBI_LANES;                                            \
    const unsigned char *p##v = w + at##v * stride;
#define MBI_INT8_IN(v, t)                                                                          \
    vf a##v##_##t = V_LOAD(in + at##v * MBI_LANES + (t) * in_token + r##v);
#define MBI_INT8_OUT(v, t) V_STORE(out + at##v * out_panel + (t) * out_token + r##v, a##v##_##t);
#define MBI_INT8_COPY(v, t) vi s##v##_##t = start;
#define MBI_INT8_DOT(v, t) s##v##_##t = I_DOT(s##v##_##t, w##v, xt);
#define MBI_INT8_SCALE(v, t)                                                                       \
    a##v##_##t = V_FMA(V_MUL(c##v, xs), I_TO_FLOAT(s##v##_##t), a##v##_##t);
#define MBI_INT8_LOAD(V, t) V(MBI_INT8_IN, t)
#define MBI_INT8_STORE(V, t) V(MBI_INT8_OUT, t)
#define MBI_INT8_START(V, t)                                                                       \
    start = I_SET1((int)mbi_load_u32(x + x_scales + 8 * (t) + 4));                                 \
    V(MBI_INT8_COPY, t)
#define MBI_INT8_TOKEN(V, t)                                                                       \
    xt = I_SET1((int)mbi_load_u32(x + MBI_GROUP * (t) + column));                                  \
    V(MBI_INT8_DOT, t)
#define MBI_INT8_END(V, t)                                                                         \
    xs = V_SET1(mbi_bits_f32(mbi_load_u32(x + x_scales + 8 * (t))));                               \
    V(MBI_INT8_SCALE, t)
#define MBI_INT8_STEP(V, N, LOAD, j)                                                               \
    {                                                                                              \
        enum { column = 4 * (j) };                                                                 \
        V(MBI_INT8_W_##LOAD, j)                                                                    \
        N(V, MBI_INT8_TOKEN)                                                                       \
    }
/* The same, and asks for line j of a group ahead; for the one in front of the first too, which may
 * be one of scales. */
#define MBI_INT8_STEP_AHEAD(V, N, LOAD, j)                                                         \
    if ((j) == 0) {                                                                                \
        V(MBI_INT8_FETCH, -1)                                                                      \
    }                                                                                              \
    if (64 * (j) < MBI_INT8_BYTES_##LOAD) {                                                        \
        V(MBI_INT8_FETCH, j)                                                                       \
    }                                                                                              \
    MBI_INT8_STEP(V, N, LOAD, j)
#define MBI_INT8_FETCH(v, j)                                                                       \
    if ((v) * V_LANES % MBI_LANES == 0) { /* once for each panel */                                \
        MBI_PREFETCH(p##v + ahead + 64 * (j));                                                     \
    }
#define MBI_INT8_BYTES_MBI_INT8_Q8 mbi_group_bytes(MAMBA_Q8)
#define MBI_INT8_BYTES_MBI_INT8_Q6 mbi_group_bytes(MAMBA_Q6)
#define MBI_INT8_BYTES_MBI_INT8_Q4 mbi_group_bytes(MAMBA_Q4)
#define MBI_INT8_W_MBI_INT8_Q8(v, j) vi w##v = MBI_INT8_Q8(p##v + units + 4 * r##v, j);
#define MBI_INT8_W_MBI_INT8_Q6(v, j) vi w##v = MBI_INT8_Q6(p##v + units + 4 * r##v, j);
#define MBI_INT8_W_MBI_INT8_Q4(v, j) vi w##v = MBI_INT8_Q4(p##v + units + 4 * r##v, j);
#define MBI_INT8_W_MBI_INT8_READY(v, j) vi w##v = MBI_INT8_READY(p##v + units + 4 * r##v, j);
#define MBI_INT8_CODES(v, t) vf c##v = MBI_T(mbi_scales)(p##v + scales + r##v, bases[at##v]);
#define MBI_INT8_F32(v, t) vf c##v = V_LOAD((const float *)(const void *)(p##v + scales) + r##v);
#define MBI_INT8_KERNEL(name, V, N, STEP, LOAD, UNITS, SCALES, C)                                  \
    MBI_INT8_FN void MBI_I(name)(const unsigned char *w, size_t stride, const float *bases,        \
                                 size_t next, int row, const unsigned char *x, size_t x_group,     \
                                 size_t x_scales, int n, const float *in, size_t in_token,         \
                                 float *out, size_t out_token, size_t out_panel) {                 \
        enum { AHEAD = 4096 };                                                                     \
        const size_t before = mbi_min_size(stride, AHEAD);                                         \
        int k;                                                                                     \
        V(MBI_INT8_AT, 0)                                                                          \
        N(V, MBI_INT8_LOAD)                                                                        \
        for (k = 0; k < n; k++, x += x_group) {                                                    \
            const size_t units = UNITS;                                                            \
            const size_t scales = SCALES;                                                          \
            size_t ahead = units + before;                                                         \
            vi start;                                                                              \
            vi xt;                                                                                 \
            vf xs;                                                                                 \
            if (ahead + MBI_GROUP * MBI_LANES > stride) {                                          \
                ahead = next != 0 ? ahead - stride + next : units;                                 \
            }                                                                                      \
            V(C, 0)                                                                                \
            N(V, MBI_INT8_START)                                                                   \
            MBI_INT8_EACH(STEP, V, N, LOAD)                                                        \
            N(V, MBI_INT8_END)                                                                     \
            (void)ahead;                                                                           \
        }                                                                                          \
        N(V, MBI_INT8_STORE)                                                                       \
        (void)bases;                                                                               \
    }
#define MBI_INT8_FILE(name, V, STEP, TYPE)                                                         \
    MBI_INT8_KERNEL(name, V, MBI_N1, STEP, TYPE, mbi_units_at(MBI_INT8_BYTES_##TYPE, k),           \
                    mbi_codes_at(MBI_INT8_BYTES_##TYPE, k), MBI_INT8_CODES)
#define MBI_INT8_EXPANDED(name, N)                                                                 \
    MBI_INT8_KERNEL(name, I_TILE_V, N, MBI_INT8_STEP, MBI_INT8_READY,                              \
                    (size_t)k * MBI_INT8_EXPANDED_BYTES,                                           \
                    (size_t)k * MBI_INT8_EXPANDED_BYTES + MBI_GROUP * MBI_LANES, MBI_INT8_F32)
MBI_INT8_FILE(mbi_int8_q8, I_PANEL_V, MBI_INT8_STEP, MBI_INT8_Q8)
MBI_INT8_FILE(mbi_int8_q6, I_PANEL_V, MBI_INT8_STEP, MBI_INT8_Q6)
MBI_INT8_FILE(mbi_int8_q4, I_PANEL_V, MBI_INT8_STEP, MBI_INT8_Q4)
#if MBI_ARCH_X86 /* elsewhere MBI_PREFETCH does nothing */
MBI_INT8_FILE(mbi_int8_q8_ahead, I_PANEL_V, MBI_INT8_STEP_AHEAD, MBI_INT8_Q8)
MBI_INT8_FILE(mbi_int8_q6_ahead, I_PANEL_V, MBI_INT8_STEP_AHEAD, MBI_INT8_Q6)
MBI_INT8_FILE(mbi_int8_q4_ahead, I_PANEL_V, MBI_INT8_STEP_AHEAD, MBI_INT8_Q4)
MBI_INT8_FILE(mbi_int8_q8_wide, MBI_V4, MBI_INT8_STEP_AHEAD, MBI_INT8_Q8)
MBI_INT8_FILE(mbi_int8_q6_wide, MBI_V4, MBI_INT8_STEP_AHEAD, MBI_INT8_Q6)
MBI_INT8_FILE(mbi_int8_q4_wide, MBI_V4, MBI_INT8_STEP_AHEAD, MBI_INT8_Q4)
#define MBI_INT8_WAY(type)                                                                         \
    (n > 1         ? MBI_I(mbi_int8_##type##_wide)                                                 \
     : w->prefetch ? MBI_I(mbi_int8_##type##_ahead)                                                \
                   : MBI_I(mbi_int8_##type))
#else
#define MBI_INT8_WAY(type) MBI_I(mbi_int8_##type)
#endif
MBI_INT8_EXPANDED(mbi_int8_tile, I_TILE_N)
MBI_INT8_EXPANDED(mbi_int8_tile_rest, I_REST_N)
MBI_INT8_EXPANDED(mbi_int8_tile_1, MBI_N1)

/* A few tokens: straight from the file, one token after the other.  Where prefetching pays, as many
 * panels at a time as four vectors have rows, 4 KiB before they are read: so 16 Sapphire Rapids cores
 * read q8 and q4 at the speed of the memory, and one core 130m q4 a third faster than when whole
 * panels were asked for while others were multiplied.  On Zen 5, which is fastest without, one panel
 * at a time: two or four cost a third of the bandwidth. */
MBI_INT8_FN void MBI_I(mbi_int8_few)(const mbi_gemm *g, int p0, int p1, int t0, int t1) {
    enum { WIDE = 4 * V_LANES / MBI_LANES };
    const mbi_mat *w = g->w;
    size_t bytes = (size_t)w->panel_bytes;
    size_t x_scales = (size_t)g->n_tokens * MBI_GROUP;
    int n;
    for (; p0 < p1; p0 += n) {
        size_t next;
        int t;
        int i;
        n = w->prefetch && p1 - p0 >= WIDE ? WIDE : 1;
        next = p1 - p0 >= 2 * n ? (size_t)n * bytes : 0;
        for (t = t0; t < t1; t++) {
            MBI_ALIGN64 float acc[WIDE * MBI_LANES];
            MBI_T(mbi_gemm_start)(g, p0, 1, n * MBI_LANES, acc);
            (w->type == MAMBA_Q8   ? MBI_INT8_WAY(q8)
             : w->type == MAMBA_Q6 ? MBI_INT8_WAY(q6)
                                   : MBI_INT8_WAY(q4))(
                w->data + (size_t)p0 * bytes, bytes, w->bases + p0, next, 0,
                (const unsigned char *)g->x + (size_t)t * MBI_GROUP,
                x_scales + (size_t)g->n_tokens * 8, x_scales - (size_t)t * (MBI_GROUP - 8),
                mbi_groups(w->cols), acc, 0, acc, 0, MBI_LANES);
            for (i = 0; i < n; i++) {
                MBI_T(mbi_gemm_finish)(g, p0 + i, t, 1, acc + i * MBI_LANES, MBI_LANES);
            }
        }
    }
}

/* Panels as wide as a tile, up to 768 columns at a time, expanded in the scratch (the first-level
 * cache) for all tokens.  Sums wait in the scratch from one block of columns to the next; the first
 * block starts from the bias, and the last one writes y if whole panels can be written there. */
MBI_INT8_FN void MBI_I(mbi_k_gemm)(const mbi_gemm *g, int p0, int p1, int t0, int t1) {
    enum { MAX_T = 512, MAX_SPAN = 12, STRIDE = MAX_SPAN * MBI_INT8_EXPANDED_BYTES };
    enum { GROUP = (I_TILE_NV * V_LANES + MBI_LANES - 1) / MBI_LANES, WIDTH = GROUP * MBI_LANES };
    const mbi_mat *w = g->w;
    unsigned char *expanded = (unsigned char *)g->scratch;
    float *acc = (float *)(void *)(expanded + (size_t)GROUP * STRIDE); /* [token][WIDTH] */
    size_t x_group = (size_t)g->n_tokens * MBI_INT8_TOKEN_BYTES;
    int n_groups = mbi_groups(w->cols);
    int n_blocks = (n_groups + MAX_SPAN - 1) / MAX_SPAN;
    int span = (n_groups + n_blocks - 1) / n_blocks;
    int start;
    int p;
    if (!mbi_is_quantized(w->type)) {
        MBI_T(mbi_k_gemm)(g, p0, p1, t0, t1);
        return;
    }
    if (t1 - t0 < 4) {
        MBI_I(mbi_int8_few)(g, p0, p1, t0, t1);
        return;
    }
    for (start = t0; start < t1; start += MAX_T) {
        int n = mbi_min_int(MAX_T, t1 - start);
        for (p = p0; p < p1; p += GROUP) {
            int n_panels = mbi_min_int(GROUP, p1 - p);
            int direct = !g->add && n_panels == GROUP &&
                         !(g->exact_rows && (p + GROUP) * MBI_LANES > w->rows);
            MBI_ALIGN64 float first[WIDTH];
            int i;
            int k;
            int t;
            for (i = 0; i < WIDTH; i += V_LANES) {
                V_STORE(first + i, g->bias && i < n_panels * MBI_LANES
                                       ? V_LOAD(g->bias + p * MBI_LANES + i)
                                       : V_SET1(0.0f));
            }
            for (k = 0; k < n_groups; k += span) {
                int count = mbi_min_int(span, n_groups - k);
                int to_y = direct && k + count == n_groups;
                const unsigned char *x = (const unsigned char *)g->x + (size_t)k * x_group;
                MBI_T(mbi_ahead) ahead = MBI_I(mbi_ahead_of)(g, p, GROUP, p1, k, span);
                int times = GROUP + (n + I_TILE_NT - 1) / I_TILE_NT; /* evenly: 8 tokens gain 10 % */
                int lines = ahead.left / times + 1;
                for (i = 0; i < GROUP; i++) { /* a missing panel: the last one again */
                    int panel = p + mbi_min_int(i, n_panels - 1);
                    MBI_T(mbi_ahead_some)(&ahead, lines);
                    MBI_I(mbi_int8_expand)(w, panel, k, count, expanded + i * STRIDE);
                }
                for (t = 0; t < n;) {
                    int left = n - t;
                    int two = I_TILE_NT < 2 * I_REST_NT && left == 2 * I_REST_NT;
                    int step = left >= I_TILE_NT && !two ? I_TILE_NT
                               : left >= I_REST_NT       ? I_REST_NT
                                                         : 1;
                    size_t at = (size_t)(start + t);
                    MBI_T(mbi_ahead_some)(&ahead, lines);
                    for (i = 0; i < WIDTH; i += I_TILE_NV * V_LANES) {
                        (step == I_TILE_NT   ? MBI_I(mbi_int8_tile)
                         : step == I_REST_NT ? MBI_I(mbi_int8_tile_rest)
                                             : MBI_I(mbi_int8_tile_1))(
                            expanded, STRIDE, NULL, 0, i, x + at * MBI_GROUP, x_group,
                            (size_t)g->n_tokens * MBI_GROUP - at * (MBI_GROUP - 8), count,
                            k == 0 ? first : acc + t * WIDTH, k == 0 ? 0 : (size_t)WIDTH,
                            to_y ? g->y + (size_t)p * g->y_panel + at * g->y_token : acc + t * WIDTH,
                            to_y ? g->y_token : (size_t)WIDTH,
                            to_y ? g->y_panel : (size_t)MBI_LANES);
                    }
                    t += step;
                }
            }
            for (i = 0; i < n_panels && !direct; i++) {
                MBI_T(mbi_gemm_finish)(g, p + i, start, n, acc + i * MBI_LANES, WIDTH);
            }
        }
    }
}
#undef MBI_INT8_READY
#undef MBI_V1
#undef MBI_V2
#undef MBI_V4
#undef MBI_N1
#undef MBI_N2
#undef MBI_N4
#undef MBI_N6
#undef MBI_INT8_AT
#undef MBI_INT8_IN
#undef MBI_INT8_OUT
#undef MBI_INT8_DOT
#undef MBI_INT8_SCALE
#undef MBI_INT8_LOAD
#undef MBI_INT8_STORE
#undef MBI_INT8_START
#undef MBI_INT8_COPY
#undef MBI_INT8_TOKEN
#undef MBI_INT8_END
#undef MBI_INT8_STEP
#undef MBI_INT8_STEP_AHEAD
#undef MBI_INT8_FETCH
#undef MBI_INT8_BYTES_MBI_INT8_Q8
#undef MBI_INT8_BYTES_MBI_INT8_Q6
#undef MBI_INT8_BYTES_MBI_INT8_Q4
#undef MBI_INT8_W_MBI_INT8_Q8
#undef MBI_INT8_W_MBI_INT8_Q6
#undef MBI_INT8_W_MBI_INT8_Q4
#undef MBI_INT8_W_MBI_INT8_READY
#undef MBI_INT8_CODES
#undef MBI_INT8_F32
#undef MBI_INT8_KERNEL
#undef MBI_INT8_FILE
#undef MBI_INT8_EXPANDED
#undef MBI_INT8_WAY
#endif /* MBI_I */

#if MBI_PASS == MBI_NEON && MBI_BUILD_NEON_I8MM
/* The same numbers by matrix instructions, from the same prepared activations: smmla multiplies
 * 2 rows x 8 columns by 8 columns x 2 tokens, and since the sums of a group are exact, pairs of
 * tokens get the bits that single ones get from the dot instructions.  A float32x4_t of sums holds
 * rows r, r+1 of tokens t, t+1: (r,t) (r,t+1) (r+1,t) (r+1,t+1). */
#define MBI_I8MM_FN                                                                                \
    static __attribute__((target("arch=armv8.2-a+dotprod+i8mm"))) MBI_NOINLINE

/* Columns 8j to 8j+7 of 4 rows: two units of 4 columns become two vectors of 2 rows. */
#define MBI_I8MM_ROWS(a, b, first, second)                                                         \
    {                                                                                              \
        int32x4_t left = (first);                                                                  \
        int32x4_t right = (second);                                                                \
        (a) = vreinterpretq_s8_s32(vzip1q_s32(left, right));                                       \
        (b) = vreinterpretq_s8_s32(vzip2q_s32(left, right));                                       \
    }
/* acc (2 rows, 2 tokens) += scales * float(sum). */
#define MBI_I8MM_ADD(acc, sum, scale)                                                              \
    vst1q_f32((acc), V_FMA(V_MUL((scale), xs), vcvtq_f32_s32(sum), vld1q_f32(acc)));
#define MBI_I8MM_EIGHT(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#define MBI_I8MM_DECLARE(j)                                                                        \
    int8x16_t a##j;                                                                                \
    int8x16_t b##j;
#define MBI_I8MM_Q8(j)                                                                             \
    MBI_I8MM_ROWS(a##j, b##j, MBI_INT8_Q8(unit, 2 * (j)), MBI_INT8_Q8(unit, 2 * (j) + 1))
#define MBI_I8MM_Q6(j)                                                                             \
    MBI_I8MM_ROWS(a##j, b##j, MBI_INT8_Q6(unit, 2 * (j)), MBI_INT8_Q6(unit, 2 * (j) + 1))
#define MBI_I8MM_Q4(j)                                                                             \
    MBI_I8MM_ROWS(a##j, b##j, MBI_INT8_Q4(unit, 2 * (j)), MBI_INT8_Q4(unit, 2 * (j) + 1))
/* Columns 16j to 16j+15 of both tokens. */
#define MBI_I8MM_COLUMNS(j, a0, b0, a1, b1)                                                        \
    {                                                                                              \
        int64x2_t left = vreinterpretq_s64_u8(vld1q_u8(x + 16 * (j)));                             \
        int64x2_t right = vreinterpretq_s64_u8(vld1q_u8(x + MBI_GROUP + 16 * (j)));                \
        int8x16_t x0 = vreinterpretq_s8_s64(vzip1q_s64(left, right));                              \
        int8x16_t x1 = vreinterpretq_s8_s64(vzip2q_s64(left, right));                              \
        sum0 = vmmlaq_s32(vmmlaq_s32(sum0, (a0), x0), (a1), x1);                                   \
        sum1 = vmmlaq_s32(vmmlaq_s32(sum1, (b0), x0), (b1), x1);                                   \
    }

/* One group of one panel for 4 rows from `row` on, tokens [t0, t0+2*n_pairs): acc[pair][16][2]
 * += …  Its 16 vectors of weights stay in registers while the tokens pass. */
MBI_I8MM_FN void mbi_i8mm_product(const mbi_mat *w, int p, int row, int g,
                                  const unsigned char *x, int n_tokens, int t0, int n_pairs,
                                  float *acc) {
    const unsigned char *panel = w->data + (size_t)p * w->panel_bytes;
    size_t bytes = mbi_group_bytes(w->type);
    const unsigned char *unit = panel + mbi_units_at(bytes, g) + 4 * row;
    const unsigned char *scales = x + (size_t)n_tokens * MBI_GROUP + (size_t)t0 * 8;
    vf both = MBI_T(mbi_scales)(panel + mbi_codes_at(bytes, g) + row, w->bases[p]);
    vf scale0 = vzip1q_f32(both, both);
    vf scale1 = vzip2q_f32(both, both);
    MBI_I8MM_EIGHT(MBI_I8MM_DECLARE)
    int i;
    if (w->type == MAMBA_Q8) {
        MBI_I8MM_EIGHT(MBI_I8MM_Q8)
    } else if (w->type == MAMBA_Q6) {
        MBI_I8MM_EIGHT(MBI_I8MM_Q6)
    } else {
        MBI_I8MM_EIGHT(MBI_I8MM_Q4)
    }
    x += (size_t)t0 * MBI_GROUP;
    acc += 2 * row;
    for (i = 0; i < n_pairs; i++, x += 2 * MBI_GROUP, scales += 16, acc += 2 * MBI_LANES) {
        int32x4_t sum0 = vdupq_n_s32(0);
        int32x4_t sum1 = vdupq_n_s32(0);
        vf xs = vreinterpretq_f32_u8(vld1q_u8(scales)); /* scale, 0, scale, 0 */
        xs = vuzp1q_f32(xs, xs);
        MBI_I8MM_COLUMNS(0, a0, b0, a1, b1)
        MBI_I8MM_COLUMNS(1, a2, b2, a3, b3)
        MBI_I8MM_COLUMNS(2, a4, b4, a5, b5)
        MBI_I8MM_COLUMNS(3, a6, b6, a7, b7)
        MBI_I8MM_ADD(acc, sum0, scale0)
        MBI_I8MM_ADD(acc + 4, sum1, scale1)
    }
}
#undef MBI_I8MM_ROWS
#undef MBI_I8MM_ADD
#undef MBI_I8MM_EIGHT
#undef MBI_I8MM_DECLARE
#undef MBI_I8MM_Q8
#undef MBI_I8MM_Q6
#undef MBI_I8MM_Q4
#undef MBI_I8MM_COLUMNS

/* acc of one pair: [16 rows][2 tokens] -> [2 tokens][16 rows]. */
MBI_FN void mbi_i8mm_unpair(float *acc) {
    float v[2 * MBI_LANES];
    int i;
    memcpy(v, acc, sizeof v);
    for (i = 0; i < MBI_LANES; i += 4) {
        vf a = vld1q_f32(v + 2 * i);
        vf b = vld1q_f32(v + 2 * i + 4);
        vst1q_f32(acc + i, vuzp1q_f32(a, b));
        vst1q_f32(acc + MBI_LANES + i, vuzp2q_f32(a, b));
    }
}

MBI_I8MM_FN void mbi_k_gemm_neoni8mm(const mbi_gemm *g, int p0, int p1, int t0, int t1) {
    enum { TILE = 64 };
    const mbi_mat *w = g->w;
    MBI_ALIGN64 float acc[TILE * MBI_LANES];
    int n_groups = mbi_groups(w->cols);
    int p;
    int start;
    if (!mbi_is_quantized(w->type) || t1 - t0 < 2) {
        MBI_I(mbi_k_gemm)(g, p0, p1, t0, t1);
        return;
    }
    if ((t1 - t0) % 2 != 0) {
        MBI_I(mbi_k_gemm)(g, p0, p1, t1 - 1, t1);
        t1--;
    }
    for (p = p0; p < p1; p++) {
        for (start = t0; start < t1; start += TILE) {
            int end = mbi_min_int(start + TILE, t1);
            int n_pairs = (end - start) / 2;
            int i;
            int k;
            int t;
            for (i = 0; i < MBI_LANES; i += 4) {
                vf bias = g->bias ? vld1q_f32(g->bias + p * MBI_LANES + i) : vdupq_n_f32(0.0f);
                for (t = 0; t < n_pairs; t++) {
                    vst1q_f32(acc + 2 * (t * MBI_LANES + i), vzip1q_f32(bias, bias));
                    vst1q_f32(acc + 2 * (t * MBI_LANES + i) + 4, vzip2q_f32(bias, bias));
                }
            }
            for (k = 0; k < n_groups; k++) {
                const unsigned char *x = (const unsigned char *)g->x +
                                         (size_t)k * (size_t)g->n_tokens * MBI_INT8_TOKEN_BYTES;
                for (i = 0; i < MBI_LANES; i += 4) {
                    mbi_i8mm_product(w, p, i, k, x, g->n_tokens, start, n_pairs, acc);
                }
            }
            for (t = 0; t < n_pairs; t++) {
                mbi_i8mm_unpair(acc + 2 * t * MBI_LANES);
            }
            MBI_T(mbi_gemm_finish)(g, p, start, end - start, acc, MBI_LANES);
        }
    }
}
#undef MBI_I8MM_FN
#endif /* MBI_NEON && MBI_BUILD_NEON_I8MM */

/* ------------------------------------------------------------------------------------------------
 * @@kernels_amx   Products by AMX matrix tiles                                           (private)
 *
 * Float32 weights take the AVX-512 product; q8, q6 and q4 have the numbers of avx512vnni.
 * ---------------------------------------------------------------------------------------------- */
#if MBI_PASS == MBI_AVX512 && MBI_BUILD_AMX
/* tdpbf16ps adds to a tile of 16 tokens x 16 rows the product of 16 tokens x 32 columns of bf16
 * activations and 32 columns x 16 rows of bf16 weights: 32 columns of a panel in 2-byte units are
 * such a tile as they stand.  A tile product sums even and odd columns apart, then adds both to the
 * accumulator; bf16 denormals count as zero.  Columns ascend in steps of 32; per step
 *   bf16    x = hi + lo (bf16 each):            acc += hi*w;  acc += lo*w
 *   f16     and w = whi + wlo (exact):          acc += hi*whi;  acc += lo*whi;  acc += hi*wlo
 * Errors, relative to sum |w x| and beside the accumulation in float32: 2^-16, 2^-15.
 *
 * Prepared activations, f16 and bf16: per *superblock* of columns (so that the superblock of all
 * tiles stays in the second-level cache), per tile of 16 tokens, per step: hi tile, then lo tile, of
 * 64-byte rows, one per token.  Measured on a Sapphire Rapids core, one product, 512 x 768 x 3072:
 * 1,350 to 1,500 GFLOP/s of 2,350; the streaming load of activation tiles, which leaves the weights
 * in the first-level cache, gives a third of that; delayed stores of the accumulators a tenth. */
#define MBI_AMX_ATTRIBUTE                                                                          \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,amx-tile,"     \
                          "amx-bf16,amx-int8,avx2,fma,f16c")))
#define MBI_AMX_FN static inline __attribute__((always_inline)) MBI_AMX_ATTRIBUTE
#define MBI_AMX_KERNEL static MBI_NOINLINE MBI_AMX_ATTRIBUTE
/* The tile intrinsics do not tell the compiler what memory they touch. */
#define MBI_BARRIER() __asm__ volatile("" ::: "memory")

enum { MBI_AMX_STEPS = 16 /* of a block of weights: 2 panels, 32 KiB */, MBI_AMX_TOKENS = 512 };

typedef struct mbi_amx_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t colsb[16];
    uint8_t rows[16];
} mbi_amx_config;

/* Tiles 0-3: sums, 4 and 5: weights, 6 and 7: activations; other uses have 16 rows everywhere. */
MBI_AMX_FN void mbi_amx_begin(int n_rows) {
    mbi_amx_config c;
    int i;
    memset(&c, 0, sizeof c);
    c.palette = 1;
    for (i = 0; i < 8; i++) {
        c.colsb[i] = 64;
        c.rows[i] = (uint8_t)(i == 4 || i == 5 ? 16 : n_rows);
    }
    MBI_BARRIER(); /* GCC 12 believes that only 8 bytes of c are read */
    _tile_loadconfig(&c);
}

/* How the prepared activations of n channels and T tokens lie. */
typedef struct mbi_amx_shape {
    int steps, tiles, rows;
    int super;   /* steps of a superblock */
    size_t unit; /* bytes of one step of one tile */
} mbi_amx_shape;

static mbi_amx_shape mbi_amx_shape_of(int n, int n_tokens) {
    mbi_amx_shape s;
    int fit;
    s.steps = (n + 31) / 32;
    s.tiles = (n_tokens + 15) / 16;
    s.rows = mbi_min_int(n_tokens, 16);
    s.unit = (size_t)s.rows * 128;
    fit = (int)((size_t)(1024 * 1024) / (s.unit * (size_t)mbi_min_int(s.tiles, 32)));
    s.super = fit / MBI_AMX_STEPS * MBI_AMX_STEPS;
    if (s.super >= s.steps) {
        s.super = s.steps;
    } else if (s.super < MBI_AMX_STEPS) {
        s.super = MBI_AMX_STEPS;
    }
    return s;
}

static size_t mbi_amx_at(const mbi_amx_shape *s, int tile, int step) {
    int start = step / s->super * s->super;
    int width = mbi_min_int(s->super, s->steps - start);
    return ((size_t)start * (size_t)s->tiles + (size_t)tile * (size_t)width +
            (size_t)(step - start)) *
           s->unit;
}

static size_t mbi_k_prepared_bytes_amx(mamba_type type, int n, int n_tokens) {
    mbi_amx_shape s = mbi_amx_shape_of(n, n_tokens);
    return type == MAMBA_F32        ? 0
           : mbi_is_quantized(type) ? MBI_I(mbi_k_prepared_bytes)(type, n, n_tokens)
                                    : s.unit * (size_t)s.tiles * (size_t)s.steps;
}

MBI_AMX_FN __m512 mbi_amx_high(__m512i pairs, int i) { /* 16 bf16 of 32 as floats */
    __m256i h = i == 0 ? _mm512_castsi512_si256(pairs) : _mm512_extracti64x4_epi64(pairs, 1);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

/* Quantized types: tile by tile of 16 tokens (the last may be smaller), each as if it were alone. */
static void mbi_amx_prepare_int8(const float *x, int n, int n_tokens, int t0, int t1, int g0,
                                 int g1, unsigned char *out) {
    size_t token = (size_t)mbi_groups(n) * MBI_INT8_TOKEN_BYTES;
    int t;
    for (t = t0; t < t1; t += 16) {
        int T = mbi_min_int(16, n_tokens - t);
        MBI_I(mbi_int8_prepare)(x + (size_t)t * MBI_LANES, (size_t)n_tokens * MBI_LANES, n, T, 0, T,
                                g0, g1, out + (size_t)t * token);
    }
}

MBI_AMX_KERNEL void mbi_k_prepare_amx(mamba_type type, const float *x, int n, int n_tokens, int t0,
                                      int t1, int g0, int g1, void *out) {
    const mbi_amx_shape s = mbi_amx_shape_of(n, n_tokens);
    const __m512 zero = _mm512_setzero_ps();
    size_t block = (size_t)n_tokens * MBI_LANES;
    int n_blocks = (n + 15) / 16;
    int tile;
    int k;
    int r;
    if (mbi_is_quantized(type)) {
        mbi_amx_prepare_int8(x, n, n_tokens, t0, t1, g0, g1, (unsigned char *)out);
        return;
    }
    for (k = 2 * g0; k < mbi_min_int(2 * g1, s.steps); k++) { /* outside: x in address order */
        for (tile = t0 / 16; tile * 16 < t1; tile++) {
            char *o = (char *)out + mbi_amx_at(&s, tile, k);
            for (r = 0; r < s.rows; r++, o += 64) {
                int t = tile * 16 + r;
                const float *in = x + (size_t)(2 * k) * block + (size_t)t * MBI_LANES;
                __m512 a = t < n_tokens && 2 * k < n_blocks ? _mm512_loadu_ps(in) : zero;
                __m512 b =
                    t < n_tokens && 2 * k + 1 < n_blocks ? _mm512_loadu_ps(in + block) : zero;
                __m512i hi = (__m512i)_mm512_cvtne2ps_pbh(b, a);
                _mm512_storeu_si512(o, hi);
                a = _mm512_sub_ps(a, mbi_amx_high(hi, 0));
                b = _mm512_sub_ps(b, mbi_amx_high(hi, 1));
                _mm512_storeu_si512(o + 64 * s.rows, (__m512i)_mm512_cvtne2ps_pbh(b, a));
            }
        }
    }
}

/* 16 f16 as floats: the high part, cut to bf16, and what is left, at most 3 bits. */
MBI_AMX_FN void mbi_amx_split_f16(__m256i f16, __m512 *high, __m512 *low) {
    __m512 v = _mm512_cvtph_ps(f16);
    *high = _mm512_castsi512_ps(
        _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32((int)0xffff0000)));
    *low = _mm512_sub_ps(v, *high);
}

/* 2 columns of a panel of f16: their parts. */
MBI_AMX_FN void mbi_amx_split_pairs(const unsigned char *in, __m512 high[2], __m512 low[2]) {
    __m512i pairs = _mm512_loadu_si512(in);
    mbi_amx_split_f16(_mm512_cvtepi32_epi16(pairs), &high[0], &low[0]);
    mbi_amx_split_f16(_mm512_cvtepi32_epi16(_mm512_srli_epi32(pairs, 16)), &high[1], &low[1]);
}

MBI_AMX_FN __m512i mbi_amx_pairs(const __m512 part[2]) {
    return _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(part[0]), 16),
                           _mm512_castps_si512(part[1]));
}

/* 32 columns of f16 -> the tile of the high parts, then that of the low parts. */
MBI_AMX_FN void mbi_amx_expand_f16(const unsigned char *in, unsigned char *out) {
    int j;
    for (j = 0; j < 16; j++) {
        __m512 high[2];
        __m512 low[2];
        mbi_amx_split_pairs(in + j * 64, high, low);
        _mm512_store_si512(out + j * 64, mbi_amx_pairs(high));
        _mm512_store_si512(out + 1024 + j * 64, mbi_amx_pairs(low));
    }
}

/* Steps [k, k+n) of panel p as pairs of tiles in out. */
MBI_AMX_KERNEL void mbi_amx_expand(const mbi_mat *w, int p, int k, int n, unsigned char *out) {
    const unsigned char *in = w->data + (size_t)p * w->panel_bytes + (size_t)k * 1024;
    for (; n > 0; n--, in += 1024, out += 2048) {
        mbi_amx_expand_f16(in, out);
    }
}

/* One to 15 tokens (f16: from 2 on): a single tile of activations, the weights read once in address order and asked
 * for AHEAD bytes before, f16 expanded one step ahead. */
MBI_AMX_FN void mbi_amx_few(const mamba_type type, const mbi_gemm *g, const mbi_amx_shape *s,
                            int p0, int p1) {
    enum { AHEAD = 8192 };
    const unsigned char *x = (const unsigned char *)g->x;
    const unsigned char *b = g->w->data + (size_t)p0 * g->w->panel_bytes;
    const unsigned char *end = g->w->data + (size_t)mbi_max_int(p1, g->next) * g->w->panel_bytes;
    unsigned char *ring = (unsigned char *)g->scratch; /* 2 x 2 KiB */
    float *sum = (float *)(void *)(ring + 4096);
    size_t lo = (size_t)s->rows * 64;
    int turn = 0;
    int p;
    int i;
    int j;
    if (type == MAMBA_F16) {
        mbi_amx_expand_f16(b, ring);
    }
    for (p = p0; p < p1; p++) {
        if (g->bias) {
            _tile_loadd(0, g->bias + p * MBI_LANES, 0);
        } else {
            _tile_zero(0);
        }
        for (i = 0; i < s->steps; i++) {
            const unsigned char *a = x + (size_t)i * s->unit;
            const unsigned char *tile = type == MAMBA_BF16 ? b : ring + turn * 2048;
            const unsigned char *ahead = end - b > AHEAD ? b + AHEAD : b;
            b += 1024;
            for (j = 0; j < 1024; j += 64) {
                _mm_prefetch((const char *)ahead + j, _MM_HINT_T0);
            }
            turn ^= 1;
            if (type == MAMBA_F16 && (i < s->steps - 1 || p < p1 - 1)) {
                mbi_amx_expand_f16(b, ring + turn * 2048);
            }
            MBI_BARRIER();
            _tile_loadd(6, a, 64);
            _tile_loadd(4, tile, 64);
            _tile_dpbf16ps(0, 6, 4);
            _tile_loadd(7, a + lo, 64);
            _tile_dpbf16ps(0, 7, 4);
            if (type == MAMBA_F16) {
                _tile_loadd(5, tile + 1024, 64);
                _tile_dpbf16ps(0, 6, 5);
            }
        }
        _tile_stored(0, sum, 64);
        MBI_BARRIER();
        MBI_T(mbi_gemm_finish)(g, p, 0, s->rows, sum, MBI_LANES);
    }
}

/* One token times a panel of f16 in the numbers of the tiles, found by FMA: three products a step, each
 * with sums of even and of odd columns. */
MBI_AMX_FN __m512 mbi_amx_one_panel(const unsigned char *x, const unsigned char *w,
                                    const unsigned char *end, int steps, __m512 acc) {
    enum { AHEAD = 4096 };
    const __m512i top = _mm512_set1_epi32((int)0xffff0000);
    for (; steps > 0; steps--, x += 128, w += 1024) {
        const unsigned char *ahead = end - w > AHEAD ? w + AHEAD : w;
        MBI_ALIGN64 float even[2][16]; /* columns of hi, of lo */
        MBI_ALIGN64 float odd[2][16];
        __m512 e[3];
        __m512 o[3];
        int i;
        for (i = 0; i < 2; i++) {
            __m512i pairs = _mm512_loadu_si512(x + 64 * i);
            _mm512_store_si512(even[i], _mm512_slli_epi32(pairs, 16));
            _mm512_store_si512(odd[i], _mm512_and_si512(pairs, top));
        }
        for (i = 0; i < 3; i++) {
            e[i] = o[i] = _mm512_setzero_ps();
        }
        for (i = 0; i < 16; i++) {
            __m512 high[2];
            __m512 low[2];
            mbi_amx_split_pairs(w + i * 64, high, low);
            _mm_prefetch((const char *)ahead + i * 64, _MM_HINT_T0);
            e[0] = _mm512_fmadd_ps(_mm512_set1_ps(even[0][i]), high[0], e[0]);
            o[0] = _mm512_fmadd_ps(_mm512_set1_ps(odd[0][i]), high[1], o[0]);
            e[1] = _mm512_fmadd_ps(_mm512_set1_ps(even[1][i]), high[0], e[1]);
            o[1] = _mm512_fmadd_ps(_mm512_set1_ps(odd[1][i]), high[1], o[1]);
            e[2] = _mm512_fmadd_ps(_mm512_set1_ps(even[0][i]), low[0], e[2]);
            o[2] = _mm512_fmadd_ps(_mm512_set1_ps(odd[0][i]), low[1], o[2]);
        }
        for (i = 0; i < 3; i++) {
            acc = _mm512_add_ps(acc, _mm512_add_ps(e[i], o[i]));
        }
    }
    return acc;
}

/* One token times f16 weights: tiles would wait for their numbers to be split, and written.  Without,
 * f16 models decode 16 to 21 % faster, and 2.8b q4, whose dt_proj is f16, 3 to 4 % on 16 threads. */
MBI_AMX_FN void mbi_amx_one(const mbi_gemm *g, const mbi_amx_shape *s, int p0, int p1) {
    enum { PANELS = 16, AS_TILES = 0x9fc0 /* MXCSR: nearest, no traps, denormals count as zero */ };
    MBI_ALIGN64 float sums[PANELS * MBI_LANES];
    const mbi_mat *w = g->w;
    const unsigned char *end = w->data + (size_t)mbi_max_int(p1, g->next) * w->panel_bytes;
    int p;
    for (p = p0; p < p1; p += PANELS) {
        int n = mbi_min_int(PANELS, p1 - p);
        unsigned csr = _mm_getcsr();
        int i;
        MBI_T(mbi_gemm_start)(g, p, 1, n * MBI_LANES, sums);
        _mm_setcsr(AS_TILES);
        MBI_BARRIER();
        for (i = 0; i < n; i++) {
            float *sum = sums + i * MBI_LANES;
            const unsigned char *panel = w->data + (size_t)(p + i) * w->panel_bytes;
            _mm512_store_ps(sum, mbi_amx_one_panel((const unsigned char *)g->x, panel, end,
                                                   s->steps, _mm512_load_ps(sum)));
        }
        MBI_BARRIER();
        _mm_setcsr(csr);
        for (i = 0; i < n; i++) {
            MBI_T(mbi_gemm_finish)(g, p + i, 0, 1, sums + i * MBI_LANES, MBI_LANES);
        }
    }
}

/* One block of weights (n steps of one or two panels, as tiles) times all tiles of tokens. */
typedef struct mbi_amx_block {
    const unsigned char *a;     /* first tile of tokens, first step */
    size_t a_tile, a_step;      /* bytes from tile to tile, from step to step */
    const unsigned char *b[2];  /* tiles of the panels */
    const unsigned char *next;  /* bytes to prefetch meanwhile, of each panel */
    size_t next_panel;          /* from one panel to the other */
    int n_next;                 /* lines of each panel */
    float *c[2];                /* sums of the panels */
    size_t c_tile, c_stride;    /* floats from tile to tile, bytes from token to token */
    const float *init[2];       /* NULL: continue from c; else 16 floats, the start of each row */
    int n, tiles;
} mbi_amx_block;

#define MBI_AMX_INIT(tile, p, at)                                                                  \
    if (k->init[0]) {                                                                              \
        _tile_loadd(tile, k->init[p], 0);                                                          \
    } else {                                                                                       \
        _tile_loadd(tile, (at), k->c_stride);                                                      \
    }

/* Two tiles of tokens x two panels in the tile registers.  The sums of a pair are stored while the
 * next pair is under way.  Returns the number of tiles done. */
MBI_AMX_FN int mbi_amx_2x2(const int b_parts, const mbi_amx_block *k) {
    const int lo = 1024;
    int runs = k->n * (k->tiles / 2);
    int per = (2 * k->n_next + runs - 1) / (runs + (runs == 0)); /* lines to prefetch at a step */
    int line = 0;
    float *e[4] = {NULL, NULL, NULL, NULL}; /* where finished sums go */
    int t;
    int i;
    int j;
    for (t = 0; t + 2 <= k->tiles; t += 2) {
        const unsigned char *a0 = k->a + (size_t)t * k->a_tile;
        const unsigned char *a1 = a0 + k->a_tile;
        const unsigned char *b0 = k->b[0];
        const unsigned char *b1 = k->b[1];
        float *c0 = k->c[0] + (size_t)t * k->c_tile;
        float *c1 = k->c[1] + (size_t)t * k->c_tile;
        float *c2 = c0 + k->c_tile;
        float *c3 = c1 + k->c_tile;
        for (i = 0; i < k->n; i++) {
            _tile_loadd(4, b0, 64);
            _tile_stream_loadd(6, a0, 64);
            if (i == 0) {
                if (e[0]) {
                    _tile_stored(0, e[0], k->c_stride);
                }
                MBI_AMX_INIT(0, 0, c0)
            }
            _tile_dpbf16ps(0, 6, 4);
            _tile_loadd(5, b1, 64);
            if (i == 0) {
                if (e[0]) {
                    _tile_stored(1, e[1], k->c_stride);
                }
                MBI_AMX_INIT(1, 1, c1)
            }
            _tile_dpbf16ps(1, 6, 5);
            _tile_stream_loadd(7, a1, 64);
            if (i == 0) {
                if (e[0]) {
                    _tile_stored(2, e[2], k->c_stride);
                    _tile_stored(3, e[3], k->c_stride);
                }
                MBI_AMX_INIT(2, 0, c2)
                MBI_AMX_INIT(3, 1, c3)
            }
            _tile_dpbf16ps(2, 7, 4);
            _tile_dpbf16ps(3, 7, 5);
            for (j = 0; j < per && line < 2 * k->n_next; j++, line++) {
                _mm_prefetch((const char *)k->next + (line >> 1) * 64 +
                                 (size_t)(line & 1) * k->next_panel,
                             _MM_HINT_T1);
            }
            _tile_stream_loadd(6, a0 + lo, 64);
            _tile_dpbf16ps(0, 6, 4);
            _tile_dpbf16ps(1, 6, 5);
            _tile_stream_loadd(7, a1 + lo, 64);
            _tile_dpbf16ps(2, 7, 4);
            _tile_dpbf16ps(3, 7, 5);
            if (b_parts == 2) {
                _tile_loadd(4, b0 + lo, 64);
                _tile_loadd(5, b1 + lo, 64);
                _tile_stream_loadd(6, a0, 64);
                _tile_dpbf16ps(0, 6, 4);
                _tile_dpbf16ps(1, 6, 5);
                _tile_stream_loadd(7, a1, 64);
                _tile_dpbf16ps(2, 7, 4);
                _tile_dpbf16ps(3, 7, 5);
            }
            a0 += k->a_step;
            a1 += k->a_step;
            b0 += 1024 * b_parts;
            b1 += 1024 * b_parts;
        }
        e[0] = c0;
        e[1] = c1;
        e[2] = c2;
        e[3] = c3;
    }
    if (e[0]) {
        _tile_stored(0, e[0], k->c_stride);
        _tile_stored(1, e[1], k->c_stride);
        _tile_stored(2, e[2], k->c_stride);
        _tile_stored(3, e[3], k->c_stride);
    }
    return t;
}

/* What the pairs leave over: tiles [t, tiles), two at a time or one, of n_panels panels. */
MBI_AMX_FN void mbi_amx_rest(const int b_parts, const mbi_amx_block *k, int t,
                             int n_panels) {
    const int lo = 1024;
    int i;
    int p;
    for (; t < k->tiles; t += 2) {
        int two = t + 1 < k->tiles;
        for (p = 0; p < n_panels; p++) {
            const unsigned char *a0 = k->a + (size_t)t * k->a_tile;
            const unsigned char *a1 = a0 + (two ? k->a_tile : 0);
            const unsigned char *b0 = k->b[p];
            float *c0 = k->c[p] + (size_t)t * k->c_tile;
            float *c1 = c0 + (two ? k->c_tile : 0);
            MBI_AMX_INIT(0, p, c0)
            MBI_AMX_INIT(1, p, c1)
            for (i = 0; i < k->n; i++) {
                _tile_loadd(4, b0, 64);
                _tile_stream_loadd(6, a0, 64);
                _tile_dpbf16ps(0, 6, 4);
                _tile_stream_loadd(7, a1, 64);
                _tile_dpbf16ps(1, 7, 4);
                _tile_stream_loadd(6, a0 + lo, 64);
                _tile_dpbf16ps(0, 6, 4);
                _tile_stream_loadd(7, a1 + lo, 64);
                _tile_dpbf16ps(1, 7, 4);
                if (b_parts == 2) {
                    _tile_loadd(5, b0 + lo, 64);
                    _tile_stream_loadd(6, a0, 64);
                    _tile_dpbf16ps(0, 6, 5);
                    _tile_stream_loadd(7, a1, 64);
                    _tile_dpbf16ps(1, 7, 5);
                }
                a0 += k->a_step;
                a1 += k->a_step;
                b0 += 1024 * b_parts;
            }
            if (two) {
                _tile_stored(1, c1, k->c_stride);
            }
            _tile_stored(0, c0, k->c_stride);
        }
    }
}

MBI_AMX_KERNEL void mbi_amx_run(mamba_type type, const mbi_amx_block *k, int n_panels) {
    int t = 0;
    if (type == MAMBA_BF16) {
        t = n_panels == 2 ? mbi_amx_2x2(1, k) : 0;
        mbi_amx_rest(1, k, t, n_panels);
    } else {
        t = n_panels == 2 ? mbi_amx_2x2(2, k) : 0;
        mbi_amx_rest(2, k, t, n_panels);
    }
}

/* Tokens [t0, t1), at most MBI_AMX_TOKENS.  Sums live in y itself, or, where y has no room for
 * whole tiles or is to be added to, in the scratch, for as many panels as fit. */
MBI_AMX_KERNEL void mbi_amx_tokens(const mbi_gemm *g, const mbi_amx_shape *s, int p0, int p1,
                                   int t0, int t1) {
    static const float zeros[MBI_LANES] = {0};
    enum { EXPANDED = 2 * MBI_AMX_STEPS * 1024 };
    const mbi_mat *w = g->w;
    unsigned char *expanded = (unsigned char *)g->scratch;
    float *sums = (float *)(void *)(expanded + EXPANDED);
    int tiles = (t1 - t0 + 15) / 16;
    int direct = !g->add && (t1 - t0) % 16 == 0 && !(g->exact_rows && w->rows < p1 * MBI_LANES);
    int group = p1 - p0;
    int most = w->type == MAMBA_F16 ? MBI_AMX_STEPS / 2 : MBI_AMX_STEPS; /* steps of a block */
    int first;
    if (!direct) {
        group = s->super == s->steps ? 2 : (MBI_GEMM_SCRATCH - (int)EXPANDED) / (tiles * 1024) / 2 * 2;
    }
    for (first = p0; first < p1; first += group) {
        int last = mbi_min_int(first + group, p1);
        int start;
        int p;
        for (start = 0; start < s->steps; start += s->super) {
            int end = mbi_min_int(start + s->super, s->steps);
            int n_blocks = (end - start + most - 1) / most;
            int span = (end - start + n_blocks - 1) / n_blocks;
            for (p = first; p < last; p += 2) {
                int n_panels = mbi_min_int(2, last - p);
                const unsigned char *panel = w->data + (size_t)p * w->panel_bytes;
                int at;
                for (at = start; at < end; at += span) {
                    mbi_amx_block k;
                    int i;
                    k.n = mbi_min_int(span, end - at);
                    k.tiles = tiles;
                    k.a = (const unsigned char *)g->x + mbi_amx_at(s, t0 / 16, at);
                    k.a_step = s->unit;
                    k.a_tile = (size_t)(end - start) * s->unit;
                    k.next = panel +
                             (at + span < end ? (size_t)(at + span) * 1024
                                              : 2 * w->panel_bytes + (size_t)start * 1024);
                    k.next_panel = w->panel_bytes;
                    k.n_next = (int)((size_t)k.n * 1024 / 64);
                    for (i = 0; i < n_panels; i++) {
                        const unsigned char *b = panel + (size_t)i * w->panel_bytes;
                        if (w->type == MAMBA_BF16) {
                            k.b[i] = b + (size_t)at * 1024;
                        } else {
                            k.b[i] = expanded + i * (EXPANDED / 2);
                            mbi_amx_expand(w, p + i, at, k.n, expanded + i * (EXPANDED / 2));
                        }
                        k.c[i] = direct ? g->y + (size_t)(p + i) * g->y_panel +
                                              (size_t)t0 * g->y_token
                                        : sums + (size_t)(p + i - first) * (size_t)tiles * 256;
                        k.init[i] = at > 0 ? NULL : g->bias ? g->bias + (p + i) * MBI_LANES : zeros;
                    }
                    k.c_tile = direct ? 16 * g->y_token : 256;
                    k.c_stride = direct ? g->y_token * sizeof(float) : 64;
                    MBI_BARRIER();
                    mbi_amx_run(w->type, &k, n_panels);
                    MBI_BARRIER();
                }
            }
        }
        for (p = first; p < last && !direct; p++) {
            MBI_T(mbi_gemm_finish)(g, p, t0, t1 - t0,
                                   sums + (size_t)(p - first) * (size_t)tiles * 256, MBI_LANES);
        }
    }
}

/* Quantized types: a tile of 16 tokens and one group of columns is one tile product, whose exact sums
 * are then scaled and added in registers, group by group, exactly as in avx512vnni.
 *
 * Why the order below (Sapphire Rapids, variants of this code interleaved over the four matrices of
 * 130m and 1.4b): the activations of four groups stay in tiles while eight panels pass; to load
 * them for every product costs 5 %, as a stream past the first-level cache 10 to 15 %; two products
 * and then two scalings at a time 12 %.  To ask for the next activations meanwhile gains 5 %, to
 * read q8 where it lies instead of copying it 3 to 10 %, not to pass over the sums before and after
 * 9 to 22 %.  A tilezero makes the product behind it wait for all before it, so sums start from a
 * load; a sum is stored when its tile is needed again, two products later, and scaled a panel
 * later: later still is slower, not faster.
 *
 * While a product is under way, one of the two ports for 512 bits takes no multiplications and no
 * conversions, but additions: 48 conversions and multiplications behind a product 51 cycles, with
 * additions in place of the 16 conversions 34.  So integer sums start from the bits of 3*2^22 as a
 * float, come out as the float 3*2^22 + sum, exactly (|sum| <= 2^20 < 2^22), and lose it by an
 * addition.  Of 25 ns for a product, 16 remain in a loop without sums in memory, 17 without the
 * scaling. */
enum {
    MBI_AMX_PANELS = 8, /* of a block of weights: 32 KiB */
    MBI_AMX_GROUPS = 4, /* as many as lie together in a file, see mbi_units_at */
    MBI_AMX_X_GROUP = 16 * MBI_INT8_TOKEN_BYTES, /* a tile's activations */
    MBI_AMX_BASE = 0x4b400000                   /* where sums start: 3*2^22 as a float */
};

/* n groups of n_panels panels and n_tiles tiles of tokens. */
typedef struct mbi_amx_groups {
    const unsigned char *w; /* group k of panel i at w + i*w_panel + k*1024 */
    size_t w_panel;
    const float *scales;    /* [panel][n][16] */
    const unsigned char *x; /* prepared: group k of tile i at x + i*x_tile + k*MBI_AMX_X_GROUP */
    size_t x_tile;
    float *acc;             /* [tile][panel][16 tokens][16 rows] */
    const float *start;     /* [panel][16] where sums start; NULL: in acc */
    float *y;               /* of the first tile and panel, where sums end; NULL: in acc */
    size_t y_panel, y_token;
    int add, n, n_panels, n_tiles;
    MBI_T(mbi_ahead) ahead; /* what comes next */
} mbi_amx_groups;

/* The panel whose sums are scaled while the products of the next one are under way. */
typedef struct mbi_amx_before {
    int32_t (*sums)[256];   /* [group][16 tokens][16 rows] */
    const unsigned char *x; /* its tile's activations */
    const float *scales, *start;
    float *acc, *y;
} mbi_amx_before;

#define MBI_AMX_16(X)                                                                              \
    X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define MBI_AMX_BASES(t) MBI_AMX_BASE,
#define MBI_AMX_SUM(t) __m512 a##t = _mm512_setzero_ps();
#define MBI_AMX_START(t) a##t = start;
#define MBI_AMX_IN(t) a##t = _mm512_load_ps(m.acc + 16 * (t));
#define MBI_AMX_OUT(t) _mm512_store_ps(m.acc + 16 * (t), a##t);
#define MBI_AMX_Y(t) _mm512_storeu_ps(m.y + (t) * b->y_token, a##t);
#define MBI_AMX_Y_ADD(t) a##t = _mm512_add_ps(_mm512_loadu_ps(m.y + (t) * b->y_token), a##t);
#define MBI_AMX_ADD(t)                                                                             \
    a##t = _mm512_fmadd_ps(_mm512_mul_ps(scale, _mm512_set1_ps(xs[2 * (t)])),                      \
                           _mm512_add_ps(_mm512_load_ps(sum + 16 * (t)), base), a##t);
#define MBI_AMX_X(k, tile)                                                                         \
    if ((k) < n) {                                                                                 \
        _tile_loadd(tile, x + (k) * MBI_AMX_X_GROUP, 64);                                          \
    }
/* Group k of this panel, whose sums go to `tile`; the sums that lay there to `saved` [k_saved]. */
#define MBI_AMX_PRODUCT(k, tile, w_tile, x_tile, any, saved, k_saved)                              \
    if ((any) && (k_saved) < n) {                                                                  \
        _tile_stored(tile, (saved)[k_saved], 64);                                                  \
    }                                                                                              \
    if (live && (k) < n) {                                                                         \
        _tile_loadd(tile, bases, 0);                                                               \
        _tile_loadd(w_tile, w + (k) * 1024, 64);                                                   \
        _tile_dpbssd(tile, x_tile, w_tile);                                                        \
    }                                                                                              \
    MBI_BARRIER();
/* Group k of the panel before. */
#define MBI_AMX_SCALE(k)                                                                           \
    if (more && (k) < n) {                                                                         \
        const float *sum = (const float *)(const void *)m.sums[k];                                 \
        const float *xs =                                                                          \
            (const float *)(const void *)(m.x + (k) * MBI_AMX_X_GROUP + 16 * MBI_GROUP);           \
        __m512 scale = _mm512_load_ps(m.scales + (k) * MBI_LANES);                                 \
        MBI_AMX_16(MBI_AMX_ADD)                                                                    \
    }

/* live: the products of the n groups at w, into `now`; more: the scaling of panel m. */
MBI_AMX_FN void mbi_amx_int8_step(const mbi_amx_groups *b, const int n, const int live,
                                  const int more, const unsigned char *w, int32_t (*now)[256],
                                  mbi_amx_before m) {
    static const MBI_ALIGN64 int32_t bases[16] = {MBI_AMX_16(MBI_AMX_BASES)};
    const __m512 base = _mm512_set1_ps(-12582912.0f); /* what MBI_AMX_BASE adds */
    MBI_AMX_16(MBI_AMX_SUM)
    if (more && m.start) {
        __m512 start = _mm512_loadu_ps(m.start);
        MBI_AMX_16(MBI_AMX_START)
    } else if (more) {
        MBI_AMX_16(MBI_AMX_IN)
    }
    MBI_AMX_PRODUCT(0, 0, 2, 4, more, m.sums, 2)
    MBI_AMX_SCALE(0)
    MBI_AMX_PRODUCT(1, 1, 3, 5, more, m.sums, 3)
    MBI_AMX_SCALE(1)
    MBI_AMX_PRODUCT(2, 0, 2, 6, live, now, 0)
    MBI_AMX_SCALE(2)
    MBI_AMX_PRODUCT(3, 1, 3, 7, live, now, 1)
    MBI_AMX_SCALE(3)
    if (more && m.y && b->add) {
        MBI_AMX_16(MBI_AMX_Y_ADD)
    }
    if (more && m.y) {
        MBI_AMX_16(MBI_AMX_Y)
    } else if (more) {
        MBI_AMX_16(MBI_AMX_OUT)
    }
}

/* All panels of a tile, tile by tile; n is b->n, perhaps known to the compiler. */
MBI_AMX_FN void mbi_amx_int8_walk(mbi_amx_groups *b, const int n) {
    MBI_ALIGN64 int32_t sums[2][4][256];
    const unsigned char *x = b->x;
    int count = b->n_tiles * b->n_panels;
    int lines = b->ahead.left / count + 1; /* to ask for at a panel: of weights, of activations */
    int x_lines = (n * MBI_AMX_X_GROUP / 64 + b->n_panels - 1) / b->n_panels;
    mbi_amx_before m;
    int i = 0;
    int t;
    memset(&m, 0, sizeof m);
    for (t = 0; t < b->n_tiles; t++, x += b->x_tile) {
        const unsigned char *x_next =
            t + 1 < b->n_tiles ? x + b->x_tile : b->x + n * MBI_AMX_X_GROUP;
        int p;
        MBI_AMX_X(0, 4)
        MBI_AMX_X(1, 5)
        MBI_AMX_X(2, 6)
        MBI_AMX_X(3, 7)
        for (p = 0; p < b->n_panels; p++, i++) {
            const unsigned char *w = b->w + (size_t)p * b->w_panel;
            int32_t(*now)[256] = sums[i % 2];
            int line;
            MBI_T(mbi_ahead_some)(&b->ahead, lines);
            for (line = 0; line < x_lines; line++, x_next += 64) {
                _mm_prefetch((const char *)x_next, _MM_HINT_T0);
            }
            if (i == 0) {
                mbi_amx_int8_step(b, n, 1, 0, w, now, m);
            } else {
                mbi_amx_int8_step(b, n, 1, 1, w, now, m);
            }
            m.sums = now;
            m.x = x;
            m.scales = b->scales + p * n * MBI_LANES;
            m.start = b->start ? b->start + p * MBI_LANES : NULL;
            m.acc = b->acc + i * 256;
            m.y = b->y ? b->y + (size_t)p * b->y_panel + (size_t)t * 16 * b->y_token : NULL;
        }
    }
    mbi_amx_int8_step(b, n, 0, 1, NULL, NULL, m);
}

MBI_AMX_KERNEL void mbi_amx_int8_tiles(mbi_amx_groups *b) {
    if (b->n == MBI_AMX_GROUPS) {
        mbi_amx_int8_walk(b, MBI_AMX_GROUPS);
    } else {
        mbi_amx_int8_walk(b, b->n);
    }
}
#undef MBI_AMX_16
#undef MBI_AMX_BASES
#undef MBI_AMX_SUM
#undef MBI_AMX_START
#undef MBI_AMX_IN
#undef MBI_AMX_OUT
#undef MBI_AMX_Y
#undef MBI_AMX_Y_ADD
#undef MBI_AMX_ADD
#undef MBI_AMX_X
#undef MBI_AMX_PRODUCT
#undef MBI_AMX_SCALE

/* Groups [g, g+n) of panel p: scales, and integers of q6 and q4 as int8. */
MBI_AMX_KERNEL void mbi_amx_int8_expand(const mbi_mat *w, int p, int g, int n, unsigned char *out,
                                        float *scales) {
    const unsigned char *panel = w->data + (size_t)p * w->panel_bytes;
    const __m512i bias = _mm512_set1_epi8((char)-128);
    size_t bytes = mbi_group_bytes(w->type);
    for (; n > 0; n--, g++, out += 1024, scales += 16) {
        const unsigned char *unit = panel + mbi_units_at(bytes, g);
        _mm512_store_ps(scales, MBI_T(mbi_scales)(panel + mbi_codes_at(bytes, g), w->bases[p]));
#define MBI_AMX_STORE(V, N, LOAD, j)                                                               \
    _mm512_store_si512(out + 64 * (j), _mm512_xor_si512(LOAD(unit, j), bias));
        if (w->type == MAMBA_Q6) {
            MBI_INT8_EACH(MBI_AMX_STORE, , , MBI_INT8_Q6)
        } else if (w->type == MAMBA_Q4) {
            MBI_INT8_EACH(MBI_AMX_STORE, , , MBI_INT8_Q4)
        }
#undef MBI_AMX_STORE
    }
}

/* Tokens [t0, t1), whole tiles: a few panels and groups at a time, so that their weights and a tile of
 * activations stay in the first-level cache; between them sums wait in the scratch. */
MBI_AMX_KERNEL void mbi_amx_int8_panels(const mbi_gemm *g, int p0, int p1, int t0, int t1) {
    static const float zeros[MBI_AMX_PANELS * MBI_LANES] = {0};
    enum { TILES = MBI_AMX_PANELS * MBI_AMX_GROUPS };
    const mbi_mat *w = g->w;
    unsigned char *expanded = (unsigned char *)g->scratch;
    float *scales = (float *)(void *)(expanded + TILES * 1024);
    int in_place = w->type == MAMBA_Q8;
    int n_groups = mbi_groups(w->cols);
    size_t token = (size_t)n_groups * MBI_INT8_TOKEN_BYTES;
    int p;
    for (p = p0; p < p1; p += MBI_AMX_PANELS) {
        mbi_amx_groups b;
        int direct;
        int k;
        int t;
        int i;
        b.n_panels = mbi_min_int(MBI_AMX_PANELS, p1 - p);
        b.n_tiles = (t1 - t0) / 16;
        b.scales = scales;
        b.x_tile = 16 * token;
        b.acc = scales + TILES * MBI_LANES;
        b.y_panel = g->y_panel;
        b.y_token = g->y_token;
        b.add = g->add;
        direct = !(g->exact_rows && (p + b.n_panels) * MBI_LANES > w->rows);
        for (k = 0; k < n_groups; k += MBI_AMX_GROUPS) {
            b.n = mbi_min_int(MBI_AMX_GROUPS, n_groups - k);
            b.ahead = MBI_I(mbi_ahead_of)(g, p, MBI_AMX_PANELS, p1, k, MBI_AMX_GROUPS);
            b.w = in_place ? w->data + (size_t)p * w->panel_bytes + mbi_units_at(1024, k) : expanded;
            b.w_panel = in_place ? w->panel_bytes : (size_t)b.n * 1024;
            for (i = 0; i < b.n_panels; i++) {
                mbi_amx_int8_expand(w, p + i, k, b.n, expanded + i * b.n * 1024,
                                    scales + i * b.n * MBI_LANES);
            }
            b.x = (const unsigned char *)g->x + (size_t)t0 * token + (size_t)k * MBI_AMX_X_GROUP;
            b.start = k > 0 ? NULL : g->bias ? g->bias + p * MBI_LANES : zeros;
            b.y = direct && k + b.n == n_groups
                      ? g->y + (size_t)p * g->y_panel + (size_t)t0 * g->y_token
                      : NULL;
            mbi_amx_int8_tiles(&b);
        }
        for (t = 0; t < b.n_tiles && !direct; t++) {
            for (i = 0; i < b.n_panels; i++) {
                MBI_T(mbi_gemm_finish)(g, p + i, t0 + t * 16, 16,
                                       b.acc + (t * b.n_panels + i) * 256, MBI_LANES);
            }
        }
    }
}

/* Whole tiles, as many in equal parts as keep their activations in the second-level cache; what is
 * left takes the instructions of avx512vnni. */
MBI_AMX_KERNEL void mbi_amx_int8(const mbi_gemm *g, int p0, int p1, int t0, int t1) {
    int token = mbi_groups(g->w->cols) * MBI_INT8_TOKEN_BYTES;
    int n_tiles = (t1 - t0) / 16;
    int fit = mbi_min_int(1024 * 1024 / token, MBI_AMX_TOKENS) / 16;
    int most = fit > 4 ? fit : 4; /* tiles of a part */
    int n_parts = (n_tiles + most - 1) / most;
    int full = t0 + n_tiles * 16;
    int i;
    if (n_tiles > 0) {
        mbi_amx_begin(16);
        for (i = 0; i < n_parts; i++) {
            mbi_amx_int8_panels(g, p0, p1, t0 + mbi_split(n_tiles, n_parts, i) * 16,
                                t0 + mbi_split(n_tiles, n_parts, i + 1) * 16);
        }
        _tile_release();
    }
    if (t1 > full) {
        mbi_gemm rest = *g;
        rest.x = (const unsigned char *)g->x + (size_t)full * (size_t)token;
        rest.y = g->y + (size_t)full * g->y_token;
        rest.n_tokens = t1 - full;
        MBI_I(mbi_k_gemm)(&rest, p0, p1, 0, rest.n_tokens);
    }
}

MBI_AMX_KERNEL void mbi_k_gemm_amx(const mbi_gemm *g, int p0, int p1, int t0, int t1) {
    const mbi_amx_shape s = mbi_amx_shape_of(g->w->cols, g->n_tokens);
    int t;
    if (g->w->type == MAMBA_F32) {
        MBI_T(mbi_k_gemm)(g, p0, p1, t0, t1);
        return;
    }
    if (p0 >= p1 || t0 >= t1) {
        return;
    }
    if (mbi_is_quantized(g->w->type)) {
        mbi_amx_int8(g, p0, p1, t0, t1);
        return;
    }
    if (s.rows == 1 && g->w->type == MAMBA_F16) {
        mbi_amx_one(g, &s, p0, p1);
        return;
    }
    mbi_amx_begin(s.rows);
    if (s.rows < 16 && g->w->type == MAMBA_F16) {
        mbi_amx_few(MAMBA_F16, g, &s, p0, p1);
    } else if (s.rows < 16) {
        mbi_amx_few(MAMBA_BF16, g, &s, p0, p1);
    } else {
        for (t = t0; t < t1; t += MBI_AMX_TOKENS) {
            mbi_amx_tokens(g, &s, p0, p1, t, mbi_min_int(t + MBI_AMX_TOKENS, t1));
        }
    }
    _tile_release();
}
#undef MBI_AMX_INIT
#undef MBI_AMX_ATTRIBUTE
#undef MBI_AMX_FN
#undef MBI_AMX_KERNEL
#undef MBI_BARRIER
#endif /* MBI_AVX512 && MBI_BUILD_AMX */
#undef MBI_INT8_Q8
#undef MBI_INT8_Q6
#undef MBI_INT8_Q4
#undef MBI_INT8_EACH

/* ------------------------------------------------------------------------------------------------
 * @@kernels_bf16   Products of bf16 weights by AVX-512 and NEON bf16 instructions        (private)
 *
 * AVX-512: see mbi_k_prepared_bytes_avx512bf16.
 *
 * NEON: activations are split into x = hi + lo, each rounded to bf16.  bfmmla adds to a 2x2 tile of
 * sums the product of 2 rows x 4 columns of weights and 4 columns x 2 vectors; the two vectors are
 * hi and lo of one token, so every token is worked on alike, alone or among others, and an output
 * has two accumulators:
 *   y = (bias + sum_k w[k]*hi[k]) + sum_k w[k]*lo[k]
 * Columns ascend in steps of 4, acc = (acc + (p0 + p1)) + (p2 + p3).  The products p are exact,
 * sums are rounded to odd (off by less than a unit in the last place, not half of one) and
 * denormals count as zero.  Error beside this accumulation: 2^-16 relative to sum |w x|.  The
 * other types run as in neoni8mm.
 *
 * Prepared activations: per tile of 16 tokens (the last one may have fewer), per 4 columns, per
 * token: 4 hi, then 4 lo.
 * ---------------------------------------------------------------------------------------------- */
/* What both have: V vectors or panels, N tokens; each of them defines what is done with one. */
#define MBI_BF16_V1(X, t) X(0, t)
#define MBI_BF16_V4(X, t) MBI_BF16_V1(X, t) X(1, t) X(2, t) X(3, t)
#define MBI_BF16_V8(X, t) MBI_BF16_V4(X, t) X(4, t) X(5, t) X(6, t) X(7, t)
#define MBI_BF16_N1(V, X) X(V, 0)
#define MBI_BF16_N4(V, X) MBI_BF16_N1(V, X) X(V, 1) X(V, 2) X(V, 3)
#define MBI_BF16_N6(V, X) MBI_BF16_N4(V, X) X(V, 4) X(V, 5)
#define MBI_BF16_LOAD(V, t) V(MBI_BF16_IN, t)
#define MBI_BF16_STORE(V, t) V(MBI_BF16_OUT, t)

#if MBI_PASS == MBI_NEON && MBI_BUILD_NEON_BF16
#define MBI_BF16_FN                                                                                \
    static __attribute__((target("arch=armv8.2-a+dotprod+i8mm+bf16"))) MBI_NOINLINE

static size_t mbi_k_prepared_bytes_neonbf16(mamba_type type, int n, int n_tokens) {
    if (type != MAMBA_BF16) {
        return MBI_I(mbi_k_prepared_bytes)(type, n, n_tokens);
    }
    return (size_t)mbi_pad_int(n, MBI_LANES) * (size_t)n_tokens * 4;
}

MBI_BF16_FN void mbi_k_prepare_neonbf16(mamba_type type, const float *x, int n, int n_tokens,
                                        int t0, int t1, int g0, int g1, void *out) {
    size_t block = (size_t)n_tokens * MBI_LANES;
    int n_blocks = (n + MBI_LANES - 1) / MBI_LANES;
    int b;
    int t;
    int r;
    int i;
    if (type != MAMBA_BF16) {
        MBI_I(mbi_k_prepare)(type, x, n, n_tokens, t0, t1, g0, g1, out);
        return;
    }
    for (b = 4 * g0; b < mbi_min_int(4 * g1, n_blocks); b++) { /* outside: x in address order */
        for (t = t0; t < t1; t += 16) {
            int n_rows = mbi_min_int(16, n_tokens - t);
            const float *in = x + (size_t)b * block + (size_t)t * MBI_LANES;
            unsigned char *o = (unsigned char *)out + (size_t)t * (size_t)n_blocks * 64 +
                               (size_t)(b * 64 * n_rows);
            for (r = 0; r < n_rows; r++) {
                for (i = 0; i < 4; i++) {
                    float32x4_t v = vld1q_f32(in + r * MBI_LANES + 4 * i);
                    uint16x4_t hi = vreinterpret_u16_bf16(vcvt_bf16_f32(v));
                    uint16x4_t lo = vreinterpret_u16_bf16(vcvt_bf16_f32(
                        vsubq_f32(v, vreinterpretq_f32_u32(vshll_n_u16(hi, 16)))));
                    vst1q_u8(o + (i * n_rows + r) * 16,
                             vreinterpretq_u8_u16(vcombine_u16(hi, lo)));
                }
            }
        }
    }
}

/* acc[token][16 rows][hi, lo] += panel * x over n steps of 4 columns, x_step bytes apart in x: 8
 * rows from `w` and `acc` on of 4 tokens, or 16 rows of one.  Two units of 2 columns x 4 rows become
 * two vectors of 4 columns x 2 rows. */
#define MBI_BF16_IN(v, t) float32x4_t a##v##_##t = vld1q_f32(acc + (t) * 2 * MBI_LANES + 4 * (v));
#define MBI_BF16_OUT(v, t) vst1q_f32(acc + (t) * 2 * MBI_LANES + 4 * (v), a##v##_##t);
#define MBI_BF16_W(v, t)                                                                           \
    uint32x4_t u##v = V_LOAD_U32(w + (v) / 2 * 16);                                                \
    uint32x4_t r##v = V_LOAD_U32(w + 64 + (v) / 2 * 16);                                           \
    bfloat16x8_t w##v = vreinterpretq_bf16_u32((v) % 2 == 0 ? vzip1q_u32(u##v, r##v)               \
                                                            : vzip2q_u32(u##v, r##v));
#define MBI_BF16_ADD(v, t) a##v##_##t = vbfmmlaq_f32(a##v##_##t, w##v, xt);
#define MBI_BF16_TOKEN(V, t)                                                                       \
    xt = vreinterpretq_bf16_u8(vld1q_u8(x + (t) * 16));                                            \
    V(MBI_BF16_ADD, t)
#define MBI_BF16_KERNEL(name, V, N)                                                                \
    MBI_BF16_FN void name(const unsigned char *w, const unsigned char *x, size_t x_step, int n,    \
                          float *acc) {                                                            \
        N(V, MBI_BF16_LOAD)                                                                        \
        for (; n > 0; n--, w += 128, x += x_step) {                                                \
            bfloat16x8_t xt;                                                                       \
            V(MBI_BF16_W, 0)                                                                       \
            N(V, MBI_BF16_TOKEN)                                                                   \
        }                                                                                          \
        N(V, MBI_BF16_STORE)                                                                       \
    }
MBI_BF16_KERNEL(mbi_bf16_4, MBI_BF16_V4, MBI_BF16_N4)
MBI_BF16_KERNEL(mbi_bf16_1, MBI_BF16_V8, MBI_BF16_N1)

/* One panel, n steps of columns from `step` of n_steps on, n tokens from `start` (a multiple of 16)
 * on. */
MBI_BF16_FN void mbi_bf16_panel(const unsigned char *panel, const mbi_gemm *g, int step,
                                int steps, int n_steps, int start, int n, float *acc) {
    const unsigned char *w = panel + (size_t)step * 128;
    int t = 0;
    while (t < n) {
        int first = (start + t) / 16 * 16;
        size_t x_step = (size_t)mbi_min_int(16, g->n_tokens - first) * 16;
        const unsigned char *x = (const unsigned char *)g->x +
                                 (size_t)first * (size_t)n_steps * 16 + (size_t)step * x_step +
                                 (size_t)(start + t - first) * 16;
        float *a = acc + (size_t)t * 2 * MBI_LANES;
        if (n - t >= 4) {
            mbi_bf16_4(w, x, x_step, steps, a);
            mbi_bf16_4(w + 32, x, x_step, steps, a + MBI_LANES);
            t += 4;
        } else {
            mbi_bf16_1(w, x, x_step, steps, a);
            t++;
        }
    }
}

/* Groups of 4 panels; 128 columns of them at a time (16 KiB, the first-level cache) for all tokens,
 * or, where few tokens use them, all columns of one panel after the other. */
MBI_BF16_FN void mbi_k_gemm_neonbf16(const mbi_gemm *g, int p0, int p1, int t0, int t1) {
    enum { GROUP = 4, STEPS = 32 };
    const mbi_mat *w = g->w;
    float *acc = (float *)g->scratch; /* [panel][token][16 rows][2] */
    int n_steps = mbi_pad_int(w->cols, MBI_LANES) / 4;
    int max_t = (mbi_min_int(768, 256 * 1024 / (n_steps * 4) + 120) + 15) / 16 * 16;
    int span = t1 - t0 < 4 ? n_steps : STEPS;
    int start;
    int p;
    if (w->type != MAMBA_BF16) {
        mbi_k_gemm_neoni8mm(g, p0, p1, t0, t1);
        return;
    }
    for (start = t0; start < t1; start += max_t) {
        int n = mbi_min_int(max_t, t1 - start);
        size_t width = (size_t)n * 2 * MBI_LANES;
        for (p = p0; p < p1; p += GROUP) {
            int n_panels = mbi_min_int(GROUP, p1 - p);
            int i;
            int k;
            int t;
            for (t = 0; t < n_panels * n; t++) {
                const float *bias = g->bias ? g->bias + (p + t / n) * MBI_LANES : NULL;
                for (i = 0; i < MBI_LANES; i++) {
                    acc[(t * MBI_LANES + i) * 2] = bias ? bias[i] : 0.0f;
                    acc[(t * MBI_LANES + i) * 2 + 1] = 0.0f;
                }
            }
            for (k = 0; k < n_steps; k += span) {
                for (i = 0; i < n_panels; i++) {
                    mbi_bf16_panel(w->data + (size_t)(p + i) * w->panel_bytes, g, k,
                                   mbi_min_int(span, n_steps - k), n_steps, start, n,
                                   acc + (size_t)i * width);
                }
            }
            for (i = 0; i < n_panels; i++) {
                float *a = acc + (size_t)i * width;
                for (t = 0; t < n * 2 * MBI_LANES; t += 8) { /* hi + lo, in place */
                    vst1q_f32(a + t / 2, vpaddq_f32(vld1q_f32(a + t), vld1q_f32(a + t + 4)));
                }
                MBI_T(mbi_gemm_finish)(g, p + i, start, n, a, MBI_LANES);
            }
        }
    }
}
#endif /* MBI_NEON && MBI_BUILD_NEON_BF16 */

#if MBI_PASS == MBI_AVX512 && MBI_BUILD_AVX512BF16
/* vdpbf16ps: 16 sums += 2 columns of 16 rows * 2 activations.  Those are rounded to bf16, at most
 * 2^-8 of each product; each sum runs over ascending columns in one accumulator.  Denormals count
 * as 0.  Other types are avx512vnni's.
 *
 * Prepared activations: blocked as floats are, 2 bytes each. */
#define MBI_BF16_FN                                                                                \
    static MBI_NOINLINE __attribute__((                                                            \
        target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma,f16c")))

static size_t mbi_k_prepared_bytes_avx512bf16(mamba_type type, int n, int n_tokens) {
    return type != MAMBA_BF16 ? MBI_I(mbi_k_prepared_bytes)(type, n, n_tokens)
                              : (size_t)mbi_pad_int(n, MBI_LANES) * (size_t)n_tokens * 2;
}

MBI_BF16_FN void mbi_k_prepare_avx512bf16(mamba_type type, const float *x, int n, int n_tokens,
                                          int t0, int t1, int g0, int g1, void *out) {
    size_t block = (size_t)n_tokens * MBI_LANES;
    int end = mbi_min_int(4 * g1, (n + MBI_LANES - 1) / MBI_LANES);
    int b;
    int t;
    if (type != MAMBA_BF16) {
        MBI_I(mbi_k_prepare)(type, x, n, n_tokens, t0, t1, g0, g1, out);
        return;
    }
    for (b = 4 * g0; b < end; b++) {
        for (t = t0; t < t1; t++) {
            size_t at = (size_t)b * block + (size_t)t * MBI_LANES;
            _mm256_storeu_si256((__m256i *)(void *)((unsigned char *)out + 2 * at),
                                (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(x + at)));
        }
    }
}

/* One register block of V panels, `stride` bytes apart, and N tokens over 16*n_blocks columns:
 * acc[t][16 rows of each panel] += w * x.  x_block bytes from one block of columns of x to the
 * next. */
#define MBI_BF16_IN(v, t) __m512 a##v##_##t = _mm512_loadu_ps(acc + (t) * width + (v) * 16);
#define MBI_BF16_OUT(v, t) _mm512_storeu_ps(acc + (t) * width + (v) * 16, a##v##_##t);
#define MBI_BF16_W(v, t)                                                                           \
    __m512bh w##v = (__m512bh)_mm512_loadu_si512(w + (size_t)(v) * stride + 64 * c);
#define MBI_BF16_ADD(v, t) a##v##_##t = _mm512_dpbf16_ps(a##v##_##t, w##v, xt);
#define MBI_BF16_TOKEN(V, t)                                                                       \
    xt = (__m512bh)_mm512_set1_epi32((int)mbi_load_u32(x + 32 * (t) + 4 * c));                     \
    V(MBI_BF16_ADD, t)
#define MBI_BF16_KERNEL(name, V, N)                                                                \
    MBI_BF16_FN void name(const unsigned char *w, size_t stride, const unsigned char *x,           \
                          size_t x_block, int n_blocks, float *acc, int width) {                   \
        N(V, MBI_BF16_LOAD)                                                                        \
        for (; n_blocks > 0; n_blocks--, w += 512, x += x_block) {                                 \
            int c;                                                                                 \
            for (c = 0; c < 8; c++) {                                                              \
                __m512bh xt;                                                                       \
                V(MBI_BF16_W, 0)                                                                   \
                N(V, MBI_BF16_TOKEN)                                                               \
            }                                                                                      \
        }                                                                                          \
        N(V, MBI_BF16_STORE)                                                                       \
    }
MBI_BF16_KERNEL(mbi_bf16_4x6, MBI_BF16_V4, MBI_BF16_N6)
MBI_BF16_KERNEL(mbi_bf16_4x1, MBI_BF16_V4, MBI_BF16_N1)
MBI_BF16_KERNEL(mbi_bf16_1x6, MBI_BF16_V1, MBI_BF16_N6)
MBI_BF16_KERNEL(mbi_bf16_1x1, MBI_BF16_V1, MBI_BF16_N1)

/* Four panels, then single ones; 256 columns of them at a time (32 KiB: the first-level cache) for
 * all tokens, straight from the file.  Sums wait in the scratch from one block of columns to the
 * next. */
MBI_BF16_FN void mbi_k_gemm_avx512bf16(const mbi_gemm *g, int p0, int p1, int t0, int t1) {
    enum { GROUP = 4, COLUMNS = 16, MAX_T = 512 };
    const mbi_mat *w = g->w;
    float *acc = (float *)g->scratch; /* [token][width] */
    size_t x_block = (size_t)g->n_tokens * 32;
    int n_blocks = (w->cols + 15) / 16;
    int start;
    int p;
    int step;
    if (w->type != MAMBA_BF16) {
        MBI_I(mbi_k_gemm)(g, p0, p1, t0, t1);
        return;
    }
    for (start = t0; start < t1; start += MAX_T) {
        int n = mbi_min_int(MAX_T, t1 - start);
        for (p = p0; p < p1; p += step) {
            const unsigned char *data = w->data + (size_t)p * w->panel_bytes;
            int width;
            int b;
            int i;
            int t;
            step = p1 - p >= GROUP ? GROUP : 1;
            width = step * MBI_LANES;
            MBI_T(mbi_gemm_start)(g, p, n, width, acc);
            for (b = 0; b < n_blocks; b += COLUMNS) {
                int count = mbi_min_int(COLUMNS, n_blocks - b);
                for (t = 0; t < n;) {
                    int six = n - t >= 6;
                    (step == GROUP ? six ? mbi_bf16_4x6 : mbi_bf16_4x1
                     : six         ? mbi_bf16_1x6
                                   : mbi_bf16_1x1)(
                        data + (size_t)b * 512, (size_t)w->panel_bytes,
                        (const unsigned char *)g->x + (size_t)b * x_block +
                            (size_t)(start + t) * 32,
                        x_block, count, acc + t * width, width);
                    t += six ? 6 : 1;
                }
            }
            for (i = 0; i < step; i++) {
                MBI_T(mbi_gemm_finish)(g, p + i, start, n, acc + i * MBI_LANES, width);
            }
        }
    }
}
#endif /* MBI_AVX512 && MBI_BUILD_AVX512BF16 */
#undef MBI_BF16_FN
#undef MBI_BF16_V1
#undef MBI_BF16_V4
#undef MBI_BF16_V8
#undef MBI_BF16_N1
#undef MBI_BF16_N4
#undef MBI_BF16_N6
#undef MBI_BF16_IN
#undef MBI_BF16_OUT
#undef MBI_BF16_W
#undef MBI_BF16_ADD
#undef MBI_BF16_LOAD
#undef MBI_BF16_STORE
#undef MBI_BF16_TOKEN
#undef MBI_BF16_KERNEL

/* ------------------------------------------------------------------------------------------------
 * @@kernel_table   The tables of this pass                                               (private)
 * ---------------------------------------------------------------------------------------------- */
#define MBI_X(type, name, args) MBI_T(mbi_k_##name),
#if MBI_PASS == MBI_SCALAR
static const mamba_target mbi_target_scalar = {"scalar", -1, {MBI_KERNEL_LIST(MBI_X)}};
#elif MBI_PASS == MBI_NEON
static const mamba_target mbi_target_neon = {"neon", -1, {MBI_KERNEL_LIST(MBI_X)}};
#elif MBI_PASS == MBI_WASM
static const mamba_target mbi_target_wasm = {"wasm", -1, {MBI_KERNEL_LIST(MBI_X)}};
#elif MBI_PASS == MBI_AVX2
static const mamba_target mbi_target_avx2 = {"avx2", MBI_CPU_AVX2, {MBI_KERNEL_LIST(MBI_X)}};
#elif MBI_PASS == MBI_AVX512
static const mamba_target mbi_target_avx512 = {"avx512", MBI_CPU_AVX512, {MBI_KERNEL_LIST(MBI_X)}};
#if MBI_BUILD_AVX512BF16
#define MBI_OWN(type, name, args) mbi_k_##name##_avx512bf16,
static const mamba_target mbi_target_avx512bf16 = {
    "avx512bf16", MBI_CPU_AVX512BF16, {MBI_PRODUCT_LIST(MBI_OWN) MBI_REST_LIST(MBI_X)}};
#undef MBI_OWN
#endif
#if MBI_BUILD_AMX
#define MBI_OWN(type, name, args) mbi_k_##name##_amx,
static const mamba_target mbi_target_amx = {
    "amx", MBI_CPU_AMX, {MBI_PRODUCT_LIST(MBI_OWN) MBI_REST_LIST(MBI_X)}};
#undef MBI_OWN
#endif
#endif
#define MBI_INT8_X(type, name, args) MBI_I(mbi_k_##name),
#if MBI_PASS == MBI_AVX512 && MBI_BUILD_AVX512VNNI
static const mamba_target mbi_target_avx512vnni = {
    "avx512vnni", MBI_CPU_AVX512VNNI, {MBI_PRODUCT_LIST(MBI_INT8_X) MBI_REST_LIST(MBI_X)}};
#elif MBI_PASS == MBI_AVX2
static const mamba_target mbi_target_avx2int8 = {
    "avx2int8", MBI_CPU_AVX2, {MBI_PRODUCT_LIST(MBI_INT8_X) MBI_REST_LIST(MBI_X)}};
#elif MBI_PASS == MBI_AVXVNNI
static const mamba_target mbi_target_avxvnni = {
    "avxvnni", MBI_CPU_AVXVNNI, {MBI_PRODUCT_LIST(MBI_INT8_X) MBI_REST_LIST(MBI_X)}};
#elif MBI_PASS == MBI_NEON && MBI_BUILD_NEON_DOT
static const mamba_target mbi_target_neondot = {
    "neondot", MBI_CPU_DOTPROD, {MBI_PRODUCT_LIST(MBI_INT8_X) MBI_REST_LIST(MBI_X)}};
#endif
#if MBI_PASS == MBI_NEON && MBI_BUILD_NEON_I8MM
static const mamba_target mbi_target_neoni8mm = {
    "neoni8mm", MBI_CPU_I8MM, {MBI_I(mbi_k_prepared_bytes), MBI_I(mbi_k_prepare),
                               mbi_k_gemm_neoni8mm, MBI_REST_LIST(MBI_X)}};
#endif
#if MBI_PASS == MBI_NEON && MBI_BUILD_NEON_BF16
static const mamba_target mbi_target_neonbf16 = {
    "neonbf16", MBI_CPU_NEONBF16, {mbi_k_prepared_bytes_neonbf16, mbi_k_prepare_neonbf16,
                                   mbi_k_gemm_neonbf16, MBI_REST_LIST(MBI_X)}};
#endif
#undef MBI_INT8_X
#undef MBI_X

#undef MBI_T
#undef MBI_ATTRIBUTE
#undef MBI_FN
#undef MBI_KERNEL
#undef V_LANES
#undef V_GROUP
#undef V_GEMM_V
#undef V_GEMM_NV
#undef V_GEMV_V
#undef V_GEMV_NV
#undef V_SCALE2_NEG
#undef MBI_HAVE_EXP2
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
#undef V_LOAD_I8
#undef V_LOAD_I8_COL
#undef V_LOAD_Q6_COL
#undef V_LOAD_Q4_COL
#undef MBI_I
#undef MBI_INT8_ATTRIBUTE
#undef MBI_INT8_BIAS
#undef MBI_INT8_FN
#undef vi
#undef I_SET1
#undef I_TO_FLOAT
#undef I_LOAD
#undef I_STORE
#undef I_LOAD_Q8
#undef I_LOAD_Q6
#undef I_LOAD_Q4
#undef I_DOT
#undef I_BITS
#undef I_MAX
#undef I_PACK
#undef I_ADD
#undef I_CODE
#undef I_SUM
#undef I_TILE_V
#undef I_TILE_NV
#undef I_TILE_N
#undef I_TILE_NT
#undef I_REST_N
#undef I_REST_NT
#undef I_PANEL_V
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
#if MBI_BUILD_NEON_DOT
        &mbi_target_neondot,
#endif
#if MBI_BUILD_NEON_I8MM
        &mbi_target_neoni8mm,
#endif
#if MBI_BUILD_NEON_BF16
        &mbi_target_neonbf16,
#endif
#if MBI_BASELINE == MBI_WASM
        &mbi_target_wasm,
#endif
#if MBI_BUILD_AVX2
        &mbi_target_avx2,
        &mbi_target_avx2int8,
#endif
#if MBI_BUILD_AVXVNNI
        &mbi_target_avxvnni,
#endif
#if MBI_BUILD_AVX512
        &mbi_target_avx512,
#endif
#if MBI_BUILD_AVX512BF16
        &mbi_target_avx512bf16,
#endif
#if MBI_BUILD_AVX512VNNI
        &mbi_target_avx512vnni,
#endif
#if MBI_BUILD_AMX
        &mbi_target_amx,
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
 *    8  4  version = 3
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
 *   Mamba-2: d_ssm, d_state, d_conv, n_heads, headdim, n_groups, d_mlp (channels of the gated MLP
 *            beside the SSM), f32 eps of the gated norm, f32 dt_min, f32 dt_max (may be infinite)
 *            flags: 1 = gated norm exists, 2 = norm before gate
 *   Attention: n_heads, n_kv_heads, headdim, rotary_dim, d_conv (0 = no convolution), f32 rotary
 *            base, f32 scale, d_mlp (channels of the gated MLP beside the heads)
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
 *   panel holds, along the columns (padded with zeros to 32; q8, q6 and q4: to 64):
 *   f32        per column: 16 rows x 4 bytes
 *   f16, bf16  per 2 columns: 16 rows x (column 2j, column 2j+1)
 *   q8, q6, q4 integers with scales: weight = integer * scale, scale = base * code * |code|.  Per 256
 *              columns (at the end perhaps fewer): 64 bytes of codes, int8, 16 rows for each 64
 *              columns (padded with zeros); then units of integers.  After the last panel of a matrix one
 *              f32 for each panel, its base, padded to a multiple of 64 bytes
 *   q8         a unit: 64 bytes, 16 rows x 4 columns of int8
 *   q6         a unit: 192 bytes, 16 rows x 16 columns of 6 bits, integer + 32: bytes 4r+i of the
 *              first 128 as two units of q4, the low 4 bits of columns 0 to 7, then 8 to 15; byte
 *              128+4r+i holds bits 4 and 5 of columns i, 4+i, 8+i, 12+i, from its low bits up
 *   q4         a unit: 64 bytes, 16 rows x 8 columns: byte 4r+i holds column i of row r in its low
 *              and column 4+i in its high nibble, an index into the codebook MBI_Q4_VALUES
 *
 * Tensors of no layer (P panels, V vector; "?" = may be absent)
 *   embedding P (n_vocab, d_model); head P (the same) unless tied; norm_f V (d_model)
 *   embedding_rest? P, head_rest? P: the last rows, when they are of another quantized type than the
 *   first, whose number is then a multiple of 16
 * Tensors of a layer
 *   all:      norm V (d_model)
 *   Mamba-1:  in_proj P (2*d_inner, d_model) segments x, z; in_proj_bias? V; conv_w V (d_conv,
 *             d_inner), the taps transposed; conv_b? V (d_inner); x_proj P (dt_rank + 2*d_state,
 *             d_inner) segments dt, B, C; dt_proj P (d_inner, dt_rank); dt_bias V (d_inner);
 *             A V (d_inner/16 rounded up * d_state, 16): -exp(A_log) of 16 channels by state, lane
 *             = channel; D V (d_inner); out_proj P (d_model, d_inner); out_proj_bias? V
 *   Mamba-2:  S = channels of the SSM, N = rows of B and of C: d_ssm and n_groups*d_state, where
 *             with several groups each group's part is padded to 16;  M = d_mlp padded to 16
 *             in_proj P (2*d_mlp + 2*S + 2*N, d_model) segments z0?, z, x0?, x, B, C;
 *             in_proj_bias? V; dt_in P (n_heads, d_model): the rows of in_proj that give dt, kept
 *             in a float type; conv_w V (d_conv, S pad 16 + 2*(N pad 16)) over [x | B | C]; conv_b? V
 *             (the same); dt_bias V (n_heads), with the bias of in_proj's dt rows; A V (n_heads):
 *             -exp(A_log); D V (S), per channel; gated_norm? V (S); out_proj P (d_model, M + S),
 *             columns [MLP | SSM]; out_proj_bias? V
 *   Attention: Q, KV = n_heads, n_kv_heads times headdim, each head padded to 16 if there are several
 *             in_proj P (Q + 2*KV + 2*d_mlp, d_model) segments gate?, k, v, up?, q; in_proj_bias? V;
 *             conv_w? V (d_conv, 2*(KV pad 16) + Q pad 16) over [k | v | q]; conv_b? V (the same);
 *             out_proj P (d_model, M + Q), columns [MLP | heads]; out_proj_bias? V
 *   MLP:      fc1 P (2*d_ff, d_model) segments value, gate; fc2 P (d_model, d_ff)
 *   biases of panels are padded like the rows of their matrix, segment by segment.
 *
 * "tokenizer": see @@vocabulary.
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
    MBI_FILE_VERSION = 3,
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
                           mbi_padded_rows(t) / MBI_LANES, &bytes) ||
               !mbi_add_ok(bytes,
                           mbi_bases_bytes((mamba_type)t->type, mbi_padded_rows(t) / MBI_LANES),
                           &bytes)) {
        return 0;
    }
    return mbi_mul_ok(bytes, t->count, &bytes) ? bytes : 0;
}

/* ------------------------------------------------------------------------------------------------
 * @@vocabulary   The tokenizer section: layout and checks                             (private)
 * ---------------------------------------------------------------------------------------------- */
/* The tokenizer section.  Little-endian u32 unless said otherwise; used in place.
 *    0  magic "MBTK"                   4  version: 1, or 2 where a value marked (2) is used
 *    8  bytes: size of the section    12  kind: 1 bytes (no merges), 2 byte pair encoding
 *                                      from bytes on, 3 from characters on (2)
 *   16  flags: 1 text is normalized to NFC, 2 a space is put in front of text that lacks one,
 *       4 also of text that has one (2), 8 but not behind an added token (2), 16 decoding takes
 *       one space away in front (2)
 *   20  split: 0 none, 1 the pattern of GPT-2, 2 that of Falcon (2)
 *   24  n_ids, 1..2^24               28  n_added
 *   32  n_added_raw <= n_added       36  n_slots: 0 or a power of two <= 2^26
 *   40  n_merges <= n_slots / 2      44  heap_bytes
 *   48  length of the longest token  52  bos id, 56 eos id, 60 pad id (0xFFFFFFFF = none)
 *   64  n_chars <= n_ids (2)         68  12 bytes reserved, 0 (2)
 * From 64, in version 2 from 80 on, without gaps, to the end of the section:
 *   merges    n_slots x (left id, right id, rank, merged id); left = 0xFFFFFFFF: free.  A hash
 *             table: a pair is searched from slot
 *             ((left << 32 | right) * 0x9E3779B97F4A7C15 mod 2^64) >> 32 mod n_slots
 *             on, upwards and around, until found or a slot is free; no more than 256 slots in a
 *             row are taken.  Lower ranks merge first
 *   offsets   n_ids + 1 offsets into the heap, rising from 0 to heap_bytes: the bytes of each id
 *   byte_ids  256: the id that stands for each single byte, 0xFFFFFFFF = none
 *   chars     n_chars x (code point, id) in rising order: with kind 3 the characters that are
 *             tokens; others start as their bytes.  U+2581 is read as a space
 *   added     n_added x (id, flags): 1 special, 2 searched in the normalized text, 4 strips white
 *             space on its left, 8 on its right.  The n_added_raw without flag 2 first; each of the
 *             two groups in rising order of the tokens' bytes (1 to 1024)
 *   id_flags  n_ids bytes: 1 exists (others have no bytes), 2 added, 4 special
 *   heap      heap_bytes bytes
 * A merged id has the bytes of its left and right ids, and existing ids are meant everywhere. */
/* Tests define this to count the inner steps of encoding. */
#ifndef MBI_TEXT_WORK
#define MBI_TEXT_WORK(n) ((void)0)
#endif

#define MBI_TOK_MAGIC 0x4B54424Du       /* "MBTK" */
#define MBI_TOK_VERSION 2u              /* the newest; older ones are read too */
#define MBI_TOK_HEADER 64u
#define MBI_TOK_HEADER_2 80u
#define MBI_TOK_NONE 0xFFFFFFFFu
#define MBI_TOK_MAX_IDS (1u << 24)
#define MBI_TOK_MAX_SLOTS (1u << 26)
#define MBI_TOK_MAX_ADDED_BYTES 1024u   /* bounds the work per byte of their search */
#define MBI_TOK_MAX_CLUSTER 256u        /* bounds the probes of one look-up */

enum { MBI_TOK_BYTES = 1, MBI_TOK_BPE = 2, MBI_TOK_CHARS = 3 };                     /* kind */
enum {                                                                              /* flags */
    MBI_TOK_NFC = 1, MBI_TOK_PREFIX_SPACE = 2, MBI_TOK_PREFIX_ALWAYS = 4, MBI_TOK_PREFIX_FIRST = 8,
    MBI_TOK_STRIP_SPACE = 16
};
enum { MBI_TOK_SPLIT_NONE = 0, MBI_TOK_SPLIT_GPT2 = 1, MBI_TOK_SPLIT_FALCON = 2 };  /* split */
enum { MBI_TOK_EXISTS = 1, MBI_TOK_ADDED = 2, MBI_TOK_SPECIAL = 4 };                /* id flags */
enum {
    MBI_ADDED_SPECIAL = 1, MBI_ADDED_NORMALIZED = 2, MBI_ADDED_LSTRIP = 4, MBI_ADDED_RSTRIP = 8
};

struct mamba_tokenizer {
    const unsigned char *base;          /* the section */
    const unsigned char *slots;         /* (n_slots, 4) u32: left, right, rank, merged */
    const unsigned char *offsets;       /* (n_ids + 1) u32 into heap */
    const unsigned char *byte_ids;      /* (256) u32 */
    const unsigned char *chars;         /* (n_chars, 2) u32: code point, id */
    const unsigned char *added;         /* (n_added, 2) u32: id, flags */
    const unsigned char *id_flags;      /* (n_ids) u8 */
    const unsigned char *heap;
    uint32_t header_bytes;
    uint32_t kind;
    uint32_t flags;
    uint32_t split;
    uint32_t n_ids;
    uint32_t n_added;
    uint32_t n_added_raw;               /* the first ones: searched before normalization */
    uint32_t n_slots;
    uint32_t n_merges;
    uint32_t n_chars;
    uint32_t heap_bytes;
    uint32_t max_token_bytes;
    uint32_t special[3];                /* bos, eos, pad or MBI_TOK_NONE */
    mamba_memory memory;
};

static const unsigned char *mbi_tok_bytes(const mamba_tokenizer *t, uint32_t id, uint32_t *n) {
    uint32_t from = mbi_load_u32(t->offsets + (size_t)4 * id);
    *n = mbi_load_u32(t->offsets + (size_t)4 * id + 4) - from;
    return t->heap + from;
}

/* Where the search for a pair of ids starts in the table of merges. */
static uint32_t mbi_tok_home(uint32_t left, uint32_t right, uint32_t n_slots) {
    uint64_t key = (uint64_t)left << 32 | right;
    return (uint32_t)(key * 0x9E3779B97F4A7C15u >> 32) & (n_slots - 1);
}

/* The slot that merges a pair, or NULL. It ends because at most half of the slots are taken. */
static const unsigned char *mbi_tok_find(const mamba_tokenizer *t, uint32_t left, uint32_t right) {
    uint32_t i;
    if (t->n_slots == 0) {
        return NULL;
    }
    for (i = mbi_tok_home(left, right, t->n_slots);; i = (i + 1) & (t->n_slots - 1)) {
        const unsigned char *slot = t->slots + (size_t)16 * i;
        uint32_t x = mbi_load_u32(slot);
        MBI_TEXT_WORK(1);
        if (x == MBI_TOK_NONE) {
            return NULL;
        }
        if (x == left && mbi_load_u32(slot + 4) == right) {
            return slot;
        }
    }
}

/* A rule of the section that does not hold; `at` is where in the section. */
static mamba_status mbi_tok_bad(const mamba_tokenizer *t, const unsigned char *at,
                                const char *field, uint64_t found, uint64_t low, uint64_t high,
                                const char *what, mamba_error *err) {
    mamba_status status = at == t->base + 4 ? MAMBA_ERR_VERSION : MAMBA_ERR_FORMAT;
    return mbi_fail_value(err, status, what, field, (uint64_t)(at - t->base), mbi_clamp_i64(found),
                          mbi_clamp_i64(low), mbi_clamp_i64(high));
}

/* The header's own rules. */
static mamba_status mbi_tok_header(mamba_tokenizer *t, uint64_t bytes, mamba_error *err) {
    static const char *const names[] = {
        "tokenizer.magic", "tokenizer.version", "tokenizer.bytes", "tokenizer.kind",
        "tokenizer.flags", "tokenizer.split", "tokenizer.n_ids", "tokenizer.n_added",
        "tokenizer.n_added_raw", "tokenizer.n_slots", "tokenizer.n_merges", "tokenizer.heap_bytes",
        "tokenizer.max_token_bytes"};
    uint32_t v[13];
    uint64_t low[13] = {MBI_TOK_MAGIC, 1, 0, MBI_TOK_BYTES, 0, 0, 1, 0, 0, 0, 0, 0, 0};
    uint64_t high[13] = {MBI_TOK_MAGIC, MBI_TOK_VERSION, 0, MBI_TOK_BPE,
        MBI_TOK_NFC | MBI_TOK_PREFIX_SPACE, MBI_TOK_SPLIT_GPT2, MBI_TOK_MAX_IDS, 0, 0,
        MBI_TOK_MAX_SLOTS, 0, 0, 0};
    size_t i;
    if (bytes < MBI_TOK_HEADER) {
        return mbi_tok_bad(t, t->base, "tokenizer", bytes, MBI_TOK_HEADER, UINT32_MAX,
                           "section shorter than its header", err);
    }
    for (i = 0; i < 13; i++) {
        v[i] = mbi_load_u32(t->base + 4 * i);
    }
    if (v[1] > 1) {
        high[3] = MBI_TOK_CHARS;
        high[4] = 31;
        high[5] = MBI_TOK_SPLIT_FALCON;
    }
    low[2] = high[2] = bytes;
    high[7] = v[6];
    high[8] = v[7];
    high[10] = v[9] / 2;
    high[11] = bytes;
    high[12] = v[11];
    for (i = 0; i < 13; i++) {
        if (v[i] < low[i] || v[i] > high[i]) {
            return mbi_tok_bad(t, t->base + 4 * i, names[i], v[i], low[i], high[i],
                               "out of range", err);
        }
    }
    if ((v[9] & (v[9] - 1)) != 0 || (v[3] == MBI_TOK_BYTES && v[9] != 0)) {
        return mbi_tok_bad(t, t->base + 36, names[9], v[9], 0, MBI_TOK_MAX_SLOTS,
                           "not a power of two, or not 0 for bytes", err);
    }
    t->header_bytes = v[1] > 1 ? MBI_TOK_HEADER_2 : MBI_TOK_HEADER;
    if (bytes < t->header_bytes) {
        return mbi_tok_bad(t, t->base, "tokenizer", bytes, t->header_bytes, UINT32_MAX,
                           "section shorter than its header", err);
    }
    if (v[1] > 1) {
        t->n_chars = mbi_load_u32(t->base + 64);
        if (t->n_chars > (v[3] == MBI_TOK_CHARS ? v[6] : 0)) {
            return mbi_tok_bad(t, t->base + 64, "tokenizer.n_chars", t->n_chars, 0,
                               v[3] == MBI_TOK_CHARS ? v[6] : 0, "out of range", err);
        }
    }
    for (i = MBI_TOK_HEADER + 4; i < t->header_bytes; i += 4) {
        uint32_t reserved = mbi_load_u32(t->base + i);
        if (reserved != 0) {
            return mbi_tok_bad(t, t->base + i, "tokenizer.reserved", reserved, 0, 0, "not zero",
                               err);
        }
    }
    t->kind = v[3];
    t->flags = v[4];
    t->split = v[5];
    t->n_ids = v[6];
    t->n_added = v[7];
    t->n_added_raw = v[8];
    t->n_slots = v[9];
    t->n_merges = v[10];
    t->heap_bytes = v[11];
    t->max_token_bytes = v[12];
    return MAMBA_OK;
}

/* Cuts the section into its arrays, which fill it exactly. */
static mamba_status mbi_tok_layout(mamba_tokenizer *t, uint64_t bytes, mamba_error *err) {
    static const char *const names[] = {"tokenizer.merges", "tokenizer.offsets",
        "tokenizer.byte_ids", "tokenizer.chars", "tokenizer.added", "tokenizer.id_flags",
        "tokenizer.heap"};
    const unsigned char *part[7];
    uint64_t size[7];
    uint64_t at = t->header_bytes;
    size_t i;
    size[0] = (uint64_t)16 * t->n_slots;      /* the header's limits keep all of these below 2^31 */
    size[1] = (uint64_t)4 * (t->n_ids + 1);
    size[2] = 4 * 256;
    size[3] = (uint64_t)8 * t->n_chars;
    size[4] = (uint64_t)8 * t->n_added;
    size[5] = t->n_ids;
    size[6] = t->heap_bytes;
    for (i = 0; i < 7; i++) {
        if (size[i] > bytes - at || (i == 6 && size[i] != bytes - at)) {
            return mbi_tok_bad(t, t->base + at, names[i], size[i], i < 6 ? 0 : bytes - at,
                               bytes - at, "does not fit into the section", err);
        }
        part[i] = t->base + at;
        at += size[i];
    }
    t->slots = part[0];
    t->offsets = part[1];
    t->byte_ids = part[2];
    t->chars = part[3];
    t->added = part[4];
    t->id_flags = part[5];
    t->heap = part[6];
    return MAMBA_OK;
}

static int mbi_tok_exists(const mamba_tokenizer *t, uint32_t id) {
    return id < t->n_ids && (t->id_flags[id] & MBI_TOK_EXISTS) != 0;
}

static mamba_status mbi_tok_check_ids(const mamba_tokenizer *t, mamba_error *err) {
    uint32_t longest = 0;
    uint32_t n_added = 0;
    uint32_t last = 0;
    uint32_t i;
    for (i = 0; i <= t->n_ids; i++) {
        const unsigned char *p = t->offsets + (size_t)4 * i;
        uint32_t at = mbi_load_u32(p);
        if (at < last || at > t->heap_bytes || (i == 0 && at != 0)
            || (i == t->n_ids && at != t->heap_bytes)) {
            return mbi_tok_bad(t, p, "tokenizer.offsets", at, last, t->heap_bytes,
                               "not rising from 0 to the size of the heap", err);
        }
        longest = at - last > longest ? at - last : longest;
        last = at;
    }
    if (longest != t->max_token_bytes) {
        return mbi_tok_bad(t, t->base + 48, "tokenizer.max_token_bytes", t->max_token_bytes,
                           longest, longest, "not the longest token", err);
    }
    for (i = 0; i < t->n_ids; i++) {
        unsigned flags = t->id_flags[i];
        uint32_t n;
        mbi_tok_bytes(t, i, &n);
        if (flags > 7 || ((flags & MBI_TOK_EXISTS) == 0 && (flags != 0 || n != 0))) {
            return mbi_tok_bad(t, t->id_flags + i, "tokenizer.id_flags", flags, 0, 7,
                               "unknown flags", err);
        }
        n_added += (flags & MBI_TOK_ADDED) != 0;
    }
    if (n_added != t->n_added) {
        return mbi_tok_bad(t, t->base + 28, "tokenizer.n_added", t->n_added, n_added, n_added,
                           "differs from the number of ids marked as added", err);
    }
    for (i = 0; i < 3; i++) {
        uint32_t id = mbi_load_u32(t->base + 52 + 4 * i);
        if (id != MBI_TOK_NONE && !mbi_tok_exists(t, id)) {
            return mbi_tok_bad(t, t->base + 52 + 4 * i, "tokenizer.special", id, 0, t->n_ids - 1,
                               "no such id", err);
        }
    }
    for (i = 0; i < 256; i++) {
        uint32_t id = mbi_load_u32(t->byte_ids + 4 * i);
        uint32_t n = 0;
        if (id != MBI_TOK_NONE
            && (!mbi_tok_exists(t, id) || *mbi_tok_bytes(t, id, &n) != i || n != 1)) {
            return mbi_tok_bad(t, t->byte_ids + 4 * i, "tokenizer.byte_ids", id, 0, t->n_ids - 1,
                               "not an id of that one byte", err);
        }
    }
    return MAMBA_OK;
}

/* The id of a character, or MBI_TOK_NONE. */
static uint32_t mbi_tok_char(const mamba_tokenizer *t, uint32_t cp) {
    uint32_t lo = 0;
    uint32_t hi = t->n_chars;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        uint32_t at = mbi_load_u32(t->chars + (size_t)8 * mid);
        MBI_TEXT_WORK(1);
        if (at == cp) {
            return mbi_load_u32(t->chars + (size_t)8 * mid + 4);
        }
        if (at < cp) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return MBI_TOK_NONE;
}

static int mbi_utf8_put(uint32_t cp, unsigned char *out);   /* @@unicode */

/* Every character is the text of its id. */
static mamba_status mbi_tok_check_chars(const mamba_tokenizer *t, mamba_error *err) {
    uint32_t next = 0;
    uint32_t i;
    for (i = 0; i < t->n_chars; i++) {
        const unsigned char *p = t->chars + (size_t)8 * i;
        uint32_t cp = mbi_load_u32(p);
        uint32_t id = mbi_load_u32(p + 4);
        uint32_t n = 0;
        unsigned char utf8[4];
        const unsigned char *bytes;
        if (cp < next || cp > 0x10FFFF) {
            return mbi_tok_bad(t, p, "tokenizer.chars", cp, next, 0x10FFFF,
                               "not a code point or not rising", err);
        }
        next = cp + 1;
        bytes = mbi_tok_exists(t, id) ? mbi_tok_bytes(t, id, &n) : NULL;
        if (bytes == NULL || n != (uint32_t)mbi_utf8_put(cp, utf8) || memcmp(bytes, utf8, n) != 0) {
            return mbi_tok_bad(t, p + 4, "tokenizer.chars", id, 0, t->n_ids - 1,
                               "not an id of that character", err);
        }
    }
    return MAMBA_OK;
}

/* Order of two strings of bytes, a prefix first. */
static int mbi_bytes_compare(const unsigned char *a, size_t n_a, const unsigned char *b,
                             size_t n_b) {
    int order = memcmp(a, b, n_a < n_b ? n_a : n_b);
    return order != 0 ? order : n_a < n_b ? -1 : n_a > n_b;
}

static mamba_status mbi_tok_check_added(const mamba_tokenizer *t, mamba_error *err) {
    const unsigned char *last = NULL;
    uint32_t n_last = 0;
    uint32_t i;
    for (i = 0; i < t->n_added; i++) {
        const unsigned char *p = t->added + (size_t)8 * i;
        uint32_t id = mbi_load_u32(p);
        uint32_t flags = mbi_load_u32(p + 4);
        uint32_t n;
        const unsigned char *bytes;
        if (!mbi_tok_exists(t, id) || (t->id_flags[id] & MBI_TOK_ADDED) == 0) {
            return mbi_tok_bad(t, p, "tokenizer.added", id, 0, t->n_ids - 1,
                               "not the id of an added token", err);
        }
        if (flags > 15 || ((flags & MBI_ADDED_NORMALIZED) != 0) != (i >= t->n_added_raw)
            || ((flags & MBI_ADDED_SPECIAL) != 0) != ((t->id_flags[id] & MBI_TOK_SPECIAL) != 0)) {
            return mbi_tok_bad(t, p + 4, "tokenizer.added", flags, 0, 15, "flags contradict", err);
        }
        bytes = mbi_tok_bytes(t, id, &n);
        if (n == 0 || n > MBI_TOK_MAX_ADDED_BYTES) {
            return mbi_tok_bad(t, p, "tokenizer.added", n, 1, MBI_TOK_MAX_ADDED_BYTES,
                               "length out of range", err);
        }
        if (i != 0 && i != t->n_added_raw && mbi_bytes_compare(last, n_last, bytes, n) >= 0) {
            return mbi_tok_bad(t, p, "tokenizer.added", id, 0, t->n_ids - 1,
                               "not in rising order", err);
        }
        last = bytes;
        n_last = n;
    }
    return MAMBA_OK;
}

/* Taken slots and the longest cluster of them, the one that wraps around included. */
static mamba_status mbi_tok_check_clusters(const mamba_tokenizer *t, mamba_error *err) {
    uint32_t n_taken = 0;
    uint32_t cluster = 0;
    uint32_t n_extra = t->n_slots < MBI_TOK_MAX_CLUSTER ? t->n_slots : MBI_TOK_MAX_CLUSTER;
    uint32_t i;
    for (i = 0; i < t->n_slots + n_extra; i++) {
        const unsigned char *slot = t->slots + (size_t)16 * (i & (t->n_slots - 1));
        int taken = mbi_load_u32(slot) != MBI_TOK_NONE;
        cluster = taken ? cluster + 1 : 0;
        n_taken += i < t->n_slots && taken;
        if (cluster > MBI_TOK_MAX_CLUSTER) {
            return mbi_tok_bad(t, slot, "tokenizer.merges", cluster, 0, MBI_TOK_MAX_CLUSTER,
                               "too many taken slots in a row", err);
        }
    }
    if (n_taken != t->n_merges) {
        return mbi_tok_bad(t, t->base + 40, "tokenizer.n_merges", t->n_merges, n_taken, n_taken,
                           "differs from the number of taken slots", err);
    }
    return MAMBA_OK;
}

/* Every merge joins existing tokens into the token of the joined bytes, and is found where it is
 * looked for. With the checks above: whatever a section holds, encoding then decoding gives the
 * same bytes. The bytes compared are limited, so that a small section cannot ask for much work. */
static mamba_status mbi_tok_check_merges(const mamba_tokenizer *t, uint64_t bytes,
                                         mamba_error *err) {
    uint64_t compared = 0;
    uint32_t i;
    mamba_status status = mbi_tok_check_clusters(t, err);
    for (i = 0; i < t->n_slots && status == MAMBA_OK; i++) {
        const unsigned char *slot = t->slots + (size_t)16 * i;
        uint32_t id[3];
        uint32_t n[3];
        const unsigned char *p[3];
        uint32_t k;
        id[0] = mbi_load_u32(slot);
        id[1] = mbi_load_u32(slot + 4);
        id[2] = mbi_load_u32(slot + 12);
        if (id[0] == MBI_TOK_NONE) {
            continue;
        }
        for (k = 0; k < 3; k++) {
            if (!mbi_tok_exists(t, id[k])) {
                return mbi_tok_bad(t, slot, "tokenizer.merges", id[k], 0, t->n_ids - 1,
                                   "no such id", err);
            }
            p[k] = mbi_tok_bytes(t, id[k], &n[k]);
        }
        compared += n[2];
        if (compared > 4 * bytes) {
            return mbi_tok_bad(t, slot, "tokenizer.merges", compared, 0, 4 * bytes,
                               "tokens too long", err);
        }
        if ((uint64_t)n[0] + n[1] != n[2] || memcmp(p[0], p[2], n[0]) != 0
            || memcmp(p[1], p[2] + n[0], n[1]) != 0) {
            return mbi_tok_bad(t, slot, "tokenizer.merges", id[2], 0, t->n_ids - 1,
                               "bytes of the merged token are not those of its halves", err);
        }
        if (mbi_load_u32(slot + 8) == MBI_TOK_NONE || mbi_tok_find(t, id[0], id[1]) != slot) {
            return mbi_tok_bad(t, slot, "tokenizer.merges", i, 0, t->n_slots - 1,
                               "a pair twice, out of reach or without a rank", err);
        }
    }
    return status;
}

/* Checks a tokenizer section completely, in time linear in its size, and prepares t to use it in
 * place: afterwards no encoding or decoding needs a check of the section or can fail because of it.
 * Nothing is allocated. t keeps pointers into the section. */
static mamba_status mbi_tok_open(mamba_tokenizer *t, const void *section, uint64_t bytes,
                                 const mamba_memory *memory, mamba_error *err) {
    mamba_status status;
    size_t i;
    memset(t, 0, sizeof *t);
    t->base = (const unsigned char *)section;
    t->memory = mbi_memory_or_default(memory);
    status = mbi_tok_header(t, bytes, err);
    if (status == MAMBA_OK) {
        status = mbi_tok_layout(t, bytes, err);
    }
    if (status == MAMBA_OK) {
        status = mbi_tok_check_ids(t, err);
    }
    if (status == MAMBA_OK) {
        status = mbi_tok_check_chars(t, err);
    }
    if (status == MAMBA_OK) {
        status = mbi_tok_check_added(t, err);
    }
    if (status == MAMBA_OK) {
        status = mbi_tok_check_merges(t, bytes, err);
    }
    for (i = 0; status == MAMBA_OK && i < 3; i++) {
        t->special[i] = mbi_load_u32(t->base + 52 + 4 * i);
    }
    return status;
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
    if (fd < 0 && errno == EOVERFLOW) { /* beyond the reach of this build's off_t */
        return mbi_fail(err, MAMBA_ERR_UNSUPPORTED, "file too large for this build", "file", 0);
    }
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

typedef struct mbi_mamba2 {
    int d_ssm, d_state, d_conv, n_heads, headdim, n_groups, d_mlp;
    int has_norm, norm_first; /* gated norm; before the gate */
    float norm_eps, dt_min, dt_max;
    int group_width;  /* channels of a group, padded to 16 */
    int width, n_bc;  /* channels and rows of B, all groups, seg */
    mbi_mat in_proj, dt_in, out_proj;
    const float *in_bias, *out_bias; /* padded like the rows */
    const float *conv_w, *conv_b;    /* (d_conv, width + 2*n_bc), (width + 2*n_bc) */
    const float *dt_bias, *A;        /* (n_heads seg) */
    const float *D, *norm;           /* (width) */
} mbi_mamba2;

typedef struct mbi_attention {
    int n_heads, n_kv, headdim, rotary_dim, d_conv, d_mlp;
    int adjacent; /* rotary pairs */
    float rotary_base, scale;
    int head;     /* headdim, seg */
    mbi_mat in_proj, out_proj;
    const float *in_bias, *out_bias; /* padded like the rows */
    const float *conv_w, *conv_b;    /* over [k | v | q] */
} mbi_attention;

typedef struct mbi_mlp {
    int d_ff;
    mbi_mat fc1, fc2;
} mbi_mlp;

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
        mbi_mamba2 mamba2;
        mbi_attention attention;
        mbi_mlp mlp;
    } u;
};

struct mamba_model {
    mbi_bytes bytes;
    mamba_memory memory;
    mamba_parallel parallel;
    mamba_log log;
    int n_threads;
    int prefetch; /* see mbi_mat */
    const mamba_target *target;
    mbi_config_record config;
    mbi_section sections[MBI_MAX_SECTIONS];
    int n_sections;
    const mbi_tensor *tensors; /* in the file */
    int n_tensors;
    mbi_layer *layers;
    mbi_mat embedding[2], head[2]; /* the first rows, the rest (rows = 0: there is none) */
    const float *norm_f;
    mamba_tokenizer tokenizer;
    int has_tokenizer;
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

static int mbi_all_zero(const void *data, size_t n) {
    const unsigned char *p = (const unsigned char *)data;
    size_t i;
    for (i = 0; i < n && p[i] == 0; i++) {
    }
    return i == n;
}

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
        return mbi_fail_value(err, MAMBA_ERR_VERSION,
                              mbi_load_u32(p + 8) < MBI_FILE_VERSION
                                  ? "file version from before 0.3.0: convert the checkpoint again"
                                  : "file version not known to this build",
                              "version", 8, mbi_load_u32(p + 8), MBI_FILE_VERSION,
                              MBI_FILE_VERSION);
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
    if (!mbi_all_zero(p + 52, 12)) {
        return mbi_fail(err, MAMBA_ERR_FORMAT, "reserved bytes must be zero", "header", 52);
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
    if (!mbi_all_zero(c->reserved0, sizeof c->reserved0) ||
        !mbi_all_zero(c->reserved1, sizeof c->reserved1)) {
        return mbi_fail(err, MAMBA_ERR_FORMAT, "reserved bytes must be zero", "config",
                        s->offset + 52);
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
    if (!mbi_all_zero(t->reserved, sizeof t->reserved)) {
        return mbi_fail(err, MAMBA_ERR_FORMAT, "reserved bytes must be zero", name, at + 136);
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
    i = (int)(mbi_padded_rows(t) / MBI_LANES);
    *w = mbi_mat_of((mamba_type)t->type, b->m->bytes.data + t->offset, i,
                    n_segments == 1 ? (int)t->rows : i * MBI_LANES, cols);
    w->prefetch = b->m->prefetch;
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
                                  record.kind, MAMBA_LAYER_MAMBA1, MAMBA_LAYER_MLP);
        }
        if (record.reserved != 0) {
            return mbi_fail(b->err, MAMBA_ERR_FORMAT, "reserved bytes must be zero", "layers",
                            at + 12);
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

/* The embedding or the head: one matrix, or the first rows and the rest in types that take the same
 * prepared activations. */
static void mbi_bind_vocabulary(mbi_binder *b, const char *what, const char *what_rest,
                                mbi_mat w[2]) {
    const mbi_tensor *rest = mbi_bind(b, what_rest, 1);
    int d_model = (int)b->m->config.d_model;
    int n_vocab = (int)b->m->config.n_vocab;
    int first = n_vocab;
    if (rest) {
        uint64_t at = (uint64_t)((const unsigned char *)rest - b->m->bytes.data);
        int most = (n_vocab - 1) / MBI_LANES * MBI_LANES; /* the first rows fill their panels */
        first = n_vocab - (int)rest->rows;
        if (first < MBI_LANES || first > most || first % MBI_LANES != 0) {
            b->status = mbi_fail_value(b->err, MAMBA_ERR_FORMAT,
                                       "n_vocab less rows must be a multiple of 16 from 16 on",
                                       rest->name, at + 72, rest->rows, n_vocab - most,
                                       n_vocab - MBI_LANES);
            return;
        }
        n_vocab = (int)rest->rows;
        mbi_bind_panels(b, what_rest, &n_vocab, 1, d_model, &w[1]);
    }
    mbi_bind_panels(b, what, &first, 1, d_model, &w[0]);
    if (b->status == MAMBA_OK && rest && w[0].type != w[1].type &&
        !(mbi_is_quantized(w[0].type) && mbi_is_quantized(w[1].type))) {
        b->status = mbi_fail_value(b->err, MAMBA_ERR_FORMAT,
                                   "both parts must be quantized or of the same type", rest->name,
                                   (uint64_t)((const unsigned char *)rest - b->m->bytes.data) + 64,
                                   rest->type, w[0].type, w[0].type);
    }
}

static mamba_status mbi_bind_globals(mbi_binder *b) {
    mamba_model *m = b->m;
    b->layer = -1;
    m->norm_f = mbi_bind_vector(b, "norm_f", 1, m->config.d_model, 0);
    if (m->config.n_vocab > 0) {
        mbi_bind_vocabulary(b, "embedding", "embedding_rest", m->embedding);
        if (m->config.flags & MBI_MODEL_TIED) {
            memcpy(m->head, m->embedding, sizeof m->head);
        } else {
            mbi_bind_vocabulary(b, "head", "head_rest", m->head);
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
    int n_tasks;             /* = threads */
    int n_threads;           /* of them, that can run at once */
    int n_tokens;            /* T of this chunk */
    int own;                 /* of its regions, see mbi_parallel_ranges */
    uint64_t position;       /* of its first token */
    int time_chunk;          /* tokens, a multiple of 16, or 0 */
    float *time_ends;        /* end states and sums of dt of the chunks */
    double *time_sums;
    float *r;                /* residual stream, blocked (d_model, T) */
    float *u;                /* normalised input of the layer, blocked */
    unsigned char *prepared; /* activations as gemm wants them */
    unsigned char *ready;    /* the same, where tasks prepare while others still read `prepared` */
    unsigned char *spare;    /* see mbi_keep_prepared */
    int *made;               /* see mbi_mamba1_made: blocks of each group of 64 channels */
    mbi_worker *workers;     /* [n_tasks], or NULL */
    unsigned char *task_scratch;
    size_t task_bytes;       /* per worker: MBI_GEMM_SCRATCH, then MBI_TASK_BLOCKS [T][16] blocks */
    float *scratch;          /* the layer's own */
};

/* Chunks of so many are read for the sake of their tokens, smaller ones for that of the weights. */
enum { MBI_MANY_TOKENS = 64 };

/* A region of n items, see mbi_ranges. */
static void mbi_region(const mbi_ctx *ctx, int n, int unit, int least, mbi_range run, void *arg) {
    mbi_parallel_ranges(ctx->parallel, ctx->n_tasks, n, unit, least, ctx->own, ctx->workers, run,
                        arg);
}

/* A region over tiles of 16 tokens. */
static void mbi_tile_region(const mbi_ctx *ctx, mbi_range run, void *arg) {
    mbi_region(ctx, (ctx->n_tokens + 15) / 16, 2, 2, run, arg);
}

static unsigned char *mbi_worker_scratch(const mbi_ctx *ctx, int worker) {
    return ctx->task_scratch + (size_t)worker * ctx->task_bytes;
}

/* Blocked activation on its way into a product. */
typedef struct mbi_prepare_job {
    const mbi_ctx *ctx;
    mamba_type type;
    const float *x;
    int n;
    /* with a norm in front: x is normalised into u first */
    const float *norm;
    float eps;
    float *u;
    int normalise;
    int twice; /* prepared for a second product too, into ctx->ready */
    mamba_type second;
} mbi_prepare_job;

static void mbi_prepare_tiles(void *arg, int begin, int end, int worker) {
    const mbi_prepare_job *j = (const mbi_prepare_job *)arg;
    const mbi_ctx *ctx = j->ctx;
    int t0 = begin * 16;
    int t1 = mbi_min_int(end * 16, ctx->n_tokens);
    const float *x = j->x;
    (void)worker;
    if (j->normalise) {
        ctx->k->rmsnorm(x, j->norm, j->eps, j->n, ctx->n_tokens, t0, t1, j->u);
        x = j->u;
    }
    if (ctx->k->prepared_bytes(j->type, j->n, ctx->n_tokens) != 0) {
        ctx->k->prepare(j->type, x, j->n, ctx->n_tokens, t0, t1, 0, mbi_groups(j->n),
                        ctx->prepared);
    }
    if (j->twice) {
        ctx->k->prepare(j->second, x, j->n, ctx->n_tokens, t0, t1, 0, mbi_groups(j->n),
                        ctx->ready);
    }
}

/* Runs the job over token tiles and returns what gemm shall read. */
static const void *mbi_prepare_run(const mbi_ctx *ctx, mbi_prepare_job *j) {
    int prepared = ctx->k->prepared_bytes(j->type, j->n, ctx->n_tokens) != 0;
    const float *x = j->normalise ? j->u : j->x;
    j->ctx = ctx;
    if (prepared || j->normalise) {
        mbi_tile_region(ctx, mbi_prepare_tiles, j);
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

/* What is prepared next leaves what was prepared last as it is. */
static void mbi_keep_prepared(mbi_ctx *ctx) {
    unsigned char *kept = ctx->prepared;
    ctx->prepared = ctx->spare;
    ctx->spare = kept;
}

/* ctx->u = rmsnorm(ctx->r), prepared for products with weights of this type and, if second_x is not
 * NULL, of another one, which reads *second_x. */
static const void *mbi_norm_prepare_two(const mbi_ctx *ctx, mamba_type type, const float *norm,
                                        float eps, mamba_type second, const void **second_x) {
    mbi_prepare_job j;
    const void *x;
    memset(&j, 0, sizeof j);
    j.type = type;
    j.x = ctx->r;
    j.n = (int)ctx->model->config.d_model;
    j.norm = norm;
    j.eps = eps;
    j.u = ctx->u;
    j.normalise = 1;
    j.second = second;
    j.twice = second_x && second != type &&
              ctx->k->prepared_bytes(second, j.n, ctx->n_tokens) != 0;
    x = mbi_prepare_run(ctx, &j);
    if (second_x) {
        *second_x = second == type ? x : j.twice ? (const void *)ctx->ready : (const void *)ctx->u;
    }
    return x;
}

static const void *mbi_norm_prepare(const mbi_ctx *ctx, mamba_type type, const float *norm,
                                    float eps) {
    return mbi_norm_prepare_two(ctx, type, norm, eps, type, NULL);
}

/* A product in units of some panels times some tokens; `across` units make up all panels, and come
 * one after the other. */
typedef struct mbi_matmul_job {
    const mbi_ctx *ctx;
    mbi_gemm g;
    int panels, tokens, across;
} mbi_matmul_job;

static void mbi_matmul_units(void *arg, int begin, int end, int worker) {
    const mbi_matmul_job *j = (const mbi_matmul_job *)arg;
    mbi_gemm g = j->g;
    g.scratch = mbi_worker_scratch(j->ctx, worker);
    while (begin < end) {
        int t = begin / j->across;
        int next = mbi_min_int((t + 1) * j->across, end);
        j->ctx->k->gemm(&g, begin % j->across * j->panels,
                        mbi_min_int((next - t * j->across) * j->panels, g.w->n_panels),
                        t * j->tokens, mbi_min_int((t + 1) * j->tokens, g.n_tokens));
        begin = next;
    }
}

/* The product described by g (its scratch is filled in here), all panels, all tokens.  Tokens are
 * split only where there are too few panels to deal out, for each part reads the weights. */
static void mbi_matmul(const mbi_ctx *ctx, const mbi_gemm *g) {
    enum { FEW_TOKENS = 16, FEW_PANELS = 16, UNITS = 8 /* a thread, where they are dealt out */ };
    mbi_matmul_job j;
    int n_panels = g->w->n_panels;
    int narrow = n_panels < FEW_PANELS;
    int step = narrow ? 32 : 96; /* tokens: whole tiles of every kernel, or nearly */
    int parts;
    j.ctx = ctx;
    j.g = *g;
    if (g->n_tokens < FEW_TOKENS || (narrow && ctx->own == MBI_WHOLE_SHARE)) {
        j.panels = 1;
    } else {
        j.panels = narrow ? n_panels : 4;
    }
    j.across = (n_panels + j.panels - 1) / j.panels;
    j.tokens = g->n_tokens;
    parts = ((ctx->own == MBI_WHOLE_SHARE ? 1 : UNITS) * ctx->n_tasks + j.across - 1) / j.across;
    if (ctx->n_tasks > 1 && parts > 1 && g->n_tokens > step) {
        j.tokens = mbi_pad_int((g->n_tokens + parts - 1) / parts, step);
    }
    mbi_region(ctx, (g->n_tokens + j.tokens - 1) / j.tokens * j.across, 1, 1, mbi_matmul_units, &j);
}

/* The product y (blocked, rows of w) = bias + w x, or y += that. */
static mbi_gemm mbi_gemm_of(const mbi_ctx *ctx, const mbi_mat *w, const void *x, const float *bias,
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
    return g;
}

static void mbi_linear(const mbi_ctx *ctx, const mbi_mat *w, const void *x, const float *bias,
                       int add, float *y) {
    mbi_gemm g = mbi_gemm_of(ctx, w, x, bias, add, y);
    mbi_matmul(ctx, &g);
}

/* Within a task: panels [p, end) of the product *whole, to y; those up to `next` are its next ones. */
static void mbi_part(const mbi_ctx *ctx, const mbi_gemm *whole, int p, int end, int next, float *y,
                     void *scratch) {
    mbi_gemm g = *whole;
    mbi_mat w = mbi_mat_from(whole->w, p);
    g.w = &w;
    g.bias = g.bias ? g.bias + (size_t)p * MBI_LANES : NULL;
    g.y = y;
    g.next = next - p;
    g.scratch = scratch;
    ctx->k->gemm(&g, 0, end - p, 0, ctx->n_tokens);
}

/* Panels of such a part, at most, whole groups of 64 rows: what they give shall wait in the
 * second-level cache for what comes next.  All, where the products lose more by reading so much input
 * again for every part. */
static int mbi_part_panels(const mbi_ctx *ctx, const mbi_mat *w) {
    enum { PANELS = 8, Y_BYTES = 256 * 1024, X_BYTES = 1280 * 1024 };
    size_t n_tokens = (size_t)ctx->n_tokens;
    size_t read = ctx->k->prepared_bytes(w->type, w->cols, ctx->n_tokens);
    int fit = (int)(Y_BYTES / (n_tokens * MBI_LANES * sizeof(float))) / PANELS * PANELS;
    read = read != 0 ? read : n_tokens * (size_t)w->cols * sizeof(float);
    return read > X_BYTES ? w->n_panels : mbi_max_int(fit, PANELS);
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
    mbi_gemm in;          /* [x | z] = in_proj u */
    int part;             /* panels of it at a time, at most */
    float *conv_state, *h;
    unsigned char *x_ready, *y_ready; /* x for x_proj and y for out_proj, prepared by the tasks;
                                         NULL: not by them */
    int over_time, n_chunks, first_pass; /* of a scan split over time */
} mbi_mamba1_job;

/* A region of blocks: whole groups of 64 channels where that is not too many to deal out, else two
 * blocks, because products like some panels; but one, where a prompt has too few such pairs, for
 * then the last to finish costs more: 130m on 16 Xeon threads is 3 % (f32, q8) and 4 % (bf16) faster
 * so. */
static void mbi_mamba1_region(mbi_mamba1_job *j, mbi_range run) {
    const mbi_ctx *ctx = j->ctx;
    int n_blocks = mbi_mamba1_width(j->m) / MBI_LANES;
    int single = MBI_ATOMICS && ctx->n_tokens >= MBI_MANY_TOKENS &&
                 !mbi_ranges_enough(n_blocks, 2, ctx->n_threads);
    memset(ctx->made, 0, (size_t)mbi_groups(j->m->d_inner) * sizeof(int));
    mbi_region(ctx, n_blocks, single ? 1 : MBI_TASK_BLOCKS, single ? 1 : 2, run, j);
}

/* Where tasks prepare d_inner channels for weights of this type; NULL if they don't. */
static unsigned char *mbi_mamba1_ready_at(const mbi_mamba1_job *j, mamba_type type) {
    const mbi_ctx *ctx = j->ctx;
    return ctx->k->prepared_bytes(type, j->m->d_inner, ctx->n_tokens) != 0 ? ctx->ready : NULL;
}

/* Blocks [b, end) of x or y, all of one group of 64 channels, are made.  Whoever makes the last of
 * a group prepares it into `to`, unless that is NULL: most of it is near, and x_proj and out_proj
 * save a pass over memory, and two regions a layer. */
static void mbi_mamba1_made(const mbi_mamba1_job *j, mamba_type type, int b, int end,
                            unsigned char *to) {
    int g = b / MBI_TASK_BLOCKS;
    int n = mbi_min_int(MBI_TASK_BLOCKS,
                        mbi_mamba1_width(j->m) / MBI_LANES - g * MBI_TASK_BLOCKS);
    if (!to) {
        return;
    }
#if MBI_ATOMICS
    if (end - b < n && __atomic_add_fetch(&j->ctx->made[g], end - b, __ATOMIC_ACQ_REL) < n) {
        return;
    }
#else
    (void)n; /* ranges are whole groups */
#endif
    j->ctx->k->prepare(type, j->x, j->m->d_inner, j->ctx->n_tokens, 0, j->ctx->n_tokens, g, g + 1,
                       to);
}

/* x or y as a product with weights of this type reads it. */
static const void *mbi_mamba1_input(const mbi_mamba1_job *j, mamba_type type,
                                    const unsigned char *ready) {
    return ready ? (const void *)ready : mbi_prepare(j->ctx, type, j->x, j->m->d_inner);
}

/* in_proj and convolution of x.  z waits until the gate needs it, unless the scan is split over
 * time. */
static void mbi_mamba1_in_blocks(void *arg, int begin, int end, int worker) {
    const mbi_mamba1_job *j = (const mbi_mamba1_job *)arg;
    const mbi_mamba1 *m = j->m;
    mbi_ctx *ctx = j->ctx;
    size_t block = (size_t)ctx->n_tokens * MBI_LANES;
    int width = mbi_mamba1_width(m);
    int z = width / MBI_LANES;
    void *scratch = mbi_worker_scratch(ctx, worker);
    int b = begin;
    if (j->over_time) {
        mbi_part(ctx, &j->in, z + b, z + end, z + end, j->z + (size_t)b * block, scratch);
    }
    while (b < end) {
        int next = mbi_min_int(b + j->part, end);
        int k;
        mbi_part(ctx, &j->in, b, next, end, j->x + (size_t)b * block, scratch);
        for (k = b; k < next; k++) {
            float *x = j->x + (size_t)k * block;
            int c = k * MBI_LANES;
            ctx->k->conv(x, m->conv_w + c, m->conv_b ? m->conv_b + c : NULL, m->d_conv, 1,
                         ctx->n_tokens, j->conv_state + c, (size_t)width, x);
            if ((k + 1) % MBI_TASK_BLOCKS == 0 || k + 1 == end) {
                mbi_mamba1_made(j, m->x_proj.type,
                                mbi_max_int(begin, k / MBI_TASK_BLOCKS * MBI_TASK_BLOCKS), k + 1,
                                j->x_ready);
            }
        }
        b = next;
    }
}

/* FalconMamba: norms of dt, B and C, each over its own rows. */
static void mbi_mamba1_norm_tiles(void *arg, int begin, int end, int worker) {
    const mbi_mamba1_job *j = (const mbi_mamba1_job *)arg;
    const mbi_mamba1 *m = j->m;
    const mbi_kernels *k = j->ctx->k;
    int T = j->ctx->n_tokens;
    int t0 = begin * 16;
    int t1 = mbi_min_int(end * 16, T);
    (void)worker;
    k->rmsnorm(j->dt, NULL, m->bcdt_eps, m->dt_rank, T, t0, t1, j->dt);
    k->rmsnorm(j->B, NULL, m->bcdt_eps, m->d_state, T, t0, t1, j->B);
    k->rmsnorm(j->C, NULL, m->bcdt_eps, m->d_state, T, t0, t1, j->C);
}

/* Asks for what the scan of blocks [b, end) reads besides activations: 130m decodes 2 to 7 % faster on
 * Zen 5. */
static void mbi_mamba1_ask(const mbi_mamba1_job *j, int b, int end) {
    size_t first = (size_t)b * MBI_LANES;
    size_t n = (size_t)(end - b) * MBI_LANES;
    size_t d_state = (size_t)j->m->d_state;
    mbi_ask(j->m->dt_bias + first, n);
    mbi_ask(j->m->D + first, n);
    mbi_ask(j->m->A + first * d_state, n * d_state);
    mbi_ask(j->h + first * d_state, n * d_state);
}

/* A part of z, up to the end of a group of 64 channels; then dt_proj of such a group at a time, as
 * float32 products like it best; softplus, scan and gate of 16.  Every part of z lies where the
 * range's first one would; y replaces x. */
static void mbi_mamba1_scan_blocks(void *arg, int b, int end, int worker) {
    const mbi_mamba1_job *j = (const mbi_mamba1_job *)arg;
    const mbi_mamba1 *m = j->m;
    mbi_ctx *ctx = j->ctx;
    size_t block = (size_t)ctx->n_tokens * MBI_LANES;
    unsigned char *scratch = mbi_worker_scratch(ctx, worker);
    float *dt = (float *)(void *)(scratch + MBI_GEMM_SCRATCH);
    float *z = j->z + (size_t)b * block;
    const float *z_at = NULL;
    int z_end = b;
    mbi_mat w;
    mbi_gemm g;
    memset(&g, 0, sizeof g);
    g.w = &w;
    g.x = j->dt_ready;
    g.n_tokens = ctx->n_tokens;
    g.y = dt;
    g.y_panel = block;
    g.y_token = MBI_LANES;
    g.scratch = scratch;
    while (b < end) {
        int next = mbi_min_int((b / MBI_TASK_BLOCKS + 1) * MBI_TASK_BLOCKS, end);
        float *now = dt;
        int k;
        if (b == z_end) {
            int p = mbi_mamba1_width(m) / MBI_LANES;
            z_end = mbi_min_int(b / MBI_TASK_BLOCKS * MBI_TASK_BLOCKS + j->part, end);
            mbi_part(ctx, &j->in, p + b, p + z_end, p + end, z, scratch);
            z_at = z;
        }
        mbi_mamba1_ask(j, b, next);
        w = mbi_mat_from(&m->dt_proj, b);
        ctx->k->gemm(&g, 0, next - b, 0, ctx->n_tokens);
        for (k = b; k < next; k++, now += block, z_at += block) {
            size_t c = (size_t)k * MBI_LANES;
            mbi_scan_block s;
            ctx->k->softplus(now, m->dt_bias + c, now, block);
            s.x = s.y = j->x + (size_t)k * block;
            s.dt = now;
            s.z = z_at;
            s.A = m->A + c * (size_t)m->d_state;
            s.B = j->B;
            s.C = j->C;
            s.D = m->D + c;
            s.h = j->h + c * (size_t)m->d_state;
            s.bc_block = block;
            s.bc_token = MBI_LANES;
            s.position = ctx->position;
            s.n_tokens = ctx->n_tokens;
            s.d_state = m->d_state;
            ctx->k->scan_block(&s);
        }
        mbi_mamba1_made(j, m->out_proj.type, b, next, j->y_ready);
        b = next;
    }
}

/* The state h [d_state][16] through n_chunks chunks, each given by its end state from zero (which
 * becomes the true one) and its sum of dt:  h = exp(A * sum) * h + end. */
static void mbi_scan_join(const mbi_kernels *k, const float *A, int d_state, const float *h,
                          int n_chunks, float *ends, const double *sums) {
    size_t state = (size_t)d_state * MBI_LANES;
    int c;
    int n;
    int i;
    for (c = 0; c < n_chunks; c++, ends += state, sums += MBI_LANES) {
        for (n = 0; n < d_state; n++) {
            size_t row = (size_t)n * MBI_LANES;
            float decay[MBI_LANES];
            for (i = 0; i < MBI_LANES; i++) {
                decay[i] = (float)((double)A[row + (size_t)i] * sums[i]);
            }
            k->exp(decay, decay, MBI_LANES);
            for (i = 0; i < MBI_LANES; i++) {
                ends[row + (size_t)i] = (float)((double)decay[i] * (double)h[row + (size_t)i] +
                                                (double)ends[row + (size_t)i]);
            }
        }
        h = ends;
    }
}

/* Sums of dt that a scan split over time keeps; d_state times as many floats are its end states. */
static uint64_t mbi_mamba1_time_sums(const mbi_layer *l, int n_tokens, int time_chunk) {
    return (uint64_t)mbi_mamba1_width(&l->u.mamba1) *
           (uint64_t)((n_tokens + time_chunk - 1) / time_chunk);
}

/* One pass over (channel block, time chunk) pairs, see mamba_scan_time_parallel: first the end state
 * of each chunk from zero, then, after the join, every chunk from its true start.  The last chunk's
 * end state stays in the place of its start. */
static void mbi_mamba1_time_items(void *arg, int item, int end, int worker) {
    const mbi_mamba1_job *j = (const mbi_mamba1_job *)arg;
    const mbi_mamba1 *m = j->m;
    mbi_ctx *ctx = j->ctx;
    size_t block = (size_t)ctx->n_tokens * MBI_LANES;
    size_t state = (size_t)m->d_state * MBI_LANES;
    unsigned char *scratch = mbi_worker_scratch(ctx, worker);
    float *dt = (float *)(void *)(scratch + MBI_GEMM_SCRATCH);
    mbi_gemm g;
    memset(&g, 0, sizeof g);
    g.w = &m->dt_proj;
    g.x = j->dt_ready;
    g.n_tokens = ctx->n_tokens;
    g.y = dt;
    g.y_token = MBI_LANES;
    g.scratch = scratch;
    for (; item < end; item++) {
        mbi_scan_block s;
        int b = item / j->n_chunks;
        int c = item % j->n_chunks;
        int t0 = c * ctx->time_chunk;
        int t1 = mbi_min_int(t0 + ctx->time_chunk, ctx->n_tokens);
        size_t first = (size_t)t0 * MBI_LANES;
        size_t k;
        float *ends = ctx->time_ends + (size_t)item * state;
        if (j->first_pass && c == j->n_chunks - 1) {
            continue;
        }
        ctx->k->gemm(&g, b, b + 1, t0, t1);
        ctx->k->softplus(dt + first, m->dt_bias + b * MBI_LANES, dt + first,
                         (size_t)(t1 - t0) * MBI_LANES);
        memset(&s, 0, sizeof s);
        s.x = s.y = j->x + (size_t)b * block + first;
        s.dt = dt + first;
        s.A = m->A + (size_t)b * state;
        s.B = j->B + first;
        s.C = j->C + first;
        s.D = m->D + b * MBI_LANES;
        s.bc_block = block;
        s.bc_token = MBI_LANES;
        s.position = ctx->position + (uint64_t)t0;
        s.n_tokens = t1 - t0;
        s.d_state = m->d_state;
        if (j->first_pass) {
            double *sum = ctx->time_sums + (size_t)item * MBI_LANES;
            s.y = dt + block + first; /* thrown away */
            s.h = ends;
            memset(ends, 0, state * sizeof(float));
            memset(sum, 0, MBI_LANES * sizeof(double));
            for (k = 0; k < (size_t)(t1 - t0) * MBI_LANES; k++) {
                sum[k % MBI_LANES] += (double)s.dt[k];
            }
        } else {
            s.z = j->z + (size_t)b * block + first;
            s.h = c == 0 ? j->h + (size_t)b * state : ends - state;
        }
        ctx->k->scan_block(&s);
    }
}

static void mbi_mamba1_join_blocks(void *arg, int b, int end, int worker) {
    const mbi_mamba1_job *j = (const mbi_mamba1_job *)arg;
    size_t state = (size_t)j->m->d_state * MBI_LANES;
    (void)worker;
    for (; b < end; b++) {
        size_t item = (size_t)b * (size_t)j->n_chunks;
        mbi_scan_join(j->ctx->k, j->m->A + (size_t)b * state, j->m->d_state,
                      j->h + (size_t)b * state, j->n_chunks - 1, j->ctx->time_ends + item * state,
                      j->ctx->time_sums + item * MBI_LANES);
    }
}

static void mbi_mamba1_time_scan(mbi_mamba1_job *j) {
    mbi_ctx *ctx = j->ctx;
    size_t state = (size_t)j->m->d_state * MBI_LANES;
    int n_blocks = mbi_mamba1_width(j->m) / MBI_LANES;
    int b;
    j->n_chunks = (ctx->n_tokens + ctx->time_chunk - 1) / ctx->time_chunk;
    j->first_pass = 1;
    mbi_region(ctx, n_blocks * j->n_chunks, 1, 1, mbi_mamba1_time_items, j);
    j->first_pass = 0;
    mbi_region(ctx, n_blocks, 1, 1, mbi_mamba1_join_blocks, j);
    mbi_region(ctx, n_blocks * j->n_chunks, 1, 1, mbi_mamba1_time_items, j);
    for (b = 0; b < n_blocks; b++) {
        memcpy(j->h + (size_t)b * state,
               ctx->time_ends + ((size_t)(b + 1) * (size_t)j->n_chunks - 2) * state,
               state * sizeof(float));
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
    memset(&j, 0, sizeof j);
    j.ctx = ctx;
    j.m = m;
    j.x = ctx->scratch;
    j.z = ctx->scratch + (size_t)width / MBI_LANES * block;
    j.dt = bcdt;
    j.B = bcdt + (size_t)n_dt * block;
    j.C = j.B + (size_t)n_bc * block;
    j.conv_state = state;
    j.h = state + (size_t)width * (size_t)(m->d_conv - 1);
    j.x_ready = mbi_mamba1_ready_at(&j, m->x_proj.type);
    j.over_time = ctx->time_chunk > 0 && ctx->n_tokens > ctx->time_chunk;
    j.y_ready = j.over_time ? NULL : mbi_mamba1_ready_at(&j, m->out_proj.type);
    j.part = mbi_part_panels(ctx, &m->in_proj);

    MAMBA_PROFILE("norm, in_proj x, conv");
    j.in = mbi_gemm_of(ctx, &m->in_proj,
                       mbi_norm_prepare(ctx, m->in_proj.type, l->norm, l->norm_eps), m->in_bias,
                       0, j.x);
    mbi_mamba1_region(&j, mbi_mamba1_in_blocks);
    mbi_keep_prepared(ctx); /* z is still to be made of it */
    MAMBA_PROFILE("x_proj");
    mbi_linear(ctx, &m->x_proj, mbi_mamba1_input(&j, m->x_proj.type, j.x_ready), NULL, 0, bcdt);
    if (m->norm_bcdt) {
        mbi_tile_region(ctx, mbi_mamba1_norm_tiles, &j);
    }
    MAMBA_PROFILE("in_proj z, dt_proj, scan");
    j.dt_ready = mbi_prepare(ctx, m->dt_proj.type, j.dt, m->dt_rank);
    if (j.over_time) {
        mbi_mamba1_time_scan(&j);
    } else {
        mbi_mamba1_region(&j, mbi_mamba1_scan_blocks);
    }
    MAMBA_PROFILE("out_proj");
    mbi_linear(ctx, &m->out_proj, mbi_mamba1_input(&j, m->out_proj.type, j.y_ready), m->out_bias, 1,
               ctx->r);
}

/* ------------------------------------------------------------------------------------------------
 * @@gates   Gates and norms between a layer's core and its last product                  (private)
 * ---------------------------------------------------------------------------------------------- */
/* What happens to the blocked input of the last product of a layer, token tile by token tile: the
 * first blocks are gated (MLP), the rest normalised group by group and gated, and then everything
 * is brought into the form that the product reads. */
typedef struct mbi_gate_job {
    const mbi_ctx *ctx;
    mamba_type type;      /* of the product's weights */
    int n;                /* columns of the product */
    float *x;             /* blocked (n, T) */
    const float *mlp_z;   /* gates of the first n_mlp blocks */
    int n_mlp;
    const float *norm;    /* weights (n_groups * group_blocks * 16), NULL = no norm */
    float eps;
    int n_groups, group, group_blocks; /* channels of a group, without and with padding */
    const float *z;       /* gates after the norm, or NULL */
} mbi_gate_job;

static void mbi_gate_tiles(void *arg, int begin, int end, int worker) {
    const mbi_gate_job *j = (const mbi_gate_job *)arg;
    const mbi_ctx *ctx = j->ctx;
    size_t block = (size_t)ctx->n_tokens * MBI_LANES;
    int t0 = begin * 16;
    int t1 = mbi_min_int(end * 16, ctx->n_tokens);
    size_t first = (size_t)t0 * MBI_LANES;
    size_t count = (size_t)(t1 - t0) * MBI_LANES;
    int b;
    (void)worker;
    for (b = 0; b < j->n_mlp; b++) {
        float *x = j->x + (size_t)b * block + first;
        ctx->k->gate(x, j->mlp_z + (size_t)b * block + first, x, count);
    }
    for (b = 0; j->norm && b < j->n_groups; b++) {
        float *x = j->x + (size_t)(j->n_mlp + b * j->group_blocks) * block;
        ctx->k->rmsnorm(x, j->norm + (size_t)b * (size_t)j->group_blocks * MBI_LANES, j->eps,
                        j->group, ctx->n_tokens, t0, t1, x);
    }
    for (b = 0; j->z && b < j->n_groups * j->group_blocks; b++) {
        float *x = j->x + (size_t)(j->n_mlp + b) * block + first;
        ctx->k->gate(x, j->z + (size_t)b * block + first, x, count);
    }
    if (ctx->k->prepared_bytes(j->type, j->n, ctx->n_tokens) != 0) {
        ctx->k->prepare(j->type, j->x, j->n, ctx->n_tokens, t0, t1, 0, mbi_groups(j->n),
                        ctx->prepared);
    }
}

/* Runs the job (ctx is filled in here) and returns what gemm shall read. */
static const void *mbi_gate_run(const mbi_ctx *ctx, mbi_gate_job *j) {
    int prepared = ctx->k->prepared_bytes(j->type, j->n, ctx->n_tokens) != 0;
    j->ctx = ctx;
    if (prepared || j->n_mlp != 0 || j->norm || j->z) {
        mbi_tile_region(ctx, mbi_gate_tiles, j);
    }
    return prepared ? (const void *)ctx->prepared : (const void *)j->x;
}

/* ------------------------------------------------------------------------------------------------
 * @@mamba2   Mamba-2 layers                                                              (private)
 *
 * Per token [Dao & Gu 2024, section 7; names as in mamba_ssm mamba2.py], head p, group g of p:
 *   [z0 | z | x0 | x | B | C] = in_proj u + b;  dt = dt_in u;  [x | B | C] = silu(conv1d(x | B | C))
 *   dt = clamp(softplus(dt + dt_bias), dt_min, dt_max)
 *   h = exp(dt_p A_p) h + dt_p x B_g^T;  y = h C_g + D x
 *   y = norm(y silu(z)), or norm(y) silu(z), or y silu(z), the norm over each group's channels
 *   r += out_proj [x0 silu(z0) | y] + b
 * State: conv inputs (d_conv-1, width + 2*n_bc), oldest first; then h [width/16][d_state][16],
 * lane = channel: no sum runs across lanes, and a head may have any width; then P (n_heads seg), by
 * which h is divided between multiples of 16: see mbi_ssd_block.
 *
 * Prompts run the same recurrence as steps, eight or four tokens (as registers allow) to one pass
 * over the state, so a state value is loaded and stored once for them and the arithmetic of a token
 * does not depend on how the prompt was cut: prefill, chunks and steps give the same bits.  That
 * costs two FMAs a state and token, as much as the chunked form below at best, which prepares more,
 * took 1.3 (AVX2) to 1.7 times (AVX-512) as long as a recurrence of three operations at
 * mamba2-130m's sizes, and whose bits depend on the cuts.  So it runs only where
 * mamba_state_options.time_chunk or mamba_ssd_chunked ask for it.
 * ---------------------------------------------------------------------------------------------- */
static uint32_t mbi_clamp_u32(uint64_t v) {
    return v > UINT32_MAX ? UINT32_MAX : (uint32_t)v;
}

/* Rows of n_groups groups of `width`: with several groups each is padded to 16. */
static uint64_t mbi_group_rows(uint64_t n_groups, uint64_t width) {
    return n_groups == 1 ? width : n_groups * mbi_pad(width, MBI_LANES);
}

static int mbi_mamba2_params(mbi_binder *b, mbi_mamba2 *m, const mbi_layer_record *record) {
    const uint32_t *u = record->u;
    uint64_t n_bc;
    uint64_t width;
    uint64_t floats;
    if (mbi_bind_param(b, "d_ssm", u[0], 1, 1 << 20) ||
        mbi_bind_param(b, "d_state", u[1], 1, 4096) || mbi_bind_param(b, "d_conv", u[2], 1, 8) ||
        mbi_bind_param(b, "n_heads", u[3], 1, u[0]) ||
        mbi_bind_param(b, "headdim", u[4], u[0] / u[3], u[0] / u[3]) ||
        mbi_bind_param(b, "n_heads * headdim", u[3] * u[4], u[0], u[0]) ||
        mbi_bind_param(b, "n_groups", u[5], 1, u[3]) ||
        mbi_bind_param(b, "n_heads % n_groups", u[3] % u[5], 0, 0) ||
        mbi_bind_param(b, "d_mlp", u[6], 0, 1 << 20) ||
        mbi_bind_param(b, "flags", record->flags, 0, 3)) {
        return 0;
    }
    n_bc = mbi_pad(mbi_group_rows(u[5], u[1]), MBI_LANES);
    width = mbi_pad(mbi_group_rows(u[5], u[0] / u[5]), MBI_LANES);
    floats = width * u[1] + (uint64_t)(u[2] - 1) * (width + 2 * n_bc) + mbi_pad(u[3], MBI_LANES);
    if (mbi_bind_param(b, "rows of B", mbi_clamp_u32(n_bc), 1, 1 << 22) ||
        mbi_bind_param(b, "floats of state", mbi_clamp_u32(floats), 1,
                       1 << 28)) {
        return 0;
    }
    m->d_ssm = (int)u[0];
    m->d_state = (int)u[1];
    m->d_conv = (int)u[2];
    m->n_heads = (int)u[3];
    m->headdim = (int)u[4];
    m->n_groups = (int)u[5];
    m->d_mlp = (int)u[6];
    m->norm_eps = mbi_bits_f32(u[7]);
    m->dt_min = mbi_bits_f32(u[8]);
    m->dt_max = mbi_bits_f32(u[9]);
    m->has_norm = (int)(record->flags & 1);
    m->norm_first = (int)(record->flags >> 1);
    m->width = (int)width;
    m->group_width = (int)width / m->n_groups;
    m->n_bc = (int)n_bc;
    if ((m->has_norm && !mbi_positive(m->norm_eps)) ||
        !(m->dt_min >= 0.0f && m->dt_min <= 3.4028234e38f && m->dt_max >= m->dt_min)) {
        b->status = mbi_fail(b->err, MAMBA_ERR_FORMAT, "eps of the gated norm must be positive, "
                             "0 <= dt_min <= dt_max", "layers", 0);
        return 0;
    }
    return 1;
}

static void mbi_mamba2_bind(mbi_binder *b, mbi_layer *l, const mbi_layer_record *record) {
    mbi_mamba2 *m = &l->u.mamba2;
    int d_model = (int)b->m->config.d_model;
    int segments[6];
    int n = 0;
    int ssm;
    int bc;
    int mlp;
    uint64_t channels;
    if (!mbi_mamba2_params(b, m, record)) {
        return;
    }
    ssm = (int)mbi_group_rows((uint64_t)m->n_groups, (uint64_t)(m->d_ssm / m->n_groups));
    bc = (int)mbi_group_rows((uint64_t)m->n_groups, (uint64_t)m->d_state);
    mlp = mbi_pad_int(m->d_mlp, MBI_LANES);
    if (m->d_mlp != 0) {
        segments[n++] = m->d_mlp;
    }
    segments[n++] = ssm;
    if (m->d_mlp != 0) {
        segments[n++] = m->d_mlp;
    }
    segments[n++] = ssm;
    segments[n++] = bc;
    segments[n++] = bc;
    mbi_bind_panels(b, "in_proj", segments, n, d_model, &m->in_proj);
    mbi_bind_panels(b, "dt_in", &m->n_heads, 1, d_model, &m->dt_in);
    mbi_bind_panels(b, "out_proj", &d_model, 1, mlp + ssm, &m->out_proj);
    m->in_bias = mbi_bind_vector(b, "in_proj_bias", 1,
                                 2 * (uint64_t)(mlp + m->width + m->n_bc), 1);
    m->out_bias = mbi_bind_vector(b, "out_proj_bias", 1, (uint64_t)mbi_pad_int(d_model, 16), 1);
    channels = (uint64_t)(m->width + 2 * m->n_bc);
    m->conv_w = mbi_bind_vector(b, "conv_w", (uint64_t)m->d_conv, channels, 0);
    m->conv_b = mbi_bind_vector(b, "conv_b", 1, channels, 1);
    m->dt_bias = mbi_bind_vector(b, "dt_bias", 1, (uint64_t)m->n_heads, 0);
    m->A = mbi_bind_vector(b, "A", 1, (uint64_t)m->n_heads, 0);
    m->D = mbi_bind_vector(b, "D", 1, (uint64_t)ssm, 0);
    if (m->has_norm) {
        m->norm = mbi_bind_vector(b, "gated_norm", 1, (uint64_t)ssm, 0);
    }
}

static void mbi_mamba2_describe(const mbi_layer *l, mamba_layer_info *info) {
    const mbi_mamba2 *m = &l->u.mamba2;
    info->d_inner = m->d_ssm + m->d_mlp;
    info->d_state = m->d_state;
    info->d_conv = m->d_conv;
    info->n_heads = m->n_heads;
    info->headdim = m->headdim;
    info->n_groups = m->n_groups;
}

static size_t mbi_mamba2_state(const mbi_layer *l) {
    const mbi_mamba2 *m = &l->u.mamba2;
    return (size_t)m->width * (size_t)m->d_state +
           (size_t)(m->d_conv - 1) * (size_t)(m->width + 2 * m->n_bc) +
           (size_t)mbi_pad_int(m->n_heads, MBI_LANES);
}

/* [z0 | z | x0 | x | B | C], dt, exp(dt A) and its products, blocked; B and C turned. */
static size_t mbi_mamba2_scratch(const mbi_layer *l, int n_tokens) {
    const mbi_mamba2 *m = &l->u.mamba2;
    int blocks = m->in_proj.n_panels + 3 * m->dt_in.n_panels + 2 * m->n_bc / MBI_LANES;
    return (size_t)blocks * MBI_LANES * (size_t)n_tokens;
}

typedef struct mbi_mamba2_job {
    mbi_ctx *ctx;
    const mbi_mamba2 *m;
    float *z, *x, *bc;    /* blocked (width, T); B then C (n_bc, T) each */
    float *turned;        /* B then C, each group as mbi_turn leaves it */
    float *dt, *a, *P;    /* blocked (n_heads, T): time step, decay; then see mbi_ssd_block */
    const void *u;        /* input prepared for dt_in; NULL: dt is made already */
    float *conv_state, *h;
    float *last;          /* (n_heads seg): h is kept divided by this, if not at a multiple of 16 */
    int chunk, n_chunks;  /* of the chunked form, see below */
    float *pairs;         /* per (group, chunk): mbi_pairs_floats */
    float *chunk_scratch; /* per worker: mbi_chunk_floats */
} mbi_mamba2_job;

static void mbi_mamba2_conv(const mbi_mamba2_job *j, int block, float *x) {
    const mbi_mamba2 *m = j->m;
    int c = block * MBI_LANES;
    if (!m->conv_w) { /* the public operators: there is none */
        return;
    }
    j->ctx->k->conv(x, m->conv_w + c, m->conv_b ? m->conv_b + c : NULL, m->d_conv, 1,
                    j->ctx->n_tokens, j->conv_state + c, (size_t)(m->width + 2 * m->n_bc), x);
}

/* Block b of 16 states of B or C, [T][16], into its place in `out`, where every such run of `width`
 * tokens from `start` on has its `states` states together, tokens side by side:
 * out[start*states + n*width + t - start].  A Zen 5 core reads that a sixth faster than tokens 64
 * bytes apart, and a run lies in the first-level cache, where 16 blocks a power of two apart would
 * not. */
static void mbi_turn(const float *x, int b, int states, uint64_t position, int n_tokens,
                     float *out) {
    int start;
    int width;
    for (start = 0; start < n_tokens; start += width, x += width * MBI_LANES) {
        float *to;
        int i;
        int k;
        width = mbi_up_to_16(position, start, n_tokens);
        to = out + (size_t)start * (size_t)states + (size_t)(b * MBI_LANES * width);
        for (i = 0; i < MBI_LANES; i++) {
            for (k = 0; k < width; k++) {
                to[i * width + k] = x[k * MBI_LANES + i];
            }
        }
    }
}

/* Block b of dt (16 heads) with its decays, as the recurrence or the chunked form takes them. */
static void mbi_mamba2_steps(const mbi_mamba2_job *j, int b, const float *bias) {
    const mbi_mamba2 *m = j->m;
    size_t block = (size_t)j->ctx->n_tokens * MBI_LANES;
    size_t at = (size_t)b * block;
    j->ctx->k->ssd_decay(j->dt + at, bias ? bias + b * MBI_LANES : NULL, m->A + b * MBI_LANES,
                         m->dt_min, m->dt_max, block, j->a + at);
    if (j->chunk == 0) {
        j->ctx->k->ssd_scale(j->a + at, j->dt + at, j->P + at, j->last + b * MBI_LANES,
                             j->ctx->position, j->ctx->n_tokens);
    }
}

/* Block b of convolved B and C, likewise. */
static void mbi_mamba2_turn(const mbi_mamba2_job *j, int b) {
    size_t T = (size_t)j->ctx->n_tokens;
    int states = mbi_pad_int(j->m->d_state, MBI_LANES);
    int n = states / MBI_LANES; /* blocks of a group */
    if (j->chunk == 0) {
        mbi_turn(j->bc + (size_t)b * T * MBI_LANES, b % n, states, j->ctx->position, (int)T,
                 j->turned + (size_t)(b / n) * (size_t)states * T);
    }
}

/* What all heads share: dt with its decays, and the convolution of B and C. */
static void mbi_mamba2_shared_blocks(void *arg, int b, int end, int worker) {
    const mbi_mamba2_job *j = (const mbi_mamba2_job *)arg;
    const mbi_mamba2 *m = j->m;
    mbi_ctx *ctx = j->ctx;
    size_t block = (size_t)ctx->n_tokens * MBI_LANES;
    int n_dt = m->dt_in.n_panels;
    mbi_gemm g;
    memset(&g, 0, sizeof g);
    g.w = &m->dt_in;
    g.x = j->u;
    g.n_tokens = ctx->n_tokens;
    g.y = j->dt;
    g.y_panel = block;
    g.y_token = MBI_LANES;
    g.scratch = mbi_worker_scratch(ctx, worker);
    for (; b < end; b++) {
        if (b < n_dt) {
            if (j->u) {
                ctx->k->gemm(&g, b, b + 1, 0, ctx->n_tokens);
            }
            mbi_mamba2_steps(j, b, m->dt_bias);
        } else {
            mbi_mamba2_conv(j, m->width / MBI_LANES + b - n_dt,
                            j->bc + (size_t)(b - n_dt) * block);
            mbi_mamba2_turn(j, b - n_dt);
        }
    }
}

/* The head of lane i of block b (padding lanes: of the last channel of their group). */
static int mbi_mamba2_head(const mbi_mamba2 *m, int b, int i) {
    int per_group = m->d_ssm / m->n_groups;
    int g = b * MBI_LANES / m->group_width;
    int c = mbi_min_int(b * MBI_LANES + i - g * m->group_width, per_group - 1);
    return (g * per_group + c) / m->headdim;
}

/* Rows of one block of 16 channels out of blocked per-head values: out[t][lane]. */
static const float *mbi_mamba2_expand(const mbi_mamba2 *m, int n_tokens, int b,
                                      const float *heads, float *out) {
    int i;
    int t;
    for (i = 0; i < MBI_LANES; i++) {
        int head = mbi_mamba2_head(m, b, i);
        const float *from = heads + (size_t)(head / MBI_LANES) * (size_t)n_tokens * MBI_LANES +
                            head % MBI_LANES;
        for (t = 0; t < n_tokens; t++) {
            out[t * MBI_LANES + i] = from[t * MBI_LANES];
        }
    }
    return out;
}

/* The states of block b as h again. */
static void mbi_mamba2_settle(const mbi_mamba2_job *j, int b) {
    float *h = j->h + (size_t)b * (size_t)j->m->d_state * MBI_LANES;
    float P[MBI_LANES];
    int n;
    int i;
    for (i = 0; i < MBI_LANES; i++) {
        P[i] = j->last[mbi_mamba2_head(j->m, b, i)];
    }
    for (n = 0; n < j->m->d_state; n++, h += MBI_LANES) {
        for (i = 0; i < MBI_LANES; i++) {
            h[i] *= P[i];
        }
    }
}

/* Convolution and recurrence of 16 channels at a time; y replaces x. */
static void mbi_mamba2_scan_blocks(void *arg, int b, int end, int worker) {
    const mbi_mamba2_job *j = (const mbi_mamba2_job *)arg;
    const mbi_mamba2 *m = j->m;
    mbi_ctx *ctx = j->ctx;
    size_t block = (size_t)ctx->n_tokens * MBI_LANES;
    unsigned char *scratch = mbi_worker_scratch(ctx, worker);
    float *lanes = (float *)(void *)(scratch + MBI_GEMM_SCRATCH);
    for (; b < end; b++) {
        size_t g = (size_t)(b * MBI_LANES / m->group_width);
        int head = mbi_mamba2_head(m, b, 0);
        mbi_ssd_block s;
        s.x = s.y = j->x + (size_t)b * block;
        mbi_mamba2_conv(j, b, s.y);
        s.one_head = mbi_mamba2_head(m, b, MBI_LANES - 1) == head;
        if (s.one_head) {
            size_t at = (size_t)(head / MBI_LANES) * block + (size_t)(head % MBI_LANES);
            s.f = j->a + at;
            s.w = j->dt + at;
            s.P = j->P + at;
        } else {
            s.f = mbi_mamba2_expand(m, ctx->n_tokens, b, j->a, lanes);
            s.w = mbi_mamba2_expand(m, ctx->n_tokens, b, j->dt, lanes + block);
            s.P = mbi_mamba2_expand(m, ctx->n_tokens, b, j->P, lanes + 2 * block);
        }
        s.z = (m->has_norm && m->norm_first) || !j->z ? NULL : j->z + (size_t)b * block;
        s.B = j->turned + g * (size_t)mbi_pad_int(m->d_state, MBI_LANES) * (size_t)ctx->n_tokens;
        s.C = s.B + (size_t)m->n_bc * (size_t)ctx->n_tokens;
        s.D = m->D + b * MBI_LANES;
        s.g = j->h + (size_t)b * (size_t)m->d_state * MBI_LANES;
        s.position = ctx->position;
        s.n_tokens = ctx->n_tokens;
        s.d_state = m->d_state;
        ctx->k->ssd_block(&s);
    }
}

/* The chunked form [Dao & Gu 2024, section 6, listing 1]: for a chunk of Q tokens with
 * s_t = sum_{i<=t} dt_i A (in double) and u = dt x, h the state before the chunk,
 *   y_t = sum_{s<=t} exp(s_t - s_s) (C_t . B_s) u_s  +  exp(s_t) h C_t  +  D x_t
 *   h'  = exp(s_Q) h + sum_s exp(s_Q - s_s) u_s B_s^T
 * as four products on the gemm kernel, in float32, whose layouts need one transposition, that of B:
 *   M^T (s, t)     = B (s, n)  C (n, t)              once for all heads of a group
 *   y (lane, t)    = u (lane, s)  (M * decay) (s, t)   s up to the end of a tile of t
 *   y (lane, t)   += h (lane, n)  (C exp(s_t)) (n, t)
 *   h'(lane, n)   += (u exp(s_Q - s_s)) (lane, s)  B (s, n)
 * 48 tokens to a tile, up to four blocks of 16 channels to a product. */
enum { MBI_CHUNK_BLOCKS = 4, MBI_CHUNK_TILE = 48, MBI_CHUNK_MAX = 256 };

/* Transposed B, [Q/16][d_state seg][16], and M^T, blocked (Q, Q). */
static size_t mbi_pairs_floats(const mbi_mamba2 *m, int chunk) {
    return (size_t)chunk * (size_t)(mbi_pad_int(m->d_state, MBI_LANES) + chunk);
}

/* One task's: u, u exp(s_Q - s_s), y of four blocks; M * decay; C exp(s_t); h; the decays. */
static size_t mbi_chunk_floats(const mbi_mamba2 *m, int chunk) {
    size_t states = (size_t)mbi_pad_int(m->d_state, MBI_LANES);
    size_t q = (size_t)chunk;
    return 3 * MBI_CHUNK_BLOCKS * MBI_LANES * q + q * q + states * q +
           MBI_CHUNK_BLOCKS * MBI_LANES * states + 4 * q;
}

static void mbi_chunk_gemm(const mbi_kernels *k, const float *panels, size_t panel_floats,
                           int n_panels, int cols, const float *x, int x_tokens, int t0, int t1,
                           int add, float *y, size_t y_panel, void *scratch) {
    mbi_mat w;
    mbi_gemm g;
    w = mbi_mat_of(MAMBA_F32, (const unsigned char *)(const void *)panels, n_panels,
                   n_panels * MBI_LANES, cols);
    w.panel_bytes = panel_floats * sizeof(float);
    memset(&g, 0, sizeof g);
    g.w = &w;
    g.x = x;
    g.n_tokens = x_tokens;
    g.add = add;
    g.y = y;
    g.y_panel = y_panel;
    g.y_token = MBI_LANES;
    g.scratch = scratch;
    k->gemm(&g, 0, n_panels, t0, t1);
}

/* B transposed and M of (group, chunk) pairs. */
static void mbi_mamba2_pairs_items(void *arg, int item, int end, int worker) {
    const mbi_mamba2_job *j = (const mbi_mamba2_job *)arg;
    const mbi_mamba2 *m = j->m;
    int T = j->ctx->n_tokens;
    int Q = j->chunk;
    int states = mbi_pad_int(m->d_state, MBI_LANES);
    for (; item < end; item++) {
        int g = item / j->n_chunks;
        int t0 = item % j->n_chunks * Q;
        int q = mbi_min_int(Q, T - t0);
        float *Bt = j->pairs + (size_t)item * mbi_pairs_floats(m, Q);
        float *M = Bt + (size_t)Q * (size_t)states;
        const float *B = j->bc + (size_t)g * (size_t)states * (size_t)T + (size_t)t0 * MBI_LANES;
        const float *C = B + (size_t)m->n_bc * (size_t)T;
        int n;
        int t;
        for (t = 0; t < mbi_pad_int(q, MBI_LANES); t++) {
            float *to = Bt + (size_t)(t / MBI_LANES) * (size_t)states * MBI_LANES + t % MBI_LANES;
            for (n = 0; n < states; n++) {
                to[(size_t)n * MBI_LANES] =
                    t < q ? B[(size_t)(n / MBI_LANES) * (size_t)T * MBI_LANES +
                              (size_t)t * MBI_LANES + (size_t)(n % MBI_LANES)]
                          : 0.0f;
            }
        }
        mbi_chunk_gemm(j->ctx->k, Bt, (size_t)states * MBI_LANES, mbi_pad_int(q, 16) / 16,
                       m->d_state, C, T, 0, q, 0, M, (size_t)Q * MBI_LANES,
                       mbi_worker_scratch(j->ctx, worker));
    }
}

/* One chunk of a run of blocks: all of one head, or one block of several heads. */
typedef struct mbi_chunk_run {
    const mbi_mamba2_job *j;
    int b, n_blocks;
    int t0, q;                       /* its tokens */
    const float *Bt, *M, *C;         /* of its group and chunk */
    float *u, *us, *y, *G, *Ce, *h;  /* see mbi_chunk_floats */
    float *in, *out;                 /* exp(s_t), exp(s_Q - s_t) */
    int masked;                      /* several heads in the block */
    double *sums;                    /* s_t */
    void *scratch;                   /* of gemm */
} mbi_chunk_run;

/* Decays below 2e-35 become 0 here: products with denormals would be slow. */
static float mbi_chunk_exponent(double x) {
    return x > -80.0 ? (float)x : -200.0f;
}

/* Rows of 16 floats. */
static void mbi_chunk_scale(float *MBI_RESTRICT y, const float *MBI_RESTRICT x, float f) {
    int i;
    for (i = 0; i < MBI_LANES; i++) {
        y[i] = x[i] * f;
    }
}

static void mbi_chunk_multiply(float *MBI_RESTRICT y, const float *MBI_RESTRICT x) {
    int i;
    for (i = 0; i < MBI_LANES; i++) {
        y[i] *= x[i];
    }
}

static void mbi_chunk_exponents(float *MBI_RESTRICT y, const double *MBI_RESTRICT sums,
                                double now) {
    int i;
    for (i = 0; i < MBI_LANES; i++) {
        float e = (float)(now - sums[i]);
        y[i] = e > -80.0f ? e : -200.0f;
    }
}

/* s_t and its exponentials for one head. */
static void mbi_chunk_decays(const mbi_chunk_run *r, int head) {
    const mbi_mamba2_job *j = r->j;
    const float *dt = j->dt + (size_t)(head / MBI_LANES) * (size_t)j->ctx->n_tokens * MBI_LANES +
                      (size_t)r->t0 * MBI_LANES + (size_t)(head % MBI_LANES);
    double sum = 0.0;
    int n = mbi_pad_int(r->q, MBI_LANES);
    int t;
    for (t = 0; t < r->q; t++) {
        sum += (double)dt[(size_t)t * MBI_LANES] * (double)j->m->A[head];
        r->sums[t] = sum;
    }
    for (; t < n; t++) {
        r->sums[t] = sum;
    }
    for (t = 0; t < n; t++) {
        r->in[t] = mbi_chunk_exponent(t < r->q ? r->sums[t] : 0.0);
        r->out[t] = mbi_chunk_exponent(t < r->q ? sum - r->sums[t] : 0.0);
    }
    j->ctx->k->exp(r->in, r->in, (size_t)n);
    j->ctx->k->exp(r->out, r->out, (size_t)n);
}

/* G = M * exp(s_t - s_s) for s <= t, else 0; and C exp(s_t). */
static void mbi_chunk_weights(const mbi_chunk_run *r) {
    const mbi_mamba2_job *j = r->j;
    int Q = j->chunk;
    size_t block = (size_t)j->ctx->n_tokens * MBI_LANES;
    int b;
    int t;
    int i;
    for (b = 0; b * MBI_LANES < r->q; b++) {
        float *G = r->G + (size_t)b * (size_t)Q * MBI_LANES; /* sums beyond q: those of q - 1 */
        const float *M = r->M + (size_t)b * (size_t)Q * MBI_LANES;
        int start = b * MBI_LANES;
        int end = mbi_min_int(start + MBI_LANES, r->q);
        memset(G, 0, (size_t)start * MBI_LANES * sizeof(float));
        for (t = start; t < r->q; t++) {
            double now = r->sums[t];
            mbi_chunk_exponents(G + t * MBI_LANES, r->sums + start, now);
        }
        j->ctx->k->exp(G + start * MBI_LANES, G + start * MBI_LANES,
                       (size_t)(r->q - start) * MBI_LANES);
        for (t = start; t < r->q; t++) {
            mbi_chunk_multiply(G + t * MBI_LANES, M + t * MBI_LANES);
        }
        for (t = start; t < end; t++) { /* s > t */
            for (i = t - start + 1; i < MBI_LANES; i++) {
                G[t * MBI_LANES + i] = 0.0f;
            }
        }
    }
    for (b = 0; b < j->m->d_state; b += MBI_LANES) {
        const float *C = r->C + (size_t)(b / MBI_LANES) * block;
        float *Ce = r->Ce + (size_t)b * (size_t)Q;
        for (t = 0; t < r->q; t++) {
            mbi_chunk_scale(Ce + t * MBI_LANES, C + t * MBI_LANES, r->in[t]);
        }
    }
}

/* u, u exp(s_Q - s_t) and h of the lanes whose mask is 1, zero elsewhere. */
static void mbi_chunk_inputs(const mbi_chunk_run *r, int head, const float *mask) {
    const mbi_mamba2_job *j = r->j;
    size_t block = (size_t)j->ctx->n_tokens * MBI_LANES;
    const float *dt = j->dt + (size_t)(head / MBI_LANES) * block + (size_t)r->t0 * MBI_LANES +
                      (size_t)(head % MBI_LANES);
    int states = mbi_pad_int(j->m->d_state, MBI_LANES);
    int n = mbi_pad_int(r->q, MBI_LANES);
    int b;
    int t;
    for (b = 0; b < r->n_blocks; b++) {
        const float *x = j->x + (size_t)(r->b + b) * block + (size_t)r->t0 * MBI_LANES;
        const float *h = j->h + (size_t)(r->b + b) * (size_t)j->m->d_state * MBI_LANES;
        float *u = r->u + (size_t)b * (size_t)j->chunk * MBI_LANES;
        float *us = r->us + (size_t)b * (size_t)j->chunk * MBI_LANES;
        float *to = r->h + (size_t)b * (size_t)states * MBI_LANES;
        for (t = 0; t < r->q; t++, x += MBI_LANES, u += MBI_LANES, us += MBI_LANES) {
            float d = dt[(size_t)t * MBI_LANES];
            float e = r->out[t];
            mbi_chunk_scale(u, x, d);
            if (r->masked) {
                mbi_chunk_multiply(u, mask);
            }
            mbi_chunk_scale(us, u, e);
        }
        memset(u, 0, (size_t)(n - r->q) * MBI_LANES * sizeof(float));
        memset(us, 0, (size_t)(n - r->q) * MBI_LANES * sizeof(float));
        for (t = 0; t < j->m->d_state; t++, h += MBI_LANES, to += MBI_LANES) {
            mbi_chunk_scale(to, h, 1.0f);
            if (r->masked) {
                mbi_chunk_multiply(to, mask);
            }
        }
        memset(to, 0, (size_t)(states - j->m->d_state) * MBI_LANES * sizeof(float));
    }
}

/* h *= decay in the lanes whose mask is 1; values below 2^-100 become 0. */
static void mbi_chunk_decay(float *h, int n, float decay, const float *mask) {
    float factor[MBI_LANES];
    int t;
    int i;
    for (i = 0; i < MBI_LANES; i++) {
        factor[i] = mask[i] > 0.0f ? decay : 1.0f;
    }
    for (t = 0; t < n; t++, h += MBI_LANES) {
        for (i = 0; i < MBI_LANES; i++) {
            float v = h[i] * factor[i];
            h[i] = fabsf(v) > 7.888609052210118e-31f ? v : 0.0f;
        }
    }
}

/* Adds one head's share to y and moves its lanes of the state to the end of the chunk. */
static void mbi_chunk_head(const mbi_chunk_run *r, int head, const float *mask) {
    const mbi_mamba2_job *j = r->j;
    const mbi_kernels *k = j->ctx->k;
    int Q = j->chunk;
    int N = j->m->d_state;
    int states = mbi_pad_int(N, MBI_LANES);
    size_t rows = (size_t)Q * MBI_LANES;
    float *h = j->h + (size_t)r->b * (size_t)N * MBI_LANES;
    int t;
    mbi_chunk_decays(r, head);
    mbi_chunk_weights(r);
    mbi_chunk_inputs(r, head, mask);
    for (t = 0; t < r->q; t += MBI_CHUNK_TILE) {
        int end = mbi_min_int(t + MBI_CHUNK_TILE, r->q);
        mbi_chunk_gemm(k, r->u, rows, r->n_blocks, end, r->G, Q, t, end, 1, r->y, rows,
                       r->scratch);
    }
    mbi_chunk_gemm(k, r->h, (size_t)states * MBI_LANES, r->n_blocks, N, r->Ce, Q, 0, r->q, 1, r->y,
                   rows, r->scratch);
    mbi_chunk_decay(h, r->n_blocks * N, r->in[r->q - 1], mask);
    mbi_chunk_gemm(k, r->us, rows, r->n_blocks, r->q, r->Bt, states, 0, N, 1, h,
                   (size_t)N * MBI_LANES, r->scratch);
}

/* All chunks of a run; y replaces x. */
static void mbi_chunk_blocks(mbi_chunk_run *r) {
    const mbi_mamba2_job *j = r->j;
    const mbi_mamba2 *m = j->m;
    size_t block = (size_t)j->ctx->n_tokens * MBI_LANES;
    int g = r->b * MBI_LANES / m->group_width;
    int states = mbi_pad_int(m->d_state, MBI_LANES);
    int gated = !(m->has_norm && m->norm_first) && j->z;
    int c;
    int b;
    int i;
    int lo;
    for (c = 0; c < j->n_chunks; c++) {
        r->t0 = c * j->chunk;
        r->q = mbi_min_int(j->chunk, j->ctx->n_tokens - r->t0);
        r->Bt = j->pairs + (size_t)(g * j->n_chunks + c) * mbi_pairs_floats(m, j->chunk);
        r->M = r->Bt + (size_t)j->chunk * (size_t)states;
        r->C = j->bc + (size_t)(m->n_bc + g * states) * (size_t)j->ctx->n_tokens +
               (size_t)r->t0 * MBI_LANES;
        for (b = 0; b < r->n_blocks; b++) {
            const float *x = j->x + (size_t)(r->b + b) * block + (size_t)r->t0 * MBI_LANES;
            const float *D = m->D + (r->b + b) * MBI_LANES;
            float *y = r->y + (size_t)b * (size_t)j->chunk * MBI_LANES;
            for (i = 0; i < r->q; i++, x += MBI_LANES, y += MBI_LANES) {
                memcpy(y, x, MBI_LANES * sizeof(float));
                mbi_chunk_multiply(y, D);
            }
        }
        for (lo = 0; lo < MBI_LANES;) {
            int head = mbi_mamba2_head(m, r->b, lo);
            float mask[MBI_LANES] = {0};
            for (; lo < MBI_LANES && mbi_mamba2_head(m, r->b, lo) == head; lo++) {
                mask[lo] = 1.0f;
            }
            mbi_chunk_head(r, head, mask);
        }
        for (b = 0; b < r->n_blocks; b++) {
            size_t at = (size_t)(r->b + b) * block + (size_t)r->t0 * MBI_LANES;
            float *y = r->y + (size_t)b * (size_t)j->chunk * MBI_LANES;
            size_t n = (size_t)r->q * MBI_LANES;
            if (gated) {
                j->ctx->k->gate(y, j->z + at, j->x + at, n);
            } else {
                memcpy(j->x + at, y, n * sizeof(float));
            }
        }
    }
}

/* Convolution and chunked form of a range of blocks; y replaces x. */
static void mbi_mamba2_chunk_blocks(void *arg, int begin, int end, int worker) {
    const mbi_mamba2_job *j = (const mbi_mamba2_job *)arg;
    const mbi_mamba2 *m = j->m;
    size_t rows = (size_t)j->chunk * MBI_LANES;
    size_t states = (size_t)mbi_pad_int(m->d_state, MBI_LANES);
    mbi_chunk_run r;
    memset(&r, 0, sizeof r);
    r.j = j;
    r.u = j->chunk_scratch + (size_t)worker * mbi_chunk_floats(m, j->chunk);
    r.us = r.u + MBI_CHUNK_BLOCKS * rows;
    r.y = r.us + MBI_CHUNK_BLOCKS * rows;
    r.G = r.y + MBI_CHUNK_BLOCKS * rows;
    r.Ce = r.G + (size_t)j->chunk * (size_t)j->chunk;
    r.h = r.Ce + states * (size_t)j->chunk;
    r.in = r.h + MBI_CHUNK_BLOCKS * MBI_LANES * states;
    r.out = r.in + j->chunk;
    r.sums = (double *)(void *)(r.out + j->chunk);
    r.scratch = mbi_worker_scratch(j->ctx, worker);
    for (r.b = begin; r.b < end; r.b += r.n_blocks) {
        int head = mbi_mamba2_head(m, r.b, 0);
        int b;
        for (b = r.b; b < end && b < r.b + MBI_CHUNK_BLOCKS; b++) {
            if (mbi_mamba2_head(m, b, 0) != head ||
                mbi_mamba2_head(m, b, MBI_LANES - 1) != head) {
                break;
            }
        }
        r.masked = b == r.b;
        r.n_blocks = b > r.b ? b - r.b : 1;
        for (b = 0; b < r.n_blocks; b++) {
            mbi_mamba2_conv(j, r.b + b,
                            j->x + (size_t)(r.b + b) * (size_t)j->ctx->n_tokens * MBI_LANES);
            if ((j->ctx->position & 15u) != 0) {
                mbi_mamba2_settle(j, r.b + b);
            }
        }
        mbi_chunk_blocks(&r);
    }
}

/* From the convolved B, C, the raw x and dt to y: by the recurrence, or by chunks. */
static void mbi_mamba2_scan(mbi_mamba2_job *j) {
    const mbi_mamba2 *m = j->m;
    int n_blocks = m->width / MBI_LANES;
    int i;
    if (j->chunk > 0) {
        j->n_chunks = (j->ctx->n_tokens + j->chunk - 1) / j->chunk;
        mbi_region(j->ctx, m->n_groups * j->n_chunks, 1, 1, mbi_mamba2_pairs_items, j);
        mbi_region(j->ctx, n_blocks, MBI_CHUNK_BLOCKS, MBI_CHUNK_BLOCKS, mbi_mamba2_chunk_blocks,
                   j);
        for (i = 0; i < mbi_pad_int(m->n_heads, MBI_LANES); i++) {
            j->last[i] = 1.0f;
        }
    } else {
        mbi_region(j->ctx, n_blocks, 1, 1, mbi_mamba2_scan_blocks, j);
    }
}

/* Tokens to a chunk when the state asks for chunks of time_chunk (a multiple of 16). */
static int mbi_mamba2_chunk(int time_chunk) {
    return mbi_min_int(time_chunk, MBI_CHUNK_MAX);
}

/* Floats that the chunked form needs for T tokens: pairs, then the tasks' own. */
static size_t mbi_mamba2_time_floats(const mbi_mamba2 *m, int n_tokens, int n_tasks, int chunk) {
    return (size_t)((n_tokens + chunk - 1) / chunk) * (size_t)m->n_groups *
               mbi_pairs_floats(m, chunk) +
           (size_t)n_tasks * mbi_chunk_floats(m, chunk);
}

static void mbi_mamba2_forward(mbi_ctx *ctx, const mbi_layer *l, float *state) {
    const mbi_mamba2 *m = &l->u.mamba2;
    size_t block = (size_t)ctx->n_tokens * MBI_LANES;
    size_t width = (size_t)(m->width / MBI_LANES);
    size_t mlp = (size_t)mbi_pad_int(m->d_mlp, MBI_LANES) / MBI_LANES;
    const void *u;
    mbi_mamba2_job j;
    mbi_gate_job gate;
    memset(&j, 0, sizeof j);
    j.ctx = ctx;
    j.m = m;
    j.z = ctx->scratch + mlp * block;
    j.x = j.z + (width + mlp) * block;
    j.bc = j.x + width * block;
    j.dt = ctx->scratch + (size_t)m->in_proj.n_panels * block;
    j.a = j.dt + (size_t)m->dt_in.n_panels * block;
    j.P = j.a + (size_t)m->dt_in.n_panels * block;
    j.turned = j.P + (size_t)m->dt_in.n_panels * block;
    j.conv_state = state;
    j.h = state + (size_t)(m->d_conv - 1) * (size_t)(m->width + 2 * m->n_bc);
    j.last = j.h + (size_t)m->width * (size_t)m->d_state;
    j.chunk = ctx->n_tokens > 1 ? mbi_mamba2_chunk(ctx->time_chunk) : 0;

    MAMBA_PROFILE("norm, in_proj");
    u = mbi_norm_prepare_two(ctx, m->in_proj.type, l->norm, l->norm_eps, m->dt_in.type, &j.u);
    mbi_linear(ctx, &m->in_proj, u, m->in_bias, 0, ctx->scratch);
    MAMBA_PROFILE("conv, dt, scan");
    if (ctx->n_tasks > 1 && ctx->own != MBI_WHOLE_SHARE && ctx->n_tokens >= MBI_MANY_TOKENS) {
        /* its few panels would keep a few threads for long */
        mbi_linear(ctx, &m->dt_in, j.u, NULL, 0, j.dt);
        j.u = NULL;
    }
    mbi_region(ctx, m->dt_in.n_panels + 2 * m->n_bc / MBI_LANES, 1, 1, mbi_mamba2_shared_blocks,
               &j);
    if (j.chunk > 0) {
        j.chunk_scratch = ctx->time_ends;
        j.pairs = j.chunk_scratch + (size_t)ctx->n_tasks * mbi_chunk_floats(m, j.chunk);
    }
    mbi_mamba2_scan(&j);

    MAMBA_PROFILE("gate, out_proj");
    memset(&gate, 0, sizeof gate);
    gate.type = m->out_proj.type;
    gate.n = m->out_proj.cols;
    gate.x = j.x - mlp * block;
    gate.mlp_z = ctx->scratch;
    gate.n_mlp = (int)mlp;
    gate.norm = m->norm;
    gate.eps = m->norm_eps;
    gate.n_groups = m->n_groups;
    gate.group = m->d_ssm / m->n_groups;
    gate.group_blocks = m->group_width / MBI_LANES;
    gate.z = m->has_norm && m->norm_first ? j.z : NULL;
    mbi_linear(ctx, &m->out_proj, mbi_gate_run(ctx, &gate), m->out_bias, 1, ctx->r);
}

/* ------------------------------------------------------------------------------------------------
 * @@mlp   Gated MLP layers                                                               (private)
 *
 *   [v | g] = fc1 u;  r += fc2 (v silu(g))        (mamba_ssm mlp.py: the value is the first half)
 * ---------------------------------------------------------------------------------------------- */
static void mbi_mlp_bind(mbi_binder *b, mbi_layer *l, const mbi_layer_record *record) {
    mbi_mlp *m = &l->u.mlp;
    int d_model = (int)b->m->config.d_model;
    int segments[2];
    if (mbi_bind_param(b, "d_ff", record->u[0], 1, 1 << 22) ||
        mbi_bind_param(b, "flags", record->flags, 0, 0)) {
        return;
    }
    m->d_ff = segments[0] = segments[1] = (int)record->u[0];
    mbi_bind_panels(b, "fc1", segments, 2, d_model, &m->fc1);
    mbi_bind_panels(b, "fc2", &d_model, 1, m->d_ff, &m->fc2);
}

static void mbi_mlp_describe(const mbi_layer *l, mamba_layer_info *info) {
    info->d_inner = l->u.mlp.d_ff;
}

static size_t mbi_mlp_scratch(const mbi_layer *l, int n_tokens) {
    return (size_t)l->u.mlp.fc1.n_panels * MBI_LANES * (size_t)n_tokens;
}

static void mbi_mlp_forward(mbi_ctx *ctx, const mbi_layer *l, float *state) {
    const mbi_mlp *m = &l->u.mlp;
    mbi_gate_job gate;
    (void)state;
    MAMBA_PROFILE("mlp");
    mbi_linear(ctx, &m->fc1, mbi_norm_prepare(ctx, m->fc1.type, l->norm, l->norm_eps), NULL, 0,
               ctx->scratch);
    memset(&gate, 0, sizeof gate);
    gate.type = m->fc2.type;
    gate.n = m->d_ff;
    gate.x = ctx->scratch;
    gate.n_mlp = mbi_pad_int(m->d_ff, MBI_LANES) / MBI_LANES;
    gate.mlp_z = ctx->scratch + (size_t)gate.n_mlp * (size_t)ctx->n_tokens * MBI_LANES;
    mbi_linear(ctx, &m->fc2, mbi_gate_run(ctx, &gate), NULL, 1, ctx->r);
}

/* ------------------------------------------------------------------------------------------------
 * @@attention   Attention layers                                                         (private)
 *
 * As in mamba_ssm mha.py:
 *   [q | k | v | up | gate] = in_proj u + b;  [q | k | v] = conv1d(q | k | v)   (no activation)
 *   the first rotary_dim elements of each head of q and k are rotated by position * frequency
 *   r += out_proj [up silu(gate) | attention(q, k, v)] + b, query head h with key head h*n_kv/n_heads
 * State: fixed: conv inputs (d_conv-1, channels of k, v, q), oldest first; per token: k of all key
 * heads after rotation, then v.
 * ---------------------------------------------------------------------------------------------- */
static void mbi_attention_bind(mbi_binder *b, mbi_layer *l, const mbi_layer_record *record) {
    mbi_attention *m = &l->u.attention;
    const uint32_t *u = record->u;
    int d_model = (int)b->m->config.d_model;
    int segments[5];
    int n = 0;
    int q;
    int kv;
    uint64_t channels;
    if (mbi_bind_param(b, "n_heads", u[0], 1, 4096) ||
        mbi_bind_param(b, "n_kv_heads", u[1], 1, u[0]) ||
        mbi_bind_param(b, "n_heads % n_kv_heads", u[0] % u[1], 0, 0) ||
        mbi_bind_param(b, "headdim", u[2], 1, 1024) ||
        mbi_bind_param(b, "rotary_dim", u[3], 0, u[2]) ||
        mbi_bind_param(b, "rotary_dim % 2", u[3] % 2, 0, 0) ||
        mbi_bind_param(b, "d_conv", u[4], 0, 8) || mbi_bind_param(b, "d_mlp", u[7], 0, 1 << 20) ||
        mbi_bind_param(b, "flags", record->flags, 0, 1)) {
        return;
    }
    m->n_heads = (int)u[0];
    m->n_kv = (int)u[1];
    m->headdim = (int)u[2];
    m->rotary_dim = (int)u[3];
    m->d_conv = (int)u[4];
    m->rotary_base = mbi_bits_f32(u[5]);
    m->scale = mbi_bits_f32(u[6]);
    m->d_mlp = (int)u[7];
    m->adjacent = (int)(record->flags & 1);
    m->head = mbi_pad_int(m->headdim, MBI_LANES);
    if (!mbi_positive(m->scale) || (m->rotary_dim != 0 && !mbi_positive(m->rotary_base))) {
        b->status = mbi_fail(b->err, MAMBA_ERR_FORMAT, "scale and rotary base must be positive",
                             "layers", 0);
        return;
    }
    q = (int)mbi_group_rows(u[0], u[2]);
    kv = (int)mbi_group_rows(u[1], u[2]);
    if (m->d_mlp != 0) {
        segments[n++] = m->d_mlp;
    }
    segments[n++] = kv;
    segments[n++] = kv;
    if (m->d_mlp != 0) {
        segments[n++] = m->d_mlp;
    }
    segments[n++] = q;
    mbi_bind_panels(b, "in_proj", segments, n, d_model, &m->in_proj);
    mbi_bind_panels(b, "out_proj", &d_model, 1, mbi_pad_int(m->d_mlp, MBI_LANES) + q,
                    &m->out_proj);
    channels = (uint64_t)((m->n_heads + 2 * m->n_kv) * m->head);
    m->in_bias = mbi_bind_vector(b, "in_proj_bias", 1,
                                 channels + 2 * (uint64_t)mbi_pad_int(m->d_mlp, MBI_LANES), 1);
    m->out_bias = mbi_bind_vector(b, "out_proj_bias", 1, (uint64_t)mbi_pad_int(d_model, 16), 1);
    if (m->d_conv != 0) {
        m->conv_w = mbi_bind_vector(b, "conv_w", (uint64_t)m->d_conv, channels, 0);
        m->conv_b = mbi_bind_vector(b, "conv_b", 1, channels, 1);
    }
}

static void mbi_attention_describe(const mbi_layer *l, mamba_layer_info *info) {
    const mbi_attention *m = &l->u.attention;
    info->d_inner = m->n_heads * m->headdim + m->d_mlp;
    info->d_conv = m->d_conv;
    info->n_heads = m->n_heads;
    info->headdim = m->headdim;
    info->n_groups = m->n_kv;
}

static int mbi_attention_channels(const mbi_attention *m) {
    return (m->n_heads + 2 * m->n_kv) * m->head;
}

static size_t mbi_attention_fixed(const mbi_layer *l) {
    const mbi_attention *m = &l->u.attention;
    return m->d_conv > 1 ? (size_t)(m->d_conv - 1) * (size_t)mbi_attention_channels(m) : 0;
}

static size_t mbi_attention_per_token(const mbi_layer *l) {
    const mbi_attention *m = &l->u.attention;
    return 2 * (size_t)m->n_kv * (size_t)m->head;
}

/* [gate | k | v | up | q], blocked; then cos, sin of the chunk's positions, (T, rotary_dim/2, 2). */
static size_t mbi_attention_scratch(const mbi_layer *l, int n_tokens) {
    const mbi_attention *m = &l->u.attention;
    return ((size_t)m->in_proj.n_panels * MBI_LANES + (size_t)m->rotary_dim) * (size_t)n_tokens;
}

typedef struct mbi_attention_job {
    mbi_ctx *ctx;
    const mbi_attention *m;
    float *kv, *q;           /* blocked (2*n_kv*head, T), (n_heads*head, T) */
    const float *rotary;
    float *conv_state, *cache;
    size_t per_token;
} mbi_attention_job;

static void mbi_attention_angles(const mbi_attention *m, uint64_t position, int n_tokens,
                                 float *out) {
    int half = m->rotary_dim / 2;
    int i;
    int t;
    for (i = 0; i < half; i++) {
        double frequency = pow((double)m->rotary_base, -2.0 * i / m->rotary_dim);
        for (t = 0; t < n_tokens; t++) {
            double angle = (double)(position + (uint64_t)t) * frequency;
            out[((size_t)t * (size_t)half + (size_t)i) * 2] = (float)cos(angle);
            out[((size_t)t * (size_t)half + (size_t)i) * 2 + 1] = (float)sin(angle);
        }
    }
}

/* Rotates the pairs of one head of all tokens, in place. */
static void mbi_attention_rotate(const mbi_attention_job *j, float *x) {
    const mbi_attention *m = j->m;
    size_t block = (size_t)j->ctx->n_tokens * MBI_LANES;
    int half = m->rotary_dim / 2;
    const float *cs = j->rotary;
    int i;
    int t;
    for (t = 0; t < j->ctx->n_tokens; t++) {
        for (i = 0; i < half; i++, cs += 2) {
            int first = m->adjacent ? 2 * i : i;
            int second = m->adjacent ? 2 * i + 1 : i + half;
            float *a = x + (size_t)(first / MBI_LANES) * block + t * MBI_LANES + first % MBI_LANES;
            float *b = x + (size_t)(second / MBI_LANES) * block + t * MBI_LANES +
                       second % MBI_LANES;
            double va = (double)*a;
            double vb = (double)*b;
            *a = (float)(va * (double)cs[0] - vb * (double)cs[1]);
            *b = (float)(va * (double)cs[1] + vb * (double)cs[0]);
        }
    }
}

/* Convolution and rotation, head by head; k and v go into the cache. */
static void mbi_attention_heads(void *arg, int unit, int end, int worker) {
    const mbi_attention_job *j = (const mbi_attention_job *)arg;
    const mbi_attention *m = j->m;
    const mbi_ctx *ctx = j->ctx;
    size_t block = (size_t)ctx->n_tokens * MBI_LANES;
    int blocks = m->head / MBI_LANES;
    (void)worker;
    for (; unit < end; unit++) { /* heads of k, v, q */
        float *x = unit < 2 * m->n_kv
                       ? j->kv + (size_t)(unit * blocks) * block
                       : j->q + (size_t)((unit - 2 * m->n_kv) * blocks) * block;
        int b;
        int t;
        for (b = 0; b < blocks && m->d_conv != 0; b++) {
            int c = unit * m->head + b * MBI_LANES;
            ctx->k->conv(x + (size_t)b * block, m->conv_w + c, m->conv_b ? m->conv_b + c : NULL,
                         m->d_conv, 0, ctx->n_tokens, j->conv_state + c,
                         (size_t)mbi_attention_channels(m), x + (size_t)b * block);
        }
        if (unit < m->n_kv || unit >= 2 * m->n_kv) {
            mbi_attention_rotate(j, x);
        }
        for (t = 0; t < ctx->n_tokens && unit < 2 * m->n_kv; t++) {
            float *row = j->cache + (size_t)(ctx->position + (uint64_t)t) * j->per_token +
                         (size_t)unit * (size_t)m->head;
            for (b = 0; b < blocks; b++) {
                memcpy(row + b * MBI_LANES, x + (size_t)b * block + t * MBI_LANES,
                       MBI_LANES * sizeof(float));
            }
        }
    }
}

/* Attention of the chunk's tokens, a range of heads; the result replaces q. */
static void mbi_attention_range(void *arg, int h, int end, int worker) {
    const mbi_attention_job *j = (const mbi_attention_job *)arg;
    const mbi_attention *m = j->m;
    const mbi_ctx *ctx = j->ctx;
    size_t block = (size_t)ctx->n_tokens * MBI_LANES;
    int t;
    (void)worker;
    for (; h < end; h++) {
        int kv = h / (m->n_heads / m->n_kv);
        for (t = 0; t < ctx->n_tokens; t++) {
            mbi_attend a;
            a.q = a.out = j->q + (size_t)(h * (m->head / MBI_LANES)) * block + t * MBI_LANES;
            a.k = j->cache + (size_t)kv * (size_t)m->head;
            a.v = a.k + (size_t)m->n_kv * (size_t)m->head;
            a.stride = block;
            a.kv_stride = j->per_token;
            a.n_keys = ctx->position + (uint64_t)t + 1;
            a.width = m->head;
            a.scale = m->scale;
            ctx->k->attend(&a);
        }
    }
}

static void mbi_attention_forward(mbi_ctx *ctx, const mbi_layer *l, float *state) {
    const mbi_attention *m = &l->u.attention;
    size_t block = (size_t)ctx->n_tokens * MBI_LANES;
    size_t mlp = (size_t)mbi_pad_int(m->d_mlp, MBI_LANES) / MBI_LANES;
    float *rotary = ctx->scratch + (size_t)m->in_proj.n_panels * block;
    mbi_attention_job j;
    mbi_gate_job gate;
    j.ctx = ctx;
    j.m = m;
    j.kv = ctx->scratch + mlp * block;
    j.q = j.kv + ((size_t)(2 * m->n_kv * m->head) / MBI_LANES + mlp) * block;
    j.rotary = rotary;
    j.conv_state = state;
    j.cache = state + mbi_attention_fixed(l);
    j.per_token = mbi_attention_per_token(l);

    MAMBA_PROFILE("attention");
    mbi_linear(ctx, &m->in_proj, mbi_norm_prepare(ctx, m->in_proj.type, l->norm, l->norm_eps),
               m->in_bias, 0, ctx->scratch);
    mbi_attention_angles(m, ctx->position, ctx->n_tokens, rotary);
    mbi_region(ctx, m->n_heads + 2 * m->n_kv, 1, 1, mbi_attention_heads, &j);
    mbi_region(ctx, m->n_heads, 1, 1, mbi_attention_range, &j);

    memset(&gate, 0, sizeof gate);
    gate.type = m->out_proj.type;
    gate.n = m->out_proj.cols;
    gate.x = j.q - mlp * block;
    gate.mlp_z = ctx->scratch;
    gate.n_mlp = (int)mlp;
    mbi_linear(ctx, &m->out_proj, mbi_gate_run(ctx, &gate), m->out_bias, 1, ctx->r);
}

/* ------------------------------------------------------------------------------------------------
 * @@layers   The table of kinds                                                          (private)
 * ---------------------------------------------------------------------------------------------- */
static const mbi_layer_ops mbi_layer_table[] = {
    {MAMBA_LAYER_MAMBA1, mbi_mamba1_bind, mbi_mamba1_describe, mbi_mamba1_state, mbi_no_floats,
     mbi_mamba1_scratch, mbi_mamba1_forward},
    {MAMBA_LAYER_MAMBA2, mbi_mamba2_bind, mbi_mamba2_describe, mbi_mamba2_state, mbi_no_floats,
     mbi_mamba2_scratch, mbi_mamba2_forward},
    {MAMBA_LAYER_ATTENTION, mbi_attention_bind, mbi_attention_describe, mbi_attention_fixed,
     mbi_attention_per_token, mbi_attention_scratch, mbi_attention_forward},
    {MAMBA_LAYER_MLP, mbi_mlp_bind, mbi_mlp_describe, mbi_no_floats, mbi_no_floats,
     mbi_mlp_scratch, mbi_mlp_forward},
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
    s->chunk = o.prefill_chunk ? o.prefill_chunk : 512;
    s->time_chunk = mbi_pad_int(o.time_chunk, MBI_LANES);
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
    uint64_t ends = 0;
    uint64_t sums = 0;
    uint64_t groups = 0;
    mbi_ctx *c = &s->ctx;
    int i;
    for (i = 0; i < (int)m->config.n_layers; i++) {
        const mbi_layer *l = &m->layers[i];
        uint64_t n = l->ops->scratch(l, s->chunk);
        scratch = n > scratch ? n : scratch;
        if (l->ops->kind == MAMBA_LAYER_MAMBA1) {
            n = (uint64_t)mbi_groups(l->u.mamba1.d_inner);
            groups = n > groups ? n : groups;
            n = s->time_chunk > 0 ? mbi_mamba1_time_sums(l, s->chunk, s->time_chunk) : 0;
            sums = n > sums ? n : sums;
            n *= (uint64_t)l->u.mamba1.d_state;
            ends = n > ends ? n : ends;
        }
        if (s->time_chunk > 0 && l->ops->kind == MAMBA_LAYER_MAMBA2) {
            n = mbi_mamba2_time_floats(&l->u.mamba2, s->chunk, s->n_tasks,
                                       mbi_mamba2_chunk(s->time_chunk));
            ends = n > ends ? n : ends;
        }
        recurrent += mbi_layer_state_floats(l, s->max_tokens);
    }
    mbi_arena_take(a, 1, sizeof *s);
    s->n_recurrent = (size_t)recurrent;
    s->recurrent = (float *)mbi_arena_take(a, recurrent, 4);
    s->last = (float *)mbi_arena_take(a, 2 * width, 4);
    c->r = (float *)mbi_arena_take(a, width * T, 4);
    c->u = (float *)mbi_arena_take(a, width * T, 4);
    c->prepared = (unsigned char *)mbi_arena_take(a, mbi_prepared_bytes(m, s->chunk), 1);
    c->ready = (unsigned char *)mbi_arena_take(a, mbi_prepared_bytes(m, s->chunk), 1);
    c->spare = (unsigned char *)mbi_arena_take(a, mbi_prepared_bytes(m, s->chunk), 1);
    c->made = (int *)mbi_arena_take(a, groups, sizeof(int));
    c->workers = (mbi_worker *)mbi_arena_take(a, (uint64_t)s->n_tasks, sizeof *c->workers);
    c->task_bytes = (size_t)(MBI_GEMM_SCRATCH + MBI_TASK_BLOCKS * T * MBI_LANES * 4);
    c->task_scratch = (unsigned char *)mbi_arena_take(a, (uint64_t)s->n_tasks, c->task_bytes);
    c->scratch = (float *)mbi_arena_take(a, scratch, 4);
    c->time_ends = (float *)mbi_arena_take(a, ends, 4);
    c->time_sums = (double *)mbi_arena_take(a, sums, 8);
    c->model = m;
    c->k = &m->target->k;
    c->parallel = m->parallel.run ? &m->parallel : NULL;
    c->n_tasks = s->n_tasks;
    c->n_threads = c->parallel ? s->n_tasks : mbi_at_once(s->n_tasks);
    c->time_chunk = s->time_chunk;
}

typedef struct mbi_embed_job {
    const mbi_ctx *c;
    const mamba_io *io;
    size_t start;
} mbi_embed_job;

static void mbi_embed_tokens(void *arg, int t, int end, int worker) {
    const mbi_embed_job *j = (const mbi_embed_job *)arg;
    const mbi_ctx *c = j->c;
    const mamba_io *io = j->io;
    const mamba_model *m = c->model;
    size_t block = (size_t)c->n_tokens * MBI_LANES;
    size_t d_model = m->config.d_model;
    float scale = m->config.embedding_scale;
    size_t i;
    (void)worker;
    for (; t < end; t++) {
        float *r = c->r + (size_t)t * MBI_LANES;
        if (io->tokens) {
            int row = io->tokens[j->start + (size_t)t];
            int part = row >= m->embedding[0].rows;
            c->k->row(&m->embedding[part], row - part * m->embedding[0].rows, r, block);
        } else {
            const float *v = io->vectors + (j->start + (size_t)t) * d_model;
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

/* The residual stream of a chunk: rows of the embedding, or the caller's vectors. */
static void mbi_embed(const mbi_ctx *c, const mamba_io *io, size_t start) {
    mbi_embed_job j;
    j.c = c;
    j.io = io;
    j.start = start;
    mbi_region(c, c->n_tokens, 16, 16, mbi_embed_tokens, &j);
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
    const void *x;
    MAMBA_PROFILE("norm, head");
    x = mbi_norm_prepare(c, m->config.n_vocab ? m->head[0].type : MAMBA_F32, m->norm_f,
                         m->config.norm_eps);
    if (hidden) {
        mbi_unblock(c->u, c->n_tokens, m->config.d_model, hidden);
    }
    if (logits) {
        mbi_gemm g;
        int part;
        memset(&g, 0, sizeof g);
        g.x = x;
        g.n_tokens = c->n_tokens;
        g.exact_rows = 1;
        g.y = logits;
        g.y_panel = MBI_LANES;
        g.y_token = m->config.n_vocab;
        for (part = 0; part < 2 && m->head[part].rows > 0; part++) {
            g.w = &m->head[part];
            mbi_matmul(c, &g);
            g.y += m->head[part].rows;
        }
        if (m->config.logit_scale < 1.0f || m->config.logit_scale > 1.0f) {
            size_t n = (size_t)c->n_tokens * m->config.n_vocab;
            size_t i;
            for (i = 0; i < n; i++) {
                logits[i] *= m->config.logit_scale;
            }
        }
    }
}

/* What a worker begins with in the regions of so many tokens.  d_model^2 stands for the weights of
 * a layer.  For a few tokens it is them that take the time, and they are read fastest in one go; a
 * little is dealt out all the same where that takes long enough.  Among many threads, one is always
 * late.  (Tests set the size of what is short to 0: all is dealt out.) */
#ifndef MBI_SHORT_REGION
#define MBI_SHORT_REGION (1 << 20)
#endif

static int mbi_own_share(const mbi_ctx *c, int n_tokens) {
    uint64_t weights = (uint64_t)c->model->config.d_model * c->model->config.d_model;
    uint64_t is_short = (uint64_t)MBI_SHORT_REGION;
    int many = c->n_threads > 4;
    if (n_tokens >= MBI_MANY_TOKENS) {
        uint64_t work = weights * (uint64_t)n_tokens / (uint64_t)c->n_threads / 4;
        return work < is_short ? MBI_WHOLE_SHARE : 6;
    }
    return (many ? weights * 2 : weights / 2) < is_short ? MBI_WHOLE_SHARE : many ? 6 : 7;
}

/* One chunk of at most s->chunk tokens from io, starting at `start`. */
static void mbi_forward(mamba_state *s, const mamba_parallel *parallel, const mamba_io *io,
                        size_t start, int n_tokens) {
    const mamba_model *m = s->model;
    mbi_ctx c = s->ctx;
    float *state = s->recurrent;
    int is_last = start + (size_t)n_tokens == io->n;
    int i;
    c.parallel = parallel;
    c.n_tokens = n_tokens;
    c.own = mbi_own_share(&c, n_tokens);
    c.position = s->position;
    MAMBA_PROFILE("embedding");
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
        size_t width = (size_t)mbi_pad(m->config.d_model, MBI_LANES);
        size_t b;
        for (b = 0; b < width / MBI_LANES; b++) {
            memcpy(s->last + b * MBI_LANES,
                   c.r + (b * (size_t)n_tokens + (size_t)n_tokens - 1) * MBI_LANES,
                   MBI_LANES * sizeof(float));
        }
        c.r = s->last;
        c.u = s->last + width;
        c.n_tokens = 1;
        c.own = mbi_own_share(&c, 1);
        mbi_output(&c, io->want_hidden == MAMBA_WANT_LAST ? io->hidden : NULL,
                   io->want_logits == MAMBA_WANT_LAST ? io->logits : NULL);
    }
}

typedef struct mbi_run_job {
    mamba_state *state;
    const mamba_io *io;
} mbi_run_job;

/* Everything in io, chunk by chunk. */
static void mbi_run_chunks(void *arg, const mamba_parallel *parallel) {
    const mbi_run_job *j = (const mbi_run_job *)arg;
    size_t chunk = (size_t)j->state->chunk;
    size_t start;
    for (start = 0; start < j->io->n; start += chunk) {
        mbi_forward(j->state, parallel, j->io, start, (int)mbi_min_size(chunk, j->io->n - start));
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
 *    0  8  magic "MAMBAST\n"        8  4  version = 2        12  4  0x01020304
 *   16  8  total bytes             24  8  fingerprint of the model file
 *   32  8  position                40  8  number of floats   48  8  reserved, 0
 *   56  8  XXH64 (seed 0) of bytes [0, 56) followed by [64, total)
 *   64     per layer: the fixed part of its state, then the per-token part of the tokens fed
 * ---------------------------------------------------------------------------------------------- */
enum { MBI_SNAPSHOT_HEADER = 64, MBI_SNAPSHOT_VERSION = 2 };
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
                              "version", 8, mbi_load_u32(p + 8), MBI_SNAPSHOT_VERSION,
                              MBI_SNAPSHOT_VERSION);
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
    uint64_t matrix = t->bytes / t->count;
    uint64_t bases = mbi_bases_bytes((mamba_type)t->type, mbi_padded_rows(t) / MBI_LANES);
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
        for (i = matrix - bases; i < t->bytes;
             i += i % matrix == matrix - 4 ? matrix - bases + 4 : 4) {
            if ((mbi_load_u32(p + i) & 0x7f800000u) == 0x7f800000u) {
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
 * @@unicode   Tables, classes, UTF-8, decomposition and composition                   (private)
 * ---------------------------------------------------------------------------------------------- */
/* Unicode. The tables below are derived from the Unicode Character Database (copyright Unicode,
 * Inc.; terms at unicode.org) by tools/unicode.c, which can reprint them:
 *   mbi_uc_classes    where the class changes: code point << 3 | class, rising. Class bits 0-1:
 *                     other, letter (L*), number (N*), white space; bit 2 (MBI_UC_NFC): combining
 *                     class not 0, or cannot stand in NFC text wherever it likes
 *   mbi_uc_punctuation  where punctuation (P*) and anything else begins, in turns, from 0 on:
 *                     ASCII's as in C, beyond it as of Unicode 8, which published tokenizers keep to
 *   mbi_uc_combining  where the canonical combining class changes: code point << 8 | class
 *   mbi_uc_cjk1/2     canonical singletons of U+F900..FAFF and U+2F800..2FA1F, 0 = none
 *   mbi_uc_pairs      all other canonical mappings, one step: cp << 42 | first << 21 | second,
 *                     rising; second = 0 in a singleton
 *   mbi_uc_compose    the indices in mbi_uc_pairs that compose, ordered by (first, second) */
/* unicode tables: begin (Unicode 15.0.0; made by tools/unicode.c) */
static const uint32_t mbi_uc_classes[] = {
    0,0x4B,0x70,0x103,0x108,0x182,0x1D0,0x209,0x2D8,0x309,0x3D8,0x42B,0x430,0x503,0x508,0x551,
    0x558,0x592,0x5A0,0x5A9,0x5B0,0x5CA,0x5D1,0x5D8,0x5E2,0x5F8,0x601,0x6B8,0x6C1,0x7B8,0x7C1,
    0x1610,0x1631,0x1690,0x1701,0x1728,0x1761,0x1768,0x1771,0x1778,0x1804,0x1A78,0x1A84,0x1B81,
    0x1BA5,0x1BA8,0x1BB1,0x1BC0,0x1BD1,0x1BF4,0x1BF9,0x1C00,0x1C31,0x1C3C,0x1C41,0x1C58,0x1C61,
    0x1C68,0x1C71,0x1D10,0x1D19,0x1FB0,0x1FB9,0x2410,0x241C,0x2440,0x2451,0x2980,0x2989,0x2AB8,
    0x2AC9,0x2AD0,0x2B01,0x2C48,0x2C8C,0x2DF0,0x2DFC,0x2E00,0x2E0C,0x2E18,0x2E24,0x2E30,0x2E3C,
    0x2E40,0x2E81,0x2F58,0x2F79,0x2F98,0x3084,0x30D8,0x3101,0x325C,0x3302,0x3350,0x3371,0x3384,
    0x3389,0x36A0,0x36A9,0x36B4,0x36E8,0x36FC,0x3729,0x373C,0x3748,0x3754,0x3771,0x3782,0x37D1,
    0x37E8,0x37F9,0x3800,0x3881,0x388C,0x3891,0x3984,0x3A58,0x3A69,0x3D30,0x3D89,0x3D90,0x3E02,
    0x3E51,0x3F5C,0x3FA1,0x3FB0,0x3FD1,0x3FD8,0x3FEC,0x3FF0,0x4001,0x40B4,0x40D1,0x40DC,0x4121,
    0x412C,0x4141,0x414C,0x4170,0x4201,0x42CC,0x42E0,0x4301,0x4358,0x4381,0x4440,0x4449,0x4478,
    0x44C4,0x4501,0x4654,0x4710,0x471C,0x4800,0x4821,0x49D0,0x49E4,0x49E9,0x49F0,0x4A6C,0x4A70,
    0x4A81,0x4A8C,0x4AA8,0x4AC5,0x4B01,0x4B10,0x4B32,0x4B80,0x4B89,0x4C08,0x4C29,0x4C68,0x4C79,
    0x4C88,0x4C99,0x4D48,0x4D51,0x4D88,0x4D91,0x4D98,0x4DB1,0x4DD0,0x4DE4,0x4DE9,0x4DF4,0x4DF8,
    0x4E6C,0x4E71,0x4E78,0x4EBC,0x4EC0,0x4EE5,0x4EF0,0x4EFD,0x4F01,0x4F10,0x4F32,0x4F81,0x4F90,
    0x4FA2,0x4FD0,0x4FE1,0x4FE8,0x4FF4,0x4FF8,0x5029,0x5058,0x5079,0x5088,0x5099,0x5148,0x5151,
    0x5188,0x5191,0x519D,0x51A0,0x51A9,0x51B5,0x51B8,0x51C1,0x51D0,0x51E4,0x51E8,0x526C,0x5270,
    0x52CD,0x52E1,0x52E8,0x52F5,0x52F8,0x5332,0x5380,0x5391,0x53A8,0x5429,0x5470,0x5479,0x5490,
    0x5499,0x5548,0x5551,0x5588,0x5591,0x55A0,0x55A9,0x55D0,0x55E4,0x55E9,0x55F0,0x566C,0x5670,
    0x5681,0x5688,0x5701,0x5710,0x5732,0x5780,0x57C9,0x57D0,0x5829,0x5868,0x5879,0x5888,0x5899,
    0x5948,0x5951,0x5988,0x5991,0x59A0,0x59A9,0x59D0,0x59E4,0x59E9,0x59F4,0x59F8,0x5A6C,0x5A70,
    0x5AB4,0x5AC0,0x5AE5,0x5AF0,0x5AF9,0x5B10,0x5B32,0x5B80,0x5B89,0x5B92,0x5BC0,0x5C19,0x5C20,
    0x5C29,0x5C58,0x5C71,0x5C88,0x5C91,0x5CB0,0x5CC9,0x5CD8,0x5CE1,0x5CE8,0x5CF1,0x5D00,0x5D19,
    0x5D28,0x5D41,0x5D58,0x5D71,0x5DD0,0x5DF4,0x5DF8,0x5E6C,0x5E70,0x5E81,0x5E88,0x5EBC,0x5EC0,
    0x5F32,0x5F98,0x6029,0x6068,0x6071,0x6088,0x6091,0x6148,0x6151,0x61D0,0x61E4,0x61E9,0x61F0,
    0x626C,0x6270,0x62AC,0x62B8,0x62C1,0x62D8,0x62E9,0x62F0,0x6301,0x6310,0x6332,0x6380,0x63C2,
    0x63F8,0x6401,0x6408,0x6429,0x6468,0x6471,0x6488,0x6491,0x6548,0x6551,0x65A0,0x65A9,0x65D0,
    0x65E4,0x65E9,0x65F0,0x6614,0x6618,0x666C,0x6670,0x66AC,0x66B8,0x66E9,0x66F8,0x6701,0x6710,
    0x6732,0x6780,0x6789,0x6798,0x6821,0x6868,0x6871,0x6888,0x6891,0x69DC,0x69E9,0x69F4,0x69F8,
    0x6A6C,0x6A71,0x6A78,0x6AA1,0x6ABC,0x6AC2,0x6AF9,0x6B10,0x6B32,0x6BC8,0x6BD1,0x6C00,0x6C29,
    0x6CB8,0x6CD1,0x6D90,0x6D99,0x6DE0,0x6DE9,0x6DF0,0x6E01,0x6E38,0x6E54,0x6E58,0x6E7C,0x6E80,
    0x6EFC,0x6F00,0x6F32,0x6F80,0x7009,0x7188,0x7191,0x71A0,0x71C4,0x71D8,0x7201,0x7238,0x7244,
    0x7260,0x7282,0x72D0,0x7409,0x7418,0x7421,0x7428,0x7431,0x7458,0x7461,0x7520,0x7529,0x7530,
    0x7539,0x7588,0x7591,0x75A0,0x75C4,0x75D8,0x75E9,0x75F0,0x7601,0x7628,0x7631,0x7638,0x7644,
    0x7660,0x7682,0x76D0,0x76E1,0x7700,0x7801,0x7808,0x78C4,0x78D0,0x7902,0x79A0,0x79AC,0x79B0,
    0x79BC,0x79C0,0x79CC,0x79D0,0x7A01,0x7A1D,0x7A21,0x7A40,0x7A49,0x7A6D,0x7A71,0x7A95,0x7A99,
    0x7ABD,0x7AC1,0x7AE5,0x7AE9,0x7B4D,0x7B51,0x7B68,0x7B8C,0x7BB8,0x7BC4,0x7BC8,0x7BD4,0x7BF0,
    0x7C04,0x7C28,0x7C34,0x7C41,0x7C68,0x7C9C,0x7CA0,0x7CEC,0x7CF0,0x7D14,0x7D18,0x7D3C,0x7D40,
    0x7D64,0x7D68,0x7DCC,0x7DD0,0x7E34,0x7E38,0x8001,0x8158,0x8174,0x8178,0x81BC,0x81C0,0x81CC,
    0x81D8,0x81F9,0x8202,0x8250,0x8281,0x82B0,0x82D1,0x82F0,0x8309,0x8310,0x8329,0x8338,0x8371,
    0x8388,0x83A9,0x8410,0x846C,0x8471,0x8478,0x8482,0x84D0,0x8501,0x8630,0x8639,0x8640,0x8669,
    0x8670,0x8681,0x87D8,0x87E1,0x8B0D,0x8BB1,0x8D45,0x8E19,0x9248,0x9251,0x9270,0x9281,0x92B8,
    0x92C1,0x92C8,0x92D1,0x92F0,0x9301,0x9448,0x9451,0x9470,0x9481,0x9588,0x9591,0x95B0,0x95C1,
    0x95F8,0x9601,0x9608,0x9611,0x9630,0x9641,0x96B8,0x96C1,0x9888,0x9891,0x98B0,0x98C1,0x9AD8,
    0x9AEC,0x9B00,0x9B4A,0x9BE8,0x9C01,0x9C80,0x9D01,0x9FB0,0x9FC1,0x9FF0,0xA009,0xB368,0xB379,
    0xB403,0xB409,0xB4D8,0xB501,0xB758,0xB772,0xB789,0xB7C8,0xB801,0xB890,0xB8A4,0xB8B0,0xB8F9,
    0xB990,0xB9A4,0xB9A8,0xBA01,0xBA90,0xBB01,0xBB68,0xBB71,0xBB88,0xBC01,0xBDA0,0xBE94,0xBE98,
    0xBEB9,0xBEC0,0xBEE1,0xBEEC,0xBEF0,0xBF02,0xBF50,0xBF82,0xBFD0,0xC082,0xC0D0,0xC101,0xC3C8,
    0xC401,0xC428,0xC439,0xC54C,0xC551,0xC558,0xC581,0xC7B0,0xC801,0xC8F8,0xC9CC,0xC9E0,0xCA32,
    0xCA81,0xCB70,0xCB81,0xCBA8,0xCC01,0xCD60,0xCD81,0xCE50,0xCE82,0xCED8,0xD001,0xD0BC,0xD0C8,
    0xD101,0xD2A8,0xD304,0xD308,0xD3AC,0xD3E8,0xD3FC,0xD402,0xD450,0xD482,0xD4D0,0xD539,0xD540,
    0xD584,0xD5F0,0xD5FC,0xD678,0xD829,0xD9A4,0xD9B0,0xDA24,0xDA29,0xDA68,0xDA82,0xDAD0,0xDB5C,
    0xDBA0,0xDC19,0xDD08,0xDD54,0xDD60,0xDD71,0xDD82,0xDDD1,0xDF34,0xDF38,0xDF94,0xDFA0,0xE001,
    0xE120,0xE1BC,0xE1C0,0xE202,0xE250,0xE269,0xE282,0xE2D1,0xE3F0,0xE401,0xE448,0xE481,0xE5D8,
    0xE5E9,0xE600,0xE684,0xE698,0xE6A4,0xE708,0xE714,0xE749,0xE76C,0xE771,0xE7A4,0xE7A9,0xE7B8,
    0xE7C4,0xE7D1,0xE7D8,0xE801,0xEE04,0xF001,0xF8B0,0xF8C1,0xF8F0,0xF901,0xFA30,0xFA41,0xFA70,
    0xFA81,0xFAC0,0xFAC9,0xFAD0,0xFAD9,0xFAE0,0xFAE9,0xFAF0,0xFAF9,0xFB8D,0xFB91,0xFB9D,0xFBA1,
    0xFBAD,0xFBB1,0xFBBD,0xFBC1,0xFBCD,0xFBD1,0xFBDD,0xFBE1,0xFBED,0xFBF0,0xFC01,0xFDA8,0xFDB1,
    0xFDDD,0xFDE1,0xFDE8,0xFDF5,0xFDF8,0xFE11,0xFE28,0xFE31,0xFE4D,0xFE51,0xFE5D,0xFE61,0xFE68,
    0xFE81,0xFE9D,0xFEA0,0xFEB1,0xFEDD,0xFEE0,0xFF01,0xFF1D,0xFF21,0xFF5D,0xFF61,0xFF68,0xFF74,
    0xFF80,0xFF91,0xFFA8,0xFFB1,0xFFCD,0xFFD1,0xFFDD,0xFFE1,0xFFEC,0xFFF0,0x10007,0x10013,0x10058,
    0x10143,0x10150,0x1017B,0x10180,0x102FB,0x10300,0x10382,0x10389,0x10390,0x103A2,0x103D0,
    0x103F9,0x10402,0x10450,0x10481,0x104E8,0x10684,0x106E8,0x1070C,0x10710,0x1072C,0x10788,
    0x10811,0x10818,0x10839,0x10840,0x10851,0x108A0,0x108A9,0x108B0,0x108C9,0x108F0,0x10921,
    0x10928,0x10935,0x10938,0x10941,0x10948,0x10955,0x10961,0x10970,0x10979,0x109D0,0x109E1,
    0x10A00,0x10A29,0x10A50,0x10A71,0x10A78,0x10A82,0x10C19,0x10C2A,0x10C50,0x1194C,0x11958,
    0x12302,0x124E0,0x12752,0x12800,0x13BB2,0x13CA0,0x156E4,0x156E8,0x16001,0x16728,0x16759,
    0x1677C,0x16791,0x167A0,0x167EA,0x167F0,0x16801,0x16930,0x16939,0x16940,0x16969,0x16970,
    0x16981,0x16B40,0x16B79,0x16B80,0x16BFC,0x16C01,0x16CB8,0x16D01,0x16D38,0x16D41,0x16D78,
    0x16D81,0x16DB8,0x16DC1,0x16DF8,0x16E01,0x16E38,0x16E41,0x16E78,0x16E81,0x16EB8,0x16EC1,
    0x16EF8,0x16F04,0x17000,0x17179,0x17180,0x18003,0x18008,0x18029,0x1803A,0x18040,0x1810A,
    0x18154,0x18180,0x18189,0x181B0,0x181C2,0x181D9,0x181E8,0x18209,0x184B8,0x184CC,0x184D8,
    0x184E9,0x18500,0x18509,0x187D8,0x187E1,0x18800,0x18829,0x18980,0x18989,0x18C78,0x18C92,
    0x18CB0,0x18D01,0x18E00,0x18F81,0x19000,0x19102,0x19150,0x19242,0x19280,0x1928A,0x19300,
    0x19402,0x19450,0x1958A,0x19600,0x1A001,0x26E00,0x27001,0x52468,0x52681,0x527F0,0x52801,
    0x53068,0x53081,0x53102,0x53151,0x53160,0x53201,0x5337C,0x53380,0x533A4,0x533F0,0x533F9,
    0x534F4,0x53501,0x53732,0x53784,0x53790,0x538B9,0x53900,0x53911,0x53C48,0x53C59,0x53E58,
    0x53E81,0x53E90,0x53E99,0x53EA0,0x53EA9,0x53ED0,0x53F91,0x54010,0x54019,0x54034,0x54039,
    0x54058,0x54061,0x54118,0x54164,0x54168,0x54182,0x541B0,0x54201,0x543A0,0x54411,0x545A0,
    0x54624,0x54628,0x54682,0x546D0,0x54704,0x54791,0x547C0,0x547D9,0x547E0,0x547E9,0x547F8,
    0x54802,0x54851,0x54930,0x5495C,0x54970,0x54981,0x54A38,0x54A9C,0x54AA0,0x54B01,0x54BE8,
    0x54C21,0x54D9C,0x54DA0,0x54E04,0x54E08,0x54E79,0x54E82,0x54ED0,0x54F01,0x54F28,0x54F31,
    0x54F82,0x54FD1,0x54FF8,0x55001,0x55148,0x55201,0x55218,0x55221,0x55260,0x55282,0x552D0,
    0x55301,0x553B8,0x553D1,0x553D8,0x553F1,0x55584,0x55589,0x55594,0x555A9,0x555BC,0x555C9,
    0x555F4,0x55601,0x5560C,0x55611,0x55618,0x556D9,0x556F0,0x55701,0x55758,0x55791,0x557A8,
    0x557B4,0x557B8,0x55809,0x55838,0x55849,0x55878,0x55889,0x558B8,0x55901,0x55938,0x55941,
    0x55978,0x55981,0x55AD8,0x55AE1,0x55B50,0x55B81,0x55F18,0x55F6C,0x55F70,0x55F82,0x55FD0,
    0x56001,0x6BD20,0x6BD81,0x6BE38,0x6BE59,0x6BFE0,0x7C805,0x7D071,0x7D085,0x7D089,0x7D095,
    0x7D099,0x7D0AD,0x7D0F9,0x7D105,0x7D109,0x7D115,0x7D119,0x7D12D,0x7D139,0x7D155,0x7D370,
    0x7D385,0x7D6D0,0x7D801,0x7D838,0x7D899,0x7D8C0,0x7D8ED,0x7D8F4,0x7D8FD,0x7D901,0x7D948,
    0x7D955,0x7D9B8,0x7D9C5,0x7D9E8,0x7D9F5,0x7D9F8,0x7DA05,0x7DA10,0x7DA1D,0x7DA28,0x7DA35,
    0x7DA79,0x7DD90,0x7DE99,0x7E9F0,0x7EA81,0x7EC80,0x7EC91,0x7EE40,0x7EF81,0x7EFE0,0x7F104,
    0x7F180,0x7F381,0x7F3A8,0x7F3B1,0x7F7E8,0x7F882,0x7F8D0,0x7F909,0x7F9D8,0x7FA09,0x7FAD8,
    0x7FB31,0x7FDF8,0x7FE11,0x7FE40,0x7FE51,0x7FE80,0x7FE91,0x7FEC0,0x7FED1,0x7FEE8,0x80001,
    0x80060,0x80069,0x80138,0x80141,0x801D8,0x801E1,0x801F0,0x801F9,0x80270,0x80281,0x802F0,
    0x80401,0x807D8,0x8083A,0x809A0,0x80A02,0x80BC8,0x80C52,0x80C60,0x80FEC,0x80FF0,0x81401,
    0x814E8,0x81501,0x81688,0x81704,0x8170A,0x817E0,0x81801,0x81902,0x81920,0x81969,0x81A0A,
    0x81A11,0x81A52,0x81A58,0x81A81,0x81BB4,0x81BD8,0x81C01,0x81CF0,0x81D01,0x81E20,0x81E41,
    0x81E80,0x81E8A,0x81EB0,0x82001,0x824F0,0x82502,0x82550,0x82581,0x826A0,0x826C1,0x827E0,
    0x82801,0x82940,0x82981,0x82B20,0x82B81,0x82BD8,0x82BE1,0x82C58,0x82C61,0x82C98,0x82CA1,
    0x82CB0,0x82CB9,0x82D10,0x82D19,0x82D90,0x82D99,0x82DD0,0x82DD9,0x82DE8,0x83001,0x839B8,
    0x83A01,0x83AB0,0x83B01,0x83B40,0x83C01,0x83C30,0x83C39,0x83D88,0x83D91,0x83DD8,0x84001,
    0x84030,0x84041,0x84048,0x84051,0x841B0,0x841B9,0x841C8,0x841E1,0x841E8,0x841F9,0x842B0,
    0x842C2,0x84301,0x843B8,0x843CA,0x84401,0x844F8,0x8453A,0x84580,0x84701,0x84798,0x847A1,
    0x847B0,0x847DA,0x84801,0x848B2,0x848E0,0x84901,0x849D0,0x84C01,0x84DC0,0x84DE2,0x84DF1,
    0x84E02,0x84E80,0x84E92,0x85001,0x85008,0x8506C,0x85070,0x8507C,0x85081,0x850A0,0x850A9,
    0x850C0,0x850C9,0x851B0,0x851C4,0x851D8,0x851FC,0x85202,0x85248,0x85301,0x853EA,0x853F8,
    0x85401,0x854EA,0x85500,0x85601,0x85640,0x85649,0x8572C,0x85738,0x8575A,0x85780,0x85801,
    0x859B0,0x85A01,0x85AB0,0x85AC2,0x85B01,0x85B98,0x85BC2,0x85C01,0x85C90,0x85D4A,0x85D80,
    0x86001,0x86248,0x86401,0x86598,0x86601,0x86798,0x867D2,0x86801,0x86924,0x86940,0x86982,
    0x869D0,0x87302,0x873F8,0x87401,0x87550,0x8755C,0x87568,0x87581,0x87590,0x877EC,0x87801,
    0x878EA,0x87939,0x87940,0x87981,0x87A34,0x87A8A,0x87AA8,0x87B81,0x87C14,0x87C30,0x87D81,
    0x87E2A,0x87E60,0x87F01,0x87FB8,0x88019,0x881C0,0x88234,0x88238,0x88292,0x88384,0x88389,
    0x88398,0x883A9,0x883B0,0x883FC,0x88400,0x88419,0x88580,0x885CC,0x885D8,0x88681,0x88748,
    0x88782,0x887D0,0x88804,0x88819,0x8893C,0x88940,0x8899C,0x889A8,0x889B2,0x88A00,0x88A21,
    0x88A28,0x88A39,0x88A40,0x88A81,0x88B9C,0x88BA0,0x88BB1,0x88BB8,0x88C19,0x88D98,0x88E04,
    0x88E09,0x88E28,0x88E54,0x88E58,0x88E82,0x88ED1,0x88ED8,0x88EE1,0x88EE8,0x88F0A,0x88FA8,
    0x89001,0x89090,0x89099,0x89160,0x891AC,0x891B8,0x891F9,0x89208,0x89401,0x89438,0x89441,
    0x89448,0x89451,0x89470,0x89479,0x894F0,0x894F9,0x89548,0x89581,0x896F8,0x8974C,0x89758,
    0x89782,0x897D0,0x89829,0x89868,0x89879,0x89888,0x89899,0x89948,0x89951,0x89988,0x89991,
    0x899A0,0x899A9,0x899D0,0x899DC,0x899E9,0x899F4,0x899F8,0x89A6C,0x89A70,0x89A81,0x89A88,
    0x89ABC,0x89AC0,0x89AE9,0x89B10,0x89B34,0x89B68,0x89B84,0x89BA8,0x8A001,0x8A1A8,0x8A214,
    0x8A218,0x8A234,0x8A239,0x8A258,0x8A282,0x8A2D0,0x8A2F4,0x8A2F9,0x8A310,0x8A401,0x8A584,
    0x8A588,0x8A5D4,0x8A5D8,0x8A5EC,0x8A5F0,0x8A614,0x8A621,0x8A630,0x8A639,0x8A640,0x8A682,
    0x8A6D0,0x8AC01,0x8AD7C,0x8AD80,0x8ADFC,0x8AE08,0x8AEC1,0x8AEE0,0x8B001,0x8B180,0x8B1FC,
    0x8B200,0x8B221,0x8B228,0x8B282,0x8B2D0,0x8B401,0x8B558,0x8B5B4,0x8B5C1,0x8B5C8,0x8B602,
    0x8B650,0x8B801,0x8B8D8,0x8B95C,0x8B960,0x8B982,0x8B9E0,0x8BA01,0x8BA38,0x8C001,0x8C160,
    0x8C1CC,0x8C1D8,0x8C501,0x8C702,0x8C798,0x8C7F9,0x8C838,0x8C849,0x8C850,0x8C861,0x8C8A0,
    0x8C8A9,0x8C8B8,0x8C8C1,0x8C984,0x8C988,0x8C9EC,0x8C9F9,0x8CA00,0x8CA09,0x8CA10,0x8CA1C,
    0x8CA20,0x8CA82,0x8CAD0,0x8CD01,0x8CD40,0x8CD51,0x8CE88,0x8CF04,0x8CF09,0x8CF10,0x8CF19,
    0x8CF20,0x8D001,0x8D008,0x8D059,0x8D198,0x8D1A4,0x8D1A8,0x8D1D1,0x8D1D8,0x8D23C,0x8D240,
    0x8D281,0x8D288,0x8D2E1,0x8D450,0x8D4CC,0x8D4D0,0x8D4E9,0x8D4F0,0x8D581,0x8D7C8,0x8E001,
    0x8E048,0x8E051,0x8E178,0x8E1FC,0x8E201,0x8E208,0x8E282,0x8E368,0x8E391,0x8E480,0x8E801,
    0x8E838,0x8E841,0x8E850,0x8E859,0x8E988,0x8EA14,0x8EA18,0x8EA24,0x8EA31,0x8EA38,0x8EA82,
    0x8EAD0,0x8EB01,0x8EB30,0x8EB39,0x8EB48,0x8EB51,0x8EC50,0x8ECBC,0x8ECC1,0x8ECC8,0x8ED02,
    0x8ED50,0x8F701,0x8F798,0x8F811,0x8F818,0x8F821,0x8F888,0x8F891,0x8F9A0,0x8FA0C,0x8FA18,
    0x8FA82,0x8FAD0,0x8FD81,0x8FD88,0x8FE02,0x8FEA8,0x90001,0x91CD0,0x92002,0x92378,0x92401,
    0x92A20,0x97C81,0x97F88,0x98001,0x9A180,0x9A209,0x9A238,0xA2001,0xA3238,0xB4001,0xB51C8,
    0xB5201,0xB52F8,0xB5302,0xB5350,0xB5381,0xB55F8,0xB5602,0xB5650,0xB5681,0xB5770,0xB5784,
    0xB57A8,0xB5801,0xB5984,0xB59B8,0xB5A01,0xB5A20,0xB5A82,0xB5AD0,0xB5ADA,0xB5B10,0xB5B19,
    0xB5BC0,0xB5BE9,0xB5C80,0xB7201,0xB7402,0xB74B8,0xB7801,0xB7A58,0xB7A81,0xB7A88,0xB7C99,
    0xB7D00,0xB7F01,0xB7F10,0xB7F19,0xB7F20,0xB7F84,0xB7F90,0xB8001,0xC3FC0,0xC4001,0xC66B0,
    0xC6801,0xC6848,0xD7F81,0xD7FA0,0xD7FA9,0xD7FE0,0xD7FE9,0xD7FF8,0xD8001,0xD8918,0xD8991,
    0xD8998,0xD8A81,0xD8A98,0xD8AA9,0xD8AB0,0xD8B21,0xD8B40,0xD8B81,0xD97E0,0xDE001,0xDE358,
    0xDE381,0xDE3E8,0xDE401,0xDE448,0xDE481,0xDE4D0,0xDE4F4,0xDE4F8,0xE8AF4,0xE8B50,0xE8B6C,
    0xE8B98,0xE8BDC,0xE8C18,0xE8C2C,0xE8C60,0xE8D54,0xE8D70,0xE8DDC,0xE8E08,0xE9214,0xE9228,
    0xE9602,0xE96A0,0xE9702,0xE97A0,0xE9B02,0xE9BC8,0xEA001,0xEA2A8,0xEA2B1,0xEA4E8,0xEA4F1,
    0xEA500,0xEA511,0xEA518,0xEA529,0xEA538,0xEA549,0xEA568,0xEA571,0xEA5D0,0xEA5D9,0xEA5E0,
    0xEA5E9,0xEA620,0xEA629,0xEA830,0xEA839,0xEA858,0xEA869,0xEA8A8,0xEA8B1,0xEA8E8,0xEA8F1,
    0xEA9D0,0xEA9D9,0xEA9F8,0xEAA01,0xEAA28,0xEAA31,0xEAA38,0xEAA51,0xEAA88,0xEAA91,0xEB530,
    0xEB541,0xEB608,0xEB611,0xEB6D8,0xEB6E1,0xEB7D8,0xEB7E1,0xEB8A8,0xEB8B1,0xEB9A8,0xEB9B1,
    0xEBA78,0xEBA81,0xEBB78,0xEBB81,0xEBC48,0xEBC51,0xEBD48,0xEBD51,0xEBE18,0xEBE21,0xEBE60,
    0xEBE72,0xEC000,0xEF801,0xEF8F8,0xEF929,0xEF958,0xF0004,0xF0038,0xF0044,0xF00C8,0xF00DC,
    0xF0110,0xF011C,0xF0128,0xF0134,0xF0158,0xF0181,0xF0370,0xF047C,0xF0480,0xF0801,0xF0968,
    0xF0984,0xF09B9,0xF09F0,0xF0A02,0xF0A50,0xF0A71,0xF0A78,0xF1481,0xF1574,0xF1578,0xF1601,
    0xF1764,0xF1782,0xF17D0,0xF2681,0xF2764,0xF2782,0xF27D0,0xF3F01,0xF3F38,0xF3F41,0xF3F60,
    0xF3F69,0xF3F78,0xF3F81,0xF3FF8,0xF4001,0xF4628,0xF463A,0xF4684,0xF46B8,0xF4801,0xF4A24,
    0xF4A59,0xF4A60,0xF4A82,0xF4AD0,0xF638A,0xF6560,0xF656A,0xF6580,0xF658A,0xF65A8,0xF680A,
    0xF6970,0xF697A,0xF69F0,0xF7001,0xF7020,0xF7029,0xF7100,0xF7109,0xF7118,0xF7121,0xF7128,
    0xF7139,0xF7140,0xF7149,0xF7198,0xF71A1,0xF71C0,0xF71C9,0xF71D0,0xF71D9,0xF71E0,0xF7211,
    0xF7218,0xF7239,0xF7240,0xF7249,0xF7250,0xF7259,0xF7260,0xF7269,0xF7280,0xF7289,0xF7298,
    0xF72A1,0xF72A8,0xF72B9,0xF72C0,0xF72C9,0xF72D0,0xF72D9,0xF72E0,0xF72E9,0xF72F0,0xF72F9,
    0xF7300,0xF7309,0xF7318,0xF7321,0xF7328,0xF7339,0xF7358,0xF7361,0xF7398,0xF73A1,0xF73C0,
    0xF73C9,0xF73E8,0xF73F1,0xF73F8,0xF7401,0xF7450,0xF7459,0xF74E0,0xF7509,0xF7520,0xF7529,
    0xF7550,0xF7559,0xF75E0,0xF8802,0xF8868,0xFDF82,0xFDFD0,0x100001,0x153700,0x153801,0x15B9D0,
    0x15BA01,0x15C0F0,0x15C101,0x167510,0x167581,0x175F08,0x17C005,0x17D0F0,0x180001,0x189A58,
    0x189A81,0x191D80,
};
static const uint32_t mbi_uc_punctuation[] = {
    0,0x21,0x30,0x3A,0x41,0x5B,0x61,0x7B,0x7F,0xA1,0xA2,0xA7,0xA8,0xAB,0xAC,0xB6,0xB8,0xBB,0xBC,
    0xBF,0xC0,0x37E,0x37F,0x387,0x388,0x55A,0x560,0x589,0x58B,0x5BE,0x5BF,0x5C0,0x5C1,0x5C3,0x5C4,
    0x5C6,0x5C7,0x5F3,0x5F5,0x609,0x60B,0x60C,0x60E,0x61B,0x61C,0x61E,0x620,0x66A,0x66E,0x6D4,
    0x6D5,0x700,0x70E,0x7F7,0x7FA,0x830,0x83F,0x85E,0x85F,0x964,0x966,0x970,0x971,0xAF0,0xAF1,
    0xDF4,0xDF5,0xE4F,0xE50,0xE5A,0xE5C,0xF04,0xF13,0xF14,0xF15,0xF3A,0xF3E,0xF85,0xF86,0xFD0,
    0xFD5,0xFD9,0xFDB,0x104A,0x1050,0x10FB,0x10FC,0x1360,0x1369,0x1400,0x1401,0x166D,0x166F,0x169B,
    0x169D,0x16EB,0x16EE,0x1735,0x1737,0x17D4,0x17D7,0x17D8,0x17DB,0x1800,0x180B,0x1944,0x1946,
    0x1A1E,0x1A20,0x1AA0,0x1AA7,0x1AA8,0x1AAE,0x1B5A,0x1B61,0x1BFC,0x1C00,0x1C3B,0x1C40,0x1C7E,
    0x1C80,0x1CC0,0x1CC8,0x1CD3,0x1CD4,0x2010,0x2028,0x2030,0x2044,0x2045,0x2052,0x2053,0x205F,
    0x207D,0x207F,0x208D,0x208F,0x2308,0x230C,0x2329,0x232B,0x2768,0x2776,0x27C5,0x27C7,0x27E6,
    0x27F0,0x2983,0x2999,0x29D8,0x29DC,0x29FC,0x29FE,0x2CF9,0x2CFD,0x2CFE,0x2D00,0x2D70,0x2D71,
    0x2E00,0x2E2F,0x2E30,0x2E43,0x3001,0x3004,0x3008,0x3012,0x3014,0x3020,0x3030,0x3031,0x303D,
    0x303E,0x30A0,0x30A1,0x30FB,0x30FC,0xA4FE,0xA500,0xA60D,0xA610,0xA673,0xA674,0xA67E,0xA67F,
    0xA6F2,0xA6F8,0xA874,0xA878,0xA8CE,0xA8D0,0xA8F8,0xA8FB,0xA8FC,0xA8FD,0xA92E,0xA930,0xA95F,
    0xA960,0xA9C1,0xA9CE,0xA9DE,0xA9E0,0xAA5C,0xAA60,0xAADE,0xAAE0,0xAAF0,0xAAF2,0xABEB,0xABEC,
    0xFD3E,0xFD40,0xFE10,0xFE1A,0xFE30,0xFE53,0xFE54,0xFE62,0xFE63,0xFE64,0xFE68,0xFE69,0xFE6A,
    0xFE6C,0xFF01,0xFF04,0xFF05,0xFF0B,0xFF0C,0xFF10,0xFF1A,0xFF1C,0xFF1F,0xFF21,0xFF3B,0xFF3E,
    0xFF3F,0xFF40,0xFF5B,0xFF5C,0xFF5D,0xFF5E,0xFF5F,0xFF66,0x10100,0x10103,0x1039F,0x103A0,
    0x103D0,0x103D1,0x1056F,0x10570,0x10857,0x10858,0x1091F,0x10920,0x1093F,0x10940,0x10A50,
    0x10A59,0x10A7F,0x10A80,0x10AF0,0x10AF7,0x10B39,0x10B40,0x10B99,0x10B9D,0x11047,0x1104E,
    0x110BB,0x110BD,0x110BE,0x110C2,0x11140,0x11144,0x11174,0x11176,0x111C5,0x111CA,0x111CD,
    0x111CE,0x111DB,0x111DC,0x111DD,0x111E0,0x11238,0x1123E,0x112A9,0x112AA,0x114C6,0x114C7,
    0x115C1,0x115D8,0x11641,0x11644,0x1173C,0x1173F,0x12470,0x12475,0x16A6E,0x16A70,0x16AF5,
    0x16AF6,0x16B37,0x16B3C,0x16B44,0x16B45,0x1BC9F,0x1BCA0,0x1DA87,0x1DA8C,
};
static const uint32_t mbi_uc_combining[] = {
    0,0x300E6,0x315E8,0x316DC,0x31AE8,0x31BD8,0x31CDC,0x321CA,0x323DC,0x327CA,0x329DC,0x33401,
    0x339DC,0x33DE6,0x345F0,0x346E6,0x347DC,0x34AE6,0x34DDC,0x34F00,0x350E6,0x353DC,0x357E6,
    0x358E8,0x359DC,0x35BE6,0x35CE9,0x35DEA,0x35FE9,0x360EA,0x362E9,0x363E6,0x37000,0x483E6,
    0x48800,0x591DC,0x592E6,0x596DC,0x597E6,0x59ADE,0x59BDC,0x59CE6,0x5A2DC,0x5A8E6,0x5AADC,
    0x5ABE6,0x5ADDE,0x5AEE4,0x5AFE6,0x5B00A,0x5B10B,0x5B20C,0x5B30D,0x5B40E,0x5B50F,0x5B610,
    0x5B711,0x5B812,0x5B913,0x5BB14,0x5BC15,0x5BD16,0x5BE00,0x5BF17,0x5C000,0x5C118,0x5C219,
    0x5C300,0x5C4E6,0x5C5DC,0x5C600,0x5C712,0x5C800,0x610E6,0x6181E,0x6191F,0x61A20,0x61B00,
    0x64B1B,0x64C1C,0x64D1D,0x64E1E,0x64F1F,0x65020,0x65121,0x65222,0x653E6,0x655DC,0x657E6,
    0x65CDC,0x65DE6,0x65FDC,0x66000,0x67023,0x67100,0x6D6E6,0x6DD00,0x6DFE6,0x6E3DC,0x6E4E6,
    0x6E500,0x6E7E6,0x6E900,0x6EADC,0x6EBE6,0x6EDDC,0x6EE00,0x71124,0x71200,0x730E6,0x731DC,
    0x732E6,0x734DC,0x735E6,0x737DC,0x73AE6,0x73BDC,0x73DE6,0x73EDC,0x73FE6,0x742DC,0x743E6,
    0x744DC,0x745E6,0x746DC,0x747E6,0x748DC,0x749E6,0x74B00,0x7EBE6,0x7F2DC,0x7F3E6,0x7F400,
    0x7FDDC,0x7FE00,0x816E6,0x81A00,0x81BE6,0x82400,0x825E6,0x82800,0x829E6,0x82E00,0x859DC,
    0x85C00,0x898E6,0x899DC,0x89CE6,0x8A000,0x8CAE6,0x8CFDC,0x8D4E6,0x8E200,0x8E3DC,0x8E4E6,
    0x8E6DC,0x8E7E6,0x8E9DC,0x8EAE6,0x8EDDC,0x8F01B,0x8F11C,0x8F21D,0x8F3E6,0x8F6DC,0x8F7E6,
    0x8F9DC,0x8FBE6,0x90000,0x93C07,0x93D00,0x94D09,0x94E00,0x951E6,0x952DC,0x953E6,0x95500,
    0x9BC07,0x9BD00,0x9CD09,0x9CE00,0x9FEE6,0x9FF00,0xA3C07,0xA3D00,0xA4D09,0xA4E00,0xABC07,
    0xABD00,0xACD09,0xACE00,0xB3C07,0xB3D00,0xB4D09,0xB4E00,0xBCD09,0xBCE00,0xC3C07,0xC3D00,
    0xC4D09,0xC4E00,0xC5554,0xC565B,0xC5700,0xCBC07,0xCBD00,0xCCD09,0xCCE00,0xD3B09,0xD3D00,
    0xD4D09,0xD4E00,0xDCA09,0xDCB00,0xE3867,0xE3A09,0xE3B00,0xE486B,0xE4C00,0xEB876,0xEBA09,
    0xEBB00,0xEC87A,0xECC00,0xF18DC,0xF1A00,0xF35DC,0xF3600,0xF37DC,0xF3800,0xF39D8,0xF3A00,
    0xF7181,0xF7282,0xF7300,0xF7484,0xF7500,0xF7A82,0xF7E00,0xF8082,0xF8100,0xF82E6,0xF8409,
    0xF8500,0xF86E6,0xF8800,0xFC6DC,0xFC700,0x103707,0x103800,0x103909,0x103B00,0x108DDC,0x108E00,
    0x135DE6,0x136000,0x171409,0x171600,0x173409,0x173500,0x17D209,0x17D300,0x17DDE6,0x17DE00,
    0x18A9E4,0x18AA00,0x1939DE,0x193AE6,0x193BDC,0x193C00,0x1A17E6,0x1A18DC,0x1A1900,0x1A6009,
    0x1A6100,0x1A75E6,0x1A7D00,0x1A7FDC,0x1A8000,0x1AB0E6,0x1AB5DC,0x1ABBE6,0x1ABDDC,0x1ABE00,
    0x1ABFDC,0x1AC1E6,0x1AC3DC,0x1AC5E6,0x1ACADC,0x1ACBE6,0x1ACF00,0x1B3407,0x1B3500,0x1B4409,
    0x1B4500,0x1B6BE6,0x1B6CDC,0x1B6DE6,0x1B7400,0x1BAA09,0x1BAC00,0x1BE607,0x1BE700,0x1BF209,
    0x1BF400,0x1C3707,0x1C3800,0x1CD0E6,0x1CD300,0x1CD401,0x1CD5DC,0x1CDAE6,0x1CDCDC,0x1CE0E6,
    0x1CE100,0x1CE201,0x1CE900,0x1CEDDC,0x1CEE00,0x1CF4E6,0x1CF500,0x1CF8E6,0x1CFA00,0x1DC0E6,
    0x1DC2DC,0x1DC3E6,0x1DCADC,0x1DCBE6,0x1DCDEA,0x1DCED6,0x1DCFDC,0x1DD0CA,0x1DD1E6,0x1DF6E8,
    0x1DF7E4,0x1DF9DC,0x1DFADA,0x1DFBE6,0x1DFCE9,0x1DFDDC,0x1DFEE6,0x1DFFDC,0x1E0000,0x20D0E6,
    0x20D201,0x20D4E6,0x20D801,0x20DBE6,0x20DD00,0x20E1E6,0x20E200,0x20E501,0x20E7E6,0x20E8DC,
    0x20E9E6,0x20EA01,0x20ECDC,0x20F0E6,0x20F100,0x2CEFE6,0x2CF200,0x2D7F09,0x2D8000,0x2DE0E6,
    0x2E0000,0x302ADA,0x302BE4,0x302CE8,0x302DDE,0x302EE0,0x303000,0x309908,0x309B00,0xA66FE6,
    0xA67000,0xA674E6,0xA67E00,0xA69EE6,0xA6A000,0xA6F0E6,0xA6F200,0xA80609,0xA80700,0xA82C09,
    0xA82D00,0xA8C409,0xA8C500,0xA8E0E6,0xA8F200,0xA92BDC,0xA92E00,0xA95309,0xA95400,0xA9B307,
    0xA9B400,0xA9C009,0xA9C100,0xAAB0E6,0xAAB100,0xAAB2E6,0xAAB4DC,0xAAB500,0xAAB7E6,0xAAB900,
    0xAABEE6,0xAAC000,0xAAC1E6,0xAAC200,0xAAF609,0xAAF700,0xABED09,0xABEE00,0xFB1E1A,0xFB1F00,
    0xFE20E6,0xFE27DC,0xFE2EE6,0xFE3000,0x101FDDC,0x101FE00,0x102E0DC,0x102E100,0x10376E6,
    0x1037B00,0x10A0DDC,0x10A0E00,0x10A0FE6,0x10A1000,0x10A38E6,0x10A3901,0x10A3ADC,0x10A3B00,
    0x10A3F09,0x10A4000,0x10AE5E6,0x10AE6DC,0x10AE700,0x10D24E6,0x10D2800,0x10EABE6,0x10EAD00,
    0x10EFDDC,0x10F0000,0x10F46DC,0x10F48E6,0x10F4BDC,0x10F4CE6,0x10F4DDC,0x10F5100,0x10F82E6,
    0x10F83DC,0x10F84E6,0x10F85DC,0x10F8600,0x1104609,0x1104700,0x1107009,0x1107100,0x1107F09,
    0x1108000,0x110B909,0x110BA07,0x110BB00,0x11100E6,0x1110300,0x1113309,0x1113500,0x1117307,
    0x1117400,0x111C009,0x111C100,0x111CA07,0x111CB00,0x1123509,0x1123607,0x1123700,0x112E907,
    0x112EA09,0x112EB00,0x1133B07,0x1133D00,0x1134D09,0x1134E00,0x11366E6,0x1136D00,0x11370E6,
    0x1137500,0x1144209,0x1144300,0x1144607,0x1144700,0x1145EE6,0x1145F00,0x114C209,0x114C307,
    0x114C400,0x115BF09,0x115C007,0x115C100,0x1163F09,0x1164000,0x116B609,0x116B707,0x116B800,
    0x1172B09,0x1172C00,0x1183909,0x1183A07,0x1183B00,0x1193D09,0x1193F00,0x1194307,0x1194400,
    0x119E009,0x119E100,0x11A3409,0x11A3500,0x11A4709,0x11A4800,0x11A9909,0x11A9A00,0x11C3F09,
    0x11C4000,0x11D4207,0x11D4300,0x11D4409,0x11D4600,0x11D9709,0x11D9800,0x11F4109,0x11F4300,
    0x16AF001,0x16AF500,0x16B30E6,0x16B3700,0x16FF006,0x16FF200,0x1BC9E01,0x1BC9F00,0x1D165D8,
    0x1D16701,0x1D16A00,0x1D16DE2,0x1D16ED8,0x1D17300,0x1D17BDC,0x1D18300,0x1D185E6,0x1D18ADC,
    0x1D18C00,0x1D1AAE6,0x1D1AE00,0x1D242E6,0x1D24500,0x1E000E6,0x1E00700,0x1E008E6,0x1E01900,
    0x1E01BE6,0x1E02200,0x1E023E6,0x1E02500,0x1E026E6,0x1E02B00,0x1E08FE6,0x1E09000,0x1E130E6,
    0x1E13700,0x1E2AEE6,0x1E2AF00,0x1E2ECE6,0x1E2F000,0x1E4ECE8,0x1E4EEDC,0x1E4EFE6,0x1E4F000,
    0x1E8D0DC,0x1E8D700,0x1E944E6,0x1E94A07,0x1E94B00,
};
static const uint32_t mbi_uc_cjk1[] = {
    0x8C48,0x66F4,0x8ECA,0x8CC8,0x6ED1,0x4E32,0x53E5,0x9F9C,0x9F9C,0x5951,0x91D1,0x5587,0x5948,
    0x61F6,0x7669,0x7F85,0x863F,0x87BA,0x88F8,0x908F,0x6A02,0x6D1B,0x70D9,0x73DE,0x843D,0x916A,
    0x99F1,0x4E82,0x5375,0x6B04,0x721B,0x862D,0x9E1E,0x5D50,0x6FEB,0x85CD,0x8964,0x62C9,0x81D8,
    0x881F,0x5ECA,0x6717,0x6D6A,0x72FC,0x90CE,0x4F86,0x51B7,0x52DE,0x64C4,0x6AD3,0x7210,0x76E7,
    0x8001,0x8606,0x865C,0x8DEF,0x9732,0x9B6F,0x9DFA,0x788C,0x797F,0x7DA0,0x83C9,0x9304,0x9E7F,
    0x8AD6,0x58DF,0x5F04,0x7C60,0x807E,0x7262,0x78CA,0x8CC2,0x96F7,0x58D8,0x5C62,0x6A13,0x6DDA,
    0x6F0F,0x7D2F,0x7E37,0x964B,0x52D2,0x808B,0x51DC,0x51CC,0x7A1C,0x7DBE,0x83F1,0x9675,0x8B80,
    0x62CF,0x6A02,0x8AFE,0x4E39,0x5BE7,0x6012,0x7387,0x7570,0x5317,0x78FB,0x4FBF,0x5FA9,0x4E0D,
    0x6CCC,0x6578,0x7D22,0x53C3,0x585E,0x7701,0x8449,0x8AAA,0x6BBA,0x8FB0,0x6C88,0x62FE,0x82E5,
    0x63A0,0x7565,0x4EAE,0x5169,0x51C9,0x6881,0x7CE7,0x826F,0x8AD2,0x91CF,0x52F5,0x5442,0x5973,
    0x5EEC,0x65C5,0x6FFE,0x792A,0x95AD,0x9A6A,0x9E97,0x9ECE,0x529B,0x66C6,0x6B77,0x8F62,0x5E74,
    0x6190,0x6200,0x649A,0x6F23,0x7149,0x7489,0x79CA,0x7DF4,0x806F,0x8F26,0x84EE,0x9023,0x934A,
    0x5217,0x52A3,0x54BD,0x70C8,0x88C2,0x8AAA,0x5EC9,0x5FF5,0x637B,0x6BAE,0x7C3E,0x7375,0x4EE4,
    0x56F9,0x5BE7,0x5DBA,0x601C,0x73B2,0x7469,0x7F9A,0x8046,0x9234,0x96F6,0x9748,0x9818,0x4F8B,
    0x79AE,0x91B4,0x96B8,0x60E1,0x4E86,0x50DA,0x5BEE,0x5C3F,0x6599,0x6A02,0x71CE,0x7642,0x84FC,
    0x907C,0x9F8D,0x6688,0x962E,0x5289,0x677B,0x67F3,0x6D41,0x6E9C,0x7409,0x7559,0x786B,0x7D10,
    0x985E,0x516D,0x622E,0x9678,0x502B,0x5D19,0x6DEA,0x8F2A,0x5F8B,0x6144,0x6817,0x7387,0x9686,
    0x5229,0x540F,0x5C65,0x6613,0x674E,0x68A8,0x6CE5,0x7406,0x75E2,0x7F79,0x88CF,0x88E1,0x91CC,
    0x96E2,0x533F,0x6EBA,0x541D,0x71D0,0x7498,0x85FA,0x96A3,0x9C57,0x9E9F,0x6797,0x6DCB,0x81E8,
    0x7ACB,0x7B20,0x7C92,0x72C0,0x7099,0x8B58,0x4EC0,0x8336,0x523A,0x5207,0x5EA6,0x62D3,0x7CD6,
    0x5B85,0x6D1E,0x66B4,0x8F3B,0x884C,0x964D,0x898B,0x5ED3,0x5140,0x55C0,0,0,0x585A,0,0x6674,0,0,
    0x51DE,0x732A,0x76CA,0x793C,0x795E,0x7965,0x798F,0x9756,0x7CBE,0x7FBD,0,0x8612,0,0x8AF8,0,0,
    0x9038,0x90FD,0,0,0,0x98EF,0x98FC,0x9928,0x9DB4,0x90DE,0x96B7,0x4FAE,0x50E7,0x514D,0x52C9,
    0x52E4,0x5351,0x559D,0x5606,0x5668,0x5840,0x58A8,0x5C64,0x5C6E,0x6094,0x6168,0x618E,0x61F2,
    0x654F,0x65E2,0x6691,0x6885,0x6D77,0x6E1A,0x6F22,0x716E,0x722B,0x7422,0x7891,0x793E,0x7949,
    0x7948,0x7950,0x7956,0x795D,0x798D,0x798E,0x7A40,0x7A81,0x7BC0,0x7DF4,0x7E09,0x7E41,0x7F72,
    0x8005,0x81ED,0x8279,0x8279,0x8457,0x8910,0x8996,0x8B01,0x8B39,0x8CD3,0x8D08,0x8FB6,0x9038,
    0x96E3,0x97FF,0x983B,0x6075,0x242EE,0x8218,0,0,0x4E26,0x51B5,0x5168,0x4F80,0x5145,0x5180,
    0x52C7,0x52FA,0x559D,0x5555,0x5599,0x55E2,0x585A,0x58B3,0x5944,0x5954,0x5A62,0x5B28,0x5ED2,
    0x5ED9,0x5F69,0x5FAD,0x60D8,0x614E,0x6108,0x618E,0x6160,0x61F2,0x6234,0x63C4,0x641C,0x6452,
    0x6556,0x6674,0x6717,0x671B,0x6756,0x6B79,0x6BBA,0x6D41,0x6EDB,0x6ECB,0x6F22,0x701E,0x716E,
    0x77A7,0x7235,0x72AF,0x732A,0x7471,0x7506,0x753B,0x761D,0x761F,0x76CA,0x76DB,0x76F4,0x774A,
    0x7740,0x78CC,0x7AB1,0x7BC0,0x7C7B,0x7D5B,0x7DF4,0x7F3E,0x8005,0x8352,0x83EF,0x8779,0x8941,
    0x8986,0x8996,0x8ABF,0x8AF8,0x8ACB,0x8B01,0x8AFE,0x8AED,0x8B39,0x8B8A,0x8D08,0x8F38,0x9072,
    0x9199,0x9276,0x967C,0x96E3,0x9756,0x97DB,0x97FF,0x980B,0x983B,0x9B12,0x9F9C,0x2284A,0x22844,
    0x233D5,0x3B9D,0x4018,0x4039,0x25249,0x25CD0,0x27ED3,0x9F43,0x9F8E,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
};
static const uint32_t mbi_uc_cjk2[] = {
    0x4E3D,0x4E38,0x4E41,0x20122,0x4F60,0x4FAE,0x4FBB,0x5002,0x507A,0x5099,0x50E7,0x50CF,0x349E,
    0x2063A,0x514D,0x5154,0x5164,0x5177,0x2051C,0x34B9,0x5167,0x518D,0x2054B,0x5197,0x51A4,0x4ECC,
    0x51AC,0x51B5,0x291DF,0x51F5,0x5203,0x34DF,0x523B,0x5246,0x5272,0x5277,0x3515,0x52C7,0x52C9,
    0x52E4,0x52FA,0x5305,0x5306,0x5317,0x5349,0x5351,0x535A,0x5373,0x537D,0x537F,0x537F,0x537F,
    0x20A2C,0x7070,0x53CA,0x53DF,0x20B63,0x53EB,0x53F1,0x5406,0x549E,0x5438,0x5448,0x5468,0x54A2,
    0x54F6,0x5510,0x5553,0x5563,0x5584,0x5584,0x5599,0x55AB,0x55B3,0x55C2,0x5716,0x5606,0x5717,
    0x5651,0x5674,0x5207,0x58EE,0x57CE,0x57F4,0x580D,0x578B,0x5832,0x5831,0x58AC,0x214E4,0x58F2,
    0x58F7,0x5906,0x591A,0x5922,0x5962,0x216A8,0x216EA,0x59EC,0x5A1B,0x5A27,0x59D8,0x5A66,0x36EE,
    0x36FC,0x5B08,0x5B3E,0x5B3E,0x219C8,0x5BC3,0x5BD8,0x5BE7,0x5BF3,0x21B18,0x5BFF,0x5C06,0x5F53,
    0x5C22,0x3781,0x5C60,0x5C6E,0x5CC0,0x5C8D,0x21DE4,0x5D43,0x21DE6,0x5D6E,0x5D6B,0x5D7C,0x5DE1,
    0x5DE2,0x382F,0x5DFD,0x5E28,0x5E3D,0x5E69,0x3862,0x22183,0x387C,0x5EB0,0x5EB3,0x5EB6,0x5ECA,
    0x2A392,0x5EFE,0x22331,0x22331,0x8201,0x5F22,0x5F22,0x38C7,0x232B8,0x261DA,0x5F62,0x5F6B,
    0x38E3,0x5F9A,0x5FCD,0x5FD7,0x5FF9,0x6081,0x393A,0x391C,0x6094,0x226D4,0x60C7,0x6148,0x614C,
    0x614E,0x614C,0x617A,0x618E,0x61B2,0x61A4,0x61AF,0x61DE,0x61F2,0x61F6,0x6210,0x621B,0x625D,
    0x62B1,0x62D4,0x6350,0x22B0C,0x633D,0x62FC,0x6368,0x6383,0x63E4,0x22BF1,0x6422,0x63C5,0x63A9,
    0x3A2E,0x6469,0x647E,0x649D,0x6477,0x3A6C,0x654F,0x656C,0x2300A,0x65E3,0x66F8,0x6649,0x3B19,
    0x6691,0x3B08,0x3AE4,0x5192,0x5195,0x6700,0x669C,0x80AD,0x43D9,0x6717,0x671B,0x6721,0x675E,
    0x6753,0x233C3,0x3B49,0x67FA,0x6785,0x6852,0x6885,0x2346D,0x688E,0x681F,0x6914,0x3B9D,0x6942,
    0x69A3,0x69EA,0x6AA8,0x236A3,0x6ADB,0x3C18,0x6B21,0x238A7,0x6B54,0x3C4E,0x6B72,0x6B9F,0x6BBA,
    0x6BBB,0x23A8D,0x21D0B,0x23AFA,0x6C4E,0x23CBC,0x6CBF,0x6CCD,0x6C67,0x6D16,0x6D3E,0x6D77,0x6D41,
    0x6D69,0x6D78,0x6D85,0x23D1E,0x6D34,0x6E2F,0x6E6E,0x3D33,0x6ECB,0x6EC7,0x23ED1,0x6DF9,0x6F6E,
    0x23F5E,0x23F8E,0x6FC6,0x7039,0x701E,0x701B,0x3D96,0x704A,0x707D,0x7077,0x70AD,0x20525,0x7145,
    0x24263,0x719C,0x243AB,0x7228,0x7235,0x7250,0x24608,0x7280,0x7295,0x24735,0x24814,0x737A,
    0x738B,0x3EAC,0x73A5,0x3EB8,0x3EB8,0x7447,0x745C,0x7471,0x7485,0x74CA,0x3F1B,0x7524,0x24C36,
    0x753E,0x24C92,0x7570,0x2219F,0x7610,0x24FA1,0x24FB8,0x25044,0x3FFC,0x4008,0x76F4,0x250F3,
    0x250F2,0x25119,0x25133,0x771E,0x771F,0x771F,0x774A,0x4039,0x778B,0x4046,0x4096,0x2541D,0x784E,
    0x788C,0x78CC,0x40E3,0x25626,0x7956,0x2569A,0x256C5,0x798F,0x79EB,0x412F,0x7A40,0x7A4A,0x7A4F,
    0x2597C,0x25AA7,0x25AA7,0x7AEE,0x4202,0x25BAB,0x7BC6,0x7BC9,0x4227,0x25C80,0x7CD2,0x42A0,
    0x7CE8,0x7CE3,0x7D00,0x25F86,0x7D63,0x4301,0x7DC7,0x7E02,0x7E45,0x4334,0x26228,0x26247,0x4359,
    0x262D9,0x7F7A,0x2633E,0x7F95,0x7FFA,0x8005,0x264DA,0x26523,0x8060,0x265A8,0x8070,0x2335F,
    0x43D5,0x80B2,0x8103,0x440B,0x813E,0x5AB5,0x267A7,0x267B5,0x23393,0x2339C,0x8201,0x8204,0x8F9E,
    0x446B,0x8291,0x828B,0x829D,0x52B3,0x82B1,0x82B3,0x82BD,0x82E6,0x26B3C,0x82E5,0x831D,0x8363,
    0x83AD,0x8323,0x83BD,0x83E7,0x8457,0x8353,0x83CA,0x83CC,0x83DC,0x26C36,0x26D6B,0x26CD5,0x452B,
    0x84F1,0x84F3,0x8516,0x273CA,0x8564,0x26F2C,0x455D,0x4561,0x26FB1,0x270D2,0x456B,0x8650,0x865C,
    0x8667,0x8669,0x86A9,0x8688,0x870E,0x86E2,0x8779,0x8728,0x876B,0x8786,0x45D7,0x87E1,0x8801,
    0x45F9,0x8860,0x8863,0x27667,0x88D7,0x88DE,0x4635,0x88FA,0x34BB,0x278AE,0x27966,0x46BE,0x46C7,
    0x8AA0,0x8AED,0x8B8A,0x8C55,0x27CA8,0x8CAB,0x8CC1,0x8D1B,0x8D77,0x27F2F,0x20804,0x8DCB,0x8DBC,
    0x8DF0,0x208DE,0x8ED4,0x8F38,0x285D2,0x285ED,0x9094,0x90F1,0x9111,0x2872E,0x911B,0x9238,0x92D7,
    0x92D8,0x927C,0x93F9,0x9415,0x28BFA,0x958B,0x4995,0x95B7,0x28D77,0x49E6,0x96C3,0x5DB2,0x9723,
    0x29145,0x2921A,0x4A6E,0x4A76,0x97E0,0x2940A,0x4AB2,0x29496,0x980B,0x980B,0x9829,0x295B6,
    0x98E2,0x4B33,0x9929,0x99A7,0x99C2,0x99FE,0x4BCE,0x29B30,0x9B12,0x9C40,0x9CFD,0x4CCE,0x4CED,
    0x9D67,0x2A0CE,0x4CF8,0x2A105,0x2A20E,0x2A291,0x9EBB,0x4D56,0x9EF9,0x9EFE,0x9F05,0x9F0F,0x9F16,
    0x9F3B,0x2A600,0,0,
};
static const uint64_t mbi_uc_pairs[] = {
    0x3000008200300u,0x3040008200301u,0x3080008200302u,0x30C0008200303u,0x3100008200308u,
    0x314000820030Au,0x31C0008600327u,0x3200008A00300u,0x3240008A00301u,0x3280008A00302u,
    0x32C0008A00308u,0x3300009200300u,0x3340009200301u,0x3380009200302u,0x33C0009200308u,
    0x3440009C00303u,0x3480009E00300u,0x34C0009E00301u,0x3500009E00302u,0x3540009E00303u,
    0x3580009E00308u,0x364000AA00300u,0x368000AA00301u,0x36C000AA00302u,0x370000AA00308u,
    0x374000B200301u,0x380000C200300u,0x384000C200301u,0x388000C200302u,0x38C000C200303u,
    0x390000C200308u,0x394000C20030Au,0x39C000C600327u,0x3A0000CA00300u,0x3A4000CA00301u,
    0x3A8000CA00302u,0x3AC000CA00308u,0x3B0000D200300u,0x3B4000D200301u,0x3B8000D200302u,
    0x3BC000D200308u,0x3C4000DC00303u,0x3C8000DE00300u,0x3CC000DE00301u,0x3D0000DE00302u,
    0x3D4000DE00303u,0x3D8000DE00308u,0x3E4000EA00300u,0x3E8000EA00301u,0x3EC000EA00302u,
    0x3F0000EA00308u,0x3F4000F200301u,0x3FC000F200308u,0x4000008200304u,0x404000C200304u,
    0x4080008200306u,0x40C000C200306u,0x4100008200328u,0x414000C200328u,0x4180008600301u,
    0x41C000C600301u,0x4200008600302u,0x424000C600302u,0x4280008600307u,0x42C000C600307u,
    0x430000860030Cu,0x434000C60030Cu,0x438000880030Cu,0x43C000C80030Cu,0x4480008A00304u,
    0x44C000CA00304u,0x4500008A00306u,0x454000CA00306u,0x4580008A00307u,0x45C000CA00307u,
    0x4600008A00328u,0x464000CA00328u,0x4680008A0030Cu,0x46C000CA0030Cu,0x4700008E00302u,
    0x474000CE00302u,0x4780008E00306u,0x47C000CE00306u,0x4800008E00307u,0x484000CE00307u,
    0x4880008E00327u,0x48C000CE00327u,0x4900009000302u,0x494000D000302u,0x4A00009200303u,
    0x4A4000D200303u,0x4A80009200304u,0x4AC000D200304u,0x4B00009200306u,0x4B4000D200306u,
    0x4B80009200328u,0x4BC000D200328u,0x4C00009200307u,0x4D00009400302u,0x4D4000D400302u,
    0x4D80009600327u,0x4DC000D600327u,0x4E40009800301u,0x4E8000D800301u,0x4EC0009800327u,
    0x4F0000D800327u,0x4F4000980030Cu,0x4F8000D80030Cu,0x50C0009C00301u,0x510000DC00301u,
    0x5140009C00327u,0x518000DC00327u,0x51C0009C0030Cu,0x520000DC0030Cu,0x5300009E00304u,
    0x534000DE00304u,0x5380009E00306u,0x53C000DE00306u,0x5400009E0030Bu,0x544000DE0030Bu,
    0x550000A400301u,0x554000E400301u,0x558000A400327u,0x55C000E400327u,0x560000A40030Cu,
    0x564000E40030Cu,0x568000A600301u,0x56C000E600301u,0x570000A600302u,0x574000E600302u,
    0x578000A600327u,0x57C000E600327u,0x580000A60030Cu,0x584000E60030Cu,0x588000A800327u,
    0x58C000E800327u,0x590000A80030Cu,0x594000E80030Cu,0x5A0000AA00303u,0x5A4000EA00303u,
    0x5A8000AA00304u,0x5AC000EA00304u,0x5B0000AA00306u,0x5B4000EA00306u,0x5B8000AA0030Au,
    0x5BC000EA0030Au,0x5C0000AA0030Bu,0x5C4000EA0030Bu,0x5C8000AA00328u,0x5CC000EA00328u,
    0x5D0000AE00302u,0x5D4000EE00302u,0x5D8000B200302u,0x5DC000F200302u,0x5E0000B200308u,
    0x5E4000B400301u,0x5E8000F400301u,0x5EC000B400307u,0x5F0000F400307u,0x5F4000B40030Cu,
    0x5F8000F40030Cu,0x6800009E0031Bu,0x684000DE0031Bu,0x6BC000AA0031Bu,0x6C0000EA0031Bu,
    0x734000820030Cu,0x738000C20030Cu,0x73C000920030Cu,0x740000D20030Cu,0x7440009E0030Cu,
    0x748000DE0030Cu,0x74C000AA0030Cu,0x750000EA0030Cu,0x754001B800304u,0x758001F800304u,
    0x75C001B800301u,0x760001F800301u,0x764001B80030Cu,0x768001F80030Cu,0x76C001B800300u,
    0x770001F800300u,0x7780018800304u,0x77C001C800304u,0x7800044C00304u,0x7840044E00304u,
    0x7880018C00304u,0x78C001CC00304u,0x7980008E0030Cu,0x79C000CE0030Cu,0x7A0000960030Cu,
    0x7A4000D60030Cu,0x7A80009E00328u,0x7AC000DE00328u,0x7B0003D400304u,0x7B4003D600304u,
    0x7B80036E0030Cu,0x7BC005240030Cu,0x7C0000D40030Cu,0x7D00008E00301u,0x7D4000CE00301u,
    0x7E00009C00300u,0x7E4000DC00300u,0x7E80018A00301u,0x7EC001CA00301u,0x7F00018C00301u,
    0x7F4001CC00301u,0x7F8001B000301u,0x7FC001F000301u,0x800000820030Fu,0x804000C20030Fu,
    0x8080008200311u,0x80C000C200311u,0x8100008A0030Fu,0x814000CA0030Fu,0x8180008A00311u,
    0x81C000CA00311u,0x820000920030Fu,0x824000D20030Fu,0x8280009200311u,0x82C000D200311u,
    0x8300009E0030Fu,0x834000DE0030Fu,0x8380009E00311u,0x83C000DE00311u,0x840000A40030Fu,
    0x844000E40030Fu,0x848000A400311u,0x84C000E400311u,0x850000AA0030Fu,0x854000EA0030Fu,
    0x858000AA00311u,0x85C000EA00311u,0x860000A600326u,0x864000E600326u,0x868000A800326u,
    0x86C000E800326u,0x878000900030Cu,0x87C000D00030Cu,0x8980008200307u,0x89C000C200307u,
    0x8A00008A00327u,0x8A4000CA00327u,0x8A8001AC00304u,0x8AC001EC00304u,0x8B0001AA00304u,
    0x8B4001EA00304u,0x8B80009E00307u,0x8BC000DE00307u,0x8C00045C00304u,0x8C40045E00304u,
    0x8C8000B200304u,0x8CC000F200304u,0xD000060000000u,0xD040060200000u,0xD0C0062600000u,
    0xD100061000301u,0xDD00057200000u,0xDF80007600000u,0xE140015000301u,0xE180072200301u,
    0xE1C0016E00000u,0xE200072A00301u,0xE240072E00301u,0xE280073200301u,0xE300073E00301u,
    0xE380074A00301u,0xE3C0075200301u,0xE400079400301u,0xEA80073200308u,0xEAC0074A00308u,
    0xEB00076200301u,0xEB40076A00301u,0xEB80076E00301u,0xEBC0077200301u,0xEC00079600301u,
    0xF280077200308u,0xF2C0078A00308u,0xF300077E00301u,0xF340078A00301u,0xF380079200301u,
    0xF4C007A400301u,0xF50007A400308u,0x10000082A00300u,0x10040082A00308u,0x100C0082600301u,
    0x101C0080C00308u,0x10300083400301u,0x10340083000300u,0x10380084600306u,0x10640083000306u,
    0x10E40087000306u,0x11400086A00300u,0x11440086A00308u,0x114C0086600301u,0x115C008AC00308u,
    0x11700087400301u,0x11740087000300u,0x11780088600306u,0x11D8008E80030Fu,0x11DC008EA0030Fu,
    0x13040082C00306u,0x13080086C00306u,0x13400082000306u,0x13440086000306u,0x13480082000308u,
    0x134C0086000308u,0x13580082A00306u,0x135C0086A00306u,0x1368009B000308u,0x136C009B200308u,
    0x13700082C00308u,0x13740086C00308u,0x13780082E00308u,0x137C0086E00308u,0x13880083000304u,
    0x138C0087000304u,0x13900083000308u,0x13940087000308u,0x13980083C00308u,0x139C0087C00308u,
    0x13A8009D000308u,0x13AC009D200308u,0x13B00085A00308u,0x13B40089A00308u,0x13B80084600304u,
    0x13BC0088600304u,0x13C00084600308u,0x13C40088600308u,0x13C8008460030Bu,0x13CC008860030Bu,
    0x13D00084E00308u,0x13D40088E00308u,0x13E00085600308u,0x13E40089600308u,0x188800C4E00653u,
    0x188C00C4E00654u,0x189000C9000654u,0x189400C4E00655u,0x189800C9400654u,0x1B0000DAA00654u,
    0x1B0800D8200654u,0x1B4C00DA400654u,0x24A4012500093Cu,0x24C4012600093Cu,0x24D0012660093Cu,
    0x25600122A0093Cu,0x25640122C0093Cu,0x25680122E0093Cu,0x256C012380093Cu,0x2570012420093Cu,
    0x2574012440093Cu,0x2578012560093Cu,0x257C0125E0093Cu,0x272C0138E009BEu,0x27300138E009D7u,
    0x277001342009BCu,0x277401344009BCu,0x277C0135E009BCu,0x28CC0146400A3Cu,0x28D80147000A3Cu,
    0x29640142C00A3Cu,0x29680142E00A3Cu,0x296C0143800A3Cu,0x29780145600A3Cu,0x2D200168E00B56u,
    0x2D2C0168E00B3Eu,0x2D300168E00B57u,0x2D700164200B3Cu,0x2D740164400B3Cu,0x2E500172400BD7u,
    0x2F280178C00BBEu,0x2F2C0178E00BBEu,0x2F300178C00BD7u,0x31200188C00C56u,0x33000197E00CD5u,
    0x331C0198C00CD5u,0x33200198C00CD6u,0x33280198C00CC2u,0x332C0199400CD5u,0x352801A8C00D3Eu,
    0x352C01A8E00D3Eu,0x353001A8C00D57u,0x376801BB200DCAu,0x377001BB200DCFu,0x377401BB800DCAu,
    0x377801BB200DDFu,0x3D0C01E8400FB7u,0x3D3401E9800FB7u,0x3D4801EA200FB7u,0x3D5C01EAC00FB7u,
    0x3D7001EB600FB7u,0x3DA401E8000FB5u,0x3DCC01EE200F72u,0x3DD401EE200F74u,0x3DD801F6400F80u,
    0x3DE001F6600F80u,0x3E0401EE200F80u,0x3E4C01F2400FB7u,0x3E7401F3800FB7u,0x3E8801F4200FB7u,
    0x3E9C01F4C00FB7u,0x3EB001F5600FB7u,0x3EE401F2000FB5u,0x40980204A0102Eu,0x6C180360A01B35u,
    0x6C200360E01B35u,0x6C280361201B35u,0x6C300361601B35u,0x6C380361A01B35u,0x6C480362201B35u,
    0x6CEC0367401B35u,0x6CF40367801B35u,0x6D000367C01B35u,0x6D040367E01B35u,0x6D0C0368401B35u,
    0x78000008200325u,0x7804000C200325u,0x78080008400307u,0x780C000C400307u,0x78100008400323u,
    0x7814000C400323u,0x78180008400331u,0x781C000C400331u,0x78200018E00301u,0x7824001CE00301u,
    0x78280008800307u,0x782C000C800307u,0x78300008800323u,0x7834000C800323u,0x78380008800331u,
    0x783C000C800331u,0x78400008800327u,0x7844000C800327u,0x7848000880032Du,0x784C000C80032Du,
    0x78500022400300u,0x78540022600300u,0x78580022400301u,0x785C0022600301u,0x78600008A0032Du,
    0x7864000CA0032Du,0x78680008A00330u,0x786C000CA00330u,0x78700045000306u,0x78740045200306u,
    0x78780008C00307u,0x787C000CC00307u,0x78800008E00304u,0x7884000CE00304u,0x78880009000307u,
    0x788C000D000307u,0x78900009000323u,0x7894000D000323u,0x78980009000308u,0x789C000D000308u,
    0x78A00009000327u,0x78A4000D000327u,0x78A8000900032Eu,0x78AC000D00032Eu,0x78B00009200330u,
    0x78B4000D200330u,0x78B80019E00301u,0x78BC001DE00301u,0x78C00009600301u,0x78C4000D600301u,
    0x78C80009600323u,0x78CC000D600323u,0x78D00009600331u,0x78D4000D600331u,0x78D80009800323u,
    0x78DC000D800323u,0x78E003C6C00304u,0x78E403C6E00304u,0x78E80009800331u,0x78EC000D800331u,
    0x78F0000980032Du,0x78F4000D80032Du,0x78F80009A00301u,0x78FC000DA00301u,0x79000009A00307u,
    0x7904000DA00307u,0x79080009A00323u,0x790C000DA00323u,0x79100009C00307u,0x7914000DC00307u,
    0x79180009C00323u,0x791C000DC00323u,0x79200009C00331u,0x7924000DC00331u,0x79280009C0032Du,
    0x792C000DC0032Du,0x7930001AA00301u,0x7934001EA00301u,0x7938001AA00308u,0x793C001EA00308u,
    0x79400029800300u,0x79440029A00300u,0x79480029800301u,0x794C0029A00301u,0x7950000A000301u,
    0x7954000E000301u,0x7958000A000307u,0x795C000E000307u,0x7960000A400307u,0x7964000E400307u,
    0x7968000A400323u,0x796C000E400323u,0x797003CB400304u,0x797403CB600304u,0x7978000A400331u,
    0x797C000E400331u,0x7980000A600307u,0x7984000E600307u,0x7988000A600323u,0x798C000E600323u,
    0x7990002B400307u,0x7994002B600307u,0x7998002C000307u,0x799C002C200307u,0x79A003CC400307u,
    0x79A403CC600307u,0x79A8000A800307u,0x79AC000E800307u,0x79B0000A800323u,0x79B4000E800323u,
    0x79B8000A800331u,0x79BC000E800331u,0x79C0000A80032Du,0x79C4000E80032Du,0x79C8000AA00324u,
    0x79CC000EA00324u,0x79D0000AA00330u,0x79D4000EA00330u,0x79D8000AA0032Du,0x79DC000EA0032Du,
    0x79E0002D000301u,0x79E4002D200301u,0x79E8002D400308u,0x79EC002D600308u,0x79F0000AC00303u,
    0x79F4000EC00303u,0x79F8000AC00323u,0x79FC000EC00323u,0x7A00000AE00300u,0x7A04000EE00300u,
    0x7A08000AE00301u,0x7A0C000EE00301u,0x7A10000AE00308u,0x7A14000EE00308u,0x7A18000AE00307u,
    0x7A1C000EE00307u,0x7A20000AE00323u,0x7A24000EE00323u,0x7A28000B000307u,0x7A2C000F000307u,
    0x7A30000B000308u,0x7A34000F000308u,0x7A38000B200307u,0x7A3C000F200307u,0x7A40000B400302u,
    0x7A44000F400302u,0x7A48000B400323u,0x7A4C000F400323u,0x7A50000B400331u,0x7A54000F400331u,
    0x7A58000D000331u,0x7A5C000E800308u,0x7A60000EE0030Au,0x7A64000F20030Au,0x7A6C002FE00307u,
    0x7A800008200323u,0x7A84000C200323u,0x7A880008200309u,0x7A8C000C200309u,0x7A900018400301u,
    0x7A94001C400301u,0x7A980018400300u,0x7A9C001C400300u,0x7AA00018400309u,0x7AA4001C400309u,
    0x7AA80018400303u,0x7AAC001C400303u,0x7AB003D4000302u,0x7AB403D4200302u,0x7AB80020400301u,
    0x7ABC0020600301u,0x7AC00020400300u,0x7AC40020600300u,0x7AC80020400309u,0x7ACC0020600309u,
    0x7AD00020400303u,0x7AD40020600303u,0x7AD803D4000306u,0x7ADC03D4200306u,0x7AE00008A00323u,
    0x7AE4000CA00323u,0x7AE80008A00309u,0x7AEC000CA00309u,0x7AF00008A00303u,0x7AF4000CA00303u,
    0x7AF80019400301u,0x7AFC001D400301u,0x7B000019400300u,0x7B04001D400300u,0x7B080019400309u,
    0x7B0C001D400309u,0x7B100019400303u,0x7B14001D400303u,0x7B1803D7000302u,0x7B1C03D7200302u,
    0x7B200009200309u,0x7B24000D200309u,0x7B280009200323u,0x7B2C000D200323u,0x7B300009E00323u,
    0x7B34000DE00323u,0x7B380009E00309u,0x7B3C000DE00309u,0x7B40001A800301u,0x7B44001E800301u,
    0x7B48001A800300u,0x7B4C001E800300u,0x7B50001A800309u,0x7B54001E800309u,0x7B58001A800303u,
    0x7B5C001E800303u,0x7B6003D9800302u,0x7B6403D9A00302u,0x7B680034000301u,0x7B6C0034200301u,
    0x7B700034000300u,0x7B740034200300u,0x7B780034000309u,0x7B7C0034200309u,0x7B800034000303u,
    0x7B840034200303u,0x7B880034000323u,0x7B8C0034200323u,0x7B90000AA00323u,0x7B94000EA00323u,
    0x7B98000AA00309u,0x7B9C000EA00309u,0x7BA00035E00301u,0x7BA40036000301u,0x7BA80035E00300u,
    0x7BAC0036000300u,0x7BB00035E00309u,0x7BB40036000309u,0x7BB80035E00303u,0x7BBC0036000303u,
    0x7BC00035E00323u,0x7BC40036000323u,0x7BC8000B200300u,0x7BCC000F200300u,0x7BD0000B200323u,
    0x7BD4000F200323u,0x7BD8000B200309u,0x7BDC000F200309u,0x7BE0000B200303u,0x7BE4000F200303u,
    0x7C000076200313u,0x7C040076200314u,0x7C0803E0000300u,0x7C0C03E0200300u,0x7C1003E0000301u,
    0x7C1403E0200301u,0x7C1803E0000342u,0x7C1C03E0200342u,0x7C200072200313u,0x7C240072200314u,
    0x7C2803E1000300u,0x7C2C03E1200300u,0x7C3003E1000301u,0x7C3403E1200301u,0x7C3803E1000342u,
    0x7C3C03E1200342u,0x7C400076A00313u,0x7C440076A00314u,0x7C4803E2000300u,0x7C4C03E2200300u,
    0x7C5003E2000301u,0x7C5403E2200301u,0x7C600072A00313u,0x7C640072A00314u,0x7C6803E3000300u,
    0x7C6C03E3200300u,0x7C7003E3000301u,0x7C7403E3200301u,0x7C800076E00313u,0x7C840076E00314u,
    0x7C8803E4000300u,0x7C8C03E4200300u,0x7C9003E4000301u,0x7C9403E4200301u,0x7C9803E4000342u,
    0x7C9C03E4200342u,0x7CA00072E00313u,0x7CA40072E00314u,0x7CA803E5000300u,0x7CAC03E5200300u,
    0x7CB003E5000301u,0x7CB403E5200301u,0x7CB803E5000342u,0x7CBC03E5200342u,0x7CC00077200313u,
    0x7CC40077200314u,0x7CC803E6000300u,0x7CCC03E6200300u,0x7CD003E6000301u,0x7CD403E6200301u,
    0x7CD803E6000342u,0x7CDC03E6200342u,0x7CE00073200313u,0x7CE40073200314u,0x7CE803E7000300u,
    0x7CEC03E7200300u,0x7CF003E7000301u,0x7CF403E7200301u,0x7CF803E7000342u,0x7CFC03E7200342u,
    0x7D000077E00313u,0x7D040077E00314u,0x7D0803E8000300u,0x7D0C03E8200300u,0x7D1003E8000301u,
    0x7D1403E8200301u,0x7D200073E00313u,0x7D240073E00314u,0x7D2803E9000300u,0x7D2C03E9200300u,
    0x7D3003E9000301u,0x7D3403E9200301u,0x7D400078A00313u,0x7D440078A00314u,0x7D4803EA000300u,
    0x7D4C03EA200300u,0x7D5003EA000301u,0x7D5403EA200301u,0x7D5803EA000342u,0x7D5C03EA200342u,
    0x7D640074A00314u,0x7D6C03EB200300u,0x7D7403EB200301u,0x7D7C03EB200342u,0x7D800079200313u,
    0x7D840079200314u,0x7D8803EC000300u,0x7D8C03EC200300u,0x7D9003EC000301u,0x7D9403EC200301u,
    0x7D9803EC000342u,0x7D9C03EC200342u,0x7DA00075200313u,0x7DA40075200314u,0x7DA803ED000300u,
    0x7DAC03ED200300u,0x7DB003ED000301u,0x7DB403ED200301u,0x7DB803ED000342u,0x7DBC03ED200342u,
    0x7DC00076200300u,0x7DC40075800000u,0x7DC80076A00300u,0x7DCC0075A00000u,0x7DD00076E00300u,
    0x7DD40075C00000u,0x7DD80077200300u,0x7DDC0075E00000u,0x7DE00077E00300u,0x7DE40079800000u,
    0x7DE80078A00300u,0x7DEC0079A00000u,0x7DF00079200300u,0x7DF40079C00000u,0x7E0003E0000345u,
    0x7E0403E0200345u,0x7E0803E0400345u,0x7E0C03E0600345u,0x7E1003E0800345u,0x7E1403E0A00345u,
    0x7E1803E0C00345u,0x7E1C03E0E00345u,0x7E2003E1000345u,0x7E2403E1200345u,0x7E2803E1400345u,
    0x7E2C03E1600345u,0x7E3003E1800345u,0x7E3403E1A00345u,0x7E3803E1C00345u,0x7E3C03E1E00345u,
    0x7E4003E4000345u,0x7E4403E4200345u,0x7E4803E4400345u,0x7E4C03E4600345u,0x7E5003E4800345u,
    0x7E5403E4A00345u,0x7E5803E4C00345u,0x7E5C03E4E00345u,0x7E6003E5000345u,0x7E6403E5200345u,
    0x7E6803E5400345u,0x7E6C03E5600345u,0x7E7003E5800345u,0x7E7403E5A00345u,0x7E7803E5C00345u,
    0x7E7C03E5E00345u,0x7E8003EC000345u,0x7E8403EC200345u,0x7E8803EC400345u,0x7E8C03EC600345u,
    0x7E9003EC800345u,0x7E9403ECA00345u,0x7E9803ECC00345u,0x7E9C03ECE00345u,0x7EA003ED000345u,
    0x7EA403ED200345u,0x7EA803ED400345u,0x7EAC03ED600345u,0x7EB003ED800345u,0x7EB403EDA00345u,
    0x7EB803EDC00345u,0x7EBC03EDE00345u,0x7EC00076200306u,0x7EC40076200304u,0x7EC803EE000345u,
    0x7ECC0076200345u,0x7ED00075800345u,0x7ED80076200342u,0x7EDC03F6C00345u,0x7EE00072200306u,
    0x7EE40072200304u,0x7EE80072200300u,0x7EEC0070C00000u,0x7EF00072200345u,0x7EF80077200000u,
    0x7F040015000342u,0x7F0803EE800345u,0x7F0C0076E00345u,0x7F100075C00345u,0x7F180076E00342u,
    0x7F1C03F8C00345u,0x7F200072A00300u,0x7F240071000000u,0x7F280072E00300u,0x7F2C0071200000u,
    0x7F300072E00345u,0x7F3403F7E00300u,0x7F3803F7E00301u,0x7F3C03F7E00342u,0x7F400077200306u,
    0x7F440077200304u,0x7F480079400300u,0x7F4C0072000000u,0x7F580077200342u,0x7F5C0079400342u,
    0x7F600073200306u,0x7F640073200304u,0x7F680073200300u,0x7F6C0071400000u,0x7F7403FFC00300u,
    0x7F7803FFC00301u,0x7F7C03FFC00342u,0x7F800078A00306u,0x7F840078A00304u,0x7F880079600300u,
    0x7F8C0076000000u,0x7F900078200313u,0x7F940078200314u,0x7F980078A00342u,0x7F9C0079600342u,
    0x7FA00074A00306u,0x7FA40074A00304u,0x7FA80074A00300u,0x7FAC0071C00000u,0x7FB00074200314u,
    0x7FB40015000300u,0x7FB80070A00000u,0x7FBC000C000000u,0x7FC803EF800345u,0x7FCC0079200345u,
    0x7FD00079C00345u,0x7FD80079200342u,0x7FDC03FEC00345u,0x7FE00073E00300u,0x7FE40071800000u,
    0x7FE80075200300u,0x7FEC0071E00000u,0x7FF00075200345u,0x7FF40016800000u,0x80000400400000u,
    0x80040400600000u,0x84980075200000u,0x84A80009600000u,0x84AC0018A00000u,0x86680432000338u,
    0x866C0432400338u,0x86B80432800338u,0x8734043A000338u,0x8738043A800338u,0x873C043A400338u,
    0x88100440600338u,0x88240441000338u,0x88300441600338u,0x88900444600338u,0x88980444A00338u,
    0x89040447800338u,0x89100448600338u,0x891C0448A00338u,0x89240449000338u,0x89800007A00338u,
    0x8988044C200338u,0x89B40449A00338u,0x89B80007800338u,0x89BC0007C00338u,0x89C0044C800338u,
    0x89C4044CA00338u,0x89D0044E400338u,0x89D4044E600338u,0x89E0044EC00338u,0x89E4044EE00338u,
    0x8A00044F400338u,0x8A04044F600338u,0x8A100450400338u,0x8A140450600338u,0x8A200450C00338u,
    0x8A240450E00338u,0x8AB00454400338u,0x8AB40455000338u,0x8AB80455200338u,0x8ABC0455600338u,
    0x8B80044F800338u,0x8B84044FA00338u,0x8B880452200338u,0x8B8C0452400338u,0x8BA80456400338u,
    0x8BAC0456600338u,0x8BB00456800338u,0x8BB40456A00338u,0x8CA40601000000u,0x8CA80601200000u,
    0xAB70055BA00338u,0xC1300609603099u,0xC1380609A03099u,0xC1400609E03099u,0xC148060A203099u,
    0xC150060A603099u,0xC158060AA03099u,0xC160060AE03099u,0xC168060B203099u,0xC170060B603099u,
    0xC178060BA03099u,0xC180060BE03099u,0xC188060C203099u,0xC194060C803099u,0xC19C060CC03099u,
    0xC1A4060D003099u,0xC1C0060DE03099u,0xC1C4060DE0309Au,0xC1CC060E403099u,0xC1D0060E40309Au,
    0xC1D8060EA03099u,0xC1DC060EA0309Au,0xC1E4060F003099u,0xC1E8060F00309Au,0xC1F0060F603099u,
    0xC1F4060F60309Au,0xC2500608C03099u,0xC2780613A03099u,0xC2B00615603099u,0xC2B80615A03099u,
    0xC2C00615E03099u,0xC2C80616203099u,0xC2D00616603099u,0xC2D80616A03099u,0xC2E00616E03099u,
    0xC2E80617203099u,0xC2F00617603099u,0xC2F80617A03099u,0xC3000617E03099u,0xC3080618203099u,
    0xC3140618803099u,0xC31C0618C03099u,0xC3240619003099u,0xC3400619E03099u,0xC3440619E0309Au,
    0xC34C061A403099u,0xC350061A40309Au,0xC358061AA03099u,0xC35C061AA0309Au,0xC364061B003099u,
    0xC368061B00309Au,0xC370061B603099u,0xC374061B60309Au,0xC3D00614C03099u,0xC3DC061DE03099u,
    0xC3E0061E003099u,0xC3E4061E203099u,0xC3E8061E403099u,0xC3F8061FA03099u,0x3EC7400BB2005B4u,
    0x3EC7C00BE4005B7u,0x3ECA800BD2005C1u,0x3ECAC00BD2005C2u,0x3ECB01F692005C1u,0x3ECB41F692005C2u,
    0x3ECB800BA0005B7u,0x3ECBC00BA0005B8u,0x3ECC000BA0005BCu,0x3ECC400BA2005BCu,0x3ECC800BA4005BCu,
    0x3ECCC00BA6005BCu,0x3ECD000BA8005BCu,0x3ECD400BAA005BCu,0x3ECD800BAC005BCu,0x3ECE000BB0005BCu,
    0x3ECE400BB2005BCu,0x3ECE800BB4005BCu,0x3ECEC00BB6005BCu,0x3ECF000BB8005BCu,0x3ECF800BBC005BCu,
    0x3ED0000BC0005BCu,0x3ED0400BC2005BCu,0x3ED0C00BC6005BCu,0x3ED1000BC8005BCu,0x3ED1800BCC005BCu,
    0x3ED1C00BCE005BCu,0x3ED2000BD0005BCu,0x3ED2400BD2005BCu,0x3ED2800BD4005BCu,0x3ED2C00BAA005B9u,
    0x3ED3000BA2005BFu,0x3ED3400BB6005BFu,0x3ED3800BC8005BFu,0x4426822132110BAu,0x4427022136110BAu,
    0x442AC2214A110BAu,0x444B82226211127u,0x444BC2226411127u,0x44D2C2268E1133Eu,0x44D302268E11357u,
    0x452EC22972114BAu,0x452F022972114B0u,0x452F822972114BDu,0x456E822B70115AFu,0x456EC22B72115AFu,
    0x464E02326A11930u,0x745783A2AE1D165u,0x7457C3A2B01D165u,0x745803A2BE1D16Eu,0x745843A2BE1D16Fu,
    0x745883A2BE1D170u,0x7458C3A2BE1D171u,0x745903A2BE1D172u,0x746EC3A3721D165u,0x746F03A3741D165u,
    0x746F43A3761D16Eu,0x746F83A3781D16Eu,0x746FC3A3761D16Fu,0x747003A3781D16Fu,
};
static const uint16_t mbi_uc_compose[] = {
    0x390,0x38D,0x391,0,1,2,3,0x35,0x37,0xEE,4,0x23C,5,0xA5,0xD0,0xD2,0x23A,0x19F,0x39,0x1A1,0x1A3,
    0x1A5,0x3B,0x3D,0x3F,0x41,6,0x1A9,0x43,0x1AB,0x1AF,0x1B1,0x1AD,7,8,9,0x256,0x45,0x47,0x49,0xA,
    0x254,0x4D,0xD4,0xD6,0x252,0xF0,0x4B,0x1B7,0x1B9,0x1BD,0xC6,0x4F,0x1BF,0x51,0x53,0xBB,0x55,
    0x57,0x1C1,0x1C5,0xEC,0x1C3,0x1C7,0x1C9,0xB,0xC,0xD,0x59,0x5B,0x5D,0x61,0xE,0x262,0xA7,0xD8,
    0xDA,0x264,0x5F,0x1CB,0x62,0x1CF,0xBD,0x1D1,0x64,0x1D3,0x66,0x6A,0x1D5,0x68,0x1DB,0x1D9,0x1DD,
    0x1DF,0x1E1,0xC8,0x6C,0xF,0x1E3,0x70,0x1E5,0x6E,0x1E9,0x1E7,0x10,0x11,0x12,0x13,0x72,0x74,0xF6,
    0x14,0x268,0x76,0xA9,0xDC,0xDE,0xA1,0x266,0xBF,0x1F3,0x1F5,0x78,0x1F7,0x7C,0xE0,0xE2,0x1F9,
    0x7A,0x1FD,0x7E,0x80,0x1FF,0x84,0x201,0xE8,0x82,0x209,0x88,0x20B,0xEA,0x86,0x20F,0x20D,0x15,
    0x16,0x17,0x8A,0x8C,0x8E,0x18,0x280,0x90,0x92,0xAB,0xE4,0xE6,0xA3,0x27E,0x211,0x94,0x215,0x213,
    0x21B,0x21D,0x21F,0x221,0x96,0x225,0x223,0x227,0x229,0x22B,0x28C,0x19,0x98,0x292,0xFA,0x22D,
    0x9A,0x290,0x28E,0x9B,0x22F,0x9D,0x9F,0x231,0x233,0x1A,0x1B,0x1C,0x1D,0x36,0x38,0xEF,0x1E,
    0x23D,0x1F,0xA6,0xD1,0xD3,0x23B,0x1A0,0x3A,0x1A2,0x1A4,0x1A6,0x3C,0x3E,0x40,0x42,0x20,0x1AA,
    0x44,0x1AC,0x1B0,0x1B2,0x1AE,0x21,0x22,0x23,0x257,0x46,0x48,0x4A,0x24,0x255,0x4E,0xD5,0xD7,
    0x253,0xF1,0x4C,0x1B8,0x1BA,0x1BE,0xC7,0x50,0x1C0,0x52,0x54,0xBC,0x56,0x58,0x1C2,0x1C6,0xED,
    0x1C4,0x1C8,0x1CA,0x235,0x25,0x26,0x27,0x5A,0x5C,0x5E,0x28,0x263,0xA8,0xD9,0xDB,0x265,0x60,
    0x1CC,0x63,0xC5,0x1D0,0xBE,0x1D2,0x65,0x1D4,0x67,0x6B,0x1D6,0x69,0x1DC,0x1DA,0x1DE,0x1E0,0x1E2,
    0xC9,0x6D,0x29,0x1E4,0x71,0x1E6,0x6F,0x1EA,0x1E8,0x2A,0x2B,0x2C,0x2D,0x73,0x75,0xF7,0x2E,0x269,
    0x77,0xAA,0xDD,0xDF,0xA2,0x267,0xC0,0x1F4,0x1F6,0x79,0x1F8,0x7D,0xE1,0xE3,0x1FA,0x7B,0x1FE,
    0x7F,0x81,0x200,0x85,0x202,0xE9,0x83,0x20A,0x236,0x89,0x20C,0xEB,0x87,0x210,0x20E,0x2F,0x30,
    0x31,0x8B,0x8D,0x8F,0x32,0x281,0x91,0x93,0xAC,0xE5,0xE7,0xA4,0x27F,0x212,0x95,0x216,0x214,
    0x21C,0x21E,0x220,0x222,0x97,0x226,0x224,0x237,0x228,0x22A,0x22C,0x28D,0x33,0x99,0x293,0xFB,
    0x22E,0x34,0x291,0x238,0x28F,0x9C,0x230,0x9E,0xA0,0x232,0x234,0x36B,0x102,0x343,0x240,0x23E,
    0x244,0x242,0xB5,0xCA,0xCC,0xB9,0x1A7,0x25A,0x258,0x25E,0x25C,0x1CD,0x26C,0x26A,0x270,0x26E,
    0x1EB,0xF4,0x1ED,0xF2,0xCE,0xB3,0xAF,0xAD,0xB1,0x241,0x23F,0x245,0x243,0xB6,0xCB,0xCD,0xBA,
    0x1A8,0x25B,0x259,0x25F,0x25D,0x1CE,0x26D,0x26B,0x271,0x26F,0x1EC,0xF5,0x1EE,0xF3,0xCF,0xB4,
    0xB0,0xAE,0xB2,0x24A,0x248,0x24E,0x24C,0x24B,0x249,0x24F,0x24D,0x1B3,0x1B5,0x1B4,0x1B6,0x1EF,
    0x1F1,0x1F0,0x1F2,0x203,0x204,0x205,0x206,0x217,0x218,0x219,0x21A,0x239,0x276,0x274,0x27A,
    0x278,0x27C,0x277,0x275,0x27B,0x279,0x27D,0x284,0x282,0x288,0x286,0x28A,0x285,0x283,0x289,
    0x287,0x28B,0xC3,0xC1,0xC2,0xB7,0xB8,0x1BB,0x1BC,0xF8,0xF9,0xC4,0x33F,0x103,0x33E,0x33D,0x29C,
    0x29D,0x341,0x349,0x105,0x2AA,0x2AB,0x34B,0x106,0x2B8,0x2B9,0x34D,0x359,0x107,0x358,0x357,
    0x10C,0x2C8,0x2C9,0x373,0x108,0x2D6,0x2D7,0x36A,0x368,0x109,0x367,0x366,0x10D,0x2E4,0x375,
    0x10A,0x2F0,0x2F1,0x377,0x33A,0x346,0x2F8,0x10E,0x337,0x336,0x294,0x295,0x33B,0x339,0x2FA,
    0x10F,0x2A4,0x2A5,0x2FC,0x110,0x2B0,0x2B1,0x347,0x345,0x2FE,0x111,0x352,0x351,0x113,0x2C0,
    0x2C1,0x355,0x300,0x115,0x2D0,0x2D1,0x362,0x363,0x302,0x116,0x35F,0x35E,0x114,0x2DC,0x2DD,
    0x364,0x304,0x117,0x2E8,0x2E9,0x371,0x36F,0x353,0x10B,0x356,0x360,0x112,0x365,0x370,0x118,
    0x119,0x11D,0x12E,0x130,0x11C,0x11A,0x132,0x11B,0x12C,0x136,0x138,0x11F,0x13A,0x121,0x13C,
    0x11E,0x13E,0x144,0x120,0x146,0x148,0x14A,0x14C,0x142,0x12F,0x131,0x125,0x123,0x133,0x124,
    0x12D,0x137,0x139,0x128,0x13B,0x122,0x13D,0x127,0x13F,0x145,0x129,0x147,0x149,0x14B,0x14D,
    0x143,0x126,0x12A,0x12B,0x134,0x135,0x140,0x141,0x14E,0x14F,0x151,0x150,0x152,0x154,0x155,
    0x153,0x156,0x157,0x158,0x161,0x162,0x16D,0x16C,0x16E,0x171,0x172,0x174,0x173,0x175,0x176,
    0x179,0x177,0x178,0x17A,0x17B,0x17D,0x17C,0x17E,0x17F,0x181,0x180,0x193,0x194,0x195,0x196,
    0x197,0x198,0x199,0x19A,0x19B,0x19C,0x19D,0x19E,0x1D7,0x1D8,0x1FB,0x1FC,0x207,0x208,0x246,
    0x250,0x247,0x251,0x260,0x261,0x272,0x273,0x296,0x298,0x29A,0x306,0x297,0x299,0x29B,0x307,
    0x308,0x309,0x30A,0x30B,0x30C,0x30D,0x29E,0x2A0,0x2A2,0x30E,0x29F,0x2A1,0x2A3,0x30F,0x310,
    0x311,0x312,0x313,0x314,0x315,0x2A6,0x2A8,0x2A7,0x2A9,0x2AC,0x2AE,0x2AD,0x2AF,0x2B2,0x2B4,
    0x2B6,0x316,0x2B3,0x2B5,0x2B7,0x317,0x318,0x319,0x31A,0x31B,0x31C,0x31D,0x2BA,0x2BC,0x2BE,
    0x31E,0x2BB,0x2BD,0x2BF,0x31F,0x320,0x321,0x322,0x323,0x324,0x325,0x2C2,0x2C4,0x2C6,0x2C3,
    0x2C5,0x2C7,0x2CA,0x2CC,0x2CE,0x2CB,0x2CD,0x2CF,0x2D2,0x2D4,0x2D3,0x2D5,0x2D8,0x2DA,0x2D9,
    0x2DB,0x2DE,0x2E0,0x2E2,0x2DF,0x2E1,0x2E3,0x2E5,0x2E6,0x2E7,0x2EA,0x2EC,0x2EE,0x326,0x2EB,
    0x2ED,0x2EF,0x327,0x328,0x329,0x32A,0x32B,0x32C,0x32D,0x2F2,0x2F4,0x2F6,0x32E,0x2F3,0x2F5,
    0x2F7,0x32F,0x330,0x331,0x332,0x333,0x334,0x335,0x338,0x344,0x36E,0x33C,0x34E,0x34F,0x350,
    0x348,0x372,0x35B,0x35C,0x35D,0x37E,0x37F,0x380,0x381,0x383,0x382,0x384,0x385,0x386,0x387,
    0x388,0x389,0x38A,0x38B,0x38C,0x38F,0x38E,0x392,0x393,0x394,0x395,0x396,0x397,0x398,0x399,
    0x3A2,0x3A3,0x39A,0x39B,0x39C,0x39D,0x3A4,0x3A5,0x39E,0x39F,0x3A0,0x3A1,0x3A6,0x3A7,0x3A8,
    0x3A9,0x3C6,0x3AD,0x3AE,0x3AF,0x3B0,0x3B1,0x3B2,0x3B3,0x3B4,0x3B5,0x3B6,0x3B7,0x3B8,0x3B9,
    0x3BA,0x3BB,0x3BC,0x3BD,0x3BE,0x3BF,0x3C0,0x3C1,0x3C2,0x3C3,0x3C4,0x3C5,0x3C7,0x3E1,0x3C8,
    0x3C9,0x3CA,0x3CB,0x3CC,0x3CD,0x3CE,0x3CF,0x3D0,0x3D1,0x3D2,0x3D3,0x3D4,0x3D5,0x3D6,0x3D7,
    0x3D8,0x3D9,0x3DA,0x3DB,0x3DC,0x3DD,0x3DE,0x3DF,0x3E0,0x3E2,0x3E3,0x3E4,0x3E5,0x3E6,0x409,
    0x40A,0x40B,0x40C,0x40D,0x40E,0x40F,0x411,0x410,0x412,0x413,0x414,0x415,
};
/* unicode tables: end */
enum {
    MBI_UC_OTHER = 0, MBI_UC_LETTER = 1, MBI_UC_NUMBER = 2, MBI_UC_SPACE = 3, MBI_UC_KIND = 3,
    MBI_UC_NFC = 4
};

/* What an ill-formed byte decodes to: beyond Unicode, so its class is "other" and nothing maps. */
#define MBI_UC_BAD 0x110000u
#define MBI_COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

/* Bytes of the UTF-8 sequence that starts with this byte; 0 if none can. */
static int mbi_utf8_need(unsigned char lead) {
    if (lead < 0x80) {
        return 1;
    }
    return lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
}

/* 1 if `second` may follow `lead`: keeps out overlong forms, surrogates and above U+10FFFF. */
static int mbi_utf8_second_ok(unsigned char lead, unsigned char second) {
    unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    return second >= low && second <= high;
}

/* Decodes one character at p < end and returns its length. A byte that is not the start of a
 * well-formed sequence is a unit of its own: length 1, MBI_UC_BAD. */
static int mbi_utf8_get(const unsigned char *p, const unsigned char *end, uint32_t *cp) {
    int need = mbi_utf8_need(*p);
    int i;
    uint32_t c;
    if (need == 1) {
        *cp = *p;
        return 1;
    }
    *cp = MBI_UC_BAD;
    if (need == 0 || end - p < need || !mbi_utf8_second_ok(p[0], p[1])) {
        return 1;
    }
    c = *p & (0x7Fu >> need);
    for (i = 1; i < need; i++) {
        if ((p[i] & 0xC0) != 0x80) {
            return 1;
        }
        c = c << 6 | (p[i] & 0x3Fu);
    }
    *cp = c;
    return need;
}

static int mbi_utf8_put(uint32_t cp, unsigned char *out) {
    if (cp < 0x80) {
        out[0] = (unsigned char)cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (unsigned char)(0xC0 | cp >> 6);
        out[1] = (unsigned char)(0x80 | (cp & 0x3F));
        return 2;
    }
    if (cp < 0x10000) {
        out[0] = (unsigned char)(0xE0 | cp >> 12);
        out[1] = (unsigned char)(0x80 | (cp >> 6 & 0x3F));
        out[2] = (unsigned char)(0x80 | (cp & 0x3F));
        return 3;
    }
    out[0] = (unsigned char)(0xF0 | cp >> 18);
    out[1] = (unsigned char)(0x80 | (cp >> 12 & 0x3F));
    out[2] = (unsigned char)(0x80 | (cp >> 6 & 0x3F));
    out[3] = (unsigned char)(0x80 | (cp & 0x3F));
    return 4;
}

static int mbi_utf8_valid(const unsigned char *p, const unsigned char *end) {
    while (p < end) {
        uint32_t cp;
        if (*p < 0x80) {
            ++p;
            continue;
        }
        p += mbi_utf8_get(p, end, &cp);
        if (cp == MBI_UC_BAD) {
            return 0;
        }
    }
    return 1;
}

/* Index of the last entry of a rising table whose (entry >> shift) is <= key; entry 0 is <= all. */
static size_t mbi_uc_search(const uint32_t *table, size_t n, int shift, uint32_t key) {
    size_t base = 0;
    while (n > 1) {
        size_t half = n / 2;
        base += (table[base + half] >> shift) <= key ? half : 0;
        n -= half;
    }
    return base;
}

/* Remembers the range of the last character: text mostly stays within one script. */
typedef struct mbi_uc_cursor {
    uint32_t from;
    uint32_t to;                 /* past the end; 0: nothing remembered */
    unsigned cls;
} mbi_uc_cursor;

static unsigned mbi_uc_class(mbi_uc_cursor *k, uint32_t cp) {
    if (cp < k->from || cp >= k->to) {
        size_t n = MBI_COUNT_OF(mbi_uc_classes);
        size_t i = mbi_uc_search(mbi_uc_classes, n, 3, cp);
        k->from = mbi_uc_classes[i] >> 3;
        k->to = i + 1 < n ? mbi_uc_classes[i + 1] >> 3 : 0xFFFFFFFFu;
        k->cls = mbi_uc_classes[i] & 7;
    }
    return k->cls;
}

/* Class (bits 0-1 only) of the character at p < end, and its length. */
static unsigned mbi_uc_class_at(mbi_uc_cursor *k, const unsigned char *p, const unsigned char *end,
                                int *length) {
    uint32_t cp = *p;
    if (cp < 0x80) {
        *length = 1;
        if ((cp | 32) - 'a' < 26) {
            return MBI_UC_LETTER;
        }
        if (cp - '0' < 10) {
            return MBI_UC_NUMBER;
        }
        return cp == ' ' || cp - 9 < 5 ? MBI_UC_SPACE : MBI_UC_OTHER;
    }
    *length = mbi_utf8_get(p, end, &cp);
    return mbi_uc_class(k, cp) & MBI_UC_KIND;
}

static int mbi_uc_is_punctuation(uint32_t cp) {
    size_t n = MBI_COUNT_OF(mbi_uc_punctuation);
    return (int)(mbi_uc_search(mbi_uc_punctuation, n, 0, cp) & 1);
}

static unsigned mbi_uc_ccc(uint32_t cp) {
    if (cp < 0x300) {
        return 0;
    }
    return mbi_uc_combining[mbi_uc_search(mbi_uc_combining, MBI_COUNT_OF(mbi_uc_combining), 8, cp)]
        & 0xFF;
}

/* One step of the canonical decomposition. Returns 0 if there is none; *b = 0 for a singleton. */
static int mbi_uc_decompose_step(uint32_t cp, uint32_t *a, uint32_t *b) {
    size_t base = 0;
    size_t n = MBI_COUNT_OF(mbi_uc_pairs);
    *a = 0;
    *b = 0;
    if (cp >= 0xF900 && cp <= 0xFAFF) {
        *a = mbi_uc_cjk1[cp - 0xF900];
        return *a != 0;
    }
    if (cp >= 0x2F800 && cp <= 0x2FA1F) {
        *a = mbi_uc_cjk2[cp - 0x2F800];
        return *a != 0;
    }
    while (n > 1) {
        size_t half = n / 2;
        base += (mbi_uc_pairs[base + half] >> 42) <= cp ? half : 0;
        n -= half;
    }
    if ((mbi_uc_pairs[base] >> 42) != cp) {
        return 0;
    }
    *a = (uint32_t)(mbi_uc_pairs[base] >> 21 & 0x1FFFFF);
    *b = (uint32_t)(mbi_uc_pairs[base] & 0x1FFFFF);
    return 1;
}

/* Full canonical decomposition: 1 to 4 code points. The second half of a pair never decomposes
 * (tools/unicode.c checks that), so the work is a chain, not a tree. */
static int mbi_uc_decompose(uint32_t cp, uint32_t out[4]) {
    uint32_t a;
    uint32_t b;
    uint32_t tail[3];
    int n_tail = 0;
    int n = 0;
    if (cp - 0xAC00u < 11172u) {         /* Hangul syllables, by arithmetic: 19 x 21 x (1 + 27) */
        uint32_t s = cp - 0xAC00u;
        out[0] = 0x1100 + s / 588;
        out[1] = 0x1161 + s % 588 / 28;
        out[2] = 0x11A7 + s % 28;
        return s % 28 != 0 ? 3 : 2;
    }
    while (cp >= 0xC0 && mbi_uc_decompose_step(cp, &a, &b)) {
        if (b != 0 && n_tail < 3) {
            tail[n_tail++] = b;
        }
        cp = a;
    }
    out[n++] = cp;
    while (n_tail > 0) {
        out[n++] = tail[--n_tail];
    }
    return n;
}

/* The character that a followed by b composes to, or 0. */
static uint32_t mbi_uc_compose_pair(uint32_t a, uint32_t b) {
    uint64_t key = (uint64_t)a << 21 | b;
    uint64_t mask = ((uint64_t)1 << 42) - 1;
    size_t base = 0;
    size_t n = MBI_COUNT_OF(mbi_uc_compose);
    if (a - 0x1100u < 19u && b - 0x1161u < 21u) {
        return 0xAC00 + ((a - 0x1100) * 21 + (b - 0x1161)) * 28;
    }
    if (a - 0xAC00u < 11172u && (a - 0xAC00u) % 28 == 0 && b - 0x11A8u < 27u) {
        return a + (b - 0x11A7);
    }
    while (n > 1) {
        size_t half = n / 2;
        base += (mbi_uc_pairs[mbi_uc_compose[base + half]] & mask) <= key ? half : 0;
        n -= half;
    }
    if ((mbi_uc_pairs[mbi_uc_compose[base]] & mask) != key) {
        return 0;
    }
    return (uint32_t)(mbi_uc_pairs[mbi_uc_compose[base]] >> 42);
}

/* Entries of a run under normalization: code point | combining class << 24. */
#define MBI_NFC_CP(x) ((x) & 0x1FFFFFu)
#define MBI_NFC_CCC(x) ((x) >> 24)

/* Canonical ordering: a stable sort by combining class of each stretch of classes other than 0.
 * Counting keeps a megabyte of marks linear. */
static void mbi_nfc_sort(uint32_t *run, uint32_t *tmp, size_t n) {
    size_t i = 0;
    while (i < n) {
        size_t from = i;
        size_t j;
        size_t at = 0;
        uint32_t count[256];
        unsigned c;
        while (i < n && MBI_NFC_CCC(run[i]) != 0) {
            ++i;
        }
        MBI_TEXT_WORK(i - from);
        if (i - from <= 16) {
            for (j = from + 1; j < i; j++) {
                uint32_t x = run[j];
                size_t k = j;
                while (k > from && MBI_NFC_CCC(run[k - 1]) > MBI_NFC_CCC(x)) {
                    run[k] = run[k - 1];
                    --k;
                }
                run[k] = x;
            }
            i += i == from;
            continue;
        }
        memset(count, 0, sizeof count);
        for (j = from; j < i; j++) {
            ++count[MBI_NFC_CCC(run[j])];
        }
        for (c = 0; c < 256; c++) {
            size_t next = at + count[c];
            count[c] = (uint32_t)at;
            at = next;
        }
        for (j = from; j < i; j++) {
            tmp[count[MBI_NFC_CCC(run[j])]++] = run[j];
        }
        memcpy(run + from, tmp, (i - from) * sizeof run[0]);
    }
}

/* Canonical composition in place; returns the new length.  [UAX #15, D117] */
static size_t mbi_nfc_compose(uint32_t *run, size_t n) {
    size_t starter = (size_t)-1;
    size_t kept = 0;
    size_t i;
    for (i = 0; i < n; i++) {
        unsigned ccc = MBI_NFC_CCC(run[i]);
        /* run[i] is blocked from the starter by a kept character between them whose class is 0 or
         * not below its own; the classes are sorted, so the last one kept decides. */
        if (starter != (size_t)-1 && (kept == starter + 1 || MBI_NFC_CCC(run[kept - 1]) < ccc)) {
            uint32_t c = mbi_uc_compose_pair(MBI_NFC_CP(run[starter]), MBI_NFC_CP(run[i]));
            if (c != 0) {
                run[starter] = c;
                continue;
            }
        }
        if (ccc == 0) {
            starter = kept;
        }
        run[kept++] = run[i];
    }
    return kept;
}

/* ------------------------------------------------------------------------------------------------
 * @@text   Added tokens, normalization, splitting, byte pair encoding                 (private)
 * ---------------------------------------------------------------------------------------------- */
typedef struct mbi_block {
    unsigned char *p;
    size_t bytes;
} mbi_block;

/* Everything that one call of mamba_encode holds; freed by mbi_encode_end on every way out. */
typedef struct mbi_encoder {
    const mamba_tokenizer *t;
    unsigned parse;                     /* flags of mamba_encode */
    int normalize;
    int32_t *ids;                       /* NULL: only count */
    size_t cap;
    size_t n;                           /* ids found so far, also beyond cap */
    const unsigned char *start;         /* of the text, as long as nothing came before it */
    mbi_uc_cursor cursor;
    mbi_block work;                     /* scratch of normalization, then of BPE */
    mbi_block normal;                   /* the normalized copy of a segment */
    mbi_block prefixed;                 /* a copy with a space in front */
    mamba_error *err;
} mbi_encoder;

static void mbi_block_free(mbi_encoder *e, mbi_block *block) {
    if (block->p != NULL) {
        e->t->memory.free(e->t->memory.user, block->p, block->bytes);
    }
    block->p = NULL;
    block->bytes = 0;
}

/* Makes a block at least `bytes` large; its content is lost. Growing by half keeps a text of many
 * long words linear. */
static mamba_status mbi_encode_room(mbi_encoder *e, mbi_block *block, size_t bytes) {
    if (bytes <= block->bytes) {
        return MAMBA_OK;
    }
    bytes = bytes > block->bytes + block->bytes / 2 ? bytes : block->bytes + block->bytes / 2;
    mbi_block_free(e, block);
    block->p = (unsigned char *)e->t->memory.alloc(e->t->memory.user, bytes, 64);
    block->bytes = block->p != NULL ? bytes : 0;
    if (block->p == NULL) {
        return mbi_fail(e->err, MAMBA_ERR_MEMORY, "out of memory while encoding", "text", 0);
    }
    return MAMBA_OK;
}

static void mbi_encode_end(mbi_encoder *e) {
    mbi_block_free(e, &e->work);
    mbi_block_free(e, &e->normal);
    mbi_block_free(e, &e->prefixed);
}

static void mbi_encode_put(mbi_encoder *e, uint32_t id) {
    if (e->n < e->cap) {
        e->ids[e->n] = (int32_t)id;
    }
    ++e->n;
}

static mamba_status mbi_encode_no_byte(mbi_encoder *e, unsigned char byte) {
    return mbi_fail_value(e->err, MAMBA_ERR_UNSUPPORTED, "the vocabulary has no token for a byte",
                          "text", 0, byte, -1, -1);
}

/* --- byte pair encoding.  Always the applicable merge of lowest rank, leftmost first. */

#define MBI_BPE_SHORT 48                /* up to here scanning for the lowest rank beats a heap */

static void mbi_bpe_look(const mamba_tokenizer *t, uint32_t left, uint32_t right, uint32_t *rank,
                         uint32_t *merged) {
    const unsigned char *slot = mbi_tok_find(t, left, right);
    *rank = slot != NULL ? mbi_load_u32(slot + 8) : MBI_TOK_NONE;
    *merged = slot != NULL ? mbi_load_u32(slot + 12) : MBI_TOK_NONE;
}

/* Is this character read as a space? */
static int mbi_bpe_is_space(const mbi_encoder *e, uint32_t cp) {
    return cp == 0x2581 && e->t->kind == MBI_TOK_CHARS && (e->parse & MAMBA_NO_NORMALIZE) == 0;
}

/* The ids that merging starts from: bytes, or characters and the bytes of those that are no tokens.
 * At most one for each byte. */
static mamba_status mbi_bpe_start(mbi_encoder *e, const unsigned char *p, size_t n, uint32_t *id,
                                  size_t *n_ids) {
    const unsigned char *end = p + n;
    *n_ids = 0;
    while (p < end) {
        const unsigned char *next = p + 1;
        if (e->t->kind == MBI_TOK_CHARS) {
            uint32_t cp;
            uint32_t whole;
            next = p + mbi_utf8_get(p, end, &cp);
            whole = mbi_tok_char(e->t, mbi_bpe_is_space(e, cp) ? ' ' : cp);
            if (whole != MBI_TOK_NONE) {
                id[(*n_ids)++] = whole;
                p = next;
            }
        }
        for (; p < next; p++) {
            id[*n_ids] = mbi_load_u32(e->t->byte_ids + (size_t)4 * *p);
            if (id[(*n_ids)++] == MBI_TOK_NONE) {
                return mbi_encode_no_byte(e, *p);
            }
        }
    }
    return MAMBA_OK;
}

static mamba_status mbi_bpe_short(mbi_encoder *e, const unsigned char *p, size_t n) {
    uint32_t id[MBI_BPE_SHORT + 1];
    uint32_t rank[MBI_BPE_SHORT + 1];       /* of the pair (i, i + 1) */
    uint32_t merged[MBI_BPE_SHORT + 1];
    size_t i;
    mamba_status status = mbi_bpe_start(e, p, n, id, &n);
    if (status != MAMBA_OK) {
        return status;
    }
    for (i = 0; i + 1 < n; i++) {
        mbi_bpe_look(e->t, id[i], id[i + 1], &rank[i], &merged[i]);
    }
    while (n > 1) {
        size_t best = 0;
        for (i = 1; i + 1 < n; i++) {
            best = rank[i] < rank[best] ? i : best;
        }
        MBI_TEXT_WORK(n);
        if (rank[best] == MBI_TOK_NONE) {
            break;
        }
        id[best] = merged[best];
        --n;
        for (i = best + 1; i < n; i++) {
            id[i] = id[i + 1];
            rank[i] = rank[i + 1];
            merged[i] = merged[i + 1];
        }
        if (best > 0) {
            mbi_bpe_look(e->t, id[best - 1], id[best], &rank[best - 1], &merged[best - 1]);
        }
        if (best + 1 < n) {
            mbi_bpe_look(e->t, id[best], id[best + 1], &rank[best], &merged[best]);
        }
    }
    for (i = 0; i < n; i++) {
        mbi_encode_put(e, id[i]);
    }
    return MAMBA_OK;
}

/* A long word: a linked list of symbols and a heap of (rank, position). Entries go stale when a
 * neighbour merges; one is current if the pair at its position still has its rank. Each merge takes
 * at least one entry and adds at most two, so n - 1 first entries never become 2 n. */
typedef struct mbi_bpe_list {
    uint64_t *heap;                     /* (2 n) rank << 32 | position */
    uint32_t *id;
    uint32_t *next;
    uint32_t *prev;
    uint32_t *rank;                     /* of the pair that starts here; NONE: no pair, or gone */
    size_t n_heap;
} mbi_bpe_list;

static void mbi_bpe_sink(mbi_bpe_list *b, size_t i) {
    uint64_t x = b->heap[i];
    for (;;) {
        size_t child = 2 * i + 1;
        MBI_TEXT_WORK(1);
        if (child >= b->n_heap) {
            break;
        }
        child += child + 1 < b->n_heap && b->heap[child + 1] < b->heap[child];
        if (b->heap[child] >= x) {
            break;
        }
        b->heap[i] = b->heap[child];
        i = child;
    }
    b->heap[i] = x;
}

static void mbi_bpe_push(mbi_bpe_list *b, uint64_t x) {
    size_t i = b->n_heap++;
    while (i > 0 && b->heap[(i - 1) / 2] > x) {
        b->heap[i] = b->heap[(i - 1) / 2];
        i = (i - 1) / 2;
        MBI_TEXT_WORK(1);
    }
    b->heap[i] = x;
}

/* Looks up the pair that starts at i and enters it. */
static void mbi_bpe_enter(mbi_bpe_list *b, const mamba_tokenizer *t, uint32_t i, uint32_t end) {
    uint32_t merged;
    b->rank[i] = MBI_TOK_NONE;
    if (b->next[i] != end) {
        mbi_bpe_look(t, b->id[i], b->id[b->next[i]], &b->rank[i], &merged);
    }
    if (b->rank[i] != MBI_TOK_NONE) {
        mbi_bpe_push(b, (uint64_t)b->rank[i] << 32 | i);
    }
}

static void mbi_bpe_merge(mbi_bpe_list *b, const mamba_tokenizer *t, uint32_t end) {
    while (b->n_heap > 0) {
        uint64_t top = b->heap[0];
        uint32_t i = (uint32_t)top;
        uint32_t gone;
        b->heap[0] = b->heap[--b->n_heap];
        if (b->n_heap > 0) {
            mbi_bpe_sink(b, 0);
        }
        if (b->rank[i] != (uint32_t)(top >> 32)) {
            continue;
        }
        gone = b->next[i];
        b->id[i] = mbi_load_u32(mbi_tok_find(t, b->id[i], b->id[gone]) + 12);
        b->next[i] = b->next[gone];
        b->rank[gone] = MBI_TOK_NONE;
        if (b->next[i] != end) {
            b->prev[b->next[i]] = i;
        }
        mbi_bpe_enter(b, t, i, end);
        if (i != 0) {
            mbi_bpe_enter(b, t, b->prev[i], end);
        }
    }
}

static mamba_status mbi_bpe_long(mbi_encoder *e, const unsigned char *p, size_t n) {
    mbi_bpe_list b;
    uint32_t end;
    uint32_t i;
    size_t n_ids;
    mamba_status status;
    if (n > 0x7FFFFFFFu || n > (size_t)-1 / 64) {
        return mbi_fail_value(e->err, MAMBA_ERR_RANGE, "a word is too long", "text", 0,
                              mbi_clamp_i64(n), 0, 0x7FFFFFFF);
    }
    status = mbi_encode_room(e, &e->work, n * 32);
    if (status != MAMBA_OK) {
        return status;
    }
    b.heap = (uint64_t *)(void *)e->work.p;
    b.id = (uint32_t *)(b.heap + 2 * n);
    b.next = b.id + n;
    b.prev = b.next + n;
    b.rank = b.prev + n;
    b.n_heap = 0;
    status = mbi_bpe_start(e, p, n, b.id, &n_ids);
    if (status != MAMBA_OK) {
        return status;
    }
    end = (uint32_t)n_ids;
    for (i = 0; i < end; i++) {
        b.next[i] = i + 1;
        b.prev[i] = i - 1;
    }
    for (i = 0; i < end; i++) {
        mbi_bpe_enter(&b, e->t, i, end);
    }
    mbi_bpe_merge(&b, e->t, end);
    for (i = 0; i != end; i = b.next[i]) {
        mbi_encode_put(e, b.id[i]);
    }
    return MAMBA_OK;
}

static mamba_status mbi_encode_word(mbi_encoder *e, const unsigned char *p, size_t n) {
    size_t i;
    if (e->t->n_slots != 0 || e->t->kind == MBI_TOK_CHARS) {
        return n <= MBI_BPE_SHORT ? mbi_bpe_short(e, p, n) : mbi_bpe_long(e, p, n);
    }
    for (i = 0; i < n; i++) {
        uint32_t id = mbi_load_u32(e->t->byte_ids + (size_t)4 * p[i]);
        if (id == MBI_TOK_NONE) {
            return mbi_encode_no_byte(e, p[i]);
        }
        mbi_encode_put(e, id);
    }
    return MAMBA_OK;
}

/* --- splitting into words */

static const unsigned char *mbi_split_run(mbi_encoder *e, const unsigned char *p,
                                          const unsigned char *end, unsigned cls) {
    int length;
    while (p < end && mbi_uc_class_at(&e->cursor, p, end, &length) == cls) {
        p += length;
    }
    return p;
}

/* The end of the word that starts at p < end. The pattern of GPT-2, tried in this order:
 *   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 * The classes are disjoint, so one look ahead decides. */
static const unsigned char *mbi_split_gpt2(mbi_encoder *e, const unsigned char *p,
                                           const unsigned char *end) {
    const unsigned char *last = p;
    const unsigned char *q;
    unsigned cls;
    int length;
    if (*p == '\'' && end - p > 1) {
        unsigned char a = p[1];
        unsigned char b = end - p > 2 ? p[2] : 0;
        if (a == 's' || a == 't' || a == 'm' || a == 'd') {
            return p + 2;
        }
        if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) {
            return p + 3;
        }
    }
    cls = mbi_uc_class_at(&e->cursor, p, end, &length);
    if (*p == ' ' && end - p > 1) {
        int second;
        unsigned c = mbi_uc_class_at(&e->cursor, p + 1, end, &second);
        if (c != MBI_UC_SPACE) {
            cls = c;
            length = 1 + second;
        }
    }
    if (cls != MBI_UC_SPACE) {
        return mbi_split_run(e, p + length, end, cls);
    }
    /* \s+(?!\S) leaves the last of several spaces to what follows; a single one is \s+. */
    for (q = p + length; q < end && mbi_uc_class_at(&e->cursor, q, end, &length) == MBI_UC_SPACE;
         q += length) {
        last = q;
        MBI_TEXT_WORK(1);
    }
    return q == end || last == p ? q : last;
}

/* The end of the run of punctuation, or of anything else, that starts at p < end. */
static const unsigned char *mbi_split_punctuation(const unsigned char *p,
                                                  const unsigned char *end) {
    uint32_t cp;
    const unsigned char *q = p + mbi_utf8_get(p, end, &cp);
    int first = mbi_uc_is_punctuation(cp);
    while (q < end) {
        int length = mbi_utf8_get(q, end, &cp);
        if (mbi_uc_is_punctuation(cp) != first) {
            break;
        }
        q += length;
    }
    return q;
}

/* Does a byte stand for a number in GPT-2's byte alphabet?  Digits, and the bytes that stand there
 * for superscripts and fractions, whatever characters they are part of. */
static int mbi_split_is_number(unsigned char b) {
    return (b >= '0' && b <= '9') || b == 0xB2 || b == 0xB3 || b == 0xB9 || b == 0xBC || b == 0xBD
        || b == 0xBE;
}

/* The end of the part of a word that starts at p < end: what is no number, three digits, or what
 * is between threes of digits in a run of numbers. */
static const unsigned char *mbi_split_digits(const unsigned char *p, const unsigned char *end) {
    const unsigned char *q = p;
    unsigned n_digits = 0;
    while (q < end && !mbi_split_is_number(*q)) {
        ++q;
    }
    if (q > p) {
        return q;
    }
    while (q < end && mbi_split_is_number(*q)) {
        n_digits = *q <= '9' ? n_digits + 1 : 0;
        ++q;
        if (n_digits == 3) {
            return q - p > 3 ? q - 3 : q;
        }
    }
    return q;
}

/* Falcon: runs of punctuation apart from the rest, each of these by GPT-2's pattern, in the words
 * runs of numbers apart from the rest, and in those each three digits apart. */
static mamba_status mbi_encode_falcon(mbi_encoder *e, const unsigned char *p, size_t n) {
    const unsigned char *end = p + n;
    while (p < end) {
        const unsigned char *piece = mbi_split_punctuation(p, end);
        while (p < piece) {
            const unsigned char *word = mbi_split_gpt2(e, p, piece);
            while (p < word) {
                const unsigned char *part = mbi_split_digits(p, word);
                mamba_status status = mbi_encode_word(e, p, (size_t)(part - p));
                if (status != MAMBA_OK) {
                    return status;
                }
                p = part;
            }
        }
    }
    return MAMBA_OK;
}

static mamba_status mbi_encode_split(mbi_encoder *e, const unsigned char *p, size_t n) {
    const unsigned char *end = p + n;
    if (e->t->split == MBI_TOK_SPLIT_NONE) {
        return mbi_encode_word(e, p, n);
    }
    if (e->t->split == MBI_TOK_SPLIT_FALCON) {
        return mbi_encode_falcon(e, p, n);
    }
    while (p < end) {
        const unsigned char *q = mbi_split_gpt2(e, p, end);
        mamba_status status = mbi_encode_word(e, p, (size_t)(q - p));
        if (status != MAMBA_OK) {
            return status;
        }
        p = q;
    }
    return MAMBA_OK;
}

/* Is a space put in front of this text? */
static int mbi_encode_wants_space(const mbi_encoder *e, const unsigned char *p, size_t n) {
    unsigned flags = e->t->flags;
    uint32_t cp;
    (void)mbi_utf8_get(p, p + n, &cp);
    return (flags & MBI_TOK_PREFIX_SPACE) != 0
        && ((flags & MBI_TOK_PREFIX_FIRST) == 0 || p == e->start)
        && ((flags & MBI_TOK_PREFIX_ALWAYS) != 0 || (cp != ' ' && !mbi_bpe_is_space(e, cp)));
}

/* Text without added tokens; n > 0. */
static mamba_status mbi_encode_plain(mbi_encoder *e, const unsigned char *p, size_t n) {
    if (mbi_encode_wants_space(e, p, n)) {
        mamba_status status = mbi_encode_room(e, &e->prefixed, n + 1);
        if (status != MAMBA_OK) {
            return status;
        }
        e->prefixed.p[0] = ' ';
        memcpy(e->prefixed.p + 1, p, n);
        p = e->prefixed.p;
        ++n;
    }
    return mbi_encode_split(e, p, n);
}

/* --- normalization */

/* Normalizes [p, end), a starter and what may combine with it or reorder, and adds the bytes of the
 * result to *n; dst = NULL only counts. */
static mamba_status mbi_nfc_run(mbi_encoder *e, const unsigned char *p, const unsigned char *end,
                                unsigned char *dst, size_t *n) {
    const unsigned char *q;
    uint32_t cp;
    uint32_t parts[4];
    uint32_t *run;
    size_t n_run = 0;
    size_t i;
    mamba_status status;
    for (q = p; q < end; ) {
        q += mbi_utf8_get(q, end, &cp);
        n_run += (size_t)mbi_uc_decompose(cp, parts);
    }
    MBI_TEXT_WORK(n_run);
    status = mbi_encode_room(e, &e->work, 2 * n_run * sizeof run[0]);
    if (status != MAMBA_OK) {
        return status;
    }
    run = (uint32_t *)(void *)e->work.p;
    for (q = p, i = 0; q < end; ) {
        int k;
        int n_parts;
        q += mbi_utf8_get(q, end, &cp);
        n_parts = mbi_uc_decompose(cp, parts);
        for (k = 0; k < n_parts; k++) {
            run[i++] = parts[k] | (uint32_t)mbi_uc_ccc(parts[k]) << 24;
        }
    }
    mbi_nfc_sort(run, run + n_run, n_run);
    n_run = mbi_nfc_compose(run, n_run);
    for (i = 0; i < n_run; i++) {
        unsigned char scratch[4];
        *n += (size_t)mbi_utf8_put(MBI_NFC_CP(run[i]), dst != NULL ? dst + *n : scratch);
    }
    return MAMBA_OK;
}

/* NFC of well-formed [p, end) into dst (NULL: only count). Text between runs is copied as it is: a
 * character without the bit MBI_UC_NFC never combines with what is before it. */
static mamba_status mbi_nfc_text(mbi_encoder *e, const unsigned char *p, const unsigned char *end,
                                 unsigned char *dst, size_t *n) {
    const unsigned char *from = p;          /* not yet copied */
    const unsigned char *starter = p;       /* the last character, if it can start a run */
    *n = 0;
    while (p <= end) {
        const unsigned char *run = p;
        uint32_t cp = 0;
        int length = p < end ? mbi_utf8_get(p, end, &cp) : 0;
        mamba_status status;
        if (p < end && (cp < 0x300 || (mbi_uc_class(&e->cursor, cp) & MBI_UC_NFC) == 0)) {
            starter = p;
            p += length;
            continue;
        }
        run = p < end ? starter : end;      /* at the end: an empty run */
        if (dst != NULL) {
            memcpy(dst + *n, from, (size_t)(run - from));
        }
        *n += (size_t)(run - from);
        if (p == end) {
            break;
        }
        do {
            p += length;
            length = p < end ? mbi_utf8_get(p, end, &cp) : 0;
        } while (p < end && (mbi_uc_class(&e->cursor, cp) & MBI_UC_NFC) != 0);
        status = mbi_nfc_run(e, run, p, dst, n);
        if (status != MAMBA_OK) {
            return status;
        }
        from = p;
        starter = p;
    }
    return MAMBA_OK;
}

/* --- added tokens */

/* The longest token of the sorted added[lo..hi) that starts at p: its index, or hi if none does. */
static uint32_t mbi_added_at(const mamba_tokenizer *t, uint32_t lo, uint32_t hi,
                             const unsigned char *p, const unsigned char *end, uint32_t *n) {
    uint32_t none = hi;
    uint32_t best = hi;
    uint32_t depth;
    *n = 0;
    for (depth = 0; lo < hi; depth++) {     /* added[lo..hi) agree with p in `depth` bytes */
        uint32_t length;
        uint32_t side;
        (void)mbi_tok_bytes(t, mbi_load_u32(t->added + (size_t)8 * lo), &length);
        MBI_TEXT_WORK(1);
        if (length == depth) {
            best = lo++;
            *n = length;
        }
        if (p + depth == end) {
            break;
        }
        for (side = 0; side < 2; side++) {  /* the first with byte >= p[depth], then > */
            uint32_t a = lo;
            uint32_t b = hi;
            while (a < b) {
                uint32_t mid = a + (b - a) / 2;
                uint32_t id = mbi_load_u32(t->added + (size_t)8 * mid);
                unsigned char c = mbi_tok_bytes(t, id, &length)[depth];
                if (side == 0 ? c < p[depth] : c <= p[depth]) {
                    a = mid + 1;
                } else {
                    b = mid;
                }
            }
            if (side == 0) {
                lo = a;
            } else {
                hi = a;
            }
        }
    }
    return best == none ? none : best;
}

/* Where the white space that ends at p begins, not before `from`. */
static const unsigned char *mbi_space_before(mbi_encoder *e, const unsigned char *from,
                                             const unsigned char *p) {
    while (p > from) {
        const unsigned char *q = p - 1;
        int length;
        while (q > from && p - q < 4 && (*q & 0xC0) == 0x80) {
            --q;
        }
        if (mbi_uc_class_at(&e->cursor, q, p, &length) != MBI_UC_SPACE || q + length != p) {
            break;
        }
        p = q;
    }
    return p;
}

typedef mamba_status (*mbi_encode_stage)(mbi_encoder *e, const unsigned char *p, size_t n);

/* Cuts the tokens added[lo..hi) out of a text: leftmost, there the longest; what lies between goes
 * on to the next stage. A special token that is not to be parsed stays text, as a whole. */
static mamba_status mbi_encode_added(mbi_encoder *e, const unsigned char *p, size_t n, uint32_t lo,
                                     uint32_t hi, mbi_encode_stage next) {
    const mamba_tokenizer *t = e->t;
    const unsigned char *end = p + n;
    const unsigned char *from = p;          /* not yet passed on */
    unsigned char first[256];               /* 1: a token starts so; 2: a token is this byte */
    unsigned char second[256];              /* 1: some token's second byte */
    uint32_t i;
    memset(first, 0, sizeof first);
    memset(second, 0, sizeof second);
    for (i = lo; i < hi; i++) {
        uint32_t length;
        const unsigned char *token =
            mbi_tok_bytes(t, mbi_load_u32(t->added + (size_t)8 * i), &length);
        first[token[0]] |= (unsigned char)(length == 1 ? 2 : 1);
        second[length > 1 ? token[1] : token[0]] = 1;
    }
    while (lo < hi && p < end) {
        const unsigned char *start = p;
        uint32_t length = 0;
        uint32_t flags;
        mamba_status status = MAMBA_OK;
        i = hi;
        if (first[*p] > 1 || (first[*p] == 1 && end - p > 1 && second[p[1]])) {
            i = mbi_added_at(t, lo, hi, p, end, &length);
        }
        if (i == hi) {
            ++p;
            continue;
        }
        p += length;
        flags = mbi_load_u32(t->added + (size_t)8 * i + 4);
        if ((flags & MBI_ADDED_SPECIAL) != 0 && (e->parse & MAMBA_PARSE_SPECIAL) == 0) {
            continue;
        }
        if ((flags & MBI_ADDED_LSTRIP) != 0) {
            start = mbi_space_before(e, from, start);
        }
        if ((flags & MBI_ADDED_RSTRIP) != 0) {
            p = mbi_split_run(e, p, end, MBI_UC_SPACE);
        }
        if (from < start) {
            status = next(e, from, (size_t)(start - from));
        }
        if (status != MAMBA_OK) {
            return status;
        }
        mbi_encode_put(e, mbi_load_u32(t->added + (size_t)8 * i));
        from = p;
    }
    return from < end ? next(e, from, (size_t)(end - from)) : MAMBA_OK;
}

/* Does a well-formed text hold a character that normalization might change? */
static int mbi_nfc_needed(mbi_uc_cursor *k, const unsigned char *p, const unsigned char *end) {
    while (p < end) {
        uint32_t cp = *p;
        p += cp < 0x80 ? 1 : mbi_utf8_get(p, end, &cp);
        if (cp >= 0x300 && (mbi_uc_class(k, cp) & MBI_UC_NFC) != 0) {
            return 1;
        }
    }
    return 0;
}

/* Text between added tokens that are searched before normalization; n > 0. */
static mamba_status mbi_encode_segment(mbi_encoder *e, const unsigned char *p, size_t n) {
    size_t n_normal = 0;
    if (e->normalize && mbi_nfc_needed(&e->cursor, p, p + n)) {
        mamba_status status = mbi_nfc_text(e, p, p + n, NULL, &n_normal);
        if (status == MAMBA_OK) {
            status = mbi_encode_room(e, &e->normal, n_normal);
        }
        if (status == MAMBA_OK) {
            status = mbi_nfc_text(e, p, p + n, e->normal.p, &n_normal);
        }
        if (status != MAMBA_OK) {
            return status;
        }
        e->start = p == e->start ? e->normal.p : NULL;
        p = e->normal.p;
        n = n_normal;
    }
    return mbi_encode_added(e, p, n, e->t->n_added_raw, e->t->n_added, mbi_encode_plain);
}


/* ------------------------------------------------------------------------------------------------
 * @@sampling   Choosing a token, in integers                                          (private)
 * ---------------------------------------------------------------------------------------------- */
/* A weight is 2^39 exp((logit - max) / temperature), rounded down: the largest weight is 2^39, sums
 * of up to 2^24 of them fit, the order of summing cannot matter, and the same seed draws the same
 * token with any compiler. What is more than 27 nats below the best has weight 0. */
#define MBI_SAMPLE_ONE ((uint64_t)1 << 39)
#define MBI_SAMPLE_MAX_LOGITS ((size_t)1 << 24)
#define MBI_SAMPLE_BLOCKS 128

/* A key that orders as the logits do; both zeros are one. */
static uint32_t mbi_sample_key(float x) {
    uint32_t u = mbi_f32_bits(x);
    u = u == 0x80000000u ? 0 : u;
    return u ^ ((0u - (u >> 31)) | 0x80000000u); /* no branch: signs are unpredictable */
}

/* 2^39 2^-q with q = (max - logit) scale, scale = log2(e) / temperature: one subtraction and one
 * product, which nothing can contract, then fixed point. q = k + i/32 + rest; 2^-(i/32) from the
 * table, 2^-rest by its series to the fourth power, within 2^-29 of the exact weight. */
static uint64_t mbi_sample_weight(float logit, float max, double scale) {
    static const uint32_t power[32] = {          /* 2^(31 - i/32) */
    0x80000000u, 0x7D41D96Eu, 0x7A92BE8Bu, 0x77F25CCEu, 0x75606374u, 0x72DC8374u,
    0x70666F76u, 0x6DFDDBCCu, 0x6BA27E65u, 0x69540EC9u, 0x6712460Bu, 0x64DCDEC3u,
    0x62B39509u, 0x60962665u, 0x5E8451D0u, 0x5C7DD7A4u, 0x5A82799Au, 0x5891FAC1u,
    0x56AC1F75u, 0x54D0AD5Au, 0x52FF6B55u, 0x51382182u, 0x4F7A9930u, 0x4DC69CDDu,
    0x4C1BF829u, 0x4A7A77D4u, 0x48E1E9BAu, 0x47521CC6u, 0x45CAE0F2u, 0x444C0740u,
    0x42D561B4u, 0x4166C34Cu};
    const uint64_t one = (uint64_t)1 << 32;
    double q = ((double)max - (double)logit) * scale;
    uint64_t fixed;
    uint64_t y;
    uint64_t r;
    if (!(q < 40.0)) {
        return 0;
    }
    fixed = (uint64_t)(q * 4294967296.0);
    y = (fixed & 0x7FFFFFF) * 2977044472u >> 32;            /* ln 2 in units of 2^-32 */
    r = one - (y >> 2);
    r = one - (y * r >> 32) / 3;
    r = one - (y * r >> 33);
    r = one - (y * r >> 32);
    return power[fixed >> 27 & 31] * r >> (24 + (fixed >> 32));
}

/* SplitMix64: the n-th number of a seed. Every seed is good, and there is no state to go wrong. */
static uint64_t mbi_sample_mix(uint64_t z) {
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static uint64_t mbi_sample_random(uint64_t seed, uint64_t n) {
    return mbi_sample_mix(mbi_sample_mix(seed + 0x9E3779B97F4A7C15u) + n * 0x9E3779B97F4A7C15u);
}

/* floor(a b / 2^64) */
static uint64_t mbi_sample_mul_high(uint64_t a, uint64_t b) {
    uint64_t al = a & 0xFFFFFFFFu;
    uint64_t ah = a >> 32;
    uint64_t bl = b & 0xFFFFFFFFu;
    uint64_t bh = b >> 32;
    uint64_t mid = ah * bl + (al * bl >> 32);
    uint64_t low = al * bh + (mid & 0xFFFFFFFFu);
    return ah * bh + (mid >> 32) + (low >> 32);
}

/* Drops (sets to -infinity) what has a key below `key`, and of those equal to it all but the first
 * n_ties. */
static void mbi_sample_cut(float *logits, size_t n, uint32_t key, uint64_t n_ties) {
    size_t i;
    for (i = 0; i < n; i++) {
        uint32_t k = mbi_sample_key(logits[i]);
        if (k < key || (k == key && n_ties == 0)) {
            logits[i] = mbi_bits_f32(0xFF800000u);
        } else if (k == key) {
            --n_ties;
        }
    }
}

/* Keeps the k largest, of equal ones those with the lower ids: a descent through histograms of the
 * keys' digits finds the key of the k-th. */
static void mbi_sample_top_k(float *logits, size_t n, uint32_t k) {
    uint32_t count[256];
    uint32_t prefix = 0;
    uint32_t above = 0;                     /* known to be larger than the k-th */
    int shift;
    for (shift = 24; shift >= 0; shift -= 8) {
        size_t i;
        uint32_t d = 255;
        memset(count, 0, sizeof count);
        for (i = 0; i < n; i++) {
            uint32_t key = mbi_sample_key(logits[i]);
            if (((uint64_t)(key ^ prefix) >> (shift + 8)) == 0) {
                ++count[key >> shift & 255];
            }
        }
        while (d > 0 && above + count[d] < k) {
            above += count[d--];
        }
        prefix |= d << shift;
    }
    mbi_sample_cut(logits, n, prefix, k - above);
}

/* Keeps the smallest set of the most probable whose mass is at least p of the whole; the one that
 * reaches p belongs to it, of equal ones those with the lower ids. */
static void mbi_sample_top_p(float *logits, size_t n, float p, float max, double scale) {
    uint64_t mass[256];
    uint64_t above = 0;
    uint64_t goal = 1;
    uint32_t prefix = 0;
    uint64_t weight = 0;
    int shift;
    for (shift = 24; shift >= 0; shift -= 8) {
        size_t i;
        uint32_t d = 255;
        memset(mass, 0, sizeof mass);
        for (i = 0; i < n; i++) {
            uint32_t key = mbi_sample_key(logits[i]);
            if (((uint64_t)(key ^ prefix) >> (shift + 8)) == 0) {
                uint64_t w = mbi_sample_weight(logits[i], max, scale);
                mass[key >> shift & 255] += w;
            }
        }
        if (shift == 24) {
            uint64_t q = (uint64_t)((double)p * 4294967296.0);
            uint64_t sum = 0;
            uint64_t low;
            for (i = 0; i < 256; i++) {
                sum += mass[i];
            }
            low = (sum & 0xFFFFFFFFu) * q;
            goal = (sum >> 32) * q + (low >> 32) + ((low & 0xFFFFFFFFu) != 0);
            goal += goal == 0;
        }
        while (d > 0 && above + mass[d] < goal) {
            above += mass[d--];
        }
        prefix |= d << shift;
    }
    {
        uint32_t u = (prefix & 0x80000000u) != 0 ? prefix & 0x7FFFFFFFu : ~prefix;
        float logit;
        memcpy(&logit, &u, sizeof logit);
        weight = mbi_sample_weight(logit, max, scale);
    }
    mbi_sample_cut(logits, n, prefix, weight != 0 ? (goal - above + weight - 1) / weight : 0);
}

/* Draws an id with a probability proportional to its weight; weights below min_p of the largest do
 * not count. */
static size_t mbi_sample_draw(const float *logits, size_t n, float min_p, float max, double scale,
                              uint64_t random) {
    uint64_t block[MBI_SAMPLE_BLOCKS];
    double floor_weight = (double)min_p * 549755813888.0;       /* exact: 2^39 */
    size_t per_block = n / MBI_SAMPLE_BLOCKS + 1;
    size_t best = 0;
    size_t b;
    size_t i;
    uint64_t sum = 0;
    uint64_t target;
    for (b = 0, i = 0; b < MBI_SAMPLE_BLOCKS; b++) {
        size_t end = mbi_min_size(n, (b + 1) * per_block);
        block[b] = 0;
        for (; i < end; i++) {
            uint64_t w = mbi_sample_weight(logits[i], max, scale);
            block[b] += (double)w >= floor_weight ? w : 0;
            best = logits[i] > logits[best] ? i : best;
        }
        sum += block[b];
    }
    target = mbi_sample_mul_high(random, sum);
    for (b = 0; b + 1 < MBI_SAMPLE_BLOCKS && target >= block[b]; b++) {
        target -= block[b];
    }
    for (i = b * per_block; i < n; i++) {
        uint64_t w = mbi_sample_weight(logits[i], max, scale);
        w = (double)w >= floor_weight ? w : 0;
        if (target < w) {
            return i;
        }
        target -= w;
    }
    return best;                            /* not reached: target < sum */
}

/* The number of the last tokens that the penalty looks at, and the i-th of them. */
static uint32_t mbi_sample_window(const mamba_sampler *s) {
    uint32_t n = s->repeat_last_n > 0 ? (uint32_t)s->repeat_last_n : MAMBA_SAMPLER_HISTORY;
    if (s->repeat_penalty == 0.0f || s->repeat_penalty == 1.0f) {
        return 0;
    }
    return s->n_history < n ? (uint32_t)s->n_history : n;
}

static int32_t mbi_sample_recent(const mamba_sampler *s, uint32_t i) {
    return s->history[(s->n_history - 1 - i) % MAMBA_SAMPLER_HISTORY];
}

static mamba_status mbi_sample_check(const mamba_sampler *s, size_t n_logits, mamba_error *err) {
    const char *field = NULL;
    const char *what = NULL;
    uint32_t i;
    if (!(s->temperature >= 0.0f && s->temperature <= 3.402823466e38f)) {
        field = "temperature";
        what = "not a finite number from 0 on";
    } else if (s->top_k < 0) {
        field = "top_k";
        what = "negative";
    } else if (!(s->top_p >= 0.0f && s->top_p <= 1.0f)) {
        field = "top_p";
        what = "not from 0 (off) to 1";
    } else if (!(s->min_p >= 0.0f && s->min_p <= 1.0f)) {
        field = "min_p";
        what = "not from 0 (off) to 1";
    } else if (!(s->repeat_penalty >= 0.0f && s->repeat_penalty <= 3.402823466e38f)) {
        field = "repeat_penalty";
        what = "not a finite number from 0 (off) on";
    } else if (s->repeat_last_n < 0 || s->repeat_last_n > MAMBA_SAMPLER_HISTORY) {
        field = "repeat_last_n";
        what = "not from 0 (all that is kept) to MAMBA_SAMPLER_HISTORY";
    }
    for (i = 0; field == NULL && i < mbi_sample_window(s); i++) {
        int32_t id = mbi_sample_recent(s, i);
        if (id < 0 || (size_t)id >= n_logits) {
            return mbi_fail_value(err, MAMBA_ERR_ARG, "an id beyond the logits", "history", 0, id,
                                  0, (int64_t)n_logits - 1);
        }
    }
    if (field != NULL) {
        return mbi_fail(err, MAMBA_ERR_ARG, what, field, 0);
    }
    return MAMBA_OK;
}

/* Divides positive and multiplies other logits of recent tokens by the penalty, each token once. A
 * result beyond the range of float stays at its end. */
static void mbi_sample_repeat(const mamba_sampler *s, float *logits, size_t n) {
    uint32_t window = mbi_sample_window(s);
    uint32_t i;
    for (i = 0; i < window; i++) {
        size_t id = (size_t)mbi_sample_recent(s, i);
        uint32_t j = 0;
        float x;
        while (j < i && (size_t)mbi_sample_recent(s, j) != id) {
            ++j;
        }
        if (j < i || id >= n) {
            continue;
        }
        x = logits[id];
        if (mbi_f32_bits(x) == 0xFF800000u) {
            continue;
        }
        x = x > 0.0f ? x / s->repeat_penalty : x * s->repeat_penalty;
        x = x > 3.402823466e38f ? 3.402823466e38f : x;
        logits[id] = x < -3.402823466e38f ? -3.402823466e38f : x;
    }
}

/* ------------------------------------------------------------------------------------------------
 * @@operators_impl   The public operators on top of the kernels                          (private)
 *
 * Callers' arrays have no padding and any alignment, kernels work on blocks of 16 channels: tiles of
 * MBI_OP_TOKENS tokens are copied into blocks and back.  Where a product feeds a sum outside the
 * kernels it is formed in double, in which the product of two floats is exact: no compiler's
 * contraction can change a bit.
 * ---------------------------------------------------------------------------------------------- */
enum {
    MBI_OP_TOKENS = 32, /* a multiple of 16: see the flush of tiny states in mbi_scan_block */
    MBI_OP_TILE = MBI_OP_TOKENS * MBI_LANES,
    MBI_OP_TAPS = 8 * MBI_LANES /* d_conv <= 8 */
};

static const mbi_kernels *mbi_op_kernels(const mamba_target *target) {
    return target ? &target->k : &mbi_target_at(0)->k;
}

/* f over n floats, the last ones through a block of 16. */
static void mbi_op_map(void (*f)(const float *x, float *y, size_t n), const float *x, float *y,
                       size_t n) {
    size_t whole = n / MBI_LANES * MBI_LANES;
    float tail[MBI_LANES] = {0};
    if (whole != 0) {
        f(x, y, whole);
    }
    if (n != whole) {
        memcpy(tail, x + whole, (n - whole) * sizeof(float));
        f(tail, tail, MBI_LANES);
        memcpy(y + whole, tail, (n - whole) * sizeof(float));
    }
}

MAMBA_API void mamba_softplus(const mamba_target *target, const float *x, float *y, size_t n) {
    const mbi_kernels *k = mbi_op_kernels(target);
    size_t whole = n / MBI_LANES * MBI_LANES;
    float tail[MBI_LANES] = {0};
    if (whole != 0) {
        k->softplus(x, NULL, y, whole);
    }
    if (n != whole) {
        memcpy(tail, x + whole, (n - whole) * sizeof(float));
        k->softplus(tail, NULL, tail, MBI_LANES);
        memcpy(y + whole, tail, (n - whole) * sizeof(float));
    }
}

MAMBA_API void mamba_silu(const mamba_target *target, const float *x, float *y, size_t n) {
    mbi_op_map(mbi_op_kernels(target)->silu, x, y, n);
}

MAMBA_API void mamba_rmsnorm(const mamba_target *target, const float *x, const float *w, float eps,
                             int n_tokens, int n, float *y) {
    const mbi_kernels *k = mbi_op_kernels(target);
    int t;
    int i;
    for (t = 0; t < n_tokens; t++, x += n, y += n) {
        double sum = 0.0;
        float scale;
        if (n % MBI_LANES == 0) {
            k->rmsnorm(x, w, eps, n, 1, 0, 1, y);
            continue;
        }
        for (i = 0; i < n; i++) {
            sum += (double)x[i] * (double)x[i];
        }
        scale = (float)(1.0 / sqrt(sum / n + (double)eps));
        for (i = 0; i < n; i++) {
            float v = x[i] * scale;
            y[i] = w ? v * w[i] : v;
        }
    }
}

/* n_rows rows of `lanes` <= 16 floats, `stride` apart, into rows of 16 (the rest 0), and back. */
static void mbi_op_gather(const float *src, size_t stride, int n_rows, int lanes, float *dst) {
    int t;
    if (lanes < MBI_LANES) {
        memset(dst, 0, (size_t)n_rows * MBI_LANES * sizeof(float));
    }
    for (t = 0; t < n_rows; t++) {
        memcpy(dst + t * MBI_LANES, src + (size_t)t * stride, (size_t)lanes * sizeof(float));
    }
}

static void mbi_op_scatter(const float *src, int n_rows, int lanes, float *dst, size_t stride) {
    int t;
    for (t = 0; t < n_rows; t++) {
        memcpy(dst + (size_t)t * stride, src + t * MBI_LANES, (size_t)lanes * sizeof(float));
    }
}

/* (lanes, n) row-major to (n, 16) with zeros in the lanes that do not exist, and back. */
static void mbi_op_transpose(const float *src, int lanes, int n, float *dst) {
    int i;
    int j;
    for (j = 0; j < n; j++) {
        for (i = 0; i < MBI_LANES; i++) {
            dst[(size_t)j * MBI_LANES + (size_t)i] =
                i < lanes ? src[(size_t)i * (size_t)n + (size_t)j] : 0.0f;
        }
    }
}

static void mbi_op_transpose_back(const float *src, int lanes, int n, float *dst) {
    int i;
    int j;
    for (i = 0; i < lanes; i++) {
        for (j = 0; j < n; j++) {
            dst[(size_t)i * (size_t)n + (size_t)j] = src[(size_t)j * MBI_LANES + (size_t)i];
        }
    }
}

MAMBA_API void mamba_conv1d(const mamba_target *target, const float *x, const float *w,
                            const float *bias, int n_tokens, int channels, int d_conv, int silu,
                            float *state, float *y) {
    const mbi_kernels *k = mbi_op_kernels(target);
    size_t n = (size_t)channels;
    int c;
    int t;
    for (c = 0; c < channels; c += MBI_LANES) {
        float taps[MBI_OP_TAPS];
        float past[MBI_OP_TAPS] = {0};
        float b[MBI_LANES] = {0};
        float tile[MBI_OP_TILE];
        int lanes = mbi_min_int(MBI_LANES, channels - c);
        mbi_op_transpose(w + (size_t)c * (size_t)d_conv, lanes, d_conv, taps);
        if (bias) {
            mbi_op_gather(bias + c, 0, 1, lanes, b);
        }
        if (state) {
            mbi_op_gather(state + c, n, d_conv - 1, lanes, past);
        }
        for (t = 0; t < n_tokens; t += MBI_OP_TOKENS) {
            int rows = mbi_min_int(MBI_OP_TOKENS, n_tokens - t);
            size_t at = (size_t)t * n + (size_t)c;
            mbi_op_gather(x + at, n, rows, lanes, tile);
            k->conv(tile, taps, b, d_conv, silu != 0, rows, past, MBI_LANES, tile);
            mbi_op_scatter(tile, rows, lanes, y + at, n);
        }
        if (state) {
            mbi_op_scatter(past, d_conv - 1, lanes, state + c, n);
        }
    }
}

MAMBA_API void mamba_discretize(const mamba_target *target, const float *dt, const float *A,
                                const float *B, int channels, int d_state, float *dA, float *dB) {
    const mbi_kernels *k = mbi_op_kernels(target);
    int i;
    int j;
    for (i = 0; i < channels; i++) {
        size_t row = (size_t)i * (size_t)d_state;
        for (j = 0; j < d_state; j++) {
            dA[row + (size_t)j] = dt[i] * A[row + (size_t)j];
            dB[row + (size_t)j] = dt[i] * B[j];
        }
        mbi_op_map(k->exp, dA + row, dA + row, (size_t)d_state);
    }
}

MAMBA_API void mamba_recurrence(const mamba_target *target, const float *dA, const float *dB,
                                const float *C, const float *D, const float *x, int channels,
                                int d_state, float *h, float *y) {
    int i;
    int j;
    (void)target; /* in double: the same bits on every target */
    for (i = 0; i < channels; i++) {
        size_t at = (size_t)i * (size_t)d_state;
        double sum = D ? (double)D[i] * (double)x[i] : 0.0;
        for (j = 0; j < d_state; j++, at++) {
            h[at] = (float)((double)dA[at] * (double)h[at] + (double)dB[at] * (double)x[i]);
            sum += (double)C[j] * (double)h[at];
        }
        y[i] = (float)sum;
    }
}

/* A scan in progress: the channels of each group are cut into blocks of up to 16. */
typedef struct mbi_op_scan {
    const mamba_scan *s;
    const mbi_kernels *k;
    int n_tasks;
    int group_size, group_blocks, n_blocks;
    int chunk, n_chunks; /* of tokens; sequential: one */
    int first_pass;      /* chunks from zero, only their end states are kept */
    float *scratch;      /* per task: A and h [d_state][16], then x, dt, z tiles */
    size_t task_floats;
    float *ends;         /* per (block, chunk): end state [d_state][16]; later the start of the next */
    double *sums;        /* per (block, chunk): sum of dt [16] */
} mbi_op_scan;

static mamba_status mbi_op_range(mamba_error *err, const char *name, int64_t found, int64_t lo,
                                 int64_t hi) {
    if (found < lo || found > hi) {
        return mbi_fail_value(err, MAMBA_ERR_ARG, "value out of range", name, 0, found, lo, hi);
    }
    return MAMBA_OK;
}

static mamba_status mbi_op_check_scan(const mamba_scan *s, mamba_error *err) {
    mamba_status status;
    uint64_t n;
    if (!s) {
        return mbi_fail(err, MAMBA_ERR_ARG, "must not be NULL", "scan", 0);
    }
    if ((status = mbi_op_range(err, "n_tokens", s->n_tokens, 0, INT32_MAX)) ||
        (status = mbi_op_range(err, "channels", s->channels, 1, MBI_MAX_DIM)) ||
        (status = mbi_op_range(err, "d_state", s->d_state, 1, MBI_MAX_DIM)) ||
        (status = mbi_op_range(err, "n_groups", s->n_groups, 0, s->channels))) {
        return status;
    }
    if (s->n_groups > 0 && s->channels % s->n_groups != 0) {
        return mbi_fail_value(err, MAMBA_ERR_ARG, "must divide the channels", "n_groups", 0,
                              s->n_groups, 1, s->channels);
    }
    if (!s->A || (s->n_tokens > 0 && (!s->x || !s->dt || !s->B || !s->C || !s->y))) {
        return mbi_fail(err, MAMBA_ERR_ARG, "x, dt, A, B, C and y must not be NULL", "scan", 0);
    }
    if (!mbi_mul_ok((uint64_t)s->n_tokens * (uint64_t)(s->n_groups ? s->n_groups : 1),
                    (uint64_t)s->d_state * sizeof(float), &n) ||
        n > SIZE_MAX / 2) {
        return mbi_fail(err, MAMBA_ERR_ARG, "B and C can't be so large", "scan", 0);
    }
    return MAMBA_OK;
}

/* Channels of block b: how many, the first one, and their group. */
static int mbi_op_lanes(const mbi_op_scan *j, int b, int *channel, int *group) {
    int inside = b % j->group_blocks * MBI_LANES;
    *group = b / j->group_blocks;
    *channel = *group * j->group_size + inside;
    return mbi_min_int(MBI_LANES, j->group_size - inside);
}

/* dt of a tile: bias and softplus; lanes that do not exist get 0. */
static void mbi_op_scan_dt(const mbi_op_scan *j, const float *bias, int lanes, int rows,
                           float *dt) {
    int t;
    int i;
    if (j->s->dt_softplus) {
        j->k->softplus(dt, bias, dt, (size_t)rows * MBI_LANES);
    } else {
        for (t = 0; t < rows * MBI_LANES; t++) {
            dt[t] += bias[t % MBI_LANES];
        }
    }
    for (t = 0; t < rows && lanes < MBI_LANES; t++) {
        for (i = lanes; i < MBI_LANES; i++) {
            dt[t * MBI_LANES + i] = 0.0f;
        }
    }
}

/* Tokens [t0, t1) of block b from the state h, in tiles; y and the sum of dt where wanted. */
static void mbi_op_scan_range(const mbi_op_scan *j, int b, int t0, int t1, const float *A,
                              float *h, float *tiles, double *sum) {
    const mamba_scan *s = j->s;
    size_t n = (size_t)s->channels;
    size_t bc_token = (size_t)(s->n_groups ? s->n_groups : 1) * (size_t)s->d_state;
    float bias[MBI_LANES] = {0};
    float D[MBI_LANES] = {0};
    mbi_scan_block k;
    int channel;
    int group;
    int lanes = mbi_op_lanes(j, b, &channel, &group);
    int t;
    int i;
    if (s->dt_bias) {
        mbi_op_gather(s->dt_bias + channel, 0, 1, lanes, bias);
    }
    if (s->D) {
        mbi_op_gather(s->D + channel, 0, 1, lanes, D);
    }
    memset(&k, 0, sizeof k);
    k.x = k.y = tiles;
    k.dt = tiles + MBI_OP_TILE;
    k.z = s->z && !sum ? tiles + 2 * MBI_OP_TILE : NULL;
    k.A = A;
    k.D = D;
    k.h = h;
    k.bc_block = MBI_LANES;
    k.bc_token = bc_token;
    k.d_state = s->d_state;
    for (t = t0; t < t1; t += MBI_OP_TOKENS) {
        int rows = mbi_min_int(MBI_OP_TOKENS, t1 - t);
        size_t at = (size_t)t * n + (size_t)channel;
        mbi_op_gather(s->x + at, n, rows, lanes, tiles);
        mbi_op_gather(s->dt + at, n, rows, lanes, tiles + MBI_OP_TILE);
        mbi_op_scan_dt(j, bias, lanes, rows, tiles + MBI_OP_TILE);
        if (k.z) {
            mbi_op_gather(s->z + at, n, rows, lanes, tiles + 2 * MBI_OP_TILE);
        }
        for (i = 0; sum && i < rows * MBI_LANES; i++) {
            sum[i % MBI_LANES] += (double)k.dt[i];
        }
        k.B = s->B + (size_t)t * bc_token + (size_t)group * (size_t)s->d_state;
        k.C = s->C + (size_t)t * bc_token + (size_t)group * (size_t)s->d_state;
        k.position = (uint64_t)t;
        k.n_tokens = rows;
        j->k->scan_block(&k);
        if (!sum) {
            mbi_op_scatter(tiles, rows, lanes, s->y + at, n);
        }
    }
}

/* A task takes a contiguous range of (block, chunk) pairs. */
static void mbi_op_scan_task(void *arg, int i_task) {
    const mbi_op_scan *j = (const mbi_op_scan *)arg;
    const mamba_scan *s = j->s;
    size_t state = (size_t)s->d_state * MBI_LANES;
    float *A = j->scratch + (size_t)i_task * j->task_floats;
    float *h = A + state;
    int64_t n_items = (int64_t)j->n_blocks * j->n_chunks;
    int64_t item = n_items * i_task / j->n_tasks;
    int64_t end = n_items * (i_task + 1) / j->n_tasks;
    for (; item < end; item++) {
        int b = (int)(item / j->n_chunks);
        int c = (int)(item % j->n_chunks);
        int t0 = c * j->chunk;
        int t1 = s->n_tokens - t0 > j->chunk ? t0 + j->chunk : s->n_tokens;
        int channel;
        int group;
        int lanes = mbi_op_lanes(j, b, &channel, &group);
        size_t at = (size_t)channel * (size_t)s->d_state;
        float *ends = j->ends ? j->ends + (size_t)item * state : NULL;
        mbi_op_transpose(s->A + at, lanes, s->d_state, A);
        if (j->first_pass) {
            if (c + 1 < j->n_chunks) {
                memset(ends, 0, state * sizeof(float));
                mbi_op_scan_range(j, b, t0, t1, A, ends, h + state,
                                  j->sums + (size_t)item * MBI_LANES);
            }
            continue;
        }
        if (c > 0) {
            memcpy(h, ends - state, state * sizeof(float));
        } else if (s->state) {
            mbi_op_transpose(s->state + at, lanes, s->d_state, h);
        } else {
            memset(h, 0, state * sizeof(float));
        }
        mbi_op_scan_range(j, b, t0, t1, A, h, h + state, NULL);
        if (c + 1 < j->n_chunks) {
            continue;
        }
        if (s->state && j->n_chunks == 1) {
            mbi_op_transpose_back(h, lanes, s->d_state, s->state + at);
        } else if (s->state) {
            memcpy(ends, h, state * sizeof(float)); /* other tasks may still read s->state */
        }
    }
}

static void mbi_op_join_task(void *arg, int i_task) {
    const mbi_op_scan *j = (const mbi_op_scan *)arg;
    const mamba_scan *s = j->s;
    size_t state = (size_t)s->d_state * MBI_LANES;
    float *A = j->scratch + (size_t)i_task * j->task_floats;
    float *h = A + state;
    int b = mbi_split(j->n_blocks, j->n_tasks, i_task);
    int end = mbi_split(j->n_blocks, j->n_tasks, i_task + 1);
    for (; b < end; b++) {
        int channel;
        int group;
        int lanes = mbi_op_lanes(j, b, &channel, &group);
        size_t at = (size_t)channel * (size_t)s->d_state;
        size_t item = (size_t)b * (size_t)j->n_chunks;
        mbi_op_transpose(s->A + at, lanes, s->d_state, A);
        memset(h, 0, state * sizeof(float));
        if (s->state) {
            mbi_op_transpose(s->state + at, lanes, s->d_state, h);
        }
        mbi_scan_join(j->k, A, s->d_state, h, j->n_chunks - 1, j->ends + item * state,
                      j->sums + item * MBI_LANES);
    }
}

static void mbi_op_store_states(const mbi_op_scan *j) {
    const mamba_scan *s = j->s;
    size_t state = (size_t)s->d_state * MBI_LANES;
    int b;
    for (b = 0; b < j->n_blocks; b++) {
        int channel;
        int group;
        int lanes = mbi_op_lanes(j, b, &channel, &group);
        mbi_op_transpose_back(j->ends + ((size_t)(b + 1) * (size_t)j->n_chunks - 1) * state, lanes,
                              s->d_state, s->state + (size_t)channel * (size_t)s->d_state);
    }
}

/* Both scans: one chunk is the sequential one. */
static mamba_status mbi_op_scan_run(mbi_op_scan *j, int n_threads, const mamba_parallel *parallel,
                                    const mamba_memory *memory, mamba_error *err) {
    const mamba_scan *s = j->s;
    mamba_memory m = mbi_memory_or_default(memory);
    size_t state = (size_t)s->d_state * MBI_LANES;
    int n_groups = s->n_groups ? s->n_groups : 1;
    uint64_t n_items;
    uint64_t bytes;
    uint64_t sums = 0;
    uint64_t ends = 0;
    unsigned char *block;
    int n_tasks = mbi_n_threads(n_threads, parallel);
    j->group_size = s->channels / n_groups;
    j->group_blocks = (j->group_size + MBI_LANES - 1) / MBI_LANES;
    j->n_blocks = n_groups * j->group_blocks;
    n_items = (uint64_t)j->n_blocks * (uint64_t)j->n_chunks;
    j->n_tasks = n_items < (uint64_t)n_tasks ? (int)n_items : n_tasks;
    j->task_floats = 2 * state + 3 * MBI_OP_TILE;
    if (j->n_chunks > 1) {
        sums = n_items * MBI_LANES * sizeof(double);
        if (!mbi_mul_ok(n_items, state * sizeof(float), &ends)) {
            ends = UINT64_MAX;
        }
    }
    bytes = (uint64_t)j->n_tasks * j->task_floats * sizeof(float);
    if (!mbi_add_ok(bytes, sums, &bytes) || !mbi_add_ok(bytes, ends, &bytes) ||
        bytes > SIZE_MAX / 2 ||
        (block = (unsigned char *)m.alloc(m.user, (size_t)bytes, 64)) == NULL) {
        return mbi_fail(err, MAMBA_ERR_MEMORY, "out of memory", "scan", 0);
    }
    j->scratch = (float *)(void *)block;
    if (j->n_chunks == 1) {
        mbi_parallel_for(parallel, n_tasks, j->n_tasks, mbi_op_scan_task, j);
    } else {
        j->ends = j->scratch + (size_t)j->n_tasks * j->task_floats;
        j->sums = (double *)(void *)(block + (bytes - sums));
        memset(j->sums, 0, (size_t)sums);
        j->first_pass = 1;
        mbi_parallel_for(parallel, n_tasks, j->n_tasks, mbi_op_scan_task, j);
        j->first_pass = 0;
        n_tasks = j->n_tasks;
        j->n_tasks = mbi_min_int(n_tasks, j->n_blocks);
        mbi_parallel_for(parallel, n_tasks, j->n_tasks, mbi_op_join_task, j);
        j->n_tasks = n_tasks;
        mbi_parallel_for(parallel, n_tasks, j->n_tasks, mbi_op_scan_task, j);
        if (s->state) {
            mbi_op_store_states(j);
        }
    }
    m.free(m.user, block, (size_t)bytes);
    return MAMBA_OK;
}

MAMBA_API mamba_status mamba_selective_scan(const mamba_target *target, const mamba_scan *scan,
                                            int n_threads, const mamba_parallel *parallel,
                                            const mamba_memory *memory, mamba_error *err) {
    return mamba_scan_time_parallel(target, scan, INT32_MAX, n_threads, parallel, memory, err);
}

MAMBA_API mamba_status mamba_scan_time_parallel(const mamba_target *target, const mamba_scan *scan,
                                                int chunk, int n_threads,
                                                const mamba_parallel *parallel,
                                                const mamba_memory *memory, mamba_error *err) {
    mbi_op_scan j;
    mamba_status status;
    mbi_error_clear(err);
    status = mbi_op_check_scan(scan, err);
    if (status) {
        return status;
    }
    if ((status = mbi_op_range(err, "chunk", chunk, 0, INT32_MAX)) ||
        (status = mbi_op_range(err, "n_threads", n_threads, 0, INT32_MAX))) {
        return status;
    }
    if (scan->n_tokens == 0) {
        return MAMBA_OK;
    }
    memset(&j, 0, sizeof j);
    j.s = scan;
    j.k = mbi_op_kernels(target);
    j.chunk = mbi_min_int(chunk ? chunk : 256, scan->n_tokens);
    j.n_chunks = (int)(((int64_t)scan->n_tokens + j.chunk - 1) / j.chunk);
    return mbi_op_scan_run(&j, n_threads, parallel, memory, err);
}

/* An SSD operator in progress: slabs of tokens are copied into blocks and worked on as a model's
 * layer would. */
typedef struct mbi_op_ssd {
    const mamba_ssd *s;
    mbi_mamba2 m;     /* the geometry, A and D with padding; no convolution, no norm */
    mbi_ctx ctx;
    mbi_mamba2_job job;
    float *A, *bias;  /* (n_heads seg) */
    float *D;         /* (width) */
    int t0;           /* first token of the slab */
} mbi_op_ssd;

/* Channels of block b: how many, and the first one. */
static int mbi_op_ssd_lanes(const mbi_op_ssd *o, int b, size_t *channel) {
    int per_group = o->m.d_ssm / o->m.n_groups;
    int g = b * MBI_LANES / o->m.group_width;
    int inside = b * MBI_LANES - g * o->m.group_width;
    *channel = (size_t)(g * per_group + inside);
    return mbi_min_int(MBI_LANES, per_group - inside);
}

/* dt, B and C of the slab. */
static void mbi_op_ssd_shared(void *arg, int b, int end, int worker) {
    const mbi_op_ssd *o = (const mbi_op_ssd *)arg;
    const mamba_ssd *s = o->s;
    int T = o->ctx.n_tokens;
    size_t block = (size_t)T * MBI_LANES;
    size_t heads = (size_t)s->n_heads;
    size_t bc = (size_t)o->m.n_groups * (size_t)s->d_state;
    int states = mbi_pad_int(s->d_state, MBI_LANES) / MBI_LANES;
    int n_dt = mbi_pad_int(s->n_heads, MBI_LANES) / MBI_LANES;
    int n_bc = o->m.n_groups * states;
    (void)worker;
    for (; b < end; b++) {
        if (b < n_dt) {
            float *dt = o->job.dt + (size_t)b * block;
            int first = b * MBI_LANES;
            mbi_op_gather(s->dt + (size_t)o->t0 * heads + first, heads, T,
                          mbi_min_int(MBI_LANES, s->n_heads - first), dt);
            mbi_mamba2_steps(&o->job, b, s->dt_softplus ? o->bias : NULL);
        } else {
            int i = (b - n_dt) % n_bc;
            const float *from = b - n_dt < n_bc ? s->B : s->C;
            int first = i % states * MBI_LANES;
            mbi_op_gather(from + (size_t)o->t0 * bc + (size_t)(i / states) * (size_t)s->d_state +
                              first,
                          bc, T, mbi_min_int(MBI_LANES, s->d_state - first),
                          o->job.bc + (size_t)(b - n_dt) * block);
            mbi_mamba2_turn(&o->job, b - n_dt);
        }
    }
}

/* x and z into blocks, or y and the states back. */
static void mbi_op_ssd_copy(const mbi_op_ssd *o, int back) {
    const mamba_ssd *s = o->s;
    size_t n = (size_t)o->m.d_ssm;
    int T = o->ctx.n_tokens;
    int b;
    for (b = 0; b < o->m.width / MBI_LANES; b++) {
        size_t channel;
        int lanes = mbi_op_ssd_lanes(o, b, &channel);
        size_t at = (size_t)o->t0 * n + channel;
        size_t to = (size_t)b * (size_t)T * MBI_LANES;
        if (back) {
            mbi_op_scatter(o->job.x + to, T, lanes, s->y + at, n);
            continue;
        }
        mbi_op_gather(s->x + at, n, T, lanes, o->job.x + to);
        if (s->z) {
            mbi_op_gather(s->z + at, n, T, lanes, o->job.z + to);
        }
    }
}

static void mbi_op_ssd_states(const mbi_op_ssd *o, int back) {
    const mamba_ssd *s = o->s;
    size_t N = (size_t)s->d_state;
    int b;
    for (b = 0; b < o->m.width / MBI_LANES; b++) {
        size_t channel;
        int lanes = mbi_op_ssd_lanes(o, b, &channel);
        float *h = o->job.h + (size_t)b * N * MBI_LANES;
        if (back) {
            if (s->n_tokens % 16 != 0) {
                mbi_mamba2_settle(&o->job, b);
            }
            mbi_op_transpose_back(h, lanes, s->d_state, s->state + channel * N);
        } else if (s->state) {
            mbi_op_transpose(s->state + channel * N, lanes, s->d_state, h);
        } else {
            memset(h, 0, N * MBI_LANES * sizeof(float));
        }
    }
}

static mamba_status mbi_op_check_ssd(const mamba_ssd *s, mamba_error *err) {
    mamba_status status;
    uint64_t groups;
    uint64_t n;
    if (!s) {
        return mbi_fail(err, MAMBA_ERR_ARG, "must not be NULL", "ssd", 0);
    }
    if ((status = mbi_op_range(err, "n_tokens", s->n_tokens, 0, INT32_MAX)) ||
        (status = mbi_op_range(err, "n_heads", s->n_heads, 1, 1 << 20)) ||
        (status = mbi_op_range(err, "headdim", s->headdim, 1, (1 << 20) / s->n_heads)) ||
        (status = mbi_op_range(err, "d_state", s->d_state, 1, 1 << 16)) ||
        (status = mbi_op_range(err, "n_groups", s->n_groups, 0, s->n_heads))) {
        return status;
    }
    groups = s->n_groups > 0 ? (uint64_t)s->n_groups : 1;
    if ((uint64_t)s->n_heads % groups != 0) {
        return mbi_fail_value(err, MAMBA_ERR_ARG, "must divide the heads", "n_groups", 0,
                              s->n_groups, 1, s->n_heads);
    }
    if ((status = mbi_op_range(err, "n_groups * d_state",
                               (int64_t)(groups * (uint64_t)s->d_state), 1, 1 << 22))) {
        return status;
    }
    if (!(s->dt_min >= 0.0f && s->dt_min <= 3.4028234e38f && s->dt_max >= 0.0f) ||
        (s->dt_max > 0.0f && s->dt_max < s->dt_min)) {
        return mbi_fail(err, MAMBA_ERR_ARG, "limits must be 0 <= dt_min <= dt_max", "dt_min", 0);
    }
    if (!s->A || (s->n_tokens > 0 && (!s->x || !s->dt || !s->B || !s->C || !s->y))) {
        return mbi_fail(err, MAMBA_ERR_ARG, "x, dt, A, B, C and y must not be NULL", "ssd", 0);
    }
    if (!mbi_mul_ok((uint64_t)s->n_tokens * sizeof(float),
                    (uint64_t)s->n_heads * (uint64_t)s->headdim, &n) || n > SIZE_MAX / 2 ||
        !mbi_mul_ok((uint64_t)s->n_tokens * sizeof(float), groups * (uint64_t)s->d_state, &n) ||
        n > SIZE_MAX / 2) {
        return mbi_fail(err, MAMBA_ERR_ARG, "the arrays can't be so large", "n_tokens", 0);
    }
    return MAMBA_OK;
}

/* Pointers of o from the arena (or only measures), for slabs of `slab` tokens. */
static void mbi_op_ssd_layout(mbi_op_ssd *o, mbi_arena *a, int slab) {
    mbi_mamba2 *m = &o->m;
    uint64_t heads = mbi_pad((uint64_t)m->n_heads, MBI_LANES);
    uint64_t T = (uint64_t)slab;
    uint64_t width = (uint64_t)m->width;
    m->A = o->A = (float *)mbi_arena_take(a, heads, 4);
    m->D = o->D = (float *)mbi_arena_take(a, width, 4);
    o->bias = (float *)mbi_arena_take(a, heads, 4);
    o->job.h = (float *)mbi_arena_take(a, width * (uint64_t)m->d_state, 4);
    o->job.x = (float *)mbi_arena_take(a, width * T, 4);
    o->job.z = o->s->z ? (float *)mbi_arena_take(a, width * T, 4) : NULL;
    o->job.bc = (float *)mbi_arena_take(a, 2 * (uint64_t)m->n_bc * T, 4);
    o->job.turned = (float *)mbi_arena_take(a, 2 * (uint64_t)m->n_bc * T, 4);
    o->job.dt = (float *)mbi_arena_take(a, heads * T, 4);
    o->job.a = (float *)mbi_arena_take(a, heads * T, 4);
    o->job.P = (float *)mbi_arena_take(a, heads * T, 4);
    o->job.last = (float *)mbi_arena_take(a, heads, 4);
    o->ctx.task_bytes = (size_t)(MBI_GEMM_SCRATCH + MBI_TASK_BLOCKS * T * MBI_LANES * 4);
    o->ctx.task_scratch =
        (unsigned char *)mbi_arena_take(a, (uint64_t)o->ctx.n_tasks, o->ctx.task_bytes);
    if (o->job.chunk > 0) {
        size_t per_task = mbi_chunk_floats(m, o->job.chunk);
        o->job.chunk_scratch =
            (float *)mbi_arena_take(a, (uint64_t)o->ctx.n_tasks * per_task, 4);
        o->job.pairs = (float *)mbi_arena_take(
            a, (uint64_t)(slab / o->job.chunk) * (uint64_t)m->n_groups,
            mbi_pairs_floats(m, o->job.chunk) * 4);
    }
}

/* A, bias and D with padding; D NULL counts as 0. */
static void mbi_op_ssd_constants(const mbi_op_ssd *o) {
    const mamba_ssd *s = o->s;
    int b;
    int i;
    for (i = 0; i < mbi_pad_int(s->n_heads, MBI_LANES); i++) {
        o->A[i] = i < s->n_heads ? s->A[i] : 0.0f;
        o->bias[i] = i < s->n_heads && s->dt_bias ? s->dt_bias[i] : 0.0f;
    }
    for (b = 0; b < o->m.width / MBI_LANES; b++) {
        size_t channel;
        int lanes = mbi_op_ssd_lanes(o, b, &channel);
        for (i = 0; i < MBI_LANES; i++) {
            size_t c = channel + (size_t)i;
            o->D[b * MBI_LANES + i] =
                i < lanes && s->D ? s->D[s->D_per_channel ? c : c / (size_t)s->headdim] : 0.0f;
        }
    }
}

static void mbi_op_ssd_slabs(mbi_op_ssd *o, int slab) {
    const mamba_ssd *s = o->s;
    int n_shared = mbi_pad_int(s->n_heads, MBI_LANES) / MBI_LANES + 2 * o->m.n_bc / MBI_LANES;
    mbi_op_ssd_states(o, 0);
    for (o->t0 = 0; o->t0 < s->n_tokens; o->t0 += o->ctx.n_tokens) {
        o->ctx.n_tokens = mbi_min_int(slab, s->n_tokens - o->t0);
        o->ctx.position = (uint64_t)o->t0;
        mbi_region(&o->ctx, n_shared, 1, 1, mbi_op_ssd_shared, o);
        mbi_op_ssd_copy(o, 0);
        mbi_mamba2_scan(&o->job);
        mbi_op_ssd_copy(o, 1);
    }
    if (s->state) {
        mbi_op_ssd_states(o, 1);
    }
}

/* Both forms: chunk 0 is the recurrence. */
static mamba_status mbi_op_ssd_run(const mamba_target *target, const mamba_ssd *s, int chunk,
                                   int n_threads, const mamba_parallel *parallel,
                                   const mamba_memory *memory, mamba_error *err) {
    enum { SLAB = 256 };
    mamba_memory mem = mbi_memory_or_default(memory);
    int slab = chunk > 0 ? SLAB / chunk * chunk : SLAB;
    int whole;
    mbi_op_ssd o;
    mbi_arena a;
    if (s->n_tokens == 0) {
        return MAMBA_OK;
    }
    whole = chunk > 0 ? mbi_pad_int(mbi_min_int(s->n_tokens, slab), chunk) : s->n_tokens;
    slab = mbi_min_int(slab, whole);
    memset(&o, 0, sizeof o);
    o.s = s;
    o.m.n_heads = s->n_heads;
    o.m.headdim = s->headdim;
    o.m.d_ssm = s->n_heads * s->headdim;
    o.m.d_state = s->d_state;
    o.m.n_groups = s->n_groups > 0 ? s->n_groups : 1;
    o.m.dt_min = s->dt_min;
    o.m.dt_max = s->dt_max > 0.0f ? s->dt_max : 3.4028234e38f;
    o.m.group_width = mbi_pad_int(o.m.d_ssm / o.m.n_groups, MBI_LANES);
    o.m.width = o.m.n_groups * o.m.group_width;
    o.m.n_bc = o.m.n_groups * mbi_pad_int(o.m.d_state, MBI_LANES);
    o.ctx.k = mbi_op_kernels(target);
    o.ctx.parallel = parallel;
    o.ctx.own = MBI_HALF_SHARE;
    o.ctx.n_tasks = mbi_min_int(mbi_n_threads(n_threads, parallel), o.m.width / MBI_LANES);
    o.job.m = &o.m;
    o.job.ctx = &o.ctx;
    o.job.chunk = chunk;
    memset(&a, 0, sizeof a);
    mbi_op_ssd_layout(&o, &a, slab);
    if (a.overflow || a.used > SIZE_MAX / 2 ||
        (a.base = (unsigned char *)mem.alloc(mem.user, (size_t)a.used, 64)) == NULL) {
        return mbi_fail(err, MAMBA_ERR_MEMORY, "out of memory", "ssd", 0);
    }
    a.used = 0;
    mbi_op_ssd_layout(&o, &a, slab);
    mbi_op_ssd_constants(&o);
    mbi_op_ssd_slabs(&o, slab);
    mem.free(mem.user, a.base, (size_t)a.used);
    return MAMBA_OK;
}

MAMBA_API mamba_status mamba_ssd_recurrence(const mamba_target *target, const mamba_ssd *ssd,
                                            int n_threads, const mamba_parallel *parallel,
                                            const mamba_memory *memory, mamba_error *err) {
    mamba_status status;
    mbi_error_clear(err);
    if ((status = mbi_op_check_ssd(ssd, err)) ||
        (status = mbi_op_range(err, "n_threads", n_threads, 0, INT32_MAX))) {
        return status;
    }
    return mbi_op_ssd_run(target, ssd, 0, n_threads, parallel, memory, err);
}

MAMBA_API mamba_status mamba_ssd_chunked(const mamba_target *target, const mamba_ssd *ssd,
                                         int chunk, int n_threads, const mamba_parallel *parallel,
                                         const mamba_memory *memory, mamba_error *err) {
    mamba_status status;
    mbi_error_clear(err);
    if ((status = mbi_op_check_ssd(ssd, err)) ||
        (status = mbi_op_range(err, "chunk", chunk, 0, MBI_CHUNK_MAX)) ||
        (status = mbi_op_range(err, "n_threads", n_threads, 0, INT32_MAX))) {
        return status;
    }
    return mbi_op_ssd_run(target, ssd, mbi_pad_int(chunk ? chunk : 64, MBI_LANES), n_threads,
                          parallel, memory, err);
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

/* One line of two pieces to the log hook, if there is one.  Level 1: warning, 2: information. */
static void mbi_log_line(const mamba_log *log, int level, const char *text, const char *more) {
    char line[160];
    mbi_writer w;
    if (log->write) {
        w.out = line;
        w.cap = sizeof line;
        w.n = 0;
        mbi_write_text(&w, text);
        mbi_write_text(&w, more);
        log->write(log->user, level, line, mbi_min_size(w.n, sizeof line - 1));
    }
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
    m->prefetch = (int)(mbi_cpu_features() >> MBI_CPU_PREFETCH & 1);
    memcpy(m->file, file, sizeof m->file);
    if ((status = mbi_check_header(m, err)) == MAMBA_OK &&
        (status = mbi_check_sections(m, err)) == MAMBA_OK &&
        (status = mbi_check_config(m, err)) == MAMBA_OK &&
        (status = mbi_check_tensors(m, err)) == MAMBA_OK) {
        status = mbi_bind_all(m, err);
    }
    if (status == MAMBA_OK && (tok = mbi_find_section(m, "tokenizer", 9)) != NULL) {
        status = mbi_tok_open(&m->tokenizer, m->bytes.data + tok->offset, tok->bytes, &m->memory,
                              err);
        m->has_tokenizer = 1;
    }
    if (status == MAMBA_OK && cfg->check) {
        status = mamba_model_check(m, cfg->check, err);
    }
    if (status != MAMBA_OK) {
        mamba_close(m);
        return status;
    }
    mbi_log_line(&m->log, 2, "kernels: ", m->target->name);
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
        if (!c.copy) {
            mbi_log_line(&c.log, 1, "model in memory is not aligned to 64 bytes: ", "copied");
        }
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
    info->bos = c->bos;
    info->eos = c->eos;
    info->pad = c->pad;
    memcpy(info->architecture, c->architecture, sizeof info->architecture);
    memcpy(info->weight_type, mbi_type_name(c->main_type), 8);
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
    return model->has_tokenizer ? &model->tokenizer : NULL;
}

MAMBA_API int32_t mamba_token_count(const mamba_tokenizer *t) {
    return t != NULL ? (int32_t)t->n_ids : 0;
}

MAMBA_API mamba_status mamba_encode(const mamba_tokenizer *t, const char *text, size_t n_text,
                                    unsigned flags, int32_t *ids, size_t cap, size_t *n_ids,
                                    mamba_error *err) {
    mbi_encoder e;
    const unsigned char *p = (const unsigned char *)text;
    mamba_status status = MAMBA_OK;
    if (n_ids != NULL) {
        *n_ids = 0;
    }
    mbi_error_clear(err);
    if (t == NULL || n_ids == NULL || (text == NULL && n_text != 0)) {
        return mbi_fail(err, MAMBA_ERR_ARG, "an argument is NULL", "mamba_encode", 0);
    }
    if ((flags & ~(unsigned)(MAMBA_PARSE_SPECIAL | MAMBA_NO_NORMALIZE)) != 0) {
        return mbi_fail_value(err, MAMBA_ERR_ARG, "unknown flag", "flags", 0, flags, 0,
                              MAMBA_PARSE_SPECIAL | MAMBA_NO_NORMALIZE);
    }
    if (n_text > (size_t)-1 / 64) {
        return mbi_fail_value(err, MAMBA_ERR_RANGE, "text too long for this build", "n_text", 0,
                              mbi_clamp_i64(n_text), 0, (int64_t)((size_t)-1 / 64));
    }
    memset(&e, 0, sizeof e);
    e.t = t;
    e.parse = flags;
    e.start = p;
    e.ids = ids;
    e.cap = ids != NULL ? cap : 0;
    e.err = err;
    if (n_text != 0) {
        e.normalize = (t->flags & MBI_TOK_NFC) != 0 && (flags & MAMBA_NO_NORMALIZE) == 0
            && mbi_utf8_valid(p, p + n_text);
        status = mbi_encode_added(&e, p, n_text, 0, t->n_added_raw, mbi_encode_segment);
    }
    mbi_encode_end(&e);
    if (status != MAMBA_OK) {
        return status;
    }
    *n_ids = e.n;
    if (ids != NULL && e.n > cap) {
        return mbi_fail_value(err, MAMBA_ERR_RANGE, "more tokens than room for them", "cap", 0,
                              mbi_clamp_i64(cap), mbi_clamp_i64(e.n), INT64_MAX);
    }
    return MAMBA_OK;
}

MAMBA_API mamba_status mamba_token_bytes(const mamba_tokenizer *t, int32_t id, const char **bytes,
                                         size_t *n, mamba_error *err) {
    uint32_t length;
    if (bytes == NULL || n == NULL) {
        return mbi_fail(err, MAMBA_ERR_ARG, "an argument is NULL", "mamba_token_bytes", 0);
    }
    *bytes = NULL;
    *n = 0;
    mbi_error_clear(err);
    if (t == NULL) {
        return mbi_fail(err, MAMBA_ERR_ARG, "an argument is NULL", "mamba_token_bytes", 0);
    }
    if (id < 0 || !mbi_tok_exists(t, (uint32_t)id)) {
        return mbi_fail_value(err, MAMBA_ERR_ARG, "the vocabulary has no such id", "id", 0, id, 0,
                              (int64_t)t->n_ids - 1);
    }
    *bytes = (const char *)mbi_tok_bytes(t, (uint32_t)id, &length);
    *n = length;
    return MAMBA_OK;
}

MAMBA_API mamba_status mamba_decode(const mamba_tokenizer *t, const int32_t *ids, size_t n_ids,
                                    char *out, size_t cap, size_t *n_out, mamba_error *err) {
    size_t need = 0;
    size_t i;
    int started = 0;
    if (n_out != NULL) {
        *n_out = 0;
    }
    if (t == NULL || n_out == NULL || (ids == NULL && n_ids != 0)) {
        return mbi_fail(err, MAMBA_ERR_ARG, "an argument is NULL", "mamba_decode", 0);
    }
    mbi_error_clear(err);
    for (i = 0; i < n_ids; i++) {
        const char *bytes;
        size_t n;
        mamba_status status = mamba_token_bytes(t, ids[i], &bytes, &n, err);
        if (status != MAMBA_OK) {
            return status;
        }
        if (!started && n != 0) {
            started = 1;
            if ((t->flags & MBI_TOK_STRIP_SPACE) != 0 && *bytes == ' ') {
                ++bytes;
                --n;
            }
        }
        if (n > (size_t)-1 - need) {
            return mbi_fail(err, MAMBA_ERR_RANGE, "text too long for this build", "n_ids", 0);
        }
        if (out != NULL && need <= cap && n <= cap - need) {
            memcpy(out + need, bytes, n);
        }
        need += n;
    }
    *n_out = need;
    if (out != NULL && need > cap) {
        return mbi_fail_value(err, MAMBA_ERR_RANGE, "more bytes than room for them", "cap", 0,
                              mbi_clamp_i64(cap), mbi_clamp_i64(need), INT64_MAX);
    }
    return MAMBA_OK;
}

/* Bytes at the end of a text that may still become a character: 0 to 3. */
static size_t mbi_utf8_open(const unsigned char *p, size_t n) {
    size_t back;
    for (back = 1; back <= 3 && back <= n; back++) {
        unsigned char lead = p[n - back];
        if ((lead & 0xC0) != 0x80) {
            int need = mbi_utf8_need(lead);
            int open = need > (int)back && (back == 1 || mbi_utf8_second_ok(lead, p[n - back + 1]));
            return open ? back : 0;
        }
    }
    return 0;
}

MAMBA_API mamba_status mamba_stream_decode(const mamba_tokenizer *t, mamba_utf8_stream *s,
                                           int32_t id, char *out, size_t cap, size_t *n_out,
                                           mamba_error *err) {
    const char *bytes;
    size_t n;
    size_t total;
    size_t held;
    mamba_status status;
    if (n_out != NULL) {
        *n_out = 0;
    }
    if (s == NULL || n_out == NULL || out == NULL || s->n_pending > 3) {
        return mbi_fail(err, MAMBA_ERR_ARG, "an argument is NULL or the stream was not zeroed",
                        "mamba_stream_decode", 0);
    }
    status = mamba_token_bytes(t, id, &bytes, &n, err);
    if (status != MAMBA_OK) {
        return status;
    }
    total = s->n_pending + n;
    if (total > cap) {
        *n_out = total;
        return mbi_fail_value(err, MAMBA_ERR_RANGE, "more bytes than room for them", "cap", 0,
                              mbi_clamp_i64(cap), mbi_clamp_i64(total), INT64_MAX);
    }
    memcpy(out, s->pending, s->n_pending);
    if (n != 0) {
        memcpy(out + s->n_pending, bytes, n);
    }
    held = mbi_utf8_open((const unsigned char *)out, total);
    memcpy(s->pending, out + (total - held), held);
    s->n_pending = (uint32_t)held;
    *n_out = total - held;
    return MAMBA_OK;
}

MAMBA_API mamba_status mamba_stream_flush(mamba_utf8_stream *s, char *out, size_t cap,
                                          size_t *n_out, mamba_error *err) {
    if (n_out != NULL) {
        *n_out = 0;
    }
    if (s == NULL || n_out == NULL || out == NULL || s->n_pending > 3) {
        return mbi_fail(err, MAMBA_ERR_ARG, "an argument is NULL or the stream was not zeroed",
                        "mamba_stream_flush", 0);
    }
    mbi_error_clear(err);
    if (s->n_pending > cap) {
        return mbi_fail_value(err, MAMBA_ERR_RANGE, "more bytes than room for them", "cap", 0,
                              mbi_clamp_i64(cap), s->n_pending, INT64_MAX);
    }
    memcpy(out, s->pending, s->n_pending);
    *n_out = s->n_pending;
    s->n_pending = 0;
    return MAMBA_OK;
}

MAMBA_API void mamba_sampler_init(mamba_sampler *s, uint64_t seed) {
    if (s != NULL) {
        memset(s, 0, sizeof *s);
        s->temperature = 1.0f;
        s->seed = seed;
    }
}

MAMBA_API void mamba_sampler_accept(mamba_sampler *s, int32_t token) {
    if (s != NULL) {
        s->history[s->n_history % MAMBA_SAMPLER_HISTORY] = token;
        ++s->n_history;
    }
}

MAMBA_API mamba_status mamba_sample(mamba_sampler *s, float *logits, size_t n_logits,
                                    size_t n_allowed, int32_t *token, mamba_error *err) {
    size_t n = n_allowed != 0 && n_allowed < n_logits ? n_allowed : n_logits;
    size_t best = 0;
    size_t i;
    mamba_status status;
    mbi_error_clear(err);
    if (s == NULL || logits == NULL || token == NULL) {
        return mbi_fail(err, MAMBA_ERR_ARG, "an argument is NULL", "mamba_sample", 0);
    }
    *token = -1;
    if (n == 0 || n_logits > MBI_SAMPLE_MAX_LOGITS) {
        return mbi_fail_value(err, MAMBA_ERR_ARG, "no logits or too many", "n_logits", 0,
                              mbi_clamp_i64(n_logits), 1, (int64_t)MBI_SAMPLE_MAX_LOGITS);
    }
    status = mbi_sample_check(s, n_logits, err);
    if (status != MAMBA_OK) {
        return status;
    }
    for (i = 0; i < n; i++) {
        uint32_t u = mbi_f32_bits(logits[i]);
        if ((u & 0x7FFFFFFFu) > 0x7F800000u || u == 0x7F800000u) {
            return mbi_fail(err, MAMBA_ERR_NONFINITE, "a logit is NaN or +infinity", "logits",
                            (uint64_t)i * sizeof logits[0]);
        }
        best = logits[i] > logits[best] ? i : best;
    }
    if (mbi_f32_bits(logits[best]) == 0xFF800000u) {
        return mbi_fail(err, MAMBA_ERR_NONFINITE, "all logits are -infinity", "logits", 0);
    }
    mbi_sample_repeat(s, logits, n);
    for (best = 0, i = 1; i < n; i++) {
        best = logits[i] > logits[best] ? i : best;
    }
    if (s->temperature > 0.0f) {
        float max = logits[best];
        double scale = 1.4426950408889634 / (double)s->temperature;
        if (s->top_k > 0 && (size_t)s->top_k < n) {
            mbi_sample_top_k(logits, n, (uint32_t)s->top_k);
        }
        if (s->top_p > 0.0f && s->top_p < 1.0f) {
            mbi_sample_top_p(logits, n, s->top_p, max, scale);
        }
        ++s->n_draws;
        best = mbi_sample_draw(logits, n, s->min_p, max, scale,
                               mbi_sample_random(s->seed, s->n_draws));
    }
    mamba_sampler_accept(s, (int32_t)best);
    *token = (int32_t)best;
    return MAMBA_OK;
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
    int i;
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
    memcpy(memory, &s, sizeof s);
    *state = (mamba_state *)memory;
    mamba_state_reset(*state); /* nothing else is read before it is written, and may stay untouched */
    for (i = 0; i < s.n_tasks; i++) {
        s.ctx.workers[i].share = MBI_ALL_WORK / s.n_tasks;
        s.ctx.workers[i].done = 0;
    }
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
    mbi_run_job job;
    mbi_error_clear(err);
    status = mbi_check_io(state, io, err);
    if (status) {
        return status;
    }
    job.state = state;
    job.io = io;
    mbi_with_team(state->ctx.parallel, state->n_tasks, mbi_run_chunks, &job);
    MAMBA_PROFILE(NULL);
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
