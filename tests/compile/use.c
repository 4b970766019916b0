/*  use.c: compiled as C and C++, with and without options, by tests/compile.sh.  With IMPLEMENT it carries
 *  the implementation; with AGAIN it includes the header once before that for the declarations; with TWO it
 *  is linked with other.c, which includes the header too.  Prints "ok" when the library answers as it must.
 */
#ifndef HEADER
#define HEADER "mamba.h"
#endif
#ifdef AGAIN
#include HEADER
#endif
#ifdef IMPLEMENT
#define MAMBA_IMPLEMENTATION
#endif
#include HEADER
#include HEADER /* a second inclusion must do nothing */

#include <stdio.h>
#include <string.h>

#ifdef TWO
#ifdef __cplusplus
extern "C"
#endif
int other_check(const char *version);
#endif

#define EXPECT(x)                                        \
    do {                                                 \
        if (!(x)) {                                      \
            printf("use.c:%d: %s\n", __LINE__, #x);      \
            return 1;                                    \
        }                                                \
    } while (0)

int main(void) {
    static const char path[] = "no-such-directory/model.mamba";
    static const unsigned char junk[128] = {1, 2, 3};
    float x[3] = {0.0f, -200.0f, 30.0f};
    float y[3] = {9.0f, 9.0f, 9.0f};
    char text[512];
    mamba_error err;
    mamba_model *model = NULL;
    int i;
    EXPECT(strcmp(mamba_version(), MAMBA_VERSION_TEXT) == 0);
    EXPECT(mamba_open_memory(junk, sizeof junk, NULL, &model, &err) == MAMBA_ERR_FORMAT);
    EXPECT(model == NULL && err.status == MAMBA_ERR_FORMAT);
    EXPECT(mamba_error_text(&err, text, sizeof text) == strlen(text));
    EXPECT(strstr(text, "not a .mamba file") != NULL);
#ifdef MAMBA_NO_STDIO
    EXPECT(mamba_open(path, sizeof path - 1, NULL, &model, &err) == MAMBA_ERR_UNSUPPORTED);
#else
    EXPECT(mamba_open(path, sizeof path - 1, NULL, &model, &err) == MAMBA_ERR_IO);
    EXPECT(strcmp(err.file, path) == 0);
#endif
    for (i = 0; mamba_target_at(i); i++) {
        const mamba_target *t = mamba_target_at(i);
        EXPECT(mamba_target_find(mamba_target_name(t), strlen(mamba_target_name(t))) == t);
        if (!mamba_target_usable(t)) {
            continue;
        }
        mamba_softplus(t, x, y, 3);
        EXPECT(y[0] > 0.69314f && y[0] < 0.69315f);
        EXPECT(y[1] >= 0.0f && y[1] < 1e-30f);
        EXPECT(y[2] > 29.9999f && y[2] < 30.0001f);
    }
    EXPECT(i >= 1 && mamba_target_usable(mamba_target_best()));
#ifdef TWO
    EXPECT(other_check(mamba_version()) == 0);
#endif
    printf("ok\n");
    return 0;
}
