/*  program.h: what the command lines of the tools share: options, weight types, progress bar, Ctrl-C.
 */
#ifndef TL_PROGRAM_H
#define TL_PROGRAM_H

#include "base.h"

#include <signal.h>
#include <time.h>

static volatile sig_atomic_t pr_stop;   /* set by Ctrl-C: the writer then stops and leaves nothing */

TL_FN void pr_on_signal(int number)
{
    (void)number;
    pr_stop = 1;
}

TL_FN void pr_catch_signals(void)
{
    signal(SIGINT, pr_on_signal);
    signal(SIGTERM, pr_on_signal);
}

/* Draws the bar, at most once a second; `user` points at an int that is not 0 for silence. Not 0: stop. */
TL_FN int pr_progress(void *user, uint64_t done, uint64_t total)
{
    static time_t last;   /* this tool's own, one thread */
    time_t now = time(NULL);
    if (*(const int *)user == 0 && now != last && isatty(2)) {
        int percent = (int)(100.0 * (double)done / (double)total);
        last = now;
        fprintf(stderr, "\r[%-50.*s] %3d %%", percent / 2, "##################################################",
                percent);
        if (done == total) {
            fprintf(stderr, "\n");
        }
    }
    return pr_stop;
}

/* Value of `--name value` or `--name=value`; NULL when argv[*i] is another option. "" means missing. */
TL_FN const char *pr_value(int argc, char **argv, int *i, const char *name)
{
    size_t n = strlen(name);
    if (strncmp(argv[*i], name, n) == 0 && argv[*i][n] == '=') {
        return argv[*i] + n + 1;
    }
    if (strcmp(argv[*i], name) != 0) {
        return NULL;
    }
    return *i + 1 < argc ? argv[++*i] : "";
}

/* mamba_type by name, -1 if there is none such. */
TL_FN int pr_type(const char *name)
{
    for (int i = MAMBA_F32; i <= MAMBA_Q4; i++) {
        if (strcmp(name, mbi_type_name((uint32_t)i)) == 0) {
            return i;
        }
    }
    return -1;
}

/* Says what is wrong with the command line; returns its exit code. */
TL_FN int pr_usage(const char *program, const char *what, const char *value)
{
    fprintf(stderr, "%s: %s%s%s (try %s --help)\n", program, what, value != NULL ? ": " : "",
            value != NULL ? value : "", program);
    return 2;
}

/* The output must be neither a folder nor the same file as the input. */
TL_FN tl_status pr_check_output(const char *out, const char *in, tl_error *err)
{
    struct stat a, b;
    if (stat(out, &a) != 0) {
        return TL_OK;
    }
    if (S_ISDIR(a.st_mode)) {
        return tl_fail(err, TL_ERR_USAGE, "%s: is a folder; -o takes a file name", out);
    }
    if (stat(in, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino) {
        return tl_fail(err, TL_ERR_USAGE, "%s: is the input; choose another output", out);
    }
    return TL_OK;
}

#endif /* TL_PROGRAM_H */
