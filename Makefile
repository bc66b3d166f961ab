# Caravan's commands. `make help` lists them.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
EXTRAS ?= dev

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format bench clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

setup: $(VENV)/.installed ## Install everything into .venv

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --upgrade pip
	$(BIN)/python -m pip install -qq --editable '.[$(EXTRAS)]'
	touch $@

demo: setup ## Run the whole recipe on this machine (about ten minutes) and show what each stage changed
	$(BIN)/caravan run pipelines/recipes/pocket.yaml

test: setup check ## Run the tests
	$(BIN)/python -m pytest

check: setup ## Format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup ## Run the benchmarks (minutes to hours)
	$(BIN)/python -m tests.benchmarks

clean: ## Remove the environment and caches (not the runs in .caravan)
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
