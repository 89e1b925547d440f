"""What docs/data.md says is so: its code runs, and its table is the schema."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from openblip.data import schema
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
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "3 records, 0 bad rows"
    assert said[1] == "('a dog',) photos/0000.png"
    assert said[2].startswith("{'pixels': (2, 384, 384, 3), 'ids': (2, ")
    assert said[3] == "no bad records"


def test_its_table_is_the_schema() -> None:
    lines = re.findall(r"^\| (\w+) \| (.*?) \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    told = {field: tuple(re.findall(r"`(\w+)`", names.partition("(")[0])) for field, names in lines}
    assert {field: told[field] for field in schema.FIELDS} == dict(schema.FIELDS)
    assert schema.__doc__ is not None
    for names in schema.FIELDS.values():
        assert all(name in schema.__doc__ for name in names)
