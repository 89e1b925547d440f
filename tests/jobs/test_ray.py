"""Ray: the same rows as without it, for any number of actors, and after actors were killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from openblip.data.sources.shards import Shard
from openblip.errors import JobError

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@dataclass(frozen=True)
class WritingJob:
    """Writes the name of each shard into a file, and fails, dies or waits if it should."""

    out: str
    fatal: str = ""

    def start(self) -> Callable[[Shard], dict[str, int]]:
        def compute(shard: Shard) -> dict[str, int]:
            if shard.name == self.fatal:
                raise ValueError("a fault in the job")
            (Path(self.out) / f"{shard.name}.pid").write_text(str(os.getpid()))
            time.sleep(0.2)
            (Path(self.out) / shard.name).write_text(shard.name)
            return {"rows": 1}

        return compute


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One local cluster for all tests."""
    import ray

    from openblip.jobs import ray as on_ray

    on_ray._connect(ray, "local")
    yield
    ray.shutdown()


def shards(count: int) -> list[Shard]:
    return [Shard(f"s{number:02d}", "tar", "x.tar") for number in range(count)]


@pytest.mark.usefixtures("cluster")
def test_actors_compute_every_shard(tmp_path: Path) -> None:
    from openblip.jobs.ray import run_on_ray

    counts = list(run_on_ray(workers=2)(WritingJob(str(tmp_path)), shards(6)))
    assert counts == [{"rows": 1}] * 6
    assert sorted(path.name for path in tmp_path.iterdir() if not path.suffix) == [s.name for s in shards(6)]
    assert len({path.read_text() for path in tmp_path.glob("*.pid")}) in (1, 2)  # the second may start too late


@pytest.mark.usefixtures("cluster")
def test_a_fault_is_reported(tmp_path: Path) -> None:
    from openblip.jobs.ray import run_on_ray

    with pytest.raises(JobError, match="a fault in the job"):
        list(run_on_ray(workers=1)(WritingJob(str(tmp_path), "s01"), shards(3)))


@pytest.mark.usefixtures("cluster")
def test_a_killed_actor_is_replaced(tmp_path: Path) -> None:
    from openblip.jobs.ray import run_on_ray

    killed = False
    results = []
    for counts in run_on_ray(workers=2)(WritingJob(str(tmp_path)), shards(8)):
        results.append(counts)
        if not killed:
            pids = {int(path.read_text()) for path in tmp_path.glob("*.pid")}
            os.kill(pids.pop(), signal.SIGKILL)
            killed = True
    assert len(results) == 8
    assert all((tmp_path / shard.name).exists() for shard in shards(8))


@pytest.mark.usefixtures("cluster")
def test_capfilt_on_ray_equals_capfilt_without(folder: Path, tmp_path: Path) -> None:
    from openblip.capfilt.folder import CapFiltFolder, digest_rows
    from openblip.capfilt.run import run
    from openblip.jobs.ray import run_on_ray
    from tests.capfilt.capfilt_toys import make_job, web_folder

    source = [str(web_folder(tmp_path / "web", 9))]
    run(source, make_job(folder, tmp_path / "plain"), shard_rows=3)
    for workers in (1, 2):
        run(source, make_job(folder, tmp_path / str(workers)), shard_rows=3, execute=run_on_ray(workers=workers))
        assert digest_rows(CapFiltFolder(tmp_path / str(workers))) == digest_rows(CapFiltFolder(tmp_path / "plain"))


def test_a_killed_driver_resumes(folder: Path, tmp_path: Path) -> None:
    """Kill the whole command, with or without Ray, at random moments until it ends by itself."""
    from openblip.capfilt.folder import CapFiltFolder, digest_rows
    from openblip.capfilt.run import run
    from tests.capfilt.capfilt_toys import make_job, web_folder

    source = web_folder(tmp_path / "web", 12)
    run([str(source)], make_job(folder, tmp_path / "plain"), shard_rows=2)
    program = (
        "import sys, time; from pathlib import Path; sys.path.insert(0, '.')\n"
        "from tests.capfilt.capfilt_toys import make_job; from openblip.capfilt.run import run, ShardComputer\n"
        "compute = ShardComputer.__call__\n"
        "ShardComputer.__call__ = lambda self, shard: (time.sleep(0.3), compute(self, shard))[1]\n"
        f"run([{str(source)!r}], make_job(Path({str(folder)!r}), Path({str(tmp_path / 'out')!r})), shard_rows=2)\n"
    )
    rng, kills = random.Random(0), 0
    while kills < 20:
        process = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
        done = len(CapFiltFolder(tmp_path / "out").shards())
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if len(CapFiltFolder(tmp_path / "out").shards()) > done:
                break
            time.sleep(0.02)
        time.sleep(rng.random() * 0.3)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    assert process.wait() == 0
    assert kills >= 3
    assert digest_rows(CapFiltFolder(tmp_path / "out")) == digest_rows(CapFiltFolder(tmp_path / "plain"))
    assert json.loads((tmp_path / "out/capfilt.json").read_text())["complete"]
    assert not list((tmp_path / "out").rglob("*.part"))
