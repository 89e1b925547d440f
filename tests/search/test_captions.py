"""Captions and dates that images have already."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from openblip import Blip
from openblip.jobs.xmp import with_description
from openblip.search import Filter, Index, IndexedImage
from tests.search.search_toys import make_index, no_model, write_photos
from tests.toys import toy_image

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE_CAR = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:description><rdf:Alt><rdf:li xml:lang="x-default">
a lake</rdf:li></rdf:Alt></dc:description></rdf:Description></rdf:RDF></x:xmpmeta>"""


def by_name(index: Index) -> dict[str, IndexedImage]:
    return {image.name: image for image in index.list().images}


def captions_by_file(index: Index) -> dict[str, str | None]:
    return {Path(image.path).name: image.caption for image in index.list().images}


def test_captions_of_side_cars_and_metadata(tmp_path: Path, blip: Blip) -> None:
    paths = write_photos(tmp_path / "photos", range(5))
    paths[0].with_suffix(".txt").write_text("\ufeffa dog\n\nat home\n", encoding="utf-8")
    paths[1].with_suffix(".xmp").write_text(SIDE_CAR)
    paths[2].write_bytes(with_description(paths[2].read_bytes(), "a tree"))
    paths[3].with_suffix(".txt").write_bytes(b"caf\xe9")
    paths[3].with_suffix(".xmp").write_text("damaged")
    images = by_name(make_index(tmp_path / "index", blip, tmp_path / "photos"))
    found = {name: (image.caption, image.caption_source) for name, image in images.items()}
    assert found == {
        "000.png": ("a dog; at home", "sidecar"),
        "001.png": ("a lake", "sidecar"),
        "002.png": ("a tree", "metadata"),
        "003.png": ("caf\ufffd", "sidecar"),
        "004.png": (None, ""),
    }


def test_captions_of_lists(tmp_path: Path, blip: Blip) -> None:
    paths = write_photos(tmp_path / "photos", range(3))
    paths[0].with_suffix(".txt").write_text("of the file")
    rows = [{"image": f"photos/{path.name}", "caption": ["one", f"picture {path.stem}"]} for path in paths]
    listed = tmp_path / "list.jsonl"
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    index = Index.create(tmp_path / "index", blip)
    assert index.add([str(listed)], blip).counts == {"added": 3}
    assert {image.caption for image in index.list().images} == {f"one; picture {path.stem}" for path in paths}
    assert index.add([str(listed)], no_model).counts == {"unchanged": 3}
    listed.write_text(listed.read_text().replace("picture 001", "a cat"))
    assert index.add([str(listed)], no_model).counts == {"unchanged": 3}
    assert [hit.path for hit in index.search(None, where=Filter(caption="cat"))] == [str(paths[1])]
    paths[2].unlink()
    assert index.add([str(listed)], no_model).counts == {"unchanged": 2, "failed": 1}


def test_a_run_without_the_list_keeps_its_captions(tmp_path: Path, blip: Blip) -> None:
    photos = tmp_path / "photos"
    paths = write_photos(photos, range(3))
    listed = tmp_path / "list.jsonl"
    listed.write_text(json.dumps({"image": "photos/000.png", "caption": "a sleepy cat"}) + "\n")
    index = Index.create(tmp_path / "index", blip)
    index.add([str(listed)], blip)
    index.add([str(photos)], blip)
    for _ in range(2):
        assert index.add([], no_model).counts == {"unchanged": 3}
        assert captions_by_file(index)["000.png"] == "a sleepy cat"
    paths[0].rename(photos / "moved.png")
    assert index.add([], no_model).counts == {"moved": 1, "unchanged": 2}
    assert captions_by_file(index)["moved.png"] == "a sleepy cat"
    assert index.add([], no_model).counts == {"unchanged": 3}
    listed.write_text(json.dumps({"image": "photos/moved.png", "caption": "a dog"}) + "\n")
    index.add([str(listed)], no_model)
    assert captions_by_file(index)["moved.png"] == "a dog"


def test_dates_of_photos(tmp_path: Path, blip: Blip) -> None:
    (tmp_path / "photos").mkdir()
    for number, (tag, text) in enumerate(
        [(0x9003, "2021:05:17 18:30:00"), (0x0132, "2020:01:02 03:04:05"), (0x9003, "?")]
    ):
        exif = Image.Exif()
        (exif.get_ifd(0x8769) if tag == 0x9003 else exif)[tag] = text
        toy_image(number, 40, 30).save(tmp_path / "photos" / f"{number}.jpg", exif=exif)
    index = make_index(tmp_path / "index", blip, tmp_path / "photos")
    images = by_name(index)
    assert images["0.jpg"].date == "2021-05-17T18:30:00"
    assert images["1.jpg"].date == "2020-01-02T03:04:05"
    assert images["2.jpg"].date > "2025", "when the file was written"
    assert (images["0.jpg"].width, images["0.jpg"].height) == (40, 30)
    found = index.search(None, where=Filter(after="2020-01-02", before="2021-05-17T18:30:01"))
    assert [hit.name for hit in found] == ["0.jpg", "1.jpg"]
    assert [hit.name for hit in index.search(None, where=Filter(before="2021-05-17"))] == ["1.jpg"]
