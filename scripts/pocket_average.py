"""Average the weights of models that were trained one after another (Wortsman et al. 2022).

    python scripts/pocket_average.py --models runs/pocket/a/model runs/pocket/b/model --out runs/pocket/mean/model

`--shares` gives each model its share; by default all have the same. The models must have the same sizes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from openblip.checkpoints import read, write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="folders of the models")
    parser.add_argument("--shares", type=float, nargs="+", help="share of each model; the sum is 1")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    options = parser.parse_args()
    shares = options.shares or [1 / len(options.models)] * len(options.models)
    if len(shares) != len(options.models) or abs(sum(shares) - 1) > 1e-6:
        parser.error(f"--shares must be {len(options.models)} numbers that sum to 1, got {shares}")
    loaded = [read.load(path) for path in options.models]
    loaded[-1].model.load_state_dict(average([entry.model.state_dict() for entry in loaded], shares))
    write.save(loaded[-1], options.out)


def average(states: Sequence[dict[str, Tensor]], shares: Sequence[float]) -> dict[str, Tensor]:
    """Return the weighted mean of weights; values that are no fractions are those of the last model."""
    mean = dict(states[-1])
    for name, tensor in mean.items():
        if tensor.is_floating_point():
            parts = [share * state[name].double() for state, share in zip(states, shares, strict=True)]
            mean[name] = sum(parts[1:], start=parts[0]).to(tensor.dtype)
    return mean


if __name__ == "__main__":
    main()
