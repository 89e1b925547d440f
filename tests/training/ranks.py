"""The work of each of two processes in the tests of distributed training; they write their results into a folder.

One pair of processes runs every case, because starting them takes longer than all the work.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openblip.training.checkpointing import Checkpoints
from openblip.training.config import AdamWSettings, EvaluateSettings, Recipe, RunSettings, Schedule, recipe_from_table
from openblip.training.config.run import Strategy
from openblip.training.objectives.gather import Gather
from openblip.training.processes import ProcessGroupInfo, join_processes
from openblip.training.run import run as run_recipe
from openblip.training.sharding import full_tensor
from openblip.training.strategies import build_strategy
from openblip.training.trainer import Evaluation, Progress, Trainer
from tests.training.loop_toys import ToyLoader, half, toy_batch, toy_objective, toy_pretraining

ROOT = Path(__file__).parents[2]
STRATEGIES: tuple[Strategy, ...] = ("ddp", "fsdp")
RATE = 0.1

# Case: the objective's name and its options for two processes.
PUBLISHED: dict[str, dict[str, Any]] = {
    "caption": {},
    "vqa": {},
    "nlvr": {},
    "grounding": {},
    "pretrain": {},
    "retrieval": {},
}
ALL: dict[str, dict[str, Any]] = {
    "caption": {"token_mean": "all"},
    "pretrain": {"token_mean": "all", "negatives": "all", "itc_columns": "all"},
    "retrieval": {"negatives": "all", "itc_columns": "all"},
}
COCO: dict[str, dict[str, Any]] = {"retrieval": {"negatives": "all"}}  # published: negatives from all, ITC columns not


def free_ports() -> tuple[int, int]:
    """Return two different free ports."""
    with socket.socket() as socket_a, socket.socket() as socket_b:
        for probe in (socket_a, socket_b):
            probe.bind(("127.0.0.1", 0))
        return int(socket_a.getsockname()[1]), int(socket_b.getsockname()[1])


def work(rank: int, folder: Path, ports: tuple[int, int]) -> None:
    """One of the two processes, as `torchrun` would join_processes it."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    os.environ["MASTER_PORT"] = str(ports[0])
    with join_processes("cpu", timeout_minutes=2) as group:
        torch.save(dict(everything(group, folder)), folder / f"rank-{rank}.pt")
    os.environ["MASTER_PORT"] = str(ports[1])
    run_recipe(whole_run(folder, folder / "two", batch_size=2))


def start_both(folder: Path, patience: float = 150.0) -> list[tuple[int, str]] | None:
    """Start both processes; the code and the output of each, or None if they have not met or ended after so long."""
    command = [sys.executable, "-m", "tests.training.ranks", str(folder), *map(str, free_ports())]
    processes = [
        subprocess.Popen([*command, str(rank)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in range(2)
    ]
    end = time.monotonic() + patience
    try:
        outputs = [process.communicate(timeout=max(1.0, end - time.monotonic()))[0] for process in processes]
    except subprocess.TimeoutExpired:
        return None
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


def whole_run(folder: Path, out: Path, batch_size: int) -> Recipe:
    """Return a recipe for the data and the model of a folder, with batches of four images over all processes."""
    return recipe_from_table(
        {
            "task": "caption",
            "start": str(folder / "model"),
            "out": str(out),
            "epochs": 2,
            "batch_size": batch_size,
            "data": {"train": str(folder / "data.jsonl"), "val": str(folder / "data.jsonl"), "num_workers": 0},
            "loss": {"token_mean": "all"},
            "schedule": {"lr": 1e-3},
            "run": {"device": "cpu", "log_every": 1, "charts": False, "timeout_minutes": 2.0},
            "evaluate": {"num_samples": 2},
        }
    )


def everything(group: ProcessGroupInfo, folder: Path) -> Iterator[tuple[str, Any]]:
    yield "gather", gathering(group)
    for strategy in STRATEGIES:
        for mode, cases in (("published", PUBLISHED), ("all", ALL), ("coco", COCO)):
            for name, options in cases.items():
                yield f"{strategy}/{mode}/{name}", one_step(group, strategy, name, options)
        yield f"{strategy}/accumulated", accumulated(group, strategy)
        yield f"{strategy}/run", run(group, strategy, folder / strategy)


def gathering(group: ProcessGroupInfo) -> dict[str, Tensor]:
    """Rows of different numbers, with gradients; truth values; a mean and an agreement."""
    rows = torch.full((3 - group.rank, 2), float(group.rank + 1)).requires_grad_()
    everyone = group.gather(rows)
    weights = torch.arange(everyone.numel()).view_as(everyone) + 100.0 * group.rank
    torch.autograd.backward((everyone * weights).sum())
    assert rows.grad is not None
    truth = group.gather(torch.tensor([group.rank == 0]))
    assert group.broadcast({"rank": group.rank}) == {"rank": 0}
    assert group.collect(group.rank) == [0, 1]
    return {
        "rows": everyone.detach(),
        "gradient": rows.grad,
        "truth": truth,
        "places": group.gather.own_indices(rows.detach()),
        "mean": group.mean(torch.tensor([float(group.rank)])),
    }


def one_step(group: ProcessGroupInfo, strategy: Strategy, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Losses, gradients, and everything the objective holds after a step of SGD."""
    takes_gather = name in ("caption", "pretrain", "retrieval")
    objective = toy_objective(name, **options, **({"gather": group.gather} if takes_gather else {}))
    parallel = build_strategy(objective, group, strategy)
    losses = parallel(half(toy_batch(name), group.rank))
    return {"losses": detached(group, losses), **stepped(objective, losses, parallel.finish_backward)}


def stepped(objective: nn.Module, losses: dict[str, Tensor], finish: Callable[[], None]) -> dict[str, Any]:
    """Backward, SGD, and what came of it, whole."""
    torch.autograd.backward(torch.stack(list(losses.values())).sum())
    finish()
    gradients = copied({n: p.grad for n, p in objective.named_parameters() if p.grad is not None})
    for group in (False, True):  # sharded and whole parameters are stepped apart
        members = [p for p in objective.parameters() if p.requires_grad and (p.ndim == 0) is group]
        if members:
            torch.optim.SGD(members, lr=RATE).step()
    return {"gradients": gradients, "state": copied(objective.state_dict())}


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: full_tensor(tensor.detach()).clone() for name, tensor in tensors.items()}


def detached(group: ProcessGroupInfo, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: group.mean(loss.detach()) for name, loss in losses.items()}


def accumulated(group: ProcessGroupInfo, strategy: Strategy) -> dict[str, Tensor]:
    """Gradients of two batches that make one step."""
    objective = toy_objective("caption")
    parallel = build_strategy(objective, group, strategy)
    for i in range(2):
        with parallel.accumulation(is_last_batch=i == 1):
            torch.autograd.backward(parallel(half(half(toy_batch("caption"), group.rank), i))["lm"] / 2)
    parallel.finish_backward()
    return copied({n: p.grad for n, p in objective.named_parameters() if p.grad is not None})


def run(group: ProcessGroupInfo, strategy: Strategy, folder: Path) -> dict[str, Any]:
    """Run the loop once straight, and once stopped in the middle of an epoch and resumed: both must end equal."""
    straight, _ = trainer(group, strategy, folder / "straight")
    straight.run()
    stopped, evaluated = trainer(group, strategy, folder / "resumed", stop_at=3)
    with suppress(Stop):
        stopped.run()
    resumed, evaluated = trainer(group, strategy, folder / "resumed", evaluated=evaluated)
    resumed.run(resume=True)
    return {
        "straight": copied(straight.objective.state_dict()),
        "resumed": copied(resumed.objective.state_dict()),
        "seen": evaluated,
    }


class Stop(Exception):  # noqa: N818 (an event)
    """Ends a run as a kill would, on both processes."""


class StoppingLoader(ToyLoader):
    stop_at = 0
    num_yielded = 0

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Any]:
        for batch in super().epoch(epoch, start_step):
            if self.num_yielded == self.stop_at:
                raise Stop
            self.num_yielded += 1
            yield batch


def trainer(
    group: ProcessGroupInfo,
    strategy: Strategy,
    folder: Path,
    stop_at: int = -1,
    evaluated: list[dict[str, Tensor]] | None = None,
) -> tuple[Trainer, list[dict[str, Tensor]]]:
    """Return a run of one epoch of four batches, saved after the third too, and the weights that it evaluates."""
    evaluated = [] if evaluated is None else evaluated
    objective = toy_pretraining(dropout=True, gather=group.gather if group.world_size > 1 else Gather())
    loader = StoppingLoader("pretrain", steps_per_epoch=4, size=2, rank=group.rank, draws=True)
    loader.stop_at = stop_at

    def evaluate(model: nn.Module, progress: Progress) -> Evaluation:
        torch.rand(3)  # an evaluation may draw random numbers
        evaluated.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return Evaluation({"steps": float(progress.step)})

    run_trainer = Trainer(
        build_strategy(objective, group, strategy),
        loader,
        RunSettings(save_every=3, log_every=2),
        EvaluateSettings(metric="steps"),
        optimizer=AdamWSettings(clip_norm=1.0),
        schedule=Schedule(kind="constant", lr=1e-3),
        checkpoints=Checkpoints(folder),
        evaluate=evaluate,
    )
    return run_trainer, evaluated


if __name__ == "__main__":
    work(int(sys.argv[4]), Path(sys.argv[1]), (int(sys.argv[2]), int(sys.argv[3])))
