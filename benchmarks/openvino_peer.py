"""OpenVINO from a `transformers` model, in the usual way: its modules are converted one by one, `generate` runs them.

As usual for encoder-decoders, the decoder is two graphs: one projects the cross-attention keys and values once per
call, the other runs one token with all caches as inputs. int8 is NNCF's post-training quantization of the image encoder
and weight compression of the other graphs. Graphs are stored next to the model's folder.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.contestants import Transformers, UnavailableError
from benchmarks.materials import Scale, draw_image
from openblip.model.config import ModelKind

if TYPE_CHECKING:
    from benchmarks.contestants import Entry

os.environ.setdefault("OPENVINO_TELEMETRY_OPT_OUT", "1")
HINTS: dict[str, dict[str, str]] = {
    "auto": {},  # OpenVINO's default, which is bf16 on CPUs that support it
    "fp32": {"INFERENCE_PRECISION_HINT": "f32"},
    "int8": {},
}
CALIBRATION = 8  # images; enough to measure speed with random weights


class OpenVINO(Transformers):
    """`transformers` with its encoders and its decoder replaced by converted graphs."""

    def __init__(self, entry: Entry, folder: Path, task: ModelKind, scale: Scale) -> None:
        import nncf
        import openvino
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        if entry.precision not in HINTS:
            raise UnavailableError(f"precision must be one of {', '.join(HINTS)}, got {entry.precision}")
        super().__init__(_as_fp32(entry), folder, task)
        self.graphs = _Graphs(openvino, nncf, folder, entry.precision)
        pixels = self._images([draw_image(seed, *scale.photo) for seed in range(CALIBRATION)])["pixel_values"]
        encode = self.graphs.get("vision", lambda: _Vision(self.model.vision_model), (pixels[:1],), calibrate=pixels)

        def vision(pixel_values: Tensor, **_: Any) -> Any:
            states = encode(pixel_values)[0]
            return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=states[:, 0])

        states = torch.zeros(2, scale.config(task).vision.tokens, scale.config(task).vision.width)
        _replace(self.model.vision_model, vision)
        if task in ("vqa", "retrieval"):
            self._replace_text_encoder(states)
        if task in ("caption", "vqa"):
            width = self.model.text_decoder.config.hidden_size
            self._replace_decoder(states if task == "caption" else torch.zeros(2, 5, width))

    def _replace_text_encoder(self, states: Tensor) -> None:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        encoder = self.model.text_encoder
        ids = torch.full((2, 5), 5)
        grounded = self.graphs.get("grounded", lambda: _Text(encoder), (ids, torch.ones_like(ids), states))
        unimodal = None
        if hasattr(self.model, "text_proj"):
            unimodal = self.graphs.get("text", lambda: _Text(encoder), (ids, torch.ones_like(ids)))

        def encode(
            input_ids: Tensor, attention_mask: Tensor, encoder_hidden_states: Tensor | None = None, **kwargs: Any
        ) -> Any:
            if encoder_hidden_states is not None:
                (hidden,) = grounded(input_ids, attention_mask, encoder_hidden_states)
            else:
                assert unimodal is not None
                (hidden,) = unimodal(input_ids, attention_mask)
            if kwargs.get("return_dict") is False:
                return (hidden,)
            return BaseModelOutputWithPooling(last_hidden_state=hidden)

        _replace(encoder, encode)

    def _replace_decoder(self, states: Tensor) -> None:
        from transformers import DynamicCache, EncoderDecoderCache
        from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions

        decoder = self.model.text_decoder
        config = decoder.config
        layers, heads = config.num_hidden_layers, config.num_attention_heads
        empty = torch.zeros(2, heads, 1, config.hidden_size // heads)
        project = self.graphs.get("cross", lambda: _Cross(decoder), (states,))
        crossed = project(states)
        ids = torch.full((2, 1), 5)
        example = (ids, torch.ones(1, 1, dtype=torch.long), *[empty] * (2 * layers), *crossed)
        step = self.graphs.get("step", lambda: _Step(decoder), example)
        original = type(decoder).forward

        @functools.wraps(original)  # `generate` inspects the signature
        def forward(input_ids: Tensor, encoder_hidden_states: Tensor, past_key_values: Any = None, **_: Any) -> Any:
            cache = past_key_values
            if not isinstance(cache, EncoderDecoderCache):
                cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
            self_cache: Any = cache.self_attention_cache
            cross_cache: Any = cache.cross_attention_cache
            if cross_cache.get_seq_length() == 0:
                projected = project(encoder_hidden_states)
                for layer in range(layers):
                    cross_cache.update(projected[2 * layer], projected[2 * layer + 1], layer)
            past = self_cache.get_seq_length()
            self_inputs = [empty[:1, :, :0].expand(len(input_ids), -1, -1, -1)] * (2 * layers)
            if past:
                self_inputs = [tensor for layer in self_cache.layers for tensor in (layer.keys, layer.values)]
            cross_inputs = [tensor for layer in cross_cache.layers for tensor in (layer.keys, layer.values)]
            logits, *new = step(input_ids[:, -1:], torch.tensor([[past]]), *self_inputs, *cross_inputs)
            for layer in range(layers):
                self_cache.update(new[2 * layer], new[2 * layer + 1], layer)
            return CausalLMOutputWithCrossAttentions(logits=logits, past_key_values=cache)

        _replace(decoder, forward)


class _Graphs:
    """Converted modules of a model in a precision: converted once, stored as files, compiled for this machine."""

    def __init__(self, openvino: Any, nncf: Any, folder: Path, precision: str) -> None:
        self.openvino, self.nncf, self.precision = openvino, nncf, precision
        self.folder = folder.parent / f"{folder.name}-openvino"
        self.core = openvino.Core()
        nncf.set_log_level(logging.ERROR)

    def get(
        self, name: str, make: Callable[[], nn.Module], example: tuple[Tensor, ...], calibrate: Tensor | None = None
    ) -> Callable[..., list[Tensor]]:
        """Return a function of tensors that runs a graph, with any batch size and length."""
        path = self.folder / f"{name}-{'int8' if self.precision == 'int8' else 'fp32'}.xml"
        if not path.is_file():
            self._convert(make().eval(), example, calibrate, path)
        compiled = self.core.compile_model(path, "CPU", HINTS[self.precision])

        def run(*tensors: Tensor) -> list[Tensor]:
            # A program with threads would use a request per thread; here there is one caller.
            results = compiled([tensor.contiguous().numpy() for tensor in tensors])
            return [torch.from_numpy(np.array(results[output])) for output in compiled.outputs]

        return run

    def _convert(self, module: nn.Module, example: tuple[Tensor, ...], calibrate: Tensor | None, path: Path) -> None:
        with torch.inference_mode():
            graph = self.openvino.convert_model(module, example_input=example)
        for graph_input, tensor in zip(graph.inputs, example, strict=True):
            # Batch and length are dynamic; heads, widths and the image size are static.
            is_image = tensor.ndim == 4 and tensor.shape[1] == 3
            dynamic = {0} if is_image else {0, 1} if tensor.ndim < 4 else {0, 2}
            shape = [-1 if axis in dynamic else size for axis, size in enumerate(tensor.shape)]
            graph_input.get_node().set_partial_shape(self.openvino.PartialShape(shape))
        graph.validate_nodes_and_infer_types()
        if self.precision == "int8" and calibrate is not None:
            images = [row[None].numpy() for row in calibrate]
            transformer = getattr(self.nncf.ModelType, "TRANSFORMER", None)
            graph = self.nncf.quantize(
                graph, self.nncf.Dataset(images), subset_size=len(images), model_type=transformer
            )
        elif self.precision == "int8":
            graph = self.nncf.compress_weights(graph)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.openvino.save_model(graph, path, compress_to_fp16=False)


class _Vision(nn.Module):
    def __init__(self, vision: nn.Module) -> None:
        super().__init__()
        self.vision = vision

    def forward(self, pixels: Tensor) -> Tensor:
        return self.vision(pixel_values=pixels).last_hidden_state


class _Text(nn.Module):
    """The text encoder with masks of its own, because the masks of `transformers` cannot be traced."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: Tensor, mask: Tensor, states: Tensor | None = None) -> Tensor:
        x = self.encoder.embeddings(input_ids=ids)
        bias = (1.0 - mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        for layer in self.encoder.encoder.layer:
            x = layer(x, states, attention_mask=bias)
        return x


class _Cross(nn.Module):
    """Cross-attention keys and values (B, H, M, K) of all layers, keys before values."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer.crossattention.self for layer in decoder.bert.encoder.layer)

    def forward(self, states: Tensor) -> tuple[Tensor, ...]:
        projected = []
        for layer in self.layers:
            attention: Any = layer
            for projection in (attention.key, attention.value):
                split = projection(states).unflatten(-1, (attention.num_attention_heads, -1))
                projected.append(split.transpose(1, 2))
        return tuple(projected)


class _Step(nn.Module):
    """One token (B, 1) at `position` (1, 1) to logits (B, 1, V), and the new keys and values."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.decoder = decoder
        self.layers = decoder.config.num_hidden_layers

    def forward(self, ids: Tensor, position: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        from transformers import DynamicCache, EncoderDecoderCache

        cache: Any = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self_cache, cross_cache = _InputCache(caches[: 2 * self.layers]), _InputCache(caches[2 * self.layers :])
        cache.self_attention_cache, cache.cross_attention_cache = self_cache, cross_cache
        cache.is_updated = dict.fromkeys(range(self.layers), True)
        bert = self.decoder.bert
        x = bert.embeddings(input_ids=ids, position_ids=position)
        for layer in bert.encoder.layer:
            x = layer(x, x, past_key_values=cache)  # the states are not used, because their projection is in the cache
        return (self.decoder.cls(x), *self_cache.new)


class _InputCache:
    """Keys and values that are inputs of the graph, with the interface of a `transformers` cache."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self.layers = [SimpleNamespace(keys=k, values=v) for k, v in zip(tensors[::2], tensors[1::2], strict=True)]
        self.new: list[Tensor] = []

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Record the keys and values of the new token, an output of the graph; return all keys and values."""
        self.new += [keys, values]
        previous = self.layers[layer]
        return torch.cat([previous.keys, keys], dim=2), torch.cat([previous.values, values], dim=2)


def _replace(module: Any, forward: Callable[..., Any]) -> None:
    """Replace the forward of a module, and free its weights."""
    module.forward = forward
    for parameter in module.parameters():
        parameter.data = parameter.data.new_empty(0)


def _as_fp32(entry: Entry) -> Entry:
    return replace(entry, way="eager", precision="fp32")
