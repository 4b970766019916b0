/*  ref.h: the operators in double precision, written from the formulas and for reading, never from the kernels.
 *  Arrays are row-major float, tokens first, as in @@operators of mamba.h; results are double.
 */
#ifndef REF_H
#define REF_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double ref_softplus(double x)
{
    return x > 20.0 ? x : log1p(exp(x));
}

static double ref_silu(double x)
{
    return x / (1.0 + exp(-x));
}

static double ref_abs(double x)
{
    return x < 0.0 ? -x : x;
}

static void ref_rmsnorm(const float *x, const float *w, double eps, int n, double *y)
{
    double sum = 0.0;
    int i;
    for (i = 0; i < n; i++) {
        sum += (double)x[i] * (double)x[i];
    }
    for (i = 0; i < n; i++) {
        y[i] = (double)x[i] / sqrt(sum / n + eps) * (w != NULL ? (double)w[i] : 1.0);
    }
}

/* Input of channel c at time t, before the start from the carried state. */
static double ref_conv_input(const float *x, const float *state, int channels, int d_conv, int c, int t)
{
    if (t >= 0) {
        return (double)x[(size_t)t * (size_t)channels + (size_t)c];
    }
    return state == NULL ? 0.0 : (double)state[(size_t)(d_conv - 1 + t) * (size_t)channels + (size_t)c];
}

/* y[t][c] before the activation and the sum of absolute terms. */
static double ref_conv(const float *x, const float *w, const float *bias, const float *state, int channels,
                       int d_conv, int c, int t, double *magnitude)
{
    double sum = bias != NULL ? (double)bias[c] : 0.0;
    int j;
    *magnitude = ref_abs(sum);
    for (j = 0; j < d_conv; j++) {
        double term = (double)w[c * d_conv + j] *
                      ref_conv_input(x, state, channels, d_conv, c, t - (d_conv - 1) + j);
        sum += term;
        *magnitude += ref_abs(term);
    }
    return sum;
}

/* What mamba_scan describes: y and its magnitude before the gate (sum of |C h| and |D x|), (T, channels);
 * h (channels, d_state) in and out. */
typedef struct {
    int n_tokens, channels, d_state, n_groups, softplus;
    const float *x, *dt, *dt_bias, *A, *B, *C, *D, *z;
    double *h, *y, *magnitude;
    double largest_h;       /* of all tokens */
} ref_scan;

static void ref_scan_run(ref_scan *s)
{
    int per_group = s->channels / s->n_groups;
    int t, c, n;
    s->largest_h = 0.0;
    for (t = 0; t < s->n_tokens; t++) {
        for (c = 0; c < s->channels; c++) {
            size_t at = (size_t)t * (size_t)s->channels + (size_t)c;
            size_t bc = ((size_t)t * (size_t)s->n_groups + (size_t)(c / per_group)) * (size_t)s->d_state;
            double x = (double)s->x[at];
            double dt = (double)s->dt[at] + (s->dt_bias != NULL ? (double)s->dt_bias[c] : 0.0);
            double y = s->D != NULL ? (double)s->D[c] * x : 0.0;
            double magnitude = ref_abs(y);
            double gate = s->z != NULL ? ref_silu((double)s->z[at]) : 1.0;
            if (s->softplus) {
                dt = ref_softplus(dt);
            }
            for (n = 0; n < s->d_state; n++) {
                double *h = &s->h[(size_t)c * (size_t)s->d_state + (size_t)n];
                double dA = exp(dt * (double)s->A[(size_t)c * (size_t)s->d_state + (size_t)n]);
                *h = dA * *h + dt * (double)s->B[bc + (size_t)n] * x;
                y += (double)s->C[bc + (size_t)n] * *h;
                magnitude += ref_abs((double)s->C[bc + (size_t)n] * *h);
                s->largest_h = ref_abs(*h) > s->largest_h ? ref_abs(*h) : s->largest_h;
            }
            s->y[at] = y * gate;
            s->magnitude[at] = magnitude;
        }
    }
}

#endif /* REF_H */
