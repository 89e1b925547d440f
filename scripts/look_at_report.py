"""Use an evaluation report in headless Chromium, on a desktop and on a phone, and check what it does.

    openblip eval score captions -p runs/first -p runs/second --report page.html
    python scripts/look_at_report.py page.html --shots shots

A driver in a copy of the page sorts, filters and exports as a person would. Needs `chromium` on the PATH.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from look_at_sheet import SIZES, drive, open_frame

DRIVER = """
<script>
const choose = (id, value) => { element(id).value = value; for (const name of ["input", "change"])
  element(id).dispatchEvent(new Event(name, { bubbles: true })); };
const visible = () => [...document.querySelectorAll("section:not([hidden])")];
const ordered = (name, sign) => { const numbers = visible().filter((card) => name in card.dataset)
  .map((card) => sign * Number(card.dataset[name]));
  return numbers.join() === [...numbers].sort((a, b) => a - b).join(); };
const checks = {}, values = {};
values.overflow = document.documentElement.scrollWidth - window.innerWidth;
checks.all = visible().length === cards.length && cards.length > 0;
choose("sort", "best"); checks.best = ordered("score", -1);
choose("sort", "worst"); checks.worst = ordered("score", 1);
choose("sort", "long"); checks.long = ordered("length", -1);
if (cards.some((card) => "difference" in card.dataset)) {
  choose("sort", "gain"); checks.gain = ordered("difference", -1);
  choose("show", "better"); checks.better = visible().every((card) => Number(card.dataset.difference) > 0);
  choose("show", "worse"); checks.worse = visible().every((card) => Number(card.dataset.difference) < 0);
  choose("show", "all");
}
const word = cards[0].querySelector("dd").textContent;
choose("search", word.toUpperCase()); checks.search = visible().includes(cards[0]);
choose("search", "no such text anywhere"); checks.none = visible().length === 0;
choose("search", "");
const scores = cards.map((card) => Number(card.dataset.score)).filter(Number.isFinite).sort((a, b) => a - b);
const middle = scores[Math.floor(scores.length / 2)];
choose("low", String(middle)); checks.range = visible().every((card) => Number(card.dataset.score) >= middle);
choose("low", "");
const background = getComputedStyle(document.body).backgroundColor;
element("theme").click(); checks.theme = getComputedStyle(document.body).backgroundColor !== background;
element("theme").click(); checks.back = getComputedStyle(document.body).backgroundColor === background;
const [table, latex] = [...document.querySelectorAll(".download")].map((button) => button.dataset.text);
const names = [...document.querySelectorAll("tbody td:first-child")].map((cell) => cell.textContent);
checks.csv = names.every((name) => table.includes(name)) && table.split("\\n").length === names.length + 2;
checks.latex = latex.startsWith("\\\\begin{tabular}");
choose("sort", "worst");
parent.postMessage(JSON.stringify({ checks, values }), "*");
</script>
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="report to open")
    parser.add_argument("--shots", type=Path, help="folder to write screenshots to")
    arguments = parser.parse_args()
    page = arguments.report.read_text(encoding="utf-8")
    for name, (width, height) in SIZES.items():
        if arguments.shots:
            arguments.shots.mkdir(parents=True, exist_ok=True)
            open_frame(page, width, height, f"--screenshot={arguments.shots.resolve() / f'{name}.png'}")
        result = drive(page, width, height, DRIVER)
        failed = [check for check, passed in result["checks"].items() if not passed]
        assert not failed, f"{name}: {', '.join(failed)}"
        assert result["values"]["overflow"] <= 0, f"{name}: the page is {result['values']['overflow']} pixels too wide"
        print(f"{name}: {len(result['checks'])} checks")


if __name__ == "__main__":
    main()
