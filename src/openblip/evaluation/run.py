"""A benchmark, from files to numbers: :func:`run` predicts (resuming), scores, and compares with what was published."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from openblip.blip import Blip
from openblip.checkpoints import published
from openblip.data.records import FilePicture
from openblip.engine.eager import EagerSession
from openblip.errors import EvaluationError, OpenBlipError
from openblip.evaluation import files, two_stage
from openblip.evaluation.metrics import answers, boxes, captions, ranks
from openblip.evaluation.protocols import nlvr2
from openblip.evaluation.protocols.base import (
    AnswerPreset,
    CaptionPreset,
    ComparePreset,
    GroundPreset,
    Item,
    Items,
    Preset,
    Protocol,
    RetrievalPreset,
    need_files,
)
from openblip.evaluation.report import Shown
from openblip.inputs import ahead, chunks
from openblip.model.comparer import Comparer
from openblip.model.grounder import Grounder
from openblip.preprocess.image import load_image, resize
from openblip.preprocess.text import clean_caption, clean_expression
from openblip.runner import Runner

PREDICTIONS, METRICS = "predictions.jsonl", "metrics.json"


@dataclass(frozen=True)
class Evaluated:
    """``metrics`` from 0 to 1 (captions' CIDEr may exceed 1); ``notes`` say what they can be compared with."""

    metrics: dict[str, float | None]
    notes: list[str]
    shown: list[Shown]
    failed: dict[Any, str]
    predictions: dict[Any, str] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)


def run(
    protocol: Protocol,
    blip: Blip,
    data: Path,
    *,
    preset: str = "paper",
    limit: int | None = None,
    out: Path | None = None,
    java: bool = False,
    notify: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluated:
    """Evaluate a model on a benchmark whose files lie in ``data``.

    ``limit`` takes the first items only. ``out`` is the folder of the predictions, which a second run goes on from, of
    the metrics, and of the file for the official server. ``notify`` is told how many items are done, of how many.

    Raises :class:`EvaluationError` for missing or broken files, :class:`UnsupportedTask` for a model of another task.
    """
    chosen = protocol.preset(preset)
    need_files(protocol, data, chosen)
    items = protocol.read(data, chosen)
    whole = len(items) == chosen.count and limit is None
    items = items[:limit] if limit is not None else items
    if not items:
        raise EvaluationError(f"{protocol.title}: no items in {data}")
    key = {"benchmark": protocol.name, "preset": preset, "model": blip.name, **_settings(chosen)}
    found = evaluate(blip, items, chosen, data=data, key=key, out=out, java=java, notify=notify)
    notes = [f"{protocol.title}, {chosen.split}, preset {preset}, {len(items)} items"]
    notes += found.notes
    notes += comparison(chosen, blip.name, found.metrics, whole=whole and not found.failed)
    if isinstance(chosen, AnswerPreset) and not chosen.rule:
        notes.append(f"answers are scored by the server: send it {protocol.result}")
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
    notify: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluated:
    """Predict and score items by a preset, whatever benchmark they are of."""
    if isinstance(preset, RetrievalPreset):
        return _retrieval(blip, items, preset)
    journal = _Journal(out / PREDICTIONS if out is not None else None, key)
    if isinstance(preset, CaptionPreset):
        predicted = journal.fill(items, _describe(blip, preset), notify)
        return _captions_scored(items, predicted, journal.failed, java)
    if isinstance(preset, ComparePreset):
        predicted = journal.fill(items, _judge(blip, preset), notify)
        return _judged(items, predicted, journal.failed)
    if isinstance(preset, GroundPreset):
        predicted = journal.fill(items, _ground(blip), notify)
        return _grounded(items, predicted, journal.failed, preset)
    assert isinstance(preset, AnswerPreset)
    predicted = journal.fill(items, _answer(blip, preset, data), notify)
    return _answers_scored(items, predicted, journal.failed, preset)


# --- predicting ---------------------------------------------------------------------------------------------------

Predict = Callable[[Items], Iterable[Any]]  # a text or an error for each item, in order


def _describe(blip: Blip, preset: CaptionPreset) -> Predict:
    def predict(items: Items) -> Iterator[Any]:
        found = blip.caption(
            (item.image for item in items), beams=preset.beams, min_new_tokens=preset.min_new_tokens,
            max_new_tokens=preset.max_new_tokens, repetition_penalty=preset.repetition_penalty,
        )  # fmt: skip
        return (one if isinstance(one, OpenBlipError) else one.text for one in found)

    return predict


def _answer(blip: Blip, preset: AnswerPreset, data: Path) -> Predict:
    listed = _answer_list(data / preset.answer_list) if preset.inference == "rank" else None
    if listed is not None:
        options: dict[str, Any] = {"answers": listed, "k": min(preset.k, len(listed)), "smoothing": preset.smoothing}
    else:
        lengths = {"min_new_tokens": preset.min_length - 1, "max_new_tokens": preset.max_length - 1}
        options = {"beams": preset.beams, **lengths}

    def predict(items: Items) -> Iterator[Any]:
        step = 4 * blip.batch_size
        for at in range(0, len(items), step):
            part = items[at : at + step]
            questions = [_bare(item.question) if preset.bare else item.question for item in part]
            found = blip.ask([item.image for item in part], questions, **options)
            yield from (one if isinstance(one, OpenBlipError) else one.text for one in found)

    return predict


def _answer_list(path: Path) -> list[str]:
    listed = files.load(path)
    if not isinstance(listed, list) or not listed or not all(isinstance(one, str) for one in listed):
        raise EvaluationError(f"{path} is not a list of answers")
    return listed


def _bare(question: str) -> str:
    return re.sub(r"[^\w\s]", "", question)


def _judge(blip: Blip, preset: ComparePreset) -> Predict:
    runner = blip._part("compare")
    comparer = cast(Comparer, runner.eager.model)

    def opened(item: Item) -> Any:
        return runner.open(item.image), runner.open(item.second)

    def judged(pairs: list[tuple[Any, Any]], statements: list[str]) -> list[str]:
        texts = [clean_caption(text, preset.max_words) if preset.clean else text for text in statements]
        rows = [runner.tokenizer.encode([text], preset.first_token).ids[0].tolist() for text in texts]
        ids, mask = (part.to(runner.engine.device) for part in runner.pad(rows))
        states = runner.states([left for left, _ in pairs]), runner.states([right for _, right in pairs])
        with torch.inference_mode():
            best = comparer.logits(ids, mask, states).argmax(-1)
        return [str(bool(one)) for one in best.tolist()]

    def predict(items: Items) -> Iterator[Any]:
        waiting = iter(items)
        for chunk in chunks(ahead(opened, items, blip.workers, 2 * blip.batch_size), blip.batch_size):
            here = [next(waiting) for _ in chunk]
            good = [(pair, item) for pair, item in zip(chunk, here, strict=True) if not isinstance(pair, OpenBlipError)]
            said = iter(judged([pair for pair, _ in good], [item.texts[0] for _, item in good]) if good else [])
            yield from (pair if isinstance(pair, OpenBlipError) else next(said) for pair in chunk)

    return predict


def _ground(blip: Blip) -> Predict:
    runner = blip._part("ground")

    def opened(item: Item) -> Any:
        picture = load_image(item.image)
        return resize(picture, runner.image.size), picture.size

    def predict(items: Items) -> Iterator[Any]:
        waiting = iter(items)
        for chunk in chunks(ahead(opened, items, blip.workers, 2 * blip.batch_size), blip.batch_size):
            here = [next(waiting) for _ in chunk]
            good = [(one, item) for one, item in zip(chunk, here, strict=True) if not isinstance(one, OpenBlipError)]
            found: Iterator[str] = iter(())
            if good:
                states = runner.states([pixels for (pixels, _), _ in good])
                shares = boxes_of(runner, [expression_ids(runner, item.texts[0]) for _, item in good], states)
                found = iter([_in_pixels(edges, size) for edges, ((_, size), _) in zip(shares, good, strict=True)])
            yield from (one if isinstance(one, OpenBlipError) else next(found) for one in chunk)

    return predict


def expression_ids(runner: Runner, text: str) -> list[int]:
    return cast("list[int]", runner.tokenizer.encode([clean_expression(text)], "cls").ids[0].tolist())


@torch.inference_mode()
def boxes_of(runner: Runner, rows: list[list[int]], states: Tensor) -> list[list[float]]:
    """The box of each expression (ids from [CLS] to [SEP]) in its image's states (B, M, D): left, top, right, bottom.

    They go from 0 to 1. Each coordinate is the likeliest of the tokens that stand for one, given those before it.
    """
    model, device = cast(Grounder, runner.eager.model), runner.engine.device
    ids, mask = (part.to(device) for part in runner.pad(rows))
    fused, seen = model.fuse(ids, mask, states)
    session = EagerSession(model.decoder, model.lm_head, model.decoder.project(fused, seen), 4)
    places = model.box_ids(device)
    fed, bins = ids.new_full((len(ids), 1), model.config.box_start_id), []
    for _ in range(4):
        best = session.step(fed)[:, places].argmax(-1)
        bins.append(best)
        fed = places[best, None]
    x, y, width, height = (torch.stack(bins).float() / model.config.box_bins).unbind(0)
    edges = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1)
    return cast("list[list[float]]", edges.clamp(0, 1).tolist())


def _in_pixels(edges: list[float], size: tuple[int, int]) -> str:
    return json.dumps([round(edge * side, 4) for edge, side in zip(edges, (*size, *size), strict=True)])


class _Journal:
    """Predictions as they are made, one JSON line each, so that a run that stopped goes on where it was."""

    def __init__(self, path: Path | None, key: Mapping[str, Any]) -> None:
        self.path, self.key = path, dict(key)
        self.failed: dict[Any, str] = {}

    def fill(self, items: Items, predict: Predict, notify: Callable[[int, int], None]) -> dict[Any, str]:
        """A text for each item that has one; what failed is in ``failed``, and is tried again by the next run."""
        known = _read_journal(self.path, self.key) if self.path is not None else {}
        found = {item.id: known[_name(item.id)] for item in items if _name(item.id) in known}
        missing = [item for item in items if item.id not in found]
        notify(len(found), len(items))
        with _Lines(self.path, self.key, fresh=not known) as lines:
            for item, text in zip(missing, predict(missing) if missing else (), strict=True):
                if isinstance(text, OpenBlipError):
                    self.failed[item.id] = str(text)
                else:
                    found[item.id] = text
                    lines.add({"id": item.id, "text": text})
                notify(len(found) + len(self.failed), len(items))
        return {item.id: found[item.id] for item in items if item.id in found}


class _Lines:
    def __init__(self, path: Path | None, key: Mapping[str, Any], *, fresh: bool) -> None:
        self.file = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            if fresh:
                files.write_text(path, json.dumps(key) + "\n")
            self.file = path.open("a", encoding="utf-8")

    def add(self, record: Mapping[str, Any]) -> None:
        if self.file is not None:
            self.file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self.file.flush()

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()


def _read_journal(path: Path, key: Mapping[str, Any]) -> dict[str, str]:
    """What a journal holds, by name of id; a last line that was cut off does not count."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").split("\n")
    if json.loads(lines[0]) != json.loads(json.dumps(key)):
        raise EvaluationError(f"{path} holds predictions of another model or preset; give another folder")
    if lines[-1]:  # cut off in the middle: forget it, and make room for the next
        lines.pop()
        files.write_text(path, "".join(f"{line}\n" for line in lines))
    return {_name(one["id"]): one["text"] for one in map(json.loads, filter(None, lines[1:]))}


def _name(key: Any) -> str:
    return json.dumps(key)


def _settings(preset: Preset) -> dict[str, Any]:
    return {k: v for k, v in asdict(preset).items() if k not in ("published", "note", "count", "files")}


# --- scoring ------------------------------------------------------------------------------------------------------


def _captions_scored(items: Items, predicted: dict[Any, str], failed: dict[Any, str], java: bool) -> Evaluated:
    done = [item for item in items if item.id in predicted]
    if not done:
        raise EvaluationError(f"nothing could be described; the first error: {next(iter(failed.values()), '')}")
    references = {item.id: item.texts for item in done if item.texts}
    metrics: dict[str, float | None] = {}
    each: dict[Any, dict[str, float]] = {}
    notes: list[str] = []
    if references:
        found = captions.score({key: predicted[key] for key in references}, references, java=java)
        metrics, each = dict(found.corpus), found.items
        notes = [f"{name}: {reason}" for name, reason in found.missing.items()]
        for group in dict.fromkeys(item.group for item in done if item.group):
            ids = [item.id for item in done if item.group == group and item.texts]
            # A domain's CIDEr is that of the domain alone, as the server computes it.
            part = captions.score(
                {key: predicted[key] for key in ids}, {key: references[key] for key in ids}, java=java
            )
            metrics |= {f"{group} {name}": part[name] for name in ("CIDEr", "SPICE")}
    shown = [
        Shown(
            item.id,
            item.image,
            [
                ("caption", predicted.get(item.id, failed.get(item.id, ""))),
                *(("reference", text) for text in item.texts),
            ],
            each[item.id]["CIDEr"] if item.id in each else None,
        )
        for item in items
    ]
    return Evaluated(metrics, notes, shown, failed, predicted)


def _answers_scored(items: Items, predicted: dict[Any, str], failed: dict[Any, str], preset: AnswerPreset) -> Evaluated:
    done = [item for item in items if item.id in predicted]
    if not done:
        raise EvaluationError(f"nothing could be answered; the first error: {next(iter(failed.values()), '')}")
    metrics: dict[str, float | None] = {}
    each: dict[Any, float] = {}
    if preset.rule:
        people = {item.id: answers.Reference(item.answers, *item.kinds) for item in done}
        found = answers.score({key: predicted[key] for key in people}, people, preset.rule)
        each = found.items
        metrics = {"accuracy": found.accuracy, **found.by_answer_type}
    shown = [
        Shown(
            item.id,
            item.image,
            [
                ("question", item.question),
                ("answer", predicted.get(item.id, failed.get(item.id, ""))),
                ("people", ", ".join(item.answers)),
            ],
            each.get(item.id),
        )
        for item in items
    ]
    return Evaluated(metrics, [], shown, failed, predicted)


def _judged(items: Items, predicted: dict[Any, str], failed: dict[Any, str]) -> Evaluated:
    right = {item.id: predicted[item.id] == item.answers[0] for item in items if item.id in predicted}
    if not right:
        raise EvaluationError(f"nothing could be judged; the first error: {next(iter(failed.values()), '')}")
    metrics: dict[str, float | None] = {
        "accuracy": sum(right.values()) / len(right), "consistency": nlvr2.consistency(right)
    }  # fmt: skip
    shown = [
        Shown(
            item.id,
            item.image,
            [("statement", item.texts[0]), ("judged", predicted.get(item.id, failed.get(item.id, ""))),
             ("is", item.answers[0])],
            float(right[item.id]) if item.id in right else None,
            item.second,
        )
        for item in items
    ]  # fmt: skip
    return Evaluated(metrics, [], shown, failed, predicted)


def _grounded(items: Items, predicted: dict[Any, str], failed: dict[Any, str], preset: GroundPreset) -> Evaluated:
    wanted = {item.id: item.box for item in items if item.id in predicted}
    if not wanted:
        raise EvaluationError(f"nothing could be found; the first error: {next(iter(failed.values()), '')}")
    found = boxes.score({key: json.loads(predicted[key]) for key in wanted}, wanted, preset.threshold)
    shown = [
        Shown(
            item.id,
            item.image,
            [("expression", item.texts[0]), ("box", predicted.get(item.id, failed.get(item.id, ""))),
             ("right box", str(list(item.box)))],
            found.items.get(item.id),
        )
        for item in items
    ]  # fmt: skip
    return Evaluated({"accuracy": found.accuracy, "mean_IoU": found.mean_iou}, [], shown, failed, predicted)


def _retrieval(blip: Blip, items: Items, preset: RetrievalPreset) -> Evaluated:
    runner = blip._part("match")
    texts = [text for item in items for text in item.texts]
    owner = [i for i, item in enumerate(items) for _ in item.texts]
    ids = two_stage.texts_as_ids(runner, texts, preset.max_words, preset.max_tokens)
    images = [item.image for item in items]
    scores = two_stage.score(runner, images, ids, preset.k, batch_size=blip.batch_size, workers=blip.workers)
    own: list[list[int]] = [[] for _ in items]
    for j, i in enumerate(owner):
        own[i].append(j)
    found = {
        "txt": ranks.from_matrix(scores.texts_of_images, own),
        "img": ranks.from_matrix(scores.images_of_texts, [[i] for i in owner]),
    }
    metrics: dict[str, float | None] = {}
    for name, one in found.items():
        metrics |= {f"{name}_r{k}": value for k, value in one.recall.items()}
        metrics |= {f"{name}_r_mean": one.mean_recall, f"{name}_median_rank": one.median_rank}
    metrics["r_mean"] = (found["txt"].mean_recall + found["img"].mean_recall) / 2
    best = scores.texts_of_images.argmax(1)
    shown = [
        Shown(
            item.id,
            item.image,
            [("first", texts[best[i]]), *(("its own", text) for text in item.texts)],
            1 / found["txt"].items[i],
        )
        for i, item in enumerate(items)
    ]
    return Evaluated(metrics, [], shown, {})


# --- comparing ----------------------------------------------------------------------------------------------------


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
        + ", ".join(f"{name} {value}{_ours(metrics.get(name))}" for name, value in score.values.items())
        for score in fitting
    ]


def _ours(value: float | None) -> str:
    return "" if value is None else f" (ours {100 * value:.2f})"


# --- a user's own set ---------------------------------------------------------------------------------------------


def own_items(source: Iterable[Any], kind: str = "") -> tuple[Items, Preset]:
    """Items of a user's own records, and the settings: captions if they have them, else questions with answers.

    ``kind`` is "caption", "vqa" or "retrieval"; "" takes what the records have. Answers are judged leave-one-out where
    several people gave them, else they have to be equal after normalisation.
    """
    records = list(source)
    for record in records:
        if not isinstance(record.pictures[0], FilePicture):
            raise EvaluationError(f"{record.address}: pictures have to be files of their own to be evaluated")
    has_captions = any(record.captions for record in records)
    kind = kind or ("caption" if has_captions else "vqa")
    if kind in ("caption", "retrieval"):
        items = [
            Item(record.address, record.pictures[0].address, tuple(record.captions))
            for record in records
            if record.captions
        ]
        settings: Preset = CaptionPreset(split="own", files=(), count=len(items))
        if kind == "retrieval":
            settings = RetrievalPreset(split="own", files=(), count=len(items), k=256, max_words=30)
    elif kind == "vqa":
        items = [
            Item(f"{record.address}#{n}", record.pictures[0].address, question=one.text, answers=one.answers)
            for record in records
            for n, one in enumerate(record.questions)
            if one.answers
        ]
        several = any(len(item.answers) > 1 for item in items)
        rule = "official" if several else "exact"
        settings = AnswerPreset(split="own", files=(), count=len(items), inference="generate", rule=cast(Any, rule))
    else:
        raise EvaluationError(f"a set of one's own is for caption, vqa or retrieval, not {kind!r}")
    if not items:
        raise EvaluationError(
            f"no record has what {kind} needs: {'captions' if kind != 'vqa' else 'questions with answers'}"
        )
    return items, settings


def run_own(
    blip: Blip,
    source: Iterable[Any],
    *,
    kind: str = "",
    limit: int | None = None,
    out: Path | None = None,
    java: bool = False,
    notify: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluated:
    """Evaluate a model on one's own pictures with captions, or with questions and answers."""
    items, settings = own_items(source, kind)
    items = items[:limit] if limit is not None else items
    key = {"benchmark": "own", "model": blip.name, **_settings(settings)}
    found = evaluate(blip, items, settings, data=Path(), key=key, out=out, java=java, notify=notify)
    made = []
    if out is not None:
        files.write_json(out / METRICS, {**key, "items": len(items), "metrics": found.metrics})
        made = [out / METRICS]
    return replace(found, notes=[f"{len(items)} items of one's own", *found.notes], files=made)
