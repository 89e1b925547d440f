"""Hub folders, `tf_model.h5` and Keras' own files: written, read, and refused if they do not fit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

keras = pytest.importorskip("keras", reason="the Keras classes have an environment of their own: make test-keras")

import openblip.keras  # noqa: E402
from openblip.errors import CheckpointError, InputError  # noqa: E402
from openblip.keras import BlipConfig, TFBlipForConditionalGeneration, TFBlipModel, TFBlipVisionModel  # noqa: E402
from tests.keras.cases import CALLS, FIXTURES, GENERATIONS, IDS, PIXELS, TF446, TF446_H5, Case  # noqa: E402
from tests.keras.toys import assert_equal, run  # noqa: E402

Load = Callable[[str], Any]
CAPTIONER = FIXTURES / "BlipForConditionalGeneration"


@pytest.mark.parametrize("case", [case for case in (*CALLS, *GENERATIONS) if case.id in TF446], ids=lambda c: c.id)
def test_outputs_equal_those_of_transformers_4(case: Case, load: Load) -> None:
    """Recorded with transformers 4.46.3 and TensorFlow by `record_tf446.py`."""
    stored = load_file(FIXTURES / case.model / "tf446.safetensors")
    expected = {name: array for name, array in stored.items() if name.split(".")[0] == case.name}
    if "encoder_hidden_states" not in case.inputs:  # there, cross-attention that did not take place has an output, too
        expected = {name: array for name, array in expected.items() if "cross_attentions" not in name}
    inputs = dict(case.inputs)
    if case.method == "generate":  # its default counts the prompt; both stop after the same number of new tokens
        found = np.asarray(load(case.model).generate(**inputs))
        assert found.tolist() == expected[case.name].tolist()
        return
    found_arrays = run(load(case.model), case)
    assert_equal({name: array for name, array in found_arrays.items() if name in expected}, expected)
    assert len(expected) >= 1


@pytest.mark.parametrize("name", TF446_H5)
def test_weights_of_tensorflow_are_read(name: str, load: Load) -> None:
    model = getattr(openblip.keras, f"TF{name}").from_pretrained(FIXTURES / f"{name}-h5")
    expected = load(name).hub_weights()
    found = model.hub_weights()
    assert found.keys() == expected.keys()
    for key, weight in expected.items():
        assert np.array_equal(found[key].to_file(), weight.to_file()), key


@pytest.mark.parametrize("name", ["BlipVisionModel", "BlipTextModel", "BlipModel", "BlipForQuestionAnswering"])
def test_a_saved_folder_has_the_same_files(name: str, load: Load, tmp_path: Path) -> None:
    load(name).save_pretrained(tmp_path)
    stored, written = load_file(FIXTURES / name / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert stored.keys() == written.keys()
    assert all(np.array_equal(stored[key], written[key]) for key in stored)
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (FIXTURES / name, tmp_path))
    for part in before.keys() & {"text_config", "vision_config"}:
        before[part]["dtype"] = "float32"  # loading sets it, as the classes of PyTorch do
    assert before == after
    assert not {path.name for path in tmp_path.iterdir()} - {path.name for path in (FIXTURES / name).iterdir()}


def test_encoders_load_from_the_folder_of_a_full_model(load: Load) -> None:
    vision = TFBlipVisionModel.from_pretrained(FIXTURES / "BlipModel")
    states = load("BlipModel")(input_ids=IDS, pixel_values=PIXELS).vision_model_output.last_hidden_state
    assert np.allclose(vision(PIXELS).last_hidden_state, states, atol=1e-6)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the captioner's folder."""
    shutil.copytree(CAPTIONER, tmp_path / "copy")
    return tmp_path / "copy"


def change(folder: Path, **changes: Any) -> None:
    """Write the weights of a folder with some tensors changed, or removed if `None`."""
    arrays = load_file(folder / "model.safetensors") | changes
    save_file({name: array for name, array in arrays.items() if array is not None}, folder / "model.safetensors")


BIAS = "text_decoder.cls.predictions.bias"


def test_missing_and_unknown_weights_are_errors(folder: Path) -> None:
    change(folder, **{BIAS: None, "extra": np.zeros(3, np.float32)})
    with pytest.raises(CheckpointError, match=rf"1 missing \({BIAS}\); 1 unknown \(extra\)"):
        TFBlipForConditionalGeneration.from_pretrained(folder)
    model, info = TFBlipForConditionalGeneration.from_pretrained(folder, allow_missing=True, output_loading_info=True)
    assert info == {"missing_keys": [BIAS], "unexpected_keys": ["extra"], "mismatched_keys": []}
    assert np.asarray(model.text_decoder.head.bias).any() == False  # noqa: E712  # an array's bool


def test_weights_of_another_shape_are_errors(folder: Path) -> None:
    change(folder, **{BIAS: np.zeros(7, np.float32)})
    with pytest.raises(CheckpointError, match=rf"1 of another shape \({BIAS}\)"):
        TFBlipForConditionalGeneration.from_pretrained(folder)
    _, info = TFBlipForConditionalGeneration.from_pretrained(
        folder, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert info["mismatched_keys"] == [BIAS]


def test_another_model_is_named() -> None:
    with pytest.raises(CheckpointError, match="The file contains a TFBlipForConditionalGeneration"):
        TFBlipModel.from_pretrained(CAPTIONER)


def test_tied_copies_must_be_equal(folder: Path) -> None:
    tied = "text_decoder.cls.predictions.decoder.bias"
    change(folder, **{tied: load_file(folder / "model.safetensors")[BIAS]})
    TFBlipForConditionalGeneration.from_pretrained(folder)
    change(folder, **{tied: np.ones(120, np.float32)})
    with pytest.raises(CheckpointError, match="must equal the tensor that it is tied to"):
        TFBlipForConditionalGeneration.from_pretrained(folder)


def test_damaged_and_absent_files_are_errors(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        TFBlipForConditionalGeneration.from_pretrained(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"must have model\.safetensors or tf_model\.h5, or their shards"):
        TFBlipForConditionalGeneration.from_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="got a pickle of PyTorch"):
        TFBlipForConditionalGeneration.from_pretrained(folder)
    (folder / "tf_model.h5").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"tf_model\.h5 is damaged"):
        TFBlipForConditionalGeneration.from_pretrained(folder)


def test_shards_are_read(folder: Path, load: Load) -> None:
    arrays = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(arrays)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, group in shards.items():
        save_file({name: arrays[name] for name in group}, folder / file)
    index = {"weight_map": {name: file for file, group in shards.items() for name in group}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    model = TFBlipForConditionalGeneration.from_pretrained(folder)
    assert np.array_equal(model.text_decoder.head.bias, load("BlipForConditionalGeneration").text_decoder.head.bias)


def test_half_precision_is_read_and_computed(folder: Path) -> None:
    arrays = {key: array.astype(np.float16) for key, array in load_file(folder / "model.safetensors").items()}
    change(folder, **arrays)
    model = TFBlipForConditionalGeneration.from_pretrained(folder, dtype="mixed_bfloat16")
    output = model(pixel_values=PIXELS, input_ids=IDS)
    assert keras.backend.standardize_dtype(output.logits.dtype) == "bfloat16"
    assert keras.config.dtype_policy().name == "float32", "the policy of other models is as before"


def test_keras_saves_and_loads_models_in_its_own_format(load: Load, tmp_path: Path) -> None:
    model = load("BlipForConditionalGeneration")
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert np.allclose(again(PIXELS, IDS).logits, model(PIXELS, IDS).logits, atol=1e-6)
    model.save_weights(tmp_path / "model.weights.h5")
    fresh = TFBlipForConditionalGeneration(model.config)
    fresh.load_weights(tmp_path / "model.weights.h5")
    assert np.allclose(fresh(PIXELS, IDS).logits, model(PIXELS, IDS).logits, atol=1e-6)


def test_stored_options_of_generate_are_kept(load: Load, tmp_path: Path) -> None:
    model = TFBlipForConditionalGeneration.from_pretrained(CAPTIONER)
    model.generation_config.update(num_beams=3, max_new_tokens=7)
    model.save_pretrained(tmp_path)
    again = TFBlipForConditionalGeneration.from_pretrained(tmp_path)
    assert (again.generation_config.num_beams, again.generation_config.max_new_tokens) == (3, 7)


def test_options_that_do_not_exist_are_errors(tmp_path: Path, load: Load) -> None:
    with pytest.raises(TypeError, match="no option colour"):
        TFBlipForConditionalGeneration.from_pretrained(CAPTIONER, colour="red")
    with pytest.raises(TypeError, match="no option push_to_hub"):
        load("BlipModel").save_pretrained(tmp_path, push_to_hub=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="must be a folder"):
        load("BlipModel").save_pretrained(tmp_path / "file")
    with pytest.raises(InputError, match="config must be a BlipConfig"):
        TFBlipModel(BlipConfig().text_config)


def test_processors_return_tensors_of_the_back_end() -> None:
    from PIL import Image

    from openblip import BlipImageProcessor

    image = Image.new("RGB", (40, 30), "red")
    processor = BlipImageProcessor(size=32)
    kinds = {"np": "numpy", "tf": "tensorflow", "jax": "jax"}
    arrays = {}
    for kind, module in kinds.items():
        pixels = processor(image, return_tensors=kind)["pixel_values"]
        assert type(pixels).__module__.startswith((module, "jaxlib" if kind == "jax" else module))
        arrays[kind] = np.asarray(pixels)
    assert np.array_equal(arrays["np"], arrays["tf"])
    assert np.array_equal(arrays["np"], arrays["jax"])
    images = list(processor(image, return_tensors="tf", do_normalize=False)["pixel_values"])
    again = processor(images, do_resize=False, do_rescale=False, return_tensors="np")["pixel_values"]
    assert np.allclose(again, arrays["np"], atol=1e-6), "tensors are images, too"


@pytest.mark.parametrize(
    ("missing", "backend", "message"),
    [("keras", "tensorflow", "openblip[tensorflow]"), ("tensorflow", "tensorflow", "openblip[tensorflow]"),
     ("jax", "jax", "openblip[jax]")],
)  # fmt: skip
def test_a_missing_library_is_named_in_one_sentence(missing: str, backend: str, message: str) -> None:
    program = (
        f"import os, sys; os.environ['KERAS_BACKEND'] = {backend!r}; sys.modules[{missing!r}] = None\n"
        "try:\n    from openblip import TFBlipModel\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert message in done.stdout, done.stderr
    assert len(done.stdout.splitlines()) == 1
