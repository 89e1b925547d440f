"""An index of images: `add` fills and updates it, `search` finds images by text, image and filters."""

from __future__ import annotations

import os
import stat
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from openblip.data.skips import PathFilter, Skips
from openblip.errors import ImageError, InputError, OpenBlipError
from openblip.io import limits
from openblip.io import progress as progress_bars
from openblip.io.cache import cache_folder
from openblip.io.limits import Limit, Stop
from openblip.search.describe import describe_model, weights_of
from openblip.search.images import ImagePage, IndexedImage
from openblip.search.listing import Listing, list_images
from openblip.search.local import FILE, LocalStore
from openblip.search.results import Hit, IndexReport, SearchResults, UnreadableHit
from openblip.search.settings import Dtype, Filter, IndexSettings, StatesMode
from openblip.search.state_cache import StateCache
from openblip.search.store import Store

if TYPE_CHECKING:
    from openblip.blip import Blip
    from openblip.pipelines.inputs import ImageInput
    from openblip.search.update import IndexUpdate

DUPLICATE = 0.98
"""Cosine from which two images are near-duplicates."""
MIN_PROBABILITY = 0.5
"""Minimum probability of a match (ITM) for the re-rank to keep an image."""
CACHE_BYTES = 2 << 30
"""Size of the cache of image states."""
_MAX_COUNT = 2**31 - 1
_BLOCK = 1024  # hits that are compared at once for near-duplicates
_OPEN_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_BINARY", "O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"))


class Index:
    """An index of images in a folder, or in a PostgreSQL database. Make one with `create`, or open one with `open`.

    Any number of threads can search one `Index`, while another thread or process adds images.

    Examples:
        >>> index = Index.create("photos.index", blip)  # doctest: +SKIP
        >>> index.add(["photos"], blip, recursive=True).counts  # doctest: +SKIP
        Counter({'added': 1234})
        >>> for hit in index.search(blip, "a dog on a beach", rerank=50):  # doctest: +SKIP
        ...     print(hit.name, hit.probability)
    """

    def __init__(self, store: Store, *, cache_bytes: int = CACHE_BYTES) -> None:
        self._store = store
        self._checked: weakref.WeakSet[Blip] = weakref.WeakSet()  # models that made the index
        self._cache = None
        if store.settings.states == "cache":
            settings = store.settings
            shape = (settings.tokens, settings.state_width)
            folder = Path(store.location) / "states-cache"
            if not isinstance(store, LocalStore):
                folder = cache_folder() / "search" / settings.weights
            self._cache = StateCache(folder, shape, cache_bytes)

    @staticmethod
    def create(
        location: str | os.PathLike[str],
        blip: Blip,
        *,
        dtype: Dtype | None = None,
        states: StatesMode = "none",
        cache_bytes: int = CACHE_BYTES,
    ) -> Index:
        """Create an empty index.

        Args:
            location: A folder that is empty or does not exist, or the address of a PostgreSQL database.
            blip: The model that will embed the images.
            dtype: Type of the stored embeddings: "fp32", or "fp16" for half the space. By default fp32 in a folder,
                and fp16 in a database.
            states: Where the re-rank gets image states from: "none" computes them in each search, "cache" keeps the
                states of recent searches, and "stored" stores the states of all images.
            cache_bytes: Maximum size of the cache of image states, in bytes.

        Returns:
            The index.

        Raises:
            SearchError: The location is not empty, or cannot be written.
            UnsupportedTaskError: The model does not embed images.
        """
        address = os.fspath(location)
        dtype = dtype or ("fp16" if is_database(address) else "fp32")
        settings = describe_model(blip, dtype=dtype, states=states)
        if is_database(address):
            from openblip.search.postgres import PostgresStore

            return Index(PostgresStore.create(address, settings), cache_bytes=cache_bytes)
        return Index(LocalStore.create(Path(address), settings), cache_bytes=cache_bytes)

    @staticmethod
    def open(location: str | os.PathLike[str], *, cache_bytes: int = CACHE_BYTES) -> Index:
        """Open an index.

        Args:
            location: The folder of the index, or the address of its PostgreSQL database.
            cache_bytes: Maximum size of the cache of image states, in bytes.

        Returns:
            The index.

        Raises:
            SearchError: There is no index, or another version of OpenBLIP made it.
        """
        address = os.fspath(location)
        if is_database(address):
            from openblip.search.postgres import PostgresStore

            return Index(PostgresStore(address), cache_bytes=cache_bytes)
        return Index(LocalStore(Path(address)), cache_bytes=cache_bytes)

    def __enter__(self) -> Index:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return self._store.count()

    def __repr__(self) -> str:
        """Return the location and the model of the index."""
        return f"Index({self._store.location!r}, model={self.settings.model!r})"

    @property
    def settings(self) -> IndexSettings:
        """The settings of the index, including the weights that computed its embeddings."""
        return self._store.settings

    @property
    def roots(self) -> Mapping[str, bool]:
        """The indexed folders, and whether their subfolders are indexed too."""
        return self._store.roots()

    def close(self) -> None:
        """Close the files and connections of the index."""
        self._store.close()

    def check_model(self, blip: Blip) -> None:
        """Check that a model can search this index.

        Args:
            blip: The model.

        Raises:
            SearchError: The index was made with other weights.
        """
        if blip not in self._checked:
            self.settings.check_same_weights(weights_of(blip), blip.name)
            self._checked.add(blip)

    # Adding images.

    def add(
        self,
        paths: Sequence[str | os.PathLike[str]],
        blip: Blip | Callable[[], Blip],
        *,
        recursive: bool = False,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        caption: bool = False,
        prune: bool = False,
        progress: bool = False,
    ) -> IndexReport:
        """Add new images, and update changed, moved and deleted ones.

        Unchanged images are skipped. Images whose content is already in the index under another path are not embedded
        again. An image that cannot be read is reported as a failure; the others are indexed.

        Args:
            paths: Images, folders, globs and lists. An empty sequence updates all folders that were indexed before.
            blip: The model, or a function that loads it, which is called only if an image must be embedded.
            recursive: Also search subfolders.
            include: Globs of files to index.
            exclude: Globs of files and folders to skip.
            caption: Caption the images that have no caption, for the full-text search.
            prune: Also remove images of indexed folders that no longer exist.
            progress: Whether to show a progress bar.

        Returns:
            The number of images by outcome, and the failures.

        Raises:
            SearchError: The index was made with another model, or cannot be written.
            InputError: `paths` is empty, and no folder was indexed before.
        """
        skips = Skips()
        chosen = PathFilter(tuple(include), tuple(exclude))
        names = [os.fspath(path) for path in paths]
        listing = list_images(names, self._store.roots(), recursive=recursive, prune=prune, chosen=chosen, skips=skips)
        run = self.prepare_update(listing, blip, caption=caption)
        failures = []
        with progress_bars.bar("images", total=len(listing.items), visible=None if progress else False) as bar:
            for status in run.run():
                bar.advance()
                if status.outcome == "failed":
                    failures.append(status)
        return IndexReport(run.counts, run.encoded, tuple(failures), skips.totals())

    def prepare_update(
        self, listing: Listing, blip: Blip | Callable[[], Blip], *, caption: bool = False
    ) -> IndexUpdate:
        """Return the update that `add` performs, to run it step by step.

        Args:
            listing: The images.
            blip: The model, or a function that loads it.
            caption: Caption the images that have no caption.

        Returns:
            The update. Its method `run` starts it.
        """
        from openblip.blip import Blip
        from openblip.search.update import IndexUpdate

        def load() -> Blip:
            model = blip if isinstance(blip, Blip) else blip()
            settings = self.settings
            settings.check_same_embeddings(describe_model(model, dtype=settings.dtype, states=settings.states))
            return model

        return IndexUpdate(self._store, listing, load, caption=caption)

    def compact(self) -> int:
        """Free the space of removed and changed images.

        Returns:
            The number of bytes freed.

        Raises:
            SearchError: Another process is writing.
        """
        with self._store.writing():
            return self._store.compact()

    # Searching.

    def search(
        self,
        blip: Blip | None,
        text: str | None = None,
        *,
        image: ImageInput | None = None,
        minus: str | Sequence[str] = (),
        n: int = 20,
        rerank: int = 0,
        min_probability: float = MIN_PROBABILITY,
        where: Filter | None = None,
        hide_duplicates: bool = False,
        timeout: float | None = None,
        stop: Stop | None = None,
    ) -> SearchResults:
        """Find the images that match a text, resemble an image, or both.

        The query is compared with the embeddings of all images that pass the filter (ITC). With `rerank`, the model
        then computes the probability that the text matches each image of the shortlist (ITM), ranks by both scores, and
        leaves out images that do not match.

        Args:
            blip: The model of the index; `None` for a search by filters alone.
            text: The text.
            image: The image; with a text, results resemble the image and match the text.
            minus: Texts that results should not match.
            n: Maximum number of results.
            rerank: Length of the shortlist to re-rank, at least `n`; 0 for no re-rank.
            min_probability: With `rerank`, minimum probability of a match.
            where: Filter of the images to search. Without a text or an image, all images that pass are listed, the
                newest first.
            hide_duplicates: Whether to leave out near-duplicates of better results.
            timeout: Seconds after which the call raises `TimeLimitError`; by default there is no limit.
            stop: Function that returns True to end the call with `StoppedError`, such as `event.is_set`.

        Returns:
            The hits, best first.

        Raises:
            SearchError: The index was made with other weights, or cannot be read.
            InputError: There is neither a query nor a filter, or a value is out of range.
            ImageError: `image` cannot be read.
        """
        where = where or Filter()
        check_count("n", n)
        if text is not None and not text.strip():
            raise InputError(f"text must contain a word, got {text!r}")
        if rerank:
            check_rerank(text, n, rerank, min_probability)
        if text is None and image is None and not minus:
            if not where:
                raise InputError("expected a text, an image or a filter, got none")
            return self._list_hits(n, where, hide_duplicates)
        if blip is None:
            raise InputError("a search by text or image needs a model, got None")
        self.check_model(blip)
        limit = Limit(timeout, stop)
        query = self.embed_query(blip, text, image=image, minus=minus, timeout=timeout, stop=stop)
        limit.check()
        results = self.find(query, n=rerank or n, where=where, hide_duplicates=hide_duplicates)
        if not rerank or text is None:
            return results
        remaining = None if timeout is None else max(timeout - (time.monotonic() - limit.started), 1e-9)
        ranked = self.rerank(
            blip, text, results, minus=minus, min_probability=min_probability, timeout=remaining, stop=stop
        )
        return replace(ranked, hits=ranked.hits[:n])

    def embed_query(
        self,
        blip: Blip,
        text: str | None = None,
        *,
        image: ImageInput | None = None,
        minus: str | Sequence[str] = (),
        timeout: float | None = None,
        stop: Stop | None = None,
    ) -> NDArray[np.float32]:
        """Return the embedding of a query: text plus image, minus the mean of the `minus` texts.

        Args:
            blip: The model of the index.
            text: The text.
            image: The image.
            minus: Texts to subtract.
            timeout: Seconds after which the call raises `TimeLimitError`.
            stop: Function that returns True to end the call.

        Returns:
            The L2-normalized embedding (E,).

        Raises:
            InputError: There is no text and no image, or the texts cancel each other out.
            ImageError: The image cannot be read.
        """
        subtracted = split_minus(minus)
        texts = [*([] if text is None else [text]), *subtracted]
        if texts and not all(map(blip.pipeline("retrieval").reads_whole, texts)):
            from openblip.pipelines.retrieval import MAX_TOKENS, MAX_WORDS

            warnings.warn(
                f"the model reads at most {MAX_WORDS} words and {MAX_TOKENS} tokens of a text; the rest is ignored",
                stacklevel=2,
            )
        query = np.zeros(self.settings.width, np.float32)
        if texts:
            rows = blip.embed_texts(texts, timeout=timeout, stop=stop)
            if text is not None:
                query += rows[0]
            if subtracted:
                query -= rows[len(texts) - len(subtracted) :].mean(0)
        if image is not None:
            query += blip.embed_images(image, timeout=timeout, stop=stop)
        norm = float(np.linalg.norm(query))
        if norm < 1e-6:
            raise InputError("expected a text or an image that minus does not cancel out")
        return query / np.float32(norm)

    def find(
        self, query: NDArray[np.float32], *, n: int = 20, where: Filter | None = None, hide_duplicates: bool = False
    ) -> SearchResults:
        """Find the images whose embeddings are most similar to a query. No model is needed.

        Args:
            query: An embedding (E,), for example from `embed_query`.
            n: Maximum number of results.
            where: Filter of the images to search.
            hide_duplicates: Whether to leave out near-duplicates of better results.

        Returns:
            The hits, the most similar first. An index in a folder returns exactly the hits of brute force.

        Raises:
            InputError: `n` is less than 1, or the query has another width.
        """
        check_count("n", n)
        wanted = n
        while True:
            neighbors = self._store.find_nearest(query, wanted, where or Filter())
            pairs = zip(neighbors.images, neighbors.cosines, strict=True)
            hits = [Hit.of(image, cosine) for image, cosine in pairs]
            marked = mark_duplicates(hits, neighbors.embeddings, hide=hide_duplicates)
            if len(marked) >= n or len(hits) < wanted:
                return SearchResults(marked[:n], neighbors.searched)
            wanted *= 2  # some were hidden

    def rerank(
        self,
        blip: Blip,
        text: str,
        hits: Iterable[Hit],
        *,
        minus: str | Sequence[str] = (),
        min_probability: float = MIN_PROBABILITY,
        timeout: float | None = None,
        stop: Stop | None = None,
    ) -> SearchResults:
        """Rank hits by both stages, ITM and ITC, and leave out images that do not match the text.

        The score of a hit is the log-odds of ITM plus the logit of ITC, which is its similarity divided by the
        temperature.

        Args:
            blip: The model of the index.
            text: The text.
            hits: The shortlist.
            minus: Texts that images should not match.
            min_probability: Minimum probability of a hit.
            timeout: Seconds after which the call raises `TimeLimitError`.
            stop: Function that returns True to end the call.

        Returns:
            The hits that match, best first, with their probability.

        Raises:
            InputError: `min_probability` is not between 0 and 1.
        """
        from openblip.search.rerank import judge_images

        check_probability(min_probability)
        shortlist = list(hits)
        searched = hits.searched if isinstance(hits, SearchResults) else len(shortlist)
        images = self._store.find_ids([hit.id for hit in shortlist])
        shortlist = [hit for hit in shortlist if hit.id in images]  # others were removed in the meantime
        judged = judge_images(
            blip, self._store, [images[hit.id] for hit in shortlist], text, split_minus(minus), self._cache
        )
        temperature = blip.pipeline("retrieval").model.temperature
        ranked: list[tuple[float, Hit]] = []
        rejected: list[float] = []
        errors: list[UnreadableHit] = []
        for hit, result in zip(shortlist, limits.apply(judged, Limit(timeout, stop)), strict=True):
            if isinstance(result, OpenBlipError):
                errors.append(UnreadableHit(hit.id, hit.name, str(result)))
            elif result[1] < min_probability:
                rejected.append(result[1])
            else:
                score = result[0] + (hit.similarity or 0.0) / temperature
                ranked.append((score, replace(hit, probability=result[1])))
        ranked.sort(key=lambda pair: -pair[0])
        reordered = self._mark_again([hit for _, hit in ranked], {hit.id for hit in shortlist})
        return SearchResults(reordered, searched, max(rejected, default=None), tuple(errors))

    def list(self, n: int = 60, cursor: str | None = None, where: Filter | None = None) -> ImagePage:
        """Return a page of the images, the newest first.

        Args:
            n: Maximum number of images on a page.
            cursor: `next` of the previous page; `None` for the first page.
            where: Filter of the images to list.

        Returns:
            The page.

        Raises:
            InputError: `n` is less than 1.
        """
        check_count("n", n)
        return self._store.list_images(n, cursor, where or Filter())

    def get(self, id: str) -> IndexedImage | None:
        """Return an image by its id.

        Args:
            id: The id.

        Returns:
            The image; `None` if the index has no such image.
        """
        return self._store.find_ids([id]).get(id)

    def open_file(self, id: str) -> BinaryIO:
        """Open the file of an image, if it is still a regular file below the folder that was indexed.

        Links are resolved first, so a link that replaced an image cannot open a file outside the folder.

        Args:
            id: Id of the image.

        Returns:
            The file, open for reading.

        Raises:
            ImageError: There is no such image, or its file no longer exists or is outside the folder. The message
                contains no absolute path.
        """
        image = self.get(id)
        if image is None:
            raise ImageError(f"the index has no image {id}")
        return open_below(image.path, image.root, image.name)

    def find_duplicates(self, min_similarity: float = DUPLICATE) -> Sequence[Sequence[IndexedImage]]:
        """Return groups of near-duplicates.

        The time grows with the square of the number of images.

        Args:
            min_similarity: Cosine from which two images are near-duplicates.

        Returns:
            Groups of at least two images, each in the order of their paths, the largest group first.
        """
        from openblip.search.duplicates import group_duplicates

        groups = group_duplicates(self._store, min_similarity)
        images = self._store.find_ids([id for group in groups for id in group])
        resolved = []
        for group in groups:
            members = sorted((images[id] for id in group if id in images), key=lambda image: image.path)
            if len(members) > 1:  # the others were removed in the meantime
                resolved.append(members)
        return sorted(resolved, key=lambda group: (-len(group), group[0].path))

    def _mark_again(self, hits: Sequence[Hit], shortlist: set[str]) -> tuple[Hit, ...]:
        """Return re-ranked hits with their near-duplicates marked in the new order; hidden ones stay marked."""
        rows = self._store.embeddings([hit.id for hit in hits])
        hits = [replace(hit, duplicate_of=None) for hit in hits if hit.id in rows]
        marked = mark_duplicates(hits, np.array([rows[hit.id] for hit in hits]), hide=False)
        hidden = [tuple(name for name in hit.duplicates if name not in shortlist) for hit in hits]
        return tuple(
            replace(hit, duplicates=(*(hit.duplicates if len(hits) > 1 else ()), *names))
            for hit, names in zip(marked, hidden, strict=True)
        )

    def _list_hits(self, n: int, where: Filter, hide_duplicates: bool) -> SearchResults:
        """Return the newest images that pass a filter."""
        hits: list[Hit] = []
        embeddings: list[NDArray[np.float32]] = []
        cursor: str | None = None
        while True:
            page = self._store.list_images(n, cursor, where)
            rows = self._store.embeddings([image.id for image in page.images])
            for image in page.images:
                if image.id in rows:  # others were removed in the meantime
                    hits.append(Hit.of(image))
                    embeddings.append(rows[image.id])
            marked = mark_duplicates(hits, np.array(embeddings), hide=hide_duplicates)
            cursor = page.next
            if len(marked) >= n or cursor is None:
                return SearchResults(marked[:n], page.total)


def mark_duplicates(hits: Sequence[Hit], embeddings: NDArray[np.float32], *, hide: bool) -> tuple[Hit, ...]:
    """Return hits with their near-duplicates marked.

    Args:
        hits: The hits, best first.
        embeddings: Their embeddings (N, E).
        hide: Whether to leave out the near-duplicates of better hits.

    Returns:
        The hits.
    """
    if len(hits) < 2:
        return tuple(hits)
    originals: dict[int, int] = {}  # position of a near-duplicate -> position of its better image
    duplicates: dict[int, list[str]] = {}  # position of a better image -> ids of its near-duplicates
    for start in range(0, len(hits), _BLOCK):
        block = slice(start, start + _BLOCK)
        is_close = embeddings[block] @ embeddings[: start + _BLOCK].T >= DUPLICATE
        for position, hit in enumerate(hits[block], start):
            better = (i for i in np.flatnonzero(is_close[position - start, :position]).tolist() if i not in originals)
            original = next(better, None)
            if original is not None:
                originals[position] = original
                duplicates.setdefault(original, []).append(hit.id)
    marked = []
    for position, hit in enumerate(hits):
        if position not in originals:
            marked.append(replace(hit, duplicates=tuple(duplicates.get(position, ()))))
        elif not hide:
            marked.append(replace(hit, duplicate_of=hits[originals[position]].id))
    return tuple(marked)


def is_database(location: str) -> bool:
    """Return whether a location is the address of a PostgreSQL database.

    Args:
        location: A folder, or an address.
    """
    return location.startswith(("postgresql://", "postgres://"))


def exists(location: str | os.PathLike[str]) -> bool:
    """Return whether there is an index.

    Args:
        location: A folder, or the address of a database.

    Returns:
        Whether `Index.open` can open an index there.

    Raises:
        SearchError: The database cannot be reached, or its pgvector is too old.
    """
    address = os.fspath(location)
    if is_database(address):
        from openblip.search.postgres import PostgresStore

        return PostgresStore.exists(address)
    return (Path(address) / FILE).is_file()


def check_count(name: str, value: int) -> None:
    """Raise `InputError` for a number of results that is less than 1, or too large for a database."""
    if value < 1:
        raise InputError(f"{name} must be at least 1, got {value}")
    if value > _MAX_COUNT:
        raise InputError(f"{name} must be at most {_MAX_COUNT}, got {value}")


def check_probability(value: float) -> None:
    """Raise `InputError` for a value that is not a probability."""
    if not 0 <= value <= 1:
        raise InputError(f"min_probability must be between 0 and 1, got {value}")


def check_rerank(text: str | None, n: int, rerank: int, min_probability: float) -> None:
    """Raise `InputError` for a re-rank that is impossible."""
    check_probability(min_probability)
    if text is None:
        raise InputError("rerank must come with a text, got none; pass text=... or rerank=0")
    if rerank < n:
        raise InputError(f"rerank must be at least n ({n}), got {rerank}")


def split_minus(minus: str | Sequence[str]) -> Sequence[str]:
    """Return the texts to subtract as a list."""
    return [minus] if isinstance(minus, str) and minus else [text for text in minus if text]


def open_below(path: str, root: str, name: str) -> BinaryIO:
    """Open a regular file below a folder.

    Args:
        path: The file; links are resolved.
        root: The folder; links are resolved.
        name: Name of the file in errors.

    Returns:
        The file, open for reading.

    Raises:
        ImageError: The file does not exist, is not a regular file, or is outside the folder.
    """
    try:
        real_path, real_root = (os.path.realpath(each, strict=True) for each in (path, root))
        if not real_path.startswith(real_root.rstrip(os.sep) + os.sep):
            raise ImageError(f"{name} is outside the folder that was indexed")
        descriptor = os.open(real_path, _OPEN_FLAGS)
    except OSError as error:
        raise ImageError(f"cannot read {name}: {error.strerror or 'it is gone'}") from None
    file = os.fdopen(descriptor, "rb")
    try:
        opened, current = os.fstat(descriptor), os.stat(os.path.realpath(real_path))  # noqa: PTH116
        if not stat.S_ISREG(opened.st_mode) or not os.path.samestat(opened, current):
            raise ImageError(f"{name} is not a regular file")
    except (OSError, ImageError) as error:
        file.close()
        raise ImageError(str(error) if isinstance(error, ImageError) else f"cannot read {name}") from None
    return file
