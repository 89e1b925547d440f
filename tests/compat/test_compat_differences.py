"""Every difference has a name, a row in the docs, and a test that names it; transformers is not imported."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs" / "differences.md"


def _tests() -> dict[str, set[str]]:
    """Difference -> the tests whose docstrings name it."""
    tests: dict[str, set[str]] = {}
    for path in HERE.glob("test_*.py"):
        pattern = r"def (test_\w+)\([^)]*\)[^:]*:\n    \"\"\"(Differences? `[\w-]+`(?: and `[\w-]+`)?)"
        for test, names in re.findall(pattern, path.read_text(), re.DOTALL):
            for name in re.findall(r"`([\w-]+)`", names):
                tests.setdefault(name, set()).add(test)
    return tests


def test_docs_and_tests_name_the_same_differences() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \|.*\| ([^|]+) \|$", DOCS.read_text(), re.MULTILINE)
    documented = {name: set(re.findall(r"`(test_\w+)`", tests)) for name, tests in rows}
    assert len(documented) == len(rows) > 15
    assert documented == _tests()


def test_transformers_is_not_imported() -> None:
    code = (
        "import sys, openblip.compat.transformers_api as api; api.BlipConfig(); "
        "print([name for name in sys.modules if name.split('.')[0] in ('transformers', 'torchvision')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
