"""Captioning: the LM loss of captions after a prompt that is given, not learned (paper section 5.2)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from openblip.model.captioner import Captioner
from openblip.training.objectives.gathering import Gather, Scope
from openblip.training.objectives.language import lm_loss, lm_targets


@dataclass(frozen=True, kw_only=True)
class CaptioningBatch:
    """C captions of I images, each of which is encoded once.

    ``pixels`` (I, 3, S, S); ``ids`` and ``mask`` (C, T): [DEC], the prompt, the caption, [SEP]. ``image`` (C,) is the
    image of each caption; without it every image has C / I captions, side by side.
    """

    pixels: Tensor
    ids: Tensor
    mask: Tensor
    image: Tensor | None = None


class Captioning(nn.Module):
    """Mean cross-entropy over the tokens after the prompt, [SEP] included.

    ``prompt_length`` counts the tokens that are given, [DEC] among them: 4 for "a picture of ", 1 for no prompt.
    ``token_mean`` averages over the tokens of this process (as published) or of all. Smoothing is 0.1 in all published
    code but transformers', where it is 0.
    """

    def __init__(
        self,
        model: Captioner,
        *,
        prompt_length: int,
        smoothing: float = 0.1,
        token_mean: Scope = "rank",
        gather: Gather | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.prompt_length = prompt_length
        self.smoothing = smoothing
        self.gather = gather if gather is not None and token_mean == "all" else Gather()

    def forward(self, batch: CaptioningBatch) -> dict[str, Tensor]:
        """The loss ``lm`` of one batch; 0 if no caption has a token to score."""
        model = self.model
        memory = model.decoder.project(model.encode_image(batch.pixels))
        if batch.image is not None:
            memory = memory.select(batch.image)
        states = model.decoder.decode(batch.ids, batch.mask, memory)
        labels = lm_targets(batch.ids, batch.mask, self.prompt_length)
        return {"lm": lm_loss(states, labels, model.to_logits, self.smoothing, gather=self.gather)}
