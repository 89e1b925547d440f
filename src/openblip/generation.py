"""The decoding options that a captioner stores in `generation_config.json`, as in `transformers`. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from openblip.errors import ConfigError


@dataclass(frozen=True)
class GenerationDefaults:
    """Options of captions that apply where the caller leaves them out.

    Attributes:
        no_repeat_ngram_size: Size of the n-grams of tokens that must not occur twice; 0 allows all.
    """

    no_repeat_ngram_size: int = 0

    def to_dict(self) -> dict[str, int]:
        """Return the entries of `generation_config.json`: the options that differ from OpenBLIP's."""
        return {"no_repeat_ngram_size": self.no_repeat_ngram_size} if self.no_repeat_ngram_size else {}


def parse_generation(content: Mapping[str, object]) -> GenerationDefaults:
    """Return the defaults in the content of a `generation_config.json`. Other options of the file are ignored.

    Args:
        content: The content of the file; empty without one.

    Raises:
        ConfigError: If the size is not an integer of at least 0.
    """
    size = content.get("no_repeat_ngram_size")
    if size is None:  # as `transformers` writes an option that is not set
        return GenerationDefaults()
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise ConfigError(
            f"no_repeat_ngram_size of generation_config.json must be an integer of at least 0, got {size!r}"
        )
    return GenerationDefaults(size)
