# mamba.h - build, test, measure.  `make help` lists the targets.
#   Axes: CC=gcc|clang|…   config=release|debug|sanitize   OPENMP= (none)   defines=-DMAMBA_…   RUN=qemu-…
#   Everything built goes to build/ (release with cc) or build/<compiler>-<config>/.
CC ?= cc
config ?= release
CFLAGS ?= -O2 -g
ifndef OPENMP # one thread where the compiler has no OpenMP
OPENMP := $(shell echo 'int main(void) { return 0; }' | $(CC) -fopenmp -x c -o /dev/null - 2> /dev/null && \
            echo -fopenmp)
endif
defines ?=
RUN ?=
JOBS ?= $(shell getconf _NPROCESSORS_ONLN 2> /dev/null || echo 2)
MAKEFLAGS += -j$(JOBS)
WARN = -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wcast-qual -Wundef -Wvla -Wdouble-promotion \
       -Wstrict-prototypes -Wmissing-prototypes

cc_name := $(notdir $(firstword $(CC)))
B ?= build$(if $(filter-out cc-release,$(cc_name)-$(config)),/$(cc_name)-$(config))
GOLDEN_B ?= $(B)
flags_release =
# -g1: line numbers alone, in two thirds of the time
test_release = -O1 -g1 # of the tests themselves; the library that they link is built with CFLAGS
flags_debug = -O0
flags_sanitize = -O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
ifeq ($(filter $(config),release debug sanitize),)
$(error config must be release, debug or sanitize)
endif
FLAGS = -std=c99 -D_POSIX_C_SOURCE=200809L $(CFLAGS) $(flags_$(config)) $(WARN) -MMD -MP -I. $(defines)
LIBS = $(OPENMP) -pthread $(flags_$(config)) -lm

TALES := $(wildcard examples/tales.mamba)
EXAMPLES := $(filter-out $(if $(TALES),,embed),$(patsubst examples/%.c,%,$(wildcard examples/*.c)))
TOOLS := $(if $(wildcard tools/convert.c),mamba-convert) $(if $(wildcard tools/quantize.c),mamba-quantize)
TESTS := $(patsubst tests/%.c,%,$(wildcard tests/*.c))
SCRIPTS := $(wildcard tests/*.sh)
GOLDEN := $(patsubst tests/golden/%/config.json,%,$(wildcard tests/golden/*/config.json))
MODELS := $(if $(TOOLS),$(GOLDEN:%=$(B)/golden/%.mamba) $(B)/golden/mamba1-tales-bf16.mamba \
          $(B)/golden/mamba1-tales-q8.mamba)
SUITES = $(SCRIPTS) $(TESTS:%=$(B)/tests/%)

.PHONY: all run quick check sanitize compile accuracy fuzz format clean help
.DELETE_ON_ERROR:
all: $(EXAMPLES:%=$(B)/%) $(TOOLS:%=$(B)/%) ## build the examples and the converter (the default)

run: $(B)/mamba ## a story, told by the model in examples/
	$(B)/mamba run -m examples/tales.mamba -p "Once upon a time" -n 250 -t 1 --seed 5 --echo --stats

check: all $(TESTS:%=$(B)/tests/%) $(MODELS) ## every test, offline; the last line is the total
	@B=$(B) CC="$(CC)" RUN="$(RUN)" JOBS=$(JOBS) sh tests/run $(SUITES)

sanitize: ## the suites under the address and undefined-behaviour sanitizers
	MAMBA_TEST_QUICK=1 $(MAKE) config=sanitize B=$(B)/sanitize SCRIPTS= check

compile: ## only the compile tests: languages, compilers, options, symbols
	@B=$(B) CC="$(CC)" sh tests/run tests/compile.sh

quick: ## the header compiles without a warning as C99 and C++11 (seconds)
	@mkdir -p $(B)
	@printf '#define MAMBA_IMPLEMENTATION\n#include "mamba.h"\n' > $(B)/quick.c
	$(CC) -std=c99 -O1 $(WARN) -Werror -I. -c $(B)/quick.c -o $(B)/quick.o
	@if command -v $(CXX) > /dev/null; then set -x; $(CXX) -x c++ -std=c++11 -Wall -Wextra -Werror -I. \
	    -fsyntax-only $(B)/quick.c; fi

# Where the trained checkpoints and the text that they have not seen lie.
CHECKPOINTS ?= ../shared/checkpoints
accuracy: $(B)/mamba-accuracy $(B)/mamba-convert ## what the weight types cost, in perplexity (minutes)
	@mkdir -p $(B)/accuracy
	@for m in mamba1-tales mamba2-tales; do for t in f32 bf16 q8 q6 q4; do \
	    $(B)/mamba-convert -q $(CHECKPOINTS)/$$m -o $(B)/accuracy/$$m-$$t.mamba --type $$t || exit 1; done; \
	    echo; echo "$$m, tales-unseen.txt"; cd $(B)/accuracy; ../mamba-accuracy $$m-f32.mamba \
	    $(abspath $(CHECKPOINTS))/tales-unseen.txt $$m-bf16.mamba $$m-q8.mamba $$m-q6.mamba $$m-q4.mamba || exit 1; cd $(CURDIR); done

FUZZ_SECONDS ?= 20
fuzz: $(B)/golden/mamba1-long.mamba ## a short round of each fuzzer (clang; FUZZ_SECONDS=20)
	@for f in tests/fuzz/*.c; do n=$(B)/fuzz-$$(basename $$f .c); mkdir -p $$n.corpus; \
	    clang -std=c99 -D_POSIX_C_SOURCE=200809L -O1 -g -fsanitize=fuzzer,address,undefined \
	    -fno-sanitize-recover=all -I. -Itools -Itests -DFUZZ_MODEL=\"$<\" $$f -o $$n -lm && \
	    $$n -max_total_time=$(FUZZ_SECONDS) -timeout=20 -rss_limit_mb=2048 -max_len=4096 \
	    -artifact_prefix=$(B)/ $$n.corpus > $$n.log 2>&1 || { tail -n 40 $$n.log; exit 1; }; \
	    tail -n 1 $$n.log; done

format: ## rewrite the C files in the project's style
	clang-format -i mamba.h tools/*.[ch] examples/*.c tests/*.[ch]

clean: ## remove build/
	rm -rf build

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1: \2/p' Makefile

# The library, for programs that do not carry the implementation themselves.
$(B)/libmamba.a: mamba.h Makefile
	@mkdir -p $(B)
	@printf '#define MAMBA_IMPLEMENTATION\n#include "mamba.h"\n' > $(B)/libmamba.c
	$(CC) $(FLAGS) $(OPENMP) -c $(B)/libmamba.c -o $(B)/libmamba.o
	@rm -f $@
	ar rc $@ $(B)/libmamba.o

$(EXAMPLES:%=$(B)/%): $(B)/%: examples/%.c $(B)/libmamba.a Makefile
	@mkdir -p $(@D)
	$(CC) $(FLAGS) $(OPENMP) $< $(B)/libmamba.a -o $@ $(LIBS)

# The command line needs the implementation in its own file (it reads the format's records), hello shows it;
# the other examples define it for whoever compiles them alone, and link to the library here to save time.
$(B)/mamba: $(wildcard examples/*.h)
$(filter-out $(B)/mamba $(B)/hello,$(EXAMPLES:%=$(B)/%)): private FLAGS += -DMBI_IMPLEMENTED

# A model inside a program.
$(B)/bin2c: tools/bin2c.c Makefile
	@mkdir -p $(@D)
	$(CC) $(FLAGS) $< -o $@ $(flags_$(config))
$(B)/tales.inc: $(TALES) $(B)/bin2c
	$(B)/bin2c examples/tales.mamba tales > $@
$(B)/embed: $(B)/tales.inc
$(B)/embed: private FLAGS += -I$(B)

$(B)/mamba-convert $(B)/mamba-quantize $(B)/mamba-accuracy: $(B)/mamba-%: tools/%.c $(B)/libmamba.a Makefile
	@mkdir -p $(@D)
	$(CC) $(FLAGS) $(OPENMP) $< $(B)/libmamba.a -o $@ $(LIBS)

$(TESTS:%=$(B)/tests/%): $(B)/tests/%: tests/%.c $(B)/libmamba.a Makefile
	@mkdir -p $(@D)
	$(CC) $(FLAGS) $(test_$(config)) -Itests -Itools -DBUILD_DIR=\"$(GOLDEN_B)\" $(OPENMP) $< $(B)/libmamba.a -o $@ $(LIBS)

# The golden checkpoints, converted: NAME.mamba as f32, NAME-bf16.mamba, NAME-q8.mamba.
convert = @mkdir -p $(@D); echo "$(B)/mamba-convert $< -o $@ --type $(1)"; \
          $(RUN) $(B)/mamba-convert $< -o $@ --type $(1) --quiet 2> $@.log || { cat $@.log; exit 1; }
$(B)/golden/%-bf16.mamba: tests/golden/% $(B)/mamba-convert
	$(call convert,bf16)
$(B)/golden/%-q8.mamba: tests/golden/% $(B)/mamba-convert
	$(call convert,q8)
$(B)/golden/%.mamba: tests/golden/% $(B)/mamba-convert
	$(call convert,f32)

-include $(wildcard $(B)/*.d $(B)/tests/*.d)
