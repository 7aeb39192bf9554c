# Two targets for everybody: `make demo` (install, then run the main job on generated data) and `make test`.
# Needs make and Python 3.11 or newer; everything else goes into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA := demo/data
RUN := demo/runs/demo

.PHONY: help demo test lint clean

help:
	@echo "make demo   install into $(VENV), then fine-tune, evaluate, report and predict on generated scenes (minutes)"
	@echo "make test   install into $(VENV) with the development tools, then run every test"
	@echo "make lint   ruff, mypy and import-linter"
	@echo "make clean  remove $(VENV) and demo"

demo: $(VENV)/demo.stamp $(DATA)/README.txt
	$(BIN)/visionsft fit configs/demo.yaml --overwrite
	$(BIN)/visionsft evaluate $(RUN)
	$(BIN)/visionsft report $(RUN)
	$(BIN)/visionsft predict $(RUN) $(DATA)/test/images --out demo/predictions --overwrite --overlay
	@echo
	@echo "Where to look:"
	@echo "  $(RUN)/report/index.html  the report: open it in a browser"
	@echo "  $(RUN)/evaluation/test/   scores.json, table.txt, confusion.png, worst.png"
	@echo "  demo/predictions/                 class maps of the two test scenes (GeoTIFF) and pictures of them"
	@echo "  $(RUN)/                   the run: config.yaml, trainable.txt, metrics.csv, checkpoints"
	@echo "  configs/demo.yaml                 the job; change it and run: $(BIN)/visionsft fit configs/demo.yaml --overwrite"

$(DATA)/README.txt: | $(VENV)/demo.stamp
	$(BIN)/visionsft sample-data $(DATA)

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m "not slow"

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) demo

# A stamp is older than pyproject.toml when the dependencies may have changed; then pip looks again.
$(VENV)/demo.stamp: pyproject.toml | $(BIN)/pip
	@echo "Installing visionsft into $(VENV): some minutes and 6 GB the first time (PyTorch with its CUDA libraries) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[weights]'
	@touch $@

# The development tools include what the demo needs.
$(VENV)/dev.stamp: pyproject.toml | $(BIN)/pip
	@echo "Installing visionsft and its tools into $(VENV): some minutes and 6 GB the first time (PyTorch with its CUDA libraries) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/demo.stamp

$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found: install Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "$(PYTHON) is `$(PYTHON) -V`; visionsft needs 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
