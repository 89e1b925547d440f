"""The update of an index: find new, changed, moved and deleted images, and embed the ones that need it."""

from __future__ import annotations

import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from openblip.data.images import FileImage
from openblip.errors import ImageError, OpenBlipError
from openblip.io.hashing import compute_sha256
from openblip.jobs.annotator import BlipAnnotator
from openblip.jobs.decisions import Compute
from openblip.jobs.items import Item, file_stamp
from openblip.jobs.run import Annotator, Result, compute
from openblip.pipelines.base import iter_chunks, prefetch
from openblip.search.captions import read_caption, read_date, stamp_caption
from openblip.search.images import Batch, IndexedImage, NewImage
from openblip.search.listing import Listing, explain_unusable, is_gone
from openblip.search.results import IndexStatus, Outcome
from openblip.search.store import Store

if TYPE_CHECKING:
    from openblip.blip import Blip

CHUNK = 256  # images that are looked up together
COMMIT_IMAGES, COMMIT_SECONDS = 64, 2.0  # new images are committed in groups of this size or age


@dataclass(frozen=True, eq=False)
class InspectedFile:
    """An image file, with its entry in the index.

    Attributes:
        item: The item.
        image: The image as it will be in the index, with the properties of its file.
        known: The image with this path in the index.
        is_same: Whether the file has the same content as `known`.
    """

    item: Item
    image: IndexedImage
    known: IndexedImage | None
    is_same: bool


@dataclass
class EmbedAnnotator(BlipAnnotator):
    """Embeds images, with their states.

    Attributes:
        keep_states: Whether the results have the states in fp16.
        encoded: Number of images that passed through the image encoder.
    """

    keep_states: bool = False
    encoded: int = 0

    def run(self, items: Iterator[Item]) -> Iterator[Result]:
        pipeline = self.blip.pipeline("retrieval")
        engine = id(pipeline.model.engine)
        sources = (item.source(self.frame) for item in items)
        for image in self.blip.encode_images(sources, task="retrieval", on_error="return"):
            if isinstance(image, OpenBlipError):
                yield image
                continue
            self.encoded += 1
            states = image.states[engine]
            embedding = pipeline.embed_images(states[None])[0].cpu().numpy()
            kept = states.half().cpu().numpy() if self.keep_states else None
            yield [{"embedding": embedding, "states": kept, "size": image.size or (0, 0)}]


@dataclass
class CaptionAnnotator(BlipAnnotator):
    """Captions images for the full-text search."""

    def run(self, items: Iterator[Item]) -> Iterator[Result]:
        for caption in self.blip.caption((item.source(self.frame) for item in items), on_error="return"):
            yield caption if isinstance(caption, OpenBlipError) else [{"text": caption.text}]


class IndexUpdate:
    """One pass over images that updates an index.

    Images with an unchanged size and time are skipped. The content of the others is hashed. If the content is already
    in the index, the image counts as moved if the file of the indexed image no longer exists, and as copied otherwise.
    All other images are embedded.

    Args:
        store: The store of the index.
        listing: The images, and the folders that they are in.
        load: Return the model, checked against the settings of the index. Called when the first image needs it.
        caption: Whether to caption images that have no caption.
        workers: Threads that read files.

    Attributes:
        counts: Number of images by outcome.
    """

    def __init__(
        self,
        store: Store,
        listing: Listing,
        load: Callable[[], Blip],
        *,
        caption: bool = False,
        workers: int = 2,
    ) -> None:
        self.store = store
        self.listing = listing
        self.caption = caption
        self.workers = workers
        self.counts: Counter[Outcome] = Counter()
        self._load = load
        self._embedder: EmbedAnnotator | None = None
        self._seen: set[str] = set()
        self._moved: set[str] = set()  # ids

    @property
    def encoded(self) -> int:
        """Number of images that passed through the image encoder."""
        return self._embedder.encoded if self._embedder is not None else 0

    def run(self) -> Iterator[IndexStatus]:
        """Update the index, and yield the outcome for each image.

        Yields:
            The status of every image.

        Raises:
            SearchError: The index cannot be written, or was made with another model.
        """
        with self.store.writing():
            if dict(self.listing.roots) != self.store.roots():
                self.store.set_roots(self.listing.roots)
            for status in self._update():
                self.counts[status.outcome] += 1
                yield status

    def _update(self) -> Iterator[IndexStatus]:
        for chunk in iter_chunks(self.listing.items, CHUNK):
            for item in chunk:
                if (reason := explain_unusable(item)) is not None:
                    yield IndexStatus(item.name, "failed", reason)
            yield from self._update_files([item for item in chunk if isinstance(item, Item) and item.file is not None])
        for root in self.listing.complete:
            yield from self._remove_missing(root)
        if self.caption:
            yield from self._caption_images()

    def _update_files(self, items: Sequence[Item]) -> Iterator[IndexStatus]:
        """Update the index for a chunk of image files."""
        paths = {item: os.path.abspath(str(item.file)) for item in items}  # noqa: PTH100 (links stay as they are)
        self._seen.update(paths.values())
        known = self.store.find_paths(list(paths.values()))
        pairs = ((item, path, known.get(path)) for item, path in paths.items())
        unknown: list[InspectedFile] = []
        batch, statuses = Batch(), list[IndexStatus]()
        for item, result in zip(items, prefetch(_inspect, pairs, self.workers, 4 * self.workers), strict=True):
            if isinstance(result, OpenBlipError):
                statuses.append(IndexStatus(item.name, "failed", str(result)))
            elif not result.is_same:
                unknown.append(result)
            else:
                if result.image != result.known:
                    batch.updated.append(result.image)
                statuses.append(IndexStatus(item.name, "unchanged"))
        remaining = self._reuse(unknown, batch, statuses)
        self._commit(batch)
        yield from statuses
        first: dict[str, InspectedFile] = {}  # by hash: an image that occurs several times is embedded once
        for file in remaining:
            first.setdefault(file.image.hash, file)
        yield from self._embed(list(first.values()))
        batch, statuses = Batch(), []
        repeated = [file for file in remaining if first[file.image.hash] is not file]
        failed = self._reuse(repeated, batch, statuses)
        self._commit(batch)
        yield from statuses
        for file in failed:
            peer = first[file.image.hash].item.name
            yield IndexStatus(file.item.name, "failed", f"its content equals {peer}, which cannot be indexed")

    def _reuse(self, files: Sequence[InspectedFile], batch: Batch, statuses: list[IndexStatus]) -> list[InspectedFile]:
        """Move or copy the images whose content is in the index, and return the other files."""
        peers = self.store.find_hashes([file.image.hash for file in files])
        remaining: list[InspectedFile] = []
        copied: list[tuple[IndexedImage, str]] = []
        for file in files:
            image, candidates = file.image, peers.get(file.image.hash, [])
            missing = [peer for peer in candidates if peer.id not in self._moved and is_gone(peer.path)]
            if not candidates:
                remaining.append(file)
            elif file.known is None and missing:
                peer = missing[0]
                self._moved.add(peer.id)
                batch.updated.append(_adopt(image, peer, peer.id))
                statuses.append(IndexStatus(file.item.name, "moved"))
            else:
                copied.append((_adopt(image, candidates[0], image.id), candidates[0].id))
                statuses.append(IndexStatus(file.item.name, "copied" if file.known is None else "changed"))
        if copied:
            embeddings = self.store.embeddings([source for _, source in copied])
            batch.new += [NewImage(image, embeddings[source]) for image, source in copied]
        return remaining

    def _embed(self, files: Sequence[InspectedFile]) -> Iterator[IndexStatus]:
        """Embed images, and add them to the index group by group."""
        if not files:
            return
        by_item = {file.item: file for file in files}
        batch, statuses, started = Batch(), list[IndexStatus](), time.monotonic()
        if self._embedder is None:
            self._embedder = EmbedAnnotator(self._load(), keep_states=self.store.settings.states == "stored")
        for decision, result in compute(self._embedder, [Compute(file.item) for file in files]):
            assert isinstance(decision, Compute)
            file = by_item[decision.item]
            path = file.image.path
            if isinstance(result, OpenBlipError):
                statuses.append(IndexStatus(file.item.name, "failed", str(result)))
            elif file_stamp(path) != file.image.stamp:
                statuses.append(IndexStatus(file.item.name, "failed", "it changed while it was read: run again"))
            else:
                (row,) = result or ()
                width, height = row["size"]
                image = replace(file.image, width=width, height=height)
                batch.new.append(NewImage(image, row["embedding"], row["states"]))
                statuses.append(IndexStatus(file.item.name, "added" if file.known is None else "changed"))
            if len(batch.new) >= COMMIT_IMAGES or time.monotonic() - started > COMMIT_SECONDS:
                self._commit(batch)
                yield from statuses
                batch, statuses, started = Batch(), [], time.monotonic()
        self._commit(batch)
        yield from statuses

    def _remove_missing(self, root: str) -> Iterator[IndexStatus]:
        """Remove the images below a folder whose files are gone."""
        images = self.store.iter_images(root)
        gone = (image for image in images if image.path not in self._seen and is_gone(image.path))
        for chunk in iter_chunks(gone, CHUNK):
            self._commit(Batch(removed=[image.id for image in chunk]))
            for image in chunk:
                yield IndexStatus(image.path, "removed")

    def _caption_images(self) -> Iterator[IndexStatus]:
        """Caption the listed images that have no caption."""
        images = (
            image
            for chunk in iter_chunks(sorted(self._seen), CHUNK)
            for image in self.store.find_paths(chunk).values()
            if image.caption is None
        )
        annotator: Annotator | None = None
        for chunk in iter_chunks(images, COMMIT_IMAGES):
            annotator = annotator or CaptionAnnotator(self._load())
            items = {Item(image.path, image.path, 0, (FileImage(image.path),), ""): image for image in chunk}
            batch, statuses = Batch(), list[IndexStatus]()
            for decision, result in compute(annotator, [Compute(item) for item in items]):
                assert isinstance(decision, Compute)
                image = items[decision.item]
                if isinstance(result, OpenBlipError):
                    statuses.append(IndexStatus(image.path, "failed", str(result)))
                else:
                    (row,) = result or ()
                    batch.updated.append(replace(image, caption=row["text"], caption_source="model"))
                    statuses.append(IndexStatus(image.path, "captioned"))
            self._commit(batch)
            yield from statuses

    def _commit(self, batch: Batch) -> None:
        if batch:
            self.store.write(batch)


def _inspect(pair: tuple[Item, str, IndexedImage | None]) -> InspectedFile:
    """Return a file with its hash, unless its size and time are unchanged.

    Raises:
        ImageError: The file cannot be read.
    """
    item, path, known = pair
    # The caption of a list stays until a list has another one, even if a later run names only the folder.
    listed = (
        known if known is not None and known.caption_source == "record" and not item.fields.get("caption") else None
    )
    stamp = file_stamp(path)
    caption_stamp = stamp_caption(item, path) if listed is None else listed.caption_stamp
    if known is not None and known.stamp == stamp and known.caption_stamp == caption_stamp:
        return InspectedFile(item, known, known, True)
    try:
        if not os.path.isfile(path):  # noqa: PTH113 (a pipe would wait)
            raise ImageError(f"cannot read {item.name}: no such file, or not a regular file")
        root = _find_root(item, path)
        if os.path.islink(path) and not _is_below(path, root):  # noqa: PTH114
            raise ImageError(f"it must not be a link to a file outside {root}; index the folder of the file instead")
        digest = known.hash if known is not None and known.stamp == stamp else compute_sha256(path)
    except OSError as error:
        raise ImageError(f"cannot read {item.name}: {error.strerror or error}") from error
    caption, source = read_caption(item, path) if listed is None else (listed.caption, "record")
    if caption is None and known is not None and known.caption_source == "model" and known.hash == digest:
        caption, source = known.caption, "model"
    image = IndexedImage(
        id=secrets.token_hex(8) if known is None else known.id,
        path=path,
        root=root,
        hash=digest,
        stamp=stamp,
        date=read_date(path, stamp),
        width=0 if known is None else known.width,
        height=0 if known is None else known.height,
        caption=caption,
        caption_source=source,
        caption_stamp=caption_stamp,
    )
    return InspectedFile(item, image, known, known is not None and known.hash == digest)


def _adopt(image: IndexedImage, peer: IndexedImage, id: str) -> IndexedImage:
    """Return an image with the size of an equal one, and with its caption if it is from the model or a list."""
    image = replace(image, id=id, width=peer.width, height=peer.height)
    if image.caption is None and peer.caption_source in ("model", "record"):
        image = replace(image, caption=peer.caption, caption_source=peer.caption_source)
    return image


def _is_below(path: str, folder: str) -> bool:
    """Return whether a file is below a folder after all links are resolved."""
    return os.path.realpath(path).startswith(os.path.realpath(folder).rstrip(os.sep) + os.sep)


def _find_root(item: Item, path: str) -> str:
    """Return the folder that an image was found in or below."""
    below = os.sep + item.inner_path.replace("/", os.sep)
    root = path.removesuffix(below) if path.endswith(below) else os.path.dirname(path)  # noqa: PTH120
    return root or os.sep
