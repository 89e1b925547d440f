"""What a user holds: :func:`load` gives a :class:`Blip`, which opens pictures, cleans text, batches, and answers.

>>> blip = openblip.load("pocket")                             # doctest: +SKIP
>>> blip.caption("photo.jpg").text                             # doctest: +SKIP
>>> blip.ask("photo.jpg", ["what is it?", "where is it?"])     # doctest: +SKIP
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from openblip.checkpoints import bundle as bundles
from openblip.checkpoints import fetch, published, read
from openblip.decoding import Decoding, generate_grouped
from openblip.engine.eager import EagerEngine
from openblip.errors import ImageError, InputError, OpenBlipError, UnsupportedTask
from openblip.inputs import OnError, Shape, ahead, chunks, deliver, shape_of
from openblip.model.config import ModelConfig, Task
from openblip.preprocess.text import Tokenizer
from openblip.results import Answer, Match
from openblip.runner import TEXT_ROWS, EncodedImage, Prompt, Runner, Texts

Precision = Literal["fp32", "bf16", "fp16"]


def load(
    name_or_path: str | Path,
    *,
    task: Task | None = None,
    engine: str = "torch",
    precision: Precision = "fp32",
    device: str = "auto",
    config: ModelConfig | Mapping[str, Any] | None = None,
    tokenizer: Tokenizer | str | Path | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    offline: bool | None = None,
) -> Blip:
    """Load a model and get it ready to use.

    ``name_or_path`` is a bundle ("pocket", "base", "large": one model per task, loaded when first used), a hub id, a
    name that mmpretrain or LAVIS users know, a folder, or a ``.pth`` file. ``task`` says what a file that could be
    several things is; ``config`` and ``tokenizer`` give what a bare ``.pth`` leaves open. The model computes in
    ``precision``, whatever the file was stored in; ``device="auto"`` takes a GPU if there is one. ``batch_size``
    pictures are computed together and ``workers`` threads open them ahead; neither changes a result.

    Raises :class:`CheckpointError`, :class:`DownloadError`, :class:`ConfigError` or :class:`InputError`.
    """
    if engine not in ENGINES:
        raise InputError(f"unknown engine {engine!r}; one of {', '.join(ENGINES)}")
    if precision not in _DTYPES:
        raise InputError(f"unknown precision {precision!r}; one of {', '.join(_DTYPES)}")
    if isinstance(tokenizer, str | Path):
        path = Path(tokenizer)
        tokenizer = Tokenizer.from_folder(path) if path.is_dir() else Tokenizer.from_vocab(path)
    place = _device(device)
    found = bundles.find(name_or_path)

    def make(wanted: Task | None) -> Runner:
        path = (
            found.locate(wanted, offline=offline) if found and wanted else fetch.resolve(name_or_path, offline=offline)
        )
        loaded = read.load(path, task=wanted, config=config, tokenizer=tokenizer)
        return Runner(loaded, EagerEngine(loaded.model, place, _DTYPES[precision]))

    if found is None:
        only = make(task)
        parts: dict[Task, Callable[[], Runner]] = dict.fromkeys(_serves(only.task), lambda: only)
    else:
        wanted = [task] if task else list(found.models)
        parts = {served: partial(make, served) for served in wanted}
    size = batch_size or (8 if place.type == "cpu" else 64)
    return Blip(str(name_or_path), parts, batch_size=size, workers=2 if workers is None else workers)


class Blip:
    """A BLIP model, or a bundle of them, ready for pictures. One ``Blip`` serves many threads.

    Everywhere below: an image is a path, bytes, a file object, a PIL picture, a numpy array (HWC uint8 RGB), a tensor
    (CHW, uint8 or floats 0 to 1), an ``https`` address, or an :class:`EncodedImage`. One input gives one result, a list
    (or an array with a batch axis) gives a list, an iterator gives an iterator that works as it is read. A lone bad
    input raises; in a list or stream its error stands in its place (``on_error="return"``), or the first one is raised
    (``on_error="raise"``). A method that the checkpoint cannot serve raises :class:`UnsupportedTask`.
    """

    def __init__(
        self, name: str, parts: Mapping[Task, Callable[[], Runner]], *, batch_size: int = 8, workers: int = 2
    ) -> None:
        self.name = name
        self.batch_size = batch_size
        self.workers = workers
        self._makers = dict(parts)
        self._parts: dict[Task, Runner] = {}
        self._lock = threading.Lock()

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What this model serves: some of "caption", "answer" and "match", among others."""
        return tuple(self._makers)

    def caption(
        self,
        images: Any,
        *,
        prompt: str | Sequence[str | None] | None = None,
        beams: int = 3,
        n: int = 1,
        min_new_tokens: int = 1,
        max_new_tokens: int = 16,
        length_penalty: float = 1.0,
        repetition_penalty: float = 1.0,
        no_repeat_ngram: int = 0,
        sample: bool = False,
        top_p: float = 0.9,
        top_k: int = 0,
        temperature: float = 1.0,
        seed: int | None = None,
        forbid: Sequence[str] = (),
        require: Sequence[str | Sequence[str]] = (),
        trim: bool = False,
        on_error: OnError = "return",
    ) -> Any:
        """Describe images: a :class:`Caption` each, or with ``n`` > 1 a list of them, the best first.

        ``prompt`` is how the caption begins, one for all or one per image; ``None`` is the checkpoint's own ("a picture
        of " for the published captioners), which the text leaves out, ``""`` is none. With ``sample`` tokens are drawn
        from the ``top_p`` nucleus instead of searched for with ``beams``; a seeded sample depends on its image alone.

        ``forbid`` are words that are never said, in whatever pieces they could be spelled. ``require`` are words, or
        lists of alternatives, that beams are steered to; where one could not be had the caption is ``unmet``. ``trim``
        prefers captions that came to their end, and takes words like "of the" off the end of those that did not.
        Raises :class:`InputError` for options that contradict each other.
        """
        part = self._part("caption")
        decoding = Decoding(
            beams=1 if sample and beams == 3 else beams, n=n,
            min_new_tokens=min_new_tokens, max_new_tokens=max_new_tokens,
            length_penalty=length_penalty, repetition_penalty=repetition_penalty, no_repeat_ngram=no_repeat_ngram,
            sample=sample, top_p=top_p, top_k=top_k, temperature=temperature,
            forbidden=part.forbidden(forbid), required=part.required(require, prompt, forbid),
            eos_id=part.tokenizer.sep_id, pad_id=part.tokenizer.pad_id,
        )  # fmt: skip
        if decoding.beams > 1 and (trim or decoding.required):
            decoding = replace(decoding, n=decoding.beams)  # to choose from
        shape, pairs = _paired(images, prompt, "prompt")

        def describe(states: Tensor, prompts: list[Prompt]) -> list[Any]:
            start = part.engine.captioning(states, decoding.capacity(max(len(p.ids) for p in prompts)))
            found = generate_grouped(start, [p.ids for p in prompts], decoding, seed, part.engine.device)
            captions = [part.captions(p, hs, decoding.required, trim)[:n] for p, hs in zip(prompts, found, strict=True)]
            return [c[0] if n == 1 else c for c in captions]

        return deliver(self._run(part, pairs, part.prompt, describe), shape, on_error)

    def ask(
        self,
        images: Any,
        questions: str | Sequence[str],
        *,
        answers: Sequence[str] | None = None,
        n: int = 1,
        k: int | None = None,
        smoothing: float = 0.0,
        beams: int = 3,
        min_new_tokens: int = 1,
        max_new_tokens: int = 9,
        on_error: OnError = "return",
    ) -> Any:
        """Answer questions: an :class:`Answer` each, or with ``n`` > 1 a list of them, the likeliest first.

        One image and many questions (it is encoded once), one question about many images, or as many of each, paired.
        Free answers are searched for with ``beams``. ``answers`` is a closed list to choose from by the probability of
        each whole answer; ``k=128, smoothing=0.1`` is the original's ranking in two steps.
        """
        part = self._part("answer")
        closed = part.answers(answers) if answers is not None else None
        if closed is None and (k is not None or smoothing):
            raise InputError("k and smoothing belong to ranking: give the list of answers too")
        if closed is not None and n > len(closed):
            raise InputError(f"n={n} of {len(closed)} answers")
        decoding = Decoding(
            beams=beams, n=n if closed is None else 1, min_new_tokens=min_new_tokens, max_new_tokens=max_new_tokens,
            eos_id=part.tokenizer.sep_id, pad_id=part.tokenizer.pad_id,
        )  # fmt: skip
        shape, pairs, many = _asked(images, questions)

        def answer(states: Tensor, asked: list[list[list[int]]]) -> list[Any]:
            each = len(asked[0])
            results: list[list[list[Answer]]] = []
            for at in range(0, each, width := max(1, TEXT_ROWS // len(asked))):
                ids, mask = part.pad([q for qs in asked for q in qs[at : at + width]])
                heard = part.engine.encode_questions(ids, mask, states)
                if closed is None:
                    results.append(part.free_answers(heard, mask, decoding))
                else:
                    results.append(part.ranked_answers(heard, mask, answers or (), closed, n, k, smoothing))
            return _by_image(results, len(asked), n)

        found = self._run(part, pairs, lambda qs: [part.question(q) for q in qs], answer)
        if not many:
            found = (r if isinstance(r, OpenBlipError) else r[0] for r in found)
        return deliver(found, shape, on_error)

    def match(
        self, images: Any, texts: str | Sequence[str], *, paired: bool = False, on_error: OnError = "return"
    ) -> Any:
        """Judge whether texts fit images: a :class:`Match` each.

        One image and one text give one; one image and a list, or a list and one text, a list; a list and a list a
        nested list ``[image][text]``, or, ``paired``, one per pair. Images and texts are each embedded once.
        """
        part = self._part("match")
        lone = isinstance(texts, str)
        if paired:
            shape, pairs = _paired(images, texts, "text")
            single = True
        else:
            shape, pairs, single = shape_of(images), ((image, texts) for image in _each(images)), lone
        listed = None if paired else part.texts([texts] if isinstance(texts, str) else texts)

        def judge(states: Tensor, own: list[Texts]) -> list[Any]:
            whole = listed if listed is not None else Texts([t.ids[0] for t in own])
            similarity = part.similarity(states, whole, paired=paired)
            probability = part.probability(states, whole, paired=paired)
            rows = [
                [Match(p, s) for p, s in zip(ps, ss, strict=True)]
                for ps, ss in zip(probability, similarity, strict=True)
            ]
            return [row[0] if single else row for row in rows]

        def prepare(text: Any) -> Texts:
            return part.texts([text]) if paired else cast(Texts, listed)

        return deliver(self._run(part, pairs, prepare, judge), shape, on_error)

    def embed_images(self, images: Any, *, on_error: OnError = "raise") -> Any:
        """ITC embeddings, float32 and L2-normalised: (E,) for one image, (N, E) for a list; E is 256 as published.

        An iterator streams (E,) arrays. Bad images raise one :class:`ImageError` that lists their indices; of an
        iterator the first raises, or, with ``on_error="return"``, each error stands in its place.
        """
        part = self._part("match")

        def embed(states: Tensor, _: list[None]) -> list[Any]:
            return list(part.engine.embed_images(states).cpu().numpy())

        shape = shape_of(images)
        found = self._run(part, ((image, None) for image in _each(images)), lambda _: None, embed)
        return deliver(found, shape, on_error) if shape is Shape.STREAM else _stacked(found, shape, part)

    def embed_texts(self, texts: str | Iterable[str]) -> Any:
        """ITC embeddings of texts, in the space of :meth:`embed_images`: (E,) for one, (N, E) for a list."""
        part = self._part("match")
        shape = shape_of(texts)

        def embed(chunk: list[str]) -> list[Any]:
            whole = part.texts(chunk)
            return list(part.embed_texts(whole).cpu().numpy())

        found = (vector for chunk in chunks(_each(texts), TEXT_ROWS) for vector in embed(chunk))
        return _stacked(found, shape, part)

    def encode_images(self, images: Any, *, task: Task | None = None, on_error: OnError = "return") -> Any:
        """See images once, for many questions and texts: an :class:`EncodedImage` each, taken in place of the image.

        A bundle has one image encoder per task, so ``task`` ("caption", "answer" or "match") keeps the cost to the one
        that is needed; by default an image is encoded for all.
        """
        parts = list({id(p): p for p in (self._part(t) for t in ([task] if task else self.tasks))}.values())
        shape = shape_of(images)

        def encode(image: Any) -> EncodedImage | OpenBlipError:
            states: dict[int, Tensor] = {}
            for part in parts:
                (found,) = self._run(part, [(image, None)], lambda _: None, lambda s, _: [s[0]])
                if isinstance(found, OpenBlipError):
                    return found
                states[id(part)] = found
            return EncodedImage(states)

        return deliver(map(encode, map(_reread, _each(images))), shape, on_error)

    def _part(self, task: Task) -> Runner:
        """The model of a task, loaded on first use; once, whatever the number of threads that ask."""
        if task not in self._makers:
            others = " or ".join(repr(entry.name) for entry in published.serving(task)[:2])
            raise UnsupportedTask(
                f"{self.name!r} serves {', '.join(self.tasks)}, not {task}; for that, load "
                + (others or "a checkpoint of that task")
            )
        with self._lock:
            if task not in self._parts:
                self._parts[task] = self._makers[task]()
            return self._parts[task]

    def _run(
        self,
        part: Runner,
        pairs: Iterable[tuple[Any, Any]],
        prepare: Callable[[Any], Any],
        compute: Callable[[Tensor, list[Any]], list[Any]],
    ) -> Iterator[Any]:
        """Results for (image, text) pairs, in order, errors in place: the one way every picture goes.

        Pictures are opened and texts prepared ahead by threads; ``compute`` gets a batch of image states and texts.
        """

        def open_one(pair: tuple[Any, Any]) -> tuple[Tensor | np.ndarray, Any]:
            return part.open(pair[0]), prepare(pair[1])

        opened = ahead(open_one, pairs, self.workers, 2 * self.batch_size)
        for chunk in chunks(opened, self.batch_size):
            good = [item for item in chunk if not isinstance(item, OpenBlipError)]
            results = iter(compute(part.states([i for i, _ in good]), [t for _, t in good]) if good else [])
            yield from (item if isinstance(item, OpenBlipError) else next(results) for item in chunk)


ENGINES = ("torch",)
_DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _serves(task: Task) -> tuple[Task, ...]:
    """What a model of one task can be used for: a pretraining checkpoint captions and matches."""
    return ("caption", "match", "pretrain") if task == "pretrain" else (task,)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise InputError(f"unknown device {name!r}: auto, cpu, cuda, cuda:1, mps") from error


def _each(inputs: Any) -> Iterable[Any]:
    return [inputs] if shape_of(inputs) is Shape.ONE else inputs


def _paired(images: Any, texts: Any, what: str) -> tuple[Shape, Iterable[tuple[Any, Any]]]:
    """Images beside their texts: one text serves all, several are one each."""
    shape = shape_of(images)
    if texts is None or isinstance(texts, str):
        return shape, zip(_each(images), repeat(texts), strict=False)
    if shape is Shape.ONE:
        raise InputError(f"one image takes one {what}, not a list")
    if shape is Shape.LIST and len(images) != len(texts):
        raise InputError(f"{len(images)} images with {len(texts)} {what}s: give one for all, or one each")
    return shape, zip(images, texts, strict=True)


def _asked(images: Any, questions: str | Sequence[str]) -> tuple[Shape, Iterable[tuple[Any, list[str]]], bool]:
    """Images beside the questions about each, the shape of the result, and whether an image has a list of answers."""
    if shape_of(images) is Shape.ONE and not isinstance(questions, str):
        return Shape.ONE, [(images, list(questions))], True
    shape, pairs = _paired(images, questions, "question")
    return shape, ((image, [question]) for image, question in pairs), False


def _by_image(parts: list[list[list[Answer]]], images: int, n: int) -> list[list[Any]]:
    """Answers per image, from runs of questions in which each image's lie side by side."""
    found: list[list[Any]] = [[] for _ in range(images)]
    for part in parts:
        each = len(part) // images
        for row, answers in enumerate(part):
            found[row // each].append(answers[0] if n == 1 else answers)
    return found


def _stacked(found: Iterator[Any], shape: Shape, part: Runner) -> Any:
    if shape is not Shape.LIST:
        return deliver(found, shape, "raise")
    rows = list(found)
    bad = {index: row for index, row in enumerate(rows) if isinstance(row, OpenBlipError)}
    if bad:
        some = "; ".join(f"{index}: {error}" for index, error in list(bad.items())[:5])
        raise ImageError(f"{len(bad)} of {len(rows)} images could not be embedded, at {list(bad)}: {some}")
    return np.stack(rows) if rows else np.empty((0, part.config.embed_width), np.float32)


def _reread(image: Any) -> Any:
    """A file object can be read once only, but an image may be opened by several encoders."""
    return image.read() if hasattr(image, "read") else image
