# Every target below works alone in a fresh clone: the environment .venv is made, and brought up to date, when needed.
#   PYTHON=python3.12         the interpreter that makes .venv
#   PIP_FLAGS="--index-url …" other package indexes, e.g. https://download.pytorch.org/whl/cpu for a torch without CUDA
PYTHON ?= python3
PIP_FLAGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq $(PIP_FLAGS) -c constraints.txt
NATIVE := $(shell find csrc -type f)

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(BIN)/pad-fast distill

test: $(VENV)/.installed lint
	$(BIN)/python -m pytest --cov

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy pad_fast

clean:
	rm -rf $(VENV) build dist *.egg-info pad_fast/_C.*.so pad_fast/_build.json
	rm -rf .coverage .mypy_cache .pytest_cache .ruff_cache

# torch first and pinned: left to the resolver, it can bring gigabytes of CUDA packages that a CPU never uses.
# The build tools next, because the extension is built without isolation: rebuilds then only compile what changed.
$(VENV)/.installed: pyproject.toml setup.py constraints.txt pad_fast/_version.py $(NATIVE) | $(BIN)/python
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) setuptools pybind11 ninja
	$(PIP) --no-build-isolation --editable '.[test]'
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
