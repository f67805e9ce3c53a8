# Each target is enough by itself: it makes .venv when there is none. Needs Python 3.11 or newer
# and a package index. Another interpreter: make test PYTHON=python3.13. Some tests only:
# make test ARGS="tests/test_gate.py -q".

VENV := .venv
BIN := $(VENV)/bin
ARGS :=
# Tests use one thread each; a file stays on one worker, which keeps what its fixtures made.
WORKERS := 2

# The first interpreter on the path that is new enough.
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; \
	done)
endif

.DELETE_ON_ERROR:
.PHONY: demo test test-frameworks lint clean
.DEFAULT_GOAL := test

demo: $(VENV)/.installed
	$(BIN)/gradaudit demo --overwrite $(ARGS)

test: $(VENV)/.installed
	$(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=loadfile $(ARGS)

# Flower does not go with the versions of the test group. Its environment borrows the other packages.
test-frameworks: $(VENV)-frameworks/.installed
	$(VENV)-frameworks/bin/python -m pytest -W "ignore::DeprecationWarning:typer" \
		tests/hooks tests/test_examples.py -k flower

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(VENV)-frameworks build dist .pytest_cache .mypy_cache .ruff_cache

# pip 25.1 is the first that knows --group.
$(VENV)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found; say PYTHON=..." >&2; exit 1; }
	@echo "Installing into $(VENV); PyTorch is large, this takes minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable . --group test
	touch $@

$(VENV)-frameworks/.installed: $(VENV)/.installed
	$(BIN)/python -m venv $(VENV)-frameworks
	{ $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; echo "$(CURDIR)"; } \
		> "$$($(VENV)-frameworks/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
	$(VENV)-frameworks/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(VENV)-frameworks/bin/python -m pip install --quiet --group frameworks
	touch $@

$(VENV)/.installed-lint: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --group lint
	touch $@
