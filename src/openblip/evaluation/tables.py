"""Tables of metrics, with intervals and a comparison of two systems, as CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from openblip.evaluation.metrics.bootstrap import BootstrapResult, paired
from openblip.evaluation.metrics.ids import ItemId

Interval: TypeAlias = tuple[float, float]
TableFormat: TypeAlias = Literal["csv", "tex"]
_LATEX = {"\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}"}


@dataclass(frozen=True)
class MetricRow:
    """One metric of one system, or of two.

    Attributes:
        name: Name of the metric.
        values: The value of each system; `None` if it was not computed.
        intervals: The 95 % interval of each value, where it is known.
        difference: The second system minus the first, over the items.
    """

    name: str
    values: Sequence[float | None]
    intervals: Sequence[Interval | None]
    difference: BootstrapResult | None = None

    @property
    def cells(self) -> list[tuple[float | None, Interval | None]]:
        """The value of each system with its interval."""
        return list(zip(self.values, self.intervals, strict=True))


def make_rows(
    metrics: Sequence[Mapping[str, float | None]],
    intervals: Sequence[Mapping[str, Interval]],
    items: Sequence[Mapping[ItemId, Mapping[str, float]]] = (),
) -> list[MetricRow]:
    """Return a row for each metric that a system has a value of.

    Args:
        metrics: The metrics of each system.
        intervals: The intervals of each system, by metric.
        items: The scores of each item by metric, of two systems, to compare them by metrics that are means of items.

    Returns:
        The rows, in the order of the first system.

    Raises:
        EvaluationError: If the two systems have different items.
    """
    rows = []
    for name in metrics[0]:
        values = [system.get(name) for system in metrics]
        if all(value is None for value in values):
            continue
        difference = None
        if len(items) == 2 and all(name in scores for system in items for scores in system.values()):
            first, second = ({key: scores[name] for key, scores in system.items()} for system in items)
            if _is_mean(values[0], first) and _is_mean(values[1], second):
                difference = paired(first, second)
        rows.append(MetricRow(name, values, [system.get(name) for system in intervals], difference))
    return rows


def _is_mean(value: float | None, scores: Mapping[ItemId, float]) -> bool:
    """Return whether a metric is the mean of its items, as BLEU and a median rank are not."""
    return value is not None and math.isclose(value, math.fsum(scores.values()) / len(scores), abs_tol=1e-9)


def format_table(rows: Sequence[MetricRow], systems: Sequence[str], kind: TableFormat) -> str:
    """Return a table of metrics.

    Args:
        rows: The rows.
        systems: The names of the systems.
        kind: "csv", with every number in a column of its own, or "tex", a LaTeX `tabular` for the package booktabs.

    Returns:
        The table.
    """
    return _format_csv(rows, systems) if kind == "csv" else _format_latex(rows, systems)


def _format_csv(rows: Sequence[MetricRow], systems: Sequence[str]) -> str:
    header = ["metric"]
    for name in systems:
        header += [name, f"{name} low", f"{name} high"]
    if len(systems) == 2:
        header += ["difference", "difference low", "difference high", "two-sided p"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        cells: list[object] = [row.name]
        for value, interval in row.cells:
            cells += ["" if value is None else value, *(interval or ("", ""))]
        if len(systems) == 2:
            result = row.difference
            cells += ["", "", "", ""] if result is None else [result.difference, result.low, result.high, result.p]
        writer.writerow(cells)
    return text.getvalue()


def _format_latex(rows: Sequence[MetricRow], systems: Sequence[str]) -> str:
    compared = len(systems) == 2
    header = ["metric", *map(_escape, systems), *(["difference", "$p$"] if compared else [])]
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule", " & ".join(header) + r" \\", r"\midrule"]
    for row in rows:
        cells = [_escape(row.name)]
        for value, interval in row.cells:
            cell = "--" if value is None else f"{value:.4f}"
            cells.append(cell if interval is None else f"{cell} [{interval[0]:.4f}, {interval[1]:.4f}]")
        if compared:
            result = row.difference
            cells += ["--", "--"] if result is None else [f"${result.difference:+.4f}$", f"{result.p:.4f}"]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _escape(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
