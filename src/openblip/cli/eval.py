"""``openblip eval``: benchmarks by their official rules, and scores of any predictions."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from openblip.cli import options as o
from openblip.cli.console import finish, print_json, print_table

app = typer.Typer(
    name="eval", no_args_is_help=True, rich_markup_mode=None, help="Evaluate by the official rules of the benchmarks."
)
scoring = typer.Typer(
    name="score", no_args_is_help=True, rich_markup_mode=None, help="Score predictions that are already there."
)
app.add_typer(scoring)

Predictions = Annotated[
    list[Path],
    typer.Option("--predictions", "-p", help="A file of predictions; give a second one to compare the two."),
]
References = Annotated[Path, typer.Option("--references", "-r", help="The file of references.")]
PerItem = Annotated[
    Path | None, typer.Option("--per-item", metavar="FILE", show_default="none", help="Write each item's scores.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@scoring.command()
def captions(
    predictions: Predictions,
    references: References,
    per_item: PerItem = None,
    java: Annotated[bool, typer.Option("--java", help="METEOR and SPICE too, by their Java programs.")] = False,
    json: Json = False,
) -> None:
    """BLEU, ROUGE-L and CIDEr, as the COCO evaluation computes them.

    \b
    Example:
      openblip eval score captions -p result.json -r coco_karpathy_test_gt.json
    """
    from openblip.evaluation import files
    from openblip.evaluation.metrics import captions as metric

    def judge(path: Path) -> _Scored:
        found = metric.score(files.captions(path), files.caption_references(references), java=java)
        return _Scored(dict(found.corpus), found.items, found.missing)

    _report(judge, predictions, per_item, "CIDEr", json)


@scoring.command()
def vqa(
    predictions: Predictions,
    references: References,
    per_item: PerItem = None,
    rule: Annotated[
        str, typer.Option("--rule", help="official, lavis, mmpretrain, direct (A-OKVQA) or exact (any given).")
    ] = "official",
    json: Json = False,
) -> None:
    """VQA accuracy: how many of ten people gave the answer.

    \b
    Example:
      openblip eval score vqa -p vqa_result.json -r v2_mscoco_val2014_annotations.json
    """
    from openblip.evaluation import files
    from openblip.evaluation.metrics import answers as metric

    if rule not in metric.RULES:
        raise typer.BadParameter(f"--rule is one of {', '.join(metric.RULES)}, not {rule!r}")

    def judge(path: Path) -> _Scored:
        found = metric.score(files.answers(path), files.answer_references(references), rule)  # type: ignore[arg-type]
        by = {**found.by_answer_type, **found.by_question_type}
        return _Scored({"accuracy": found.accuracy, **by}, _named("accuracy", found.items))

    _report(judge, predictions, per_item, "accuracy", json)


@scoring.command()
def retrieval(predictions: Predictions, references: References, per_item: PerItem = None, json: Json = False) -> None:
    """Recall@1, 5, 10 and the median rank of lists of ids, the best first.

    \b
    Entries of predictions are {"query_id": ..., "ranking": [ids]}, of references {"query_id": ..., "relevant": [ids]}.

    \b
    Example:
      openblip eval score retrieval -p found.jsonl -r wanted.jsonl
    """
    from openblip.evaluation import files
    from openblip.evaluation.metrics import ranks as metric

    def judge(path: Path) -> _Scored:
        found = metric.from_lists(files.lists(path, ("ranking",)), files.lists(references, ("relevant",)))
        items = {key: {"rank": float(rank), "R@1": float(rank == 1)} for key, rank in found.items.items()}
        return _Scored({**{f"R@{k}": v for k, v in found.recall.items()}, "median_rank": found.median_rank}, items)

    _report(judge, predictions, per_item, "R@1", json)


@scoring.command()
def grounding(predictions: Predictions, references: References, per_item: PerItem = None, json: Json = False) -> None:
    """Share of boxes that cover the right one (IoU of 0.5 or more), and the mean IoU.

    \b
    Entries are {"id": ..., "box": [left, top, right, bottom]}.

    \b
    Example:
      openblip eval score grounding -p boxes.jsonl -r testA.jsonl
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


def _report(
    judge: Callable[[Path], _Scored], paths: list[Path], per_item: Path | None, metric: str, as_json: bool
) -> None:
    """Score the files; print the numbers; of two files also whether the second is better by ``metric``."""
    if len(paths) > 2:
        raise typer.BadParameter("give one file of predictions, or two to compare")
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
        typer.echo(f"{name}: {reason}", err=True)
    if compared:
        typer.echo(
            f"{metric} of items: second minus first {compared['difference']:+.4f}, 95 % between {compared['low']:+.4f} "
            f"and {compared['high']:+.4f}, p {compared['p']:.4f}"
        )


def _compared(scored: list[_Scored], metric: str) -> dict[str, Any]:
    from openblip.evaluation.metrics.bootstrap import paired

    first, second = ({key: values[metric] for key, values in one.items.items()} for one in scored)
    found = paired(first, second)
    return {"metric": metric, "difference": found.difference, "low": found.low, "high": found.high, "p": found.p}


def _write_items(out: Path, paths: list[Path], scored: list[_Scored]) -> None:
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


@app.command()
def run(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="A benchmark, or `own`.")],
    data: Annotated[str, typer.Option("--data", "-d", help="The folder of its files; for own, a file of records.")],
    protocol: Annotated[str, typer.Option("--protocol", help="Whose settings: paper, lavis or mmpretrain.")] = "paper",
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, show_default="all", help="Take only the first items.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", show_default="none", help="Folder for predictions, metrics and the server's file; goes on there."
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", show_default="none", help="Write an HTML report.")
    ] = None,
    task: Annotated[
        str, typer.Option("--task", show_default="what the records have", help="For own: caption, vqa or retrieval.")
    ] = "",
    images: Annotated[
        str | None, typer.Option("--images", show_default="beside the file", help="For own: folder of the pictures.")
    ] = None,
    java: Annotated[bool, typer.Option("--java", help="METEOR and SPICE too, by their Java programs.")] = False,
    json: Json = False,
    model: o.Model = o.DEFAULT_MODEL,
    device: o.Device = "auto",
    engine: o.Engine = "torch",
    precision: o.Precision = "fp32",
    batch_size: o.BatchSize = None,
    workers: o.Workers = None,
    threads: o.Threads = None,
    offline: o.Offline = False,
) -> None:
    """Evaluate a model on a benchmark, by its official rules.

    NAME is coco-caption, nocaps, flickr30k-caption, vqa-v2, okvqa, aokvqa, ocr-vqa, coco-retrieval,
    flickr30k-retrieval, nlvr2, refcoco-testa, refcoco-testb, msrvtt-retrieval, msrvtt-qa, msvd-qa, visdial, or own. It
    says which files it lacks.

    \b
    Example:
      openblip eval run coco-caption --model model_base_caption_capfilt_large --data coco --report report.html
      openblip eval run own --data my.jsonl
    """
    from openblip.evaluation import protocols
    from openblip.evaluation.own import KINDS
    from openblip.evaluation.protocols.base import need_files

    if name == "own" and protocol != "paper":
        raise typer.BadParameter("a set of one's own has no --protocol")
    if name != "own" and (task or images):
        raise typer.BadParameter("--task and --images are for `own`: a benchmark says itself what it is about")
    if task and task not in KINDS:
        raise typer.BadParameter(f"--task is {', '.join(KINDS)}, not {task!r}")
    bad = 0
    if name != "own":  # what is missing is said before a model is loaded
        chosen = protocols.find(name)
        need_files(chosen, Path(data), chosen.preset(protocol))
    blip = o.load(model, device, engine, precision, batch_size, workers, threads, offline)

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

        write_report(report, f"{name}: {model}", found.metrics, found.notes, found.shown)
    failed = {str(key): why for key, why in found.failed.items()}
    if json:
        print_json(
            {"benchmark": name, "model": model, "metrics": found.metrics, "notes": found.notes, "failed": failed}
        )
    else:
        if found.metrics:
            print_table(["metric", "value"], [[key, _shown(value)] for key, value in found.metrics.items()])
        for note in found.notes:
            typer.echo(note)
        for path in found.files:
            typer.echo(f"wrote {path}")
    for key, error in failed.items():
        typer.echo(f"error: {key}: {error}", err=True)
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
            typer.echo(f"error: {one}", err=True)
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
