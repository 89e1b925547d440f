"""Retrieval of images by text and of texts by image.

With `fast_match`, scores are ITC cosine similarities. Without it, as in the benchmark, the `CANDIDATES` most similar
entries get the sum of ITM logit and similarity, and all others -100.
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

from openblip.compat.mmpretrain_api.base import BaseInferencer, DataSample, Result, list_inputs, load_bgr_image
from openblip.compat.mmpretrain_api.models import Model
from openblip.drawing import add_lines, draw_gallery
from openblip.engine.protocols import MatchLogits
from openblip.errors import InputError
from openblip.pipelines.base import TEXT_ROWS, iter_chunks
from openblip.pipelines.retrieval import RetrievalPipeline
from openblip.preprocess.text import clean_expression

CANDIDATES = 256
TEXT_TOKENS = 35
EXCLUDED_SCORE = -100.0
FIGURE_DPI = 100  # pixels per inch of `figsize`
FOLDER_KEYS = frozenset({"type", "data_root", "data_prefix", "with_label"})
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})


class _RetrievalInferencer(BaseInferencer):
    """Base of the retrieval inferencers, which encode a prototype (the collection to search) once.

    Args:
        model: Published name, path or model.
        prototype: The collection to search.
        prototype_cache: File to store the features of the prototype in, or to load them from if it exists.
        fast_match: Rank by ITC only.
        prepare_batch_size: Number of images per batch when the prototype is encoded.
        pretrained: Load the published weights, or the weights of a file.
        device: Device to run on; by default a GPU if there is one.
        **unknown: Settings of `mmpretrain`'s configuration files, which are rejected.

    Raises:
        InputError: If the prototype is invalid or empty, or the cache does not belong to it.
    """

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
        self.retrieval = RetrievalPipeline(self.task_model)
        self.prototype_dataset = self._list_prototype(prototype)
        if not self.prototype_dataset:
            raise InputError("the prototype must not be empty")
        if prototype_cache is not None and Path(prototype_cache).exists():
            self.prototype = self._load_features(Path(prototype_cache))
            return
        self.prototype = self._compute_features(prepare_batch_size)
        if prototype_cache is not None:
            self.save_prototype(prototype_cache)

    def save_prototype(self, path: str | Path) -> None:
        """Write the features of the prototype to a file.

        Args:
            path: The file.
        """
        torch.save(self.prototype, path)

    def _list_prototype(self, prototype: Any) -> Sequence[Any]:
        raise NotImplementedError

    def _compute_features(self, batch_size: int) -> dict[str, Tensor]:
        raise NotImplementedError

    @property
    def _feature_names(self) -> tuple[str, ...]:
        raise NotImplementedError

    def _load_features(self, path: Path) -> dict[str, Tensor]:
        features = torch.load(path, weights_only=True)
        if not isinstance(features, dict) or not set(self._feature_names) <= features.keys():
            names = ", ".join(self._feature_names)
            raise InputError(f"{path} must contain {names}: delete it, or use another prototype_cache")
        if any(len(features[name]) != len(self.prototype_dataset) for name in self._feature_names):
            raise InputError(f"{path} belongs to another prototype: delete it, or use another prototype_cache")
        return features

    def _token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.task_model.token_ids(clean_expression(text), "cls", TEXT_TOKENS) for text in texts]

    def _encode_images(self, images: Sequence[Any]) -> Tensor:
        opened = [self.task_model.open_image(load_bgr_image(image)) for image in images]
        return self.task_model.encode_images(opened)

    def _rerank(self, cosines: Tensor, states: Tensor, texts: list[list[int]]) -> Tensor:
        """Return the scores (C,) of one query.

        Args:
            cosines: Similarities (C,) of the query and the prototype.
            states: States of one image and `texts` of the prototype, or states of C images and one text.
            texts: Token ids of the texts.
        """
        engine = self.task_model.engine
        candidates = cosines.topk(min(CANDIDATES, len(cosines))).indices
        scores = torch.full_like(cosines, EXCLUDED_SCORE)
        rows = self.retrieval.with_enc(texts)
        for batch in torch.split(candidates, TEXT_ROWS):
            if len(states) == 1:
                batch_states, batch_rows = states, [rows[index] for index in batch.tolist()]
            else:
                batch_states, batch_rows = states[batch], rows * len(batch)
            ids, mask = self.task_model.pad(batch_rows)
            logits = engine.require(MatchLogits).match_logits(ids, mask, batch_states.to(engine.device))
            scores[batch] = logits[:, 1].cpu()
        scores[candidates] += cosines[candidates]
        return scores


class TextToImageRetrievalInferencer(_RetrievalInferencer):
    """Retrieves images by text. Each result is a list of dicts with `match_score`, `sample_idx` and `sample`.

    The prototype is a folder, a list of images, a dict with `data_root`, or a torch `Dataset` or `DataLoader` whose
    items are images or have an `img_path`.
    """

    task = "Text-To-Image Retrieval"
    visual = _RetrievalInferencer.visual | {"figsize"}

    def __call__(self, inputs: Any, return_datasamples: bool = False, batch_size: int = 1, **options: Any) -> list[Any]:
        """Retrieve images.

        Args:
            inputs: A text, or a list of texts.
            return_datasamples: Return `DataSample` objects rather than lists of dicts.
            batch_size: Number of texts per batch.
            **options: `topk` (default 1), and visual options: `show`, `show_dir`, `resize`, `wait_time`, `draw_score`,
                `figsize` (width and height of drawings, in units of 100 pixels).

        Returns:
            One result per text.
        """
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        return self._call(texts, return_datasamples, batch_size, options)

    def _infer(self, inputs: list[Any]) -> list[DataSample]:
        texts = self._token_ids(inputs)
        cosines = (self.retrieval.embed_texts(texts).cpu() @ self.prototype["image_feat"].T).unbind()
        if not self.fast_match:
            states = self.prototype["image_embeds"]
            cosines = tuple(self._rerank(row, states, [ids]) for row, ids in zip(cosines, texts, strict=True))
        return [DataSample(text=text, pred_score=row) for text, row in zip(inputs, cosines, strict=True)]

    def _format_result(self, sample: DataSample, topk: int = 1) -> Result:
        results = []
        for score, index in _top_scores(sample.get("pred_score"), topk):
            image = {"img_path": self.prototype_dataset[index]}
            results.append({"match_score": score, "sample_idx": index, "sample": image})
        return results

    def _draw(self, entry: Any, sample: DataSample, options: Mapping[str, Any]) -> Image.Image:
        ranking = _top_scores(sample.get("pred_score"), options.get("topk", 3))
        images = [load_bgr_image(self.prototype_dataset[index]) for _, index in ranking]
        drawing = add_lines(draw_gallery(images, _format_scores([score for score, _ in ranking], options)), [entry])
        return drawing if options.get("figsize") is None else _pad_to_figure(drawing, options["figsize"])

    def _drawing_name(self, entry: Any, index: int) -> str:
        return str(index)

    @property
    def _feature_names(self) -> tuple[str, ...]:
        return ("image_feat",) if self.fast_match else ("image_feat", "image_embeds")

    def _list_prototype(self, prototype: Any) -> Sequence[Any]:
        if isinstance(prototype, DataLoader):
            prototype = prototype.dataset
        if isinstance(prototype, IterableDataset):
            return [_find_image(item) for item in prototype]
        if isinstance(prototype, Dataset):
            return _Gallery(prototype)
        if isinstance(prototype, Mapping):
            prototype = _find_folder(prototype)
        if isinstance(prototype, str | Path):
            paths = sorted(path for path in Path(prototype).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
            return [str(path) for path in paths]
        if isinstance(prototype, list | tuple):
            return list(prototype)
        raise InputError(
            "prototype must be a folder, a list of images, a dict with data_root, a Dataset or a DataLoader, got "
            f"{type(prototype).__name__}"
        )

    def _compute_features(self, batch_size: int) -> dict[str, Tensor]:
        features: dict[str, list[Tensor]] = {name: [] for name in self._feature_names}
        for images in iter_chunks(self.prototype_dataset, batch_size):
            states = self._encode_images(images)
            features["image_feat"].append(self.retrieval.embed_images(states).cpu())
            if not self.fast_match:
                features["image_embeds"].append(states.cpu())
        return {name: torch.cat(tensors).clone() for name, tensors in features.items()}


class ImageToTextRetrievalInferencer(_RetrievalInferencer):
    """Retrieves texts by image. Each result is a list of dicts with `match_score`, `sample_idx` and `text`.

    The prototype is a list of strings, or a file with one text per line.
    """

    task = "Image-To-Text Retrieval"

    def __call__(self, inputs: Any, return_datasamples: bool = False, batch_size: int = 1, **options: Any) -> list[Any]:
        """Retrieve texts.

        Args:
            inputs: An image, a list of images, or a folder.
            return_datasamples: Return `DataSample` objects rather than lists of dicts.
            batch_size: Number of images per batch.
            **options: `topk` (default 1), and visual options: `show`, `show_dir`, `resize`, `wait_time`, `draw_score`.

        Returns:
            One result per image.
        """
        return self._call(list_inputs(inputs), return_datasamples, batch_size, options)

    def _infer(self, inputs: list[Any]) -> list[DataSample]:
        states = self._encode_images(inputs)
        scores = (self.retrieval.embed_images(states).cpu() @ self.prototype["text_feat"].T).unbind()
        if not self.fast_match:
            texts = self._token_ids(self.prototype_dataset)
            rows = zip(scores, states, strict=True)
            scores = tuple(self._rerank(row, image_states[None], texts) for row, image_states in rows)
        return [DataSample(pred_score=row) for row in scores]

    def _format_result(self, sample: DataSample, topk: int = 1) -> Result:
        results = []
        for score, index in _top_scores(sample.get("pred_score"), topk):
            results.append({"match_score": score, "sample_idx": index, "text": self.prototype_dataset[index]})
        return results

    def _draw(self, entry: Any, sample: DataSample, options: Mapping[str, Any]) -> Image.Image:
        ranking = _top_scores(sample.get("pred_score"), options.get("topk", 3))
        scores = _format_scores([score for score, _ in ranking], options)
        lines = []
        for (_, index), score in zip(ranking, scores, strict=True):
            lines.append(f"{self.prototype_dataset[index]} {score}".strip())
        image = load_bgr_image(entry)
        factor = options.get("resize", 224) / min(image.size)
        return add_lines(image.resize((round(image.width * factor), round(image.height * factor))), lines)

    @property
    def _feature_names(self) -> tuple[str, ...]:
        return ("text_feat",)

    def _list_prototype(self, prototype: Any) -> list[Any]:
        if isinstance(prototype, str | Path):
            return Path(prototype).read_text(encoding="utf-8").splitlines()
        if isinstance(prototype, list | tuple) and all(isinstance(text, str) for text in prototype):
            return list(prototype)
        raise InputError("prototype must be a list of strings, or a file with one text per line")

    def _compute_features(self, batch_size: int) -> dict[str, Tensor]:
        return {"text_feat": self.retrieval.embed_texts(self._token_ids(self.prototype_dataset)).cpu().clone()}


class _Gallery(Sequence[Any]):
    """The images of a torch dataset, each loaded when it is used."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        get_data_info = getattr(self.dataset, "get_data_info", None)  # of mmengine: the path, without the image
        return _find_image(self.dataset[index] if get_data_info is None else get_data_info(index))


def _find_image(item: Any) -> Any:
    """Return the image of a dataset's item: its `img_path`, the item itself, or its first element."""
    if isinstance(item, Mapping):
        item = item.get("img_path", getattr(item.get("data_samples"), "img_path", None))
    else:
        item = getattr(item, "img_path", item)
    if isinstance(item, tuple) and item:
        item = item[0]
    if not isinstance(item, str | Path | Image.Image | np.ndarray):
        raise InputError(
            "an item of a prototype must have an img_path, or be a path, a PIL image or an array, got "
            f"{type(item).__name__}"
        )
    return item


def _find_folder(settings: Mapping[str, Any]) -> Path:
    """Return the folder of a `CustomDataset` from its settings."""
    unknown = settings.keys() - FOLDER_KEYS
    if unknown:
        keys = ", ".join(sorted(FOLDER_KEYS))
        raise InputError(f"the keys of a prototype must be {keys}, got {', '.join(sorted(unknown))}")
    if settings.get("type", "CustomDataset") != "CustomDataset" or not settings.get("data_root"):
        raise InputError("a prototype that is a dict must be a CustomDataset with data_root, a folder of images")
    prefix = settings.get("data_prefix") or ""
    return Path(settings["data_root"]) / (prefix.get("img_path", "") if isinstance(prefix, Mapping) else prefix)


def _pad_to_figure(drawing: Image.Image, figsize: Any) -> Image.Image:
    """Return the drawing, scaled to fit on a white background of `figsize` inches."""
    if not isinstance(figsize, list | tuple) or len(figsize) != 2 or not all(side > 0 for side in figsize):
        raise InputError(f"figsize must be a width and a height, such as (16, 9), got {figsize!r}")
    width, height = (max(1, round(side * FIGURE_DPI)) for side in figsize)
    return ImageOps.pad(drawing, (width, height), color="white")


def _top_scores(scores: Tensor, topk: int) -> list[tuple[Tensor, int]]:
    ranking = scores.topk(min(topk, len(scores)))
    return list(zip(ranking.values.unbind(), ranking.indices.tolist(), strict=True))


def _format_scores(scores: Sequence[Tensor], options: Mapping[str, Any]) -> list[str]:
    return [f"{float(score):.3f}" if options.get("draw_score", True) else "" for score in scores]
