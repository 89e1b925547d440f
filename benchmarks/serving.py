"""Load test of the server: `python -m benchmarks.serving` (`make bench-serving`).

A server answers mixed requests of 32 clients: captions, answers, matches and embeddings. Every result is compared
with the library's. The CPU seconds of the server are compared with those of the library's batch methods for the same
items. Then an overload of ten times the measured rate arrives, and refusals are measured at the server.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch

import openblip
from benchmarks import machine
from benchmarks.inference import HERE, say, write
from benchmarks.materials import SCALES, TASKS, Materials
from openblip import Blip
from openblip.checkpoints.folder import write_bundle

CLIENTS = 32
OVERLOAD = 10
TOLERANCE = 1e-4
TARGETS = {"pocket": 0.7, "base": 0.85}  # of the library's speed, by CPU seconds
VERBS = ("caption", "ask", "match", "embed")
_HERTZ = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Load:
    """The items of a load test, and what the library answers."""

    files: list[bytes]
    questions: list[str]
    texts: list[str]
    expected: dict[str, list[Any]]

    def verb(self, number: int) -> str:
        """Return the verb of a request."""
        return VERBS[number % len(VERBS)]

    def body(self, number: int) -> bytes:
        """Return the body of a request."""
        index = number % len(self.files)
        fields: dict[str, Any] = {"image": base64.b64encode(self.files[index]).decode()}
        if self.verb(number) == "ask":
            fields["question"] = self.questions[index]
        elif self.verb(number) == "match":
            fields["text"] = self.texts[index]
        return json.dumps(fields).encode()

    def is_right(self, number: int, answer: dict[str, Any]) -> bool:
        """Return whether an answer is the library's for this request, and for no other."""
        verb, index = self.verb(number), number % len(self.files)
        expected = self.expected[verb][index]
        if verb == "embed":
            return max(abs(a - b) for a, b in zip(answer["images"][0], expected, strict=True)) < TOLERANCE
        result = answer["results"][0]
        if verb == "caption":
            return bool(result["text"] == expected)
        if verb == "ask":
            return bool(result["answers"][0]["text"] == expected)
        return bool(abs(result["matches"][0]["probability"] - expected) < TOLERANCE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the record; return 1 if a request was lost or swapped."""
    options = read_options(arguments)
    materials = Materials(options.work, SCALES["toy" if options.quick else "base"])
    model = make_model(options, materials)
    record: dict[str, Any] = {**machine.begin(options.threads), "model": options.model, "clients": CLIENTS}
    say(f"loading {options.model}, and computing what is expected")
    blip = openblip.load(model)
    load, offline = run_offline(blip, materials, options)
    with running_server(model, options) as server:
        say(f"{options.requests} requests of {CLIENTS} clients")
        record["mixed"] = run_mixed(server, load, options.requests, offline)
    with running_server(model, options, queue=options.queue) as server:
        say(f"overload: {OVERLOAD} times {record['mixed']['requests_per_second']:.1f} requests per second")
        rate = OVERLOAD * record["mixed"]["requests_per_second"]
        record["overload"] = run_overload(server, load, rate, options.seconds)
    show(record, TARGETS.get(options.model, 0.0))
    write(record, options.results / f"{options.name}.json")
    return 0 if not record["mixed"]["wrong"] and not record["mixed"]["lost"] else 1


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny models and few requests, as a test")
    parser.add_argument("--model", choices=("pocket", "base"), default="pocket", help="base: random weights")
    parser.add_argument("--requests", type=int, default=None, help="number of mixed requests (default: 2000)")
    parser.add_argument("--seconds", type=float, default=None, help="length of the overload (default: 20)")
    parser.add_argument("--queue", type=float, default=5.0, help="--max-queue of the overload")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, default=HERE / ".work", help="folder of models and images")
    parser.add_argument("--name", default=None, help="name of the result file, without suffix")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    options.requests = options.requests or (80 if options.quick else 2000)
    options.seconds = options.seconds or (2.0 if options.quick else 20.0)
    options.name = options.name or f"serving_{options.model}"
    return options


def make_model(options: argparse.Namespace, materials: Materials) -> Path | str:
    """Return the model to serve: pocket, or a bundle of the published shape (with --quick, of toys)."""
    if options.model == "pocket" and not options.quick:
        return "pocket"
    folder = materials.folder / materials.scale.name / "bundle"
    folder.mkdir(parents=True, exist_ok=True)
    write_bundle(folder, {task: materials.model(task) for task in TASKS if task in ("caption", "vqa", "retrieval")})
    return folder


def run_offline(blip: Blip, materials: Materials, options: argparse.Namespace) -> tuple[Load, float]:
    """Return the load with what the library answers, and the library's CPU seconds per item of the mix."""
    count = 16 if options.quick else 32
    files = [path.read_bytes() for path in materials.photo_files(count)]
    words = ["a cat", "two dogs on a bed", "a red car", "a man with a hat"]
    questions = [f"is there {words[index % 4]}?" for index in range(count)]
    texts = [words[index % 4] for index in range(count)]
    calls: dict[str, Callable[[], list[Any]]] = {
        "caption": lambda: [caption.text for caption in blip.caption(files)],
        "ask": lambda: [answer.text for answer in blip.ask(files, questions)],
        "match": lambda: [match.probability for match in blip.match(files, texts, paired=True)],
        "embed": lambda: blip.embed_images(files).tolist(),
    }
    expected = {verb: call() for verb, call in calls.items()}
    seconds = []
    for _ in range(1 if options.quick else 2):
        before = time.process_time()
        for call in calls.values():
            call()
        seconds.append(time.process_time() - before)
    return Load(files, questions, texts, expected), statistics.median(seconds) / (count * len(calls))


@dataclass(frozen=True)
class Server:
    """A running server process."""

    url: str
    pid: int

    def cpu_seconds(self) -> float:
        """Return the CPU seconds that the process has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _HERTZ

    def memory_mib(self) -> float:
        """Return the resident memory."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        match = re.search(r"VmRSS:\s+(\d+)", status)
        return int(match[1]) / 1024 if match else 0.0

    def metrics(self) -> dict[str, float]:
        """Return the metrics by name and labels."""
        text = httpx.get(f"{self.url}/metrics", timeout=30).text
        lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}


@contextmanager
def running_server(model: Path | str, options: argparse.Namespace, *, queue: float = 600.0) -> Iterator[Server]:
    """Run `openblip serve` until the end of the block."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    code = "import sys; from openblip.cli import main; sys.exit(main())"
    arguments = ["serve", "--model", str(model), "--port", str(port), "--threads", str(options.threads)]
    arguments += ["--log-level", "error", "--max-queue", str(queue), "--max-seconds", str(max(30.0, queue))]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments])
    server = Server(f"http://127.0.0.1:{port}", process.pid)
    try:
        with httpx.Client(transport=httpx.HTTPTransport(retries=0)) as client:
            wait_until_ready(client, server.url, process)
        yield server
    finally:
        process.terminate()
        process.wait(60)


def wait_until_ready(client: httpx.Client, url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait for the server's models."""
    end = time.monotonic() + 300
    while time.monotonic() < end and process.poll() is None:
        try:
            if client.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise RuntimeError("the server did not become ready")


def run_mixed(server: Server, load: Load, requests: int, offline: float) -> dict[str, Any]:
    """Send mixed requests from all clients, check each answer, and compare CPU seconds with the library's."""
    wrong, statuses, latencies = [0], Counter[int](), list[float]()
    memory = [0.0]

    async def run_client(client: httpx.AsyncClient, number: int) -> None:
        for request in range(number, requests, CLIENTS):
            started = time.monotonic()
            response = await client.post(
                f"/v1/{load.verb(request)}", content=load.body(request), headers={"Content-Type": "application/json"}
            )
            latencies.append(time.monotonic() - started)
            statuses[response.status_code] += 1
            if response.status_code == 200 and not load.is_right(request, response.json()):
                wrong[0] += 1
            if sum(statuses.values()) == requests // 5:
                memory[0] = server.memory_mib()

    before, cpu, started = server.metrics(), server.cpu_seconds(), time.monotonic()
    asyncio.run(with_clients(server.url, CLIENTS, run_client))
    wall, used = time.monotonic() - started, server.cpu_seconds() - cpu
    after = server.metrics()
    return {
        "requests": requests,
        "lost": requests - statuses[200],
        "wrong": wrong[0],
        "statuses": {str(status): count for status, count in statuses.items()},
        "wall_seconds": wall,
        "requests_per_second": requests / wall,
        "server_cpu_ms_per_request": 1000 * used / requests,
        "library_cpu_ms_per_item": 1000 * offline,
        "ratio": offline * requests / used,
        "mean_batch": difference(before, after, "openblip_batch_size_sum")
        / difference(before, after, "openblip_batch_size_count"),
        "latency_ms": percentiles(latencies),
        "memory_mib_after_a_fifth": memory[0],
        "memory_mib_at_the_end": server.memory_mib(),
    }


def run_overload(server: Server, load: Load, rate: float, seconds: float) -> dict[str, Any]:
    """Send requests at a fixed rate, whatever comes back, and measure refusals at the server."""
    statuses, accepted = Counter[int](), list[float]()
    body = load.body(0)

    async def send(client: httpx.AsyncClient) -> None:
        started = time.monotonic()
        try:
            response = await client.post("/v1/caption", content=body, headers={"Content-Type": "application/json"})
        except httpx.TransportError:
            statuses[0] += 1
            return
        statuses[response.status_code] += 1
        if response.status_code == 200:
            accepted.append(time.monotonic() - started)

    async def run() -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as client:
            tasks, started = list[asyncio.Task[None]](), time.monotonic()
            while (elapsed := time.monotonic() - started) < seconds:
                while len(tasks) < rate * elapsed:
                    tasks.append(asyncio.create_task(send(client)))
                await asyncio.sleep(0.005)
            await asyncio.gather(*tasks)

    before = server.metrics()
    asyncio.run(run())
    after = server.metrics()
    return {
        "requests_per_second": rate,
        "requests": sum(statuses.values()),
        "statuses": {str(status): count for status, count in statuses.items()},
        "refusal_ms": {
            "p50": 1000 * histogram_quantile(before, after, "openblip_refusal_seconds", 0.5),
            "p99": 1000 * histogram_quantile(before, after, "openblip_refusal_seconds", 0.99),
        },
        "accepted_ms": percentiles(accepted),
        "deadline_ms": 30_000,
    }


async def with_clients(url: str, count: int, run_client: Callable[[httpx.AsyncClient, int], Awaitable[None]]) -> None:
    """Run clients at the same time, each with a connection of its own."""
    clients = [httpx.AsyncClient(base_url=url, timeout=600) for _ in range(count)]
    await asyncio.gather(*(run_client(client, number) for number, client in enumerate(clients)))
    for client in clients:
        await client.aclose()


def difference(before: dict[str, float], after: dict[str, float], name: str) -> float:
    """Return the growth of a metric, summed over its labels."""
    return sum(after[key] - before.get(key, 0.0) for key in after if key.partition("{")[0] == name)


def histogram_quantile(before: dict[str, float], after: dict[str, float], name: str, quantile: float) -> float:
    """Return an upper bound of a quantile: the end of the bucket that contains it."""
    buckets = []
    for key, value in after.items():
        match = re.fullmatch(rf'{name}_bucket{{le="([^"]+)"}}', key)
        if match:
            buckets.append((float(match[1]), value - before.get(key, 0.0)))
    buckets.sort()
    total = buckets[-1][1] if buckets else 0.0
    return next((end for end, count in buckets if total and count >= quantile * total), 0.0)


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return percentiles in milliseconds."""
    ordered = sorted(seconds)
    return {
        f"p{percent}": 1000 * ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else 0.0
        for percent in (50, 90, 99)
    }


def show(record: dict[str, Any], target: float) -> None:
    """Print the figures."""
    mixed, overload = record["mixed"], record["overload"]
    say(f"lost {mixed['lost']}, wrong {mixed['wrong']} of {mixed['requests']}; mean batch {mixed['mean_batch']:.2f}")
    say(
        f"{mixed['requests_per_second']:.1f} requests/s; CPU per request {mixed['server_cpu_ms_per_request']:.1f} ms, "
        f"library {mixed['library_cpu_ms_per_item']:.1f} ms: {mixed['ratio']:.2f} x (target {target})"
    )
    say(f"memory {mixed['memory_mib_after_a_fifth']:.0f} -> {mixed['memory_mib_at_the_end']:.0f} MiB")
    say(
        f"overload: {overload['statuses']}; refusals p50 < {overload['refusal_ms']['p50']:.1f} ms, "
        f"p99 < {overload['refusal_ms']['p99']:.1f} ms; accepted p99 {overload['accepted_ms']['p99']:.0f} ms"
    )


if __name__ == "__main__":
    sys.exit(main())
