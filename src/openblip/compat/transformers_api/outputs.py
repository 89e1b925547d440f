"""What models return: values by attribute, by name, or by place among those that are not ``None``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

Tensors = tuple[Tensor, ...]


class ModelOutput:
    """Base of the output classes; places and names count only what is there, in the order of the fields."""

    def keys(self) -> tuple[str, ...]:
        """The names of the values that are there."""
        named = [field.name for field in fields(self)]  # type: ignore[arg-type]  # every subclass is a dataclass
        return tuple(name for name in named if getattr(self, name) is not None)

    def values(self) -> tuple[Any, ...]:
        """The values that are there."""
        return tuple(getattr(self, name) for name in self.keys())

    def items(self) -> tuple[tuple[str, Any], ...]:
        """Names and values."""
        return tuple((name, getattr(self, name)) for name in self.keys())

    def get(self, name: str, default: Any = None) -> Any:
        """The value of that name, if it is there."""
        return dict(self.items()).get(name, default)

    def to_tuple(self) -> tuple[Any, ...]:
        """The values that are there, without their names; outputs inside become tuples too."""
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            if key not in self:
                raise KeyError(key)
            return getattr(self, key)
        return self.to_tuple()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in {field.name for field in fields(self)}:  # type: ignore[arg-type]
            raise KeyError(key)
        setattr(self, key, value)

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())


@dataclass(eq=False)
class BaseModelOutputWithPooling(ModelOutput):
    """Image tokens (B, N + 1, D) and the pooled one (B, D), which is normalised twice in that library.

    ``hidden_states`` are the input of the first block and the output of each, before the final norm.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor | None, ...] | None = None
    attentions: Tensors | None = None


@dataclass(eq=False)
class BaseModelOutputWithPoolingAndCrossAttentions(ModelOutput):
    """Text states (B, T, D); the last of ``hidden_states`` is ``last_hidden_state``."""

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    past_key_values: Any = None
    hidden_states: tuple[Tensor | None, ...] | None = None
    attentions: Tensors | None = None
    cross_attentions: Tensors | None = None


@dataclass(eq=False)
class CausalLMOutputWithCrossAttentions(ModelOutput):
    """Next-token logits (B, T, V) and, with labels, their loss."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Any = None
    hidden_states: tuple[Tensor | None, ...] | None = None
    attentions: Tensors | None = None
    cross_attentions: Tensors | None = None


@dataclass(eq=False)
class BlipForConditionalGenerationModelOutput(ModelOutput):
    """Captioning: logits (B, T, V), and the image tokens under two names."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    image_embeds: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor | None, ...] | None = None
    attentions: Tensors | None = None

    @property
    def decoder_logits(self) -> Tensor | None:
        """The name that 4.x had for ``logits``."""
        return self.logits


@dataclass(eq=False)
class BlipTextVisionModelOutput(ModelOutput):
    """VQA: the loss if there were labels, and the image tokens; that library returns no logits."""

    loss: Tensor | None = None
    image_embeds: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor | None, ...] | None = None
    attentions: Tensors | None = None


@dataclass(eq=False)
class BlipImageTextMatchingModelOutput(ModelOutput):
    """ITM logits (B, 2) or ITC cosines (images, texts); ``loss``, ``image_embeds``, the pooler are never set."""

    itm_score: Tensor | None = None
    loss: Tensor | None = None
    image_embeds: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor | None, ...] | None = None
    vision_pooler_output: Tensor | None = None
    attentions: Tensors | None = None
    question_embeds: Tensor | None = None


@dataclass(eq=False)
class BlipOutput(ModelOutput):
    """The two towers compared: scaled cosines both ways, and the normalised embeddings (B, E)."""

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None
    text_model_output: BaseModelOutputWithPoolingAndCrossAttentions | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None


@dataclass(eq=False)
class GenerateOutput(ModelOutput):
    """What ``generate`` returns with ``return_dict_in_generate=True``.

    ``sequences_scores`` (rows,) come with ``output_scores=True`` after a beam search.
    """

    sequences: Tensor | None = None
    sequences_scores: Tensor | None = None
