"""How a recipe is run, evaluated and saved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from openblip.errors import ConfigError

Precision = Literal["fp32", "bf16", "fp16"]
MatmulPrecision = Literal["highest", "high", "medium"]
Strategy = Literal["ddp", "fsdp"]


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Where and how the run is computed; the result hardly depends on it.

    Attributes:
        device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
        strategy: How several processes share the work.
        precision: Precision of the forward pass.
        matmul_precision: Precision inside products of fp32 matrices, by PyTorch's names: "high" lets a GPU use TF32,
            "medium" lets a CPU with AMX use bf16.
        compile: Compile the layers of the model.
        recompute_blocks: Blocks at the end of the image encoder whose activations are computed again in the backward
            pass, to save memory.
        log_every: Steps between two reports.
        save_every: Steps between two checkpoints; 0 saves at the end of each epoch only.
        keep_checkpoints: Number of checkpoints to keep.
        charts: Write TensorBoard logs and a loss curve next to the log.
        timeout_minutes: Time that processes wait for the first one while it evaluates or saves.

    Raises:
        ConfigError: If a value is out of range.
    """

    device: str = "auto"
    strategy: Strategy = "ddp"
    precision: Precision = "fp32"
    matmul_precision: MatmulPrecision = "highest"
    compile: bool = False
    recompute_blocks: int = 0
    log_every: int = 50
    save_every: int = 0
    keep_checkpoints: int = 3
    charts: bool = True
    timeout_minutes: float = 120.0

    def __post_init__(self) -> None:
        check_at_least(self, 1, "log_every", "keep_checkpoints")
        check_at_least(self, 0, "save_every", "recompute_blocks")
        if self.precision not in get_args(Precision):
            raise ConfigError(f"precision must be one of {', '.join(get_args(Precision))}, got {self.precision!r}")
        if self.matmul_precision not in get_args(MatmulPrecision):
            names = ", ".join(get_args(MatmulPrecision))
            raise ConfigError(f"matmul_precision must be one of {names}, got {self.matmul_precision!r}")
        if self.strategy == "fsdp" and self.precision == "fp16":
            raise ConfigError("precision must be fp32 or bf16 with strategy fsdp, got fp16")


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """When the model is evaluated, and which model the run leaves behind.

    Attributes:
        every_epochs: Epochs between two evaluations; 0 evaluates after no epoch.
        every_steps: Steps between two further evaluations; 0 makes none.
        images: Images to describe each time; by default `num_samples` images of the validation data, or of the
            training data if there is none.
        num_samples: Number of images to describe.
        max_batches: Batches of validation data to use; 0 uses all.
        num_captions: Validation images to caption and score by CIDEr (caption only).
        metric: Metric by which the best model is kept; empty keeps none.
        goal: Whether a higher ("max") or a lower ("min") metric is better.
        patience: Evaluations without a better metric that end the run; 0 never ends it.
        final: Model to leave behind: the "last" one, the "best" by the metric, or the "average" of checkpoints.
        average_checkpoints: Number of checkpoints to average.

    Raises:
        ConfigError: If a value is out of range, or `metric` is missing.
    """

    every_epochs: int = 1
    every_steps: int = 0
    images: tuple[str, ...] = ()
    num_samples: int = 4
    max_batches: int = 0
    num_captions: int = 0
    metric: str = ""
    goal: Literal["max", "min"] = "max"
    patience: int = 0
    final: Literal["last", "best", "average"] = "last"
    average_checkpoints: int = 3

    def __post_init__(self) -> None:
        check_at_least(self, 1, "average_checkpoints")
        check_at_least(self, 0, "every_epochs", "every_steps", "num_samples", "max_batches", "num_captions", "patience")
        if self.final == "best" and not self.metric:
            raise ConfigError("final: best needs a metric")
        if self.patience and not self.metric:
            raise ConfigError("patience needs a metric")


def check_at_least(settings: object, minimum: int, *names: str) -> None:
    """Raise `ConfigError` if one of the named settings is less than `minimum`."""
    for name in names:
        if getattr(settings, name) < minimum:
            raise ConfigError(f"{name} must be at least {minimum}, got {getattr(settings, name)}")
