/*  bin2c: a file as a C array: bin2c FILE NAME > NAME.inc
 *
 *  Writes `static const unsigned long long NAME[]`, aligned to 64 bytes, and `NAME_bytes`.  64-bit
 * numbers compile several times faster than single bytes; the array is for little-endian machines,
 * as the model format is.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

static int fail(const char *file, const char *what) {
    (void)fprintf(stderr, "bin2c: %s: %s\n", file, what);
    return 1;
}

int main(int argc, char **argv) {
    unsigned char buffer[4096];
    unsigned long long total = 0;
    FILE *in;
    size_t n;
    if (argc != 3) {
        (void)fputs("usage: bin2c FILE NAME > NAME.inc\n", stderr);
        return 2;
    }
    in = fopen(argv[1], "rb");
    if (in == NULL) {
        return fail(argv[1], strerror(errno));
    }
    (void)printf(
        "/* Made by bin2c. */\n#if defined(__GNUC__)\n__attribute__((aligned(64)))\n#endif\n"
        "static const unsigned long long %s[] = {\n",
        argv[2]);
    while ((n = fread(buffer, 1, sizeof buffer, in)) > 0) {
        size_t i;
        memset(buffer + n, 0, sizeof buffer - n);
        for (i = 0; i < n; i += 8) {
            unsigned long long v = 0;
            int k;
            for (k = 7; k >= 0; k--) {
                v = v << 8 | buffer[i + (size_t)k];
            }
            (void)printf("0x%llx,%s", v, i % 64 == 56 ? "\n" : "");
        }
        total += n;
    }
    (void)printf("\n};\nstatic const unsigned long long %s_bytes = %lluu;\n", argv[2], total);
    if (ferror(in) || total == 0) {
        (void)fclose(in);
        return fail(argv[1], total == 0 ? "nothing to read" : "cannot read");
    }
    (void)fclose(in);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        return fail("standard output", "cannot write");
    }
    return 0;
}
