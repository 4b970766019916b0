#!/bin/sh
# The command line as a user meets it: exit codes, messages, pipes, full disks, Ctrl-C, files that appear whole or
# not at all, sessions that go on as if never stopped, bits that do not depend on how the work is cut.
B=${B:-build}
D=$B/cli
M="${RUN:-} $B/mamba"
T=$B/golden/mamba1-tales-q8.mamba
rm -rf "$D"
mkdir -p "$D"
passed=0 failed=0 skipped=0

ok() { passed=$((passed + 1)); }
bad() { failed=$((failed + 1)); echo "cli: $1: FAILED"; }
skip() { skipped=$((skipped + 1)); echo "cli: $1: skipped: $2"; }
check() { # NAME, then what test takes
    name=$1
    shift
    if [ "$@" ]; then ok; else bad "$name ($*)"; fi
}
same() { if cmp -s "$2" "$3"; then ok; else bad "$1: $2 and $3 differ"; fi; }

# expect CODE TEXT ARGUMENT...: mamba's exit code, and TEXT (a basic regular expression) in what it says on
# standard error; failures are one line that starts with "mamba: "; standard output goes to $D/out
expect() {
    code=$1 text=$2
    shift 2
    $M "$@" > "$D/out" 2> "$D/err" < /dev/null
    got=$?
    if [ "$got" -ne "$code" ]; then
        bad "exit code $got, expected $code: mamba $*"
    elif ! grep -q -- "$text" "$D/err" && [ -n "$text" ]; then
        bad "no '$text' in '$(head -n 1 "$D/err")': mamba $*"
    elif [ "$code" -ne 0 ] && [ "$code" -ne 130 ] && ! grep -q '^mamba: ' "$D/err"; then
        bad "no message of mamba's: mamba $*"
    else
        ok
    fi
}

if [ ! -x "$B/mamba" ] || [ ! -f "$T" ]; then
    echo "cli: $B/mamba or $T is missing: run make check"
    echo "cli: 0 passed, 1 failed, 0 skipped"
    exit 1
fi

# ---- help and usage 
$M > "$D/out" 2> "$D/err"
check "no command" $? -eq 2
$M --help > "$D/out" && grep -q 'Exit codes' "$D/out" && ok || bad "--help"
$M --version | grep -q '^mamba [0-9]' && ok || bad "--version"
for command in run score logits tokenize detokenize info bench; do
    if $M $command --help > "$D/out" 2> "$D/err" && grep -q 'Exit codes' "$D/out" && grep -q 'Example: ' "$D/out" &&
        grep -q "^usage: mamba $command" "$D/out" && [ ! -s "$D/err" ]; then
        ok
    else
        bad "$command --help"
    fi
    expect 2 "unknown option '--nonsense'" $command --nonsense
done
expect 2 "unknown command 'walk'" walk
expect 2 "unknown command" "$(printf 'a\033[31mb')"
grep -q '\\x1b' "$D/err" && ok || bad "control bytes in a message are escaped"

# ---- options: one bad value each, with the values allowed 
while IFS='|' read -r text arguments; do
    # shellcheck disable=SC2086
    expect 2 "$text" run -m "$T" -p x $arguments
done << 'END'
allowed: a whole number from -1 to 2147483647|-n 4x
allowed: a whole number from -1|-n 99999999999999999999
allowed: a whole number from -1|-n -2
allowed: a whole number from -1|-n 1.5
unknown option '-n=3'|-n=3
allowed: a value that is not empty|--n=
allowed: a whole number from 0 to 1024|--threads -1
allowed: a whole number from 0 to 1024|--threads 1000000000
allowed: a number from 0 to 100|--temp nan
allowed: a number from 0 to 100|--temp inf
allowed: a number from 0 to 100|--temp -0.1
allowed: a number from 0 to 100|--temp 1e400
allowed: a number from 0 to 100|--temp 0,8
allowed: a number from 0 to 100|--temp 0x1p3
allowed: a number from 0 to 100|--temp 1e
allowed: a number from 0 to 100|--temp=.
allowed: a number from 0 to 1|--top-p 1.01
allowed: a number from 0 to 1|--min-p=-1
allowed: a number from 1 to 100|--repeat-penalty 0.5
allowed: a whole number from 0|--top-k -1
allowed: a whole number from 0|--seed -1
allowed: a whole number from 0|--seed 18446744073709551616
given twice|--temp 1 --temp 1
given twice|--prompt y
takes no value|--greedy=1
needs a value|--state-out
--greedy means --temp 0|--greedy --temp 1
give one of -p|--tokens 1,2
unexpected argument|stray
unexpected argument|-- --greedy
unknown option '-x'|-x
unknown option '-n5'|-n5
unknown option '--prompts'|--prompts y
found 'sse9'|--target sse9
END
expect 2 "a value that is not empty" run -m "$T" -p x -n ""
expect 2 "no model: give -m FILE" run -p x
expect 2 "not empty" run -m "" -p x
expect 0 "" run -m "$T" -p x -n 1 --seed 18446744073709551615 --temp 1e-3 --top-p=0.5 -t 1
expect 0 "" run --model="$T" --prompt=x --n=1 --threads=1 --temp -0
expect 2 "not both" logits -m "$T" --tokens 1 -o "$D/x" --steps --chunk 2
expect 2 "are needed" logits -m "$T" --tokens 1
expect 2 "allowed: a whole number from 1" logits -m "$T" --tokens 1 -o "$D/x" --chunk 0
expect 2 "give -f TEXT or --tokens" score -m "$T"
expect 2 "give -f TEXT or --tokens" score -m "$T" -f x --tokens y
expect 2 "not both" tokenize -m "$T" -p x -f y
expect 2 "not both" detokenize -m "$T" 1 -f y
expect 2 "given twice" info "$T" -m "$T"
expect 2 "no model" info
expect 2 "give -m FILE or --synthetic" bench
expect 2 "found '13m'" bench --synthetic 13m
expect 2 "found 'q9'" bench --synthetic tiny --type q9
expect 2 "--threads: number 2 at byte 2: found '0', allowed: 1 to 1024" bench --synthetic tiny --threads 1,0
expect 2 "--prefill: number 1 at byte 0: found '0', allowed: 1 to 1000000" bench --synthetic tiny --prefill 0,16
expect 2 "--threads: found 0 numbers" bench --synthetic tiny --threads ,
check "nothing was written" ! -e "$D/x"

# ---- input that is not what it should be 
expect 1 "no such file" run -m "$D/absent.mamba" -p x
expect 1 "" run -m "$D" -p x
expect 1 "" run -m /dev/null -p x
printf 'not a model at all, but longer than the header of one, which has sixty-four bytes' > "$D/text.mamba"
expect 1 "not a .mamba file" info "$D/text.mamba"
head -c 5000 "$T" > "$D/short.mamba"
expect 1 "truncated" info "$D/short.mamba"
expect 1 "No such file" run -m "$T" -f "$D/absent"
expect 1 "" run -m "$T" -f "$D"
expect 1 "found '4096', allowed: 0 to 4095" run -m "$T" --tokens 1,4096
expect 1 "found '4294967296'" logits -m "$T" --tokens 4294967296 -o "$D/x"
expect 1 "found '-1'" logits -m "$T" --tokens 1,-1 -o "$D/x"
expect 1 "found '2x'" logits -m "$T" --tokens "1 2x" -o "$D/x"
expect 1 "at least one" logits -m "$T" --tokens , -o "$D/x"
expect 1 "No such file" logits -m "$T" --tokens @"$D/absent" -o "$D/x"
expect 1 "allowed: 0 to 4095" detokenize -m "$T" 5 99999
expect 1 "nothing to score" score -m "$T" -f /dev/null
check "nothing was written" ! -e "$D/x"
cp "$T" "$D/damaged.mamba"
printf '\001\002\003' | dd of="$D/damaged.mamba" bs=1 seek=3000000 conv=notrunc 2> /dev/null
expect 0 "" info "$D/damaged.mamba"
expect 1 "checksum" info "$D/damaged.mamba" --check
expect 0 "" info "$T" --check --tensors
[ "$(grep -c ' ok$' "$D/out")" -eq 3 ] && ok || bad "info --check runs three checks"

# ---- logits: the bits do not depend on how the work is cut 
ids=5,17,3,4000,9,9,250,1,0,77,1234,42,13,2048,600,31,8,7,6,5
targets=$($M info "$T" | sed -n 's/^targets *//p' | sed 's/ *\*.*in use.*//; s/([a-z0-9]*)//g; s/\*//g')
for target in $targets; do
    expect 0 "" logits -m "$T" --tokens $ids -o "$D/whole" --target "$target" -t 1
    check "size of the logits" "$(wc -c < "$D/whole")" -eq $((20 * 4096 * 4))
    for how in --steps "--chunk 1" "--chunk 3" "--chunk 16" "--chunk 1000" "-t 2" "-t 3 --steps" "-t 8 --chunk 7" \
        "-t 0" --copy; do
        # shellcheck disable=SC2086
        expect 0 "" logits -m "$T" --tokens $ids -o "$D/part" --target "$target" $how
        same "$target $how" "$D/whole" "$D/part"
    done
done
echo "$ids" | tr , '\n' > "$D/ids"
expect 0 "" logits -m "$T" --tokens "@$D/ids" -o - -t 1
cp "$D/out" "$D/stdout.f32"
expect 0 "" logits -m "$T" --tokens $ids -o "$D/part" -t 1
same "ids from a file, logits to standard output" "$D/stdout.f32" "$D/part"

# ---- output: whole or not at all, and told when it fails 
echo old > "$D/kept"
chmod 640 "$D/kept"
expect 1 "found '5000'" logits -m "$T" --tokens 1,5000 -o "$D/kept"
[ "$(cat "$D/kept")" = old ] && ok || bad "a failure keeps the existing file"
(ulimit -f 8 && trap '' XFSZ && $M logits -m "$T" --tokens $ids -o "$D/kept" 2> "$D/err")
check "file too large" $? -eq 1
[ "$(cat "$D/kept")" = old ] && ok || bad "a full disk keeps the existing file"
expect 0 "" logits -m "$T" --tokens $ids -o "$D/kept"
case $(ls -l "$D/kept") in -rw-r-----*) ok ;; *) bad "the mode of a replaced file stays" ;; esac
expect 1 "cannot" logits -m "$T" --tokens 1 -o "$D/absent/x"
left=$(find "$D" -name '*.tmp.*')
[ -z "$left" ] && ok || bad "temporary files remain: $left"
if [ -c /dev/full ]; then
    for command in "info $T" "logits -m $T --tokens 1 -o -" "run -m $T -p Once -n 2" "tokenize -m $T -p Once" \
        "detokenize -m $T 5 17" "score -m $T --tokens $D/ids" "run --help"; do
        # shellcheck disable=SC2086
        $M $command > /dev/full 2> "$D/err"
        code=$?
        { [ $code -eq 1 ] && grep -q '^mamba: cannot write' "$D/err"; } && ok || bad "/dev/full: $command ($code)"
    done
    expect 1 "No space left" logits -m "$T" --tokens 1 -o /dev/full
    check "a device is not replaced" -c /dev/full
else
    skip "/dev/full" "this system has none"
fi
for command in "info $T" "run -m $T -p Once -n 2" "logits -m $T --tokens 1 -o -" "tokenize -m $T -p Once"; do
    # shellcheck disable=SC2086
    $M $command >&- 2> "$D/err"
    check "closed standard output: $command" $? -eq 1
done
$M run -m "$T" -f - -n 1 <&- > "$D/out" 2> "$D/err"
check "closed standard input" $? -eq 1
{
    $M run -m "$T" -p Once -n 100000 -t 1 2> "$D/err"
    echo $? > "$D/code"
} | head -n 1 > "$D/out"
check "a reader that leaves" "$(cat "$D/code")" -eq 1
check "says nothing" ! -s "$D/err"

# ---- Ctrl-C 
# interrupt PATTERN ARGUMENT...: runs mamba, sends SIGINT once a file that matches PATTERN has something in it,
# leaves the exit code in $code
interrupt() {
    pattern=$1
    shift
    $M "$@" > "$D/int.out" 2> "$D/err" < /dev/null &
    child=$!
    for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do
        [ -n "$(find "$D" -name "$pattern" -size +0)" ] && break
        sleep 1
    done
    kill -INT $child
    wait $child
    code=$?
}
interrupt int.out run -m "$T" -p Once -n -1 --ignore-eos -t 1 --stats --state-out "$D/interrupted"
check "Ctrl-C: exit code" $code -eq 130
grep -q '^generated: ' "$D/err" && ok || bad "Ctrl-C: statistics"
check "Ctrl-C: text" -s "$D/int.out"
expect 0 "" run -m "$T" --state-in "$D/interrupted" -n 3
awk 'BEGIN { for (i = 0; i < 300000; i++) print i % 4096 }' > "$D/many"
interrupt 'never.tmp.*' logits -m "$T" --tokens "@$D/many" --chunk 64 -t 1 -o "$D/never"
check "Ctrl-C while writing logits" $code -eq 130
check "Ctrl-C leaves no file" ! -e "$D/never"
left=$(find "$D" -name '*.tmp.*')
[ -z "$left" ] && ok || bad "Ctrl-C: temporary files remain: $left"

# ---- text in, text out 
printf 'nul \000 inside, bad \377\376 bytes, half \342\202 a sign, \360\237\230\200 crlf\r\n\n\tend' > "$D/bytes"
expect 0 "" tokenize -m "$T" -f "$D/bytes" --no-normalize
cp "$D/out" "$D/bytes.ids"
expect 0 "" detokenize -m "$T" -f "$D/bytes.ids"
same "tokenize, detokenize" "$D/out" "$D/bytes"
# shellcheck disable=SC2046
expect 0 "" detokenize -m "$T" $(cat "$D/bytes.ids")
same "ids as arguments" "$D/out" "$D/bytes"
$M tokenize -m "$T" --no-normalize < "$D/bytes" > "$D/out"
same "standard input" "$D/out" "$D/bytes.ids"
expect 0 "" tokenize -m "$T" -p ""
check "no bytes, no ids" "$(wc -c < "$D/out")" -eq 1
expect 0 "" run -m "$T" -f "$D/bytes" -n 3 --greedy
expect 0 "" run -m "$T" -p " " -n 3 --greedy
expect 0 "" run -m "$T" -p "" -n 3 --greedy
expect 0 "" run -m "$T" -p Once -n 0
check "-n 0 prints nothing" ! -s "$D/out"
expect 0 "" run -m "$T" -p "Once upon" -n 5 --greedy --echo
head -c 9 "$D/out" > "$D/echoed"
[ "$(cat "$D/echoed")" = "Once upon" ] && ok || bad "--echo"
expect 0 "" run -m "$T" -p "Once upon a time" -n 30 --seed 7 -t 1
cp "$D/out" "$D/seed7"
expect 0 "^generated: 30 tokens" run -m "$T" -p "Once upon a time" -n 30 --seed 7 -t 3 --stats
same "same seed, same text" "$D/out" "$D/seed7"
expect 0 "" run -m "$T" -p "Once upon a time" -n 30 --seed 8 -t 1
cmp -s "$D/out" "$D/seed7" && bad "another seed, the same text" || ok
printf 'Once upon a time' | $M run -m "$T" -n 30 --seed 7 > "$D/out"
same "prompt from standard input" "$D/out" "$D/seed7"
expect 0 "" tokenize -m "$T" -p "Once upon a time"
expect 0 "" run -m "$T" --tokens "$(cat "$D/out")" -n 30 --seed 7
same "prompt as ids" "$D/out" "$D/seed7"
expect 0 "" run -m "$T" -p "Once upon a time" -n 30 --seed 7 --ids
cp "$D/out" "$D/text.ids"
expect 0 "" detokenize -m "$T" -f "$D/text.ids"
same "output as ids" "$D/out" "$D/seed7"
expect 0 "" run -m "$T" -p "Once upon a time" -n 20 --greedy
cp "$D/out" "$D/greedy"
expect 0 "" run -m "$T" -p "Once upon a time" -n 20 --temp 0 --top-k 3
same "--temp 0 is --greedy" "$D/out" "$D/greedy"

# ---- sessions 
expect 0 "" run -m "$T" -p "Once upon a time" -n 11 --seed 7 --state-out "$D/s1"
cp "$D/out" "$D/joined"
expect 0 "" run -m "$T" --state-in "$D/s1" -n 1 --state-out "$D/s2"
cat "$D/out" >> "$D/joined"
expect 0 "" run -m "$T" --state-in "$D/s2" -n 18 -t 2
cat "$D/out" >> "$D/joined"
same "a session in three parts" "$D/joined" "$D/seed7"
expect 0 "" run -m "$T" -p "Once upon a" -n 0 --state-out "$D/s3"
expect 0 "" run -m "$T" --state-in "$D/s3" -p " time" -n 30 --seed 7
same "a prompt in two parts" "$D/out" "$D/seed7"
case $(ls -l "$D/s1") in -rw*) ok ;; *) bad "mode of a session" ;; esac
head -c 1000 "$D/s1" > "$D/s4"
expect 1 "truncated" run -m "$T" --state-in "$D/s4" -n 1
cp "$D/s1" "$D/s4"
printf x | dd of="$D/s4" bs=1 seek=2000 conv=notrunc 2> /dev/null
expect 1 "checksum" run -m "$T" --state-in "$D/s4" -n 1
expect 1 "not a session" run -m "$T" --state-in "$T" -n 1
expect 1 "" run -m "$B/golden/mamba1-tales-bf16.mamba" --state-in "$D/s1" -n 1
cp "$D/s1" "$D/s5"
expect 1 "found '5000'" run -m "$T" --tokens 5000 --state-out "$D/s5" -n 1
same "a failure keeps the session" "$D/s1" "$D/s5"

# ---- score 
head -c 40000 mamba.h > "$D/long.txt"
expect 0 "" tokenize -m "$T" -f "$D/long.txt"
count=$(wc -w < "$D/out")
head -c 9000 "$D/long.txt" > "$D/some.txt"
expect 0 "" tokenize -m "$T" -f "$D/some.txt"
cp "$D/out" "$D/some.ids"
expect 0 "" score -m "$T" -f "$D/some.txt" -t 1
cp "$D/out" "$D/score"
tr ' ' ',' < "$D/some.ids" > "$D/some.csv"
expect 0 "" score -m "$T" --tokens "$D/some.csv" -t 2
same "score of text and of its ids" "$D/out" "$D/score"
expect 0 "" score -m "$T" --tokens "$D/some.ids" --per-token
awk -v want="$(sed -n 's/^nll //p' "$D/score")" 'NF == 3 { s += $3; n++; if ($1 != n) exit 1 }
    $1 == "scored" { if ($2 != n) exit 1 } END { d = s / n - want; exit !(d < 2e-6 && d > -2e-6) }' "$D/out" &&
    ok || bad "--per-token adds up"
expect 0 "" score -m "$T" -f "$D/some.txt" --bos
awk '$1 == "tokens" { t = $2 } $1 == "scored" { exit !($2 == t) }' "$D/out" && ok || bad "--bos scores every token"
expect 0 "" score -m "$T" -f "$D/long.txt" -t 1
check "ids of a text in pieces" "$(sed -n 's/^tokens //p' "$D/out")" -eq "$count"

# ---- bench and the other examples 
expect 0 "" bench --synthetic tiny --type q8 --write "$D/tiny.mamba" --limit-mib 16 --reps 2 --prefill 16,32 \
    --decode 4 --json --profile --threads 1,2
for test in machine limit prefill decode profile; do
    grep -q "^{\"test\":\"$test\".*}\$" "$D/out" && ok || bad "bench --json: no $test"
done
[ "$(grep -c '"tokens_per_s":[0-9.e+]*,"spread":[0-9.]*,.*"share_of_limit":[0-9]' "$D/out")" -eq 6 ] && ok ||
    bad "bench --json: fields"
check "matrices, once for each number of threads" "$(grep -c '"name":"matrices","model":"tiny"' "$D/out")" -eq 2
check "decode as a share of them" "$(grep -c '"test":"decode".*"share_of_matrices":[0-9]' "$D/out")" -eq 2
expect 0 "" info "$D/tiny.mamba" --check
expect 0 "" run -m "$D/tiny.mamba" --tokens 1,2,3 -n 5 --greedy
check "ids in, ids out" "$(wc -w < "$D/out")" -eq 5
expect 1 "no tokenizer" run -m "$D/tiny.mamba" -p x
expect 1 "no tokenizer" tokenize -m "$D/tiny.mamba" -p x
expect 1 "no tokenizer" detokenize -m "$D/tiny.mamba" 1
expect 1 "the prompt is empty" run -m "$D/tiny.mamba" --tokens , -n 1
for type in f32 f16 bf16 q4 q8; do
    [ $type = q8 ] && kind=mamba2-tiny || kind=tiny
    expect 0 "" bench --synthetic $kind --type $type --write "$D/tiny.mamba" --limit-mib 0 --reps 1 --prefill 8 \
        --decode 2
    expect 0 "" info "$D/tiny.mamba" --check
done
expect 0 "" bench -m "$T" --length 2000 --chunk 100 --threads 1
[ "$(grep -c '^length ' "$D/out")" -eq 3 ] && ok || bad "bench --length: a row at each decade"
expect 0 "" bench --scan 256 --reps 1 --threads 1,2 --json
[ "$(grep -c '^{"test":"scan","channels":[0-9]*,.*"ratio":[0-9]' "$D/out")" -eq 16 ] && ok || bad "bench --scan: rows"
expect 2 "found '255'" bench --scan 255
expect 2 "--scan N alone" bench --scan 256 -m "$T"
for example in "hello $T Once" "scan" "states $T Once" "vectors $T" "embed"; do
    if [ ! -x "$B/${example%% *}" ]; then
        skip "${example%% *}" "not built"
        continue
    fi
    # shellcheck disable=SC2086
    ${RUN:-} "$B"/$example > "$D/out" 2> "$D/err"
    { check "$example" $? -eq 0 && [ -s "$D/out" ] && [ ! -s "$D/err" ]; } || bad "$example: output"
done
if [ -x "$B/hello" ]; then
    ${RUN:-} "$B/hello" > "$D/out" 2> "$D/err"
    check "hello without arguments" $? -eq 1
fi

echo "cli: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
