"""Captions, answers, boxes and verdicts: the inferencers whose inputs are whole."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from openblip.compat.mmpretrain_api.base import BaseInferencer, DataSample, lettered, listed, paired, picture, resized
from openblip.compat.mmpretrain_api.models import Model
from openblip.drawing import beside, draw_boxes
from openblip.engine.protocols import Comparisons
from openblip.errors import InputError
from openblip.preprocess.text import clean_expression

CANDIDATES, SMOOTHING = 128, 0.1  # of ranking, as that library's configuration has them
STATEMENT_TOKENS = 35


class ImageCaptionInferencer(BaseInferencer):
    """Describes images: ``{'pred_caption': str}`` each.

    >>> inferencer = ImageCaptionInferencer("blip-base_3rdparty_caption")  # doctest: +SKIP
    >>> inferencer("demo/cat-dog.png")[0]  # doctest: +SKIP
    """

    task = "Image Caption"

    def __call__(self, images: Any, return_datasamples: bool = False, batch_size: int = 1, **options: Any) -> list[Any]:
        """``images`` is a path, an address, an array (BGR), a list of those, or a folder."""
        return self._call(listed(images), return_datasamples, batch_size, options)

    def infer(self, inputs: list[Any]) -> list[DataSample]:
        found = self.model.blip.caption([picture(one) for one in inputs], min_new_tokens=0)
        return [DataSample(pred_caption=one.text) for one in found]

    def result(self, sample: DataSample) -> Any:
        return {"pred_caption": sample.get("pred_caption")}

    def draw(self, given: Any, sample: DataSample, options: Mapping[str, Any]) -> Image.Image:
        return lettered(picture(given), [sample.get("pred_caption")], options)


class VisualQuestionAnsweringInferencer(BaseInferencer):
    """Answers questions: ``{'question': str, 'pred_answer': str}`` each.

    Answers are generated or, with ``answer_list`` (strings, or a JSON file of them), ranked as that library does with
    the list it downloads.
    """

    task = "Visual Question Answering"

    def __init__(
        self,
        model: str | Path | Model,
        pretrained: bool | str | Path = True,
        device: str | torch.device | None = None,
        answer_list: Sequence[str] | str | Path | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__(model, pretrained, device, **unknown)
        self.answers: Sequence[str] | None = (
            _answers(answer_list) if isinstance(answer_list, str | Path) else answer_list
        )

    def __call__(
        self,
        images: Any,
        questions: Any,
        return_datasamples: bool = False,
        batch_size: int = 1,
        objects: None = None,
        **options: Any,
    ) -> list[Any]:
        """One image and its question, or as many of each. ``objects`` are for OFA, and refused."""
        if objects is not None:
            raise InputError("objects are for OFA models; BLIP reads the image and the question alone")
        return self._call(paired(images, questions, "question"), return_datasamples, batch_size, options)

    def infer(self, inputs: list[Any]) -> list[DataSample]:
        pictures = [picture(one["img"]) for one in inputs]
        questions = [clean_expression(one["question"]) for one in inputs]
        ranked: dict[str, Any] = {"min_new_tokens": 0}
        if self.answers is not None:
            ranked = {"answers": self.answers, "shortlist": min(CANDIDATES, len(self.answers)), "smoothing": SMOOTHING}
        found = self.model.blip.ask(pictures, questions, **ranked)
        return [
            DataSample(question=question, pred_answer=one.text) for question, one in zip(questions, found, strict=True)
        ]

    def result(self, sample: DataSample) -> Any:
        return {"question": sample.get("question"), "pred_answer": sample.get("pred_answer")}

    def draw(self, given: Any, sample: DataSample, options: Mapping[str, Any]) -> Image.Image:
        lines = [f"Q: {sample.get('question')}", f"A: {sample.get('pred_answer')}"]
        return lettered(picture(given["img"]), lines, options)


class VisualGroundingInferencer(BaseInferencer):
    """Finds what texts name: ``{'pred_bboxes': tensor (1, 4)}`` each, x y x y in pixels of the image."""

    task = "Visual Grounding"
    visual = BaseInferencer.visual | {"line_width", "bbox_color"}

    def __call__(
        self, images: Any, texts: Any, return_datasamples: bool = False, batch_size: int = 1, **options: Any
    ) -> list[Any]:
        """One image and its text, or as many of each."""
        return self._call(paired(images, texts, "text"), return_datasamples, batch_size, options)

    def infer(self, inputs: list[Any]) -> list[DataSample]:
        pictures = [picture(one["img"]) for one in inputs]
        found = self.model.blip.ground(pictures, [one["text"] for one in inputs])
        return [
            DataSample(text=one["text"], pred_bboxes=torch.tensor([[box.left, box.top, box.right, box.bottom]]))
            for one, box in zip(inputs, found, strict=True)
        ]

    def result(self, sample: DataSample) -> Any:
        return {"pred_bboxes": sample.get("pred_bboxes")}

    def draw(self, given: Any, sample: DataSample, options: Mapping[str, Any]) -> Image.Image:
        image, factor = resized(picture(given["img"]), options)
        left, top, right, bottom = (sample.get("pred_bboxes")[0] * factor).tolist()
        colour = options.get("bbox_color", "green")
        colour = colour if isinstance(colour, str) else tuple(colour)
        boxes, names = [(left, top, right, bottom)], [given["text"]]
        return draw_boxes(image, boxes, names, colours=[colour], width=options.get("line_width", 3))


class NLVRInferencer(BaseInferencer):
    """Judges statements about two images: ``{'pred_scores': array (2,), 'pred_label': int, 'pred_score': float}`` each.

    As in that library the text begins with [CLS] and is not cleaned; ``Blip.compare`` does what the model was trained
    for.
    """

    task = "NLVR"
    visual = BaseInferencer.visual | {"draw_score"}

    def __call__(self, inputs: Any, return_datasamples: bool = False, batch_size: int = 1, **options: Any) -> list[Any]:
        """A tuple (left image, right image, text), or a list of them."""
        inputs = [inputs] if isinstance(inputs, tuple) else inputs
        if not isinstance(inputs, list) or not all(isinstance(one, tuple) and len(one) == 3 for one in inputs):
            raise InputError("give a tuple (left image, right image, text), or a list of such tuples")
        return self._call(inputs, return_datasamples, batch_size, options)

    def infer(self, inputs: list[Any]) -> list[DataSample]:
        left, right = (
            self.part.encode_images([self.part.open_image(picture(one[side])) for one in inputs]) for side in (0, 1)
        )
        text = self.tokenizer.encode([one[2] for one in inputs], "cls", max_length=STATEMENT_TOKENS)
        scores = (
            self.part.engine.require(Comparisons).compare_logits(text.ids, text.mask, left, right).softmax(-1).cpu()
        )
        return [DataSample(text=one[2], pred_score=row) for one, row in zip(inputs, scores, strict=True)]

    def result(self, sample: DataSample) -> Any:
        scores = sample.get("pred_score")
        return {
            "pred_scores": scores.numpy(),
            "pred_label": int(scores.argmax()),
            "pred_score": float(scores.max()),
        }

    def draw(self, given: Any, sample: DataSample, options: Mapping[str, Any]) -> Image.Image:
        pair = beside([resized(picture(image), options)[0] for image in given[:2]])
        scores = sample.get("pred_score")
        verdict = f"{bool(scores.argmax() == 1)}"
        if options.get("draw_score", True):
            verdict += f" ({float(scores.max()):.2f})"
        return lettered(pair, [given[2], verdict], {})

    def _name(self, given: Any, number: int) -> str:
        return str(number)


def _answers(path: str | Path) -> list[str]:
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the answer list {path}: {error}") from error
    if not isinstance(found, list):
        raise InputError(f"the answer list {path} is not a JSON list of strings")
    return found
