"""The interface of objectives: losses for training, and a quick evaluation in between."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from openblip.data.tasks.base import TaskData
from openblip.decoding import Decoding, generate
from openblip.engine.eager import EagerSession
from openblip.model.base import ImageTextModel
from openblip.model.captioner import Captioner
from openblip.model.pretrainer import Pretrainer
from openblip.model.text import TextTransformer
from openblip.preprocess.text import Tokenizer
from openblip.tasks import TaskName
from openblip.training.config.loss import Loss
from openblip.training.objectives.gather import Gather

PREVIEW_TOKENS = 20


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Tensors of one batch.

    Attributes:
        ids: Token ids (B, T) of the texts.
        mask: Attention mask (B, T) of the texts.
    """

    ids: Tensor
    mask: Tensor

    @property
    @abstractmethod
    def num_images(self) -> int:
        """Number of images that the batch encodes."""


@dataclass(frozen=True, kw_only=True)
class ImageBatch(Batch):
    """A batch with one tensor of images, `pixels` (I, 3, S, S)."""

    pixels: Tensor

    @property
    def num_images(self) -> int:
        """Number of images that the batch encodes."""
        return len(self.pixels)


@dataclass(frozen=True)
class PreviewImage:
    """An image that each evaluation describes.

    Attributes:
        name: Path or address to report.
        pixels: Normalized pixels (3, S, S).
        question: Question to answer, for VQA.
    """

    name: str
    pixels: Tensor
    question: str


ModelT = TypeVar("ModelT", bound=ImageTextModel)
BatchT = TypeVar("BatchT", bound=Batch)
LossT = TypeVar("LossT", bound=Loss)
DataT = TypeVar("DataT", bound=TaskData[Any])


class Objective(nn.Module, Generic[ModelT, BatchT, LossT, DataT]):
    """A model with the losses that train it.

    Attributes:
        batch_class: Dataclass of the tensors that `forward` takes.
        has_unused_parameters: Whether parts of the model never get a gradient.
        validation_task: Task whose data validates the model, if not the objective's own.
        has_previews: Whether `describe` reports texts that the model generates.
        model: The model in training.
    """

    batch_class: ClassVar[type[Batch]]
    has_unused_parameters: ClassVar[bool] = False
    validation_task: ClassVar[TaskName | None] = None
    has_previews: ClassVar[bool] = False
    model: ModelT

    def __init__(self, model: ModelT) -> None:
        super().__init__()
        self.model = model

    @classmethod
    @abstractmethod
    def from_settings(
        cls, model: ModelT, loss: LossT, data: DataT, gather: Gather
    ) -> Objective[ModelT, BatchT, LossT, DataT]:
        """Build the objective from a recipe's loss options.

        Args:
            model: The model to train.
            loss: Options of the loss.
            data: Makes the batches.
            gather: Gathers tensors of all processes.
        """

    def prepare(self, captions: Iterable[Sequence[str]]) -> None:
        """Prepare the objective before the first step.

        Args:
            captions: The captions of each training image, to be read once if they are needed.
        """

    def step_arguments(self, batches_done: int, batches_per_epoch: int) -> dict[str, float]:
        """Return the keyword arguments of `forward` that change during training."""
        return {}

    def correct(self, batch: BatchT) -> Tensor | None:
        """Return which texts (B,) the model judges correctly, or `None` if the task has no right or wrong."""
        return None

    @classmethod
    @torch.no_grad()
    def validate(cls, model: ModelT, batches: Iterable[BatchT], loss: LossT, data: DataT) -> dict[str, float]:
        """Measure a model on validation data.

        Args:
            model: The model, in evaluation mode.
            batches: Validation data.
            loss: Options of the loss.
            data: Makes the batches.

        Returns:
            `val_loss`, averaged over texts, and `accuracy` for tasks with right and wrong answers.
        """
        objective = cls.from_settings(model, loss, data, Gather()).eval()
        sums: dict[str, float] = {}
        count = 0
        for batch in batches:
            num_texts = len(batch.ids)
            metrics = {"val_loss": sum(float(value) for value in objective(batch).values())}
            correct = objective.correct(batch)
            if correct is not None:
                metrics["accuracy"] = float(correct.float().mean())
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + value * num_texts
            count += num_texts
        return {name: value / max(count, 1) for name, value in sums.items()}

    @classmethod
    def describe(
        cls, model: ModelT, tokenizer: Tokenizer, images: Sequence[PreviewImage], prompt: str
    ) -> list[Mapping[str, str]]:
        """Generate a text for each image.

        Args:
            model: The model, in evaluation mode.
            tokenizer: Tokenizer of the model.
            images: The images, and their questions for VQA.
            prompt: Text that every caption starts with.

        Returns:
            Columns of a report, per image.
        """
        return []


def generate_texts(session: EagerSession, tokenizer: Tokenizer, start: list[int], pixels: Tensor) -> list[str]:
    """Generate a text for each image (B, 3, S, S) by beam search, after the tokens `start`."""
    options = Decoding(max_new_tokens=PREVIEW_TOKENS, eos_id=tokenizer.sep_id, pad_id=tokenizer.pad_id)
    prompts = torch.tensor([start] * len(pixels), device=pixels.device)
    return [tokenizer.decode(hypotheses[0].ids) for hypotheses in generate(session, prompts, options)]


def generate_captions(
    model: Captioner | Pretrainer, text: TextTransformer, tokenizer: Tokenizer, pixels: Tensor, prompt: str
) -> list[str]:
    """Generate a caption for each image (B, 3, S, S) with `text`, the decoder of `model`."""
    start = tokenizer.encode_prompt(prompt)
    memory = text.project(model.encode_image(pixels))
    session = EagerSession(text, model.lm_head, memory, len(start) + PREVIEW_TOKENS)
    return generate_texts(session, tokenizer, start, pixels)
