"""Results of the public methods of an index: frozen dataclasses without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, overload

from openblip.io.jsonlines import Json
from openblip.search.images import IndexedImage

Outcome: TypeAlias = Literal["added", "changed", "moved", "copied", "unchanged", "removed", "captioned", "failed"]


@dataclass(frozen=True)
class Hit:
    """An image that a search found.

    Attributes:
        id: Id of the image in the index, which does not change when its file moves.
        name: Path below the indexed folder.
        path: Absolute path of the file.
        similarity: Cosine of the image and the query (ITC); `None` for a search by filters alone.
        probability: Probability that the image matches the text and none of the `minus` texts (ITM); `None` without a
            re-rank.
        caption: The caption, if the image has one.
        date: Local date and time: when the photo was taken, otherwise when its file was changed.
        width: Width in pixels.
        height: Height in pixels.
        duplicate_of: Id of the better hit that this one is a near-duplicate of.
        duplicates: Ids of worse hits that are near-duplicates of this one, including hidden ones.
    """

    id: str
    name: str
    path: str
    similarity: float | None
    probability: float | None
    caption: str | None
    date: str
    width: int
    height: int
    duplicate_of: str | None = None
    duplicates: tuple[str, ...] = ()

    @staticmethod
    def of(image: IndexedImage, similarity: float | None = None) -> Hit:
        """Return the hit of an image.

        Args:
            image: The image.
            similarity: Its cosine with the query.

        Returns:
            The hit, without a probability.
        """
        properties = (image.caption, image.date, image.width, image.height)
        return Hit(image.id, image.name, image.path, similarity, None, *properties)

    def to_dict(self) -> dict[str, Json]:
        """Return the hit as a dictionary for JSON.

        Returns:
            Its fields as strings, numbers and lists.
        """
        return {**vars(self), "duplicates": list(self.duplicates)}


@dataclass(frozen=True)
class UnreadableHit:
    """An image of the shortlist that could not be re-ranked.

    Attributes:
        id: Id of the image in the index.
        name: Path below the indexed folder.
        error: The reason, with the path of the file.
    """

    id: str
    name: str
    error: str


@dataclass(frozen=True)
class SearchResults(Sequence[Hit]):
    """The hits of a search, best first.

    Attributes:
        hits: The hits.
        searched: Number of images that passed the filter.
        best_rejected: Highest probability of the images that the re-rank left out; `None` if it left out none.
        errors: Images that could not be re-ranked. They are not in `hits`.
    """

    hits: tuple[Hit, ...]
    searched: int
    best_rejected: float | None = None
    errors: tuple[UnreadableHit, ...] = ()

    @property
    def nothing_found(self) -> bool:
        """Whether no image matches the query."""
        return not self.hits

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Hit, ...]: ...
    def __getitem__(self, index: int | slice) -> Hit | tuple[Hit, ...]:
        return self.hits[index]

    def to_dict(self) -> dict[str, Json]:
        """Return the results as a dictionary for JSON.

        Returns:
            The hits and the other fields as strings, numbers and lists.
        """
        return {
            "hits": [hit.to_dict() for hit in self.hits],
            "searched": self.searched,
            "best_rejected": self.best_rejected,
            "errors": [dict(vars(error)) for error in self.errors],
        }


@dataclass(frozen=True)
class IndexStatus:
    """The outcome of an update for one image.

    Attributes:
        name: Path of the image.
        outcome: "added", "changed" (embedded again), "moved" or "copied" (found by its content, not embedded again),
            "unchanged", "removed", "captioned" or "failed".
        error: Reason of a failure.
    """

    name: str
    outcome: Outcome
    error: str | None = None


@dataclass(frozen=True)
class IndexReport:
    """The outcome of an update of an index.

    Attributes:
        counts: Number of images by outcome.
        encoded: Number of images that passed through the image encoder.
        failures: Images that could not be indexed, with the reason.
        skipped: Number of skipped files, by kind.
    """

    counts: Mapping[Outcome, int]
    encoded: int
    failures: tuple[IndexStatus, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
