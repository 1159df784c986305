# Everything happens inside .venv, which `setup` makes. `make` alone lists the targets.
# Paths are relative, so a checkout whose path has spaces works too.

# Which Python makes .venv; without one the first of these that is new enough.
PYTHON ?=
CANDIDATES = $(if $(PYTHON),"$(PYTHON)",python3 python3.14 python3.13 python3.12 python3.11)
# The release that the numbers in benchmarks/ and docs/ were measured with. It goes in first and alone: asked for
# together with the rest, pip may pick another build. Another build: make setup TORCH="torch==2.13.0 --index-url ..."
TORCH ?= torch==2.13.0
# Which tests run: `make test MARKS=slow`, `make test MARKS=gpu`, or `make test ARGS="tests/text -x"` for a few.
MARKS ?= not slow and not gpu
ARGS ?=
BENCHMARKS ?= $(addprefix benchmarks/,orpo_step.py family_step.py decode.py memory.py ranks.py curate.py)

BIN = .venv/bin
READY = .venv/.ready
BENCH_READY = .venv/.ready-bench

.PHONY: help setup demo speedrun test check docs assets bench
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

setup: $(READY) ## make .venv and install Hanlin with its tools

demo: setup ## tune a real model, show before and after, chat (MODEL=... DATA=... for your own)
	@$(BIN)/hanlin demo $${MODEL:+--model "$$MODEL"} $${DATA:+--data "$$DATA"}

speedrun: setup ## pre-train, SFT, reward model, ORPO, RLHF, evaluate, chat: the whole story in minutes (RUN=... for its place)
	@recipes/speedrun.sh $${RUN:+"$$RUN"}

test: setup ## run the tests; those that need assets skip until `make assets`
	$(BIN)/python -m pytest -m "$(MARKS)" $(ARGS)

check: setup ## the whole gate: format, lint, types, docs, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python docs/generate.py --check
	$(MAKE) test

docs: setup ## write the generated parts of the docs anew
	$(BIN)/python docs/generate.py

assets: setup ## fetch the real tokenizers and weights that some tests need (about 500 MB)
	$(BIN)/python tests/fetch_assets.py

bench: $(BENCH_READY) ## run the benchmarks (ARGS=--quick to try them, BENCHMARKS=benchmarks/decode.py for one)
	@for file in $(BENCHMARKS); do \
	    [ -f "$$file" ] || { echo "there is no $$file"; exit 2; }; \
	    echo "== $$file"; $(BIN)/python "$$file" $(ARGS) || exit 1; \
	done

# The stamp is newer than pyproject.toml once everything is installed, so a second `make setup` does nothing.
$(READY): pyproject.toml
	@new='import sys; sys.exit(sys.version_info < (3, 11))'; \
	$(BIN)/python -c "import pip; $$new" 2> /dev/null && exit; \
	for python in $(CANDIDATES); do \
	    if "$$python" -c "$$new" 2> /dev/null; then \
	        echo "making .venv with $$("$$python" --version)"; exec "$$python" -m venv --clear .venv; \
	    fi; \
	done; \
	for python in $(CANDIDATES); do echo "$$python: $$("$$python" --version 2>&1)" >&2; done; \
	echo "Hanlin needs Python 3.11 or newer. Install it, or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 2
	$(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install --quiet --editable ".[dev,curate]"
	@touch $(READY)

$(BENCH_READY): $(READY)
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	@touch $(BENCH_READY)
