"""An exported folder: its manifest, checked before anything is loaded, and its graphs, each loaded once."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from openblip_portable.errors import ExportError, InputError
from openblip_portable.runtime import LOADERS, Graph, default_threads
from openblip_portable.text import Tokenizer

FILE = "manifest.json"
FORMAT = "openblip-export"
FORMAT_VERSION = 1
PRECISIONS = ("fp32", "fp16", "int8")
_BLOCK = 1 << 20
_MAX_MANIFEST = 1 << 24  # bytes; a manifest has a few thousand
_MAX_SIDE = 4096  # pixels of an image's side
_MAX_SHAPE = 1 << 20
_ROLES: Mapping[str, tuple[str, ...]] = {
    "caption": ("image_encoder", "image_memory", "decoder_step"),
    "vqa": ("image_encoder", "image_memory", "question_encoder", "decoder_step"),
    "retrieval": ("image_encoder", "image_memory", "match", "image_embedding", "text_embedding"),
    "grounding": ("image_encoder", "image_memory", "expression_encoder", "decoder_step"),
    "nlvr": ("image_encoder", "image_memory", "compare"),
}
"""The graphs that each task needs; a task may have more."""

StrPath: TypeAlias = "str | os.PathLike[str]"


class ExportFolder:
    """A folder that `openblip export` wrote. Several tasks of one folder share its graphs if they share this object.

    Args:
        path: The folder.
        threads: Threads that compute; by default all processors.

    Attributes:
        path: The folder.
        precision: How weights are stored: "fp32", "fp16" or "int8".
        runtime: "onnx" or "openvino".

    Raises:
        ExportError: The folder is incomplete, was made by another version, or names files outside the folder.
    """

    def __init__(self, path: StrPath, *, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise InputError(f"threads must be at least 1, got {threads}")
        self.path = Path(path)
        self.manifest = _read_manifest(self.path)
        self.precision: str = self.manifest["precision"]
        self.runtime: str = self.manifest["runtime"]
        self._threads = threads or default_threads()
        self._graphs: dict[str, Graph] = {}
        self._tokenizers: dict[str, Tokenizer] = {}
        self._lock = threading.Lock()

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of the folder."""
        return tuple(self.manifest["tasks"])

    def task(self, name: str) -> Mapping[str, Any]:
        """Return the manifest's entry of a task.

        Args:
            name: The task.

        Returns:
            The entry.

        Raises:
            ExportError: The folder lacks the task.
        """
        if name not in self.manifest["tasks"]:
            raise ExportError(
                f"{self.path} has no {name!r}, only {', '.join(self.tasks)}; export it with --task {name}"
            )
        entry: Mapping[str, Any] = self.manifest["tasks"][name]
        return entry

    def graph(self, task: str, role: str) -> Graph:
        """Return a graph, loaded on the first call.

        Args:
            task: The task.
            role: Role of the graph.

        Returns:
            The graph.
        """
        name = self.task(task)["graphs"][role]
        with self._lock:
            if name not in self._graphs:
                self._graphs[name] = LOADERS[self.runtime](self.path / name, self._threads, self.precision)
            return self._graphs[name]

    def tokenizer(self, task: str) -> Tokenizer:
        """Return the tokenizer of a task.

        Args:
            task: The task.

        Returns:
            The tokenizer.
        """
        entry = self.task(task)
        name = entry["tokenizer"]
        with self._lock:
            if name not in self._tokenizers:
                self._tokenizers[name] = Tokenizer(self.path / name, entry["special_ids"])
            return self._tokenizers[name]

    def verify(self) -> None:
        """Compare every file with its SHA-256 in the manifest.

        Raises:
            ExportError: A file differs.
        """
        for name, entry in self.manifest["files"].items():
            digest = hashlib.sha256()
            try:
                with (self.path / name).open("rb") as file:
                    while block := file.read(_BLOCK):
                        digest.update(block)
            except OSError as error:
                raise ExportError(f"cannot read {self.path / name}: {error.strerror or error}") from error
            if digest.hexdigest() != entry["sha256"]:
                raise ExportError(f"{self.path / name} is damaged: its SHA-256 differs from the manifest; export again")


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest, and check it against the files."""
    path = folder / FILE
    if not folder.is_dir():
        raise ExportError(f"{folder} must be a folder that `openblip export` wrote; there is none")
    if not path.is_file():
        raise ExportError(f"{folder} has no {FILE}: it is no export, or the export was cut off; export again")
    try:
        if path.stat().st_size > _MAX_MANIFEST:
            raise ExportError(f"{path} must have at most {_MAX_MANIFEST} bytes; it is no export of openblip")
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{path} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ExportError(f"{path} must have the format {FORMAT!r}; it is no export of openblip")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ExportError(
            f"{folder} has format version {manifest.get('format_version')!r} (openblip "
            f"{manifest.get('openblip_version')}), and this openblip-portable reads version {FORMAT_VERSION}; export "
            "again with a fitting openblip, or install a fitting openblip-portable"
        )
    try:
        _check_files(folder, manifest)
    except (KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{path} is damaged: {type(error).__name__} {error}; export again") from error
    return manifest


def _check_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    files = manifest["files"]
    if manifest["precision"] not in PRECISIONS:
        raise ExportError(f"the precision must be one of {', '.join(PRECISIONS)}, got {manifest['precision']!r}")
    if manifest["runtime"] not in LOADERS:
        raise ExportError(f"the runtime must be one of {', '.join(LOADERS)}, got {manifest['runtime']!r}")
    for name, entry in files.items():
        _check_name(name)
        path = folder / name
        if not path.is_file():
            raise ExportError(f"{folder} lacks {name}, which its manifest lists; export again")
        if path.stat().st_size != entry["bytes"]:
            raise ExportError(
                f"{path} must have {entry['bytes']} bytes, got {path.stat().st_size}: it was cut off or changed; "
                "export again"
            )
    for task, entry in manifest["tasks"].items():
        graphs = list(entry["graphs"].values())
        # OpenVINO reads the weights of an `.xml` file from the `.bin` file next to it.
        weights = [f"{name.removesuffix('.xml')}.bin" for name in graphs if manifest["runtime"] == "openvino"]
        for name in (*graphs, *weights, entry["tokenizer"]):
            if name not in files:
                raise ExportError(f"{folder}: the file {name!r} of {task!r} is not among the files of the manifest")
        for role in _ROLES.get(task, ()):
            if role not in entry["graphs"]:
                raise ExportError(f"{folder}: {task!r} lacks the graph {role!r}; export again")
        _check_settings(task, entry)


def _check_settings(task: str, entry: Mapping[str, Any]) -> None:
    """Raise `ExportError` for sizes that no export has: they would take all memory."""
    image, ids, shapes = entry["image"], entry["special_ids"], entry["shapes"]
    _check_size(task, "image.size", image["size"], 1, _MAX_SIDE)
    for name in ("mean", "std"):
        if len(image[name]) != 3 or not all(isinstance(value, (int, float)) for value in image[name]):
            raise ExportError(f"{task}: image.{name} must be three numbers, got {image[name]!r}; export again")
    for name in ("layers", "heads", "head_width", "max_positions", "vocab_size"):
        _check_size(task, f"shapes.{name}", shapes[name], 1, _MAX_SHAPE)
    for name in ("pad", "unk", "cls", "sep", "dec", "enc"):
        _check_size(task, f"special_ids.{name}", ids[name], 0, shapes["vocab_size"] - 1)


def _check_size(task: str, name: str, value: object, minimum: int, maximum: int) -> None:
    if not isinstance(value, int) or not minimum <= value <= maximum:
        raise ExportError(f"{task}: {name} must be from {minimum} to {maximum}, got {value!r}; export again")


def _check_name(name: str) -> None:
    """Raise `ExportError` unless a name is that of a plain file inside the folder, on any system."""
    if not name or name in (".", "..", FILE) or any(character in name for character in "/\\:\0"):
        raise ExportError(f"the manifest must name plain files inside its folder, got {name!r}")
