"""A benchmark, from files to numbers: :func:`run` predicts (resuming), scores, and compares with what was published."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from openblip.blip import Blip
from openblip.checkpoints import bundle, published
from openblip.errors import EvaluationError
from openblip.evaluation import files, journal
from openblip.evaluation.own import own_items
from openblip.evaluation.protocols.base import (
    AnswerPreset,
    CaptionPreset,
    ComparePreset,
    GroundPreset,
    Items,
    Preset,
    Protocol,
    RetrievalPreset,
    need_files,
)
from openblip.evaluation.protocols.videos import VideoAnswerPreset, VideoRetrievalPreset
from openblip.evaluation.protocols.visdial import DialogPreset
from openblip.evaluation.tasks import answers, captions, compare, dialogs, ground, retrieval, videos
from openblip.evaluation.tasks.base import Evaluated, Notify, Predict, Predicted
from openblip.jobs.identity import fingerprint
from openblip.model.config import ModelKind

__all__ = ["METRICS", "PREDICTIONS", "Evaluated", "comparison", "evaluate", "own_items", "run", "run_own"]

PREDICTIONS, METRICS = "predictions.jsonl", "metrics.json"


def _silent(done: int, total: int) -> None:
    """Nobody is told."""


def run(
    protocol: Protocol,
    blip: Blip,
    data: Path,
    *,
    preset: str = "paper",
    limit: int | None = None,
    out: Path | None = None,
    java: bool = False,
    notify: Notify = _silent,
) -> Evaluated:
    """Evaluate a model on a benchmark whose files lie in ``data``.

    ``limit`` takes the first items only. ``out`` is the folder of what is computed, which a second run goes on from, of
    predictions or rankings, of the metrics, and of the file for the official server. ``notify`` is told how much is
    done, of how much.

    Raises :class:`EvaluationError` for missing or broken files, or for no ``out`` where only a server can score,
    :class:`UnsupportedTaskError` for a model of another task.
    """
    chosen = protocol.preset(preset)
    need_files(protocol, data, chosen)
    if _by_server(chosen) and out is None:
        raise EvaluationError(
            f"{protocol.title}, {chosen.split}: answers are scored by the server alone; say in which folder to put the "
            "file for it (out, or --out)"
        )
    items = protocol.read(data, chosen)
    whole = len(items) == chosen.count and limit is None
    items = items[:limit] if limit is not None else items
    if not items:
        raise EvaluationError(f"{protocol.title}: no items in {data}")
    key = {"benchmark": protocol.name, "preset": preset, **_model(blip, protocol.task, out), **_settings(chosen)}
    found = evaluate(blip, items, chosen, data=data, key=key, out=out, java=java, notify=notify)
    notes = [f"{protocol.title}, {chosen.split}, preset {preset}, {len(items)} items", *found.notes]
    name = _checkpoint(blip, protocol.task)
    notes += comparison(chosen, name, found.metrics, whole=whole and not found.failed)
    notes += _about_the_server(protocol, chosen, found)
    made = list(found.files)
    if out is not None:
        if protocol.server is not None:
            content = protocol.server(found.predictions)
            write = files.write_text if isinstance(content, str) else files.write_json
            write(out / protocol.result, content)
            made.append(out / protocol.result)
        files.write_json(out / METRICS, {**key, "items": len(items), "metrics": found.metrics, "notes": notes})
        made.append(out / METRICS)
    return replace(found, notes=notes, files=made)


def evaluate(
    blip: Blip,
    items: Items,
    preset: Preset,
    *,
    data: Path,
    key: Mapping[str, Any],
    out: Path | None = None,
    java: bool = False,
    notify: Notify = _silent,
) -> Evaluated:
    """Predict and score items by a preset, whatever benchmark they are of."""
    if isinstance(preset, AnswerPreset) and preset.inference == "rank":
        key = {**key, "answers": _digest(data / preset.answer_list)}

    def predicted(predict: Predict) -> Predicted:
        return journal.fill(out / PREDICTIONS if out is not None else None, key, items, predict, notify)

    match preset:
        case VideoRetrievalPreset():
            return videos.retrieved(blip, items, preset, key=key, out=out, notify=notify)
        case VideoAnswerPreset():
            return answers.scored(items, predicted(videos.predictor(blip, preset, data)), preset)
        case DialogPreset():
            return dialogs.scored(items, predicted(dialogs.predictor(blip, preset)))
        case RetrievalPreset():
            return retrieval.evaluated(blip, items, preset, key=key, out=out, notify=notify)
        case CaptionPreset():
            return captions.scored(items, predicted(captions.predictor(blip, preset)), java)
        case ComparePreset():
            return compare.scored(items, predicted(compare.predictor(blip, preset)))
        case GroundPreset():
            return ground.scored(items, predicted(ground.predictor(blip)), preset)
        case AnswerPreset():
            return answers.scored(items, predicted(answers.predictor(blip, preset, data)), preset)
    raise EvaluationError(f"there is no way to evaluate by {type(preset).__name__}")


def run_own(
    blip: Blip,
    source: Iterable[Any],
    *,
    kind: str = "",
    limit: int | None = None,
    out: Path | None = None,
    java: bool = False,
    notify: Notify = _silent,
) -> Evaluated:
    """Evaluate a model on one's own pictures with captions, or with questions and answers."""
    items, settings = own_items(source, kind)
    items = items[:limit] if limit is not None else items
    tasks: dict[type, ModelKind] = {CaptionPreset: "caption", AnswerPreset: "vqa", RetrievalPreset: "retrieval"}
    key = {"benchmark": "own", **_model(blip, tasks[type(settings)], out), **_settings(settings)}
    found = evaluate(blip, items, settings, data=Path(), key=key, out=out, java=java, notify=notify)
    made = list(found.files)
    if out is not None:
        files.write_json(out / METRICS, {**key, "items": len(items), "metrics": found.metrics})
        made.append(out / METRICS)
    return replace(found, notes=[f"{len(items)} items of one's own", *found.notes], files=made)


def _by_server(preset: Preset) -> bool:
    """Whether only a server can score: there are no answers."""
    return isinstance(preset, AnswerPreset) and not preset.rule


def _about_the_server(protocol: Protocol, preset: Preset, found: Evaluated) -> list[str]:
    """What is to be done with the file for the official server."""
    if protocol.server is None:
        return []
    if found.failed:
        return [
            f"{protocol.result} lacks the {len(found.failed)} items that failed, and servers want all: run it again"
        ]
    return [f"answers are scored by the server: send it {protocol.result}"] if _by_server(preset) else []


def comparison(preset: Preset, model: str, metrics: Mapping[str, float | None], *, whole: bool) -> list[str]:
    """Published scores beside ours, or "not comparable" and why."""
    known = published.find(model)
    fitting = [score for score in preset.published if known is not None and known.name in score.checkpoints]
    why = ""
    if not preset.published:
        why = preset.note or "nothing was published with these settings"
    elif not fitting:
        names = ", ".join(name for score in preset.published for name in score.checkpoints)
        why = f"published were the scores of {names}, and this is {model}"
    elif not whole:
        why = f"this is not the whole split of {preset.count}"
    if why:
        return [f"not comparable: {why}"]
    return [
        f"{score.source}: "
        + ", ".join(f"{name} {value}{_ours(name, metrics.get(name))}" for name, value in score.values.items())
        for score in fitting
    ]


def _ours(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f" (ours {value:g})" if name == videos.MEDIAN else f" (ours {100 * value:.2f})"


def _model(blip: Blip, task: ModelKind, out: Path | None) -> dict[str, str]:
    """What predicts; where predictions are kept, by the content of its files, as those in a folder may change.

    Engines that compute in fp32 say the same. Others differ a little, so that theirs are not to be mixed.
    """
    named = {"model": blip.name, "precision": blip.precision}
    if blip.precision != "fp32":
        named["engine"] = blip.engine
    if out is not None:
        named["weights"] = fingerprint(blip.name, [task])[task]
    return named


def _checkpoint(blip: Blip, task: ModelKind) -> str:
    """What a model is called: the published name of a file, a folder or a bundle's member, if it has one, or its own.

    A file that exists comes before a published name, as in loading.
    """
    found = bundle.find(blip.name)
    name = found.models.get(task, blip.name) if found is not None else blip.name
    path = Path(name).expanduser()
    entry = published.identify(path) if path.exists() else published.find(name)
    return entry.name if entry is not None else blip.name


def _digest(path: Path) -> str:
    """Of a file's content, nothing if it is not there: what it was read for tells that."""
    return blake2b(path.read_bytes(), digest_size=8).hexdigest() if path.is_file() else ""


def _settings(preset: Preset) -> dict[str, Any]:
    return {k: v for k, v in asdict(preset).items() if k not in ("published", "note", "count", "files")}
