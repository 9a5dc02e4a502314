# Two commands do everything on a fresh machine: `make run` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
SUBJECT ?= cat
# Without an NVIDIA GPU, a smaller torch: make run TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
TORCH_ARGS = $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))

KILLS ?= 20
WORKERS ?= 2
BY_FILE = -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help run test coverage slow chaos lint format docs audit licences clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -q -c constraints.txt $(TORCH_ARGS) torch
	$(PIP) install -q -c constraints.txt -e ".[test,dev]"
	@touch $@

run: $(VENV)/.installed  ## set up, then personalize on five pictures of a cat and write the report (SUBJECT=dog for a dog)
	$(VENV)/bin/python -m personalar.run +subject=$(SUBJECT) stage=both

test: $(VENV)/.installed  ## set up, then run the tests (no network, no GPU)
	$(VENV)/bin/python -m pytest -q $(BY_FILE)

coverage: $(VENV)/.installed  ## run the tests and print the coverage of personalar/
	$(VENV)/bin/python -m coverage erase
	$(VENV)/bin/python -m coverage run -m pytest -q $(BY_FILE)
	$(VENV)/bin/python -m coverage combine -q
	$(VENV)/bin/python -m coverage report --skip-covered --sort=cover

slow: $(VENV)/.installed  ## set up, then run the slow tests, which `make test` skips
	$(VENV)/bin/python -m pytest -q -m slow -n $(WORKERS) --dist load

chaos: $(VENV)/.installed  ## try all faults, KILLS kills (default: 20) and bad input; write docs/reliability.md
	$(VENV)/bin/python tests/fixtures/chaos.py --kills $(KILLS)

lint: $(VENV)/.installed  ## check style and types
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m mypy

format: $(VENV)/.installed  ## fix style
	$(VENV)/bin/python -m ruff check --fix .
	$(VENV)/bin/python -m ruff format .

docs: $(VENV)/.installed  ## build the site of docs/ in site/; broken links are errors
	$(PIP) install -q -c constraints.txt -e ".[docs]"
	$(VENV)/bin/python -m mkdocs build --strict

audit: $(VENV)/.installed  ## check the tested versions for known vulnerabilities (uses PyPI)
	$(PYTHON) -m venv $(VENV)-audit && $(VENV)-audit/bin/python -m pip install -q pip-audit
	$(VENV)-audit/bin/pip-audit -r constraints.txt --disable-pip --no-deps

licences: $(VENV)/.installed  ## update docs/licences.md
	$(PYTHON) -m venv $(VENV)-audit && $(VENV)-audit/bin/python -m pip install -q pip-licenses
	sed '/^|/,$$d' docs/licences.md > docs/licences.tmp
	$(VENV)-audit/bin/pip-licenses --python $(VENV)/bin/python --from=mixed --format=markdown --no-version \
		--ignore-packages personalar pip setuptools >> docs/licences.tmp
	mv docs/licences.tmp docs/licences.md

clean:  ## remove the virtual environment and caches; never touches outputs/
	rm -rf $(VENV) $(VENV)-audit build dist site .pytest_cache .ruff_cache .mypy_cache .coverage*
