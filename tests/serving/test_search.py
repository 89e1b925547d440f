"""Search over HTTP: results of the index, thumbnails by opaque id, and no path of the machine in any response."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openblip import Blip
from openblip.search import Index
from openblip.serving.options import ServerOptions
from tests.serving.serving_toys import RunningServer, encode, running_app
from tests.toys import toy_image

pytestmark = pytest.mark.usefixtures("one_thread")

HTML_NAME = "<img src=x onerror=alert(1)>.png"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    (folder / "sub").mkdir()
    for seed in range(5):
        toy_image(seed).save(folder / "sub" / f"{seed}.png")
    toy_image(7).save(folder / HTML_NAME)
    (folder / HTML_NAME).with_suffix(".txt").write_text("<script>alert(2)</script> a toy")
    exif = Image.Exif()
    exif[0x010E] = "secret description"
    toy_image(8, 900, 600).save(folder / "exif.jpg", exif=exif)
    return folder


@pytest.fixture(scope="module")
def searchable(toy: Blip, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    location = tmp_path_factory.mktemp("index") / "toy.index"
    with Index.create(str(location), toy) as index:
        index.add([str(photos)], toy, recursive=True)
    with running_app(toy, ServerOptions(index=str(location))) as running:
        yield running


def test_results_are_those_of_the_index(searchable: RunningServer, toy: Blip, photos: Path) -> None:
    gallery = searchable.app.service.gallery
    assert gallery is not None
    expected = gallery.index.search(toy, "a cat", n=4, rerank=6, min_probability=0.0)
    response = searchable.client.post("/v1/search", json={"text": "a cat", "n": 4, "rerank": 6, "min_probability": 0.0})
    assert response.status_code == 200, response.text
    results = response.json()["results"]
    assert [result["name"] for result in results] == [hit.name for hit in expected]
    assert [result["probability"] for result in results] == pytest.approx([hit.probability for hit in expected])
    assert str(photos) not in response.text
    assert str(photos.parent) not in response.text


def test_an_image_finds_itself(searchable: RunningServer) -> None:
    response = searchable.client.post("/v1/search", files={"image": encode(toy_image(3))}, data={"n": "1"})
    (result,) = response.json()["results"]
    assert result["name"].endswith("3.png")
    assert result["similarity"] == pytest.approx(1.0, abs=1e-4)


def test_nothing_found_is_said(searchable: RunningServer) -> None:
    answer = searchable.client.post(
        "/v1/search", json={"text": "a", "n": 1, "rerank": 2, "min_probability": 1.0}
    ).json()
    assert answer["nothing_found"] is True
    assert answer["results"] == []


def test_images_that_cannot_be_re_ranked_are_named(searchable: RunningServer, photos: Path) -> None:
    body = {"text": "a", "n": 7, "rerank": 7, "min_probability": 1.0}
    complete = searchable.client.post("/v1/search", json=body).json()
    assert complete["errors"] == []
    assert 0 < complete["best_rejected"] < 1
    file = photos / "sub" / "2.png"
    content = file.read_bytes()
    file.write_bytes(b"damaged")
    try:
        response = searchable.client.post("/v1/search", json=body)
    finally:
        file.write_bytes(content)
    (error,) = response.json()["errors"]
    assert error["name"] == "sub/2.png"
    assert searchable.client.get(f"/v1/gallery/{error['id']}/thumbnail").status_code == 200
    assert str(photos) not in response.text


def test_the_gallery_pages_through_the_index(searchable: RunningServer, photos: Path) -> None:
    names, cursor = [], None
    for _ in range(4):
        parameters = {"n": "2"} | ({"cursor": cursor} if cursor else {})
        response = searchable.client.get("/v1/gallery", params=parameters)
        assert response.status_code == 200, response.text
        assert str(photos) not in response.text
        page = response.json()
        assert page["total"] == 7
        names += [item["name"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert len(set(names)) == 7
    assert HTML_NAME in {name.rpartition("/")[2] for name in names}
    filtered = searchable.client.get("/v1/gallery", params={"caption": "toy"}).json()
    assert [item["name"] for item in filtered["items"]] == [HTML_NAME]


def test_thumbnails_are_encoded_again(searchable: RunningServer) -> None:
    items = searchable.client.get("/v1/gallery").json()["items"]
    (item,) = (item for item in items if item["name"] == "exif.jpg")
    response = searchable.client.get(item["thumbnail"], params={"size": 100})
    assert response.headers["content-type"] == "image/jpeg"
    assert response.headers["x-content-type-options"] == "nosniff"
    image = Image.open(io.BytesIO(response.content))
    assert image.size == (100, 67)
    assert not image.getexif()
    assert b"secret" not in response.content
    assert np.asarray(image).std() > 10


def test_only_indexed_files_below_their_folder_are_served(
    searchable: RunningServer, photos: Path, tmp_path: Path
) -> None:
    items = searchable.client.get("/v1/gallery").json()["items"]
    (item,) = (item for item in items if item["name"].endswith("4.png"))
    for bad in ("0" * 16, "..%2f..%2fetc%2fpasswd", "%00", "x" * 500):
        response = searchable.client.get(f"/v1/gallery/{bad}/thumbnail")
        assert response.status_code == 404, bad
    file = photos / "sub" / "4.png"
    content = file.read_bytes()
    outside = tmp_path / "outside.png"
    outside.write_bytes(content)
    file.unlink()
    assert searchable.client.get(item["thumbnail"]).status_code == 404
    file.symlink_to(outside)
    assert searchable.client.get(item["thumbnail"]).status_code == 404, "a link that leaves the folder"
    file.unlink()
    os.mkfifo(file)
    assert searchable.client.get(item["thumbnail"]).status_code == 404, "a pipe would never end"
    file.unlink()
    file.write_bytes(content)
    assert searchable.client.get(item["thumbnail"]).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {"folder": "/etc"},
        {"folder": "../.."},
        {"text": "x", "after": "yesterday"},
        {"text": "x", "n": 0},
        {"text": "x", "n": 20, "rerank": 5},
        {"rerank": 30, "n": 5},
        {"text": " "},
        {"text": "x", "caption": "a\0b"},
        {},
    ],
)
def test_invalid_queries(searchable: RunningServer, body: dict[str, object]) -> None:
    assert searchable.client.post("/v1/search", json=body).status_code == 422


@pytest.mark.parametrize(
    "parameters",
    [{"n": "0"}, {"cursor": "nonsense"}, {"cursor": "2024-01-01T00:00:00/" + "9" * 30}, {"caption": "a\0b"}],
)
def test_invalid_parts_of_the_gallery(searchable: RunningServer, parameters: dict[str, str]) -> None:
    assert searchable.client.get("/v1/gallery", params=parameters).status_code == 422


def test_an_invalid_query_names_its_field(searchable: RunningServer) -> None:
    for body, param in (({"image": "AAAA"}, "images.0"), ({"text": "x", "n": 20, "rerank": 5}, None)):
        assert searchable.client.post("/v1/search", json=body).json()["error"]["param"] == param


def test_a_server_without_an_index_says_so(server: RunningServer) -> None:
    assert server.client.post("/v1/search", json={"text": "x"}).json()["error"]["code"] == "no_index"
    assert server.client.get("/v1/gallery").status_code == 404
    assert "search" not in server.client.get("/v1/info").json()["verbs"]


def test_every_model_has_its_verbs(searchable: RunningServer) -> None:
    info = searchable.client.get("/v1/info").json()
    assert list(info["by_model"]) == info["models"] == ["toy"]
    assert info["by_model"]["toy"] == {"tasks": info["tasks"], "verbs": info["verbs"]}
    assert {"caption", "search"} <= set(info["verbs"])
