"""The public attributes and signatures of the classes of transformers 5.23: ours has them, or the docs list them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import nn

from tests.compat.compat_toys import Ours, Theirs, our_config, part, their_config
from tests.conftest import GOLDEN

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
# Published arguments that our methods take in `kwargs`, with values that have no effect.
IN_KWARGS: dict[str, dict[str, Any]] = {
    "from_pretrained": {
        "cache_dir": None, "force_download": False, "local_files_only": True, "token": None, "revision": "main",
        "use_safetensors": True, "weights_only": True, "disable_mmap": False, "trust_remote_code": False,
    },
    "encode": {
        "add_special_tokens": True, "padding": False, "truncation": None, "max_length": None, "stride": 0,
        "padding_side": None, "return_tensors": None,
    },
}  # fmt: skip
INTERNAL = {"fusion_config", "distributed_checkpoint", "save_format", "image_like_kwargs"}


def own_attributes(cls: type) -> set[str]:
    """Attributes that do not come from transformers, whose base class ours may have joined."""
    names = {name for base in cls.__mro__ if not base.__module__.startswith("transformers") for name in vars(base)}
    return names | set(getattr(cls, "fields", ())) | set(getattr(cls, "__annotations__", ()))


def listed() -> set[str]:
    """Patterns of attributes, and mixins, that the docs list."""
    section = (
        DOCS.read_text(encoding="utf-8").split("A mixin stands for all its attributes.", 1)[1].split("\n## ", 1)[0]
    )
    cells = re.findall(r"^\|[^|]+\|([^|]+)\|[^|]+\|$", section, re.MULTILINE)
    return set(re.findall(r"`([\w*]+)`", re.sub(r"\([^)]*\)", "", " ".join(cells))))


def find_pair(name: str) -> tuple[Any, Any]:
    """Our class and theirs."""
    from openblip.compat.transformers_api.tokens import BlipTokenizer

    return getattr(Ours, PAIRS[name], BlipTokenizer), getattr(Theirs, name)


def missing_attributes(name: str) -> Iterator[tuple[str, str]]:
    """Public attributes that our class lacks, and the class of transformers that each comes from."""
    ours, theirs = find_pair(name)
    public = {attribute for attribute in dir(theirs) if not attribute.startswith("_")}
    instance = {"GenerationConfig": set(vars(Theirs.GenerationConfig()))}.get(name, set())
    for attribute in sorted(public - own_attributes(ours) - instance - set(_settings(ours))):
        yield attribute, next(base.__name__ for base in theirs.__mro__ if attribute in vars(base))


@pytest.mark.parametrize("name", PAIRS)
def test_public_attributes(name: str) -> None:
    """Difference `internal-attributes`."""
    patterns = listed()
    for attribute, origin in missing_attributes(name):
        assert origin in patterns or any(fnmatchcase(attribute, pattern) for pattern in patterns), attribute


def test_the_list_of_attributes_has_nothing_else() -> None:
    missing = {pair for name in PAIRS for pair in missing_attributes(name)}
    for pattern in listed():
        assert any(origin == pattern or fnmatchcase(attribute, pattern) for attribute, origin in missing), pattern


def _settings(cls: Any) -> list[str]:
    """Attributes that instances have."""
    if cls is Ours.BlipImageProcessor:
        return list(vars(cls()))
    if cls.__name__ == "BlipTokenizer":
        return ["padding_side", "truncation_side", "model_max_length", "clean_up_tokenization_spaces"]
    return list(vars(cls())) if hasattr(cls, "fields") else []


def shared_methods(name: str) -> Iterator[tuple[str, inspect.Signature, inspect.Signature]]:
    """Methods of both classes that we define: their names, and both signatures."""
    ours, theirs = find_pair(name)
    for method in (*dir(theirs), "__call__"):
        mine: Any = getattr(ours, method, None)
        other: Any = getattr(theirs, method, None)
        is_method = inspect.isroutine(mine) and inspect.isroutine(other) and method not in vars(nn.Module)
        if (
            is_method
            and (not method.startswith("_") or method == "__call__")
            and mine.__module__.startswith("openblip")
        ):
            yield method, inspect.signature(mine), inspect.signature(other)
    if issubclass(ours, nn.Module) and ours.forward.__module__.startswith("openblip"):
        yield "forward", inspect.signature(ours.forward), inspect.signature(theirs.forward)


@pytest.mark.parametrize("name", PAIRS)
def test_arguments_by_position_and_name(name: str) -> None:
    """Arguments have the published names, in the published order; options that 5.23 hides in `kwargs` may follow."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    methods = list(shared_methods(name))
    assert len(methods) > 3
    for method, ours, theirs in methods:
        if method == "generate" and "Text" in name:
            continue  # of every class with a language head; its options are those of the captioner's
        if method == "forward" and list(theirs.parameters) == ["self", "input"]:
            continue  # of base classes
        published = [p.name for p in theirs.parameters.values() if p.kind in kinds]
        missing = set(published) - set(ours.parameters) - IN_KWARGS.get(method, {}).keys() - INTERNAL
        assert not missing, method
        by_position = [p.name for p in ours.parameters.values() if p.kind == kinds[0]]
        shared = [p for p in published if p in by_position]
        assert [p for p in by_position if p in shared] == shared, method


@pytest.mark.parametrize("name", PAIRS)
def test_arguments_in_kwargs_are_taken(name: str, tmp_path: Path) -> None:
    ours, _ = find_pair(name)
    if "PreTrained" in name:
        return  # base classes without weights
    if name == "GenerationConfig":
        instance = ours(num_beams=3)
    elif name in OTHERS:
        tokenizer = type(toy_processor().tokenizer)(str(GOLDEN / "vocab.txt"))
        instance = {"BertTokenizer": tokenizer, "BlipImageProcessor": Ours.BlipImageProcessor()}.get(
            name, toy_processor()
        )
    else:
        instance = ours(our_config(part(name, their_config()))) if name in MODELS else ours()
    instance.save_pretrained(tmp_path, push_to_hub=False)
    again = ours.from_pretrained(tmp_path, **IN_KWARGS["from_pretrained"])
    assert type(again) is ours
    if name == "BertTokenizer":
        assert again.encode("a cat", **IN_KWARGS["encode"]) == again.encode("a cat")


def test_internal_arguments_are_errors(tmp_path: Path) -> None:
    """Difference `internal-arguments`."""
    model = Ours.BlipVisionModel(our_config(their_config()).vision_config)
    model.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="distributed_checkpoint"):
        model.save_pretrained(tmp_path, distributed_checkpoint=True)
    with pytest.raises(TypeError, match="fusion_config"):
        Ours.BlipVisionModel.from_pretrained(tmp_path, fusion_config={})
    with pytest.raises(TypeError, match="save_format"):
        toy_processor().tokenizer.save_pretrained(tmp_path, save_format="other")
    with pytest.raises(TypeError, match="image_like_kwargs"):
        Ours.BlipImageProcessor()(Image.new("RGB", (8, 8)), image_like_kwargs={})


def toy_processor() -> Any:
    """A processor with the golden vocabulary."""
    from openblip.compat.transformers_api.tokens import BlipTokenizer

    return Ours.BlipProcessor(Ours.BlipImageProcessor(), BlipTokenizer(str(GOLDEN / "vocab.txt")))


@pytest.mark.parametrize("name", ["BlipImageProcessorFast"])
def test_the_fast_image_processor_is_refused(name: str) -> None:
    """Difference `fast-image-processor`."""
    from openblip.errors import UnsupportedTaskError

    for make in (getattr(Ours, name), getattr(Ours, name).from_pretrained):
        with pytest.raises(UnsupportedTaskError, match="BlipImageProcessor, which equals the PIL processor"):
            make()
