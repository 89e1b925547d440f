"""Products by oneDNN: the values and gradients of PyTorch's own product, and only where they can be used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad

from openblip.model import layers, products
from openblip.model.layers import attend, project_columns
from openblip.model.products import has_onednn, multiply, uses_onednn

pytestmark = pytest.mark.skipif(not has_onednn(), reason="this build of PyTorch has no oneDNN")


@pytest.fixture(scope="module", autouse=True)
def always() -> Iterator[None]:
    """Use oneDNN on every processor, and for small weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "is_onednn_faster", lambda: True)
        patch.setattr(products, "_FEWEST_NUMBERS", 1)
        yield


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=0, max_size=3),
    width=st.integers(1, 40),
    out=st.integers(1, 40),
    has_bias=st.booleans(),
    transposed=st.booleans(),
)
def test_values_and_gradients(shape: list[int], width: int, out: int, has_bias: bool, transposed: bool) -> None:
    x = draw(width, *shape).movedim(0, -1) if transposed else draw(*shape, width)
    weight, bias = draw(out, width, seed=1), draw(out, seed=2) if has_bias else None
    assert uses_onednn(x, weight)
    found: list[Any] = []
    expected: list[Any] = []
    for results, function, dtype in ((found, multiply, torch.float32), (expected, F.linear, torch.float64)):
        inputs: list[Any] = [None if t is None else t.detach().to(dtype).requires_grad_() for t in (x, weight, bias)]
        output = function(*inputs)
        output.square().sum().backward()  # type: ignore[no-untyped-call]
        results += [output, *(None if t is None else t.grad for t in inputs)]
    for ours, reference in zip(found, expected, strict=True):
        if reference is not None:
            torch.testing.assert_close(ours.double(), reference, atol=2e-3, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(multiply(x, weight, bias), F.linear(x, weight, bias), atol=1e-4, rtol=1e-4)


def test_second_derivatives() -> None:
    x, weight = draw(3, 4).requires_grad_(), draw(5, 4, seed=1).requires_grad_()
    grads = []
    for function in (multiply, F.linear):
        (first,) = torch.autograd.grad(function(x, weight).pow(3).sum(), x, create_graph=True)
        grads.append(torch.autograd.grad(first.pow(2).sum(), [x, weight]))
    torch.testing.assert_close(grads[0], grads[1], atol=1e-3, rtol=1e-4)


def test_only_the_needed_gradients() -> None:
    x, weight, bias = draw(3, 4), draw(5, 4).requires_grad_(), draw(5)
    multiply(x, weight, bias).sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(multiply(x, weight.detach(), bias).sum(), x)
    torch.testing.assert_close(gradient, weight.detach().sum(0).expand(3, -1))
    bias.requires_grad_()
    (gradient,) = torch.autograd.grad(multiply(x.detach(), weight.detach(), bias).sum(), bias)
    torch.testing.assert_close(gradient, torch.full((5,), 3.0))


def test_inputs_that_no_gradient_needs_may_change() -> None:
    x, weight = draw(3, 4).requires_grad_().clone(), draw(5, 4)
    output = multiply(x, weight)
    x.add_(1)
    output.sum().backward()  # type: ignore[no-untyped-call]


def test_where_it_cannot_be_used() -> None:
    x, weight = draw(3, 4), draw(5, 4)
    assert not uses_onednn(x.bfloat16(), weight)
    assert not uses_onednn(x.double(), weight.double())
    assert not uses_onednn(x[:0], weight)
    assert not uses_onednn(x.to("meta"), weight.to("meta"))
    assert multiply(x[:0], weight).shape == (0, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert multiply(x, weight).dtype == torch.bfloat16
    each = torch.vmap(multiply, in_dims=(0, None))(x, weight)
    torch.testing.assert_close(each, F.linear(x, weight))
    jacobian = torch.func.jacrev(lambda w: multiply(x, w).sum(0))(weight)
    torch.testing.assert_close(jacobian[0, 0], x.sum(0))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))  # type: ignore[no-untyped-call]
        tangent = forward_ad.unpack_dual(multiply(dual, weight)).tangent  # type: ignore[no-untyped-call]
    torch.testing.assert_close(tangent, weight.sum(1).expand(3, -1))
    compiled = torch.compile(lambda x, weight: multiply(x, weight), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, weight), F.linear(x, weight))
    with torch.backends.mkldnn.flags(enabled=False):
        assert not uses_onednn(x, weight)
    traced = torch.jit.trace(multiply, (x, weight))  # type: ignore[no-untyped-call]
    assert "mkldnn" not in str(traced.graph)


def test_columns_of_keys() -> None:
    for bias in (True, False):
        linear = torch.nn.Linear(6, 8, bias=bias)
        states = draw(3, 5, 6)
        with torch.no_grad():
            keys = project_columns(linear, states, heads=2)
            assert keys.shape == (3, 2, 5, 4)
            assert keys.transpose(2, 3).is_contiguous()
            torch.testing.assert_close(keys, linear(states).view(3, 5, 2, 4).transpose(1, 2))


@pytest.mark.parametrize("items", [1, 3])
def test_attention_in_parts(monkeypatch: pytest.MonkeyPatch, items: int) -> None:
    """On AMD, bf16 uses two products, over so many images at once that their scores stay in memory."""
    query, key, value = (draw(3, 2, 4, 8, seed=seed).bfloat16() for seed in range(3))
    biases = [None, draw(4, 4, seed=3).bfloat16(), draw(1, 1, 1, 4, seed=3).bfloat16(), draw(3, 1, 4, 4, seed=4)]
    monkeypatch.setattr(layers, "is_amd_with_bf16", lambda: True)
    for bias in biases:
        with torch.no_grad():
            monkeypatch.setattr(layers, "_MOST_SCORES", 2 * 4 * 4 * items)
            found = attend(query, key, value, bias, 0.0, None)
            parts = [None if bias is None else bias.expand(3, 1, -1, 4)[i : i + 1] for i in range(3)]
            alone = [attend(query[i : i + 1], key[i : i + 1], value[i : i + 1], parts[i], 0.0, None) for i in range(3)]
            reference = F.scaled_dot_product_attention(
                query.float(), key.float(), value.float(), None if bias is None else bias.float()
            )
        assert torch.equal(found, torch.cat(alone))
        torch.testing.assert_close(found.float(), reference, atol=3e-2, rtol=3e-2)


def test_a_hidden_row_is_not_nan_in_mixed_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lowest float32 number, which hides a token, is minus infinity in bf16."""
    monkeypatch.setattr(layers, "is_amd_with_bf16", lambda: True)
    query, key, value = (draw(2, 2, 3, 8, seed=seed).bfloat16() for seed in range(3))
    with torch.no_grad():
        output = attend(query, key, value, layers.padding_bias(torch.zeros(2, 3), torch.float32), 0.0, None)
    torch.testing.assert_close(
        output.float(), value.float().mean(2, keepdim=True).expand_as(output), atol=1e-2, rtol=1e-2
    )


def test_attention_without_queries_or_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "is_amd_with_bf16", lambda: True)
    value = draw(2, 2, 3, 8).bfloat16()
    with torch.no_grad():
        assert attend(value[:, :, :0], value, value, None, 0.0, None).shape == (2, 2, 0, 8)
        assert attend(value[:0], value[:0], value[:0], None, 0.0, None).shape == (0, 2, 3, 8)
