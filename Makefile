# `make help` lists the targets. Everything is installed into .venv on first use.
PYTHON ?= python3
# Tests wait for servers as much as they compute: one worker more than cores.
JOBS ?= 3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help venv demo test test-vllm bench lint format proto clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

venv: $(STAMP) ## .venv with the CLI at .venv/bin/epp

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing epp and its development tools into $(VENV) (a few minutes the first time)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: venv ## a real Envoy, the picker and simulated model servers on loopback
	@$(BIN)/epp demo

test: venv ## all tests (unit, wire, property, fuzz 20 s, end to end through Envoy)
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

test-vllm: venv .venv-vllm/bin/vllm ## the suite against two real vLLM servers (3.5 GB the first time, 15 minutes)
	@$(BIN)/python -m pytest tests/vllm -m vllm -p no:cacheprovider $(ARGS)

.venv-vllm/bin/vllm:
	@echo "installing vLLM's CPU build into .venv-vllm (two minutes)"
	@PYTHON=$(PYTHON) tests/vllm/install.sh .venv-vllm

bench: venv ## CPU per request, latency, memory; a table and out/bench.json
	@$(BIN)/python -m benchmarks $(ARGS)

lint: venv ## ruff, mypy --strict, import-linter
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

format: venv ## rewrite the code in the house format
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

proto: venv ## compile protos/ (the result is committed)
	@$(BIN)/python -m grpc_tools.protoc -I protos --python_out=epp/extproc --pyi_out=epp/extproc protos/*.proto

clean: ## remove what make made
	@rm -rf $(VENV) .venv-vllm out build .mypy_cache .ruff_cache .pytest_cache .hypothesis
