"""``openblip doctor``: what is installed here, and what is missing for which command."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import typer

from openblip import __version__
from openblip.cli.console import FAILED, print_json, print_table
from openblip.cli.options import Json

# What optional libraries are for, by the extra that brings them.
OPTIONAL = {
    "pyarrow": ("data", "Parquet: --to parquet, lists and data sets in .parquet"),
    "fsspec": ("data", "pictures, lists and tars at s3://, gs:// and the like"),
    "datasets": ("data", "hub:NAME, data sets of the Hugging Face hub"),
    "pillow-heif": ("heif", "HEIC pictures"),
    "pyyaml": ("train", "openblip train run RECIPE.yaml"),
    "tensorboard": ("train", "curves of training in TensorBoard"),
    "matplotlib": ("train", "curves of training as pictures"),
}


def doctor(json: Json = False) -> None:
    """Say what is installed, where it runs, and what is missing for which command. In Python: openblip.__version__.

    \b
    Example:
      openblip doctor --json
    """
    found = list(_findings())
    if json:
        for what, state, told in found:
            print_json({"what": what, "state": state, "told": told})
    else:
        print_table(["", "", ""], found)
    if any(state == "broken" for _, state, _ in found):
        raise typer.Exit(FAILED)


def _findings() -> Iterator[tuple[str, str, str]]:
    """What was looked at, whether it is "ok", "missing" or "broken", and what there is to say."""
    from openblip.checkpoints.bundle import POCKET
    from openblip.checkpoints.bundle import read as read_bundle
    from openblip.errors import OpenBlipError

    yield "openblip", "ok", f"{__version__} in {Path(__file__).parents[1]}"
    yield "python", "ok", f"{platform.python_version()} on {platform.platform()}"
    yield from _torch()
    try:
        yield "pocket model", "ok", f"serves {', '.join(read_bundle(POCKET).models)}"
    except OpenBlipError as error:
        yield "pocket model", "broken", str(error)
    yield from _cache()
    for library, (extra, purpose) in OPTIONAL.items():
        version = _version(library)
        if version is not None:
            yield library, "ok", version
        else:
            yield library, "missing", f"for {purpose}: pip install 'openblip[{extra}]'"


def _torch() -> Iterator[tuple[str, str, str]]:
    try:
        import torch

        from openblip.engine.create import ENGINES
    except Exception as error:  # whatever a broken installation raises
        yield "torch", "broken", f"{type(error).__name__}: {error}"
        return
    yield "torch", "ok", torch.__version__
    places = [f"{torch.get_num_threads()} CPU threads"]
    places += [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    places += ["mps"] if torch.backends.mps.is_available() else []
    yield "devices", "ok", ", ".join(places)
    yield "engines", "ok", ", ".join(ENGINES)


def _cache() -> Iterator[tuple[str, str, str]]:
    """Where downloads go, and whether there is room."""
    from huggingface_hub.constants import HF_HUB_CACHE

    place = Path(HF_HUB_CACHE)
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    free = shutil.disk_usage(there).free / 1e9
    writable = os.access(there, os.W_OK)
    offline = ", offline (HF_HUB_OFFLINE)" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
    state = "ok" if writable else "missing"
    yield "cache", state, f"{place}, {free:.1f} GB free{'' if writable else ', not writable'}{offline}"


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
