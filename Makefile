# The way in for people and for CI. Everything happens in $(VENV); nothing outside it is touched.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo readme docs test test-slow test-device test-gpu-libraries test-runtimes test-arm64 gpu-check fuzz check format clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 20

install: $(STAMP)  ## create the virtual environment and install edgetl with everything into it

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("edgetl needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --disable-pip-version-check -c constraints.txt -e ".[train,dev]"
	@touch $@

demo: $(STAMP)  ## the whole job, offline, in under three minutes: from nothing beside pretrained, export, bench, report
	$(BIN)/edgetl demo

readme: $(STAMP)  ## run the demo and draw its pictures for the README anew
	$(BIN)/python -m tools.repo.readme_images -o docs/images

docs: $(STAMP)  ## build the documentation into build/site; a warning fails
	@$(BIN)/python -c "import material, mkdocstrings" 2>/dev/null || $(PIP) install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	$(BIN)/python -m mkdocs build --strict

test: $(STAMP)  ## the test suite, about 10 minutes on 2 cores; three workers, as tests also wait
	@# Bytecode, because workers and the processes they start import the same files.
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test-slow: $(STAMP)  ## the tests that take minutes: exhaustive parameters, repeated kills, experiments, accuracy on real photos
	$(BIN)/python -m pytest -m slow

test-device: $(STAMP)  ## verify, predict and bench in fresh environments without torch, one runtime each; RUN=... checks a run or bundle of yours
	$(BIN)/python -m tools.checks.device_install $(RUN)

test-gpu-libraries: $(STAMP)  ## all libraries of the CUDA provider in fresh environments of `train` and `gpu`; 7 GB while it runs
	$(BIN)/python -m tools.checks.cuda_libraries

test-runtimes: $(STAMP)  ## fp32 and int8 in OpenVINO, OpenCV (each in a fresh environment) and Chromium; RUN=... checks a run of yours
	$(BIN)/python -m tools.checks.other_runtimes $(RUN)

test-arm64: $(STAMP)  ## verify, predict and a short bench on emulated aarch64, one runtime after the other; RUN=... checks a run of yours
	PYTHON=$(BIN)/python PATH="$(abspath $(BIN)):$$PATH" tools/checks/arm64/check.sh $(RUN)

gpu-check: $(STAMP)  ## twelve checks on a machine with a GPU, under nine minutes; ARGS="-o DIR"
	$(BIN)/python -m tools.checks.gpu_check $(ARGS)

fuzz: $(STAMP)  ## ten thousand mutated images, runs, checkpoints, weights, presets, caches, results and bundles; ARGS="--seed 1 --target runs"
	$(BIN)/python -m tools.checks.fuzz $(ARGS)

check: $(STAMP)  ## format, lint, types, import contracts, style, documents
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m tools.repo.style
	$(BIN)/python -m tools.repo.docs --check

format: $(STAMP)  ## format the code and regenerate what is generated
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python -m tools.repo.docs

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
