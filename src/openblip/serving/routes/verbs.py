"""The routes of the verbs: `POST /v1/caption`, `/v1/ask`, `/v1/match` and so on."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import JSONResponse

from openblip.errors import OpenBlipError
from openblip.io.jsonlines import Json
from openblip.pipelines.retrieval import RetrievalPipeline
from openblip.serving import plans
from openblip.serving import schemas as s
from openblip.serving.documents import describe
from openblip.serving.errors import ApiError, from_library
from openblip.serving.models import ServedModel, TextStage
from openblip.serving.options import Limits
from openblip.serving.plans import Plan
from openblip.serving.service import Service, item_error, raise_errors, service_of

RequestT = TypeVar("RequestT", bound=s.ImagesRequest)
Planner = Callable[[ServedModel, RequestT, Sequence[bytes], Limits], Plan]

router = APIRouter(tags=["images"])

_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4//8/AAX+Av4N70a4AAAAAElFTkSuQmCC"


async def _answer(request: Request, model: type[RequestT], planner: Planner[RequestT]) -> JSONResponse:
    """Read a request, run its plan, and return the results."""
    service = service_of(request)
    fields, images = await service.read(request, model)
    served = service.models.find(fields.model)
    try:
        plan = planner(served, fields, images, service.limits)
    except OpenBlipError as error:
        raise from_library(error) from None
    outcomes = await service.run(request, plan.stage, plan.items, units=plan.units)
    if fields.on_error == "raise":
        outcomes = list(raise_errors(outcomes, "images", plan.param))
    results: list[Json] = []
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, OpenBlipError):
            results.append({"index": index, "error": dict(item_error(outcome, f"images.{index}", plan.param).body())})
        else:
            results.append({"index": index, **plan.format(*outcome)})
    return JSONResponse({"model": served.name, "results": results})


@router.post(
    "/v1/caption", **describe(s.CaptionRequest, s.CaptionResponse, "Describe images.", {"image": _PIXEL, "n": 2})
)
async def caption(request: Request) -> JSONResponse:
    """Caption images. `n` > 1 adds alternatives with their scores."""
    return await _answer(request, s.CaptionRequest, plans.plan_caption)


@router.post(
    "/v1/ask",
    **describe(
        s.AskRequest,
        s.AskResponse,
        "Answer questions about images.",
        {"image": _PIXEL, "question": "what color is it?"},
    ),
)
async def ask(request: Request) -> JSONResponse:
    """Answer each question about each image, freely or from a list of answers."""
    return await _answer(request, s.AskRequest, plans.plan_ask)


@router.post(
    "/v1/match",
    **describe(
        s.MatchRequest,
        s.MatchResponse,
        "Score how well texts fit images.",
        {"image": _PIXEL, "texts": ["a white square", "a dog"]},
    ),
)
async def match(request: Request) -> JSONResponse:
    """Return the ITM probability and the ITC cosine of each image with each text."""
    return await _answer(request, s.MatchRequest, plans.plan_match)


@router.post(
    "/v1/classify",
    **describe(
        s.ClassifyRequest,
        s.ClassifyResponse,
        "Choose among labels.",
        {"image": _PIXEL, "labels": ["cat", "dog", "square"], "n": 3},
    ),
)
async def classify(request: Request) -> JSONResponse:
    """Return the most probable labels of each image. The labels need no training."""
    return await _answer(request, s.ClassifyRequest, plans.plan_classify)


@router.post(
    "/v1/ground",
    **describe(
        s.GroundRequest, s.GroundResponse, "Locate expressions.", {"image": _PIXEL, "expression": "the white square"}
    ),
)
async def ground(request: Request) -> JSONResponse:
    """Return the box of each expression in each image."""
    return await _answer(request, s.GroundRequest, plans.plan_ground)


@router.post(
    "/v1/compare",
    **describe(
        s.CompareRequest,
        s.CompareResponse,
        "Judge statements about two images.",
        {"images": [_PIXEL, _PIXEL], "statement": "both images show a square"},
    ),
)
async def compare(request: Request) -> JSONResponse:
    """Judge statements about the left and the right image."""
    return await _answer(request, s.CompareRequest, plans.plan_compare)


@router.post(
    "/v1/explain",
    **describe(
        s.ExplainRequest, s.ExplainResponse, "Show where words are seen.", {"image": _PIXEL, "text": "a white square"}
    ),
)
async def explain(request: Request) -> JSONResponse:
    """Return heat maps: which patches of the image raise the score of each word (Grad-CAM)."""
    return await _answer(request, s.ExplainRequest, plans.plan_explain)


@router.post(
    "/v1/embed",
    **describe(
        s.EmbedRequest, s.EmbedResponse, "Embed images and texts.", {"image": _PIXEL, "texts": ["a white square"]}
    ),
)
async def embed(request: Request) -> JSONResponse:
    """Return L2-normalized embeddings of images and texts in one space."""
    service = service_of(request)
    fields, images = await service.read(request, s.EmbedRequest)
    model = service.models.find(fields.model)
    texts = [] if fields.text is None and fields.texts is None else plans.either(fields.text, fields.texts, "text")
    if not images and not texts:
        raise ApiError(422, "an image or a text is required", param="images", code="missing_image")
    if fields.on_error != "raise":
        raise ApiError(422, "on_error must be raise for embeddings", param="on_error", code="invalid_value")
    vectors = await embed_images(service, request, model, images) if images else []
    text_vectors = await embed_texts(service, request, model, texts) if texts else []
    return JSONResponse(
        {
            "model": model.name,
            "dimensions": len((vectors or text_vectors)[0]),
            "images": [encode_vector(vector, fields.encoding_format) for vector in vectors],
            "texts": [encode_vector(vector, fields.encoding_format) for vector in text_vectors],
        }
    )


async def embed_images(
    service: Service, request: Request, model: ServedModel, images: Sequence[bytes], param: str = "images"
) -> list[NDArray[np.float32]]:
    """Return the embeddings of images.

    Args:
        service: The service.
        request: The request.
        model: The model.
        images: Encoded images.
        param: Field of the images.

    Raises:
        ApiError: An image is invalid, or the model does not embed.
    """
    try:
        plan = plans.plan_image_embeddings(model, images)
    except OpenBlipError as error:
        raise from_library(error) from None
    outcomes = await service.run(request, plan.stage, plan.items, units=plan.units)
    return [vector for vector, _ in raise_errors(outcomes, param)]


async def embed_texts(
    service: Service, request: Request, model: ServedModel, texts: Sequence[str], param: str = "texts"
) -> list[NDArray[np.float32]]:
    """Return the embeddings of texts.

    Args:
        service: The service.
        request: The request.
        model: The model.
        texts: The texts.
        param: Field of the texts.

    Raises:
        ApiError: There are too many texts, or the model does not embed.
    """
    plans.check_texts(texts, 1, service.limits, param)
    try:
        pipeline = model.blip.pipeline("retrieval")
    except OpenBlipError as error:
        raise from_library(error) from None
    assert isinstance(pipeline, RetrievalPipeline)
    stage = TextStage(f"{model.name}/embed_texts", pipeline)
    outcomes = await service.run(request, stage, texts, units=0.1)
    return raise_errors(outcomes, param)


def encode_vector(vector: NDArray[np.float32], encoding: str) -> list[float] | str:
    """Return an embedding as numbers, or as base64 of little-endian float32."""
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = [float(value) for value in vector]
    return numbers


def warm_up_plans(model: ServedModel, limits: Limits) -> list[Plan]:
    """Return a plan per verb of a model, for the first run, which compiles and measures the verb."""
    image = base64.b64decode(_PIXEL)
    verbs = model.verbs()
    makers: dict[str, Callable[[], Plan]] = {
        "caption": lambda: plans.plan_caption(model, s.CaptionRequest(), [image], limits),
        "ask": lambda: plans.plan_ask(model, s.AskRequest(question="what is it?"), [image], limits),
        "match": lambda: plans.plan_match(model, s.MatchRequest(text="a picture"), [image], limits),
        "classify": lambda: plans.plan_classify(model, s.ClassifyRequest(labels=["a"]), [image], limits),
        "embed": lambda: plans.plan_image_embeddings(model, [image]),
        "ground": lambda: plans.plan_ground(model, s.GroundRequest(expression="it"), [image], limits),
        "compare": lambda: plans.plan_compare(model, s.CompareRequest(statement="it is"), [image, image], limits),
        "explain": lambda: plans.plan_explain(model, _explain_request(model), [image], limits),
    }
    return [makers[verb]() for verb in verbs if verb in makers]


def _explain_request(model: ServedModel) -> s.ExplainRequest:
    if "retrieval" in model.tasks:
        return s.ExplainRequest(text="a picture")
    if "caption" in model.tasks:
        return s.ExplainRequest(task="caption", text="a picture")
    return s.ExplainRequest(task="vqa", text="what is it?")
