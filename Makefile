# make demo    the rocket-motor workshop, end to end (installs what it needs into .venv first)
# make test    the tests (installs what they need first; those with js-libp2p where Node is)
# make check   format, lint, types, layers
# make bench   what a peer costs: codec, signatures, chain, links
# make bench-transfer  transfers beside bare copies and beside what others do (installs those first)
# make fmt     format the code
# make model   check the TLA+ model of the consensus protocol (skipped where Java is missing)
# make fuzz    10 million mutated frames and messages against decoders and whole nodes
# make rehearse  what must never happen, rehearsed at the size of a change of weight (half an hour)
# make soak    the same at the size of a release (many hours)
# make interop  a member on js-libp2p against a small network (installs its packages; needs Node)
# make docs    check that the documentation names what exists

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
JS := examples/js/node_modules/.installed

.PHONY: interop demo test check bench bench-transfer fmt docs model fuzz rehearse soak install clean

# TRANSPORT=libp2p runs all links over libp2p, for which it installs an extra.
TRANSPORT ?= tls

demo: $(VENV)/.installed $(if $(filter-out tls,$(TRANSPORT)),$(VENV)/.installed-libp2p)
	$(BIN)/edgepool demo --transport $(TRANSPORT) $(ARGS)

# The tests with js-libp2p run where Node is and its packages can be had, and are skipped elsewhere.
test: $(VENV)/.installed-dev
	@{ command -v node && command -v npm; } >/dev/null && $(MAKE) --silent $(JS) || \
	  echo "Node, or the packages of examples/js, cannot be had here: the tests with js-libp2p are skipped"
	$(BIN)/pytest --numprocesses 3 --dist worksteal $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check edgepool tests examples
	$(BIN)/ruff check edgepool tests examples
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/check_docs.py

bench: $(VENV)/.installed
	$(BIN)/python -m edgepool bench $(ARGS)

bench-transfer: $(VENV)/.installed-bench
	$(BIN)/python -m edgepool bench transfer $(ARGS)

fmt: $(VENV)/.installed-dev
	$(BIN)/ruff format edgepool tests examples
	$(BIN)/ruff check --fix edgepool tests examples

docs: $(VENV)/.installed-dev
	$(BIN)/python tests/check_docs.py

model: $(VENV)/bin/python
	$(BIN)/python docs/protocol/check_model.py $(ARGS)

fuzz: $(VENV)/.installed
	$(BIN)/python tests/fuzz.py $(ARGS)

rehearse: $(VENV)/.installed
	$(BIN)/python tests/rehearse.py $(ARGS)

soak: $(VENV)/.installed
	$(BIN)/python tests/rehearse.py --soak $(ARGS)

interop: $(VENV)/.installed-dev
	@{ command -v node && command -v npm; } >/dev/null || { echo "make interop needs Node 20 or later with npm" >&2; exit 2; }
	@$(MAKE) --silent $(JS)
	$(BIN)/pytest tests/integration/test_interop_js.py $(ARGS)

$(JS): examples/js/package-lock.json
	timeout 300 npm --prefix examples/js ci --loglevel=error --fetch-timeout=60000 --fetch-retries=1 || \
	  { rm -rf examples/js/node_modules; exit 1; }
	@touch $@

install: $(VENV)/.installed

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "edgepool needs Python 3.11 or later; $(PYTHON) is older. Try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[workshop]'
	@touch $@

$(VENV)/.installed-libp2p: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[workshop,libp2p]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[workshop,dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[workshop,bench,fast]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
