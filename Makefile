# `make demo` and `make test` set up everything they need in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-full test-kernels lint bench clean

demo: $(READY)
	$(BIN)/mbv3fast demo

test: lint
	$(BIN)/pytest -n 2 -m "not slow and not gpu"

test-full: lint
	$(BIN)/pytest -n 2

test-kernels: $(READY)
	TRITON_INTERPRET=1 $(BIN)/pytest -n 2 tests/kernels
	TRITON_INTERPRET=0 $(BIN)/pytest -n 2 tests/offline

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/pytest benchmarks --benchmark-only

$(READY): requirements-dev.txt pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements-dev.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --config-settings editable_mode=compat --editable .
	ln -sfn ../kernels mbv3fast/kernels
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks demo.png
