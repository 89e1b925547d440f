"""Open a contact sheet in headless Chromium, edit a caption, replace a word everywhere, and check the exported edits.

    python scripts/look_at_sheet.py sheet.html --shot sheet.png

A driver in a copy of the page uses the page's fields and buttons as a person would, and writes the result into it.
`--shot` keeps a screenshot. Needs `chromium` on the PATH.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import subprocess
import tempfile
from pathlib import Path

DRIVER = """
<pre id="result"></pre><script>
const type = (field, text) => { field.value = text; field.dispatchEvent(new Event("input", { bubbles: true })); };
const areas = [...document.querySelectorAll("textarea")];
const before = lines();
type(areas[0], areas[0].value + " <edited>");
type(at("find"), "a "); type(at("by"), "one ");
at("replace").click();
at("show").value = "changed"; at("show").dispatchEvent(new Event("change"));
const hidden = [...document.querySelectorAll("article")].filter((card) => card.hidden).length;
document.getElementById("result").textContent = JSON.stringify({ before, after: lines(),
  message: at("said").textContent, hidden, cards: document.querySelectorAll("article").length });
at("show").value = "all"; at("show").dispatchEvent(new Event("change"));
</script>
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sheet", type=Path, help="contact sheet to open")
    parser.add_argument("--shot", type=Path, help="PNG to write a screenshot to")
    parser.add_argument("--width", type=int, default=1200, help="width of the screenshot in pixels")
    arguments = parser.parse_args()
    if arguments.shot:
        size, shot = f"--window-size={arguments.width},1000", f"--screenshot={arguments.shot.resolve()}"
        chromium(size, shot, arguments.sheet.resolve().as_uri())
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(arguments.sheet.read_text(encoding="utf-8").replace("</body>", DRIVER + "</body>"))
        dom = chromium("--dump-dom", page.as_uri())
    match = re.search(r'<pre id="result">(.*?)</pre>', dom, re.DOTALL)
    assert match, "the script of the page must run to its end"
    result = json.loads(html.unescape(match[1]))
    edits = [json.loads(line) for line in result["after"].splitlines()]
    assert result["before"] == "", "an unchanged page exports nothing"
    assert edits, "the edits are exported"
    assert edits[0]["text"].endswith("<edited>")
    assert all(edit["text"] == (edit["was"] + " <edited>" * (edit is edits[0])).replace("a ", "one ") for edit in edits)
    assert result["hidden"] == result["cards"] - len({edit["path"] for edit in edits})
    print(f"{result['cards']} images, {len(edits)} edits exported: {result['message']}")


def chromium(*arguments: str) -> str:
    """Run headless Chromium and return its output."""
    options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=3000")
    command = ["chromium", *options, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout


if __name__ == "__main__":
    main()
