"""``openblip eval``: benchmarks by their official rules, and scores of any predictions."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from openblip.cli import options as o
from openblip.cli.command import argument, group, option
from openblip.cli.console import finish, print_json, print_table


@group("eval")
def app() -> None:
    """Evaluate by the official rules of the benchmarks."""


@app.group("score")
def scoring() -> None:
    """Score predictions that exist already."""


predictions_option = option(
    "-p",
    "--predictions",
    type=o.PATH,
    metavar="FILE",
    multiple=True,
    required=True,
    help="File of predictions to score; repeat the option to compare two files.",
)
references_option = option("-r", "--references", type=o.PATH, metavar="FILE", required=True, help="File of references.")
per_item_option = option(
    "--per-item", type=o.PATH, metavar="FILE", show_default="none", help="File to write the scores of each item to."
)
java_option = option("--java", is_flag=True, help="Compute METEOR and SPICE too, with their Java programs.")
json_option = option("--json", is_flag=True, help="Print one JSON object.")
Files = tuple[Path, ...]


@scoring.command(example="openblip eval score captions -p result.json -r coco_karpathy_test_gt.json")
@predictions_option
@references_option
@per_item_option
@java_option
@json_option
def captions(predictions: Files, references: Path, per_item: Path | None, java: bool, json: bool) -> None:
    """Compute BLEU, ROUGE-L and CIDEr as the COCO evaluation does."""
    from openblip.evaluation import files
    from openblip.evaluation.metrics import captions as metric

    def judge(path: Path) -> _Scored:
        found = metric.score(files.captions(path), files.caption_references(references), java=java)
        return _Scored(dict(found.corpus), found.items, found.missing)

    _report(judge, predictions, per_item, "CIDEr", json)


@scoring.command(example="openblip eval score vqa -p vqa_result.json -r v2_mscoco_val2014_annotations.json")
@predictions_option
@references_option
@per_item_option
@option("--rule", default="official", help="Rule to score by: official, lavis, mmpretrain, direct (A-OKVQA) or exact.")
@json_option
def vqa(predictions: Files, references: Path, per_item: Path | None, rule: str, json: bool) -> None:
    """Compute the VQA accuracy: how many of ten people gave the answer."""
    from openblip.evaluation import files
    from openblip.evaluation.metrics import answers as metric

    if rule not in metric.RULES:
        raise click.UsageError(f"--rule is one of {', '.join(metric.RULES)}, not {rule!r}")

    def judge(path: Path) -> _Scored:
        found = metric.score(files.answers(path), files.answer_references(references), rule)  # type: ignore[arg-type]
        by = {**found.by_answer_type, **found.by_question_type}
        return _Scored({"accuracy": found.accuracy, **by}, _named("accuracy", found.items))

    _report(judge, predictions, per_item, "accuracy", json)


@scoring.command(example="openblip eval score retrieval -p found.jsonl -r wanted.jsonl")
@predictions_option
@references_option
@per_item_option
@json_option
def retrieval(predictions: Files, references: Path, per_item: Path | None, json: bool) -> None:
    """Compute Recall@1, 5, 10 and the median rank of ranked lists of ids.

    \b
    Entries of predictions are {"query_id": ..., "ranking": [ids]}, of references {"query_id": ..., "relevant": [ids]}.
    """
    from openblip.evaluation import files
    from openblip.evaluation.metrics import ranks as metric

    def judge(path: Path) -> _Scored:
        found = metric.from_lists(files.lists(path, ("ranking",)), files.lists(references, ("relevant",)))
        items = {key: {"rank": float(rank), "R@1": float(rank == 1)} for key, rank in found.items.items()}
        return _Scored({**{f"R@{k}": v for k, v in found.recall.items()}, "median_rank": found.median_rank}, items)

    _report(judge, predictions, per_item, "R@1", json)


@scoring.command(example="openblip eval score grounding -p boxes.jsonl -r testA.jsonl")
@predictions_option
@references_option
@per_item_option
@json_option
def grounding(predictions: Files, references: Path, per_item: Path | None, json: bool) -> None:
    """Compute the share of boxes with an IoU of 0.5 or more, and the mean IoU.

    \b
    Entries are {"id": ..., "box": [left, top, right, bottom]}.
    """
    from openblip.evaluation import files
    from openblip.evaluation.metrics import boxes as metric

    def judge(path: Path) -> _Scored:
        found = metric.score(files.boxes(path), files.boxes(references))
        items = {key: {"IoU": value, "accuracy": float(value >= 0.5)} for key, value in found.items.items()}
        return _Scored({"accuracy": found.accuracy, "mean_IoU": found.mean_iou}, items)

    _report(judge, predictions, per_item, "accuracy", json)


@dataclass(frozen=True)
class _Scored:
    corpus: Mapping[str, float | None]
    items: Mapping[Any, Mapping[str, float]]
    missing: Mapping[str, str] | None = None


def _report(judge: Callable[[Path], _Scored], paths: Files, per_item: Path | None, metric: str, as_json: bool) -> None:
    """Score the files; print the numbers; of two files also whether the second is better by ``metric``."""
    if len(paths) > 2:
        raise click.UsageError("give one file of predictions, or two to compare")
    scored = [judge(path) for path in paths]
    compared = _compared(scored, metric) if len(paths) == 2 else None
    if per_item:
        _write_items(per_item, paths, scored)
    if as_json:
        results = [{"predictions": str(path), **one.corpus} for path, one in zip(paths, scored, strict=True)]
        reasons = {"missing": dict(scored[0].missing)} if scored[0].missing else {}
        record = (
            {**results[0], **reasons} if len(paths) == 1 else {"results": results, "comparison": compared, **reasons}
        )
        print_json(record)
        return
    rows = [[name, *(_shown(one.corpus.get(name)) for one in scored)] for name in scored[0].corpus]
    print_table(["metric", *map(str, paths)], rows)
    for name, reason in (scored[0].missing or {}).items():
        click.echo(f"{name}: {reason}", err=True)
    if compared:
        click.echo(
            f"{metric} of items: second minus first {compared['difference']:+.4f}, 95 % between {compared['low']:+.4f} "
            f"and {compared['high']:+.4f}, p {compared['p']:.4f}"
        )


def _compared(scored: list[_Scored], metric: str) -> dict[str, Any]:
    from openblip.evaluation.metrics.bootstrap import paired

    first, second = ({key: values[metric] for key, values in one.items.items()} for one in scored)
    found = paired(first, second)
    return {"metric": metric, "difference": found.difference, "low": found.low, "high": found.high, "p": found.p}


def _write_items(out: Path, paths: Files, scored: list[_Scored]) -> None:
    from openblip.evaluation.files import write_text

    lines = []
    for path, one in zip(paths, scored, strict=True):
        source = {"predictions": str(path)} if len(paths) > 1 else {}
        lines += [json.dumps({"id": key, **source, **values}, ensure_ascii=False) for key, values in one.items.items()]
    write_text(out, "".join(f"{line}\n" for line in lines))


def _named(name: str, items: Mapping[Any, float]) -> dict[Any, dict[str, float]]:
    return {key: {name: value} for key, value in items.items()}


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


@app.command(
    example="openblip eval run coco-caption --model model_base_caption_capfilt_large --data coco --report report.html\n"
    "openblip eval run own --data my.jsonl"
)
@argument("name", metavar="NAME", help="Benchmark to run, or own.")
@option("-d", "--data", required=True, help="Folder of the benchmark's files; for own, a file of records.")
@option("--protocol", default="paper", help="Settings to use: paper, lavis or mmpretrain.")
@option("--limit", type=o.POSITIVE, show_default="all", help="Number of items to evaluate.")
@option(
    "--out",
    type=o.PATH,
    metavar="DIR",
    show_default="none",
    help="Folder to write predictions, metrics and the server's file to, and to resume from.",
)
@o.report_option
@option(
    "--task", default="", show_default="what the records hold", help="Task of own records: caption, vqa or retrieval."
)
@option("--images", show_default="the folder of the file", metavar="DIR", help="Folder of the images of own records.")
@java_option
@json_option
@o.model_options
def run(
    name: str,
    data: str,
    protocol: str,
    limit: int | None,
    out: Path | None,
    report: Path | None,
    task: str,
    images: str | None,
    java: bool,
    json: bool,
    model: o.ModelOptions,
) -> None:
    """Evaluate a model on a benchmark, by its official rules.

    NAME is coco-caption, nocaps, flickr30k-caption, vqa-v2, okvqa, aokvqa, ocr-vqa, coco-retrieval,
    flickr30k-retrieval, nlvr2, refcoco-testa, refcoco-testb, msrvtt-retrieval, msrvtt-qa, msvd-qa, visdial, or own. The
    command reports which files are missing.
    """
    from openblip.evaluation import protocols
    from openblip.evaluation.own import KINDS
    from openblip.evaluation.protocols.base import need_files

    if name == "own" and protocol != "paper":
        raise click.UsageError("a set of one's own has no --protocol")
    if name != "own" and (task or images):
        raise click.UsageError("--task and --images are for `own`: a benchmark says itself what it is about")
    if task and task not in KINDS:
        raise click.UsageError(f"--task is {', '.join(KINDS)}, not {task!r}")
    bad = 0
    if name != "own":  # what is missing is said before a model is loaded
        chosen = protocols.find(name)
        need_files(chosen, Path(data), chosen.preset(protocol))
    blip = model.load()

    from openblip.evaluation import run as evaluation

    with _progress() as notify:
        if name == "own":
            from openblip.data.sources import open_source

            records, bad = _records(open_source(data, images=images))
            found = evaluation.run_own(
                blip,
                records,
                kind=task,
                limit=limit,
                out=out,
                java=java,
                notify=notify,
            )
        else:
            found = evaluation.run(
                protocols.find(name), blip, Path(data), preset=protocol, limit=limit, out=out, java=java, notify=notify
            )
    if report is not None:
        from openblip.evaluation.report import write_report

        write_report(report, f"{name}: {model.model}", found.metrics, found.notes, found.shown)
    failed = {str(key): why for key, why in found.failed.items()}
    if json:
        print_json(
            {"benchmark": name, "model": model.model, "metrics": found.metrics, "notes": found.notes, "failed": failed}
        )
    else:
        if found.metrics:
            print_table(["metric", "value"], [[key, _shown(value)] for key, value in found.metrics.items()])
        for note in found.notes:
            click.echo(note)
        for path in found.files:
            click.echo(f"wrote {path}")
    for key, error in failed.items():
        click.echo(f"error: {key}: {error}", err=True)
    finish(len(failed) + bad, len(found.shown) + bad)


def _records(source: Any) -> tuple[list[Any], int]:
    """The records of a source, in order, and how many could not be read: those get their line."""
    from openblip.data.records import Record
    from openblip.data.sources.base import Source

    if isinstance(source, Source):
        found = [*source.problems, *source]
    else:
        found = [one for shard in range(source.shards) for one in source.read(shard)]
    for one in found:
        if not isinstance(one, Record):
            click.echo(f"error: {one}", err=True)
    records = [one for one in found if isinstance(one, Record)]
    return records, len(found) - len(records)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error that goes away at the end; none off a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        shown = bar.add_task("", total=None)
        yield lambda done, total: bar.update(shown, completed=done, total=total)
