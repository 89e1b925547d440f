"""Defaults: the library and the command line agree, and no signature of the public API hides its types."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any, get_args

import click
import pytest
import torch

import openblip
from openblip import Blip, InputError, defaults
from openblip.cli import app
from openblip.engine.device import check_available, resolve_device

VERBS: dict[str, Any] = {
    "caption": Blip.caption, "ask": Blip.ask, "match": Blip.match, "classify": Blip.classify, "ground": Blip.ground,
    "compare": Blip.compare, "explain": Blip.explain, "embed": Blip.embed_images,
}  # fmt: skip
RENAMED = {"num": "n"}  # the option -n has a long name
OTHER_MEANING = {("explain", "task"), ("classify", "labels"), ("ask", "answers")}  # chosen by the text, or split at |
RUN = ("caption", "eval run")  # commands that load a model


def command(name: str) -> click.Command:
    current: Any = app
    for step in name.split():
        current = current.commands[step]
    assert isinstance(current, click.Command)
    return current


def options(name: str) -> dict[str, Any]:
    """The default of every option of a command."""
    return {
        RENAMED.get(str(option.name), str(option.name)): option.default
        for option in command(name).params
        if isinstance(option, click.Option)
    }


def plain(value: Any) -> Any:
    """A default, with the click's ways to say "nothing" as `None`."""
    if value is None or type(value).__name__ == "Sentinel" or value in ((), []):
        return None
    return value


@pytest.mark.parametrize("verb", VERBS)
def test_commands_decode_like_the_methods(verb: str) -> None:
    parameters = inspect.signature(VERBS[verb]).parameters
    shared = set(options(verb)) & set(parameters) - {name for command, name in OTHER_MEANING if command == verb}
    if verb in ("caption", "ask", "classify"):
        assert "n" in shared
    for name in shared:
        default = parameters[name].default
        expected = None if default is inspect.Parameter.empty else default
        given = plain(options(verb)[name])
        assert (given or None) == (plain(expected) or None), f"--{name}"


@pytest.mark.parametrize("name", RUN)
def test_commands_load_like_the_library(name: str) -> None:
    parameters = inspect.signature(openblip.load).parameters
    given = options(name)
    for option in ("engine", "precision", "device"):
        assert given[option] == parameters[option].default == getattr(defaults, option.upper())
    assert {option: plain(given[option]) for option in ("num_workers", "batch_size")} in (
        {"num_workers": None, "batch_size": None},
        {"num_workers": None, "batch_size": "auto"},
    )


def test_every_default_is_a_choice() -> None:
    assert defaults.ENGINE in get_args(defaults.EngineName)
    assert defaults.PRECISION in get_args(defaults.Precision)
    assert defaults.DECODE in get_args(defaults.Decode)


# The device.


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_is_the_first_device_that_is_there(
    cuda: bool, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert resolve_device("auto") == torch.device(expected)
    assert resolve_device("auto", cpu_only=True) == torch.device("cpu")
    assert resolve_device("cuda:1", cpu_only=True) == torch.device("cuda:1"), "a named device is never changed"


def test_unknown_devices_are_refused() -> None:
    with pytest.raises(InputError, match="device must be auto"):
        resolve_device("abacus")


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_devices_that_this_machine_lacks_are_refused(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match=f"device must be one that PyTorch can use here, got '{device}'"):
        openblip.load("pocket", device=device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    check_available(torch.device(device))


def test_training_and_inference_share_the_device() -> None:
    """No other function of the package chooses a device; `openblip doctor` lists them."""
    source = Path(openblip.__file__).parent
    looking = [
        str(path.relative_to(source))
        for path in source.rglob("*.py")
        if "mps.is_available" in path.read_text(encoding="utf-8")
    ]
    assert set(looking) - {"cli/doctor.py"} == {"engine/device.py"}


# Types.


def functions(node: ast.AST) -> list[ast.FunctionDef]:
    return [item for item in ast.iter_child_nodes(node) if isinstance(item, ast.FunctionDef)]


def test_no_public_signature_says_any_or_object() -> None:
    """Of an overloaded method the overloads count; `to_dict` returns JSON."""
    source = Path(openblip.__file__).parent
    loose = []
    for name in ("blip.py", "results.py"):
        tree = ast.parse((source / name).read_text(encoding="utf-8"))
        scopes: list[ast.AST] = [tree, *(item for item in tree.body if isinstance(item, ast.ClassDef))]
        for scope in scopes:
            overloaded = {item.name for item in functions(scope) if _is_overload(item)}
            for item in functions(scope):
                if item.name.startswith("_") or item.name == "to_dict":
                    continue
                if item.name in overloaded and not _is_overload(item):
                    continue
                arguments = [*item.args.args, *item.args.kwonlyargs, item.args.vararg, item.args.kwarg]
                annotations = [item.returns, *(argument.annotation for argument in arguments if argument is not None)]
                words = {
                    node.id for note in annotations if note for node in ast.walk(note) if isinstance(node, ast.Name)
                }
                if words & {"Any", "object"}:
                    loose.append(f"{name}:{item.lineno} {item.name}")
    assert loose == []


def _is_overload(function: ast.FunctionDef) -> bool:
    return any(isinstance(mark, ast.Name) and mark.id == "overload" for mark in function.decorator_list)


def test_type_cases_cover_every_method() -> None:
    cases = (Path(__file__).parent / "typing" / "public_api.py").read_text(encoding="utf-8")
    methods = [name for name, value in vars(Blip).items() if inspect.isfunction(value) and not name.startswith("_")]
    assert len(methods) > 9
    assert [name for name in methods if f"blip.{name}(" not in cases] == []
