"""The help of every command: panels, defaults, one example, and no option without a help text."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

import openblip
from openblip.cli import app
from openblip.cli.command import DECODING, INPUT, MODEL, OTHER, OUTPUT, Option
from openblip.jobs.sinks import SINKS

IMAGE_COMMANDS = ("caption", "ask", "match", "embed", "classify", "ground", "compare", "explain")


def iter_commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from iter_commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


COMMANDS = dict(iter_commands(app))


def help_of(name: str) -> str:
    return CliRunner().invoke(app, [*name.split(), "--help"], terminal_width=100).output


def defaults_of(name: str) -> dict[str, object]:
    """Return the values of all parameters of a command that is called with what it requires only."""
    required = {
        "ask": ["-q", "what?"],
        "classify": ["-l", "cat|dog"],
        "eval run": ["--data", "folder"],
        "index": ["--out", "folder"],
    }
    with COMMANDS[name].make_context(name, ["argument", *required.get(name, [])]) as context:
        return dict(context.params)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_parameter_has_a_help_text(name: str) -> None:
    for parameter in COMMANDS[name].params:
        text = str(getattr(parameter, "help", None) or getattr(parameter, "help_record", ("", ""))[1])
        assert text, parameter.name
        assert text[0].isupper(), text
        assert text.endswith("."), text
        assert len(text) <= 160, text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_default_is_shown(name: str) -> None:
    text = " ".join(help_of(name).split())
    for parameter in COMMANDS[name].params:
        if not isinstance(parameter, Option) or parameter.is_flag or parameter.multiple or parameter.required:
            continue
        default = parameter.to_info_dict()["default"]
        if default not in (None, ""):
            shown = parameter.show_default if isinstance(parameter.show_default, str) else default
            assert f"[default: {shown}" in text, parameter.name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_ends_with_an_example_of_itself(name: str) -> None:
    *_, example = help_of(name).split("Example:\n")
    assert example.splitlines()
    assert all(line.startswith(f"  openblip {name.split()[0]} ") for line in example.splitlines())


@pytest.mark.parametrize("name", IMAGE_COMMANDS)
def test_commands_over_images_have_the_same_panels(name: str) -> None:
    panels = re.findall(r"^(\w+):$", help_of(name), re.MULTILINE)
    decoding = [DECODING] if name in ("caption", "ask") else []
    assert panels == [INPUT, *decoding, OUTPUT, MODEL, OTHER, "Example"]


def test_the_list_of_commands_shows_each_in_one_whole_line() -> None:
    lines = CliRunner().invoke(app, ["--help"]).output.split("Commands:\n")[1].split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in lines] == list(app.commands)
    assert not [line for line in lines if line.endswith("...")]


@pytest.mark.parametrize("name", ["caption", "ask", "eval run"])
def test_commands_and_library_agree_on_the_defaults_of_loading(name: str) -> None:
    parameters = inspect.signature(openblip.load).parameters
    for option in ("engine", "precision", "device", "batch_size", "num_workers"):
        assert defaults_of(name)[option] == parameters[option].default, option


@pytest.mark.parametrize("name", ["caption", "ask", "classify"])
def test_commands_and_library_agree_on_the_defaults_of_their_options(name: str) -> None:
    """Every option that is called as a keyword of the method has its default; `--num` is `n`."""
    parameters = inspect.signature(getattr(openblip.Blip, name)).parameters
    values = defaults_of(name)
    values["n"] = values.pop("num")
    shared = [name for name in values if name in parameters and parameters[name].kind.name == "KEYWORD_ONLY"]
    assert len(shared) >= 3
    for keyword in shared:
        assert values[keyword] == parameters[keyword].default, keyword


def test_commands_offer_every_output_format_and_no_other() -> None:
    offered: set[str] = set()
    for name in IMAGE_COMMANDS:
        (option,) = (parameter for parameter in COMMANDS[name].params if parameter.name == "to")
        assert isinstance(option.type, click.Choice)
        offered |= set(option.type.choices)
    assert offered == set(SINKS)
