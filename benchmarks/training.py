"""Training throughput of captioning: `python -m benchmarks.training` (`make bench-train`).

OpenBLIP's loop and a plain `transformers` loop run in turn, step by step in one process, with the same weights, batches
and AdamW settings, without dropout and label smoothing. The losses of all steps must be equal. The first step is not
timed. `--lora RANK` trains adapters in place of all weights, with `peft` as the peer's library. `--memory` measures the
peak memory of every contestant in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from benchmarks import machine
from benchmarks.inference import HERE, write
from benchmarks.materials import SCALES, Materials
from benchmarks.measure import ratio
from openblip.checkpoints import read
from openblip.model.captioner import Captioner
from openblip.model.precision import DTYPES
from openblip.training.checkpointing import Checkpoints
from openblip.training.config import AdamWSettings, EvaluateSettings, LoraSettings, RunSettings, Schedule
from openblip.training.lora import add_lora
from openblip.training.objectives.caption import CaptionBatch, CaptionObjective
from openblip.training.processes import ProcessGroupInfo
from openblip.training.reporters import LogRecord, Reporter
from openblip.training.strategies import SingleProcess
from openblip.training.trainer import Trainer

RATE = 1e-5
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}  # relative tolerance of the losses
PEERS = {"plain": False, "fused": True}  # AdamW with default options, and with fused=True
OURS = "openblip"
TARGETS = ("query", "value", "qkv")  # layers with adapters


@dataclass
class Run:
    """Seconds and losses of the timed steps."""

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, print, and write the record; return 1 if the losses differ."""
    options = read_options(arguments)
    description = machine.begin(options.threads)
    if options.alone:
        print(json.dumps(train_alone(options)))
        return 0
    torch.set_flush_denormal(True)  # for all contestants
    try:
        runs = train(options)
    finally:
        torch.set_flush_denormal(False)
    peers = [name for name in runs if name != OURS]
    memory = {name: measure_memory(name, options) for name in runs} if options.memory else {}
    equal = {name: _equal(runs[OURS].losses, runs[name].losses, TOLERANCE[options.precision]) for name in peers}
    record = description | {
        "scale": options.scale,
        "batch_size": options.batch_size,
        "steps": options.steps,
        "precision": options.precision,
        "images_per_second": {name: options.batch_size / _median(run.seconds) for name, run in runs.items()},
        "runs": {name: asdict(run) for name, run in runs.items()},
        "ratios": {name: asdict(ratio(runs[name].seconds, runs[OURS].seconds)) for name in peers},
        "equal_losses": equal,
        "lora_rank": options.lora,
        "peak_bytes": memory,
    }
    print(f"captioning, {options.scale} size, batches of {options.batch_size}, {options.precision}")
    for name, run in runs.items():
        seconds = _median(run.seconds)
        summary = f"{name:20} {seconds:8.3f} s per step, {options.batch_size / seconds:.3g} images/s"
        if name != OURS:
            compared = "equal losses" if equal[name] else f"LOSSES DIFFER: {run.losses}, ours {runs[OURS].losses}"
            summary += f"; ours is {ratio(run.seconds, runs[OURS].seconds)}; {compared}"
        if memory:
            summary += f"; peak memory {memory[name] / 2**20:.0f} MiB, {memory[name] / memory[peers[0]]:.2f} of plain"
        print(summary)
    write(record, options.results / f"{options.name}.json")
    return 0 if all(equal.values()) else 1


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5, help="number of timed steps")
    parser.add_argument("--precision", choices=list(TOLERANCE), default="fp32", help="precision; bf16 uses autocast")
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS), help="AdamW of the peer")
    parser.add_argument("--lora", type=int, default=0, metavar="RANK", help="train adapters of this rank")
    parser.add_argument("--memory", action="store_true", help="also measure peak memory, in new processes")
    parser.add_argument("--alone", help=argparse.SUPPRESS)  # the contestant of a process that measures memory
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--scale", choices=list(SCALES), default="base")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, default=HERE / ".work", help="folder of models and images")
    parser.add_argument("--name", default="training", help="name of the result file, without suffix")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    return parser.parse_args(arguments)


def train(options: argparse.Namespace) -> dict[str, Run]:
    """Train all contestants, one step each in turn."""
    materials = Materials(options.work, SCALES[options.scale])
    folder, group = materials.model("caption"), ProcessGroupInfo(torch.device(options.device))
    model = cast(Captioner, read.load(folder).model)
    runs = {OURS: Run(), **{f"transformers {name}": Run() for name in options.peers}}
    peers = {f"transformers {name}": _peer(folder, PEERS[name], options) for name in options.peers}
    batches = [_batch(materials, options, seed) for seed in range(options.steps + 1)]
    loader = AlternatingLoader(batches, peers, runs)
    runs[OURS].losses = _train_ours(model, loader, group, options)[1:]
    return runs


def train_alone(options: argparse.Namespace) -> dict[str, int]:
    """Train one contestant for a few steps, and return the peak memory of the process or, on a GPU, of the device."""
    materials = Materials(options.work, SCALES[options.scale])
    folder, group = materials.model("caption"), ProcessGroupInfo(torch.device(options.device))
    batches = [_batch(materials, options, seed) for seed in range(2)]
    if options.alone == OURS:
        model = cast(Captioner, read.load(folder).model)
        _train_ours(model, AlternatingLoader(batches, {}, {OURS: Run()}), group, options)
    else:
        step = _peer(folder, PEERS[options.alone.removeprefix("transformers ")], options)
        for batch in batches:
            step(batch)
    if group.device.type == "cuda":
        return {"peak_bytes": torch.cuda.max_memory_allocated()}
    return {"peak_bytes": machine.peak_memory()}


def measure_memory(name: str, options: argparse.Namespace) -> int:
    """Return the peak bytes of a contestant in a process of its own."""
    arguments = {
        "--alone": name, "--batch-size": options.batch_size, "--precision": options.precision, "--lora": options.lora,
        "--device": options.device, "--scale": options.scale, "--threads": options.threads, "--work": options.work,
    }  # fmt: skip
    words = [str(word) for pair in arguments.items() for word in pair]
    command = [sys.executable, "-m", "benchmarks.training", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return report["peak_bytes"]


def _train_ours(
    model: Captioner, loader: AlternatingLoader, group: ProcessGroupInfo, options: argparse.Namespace
) -> list[float]:
    """Run OpenBLIP's trainer, and return the losses of all steps."""
    losses = LossRecorder()
    if options.lora:
        add_lora(model, LoraSettings(r=options.lora, alpha=options.lora, dropout=0.0, target_modules=TARGETS))
        _set_adapters(model, "lora_a")
    trainer = Trainer(
        SingleProcess(CaptionObjective(model, prompt_length=1, smoothing=0.0).to(group.device), group),
        loader,
        RunSettings(precision=options.precision, log_every=1),
        EvaluateSettings(every_epochs=0),
        optimizer=AdamWSettings(),
        schedule=Schedule(kind="constant", lr=RATE),
        checkpoints=NoCheckpoints(options.work),
        reporters=[losses],
    )
    trainer.run()
    return losses.values


def _set_adapters(model: nn.Module, name: str) -> None:
    """Draw the first matrix of every adapter from a seed that depends on its shape, so that all contestants agree."""
    for parameter_name, parameter in model.named_parameters():
        if name in parameter_name:
            generator = torch.Generator().manual_seed(parameter.shape[1])
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5)


class AlternatingLoader:
    """A loader that runs a step of each peer on a batch before it yields the batch, and times all contestants."""

    def __init__(
        self, batches: list[CaptionBatch], peers: dict[str, Callable[[CaptionBatch], float]], runs: dict[str, Run]
    ) -> None:
        self.batches, self.peers, self.runs = batches, peers, runs

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches."""
        return len(self.batches)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[CaptionBatch]:
        """Yield the batches; the first one is not timed."""
        for number, batch in enumerate(self.batches):
            for name, step in self.peers.items():
                start = _now(batch)
                loss = step(batch)
                if number:
                    self.runs[name].seconds.append(_now(batch) - start)
                    self.runs[name].losses.append(loss)
            start = _now(batch)
            yield batch  # the trainer runs its step before it requests the next batch
            if number:
                self.runs[OURS].seconds.append(_now(batch) - start)


class LossRecorder(Reporter):
    """Records the loss of each step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_losses(self, record: LogRecord) -> None:
        """Record the loss of a step."""
        self.values.append(record["loss"])


class NoCheckpoints(Checkpoints):
    """Saves nothing, because checkpoints are not measured."""

    def save(self, state: Any, step: int) -> Path:
        """Return the folder without saving."""
        return self.folder


def _peer(folder: Path, fused: bool, options: argparse.Namespace) -> Callable[[CaptionBatch], float]:
    """Return a training step as users of `transformers` write it."""
    import transformers

    library: Any = transformers
    library.logging.disable_progress_bar()
    model: Any = library.BlipForConditionalGeneration.from_pretrained(folder).to(options.device).train()
    if options.lora:
        import peft

        adapters: Any = peft
        config = adapters.LoraConfig(
            r=options.lora, lora_alpha=options.lora, lora_dropout=0.0, target_modules=list(TARGETS)
        )
        model = adapters.get_peft_model(model, config)
        _set_adapters(model, "lora_A")
    settings = AdamWSettings()
    fused_option = {"fused": True} if fused else {}  # otherwise torch chooses the implementation
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=RATE, betas=(settings.beta1, settings.beta2), eps=settings.eps,
        weight_decay=settings.weight_decay, **fused_option,
    )  # fmt: skip
    dtype = DTYPES[options.precision]

    def step(batch: CaptionBatch) -> float:
        labels = batch.ids.masked_fill(batch.mask == 0, -100)
        with torch.autocast(options.device, dtype=dtype, enabled=dtype is not torch.float32):
            loss = model(pixel_values=batch.pixels, input_ids=batch.ids, attention_mask=batch.mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.item())

    return step


def _batch(materials: Materials, options: argparse.Namespace, seed: int) -> CaptionBatch:
    """Return images of noise, and captions of 8 to 20 tokens that start with [DEC], padded to the longest."""
    config = materials.scale.config("caption")
    generator = torch.Generator().manual_seed(seed)
    count, size = options.batch_size, config.vision.image_size
    lengths = torch.randint(8, 21, (count,), generator=generator)
    ids = torch.randint(104, materials.scale.words, (count, int(lengths.max())), generator=generator)
    ids[:, 0] = config.text.dec_id
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    ids[torch.arange(count), lengths - 1] = config.text.sep_id
    pixels = torch.randn(count, 3, size, size, generator=generator)

    device = options.device
    return CaptionBatch(pixels=pixels.to(device), ids=(ids * mask).to(device), mask=mask.to(device))


def _now(batch: CaptionBatch) -> float:
    if batch.pixels.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def _equal(ours: list[float], theirs: list[float], tolerance: float) -> bool:
    pairs = list(zip(ours, theirs, strict=True))
    return bool(pairs) and all(abs(loss - expected) <= tolerance * abs(expected) for loss, expected in pairs)


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    sys.exit(main())
