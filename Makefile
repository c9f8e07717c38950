# Two commands do everything on a fresh machine with Python 3.11, 3.12 or 3.13 and make: `make demo` and `make test`.
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3; do $$name -c "" 2>/dev/null && echo $$name && break; done)
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready
# `make compat`: the first and the last releases that pyproject.toml allows, everything else as pinned.
COMPAT = .venv-compat
COMPAT_TESTS ?= tests/parity tests/core tests/front tests/artifact/test_artifact_families.py
OLDEST = $$(sed -nE 's/^ *"(torch|transformers)>=([0-9.]+),.*/\1==\2/p' pyproject.toml)
NEWEST = $$(sed -nE 's/^ *"((torch|transformers)>=[0-9.,<]+)".*/\1/p' pyproject.toml)
OTHERS = "setuptools>=77" $$(grep -vE '^(\#|torch=|transformers=|tokenizers=|setuptools=|tensorrt|ruff=|mypy=)' requirements-tested.txt)
PYTEST = -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# `make gpu`: on a GPU's own Python, with torch for that GPU, where there is no VENV. PARTS="steps cuda-graphs" runs these alone.
DEVICE ?= cuda
GPU_PYTHON ?= $(if $(wildcard $(READY)),$(BIN)/python,$(PYTHON))

.PHONY: help install demo show test full check heavy fuzz gpu compat compat-oldest compat-pinned compat-newest lint golden bench eval docs support clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

install: $(READY)  ## make the virtual environment from requirements-tested.txt

$(READY): requirements-tested.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $$(grep '^torch==' requirements-tested.txt)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-tested.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: $(READY)  ## ask the bundled model questions, full and compiled
	$(BIN)/lightvlm demo
	$(BIN)/lightvlm show lightvlm_fx/bundled/pictures/1-crowd.png --output out/show.png

test: $(READY) lint  ## lint, types and tests, on two cores
	$(BIN)/python $(PYTEST)

full: $(READY) lint  ## everything that `make test` runs, and the rest of its matrices; what CI runs
	$(BIN)/python $(PYTEST) -m "not heavy"

# Without the files of core that compile and answer most: threads, calibration, following a source that changes; `make test` has them.
check: $(READY) lint  ## lint, types, core, passes, ops: two minutes
	$(BIN)/python $(PYTEST) tests/core tests/passes tests/ops tests/test_catalogue.py $(patsubst %,--ignore tests/core/test_%.py,threads calibration follow)

heavy: $(READY)  ## what takes gigabytes or minutes: weights above 2 GB, AOTInductor
	$(BIN)/python -m pytest -m heavy

gpu:  ## every check and table that needs a GPU, into out/ (25 minutes; DEVICE=cpu: the same at a tiny shape; docs/gpu.md)
	$(GPU_PYTHON) -m lightvlm_fx bench gpu --device $(DEVICE) --output out $(PARTS:%=--part %)

fuzz: $(READY)  ## random schedules, forged artifacts, killed exports, threads: clear, wrong, crash, hang (minutes)
	$(BIN)/python -m tests.fuzz.schedules --count 100000
	$(BIN)/python -m tests.fuzz.forgeries --count 1000
	$(BIN)/python -m tests.fuzz.kills --count 50
	$(BIN)/python -m tests.fuzz.threads --threads 8 --requests 40

compat: compat-oldest compat-pinned compat-newest  ## parity, core, front and export on the oldest, pinned and newest torch and transformers

compat-pinned: $(READY)
	$(BIN)/python $(PYTEST) $(COMPAT_TESTS)

compat-oldest compat-newest: compat-%: $(COMPAT)/%/.ready
	$(COMPAT)/$*/bin/pip list --disable-pip-version-check | grep -E '^(torch|transformers) '
	$(COMPAT)/$*/bin/python $(PYTEST) $(COMPAT_TESTS)

$(COMPAT)/oldest/.ready: WANTED = $(OLDEST)
$(COMPAT)/newest/.ready: WANTED = $(NEWEST)
$(COMPAT)/%/.ready: requirements-tested.txt pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check --no-compile $(WANTED) $(OTHERS)
	$(@D)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

lint: $(READY)  ## lint check, types
	$(BIN)/ruff check .
	$(BIN)/mypy

golden: $(READY)  ## write the golden texts anew; read the diff before committing it
	$(BIN)/python -m pytest --update-golden

bench: $(READY)  ## prefill speed at the 0.5B shape (minutes)
	$(BIN)/lightvlm bench prefill

eval: $(READY)  ## accuracy of the bundled model, full and under schedules (minutes)
	$(BIN)/lightvlm eval

docs: $(READY)  ## write docs/methods.md and docs/api.md anew
	$(BIN)/python -m lightvlm_fx.methods_page
	$(BIN)/python docs/api.py

support: $(READY)  ## write docs/support.md and docs/methods-on-families.json anew (twenty minutes)
	$(BIN)/python -m lightvlm_fx.support
	$(BIN)/python -m lightvlm_fx.support_methods

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) $(COMPAT) .pytest_cache .ruff_cache .mypy_cache .hypothesis out
