"""Every script in examples/ runs, and says something sensible."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
ARGUMENTS: dict[str, list[str]] = {"job_of_your_own": [str(EXAMPLES / "photos"), "dogs.jsonl"]}
SAYS = {
    "caption_folder": "astronaut.jpg: ", "ask_photo": "is it day or night?", "search_photos": ".jpg: 0.",
    "job_of_your_own": "{'computed': 6}",
}  # fmt: skip


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_runs(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script), *ARGUMENTS.get(script.stem, [])])
    runpy.run_path(str(script), run_name="__main__")
    assert SAYS[script.stem] in capsys.readouterr().out
    if script.stem == "job_of_your_own":
        rows = [json.loads(line) for line in Path("dogs.jsonl").read_text().splitlines()]
        assert {row["text"] for row in rows} <= {"yes", "no"}
        assert len(rows) == 6
