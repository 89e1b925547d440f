"""The computation of each verb: the stage and items of a request, and the format of its results."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from openblip.errors import InputError
from openblip.io.jsonlines import Json
from openblip.pipelines.base import Pipeline
from openblip.pipelines.explain import (
    ExplainAnswerPipeline,
    ExplainCaptionPipeline,
    ExplainMatchPipeline,
)
from openblip.pipelines.retrieval import ClassifyPipeline, EmbedPipeline, GroupedMatchPipeline
from openblip.results import Answer, Box, Caption, Classification, Comparison, Explanation, Match
from openblip.serving.errors import ApiError
from openblip.serving.models import ImageItem, PipelineStage, ServedModel
from openblip.serving.options import Limits
from openblip.serving.schemas import (
    AskRequest,
    CaptionRequest,
    ClassifyRequest,
    CompareRequest,
    ExplainRequest,
    GroundRequest,
    MatchRequest,
)

_CAPTION_OPTIONS = (
    "num_beams", "n", "min_new_tokens", "max_new_tokens", "length_penalty", "repetition_penalty",
    "no_repeat_ngram_size", "do_sample", "top_p", "top_k", "temperature", "seed", "forbid", "require", "trim",
)  # fmt: skip
_ASK_OPTIONS = ("n", "shortlist", "num_beams", "min_new_tokens", "max_new_tokens", "length_penalty")


@dataclass(frozen=True)
class Plan:
    """The computation of a request.

    Attributes:
        stage: The stage.
        items: Its items.
        units: Size of each item, in passes of the image encoder.
        format: Returns the fields of a result, from the result and the size of its image.
        param: Field of the texts, for errors about a text instead of an image.
    """

    stage: PipelineStage
    items: Sequence[ImageItem]
    units: float
    format: Callable[[Any, tuple[int, int] | None], dict[str, Json]]
    param: str = "texts"


def plan_caption(model: ServedModel, request: CaptionRequest, images: Sequence[bytes], limits: Limits) -> Plan:
    """Return the plan of captions."""
    check_images(images)
    _check_decoding(request.num_beams, request.n, request.max_new_tokens, limits)
    check_texts([request.prompt or ""], len(images), limits, "prompt")
    check_texts(request.forbid, 1, limits, "forbid")
    check_texts(request.require, 1, limits, "require")
    options = {name: getattr(request, name) for name in _CAPTION_OPTIONS}
    stage = _stage(model, "caption", options, lambda: model.blip.pipeline("caption", **options))
    rows = (request.num_beams or 3) if not request.do_sample else request.n
    return Plan(
        stage,
        [ImageItem([image], request.prompt) for image in images],
        1 + rows * request.max_new_tokens / 48,
        lambda caption, _: caption_fields(caption),
        "prompt",
    )


def caption_fields(caption: Caption) -> dict[str, Json]:
    """Return the fields of a caption."""
    return {**caption.to_dict(), "alternatives": [alternative.to_dict() for alternative in caption.alternatives]}


def plan_ask(model: ServedModel, request: AskRequest, images: Sequence[bytes], limits: Limits) -> Plan:
    """Return the plan of answers."""
    check_images(images)
    questions = either(request.question, request.questions, "question")
    _check_decoding(request.num_beams, request.n, request.max_new_tokens, limits)
    check_texts(questions, len(images), limits, "questions")
    check_texts(request.answers or [], 1, limits, "answers")
    options: dict[str, Any] = {name: getattr(request, name) for name in _ASK_OPTIONS}
    options["answers"] = request.answers
    stage = _stage(model, "ask", options, lambda: model.blip.pipeline("vqa", **options))

    def fields(answers: list[Answer], _: tuple[int, int] | None) -> dict[str, Json]:
        return {"answers": [{"question": q, **_answer_fields(a)} for q, a in zip(questions, answers, strict=True)]}

    units = 1 + len(questions) * (0.3 if request.answers is None else 0.3 + len(request.answers) / 32)
    return Plan(stage, [ImageItem([image], questions) for image in images], units, fields, "questions")


def _answer_fields(answer: Answer) -> dict[str, Json]:
    return {**answer.to_dict(), "alternatives": [alternative.to_dict() for alternative in answer.alternatives]}


def plan_match(model: ServedModel, request: MatchRequest, images: Sequence[bytes], limits: Limits) -> Plan:
    """Return the plan of match scores."""
    check_images(images)
    texts = either(request.text, request.texts, "text")
    check_texts(texts, len(images), limits, "texts")
    stage = _stage(model, "match", {}, lambda: GroupedMatchPipeline(model.blip.pipeline("retrieval").model))

    def fields(matches: list[Match], _: tuple[int, int] | None) -> dict[str, Json]:
        return {"matches": [{"text": text, **match.to_dict()} for text, match in zip(texts, matches, strict=True)]}

    return Plan(stage, [ImageItem([image], texts) for image in images], 1 + len(texts) / 8, fields)


def plan_classify(model: ServedModel, request: ClassifyRequest, images: Sequence[bytes], limits: Limits) -> Plan:
    """Return the plan of labels."""
    check_images(images)
    check_texts(request.labels, len(images), limits, "labels")
    check_texts([request.template], 1, limits, "template")
    if request.n > len(request.labels):
        raise ApiError(422, f"n must be at most the number of labels, got {request.n}", param="n", code="invalid_value")
    options: dict[str, Any] = {"template": request.template, "by": request.by, "n": request.n}
    labels = request.labels
    stage = _stage(
        model,
        "classify",
        {**options, "labels": labels},
        lambda: ClassifyPipeline(model.blip.pipeline("retrieval").model, labels, **options),
    )

    def fields(result: Classification, _: tuple[int, int] | None) -> dict[str, Json]:
        return result.to_dict()

    return Plan(stage, [ImageItem([image]) for image in images], 1 + len(labels) / 8, fields, "labels")


def plan_ground(model: ServedModel, request: GroundRequest, images: Sequence[bytes], limits: Limits) -> Plan:
    """Return the plan of boxes."""
    check_images(images)
    expressions = either(request.expression, request.expressions, "expression")
    check_texts(expressions, len(images), limits, "expressions")
    stage = _stage(model, "ground", {}, lambda: model.blip.pipeline("grounding"))

    def fields(boxes: list[Box], size: tuple[int, int] | None) -> dict[str, Json]:
        width, height = cast("tuple[int, int]", size)
        entries: list[Json] = []
        for expression, box in zip(expressions, boxes, strict=True):
            score = box.score if math.isfinite(box.score) else None
            entries.append({"expression": expression, **box.to_dict(), "score": score})
        return {"width": width, "height": height, "boxes": entries}

    return Plan(
        stage, [ImageItem([image], expressions) for image in images], 1 + len(expressions) / 4, fields, "expressions"
    )


def plan_compare(model: ServedModel, request: CompareRequest, images: Sequence[bytes], limits: Limits) -> Plan:
    """Return the plan of judgments about a pair of images."""
    statements = either(request.statement, request.statements, "statement")
    stage = _stage(model, "compare", {}, lambda: model.blip.pipeline("nlvr"))
    if len(images) != 2:
        raise ApiError(
            422,
            f"images must be two, the left and the right one, got {len(images)}",
            param="images",
            code="invalid_value",
        )
    check_texts(statements, 1, limits, "statements")

    def fields(comparisons: list[Comparison], _: tuple[int, int] | None) -> dict[str, Json]:
        pairs = zip(statements, comparisons, strict=True)
        return {"comparisons": [{"statement": statement, **result.to_dict()} for statement, result in pairs]}

    return Plan(stage, [ImageItem(images, statements)], 2 + len(statements) / 4, fields, "statements")


def plan_explain(model: ServedModel, request: ExplainRequest, images: Sequence[bytes], limits: Limits) -> Plan:
    """Return the plan of heat maps."""
    check_images(images)
    texts: list[str | None]
    if request.task == "caption" and request.text is None and request.texts is None:
        texts = [None]
    else:
        texts = list(either(request.text, request.texts, "text"))
    check_texts([text or "" for text in texts], len(images), limits, "texts")
    if request.answer is not None and request.task != "vqa":
        raise ApiError(422, "answer needs task=vqa", param="answer", code="invalid_value")
    check_texts([request.answer or ""], 1, limits, "answer")
    options = {"task": request.task, "layer": request.layer, "answer": request.answer}
    stage = _stage(model, "explain", options, lambda: _make_explain_pipeline(model, request))

    def fields(explanations: list[Explanation], _: tuple[int, int] | None) -> dict[str, Json]:
        return {"explanations": [_explanation_fields(explanation) for explanation in explanations]}

    return Plan(stage, [ImageItem([image], texts) for image in images], 1 + 3 * len(texts), fields)


def _make_explain_pipeline(model: ServedModel, request: ExplainRequest) -> Pipeline[Any, Any, Any, Any]:
    task_model = model.blip.pipeline(request.task).model
    if request.task == "retrieval":
        return ExplainMatchPipeline(task_model, layer=request.layer)
    if request.task == "caption":
        return ExplainCaptionPipeline(task_model, layer=request.layer)
    return ExplainAnswerPipeline(task_model, layer=request.layer, answer=request.answer)


def _explanation_fields(explanation: Explanation) -> dict[str, Json]:
    return {
        "text": explanation.text,
        "probability": explanation.probability,
        "answer": explanation.answer,
        "words": list(explanation.words),
        "grid": len(explanation.overall),
        "maps": explanation.maps.tolist(),
        "overall": explanation.overall.tolist(),
    }


def plan_image_embeddings(model: ServedModel, images: Sequence[bytes]) -> Plan:
    """Return the plan of image embeddings."""
    stage = _stage(model, "embed", {}, lambda: EmbedPipeline(model.blip.pipeline("retrieval").model))
    return Plan(stage, [ImageItem([image]) for image in images], 1.0, lambda vector, _: {"embedding": vector})


def either(single: str | None, several: list[str] | None, name: str) -> list[str]:
    """Return the texts of a request that has one text or a list.

    Args:
        single: The text.
        several: The list.
        name: Name of the singular field.

    Raises:
        ApiError: The request has both or neither (422).
    """
    if (single is None) == (several is None):
        raise ApiError(422, f"exactly one of {name} and {name}s is required", param=name, code="invalid_value")
    return [single] if single is not None else several or []


def check_images(images: Sequence[bytes]) -> None:
    """Raise `ApiError` (422) if there is no image."""
    if not images:
        raise ApiError(422, "image or images is required", param="images", code="missing_image")


def check_texts(texts: Sequence[str], num_images: int, limits: Limits, param: str) -> None:
    """Check the number and the lengths of texts.

    Args:
        texts: The texts.
        num_images: Number of images that each text is computed with.
        limits: The limits.
        param: Field of the texts.

    Raises:
        ApiError: There are too many texts (413), or one is too long (422).
    """
    if len(texts) > limits.max_texts:
        raise ApiError(
            413,
            f"{param} must have at most {limits.max_texts} entries, got {len(texts)}",
            param=param,
            code="too_many_texts",
        )
    if len(texts) * num_images > limits.max_pairs:
        raise ApiError(
            413,
            f"images times {param} must be at most {limits.max_pairs}, got {len(texts) * num_images}",
            param=param,
            code="too_many_pairs",
        )
    if any(len(text) > limits.max_text_chars for text in texts):
        raise ApiError(
            422, f"{param} must have at most {limits.max_text_chars} characters each", param=param, code="text_too_long"
        )


def _check_decoding(num_beams: int | None, n: int, max_new_tokens: int | None, limits: Limits) -> None:
    values = {"num_beams": num_beams, "n": n, "max_new_tokens": max_new_tokens}
    maxima = {"num_beams": limits.max_num_beams, "n": limits.max_n, "max_new_tokens": limits.max_new_tokens}
    for name, value in values.items():
        if value is not None and value > maxima[name]:
            raise ApiError(422, f"{name} must be at most {maxima[name]}, got {value}", param=name, code="invalid_value")


def _stage(
    model: ServedModel, kind: str, options: dict[str, Any], make_pipeline: Callable[[], Pipeline[Any, Any, Any, Any]]
) -> PipelineStage:
    """Return the stage of a verb; options become part of its key."""
    key = tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in options.items())
    try:
        return model.stage(kind, key, make_pipeline)
    except InputError as error:
        raise ApiError(422, str(error), code="invalid_value") from None
