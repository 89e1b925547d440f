"""Run the model tests that the sdist of transformers ships (`ModelTesterMixin`) against our classes, and count results.

    pip install parameterized
    pip download --no-binary transformers --no-deps -d DOWNLOADS transformers==5.23.0
    tar -xf DOWNLOADS/transformers-5.23.0.tar.gz -C DOWNLOADS
    python scripts/model_mixins.py DOWNLOADS/transformers-5.23.0 --out results.json

The sdist has the mixins for models, but no tests of BLIP, and not the mixins for `generate` and exports. The toy models
and inputs are ours. `--library transformers` shows which tests its own classes pass with them: a test that fails or is
skipped for both says nothing about ours.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib
import io
import json
import os
import sys
import types
import unittest
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

TEXT: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 32, "encoder_hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "bos_token_id": 97, "sep_token_id": 3, "pad_token_id": 0,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 30,
    "patch_size": 6,
}  # fmt: skip
INPUTS = {
    "BlipVisionModel": ("pixel_values",),
    "BlipTextModel": ("input_ids", "attention_mask"),
    "BlipModel": ("input_ids", "pixel_values", "attention_mask"),
    "BlipForConditionalGeneration": ("pixel_values", "input_ids", "attention_mask", "labels"),
    "BlipForImageTextRetrieval": ("input_ids", "pixel_values", "attention_mask"),
    "BlipForQuestionAnswering": ("input_ids", "pixel_values", "attention_mask", "labels"),
}
LABELED = ("BlipForConditionalGeneration", "BlipForQuestionAnswering")  # the loss of the others is none, or an option
CONFIGS = {"BlipVisionModel": ("BlipVisionConfig", VISION), "BlipTextModel": ("BlipTextConfig", TEXT)}
BOTH = (
    "BlipConfig",
    {"text_config": TEXT, "vision_config": VISION, "projection_dim": 16, "image_text_hidden_size": 16},
)


class ToyTester:
    """What the mixins ask a test about: a toy configuration, inputs and their sizes.

    Args:
        library: The module with the classes.
        name: Name of the class.
    """

    batch_size = 3
    seq_length = encoder_seq_length = 7
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    image_size = 30
    patch_size = 6
    text_config = TEXT
    vision_config = VISION

    def __init__(self, library: types.ModuleType, name: str) -> None:
        self.name = name
        self.is_training = name in LABELED
        kind, values = CONFIGS.get(name, BOTH)
        self._config = (getattr(library, kind), values)
        if name == "BlipVisionModel":
            self.seq_length = self.encoder_seq_length = (self.image_size // self.patch_size) ** 2 + 1

    def get_config(self) -> Any:
        """Return a toy configuration."""
        kind, values = self._config
        return kind(**values)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        """Return a toy configuration and inputs."""
        shape = (self.batch_size, 7)
        tensors = {
            "pixel_values": torch.rand(self.batch_size, 3, self.image_size, self.image_size),
            "input_ids": torch.randint(4, 97, shape),
            "attention_mask": torch.ones(shape, dtype=torch.long),
            "labels": torch.randint(4, 97, shape),
        }
        return self.get_config(), {name: tensors[name] for name in INPUTS[self.name]}


def import_mixin(sdist: Path) -> type:
    """Return `ModelTesterMixin`; modules that the sdist lacks have empty mixins."""
    for module, mixin in (
        ("tests.exporters.test_export", "ExportTesterMixin"),
        ("tests.generation.test_utils", "GenerationTesterMixin"),
    ):
        package, _, _ = module.rpartition(".")
        for name in (package, module):
            sys.modules[name] = types.ModuleType(name)
        setattr(sys.modules[module], mixin, type(mixin, (), {}))
    sys.path.insert(0, str(sdist))
    for name in [name for name in sys.modules if name == "tests" or name.startswith("tests.test_")]:
        del sys.modules[name]
    mixin_class: type = importlib.import_module("tests.test_modeling_common").ModelTesterMixin
    return mixin_class


def make_cases(mixin: type, library: types.ModuleType, names: list[str]) -> Iterator[unittest.TestCase]:
    """Yield all tests of the classes."""
    for name in names:
        tester = ToyTester(library, name)
        body = {
            "all_model_classes": (getattr(library, name),),
            "model_tester": tester,
            "_is_composite": name not in CONFIGS,
            "test_resize_embeddings": name != "BlipVisionModel",
        }
        case: Any = type(f"{name}Test", (mixin, unittest.TestCase), body)
        yield from (case(test) for test in unittest.defaultTestLoader.getTestCaseNames(case))


def run(case: unittest.TestCase) -> str:
    """Return the outcome of a test: passed, skipped or failed, with the error's last line."""
    result = unittest.TestResult()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        case.run(result)
    if result.failures or result.errors:
        trace = (result.failures + result.errors)[0][1].strip().splitlines()
        return f"failed: {trace[-1][:200]}"
    return "skipped" if result.skipped else "passed"


def main() -> None:
    """Run the tests, and print counts and failures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sdist", type=Path, help="folder of the unpacked sdist")
    parser.add_argument("--library", default="openblip", choices=["openblip", "transformers"])
    parser.add_argument("--classes", nargs="+", default=list(INPUTS), choices=list(INPUTS), metavar="CLASS")
    parser.add_argument("--out", type=Path, help="file to write the outcome of each test to")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ["HF_HUB_OFFLINE"] = "1"
    name = "openblip.compat.transformers_api" if options.library == "openblip" else "transformers"
    mixin = import_mixin(options.sdist)
    library = importlib.import_module(name)
    outcomes: dict[str, str] = {}
    for case in make_cases(mixin, library, options.classes):
        key = case.id().removeprefix(f"{__name__}.")
        outcomes[key] = run(case)
        if outcomes[key].startswith("failed"):
            print(key, outcomes[key], sep="  ", flush=True)
    for kind in options.classes:
        own = [outcome.partition(":")[0] for key, outcome in outcomes.items() if f".{kind}Test." in f".{key}"]
        print(kind, dict(collections.Counter(own)))
    print("all", dict(collections.Counter(outcome.partition(":")[0] for outcome in outcomes.values())))
    if options.out:
        options.out.write_text(json.dumps(outcomes, indent=2) + "\n")


if __name__ == "__main__":
    main()
