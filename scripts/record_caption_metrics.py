"""Record the results of the original caption metrics, and compare ours with them. Needs Java and `pip install .[java]`.

    python scripts/record_caption_metrics.py tokens tests/evaluation/ptb_tokens.jsonl
    python scripts/record_caption_metrics.py scores tests/evaluation/caption_scores.json
    python scripts/record_caption_metrics.py characters src/openblip/evaluation/metrics/ptb_characters.py
    python scripts/record_caption_metrics.py mixtures --seed 7 --count 20000
    python scripts/record_caption_metrics.py check captions_val2017.json

`tokens` and `scores` write the files that the tests compare with, and `characters` the table of the tokenizer.
`mixtures` prints the random strings whose tokens differ. `check` takes a file of captions in COCO's format and scores
the first caption of each image against the others, with the original metrics and with ours.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import tempfile
import textwrap
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from openblip.evaluation.metrics import captions
from openblip.evaluation.metrics.ptb import tokenize_lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    functions = {
        "tokens": record_tokens,
        "scores": record_scores,
        "characters": record_characters,
        "check": compare_metrics,
    }
    for name, run in functions.items():
        command = commands.add_parser(name)
        command.add_argument("file", type=Path)
        command.set_defaults(run=lambda args, run=run: run(args.file))
    command = commands.add_parser("mixtures")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--count", type=int, default=20_000)
    command.set_defaults(run=lambda args: compare_mixtures(args.seed, args.count))
    args = parser.parse_args()
    args.run(args)


def record_tokens(out: Path) -> None:
    """Record the original tokens of hard strings: each piece in a few templates, then random mixtures."""
    texts = [template.format(piece) for piece in PIECES for template in TEMPLATES]
    texts += mix_pieces(random.Random(0), 1000)
    rows = zip(texts, tokenize_original(texts), strict=True)
    lines = [json.dumps([text, " ".join(tokens)], ensure_ascii=False) for text, tokens in rows]
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{out}: {len(lines)} strings")


def record_scores(out: Path) -> None:
    """Record the original scores of a small set of captions of our own."""
    predictions = {key: texts[0] for key, texts in CAPTIONS.items()}
    references = {key: texts[1:] for key, texts in CAPTIONS.items()}
    corpus, items = score_original(predictions, references)
    content = {"predictions": predictions, "references": references, "corpus": corpus, "items": items}
    out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(out, corpus)


def record_characters(out: Path) -> None:
    """Record which characters beyond ASCII are part of words in the original, and which are tokens of their own."""
    codes = [
        code for code in range(0x80, 0x10000) if not 0xD800 <= code < 0xE000 and code not in (0x85, 0x2028, 0x2029)
    ]
    letters, symbols = [], []
    for code, tokens in zip(codes, tokenize_original([f"x{chr(code)}x" for code in codes]), strict=True):
        lower = chr(code).lower()
        if tokens == [f"x{lower}x"] and code not in HYPHENS:
            letters.append(code)
        elif tokens == ["x", lower, "x"]:
            symbols.append(code)
    text = out.read_text(encoding="utf-8")
    head = text[: text.index("LETTERS = ")]
    tables = [format_table("LETTERS", letters), format_table("SYMBOLS", symbols)]
    out.write_text(head + "\n".join(tables), encoding="utf-8")


def compare_mixtures(seed: int, count: int) -> None:
    """Print the random strings whose tokens differ from the original tokens."""
    texts = mix_pieces(random.Random(seed), count)
    differing = 0
    for text, theirs, ours in zip(texts, tokenize_original(texts), tokenize_lines(texts), strict=True):
        if theirs != ours:
            differing += 1
            print(repr(text), "\n  original", theirs, "\n  ours    ", ours)
    print(f"{differing} of {count} differ")


def compare_metrics(file: Path) -> None:
    """Compare tokens and scores on a file of captions in COCO's format."""
    data = json.loads(file.read_text(encoding="utf-8"))
    texts = [annotation["caption"].replace("\n", " ") for annotation in data["annotations"]]
    differing = sum(
        theirs != ours for theirs, ours in zip(tokenize_original(texts), tokenize_lines(texts), strict=True)
    )
    print(f"tokens: {differing} of {len(texts)} captions differ")
    by_image: dict[int, list[str]] = {image["id"]: [] for image in data["images"]}
    for annotation in data["annotations"]:
        by_image[annotation["image_id"]].append(annotation["caption"])
    predictions = {key: texts[0] for key, texts in by_image.items()}
    references = {key: texts[1:5] for key, texts in by_image.items()}
    start = time.perf_counter()
    scores = captions.score(predictions, references)
    print(f"ours took {time.perf_counter() - start:.1f} s for {len(predictions)} images")
    corpus, items = score_original(predictions, references)
    for name, theirs in corpus.items():
        ours = scores[name] or 0.0
        largest = max(abs(items[key][name] - scores.items[key][name]) for key in items)
        difference = f"differs {abs(theirs - ours):.1e}, of an image {largest:.1e}"
        print(f"{name:8} original {theirs:.12f} ours {ours:.12f} {difference}")


def tokenize_original(texts: Sequence[str]) -> list[list[str]]:
    """Tokenize texts, one per line, by the original Java program."""
    spec = find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("pip install pycocoevalcap first")
    jar = Path(spec.submodule_search_locations[0]) / "tokenizer/stanford-corenlp-3.4.1.jar"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "texts"
        file.write_text("\n".join(texts), encoding="utf-8")
        command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
        process = subprocess.run([*command, str(file)], capture_output=True, check=True)
    lines = process.stdout.decode().split("\n")[: len(texts)]
    assert len(lines) == len(texts), "texts must not contain line breaks"
    return [line.split(" ") if line else [] for line in lines]


def score_original(
    predictions: dict[Any, str], references: dict[Any, list[str]]
) -> tuple[dict[str, float], dict[Any, Any]]:
    """Return the original scores of the corpus and of each image."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenizer = PTBTokenizer()
    reference_tokens = tokenizer.tokenize(
        {key: [{"caption": text} for text in texts] for key, texts in references.items()}
    )
    tokens = tokenizer.tokenize({key: [{"caption": text}] for key, text in predictions.items()})
    corpus: dict[str, float] = {}
    items: dict[Any, dict[str, float]] = {key: {} for key in references}
    bleu, bleu_items = Bleu(4).compute_score(reference_tokens, tokens, verbose=0)
    rouge, rouge_items = Rouge().compute_score(reference_tokens, tokens)
    cider, cider_items = Cider().compute_score(reference_tokens, tokens)
    names = ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"]
    item_scores = [*bleu_items, rouge_items, cider_items]
    for name, value, values in zip(names, [*bleu, rouge, cider], item_scores, strict=True):
        corpus[name] = float(value)
        for key, item_value in zip(reference_tokens, values, strict=True):
            items[key][name] = float(item_value)
    return corpus, items


def mix_pieces(rng: random.Random, count: int) -> list[str]:
    """Return random sentences of hard pieces and plain words, some glued together."""
    return [draw_sentence(rng) for _ in range(count)]


def draw_sentence(rng: random.Random) -> str:
    wild = rng.random() < 0.3
    parts = [rng.choice(PIECES if rng.random() < (0.9 if wild else 0.5) else WORDS) for _ in range(rng.randint(1, 8))]
    text = parts[0]
    for part in parts[1:]:
        glue = " " if rng.random() < (0.6 if wild else 0.93) else rng.choice(["", "  ", "\t"])
        text += glue + part
    return text + (rng.choice([".", " .", "!", "?", " ", ". "]) if rng.random() < 0.3 else "")


def format_table(name: str, codes: list[int]) -> str:
    ranges: list[list[int]] = []
    for code in codes:
        if ranges and code == ranges[-1][1] + 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    text = " ".join(f"{first:x}" if first == last else f"{first:x}-{last:x}" for first, last in ranges)
    lines = "\n".join(f'    "{line} "' for line in textwrap.wrap(text, 108))
    return f"{name} = (\n{lines}\n)\n"


HYPHENS = (0x58A, 0x2010, 0x2011)  # they join words, but are not part of one
TEMPLATES = (
    "{0}",
    "a dog {0} on the street",
    "It reads {0}. The dog",
    "a sign for ({0}), \"{0}\" and '{0}' .",
    "x{0} {0}y",
    "{0}'s A {0}",
)
PLAIN = (
    "a the man woman dog cat on in with of two red The A It is He street sign that reads says Big I X and to In s n t d"
)
WORDS = PLAIN.split()
PIECES = Path(__file__).with_name("caption_pieces.txt").read_text(encoding="utf-8").split()
CAPTIONS = {
    1: [
        "a man riding a wave on top of a surfboard",
        "A man is riding a wave on a surfboard.",
        "A surfer rides a large wave in the ocean.",
        "the man isn't falling off his surf-board",
    ],
    2: [
        "a street sign that says st . louis ave",
        'A sign reads "St. Louis Ave." and 22 3/4 St.',
        "Street signs (two of them) at the corner of 8th Ave. & Main Rd.",
    ],
    3: ["a cat", "A black-and-white cat's asleep on the couch; it cannot be woken.", "cat", "A cat, a cat, a cat!"],
    4: ["a group of people standing around a group of people", "A crowd of people.", "People standing around a table"],
    5: ["", "An empty room.", "Nothing"],
    6: ["zebras zebras zebras grazing", "Two zebras graze in a field", "zebras grazing near trees"],
    7: ["café with a $5 menu 😀", "A café's menu costs $5.00 in the U.S.", "menu of a cafe, 5 dollars"],
    8: ["the only reference is equal", "The only reference is equal."],
}

if __name__ == "__main__":
    main()
