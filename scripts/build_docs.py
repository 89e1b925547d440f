"""Build the documentation into `site/`, strictly, so that it needs no network.

The theme loads a script from a content delivery network that lets search run on pages opened from disk. This script
replaces it with ours, `docs/javascripts/file-worker.js`, and checks that no page loads anything from elsewhere.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SITE = ROOT / "site"
FOREIGN_WORKER = "https://unpkg.com/iframe-worker/shim"
OUR_WORKER = "javascripts/file-worker.js"
LOADED = re.compile(
    r'<(?:script|img|iframe|source)[^>]* src="(https?:[^"]*)|<link rel="stylesheet" href="(https?:[^"]*)'
)


def main() -> int:
    """Build the site; return 1 if the build fails or a page loads something from elsewhere."""
    build = [sys.executable, "-m", "zensical", "build", "--config-file", "mkdocs.yml", "--strict"]
    if subprocess.run(build, cwd=ROOT, check=False).returncode != 0:
        return 1
    foreign: list[str] = []
    for page in sorted(SITE.rglob("*.html")):
        text = page.read_text(encoding="utf-8")
        worker = os.path.relpath(SITE / OUR_WORKER, page.parent)
        text = text.replace(FOREIGN_WORKER, Path(worker).as_posix())
        page.write_text(text, encoding="utf-8")
        foreign += [f"{page.relative_to(SITE)}: {script or style}" for script, style in LOADED.findall(text)]
    for line in foreign:
        print(f"a page must load nothing from elsewhere, got {line}", file=sys.stderr)
    return 1 if foreign else 0


if __name__ == "__main__":
    sys.exit(main())
