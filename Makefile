# Everything a person types. Each target builds the environment first; a second time that takes no time.

STUDY ?= configs/digits.yaml
ROOT ?= runs
# Overrides of the study file, such as SET="train.steps=400 sampling.num_samples=200".
SET ?=
# Arguments for pytest, such as TESTS=tests/unit.
TESTS ?=
PORT ?= 5000
# Without compiled files every step and every test would compile torch's sources again: seconds a process.
unexport PYTHONDONTWRITEBYTECODE
VENV := .venv
STAMP := $(VENV)/.installed
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help study plan ui test lint format bench env constraints apt clean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

study: env ## Run STUDY to its verdict, or what is left of it: minutes for the default, on two CPU cores.
	@$(BIN)/dit study $(STUDY) --root $(ROOT) $(foreach override,$(SET),--set '$(override)')

plan: env ## Print what STUDY costs: parameters, Gflops, memory and hours. Writes nothing.
	@$(BIN)/dit plan $(STUDY) $(foreach override,$(SET),--set '$(override)')

ui: env ## Open MLflow on the results below ROOT, at http://127.0.0.1:PORT.
	@test -f $(ROOT)/mlflow.db || { echo "make: no results below $(ROOT); run 'make study' first" >&2; exit 2; }
	@echo "http://127.0.0.1:$(PORT) answers in some seconds; Ctrl-C ends it" >&2
	@MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow server --host 127.0.0.1 --port $(PORT) --workers 1 \
		--backend-store-uri sqlite:///$(abspath $(ROOT))/mlflow.db

# A worker a core, one thread a process: many tests start several processes, which would get into each other's way.
# A file's tests stay together, because they share what is dear to make; tests/conftest.py puts long files first.
test: lint ## Check the code and run all tests, or those of TESTS.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(TESTS)

lint: env ## Check style, types and who imports whom.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: env ## Bring the code into its standard form.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: env ## Measure speed against plain references; writes JSON and a table.
	$(BIN)/python -m bench

env: $(STAMP) ## Build the environment in .venv from constraints.txt, by hash.

$(STAMP): constraints.txt pyproject.toml
	@.ci/setup $(VENV)
	@touch $@

constraints: env ## Resolve the dependencies anew; rewrites constraints.txt.
	$(BIN)/uv pip compile --universal --generate-hashes --extra dev --no-header --no-annotate pyproject.toml -o constraints.txt

apt: ## Debian and Ubuntu, where `python3 -m venv` is missing: install it with the system's package manager.
	$(if $(filter 0,$(shell id -u)),,sudo) apt-get update
	$(if $(filter 0,$(shell id -u)),,sudo) apt-get install --yes --no-install-recommends python3 python3-venv

clean: ## Remove the environment and all caches; results below ROOT stay.
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
