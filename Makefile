# Two commands on a fresh machine with Python >= 3.11 and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: demo test slow faults lint docs clean

demo: $(INSTALLED)
	$(BIN)/python experiments/demo.py

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses=4 --dist worksteal --durations=10

test: $(INSTALLED)
	$(PYTEST) -m "not slow"

# Trained methods on rendered images, processes, kills, exported graphs, every command of the documentation.
slow: $(INSTALLED)
	$(PYTEST) -m slow

# Some thousand damaged files, hostile names, kills and full disks; the report is faults.md.
faults: $(INSTALLED)
	$(BIN)/python tests/faults/report.py --output faults.md

lint: $(INSTALLED)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[lint]"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation site, without warnings and without a network once its tools are installed.
docs: $(INSTALLED)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[docs]"
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

clean:
	rm -rf $(VENV) demo runs faults.md docs/_build

# The environment, made anew whenever what goes into it changes; the stamp is written last.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "vlad needs Python 3.11 or newer; give it as: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): PyTorch alone is several GB, this takes minutes"
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[parquet,export,app,serve,test]"
	@touch $(INSTALLED)
