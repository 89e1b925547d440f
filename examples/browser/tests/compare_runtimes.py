"""Compare captions, answers and matches of PyTorch, Node.js and Chromium, token by token.

    python examples/browser/tests/compare_runtimes.py --model FOLDER examples/photos/*.jpg

FOLDER is an exported `pocket`. It needs `npm ci` in `examples/browser`, the package `playwright` and Chromium
(`apt-get install chromium`). Node.js and Chromium read the pixels that Pillow decoded, as PNG files. Chromium also
reads the files themselves; the report counts what its own decoders change.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import openblip
from openblip.preprocess.image import load_image

if TYPE_CHECKING:
    from playwright.sync_api import Page

BROWSER = Path(__file__).resolve().parents[1]
QUESTION = "what color is it?"
TEXTS = ["a cat", "a man in front of a crowd", "two dogs run on the grass"]

DESCRIBE = """async ({file, question, texts}) => {
  const {describe} = await import("/tests/describe.js");
  return describe(globalThis.blip, await (await fetch(file)).blob(), question, texts);
}"""
DECODE = """async (file) => {
  const {decodeImage} = await import("/openblip.js");
  const {data, width, height} = await decodeImage(await (await fetch(file)).blob());
  let text = "";
  for (let at = 0; at < data.length; at += 32768) text += String.fromCharCode(...data.subarray(at, at + 32768));
  return {width, height, rgb: btoa(text)};
}"""


@dataclass
class Description:
    """What a run-time says about an image."""

    greedy: list[int]
    beams: list[list[int]]
    answer: list[int]
    matches: list[tuple[float, float]]

    def tokens(self) -> tuple[list[int], list[list[int]], list[int]]:
        """Return all token ids."""
        return self.greedy, self.beams, self.answer

    def match_error(self, other: Description) -> float:
        """Return the largest difference of a probability or similarity."""
        return float(np.abs(np.array(self.matches) - np.array(other.matches)).max())


@dataclass
class Comparison:
    """Numbers of images, and of those that differ.

    Attributes:
        images: Number of images.
        different: Images with other tokens than PyTorch, by run-time.
        match_error: Largest difference of a match from PyTorch, by run-time.
        decoded: Images that Chromium decodes to other pixels than Pillow: their names, the share of different values,
            and the largest difference.
    """

    images: int = 0
    different: dict[str, list[str]] = field(default_factory=dict)
    match_error: dict[str, float] = field(default_factory=dict)
    decoded: list[tuple[str, float, int]] = field(default_factory=list)

    def add(self, runtime: str, name: str, expected: Description, result: Description) -> None:
        """Count an image."""
        names = self.different.setdefault(runtime, [])
        if result.tokens() != expected.tokens():
            names.append(name)
        error = expected.match_error(result)
        self.match_error[runtime] = max(error, self.match_error.get(runtime, 0.0))

    def to_text(self) -> str:
        """Return a report."""
        lines = [f"{self.images} images; PyTorch {_torch_version()} on Pillow's pixels is the reference"]
        for runtime, names in self.different.items():
            equal = self.images - len(names)
            error = f"largest difference of a match {self.match_error[runtime]:.1e}"
            lines.append(f"{runtime}: {equal} of {self.images} with equal tokens; {error}")
            lines += [f"  different: {name}" for name in names]
        lines.append(
            f"{len(self.decoded)} of {self.images} files are decoded by Chromium to other pixels than by Pillow"
        )
        lines += [f"  {name}: {share:.2%} of the values, by up to {largest}" for name, share, largest in self.decoded]
        return "\n".join(lines)


def _torch_version() -> str:
    import torch

    return str(torch.__version__)


def describe_with_torch(blip: openblip.Blip, image: Path) -> Description:
    """Return what PyTorch says about a PNG file."""
    greedy = _hypotheses(blip.pipeline("caption", num_beams=1), (image, None))
    beams = _hypotheses(blip.pipeline("caption", num_beams=3, n=3), (image, None))
    beams.sort(key=lambda hypothesis: -hypothesis.logprob / len(hypothesis.ids))
    answers = blip.pipeline("vqa")
    prepared = [answers.preprocess((image, [QUESTION]))]
    answer = answers.forward(prepared)[0][0].text
    tokenizer = answers.model.tokenizer
    matches = [(match.probability, match.similarity) for match in blip.match(image, TEXTS)]
    answer_ids = [*tokenizer.spell(answer), tokenizer.sep_id]
    return Description([*greedy[0].ids], [[*beam.ids] for beam in beams], answer_ids, matches)


def _hypotheses(pipeline: Any, item: Any) -> list[Any]:
    return list(pipeline.forward([pipeline.preprocess(item)])[0])


def describe_in_node(node: str, model: Path, images: list[Path]) -> list[Description]:
    """Return what Node.js says about PNG files."""
    request = {"model": str(model.resolve()), "images": [str(image) for image in images]}
    done = subprocess.run(
        [node, str(BROWSER / "tests" / "describe_in_node.js")],
        input=json.dumps({**request, "question": QUESTION, "texts": TEXTS}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [_read_description(result) for result in json.loads(done.stdout)]


def _read_description(result: dict[str, Any]) -> Description:
    matches = [(probability, similarity) for probability, similarity in result["matches"]]
    return Description(result["greedy"], result["beams"], result["answer"], matches)


@contextlib.contextmanager
def serve(model: Path, photos: Path) -> Iterator[str]:
    """Serve the page, a model and a folder of photos; yield the address."""
    sys.path.insert(0, str(BROWSER))
    from serve import Server

    with Server(("127.0.0.1", 0), model) as server:
        server.folders["photos"] = photos.resolve()
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def open_page(address: str, **options: Any) -> Iterator[Page]:
    """Open an address in Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_context(**options).new_page()
        page.goto(address)
        try:
            yield page
        finally:
            browser.close()


def compare(model: Path, files: list[Path], node: str) -> Comparison:
    """Compare run-times.

    Args:
        model: Folder of an exported `pocket`.
        files: Images.
        node: Path of Node.js.
    """
    comparison = Comparison(len(files))
    with tempfile.TemporaryDirectory() as folder:
        exact = []
        for index, file in enumerate(files):
            exact.append(Path(folder) / f"{index}.png")
            load_image(file).save(exact[-1], compress_level=1)
            shutil.copyfile(file, exact[-1].with_suffix(file.suffix.lower()))
        blip = openblip.load("pocket")
        expected = [describe_with_torch(blip, image) for image in exact]
        for file, reference, result in zip(files, expected, describe_in_node(node, model, exact), strict=True):
            comparison.add("Node.js", file.name, reference, result)
        with serve(model, Path(folder)) as address, open_page(address) as page:
            page.evaluate("""async () => {
              const {Blip} = await import("/openblip.js");
              globalThis.blip = await Blip.load("/model/");
            }""")
            for index, (file, reference) in enumerate(zip(files, expected, strict=True)):
                for runtime, name in (
                    ("Chromium", f"{index}.png"),
                    ("Chromium with its own decoder", f"{index}{file.suffix.lower()}"),
                ):
                    request = {"file": f"/photos/{name}", "question": QUESTION, "texts": TEXTS}
                    result = _read_description(page.evaluate(DESCRIBE, request))
                    comparison.add(runtime, file.name, reference, result)
                difference = compare_pixels(file, page.evaluate(DECODE, f"/photos/{index}{file.suffix.lower()}"))
                if difference is not None:
                    comparison.decoded.append((file.name, *difference))
    return comparison


def compare_pixels(file: Path, decoded: dict[str, Any]) -> tuple[float, int] | None:
    """Return the share of different values, and the largest difference; `None` if the images are equal."""
    image = load_image(file)
    shape = (decoded["height"], decoded["width"], 3)
    pixels = np.frombuffer(base64.b64decode(decoded["rgb"]), np.uint8).reshape(shape)
    difference = np.abs(np.asarray(image).astype(int) - pixels)
    return (float((difference > 0).mean()), int(difference.max())) if difference.any() else None


def main() -> None:
    """Print a report; exit with 1 if tokens differ on the same pixels."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("images", nargs="+", type=Path, help="images to describe")
    parser.add_argument("--model", type=Path, required=True, help="folder of an exported pocket")
    parser.add_argument("--node", default="node", help="path of Node.js")
    options = parser.parse_args()
    comparison = compare(options.model, options.images, options.node)
    print(comparison.to_text())
    sys.exit(bool(comparison.different["Node.js"] or comparison.different["Chromium"]))


if __name__ == "__main__":
    main()
