"""Fit the confidence of a captioner's captions, and store it in its `config.json`.

    python scripts/pocket_confidence.py src/openblip/pocket --data DATA/val DATA/pocket/everyday_val.jsonl --images DATA

The model is a bundle with a captioner, or the folder of a captioner. It captions the photos of `--data` with the
default settings. A caption is right if it names the subject: a word that three of five people used, or a synonym.
Every other photo fits the calibration; the expected calibration error (ECE) on the other photos must not exceed
`--limit`, otherwise nothing is stored. `--itm` also fits the calibration that `openblip caption --score` uses; it needs
a bundle that matches.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import openblip
from openblip.checkpoints import write
from openblip.checkpoints.resolve import resolve
from openblip.data.records import Record
from openblip.data.sources import open_source
from openblip.data.sources.base import Source
from openblip.evaluation.confidence import fit_confidence

LIMIT = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="bundle, or folder of a captioner")
    parser.add_argument("--data", nargs="+", required=True, help="photos with captions by people")
    parser.add_argument("--images", type=Path, help="folder that relative paths in lists start in")
    parser.add_argument("--itm", action="store_true", help="also fit a calibration that takes the match into account")
    parser.add_argument("--limit", type=float, default=LIMIT, help="largest ECE to accept")
    parser.add_argument("--out", type=Path, help="JSON file to write the figures to")
    options = parser.parse_args()
    folder = resolve(options.model, "caption")
    records = read_records(options.data, options.images)
    fitted = fit_confidence(openblip.load(options.model, engine="torch"), records, itm=options.itm)
    print(json.dumps(fitted.figures | {"confidence": fitted.confidence.to_dict()}, indent=2))
    errors = [values["ECE"] for values in fitted.figures.values() if isinstance(values, dict)]
    if max(errors) > options.limit:
        sys.exit(f"the ECE must be at most {options.limit}, got {max(errors)}; nothing was stored")
    write.store_confidence(folder, fitted.confidence)
    if options.out is not None:
        options.out.write_text(json.dumps(fitted.figures, indent=2) + "\n", encoding="utf-8")


def read_records(sources: list[str], images: Path | None) -> list[Record]:
    """Return the records with captions of several sources; relative paths in lists start in `images`."""
    records: list[Record] = []
    for address in sources:
        source = open_source(address, images=images)
        assert isinstance(source, Source)
        records += [record for record in source if record.captions]
    return records


if __name__ == "__main__":
    main()
