"""Where results go: one small class for each family of formats, all of which a job drives in the same way."""

from __future__ import annotations

from openblip.errors import JobError
from openblip.jobs.sinks.base import Existing as Existing
from openblip.jobs.sinks.base import Sink as Sink
from openblip.jobs.sinks.base import Writing as Writing
from openblip.jobs.sinks.folders import ImageFolder, Kohya
from openblip.jobs.sinks.lists import Csv, Jsonl, Npy, Parquet
from openblip.jobs.sinks.pictures import Metadata
from openblip.jobs.sinks.sidecars import Sidecars

SINKS: dict[str, type[Sink]] = {
    "sidecar": Sidecars, "jsonl": Jsonl, "csv": Csv, "parquet": Parquet, "imagefolder": ImageFolder, "kohya": Kohya,
    "metadata": Metadata, "npy": Npy,
}  # fmt: skip


def open_sink(to: str, writing: Writing) -> Sink:
    """The sink of a format; :class:`JobError` where the options do not fit it."""
    if to not in SINKS:
        raise JobError(f"unknown format {to!r}; one of {', '.join(SINKS)}")
    return SINKS[to](writing)
