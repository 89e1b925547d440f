"""Draw the records of the benchmarks for docs/speed.md: `python -m benchmarks.plots`.

`speed-rows.png` shows the speed of each row of `results/inference.json` relative to `transformers` in fp32,
`speed-rows-avx512.png` that of `results/inference-avx512.json`, and `speed-batches.png` the captions per second of
`results/sweep.json` by batch size and beams.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.inference import HERE

IMAGES = HERE.parent / "docs" / "images"
TITLES = {
    "caption_1_beams": "caption 1 image,\n3 beams",
    "caption_32_beams": "caption 32 images,\n3 beams",
    "vqa_8": "8 questions\non 1 image",
    "itm_1x64": "match 1 image\nwith 64 texts",
    "embed_jpeg": "embed 64\nJPEG files",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw what there are records of."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--out", type=Path, default=IMAGES)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    pictures = {
        "inference": (draw_rows, "speed-rows.png"),
        "inference-avx512": (draw_rows, "speed-rows-avx512.png"),
        "sweep": (draw_batches, "speed-batches.png"),
    }
    for name, (draw, file) in pictures.items():
        path = options.results / f"{name}.json"
        if path.is_file():
            draw(json.loads(path.read_text(encoding="utf-8")), options.out / file)
            print(f"written: {file}")
    return 0


def draw_rows(record: dict[str, Any], path: Path) -> None:
    """Draw the speed of each row relative to `transformers` in fp32, as bars on a logarithmic scale."""
    figure, axes = _figure()
    rows = [name for name in TITLES if any(line["row"] == name for line in record["rows"])]
    names = list(dict.fromkeys(line["who"] for line in record["rows"] if line["row"] in rows))
    names = [name for name in names if name != "transformers fp32"]
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        own = [line for line in record["rows"] if line["who"] == name and line["row"] in rows]
        ratios = {line["row"]: line["ratios"]["shipped"]["median"] for line in own}
        positions = [rows.index(row) + (number - (len(names) - 1) / 2) * width for row in ratios]
        axes.bar(positions, list(ratios.values()), width, label=name)
    axes.set_yscale("log")
    axes.set_yticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(rows)), [TITLES[row] for row in rows])
    axes.set_ylabel("times the speed of transformers fp32")
    _save(figure, axes, record, path)


def draw_batches(record: dict[str, Any], path: Path) -> None:
    """Draw captions per second by batch size: one line per contestant, one style per number of beams."""
    figure, axes = _figure()
    cells = record["cells"]
    names = list(dict.fromkeys(cell["who"] for cell in cells))
    styles = dict(zip(sorted({cell["beams"] for cell in cells}), ("-", "--", ":", "-."), strict=False))
    for number, name in enumerate(names):
        for beams, style in styles.items():
            own = [cell for cell in cells if (cell["who"], cell["beams"]) == (name, beams)]
            points = [(cell["batch"], cell["per_second"]) for cell in own]
            label = f"{name}, {'greedy' if beams == 1 else f'{beams} beams'}"
            axes.plot(*zip(*sorted(points), strict=True), style, marker="o", color=f"C{number}", label=label)
    axes.set_xscale("log", base=2)
    batches = sorted({cell["batch"] for cell in cells})
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set_xlabel("images per batch")
    axes.set_ylabel("captions per second")
    axes.set_ylim(bottom=0)
    _save(figure, axes, record, path)


def _figure() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(9, 4.5), layout="constrained")


def _save(figure: Any, axes: Any, record: dict[str, Any], path: Path) -> None:
    machine = record["machine"]
    features = {"amx_bf16", "avx512_bf16"} & set(machine["instructions"])
    kind = "AMX" if "amx_bf16" in features else "AVX-512 BF16" if features else "no bf16"
    axes.set_title(f"{machine['processor']}, {machine['cores']} cores, {kind}", fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    raise SystemExit(main())
