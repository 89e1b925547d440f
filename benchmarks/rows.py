"""The rows of the table: the work of each row, and its minimum cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.contestants import Contestant
from benchmarks.materials import Materials
from benchmarks.roofline import Work, count_decoding, count_encoding, count_text_encoding
from openblip.model.config import ModelKind

Run = Callable[[Contestant, Materials, int], Any]


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Peers process equal batches one after another. Of long rows they run a part, and their time is multiplied, because
    some rows would take them minutes.

    Attributes:
        name: Name of the row.
        task: Task of the model.
        what: Description of the work.
        unit: Unit of the items.
        items: Number of items.
        run: Runs the first items of the row on a contestant.
        work: Minimum work of the complete row.
        peer_items: Number of items for peers; 0 for all.
        quick: Whether the row is part of `--quick`.
        near: Whether outputs may differ slightly: large JPEG files, which OpenBLIP decodes at a smaller size.
        devices: Devices that the row runs on.
    """

    name: str
    task: ModelKind
    what: str
    unit: str
    items: int
    run: Run
    work: Callable[[Materials], Sequence[Work]]
    peer_items: int = 0
    quick: bool = False
    near: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")

    def share(self, peer: bool, toy: bool) -> int:
        """Return the number of items that a contestant runs."""
        items = min(self.items, 8) if toy else self.items
        return min(items, self.peer_items or items) if peer else items

    def total(self, toy: bool) -> int:
        """Return the number of items in the row."""
        return self.share(peer=False, toy=toy)


def _captions(count: int, beams: int, *, files: bool = False) -> dict[str, Any]:
    def run(contestant: Contestant, materials: Materials, items: int) -> list[str]:
        images = materials.photo_files(items) if files else materials.photos(items)
        return contestant.caption(images, beams, materials.scale.new_tokens)

    def work(materials: Materials) -> list[Work]:
        config = materials.scale.config("caption")
        batch = min(count, 8)  # OpenBLIP's batch size on a CPU
        runs, steps, memory = -(-count // batch), materials.scale.new_tokens, config.vision.tokens
        return [
            count_encoding(config, count),
            count_decoding(config, runs=runs, steps=steps, items=batch, beams=beams, memory=memory),
        ]

    return {"task": "caption", "unit": "images", "items": count, "run": run, "work": work}


def _answers(questions: int) -> dict[str, Any]:
    def run(contestant: Contestant, materials: Materials, items: int) -> list[str]:
        (photo,) = materials.photos(1)
        return contestant.ask(photo, materials.texts(items), materials.scale.answer_tokens)

    def work(materials: Materials) -> list[Work]:
        config = materials.scale.config("vqa")
        steps = materials.scale.answer_tokens
        return [
            count_encoding(config, 1),
            count_text_encoding(config, 1, questions),
            count_decoding(config, runs=1, steps=steps, items=questions, beams=1, memory=12),
        ]

    return {"task": "vqa", "unit": "questions", "items": questions, "run": run, "work": work}


def _matches(images: int, texts: int) -> dict[str, Any]:
    """Return a row whose items are texts if there is one image, otherwise images."""

    def run(contestant: Contestant, materials: Materials, items: int) -> Any:
        if images == 1:
            return contestant.match(materials.photos(1), materials.texts(items)).T
        return contestant.match(materials.photos(items), materials.texts(texts))

    def work(materials: Materials) -> list[Work]:
        config = materials.scale.config("retrieval")
        return [count_encoding(config, images), count_text_encoding(config, images, texts)]

    count, unit = (texts, "pairs") if images == 1 else (images, "images x 16 texts")
    return {"task": "retrieval", "unit": unit, "items": count, "run": run, "work": work}


def _vectors(count: int, what: str) -> dict[str, Any]:
    def run(contestant: Contestant, materials: Materials, items: int) -> Any:
        if what == "texts":
            return contestant.embed_texts(materials.texts(items))
        return contestant.embed_images(materials.large_files(items) if what == "files" else materials.photos(items))

    def work(materials: Materials) -> list[Work]:
        config = materials.scale.config("retrieval")
        return [count_text_encoding(config, 0, count)] if what == "texts" else [count_encoding(config, count)]

    return {
        "task": "retrieval",
        "unit": "texts" if what == "texts" else "images",
        "items": count,
        "run": run,
        "work": work,
    }


GPU: dict[str, Any] = {"devices": ("cuda",)}
ROWS: tuple[Row, ...] = (
    Row("caption_1", what="caption of 1 image, greedy", quick=True, **_captions(1, 1)),
    Row("caption_1_beams", what="caption of 1 image, 3 beams", quick=True, **_captions(1, 3)),
    Row("caption_32", what="captions of 32 images, greedy", peer_items=8, **_captions(32, 1)),
    Row("caption_32_beams", what="captions of 32 images, 3 beams", peer_items=8, **_captions(32, 3)),
    Row("caption_256_beams", what="captions of 256 images, 3 beams", **GPU, **_captions(256, 3)),
    Row(
        "caption_folder", what="captions of 32 JPEG files, 3 beams, from file to text", peer_items=8,
        **_captions(32, 3, files=True),
    ),
    Row("vqa_1", what="1 question on 1 image", **_answers(1)),
    Row("vqa_8", what="8 questions on 1 image", quick=True, **_answers(8)),
    Row("itm_1x64", what="ITM of 1 image with 64 texts", peer_items=16, quick=True, **_matches(1, 64)),
    Row("itm_16x16", what="ITM of 16 images with 16 texts each", peer_items=1, **_matches(16, 16)),
    Row("embed_images", what="embeddings of 16 images", peer_items=8, quick=True, **_vectors(16, "images")),
    Row("embed_images_256", what="embeddings of 256 images", **GPU, **_vectors(256, "images")),
    Row("embed_texts", what="embeddings of 64 texts", **_vectors(64, "texts")),
    Row(
        "embed_jpeg", what="embeddings of 64 JPEG files of 12 megapixels, from file to vector", peer_items=8,
        near=True, **_vectors(64, "files"),
    ),
)  # fmt: skip
