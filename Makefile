# `make` lists the targets. `make demo` is the quickest way from a checkout to pictures of samples.

PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
DEV := .venv/.dev
DOCS := .venv/.docs
BROWSER := .venv/browser/.done

.DEFAULT_GOAL := help
.PHONY: help venv demo test browser lint types docs clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(DEV)  ## create .venv with the library and the development tools

# The stamp files record the time of the last installation, so that nothing is reinstalled until a requirement changes.
$(DEV): setup.cfg pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

$(DOCS): $(DEV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,docs]'
	@touch $@

demo: venv  ## train a small model, draw samples and compute likelihoods, with pictures in demo/
	@mkdir -p demo
	@set -e; cd demo; PATH="$(BIN):$$PATH"; \
	run() { printf '\n$$ %s\n' "$$*"; "$$@"; }; \
	if ls runs/digits-vp/checkpoints/step-* > /dev/null 2>&1; then run scoresde train --resume runs/digits-vp; \
	else run scoresde train --sde vp; fi; \
	run scoresde sample --solver ode --rtol 1e-5; \
	run scoresde likelihood; \
	printf '\nPictures in demo/:\n'; find . -name '*.png' | sort | sed 's|^\./|  |'

# One process per core, with one thread each. Without the limit, the threads of all processes would compete for cores.
test: venv  ## run the tests
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 .venv/bin/python -m pytest -n auto

# Chromium is that of the system. Playwright drives it, and axe-core finds faults of accessibility.
$(BROWSER): $(DEV)
	command -v chromium > /dev/null || command -v google-chrome > /dev/null || { apt-get update -qq && apt-get install -y -qq chromium > /dev/null; }
	$(BIN)/python -m pip install -q -c constraints.txt playwright
	npm install --silent --no-save --prefix .venv/browser axe-core@4.14
	@touch $@

browser: $(BROWSER)  ## install what the tests of pages in a browser need (Node 20 or later must be there)

lint: venv  ## check the style
	$(BIN)/ruff check

types: venv  ## check the types
	$(BIN)/mypy scoresde

docs: $(DOCS)  ## build the manual in docs/_build/html
	$(BIN)/sphinx-build -W -b html docs docs/_build/html

clean:  ## remove build products and caches, but not .venv, demo/ or runs/
	rm -rf build dist *.egg-info docs/_build docs/_gallery .pytest_cache .mypy_cache .ruff_cache
	find scoresde tests docs experiments -name __pycache__ -type d -prune -exec rm -rf {} +
