"""The live contact sheet: who may edit, version checks, and what is written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from openblip import Blip
from openblip.serving.options import ServerOptions
from tests.serving.serving_toys import RunningServer, running_app
from tests.toys import toy_image

pytestmark = pytest.mark.usefixtures("one_thread")

KEY = "correct-horse-battery"
HTML = "</textarea><script>alert(1)</script>"


def write_photos(folder: Path) -> Path:
    (folder / "sub").mkdir(parents=True)
    toy_image(0).save(folder / "a.png")
    toy_image(1).save(folder / "sub" / "<b>.png")
    (folder / "a.txt").write_text("an old caption\n")
    (folder / "sub" / "<b>.txt").write_text(HTML)
    toy_image(2).save(folder / "none.png")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos")


@pytest.fixture
def editor(toy: Blip, photos: Path) -> Iterator[RunningServer]:
    with running_app(toy, ServerOptions(edit=photos)) as running:
        yield running


def sign_in(editor: RunningServer) -> httpx.Response:
    sheet = editor.app.service.sheet
    assert sheet is not None
    return editor.client.get("/edit", params={"token": sheet.sessions.token}, follow_redirects=True)


def fields(html: str) -> dict[str, dict[str, str]]:
    """The ids and versions of the captions by image."""
    found = {}
    for match in re.finditer(r'aria-label="caption of ([^"]+)" data-id="(\w+)" data-version="(\w+)"', html):
        found[match[1].replace("&lt;", "<").replace("&gt;", ">")] = {"id": match[2], "version": match[3]}
    return found


def save(editor: RunningServer, field: dict[str, str], text: str) -> httpx.Response:
    return editor.client.post(f"/edit/captions/{field['id']}", json={"text": text, "version": field["version"]})


def test_the_token_opens_the_sheet_once(editor: RunningServer, photos: Path) -> None:
    sheet: Any = editor.app.service.sheet
    stranger = httpx.Client(base_url=editor.url)
    assert "one-time token" in stranger.get("/edit").text
    assert stranger.get("/edit?token=wrong").status_code == 403
    page = sign_in(editor)
    assert page.status_code == 200
    assert "an old caption" in page.text
    assert HTML not in page.text
    assert str(photos.parent) not in page.text, "no path of the machine"
    assert re.search(r"script-src 'nonce-[\w-]+'; style-src 'nonce-", page.headers["content-security-policy"])
    cookie = editor.client.get("/edit", params={"token": sheet.sessions.token})
    assert cookie.status_code == 403, "it is used up"
    field = fields(page.text)["a.png"]
    assert stranger.post(f"/edit/captions/{field['id']}", json={"text": "x", "version": "y"}).status_code == 401
    assert stranger.get(f"/edit/captions/{field['id']}").status_code == 401


def test_edits_are_saved_with_a_version_check(editor: RunningServer, photos: Path) -> None:
    found = fields(sign_in(editor).text)
    assert set(found) == {"a.png", "none.png", "sub/<b>.png"}
    saved = save(editor, found["a.png"], "  a new caption ")
    assert saved.json()["text"] == "a new caption"
    assert (photos / "a.txt").read_text() == "a new caption\n"
    stale = save(editor, found["a.png"], "another one")
    assert stale.status_code == 409
    assert stale.json()["error"]["code"] == "version_conflict"
    (photos / "a.txt").write_text("edited by another program")
    assert save(editor, {**found["a.png"], "version": saved.json()["version"]}, "mine").status_code == 409
    assert (photos / "a.txt").read_text() == "edited by another program"
    assert save(editor, found["none.png"], " ").json()["text"] == "", "nothing changes"
    assert not (photos / "none.txt").exists()
    assert save(editor, found["none.png"], "its first caption").status_code == 200
    assert (photos / "none.txt").read_text() == "its first caption\n"
    assert save(editor, {"id": "0" * 16, "version": ""}, "x").status_code == 404
    assert save(editor, {**found["a.png"], "version": "é"}, "x").status_code == 409


def test_one_of_many_simultaneous_edits_wins(editor: RunningServer, photos: Path) -> None:
    field = fields(sign_in(editor).text)["a.png"]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: save(editor, field, f"text {number}"), range(16)))
    won = [answer for answer in answers if answer.status_code == 200]
    assert len(won) == 1
    assert {answer.status_code for answer in answers} == {200, 409}
    assert (photos / "a.txt").read_text().strip() == won[0].json()["text"]


@pytest.mark.parametrize(
    ("existing", "status", "text"),
    [
        ("skip", 409, "an old caption\n"),
        ("append", 200, "an old caption\nnew\n"),
        ("prepend", 200, "new\nan old caption\n"),
    ],
)
def test_existing_captions_are_honored(toy: Blip, photos: Path, existing: Any, status: int, text: str) -> None:
    with running_app(toy, ServerOptions(edit=photos, existing=existing)) as editor:
        found = fields(sign_in(editor).text)
        assert save(editor, found["a.png"], "new").status_code == status
        assert (photos / "a.txt").read_text() == text
        assert save(editor, found["none.png"], "new").status_code == 200


def test_links_out_of_the_folder_are_not_followed(editor: RunningServer, photos: Path, tmp_path: Path) -> None:
    found = fields(sign_in(editor).text)
    outside = tmp_path / "outside.txt"
    outside.write_text("precious")
    (photos / "none.txt").symlink_to(outside)
    assert save(editor, found["none.png"], "x").status_code == 404
    assert outside.read_text() == "precious"


def test_keys_open_the_sheet_too(toy: Blip, photos: Path) -> None:
    with running_app(toy, ServerOptions(edit=photos, keys={"alice": KEY})) as editor:
        assert editor.client.post("/edit/session", data={"key": "wrong"}).status_code == 401
        foreign = {"Origin": "https://evil.example"}
        assert editor.client.post("/edit/session", data={"key": KEY}, headers=foreign).status_code == 403
        page = editor.client.post("/edit/session", data={"key": KEY}, follow_redirects=True)
        assert "an old caption" in page.text
        cookie = page.history[0].headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        bearer = httpx.get(f"{editor.url}/edit", headers={"Authorization": f"Bearer {KEY}"})
        assert "an old caption" in bearer.text
        assert "an old caption" in httpx.get(f"{editor.url}/edit", headers={"X-API-Key": KEY}).text
        assert "an old caption" not in httpx.get(f"{editor.url}/edit", headers={"X-API-Key": KEY[1:]}).text


def test_without_a_folder_there_is_nothing_to_edit(server: RunningServer) -> None:
    assert server.client.get("/edit").status_code == 404
    assert server.client.get("/v1/info").json()["edit"] is False
