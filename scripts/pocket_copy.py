r"""Copy parts of a model into another one, before training continues with these parts frozen.

    python scripts/pocket_copy.py --to runs/pocket/vqa-more/model --out runs/pocket/vqa-start/model \
        --from runs/pocket/caption-tuned/model vision.stem \
        --from runs/pocket/retrieval-tuned/model encoder.embeddings.word=text.embeddings.word

Every `--from` names a model and its parts; `TARGET=SOURCE` copies a part under another name. All tensors of a part must
exist in both models, with the same shapes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from openblip.checkpoints import read, write
from openblip.errors import ConfigError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True, help="folder of the model that gets the parts")
    parser.add_argument(
        "--from",
        dest="sources",
        metavar=("MODEL", "PART"),
        nargs="+",
        action="append",
        required=True,
        help="model and its parts",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write; the model of --to stays as it is")
    options = parser.parse_args()
    loaded = read.load(options.to)
    state = loaded.model.state_dict()
    for folder, *parts in options.sources:
        if not parts:
            parser.error(f"--from must name a part of {folder}")
        source = read.load(folder).model.state_dict()
        for part in parts:
            target_name, _, source_name = part.partition("=")
            copy_part(state, source, target_name, source_name or target_name)
    loaded.model.load_state_dict(state)
    write.save(loaded, options.out)


def copy_part(state: dict[str, Tensor], source: Mapping[str, Tensor], target_name: str, source_name: str) -> None:
    """Replace the tensors of a part in `state`; raise `ConfigError` unless it exists in both with the same shapes."""
    names = [name for name in state if name == target_name or name.startswith(f"{target_name}.")]
    if not names:
        raise ConfigError(f"the model has no part {target_name}")
    for name in names:
        tensor = source.get(source_name + name.removeprefix(target_name))
        if tensor is None or tensor.shape != state[name].shape:
            shapes = f"{tuple(state[name].shape)}, got {None if tensor is None else tuple(tensor.shape)}"
            raise ConfigError(f"{name} must exist in {source_name} with the shape {shapes}")
        state[name] = tensor


if __name__ == "__main__":
    main()
