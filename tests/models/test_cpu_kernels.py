"""Matrix products with oneDNN equal those of `F.linear`, with their gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from personalar.models.cpu_kernels import OneDNNLinear

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"),
    reason="this PyTorch was built without oneDNN",
)


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 9])
@pytest.mark.parametrize("trains", [False, True])
def test_products_and_gradients_are_those_of_linear(rows: int, trains: bool) -> None:
    torch.manual_seed(0)
    module = OneDNNLinear(24, 40, bias=False).requires_grad_(trains)
    x, goal = torch.randn(2, rows, 24, requires_grad=True), torch.randn(2, rows, 40)
    found, expected = module(x), F.linear(x, module.weight)
    torch.testing.assert_close(found, expected)
    inputs = [x, module.weight] if trains else [x]
    ours, theirs = (torch.autograd.grad((y * goal).sum(), inputs) for y in (found, expected))
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two)
    with torch.no_grad():
        assert torch.equal(module(x), found)


def test_a_second_derivative_is_an_error_and_not_zero() -> None:
    module, x = OneDNNLinear(8, 8, bias=False), torch.randn(2, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (module(x).sum() + gradient.square().sum()).backward()


def test_other_types_use_linear() -> None:
    module = OneDNNLinear(8, 8, bias=False).bfloat16()
    x = torch.randn(2, 8).bfloat16()
    assert torch.equal(module(x), F.linear(x, module.weight))
