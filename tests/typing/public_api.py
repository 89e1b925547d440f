"""Types of the public API, for `mypy --strict` and `pyright`. Type checkers read this file; nothing runs it."""
# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import openblip
from openblip import (
    Answer,
    Blip,
    Box,
    Caption,
    Classification,
    Comparison,
    EncodedImage,
    Explanation,
    Label,
    Match,
    OpenBlipError,
    Video,
)
from openblip.pipelines.caption import CaptionPipeline
from openblip.pipelines.grounding import GroundingPipeline
from openblip.pipelines.nlvr import NlvrPipeline
from openblip.pipelines.retrieval import RetrievalPipeline
from openblip.pipelines.vqa import VqaPipeline
from openblip.training.run import RunResult

if TYPE_CHECKING:
    from typing_extensions import assert_type

Embedding = NDArray[np.float32]


def check_load() -> Blip:
    assert_type(openblip.load("pocket"), Blip)
    assert_type(openblip.load(Path("folder"), task="vqa", engine="torch", precision="int8", num_workers=0), Blip)
    assert_type(openblip.load("file.pth", config={"image_size": 480, "text": {"heads": 4}}), Blip)
    return openblip.load("pocket")


def check_images(blip: Blip, image: Image.Image, array: NDArray[np.uint8], encoded: EncodedImage) -> None:
    assert_type(blip.caption("photo.jpg"), Caption)
    assert_type(blip.caption(Path("photo.jpg")), Caption)
    assert_type(blip.caption(b"bytes"), Caption)
    with Path("photo.jpg").open("rb") as file:
        assert_type(blip.caption(file), Caption)
    assert_type(blip.caption(image), Caption)
    assert_type(blip.caption(array), Caption)
    assert_type(blip.caption(encoded), Caption)
    assert_type(blip.caption(Video("clip.mp4")), Caption)


def check_caption(blip: Blip, paths: list[str], files: tuple[Path, ...], images: Iterator[Image.Image]) -> None:
    assert_type(blip.caption("a.jpg", n=3, num_beams=5), Caption)
    assert_type(blip.caption("a.jpg", n=3).alternatives, tuple[Caption, ...])
    assert_type(blip.caption("a.jpg", on_error="raise"), Caption)
    assert_type(blip.caption("a.jpg", on_error="return"), Caption | OpenBlipError)
    assert_type(blip.caption(paths), list[Caption])
    assert_type(blip.caption(files), list[Caption])
    assert_type(blip.caption(["a.jpg", image_of(images)], prompt=["a", None]), list[Caption])
    assert_type(blip.caption(paths, on_error="return"), list[Caption | OpenBlipError])
    assert_type(blip.caption(images, do_sample=True, seed=1), Iterator[Caption])
    assert_type(blip.caption(iter(paths), on_error="return"), Iterator[Caption | OpenBlipError])
    assert_type(blip.caption(paths, progress=True), list[Caption])
    assert_type(blip.caption(paths, progress=report), list[Caption])


def check_ask(blip: Blip, paths: list[str], images: Iterator[Image.Image], questions: Iterator[str]) -> None:
    assert_type(blip.ask("a.jpg", "what?"), Answer)
    assert_type(blip.ask("a.jpg", "what?", on_error="return"), Answer | OpenBlipError)
    assert_type(blip.ask("a.jpg", ["what?", "where?"]), list[Answer])
    assert_type(blip.ask("a.jpg", ["what?", "where?"], on_error="return"), list[Answer] | OpenBlipError)
    assert_type(blip.ask(paths, "what?", answers=["yes", "no"], n=2), list[Answer])
    assert_type(blip.ask(paths, ["what?", "where?"], on_error="return"), list[Answer | OpenBlipError])
    assert_type(blip.ask(images, "what?"), Iterator[Answer])
    assert_type(blip.ask(images, questions, on_error="return"), Iterator[Answer | OpenBlipError])


def check_match(blip: Blip, paths: list[str], images: Iterator[Image.Image], texts: Iterator[str]) -> None:
    assert_type(blip.match("a.jpg", "a cat"), Match)
    assert_type(blip.match("a.jpg", "a cat", on_error="return"), Match | OpenBlipError)
    assert_type(blip.match("a.jpg", ["a cat", "a dog"]), list[Match])
    assert_type(blip.match("a.jpg", ["a cat", "a dog"], on_error="return"), list[Match] | OpenBlipError)
    assert_type(blip.match(paths, "a cat"), list[Match])
    assert_type(blip.match(paths, "a cat", on_error="return"), list[Match | OpenBlipError])
    assert_type(blip.match(paths, ["a cat", "a dog"]), list[list[Match]])
    assert_type(blip.match(paths, ["a cat", "a dog"], on_error="return"), list[list[Match] | OpenBlipError])
    assert_type(blip.match(paths, ["a cat", "a dog"], paired=True), list[Match])
    assert_type(blip.match(paths, ["a cat"], paired=True, on_error="return"), list[Match | OpenBlipError])
    assert_type(blip.match(images, "a cat"), Iterator[Match])
    assert_type(blip.match(images, "a cat", on_error="return"), Iterator[Match | OpenBlipError])
    assert_type(blip.match(images, ["a cat", "a dog"]), Iterator[list[Match]])
    assert_type(blip.match(images, ["a cat"], on_error="return"), Iterator[list[Match] | OpenBlipError])
    assert_type(blip.match(images, texts, paired=True), Iterator[Match])
    assert_type(blip.match(images, texts, paired=True, on_error="return"), Iterator[Match | OpenBlipError])


def check_classify(blip: Blip, paths: list[str], images: Iterator[Image.Image]) -> None:
    labels = ["cat", "dog"]
    assert_type(blip.classify("a.jpg", labels), Classification)
    assert_type(blip.classify("a.jpg", labels, n=2).labels, tuple[Label, ...])
    assert_type(blip.classify("a.jpg", labels, on_error="return"), Classification | OpenBlipError)
    assert_type(blip.classify(paths, labels, by="itm"), list[Classification])
    assert_type(blip.classify(paths, labels, on_error="return"), list[Classification | OpenBlipError])
    assert_type(blip.classify(images, labels, template="{}"), Iterator[Classification])
    assert_type(blip.classify(images, labels, on_error="return"), Iterator[Classification | OpenBlipError])


def check_ground(blip: Blip, paths: list[str], images: Iterator[Image.Image]) -> None:
    assert_type(blip.ground("a.jpg", "the cat"), Box)
    assert_type(blip.ground("a.jpg", "the cat").edges, tuple[float, float, float, float])
    assert_type(blip.ground("a.jpg", "the cat", on_error="return"), Box | OpenBlipError)
    assert_type(blip.ground("a.jpg", ["the cat", "the dog"]), list[Box])
    assert_type(blip.ground("a.jpg", ["the cat"], on_error="return"), list[Box] | OpenBlipError)
    assert_type(blip.ground(paths, "the cat"), list[Box])
    assert_type(blip.ground(paths, ["the cat", "the dog"], on_error="return"), list[Box | OpenBlipError])
    assert_type(blip.ground(images, "the cat"), Iterator[Box])
    assert_type(blip.ground(images, iter(["the cat"]), on_error="return"), Iterator[Box | OpenBlipError])


def check_compare(blip: Blip, paths: list[str], images: Iterator[Image.Image]) -> None:
    assert_type(blip.compare("a.jpg", "b.jpg", "both show a cat"), Comparison)
    assert_type(blip.compare("a.jpg", "b.jpg", "a cat", on_error="return"), Comparison | OpenBlipError)
    assert_type(blip.compare("a.jpg", "b.jpg", ["a cat", "a dog"]), list[Comparison])
    assert_type(blip.compare("a.jpg", "b.jpg", ["a cat"], on_error="return"), list[Comparison] | OpenBlipError)
    assert_type(blip.compare(paths, paths, "both show a cat"), list[Comparison])
    assert_type(blip.compare(paths, paths, ["a cat"], on_error="return"), list[Comparison | OpenBlipError])
    assert_type(blip.compare(images, images, "both show a cat"), Iterator[Comparison])
    assert_type(blip.compare(images, images, "a cat", on_error="return"), Iterator[Comparison | OpenBlipError])


def check_explain(blip: Blip, paths: list[str], images: Iterator[Image.Image]) -> None:
    assert_type(blip.explain("a.jpg", "a cat"), Explanation)
    assert_type(blip.explain("a.jpg", task="caption"), Explanation)
    assert_type(blip.explain("a.jpg", "a cat", on_error="return"), Explanation | OpenBlipError)
    assert_type(blip.explain("a.jpg", ["a cat", "a dog"], layer=6), list[Explanation])
    assert_type(blip.explain("a.jpg", ["a cat"], on_error="return"), list[Explanation] | OpenBlipError)
    assert_type(blip.explain(paths, task="caption"), list[Explanation])
    assert_type(blip.explain(paths, "what?", task="vqa", answer="a cat"), list[Explanation])
    assert_type(blip.explain(paths, ["a cat"], on_error="return"), list[Explanation | OpenBlipError])
    assert_type(blip.explain(images, "a cat"), Iterator[Explanation])
    assert_type(blip.explain(images, task="caption", on_error="return"), Iterator[Explanation | OpenBlipError])


def check_embeddings(blip: Blip, paths: list[str], images: Iterator[Image.Image], texts: Iterator[str]) -> None:
    assert_type(blip.embed_images("a.jpg"), Embedding)
    assert_type(blip.embed_images("a.jpg", on_error="return"), Embedding | OpenBlipError)
    assert_type(blip.embed_images(paths), Embedding)
    assert_type(blip.embed_images(paths, on_error="return"), list[Embedding | OpenBlipError])
    assert_type(blip.embed_images(images), Iterator[Embedding])
    assert_type(blip.embed_images(images, on_error="return"), Iterator[Embedding | OpenBlipError])
    assert_type(blip.embed_texts("a cat"), Embedding)
    assert_type(blip.embed_texts(["a cat", "a dog"], progress=True), Embedding)
    assert_type(blip.embed_texts(texts), Iterator[Embedding])


def check_tensors(blip: Blip, paths: list[str], images: Iterator[Image.Image], texts: Iterator[str]) -> None:
    assert_type(blip.embed_images("a.jpg", output="torch"), Tensor)
    assert_type(blip.embed_images("a.jpg", output="torch", on_error="return"), Tensor | OpenBlipError)
    assert_type(blip.embed_images(paths, output="torch"), Tensor)
    assert_type(blip.embed_images(paths, output="torch", on_error="return"), list[Tensor | OpenBlipError])
    assert_type(blip.embed_images(images, output="torch"), Iterator[Tensor])
    assert_type(blip.embed_images(images, output="torch", on_error="return"), Iterator[Tensor | OpenBlipError])
    assert_type(blip.embed_texts(["a cat"], output="torch"), Tensor)
    assert_type(blip.embed_texts(texts, output="torch"), Iterator[Tensor])


def check_limits(blip: Blip, paths: list[str], event: threading.Event) -> None:
    assert_type(blip.caption(paths, timeout=30, stop=event.is_set), list[Caption])
    assert_type(blip.match("a.jpg", "a cat", timeout=0.5), Match)
    assert_type(blip.encode_images(paths, stop=event.is_set), list[EncodedImage])
    assert_type(openblip.load("pocket", threads=2), Blip)


def check_drawings(blip: Blip) -> None:
    box = blip.ground("a.jpg", "the cat")
    assert_type(box.draw(), Image.Image)
    assert_type(box.plot(), Axes)
    blip.explain("a.jpg", "a cat").save(Path("heat.png"))


def check_train() -> None:
    result = openblip.train("caption", "my.jsonl", start="base", lora=16, settings={"schedule.warmup_steps": 10})
    assert_type(result, RunResult)
    assert_type(result.model, Path)


def check_encode(blip: Blip, paths: list[str], images: Iterator[Image.Image]) -> None:
    assert_type(blip.encode_images("a.jpg", task="vqa"), EncodedImage)
    assert_type(blip.encode_images("a.jpg", on_error="return"), EncodedImage | OpenBlipError)
    assert_type(blip.encode_images(paths), list[EncodedImage])
    assert_type(blip.encode_images(paths, on_error="return"), list[EncodedImage | OpenBlipError])
    assert_type(blip.encode_images(images), Iterator[EncodedImage])
    assert_type(blip.encode_images(images, on_error="return"), Iterator[EncodedImage | OpenBlipError])


def check_pipelines(blip: Blip, paths: list[str]) -> None:
    assert_type(blip.pipeline("caption", num_beams=5, prompt="a photo of"), CaptionPipeline)
    assert_type(blip.pipeline("vqa", answers=["yes", "no"]), VqaPipeline)
    assert_type(blip.pipeline("retrieval", texts=["a cat"]), RetrievalPipeline)
    assert_type(blip.pipeline("nlvr"), NlvrPipeline)
    assert_type(blip.pipeline("grounding"), GroundingPipeline)
    assert_type(blip.pipeline("caption").run((path, None) for path in paths), Iterator[Caption | OpenBlipError])
    assert_type(blip.pipeline("vqa").run([("a.jpg", ["what?"])]), Iterator[list[Answer] | OpenBlipError])


def check_wrong_arguments(blip: Blip) -> None:
    """Each line has an error that type checkers must report: an unused `ignore` is an error of `mypy --strict`."""
    blip.caption(7)  # type: ignore[call-overload]
    blip.caption("a.jpg", beams=5)  # type: ignore[call-overload]
    blip.caption("a.jpg", on_error="ignore")  # type: ignore[call-overload]
    blip.ask("a.jpg")  # type: ignore[call-overload]
    blip.explain("a.jpg", "a cat", task="match")  # type: ignore[call-overload]
    openblip.load("pocket", engine="warp")  # type: ignore[arg-type]


def image_of(images: Iterator[Image.Image]) -> Image.Image:
    return next(images)


def report(done: int, total: int | None) -> None:
    print(done, total)
