"""Stop the build of the image if packages of CUDA were installed: they are several gigabytes, and a CPU needs none."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from importlib.metadata import distributions

_CUDA = re.compile(r"(nvidia|cuda|triton)([-_].*)?", re.IGNORECASE)


def find_cuda(packages: Iterable[tuple[str, str]]) -> list[str]:
    """Return the packages of CUDA among names with versions."""
    return sorted(
        f"{name} {version}"
        for name, version in packages
        if _CUDA.fullmatch(name) or (name.lower() == "torch" and "+cu" in version)
    )


def main() -> int:
    """Print the packages of CUDA, and return 1 if there are any."""
    found = find_cuda((each.metadata["Name"], each.version) for each in distributions())
    if found:
        print(f"error: CUDA packages were installed: {', '.join(found)}", file=sys.stderr)
        print("build with --build-arg TORCH_INDEX=ADDRESS, an index with torch's wheels for CPUs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
