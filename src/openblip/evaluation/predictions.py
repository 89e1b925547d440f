"""Read predictions and references to score: official files, folders of runs, and the lists that jobs write.

Predictions are one of

- a file in the format of an official server ([`files`][openblip.evaluation.files]),
- the folder of a run (`openblip eval run --out`), or its `predictions.jsonl`,
- a list that a job wrote (`openblip caption --to jsonl`, also CSV and Parquet), whose items are named by their images.

References are an official file, any data that [`open_source`][openblip.data.sources.open_source] reads, or the
`references.jsonl` of a run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from openblip.data.records import Record
from openblip.data.sources import open_source
from openblip.data.sources.base import Source
from openblip.errors import EvaluationError, InputError
from openblip.evaluation import files
from openblip.evaluation.metrics.answers import AnswerReference
from openblip.evaluation.metrics.ids import ItemId
from openblip.evaluation.protocols.base import Item, Items

PREDICTIONS = "predictions.jsonl"
"""The file of a run's folder with its predictions."""
REFERENCES = "references.jsonl"
"""The file of a run's folder with the references that it was scored with."""
METRICS = "metrics.json"
"""The file of a run's folder with its settings and metrics."""

Kind: TypeAlias = Literal["captions", "vqa", "grounding"]
Box: TypeAlias = Sequence[float]
V = TypeVar("V")
_LISTS = (".csv", ".tsv", ".parquet")
_DATA = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
_JSON = (".json", ".jsonl", ".ndjson")
_IDS = ("image_id", "question_id", "id", "ref_id", "sent_id")


@dataclass(frozen=True)
class PredictionFile(Generic[V]):
    """The predictions of one system.

    Attributes:
        path: The file or folder that the user named.
        values: The prediction of each item. Items of a job's list are named by image, and by question or expression.
        settings: Model and settings of a run; empty for other files.
        by_image: Whether the items have no ids of the benchmark: a job's list, or a run on the user's own records.
    """

    path: Path
    values: dict[ItemId, V]
    settings: Mapping[str, Any]
    by_image: bool


@dataclass(frozen=True)
class ReferenceFile(Generic[V]):
    """The references.

    Attributes:
        values: The references of each item.
        names: Further names of each item, such as the path of its image, that a job's list may use.
    """

    values: dict[ItemId, V]
    names: Mapping[ItemId, Sequence[str]]

    @property
    def images(self) -> dict[ItemId, str]:
        """The image file of each item that has one on this machine."""
        images = {}
        for key, names in self.names.items():
            paths = [name.partition(": ")[0] for name in names]
            path = next((path for path in paths if os.path.isfile(path) and not path.endswith(_DATA)), None)  # noqa: PTH113
            if path is not None:
                images[key] = path
        return images


def read_captions(path: Path) -> PredictionFile[str]:
    """Read predicted captions.

    Args:
        path: An official file, the folder of a run, or a list that `openblip caption` wrote.

    Returns:
        The caption of each image; the best one where a list has several.

    Raises:
        EvaluationError: If the file or an entry cannot be read, or if an image occurs twice.
    """
    return _read_predictions(path, files.read_captions, _parse_text, lambda record: _each(record.captions[:1]))


def read_answers(path: Path) -> PredictionFile[str]:
    """Read predicted answers.

    Args:
        path: An official file, the folder of a run, or a list that `openblip ask` wrote.

    Returns:
        The answer to each question.

    Raises:
        EvaluationError: If the file or an entry cannot be read, or if a question occurs twice.
    """
    return _read_predictions(
        path,
        files.read_answers,
        _parse_text,
        lambda record: ((question.text, question.answers[0]) for question in record.questions if question.answers),
    )


def read_boxes(path: Path) -> PredictionFile[Box]:
    """Read predicted boxes.

    Args:
        path: A file of entries {"id", "box"}, the folder of a run, or a list that `openblip ground` wrote.

    Returns:
        The box of each expression: left, top, right and bottom.

    Raises:
        EvaluationError: If the file or an entry cannot be read, or if an expression occurs twice.
    """
    return _read_predictions(
        path, _read_official_boxes, _parse_box, lambda record: ((text.text, text.box) for text in record.expressions)
    )


def read_caption_references(path: Path | None, predictions: PredictionFile[str]) -> ReferenceFile[Sequence[str]]:
    """Read reference captions.

    Args:
        path: An official file or the user's records; `None` for the references of a run.
        predictions: The predictions, which give the names of items.

    Returns:
        The captions of each image.

    Raises:
        EvaluationError: If the references cannot be read, or if there are none.
    """

    def find(record: Record) -> Iterator[tuple[str, Sequence[str]]]:
        return _each([record.captions] if record.captions else [])

    references = _read_references(path, predictions, files.read_caption_references, find)
    names = dict(references.names)
    if path is not None and path.suffix.lower() == ".json":
        content = files.read_json(path)
        if isinstance(content, Mapping) and "images" in content:  # COCO's format names the file of each image
            for key, entry in files.index_coco_images(path, content).items():
                names[key] = [*names.get(key, ()), *([entry["file_name"]] if "file_name" in entry else [])]
    return ReferenceFile(references.values, names)


def read_answer_references(path: Path | None, predictions: PredictionFile[str]) -> ReferenceFile[AnswerReference]:
    """Read people's answers; see [`read_caption_references`][openblip.evaluation.predictions.read_caption_references].

    Args:
        path: An official file or the user's records; `None` for the references of a run.
        predictions: The predictions, which give the names of items.

    Returns:
        The answers to each question.

    Raises:
        EvaluationError: If the references cannot be read, or if there are none.
    """

    def find(record: Record) -> Iterator[tuple[str, AnswerReference | None]]:
        for question in record.questions:
            yield question.text, AnswerReference(list(question.answers)) if question.answers else None

    return _read_references(path, predictions, files.read_answer_references, find)


def read_box_references(path: Path | None, predictions: PredictionFile[Box]) -> ReferenceFile[Box]:
    """Read reference boxes; see [`read_caption_references`][openblip.evaluation.predictions.read_caption_references].

    Args:
        path: A file of entries {"id", "box"} or the user's records; `None` for the references of a run.
        predictions: The predictions, which give the names of items.

    Returns:
        The box of each expression: left, top, right and bottom.

    Raises:
        EvaluationError: If the references cannot be read, or if there are none.
    """

    def find(record: Record) -> Iterator[tuple[str, Box]]:
        return ((expression.text, expression.box) for expression in record.expressions)

    return _read_references(path, predictions, _read_official_boxes, find)


def align(predictions: PredictionFile[V], references: ReferenceFile[Any]) -> dict[ItemId, V]:
    """Return predictions under the ids of the references.

    Ids that agree stay. Otherwise items are joined by the whole path of their images, or else by the file name if that
    is unique, so that lists written in another folder or on another machine fit.

    Args:
        predictions: The predictions.
        references: The references.

    Returns:
        The predictions; under their own ids if nothing fits.
    """
    if any(key in references.values for key in predictions.values):
        return predictions.values
    for shorten in (str, _file_name):
        ids = {shorten(name): key for key, names in references.names.items() for name in names}
        renamed = {ids.get(shorten(str(key)), key): value for key, value in predictions.values.items()}
        if len(renamed) == len(predictions.values) and any(key in references.values for key in renamed):
            return renamed
    return predictions.values


def write_references(items: Items, folder: Path) -> Path | None:
    """Write the references of a run, so that its folder can be scored again without other files.

    Args:
        items: The items of the run.
        folder: The folder of the run.

    Returns:
        The path of the file; `None` if the items have no references.

    Raises:
        EvaluationError: If the file cannot be written.
    """
    records = [_reference_entry(item) for item in items]
    if not all(records):
        return None
    path = folder / REFERENCES
    files.write_json_lines(path, records)
    return path


def _reference_entry(item: Item) -> dict[str, object]:
    entry: dict[str, object] = {"id": item.id, "image": item.image}
    if item.box:
        return {**entry, "expression": item.texts[0], "box": list(item.box)}
    if item.question:
        types = {"question_type": item.question_type, "answer_type": item.answer_type}
        answers = {"question": item.question, "answers": list(item.answers)}
        return {**entry, **answers, **{name: value for name, value in types.items() if value}} if item.answers else {}
    return {**entry, "captions": list(item.texts)} if item.texts else {}


def _read_predictions(
    path: Path,
    read_official: Callable[[Path], dict[ItemId, V]],
    parse: Callable[[str, object], V],
    find: Callable[[Record], Iterable[tuple[str, V]]],
) -> PredictionFile[V]:
    path_read = path / PREDICTIONS if path.is_dir() else path
    if path.is_dir() and not path_read.is_file():
        raise EvaluationError(f"{path} must be the folder of a run, with {PREDICTIONS}; write it with eval run --out")
    suffix = path_read.suffix.lower()
    first = _first_entry(path_read) if suffix in _JSON else {}
    if "benchmark" in first and "model" in first and "id" not in first:
        values = {}
        for location, entry in files.read_json_lines(path_read)[1:]:
            if not isinstance(entry.get("id"), int | str):
                raise EvaluationError(f"{location} has no 'id'")
            values[entry["id"]] = parse(location, entry.get("prediction"))  # the last one of an item that changed
        return PredictionFile(path, values, first, first["benchmark"] == "own")
    if suffix in _LISTS or "path" in first:
        records = _read_records(path_read, skip_failures=True)
        best = (record for record in records if record.extra.get("rank") in (None, "", 0, "0"))
        pairs = ((_by_image(record, text), value) for record in best for text, value in find(record))
        values = files.index_unique((str(path), key, value) for key, value in pairs)
        return PredictionFile(path, values, {}, True)
    return PredictionFile(path, read_official(path_read), {}, False)


def _read_references(
    path: Path | None,
    predictions: PredictionFile[Any],
    read_official: Callable[[Path], Mapping[ItemId, V]],
    find: Callable[[Record], Iterable[tuple[str, V | None]]],
) -> ReferenceFile[V]:
    if path is None:
        folder = predictions.path if predictions.path.is_dir() else predictions.path.parent
        path = folder / REFERENCES
        if not path.is_file():
            raise EvaluationError(f"-r is required: {predictions.path} is not a run with {REFERENCES}")
    if path.is_dir() and (path / REFERENCES).is_file():
        path = path / REFERENCES
    if path.suffix.lower() in _JSON and not (predictions.by_image and not _has_ids(path)):
        values = dict(read_official(path))
        return ReferenceFile(values, _official_names(path, values))
    values = {}
    names: dict[ItemId, Sequence[str]] = {}
    for record in _read_records(path):
        for number, (text, value) in enumerate(find(record)):
            if value is None:
                continue
            # A run on the same records names an item by its line, with the number of the question.
            by_line = f"{record.address}#{number}" if text and record.questions else record.address
            key = by_line if by_line in predictions.values else _by_image(record, text)
            values[key] = value
            names[key] = [key, by_line]
    if not values:
        raise EvaluationError(f"{path} has no references for this task")
    return ReferenceFile(values, names)


def _official_names(path: Path, keys: Iterable[ItemId]) -> dict[ItemId, Sequence[str]]:
    names: dict[ItemId, Sequence[str]] = {key: [os.path.abspath(path.parent / str(key)), str(key)] for key in keys}  # noqa: PTH100
    if path.name == REFERENCES:  # of a run: it names the images
        for _, entry in files.read_json_lines(path):
            text = entry.get("question") or entry.get("expression") or ""
            names[entry["id"]] = [*names.get(entry["id"], ()), _join(os.path.abspath(str(entry.get("image"))), text)]  # noqa: PTH100
    return names


def _read_records(path: Path, *, skip_failures: bool = False) -> Iterator[Record]:
    """Yield the records of any data; unusable rows are errors, except failures that a job recorded."""
    try:
        source = open_source(str(path), keep=["rank"])
    except InputError as error:
        raise EvaluationError(str(error)) from error
    if isinstance(source, Source):
        problems, records = source.problems, iter(source)
    else:
        entries = [entry for shard in range(source.shards) for entry in source.read(shard)]
        problems = tuple(entry for entry in entries if not isinstance(entry, Record))
        records = (entry for entry in entries if isinstance(entry, Record))
    for problem in problems:
        if not (skip_failures and "records a failure" in str(problem)):
            raise EvaluationError(str(problem))
    yield from records


def _read_official_boxes(path: Path) -> dict[ItemId, Box]:
    return {**files.read_boxes(path)}


def _first_entry(path: Path) -> Mapping[str, Any]:
    """Return the first entry of JSON Lines or of a list; empty for another form."""
    text = files.read_text(path).lstrip()
    if text.startswith("["):
        content = files.parse_json(str(path), text)
        entry = content[0] if isinstance(content, list) and content else None
    else:
        try:
            entry = json.loads(text.partition("\n")[0])
        except (ValueError, RecursionError):
            entry = None
    return entry if isinstance(entry, Mapping) else {}


def _has_ids(path: Path) -> bool:
    """Return whether a JSON file has the ids of a benchmark: COCO's format, or entries with an id."""
    first = _first_entry(path)
    return not first or "annotations" in first or any(name in first for name in _IDS)


def _by_image(record: Record, text: str) -> str:
    return _join(os.path.abspath(record.images[0].address), text)  # noqa: PTH100


def _join(path: str, text: str) -> str:
    return f"{path}: {text}" if text else path


def _file_name(name: str) -> str:
    path, separator, text = name.partition(": ")
    return os.path.basename(path.replace("\\", "/")) + separator + text  # noqa: PTH119


def _each(values: Iterable[V]) -> Iterator[tuple[str, V]]:
    return (("", value) for value in values)


def _parse_text(location: str, value: object) -> str:
    if not isinstance(value, str):
        raise EvaluationError(f"{location}: 'prediction' must be a text, got {value!r}")
    return value


def _parse_box(location: str, value: object) -> Box:
    if not isinstance(value, list) or len(value) != 4 or not all(type(edge) in (int, float) for edge in value):
        raise EvaluationError(f"{location}: 'prediction' must be a box of four numbers, got {value!r}")
    return value
