"""Pictures of a tar in the records of a job, read again by the data layer."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from openblip.data.images import FileImage, open_image
from openblip.data.loader import Loader
from openblip.data.sources import open_source
from openblip.data.sources.base import Source
from openblip.data.tasks.caption import CaptionData
from openblip.errors import ImageError
from openblip.preprocess.image import load_image
from tests.jobs.cli import pictures
from tests.jobs.test_run import JobRunner
from tests.toys import toy_tokenizer


def test_pictures_of_a_tar_are_read_again_from_the_list_of_their_texts(tmp_path: Path) -> None:
    """A tar is captioned, and its list is data to train on: the pictures come out of the tar."""
    photos = pictures(tmp_path / "p", 3)
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for path in photos:
            tar.add(path, f"in/{path.name}")
    run = JobRunner(tmp_path / "shard.tar", "jsonl", tmp_path / "lists" / "out.jsonl")
    assert run()["computed"] == 3
    source = open_source(str(tmp_path / "lists" / "out.jsonl"))
    assert isinstance(source, Source)
    batches = Loader(source, CaptionData(tokenizer=toy_tokenizer()), batch_size=3, seed=0)
    assert len(next(iter(batches.epoch(0)))) > 0
    assert not batches.report.problems
    for record, path in zip(source, photos, strict=True):
        assert record.captions == (f"{path.stem} v1",)
        assert open_image(record.images[0]).tobytes() == load_image(path).tobytes()
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(photos[2], "in/0001.png")
    os.utime(tmp_path / "shard.tar", ns=(1, 10**18))
    assert open_image(source[1].images[0]).tobytes() == load_image(photos[2]).tobytes()
    with pytest.raises(ImageError, match="no such member"):
        open_image(source[0].images[0])
    (tmp_path / "shard.tar").write_bytes(b"no tar")
    with pytest.raises(ImageError, match="damaged"):
        open_image(source[0].images[0])


def test_a_member_is_named_by_tar_and_path_where_no_file_has_that_name(tmp_path: Path) -> None:
    (odd,) = pictures(tmp_path, 1)
    odd.rename(tmp_path / "a.tar:b.png")
    source = open_source([{"path": f"{tmp_path}/a.tar:b.png"}, {"path": f"{tmp_path}/a.tar.gz:b.png"}])
    assert isinstance(source, Source)
    assert [type(one.images[0]) for one in source] == [FileImage]
    assert "unpack the tar" in source.problems[0].reason
