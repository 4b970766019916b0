#!/bin/sh
# docs.sh: the program in the README and the one in the manual of mamba.h are examples/hello.c, to the letter;
# every command that the README names exists.
cd "$(dirname "$0")/.." || exit 1
passed=0 failed=0
check() { # description, command...
    what=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "docs: FAILED: $what"
    fi
}
same() { # two files
    diff "$1" "$2"
}
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
sed -n '/^```c$/,/^```$/p' README.md | sed '1d;$d' > "$dir/readme"
check "the README's program is examples/hello.c" same "$dir/readme" examples/hello.c
sed -n '/^#include <stdio.h>$/,$p' examples/hello.c > "$dir/hello"
sed -n '/^ \*     #include <stdio.h>$/,/^ \*     }$/p' mamba.h | sed 's/^ \*     //' > "$dir/manual"
check "the manual's program is examples/hello.c" same "$dir/manual" "$dir/hello"
for target in run check accuracy; do
    check "make $target exists" grep -q "^$target:" Makefile
done
for program in mamba-convert mamba-quantize; do
    check "tools/$program exists" test -f "tools/${program#mamba-}.c"
done
check "the versions agree" grep -q "^/\* mamba.h - v$(sed -n 's/^#define MAMBA_VERSION_TEXT "\(.*\)"$/\1/p' mamba.h) " mamba.h
echo "docs: $passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
