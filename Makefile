# The project's commands. Each makes what it needs first: .venv, the packages in it, the compiled library.
# How the library is compiled: setup.py. What is installed: pyproject.toml.

PYTHON ?= python3
# Pinned, since a bare `torch` brings several gigabytes of CUDA packages on Linux; a pin takes the small build
# for the CPU (2.13.0+cpu) where the package index has one. Another: `make test TORCH=torch`.
TORCH ?= torch==2.13.0
# Passed on to pytest: `make test ARGS="-k seeds -x"`.
ARGS ?=
# Tests run side by side in so many processes (tests/conftest.py); 1: in one, where ARGS=--pdb works. Eight at most, since each
# comes to 1.5 gigabytes.
WORKERS ?= $(shell n=$$(nproc); echo $$((n < 8 ? n : 8)))

BIN := .venv/bin
# One stamp per value of TORCH, so that another value installs again.
PACKAGES := .venv/.packages-$(shell echo '$(TORCH)' | cksum | cut -d' ' -f1)
LIBRARY := .venv/.library
INSTALLED := .venv/.installed
READY := $(LIBRARY) $(INSTALLED)
# Folders too: their date changes when a file is removed.
SOURCES := setup.py pyproject.toml $(shell find csrc)
FORMATTED := $(shell find csrc tests/cpu tests/shim -name '*.cpp' -o -name '*.h' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh')

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test gpu build docs wheel lint format clean
help:  ## list the commands
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 16

demo: $(READY)  ## the main job on real data: train, compare with torch.nn, time, plot
	$(BIN)/python -m benchmarks.demo

test: $(READY)  ## run the tests
	$(BIN)/python -m pytest $(if $(filter-out 0 1,$(WORKERS)),-n $(WORKERS)) $(ARGS)

# With the Python that has a torch for CUDA, not with .venv: on a machine with a GPU there may be no network.
gpu:  ## on a machine with an NVIDIA GPU: build, run the CUDA tests, measure (nine minutes)
	$(PYTHON) -m benchmarks.gpu

build: $(READY)  ## compile the library and install it in .venv, editable

docs: $(READY)  ## build the site into docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

# From the sdist, so that it is known to build.
wheel: $(READY)  ## build dist/*.tar.gz and, from it, dist/*.whl; try the wheel where there is no compiler
	@rm -rf dist build/sdist && mkdir -p build/sdist
	@$(BIN)/python -c 'from setuptools import build_meta as b; b.build_sdist("dist")' > build/sdist/log 2>&1 \
	  || { cat build/sdist/log; exit 1; }
	@echo "Compiling from the sdist: a minute or two."
	@tar -xzf dist/*.tar.gz -C build/sdist --strip-components=1
	@cd build/sdist && BIRNN_WHEEL_LABEL=1 $(abspath $(BIN))/python -c 'from setuptools import build_meta as b; b.build_wheel("../../dist")' > log 2>&1 \
	  || { cat log; exit 1; }
	BIRNN_WHEEL=$$(ls dist/*.whl) $(BIN)/python -m pytest -q tests/test_wheel.py
	@ls dist

lint: $(PACKAGES)  ## check style and format of Python and C++, and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run --Werror $(FORMATTED)
	$(BIN)/mypy

format: $(PACKAGES)  ## put Python and C++ into format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(FORMATTED)

clean:  ## remove what was compiled (not .venv)
	rm -rf build dist *.egg-info birnn_ext/_C*.so birnn_ext/_built.py docs/_build docs/_generated $(READY)

# Only once: an editable install finds each later library by itself.
$(INSTALLED): $(PACKAGES) setup.py pyproject.toml | $(LIBRARY)
	@$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

$(LIBRARY): $(PACKAGES) $(SOURCES)
	@echo "Compiling birnn_ext: a minute or two the first time, then only what has changed."
	@$(BIN)/python setup.py build_ext --inplace > .venv/build.log || { cat .venv/build.log; exit 1; }
	@touch $@

$(PACKAGES): pyproject.toml Makefile | $(BIN)/python
	@$(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb")); \
	  extras = p["project"]["optional-dependencies"].values(); \
	  print(*p["build-system"]["requires"], *sum(extras, []), sep="\n")' > .venv/requirements.txt
	$(BIN)/python -m pip install '$(TORCH)' -r .venv/requirements.txt
	@rm -f .venv/.packages-* && touch $@

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || \
	  { echo "birnn_ext: $(PYTHON) not found: install Python 3.11 or newer, or name it: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "birnn_ext: Python 3.11 or newer is needed: $(PYTHON) is $$($(PYTHON) -V); name another: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "birnn_ext: $(PYTHON) cannot make a virtual environment (Debian: apt-get install python3-venv)." >&2; exit 1; }
	$(PYTHON) -m venv .venv
