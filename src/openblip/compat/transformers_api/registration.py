"""Recognition of our classes by `transformers`, which is never imported here.

`Trainer`, `peft` and pipelines ask whether a model is a `transformers.PreTrainedModel`, and save its configuration only
then. Once `transformers` is loaded, its base class becomes the last base of ours: `isinstance` holds, and the methods
that we do not define come from there. Ours come first, so results do not change.
"""

from __future__ import annotations

import sys


def join_transformers(base: type) -> None:
    """Make a base class of models a subclass of the one of `transformers`, if that is loaded.

    Args:
        base: Our base class.
    """
    theirs = getattr(sys.modules.get("transformers.modeling_utils"), "PreTrainedModel", None)
    if theirs is not None and theirs not in base.__mro__:
        base.__bases__ = (*base.__bases__, theirs)
