/*  cli.h: what the subcommands of examples/mamba.c share: options, messages, files, progress,
 * Ctrl-C.
 *
 *  Include it before any system header (it selects the POSIX interfaces).  Nothing here depends on
 * the locale: numbers are read by hand, and printf never sees setlocale.
 */
#ifndef CLI_H
#define CLI_H

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#ifndef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64
#endif

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

enum { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2, CLI_INTERRUPTED = 130 };

#if defined(__GNUC__)
#define CLI_PRINTF(f, a) __attribute__((format(printf, f, a)))
#else
#define CLI_PRINTF(f, a)
#endif

/* ---- messages -------------------------------------------------------------------------------- */

/* Room for a piece of the user's text inside a message. */
typedef struct {
    char text[160];
} cli_quoted;

/* Bytes made fit for a terminal: control bytes and quotes become \xNN, what is long is cut. */
static const char *cli_quote(cli_quoted *out, const char *bytes, size_t n) {
    static const char hex[] = "0123456789abcdef";
    size_t o = 0;
    size_t i;
    for (i = 0; i < n && o + 8 < sizeof out->text; i++) {
        unsigned char c = (unsigned char)bytes[i];
        if (c >= 0x20 && c != 0x7f && c != '\'' && c != '\\') {
            out->text[o++] = (char)c;
        } else {
            out->text[o++] = '\\';
            out->text[o++] = 'x';
            out->text[o++] = hex[c >> 4];
            out->text[o++] = hex[c & 15];
        }
    }
    memcpy(out->text + o, i < n ? "..." : "", i < n ? 4 : 1);
    return out->text;
}

/* Prints "mamba: …" on standard error and returns `code`. */
CLI_PRINTF(2, 3)
static int cli_fail(int code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    (void)fflush(stdout);
    (void)fputs("mamba: ", stderr);
    (void)vfprintf(stderr, format, args);
    (void)fputc('\n', stderr);
    va_end(args);
    return code;
}

/* ---- interrupts and the clock ---------------------------------------------------------------- */

static volatile sig_atomic_t cli_stop; /* 1 after the first Ctrl-C; the second one kills */

static void cli_on_interrupt(int number) {
    cli_stop = 1;
    (void)signal(number, SIG_DFL);
}

/* Ctrl-C asks the loops to end; writing to a closed pipe is an error, not a signal; descriptors 0
 * to 2 exist, so that no file opened later becomes standard output by accident. */
static void cli_start(void) {
    struct sigaction action;
    int fd;
    for (fd = 0; fd <= 2; fd++) {
        if (fcntl(fd, F_GETFD) == -1 && errno == EBADF) {
            (void)open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY); /* every use of it fails */
        }
    }
    (void)signal(SIGPIPE, SIG_IGN);
    memset(&action, 0, sizeof action);
    action.sa_handler = cli_on_interrupt;
    (void)sigemptyset(&action.sa_mask);
    (void)sigaction(SIGINT, &action, NULL);
}

static double cli_seconds(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- numbers --------------------------------------------------------------------------------- */

/* All of text as decimal digits; 0 if it is anything else or does not fit. */
static int cli_read_u64(const char *text, size_t n, uint64_t *value) {
    uint64_t v = 0;
    size_t i;
    for (i = 0; i < n; i++) {
        unsigned digit = (unsigned)((unsigned char)text[i] - '0');
        if (digit > 9 || v > (UINT64_MAX - digit) / 10) {
            return 0;
        }
        v = v * 10 + digit;
    }
    *value = v;
    return n > 0;
}

static int cli_read_i64(const char *text, size_t n, int64_t *value) {
    uint64_t v;
    int negative = n > 0 && text[0] == '-';
    if (!cli_read_u64(text + negative, n - (size_t)negative, &v) || v > (uint64_t)INT64_MAX) {
        return 0;
    }
    *value = negative ? -(int64_t)v : (int64_t)v;
    return 1;
}

/* [-]digits[.digits][e[+-]digits], all of text, finite; exact to an ulp. */
static int cli_read_double(const char *text, size_t n, double *value) {
    uint64_t mantissa = 0;
    int64_t exponent = 0;
    int digits = 0;
    int negative = n > 0 && text[0] == '-';
    int after_point = 0;
    double v;
    size_t i = (size_t)negative;
    for (; i < n && ((text[i] >= '0' && text[i] <= '9') || (text[i] == '.' && !after_point)); i++) {
        if (text[i] == '.') {
            after_point = 1;
        } else if (mantissa < UINT64_MAX / 10 - 1) {
            mantissa = mantissa * 10 + (uint64_t)(text[i] - '0');
            exponent -= after_point;
            digits = 1;
        } else {
            exponent += !after_point;
        }
    }
    if (i < n && digits && (text[i] == 'e' || text[i] == 'E')) {
        int64_t e;
        int plus = i + 1 < n && text[i + 1] == '+';
        i += 1 + (size_t)plus;
        if (!cli_read_i64(text + i, n - i, &e) || (plus && text[i] == '-') || e > 9999 ||
            e < -9999) {
            return 0;
        }
        exponent += e;
        i = n;
    }
    if (!digits || i != n) {
        return 0;
    }
    for (v = (double)mantissa; exponent < 0 && v > 0.0; exponent++) {
        v /= 10.0;
    }
    for (; exponent > 0 && v > 0.0 && v <= 1e308; exponent--) {
        v *= 10.0;
    }
    *value = negative ? -v : v;
    return v <= 1.7976931348623157e308;
}

/* ---- options --------------------------------------------------------------------------------- */

typedef enum { CLI_FLAG, CLI_INT, CLI_SEED, CLI_FLOAT, CLI_TEXT, CLI_ANY_TEXT } cli_kind;

/* One option; `value` points to an int, int64_t, uint64_t, double or const char * as the kind says.
 */
typedef struct {
    const char *name; /* without dashes */
    char letter;      /* 0 = none */
    cli_kind kind;    /* CLI_TEXT refuses an empty value, CLI_ANY_TEXT takes it */
    void *value;
    double lo, hi;        /* of numbers, both allowed */
    const char *argument; /* in the help */
    const char *help;     /* lines after the first are indented by the printer; says the default */
    int given;
} cli_option;

/* A subcommand's page of help. */
typedef struct {
    const char *name, *usage, *purpose, *notes;
    cli_option *options;
    int n_options;
} cli_page;

static const char cli_exit_codes[] =
    "Exit codes: 0 success; 1 failure while running, including output that could not be written;\n"
    "2 wrong usage; 130 ended by Ctrl-C (the first ends cleanly, a second one kills).\n";

static void cli_print_help(const cli_page *page, FILE *to) {
    int i;
    (void)fprintf(to, "usage: mamba %s %s\n\n%s\n\n", page->name, page->usage, page->purpose);
    for (i = 0; i < page->n_options; i++) {
        const cli_option *o = &page->options[i];
        const char *at = o->help;
        char left[64];
        (void)snprintf(left, sizeof left, "%c%c%s--%s%s%s", o->letter ? '-' : ' ',
                       o->letter ? o->letter : ' ', o->letter ? ", " : "  ", o->name,
                       o->argument ? " " : "", o->argument ? o->argument : "");
        (void)fprintf(to, "  %-27s ", left);
        for (; *at; at++) {
            (void)fputc(*at, to);
            if (*at == '\n') {
                (void)fprintf(to, "%30s", "");
            }
        }
        (void)fputc('\n', to);
    }
    (void)fprintf(to, "  -h, --help                  this text\n\n%s%s", page->notes,
                  cli_exit_codes);
}

static int cli_option_fail(const cli_page *page, const cli_option *o, const char *value,
                           const char *what) {
    cli_quoted q;
    return cli_fail(CLI_USAGE, "%s: --%s: found '%s', %s (see mamba %s --help)", page->name,
                    o->name, cli_quote(&q, value, strlen(value)), what, page->name);
}

/* Stores the value of one option or says what is wrong with it. */
static int cli_option_set(const cli_page *page, cli_option *o, const char *value) {
    size_t n = value ? strlen(value) : 0;
    char range[96];
    int ok = 1;
    if (o->given) {
        return cli_fail(CLI_USAGE, "%s: --%s is given twice; give it once", page->name, o->name);
    }
    o->given = 1;
    if (o->kind == CLI_FLAG) {
        *(int *)o->value = 1;
        return CLI_OK;
    }
    if (n == 0 && o->kind != CLI_ANY_TEXT) {
        return cli_option_fail(page, o, "", "allowed: a value that is not empty");
    }
    if (o->kind == CLI_INT) {
        int64_t v;
        (void)snprintf(range, sizeof range, "allowed: a whole number from %.0f to %.0f", o->lo,
                       o->hi);
        ok = cli_read_i64(value, n, &v) && (double)v >= o->lo && (double)v <= o->hi;
        if (ok) {
            *(int64_t *)o->value = v;
        }
    } else if (o->kind == CLI_SEED) {
        (void)snprintf(range, sizeof range, "allowed: a whole number from 0 to %llu",
                       (unsigned long long)UINT64_MAX);
        ok = cli_read_u64(value, n, (uint64_t *)o->value);
    } else if (o->kind == CLI_FLOAT) {
        double v;
        (void)snprintf(range, sizeof range, "allowed: a number from %g to %g", o->lo, o->hi);
        ok = cli_read_double(value, n, &v) && v >= o->lo && v <= o->hi;
        if (ok) {
            *(double *)o->value = v;
        }
    } else {
        *(const char **)o->value = value;
    }
    return ok ? CLI_OK : cli_option_fail(page, o, value, range);
}

static cli_option *cli_option_find(const cli_page *page, const char *name, size_t n, char letter) {
    int i;
    for (i = 0; i < page->n_options; i++) {
        cli_option *o = &page->options[i];
        if (letter ? o->letter == letter : strlen(o->name) == n && memcmp(o->name, name, n) == 0) {
            return o;
        }
    }
    return NULL;
}

/* Is this option given?  `name` must exist in the page. */
static int cli_given(const cli_page *page, const char *name) {
    const cli_option *o = cli_option_find(page, name, strlen(name), 0);
    return o != NULL && o->given;
}

/* One argument that starts with a dash: argv[*i], maybe with its value behind it. */
static int cli_parse_option(const cli_page *page, int argc, char **argv, int *i) {
    const char *a = argv[*i];
    const char *equals = NULL;
    cli_option *o;
    cli_quoted q;
    if (a[1] == '-') {
        equals = strchr(a, '=');
        o = cli_option_find(page, a + 2, equals ? (size_t)(equals - a - 2) : strlen(a + 2), 0);
    } else {
        o = a[2] == '\0' ? cli_option_find(page, NULL, 0, a[1]) : NULL;
    }
    if (o == NULL) {
        return cli_fail(CLI_USAGE,
                        "%s: unknown option '%s'; the options are listed by: mamba %s --help",
                        page->name, cli_quote(&q, a, strlen(a)), page->name);
    }
    if (o->kind == CLI_FLAG) {
        return equals ? cli_option_fail(page, o, equals + 1, "but this option takes no value")
                      : cli_option_set(page, o, NULL);
    }
    if (equals) {
        return cli_option_set(page, o, equals + 1);
    }
    if (*i + 1 >= argc) {
        return cli_fail(CLI_USAGE, "%s: --%s needs a value: --%s %s", page->name, o->name, o->name,
                        o->argument);
    }
    return cli_option_set(page, o, argv[++*i]);
}

/* Reads argv (behind the subcommand's name): options anywhere, "--" ends them, the rest goes to the
 * front of argv, its count to *n_rest.  Returns -1 when the caller may go on, else the exit code.
 */
static int cli_parse(const cli_page *page, int argc, char **argv, int max_rest, int *n_rest) {
    cli_quoted q;
    int n = 0;
    int i;
    int options_end = 0;
    for (i = 0; i < argc; i++) {
        if (!options_end && strcmp(argv[i], "--") == 0) {
            options_end = 1;
        } else if (!options_end && (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)) {
            cli_print_help(page, stdout);
            return CLI_OK; /* what cannot be written is told at the end */
        } else if (!options_end && argv[i][0] == '-' && argv[i][1] != '\0') {
            int code = cli_parse_option(page, argc, argv, &i);
            if (code != CLI_OK) {
                return code;
            }
        } else if (n >= max_rest) {
            return cli_fail(CLI_USAGE, "%s: unexpected argument '%s' (see mamba %s --help)",
                            page->name, cli_quote(&q, argv[i], strlen(argv[i])), page->name);
        } else {
            argv[n++] = argv[i];
        }
    }
    *n_rest = n;
    return -1;
}

/* ---- reading --------------------------------------------------------------------------------- */

typedef struct {
    char *bytes;
    size_t n, cap;
} cli_text;

static int cli_reserve(cli_text *t, size_t more) {
    size_t want = t->n + more;
    char *p;
    if (want < t->n || want > SIZE_MAX / 4) {
        return cli_fail(CLI_FAILED, "out of memory: the input is too long for this machine");
    }
    if (want <= t->cap) {
        return CLI_OK;
    }
    want += want / 2 + 4096;
    p = (char *)realloc(t->bytes, want);
    if (p == NULL) {
        return cli_fail(CLI_FAILED, "out of memory: %llu bytes for the input",
                        (unsigned long long)want);
    }
    t->bytes = p;
    t->cap = want;
    return CLI_OK;
}

static int cli_append(cli_text *t, const void *bytes, size_t n) {
    int code = cli_reserve(t, n);
    if (code == CLI_OK && n != 0) {
        memcpy(t->bytes + t->n, bytes, n);
        t->n += n;
    }
    return code;
}

/* A file to read, "-" = standard input. */
typedef struct {
    int fd;
    const char *path;
    int at_end;
} cli_source;

static int cli_source_open(cli_source *s, const char *path) {
    cli_quoted q;
    s->path = strcmp(path, "-") == 0 ? "standard input" : path;
    s->at_end = 0;
    s->fd = strcmp(path, "-") == 0 ? 0 : open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (s->fd < 0) {
        return cli_fail(CLI_FAILED, "cannot open '%s': %s", cli_quote(&q, path, strlen(path)),
                        strerror(errno));
    }
    return CLI_OK;
}

/* Appends up to `most` bytes to t; sets at_end. */
static int cli_source_read(cli_source *s, cli_text *t, size_t most) {
    cli_quoted q;
    int code = cli_reserve(t, most);
    ssize_t got;
    if (code != CLI_OK) {
        return code;
    }
    do {
        got = read(s->fd, t->bytes + t->n, most);
    } while (got < 0 && errno == EINTR && !cli_stop);
    if (got < 0) {
        return cli_stop ? CLI_INTERRUPTED
                        : cli_fail(CLI_FAILED, "cannot read '%s': %s",
                                   cli_quote(&q, s->path, strlen(s->path)), strerror(errno));
    }
    s->at_end = got == 0;
    t->n += (size_t)got;
    return CLI_OK;
}

static void cli_source_close(cli_source *s) {
    if (s->fd > 2) {
        (void)close(s->fd);
    }
}

static int cli_read_file(const char *path, cli_text *t) {
    cli_source s;
    int code = cli_source_open(&s, path);
    while (code == CLI_OK && !s.at_end) {
        code = cli_source_read(&s, t, 1 << 16);
    }
    if (s.fd >= 0) {
        cli_source_close(&s);
    }
    return code;
}

/* ---- lists of numbers: token ids, thread counts ---------------------------------------------- */

typedef struct {
    int32_t *ids;
    size_t n, cap;
} cli_ids;

static int cli_ids_reserve(cli_ids *list, size_t more) {
    size_t want = list->n + more;
    int32_t *p;
    if (want <= list->cap) {
        return CLI_OK;
    }
    if (want < more || want > SIZE_MAX / 16) {
        return cli_fail(CLI_FAILED, "out of memory: too many tokens");
    }
    want += want / 2 + 256;
    p = (int32_t *)realloc(list->ids, want * sizeof *p);
    if (p == NULL) {
        return cli_fail(CLI_FAILED, "out of memory: %llu tokens", (unsigned long long)want);
    }
    list->ids = p;
    list->cap = want;
    return CLI_OK;
}

static int cli_is_separator(char c) {
    return c == ' ' || c == ',' || c == '\n' || c == '\t' || c == '\r';
}

/* Appends the numbers in text, separated by spaces, commas or line ends, each from lo to below
 * `limit`. */
static int cli_ids_parse(cli_ids *list, const char *text, size_t n, int64_t lo, int64_t limit,
                         const char *where) {
    cli_quoted q;
    cli_quoted w;
    size_t i = 0;
    while (i < n) {
        size_t start;
        uint64_t v;
        int code;
        while (i < n && cli_is_separator(text[i])) {
            i++;
        }
        for (start = i; i < n && !cli_is_separator(text[i]);) {
            i++;
        }
        if (start == i) {
            break;
        }
        if (!cli_read_u64(text + start, i - start, &v) || v < (uint64_t)lo ||
            v >= (uint64_t)limit) {
            return cli_fail(CLI_FAILED,
                            "%s: number %llu at byte %llu: found '%s', allowed: %lld to %lld",
                            cli_quote(&w, where, strlen(where)), (unsigned long long)list->n + 1,
                            (unsigned long long)start, cli_quote(&q, text + start, i - start),
                            (long long)lo, (long long)limit - 1);
        }
        code = cli_ids_reserve(list, 1);
        if (code != CLI_OK) {
            return code;
        }
        list->ids[list->n++] = (int32_t)v;
    }
    return CLI_OK;
}

static int cli_ids_file(cli_ids *list, const char *path, int64_t limit) {
    cli_text t = {NULL, 0, 0};
    int code = cli_read_file(path, &t);
    if (code == CLI_OK) {
        code = cli_ids_parse(list, t.bytes, t.n, 0, limit, path);
    }
    free(t.bytes);
    return code;
}

/* "5,17,3" or "@FILE". */
static int cli_ids_argument(cli_ids *list, const char *text, int64_t limit) {
    if (text[0] == '@') {
        return cli_ids_file(list, text + 1, limit);
    }
    return cli_ids_parse(list, text, strlen(text), 0, limit, "--tokens");
}

/* ---- writing --------------------------------------------------------------------------------- */

/* After the last output: 0, or a failure if anything could not be written.  A reader that went away
 * (`| head`) is not worth a message, but it is no success either. */
static int cli_finish_stdout(int code) {
    int failed = ferror(stdout);
    int reason = 0;
    if (fflush(stdout) != 0) {
        failed = 1;
        reason = errno;
    }
    if (!failed) {
        return code;
    }
    if (reason != EPIPE) {
        (void)cli_fail(CLI_FAILED, "cannot write to standard output: %s",
                       reason ? strerror(reason) : "part of it was lost");
    }
    return code == CLI_OK ? CLI_FAILED : code;
}

/* Writes bytes to standard output now; on failure says why (but for a closed pipe). */
static int cli_put(const void *bytes, size_t n) {
    if (n != 0 && (fwrite(bytes, 1, n, stdout) != n || fflush(stdout) != 0)) {
        int reason = errno;
        clearerr(stdout);
        return reason == EPIPE
                   ? CLI_FAILED
                   : cli_fail(CLI_FAILED, "cannot write to standard output: %s", strerror(reason));
    }
    return CLI_OK;
}

/* A file that appears whole or not at all: written beside its final name, synced, renamed.  What is
 * no regular file (a pipe, a device) is written in place. */
typedef struct {
    int fd;
    int in_place;
    const char *path;
    char *temporary;
    mode_t mode; /* for the finished file */
} cli_output;

static int cli_output_fail(cli_output *o, const char *what) {
    cli_quoted q;
    int reason = errno;
    return reason == EPIPE && o->in_place
               ? CLI_FAILED
               : cli_fail(CLI_FAILED, "cannot %s '%s': %s", what,
                          cli_quote(&q, o->path, strlen(o->path)), strerror(reason));
}

static int cli_output_open(cli_output *o, const char *path) {
    struct stat st;
    size_t n = strlen(path);
    int tries;
    memset(o, 0, sizeof *o);
    o->path = path;
    o->fd = -1;
    if (strcmp(path, "-") == 0) {
        o->path = "standard output";
        o->in_place = 1;
        o->fd = 1;
        return CLI_OK;
    }
    if (stat(path, &st) == 0) {
        if (!S_ISREG(st.st_mode)) {
            o->in_place = 1;
            o->fd = open(path, O_WRONLY | O_CLOEXEC | O_NOCTTY);
            return o->fd < 0 ? cli_output_fail(o, "open") : CLI_OK;
        }
        o->mode = st.st_mode & 0777;
    } else {
        mode_t mask = umask(0);
        (void)umask(mask);
        o->mode = 0666 & ~mask;
    }
    o->temporary = (char *)malloc(n + 40);
    if (o->temporary == NULL) {
        return cli_fail(CLI_FAILED, "out of memory");
    }
    for (tries = 0; tries < 100 && o->fd < 0; tries++) {
        (void)snprintf(o->temporary, n + 40, "%s.tmp.%ld.%d", path, (long)getpid(), tries);
        o->fd = open(o->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (o->fd < 0 && errno != EEXIST) {
            break;
        }
    }
    if (o->fd < 0) {
        int code = cli_output_fail(o, "create a file beside");
        free(o->temporary);
        o->temporary = NULL;
        return code;
    }
    return CLI_OK;
}

static int cli_output_write(cli_output *o, const void *bytes, size_t n) {
    const char *at = (const char *)bytes;
    while (n > 0) {
        ssize_t put = write(o->fd, at, n < ((size_t)1 << 30) ? n : (size_t)1 << 30);
        if (put < 0 && errno == EINTR) {
            continue;
        }
        if (put <= 0) {
            return cli_output_fail(o, "write");
        }
        at += put;
        n -= (size_t)put;
    }
    return CLI_OK;
}

/* Makes the rename survive a power cut; a file system that cannot sync a folder is no failure. */
static void cli_sync_folder(const char *path) {
    char *folder = (char *)malloc(strlen(path) + 2);
    char *slash;
    int fd;
    if (folder == NULL) {
        return;
    }
    (void)memcpy(folder, path, strlen(path) + 1);
    slash = strrchr(folder, '/');
    if (slash == NULL) {
        (void)memcpy(folder, ".", 2);
    } else {
        slash[slash == folder] = '\0';
    }
    fd = open(folder, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        (void)fsync(fd);
        (void)close(fd);
    }
    free(folder);
}

/* Ends the output: with code CLI_OK the file takes its name, else nothing of it remains. */
static int cli_output_close(cli_output *o, int code) {
    if (o->fd < 0) {
        return code;
    }
    if (!o->in_place && code == CLI_OK && (fchmod(o->fd, o->mode) != 0 || fsync(o->fd) != 0)) {
        code = cli_output_fail(o, "write");
    }
    if (o->fd != 1 && close(o->fd) != 0 && code == CLI_OK) {
        code = cli_output_fail(o, "write");
    }
    if (o->temporary != NULL) {
        if (code == CLI_OK && rename(o->temporary, o->path) != 0) {
            code = cli_output_fail(o, "replace");
        }
        if (code == CLI_OK) {
            cli_sync_folder(o->path);
        } else {
            (void)unlink(o->temporary);
        }
        free(o->temporary);
    }
    o->fd = -1;
    return code;
}

/* ---- progress -------------------------------------------------------------------------------- */

/* A bar on standard error, only when that is a terminal and the work has taken half a second. */
typedef struct {
    const char *what;
    double start, drawn;
    int active;
} cli_progress;

static void cli_progress_start(cli_progress *p, const char *what) {
    p->what = what;
    p->start = p->drawn = cli_seconds();
    p->active = isatty(2);
}

static void cli_progress_show(cli_progress *p, uint64_t done, uint64_t total) {
    double now;
    if (!p->active || (now = cli_seconds()) - p->drawn < (p->drawn > p->start ? 0.1 : 0.5)) {
        return;
    }
    p->drawn = now;
    if (total > 0) {
        (void)fprintf(stderr, "\r%s %3.0f%%  %llu of %llu tokens, %.0f tokens/s\033[K", p->what,
                      100.0 * (double)done / (double)total, (unsigned long long)done,
                      (unsigned long long)total, (double)done / (now - p->start));
    } else {
        (void)fprintf(stderr, "\r%s %llu tokens, %.0f tokens/s\033[K", p->what,
                      (unsigned long long)done, (double)done / (now - p->start));
    }
    (void)fflush(stderr);
}

static void cli_progress_end(cli_progress *p) {
    if (p->active && p->drawn > p->start) {
        (void)fputs("\r\033[K", stderr);
    }
}

#endif /* CLI_H */
