"""A folder captioned by a job: ``python -m benchmarks.jobs`` (``make bench-jobs``).

The same JPEG files, of 1 and of 12 megapixels in turn, are captioned by a job that writes side-cars, by
``Blip.caption(iter(paths))`` and by `transformers` at its best batch size, round after round in one process: from file
to text, 3 beams, a fixed number of new tokens. Beside that: how long a job that is done takes to say so.
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
from benchmarks.materials import SCALES, TOY, Materials, picture
from benchmarks.measure import Timed, agreement, alternate, ratio
from openblip.blip import Blip
from openblip.jobs.captions import CaptionAnnotator
from openblip.jobs.items import open_items
from openblip.jobs.journal import Identity
from openblip.jobs.run import open_sink_run
from openblip.jobs.sinks import SinkOptions, open_sink

BEAMS = 3
BATCHES = (1, 2, 4, 8, 16)  # of the peer, tried on the first files
REFERENCE = "torch:fp32"
OF_ITERATOR, OF_TRANSFORMERS = 0.95, 2.3  # what the job is to reach, in pictures per second
CLI = (
    "import sys\n"
    "from openblip.cli import app\n"
    "try: app(sys.argv[1:])\n"
    "except SystemExit as end: print(end.code or 0, 'torch' in sys.modules)\n"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write the record; 1 if a job's captions are not those of the iterator."""
    options = read_options(arguments)
    materials = Materials(options.work, SCALES["toy" if options.quick else "base"])
    record: dict[str, Any] = {
        **machine.begin(options.threads),
        "scale": materials.describe(),
        "files": options.files,
        "num_beams": BEAMS,
        "skipped": [],
    }
    record |= folder(materials, options, record["skipped"])
    if options.finished:
        say(f"a job of {options.finished} files that is done")
        record["finished"] = finished(options.work, options.finished, options.rounds)
    if options.kill:
        record["kill"] = killed(options.kill)
    show(record)
    write(record, options.results / f"{options.name}.json")
    return 0 if all(row["equal"] for row in record["rows"] if row["what"] == "job") else 1


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jobs", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny models and few files: does the harness work?")
    parser.add_argument("--ours", type=lambda text: text.split(","), default=None, metavar="ENGINE:PRECISION,...")
    parser.add_argument("--files", type=int, default=None, help="pictures (default: 48)")
    parser.add_argument("--finished", type=int, default=None, help="files of the job that is done (default: 10000)")
    parser.add_argument("--kill", type=int, default=0, metavar="N", help="also kill a job of N pictures ten times")
    parser.add_argument("--rounds", type=int, default=None, help="of everything (default: 3)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, default=HERE / ".work", help="where models and pictures are kept")
    parser.add_argument("--name", default="jobs", help="of the file of results")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    defaults = {"files": (48, 4), "finished": (10_000, 20), "rounds": (3, 1)}
    for name, (usual, quick) in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else usual)
    if options.ours is None:
        others = ["openvino:int8", *(["torch:bf16"] if machine.has_fast_bf16() else [])]
        options.ours = [REFERENCE, *([] if options.quick else others)]
    return options


# --- a folder -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """One way to caption all files: ``what`` is "job", "iterator" or "transformers"."""

    who: str
    what: str
    run: Callable[[], list[str]]


def folder(materials: Materials, options: argparse.Namespace, skipped: list[dict[str, str]]) -> dict[str, Any]:
    """Everybody's times over the same files, and the ratios that matter."""
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
    say(f"loading {entry.name}, and trying its batch sizes")
    peer = cast(Transformers, entry.make(materials.model("caption"), "caption", materials.scale))
    tried = try_batches(peer, paths[: max(BATCHES)], tokens)
    peer.batch = min(tried, key=lambda size: tried[size])
    calls.append(Call(entry.name, "transformers", partial(peer.caption, paths, BEAMS, tokens)))
    say(f"{len(paths)} files, {options.rounds} rounds")
    names = {f"{call.what} {call.who}": call for call in calls}
    times = alternate({n: c.run for n, c in names.items()}, dict.fromkeys(names, 1.0), rounds=options.rounds, budget=0)
    rows = [_row(call, calls, times, len(paths)) for call in calls]
    return {"rows": rows, "batch_sizes": {"seconds": tried, "best": peer.batch}}


def _row(call: Call, calls: list[Call], times: dict[str, Timed], files: int) -> dict[str, Any]:
    """One line of the table; ratios are how many times as many pictures per second."""
    own = times[f"{call.what} {call.who}"]
    row: dict[str, Any] = {"who": call.who, "what": call.what, "seconds": own.seconds, "median_seconds": own.median}
    row |= {"low": min(own.seconds), "high": max(own.seconds), "per_second": files / own.median, "ratios": {}}
    for other in calls:
        rival = times[f"{other.what} {other.who}"]
        if call.what == "job" and (other.what == "transformers" or (other.what, other.who) == ("iterator", call.who)):
            row["ratios"][other.what] = asdict(ratio(rival.seconds, own.seconds))
            found = agreement(own.output, rival.output)
            row |= {"equal": found.same} if other.what == "iterator" else {"agreement": found.text}
    return row


def by_job(blip: Blip, paths: Sequence[Path], tokens: int) -> list[str]:
    """All of a job but loading the model: finding the files, opening them, captions, the journal, and the sidecars."""
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
    """The same captions by the call that a program makes."""
    found = blip.caption(iter(paths), num_beams=BEAMS, min_new_tokens=tokens, max_new_tokens=tokens)
    return [caption.text for caption in found]


def try_batches(peer: Transformers, paths: Sequence[Path], tokens: int) -> dict[int, float]:
    """Seconds that the peer takes for these files in batches of each size."""
    seconds = {}
    peer.caption(paths[:1], BEAMS, tokens)
    for size in (size for size in BATCHES if size <= len(paths)):
        peer.batch = size
        start = time.perf_counter()
        peer.caption(paths, BEAMS, tokens)
        seconds[size] = time.perf_counter() - start
    return seconds


# --- a job that is done, and one that is killed -------------------------------------------------------------------


def finished(place: Path, files: int, rounds: int) -> dict[str, Any]:
    """Wall seconds that the command line takes for a folder of ``files`` small pictures that it has captioned before.

    The model is a tiny one: that it is not loaded is what is measured. ``torch`` says whether it was imported.
    """
    data = io.BytesIO()
    picture(0, 8, 8).save(data, "PNG")
    with tempfile.TemporaryDirectory(dir=place) as home:
        for number in range(files):
            Path(home, f"{number:06}.png").write_bytes(data.getvalue())
        model = Materials(place, TOY).model("caption")
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
    """Run the command line, which must say what is ``expected``; whether it has imported torch."""
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    code, imported = done.stdout.split()
    if code != "0" or expected not in done.stderr:
        raise RuntimeError(f"the command line ended with {code}: {done.stderr.strip()}")
    return imported == "True"


def killed(pictures: int) -> dict[str, Any]:
    """The last line of ``scripts/kill_jobs.py``, and the seconds it took."""
    start = time.perf_counter()
    script = HERE.parent / "scripts" / "kill_jobs.py"
    done = subprocess.run(
        [sys.executable, str(script), "--images", str(pictures)], stdout=subprocess.PIPE, text=True, check=True
    )
    return {"pictures": pictures, "seconds": time.perf_counter() - start, "result": done.stdout.splitlines()[-1]}


def show(record: dict[str, Any]) -> None:
    """A line for each way, and what came of the targets."""
    print(f"{record['files']} JPEG files, {record['scale']['name']} size, {BEAMS} beams")
    for row in record["rows"]:
        said = f"{row['what']:13} {row['who']:20} {row['per_second']:.3g} pictures/s"
        said += f" ({row['median_seconds']:.3g} s, {row['low']:.3g}-{row['high']:.3g})"
        for name, wanted in (("iterator", OF_ITERATOR), ("transformers", OF_TRANSFORMERS)):
            if (found := row["ratios"].get(name)) is not None:
                said += f"; {found['median']:.2f} [{found['low']:.2f}-{found['high']:.2f}] of {name} (wanted {wanted})"
        if "agreement" in row:
            said += f"; {row['agreement']} as {record['rows'][-1]['who']}"
        print(said if row.get("equal", True) else f"{said}; NOT THE CAPTIONS OF THE ITERATOR")
    print(f"batch size of transformers: {record['batch_sizes']['best']}")
    for one in record["skipped"]:
        print(f"skipped {one['who']}: {one['reason']}")
    if (done := record.get("finished")) is not None:
        imported = "imported" if done["torch"] else "not imported"
        print(f"a job of {done['files']} files that is done: {done['median_seconds']:.2f} s, torch {imported}")
    if "kill" in record:
        print(record["kill"]["result"])


if __name__ == "__main__":
    sys.exit(main())
