# make demo | quick | test | check | docs | clean. Each sets up what it needs in .venv; a second call re-installs nothing.
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
BIN := .venv/bin
PEER_TESTS := $(shell grep -l -e import_peer -e real_weights -e importorskip tests/test_*.py)
QUICK_TESTS := $(addprefix tests/test_,architecture.py config.py public_names.py rooms.py words.py schedule.py step.py stem.py plan.py)
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal
PIP := $(BIN)/python -m pip --disable-pip-version-check -q install --no-compile -c $(CONSTRAINTS) -e
# pip does it on one core. Templates fail; what is left out is rarely imported, or never.
COMPILE := $(BIN)/python -m compileall -qq -j 0 -x '/(tests?|networkx|fontTools|pip|setuptools|mypyc?)/' .venv/lib || :

.PHONY: demo quick test lint types fast check docs clean

demo:
	@start=$$(date +%s); \
	$(MAKE) --no-print-directory .venv/.installed && \
	$(BIN)/vitc study quick --test --out studies/demo && \
	echo "make demo took $$(( $$(date +%s) - start )) s, installation included where it was needed." && \
	echo "Try next:" && \
	echo "  .venv/bin/vitc train fashion_vit_c          # a full run of the winner, a minute or two" && \
	echo "  .venv/bin/vitc train FOLDER                 # your own photos, one sub-folder a class" && \
	echo "  .venv/bin/vitc study quick --draws 32 --out studies/demo   # tighter intervals"

test: lint
	@$(MAKE) --no-print-directory -j 2 types fast

# The inner loop: lint, types, and the tests of what everything else stands on.
quick: lint
	@$(MAKE) --no-print-directory -j 2 types fast TESTS="$(QUICK_TESTS)"

lint: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types:
	$(BIN)/mypy

fast:
	$(PYTEST) $(TESTS)

# Everything `test` leaves out for its length or for what it needs: hundreds of kills, full-size
# coverage simulations, and the comparisons with timm and torchvision.
check: test .venv/.installed-check
	$(PYTEST) -m slow
	$(PYTEST) $(PEER_TESTS)
	$(MAKE) --no-print-directory docs

# The documentation as a site, in build/site; a link that leads nowhere is an error.
docs: .venv/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "build/site/index.html"

.venv/.installed-docs: .venv/.installed
	$(PIP) ".[docs]"
	@$(COMPILE)
	@touch $@

.venv/.installed-check: .venv/.installed-test
	$(PIP) ".[test,optim,peers,hub,data,tiff,heif,notebook,pretrained,export,openvino,serve,completion]"
	@$(COMPILE)
	@touch $@

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "vitc needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv .venv

.venv/.installed: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing into .venv (once; about a minute) ..."
	$(PIP) .
	@$(COMPILE)
	@touch $@

.venv/.installed-test: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing into .venv (once; about a minute) ..."
	$(PIP) ".[test,optim,tiff,heif]"
	@$(COMPILE)
	@touch .venv/.installed $@
