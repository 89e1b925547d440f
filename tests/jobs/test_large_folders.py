"""A folder of a thousand images and every kind of bad one: the summary, the memory, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.job_memory import GOAL, measure, write_folder
from openblip.cli import app
from tests.cli.test_odd_files import state_of


@pytest.mark.slow
def test_a_thousand_images_and_every_kind_of_bad_one(tmp_path: Path) -> None:
    write_folder(tmp_path, good=1000, huge=0, side=0)
    before = state_of(tmp_path)
    options = ["--recursive", "--to", "sidecar", "--name", "full", "--num-beams", "1", "--max-new-tokens", "1"]
    done = CliRunner().invoke(app, ["caption", str(tmp_path), *options])
    assert done.exit_code == 3
    assert "failed: " in done.stderr
    assert "skipped: " in done.stderr
    after = state_of(tmp_path)
    assert {name: after[name] for name in before} == before
    assert all(name.endswith((".txt", ".openblip-caption.journal")) for name in set(after) - set(before))
    assert sum(name.startswith("good") and name.endswith(".txt") for name in after) == 1000


@pytest.mark.slow
def test_huge_and_bad_images_stay_within_the_memory() -> None:
    quick = ("--num-beams", "1", "--max-new-tokens", "1")
    exit_code, peak, base = measure(20, 4, 8000, *quick)
    assert exit_code == 3
    assert peak - base < GOAL
