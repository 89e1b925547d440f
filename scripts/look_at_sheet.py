"""Use a contact sheet in headless Chromium as a person would, on a desktop and on a phone, and check what it does.

    openblip caption examples/photos --report sheet.html
    python scripts/look_at_sheet.py sheet.html --shots shots

A driver in a copy of the page types into its fields, clicks its buttons and presses keys. `--shots` keeps screenshots.
Needs `chromium` on the PATH.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

SIZES = {"desktop": (1300, 900), "phone": (390, 844)}

DRIVER = """
<script>
const type = (id, text) => { const field = typeof id === "string" ? element(id) : id; field.value = text;
  field.dispatchEvent(new Event("input", { bubbles: true })); };
const choose = (id, value) => { element(id).value = value;
  element(id).dispatchEvent(new Event("change", { bubbles: true })); };
const key = (name, target = document.activeElement, more = {}) =>
  target.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true, ...more }));
const names = () => visible().map((card) => card.dataset.name);
const checks = {}, values = {};
values.header = document.querySelector("header").getBoundingClientRect().height;
values.overflow = document.documentElement.scrollWidth - window.innerWidth;
checks.clean = lines() === "";
const original = fields.map((field) => field.value);

// Edit, replace whole words, replace tags.
type(fields[0], "a cat, a category, Cat");
type(fields[1], "dog, big dog, dog");
type("find", "cat"); choose("mode", "word"); refresh();
values.found = element("status").textContent;
type("replacement", "lion"); element("replace").click();
checks.word = fields[0].value === "a lion, a category, Cat";
element("case").checked = false; type("find", "cat"); element("replace").click();
checks.fold = fields[0].value === "a lion, a category, lion";
choose("mode", "tag"); type("find", "dog"); type("replacement", ""); element("replace").click();
checks.tag = fields[1].value === "big dog";
choose("mode", "text"); element("case").checked = true; type("find", "lion"); type("replacement", "$& c++");
element("replace").click();
checks.literal = fields[0].value === "a $& c++, a category, $& c++";

// Filters, orders, frequencies.
choose("show", "changed");
checks.edited = visible().length === 2;
choose("show", "all");
choose("sort", "name");
checks.byName = names().join() === [...names()].sort((a, b) => a.localeCompare(b, undefined, { numeric: true })).join();
choose("sort", "uncertain");
const scores = visible().filter((card) => "score" in card.dataset).map((card) => Number(card.dataset.score));
checks.byScore = scores.join() === [...scores].sort((a, b) => a - b).join();
choose("sort", "long");
checks.byLength = length(visible()[0]) === Math.max(...cards.map(length));
choose("sort", "index");
checks.asListed = visible().every((card, index) => card === cards[index]);
element("frequencies").click();
choose("unit", "tag");
const counts = [...document.querySelectorAll("#words li")].map((entry) => entry.textContent);
checks.tags = counts.includes("big dog1");
choose("unit", "word");
[...document.querySelectorAll("#words li button")].find((button) => button.textContent.startsWith("category")).click();
checks.filter = visible().length === 1 && visible()[0] === cards[0];
element("close").click();
type("find", ""); choose("show", "all");

// Keys: walk, mark, edit, enlarge.
document.activeElement.blur();
key("j", document.body); checks.first = document.activeElement === cards[0];
key("ArrowDown"); checks.next = document.activeElement === cards[1];
key("x"); checks.marked = excluded(cards[1]) && cards[1].classList.contains("excluded");
key("Enter"); checks.editing = document.activeElement === fieldsOf(cards[1])[0];
key("x"); checks.typing = excluded(cards[1]);
key("Escape"); checks.left = document.activeElement === cards[1];
key("k"); checks.previous = document.activeElement === cards[0];
key("z"); checks.zoomed = element("zoom").open; key("z"); checks.closed = !element("zoom").open;
key("/"); checks.find = document.activeElement === element("find"); element("find").blur();
openTools(false);

// The browser keeps edits and marks.
const kept = lines();
for (const field of fields) field.value = field.defaultValue;
for (const card of cards) markOf(card).checked = false;
restore(); refresh();
checks.restored = lines() === kept && kept !== "";
values.lines = kept;
element("undo").click();
checks.undone = lines() === "" && fields.every((field, index) => field.value === original[index]);
checks.forgotten = localStorage.getItem(`openblip-sheet-${document.body.dataset.sheet}`) === null;
parent.postMessage(JSON.stringify({ checks, values }), "*");
</script>
"""
FRAME = """<!DOCTYPE html><meta charset="utf-8"><style>body {{ margin: 0 }} iframe {{ border: 0 }}</style>
<iframe src="{page}" width="{width}" height="{height}"></iframe><pre id="result" hidden></pre>
<script>window.onmessage = (event) => {{ document.getElementById("result").textContent = event.data; }};</script>
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sheet", type=Path, help="contact sheet to open, with at least two images")
    parser.add_argument("--shots", type=Path, help="folder to write screenshots to")
    arguments = parser.parse_args()
    page = arguments.sheet.read_text(encoding="utf-8")
    for name, (width, height) in SIZES.items():
        if arguments.shots:
            arguments.shots.mkdir(parents=True, exist_ok=True)
            shot = arguments.shots.resolve() / f"{name}.png"
            open_frame(page, width, height, f"--screenshot={shot}")
        result = drive(page, width, height)
        failed = [check for check, passed in result["checks"].items() if not passed]
        assert not failed, f"{name}: {', '.join(failed)}"
        values = result["values"]
        assert values["overflow"] <= 0, f"{name}: the page is {values['overflow']} pixels too wide"
        if name == "phone":
            assert values["header"] <= 56, f"the toolbar takes {values['header']} of {height} pixels"
        lines = [json.loads(line) for line in values["lines"].splitlines()]
        assert [line.get("mark") for line in lines] == [None, None, "exclude"]
        print(f"{name}: {len(result['checks'])} checks, toolbar {values['header']:.0f} of {height} px")


def drive(page: str, width: int, height: int, driver: str = DRIVER) -> dict[str, Any]:
    """Run a driver in a window of a size, and return its checks and values."""
    dom = open_frame(page.replace("</body>", driver + "</body>"), width, height, "--dump-dom")
    match = re.search(r'<pre id="result" hidden="">(.*?)</pre>', dom, re.DOTALL)
    assert match, "the script of the page must run to its end"
    assert match[1], "the script of the page must run to its end"
    result: dict[str, Any] = json.loads(html.unescape(match[1]))
    return result


def open_frame(page: str, width: int, height: int, action: str) -> str:
    """Open a page in a frame, because a window of Chromium is at least 500 pixels wide."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "page.html").write_text(page, encoding="utf-8")
        frame = Path(folder) / "frame.html"
        frame.write_text(FRAME.format(page="page.html", width=width, height=height), encoding="utf-8")
        options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=8000")
        command = ["chromium", *options, f"--user-data-dir={folder}/profile", f"--window-size={width},{height}"]
        command += [action, frame.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout


if __name__ == "__main__":
    main()
