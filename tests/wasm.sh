#!/bin/sh
# The library as WebAssembly with SIMD128 under node: kernels and operators against the scalar reference, and the
# hello example, which must tell what the scalar kernels of this machine tell.
# Skipped, and printed as such, where the compiler or node is absent.
B=${B:-build}
D=$B/wasm
skip() {
    echo "wasm: skipped: $1 (Debian: clang lld wasi-libc libclang-rt-dev-wasm32 nodejs)"
    echo "wasm: 0 passed, 0 failed, 1 skipped"
    exit 0
}
mkdir -p "$D"
cat > "$D/run.mjs" << 'EOF'
import { readFileSync } from 'node:fs';
import { WASI } from 'node:wasi';
const args = process.argv.slice(2);
const wasi = new WASI({ version: 'preview1', args, env: process.env, preopens: { '.': '.' } });
const module = await WebAssembly.compile(readFileSync(args[0]));
process.exitCode = wasi.start(await WebAssembly.instantiate(module, { wasi_snapshot_preview1: wasi.wasiImport }));
EOF
# node 18 wants the flag, later ones take it
wasm() { timeout 300 node --no-warnings --experimental-wasi-unstable-preview1 "$D/run.mjs" "$@"; }
flags="-std=c99 -D_POSIX_C_SOURCE=200809L -O2 -Wall -Wextra -Wpedantic -Wconversion -Wshadow -I."
compile() { # shellcheck disable=SC2086
    clang --target=wasm32-wasi -msimd128 $flags "$@"
}
echo 'int main(void) { return 0; }' > "$D/empty.c"
compile "$D/empty.c" -o "$D/empty.wasm" 2> /dev/null || skip "no clang that makes WebAssembly"
wasm "$D/empty.wasm" 2> /dev/null || skip "no node that runs it"
passed=0 failed=0 skipped=0
check() {
    if [ "$2" = "$3" ]; then
        passed=$((passed + 1))
    else
        echo "wasm: $1: found '$2', wanted '$3'"
        failed=$((failed + 1))
    fi
}

printf '#define MAMBA_IMPLEMENTATION\n#include "mamba.h"\n' > "$D/mamba.c"
{
    compile -c "$D/mamba.c" -o "$D/mamba.o" &&
        compile tests/kernels.c -o "$D/kernels.wasm" &&
        compile tests/ops.c "$D/mamba.o" -o "$D/ops.wasm" &&
        compile examples/hello.c -o "$D/hello.wasm" &&
        ${CC:-cc} -std=c99 -D_POSIX_C_SOURCE=200809L -O2 -DMAMBA_NO_DISPATCH -I. examples/hello.c -o "$D/hello" -lm
} > "$D/compile.log" 2>&1 || { cat "$D/compile.log"; echo "wasm: 0 passed, 1 failed, 0 skipped"; exit 1; }
check "warnings" "$(cat "$D/compile.log")" ""

for name in kernels ops; do
    wasm "$D/$name.wasm" > "$D/$name.log" 2>&1
    line=$(sed -n '$s/^.*: \([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p' "$D/$name.log")
    if [ -n "$line" ]; then sed '$d' "$D/$name.log"; else tail -n 3 "$D/$name.log"; fi
    read -r p f s << EOF
${line:-0 1 0}
EOF
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
done
if [ -f examples/tales.mamba ]; then
    text=$("$D/hello" examples/tales.mamba "Once upon a time")
    check "the scalar kernels' text, in letters" "$([ ${#text} -gt 500 ] && echo many)" many
    check "hello" "$(wasm "$D/hello.wasm" examples/tales.mamba "Once upon a time")" "$text"
fi
echo "wasm: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
