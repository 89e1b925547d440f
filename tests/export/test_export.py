"""Exported graphs and folders: agreement with PyTorch, what a folder contains, and what is refused.

One export of all tasks serves the file: converting a graph takes a second.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import openblip
from openblip.checkpoints import read, write
from openblip.checkpoints.folder import write_bundle
from openblip.cli import main
from openblip.errors import InputError, UnsupportedTaskError
from openblip.export.graphs import EXPORTED_TASKS, Graph, build_graphs
from openblip.export.manifest import describe_folder, describe_task
from openblip.export.onnx import OPSET, convert_to_onnx, quantize, store_in_fp16
from openblip.export.parity import TOLERANCE, compare_graph, compare_results
from openblip.export.run import export_model, save_openvino
from openblip.export.runtime import load_onnx, load_openvino
from openblip.generation import GenerationDefaults
from openblip.preprocess.settings import ImageSettings
from openblip.tasks import TaskName
from openblip_portable import Answerer, Captioner, Comparer, Embedder, ExportError, ExportFolder, Grounder, Matcher
from openblip_portable import InputError as InputErrorOfPortable
from openblip_portable.cli import main as portable_main
from tests.toys import toy_hybrid, toy_image, toy_model, toy_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of hybrid toys with one image encoder, one for each task."""
    folder = tmp_path_factory.mktemp("source")
    for task in EXPORTED_TASKS:
        prompt = "a picture of " if task == "caption" else None
        image = ImageSettings(size=64)
        write.save(toy_network(task), folder / task, tokenizer=toy_tokenizer(), image=image, prompt=prompt)
    write_bundle(folder, {task: folder / task for task in EXPORTED_TASKS})
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


@pytest.fixture(scope="module")
def folder(exported: Path) -> ExportFolder:
    """The export as `openblip-portable` opens it, with one thread."""
    return ExportFolder(exported, threads=1)


@pytest.fixture(scope="module")
def blip(source: Path) -> openblip.Blip:
    return openblip.load(source, engine="torch", precision="fp32")


IMAGES = [toy_image(seed, 60 + 30 * seed, 50) for seed in range(5)]
TEXTS = ["a dog on the grass", "two people", "is the sky blue?"]


def approx(results: Any) -> Any:
    """Results as dictionaries whose numbers may differ a little."""
    if isinstance(results, list):
        return [approx(result) for result in results]
    if isinstance(results, dict):
        return {key: approx(value) for key, value in results.items()}
    return pytest.approx(results, abs=2e-5, rel=2e-6) if isinstance(results, float) else results


def as_dicts(results: Any) -> Any:
    return [as_dicts(result) for result in results] if isinstance(results, list) else results.to_dict()


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


@pytest.fixture(scope="module")
def openvino_folder(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The captioner as `--to openvino` writes it, without exporting the graphs again."""
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("openvino")
    task = manifest_of(exported)["tasks"]["caption"]
    for role, file in task["graphs"].items():
        save_openvino(exported / file, folder / f"{role}.xml", "fp32")
        task["graphs"][role] = f"{role}.xml"
    shutil.copy(exported / "tokenizer.json", folder)
    write_manifest(folder, {"caption": task}, runtime="openvino", precision="fp32")
    return folder


def test_openvino_agrees_with_pytorch(openvino_folder: Path, source: Path) -> None:
    graphs = manifest_of(openvino_folder)["tasks"]["caption"]["graphs"]
    runners = {role: load_openvino(openvino_folder / file) for role, file in graphs.items()}
    results = compare_results(read.load(source / "caption"), "caption", runners)
    assert [(result.equal, result.items) for result in results] == [(4, 4), (4, 4)]
    assert max(result.error for result in results) < TOLERANCE


def test_portable_runs_openvino(openvino_folder: Path, blip: openblip.Blip) -> None:
    captions = Captioner(openvino_folder, threads=1).caption(IMAGES[:2])
    assert as_dicts(captions) == approx(as_dicts(blip.caption(IMAGES[:2])))


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
    with pytest.raises(InputError, match="must be empty or not exist"):
        export_model(source, tmp_path / "full", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_the_command_line_refuses_to_overwrite(
    source: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["export", str(source), "--out", str(exported)])
    assert exit_info.value.code == 2
    assert "must be empty or not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 1},
        {},
        {"n": 3},
        {"num_beams": 2, "max_new_tokens": 5, "length_penalty": 2.0},
        {"num_beams": 1, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "min_new_tokens": 4},
        {"num_beams": 3, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 6},
        {"num_beams": 400, "max_new_tokens": 2},  # more candidates than the vocabulary has words
        {"do_sample": True, "seed": 0},
        {"do_sample": True, "seed": -5, "n": 3, "top_k": 40, "top_p": 1.0, "temperature": 2.0},
        {"do_sample": True, "seed": 2**40 + 7, "n": 2, "repetition_penalty": 1.5, "trim": True},
        {"trim": True, "n": 2, "max_new_tokens": 5},
    ],
    ids=str,
)
def test_portable_captions_are_openblips(folder: ExportFolder, blip: openblip.Blip, options: dict[str, Any]) -> None:
    expected = blip.caption(IMAGES, **options)
    captions = Captioner(folder, batch_size=2).caption(IMAGES, **options)
    assert len({caption.text for caption in captions}) > 1
    assert as_dicts(captions) == approx(as_dicts(expected))


def test_portable_follows_the_decoding_defaults_of_the_model(
    source: Path, exported: Path, blip: openblip.Blip, tmp_path: Path
) -> None:
    loaded = dataclasses.replace(read.load(source / "caption"), generation=GenerationDefaults(no_repeat_ngram_size=1))
    entry: Any = describe_task(loaded, "caption", {}, "tokenizer.json")
    shutil.copytree(exported, tmp_path / "toys")
    manifest = json.loads((exported / "manifest.json").read_text())
    manifest["tasks"]["caption"]["generation"] = entry["generation"]
    (tmp_path / "toys" / "manifest.json").write_text(json.dumps(manifest))
    captioner = Captioner(tmp_path / "toys", threads=1)
    options: dict[str, Any] = {"min_new_tokens": 12}
    default, loops = (captioner.caption(IMAGES, no_repeat_ngram_size=size, **options) for size in (None, 0))
    assert [caption.text for caption in default] != [caption.text for caption in loops]
    assert as_dicts(default) == approx(as_dicts(blip.caption(IMAGES, no_repeat_ngram_size=1, **options)))
    assert as_dicts(loops) == approx(as_dicts(blip.caption(IMAGES, **options)))


@pytest.mark.parametrize("num_beams", [1, 2, 4])
@pytest.mark.parametrize("prompt", [None, "a dog"])
def test_portable_forbids_and_requires_words_as_openblip(
    folder: ExportFolder, blip: openblip.Blip, num_beams: int, prompt: str | None
) -> None:
    captioner = Captioner(folder, batch_size=2)
    words = [word for caption in blip.caption(IMAGES, num_beams=num_beams) for word in caption.text.split()]
    common = [word for word in dict.fromkeys(words) if word.isalpha()][:6]
    constraints: list[dict[str, Any]] = [
        {"forbid": common},
        {"require": ["dog", ["two people", "sky"]]},
        {"require": ["grass"], "forbid": common[:3], "n": num_beams, "trim": True},
        {"require": ["grass"], "max_new_tokens": 2},  # met or not, both agree
    ]
    for options in constraints:
        options = {"num_beams": num_beams, "prompt": prompt, **options}
        expected, captions = blip.caption(IMAGES[:3], **options), captioner.caption(IMAGES[:3], **options)
        assert as_dicts(captions) == approx(as_dicts(expected)), options
        if "forbid" in options:
            assert not set(options["forbid"]) & {word for caption in captions for word in caption.text.split()[2:]}
        if num_beams > 1 and "max_new_tokens" not in options:
            assert not any(caption.unmet for caption in captions)


def test_portable_refuses_contradictory_caption_options(folder: ExportFolder) -> None:
    captioner = Captioner(folder)
    cases: dict[str, dict[str, Any]] = {
        "seed needs do_sample=True, got seed=1": {"seed": 1},
        "num_beams must be 1 with do_sample=True, got 3": {"do_sample": True, "num_beams": 3},
        "seed must be an integer of at most 64 bits, got 1.5": {"do_sample": True, "seed": 1.5},
        "top_p must be above 0 and at most 1, got 0": {"do_sample": True, "top_p": 0.0},
        "forbid must be a list of words, got 'dog'": {"forbid": "dog"},
        "require must name words that forbid allows, got dog": {"forbid": ["dog"], "require": ["dog"]},
        "require must name words that the model's vocabulary can spell": {"require": ["\u732b"]},
    }
    for message, options in cases.items():
        with pytest.raises(InputErrorOfPortable, match=message):
            captioner.caption(IMAGES[0], **options)


def test_samples_without_a_seed_differ(folder: ExportFolder) -> None:
    captions = Captioner(folder).caption([IMAGES[0]] * 6, do_sample=True, temperature=3.0)
    assert len({caption.text for caption in captions}) > 1


def test_portable_captions_continue_prompts_of_any_length(folder: ExportFolder, blip: openblip.Blip) -> None:
    prompts = ["a", None, "a photo of the", "a dog", None]
    expected = blip.caption(IMAGES, prompt=prompts)
    assert as_dicts(Captioner(folder).caption(IMAGES, prompt=prompts)) == approx(as_dicts(expected))
    assert Captioner(folder).caption(IMAGES[1], prompt="the").text == blip.caption(IMAGES[1], prompt="the").text


def test_portable_answers_are_openblips(folder: ExportFolder, blip: openblip.Blip) -> None:
    answerer = Answerer(folder, batch_size=3)
    assert as_dicts(answerer.ask(IMAGES, TEXTS[2])) == approx(as_dicts(blip.ask(IMAGES, TEXTS[2])))
    assert as_dicts(answerer.ask(IMAGES[0], TEXTS, n=2)) == approx(as_dicts(blip.ask(IMAGES[0], TEXTS, n=2)))
    closed: dict[str, Any] = {"answers": ["yes", "no", "two people", "two dogs"], "n": 4}
    expected = as_dicts(blip.ask(IMAGES[:3], TEXTS, **closed))
    assert as_dicts(answerer.ask(IMAGES[:3], TEXTS, **closed)) == approx(expected)


def test_portable_matches_and_labels_are_openblips(folder: ExportFolder, blip: openblip.Blip) -> None:
    matcher = Matcher(folder, batch_size=2)
    assert as_dicts(matcher.match(IMAGES, TEXTS)) == approx(as_dicts(blip.match(IMAGES, TEXTS)))
    assert as_dicts(matcher.match(IMAGES[0], "a dog")) == approx(as_dicts(blip.match(IMAGES[0], "a dog")))
    paired = as_dicts(blip.match(IMAGES[:3], TEXTS, paired=True))
    assert as_dicts(matcher.match(IMAGES[:3], TEXTS, paired=True)) == approx(paired)
    for by in ("itc", "itm"):
        labels: dict[str, Any] = {"labels": ["dog", "cat", "sky"], "by": by, "n": 3}
        assert as_dicts(matcher.classify(IMAGES, **labels)) == approx(as_dicts(blip.classify(IMAGES, **labels)))


def test_portable_embeddings_are_openblips(folder: ExportFolder, blip: openblip.Blip) -> None:
    embedder = Embedder(folder, batch_size=2)
    assert np.allclose(embedder.embed_images(IMAGES), blip.embed_images(IMAGES), atol=1e-5)
    assert np.allclose(embedder.embed_texts(TEXTS), blip.embed_texts(TEXTS), atol=1e-5)
    assert embedder.embed_texts("a dog").shape == embedder.embed_images(IMAGES[0]).shape == (16,)
    assert embedder.embed_images([]).shape == embedder.embed_texts([]).shape == (0, 16)


def test_portable_boxes_are_openblips(folder: ExportFolder, blip: openblip.Blip) -> None:
    grounder = Grounder(folder, batch_size=2)
    assert as_dicts(grounder.ground(IMAGES, "the dog")) == approx(as_dicts(blip.ground(IMAGES, "the dog")))
    assert as_dicts(grounder.ground(IMAGES[3], TEXTS)) == approx(as_dicts(blip.ground(IMAGES[3], TEXTS)))


def test_portable_comparisons_are_openblips(folder: ExportFolder, blip: openblip.Blip) -> None:
    comparer, right = Comparer(folder, batch_size=2), IMAGES[::-1]
    expected = as_dicts(blip.compare(IMAGES, right, "both show a dog"))
    assert as_dicts(comparer.compare(IMAGES, right, "both show a dog")) == approx(expected)
    expected = as_dicts(blip.compare(IMAGES[0], IMAGES[1], TEXTS))
    assert as_dicts(comparer.compare(IMAGES[0], IMAGES[1], TEXTS)) == approx(expected)


def test_the_comparison_of_runtimes_finds_differences(
    folder: ExportFolder, blip: openblip.Blip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal tokens in PyTorch and onnxruntime; for tokens that differ, how close PyTorch's decision was."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples" / "browser" / "tests"))
    runtimes = importlib.import_module("compare_runtimes")
    image = tmp_path / "image.png"
    IMAGES[0].save(image)
    reference, result = runtimes.describe_with_torch(blip, image), runtimes.describe_with_portable(folder, image)
    comparison = runtimes.Comparison(1)
    comparison.add("onnxruntime", "image.png", reference, result)
    assert comparison.differences == {"onnxruntime": []}
    assert comparison.passed
    greedy, beams = runtimes.SEARCHES[:2]
    assert [len(result.texts[search]) for search in runtimes.SEARCHES] == [1, 3, 1, 3]
    ids = reference.description.texts[greedy][0]
    sums, margins = reference.trace("caption", ids)
    expected = blip.caption(image, num_beams=1)
    assert sums[-1] == pytest.approx(expected.logprob, rel=1e-5)
    assert min(margins) >= 0

    changed = {**result.texts, greedy: [[*ids[:2], ids[2] + 1, *ids[3:]]], beams: result.texts[beams][::-1]}
    comparison.add("other", "image.png", reference, dataclasses.replace(result, texts=changed))
    differences = comparison.differences["other"]
    assert [(found.search, found.rank) for found in differences] == [(greedy, 0), (beams, 0), (beams, 2)]
    assert differences[0].step == 2
    assert differences[0].margin == margins[2]
    assert differences[1].margin == pytest.approx(differences[2].margin)
    assert differences[1].margin > 0
    assert not comparison.passed
    assert "captions, greedy, text 1, token 2, margin" in comparison.to_text()
    assert comparison.to_dict()["runtimes"]["other"]["images_with_equal_tokens"] == 0


def test_portable_results_have_the_shape_of_the_input(folder: ExportFolder) -> None:
    captioner = Captioner(folder, batch_size=2)
    texts = [caption.text for caption in captioner.caption(IMAGES, num_beams=1)]
    assert [caption.text for caption in captioner.caption(iter(IMAGES), num_beams=1)] == texts
    assert captioner.caption(IMAGES[2], num_beams=1).text == texts[2], "one image alone gives what its batch gave"
    assert captioner.caption([]) == []


def test_int8_results_do_not_depend_on_the_batch(exported: Path, tmp_path: Path) -> None:
    """onnxruntime rounds all rows of a call with one scale, so each image and text is a call of its own."""
    entry = manifest_of(exported)["tasks"]["retrieval"]
    for role, file in entry["graphs"].items():
        model = onnx.load(exported / file)
        onnx.save(quantize(model) if role in ("match", "text_embedding") else model, tmp_path / file)
    shutil.copy(exported / "tokenizer.json", tmp_path)
    write_manifest(tmp_path, {"retrieval": entry}, runtime="onnx", precision="int8")
    matcher = Matcher(tmp_path, threads=1)
    together = [[match.probability for match in matches] for matches in matcher.match(IMAGES[:3], TEXTS)]
    assert together == [[matcher.match(image, text).probability for text in TEXTS] for image in IMAGES[:3]]


def write_manifest(folder: Path, tasks: dict[str, Any], *, runtime: str, precision: str) -> None:
    content = describe_folder(folder, tasks, runtime=runtime, precision=precision, opset=OPSET, source="toys")
    (folder / "manifest.json").write_text(json.dumps(content))


def copy_of(exported: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object] | None = None) -> Path:
    """A copy of an export, its manifest changed."""
    folder = tmp_path / "copy"
    shutil.copytree(exported, folder)
    if change is not None:
        manifest = manifest_of(folder)
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_an_incomplete_export_is_refused(exported: Path, tmp_path: Path) -> None:
    folder = copy_of(exported, tmp_path)
    stem = folder / "stem.onnx"
    content = stem.read_bytes()
    stem.write_bytes(content[:-1])
    with pytest.raises(ExportError, match=r"stem\.onnx must have \d+ bytes, got \d+: it was cut off"):
        Captioner(folder)
    stem.unlink()
    with pytest.raises(ExportError, match=r"lacks stem\.onnx, which its manifest lists"):
        Captioner(folder)
    stem.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(ExportError, match=r"stem\.onnx is damaged: its SHA-256 differs"):
        ExportFolder(folder).verify()
    (folder / "manifest.json").unlink()
    with pytest.raises(ExportError, match=r"has no manifest\.json: it is no export, or .* cut off"):
        Captioner(folder)
    with pytest.raises(ExportError, match="there is none"):
        Captioner(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "a\\b", "C:x", "", "..", ".", "manifest.json"])
def test_names_outside_the_folder_are_refused(exported: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    folder = copy_of(exported, tmp_path, lambda m: m["files"].update({name: {"bytes": 1, "sha256": ""}}))
    with pytest.raises(ExportError, match="must name plain files inside its folder"):
        ExportFolder(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", "other", "must have the format 'openblip-export'"),
        ("format_version", 2, r"has format version 2 \(openblip .*reads version 1; export again"),
        ("format_version", None, "has format version None"),
        ("precision", "fp64", "the precision must be one of fp32, fp16, int8, got 'fp64'"),
        ("precision", ["fp32"], "the precision must be one of"),
        ("runtime", "openvino", r"the file '.*\.bin' of '.*' is not among"),
        ("runtime", {"a": 1}, "is damaged"),
        ("tasks", {"caption": None}, "is damaged"),
        ("tasks", ["caption"], "is damaged"),
        ("runtime", "tflite", "the runtime must be one of onnx, openvino, got 'tflite'"),
        ("files", None, "is damaged"),
        ("tasks", {"caption": {"graphs": {"stem": "x.onnx"}, "tokenizer": "t"}}, "'x.onnx' of 'caption' is not among"),
    ],
)
def test_other_versions_and_damaged_manifests_are_refused(
    exported: Path, tmp_path: Path, key: str, value: Any, message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        ExportFolder(copy_of(exported, tmp_path, lambda manifest: manifest.update({key: value})))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda task: task["image"].update(size=10**9), r"image\.size must be from 1 to 4096, got 1000000000"),
        (lambda task: task["image"].update(size="64"), r"image\.size must be from 1 to 4096, got '64'"),
        (lambda task: task["image"].update(mean=[0.5]), r"image\.mean must be three numbers"),
        (lambda task: task["shapes"].update(layers=10**12), r"shapes\.layers must be from 1 to"),
        (lambda task: task["special_ids"].update(sep=-1), r"special_ids\.sep must be from 0 to 599, got -1"),
        (lambda task: task["special_ids"].pop("dec"), "is damaged: KeyError 'dec'"),
        (lambda task: task["graphs"].pop("decoder_step"), "'caption' lacks the graph 'decoder_step'"),
        (lambda task: task["graphs"].update(stem=["stem.onnx"]), "is damaged"),
    ],
    ids=str,
)
def test_settings_that_no_export_has_are_refused(
    exported: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        ExportFolder(copy_of(exported, tmp_path, lambda manifest: change(manifest["tasks"]["caption"])))


def test_graphs_that_cannot_run_are_named(exported: Path, tmp_path: Path) -> None:
    """Sizes and names fit the manifest, but the content is cut off, or that of another graph."""
    folder = copy_of(exported, tmp_path)
    image = IMAGES[0]
    path = folder / "caption.decoder_step.onnx"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2] + bytes(size - size // 2))
    with pytest.raises(ExportError, match=r"decoder_step\.onnx cannot be loaded"):
        Captioner(folder).caption(image)
    manifest = manifest_of(folder)
    manifest["tasks"]["caption"]["graphs"]["decoder_step"] = manifest["tasks"]["vqa"]["graphs"]["image_memory"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ExportError, match=r"image_memory\.onnx cannot be run"):
        Captioner(folder).caption(image)
    (folder / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(ExportError, match=r"manifest\.json cannot be read"):
        ExportFolder(folder)
    with (folder / "manifest.json").open("wb") as file:
        file.truncate(1 << 34)
    with pytest.raises(ExportError, match="must have at most"):
        ExportFolder(folder)


def test_a_task_that_was_not_exported_is_named(exported: Path, tmp_path: Path) -> None:
    folder = copy_of(exported, tmp_path, lambda manifest: manifest["tasks"].pop("vqa"))
    with pytest.raises(ExportError, match=r"has no 'vqa', only caption, .*; export it with --task vqa"):
        Answerer(folder)


@pytest.mark.slow
def test_the_command_line_writes_openvino_and_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("nncf")
    image = ImageSettings(size=64)
    write.save(toy_network("nlvr"), tmp_path / "model", tokenizer=toy_tokenizer(), image=image)
    for options in ([], ["--overwrite", "--precision", "int8"]):
        with pytest.raises(SystemExit) as exit_info:
            main(["export", str(tmp_path / "model"), "--to", "openvino", "--out", str(tmp_path / "out"), *options])
        assert exit_info.value.code == 0
        output = capsys.readouterr().out
        assert output.startswith("Parity with PyTorch: openvino"), "nothing else is on standard output"
    assert {path.name for path in tmp_path.iterdir()} == {"model", "out"}
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".xml", ".bin", ".json", ".txt"}
    assert manifest_of(tmp_path / "out")["precision"] == "int8"
    comparison = Comparer(tmp_path / "out", threads=1).compare(IMAGES[0], IMAGES[1], "two dogs")
    expected = openblip.load(tmp_path / "model").compare(IMAGES[0], IMAGES[1], "two dogs")
    assert comparison.probability == pytest.approx(expected.probability, abs=0.1)


def test_the_portable_command_line(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: ExportFolder
) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    IMAGES[0].save(good)
    bad.write_bytes(b"no image")
    model = ["--model", str(exported), "--threads", "1"]
    assert portable_main(["caption", str(good), *model]) == 0
    text = Captioner(folder).caption(good).text
    assert capsys.readouterr().out == f"{text}\n"
    assert portable_main(["caption", "--json", str(bad), str(good), *model]) == 3
    output = capsys.readouterr()
    assert json.loads(output.out)["text"] == text
    assert f"cannot read {bad}" in output.err
    assert portable_main(["check", *model]) == 0
    assert "complete: caption, vqa, retrieval, grounding, nlvr" in capsys.readouterr().out
    assert portable_main(["caption", str(good), "--model", str(tmp_path)]) == 1
    assert "has no manifest.json" in capsys.readouterr().err
