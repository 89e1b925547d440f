"""The re-rank: probabilities of ITM, with states from files, from a cache or from the index."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openblip import Blip
from openblip.errors import StoppedError, TimeLimitError
from openblip.search import Index, SearchResults
from openblip.search.state_cache import StateCache
from tests.pipelines.pipeline_toys import count_images
from tests.search.search_toys import make_index, write_photos

pytestmark = pytest.mark.usefixtures("one_thread")

MODES = ("none", "cache", "stored")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    photos = tmp_path_factory.mktemp("photos")
    write_photos(photos, range(10))
    return photos


def probabilities(results: SearchResults) -> dict[str, float]:
    return {hit.path: hit.probability or 0.0 for hit in results}


@pytest.mark.parametrize("states", MODES)
def test_probabilities_are_those_of_the_model(tmp_path: Path, blip: Blip, photos: Path, states: str) -> None:
    index = make_index(tmp_path / "index", blip, photos, states=states)
    results = index.search(blip, "a dog", n=4, rerank=10, min_probability=0)
    everything = index.rerank(blip, "a dog", index.search(blip, "a dog", n=10), min_probability=0)
    matches = blip.match([hit.path for hit in everything], "a dog")
    values = np.array([match.probability for match in matches])
    np.testing.assert_allclose([hit.probability or 0.0 for hit in everything], values, atol=2e-3)
    cosines = np.array([match.similarity for match in matches])
    scores = np.log(values / (1 - values)) + cosines / blip.pipeline("retrieval").model.temperature
    assert (np.diff(scores) < 0.05).all(), "the odds of ITM times those of ITC"
    assert results.hits == everything.hits[:4]


@pytest.mark.parametrize(("states", "first", "second"), [("none", 10, 10), ("cache", 10, 0), ("stored", 0, 0)])
def test_states_save_the_image_encoder(
    tmp_path: Path, blip: Blip, photos: Path, states: str, first: int, second: int
) -> None:
    index = make_index(tmp_path / "index", blip, photos, states=states)
    outcomes = []
    for expected in (first, second):
        with count_images(blip, "retrieval") as counter:
            outcomes.append(probabilities(index.search(blip, "a dog", n=10, rerank=10, min_probability=0)))
        assert counter.count == expected
    for path, probability in outcomes[0].items():
        assert outcomes[1][path] == pytest.approx(probability, abs=2e-3)


def test_minus_lowers_the_probability(tmp_path: Path, blip: Blip, photos: Path) -> None:
    index = make_index(tmp_path / "index", blip, photos, states="stored")
    results = index.search(blip, "a dog", n=10, rerank=10, minus=["a cat", "red"], min_probability=0)
    for hit in results:
        dog, cat, red = (match.probability for match in blip.match(hit.path, ["a dog", "a cat", "red"]))
        assert hit.probability == pytest.approx(dog * (1 - cat) * (1 - red), abs=5e-3)


def test_the_cut_off_says_nothing_found(tmp_path: Path, blip: Blip, photos: Path) -> None:
    index = make_index(tmp_path / "index", blip, photos)
    everything = index.search(blip, "a dog", n=10, rerank=10, min_probability=0)
    values = sorted(probabilities(everything).values())
    cut = (values[4] + values[5]) / 2
    some = index.search(blip, "a dog", n=10, rerank=10, min_probability=cut)
    assert [hit.id for hit in some] == [hit.id for hit in everything if (hit.probability or 0.0) > cut]
    assert len(some) == 5
    assert some.best_rejected == pytest.approx(values[4])
    nothing = index.search(blip, "a dog", n=10, rerank=10, min_probability=1)
    assert nothing.nothing_found
    assert (len(nothing), nothing.searched) == (0, 10)
    assert nothing.best_rejected == pytest.approx(values[-1])


def test_an_image_that_is_gone_is_an_error_of_its_own(tmp_path: Path, blip: Blip) -> None:
    write_photos(tmp_path / "photos", range(3))
    index = make_index(tmp_path / "index", blip, tmp_path / "photos")
    (tmp_path / "photos" / "001.png").unlink()
    (tmp_path / "photos" / "002.png").write_text("no image")
    results = index.search(blip, "a dog", n=3, rerank=3, min_probability=0)
    assert [hit.name for hit in results] == ["000.png"]
    assert sorted(image.name for image in results.errors) == ["001.png", "002.png"]
    assert {image.id for image in results.errors} == {image.id for image in index.list().images} - {results[0].id}
    stored = make_index(tmp_path / "other", blip, tmp_path / "photos", states="stored")
    hits = stored.search(blip, "a dog")
    stored.add([str(tmp_path / "photos")], blip)
    assert len(stored.rerank(blip, "a dog", hits, min_probability=0)) == 1


def test_a_search_can_be_stopped(tmp_path: Path, blip: Blip, photos: Path) -> None:
    index = make_index(tmp_path / "index", blip, photos)
    with pytest.raises(StoppedError):
        index.search(blip, "a dog", rerank=20, stop=lambda: True)
    with pytest.raises(TimeLimitError):
        index.search(blip, "a dog", rerank=20, timeout=1e-6)


def test_the_cache_is_bounded(tmp_path: Path) -> None:
    cache = StateCache(tmp_path / "cache", (3, 8), 10 * 48)
    rows = np.arange(24, dtype=np.float16).reshape(3, 8)
    for number in range(30):
        cache.put(f"{number:064}", rows + number)
        files = list((tmp_path / "cache").rglob("*.fp16"))
        assert sum(path.stat().st_size for path in files) <= 10 * 48
    assert cache.get(f"{0:064}") is None
    newest = cache.get(f"{29:064}")
    assert newest is not None
    assert np.array_equal(newest, rows + 29)
    reopened = StateCache(tmp_path / "cache", (3, 8), 10 * 48)
    reopened.put(f"{99:064}", rows)
    assert len(list((tmp_path / "cache").rglob("*.fp16"))) <= 10
    StateCache(tmp_path / "none", (3, 8), 10).put("a" * 64, rows)
    assert not (tmp_path / "none").exists()


def test_the_index_survives_without_its_cache(tmp_path: Path, blip: Blip, photos: Path) -> None:
    import shutil

    index = make_index(tmp_path / "index", blip, photos, states="cache")
    before = probabilities(index.search(blip, "a dog", n=10, rerank=10, min_probability=0))
    shutil.rmtree(tmp_path / "index" / "states-cache")
    with Index.open(tmp_path / "index") as reopened:
        after = probabilities(reopened.search(blip, "a dog", n=10, rerank=10, min_probability=0))
    assert after == pytest.approx(before, abs=2e-3)
