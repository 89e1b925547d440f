"""Make the start of `pocket`: a vocabulary, and an image encoder that has learned words.

    python scripts/pocket_start.py --data DATA --out runs/pocket/start

The paper starts from a ViT trained on ImageNet and from BERT. Here the image encoder learns, from the training images
alone, which words people use for an image and for each box in it. The rest of the model is random, with a spread that
suits its width. DATA holds `train/*.tar` (captions, boxes, questions) and optionally `extra/*.tar`. OUT becomes the hub
folder of a pretraining model, from which `recipes/pocket` continues. A stopped run resumes from its last epoch.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import BertWordPieceTokenizer
from torch import Tensor, nn

from openblip.checkpoints import write
from openblip.data.augment import crop_box
from openblip.data.images import open_image
from openblip.data.records import Record
from openblip.data.sources import open_source
from openblip.data.sources.base import Source
from openblip.model.build import build_model, count_parameters
from openblip.model.config import ModelConfig, TextConfig, VisionConfig
from openblip.model.pretrainer import Pretrainer
from openblip.model.vision import VisionTransformer
from openblip.preprocess.image import ImageSettings, to_tensor
from openblip.preprocess.text import Tokenizer, clean_caption, clean_expression, clean_question
from openblip.training.speed import keep_freed_memory

VOCABULARY = 3500
BINS = 64  # per coordinate; each bin has a token, after a start token, as in the published grounding model
SETTINGS = ImageSettings(size=128)
MIN_VISIBLE = 0.5  # share of a box that must be inside the crop
MAX_BOXES = 8  # per image and epoch


def main() -> None:
    """Train the image encoder and write the model."""
    options = _parse_arguments()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    keep_freed_memory()
    options.out.mkdir(parents=True, exist_ok=True)
    train = _read_records(options.data / "train")
    extra = _read_records(options.data / "extra") if (options.data / "extra").is_dir() else []
    tokenizer = _make_tokenizer(options.out / "vocab.txt", [*train, *extra])
    model = _build_model(tokenizer)
    print(f"{len(train)} images, {count_parameters(model) / 1e6:.1f} M parameters", flush=True)
    examples = [_make_example(record, tokenizer) for record in train if record.captions]
    _learn_words(options, model.vision, examples)
    write.save(model, options.out, tokenizer=tokenizer, image=SETTINGS)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and extra/ tars")
    parser.add_argument("--out", type=Path, default=Path("runs/pocket/start"), help="folder to write")
    parser.add_argument("--epochs", type=int, default=60, help="passes over the captioned images")
    parser.add_argument("--batch", type=int, default=64, help="images per step")
    parser.add_argument("--lr", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--seed", type=int, default=42, help="seed of all draws")
    parser.add_argument("--bf16", action="store_true", help="train in bf16, for processors with AMX")
    return parser.parse_args()


def _read_records(folder: Path) -> list[Record]:
    source = open_source(str(folder))
    assert isinstance(source, Source)
    return list(source)


def _make_tokenizer(path: Path, records: Sequence[Record]) -> Tokenizer:
    """Return WordPieces of the training texts, with box tokens, and [DEC] and [ENC] at the end as published."""
    if not path.exists():
        texts = [clean_caption(caption) for record in records for caption in record.captions]
        texts += [clean_expression(expression.text) for record in records for expression in record.expressions]
        for record in records:
            for question in record.questions:
                texts += [clean_question(question.text), *question.answers]
        trainer = BertWordPieceTokenizer(lowercase=True)
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"[unused{i}]" for i in range(BINS + 2))]
        trainer.train_from_iterator(texts, vocab_size=VOCABULARY - 2, min_frequency=3, special_tokens=special)
        pieces = sorted(trainer.get_vocab(), key=trainer.get_vocab().__getitem__)
        path.write_text("\n".join([*pieces, "[DEC]", "[ENC]"]) + "\n", encoding="utf-8")
    return Tokenizer.from_vocab(path)


def _build_model(tokenizer: Tokenizer) -> Pretrainer:
    """Build the model with a spread for its width: the published 0.02 suits 768; here it would be nearly linear."""
    ids = {name: getattr(tokenizer, name) for name in ("pad_id", "cls_id", "sep_id", "dec_id", "enc_id")}
    config = ModelConfig(
        task="pretrain",
        vision=VisionConfig(image_size=SETTINGS.size, width=192, depth=6, heads=3, mlp_width=768, drop_path=0.1),
        text=TextConfig(
            vocab_size=tokenizer.vocab_size, width=192, depth=3, heads=3, mlp_width=768, max_positions=64,
            memory_width=192, dropout=0.0, attention_dropout=0.0, **ids,
        ),
    )  # fmt: skip
    model = build_model(config)
    for name, parameter in model.named_parameters():
        if name.endswith("pos_embed"):
            nn.init.normal_(parameter, std=0.1)
        elif parameter.ndim == 2 and "embeddings" not in name:
            nn.init.xavier_uniform_(parameter)
    return cast(Pretrainer, model)


@dataclass(frozen=True)
class Example:
    """An image, the count of each caption token (V,), boxes (R, 4) in pixels, and the tokens of each box."""

    pixels: NDArray[np.uint8]
    counts: Tensor
    boxes: NDArray[np.float32]
    box_tokens: list[list[int]]


def _make_example(record: Record, tokenizer: Tokenizer) -> Example:
    captions = tokenizer.encode([clean_caption(text, 30) for text in record.captions], "cls", 40).ids
    expressions = [expression for expression in record.expressions if clean_expression(expression.text)]
    box_tokens = []
    for expression in expressions:
        ids = tokenizer.encode([clean_expression(expression.text)], "cls", 20).ids[0].tolist()
        box_tokens.append(ids[1:-1])
    return Example(
        np.asarray(open_image(record.images[0])),
        torch.bincount(captions.flatten(), minlength=tokenizer.vocab_size).float(),
        np.asarray([expression.box for expression in expressions], np.float32).reshape(-1, 4),
        box_tokens,
    )


class WordObjective(nn.Module):
    """Softmax cross-entropy over the vocabulary: from class token and mean patch, and from the patches of boxes."""

    def __init__(self, vision: VisionTransformer, vocabulary: int) -> None:
        super().__init__()
        self.vision = vision
        self.image_head = nn.Linear(vision.config.width, vocabulary)
        self.box_head = nn.Linear(vision.config.width, vocabulary)

    def forward(self, pixels: Tensor, image_shares: Tensor, weights: Tensor, box_shares: Tensor) -> dict[str, Tensor]:
        """Return the losses `words` and `boxes`.

        Args:
            pixels: Images (B, 3, S, S).
            image_shares: Share (B, V) of each token in the captions of an image.
            weights: Weight (B, R, N) of each patch in each box; 0 for a missing box.
            box_shares: Share of each token in the expressions of each present box.
        """
        tokens = self.vision(pixels)
        image_states = torch.stack([tokens[:, 0], tokens[:, 1:].mean(1)])
        box_states = (weights.to(tokens.dtype) @ tokens[:, 1:])[weights.sum(-1) > 0]
        return {
            "words": self._loss(self.image_head(image_states), image_shares),
            "boxes": self._loss(self.box_head(box_states), box_shares),
        }

    @staticmethod
    def _loss(logits: Tensor, shares: Tensor) -> Tensor:
        return -(logits.float().log_softmax(-1) * shares).sum(-1).mean()


def _learn_words(options: argparse.Namespace, vision: VisionTransformer, examples: list[Example]) -> None:
    uninformative = _find_uninformative(examples)
    model = WordObjective(vision, len(uninformative)).train()
    steps = len(examples) // options.batch
    total = steps * options.epochs
    warmup = max(1, min(300, total // 10))
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.98), fused=True)
    checkpoint = options.out / "words.pt"
    first_epoch = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first_epoch = state["epoch"]
    for epoch in range(first_epoch, options.epochs):
        start, sums = time.monotonic(), dict[str, float]()
        rng = random.Random(f"{options.seed}/{epoch}")
        for number, batch in enumerate(_iter_batches(examples, uninformative, options.batch, rng)):
            step = epoch * steps + number
            for group in optimizer.param_groups:
                group["lr"] = options.lr * min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / total)) + 0.01)
            with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
                losses = model(*batch)
            torch.autograd.backward(torch.stack(list(losses.values())).sum())
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0.0) + loss.item() / steps
        line = {
            "epoch": epoch + 1,
            "seconds": round(time.monotonic() - start, 1),
            **{k: round(v, 4) for k, v in sums.items()},
        }
        print(json.dumps(line), flush=True)
        with (options.out / "words.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}
        torch.save(state, checkpoint.with_suffix(".tmp"))
        checkpoint.with_suffix(".tmp").replace(checkpoint)


def _find_uninformative(examples: Sequence[Example]) -> Tensor:
    """Return which tokens (V,) to ignore: special tokens, and tokens of most images ("a", "in", "the")."""
    share = torch.stack([example.counts.gt(0) for example in examples]).float().mean(0)
    uninformative = share > 0.6
    uninformative[:5] = True
    return uninformative


def _iter_batches(
    examples: Sequence[Example], uninformative: Tensor, size: int, rng: random.Random
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    order = rng.sample(range(len(examples)), len(examples))
    for start in range(0, len(order) - size + 1, size):
        chosen = [examples[i] for i in order[start : start + size]]
        views = [_random_view(example, rng) for example in chosen]
        pixels = to_tensor(torch.from_numpy(np.stack([view for view, _, _ in views])), SETTINGS)
        weights = torch.zeros(size, MAX_BOXES, (SETTINGS.size // 16) ** 2)
        for row, (_, boxes, _) in zip(weights, views, strict=True):
            row[: len(boxes)] = _patch_weights(boxes)
        box_tokens = [tokens for _, _, tokens_of_boxes in views for tokens in tokens_of_boxes]
        box_counts = torch.zeros(len(box_tokens), len(uninformative))
        for counts, tokens in zip(box_counts, box_tokens, strict=True):
            counts[tokens] = 1.0
        image_counts = torch.stack([example.counts for example in chosen])
        yield _jitter(pixels, rng), _shares(image_counts, uninformative), weights, _shares(box_counts, uninformative)


def _random_view(example: Example, rng: random.Random) -> tuple[NDArray[np.uint8], NDArray[Any], list[list[int]]]:
    """Return a random crop, sometimes mirrored, and some of its boxes, in shares of its sides, with their tokens."""
    height, width = example.pixels.shape[:2]
    x0, y0, x1, y1 = crop_box(width, height, 0.35, rng)
    image = Image.fromarray(example.pixels[y0:y1, x0:x1])
    pixels = np.asarray(image.resize((SETTINGS.size, SETTINGS.size), Image.Resampling.BICUBIC))
    boxes = (example.boxes - [x0, y0, x0, y0]) / [x1 - x0, y1 - y0, x1 - x0, y1 - y0]
    if rng.random() < 0.5:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
        boxes = np.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], 1)
    clipped = boxes.clip(0, 1)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], 1)
    visible = np.prod(clipped[:, 2:] - clipped[:, :2], 1) / np.maximum(area, 1e-6)
    inside = np.flatnonzero(visible >= MIN_VISIBLE).tolist()
    chosen = rng.sample(inside, min(MAX_BOXES, len(inside)))
    return pixels, clipped[chosen], [example.box_tokens[i] for i in chosen]


def _patch_weights(boxes: NDArray[Any]) -> Tensor:
    """Return the share (R, N) of each patch in each box, for boxes (R, 4) in shares of the image's sides."""
    grid = SETTINGS.size // 16
    edges = np.arange(grid + 1, dtype=np.float32) / grid

    def overlap(low: NDArray[Any], high: NDArray[Any]) -> NDArray[Any]:
        return (np.minimum(high[:, None], edges[None, 1:]) - np.maximum(low[:, None], edges[None, :-1])).clip(min=0)

    columns, rows = overlap(boxes[:, 0], boxes[:, 2]), overlap(boxes[:, 1], boxes[:, 3])
    areas = (rows[:, :, None] * columns[:, None, :]).reshape(len(boxes), grid * grid)
    return torch.from_numpy((areas / np.maximum(areas.sum(1, keepdims=True), 1e-9)).astype(np.float32))


def _shares(counts: Tensor, uninformative: Tensor) -> Tensor:
    """Return the share of each token, without the uninformative ones."""
    counts = counts.masked_fill(uninformative, 0.0)
    return counts / counts.sum(1, keepdim=True).clamp(min=1.0)


def _jitter(pixels: Tensor, rng: random.Random) -> Tensor:
    """Change brightness, contrast and saturation of normalized pixels (B, 3, S, S) by up to 40 %."""
    generator = torch.Generator().manual_seed(rng.getrandbits(62))
    factor = 0.6 + 0.8 * torch.rand(3, len(pixels), 1, 1, 1, generator=generator)
    gray = pixels.mean(1, keepdim=True)
    pixels = gray.lerp(pixels, factor[0])
    mean = pixels.mean((1, 2, 3), keepdim=True)
    return mean.lerp(pixels, factor[1]) + (factor[2] - 1)


if __name__ == "__main__":
    main()
