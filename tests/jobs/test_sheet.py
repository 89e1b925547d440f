"""The contact sheet: everything in it is escaped, it is cut into pages, and what is edited there comes back."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from openblip.cli import app
from openblip.errors import JobError
from openblip.jobs import sheet
from openblip.jobs.edits import FIELDS, apply_edits
from openblip.jobs.items import open_items
from openblip.jobs.sinks import SinkOptions, open_sink
from tests.jobs.cli import pictures
from tests.jobs.test_run import JobRunner, change


class Page(HTMLParser):
    """What a browser would make of a page, as far as we look at it."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self._within: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self._within.append(tag)
        if tag == "textarea":
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._within and self._within.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._within and self._within[-1] == "textarea":
            self.texts[-1] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    pictures(tmp_path / "p", 3)
    return tmp_path / "p"


def sheet_of(run: JobRunner, path: Path) -> Page:
    run()
    sheet.write_sheet(path, run.statuses, open_sink(run.to, run.options))
    return Page(path)


def test_the_page_needs_nothing_else_and_shows_every_picture(photos: Path, tmp_path: Path) -> None:
    (photos / "bad.png").write_bytes(b"no picture")
    page = sheet_of(JobRunner(photos, "sidecar"), tmp_path / "sheet.html")
    assert len(page.all("article")) == 4
    assert len(page.all("img")) == 3
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.all("img"))
    assert page.texts == ["\n0000 v1", "\n0001 v1", "\n0002 v1"]
    addresses = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("href", "src")]
    assert not [address for address in addresses if not address.startswith("data:")]
    text = (tmp_path / "sheet.html").read_text()
    assert "4 images, 1 failed" in text
    assert "cannot read bad.png" in text
    assert "<!--" not in text.partition("<body")[2], "every place is filled"


def test_all_text_is_escaped(tmp_path: Path) -> None:
    nasty = "</textarea><script>alert(1)</script> \"'&<!--CARDS-->"
    folder = tmp_path / "p"
    (image,) = pictures(folder, 1)
    name = "a\"><img src=x onerror=alert(1)>'&.png"
    image.rename(folder / name)
    (folder / name).with_suffix(".txt").write_text(nasty)
    (folder / "bad<b>.png").write_bytes(b"")
    page = sheet_of(JobRunner(folder, "sidecar", existing="append"), tmp_path / "s.html")
    assert page.texts == [f"\n{nasty}\n{Path(name).stem} v1"]
    assert page.all("textarea")[0]["data-was"] == page.texts[0].removeprefix("\n")
    assert len(page.all("script")) == 1
    assert [image["src"][:5] for image in page.all("img")] == ["data:"]
    assert not page.all("b")


def test_pages_have_a_maximum_size_and_link_to_each_other(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sheet.PER_PAGE == 500
    monkeypatch.setattr(sheet, "PER_PAGE", 2)
    front = sheet_of(JobRunner(photos, "sidecar"), tmp_path / "s.html")
    second = Page(tmp_path / "s-2.html")
    assert [len(page.all("article")) for page in (front, second)] == [2, 1]
    assert [link["href"] for link in front.all("a")] == ["s-2.html"]
    assert [link["href"] for link in second.all("a")] == ["s.html"]


@pytest.mark.parametrize("to", ["sidecar", "jsonl", "csv", "imagefolder", "kohya", "metadata"])
def test_edits_are_written_back_once_and_never_over_others(photos: Path, tmp_path: Path, to: str) -> None:
    out = tmp_path / f"list.{to}" if to in ("jsonl", "csv") else None
    run = JobRunner(photos, to, out)
    fields = sheet_of(run, tmp_path / "s.html").all("textarea")
    names = [name for name in FIELDS if name != "text"]
    locations = {name: [field[f"data-{name}"] for field in fields] for name in names}
    edits = [{name: values[i] for name, values in locations.items()} | {"text": f"edited {i}"} for i in range(3)]
    (tmp_path / "edits.jsonl").write_text("".join(json.dumps(edit) + "\n" for edit in edits[:2]))
    assert apply_edits([tmp_path / "edits.jsonl"]) == (2, [])
    journal = Path(edits[0]["journal"])
    content = journal.read_bytes()
    assert apply_edits([tmp_path / "edits.jsonl"]) == (2, []), "a second time changes nothing"
    assert journal.read_bytes() == content
    new_fields = sheet_of(run, tmp_path / "s.html").all("textarea")
    assert [field["data-was"] for field in new_fields] == ["edited 0", "edited 1", "0002 v1"]
    assert run() == {"done": 3}, "the job knows of them"
    assert run.edited == []
    assert run(restart=True) == {"computed": 1, "edited": 2}, "and does not take what a person wrote away"
    (tmp_path / "edits.jsonl").write_text(json.dumps(edits[0] | {"text": "too late"}) + "\n")
    done, notes = apply_edits([tmp_path / "edits.jsonl"])
    assert (done, len(notes)) == (0, 1)
    assert "was changed since" in notes[0]


def test_an_applied_edit_is_restored_and_another_change_is_reported(photos: Path, tmp_path: Path) -> None:
    run = JobRunner(photos, "sidecar", existing="append")
    (photos / "0000.txt").write_text("old\n")
    fields = sheet_of(run, tmp_path / "s.html").all("textarea")
    location = {name: fields[0][f"data-{name}"] for name in FIELDS if name != "text"}
    for was, text in (("old\n0000 v1", "second"), ("second", "third")):
        (tmp_path / "edits.jsonl").write_text(json.dumps(location | {"was": was, "text": text}) + "\n")
        assert apply_edits([tmp_path / "edits.jsonl"]) == (1, [])
    assert run()["done"] == 3
    (photos / "0000.txt").unlink()
    assert run()["done"] == 3
    assert (photos / "0000.txt").read_text() == "third\n"
    (photos / "0000.txt").write_text("by another hand\n")
    assert run() == {"done": 2, "edited": 1}
    change(photos / "0000.png")
    (photos / "0000.txt").write_text("third\n")
    assert run() == {"done": 2, "edited": 1}, "of a picture that is another now"


def write_edit(page: Page, path: Path, text: str) -> None:
    """Write what the page exports once its first field holds `text`."""
    data = {name.removeprefix("data-"): value for name, value in page.all("textarea")[0].items() if name[:5] == "data-"}
    path.write_text(json.dumps(data | {"text": text}) + "\n")


@pytest.mark.parametrize("to", ["sidecar", "jsonl", "kohya"])
def test_edits_follow_a_folder_that_was_moved(tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    pictures(home / "p" / "in", 2)
    monkeypatch.chdir(home)
    run = JobRunner(Path("p/in"), to, Path("p/out.jsonl") if to == "jsonl" else None)
    page, edits = sheet_of(run, tmp_path / "s.html"), tmp_path / "edits.jsonl"
    home.rename(tmp_path / "new")
    write_edit(page, edits, "first")
    monkeypatch.chdir(tmp_path)
    done, (note,) = apply_edits([edits])
    assert (done, "does not exist; if its folder was moved" in note) == (0, True)
    assert "changed since" not in note
    monkeypatch.chdir(tmp_path / "new")  # the command is repeated where its relative paths are right
    assert apply_edits([edits]) == (1, [])
    assert run() == {"done": 2}, "the journal, found as well, knows of the edit"
    (tmp_path / "new" / "p").rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    write_edit(page, edits, "second")
    edits.write_text(edits.read_text().replace('"was": "0000 v1"', '"was": "first"'))
    assert apply_edits([edits], ["elsewhere"]) == (1, [])
    stored = "".join(
        p.read_text() for p in (tmp_path / "elsewhere").rglob("*") if p.suffix in (".txt", ".jsonl", ".json")
    )
    assert ("second" in stored, "first" in stored) == (True, False)


def test_cards_carry_what_the_page_sorts_by(photos: Path, tmp_path: Path) -> None:
    run = JobRunner(photos, "jsonl", tmp_path / "out.jsonl")
    run()
    rows = [{"path": f"p/{n:04}.png", "text": "a dog", "logprob": -float(n), "probability": n / 4} for n in range(2)]
    (tmp_path / "out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sink = open_sink("jsonl", SinkOptions(str(tmp_path / "out.jsonl")))
    items = open_items([str(photos)], base=sink.base)
    statuses = list(sheet.read_statuses(items, sink))
    assert [len(status.records) for status in statuses] == [1, 1, 0]
    (tmp_path / "sub").mkdir()
    sheet.write_sheet(tmp_path / "sub" / "s.html", statuses, sink)
    page = Page(tmp_path / "sub" / "s.html")
    cards = page.all("article")
    assert [card.get("data-score") for card in cards] == ["0.0", "0.25", None], "a probability, not the log of one"
    assert cards[0]["data-full"] == "../p/0000.png"
    assert cards[0]["data-image"] == str(photos / "0000.png")
    first = page.all("body")[0]["data-sheet"]
    rows[0]["text"] = "a cat"
    (tmp_path / "out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sink = open_sink("jsonl", SinkOptions(str(tmp_path / "out.jsonl")))
    sheet.write_sheet(tmp_path / "sub" / "s.html", list(sheet.read_statuses(items, sink)), sink)
    assert Page(tmp_path / "sub" / "s.html").all("body")[0]["data-sheet"] != first, "stored edits belong to one content"


def test_a_sheet_of_existing_captions_is_opened_without_a_model(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.chdir(tmp_path)
    (photos / "0000.txt").write_text("tag, another tag\n")
    (photos / "bad.png").write_bytes(b"no picture")
    result = CliRunner().invoke(app, ["sheet", "p", "--report", "s.html"])
    assert result.exit_code == 0, result.output
    assert result.stderr == "s.html: 4 images on 1 page, 3 without a caption\n"
    assert opened == [(tmp_path / "s.html").as_uri()]
    page, edits = Page(tmp_path / "s.html"), tmp_path / "s-edits.jsonl"
    assert page.texts[0] == "\ntag, another tag"
    fields = page.all("textarea")
    assert len(fields) == 4
    by_path = {field["data-path"]: field for field in fields}
    lines = []
    for name, text in (("p/0000.png", "tag"), ("p/0001.png", "a new text")):
        data = {key[5:]: value for key, value in by_path[name].items() if key.startswith("data-")}
        lines.append(json.dumps(data | {"text": text}) + "\n")
    edits.write_text("".join(lines))
    written = CliRunner().invoke(app, ["caption", "--apply", str(edits)])
    assert (written.exit_code, written.stderr) == (0, "2 edits written\n")
    assert [(photos / f"000{n}.txt").read_text() for n in range(2)] == ["tag\n", "a new text\n"]
    assert CliRunner().invoke(app, ["sheet"]).exit_code == 2
    wrong = CliRunner().invoke(app, ["sheet", "p", "--from", "sidecars"])
    assert (wrong.exit_code, "did you mean sidecar?" in wrong.stderr) == (2, True)


def test_excluded_images_are_moved_on_request_only(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = JobRunner(photos, "sidecar")
    page, edits = sheet_of(run, tmp_path / "s.html"), tmp_path / "edits.jsonl"
    card, field = page.all("article")[1], page.all("textarea")[1]
    mark = {"path": card["data-name"], "mark": "exclude", "image": card["data-image"], "base": card["data-base"]}
    edits.write_text(json.dumps(mark | {"place": field["data-place"]}) + "\n")
    told = CliRunner().invoke(app, ["caption", "--apply", str(edits)])
    assert (told.exit_code, "--move-excluded DIR" in told.stderr) == (0, True)
    assert (photos / "0001.png").exists()
    for _ in range(2):  # the second time there is nothing left to do
        moved = CliRunner().invoke(app, ["caption", "--apply", str(edits), "--move-excluded", "out"])
        assert (moved.exit_code, "1 excluded image moved to out" in moved.stderr) == (0, True)
        assert {path.name for path in (tmp_path / "out" / "p").iterdir()} == {"0001.png", "0001.txt"}
    assert {path.name for path in photos.glob("*.png")} == {"0000.png", "0002.png"}
    pictures(photos, 3)
    kept = CliRunner().invoke(app, ["caption", "--apply", str(edits), "--move-excluded", "out"])
    assert (kept.exit_code, "exists, and is not replaced" in kept.stderr) == (1, True)
    assert CliRunner().invoke(app, ["caption", "p", "--move-excluded", "out"]).exit_code == 2


@pytest.mark.parametrize("line", ["{", "[]", '{"path": "a.jpg", "text": "x"}', '{"path": 1}'])
def test_invalid_edits_are_errors(tmp_path: Path, line: str) -> None:
    (tmp_path / "edits.jsonl").write_text(line + "\n")
    with pytest.raises(JobError, match=r"edits\.jsonl:1"):
        apply_edits([tmp_path / "edits.jsonl"])
