"""VQA: the LM loss of each answer, weighted by its share of the human answers (paper section 5.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from openblip.data.tasks.vqa import VqaData
from openblip.engine.eager import EagerSession
from openblip.model.answerer import Answerer
from openblip.preprocess.text import Tokenizer, clean_question
from openblip.training.config.loss import VqaLoss
from openblip.training.objectives.base import (
    PREVIEW_TOKENS,
    Batch,
    ImageBatch,
    Objective,
    PreviewImage,
    generate_texts,
)
from openblip.training.objectives.gather import Gather
from openblip.training.objectives.language import lm_loss, lm_targets

QUESTION_TOKENS = 35


@dataclass(frozen=True, kw_only=True)
class VqaBatch(ImageBatch):
    """Q questions about I images, and A answers to them.

    Attributes:
        pixels: Images (I, 3, S, S).
        ids: Token ids (Q, T) of the questions, first token [ENC].
        mask: Attention mask (Q, T).
        image_index: Image (Q,) of each question; by default Q / I questions per image, in order of images.
        answer_ids: Token ids (A, T') of the answers, first token [DEC].
        answer_mask: Attention mask (A, T').
        question_index: Question (A,) of each answer.
        weights: Share (A,) of each answer among the answers to its question.
    """

    image_index: Tensor | None = None
    answer_ids: Tensor
    answer_mask: Tensor
    question_index: Tensor
    weights: Tensor


class VqaObjective(Objective[Answerer, VqaBatch, VqaLoss, VqaData]):
    """Weighted sum of the answers' losses, divided by the number of questions.

    Args:
        model: The answerer.
        smoothing: Label smoothing.
    """

    batch_class: ClassVar[type[Batch]] = VqaBatch
    has_previews: ClassVar[bool] = True

    def __init__(self, model: Answerer, *, smoothing: float = 0.1) -> None:
        super().__init__(model)
        self.smoothing = smoothing

    @classmethod
    def from_settings(cls, model: Answerer, loss: VqaLoss, data: VqaData, gather: Gather) -> VqaObjective:
        """Build the objective from a recipe's loss options."""
        return cls(model, smoothing=loss.smoothing)

    def forward(self, batch: VqaBatch) -> dict[str, Tensor]:
        """Return the loss `vqa` of one batch."""
        model = self.model
        memory = model.encoder.project(model.encode_image(batch.pixels))
        if batch.image_index is not None:
            memory = memory.select(batch.image_index)
        states = model.encode_question(batch.ids, batch.mask, memory)
        question_states, question_mask = states[batch.question_index], batch.mask[batch.question_index]
        decoded = model.decoder.decode(batch.answer_ids, batch.answer_mask, question_states, question_mask)
        labels = lm_targets(batch.answer_ids, batch.answer_mask)
        losses = lm_loss(decoded, labels, model.to_logits, self.smoothing, reduction="none")  # (A,)
        return {"vqa": (batch.weights * losses).sum() / len(batch.ids)}

    @classmethod
    def describe(
        cls, model: Answerer, tokenizer: Tokenizer, images: Sequence[PreviewImage], prompt: str
    ) -> list[Mapping[str, str]]:
        """Answer the question of each image."""
        pixels = torch.stack([image.pixels for image in images])
        questions = [clean_question(image.question) for image in images]
        encoded = tokenizer.encode(questions, "enc", QUESTION_TOKENS, "longest")
        ids, mask = encoded.ids.to(pixels.device), encoded.mask.to(pixels.device)
        states = model.encode_question(ids, mask, model.encode_image(pixels))
        memory = model.decoder.project(states, mask)
        session = EagerSession(model.decoder, model.lm_head, memory, 1 + PREVIEW_TOKENS)
        answers = generate_texts(session, tokenizer, [tokenizer.dec_id], pixels)
        return [
            {"image": image.name, "question": image.question, "answer": answer}
            for image, answer in zip(images, answers, strict=True)
        ]
