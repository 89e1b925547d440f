"""The recipes of the small model `pocket`, each run for one epoch at toy size from what it starts from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from openblip.checkpoints import read, write
from openblip.data.sources import open_source
from openblip.data.sources.base import Source
from openblip.data.views import Views, build_part
from openblip.model.base import ImageTextModel
from openblip.preprocess.image import to_tensor
from openblip.preprocess.settings import ImageSettings
from openblip.training.config import read_recipe
from openblip.training.run import run
from tests.toys import toy_hybrid, toy_image, toy_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPES = Path(__file__).parents[1] / "recipes" / "pocket"
SETTINGS = ImageSettings(64)
STARTS = {
    "caption_people": "start",
    "caption_names": "caption_people",
    "caption_more": "caption_names",
    "caption_cider": "caption_names",
    "pretrain": "start",
    "retrieval": "pretrain",
    "vqa": "pretrain",
    "vqa_more": "vqa",
    "grounding": "pretrain",
    "caption_tuned": "caption_cider",
    "caption_tuned_names": "caption_tuned",
    "caption_tuned_cider": "caption_tuned",
    "retrieval_tuned": "retrieval",
    "vqa_tuned": "vqa_more",
    "vqa_photos": "vqa_tuned",
    "vqa_shared": "vqa_photos",
    "grounding_tuned": "grounding",
    "grounding_shared": "grounding_tuned",
}
MADE_BY_SCRIPTS = {  # by scripts/pocket_average.py and scripts/pocket_copy.py, and a recipe that they start from
    "runs/pocket/caption-lm": "caption_names",
    "runs/pocket/caption": "caption_cider",
    "runs/pocket/retrieval-start": "retrieval",
    "runs/pocket/vqa-start": "vqa_more",
    "runs/pocket/vqa-shared-start": "vqa_photos",
    "runs/pocket/grounding-start": "grounding",
    "runs/pocket/grounding-shared-start": "grounding_tuned",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images with captions, questions and boxes; a start; and the features of two views."""
    root = tmp_path_factory.mktemp("hybrid")
    rows = []
    for number in range(8):
        toy_image(number).save(root / f"{number}.png")
        rows.append(
            {
                "image": f"{number}.png",
                "captions": ["a dog on the grass", f"a {'cat' if number % 2 else 'dog'}"],
                "qa": [{"question": "is there a dog?", "answers": ["yes"]}],
                "refs": [{"expression": "the dog", "bbox": [2, 3, 20, 15]}],
            }
        )
    (root / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = toy_hybrid("pretrain")
    write.save(model, root / "start" / "model", tokenizer=toy_tokenizer(), image=SETTINGS)
    assert isinstance(model, ImageTextModel)
    stem = model.vision.stem
    assert stem is not None

    def encode(pixels: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(stem.trunk(to_tensor(torch.from_numpy(pixels), SETTINGS)))

    source = open_source(str(root / "data.jsonl"))
    assert isinstance(source, Source)
    images = [record.images[0] for record in source]
    build_part(root / "views", "toy", images, [0, 1], Views(SETTINGS.size), encode)
    return root


@pytest.mark.parametrize("name", STARTS)
def test_a_recipe_trains_from_its_start(name: str, folder: Path) -> None:
    recipe = read_recipe(RECIPES / f"{name}.yaml")
    # The toy has fewer blocks than `pocket`, so of the frozen ones only the first is frozen.
    frozen = [part for part in recipe.model.freeze if ".blocks." not in part or part.endswith(".blocks.0")]
    views = [f"data.views={folder / 'views'}"] if recipe.data.views else []
    recipe = read_recipe(
        RECIPES / f"{name}.yaml",
        [
            *views,
            f"model.freeze={json.dumps(frozen)}",
            f"start={folder / STARTS[name] / 'model'}",
            f"out={folder / name}",
            f"data.train={folder / 'data.jsonl'}",
            f"data.val={folder / 'data.jsonl'}",
            f"data.images={folder}",
            "epochs=1",
            "batch_size=4",
            "evaluate.every_epochs=1",
            "run.device=cpu",
            "run.log_every=1",
            "run.save_every=1",
        ],
    )
    result = run(recipe)
    before = read.load(folder / STARTS[name] / "model").model.state_dict()
    after = read.load(result.model).model.state_dict()
    for key in before:
        is_frozen = any(key.startswith(f"{part}.") for part in frozen)
        if key in after and (is_frozen or key.startswith("vision.stem.")):
            assert torch.equal(after[key], before[key]) == is_frozen, key
    assert not torch.equal(after["vision.patch_embed.weight"], before["vision.patch_embed.weight"])


def test_every_recipe_follows_its_start() -> None:
    recipes = {path.stem: read_recipe(path) for path in RECIPES.glob("*.yaml") if path.stem != "subjects"}
    assert recipes.keys() == {*STARTS, "plain", "grounding_384"}
    outputs = {recipe.out: name for name, recipe in recipes.items()}
    outputs |= MADE_BY_SCRIPTS
    for name, start in STARTS.items():
        (address,) = recipes[name].start
        previous = address.removesuffix("/model")
        assert outputs.get(previous, "start") == start
    plain = recipes["plain"]
    assert plain.distill is not None
    assert plain.distill.teacher == "runs/pocket/caption-final/model"
    assert plain.model.build_config("caption", 0.0).vision.stem is None
