"""docs/data.md: its code runs, its columns are those of the schema, and its tasks those of the registry."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from openblip.data import schema
from openblip.tasks import TASKS
from tests.data.data_toys import write_images
from tests.toys import toy_tokenizer

DOCUMENT = Path(__file__).parents[2] / "docs" / "data.md"


def test_its_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for path in write_images(tmp_path / "photos", 3):
        path.with_suffix(".txt").write_text("a dog")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"tokenizer": toy_tokenizer()}
    for block in re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, "docs/data.md", "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3 records, 0 bad rows"
    assert lines[1] == "('a dog',) photos/0000.png"
    assert lines[2].startswith("{'pixels': (2, 384, 384, 3), 'ids': (2, ")
    assert lines[3] == "no bad records"


def test_its_columns_are_those_of_the_schema() -> None:
    lines = re.findall(r"^\| (\w+) \| (.*?) \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    columns = {field: tuple(re.findall(r"`(\w+)`", names.partition("(")[0])) for field, names in lines}
    assert {field: columns[field] for field in schema.FIELDS} == dict(schema.FIELDS)
    assert schema.__doc__ is not None
    for names in schema.FIELDS.values():
        assert all(name in schema.__doc__ for name in names)


def test_its_tasks_are_those_of_the_registry() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([\w.]+)\.(\w+)` \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    documented = {task: (module, name) for task, module, name in rows}
    classes = {name: task.data.resolve() for name, task in TASKS.items()}
    assert documented == {name: (data.__module__, data.__name__) for name, data in classes.items()}
