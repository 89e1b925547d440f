"""Runs exported BLIP models without PyTorch.

`openblip export` writes a folder; each class here runs one task of it, with the methods and results of `openblip.Blip`:

>>> from openblip_portable import Captioner  # doctest: +SKIP
>>> Captioner("captioner").caption("photo.jpg").text  # doctest: +SKIP
'a cat on a bed'
"""

from __future__ import annotations

from openblip_portable.errors import ExportError, ImageError, InputError, PortableError
from openblip_portable.folder import ExportFolder
from openblip_portable.generation import Answerer, Captioner
from openblip_portable.results import Answer, Box, Caption, Classification, Comparison, Label, Match
from openblip_portable.scoring import Comparer, Embedder, Grounder, Matcher

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "Answerer",
    "Box",
    "Caption",
    "Captioner",
    "Classification",
    "Comparer",
    "Comparison",
    "Embedder",
    "ExportError",
    "ExportFolder",
    "Grounder",
    "ImageError",
    "InputError",
    "Label",
    "Match",
    "Matcher",
    "PortableError",
    "__version__",
]
