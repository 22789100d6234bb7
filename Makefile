# Everything a developer or a CI machine calls. Needs Python 3.11, pip and make.
PYTHON ?= python3.11
EXTRAS := s3,gcs,azure,demo,dev
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench clean

help:  ## Print this list.
	@sed -n 's/^\([a-z]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  make %-7s %s\n", $$1, $$2 }'

setup: $(STAMP)  ## Make .venv with everything installed (again when pyproject.toml or constraints.txt change).

# Without ensurepip, which some distributions leave out: the pip of $(PYTHON) installs into the new environment.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv --without-pip .venv
	$(PYTHON) -m pip --python $(BIN)/python install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

demo: setup  ## Run both demo jobs: nearest neighbours; entities and sentiment with their scores.
	HF_HUB_OFFLINE=1 $(BIN)/tidemill run configs/demo.yaml
	$(BIN)/python -m demo.neighbours
	HF_HUB_OFFLINE=1 $(BIN)/tidemill run configs/demo_labels.yaml
	$(BIN)/python -m demo.labels

# One thread for each process: tiny models lose more to threads than they win.
test: setup  ## Run all tests.
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile

check: setup  ## Run all linters: ruff, mypy, import-linter, hadolint.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint docker/Dockerfile.*

bench: setup  ## Measure the memory of the two hardest inputs on this machine.
	$(BIN)/python -m benchmarks.memory long-document
	$(BIN)/python -m benchmarks.memory wide-row-group

clean:  ## Remove the environment and everything built.
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
