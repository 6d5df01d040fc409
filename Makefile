# Needs Python >= 3.11 (with venv and pip) and make; everything else is installed into .venv on first use.
PYTHON ?= python3
# TORCH_BACKEND=cpu (or cu128, ...) installs that build of torch; empty takes the default one. Read at installation only.
TORCH_BACKEND ?=
# Processes that share the tests and notebooks; each computes with one thread.
WORKERS ?= 2

VENV := .venv
RUN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)/python
INSTALLED := $(VENV)/.installed
NOTEBOOKS := $(wildcard book/*.ipynb)

.DEFAULT_GOAL := help
.PHONY: help book test lint format bench matrix clean
# uv, Jupyter, IPython and matplotlib keep files in the home folder; where there is none that can be written, here.
ifneq ($(shell test -w "$$HOME" && echo yes),yes)
export HOME := $(CURDIR)/_build/home
$(shell mkdir -p "$(CURDIR)/_build/home" 2>/dev/null)
endif
# Containers often set it; then each of the many processes here would compile all that it imports, for seconds.
unexport PYTHONDONTWRITEBYTECODE
WRITABLE := test -w . || { \
  echo "'$(CURDIR)' is not writable, and make puts .venv and _build into it." \
       "Copy it to a folder of yours and run make there." >&2; exit 1; }
# A file that a failed recipe half wrote must not count as done.
.DELETE_ON_ERROR:

help: ## Print this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

book: $(INSTALLED) ## Execute every chapter and render the book into _build/html
	@$(WRITABLE)
	@$(RUN) book/site/build.py

test: $(INSTALLED) ## Run the tests and every notebook
	@OMP_NUM_THREADS=1 $(RUN) -m pytest book tests --nbmake --nbmake-timeout=600 -n $(WORKERS) \
	  --dist=loadfile --no-loadscope-reorder

lint: $(INSTALLED) ## Check style, formatting, types, spelling, and that notebooks carry no outputs
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy
	@$(RUN) -m codespell_lib README.md CONTRIBUTING.md CHANGELOG.md SECURITY.md book emalab tests
	@$(if $(NOTEBOOKS),$(RUN) -m nbstripout --verify --keep-id $(NOTEBOOKS))

format: $(INSTALLED) ## Fix what ruff can fix, and strip the notebooks
	@$(RUN) -m ruff check --fix-only --quiet .
	@$(RUN) -m ruff format .
	@$(if $(NOTEBOOKS),$(RUN) -m nbstripout --keep-id $(NOTEBOOKS))

bench: $(INSTALLED) ## Time the hot paths, and how long the commands take to start
	@$(RUN) -m pytest tests/package/test_benchmarks.py -o addopts=--strict-markers --benchmark-only --benchmark-columns=min,median,iqr,rounds
	@$(RUN) tests/package/benchmark_start_up.py

matrix: $(INSTALLED) ## Run the tests on other processors, seeds and versions; takes hours
	@$(RUN) -m nox

clean: ## Remove everything that make made, .venv included
	rm -rf $(VENV) .nox _build dist .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache

$(INSTALLED): pyproject.toml
	@$(WRITABLE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "emalab needs Python 3.11 or newer, and '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)." \
	       "Name another one, as in: make $(or $(MAKECMDGOALS),test) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot create environments: its venv module is missing." \
	       "On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Installing into $(VENV); the first time this downloads torch and takes a few minutes."
	@$(RUN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check uv
	@$(RUN) -m uv pip install --python $(RUN) $(if $(TORCH_BACKEND),--torch-backend $(TORCH_BACKEND)) -e '.[dev]'
	@touch $@
