"""The web page without a browser: references, labels, contrast, nothing that the CSP forbids.

`scripts/look_at_page.py` uses the page in Chromium.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from openblip.tasks import TASKS

PAGE = Path(__file__).parents[2] / "src" / "openblip" / "serving" / "page"
TEXTS = {
    path.name: path.read_text(encoding="utf-8") for path in PAGE.iterdir() if path.suffix in {".html", ".js", ".css"}
}
MODULES = {name: text for name, text in TEXTS.items() if name.endswith(".js")}
INDEX = TEXTS["index.html"]
Attributes = dict[str, str | None]


class Outline(HTMLParser):
    """Elements of a page, with their attributes, the tags around them, and their text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, Attributes, list[str]]] = []
        self.texts: list[str] = []  # of each element
        self._open: list[int] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), [self.elements[index][0] for index in self._open]))
        self.texts.append("")
        if tag not in {"meta", "link", "img", "input", "br"}:
            self._open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self._open.pop()][0] == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        for index in self._open:
            self.texts[index] += data


OUTLINES = {name: Outline(text) for name, text in TEXTS.items() if name.endswith(".html")}
OUTLINE = OUTLINES["index.html"]
PAGES = pytest.mark.parametrize("name", sorted(OUTLINES))


def values(name: str, *attributes: str) -> list[str]:
    """Return the values of attributes in a page."""
    elements = OUTLINES[name].elements
    return [str(given[key]) for _, given, _ in elements for key in attributes if given.get(key)]


def modules_of(name: str) -> set[str]:
    """Return the modules that a page loads, those that they import included."""
    found: set[str] = set()
    waiting = [value.removeprefix("static/") for value in values(name, "src") if value.endswith(".js")]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += re.findall(r'from "\./([\w.]+)"', MODULES[module])
    return found


@PAGES
def test_html_has_nothing_inline(name: str) -> None:
    for tag, attributes, _ in OUTLINES[name].elements:
        assert tag not in {"style", "base", "iframe", "object", "embed"}
        assert "style" not in attributes
        assert not [attribute for attribute in attributes if attribute.startswith("on")]
        assert not str(attributes.get("href") or "").startswith("javascript:")
        if tag == "script":
            assert attributes.get("src"), "scripts are files"


@PAGES
def test_references_exist(name: str) -> None:
    static = {value.removeprefix("static/") for value in values(name, "src", "href") if value.startswith("static/")}
    assert {"app.css", "icon.svg"} <= static
    static |= {f"example-{example}.webp" for example in values(name, "data-example")}
    assert all((PAGE / file).is_file() for file in static)
    assert not re.findall(r"url\(|@import", TEXTS["app.css"])


def test_no_foreign_addresses() -> None:
    for name, text in TEXTS.items():
        assert not re.findall(r"""(?:https?:)?//[\w-]+\.[\w.-]+|["'(]//\w""", text), name


@pytest.mark.parametrize("name", sorted(MODULES))
def test_scripts_set_texts_only(name: str) -> None:
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser|\beval\(|Function\("
    )
    assert not re.findall(forbidden, MODULES[name])
    assert not re.findall(r"""setAttribute\(["']style|cssText|localStorage|document\.cookie""", MODULES[name])


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imported_names_are_exported(name: str) -> None:
    imports = re.findall(r'import (?:\{ ([^}]*) \}|\* as (\w+)) from "\./([\w.]+)"', MODULES[name])
    assert len(imports) == len(re.findall(r"^import ", MODULES[name], re.MULTILINE))
    for names, namespace, target in imports:
        exports = set(re.findall(r"^export (?:async )?(?:function|class|const) (\w+)", MODULES[target], re.MULTILINE))
        used = re.findall(rf"(?<![./])\b{namespace}\.(\w+)", MODULES[name]) if namespace else names.split(", ")
        assert {each.partition(" as ")[0] for each in used} <= exports, f"{name} imports from {target}"


def test_every_module_is_used() -> None:
    loaded = set().union(*map(modules_of, OUTLINES))
    assert loaded | {"edit.js"} == set(MODULES), "the contact sheet loads edit.js"


@PAGES
def test_ids_are_unique_and_exist(name: str) -> None:
    ids = values(name, "id")
    assert len(ids) == len(set(ids))
    for value in values(name, "aria-controls", "aria-labelledby", "for"):
        assert set(value.split()) <= set(ids)
    text = "".join(MODULES[module] for module in modules_of(name))
    assert set(re.findall(r'byId\("([\w-]+)"\)', text)) <= set(ids)


@PAGES
def test_every_field_has_a_label(name: str) -> None:
    outline = OUTLINES[name]
    for (tag, attributes, parents), text in zip(outline.elements, outline.texts, strict=True):
        named = attributes.get("aria-label") or attributes.get("aria-labelledby")
        if tag in {"input", "select", "textarea"}:
            assert "label" in parents or named, attributes
        if tag == "img":
            assert "alt" in attributes
        if tag == "button" and not attributes.get("data-example"):  # those hold an image with a text
            assert text.strip() or named, attributes
        if tag in {"section", "nav", "dialog"}:
            assert named, attributes


def test_tabs_and_panels_are_the_verbs() -> None:
    tabs = {str(a["id"]): str(a["aria-controls"]) for _, a, _ in OUTLINE.elements if a.get("role") == "tab"}
    verbs = [name.removeprefix("tab-") for name in tabs]
    assert [f"panel-{verb}" for verb in verbs] == list(tabs.values())
    without_images = {"embed", "search"}  # a page has no use for vectors
    assert {verb for spec in TASKS.values() for verb in spec.verbs} - without_images <= set(verbs)
    assert 'lang="en"' in INDEX
    assert "width=device-width" in INDEX


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colors_have_enough_contrast(scheme: str) -> None:
    light, dark = re.findall(r":root \{(.*?)\}", TEXTS["app.css"], re.DOTALL)
    colors = dict(re.findall(r"--([\w-]+): (#\w{6})\b", light))
    if scheme == "dark":
        colors |= dict(re.findall(r"--([\w-]+): (#\w{6})\b", dark))
    for text in ("ink", "muted", "accent"):
        for ground in ("ground", "surface", "sunken"):
            assert contrast(colors[text], colors[ground]) >= 4.5, (text, ground)
    assert contrast(colors["accent-ink"], colors["accent"]) >= 4.5
    assert contrast(colors["ink"], colors["accent-soft"]) >= 4.5
    assert contrast(colors["bad"], colors["bad-soft"]) >= 4.5
    assert contrast(colors["edge"], colors["surface"]) >= 3, "borders of fields"


def test_labels_of_boxes_have_enough_contrast() -> None:
    colors = re.search(r"COLORS = \[(.*?)\]", MODULES["stage.js"])
    assert colors
    for color in re.findall(r"#\w{6}", colors[1]):
        assert contrast(color, "#ffffff") >= 4.5


def contrast(first: str, second: str) -> float:
    """Return the contrast of two colors by WCAG 2.2."""
    brighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


def luminance(color: str) -> float:
    """Return the relative luminance of a color such as #1f2e3d."""
    channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
