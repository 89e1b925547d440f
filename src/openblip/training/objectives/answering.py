"""VQA: the LM loss of each answer, weighted by its share of the human answers (paper section 5.3)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from openblip.model.answerer import Answerer
from openblip.training.objectives.language import lm_loss, lm_targets


@dataclass(frozen=True, kw_only=True)
class AnsweringBatch:
    """Q questions about I images and A answers to them.

    ``pixels`` (I, 3, S, S); ``ids`` and ``mask`` (Q, T), first token [ENC]; ``image`` (Q,) the image of each question,
    by default Q / I questions per image, side by side; ``answer_ids`` and ``answer_mask`` (A, T'), first token [DEC];
    ``owner`` (A,) the question of each answer; ``weights`` (A,) its share.
    """

    pixels: Tensor
    image: Tensor | None = None
    ids: Tensor
    mask: Tensor
    answer_ids: Tensor
    answer_mask: Tensor
    owner: Tensor
    weights: Tensor


class Answering(nn.Module):
    """Weighted sum of the answers' losses, divided by the number of questions."""

    def __init__(self, model: Answerer, *, smoothing: float = 0.1) -> None:
        super().__init__()
        self.model = model
        self.smoothing = smoothing

    def forward(self, batch: AnsweringBatch) -> dict[str, Tensor]:
        """The loss ``vqa`` of one batch."""
        model = self.model
        memory = model.encoder.project(model.encode_image(batch.pixels))
        if batch.image is not None:
            memory = memory.select(batch.image)
        states = model.encode_question(batch.ids, batch.mask, memory)
        heard, heard_mask = states[batch.owner], batch.mask[batch.owner]
        decoded = model.decoder.decode(batch.answer_ids, batch.answer_mask, heard, heard_mask)
        labels = lm_targets(batch.answer_ids, batch.answer_mask)
        each = lm_loss(decoded, labels, model.to_logits, self.smoothing, reduction="none")
        return {"vqa": (batch.weights * each).sum() / len(batch.ids)}
