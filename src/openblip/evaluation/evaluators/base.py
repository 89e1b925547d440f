"""The evaluator base class, and the results of an evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from openblip.blip import Blip
from openblip.errors import EvaluationError, OpenBlipError
from openblip.evaluation.journal import Journal, digest_item
from openblip.evaluation.metrics.ids import ItemId
from openblip.evaluation.predictions import PREDICTIONS
from openblip.evaluation.protocols.base import Item, Items, Preset
from openblip.evaluation.report import ReportItem
from openblip.evaluation.workspace import Workspace
from openblip.pipelines.inputs import ImageInput
from openblip.preprocess.video import Video

P = TypeVar("P")  # the type of a prediction
P_co = TypeVar("P_co", covariant=True)


@dataclass(frozen=True)
class Predictions(Generic[P]):
    """The predictions of some items.

    Attributes:
        values: The prediction of each item that has one, in the order of the items.
        errors: Why each other item has none.
    """

    values: dict[ItemId, P]
    errors: dict[ItemId, str]


@dataclass(frozen=True)
class TaskScores:
    """The scores of some items.

    Attributes:
        metrics: The metrics, on a scale from 0 to 1 (CIDEr may exceed 1); `None` for a metric without a value.
        items: The score of each item, which orders the report; higher is better.
        notes: Remarks about the metrics.
        intervals: The 95 % intervals of metrics, by a bootstrap over the items.
    """

    metrics: dict[str, float | None]
    items: dict[ItemId, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation(Generic[P_co]):
    """The result of an evaluation.

    Attributes:
        metrics: The metrics, on a scale from 0 to 1 (CIDEr may exceed 1); `None` for a metric without a value.
        predictions: The prediction of each item that has one, in the order of the items.
        failed: Why each other item has no prediction.
        notes: Remarks about the metrics, and published scores to compare them with.
        report_items: The items for the report.
        files: The files that were written.
        intervals: The 95 % intervals of metrics, by a bootstrap over the items.
    """

    metrics: dict[str, float | None]
    predictions: Mapping[ItemId, P_co]
    failed: dict[ItemId, str]
    notes: list[str]
    report_items: list[ReportItem]
    files: list[Path] = field(default_factory=list)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)


class Evaluator(ABC, Generic[P]):
    """Predicts, scores and shows the items of one task.

    A subclass defines the type of a prediction, `P`, and the steps. The predictions of `predict` must be JSON
    values, or tuples of them, so that a run can be resumed.

    Args:
        blip: The model.
        preset: The settings.
        folder: The folder of the benchmark's files.
        java: Also compute metrics that need Java programs.
    """

    action: ClassVar[str]  # for the error if no item could be processed: "described", "answered", ...

    def __init__(self, blip: Blip, preset: Preset, *, folder: Path = Path(), java: bool = False) -> None:
        self.blip = blip
        self.preset = preset
        self.folder = folder
        self.java = java

    @abstractmethod
    def predict(self, items: Items) -> Iterator[P | OpenBlipError]:
        """Predict items.

        Args:
            items: The items.

        Yields:
            A prediction, or an error, for each item, in order.
        """

    @abstractmethod
    def parse(self, value: object) -> P:
        """Return a prediction from its JSON value.

        Args:
            value: The value, as read from a file.

        Returns:
            The prediction.

        Raises:
            EvaluationError: If the value is not a prediction of this task.
        """

    @abstractmethod
    def score(self, items: Items, predictions: Mapping[ItemId, P]) -> TaskScores:
        """Score predictions.

        Args:
            items: The items, each of which has a prediction.
            predictions: The predictions, by the id of the item.

        Returns:
            The metrics, and the score of each item.
        """

    @abstractmethod
    def show(self, item: Item, prediction: P | None, error: str, score: float | None) -> ReportItem:
        """Return an item of the report.

        Args:
            item: The item.
            prediction: Its prediction; `None` if it failed.
            error: Why it failed.
            score: Its score, if it has one.

        Returns:
            The item of the report.
        """

    def evaluate(self, items: Items, workspace: Workspace | None = None) -> Evaluation[P]:
        """Predict and score items.

        Args:
            items: The items.
            workspace: Where to store predictions and to report progress.

        Returns:
            The metrics, the predictions and the items of the report.

        Raises:
            EvaluationError: If no item could be processed, or if stored predictions cannot be used.
        """
        workspace = workspace or Workspace()
        predictions = self.collect(items, workspace)
        done = [item for item in items if item.id in predictions.values]
        if not done:
            error = next(iter(predictions.errors.values()), "there are no items")
            raise EvaluationError(f"no item could be {self.action}; the first error: {error}")
        scores = self.score(done, predictions.values)
        report_items = []
        for item in items:
            prediction, error = predictions.values.get(item.id), predictions.errors.get(item.id, "")
            report_item = self.show(item, prediction, error, scores.items.get(item.id))
            report_items.append(replace(report_item, content=item.content))
        files = self.write(done, predictions.values, workspace.folder) if workspace.folder is not None else []
        return Evaluation(
            scores.metrics,
            predictions.values,
            predictions.errors,
            scores.notes,
            report_items,
            files,
            scores.intervals,
        )

    def collect(self, items: Items, workspace: Workspace) -> Predictions[P]:
        """Return the predictions of items. Predictions in the workspace are not computed again.

        An item that failed before, or that changed under its id, is computed again.

        Args:
            items: The items.
            workspace: Where to store predictions and to report progress.

        Returns:
            The predictions, and why items failed.

        Raises:
            EvaluationError: If stored predictions cannot be used.
        """
        path = workspace.folder / PREDICTIONS if workspace.folder is not None else None
        values: dict[ItemId, P] = {}
        errors: dict[ItemId, str] = {}
        with Journal(path, workspace.key) as journal:
            for item in items:
                record = journal.find(item.id, digest_item(item))
                if record is not None:
                    values[item.id] = self._parse_record(path, record)
            remaining = [item for item in items if item.id not in values]
            workspace.progress(len(values), len(items))
            results = self.predict(remaining) if remaining else iter(())
            for item, result in zip(remaining, results, strict=True):
                if isinstance(result, OpenBlipError):
                    errors[item.id] = str(result)
                else:
                    values[item.id] = result
                    journal.add({"id": item.id, "of": digest_item(item), "prediction": result})
                workspace.progress(len(values) + len(errors), len(items))
        return Predictions({item.id: values[item.id] for item in items if item.id in values}, errors)

    def _parse_record(self, path: Path | None, record: Mapping[str, object]) -> P:
        try:
            return self.parse(record.get("prediction"))
        except EvaluationError as error:
            raise EvaluationError(
                f"{path}: the 'prediction' of id {record['id']!r} {error}; delete its line to compute it again"
            ) from error

    def write(self, items: Items, predictions: Mapping[ItemId, P], folder: Path) -> list[Path]:
        """Write more files of the task.

        Args:
            items: The items, each of which has a prediction.
            predictions: The predictions, by the id of the item.
            folder: The folder of the run.

        Returns:
            The paths of the files.
        """
        return []


def make_input(item: Item, num_frames: int | None) -> ImageInput:
    """Return the image of an item for a model, or its video with the number of frames to sample."""
    return item.source if num_frames is None else Video(item.image, num_frames)


def parse_text(value: object) -> str:
    """Return a text; raise `EvaluationError` for another value."""
    if not isinstance(value, str):
        raise EvaluationError(f"must be a text, got {value!r}")
    return value
