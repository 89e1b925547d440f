"""The micro-batcher: fairness, deadlines, cancellation, and requests that share batches without mixing."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from openblip import Blip
from openblip.errors import InputError, StoppedError
from openblip.serving.admission import CostModel
from openblip.serving.batching import Batcher, FairQueue, Job, Stage, Unit
from openblip.serving.metrics import Metrics
from openblip.serving.options import Limits, ServerOptions
from tests.serving.serving_toys import encode, running_app
from tests.toys import toy_image

pytestmark = pytest.mark.usefixtures("one_thread")


class Doubler(Stage[int, int, int]):
    """Doubles numbers; records its batches."""

    kind, key, max_batch = "double", "double", 4

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self.batches: list[list[int]] = []
        self._before = before

    def prepare(self, item: int) -> int:
        if item < 0:
            raise InputError("must not be negative")
        return item

    def run(self, batch: list[int]) -> Sequence[int]:
        self._before()
        if 1313 in batch:
            raise RuntimeError("unlucky")
        self.batches.append(batch)
        return [2 * item for item in batch]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def batcher(metrics: Metrics) -> Iterator[Batcher]:
    batcher = Batcher(metrics, CostModel(), workers=2, max_wait=0.005)
    yield batcher
    batcher.close()


def job(client: str = "a", seconds: float = 30.0) -> Job:
    return Job(client, time.monotonic() + seconds)


def assert_set(event: threading.Event) -> None:
    assert event.wait(10)


def counts(metrics: Metrics) -> dict[str, float]:
    value = metrics.registry.get_sample_value
    return {
        "submitted": value("openblip_items_submitted_total", {"kind": "double"}) or 0,
        "computed": value("openblip_items_computed_total", {"kind": "double"}) or 0,
        "cancelled": value("openblip_items_dropped_total", {"reason": "cancelled"}) or 0,
        "late": value("openblip_items_dropped_total", {"reason": "late"}) or 0,
        "invalid": value("openblip_items_dropped_total", {"reason": "invalid"}) or 0,
    }


def test_results_come_back_to_their_items(batcher: Batcher) -> None:
    async def run() -> None:
        stage = Doubler()
        futures = [batcher.submit(job(str(i % 3)), stage, range(10 * i, 10 * i + 7)) for i in range(20)]
        for i, group in enumerate(futures):
            assert await asyncio.gather(*group) == [2 * n for n in range(10 * i, 10 * i + 7)]
        assert sum(map(len, stage.batches)) == 140
        assert max(map(len, stage.batches)) == 4

    asyncio.run(run())


def test_an_invalid_item_and_a_failing_one_spare_their_neighbors(batcher: Batcher) -> None:
    async def run() -> None:
        results = await asyncio.gather(*batcher.submit(job(), Doubler(), [1, -1, 1313, 2]), return_exceptions=True)
        assert results[0] == 2
        assert results[3] == 4
        assert isinstance(results[1], InputError)
        assert isinstance(results[2], RuntimeError)

    asyncio.run(run())


def test_late_and_cancelled_items_never_reach_the_model(batcher: Batcher, metrics: Metrics) -> None:
    async def run() -> None:
        release = threading.Event()
        stage = Doubler(lambda: assert_set(release))
        (first,) = batcher.submit(job(), stage, [1])
        await asyncio.sleep(0.05)  # the model is busy
        cancelled, late = job(), job(seconds=0.05)
        futures = [*batcher.submit(cancelled, stage, [2, 3]), *batcher.submit(late, stage, [4])]
        (live,) = batcher.submit(job(), stage, [5])
        await asyncio.sleep(0.1)
        cancelled.cancelled = True
        release.set()
        assert await first == 2
        assert await live == 10
        for future in futures:
            assert isinstance(await future, StoppedError)
        assert stage.batches == [[1], [5]]

    asyncio.run(run())
    expected = {"submitted": 5, "computed": 2, "cancelled": 2, "late": 1, "invalid": 0}
    assert counts(metrics) == expected, "every item was computed or dropped, and none twice"


def test_clients_take_turns_by_the_seconds_they_use() -> None:
    queue = FairQueue()
    loop = asyncio.new_event_loop()
    stage = Doubler()

    def push(client: str, count: int, seconds: float) -> None:
        for _ in range(count):
            queue.push(Unit(job(client), stage, loop.create_future(), loop, 1.0, seconds, key="k"))

    push("greedy", 50, 1.0)
    push("small", 5, 1.0)
    order = [queue.pop("k", 1)[0].job.client for _ in range(20)]
    assert order.count("small") == 5
    assert order[:11].count("small") == 5, "every other turn is the small client's"
    push("late", 3, 1.0)
    assert "late" in [queue.pop("k", 1)[0].job.client for _ in range(2)], "who comes later is not behind everybody"
    push("costly", 10, 10.0)
    push("cheap", 10, 1.0)
    turns = [queue.pop("k", 1)[0].job.client for _ in range(30)]
    assert turns.count("cheap") > turns.count("costly")
    loop.close()


def test_a_lone_request_does_not_wait(batcher: Batcher) -> None:
    async def run() -> float:
        started = time.monotonic()
        await asyncio.gather(*batcher.submit(job(), Doubler(), [1]))
        return time.monotonic() - started

    batcher._max_wait = 5.0
    assert asyncio.run(run()) < 2.0, "it does not wait for companions that are not on their way"


def test_a_batch_whose_requests_all_end_is_stopped(toy: Blip) -> None:
    with running_app(toy) as server:
        body = json.dumps({"image": _text(0), "max_new_tokens": 64, "min_new_tokens": 60}).encode()
        head = "POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}"
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(head.encode() + b"\r\n\r\n" + body)
                time.sleep(0.03)
        end = time.monotonic() + 10
        while server.app.service.admission.num_open and time.monotonic() < end:
            time.sleep(0.01)
        assert server.app.service.admission.num_open == 0
        assert server.app.service.admission.queued_seconds == 0.0
        assert server.metric("openblip_requests_total", route="/v1/caption", status="499") >= 1


def _text(seed: int) -> str:
    return base64.b64encode(encode(toy_image(seed))).decode()


def test_32_clients_get_their_own_results(toy: Blip) -> None:
    """None lost, none swapped; equal to the library; bit-equal when a batch is computed again."""
    batches: list[tuple[Any, list[Any], Sequence[object]]] = []
    options = ServerOptions(limits=Limits(max_queue_seconds=600, client_share=1.0))
    images = [encode(toy_image(seed)) for seed in range(6)]
    texts = [base64.b64encode(image).decode() for image in images]
    expected = {
        "caption": [caption.text for caption in toy.caption(images, max_new_tokens=8)],
        "ask": [answer.text for answer in toy.ask(images, "what is it?", max_new_tokens=5)],
        "match": [match.probability for match in toy.match(images, "a cat")],
        "embed": toy.embed_images(images).tolist(),
    }
    bodies: dict[str, dict[str, Any]] = {
        "caption": {"max_new_tokens": 8},
        "ask": {"question": "what is it?", "max_new_tokens": 5},
        "match": {"text": "a cat"},
        "embed": {},
    }

    def check(verb: str, seed: int, answer: dict[str, Any]) -> None:
        if verb == "embed":
            assert answer["images"][0] == pytest.approx(expected[verb][seed], abs=1e-5)
            return
        result = answer["results"][0]
        if verb == "caption":
            assert result["text"] == expected[verb][seed]
        elif verb == "ask":
            assert result["answers"][0]["text"] == expected[verb][seed]
        else:
            assert result["matches"][0]["probability"] == pytest.approx(expected[verb][seed], abs=1e-5)

    def run_client(number: int) -> int:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            for turn in range(4):
                verb, seed = list(bodies)[(number + turn) % 4], (number * 5 + turn) % 6
                response = client.post(f"/v1/{verb}", json={"image": texts[seed], **bodies[verb]})
                assert response.status_code == 200, response.text
                check(verb, seed, response.json())
        return 4

    with running_app(toy, options, recorder=lambda *batch: batches.append(batch)) as server:
        warm_up = len(batches)
        with ThreadPoolExecutor(32) as pool:
            assert sum(pool.map(run_client, range(32))) == 128
    sizes = [len(prepared) for _, prepared, _ in batches[warm_up:]]
    assert sum(sizes) == 128
    assert sum(sizes) / len(sizes) > 2, "requests of different clients share batches"
    for stage, prepared, results in batches[warm_up:]:
        assert repr(stage.run(prepared)) == repr(results), "the same batch gives the same bits"
