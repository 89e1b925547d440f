"""A server process: SIGTERM finishes what was admitted and refuses the rest; other machines need keys."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

import openblip
from openblip import Blip
from openblip.cli import app as cli
from openblip.serving.app import create_app
from openblip.serving.batching import Stage
from openblip.serving.run import DrainingServer, make_config, run_server
from tests.serving.serving_toys import encode, listen
from tests.toys import toy_image

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGE = base64.b64encode(encode(toy_image(0))).decode()


def test_sigterm_finishes_admitted_requests(toy: Blip) -> None:
    entered, release = threading.Event(), threading.Event()

    def hold(stage: Stage[Any, Any, Any], prepared: list[Any], results: Sequence[object]) -> None:
        if app.service.state.ready:
            entered.set()
            assert release.wait(20)

    app = create_app({"toy": toy}, recorder=hold)
    listener = listen()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = DrainingServer(make_config(app, "127.0.0.1", 0), app, drain_seconds=20)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    thread.start()
    while not app.service.state.ready:
        time.sleep(0.01)
    with ThreadPoolExecutor(1) as pool:
        admitted = pool.submit(httpx.post, f"{url}/v1/caption", json={"image": IMAGE}, timeout=30)
        assert entered.wait(20)
        server.handle_exit(signal.SIGTERM, None)
        assert httpx.get(f"{url}/healthz").status_code == 200
        assert httpx.get(f"{url}/readyz").status_code == 503
        refused = httpx.post(f"{url}/v1/caption", json={"image": IMAGE})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "draining"
        assert thread.is_alive()
        release.set()
        assert admitted.result().status_code == 200
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize("name", ["openblip.serving", "uvicorn.error", "python_multipart.multipart"])
def test_the_log_is_json(
    toy: Blip, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also what the parser of forms says about malformed ones."""
    for logger in ("openblip.serving", "uvicorn", "uvicorn.error", "py.warnings", "python_multipart"):
        for attribute in ("handlers", "propagate", "level"):  # restored after the test
            monkeypatch.setattr(logging.getLogger(logger), attribute, getattr(logging.getLogger(logger), attribute))
    monkeypatch.setattr(DrainingServer, "run", lambda self: None)
    run_server(create_app({"toy": toy}), "127.0.0.1", 0)
    logging.captureWarnings(False)
    logging.getLogger(name).warning("odd bytes")
    lines = capsys.readouterr().err.splitlines()
    assert [type(json.loads(line)) for line in lines] == [dict]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "needs API keys"),
        (["--api-keys", "missing.txt"], "cannot read the API keys"),
        (["--edit", "missing"], "must name a folder"),
        (["--index", "missing"], ""),
        (["--port", "65536"], "65536 is not in the range"),
    ],
)
def test_wrong_usage_starts_nothing(
    arguments: list[str], message: str, folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENBLIP_API_KEYS", raising=False)
    monkeypatch.setattr("openblip.serving.run.run_server", lambda *_, **__: pytest.fail("it started"))
    result = CliRunner().invoke(cli, ["serve", "--model", str(folder), *arguments])
    assert result.exit_code in (1, 2)
    assert message in result.output


def test_the_command_serves_a_model_under_its_name(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Any] = []
    monkeypatch.setenv("OPENBLIP_API_KEYS", "alice=correct-horse-battery")
    monkeypatch.setattr("openblip.serving.run.run_server", lambda *arguments, **_: served.append(arguments))
    result = CliRunner().invoke(
        cli, ["serve", "--model", str(folder), "--host", "0.0.0.0", "--allow-host", "Blip.Example"]
    )
    assert result.exit_code == 0, result.output
    ((app, host, port),) = served
    assert (host, port) == ("0.0.0.0", 8000)
    assert app.service.models.names == [folder.name], "no path"
    assert {"localhost", "blip.example"} <= set(app.service.options.hosts)
    assert "correct-horse-battery" not in result.output
    app.service.batcher.close()
    unnamed = create_app(openblip.load(folder))
    assert unnamed.service.models.names == [folder.name]
    unnamed.service.batcher.close()
