/*  scan: the selective scan on the caller's own arrays, no model, no file: a bank of leaky
 * integrators.
 *
 *      cc -O2 -fopenmp -I. examples/scan.c -o scan -lm && ./scan
 *
 *  Channel i forgets with time constant 1/|A[i]|: h' = exp(dt A) h + dt x, y = h.  A step at t =
 * 100 goes in; every channel rises to about 1/|A| at its own pace.  The sequential scan and the
 * scan that is parallel over time give the same numbers.
 */
#define MAMBA_IMPLEMENTATION
#include "mamba.h"
#include <stdio.h>
#include <string.h>

enum { TOKENS = 1000, CHANNELS = 4 };

static float x[TOKENS][CHANNELS], dt[TOKENS][CHANNELS], B[TOKENS][1], C[TOKENS][1];
static float y[TOKENS][CHANNELS], y_parallel[TOKENS][CHANNELS];

int main(void) {
    const float A[CHANNELS] = {-0.5f, -0.2f, -0.1f, -0.05f};
    mamba_scan scan;
    mamba_error err;
    float worst = 0.0f;
    int t;
    int i;
    for (t = 0; t < TOKENS; t++) {
        for (i = 0; i < CHANNELS; i++) {
            x[t][i] = t >= 100 ? 1.0f : 0.0f;
            dt[t][i] = 0.1f;
        }
        B[t][0] = C[t][0] = 1.0f;
    }
    memset(&scan, 0, sizeof scan);
    scan.n_tokens = TOKENS;
    scan.channels = CHANNELS;
    scan.d_state = 1;
    scan.x = &x[0][0];
    scan.dt = &dt[0][0];
    scan.A = A;
    scan.B = &B[0][0];
    scan.C = &C[0][0];
    scan.y = &y[0][0];
    if (mamba_selective_scan(mamba_target_best(), &scan, 1, NULL, NULL, &err) != MAMBA_OK) {
        fprintf(stderr, "scan: %s (%s)\n", err.what, err.name);
        return 1;
    }
    scan.y = &y_parallel[0][0];
    if (mamba_scan_time_parallel(mamba_target_best(), &scan, 128, 2, NULL, NULL, &err) !=
        MAMBA_OK) {
        fprintf(stderr, "scan: %s (%s)\n", err.what, err.name);
        return 1;
    }
    printf("time constant     2       5      10      20\n");
    for (t = 99; t < TOKENS; t += 100) {
        printf("t = %5.1f  ", 0.1 * (t + 1));
        for (i = 0; i < CHANNELS; i++) {
            printf("%8.4f", (double)y[t][i]);
        }
        printf("\n");
    }
    for (t = 0; t < TOKENS; t++) {
        for (i = 0; i < CHANNELS; i++) {
            float d = y[t][i] - y_parallel[t][i];
            worst = d > worst ? d : -d > worst ? -d : worst;
        }
    }
    printf("largest difference of the two scans: %.1e\n", (double)worst);
    return worst < 1e-4f ? 0 : 1;
}
