"""Where two-stage retrieval keeps what it has computed: in memory, or in a folder that a stopped run goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from openblip.errors import EvaluationError
from openblip.evaluation.journal import REMEDY, Lines


class Store:
    """Blocks of tensors by name, the re-ranked rows of images, and why images failed; to be left as a context.

    In a folder a block is a file that is there whole or not at all, and a row is a line of ``rows.jsonl``, the first
    line of which is the ``key`` of what was computed. Raises :class:`EvaluationError` for a folder of another key.
    """

    def __init__(self, folder: Path | None = None, key: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self._lines = Lines(folder / "rows.jsonl" if folder is not None else None, key or {})
        self._blocks: dict[str, dict[str, Tensor]] = {}
        self._rows: dict[int, tuple[Tensor, Tensor]] = {}
        self.failed: dict[int, str] = {}
        for row in self._lines.known.values():
            if "error" in row:
                self.failed[row["id"]] = row["error"]
                continue
            if not {"texts", "logits"} <= row.keys():
                raise EvaluationError(f"{folder}: the row of image {row['id']} has no 'texts' or no 'logits'; {REMEDY}")
            self._rows[row["id"]] = torch.tensor(row["texts"]), torch.tensor(row["logits"], dtype=torch.float32)

    def has(self, name: str) -> bool:
        """Whether a block was put."""
        return name in self._blocks or (self.folder is not None and self._file(name).is_file())

    def put(self, name: str, **tensors: Tensor) -> None:
        """Keep a block."""
        if self.folder is None:
            self._blocks[name] = tensors
            return
        path = self._file(name)
        part = path.with_suffix(".part")  # of one name, so that a run that is killed leaves at most one behind
        try:
            save_file({key: one.contiguous() for key, one in tensors.items()}, part)
            part.replace(path)
        except (OSError, SafetensorError) as error:
            part.unlink(missing_ok=True)
            raise EvaluationError(f"cannot write {path}: {error}; the run goes on when called again") from error

    def get(self, name: str) -> dict[str, Tensor]:
        """A block that was put."""
        if self.folder is None:
            return self._blocks[name]
        try:
            return load_file(self._file(name))
        except (OSError, SafetensorError) as error:
            raise EvaluationError(
                f"{self._file(name)} cannot be read: {error}; delete it to compute it anew"
            ) from error

    def drop(self, name: str) -> None:
        """Forget a block that nothing needs any more."""
        self._blocks.pop(name, None)
        if self.folder is not None:
            self._file(name).unlink(missing_ok=True)

    def row(self, image: int) -> tuple[Tensor, Tensor] | None:
        """The texts that an image was judged with, by number, and their logits."""
        return self._rows.get(image)

    def put_row(self, image: int, texts: Tensor, logits: Tensor) -> None:
        """Keep an image's row, from now on whatever becomes of this process."""
        self._rows[image] = texts, logits
        short = [float(str(value)) for value in logits.numpy().astype(np.float32)]  # as few digits as tell it apart
        self._lines.add({"id": image, "texts": texts.tolist(), "logits": short})

    def fail(self, image: int, why: str) -> None:
        """Leave an image out, for good: what others were ranked with must stay the same."""
        if self.folder is not None:
            why += f"; to try it again, delete {self.folder}"
        self.failed[image] = why
        self._lines.add({"id": image, "error": why})

    def _file(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.safetensors"

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.__exit__(kind, error, trace)
