"""Job that captions a folder: `python -m benchmarks.jobs` (`make bench-jobs`).

The same JPEG files, alternately of 1 and 12 megapixels, are captioned by a job that writes sidecars, by
`Blip.caption(iter(paths))`, and by `transformers` with its fastest batch size, round after round in one process: from
file to text, with 3 beams and a fixed number of new tokens. The time to resume a completed job is measured too.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch

from benchmarks import machine
from benchmarks.contestants import Ours, Transformers, UnavailableError, parse
from benchmarks.inference import HERE, say, write
from benchmarks.materials import SCALES, TOY, Materials, draw_image
from benchmarks.measure import Timed, agreement, alternate, ratio
from openblip.blip import Blip
from openblip.jobs.captions import CaptionAnnotator
from openblip.jobs.items import open_items
from openblip.jobs.journal import Identity
from openblip.jobs.run import open_sink_run
from openblip.jobs.sinks import SinkOptions, open_sink

BEAMS = 3
BATCH_SIZES = (1, 2, 4, 8, 16)  # of the peer, tested on the first files
REFERENCE = "torch:fp32"
ITERATOR_TARGET, TRANSFORMERS_TARGET = 0.95, 2.3  # targets of the job's speed, relative to each
CLI = (
    "import sys\n"
    "from openblip.cli import app\n"
    "try: app(sys.argv[1:])\n"
    "except SystemExit as end: print(end.code or 0, 'torch' in sys.modules)\n"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the record; return 1 if captions of the job and of the iterator differ."""
    options = read_options(arguments)
    materials = Materials(options.work, SCALES["toy" if options.quick else "base"])
    record: dict[str, Any] = {
        **machine.begin(options.threads),
        "scale": materials.describe(),
        "files": options.files,
        "num_beams": BEAMS,
        "skipped": [],
    }
    record |= measure_folder(materials, options, record["skipped"])
    if options.finished:
        say(f"resuming a completed job of {options.finished} files")
        record["finished"] = measure_finished_job(options.work, options.finished, options.rounds)
    if options.kill:
        record["kill"] = run_kill_script(options.kill)
    show(record)
    write(record, options.results / f"{options.name}.json")
    return 0 if all(row["equal"] for row in record["rows"] if row["what"] == "job") else 1


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jobs", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="use tiny models and few files, as a test")
    parser.add_argument("--ours", type=lambda text: text.split(","), default=None, metavar="ENGINE:PRECISION,...")
    parser.add_argument("--files", type=int, default=None, help="number of images (default: 48)")
    parser.add_argument("--finished", type=int, default=None, help="files of the completed job (default: 10000)")
    parser.add_argument("--kill", type=int, default=0, metavar="N", help="also kill a job of N images ten times")
    parser.add_argument("--rounds", type=int, default=None, help="number of rounds (default: 3)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, default=HERE / ".work", help="folder of models and images")
    parser.add_argument("--name", default="jobs", help="name of the result file, without suffix")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    defaults = {"files": (48, 4), "finished": (10_000, 20), "rounds": (3, 1)}
    for name, (full, quick) in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else full)
    if options.ours is None:
        faster = ["openvino:int8", *(["torch:bf16"] if machine.has_fast_bf16() else [])]
        options.ours = [REFERENCE, *([] if options.quick else faster)]
    return options


@dataclass(frozen=True)
class Call:
    """A way to caption all files: `what` is "job", "iterator" or "transformers"."""

    who: str
    what: str
    run: Callable[[], list[str]]


def measure_folder(materials: Materials, options: argparse.Namespace, skipped: list[dict[str, str]]) -> dict[str, Any]:
    """Measure all contestants on the same files, and compute the ratios."""
    paths = materials.mixed_files(options.files)
    tokens = materials.scale.new_tokens
    calls: list[Call] = []
    for entry in parse(options.ours, "cpu"):
        say(f"loading {entry.name}")
        try:
            blip = cast(Ours, entry.make(materials.model("caption"), "caption", materials.scale)).blip
        except UnavailableError as error:
            skipped.append({"who": entry.name, "reason": str(error).splitlines()[0]})
            continue
        calls.append(Call(entry.name, "job", partial(by_job, blip, paths, tokens)))
        calls.append(Call(entry.name, "iterator", partial(by_iterator, blip, paths, tokens)))
    (entry,) = parse(["transformers:fp32"], "cpu")
    say(f"loading {entry.name}, and testing its batch sizes")
    peer = cast(Transformers, entry.make(materials.model("caption"), "caption", materials.scale))
    batch_seconds = measure_batch_sizes(peer, paths[: max(BATCH_SIZES)], tokens)
    peer.batch_size = min(batch_seconds, key=lambda size: batch_seconds[size])
    calls.append(Call(entry.name, "transformers", partial(peer.caption, paths, BEAMS, tokens)))
    say(f"{len(paths)} files, {options.rounds} rounds")
    names = {f"{call.what} {call.who}": call for call in calls}
    runs = {name: call.run for name, call in names.items()}
    times = alternate(runs, dict.fromkeys(names, 1.0), rounds=options.rounds, budget=0)
    rows = [_row(call, calls, times, len(paths)) for call in calls]
    return {"rows": rows, "batch_sizes": {"seconds": batch_seconds, "best": peer.batch_size}}


def _row(call: Call, calls: list[Call], times: dict[str, Timed], files: int) -> dict[str, Any]:
    """Return a row of the table; ratios are of images per second."""
    timed = times[f"{call.what} {call.who}"]
    row: dict[str, Any] = {"who": call.who, "what": call.what, "seconds": timed.seconds, "median_seconds": timed.median}
    row |= {"low": min(timed.seconds), "high": max(timed.seconds), "per_second": files / timed.median, "ratios": {}}
    for other in calls:
        rival = times[f"{other.what} {other.who}"]
        if call.what == "job" and (other.what == "transformers" or (other.what, other.who) == ("iterator", call.who)):
            row["ratios"][other.what] = asdict(ratio(rival.seconds, timed.seconds))
            comparison = agreement(timed.output, rival.output)
            row |= {"equal": comparison.same} if other.what == "iterator" else {"agreement": comparison.text}
    return row


def by_job(blip: Blip, paths: Sequence[Path], tokens: int) -> list[str]:
    """Caption by a job: list and open files, caption, and write journal and sidecars. The model is loaded."""
    source = str(paths[0].parent)
    decoding = {"num_beams": BEAMS, "min_new_tokens": tokens, "max_new_tokens": tokens}
    texts: list[str] = []
    with tempfile.TemporaryDirectory(dir=paths[0].parents[1]) as out:
        sink = open_sink("sidecar", SinkOptions(out, source))
        items = open_items([source], base=sink.base)
        identity = Identity("caption", {"caption": "measured"}, decoding)
        with open_sink_run(items, sink, identity, model="measured") as run:
            for status in run.run(CaptionAnnotator(blip, options=decoding)):
                texts.extend(str(row["text"]) for row in status.records)
        written = len(list(Path(out).glob("*.txt")))
    if not run.counts["computed"] == written == len(paths):
        raise RuntimeError(f"the job wrote {written} of {len(paths)} captions")
    return texts


def by_iterator(blip: Blip, paths: Sequence[Path], tokens: int) -> list[str]:
    """Caption by the method that programs call."""
    captions = blip.caption(iter(paths), num_beams=BEAMS, min_new_tokens=tokens, max_new_tokens=tokens)
    return [caption.text for caption in captions]


def measure_batch_sizes(peer: Transformers, paths: Sequence[Path], tokens: int) -> dict[int, float]:
    """Return the seconds of the peer for these files by batch size."""
    seconds = {}
    peer.caption(paths[:1], BEAMS, tokens)
    for size in (size for size in BATCH_SIZES if size <= len(paths)):
        peer.batch_size = size
        start = time.perf_counter()
        peer.caption(paths, BEAMS, tokens)
        seconds[size] = time.perf_counter() - start
    return seconds


def measure_finished_job(folder: Path, files: int, rounds: int) -> dict[str, Any]:
    """Measure the command on a folder of small images that it has already captioned, without loading the model.

    Args:
        folder: Folder for models and temporary files.
        files: Number of images.
        rounds: Number of rounds.

    Returns:
        Wall seconds, and whether `torch` was imported.
    """
    data = io.BytesIO()
    draw_image(0, 8, 8).save(data, "PNG")
    with tempfile.TemporaryDirectory(dir=folder) as home:
        for number in range(files):
            Path(home, f"{number:06}.png").write_bytes(data.getvalue())
        model = Materials(folder, TOY).model("caption")
        options = ("--to", "sidecar", "--num-beams", "1", "--max-new-tokens", "1", "--batch-size", "64")
        command = [sys.executable, "-c", CLI, "caption", home, "--model", str(model), *options]
        _call(command, f"{files} written")
        seconds, imported = [], False
        for _ in range(rounds):
            start = time.perf_counter()
            imported |= _call(command, f"{files} done before")
            seconds.append(time.perf_counter() - start)
    return {"files": files, "seconds": seconds, "median_seconds": median(seconds), "torch": imported}


def _call(command: list[str], expected: str) -> bool:
    """Run a command whose summary must contain `expected`; return whether it imported torch."""
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    code, imported = done.stdout.split()
    if code != "0" or expected not in done.stderr:
        raise RuntimeError(f"the command line ended with {code}: {done.stderr.strip()}")
    return imported == "True"


def run_kill_script(images: int) -> dict[str, Any]:
    """Run `scripts/kill_jobs.py`, and return its final line and its seconds."""
    start = time.perf_counter()
    script = HERE.parent / "scripts" / "kill_jobs.py"
    done = subprocess.run(
        [sys.executable, str(script), "--images", str(images)], stdout=subprocess.PIPE, text=True, check=True
    )
    return {"images": images, "seconds": time.perf_counter() - start, "result": done.stdout.splitlines()[-1]}


def show(record: dict[str, Any]) -> None:
    """Print a line per contestant, with the targets."""
    print(f"{record['files']} JPEG files, {record['scale']['name']} size, {BEAMS} beams")
    for row in record["rows"]:
        summary = f"{row['what']:13} {row['who']:20} {row['per_second']:.3g} images/s"
        summary += f" ({row['median_seconds']:.3g} s, {row['low']:.3g}-{row['high']:.3g})"
        for name, target in (("iterator", ITERATOR_TARGET), ("transformers", TRANSFORMERS_TARGET)):
            speed = row["ratios"].get(name)
            if speed is not None:
                interval = f"{speed['low']:.2f}-{speed['high']:.2f}"
                summary += f"; {speed['median']:.2f} [{interval}] of {name} (target {target})"
        if "agreement" in row:
            summary += f"; {row['agreement']} as {record['rows'][-1]['who']}"
        print(summary if row.get("equal", True) else f"{summary}; DIFFERS FROM THE ITERATOR")
    print(f"batch size of transformers: {record['batch_sizes']['best']}")
    for entry in record["skipped"]:
        print(f"skipped {entry['who']}: {entry['reason']}")
    done = record.get("finished")
    if done is not None:
        imported = "imported" if done["torch"] else "not imported"
        print(f"resuming a completed job of {done['files']} files: {done['median_seconds']:.2f} s, torch {imported}")
    if "kill" in record:
        print(record["kill"]["result"])


if __name__ == "__main__":
    sys.exit(main())
