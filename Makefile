# The commands of the kit; `make help` explains them. Each makes .venv by itself when it is needed, and only once.
.DEFAULT_GOAL := help
.PHONY: help reproduce test lab bench
.DELETE_ON_ERROR:

PYTHON ?= python3
DATA ?=
PROFILE ?= smoke
RESULTS ?= results
JOBS ?= $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
TESTS ?= tests
SMOKE ?=
PIP_OPTIONS ?= -qq --disable-pip-version-check

RUN := .venv/bin/python
# Written last, so a .venv without it was interrupted while being made, and is made anew.
WHOLE := .venv/.whole

help:
	@echo 'make reproduce   from data to results: prepares data, trains, evaluates, ablates, draws figures and tables.'
	@echo '                 It shows the table at its end; everything is under results/. Run again, it does only what is missing.'
	@echo '                   DATA=folder   real data found there (without it: the embedded synthetic set)'
	@echo '                   PROFILE=...   smoke (minutes), standard (half an hour or more) or paper (long); now: $(PROFILE)'
	@echo '                   JOBS=n        notebooks running at the same time; now: $(JOBS)'
	@echo '                   DRY=1         only tell what would run, and why'
	@echo '                   RESULTS=dir   another place for the results; now: $(RESULTS)'
	@echo 'make test        runs all tests; with STF2M_DATA=folder also those that need real data. TESTS=path runs some.'
	@echo '                   SMOKE=1       runs the main job and every notebook in the smoke profile as well (minutes)'
	@echo 'make lab         opens the notebooks in JupyterLab.'
	@echo 'make bench       measures speed and memory.'
	@echo 'make help        this text.'
	@echo 'All but help need Python 3.11 or newer (PYTHON=path names another one), and make .venv/ the first time.'

$(WHOLE): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or newer is needed, but '$(PYTHON)' is older or is not there; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -e $@ || { echo 'Making .venv (once, a few minutes) ...'; rm -rf .venv && $(PYTHON) -m venv .venv; }
	@rm -f $@
	@$(RUN) -m pip install $(PIP_OPTIONS) -r requirements.lock
	@$(RUN) -m pip install $(PIP_OPTIONS) --no-build-isolation --no-deps -e .
	@touch $@

reproduce: $(WHOLE)
	@$(RUN) -m stf2m_core.reproduce --profile '$(PROFILE)' --cores '$(JOBS)' --results '$(RESULTS)' \
	  $(if $(strip $(DATA)),--data '$(DATA)') $(if $(strip $(DRY)),--dry-run)

test: $(WHOLE)
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(RUN) -m pytest -n '$(JOBS)' --dist loadfile --durations=10 -q $(if $(strip $(SMOKE)),--smoke) $(TESTS)

lab: $(WHOLE)
	@$(RUN) -m jupyterlab --LabApp.news_url=None --notebook-dir=notebooks

bench: $(WHOLE)
	@$(RUN) benchmarks/run.py
