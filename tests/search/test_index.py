"""An index is kept up to date without embedding twice, and finds what its filters allow."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import openblip
from openblip import Blip
from openblip.errors import ImageError, InputError, SearchError
from openblip.search import Filter, Hit, Index, update
from openblip.search.index import mark_duplicates
from openblip.search.listing import list_images
from tests.jobs.cli import pictures
from tests.pipelines.pipeline_toys import count_images
from tests.search.search_toys import make_index, no_model, write_photos
from tests.toys import toy_bundle, toy_image

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight photos in two folders."""
    write_photos(tmp_path / "photos", range(5))
    write_photos(tmp_path / "photos" / "trip", range(5, 8))
    return tmp_path / "photos"


def test_a_second_run_changes_nothing(tmp_path: Path, blip: Blip, photos: Path) -> None:
    with count_images(blip, "retrieval") as counter:
        index = Index.create(tmp_path / "index", blip)
        report = index.add([str(photos)], blip, recursive=True)
    assert (report.counts, report.encoded, counter.count) == ({"added": 8}, 8, 8)
    ids = [image.id for image in index.list().images]
    again = index.add([str(photos)], no_model, recursive=True)
    assert (again.counts, again.encoded) == ({"unchanged": 8}, 0)
    assert index.add([], no_model).counts == {"unchanged": 8}, "without paths: the folders of before"
    index.close()
    with Index.open(tmp_path / "index") as reopened:
        assert [image.id for image in reopened.list().images] == ids


def test_an_interrupted_run_is_resumed(
    tmp_path: Path, blip: Blip, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(update, "COMMIT_IMAGES", 2)
    index = Index.create(tmp_path / "index", blip)
    listing = list_images([str(photos)], {}, recursive=True)
    run = index.prepare_update(listing, blip).run()
    assert [next(run).outcome for _ in range(3)] == ["added"] * 3
    run.close()  # type: ignore[attr-defined]
    assert len(index) == 4, "two groups were committed"
    report = index.add([str(photos)], blip, recursive=True)
    assert (report.counts, report.encoded) == ({"unchanged": 4, "added": 4}, 4)


def test_embeddings_and_cosines_are_those_of_the_model(tmp_path: Path, blip: Blip, photos: Path) -> None:
    index = make_index(tmp_path / "index", blip, photos)
    results = index.search(blip, "a dog", n=8)
    paths = [hit.path for hit in results]
    cosines = blip.embed_images(paths) @ blip.embed_texts("a dog")
    np.testing.assert_allclose(np.array([hit.similarity for hit in results], float), cosines, atol=1e-5)
    assert sorted(cosines, reverse=True) == list(cosines)
    assert index.search(blip, image=paths[3], n=1)[0].path == paths[3]
    query = index.embed_query(blip, "a dog", image=paths[0], minus=["a cat", "red"])
    texts = blip.embed_texts(["a dog", "a cat", "red"])
    expected = texts[0] + blip.embed_images(paths[0]) - texts[1:].mean(0)
    np.testing.assert_allclose(query, expected / np.linalg.norm(expected), atol=1e-5)


def test_moved_images_are_not_embedded_again(tmp_path: Path, blip: Blip, photos: Path) -> None:
    index = make_index(tmp_path / "index", blip, photos)
    before = {image.hash: image.id for image in index.list().images}
    photos.rename(tmp_path / "elsewhere")
    report = index.add([str(tmp_path / "elsewhere")], no_model, recursive=True)
    assert (report.counts, report.encoded) == ({"moved": 8}, 0)
    after = {image.hash: (image.id, image.root) for image in index.list().images}
    assert after == {hash: (id, str(tmp_path / "elsewhere")) for hash, id in before.items()}
    assert len(index) == 8
    assert list(index.roots) == [str(tmp_path / "elsewhere"), str(photos)]
    assert index.add([], no_model, prune=True).counts == {"unchanged": 8}
    assert list(index.roots) == [str(tmp_path / "elsewhere")], "the folder that is gone was forgotten"


def test_changed_copied_and_deleted_images(tmp_path: Path, blip: Blip, photos: Path) -> None:
    index = make_index(tmp_path / "index", blip, photos)
    first = {image.name: image for image in index.list().images}
    toy_image(50, 40, 30).save(photos / "000.png")  # new content
    shutil.copy(photos / "001.png", photos / "copy.png")
    (photos / "002.png").unlink()
    os.utime(photos / "003.png", (0, 0))  # the same content
    shutil.copy(photos / "004.png", photos / "trip" / "005.png")  # known content in the place of another
    report = index.add([str(photos)], blip, recursive=True)
    assert report.counts == {"changed": 2, "copied": 1, "removed": 1, "unchanged": 5}
    assert report.encoded == 1
    images = {image.name: image for image in index.list().images}
    assert images.keys() == first.keys() - {"002.png"} | {"copy.png"}
    assert images["000.png"].id == first["000.png"].id
    paths = [image.path for image in images.values()]
    for path, embedding in zip(paths, blip.embed_images(paths), strict=True):
        best = index.find(embedding, n=2)
        assert path in [hit.path for hit in best]
        assert best[0].similarity == pytest.approx(1, abs=1e-5)
    assert index.compact() == 3 * 4 * index.settings.width, "of two replaced rows and a removed one"
    assert {hit.path for hit in index.search(blip, "a dog", n=20)} == set(paths)
    assert index.add([str(photos)], no_model, recursive=True).counts == {"unchanged": 8}


def test_equal_new_files_are_embedded_once(tmp_path: Path, blip: Blip) -> None:
    write_photos(tmp_path / "photos", range(1))
    for name in ("b.png", "c.png"):
        shutil.copy(tmp_path / "photos" / "000.png", tmp_path / "photos" / name)
    index = Index.create(tmp_path / "index", blip, states="stored")
    report = index.add([str(tmp_path / "photos")], blip)
    assert (report.counts, report.encoded) == ({"added": 1, "copied": 2}, 1)
    results = index.search(blip, "a dog")
    assert results[0].duplicates == (results[1].id, results[2].id)
    assert [hit.duplicate_of for hit in results] == [None, results[0].id, results[0].id]
    hidden = index.search(blip, "a dog", hide_duplicates=True)
    assert [(hit.id, hit.duplicates) for hit in hidden] == [(results[0].id, results[0].duplicates)]
    assert [[image.name for image in group] for group in index.find_duplicates()] == [["000.png", "b.png", "c.png"]]
    for shortlist in (results, results[::-1], hidden):  # the order of the hits says which one is a duplicate of which
        first, *others = index.rerank(blip, "a dog", shortlist, min_probability=0)
        assert set(first.duplicates) == {hit.id for hit in results} - {first.id}
        assert [hit.duplicate_of for hit in others] == [first.id] * (len(shortlist) - 1)


def test_bad_images_do_not_stop_the_others(tmp_path: Path, blip: Blip, photos: Path) -> None:
    (photos / "empty.jpg").touch()
    (photos / "text.jpg").write_text("not an image")
    (photos / "broken.png").write_bytes((photos / "000.png").read_bytes()[:60])
    (photos / "movie.mp4").touch()
    index = Index.create(tmp_path / "index", blip)
    report = index.add([str(photos), str(tmp_path / "missing")], blip)
    assert report.counts == {"added": 5, "failed": 4}
    assert report.skipped == {"video": 1}
    assert {Path(failure.name).name for failure in report.failures} == {
        "empty.jpg",
        "text.jpg",
        "broken.png",
        "missing",
    }
    assert all(failure.error for failure in report.failures)
    assert index.add([str(photos)], blip).counts == {"unchanged": 5, "failed": 3}


def test_an_empty_folder_keeps_its_images(tmp_path: Path, blip: Blip, photos: Path) -> None:
    """Its disk may not be mounted."""
    index = make_index(tmp_path / "index", blip, photos)
    photos.rename(tmp_path / "disk")
    photos.mkdir()
    assert index.add([str(photos)], no_model).counts == {"failed": 1}
    assert len(index) == 8


def test_filters_apply_before_scoring(tmp_path: Path, blip: Blip, photos: Path) -> None:
    (photos / "001.txt").write_text("A brown dog on a beach\nsecond line")
    (photos / "trip" / "006.caption").write_text("two Dogs, one café")
    for number, path in enumerate(sorted(photos.rglob("*.png"))):
        os.utime(path, (number * 86_400 * 31 + 86_400 * 5,) * 2)
    index = make_index(tmp_path / "index", blip, photos)

    def names(**where: str) -> set[str]:
        results = index.search(blip, "a dog", n=1000, where=Filter(**where))
        assert results.searched == len(results)
        listed = index.list(where=Filter(**where))
        assert {image.name for image in listed.images} == {hit.name for hit in results}
        return {hit.name for hit in results}

    assert names(folder="trip") == {"trip/005.png", "trip/006.png", "trip/007.png"}
    assert names(folder=str(photos / "trip") + os.sep) == names(folder="trip")
    assert len(names(folder=str(photos))) == 8
    assert names(folder="tri") == set()
    assert names(caption="dog") == {"001.png"}
    assert names(caption="dog*") == {"001.png", "trip/006.png"}
    assert names(caption='"dog on"') == {"001.png"}
    assert names(caption='"on dog"') == set()
    assert names(caption="beach brown LINE") == {"001.png"}
    assert names(caption="cafe") == {"trip/006.png"}
    assert names(caption='dog AND "quote') == set(), "operators are words"
    assert names(after="1970-03-01", before="1970-05") == {"002.png", "003.png"}
    assert names(before="1970-02-01", caption="dog") == set()
    assert names(after="1970", folder="trip", caption="dogs") == {"trip/006.png"}
    assert [hit.name for hit in index.search(None, where=Filter(caption="dog*"))] == ["trip/006.png", "001.png"]
    assert index.search(None, where=Filter(caption="dog"))[0].similarity is None
    (photos / "001.txt").write_text("a cat")
    assert index.add([str(photos)], no_model, recursive=True).counts == {"unchanged": 8}
    assert names(caption="dog*") == {"trip/006.png"}, "the caption changed, the image did not"
    assert names(caption="cat") == {"001.png"}


def test_captions_are_made_on_request(tmp_path: Path, blip: Blip, photos: Path) -> None:
    (photos / "000.txt").write_text("my own words")
    index = Index.create(tmp_path / "index", blip)
    assert index.add([str(photos)], blip, caption=True).counts == {"added": 5, "captioned": 4}
    images = {image.name: image for image in index.list().images}
    assert images["000.png"].caption == "my own words"
    assert images["001.png"].caption == blip.caption(photos / "001.png").text
    assert index.add([str(photos)], no_model, caption=True).counts == {"unchanged": 5}
    os.utime(photos / "001.png", (5, 5))
    index.add([str(photos)], no_model)
    (image,) = (image for image in index.list().images if image.name == "001.png")
    assert image.caption == images["001.png"].caption, "the content is the same"


def test_pages_list_every_image_once(tmp_path: Path, blip: Blip, photos: Path) -> None:
    index = make_index(tmp_path / "index", blip, photos)
    names, cursor = [], None
    while True:
        page = index.list(3, cursor)
        assert page.total == 8
        names += [image.name for image in page.images]
        if (cursor := page.next) is None:
            break
    assert len(names) == len(set(names)) == 8
    dates = [image.date for image in index.list().images]
    assert dates == sorted(dates, reverse=True)
    for cursor in ("nonsense", "2024-01-01T00:00:00/" + "9" * 30, "2024-01-01T00:00:00\0/1"):
        with pytest.raises(InputError, match="cursor must be"):
            index.list(3, cursor)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_folder_whose_name_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(folder)  # noqa: PTH102
    with pytest.raises(InputError, match=r"must be UTF-8, got .*udcff"):
        list_images([os.fsdecode(folder)], {})


@pytest.mark.parametrize("hide", [False, True])
def test_near_duplicates_among_many_hits(hide: bool) -> None:
    count, others = 1500, 300
    rows = np.eye(others, dtype=np.float32)[np.arange(count) % others]
    hits = [Hit(str(i), "", "", 1.0, None, None, "", 1, 1) for i in range(count)]
    marked = mark_duplicates(hits, rows, hide=hide)
    assert [hit.id for hit in marked] == [str(i) for i in range(others if hide else count)]
    for i, hit in enumerate(marked):
        assert hit.duplicate_of == (None if i < others else str(i % others))
        assert hit.duplicates == (tuple(str(j) for j in range(i + others, count, others)) if i < others else ())


def test_other_weights_are_refused(tmp_path: Path, blip: Blip, photos: Path) -> None:
    index = make_index(tmp_path / "index", blip, photos)
    toy_bundle(tmp_path / "other", ("retrieval",))
    weights = tmp_path / "other"
    model = next(weights.rglob("model.safetensors"))
    model.write_bytes(model.read_bytes()[:-4] + b"\0\0\x80?")
    other = openblip.load(weights)
    with pytest.raises(SearchError, match="search with the model that made the index"):
        index.search(other, "a dog")
    toy_image(60, 40, 30).save(photos / "new.png")
    with pytest.raises(SearchError, match=r"weights \w+ and not \w+; embeddings of different models cannot be mixed"):
        index.add([str(photos)], other)
    half = openblip.load(weights.parent / "other", precision="bf16")
    with pytest.raises(SearchError, match="precision fp32 and not bf16"):
        index.add([str(photos)], half)
    assert len(index) == 8


def test_an_index_of_another_format_is_refused(tmp_path: Path, blip: Blip) -> None:
    import sqlite3

    Index.create(tmp_path / "index", blip).close()
    with sqlite3.connect(tmp_path / "index" / "index.sqlite") as connection:
        connection.execute("UPDATE settings SET value = replace(value, '\"format\": 1', '\"format\": 2')")
    connection.close()
    with pytest.raises(SearchError, match="must have format 1, got 2"):
        Index.open(tmp_path / "index")
    with pytest.raises(SearchError, match="must be an index"):
        Index.open(tmp_path)
    with pytest.raises(SearchError, match="must be empty or not exist"):
        Index.create(tmp_path, blip)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected a text, an image or a filter"),
        ({"text": "a", "n": 0}, "n must be at least 1"),
        ({"where": Filter(after="2020"), "n": 10**30}, "n must be at most 2147483647"),
        ({"text": " "}, "text must contain a word"),
        ({"text": "a", "rerank": 5}, r"rerank must be at least n \(20\), got 5"),
        ({"text": "a", "rerank": 20, "min_probability": 2}, "between 0 and 1"),
        ({"image": toy_image(0, 9, 9), "rerank": 50}, "rerank must come with a text"),
        ({"text": "a", "minus": "a"}, "does not cancel"),
    ],
)
def test_impossible_searches_are_refused(tmp_path: Path, blip: Blip, options: dict[str, object], message: str) -> None:
    index = Index.create(tmp_path / "index", blip)
    with pytest.raises(InputError, match=message):
        index.search(blip, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values",
    [
        {"after": "yesterday"},
        {"before": "2024-13"},
        {"caption": "!"},
        {"caption": "a\0b"},
        {"caption": "a\udcff"},
        {"folder": "sub\udcff"},
    ],
)
def test_impossible_filters_are_refused(values: dict[str, str]) -> None:
    with pytest.raises(InputError, match="must"):
        Filter(**values)


def test_files_are_opened_below_their_folder_only(tmp_path: Path, blip: Blip, photos: Path) -> None:
    secret = tmp_path / "secret.png"
    toy_image(70, 40, 30).save(secret)
    index = make_index(tmp_path / "index", blip, photos)
    images = {image.name: image.id for image in index.list().images}
    with index.open_file(images["000.png"]) as file:
        assert file.read() == (photos / "000.png").read_bytes()
    (photos / "000.png").unlink()
    (photos / "000.png").symlink_to(secret)
    (photos / "001.png").unlink()
    (photos / "002.png").unlink()
    os.mkfifo(photos / "002.png")
    shutil.move(photos / "trip", tmp_path / "outside")
    (photos / "trip").symlink_to(tmp_path / "outside")
    (photos / "003.png").rename(photos / "other.png")
    (photos / "003.png").symlink_to("other.png")
    with index.open_file(images["003.png"]) as file:
        assert file.read(4) == b"\x89PNG", "a link that stays below the folder"
    for name in ("000.png", "001.png", "002.png", "trip/005.png"):
        with pytest.raises(ImageError) as error:
            index.open_file(images[name])
        assert str(tmp_path) not in str(error.value)
    for id in ("", "0" * 16, "../000.png", str(photos / "004.png")):
        with pytest.raises(ImageError, match="no image"):
            index.open_file(id)


def test_links_out_of_the_folder_are_not_indexed(tmp_path: Path, blip: Blip) -> None:
    photos = tmp_path / "photos"
    write_photos(photos, range(2))
    write_photos(tmp_path / "outside", range(5, 6))
    (photos / "inside.png").symlink_to("000.png")
    (photos / "link.png").symlink_to(tmp_path / "outside" / "005.png")
    index = Index.create(tmp_path / "index", blip)
    report = index.add([str(photos)], blip)
    (failure,) = report.failures
    assert Path(failure.name).name == "link.png"
    assert "must not be a link to a file outside" in str(failure.error)
    images = index.list().images
    assert {image.name for image in images} == {"000.png", "001.png", "inside.png"}
    for image in images:
        index.open_file(image.id).close()


@pytest.mark.skipif(os.name != "posix", reason="a backslash separates folders there")
def test_a_backslash_belongs_to_a_name(tmp_path: Path, blip: Blip) -> None:
    for name in (r"\a\b.png", r"c\d.png"):
        toy_image(len(name)).save(tmp_path / name)
    (tmp_path / "sub").mkdir()
    toy_image(9).save(tmp_path / "sub" / r"\e.png")
    index = make_index(tmp_path / "index", blip, tmp_path)
    assert {image.name for image in index.list().images} == {r"\a\b.png", r"c\d.png", r"sub/\e.png"}


def test_a_long_query_is_cut_with_a_warning(tmp_path: Path, blip: Blip) -> None:
    write_photos(tmp_path / "photos", range(2))
    index = make_index(tmp_path / "index", blip, tmp_path / "photos")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index.search(blip, "a " * 30, minus="(a), a!")
    queries: list[dict[str, Any]] = [
        {"text": "a " * 31},
        {"text": "a", "minus": "a " * 31},
        {"text": "antidisestablishmentarianism " * 20},
    ]
    for query in queries:
        with pytest.warns(UserWarning, match="at most 30 words and 35 tokens") as notes:
            index.search(blip, **query)
        assert len(notes) == 1


@pytest.mark.parametrize("value", ["{", "[]", "3", "", json.dumps({"format": 1}), None])
def test_damaged_settings_are_an_error(tmp_path: Path, blip: Blip, value: str | None) -> None:
    Index.create(tmp_path / "index", blip).close()
    with contextlib.closing(sqlite3.connect(tmp_path / "index" / "index.sqlite")) as connection, connection:
        if value is None:
            connection.execute("DELETE FROM settings WHERE name = 'settings'")
        else:
            connection.execute("UPDATE settings SET value = ? WHERE name = 'settings'", (value,))
    with pytest.raises(SearchError, match="damaged"):
        Index.open(tmp_path / "index")


def test_threads_search_while_another_adds(tmp_path: Path, blip: Blip, photos: Path) -> None:
    index = make_index(tmp_path / "index", blip, photos)
    query = index.embed_query(blip, "a dog")
    stop, errors = threading.Event(), list[BaseException]()

    def search() -> None:
        try:
            while not stop.is_set():
                results = index.find(query, n=100)
                assert len(results) == results.searched >= 8
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for start in range(100, 130, 10):
        write_photos(photos, range(start, start + 10))
        index.add([str(photos)], blip, recursive=True)
        (photos / f"{start:03}.png").unlink()
        index.add([str(photos)], blip, recursive=True)
        index.compact()
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(index) == 8 + 27


@pytest.mark.slow
def test_a_moved_folder_of_a_thousand_images_needs_no_model(tmp_path: Path, blip: Blip) -> None:
    pictures(tmp_path / "photos", 1000)
    index = Index.create(tmp_path / "index", blip)
    with count_images(blip, "retrieval") as counter:
        assert index.add([str(tmp_path / "photos")], blip).counts == {"added": 1000}
        assert counter.count == 1000
        (tmp_path / "photos").rename(tmp_path / "moved")
        report = index.add([str(tmp_path / "moved")], blip, prune=True)
    assert (report.counts, report.encoded, counter.count) == ({"moved": 1000}, 0, 1000)
