PYTHON ?= python

.PHONY: help check format test fast figures docs-table

help:  ## say what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/'

check:  ## lint, formatting, types, import contracts
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -c "from importlinter.cli import lint_imports_command as check; check()"

format:  ## repair what can be repaired
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

fast:  ## unit tests only
	$(PYTHON) -m pytest -q -m "not slow"

test:  ## all tests, as CI runs them
	$(PYTHON) -m pytest -q

figures:  ## the pictures of README and docs
	$(PYTHON) scripts/figures.py

docs-table:  ## the table of methods in docs/methods.md
	$(PYTHON) scripts/methods_table.py
