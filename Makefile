# The targets make their own virtual environment where there is none.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: run test coverage check bench bench-quick clean

run: $(VENV)/.ready-run
	exec $(BIN)/python example_project/run.py

# Three at a time, whatever the machine has: most of them wait for a server.
test: $(VENV)/.ready-test
	$(BIN)/python -m pytest -n 3 --dist loadfile --reruns 1 -r sR $(PYTEST_ARGS)

coverage: $(VENV)/.ready-test
	rm -f .coverage .coverage.*
	$(BIN)/python -m pytest -n 3 --dist loadfile --cov --cov-report=term $(PYTEST_ARGS)

check: $(VENV)/.ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.ready-test
	$(BIN)/python benchmarks/run.py

bench-quick: $(VENV)/.ready-test
	$(BIN)/python benchmarks/run.py --quick

clean:
	rm -rf $(VENV) .venv-* build dist *.egg-info .coverage .coverage.* htmlcov
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis example_project/var

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "uwsgi_tasks needs Python 3.11 or later: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready-run: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[uwsgi,django,sql]'
	@touch $@

$(VENV)/.ready-test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@ $(VENV)/.ready-run
