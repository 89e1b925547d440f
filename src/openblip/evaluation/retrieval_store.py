"""Where two-stage retrieval stores intermediate results: in memory, or in a folder from which a run is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from openblip.errors import EvaluationError
from openblip.evaluation.journal import REMEDY, Journal
from openblip.io.atomic import replace_path


class RetrievalStore:
    """Blocks of tensors by name, the re-ranked rows of images, and why images failed. Use it as a context manager.

    In a folder, a block is a file that is complete or absent, and a row is a record of the journal `rows.jsonl`.

    Args:
        folder: The folder; `None` to store in memory.
        key: The model, the settings and the items that the results depend on.

    Attributes:
        failed: Why each image that could not be opened failed, by its number.

    Raises:
        EvaluationError: If the folder has another key, or if its journal is damaged.
    """

    def __init__(self, folder: Path | None = None, key: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.failed: dict[int, str] = {}
        self._journal = Journal(folder / "rows.jsonl" if folder is not None else None, key or {})
        self._blocks: dict[str, dict[str, Tensor]] = {}
        self._rows: dict[int, tuple[Tensor, Tensor]] = {}
        for record in self._journal.records.values():
            if "error" in record:
                self.failed[record["id"]] = record["error"]
                continue
            if not {"texts", "logits"} <= record.keys():
                raise EvaluationError(f"{folder}: the row of image {record['id']} lacks 'texts' or 'logits'; {REMEDY}")
            logits = torch.tensor(record["logits"], dtype=torch.float32)
            self._rows[record["id"]] = torch.tensor(record["texts"]), logits

    def has_block(self, name: str) -> bool:
        """Return whether a block was stored."""
        return name in self._blocks or (self.folder is not None and self._path(name).is_file())

    def put_block(self, name: str, **tensors: Tensor) -> None:
        """Store a block.

        Args:
            name: The name of the block.
            **tensors: Its tensors, by name.

        Raises:
            EvaluationError: If the file cannot be written.
        """
        if self.folder is None:
            self._blocks[name] = tensors
            return
        path = self._path(name)
        try:
            with replace_path(path, fixed_name=True) as temporary:  # a killed run leaves at most one such file
                save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, temporary)
        except (OSError, SafetensorError) as error:
            raise EvaluationError(f"{path} cannot be written: {error}; run again to resume") from error

    def get_block(self, name: str) -> dict[str, Tensor]:
        """Return a stored block.

        Args:
            name: The name of the block.

        Returns:
            Its tensors, by name.

        Raises:
            EvaluationError: If the file cannot be read.
        """
        if self.folder is None:
            return self._blocks[name]
        try:
            return load_file(self._path(name))
        except (OSError, SafetensorError) as error:
            raise EvaluationError(
                f"{self._path(name)} cannot be read: {error}; delete it to compute it again"
            ) from error

    def drop_block(self, name: str) -> None:
        """Delete a block that is no longer needed."""
        self._blocks.pop(name, None)
        if self.folder is not None:
            self._path(name).unlink(missing_ok=True)

    def get_row(self, image: int) -> tuple[Tensor, Tensor] | None:
        """Return the numbers of the texts that an image was judged with, and their logits."""
        return self._rows.get(image)

    def put_row(self, image: int, texts: Tensor, logits: Tensor) -> None:
        """Store the row of an image.

        Args:
            image: The number of the image.
            texts: The numbers of the texts.
            logits: Their ITM logits.

        Raises:
            EvaluationError: If the journal cannot be written.
        """
        self._rows[image] = texts, logits
        shortest = [float(str(value)) for value in logits.numpy().astype(np.float32)]  # the fewest digits that suffice
        self._journal.add({"id": image, "texts": texts.tolist(), "logits": shortest})

    def fail(self, image: int, error: str) -> None:
        """Exclude an image for good: rankings that were computed without it must stay valid.

        Args:
            image: The number of the image.
            error: Why it could not be opened.
        """
        if self.folder is not None:
            error += f"; to try it again, delete {self.folder}"
        self.failed[image] = error
        self._journal.add({"id": image, "error": error})

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.safetensors"

    def __enter__(self) -> RetrievalStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._journal.close()
