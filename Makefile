# make reproduce    run the main job: all methods on the digits that come with scikit-learn (no download)
# make test         everything that must hold: notebooks == package, linter, all notebooks, test suite
# make lab          open the book in JupyterLab
# make book         build the book as a web site in _book/, from the notebooks as they are stored
# make notebooks    run the notebooks again and store their outputs (after an edit)
# make clean        remove what builds and tests leave behind (.venv and figures/ stay)
#
# Variables, as in `make reproduce DATASET=mnist SCENARIO=CUR SEEDS="0 1 2"`:
DATASET  = digits
SCENARIO = CUR STR MIX
METHODS  = OCSVM OCNN OCCNN SVDD DeepSVDD CLAD
SETTINGS = short
SEEDS    = 0
# where records and tables go, and where the real data is (empty: figures/results; $CLAD_DATA or the user's cache)
RESULTS   =
DATA_ROOT =
# the notebooks of `make notebooks`
NOTEBOOKS = $(sort $(wildcard nbs/*.ipynb nbs/*/*.ipynb))
# the interpreter for the environment: the first of these that exists and fits
PYTHON = python3.13 python3.12 python3.11 python3

VARIABLES = DATASET SCENARIO METHODS SETTINGS SEEDS RESULTS DATA_ROOT NOTEBOOKS PYTHON
given   := $(foreach v,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $v))),$v))
unknown := $(filter-out $(VARIABLES),$(given))
ifneq ($(unknown),)
$(error there is no variable $(unknown) here; the variables are $(VARIABLES))
endif

VENV  = .venv
BIN   = $(VENV)/bin
STAMP = $(VENV)/installed
# one thread per process: OpenMP threads of neighbouring processes would wait for each other
ALONE = OMP_NUM_THREADS=1
FITS  = import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))

.PHONY: help reproduce test lab book notebooks environment clean
.DEFAULT_GOAL = help

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

reproduce: $(STAMP)
	@$(BIN)/clad reproduce --dataset $(DATASET) --scenario $(SCENARIO) --methods $(METHODS) \
	    --settings $(SETTINGS) --seeds $(SEEDS) \
	    $(if $(RESULTS),--results $(RESULTS)) $(if $(DATA_ROOT),--data-root $(DATA_ROOT))

test: $(STAMP)
	$(BIN)/python -m pytest -q tests/test_sync.py
	$(BIN)/ruff check --quiet clad nbs tests tools
	$(ALONE) $(BIN)/nbdev_test --n_workers $$($(BIN)/python -c "import joblib; print(min(joblib.cpu_count(), 4))")
	$(ALONE) $(BIN)/python -m pytest -q tests --ignore=tests/test_sync.py

lab: $(STAMP)
	$(BIN)/jupyter lab nbs/index.ipynb

book: $(STAMP)
	@$(BIN)/python tools/book.py

notebooks: $(STAMP)
	$(BIN)/nbdev_export
	@for n in $(NOTEBOOKS); do echo "$$n"; $(ALONE) $(BIN)/python tools/save_outputs.py "$$n" || exit 1; done
	$(BIN)/nbdev_clean
	$(BIN)/python tools/readme.py

environment: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@if ! $(BIN)/python -c '$(FITS)' 2>/dev/null; then \
	    for p in $(PYTHON); do \
	        if "$$p" -c '$(FITS)' 2>/dev/null; then found=$$p; break; fi; \
	    done; \
	    if [ -z "$$found" ]; then \
	        echo "No Python 3.11, 3.12 or 3.13 with the venv module among: $(PYTHON)." \
	             "Install one (Debian: python3 and python3-venv) or name it: make PYTHON=/path/to/python3.12" >&2; \
	        exit 1; \
	    fi; \
	    "$$found" -m venv --clear $(VENV) || exit 1; \
	fi
	@echo "installing into $(VENV) with $$($(BIN)/python --version); torch makes this a large download" >&2
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf build dist *.egg-info _proc _book .pytest_cache .ruff_cache .hypothesis
	find clad nbs tests tools -name __pycache__ -prune -exec rm -rf {} +
	find nbs -name .ipynb_checkpoints -prune -exec rm -rf {} +
