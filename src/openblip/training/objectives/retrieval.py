"""Image-text retrieval: ITC + ITM that know which texts belong to one image (paper section 5.1)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from openblip.errors import InputError
from openblip.training.objectives.contrastive import ContrastiveObjective, Features
from openblip.training.objectives.language import with_first


@dataclass(frozen=True, kw_only=True)
class RetrievalBatch:
    """B pairs: ``pixels`` (B, 3, S, S), ``ids`` and ``mask`` (B, T), first token [CLS], and the images' ids (B,), >= 0.

    An image may come more than once, with another text (and crop) each time.
    """

    pixels: Tensor
    ids: Tensor
    mask: Tensor
    image_ids: Tensor


class Retrieval(ContrastiveObjective):
    """The objective, its momentum twin and its queues.

    It differs from pretraining in four things: pairs of one image are positives of each other, in the batch and in the
    queue; a negative is never of the same image; negatives are weighed by the model's own features, and with no floor.
    ``negatives="all"`` draws them from all processes (published for COCO; "rank" for Flickr30k). A batch whose texts
    all belong to one image, where the published code fails, trains ITM on its matches alone.
    """

    def forward(self, batch: RetrievalBatch, alpha: float = 0.4) -> dict[str, Tensor]:
        """Losses ``itc`` and ``itm`` of one batch; ``alpha`` is the weight of the momentum targets.

        In training mode a call has the side effects of pretraining: temperature, twin and queues.
        """
        if bool((batch.image_ids < 0).any()):
            raise InputError("image ids count from 0: -100 marks the unused places of the queue")
        model = self.model
        tokens = model.encode_image(batch.pixels)
        features = self.features(batch.pixels, tokens, batch.ids, batch.mask)
        itc = self.itc(features, batch.image_ids, alpha)
        negatives = self.negatives(batch.image_ids, features, (features.image, features.text), floor=0.0)
        enc_ids = with_first(batch.ids, model.config.text.enc_id)
        itm = self.itm(tokens, model.text.project(tokens), enc_ids, batch.mask, negatives)
        return {"itc": itc, "itm": itm}

    def advance_queues(self, features: Features, pair_ids: Tensor) -> None:
        self.queue.push(self.gather(features.image_m), self.gather(features.text_m), self.gather(pair_ids))
