"""Store the trained models of `pocket` as a bundle, in half precision.

    python scripts/pocket_bundle.py --runs DATA/runs/pocket --out DATA/runs/pocket/bundle

Tensors that the models have in common, such as most of the CNN and the word vectors, are stored once.
`scripts/pocket_figures.py` measures a bundle.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import cast

import torch

from openblip.checkpoints import read, write
from openblip.checkpoints.folder import write_bundle
from openblip.checkpoints.shared import share_tensors
from openblip.errors import ConfigError
from openblip.generation import GenerationDefaults
from openblip.model.answerer import Answerer
from openblip.model.grounder import Grounder
from openblip.model.matcher import Matcher
from openblip.tasks import TaskName

# The run that ends in the model of a task.
RUNS: dict[TaskName, str] = {
    "caption": "caption-final",
    "vqa": "vqa-shared",
    "retrieval": "retrieval-tuned",
    "grounding": "grounding-shared",
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
    loaded = {task: read.load(runs / run / "model") for task, run in RUNS.items()}
    share_words(
        cast(Matcher, loaded["retrieval"].model),
        cast(Answerer, loaded["vqa"].model),
        cast(Grounder, loaded["grounding"].model),
    )
    models = {task: out / task for task in loaded}
    for task, folder in models.items():
        write.save(loaded[task], folder, dtype=torch.float16, generation=GENERATION)
        (folder / "tokenizer.json").unlink()  # vocab.txt stores the same in a third of the bytes
    share_tensors(list(models.values()))
    write_bundle(out, models)


@torch.no_grad()
def share_words(matcher: Matcher, answerer: Answerer, grounder: Grounder) -> None:
    """Give the text transformers of three models one table of word vectors.

    The table has the vectors of all words, with which the models were trained, and the vectors of the grounder's
    decoder for the box tokens, which no other model uses. The fusion encoder uses no word vectors.

    Raises:
        ConfigError: If the models were not trained with the same vectors.
    """
    trained = (matcher.text, answerer.encoder, answerer.decoder, grounder.text)
    tables = [transformer.embeddings.word.weight for transformer in (*trained, grounder.fusion, grounder.decoder)]
    if not all(torch.equal(table, tables[0]) for table in tables[: len(trained)]):
        raise ConfigError("the models must have the same word vectors: copy and freeze them before training")
    config, words = grounder.config, tables[0].clone()
    rows = range(config.box_start_id, config.box_start_id + config.box_bins + 2)
    words[rows] = grounder.decoder.embeddings.word.weight[rows]
    for table in tables:
        table.copy_(words)


if __name__ == "__main__":
    main()
