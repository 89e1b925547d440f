"""`openblip capfilt` as users type it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from openblip.cli import app
from tests.capfilt.capfilt_toys import read_rows, web_folder

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = ("--device", "cpu", "--engine", "torch", "--max-new-tokens", "6", "--min-new-tokens", "1", "--num-workers", "0")


def call(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["capfilt", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_run_rethreshold_and_report(folder: Path, tmp_path: Path) -> None:
    source, out = web_folder(tmp_path / "web", 4), tmp_path / "out"
    models = ("--captioner", str(folder), "--filter", str(folder))
    code, _, errors = call("run", str(source), "--out", str(out), *models, *SMALL)
    assert code == 0, errors
    assert errors.startswith("4 images, ")
    assert "of 4 synthetic texts kept" in errors
    code, stdout, errors = call("rethreshold", str(out), "--itm-threshold", "0", "--json")
    assert code == 0, errors
    assert json.loads(stdout)["synthetic_kept"] == 4
    assert all(len(row["captions"]) == 2 for row in read_rows(out).values())
    code, stdout, errors = call("report", str(out))
    assert (code, stdout) == (0, f"{out}/report.html\n"), errors
    assert (out / "report.html").read_text().count("<article>") == 4


def test_failures_give_exit_code_3(folder: Path, tmp_path: Path) -> None:
    source, out = web_folder(tmp_path / "web", 3), tmp_path / "out"
    (source / "001.jpg").write_bytes(b"damaged")
    arguments = (str(source), "--out", str(out), "--captioner", str(folder), "--filter", str(folder), *SMALL)
    code, _, errors = call("run", *arguments)
    assert code == 3, errors
    assert "1 images or shards failed: 1 x cannot " in errors
    (source / "001.jpg").write_bytes((source / "000.jpg").read_bytes())
    code, _, errors = call("run", *arguments, "--retry", "failed")
    assert code == 0, errors


def test_wrong_usage(folder: Path, tmp_path: Path) -> None:
    models = ("--captioner", str(folder), "--filter", str(folder), "--out", str(tmp_path / "out"))
    for options, message in (
        (("--keep", "itc"), "keep='itc' needs itc_threshold"),
        (("--allow-host", "localhost"), "--allow-host needs --allow-fetch"),
        (("--column", "caption"), "--column must look like caption=alt_text"),
    ):
        code, _, errors = call("run", str(tmp_path), *models, *options)
        assert code in (1, 2)
        assert message in errors
    code, _, errors = call("rethreshold", str(tmp_path))
    assert code == 1
    assert "must be the output of `openblip capfilt run`" in errors
