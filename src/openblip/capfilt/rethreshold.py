"""Apply another rule to stored scores, without a model, images or torch."""

from __future__ import annotations

from collections import Counter

from openblip.capfilt import rows
from openblip.capfilt.folder import CapFiltFolder
from openblip.capfilt.images import update_tar
from openblip.capfilt.rules import Rule


def rethreshold(folder: CapFiltFolder, rule: Rule) -> Counter[str]:
    """Apply a rule to all shards of a folder.

    Each shard is replaced atomically. If the call is interrupted, the folder contains shards of the old and of the new
    rule until another call completes.

    Args:
        folder: The output of a run.
        rule: The rule.

    Returns:
        The counts of all shards.

    Raises:
        JobError: The folder contains no run, another process uses it, or a file cannot be read.
    """
    with folder.lock():
        return apply_rule(folder, rule)


def apply_rule(folder: CapFiltFolder, rule: Rule) -> Counter[str]:
    """Apply a rule, as `rethreshold` does, to a folder that the caller has locked."""
    settings = folder.require_settings()
    interrupted = not settings["complete"]
    counts: Counter[str] = Counter()
    folder.write_settings({**settings, "rule": rule.to_dict(), "complete": False})
    for shard in folder.shards():
        path = folder.rows_path(shard)
        metadata = rows.read_metadata(path)
        if metadata["rule"] != rule.to_dict() or interrupted:
            metadata["counts"] = _judge_shard(folder, shard, rule, metadata["job"], interrupted)
        counts.update(metadata["counts"])
    folder.write_settings({**settings, "rule": rule.to_dict(), "complete": True})
    return counts


def _judge_shard(folder: CapFiltFolder, shard: str, rule: Rule, job: str, everything: bool) -> Counter[str]:
    """Apply the rule to one shard: first to its tar, if it has one with verdicts, then to its rows."""
    path, tar = folder.rows_path(shard), folder.tar_path(shard, webdataset=True)
    before = rows.read_table(path)
    after = rows.judge(before, rule)
    if tar.exists():
        # After an interruption the tar may have the verdicts of a third rule.
        changed = after if everything else after.take(rows.changed_rows(before, after))
        update_tar(tar, rows.to_rows(changed), rule)
    rows.write_table(path, after, rule, job)
    return rows.count(after)
