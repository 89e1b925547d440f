"""How a model is doing in the middle of its training: figures on validation data, and what it says of fixed pictures.

These are quick looks, not benchmarks. What a benchmark measures can be handed to the run in their place or beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn

from openblip.data.images import open_image
from openblip.data.loader import Loader
from openblip.data.records import Record
from openblip.data.sources.base import Source, Stream
from openblip.data.tasks import RetrievalTask
from openblip.decoding import Decoding, decode_boxes, generate
from openblip.decoding.boxes import COORDINATES
from openblip.engine.eager import EagerSession
from openblip.errors import ImageError
from openblip.model.answerer import Answerer
from openblip.model.captioner import Captioner
from openblip.model.comparer import Comparer
from openblip.model.grounder import Grounder
from openblip.model.matcher import Matcher
from openblip.model.pretrainer import Pretrainer
from openblip.preprocess.image import load_image, resize, to_tensor
from openblip.preprocess.settings import ImageSettings
from openblip.preprocess.text import Tokenizer, clean_question
from openblip.training.config import Recipe
from openblip.training.distributed import Place
from openblip.training.loop import Evaluation, Progress
from openblip.training.objectives.comparing import ComparingBatch
from openblip.training.objectives.dialogs import DialogBatch, dialog_logits
from openblip.training.objectives.gathering import Gather
from openblip.training.objectives.grounding import GroundingBatch, corners
from openblip.training.objectives.retrieval import RetrievalBatch
from openblip.training.tasks import data_task, make_objective, open_val, val_loader

NEW_TOKENS = 20


@dataclass(frozen=True)
class Shown:
    """A picture that is described at each evaluation: normalised pixels (3, S, S), and what VQA is asked about it."""

    name: str
    pixels: Tensor
    question: str = ""


class Watch:
    """The evaluation of a run: validation figures if there is validation data, samples if there are pictures.

    - caption, vqa: ``val_loss``.
    - nlvr, visdial: ``val_loss`` and ``accuracy``.
    - grounding: ``val_loss`` and ``accuracy``, the share of boxes with IoU >= 0.5.
    - retrieval, pretrain: recall among the validation pictures by ITC, ``t2i_r1`` ... ``i2t_r10`` in percent, and their
      mean ``r_mean``.
    """

    def __init__(
        self,
        recipe: Recipe,
        tokenizer: Tokenizer,
        image: ImageSettings,
        prompt: str | None,
        place: Place,
        train: Source | Stream,
    ) -> None:
        self.recipe, self.tokenizer, self.image, self.place = recipe, tokenizer, image, place
        self.prompt = prompt or ""
        self.task = data_task(recipe, tokenizer, image, prompt, train=False)
        source = open_val(recipe.data)
        self.loader = self._loader(source) if source is not None else None
        talks = recipe.task in ("caption", "vqa", "pretrain")
        self.shown = list(self._shown(source if source is not None else train)) if talks else []

    def __call__(self, model: nn.Module, progress: Progress) -> Evaluation:
        """What the loop calls."""
        metrics = self._measure(model) if self.loader is not None else {}
        return Evaluation(metrics, self._describe(model))

    # Figures.

    def _loader(self, source: Source | Stream) -> Loader:
        recipe, task = self.recipe, self.task
        if recipe.task == "pretrain":  # whose batches do not tell which texts are of one picture
            limits = {name: getattr(task, name) for name in ("max_words", "max_tokens")}
            task = RetrievalTask(tokenizer=self.tokenizer, transform=cast(Any, task).transform, **limits)
            return val_loader(recipe, source, task, self.image, self.place, name="retrieval")
        return val_loader(recipe, source, task, self.image, self.place)

    def _batches(self) -> Iterable[Any]:
        assert self.loader is not None
        found = self.loader.epoch(0)
        try:
            yield from islice(found, self.recipe.evaluate.batches or None)
        finally:
            self.loader.close()

    def _measure(self, model: nn.Module) -> dict[str, float]:
        if self.recipe.task in ("retrieval", "pretrain"):
            return recall(cast(Matcher, model), self._batches())
        hits = _HITS.get(type(model))
        return held_out(make_objective(self.recipe, model, self.task, Gather()).eval(), self._batches(), hits)

    # Samples.

    def _shown(self, source: Source | Stream) -> Iterable[Shown]:
        settings = self.recipe.evaluate
        if settings.images:
            for path in settings.images:
                yield self._show(path, load_image(path))
        elif isinstance(source, Source):
            yield from islice(self._openable(source), settings.samples)

    def _openable(self, source: Source) -> Iterable[Shown]:
        for record in source:
            if len(record.images) == 1:
                with suppress(ImageError):
                    yield self._show(record.images[0].address, open_image(record.images[0]), _question(record))

    def _show(self, name: str, picture: Any, question: str = "what is in the picture?") -> Shown:
        pixels = to_tensor(torch.from_numpy(resize(picture, self.image.size))[None], self.image)[0]
        return Shown(name, pixels, question)

    def _describe(self, model: nn.Module) -> list[Mapping[str, str]]:
        if not self.shown or not isinstance(model, Captioner | Pretrainer | Answerer):
            return []
        pixels = torch.stack([one.pixels for one in self.shown]).to(self.place.device)
        if isinstance(model, Answerer):
            said = answer(model, self.tokenizer, pixels, [one.question for one in self.shown])
            return [
                {"image": one.name, "question": one.question, "answer": text}
                for one, text in zip(self.shown, said, strict=True)
            ]
        said = describe(model, self.tokenizer, pixels, self.prompt)
        return [{"image": one.name, "caption": text} for one, text in zip(self.shown, said, strict=True)]


def _question(record: Record) -> str:
    return record.questions[0].text if record.questions else "what is in the picture?"


# --- figures ------------------------------------------------------------------------------------------------------


def held_out(
    objective: nn.Module, batches: Iterable[Any], hits: Callable[[Any, Any], Tensor] | None = None
) -> dict[str, float]:
    """``val_loss`` over batches weighted by their texts, and the share of ``hits`` as ``accuracy``."""
    sums: dict[str, float] = {}
    count = 0
    for batch in batches:
        size = len(batch.ids)
        figures = {"val_loss": sum(float(loss) for loss in objective(batch).values())}
        if hits is not None:
            figures["accuracy"] = float(hits(cast(Any, objective).model, batch).float().mean())
        for name, value in figures.items():
            sums[name] = sums.get(name, 0.0) + value * size
        count += size
    return {name: value / max(count, 1) for name, value in sums.items()}


def true_statements(model: Comparer, batch: ComparingBatch) -> Tensor:
    """Which statements (B,) are judged rightly."""
    first, second = model.encode_image(torch.cat([batch.first, batch.second])).chunk(2)
    return model.logits(batch.ids, batch.mask, (first, second)).argmax(-1) == batch.targets


def true_answers(model: Matcher, batch: DialogBatch) -> Tensor:
    """Which answers (D,), right and wrong ones, are judged rightly."""
    return dialog_logits(model, batch).argmax(-1) == batch.targets


def found_boxes(model: Grounder, batch: GroundingBatch) -> Tensor:
    """Which expressions (B,) are given a box whose intersection over union with the right one is at least 0.5."""
    memory = model.read(batch.ids, batch.mask, model.encode_image(batch.pixels), batch.image)
    session = EagerSession(model.decoder, model.lm_head, memory, COORDINATES)
    start = batch.ids.new_full((len(batch.ids), 1), model.config.box_start_id)
    numbers, _ = decode_boxes(session, start, model.box_ids(batch.ids.device), model.config.box_reading)
    shares = numbers.float() / model.config.box_bins
    guess, truth = corners(shares) * batch.sizes.repeat(1, 2), batch.boxes
    shared = (
        (torch.minimum(guess[:, 2:], truth[:, 2:]) - torch.maximum(guess[:, :2], truth[:, :2])).clamp(min=0).prod(-1)
    )
    area = (guess[:, 2:] - guess[:, :2]).prod(-1) + (truth[:, 2:] - truth[:, :2]).prod(-1)
    return shared >= 0.5 * (area - shared)


_HITS: dict[type[nn.Module], Callable[[Any, Any], Tensor]] = {
    Comparer: true_statements, Grounder: found_boxes, Matcher: true_answers,
}  # fmt: skip


def recall(model: Matcher, batches: Iterable[RetrievalBatch]) -> dict[str, float]:
    """R@1, 5 and 10 in percent by ITC, text to image and image to text, and their mean; an image counts once."""
    images, texts, owners = [], [], []
    for batch in batches:
        images.append(model.embed_image(model.encode_image(batch.pixels)).float())
        texts.append(model.embed_text(batch.ids, batch.mask).float())
        owners.append(batch.image_ids)
    owner = torch.cat(owners)
    ids, of_text = torch.unique(owner, return_inverse=True)
    first = torch.full_like(ids, len(owner)).scatter_reduce(
        0, of_text, torch.arange(len(owner), device=owner.device), "amin"
    )
    scores = torch.cat(texts) @ torch.cat(images)[first].T  # (texts, images)
    right = of_text[:, None] == torch.arange(len(ids), device=ids.device)
    found: dict[str, float] = {}
    for name, table, truth in (("t2i", scores, right), ("i2t", scores.T, right.T)):
        best = table.masked_fill(~truth, -torch.inf).amax(1, keepdim=True)
        ahead = (table > best).sum(1)
        found |= {f"{name}_r{k}": 100 * (ahead < k).float().mean().item() for k in (1, 5, 10)}
    return found | {"r_mean": sum(found.values()) / len(found)}


# --- samples ------------------------------------------------------------------------------------------------------


def describe(model: Captioner | Pretrainer, tokenizer: Tokenizer, pixels: Tensor, prompt: str) -> list[str]:
    """Captions of pictures (B, 3, S, S), by beam search."""
    text = model.text if isinstance(model, Pretrainer) else model.decoder
    memory = text.project(model.encode_image(pixels))
    start = tokenizer.encode_prompt(prompt)
    session = EagerSession(text, model.lm_head, memory, len(start) + NEW_TOKENS)
    return _generated(session, tokenizer, start, pixels)


def answer(model: Answerer, tokenizer: Tokenizer, pixels: Tensor, questions: list[str]) -> list[str]:
    """Answers to one question about each of the pictures (B, 3, S, S)."""
    asked = tokenizer.encode([clean_question(question) for question in questions], "enc", 35, "longest")
    ids, mask = asked.ids.to(pixels.device), asked.mask.to(pixels.device)
    states = model.encode_question(ids, mask, model.encode_image(pixels))
    start = [tokenizer.dec_id]
    session = EagerSession(model.decoder, model.lm_head, model.decoder.project(states, mask), 1 + NEW_TOKENS)
    return _generated(session, tokenizer, start, pixels)


def _generated(session: EagerSession, tokenizer: Tokenizer, start: list[int], pixels: Tensor) -> list[str]:
    options = Decoding(max_new_tokens=NEW_TOKENS, eos_id=tokenizer.sep_id, pad_id=tokenizer.pad_id)
    prompts = torch.tensor([start] * len(pixels), device=pixels.device)
    return [tokenizer.decode(found[0].ids) for found in generate(session, prompts, options)]
