"""What ``pocket`` starts from: a vocabulary, and an image encoder that has learned words.

    python scripts/pocket_start.py --data DATA --out runs/pocket/start

The paper starts from a ViT that had learned the classes of ImageNet and from BERT. Here the image encoder learns which
words people use of a picture, and which ones of each box in it, from the training pictures alone; the rest of the model
is drawn at random, with a spread that suits its width. DATA holds ``train/*.tar`` (captions, boxes, questions) and
optionally ``extra/*.tar``. OUT becomes the hub folder of a pretraining model, from which ``recipes/pocket`` goes on; a
run that was stopped goes on from its last pass.
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
BINS = 64  # of a coordinate; as in the published grounding model, each has a token of its own, after a start token
SETTINGS = ImageSettings(size=128)
SEEN = 0.5  # a box counts if this share of it is inside the crop
BOXES = 8  # per picture and pass


def main() -> None:
    options = _arguments()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    keep_freed_memory()
    options.out.mkdir(parents=True, exist_ok=True)
    train = _records(options.data / "train")
    extra = _records(options.data / "extra") if (options.data / "extra").is_dir() else []
    tokenizer = _vocabulary(options.out / "vocab.txt", [*train, *extra])
    model = _draw(tokenizer)
    print(f"{len(train)} pictures; {count_parameters(model) / 1e6:.1f} M parameters to pretrain", flush=True)
    _learn_words(options, model.vision, [_described(record, tokenizer) for record in train if record.captions])
    write.save(model, options.out, tokenizer=tokenizer, image=SETTINGS)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and extra/ tars")
    parser.add_argument("--out", type=Path, default=Path("runs/pocket/start"))
    parser.add_argument("--epochs", type=int, default=60, help="passes over the captioned pictures")
    parser.add_argument("--batch", type=int, default=64, help="pictures per step")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--bf16", action="store_true", help="where the processor multiplies bf16 fast (AMX)")
    return parser.parse_args()


def _records(folder: Path) -> list[Record]:
    source = open_source(str(folder))
    assert isinstance(source, Source)
    return list(source)


def _vocabulary(path: Path, records: Sequence[Record]) -> Tokenizer:
    """WordPieces of the training texts, the tokens of box coordinates, and [DEC] and [ENC] at the end as published."""
    if not path.exists():
        texts = [clean_caption(caption) for record in records for caption in record.captions]
        texts += [clean_expression(ref.text) for record in records for ref in record.expressions]
        texts += [part for r in records for q in r.questions for part in (clean_question(q.text), *q.answers)]
        trainer = BertWordPieceTokenizer(lowercase=True)
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"[unused{i}]" for i in range(BINS + 2))]
        trainer.train_from_iterator(texts, vocab_size=VOCABULARY - 2, min_frequency=3, special_tokens=special)
        pieces = sorted(trainer.get_vocab(), key=trainer.get_vocab().__getitem__)
        path.write_text("\n".join([*pieces, "[DEC]", "[ENC]"]) + "\n", encoding="utf-8")
    return Tokenizer.from_vocab(path)


def _draw(tokenizer: Tokenizer) -> Pretrainer:
    """The model, drawn for its width: the published spread of 0.02 suits 768; this one would start nearly linear."""
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


# --- words --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Described:
    """A picture; how often each token is said of it; its boxes (R, 4) in pixels, and the tokens said of each."""

    pixels: NDArray[np.uint8]
    said: Tensor
    boxes: NDArray[np.float32]
    named: list[list[int]]


def _described(record: Record, tokenizer: Tokenizer) -> Described:
    captions = tokenizer.encode([clean_caption(text, 30) for text in record.captions], "cls", 40).ids
    refs = [ref for ref in record.expressions if clean_expression(ref.text)]
    named = [tokenizer.encode([clean_expression(ref.text)], "cls", 20).ids[0].tolist()[1:-1] for ref in refs]
    return Described(
        np.asarray(open_image(record.images[0])),
        torch.bincount(captions.flatten(), minlength=tokenizer.vocab_size).float(),
        np.asarray([ref.box for ref in refs], np.float32).reshape(-1, 4),
        named,
    )


class Words(nn.Module):
    """Softmax cross-entropy over the vocabulary: of a picture from its class token and from its mean patch, and of a
    box from the patches in it.
    """

    def __init__(self, vision: VisionTransformer, vocabulary: int) -> None:
        super().__init__()
        self.vision = vision
        self.picture = nn.Linear(vision.config.width, vocabulary)
        self.box = nn.Linear(vision.config.width, vocabulary)

    def forward(self, pixels: Tensor, said: Tensor, weights: Tensor, named: Tensor) -> dict[str, Tensor]:
        """Losses of pictures (B, 3, S, S), up to R boxes of each and the shares of tokens ``said`` (B, V) of them.

        ``weights`` (B, R, N) are those of the patches in a box, 0 where there is no box; ``named`` holds the shares of
        tokens of each box that there is.
        """
        tokens = self.vision(pixels)
        whole = torch.stack([tokens[:, 0], tokens[:, 1:].mean(1)])
        inside = (weights.to(tokens.dtype) @ tokens[:, 1:])[weights.sum(-1) > 0]
        return {"words": self._loss(self.picture(whole), said), "boxes": self._loss(self.box(inside), named)}

    @staticmethod
    def _loss(logits: Tensor, shares: Tensor) -> Tensor:
        return -(logits.float().log_softmax(-1) * shares).sum(-1).mean()


def _learn_words(options: argparse.Namespace, vision: VisionTransformer, pictures: list[Described]) -> None:
    usual = _usual(pictures)
    model = Words(vision, len(usual)).train()
    steps = len(pictures) // options.batch
    total, warmup = steps * options.epochs, min(300, steps * options.epochs // 10)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.98), fused=True)
    saved = options.out / "words.pt"
    begun = 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        begun = state["epoch"]
    for epoch in range(begun, options.epochs):
        began, sums = time.monotonic(), dict[str, float]()
        for number, batch in enumerate(
            _batches(pictures, usual, options.batch, random.Random(f"{options.seed}/{epoch}"))
        ):
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
            "seconds": round(time.monotonic() - began, 1),
            **{k: round(v, 4) for k, v in sums.items()},
        }
        print(json.dumps(line), flush=True)
        with (options.out / "words.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}
        torch.save(state, saved.with_suffix(".tmp"))
        saved.with_suffix(".tmp").replace(saved)


def _usual(pictures: Sequence[Described]) -> Tensor:
    """Which tokens (V,) tell nothing of a picture: special ones, and those said of most ("a", "in", "the")."""
    share = torch.stack([picture.said.gt(0) for picture in pictures]).float().mean(0)
    usual = share > 0.6
    usual[:5] = True
    return usual


def _batches(
    pictures: Sequence[Described], usual: Tensor, size: int, rng: random.Random
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    order = rng.sample(range(len(pictures)), len(pictures))
    for start in range(0, len(order) - size + 1, size):
        chosen = [pictures[i] for i in order[start : start + size]]
        views = [_view(picture, rng) for picture in chosen]
        pixels = to_tensor(torch.from_numpy(np.stack([view for view, _, _ in views])), SETTINGS)
        weights = torch.zeros(size, BOXES, (SETTINGS.size // 16) ** 2)
        for row, (_, boxes, _) in zip(weights, views, strict=True):
            row[: len(boxes)] = _overlaps(boxes)
        names = [tokens for _, _, names in views for tokens in names]
        named = torch.zeros(len(names), len(usual))
        for shares, tokens in zip(named, names, strict=True):
            shares[tokens] = 1.0
        said = torch.stack([picture.said for picture in chosen])
        yield _jitter(pixels, rng), _shares(said, usual), weights, _shares(named, usual)


def _view(picture: Described, rng: random.Random) -> tuple[NDArray[np.uint8], NDArray[Any], list[list[int]]]:
    """A random crop, sometimes mirrored, resized; and some of the boxes that are in it, in shares of its sides."""
    height, width = picture.pixels.shape[:2]
    left, top, right, bottom = crop_box(width, height, 0.35, rng)
    image = Image.fromarray(picture.pixels[top:bottom, left:right])
    pixels = np.asarray(image.resize((SETTINGS.size, SETTINGS.size), Image.Resampling.BICUBIC))
    boxes = (picture.boxes - [left, top, left, top]) / [right - left, bottom - top, right - left, bottom - top]
    if rng.random() < 0.5:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
        boxes = np.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], 1)
    cut = boxes.clip(0, 1)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], 1)
    seen = np.prod(cut[:, 2:] - cut[:, :2], 1) / np.maximum(area, 1e-6)
    inside = np.flatnonzero(seen >= SEEN).tolist()
    kept = rng.sample(inside, min(BOXES, len(inside)))
    return pixels, cut[kept], [picture.named[i] for i in kept]


def _overlaps(boxes: NDArray[Any]) -> Tensor:
    """The share (R, N) that each patch has in each box, of boxes (R, 4) in shares of the picture's sides."""
    grid = SETTINGS.size // 16
    edges = np.arange(grid + 1, dtype=np.float32) / grid

    def along(low: NDArray[Any], high: NDArray[Any]) -> NDArray[Any]:
        return (np.minimum(high[:, None], edges[None, 1:]) - np.maximum(low[:, None], edges[None, :-1])).clip(min=0)

    across, down = along(boxes[:, 0], boxes[:, 2]), along(boxes[:, 1], boxes[:, 3])
    areas = (down[:, :, None] * across[:, None, :]).reshape(len(boxes), grid * grid)
    return torch.from_numpy((areas / np.maximum(areas.sum(1, keepdims=True), 1e-9)).astype(np.float32))


def _shares(counts: Tensor, usual: Tensor) -> Tensor:
    counts = counts.masked_fill(usual, 0.0)
    return counts / counts.sum(1, keepdim=True).clamp(min=1.0)


def _jitter(pixels: Tensor, rng: random.Random) -> Tensor:
    """Brightness, contrast and saturation of each picture changed by up to 40 %, on normalised pixels (B, 3, S, S)."""
    factor = 0.6 + 0.8 * torch.rand(
        3, len(pixels), 1, 1, 1, generator=torch.Generator().manual_seed(rng.getrandbits(62))
    )
    grey = pixels.mean(1, keepdim=True)
    pixels = grey.lerp(pixels, factor[0])
    mean = pixels.mean((1, 2, 3), keepdim=True)
    return mean.lerp(pixels, factor[1]) + (factor[2] - 1)


if __name__ == "__main__":
    main()
