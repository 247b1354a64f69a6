# Every command sets up its environment first. It needs Python 3.11 or later with venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
RUN    := $(VENV)/.runtime-installed
DEV    := $(VENV)/.dev-installed
DOCS   := $(VENV)/.docs-installed
# timm, torchvision, transformers, datasets, pytorch-grad-cam, Quantus, Ray and the trackers.
EXTRAS := $(VENV)-extras/.extras-installed
# atheris has wheels for few versions of Python.
FUZZ   := $(VENV)-fuzz/.fuzz-installed
# Libraries that benchmarks compare with.
PEERS  := $(VENV)-bench/.bench-installed
# The lowest versions that pyproject.toml allows. On Linux, PyPI has the CUDA build of torch; for the CPU build:
#     export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
LOWEST := $(VENV)-lowest/.lowest-installed
LOWEST_TORCH ?= 2.6.0

# Options of `make demo`.
DEMO_FLAGS ?= --data shapes --recipe quick --figure-every 1 --out runs/demo --resume

# Seconds of `make fuzz` per file format.
FUZZ_SECONDS ?= 60

.PHONY: help demo test test-fast test-faults fuzz test-extras test-lowest check bench loss-compare docs wheel screenshots clean
.DELETE_ON_ERROR:

help:
	@echo "make demo          train a teacher and a student on synthetic shapes; the report is runs/demo/report.html"
	@echo "make check         format, lint, types, layers"
	@echo "make test-fast     tests that are not marked slow: no training by the command line"
	@echo "make test          all tests; warnings are errors"
	@echo "make test-extras   tests with timm, torchvision, transformers, datasets and Ray, in $(VENV)-extras"
	@echo "make test-lowest   fast tests with the lowest versions that pyproject.toml allows, in $(VENV)-lowest"
	@echo "make test-faults   kills, full disks and corrupt files, many times each, and a table"
	@echo "make fuzz          random changes of every file format (FUZZ_SECONDS each), and a table"
	@echo "make bench         every benchmarks/bench_*.py, in $(VENV)-bench"
	@echo "make loss-compare BASE=REVISION   compare all loss curves with a revision, bit for bit (default: HEAD)"
	@echo "make docs          the documentation, into docs/_build"
	@echo "make wheel         the package into dist/, tested in an empty environment, $(VENV)-wheel"
	@echo "make screenshots RUNS=DIR:DIR   screenshots of the report for docs/, from these runs"
	@echo "make clean         remove everything that these commands made, except runs/"

# An interrupted set-up leaves an environment without pip; it is created again.
define environment
@$(@D)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(@D)
endef

$(RUN): pyproject.toml requirements.txt
	$(environment)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	@touch $@

$(DEV): pyproject.toml requirements.txt requirements-dev.txt
	$(environment)
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	@touch $(RUN) $@

$(DOCS): pyproject.toml requirements.txt requirements-docs.txt
	$(environment)
	$(BIN)/python -m pip install --quiet -r requirements-docs.txt
	@touch $(RUN) $@

$(EXTRAS): pyproject.toml requirements.txt requirements-dev.txt requirements-extras.txt requirements-no-deps.txt
	$(environment)
	$(@D)/bin/python -m pip install --quiet -r requirements-extras.txt
	$(@D)/bin/python -m pip install --quiet --no-deps -r requirements-no-deps.txt
	@touch $@

$(FUZZ): pyproject.toml requirements.txt requirements-fuzz.txt
	$(environment)
	$(@D)/bin/python -m pip install --quiet -r requirements-fuzz.txt
	@touch $@

$(PEERS): pyproject.toml requirements.txt requirements-bench.txt
	$(environment)
	$(@D)/bin/python -m pip install --quiet -r requirements-bench.txt
	@touch $@

$(LOWEST): pyproject.toml requirements-lowest.txt
	$(environment)
	$(@D)/bin/python -m pip install --quiet torch==$(LOWEST_TORCH) -r requirements-lowest.txt
	@touch $@

demo: $(RUN)
	$(BIN)/camkd train $(DEMO_FLAGS)

test: $(DEV)
	$(BIN)/python -m pytest -W error

test-fast: $(DEV)
	$(BIN)/python -m pytest -W error -n 2 --dist loadfile -m "not slow and not fault"

test-faults: $(DEV)
	CAMKD_FAULT_TRIES=24 $(BIN)/python -m pytest -W error -m fault

fuzz: $(FUZZ)
	PYTHONPATH=tests $(VENV)-fuzz/bin/python tests/fuzz/atheris_files.py --seconds $(FUZZ_SECONDS)

test-lowest: $(LOWEST)
	$(VENV)-lowest/bin/python -m pytest -W error -n 2 --dist loadfile -m "not slow and not fault"

test-extras: $(EXTRAS)
	$(VENV)-extras/bin/python -m pytest -W error tests_extras

check: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict src
	$(BIN)/lint-imports --no-cache

bench: $(PEERS)
	@set -e; for script in benchmarks/bench_*.py; do echo "== $$script" >&2; $(VENV)-bench/bin/python "$$script"; done

loss-compare: $(RUN)
	$(BIN)/python benchmarks/loss_compare.py $(or $(BASE),HEAD)

docs: $(DOCS)
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

wheel: $(RUN)
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	$(PYTHON) -m venv --clear $(VENV)-wheel
	grep -v '^-e' requirements.txt > $(VENV)-wheel/constraints.txt
	$(VENV)-wheel/bin/python -m pip install --quiet --constraint $(VENV)-wheel/constraints.txt dist/*.whl
	cd $(VENV)-wheel && PYTHONPATH= bin/camkd explain cam-net-cifar10 $(CURDIR)/docs/images/overlay.jpg --out cams.png

screenshots: $(DEV)
	CAMKD_SCREENSHOTS="$(RUNS)" $(BIN)/python -m pytest -W error tests/report/test_report_looks.py -k screenshots

clean:
	rm -rf $(VENV) $(VENV)-bench $(VENV)-extras $(VENV)-fuzz $(VENV)-lowest $(VENV)-wheel build dist docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests tests_extras benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
