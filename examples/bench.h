#ifndef BENCH_H
#define BENCH_H
static int cmd_bench(int argc, char **argv) {
    (void)argc;
    (void)argv;
    return cli_fail(CLI_FAILED, "bench: not yet");
}
#endif
