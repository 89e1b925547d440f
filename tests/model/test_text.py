"""The text transformer: its three ways to be called agree with each other and with plain recomputation."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.errors import ConfigError, InputError
from openblip.model.config import TextConfig
from openblip.model.layers import Attention, Trace
from openblip.model.text import Cache, TextLayer, TextTransformer
from tests.model.test_vision import loud

TOY = TextConfig(
    vocab_size=50, width=24, depth=3, heads=4, mlp_width=40, max_positions=20, memory_width=16,
    dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
IDS = torch.randint(1, 50, (4, 7), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def text() -> TextTransformer:
    model = loud(TextTransformer(TOY))
    assert isinstance(model, TextTransformer)
    return model


def attention(module: Attention, x: Tensor, memory: Tensor, unseen: Tensor | None = None) -> Tensor:
    """Head by head, position by position."""
    query, key, value = module.query(x), module.key(memory), module.value(memory)
    heads = []
    for q, k, v in zip(*(torch.split(part, 6, -1) for part in (query, key, value)), strict=True):
        scores = torch.einsum("btk,bsk->bts", q, k) / 6**0.5
        if unseen is not None:
            scores = scores.masked_fill(unseen, float("-inf"))
        heads.append(torch.einsum("bts,bsk->btk", scores.softmax(-1), v))
    return module.out(torch.cat(heads, -1))


def test_decoding_recomputed_layer_by_layer(text: TextTransformer) -> None:
    memory = IMAGES.repeat_interleave(2, 0)
    later = torch.ones(7, 7).triu(1).bool()
    x = text.embeddings.norm(text.embeddings.word(IDS) + text.embeddings.position.weight[:7])
    for layer in text.layers:
        assert isinstance(layer, TextLayer)
        x = layer.self_norm(x + attention(layer.self_attn, x, x, later))
        x = layer.cross_norm(x + attention(layer.cross_attn, x, memory))  # type: ignore[arg-type]
        x = layer.mlp_norm(x + layer.mlp.fc2(F.gelu(layer.mlp.fc1(x))))
    torch.testing.assert_close(text.decode(IDS, None, IMAGES), x, atol=1e-5, rtol=1e-5)


def test_an_item_s_texts_share_its_memory(text: TextTransformer) -> None:
    one_each = text.encode_grounded(IDS, None, IMAGES.repeat_interleave(2, 0))
    torch.testing.assert_close(text.encode_grounded(IDS, None, IMAGES), one_each)
    torch.testing.assert_close(text.encode_grounded(IDS, None, text.project(IMAGES)), one_each)


@pytest.mark.parametrize("sizes", [[7], [1] * 7, [3, 1, 3], [6, 1]])
def test_steps_over_a_cache_equal_all_at_once(text: TextTransformer, sizes: list[int]) -> None:
    memory = text.project(IMAGES)
    cache = Cache(TOY, rows=4, capacity=7, like=text.embeddings.word.weight)
    parts = [text.step(part, memory, cache) for part in torch.split(IDS, sizes, 1)]
    torch.testing.assert_close(torch.cat(parts, 1), text.decode(IDS, None, memory), atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match="at most 7 tokens"):
        text.step(IDS[:, :1], memory, cache)


def test_cached_rows_can_be_reordered_dropped_and_repeated(text: TextTransformer) -> None:
    memory = text.project(IMAGES)
    for rows in ([1, 0, 3, 3], [0, 1, 3, 2], [1, 1, 2, 2]):
        cache = Cache(TOY, rows=4, capacity=7, like=text.embeddings.word.weight)
        text.step(IDS[:, :5], memory, cache)
        cache.select(torch.tensor(rows))
        actual = text.step(IDS[:, 5:], memory, cache)
        history = torch.cat([IDS[rows, :5], IDS[:, 5:]], 1)
        torch.testing.assert_close(actual, text.decode(history, None, memory)[:, 5:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_stored_for_steps_gives_the_same_states(text: TextTransformer, dtype: torch.dtype) -> None:
    text, images = text.to(dtype), IMAGES.to(dtype)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with torch.no_grad():
        plain, stored = text.project(images, mask), text.project(images, mask, for_steps=True)
        selection = torch.tensor([1])
        for memory, expected, rows in ((stored, plain, 4), (stored.select(selection), plain.select(selection), 2)):
            keys = memory.layers[0][0]
            assert isinstance(keys, Tensor)
            assert (keys.stride(-1) != 1) == (dtype == torch.float32), "the layout is lost"
            results = []
            for own in (memory, expected):
                cache = Cache(TOY, rows=rows, capacity=3, like=text.embeddings.word.weight)
                results.append(torch.cat([text.step(IDS[:rows, t : t + 1], own, cache) for t in range(3)], 1))
            torch.testing.assert_close(*results)


def test_a_projection_with_hooks_or_an_adapter_runs(text: TextTransformer) -> None:
    calls = []
    key = cast(Any, text.layers[0]).cross_attn.key
    handle = key.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        hooked = text.project(IMAGES, for_steps=True).layers[0][0]
        handle.remove()
        torch.testing.assert_close(hooked, text.project(IMAGES).layers[0][0])
        cast(Any, text.layers[0]).cross_attn.key = nn.Sequential(nn.Linear(16, 24), nn.Identity())
        replaced = text.project(IMAGES, for_steps=True).layers[0][0]
        torch.testing.assert_close(replaced, text.project(IMAGES).layers[0][0])
    assert calls == [1]


def test_padding_is_not_seen(text: TextTransformer) -> None:
    mask = torch.tensor([[1] * 4 + [0] * 3] * 4)
    calls: list[Callable[[Tensor, Tensor | None], Tensor]] = [
        lambda ids, m: text.encode(ids, m),
        lambda ids, m: text.encode_grounded(ids, m, IMAGES),
        lambda ids, m: text.decode(ids, m, IMAGES),
    ]
    for call in calls:
        torch.testing.assert_close(call(IDS, mask)[:, :4], call(IDS[:, :4], None), atol=1e-5, rtol=1e-5)
    recorded = torch.tensor([[1, 1, 1, 0, 0], [1] * 5])
    actual = text.decode(IDS, None, IMAGES, recorded)
    torch.testing.assert_close(actual[:2], text.decode(IDS[:2], None, IMAGES[:1, :3]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(text.decode(IDS, None, text.project(IMAGES, recorded)), actual)


def test_nothing_but_padding_gives_numbers(text: TextTransformer) -> None:
    assert text.encode(IDS, torch.zeros_like(IDS)).isfinite().all()


def test_a_trace_records_without_changing_the_result(text: TextTransformer) -> None:
    trace = Trace(attention=True)
    traced = text.encode_grounded(IDS, None, IMAGES, trace=trace)
    torch.testing.assert_close(traced, text.encode_grounded(IDS, None, IMAGES))
    assert [h.shape for h in trace.hidden] == [(4, 7, 24)] * 4
    assert [w.shape for w in trace.self_weights] == [(4, 4, 7, 7)] * 3
    assert [w.shape for w in trace.cross_weights] == [(4, 4, 7, 5)] * 3


def test_one_stack_holds_an_encoder_and_a_decoder() -> None:
    shared = loud(TextTransformer(replace(TOY, shared_decoder=True)))
    assert isinstance(shared, TextTransformer)
    plain = TextTransformer(TOY).eval()
    weights = shared.state_dict()
    encoder = {name: tensor for name, tensor in weights.items() if "decoder_" not in name}
    plain.load_state_dict(encoder)
    torch.testing.assert_close(shared.encode_grounded(IDS, None, IMAGES), plain.encode_grounded(IDS, None, IMAGES))
    decoder = {name: weights.get(name.replace("self_", "decoder_"), tensor) for name, tensor in encoder.items()}
    plain.load_state_dict(decoder)
    torch.testing.assert_close(shared.decode(IDS, None, IMAGES), plain.decode(IDS, None, IMAGES))


def test_threads_share_a_model(text: TextTransformer) -> None:
    def decode(seed: int) -> Tensor:
        ids = torch.randint(1, 50, (2, 6), generator=torch.Generator().manual_seed(seed))
        cache = Cache(TOY, rows=2, capacity=6, like=text.embeddings.word.weight)
        memory = text.project(IMAGES)
        with torch.no_grad():
            return torch.cat([text.step(ids[:, i : i + 1], memory, cache) for i in range(6)], 1)

    single = [decode(seed) for seed in range(16)]
    with ThreadPoolExecutor(8) as pool:
        for actual, expected in zip(pool.map(decode, range(16)), single, strict=True):
            torch.testing.assert_close(actual, expected)


def test_misuse_is_named(text: TextTransformer) -> None:
    with pytest.raises(InputError, match="at most 20 tokens, got 21"):
        text.encode(torch.ones(1, 21, dtype=torch.long))
    with pytest.raises(ConfigError, match="needs cross-attention"):
        TextTransformer(replace(TOY, memory_width=None)).encode_grounded(IDS, None, IMAGES)
    with pytest.raises(ConfigError, match="pooler=True"):
        text.pool(text.encode(IDS))
    with pytest.raises(InputError, match="memory_mask must be None"):
        text.decode(IDS, None, text.project(IMAGES), torch.ones(2, 5))
