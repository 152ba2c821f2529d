# Needs GNU make, git and Python 3.11 or newer; everything else is installed into .venv.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

# two processes that spin for each other's core are a hundred times slower than two that wait
export OMP_WAIT_POLICY ?= PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS ?= 1

.PHONY: help install demo test lint clean

help: ## show the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

install: $(INSTALLED) ## make .venv with vla and the tools for tests and lint (torch is large: minutes)

# the build's own environment takes its pins from these variables (older and newer pip), not from -c
$(INSTALLED): export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
$(INSTALLED): export PIP_BUILD_CONSTRAINT := $(CURDIR)/constraints.txt
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than Python 3.11. Try: make install PYTHON=python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e '.[lerobot,zarr,ros,quantized,dev]'
	test -x $(BIN)/vla
	touch $@

demo: install ## the five stages on the sample data: lock-in, and its cure, in one table
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/pipeline.sh

# a file's tests stay in one process: they share what the file prepares
test: install ## run the tests, two processes side by side
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: install ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean: ## remove what was built or cached; .venv stays
	rm -rf build demo_out *.egg-info .pytest_cache .ruff_cache .hypothesis .mypy_cache
	find . -path ./.venv -prune -o -type d -name __pycache__ -exec rm -rf {} +
