# `make demo` and `make test` set up everything they need in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := $(VENV)/.peers

.PHONY: demo test test-full test-kernels test-offline test-alone lint bench docs docs-tables readme-performance clean
KERNEL_TESTS := tests/kernels tests/interpreted

demo: $(READY)
	$(BIN)/mbv3fast demo

# Interpreting kernels, compiling them, and neither: one of them a process. What times itself has a core to itself.
test: lint $(PEERS)
	$(BIN)/pytest -n 2 -m "not slow and not gpu and not alone"
	TRITON_INTERPRET=1 $(BIN)/pytest -n 2 -m "not slow and not gpu" $(KERNEL_TESTS)
	$(MAKE) --jobs 2 test-offline test-alone

test-offline: $(READY)
	TRITON_INTERPRET=0 $(BIN)/pytest -m "not slow and not gpu" tests/offline

test-alone: $(PEERS)
	$(BIN)/pytest -m alone

test-full: lint $(PEERS)
	$(BIN)/pytest -n 2 -m "not alone"
	TRITON_INTERPRET=1 $(BIN)/pytest -n 2 $(KERNEL_TESTS)
	TRITON_INTERPRET=0 $(BIN)/pytest -n 2 tests/offline
	$(MAKE) test-alone

test-kernels: $(READY)
	TRITON_INTERPRET=1 $(BIN)/pytest -n 2 -m "not slow" $(KERNEL_TESTS)
	$(MAKE) test-offline

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(PEERS)
	$(BIN)/pytest benchmarks --benchmark-only --benchmark-json results.json
	$(BIN)/python -m benchmarks.report results.json --out build/report

# The guide, as build/docs/html; broken links and anchors are errors.
docs: $(READY)
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --nitpicky --fresh-env -c docs . build/docs/html

docs-tables: $(READY)
	$(BIN)/python -m docs.tables

readme-performance: $(READY)
	$(BIN)/python -m benchmarks.report benchmarks/results/*/*.json --out build/report --readme README.md

$(READY): requirements-dev.txt pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements-dev.txt
	MBV3FAST_SKIP_CUDA=1 $(BIN)/pip install --quiet --no-deps --no-build-isolation --config-settings editable_mode=compat --editable .
	ln -sfn ../kernels mbv3fast/kernels
	ln -sfn ../csrc mbv3fast/csrc
	touch $@

$(PEERS): $(READY) requirements-peers.txt
	$(BIN)/pip install --quiet --requirement requirements-peers.txt
	touch $@

clean:
	rm -rf $(VENV) build mbv3fast/lib *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks demo.png results.json
