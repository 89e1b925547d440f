"""Self-critical training: the reward of sampled captions as the objective of a captioner (Rennie et al. 2017).

The loss is the negative log-probability of each sample times its advantage: its reward minus the mean reward of the
image's other samples (Luo 2020). This baseline does not depend on the sample, so the gradient is an unbiased estimate
of the gradient of the expected reward.

Shapes: I images, N samples of each, L tokens of a row of packed captions, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.data.collate import pack_texts, pad_rows
from openblip.decoding import Decoding, generate
from openblip.engine.eager import EagerSession
from openblip.model.captioner import Captioner
from openblip.training.objectives.language import IGNORED
from openblip.training.objectives.packing import PackedRows, decode_packed

TokenIds: TypeAlias = Sequence[int]
Reward: TypeAlias = Callable[[TokenIds, Sequence[TokenIds]], float]


class SelfCritic:
    """Samples captions, judges them and makes their loss.

    Args:
        model: The captioner.
        reward: The value of a caption, given the captions of its image; all without prompt. A caption that is not cut
            off ends with [SEP].
        prompt_ids: [DEC] and the prompt.
        samples: Captions to draw for each image, at least 2.
        max_new_tokens: Most tokens of a drawn caption, [SEP] included.
    """

    def __init__(
        self, model: Captioner, reward: Reward, prompt_ids: TokenIds, samples: int = 5, max_new_tokens: int = 20
    ) -> None:
        self.model, self.reward = model, reward
        self.prompt_ids = list(prompt_ids)
        text = model.config.text
        self.decoding = Decoding(
            num_beams=1, do_sample=True, top_p=1.0, n=samples, max_new_tokens=max_new_tokens, min_new_tokens=0,
            eos_id=text.sep_id, pad_id=text.pad_id,
        )  # fmt: skip

    def losses(self, image_tokens: Tensor, rows: PackedRows) -> dict[str, Tensor]:
        """Return the loss `cider`, and the mean `reward`, which has no gradient.

        Args:
            image_tokens: Tokens (I, N + 1, D) of the images.
            rows: The images' own captions.
        """
        samples = self.sample(image_tokens)
        rewards = self.judge(samples, unpack_captions(rows, len(self.prompt_ids)))
        return {"cider": self.loss(samples, rewards, image_tokens), "reward": rewards.mean()}

    @torch.no_grad()
    def sample(self, image_tokens: Tensor) -> list[list[list[int]]]:
        """Draw the new tokens of N captions for each image, [SEP] included if it was reached."""
        model = self.model
        was_training = model.training
        model.eval()
        memory = model.decoder.project(image_tokens)
        capacity = self.decoding.capacity(len(self.prompt_ids))
        session = EagerSession(model.decoder, model.lm_head, memory, capacity)
        prompts = torch.tensor([self.prompt_ids] * len(image_tokens), device=image_tokens.device)
        hypotheses = generate(session, prompts, self.decoding)
        model.train(was_training)
        return [[hypothesis.ids for hypothesis in image] for image in hypotheses]

    def judge(self, samples: Sequence[Sequence[TokenIds]], references: Sequence[Sequence[TokenIds]]) -> Tensor:
        """Return the reward (I, N) of each sample."""
        rewards = [
            [self.reward(ids, image_references) for ids in image_samples]
            for image_samples, image_references in zip(samples, references, strict=True)
        ]
        return torch.tensor(rewards)

    def loss(self, samples: Sequence[Sequence[TokenIds]], rewards: Tensor, image_tokens: Tensor) -> Tensor:
        """Return the loss, whose gradient is minus the estimated gradient of the expected reward per image."""
        texts = [[*self.prompt_ids, *ids] for image in samples for ids in image]
        padded = pad_rows(texts, self.decoding.pad_id)
        packed = pack_texts(padded["ids"], padded["mask"], [len(image) for image in samples], self.decoding.pad_id)
        rows = PackedRows(*(packed[name].to(image_tokens.device) for name in ("ids", "positions", "mask")))
        weights = advantages(rewards).to(image_tokens.device)
        total = image_tokens.new_zeros(())
        for images, states, group in decode_packed(self.model, rows, image_tokens):
            targets = group.labels(len(self.prompt_ids))[:, 1:]
            weight = weights[images].gather(1, (group.captions - 1).clamp(min=0))[:, 1:]
            scored = targets != IGNORED
            logits = self.model.to_logits(states[:, :-1][scored]).float()
            total = total + (F.cross_entropy(logits, targets[scored], reduction="none") * weight[scored]).sum()
        return total / rewards.numel()


def advantages(rewards: Tensor) -> Tensor:
    """Return rewards (I, N) minus the mean reward of the image's other samples."""
    count = rewards.shape[1]
    return (rewards - rewards.mean(1, keepdim=True)) * count / (count - 1)


def unpack_captions(rows: PackedRows, prompt_length: int) -> list[list[list[int]]]:
    """Return the tokens of the captions of each image, without the prompt."""
    images = []
    for ids, numbers in zip(rows.ids.tolist(), rows.captions.tolist(), strict=True):
        captions: dict[int, list[int]] = {}
        for token, number in zip(ids, numbers, strict=True):
            if number:
                captions.setdefault(number, []).append(token)
        images.append([caption[prompt_length:] for caption in captions.values()])
    return images
