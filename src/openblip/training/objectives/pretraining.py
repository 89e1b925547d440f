"""Pretraining: ITC + ITM + LM with equal weights (paper section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from openblip.model.pretrainer import Pretrainer
from openblip.training.objectives.contrastive import ContrastiveObjective, Features
from openblip.training.objectives.gathering import Gather, Scope
from openblip.training.objectives.language import lm_loss, lm_targets, with_first


@dataclass(frozen=True, kw_only=True)
class PretrainingBatch:
    """B images and their texts.

    ``pixels`` (B, 3, S, S); ``ids`` and ``mask`` (B, T), first token [CLS], one text per image for ITC and ITM.
    ``lm_ids`` and ``lm_mask`` (B * n, T'), first token [DEC]: n texts per image for LM, an image's texts side by side;
    by default the same texts as ``ids``.
    """

    pixels: Tensor
    ids: Tensor
    mask: Tensor
    lm_ids: Tensor | None = None
    lm_mask: Tensor | None = None


class Pretraining(ContrastiveObjective):
    """The objective, its momentum twin and its queues; keyword arguments are those of the base and these.

    ``smoothing`` is the LM loss's. ``token_mean`` averages it over the tokens of this process (as published: texts of
    processes with fewer tokens weigh more) or of all.
    """

    model: Pretrainer

    def __init__(self, model: Pretrainer, *, smoothing: float = 0.1, token_mean: Scope = "rank", **base: Any) -> None:
        super().__init__(model, **base)
        self.smoothing = smoothing
        self.lm_gather = self.gather if token_mean == "all" else Gather()

    def forward(self, batch: PretrainingBatch, alpha: float = 0.4) -> dict[str, Tensor]:
        """Losses ``itc``, ``itm`` and ``lm`` of one batch; ``alpha`` is the weight of the momentum targets.

        In training mode a call has side effects: the temperature is clamped to [0.001, 0.5], the twin moves, the queues
        advance. In evaluation mode it has none.
        """
        model, text = self.model, self.model.config.text
        tokens = model.encode_image(batch.pixels)
        features = self.features(batch.pixels, tokens, batch.ids, batch.mask)
        pairs = self.gather.places(batch.ids)
        itc = self.itc(features, pairs, alpha)
        # The encoder's and the decoder's cross-attention are one, so the image is projected once for ITM and LM.
        memory = model.text.project(tokens)
        negatives = self.negatives(pairs, features, (features.image_m, features.text_m), floor=1e-4)
        itm = self.itm(tokens, memory, with_first(batch.ids, text.enc_id), batch.mask, negatives)
        lm_ids, lm_mask = batch.lm_ids, batch.lm_mask
        if lm_ids is None or lm_mask is None:
            lm_ids, lm_mask = with_first(batch.ids, text.dec_id), batch.mask
        states = model.text.decode(lm_ids, lm_mask, memory)
        labels = lm_targets(lm_ids, lm_mask)
        lm = lm_loss(states, labels, model.to_logits, self.smoothing, gather=self.lm_gather)
        return {"itc": itc, "itm": itm, "lm": lm}

    def advance_queues(self, features: Features, pair_ids: Tensor) -> None:
        self.queue.push(self.gather(features.image_m), self.gather(features.text_m))
