# `make demo` and `make test` set up everything they need in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-full test-kernels lint bench clean
KERNEL_TESTS := tests/kernels tests/interpreted

demo: $(READY)
	$(BIN)/mbv3fast demo

# Interpreting kernels, compiling them, and neither: one of them a process.
test: lint
	$(BIN)/pytest -n 2 -m "not slow and not gpu"
	TRITON_INTERPRET=1 $(BIN)/pytest -n 2 -m "not slow and not gpu" $(KERNEL_TESTS)
	TRITON_INTERPRET=0 $(BIN)/pytest -n 2 -m "not slow and not gpu" tests/offline

test-full: lint
	$(BIN)/pytest -n 2
	TRITON_INTERPRET=1 $(BIN)/pytest -n 2 $(KERNEL_TESTS)
	TRITON_INTERPRET=0 $(BIN)/pytest -n 2 tests/offline

test-kernels: $(READY)
	TRITON_INTERPRET=1 $(BIN)/pytest -n 2 -m "not slow" $(KERNEL_TESTS)
	TRITON_INTERPRET=0 $(BIN)/pytest -n 2 -m "not slow" tests/offline

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
