"""Compare exports of a captioner, an answerer and a matcher with PyTorch on photos, token by token and by their scores.

    openblip export pocket --out fp32;  openblip export pocket --to openvino --out openvino
    openblip export pocket --precision int8 --out int8
    python scripts/export_quality.py --model pocket --exports fp32 openvino --images photos --limit 50
    python scripts/export_quality.py --model pocket --exports fp32 int8 --images photos --captions list.jsonl

Reports, for each export: how many captions (greedy, and with 3 beams) and answers have PyTorch's text; how close the
decision was where a text differs; and the largest difference of match probabilities. With `--captions`, a JSON Lines
file of `{"image": ..., "captions": [...]}` with paths relative to `--images`, also CIDEr with 3 beams, and how many
images ITM matches best with one of their own captions, among those of up to 16 images.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import openblip
from openblip.evaluation.metrics.captions import score
from openblip.export.parity import generate_images
from openblip_portable import Answerer, Captioner, ExportFolder, Matcher

QUESTION = "what color is it?"
TEXTS = ["a cat", "a man in front of a crowd", "two dogs run on the grass", "a plane in the sky"]
GROUP = 16


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--exports", nargs="+", required=True)
    parser.add_argument("--images", type=Path, required=True, help="folder of photos")
    parser.add_argument("--captions", type=Path, help="JSON Lines with the captions of the photos")
    parser.add_argument("--limit", type=int, default=50)
    options = parser.parse_args()
    references = _read_captions(options.captions, options.limit) if options.captions else None
    names = list(references) if references else sorted(path.name for path in options.images.glob("*.jpg"))
    images: list[Any] = [options.images / name for name in names][: options.limit]
    images += generate_images(options.limit - len(images))

    blip = openblip.load(options.model, engine="torch", precision="fp32")
    expected: dict[str, list[Any]] = {
        "greedy": blip.caption(images, num_beams=1),
        "3 beams": blip.caption(images),
        "answers": blip.ask(images, QUESTION),
    }
    probabilities = _probabilities(blip.match(images, TEXTS))
    if references:
        _report_quality("PyTorch", expected["3 beams"], blip.match, images, references)
    for path in options.exports:
        folder = ExportFolder(path)
        print(f"{path}: {folder.runtime}, {folder.precision}, {len(images)} images")
        captioner, matcher = Captioner(folder), Matcher(folder)
        results: dict[str, list[Any]] = {
            "greedy": captioner.caption(images, num_beams=1),
            "3 beams": captioner.caption(images),
            "answers": Answerer(folder).ask(images, QUESTION),
        }
        for name, found in results.items():
            pairs = list(zip(expected[name], found, strict=True))
            different = [(ours, theirs) for ours, theirs in pairs if ours.text != theirs.text]
            margin = max((abs((ours.score or 0) - (theirs.score or 0)) for ours, theirs in different), default=0.0)
            note = f", scores of the others differ by up to {margin:.1e}" if different else ""
            print(f"  {name}: {len(pairs) - len(different)} of {len(pairs)} equal{note}")
        matches = matcher.match(images, TEXTS)
        difference = np.abs(_probabilities(matches) - probabilities)
        same_order = (_probabilities(matches).argsort(1) == probabilities.argsort(1)).all(1).sum()
        print(f"  match: largest difference {difference.max():.1e}; {same_order} of {len(images)} in the same order")
        if references:
            _report_quality(path, results["3 beams"], matcher.match, images, references)


def _read_captions(path: Path, limit: int) -> dict[str, list[str]]:
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:limit]]
    return {record["image"]: record["captions"] for record in records}


def _probabilities(matches: Sequence[Sequence[Any]]) -> Any:
    return np.array([[match.probability for match in row] for row in matches])


def _report_quality(
    name: str,
    captions: Sequence[Any],
    match: Callable[..., Any],
    images: Sequence[Path | Image.Image],
    references: dict[str, list[str]],
) -> None:
    texts = {str(index): caption.text for index, caption in enumerate(captions)}
    truth = {str(index): own for index, own in enumerate(references.values())}
    hits = total = 0
    for start, stop in _groups(len(images)):
        own = [references[key][0] for key in list(references)[start:stop]]
        found = _probabilities(match(list(images[start:stop]), own))
        hits += int((found.argmax(1) == np.arange(len(own))).sum())
        total += len(own)
    cider = score(texts, truth)["CIDEr"] or 0.0
    print(f"  {name}: CIDEr {100 * cider:.1f}; ITM finds {hits} of {total} among {GROUP}")


def _groups(count: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, GROUP):
        yield start, min(start + GROUP, count)


if __name__ == "__main__":
    main()
