"""The routes of OpenAI's clients: embeddings, chat completions, and re-ranking by image-text matching."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from openblip.errors import OpenBlipError
from openblip.io.jsonlines import Json
from openblip.results import Answer, Caption
from openblip.serving import openai_schemas as s
from openblip.serving import plans
from openblip.serving.documents import describe
from openblip.serving.errors import ApiError, from_library
from openblip.serving.models import ImageItem, ServedModel
from openblip.serving.plans import Plan
from openblip.serving.routes.verbs import embed_images, embed_texts, encode_vector
from openblip.serving.schemas import MIN_TEMPERATURE, AskRequest, CaptionRequest, MatchRequest
from openblip.serving.service import Service, exchange_of, raise_errors, service_of
from openblip.serving.streaming import StreamStage, WordBuffer, can_stream

router = APIRouter(tags=["OpenAI-compatible"])

_URI = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4//8/AAX+Av4N70a4AAAAAElFTkSuQmCC"
)


@router.post(
    "/v1/embeddings",
    **describe(
        s.EmbeddingsRequest, s.EmbeddingsResponse, "Embed texts or images.", {"model": "pocket", "input": "a red car"}
    ),
)
async def embeddings(request: Request) -> JSONResponse:
    """Embed texts or images. Images are data URIs, or base64 with `modality` "image"."""
    service = service_of(request)
    fields, _ = await service.read(request, s.EmbeddingsRequest)
    model = service.models.find(fields.model)
    inputs = [fields.input] if isinstance(fields.input, str) else fields.input
    if not inputs:
        raise ApiError(422, "input must not be empty", param="input", code="invalid_value")
    plans.check_texts([""] * len(inputs), 1, service.limits, "input")
    is_image = [is_image_text(text, fields.modality) for text in inputs]
    images = await service.load_images(request, {f"input.{i}": text for i, text in enumerate(inputs) if is_image[i]})
    texts = [text for text, image in zip(inputs, is_image, strict=True) if not image]
    of_images = iter(await embed_images(service, request, model, images, "input") if images else [])
    of_texts = iter(await embed_texts(service, request, model, texts, "input") if texts else [])
    vectors = [next(of_images if image else of_texts) for image in is_image]
    if fields.dimensions is not None and fields.dimensions != len(vectors[0]):
        message = f"dimensions must be {len(vectors[0])}, got {fields.dimensions}"
        raise ApiError(422, message, param="dimensions", code="invalid_value")
    data: list[Json] = [
        {"object": "embedding", "index": index, "embedding": encode_vector(vector, fields.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    tokens = _count_tokens(model, "retrieval", texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "model": model.name, "data": data, "usage": usage})


@dataclass(frozen=True)
class _Chat:
    """A chat as a call of the library: an image, and a question or `None`."""

    image: str
    param: str
    question: str


@router.post(
    "/v1/chat/completions",
    **describe(
        s.ChatRequest,
        s.ChatResponse,
        "Caption an image, or answer a question about it.",
        {
            "model": "pocket",
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": _URI}},
                        {"type": "text", "text": "what color is it?"},
                    ],
                }
            ],
        },
    ),
)
async def chat(request: Request) -> Response:
    """Answer the question of the last user message about its image; without a question, caption the image.

    With `temperature` (0 is greedy) or `num_beams` 1, words are streamed as they are decoded; beams send one chunk.
    """
    service = service_of(request)
    fields, _ = await service.read(request, s.ChatRequest)
    model = service.models.find(fields.model)
    chat = _parse_messages(fields.messages)
    (image,) = await service.load_images(request, {chat.param: chat.image})
    try:
        plan = _plan_chat(service, model, fields, chat, image)
    except OpenBlipError as error:
        raise from_library(error) from None
    completion = _Completion(model, chat)
    if not fields.stream:
        return JSONResponse(completion.response(await _run_chat(service, request, plan, chat)))
    chunks = completion.stream(service, request, plan)
    first = await anext(chunks)  # errors before the first text set the status code
    return StreamingResponse(_chain(first, chunks), media_type="text/event-stream")


async def _chain(first: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in chunks:
        yield chunk


def _parse_messages(messages: Sequence[s.Message]) -> _Chat:
    """Return the question of the last user message, and the latest image.

    Raises:
        ApiError: There is no user message or no image, or more than one image (422).
    """
    question, images = None, list[tuple[str, str]]()
    for index, message in reversed(list(enumerate(messages))):
        if message.role != "user":
            continue
        content = message.content
        parts = [s.TextPart(type="text", text=content)] if isinstance(content, str) else content or []
        if question is None:
            question = " ".join(part.text.strip() for part in parts if isinstance(part, s.TextPart)).strip()
        for place, part in enumerate(parts):
            if isinstance(part, s.ImagePart):
                url = part.image_url if isinstance(part.image_url, str) else part.image_url.url
                images.append((url, f"messages.{index}.content.{place}"))
        if images:
            break
    if question is None or len(images) != 1:
        raise ApiError(
            422,
            f"messages must have one image in a user message, got {len(images)}",
            param="messages",
            code="invalid_value",
        )
    return _Chat(*images[0], question)


def _plan_chat(service: Service, model: ServedModel, fields: s.ChatRequest, chat: _Chat, image: bytes) -> Plan:
    n = fields.n or 1
    sampled = fields.temperature is not None and fields.temperature >= MIN_TEMPERATURE and not chat.question
    greedy = fields.temperature is not None and not sampled
    beams = fields.num_beams if fields.num_beams is not None else 1 if greedy and n == 1 else max(3, n)
    limit = service.limits.max_new_tokens
    tokens = fields.max_completion_tokens or fields.max_tokens
    tokens = None if tokens is None else min(tokens, limit)
    if chat.question:
        asked = AskRequest(question=chat.question, n=n, num_beams=beams, max_new_tokens=tokens)
        return plans.plan_ask(model, asked, [image], service.limits)
    options: dict[str, Any] = {"num_beams": beams}
    if sampled:
        options = {"do_sample": True, "temperature": fields.temperature, "top_p": fields.top_p, "seed": fields.seed}
    wanted = CaptionRequest(n=n, max_new_tokens=tokens or 16, **options)
    return plans.plan_caption(model, wanted, [image], service.limits)


async def _run_chat(service: Service, request: Request, plan: Plan, chat: _Chat) -> Caption | Answer:
    outcomes = await service.run(request, plan.stage, plan.items, units=plan.units)
    ((result, _),) = raise_errors(outcomes, "messages")
    text: Caption | Answer = result[0] if chat.question else result
    return text


class _Completion:
    """Writes the response to a chat, at once or in chunks."""

    def __init__(self, model: ServedModel, chat: _Chat) -> None:
        self._model, self._chat = model, chat
        self._id, self._created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())

    def response(self, result: Caption | Answer) -> dict[str, Json]:
        """Return the complete response."""
        ranked = [result, *result.alternatives]
        choices: list[Json] = [
            {
                "index": index,
                "message": {"role": "assistant", "content": each.text, "refusal": None},
                "finish_reason": self._reason(each),
                "logprobs": None,
                "score": each.score,
            }
            for index, each in enumerate(ranked)
        ]
        task = "vqa" if self._chat.question else "caption"
        asked = _count_tokens(self._model, task, [self._chat.question])
        answered = _count_tokens(self._model, task, [each.text for each in ranked])
        usage: dict[str, Json] = {
            "prompt_tokens": asked,
            "completion_tokens": answered,
            "total_tokens": asked + answered,
        }
        return {**self._head("chat.completion"), "choices": choices, "usage": usage}

    async def stream(self, service: Service, request: Request, plan: Plan) -> AsyncIterator[bytes]:
        """Yield server-sent events."""
        if can_stream(plan.stage):
            result: Caption | Answer | None = None
            words = WordBuffer()
            async for event in _listen(service, request, plan):
                if isinstance(event, str):
                    if piece := words.push(event):
                        yield self._chunk({"content": piece})
                else:
                    result = event
                    if piece := words.finish(event.text):
                        yield self._chunk({"content": piece})
        else:
            result = await _run_chat(service, request, plan, self._chat)
            for index, each in enumerate((result, *result.alternatives)):
                yield self._chunk({"role": "assistant", "content": each.text}, index=index)
        assert result is not None
        for index, each in enumerate((result, *result.alternatives)):
            yield self._chunk({}, reason=self._reason(each), index=index)
        yield b"data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, str], *, reason: str | None = None, index: int = 0) -> bytes:
        choice: dict[str, Json] = {"index": index, "delta": dict(delta), "finish_reason": reason, "logprobs": None}
        return f"data: {json.dumps({**self._head('chat.completion.chunk'), 'choices': [choice]})}\n\n".encode()

    def _head(self, kind: str) -> dict[str, Json]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model.name}

    def _reason(self, result: Caption | Answer) -> str:
        return "length" if isinstance(result, Caption) and not result.finished else "stop"


async def _listen(service: Service, request: Request, plan: Plan) -> AsyncIterator[str | Caption | Answer]:
    """Yield the text so far after each token, and the result at the end."""
    loop, events = asyncio.get_running_loop(), asyncio.Queue[str | None]()

    def listener(text: str) -> None:
        loop.call_soon_threadsafe(events.put_nowait, text)

    items: list[tuple[ImageItem, Any]] = [(plan.items[0], listener)]
    running = asyncio.ensure_future(service.run(request, StreamStage(plan.stage), items, units=plan.units))
    running.add_done_callback(lambda _: events.put_nowait(None))
    try:
        while (text := await events.get()) is not None:
            yield text
        results: list[Caption | Answer] = raise_errors(running.result(), "messages")
        yield results[0]
    finally:
        exchange_of(request).job.cancelled = not running.done()
        running.cancel()


@router.post(
    "/v1/rerank",
    **describe(
        s.RerankRequest,
        s.RerankResponse,
        "Rank images by a text, or texts by an image.",
        {"model": "pocket", "query": "a white square", "documents": [_URI]},
    ),
)
async def rerank(request: Request) -> JSONResponse:
    """Rank documents by their image-text matching (ITM) probability with the query."""
    service = service_of(request)
    fields, _ = await service.read(request, s.RerankRequest)
    model = service.models.find(fields.model)
    pairs = [(fields.query, document) for document in fields.documents]
    scores = await _score(service, request, model, pairs, "documents")
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: fields.top_n]
    results: list[Json] = [
        {
            "index": index,
            "relevance_score": scores[index],
            "document": {"text": fields.documents[index]} if fields.return_documents else None,
        }
        for index in order
    ]
    head = {"id": f"rerank-{secrets.token_hex(12)}", "model": model.name}
    return JSONResponse({**head, "results": results, "usage": _pair_usage(model, pairs)})


@router.post(
    "/v1/score",
    **describe(
        s.ScoreRequest,
        s.ScoreResponse,
        "Score pairs of an image and a text.",
        {"model": "pocket", "text_1": "a white square", "text_2": [_URI]},
    ),
)
async def score(request: Request) -> JSONResponse:
    """Return the image-text matching (ITM) probability of each pair."""
    service = service_of(request)
    fields, _ = await service.read(request, s.ScoreRequest)
    model = service.models.find(fields.model)
    left = [fields.text_1] if isinstance(fields.text_1, str) else fields.text_1
    right = [fields.text_2] if isinstance(fields.text_2, str) else fields.text_2
    if len(left) == 1:
        left = left * len(right)
    if not left or len(left) != len(right):
        raise ApiError(422, "text_1 must have one entry, or as many as text_2", param="text_2", code="invalid_value")
    pairs = list(zip(left, right, strict=True))
    scores = await _score(service, request, model, pairs, "text_2")
    data: list[Json] = [{"index": index, "object": "score", "score": value} for index, value in enumerate(scores)]
    head = {"id": f"score-{secrets.token_hex(12)}", "object": "list", "created": int(time.time()), "model": model.name}
    return JSONResponse({**head, "data": data, "usage": _pair_usage(model, pairs)})


async def _score(
    service: Service, request: Request, model: ServedModel, pairs: Sequence[tuple[str, str]], param: str
) -> list[float]:
    """Return the ITM probabilities of pairs of an image and a text. An image is encoded once for all its texts."""
    plans.check_texts([""] * len(pairs), 1, service.limits, param)
    texts_of: dict[str, list[str]] = {}
    for index, (left, right) in enumerate(pairs):
        if is_image_text(left, None) == is_image_text(right, None):
            raise ApiError(
                422,
                "a pair must be a text and an image as a data URI",
                param=f"{param}.{index}",
                code="invalid_value",
            )
        image, text = (left, right) if is_image_text(left, None) else (right, left)
        texts_of.setdefault(image, []).append(text)
    names = {f"{param}.{index}": image for index, image in enumerate(texts_of)}
    images = await service.load_images(request, names)
    for texts in texts_of.values():
        plans.check_texts(texts, len(images) if len(texts) > 1 else 1, service.limits, param)
    try:
        plan = plans.plan_match(model, MatchRequest(text="x"), images, service.limits)
    except OpenBlipError as error:
        raise from_library(error) from None
    items = [ImageItem([image], texts) for image, texts in zip(images, texts_of.values(), strict=True)]
    units = 1 + max(map(len, texts_of.values())) / 8
    outcomes = await service.run(request, plan.stage, items, units=units)
    results = raise_errors(outcomes, param)
    matches = {image: iter(matches) for image, (matches, _) in zip(texts_of, results, strict=True)}
    return [next(matches[left if is_image_text(left, None) else right]).probability for left, right in pairs]


def is_image_text(text: str, modality: str | None) -> bool:
    """Return whether an input is an image, by its modality or, without one, by its first characters."""
    if modality is not None:
        return modality == "image"
    return text[:11].lower() == "data:image/" or text[:8].lower() in ("https://",)


def _count_tokens(model: ServedModel, task: str, texts: Sequence[str]) -> int:
    if task not in model.tasks:
        return 0
    tokenizer = model.blip.pipeline(task).model.tokenizer
    return sum(len(tokenizer.spell(text)) for text in texts)


def _pair_usage(model: ServedModel, pairs: Sequence[tuple[str, str]]) -> dict[str, int]:
    texts = [text for pair in pairs for text in pair if not is_image_text(text, None)]
    tokens = _count_tokens(model, "retrieval", texts)
    return {"prompt_tokens": tokens, "total_tokens": tokens}
