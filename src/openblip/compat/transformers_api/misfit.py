"""What to report about a file whose tensors do not fit a model. Free of torch."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

from openblip.checkpoints.folder import join_names
from openblip.checkpoints.layouts import hub_config, nearest
from openblip.errors import CheckpointError

_log = logging.getLogger(__name__)

# The class that loads each kind of hub folder.
_CLASS_NAMES = {kind: name for kind, name in hub_config.ARCHITECTURES.items() if name.startswith("Blip")}


@dataclass(frozen=True)
class Misfit:
    """The tensors of a file that do not fit a model, by their hub names.

    Attributes:
        source: The file.
        model: Name of the model's class.
        missing: Tensors of the model that the file lacks.
        unexpected: Tensors of the file that the model lacks.
        mismatched: Tensors of another shape.
    """

    source: str
    model: str
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]

    def report(self, names: Collection[str], *, fatal: bool) -> dict[str, list[str]]:
        """Raise for the misfit, or log it, if there is any.

        Args:
            names: All names of the file, to find the class that would load it.
            fatal: Whether to raise.

        Returns:
            The names, as `from_pretrained` returns them with `output_loading_info=True`.

        Raises:
            CheckpointError: If `fatal`.
        """
        groups = (("missing", self.missing), ("unknown", self.unexpected), ("of another shape", self.mismatched))
        problems = [f"{len(group)} {kind} ({join_names(group)})" for kind, group in groups if group]
        message = f"{self.source} does not fit {self.model}: tensors {'; '.join(problems)}"
        if fatal:
            layout, distance = nearest(names, "hub")
            hint = ""
            if distance == 0 and layout.task in _CLASS_NAMES:
                prefix = "TF" if self.model.startswith("TF") else ""
                hint = f"The file contains a {prefix}{_CLASS_NAMES[layout.task]}. "
            raise CheckpointError(
                f"{message}. {hint}To load it anyway, pass allow_missing=True: missing tensors are then random"
            )
        if problems:
            _log.warning("%s; missing tensors and tensors of another shape are random", message)
        return {
            "missing_keys": self.missing,
            "unexpected_keys": self.unexpected,
            "mismatched_keys": self.mismatched,
        }
