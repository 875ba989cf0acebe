# Two commands set everything up:
#   make demo   align the small built-in SDXL on this machine's CPU and write runs/demo/report.html
#   make test   lint, types and the whole test suite
# Both make .venv from the hash-locked pins in requirements.lock when it is missing or out of date.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_DIR ?= runs/demo
# Once more as on another processor, with old kernels. tests/rounding.py goes further: rounding that depends on the shapes.
OLD_PROCESSOR := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41
SLICE := tests/evaluation/test_generate.py tests/evaluation/test_negative.py tests/training/test_train.py \
	tests/training/test_precomputed.py tests/personal/test_adapter.py tests/personal/test_pipeline.py \
	tests/personal/test_training.py tests/rewards/test_score.py tests/reward_models/test_golden_scores.py \
	tests/shapes/test_pairs.py tests/backbones/test_backbone.py tests/backbones/test_training.py
LOCK_STAMP := $(VENV)/.lock-installed
PACKAGE_STAMP := $(VENV)/.package-installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint format docs notebooks lock clean

help:
	@echo "make demo       align the built-in small model and write $(DEMO_DIR)/report.html"
	@echo "make test       ruff, mypy and the test suite"
	@echo "make lint       ruff and mypy only"
	@echo "make format     let ruff rewrite the sources"
	@echo "make docs       build the documentation into site/"
	@echo "make notebooks  run the notebooks and keep their pictures"
	@echo "make lock       resolve requirements.in into requirements.lock again (needs uv)"
	@echo "make clean      remove build products and caches (keeps .venv and runs/)"

demo: $(PACKAGE_STAMP)
	$(BIN)/t2i-align demo --output-dir $(DEMO_DIR)

test: lint
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q
	$(OLD_PROCESSOR) HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q $(SLICE)

lint: $(PACKAGE_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy t2i_align reward_models

format: $(PACKAGE_STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(PACKAGE_STAMP)
	$(BIN)/mkdocs build --strict

notebooks: $(PACKAGE_STAMP)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python notebooks/execute.py

# Not part of any other target: the lock changes only when somebody decides so.
lock:
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--output-file requirements.lock requirements.in

clean:
	rm -rf build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find t2i_align reward_models tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A virtual environment that was interrupted while it was made has no working pip: start it again.
$(LOCK_STAMP): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
		echo "t2i_align needs Python 3.11, 3.12 or 3.13; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
		echo "Name another one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --require-hashes -r requirements.lock
	@touch $@

$(PACKAGE_STAMP): $(LOCK_STAMP) setup.cfg pyproject.toml
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	@touch $@
