/* unicode - prints the Unicode tables of mamba.h.  usage: unicode [DIR]   (DIR: /usr/share/unicode)
 *
 * Reads UnicodeData.txt, CompositionExclusions.txt, PropList.txt and DerivedAge.txt of the Unicode
 * Character Database (Debian: package unicode-data) and prints the C tables that stand in mamba.h between the
 * two "unicode tables" marks.  tests/text.c runs this program and compares.
 *
 * What the tables hold and how they are searched is said in mamba.h, above the tables.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CP_END 0x110000u

enum { CLASS_OTHER = 0, CLASS_LETTER = 1, CLASS_NUMBER = 2, CLASS_SPACE = 3, CLASS_NFC = 4 };

typedef struct decomposition {
    uint32_t cp;
    uint32_t a;
    uint32_t b;       /* 0: a singleton */
    int composes;     /* a + b gives cp again */
} decomposition;

static unsigned char uc_class[CP_END];
static unsigned char uc_ccc[CP_END];
static unsigned char uc_punctuation[CP_END];
static unsigned char uc_excluded[CP_END];
static unsigned char uc_decomposes[CP_END];
static decomposition uc_dec[4096];
static size_t uc_n_dec;
static char uc_version[16];
static int uc_column;

static void uc_die(const char *what, const char *file)
{
    fprintf(stderr, "unicode: %s: %s\n", file, what);
    exit(1);
}

/* Hexadecimal number at *p, at least one digit; *p is moved behind it. */
static uint32_t uc_hex(const char **p, const char *file)
{
    char *end = NULL;
    unsigned long v = strtoul(*p, &end, 16);
    if (end == *p || v >= CP_END) {
        uc_die("bad code point", file);
    }
    *p = end;
    return (uint32_t)v;
}

/* The n-th field of a line whose fields are separated by ';'. */
static const char *uc_field(const char *line, int n, const char *file)
{
    while (n-- > 0) {
        line = strchr(line, ';');
        if (line == NULL) {
            uc_die("too few fields", file);
        }
        ++line;
    }
    return line;
}

static FILE *uc_open(const char *dir, const char *name, char *path, size_t path_bytes)
{
    FILE *f;
    int n = snprintf(path, path_bytes, "%s/%s", dir, name);
    if (n < 0 || (size_t)n >= path_bytes) {
        uc_die("path too long", name);
    }
    f = fopen(path, "rb");
    if (f == NULL) {
        uc_die("cannot be opened (is unicode-data installed?)", path);
    }
    return f;
}

static void uc_add_decomposition(uint32_t cp, const char *p, const char *path)
{
    decomposition *d = &uc_dec[uc_n_dec];
    if (uc_n_dec == sizeof uc_dec / sizeof uc_dec[0]) {
        uc_die("too many decompositions", path);
    }
    d->cp = cp;
    d->a = uc_hex(&p, path);
    d->b = *p == ' ' ? (++p, uc_hex(&p, path)) : 0;
    if (*p != ';') {
        uc_die("canonical decomposition of more than two", path);
    }
    uc_decomposes[cp] = 1;
    ++uc_n_dec;
}

static void uc_read_data(const char *dir)
{
    char path[512];
    char line[1024];
    uint32_t first = CP_END;
    FILE *f = uc_open(dir, "UnicodeData.txt", path, sizeof path);
    while (fgets(line, sizeof line, f) != NULL) {
        const char *p = line;
        uint32_t cp = uc_hex(&p, path);
        uint32_t from = cp;
        const char *name = uc_field(line, 1, path);
        const char *category = uc_field(line, 2, path);
        const char *mapping = uc_field(line, 5, path);
        unsigned ccc = (unsigned)strtoul(uc_field(line, 3, path), NULL, 10);
        unsigned cls = *category == 'L' ? CLASS_LETTER : *category == 'N' ? CLASS_NUMBER : 0;
        const char *name_end = strchr(name, ';');
        if (ccc > 255 || name_end == NULL) {
            uc_die("bad line", path);
        }
        if (name_end - name > 8 && memcmp(name_end - 8, ", First>", 8) == 0) {
            first = cp;
            continue;
        }
        if (name_end - name > 7 && memcmp(name_end - 7, ", Last>", 7) == 0) {
            from = first;
        }
        for (; from <= cp; ++from) {
            uc_class[from] = (unsigned char)cls;
            uc_ccc[from] = (unsigned char)ccc;
            uc_punctuation[from] = *category == 'P';
        }
        if (*mapping != ';' && *mapping != '<') {      /* <...> marks a compatibility mapping */
            uc_add_decomposition(cp, mapping, path);
        }
    }
    fclose(f);
}

static void uc_read_exclusions(const char *dir)
{
    char path[512];
    char line[1024];
    FILE *f = uc_open(dir, "CompositionExclusions.txt", path, sizeof path);
    while (fgets(line, sizeof line, f) != NULL) {
        const char *p = line;
        if (sscanf(line, "# CompositionExclusions-%15[0-9.]", uc_version) == 1) {
            if (uc_version[0] != 0 && uc_version[strlen(uc_version) - 1] == '.') {
                uc_version[strlen(uc_version) - 1] = 0;
            }
        }
        if (*p != '#' && *p != '\n' && *p != '\r') {
            uc_excluded[uc_hex(&p, path)] = 1;
        }
    }
    fclose(f);
}

/* FROM or FROM..TO. */
static uint32_t uc_range(const char **p, const char *path, uint32_t *to)
{
    uint32_t from = uc_hex(p, path);
    *to = from;
    if ((*p)[0] == '.' && (*p)[1] == '.') {
        *p += 2;
        *to = uc_hex(p, path);
    }
    return from;
}

static void uc_read_spaces(const char *dir)
{
    char path[512];
    char line[1024];
    FILE *f = uc_open(dir, "PropList.txt", path, sizeof path);
    while (fgets(line, sizeof line, f) != NULL) {
        const char *p = line;
        uint32_t from;
        uint32_t to;
        const char *semicolon = strchr(line, ';');
        if (*p == '#' || semicolon == NULL || strncmp(semicolon, "; White_Space", 13) != 0) {
            continue;
        }
        from = uc_range(&p, path, &to);
        for (; from <= to; ++from) {
            uc_class[from] = CLASS_SPACE;
        }
    }
    fclose(f);
}

/* Punctuation as of Unicode 8: what came later does not count, and two characters that were
 * punctuation then have another category now. */
static void uc_read_ages(const char *dir)
{
    char path[512];
    char line[1024];
    FILE *f = uc_open(dir, "DerivedAge.txt", path, sizeof path);
    while (fgets(line, sizeof line, f) != NULL) {
        const char *p = line;
        uint32_t from;
        uint32_t to;
        const char *semicolon = strchr(line, ';');
        if (*p == '#' || semicolon == NULL) {
            continue;
        }
        from = uc_range(&p, path, &to);
        for (; from <= to && strtoul(semicolon + 1, NULL, 10) > 8; ++from) {
            uc_punctuation[from] = 0;
        }
    }
    fclose(f);
    uc_punctuation[0x166D] = 1;
    uc_punctuation[0x111C9] = 1;
    for (uint32_t cp = 0x21; cp < 0x7F; ++cp) {
        int letter = (cp | 32) >= 'a' && (cp | 32) <= 'z';
        uc_punctuation[cp] = !letter && !(cp >= '0' && cp <= '9');
    }
}

/* Which pairs compose again (UAX #15: not a singleton, not a non-starter decomposition, not
 * excluded), and which characters a text in NFC cannot hold everywhere: combining class not 0,
 * never in NFC, or able to combine with the character before. */
static void uc_derive(void)
{
    size_t i;
    uint32_t cp;
    for (i = 0; i < uc_n_dec; ++i) {
        decomposition *d = &uc_dec[i];
        d->composes = d->b != 0 && uc_ccc[d->cp] == 0 && uc_ccc[d->a] == 0 && !uc_excluded[d->cp];
        if (d->b != 0 && uc_decomposes[d->b]) {
            uc_die("second half decomposes", "UnicodeData.txt");
        }
        if (d->composes) {
            uc_class[d->b] |= CLASS_NFC;
        } else {
            uc_class[d->cp] |= CLASS_NFC;
        }
    }
    for (cp = 0; cp < CP_END; ++cp) {
        int jamo = (cp >= 0x1161 && cp <= 0x1175) || (cp >= 0x11A8 && cp <= 0x11C2);
        if (uc_ccc[cp] != 0 || jamo) {
            uc_class[cp] |= CLASS_NFC;
        }
    }
}

static void uc_begin(const char *type, const char *name)
{
    printf("static const %s %s[] = {", type, name);
    uc_column = 1000;
}

static void uc_put(unsigned long long v, const char *suffix)
{
    char text[32];
    int n = snprintf(text, sizeof text, v < 10 ? "%llu%s," : "0x%llX%s,", v, suffix);
    if (uc_column + n > 99) {
        printf("\n    ");
        uc_column = 4;
    }
    printf("%s", text);
    uc_column += n;
}

static void uc_end(void)
{
    printf("\n};\n");
}

static int uc_by_pair(const void *x, const void *y)
{
    const decomposition *p = &uc_dec[*(const unsigned *)x];
    const decomposition *q = &uc_dec[*(const unsigned *)y];
    if (p->a != q->a) {
        return p->a < q->a ? -1 : 1;
    }
    return p->b < q->b ? -1 : p->b > q->b;
}

/* Singletons of the two blocks of CJK compatibility ideographs go into plain arrays. */
static int uc_in_block(uint32_t cp)
{
    return (cp >= 0xF900 && cp <= 0xFAFF) || (cp >= 0x2F800 && cp <= 0x2FA1F);
}

static void uc_print_block(const char *name, uint32_t from, uint32_t to)
{
    uint32_t cp;
    uc_begin("uint32_t", name);
    for (cp = from; cp <= to; ++cp) {
        size_t i;
        uint32_t a = 0;
        for (i = 0; uc_decomposes[cp] && i < uc_n_dec; ++i) {
            a = uc_dec[i].cp == cp ? uc_dec[i].a : a;
        }
        uc_put(a, "");
    }
    uc_end();
}

static void uc_print_pairs(void)
{
    static unsigned index[4096];
    static decomposition kept[4096];
    size_t n = 0;
    size_t n_index = 0;
    size_t i;
    for (i = 0; i < uc_n_dec; ++i) {
        if (!uc_in_block(uc_dec[i].cp)) {
            kept[n++] = uc_dec[i];
        } else if (uc_dec[i].b != 0) {
            uc_die("pair in a block of singletons", "UnicodeData.txt");
        }
    }
    memcpy(uc_dec, kept, n * sizeof kept[0]);
    uc_n_dec = n;
    uc_begin("uint64_t", "mbi_uc_pairs");
    for (i = 0; i < n; ++i) {
        const decomposition *d = &uc_dec[i];
        uc_put((unsigned long long)d->cp << 42 | (unsigned long long)d->a << 21 | d->b, "u");
        if (d->composes) {
            index[n_index++] = (unsigned)i;
        }
    }
    uc_end();
    qsort(index, n_index, sizeof index[0], uc_by_pair);
    uc_begin("uint16_t", "mbi_uc_compose");
    for (i = 0; i < n_index; ++i) {
        uc_put(index[i], "");
    }
    uc_end();
}

int main(int argc, char **argv)
{
    const char *dir = argc > 1 ? argv[1] : "/usr/share/unicode";
    uint32_t cp;
    uc_read_data(dir);
    uc_read_exclusions(dir);
    uc_read_spaces(dir);
    uc_read_ages(dir);
    uc_derive();
    printf("/* unicode tables: begin (Unicode %s; made by tools/unicode.c) */\n", uc_version);
    uc_begin("uint32_t", "mbi_uc_classes");
    for (cp = 0; cp < CP_END; ++cp) {
        if (cp == 0 || uc_class[cp] != uc_class[cp - 1]) {
            uc_put((unsigned long long)cp << 3 | uc_class[cp], "");
        }
    }
    uc_end();
    uc_begin("uint32_t", "mbi_uc_punctuation");
    for (cp = 0; cp < CP_END; ++cp) {
        if (cp == 0 || uc_punctuation[cp] != uc_punctuation[cp - 1]) {
            uc_put(cp, "");
        }
    }
    uc_end();
    uc_begin("uint32_t", "mbi_uc_combining");
    for (cp = 0; cp < CP_END; ++cp) {
        if (cp == 0 || uc_ccc[cp] != uc_ccc[cp - 1]) {
            uc_put((unsigned long long)cp << 8 | uc_ccc[cp], "");
        }
    }
    uc_end();
    uc_print_block("mbi_uc_cjk1", 0xF900, 0xFAFF);
    uc_print_block("mbi_uc_cjk2", 0x2F800, 0x2FA1F);
    uc_print_pairs();
    printf("/* unicode tables: end */\n");
    if (fflush(stdout) != 0 || ferror(stdout)) {
        uc_die("write failed", "standard output");
    }
    return 0;
}
