"""The index of images: `python -m benchmarks.search scan|rerank|recall`.

- `scan`: from a query vector to the rows of the results, compared with a bare float32 `matrix @ query` in the same
  process; with and without a filter, with numpy, with each scan of faiss, and with the one that a store chooses; recall
  against float64 brute force.
- `rerank`: ITM of a shortlist with stored image states and without, by a model of the published size.
- `recall`: text-to-image recall with re-rank and without, over images with captions, by a paired test.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray

import openblip
from benchmarks import machine
from benchmarks.inference import HERE, write
from benchmarks.materials import SCALES, Materials
from benchmarks.measure import alternate, ratio
from openblip import Blip, OpenBlipError
from openblip.data.records import Record
from openblip.data.sources import open_source
from openblip.data.sources.base import Stream
from openblip.search.describe import describe_model
from openblip.search.images import Batch, IndexedImage, NewImage
from openblip.search.local import LocalStore
from openblip.search.rerank import judge_images
from openblip.search.scan import Codes, CodeType, Scanner, _import_faiss, has_faiss
from openblip.search.settings import Filter, IndexSettings, StatesMode

LIMITS = {"numpy": 1.2, "faiss": 0.7}
"""Most that a search may take, as a multiple of the bare product."""
RARE = 100  # one image in so many has the word of the filter
QUERIES = 50  # whose recall is checked


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the record; return 1 if results are wrong."""
    options = read_options(arguments)
    record = machine.begin(options.threads)
    results, is_right = {"scan": run_scan, "rerank": run_rerank, "recall": run_recall}[options.part](options)
    write(record | results, options.results / f"{options.name or f'search_{options.part}'}.json")
    return 0 if is_right else 1


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=["scan", "rerank", "recall"])
    parser.add_argument("--images", type=int, default=None, help="scan: images (100,000); rerank: shortlist (16)")
    parser.add_argument("--width", type=int, default=256, help="scan: width of the embeddings")
    parser.add_argument("-n", type=int, default=20, help="scan: results of a query")
    parser.add_argument("--rounds", type=int, default=None, help="scan: queries (200); rerank: rounds (2 to 9)")
    parser.add_argument("--data", default=None, help="recall: images with captions, such as a folder or 'val/*.tar'")
    parser.add_argument("--captions", type=int, default=None, help="recall: captions to search for (default: all)")
    parser.add_argument("--rerank", type=int, default=50, help="recall: length of the shortlist")
    parser.add_argument("--model", default="pocket", help="recall: the model")
    parser.add_argument("--scale", choices=list(SCALES), default="base", help="rerank: size of the model")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, default=HERE / ".work", help="folder of models and images")
    parser.add_argument("--name", default=None, help="name of the result file, without suffix")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    return parser.parse_args(arguments)


# The scan.


def run_scan(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Compare searches of a store with the bare product of its matrix and the query."""
    count, width, n = options.images or 100_000, options.width, options.n
    rows, queries = draw_embeddings(count, width)
    record: dict[str, Any] = {"images": count, "width": width, "n": n, "rows": {}}
    is_right = True
    with tempfile.TemporaryDirectory(dir=options.work if options.work.is_dir() else None) as folder:
        start = time.perf_counter()
        store = make_store(Path(folder) / "index", rows)
        record["write_seconds"] = time.perf_counter() - start
        calls: dict[str, Callable[[NDArray[np.float32]], Any]] = {"bare product": lambda query: rows @ query}
        rare, everything = Filter(caption="rare"), Filter()
        stores = {}
        for engine in ("numpy", "int8", "fp16", "faiss") if has_faiss() else ("numpy",):
            start = time.perf_counter()
            stores[engine] = other = LocalStore(store.folder)
            other.count()
            record[f"open_seconds_{engine}"] = time.perf_counter() - start
            use_scanner(other, engine)
            calls[engine] = partial(other.find_nearest, n=n, where=everything)
            calls[f"{engine}, filter"] = partial(other.find_nearest, n=n, where=rare)
        seconds = time_queries(calls, queries, options.rounds or 200)
        if has_faiss():
            record["fastest"] = name_scan(stores["faiss"])
            print(f"the scan that was chosen as the fastest: {record['fastest']}")
        for name, times in seconds.items():
            median, base = statistics.median(times), statistics.median(seconds["bare product"])
            row: dict[str, Any] = {"median": median, "ratio": median / base, "seconds": times}
            engine, _, is_filtered = name.partition(", ")
            text = f"{name:16} p50 {1000 * median:7.2f} ms, {median / base:5.2f}x the bare product"
            if engine in stores:
                recall = measure_recall(stores[engine], rows, queries[:QUERIES], n, rare if is_filtered else everything)
                row["recall"] = recall
                is_right = is_right and recall == 1
                text += f", recall {recall:.3f}"
                if not is_filtered and engine in LIMITS:
                    text += f" (goal: {LIMITS[engine]}x)"
            record["rows"][name] = row
            print(text)
    return record, is_right


def draw_embeddings(count: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return embeddings of images in clusters, and queries from another mean, as texts have."""
    draw = np.random.default_rng(0)
    centers = draw.standard_normal((max(1, count // 50), width), np.float32)
    rows = centers[draw.integers(0, len(centers), count)] + draw.standard_normal((count, width), np.float32)
    queries = rows[draw.integers(0, count, 200)] + draw.standard_normal((200, width), np.float32)
    queries += draw.standard_normal(width).astype(np.float32)
    for array in (rows, queries):
        array /= np.linalg.norm(array, axis=1, keepdims=True)
    return rows, queries


def make_store(folder: Path, rows: NDArray[np.float32]) -> LocalStore:
    """Return a store with these embeddings; one image in `RARE` has the caption "rare"."""
    settings = IndexSettings(
        model="none", weights="none", engine="none", precision="fp32", decode="fast", version="none",
        width=rows.shape[1], tokens=1, state_width=1,
    )  # fmt: skip
    store = LocalStore.create(folder, settings)
    for start in range(0, len(rows), 10_000):
        numbers = range(start, min(start + 10_000, len(rows)))
        store.write(Batch([NewImage(make_image(number), rows[number]) for number in numbers]))
    return store


def make_image(number: int, path: str | None = None) -> IndexedImage:
    """Return an image of an index; without a path, one whose file does not exist."""
    path = path or f"/photos/{number // 1000}/{number}.jpg"
    return IndexedImage(
        id=f"{number:016x}", path=path, root="/", hash=str(number), stamp="0:0", width=640, height=480,
        date=f"20{number % 25:02}-01-01T00:00:00", caption="rare" if number % RARE == 0 else "a photo of something",
    )  # fmt: skip


def use_scanner(store: LocalStore, engine: str) -> None:
    """Make a store scan with numpy, with faiss and codes of a type, or with the fastest of them ("faiss")."""
    with store._reading() as (_, view):
        scanner = Scanner(view.vectors, use_faiss=engine != "numpy")
        if engine in get_args(CodeType):
            scanner._codes, scanner._is_chosen = Codes(_import_faiss(), view.vectors, cast(CodeType, engine)), True
        object.__setattr__(view, "scanner", scanner)


def name_scan(store: LocalStore) -> str:
    """Return the scan that a store has chosen: "numpy", "int8" or "fp16"."""
    with store._reading() as (_, view):
        codes = view.scanner._codes
    return "numpy" if codes is None else codes.kind


def time_queries(
    calls: dict[str, Callable[[NDArray[np.float32]], Any]], queries: NDArray[np.float32], rounds: int
) -> dict[str, list[float]]:
    """Return the seconds of each call, called in turn with the same queries, after three calls that are not timed."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(-3, rounds):
        query = queries[number % len(queries)]
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter()
            calls[name](query)
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def measure_recall(
    store: LocalStore, rows: NDArray[np.float32], queries: NDArray[np.float32], n: int, where: Filter
) -> float:
    """Return the share of the `n` best images by float64 brute force that a store finds."""
    allowed = np.arange(0, len(rows), RARE) if where else np.arange(len(rows))
    found = total = 0
    exact = rows[allowed].astype(np.float64)
    for query in queries:
        best = allowed[np.argsort(-(exact @ query.astype(np.float64)), kind="stable")[:n]]
        neighbors = store.find_nearest(query, n, where)
        found += len({f"{number:016x}" for number in best} & {image.id for image in neighbors.images})
        total += len(best)
    return found / total


# The re-rank.


def run_rerank(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Compare the ITM of a shortlist with stored states and without."""
    materials = Materials(options.work, SCALES[options.scale])
    blip = openblip.load(materials.model("retrieval"), device="cpu", engine="torch")
    count = options.images or 16
    paths = [str(path) for path in materials.photo_files(count)]
    text = materials.texts(1)[0]
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        modes: tuple[StatesMode, ...] = ("none", "stored")
        stores: dict[str, LocalStore] = {
            mode: LocalStore.create(Path(folder) / mode, describe_model(blip, states=mode)) for mode in modes
        }
        images = [make_image(number, path) for number, path in enumerate(paths)]
        add_images(stores, blip, images)
        calls = {f"states {name}": partial(judge_all, blip, store, images, text) for name, store in stores.items()}
        timed = alternate(calls, dict.fromkeys(calls, 1.0), rounds=options.rounds, budget=300)
    slow, fast = timed["states none"], timed["states stored"]
    speedup = ratio(slow.seconds, fast.seconds)
    largest = float(np.abs(np.array(slow.output) - np.array(fast.output)).max())
    state_bytes = stores["stored"].settings.state_bytes
    record: dict[str, Any] = {
        "scale": materials.describe(), "images": count, "state_bytes": state_bytes, "ratio": asdict(speedup),
        "rows": {name: {"seconds": each.seconds, "median": each.median} for name, each in timed.items()},
        "largest_difference": largest,
    }  # fmt: skip
    for name, each in timed.items():
        print(f"{name:16} {1000 * each.median:9.1f} ms for {count} images")
    size = f"{state_bytes / 1000:.0f} kB per image"
    print(f"stored states are {speedup} as fast (goal: 5x), at {size}; scores differ by {largest:.0e}")
    return record, True


def judge_all(blip: Blip, store: LocalStore, images: Sequence[IndexedImage], text: str) -> list[tuple[float, float]]:
    """Return score and probability of every image.

    Raises:
        OpenBlipError: An image cannot be read.
    """
    results = []
    for judged in judge_images(blip, store, images, text):
        if isinstance(judged, OpenBlipError):
            raise judged
        results.append(judged)
    return results


def add_images(stores: dict[str, LocalStore], blip: Blip, images: Sequence[IndexedImage]) -> None:
    """Embed images, and add them to stores with and without states."""
    pipeline = blip.pipeline("retrieval")
    encoded = blip.encode_images([image.path for image in images], task="retrieval")
    for image, each in zip(images, encoded, strict=True):
        states = each.states[id(pipeline.model.engine)]
        embedding = pipeline.embed_images(states[None])[0].cpu().numpy()
        for store in stores.values():
            stored = states.half().cpu().numpy() if store.settings.states == "stored" else None
            store.write(Batch([NewImage(image, embedding, stored)]))


# Recall.


def run_recall(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Compare text-to-image recall with re-rank and without, over the same captions."""
    if options.data is None:
        raise SystemExit("recall needs --data: images with captions")
    blip = openblip.load(options.model, threads=options.threads)
    records = [record for record in iter_records(options.data) if record.captions and record.images]
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore.create(Path(folder) / "index", describe_model(blip, states="stored"))
        captions: list[tuple[str, str]] = []
        start = time.perf_counter()
        pipeline = blip.pipeline("retrieval")
        images: dict[str, IndexedImage] = {}
        encoded = blip.encode_images((record.images[0].read() for record in records), task="retrieval")
        batch = Batch()
        for number, (record, each) in enumerate(zip(records, encoded, strict=True)):
            states = each.states[id(pipeline.model.engine)]
            image = make_image(number)
            images[image.id] = image
            batch.new.append(
                NewImage(image, pipeline.embed_images(states[None])[0].cpu().numpy(), states.half().cpu().numpy())
            )
            captions += [(image.id, caption) for caption in record.captions]
        store.write(batch)
        if options.captions:
            captions = captions[:: max(1, len(captions) // options.captions)][: options.captions]
        print(f"{len(images)} images in {time.perf_counter() - start:.0f} s; {len(captions)} captions")
        ranks, probabilities = rank_captions(blip, store, images, captions, options.rerank)
    sizes = {"images": len(images), "captions": len(captions), "rerank": options.rerank}
    return sizes | summarize(ranks, probabilities), True


def iter_records(data: str) -> list[Record]:
    """Return the records of a source."""
    source = open_source(data)
    records: list[Any] = []
    if isinstance(source, Stream):
        for shard in range(source.shards):
            records += source.read(shard)
    else:
        records += source
    return [record for record in records if isinstance(record, Record)]


def rank_captions(
    blip: Blip, store: LocalStore, images: dict[str, IndexedImage], captions: Sequence[tuple[str, str]], rerank: int
) -> tuple[dict[str, NDArray[np.int64]], NDArray[np.float64]]:
    """Return the rank of the image of each caption by ITC, by ITM and by both as `Index.rerank` does.

    The probabilities of its image and of the best other one are returned too.

    Returns:
        Ranks from 0, `rerank` for an image that is not on the shortlist, by stage; and for each caption the probability
        of its image, nan if it is not on the shortlist, and of the best other image.
    """
    embeddings = blip.embed_texts([caption for _, caption in captions])
    ranks = {stage: np.full(len(captions), rerank) for stage in ("itc", "itm", "itm + itc")}
    probabilities = np.full((len(captions), 2), np.nan)
    temperature = blip.pipeline("retrieval").model.temperature
    start = time.perf_counter()
    for number, ((own, caption), embedding) in enumerate(zip(captions, embeddings, strict=True)):
        neighbors = store.find_nearest(embedding, rerank, Filter())
        names = [image.id for image in neighbors.images]
        scores, chances = np.array(judge_all(blip, store, neighbors.images, caption)).T
        if own in names:
            ranks["itc"][number] = names.index(own)
            for stage, values in (("itm", scores), ("itm + itc", scores + np.array(neighbors.cosines) / temperature)):
                ranks[stage][number] = int((values > values[names.index(own)]).sum())
            probabilities[number, 0] = chances[names.index(own)]
        others = chances[[name != own for name in names]]
        probabilities[number, 1] = others.max() if len(others) else np.nan
        if number % 500 == 499:
            mean = (time.perf_counter() - start) / (number + 1)
            print(f"{number + 1} captions, {1000 * mean:.0f} ms each", file=sys.stderr)
    return ranks, probabilities


def summarize(ranks: dict[str, NDArray[np.int64]], probabilities: NDArray[np.float64]) -> dict[str, Any]:
    """Print and return the recalls, and the exact McNemar test of R@1 with re-rank against ITC alone."""
    record: dict[str, Any] = {"rows": {}}
    for stage, values in ranks.items():
        recalls = {f"R@{k}": float((values < k).mean()) for k in (1, 5, 10)}
        row: dict[str, Any] = dict(recalls)
        text = ", ".join(f"{name} {100 * value:5.2f} %" for name, value in recalls.items())
        if stage != "itc":
            better = int(((values == 0) & (ranks["itc"] != 0)).sum())
            worse = int(((values != 0) & (ranks["itc"] == 0)).sum())
            row |= {"better": better, "worse": worse, "p": mcnemar(better, worse)}
            text += f"; right only with re-rank {better}, only without {worse}, two-sided p {row['p']:.2g}"
        record["rows"][stage] = row
        print(f"{stage:10} {text}")
    own, other = probabilities[~np.isnan(probabilities[:, 0]), 0], probabilities[:, 1]
    for name, chances in (("own image", own), ("best other image", other[~np.isnan(other)])):
        quantiles = np.quantile(chances, [0.1, 0.25, 0.5, 0.75, 0.9]).tolist() if len(chances) else []
        record[name] = quantiles
        print(f"probability of the {name}: " + ", ".join(f"{value:.3f}" for value in quantiles) + " (10 to 90 %)")
    return record


def mcnemar(better: int, worse: int) -> float:
    """Return the exact two-sided p-value of McNemar's test.

    Args:
        better: Pairs that only the first method gets right.
        worse: Pairs that only the second method gets right.
    """
    total, least = better + worse, min(better, worse)
    tail = sum(math.comb(total, k) for k in range(least + 1))
    return float(min(Fraction(1), Fraction(2 * tail, 2**total)))


if __name__ == "__main__":
    sys.exit(main())
