"""Outputs of the models. Values that are not `None` are also available by name and by index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    Tensors: TypeAlias = tuple[Tensor, ...]

OutputT = TypeVar("OutputT", bound="ModelOutput")
OutputTuple: TypeAlias = tuple[Any, ...]  # an output with `return_dict=False`


class ModelOutput:
    """Base class of the outputs. Names and indices cover the values that are not `None`, in the order of the fields."""

    def keys(self) -> tuple[str, ...]:
        """Return the names of all values.

        Returns:
            The names of all values.
        """
        names = [field.name for field in fields(self)]  # type: ignore[arg-type]  # every subclass is a dataclass
        return tuple(name for name in names if getattr(self, name) is not None)

    def values(self) -> OutputTuple:
        """Return all values.

        Returns:
            All values.
        """
        return tuple(getattr(self, name) for name in self.keys())

    def items(self) -> tuple[tuple[str, Any], ...]:
        """Return all names with their values.

        Returns:
            All names with their values.
        """
        return tuple((name, getattr(self, name)) for name in self.keys())

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value called `name`, or `default`.

        Args:
            name: Name of the value.
            default: Result if there is no such value.

        Returns:
            The value called `name`, or `default`.
        """
        return dict(self.items()).get(name, default)

    def to_tuple(self) -> OutputTuple:
        """Return all values without names. Nested outputs become tuples, too.

        Returns:
            All values without names.
        """
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

    def __tf_flatten__(self) -> tuple[tuple[str, ...], OutputTuple]:
        """Return names and values, by which `tf.function` passes an output in and out."""
        return self.keys(), self.values()

    @classmethod
    def __tf_unflatten__(cls: type[OutputT], names: tuple[str, ...], values: OutputTuple) -> OutputT:
        """Return the output of names and values."""
        return cls(**dict(zip(names, values, strict=True)))


@dataclass(eq=False)
class BaseModelOutput(ModelOutput):
    """Output of the stack of image blocks: states (B, N + 1, D) before the final norm."""

    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor | None, ...] | None = None
    attentions: Tensors | None = None


@dataclass(eq=False)
class BaseModelOutputWithPastAndCrossAttentions(ModelOutput):
    """Output of the stack of text layers: states (B, T, D), and the cache."""

    last_hidden_state: Tensor | None = None
    past_key_values: Any = None
    hidden_states: tuple[Tensor | None, ...] | None = None
    attentions: Tensors | None = None
    cross_attentions: Tensors | None = None


@dataclass(eq=False)
class BaseModelOutputWithPooling(ModelOutput):
    """Output of the image encoder: states (B, N + 1, D) and the pooled [CLS] state (B, D).

    As in `transformers`, the pooled state is normalized twice. `hidden_states` are the input of the first block and the
    output of each block, before the final norm.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor | None, ...] | None = None
    attentions: Tensors | None = None


@dataclass(eq=False)
class BaseModelOutputWithPoolingAndCrossAttentions(ModelOutput):
    """Output of the text transformer: states (B, T, D). The last of `hidden_states` is `last_hidden_state`."""

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    past_key_values: Any = None
    hidden_states: tuple[Tensor | None, ...] | None = None
    attentions: Tensors | None = None
    cross_attentions: Tensors | None = None


@dataclass(eq=False)
class CausalLMOutputWithCrossAttentions(ModelOutput):
    """Output of the text decoder: next-token logits (B, T, V) and, with labels, their loss."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Any = None
    hidden_states: tuple[Tensor | None, ...] | None = None
    attentions: Tensors | None = None
    cross_attentions: Tensors | None = None


@dataclass(eq=False)
class BlipForConditionalGenerationModelOutput(ModelOutput):
    """Output of the captioner: logits (B, T, V), and the image states under two names."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    image_embeds: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor | None, ...] | None = None
    attentions: Tensors | None = None

    @property
    def decoder_logits(self) -> Tensor | None:
        """`logits`, under its name in transformers 4."""
        return self.logits


@dataclass(eq=False)
class BlipTextVisionModelOutput(ModelOutput):
    """Output of the VQA model: the loss, with labels, and the image states. As in `transformers`, without logits."""

    loss: Tensor | None = None
    image_embeds: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor | None, ...] | None = None
    attentions: Tensors | None = None


@dataclass(eq=False)
class BlipImageTextMatchingModelOutput(ModelOutput):
    """Output of the retrieval model: ITM logits (B, 2) or ITC cosine similarities (images, texts).

    As in `transformers`, `loss`, `image_embeds` and `vision_pooler_output` are never set.
    """

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
    """Output of `BlipModel`: scaled cosine similarities in both directions, and normalized embeddings (B, E)."""

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None
    text_model_output: BaseModelOutputWithPoolingAndCrossAttentions | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None


@dataclass(eq=False)
class GenerateOutput(ModelOutput):
    """Output of `generate` with `return_dict_in_generate=True`: token ids (R, T); scores (R,) of a beam search."""

    sequences: Tensor | None = None
    sequences_scores: Tensor | None = None


@dataclass(eq=False)
class GenerateDecoderOnlyOutput(GenerateOutput):
    """Output of `generate` without beams, with `return_dict_in_generate=True`: token ids (R, T), and tuples by step."""

    scores: Tensors | None = None
    logits: Tensors | None = None
    attentions: tuple[Tensors, ...] | None = None
    hidden_states: tuple[Tensors, ...] | None = None
    past_key_values: Any = None


@dataclass(eq=False)
class GenerateBeamDecoderOnlyOutput(GenerateOutput):
    """Output of a beam search with `return_dict_in_generate=True`.

    `beam_indices` (R, S) are the rows that new tokens continued, with -1 after the end. `sequences_scores` (R,) are set
    with `output_scores=True`.
    """

    scores: Tensors | None = None
    logits: Tensors | None = None
    beam_indices: Tensor | None = None
    attentions: tuple[Tensors, ...] | None = None
    hidden_states: tuple[Tensors, ...] | None = None
    past_key_values: Any = None
