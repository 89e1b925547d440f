"""Run the model tests that the sdist of transformers ships against our classes, and count the results.

    pip download --no-binary :all: --no-deps -d DOWNLOADS transformers==5.23.0
    tar -xf DOWNLOADS/transformers-5.23.0.tar.gz -C DOWNLOADS
    python scripts/model_mixins.py DOWNLOADS/transformers-5.23.0 --out results.json

The test modules of BLIP import their classes from `transformers`. A copy of each module imports ours; nothing else is
changed. The mixins (`ModelTesterMixin`, `GenerationTesterMixin`, the processor mixins) then test our classes.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

MODULES = (
    "test_modeling_blip.py",
    "test_modeling_blip_text.py",
    "test_processing_blip.py",
    "test_image_processing_blip.py",
)
PATCH = """
import openblip.compat.transformers_api as _ours
import transformers as _theirs
for _name in {names!r}:
    if hasattr(_ours, _name):
        globals()[_name] = getattr(_ours, _name)
_ours.register_with_transformers()
"""
OURS = re.compile(r"\b(Blip\w+)\b")


def write_copy(source: Path, target: Path) -> None:
    """Copy a test module that uses our classes after its imports."""
    text = source.read_text()
    names = sorted(set(OURS.findall(text)) - set(re.findall(r"^class (Blip\w+)", text, re.MULTILINE)))
    first_class = re.search(r"^(?:@|class )", text, re.MULTILINE)
    assert first_class is not None
    cut = first_class.start()
    target.write_text(text[:cut] + PATCH.format(names=names) + "\n\n" + text[cut:])


def run(tests: Path, ours: bool) -> dict[str, str]:
    """Return the outcome of each test: passed, failed or skipped, with the error's first line."""
    folder = tests / "models" / "blip"
    paths = []
    for name in MODULES:
        source = folder / name
        if not source.is_file():
            continue
        path = folder / (f"test_ours_{name.removeprefix('test_')}" if ours else name)
        if ours:
            write_copy(source, path)
        paths.append(path)
    report = tests.parent / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *map(str, paths)]
    subprocess.run(command, cwd=tests.parent, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False)
    outcomes = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        failure = next((child for child in case if child.tag in ("failure", "error")), None)
        if failure is not None:
            outcomes[name] = "failed: " + (failure.get("message") or "").splitlines()[0][:200]
        else:
            outcomes[name] = "skipped" if any(child.tag == "skipped" for child in case) else "passed"
    return outcomes


def main() -> None:
    """Run the tests with the classes of transformers or with ours, and print counts and failures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sdist", type=Path, help="Folder of the unpacked sdist")
    parser.add_argument("--out", type=Path, help="File to write the outcome of each test to")
    parser.add_argument("--theirs", action="store_true", help="Test the classes of transformers, to see what they pass")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tests = Path(folder) / "tests"
        shutil.copytree(options.sdist / "tests", tests, ignore=shutil.ignore_patterns("fixtures"))
        if (options.sdist / "tests" / "fixtures").is_dir():
            shutil.copytree(options.sdist / "tests" / "fixtures", tests / "fixtures")
        outcomes = run(tests, not options.theirs)
    counts = collections.Counter(outcome.partition(":")[0] for outcome in outcomes.values())
    print(dict(counts), f"of {len(outcomes)}")
    for name, outcome in outcomes.items():
        if outcome.startswith("failed"):
            print(name, outcome, sep="  ")
    if options.out:
        options.out.write_text(json.dumps(outcomes, indent=2) + "\n")


if __name__ == "__main__":
    main()
