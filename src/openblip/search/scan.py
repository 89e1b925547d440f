"""Exact search in a matrix: every row is scored, and the best ones are scored again in float64.

The error of the first scores has a known bound: `(E + 2) * 2**-24` in float32 for rows of norm 1, and `2**-11` with
faiss, whose rows are rounded to fp16. Rows whose score is within twice the bound of the n-th best are scored again in
float64, so the result equals float64 brute force over the stored rows.

The time of a scan is the time to read the rows. From the third query on, faiss therefore reads an fp16 copy of fp32
rows, which is half as large.

Shapes: N rows, E width, R selected rows, n results.
"""

from __future__ import annotations

import threading
import warnings
from importlib.util import find_spec
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from openblip.errors import InputError
from openblip.extras import install_hint
from openblip.search.matrix import Rows

Indices: TypeAlias = "NDArray[np.int64]"
Float64s: TypeAlias = "NDArray[np.float64]"

_NORM = 1.01  # rows in fp16 are not exactly of norm 1
_FP16_UNIT = 2.0**-11 + 2.0**-20  # rounding error of a row of norm 1, with that of its smallest values
_GATHER_SHARE = 8  # up to one row in so many is copied out of the matrix; more are masked
_CODES_SHARE = 8  # faiss returns at most one row in so many
_SHARD_ROWS = 20_000  # fewest rows of a thread
_WARM = 3  # query from which fp32 rows are copied for faiss
_BLOCK = 1 << 14  # rows that are converted at once
_MORE = 256  # candidates beyond n that faiss returns at first


class Scanner:
    """Finds the rows of a matrix with the highest cosine, exactly. Threads may share it.

    Args:
        matrix: Rows (N, E) of norm 1, fp32 or fp16.
        use_faiss: Whether to scan with faiss; by default if it is installed.
    """

    def __init__(self, matrix: Rows, *, use_faiss: bool | None = None) -> None:
        self.matrix = matrix
        self.faiss = _import_faiss() if use_faiss or (use_faiss is None and has_faiss()) else None
        self._codes: Any = None  # the rows in fp16, in faiss
        self._shards: list[Any] = []  # its parts, one for each thread
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
        if self.faiss is not None and (self.matrix.dtype == np.float16 or self._queries >= _WARM):
            best = self._best_codes(query, n, mask)
            if best is not None:
                return best
        return self._best_scores(self.matrix, query, n, mask)

    def _best_scores(self, matrix: Rows, query: Float64s, n: int, mask: NDArray[np.bool_] | None) -> Indices:
        """Return a superset of the `n` best rows, whose scores numpy computes in float32."""
        scores = _score(matrix, query.astype(np.float32))
        if mask is not None:
            scores[~mask] = -np.inf
        nth = np.partition(scores, -n)[-n] if n < len(scores) else -np.inf
        if nth == -np.inf:
            return np.flatnonzero(scores > -np.inf)
        return np.flatnonzero(scores >= nth - 2 * _float32_error(len(query)))

    def _best_codes(self, query: Float64s, n: int, mask: NDArray[np.bool_] | None) -> Indices | None:
        """Return a superset of the `n` best rows, whose scores faiss computes from fp16.

        Returns:
            The rows; `None` if too many rows are about as similar as the n-th.
        """
        margin = 2 * _float32_error(len(query))
        if self.matrix.dtype != np.float16:
            margin += 2 * _NORM * _FP16_UNIT
        total = len(self.matrix)
        allowed = total if mask is None else int(mask.sum())
        wanted = int((n + _MORE) * total / max(1, allowed))
        codes = self._load_codes()
        while wanted * _CODES_SHARE < total:
            scores, rows = (array[0] for array in codes.search(query.astype(np.float32)[None], wanted))
            last = scores[-1]
            if mask is not None:
                scores, rows = scores[mask[rows]], rows[mask[rows]]
            if len(rows) > n and last < scores[n - 1] - margin:
                return np.asarray(rows[scores >= scores[n - 1] - margin], np.int64)
            wanted *= 4
        return None

    def _load_codes(self) -> Any:
        """Return the rows in fp16 as an index of faiss, in one part per thread."""
        faiss = self.faiss
        assert faiss is not None
        with self._lock:
            if self._codes is None:
                width, kind = self.matrix.shape[1], faiss.ScalarQuantizer.QT_fp16
                count = max(1, min(faiss.omp_get_max_threads(), len(self.matrix) // _SHARD_ROWS))
                shards = faiss.IndexShards(width, count > 1, True)
                for rows in np.array_split(self.matrix, count):
                    shard = faiss.IndexScalarQuantizer(width, kind, faiss.METRIC_INNER_PRODUCT)
                    shard.is_trained = True
                    for start in range(0, len(rows), _BLOCK):
                        block = np.ascontiguousarray(rows[start : start + _BLOCK], np.float16)
                        shard.add_sa_codes(block.view(np.uint8))
                    shards.add_shard(shard)
                    self._shards.append(shard)
                self._codes = shards
            return self._codes


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
