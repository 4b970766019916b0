#!/bin/sh
# The library on AArch64 under qemu-user: operators and whole models on every target built there, without OpenMP.
# Skipped, and printed as such, where the cross compiler or the emulator is absent.
B=${B:-build}
case $(uname -m) in
    aarch64 | arm64) echo "aarch64: skipped: this is the native machine"; echo "aarch64: 0 passed, 0 failed, 1 skipped"; exit 0 ;;
esac
for tool in aarch64-linux-gnu-gcc qemu-aarch64; do
    if ! command -v $tool > /dev/null 2>&1; then
        echo "aarch64: skipped: no $tool (Debian: gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)"
        echo "aarch64: 0 passed, 0 failed, 1 skipped"
        exit 0
    fi
done
D=$B/aarch64
passed=0 failed=0 skipped=0
MAKEFLAGS= make -s CC=aarch64-linux-gnu-gcc OPENMP= B="$D" GOLDEN_B="$B" "$D/tests/kernels" "$D/tests/ops" "$D/tests/model" > "$D.log" 2>&1 || {
    cat "$D.log"
    echo "aarch64: 0 passed, 1 failed, 0 skipped"
    exit 1
}
grep -A5 warning "$D.log" && failed=1
cpu=max # one that has every target
# suite FILTER...: a test program, only the tests with these names
suite() {
    name=$1
    shift
    timeout 500 qemu-aarch64 -cpu "$cpu" -L /usr/aarch64-linux-gnu "$D/tests/$name" "$@" > "$D.log" 2>&1
    line=$(tail -n 1 "$D.log" | sed -n 's/^.*: \([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p')
    sed '$d' "$D.log"
    read -r p f s << EOF
${line:-0 1 0}
EOF
    [ -n "$line" ] || tail -n 3 "$D.log"
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
}
if [ "${FULL:-0}" = 1 ]; then
    suite kernels
    suite ops
    MAMBA_TEST_QUICK=1 suite model golden_logits tales cuts threads vectors hidden arguments opens failing save damage
else
    MAMBA_TEST_QUICK=1 suite kernels products _is_neon
    suite ops softplus silu rmsnorm conv discretize recurrence edges scan_golden
    suite model golden_logits vectors opens arguments
fi
cpu=cortex-a72 # it has no target above plain NEON
suite model unusable golden_logits
echo "aarch64: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
