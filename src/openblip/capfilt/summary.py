"""The counts of a run in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

_REASONS = 5


def describe(counts: Mapping[str, int]) -> Iterator[str]:
    """Yield the lines of a summary.

    Args:
        counts: The counts of all rows; see `openblip.capfilt.rows.count`.
    """
    images, failed = counts.get("images", 0), counts.get("failed", 0)
    parts = [f"{images} images"]
    for source in ("web", "synthetic"):
        total, kept = counts.get(source, 0), counts.get(f"{source}_kept", 0)
        if total:
            parts.append(f"{kept} of {total} {source} texts kept ({kept / total:.0%})")
    yield ", ".join(parts)
    for number, prefix, noun in ((failed, "error: ", "failed"), (counts.get("rejected", 0), "text: ", "not scored")):
        if number:
            reasons = {key.removeprefix(prefix): n for key, n in counts.items() if key.startswith(prefix)}
            common = sorted(reasons.items(), key=lambda pair: -pair[1])
            listed = "; ".join(f"{n} x {reason}" for reason, n in common[:_REASONS])
            more = "; ..." if len(common) > _REASONS else ""
            what = "images or shards" if prefix == "error: " else "texts"
            yield f"{number} {what} {noun}: {listed}{more}"
