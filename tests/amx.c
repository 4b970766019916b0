/*  amx.c: the kernels of target amx on machines without AMX: the tile instructions in plain C, and the tests of
 *  kernels.c on top. The rest of these kernels is AVX-512 with VNNI and BF16, which the machine must have.
 *  What an instruction would fault on (shapes that don't fit, tiles without a configuration) ends the program.
 */
#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_dpbssd
#define _tile_loadconfig tile_loadconfig
#define _tile_release tile_release
#define _tile_zero tile_zero
#define _tile_loadd tile_loadd
#define _tile_stream_loadd tile_loadd
#define _tile_stored tile_stored
#define _tile_dpbf16ps tile_dpbf16ps
#define _tile_dpbssd tile_dpbssd
#endif
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned char tile_data[8][16][64]; /* what lies outside the configured shape is zero */
static int tile_rows[8], tile_bytes[8];

static void tile_check(int holds, const char *what)
{
    if (!holds) {
        printf("amx: %s\n", what);
        exit(3);
    }
}

/* Intel 64 manual, TILE_CONFIG: palette, start_row, then bytes of a row at 16, rows at 48. */
static void tile_loadconfig(const void *config)
{
    const unsigned char *p = (const unsigned char *)config;
    tile_check(p[0] == 1 && p[1] == 0, "a configuration of palette 1 that starts at row 0");
    for (int t = 0; t < 8; t++) {
        tile_bytes[t] = p[16 + 2 * t] | p[17 + 2 * t] << 8;
        tile_rows[t] = p[48 + t];
        tile_check(tile_bytes[t] >= 1 && tile_bytes[t] <= 64 && tile_rows[t] >= 1 && tile_rows[t] <= 16, "a shape up to 16 x 64");
    }
    memset(tile_data, 0, sizeof tile_data);
}

static void tile_release(void)
{
    memset(tile_rows, 0, sizeof tile_rows);
}

static void tile_zero(int t)
{
    tile_check(tile_rows[t] > 0, "tilezero needs a configuration");
    memset(tile_data[t], 0, sizeof tile_data[t]);
}

static void tile_loadd(int t, const void *base, size_t stride)
{
    tile_zero(t);
    for (int r = 0; r < tile_rows[t]; r++) {
        memcpy(tile_data[t][r], (const unsigned char *)base + (size_t)r * stride, (size_t)tile_bytes[t]);
    }
}

static void tile_stored(int t, void *base, size_t stride)
{
    tile_check(tile_rows[t] > 0, "tilestored needs a configuration");
    for (int r = 0; r < tile_rows[t]; r++) {
        memcpy((unsigned char *)base + (size_t)r * stride, tile_data[t][r], (size_t)tile_bytes[t]);
    }
}

static void tile_check_product(int c, int a, int b)
{
    tile_check(tile_rows[c] > 0 && tile_rows[a] == tile_rows[c] && tile_bytes[b] == tile_bytes[c] &&
                   tile_rows[b] * 4 == tile_bytes[a],
               "a product of tiles that fit");
}

/* c[m][n] += sum over k, i < 4 of a[m][4k+i] * b[k][4n+i], signed bytes. */
static void tile_dpbssd(int c, int a, int b)
{
    tile_check_product(c, a, b);
    for (int m = 0; m < tile_rows[c]; m++) {
        for (int n = 0; n < tile_bytes[c] / 4; n++) {
            int32_t sum;
            memcpy(&sum, &tile_data[c][m][4 * n], 4);
            for (int k = 0; k < tile_rows[b]; k++) {
                for (int i = 0; i < 4; i++) {
                    sum += (signed char)tile_data[a][m][4 * k + i] * (signed char)tile_data[b][k][4 * n + i];
                }
            }
            memcpy(&tile_data[c][m][4 * n], &sum, 4);
        }
    }
}

/* Denormals count as zero, wherever they arise. */
static float tile_flush(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return (u & 0x7f800000u) == 0 ? 0.0f : f;
}

static float tile_bf16(const unsigned char *p)
{
    uint32_t u = (uint32_t)p[0] << 16 | (uint32_t)p[1] << 24;
    float f;
    memcpy(&f, &u, 4);
    return tile_flush(f);
}

/* c[m][n] += sum over k, i < 2 of a[m][2k+i] * b[k][2n+i], bf16: even and odd i apart, then both added. */
static void tile_dpbf16ps(int c, int a, int b)
{
    tile_check_product(c, a, b);
    for (int m = 0; m < tile_rows[c]; m++) {
        for (int n = 0; n < tile_bytes[c] / 4; n++) {
            float sum[2] = {0, 0}, old;
            for (int k = 0; k < tile_rows[b]; k++) {
                for (int i = 0; i < 2; i++) {
                    sum[i] = tile_flush(fmaf(tile_bf16(&tile_data[a][m][4 * k + 2 * i]),
                                             tile_bf16(&tile_data[b][k][4 * n + 2 * i]), sum[i]));
                }
            }
            memcpy(&old, &tile_data[c][m][4 * n], 4);
            old = tile_flush(tile_flush(old) + tile_flush(sum[0] + sum[1]));
            memcpy(&tile_data[c][m][4 * n], &old, 4);
        }
    }
}

#define KERNELS_NAME "amx"
#define KERNELS_ONLY "amx"
#define KERNELS_USABLE(t) \
    (mamba_target_usable(mamba_target_find("avx512vnni", 10)) && (mbi_cpu_features() >> MBI_CPU_AVX512BF16 & 1) != 0)
#include "kernels.c"
