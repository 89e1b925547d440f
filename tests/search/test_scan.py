"""The scan returns what float64 brute force over the stored values returns, with numpy and with faiss."""

from __future__ import annotations

import warnings
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from openblip.errors import InputError
from openblip.search import scan
from openblip.search.matrix import Rows
from openblip.search.scan import Scanner, has_faiss

NEEDS_FAISS = pytest.mark.skipif(not has_faiss(), reason="faiss is not installed")
ENGINES = ["numpy", *(pytest.param(kind, marks=NEEDS_FAISS) for kind in ("int8", "fp16", "fastest"))]


def unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def brute_force(matrix: Rows, query: NDArray[np.float64], n: int, allowed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the best rows by their cosine in float64; of equal ones the lower number first."""
    cosines = (matrix.astype(np.float64) * unit(query)).sum(1)
    order = np.lexsort((np.arange(len(matrix)), -cosines))
    return order[allowed[order]][:n]


def make_matrix(seed: int, count: int, width: int, spread: float, dtype: str) -> Rows:
    """Return rows around one direction: the smaller the spread, the more are equal in float32. Some are repeated."""
    draw = np.random.default_rng(seed)
    rows = unit(unit(draw.standard_normal(width)) + spread * draw.standard_normal((count, width)))
    rows[draw.integers(0, count, count // 5)] = rows[0]
    return rows.astype(dtype)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 6000),
    width=st.sampled_from([3, 16, 64]),
    spread=st.sampled_from([1.0, 1e-3, 1e-6, 3e-8]),
    n=st.integers(1, 50),
    share=st.sampled_from([None, 0.0, 0.01, 0.3, 1.0]),
    removed=st.sampled_from([0.0, 0.1, 0.9]),
)
def test_recall_is_one(
    dtype: str,
    engine: str,
    seed: int,
    count: int,
    width: int,
    spread: float,
    n: int,
    share: float | None,
    removed: float,
) -> None:
    matrix = make_matrix(seed, count, width, spread, dtype)
    draw = np.random.default_rng(seed + 1)
    query = unit(draw.standard_normal(width)) + matrix[-1] * draw.choice([0, 5])
    excluded = np.flatnonzero(draw.random(count) < removed)
    rows = None if share is None else np.flatnonzero(draw.random(count) < share)
    allowed = np.ones(count, bool) if rows is None else np.isin(np.arange(count), rows)
    allowed[excluded] = False
    scanner = Scanner(matrix, use_faiss=engine != "numpy")
    if engine in ("int8", "fp16"):
        scanner._codes, scanner._is_chosen = scan.Codes(scan._import_faiss(), matrix, cast(scan.CodeType, engine)), True
    for _ in range(3):  # the fastest scan is chosen by the third query
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, cosines = scanner.find(query, n, rows=rows, excluded=excluded)
        assert found.tolist() == brute_force(matrix, query, n, allowed).tolist()
    np.testing.assert_allclose(cosines, (matrix[found].astype(np.float64) * unit(query)).sum(1), rtol=0, atol=1e-12)


def test_float32_alone_would_be_wrong() -> None:
    """The rows above are close enough to need float64: without it the test could not fail."""
    matrix = make_matrix(0, 900, 64, 1e-6, "float32")
    query = np.random.default_rng(1).standard_normal(64)
    plain = np.argsort(-(matrix @ query.astype(np.float32)), kind="stable")[:20]
    assert plain.tolist() != brute_force(matrix, query, 20, np.ones(900, bool)).tolist()


def test_fp16_without_faiss_warns_that_it_is_slow() -> None:
    query = np.ones(4)
    with pytest.warns(UserWarning, match=r"NumPy scans fp16 embeddings slowly.*openblip\[search\]"):
        Scanner(np.ones((2, 4), np.float16) / 2, use_faiss=False).find(query, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Scanner(np.ones((2, 4), np.float32) / 2, use_faiss=False).find(query, 1)
        Scanner(np.empty((0, 4), np.float16), use_faiss=False).find(query, 1)


@pytest.mark.parametrize("query", [np.zeros(4), np.ones(5), np.array([np.nan, 0, 0, 0]), np.ones((1, 4))])
def test_queries_without_a_direction_are_refused(query: NDArray[np.float64]) -> None:
    with pytest.raises(InputError, match="query must be a vector of width 4"):
        Scanner(np.ones((2, 4), np.float32) / 2, use_faiss=False).find(query, 1)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kind", ["int8", "fp16"])
@NEEDS_FAISS
def test_faiss_returns_the_candidates(
    kind: scan.CodeType, dtype: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most queries end with what faiss returned, whether one thread scans or several."""
    matrix = make_matrix(0, 20_000, 64, 1.0, dtype)
    scanner = Scanner(matrix, use_faiss=True)
    assert scanner.faiss is not None
    monkeypatch.setattr(scan, "_SHARD_ROWS", 5000)
    monkeypatch.setattr(scanner.faiss, "omp_get_max_threads", lambda: threads)
    codes = scan.Codes(scanner.faiss, matrix, kind)
    query = unit(np.random.default_rng(1).standard_normal(64))
    mask = np.random.default_rng(2).random(20_000) < 0.5
    for allowed in (np.ones(20_000, bool), mask):
        candidates = scanner._best_codes(codes, query, 10, allowed)
        assert candidates is not None
        assert len(candidates) < 200
        expected = brute_force(matrix, query, 10, allowed)
        assert np.isin(expected, candidates).all()
    assert len(codes.shards) == threads


@pytest.mark.parametrize("kind", ["int8", "fp16"])
@pytest.mark.parametrize("width", [3, 20, 64])
@pytest.mark.parametrize("outlier", [0.0, 20.0])
@NEEDS_FAISS
def test_the_scores_of_faiss_are_within_their_bound(kind: scan.CodeType, width: int, outlier: float) -> None:
    draw = np.random.default_rng(0)
    rows = draw.standard_normal((3000, width))
    rows[:, 0] += outlier
    matrix = unit(rows).astype(np.float32)
    codes = scan.Codes(scan._import_faiss(), matrix, kind)
    for query in unit(draw.standard_normal((5, width))):
        scores, found, error = codes.search(query, 200)
        differences = np.abs(scores - matrix[found].astype(np.float64) @ query)
        assert 0 < differences.max() <= error < (0.08 if kind == "int8" else 0.002)


@NEEDS_FAISS
@pytest.mark.parametrize("fastest", ["numpy", "int8", "fp16"])
def test_the_fastest_scan_is_kept(fastest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = make_matrix(0, 8000, 64, 1.0, "float32")
    times: list[float] = []
    for name in ["numpy", "int8", "fp16"] * scan._TRIALS:
        times += [0.0, 0.5 if name == fastest else 1.0]  # start and end
    monkeypatch.setattr("openblip.search.scan.time.perf_counter", iter(times).__next__)
    scanner = Scanner(matrix, use_faiss=True)
    queries = np.random.default_rng(1).standard_normal((4, 64))
    for query in queries:
        found, _ = scanner.find(query, 5)
        assert found.tolist() == brute_force(matrix, query, 5, np.ones(8000, bool)).tolist()
    assert (scanner._codes.kind if scanner._codes else "numpy") == fastest


@NEEDS_FAISS
def test_codes_that_another_faiss_scores_otherwise_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = make_matrix(0, 8000, 64, 1.0, "float32")
    scanner = Scanner(matrix, use_faiss=True)
    codes = scan.Codes(scan._import_faiss(), matrix, "int8")
    search = codes.search

    def search_wrongly(query: NDArray[np.float64], count: int) -> tuple[Any, Any, float]:
        scores, rows, error = search(query, count)
        return scores + 0.1, rows, error

    monkeypatch.setattr(codes, "search", search_wrongly)
    assert scanner._best_codes(codes, unit(np.ones(64)), 5, None) is None
