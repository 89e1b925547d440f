"""Count the functions that one caption and one load of the captioner pass through.

Run it from the repository's root::

    python scripts/trace_calls.py            # both walks, one row each, and the caption without the load
    python scripts/trace_calls.py --list     # also every function, in the order of its first call

Only functions of this package count, without `model/`, `decoding/`, `engine/` and `preprocess/`, which do the
arithmetic: the others are the path that a reader has to follow. A comprehension belongs to the function around it. All
modules are imported first, so that nothing that runs at import time counts.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import io
import os
import pkgutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import openblip
from openblip import cli
from openblip.errors import OpenBlipError

PACKAGE = Path(openblip.__file__).parent
ARITHMETIC = ("model", "decoding", "engine", "preprocess")
COMPREHENSIONS = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")
PHOTO = Path(__file__).parents[1] / "examples" / "photos" / "cat.jpg"


def main() -> None:
    """Print one row per walk: its functions and files."""
    parser = argparse.ArgumentParser(description="Count the functions that a caption and a load pass through.")
    parser.add_argument("--list", action="store_true", help="Also list every function.")
    options = parser.parse_args()
    os.environ.pop("HF_HUB_OFFLINE", None)  # offline mode looks for the files of every model
    for module in pkgutil.walk_packages([str(PACKAGE)], "openblip."):
        with contextlib.suppress(ImportError, OpenBlipError):  # of an extra that is not installed
            importlib.import_module(module.name)
    walks = {"openblip caption photo.jpg": caption_photo, 'openblip.load("pocket"), captioner': load_captioner}
    traces = {title: trace(walk) for title, walk in walks.items()}
    caption, load = traces.values()
    traces["the caption without the load"] = [call for call in caption if call not in load]
    for title, calls in traces.items():
        files = {file for file, _ in calls}
        print(f"{title:36} {len(calls):4d} functions in {len(files):3d} files")
        if options.list:
            for file, function in calls:
                print(f"    {file}  {function}")


def caption_photo() -> None:
    """Run the command on one photo."""
    arguments, sys.argv = sys.argv, ["openblip", "caption", str(PHOTO)]
    try:
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
            cli.main()
    finally:
        sys.argv = arguments


def load_captioner() -> None:
    """Load the bundled captioner, weights included."""
    openblip.load("pocket", task="caption").pipeline("caption")


def trace(walk: Callable[[], None]) -> list[tuple[str, str]]:
    """Return the file and name of every distinct function that `walk` calls, in any thread."""
    calls: dict[tuple[str, str], None] = {}

    def record(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_flags & inspect.CO_OPTIMIZED or code.co_name in COMPREHENSIONS:
            return  # module and class bodies run at import
        path = Path(code.co_filename)
        if path.is_relative_to(PACKAGE) and path.relative_to(PACKAGE).parts[0] not in ARITHMETIC:
            name = getattr(code, "co_qualname", code.co_name)  # Python 3.11
            calls[str(path.relative_to(PACKAGE)), f"{name}:{code.co_firstlineno}"] = None

    threading.setprofile(record)
    sys.setprofile(record)
    try:
        walk()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return list(calls)


if __name__ == "__main__":
    main()
