"""Exported graphs and folders: agreement with PyTorch, what a folder contains, and what is refused.

One export of all tasks serves the file: converting a graph takes a second.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from openblip.checkpoints import bundle, read, write
from openblip.cli import main
from openblip.errors import InputError, UnsupportedTaskError
from openblip.export.graphs import EXPORTED_TASKS, Graph, build_graphs
from openblip.export.onnx import OPSET, convert_to_onnx, quantize, store_in_fp16
from openblip.export.parity import TOLERANCE, compare_graph, compare_results
from openblip.export.run import export_model
from openblip.export.runtime import load_onnx
from openblip.preprocess.settings import ImageSettings
from openblip.tasks import TaskName
from tests.toys import toy_hybrid, toy_model, toy_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of hybrid toys with one image encoder, one for each task."""
    folder = tmp_path_factory.mktemp("source")
    for task in EXPORTED_TASKS:
        prompt = "a picture of " if task == "caption" else None
        image = ImageSettings(size=64)
        write.save(toy_network(task), folder / task, tokenizer=toy_tokenizer(), image=image, prompt=prompt)
    bundle.write(folder, {task: folder / task for task in EXPORTED_TASKS})
    return folder


def toy_network(task: TaskName, *, seed: int = 0) -> Any:
    """A hybrid toy with the image encoder of the captioner and, to save time, one text layer; the captioner has two."""
    layers = 2 if task == "caption" else 1
    model: Any = toy_hybrid(task, seed=seed, text_depth=layers)
    model.vision = toy_hybrid("caption").vision
    return model


@pytest.fixture(scope="module")
def exported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "toys"
    with pytest.raises(SystemExit) as exit_info:
        main(["export", str(source), "--to", "onnx", "--out", str(folder)])
    assert exit_info.value.code == 0
    return folder


def manifest_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return content


def graph_of(task: Any, role: str) -> Graph:
    return next(graph for graph in build_graphs(toy_model(task), task) if graph.role == role)


def test_all_graphs_and_results_agree_with_pytorch(exported: Path) -> None:
    report = json.loads((exported / "parity.json").read_text())
    assert report["passed"]
    assert {(entry["task"], entry["role"]) for entry in report["graphs"]} == {
        (task, role) for task, entry in manifest_of(exported)["tasks"].items() for role in entry["graphs"]
    }
    assert max(entry["error"] for entry in report["graphs"]) < TOLERANCE
    assert len(report["results"]) == 9
    for result in report["results"]:
        assert result["equal"] == result["items"] > 0
    assert "caption, 3 beams: 4 of 4 equal" in (exported / "parity.txt").read_text()


def test_the_manifest_lists_every_file(exported: Path) -> None:
    manifest = manifest_of(exported)
    assert manifest["files"].keys() | {"manifest.json"} == {path.name for path in exported.iterdir()}
    for name, entry in manifest["files"].items():
        assert entry["bytes"] == (exported / name).stat().st_size
    named = {file for task in manifest["tasks"].values() for file in task["graphs"].values()}
    assert named | {"tokenizer.json", "parity.json", "parity.txt"} == manifest["files"].keys()
    assert manifest["tasks"].keys() == set(EXPORTED_TASKS)


def test_tasks_share_the_stem_and_the_tokenizer(exported: Path) -> None:
    tasks = manifest_of(exported)["tasks"]
    assert {task["graphs"]["stem"] for task in tasks.values()} == {"stem.onnx"}
    assert {task["tokenizer"] for task in tasks.values()} == {"tokenizer.json"}
    assert len({task["graphs"]["image_encoder"] for task in tasks.values()}) == 1, "equal weights, one file"


def test_the_manifest_has_the_settings_of_the_pipelines(exported: Path) -> None:
    tasks = manifest_of(exported)["tasks"]
    tokenizer = toy_tokenizer()
    assert tasks["caption"]["prompt_ids"] == tokenizer.encode_prompt("a picture of ")
    assert tasks["caption"]["generation"]["max_new_tokens"] == 16
    assert tasks["vqa"]["generation"]["max_new_tokens"] == 9
    assert tasks["vqa"]["text"] == {"clean": "question", "first_token": "enc", "max_words": 50, "max_tokens": 35}
    assert tasks["retrieval"]["temperature"] == pytest.approx(0.07)
    assert tasks["grounding"]["box"] == {"start_id": 500, "bins": 40, "reading": "likeliest"}
    assert tasks["nlvr"]["special_ids"] == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "dec": 598, "enc": 599}
    assert tasks["caption"]["shapes"]["image_tokens"] == 5


def test_axes_have_readable_names(exported: Path) -> None:
    model = onnx.load(exported / "vqa.decoder_step.onnx")
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes["input_ids"] == ["images", "width", "tokens"]
    assert shapes["past_keys"] == [1, "images", "width", 4, "past", 8]
    assert shapes["memory_mask"] == ["images", "memory"]
    assert shapes["memory_value_0"] == ["images", 4, "memory", 8]
    assert shapes["logits"] == ["images", "width", 600]
    assert shapes["keys"] == [1, "images", "width", 4, "past + tokens", 8]
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node), "no paths of the source"


def test_the_word_embedding_is_stored_once(exported: Path) -> None:
    """It is also the output matrix of the language head."""
    model = onnx.load(exported / "caption.decoder_step.onnx")
    large = [tensor for tensor in model.graph.initializer if sorted(tensor.dims) == [32, 600]]
    assert len(large) == 1


def test_fp16_halves_the_file_and_computes_in_fp32(exported: Path, tmp_path: Path) -> None:
    path = exported / "caption.decoder_step.onnx"
    stored = store_in_fp16(onnx.load(path))
    onnx.save(stored, tmp_path / "half.onnx")
    weights = sum(t.ByteSize() for t in onnx.load(path).graph.initializer)
    half_weights = sum(t.ByteSize() for t in stored.graph.initializer)
    assert half_weights < 0.6 * weights
    graph = graph_of_source("caption", "decoder_step")
    error = compare_graph(graph, load_onnx(tmp_path / "half.onnx"), "caption", "half.onnx").error
    assert 0 < error < 0.01
    assert {value.type.tensor_type.elem_type for value in stored.graph.output} == {onnx.TensorProto.FLOAT}


def test_weights_beyond_fp16_stay_in_fp32() -> None:
    values = np.full(300, 1e6, np.float32)
    tensor = onnx.numpy_helper.from_array(values, "large")
    graph = onnx.helper.make_graph([], "g", [], [], [tensor])
    stored = store_in_fp16(onnx.helper.make_model(graph))
    assert [t.data_type for t in stored.graph.initializer] == [onnx.TensorProto.FLOAT]


def test_int8_quantizes_linear_layers(exported: Path, tmp_path: Path) -> None:
    path = exported / "retrieval.match.onnx"
    model = quantize(onnx.load(path))
    onnx.save(model, tmp_path / "int8.onnx")
    assert (tmp_path / "int8.onnx").stat().st_size < 0.7 * path.stat().st_size
    assert any(node.op_type == "MatMulInteger" for node in model.graph.node)
    graph = graph_of_source("retrieval", "match")
    assert compare_graph(graph, load_onnx(tmp_path / "int8.onnx"), "retrieval", "int8.onnx").error < 0.2


def graph_of_source(task: Any, role: str) -> Graph:
    """A graph of the toys that the fixture exports."""
    return next(graph for graph in build_graphs(toy_network(task), task) if graph.role == role)


def test_a_wrong_graph_fails_the_report(exported: Path) -> None:
    runner = load_onnx(exported / "caption.image_memory.onnx")
    other = next(g for g in build_graphs(toy_network("caption", seed=1), "caption") if g.role == "image_memory")
    assert compare_graph(other, runner, "caption", "caption.image_memory.onnx").error > 0.1


def test_openvino_reads_the_graphs_with_their_names(exported: Path, source: Path, tmp_path: Path) -> None:
    """The conversion is the one of `--to openvino`, without exporting the graphs again."""
    pytest.importorskip("openvino")
    from openblip.export.run import save_openvino
    from openblip.export.runtime import load_openvino

    entry = manifest_of(exported)["tasks"]["caption"]["graphs"]
    runners = {}
    for role, file in entry.items():
        save_openvino(exported / file, tmp_path / f"{role}.xml", "fp32")
        runners[role] = load_openvino(tmp_path / f"{role}.xml")
    results = compare_results(read.load(source / "caption"), "caption", runners)
    assert [(result.equal, result.items) for result in results] == [(4, 4), (4, 4)]
    assert max(result.error for result in results) < TOLERANCE


def test_a_plain_vit_and_a_pretrained_network_export(tmp_path: Path) -> None:
    """The pretraining network serves two tasks; its decoder has a self-attention of its own."""
    model = toy_model("pretrain")
    assert {task: [graph.role for graph in build_graphs(model, task)] for task in ("caption", "retrieval")} == {
        "caption": ["image_encoder", "image_memory", "decoder_step"],
        "retrieval": ["image_encoder", "image_memory", "match", "image_embedding", "text_embedding"],
    }
    encoder = build_graphs(model, "caption")[0]
    onnx.save(convert_to_onnx(encoder), tmp_path / "encoder.onnx")
    assert compare_graph(encoder, load_onnx(tmp_path / "encoder.onnx"), "caption", "encoder.onnx").error < TOLERANCE
    pixels = torch.rand(2, 3, 32, 32)
    vision = cast(nn.Module, model.vision)
    assert torch.allclose(encoder.module(pixels), vision(pixels), atol=1e-6)


def test_a_task_that_the_model_does_not_serve_is_refused() -> None:
    with pytest.raises(UnsupportedTaskError, match="got 'vqa' for Captioner"):
        build_graphs(toy_model("caption"), "vqa")


def test_wrong_arguments_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"to must be one of onnx, openvino, got 'onx'; did you mean onnx\?"):
        export_model(source, tmp_path / "a", to="onx")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="precision must be one of fp32, fp16, int8, got 'bf16'"):
        export_model(source, tmp_path / "a", precision="bf16")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="task must be one of caption, vqa, retrieval, grounding, nlvr, got 'visdial'"):
        export_model(source, tmp_path / "a", tasks=["visdial"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(InputError, match="exists and is no export to overwrite"):
        export_model(source, tmp_path / "full", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_the_command_line_refuses_to_overwrite(
    source: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["export", str(source), "--out", str(exported)])
    assert exit_info.value.code == 2
    assert "exists" in capsys.readouterr().err
