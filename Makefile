# Caravan's commands. `make help` lists them.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
EXTRAS ?= dev
PEERS_PYTHON ?= python3.12

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-tools test-gpu test-vllm test-cluster images check format bench peers clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

setup: $(VENV)/.installed ## Install everything into .venv

$(VENV)/.installed: pyproject.toml images/stage-cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --upgrade pip
	$(BIN)/python -m pip install -qq --constraint images/stage-cpu.txt --editable '.[$(EXTRAS)]'
	touch $@

demo: setup ## Run the whole recipe on this machine (five to twenty minutes) and show what each stage changed
	$(BIN)/caravan run pipelines/recipes/pocket.yaml

# Of two cores two files at a time leave a quarter idle, as tests wait for processes; and threads of
# one test would wait for cores that another has.
test: setup test-tools check ## Run the tests, three files at a time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder --durations 25

# What tests need beside Python packages: a browser, NLTK's sentence model (which llama-index-core
# carries; its own dependencies are not needed), and checkov, which wants packages of its own.
test-tools: setup .venv-checkov/.installed
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium >/dev/null; }
	@test -d $(VENV)/lib/python*/site-packages/llama_index/core/_static || \
		$(BIN)/python -m pip install -qq --no-deps 'llama-index-core>=0.14,<0.15'

.venv-checkov/.installed:
	$(PYTHON) -m venv .venv-checkov
	.venv-checkov/bin/pip install -qq 'checkov>=3.2,<4'
	touch $@

test-gpu: setup ## Run the tests of what runs on an NVIDIA GPU only (EXTRAS=dev,train-gpu,qlora)
	$(BIN)/python -m pytest -m gpu

# vLLM wants packages of its own, so it gets an environment of its own. It asks for torchvision,
# torchaudio and torchcodec, which text models do not use and which have no CPU build everywhere.
test-vllm: setup .venv-vllm/.installed ## Run the tests of the vLLM engine, of exports and of rollouts, on the CPU
	VLLM_CPU_KVCACHE_SPACE=1 .venv-vllm/bin/python -m pytest tests/inference/test_vllm.py \
		tests/release/test_export_vllm.py tests/rl/test_vllm.py

.venv-vllm/.installed: pyproject.toml
	$(BIN)/python -m pip install -qq uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-vllm
	printf '%s; sys_platform == "never"\n' torchvision torchaudio torchcodec > .venv-vllm/overrides.txt
	UV_FIND_LINKS="$$PIP_FIND_LINKS" $(BIN)/uv pip install --quiet --python .venv-vllm/bin/python \
		--override .venv-vllm/overrides.txt --editable '.[train,deepspeed,vllm-cpu]' pytest pytest-timeout hypothesis
	touch $@

test-cluster: setup test-tools ## Run the tests on a Kubernetes cluster: KUBECONFIG's, kind's, or a node built from Debian's packages
	tests/cluster/cluster.sh test

images: ## Build the container images with podman, buildah or docker
	images/build.sh

check: setup ## Format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check --no-cache .
	$(BIN)/mypy

format: setup ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup test-tools peers ## Run the benchmarks (minutes to hours)
	$(BIN)/python -m tests.benchmarks

# What the registry and the data side are measured against wants packages of its own.
peers: .venv-peers/.installed .venv-trackers/.installed ## Install what benchmarks are measured against (with Python 3.12)

.venv-peers/.installed:
	$(PEERS_PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install -qq 'datasketch>=2,<3' 'decontaminate==0.3.0.post4' 'rensa>=0.5,<0.6' 'text-dedup>=0.4.1,<0.5'
	touch $@

.venv-trackers/.installed:
	$(PYTHON) -m venv .venv-trackers
	.venv-trackers/bin/pip install -qq 'mlflow>=3,<4' 'trackio<1' 'psycopg[binary]>=3.2,<4'
	touch $@

clean: ## Remove the environment and caches (not the runs in .caravan)
	rm -rf $(VENV) .venv-vllm .venv-checkov .venv-peers .venv-trackers
	rm -rf .mypy_cache .pytest_cache .ruff_cache
