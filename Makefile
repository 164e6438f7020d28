# Run `make` for the list of targets. Everything made lies in .venv, .venv-importer, .venv-scanners, .venv-bench, .build, .lab and .demo (git-ignored).
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
# The tools call one another (molecule runs pytest and ansible-playbook) and find themselves here.
export PATH := $(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export MOLECULE_GLOB := molecule/*/molecule.yml
export PYTHONDONTWRITEBYTECODE := 1

CONTROL := $(VENV)/.control
TOOLS := $(VENV)/.tools
IMPORTER := .venv-importer/.made
SCANNERS := .venv-scanners/.made
# Debian's NGINX, which the unit tests of the proxy run; without apt they say why they are skipped.
NGINX := .build/nginx/.made
# LiteLLM's proxy, to measure against, and what draws the picture.
BENCH := .venv-bench/.made
# OpenAI's client for JavaScript, with which the tests ask as well.
JS_CLIENT := tests/js/node_modules/.made

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z][a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

# ---- Tools -----------------------------------------------------------------------------------------------------------

$(CONTROL): requirements.txt constraints.txt scripts/venv
	@scripts/venv $(PYTHON) $(VENV) requirements.txt
	@touch $@

$(TOOLS): $(CONTROL) tests/requirements.txt
	@scripts/venv $(PYTHON) $(VENV) tests/requirements.txt
	@touch $@

$(IMPORTER): tests/importer-requirements.txt scripts/venv
	@scripts/venv $(PYTHON) .venv-importer tests/importer-requirements.txt
	@touch $@

$(SCANNERS): tests/scanner-requirements.txt scripts/venv
	@scripts/venv $(PYTHON) .venv-scanners tests/scanner-requirements.txt
	@touch $@

.PHONY: venv
venv: $(TOOLS) ## Make .venv with everything the other targets use

.PHONY: constraints
constraints: ## Resolve requirements.txt and tests/requirements.txt anew into constraints.txt
	@scripts/constraints $(PYTHON)

# ---- Trying it -------------------------------------------------------------------------------------------------------

.PHONY: demo
demo: $(CONTROL) ## Boot a machine and serve the demo model over HTTPS (root, Debian)
	@python molecule/lab/demo.py up

.PHONY: demo-down
demo-down: $(CONTROL) ## Remove every trace of `make demo`
	@python molecule/lab/demo.py down

# ---- Gates -----------------------------------------------------------------------------------------------------------

.PHONY: lint
lint: $(TOOLS) ## ansible-lint, yamllint, ruff, mypy, changelog and documentation
	@scripts/lint

.PHONY: format
format: $(TOOLS) ## Let ruff order and format the Python
	@scripts/python-files -0 | xargs -0 ruff check --quiet --fix --exit-zero
	@scripts/python-files -0 | xargs -0 ruff format --quiet

.PHONY: changelog
changelog: $(TOOLS) ## Write CHANGELOG.rst for galaxy.yml's version from changelogs/fragments/ and the plugins
	@antsibull-changelog release --update-existing --refresh --reload-plugins

.PHONY: docs
docs: $(CONTROL) ## Write docs/which-gpu.md from the planner
	@python scripts/gpu-table

.PHONY: bench-plan
bench-plan: $(CONTROL) ## Time the plan of 100 hosts with 8 models each
	@python scripts/bench-plan

$(BENCH): tests/bench/requirements.txt tests/bench/constraints.txt scripts/venv
	@scripts/venv $(PYTHON) .venv-bench tests/bench/requirements.txt
	@touch $@

.PHONY: bench-proxy
bench-proxy: $(CONTROL) $(NGINX) $(BENCH) ## What the gateway adds, beside LiteLLM's proxy, into docs/bench-proxy.md (ten minutes on a quiet machine)
	@python scripts/bench-proxy

.PHONY: bench-converge
bench-converge: $(CONTROL) ## What site.yml takes on 1, 2 and 4 machines, by phase, into docs/bench-converge.md (root; a quarter of an hour, quiet)
	@python scripts/bench-converge

$(NGINX): scripts/nginx
	@if command -v apt-get >/dev/null; then scripts/nginx .build/nginx; fi
	@mkdir -p .build/nginx && touch $@

.PHONY: unit
unit: $(TOOLS) $(NGINX) $(SCANNERS) ## Unit tests of the Python and of the repository
	@pytest --numprocesses=auto

.PHONY: sanity
sanity: $(TOOLS) ## ansible-test sanity
	@python scripts/sanity.py

.PHONY: build
build: $(TOOLS) ## Build the collection's artifact into .build/
	@rm -rf .build/source .build/gpuops-vllm-*.tar.gz
	@scripts/export .build/source
	@ansible-galaxy collection build .build/source --output-path .build

.PHONY: importer
importer: build $(IMPORTER) ## Judge the artifact as Galaxy does
	@scripts/importer

$(JS_CLIENT): tests/js/package.json tests/js/package-lock.json
	@npm ci --prefix tests/js --silent --no-audit --no-fund
	@touch $@

.PHONY: molecule
molecule: $(TOOLS) $(JS_CLIENT) ## Molecule scenarios, one after another (root); SCENARIO=NAME runs one
	@python scripts/molecule_gate.py $(SCENARIO)

.PHONY: drills
drills: $(TOOLS) $(JS_CLIENT) ## Every drill, ours and the naive way, into docs/drills.md (root); SCENARIO=NAME runs one part
	@python scripts/drills $(SCENARIO)

.PHONY: test-fast
test-fast: ## The gates that take less than three minutes
	@scripts/gates lint unit

.PHONY: test
test: ## All gates
	@scripts/gates venv lint unit sanity importer molecule

# ---- Housekeeping ----------------------------------------------------------------------------------------------------

.PHONY: clean
clean: ## Remove what the gates made; caches stay
	@rm -rf .ansible .build .mypy_cache .pytest_cache .ruff_cache

.PHONY: clean-cache
clean-cache: clean ## Remove the lab, the tools and every cache as well
	@if [ -d .lab ]; then python3 molecule/lab/lab.py down; fi
	@rm -rf $(VENV) .venv-importer .venv-scanners .venv-bench "$${XDG_CACHE_HOME:-$$HOME/.cache}/gpuops-vllm" /var/cache/gpuops-vllm
