"""`openblip doctor`: report the installed and the missing parts."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import click

from openblip import __version__
from openblip.cli.command import FAILED, command, option
from openblip.cli.console import print_json, print_table
from openblip.cli.options import json_option

# The purpose of each extra.
PURPOSES = {
    "data": "Parquet, remote files and datasets of the Hugging Face hub",
    "export": "openblip export: ONNX and OpenVINO files",
    "fetch": "fetching web images in CapFilt",
    "heif": "HEIC images",
    "jxl": "JPEG XL images",
    "jax": "the TFBlip classes with JAX",
    "java": "METEOR and SPICE",
    "openvino": "--engine openvino, the fastest engine on a CPU",
    "plot": "`Box.plot` and `Explanation.plot`",
    "pocket": "training pocket: the pretrained parts of recipes/pocket",
    "postgres": "an index of images in PostgreSQL",
    "ray": "CapFilt and batch jobs on Ray",
    "search": "faster scans of fp16 indexes",
    "serve": "openblip serve: the HTTP API and the web page",
    "tensorflow": "the TFBlip classes with TensorFlow",
    "train": "openblip train",
    "video": "videos",
}


@command(example="openblip doctor --json")
@option("--bench", is_flag=True, help="Measure the engines for about a minute, and store the fastest for --fast.")
@json_option
def doctor(bench: bool, json: bool) -> None:
    """Report the installation and its missing parts."""
    checks = list(bench_engines() if bench else run_checks())
    if json:
        for name, state, detail in checks:
            print_json({"name": name, "state": state, "detail": detail})
    else:
        print_table(["", "", ""], checks)
    if any(state == "broken" for _, state, _ in checks):
        raise click.exceptions.Exit(FAILED)


def run_checks() -> Iterator[tuple[str, str, str]]:
    """Yield for every check its name, its state ("ok", "missing" or "broken") and a detail."""
    from openblip.checkpoints.folder import Bundle
    from openblip.errors import OpenBlipError

    yield "openblip", "ok", f"{__version__} in {Path(__file__).parents[1]}"
    yield "python", "ok", f"{platform.python_version()} on {platform.platform()}"
    yield from check_torch()
    try:
        pocket = Bundle.find("pocket")
        yield "pocket model", "ok", f"supports {', '.join(pocket.models if pocket else ())}"
    except OpenBlipError as error:
        yield "pocket model", "broken", str(error)
    yield check_cache()
    yield from check_optional_libraries()


def bench_engines() -> Iterator[tuple[str, str, str]]:
    """Measure the engines and precisions of this machine, and store the rates for `--fast` and `--precision auto`.

    Yields:
        The rate of every setting, and the choice.
    """
    from openblip.bench import measure_settings
    from openblip.engine.choice import choose, write_measurement

    rates: dict[str, float] = {}
    for (engine, precision), rate in measure_settings():
        if isinstance(rate, float):
            rates[f"{engine}:{precision}"] = rate
            yield f"{engine} {precision}", "ok", f"{rate:.2f} captions/s"
        else:
            yield f"{engine} {precision}", "missing", rate
    path = write_measurement(rates)
    yield "choice", "ok", f"{choose('auto', 'auto', 'cpu')}, stored in {path}"


def check_torch() -> Iterator[tuple[str, str, str]]:
    """Yield torch, its devices and the engines, or the reason why torch cannot be imported."""
    try:
        import torch

        from openblip.engine.create import ENGINES
    except Exception as error:  # a broken installation raises anything
        yield "torch", "broken", f"{type(error).__name__}: {error}"
        return
    devices = [f"{torch.get_num_threads()} CPU threads"]
    devices += [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    yield "torch", "ok", torch.__version__
    yield "devices", "ok", ", ".join(devices)
    yield "engines", "ok", ", ".join(ENGINES)


def check_cache() -> tuple[str, str, str]:
    """Return the folder of downloads, its free space, and whether it is writable."""
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE)
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(existing).free / 1e9
    writable = os.access(existing, os.W_OK)
    offline = ", offline (HF_HUB_OFFLINE)" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
    detail = f"{cache}, {free:.1f} GB free{'' if writable else ', not writable'}{offline}"
    return "cache", "ok" if writable else "missing", detail


def check_optional_libraries() -> Iterator[tuple[str, str, str]]:
    """Yield the version of each optional library, or the command that installs it."""
    from importlib.metadata import distributions  # 30 ms, which --help must not spend

    from openblip.extras import install_hint, user_extras

    versions = {distribution.name.lower(): distribution.version for distribution in distributions()}
    for extra, libraries in user_extras().items():
        for library in libraries:
            if library.lower() in versions:
                yield library, "ok", versions[library.lower()]
            else:
                yield library, "missing", f"for {PURPOSES.get(extra, extra)}: {install_hint(extra)}"
