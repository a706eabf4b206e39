# Everything happens in .venv; nothing else on the machine is touched, but that setup-dev installs bubblewrap where
# it can: the sandbox of Python graders. Without it those tests skip, and say so.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# This build also runs without a GPU. Any torch from 2.6 on will do: make setup TORCH="torch==2.8.0"
TORCH ?= torch==2.13.0
# A training process is started anew for each job: what Python compiled of its imports must be kept.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile

.PHONY: demo test lint serve bench setup setup-dev format clean

demo: setup  ## from nothing to a tuned model that answers
	$(BIN)/tunekeeper demo

test: setup-dev  ## the whole suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

serve: setup  ## the API on http://127.0.0.1:8000/v1
	$(BIN)/tunekeeper serve

bench: setup-dev  ## every published figure, beside its rival
	$(PIP) trl==1.16.0 datasets
	$(BIN)/python -m benchmarks.train
	$(BIN)/python -m benchmarks.serve

format: setup-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(VENV)/.installed
setup-dev: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH)" --editable ".[train,demo]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable ".[train,demo,insight,graders,eval,dev]"
	-@command -v bwrap >/dev/null || ! command -v apt-get >/dev/null || \
		$$(test "$$(id -u)" = 0 || echo sudo -n) apt-get install --yes --quiet bubblewrap
	touch $@

clean:
	rm -rf $(VENV) demo-report .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
