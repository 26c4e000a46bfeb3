# What can be done here; `make help` lists it. Each target works on a clean checkout, sets up what it needs and can be repeated.
# Needs Python 3.11 or later, bash and, once, a package index. Environments live in $XDG_CACHE_HOME/edgert-ci (~/.cache), not here.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
# Debian 12's own, where there is one.
PYTHON311 ?= $(firstword $(wildcard /usr/bin/python3.11) python3.11)
TESTS ?= tests
FUZZ_S ?= 600
SOLVERS ?= 10000
CUTS ?= 50
CACHE := $(or $(EDGERT_CI_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/edgert-ci)
PYTEST_ARGS ?=
SUITE_ARGS ?=
# Two workers: the machines this is meant for have few cores, and the tests start processes of their own.
PYTEST := .ci/tests.py -n 2 --dist loadfile --timeout 600
BIN := .venv/bin

# What the oldest and the newest packages may break: readers, backends, files, messages, the public API. Left out is what does not
# depend on versions and takes long: whole machines, random problems for the solvers, plans of real splits, faults, other hosts.
OTHER_TESTS := $(addprefix tests/,apps cli devices formats packaging serving transport) $(wildcard tests/test_*.py)

# The tests that need neither ONNX nor ml_dtypes.
TFLITE_RUNTIME_TESTS := tests/packaging/test_environments.py \
  $(patsubst %,tests/test_%.py,errors graph machine plan profile store transforms)

.PHONY: help setup demo test lint tests test-py313 test-tflite-runtime test-numpy-low suite fuzz cuts solvers bench \
  software-devices test-cross test-systemd deb icount lock clean clean-cache

help: ## list the targets
	@echo "edgert: what make can do"
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | awk -F'\t' '{ printf "  %-22s %s\n", $$1, $$2 }'

setup: ## make .venv: the locked packages and this checkout
	@.ci/environment main requirements/ci.txt "$(PYTHON)"

demo: setup ## set up, then place a trained network on this machine and let it read real digits
	@echo "== edgert demo"
	@$(BIN)/edgert demo

test: lint tests ## set up, check the code and run all tests

lint: setup ## ruff, mypy --strict and the contract of imports
	@echo "== ruff"
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@echo "== mypy --strict"
	@$(BIN)/python -m mypy
	@echo "== imports go down only"
	@$(BIN)/lint-imports

tests: setup ## the tests alone; TESTS=tests/formats for some, PYTEST_ARGS=... for more options
	@echo "== tests ($$($(BIN)/python -V))"
	@$(BIN)/python $(PYTEST) $(PYTEST_ARGS) $(TESTS)

test-py313: ## the tests that versions may break, under Debian 13's own Python 3.13 (root: uses a chroot in the cache)
	@PYTHON="$(PYTHON)" .ci/py313 -n 2 --dist loadfile --timeout 600 $(PYTEST_ARGS) $(OTHER_TESTS)

test-tflite-runtime: ## the tests of a board that has tflite-runtime and numpy 1 only (Python 3.11)
	@.ci/environment tflite-runtime requirements/tflite-runtime.txt "$(PYTHON311)"
	@echo "== tests with tflite-runtime"
	@EDGERT_EXPECT=tflite-runtime .venv-tflite-runtime/bin/python $(PYTEST) $(PYTEST_ARGS) $(TFLITE_RUNTIME_TESTS)

test-numpy-low: ## the tests that versions may break, with the lower end of every range in pyproject.toml, numpy 1.24 among them (Python 3.11)
	@.ci/environment low requirements/low.txt "$(PYTHON311)"
	@echo "== tests with the oldest packages that are promised"
	@EDGERT_EXPECT=low .venv-low/bin/python $(PYTEST) $(PYTEST_ARGS) $(OTHER_TESTS)

suite: setup ## the ONNX standard's own test suite through edgert, in two shards side by side; SUITE_ARGS=--given-inputs, ...
	@echo "== the ONNX suite (report: $(CACHE)/suite)"
	@mkdir -p $(CACHE)/suite; \
	for shard in 0 1; do \
	  $(BIN)/python tests/suite/onnx_suite.py --shard $$shard/2 $(SUITE_ARGS) --report $(CACHE)/suite/$$shard.json & pids+=" $$!"; \
	done; \
	for pid in $$pids; do wait $$pid; done; \
	$(BIN)/python tests/suite/onnx_suite.py --merge $(CACHE)/suite/0.json $(CACHE)/suite/1.json \
	  --fewest 2010 --most-reference 330

cuts: setup ## cut the zoo (and EDGERT_MODELS) at CUTS=50 places a model, and the suite's cases: the answer stays
	@echo "== cut models"
	@EDGERT_CUTS=$(CUTS) $(BIN)/python $(PYTEST) $(PYTEST_ARGS) -m 'cuts or not cuts' \
	  tests/execution/test_segments.py tests/execution/test_suite_cuts.py

solvers: setup ## hold the placement solvers to trying everything, on SOLVERS=10000 random problems of each kind
	@echo "== solvers against trying everything"
	@EDGERT_PARTITIONER_EXAMPLES=$(SOLVERS) $(BIN)/python .ci/tests.py -n 2 --dist load --timeout 3000 $(PYTEST_ARGS) \
	  tests/partitioner/test_solve.py

fuzz: setup ## mutate model files at the readers for FUZZ_S=600 seconds
	@echo "== fuzzing the readers"
	@$(BIN)/python -m tests.fuzz --seconds $(FUZZ_S)

bench: setup ## build the zoo and measure edgert beside every single target; minutes
	@echo "== the zoo"
	@$(BIN)/python -m bench.zoo $(CACHE)/zoo
	@$(BIN)/edgert bench $(CACHE)/zoo/*

test-cross: setup ## edgert on emulated Raspberry Pis and others; BOARDS=pi4 for some, DOC=1 writes docs/boards.md
	@echo "== emulated boards"
	@rm -f $(CACHE)/boards/results.jsonl; mkdir -p $(CACHE)/boards
	@EDGERT_BOARDS=1 EDGERT_BOARDS_RESULTS=$(CACHE)/boards/results.jsonl $(BIN)/python .ci/tests.py -n 2 --dist loadgroup \
	  --timeout 3000 $(PYTEST_ARGS) $(if $(BOARDS),-k "$(BOARDS)") tests/cross
	@$(if $(DOC),$(BIN)/python -m cross.table $(CACHE)/boards/results.jsonl,:)

deb: setup ## Debian packages for arm64, armhf and amd64 in dist/deb; ARCH=arm64 for one
	@echo "== Debian packages"
	@$(BIN)/python cross/deb/build.py --out dist/deb --cache $(CACHE)/deb $(foreach arch,$(ARCH),--architecture $(arch))

test-systemd: setup ## the Debian package under a real systemd, booted in a container (root)
	@echo "== systemd"
	@rm -rf $(CACHE)/deb-made
	@$(BIN)/python cross/deb/build.py --out $(CACHE)/deb-made --cache $(CACHE)/deb
	@EDGERT_SYSTEMD=1 EDGERT_DEBS=$(CACHE)/deb-made $(BIN)/python .ci/tests.py -s --timeout 900 $(PYTEST_ARGS) \
	  tests/system/test_deb.py tests/system/test_pipx.py tests/system/test_systemd.py tests/system/test_executor_unit.py \
	  tests/system/test_memory_max.py tests/system/test_howto.py

icount: setup ## guest instructions per inference against the committed table; WRITE=1 writes it
	@echo "== instruction counts"
	@$(BIN)/python -m cross.icount $(if $(WRITE),--write)

software-devices: setup ## a software GPU and an NPU library, as gpu:0 and npu:0 of this machine
	@echo "== software devices"
	@$(BIN)/python cross/software_devices.py --prefix $(CACHE)/software-devices --python "$$PWD/$(BIN)/python"

lock: ## write requirements/*.txt anew from pyproject.toml
	@PYTHON="$(PYTHON)" .ci/lock

clean: ## remove what was made in this checkout
	rm -rf .venv .venv-* build dist edgert.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

clean-cache: ## remove the environments that are kept outside the checkout
	rm -rf --one-file-system "$(CACHE)"
