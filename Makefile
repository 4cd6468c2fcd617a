# Two commands do everything on a machine with Python 3.11 to 3.13: `make train` and `make test`.
# Variables to set: RUN=runs/second  FLAGS="--steps 500"  EXTRAS=train-cuda,export,serve  PYTHON=/path/to/python

VENV   ?= .venv
EXTRAS ?= train,export,serve
RUN    ?= runs/first
FLAGS  ?=
# The first Python of a version that the dependencies exist for.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo $$python && break; done)

bin := $(VENV)/bin
# An empty file per set of extras says that they are installed, so that a second `make` starts at once.
installed     := $(VENV)/.installed-$(EXTRAS)
dev_installed := $(VENV)/.installed-$(EXTRAS),dev

.PHONY: help train test test-fast lint format clean

help:
	@echo "make train      train supervised and mlmt on the built-in images, write a report of both to $(RUN)"
	@echo "make test       run all tests"
	@echo "make test-fast  run the tests that take less than 5 seconds each"
	@echo "make lint       check style and types"
	@echo "make format     apply the style"
	@echo "make clean      remove $(VENV) and the tools' caches"

# The baseline first, which learns only from the labelled images. FLAGS go to both runs, without those of mlmt's own
# fields for the former. Stopped runs continue.
resume           = $(if $(wildcard $(1)/config.json),--resume)
supervised_flags = $(shell printf '%s' '$(FLAGS)' | sed -E 's/--((mlmt|s4gan)\.|branch-run)[^ ]*( +[^- ][^ ]*)*//g')

train: $(installed)
	$(bin)/python -m training.run --method supervised --dataset shapes --out $(RUN)_supervised \
		$(call resume,$(RUN)_supervised) $(supervised_flags)
	$(bin)/python -m training.run --method mlmt --dataset shapes --out $(RUN) $(call resume,$(RUN)) $(FLAGS)
	$(bin)/python -m training.report $(RUN) --compare $(RUN)_supervised
	@echo "Open the report: $(abspath $(RUN))/report.html"

test: $(dev_installed)
	$(bin)/python -m pytest --numprocesses 2 --durations 15 $(FLAGS)

test-fast: $(dev_installed)
	$(bin)/python -m pytest --numprocesses 2 -m "not slow" $(FLAGS)

lint: $(dev_installed)
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy

format: $(dev_installed)
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis

$(VENV)/.installed-%: pyproject.toml constraints.txt | $(bin)/pip
	$(bin)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".[$*]"
	@touch $@

$(bin)/pip:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 found: install one," \
	"or name it: make train PYTHON=/path/to/python3.13" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
