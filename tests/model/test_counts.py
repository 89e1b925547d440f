"""Parameter counts equal the published ones to the unit (mmpretrain's tables; transformers' own models)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
from torch import nn

from openblip.errors import ConfigError
from openblip.model.answerer import Answerer
from openblip.model.build import build_model, count_parameters
from openblip.model.config import ModelConfig, ModelKind, TextConfig, VisionConfig, preset

Size = Literal["base", "large"]


@pytest.mark.parametrize(
    ("task", "size", "image_size", "expected"),
    [
        ("caption", "base", 224, 223_679_804),
        ("caption", "base", 384, 223_971_644),  # mmpretrain prints 223.97 M
        ("caption", "base", 480, 224_220_476),
        ("caption", "large", 384, 446_290_492),
        ("retrieval", "base", 224, 223_452_418),
        ("retrieval", "base", 384, 223_744_258),
        ("retrieval", "base", 480, 223_993_090),
        ("retrieval", "large", 384, 446_128_642),
        ("vqa", "base", 224, 360_938_300),
        ("vqa", "base", 384, 361_230_140),
        ("vqa", "base", 480, 361_478_972),  # 361.48 M
        ("vqa", "large", 384, 583_548_988),  # with the decoder memory 768 wide, as it must be
        ("nlvr", "base", 384, 259_372_034),  # 259.37 M
        ("grounding", "base", 384, 498_488_636),  # 498.49 M
        ("pretrain", "base", 224, 252_441_919),
        ("pretrain", "large", 224, 474_729_023),
    ],
)
def test_published_counts(task: ModelKind, size: Size, image_size: int, expected: int) -> None:
    assert count_parameters(build_model(preset(task, size, image_size), "meta")) == expected


@pytest.mark.parametrize(
    ("size", "image_size", "expected"),
    [("base", 224, 224_434_177), ("base", 384, 224_726_017), ("base", 480, 224_974_849), ("large", 384, 447_175_937)],
)
def test_two_tower_counts(size: Size, image_size: int, expected: int) -> None:
    config = replace(preset("two_tower", size, image_size), embed_width=512)
    assert count_parameters(build_model(config, "meta")) == expected


@pytest.mark.parametrize(
    ("task", "size", "image_size", "expected"),
    [
        ("retrieval", "base", 384, 447_486_979),  # mmpretrain's retrieval model, 447.49 M
        ("retrieval", "large", 384, 892_255_747),
        ("pretrain", "base", 224, 475_892_799),
        ("pretrain", "large", 224, 920_467_007),
    ],
)
def test_counts_with_the_momentum_copies(task: ModelKind, size: Size, image_size: int, expected: int) -> None:
    model = build_model(preset(task, size, image_size), "meta")
    twin = sum(count_parameters(part) for part in embedding_parts(preset("retrieval", size, image_size)))
    temperature = (
        1 if task == "retrieval" else 0
    )  # a buffer in the matcher, learned in training; the pretrainer owns it
    assert count_parameters(model) + twin + temperature == expected


def embedding_parts(config: ModelConfig) -> list[nn.Module]:
    """What ITC keeps a slow copy of: both encoders and both projections."""
    model = build_model(config, "meta")
    return [getattr(model, name) for name in ("vision", "text", "vision_proj", "text_proj")]


@pytest.mark.parametrize(
    ("size", "expected"),
    [("base", {224: 85_798_656, 384: 86_090_496, 480: 86_339_328}),
     ("large", {224: 303_301_632, 384: 303_690_752, 480: 304_022_528})],
)  # fmt: skip
def test_image_encoder_counts(size: Size, expected: dict[int, int]) -> None:
    for image_size, count in expected.items():
        assert count_parameters(build_model(preset("vision", size, image_size), "meta")) == count


def test_the_library_s_large_vqa_model_can_be_built_but_not_run() -> None:
    config = replace(preset("vqa", "large", 384), decoder_memory_width=1024)
    model = build_model(config, "meta")
    assert isinstance(model, Answerer)
    assert count_parameters(model) == 588_267_580
    with pytest.raises(ConfigError, match="text width 768, got 1024"):
        model.encode_question(None, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: VisionConfig(width=100, heads=12),
        lambda: TextConfig(heads=0),
        lambda: TextConfig(memories=3),
        lambda: VisionConfig(image_size=8),
        lambda: ModelConfig(task="describe"),  # type: ignore[arg-type]
        lambda: preset("grounding", "large"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(wrong: object) -> None:
    with pytest.raises(ConfigError):
        wrong()  # type: ignore[operator]
