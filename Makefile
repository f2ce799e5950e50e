# make reproduce      run the main job: all methods on the digits that come with scikit-learn (no download)
# make reproduce-all  run the whole paper: every table and Figure 3 (days; goes on where it was stopped)
# make figures        draw every table and figure from the records alone
# make test           everything that must hold: notebooks == package, linter, all notebooks, test suite
# make lab            open the book in JupyterLab
# make book           build the book as a web site in _book/, from the notebooks as they are stored
# make notebooks      run the notebooks again and store their outputs (after an edit)
# make clean          remove what builds and tests leave behind (.venv and figures/ stay)
#
# Variables, as in `make reproduce DATASET=mnist SCENARIO=CUR SEEDS="0 1 2"` or in the environment:
DATASET  ?= digits
SCENARIO ?= CUR STR MIX
METHODS  ?=
SETTINGS ?= short
SEEDS    ?= 0
# instead of what the settings say (CLAD); empty: as they say
N_CLUSTERS  ?=
HIDDEN_DIM  ?=
TEMPERATURE ?=
EPSILON     ?=
# runs at a time (empty: one for each GPU, else for each core), and through what: loky, dask, ray
JOBS    ?=
BACKEND ?= loky
# where records and tables go, and where the real data is (empty: figures/results; $CLAD_DATA or the user's cache)
RESULTS   ?=
DATA_ROOT ?=
# the notebooks of `make notebooks`
NOTEBOOKS ?= $(sort $(wildcard nbs/*.ipynb nbs/*/*.ipynb))
# the interpreter for the environment: the first of these that exists and fits
PYTHON ?= python3.13 python3.12 python3.11 python3

VARIABLES = DATASET SCENARIO METHODS SETTINGS SEEDS N_CLUSTERS HIDDEN_DIM TEMPERATURE EPSILON JOBS BACKEND \
            RESULTS DATA_ROOT NOTEBOOKS PYTHON
given   := $(foreach v,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $v))),$v))
unknown := $(filter-out $(VARIABLES),$(given))
ifneq ($(unknown),)
$(error there is no variable $(unknown) here; the variables are $(VARIABLES))
endif

VENV  = .venv
BIN   = $(VENV)/bin
STAMP = $(VENV)/installed
# what chapters train that others train too, kept from one to the other within `make test`
SHARED = $(VENV)/stages
# one thread per process: OpenMP threads of neighbouring processes would wait for each other
ALONE = OMP_NUM_THREADS=1
# the installation compiles nothing beforehand: each library is compiled when it is first imported, and that is kept
unexport PYTHONDONTWRITEBYTECODE
CORES = $$($(BIN)/python -c "import joblib; print(min(joblib.cpu_count(), 4))")
FITS  = import ensurepip, sys, venv; print("fits" if (3, 11) <= sys.version_info < (3, 14) else "")

# one word for the shell, whatever is in it; each word of a list; a flag with its value, or with its values, if any
one  = '$(subst ','\'',$(1))'
each = $(foreach word,$(1),$(call one,$(word)))
flag = $(if $(2),--$(1)=$(call one,$(2)))
list = $(if $(2),--$(1) $(call each,$(2)))
PLACES = $(call flag,results,$(RESULTS)) $(call flag,data-root,$(DATA_ROOT))
HOW    = $(call flag,settings,$(SETTINGS)) $(call list,methods,$(METHODS)) $(call list,seeds,$(SEEDS)) \
         $(call flag,jobs,$(JOBS)) $(call flag,backend,$(BACKEND))
WHAT   = $(call flag,dataset,$(DATASET)) $(call list,scenario,$(SCENARIO)) $(call flag,n_clusters,$(N_CLUSTERS)) \
         $(call flag,hidden_dim,$(HIDDEN_DIM)) $(call flag,temperature,$(TEMPERATURE)) $(call flag,epsilon,$(EPSILON))

.PHONY: help reproduce reproduce-all figures test lab book notebooks environment clean
.DEFAULT_GOAL = help

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

reproduce: $(STAMP)
	@$(BIN)/clad reproduce $(WHAT) $(HOW) $(PLACES)

reproduce-all: $(STAMP)
	@$(BIN)/clad reproduce --all $(HOW) $(PLACES)

figures: $(STAMP)
	@$(BIN)/clad figures $(call flag,results,$(RESULTS)) --runs=figures/runs
	@$(BIN)/python tools/drawn.py

# tools/alive.py passes a command's output on, and says every few seconds that it goes on
test: $(STAMP)
	$(BIN)/ruff check --quiet clad nbs tests tools
	rm -rf $(SHARED)
	$(ALONE) CLAD_STAGES=$(CURDIR)/$(SHARED) $(BIN)/python tools/alive.py $(BIN)/nbdev_test --do_print \
	    --n_workers $(CORES)
	$(ALONE) $(BIN)/python tools/alive.py $(BIN)/python -m pytest -q tests -n $(CORES) --dist loadfile \
	    --no-loadscope-reorder

lab: $(STAMP)
	$(BIN)/jupyter lab nbs/index.ipynb

book: $(STAMP)
	@$(BIN)/python tools/book.py

notebooks: $(STAMP)
	$(BIN)/nbdev_export
	$(ALONE) $(BIN)/python tools/save_outputs.py $(NOTEBOOKS)
	$(BIN)/nbdev_clean
	$(BIN)/python tools/drawn.py
	$(BIN)/python tools/readme.py

environment: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@fits() { [ "$$("$$1" -c '$(FITS)' 2>/dev/null)" = fits ]; }; \
	if ! fits $(BIN)/python; then \
	    for p in $(call each,$(PYTHON)); do \
	        if fits "$$p"; then found=$$p; break; fi; \
	    done; \
	    if [ -z "$$found" ]; then \
	        echo "No Python 3.11, 3.12 or 3.13 with the venv module among:" $(call each,$(PYTHON)) \
	             ". Install one (Debian: python3 and python3-venv) or name it: make PYTHON=/path/to/python3.12" >&2; \
	        exit 1; \
	    fi; \
	    "$$found" -m venv --clear $(VENV) || exit 1; \
	fi
	@echo "installing into $(VENV) with $$($(BIN)/python --version); torch makes this a large download" >&2
	@$(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf build dist *.egg-info _proc _book .pytest_cache .ruff_cache .hypothesis figures/results/.batch
	find clad nbs tests tools -name __pycache__ -prune -exec rm -rf {} +
	find nbs -name .ipynb_checkpoints -prune -exec rm -rf {} +
