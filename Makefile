# Two commands do everything on a fresh machine with Python 3.11 and make: `make demo` and `make test`.
PYTHON ?= python3.11
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: help install demo show test heavy lint golden bench eval support clean

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

test: $(READY) lint  ## lint, types and all tests, on two cores
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

heavy: $(READY)  ## what takes gigabytes or minutes: weights above 2 GB, AOTInductor
	$(BIN)/python -m pytest -m heavy

lint: $(READY)  ## format and lint check, types
	$(BIN)/ruff check .
	$(BIN)/mypy

golden: $(READY)  ## write the golden texts anew; read the diff before committing it
	$(BIN)/python -m pytest --update-golden

bench: $(READY)  ## prefill speed at the 0.5B shape (minutes)
	$(BIN)/lightvlm bench prefill

eval: $(READY)  ## accuracy of the bundled model, full and under schedules (minutes)
	$(BIN)/lightvlm eval

support: $(READY)  ## write docs/support.md anew
	$(BIN)/python -m lightvlm_fx.support

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis out
