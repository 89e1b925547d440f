"""Intervals of metrics, compared with scipy and brute force, and tables of them."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from openblip.errors import EvaluationError
from openblip.evaluation.metrics import bootstrap, captions
from openblip.evaluation.metrics.ids import ItemId
from openblip.evaluation.tables import MetricRow, format_table, make_rows

SUBJECTS = ("a cat", "two dogs", "a man", "the car", "some people", "a red bus")
PLACES = ("on a bed", "in the park", "near the sea", "under a tree", "in a street")


def test_intervals_of_means_agree_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(0).gamma(2.0, 1.0, size=50)
    intervals = bootstrap.mean_intervals({"a": list(values), "b": list(-values)}, samples=4000)
    peer = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=1, batch=1000)
    assert intervals["a"][0] == pytest.approx(peer.confidence_interval.low, abs=0.03)
    assert intervals["a"][1] == pytest.approx(peer.confidence_interval.high, abs=0.03)
    assert intervals["b"] == pytest.approx((-intervals["a"][1], -intervals["a"][0]))
    assert bootstrap.mean_intervals({"a": [1.0]}) == {}
    assert bootstrap.mean_intervals({}) == {}


def test_intervals_of_bleu_are_those_of_resampled_corpora() -> None:
    rng = np.random.default_rng(2)
    references = {n: [f"{SUBJECTS[n % 6]} {PLACES[n % 5]}", f"{SUBJECTS[n % 6]} outside"] for n in range(20)}
    predictions = {n: f"{SUBJECTS[rng.integers(6) if n % 3 else n % 6]} {PLACES[n % 5]}" for n in references}
    scores = captions.score(predictions, references)
    intervals = scores.intervals(samples=200)
    assert list(intervals) == ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"]
    for name, (low, high) in intervals.items():
        value = scores.corpus[name]
        assert value is not None
        assert low < value < high
    draws = np.random.default_rng(0)  # the resamples of `resample_sums`
    corpora = []
    for _ in range(200):
        chosen = draws.integers(20, size=20).tolist()
        resampled = {k: predictions[n] for k, n in enumerate(chosen)}, {k: references[n] for k, n in enumerate(chosen)}
        hypotheses, targets = captions.tokenize(*resampled)
        corpora.append([total for total, _ in captions.bleu(hypotheses, targets)])
    low, high = np.quantile(corpora, [0.025, 0.975], axis=0)
    for n in range(4):
        assert intervals[f"Bleu_{n + 1}"] == pytest.approx((low[n], high[n]))


def test_tables_have_every_number() -> None:
    items: list[dict[ItemId, dict[str, float]]] = [{n: {"accuracy": float(n < k)} for n in range(8)} for k in (2, 7)]
    rows = make_rows(
        [{"accuracy": 0.25, "METEOR": None, "a_b%": 0.5}, {"accuracy": 0.875, "METEOR": None, "a_b%": None}],
        [{"accuracy": (0.1, 0.4)}, {}], items,
    )  # fmt: skip
    assert [row.name for row in rows] == ["accuracy", "a_b%"], "rows without any value are left out"
    result = rows[0].difference
    assert result is not None
    assert result.difference == 0.625
    assert rows[1].difference is None
    header, first, second = csv.reader(io.StringIO(format_table(rows, ["one, two", "b"], "csv")))
    assert header[:4] == ["metric", "one, two", "one, two low", "one, two high"]
    assert first == [
        "accuracy",
        "0.25",
        "0.1",
        "0.4",
        "0.875",
        "",
        "",
        "0.625",
        str(result.low),
        str(result.high),
        str(result.p),
    ]
    assert second == ["a_b%", "0.5", "", "", "", "", "", "", "", "", ""]
    latex = format_table(rows, ["my_run", "b"], "tex")
    assert latex.startswith("\\begin{tabular}{lrrrr}\n\\toprule\nmetric & my\\_run & b & difference & $p$ \\\\\n")
    assert "accuracy & 0.2500 [0.1000, 0.4000] & 0.8750 & $+0.6250$ & " in latex
    assert "a\\_b\\% & 0.5000 & -- & -- & -- \\\\" in latex
    single = format_table([MetricRow("x", [1.0], [None])], ["a"], "tex")
    assert "x & 1.0000 \\\\" in single
    (row,) = make_rows([{"accuracy": 0.3}, {"accuracy": 0.875}], [{}, {}], items)
    assert row.difference is None, "a metric that is not the mean of its items, as BLEU"
    with pytest.raises(EvaluationError, match="no reference for id 1"):
        make_rows([{"accuracy": 0.25}, {"accuracy": 1.0}], [{}, {}], [items[0], {0: {"accuracy": 1.0}}])
