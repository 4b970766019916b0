/*  sampler.c: the sampler against sorting references, fixed sequences, bad settings and bad logits.
 */
#include <float.h>
#include <math.h>

#define MAMBA_IMPLEMENTATION
#define MAMBA_NO_DISPATCH
#include "mamba.h"
#include "test.h"

#define MAX_N 3000

static uint64_t rng = 1;

static uint64_t next_random(void)
{
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return mbi_sample_mix(rng);
}

static float random_logit(void)
{
    return (float)((double)(next_random() >> 40) / (1 << 24) * 16 - 8);
}

/* Logits that are `kind` 0 all different, 1 mostly equal, 2 with -infinity among them. */
static void fill(float *logits, size_t n, int kind)
{
    for (size_t i = 0; i < n; i++) {
        logits[i] = random_logit();
        if (kind == 1) {
            logits[i] = (float)(int)(logits[i] / 3);
        }
        if (kind == 2 && next_random() % 3 == 0) {
            logits[i] = -INFINITY;
        }
    }
    logits[next_random() % n] = 1;
}

static const float *order_logits;

static int by_logit(const void *a, const void *b)
{
    size_t x = *(const size_t *)a, y = *(const size_t *)b;
    if (order_logits[x] != order_logits[y]) {
        return order_logits[x] > order_logits[y] ? -1 : 1;
    }
    return x < y ? -1 : 1;
}

/* Ids from the most probable down, lower ids first among equal ones. */
static void sort_ids(const float *logits, size_t n, size_t *ids)
{
    for (size_t i = 0; i < n; i++) {
        ids[i] = i;
    }
    order_logits = logits;
    qsort(ids, n, sizeof *ids, by_logit);
}

static float largest(const float *x, size_t n)
{
    float m = x[0];
    for (size_t i = 1; i < n; i++) {
        m = x[i] > m ? x[i] : m;
    }
    return m;
}

TEST(weights_are_exponentials)
{
    double worst = 0;
    for (int i = 0; i < 200000; i++) {
        float x = -(float)((double)(next_random() >> 40) / (1 << 24) * 20);
        double exact = exp((double)x) * 549755813888.0;
        double got = (double)mbi_sample_weight(x, 0, 1.4426950408889634);
        double off = fabs(got - exact) - 1;        /* rounded down to an integer */
        worst = off / exact > worst ? off / exact : worst;
    }
    CHECK_NEAR(worst, 0, 0x1p-29);
    CHECK(mbi_sample_weight(3, 3, 1.0) == MBI_SAMPLE_ONE);
    CHECK(mbi_sample_weight(-27.1f, 0, 1.4426950408889634) == 0);
    CHECK(mbi_sample_weight(-INFINITY, 0, 1.0) == 0);
    CHECK(mbi_sample_weight(-FLT_MAX, FLT_MAX, 1e45) == 0);
}

TEST(zeroed_is_greedy)
{
    mamba_sampler s;
    float logits[8] = {0, 5, -1, 5, 2, 9, 9, 9};
    int32_t token;
    memset(&s, 0, sizeof s);
    CHECK_INT(mamba_sample(&s, logits, 8, 0, &token, NULL), MAMBA_OK);
    CHECK_INT(token, 5);
    CHECK_INT(mamba_sample(&s, logits, 8, 5, &token, NULL), MAMBA_OK);
    CHECK_INT(token, 1);
    CHECK_INT(mamba_sample(&s, logits, 8, 100, &token, NULL), MAMBA_OK);
    CHECK_INT(token, 5);
    CHECK_INT(s.n_draws, 0);
    CHECK_INT(s.n_history, 3);
}

TEST(top_k_keeps_the_k_largest)
{
    static float logits[MAX_N], cut[MAX_N];
    static size_t ids[MAX_N];
    for (int round = 0; round < 300; round++) {
        size_t n = 1 + next_random() % (round % 10 == 0 ? MAX_N : 40);
        size_t k = 1 + next_random() % n;
        fill(logits, n, round % 3);
        memcpy(cut, logits, n * sizeof *cut);
        mbi_sample_top_k(cut, n, (uint32_t)k);
        sort_ids(logits, n, ids);
        for (size_t i = 0; i < n; i++) {
            size_t id = ids[i];
            CHECK(i < k ? cut[id] == logits[id] : cut[id] == -INFINITY);
        }
    }
}

TEST(top_p_keeps_the_fewest)
{
    static float logits[MAX_N], cut[MAX_N];
    static size_t ids[MAX_N];
    static const float p[] = {1e-30f, 0.01f, 0.25f, 0.5f, 0.9f, 0.95f, 0.999f, 0.99999994f};
    for (int round = 0; round < 400; round++) {
        size_t n = 1 + next_random() % (round % 10 == 0 ? MAX_N : 40);
        float top_p = p[round % 8], max;
        double scale = 1.4426950408889634 * (double)(1 + round % 3);
        uint64_t sum = 0, part = 0;
        int full = 0;
        fill(logits, n, round % 3);
        memcpy(cut, logits, n * sizeof *cut);
        max = largest(logits, n);
        mbi_sample_top_p(cut, n, top_p, max, scale);
        sort_ids(logits, n, ids);
        for (size_t i = 0; i < n; i++) {
            sum += mbi_sample_weight(logits[i], max, scale);
        }
        for (size_t i = 0; i < n; i++) {
            size_t id = ids[i];
            CHECK(full ? cut[id] == -INFINITY : cut[id] == logits[id]);
            part += mbi_sample_weight(logits[id], max, scale);
            full = (long double)part >= (long double)top_p * (long double)sum;
        }
    }
}

TEST(min_p_and_frequencies)
{
    enum { N = 5, DRAWS = 200000 };
    static const float base[N] = {0, 1, 2, -1, -40};
    mamba_sampler s;
    int count[N] = {0};
    double p[N], sum = 0, chi = 0;
    mamba_sampler_init(&s, 42);
    s.temperature = 0.7f;
    for (int i = 0; i < DRAWS; i++) {
        float logits[N];
        int32_t token = -1;
        memcpy(logits, base, sizeof base);
        CHECK_INT(mamba_sample(&s, logits, N, 0, &token, NULL), MAMBA_OK);
        REQUIRE(token >= 0 && token < N);
        count[token]++;
    }
    CHECK_INT(count[4], 0);
    for (int i = 0; i < 4; i++) {
        p[i] = exp((double)base[i] / 0.7);
        sum += p[i];
    }
    for (int i = 0; i < 4; i++) {
        double expected = p[i] / sum * DRAWS;
        chi += (count[i] - expected) * (count[i] - expected) / expected;
    }
    CHECK(chi < 16.3);               /* 3 degrees of freedom: exceeded once in 1000 seeds */
    memset(count, 0, sizeof count);
    s.min_p = 0.2f;                  /* exp(-1 / 0.7) = 0.24 stays, exp(-2 / 0.7) = 0.057 goes */
    for (int i = 0; i < 20000; i++) {
        float logits[N];
        int32_t token = -1;
        memcpy(logits, base, sizeof base);
        CHECK_INT(mamba_sample(&s, logits, N, 0, &token, NULL), MAMBA_OK);
        REQUIRE(token >= 0 && token < N);
        count[token]++;
    }
    CHECK(count[0] == 0 && count[3] == 0 && count[4] == 0 && count[1] > 3000 && count[2] > 3000);
}

/* Sequences that a second implementation of the documented steps gave. */
TEST(fixed_sequences)
{
    static const struct {
        uint64_t seed;
        float temperature;
        int32_t top_k;
        float top_p, min_p, repeat_penalty;
        int32_t expected[16];
    } cases[] = {
        {0x0u, 1, 0, 0, 0, 0,
            {640, 699, 394, 669, 774, 132, 777, 255, 352, 555, 389, 105, 83, 543, 568, 369}},
        {0x1u, 0.8f, 40, 0.95f, 0, 0,
            {343, 922, 37, 761, 219, 765, 625, 228, 174, 232, 613, 935, 195, 774, 700, 382}},
        {0x75bcd15u, 1.5f, 0, 0.9f, 0.05f, 1.1f,
            {502, 408, 769, 874, 252, 647, 237, 235, 524, 701, 238, 381, 162, 181, 733, 600}},
        {0xffffffffffffffffu, 0.3f, 5, 0, 0, 1.3f,
            {277, 823, 637, 972, 509, 46, 869, 683, 220, 799, 613, 150, 973, 787, 324, 138}},
        {0x2au, 2, 0, 0, 0.1f, 0,
            {337, 949, 487, 63, 668, 66, 191, 724, 108, 707, 634, 177, 228, 261, 886, 758}},
        {0x7u, 1, 0, 0.5f, 0, 0,
            {686, 645, 591, 616, 331, 145, 922, 914, 840, 120, 923, 427, 17, 154, 865, 857}},
    };
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        mamba_sampler s;
        mamba_sampler_init(&s, cases[c].seed);
        s.temperature = cases[c].temperature;
        s.top_k = cases[c].top_k;
        s.top_p = cases[c].top_p;
        s.min_p = cases[c].min_p;
        s.repeat_penalty = cases[c].repeat_penalty;
        for (int i = 0; i < 16; i++) {
            float logits[1000];
            int32_t token;
            for (int j = 0; j < 1000; j++) {       /* exact in float: multiples of 1/64 */
                logits[j] = (float)((j * 7919 + i * 104729) % 1009) / 64.0f;
            }
            CHECK_INT(mamba_sample(&s, logits, 1000, 990, &token, NULL), MAMBA_OK);
            CHECK_INT(token, cases[c].expected[i]);
        }
    }
}

TEST(repetition_penalty)
{
    mamba_sampler s;
    float logits[4] = {3, 2.5f, -1, -2};
    int32_t token;
    memset(&s, 0, sizeof s);
    s.repeat_penalty = 2;
    mamba_sampler_accept(&s, 0);
    mamba_sampler_accept(&s, 0);                   /* once, however often it occurred */
    mamba_sampler_accept(&s, 2);
    CHECK_INT(mamba_sample(&s, logits, 4, 0, &token, NULL), MAMBA_OK);
    CHECK_INT(token, 1);
    CHECK(logits[0] == 1.5f && logits[1] == 2.5f && logits[2] == -2.0f && logits[3] == -2.0f);
    s.repeat_last_n = 1;                           /* only token 1 counts now */
    logits[0] = 3;
    logits[1] = 7;
    CHECK_INT(mamba_sample(&s, logits, 4, 0, &token, NULL), MAMBA_OK);
    CHECK_INT(token, 1);
    CHECK(logits[0] == 3 && logits[1] == 3.5f);
    s.repeat_last_n = 0;
    for (int i = 0; i < 64; i++) {
        mamba_sampler_accept(&s, 3);               /* pushes all others out of the history */
    }
    logits[0] = 3;
    logits[1] = 2.5f;
    logits[3] = 4;
    CHECK_INT(mamba_sample(&s, logits, 4, 0, &token, NULL), MAMBA_OK);
    CHECK_INT(token, 0);
    CHECK(logits[0] == 3 && logits[3] == 2);
    logits[0] = FLT_MAX;
    logits[3] = -FLT_MAX;
    s.repeat_penalty = FLT_MIN;                    /* beyond the range of float: stays at its end */
    CHECK_INT(mamba_sample(&s, logits, 4, 0, &token, NULL), MAMBA_OK);
    CHECK(logits[0] == FLT_MAX && logits[3] > -5 && logits[3] < -3);
    s.repeat_penalty = FLT_MAX;
    logits[3] = -FLT_MAX;
    CHECK_INT(mamba_sample(&s, logits, 4, 4, &token, NULL), MAMBA_OK);
    CHECK(logits[3] == -FLT_MAX);
    mamba_sampler_accept(&s, 3);
    mamba_sampler_accept(&s, 0);                   /* -infinity stays -infinity */
    logits[3] = -INFINITY;
    CHECK_INT(mamba_sample(&s, logits, 4, 4, &token, NULL), MAMBA_OK);
    CHECK(logits[3] == -INFINITY);
}

TEST(a_saved_sampler_continues)
{
    mamba_sampler a, b;
    mamba_sampler_init(&a, 7);
    a.repeat_penalty = 1.1f;
    for (int i = 0; i < 200; i++) {
        float x[50], y[50];
        int32_t s = -1, t = -2;
        fill(x, 50, 0);
        memcpy(y, x, sizeof y);
        memcpy(&b, &a, sizeof b);
        CHECK_INT(mamba_sample(&a, x, 50, 0, &s, NULL), MAMBA_OK);
        CHECK_INT(mamba_sample(&b, y, 50, 0, &t, NULL), MAMBA_OK);
        CHECK_INT(s, t);
        CHECK(memcmp(&a, &b, sizeof a) == 0);
    }
}

TEST(bad_logits)
{
    static const size_t sizes[] = {1, 2, 1000};
    static float logits[1000], copy[1000];
    for (int z = 0; z < 3; z++) {
        size_t n = sizes[z];
        for (size_t at = 0; at < n; at++) {
            for (int kind = 0; kind < 4; kind++) {
                mamba_sampler s, before;
                mamba_error err;
                int32_t token = 77;
                mamba_sampler_init(&s, 1);
                s.temperature = (float)(at % 2);
                before = s;
                fill(logits, n, 0);
                logits[at] = kind == 0 ? NAN : kind == 1 ? -NAN : INFINITY;
                for (size_t i = 0; i < n && kind == 3; i++) {
                    logits[i] = -INFINITY;
                }
                memcpy(copy, logits, n * sizeof *copy);
                CHECK_INT(mamba_sample(&s, logits, n, 0, &token, &err), MAMBA_ERR_NONFINITE);
                CHECK_INT(err.status, MAMBA_ERR_NONFINITE);
                CHECK_INT(token, -1);
                CHECK(memcmp(&s, &before, sizeof s) == 0);
                CHECK(memcmp(logits, copy, n * sizeof *copy) == 0);
            }
        }
    }
    {
        mamba_sampler s;
        float x[4] = {1, -INFINITY, 0.5f, NAN};    /* NaN in the padding is nobody's business */
        int32_t token;
        mamba_sampler_init(&s, 1);
        s.top_k = 2;
        s.top_p = 0.99f;
        for (int i = 0; i < 100; i++) {
            CHECK_INT(mamba_sample(&s, x, 4, 3, &token, NULL), MAMBA_OK);
            CHECK(token == 0 || token == 2);
        }
    }
}

TEST(bad_settings)
{
    static const float bad_float[] = {NAN, -1, INFINITY, -INFINITY};
    float logits[4] = {1, 2, 3, 4};
    int32_t token;
    mamba_error err;
    mamba_sampler good, s;
    mamba_sampler_init(&good, 1);
#define REFUSED(assignment, field)                                                  \
    do {                                                                            \
        mamba_sampler before;                                                       \
        s = good;                                                                   \
        assignment;                                                                 \
        before = s;                                                                 \
        CHECK_INT(mamba_sample(&s, logits, 4, 0, &token, &err), MAMBA_ERR_ARG);     \
        CHECK_CONTAINS(err.name, field);                                            \
        CHECK(err.what[0] != 0 && token == -1);                                     \
        CHECK(memcmp(&s, &before, sizeof s) == 0);                                  \
    } while (0)
    for (int i = 0; i < 4; i++) {
        REFUSED(s.temperature = bad_float[i], "temperature");
        REFUSED(s.top_p = bad_float[i], "top_p");
        REFUSED(s.min_p = bad_float[i], "min_p");
        REFUSED(s.repeat_penalty = bad_float[i], "repeat_penalty");
    }
    REFUSED(s.top_p = 1.5f, "top_p");
    REFUSED(s.min_p = 1.5f, "min_p");
    REFUSED(s.top_k = -1, "top_k");
    REFUSED(s.repeat_last_n = -1, "repeat_last_n");
    REFUSED(s.repeat_last_n = 65, "repeat_last_n");
    REFUSED((s.repeat_penalty = 2, s.n_history = 1, s.history[0] = -5), "history");
    REFUSED((s.repeat_penalty = 2, s.n_history = UINT64_MAX, s.history[9] = 4), "history");
    CHECK_INT(mamba_sample(NULL, logits, 4, 0, &token, &err), MAMBA_ERR_ARG);
    CHECK_INT(mamba_sample(&good, NULL, 4, 0, &token, &err), MAMBA_ERR_ARG);
    CHECK_INT(mamba_sample(&good, logits, 4, 0, NULL, &err), MAMBA_ERR_ARG);
    CHECK_INT(mamba_sample(&good, logits, 0, 0, &token, &err), MAMBA_ERR_ARG);
    CHECK_INT(mamba_sample(&good, logits, ((size_t)1 << 24) + 1, 0, &token, &err), MAMBA_ERR_ARG);
    CHECK(logits[0] == 1 && logits[3] == 4);
    mamba_sampler_init(NULL, 0);
    mamba_sampler_accept(NULL, 0);
}

TEST(extreme_settings)
{
    static const float temperature[] = {1e-45f, 1e-30f, 1, 1e30f, FLT_MAX};
    static const float top_p[] = {0, 1e-45f, 0.5f, 1};
    static const int32_t top_k[] = {0, 1, 3, INT32_MAX};
    for (int a = 0; a < 5 * 4 * 4 * 3; a++) {
        float logits[6] = {-FLT_MAX, FLT_MAX, 0, -0.0f, 1e-45f, -INFINITY};
        mamba_sampler s;
        int32_t token = -1;
        mamba_sampler_init(&s, (uint64_t)a - 100);
        s.temperature = temperature[a % 5];
        s.top_p = top_p[a / 5 % 4];
        s.top_k = top_k[a / 20 % 4];
        s.min_p = (float)(a / 80) * 0.5f;
        CHECK_INT(mamba_sample(&s, logits, 6, 0, &token, NULL), MAMBA_OK);
        CHECK(token >= 0 && token < 5);
        if (s.top_k == 1 || temperature[a % 5] < 1e30f) {
            CHECK_INT(token, 1);
        }
    }
    for (uint64_t seed = 0; seed < 300; seed++) {  /* one logit, equal logits, every seed */
        float one = -5, equal[3] = {2, 2, 2};
        mamba_sampler s;
        int32_t token;
        mamba_sampler_init(&s, seed * 0x0123456789ABCDEFu);
        CHECK_INT(mamba_sample(&s, &one, 1, 0, &token, NULL), MAMBA_OK);
        CHECK_INT(token, 0);
        s.top_k = 2;
        CHECK_INT(mamba_sample(&s, equal, 3, 0, &token, NULL), MAMBA_OK);
        CHECK(token == 0 || token == 1);
        s.top_k = 0;
        s.top_p = 0.3f;
        CHECK_INT(mamba_sample(&s, equal, 3, 0, &token, NULL), MAMBA_OK);
        CHECK_INT(token, 0);
    }
}

TEST_MAIN("sampler")
{
    RUN(weights_are_exponentials);
    RUN(zeroed_is_greedy);
    RUN(top_k_keeps_the_k_largest);
    RUN(top_p_keeps_the_fewest);
    RUN(min_p_and_frequencies);
    RUN(fixed_sequences);
    RUN(repetition_penalty);
    RUN(a_saved_sampler_continues);
    RUN(bad_logits);
    RUN(bad_settings);
    RUN(extreme_settings);
}
