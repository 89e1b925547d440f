"""What a protocol is: a data set's files, how each reference evaluates it, and what was published (no torch).

A preset names whose settings it follows: ``paper`` (the authors' code), ``lavis`` or ``mmpretrain``. They differ in
split, lengths, penalties, shortlists, cleaning and scoring, and a score means nothing without them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from openblip.errors import EvaluationError
from openblip.evaluation.metrics.answers import Rule
from openblip.model.config import ModelKind

PresetName = Literal["paper", "lavis", "mmpretrain"]
PRESETS: tuple[PresetName, ...] = get_args(PresetName)
PROMPT = "a picture of "  # how published captioners begin


@dataclass(frozen=True)
class Score:
    """A published result: ``values`` as printed (times 100), of any of these checkpoints, by our names for them."""

    source: str
    checkpoints: tuple[str, ...]
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """``files`` are needed in the data folder; ``count`` items (images, questions) make the whole split."""

    split: str
    files: tuple[str, ...]
    count: int
    published: tuple[Score, ...] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class CaptionPreset(Preset):
    """Beam search; lengths count [DEC] and the prompt, four tokens together, as the originals count them.

    ``prompt`` begins every caption, and is no part of the text; ``None`` is the checkpoint's own. ``ids`` are the
    images that are scored: "all" that the references have, each of which needs a picture, or those "predicted" alone,
    as in mmpretrain.
    """

    num_beams: int = 3
    max_length: int = 20
    min_length: int = 5
    repetition_penalty: float = 1.0
    prompt: str | None = None
    ids: Literal["all", "predicted"] = "all"

    @property
    def max_new_tokens(self) -> int:
        return self.max_length - 4

    @property
    def min_new_tokens(self) -> int:
        return max(0, self.min_length - 4)


@dataclass(frozen=True, kw_only=True)
class AnswerPreset(Preset):
    """``inference`` ranks the ``answer_list`` (a file) in two steps, or generates; ``rule`` scores, "" by a server.

    Questions keep ``max_words``; those that are ``bare`` lose every punctuation mark, as in mmpretrain, and
    ``bare_answers`` takes them from people's answers too, though not from predictions.
    """

    inference: Literal["rank", "generate"]
    rule: Rule | Literal[""] = "official"
    answer_list: str = ""
    k: int = 128
    smoothing: float = 0.1
    num_beams: int = 3
    max_length: int = 10
    min_length: int = 1
    max_words: int = 50
    bare: bool = False
    bare_answers: bool = False


@dataclass(frozen=True, kw_only=True)
class RetrievalPreset(Preset):
    """ITC takes a shortlist of ``k``, ITM re-ranks it behind [ENC]; texts of at most ``max_words`` and ``max_tokens``.

    ``bare`` texts lose every punctuation mark, as in mmpretrain, which does not count words (``None``).
    """

    k: int
    max_words: int | None
    max_tokens: int = 35
    bare: bool = False


@dataclass(frozen=True, kw_only=True)
class ComparePreset(Preset):
    """Statements of at most ``max_words``, cleaned or not, behind [ENC], or [CLS] as mmpretrain has it."""

    max_words: int = 40
    first_token: Literal["enc", "cls"] = "enc"
    clean: bool = True


@dataclass(frozen=True, kw_only=True)
class GroundPreset(Preset):
    """Four coordinates, read as the model's configuration says; a box counts if its IoU reaches ``threshold``."""

    threshold: float = 0.5


@dataclass(frozen=True)
class Item:
    """One picture to work on: with reference captions (``texts``), or with a question and people's ``answers``.

    With a ``second`` picture, ``texts`` is the statement about both and ``answers`` whether it is true; with a ``box``
    (left, top, right, bottom in pixels), ``texts`` is the expression that names it.
    """

    id: Any
    image: str
    texts: tuple[str, ...] = ()
    question: str = ""
    answers: tuple[str, ...] = ()
    second: str = ""
    box: tuple[float, ...] = ()
    group: str = ""  # NoCaps: in, near or out of domain
    kinds: tuple[str, str] = ("", "")  # of question and answer


Items: TypeAlias = list[Item]


@dataclass(frozen=True)
class Protocol:
    """A benchmark row. ``read`` gives the items of a folder; ``published_at`` tells where the files come from.

    Whatever the reader, ``read`` raises :class:`EvaluationError` for two items of one id.
    """

    name: str
    title: str
    task: ModelKind
    published_at: str
    presets: Mapping[PresetName, Preset]
    read: Callable[[Path, Preset], Items]
    result: str = ""  # the name of the file for the official server
    server: Callable[[Mapping[Any, str]], Any] | None = None  # what that file holds; there is no server for retrieval
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "read", _each_once(self.read))

    def preset(self, name: str) -> Preset:
        for known, preset in self.presets.items():
            if known == name:
                return preset
        raise EvaluationError(f"{self.name} has no preset {name!r}; it has {', '.join(self.presets)}")


def _each_once(read: Callable[[Path, Preset], Items]) -> Callable[[Path, Preset], Items]:
    """The reader, which then refuses an id that two items have: the one would pass for the other."""

    @wraps(read)
    def checked(folder: Path, preset: Preset) -> Items:
        items = read(folder, preset)
        seen: dict[Any, int] = {}
        for number, item in enumerate(items, 1):
            if item.id in seen:
                raise EvaluationError(
                    f"{folder / preset.files[0]}: id {item.id!r} is there a second time, as items {seen[item.id]} and "
                    f"{number} of {preset.split}; every item needs an id of its own"
                )
            seen[item.id] = number
        return items

    return checked


def need_files(protocol: Protocol, folder: Path, preset: Preset) -> None:
    """Raise :class:`EvaluationError` that lists the files which a folder lacks, and where they are published."""
    lacking = [name for name in preset.files if not (folder / name).is_file()]
    if lacking:
        raise EvaluationError(
            f"{protocol.title} needs {', '.join(preset.files)} in {folder}; {', '.join(lacking)} "
            f"{'is' if len(lacking) == 1 else 'are'} not there. Published at {protocol.published_at}"
        )


def captions_for_server(predictions: Mapping[Any, str]) -> list[dict[str, Any]]:
    """The list that the servers of COCO and NoCaps take."""
    return [{"image_id": key, "caption": text} for key, text in predictions.items()]


def answers_for_server(predictions: Mapping[Any, str]) -> list[dict[str, Any]]:
    """The list that the server of VQA takes."""
    return [{"question_id": key, "answer": text} for key, text in predictions.items()]


def image_file(folder: Path, name: str, *places: str) -> str:
    """A picture's path: below the folder itself, or the first of ``places`` in it that has the file."""
    for place in ("", *places):
        if (folder / place / name).is_file():
            return str(folder / place / name)
    return str(folder / name)  # its absence is that item's error
