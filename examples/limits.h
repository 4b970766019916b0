/*  limits.h: what this machine can do at most: streaming reads, float32 FMA, 16- and 8-bit dot
 * products, AMX.
 *
 *  Each limit is a loop that does nothing else: reads of a buffer far larger than the caches, or
 * arithmetic in registers only.  They are measured in the same run as the model, because on a
 * shared machine they move. Include it behind the implementation of mamba.h (it asks for CPU
 * features there).
 */
#ifndef LIMITS_H
#define LIMITS_H

#if defined(__GNUC__)
#define LIMITS_NOINLINE __attribute__((noinline))
#else
#define LIMITS_NOINLINE
#endif

enum {
    LIMIT_READ,
    LIMIT_F32,
    LIMIT_BF16,
    LIMIT_AVXVNNI,
    LIMIT_AVX512VNNI,
    LIMIT_AMX_BF16,
    LIMIT_AMX_INT8,
    LIMIT_COUNT
};

/* Reads a slice (64-byte units), or does n rounds of arithmetic; returns bytes or operations. */
typedef double (*limits_fn)(const unsigned char *slice, size_t bytes, long n);

static volatile double limits_sink; /* what the loops compute ends here, so that they are kept */

static LIMITS_NOINLINE double limits_read_plain(const unsigned char *p, size_t bytes, long n) {
    uint64_t a = 0;
    uint64_t b = 0;
    uint64_t c = 0;
    uint64_t d = 0;
    size_t i;
    (void)n;
    for (i = 0; i + 32 <= bytes; i += 32) {
        uint64_t v[4];
        memcpy(v, p + i, 32);
        a += v[0];
        b += v[1];
        c += v[2];
        d += v[3];
    }
    limits_sink = (double)(a + b + c + d);
    return (double)bytes;
}

static LIMITS_NOINLINE double limits_f32_plain(const unsigned char *p, size_t bytes, long n) {
    float acc[64];
    float sum = 0.0f;
    long i;
    int k;
    (void)p;
    (void)bytes;
    for (k = 0; k < 64; k++) {
        acc[k] = (float)k;
    }
    for (i = 0; i < n; i++) {
        for (k = 0; k < 64; k++) {
            acc[k] = acc[k] * 0.999f + 0.001f;
        }
    }
    for (k = 0; k < 64; k++) {
        sum += acc[k];
    }
    limits_sink = (double)sum;
    return (double)n * 64.0 * 2.0;
}

#if MBI_BUILD_AVX2
/* Twelve accumulators cover the latency of the FMA on two ports. */
#define LIMITS_TWELVE(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

__attribute__((target("avx2,fma"))) static LIMITS_NOINLINE double limits_f32_avx2(
    const unsigned char *p, size_t bytes, long n) {
    const __m256 m = _mm256_set1_ps(0.999f);
    const __m256 c = _mm256_set1_ps(0.001f);
    float out[8];
    __m256 sum = c;
    long i;
#define LIMITS_X(k) __m256 a##k = _mm256_set1_ps((float)k);
    LIMITS_TWELVE(LIMITS_X)
#undef LIMITS_X
    (void)p;
    (void)bytes;
    for (i = 0; i < n; i++) {
#define LIMITS_X(k) a##k = _mm256_fmadd_ps(a##k, m, c);
        LIMITS_TWELVE(LIMITS_X)
#undef LIMITS_X
    }
#define LIMITS_X(k) sum = _mm256_add_ps(sum, a##k);
    LIMITS_TWELVE(LIMITS_X)
#undef LIMITS_X
    _mm256_storeu_ps(out, sum);
    limits_sink = (double)out[0];
    return (double)n * 12.0 * 8.0 * 2.0;
}

/* Reads with vectors of so many bits, four at a time; AHEAD: bytes from what is read to what is
 * asked for, or 0: nothing is.  (With ^ in place of the xor intrinsics GCC 12 saves some moves, and
 * two Zen 5 cores read a tenth less.) */
#define LIMITS_READ(name, isa, bits, AHEAD)                                                        \
    __attribute__((target(isa))) static LIMITS_NOINLINE double name(const unsigned char *p,        \
                                                                    size_t bytes, long n) {        \
        enum { STEP = 4 * (bits) / 8 };                                                            \
        __m##bits##i a = _mm##bits##_setzero_si##bits();                                           \
        __m##bits##i b = a;                                                                        \
        __m##bits##i c = a;                                                                        \
        __m##bits##i d = a;                                                                        \
        uint64_t out[(bits) / 64];                                                                 \
        size_t i;                                                                                  \
        (void)n;                                                                                   \
        for (i = 0; i + STEP <= bytes; i += STEP) {                                                \
            const __m##bits##i *v = (const __m##bits##i *)(const void *)(p + i);                   \
            if ((AHEAD) != 0) {                                                                    \
                const char *next = (const char *)p;                                                \
                next += bytes - i > (AHEAD) + STEP ? i + (AHEAD) : i;                              \
                _mm_prefetch(next, _MM_HINT_T0);                                                   \
                _mm_prefetch(next + 64, _MM_HINT_T0);                                              \
                if (STEP > 128) {                                                                  \
                    _mm_prefetch(next + 128, _MM_HINT_T0);                                         \
                    _mm_prefetch(next + 192, _MM_HINT_T0);                                         \
                }                                                                                  \
            }                                                                                      \
            a = _mm##bits##_xor_si##bits(a, _mm##bits##_loadu_si##bits(v));                        \
            b = _mm##bits##_xor_si##bits(b, _mm##bits##_loadu_si##bits(v + 1));                    \
            c = _mm##bits##_xor_si##bits(c, _mm##bits##_loadu_si##bits(v + 2));                    \
            d = _mm##bits##_xor_si##bits(d, _mm##bits##_loadu_si##bits(v + 3));                    \
        }                                                                                          \
        a = _mm##bits##_xor_si##bits(_mm##bits##_xor_si##bits(a, b),                               \
                                     _mm##bits##_xor_si##bits(c, d));                              \
        memcpy(out, &a, sizeof a);                                                                 \
        limits_sink = (double)(out[0] ^ out[1] ^ out[2] ^ out[3]);                                 \
        return (double)bytes;                                                                      \
    }
LIMITS_READ(limits_read_avx2, "avx2", 256, 0)
LIMITS_READ(limits_read_avx2_ahead, "avx2", 256, 4096)
#endif /* MBI_BUILD_AVX2 */

#if MBI_BUILD_AVX512
__attribute__((target("avx512f"))) static LIMITS_NOINLINE double limits_f32_avx512(
    const unsigned char *p, size_t bytes, long n) {
    const __m512 m = _mm512_set1_ps(0.999f);
    const __m512 c = _mm512_set1_ps(0.001f);
    __m512 sum = c;
    long i;
#define LIMITS_X(k) __m512 a##k = _mm512_set1_ps((float)k);
    LIMITS_TWELVE(LIMITS_X)
#undef LIMITS_X
    (void)p;
    (void)bytes;
    for (i = 0; i < n; i++) {
#define LIMITS_X(k) a##k = _mm512_fmadd_ps(a##k, m, c);
        LIMITS_TWELVE(LIMITS_X)
#undef LIMITS_X
    }
#define LIMITS_X(k) sum = _mm512_add_ps(sum, a##k);
    LIMITS_TWELVE(LIMITS_X)
#undef LIMITS_X
    limits_sink = (double)_mm512_reduce_add_ps(sum);
    return (double)n * 12.0 * 16.0 * 2.0;
}

LIMITS_READ(limits_read_avx512, "avx512f", 512, 0)
LIMITS_READ(limits_read_avx512_ahead, "avx512f", 512, 4096)
#endif /* MBI_BUILD_AVX512 */

/* Dot products of bytes, in vectors of so many bits. */
#define LIMITS_EACH(X, bits)                                                                       \
    X(bits, 0) X(bits, 1) X(bits, 2) X(bits, 3) X(bits, 4) X(bits, 5)                              \
    X(bits, 6) X(bits, 7) X(bits, 8) X(bits, 9) X(bits, 10) X(bits, 11)
#define LIMITS_DOT_256 _mm256_dpbusd_avx_epi32
#define LIMITS_DOT_512 _mm512_dpbusd_epi32
#define LIMITS_INT8_START(bits, k) __m##bits##i a##k = _mm##bits##_set1_epi32(k);
#define LIMITS_INT8_DOT(bits, k) a##k = LIMITS_DOT_##bits(a##k, u, s);
#define LIMITS_INT8_SUM(bits, k) sum = _mm##bits##_xor_si##bits(sum, a##k);
#define LIMITS_INT8(name, isa, bits)                                                               \
    __attribute__((target(isa))) static LIMITS_NOINLINE double name(const unsigned char *p,        \
                                                                    size_t bytes, long n) {        \
        const __m##bits##i u = _mm##bits##_set1_epi8(3);                                           \
        const __m##bits##i s = _mm##bits##_set1_epi8(-2);                                          \
        __m##bits##i sum = u;                                                                      \
        uint64_t out[(bits) / 64];                                                                 \
        long i;                                                                                    \
        LIMITS_EACH(LIMITS_INT8_START, bits)                                                       \
        (void)p;                                                                                   \
        (void)bytes;                                                                               \
        for (i = 0; i < n; i++) {                                                                  \
            LIMITS_EACH(LIMITS_INT8_DOT, bits)                                                     \
        }                                                                                          \
        LIMITS_EACH(LIMITS_INT8_SUM, bits)                                                         \
        memcpy(out, &sum, sizeof out);                                                             \
        limits_sink = (double)out[0];                                                              \
        return (double)n * 12.0 * ((bits) / 8.0) * 2.0;                                            \
    }
#if MBI_BUILD_AVXVNNI
LIMITS_INT8(limits_int8_avxvnni, "avx2,avxvnni", 256)
#endif
#if MBI_BUILD_AVX512VNNI
LIMITS_INT8(limits_int8_avx512vnni, "avx512f,avx512vnni", 512)
#endif

#if MBI_BUILD_AVX512BF16
__attribute__((target("avx512f,avx512bf16"))) static LIMITS_NOINLINE double limits_bf16_avx512(
    const unsigned char *p, size_t bytes, long n) {
    const __m512bh x = (__m512bh)_mm512_set1_epi32(0x3f003f00);
    const __m512bh y = (__m512bh)_mm512_set1_epi32(0x38003800);
    __m512 sum = _mm512_set1_ps(0.0f);
    long i;
#define LIMITS_X(k) __m512 a##k = _mm512_set1_ps((float)k);
    LIMITS_TWELVE(LIMITS_X)
#undef LIMITS_X
    (void)p;
    (void)bytes;
    for (i = 0; i < n; i++) {
#define LIMITS_X(k) a##k = _mm512_dpbf16_ps(a##k, x, y);
        LIMITS_TWELVE(LIMITS_X)
#undef LIMITS_X
    }
#define LIMITS_X(k) sum = _mm512_add_ps(sum, a##k);
    LIMITS_TWELVE(LIMITS_X)
#undef LIMITS_X
    limits_sink = (double)_mm512_reduce_add_ps(sum);
    return (double)n * 12.0 * 32.0 * 2.0;
}
#endif /* MBI_BUILD_AVX512BF16 */

#if MBI_BUILD_AMX
/* Eight tiles of 16 rows x 64 bytes: four accumulators, two left and two right operands. */
__attribute__((target("amx-tile"))) static void limits_tiles(const unsigned char *data) {
    unsigned char config[64];
    int i;
    memset(config, 0, sizeof config);
    config[0] = 1;
    for (i = 0; i < 8; i++) {
        config[16 + 2 * i] = 64;
        config[48 + i] = 16;
    }
    __asm__ volatile("" : : "r"(config) : "memory"); /* GCC 12 thinks only 8 bytes are read */
    _tile_loadconfig(config);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, data, 64);
    _tile_loadd(5, data, 64);
    _tile_loadd(6, data, 64);
    _tile_loadd(7, data, 64);
}

__attribute__((target("amx-tile,amx-bf16"))) static LIMITS_NOINLINE double limits_amx_bf16(
    const unsigned char *p, size_t bytes, long n) {
    unsigned char data[1024];
    long i;
    (void)p;
    (void)bytes;
    memset(data, 0x3c, sizeof data);
    limits_tiles(data);
    for (i = 0; i < n; i++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, data, 64);
    _tile_release();
    limits_sink = (double)data[0];
    return (double)n * 4.0 * 16.0 * 16.0 * 32.0 * 2.0;
}

__attribute__((target("amx-tile,amx-int8"))) static LIMITS_NOINLINE double limits_amx_int8(
    const unsigned char *p, size_t bytes, long n) {
    unsigned char data[1024];
    long i;
    (void)p;
    (void)bytes;
    memset(data, 1, sizeof data);
    limits_tiles(data);
    for (i = 0; i < n; i++) {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    _tile_stored(0, data, 64);
    _tile_release();
    limits_sink = (double)data[0];
    return (double)n * 4.0 * 16.0 * 16.0 * 64.0 * 2.0;
}
#endif /* MBI_BUILD_AMX */

/* Reads, which some machines do faster if lines are asked for before, some if they are not. */
static limits_fn limits_read(int ahead) {
    uint32_t cpu = mbi_cpu_features();
    (void)cpu;
    (void)ahead;
#if MBI_BUILD_AVX512
    if (cpu >> MBI_CPU_AVX512 & 1) {
        return ahead ? limits_read_avx512_ahead : limits_read_avx512;
    }
#endif
#if MBI_BUILD_AVX2
    if (cpu >> MBI_CPU_AVX2 & 1) {
        return ahead ? limits_read_avx2_ahead : limits_read_avx2;
    }
#endif
    return limits_read_plain;
}

/* The loop for a limit on this machine, NULL if it has none. */
static limits_fn limits_find(int which) {
    uint32_t cpu = mbi_cpu_features();
    (void)cpu;
    switch (which) {
    case LIMIT_READ: return limits_read(0);
    case LIMIT_F32:
#if MBI_BUILD_AVX512
        if (cpu >> MBI_CPU_AVX512 & 1) {
            return limits_f32_avx512;
        }
#endif
#if MBI_BUILD_AVX2
        if (cpu >> MBI_CPU_AVX2 & 1) {
            return limits_f32_avx2;
        }
#endif
        return limits_f32_plain;
#if MBI_BUILD_AVX512BF16
    case LIMIT_BF16: return cpu >> MBI_CPU_AVX512BF16 & 1 ? limits_bf16_avx512 : NULL;
#endif
#if MBI_BUILD_AVXVNNI
    case LIMIT_AVXVNNI: return cpu >> MBI_CPU_AVXVNNI & 1 ? limits_int8_avxvnni : NULL;
#endif
#if MBI_BUILD_AVX512VNNI
    case LIMIT_AVX512VNNI: return cpu >> MBI_CPU_AVX512VNNI & 1 ? limits_int8_avx512vnni : NULL;
#endif
#if MBI_BUILD_AMX
    case LIMIT_AMX_BF16: return cpu >> MBI_CPU_AMX & 1 ? limits_amx_bf16 : NULL;
    case LIMIT_AMX_INT8: return cpu >> MBI_CPU_AMX & 1 ? limits_amx_int8 : NULL;
#endif
    default: return NULL;
    }
}

/* One measurement with `threads` threads: bytes or operations a second.  Fewer threads than asked
 * may come.  Each takes a new piece when it is done with one, so that a slow core does not stand
 * for all. */
static double limits_once(limits_fn f, const unsigned char *buffer, size_t bytes, long n,
                          int threads) {
    enum { PIECES = 32 }; /* for each thread */
    double total = 0.0;
    double start = cli_seconds();
    if (threads <= 1) {
        total = f(buffer, bytes, n);
    } else {
#if MBI_OPENMP
        int pieces = threads * PIECES;
        size_t slice = bytes / (size_t)pieces / 256 * 256;
        int i;
#pragma omp parallel for num_threads(threads) schedule(dynamic) reduction(+ : total)
        for (i = 0; i < pieces; i++) {
            total += f(buffer + slice * (size_t)i, slice, n / PIECES + 1);
        }
#else
        total = f(buffer, bytes, n);
#endif
    }
    return total / (cli_seconds() - start);
}

/* Rounds that take about 40 ms on one thread. */
static long limits_rounds(limits_fn f) {
    long n = 1000;
    for (;;) {
        double start = cli_seconds();
        double took;
        (void)f(NULL, 0, n);
        took = cli_seconds() - start;
        if (took > 0.01 || n > 1000000000) {
            return (long)((double)n * 0.04 / took) + 1;
        }
        n *= 4;
    }
}

#endif /* LIMITS_H */
