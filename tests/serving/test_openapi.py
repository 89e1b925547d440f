"""The OpenAPI document describes what the server does: requests that schemathesis makes of it, with all its checks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

from openblip import Blip
from openblip.search import Index
from openblip.serving.gate import COMPUTED_ROUTES
from openblip.serving.options import Limits, ServerOptions
from tests.cli.odd_files import write_odd_folder
from tests.serving import schemathesis_hooks as schemathesis_hooks
from tests.serving.serving_toys import RunningServer, running_app
from tests.toys import toy_image

pytestmark = pytest.mark.usefixtures("one_thread")

KEY = "correct-horse-battery"
# Limits between fields, such as n <= num_beams, are not expressible: they make 413 and 422 right answers.
ACCEPTED = ["2xx", "401", "403", "404", "413", "422", "429"]
REFUSED = ["400", "401", "403", "404", "405", "408", "413", "415", "422", "429"]


@pytest.fixture(scope="module")
def guarded(toy: Blip, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(3):
        toy_image(seed).save(folder / f"{seed}.png")
    location = str(tmp_path_factory.mktemp("index") / "toy.index")
    with Index.create(location, toy) as index:
        index.add([str(folder)], toy)
    options = ServerOptions(keys={"alice": KEY}, index=location, limits=Limits(max_queue_seconds=600, client_share=1.0))
    with running_app(toy, options) as running:
        running.client.headers["Authorization"] = f"Bearer {KEY}"
        yield running


@pytest.fixture(scope="module")
def document(guarded: RunningServer) -> dict[str, Any]:
    answer: dict[str, Any] = guarded.client.get("/openapi.json").json()
    return answer


def test_all_ways_of_sending_a_key_are_documented(guarded: RunningServer, document: dict[str, Any]) -> None:
    schemes = document["components"]["securitySchemes"]
    assert document["paths"]["/v1/info"]["get"]["security"] == [{name: []} for name in schemes]
    assert "security" not in document["paths"]["/healthz"]["get"]
    sent = {"http": {"Authorization": f"Bearer {KEY}"}, "apiKey": {schemes["header"]["name"]: KEY}}
    for scheme in schemes.values():
        response = httpx.get(f"{guarded.url}/v1/info", headers=sent[scheme["type"]])
        assert response.status_code == 200


def test_every_route_is_documented(document: dict[str, Any]) -> None:
    assert document["paths"].keys() >= COMPUTED_ROUTES
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path
            assert "404" in operation["responses"] or path in ("/healthz",), path
            if path in COMPUTED_ROUTES:
                assert {
                    "200",
                    "400",
                    "401",
                    "403",
                    "404",
                    "408",
                    "413",
                    "415",
                    "422",
                    "429",
                    "500",
                    "503",
                    "504",
                } <= set(operation["responses"])
                content = operation["requestBody"]["content"]["application/json"]
                assert content["examples"], path


def test_every_example_is_answered(guarded: RunningServer, document: dict[str, Any]) -> None:
    for path in sorted(COMPUTED_ROUTES):
        content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        body = content["examples"]["example"]["value"]
        if "model" in body:
            body = {**body, "model": "toy"}
        response = guarded.client.post(path, json=body)
        assert response.status_code == 200, (path, response.text)


def test_generated_requests_pass_the_checks(guarded: RunningServer) -> None:
    """A few valid and invalid requests per operation; the slow test sends hundreds."""
    headers = {"Authorization": f"Bearer {KEY}"}
    schema: Any = schemathesis.openapi.from_url(f"{guarded.url}/openapi.json", headers=headers)
    schema.config.checks.positive_data_acceptance.expected_statuses = ACCEPTED
    schema.config.checks.negative_data_rejection.expected_statuses = REFUSED
    count = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        cases = operation.as_strategy() | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)

        @settings(
            max_examples=4,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        @given(case=cases)
        def check(case: Any) -> None:
            nonlocal count
            count += 1
            case.call_and_validate(headers=headers, timeout=30)

        check()
    assert count > 40


@pytest.mark.slow
def test_all_checks_of_schemathesis_hold(guarded: RunningServer, tmp_path: Path) -> None:
    checks = {"positive_data_acceptance": ACCEPTED, "negative_data_rejection": REFUSED}
    sections = [f"[checks.{name}]\nexpected-statuses = {json.dumps(statuses)}\n" for name, statuses in checks.items()]
    (tmp_path / "schemathesis.toml").write_text("\n".join(sections))
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{guarded.url}/openapi.json", "--checks", "all"),
        *("--header", f"Authorization: Bearer {KEY}", "--max-examples", "30", "--seed", "0", "--no-color"),
    ]
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"SCHEMATHESIS_HOOKS": "tests.serving.schemathesis_hooks", "PYTHONPATH": root}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


def test_odd_images_are_answered_or_refused(guarded: RunningServer, tmp_path: Path) -> None:
    """Every file of the corpus gets a result or a documented refusal, and none hangs."""
    good, bad = write_odd_folder(tmp_path)
    statuses: dict[str, int] = {}
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        response = guarded.client.post("/v1/caption", files={"image": path.read_bytes()}, timeout=20)
        statuses[path.relative_to(tmp_path).as_posix()] = response.status_code
    assert set(statuses.values()) <= {200, 413, 422}, statuses
    assert {statuses[name] for name in good if name in statuses} == {200}
    assert 200 not in {statuses[name] for name in bad if name in statuses}
    assert len(statuses) > 20
