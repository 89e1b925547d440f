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
from itertools import chain, groupby, repeat
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from openblip.checkpoints import bundle as bundles
from openblip.checkpoints import published, read
from openblip.checkpoints.resolve import resolve
from openblip.checkpoints.storage import digest
from openblip.decoding import Decoding, generate_grouped
from openblip.engine.create import EngineName, Precision, check_engine, create_engine, default_batch_size
from openblip.engine.protocols import Answers, Captions
from openblip.errors import ImageError, InputError, OpenBlipError, UnsupportedTask
from openblip.explaining import EXPLAINED, Explained, Explainer
from openblip.inputs import OnError, Shape, ahead, by_runs, chunks, deliver, firsts, shape_of
from openblip.io.cache import cache_folder
from openblip.model.config import ModelConfig, ModelKind
from openblip.preprocess.image import load_image, resize, to_tensor
from openblip.preprocess.settings import ImageSettings
from openblip.preprocess.text import Tokenizer
from openblip.results import Answer, Match
from openblip.runner import (
    BOX_ROWS,
    TEXT_ROWS,
    EncodedImage,
    Measured,
    Prompt,
    Runner,
    Texts,
    frames_of,
    in_a_row,
)

Decode = Literal["fast", "exact"]


def load(
    name_or_path: str | Path,
    *,
    task: ModelKind | None = None,
    engine: EngineName = "auto",
    precision: Precision = "fp32",
    device: str = "auto",
    config: ModelConfig | Mapping[str, Any] | None = None,
    tokenizer: Tokenizer | str | Path | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    decode: Decode = "fast",
    calibration: Iterable[Any] | None = None,
    offline: bool | None = None,
) -> Blip:
    """Load a model and get it ready to use.

    ``name_or_path`` is a bundle ("pocket", "base", "large": one model per task, loaded when first used), a hub id, a
    name that mmpretrain or LAVIS users know, a folder, or a ``.pth`` file. ``task`` says what a file that could be
    several things is; ``config`` and ``tokenizer`` give what a bare ``.pth`` leaves open. ``device="auto"`` takes a GPU
    if there is one.

    ``engine`` is "torch" (the reference), "compiled" (``torch.compile``), "openvino" (an extra, for CPUs) or "auto";
    ``precision`` is "fp32", "bf16", "fp16" or "int8", whatever the file was stored in. ``docs/engines.md`` tells what
    each gives and costs. ``calibration``: pictures like those to come, by which OpenVINO quantizes the image encoder.
    ``batch_size`` pictures are computed together and ``workers`` threads open them ahead; neither changes a result.
    ``decode="exact"`` decodes large JPEG files in full, from which "fast" differs by a fraction of a grey level.

    Raises :class:`CheckpointError`, :class:`DownloadError`, :class:`ConfigError` or :class:`InputError`.
    """
    place = _device(device)
    check_engine(engine, precision, place, calibrated=calibration is not None)
    if decode not in get_args(Decode):
        raise InputError(f"decode is 'fast' or 'exact', not {decode!r}")
    if isinstance(tokenizer, str | Path):
        path = Path(tokenizer)
        tokenizer = Tokenizer.from_folder(path) if path.is_dir() else Tokenizer.from_vocab(path)
    found = bundles.find(name_or_path)

    def make(wanted: ModelKind | None) -> Runner:
        path = found.locate(wanted, offline=offline) if found and wanted else resolve(name_or_path, offline=offline)
        loaded = read.load(path, task=wanted, config=config, tokenizer=tokenizer)
        made = create_engine(
            engine, precision, place, loaded.model, loaded.config,
            cache=cache_folder() / "openvino", key=partial(digest, Path(loaded.source)),
            calibration=_pixels(examples, loaded.image) if examples else None, bundled=found is not None,
        )  # fmt: skip
        return Runner(loaded, made, exact=decode == "exact")

    examples = [load_image(image) for image in calibration or ()]
    if calibration is not None and not examples:
        raise InputError("calibration is some pictures, a dozen or more if they differ much; it holds none")
    if found is None:
        only = make(task)
        parts: dict[ModelKind, Callable[[], Runner]] = dict.fromkeys(_serves(only.task), lambda: only)
    else:
        wanted = [task] if task else list(found.models)
        parts = {served: partial(make, served) for served in wanted}
    size = batch_size or default_batch_size(precision, place)
    return Blip(
        str(name_or_path), parts,
        batch_size=size, workers=2 if workers is None else workers, engine=engine, precision=precision,
    )  # fmt: skip


class Blip:
    """A BLIP model, or a bundle of them, ready for pictures. One ``Blip`` serves many threads.

    Everywhere below: an image is a path, bytes, a file object, a PIL picture, a numpy array (HWC uint8 RGB), a tensor
    (CHW, uint8 or floats 0 to 1), an ``https`` address, or an :class:`EncodedImage`. One input gives one result, a list
    (or an array with a batch axis) gives a list, an iterator gives an iterator that works as it is read. A lone bad
    input raises; in a list or stream its error stands in its place (``on_error="return"``), or the first one is raised
    (``on_error="raise"``). A method that the checkpoint cannot serve raises :class:`UnsupportedTask`.

    :meth:`caption`, :meth:`ask`, :meth:`match`, :meth:`embed_images` and :meth:`encode_images` take videos too: a path
    that ends as those of videos do (``.mp4``, ``.avi``, ...), or a :class:`~openblip.preprocess.video.Video`. Eight
    frames are seen, or as many as that says: their tokens are read one after the other, their embeddings averaged
    (Li et al. 2022, section 5.6). For the other methods a video is a bad input, an :class:`UnsupportedTask`.
    """

    def __init__(
        self,
        name: str,
        parts: Mapping[ModelKind, Callable[[], Runner]],
        *,
        batch_size: int = 8,
        workers: int = 2,
        engine: EngineName = "torch",
        precision: Precision = "fp32",
    ) -> None:
        self.name = name
        self.engine = engine
        self.precision = precision
        self.batch_size = batch_size
        self.workers = workers
        self._makers = dict(parts)
        self._parts: dict[ModelKind, Runner] = {}
        self._lock = threading.Lock()

    @property
    def tasks(self) -> tuple[ModelKind, ...]:
        """What this model serves: some of "caption", "vqa" and "retrieval", among others."""
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
            num_beams=1 if sample and beams == 3 else beams, n=n,
            min_new_tokens=min_new_tokens, max_new_tokens=max_new_tokens,
            length_penalty=length_penalty, repetition_penalty=repetition_penalty, no_repeat_ngram_size=no_repeat_ngram,
            do_sample=sample, top_p=top_p, top_k=top_k, temperature=temperature,
            forbidden_words=part.forbidden(forbid), required_words=part.required(require, prompt, forbid),
            eos_id=part.tokenizer.sep_id, pad_id=part.tokenizer.pad_id,
        )  # fmt: skip
        if decoding.num_beams > 1 and (trim or decoding.required_words):
            decoding = replace(decoding, n=decoding.num_beams)  # to choose from
        shape, pairs = _paired(images, prompt, "prompt")

        def describe(states: Tensor, prompts: list[Prompt]) -> list[Any]:
            start = part.engine.require(Captions).prepare_captions(
                in_a_row(states), decoding.capacity(max(len(p.ids) for p in prompts))
            )
            found = generate_grouped(start, [p.ids for p in prompts], decoding, seed, part.engine.device)
            captions = [
                part.captions(p, hs, decoding.required_words, trim)[:n] for p, hs in zip(prompts, found, strict=True)
            ]
            return [c[0] if n == 1 else c for c in captions]

        return deliver(self._run(part, pairs, part.prompt, describe, videos=True), shape, on_error)

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
        part = self._part("vqa")
        closed = part.answers(answers) if answers is not None else None
        if closed is None and (k is not None or smoothing):
            raise InputError("k and smoothing belong to ranking: give the list of answers too")
        if closed is not None and n > len(closed):
            raise InputError(f"n={n} of {len(closed)} answers")
        decoding = Decoding(
            num_beams=beams, n=n if closed is None else 1, min_new_tokens=min_new_tokens, max_new_tokens=max_new_tokens,
            eos_id=part.tokenizer.sep_id, pad_id=part.tokenizer.pad_id,
        )  # fmt: skip
        shape, pairs, many = _asked(images, questions)

        def answer(states: Tensor, asked: list[list[list[int]]]) -> list[Any]:
            each = len(asked[0])
            results: list[list[list[Answer]]] = []
            images = part.engine.require(Answers).project_images(in_a_row(states))
            for at in range(0, each, width := max(1, TEXT_ROWS // len(asked))):
                ids, mask = part.pad([q for qs in asked for q in qs[at : at + width]])
                heard = part.engine.require(Answers).encode_questions(ids, mask, images)
                if closed is None:
                    results.append(part.free_answers(heard, mask, decoding))
                else:
                    results.append(part.ranked_answers(heard, mask, answers or (), closed, n, k, smoothing))
            return _by_image(results, len(asked), n)

        found = self._run(part, pairs, lambda qs: [part.question(q) for q in qs], answer, videos=True)
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
        part = self._part("retrieval")
        lone = isinstance(texts, str)
        if paired:
            shape, pairs = _paired(images, texts, "text")
            single = True
        else:
            shape, pairs, single = shape_of(images), ((image, texts) for image in _each(images)), lone
        listed = None if paired else part.texts([texts] if isinstance(texts, str) else texts)
        embedded = None if listed is None else part.embed_texts(listed)

        def judge(states: Tensor, own: list[Texts]) -> list[Any]:
            whole = listed if listed is not None else Texts([t.ids[0] for t in own])
            vectors = part.embed_texts(whole) if embedded is None else embedded
            similarity = part.similarity(states, vectors, paired=paired)
            probability = part.probability(states, whole, paired=paired)
            rows = [
                [Match(p, s) for p, s in zip(ps, ss, strict=True)]
                for ps, ss in zip(probability, similarity, strict=True)
            ]
            return [row[0] if single else row for row in rows]

        def prepare(text: Any) -> Texts:
            return part.texts([text]) if paired else cast(Texts, listed)

        return deliver(self._run(part, pairs, prepare, judge, videos=True), shape, on_error)

    def classify(
        self,
        images: Any,
        labels: Sequence[str],
        *,
        template: str = "a picture of {}",
        by: Literal["itc", "itm"] = "itc",
        n: int = 1,
        on_error: OnError = "return",
    ) -> Any:
        """Choose among labels that were never trained on: a :class:`Label` each, or with ``n`` > 1 a list of them.

        The likeliest first. ``template`` makes a text of a label. By ITC (the default) images and texts are each
        embedded once, and cosines over the temperature of training give the probabilities; by ITM every text is read
        together with the image, which costs more, and its odds of matching are compared.
        """
        part = self._part("retrieval")
        if isinstance(labels, str) or not labels or not all(isinstance(label, str) for label in labels):
            raise InputError("labels is a list of strings to choose from")
        if "{}" not in template:
            raise InputError(f"the template {template!r} has no {{}} for the label")
        if by not in ("itc", "itm") or not 1 <= n <= len(labels):
            raise InputError(f"by is 'itc' or 'itm' and n from 1 to the {len(labels)} labels, not {by!r} and {n}")
        texts = part.texts([template.replace("{}", label) for label in labels])
        embedded = part.embed_texts(texts) if by == "itc" else None

        def choose(states: Tensor, _: list[None]) -> list[Any]:
            found = part.best_labels(part.labels(states, texts, embedded), labels, n)
            return [best[0] if n == 1 else best for best in found]

        found = self._run(part, ((image, None) for image in _each(images)), lambda _: None, choose)
        return deliver(found, shape_of(images), on_error)

    def ground(self, images: Any, expressions: str | Sequence[str], *, on_error: OnError = "return") -> Any:
        """Find what expressions name: a :class:`Box` each, in pixels of the picture.

        One image and many expressions (it is encoded once), one expression about many images, or as many of each,
        paired. Coordinates are tokens, read off one after the other among those of coordinates alone: the likeliest one
        or the median, as the model's ``box_reading`` says.
        """
        part = self._part("grounding")
        shape, pairs, many = _asked(images, expressions)
        measured = ((image := Measured(picture), (image, texts)) for picture, texts in pairs)

        def prepare(given: tuple[Measured, list[str]]) -> tuple[tuple[int, int], list[list[int]]]:
            return given[0].told(), [part.expression(text) for text in given[1]]  # the picture was opened just before

        def find(states: Tensor, asked: list[tuple[tuple[int, int], list[list[int]]]]) -> list[Any]:
            sizes = [size for size, _ in asked]
            return by_runs(
                [rows for _, rows in asked],
                BOX_ROWS,
                lambda rows, images: part.boxes(rows, states[images], sizes[images]),
            )

        found = self._run(part, measured, prepare, find)
        return deliver(found if many else firsts(found), shape, on_error)

    def compare(self, left: Any, right: Any, statements: str | Sequence[str], *, on_error: OnError = "return") -> Any:
        """Judge whether statements about two pictures are true: a :class:`Comparison` each (NLVR2).

        ``left`` and ``right`` are one image each, or as many of each, paired; one pair and many statements (it is
        encoded once), one statement about many pairs, or as many of each.
        """
        part = self._part("nlvr")
        shape, pairs, many = _asked(left, statements)
        if shape_of(right) is not shape or (shape is Shape.LIST and len(left) != len(right)):
            raise InputError("as many pictures on the right as on the left: one and one, or two lists of one length")
        beside = ((image, (other, said)) for (image, said), other in zip(pairs, _each(right), strict=True))

        def prepare(given: tuple[Any, list[str]]) -> tuple[Any, list[list[int]]]:
            return part.open(given[0], videos=False), [part.statement(text) for text in given[1]]

        def judge(states: Tensor, asked: list[tuple[Any, list[list[int]]]]) -> list[Any]:
            others = part.states([other for other, _ in asked])
            return by_runs(
                [rows for _, rows in asked], TEXT_ROWS,
                lambda rows, images: part.comparisons(rows, states[images], others[images]),
            )  # fmt: skip

        found = self._run(part, beside, prepare, judge)
        return deliver(found if many else firsts(found), shape, on_error)

    def explain(
        self,
        images: Any,
        texts: str | Sequence[str] | None = None,
        *,
        of: Explained = "retrieval",
        answer: str | None = None,
        layer: int | None = None,
        on_error: OnError = "return",
    ) -> Any:
        """Show where the model looked for each word: an :class:`Explanation` each, by Grad-CAM on cross-attention.

        ``of`` is the task: "retrieval" (texts to match), "caption" (``None`` is the model's own) or "vqa" (questions,
        with ``answer`` or the model's own answer). One image and many texts (it is encoded once), one text about many
        images, or as many of each, paired. ``layer`` counts from 0; the default is the middle, 6 of 12.
        """
        if of not in EXPLAINED:
            raise InputError(f"of is one of {', '.join(EXPLAINED)}, not {of!r}")
        part = self._part(of)
        explainer = Explainer(part, of, layer, answer)
        shape, pairs, many = _asked(images, "" if texts is None else texts)

        def prepare(given: list[str]) -> tuple[list[str | None], list[list[int]]]:
            own = [None if texts is None else text for text in given]
            return own, [explainer.prepare(text) for text in own]

        def show(states: Tensor, given: list[tuple[list[str | None], list[list[int]]]]) -> list[Any]:
            return [explainer.explain(state[None], *own) for state, own in zip(states, given, strict=True)]

        found = self._run(part, pairs, prepare, show)
        return deliver(found if many else firsts(found), shape, on_error)

    def embed_images(self, images: Any, *, on_error: OnError = "raise") -> Any:
        """ITC embeddings, float32 and L2-normalised: (E,) for one image, (N, E) for a list; E is 256 as published.

        An iterator streams (E,) arrays. Bad images raise one :class:`ImageError` that lists their indices; of an
        iterator the first raises, or, with ``on_error="return"``, each error stands in its place.
        """
        part = self._part("retrieval")

        def embed(states: Tensor, _: list[None]) -> list[Any]:
            return list(part.embed_images(states).cpu().numpy())

        shape = shape_of(images)
        found = self._run(part, ((image, None) for image in _each(images)), lambda _: None, embed, videos=True)
        return deliver(found, shape, on_error) if shape is Shape.STREAM else _stacked(found, shape, part)

    def embed_texts(self, texts: str | Iterable[str]) -> Any:
        """ITC embeddings of texts, in the space of :meth:`embed_images`: (E,) for one, (N, E) for a list."""
        part = self._part("retrieval")
        shape = shape_of(texts)

        def embed(chunk: list[str]) -> list[Any]:
            whole = part.texts(chunk)
            return list(part.embed_texts(whole).cpu().numpy())

        found = (vector for chunk in chunks(_each(texts), TEXT_ROWS) for vector in embed(chunk))
        return _stacked(found, shape, part)

    def encode_images(self, images: Any, *, task: ModelKind | None = None, on_error: OnError = "return") -> Any:
        """See images once, for many questions and texts: an :class:`EncodedImage` each, taken in place of the image.

        A bundle has one image encoder per task, so ``task`` ("caption", "vqa" or "retrieval") keeps the cost to the one
        that is needed; by default an image is encoded for all.
        """
        parts = list({id(p): p for p in (self._part(t) for t in ([task] if task else self.tasks))}.values())
        shape = shape_of(images)

        def encode(image: Any) -> EncodedImage | OpenBlipError:
            states: dict[int, Tensor] = {}
            measured = Measured(image)
            for part in parts:
                (found,) = self._run(part, [(measured, None)], lambda _: None, lambda s, _: [s[0]], videos=True)
                if isinstance(found, OpenBlipError):
                    return found
                states[id(part)] = found
            return EncodedImage(states, measured.size)

        return deliver(map(encode, map(_reread, _each(images))), shape, on_error)

    def _part(self, task: ModelKind) -> Runner:
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
        *,
        videos: bool = False,
    ) -> Iterator[Any]:
        """Results for (image, text) pairs, in order, errors in place: the one way every picture goes.

        Pictures are opened and texts prepared ahead by threads; ``compute`` gets a batch of image states and texts.
        """

        def open_one(pair: tuple[Any, Any]) -> tuple[Tensor | np.ndarray, Any]:
            return part.open(pair[0], videos=videos), prepare(pair[1])

        opened = ahead(open_one, pairs, self.workers, 2 * self.batch_size)
        for chunk in chunks(opened, self.batch_size):
            good = [item for item in chunk if not isinstance(item, OpenBlipError)]
            results = chain.from_iterable(
                compute(part.states([i for i, _ in batch]), [t for _, t in batch])
                for batch in _alike(good, self.batch_size)
            )
            yield from (item if isinstance(item, OpenBlipError) else next(results) for item in chunk)


def _alike(opened: list[tuple[Any, Any]], size: int) -> Iterator[list[tuple[Any, Any]]]:
    """Runs of opened items with as many frames each, pictures apart; no more frames at a time than pictures."""
    for frames, same in groupby(opened, lambda item: frames_of(item[0])):
        yield from chunks(same, max(1, size // max(1, frames)))


def _pixels(pictures: Sequence[Image.Image], settings: ImageSettings) -> Tensor:
    """Pictures as the image encoder reads them, (B, 3, S, S)."""
    return to_tensor(np.stack([resize(picture, settings.size) for picture in pictures]), settings)


def _serves(task: ModelKind) -> tuple[ModelKind, ...]:
    """What a model of one task can be used for: a pretraining checkpoint captions and matches."""
    return ("caption", "retrieval", "pretrain") if task == "pretrain" else (task,)


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
