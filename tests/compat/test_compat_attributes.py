"""The public attributes and signatures of the classes of transformers 5.23: ours has them, or the docs list them."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from tests.compat.compat_toys import Ours, Theirs

DOCS = Path(__file__).parents[2] / "docs" / "differences.md"
MODELS = (
    "BlipForConditionalGeneration",
    "BlipForQuestionAnswering",
    "BlipForImageTextRetrieval",
    "BlipModel",
    "BlipVisionModel",
    "BlipTextModel",
    "BlipTextLMHeadModel",
    "BlipPreTrainedModel",
    "BlipTextPreTrainedModel",
)
CONFIGS = ("BlipConfig", "BlipTextConfig", "BlipVisionConfig", "GenerationConfig")
OTHERS = {
    "BlipProcessor": "BlipProcessor",
    "BlipImageProcessor": "BlipImageProcessor",
    "BertTokenizer": "BlipTokenizer",
}
PAIRS = {**{name: name for name in (*MODELS, *CONFIGS)}, **OTHERS}
METHODS = ("forward", "generate", "save_pretrained", "from_pretrained", "get_input_embeddings", "set_input_embeddings")


def own_attributes(cls: type) -> set[str]:
    """Attributes that do not come from transformers, whose base class ours may have joined."""
    names = {name for base in cls.__mro__ if not base.__module__.startswith("transformers") for name in vars(base)}
    return names | set(getattr(cls, "fields", ())) | set(getattr(cls, "__annotations__", ()))


def listed() -> set[str]:
    """Names that the docs list as internal."""
    section = DOCS.read_text().split("### Internal attributes", 1)[1].split("\n## ", 1)[0]
    return set(re.findall(r"`(\w+)`", section))


@pytest.mark.parametrize("name", PAIRS)
def test_public_attributes(name: str) -> None:
    """Difference `internal-attributes`."""
    ours, theirs = getattr(Ours, PAIRS[name], None), getattr(Theirs, name)
    if ours is None:
        from openblip.compat.transformers_api.tokens import BlipTokenizer

        ours = BlipTokenizer
    public = {attribute for attribute in dir(theirs) if not attribute.startswith("_")}
    instance = {"GenerationConfig": set(vars(Theirs.GenerationConfig()))}.get(name, set())
    missing = public - own_attributes(ours) - instance - listed() - set(_settings(ours))
    assert not missing


def _settings(cls: Any) -> list[str]:
    """Attributes that instances have."""
    if cls is Ours.BlipImageProcessor:
        return list(vars(cls()))
    if cls.__name__ == "BlipTokenizer":
        return ["padding_side", "truncation_side", "model_max_length", "clean_up_tokenization_spaces"]
    return list(vars(cls())) if hasattr(cls, "fields") else []


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_arguments_by_position_and_name(name: str, method: str) -> None:
    """Arguments have the published names, in the published order; options that 5.23 hides in `kwargs` may follow."""
    theirs, ours = (getattr(getattr(library, name), method, None) for library in (Theirs, Ours))
    if theirs is None or ours is None or ("kwargs" in repr(theirs) and method == "generate" and "Text" in name):
        return
    positional = (inspect.Parameter.POSITIONAL_OR_KEYWORD,)
    published = [p.name for p in inspect.signature(theirs).parameters.values() if p.kind in positional]
    actual = [p.name for p in inspect.signature(ours).parameters.values() if p.kind in positional]
    names = set(inspect.signature(ours).parameters)
    accepts_names = any(p.kind == p.VAR_KEYWORD for p in inspect.signature(ours).parameters.values())
    if method == "forward" and ours.__qualname__.startswith("Module."):
        return  # base classes
    missing = [p for p in published if p not in names and p not in listed()]
    assert not missing or accepts_names
    shared = [p for p in published if p in actual]
    assert [p for p in actual if p in shared] == shared


@pytest.mark.parametrize("name", ["BlipImageProcessorFast"])
def test_the_fast_image_processor_is_refused(name: str) -> None:
    """Difference `fast-image-processor`."""
    from openblip.errors import UnsupportedTaskError

    for make in (getattr(Ours, name), getattr(Ours, name).from_pretrained):
        with pytest.raises(UnsupportedTaskError, match="BlipImageProcessor, which equals the PIL processor"):
            make()
