"""Evaluate a model on a benchmark or on a user's own records: predict, score, and compare with published scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from openblip import tasks
from openblip.blip import Blip
from openblip.checkpoints import published
from openblip.checkpoints.fingerprint import fingerprint
from openblip.checkpoints.folder import Bundle
from openblip.data.records import Record
from openblip.errors import EvaluationError
from openblip.evaluation import files
from openblip.evaluation.evaluators.base import Evaluation, Evaluator
from openblip.evaluation.evaluators.retrieval import MEDIAN_OF_VIDEOS
from openblip.evaluation.metrics.ids import ItemId
from openblip.evaluation.predictions import METRICS, write_references
from openblip.evaluation.protocols.base import Benchmark, Items, Preset, Protocol, ServerFile, VqaPreset
from openblip.evaluation.records import build_items
from openblip.evaluation.workspace import ProgressCallback, Workspace, ignore_progress


def run_benchmark(
    benchmark: Benchmark,
    blip: Blip,
    *,
    limit: int | None = None,
    out: Path | None = None,
    java: bool = False,
    progress: ProgressCallback = ignore_progress,
) -> Evaluation[object]:
    """Evaluate a model on a benchmark.

    Args:
        benchmark: The benchmark, from [`open_benchmark`][openblip.evaluation.protocols.open_benchmark].
        blip: The model.
        limit: Evaluate the first `limit` items only.
        out: The folder for predictions or rankings, metrics and the file for the official server. A run that stopped is
            resumed from it.
        java: Also compute METEOR and SPICE, with their Java programs.
        progress: Called with the number of items that are done, and of all items.

    Returns:
        The metrics, the predictions, and notes that compare the metrics with published scores.

    Raises:
        EvaluationError: If files are broken, if no item could be processed, if `out` belongs to another run, or if
            `out` is missing where only a server can score.
        UnsupportedTaskError: If the model does not support the task.
    """
    protocol, preset = benchmark.protocol, benchmark.preset
    if _needs_server(preset) and out is None:
        raise EvaluationError(
            f"only the server can score {protocol.title}, {preset.split.name}: choose a folder for the file to upload "
            "(out, or --out)"
        )
    items = benchmark.read()
    is_complete = len(items) == preset.split.count and limit is None
    items = items[:limit] if limit is not None else items
    if not items:
        raise EvaluationError(f"{protocol.title}: no items in {benchmark.folder}")
    key = {
        "benchmark": protocol.name,
        "preset": benchmark.preset_name,
        **_model_key(blip, preset, out),
        **_settings_key(preset, benchmark.folder),
    }
    evaluator = _create_evaluator(blip, preset, folder=benchmark.folder, java=java)
    evaluation = evaluator.evaluate(items, Workspace(out, key, progress))
    model = checkpoint_name(blip, preset)
    is_complete = is_complete and not evaluation.failed
    notes = [f"{protocol.title}, {preset.split.name}, preset {benchmark.preset_name}, {len(items)} items"]
    notes += evaluation.notes
    notes += compare_with_published(preset, model, evaluation.metrics, is_complete=is_complete)
    notes += _describe_server_file(protocol, preset, evaluation)
    paths = list(evaluation.files)
    if out is not None:
        if protocol.server_file is not None:
            paths.append(_write_server_file(protocol.server_file, evaluation.predictions, out))
        paths += _write_references(items, evaluation, preset, out)
        files.write_json(out / METRICS, {**key, **_results(items, evaluation), "notes": notes})
        paths.append(out / METRICS)
    return replace(evaluation, notes=notes, files=paths)


def run_records(
    blip: Blip,
    records: Iterable[Record],
    *,
    task: str = "",
    limit: int | None = None,
    out: Path | None = None,
    java: bool = False,
    progress: ProgressCallback = ignore_progress,
) -> Evaluation[object]:
    """Evaluate a model on a user's own images with captions, or with questions and answers.

    Args:
        blip: The model.
        records: The records, such as [`open_source`][openblip.data.sources.open_source] returns.
        task: "caption", "vqa" or "retrieval"; "" for captions if any record has some, else questions.
        limit: Evaluate the first `limit` items only.
        out: The folder for predictions or rankings and metrics. A run that stopped is resumed from it.
        java: Also compute METEOR and SPICE, with their Java programs.
        progress: Called with the number of items that are done, and of all items.

    Returns:
        The metrics and the predictions.

    Raises:
        EvaluationError: If records do not fit the task, if no item could be processed, or if `out` belongs to another
            run.
        UnsupportedTaskError: If the model does not support the task.
    """
    items, preset = build_items(records, task)
    items = items[:limit] if limit is not None else items
    key = {"benchmark": "own", **_model_key(blip, preset, out), **_settings_key(preset, Path())}
    evaluation = _create_evaluator(blip, preset, java=java).evaluate(items, Workspace(out, key, progress))
    paths = list(evaluation.files)
    if out is not None:
        paths += _write_references(items, evaluation, preset, out)
        files.write_json(out / METRICS, {**key, **_results(items, evaluation)})
        paths.append(out / METRICS)
    num_failed = len(evaluation.failed)
    note = f"{len(items) - num_failed} items of your own"
    if num_failed:
        note += f"; {num_failed} more failed and are not in the metrics"
    return replace(evaluation, notes=[note, *evaluation.notes], files=paths)


def compare_with_published(
    preset: Preset, model: str, metrics: Mapping[str, float | None], *, is_complete: bool
) -> list[str]:
    """Describe published scores next to the computed metrics, or why they are not comparable.

    Args:
        preset: The settings.
        model: The name of the model.
        metrics: The computed metrics.
        is_complete: Whether every item of the split was evaluated.

    Returns:
        One line for each published score, or one line with the reason.
    """
    checkpoint = published.find(model)
    scores = []
    if checkpoint is not None:
        scores = [score for score in preset.published if checkpoint.name in score.checkpoints]
    reason = ""
    if not preset.published:
        reason = preset.note or "nothing was published with these settings"
    elif not scores:
        names = ", ".join(name for score in preset.published for name in score.checkpoints)
        reason = f"the published scores belong to {names}, and this is {model}"
    elif not is_complete:
        reason = f"the split has {preset.split.count} items, and some were not evaluated"
    if reason:
        return [f"not comparable: {reason}"]
    lines = []
    for score in scores:
        values = [f"{name} {value}{_format_ours(name, metrics.get(name))}" for name, value in score.values.items()]
        lines.append(f"{score.source}: {', '.join(values)}")
    return lines


def _format_ours(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f" (ours {value:g})" if name == MEDIAN_OF_VIDEOS else f" (ours {100 * value:.2f})"


def _create_evaluator(blip: Blip, preset: Preset, *, folder: Path = Path(), java: bool = False) -> Evaluator[Any]:
    reference = tasks.find(preset.task).evaluator
    if reference is None:
        raise EvaluationError(f"{preset.task} has no evaluator")
    evaluator: type[Evaluator[Any]] = reference.resolve()
    return evaluator(blip, preset, folder=folder, java=java)


def _needs_server(preset: Preset) -> bool:
    """Return whether only the server can score: the answers are not public."""
    return isinstance(preset, VqaPreset) and preset.needs_server


def _describe_server_file(protocol: Protocol, preset: Preset, evaluation: Evaluation[object]) -> list[str]:
    if protocol.server_file is None:
        return []
    name = protocol.server_file.name
    if evaluation.failed:
        return [f"{name} lacks the {len(evaluation.failed)} items that failed, and servers need all: run again"]
    return [f"only the server can score answers: upload {name}"] if _needs_server(preset) else []


def _write_server_file(server_file: ServerFile, predictions: Mapping[ItemId, object], out: Path) -> Path:
    """Write the file for the official server and return its path."""
    content = server_file.build(predictions)
    path = out / server_file.name
    if isinstance(content, str):
        files.write_text(path, content)
    else:
        files.write_json(path, content)
    return path


def _results(items: Items, evaluation: Evaluation[object]) -> dict[str, object]:
    return {"items": len(items), "metrics": evaluation.metrics, "intervals": evaluation.intervals}


def _write_references(items: Items, evaluation: Evaluation[object], preset: Preset, out: Path) -> list[Path]:
    """Write the references of the items that were scored, for tasks that `openblip eval score` scores."""
    if preset.task not in ("caption", "vqa", "grounding"):
        return []
    path = write_references([item for item in items if item.id in evaluation.predictions], out)
    return [] if path is None else [path]


def _model_key(blip: Blip, preset: Preset, out: Path | None) -> dict[str, str]:
    """Return what predictions depend on in a model; if they are stored, with a digest of the files of the model.

    Engines that compute in fp32 agree. Others differ slightly, so their predictions must not be mixed.
    """
    key = {"model": blip.name, "precision": blip.precision}
    if blip.precision != "fp32":
        key["engine"] = blip.engine
    if out is not None:
        network = tasks.find(preset.task).networks[0]
        key["weights"] = fingerprint(blip.name, [network])[network]
    return key


def _settings_key(preset: Preset, folder: Path) -> dict[str, Any]:
    """Return what predictions depend on in a preset."""
    ignored = ("split", "published", "note")
    settings = {name: value for name, value in asdict(preset).items() if name not in ignored}
    if isinstance(preset, VqaPreset) and preset.inference == "rank":
        path = folder / preset.answer_list
        # If the list is missing, reading it reports that.
        settings["answers"] = blake2b(path.read_bytes(), digest_size=8).hexdigest() if path.is_file() else ""
    return {"split": preset.split.name, **settings}


def checkpoint_name(blip: Blip, preset: Preset) -> str:
    """Return the published name of the checkpoint, or the name of the model if it has none.

    A file or folder takes precedence over a published name, as in loading.
    """
    bundle = Bundle.find(blip.name)
    name = blip.name
    if bundle is not None:
        name = str(bundle.models.get(tasks.find(preset.task).networks[0], blip.name))
    path = Path(name).expanduser()
    entry = published.identify(path) if path.exists() else published.find(name)
    return entry.name if entry is not None else blip.name
