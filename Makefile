# `make demo` and `make test` need a Python with venv and nothing else; all they install is in .venv,
# all they keep beside it is the embedding model in the user's cache.

PYTHON ?= python3
ONCE ?=
ARGS ?=
WORKERS ?= auto

BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYRIGHT_PYTHON_CACHE_DIR := $(CURDIR)/.cache/pyright
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

# A mesh is many processes, and its tests start hundreds: each would compile all of it again.
unexport PYTHONDONTWRITEBYTECODE

# Two pips at once would ruin one another's work.
.NOTPARALLEL:
.PHONY: help demo test e2e lint format model bench-peers clean

help:
	@echo 'make demo          start a mesh with example agents, show what it does, stay up until Ctrl-C'
	@echo 'make demo ONCE=1   the same, and end after the tour'
	@echo 'make test          run the tests                 (make test ARGS="-k router -x")'
	@echo 'make test WORKERS=0    the same in one process, as a debugger wants it'
	@echo 'make e2e           run those that need Docker'
	@echo 'make lint          formatting, lint, types and layering; make format mends the first two'
	@echo 'make bench-peers   install what the benchmarks compare with, in benchmarks/.venvs'
	@echo 'make clean         remove what these commands have made'
	@echo 'Another Python than python3: make demo PYTHON=python3.12'

demo: .venv/installed-all model
	@exec $(BIN)/lmos demo $(if $(filter-out 0 no false,$(ONCE)),--once)

test: .venv/installed-dev model
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

e2e: .venv/installed-dev
	LMOS_E2E_REQUIRED=1 $(BIN)/python -m pytest tests/e2e/test_compose.py $(ARGS)

lint: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: .venv/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Without it everything works, less well: the mesh itself says what stands in for it.
model: .venv/installed-all
	@$(BIN)/lmos models install || true

bench-peers: .venv/made
	$(BIN)/python benchmarks/peers/setup.py

clean:
	rm -rf .venv .cache .hypothesis .import_linter_cache .pytest_cache .ruff_cache benchmarks/.venvs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written last, so what was interrupted is done again.
.venv/installed-dev: .venv/made pyproject.toml
	@echo 'Installing lmos-mesh and its development tools in .venv (minutes, the first time)'
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch .venv/installed-all $@

.venv/installed-all: .venv/made pyproject.toml
	@echo 'Installing lmos-mesh in .venv (a minute or two, the first time)'
	@$(BIN)/python -m pip install --quiet --editable '.[all]'
	@touch $@

.venv/made:
	$(if $(call tried,import sys; print(sys.version_info >= (3, 11))),,$(error $(too_old)))
	$(if $(call tried,import ensurepip$(comma) venv; print(True)),,$(error $(no_venv)))
	@$(PYTHON) -m venv $(if $(wildcard $(BIN)/python),,--clear) .venv
	@touch $@

comma := ,
tried = $(filter True,$(shell $(PYTHON) -c '$(1)' 2>/dev/null))
which = $(or $(shell $(PYTHON) -V 2>/dev/null),no Python)
too_old = lmos-mesh needs Python 3.11 or newer, and $(PYTHON) is $(which): name another, as in `make demo PYTHON=python3.12`
no_venv = $(PYTHON) has no venv to install into: on Debian and Ubuntu `apt install python3-venv` adds it
