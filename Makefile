PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test slow check bench docs clean

demo: $(VENV)/.installed  ## set up and run the demo
	$(BIN)/codi-engine run
	$(BIN)/codi-engine report runs/demo

test: $(VENV)/.installed-test  ## set up and run the tests
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

slow: $(VENV)/.installed-test  ## the long tests
	$(BIN)/python -m pytest -q -m slow

check: $(VENV)/.installed-test  ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed  ## the figures of the README
	$(BIN)/python -m benchmarks.sweep
	$(BIN)/python benchmarks/studies.py
	$(BIN)/python benchmarks/kernels.py
	$(BIN)/python benchmarks/store.py

docs: $(VENV)/.installed-test  ## the generated references, and the site, in site/
	$(BIN)/python tools/reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt torch -e .
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt torch -e '.[test]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV)
