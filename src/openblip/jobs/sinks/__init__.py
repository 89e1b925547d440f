"""Output formats of jobs. A job drives every sink through the methods of `BaseSink`.

The commands offer formats by name: `cli/options.py` (`LISTS`), `cli/caption.py` (`FORMATS`) and `cli/embed.py`. Their
help does not import this package, so `tests/cli/test_help.py` compares the names.
"""

from __future__ import annotations

from openblip.errors import InputError
from openblip.jobs.sinks.base import BaseSink as BaseSink
from openblip.jobs.sinks.base import Existing as Existing
from openblip.jobs.sinks.base import Sink as Sink
from openblip.jobs.sinks.base import SinkOptions as SinkOptions
from openblip.jobs.sinks.folders import ImageFolderSink, KohyaSink
from openblip.jobs.sinks.lists import CsvSink, JsonlSink, NpySink, ParquetSink
from openblip.jobs.sinks.metadata import MetadataSink
from openblip.jobs.sinks.sidecars import SidecarSink

SINKS: dict[str, type[Sink]] = {
    "sidecar": SidecarSink,
    "jsonl": JsonlSink,
    "csv": CsvSink,
    "parquet": ParquetSink,
    "imagefolder": ImageFolderSink,
    "kohya": KohyaSink,
    "metadata": MetadataSink,
    "npy": NpySink,
}


def open_sink(name: str, options: SinkOptions) -> Sink:
    """Return the sink that writes a format.

    Args:
        name: A key of `SINKS`.
        options: Location and behavior of the output.

    Returns:
        The sink that writes a format.

    Raises:
        InputError: The format is unknown, or the options do not fit it.
        JobError: Existing output cannot be read.
    """
    if name not in SINKS:
        raise InputError(f"format must be one of {', '.join(SINKS)}, got {name!r}")
    return SINKS[name](options)
