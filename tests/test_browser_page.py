"""The browser example in Chromium, with an exported `pocket`: the page, and its results against PyTorch."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageCms

import openblip
from tests.browsers import BROWSER, check_chromium, find_node, install_packages

sys.path.insert(0, str(BROWSER / "tests"))
compare_runtimes = importlib.import_module("compare_runtimes")

pytestmark = pytest.mark.slow

PHOTOS = BROWSER.parent / "photos"
TRANSFER_LIMIT = 30e6  # bytes to the first caption
SECONDS = 120_000  # in milliseconds, for a machine that does other things


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `pocket` as graphs for the page."""
    check_chromium()
    install_packages()
    folder = tmp_path_factory.mktemp("export") / "pocket"
    tasks = [word for task in ("caption", "vqa", "retrieval") for word in ("--task", task)]
    options = ["--to", "onnx", "--precision", "fp16", *tasks, "--out", str(folder)]
    code = "from openblip.cli import main; main()"
    subprocess.run([sys.executable, "-c", code, "export", "pocket", *options], check=True)
    return folder


def test_torch_node_and_chromium_agree(model: Path) -> None:
    comparison = compare_runtimes.compare(model, sorted(PHOTOS.glob("*.jpg")), find_node(), [model])
    assert {"onnxruntime, fp16", "Node.js", "Chromium"} < comparison.differences.keys()
    assert not any(comparison.differences.values()), comparison.to_text()
    assert max(comparison.match_error.values()) < 1e-5
    assert comparison.decoded == []


def test_the_example_for_node(model: Path, tmp_path: Path) -> None:
    photo = tmp_path / "cat.png"
    Image.open(PHOTOS / "cat.jpg").save(photo)
    command = [find_node(), str(BROWSER / "node.js"), str(model), str(photo)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{photo}: {openblip.load('pocket').caption(photo).text}\n"


def test_chromium_decodes_photos_as_pillow(model: Path, tmp_path: Path) -> None:
    make_files(tmp_path)
    different = {}
    with compare_runtimes.serve(model, tmp_path) as address, compare_runtimes.open_page(address) as page:
        for file in sorted(tmp_path.iterdir()):
            decoded = page.evaluate(compare_runtimes.DECODE, f"/photos/{file.name}")
            different[file.name] = compare_runtimes.compare_pixels(file, decoded)
    assert len(different) >= 20
    assert {name: value for name, value in different.items() if value is not None} == {}


def make_files(folder: Path) -> None:
    """Write a photo in many formats."""
    photo = Image.open(PHOTOS / "cat.jpg").convert("RGB")
    transparent = photo.copy()
    transparent.putalpha(Image.linear_gradient("L").resize(photo.size))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for subsampling in range(3):
        photo.save(folder / f"subsampling{subsampling}.jpg", quality=80, subsampling=subsampling)
    photo.save(folder / "progressive.jpg", quality=80, progressive=True)
    photo.save(folder / "profile.jpg", icc_profile=profile)
    photo.save(folder / "profile.png", icc_profile=profile)
    photo.convert("L").save(folder / "gray.jpg")
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    photo.resize((1999, 3001)).save(folder / "large.jpg")
    photo.save(folder / "lossy.webp")
    photo.save(folder / "lossless.webp", lossless=True)
    transparent.save(folder / "transparent.webp", lossless=True, exact=True)
    transparent.save(folder / "transparent_lossy.webp")
    transparent.save(folder / "transparent.png")
    photo.quantize(64).save(folder / "palette.png")
    photo.save(folder / "opaque.gif")
    for orientation in (2, 3, 6, 7):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for suffix, image in (("jpg", photo), ("webp", photo), ("png", transparent)):
            image.save(folder / f"orientation{orientation}.{suffix}", exif=exif)


_MAKE_DROP = """async (address) => {
  const content = await (await fetch(address)).blob();
  const transfer = new DataTransfer();
  transfer.items.add(new File([content], "photo.jpg", {type: "image/jpeg"}));
  return transfer;
}"""


@pytest.mark.parametrize(
    ("scheme", "width", "height"), [("light", 1280, 860), ("dark", 390, 844)], ids=["desktop", "phone"]
)
def test_the_page(model: Path, tmp_path: Path, scheme: str, width: int, height: int) -> None:
    from playwright.sync_api import expect

    blip = openblip.load("pocket", decode="exact")
    requests: list[tuple[str, Callable[[], dict[str, Any]]]] = []
    problems: list[str] = []
    options = {"viewport": {"width": width, "height": height}, "color_scheme": scheme}
    with compare_runtimes.serve(model, PHOTOS) as address, compare_runtimes.open_page("about:blank", **options) as page:
        page.on("requestfinished", lambda request: requests.append((request.url, request.sizes)))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.goto(address)
        caption, status = page.locator("#caption"), page.get_by_role("status")
        expect(status).to_have_text("Ready, also without a network", timeout=SECONDS)
        expect(page.locator("#engine")).to_contain_text("pocket")

        # A photo from the file dialog: its caption is that of Python, and little was transferred.
        page.get_by_label("Choose a photo").set_input_files(PHOTOS / "cat.jpg")
        expect(caption).to_have_text(re.compile(rf"^{blip.caption(PHOTOS / 'cat.jpg').text}$", re.I), timeout=SECONDS)
        transferred = sum(sizes()["responseBodySize"] for _, sizes in requests)
        assert 1e6 < transferred < TRANSFER_LIMIT
        assert not any("question_encoder" in url or "match" in url for url, _ in requests)

        # Questions and matches, by keyboard.
        question = page.get_by_label("Question about the photo")
        question.fill("what color is it?")
        question.press("Enter")
        answer = blip.ask(PHOTOS / "cat.jpg", "what color is it?")
        expect(page.locator("#answer li")).to_have_count(3, timeout=SECONDS)
        expect(page.locator("#answer li").first).to_contain_text(answer.text)
        page.get_by_role("button", name="Compare").press("Enter")
        expect(page.locator("#matches li")).to_have_count(3, timeout=SECONDS)
        expect(page.locator("#matches li").first).to_contain_text("a cat")

        # Without a network, a dropped photo is described, and a text that is no photo is refused.
        photo = page.evaluate_handle(_MAKE_DROP, "/photos/rocket.jpg")
        page.context.set_offline(True)
        page.dispatch_event("#drop", "drop", {"dataTransfer": photo})
        expect(caption).to_have_text(re.compile(blip.caption(PHOTOS / "rocket.jpg").text, re.I), timeout=SECONDS)
        page.screenshot(path=tmp_path / f"{scheme}.png", full_page=True)
        page.get_by_label("Choose a photo").set_input_files(Path(__file__))
        expect(status).to_have_text(re.compile("^Cannot read the image"), timeout=SECONDS)
        expect(page.get_by_role("button", name="Compare")).to_be_disabled()

        # The page is as wide as the screen, and speaks to its own server only.
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        assert {url.split("/")[2] for url, _ in requests if not url.startswith("blob:")} == {address.split("/")[2]}
    assert problems == []
