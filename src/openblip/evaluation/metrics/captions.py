"""Caption metrics as the COCO caption evaluation computes them: BLEU-1..4, ROUGE-L, CIDEr; no Java.

The numbers are those of ``pycocoevalcap`` 1.2 to 1e-6: same tokens, same order of images, same constants. METEOR and
SPICE exist only as Java programs: :mod:`openblip.evaluation.metrics.java` runs them where they are installed.

Sources: Papineni et al. 2002 (BLEU), Lin 2004 (ROUGE-L), Vedantam et al. 2015 (CIDEr), Chen et al. 2015 (how COCO
puts them together).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from openblip.evaluation.metrics.ids import check_ids
from openblip.evaluation.metrics.java import official
from openblip.evaluation.metrics.ptb import tokenize_lines, words

METRICS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr", "SPICE")
N = 4  # the longest n-gram

Caption = list[str]  # the tokens of one caption
Ngrams = Counter[tuple[str, ...]]


@dataclass(frozen=True)
class CaptionScores:
    """What captions score, on the 0-1 scale (CIDEr may exceed 1); tables multiply by 100.

    ``corpus`` has every metric's number, ``None`` for one that was not computed, and ``missing`` says why. ``items``
    has the numbers of each image alone; those of ROUGE-L and CIDEr average to the corpus' own, those of BLEU do not.
    """

    corpus: dict[str, float | None]
    items: dict[Any, dict[str, float]]
    missing: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, metric: str) -> float | None:
        return self.corpus[metric]


def score(
    predictions: Mapping[Any, str], references: Mapping[Any, Sequence[str]], *, java: bool = False
) -> CaptionScores:
    """Score one caption per image against the image's references.

    Both map an image's id to its text(s); every id of ``references`` needs a prediction. ``java`` asks for METEOR and
    SPICE too, from the official programs. CIDEr weighs words by how many of these images' references hold them, so it
    cannot be compared across different sets of images.

    Raises :class:`EvaluationError` for a missing or unknown id, an image without references, or no images at all.
    """
    check_ids(predictions, references)
    hypotheses, targets = tokenized(predictions, references)
    per_item: dict[str, list[float]] = {}
    corpus: dict[str, float | None] = dict.fromkeys(METRICS)
    for n, (whole, each) in enumerate(bleu(hypotheses, targets), 1):
        corpus[f"Bleu_{n}"], per_item[f"Bleu_{n}"] = whole, each
    for name, each in (("ROUGE_L", rouge_l(hypotheses, targets)), ("CIDEr", cider(hypotheses, targets))):
        corpus[name], per_item[name] = math.fsum(each) / len(each), each
    missing = {}
    for name in ("METEOR", "SPICE"):
        if not java:
            missing[name] = "computed only on request, by the official Java program"
            continue
        answer = official(name, hypotheses, targets)
        if isinstance(answer, str):
            missing[name] = answer
        else:
            corpus[name], per_item[name] = answer
    items = {key: {name: each[i] for name, each in per_item.items()} for i, key in enumerate(references)}
    return CaptionScores(corpus, items, missing)


def tokenized(
    predictions: Mapping[Any, str], references: Mapping[Any, Sequence[str]]
) -> tuple[list[Caption], list[list[Caption]]]:
    """Predictions and references as tokens without punctuation, in the order of ``references``."""
    hypotheses = [words(tokens) for tokens in tokenize_lines(predictions[key] for key in references)]
    flat = iter(tokenize_lines(chain.from_iterable(references.values())))
    return hypotheses, [[words(next(flat)) for _ in texts] for texts in references.values()]


def bleu(hypotheses: Sequence[Caption], references: Sequence[Sequence[Caption]]) -> list[tuple[float, list[float]]]:
    """BLEU-1..4 of the corpus and of each image: clipped n-gram precision, closest reference length."""
    totals = _Matches()
    each: list[list[float]] = []
    for hypothesis, targets in zip(hypotheses, references, strict=True):
        one = _Matches.of(hypothesis, targets)
        each.append(one.bleu())
        totals.add(one)
    return [(whole, [item[k] for item in each]) for k, whole in enumerate(totals.bleu())]


@dataclass
class _Matches:
    """What BLEU counts: n-grams found in a reference, n-grams in all, and lengths."""

    found: list[int] = field(default_factory=lambda: [0] * N)
    total: list[int] = field(default_factory=lambda: [0] * N)
    length: int = 0
    target_length: int = 0

    @classmethod
    def of(cls, hypothesis: Caption, references: Sequence[Caption]) -> _Matches:
        hypothesis = _bare(hypothesis)
        lengths = [len(_bare(reference)) for reference in references]
        most: Ngrams = Counter()
        for reference in references:
            most |= _ngrams(reference)
        found = [0] * N
        for ngram, count in _ngrams(hypothesis).items():
            found[len(ngram) - 1] += min(count, most[ngram])
        total = [max(0, len(hypothesis) - k) for k in range(N)]
        closest = min((abs(length - len(hypothesis)), length) for length in lengths)[1]
        return cls(found, total, len(hypothesis), closest)

    def add(self, other: _Matches) -> None:
        self.found = [a + b for a, b in zip(self.found, other.found, strict=True)]
        self.total = [a + b for a, b in zip(self.total, other.total, strict=True)]
        self.length += other.length
        self.target_length += other.target_length

    def bleu(self) -> list[float]:
        # The two constants are the original's: they keep zeros from being divided by, and nothing else.
        tiny, small = 1e-15, 1e-9
        ratio = (self.length + tiny) / (self.target_length + small)
        brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
        scores, product = [], 1.0
        for k in range(N):
            product *= (self.found[k] + tiny) / (self.total[k] + small)
            scores.append(product ** (1 / (k + 1)) * brevity)
        return scores


def rouge_l(hypotheses: Sequence[Caption], references: Sequence[Sequence[Caption]]) -> list[float]:
    """ROUGE-L of each image: F with beta 1.2 of the best precision and the best recall, each over all references."""
    return [_rouge(hypothesis, targets) for hypothesis, targets in zip(hypotheses, references, strict=True)]


def _rouge(hypothesis: Caption, references: Sequence[Caption]) -> float:
    hypothesis = hypothesis or [""]  # an empty caption is one empty word to the original
    targets = [reference or [""] for reference in references]
    common = [_longest_common(hypothesis, target) for target in targets]
    precision = max(common) / len(hypothesis)
    recall = max(n / len(target) for n, target in zip(common, targets, strict=True))
    if not precision or not recall:
        return 0.0
    square = 1.2**2
    return (1 + square) * precision * recall / (recall + square * precision)


def _longest_common(left: Caption, right: Caption) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for j, other in enumerate(right, 1):
            above = row[j]
            row[j] = diagonal + 1 if word == other else max(above, row[j - 1])
            diagonal = above
    return row[-1]


def cider(hypotheses: Sequence[Caption], references: Sequence[Sequence[Caption]]) -> list[float]:
    """CIDEr of each image in the form that COCO reports, CIDEr-D without stemming.

    TF-IDF vectors of n-grams, where an n-gram's weight falls with the number of images whose references hold it;
    clipped cosine with each reference, damped by the difference in length; mean over n = 1..4 and references, times 10.
    """
    log_images = math.log(len(references))
    held = ({ngram for text in texts for ngram in _ngrams(text)} for texts in references)
    frequency = Counter(chain.from_iterable(held))
    scores = []
    for hypothesis, targets in zip(hypotheses, references, strict=True):
        own = _Weighted.of(_ngrams(hypothesis), frequency, log_images)
        found = [own.similarity(_Weighted.of(_ngrams(target), frequency, log_images)) for target in targets]
        scores.append(10 * math.fsum(found) / len(found))
    return scores


@dataclass(frozen=True)
class _Weighted:
    """The TF-IDF vectors of a caption, one per n, with their norms; its length counted in bigrams."""

    vectors: list[dict[tuple[str, ...], float]]
    norms: list[float]
    length: int

    @classmethod
    def of(cls, counts: Ngrams, frequency: Counter[tuple[str, ...]], log_images: float) -> _Weighted:
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(N)]
        length = 0
        for ngram, count in counts.items():
            vectors[len(ngram) - 1][ngram] = count * (log_images - math.log(max(1, frequency[ngram])))
            if len(ngram) == 2:
                length += count
        return cls(vectors, [math.sqrt(sum(w * w for w in vector.values())) for vector in vectors], length)

    def similarity(self, target: _Weighted, sigma: float = 6.0) -> float:
        total = 0.0
        for n in range(N):
            own, other, norm = self.vectors[n], target.vectors[n], self.norms[n] * target.norms[n]
            dot = sum(min(weight, other[ngram]) * other[ngram] for ngram, weight in own.items() if ngram in other)
            total += dot / norm if norm else dot
        return total / N * math.exp(-((self.length - target.length) ** 2) / (2 * sigma**2))


def _ngrams(caption: Caption) -> Ngrams:
    tokens = _bare(caption)
    return Counter(tuple(tokens[i : i + n]) for n in range(1, N + 1) for i in range(len(tokens) - n + 1))


def _bare(caption: Caption) -> Caption:
    """A caption as BLEU and CIDEr see it: tokens with a space inside ("22 3/4") are several. ROUGE sees one."""
    return (
        [part for token in caption for part in token.split()]
        if any("\u00a0" in token for token in caption)
        else caption
    )
