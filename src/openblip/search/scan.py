"""Exact search in a matrix: every row is scored, and the best ones are scored again in float64.

A score in float32 differs from the exact one by at most `(E + 2) * 2**-24` for rows of norm 1. Rows that are closer to
the n-th best than twice this bound are compared in float64, so that the result is that of float64 brute force.

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

_UNIT = 2.0**-24  # rounding error of float32
_NORM = 1.01  # rows in fp16 are not exactly of norm 1
_GATHER_SHARE = 8  # up to one row in so many is copied out of the matrix; more are masked
_BLOCK = 1 << 14  # rows of fp16 that numpy converts at once
_MORE = 64  # candidates beyond n that faiss returns at first


class Scanner:
    """Finds the rows of a matrix with the highest cosine, exactly.

    Args:
        matrix: Rows (N, E) of norm 1, fp32 or fp16.
        use_faiss: Whether to scan with faiss; by default if it is installed.
    """

    def __init__(self, matrix: Rows, *, use_faiss: bool | None = None) -> None:
        self.matrix = matrix
        self.faiss = _import_faiss() if use_faiss or (use_faiss is None and has_faiss()) else None
        self._codes: Any = None  # the fp16 rows in faiss
        self._lock = threading.Lock()
        if matrix.dtype == np.float16 and self.faiss is None and len(matrix):
            warnings.warn(f"numpy scans fp16 embeddings slowly; faiss does not: {install_hint('search')}", stacklevel=2)

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
            candidates = self._best_of(self.matrix[rows], exact, n, None)
            candidates = rows[candidates]
        else:
            mask = self._mask(rows, excluded)
            candidates = self._best_of(self.matrix, exact, n, mask)
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

    def _best_of(self, matrix: Rows, query: Float64s, n: int, mask: NDArray[np.bool_] | None) -> Indices:
        """Return a superset of the `n` best rows, in any order."""
        margin = 2 * _NORM * (len(query) + 2) * _UNIT
        if matrix is self.matrix and matrix.dtype == np.float16 and self.faiss is not None:
            return self._best_codes(query, n, margin, mask)
        scores = self._score(matrix, query.astype(np.float32))
        if mask is not None:
            scores[~mask] = -np.inf
        if n >= len(scores):
            return np.flatnonzero(scores > -np.inf)
        nth = np.partition(scores, -n)[-n]
        if nth == -np.inf:
            return np.flatnonzero(scores > -np.inf)
        return np.flatnonzero(scores >= nth - margin)

    def _score(self, matrix: Rows, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the cosine of every row in float32."""
        if matrix.dtype == np.float16:
            scores = np.empty(len(matrix), np.float32)
            for start in range(0, len(matrix), _BLOCK):
                block = slice(start, start + _BLOCK)
                np.matmul(matrix[block].astype(np.float32), query, out=scores[block])
            return scores
        if self.faiss is None or not len(matrix):
            return np.asarray(matrix @ query)
        scores = np.empty(len(matrix), np.float32)
        pointers = [self.faiss.swig_ptr(array) for array in (scores, query, matrix)]
        self.faiss.fvec_inner_products_ny(*pointers, matrix.shape[1], len(matrix))
        return scores

    def _best_codes(self, query: Float64s, n: int, margin: float, mask: NDArray[np.bool_] | None) -> Indices:
        """Return a superset of the `n` best rows of fp16, scanned by faiss."""
        faiss = self.faiss
        assert faiss is not None
        with self._lock:
            if self._codes is None:
                width, kind = self.matrix.shape[1], faiss.ScalarQuantizer.QT_fp16
                self._codes = faiss.IndexScalarQuantizer(width, kind, faiss.METRIC_INNER_PRODUCT)
                self._codes.is_trained = True
                self._codes.add_sa_codes(np.ascontiguousarray(self.matrix).view(np.uint8))
        parameters = None
        total = len(self.matrix)
        if mask is not None:
            selector = faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
            parameters = faiss.SearchParameters(sel=selector)
            total = int(mask.sum())
        wanted = min(n + _MORE, total)
        while True:
            scores, rows = self._codes.search(query.astype(np.float32)[None], wanted, params=parameters)
            if wanted == total or scores[0, -1] < scores[0, n - 1] - margin:
                return np.asarray(rows[0][rows[0] >= 0], np.int64)
            wanted = min(4 * wanted, total)  # many rows are as similar as the n-th


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
