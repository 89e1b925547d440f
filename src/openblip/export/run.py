"""Export of a model, or of the models of a bundle, to a folder that runs without PyTorch."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from sys import stderr
from typing import Literal, TypeAlias, get_args

from openblip.checkpoints import read
from openblip.checkpoints.folder import Bundle
from openblip.checkpoints.read import LoadedModel
from openblip.checkpoints.resolve import resolve
from openblip.engine.openvino.compiled import import_extra
from openblip.errors import CheckpointError, InputError
from openblip.export import manifest
from openblip.export.graphs import EXPORTED_TASKS, Graph, build_graphs
from openblip.export.libraries import import_onnx
from openblip.export.onnx import OPSET, convert_to_onnx, quantize, store_in_fp16
from openblip.export.parity import GraphParity, ParityReport, ResultParity, compare_graph, compare_results
from openblip.export.runtime import LOADERS
from openblip.io import atomic
from openblip.tasks import SERVED_TASKS, TaskName, check, did_you_mean

RuntimeName: TypeAlias = Literal["onnx", "openvino"]
StoredPrecision: TypeAlias = Literal["fp32", "fp16", "int8"]
RUNTIMES: tuple[RuntimeName, ...] = get_args(RuntimeName)
PRECISIONS: tuple[StoredPrecision, ...] = get_args(StoredPrecision)


def export_model(
    source: str | Path,
    out: str | Path,
    *,
    to: RuntimeName = "onnx",
    tasks: Sequence[TaskName] = (),
    precision: StoredPrecision = "fp32",
    overwrite: bool = False,
    offline: bool | None = None,
) -> ParityReport:
    """Write a folder with the graphs of a model, its tokenizer and settings, a parity report and a manifest.

    The tasks of a bundle share equal tokenizers, and graphs with equal weights. The folder is written atomically.

    Args:
        source: Folder, file, hub id, published name or bundle of the model.
        out: The folder to write.
        to: "onnx" or "openvino".
        tasks: Tasks to export; by default all tasks of the model.
        precision: Precision of the stored weights: "fp32", "fp16" (computes in fp32), or "int8" (dynamic quantization
            by onnxruntime, or weight compression by NNCF).
        overwrite: Replace an earlier export. Otherwise the folder must be empty or not exist.
        offline: Use no network; by default as `HF_HUB_OFFLINE` says.

    Returns:
        The parity report, which is also written to `parity.json` and `parity.txt`.

    Raises:
        InputError: An option is unknown, a library is missing, or the folder is not empty.
        UnsupportedTaskError: The model does not support a task.
        CheckpointError: The model cannot be read, or with "fp32" the graphs disagree with PyTorch.
    """
    for label, value, choices in (("to", to, RUNTIMES), ("precision", precision, PRECISIONS)):
        if value not in choices:
            hint = did_you_mean(value, choices)
            raise InputError(f"{label} must be one of {', '.join(choices)}, got {value!r}{hint}")
    for task in tasks:
        check(task, EXPORTED_TASKS)
    target = Path(out)
    is_export = overwrite and (target / manifest.FILE).is_file()
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not is_export):
        raise InputError(f"{target} must be empty or not exist; choose another folder, or overwrite an earlier export")
    import_onnx("onnxruntime")
    if to == "openvino":
        import_extra("openvino")
    with atomic.create_folder(target) as folder:
        writer = _FolderWriter(folder, to, precision)
        for task, loaded in _load_models(source, tasks, offline):
            writer.add_task(task, loaded)
        report = ParityReport(to, precision, tuple(writer.graphs), tuple(writer.results))
        if precision == "fp32" and not report.passed:
            raise CheckpointError(
                f"the exported graphs disagree with PyTorch, so nothing was written:\n{report.to_text()}"
            )
        atomic.write_json(folder / "parity.json", report.to_dict())
        atomic.write_text(folder / "parity.txt", report.to_text())
        content = manifest.describe_folder(
            folder, writer.tasks, runtime=to, precision=precision, opset=OPSET, source=Path(source).name
        )
        atomic.write_json(folder / manifest.FILE, content)
        if target.is_dir():
            shutil.rmtree(target)
    return report


@dataclass
class _FolderWriter:
    """Writes the files of one task after another.

    Attributes:
        folder: The folder.
        runtime: "onnx" or "openvino".
        precision: Precision of the stored weights.
    """

    folder: Path
    runtime: RuntimeName
    precision: StoredPrecision
    tasks: dict[str, manifest.JsonObject] = field(default_factory=dict)
    graphs: list[GraphParity] = field(default_factory=list)
    results: list[ResultParity] = field(default_factory=list)
    _files: dict[str, str] = field(default_factory=dict)  # digest -> file

    def add_task(self, task: TaskName, loaded: LoadedModel) -> None:
        """Write the graphs and the tokenizer of a task, and compare them with the model."""
        files, runners = {}, {}
        for graph in build_graphs(loaded.model.float().eval(), task):
            files[graph.role] = self._add_graph(graph, task)
            runners[graph.role] = LOADERS[self.runtime](self.folder / files[graph.role])
            self.graphs.append(compare_graph(graph, runners[graph.role], task, files[graph.role]))
        self.tasks[task] = manifest.describe_task(loaded, task, files, self._add_tokenizer(task, loaded))
        self.results += compare_results(loaded, task, runners)

    def _add_graph(self, graph: Graph, task: TaskName) -> str:
        """Write a graph, unless an equal graph is written already; return its file."""
        suffix = "onnx" if self.runtime == "onnx" else "xml"
        # Only graphs that all tasks of a bundle share have a name without a task.
        name = f"{graph.role}.{suffix}" if graph.role == "stem" else f"{task}.{graph.role}.{suffix}"
        digest = _digest(graph)
        if digest in self._files:
            return self._files[digest]
        if (self.folder / name).exists():
            name = f"{task}.{graph.role}.{suffix}"
        onnx = import_onnx("onnx")
        model = convert_to_onnx(graph)
        path = self.folder / name
        if self.runtime == "onnx":
            model = {"fp32": lambda m: m, "fp16": store_in_fp16, "int8": quantize}[self.precision](model)
            onnx.save(model, path)
        else:
            temporary = path.with_suffix(".onnx")
            onnx.save(model, temporary)
            save_openvino(temporary, path, self.precision)
            temporary.unlink()
        self._files[digest] = name
        return name

    def _add_tokenizer(self, task: TaskName, loaded: LoadedModel) -> str:
        if loaded.tokenizer is None:
            return ""  # `describe_task` raises the error
        temporary = self.folder / "saved"
        loaded.tokenizer.save(temporary)
        saved = temporary / "tokenizer.json"
        digest = hashlib.sha256(saved.read_bytes()).hexdigest()
        if digest not in self._files:
            name = "tokenizer.json" if not (self.folder / "tokenizer.json").exists() else f"{task}.tokenizer.json"
            self._files[digest] = name
            saved.replace(self.folder / name)
        shutil.rmtree(temporary)
        return self._files[digest]


def _load_models(
    source: str | Path, tasks: Sequence[TaskName], offline: bool | None
) -> Iterator[tuple[TaskName, LoadedModel]]:
    """Yield each task with its model, one at a time."""
    bundle = Bundle.find(source)
    if bundle is not None:
        members: Sequence[TaskName] = tasks or [task for task in EXPORTED_TASKS if task in bundle.models]
        for task in members:
            yield task, read.load(resolve(source, task, offline=offline), task=task)
        return
    path = resolve(source, offline=offline)
    loaded = read.load(path)
    served = [task for task in SERVED_TASKS.get(loaded.config.task, ()) if task in EXPORTED_TASKS]
    for task in tasks or served:
        yield task, loaded


def save_openvino(source: Path, target: Path, precision: StoredPrecision) -> None:
    """Convert an ONNX file to OpenVINO. Inputs and outputs keep their names.

    Args:
        source: The `.onnx` file, in float32.
        target: The `.xml` file to write, with a `.bin` next to it.
        precision: Precision of the stored weights.

    Raises:
        InputError: OpenVINO, or NNCF for "int8", is not installed.
    """
    openvino = import_extra("openvino")
    model = openvino.convert_model(source)
    if precision == "int8":
        nncf = import_extra("nncf")
        nncf.set_log_level(logging.WARNING)
        with redirect_stdout(stderr):  # NNCF prints progress, and stdout is for results
            model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    openvino.save_model(model, target, compress_to_fp16=precision == "fp16")


def _digest(graph: Graph) -> str:
    """Return a digest of a graph: its computation, its ports and its weights."""
    digest = hashlib.sha256(f"{graph.role} {graph.inputs} {graph.outputs} {graph.module}".encode())
    for name, tensor in graph.module.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


__all__ = ["PRECISIONS", "RUNTIMES", "RuntimeName", "StoredPrecision", "export_model", "save_openvino"]
