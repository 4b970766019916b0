# mamba.h - build, test, measure.  `make help` lists the targets.
CC ?= cc
CFLAGS ?= -O2 -g
WARN = -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wcast-qual -Wundef -Wvla -Wdouble-promotion \
       -Wstrict-prototypes -Wmissing-prototypes
OPENMP ?= -fopenmp
B = build

.PHONY: all quick clean help
all: ## build the tools and examples
	@mkdir -p $(B)

quick: ## compile the header as C99 with all warnings
	@mkdir -p $(B)
	@printf '#define MAMBA_IMPLEMENTATION\n#include "mamba.h"\n' > $(B)/quick.c
	$(CC) -std=c99 -O1 $(WARN) -Werror -I. -c $(B)/quick.c -o $(B)/quick.o

clean: ## remove build/
	rm -rf $(B)

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1: \2/p' Makefile
