# One command per chore. Each sets up its own virtual environment in $(VENV) first; `.ci/run` chooses another place.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PHOTOS := examples/photos
SOURCES := $(shell find src -type f -not -name '*.pyc')

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench bench-jobs bench-retrieval bench-train clean

help:  ## Say what can be made
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 13

demo: $(VENV)/.installed  ## Caption, question and match the photos in examples/photos with the bundled model
	$(BIN)/openblip caption $(PHOTOS)/*.jpg
	$(BIN)/openblip ask $(PHOTOS)/astronaut.jpg -q "is there a person in the picture?" -q "what color is the suit?"
	$(BIN)/openblip match $(PHOTOS)/cat.jpg $(PHOTOS)/rocket.jpg -t "a cat" -t "a rocket in the sky"

test: $(VENV)/.installed-dev  ## Run the tests; they need no network
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: $(VENV)/.installed-dev  ## Lint, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.installed-dev  ## Mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.installed-dev  ## Measure inference beside transformers and OpenVINO (half an hour; BENCH="--quick" takes less)
	$(BIN)/python -m benchmarks.inference $(BENCH)

bench-retrieval: $(VENV)/.installed-dev  ## Measure two-stage retrieval beside transformers (BENCH="--pocket" for the bundled model)
	$(BIN)/python -m benchmarks.retrieval $(BENCH)

bench-train: $(VENV)/.installed-dev  ## Measure training beside a plain transformers loop
	$(BIN)/python -m benchmarks.training $(BENCH)

bench-jobs: $(VENV)/.installed-dev  ## Measure a captioning job over a folder beside transformers
	$(BIN)/python -m benchmarks.jobs $(BENCH)

clean:  ## Remove the virtual environment and all caches
	rm -rf $(VENV) benchmarks/.work .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# As a user has it: a copy, with everything that the wheel ships. A developer's environment, once there, is left alone.
$(VENV)/.installed: $(BIN)/python pyproject.toml $(SOURCES)
	@echo "Installing openblip into $(VENV); PyTorch is large, so this takes some minutes the first time"
	test -e $(VENV)/.installed-dev || $(BIN)/python -m pip install --quiet .
	touch $@

$(VENV)/.installed-dev: $(BIN)/python pyproject.toml
	@echo "Installing openblip and its developers' tools into $(VENV); this takes some minutes the first time"
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
