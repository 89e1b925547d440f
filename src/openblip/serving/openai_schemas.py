"""Requests and responses of the OpenAI-compatible routes, which ignore unknown fields."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from openblip.serving.schemas import MAX_ITEMS, Integer, RequestModel, Text


class OpenAiRequest(RequestModel):
    """A request of OpenAI's clients. Unknown fields are ignored, because the clients send many."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)
    model: str


class EmbeddingsRequest(OpenAiRequest):
    """Texts or images to embed."""

    input: Text | list[Text] = Field(description="Texts; images as base64 or data URIs.")
    modality: Literal["text", "image"] | None = Field(
        default=None, description="Kind of the input; by default data URIs are images, and all else is text."
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Integer | None = Field(default=None, ge=1, description="Must be the width of the model.")


class ImageUrl(RequestModel):
    """An image of a message."""

    model_config = ConfigDict(extra="ignore", strict=True)
    url: str = Field(description="A data URI; an address only with --allow-fetch.")


class TextPart(RequestModel):
    """A text of a message."""

    model_config = ConfigDict(extra="ignore", strict=True)
    type: Literal["text"]
    text: str


class ImagePart(RequestModel):
    """An image of a message."""

    model_config = ConfigDict(extra="ignore", strict=True)
    type: Literal["image_url"]
    image_url: ImageUrl | str


class Message(RequestModel):
    """A message of a chat."""

    model_config = ConfigDict(extra="ignore", strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]] | None = None


class ChatRequest(OpenAiRequest):
    """One image, and a question about it. Without a question, the answer is a caption. Earlier messages are ignored."""

    messages: list[Message] = Field(min_length=1, max_length=100)
    stream: bool | None = False
    n: Integer | None = Field(default=1, ge=1, le=10)
    temperature: float | None = Field(default=None, ge=0, le=2, description="Above 0 samples captions; 0 is greedy.")
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: Integer | None = Field(default=None, ge=0, lt=2**63)
    max_tokens: Integer | None = Field(default=None, ge=1)
    max_completion_tokens: Integer | None = Field(default=None, ge=1)
    num_beams: Integer | None = Field(default=None, ge=1, description="Beams; by default 3, or 1 with temperature.")


class RerankRequest(OpenAiRequest):
    """Images to rank by a text, or texts to rank by an image, by image-text matching (ITM)."""

    query: Text = Field(description="A text, or an image as a data URI.")
    documents: list[Text] = Field(
        min_length=1, max_length=MAX_ITEMS, description="Images as data URIs for a text; texts for an image."
    )
    top_n: Integer | None = Field(default=None, ge=1)
    return_documents: bool = False


class ScoreRequest(OpenAiRequest):
    """Pairs to score by image-text matching (ITM): one `text_1` for each `text_2`, or one for all."""

    text_1: Text | list[Text] = Field(description="Texts, or images as data URIs.")
    text_2: Text | list[Text]


class EmbeddingEntry(BaseModel):
    """An embedding."""

    object: str
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens that a request used."""

    prompt_tokens: int
    total_tokens: int


class ChatUsage(Usage):
    """Tokens that a chat used."""

    completion_tokens: int


class EmbeddingsResponse(BaseModel):
    """Embeddings in the order of the input."""

    object: str
    model: str
    data: list[EmbeddingEntry]
    usage: Usage


class ChatMessage(BaseModel):
    """The answer."""

    role: str
    content: str
    refusal: str | None


class Choice(BaseModel):
    """One answer, with its `probability` or `logprob`."""

    index: int
    message: ChatMessage
    finish_reason: str
    logprobs: None
    score: float | None


class ChatResponse(BaseModel):
    """The answers of a chat."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: ChatUsage


class RerankDocument(BaseModel):
    """A document of the request."""

    text: str


class RerankResult(BaseModel):
    """A document with its ITM probability."""

    index: int
    relevance_score: float
    document: RerankDocument | None


class RerankResponse(BaseModel):
    """Documents, the most relevant first."""

    id: str
    model: str
    results: list[RerankResult]
    usage: Usage


class ScoreEntry(BaseModel):
    """The ITM probability of a pair."""

    index: int
    object: str
    score: float


class ScoreResponse(BaseModel):
    """Scores in the order of the pairs."""

    id: str
    object: str
    created: int
    model: str
    data: list[ScoreEntry]
    usage: Usage
