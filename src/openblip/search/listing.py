"""The images of an update, and the folders that it covers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from openblip.data.skips import PathFilter, Skips
from openblip.data.sources.images import path_kind
from openblip.errors import InputError
from openblip.jobs.items import Item, ListFormat, UnusableItem, open_items
from openblip.search.captions import caption_fields
from openblip.search.settings import is_storable


@dataclass(frozen=True)
class Listing:
    """The images of an update.

    Attributes:
        items: The images, and entries that are not images.
        roots: All indexed folders after the update, and whether their subfolders are indexed.
        complete: Folders whose images are all listed. Images below them are removed from the index if their files no
            longer exist.
    """

    items: Sequence[Item | UnusableItem]
    roots: Mapping[str, bool]
    complete: Sequence[str]


def list_images(
    paths: Sequence[str],
    indexed: Mapping[str, bool],
    *,
    recursive: bool = False,
    prune: bool = False,
    lists: ListFormat | None = None,
    chosen: PathFilter | None = None,
    skips: Skips | None = None,
    limit: int | None = None,
) -> Listing:
    """List the images that paths contain, each once.

    A folder without a usable image is not complete: its disk may not be mounted, so its images stay in the index.

    Args:
        paths: Images, folders, globs and lists. An empty list stands for all folders that were indexed before.
        indexed: The folders that were indexed before, and whether their subfolders were.
        recursive: Also search subfolders.
        prune: Whether to remove images of indexed folders that no longer exist.
        lists: Folder and columns of lists. Its `fields_of` is set to captions.
        chosen: Patterns that files must match.
        skips: Receives the number of skipped files.
        limit: Maximum number of images to list. Images that are not listed stay in the index as long as their files
            exist.

    Returns:
        The images and the folders.

    Raises:
        InputError: There is no path, and no folder was indexed before; or the name of a folder is not UTF-8.
    """
    if not paths and not indexed:
        raise InputError("expected at least one image or folder, got none, and no folder was indexed before")
    kinds = {path: path_kind(path) for path in paths}
    folders = {os.path.abspath(path): recursive for path in paths if kinds[path] == "folder"}  # noqa: PTH100
    if unusable := [path for path in folders if not is_storable(path)]:
        raise InputError(f"the name of an indexed folder must be UTF-8, got {unusable[0]!r}: rename it")
    pruned = [path for path in indexed if prune and is_gone(path)]
    if not paths:
        folders = {path: below for path, below in indexed.items() if path not in pruned}
    named = [path for path in paths if kinds[path] != "folder"]
    groups = [([path], below) for path, below in folders.items()] + ([(named, recursive)] if named else [])
    items: dict[str, Item | UnusableItem] = {}
    complete = list(pruned)
    for group, below in groups:
        listed = open_items(
            group,
            recursive=below,
            lists=replace(lists or ListFormat(), fields_of=caption_fields),
            chosen=chosen,
            skips=skips,
        )
        usable = 0
        for item in listed:
            file = item.file if isinstance(item, Item) else None
            items.setdefault(os.path.abspath(file) if file is not None else item.key, item)  # noqa: PTH100
            usable += file is not None
        if usable and group is not named:
            complete += group
    roots = {path: below for path, below in {**indexed, **folders}.items() if path not in pruned}
    return Listing(list(items.values())[:limit], roots, complete)


def explain_unusable(item: Item | UnusableItem) -> str | None:
    """Return why an item cannot be indexed; `None` if it names a file on this machine.

    Args:
        item: The item.
    """
    if isinstance(item, UnusableItem):
        return item.reason
    if item.file is None:
        return "must be an image file on this machine to be indexed, not an address or a member of a tar"
    return None


def is_gone(path: str) -> bool:
    """Return whether a file does not exist. Files in a folder that cannot be read count as existing.

    Args:
        path: The file or folder.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False
