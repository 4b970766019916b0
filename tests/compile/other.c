/*  other.c: the second file of a program of two; see use.c.  */
#include "mamba.h"

#include <string.h>

#ifdef __cplusplus
extern "C"
#endif
int other_check(const char *version);

int other_check(const char *version) {
    float x = 1.0f;
    float y = 0.0f;
    mamba_silu(NULL, &x, &y, 1);
    return strcmp(version, mamba_version()) != 0 || !(y > 0.7310f && y < 0.7311f);
}
