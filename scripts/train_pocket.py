"""Train the bundled ``pocket`` model from scratch on WebDataset tars of captioned pictures and questions.

    python scripts/train_pocket.py --data DATA --out runs/pocket

DATA holds ``train/*.tar`` and ``val/*.tar`` (KEY.jpg + KEY.json with ``captions`` and ``qa``), and optionally
``extra/*.tar`` with more questions. Three stages, each from the weights of the one before: the image encoder learns
which words people use of a picture (the paper starts from a classifier too, one trained on ImageNet); pretraining (ITC
+ ITM + LM) on the captions, with the image encoder as it is; VQA likewise. Each continues from its last checkpoint when
started again. At the end OUT/bundle holds the hub folders of the bundle.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import random
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import BertWordPieceTokenizer
from torch import Tensor, nn

from openblip.checkpoints import bundle, write
from openblip.checkpoints.initialise import initialise
from openblip.decoding import Decoding, generate
from openblip.engine.eager import EagerSession
from openblip.model.answerer import Answerer
from openblip.model.build import build, count_parameters
from openblip.model.config import ModelConfig, Task, TextConfig, VisionConfig
from openblip.model.pretrainer import Pretrainer
from openblip.model.vision import VisionTransformer
from openblip.preprocess.image import ImageSettings, to_tensor
from openblip.preprocess.text import Tokenizer, clean_caption, clean_question
from openblip.training.objectives.answering import Answering, AnsweringBatch
from openblip.training.objectives.pretraining import Pretraining, PretrainingBatch

VOCABULARY = 3500
MAX_TOKENS = 30
QUEUE = 64
WORD_BATCH = 32
SETTINGS = ImageSettings(size=128)


@dataclass(frozen=True)
class Photo:
    """One picture, still encoded, with what people wrote about it."""

    data: bytes
    captions: tuple[str, ...]
    questions: tuple[tuple[str, str], ...]


def main() -> None:
    options = _arguments()
    torch.manual_seed(42)
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    options.out.mkdir(parents=True, exist_ok=True)
    train = list(_read(sorted(options.data.glob("train/*.tar"))))
    extra = list(_read(sorted(options.data.glob("extra/*.tar"))))
    val = list(_read(sorted(options.data.glob("val/*.tar"))))
    print(f"{len(train)} + {len(extra)} training pictures, {len(val)} for validation", flush=True)
    tokenizer = _vocabulary(options.out / "vocab.txt", train + extra)
    vision = _see(options, tokenizer, [p for p in train if p.captions])
    pretrainer = _pretrain(options, tokenizer, vision, [p for p in train if p.captions], [p for p in val if p.captions])
    asked = [p for p in train + extra if p.questions]
    answerer = _answer(options, tokenizer, pretrainer, asked, [p for p in val if p.questions])
    _export(options.out / "bundle", tokenizer, pretrainer, answerer)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/, val/ and extra/ tars")
    parser.add_argument("--out", type=Path, default=Path("runs/pocket"))
    parser.add_argument("--epochs", type=int, default=8, help="passes of pretraining over the captioned pictures")
    parser.add_argument("--word-epochs", type=int, default=10, help="passes of the image encoder over words")
    parser.add_argument("--vqa-epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32, help="pictures per step")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--captions", type=int, default=3, help="captions per picture and step for the LM loss")
    return parser.parse_args()


# --- data ---------------------------------------------------------------------------------------------------------


def _read(tars: list[Path]) -> Iterator[Photo]:
    for path in tars:
        with tarfile.open(path) as tar:
            data: dict[str, bytes] = {}
            for member in tar:
                stem, suffix = member.name.rsplit(".", 1)
                stream = tar.extractfile(member)
                content = stream.read() if stream else b""
                if suffix != "json":
                    data[stem] = content
                    continue
                record = json.loads(content)
                pairs = tuple((q["question"], q["answer"]) for q in record.get("qa", []))
                yield Photo(data.pop(stem), tuple(record["captions"]), pairs)


def _vocabulary(path: Path, photos: list[Photo]) -> Tokenizer:
    """A WordPiece vocabulary of the training texts, [DEC] and [ENC] at its end as in the published models."""
    if not path.exists():
        texts = [clean_caption(c) for p in photos for c in p.captions]
        texts += [part for p in photos for pair in p.questions for part in pair]
        trainer = BertWordPieceTokenizer(lowercase=True)
        specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        trainer.train_from_iterator(texts, vocab_size=VOCABULARY - 2, min_frequency=3, special_tokens=specials)
        pieces = sorted(trainer.get_vocab(), key=trainer.get_vocab().__getitem__)
        path.write_text("\n".join([*pieces, "[DEC]", "[ENC]"]) + "\n", encoding="utf-8")
    return Tokenizer.from_vocab(path)


def _augment(photo: Photo, rng: random.Random) -> np.ndarray:
    """A random crop of half the picture or more, resized; sometimes mirrored."""
    image = Image.open(io.BytesIO(photo.data)).convert("RGB")
    width, height = image.size
    area = width * height * rng.uniform(0.5, 1.0)
    ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    w, h = min(width, round(math.sqrt(area * ratio))), min(height, round(math.sqrt(area / ratio)))
    left, top = rng.randint(0, width - w), rng.randint(0, height - h)
    box = (left, top, left + w, top + h)
    image = image.resize((SETTINGS.size, SETTINGS.size), Image.Resampling.BICUBIC, box=box)
    if rng.random() < 0.5 and not any(side in c for c in photo.captions for side in ("left", "right")):
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


def _plain(photo: Photo) -> np.ndarray:
    image = Image.open(io.BytesIO(photo.data)).convert("RGB")
    return np.asarray(image.resize((SETTINGS.size, SETTINGS.size), Image.Resampling.BICUBIC))


def _pixels(pictures: list[np.ndarray]) -> Tensor:
    return to_tensor(np.stack(pictures), SETTINGS)


# --- stages -------------------------------------------------------------------------------------------------------


def _config(tokenizer: Tokenizer) -> ModelConfig:
    ids = {name: getattr(tokenizer, name) for name in ("pad_id", "cls_id", "sep_id", "dec_id", "enc_id")}
    return ModelConfig(
        task="pretrain",
        vision=VisionConfig(image_size=128, width=192, depth=6, heads=3, mlp_width=768),
        text=TextConfig(
            vocab_size=tokenizer.vocab_size, width=192, depth=3, heads=3, mlp_width=768, max_positions=64,
            memory_width=192, dropout=0.0, attention_dropout=0.0, **ids,
        ),
        embed_width=128,
    )  # fmt: skip


class Words(nn.Module):
    """Which words do people use of this picture? Softmax cross-entropy against their frequencies, from every token."""

    def __init__(self, vision: VisionTransformer, vocabulary: int) -> None:
        super().__init__()
        self.vision = vision
        self.head = nn.Linear(vision.config.width, vocabulary)

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        pixels, frequencies = batch
        tokens = self.vision(pixels)
        logits = torch.stack([self.head(tokens[:, 0]), self.head(tokens[:, 1:].mean(1))])
        return {"words": -(logits.log_softmax(-1) * frequencies).sum(-1).mean()}


def _see(options: argparse.Namespace, tokenizer: Tokenizer, train: list[Photo]) -> VisionTransformer:
    config = _config(tokenizer)
    objective = Words(VisionTransformer(config.vision), tokenizer.vocab_size)
    _draw_wide(objective)
    steps_per_epoch = len(train) // WORD_BATCH
    rows = [
        tokenizer.encode([clean_caption(c, 30) for c in p.captions], "cls", MAX_TOKENS).ids.flatten() for p in train
    ]
    counts = torch.stack([torch.bincount(row, minlength=tokenizer.vocab_size).float() for row in rows])
    counts[:, :5] = 0  # padding and the special tokens
    counts[:, counts.gt(0).float().mean(0) > 0.6] = 0  # "a", "the", "in" tell nothing of a picture
    targets = counts / counts.sum(1, keepdim=True)

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        rng = random.Random(2000 + epoch)
        order = rng.sample(range(len(train)), len(train))
        for start in range(0, steps_per_epoch * WORD_BATCH, WORD_BATCH):
            chosen = order[start : start + WORD_BATCH]
            yield _pixels([_augment(train[i], rng) for i in chosen]), targets[chosen]

    _fit(options, "words", objective, batches, objective, steps_per_epoch, options.word_epochs, options.lr,
         {"step": 0}, lambda: "")  # fmt: skip
    return objective.vision


def _draw_wide(model: nn.Module) -> None:
    """Draw weights for this width: the published spread of 0.02 suits 768, and would start this one nearly linear."""
    for name, parameter in model.named_parameters():
        if name.endswith("pos_embed"):
            nn.init.normal_(parameter, std=0.1)
        elif parameter.ndim == 2 and "embeddings" not in name and "head" not in name:
            nn.init.xavier_uniform_(parameter)


def _pretrain(
    options: argparse.Namespace, tokenizer: Tokenizer, vision: VisionTransformer, train: list[Photo], val: list[Photo]
) -> Pretrainer:
    model = build(_config(tokenizer))
    assert isinstance(model, Pretrainer)
    _draw_wide(model)
    model.vision.load_state_dict(vision.state_dict())
    # Text learns to read what the image encoder already sees; with so little training, moving both unlearns it.
    model.vision.requires_grad_(False)
    # With so few steps a slow twin and a long queue teach ITC to tell old features from new ones. Without momentum the
    # negatives are this batch and the last few pictures before it.
    objective = Pretraining(model, queue_size=QUEUE, momentum=0.0)
    print(f"pretraining {count_parameters(model) / 1e6:.1f} M parameters", flush=True)
    steps_per_epoch = len(train) // options.batch
    state = {"step": 0}

    def batches(epoch: int) -> Iterator[PretrainingBatch]:
        rng = random.Random(epoch)
        order = rng.sample(range(len(train)), len(train))
        for start in range(0, steps_per_epoch * options.batch, options.batch):
            photos = [train[i] for i in order[start : start + options.batch]]
            one = tokenizer.encode([clean_caption(rng.choice(p.captions), 30) for p in photos], "cls", MAX_TOKENS)
            many = [clean_caption(c, 30) for p in photos for c in rng.sample(p.captions, options.captions)]
            lm = tokenizer.encode(many, "dec", MAX_TOKENS)
            pixels = _pixels([_augment(p, rng) for p in photos])
            yield PretrainingBatch(pixels=pixels, ids=one.ids, mask=one.mask, lm_ids=lm.ids, lm_mask=lm.mask)

    def losses(batch: PretrainingBatch) -> dict[str, Tensor]:
        return objective(batch, alpha=0.0)

    _fit(options, "pretrain", objective, batches, losses, steps_per_epoch, options.epochs, options.lr, state,
         lambda: _show(model, tokenizer, val))  # fmt: skip
    return model


def _answer(
    options: argparse.Namespace, tokenizer: Tokenizer, source: Pretrainer, train: list[Photo], val: list[Photo]
) -> Answerer:
    model = build(replace(source.config, task="answer"))
    assert isinstance(model, Answerer)
    initialise(model, source)
    model.vision.requires_grad_(False)
    print(f"VQA {count_parameters(model) / 1e6:.1f} M parameters", flush=True)
    objective = Answering(model)
    steps_per_epoch = len(train) // options.batch

    def batches(epoch: int) -> Iterator[AnsweringBatch]:
        rng = random.Random(1000 + epoch)
        order = rng.sample(range(len(train)), len(train))
        for start in range(0, steps_per_epoch * options.batch, options.batch):
            photos = [train[i] for i in order[start : start + options.batch]]
            asked = [
                (i, q, a) for i, p in enumerate(photos) for q, a in rng.sample(p.questions, min(3, len(p.questions)))
            ]
            questions = tokenizer.encode([clean_question(q) for _, q, _ in asked], "enc", 35)
            answers = tokenizer.encode([a for _, _, a in asked], "dec")
            yield AnsweringBatch(
                pixels=_pixels([_augment(p, rng) for p in photos]),
                image=torch.tensor([i for i, _, _ in asked]),
                ids=questions.ids, mask=questions.mask, answer_ids=answers.ids, answer_mask=answers.mask,
                owner=torch.arange(len(asked)), weights=torch.ones(len(asked)),
            )  # fmt: skip

    _fit(options, "answer", objective, batches, objective, steps_per_epoch, options.vqa_epochs, options.lr / 2,
         {"step": 0}, lambda: _accuracy(model, tokenizer, val))  # fmt: skip
    return model


def _export(home: Path, tokenizer: Tokenizer, pretrainer: Pretrainer, answerer: Answerer) -> None:
    """Hub folders of the bundle, stored in half precision: caption and match are the pretrained weights themselves."""
    captioner = build(replace(pretrainer.config, task="caption"))
    matcher = build(replace(pretrainer.config, task="match"))
    for model in (captioner, matcher):
        initialise(model, pretrainer)
    models: dict[Task, nn.Module] = {"caption": captioner, "answer": answerer, "match": matcher}
    for task, model in models.items():
        prompt = "" if task == "caption" else None
        write.save(model, home / task, tokenizer=tokenizer, image=SETTINGS, prompt=prompt, dtype=torch.float16)
    bundle.write(home, {task: home / task for task in models})


def _fit(
    options: argparse.Namespace, name: str, objective: nn.Module, batches: Callable[[int], Iterator[Any]],
    losses: Callable[[Any], dict[str, Tensor]],
    steps_per_epoch: int, epochs: int, lr: float, state: dict[str, int], report: Callable[[], str],
) -> None:  # fmt: skip
    """AdamW with warm-up and cosine decay per step; a checkpoint after every epoch, from which it resumes."""
    total, warmup = steps_per_epoch * epochs, min(200, steps_per_epoch)
    decay = [p for p in objective.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in objective.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)
    path = options.out / f"{name}.pt"
    first = 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        objective.load_state_dict(saved["objective"])
        optimizer.load_state_dict(saved["optimizer"])
        first, state["step"] = saved["epoch"], saved["step"]
    with (options.out / f"{name}.jsonl").open("a") as log:
        for epoch in range(first, epochs):
            began, sums = time.monotonic(), dict[str, float]()
            objective.train()
            for batch in batches(epoch):
                step = state["step"]
                rate = lr * min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / total)) + 0.01)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                named = losses(batch)
                optimizer.zero_grad()
                torch.autograd.backward(list(named.values()))
                nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
                optimizer.step()
                state["step"] += 1
                for key, value in named.items():
                    sums[key] = sums.get(key, 0.0) + value.item() / steps_per_epoch
            objective.eval()
            seconds = time.monotonic() - began
            line = {
                "epoch": epoch + 1,
                "lr": rate,
                "seconds": round(seconds, 1),
                **{k: round(v, 4) for k, v in sums.items()},
            }
            log.write(json.dumps(line) + "\n")
            log.flush()
            print(name, json.dumps(line), flush=True)
            print(report(), flush=True)
            saved = {"objective": objective.state_dict(), "optimizer": optimizer.state_dict(),
                     "epoch": epoch + 1, "step": state["step"]}  # fmt: skip
            torch.save(saved, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)


# --- what it says -------------------------------------------------------------------------------------------------


@torch.inference_mode()
def _show(model: Pretrainer, tokenizer: Tokenizer, val: list[Photo]) -> str:
    """Text-to-image recall by ITC among the validation pictures, and a few captions."""
    pixels = _pixels([_plain(p) for p in val])
    tokens = torch.cat([model.encode_image(part) for part in torch.split(pixels, 100)])
    texts = tokenizer.encode([clean_caption(p.captions[0], 30) for p in val], "cls", MAX_TOKENS)
    scores = model.embed_text(texts.ids, texts.mask) @ model.embed_image(tokens).T
    rank = (scores > scores.diagonal()[:, None]).sum(1)
    recall = " ".join(f"R@{k} {100 * (rank < k).float().mean():.1f}" for k in (1, 5, 10))
    some = torch.arange(0, len(val), max(1, len(val) // 4))[:4]
    session = EagerSession(model.text, model.lm_head, model.text.project(tokens[some]), 32)
    prompts = torch.full((len(some), 1), tokenizer.dec_id)
    decoding = Decoding(beams=3, max_new_tokens=20, eos_id=tokenizer.sep_id, pad_id=tokenizer.pad_id)
    said = [tokenizer.decode(found[0].ids) for found in generate(session, prompts, decoding)]
    return f"  val {recall} | " + " | ".join(said)


@torch.inference_mode()
def _accuracy(model: Answerer, tokenizer: Tokenizer, val: list[Photo]) -> str:
    """Exact answers over the first two questions of each validation picture, greedily."""
    right, asked = 0, 0
    for start in range(0, len(val), 50):
        photos = val[start : start + 50]
        tokens = model.encode_image(_pixels([_plain(p) for p in photos]))
        pairs = [(i, q, a) for i, p in enumerate(photos) for q, a in p.questions[:2]]
        questions = tokenizer.encode([clean_question(q) for _, q, _ in pairs], "enc", 35)
        memory = model.encoder.project(tokens).select(torch.tensor([i for i, _, _ in pairs]))
        states = model.encode_question(questions.ids, questions.mask, memory)
        session = EagerSession(model.decoder, model.lm_head, model.decoder.project(states, questions.mask), 12)
        prompts = torch.full((len(pairs), 1), tokenizer.dec_id)
        decoding = Decoding(beams=1, max_new_tokens=10, eos_id=tokenizer.sep_id, pad_id=tokenizer.pad_id)
        said = [tokenizer.decode(found[0].ids) for found in generate(session, prompts, decoding)]
        right += sum(text == answer for text, (_, _, answer) in zip(said, pairs, strict=True))
        asked += len(pairs)
    return f"  val accuracy {100 * right / max(asked, 1):.1f} of {asked}"


if __name__ == "__main__":
    main()
