"""Requests and responses of the API: pydantic models, which define the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

MAX_ITEMS = 10_000
"""Most entries of any list, before the limits of the server apply."""
MIN_TEMPERATURE = 1e-5
"""Lowest temperature of sampling; scores that are divided by less overflow."""


def _whole(value: object) -> object:
    """Return a float without a fraction as an integer, because JSON does not distinguish 1.0 and 1."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integer = Annotated[int, BeforeValidator(_whole)]
ImageText = Annotated[
    str,
    Field(
        json_schema_extra={"format": "openblip-image"},
        description="An image file in base64, or a data URI. Paths are not read; addresses need --allow-fetch.",
    ),
]
Text = Annotated[str, StringConstraints(min_length=1)]
LengthPenalty = Annotated[float, Field(ge=-10, le=10)]  # beyond, powers of lengths overflow
Images = Annotated[list[ImageText], Field(min_length=1, max_length=MAX_ITEMS)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=MAX_ITEMS)]


class RequestModel(BaseModel):
    """A request. Unknown fields and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ImagesRequest(RequestModel):
    """A request about one image or several."""

    model: str | None = Field(default=None, description="A model of GET /v1/models; by default the first.")
    image: ImageText | None = Field(default=None, description="One image; see `images`.")
    images: Images | None = Field(default=None, description="Several images. A multipart request sends files instead.")
    on_error: Literal["raise", "return"] = Field(
        default="raise", description="Whether the first bad image fails the request, or its result is its error."
    )

    @model_validator(mode="after")
    def _check_images(self) -> ImagesRequest:
        if self.image is not None and self.images is not None:
            raise ValueError("image must not be combined with images")
        return self

    def image_texts(self) -> list[str]:
        """Return the images of a JSON request."""
        return [self.image] if self.image is not None else self.images or []


class CaptionRequest(ImagesRequest):
    """Options of captions, as in `Blip.caption`."""

    prompt: str | None = Field(default=None, description="Text that captions start with; by default the model's own.")
    num_beams: Integer | None = Field(default=None, ge=1, description="Beams; by default 3, or 1 with do_sample.")
    n: Integer = Field(default=1, ge=1, description="Captions per image, the likeliest first.")
    min_new_tokens: Integer = Field(default=1, ge=0)
    max_new_tokens: Integer = Field(default=16, ge=1)
    length_penalty: LengthPenalty = Field(default=1.0, description="Above 0 prefers long captions. Beam search only.")
    repetition_penalty: float = Field(default=1.0, gt=0, description="Above 1 avoids repetitions.")
    no_repeat_ngram_size: Integer | None = Field(
        default=None, ge=0, description="Size of the n-grams that must not repeat; by default the model's own."
    )
    do_sample: bool = Field(default=False, description="Sample tokens instead of searching for the best caption.")
    top_p: float | None = Field(default=None, gt=0, le=1, description="Needs do_sample.")
    top_k: Integer | None = Field(default=None, ge=0, description="Needs do_sample.")
    temperature: float | None = Field(default=None, ge=MIN_TEMPERATURE, le=100, description="Needs do_sample.")
    seed: Integer | None = Field(default=None, ge=0, lt=2**63, description="Makes samples repeatable. Needs do_sample.")
    forbid: list[Text] = Field(default=[], max_length=100, description="Words that must not occur.")
    require: list[Text] = Field(default=[], max_length=20, description="Words that the search steers towards.")
    trim: bool = Field(
        default=False, description="Prefer finished captions, and end others at a word that can end one."
    )


class AskRequest(ImagesRequest):
    """Questions about images, as in `Blip.ask`. Each image is asked each question."""

    question: Text | None = None
    questions: Texts | None = None
    answers: Texts | None = Field(
        default=None, description="Closed list to choose from; by default answers are generated."
    )
    n: Integer = Field(default=1, ge=1, description="Answers per question.")
    shortlist: Integer | None = Field(default=None, ge=1, description="Answers that the first ranking step keeps.")
    num_beams: Integer | None = Field(default=None, ge=1)
    min_new_tokens: Integer | None = Field(default=None, ge=0)
    max_new_tokens: Integer | None = Field(default=None, ge=1)
    length_penalty: LengthPenalty | None = None


class MatchRequest(ImagesRequest):
    """Texts to score with each image, as in `Blip.match`."""

    text: Text | None = None
    texts: Texts | None = None


class ClassifyRequest(ImagesRequest):
    """Labels to choose from, as in `Blip.classify`."""

    labels: Texts
    template: Text = Field(default="a picture of {}", description="Text of a label, with {} in its place.")
    by: Literal["itc", "itm"] = Field(
        default="itc", description="Compare embeddings, or match each label (slower, better)."
    )
    n: Integer = Field(default=1, ge=1, description="Labels per image.")


class GroundRequest(ImagesRequest):
    """Expressions to locate in each image, as in `Blip.ground`."""

    expression: Text | None = None
    expressions: Texts | None = None


class CompareRequest(ImagesRequest):
    """Statements about two images, the left and the right one, as in `Blip.compare`."""

    statement: Text | None = None
    statements: Texts | None = None


class ExplainRequest(ImagesRequest):
    """Texts whose words to explain by heat maps, as in `Blip.explain`."""

    text: Text | None = None
    texts: Texts | None = None
    task: Literal["retrieval", "caption", "vqa"] = Field(
        default="retrieval", description="Kind of the texts: to match, captions (none: the model's own), or questions."
    )
    answer: Text | None = Field(
        default=None, description="Answer to explain, for questions; by default the model's own."
    )
    layer: Integer | None = Field(default=None, ge=0, description="Text layer, from 0; by default the middle one.")


class EmbedRequest(ImagesRequest):
    """Images and texts to embed in one space, as in `Blip.embed_images` and `Blip.embed_texts`."""

    text: Text | None = None
    texts: Texts | None = None
    encoding_format: Literal["float", "base64"] = Field(default="float", description="base64: little-endian float32.")


class Problem(BaseModel):
    """An error."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The body of every error."""

    error: Problem


class ItemError(BaseModel):
    """An image that failed, with `on_error` "return"."""

    index: int
    error: Problem


class CaptionAlternative(BaseModel):
    """A caption; see `openblip.Caption`."""

    text: str
    logprob: float
    score: float
    finished: bool
    unmet: bool
    confidence: float | None


class CaptionResult(CaptionAlternative):
    """The best caption of an image."""

    index: int
    alternatives: list[CaptionAlternative]


class AnswerAlternative(BaseModel):
    """An answer; see `openblip.Answer`."""

    text: str
    probability: float
    score: float | None


class AnswerResult(AnswerAlternative):
    """The best answer to a question."""

    question: str
    alternatives: list[AnswerAlternative]


class AskResult(BaseModel):
    """The answers about an image, one per question."""

    index: int
    answers: list[AnswerResult]


class MatchScore(BaseModel):
    """How well a text matches: the ITM probability and the ITC cosine."""

    text: str
    probability: float
    similarity: float


class MatchResult(BaseModel):
    """The scores of an image, one per text."""

    index: int
    matches: list[MatchScore]


class LabelScore(BaseModel):
    """A label and its probability among all labels."""

    text: str
    probability: float


class ClassifyResult(BaseModel):
    """The labels of an image, the most probable first."""

    index: int
    labels: list[LabelScore]


class BoxResult(BaseModel):
    """The box of an expression in pixels."""

    expression: str
    left: float
    top: float
    right: float
    bottom: float
    probability: float
    score: float | None


class GroundResult(BaseModel):
    """The boxes in an image of `width` x `height` pixels, one per expression."""

    index: int
    width: int
    height: int
    boxes: list[BoxResult]


class StatementResult(BaseModel):
    """Whether a statement is true of the two images."""

    statement: str
    label: bool
    probability: float


class CompareResult(BaseModel):
    """The judgments about a pair of images, one per statement."""

    index: int
    comparisons: list[StatementResult]


class TextExplanation(BaseModel):
    """Heat maps of a text: one map of `grid` x `grid` patches per word, in rows from the top, and their mean."""

    text: str
    probability: float
    answer: str | None
    words: list[str]
    grid: int
    maps: list[list[list[float]]]
    overall: list[list[float]]


class ExplainResult(BaseModel):
    """The explanations of an image, one per text."""

    index: int
    explanations: list[TextExplanation]


class CaptionResponse(BaseModel):
    """One result per image."""

    model: str
    results: list[CaptionResult | ItemError]


class AskResponse(BaseModel):
    """One result per image."""

    model: str
    results: list[AskResult | ItemError]


class MatchResponse(BaseModel):
    """One result per image."""

    model: str
    results: list[MatchResult | ItemError]


class ClassifyResponse(BaseModel):
    """One result per image."""

    model: str
    results: list[ClassifyResult | ItemError]


class GroundResponse(BaseModel):
    """One result per image."""

    model: str
    results: list[GroundResult | ItemError]


class CompareResponse(BaseModel):
    """One result."""

    model: str
    results: list[CompareResult | ItemError]


class ExplainResponse(BaseModel):
    """One result per image."""

    model: str
    results: list[ExplainResult | ItemError]


class EmbedResponse(BaseModel):
    """Embeddings of images and texts: lists of numbers, or base64."""

    model: str
    dimensions: int
    images: list[list[float] | str]
    texts: list[list[float] | str]
