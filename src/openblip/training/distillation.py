"""Distillation: a student learns the outputs of a teacher for the same images and texts, next to its task's losses.

The images come at the teacher's size; the student gets them reduced to its own. The student learns from up to four of
the teacher's outputs, each with its weight: image features, ITC similarities, ITM logits and LM logits.

Shapes: B pairs, N patches, D student width, W teacher width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from openblip.errors import ConfigError
from openblip.model.answerer import Answerer
from openblip.model.base import ImageTextModel
from openblip.model.captioner import Captioner
from openblip.model.matcher import Matcher
from openblip.model.pretrainer import Pretrainer
from openblip.preprocess.settings import ImageSettings
from openblip.preprocess.text import Tokenizer
from openblip.training.config.distill import DistillSettings
from openblip.training.objectives.language import IGNORED, lm_targets, with_first_token
from openblip.training.objectives.packing import decode_packed
from openblip.training.teachers import FeatureStore, Teacher, resize_pixels


class Distillation(nn.Module):
    """Adds losses to an objective: call `attach` once the objective is made.

    Args:
        teacher: What to learn from. It is no part of this module, so neither checkpoints nor optimizers see it.
        settings: Weights and forms of the losses.
        image: How the student's images are prepared.
        student: The model that learns.
        tokenizer: The student's vocabulary.
        prompt_length: Tokens of a caption that are given, not learned.

    Raises:
        ConfigError: If the student cannot learn from this teacher with these settings.
    """

    def __init__(
        self,
        teacher: Teacher,
        settings: DistillSettings,
        *,
        image: ImageSettings,
        student: ImageTextModel,
        tokenizer: Tokenizer,
        prompt_length: int = 0,
    ) -> None:
        super().__init__()
        check_teacher(teacher, settings, student, tokenizer)
        self.settings, self.image, self.prompt_length = settings, image, prompt_length
        self._peers = teacher, student
        self.store = FeatureStore(Path(settings.cache), teacher) if settings.cache else None
        self.projection = nn.Linear(student.config.vision.width, teacher.width) if settings.features > 0 else None
        self._full_size: Tensor | None = None
        self._image_tokens: Tensor | None = None
        self._watching: RemovableHandle | None = None

    def attach(self, objective: nn.Module) -> None:
        """Make the objective reduce its images for the student, and return the losses of distillation too."""
        objective.distillation = self
        objective.register_forward_pre_hook(self._reduce, with_kwargs=True)
        objective.register_forward_hook(self._add_losses, with_kwargs=True)

    def losses(self, batch: Any, image_tokens: Tensor) -> dict[str, Tensor]:
        """Return the weighted losses of a batch.

        Args:
            batch: The objective's batch, its pixels at the teacher's size.
            image_tokens: The student's tokens (B, 1 + N, D) of these images.
        """
        teacher, student = self._peers
        settings = self.settings
        losses: dict[str, Tensor] = {}
        features = self.store.features(batch.pixels) if self.store else teacher.features(batch.pixels)
        if self.projection is not None:
            own = self.projection(image_tokens)
            losses["distill_features"] = settings.features * feature_loss(own, features, settings.feature_loss)
        if teacher.model is None:
            return losses
        pairs = (student, image_tokens), (teacher.model, features)
        if settings.itc > 0:
            own, target = (similarities(cast(Matcher, model), batch, tokens) for model, tokens in pairs)
            losses["distill_itc"] = settings.itc * (divergence(own, target) + divergence(own.T, target.T)) / 2
        if settings.itm > 0:
            own, target = (match_logits(cast(Matcher, model), batch, tokens) for model, tokens in pairs)
            losses["distill_itm"] = settings.itm * divergence(own, target, settings.temperature)
        if settings.lm > 0:
            own, target = (lm_logits(model, batch, tokens, self.prompt_length) for model, tokens in pairs)
            losses["distill_lm"] = settings.lm * divergence(own, target, settings.temperature)
        return losses

    def _reduce(self, objective: nn.Module, arguments: Any, named: Any) -> Any:
        (batch,) = arguments
        if not self.training:  # validation images come at the student's size
            return None
        self._full_size = batch.pixels
        self._watching = self._peers[1].vision.register_forward_hook(self._remember)
        reduced = resize_pixels(batch.pixels, self._peers[0].image, self.image)
        return (dataclasses.replace(batch, pixels=reduced),), named

    def _remember(self, vision: nn.Module, arguments: Any, tokens: Tensor) -> None:
        self._image_tokens = tokens

    def _add_losses(self, objective: nn.Module, arguments: Any, named: Any, losses: dict[str, Tensor]) -> Any:
        if self._watching is not None:
            self._watching.remove()
        full_size, image_tokens = self._full_size, self._image_tokens
        self._full_size = self._image_tokens = None
        if not self.training or full_size is None or image_tokens is None:
            return None
        batch = dataclasses.replace(arguments[0], pixels=full_size)
        return {**losses, **self.losses(batch, image_tokens)}


def check_teacher(teacher: Teacher, settings: DistillSettings, student: ImageTextModel, tokenizer: Tokenizer) -> None:
    """Raise `ConfigError` if a loss that is asked for has nothing to compare."""
    weights = {name: getattr(settings, name) for name in ("itc", "itm", "lm")}
    wanted = [name for name, weight in weights.items() if weight > 0]
    if not wanted:
        return
    if teacher.model is None:
        raise ConfigError(f"distill.{wanted[0]} needs a BLIP teacher; an image network teaches features only")
    if teacher.tokenizer is None or teacher.tokenizer.vocab_pieces != tokenizer.vocab_pieces:
        raise ConfigError(f"distill.{wanted[0]} needs a student with the teacher's vocabulary; give tokenizer")
    kinds: dict[str, tuple[type[nn.Module], ...]] = {
        "itc": (Matcher,), "itm": (Matcher,), "lm": (Captioner, Pretrainer, Answerer),
    }  # fmt: skip
    for name in wanted:
        for model in (student, teacher.model):
            if not isinstance(model, kinds[name]):
                raise ConfigError(f"distill.{name} does not apply to a {model.config.task} model")
    if type(teacher.model) is not type(student) and settings.lm > 0:
        raise ConfigError(f"distill.lm needs a teacher for {student.config.task!r}, got {teacher.model.config.task!r}")


# --- losses --------------------------------------------------------------------------------------------------------


def feature_loss(own: Tensor, target: Tensor, kind: str) -> Tensor:
    """Return the distance of projected student tokens (B, 1 + N, W) from teacher tokens (B, 1 + M, W).

    Another grid of the teacher is interpolated to the student's. Targets are normalized per token, so that no channel
    or image dominates.
    """
    target = fit_grid(target, own.shape[1] - 1)
    target = F.layer_norm(target.float(), target.shape[-1:])
    if kind == "cosine":
        return (1 - F.cosine_similarity(own.float(), target, dim=-1)).mean()
    return F.smooth_l1_loss(own.float(), target)


def fit_grid(tokens: Tensor, patches: int) -> Tensor:
    """Return class and patch tokens (B, 1 + M, W) on a square grid of another number of patches."""
    if tokens.shape[1] - 1 == patches:
        return tokens
    side, wanted = math.isqrt(tokens.shape[1] - 1), math.isqrt(patches)
    grid = tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, side, side)  # (B, W, side, side)
    grid = F.interpolate(grid.float(), (wanted, wanted), mode="bilinear", align_corners=False, antialias=side > wanted)
    return torch.cat([tokens[:, :1], grid.flatten(2).transpose(1, 2).to(tokens.dtype)], dim=1)


def divergence(own: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the mean KL divergence of the student's softmax from the teacher's at a temperature, times its square."""
    own_log = (own.float() / temperature).log_softmax(-1)
    target_log = (target.float() / temperature).log_softmax(-1)
    return F.kl_div(own_log, target_log, log_target=True, reduction="batchmean") * temperature**2


# --- the outputs of a model for a batch ----------------------------------------------------------------------------


def similarities(model: Matcher, batch: Any, image_tokens: Tensor) -> Tensor:
    """Return ITC similarities (B, B) of images with texts, over the model's own temperature."""
    with torch.set_grad_enabled(image_tokens.requires_grad):
        image, text = model.embed_image(image_tokens), model.embed_text(batch.ids, batch.mask)
        return image.float() @ text.float().T / model.temperature.float()


def match_logits(model: Matcher, batch: Any, image_tokens: Tensor) -> Tensor:
    """Return ITM logits (2 B, 2) of each image with its text and with its neighbor's."""
    with torch.set_grad_enabled(image_tokens.requires_grad):
        ids, mask = with_first_token(batch.ids, model.config.text.enc_id), batch.mask
        memory = model.text.project(image_tokens)
        return torch.cat([model.match_logits(ids.roll(n, 0), mask.roll(n, 0), memory) for n in (0, 1)])


def lm_logits(model: ImageTextModel, batch: Any, image_tokens: Tensor, prompt_length: int) -> Tensor:
    """Return the logits (tokens, V) of all scored positions of the batch's texts."""
    with torch.set_grad_enabled(image_tokens.requires_grad):
        if isinstance(model, Captioner):
            return _caption_logits(model, batch, image_tokens, prompt_length)
        if isinstance(model, Answerer):
            memory = model.encoder.project(image_tokens)
            memory = memory if batch.image_index is None else memory.select(batch.image_index)
            states = model.encode_question(batch.ids, batch.mask, memory)[batch.question_index]
            decoded = model.decoder.decode(
                batch.answer_ids, batch.answer_mask, states, batch.mask[batch.question_index]
            )
            return _scored(model, decoded, lm_targets(batch.answer_ids, batch.answer_mask))
        pretrainer = cast(Pretrainer, model)
        ids, mask = batch.lm_ids, batch.lm_mask
        if ids is None:
            ids, mask = with_first_token(batch.ids, model.config.text.dec_id), batch.mask
        decoded = pretrainer.text.decode(ids, mask, pretrainer.text.project(image_tokens))
        return _scored(pretrainer, decoded, lm_targets(ids, mask))


def _caption_logits(model: Captioner, batch: Any, image_tokens: Tensor, prompt_length: int) -> Tensor:
    if batch.rows is not None:
        groups = decode_packed(model, batch.rows, image_tokens)
        return torch.cat([_scored(model, states, group.labels(prompt_length)) for _, states, group in groups])
    memory = model.decoder.project(image_tokens)
    memory = memory if batch.image_index is None else memory.select(batch.image_index)
    states = model.decoder.decode(batch.ids, batch.mask, memory)
    return _scored(model, states, lm_targets(batch.ids, batch.mask, prompt_length))


def _scored(model: Captioner | Pretrainer | Answerer, states: Tensor, labels: Tensor) -> Tensor:
    return model.to_logits(states[:, :-1][labels[:, 1:] != IGNORED])
