# Every target sets up what it needs: a virtual environment in .venv, made once
# and remade when pyproject.toml or the pins change. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
BACKENDS ?= tensorflow jax torch
JOBS ?= 2

# Windows keeps the interpreter in Scripts, everyone else in bin.
BIN := $(if $(filter Windows_NT,$(OS)),$(VENV)/Scripts,$(VENV)/bin)
PY := $(BIN)/python
export TF_CPP_MIN_LOG_LEVEL ?= 2
export MPLBACKEND ?= Agg
export SHARE ?= 0/1

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-long coverage forget-coverage matrix lint types \
  docs site-test wheel-check release-check audit newcomer translations gallery notebooks \
  bench chaos chaos-data chaos-tuner sample clean

help: ## list the targets, with the time each takes on two cores
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

# The exact versions of CI; pyproject.toml has the ranges of the package.
PINS := tests/constraints/develop.txt
TYPED = make $(or $(firstword $(MAKECMDGOALS)),setup)
PIP = $(PY) scripts/pip_install.py "$(TYPED)" -c $(PINS)

# One word if that Python is new enough; in words that Python 2 understands too.
FOUND = $(shell $(PYTHON) -c 'import sys; print(sys.version.split()[0] + " (too old)" * (sys.version_info < (3, 11)))' 2> /dev/null || echo not there)
REFUSAL = fmkit needs Python 3.11 or newer, and $(PYTHON) is: $(FOUND). Type: $(TYPED) PYTHON=python3.12

$(VENV)/run.stamp: pyproject.toml $(PINS)
	@$(if $(filter 1,$(words $(FOUND))),,$(error $(REFUSAL)))
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	$(PIP) -e '.[test,sources,lint,docs,jax,torch,orbax]' build
	@touch $@

setup: $(VENV)/dev.stamp ## make the virtual environment with all that development needs: 4 min

quickstart: $(VENV)/run.stamp ## set up, then train and judge the network of examples/quickstart.py: 2 min
	$(PY) scripts/quiet.py examples/quickstart.py

# REUSE_COMPILED is for JAX: see tests/conftest.py.
PYTEST = REUSE_COMPILED=yes $(PY) -m pytest -q -n $(JOBS) --dist worksteal

test: $(VENV)/dev.stamp ## set up, then pass the tests on every backend (BACKENDS="jax" for one): 20 min
	@for backend in $(BACKENDS); do \
	  echo "== Keras on $$backend"; \
	  KERAS_BACKEND=$$backend $(PYTEST) -m "not long and not slow" $(COV) || exit 1; \
	done

# `make test-long SHARE=1/8` runs an eighth of them, and all that kill processes.
# One target for each backend, so that `make -j2 -O test-long` passes two side by side.
LONG := $(BACKENDS:%=test-long-%)

test-long: $(LONG) ## set up, then pass the long tests: killed processes, devices, examples: 70 min, an eighth of them with SHARE=1/8

.PHONY: $(LONG)
$(LONG): test-long-%: $(VENV)/dev.stamp
	@echo "== Keras on $*, long"
	@KERAS_BACKEND=$* $(PYTEST) -m "long or slow"

coverage: COV := --cov=fmkit --cov-append --cov-report=
coverage: forget-coverage test ## pass the tests, and name public code that none of them ran: 20 min
	$(PY) scripts/check_coverage.py

forget-coverage:
	rm -f .coverage

matrix: ## pass the core tests on other versions, and write docs/compatibility.md (CORNERS="colab"): 10 min a corner, not timed but estimated
	$(PYTHON) scripts/matrix.py $(CORNERS) --backends $(BACKENDS) --jobs $(JOBS) \
	  $(if $(LARGE),--large) $(if $(filter no,$(RECORD)),--no-record) $(if $(CORE),--core $(CORE))

lint: $(VENV)/dev.stamp ## ruff: style and formatting: 1 s
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev.stamp ## mypy --strict over the package: 15 s
	$(PY) -m mypy

docs: $(VENV)/dev.stamp ## build the reference site into site/: half a minute
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict -q

site-test: docs ## look at every page of the site in headless Chromium: 5 min
	$(PY) scripts/check_site.py

wheel-check: $(VENV)/dev.stamp ## build the wheel and try it in an empty environment: 3 min
	$(PY) scripts/check_wheel.py

release-check: $(VENV)/dev.stamp ## what must hold before a release, on every Python there is (PYTHONS="..."): half an hour for each Python, not timed but estimated
	$(PY) scripts/check_release.py $(PYTHONS)

audit: $(VENV)/run.stamp ## compare the installed dependencies with PyPI's known advisories: 1 min, not timed but estimated
	$(PYTHON) -m venv $(VENV)-audit
	$(subst $(VENV),$(VENV)-audit,$(PY)) -m pip install -q --disable-pip-version-check pip-audit
	$(PY) -m pip freeze --exclude-editable > $(VENV)-audit/installed.txt
	@# --strict: a package that could not be looked up is a failure, not a pass.
	$(subst $(VENV),$(VENV)-audit,$(PY)) -m pip_audit --strict --progress-spinner off \
	  --disable-pip --no-deps -r $(VENV)-audit/installed.txt

newcomer: ## time a newcomer's way: clone, set up, train, first figure: 4 min
	$(PYTHON) scripts/time_newcomer.py

translations: ## fail if a Chinese page is missing or older than the English one: 1 s
	$(PYTHON) scripts/translations.py

gallery: $(VENV)/dev.stamp ## run the examples that changed, at full size, and write their figures: 40 min for all
	$(PY) scripts/make_gallery.py

notebooks: ## write the notebooks of the tutorials' programs, in English and Chinese: 1 s
	$(PYTHON) scripts/make_notebooks.py

bench: $(VENV)/dev.stamp ## run the benchmarks and print the table of ratios: 2 h
	$(PY) -m benchmarks

chaos: $(VENV)/dev.stamp ## kill trainings for a long time and compare every bit: an hour, not timed but estimated
	@for b in $(BACKENDS); do \
	  KERAS_BACKEND=$$b $(PY) tests/chaos/lab.py --kills 200 || exit 1; \
	done

chaos-data: $(VENV)/dev.stamp ## kill trainings on each kind of data, and compare every bit: an hour, not timed but estimated
	@for b in $(BACKENDS); do \
	  KERAS_BACKEND=$$b $(PY) tests/chaos/lab.py --kills 192 --data || exit 1; \
	done

chaos-tuner: $(VENV)/dev.stamp ## kill a worker of Keras Tuner, then its chief, and compare every score: 10 min, not timed but estimated
	@for b in $(BACKENDS); do for victim in worker chief; do \
	  KERAS_BACKEND=$$b $(PY) tests/chaos/tuner.py $$victim || exit 1; \
	done; done

sample: $(VENV)/run.stamp ## remake the bundled sample from the full Fashion-MNIST files: 10 s
	$(PY) scripts/make_sample.py

clean: ## remove what the targets made: 1 s
	rm -rf $(VENV) $(VENV)-audit .matrix site dist outputs
