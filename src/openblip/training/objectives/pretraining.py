"""Pretraining: ITC + ITM + LM with equal weights (paper section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openblip.model.pretrainer import Pretrainer
from openblip.training.momentum import FeatureQueue, MomentumTwin
from openblip.training.objectives.contrastive import (
    Draw,
    draw_negatives,
    hard_negative_weights,
    itm_loss,
    multinomial,
    soft_cross_entropy,
    soft_targets,
)
from openblip.training.objectives.language import lm_loss, lm_targets


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


class Pretraining(nn.Module):
    """The objective, its momentum twin and its queues."""

    def __init__(
        self,
        model: Pretrainer,
        *,
        queue_size: int = 57600,
        momentum: float = 0.995,
        smoothing: float = 0.1,
        draw: Draw = multinomial,
    ) -> None:
        super().__init__()
        self.model = model
        self.twin = MomentumTwin(model, momentum)
        self.queue = FeatureQueue(model.config.embed_width, queue_size)
        self.smoothing = smoothing
        self.draw = draw

    def forward(self, batch: PretrainingBatch, alpha: float = 0.4) -> dict[str, Tensor]:
        """Losses ``itc``, ``itm`` and ``lm`` of one batch; ``alpha`` is the weight of the momentum targets.

        A step has side effects: the temperature is clamped to [0.001, 0.5], the twin moves, the queue advances.
        """
        model = self.model
        with torch.no_grad():
            model.temperature.clamp_(0.001, 0.5)
        tokens = model.encode_image(batch.pixels)
        itc, sim_i2t, sim_t2i = self._itc(batch, tokens, alpha)
        # The encoder's and the decoder's cross-attention are one, so the image is projected once for ITM and LM.
        memory = model.text.project(tokens)
        enc_ids = batch.ids.clone()
        enc_ids[:, 0] = model.config.text.enc_id
        count = len(enc_ids)
        own = torch.eye(count, dtype=torch.bool, device=enc_ids.device)
        texts, images = draw_negatives(hard_negative_weights(sim_t2i[:, :count], own, 1e-4), self.draw)
        rows, negatives = draw_negatives(hard_negative_weights(sim_i2t[:, :count], own, 1e-4), self.draw)
        pairs = torch.arange(count, device=enc_ids.device)
        text_rows, image_rows = torch.cat([pairs, texts, negatives]), torch.cat([pairs, images, rows])
        logits = model.match_logits(enc_ids[text_rows], batch.mask[text_rows], memory.select(image_rows))
        lm_ids, lm_mask = batch.lm_ids, batch.lm_mask
        if lm_ids is None or lm_mask is None:
            lm_ids, lm_mask = batch.ids.clone(), batch.mask
            lm_ids[:, 0] = model.config.text.dec_id
        states = model.text.decode(lm_ids, lm_mask, memory)
        lm = lm_loss(states, lm_targets(lm_ids, lm_mask), model.to_logits, self.smoothing)
        return {"itc": itc, "itm": itm_loss(logits, count), "lm": lm}

    def _itc(self, batch: PretrainingBatch, tokens: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
        """The ITC loss and the two matrices of logits (B, B + queue) it was computed from; advances the queue."""
        model, queue = self.model, self.queue
        image, text = model.embed_image(tokens), model.embed_text(batch.ids, batch.mask)
        self.twin.update(model)
        image_m, text_m = self.twin.embed(batch.pixels, batch.ids, batch.mask)
        images = torch.cat([image_m.T, queue.image.clone()], dim=1)  # (E, B + queue)
        texts = torch.cat([text_m.T, queue.text.clone()], dim=1)
        hard = torch.eye(len(image), images.shape[1], device=image.device)
        with torch.no_grad():
            target_i2t = soft_targets(image_m @ texts / model.temperature, hard, alpha)
            target_t2i = soft_targets(text_m @ images / model.temperature, hard, alpha)
        sim_i2t = image @ texts / model.temperature
        sim_t2i = text @ images / model.temperature
        loss = (soft_cross_entropy(sim_i2t, target_i2t) + soft_cross_entropy(sim_t2i, target_t2i)) / 2
        queue.push(image_m, text_m)
        return loss, sim_i2t, sim_t2i
