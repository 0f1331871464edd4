VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin

.PHONY: demo test check lint types units oldest bench docs clean

demo: $(VENV)/.ready-to-run  ## train a convolutional net on real images
	sh scripts/install-fashion-mnist.sh
	$(BIN)/hotloop devices
	$(BIN)/hotloop train --data auto --epochs 3

test: $(VENV)/.ready-to-develop  ## lint, types and tests
	$(MAKE) lint types units

check: test

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types:
	$(BIN)/mypy

# one thread a process, for there are as many processes as cores; equality of bits with all threads
units:
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile
	$(BIN)/python -m pytest tests/parity

# on Linux the package index has torch 2.6 with CUDA: 6 GB in the environment
oldest:  ## the tests with the oldest versions that pyproject.toml allows
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable '.[dev]'
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -n auto --maxprocesses 8 --dist loadfile \
		-W "ignore:np.find_common_type:DeprecationWarning" \
		-W "ignore:'click.utils:DeprecationWarning"

bench: $(VENV)/.ready-to-develop  ## the image job beside the peers that are installed
	$(BIN)/python -m benchmarks.run image

docs: $(VENV)/.ready-to-develop  ## run the notebooks and keep their outputs
	$(BIN)/python docs/build_notebooks.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready-to-run: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.ready-to-develop: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .venv-oldest
