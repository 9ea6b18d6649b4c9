# `make help` lists what there is. Needs python3 (3.11 or later) with venv, and make.
.DEFAULT_GOAL := help
.PHONY: help run test test-embedded test-network check mutants faults storm bench format lock clean
.NOTPARALLEL:
# Another project's, perhaps: here there is only one.
unexport DJANGO_SETTINGS_MODULE
# Where it is set, each of the hundreds of processes that the tests start compiles all its modules.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
# Three on two cores: many tests wait for a tick, a lease, a fault's end.
WORKERS ?= 3
ARGS ?=
ON ?= embedded network

VENV := .venv
BIN := $(VENV)/bin
# Fast, and it checks the hashes; its own version is the one in requirements-dev.in.
UV := uv==0.13.8
# Servers in JavaScript that ours is measured against; they need Node 20 or later, and npm.
PEERS := benchmarks/peers/node
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

run: $(VENV)/.installed  ## install, migrate, make what is missing, serve (HOST=127.0.0.1 PORT=8000)
	@$(BIN)/python manage.py migrate --verbosity 0
	@$(BIN)/python manage.py bootstrap
	@exec $(BIN)/python manage.py serve --host $(HOST) --port $(PORT)

test: $(patsubst %,test-%,$(ON))  ## install, then run all tests (ARGS="-k lost_binding" for some, WORKERS=3, ON=embedded or network)

# On SQLite and a layer in memory; then what touches either, on PostgreSQL and Valkey.
test-embedded: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-network: $(VENV)/.installed-dev
	TESTS_ON=network $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

check: $(VENV)/.installed-dev  ## style, types, who imports whom, Django's checks, missing migrations, the API's description
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python manage.py check
	$(BIN)/python manage.py makemigrations --check --dry-run
	$(BIN)/python manage.py spectacular --validate --fail-on-warn --file /dev/null

mutants: $(VENV)/.installed-dev  ## switch off one safeguard after another: the tests must notice each
	$(BIN)/python tests/mutants.py $(ARGS)

faults: $(VENV)/.installed-dev  ## break three servers in every way there is, and judge what is heard (ARGS="--list")
	$(BIN)/python -m tests.faults $(ARGS)

storm: $(VENV)/.installed-dev  ## half an hour of everything at random
	$(BIN)/python -m tests.faults --storm 1800 $(ARGS)

bench: $(VENV)/.installed-bench $(PEERS)/node_modules/.installed  ## measure against what others would pick, on a quiet machine (ARGS="--help")
	$(BIN)/python -m benchmarks $(ARGS)

format: $(VENV)/.installed-dev  ## put the code into its layout
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(BIN)/uv  ## compile requirements*.in into requirements*.txt, with hashes
	$(BIN)/uv pip compile $(LOCK) requirements.in -o requirements.txt
	$(BIN)/uv pip compile $(LOCK) requirements-dev.in -o requirements-dev.txt
	$(BIN)/uv pip compile $(LOCK) benchmarks/requirements.in -o benchmarks/requirements.txt
LOCK = --quiet --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header

clean:  ## remove what was installed and cached; the data folder stays
	rm -rf $(VENV) $(PEERS)/node_modules tests/sdk/javascript/node_modules .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache

$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(UV)

# Stamps: the requirements are installed again only after they changed.
$(VENV)/.installed: requirements.txt | $(BIN)/uv
	$(INSTALL) -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt | $(BIN)/uv
	$(INSTALL) -r requirements-dev.txt
	@touch $@

$(VENV)/.installed-bench: benchmarks/requirements.txt | $(BIN)/uv
	$(INSTALL) -r benchmarks/requirements.txt
	@touch $@

$(PEERS)/node_modules/.installed: $(PEERS)/package-lock.json
	cd $(PEERS) && npm ci --ignore-scripts --no-audit --no-fund
	@touch $@
