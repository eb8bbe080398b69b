# Needs Python >= 3.11 with venv, and PyPI. All other tools come from uv.lock, into the venv.
PYTHON ?= python3
VENV ?= .venv
ADDRESS ?= 127.0.0.1:50051
WIRE ?= grpcio
N ?= 50
SECONDS ?= 3600

UV_VERSION := 0.13.8

# Judges of what is on the wire, which only the tests of tests/outside need: `make judges`.
JUDGES := \
	github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible \
	connectrpc.com/conformance/cmd/connectconformance@v1.0.7 \
	google.golang.org/grpc/interop/client@v1.85.0

# The venv is made from outside of itself, even where it is activated.
OUTSIDE := $(subst $(abspath $(VENV))/bin:,,$(PATH))
export PATH := $(abspath $(VENV))/bin:$(OUTSIDE)
export ADDRESS
export WIRE
export UV_PROJECT_ENVIRONMENT := $(abspath $(VENV))
export UV_PYTHON_DOWNLOADS := never
unexport VIRTUAL_ENV PYTHONHOME PYTHONPATH
# The tests start hundreds of processes. What those compile is kept in the venv, also where the tree is to stay clean.
export PYTHONPYCACHEPREFIX := $(abspath $(VENV))/pycache
unexport PYTHONDONTWRITEBYTECODE

PY := $(VENV)/bin/python
STAMP := $(VENV)/.synced

# The stamp is written last and holds what the venv was made for. A venv without it was left half-made. That one is
# made again, and so is one that was moved, that lost its interpreter, or that is asked for with another Python.
describe = -c 'import os, sys; print(os.getcwd(), "uv", "$(UV_VERSION)", "python", sys.version.split()[0])'
ifeq ($(wildcard $(STAMP)),)
  STALE := stale
else
  MADE_FOR := $(shell cat $(STAMP))
  MADE_NOW := $(shell { $(PY) $(describe); } 2>&1)
  ifeq ($(origin PYTHON),file)
    WANTED := $(MADE_NOW)
  else
    WANTED := $(shell { PATH="$(OUTSIDE)"; "$(PYTHON)" $(describe); } 2>&1)
  endif
  ifneq ($(MADE_FOR) $(MADE_FOR),$(MADE_NOW) $(WANTED))
    STALE := stale
  endif
endif

UNMARKED := not system and not fuzz and not conformance and not integration

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | \
		while IFS='|' read -r target text; do printf '  %-10s %s\n' "$$target" "$$text"; done

.PHONY: run
run: $(STAMP) ## serve the reference service on ADDRESS (127.0.0.1:50051) over WIRE (grpcio, native)
	@exec $(PY) -m encryption.main

.PHONY: demo
demo: $(STAMP) ## call the reference service at ADDRESS
	@exec $(PY) -m encryption.demo

# One template for each root that generated code stands under.
GENERATE = buf generate -o "$$fresh" && buf generate -o "$$fresh" --template tests/outside/buf.gen.yaml
GENERATED := find src tests -name '*_pb2*.py*' -not -path '*/__pycache__/*'

.PHONY: gen
gen: $(STAMP) ## generate the code of all protos into src/ and tests/, and delete what has lost its proto
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && $(GENERATE) && \
		$(GENERATED) | while read -r file; do \
			test -e "$$fresh/$$file" || { echo "$$file: deleted, it has no proto"; rm "$$file"; }; \
		done && \
		cp -R "$$fresh/." .

.PHONY: gen-check
gen-check: $(STAMP) ## fail when generated code is not what `make gen` makes; touches nothing
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && $(GENERATE) && \
		{ $(GENERATED); (cd "$$fresh" && $(GENERATED)); } | sort -u > "$$fresh/files" && \
		test -s "$$fresh/files" && bad= && while read -r file; do \
			if ! test -e "$$fresh/$$file"; then echo "$$file: no proto makes it any more"; bad=1; \
			elif ! test -e "$$file"; then echo "$$file: missing"; bad=1; \
			elif ! cmp -s "$$file" "$$fresh/$$file"; then \
				echo "$$file: differs from what its proto makes"; bad=1; fi; \
		done < "$$fresh/files" && \
		if test -n "$$bad"; then echo 'Generated code is out of date: run make gen.'; exit 1; fi

.PHONY: lint
lint: $(STAMP) ## check style and protos, changing nothing
	ruff check
	ruff format --check
	buf lint
	buf format -d --exit-code

.PHONY: format
format: $(STAMP) ## format everything, and fix what can be fixed safely
	ruff check --fix-only --quiet
	ruff format
	buf format -w

.PHONY: types
types: $(STAMP) ## check types, strictly
	mypy

.PHONY: test
test: $(STAMP) ## run the tests that need nothing but this checkout
	$(PY) -m pytest -n 4 -m "$(UNMARKED)"

.PHONY: test-all
test-all: $(STAMP) ## run all tests: system, fuzz, conformance and integration too
	$(PY) -m pytest

.PHONY: flake
flake: $(STAMP) ## run the tests N times (50), up to the first failure
	@round=1; while test $$round -le $(N); do \
		$(PY) -m pytest -q -n 4 -m "$(UNMARKED)" || { echo "failed in round $$round of $(N)"; exit 1; }; \
		echo "round $$round of $(N) passed"; round=$$((round + 1)); \
	done

.PHONY: soak
soak: $(STAMP) ## run the system tests at full size, for minutes on an idle machine, and print their figures
	SOAK=1 $(PY) -m pytest -rP -m system tests/system

.PHONY: fuzz
fuzz: $(STAMP) ## say whatever may be said to the HTTP/2 connection and gRPC's parsers, for SECONDS (3600)
	$(PY) -m tests.fuzz $(SECONDS)

.PHONY: bench
bench: $(STAMP) ## measure what a call costs
	$(PY) -m tests.bench

.PHONY: judges
judges: ## build the programs that judge our wire from outside into .judges/ (needs Go and its module proxy)
	@command -v go >/dev/null || { echo 'This needs Go >= 1.26: https://go.dev/dl/' >&2; exit 1; }
	@for package in $(JUDGES); do echo "$$package"; GOBIN=$(abspath .judges) go install $$package || exit 1; done

.PHONY: build
build: $(STAMP) ## build the wheel into dist/
	uv build --wheel --quiet --python $(PY) --out-dir dist
	@ls dist/*.whl

.PHONY: clean
clean: ## delete what tools made, the venvs too
	rm -rf .venv .venv-* .judges dist build htmlcov .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The set-up, all of it. A lock that does not fit is found before anything is touched.
$(STAMP): export PATH := $(OUTSIDE)
$(STAMP): pyproject.toml uv.lock $(STALE)
	@if test -n "$(STALE)"; then \
		"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
			echo 'This needs Python >= 3.11, and "$(PYTHON)" is not: make PYTHON=/path/to/python3.12' >&2; exit 1; }; \
		"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
			echo '"$(PYTHON)" cannot make a venv: install its venv module (Debian: apt-get install python3-venv)' >&2; \
			exit 1; }; \
		"$(PYTHON)" -m venv --clear $(VENV) && \
		$(PY) -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION); \
	fi
	@$(PY) -m uv lock --quiet --check --python $(PY) || { \
		echo 'uv.lock does not fit pyproject.toml: run $(VENV)/bin/uv lock' >&2; exit 1; }
	@rm -f $(STAMP)
	@$(PY) -m uv sync --quiet --locked --all-extras --all-groups --python $(PY)
	@$(PY) $(describe) > $(STAMP)

.PHONY: stale
stale:
