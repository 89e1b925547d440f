"""The code of docs/serving.md runs against a server, and its tables name what there is."""

from __future__ import annotations

import importlib.util
import re
import shutil
from dataclasses import fields
from pathlib import Path

import pytest

from openblip import Blip
from openblip.cli.serve import serve
from openblip.serving.errors import TYPES
from openblip.serving.gate import COMPUTED_ROUTES
from openblip.serving.options import Limits
from tests.serving.serving_toys import running_app

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text("utf-8")


def test_code_runs(toy: Blip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "examples" / "photos", tmp_path / "examples" / "photos")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    with running_app(toy, name="pocket") as server:
        for block in blocks:
            exec(block.replace("http://127.0.0.1:8000", server.url), names)
    assert len(names["vectors"]) == 2  # type: ignore[arg-type]


def test_every_route_status_and_option_is_described() -> None:
    for route in COMPUTED_ROUTES:
        assert route in PAGE, route
    for status in set(TYPES) - {500}:
        assert re.search(rf"^\| .*{status}.* \|", PAGE, re.MULTILINE), status
    options = {name for parameter in serve.params for name in parameter.opts}
    for name in re.findall(r"`(--[\w-]+)", PAGE):
        assert name in options, name
    limits = Limits()
    assert f"{limits.max_images}, {limits.max_texts}, {limits.max_pairs}" in PAGE
    assert len(fields(Limits)) == 16


def test_the_image_refuses_cuda() -> None:
    spec = importlib.util.spec_from_file_location("check_cpu", ROOT / "deploy" / "check_cpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    plain = [("torch", "2.13.0+cpu"), ("numpy", "2.0"), ("tritonclient", "1")]
    assert module.find_cuda(plain) == []
    found = module.find_cuda([*plain, ("nvidia-cublas-cu12", "12"), ("triton", "3"), ("torch", "2.13.0+cu128")])
    assert len(found) == 3


def test_deployment_files_use_options_that_exist() -> None:
    options = {name for parameter in serve.params for name in parameter.opts}
    for name in ("Dockerfile", "compose.yaml", "openblip.service"):
        text = (ROOT / "deploy" / name).read_text("utf-8")
        command = "".join(line for line in text.splitlines() if "serve" in line or line.strip().startswith("- --"))
        used = set(re.findall(r"(--[a-z-]+)", command)) - {"--now"}
        assert used, name
        assert used <= options, name
    text = (ROOT / "deploy" / "Dockerfile").read_text("utf-8")
    assert "USER openblip" in text
    assert text.count("check_cpu.py && ") + text.count("&& python deploy/check_cpu.py") == 2
    assert not re.search(r"https?://(?!127)", text), "no default host"
