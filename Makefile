# mamba.h - build, test, measure.  `make help` lists the targets.
#   Axes: CC=gcc|clang|…   config=release|debug|sanitize   OPENMP= (none)   defines=-DMAMBA_…   RUN=qemu-…
#   Everything built goes to build/ (release with cc) or build/<compiler>-<config>/.
CC ?= cc
config ?= release
CFLAGS ?= -O2 -g
OPENMP ?= -fopenmp
defines ?=
RUN ?=
WARN = -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wcast-qual -Wundef -Wvla -Wdouble-promotion \
       -Wstrict-prototypes -Wmissing-prototypes

cc_name := $(notdir $(firstword $(CC)))
B ?= build$(if $(filter-out cc-release,$(cc_name)-$(config)),/$(cc_name)-$(config))
flags_release =
flags_debug = -O0
flags_sanitize = -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
ifeq ($(filter $(config),release debug sanitize),)
$(error config must be release, debug or sanitize)
endif
FLAGS = -std=c99 $(CFLAGS) $(flags_$(config)) $(WARN) -MMD -MP -I. $(defines)
LIBS = $(OPENMP) $(flags_$(config)) -lm

EXAMPLES := $(patsubst examples/%.c,%,$(wildcard examples/*.c))
TOOLS := $(if $(wildcard tools/convert.c),mamba-convert)
TESTS := $(patsubst tests/%.c,%,$(wildcard tests/*.c))
SCRIPTS := $(wildcard tests/*.sh)
# slowest first, so that two jobs end together; the rest by name
SUITES = $(TESTS:%=$(B)/tests/%) $(SCRIPTS)

.PHONY: all quick check sanitize compile fuzz format clean help
.DELETE_ON_ERROR:
all: $(EXAMPLES:%=$(B)/%) $(TOOLS:%=$(B)/%) ## build the examples and the converter (the default)

check: all $(TESTS:%=$(B)/tests/%) ## every test, offline; the last line is the total
	@B=$(B) CC="$(CC)" RUN="$(RUN)" sh tests/run $(SUITES)

sanitize: ## the suites under the address and undefined-behaviour sanitizers
	$(MAKE) config=sanitize B=$(B)/sanitize SCRIPTS= check

compile: ## only the compile tests: languages, compilers, options, symbols
	@B=$(B) CC="$(CC)" sh tests/run tests/compile.sh

quick: ## the header compiles without a warning as C99 and C++11 (seconds)
	@mkdir -p $(B)
	@printf '#define MAMBA_IMPLEMENTATION\n#include "mamba.h"\n' > $(B)/quick.c
	$(CC) -std=c99 -O1 $(WARN) -Werror -I. -c $(B)/quick.c -o $(B)/quick.o
	@if command -v $(CXX) > /dev/null; then set -x; $(CXX) -x c++ -std=c++11 -Wall -Wextra -Werror -I. \
	    -fsyntax-only $(B)/quick.c; fi

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

$(B)/mamba-convert: tools/convert.c $(B)/libmamba.a Makefile
	@mkdir -p $(@D)
	$(CC) $(FLAGS) $(OPENMP) $< $(B)/libmamba.a -o $@ $(LIBS)

$(TESTS:%=$(B)/tests/%): $(B)/tests/%: tests/%.c $(B)/libmamba.a Makefile
	@mkdir -p $(@D)
	$(CC) $(FLAGS) -Itests -Itools $(OPENMP) $< $(B)/libmamba.a -o $@ $(LIBS)

-include $(wildcard $(B)/*.d $(B)/tests/*.d)
