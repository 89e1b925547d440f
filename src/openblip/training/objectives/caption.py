"""Captioning: the LM loss of captions after a prompt that is given, not learned (paper section 5.2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from openblip.data.tasks.caption import CaptionData
from openblip.errors import ConfigError
from openblip.model.captioner import Captioner
from openblip.preprocess.text import Tokenizer
from openblip.training.cider import CiderReward
from openblip.training.config.loss import CaptionLoss
from openblip.training.objectives.base import Batch, ImageBatch, Objective, PreviewImage, generate_captions
from openblip.training.objectives.gather import Gather, Scope, mean_count
from openblip.training.objectives.language import IGNORED, lm_loss, lm_targets
from openblip.training.objectives.packing import PackedRows, decode_packed
from openblip.training.objectives.self_critical import SelfCritic


@dataclass(frozen=True, kw_only=True)
class CaptionBatch(ImageBatch):
    """C captions of I images, each of which is encoded once.

    Attributes:
        pixels: Images (I, 3, S, S).
        ids: Token ids (C, T): [DEC], the prompt, the caption, [SEP].
        mask: Attention mask (C, T).
        image_index: Image (C,) of each caption; by default C / I captions per image, in order of images.
        positions: With packed captions (`PackedRows`), the position (I, L) of each token in its caption; `ids` are
            (I, L) then, and `mask` (I, L) holds the number of each token's caption.
    """

    image_index: Tensor | None = None
    positions: Tensor | None = None

    @property
    def rows(self) -> PackedRows | None:
        """The rows of packed captions."""
        return None if self.positions is None else PackedRows(self.ids, self.positions, self.mask)


class CaptionObjective(Objective[Captioner, CaptionBatch, CaptionLoss, CaptionData]):
    """Mean cross-entropy over the tokens after the prompt, [SEP] included; or the CIDEr of sampled captions.

    Args:
        model: The captioner.
        prompt_length: Tokens that are given, [DEC] included: 4 for "a picture of ", 1 for no prompt.
        smoothing: Label smoothing; 0.1 in all published code except transformers, which has none.
        token_mean: Average over the tokens of this process ("rank", as published) or of all processes.
        gather: Gathers tensors of all processes.
        critic: Samples and judges captions; `None` trains with LM.
        lm_weight: Weight of LM next to a critic.
    """

    batch_class: ClassVar[type[Batch]] = CaptionBatch
    has_previews: ClassVar[bool] = True

    def __init__(
        self,
        model: Captioner,
        *,
        prompt_length: int,
        smoothing: float = 0.1,
        token_mean: Scope = "rank",
        gather: Gather | None = None,
        critic: SelfCritic | None = None,
        lm_weight: float = 0.0,
    ) -> None:
        super().__init__(model)
        self.prompt_length = prompt_length
        self.smoothing = smoothing
        self.critic, self.lm_weight = critic, lm_weight
        self.gather = gather if gather is not None and token_mean == "all" else Gather()

    @classmethod
    def from_settings(cls, model: Captioner, loss: CaptionLoss, data: CaptionData, gather: Gather) -> CaptionObjective:
        """Build the objective from a recipe's loss options."""
        critic = None
        if loss.kind == "cider":
            if not data.packed:
                raise ConfigError("the loss cider needs data.packed, with all captions of an image as texts_per_image")
            reward = CiderReward(data.tokenizer, data.max_words)
            prompt_ids = data.tokenizer.encode_prompt(data.prompt)
            critic = SelfCritic(model, reward, prompt_ids, loss.samples, loss.max_new_tokens)
        return cls(
            model,
            prompt_length=data.prompt_length,
            smoothing=loss.smoothing,
            token_mean=loss.token_mean,
            gather=gather,
            critic=critic,
            lm_weight=loss.lm_weight,
        )

    @classmethod
    def validate(
        cls, model: Captioner, batches: Iterable[CaptionBatch], loss: CaptionLoss, data: CaptionData
    ) -> dict[str, float]:
        """Validate by the LM loss, whatever the loss in training."""
        return super().validate(model, batches, replace(loss, kind="lm"), data)

    def prepare(self, captions: Iterable[Sequence[str]]) -> None:
        """Prepare the rewards of self-critical training."""
        if self.critic is not None and isinstance(self.critic.reward, CiderReward):
            self.critic.reward.fit(captions)

    def forward(self, batch: CaptionBatch) -> dict[str, Tensor]:
        """Return the losses of one batch: `lm`, or `cider` with the mean `reward`, and `lm` if it has a weight."""
        image_tokens = self.model.encode_image(batch.pixels)
        if self.critic is None or batch.rows is None:
            return {"lm": self.lm(batch, image_tokens)}
        losses = self.critic.losses(image_tokens, batch.rows)
        if self.lm_weight > 0:
            losses["lm"] = self.lm_weight * self.lm(batch, image_tokens)
        return losses

    def lm(self, batch: CaptionBatch, image_tokens: Tensor) -> Tensor:
        """Return the LM loss of captions of images with tokens (I, N + 1, D); 0 if there is no token to score."""
        model = self.model
        if batch.rows is not None:
            return self._packed_lm(batch.rows, image_tokens)
        if batch.image_index is None:  # each layer projects the images, so that their gradients do not wait for others
            states = model.decoder.decode(batch.ids, batch.mask, image_tokens)
        else:
            memory = model.decoder.project(image_tokens).select(batch.image_index)
            states = model.decoder.decode(batch.ids, batch.mask, memory)
        labels = lm_targets(batch.ids, batch.mask, self.prompt_length)
        return lm_loss(states, labels, model.to_logits, self.smoothing, gather=self.gather)

    def _packed_lm(self, rows: PackedRows, image_tokens: Tensor) -> Tensor:
        total, count = image_tokens.new_zeros(()), torch.zeros((), device=image_tokens.device)
        for _, states, group in decode_packed(self.model, rows, image_tokens):
            labels = group.labels(self.prompt_length)
            count = count + (labels[:, 1:] != IGNORED).sum()
            total = total + lm_loss(states, labels, self.model.to_logits, self.smoothing, reduction="none").sum()
        return total / mean_count(count, self.gather)

    @classmethod
    def describe(
        cls, model: Captioner, tokenizer: Tokenizer, images: Sequence[PreviewImage], prompt: str
    ) -> list[Mapping[str, str]]:
        """Caption each image."""
        pixels = torch.stack([image.pixels for image in images])
        captions = generate_captions(model, model.decoder, tokenizer, pixels, prompt)
        return [{"image": image.name, "caption": caption} for image, caption in zip(images, captions, strict=True)]
