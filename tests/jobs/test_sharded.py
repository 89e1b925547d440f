"""Batch jobs with one file per shard: the same results as without shards, and resumed by the files that are there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from openblip.cli import app
from openblip.data.sources.shards import plan_shards
from openblip.errors import JobError
from openblip.jobs.executors import run_in_process
from openblip.jobs.journal import Identity
from openblip.jobs.matches import EmbedAnnotator
from openblip.jobs.sharded import ShardedJob, run_sharded
from tests.capfilt.capfilt_toys import picture, web_folder, web_tar
from tests.pipelines.pipeline_toys import assert_close

pytestmark = pytest.mark.usefixtures("one_thread")
COMMANDS = {
    "caption": ("--num-beams", "1", "--max-new-tokens", "4"),
    "ask": ("-q", "what is it?", "--num-beams", "1"),
    "match": ("-t", "a man", "-t", "cat"),
    "embed": (),
}


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray replaced by this process."""
    from openblip.jobs import ray

    monkeypatch.setattr(ray, "run_on_ray", lambda *args, **options: run_in_process)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_write_the_same_records(folder: Path, tmp_path: Path, command: str) -> None:
    web_tar(tmp_path / "web/0.tar", 3)
    web_tar(tmp_path / "web/1.tar", 2, start=3)
    shared = ("-m", str(folder), "--device", "cpu", "--num-workers", "0", "--engine", "torch", *COMMANDS[command])
    result = call(
        command, str(tmp_path / "web"), "--ray", "auto", "--to", "jsonl", "--out", str(tmp_path / "out"), *shared
    )
    assert result.exit_code == 0, result.stderr
    assert "5 written" in result.stderr
    plain = call(command, str(tmp_path / "web"), "--to", "jsonl", "--out", str(tmp_path / "all.jsonl"), *shared)
    assert plain.exit_code == 0, plain.stderr
    files = sorted((tmp_path / "out").glob("*.jsonl"))
    assert len(files) == 2
    found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    expected = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    for rows in (found, expected):
        for row in rows:
            row.pop("index")
            row["path"] = row["path"].rpartition("/")[2]
    assert_close(found, expected)
    again = call(
        command, str(tmp_path / "web"), "--ray", "auto", "--to", "jsonl", "--out", str(tmp_path / "out"), *shared
    )
    assert again.stderr.splitlines()[-1] == "2 shards done before"


@pytest.mark.usefixtures("in_process")
def test_other_outputs_are_refused(folder: Path, tmp_path: Path) -> None:
    images = str(web_folder(tmp_path / "web", 1))
    for options, message in (
        (("--to", "sidecar"), "it needs --to jsonl|csv|parquet|npy and --out DIR"),
        (("--to", "kohya", "--out", "x"), "it needs --to jsonl|csv|parquet|npy and --out DIR"),
        (("--to", "jsonl", "--out", "x.jsonl"), "--out must be a folder"),
        (("--to", "jsonl", "--out", "x", "--report", "a.html"), "--report does not apply to --ray"),
        (("--to", "jsonl", "--out", "x", "--existing", "append"), "--existing does not apply to --ray"),
    ):
        result = call("caption", images, "-m", str(folder), "--ray", "auto", *options)
        assert result.exit_code == 2
        assert message in result.stderr
    assert "No such option" in call("classify", images, "-l", "a|b", "--ray", "auto").stderr
    assert call("caption", images, "-m", str(folder), "--workers", "2").exit_code == 0, "threads that load images"


def test_a_present_shard_is_done(folder: Path, tmp_path: Path) -> None:
    import openblip

    web_folder(tmp_path / "web", 4)
    (tmp_path / "web/001.jpg").write_bytes(b"damaged")
    blip = openblip.load(folder)
    calls: list[int] = []

    def make_annotator() -> EmbedAnnotator:
        calls.append(1)
        return EmbedAnnotator(blip)

    job = ShardedJob(str(tmp_path / "out"), "npy", "toy", make_annotator)
    identity = Identity("embed", {"retrieval": "x"}, {})
    counts = run_sharded([str(tmp_path / "web")], job, identity, run_in_process)
    assert counts == {"computed": 3, "failed": 1, "done": 0}
    (shard,) = plan_shards([str(tmp_path / "web")])
    vectors = np.load(job.path(shard.name))
    np.testing.assert_allclose(vectors[0], blip.embed_images(picture(0)), atol=1e-5)
    assert vectors.shape == (3, 16)
    rows = [json.loads(line) for line in (tmp_path / f"out/{shard.name}.rows.jsonl").read_text().splitlines()]
    assert [row.get("row") for row in rows] == [0, 1, 2, None]
    assert "error" in rows[3]
    assert run_sharded([str(tmp_path / "web")], job, identity, run_in_process) == {"done": 1}
    assert len(calls) == 1
    with pytest.raises(JobError, match="another command, model or options"):
        run_sharded([str(tmp_path / "web")], job, Identity("embed", {"retrieval": "y"}, {}), run_in_process)
