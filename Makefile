# make serve   install into .venv and run a cluster on this machine (ARGS="--prefill 1 --decode 1")
# make test    run the tests (ARGS="tests/router -k health")
# make check   formatting, lint, types, layers
# make bench   run a benchmark (ARGS="kernels"; without ARGS: list them)
# make dev     install what the last three need
#
# PYTHON names the interpreter .venv is made with: 3.11, 3.12 or 3.13.

SUITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c '$(SUITS)' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH = $(shell grep '^torch==' requirements.txt)
ARGS ?=

.PHONY: serve dev check test bench clean

serve: .venv/.runtime
	@$(BIN)/python -P -m penstock serve $(ARGS)

dev: .venv/.development

check: .venv/.development
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -q tests/test_layers.py

test: .venv/.development
	$(BIN)/python -m pytest -q $(ARGS)

bench: .venv/.runtime
	@$(BIN)/python -P -m penstock bench $(ARGS)

clean:
	rm -rf .venv .pythonpath penstock.egg-info

# Where Python comes without ensurepip, the outer pip fetches one for the environment.
.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 to 3.13 is needed: make PYTHON=/path/to/it"; exit 1; }
	$(PYTHON) -m venv .venv || { $(PYTHON) -m venv --without-pip --clear .venv && \
		$(PYTHON) -m pip --python $@ install pip; }

# torch first and alone, then the rest under constraints, so that nothing replaces it. Packages
# that import setuptools find the pinned one, so no build environment is fetched for our own.
.venv/.runtime: requirements.txt pyproject.toml | .venv/bin/python
	$(PIP) install $(TORCH)
	$(PIP) install -c requirements.txt -r requirements.txt
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

# The link lets pyright resolve `penstock` by path; nothing uses it at run time.
.venv/.development: requirements-dev.txt .venv/.runtime
	$(PIP) install -c requirements.txt -r requirements-dev.txt
	@mkdir -p .pythonpath && ln -sfn .. .pythonpath/penstock
	@touch $@
