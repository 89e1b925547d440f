"""The lists of photos for `pocket`, at toy size: held-out photos, and no copies of judged photos in training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.pocket_toys import load_script, run_script, write_tar
from tests.toys import toy_image


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Photos with captions, some of them copies of judged ones, and photos with class names."""
    folder = tmp_path / "data"
    captions = {"captions": ["a dog"] * 5, "refs": [{"expression": "a dog", "bbox": [1, 2, 9, 8]}]}
    copies = [(toy_image(100), captions), (ImageOps.mirror(toy_image(101)), captions)]
    write_tar(folder / "train" / "flickr8k-000.tar", [*((toy_image(n), captions) for n in range(5)), *copies])
    write_tar(folder / "val" / "flickr8k-000.tar", [(toy_image(n), captions) for n in (100, 101)])
    everyday: list[tuple[Image.Image, dict[str, object]]] = [
        (toy_image(200 + n), {"captions": ["a cup"] * (5 if n < 4 else 1)}) for n in range(6)
    ]
    everyday[4][1]["refs"] = [{"expression": "cup", "bbox": [1, 2, 9, 8], "auto": True}]
    names = {"captions": [], "alt": ["a photo of a beagle", "a photo of a dog", "a photo of a beagle, a kind of dog"]}
    write_tar(folder / "more" / "coco-000.tar", everyday)
    write_tar(folder / "more" / "names-000.tar", [(toy_image(300), names), (toy_image(400), names)])
    (tmp_path / "samples").mkdir()
    toy_image(400).save(tmp_path / "samples" / "a.jpg", quality=95)
    return folder


@pytest.fixture
def lists(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pocket_data = load_script("pocket_data", monkeypatch)
    monkeypatch.setattr(pocket_data, "HELD_OUT", 2)
    run_script(
        pocket_data, ["--data", data, "--samples", tmp_path / "samples", "--out", tmp_path / "lists"], monkeypatch
    )
    return tmp_path / "lists"


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lists_hold_out_photos_and_leave_out_copies(lists: Path) -> None:
    train, captioned, val = (rows(lists / f"{name}.jsonl") for name in ("train", "captioned", "everyday_val"))
    assert len(val) == 2
    assert all(len(row["captions"]) == 5 for row in val)  # type: ignore[arg-type]
    images = {row["image"] for row in train}
    assert not images & {row["image"] for row in val}
    assert len([image for image in images if str(image).startswith("train/")]) == 5
    assert [row["captions"] for row in train if not row["human"]] == [["a beagle", "a dog"]]
    assert [row for row in train if row["human"]] == captioned
    assert all(row["refs"] for row in captioned if str(row["image"]).startswith("train/"))
    boxed = {row["image"] for row in rows(lists / "boxed.jsonl")}
    assert boxed == {image for image in images if str(image).startswith("train/")}, "no boxes that a rule made"


def test_the_leakage_script_finds_copies_and_their_mirror_images(
    data: Path, lists: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leakage = load_script("pocket_leakage", monkeypatch)
    arguments = ["--data", data, "--lists", lists, "--samples", tmp_path / "samples"]
    with pytest.raises(SystemExit) as stop:
        run_script(leakage, arguments, monkeypatch)
    assert stop.value.code == 0
    everything = [f"train/flickr8k-000.tar:flickr8k-000_{n:06d}.jpg" for n in range(7)]
    (lists / "train.jsonl").write_text(
        "\n".join(json.dumps({"image": image, "captions": ["a"]}) for image in everything)
    )
    with pytest.raises(SystemExit) as stop:
        run_script(leakage, arguments, monkeypatch)
    assert stop.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    found = {line.split()[1].rpartition("_")[2] for line in lines if line.startswith(("0.", "1."))}
    assert found == {"000005.jpg", "000006.jpg"}


def test_a_sketch_knows_copies_by_their_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    leakage = load_script("pocket_leakage", monkeypatch)
    image = toy_image(5, 64, 64)
    darker = image.point(lambda value: value // 2).resize((40, 40))
    first, second, other = (leakage.sketch(shown) for shown in (image, darker, toy_image(6, 64, 64)))
    assert first @ second > 0.95
    assert first @ other < 0.9
    assert not leakage.sketch(Image.new("RGB", (9, 9), "red")).any()
    np.testing.assert_allclose(np.linalg.norm(first), 1, rtol=1e-5)
