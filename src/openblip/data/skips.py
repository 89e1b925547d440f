"""Files that an input passes over: which ones, and how many of each kind (no torch)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

_MAX_LABELS = 5


@dataclass
class Skips:
    """Counts files and folders that are passed over, by kind.

    Attributes:
        counts: Number of files by kind and by label, such as "video" and ".mp4".
    """

    counts: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, kind: str, label: str = "", count: int = 1) -> None:
        """Count files.

        Args:
            kind: The kind, in the singular: "video".
            label: What tells files of the kind apart: a suffix, a folder or a name.
            count: Number of files.
        """
        self.counts.setdefault(kind, Counter())[label] += count

    def totals(self) -> dict[str, int]:
        """Return the number of files by kind."""
        return {kind: labels.total() for kind, labels in self.counts.items()}

    def extend(self, skips: Skips) -> None:
        """Count the files of another source, too."""
        for kind, labels in skips.counts.items():
            self.counts.setdefault(kind, Counter()).update(labels)

    def describe(self) -> str:
        """Return one line with all kinds, such as "3 videos (.mp4, .mov), 1 hidden image (.a.jpg)"."""
        parts = []
        for kind, labels in self.counts.items():
            names = [label for label in sorted(labels) if label]
            more = ", ..." if len(names) > _MAX_LABELS else ""
            listed = f" ({', '.join(names[:_MAX_LABELS])}{more})" if names else ""
            parts.append(f"{labels.total()} {kind if labels.total() == 1 else pluralize(kind)}{listed}")
        return ", ".join(parts)


@dataclass(frozen=True)
class PathFilter:
    """Globs that choose files by their path below a folder, or by their name. Case does not matter.

    A pattern with "/" fits the path; another one fits the name of the file, or of a folder that it is in.

    Attributes:
        include: Patterns, one of which a file must fit; no pattern fits the files with the suffix of an image.
        exclude: Patterns that no file may fit.
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    def reject(self, path: str) -> str:
        """Return the reason why a file is passed over, as a kind; "" if it is taken.

        Args:
            path: Path of the file below its folder.
        """
        if self.exclude and _fits(path, self.exclude):
            return "excluded file"
        return "file not included" if self.include and not _fits(path, self.include) else ""

    def excludes_folder(self, path: str) -> bool:
        """Return whether a folder is passed over with all its files."""
        return bool(self.exclude) and _fits(path, self.exclude)


def pluralize(kind: str) -> str:
    """Return the plural of a kind whose first words are its noun."""
    for word in (" in ", " of ", " without ", " that ", " not "):
        head, separator, tail = kind.partition(word)
        if separator:
            return f"{pluralize(head)}{separator}{tail}"
    return kind[:-1] + "ies" if kind.endswith("y") else kind + "s"


def _fits(path: str, patterns: Sequence[str]) -> bool:
    path = path.replace("\\", "/").lower()
    steps = path.split("/")
    for pattern in patterns:
        glob = pattern.replace("\\", "/").lower().removeprefix("./").rstrip("/")
        if "/" not in glob and any(fnmatchcase(step, glob) for step in steps):
            return True
        if "/" in glob and (fnmatchcase(path, glob) or fnmatchcase(path, f"{glob}/*")):
            return True
    return False
