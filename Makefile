# Each target makes the virtual environment it needs: Python 3.11 or newer and make are all that must be there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Where the API server of test-k8s is built to, once.
KUBERNETES ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/diffkeeper/kubernetes-1.20.2
# The build hook compiles these; a change must compile them again.
BPF_SOURCES := $(wildcard services/capture/diffkeeper_capture/bpf/*.[ch] services/capture/diffkeeper_capture/native/*.c)

.PHONY: help demo test test-k8s check format bench soak chaos clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    a volume outlives its site, before your eyes (DEMO='--keep' leaves it up)"
	@echo "make test    all tests (TESTS='tests/unit -k log' for some)"
	@echo "make test-k8s  the operator against a real API server, built on first use (minutes)"
	@echo "make check   ruff, mypy, import contracts"
	@echo "make format  let ruff lay out the code"
	@echo "make bench   capture, lag, failover and merging, measured against their own baselines"
	@echo "make soak    every way of writing mixed from a seed, as root (SEED=, MINUTES=10, TRACE=1)"
	@echo "make chaos   faults drawn from a seed against three sites on a network of their own, as root (SEED=, ROUNDS=12, FAULTS=)"
	@echo "make clean   remove what was built"

$(STAMP): pyproject.toml $(wildcard build_bpf.py) $(BPF_SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "DiffKeeper needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "preparing $(VENV) ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/python -m examples.demo $(DEMO)

test: $(STAMP)
	@$(BIN)/python -m pytest -q --durations=15 $(TESTS)

test-k8s: $(STAMP)
	tests/k8s/build_api_server.sh $(KUBERNETES)
	@DIFFKEEPER_PODS=1 DIFFKEEPER_KUBERNETES=$(KUBERNETES) $(BIN)/python -m pytest -q --durations=15 tests/k8s $(TESTS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/dkctl bench capture
	$(BIN)/dkctl bench lag
	$(BIN)/dkctl bench failover
	$(BIN)/dkctl bench merge

soak: $(STAMP)
	@$(BIN)/python -m tests.bpf.soak

chaos: $(STAMP)
	@$(BIN)/python -m tests.chaos.site_rounds

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	rm -f services/capture/diffkeeper_capture/bpf/*.o services/capture/diffkeeper_capture/native/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
