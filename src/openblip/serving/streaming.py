"""Captions and answers that are sent word by word during decoding, greedy or sampled."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from openblip.decoding import Decoding, Hypothesis, generate
from openblip.decoding.logits import Processors, filter_for_sampling
from openblip.engine.protocols import Answers, Captions
from openblip.errors import OpenBlipError
from openblip.pipelines.base import Prepared
from openblip.pipelines.caption import CaptionPipeline
from openblip.pipelines.vqa import VqaPipeline
from openblip.results import Answer, Caption
from openblip.serving.batching import Stage
from openblip.serving.models import ImageItem, PipelineStage

Listener: TypeAlias = Callable[[str], None]


@dataclass(eq=False)
class PreparedStream:
    """A prepared item, and the function that receives the text so far, on the compute thread."""

    prepared: Prepared[Any]
    listener: Listener


class StreamStage(Stage["tuple[ImageItem, Listener]", PreparedStream, "Caption | Answer"]):
    """Decodes one text at a time, and reports it after each token.

    Args:
        stage: The stage of the same captions or answers without streaming.
    """

    max_batch = 1

    def __init__(self, stage: PipelineStage) -> None:
        self._stage = stage
        self.kind, self.key = stage.kind, ("stream", stage.key)

    def prepare(self, item: tuple[ImageItem, Listener]) -> PreparedStream:
        """Decode the image and tokenize the text."""
        return PreparedStream(self._stage.prepare(item[0]), item[1])

    def shape(self, prepared: PreparedStream) -> Hashable:
        """Return nothing: a batch has one item."""
        return ()

    def run(self, batch: list[PreparedStream]) -> list[Caption | Answer | OpenBlipError]:
        """Decode a text."""
        pipeline, (stream,) = self._stage.pipeline, batch
        if isinstance(pipeline, CaptionPipeline):
            hypotheses = _decode_caption(pipeline, stream)
            (caption,) = pipeline.postprocess([hypotheses], [stream.prepared])
            return [caption]
        assert isinstance(pipeline, VqaPipeline)
        (hypothesis,) = _decode_answer(pipeline, stream)
        text = pipeline.model.tokenizer.decode(hypothesis.ids)
        probability = torch.tensor(hypothesis.logprob).exp().item()
        return [Answer(text, probability, hypothesis.logprob / len(hypothesis.ids))]


def can_stream(stage: PipelineStage) -> bool:
    """Return whether a stage decodes token by token: without beams, and one text per image."""
    pipeline = stage.pipeline
    if isinstance(pipeline, VqaPipeline) and pipeline.answers is not None:
        return False
    decoding: Decoding | None = getattr(pipeline, "decoding", None)
    return decoding is not None and decoding.num_beams == 1 and decoding.n == 1


def _decode_caption(pipeline: CaptionPipeline, stream: PreparedStream) -> list[Hypothesis]:
    model, prompt = pipeline.model, stream.prepared.text
    engine = model.engine.require(Captions)
    states = model.encode_images([stream.prepared.image], join_frames=True)
    start = engine.prepare_captions(states, pipeline.decoding.capacity(len(prompt.ids)))

    def report(ids: list[int]) -> None:
        text = model.tokenizer.decode_after(prompt.text, ids) if prompt.text else model.tokenizer.decode(ids)
        stream.listener(text)

    monitor = _Reporter(pipeline.decoding, len(prompt.ids), report)
    prompts = torch.tensor([prompt.ids], device=engine.device)
    (hypotheses,) = generate(start([0]), prompts, pipeline.decoding, pipeline.seed, monitor)
    return hypotheses


def _decode_answer(pipeline: VqaPipeline, stream: PreparedStream) -> list[Hypothesis]:
    model = pipeline.model
    engine = model.engine.require(Answers)
    states = engine.project_images(model.encode_images([stream.prepared.image], join_frames=True))
    ids, mask = model.pad(stream.prepared.text)
    start = engine.prepare_answers(engine.encode_questions(ids, mask, states), mask, pipeline.decoding.capacity(1))
    monitor = _Reporter(pipeline.decoding, 1, lambda ids: stream.listener(model.tokenizer.decode(ids)))
    prompts = torch.tensor([[model.tokenizer.dec_id]], device=engine.device)
    (hypotheses,) = generate(start([0]), prompts, pipeline.decoding, monitor=monitor)
    return hypotheses


class _Reporter:
    """A logits processor and stopping criterion that changes nothing, and reports the new tokens of its only row."""

    def __init__(self, options: Decoding, prompt_length: int, report: Callable[[list[int]], None]) -> None:
        self._options, self._prompt_length, self._report = options, prompt_length, report
        self._process = Processors(options)

    def process(self, logits: Tensor, scores: Tensor, history: Tensor) -> Tensor:
        """Return the scores with the penalties and bans of the options."""
        scores = self._process(scores, history, history.shape[1] - self._prompt_length)
        return filter_for_sampling(scores, self._options) if self._options.do_sample else scores

    def find_ends(self, sequences: Tensor) -> Tensor:
        """Report the tokens; no text ends here."""
        self._report(sequences[0, self._prompt_length :].tolist())
        return torch.zeros(len(sequences), dtype=torch.bool, device=sequences.device)


class WordBuffer:
    """Splits a growing text into complete words. The last word waits, because the next token can still extend it."""

    def __init__(self) -> None:
        self._sent = ""

    def push(self, text: str) -> str:
        """Return the new complete words of a text."""
        return self._send(text[: max(text.rfind(" "), 0)])

    def finish(self, text: str) -> str:
        """Return the rest of the final text."""
        return self._send(text)

    def _send(self, text: str) -> str:
        if not text.startswith(self._sent):
            return ""
        piece, self._sent = text[len(self._sent) :], text
        return piece
