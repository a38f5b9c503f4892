# The commands of the project. Each target builds the environment first, if it has changed.

STUDY ?= configs/digits.yaml
ROOT ?= $(or $(DIT_ROOT),runs)
# `local` runs each step as a process, `docker` in a container of the image from `make build`.
RUNNER ?= local
# Overrides of the study, such as SET="train.steps=400 sampling.num_samples=200".
SET ?=
# Training seeds of every variant, in place of the study's: a number, or a list such as SEEDS="[0, 7]".
SEEDS ?=
# Arguments for pytest, such as TESTS=tests/science/training.
TESTS ?=
# Price of a GPU-hour, for `make plan`.
PRICE ?=
# Faults and healthy runs of `make gates`; unset, all.
FAULTS ?=
PORT ?= 5000
# Images and the cluster: docs/cluster.md. REGISTRY has no default; DOCKER_FLAGS are for `docker build`.
OVERLAY ?= kind
# The store and the image of pods on a cluster. IMAGE is NAME@DIGEST; unset, it is the image last pushed.
S3_ROOT ?= s3://dit-scaling
IMAGE ?=
REGISTRY ?=
DOCKER ?= docker
DOCKER_FLAGS ?=
# `docker buildx imagetools inspect python:3.11-slim-bookworm` prints the digest of the newest one.
BASE_IMAGE ?= python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b
SYSTEM_PACKAGES ?= g++
INDEX_URL ?= $(or $(PIP_INDEX_URL),https://pypi.org/simple)
# Runs on a cluster: WAIT=1, CACHE=off, WATCH=1. RUN is the name of a new run, or the id of an existing one.
EXPERIMENT ?= dit
RUN ?=
CACHE ?= on
NAMESPACE ?= dit-scaling
# Certificates and password of the package index are build secrets, which do not get into the image.
CA ?= $(or $(PIP_CERT),$(SSL_CERT_FILE))
NETRC ?=
# Without .pyc files each step and test would compile torch's sources again, which takes seconds.
unexport PYTHONDONTWRITEBYTECODE
# A value as one word of the shell, such as a path with spaces.
quoted = '$(subst ','\'',$(1))'
OVERRIDES = $(foreach override,$(SET),--set $(call quoted,$(override))) $(if $(SEEDS),--set $(call quoted,seeds=$(SEEDS)))
VENV := .venv
STAMP := $(VENV)/.installed
BIN := $(VENV)/bin
# As modules: the scripts in BIN contain the path of the repository when they were installed.
DIT := $(BIN)/python -m dit

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help study plan compile ui ui-cluster test test-gpu lint format reference bench doctor-cases gates replay calibration
.PHONY: build push image-size secrets deploy undeploy env constraints apt clean
.PHONY: preflight submit status terminate clean-jobs test-containers test-cluster test-cluster-slow test-pipelines

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

study: env ## Run STUDY to its verdict, or resume it: minutes for the default, on two CPU cores. SEEDS=3 trains three seeds.
	@$(DIT) study $(call quoted,$(STUDY)) --root $(call quoted,$(ROOT)) --runner $(RUNNER) $(OVERRIDES)

plan: env ## Print what STUDY costs, with PRICE per GPU-hour, and what it can decide. Writes nothing.
	@$(DIT) plan $(call quoted,$(STUDY)) --root $(call quoted,$(ROOT)) $(OVERRIDES) $(if $(PRICE),--price $(PRICE))

compile: env ## Write STUDY as a pipeline for Kubeflow Pipelines, with the image last pushed: build/STUDY.yaml.
	@$(DIT) compile $(ON_CLUSTER) $(if $(IMAGE),--image $(call quoted,$(IMAGE)))

ui: env ## Open MLflow on the results below ROOT, at PORT or the next free one.
	@$(DIT) ui --root $(call quoted,$(ROOT)) --port $(PORT)

ui-cluster: env ## Open the MLflow that OVERLAY deployed, through a forwarded PORT, on the view of STUDY.
	@$(DIT) ui-cluster $(OVERLAY) $(call quoted,$(STUDY)) --port $(PORT)

# One worker per core and one thread per process, because many tests start several processes. The tests of a file share
# expensive fixtures, so they run in one worker; tests/conftest.py starts long files first.
test: lint ## Check the code and run all tests, or those of TESTS.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(TESTS)

test-gpu: env ## Test that results on a GPU equal those on a CPU; needs a GPU.
	$(BIN)/python -m pytest -m gpu tests/gpu

lint: env ## Check style, types and import rules.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/python -c 'from importlinter.cli import lint_imports_command; lint_imports_command()' --no-cache

format: env ## Format the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reference: env ## Write the keys of a study file into docs/study-file.md, and a plan into docs/plan.md.
	@$(DIT) keys --page docs/study-file.md
	@$(BIN)/python -m bench.plan_page

bench: env ## Measure speed against plain references; writes JSON and a table.
	$(BIN)/python -m bench

doctor-cases: env ## Break checkpoints in 25 ways and print what the doctor says of each; writes a table.
	$(BIN)/python -m bench.doctor_cases --save

# FAULTS="ema-in-bf16 x0-as-target" runs these; `python -m bench.gates --list` shows the names.
gates: env ## Inject faults that the health checks must name, and train healthy models; FAULTS names some of them.
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.gates $(FAULTS)

replay: env ## Replay the failed study on digits with four faults: what was seen, which check speaks, what it would have cost.
	@OMP_NUM_THREADS=1 $(BIN)/python -m bench.replay

calibration: env ## Simulate studies with known truth and print how often each verdict is wrong; writes a table.
	@OMP_NUM_THREADS=1 $(BIN)/python -m bench.calibration --save

VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' dit/__init__.py)
REVISION = $(shell git describe --always --dirty --exclude '*' 2>/dev/null || echo unknown)
BUILD = DOCKER_BUILDKIT=1 $(DOCKER) build $(DOCKER_FLAGS) --build-arg BASE_IMAGE=$(BASE_IMAGE) --build-arg INDEX_URL=$(INDEX_URL) \
	$(if $(CA),--secret id=ca$(comma)src=$(CA)) $(if $(NETRC),--secret id=netrc$(comma)src=$(NETRC)) \
	--build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION)
comma := ,

# Build arguments are in an image's history and in the process list, so an address must not hold a password.
build: ## Build the images of the stages and of the MLflow server.
	@test -z "$(findstring @,$(INDEX_URL))" || { echo "make: the address of the package index (INDEX_URL or PIP_INDEX_URL) has a" \
		"password, which the image's history would keep; put it into a netrc file and give INDEX_URL without it, and NETRC=FILE" >&2; exit 2; }
	$(BUILD) --build-arg SYSTEM_PACKAGES="$(SYSTEM_PACKAGES)" --tag dit-scaling:$(VERSION) .
	$(BUILD) --file mlflow/Dockerfile --tag dit-scaling-mlflow:$(VERSION) .

push: ## Push both images to REGISTRY; writes their digests to build/.
	@test -n "$(REGISTRY)" || { echo "make: give REGISTRY, such as 'make push REGISTRY=registry.example.com/team'" >&2; exit 2; }
	@mkdir -p build
	@DOCKER=$(DOCKER) docker/push dit-scaling:$(VERSION) $(REGISTRY) build/image.digest
	@DOCKER=$(DOCKER) docker/push dit-scaling-mlflow:$(VERSION) $(REGISTRY) build/mlflow.digest

image-size: ## Print the size of the stages' image, its layers and its largest packages.
	@DOCKER=$(DOCKER) docker/size dit-scaling:$(VERSION)

secrets: env ## Create the secrets that OVERLAY=kind lacks, with random values.
	@$(DIT) secrets $(OVERLAY)

# Only kind overlays get random secrets: other overlays use the secrets of existing services.
deploy: env $(if $(filter kind%,$(OVERLAY)),secrets) ## Deploy OVERLAY of k8s/overlays with the images last pushed, and wait until it is ready.
	@$(DIT) deploy $(OVERLAY) $(if $(FORCE),--force)

undeploy: env ## Remove the objects of OVERLAY; volume claims and secrets stay.
	@$(DIT) undeploy $(OVERLAY)

ON_CLUSTER = $(call quoted,$(STUDY)) --root $(call quoted,$(S3_ROOT)) $(OVERRIDES)

preflight: env ## Check whether STUDY can run on the cluster, with its results at S3_ROOT, s3://bucket/prefix.
	@$(DIT) preflight $(ON_CLUSTER)

submit: env ## Submit STUDY to Kubeflow Pipelines at KFP_ENDPOINT, after a preflight; WAIT=1 waits for its end.
	@$(DIT) submit $(ON_CLUSTER) --experiment $(call quoted,$(EXPERIMENT)) --cache $(CACHE) \
		$(if $(IMAGE),--image $(call quoted,$(IMAGE))) $(if $(RUN),--run $(call quoted,$(RUN))) $(if $(WAIT),--wait)

# The cluster's status if RUN, S3_ROOT, KFP_ENDPOINT or KUBECONFIG is given and ROOT is not.
given = $(filter command environment,$(firstword $(origin $(1))))
STATUS_ROOT = $(if $(call given,ROOT),$(ROOT),$(if $(RUN)$(KFP_ENDPOINT)$(KUBECONFIG)$(call given,S3_ROOT),$(S3_ROOT),$(ROOT)))

status: env ## Show the progress of STUDY, below ROOT or on the cluster; WATCH=1 refreshes.
	@$(DIT) status $(call quoted,$(STUDY)) --root $(call quoted,$(STATUS_ROOT)) $(OVERRIDES) \
		--experiment $(call quoted,$(EXPERIMENT)) $(if $(RUN),--run $(call quoted,$(RUN))) $(if $(WATCH),--watch)

terminate: env ## End the run with the id RUN=...; the reaper deletes its jobs.
	@test -n "$(RUN)" || { echo "make: give the run's id, RUN=...; 'make status' shows it" >&2; exit 2; }
	@$(DIT) terminate $(call quoted,$(RUN))

clean-jobs: env ## Delete the jobs in NAMESPACE whose runs have ended, once; the reaper does so all the time.
	@$(DIT) reap --once --namespace $(NAMESPACE)

test-containers: env ## Test studies in containers of the image last built; needs a Docker engine, no cluster.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m containers tests/containers

# docs/cluster.md, Tests, lists variables that enable more tests.
test-cluster: env ## Test on the cluster of KUBECONFIG, with the images last pushed to REGISTRY.
test-cluster-slow: env ## The same, the tests that take more than three minutes each.
test-cluster test-cluster-slow:
	@test -n "$$KUBECONFIG" || { echo "make: KUBECONFIG is not set; without a cluster: kind create cluster --kubeconfig kind.conf" \
		"(https://kind.sigs.k8s.io), then KUBECONFIG=kind.conf; for the rest see docs/cluster.md, Prerequisites" >&2; exit 2; }
	@test -n "$(REGISTRY)" || { echo "make: REGISTRY is not set; name one that the nodes can pull from, then make build push" >&2; exit 2; }
	@$(MAKE) --no-print-directory deploy OVERLAY=kind
	REGISTRY=$(REGISTRY) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "cluster and $(if $(filter %-slow,$@),,not )long" tests/cluster

test-pipelines: env ## Test runs on the Kubeflow Pipelines of KFP_ENDPOINT and its cluster.
	@test -n "$$KUBECONFIG" -a -n "$$KFP_ENDPOINT" || { echo "make: set KUBECONFIG and KFP_ENDPOINT, such as" \
		"KFP_ENDPOINT=http://localhost:8888 after kubectl port-forward -n kubeflow service/ml-pipeline 8888:8888;" \
		"see docs/cluster.md, Prerequisites" >&2; exit 2; }
	@$(MAKE) --no-print-directory deploy OVERLAY=kind
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m pipelines tests/cluster

env: $(STAMP) ## Build the environment in .venv from constraints.txt, by hash.

# The environment contains the path of the repository, so it is adjusted when the repository was moved or renamed.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif
$(STAMP): constraints.txt pyproject.toml
	@.ci/setup $(VENV)
	@printf '%s\n' $(call quoted,$(CURDIR)) > $@

COMPILE = $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate
constraints: env ## Resolve the dependencies again; rewrites constraints.txt and the images' subsets of it.
	$(COMPILE) --extra dev pyproject.toml mlflow/requirements.in -o constraints.txt
	$(COMPILE) -c constraints.txt docker/torch.in -o docker/torch.txt
	$(COMPILE) -c constraints.txt --excludes docker/unused.txt pyproject.toml -o docker/stages.txt
	$(COMPILE) -c constraints.txt --excludes mlflow/unused.txt mlflow/requirements.in -o mlflow/requirements.txt
	$(COMPILE) .ci/tools.in -o .ci/tools.txt

apt: ## Install `python3 -m venv` on Debian and Ubuntu, with the system's package manager.
	$(if $(filter 0,$(shell id -u)),,sudo) apt-get update
	$(if $(filter 0,$(shell id -u)),,sudo) apt-get install --yes --no-install-recommends python3 python3-venv

clean: ## Remove the environment and all caches; results below ROOT stay.
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
