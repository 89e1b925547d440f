"""Use the web page of `openblip serve` in headless Chromium as a person would, and check what it does.

    python scripts/look_at_page.py --shots shots

Starts servers with the bundled model and uses every panel on a phone and on a desktop, light and dark, with file names
and texts that hold HTML. Fails on any error of a script, a request to another host, a page that is too wide, and any
serious violation of axe-core. `--shots` keeps screenshots.

Needs `pip install playwright` (without its browsers), `chromium` on the PATH, and `npm`, which downloads axe-core.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Error, Page, Request, Route, sync_playwright

PHOTOS = Path(__file__).parents[1] / "examples" / "photos"
WIDTHS = {"phone": (360, 740), "desktop": (1440, 900)}
SCHEMES = ("light", "dark")
# HTML, quotes, a shell command, an f-string and a backslash: names of files that a page or a snippet could trip over.
HOSTILE_NAME = """<img src=x onerror=alert(1)> "a" 'b' $(touch harm) `x` {y};type=z \\n.jpg"""
HOSTILE_TEXT = "<script>alert(2)</script><img src=x onerror=alert(3)> & 'it' \"is\" $HOME @x"
AXE_VERSION = "4.14.1"
SERIOUS = {"serious", "critical"}
WAIT = 30_000  # milliseconds; two cores may be busy
OPENBLIP = [sys.executable, "-c", "from openblip.cli import main; main()"]
KEY = "correct-horse-battery"

PASTE_AND_DROP = """(bytes) => {
  const transfer = (name) => {
    const files = new DataTransfer();
    files.items.add(new File([new Uint8Array(bytes)], name, { type: "image/jpeg" }));
    return files;
  };
  const options = { bubbles: true, cancelable: true };
  document.dispatchEvent(new ClipboardEvent("paste", { ...options, clipboardData: transfer("pasted.jpg") }));
  document.body.dispatchEvent(new DragEvent("drop", { ...options, dataTransfer: transfer("dropped.jpg") }));
}"""


@dataclass
class Visit:
    """A page in a window, with what went wrong in it."""

    page: Page
    name: str
    origin: str
    axe: str
    shots: Path | None
    problems: list[str] = field(default_factory=list)
    num_checks: int = 0

    def watch(self) -> None:
        """Note errors of scripts, dialogs, and requests to other hosts."""
        self.page.on("pageerror", lambda error: self.problems.append(f"error of a script: {error}"))
        self.page.on("console", self._on_console)
        self.page.on("request", self._on_request)
        self.page.on("dialog", self._on_dialog)

    def _on_console(self, message: ConsoleMessage) -> None:
        refused = message.text.startswith("Failed to load resource")  # statuses that a check asks for
        if message.type == "error" and not refused:
            self.problems.append(f"console: {message.text}")

    def _on_dialog(self, dialog: Dialog) -> None:
        self.problems.append("a script in a text ran")
        dialog.dismiss()

    def _on_request(self, request: Request) -> None:
        if not request.url.startswith((f"{self.origin}/", "blob:", "data:")):
            self.problems.append(f"request to {request.url}")
        if KEY in request.url:
            self.problems.append("the key is in an address")

    def check(self, passed: bool, what: str) -> None:
        """Count a check, and note it if it failed."""
        self.num_checks += 1
        if not passed:
            self.problems.append(what)

    def look(self, what: str) -> None:
        """Check width and accessibility of the page as it is now, and keep a screenshot."""
        self.page.mouse.move(1, 1)
        too_wide = self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        self.check(too_wide <= 0, f"{what}: {too_wide} pixels too wide")
        self.page.evaluate(self.axe)
        result = self.page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
        for violation in result["violations"]:
            targets = ", ".join(str(node["target"][0]) for node in violation["nodes"][:3])
            line = f"{what}: axe {violation['impact']}: {violation['id']} ({targets})"
            self.check(violation["impact"] not in SERIOUS, line)
            if violation["impact"] not in SERIOUS:
                print(f"  {self.name} {line}")
        if self.shots:
            self.page.screenshot(path=self.shots / f"{self.name}-{what}.png", full_page=True)

    def open(self, path: str = "") -> None:
        """Open the page, and wait until it knows the server."""
        self.page.goto(f"{self.origin}/{path}")
        self.page.wait_for_selector("body[data-verb]", timeout=WAIT)

    def run(self, verb: str, result: str, **fields: str) -> None:
        """Fill the form of a panel, send it, and wait for a result or an error."""
        self.page.click(f"#tab-{verb}")
        panel = self.page.locator(f"#panel-{verb}")
        for name, value in fields.items():
            box = panel.locator(f"[name={name}]")
            box.evaluate("field => { field.closest('details')?.setAttribute('open', ''); }")
            box.fill(value)
        panel.locator("[type=submit]").click()
        self.page.wait_for_function(
            "([panel, result]) => !document.querySelector(`${panel} form`).classList.contains('busy')"
            " && document.querySelector(`${panel} ${result}, ${panel} .error:not([hidden])`)",
            arg=[f"#panel-{verb}", result],
            timeout=WAIT,
        )
        error = panel.locator("form .error").inner_text() if panel.locator("form .error").is_visible() else ""
        self.check(not error, f"{verb}: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shots", type=Path, help="folder to write screenshots to")
    parser.add_argument("--only", metavar="CHECK", nargs="*", help="run these checks only")
    parser.add_argument("--picture", type=Path, help="write the picture of the documentation to this file, and stop")
    arguments = parser.parse_args()
    if arguments.picture:
        take_picture(arguments.picture)
        return
    if arguments.shots:
        arguments.shots.mkdir(parents=True, exist_ok=True)
    axe = read_axe()
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        photos = make_photos(Path(folder))
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for options, key, checks in (
            ((), "", PLAIN_CHECKS),
            (("--index", make_index(photos)), "", (search_index,)),
            ((), KEY, (ask_for_key,)),
            (("--edit", make_folder(photos)), KEY, (edit_captions,)),
        ):
            chosen = [check for check in checks if not arguments.only or check.__name__ in arguments.only]
            if chosen:
                with serve(*options, key=key) as origin:
                    for check in chosen:
                        problems += in_every_window(check, browser, origin, axe, arguments.shots, photos)
        browser.close()
    if problems:
        sys.exit("\n".join(["", *problems]))
    print("no errors")


Check = Callable[[Visit, list[Path]], None]


def in_every_window(
    check: Check, browser: Browser, origin: str, axe: str, shots: Path | None, photos: list[Path]
) -> list[str]:
    """Run a check in windows of all sizes and colors, and return the problems."""
    problems = []
    for size, (width, height) in WIDTHS.items():
        for scheme in SCHEMES:
            if check in ONCE and (size, scheme) != ("desktop", "light"):
                continue
            context = browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme="dark" if scheme == "dark" else "light",
                has_touch=size == "phone",
                reduced_motion="reduce",
            )
            context.grant_permissions(["clipboard-read", "clipboard-write"], origin=origin)
            visit = Visit(context.new_page(), f"{size}-{scheme}", origin, axe, shots)
            visit.watch()
            start = time.monotonic()
            try:
                check(visit, photos)
            except Error as error:  # something that the check waits for never came
                visit.problems.append(str(error).splitlines()[0])
            context.close()
            print(f"{check.__name__} {visit.name}: {visit.num_checks} checks, {time.monotonic() - start:.1f} s")
            problems += [f"{check.__name__} {visit.name}: {problem}" for problem in visit.problems]
    return problems


def look_at_panels(visit: Visit, photos: list[Path]) -> None:
    """Use each panel with texts that hold HTML."""
    page = visit.page
    visit.open()
    visit.look("empty")
    page.set_input_files("#files", photos[0])
    page.wait_for_selector("#panel-caption .caption", timeout=WAIT)
    visit.check("astronaut" not in page.inner_text("#image-name"), "the name of the file is the user's")
    visit.check(page.inner_text("#image-name") == photos[0].name, "the name of the file is shown as it is")
    visit.check(page.locator("#panel-caption .bars li").count() == 2, "a caption has two alternatives")
    visit.look("caption")
    visit.run("ask", ".answer", question="how many people are there?")
    visit.run("ask", ".answers + .answers", question=HOSTILE_TEXT[:60])
    newest = page.locator("#panel-ask .question").first.inner_text()
    visit.check(newest == HOSTILE_TEXT[:60], f"the newest answer is the first, not {newest}")
    visit.look("ask")
    texts = ["a woman in an orange suit", "a cat on a sofa", HOSTILE_TEXT]
    visit.run("match", ".bar", texts="\n".join(texts))
    shown = page.locator("#panel-match .bar-text").all_inner_texts()
    visit.check(sorted(shown) == sorted(texts), f"all texts are shown as they are: {shown}")
    visit.look("match")
    visit.run("classify", ".bar", labels="cat\nastronaut\nrocket")
    visit.check(page.locator("#panel-classify .bar").count() == 3, "every label has a bar")
    visit.look("classify")
    visit.run("ground", ".bar", expressions="the woman in the orange suit\n<b>the flag</b>")
    visit.check(page.locator(".box").count() == 2, "every expression has a box")
    frame, box = page.locator("#frame img").bounding_box(), page.locator(".box").first.bounding_box()
    assert frame
    assert box
    inside = box["x"] >= frame["x"] - 1 and box["x"] + box["width"] <= frame["x"] + frame["width"] + 1
    visit.check(inside, "the box is in the image")
    visit.look("ground")
    visit.run("explain", ".word", text="a woman in an orange suit")
    page.click("#panel-explain .word:has-text('woman')")
    visit.check(page.locator("#frame canvas").is_visible(), "the heat map is over the image")
    visit.look("explain")
    visit.check(
        page.locator("#panel-explain .word[aria-pressed=true]").inner_text().startswith("woman"), "a word is chosen"
    )
    page.click("#panel-explain .code summary")
    page.click("#panel-explain .code button:has-text('Python')")
    visit.look("code")
    page.goto(f"{visit.origin}/docs")
    page.wait_for_selector("#reference article", timeout=WAIT)
    visit.look("docs")


def use_images(visit: Visit, photos: list[Path]) -> None:
    """Paste, drop, select and remove images; a bad file does not fail the others."""
    page = visit.page
    visit.open()
    page.click("[data-example=cat]")
    page.wait_for_selector("#panel-caption .caption", timeout=WAIT)
    page.evaluate(PASTE_AND_DROP, list(photos[1].read_bytes()))
    page.set_input_files("#files", {"name": "broken.png", "mimeType": "image/png", "buffer": b"no image"})
    page.wait_for_function("() => document.querySelectorAll('#panel-caption .entry').length === 4", timeout=WAIT)
    page.wait_for_selector("#panel-caption .entry .error", timeout=WAIT)
    names = [button.get_attribute("title") for button in page.locator("#strip button").all()]
    visit.check(names == ["cat.webp", "pasted.jpg", "dropped.jpg", "broken.png"], f"four images, got {names}")
    visit.check(page.locator("#panel-caption .caption").count() == 3, "three captions")
    visit.check(page.locator("#panel-caption .entry .error").count() == 1, "one image is bad, and its entry says so")
    visit.check(page.locator(".no-preview").is_visible(), "an image that the browser cannot show has a sentence")
    visit.look("several")
    page.locator("#strip button").nth(1).focus()
    page.keyboard.press("Delete")
    visit.check(page.locator("#strip button").count() == 3, "Delete removes an image")
    visit.check(page.locator("#panel-caption .entry").count() == 3, "and its result")
    visit.check(page.evaluate("document.activeElement.closest('#strip') !== null"), "the focus stays in the strip")
    page.locator("#panel-caption .entry-image").first.click()
    visit.check(page.inner_text("#image-name") == "cat.webp", "a result selects its image")
    page.set_input_files("#files", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"text"})
    visit.check(page.inner_text("#notice") == "One file is not an image.", "other files are refused with a sentence")
    page.click("#clear")
    visit.check(page.locator("#empty").is_visible(), "Remove all empties the page")
    # Keys: tabs by arrows, a form by Enter, and no image asks for one.
    page.focus("#tab-caption")
    page.keyboard.press("ArrowRight")
    visit.check(page.evaluate("document.activeElement.id") == "tab-ask", "an arrow moves to the next tab")
    visit.check(page.url.endswith("#ask") and page.locator("#panel-ask").is_visible(), "and opens its panel")
    page.keyboard.press("End")
    visit.check(page.evaluate("document.activeElement.id") == "tab-explain", "End moves to the last tab that is shown")
    page.keyboard.press("Home")
    page.go_back()
    page.click("#tab-ask")
    page.fill("#panel-ask [name=question]", "what is it?")
    page.keyboard.press("Enter")
    error = page.inner_text("#panel-ask form .error")
    visit.check(error == "Add an image first.", f"a form without images asks for one: {error}")


def use_heat_maps(visit: Visit, photos: list[Path]) -> None:
    """Hover, focus, tap and leave words: each shows its own map. Explain a caption and an answer, too."""
    page = visit.page
    visit.open("#explain")
    page.set_input_files("#files", photos[0])
    visit.run("explain", ".word", text="a woman in an orange suit")
    drawn = "document.querySelector('#frame canvas').toDataURL()"
    words = page.locator("#panel-explain .word")
    pinned = page.evaluate(drawn)
    maps = []
    for index in range(words.count()):
        words.nth(index).hover()
        maps.append(page.evaluate(drawn))
    visit.check(len(set(maps)) == 7, f"seven maps, {len(set(maps))} differ")
    page.mouse.move(1, 1)
    visit.check(page.evaluate(drawn) == pinned == maps[0], "after the pointer has left, the chosen words show again")
    words.nth(2).focus()
    visit.check(page.evaluate(drawn) == maps[2], "the focus shows a map")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    visit.check(page.evaluate(drawn) == maps[3], "the next word shows its map")
    page.mouse.move(1, 1)
    page.evaluate("document.activeElement.blur()")
    visit.check(page.evaluate(drawn) == maps[2], "the chosen word stays")
    page.check("#panel-explain [value=caption]")
    visit.check(page.locator("#panel-explain [name=text]").is_hidden(), "a caption needs no text")
    page.click("#panel-explain [type=submit]")
    page.wait_for_function("() => document.querySelectorAll('#panel-explain .word').length !== 7", timeout=WAIT)
    page.check("#panel-explain [value=vqa]")
    visit.run("explain", ".caption", text="what color is the suit?")
    visit.check(page.inner_text("#panel-explain .caption") != "", "an answer is explained")
    page.click("#tab-caption")
    visit.check(page.locator("#frame canvas").count() == 0, "other panels show the plain image")


def run_snippets(visit: Visit, photos: list[Path]) -> None:
    """Run the snippets of each panel: they send what the page has sent, whatever the name of the file."""
    page = visit.page
    visit.open()
    page.set_input_files("#files", photos[0])
    page.wait_for_selector("#panel-caption .code", timeout=WAIT)
    visit.run("ask", ".answer", question=HOSTILE_TEXT, answers="yes\nno")
    visit.run("match", ".bar", texts=f"a woman\n{HOSTILE_TEXT}")
    for verb in ("caption", "ask", "match"):
        page.click(f"#tab-{verb}")
        panel = page.locator(f"#panel-{verb}")
        panel.locator(".code summary").click()
        texts = {}
        for name in ("JSON", "curl", "Python"):
            panel.locator(f".code button:text-is('{name}')").click()
            texts[name] = panel.locator(".code code").inner_text()
        panel.locator(".code button:text-is('Copy')").click()
        visit.check(page.evaluate("navigator.clipboard.readText()") == texts["Python"], "Copy copies the code")
        expected = json.loads(texts["JSON"])
        shell = subprocess.run(["sh", "-c", texts["curl"]], cwd=photos[0].parent, capture_output=True, text=True)
        visit.check(same(json.loads(shell.stdout or "null"), expected), f"{verb}: curl answers {shell.stdout[:200]}")
        program = texts["Python"].replace("print(response.json()", "import json; print(json.dumps(response.json()")
        program = program.replace('["results"])', '["results"]))')
        python = subprocess.run([sys.executable, "-c", program], cwd=photos[0].parent, capture_output=True, text=True)
        answer = json.loads(python.stdout or "null")
        visit.check(
            same(answer, expected["results"]), f"{verb}: Python answers {python.stdout[:200]}{python.stderr[-300:]}"
        )
    visit.check(not (photos[0].parent / "harm").exists(), "no part of a name ran in the shell")


def same(first: object, second: object) -> bool:
    """Return whether two JSON values are equal, numbers up to rounding."""
    if isinstance(first, float) and isinstance(second, float):
        return abs(first - second) <= 1e-3
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def cancel_and_fail(visit: Visit, photos: list[Path]) -> None:
    """Cancel a request, and show errors of the server as its sentences."""
    page = visit.page
    offer(page, "", verbs=[])
    page.goto(f"{visit.origin}/#ask")
    page.wait_for_selector("#loading:visible", timeout=WAIT)
    page.unroute("**/v1/info")
    page.wait_for_selector("body[data-verb]", timeout=WAIT)
    visit.check(page.locator("#loading").is_hidden(), "the page waits until the model is loaded")
    page.set_input_files("#files", photos[0])
    page.fill("#panel-ask [name=question]", "what is it?")
    held: list[Route] = []
    page.route("**/v1/ask", lambda route: held.append(route))
    page.click("#panel-ask [type=submit]")
    status = page.locator("#panel-ask .status")
    visit.check(page.locator("#panel-ask progress").is_visible(), "a request shows its progress")
    visit.look("running")
    page.click("#panel-ask button:text-is('Cancel')")
    visit.check(status.inner_text() == "Canceled", "a request can be canceled")
    visit.check(page.evaluate("document.activeElement.textContent") == "Ask", "and sent again from the keyboard")
    page.keyboard.press("Enter")
    visit.check(status.inner_text() == "Running", "a request runs again")
    page.keyboard.press("Escape")
    visit.check(status.inner_text() == "Canceled", "Escape cancels a request")
    with suppress(Error):  # the browser has dropped it
        for route in held:
            route.abort()
    page.unroute("**/v1/ask")
    message = "the queue is full <b>now</b>"
    answers = [
        (429, {"Retry-After": "3"}, message, "The queue is full <b>now</b>. Try again in 3 s."),
        (504, {}, "the request took longer than its 30 s", "The request took longer than its 30 s."),
        (500, {}, None, "The server answered with status 500."),
    ]
    for code, headers, sentence, expected in answers:
        body = json.dumps({"error": {"message": sentence, "param": None, "code": None}}) if sentence else "oops"
        refuse(page, "**/v1/ask", code, headers, body)
        page.click("#panel-ask [type=submit]")
        error = page.locator("#panel-ask form .error")
        error.wait_for(timeout=WAIT)
        visit.check(error.inner_text() == expected, f"{code} shows {error.inner_text()}")
        page.unroute("**/v1/ask")
    page.route("**/v1/ask", lambda route: route.abort())
    page.click("#panel-ask [type=submit]")
    page.wait_for_function(
        "() => document.querySelector('#panel-ask form .error').textContent.startsWith('The server does')"
    )
    page.unroute("**/v1/ask")
    visit.run("ask", ".answer", question="what is it?")
    page.click("#panel-ask summary")
    page.evaluate("document.querySelector('#panel-ask [name=n]').max = 99")
    page.fill("#panel-ask [name=n]", "99")
    page.click("#panel-ask [type=submit]")
    page.locator("#panel-ask form .error").wait_for(timeout=WAIT)
    visit.check("99" in page.inner_text("#panel-ask form .error"), "a refused value is named by the server")


def compare_images(visit: Visit, photos: list[Path]) -> None:
    """Compare two images; the bundled model cannot, so a canned server answers for another model."""
    page = visit.page
    offer(page, "compare", model="other")
    result = {"comparisons": [{"statement": HOSTILE_TEXT, "label": False, "probability": 0.25}], "index": 0}
    fulfill(page, "**/v1/compare", {"model": "m", "results": [result]})
    visit.open("#compare")
    visit.check(page.locator("#tab-compare").is_hidden(), "a model that cannot compare has no tab for it")
    page.select_option("#model", "other")
    visit.run("compare", ".error", statements="x")
    visit.problems.pop()  # asks for images
    page.set_input_files("#files", photos[:2])
    visit.run("compare", ".bar", statements=HOSTILE_TEXT)
    visit.check(
        page.locator("#panel-compare .bar-text").inner_text() == HOSTILE_TEXT, "the statement is shown as it is"
    )
    visit.check(page.locator("#panel-compare .bar-number").inner_text() == "false, 25 %", "with label and probability")
    visit.look("compare")
    page.evaluate("document.getElementById('model').selectedIndex = 0")
    page.dispatch_event("#model", "change")
    visit.check(page.locator("#panel-compare .bar").count() == 0, "another model has no results yet")
    visit.check(page.locator("#panel-compare").is_hidden(), "and no panel")


def search(visit: Visit, photos: list[Path]) -> None:
    """Search and browse an index; a canned server answers, with names and captions that hold HTML."""
    page = visit.page
    offer(page, "search", index={"images": 42})
    names = [f"holidays/{HOSTILE_NAME}", *(f"photos/{path.name}" for path in photos[1:])]
    items: list[dict[str, object]] = [
        {
            "id": f"{index:016x}", "name": name, "caption": HOSTILE_TEXT if index % 2 else None, "width": 512,
            "height": 384, "date": "2024-05-17T18:30:00", "thumbnail": f"/v1/gallery/{index:016x}/thumbnail",
            "duplicates": [],
        }
        for index, name in enumerate(names)
    ]  # fmt: skip
    scored = [{**item, "similarity": 0.4 - index / 20, "probability": None} for index, item in enumerate(items)]
    bodies: list[str] = []

    def answer(route: Route) -> None:
        bodies.append((route.request.post_data_buffer or b"").decode("latin-1"))
        nothing = 'name="rerank"' in bodies[-1]
        found = [] if nothing else scored
        rejected = 0.1 if nothing else None
        body = {"model": "m", "results": found, "nothing_found": nothing, "best_rejected": rejected, "errors": []}
        route.fulfill(json=body)

    page.route("**/v1/search", answer)
    fulfill(page, "**/v1/gallery?*", {"items": items, "next": "more", "total": 42})
    page.route("**/thumbnail?*", lambda route: route.fulfill(path=photos[1], content_type="image/jpeg"))
    visit.open("#search")
    page.wait_for_selector(".tile img[src]", timeout=WAIT)
    visit.check(page.locator(".tile").count() == len(items), "the gallery shows the index")
    page.click("text=Show more")
    page.wait_for_function(f"() => document.querySelectorAll('.tile').length === {2 * len(items)}")
    visit.look("gallery")
    visit.run("search", ".tile-score", text=HOSTILE_TEXT)
    visit.check(HOSTILE_TEXT in page.locator(".tile-text").all_inner_texts(), "captions are shown as they are")
    page.locator(".tile").first.click()
    visit.check(page.inner_text("#photo-name") == names[0], "a tile opens its image")
    page.wait_for_selector("#photo img[src]", timeout=WAIT)
    visit.look("photo")
    page.click("#photo-similar")
    page.wait_for_function("() => document.querySelector('#query-image-label').textContent.length > 20")
    page.wait_for_function("() => document.querySelector('#panel-search .status').textContent.includes('result')")
    visit.check('name="image"' in bodies[-1] and 'name="text"' not in bodies[-1], "similar images need no text")
    page.click("#filters summary")
    page.fill("#panel-search [name=folder]", "holidays")
    page.fill("#panel-search [name=after]", "2024-01-31")
    page.fill("#panel-search [name=minus]", "people")
    page.check("#panel-search [name=rerank]")
    page.check("#panel-search [name=hide_duplicates]")
    visit.run("search", ".summary", text="a dog on a beach")
    for name, value in {"folder": "holidays", "after": "2024-01-31", "minus": "people", "rerank": "50",
                        "min_probability": "0.5", "hide_duplicates": "true"}.items():  # fmt: skip
        visit.check(f'name="{name}"\r\n\r\n{value}\r\n' in bodies[-1], f"the request has {name}")
    visit.check(page.inner_text("#panel-search .summary").startswith("Nothing found"), "nothing found is said")
    visit.look("nothing-found")


def search_index(visit: Visit, photos: list[Path]) -> None:
    """Search and browse a real index."""
    page = visit.page
    visit.open("#search")
    page.wait_for_selector(".tile img[src]", timeout=WAIT)
    visit.check(page.locator(".tile").count() == len(photos), "the gallery shows all images")
    visit.run("search", ".tile-score", text="a cup of coffee on a table")
    visit.check(page.locator(".tile").first.get_attribute("title") == "coffee.jpg", "the coffee is the first result")
    visit.look("search")
    page.locator(f".tile[title='{photos[1].name}']").click()
    page.click("#photo-similar")
    page.wait_for_function("() => document.querySelector('#query-image-label').textContent.endsWith('cat.jpg')")
    page.wait_for_function("() => document.querySelector('.tile')?.title === 'cat.jpg'", timeout=WAIT)
    visit.check(float(page.locator(".tile-score").first.inner_text()) > 0.9, "an image is most similar to itself")
    visit.run("search", ".tile-score", text="a cup of coffee", minus="a cat", folder="deep")
    visit.check(page.locator(".tile").count() == 1, "the folder holds one image")
    page.fill("#panel-search [name=folder]", "")
    page.uncheck("#panel-search [name=image]")
    page.check("#panel-search [name=rerank]")
    visit.run("search", ".summary:not(:empty)", text="a green truck in the rain", min_probability="100")
    visit.check(page.inner_text("#panel-search .summary").startswith("Nothing found"), "nothing found is said")
    page.fill("#panel-search [name=after]", "2999-01-01")
    page.fill("#panel-search [name=text]", "")
    page.fill("#panel-search [name=minus]", "")
    page.uncheck("#panel-search [name=rerank]")
    page.click("#panel-search [type=submit]")
    page.wait_for_function("() => document.querySelector('.summary').textContent.startsWith('No image')", timeout=WAIT)
    page.evaluate("document.querySelector('#panel-search [name=after]').value = ''")
    page.click("#panel-search [type=submit]")
    page.wait_for_selector(".tile img[src]", timeout=WAIT)
    page.locator(".tile[title*='onerror']").click()
    page.click("#photo-use")
    page.wait_for_selector("#panel-caption .caption", timeout=WAIT)
    selected = page.locator("#strip [aria-pressed=true]")
    visit.check(selected.get_attribute("title") != "cat.jpg", "an image of the index can be captioned")


def ask_for_key(visit: Visit, photos: list[Path]) -> None:
    """Open a server that needs a key: the page asks, also for a wrong one, and keeps the key in the tab only."""
    page = visit.page
    page.goto(f"{visit.origin}/")
    page.wait_for_selector("dialog[open]", timeout=WAIT)
    visit.look("key")
    page.fill("dialog input", "wrong")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('dialog[open] input')?.value === ''")
    reason = page.inner_text("dialog .reason")
    visit.check(
        "key" in reason.lower() and "Whoever" not in reason,
        f"a wrong key is refused with the server's sentence: {reason}",
    )
    page.fill("dialog input", KEY)
    page.click("dialog button:text-is('Use key')")
    page.wait_for_selector("body[data-verb]", timeout=WAIT)
    page.set_input_files("#files", photos[0])
    page.wait_for_selector("#panel-caption .caption", timeout=WAIT)
    page.click("#panel-caption .code summary")
    code = page.inner_text("#panel-caption .code code")
    visit.check("$OPENBLIP_API_KEY" in code and KEY not in code, "the snippet reads the key from the environment")
    visit.check(
        KEY not in page.url and page.evaluate("localStorage.length + document.cookie.length") == 0, "kept elsewhere"
    )
    page.reload()
    page.wait_for_selector("body[data-verb]", timeout=WAIT)
    page.click("#forget")
    page.wait_for_selector("dialog[open]", timeout=WAIT)
    page.click("dialog button:text-is('Cancel')")
    visit.check(page.locator("#banner button").inner_text() == "Enter a key", "without a key the page says so")
    page.goto(f"{visit.origin}/docs")
    page.wait_for_selector("dialog[open]", timeout=WAIT)


def edit_captions(visit: Visit, photos: list[Path]) -> None:
    """Open the caption editor with a key, and edit a caption: it is saved into the file next to the image."""
    page = visit.page
    page.goto(f"{visit.origin}/edit")
    visit.look("edit-login")
    page.fill("input[name=key]", KEY)
    page.click("button:text-is('Open')")
    page.wait_for_selector("article textarea", timeout=WAIT)
    visit.look("edit")
    text = f"{visit.name} {HOSTILE_TEXT}"
    with page.expect_response(lambda response: response.request.method != "GET") as saved:
        page.locator("article textarea").first.fill(text)
        page.keyboard.press("Tab")
    visit.check(saved.value.ok, f"the caption is saved, not {saved.value.status}")
    files = [path.read_text() for path in (photos[0].parent / "edited").glob("*.txt")]
    visit.check(text in [content.strip() for content in files], "the text is in the file next to the image")


def take_picture(path: Path) -> None:
    """Write the picture of the documentation: the boxes of two expressions."""
    with serve() as origin, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 680})
        page.goto(f"{origin}/#ground")
        page.wait_for_selector("body[data-verb]", timeout=WAIT)
        page.set_input_files("#files", PHOTOS / "astronaut.jpg")
        page.fill("#panel-ground [name=expressions]", "a woman in an orange suit\na face")
        page.click("#panel-ground [type=submit]")
        page.wait_for_selector("#panel-ground .bar", timeout=WAIT)
        page.mouse.move(1, 1)
        picture = Image.open(BytesIO(page.screenshot()))
        browser.close()
    picture.convert("RGB").save(path, optimize=True)
    print(f"{path}: {path.stat().st_size} bytes")


def offer(page: Page, verb: str, *, model: str | None = None, **changes: object) -> None:
    """Add a verb to those that the server offers: to the verbs of its model, or as a further model."""

    def answer(route: Route) -> None:
        info = route.fetch().json()
        own = info["by_model"][info["model"]]
        if model is not None:
            info["models"].append(model)
            info["by_model"][model] = {**own, "verbs": [*own["verbs"], verb]}
        else:
            own["verbs"].append(verb)
            info["verbs"].append(verb)
        route.fulfill(json={**info, **changes})

    page.route("**/v1/info", answer)


def fulfill(page: Page, pattern: str, body: object) -> None:
    """Answer requests with a JSON value."""
    page.route(pattern, lambda route: route.fulfill(json=body))


def refuse(page: Page, pattern: str, status: int, headers: dict[str, str], body: str) -> None:
    """Answer requests with an error."""
    page.route(pattern, lambda route: route.fulfill(status=status, headers=headers, body=body))


def make_photos(folder: Path) -> list[Path]:
    """Copy photos, the first with a hostile name."""
    names = {
        "astronaut.jpg": HOSTILE_NAME,
        "cat.jpg": "cat.jpg",
        "coffee.jpg": "coffee.jpg",
        "rocket.jpg": "rocket.jpg",
    }
    return [Path(shutil.copy(PHOTOS / source, folder / name)) for source, name in names.items()]


def make_folder(photos: list[Path]) -> str:
    """Copy the photos, each with a caption, and return their folder."""
    folder = photos[0].parent / "edited"
    folder.mkdir()
    for photo in photos:
        shutil.copy(photo, folder)
        (folder / photo.with_suffix(".txt").name).write_text("a caption")
    return str(folder)


def make_index(photos: list[Path]) -> str:
    """Index the photos, one of them in a folder of its own, and return the folder of the index."""
    folder = photos[0].parent
    (folder / "photos" / "deep").mkdir(parents=True)
    for photo in photos:
        shutil.copy(photo, folder / "photos" / ("deep" if photo is photos[-1] else "") / photo.name)
    index = str(folder / "photos.index")
    command = [*OPENBLIP, "index", str(folder / "photos"), "--recursive", "--out", index, "--quiet"]
    subprocess.run(command, check=True)
    return index


@contextmanager
def serve(*options: str, key: str = "") -> Iterator[str]:
    """Run a server with the bundled model and perhaps a key, and yield its address once it is ready."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [*OPENBLIP, "serve", "--port", str(port), "--log-level", "error", *options]
    server = subprocess.Popen(
        command, env={**os.environ, "OPENBLIP_API_KEYS": key} if key else None, stderr=subprocess.DEVNULL
    )
    origin = f"http://127.0.0.1:{port}"
    headers = {"Authorization": f"Bearer {key}"}
    try:
        deadline = time.monotonic() + 120
        while not is_ready(urllib.request.Request(f"{origin}/readyz", headers=headers)):
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server must be ready in time"
            time.sleep(0.2)
        yield origin
    finally:
        server.terminate()
        server.wait()


def is_ready(request: urllib.request.Request) -> bool:
    """Return whether a server answers that it is ready."""
    try:
        with urllib.request.urlopen(request, timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def read_axe() -> str:
    """Return the source of axe-core, downloaded once by npm."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "openblip" / f"axe-core-{AXE_VERSION}"
    script = cache / "node_modules" / "axe-core" / "axe.min.js"
    if not script.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "install", "--no-save", "--prefix", cache, f"axe-core@{AXE_VERSION}"], check=True)
    return script.read_text(encoding="utf-8")


PLAIN_CHECKS: tuple[Check, ...] = (
    look_at_panels,
    use_images,
    use_heat_maps,
    run_snippets,
    cancel_and_fail,
    compare_images,
    search,
)
ONCE: tuple[Check, ...] = (use_images, use_heat_maps, run_snippets, cancel_and_fail)  # in one window


if __name__ == "__main__":
    main()
