# What can be done here; `make help` lists it. Each target works on a clean checkout, sets up what it needs and can be repeated.
# Needs Python 3.11 or later, bash and, once, a package index. Environments live in $XDG_CACHE_HOME/edgert-ci (~/.cache), not here.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
PYTHON311 ?= $(firstword $(wildcard /usr/bin/python3.11) python3.11)
TESTS ?= tests
PYTEST_ARGS ?=
# Two workers: the machines this is meant for have few cores, and the tests start processes of their own.
PYTEST := -m pytest -n 2 --dist loadfile --timeout 600
BIN := .venv/bin

# Without ONNX, and with the lower ends of the ranges: the tests that need nothing else.
TFLITE_RUNTIME_TESTS := tests/packaging/test_environments.py
LOW_TESTS := tests

.PHONY: help setup demo test lint check-imports tests test-py313 test-tflite-runtime test-numpy-low suite fuzz bench \
  software-devices lock clean clean-cache

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

test-py313: ## all tests under Debian 13's own Python 3.13 (root: uses a chroot in the cache)
	@PYTHON="$(PYTHON)" .ci/py313 -n 2 --dist loadfile --timeout 600 $(PYTEST_ARGS) $(TESTS)

test-tflite-runtime: ## the tests of a board that has tflite-runtime and numpy 1 only (Python 3.11)
	@.ci/environment tflite-runtime requirements/tflite-runtime.txt "$(PYTHON311)"
	@echo "== tests with tflite-runtime"
	@EDGERT_EXPECT=tflite-runtime .venv-tflite-runtime/bin/python $(PYTEST) $(PYTEST_ARGS) $(TFLITE_RUNTIME_TESTS)

test-numpy-low: ## the tests with the lower end of every range in pyproject.toml, numpy 1.24 among them (Python 3.11)
	@.ci/environment low requirements/low.txt "$(PYTHON311)"
	@echo "== tests with the oldest packages that are promised"
	@EDGERT_EXPECT=low .venv-low/bin/python $(PYTEST) $(PYTEST_ARGS) $(LOW_TESTS)

suite: setup ## the ONNX standard's own test suite through edgert, in two shards
	@echo "== the ONNX suite"
	@$(BIN)/python -m bench.suite --shards 2

fuzz: setup ## mutate model files at the readers; SECONDS_=600 for how long
	@echo "== fuzzing the readers"
	@$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS_),600)

bench: setup ## build the zoo and measure edgert beside every single target; minutes
	@echo "== the zoo"
	@$(BIN)/python -m bench.zoo $${XDG_CACHE_HOME:-$$HOME/.cache}/edgert-ci/zoo
	@$(BIN)/edgert bench $${XDG_CACHE_HOME:-$$HOME/.cache}/edgert-ci/zoo/*

software-devices: setup ## a software GPU and an NPU library, as gpu:0 and npu:0 of this machine
	@echo "== software devices"
	@$(BIN)/python cross/software_devices.py

lock: ## write requirements/*.txt anew from pyproject.toml
	@PYTHON="$(PYTHON)" .ci/lock

clean: ## remove what was made in this checkout
	rm -rf .venv .venv-* build dist edgert.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

clean-cache: ## remove the environments that are kept outside the checkout
	rm -rf --one-file-system "$${EDGERT_CI_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/edgert-ci}"
