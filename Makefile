# `make demo` and `make test` need Python 3.11 and pip alone; each sets up what it needs.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin

.PHONY: setup demo test lint bench clean

$(VENV)/.ready: pyproject.toml media-requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[test]'
	$(BIN)/python -m pip install --quiet --no-deps -r media-requirements.txt
	touch $@

setup: $(VENV)/.ready

demo: setup
	$(BIN)/vfm demo

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m pip install --quiet -e '.[bench]'
	$(BIN)/vfm bench process

clean:
	rm -rf $(VENV) demo-out build dist *.egg-info
