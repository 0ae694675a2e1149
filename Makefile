# Every target sets up what it needs: a virtual environment in .venv with the pinned versions of constraints/cpu.txt.
PYTHON ?= python3
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CONSTRAINTS := constraints/cpu.txt
TORCH := $(shell sed -n 's/^\(torch==.*\)/\1/p' $(CONSTRAINTS))

.PHONY: setup demo test test-gpu test-faults test-long fuzz audit check docs clean

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
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu" -n $(WORKERS) --dist loadscope --no-loadscope-reorder

# On a machine with a GPU, in an environment that has a CUDA build of torch: make test-gpu GPU_PYTHON=python3
GPU_PYTHON ?= $(BIN)/python
test-gpu:
	$(GPU_PYTHON) -m pytest -m gpu

# Fifty kills of packing, saving, embedding and scoring each (make test tries three), and one line of a gigabyte.
test-faults: setup
	KILLS=50 OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_faults.py \
	  tests/bad_input/test_fasta.py -n $(WORKERS) -rP

# Twenty minutes of training, killed 44 times, beside a run that is left alone: same bytes, flat memory and open files.
LONG_OUT ?= runs/long
test-long: setup
	PYTHONPATH=. $(BIN)/python tests/long_run.py --minutes 20 --kills 44 --out $(LONG_OUT)

# Coverage-guided fuzzing of everything that reads files.
FUZZ_MINUTES ?= 10
fuzz: setup
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e ".[fuzz]"
	$(BIN)/python -m tests.fuzz.run --minutes $(FUZZ_MINUTES)

# Known holes in the pinned versions: those in constraints/advisories.toml without a network, all others with one.
audit: setup
	$(BIN)/python -m pytest -q tests/test_security.py
	$(PYTHON) -m venv $(VENV)-audit && $(VENV)-audit/bin/python -m pip install --quiet pip-audit
	$(VENV)-audit/bin/pip-audit -r $(CONSTRAINTS) --no-deps --disable-pip

docs: setup
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e ".[docs]"
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) $(VENV)-audit build dist site *.egg-info
