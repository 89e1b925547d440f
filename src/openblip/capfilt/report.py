"""The report of a run: counts, histograms of the scores, diversity of the texts, and a contact sheet."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openblip.capfilt import rows
from openblip.capfilt.folder import CapFiltFolder, current_rule
from openblip.capfilt.rows import Row
from openblip.capfilt.rules import Rule
from openblip.data.images import Locator
from openblip.io import atomic
from openblip.io.templates import render_html
from openblip.jobs.sheet import encode_thumbnail
from openblip.preprocess.text import clean_caption

IMAGES = 24
TEXTS = 20_000
"""Texts of each kind that the diversity is computed on: the number of different n-grams grows with the number of texts,
so all kinds are compared on samples of one size."""
BINS = 40
RANGES = {"itm": (0.0, 1.0), "itc": (-1.0, 1.0)}
KINDS = ("web", "synthetic", "kept web", "kept synthetic")


@dataclass
class Histogram:
    """Counts of a score in bins of equal width.

    Attributes:
        low: Lower edge of the first bin.
        high: Upper edge of the last bin.
        counts: Counts by source of the texts.
    """

    low: float
    high: float
    counts: dict[str, NDArray[np.int64]] = field(
        default_factory=lambda: {source: np.zeros(BINS, np.int64) for source in ("web", "synthetic")}
    )

    def add(self, source: str, values: NDArray[np.floating]) -> None:
        """Add scores of texts from one source; scores that are not finite are left out."""
        finite = np.clip(values[np.isfinite(values)], self.low, self.high)
        self.counts[source] += np.histogram(finite, BINS, (self.low, self.high))[0]

    def bars(self, source: str) -> list[float]:
        """Return the height of each bar as a share of the highest bar of any source."""
        highest = max(1, *(int(counts.max()) for counts in self.counts.values()))
        return [float(count) / highest for count in self.counts[source]]


@dataclass(frozen=True)
class Diversity:
    """How varied some texts are.

    Attributes:
        texts: Number of texts.
        words: Mean number of words per text.
        vocabulary: Number of different words.
        unique: Share of the texts that occur once.
        distinct: Share of different n-grams among all n-grams, for n from 1 to 4.
    """

    texts: int
    words: float
    vocabulary: int
    unique: float
    distinct: tuple[float, ...]


@dataclass
class Report:
    """The figures and examples of a report.

    Attributes:
        rule: The rule of the verdicts.
        counts: The counts of all rows.
        histograms: Histograms of the scores by name.
        diversity: Diversity of the texts by kind.
        examples: Rows for the contact sheet.
        repeated_keys: Number of rows whose key occurs in an earlier shard.
    """

    rule: Rule
    counts: Counter[str]
    histograms: dict[str, Histogram]
    diversity: dict[str, Diversity]
    examples: list[Row]
    repeated_keys: int = 0

    @property
    def noise_ratio(self) -> float | None:
        """The share of synthetic texts that the rule drops (Table 2 of the paper)."""
        total = self.counts["synthetic"]
        return 1 - self.counts["synthetic_kept"] / total if total else None


def make_report(folder: CapFiltFolder, *, images: int = IMAGES, texts: int = TEXTS) -> Report:
    """Collect the report of a run. Memory use does not depend on the number of rows, except for 8 bytes per key.

    Args:
        folder: The output of a run.
        images: Number of images on the contact sheet.
        texts: Number of texts of each kind to measure the diversity of.

    Returns:
        The report.

    Raises:
        JobError: The folder contains no run, or a file cannot be read.
    """
    rule, counts = current_rule(folder), folder.count()
    histograms = {name: Histogram(*limits) for name, limits in RANGES.items()}
    samples = {kind: _Sample(texts) for kind in KINDS}
    examples = _Sample(images)
    digests = [np.zeros(0, np.uint64)]
    for shard in folder.shards():
        table = rows.read_table(folder.rows_path(shard))
        digests.append(_digests(table["key"].filter(table["error"].is_null()).to_pylist()))
        for row in rows.to_rows(table):
            if row.error is None:
                _add_row(row, rule, samples, examples)
        _add_scores(table, histograms)
    keys = np.concatenate(digests)
    diversity = {kind: measure_diversity(sample.values()) for kind, sample in samples.items() if len(sample)}
    return Report(rule, counts, histograms, diversity, examples.values(), len(keys) - len(np.unique(keys)))


def write_report(folder: CapFiltFolder, path: Path, *, images: int = IMAGES) -> Report:
    """Write the report of a run as one HTML file.

    Args:
        folder: The output of a run.
        path: The file.
        images: Number of images on the contact sheet.

    Returns:
        The report.

    Raises:
        JobError: The folder contains no run, or a file cannot be read.
    """
    report = make_report(folder, images=images)
    html = render_html(
        "openblip.capfilt",
        "report.html",
        title=folder.path.absolute().name,
        report=report,
        settings=folder.require_settings()["job"],
        reasons={prefix: _reasons(report.counts, prefix) for prefix in ("error: ", "text: ")},
        cards=[_make_card(folder, row, report.rule) for row in report.examples],
        width=BINS,
    )
    atomic.write_bytes(path, html.encode("utf-8", "backslashreplace"))
    return report


def measure_diversity(texts: Sequence[str]) -> Diversity:
    """Measure how varied some texts are, after cleaning as in training."""
    cleaned = [clean_caption(text) for text in texts]
    words = [text.split() for text in cleaned]
    repeats = Counter(cleaned)
    distinct = []
    for n in range(1, 5):
        grams = [tuple(each[i : i + n]) for each in words for i in range(len(each) - n + 1)]
        distinct.append(len(set(grams)) / len(grams) if grams else 0.0)
    return Diversity(
        texts=len(cleaned),
        words=sum(map(len, words)) / max(1, len(words)),
        vocabulary=len({word for each in words for word in each}),
        unique=sum(count == 1 for count in repeats.values()) / max(1, len(cleaned)),
        distinct=tuple(distinct),
    )


class _Sample:
    """The values whose keys have the smallest hashes: a sample that does not depend on the order of the rows."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._heap: list[tuple[float, int, Any]] = []
        self._number = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, order: float, value: Any) -> None:
        self._number += 1
        entry = (-order, self._number, value)
        if len(self._heap) < self.size:
            heapq.heappush(self._heap, entry)
        elif self._heap and entry > self._heap[0]:
            heapq.heapreplace(self._heap, entry)

    def values(self) -> list[Any]:
        return [value for _, _, value in sorted(self._heap, key=lambda entry: (-entry[0], entry[1]))]


def _add_row(row: Row, rule: Rule, samples: Mapping[str, _Sample], examples: _Sample) -> None:
    order = int(_digests([row.key])[0]) / 2**64
    verdicts = _verdicts(row, rule)
    for text, kept in zip(row.texts, verdicts, strict=True):
        if text.reason is None:
            samples[text.source].add(order, text.text)
            if kept:
                samples[f"kept {text.source}"].add(order, text.text)
    # Images with kept and dropped texts come first, because they show the effect of the filter.
    examples.add(order + (0 if len(set(verdicts)) == 2 else 1), row)


def _add_scores(table: Any, histograms: Mapping[str, Histogram]) -> None:
    sources = np.asarray(rows.flatten(table["sources"]), dtype=object)
    for name, histogram in histograms.items():
        values = rows.flatten(table[name])
        for source in histogram.counts:
            histogram.add(source, values[sources == source].astype(float))


def _digests(keys: Sequence[str]) -> NDArray[np.uint64]:
    digests = [hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest() for key in keys]
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def _verdicts(row: Row, rule: Rule) -> list[bool]:
    scores = [[np.nan if value is None else value for value in (text.itm, text.itc)] for text in row.texts]
    itm, itc = np.array(scores, float).reshape(-1, 2).T
    verdicts: list[bool] = rule.accepts(itm, itc).tolist()
    return verdicts


def _make_card(folder: CapFiltFolder, row: Row, rule: Rule) -> dict[str, Any]:
    image = Locator(str(folder.parquet))(row.image, row.key) if row.image else None
    texts = [
        {
            "text": text.text if len(text.text) <= 300 else text.text[:299] + "…",
            "source": text.source,
            "kept": kept,
            "scores": text.reason or f"ITM {text.itm or 0:.2f} · ITC {text.itc or 0:.2f}",
        }
        for text, kept in zip(row.texts, _verdicts(row, rule), strict=True)
    ]
    return {"key": row.key, "thumbnail": None if image is None else encode_thumbnail(image), "texts": texts}


def _reasons(counts: Mapping[str, int], prefix: str) -> list[tuple[str, int]]:
    """Return the counts whose names start with `prefix`, the largest first."""
    reasons = [(name.removeprefix(prefix), count) for name, count in counts.items() if name.startswith(prefix)]
    return sorted(reasons, key=lambda pair: -pair[1])
