# unicode.sh: the Unicode tables in mamba.h are what tools/unicode.c prints from Debian's unicode-data.
B=${B:-build}
passed=0 failed=0 skipped=0
if [ ! -f /usr/share/unicode/UnicodeData.txt ]; then
    echo "tables: skipped: unicode-data is not installed"
    skipped=1
elif ! mkdir -p "$B/tests" || ! ${CC:-cc} -std=c99 -O1 tools/unicode.c -o "$B/tests/unicode-tables"; then
    echo "tables: FAILED: tools/unicode.c does not compile"
    failed=1
else
    sed -n '/^\/\* unicode tables: begin/,/^\/\* unicode tables: end/p' mamba.h > "$B/tests/unicode.header"
    ${RUN:-} "$B/tests/unicode-tables" > "$B/tests/unicode.made"
    if [ -s "$B/tests/unicode.header" ] && cmp "$B/tests/unicode.header" "$B/tests/unicode.made"; then
        passed=1
    elif ! cmp -s "$B/tests/unicode.header" "$B/tests/unicode.made" \
        && [ "$(head -n 1 "$B/tests/unicode.header")" != "$(head -n 1 "$B/tests/unicode.made")" ]; then
        echo "tables: skipped: unicode-data is of another version: $(head -n 1 "$B/tests/unicode.made")"
        skipped=1
    else
        echo "tables: FAILED: mamba.h differs from what tools/unicode.c prints"
        failed=1
    fi
fi
echo "unicode: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
