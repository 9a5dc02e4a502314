"""Products with weights: equal to PyTorch's own, gradients too, whatever way the weight lies in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from conftest_backend import make_backend
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from personalar.models import linear as module
from personalar.models.linear import Linear, lay_columns, lay_rows, linear

FEW_ROWS = module.FEW_ROWS


@pytest.fixture(autouse=True, scope="module", params=["avx512", "avx2", "intel"])
def onednn(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Every kind of processor, whatever this one is: whether oneDNN is taken."""
    taken = request.param == "avx512"
    if taken and not module._has_onednn():
        pytest.skip("oneDNN on an x86 CPU")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_TAKES_ONEDNN", taken)
        patch.setattr(module, "TURNED_ROWS", range(2, 7) if request.param == "avx2" else range(0))
        yield taken


def columns(weight: Tensor) -> Tensor:
    return weight.t().contiguous().t()


@contextmanager
def without_onednn() -> Iterator[None]:
    torch.backends.mkldnn.set_flags(False)
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(True)


def close(a: Tensor, b: Tensor) -> bool:
    largest = b.abs().max().item() if b.numel() else 1.0
    return torch.allclose(a, b, rtol=1e-5, atol=1e-5 * max(1.0, largest))  # sums cancel


@settings(max_examples=60, deadline=None)
@given(
    lead=st.lists(st.integers(1, 9), min_size=0, max_size=3),
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    by_columns=st.booleans(),
    learns=st.sampled_from(["both", "weight", "input"]),
)
def test_equals_pytorch(lead: list[int], sizes: tuple[int, int], by_columns: bool, learns: str) -> None:
    generator = torch.Generator().manual_seed(sum(lead) + sizes[0])
    x = torch.randn(*lead, sizes[0], generator=generator)
    weight = torch.randn(sizes[1], sizes[0], generator=generator)
    weight = columns(weight) if by_columns else weight
    x.requires_grad_(learns != "weight")
    weight.requires_grad_(learns != "input")
    ours, theirs = linear(x, weight), F.linear(x, weight)
    assert close(ours, theirs)
    back = torch.randn(ours.shape, generator=generator)
    wanted = [tensor for tensor in (x, weight) if tensor.requires_grad]
    for a, b in zip(
        torch.autograd.grad(ours, wanted, back), torch.autograd.grad(theirs, wanted, back), strict=True
    ):
        assert close(a, b)
    with torch.no_grad():
        turned = x.ndim == 2 and len(x) in module.TURNED_ROWS  # sums in another order
        assert (close if turned else torch.equal)(linear(x, weight), ours)


def test_who_takes_which_library(monkeypatch: pytest.MonkeyPatch, onednn: bool) -> None:
    calls: list[tuple[int, ...]] = []
    product = module._product
    monkeypatch.setattr(module, "_product", lambda x, w: calls.append(tuple(x.shape)) or product(x, w))
    weight = torch.randn(8, 8)
    linear(torch.randn(FEW_ROWS, 8), weight)
    assert calls == ([(FEW_ROWS, 8)] if onednn else [])
    linear(torch.randn(FEW_ROWS - 1, 8), weight)  # too few rows
    linear(torch.randn(9, 8, dtype=torch.float64), weight.double())
    linear(torch.randn(9, 8), columns(torch.randn(20, 8))[3:9])  # rows cut out of columns
    with without_onednn():
        linear(torch.randn(9, 8), weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(torch.randn(9, 8), weight).dtype == torch.bfloat16
    linear(torch.randn(0, 8), weight)
    assert len(calls) == onednn


def test_a_few_rows_are_multiplied_from_the_right(monkeypatch: pytest.MonkeyPatch) -> None:
    sides: list[tuple[int, ...]] = []
    product = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b: sides.append(tuple(a.shape)) or product(a, b))
    weight = torch.randn(6, 8)
    with torch.no_grad():
        for rows in range(1, 9):
            linear(torch.randn(rows, 8), weight)
        linear(torch.randn(2, 1, 8), weight)
    assert sides == [(6, 8)] * len(module.TURNED_ROWS)
    linear(torch.randn(2, 8, requires_grad=True), weight).sum().backward()
    assert len(sides) == len(module.TURNED_ROWS)


@pytest.mark.skipif(not module._has_onednn(), reason="oneDNN on an x86 CPU")
def test_a_frozen_weight_keeps_no_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TAKES_ONEDNN", True)
    x, weight = torch.randn(9, 5, requires_grad=True), torch.randn(4, 5)
    kept = [tensor for tensor in linear(x, weight).grad_fn.saved_tensors if tensor is not None]
    assert [tuple(tensor.shape) for tensor in kept] == [(4, 5)]


def test_without_onednn_weights_stay_as_they_lie(onednn: bool) -> None:
    layer = Linear(6, 4)
    lay_columns(layer)
    assert layer.weight.is_contiguous() != onednn


@pytest.mark.skipif(not module._has_onednn(), reason="oneDNN on an x86 CPU")
def test_columns_change_nothing_but_where_numbers_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TAKES_ONEDNN", True)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ours, self.other = Linear(6, 4), nn.Linear(6, 4)

    network = Two()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    lay_columns(network)
    assert network.ours.weight.t().is_contiguous() and network.other.weight.is_contiguous()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    optimizer = torch.optim.AdamW(network.parameters(), fused=True, lr=0.1)
    network.ours(torch.randn(9, 6)).sum().backward()
    assert network.ours.weight.grad.stride() == network.ours.weight.stride()
    optimizer.step()
    assert network.ours.weight.t().is_contiguous()
    lay_rows(network)
    assert network.ours.weight.is_contiguous()
    half = Linear(6, 4).bfloat16()
    lay_columns(half)
    assert half.weight.is_contiguous()


def test_fused_adamw_does_not_mind_columns() -> None:
    start, gradient = torch.randn(7, 5), torch.randn(7, 5)
    rows, laid = nn.Parameter(start.clone()), nn.Parameter(columns(start))
    for parameter in (rows, laid):
        optimizer = torch.optim.AdamW([parameter], fused=True, lr=0.1)
        for _ in range(3):
            parameter.grad = gradient.clone() if parameter is rows else columns(gradient)
            optimizer.step()
    assert torch.allclose(rows, laid, atol=1e-6)


def test_a_base_computes_the_same_by_either_library() -> None:
    backend = make_backend()
    ids = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(0))
    hidden = backend.forward(backend.embed(ids))
    with without_onednn():
        assert torch.allclose(backend.forward(backend.embed(ids)), hidden, atol=1e-4)
