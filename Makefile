# Every target sets up what it needs: a virtual environment in .venv with the pinned versions of constraints/cpu.txt.
PYTHON ?= python3
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CONSTRAINTS := constraints/cpu.txt
TORCH := $(shell sed -n 's/^\(torch==.*\)/\1/p' $(CONSTRAINTS))

.PHONY: setup demo test test-gpu test-faults check docs clean

setup: $(READY)

# torch first and alone: its CPU build lives on an index of its own, which nothing else needs to ask, and which may be
# out of reach; then the usual index is enough.
$(READY): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python >= 3.11 is needed; this is $$($(PYTHON) --version). Try make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --retries 1 --timeout 15 --extra-index-url $(TORCH_INDEX) $(TORCH) || \
	  $(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e ".[dev]"
	@touch $@

demo: setup
	$(BIN)/dna-mamba pretrain

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Each of the two workers computes in one thread: on two cores that takes 10 minutes, one worker with two threads 17.
WORKERS ?= 2
test: check
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu" -n $(WORKERS) --dist loadscope

# On a machine with a GPU, in an environment that has a CUDA build of torch: make test-gpu GPU_PYTHON=python3
GPU_PYTHON ?= $(BIN)/python
test-gpu:
	$(GPU_PYTHON) -m pytest -m gpu

# Fifty kills of each command, 7 minutes on two cores; make test tries three.
test-faults: setup
	KILLS=50 OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_faults.py -n $(WORKERS)

docs: setup
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e ".[docs]"
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site *.egg-info
