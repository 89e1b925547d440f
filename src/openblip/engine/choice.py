"""The choice of engine and precision for `precision="auto"`.

What `openblip doctor --bench` measured on this machine decides, otherwise a table of processor classes. `docs/speed.md`
has the figures behind the table.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias, cast

from openblip._version import __version__
from openblip.defaults import EngineName, Precision, PrecisionOption
from openblip.io.atomic import write_text
from openblip.io.cache import cache_folder
from openblip.processor import processor_class, processor_name

Setting: TypeAlias = tuple[EngineName, Precision]

# The fastest setting per class of processor or device, of those that differ from fp32 by little; the second one is for
# machines without OpenVINO.
FASTEST: dict[str, tuple[Setting, Setting]] = {
    "amx": (("openvino", "int8"), ("torch", "bf16")),
    "avx512_bf16": (("openvino", "int8"), ("torch", "bf16")),
    "vnni": (("openvino", "int8"), ("torch", "fp32")),
    "other": (("openvino", "fp32"), ("torch", "fp32")),
    "cuda": (("torch", "bf16"), ("torch", "bf16")),
    "mps": (("torch", "fp32"), ("torch", "fp32")),  # not measured
}


@dataclass(frozen=True)
class Choice:
    """An engine and a precision, and why they were chosen.

    Attributes:
        engine: Name of the engine; "auto" if the engine follows from the precision and the task.
        precision: Name of the precision.
        reason: The reason, for people.
    """

    engine: EngineName
    precision: Precision
    reason: str

    def __str__(self) -> str:
        """Return one line for people."""
        return f"engine {self.engine}, precision {self.precision} ({self.reason})"


@dataclass(frozen=True)
class Measurement:
    """What `openblip doctor --bench` found on this machine.

    Attributes:
        processor: Model name of the processor.
        versions: Versions of the libraries that the figures depend on.
        settings: Captions per second by "engine:precision".
    """

    processor: str
    versions: dict[str, str]
    settings: dict[str, float]

    def best(self, *, engine: str | None = None) -> Setting | None:
        """Return the fastest setting, or the fastest of one engine; `None` if there is none."""
        names = [name for name in self.settings if engine is None or name.split(":")[0] == engine]
        if not names:
            return None
        fastest = max(names, key=self.settings.__getitem__)
        return cast(Setting, tuple(fastest.split(":")))


def choose(engine: EngineName, precision: PrecisionOption, device: str) -> Choice:
    """Choose what "auto" leaves open.

    Args:
        engine: Requested engine.
        precision: Requested precision.
        device: Type of the device: "cpu", "cuda" or "mps".

    Returns:
        The engine and precision to use. With a given precision, they are returned unchanged.
    """
    if precision != "auto":
        return Choice(engine, precision, "as requested")
    if device == "cpu" and (measurement := read_measurement()) is not None:
        setting = measurement.best(engine=None if engine == "auto" else engine)
        if setting is not None:
            return Choice(*setting, "measured by `openblip doctor --bench`")
    kind = processor_class() if device == "cpu" else device
    with_openvino, without = FASTEST.get(kind, FASTEST["other"])
    reason = f"{device} device" if device != "cpu" else f"processor class {kind}; `openblip doctor --bench` measures it"
    if device == "cuda" and not _cuda_has_bf16():
        with_openvino = without = ("torch", "fp16")
    if engine == "openvino":
        return Choice("openvino", with_openvino[1], reason)
    if engine == "auto":
        return Choice(*(with_openvino if has_openvino() else without), reason)
    return Choice(engine, without[1], reason)


def resolve_engine(choice: Choice) -> EngineName:
    """Return the engine of a choice, with "auto" resolved for tasks that OpenVINO supports."""
    if choice.engine != "auto":
        return choice.engine
    return "openvino" if choice.precision == "int8" and has_openvino() else "torch"


def has_openvino() -> bool:
    """Return whether the libraries of the OpenVINO engine are installed."""
    return find_spec("openvino") is not None and find_spec("nncf") is not None


def current_versions() -> dict[str, str]:
    """Return the versions that a measurement is valid for."""
    installed = [name for name in ("torch", "openvino") if find_spec(name) is not None]
    return {"openblip": __version__} | {name: version(name) for name in installed}


def read_measurement() -> Measurement | None:
    """Return the measurement of this machine, or `None` if there is none for its processor and libraries."""
    try:
        measurement = Measurement(**json.loads(_path().read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    valid = measurement.processor == processor_name() and measurement.versions == current_versions()
    return measurement if valid else None


def write_measurement(settings: dict[str, float]) -> Path:
    """Store captions per second by "engine:precision" for this machine, and return the file."""
    measurement = Measurement(processor_name(), current_versions(), settings)
    path = _path()
    write_text(path, json.dumps(asdict(measurement), indent=1) + "\n")
    return path


def _path() -> Path:
    return cache_folder() / "fastest.json"


def _cuda_has_bf16() -> bool:
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
