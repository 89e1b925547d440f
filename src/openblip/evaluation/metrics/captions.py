"""Caption metrics as the COCO caption evaluation computes them: BLEU-1..4, ROUGE-L, CIDEr, without Java.

The values equal the ones of `pycocoevalcap` 1.2 to 1e-6: same tokens, same order of images, same constants. METEOR and
SPICE exist only as Java programs; they run if they are installed.

Sources: Papineni et al. 2002 (BLEU), Lin 2004 (ROUGE-L), Vedantam et al. 2015 (CIDEr), Chen et al. 2015 (the COCO
evaluation).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Generic

import numpy as np

from openblip.evaluation.metrics.bootstrap import mean_intervals, resample_sums
from openblip.evaluation.metrics.ids import Id, check_ids
from openblip.evaluation.metrics.java import score_with_java
from openblip.evaluation.metrics.ptb import remove_punctuation, tokenize_lines

METRICS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr", "SPICE")
MAX_N = 4  # the longest n-gram

Tokens = list[str]
Ngrams = Counter[tuple[str, ...]]


@dataclass(frozen=True)
class CaptionScores(Generic[Id]):
    """Caption scores on the scale from 0 to 1 (CIDEr may exceed 1); published tables multiply them by 100.

    `scores["CIDEr"]` is short for `scores.corpus["CIDEr"]`.

    Attributes:
        corpus: The value of every metric of `METRICS`; `None` for a metric that was not computed.
        items: The values of each image. ROUGE-L and CIDEr average to the corpus values, BLEU does not.
        missing: Why a metric was not computed, by metric.
        ngrams: The counts behind BLEU of each image.
    """

    corpus: dict[str, float | None]
    items: dict[Id, dict[str, float]]
    missing: dict[str, str] = field(default_factory=dict)
    ngrams: Sequence[_BleuCounts] = field(default=(), repr=False)

    def intervals(self, samples: int = 1000) -> dict[str, tuple[float, float]]:
        """Return the 95 % intervals of all metrics, by a bootstrap over the images.

        CIDEr's word weights are computed from all images.

        Args:
            samples: The number of resamples.

        Returns:
            The lower and the upper end, by metric. Nothing if there are fewer than two images.
        """
        names = [name for name in METRICS if self.corpus[name] is not None and not name.startswith("Bleu")]
        intervals = mean_intervals({name: [item[name] for item in self.items.values()] for name in names}, samples)
        if len(self.ngrams) > 1:
            table = np.array([counts.to_row() for counts in self.ngrams], dtype=np.float64)
            scores = [_BleuCounts.from_row(row).bleu() for row in resample_sums(table, samples).tolist()]
            ends = np.quantile(np.array(scores), [0.025, 0.975], axis=0)
            intervals |= {f"Bleu_{n}": (float(low), float(high)) for n, (low, high) in enumerate(ends.T, 1)}
        return {name: intervals[name] for name in METRICS if name in intervals}

    def __getitem__(self, metric: str) -> float | None:
        """Return the corpus value of a metric."""
        return self.corpus[metric]


def score(
    predictions: Mapping[Id, str], references: Mapping[Id, Sequence[str]], *, java: bool = False
) -> CaptionScores[Id]:
    """Score one caption per image against the reference captions of the image.

    CIDEr weights words by the number of images whose references contain them, so it cannot be compared between
    different sets of images.

    Args:
        predictions: The predicted caption of each image.
        references: The reference captions of each image.
        java: Also compute METEOR and SPICE, with the official Java programs.

    Returns:
        The scores of all images together and of each image.

    Raises:
        EvaluationError: If ids differ, if an image has no references, or if there are no images.
    """
    check_ids(predictions, references)
    hypotheses, targets = tokenize(predictions, references)
    corpus: dict[str, float | None] = dict.fromkeys(METRICS)
    per_image: dict[str, list[float]] = {}
    ngrams = [_BleuCounts.count(*pair) for pair in zip(hypotheses, targets, strict=True)]
    for n, (total, values) in enumerate(_score_bleu(ngrams), 1):
        corpus[f"Bleu_{n}"], per_image[f"Bleu_{n}"] = total, values
    for name, values in (("ROUGE_L", rouge_l(hypotheses, targets)), ("CIDEr", cider(hypotheses, targets))):
        corpus[name], per_image[name] = math.fsum(values) / len(values), values
    missing = {}
    for name in ("METEOR", "SPICE"):
        if not java:
            missing[name] = "computed only on request, by the official Java program"
            continue
        result = score_with_java(name, hypotheses, targets)
        if isinstance(result, str):
            missing[name] = result
        else:
            corpus[name], per_image[name] = result
    items = {key: {name: values[i] for name, values in per_image.items()} for i, key in enumerate(references)}
    return CaptionScores(corpus, items, missing, ngrams)


def tokenize(
    predictions: Mapping[Id, str], references: Mapping[Id, Sequence[str]]
) -> tuple[list[Tokens], list[list[Tokens]]]:
    """Tokenize captions and remove punctuation.

    Args:
        predictions: The predicted caption of each image.
        references: The reference captions of each image.

    Returns:
        The tokens of the predictions and of the references, both in the order of `references`.
    """
    hypotheses = [remove_punctuation(tokens) for tokens in tokenize_lines(predictions[key] for key in references)]
    lines = iter(tokenize_lines(chain.from_iterable(references.values())))
    targets = [[remove_punctuation(next(lines)) for _ in texts] for texts in references.values()]
    return hypotheses, targets


def bleu(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[tuple[float, list[float]]]:
    """Compute BLEU-1 to BLEU-4: clipped n-gram precision with the closest reference length (Papineni et al. 2002).

    Args:
        hypotheses: The tokens of the caption of each image.
        references: The tokens of the reference captions of each image.

    Returns:
        For n from 1 to 4: the score of the corpus, and the score of each image.
    """
    return _score_bleu([_BleuCounts.count(*pair) for pair in zip(hypotheses, references, strict=True)])


def _score_bleu(ngrams: Sequence[_BleuCounts]) -> list[tuple[float, list[float]]]:
    totals = _BleuCounts()
    scores: list[list[float]] = []
    for counts in ngrams:
        scores.append(counts.bleu())
        totals.add(counts)
    return [(total, [image[n] for image in scores]) for n, total in enumerate(totals.bleu())]


@dataclass
class _BleuCounts:
    """The counts behind BLEU: n-grams that match a reference, all n-grams, and lengths."""

    matches: list[int] = field(default_factory=lambda: [0] * MAX_N)
    total: list[int] = field(default_factory=lambda: [0] * MAX_N)
    length: int = 0
    reference_length: int = 0

    @classmethod
    def count(cls, hypothesis: Tokens, references: Sequence[Tokens]) -> _BleuCounts:
        hypothesis = _split_spaces(hypothesis)
        lengths = [len(_split_spaces(reference)) for reference in references]
        limits: Ngrams = Counter()
        for reference in references:
            limits |= _ngrams(reference)
        matches = [0] * MAX_N
        for ngram, count in _ngrams(hypothesis).items():
            matches[len(ngram) - 1] += min(count, limits[ngram])
        total = [max(0, len(hypothesis) - n) for n in range(MAX_N)]
        closest = min((abs(length - len(hypothesis)), length) for length in lengths)[1]
        return cls(matches, total, len(hypothesis), closest)

    def to_row(self) -> list[float]:
        return [*self.matches, *self.total, self.length, self.reference_length]

    @classmethod
    def from_row(cls, row: Sequence[float]) -> _BleuCounts:
        counts = [round(value) for value in row]
        return cls(counts[:MAX_N], counts[MAX_N : 2 * MAX_N], counts[-2], counts[-1])

    def add(self, counts: _BleuCounts) -> None:
        self.matches = [a + b for a, b in zip(self.matches, counts.matches, strict=True)]
        self.total = [a + b for a, b in zip(self.total, counts.total, strict=True)]
        self.length += counts.length
        self.reference_length += counts.reference_length

    def bleu(self) -> list[float]:
        # The two constants of the original avoid divisions by zero.
        tiny, small = 1e-15, 1e-9
        ratio = (self.length + tiny) / (self.reference_length + small)
        brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
        scores, product = [], 1.0
        for n in range(MAX_N):
            product *= (self.matches[n] + tiny) / (self.total[n] + small)
            scores.append(product ** (1 / (n + 1)) * brevity)
        return scores


def rouge_l(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[float]:
    """Compute ROUGE-L (Lin 2004): F with beta 1.2 of the best precision and the best recall over all references.

    Args:
        hypotheses: The tokens of the caption of each image.
        references: The tokens of the reference captions of each image.

    Returns:
        The score of each image.
    """
    return [_rouge_l(hypothesis, targets) for hypothesis, targets in zip(hypotheses, references, strict=True)]


def _rouge_l(hypothesis: Tokens, references: Sequence[Tokens]) -> float:
    hypothesis = hypothesis or [""]  # the original splits an empty caption into one empty word
    targets = [reference or [""] for reference in references]
    common = [_common_subsequence_length(hypothesis, target) for target in targets]
    precision = max(common) / len(hypothesis)
    recall = max(length / len(target) for length, target in zip(common, targets, strict=True))
    if not precision or not recall:
        return 0.0
    beta_squared = 1.2**2
    return (1 + beta_squared) * precision * recall / (recall + beta_squared * precision)


def _common_subsequence_length(a: Tokens, b: Tokens) -> int:
    """Return the length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for j, candidate in enumerate(b, 1):
            above = row[j]
            row[j] = diagonal + 1 if word == candidate else max(above, row[j - 1])
            diagonal = above
    return row[-1]


def cider(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[float]:
    """Compute CIDEr in the form that COCO reports: CIDEr-D without stemming (Vedantam et al. 2015).

    Captions become TF-IDF vectors of n-grams; the weight of an n-gram falls with the number of images whose references
    contain it. The score is the clipped cosine with each reference, damped by the difference in length, averaged over
    n = 1..4 and the references, times 10.

    Args:
        hypotheses: The tokens of the caption of each image.
        references: The tokens of the reference captions of each image.

    Returns:
        The score of each image.
    """
    scorer = CiderScorer.fit(references)
    return [scorer.score(hypothesis, targets) for hypothesis, targets in zip(hypotheses, references, strict=True)]


@dataclass(frozen=True)
class CiderScorer:
    """CIDEr with the n-gram weights of one set of images, for captions of these or of other images.

    Attributes:
        frequency: Number of images whose references contain an n-gram.
        log_images: Logarithm of the number of images.
    """

    frequency: Ngrams
    log_images: float

    @classmethod
    def fit(cls, references: Sequence[Sequence[Tokens]]) -> CiderScorer:
        """Count the n-grams in the references of each image."""
        ngrams_by_image = ({ngram for text in texts for ngram in _ngrams(text)} for texts in references)
        return cls(Counter(chain.from_iterable(ngrams_by_image)), math.log(len(references)))

    def score(self, hypothesis: Tokens, references: Sequence[Tokens]) -> float:
        """Return the CIDEr of one caption against the references of its image."""
        vector = self._weight(hypothesis)
        similarities = [vector.similarity(self._weight(reference)) for reference in references]
        return 10 * math.fsum(similarities) / len(similarities)

    def _weight(self, tokens: Tokens) -> _TfIdf:
        return _TfIdf.weight(_ngrams(tokens), self.frequency, self.log_images)


@dataclass(frozen=True)
class _TfIdf:
    """The TF-IDF vectors of a caption, one per n, with their norms; the length is counted in bigrams."""

    vectors: list[dict[tuple[str, ...], float]]
    norms: list[float]
    length: int

    @classmethod
    def weight(cls, counts: Ngrams, frequency: Counter[tuple[str, ...]], log_images: float) -> _TfIdf:
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(MAX_N)]
        length = 0
        for ngram, count in counts.items():
            vectors[len(ngram) - 1][ngram] = count * (log_images - math.log(max(1, frequency[ngram])))
            if len(ngram) == 2:
                length += count
        return cls(vectors, [math.sqrt(sum(w * w for w in vector.values())) for vector in vectors], length)

    def similarity(self, target: _TfIdf, sigma: float = 6.0) -> float:
        total = 0.0
        for n in range(MAX_N):
            weights, targets, norm = self.vectors[n], target.vectors[n], self.norms[n] * target.norms[n]
            dot = sum(
                min(weight, targets[ngram]) * targets[ngram] for ngram, weight in weights.items() if ngram in targets
            )
            total += dot / norm if norm else dot
        return total / MAX_N * math.exp(-((self.length - target.length) ** 2) / (2 * sigma**2))


def _ngrams(caption: Tokens) -> Ngrams:
    tokens = _split_spaces(caption)
    return Counter(tuple(tokens[i : i + n]) for n in range(1, MAX_N + 1) for i in range(len(tokens) - n + 1))


def _split_spaces(caption: Tokens) -> Tokens:
    """Split tokens that contain a space ("22 3/4"), as BLEU and CIDEr do; ROUGE counts such a token as one word."""
    if not any("\u00a0" in token for token in caption):
        return caption
    return [word for token in caption for word in token.split()]
