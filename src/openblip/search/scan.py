"""Exact search in a matrix: every row is scored, and the best ones are scored again in float64.

The error of the first scores has a known bound: `(E + 2) * 2**-24` in float32 for rows of norm 1; with faiss, whose
rows are rounded to int8 or fp16, it is measured. Rows that may be better than the n-th best by these bounds are scored
again in float64, so the result equals float64 brute force over the stored rows.

The time of a scan is mostly the time to read the rows. faiss reads a copy that is a quarter (int8) or half (fp16) as
large. Coarser scores leave more rows to score again, so the fastest scan depends on the rows and on the processor. At
its third query, a scanner measures all scans and keeps the fastest.

Shapes: N rows, E width, R selected rows, n results.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from openblip.errors import InputError
from openblip.extras import install_hint
from openblip.search.matrix import Rows

Indices: TypeAlias = "NDArray[np.int64]"
Float64s: TypeAlias = "NDArray[np.float64]"
CodeType: TypeAlias = Literal["int8", "fp16"]

_INT8 = 127
_NORM = 1.01  # rows in fp16 are not exactly of norm 1
_GATHER_SHARE = 8  # up to one row in so many is copied out of the matrix; more are masked
_CODES_SHARE = 8  # faiss returns at most one row in so many
_SHARD_ROWS = 20_000  # fewest rows of a thread
_WARM = 3  # query at which the scans are timed
_TRIALS = 5  # of each scan
_BLOCK = 1 << 14  # rows that are converted at once
_MORE = 64  # candidates beyond n that faiss returns at first


class Scanner:
    """Finds the rows of a matrix with the highest cosine, exactly. Threads may share it.

    Args:
        matrix: Rows (N, E) of norm 1, fp32 or fp16.
        use_faiss: Whether to scan with faiss; by default if it is installed.
    """

    def __init__(self, matrix: Rows, *, use_faiss: bool | None = None) -> None:
        self.matrix = matrix
        self.faiss = _import_faiss() if use_faiss or (use_faiss is None and has_faiss()) else None
        self._codes: Codes | None = None
        self._is_chosen = self.faiss is None
        self._queries = 0
        self._lock = threading.Lock()

    def find(
        self,
        query: NDArray[np.floating[Any]],
        n: int,
        *,
        rows: Indices | None = None,
        excluded: Indices | None = None,
    ) -> tuple[Indices, Float64s]:
        """Return the rows with the highest cosine with a query, best first; of equal rows the lower number first.

        Args:
            query: The query (E,), of any norm but 0.
            n: Number of rows to return; fewer are returned if there are fewer.
            rows: The rows to search; by default all.
            excluded: Rows to leave out.

        Returns:
            The numbers of the rows and their cosines.

        Raises:
            InputError: The query has no direction or another width.
        """
        exact = np.asarray(query, np.float64)
        norm = np.linalg.norm(exact)
        if exact.shape != self.matrix.shape[1:] or not np.isfinite(norm) or norm == 0:
            raise InputError(f"query must be a vector of width {self.matrix.shape[1]} and not zero, got {exact.shape}")
        exact /= norm
        if rows is not None and excluded is not None and len(excluded):
            rows, excluded = np.setdiff1d(rows, excluded), None
        count = len(self.matrix) if rows is None else len(rows)
        if n < 1 or count == 0:
            return np.empty(0, np.int64), np.empty(0)
        if rows is not None and len(rows) * _GATHER_SHARE <= len(self.matrix):
            candidates = rows[self._best_scores(self.matrix[rows], exact, n, None)]
        else:
            candidates = self._best_rows(exact, n, self._mask(rows, excluded))
        cosines = (self.matrix[candidates].astype(np.float64) * exact).sum(1)
        order = np.lexsort((candidates, -cosines))[:n]
        return candidates[order], cosines[order]

    def _mask(self, rows: Indices | None, excluded: Indices | None) -> NDArray[np.bool_] | None:
        """Return which rows are searched (N,), or `None` for all."""
        if rows is None and (excluded is None or not len(excluded)):
            return None
        mask = np.full(len(self.matrix), rows is None)
        if rows is not None:
            mask[rows] = True
        if excluded is not None:
            mask[excluded] = False
        return mask

    def _best_rows(self, query: Float64s, n: int, mask: NDArray[np.bool_] | None) -> Indices:
        """Return a superset of the `n` best rows of the matrix, in any order."""
        self._queries += 1
        if self.matrix.dtype == np.float16 and self.faiss is None and self._queries == 1:
            warnings.warn(f"NumPy scans fp16 embeddings slowly, faiss does not: {install_hint('search')}", stacklevel=4)
        if not self._is_chosen and (self.matrix.dtype == np.float16 or self._queries >= _WARM):
            self._choose_codes(query, n, mask)
        if self._codes is not None:
            best = self._best_codes(self._codes, query, n, mask)
            if best is not None:
                return best
        return self._best_scores(self.matrix, query, n, mask)

    def _choose_codes(self, query: Float64s, n: int, mask: NDArray[np.bool_] | None) -> None:
        """Copy the rows for the scan that is the fastest for a query; for numpy, there is nothing to copy."""
        with self._lock:
            if self._is_chosen:
                return
            assert self.faiss is not None
            scans: dict[Codes | None, Callable[[], object]] = {
                None: partial(self._best_scores, self.matrix, query, n, mask)
            }
            for kind in get_args(CodeType):
                codes = Codes(self.faiss, self.matrix, kind)
                if self._best_codes(codes, query, n, mask) is not None:
                    scans[codes] = partial(self._best_codes, codes, query, n, mask)
            self._codes = _find_fastest(scans)
            self._is_chosen = True

    def _best_scores(self, matrix: Rows, query: Float64s, n: int, mask: NDArray[np.bool_] | None) -> Indices:
        """Return a superset of the `n` best rows, whose scores numpy computes in float32."""
        scores = _score(matrix, query.astype(np.float32))
        if mask is not None:
            scores[~mask] = -np.inf
        nth = np.partition(scores, -n)[-n] if n < len(scores) else -np.inf
        if nth == -np.inf:
            return np.flatnonzero(scores > -np.inf)
        return np.flatnonzero(scores >= nth - 2 * _float32_error(len(query)))

    def _best_codes(self, codes: Codes, query: Float64s, n: int, mask: NDArray[np.bool_] | None) -> Indices | None:
        """Return a superset of the `n` best rows, whose scores faiss computes from rounded rows.

        Returns:
            The rows; `None` if too many rows are about as similar as the n-th.
        """
        total = len(self.matrix)
        allowed = total if mask is None else int(mask.sum())
        while True:
            wanted = int((n + codes.more) * total / max(1, allowed))
            if wanted * _CODES_SHARE >= total:
                return None
            scores, rows, error = codes.search(query, wanted)
            last = scores[-1]
            if mask is not None:
                scores, rows = scores[mask[rows]], rows[mask[rows]]
            if len(rows) > n:
                # The n-th best row is at least as good as the worst of any n rows.
                cosines = self.matrix[rows[:n]].astype(np.float64) @ query
                if np.abs(cosines - scores[:n]).max() > error:
                    return None  # this build of faiss computes something else
                least = cosines.min() - error
                if last < least:
                    return np.asarray(rows[scores >= least], np.int64)
            codes.more *= 4


class Codes:
    """Rounded rows in an index of faiss, in one part per thread.

    Args:
        faiss: The module.
        matrix: Rows (N, E) of norm 1.
        kind: "int8", which also rounds queries, or "fp16".
    """

    def __init__(self, faiss: ModuleType, matrix: Rows, kind: CodeType) -> None:
        self.kind = kind
        self.more = _MORE  # candidates beyond n that a search returns; it grows where rows are similar
        width = matrix.shape[1]
        quantizer = faiss.ScalarQuantizer
        faiss_type = {"int8": quantizer.QT_8bit_direct_signed, "fp16": quantizer.QT_fp16}[kind]
        largest = max(
            float(np.abs(matrix[start : start + _BLOCK]).max(initial=0)) for start in range(0, len(matrix), _BLOCK)
        )
        self._scale = largest / _INT8
        self._rounding = 0.0  # largest error of a row
        count = max(1, min(faiss.omp_get_max_threads(), len(matrix) // _SHARD_ROWS))
        self._index = faiss.IndexShards(width, count > 1, True)
        self.shards: list[Any] = []
        for rows in np.array_split(matrix, count):
            shard = faiss.IndexScalarQuantizer(width, faiss_type, faiss.METRIC_INNER_PRODUCT)
            shard.is_trained = True
            for start in range(0, len(rows), _BLOCK):
                shard.add_sa_codes(self._encode(rows[start : start + _BLOCK]))
            self._index.add_shard(shard)
            self.shards.append(shard)

    def search(self, query: Float64s, count: int) -> tuple[Float64s, Indices, float]:
        """Return the rows with the best rounded scores.

        Args:
            query: The query (E,), of norm 1.
            count: Number of rows.

        Returns:
            Scores (count,), the best first; the numbers of the rows; and a bound of the error of the scores.
        """
        error = self._rounding + 2 * _float32_error(len(query))
        if self.kind == "fp16":
            scores, rows = self._index.search(query.astype(np.float32)[None], count)
            return scores[0].astype(np.float64), rows[0], error
        step = float(np.abs(query).max()) / _INT8
        rounded = np.rint(query / step)
        scores, rows = self._index.search(rounded.astype(np.float32)[None], count)
        error += (_NORM + self._rounding) * float(np.linalg.norm(query - step * rounded))
        return scores[0] * (self._scale * step), rows[0], error

    def _encode(self, rows: Rows) -> NDArray[np.uint8]:
        """Return the codes of rows, and take their errors into account."""
        if self.kind == "fp16":
            codes = np.ascontiguousarray(rows, np.float16)
            decoded, as_bytes = codes.astype(np.float32), codes.view(np.uint8)
        else:
            rounded = np.rint(rows.astype(np.float32) / (self._scale or 1.0))
            decoded, as_bytes = rounded * np.float32(self._scale), (rounded + (_INT8 + 1)).astype(np.uint8)
        errors = np.linalg.norm(rows.astype(np.float32) - decoded, axis=1)
        self._rounding = max(self._rounding, _NORM * float(errors.max(initial=0)))
        return as_bytes


def _find_fastest(scans: Mapping[Codes | None, Callable[[], object]]) -> Codes | None:
    """Return the key of the fastest function. They take turns, so that other load affects all alike."""
    fastest = dict.fromkeys(scans, float("inf"))
    for _ in range(_TRIALS):
        for key, scan in scans.items():
            start = time.perf_counter()
            scan()
            fastest[key] = min(fastest[key], time.perf_counter() - start)
    return min(fastest, key=fastest.__getitem__)


def _score(matrix: Rows, query: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosine of every row in float32."""
    if matrix.dtype == np.float32:
        return np.asarray(matrix @ query)
    scores = np.empty(len(matrix), np.float32)
    for start in range(0, len(matrix), _BLOCK):
        block = slice(start, start + _BLOCK)
        np.matmul(matrix[block].astype(np.float32), query, out=scores[block])
    return scores


def _float32_error(width: int) -> float:
    """Return a bound of the error of a cosine that is computed in float32."""
    return _NORM * (width + 2) * 2.0**-24


def has_faiss() -> bool:
    """Return whether faiss is installed."""
    return find_spec("faiss") is not None


def _import_faiss() -> ModuleType:
    try:
        import faiss
    except ImportError as error:
        raise InputError(f"faiss is not installed: {install_hint('search')}") from error
    module: ModuleType = faiss
    return module
