"""Retrieval both ways: a text against a gallery of images, an image against a list of texts.

``fast_match`` scores by ITC cosine alone. Without it, as in the benchmark, the ``CANDIDATES`` with the highest cosine
are scored anew, ITM logit plus cosine, and all others get -100.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from openblip.compat.mmpretrain_api.base import BaseInferencer, DataSample, listed, picture
from openblip.compat.mmpretrain_api.models import Model
from openblip.drawing import gallery, titled
from openblip.engine.protocols import MatchLogits
from openblip.errors import InputError
from openblip.pipelines.base import TEXT_ROWS, iter_chunks
from openblip.pipelines.retrieval import RetrievalPipeline
from openblip.preprocess.text import clean_expression

CANDIDATES = 256
TEXT_TOKENS = 35
LEFT_OUT = -100.0
FIGURE_DPI = 100  # pixels to an inch of ``figsize``
FOLDER_KEYS = frozenset({"type", "data_root", "data_prefix", "with_label"})
PICTURES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})


class _RetrievalInferencer(BaseInferencer):
    """What both directions share: a prototype that is embedded once, kept in ``prototype_cache`` if that is named."""

    visual = BaseInferencer.visual | {"draw_score", "topk"}

    def __init__(
        self,
        model: str | Path | Model,
        prototype: Any,
        prototype_cache: str | Path | None = None,
        fast_match: bool = True,
        prepare_batch_size: int = 8,
        pretrained: bool | str | Path = True,
        device: str | torch.device | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__(model, pretrained, device, **unknown)
        self.fast_match = fast_match
        self.retrieval = RetrievalPipeline(self.part)
        self.prototype_dataset = self._listed(prototype)
        if not self.prototype_dataset:
            raise InputError("the prototype is empty: there is nothing to retrieve")
        if prototype_cache is not None and Path(prototype_cache).exists():
            self.prototype = self._cached(Path(prototype_cache))
            return
        self.prototype = self._prepared(prepare_batch_size)
        if prototype_cache is not None:
            self.save_prototype(prototype_cache)

    def save_prototype(self, path: str | Path) -> None:
        """Write what was computed of the prototype."""
        torch.save(self.prototype, path)

    def _listed(self, prototype: Any) -> Sequence[Any]:
        raise NotImplementedError

    def _prepared(self, batch_size: int) -> dict[str, Tensor]:
        raise NotImplementedError

    @property
    def _wanted(self) -> tuple[str, ...]:
        raise NotImplementedError

    def _cached(self, path: Path) -> dict[str, Tensor]:
        found = torch.load(path, weights_only=True)
        if not isinstance(found, dict) or not set(self._wanted) <= found.keys():
            raise InputError(f"{path} does not hold {', '.join(self._wanted)}: delete it, or name another cache")
        if any(len(found[name]) != len(self.prototype_dataset) for name in self._wanted):
            raise InputError(f"{path} is of another prototype, of another length: delete it, or name another cache")
        return found

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        cleaned = [clean_expression(text) for text in texts]
        return [self.part.token_ids(text, "cls", TEXT_TOKENS) for text in cleaned]

    def _reranked(self, cosines: Tensor, states: Tensor, texts: list[list[int]]) -> Tensor:
        """Scores of one row of cosines (C,), between one image's states and C texts, or C images' and one text."""
        best = cosines.topk(min(CANDIDATES, len(cosines))).indices
        scores = torch.full_like(cosines, LEFT_OUT)
        grounded = self.retrieval.with_enc(texts)
        for run in torch.split(best, TEXT_ROWS):
            one_image = len(states) == 1
            seen = states if one_image else states[run]
            ids, mask = self.part.pad([grounded[i] for i in run.tolist()] if one_image else grounded * len(run))
            logits = self.part.engine.require(MatchLogits).match_logits(ids, mask, seen.to(self.part.engine.device))
            scores[run] = logits[:, 1].cpu()
        scores[best] += cosines[best]
        return scores


class TextToImageRetrievalInferencer(_RetrievalInferencer):
    """Finds the images of a gallery that fit a text: a list of ``match_score``, ``sample_idx`` and ``sample`` each.

    ``prototype`` is a folder, a list of paths, a dict with ``data_root``, or a torch ``Dataset`` or ``DataLoader``
    whose items hold a path under ``img_path``, or are pictures. ``topk`` (1) is how many; ``figsize``, in units of 100
    pixels, the size of drawings.
    """

    task = "Text-To-Image Retrieval"
    visual = _RetrievalInferencer.visual | {"figsize"}

    def __call__(self, inputs: Any, return_datasamples: bool = False, batch_size: int = 1, **options: Any) -> list[Any]:
        """``inputs`` is a text or a list of texts."""
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        return self._call(texts, return_datasamples, batch_size, options)

    def infer(self, inputs: list[Any]) -> list[DataSample]:
        texts = self._ids(inputs)
        cosines = (self.retrieval.embed_texts(texts).cpu() @ self.prototype["image_feat"].T).unbind()
        if not self.fast_match:
            states = self.prototype["image_embeds"]
            cosines = tuple(self._reranked(row, states, [ids]) for row, ids in zip(cosines, texts, strict=True))
        return [DataSample(text=text, pred_score=row) for text, row in zip(inputs, cosines, strict=True)]

    def result(self, sample: DataSample, topk: int = 1) -> Any:
        return [
            {"match_score": score, "sample_idx": number, "sample": {"img_path": self.prototype_dataset[number]}}
            for score, number in _best(sample.get("pred_score"), topk)
        ]

    def draw(self, given: Any, sample: DataSample, options: Mapping[str, Any]) -> Image.Image:
        best = _best(sample.get("pred_score"), options.get("topk", 3))
        found = [picture(self.prototype_dataset[i]) for _, i in best]
        drawn = titled(gallery(found, _scores([score for score, _ in best], options)), [given])
        return drawn if options.get("figsize") is None else _figure(drawn, options["figsize"])

    def _name(self, given: Any, number: int) -> str:
        return str(number)

    @property
    def _wanted(self) -> tuple[str, ...]:
        return ("image_feat",) if self.fast_match else ("image_feat", "image_embeds")

    def _listed(self, prototype: Any) -> Sequence[Any]:
        if isinstance(prototype, DataLoader):
            prototype = prototype.dataset
        if isinstance(prototype, IterableDataset):
            return [_image(item) for item in prototype]
        if isinstance(prototype, Dataset):
            return _Gallery(prototype)
        if isinstance(prototype, Mapping):
            prototype = _folder(prototype)
        if isinstance(prototype, str | Path):
            found = sorted(path for path in Path(prototype).rglob("*") if path.suffix.lower() in PICTURES)
            return [str(path) for path in found]
        if isinstance(prototype, list | tuple):
            return list(prototype)
        raise InputError(
            "a prototype is a folder, a list of images, a dict with data_root, a Dataset or a DataLoader, not "
            f"{type(prototype).__name__}"
        )

    def _prepared(self, batch_size: int) -> dict[str, Tensor]:
        parts: dict[str, list[Tensor]] = {name: [] for name in self._wanted}
        for paths in iter_chunks(self.prototype_dataset, batch_size):
            states = self.part.encode_images([self.part.open_image(picture(path)) for path in paths])
            parts["image_feat"].append(self.retrieval.embed_images(states).cpu())
            if not self.fast_match:
                parts["image_embeds"].append(states.cpu())
        return {name: torch.cat(tensors).clone() for name, tensors in parts.items()}


class ImageToTextRetrievalInferencer(_RetrievalInferencer):
    """Finds the texts of a list that fit an image: a list of ``match_score``, ``sample_idx`` and ``text`` each.

    ``prototype`` is a list of strings or a file with one in each line. ``topk`` (1) is how many.
    """

    task = "Image-To-Text Retrieval"

    def __call__(self, inputs: Any, return_datasamples: bool = False, batch_size: int = 1, **options: Any) -> list[Any]:
        """``inputs`` is an image, a list of them, or a folder."""
        return self._call(listed(inputs), return_datasamples, batch_size, options)

    def infer(self, inputs: list[Any]) -> list[DataSample]:
        states = self.part.encode_images([self.part.open_image(picture(one)) for one in inputs])
        scores = (self.retrieval.embed_images(states).cpu() @ self.prototype["text_feat"].T).unbind()
        if not self.fast_match:
            texts = self._ids(self.prototype_dataset)
            scores = tuple(self._reranked(row, own[None], texts) for row, own in zip(scores, states, strict=True))
        return [DataSample(pred_score=row) for row in scores]

    def result(self, sample: DataSample, topk: int = 1) -> Any:
        return [
            {"match_score": score, "sample_idx": number, "text": self.prototype_dataset[number]}
            for score, number in _best(sample.get("pred_score"), topk)
        ]

    def draw(self, given: Any, sample: DataSample, options: Mapping[str, Any]) -> Image.Image:
        best = _best(sample.get("pred_score"), options.get("topk", 3))
        scores = _scores([score for score, _ in best], options)
        lines = [f"{self.prototype_dataset[i]} {score}".strip() for (_, i), score in zip(best, scores, strict=True)]
        image = picture(given)
        factor = options.get("resize", 224) / min(image.size)
        return titled(image.resize((round(image.width * factor), round(image.height * factor))), lines)

    @property
    def _wanted(self) -> tuple[str, ...]:
        return ("text_feat",)

    def _listed(self, prototype: Any) -> list[Any]:
        if isinstance(prototype, str | Path):
            return Path(prototype).read_text(encoding="utf-8").splitlines()
        if isinstance(prototype, list | tuple) and all(isinstance(text, str) for text in prototype):
            return list(prototype)
        raise InputError("a prototype is a list of strings, or a file with one in each line")

    def _prepared(self, batch_size: int) -> dict[str, Tensor]:
        return {"text_feat": self.retrieval.embed_texts(self._ids(self.prototype_dataset)).cpu().clone()}


class _Gallery(Sequence[Any]):
    """The images of a torch dataset, in its own order, each read when it is asked for."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        unread = getattr(self.dataset, "get_data_info", None)  # mmengine's datasets tell the path without the picture
        return _image(self.dataset[index] if unread is None else unread(index))


def _image(item: Any) -> Any:
    """The image of an item: what is under ``img_path``, itself, or the first of a picture and its label."""
    if isinstance(item, Mapping):
        item = item.get("img_path", getattr(item.get("data_samples"), "img_path", None))
    else:
        item = getattr(item, "img_path", item)
    if isinstance(item, tuple) and item:
        item = item[0]
    if not isinstance(item, str | Path | Image.Image | np.ndarray):
        raise InputError(
            f"an item of a prototype holds img_path, or is a path, a PIL image or an array, not {type(item).__name__}"
        )
    return item


def _folder(settings: Mapping[str, Any]) -> Path:
    """The folder of a prototype given as the settings of a ``CustomDataset``."""
    if unknown := settings.keys() - FOLDER_KEYS:
        raise InputError(f"a prototype's dict has {', '.join(sorted(FOLDER_KEYS))}, not {', '.join(sorted(unknown))}")
    if settings.get("type", "CustomDataset") != "CustomDataset" or not settings.get("data_root"):
        raise InputError("a prototype as a dict is a CustomDataset with data_root, a folder of pictures")
    prefix = settings.get("data_prefix") or ""
    return Path(settings["data_root"]) / (prefix.get("img_path", "") if isinstance(prefix, Mapping) else prefix)


def _figure(drawn: Image.Image, inches: Any) -> Image.Image:
    """The drawing as large as fits on white of ``inches``, width and height."""
    if not isinstance(inches, list | tuple) or len(inches) != 2 or not all(side > 0 for side in inches):
        raise InputError(f"figsize is a width and a height, such as (16, 9), not {inches!r}")
    width, height = (max(1, round(side * FIGURE_DPI)) for side in inches)
    return ImageOps.pad(drawn, (width, height), color="white")


def _best(scores: Tensor, topk: int) -> list[tuple[Tensor, int]]:
    found = scores.topk(min(topk, len(scores)))
    return list(zip(found.values.unbind(), found.indices.tolist(), strict=True))


def _scores(scores: Sequence[Tensor], options: Mapping[str, Any]) -> list[str]:
    return [f"{float(score):.3f}" if options.get("draw_score", True) else "" for score in scores]
