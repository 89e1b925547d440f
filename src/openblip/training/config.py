"""What a run of training is told: frozen dataclasses, read from a YAML recipe and ``key=value`` (no torch here).

The defaults are those of fine-tuning as published, where all published training agrees. What a published recipe has
beyond that stands in ``recipes/``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from openblip.checkpoints.sizes import override
from openblip.errors import ConfigError
from openblip.model.config import VISION_PRESETS, ModelConfig, ModelKind, TextConfig
from openblip.training import settings
from openblip.training.schedule import Schedule

Name = Literal["pretrain", "caption", "vqa", "retrieval", "nlvr", "grounding", "visdial"]
NAMES: tuple[Name, ...] = get_args(Name)
MODELS: Mapping[Name, ModelKind] = {
    "pretrain": "pretrain",
    "caption": "caption",
    "vqa": "vqa",
    "retrieval": "retrieval",
    "nlvr": "nlvr",
    "grounding": "grounding",
    "visdial": "retrieval",
}
Scope = Literal["rank", "all"]
Groups = Literal["published", "lavis"]
Precision = Literal["fp32", "bf16", "fp16"]


# --- what is trained ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """``size`` is that of what the run starts from ("start"), or a preset. What is given beside it replaces its values.

    ``drop_path`` is 0.1 for ViT-L and for VQA and NLVR2, else 0, as published, if it is not given. ``vision``, ``text``
    and ``more`` hold any other fields of the model's configuration.
    """

    size: Literal["start", "base", "large"] = "start"
    image_size: int | None = None
    drop_path: float | None = None
    vision: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)

    def config(self, name: Name, start: ModelConfig | None = None) -> ModelConfig:
        """The model's configuration; ``start`` is that of what it starts from, which "start" needs."""
        if self.size != "start":
            vision = VISION_PRESETS[self.size]
            base = ModelConfig(task=MODELS[name], vision=vision, text=TextConfig(memory_width=vision.width))
        elif start is None:
            raise ConfigError("model.size is base or large where there is nothing to start from")
        else:
            base = dataclasses.replace(start, task=MODELS[name], decoder_memory_width=None)
        drop_path = self.drop_path
        if drop_path is None:
            drop_path = 0.1 if base.vision.depth >= 24 or name in ("vqa", "nlvr") else 0.0
        given: dict[str, Any] = {**self.more, "vision": {"drop_path": drop_path, **self.vision}, "text": self.text}
        if self.image_size is not None:
            given["image_size"] = self.image_size
        return override(base, given)


@dataclass(frozen=True, kw_only=True)
class PretrainLoss:
    """ITC, ITM and LM. ``alpha`` rises from 0 over the first ``alpha_epochs``.

    ``negatives``, ``itc_columns`` and ``token_mean`` say whether ITM draws from, ITC compares with, and LM averages
    over this process's batch ("rank", published) or all.
    """

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
    """ITC and ITM that know the images' ids. ``negatives`` is "all" as published for COCO, "rank" for Flickr30k.

    ``alpha`` rises over the first epoch, as in the authors' code; LAVIS and mmpretrain let it rise over two.
    """

    queue_size: int = 57600
    momentum: float = 0.995
    alpha: float = 0.4
    alpha_epochs: float = 1.0
    negatives: Scope = "all"
    itc_columns: Scope = "rank"


@dataclass(frozen=True, kw_only=True)
class CaptionLoss:
    """LM."""

    smoothing: float = 0.1
    token_mean: Scope = "rank"


@dataclass(frozen=True, kw_only=True)
class AnswerLoss:
    """LM of weighted answers."""

    smoothing: float = 0.1


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """A loss without options."""


@dataclass(frozen=True, kw_only=True)
class GroundingLoss:
    """``log_weighted`` reports the value that mmpretrain's logs show, beside the loss that is trained on.

    Ours, for few boxes, and 0 as published: ``spread`` (bins) trains on a bell around each coordinate instead of the
    one right bin; ``attention`` weighs a loss that has words look into their boxes.
    """

    log_weighted: bool = False
    spread: float = 0.0
    attention: float = 0.0


Loss: TypeAlias = PretrainLoss | RetrievalLoss | CaptionLoss | AnswerLoss | NoOptions | GroundingLoss
LOSSES: Mapping[Name, type[Loss]] = {
    "pretrain": PretrainLoss,
    "caption": CaptionLoss,
    "vqa": AnswerLoss,
    "retrieval": RetrievalLoss,
    "nlvr": NoOptions,
    "grounding": GroundingLoss,
    "visdial": NoOptions,
}


# --- what it is trained on ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Where the data is (any form that :func:`openblip.data.sources.open_source` takes), and how texts are cut.

    ``images`` is the folder below which relative picture paths lie. Of the ``rotate`` sources each epoch sees one, in
    turn, beside all of ``train``: so the paper reads LAION. ``texts``: how many captions, questions or
    expressions a picture brings along each time, drawn anew; left out, each of them is a sample with its picture, as
    published. ``length`` is the number of samples in an epoch of a stream, ``window`` how many are shuffled at a time.
    ``prompt`` begins every caption; left out, it is that of the model the run starts from. Word and token limits are
    the published ones of the task, if they are left out. ``vg_weight`` is the weight of Visual Genome's answers (LAVIS
    gives them 1). More than ``max_bad`` bad records end the run.
    """

    train: tuple[str, ...] = ()
    rotate: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    images: str | None = None
    split: str | None = None
    val_split: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    stream: bool | None = None
    length: int | None = None
    window: int = 1000
    texts: int | None = None
    prompt: str | None = None
    max_words: int | None = None
    max_tokens: int | None = None
    vg_weight: float = 0.2
    max_bad: int | None = None
    workers: int = 4


@dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """Random changes to training pictures: a crop of at least ``min_scale`` of the area, a mirror with probability
    ``flip``, RandAugment, and colour jitter of this strength, which no published training but grounding's has.

    Grounding takes its own: jitter, a crop that keeps a part of every box, and with probability ``mirror`` a mirrored
    picture whose expressions have "left" and "right" exchanged, which the published training has not.
    """

    min_scale: float = 0.5
    flip: float = 0.5
    randaugment: bool = True
    jitter: float = 0.0
    mirror: float = 0.0


# --- how it is trained --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AdamWSettings:
    """``groups="published"`` decays every trainable tensor, biases, norms, embeddings and temperature included, as the
    authors' code does; ``groups="lavis"`` spares tensors of fewer than two dimensions, as their later library does.
    ``clip_norm`` bounds the norm of all gradients together; no published training clips.
    """

    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    groups: Groups = "published"
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        if self.weight_decay < 0 or self.eps <= 0 or not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ConfigError(f"AdamW cannot work with {self}")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ConfigError(f"clip_norm must be positive, not {self.clip_norm}; leave it out for no clipping")


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """``r`` is the rank of the corrections, ``alpha`` / ``r`` their scale (``alpha`` is twice the rank if left out).

    ``targets``: the linear layers that get one, by the last part of their names; both towers' attention by default.
    ``also``: what is trained whole, by patterns of parameter names; new heads belong here.
    """

    r: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    targets: tuple[str, ...] = ("query", "key", "value", "qkv", "proj")
    also: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ConfigError(f"the rank r of LoRA is at least 1, not {self.r}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is a probability below 1, not {self.dropout}")

    @property
    def scale(self) -> float:
        """What the correction is multiplied by."""
        return (2.0 * self.r if self.alpha is None else self.alpha) / self.r


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How long a run goes on, and what happens along the way.

    ``accumulate`` batches make a step. ``log_every`` counts steps; ``save_every`` too, besides the checkpoint after
    each epoch, and 0 means only that. ``evaluate_every`` counts epochs, ``evaluate_steps`` steps, 0 means never. A run
    whose ``metric`` is given keeps the best model, and stops after ``patience`` evaluations without a better one, if
    that is not 0.
    """

    epochs: int = 1
    seed: int = 42
    accumulate: int = 1
    precision: Precision = "fp32"
    log_every: int = 50
    save_every: int = 0
    keep: int = 3
    evaluate_every: int = 1
    evaluate_steps: int = 0
    metric: str = ""
    goal: Literal["max", "min"] = "max"
    patience: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "accumulate", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is at least 1, not {getattr(self, name)}")
        for name in ("save_every", "evaluate_every", "evaluate_steps", "patience"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is a number from 0 up, not {getattr(self, name)}")
        if self.patience and not self.metric:
            raise ConfigError("stopping early (patience) needs the metric to go by")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Where and how the run is computed; the result hardly depends on it.

    ``strategy`` is how several processes share the work. ``recompute`` is the number of blocks at the end of the image
    encoder whose activations are not kept. ``compile`` compiles the layers. ``log_every`` and ``save_every`` count
    steps; a checkpoint is written after every epoch in any case, and ``keep`` of them stay. ``charts`` are
    TensorBoard's logs and a loss curve at the end, beside the log that is always written.
    """

    device: str = "auto"
    strategy: Literal["ddp", "fsdp"] = "ddp"
    precision: Precision = "fp32"
    compile: bool = False
    recompute: int = 0
    log_every: int = 50
    save_every: int = 0
    keep: int = 3
    charts: bool = True
    timeout_minutes: float = 120.0


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """When the model is evaluated, by which ``metric`` the best one is kept, and which model the run leaves behind.

    ``every`` counts epochs, ``steps`` steps, 0 means never. ``images`` are the pictures described each time, by default
    ``samples`` of the validation data (or of the training data). ``batches`` of validation data are used, all if 0.
    ``final`` is "last", "best" by the metric, or the "average" of the last ``average`` checkpoints.
    """

    every: int = 1
    steps: int = 0
    images: tuple[str, ...] = ()
    samples: int = 4
    batches: int = 0
    metric: str = ""
    goal: Literal["max", "min"] = "max"
    patience: int = 0
    final: Literal["last", "best", "average"] = "last"
    average: int = 3

    def __post_init__(self) -> None:
        if self.final == "best" and not self.metric:
            raise ConfigError("final: best needs the metric to go by")
        if self.average < 1 or self.samples < 0 or self.batches < 0:
            raise ConfigError("average is at least 1, samples and batches are numbers from 0 up")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run.

    ``start``: what the weights come from: a checkpoint of this or of a task that leads to it, or for pretraining a ViT
    and a BERT; each is a bundle, a published name, a hub id, a folder or a file. ``tokenizer``: a vocabulary file or
    folder; by default the start's. ``batch_size`` is what one process computes at a time, and ``total_batch`` what a
    step is made of: on fewer processes than were published, more batches are accumulated.
    """

    task: Name
    start: tuple[str, ...] = ()
    out: str = ""
    seed: int = 42
    epochs: int = 5
    batch_size: int = 16
    total_batch: int | None = None
    tokenizer: str | None = None
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    loss: Any = None
    optimizer: AdamWSettings = field(default_factory=AdamWSettings)
    schedule: Schedule = field(default_factory=Schedule)
    lora: LoraSettings | None = None
    run: RunSettings = field(default_factory=RunSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)

    def __post_init__(self) -> None:
        if self.loss is None:
            object.__setattr__(self, "loss", LOSSES[self.task]())
        if self.run.strategy == "fsdp" and self.run.precision == "fp16":
            raise ConfigError("fp16 does not go with run.strategy=fsdp: take bf16")
        if self.evaluate.final == "average" and self.run.keep < self.evaluate.average:
            raise ConfigError(
                f"to average {self.evaluate.average} checkpoints, keep as many: run.keep is {self.run.keep}"
            )
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is at least 1, not {self.batch_size}")
        self._loop(accumulate=1)  # which refuses what cannot work

    @property
    def folder(self) -> Path:
        """Where everything that comes of the run goes."""
        return Path(self.out or f"runs/{self.task}")

    def loop(self, processes: int) -> LoopSettings:
        """What the loop is told, on so many processes."""
        at_once = self.batch_size * processes
        total = self.total_batch or at_once
        if total % at_once:
            raise ConfigError(
                f"total_batch {total} is not made of whole batches of {self.batch_size} on {processes} "
                f"process{'es' if processes > 1 else ''}"
            )
        return self._loop(accumulate=total // at_once)

    def _loop(self, accumulate: int) -> LoopSettings:
        run, evaluate = self.run, self.evaluate
        return LoopSettings(
            epochs=self.epochs,
            seed=self.seed,
            accumulate=accumulate,
            precision=run.precision,
            log_every=run.log_every,
            save_every=run.save_every,
            keep=run.keep,
            evaluate_every=evaluate.every,
            evaluate_steps=evaluate.steps,
            metric=evaluate.metric,
            goal=evaluate.goal,
            patience=evaluate.patience,
        )


# --- from files and words -----------------------------------------------------------------------------------------


def from_table(values: Mapping[str, Any]) -> Recipe:
    """A recipe from a table, as YAML gives it; :class:`ConfigError` for anything unknown or wrong."""
    values = dict(values)
    name = settings.convert(values.get("task"), Name, "task")
    loss = values.pop("loss", None)
    recipe = settings.build(Recipe, values)
    if loss is None:
        return recipe
    return dataclasses.replace(recipe, loss=settings.convert(loss, LOSSES[name], "loss"))


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with ``key=value`` overrides (``schedule.lr=1e-5``) applied."""
    return from_table(settings.override(settings.read_table(path), overrides))


def write_recipe(recipe: Recipe, path: Path) -> None:
    """A recipe with all its values, as a file that gives it again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(settings.write_yaml(settings.as_table(recipe)), encoding="utf-8")


# What may change when a run is resumed; anything else would make it another run.
FREE = (
    "out", "epochs", "run.device", "run.log_every", "run.save_every", "run.keep", "run.charts",
    "run.timeout_minutes", "data.workers", "data.val", "data.val_split", "evaluate",
)  # fmt: skip


def check_same_run(before: Recipe, now: Recipe) -> None:
    """Raise :class:`ConfigError` if a run that was begun with one recipe cannot go on with another."""
    changed = settings.differences(settings.as_table(before), settings.as_table(now))
    if other := [name for name in changed if not any(name == free or name.startswith(f"{free}.") for free in FREE)]:
        raise ConfigError(
            f"this run began with other settings: {', '.join(other)} differ; give another out to start anew"
        )


def example(name: Name, data: Sequence[str], start: str) -> dict[str, Any]:
    """The table of a run on a user's own data, before overrides: published values for this task, five epochs."""
    published: dict[Name, dict[str, Any]] = {
        "pretrain": {"schedule": {"lr": 1e-4}},
        "caption": {"schedule": {"lr": 1e-5}},
        "vqa": {"schedule": {"lr": 2e-5}},
        "retrieval": {"schedule": {"lr": 1e-5}},
        "nlvr": {"schedule": {"lr": 3e-5}},
        "grounding": {"schedule": {"lr": 1.5e-5}, "optimizer": {"weight_decay": 0.02}, "augment": {"jitter": 0.4}},
        "visdial": {"schedule": {"lr": 2e-5}},
    }
    return {"task": name, "start": start, "data": {"train": list(data)}, **published[name]}
