"""The settings that a loaded model makes an index with."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from openblip._version import __version__
from openblip.checkpoints.fingerprint import fingerprint
from openblip.search.settings import Dtype, IndexSettings, StatesMode

if TYPE_CHECKING:
    from openblip.blip import Blip


def weights_of(blip: Blip) -> str:
    """Return the digest of a model's files: weights, configuration, vocabulary and image settings.

    Args:
        blip: A model that embeds images.

    Returns:
        16 hexadecimal digits.
    """
    return fingerprint(blip.pipeline("retrieval").model.source, ["retrieval"])["retrieval"]


def describe_model(blip: Blip, *, dtype: Dtype = "fp32", states: StatesMode = "none") -> IndexSettings:
    """Return the settings of an index that a model makes.

    Args:
        blip: A model that embeds images.
        dtype: Type of the stored embeddings.
        states: What happens to image states.

    Returns:
        The settings.
    """
    model = blip.pipeline("retrieval").model
    return IndexSettings(
        model=os.path.abspath(blip.name) if os.path.exists(blip.name) else blip.name,  # noqa: PTH100, PTH110
        weights=weights_of(blip),
        engine=model.engine.name,
        precision=blip.precision,
        decode="exact" if model.target_size is None else "fast",
        version=__version__,
        width=model.config.embed_width,
        tokens=model.config.vision.tokens,
        state_width=model.config.vision.width,
        dtype=dtype,
        states=states,
    )
