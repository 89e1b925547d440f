"""List the photos that `pocket` is trained on and a second set of photos that it is judged by.

    python scripts/pocket_data.py --data DATA --samples DATA/samples examples/photos --out DATA/pocket

`train.jsonl` holds every photo of DATA/train and DATA/more with its captions, questions and boxes. The class names of
photos without captions become short texts ("a golden retriever", "a dog"). `everyday_val.jsonl` holds 300 photos of
DATA/more with five captions, chosen by a hash of their names, so the choice is the same everywhere. Photos that are too
like one of these, of DATA/val or of the `--samples` are left out of training (see scripts/pocket_leakage.py).
`captioned.jsonl` is the part of `train.jsonl` with human captions, `boxed.jsonl` the part with human boxes. Image paths
are relative to DATA.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pocket_leakage import find_pairs, sketch_all

from openblip.data.images import FileImage, ImageRef, MemberImage
from openblip.data.sources.tars import open_tar

HELD_OUT = 300
REFERENCES = 5
FIELDS = ("captions", "alt", "qa", "refs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/, val/ and more/ tars")
    parser.add_argument("--samples", type=Path, nargs="*", default=[], help="folders of photos that are looked at")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the lists to")
    options = parser.parse_args()
    rows = [*read_rows(options.data, "train"), *read_rows(options.data, "more")]
    held_out = choose_held_out(rows)
    judged = [*(row["image"] for row in read_rows(options.data, "val")), *sorted(held_out)]
    pictures = [*(open_member(options.data, image) for image in judged), *list_files(options.samples)]
    candidates = [row for row in rows if row["image"] not in held_out]
    alike = find_alike([open_member(options.data, row["image"]) for row in candidates], pictures)
    train = [row for number, row in enumerate(candidates) if number not in alike]
    print(f"{len(alike)} photos are too like a photo that pocket is judged by")
    options.out.mkdir(parents=True, exist_ok=True)
    write_rows(options.out / "train.jsonl", train)
    write_rows(options.out / "captioned.jsonl", [row for row in train if row["human"]])
    write_rows(options.out / "boxed.jsonl", [row for row in train if any(not ref.get("auto") for ref in row["refs"])])
    write_rows(options.out / "everyday_val.jsonl", [row for row in rows if row["image"] in held_out])


def read_rows(data: Path, part: str) -> Iterator[dict[str, Any]]:
    """Yield a row for every photo of one folder: place, texts, questions, boxes, and whether people wrote the texts."""
    for path in sorted((data / part).glob("*.tar")):
        table = open_tar(str(path), keep=FIELDS)
        for index in range(len(table)):
            record = table[index]
            captions = record.extra.get("captions") or []
            yield {
                "image": record.images[0].address.removeprefix(f"{data}/"),
                "captions": captions or name_texts(record.extra.get("alt") or []),
                "qa": record.extra.get("qa") or [],
                "refs": record.extra.get("refs") or [],
                "human": bool(captions),
            }


def name_texts(texts: Iterable[str]) -> list[str]:
    """Return class names as people would caption them: without "a photo of" and without "a kind of".

    >>> name_texts(["a photo of a beagle", "a photo of a dog", "a photo of a beagle, a kind of dog"])
    ['a beagle', 'a dog']
    """
    names = [re.sub(r"^a photo of ", "", text) for text in texts if ", a kind of " not in text]
    return list(dict.fromkeys(names))


def choose_held_out(rows: Sequence[dict[str, Any]]) -> set[str]:
    """Return the images of the second validation set."""
    everyday = [row for row in rows if row["image"].startswith("more/") and row["human"]]
    eligible = [row["image"] for row in everyday if len(row["captions"]) >= REFERENCES]
    ranked = sorted(eligible, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return set(ranked[:HELD_OUT])


def open_member(data: Path, image: str) -> ImageRef:
    """Return the photo of a row."""
    tar, _, member = image.partition(":")
    return MemberImage(str(data / tar), member)


def list_files(folders: Iterable[Path]) -> list[ImageRef]:
    """Return the photos of folders."""
    return [FileImage(str(path)) for folder in folders for path in sorted(folder.glob("*.jpg"))]


def find_alike(train: Sequence[ImageRef], judged: Sequence[ImageRef]) -> set[int]:
    """Return the numbers of the training photos that are too like a photo that the model is judged by."""
    return {number for number, _, _ in find_pairs(sketch_all(train), sketch_all(judged))}


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as JSON Lines and print how many there are."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    captions = sum(len(row["captions"]) for row in rows)
    print(f"{path}: {len(rows)} photos, {captions} texts, {sum(row['human'] for row in rows)} with human captions")


if __name__ == "__main__":
    main()
