"""The contestants: OpenBLIP in any engine and precision, and its peers, with the same calls.

Each contestant is used as its documentation shows, in batches of 8 images on a CPU. Where `transformers` would start a
text with another token than in training, the peer gets the token of training, so that outputs can be compared. This
does not change its speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

import openblip
from benchmarks import materials
from benchmarks.materials import Scale
from openblip.model.config import ModelKind
from openblip.model.precision import DTYPES

Array: TypeAlias = NDArray[np.float32]
Item = TypeVar("Item")
ImageFile: TypeAlias = Image.Image | Path
CALIBRATION = 12  # images


class UnavailableError(Exception):
    """The contestant cannot run here; the message has the reason."""


class Contestant(Protocol):
    """The calls of the rows. Images are decoded images, or paths of JPEG files."""

    def caption(self, images: Sequence[ImageFile], beams: int, tokens: int) -> list[str]:
        """Return a text of exactly `tokens` new tokens for each image."""
        ...

    def ask(self, image: ImageFile, questions: Sequence[str], tokens: int) -> list[str]:
        """Return greedy answers of exactly `tokens` tokens."""
        ...

    def match(self, images: Sequence[ImageFile], texts: Sequence[str]) -> Array:
        """Return ITM probabilities (images, texts)."""
        ...

    def embed_images(self, images: Sequence[ImageFile]) -> Array:
        """Return normalized embeddings (images, E)."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Array:
        """Return normalized embeddings (texts, E)."""
        ...


@dataclass(frozen=True)
class Entry:
    """A contestant as named on the command line, on a device."""

    who: str  # "ours", "transformers" or "openvino-peer"
    way: str  # engine, or "eager", "compiled" or "converted"
    precision: str
    device: str = "cpu"

    @property
    def name(self) -> str:
        """Name in tables."""
        way = "" if self.way in ("torch", "eager", "converted") and self.who != "ours" else f" {self.way}"
        device = "" if self.device == "cpu" else f" on {self.device}"
        return f"{self.who}{way} {self.precision}{device}"

    @property
    def exact(self) -> bool:
        """Whether its outputs must be equal to the reference."""
        return self.precision == "fp32" and self.device == "cpu"

    def make(self, folder: Path, task: ModelKind, scale: Scale) -> Contestant:
        """Load the model in `folder`.

        Raises:
            UnavailableError: The contestant cannot run here.
        """
        try:
            return _MAKERS[self.who](self, folder, task, scale)
        except (openblip.OpenBlipError, ImportError) as error:
            raise UnavailableError(str(error)) from error


def parse(words: Sequence[str], device: str) -> list[Entry]:
    """Parse `ENGINE:PRECISION` (OpenBLIP), and `transformers:[compiled:]PRECISION` or `openvino-peer:PRECISION`."""
    entries = []
    for word in words:
        match word.split(":"):
            case ["transformers", way, precision] if way in ("eager", "compiled"):
                entries.append(Entry("transformers", way, precision, device))
            case ["transformers", precision]:
                entries.append(Entry("transformers", "eager", precision, device))
            case ["openvino-peer", precision]:
                entries.append(Entry("openvino-peer", "converted", precision, device))
            case [engine, precision]:
                entries.append(Entry("ours", engine, precision, device))
            case _:
                raise SystemExit(
                    f"a contestant must be like torch:fp32, transformers:bf16 or openvino-peer:int8, got {word!r}"
                )
    return entries


class Ours:
    """OpenBLIP as in its README; OpenVINO's int8 with calibration images, which are not measured."""

    def __init__(self, entry: Entry, folder: Path, scale: Scale) -> None:
        options: dict[str, Any] = {"engine": entry.way, "precision": entry.precision}
        if (entry.way, entry.precision) == ("openvino", "int8"):
            options["calibration"] = [materials.draw_image(1000 + seed, *scale.photo) for seed in range(CALIBRATION)]
        if entry.device != "cpu":
            options["batch_size"] = 256
        self.blip = openblip.load(folder, device=entry.device, **options)

    def caption(self, images: Sequence[ImageFile], beams: int, tokens: int) -> list[str]:
        captions = self.blip.caption(list(images), num_beams=beams, min_new_tokens=tokens, max_new_tokens=tokens)
        return [caption.text for caption in captions]

    def ask(self, image: ImageFile, questions: Sequence[str], tokens: int) -> list[str]:
        answers = self.blip.ask(image, list(questions), num_beams=1, min_new_tokens=tokens, max_new_tokens=tokens)
        return [answer.text for answer in answers]

    def match(self, images: Sequence[ImageFile], texts: Sequence[str]) -> Array:
        matches = self.blip.match(list(images), list(texts))
        return np.array([[match.probability for match in row] for row in matches], np.float32)

    def embed_images(self, images: Sequence[ImageFile]) -> Array:
        return np.asarray(self.blip.embed_images(list(images)), np.float32)

    def embed_texts(self, texts: Sequence[str]) -> Array:
        return np.asarray(self.blip.embed_texts(list(texts)), np.float32)


class Transformers:
    """`transformers` as in its documentation: processor, `generate`, decode; batches of 8 images on a CPU."""

    def __init__(self, entry: Entry, folder: Path, task: ModelKind) -> None:
        import transformers

        library: Any = transformers
        library.logging.set_verbosity_error()
        library.logging.disable_progress_bar()
        names = {
            "caption": "BlipForConditionalGeneration",
            "vqa": "BlipForQuestionAnswering",
            "retrieval": "BlipForImageTextRetrieval",
        }
        if entry.precision not in DTYPES:
            raise UnavailableError(f"precision must be one of {', '.join(DTYPES)}, got {entry.precision}")
        self.dtype = DTYPES[entry.precision]
        self.device = entry.device
        self.batch_size = 8 if entry.device == "cpu" else 256
        self.processor = library.AutoProcessor.from_pretrained(folder)
        model = getattr(library, names[task]).from_pretrained(folder, dtype=self.dtype)
        self.model: Any = model.to(entry.device).eval()
        if entry.way == "compiled":
            self.model.vision_model = torch.compile(self.model.vision_model)
        self.enc_id = self.model.config.text_config.vocab_size - 1  # [ENC] is the final token of the vocabulary

    @torch.inference_mode()
    def caption(self, images: Sequence[ImageFile], beams: int, tokens: int) -> list[str]:
        texts: list[str] = []
        for batch in _batches(images, self.batch_size):
            ids = self.model.generate(
                **self._images(batch), num_beams=beams, min_new_tokens=tokens, max_new_tokens=tokens
            )
            texts += self.processor.batch_decode(ids, skip_special_tokens=True)
        return texts

    @torch.inference_mode()
    def ask(self, image: ImageFile, questions: Sequence[str], tokens: int) -> list[str]:
        texts: list[str] = []
        for batch in _batches(questions, self.batch_size):
            inputs = self._images([image] * len(batch)) | self._texts(batch, grounded=True)
            ids = self.model.generate(**inputs, min_new_tokens=tokens, max_new_tokens=tokens)
            texts += self.processor.batch_decode(ids, skip_special_tokens=True)
        return texts

    @torch.inference_mode()
    def match(self, images: Sequence[ImageFile], texts: Sequence[str]) -> Array:
        rows = []
        for image in images:
            parts = []
            for batch in _batches(texts, self.batch_size):
                inputs = self._images([image] * len(batch)) | self._texts(batch, grounded=True)
                parts.append(self.model(**inputs).itm_score.float().softmax(-1)[:, 1])
            rows.append(torch.cat(parts))
        return _array(torch.stack(rows))

    @torch.inference_mode()
    def embed_images(self, images: Sequence[ImageFile]) -> Array:
        parts = []
        for batch in _batches(images, self.batch_size):
            states = self.model.vision_model(**self._images(batch)).last_hidden_state[:, 0]
            parts.append(torch.nn.functional.normalize(self.model.vision_proj(states), dim=-1))
        return _array(torch.cat(parts))

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Array:
        parts = []
        for batch in _batches(texts, 64):
            states = self.model.text_encoder(**self._texts(batch, grounded=False)).last_hidden_state[:, 0]
            parts.append(torch.nn.functional.normalize(self.model.text_proj(states), dim=-1))
        return _array(torch.cat(parts))

    def _images(self, images: Sequence[ImageFile]) -> dict[str, Any]:
        opened = [Image.open(p).convert("RGB") if isinstance(p, Path) else p for p in images]
        pixels = self.processor.image_processor(images=opened, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels.to(self.device, self.dtype)}

    def _texts(self, texts: Sequence[str], *, grounded: bool) -> dict[str, Any]:
        tokens = self.processor.tokenizer(list(texts), padding=True, return_tensors="pt")
        ids = tokens["input_ids"].to(self.device)
        if grounded:
            ids[:, 0] = self.enc_id
        return {"input_ids": ids, "attention_mask": tokens["attention_mask"].to(self.device)}


def _ours(entry: Entry, folder: Path, task: ModelKind, scale: Scale) -> Contestant:
    return Ours(entry, folder, scale)


def _transformers(entry: Entry, folder: Path, task: ModelKind, scale: Scale) -> Contestant:
    return Transformers(entry, folder, task)


def _openvino(entry: Entry, folder: Path, task: ModelKind, scale: Scale) -> Contestant:
    if entry.device != "cpu":
        raise UnavailableError("OpenVINO runs on the CPU only here")
    from benchmarks.openvino_peer import OpenVINO

    return OpenVINO(entry, folder, task, scale)


def _batches(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    for at in range(0, len(items), size):
        yield list(items[at : at + size])


def _array(values: torch.Tensor) -> Array:
    return np.asarray(values.float().cpu().numpy(), np.float32)


_MAKERS: dict[str, Callable[[Entry, Path, ModelKind, Scale], Contestant]] = {
    "ours": _ours,
    "transformers": _transformers,
    "openvino-peer": _openvino,
}
