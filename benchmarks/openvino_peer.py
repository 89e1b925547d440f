"""OpenVINO fed from `transformers`, the usual way: its modules converted one by one, and its ``generate`` in charge.

As converted encoder-decoders are usually run, the decoder is two graphs: one projects the cross-attention keys and
values once per call, the other takes one token with all caches as inputs. int8 is NNCF's post-training quantisation of
the image encoder and weights-only compression of the rest. Graphs are kept beside the model's folder.
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
from benchmarks.materials import Scale, picture
from openblip.model.config import ModelKind

if TYPE_CHECKING:
    from benchmarks.contestants import Entry

os.environ.setdefault("OPENVINO_TELEMETRY_OPT_OUT", "1")
HINTS: dict[str, dict[str, str]] = {
    "auto": {},  # what OpenVINO takes by itself, which is bf16 where the CPU has it
    "fp32": {"INFERENCE_PRECISION_HINT": "f32"},
    "int8": {},
}
CALIBRATION = 8  # pictures; enough for speed, which is all that random weights can tell


class OpenVINO(Transformers):
    """The same calls as `transformers`, its encoders and its decoder replaced by converted graphs."""

    def __init__(self, entry: Entry, folder: Path, task: ModelKind, scale: Scale) -> None:
        import nncf
        import openvino
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        if entry.precision not in HINTS:
            raise UnavailableError(f"the OpenVINO peer is {', '.join(HINTS)}, not {entry.precision}")
        super().__init__(_as_fp32(entry), folder, task)
        self.graphs = _Graphs(openvino, nncf, folder, entry.precision)
        pixels = self._pictures([picture(seed, *scale.photo) for seed in range(CALIBRATION)])["pixel_values"]
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
        alone = None
        if hasattr(self.model, "text_proj"):
            alone = self.graphs.get("text", lambda: _Text(encoder), (ids, torch.ones_like(ids)))

        def encode(
            input_ids: Tensor, attention_mask: Tensor, encoder_hidden_states: Tensor | None = None, **more: Any
        ) -> Any:
            if encoder_hidden_states is not None:
                (found,) = grounded(input_ids, attention_mask, encoder_hidden_states)
            else:
                assert alone is not None
                (found,) = alone(input_ids, attention_mask)
            if more.get("return_dict") is False:
                return (found,)
            return BaseModelOutputWithPooling(last_hidden_state=found)

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

        @functools.wraps(original)  # `generate` asks for the names of its arguments
        def forward(input_ids: Tensor, encoder_hidden_states: Tensor, past_key_values: Any = None, **_: Any) -> Any:
            cache = past_key_values
            if not isinstance(cache, EncoderDecoderCache):
                cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
            own: Any = cache.self_attention_cache
            cross: Any = cache.cross_attention_cache
            if cross.get_seq_length() == 0:
                projected = project(encoder_hidden_states)
                for layer in range(layers):
                    cross.update(projected[2 * layer], projected[2 * layer + 1], layer)
            past = own.get_seq_length()
            held = [t for c in own.layers for t in (c.keys, c.values)] if past else [
                empty[:1, :, :0].expand(len(input_ids), -1, -1, -1)
            ] * (2 * layers)  # fmt: skip
            read = [t for c in cross.layers for t in (c.keys, c.values)]
            logits, *new = step(input_ids[:, -1:], torch.tensor([[past]]), *held, *read)
            for layer in range(layers):
                own.update(new[2 * layer], new[2 * layer + 1], layer)
            return CausalLMOutputWithCrossAttentions(logits=logits, past_key_values=cache)

        _replace(decoder, forward)


class _Graphs:
    """Converted modules of one model in one precision: made once, kept as files, and compiled for this machine."""

    def __init__(self, openvino: Any, nncf: Any, folder: Path, precision: str) -> None:
        self.openvino, self.nncf, self.precision = openvino, nncf, precision
        self.folder = folder.parent / f"{folder.name}-openvino"
        self.core = openvino.Core()
        nncf.set_log_level(logging.ERROR)

    def get(
        self, name: str, make: Callable[[], nn.Module], example: tuple[Tensor, ...], calibrate: Tensor | None = None
    ) -> Callable[..., list[Tensor]]:
        """A function of tensors that runs the graph: tensors in, tensors out. All batch and length axes are free."""
        path = self.folder / f"{name}-{'int8' if self.precision == 'int8' else 'fp32'}.xml"
        if not path.is_file():
            self._convert(make().eval(), example, calibrate, path)
        compiled = self.core.compile_model(path, "CPU", HINTS[self.precision])

        def run(*tensors: Tensor) -> list[Tensor]:
            # Threads of a user's program would each have a request; here there is one caller.
            found = compiled([tensor.contiguous().numpy() for tensor in tensors])
            return [torch.from_numpy(np.array(found[output])) for output in compiled.outputs]

        return run

    def _convert(self, module: nn.Module, example: tuple[Tensor, ...], calibrate: Tensor | None, path: Path) -> None:
        with torch.inference_mode():
            graph = self.openvino.convert_model(module, example_input=example)
        for given, tensor in zip(graph.inputs, example, strict=True):
            # Batch and length may change; heads, widths and the picture's size may not.
            free = {0, 1} if tensor.ndim < 4 else {0, 2}
            fixed = tensor.ndim == 4 and tensor.shape[1] == 3
            shape = [-1 if axis in ({0} if fixed else free) else size for axis, size in enumerate(tensor.shape)]
            given.get_node().set_partial_shape(self.openvino.PartialShape(shape))
        graph.validate_nodes_and_infer_types()
        if self.precision == "int8" and calibrate is not None:
            pictures = [row[None].numpy() for row in calibrate]
            transformer = getattr(self.nncf.ModelType, "TRANSFORMER", None)
            graph = self.nncf.quantize(
                graph, self.nncf.Dataset(pictures), subset_size=len(pictures), model_type=transformer
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
    """The text encoder with masks made by hand: those of that library do not survive tracing."""

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
    """Cross-attention keys and values (B, H, M, K) of every layer, keys before values."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer.crossattention.self for layer in decoder.bert.encoder.layer)

    def forward(self, states: Tensor) -> tuple[Tensor, ...]:
        found = []
        for layer in self.layers:
            attention: Any = layer
            for projection in (attention.key, attention.value):
                split = projection(states).unflatten(-1, (attention.num_attention_heads, -1))
                found.append(split.transpose(1, 2))
        return tuple(found)


class _Step(nn.Module):
    """One token (B, 1) at ``position`` (1, 1) through the decoder: logits (B, 1, V), and the new keys and values."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.decoder = decoder
        self.layers = decoder.config.num_hidden_layers

    def forward(self, ids: Tensor, position: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        from transformers import DynamicCache, EncoderDecoderCache

        cache: Any = EncoderDecoderCache(DynamicCache(), DynamicCache())
        own, cross = _Held(caches[: 2 * self.layers]), _Held(caches[2 * self.layers :])
        cache.self_attention_cache, cache.cross_attention_cache = own, cross
        cache.is_updated = dict.fromkeys(range(self.layers), True)
        bert = self.decoder.bert
        x = bert.embeddings(input_ids=ids, position_ids=position)
        for layer in bert.encoder.layer:
            x = layer(x, x, past_key_values=cache)  # what it would read is in the cache already
        return (self.decoder.cls(x), *own.new)


class _Held:
    """Keys and values that are inputs of the graph, in the manner of that library's caches."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self.layers = [SimpleNamespace(keys=k, values=v) for k, v in zip(tensors[::2], tensors[1::2], strict=True)]
        self.new: list[Tensor] = []

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values with those of the new token, which are kept as an output of the graph."""
        self.new += [keys, values]
        held = self.layers[layer]
        return torch.cat([held.keys, keys], dim=2), torch.cat([held.values, values], dim=2)


def _replace(module: Any, forward: Callable[..., Any]) -> None:
    """Give a module another forward and free its weights."""
    module.forward = forward
    for parameter in module.parameters():
        parameter.data = parameter.data.new_empty(0)


def _as_fp32(entry: Entry) -> Entry:
    return replace(entry, way="eager", precision="fp32")
