"""`FeatureExtractor`: the features of images, without a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openblip.compat.mmpretrain_api.base import list_inputs, load_bgr_image
from openblip.compat.mmpretrain_api.models import Model, get_model
from openblip.pipelines.base import iter_chunks


class FeatureExtractor:
    """Extracts the features of images with any BLIP model.

    Args:
        model: Published name, path or model.
        pretrained: Load the published weights, or the weights of a file.
        device: Device to run on; by default a GPU if there is one.
        **unknown: Settings of `mmpretrain`'s configuration files, which are rejected.
    """

    def __init__(
        self,
        model: str | Path | Model,
        pretrained: bool | str | Path = True,
        device: str | torch.device | None = None,
        **unknown: Any,
    ) -> None:
        self.model = model if isinstance(model, Model) else get_model(model, pretrained, device, **unknown)

    def __call__(self, inputs: Any, batch_size: int = 1, **unused: Any) -> list[dict[str, Tensor]]:
        """Return the features of images.

        Args:
            inputs: Path, URL or array (BGR), a list of these, or a folder.
            batch_size: Number of images per batch.
            **unused: `show`, which has no effect, as in `mmpretrain`.

        Returns:
            Per image `image_embeds`, the states (N + 1, D) of the class token and the patches; models that were trained
            with ITC add `image_feat`, the normalized embedding (E,).
        """
        blip = self.model.blip
        task_model = blip.pipeline(blip.tasks[0]).model
        features: list[dict[str, Tensor]] = []
        for chunk in iter_chunks(list_inputs(inputs), batch_size):
            images = [task_model.open_image(load_bgr_image(image), videos=False) for image in chunk]
            states = task_model.encode_images(images)
            rows = [{"image_embeds": state} for state in states]
            if hasattr(task_model.module, "vision_proj"):
                with torch.inference_mode():
                    embeddings = task_model.module.embed_image(states)
                for row, embedding in zip(rows, embeddings, strict=True):
                    row["image_feat"] = embedding
            features += rows
        return features
