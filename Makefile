# Every target sets up .venv by itself, once; `make` alone lists them.
#
#   PYTHON       interpreter for .venv (default: the first of python3.12, 3.11, 3.13, python3 that works)
#   TORCH        PyTorch to install (default torch==2.13.0)
#   TORCH_INDEX  index to take it from. On Linux the default index has the CUDA build, which runs without
#                a GPU too but takes gigabytes; PyTorch's own index of CPU builds avoids that.
#   ARGS         further arguments for the command of the target: make serve ARGS="--port 9000"

.DEFAULT_GOAL := help
SHELL := /bin/sh

PYTHON ?=
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
ARGS ?=
export PYTHON TORCH TORCH_INDEX

BIN := .venv/bin
READY := .venv/.ready
RECIPES := meta_training/recipes

# A tree that was copied or moved takes .venv along, whose scripts still point to the old place;
# a Python that was removed leaves a dangling link. Both count as not ready.
ifneq "$(shell [ -x $(BIN)/python ] && cat $(READY) 2>/dev/null)" "$(shell pwd -P)"
.PHONY: $(READY)
endif

.PHONY: help serve demo test check audit format bench meta-train data clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

$(READY): pyproject.toml
	@.ci/setup-venv

serve: $(READY) ## start the server on 127.0.0.1:8000 (ARGS="--port 9000 ...")
	@exec $(BIN)/innerloop serve $(ARGS)

demo: $(READY) ## teach a live server and watch it change; starts one if none answers
	@exec .ci/with-server $(BIN)/innerloop demo --url {} $(ARGS)

test: check ## check, then every test on up to 4 cores (ARGS="-k name" for some, "-n 0" for one process)
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile $(ARGS)

check: $(READY) ## format, lint, types, import borders; known vulnerabilities are shown
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	-$(BIN)/python .ci/audit

audit: $(READY) ## known vulnerabilities of what is installed; fails where there are some
	$(BIN)/python .ci/audit

format: $(READY) ## rewrite the code in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## the figures of the README, beside their peers
	$(BIN)/python -m benchmarks $(ARGS)

meta-train: $(READY) ## make the embedded model again from its three recipes
	$(BIN)/innerloop meta-train $(RECIPES)/innerloop-tiny.yaml $(ARGS)
	$(BIN)/innerloop meta-train $(RECIPES)/innerloop-tiny-more.yaml $(ARGS)
	$(BIN)/innerloop meta-train $(RECIPES)/innerloop-tiny-language.yaml $(ARGS)

data: $(READY) ## fetch and convert the public training data
	$(BIN)/innerloop data $(ARGS)

clean: ## remove what make made (.venv, caches); data and models stay
	rm -rf .venv .venv.lock build dist innerloop.egg-info .mypy_cache .ruff_cache .pytest_cache \
		.hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
