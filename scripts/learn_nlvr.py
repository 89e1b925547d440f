"""Measure whether a small NLVR2 model learns to judge statements about two images, from scratch.

    python scripts/learn_nlvr.py --seeds 3

Each generated image shows a shape in one of four colors; a statement is about the left image, the right image, both,
or at least one of them. Every statement comes once true and once false, so its words alone give no hint: accuracy with
blank images is chance. Accuracy is measured on new images with `Blip.compare`.

A thousand steps are too few for some seeds, whose models then use only one of the two images.
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
COLORS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (230, 210, 50)}
SHAPES = ("square", "circle", "triangle")
STATEMENTS = {
    "the left picture shows something {}": lambda left, right: left,
    "the right picture shows something {}": lambda left, right: right,
    "both pictures show something {}": lambda left, right: left and right,
    "at least one picture shows something {}": lambda left, right: left or right,
}
WORDS = sorted({word for text in (*STATEMENTS, *COLORS) for word in text.split()} - {"{}"})


@dataclass(frozen=True)
class Example:
    """A statement about two images, and whether it is true."""

    left: Image.Image
    right: Image.Image
    statement: str
    is_true: bool


def main() -> None:
    """Train and measure with each seed, and print a line of JSON per seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--steps", type=int, default=2500, help="training steps")
    parser.add_argument("--test-examples", type=int, default=1000, help="examples to measure on")
    options = parser.parse_args()
    for seed in range(options.seeds):
        start = time.process_time()
        model, tokenizer = train(seed, options.steps)
        examples = make_examples(options.test_examples, random.Random(10_000 + seed))
        accuracy, blank = measure(model, tokenizer, examples)
        seconds = round(time.process_time() - start)
        result = {"seed": seed, "accuracy": accuracy, "blank images": blank, "processor seconds": seconds}
        print(json.dumps(result), flush=True)


def train(seed: int, steps: int, batch_size: int = 64, lr: float = 1e-3) -> tuple[Comparer, Tokenizer]:
    """Train a model from scratch on generated examples."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer = Tokenizer.from_vocab(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])
    model = build_model(model_config(tokenizer))
    assert isinstance(model, Comparer)
    objective = NlvrObjective(model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    warmup = max(1, steps // 20)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    mean_loss = 0.0
    for step in range(steps):
        loss = objective(make_batch(make_examples(batch_size, rng), tokenizer))["nlvr"]
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        mean_loss = loss.item() if not step else 0.98 * mean_loss + 0.02 * loss.item()
        if (step + 1) % max(1, steps // 5) == 0:
            print(f"seed {seed} step {step + 1} loss {mean_loss:.3f} parameters {count_parameters(model)}", flush=True)
    return model.eval(), tokenizer


def model_config(tokenizer: Tokenizer) -> ModelConfig:
    """Return a configuration with two image layers and three text layers, the last of which merges the two images."""
    text = TextConfig(
        vocab_size=tokenizer.vocab_size,
        width=64,
        depth=3,
        heads=4,
        mlp_width=128,
        max_positions=32,
        memory_width=64,
        merge_from=2,
        dropout=0.0,
        attention_dropout=0.0,
        cls_id=tokenizer.cls_id,
        sep_id=tokenizer.sep_id,
        dec_id=tokenizer.dec_id,
        enc_id=tokenizer.enc_id,
    )
    vision = VisionConfig(image_size=SIZE, patch_size=8, width=64, depth=2, heads=4, mlp_width=128)
    return ModelConfig(task="nlvr", vision=vision, text=text)


def measure(model: Comparer, tokenizer: Tokenizer, examples: Sequence[Example]) -> tuple[float, float]:
    """Return the accuracy with the examples' images, and with blank images."""
    with tempfile.TemporaryDirectory() as folder:
        write.save(model, Path(folder) / "model", tokenizer=tokenizer, image=ImageSettings(size=SIZE))
        blip = openblip.load(Path(folder) / "model", batch_size=64)
    blank = Image.new("RGB", (SIZE, SIZE), (128, 128, 128))
    statements = [example.statement for example in examples]
    views = (
        ([example.left for example in examples], [example.right for example in examples]),
        ([blank] * len(examples), [blank] * len(examples)),
    )
    accuracies = []
    for left_images, right_images in views:
        comparisons = blip.compare(left_images, right_images, statements)
        correct = [c.label == example.is_true for c, example in zip(comparisons, examples, strict=True)]
        accuracies.append(sum(correct) / len(examples))
    return accuracies[0], accuracies[1]


def make_examples(count: int, rng: random.Random) -> list[Example]:
    """Generate examples: each statement once true and once false."""
    examples = []
    for _ in range(count // 2):
        template, color = rng.choice(list(STATEMENTS)), rng.choice(list(COLORS))
        for is_true in (True, False):
            left_image, right_image = (draw_shape(name, rng) for name in draw_colors(template, color, is_true, rng))
            examples.append(Example(left_image, right_image, template.format(color), is_true))
    return examples


def draw_colors(template: str, color: str, is_true: bool, rng: random.Random) -> tuple[str, str]:
    """Draw the colors of two images for which the statement is true, or false."""
    alternatives = [name for name in COLORS if name != color]
    while True:
        left_color, right_color = (color if rng.random() < 0.5 else rng.choice(alternatives) for _ in range(2))
        if STATEMENTS[template](left_color == color, right_color == color) == is_true:
            return left_color, right_color


def draw_shape(color: str, rng: random.Random) -> Image.Image:
    """Draw a shape of random kind, size and position in a color, on a light background."""
    shape = rng.choice(SHAPES)
    image = Image.new("RGB", (SIZE, SIZE), tuple(rng.randint(225, 255) for _ in range(3)))
    canvas = ImageDraw.Draw(image)
    side = rng.randint(9, 15)
    x0, y0 = rng.randint(1, SIZE - side - 1), rng.randint(1, SIZE - side - 1)
    x1, y1 = x0 + side, y0 + side
    fill = tuple(max(0, min(255, value + rng.randint(-20, 20))) for value in COLORS[color])
    if shape == "square":
        canvas.rectangle((x0, y0, x1, y1), fill=fill)
    elif shape == "circle":
        canvas.ellipse((x0, y0, x1, y1), fill=fill)
    else:
        canvas.polygon(((x0, y1), (x1, y1), ((x0 + x1) / 2, y0)), fill=fill)
    return image


def make_batch(examples: Sequence[Example], tokenizer: Tokenizer) -> NlvrBatch:
    """Return the tensors of examples."""
    settings = ImageSettings(size=SIZE)
    text = tokenizer.encode([example.statement for example in examples], "enc")
    left_pixels, right_pixels = (
        to_tensor(np.stack([resize(getattr(example, side), SIZE) for example in examples]), settings)
        for side in ("left", "right")
    )
    return NlvrBatch(
        left_pixels=left_pixels,
        right_pixels=right_pixels,
        ids=text.ids,
        mask=text.mask,
        labels=torch.tensor([int(example.is_true) for example in examples]),
    )


if __name__ == "__main__":
    main()
