"""Inferencers for captions, answers, boxes and statements about image pairs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from openblip.compat.mmpretrain_api.base import (
    BaseInferencer,
    DataSample,
    Result,
    draw_lines,
    list_inputs,
    load_bgr_image,
    pair_inputs,
    resize_drawing,
)
from openblip.compat.mmpretrain_api.models import Model
from openblip.drawing import draw_boxes, draw_row
from openblip.engine.protocols import Comparisons
from openblip.errors import InputError
from openblip.preprocess.text import clean_expression

# Settings of mmpretrain's configuration files.
RANKING_CANDIDATES, RANKING_SMOOTHING = 128, 0.1
STATEMENT_TOKENS = 35


class ImageCaptionInferencer(BaseInferencer):
    """Captions images. Each result is `{'pred_caption': str}`.

    Examples:
        >>> inferencer = ImageCaptionInferencer("blip-base_3rdparty_caption")  # doctest: +SKIP
        >>> inferencer("demo/cat-dog.png")[0]  # doctest: +SKIP
    """

    task = "Image Caption"

    def __call__(self, images: Any, return_datasamples: bool = False, batch_size: int = 1, **options: Any) -> list[Any]:
        """Caption images.

        Args:
            images: Path, URL or array (BGR), a list of these, or a folder.
            return_datasamples: Return `DataSample` objects rather than dicts.
            batch_size: Number of images per batch.
            **options: Visual options: `show`, `show_dir`, `resize`, `wait_time`.

        Returns:
            One result per image.
        """
        return self._call(list_inputs(images), return_datasamples, batch_size, options)

    def _infer(self, inputs: list[Any]) -> list[DataSample]:
        captions = self.model.blip.caption([load_bgr_image(image) for image in inputs], min_new_tokens=0)
        return [DataSample(pred_caption=caption.text) for caption in captions]

    def _format_result(self, sample: DataSample) -> Result:
        return {"pred_caption": sample.get("pred_caption")}

    def _draw(self, entry: Any, sample: DataSample, options: Mapping[str, Any]) -> Image.Image:
        return draw_lines(load_bgr_image(entry), [sample.get("pred_caption")], options)


class VisualQuestionAnsweringInferencer(BaseInferencer):
    """Answers questions about images. Each result is `{'question': str, 'pred_answer': str}`.

    Args:
        model: Published name, path or model.
        pretrained: Load the published weights, or the weights of a file.
        device: Device to run on; by default a GPU if there is one.
        answer_list: Answers to rank, or a JSON file with a list of answers. Without it, answers are generated.
            `mmpretrain` downloads its list.
        **unknown: Settings of `mmpretrain`'s configuration files, which are rejected.

    Raises:
        InputError: If the file is not a list of answers.
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
        if isinstance(answer_list, str | Path):
            try:
                answers = json.loads(Path(answer_list).read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise InputError(f"cannot read the answer list {answer_list}: {error}") from error
            if not isinstance(answers, list):
                raise InputError(f"answer_list must be a JSON list of strings, got {answer_list}")
            answer_list = answers
        self.answers: Sequence[str] | None = answer_list

    def __call__(
        self,
        images: Any,
        questions: Any,
        return_datasamples: bool = False,
        batch_size: int = 1,
        objects: None = None,
        **options: Any,
    ) -> list[Any]:
        """Answer one question per image.

        Args:
            images: Path, URL or array (BGR), or a list of these.
            questions: A question, or a list with one per image.
            return_datasamples: Return `DataSample` objects rather than dicts.
            batch_size: Number of images per batch.
            objects: Must be `None`; for OFA models only.
            **options: Visual options: `show`, `show_dir`, `resize`, `wait_time`.

        Returns:
            One result per image.

        Raises:
            InputError: If there is not one question per image, or `objects` is given.
        """
        if objects is not None:
            raise InputError("objects must be None for BLIP: only OFA models use it")
        return self._call(pair_inputs(images, questions, "question"), return_datasamples, batch_size, options)

    def _infer(self, inputs: list[Any]) -> list[DataSample]:
        images = [load_bgr_image(entry["img"]) for entry in inputs]
        questions = [clean_expression(entry["question"]) for entry in inputs]
        options: dict[str, Any] = {"min_new_tokens": 0}
        if self.answers is not None:
            shortlist = min(RANKING_CANDIDATES, len(self.answers))
            options = {"answers": self.answers, "shortlist": shortlist, "smoothing": RANKING_SMOOTHING}
        answers = self.model.blip.ask(images, questions, **options)
        samples = []
        for question, answer in zip(questions, answers, strict=True):
            samples.append(DataSample(question=question, pred_answer=answer.text))
        return samples

    def _format_result(self, sample: DataSample) -> Result:
        return {"question": sample.get("question"), "pred_answer": sample.get("pred_answer")}

    def _draw(self, entry: Any, sample: DataSample, options: Mapping[str, Any]) -> Image.Image:
        lines = [f"Q: {sample.get('question')}", f"A: {sample.get('pred_answer')}"]
        return draw_lines(load_bgr_image(entry["img"]), lines, options)


class VisualGroundingInferencer(BaseInferencer):
    """Locates objects by text. Each result is `{'pred_bboxes': tensor (1, 4)}`: left, top, right, bottom."""

    task = "Visual Grounding"
    visual = BaseInferencer.visual | {"line_width", "bbox_color"}

    def __call__(
        self, images: Any, texts: Any, return_datasamples: bool = False, batch_size: int = 1, **options: Any
    ) -> list[Any]:
        """Locate one text per image.

        Args:
            images: Path, URL or array (BGR), or a list of these.
            texts: A text, or a list with one per image.
            return_datasamples: Return `DataSample` objects rather than dicts.
            batch_size: Number of images per batch.
            **options: Visual options: `show`, `show_dir`, `resize`, `wait_time`, `line_width`, `bbox_color`.

        Returns:
            One result per image.

        Raises:
            InputError: If there is not one text per image.
        """
        return self._call(pair_inputs(images, texts, "text"), return_datasamples, batch_size, options)

    def _infer(self, inputs: list[Any]) -> list[DataSample]:
        images = [load_bgr_image(entry["img"]) for entry in inputs]
        boxes = self.model.blip.ground(images, [entry["text"] for entry in inputs])
        samples = []
        for entry, box in zip(inputs, boxes, strict=True):
            edges = torch.tensor([[box.left, box.top, box.right, box.bottom]])
            samples.append(DataSample(text=entry["text"], pred_bboxes=edges))
        return samples

    def _format_result(self, sample: DataSample) -> Result:
        return {"pred_bboxes": sample.get("pred_bboxes")}

    def _draw(self, entry: Any, sample: DataSample, options: Mapping[str, Any]) -> Image.Image:
        image, factor = resize_drawing(load_bgr_image(entry["img"]), options)
        left, top, right, bottom = (sample.get("pred_bboxes")[0] * factor).tolist()
        color = options.get("bbox_color", "green")
        color = color if isinstance(color, str) else tuple(color)
        boxes, names = [(left, top, right, bottom)], [entry["text"]]
        return draw_boxes(image, boxes, names, colors=[color], width=options.get("line_width", 3))


class NLVRInferencer(BaseInferencer):
    """Decides whether statements about two images are true.

    Each result is `{'pred_scores': array (2,), 'pred_label': int, 'pred_score': float}`. As in `mmpretrain`, the text
    starts with [CLS] and is not cleaned; `Blip.compare` encodes texts as in training.
    """

    task = "NLVR"
    visual = BaseInferencer.visual | {"draw_score"}

    def __call__(self, inputs: Any, return_datasamples: bool = False, batch_size: int = 1, **options: Any) -> list[Any]:
        """Judge statements.

        Args:
            inputs: A tuple (left image, right image, text), or a list of such tuples.
            return_datasamples: Return `DataSample` objects rather than dicts.
            batch_size: Number of statements per batch.
            **options: Visual options: `show`, `show_dir`, `resize`, `wait_time`, `draw_score`.

        Returns:
            One result per statement.

        Raises:
            InputError: If an input is not such a tuple.
        """
        inputs = [inputs] if isinstance(inputs, tuple) else inputs
        if not isinstance(inputs, list) or not all(isinstance(entry, tuple) and len(entry) == 3 for entry in inputs):
            raise InputError("inputs must be a tuple (left image, right image, text), or a list of such tuples")
        return self._call(inputs, return_datasamples, batch_size, options)

    def _infer(self, inputs: list[Any]) -> list[DataSample]:
        model = self.task_model
        states = []
        for side in (0, 1):
            images = [model.open_image(load_bgr_image(entry[side])) for entry in inputs]
            states.append(model.encode_images(images))
        text = self.tokenizer.encode([entry[2] for entry in inputs], "cls", max_length=STATEMENT_TOKENS)
        logits = model.engine.require(Comparisons).compare_logits(text.ids, text.mask, *states)
        scores = logits.softmax(-1).cpu()
        return [DataSample(text=entry[2], pred_score=row) for entry, row in zip(inputs, scores, strict=True)]

    def _format_result(self, sample: DataSample) -> Result:
        scores = sample.get("pred_score")
        return {
            "pred_scores": scores.numpy(),
            "pred_label": int(scores.argmax()),
            "pred_score": float(scores.max()),
        }

    def _draw(self, entry: Any, sample: DataSample, options: Mapping[str, Any]) -> Image.Image:
        pair = draw_row([resize_drawing(load_bgr_image(image), options)[0] for image in entry[:2]])
        scores = sample.get("pred_score")
        verdict = f"{bool(scores.argmax() == 1)}"
        if options.get("draw_score", True):
            verdict += f" ({float(scores.max()):.2f})"
        return draw_lines(pair, [entry[2], verdict], {})

    def _drawing_name(self, entry: Any, index: int) -> str:
        return str(index)
