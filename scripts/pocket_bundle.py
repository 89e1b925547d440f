"""Store the trained models of `pocket` as a bundle, in half precision.

    python scripts/pocket_bundle.py --runs DATA/runs/pocket --out DATA/runs/pocket/bundle

Tensors that the models have in common, such as those of the frozen stem, are stored once. `scripts/pocket_figures.py`
measures a bundle.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from openblip.checkpoints import read, write
from openblip.checkpoints.folder import write_bundle
from openblip.checkpoints.shared import share_tensors
from openblip.generation import GenerationDefaults
from openblip.model.grounder import Grounder
from openblip.tasks import TaskName

# The run that ends in the model of a task.
RUNS: dict[TaskName, str] = {
    "caption": "caption",
    "vqa": "vqa-more",
    "retrieval": "retrieval",
    "grounding": "grounding",
}
GENERATION = GenerationDefaults(no_repeat_ngram_size=2)  # without it, captions repeat themselves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs of recipes/pocket")
    parser.add_argument("--out", type=Path, required=True, help="folder of the bundle")
    options = parser.parse_args()
    store(options.runs, options.out)
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(f"{options.out}: {size / 1e6:.1f} MB")


def store(runs: Path, out: Path) -> None:
    """Write the trained models as members of a bundle that share their common tensors."""
    models: dict[TaskName, Path] = {}
    for task, run in RUNS.items():
        loaded = read.load(runs / run / "model")
        if isinstance(loaded.model, Grounder):
            share_words(loaded.model)
        write.save(loaded, out / task, dtype=torch.float16, generation=GENERATION)
        models[task] = out / task
    share_tensors(list(models.values()))
    write_bundle(out, models)


def share_words(model: Grounder) -> None:
    """Give the three text transformers of a grounder one table of word vectors.

    The table has the decoder's vectors of the tokens that the decoder reads and writes, and the text encoder's vectors
    of all words. The third transformer reads states, not words.
    """
    config, state = model.config, model.state_dict()
    words = state["text.embeddings.word.weight"].clone()
    rows = [*range(config.box_start_id, config.box_start_id + config.box_bins + 2), config.text.dec_id]
    words[rows] = state["decoder.embeddings.word.weight"][rows]
    for name in ("text", "fusion", "decoder"):
        state[f"{name}.embeddings.word.weight"] = words
    model.load_state_dict(state)


if __name__ == "__main__":
    main()
