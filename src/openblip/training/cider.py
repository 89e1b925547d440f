"""CIDEr during training: as the reward of sampled captions, and as a quick measure on validation images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random

import numpy as np
import torch

from openblip.data.augment import Transform
from openblip.data.collate import normalize_batch
from openblip.data.records import Record
from openblip.data.views import ViewCache, read_view
from openblip.errors import TrainingError
from openblip.evaluation.metrics.captions import CiderScorer, cider
from openblip.model.captioner import Captioner
from openblip.preprocess.settings import ImageSettings
from openblip.preprocess.text import Tokenizer, clean_caption
from openblip.training.objectives.base import generate_captions

_BATCH_SIZE = 32
_END = "[SEP]"


class CiderReward:
    """CIDEr of token ids, in words, with the n-gram weights of a set of captions.

    The end of a caption counts as a word. Otherwise training would learn to stop after "in front of a", because the
    next word would more often cost than earn reward.

    Args:
        tokenizer: Tokenizer of the model.
        max_words: Words kept of a caption.
    """

    def __init__(self, tokenizer: Tokenizer, max_words: int) -> None:
        self.tokenizer, self.max_words = tokenizer, max_words
        self.scorer: CiderScorer | None = None

    def fit(self, captions: Iterable[Sequence[str]]) -> None:
        """Count the n-grams in the captions of each training image."""
        references = [
            [[*clean_caption(text, self.max_words).split(), _END] for text in texts] for texts in captions if texts
        ]
        self.scorer = CiderScorer.fit(references)

    def __call__(self, ids: Sequence[int], references: Sequence[Sequence[int]]) -> float:
        """Return the CIDEr of one caption against the captions of its image; complete ones end with [SEP]."""
        if self.scorer is None:
            raise TrainingError("the reward must be fitted to the training captions first")
        return self.scorer.score(self._words(ids), [self._words(reference) for reference in references])

    def _words(self, ids: Sequence[int]) -> list[str]:
        words = self.tokenizer.decode(ids).split()
        is_complete = len(ids) > 0 and ids[-1] == self.tokenizer.sep_id
        return [*words, _END] if is_complete else words


@torch.no_grad()
def measure_cider(
    model: Captioner,
    tokenizer: Tokenizer,
    records: Sequence[Record],
    transform: Transform | ViewCache,
    image: ImageSettings,
    prompt: str,
    device: torch.device,
) -> float:
    """Caption images with 3 beams and return their CIDEr, on words without punctuation.

    Args:
        model: The captioner, in evaluation mode.
        tokenizer: Its tokenizer.
        records: Images with captions.
        transform: Makes pixels of an image, or reads its cached features.
        image: Mean and standard deviation of the pixels.
        prompt: Text that every caption starts with.
        device: Device of the model.
    """
    hypotheses: list[list[str]] = []
    for start in range(0, len(records), _BATCH_SIZE):
        batch = records[start : start + _BATCH_SIZE]
        images = np.stack([read_view(transform, record.images[0], Random(0)) for record in batch])
        pixels = normalize_batch({"pixels": torch.from_numpy(images)}, image, device)["pixels"]
        captions = generate_captions(model, model.decoder, tokenizer, pixels, prompt)
        hypotheses += [text.split() for text in captions]
    references = [[clean_caption(text).split() for text in record.captions] for record in records]
    return sum(cider(hypotheses, references)) / len(records)
