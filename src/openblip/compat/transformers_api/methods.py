"""Methods that every model class of `transformers` has: counts, embeddings, checkpointing of activations, submodels."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.distributions import MultivariateNormal, constraints
from torch.utils.checkpoint import checkpoint

from openblip.compat.transformers_api.layers import CheckpointedLayer
from openblip.compat.transformers_api.text_layers import BlipTextEmbeddings, BlipTextLMPredictionHead
from openblip.errors import ConfigError, InputError

_IMAGE_ENCODERS = ("vision_model",)
_TEXT_ENCODERS = ("text_encoder", "encoder")
_DECODERS = ("text_model", "decoder", "text_decoder")
_RESIZE_SCALE = 1e-9  # of the covariance that new word embeddings are drawn with


class ModelMethods(nn.Module):
    """The methods that do not depend on files."""

    config: Any
    base_model_prefix: ClassVar[str] = ""
    main_input_name: ClassVar[str] = "input_ids"
    input_modalities: ClassVar[tuple[str, ...]] = ("text",)
    text_submodel: ClassVar[str] = ""  # the submodel that has the word embedding
    supports_gradient_checkpointing: ClassVar[bool] = False
    model_tags: list[str] | None = None
    warnings_issued: dict[str, bool]
    is_parallelizable: ClassVar[bool] = False
    _no_split_modules: ClassVar[list[str]] = []
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _tied_weights_keys: ClassVar[dict[str, str]] = {}

    # Sizes and types.

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of the weights."""
        return next(parameter.dtype for parameter in self.parameters() if parameter.is_floating_point())

    @property
    def name_or_path(self) -> str:
        """Where the model was loaded from."""
        return str(self.config.name_or_path)

    @name_or_path.setter
    def name_or_path(self, value: str) -> None:
        self.config.name_or_path = value

    @property
    def base_model(self) -> nn.Module:
        """The main body of the model: the transformer of a model with a language head, otherwise the model itself."""
        body = getattr(self, self.base_model_prefix, self)
        return body if isinstance(body, nn.Module) else self

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """Token ids to try a text model with."""
        return {"input_ids": torch.tensor([[7, 6, 0, 0, 1], [1, 2, 3, 0, 0], [0, 0, 0, 4, 5]])}

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Return the number of parameters; tied parameters count once.

        Args:
            only_trainable: Count only parameters that require gradients.
            exclude_embeddings: Do not count word and position embeddings.

        Returns:
            The number of parameters.
        """
        excluded = set()
        if exclude_embeddings:
            excluded = {f"{name}.weight" for name, module in self.named_modules() if isinstance(module, nn.Embedding)}
        return sum(
            parameter.numel()
            for name, parameter in self.named_parameters()
            if name not in excluded and (parameter.requires_grad or not only_trainable)
        )

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Return the number of bytes of the weights.

        Args:
            return_buffers: Count buffers, too.

        Returns:
            The number of bytes.
        """
        tensors: list[Tensor] = list(self.parameters())
        if return_buffers:
            tensors += list(self.buffers())
        return sum(tensor.nelement() * tensor.element_size() for tensor in tensors)

    def get_parameter_or_buffer(self, target: str) -> Tensor:
        """Return a parameter or a buffer.

        Args:
            target: Its name, as in `state_dict`.

        Returns:
            The parameter or buffer.

        Raises:
            AttributeError: There is no parameter or buffer of this name.
        """
        try:
            return self.get_parameter(target)
        except AttributeError:
            return self.get_buffer(target)

    def named_non_persistent_buffers(
        self, recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the buffers that `state_dict` does not contain.

        Args:
            recurse: Include the buffers of submodules.
            remove_duplicate: Yield a buffer with two names once.

        Yields:
            Names and buffers.
        """
        stored = self.state_dict()
        for name, buffer in self.named_buffers(recurse=recurse, remove_duplicate=remove_duplicate):
            if name not in stored:
                yield name, buffer

    def add_model_tags(self, tags: list[str] | str) -> None:
        """Add tags to the card that `push_to_hub` writes.

        Args:
            tags: Tags, which are added once.
        """
        for tag in [tags] if isinstance(tags, str) else tags:
            self.model_tags = list(self.model_tags or [])
            if tag not in self.model_tags:
                self.model_tags.append(tag)

    # Submodels.

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """Return the text encoder or, by modality, the image encoder.

        Args:
            modality: "image" or "video"; `None` for text.

        Returns:
            The encoder, or the model itself if it has none.

        Raises:
            InputError: `modality` is unknown.
        """
        for name in self._encoder_names(modality):
            if name in self._modules:
                return getattr(self, name)
        return self

    def set_encoder(self, encoder: nn.Module, modality: str | None = None) -> None:
        """Replace the module that `get_encoder` returns.

        Args:
            encoder: The new encoder.
            modality: "image" or "video"; `None` for text.

        Raises:
            InputError: `modality` is unknown, or the model has no such encoder.
        """
        for name in self._encoder_names(modality):
            if name in self._modules:
                setattr(self, name, encoder)
                return
        raise InputError(f"{type(self).__name__} has no encoder for {modality or 'text'}")

    @staticmethod
    def _encoder_names(modality: str | None) -> tuple[str, ...]:
        if modality not in (None, "image", "video", "audio"):
            raise InputError(f"modality must be 'image', 'video', 'audio' or None, got {modality!r}")
        if modality is None:
            return _TEXT_ENCODERS
        return () if modality == "audio" else _IMAGE_ENCODERS

    def get_decoder(self) -> nn.Module:
        """Return the text decoder.

        Returns:
            The decoder, or the model itself if it has none.
        """
        for name in _DECODERS:
            if name in self._modules:
                return getattr(self, name)
        return self

    def set_decoder(self, decoder: nn.Module) -> None:
        """Replace the module that `get_decoder` returns.

        Args:
            decoder: The new decoder.

        Raises:
            InputError: The model has no decoder.
        """
        for name in _DECODERS:
            if name in self._modules:
                setattr(self, name, decoder)
                return
        raise InputError(f"{type(self).__name__} has no decoder")

    # Embeddings.

    def get_input_embeddings(self) -> nn.Module:
        """Return the word embedding, or the embeddings of an image encoder.

        Returns:
            The word embedding, or the embeddings of an image encoder.
        """
        if not self.text_submodel:
            raise NotImplementedError
        words: nn.Module = getattr(self, self.text_submodel).get_input_embeddings()
        return words

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embedding.

        Args:
            value: The new embedding.
        """
        if not self.text_submodel:
            raise NotImplementedError
        getattr(self, self.text_submodel).set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the output matrix of a model with a language head; `None` for other models, as in `transformers`.

        Returns:
            The output matrix, or `None`.
        """
        return None

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the output matrix.

        Args:
            new_embeddings: The new output matrix.

        Raises:
            InputError: The model has no language head of its own; its `text_decoder` may have one.
        """
        raise InputError(f"{type(self).__name__} has no output matrix of its own")

    def get_position_embeddings(self) -> nn.Embedding:
        """Raise: `transformers` has no such method for BLIP.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(f"{type(self).__name__} has no get_position_embeddings, as in transformers")

    def resize_position_embeddings(self, new_num_position_embeddings: int) -> None:
        """Raise: `transformers` has no such method for BLIP.

        Args:
            new_num_position_embeddings: Number of positions.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(f"{type(self).__name__} has no resize_position_embeddings, as in transformers")

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """Change the number of word embeddings, also of the tied output matrix and of its bias.

        Args:
            new_num_tokens: Number of tokens; `None` for the current number.
            pad_to_multiple_of: Round the number up to a multiple of this one.
            mean_resizing: Draw new embeddings around the mean of the others rather than around 0.

        Returns:
            The word embedding.

        Raises:
            InputError: `pad_to_multiple_of` is not a positive integer.
        """
        if pad_to_multiple_of is not None and (not isinstance(pad_to_multiple_of, int) or pad_to_multiple_of < 1):
            raise InputError(f"pad_to_multiple_of must be a positive integer, got {pad_to_multiple_of!r}")
        words = self.get_input_embeddings()
        assert isinstance(words, nn.Embedding)
        if new_num_tokens is None and pad_to_multiple_of is None:
            return words
        count = words.num_embeddings if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of is not None:
            count = -(-count // pad_to_multiple_of) * pad_to_multiple_of
        seen: set[int] = set()
        for module in self._text_models():
            embedding = module.get_input_embeddings()
            assert isinstance(embedding, nn.Embedding)
            if id(embedding) not in seen:
                seen.add(id(embedding))
                _resize_embedding(embedding, count, mean_resizing, self.config.initializer_range)
        self.config.get_text_config().vocab_size = count
        self.vocab_size = count
        self.tie_weights()
        return words

    def _text_models(self) -> Iterable[ModelMethods]:
        """Yield the text transformers."""
        for module in self.modules():
            if isinstance(module, ModelMethods) and hasattr(module, "embeddings"):
                embeddings = module.embeddings
                if hasattr(embeddings, "word_embeddings"):
                    yield module

    def tie_weights(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:
        """Tie the output matrix to the word embedding, and its bias to the bias of the head.

        Args:
            missing_keys: Ignored; an argument of `transformers`.
            recompute_mapping: Ignored; an argument of `transformers`.
        """
        for module in self.modules():
            if module is not self and isinstance(module, ModelMethods):
                module.tie_weights()

    @property
    def all_tied_weights_keys(self) -> dict[str, str]:
        """Second names of parameters, with their first names."""
        return dict(self._tied_weights_keys)

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Return the second names of parameters, with their first names.

        Args:
            all_submodels: Ignored; the names of all submodels are returned.

        Returns:
            The names.
        """
        return self.all_tied_weights_keys

    # Initialization.

    def post_init(self) -> None:
        """Initialize the weights; constructors call it at their end."""
        self.warnings_issued = {}
        self._init_own_weights()

    def init_weights(self) -> None:
        """Draw new random weights for the model and its submodels, and tie them."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()
        for module in self.modules():
            if isinstance(module, ModelMethods):
                module._init_own_weights()

    def initialize_weights(self) -> None:
        """Draw new random weights for the model and its submodels."""
        self.init_weights()

    def _init_own_weights(self) -> None:
        """Draw new random weights, except for submodels, which draw theirs when they are created."""
        pending: list[nn.Module] = [self]
        while pending:
            module = pending.pop()
            self._init_weights(module)
            pending += [child for child in module.children() if not isinstance(child, ModelMethods)]
        self.tie_weights()

    def _init_weights(self, module: nn.Module) -> None:
        """Initialize one module: normal weights, zero biases and padding, unit norms, counted positions."""
        if isinstance(module, BlipTextEmbeddings) and not module.position_ids.is_meta:
            module.reset_position_ids(device=module.position_ids.device)
        if isinstance(module, BlipTextLMPredictionHead):
            nn.init.zeros_(module.bias)
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.is_meta:
            return  # drawing random numbers for shapes would take seconds
        if isinstance(module, nn.Linear):
            nn.init.normal_(weight, std=self.config.initializer_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(weight, std=self.config.initializer_range)
            if module.padding_idx is not None:
                with torch.no_grad():
                    weight[module.padding_idx].zero_()
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()

    # Training.

    def enable_input_require_grads(self) -> None:
        """Make the embeddings' output require gradients, so that adapters train in frozen, checkpointed layers."""
        self.disable_input_require_grads()
        handles, seen = [], set()
        for module in self.modules():
            if not isinstance(module, ModelMethods):
                continue
            embeddings = module.get_input_embeddings()
            if id(embeddings) not in seen:
                seen.add(id(embeddings))
                handles.append(embeddings.register_forward_hook(_require_grad))
        self._require_grads_hooks = handles

    def disable_input_require_grads(self) -> None:
        """Undo `enable_input_require_grads`."""
        for handle in getattr(self, "_require_grads_hooks", []):
            handle.remove()
        self._require_grads_hooks = []

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recompute the activations of layers in the backward pass instead of storing them.

        Args:
            activation_checkpointing_kwargs: Arguments of `torch.utils.checkpoint.checkpoint`.
            every_n_layers: Apply to every n-th layer.
            offload: Store the inputs of the layers on the CPU.

        Raises:
            ConfigError: The class does not support it.
        """
        if not self.supports_gradient_checkpointing:
            raise ConfigError(f"{type(self).__name__} does not support activation checkpointing, as in transformers")
        function: Callable[..., Any] = checkpoint
        if offload:
            device = self.device.type
            function = partial(_checkpoint_on_cpu, device)
        self._set_checkpointing(
            True, partial(function, **(activation_checkpointing_kwargs or {"use_reentrant": False}))
        )
        layers = [module for module in self.modules() if isinstance(module, CheckpointedLayer)]
        for index, layer in enumerate(layers):
            layer.gradient_checkpointing = index % every_n_layers == 0
        if self.main_input_name == "input_ids" or getattr(self, "_hf_peft_config_loaded", False):
            self.enable_input_require_grads()

    def activation_checkpointing_disable(self) -> None:
        """Store the activations of all layers again."""
        self._set_checkpointing(False, partial(checkpoint, use_reentrant=False))
        self.disable_input_require_grads()

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Recompute activations; the name of `activation_checkpointing_enable` in transformers 4.

        Args:
            gradient_checkpointing_kwargs: Arguments of `torch.utils.checkpoint.checkpoint`.
            **kwargs: Further arguments of `activation_checkpointing_enable`.
        """
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)

    def gradient_checkpointing_disable(self) -> None:
        """Store activations; the name of `activation_checkpointing_disable` in transformers 4."""
        self.activation_checkpointing_disable()

    @property
    def is_activation_checkpointing(self) -> bool:
        """Whether activations are recomputed."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether activations are recomputed; the name of transformers 4."""
        return self.is_activation_checkpointing

    def _set_checkpointing(self, enabled: bool, function: Callable[..., Any]) -> None:
        for module in self.modules():
            if hasattr(module, "gradient_checkpointing"):
                module._gradient_checkpointing_func = function  # type: ignore[assignment]
                module.gradient_checkpointing = enabled  # type: ignore[assignment]

    def set_attn_implementation(
        self, attn_implementation: str | dict[str, str], allow_all_kernels: bool = False
    ) -> None:
        """Choose how attention is computed. All choices give the same results here.

        Attention is fused unless somebody needs its weights. "eager" and "sdpa" are accepted for compatibility.

        Args:
            attn_implementation: "eager" or "sdpa", or one of them per subconfiguration.
            allow_all_kernels: Ignored.

        Raises:
            InputError: The implementation is unknown.
        """
        check_attn_implementation(attn_implementation)
        self.config._attn_implementation = attn_implementation

    def warn_if_padding_and_no_attention_mask(self, input_ids: Tensor, attention_mask: Tensor | None) -> None:
        """Warn if ids contain padding and there is no mask.

        Args:
            input_ids: Token ids (B, T).
            attention_mask: Attention mask (B, T), or `None`.
        """
        pad_id = self.config.get_text_config().pad_token_id
        if attention_mask is None and pad_id is not None and bool((input_ids[:, [-1, 0]] == pad_id).any()):
            warnings.warn("input_ids contain padding, but attention_mask is not given", stacklevel=2)


def check_attn_implementation(choice: str | Mapping[str, str] | None) -> None:
    """Raise `InputError` unless the name, or each name by subconfiguration, is "eager", "sdpa" or `None`."""
    for name in choice.values() if isinstance(choice, Mapping) else [choice]:
        if name not in (None, "eager", "sdpa"):
            raise InputError(f"attn_implementation must be 'eager' or 'sdpa' (equal here), got {name!r}")


def _require_grad(_module: nn.Module, _args: object, output: Tensor) -> None:
    output.requires_grad_(True)


def _checkpoint_on_cpu(device_type: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with save_on_cpu(pin_memory=device_type == "cuda"):
        return checkpoint(function, *args, **kwargs)


def _resize_embedding(embedding: nn.Embedding, count: int, around_mean: bool, std: float) -> None:
    """Change the number of words in place: keep the old vectors, and draw new ones if there are more words."""
    old = embedding.weight.data
    kept = min(count, len(old))
    new = old.new_empty(count, old.shape[1])
    new[:kept] = old[:kept]
    added = count - kept
    if added and around_mean:
        values = old.float()
        mean = values.mean(0)
        positive_definite: Any = constraints.positive_definite
        covariance = _RESIZE_SCALE * ((values - mean).T @ (values - mean)) / len(values)
        if bool(positive_definite.check(covariance).all()):
            drawn = MultivariateNormal(mean, covariance_matrix=covariance).sample(torch.Size([added]))
        else:
            drawn = mean.repeat(added, 1)
        new[kept:] = drawn.to(new.dtype)
    elif added:
        nn.init.normal_(new[kept:], std=std)
    embedding.weight.data = new
    embedding.num_embeddings = count
    if embedding.padding_idx is not None and embedding.padding_idx >= count:
        embedding.padding_idx = None
