"""The one attention of the house, by whichever kernel, against the formula in double precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.model.layers import _SHORT, attend, causal_bias, padding_bias

# Queries and keys: short ones are computed openly when a CPU trains, long ones by the fused kernel.
LENGTHS = [(1, 1), (7, 7), (3, 40), (1, 20_000), (128, 128), (128, 129)]


def plain(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(q k / sqrt(K) + bias) v, row by row, in double precision."""
    query, key, value = (tensor.double() for tensor in (query, key, value))
    rows = []
    for b in range(query.shape[0]):
        heads = []
        for h in range(query.shape[1]):
            scores = query[b, h] @ key[b, h].T / query.shape[-1] ** 0.5
            if bias is not None:
                own = bias[b % len(bias), 0].double()
                scores = torch.where(own < -1e30, -torch.inf, scores + own)
            weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
            heads.append(weights @ value[b, h])
        rows.append(torch.stack(heads))
    return torch.stack(rows)


def drawn(queries: int, keys: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(2, 2, length, 8, generator=generator) for length in (queries, keys, keys))
    return query, key, value


@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
@pytest.mark.parametrize("training", [False, True])
def test_it_is_the_formula(queries: int, keys: int, training: bool) -> None:
    mask = torch.ones(2, keys, dtype=torch.long)
    mask[1, keys // 2 + 1 :] = 0
    bias = padding_bias(mask, torch.float32)
    query, key, value = (tensor.requires_grad_(training) for tensor in drawn(queries, keys))
    expected = plain(query.detach(), key.detach(), value.detach(), bias)
    mixed = attend(query, key, value, bias, 0.0, None)
    torch.testing.assert_close(mixed.double(), expected, atol=1e-6, rtol=1e-5)
    weights: list[Tensor] = []
    torch.testing.assert_close(attend(query, key, value, bias, 0.0, weights), mixed, atol=1e-6, rtol=1e-5)
    assert len(weights) == 1
    assert weights[0].shape == (2, 2, queries, keys)


@pytest.mark.parametrize("length", [9, 129])  # either side of the bound between the two ways to train
def test_gradients_are_those_of_the_formula(length: int) -> None:
    assert (length * length <= _SHORT) is (length == 9)
    bias = causal_bias(length, torch.float32, torch.device("cpu"))
    ours = [tensor.requires_grad_() for tensor in drawn(length, length)]
    theirs = [tensor.detach().double().requires_grad_() for tensor in ours]
    wanted = torch.randn(2, 2, length, 8)
    loss = (attend(ours[0], ours[1], ours[2], bias, 0.0, None) * wanted).sum()
    expected = (plain(theirs[0], theirs[1], theirs[2], bias) * wanted.double()).sum()
    actual, right = torch.autograd.grad(loss, ours), torch.autograd.grad(expected, theirs)
    for item, other in zip(actual, right, strict=True):
        torch.testing.assert_close(item.double(), other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("length", [6, 150])  # a text, and more tokens than the limit of fp32
def test_a_row_trains_in_bfloat16_under_autocast(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast hands bf16 projections over; the products stay in that precision and near the formula."""
    ours = [tensor.bfloat16().requires_grad_() for tensor in drawn(length, length)]
    theirs = [tensor.detach().double().requires_grad_() for tensor in ours]
    wanted = torch.randn(2, 2, length, 8)
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)  # the fused kernel would take 3 times as long
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = attend(ours[0], ours[1], ours[2], None, 0.0, None)
    assert mixed.dtype == torch.bfloat16
    expected = plain(theirs[0], theirs[1], theirs[2], None)
    torch.testing.assert_close(mixed.double(), expected, atol=0.03, rtol=0.03)
    actual = torch.autograd.grad((mixed * wanted).sum(), ours)
    right = torch.autograd.grad((expected * wanted.double()).sum(), theirs)
    for item, other in zip(actual, right, strict=True):
        assert F.cosine_similarity(item.double().flatten(), other.flatten(), dim=0) > 0.999


@torch.no_grad()
@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
def test_keys_and_values_in_bfloat16_serve_float32_queries(queries: int, keys: int) -> None:
    query, key, value = drawn(queries, keys)
    key, value = key.bfloat16(), value.bfloat16()
    mask = torch.ones(2, keys, dtype=torch.long)
    mask[1, keys // 2 + 1 :] = 0
    bias = padding_bias(mask, torch.float32)
    mixed = attend(query, key, value, bias, 0.0, None)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed.double(), plain(query, key, value, bias), atol=0.03, rtol=0.03)


def test_dropout_in_training_keeps_the_mean() -> None:
    query, key, value = (tensor.requires_grad_() for tensor in drawn(4, 4))
    torch.manual_seed(0)
    each = torch.stack([attend(query, key, value, None, 0.3, None) for _ in range(1000)])
    assert each.std(0).min() > 0
    torch.testing.assert_close(each.mean(0), attend(query, key, value, None, 0.0, None), atol=0.12, rtol=0.1)
