"""Who is measured: OpenBLIP in any engine and precision, and its peers, all behind the same few calls.

A contestant is written ``NAME:WAY:PRECISION``; each is used as its own documentation shows, in batches of 8 pictures on
a CPU. Where our model and `transformers` would feed different first tokens, the peer is given the token that the
model was trained with: that costs it nothing, and outputs can be compared.
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

Array: TypeAlias = NDArray[np.float32]
Item = TypeVar("Item")
Picture: TypeAlias = Image.Image | Path
CALIBRATION = 12  # pictures


class UnavailableError(Exception):
    """This contestant cannot run here; the message says why."""


class Contestant(Protocol):
    """What the rows ask for. Pictures are decoded ones, or paths of JPEG files."""

    def caption(self, pictures: Sequence[Picture], beams: int, tokens: int) -> list[str]:
        """A text of exactly ``tokens`` new tokens for each picture."""
        ...

    def ask(self, picture: Picture, questions: Sequence[str], tokens: int) -> list[str]:
        """Greedy answers of exactly ``tokens`` tokens."""
        ...

    def match(self, pictures: Sequence[Picture], texts: Sequence[str]) -> Array:
        """ITM probabilities (pictures, texts)."""
        ...

    def embed_images(self, pictures: Sequence[Picture]) -> Array:
        """Unit vectors (pictures, E)."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Array:
        """Unit vectors (texts, E)."""
        ...


@dataclass(frozen=True)
class Entry:
    """One contestant as named on the command line, on one device."""

    who: str  # "ours", "transformers" or "openvino"
    way: str  # engine, or how the peer is run
    precision: str
    device: str = "cpu"

    @property
    def name(self) -> str:
        """How tables call it."""
        way = "" if self.way in ("torch", "eager", "converted") and self.who != "ours" else f" {self.way}"
        place = "" if self.device == "cpu" else f" on {self.device}"
        return f"{self.who}{way} {self.precision}{place}"

    @property
    def exact(self) -> bool:
        """Whether its outputs must be those of the reference."""
        return self.precision == "fp32" and self.device == "cpu"

    def make(self, folder: Path, task: ModelKind, scale: Scale) -> Contestant:
        """Load the model in ``folder``. Raises :class:`UnavailableError`."""
        try:
            return _MAKERS[self.who](self, folder, task, scale)
        except (openblip.OpenBlipError, ImportError) as error:
            raise UnavailableError(str(error)) from error


def parse(words: Sequence[str], device: str) -> list[Entry]:
    """Entries of ``ENGINE:PRECISION`` (ours) and ``transformers:WAY:PRECISION`` or ``openvino:PRECISION`` (peers)."""
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
                    f"no contestant is {word!r}; write torch:fp32, transformers:bf16 or openvino-peer:int8"
                )
    return entries


class Ours:
    """OpenBLIP, as its README shows; OpenVINO's int8 with a few pictures to calibrate by, none of which is measured."""

    def __init__(self, entry: Entry, folder: Path, scale: Scale) -> None:
        more: dict[str, Any] = {"engine": entry.way, "precision": entry.precision}
        if (entry.way, entry.precision) == ("openvino", "int8"):
            more["calibration"] = [materials.picture(1000 + seed, *scale.photo) for seed in range(CALIBRATION)]
        if entry.device != "cpu":
            more["batch_size"] = 256
        self.blip = openblip.load(folder, device=entry.device, **more)

    def caption(self, pictures: Sequence[Picture], beams: int, tokens: int) -> list[str]:
        found = self.blip.caption(list(pictures), num_beams=beams, min_new_tokens=tokens, max_new_tokens=tokens)
        return [caption.text for caption in found]

    def ask(self, picture: Picture, questions: Sequence[str], tokens: int) -> list[str]:
        found = self.blip.ask(picture, list(questions), num_beams=1, min_new_tokens=tokens, max_new_tokens=tokens)
        return [answer.text for answer in found]

    def match(self, pictures: Sequence[Picture], texts: Sequence[str]) -> Array:
        found = self.blip.match(list(pictures), list(texts))
        return np.array([[match.probability for match in row] for row in found], np.float32)

    def embed_images(self, pictures: Sequence[Picture]) -> Array:
        return np.asarray(self.blip.embed_images(list(pictures)), np.float32)

    def embed_texts(self, texts: Sequence[str]) -> Array:
        return np.asarray(self.blip.embed_texts(list(texts)), np.float32)


class Transformers:
    """`transformers` as its documentation shows: processor, ``generate``, decode; batches of 8 pictures on a CPU."""

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
            raise UnavailableError(f"transformers has no precision {entry.precision}")
        self.dtype = DTYPES[entry.precision]
        self.device = entry.device
        self.batch = 8 if entry.device == "cpu" else 256
        self.processor = library.AutoProcessor.from_pretrained(folder)
        model = getattr(library, names[task]).from_pretrained(folder, dtype=self.dtype)
        self.model: Any = model.to(entry.device).eval()
        if entry.way == "compiled":
            self.model.vision_model = torch.compile(self.model.vision_model)
        self.enc_id = self.model.config.text_config.vocab_size - 1  # [ENC], the last of the vocabulary

    @torch.inference_mode()
    def caption(self, pictures: Sequence[Picture], beams: int, tokens: int) -> list[str]:
        texts: list[str] = []
        for some in _batches(pictures, self.batch):
            ids = self.model.generate(
                **self._pictures(some), num_beams=beams, min_new_tokens=tokens, max_new_tokens=tokens
            )
            texts += self.processor.batch_decode(ids, skip_special_tokens=True)
        return texts

    @torch.inference_mode()
    def ask(self, picture: Picture, questions: Sequence[str], tokens: int) -> list[str]:
        texts: list[str] = []
        for some in _batches(questions, self.batch):
            inputs = self._pictures([picture] * len(some)) | self._texts(some, grounded=True)
            ids = self.model.generate(**inputs, min_new_tokens=tokens, max_new_tokens=tokens)
            texts += self.processor.batch_decode(ids, skip_special_tokens=True)
        return texts

    @torch.inference_mode()
    def match(self, pictures: Sequence[Picture], texts: Sequence[str]) -> Array:
        rows = []
        for picture in pictures:
            parts = []
            for some in _batches(texts, self.batch):
                inputs = self._pictures([picture] * len(some)) | self._texts(some, grounded=True)
                parts.append(self.model(**inputs).itm_score.float().softmax(-1)[:, 1])
            rows.append(torch.cat(parts))
        return _array(torch.stack(rows))

    @torch.inference_mode()
    def embed_images(self, pictures: Sequence[Picture]) -> Array:
        parts = []
        for some in _batches(pictures, self.batch):
            states = self.model.vision_model(**self._pictures(some)).last_hidden_state[:, 0]
            parts.append(torch.nn.functional.normalize(self.model.vision_proj(states), dim=-1))
        return _array(torch.cat(parts))

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Array:
        parts = []
        for some in _batches(texts, 64):
            states = self.model.text_encoder(**self._texts(some, grounded=False)).last_hidden_state[:, 0]
            parts.append(torch.nn.functional.normalize(self.model.text_proj(states), dim=-1))
        return _array(torch.cat(parts))

    def _pictures(self, pictures: Sequence[Picture]) -> dict[str, Any]:
        opened = [Image.open(p).convert("RGB") if isinstance(p, Path) else p for p in pictures]
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
        raise UnavailableError("OpenVINO is measured on the CPU only")
    from benchmarks.openvino_peer import OpenVINO

    return OpenVINO(entry, folder, task, scale)


def _batches(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    for at in range(0, len(items), size):
        yield list(items[at : at + size])


def _array(values: torch.Tensor) -> Array:
    return np.asarray(values.float().cpu().numpy(), np.float32)


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_MAKERS: dict[str, Callable[[Entry, Path, ModelKind, Scale], Contestant]] = {
    "ours": _ours,
    "transformers": _transformers,
    "openvino-peer": _openvino,
}
