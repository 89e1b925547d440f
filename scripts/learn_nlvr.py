"""Does the NLVR2 model learn to judge statements about two pictures? Small, from scratch, on generated pairs.

    python scripts/learn_nlvr.py --seeds 3

Each picture shows a shape somewhere, in one of four colours; a statement speaks of the left one, the right one, both,
or at least one of them. Every statement is asked once where it is true and once where it is false, so nothing can be
told from its words: what is right with blank pictures is chance. Accuracy is measured on pictures that are drawn anew,
through ``Blip.compare``.

A thousand steps are too few for some seeds, which then know one of the two pictures alone.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

import openblip
from openblip.checkpoints import write
from openblip.model.build import build_model, count_parameters
from openblip.model.comparer import Comparer
from openblip.model.config import ModelConfig, TextConfig, VisionConfig
from openblip.preprocess.image import ImageSettings, resize, to_tensor
from openblip.preprocess.text import Tokenizer
from openblip.training.objectives.nlvr import NlvrBatch, NlvrObjective

SIZE = 24
COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (230, 210, 50)}
SHAPES = ("square", "circle", "triangle")
STATEMENTS = {
    "the left picture shows something {}": lambda left, right: left,
    "the right picture shows something {}": lambda left, right: right,
    "both pictures show something {}": lambda left, right: left and right,
    "at least one picture shows something {}": lambda left, right: left or right,
}
WORDS = sorted({word for text in (*STATEMENTS, *COLOURS) for word in text.split()} - {"{}"})


@dataclass(frozen=True)
class Sample:
    """A statement about two pictures."""

    left: Image.Image
    right: Image.Image
    statement: str
    true: bool


def main() -> None:
    """Train and measure for each seed, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--held-out", type=int, default=1000)
    options = parser.parse_args()
    for seed in range(options.seeds):
        began = time.process_time()
        model, tokenizer = train(seed, options.steps)
        accuracy, blank = measure(model, tokenizer, pairs(options.held_out, random.Random(10_000 + seed)))
        seconds = time.process_time() - began
        figures = {"seed": seed, "held out": accuracy, "blank pictures": blank, "processor seconds": round(seconds)}
        print(json.dumps(figures), flush=True)


def train(seed: int, steps: int, batch: int = 64, rate: float = 1e-3) -> tuple[Comparer, Tokenizer]:
    """A model from scratch, on pairs that are drawn as it goes."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer = Tokenizer.from_vocab(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])
    model = build_model(configuration(tokenizer))
    assert isinstance(model, Comparer)
    objective = NlvrObjective(model).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    seen = 0.0
    for step in range(steps):
        loss = objective(batch_of(pairs(batch, rng), tokenizer))["nlvr"]
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        seen = loss.item() if not step else 0.98 * seen + 0.02 * loss.item()
        if (step + 1) % max(1, steps // 5) == 0:
            print(f"seed {seed} step {step + 1} loss {seen:.3f} parameters {count_parameters(model)}", flush=True)
    return model.eval(), tokenizer


def configuration(tokenizer: Tokenizer) -> ModelConfig:
    """Two layers of width 64 that see, three that read, the last of which merges the two pictures by a projection."""
    text = TextConfig(
        vocab_size=tokenizer.vocab_size, width=64, depth=3, heads=4, mlp_width=128, max_positions=32, memory_width=64,
        merge_from=2, dropout=0.0, attention_dropout=0.0, cls_id=tokenizer.cls_id, sep_id=tokenizer.sep_id,
        dec_id=tokenizer.dec_id, enc_id=tokenizer.enc_id,
    )  # fmt: skip
    vision = VisionConfig(image_size=SIZE, patch_size=8, width=64, depth=2, heads=4, mlp_width=128)
    return ModelConfig(task="nlvr", vision=vision, text=text)


def measure(model: Comparer, tokenizer: Tokenizer, samples: Sequence[Sample]) -> tuple[float, float]:
    """Shares that are judged rightly, with the pictures and with blank ones in their place."""
    with tempfile.TemporaryDirectory() as folder:
        write.save(model, Path(folder) / "model", tokenizer=tokenizer, image=ImageSettings(size=SIZE))
        blip = openblip.load(Path(folder) / "model", batch_size=64)
    grey = Image.new("RGB", (SIZE, SIZE), (128, 128, 128))
    statements = [sample.statement for sample in samples]
    views = (
        ([sample.left for sample in samples], [sample.right for sample in samples]),
        ([grey] * len(samples), [grey] * len(samples)),
    )
    shares = []
    for left, right in views:
        found = blip.compare(left, right, statements)
        shares.append(sum(one.label == sample.true for one, sample in zip(found, samples, strict=True)) / len(samples))
    return shares[0], shares[1]


# --- generated pairs ----------------------------------------------------------------------------------------------


def pairs(count: int, rng: random.Random) -> list[Sample]:
    """``count`` samples: each statement once true and once false."""
    made = []
    for _ in range(count // 2):
        template, colour = rng.choice(list(STATEMENTS)), rng.choice(list(COLOURS))
        for true in (True, False):
            left, right = (picture(shown, rng) for shown in _shown(template, colour, true, rng))
            made.append(Sample(left, right, template.format(colour), true))
    return made


def _shown(template: str, colour: str, true: bool, rng: random.Random) -> tuple[str, str]:
    """The colours in the two pictures: the one that is spoken of in half of all, wherever the truth allows it."""
    others = [other for other in COLOURS if other != colour]
    while True:
        left, right = (colour if rng.random() < 0.5 else rng.choice(others) for _ in range(2))
        if STATEMENTS[template](left == colour, right == colour) == true:
            return left, right


def picture(colour: str, rng: random.Random) -> Image.Image:
    """One of three shapes in a colour, of random size and place, on a light ground."""
    shape = rng.choice(SHAPES)
    drawn = Image.new("RGB", (SIZE, SIZE), tuple(rng.randint(225, 255) for _ in range(3)))
    canvas = ImageDraw.Draw(drawn)
    side = rng.randint(9, 15)
    left, top = rng.randint(1, SIZE - side - 1), rng.randint(1, SIZE - side - 1)
    right, bottom = left + side, top + side
    paint = tuple(max(0, min(255, value + rng.randint(-20, 20))) for value in COLOURS[colour])
    if shape == "square":
        canvas.rectangle((left, top, right, bottom), fill=paint)
    elif shape == "circle":
        canvas.ellipse((left, top, right, bottom), fill=paint)
    else:
        canvas.polygon(((left, bottom), (right, bottom), ((left + right) / 2, top)), fill=paint)
    return drawn


def batch_of(samples: Sequence[Sample], tokenizer: Tokenizer) -> NlvrBatch:
    """Tensors of samples."""
    settings = ImageSettings(size=SIZE)
    text = tokenizer.encode([sample.statement for sample in samples], "enc")
    first, second = (
        to_tensor(np.stack([resize(getattr(sample, side), SIZE) for sample in samples]), settings)
        for side in ("left", "right")
    )
    targets = torch.tensor([int(sample.true) for sample in samples])
    return NlvrBatch(first=first, second=second, ids=text.ids, mask=text.mask, targets=targets)


if __name__ == "__main__":
    main()
