"""CapFilt: `python -m benchmarks.capfilt` (`make bench-capfilt`).

- `speed`: images per second of caption and filter, ours against the way of data-juicer's operators on `transformers`:
  one `generate` per caption, one forward pass per text, the image encoded each time. Same weights, same rounds.
- `ray`: two Ray actors of one thread against one process of two threads, and the start-up of Ray.
- `rethreshold`: another rule for a million scored rows, by the command, in a new process.
- `memory`: peak memory of a run over 10,000 and over 100,000 rows, with a toy model.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks import machine
from benchmarks.inference import HERE, say, write
from benchmarks.materials import SCALES, Materials
from openblip.blip import load
from openblip.capfilt import rows
from openblip.capfilt.folder import CapFiltFolder
from openblip.capfilt.rules import Rule
from openblip.capfilt.run import CapFiltJob, ModelOptions, run
from openblip.capfilt.scoring import Sampling, Scorer
from openblip.io import jsonlines
from openblip.jobs.ray import run_on_ray

PARTS = ("speed", "ray", "rethreshold", "memory")
REFERENCE = "transformers, one by one"
RUN = (
    "import resource, sys; from pathlib import Path\n"
    "from openblip.capfilt.run import CapFiltJob, ModelOptions, run\n"
    "from openblip.capfilt.scoring import Sampling\n"
    "listing, out, captioner, matcher = sys.argv[1:]\n"
    "models = ModelOptions(captioner, matcher, 'cpu', 'torch', 'fp32', 16, 1, 1)\n"
    "run([listing], CapFiltJob(out, models, Sampling(min_new_tokens=1, max_new_tokens=4)))\n"
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)\n"
)
RETHRESHOLD = (
    "import sys, time; started = time.perf_counter(); from openblip.cli import app\n"
    "try: app(sys.argv[1:])\n"
    "except SystemExit as end: print(end.code or 0, 'torch' in sys.modules, time.perf_counter() - started)\n"
)


class OneByOne:
    """Caption and filter as data-juicer's operators do it: every caption and every text is a call of its own.

    Args:
        captioner: Folder of the captioner.
        matcher: Folder of the filter.
    """

    def __init__(self, captioner: Path, matcher: Path) -> None:
        import transformers

        library: Any = transformers
        library.logging.set_verbosity_error()
        library.logging.disable_progress_bar()
        self.processor = library.AutoProcessor.from_pretrained(captioner)
        options = {"dtype": torch.float32}
        self.captioner = library.BlipForConditionalGeneration.from_pretrained(captioner, **options).eval()
        self.matcher = library.BlipForImageTextRetrieval.from_pretrained(matcher, **options).eval()

    @torch.inference_mode()
    def __call__(self, paths: Sequence[Path], texts: Sequence[str], num: int, tokens: int) -> int:
        """Caption and filter images; return the number of scores."""
        from PIL import Image

        scores = 0
        for path, web in zip(paths, texts, strict=True):
            image = Image.open(path).convert("RGB")
            found = [web]
            for _ in range(num):
                inputs = self.processor(images=image, return_tensors="pt")
                ids = self.captioner.generate(
                    **inputs, do_sample=True, top_p=0.9, top_k=0, min_new_tokens=tokens, max_new_tokens=tokens
                )
                found += self.processor.batch_decode(ids, skip_special_tokens=True)
            for text in found:
                inputs = self.processor(images=image, text=text, return_tensors="pt", truncation=True, max_length=35)
                scores += len(self.matcher(**inputs).itm_score.softmax(-1)[:, 1])
        return scores


def make_scorer(
    materials: Materials, engine: str, precision: Any, num: int
) -> Callable[[Sequence[Path], Sequence[str]], int]:
    """Return our captioner and filter as a function of images and web texts."""
    tokens = materials.scale.new_tokens
    sampling = Sampling(num=num, min_new_tokens=tokens, max_new_tokens=tokens, repetition_penalty=1.0)
    captioner, matcher = (
        load(materials.model(task), engine=engine, precision=precision, batch_size=8)  # type: ignore[arg-type]
        for task in ("caption", "retrieval")
    )
    scorer = Scorer(captioner, matcher, sampling)

    def score(paths: Sequence[Path], texts: Sequence[str]) -> int:
        found = 0
        for start in range(0, len(paths), 8):
            chosen = range(start, min(start + 8, len(paths)))
            batch = [scorer.open(str(n), str(paths[n]), [texts[n]]) for n in chosen]
            found += sum(len(each) for each in scorer.score(batch))
        return found

    return score


def measure_speed(materials: Materials, options: argparse.Namespace) -> dict[str, Any]:
    """Compare images per second with the peer's, for one and five captions per image."""
    paths, texts = materials.photo_files(options.images), materials.texts(options.images)
    peer = OneByOne(materials.model("caption"), materials.model("retrieval"))
    record: dict[str, Any] = {"images": options.images}
    for num in (1, 5):
        calls: dict[str, Callable[[], Any]] = {
            REFERENCE: lambda num=num: peer(paths, texts, num, materials.scale.new_tokens)  # type: ignore[misc]
        }
        for engine, precision in options.ours:
            scorer = make_scorer(materials, engine, precision, num)
            calls[f"ours {engine} {precision}"] = lambda scorer=scorer: scorer(paths, texts)  # type: ignore[misc]
        times = alternate_all(calls, options.rounds)
        record[f"num {num}"] = {
            name: {
                "images_per_second": options.images / median(seconds),
                "ratio": median(peer_s / own for peer_s, own in zip(times[REFERENCE], seconds, strict=True)),
            }
            for name, seconds in times.items()
        }
        say(f"num {num}: {record[f'num {num}']}")
    return record


def alternate_all(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each call in every round, after one round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if number:
                times[name].append(time.perf_counter() - started)
    return times


def measure_ray(materials: Materials, options: argparse.Namespace) -> dict[str, Any]:
    """Compare two actors of one thread with one process of two threads."""
    work = fresh(options.work / "capfilt-ray")
    listing = write_list(work, materials.photo_files(8), options.ray_images)
    tokens = materials.scale.new_tokens
    sampling = Sampling(min_new_tokens=tokens, max_new_tokens=tokens)

    def run_once(name: str, threads: int, **execute: Any) -> float:
        models = ModelOptions(
            str(materials.model("caption")), str(materials.model("retrieval")), "cpu", "torch", "fp32", 8, 1, threads
        )
        job = CapFiltJob(str(work / name), models, sampling)
        shard_rows = max(1, options.ray_images // 8)
        started = time.perf_counter()
        run([str(listing)], job, shard_rows=shard_rows, **execute)
        return time.perf_counter() - started

    import ray

    single = run_once("single", 2)
    started = time.perf_counter()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    start_up = time.perf_counter() - started
    two_actors = run_once("ray", 1, execute=run_on_ray(workers=2))
    ray.shutdown()
    return {
        "images": options.ray_images,
        "single_process_images_per_second": options.ray_images / single,
        "two_actors_images_per_second": options.ray_images / two_actors,
        "ratio": single / two_actors,
        "start_up_seconds": start_up,
    }


def measure_rethreshold(options: argparse.Namespace) -> dict[str, Any]:
    """Apply another rule to scored rows by the command."""
    folder = CapFiltFolder(fresh(options.work / "capfilt-rethreshold"))
    write_scored(folder, options.scored)
    seconds = []
    for threshold in (0.6, 0.4, 0.5):
        arguments = ["capfilt", "rethreshold", str(folder.path), "--itm-threshold", str(threshold)]
        done = subprocess.run(
            [sys.executable, "-c", RETHRESHOLD, *arguments], capture_output=True, text=True, check=True
        )
        code, torch_loaded, took = done.stdout.split()
        if code != "0" or torch_loaded != "False":
            raise RuntimeError(done.stdout + done.stderr)
        seconds.append(float(took))
    size = sum(path.stat().st_size for path in folder.parquet.iterdir())
    return {"rows": options.scored, "seconds": median(seconds), "megabytes": size / 1e6}


def write_scored(folder: CapFiltFolder, count: int, shard_rows: int = 10_000) -> None:
    """Write an output of `count` rows with one web and one synthetic text each, and random scores."""
    import pyarrow as pa

    random = np.random.default_rng(0)
    words = np.array([f"word{number}" for number in range(5000)])
    rule = Rule()
    folder.path.mkdir(parents=True, exist_ok=True)
    for start in range(0, count, shard_rows):
        size = min(shard_rows, count - start)
        texts = [" ".join(row) for row in words[random.integers(0, len(words), (2 * size, 10))]]
        offsets = pa.array(np.arange(0, 2 * size + 1, 2), pa.int32())

        def listed(values: Any, dtype: Any, offsets: Any = offsets) -> Any:
            return pa.ListArray.from_arrays(offsets, pa.array(values, dtype))

        names = [f"{number:09d}.jpg" for number in range(start, start + size)]
        columns = {
            "key": names,
            "image": [f"/data/{name}" for name in names],
            "captions": [[] for _ in names],
            "texts": listed(texts, pa.string()),
            "sources": listed(["web", "synthetic"] * size, pa.string()),
            "itm": listed(random.random(2 * size, dtype=np.float32), pa.float32()),
            "itc": listed(random.random(2 * size, dtype=np.float32), pa.float32()),
            "logprob": listed(-10 * random.random(2 * size, dtype=np.float32), pa.float32()),
            "kept": [[] for _ in names],
            "reasons": listed([None] * (2 * size), pa.string()),
            "filtered": [False] * size,
            "error": [None] * size,
            "json_offset": [None] * size,
            "json_size": [None] * size,
        }
        table = rows.judge(pa.Table.from_pydict(columns, schema=rows.make_schema()), rule)
        rows.write_table(folder.rows_path(f"shard-{start:09d}"), table, rule, "benchmark")
    folder.write_settings({"job": {}, "rule": rule.to_dict(), "complete": True})


def measure_memory(materials: Materials, options: argparse.Namespace) -> dict[str, Any]:
    """Measure the peak memory of runs of different lengths, each in a new process."""
    peaks = {}
    for count in options.memory_rows:
        work = fresh(options.work / f"capfilt-memory-{count}")
        listing = write_list(work, materials.photo_files(8), count)
        models = [str(materials.model(task)) for task in ("caption", "retrieval")]
        command = [sys.executable, "-c", RUN, str(listing), str(work / "out"), *models]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[str(count)] = int(done.stdout.split()[-1])
        say(f"{count} rows: {peaks[str(count)] / 2**20:.0f} MiB")
        shutil.rmtree(work)
    few, many = (peaks[str(count)] for count in options.memory_rows)
    return {"peak_bytes": peaks, "growth": many / few - 1}


def write_list(work: Path, photos: Sequence[Path], count: int) -> Path:
    """Write a list of `count` images: links to a few photos, so that every row has a key of its own."""
    images = work / "images"
    images.mkdir(parents=True)
    for number in range(count):
        (images / f"{number:07d}.jpg").symlink_to(photos[number % len(photos)].absolute())
    listing = work / "web.jsonl"
    rows_of_list = ({"image": f"images/{number:07d}.jpg", "caption": "a photo of a street"} for number in range(count))
    listing.write_bytes(b"".join(jsonlines.encode(row) for row in rows_of_list))
    return listing


def fresh(folder: Path) -> Path:
    """Return an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="parts to run")
    parser.add_argument("--toy", action="store_true", help="toy models and few rows, to test the benchmark itself")
    parser.add_argument("--images", type=int, default=16, help="images of `speed`")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of `speed`")
    parser.add_argument("--ours", default="torch:fp32,openvino:int8", help="our engines")
    parser.add_argument("--ray-images", type=int, default=64, help="images of `ray`")
    parser.add_argument("--scored", type=int, default=1_000_000, help="rows of `rethreshold`")
    parser.add_argument("--memory-rows", default="10000,100000", help="rows of `memory`")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=HERE / ".work")
    parser.add_argument("--name", default="capfilt", help="name of the record in benchmarks/results")
    options = parser.parse_args(arguments)
    options.ours = [tuple(entry.split(":")) for entry in options.ours.split(",")]
    options.memory_rows = [int(count) for count in options.memory_rows.split(",")]
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write the record."""
    options = read_options(arguments)
    materials = Materials(options.work, SCALES["toy" if options.toy else "base"])
    toys = Materials(options.work, SCALES["toy"])
    record: dict[str, Any] = {**machine.begin(options.threads), "scale": materials.describe()}
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "speed": lambda: measure_speed(materials, options),
        "ray": lambda: measure_ray(materials, options),
        "rethreshold": lambda: measure_rethreshold(options),
        "memory": lambda: measure_memory(toys, options),
    }
    for name in options.parts.split(","):
        record[name] = parts[name]()
        say(f"{name}: {record[name]}")
        write(record, HERE / "results" / f"{options.name}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
