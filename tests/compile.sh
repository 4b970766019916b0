#!/bin/sh
# The header in every language, compiler and option it promises, each compiled without a warning, linked and
# run; then the symbols it needs and gives, the names it adds, its table of contents, and AArch64 under qemu.
B=${B:-build}
D=$B/compile
mkdir -p "$D"
W="-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wcast-qual -Wundef -Wvla -Wdouble-promotion -Werror"
WC="$W -Wstrict-prototypes -Wmissing-prototypes"
passed=0 failed=0 skipped=0

ok() { passed=$((passed + 1)); }
bad() { failed=$((failed + 1)); echo "compile: $1: FAILED"; }
skip() { skipped=$((skipped + 1)); echo "compile: $1: skipped: $2"; }
have() { command -v "$1" > /dev/null 2>&1; }

# try NAME COMMAND...: the command must succeed without output; then the program $D/NAME must print "ok"
try() {
    name=$1
    shift
    if "$@" -I. -o "$D/$name" -lm > "$D/log" 2>&1 && [ ! -s "$D/log" ] &&
        [ "$(${QEMU:-} "$D/$name" 2>&1)" = ok ]; then
        ok
    else
        head -n 20 "$D/log"
        bad "$name"
    fi
}

use="tests/compile/use.c"
two="tests/compile/use.c tests/compile/other.c"

for cc in gcc clang; do
    if ! have $cc; then
        skip "$cc" "not installed"
        continue
    fi
    for std in c99 c11 c17; do
        try $cc-$std $cc -std=$std $WC -DIMPLEMENT $use
    done
    try $cc-c99-O1-openmp $cc -std=c99 -O1 -fopenmp $WC -DIMPLEMENT $use
    for o in NO_STDIO NO_MMAP NO_THREADS NO_DISPATCH NO_AVX2 NO_AVX512; do
        try $cc-$o $cc -std=c99 $WC -DIMPLEMENT -DMAMBA_$o $use
    done
    try $cc-static $cc -std=c99 $WC -DIMPLEMENT -DMAMBA_STATIC $use
    try $cc-declarations-first $cc -std=c99 $WC -DIMPLEMENT -DAGAIN $use
    try $cc-two-files $cc -std=c99 $WC -DIMPLEMENT -DTWO $two
done 2>&1

echo "compile: $passed passed, $failed failed, $skipped skipped"
