# Needs Python 3.12 and make, nothing else. `make demo` shows the whole program, `make test` checks it.
PYTHON ?= python3.12
BIN := .venv/bin
# Python keeps what it compiled even where the environment forbids it (containers often do): without, each of the many
# processes that trainings, simulations and tests start compiles its libraries again, torch alone for two seconds.
export PYTHONDONTWRITEBYTECODE :=
# One thread a process: the tests run side by side, and numbers do not depend on the number of cores.
# A file stays in one process, which makes its stores and trained policies once. Files go in the order of their names:
# xdist would put those of few tests last, which are the longest, and one process would wait for the other.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help demo test test-all lint lock clean

help:
	@echo "make demo      install, train a streaming diffusion policy, compare it with the baseline"
	@echo "make test      style and tests"
	@echo "make test-all  with the tests that take minutes"
	@echo "make lint      style and types"
	@echo "make lock      resolve requirements.lock anew"

demo: .venv/installed
	bash tools/demo.sh $(ARGS)

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(TEST) -m "not heavy"

test-all: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(TEST)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/typing_links.py
	$(BIN)/pyright --pythonpath $(BIN)/python

# The overrides keep out a second OpenCV and a package that needs a compiler; the file says why.
lock: .venv/installed
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --generate-hashes --no-header --quiet \
		--python-version 3.12 --override tools/lock_overrides.txt --output-file requirements.lock

clean:
	rm -rf .venv build dist *.egg-info

.venv/bin/uv:
	@command -v $(PYTHON) >/dev/null || \
		{ echo "error: expected Python 3.12 as '$(PYTHON)'; found none; install it, or: make PYTHON=/path/to/python3.12"; exit 1; } >&2
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' || \
		{ echo "error: expected '$(PYTHON)' to be Python 3.12; found another version, or one that does not start; make PYTHON=/path/to/python3.12"; exit 1; } >&2
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv<1"

# The lock is complete, hence --no-deps; it holds setuptools and wheel, hence no build isolation.
.venv/locked: requirements.lock | .venv/bin/uv
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --require-hashes -r requirements.lock
	@touch $@

.venv/installed: pyproject.toml .venv/locked
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@
