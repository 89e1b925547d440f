"""The rows of the table: what each asks of a contestant, and the least that it must cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.contestants import Contestant
from benchmarks.materials import Materials
from benchmarks.roofline import Work, decoding, encoding, reading
from openblip.model.config import ModelKind

Run = Callable[[Contestant, Materials, int], Any]


@dataclass(frozen=True)
class Row:
    """One line of work. ``run(contestant, materials, items)`` does the first ``items`` of its ``items``.

    What peers do is so many equal batches one after another, so that they are given ``peer_items`` of long rows, and
    their time is multiplied: ITM of 16 x 16 takes them minutes. ``work`` is the least that a whole row must compute.
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
    near: bool = False  # large JPEG files, which we decode near the needed size: outputs are near, not the same
    devices: tuple[str, ...] = ("cpu", "cuda")

    def share(self, peer: bool, toy: bool) -> int:
        """How many items a contestant is given."""
        items = min(self.items, 8) if toy else self.items
        return min(items, self.peer_items or items) if peer else items

    def total(self, toy: bool) -> int:
        """How many items the row is of."""
        return self.share(peer=False, toy=toy)


def _captions(count: int, beams: int, *, files: bool = False) -> dict[str, Any]:
    def run(contestant: Contestant, materials: Materials, items: int) -> list[str]:
        pictures = materials.photo_files(items) if files else materials.photos(items)
        return contestant.caption(pictures, beams, materials.scale.new_tokens)

    def work(materials: Materials) -> list[Work]:
        config = materials.scale.config("caption")
        batch = min(count, 8)  # as we do on a CPU
        runs, steps, memory = -(-count // batch), materials.scale.new_tokens, config.vision.tokens
        return [
            encoding(config, count),
            decoding(config, runs=runs, steps=steps, items=batch, beams=beams, memory=memory),
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
            encoding(config, 1),
            reading(config, 1, questions),
            decoding(config, runs=1, steps=steps, items=questions, beams=1, memory=12),
        ]

    return {"task": "vqa", "unit": "questions", "items": questions, "run": run, "work": work}


def _matches(images: int, texts: int) -> dict[str, Any]:
    """Its items are texts where there is one image, else images."""

    def run(contestant: Contestant, materials: Materials, items: int) -> Any:
        if images == 1:
            return contestant.match(materials.photos(1), materials.texts(items)).T
        return contestant.match(materials.photos(items), materials.texts(texts))

    def work(materials: Materials) -> list[Work]:
        config = materials.scale.config("retrieval")
        return [encoding(config, images), reading(config, images, texts)]

    count, unit = (texts, "pairs") if images == 1 else (images, "images x 16 texts")
    return {"task": "retrieval", "unit": unit, "items": count, "run": run, "work": work}


def _vectors(count: int, what: str) -> dict[str, Any]:
    def run(contestant: Contestant, materials: Materials, items: int) -> Any:
        if what == "texts":
            return contestant.embed_texts(materials.texts(items))
        return contestant.embed_images(materials.large_files(items) if what == "files" else materials.photos(items))

    def work(materials: Materials) -> list[Work]:
        config = materials.scale.config("retrieval")
        return [reading(config, 0, count)] if what == "texts" else [encoding(config, count)]

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
