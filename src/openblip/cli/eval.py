"""`openblip eval`: evaluate a model on a benchmark, and score existing predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from openblip.cli import options as o
from openblip.cli.command import Choice, argument, group, input_option, option, option_group, output_option
from openblip.cli.console import finish, print_json, print_table
from openblip.evaluation.metrics.answers import RULES, Rule
from openblip.evaluation.protocols import NAMES
from openblip.evaluation.protocols.base import PRESET_NAMES, VqaPreset
from openblip.tasks import did_you_mean

if TYPE_CHECKING:
    from openblip.data.records import Record
    from openblip.data.sources.base import Source, Stream
    from openblip.evaluation.evaluators.base import Evaluation
    from openblip.evaluation.metrics.bootstrap import BootstrapResult
    from openblip.evaluation.predictions import ReferenceFile
    from openblip.evaluation.tables import MetricRow, TableFormat
    from openblip.evaluation.workspace import ProgressCallback

V = TypeVar("V")
OWN = "own"  # the name of an evaluation on the user's own records
OWN_TASKS = ("caption", "vqa", "retrieval")


@group("eval")
def app() -> None:
    """Evaluate a model by the official rules of the benchmarks."""


@app.group("score")
def score() -> None:
    """Score existing predictions. No model is needed."""


def check_files(ctx: click.Context, param: click.Parameter, paths: tuple[Path, ...]) -> tuple[Path, ...]:
    """Return one file of predictions, or two."""
    if len(paths) > 2:
        raise click.BadParameter(f"must be given once, or twice to compare two files, got {len(paths)}", ctx, param)
    return paths


@dataclass(frozen=True)
class ScoreOutput:
    """Where scores are written to."""

    per_item: Path | None
    table: Path | None
    report: Path | None
    as_json: bool


predictions_option = input_option(
    "-p",
    "--predictions",
    type=o.PATH,
    metavar="FILE",
    multiple=True,
    required=True,
    callback=check_files,
    help="File of predictions, folder of a run, or list that a job wrote; repeat the option to compare two.",
)
references_option = input_option(
    "-r",
    "--references",
    type=o.PATH,
    metavar="FILE",
    show_default="the references of the run",
    help="File of references, or your records.",
)
per_item_option = output_option(
    "--per-item", type=o.PATH, metavar="FILE", show_default="none", help="File to write the scores of each item to."
)
table_option = output_option(
    "--table",
    type=o.TableFile(),
    metavar="FILE",
    show_default="none",
    help="File to write the metrics to: .csv, or .tex for LaTeX.",
)
page_option = output_option(
    "--report",
    type=o.HtmlFile(),
    metavar="FILE.html",
    show_default="none",
    help="HTML page to write, which shows the items; two files are shown side by side.",
)
json_option = output_option("--json", "as_json", is_flag=True, help="Print one JSON object.")
score_options = option_group("output", ScoreOutput, [per_item_option, table_option, page_option, json_option])
scoring_option = partial(option, panel="Scoring")
java_option = scoring_option("--java", is_flag=True, help="Also compute METEOR and SPICE, with their Java programs.")


@dataclass(frozen=True)
class FileScores:
    """The scores of one file of predictions.

    Attributes:
        path: The file.
        metrics: The metrics.
        items: The scores of each item, by id and name.
        missing: Why a metric was not computed.
        intervals: The 95 % intervals of metrics.
        predictions: The prediction of each item, as texts for people.
    """

    path: Path
    metrics: Mapping[str, float | None]
    items: Mapping[Any, Mapping[str, float]]
    missing: Mapping[str, str] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    predictions: Mapping[Any, str] = field(default_factory=dict)


@dataclass(frozen=True)
class References:
    """The references that a report shows next to predictions.

    Attributes:
        image: Path of the image of each item, where it is known.
        lines: Pairs of name and text of each item.
    """

    image: Mapping[Any, str] = field(default_factory=dict)
    lines: Mapping[Any, Sequence[tuple[str, str]]] = field(default_factory=dict)


@score.command(example="openblip eval score captions -p result.json -r coco_karpathy_test_gt.json")
@predictions_option
@references_option
@score_options
@java_option
def captions(predictions: tuple[Path, ...], references: Path | None, output: ScoreOutput, java: bool) -> None:
    """Compute BLEU, ROUGE-L and CIDEr as the COCO evaluation does."""
    from openblip.evaluation import predictions as reader
    from openblip.evaluation.metrics import captions as metric

    results = []
    systems = [reader.read_captions(path) for path in predictions]
    texts = reader.read_caption_references(references, systems[0])
    for system in systems:
        aligned = reader.align(system, texts)
        scores = metric.score(aligned, texts.values, java=java)
        result = FileScores(
            system.path, scores.corpus, scores.items, scores.missing, scores.intervals(), predictions=aligned
        )
        results.append(result)
    report_scores(
        results, "CIDEr", output, describe(texts, lambda captions: [("reference", text) for text in captions])
    )


@score.command(example="openblip eval score vqa -p vqa_result.json -r v2_mscoco_val2014_annotations.json")
@predictions_option
@references_option
@score_options
@scoring_option(
    "--rule",
    type=Choice(RULES),
    metavar="RULE",
    show_default="official, or that of the run",
    help=f"Rule to compare predicted answers with references by: {', '.join(RULES)}.",
)
def vqa(predictions: tuple[Path, ...], references: Path | None, output: ScoreOutput, rule: str | None) -> None:
    """Compute VQA accuracy, which counts how many of ten people gave the predicted answer."""
    from openblip.evaluation import predictions as reader
    from openblip.evaluation.metrics import answers as metric
    from openblip.evaluation.metrics.bootstrap import mean_intervals

    results = []
    systems = [reader.read_answers(path) for path in predictions]
    people = reader.read_answer_references(references, systems[0])
    rule = rule or systems[0].settings.get("rule") or "official"
    for system in systems:
        aligned = reader.align(system, people)
        scores = metric.score(aligned, people.values, cast(Rule, rule))
        by_type = {**scores.by_answer_type, **scores.by_question_type}
        items = {key: {"accuracy": value} for key, value in scores.items.items()}
        intervals = mean_intervals({"accuracy": scores.items.values()})
        metrics = {"accuracy": scores.accuracy, **by_type}
        results.append(FileScores(system.path, metrics, items, intervals=intervals, predictions=aligned))
    report_scores(results, "accuracy", output, describe(people, lambda person: [("people", ", ".join(person.answers))]))


@score.command(example="openblip eval score retrieval -p ranking_txt.jsonl -r relevant_txt.jsonl")
@predictions_option
@references_option
@score_options
def retrieval(predictions: tuple[Path, ...], references: Path | None, output: ScoreOutput) -> None:
    """Compute recall at 1, 5 and 10 and the median rank.

    \b
    Predictions are entries {"query_id": ..., "ranking": [ids]}, best first;
    references are entries {"query_id": ..., "relevant": [ids]}.
    A run writes both, for texts (ranking_txt.jsonl) and for images (ranking_img.jsonl).
    """
    from openblip.evaluation import files
    from openblip.evaluation.metrics import ranks as metric
    from openblip.evaluation.metrics.bootstrap import mean_intervals

    for path in predictions:
        if path.is_dir():
            names = " or ".join(str(path / f"ranking_{name}.jsonl") for name in ("txt", "img"))
            raise click.UsageError(f"-p must be the rankings of one direction, {names}, got the folder {path}")
    if references is None:
        references = predictions[0].with_name(predictions[0].name.replace("ranking_", "relevant_"))
        if references == predictions[0] or not references.is_file():
            raise click.UsageError("-r is required, except for the rankings of a run")
    results = []
    for path in predictions:
        scores = metric.score(files.read_id_lists(path, "ranking"), files.read_id_lists(references, "relevant"))
        metrics = {f"R@{k}": value for k, value in scores.recall.items()} | {"median_rank": scores.median_rank}
        items = {
            key: {"rank": float(rank)} | {f"R@{k}": float(rank <= k) for k in scores.recall}
            for key, rank in scores.items.items()
        }
        hits = {f"R@{k}": [float(rank <= k) for rank in scores.items.values()] for k in scores.recall}
        found = {key: f"rank {rank}" for key, rank in scores.items.items()}
        results.append(FileScores(path, metrics, items, intervals=mean_intervals(hits), predictions=found))
    report_scores(results, "R@1", output, References())


@score.command(example="openblip eval score grounding -p boxes.jsonl -r testA.jsonl")
@predictions_option
@references_option
@score_options
def grounding(predictions: tuple[Path, ...], references: Path | None, output: ScoreOutput) -> None:
    """Compute the share of boxes with an IoU of 0.5 or more, and the mean IoU.

    \b
    Predictions and references are entries {"id": ..., "box": [left, top, right, bottom]}.
    """
    from openblip.evaluation import predictions as reader
    from openblip.evaluation.metrics import boxes as metric
    from openblip.evaluation.metrics.bootstrap import mean_intervals

    results = []
    systems = [reader.read_boxes(path) for path in predictions]
    boxes = reader.read_box_references(references, systems[0])
    for system in systems:
        aligned = reader.align(system, boxes)
        scores = metric.score(aligned, boxes.values)
        items = {
            key: {"IoU": value, "mean_IoU": value, "accuracy": float(value >= 0.5)}
            for key, value in scores.items.items()
        }
        samples = {name: [item[name] for item in items.values()] for name in ("accuracy", "mean_IoU")}
        metrics = {"accuracy": scores.accuracy, "mean_IoU": scores.mean_iou}
        texts = {key: format_box(box) for key, box in aligned.items()}
        results.append(FileScores(system.path, metrics, items, intervals=mean_intervals(samples), predictions=texts))
    report_scores(results, "accuracy", output, describe(boxes, lambda box: [("reference", format_box(box))]))


def report_scores(results: Sequence[FileScores], metric: str, output: ScoreOutput, references: References) -> None:
    """Print the scores of one file, or of two files with a comparison by `metric`; write files and the page."""
    from openblip.evaluation.files import write_text
    from openblip.evaluation.tables import format_table, make_rows

    comparison = compare_items(results[0], results[1], metric) if len(results) == 2 else None
    if output.per_item is not None:
        write_items(output.per_item, results)
    names = [str(result.path) for result in results]
    if output.table is not None or output.report is not None:
        items = [result.items for result in results] if len(results) == 2 else []
        rows = make_rows([result.metrics for result in results], [result.intervals for result in results], items)
        if output.table is not None:
            kind: TableFormat = "tex" if output.table.suffix.lower() == ".tex" else "csv"
            write_text(output.table, format_table(rows, names, kind))
        if output.report is not None:
            write_page(output.report, rows, results, metric, references)
    missing = results[0].missing
    if output.as_json:
        records = [
            {"predictions": str(result.path), **result.metrics, "intervals": dict(result.intervals)}
            for result in results
        ]
        record: dict[str, object] = {**records[0]}
        if comparison is not None:
            record = {"results": records, "comparison": {"metric": metric, **asdict(comparison)}}
        print_json({**record, "missing": dict(missing)} if missing else record)
        return
    computed = [name for name in results[0].metrics if any(result.metrics.get(name) is not None for result in results)]
    if len(results) == 1:
        result = results[0]
        print_table(
            ["metric", names[0], "95 % interval"],
            [[name, format_value(result.metrics[name]), format_interval(result.intervals, name)] for name in computed],
        )
    else:
        rows_of_two = [[name, *(format_value(result.metrics.get(name)) for result in results)] for name in computed]
        print_table(["metric", *names], rows_of_two)
    for name, reason in missing.items():
        click.echo(f"{name}: {reason}", err=True)
    if comparison is not None:
        click.echo(
            f"{metric} of items: second minus first {comparison.difference:+.4f}, 95 % interval "
            f"{comparison.low:+.4f} to {comparison.high:+.4f}, two-sided p {comparison.p:.4f} (paired bootstrap)"
        )


def write_page(
    path: Path, rows: Sequence[MetricRow], results: Sequence[FileScores], metric: str, references: References
) -> None:
    """Write the page that shows the items of one file, or of two side by side."""
    from openblip.evaluation.report import ReportItem, write_comparison

    names = [str(result.path) for result in results]
    items = []
    for key, scores in results[0].items.items():
        lines = [(name, result.predictions[key]) for name, result in zip(names, results, strict=True)]
        lines += references.lines.get(key, ())
        rival = results[1].items[key][metric] if len(results) == 2 else None
        image = references.image.get(key, "")
        items.append(ReportItem(key, image, lines, scores[metric], metric=metric, rival_score=rival))
    write_comparison(path, " and ".join(names), rows, names, items)


def describe(references: ReferenceFile[V], show: Callable[[V], Sequence[tuple[str, str]]]) -> References:
    """Return the images and the texts that a report shows."""
    return References(references.images, {key: show(value) for key, value in references.values.items()})


def format_box(box: Sequence[float]) -> str:
    """Return the edges of a box, in pixels."""
    return ", ".join(f"{edge:.0f}" for edge in box)


def format_interval(intervals: Mapping[str, tuple[float, float]], name: str) -> str:
    """Return the interval of a metric, or nothing."""
    return f"{intervals[name][0]:.4f} to {intervals[name][1]:.4f}" if name in intervals else ""


def compare_items(baseline: FileScores, candidate: FileScores, metric: str) -> BootstrapResult:
    """Return the difference between two files of predictions by a paired bootstrap."""
    from openblip.evaluation.metrics.bootstrap import paired

    return paired(
        {key: scores[metric] for key, scores in baseline.items.items()},
        {key: scores[metric] for key, scores in candidate.items.items()},
    )


def write_items(path: Path, results: Sequence[FileScores]) -> None:
    """Write the scores of each item as JSON lines; for two files with the name of the file."""
    from openblip.evaluation.files import write_json_lines

    records: list[dict[str, object]] = []
    for result in results:
        source = {"predictions": str(result.path)} if len(results) > 1 else {}
        records += [{"id": key, **source, **scores} for key, scores in result.items.items()]
    write_json_lines(path, records)


def format_value(value: float | None) -> str:
    """Return a metric to four digits, or a dash."""
    return "-" if value is None else f"{value:.4f}"


@app.command(
    example="openblip eval run coco-caption --model model_base_caption_capfilt_large --data coco --report report.html\n"
    "openblip eval run own --data my.jsonl"
)
@argument("name", metavar="NAME", help="Benchmark to run, or own for your own records.")
@input_option(
    "-d", "--data", metavar="PATH", required=True, help="Folder of the benchmark's files; for own, a file of records."
)
@input_option(
    "--preset",
    type=Choice(PRESET_NAMES),
    metavar="NAME",
    default="paper",
    help=f"Reference implementation to follow: {', '.join(PRESET_NAMES)}.",
)
@input_option("--limit", type=o.POSITIVE, show_default="all", help="Evaluate the first N items only.")
@input_option(
    "--task",
    type=Choice(OWN_TASKS),
    metavar="TASK",
    show_default="caption if the records have captions, otherwise vqa",
    help=f"Task of your own records: {', '.join(OWN_TASKS)}.",
)
@input_option(
    "--images", metavar="DIR", show_default="the folder of the file", help="Folder of the images of your own records."
)
@output_option(
    "--out",
    type=o.PATH,
    metavar="DIR",
    show_default="none",
    help="Folder for predictions, metrics and the server's file. A stopped run resumes from it.",
)
@output_option(
    "--report",
    type=o.HtmlFile(),
    metavar="FILE.html",
    show_default="none",
    help="HTML page to write, which shows the items, worst first.",
)
@table_option
@o.resume_option
@json_option
@java_option
@o.model_options
def run(
    name: str,
    data: str,
    preset: str,
    limit: int | None,
    task: str | None,
    images: str | None,
    out: Path | None,
    report: Path | None,
    table: Path | None,
    resume: bool,
    as_json: bool,
    java: bool,
    model: o.ModelOptions,
) -> None:
    """Evaluate a model on a benchmark, or on your own records.

    Benchmarks are coco-caption, nocaps, flickr30k-caption, vqa-v2, okvqa, aokvqa, ocr-vqa, coco-retrieval,
    flickr30k-retrieval, nlvr2, refcoco-testa, refcoco-testb, msrvtt-retrieval, msrvtt-qa, msvd-qa and visdial. If files
    are missing, the command lists them with the addresses that publish them.
    """
    if name != OWN and name not in NAMES:
        names = (*NAMES, OWN)
        raise click.UsageError(f"NAME must be one of {', '.join(names)}, got {name!r}{did_you_mean(name, names)}")
    if name == OWN and preset != "paper":
        raise click.UsageError("--preset requires a benchmark, got own")
    if name != OWN and (task or images):
        raise click.UsageError(f"--task and --images require own, got {name}: a benchmark defines its task and images")
    if name == OWN:
        evaluation, unreadable = evaluate_own(data, images, task or "", limit, out, java, model)
    else:
        evaluation, unreadable = evaluate_benchmark(name, Path(data), preset, limit, out, java, model), 0
    if report is not None:
        from openblip.evaluation.report import write_report

        title = f"{name}: {model.model}"
        notes, items, intervals = evaluation.notes, evaluation.report_items, evaluation.intervals
        write_report(report, title, evaluation.metrics, notes, items, intervals=intervals)
    if table is not None:
        from openblip.evaluation.files import write_text
        from openblip.evaluation.tables import format_table, make_rows

        kind: TableFormat = "tex" if table.suffix.lower() == ".tex" else "csv"
        rows = make_rows([evaluation.metrics], [evaluation.intervals])
        write_text(table, format_table(rows, [model.model], kind))
    failed = {str(key): error for key, error in evaluation.failed.items()}
    if as_json:
        record = {"benchmark": name, "model": model.model, "metrics": evaluation.metrics, "notes": evaluation.notes}
        print_json({**record, "intervals": evaluation.intervals, "failed": failed})
    else:
        print_evaluation(evaluation.metrics, evaluation.notes, evaluation.intervals)
        for path in evaluation.files:
            click.echo(f"wrote {path}")
    for key, error in failed.items():
        click.echo(f"error: {error}" if key in error else f"error: {key}: {error}", err=True)
    finish(len(failed) + unreadable, len(evaluation.report_items) + unreadable)


def evaluate_benchmark(
    name: str, data: Path, preset: str, limit: int | None, out: Path | None, java: bool, model: o.ModelOptions
) -> Evaluation[object]:
    """Evaluate a model on a benchmark. Missing files are reported before the model is loaded."""
    from openblip.evaluation.protocols import open_benchmark

    benchmark = open_benchmark(name, data, preset)
    if out is None and isinstance(benchmark.preset, VqaPreset) and benchmark.preset.needs_server:
        title, split = benchmark.protocol.title, benchmark.preset.split.name
        raise click.UsageError(f"only the server can score {title}, {split}: add --out DIR for the file to upload")
    blip = model.load()
    from openblip.evaluation.run import run_benchmark  # imports torch, as loading does

    with show_progress(resumable=out is not None) as progress:
        return run_benchmark(benchmark, blip, limit=limit, out=out, java=java, progress=progress)


def evaluate_own(
    data: str,
    images: str | None,
    task: str,
    limit: int | None,
    out: Path | None,
    java: bool,
    model: o.ModelOptions,
) -> tuple[Evaluation[object], int]:
    """Evaluate a model on the user's own records. Return the evaluation and the number of unreadable records."""
    blip = model.load()
    from openblip.data.sources import open_source
    from openblip.evaluation.run import run_records

    records, unreadable = read_records(open_source(data, images=images))
    with show_progress(resumable=out is not None) as progress:
        evaluation = run_records(blip, records, task=task, limit=limit, out=out, java=java, progress=progress)
    return evaluation, unreadable


def read_records(source: Source | Stream) -> tuple[list[Record], int]:
    """Return the records of a source and the number of unreadable ones, which are reported on standard error."""
    from openblip.data.records import Record
    from openblip.data.sources.base import Source

    if isinstance(source, Source):
        entries = [*source.problems, *source]
        if source.skips.counts:
            click.echo(f"skipped: {source.skips.describe()}", err=True)
    else:
        entries = [entry for shard in range(source.shards) for entry in source.read(shard)]
    records, unreadable = [], 0
    for entry in entries:
        if isinstance(entry, Record):
            records.append(entry)
            continue
        click.echo(f"{'skipped' if entry.kind else 'error'}: {entry}", err=True)
        unreadable += not entry.kind
    return records, unreadable


def print_evaluation(
    metrics: Mapping[str, float | None],
    notes: Sequence[str],
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Print a table of the metrics that were computed, and the notes."""
    computed = {name: value for name, value in metrics.items() if value is not None}
    if computed:
        rows = [[name, format_value(value), format_interval(intervals or {}, name)] for name, value in computed.items()]
        print_table(["metric", "value", "95 % interval"], rows)
    for note in notes:
        click.echo(note)


@contextmanager
def show_progress(*, resumable: bool) -> Iterator[ProgressCallback]:
    """Show a progress bar on standard error, if that is a terminal, and yield the function that updates it."""
    from openblip.io.progress import bar

    done = [0, 0]

    def update(count: int, total: int) -> None:
        done[:] = count, total
        progress_bar.update(count, total)

    with bar() as progress_bar:
        try:
            yield update
        except KeyboardInterrupt as error:
            hint = "run the same command again to resume" if resumable else "with --out DIR, a run can be resumed"
            raise KeyboardInterrupt(f"{done[0]} of {done[1]} steps done; {hint}") from error
