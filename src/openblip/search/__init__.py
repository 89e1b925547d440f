"""Search: an index of images that finds them by text, by image, and by folder, date and caption.

>>> from openblip.search import Filter, Index
>>> index = Index.open("photos.index")  # doctest: +SKIP
>>> index.search(blip, "a dog on a beach", rerank=50, where=Filter(after="2024"))[0].name  # doctest: +SKIP
'holiday/IMG_0042.jpg'
"""

from __future__ import annotations

from openblip.search.images import ImagePage, IndexedImage
from openblip.search.index import DUPLICATE, MIN_PROBABILITY, Index
from openblip.search.results import Hit, IndexReport, IndexStatus, SearchResults, UnreadableHit
from openblip.search.settings import Filter, IndexSettings

__all__ = [
    "DUPLICATE",
    "MIN_PROBABILITY",
    "Filter",
    "Hit",
    "ImagePage",
    "Index",
    "IndexReport",
    "IndexSettings",
    "IndexStatus",
    "IndexedImage",
    "SearchResults",
    "UnreadableHit",
]
