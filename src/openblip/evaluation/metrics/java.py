"""METEOR and SPICE, which are defined by their authors' Java programs: run here where they are installed."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path

PACKAGE = "pycocoevalcap"  # it brings the two programs along


def official(
    metric: str, hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> tuple[float, list[float]] | str:
    """The number of the corpus and of each item (tokens without punctuation), or the reason why there is none."""
    if reason := unavailable(metric):
        return reason
    found = {i: [" ".join(tokens)] for i, tokens in enumerate(hypotheses)}
    wanted = {i: [" ".join(tokens) for tokens in texts] for i, texts in enumerate(references)}
    return _meteor(wanted, found) if metric == "METEOR" else _spice(wanted, found)


def unavailable(metric: str) -> str:
    """Why a metric cannot be computed on this machine; "" if it can."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return "needs its official program: pip install 'openblip[java]'"
    if shutil.which("java") is None:
        return "needs Java to run its official program, and no `java` is on the path"
    folder = Path(spec.submodule_search_locations[0])
    if metric == "SPICE" and not (folder / "spice/lib/stanford-corenlp-3.6.0-models.jar").is_file():
        return (
            "its parser's models are not installed; `python -c 'from pycocoevalcap.spice.get_stanford_models import "
            "get_stanford_models as get; get()'` fetches them (about 400 MB)"
        )
    return ""


def _meteor(references: dict[int, list[str]], hypotheses: dict[int, list[str]]) -> tuple[float, list[float]]:
    from pycocoevalcap.meteor.meteor import Meteor

    score, each = Meteor().compute_score(references, hypotheses)
    return float(score), list(map(float, each))


def _spice(references: dict[int, list[str]], hypotheses: dict[int, list[str]]) -> tuple[float, list[float]]:
    from pycocoevalcap.spice.spice import Spice

    score, each = Spice().compute_score(references, hypotheses)
    return float(score), [float(item["All"]["f"]) for item in each]
