# Everything works on a fresh clone with nothing but git, Python 3.11 and make.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_STAMP := $(VENV)/.installed-demo
PROTOS := records enrolment fleet control pipe
export FLWR_TELEMETRY_ENABLED := 0
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: setup demo test test-all lint types protos bench chaos build ci clean

setup: $(STAMP)

# ensurepip is missing on some distributions: virtualenv then makes the environment.
$(BIN)/python:
	@$(PYTHON) -m venv $(VENV) 2>/dev/null \
	  || (rm -rf $(VENV) && $(PYTHON) -m pip install --user -q virtualenv && $(PYTHON) -m virtualenv -q $(VENV)) \
	  || (echo "No virtual environment could be made: install python3.11-venv, or pip" && exit 1)

# torch first and pinned: unpinned, it would pull gigabytes of GPU libraries.
$(DEMO_STAMP): $(BIN)/python pyproject.toml setup.py constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt "torch==2.13.0"
	$(BIN)/python -m pip install -q -c constraints.txt -e . matplotlib
	@touch $@

$(STAMP): $(DEMO_STAMP)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev,audit]"
	@touch $@

demo: $(DEMO_STAMP)
	$(BIN)/tacit demo

test: $(STAMP)
	$(BIN)/python -m pytest

test-all: $(STAMP)
	$(BIN)/python -m pytest -m ""

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/mypy

# The generated code is committed; `git diff --exit-code protos` after this must be empty.
protos: $(STAMP)
	$(BIN)/python protos/generate.py $(PROTOS)

bench: $(STAMP)
	$(BIN)/python -m benchmarks.run
	$(BIN)/python -m benchmarks.secure
	$(BIN)/python -m benchmarks.dp_step
	$(BIN)/python -m benchmarks.shadows

# 200 kills of an owner's daemon; the result stays in chaos.json.
chaos: $(STAMP)
	$(BIN)/python -m tests.end_to_end.chaos --kills 200 --out chaos.json

build: $(STAMP)
	$(BIN)/python -m build --no-isolation -q

ci: lint types test-all
	$(MAKE) protos
	git diff --exit-code protos

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
