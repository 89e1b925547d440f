"""The decoding defaults of a captioner: stored, loaded strictly, and honored wherever a caption is generated."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import openblip
from openblip.checkpoints import read, write
from openblip.defaults import EngineName
from openblip.errors import CheckpointError
from openblip.generation import GenerationDefaults
from openblip.training.config.recipe import read_recipe
from openblip.training.initial import build_initial_state
from tests.cli.test_cli import run
from tests.serving.serving_toys import running_app
from tests.toys import toy_bundle, toy_image, toy_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = [toy_image(seed) for seed in range(4)]
LONG: dict[str, Any] = {"min_new_tokens": 12, "max_new_tokens": 16}  # long enough for a loop
IDS = {"bos_token_id": 598, "eos_token_id": 3, "pad_token_id": 0}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle without defaults of its own."""
    return toy_bundle(tmp_path_factory.mktemp("plain") / "toy", ("caption", "retrieval"))


@pytest.fixture(scope="module")
def toys(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bundle, whose captioner repeats no token."""
    folder = tmp_path_factory.mktemp("toys") / "toy"
    shutil.copytree(plain, folder)
    loaded = read.load(folder / "caption")
    write.save(loaded, folder / "caption", generation=GenerationDefaults(no_repeat_ngram_size=1))
    return folder


def texts(captions: list[openblip.Caption]) -> list[str]:
    return [caption.text for caption in captions]


def test_defaults_survive_saving_and_converting(plain: Path, toys: Path, tmp_path: Path) -> None:
    content = json.loads((toys / "caption" / "generation_config.json").read_text())
    assert content == IDS | {"no_repeat_ngram_size": 1}
    assert json.loads((plain / "caption" / "generation_config.json").read_text()) == IDS
    loaded = read.load(toys / "caption")
    assert loaded.generation == GenerationDefaults(1)
    write.save(loaded, tmp_path / "saved")
    assert read.load(tmp_path / "saved").generation == GenerationDefaults(1)
    run("convert", toys, tmp_path / "converted", "--task", "caption")
    assert read.load(tmp_path / "converted").generation == GenerationDefaults(1)
    assert read.load(plain / "caption").generation == GenerationDefaults()
    write.save(loaded, tmp_path / "caption.pth", to="salesforce")
    assert read.load(tmp_path / "caption.pth", tokenizer=toy_tokenizer(), config=loaded.config).generation == (
        GenerationDefaults()
    )


@pytest.mark.parametrize("value", [-1, 2.0, "2", True])
def test_a_wrong_default_is_an_error(toys: Path, tmp_path: Path, value: object) -> None:
    shutil.copytree(toys / "caption", tmp_path / "caption")
    file = tmp_path / "caption" / "generation_config.json"
    file.write_text(json.dumps({"no_repeat_ngram_size": value}))
    with pytest.raises(CheckpointError, match=r"no_repeat_ngram_size of .* must be an integer"):
        read.load(tmp_path / "caption")
    file.write_text(json.dumps({"no_repeat_ngram_size": None, "num_beams": 9}))
    assert read.load(tmp_path / "caption").generation == GenerationDefaults()


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_captions_follow_the_default_unless_an_option_differs(plain: Path, toys: Path, engine: EngineName) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    ours, theirs = openblip.load(toys, engine=engine), openblip.load(plain, engine=engine)
    loops = theirs.caption(IMAGES, **LONG)
    assert texts(loops) == texts(ours.caption(IMAGES, no_repeat_ngram_size=0, **LONG))
    variants: list[dict[str, Any]] = [{}, {"num_beams": 1}, {"n": 2}, {"do_sample": True, "seed": 3}]
    for options in variants:
        captions = ours.caption(IMAGES, **LONG, **options)
        assert texts(captions) == texts(theirs.caption(IMAGES, no_repeat_ngram_size=1, **LONG, **options))
        assert texts(captions) != texts(theirs.caption(IMAGES, **LONG, **options))


def test_the_command_and_the_server_follow_the_default(toys: Path, tmp_path: Path) -> None:
    blip = openblip.load(toys, engine="torch")
    expected, loop = blip.caption(IMAGES[0]).text, blip.caption(IMAGES[0], no_repeat_ngram_size=0).text
    assert expected != loop
    IMAGES[0].save(tmp_path / "one.png")
    row = run("caption", tmp_path / "one.png", "-m", toys, "--engine", "torch", "--json").stdout
    assert json.loads(row)["text"] == expected
    row = run(
        "caption", tmp_path / "one.png", "-m", toys, "--engine", "torch", "--json", "--no-repeat-ngram-size", "0"
    ).stdout
    assert json.loads(row)["text"] == loop
    buffer = io.BytesIO()
    IMAGES[0].save(buffer, "PNG")
    body = {"images": [base64.b64encode(buffer.getvalue()).decode()]}
    with running_app(blip) as server:
        for fields, text in (({}, expected), ({"no_repeat_ngram_size": 0}, loop)):
            response = server.client.post("/v1/caption", json={**body, **fields})
            assert response.json()["results"][0]["text"] == text


def test_an_explanation_is_of_the_caption(toys: Path) -> None:
    blip = openblip.load(toys, engine="torch")
    assert blip.explain(IMAGES[0], task="caption").text == blip.caption(IMAGES[0]).text


def test_training_keeps_the_defaults(toys: Path, tmp_path: Path) -> None:
    recipe = f"task: caption\nstart: {toys}\nout: {tmp_path / 'run'}\ndata: {{train: photos}}\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    assert build_initial_state(read_recipe(tmp_path / "recipe.yaml")).generation == GenerationDefaults(1)


def test_pocket_repeats_no_bigram() -> None:
    assert openblip.load("pocket", task="caption").pipeline("caption").decoding.no_repeat_ngram_size == 2
