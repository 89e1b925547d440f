"""Image-text retrieval: ITC and ITM that know which texts belong to one image (paper section 5.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from openblip.data.tasks.retrieval import RetrievalData
from openblip.errors import InputError
from openblip.model.matcher import Matcher
from openblip.training.config.loss import RetrievalLoss
from openblip.training.objectives.base import Batch, ImageBatch
from openblip.training.objectives.contrastive import ContrastiveObjective, Features
from openblip.training.objectives.gather import Gather


@dataclass(frozen=True, kw_only=True)
class RetrievalBatch(ImageBatch):
    """B pairs of an image and a text. An image may occur several times, with another text (and crop) each time.

    Attributes:
        pixels: Images (B, 3, S, S).
        ids: Token ids (B, T), first token [CLS].
        mask: Attention mask (B, T).
        image_ids: Ids (B,) of the images, 0 or more.
    """

    image_ids: Tensor


class RetrievalObjective(ContrastiveObjective[Matcher, RetrievalBatch, RetrievalLoss, RetrievalData]):
    """ITC and ITM with momentum twin and queues.

    Differences from pretraining: pairs of one image are positives of each other, in the batch and in the queue; a
    negative never has the same image; negatives are weighted by the model's own features, without a floor. With
    `negatives="all"` they come from all processes (published for COCO; "rank" for Flickr30k). A batch whose texts all
    belong to one image, where the published code fails, trains ITM on its matches alone.
    """

    batch_class: ClassVar[type[Batch]] = RetrievalBatch
    negatives_by_twin: ClassVar[bool] = False
    negative_floor: ClassVar[float] = 0.0

    @classmethod
    def from_settings(
        cls, model: Matcher, loss: RetrievalLoss, data: RetrievalData, gather: Gather
    ) -> RetrievalObjective:
        """Build the objective from a recipe's loss options."""
        return cls(model, **cls.options(loss, gather))

    def forward(self, batch: RetrievalBatch, alpha: float = 0.4) -> dict[str, Tensor]:
        """Return the losses `itc` and `itm` of one batch.

        In training mode a call clamps the temperature to [0.001, 0.5], moves the twin and advances the queues.

        Args:
            batch: Images and texts.
            alpha: Weight of the momentum targets.
        """
        if bool((batch.image_ids < 0).any()):
            raise InputError("image_ids must be 0 or more, because -100 marks unused entries of the queue")
        itc, itm, _ = self.contrast(batch.pixels, batch.ids, batch.mask, batch.image_ids, alpha)
        return {"itc": itc, "itm": itm}

    def advance_queues(self, features: Features, pair_ids: Tensor) -> None:
        """Push the momentum features and image ids of a batch into the queues."""
        self.queue.push(self.gather(features.image_m), self.gather(features.text_m), self.gather(pair_ids))
