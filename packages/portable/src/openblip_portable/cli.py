"""`openblip-portable`: caption images with an exported model, and check an export."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from openblip_portable.errors import ImageError, PortableError
from openblip_portable.folder import ExportFolder
from openblip_portable.generation import Captioner

MODEL_VARIABLE = "OPENBLIP_PORTABLE_MODEL"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Command-line arguments; by default the arguments of the process.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage, 3 some images failed.
    """
    options = _parse(arguments)
    try:
        if options.model is None:
            raise PortableError(f"pass the exported folder with --model, or set {MODEL_VARIABLE}")
        folder = ExportFolder(options.model, threads=options.threads)
        if options.command == "check":
            folder.verify()
            print(f"{folder.path}: {folder.runtime}, {folder.precision}, complete: {', '.join(folder.tasks)}")
            return 0
        return _caption(Captioner(folder), options)
    except PortableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run() -> None:
    """Run the command line as a program."""
    sys.exit(main())


def _caption(captioner: Captioner, options: argparse.Namespace) -> int:
    failed = False
    for path in options.images:
        try:
            caption = captioner.caption(
                path, prompt=options.prompt, num_beams=options.num_beams, max_new_tokens=options.max_new_tokens
            )
        except ImageError as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
            continue
        if options.json:
            print(json.dumps({"image": path, **caption.to_dict()}, ensure_ascii=False), flush=True)
        else:
            print(f"{path}: {caption.text}" if len(options.images) > 1 else caption.text, flush=True)
    return 3 if failed else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--model",
        metavar="DIR",
        default=os.environ.get(MODEL_VARIABLE),
        help=f"exported folder [default: {MODEL_VARIABLE}]",
    )
    shared.add_argument("--threads", type=int, help="number of compute threads [default: all processors]")
    parser = argparse.ArgumentParser(prog="openblip-portable", description="Run exported BLIP models without PyTorch.")
    commands = parser.add_subparsers(dest="command", required=True)
    caption = commands.add_parser("caption", parents=[shared], help="caption images")
    caption.add_argument("images", nargs="+", metavar="FILE", help="images to caption")
    caption.add_argument("--prompt", help="text to start every caption with [default: the model's]")
    caption.add_argument(
        "--num-beams", type=int, metavar="N", help="number of beams; 1 is greedy [default: the model's]"
    )
    caption.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="maximum number of new tokens [default: the model's]"
    )
    caption.add_argument("--json", action="store_true", help="print one JSON object per line")
    commands.add_parser("check", parents=[shared], help="compare every file of an export with its hash")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run()
