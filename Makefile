# Everything a developer or a CI machine calls. Needs Python 3.11, pip and make.
PYTHON ?= python3.11
EXTRAS := s3,gcs,azure,onnx,openvino,delta,lance,demo,dev
BIN := .venv/bin
STAMP := .venv/.installed
KERNELS := .venv-kernels
LOCKER := .venv-lock
AZURITE := tests/emulators/node_modules/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test chaos test-kernels check lock sbom bench clean

help:  ## Print this list.
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  make %-12s %s\n", $$1, $$2 }'

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
test: setup $(AZURITE)  ## Run all tests.
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile

# What `make test` runs of it with few seeds, with many; counts go to build/trust. CHAOS_ARGS goes to pytest.
chaos: setup  ## Run the fault and kill tests and the ledger's simulator with many seeds (hours).
	CHAOS=long OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile \
		$(CHAOS_ARGS) tests/chaos
	$(BIN)/python -m tests.pipeline.ledger.interleave --interleavings 20000

# Azure's emulator, where npm is there; its tests are skipped where it is not.
$(AZURITE): tests/emulators/package.json
	@if command -v npm >/dev/null; then \
		npm install --prefix tests/emulators --ignore-scripts --no-audit --no-fund --no-package-lock --loglevel error \
			&& touch $@ || echo "no emulator of Azure: npm install failed"; \
	else echo "no emulator of Azure: there is no npm"; fi

# An environment of its own, for Triton is large and nothing else on a CPU needs it.
$(KERNELS)/.installed: tests/kernels/requirements.txt constraints.txt
	$(PYTHON) -m venv --without-pip $(KERNELS)
	$(PYTHON) -m pip --python $(KERNELS)/bin/python install --quiet --constraint constraints.txt \
		--requirement tests/kernels/requirements.txt
	@touch $@

test-kernels: $(KERNELS)/.installed  ## Run the tests of the CUDA kernels on the CPU (Linux only).
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 \
		$(KERNELS)/bin/python -m pytest -q tests/kernels --confcutdir=tests/kernels

check: setup  ## Run all linters: ruff, mypy, import-linter, bandit, hadolint.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive jobs pipeline operators
	$(BIN)/hadolint docker/Dockerfile.*

# Of the public index alone: files of this machine would bring hashes that fit nowhere else.
lock: setup  ## Write requirements.lock, with the hashes of all files of the versions in constraints.txt.
	$(PYTHON) -m venv --without-pip $(LOCKER)
	$(PYTHON) -m pip --python $(LOCKER)/bin/python install --quiet pip pip-tools
	mkdir -p build
	$(BIN)/python docker/requirements.py > build/requirements.in
	PIP_CONFIG_FILE=/dev/null PIP_FIND_LINKS= $(LOCKER)/bin/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras \
		--no-annotate --no-header --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
		--constraint constraints.txt --output-file requirements.lock build/requirements.in

sbom: setup  ## Write build/sbom.json: every package of requirements.lock, as CycloneDX.
	mkdir -p build
	$(BIN)/cyclonedx-py requirements --output-format JSON --output-file build/sbom.json requirements.lock

# About two hours on two quiet cores; BENCH_ARGS (as "--rounds 1") goes to the benchmarks of speed.
bench: setup  ## Measure memory and speed on this machine, next to its peers; writes benchmarks/results.
	$(BIN)/python -m benchmarks.memory long-document
	$(BIN)/python -m benchmarks.memory wide-row-group
	$(BIN)/python -m benchmarks.run $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.peers $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.topk
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.ner
	for part in environment correctness deberta-attention end-to-end profile oom; do \
		$(BIN)/python -m benchmarks.gpu $$part --tiny --out build/gpu-dry-run || exit 1; done

clean:  ## Remove the environment and everything built.
	rm -rf .venv $(KERNELS) $(LOCKER) .venv-daft tests/emulators/node_modules build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
