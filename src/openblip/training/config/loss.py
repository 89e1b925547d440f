"""The losses of a recipe: one dataclass of options per task, told apart by `task`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, get_args

from openblip.errors import ConfigError
from openblip.tasks import TaskName

Scope = Literal["rank", "all"]


@dataclass(frozen=True, kw_only=True)
class PublishedValues:
    """Published values of settings that differ between tasks.

    Attributes:
        lr: Highest learning rate.
        weight_decay: Weight decay.
        jitter: Strength of color jitter.
        drop_path: Stochastic depth of ViT-B.
    """

    lr: float
    weight_decay: float = 0.05
    jitter: float = 0.0
    drop_path: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PretrainLoss:
    """ITC, ITM and LM.

    Attributes:
        queue_size: Features kept in each queue of ITC.
        momentum: Momentum of the twin.
        alpha: Final weight of the momentum targets; it rises from 0.
        alpha_epochs: Epochs over which `alpha` rises.
        smoothing: Label smoothing of LM.
        negatives: Draw the negatives of ITM from the batch of one process ("rank", published) or of all ("all").
        itc_columns: Compare in ITC with the batch of one process ("rank", published) or of all ("all").
        token_mean: Average LM over the tokens of one process ("rank", published) or of all ("all").
    """

    task: ClassVar[TaskName] = "pretrain"
    published: ClassVar[PublishedValues] = PublishedValues(lr=1e-4)

    queue_size: int = 57600
    momentum: float = 0.995
    alpha: float = 0.4
    alpha_epochs: float = 2.0
    smoothing: float = 0.1
    negatives: Scope = "rank"
    itc_columns: Scope = "rank"
    token_mean: Scope = "rank"


@dataclass(frozen=True, kw_only=True)
class RetrievalLoss:
    """ITC and ITM with the ids of the images.

    Attributes:
        queue_size: Features kept in each queue of ITC.
        momentum: Momentum of the twin.
        alpha: Final weight of the momentum targets; it rises from 0.
        alpha_epochs: Epochs over which `alpha` rises: one in the authors' code, two in LAVIS and mmpretrain.
        negatives: Draw the negatives of ITM from the batch of all processes ("all", published for COCO) or of one
            ("rank", published for Flickr30k).
        itc_columns: Compare in ITC with the batch of one process ("rank", published) or of all ("all").
    """

    task: ClassVar[TaskName] = "retrieval"
    published: ClassVar[PublishedValues] = PublishedValues(lr=1e-5)

    queue_size: int = 57600
    momentum: float = 0.995
    alpha: float = 0.4
    alpha_epochs: float = 1.0
    negatives: Scope = "all"
    itc_columns: Scope = "rank"


@dataclass(frozen=True, kw_only=True)
class CaptionLoss:
    """LM, or the CIDEr of sampled captions (self-critical training).

    Attributes:
        kind: The objective: "lm" or "cider". CIDEr needs `data.packed`, with all captions of an image.
        smoothing: Label smoothing of LM.
        token_mean: Average LM over the tokens of one process ("rank", published) or of all ("all").
        samples: Captions drawn for each image, each of which is compared with the others.
        max_new_tokens: Most tokens of a drawn caption.
        lm_weight: Weight of LM next to CIDEr.

    Raises:
        ConfigError: If `samples` is less than 2.
    """

    task: ClassVar[TaskName] = "caption"
    published: ClassVar[PublishedValues] = PublishedValues(lr=1e-5)

    kind: Literal["lm", "cider"] = "lm"
    smoothing: float = 0.1
    token_mean: Scope = "rank"
    samples: int = 5
    max_new_tokens: int = 20
    lm_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ConfigError(
                f"samples must be at least 2, because each is compared with the others, got {self.samples}"
            )


@dataclass(frozen=True, kw_only=True)
class VqaLoss:
    """LM of weighted answers.

    Attributes:
        smoothing: Label smoothing.
    """

    task: ClassVar[TaskName] = "vqa"
    published: ClassVar[PublishedValues] = PublishedValues(lr=2e-5, drop_path=0.1)

    smoothing: float = 0.1


@dataclass(frozen=True, kw_only=True)
class NlvrLoss:
    """Cross-entropy of true and false statements; without options."""

    task: ClassVar[TaskName] = "nlvr"
    published: ClassVar[PublishedValues] = PublishedValues(lr=3e-5, drop_path=0.1)


@dataclass(frozen=True, kw_only=True)
class GroundingLoss:
    """Cross-entropy of box tokens. `spread` and `attention` are OpenBLIP's options for few boxes, 0 as published.

    Attributes:
        log_weighted: Report the value that mmpretrain's logs show, next to the loss that is trained on.
        spread: Standard deviation, in bins, of a bell around each coordinate in place of a single bin.
        attention: Weight of a loss that makes words attend to their boxes.
    """

    task: ClassVar[TaskName] = "grounding"
    published: ClassVar[PublishedValues] = PublishedValues(lr=1.5e-5, weight_decay=0.02, jitter=0.4)

    log_weighted: bool = False
    spread: float = 0.0
    attention: float = 0.0


@dataclass(frozen=True, kw_only=True)
class VisdialLoss:
    """ITM of dialogs with a true or a wrong answer; without options."""

    task: ClassVar[TaskName] = "visdial"
    published: ClassVar[PublishedValues] = PublishedValues(lr=2e-5)


Loss: TypeAlias = PretrainLoss | RetrievalLoss | CaptionLoss | VqaLoss | NlvrLoss | GroundingLoss | VisdialLoss


def loss_class(task: TaskName) -> type[Loss]:
    """Return the dataclass of a task's loss options."""
    classes: dict[TaskName, type[Loss]] = {kind.task: kind for kind in get_args(Loss)}
    return classes[task]
