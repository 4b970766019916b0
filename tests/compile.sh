#!/bin/sh
# The header in every language, compiler and option it promises, each compiled without a warning, linked and run;
# then the symbols it needs and gives, the names it adds, and its table of contents.  LANGUAGES=all: C17 and C++17
# too.
B=${B:-build}
D=$B/compile
rm -rf "$D"
mkdir -p "$D"
W="-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wcast-qual -Wundef -Wvla -Wdouble-promotion -Werror"
WC="$W -Wstrict-prototypes -Wmissing-prototypes"
passed=0 failed=0 skipped=0

ok() { passed=$((passed + 1)); }
bad() { failed=$((failed + 1)); echo "compile: $1: FAILED"; }
skip() { skipped=$((skipped + 1)); echo "compile: $1: skipped: $2"; }
have() { command -v "$1" > /dev/null 2>&1; }

# try NAME COMMAND...: the command must succeed without a word; then the program must print "ok"
try() {
    name=$1
    shift
    if "$@" -I. -o "$D/$name" -lm > "$D/$name.log" 2>&1 && [ ! -s "$D/$name.log" ] &&
        [ "$("$D/$name" 2>&1)" = ok ]; then
        ok
    else
        head -n 20 "$D/$name.log"
        bad "$name"
    fi
    rm -f "$D/$name"
}

use="tests/compile/use.c"
two="tests/compile/use.c tests/compile/other.c"

c_compiler() {
    cc=$1
    for std in c99 c11 ${LANGUAGES:+c17}; do
        try "$cc-$std" "$cc" -std=$std $WC -DIMPLEMENT $use
    done
    try "$cc-NO_STDIO" "$cc" -std=c99 $WC -DIMPLEMENT -DMAMBA_NO_STDIO $use
}

c_once() {
    try gcc-O1-openmp gcc -std=c99 -O1 -fopenmp $WC -DIMPLEMENT $use
    try gcc-NO_THREADS gcc -std=c99 -fopenmp $WC -DIMPLEMENT -DMAMBA_NO_THREADS $use
    for o in NO_MMAP NO_DISPATCH NO_AVX512 NO_AVXVNNI; do
        try "gcc-$o" gcc -std=c99 $WC -DIMPLEMENT -DMAMBA_$o $use
    done
    try gcc-two-files gcc -std=c99 $WC -DIMPLEMENT -DTWO $two
    try gcc-NO_AVX2 gcc -std=c99 $WC -DIMPLEMENT -DMAMBA_NO_AVX2 $use
    try gcc-freestanding-options gcc -std=c99 $WC -DIMPLEMENT -DMAMBA_NO_STDIO -DMAMBA_NO_THREADS \
        -DMAMBA_NO_DISPATCH $use
    try gcc-static gcc -std=c99 $WC -DIMPLEMENT -DMAMBA_STATIC $use
    try gcc-declarations-first gcc -std=c99 $WC -DIMPLEMENT -DAGAIN $use
    cp mamba.h "$D/ssm.h"
    try gcc-renamed gcc -std=c99 $WC -I"$D" -DIMPLEMENT '-DHEADER="ssm.h"' '-DMAMBA_HEADER_NAME="ssm.h"' $use
    if gcc -std=c99 -ffast-math -I. -DIMPLEMENT -fsyntax-only $use 2>&1 | grep -q 'without -ffast-math'; then
        ok
    else
        bad "-ffast-math must be refused"
    fi
}

cxx_compiler() {
    cxx=$1
    for std in c++11 ${LANGUAGES:+c++17} c++20; do
        try "$cxx-$std" "$cxx" -x c++ -std=$std $W -DIMPLEMENT $use
    done
}

# Nothing that ends, prints, asks or depends on a locale; nothing outside libc, libm and OpenMP by other names.
forbidden='abort|exit|_exit|_Exit|quick_exit|atexit|__assert_fail|raise|kill|signal|sigaction|longjmp|_*setjmp'
forbidden="$forbidden|v?f?d?s?n?printf|__v?f?s?n?printf_chk|puts|putchar|fputs|fputc|fwrite|perror|stdout|stderr"
forbidden="$forbidden|strto.*|ato[ifl]l?|sscanf|.*scanf|setlocale|localeconv|nl_langinfo|__ctype_.*|to(upper|lower)"
forbidden="$forbidden|is(alpha|digit|space|alnum|upper|lower|print|punct)|(secure_)?getenv|system|popen|fork|exec.*"
forbidden="$forbidden|s?rand|random|time|clock|gettimeofday|alloca|strtok|pthread_.*|dl(open|sym)"

symbols() {
    if ! have nm || ! have size; then
        skip symbols "no nm or size"
        return
    fi
    printf '#define MAMBA_IMPLEMENTATION\n#include "mamba.h"\n' > "$D/lib.c"
    gcc -std=c99 -O1 -fopenmp -I. -c "$D/lib.c" -o "$D/lib.o" || { bad "object for nm"; return; }
    if nm -u "$D/lib.o" | awk '{print $2}' | sed 's/@.*//' | grep -E "^($forbidden)\$"; then
        bad "forbidden symbols"
    else
        ok
    fi
    if nm -g --defined-only "$D/lib.o" | awk '{print $3}' | grep -v '^mamba_'; then
        bad "symbols that do not begin with mamba_"
    else
        ok
    fi
    if size -A "$D/lib.o" | awk '$1 ~ /^\.t?(data|bss)/ && $1 !~ /^\.data\.rel\.ro/ && $2 > 0 {print; n = 1}
            END {exit !n}'; then
        bad "writable globals"
    else
        ok
    fi
    printf '#define MAMBA_IMPLEMENTATION\n#define MAMBA_NO_STDIO\n#include "mamba.h"\n' > "$D/quiet.c"
    gcc -std=c99 -O1 -I. -c "$D/quiet.c" -o "$D/quiet.o"
    if nm -u "$D/quiet.o" | awk '{print $2}' |
        grep -vE '^(mem(cpy|set|move|cmp|chr)|strlen|malloc|free|(exp|expm1|log|log1p|pow|cos|sin|sincos|sqrt|fma|nearbyint|rint|floor|ldexp|fabs)f?|_GLOBAL_OFFSET_TABLE_|__stack_chk_fail)$'; then
        bad "more than memory and mathematics without stdio"
    else
        ok
    fi
}

# A plain include adds only MAMBA_ macros and mamba_ names.
names() {
    printf '#include <stddef.h>\n#include <stdint.h>\n' > "$D/plain.c"
    printf '#include "mamba.h"\n' > "$D/with.c"
    gcc -E -dM "$D/plain.c" | sort > "$D/plain.txt"
    gcc -I. -E -dM "$D/with.c" | sort > "$D/with.txt"
    if comm -13 "$D/plain.txt" "$D/with.txt" | awk '{print $2}' | grep -v '^MAMBA_'; then
        bad "macros that do not begin with MAMBA_"
    else
        ok
    fi
    gcc -I. -fsyntax-only -aux-info "$D/functions.txt" "$D/with.c"
    if grep 'mamba\.h:' "$D/functions.txt" | sed 's/(.*//; s/.*[ *]//' | sed 's/^.*\*\/ *//' |
        grep 'mamba\.h:' | grep -v mamba_; then
        bad "functions that do not begin with mamba_"
    else
        ok
    fi
    if gcc -I. -E -P "$D/with.c" | tr -d '\n' | sed 's/} */\n} /g' | sed -n 's/^} \([A-Za-z_0-9]*\);.*/\1/p' |
        grep -vE '^(mamba_|max_align_t|__)'; then
        bad "types that do not begin with mamba_"
    else
        ok
    fi
}

contents() {
    sed -n '/^ \* CONTENTS/,/^ \*\//s/^ \*   @@\([a-z_0-9]*\).*/\1/p' mamba.h > "$D/listed.txt"
    sed -n '/^ \*\//,$s/^ \* @@\([a-z_0-9]*\)   .*/\1/p' mamba.h > "$D/there.txt"
    if diff "$D/listed.txt" "$D/there.txt" && [ -s "$D/there.txt" ]; then
        ok
    else
        bad "the table of contents and the sections differ"
    fi
    version=$(sed -n 's/^#define MAMBA_VERSION_TEXT "\(.*\)"/\1/p' mamba.h)
    numbers=$(sed -n 's/^#define MAMBA_VERSION_M[A-Z]* //p; s/^#define MAMBA_VERSION_PATCH //p' mamba.h | paste -sd. -)
    if [ "$version" = "$numbers" ] && head -n 1 mamba.h | grep -q "v$version "; then
        ok
    else
        bad "line 1, MAMBA_VERSION_TEXT and the numbers disagree"
    fi
}

# run NAME FUNCTION...: in a shell of its own; what it says and counts goes to $D/NAME.out
run() {
    name=$1
    shift
    (
        "$@"
        echo "$passed $failed $skipped"
    ) > "$D/$name.out" 2>&1
}

first() { c_compiler gcc; symbols; names; contents; cxx_clang; }
cxx_clang() { if have clang++; then cxx_compiler clang++; else skip clang++ "not installed"; fi; }
cxx_gcc() { if have g++; then cxx_compiler g++; else skip g++ "not installed"; fi; }
second() {
    if have g++; then
        try g++-static g++ -x c++ -std=c++11 $W -DIMPLEMENT -DMAMBA_STATIC $use
        try g++-two-files g++ -x c++ -std=c++11 $W -DIMPLEMENT -DTWO $two
    fi
    if have clang; then c_compiler clang; else skip clang "not installed"; fi
    c_once
    cxx_gcc
}
if have gcc; then
    run first first &
    run second second
    wait
else
    skip everything "no gcc"
fi
for half in first second; do
    if [ -f "$D/$half.out" ]; then
        sed '$d' "$D/$half.out"
        read -r p f s << EOF
$(tail -n 1 "$D/$half.out")
EOF
        passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    fi
done
echo "compile: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
