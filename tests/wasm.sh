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
node="timeout 300 node --no-warnings --experimental-wasi-unstable-preview1 $D/run.mjs"
compile() {
    clang --target=wasm32-wasi -msimd128 -std=c99 -D_POSIX_C_SOURCE=200809L -O2 -Wall -Wextra -Wpedantic -Wconversion \
        -Wshadow -Werror -I. "$@"
}
echo 'int main(void) { return 0; }' > "$D/empty.c"
compile "$D/empty.c" -o "$D/empty.wasm" 2> /dev/null || skip "no clang that makes WebAssembly"
$node "$D/empty.wasm" 2> /dev/null || skip "no node that runs it"

printf '#define MAMBA_IMPLEMENTATION\n#include "mamba.h"\n' > "$D/mamba.c"
{
    compile -c "$D/mamba.c" -o "$D/mamba.o" &&
        compile tests/kernels.c -o "$D/kernels.wasm" &&
        compile tests/ops.c "$D/mamba.o" -o "$D/ops.wasm" &&
        compile examples/hello.c -o "$D/hello.wasm" &&
        ${CC:-cc} -std=c99 -D_POSIX_C_SOURCE=200809L -O2 -DMAMBA_NO_DISPATCH -I. examples/hello.c -o "$D/hello" -lm
} > "$D/log" 2>&1 || { cat "$D/log"; echo "wasm: 0 passed, 1 failed, 0 skipped"; exit 1; }

B=$D RUN=$node sh tests/run "$D/kernels.wasm" "$D/ops.wasm" > "$D/log"
sed '$d' "$D/log"
read -r passed _ failed _ skipped _ << EOF
$(tail -n 1 "$D/log")
EOF
if [ -f examples/tales.mamba ]; then
    hello() { "$@" examples/tales.mamba "Once upon a time"; }
    # shellcheck disable=SC2086
    want=$(hello ${RUN:-} "$D/hello") found=$(hello $node "$D/hello.wasm")
    if [ ${#want} -gt 500 ] && [ "$found" = "$want" ]; then
        passed=$((passed + 1))
    else
        echo "wasm: hello: found '$found', wanted '$want'"
        failed=$((failed + 1))
    fi
fi
echo "wasm: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
