"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from openblip import Blip
from tests.http_server import Server, running_server

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach a hub

GOLDEN = Path(__file__).parent / "golden"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave out the summary of hypothesis where no test uses it: it would import hypothesis, which takes 0.7 s."""
    plugins = session.config.pluginmanager
    if "hypothesis" not in sys.modules and plugins.has_plugin("hypothesispytest"):
        plugins.unregister(name="hypothesispytest")


@pytest.fixture(scope="session")
def golden() -> Path:
    """Outputs recorded from the original implementations at toy size; the README there tells what they are."""
    return GOLDEN


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Run a module's tests on one thread: with toy tensors a second one only adds waiting."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a toy model for each task."""
    from tests.pipelines.pipeline_toys import TASKS
    from tests.toys import toy_bundle

    return toy_bundle(tmp_path_factory.mktemp("toy"), TASKS)


@pytest.fixture(scope="session")
def blip(folder: Path) -> Blip:
    """The bundle of `folder`, loaded."""
    import openblip

    return openblip.load(folder)


@pytest.fixture
def server() -> Iterator[Server]:
    """A server on this machine for downloads, which also speaks the hub's protocol."""
    with running_server() as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caches of this test's own, the network allowed (on this machine), and no waiting between attempts."""
    import huggingface_hub.constants

    from openblip.io import download

    monkeypatch.setenv("OPENBLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.0)
    return tmp_path / "cache"
