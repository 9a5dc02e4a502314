"""The norm on a CPU: equal to PyTorch's own, its gradient too."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from personalar.models.norm import rms_norm


@settings(max_examples=60, deadline=None)
@given(
    lead=st.lists(st.integers(1, 7), min_size=0, max_size=3),
    size=st.integers(1, 300),
    scale=st.sampled_from([0.0, 1e-6, 1e-2, 1.0, 1e4]),
    eps=st.sampled_from([1e-6, 1e-5, 1e-2]),
)
def test_equals_pytorch(lead: list[int], size: int, scale: float, eps: float) -> None:
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(*lead, size, generator=generator) * scale
    x.requires_grad_()
    gradient = torch.randn(x.shape, generator=generator)
    ours, theirs = rms_norm(x, eps), F.rms_norm(x, (size,), eps=eps)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(rms_norm(x, eps), ours)
    mine, other = (torch.autograd.grad(y, x, gradient)[0] for y in (ours, theirs))
    largest = (gradient * (x.detach().square().mean(-1, keepdim=True) + eps).rsqrt()).abs().max().item()
    assert torch.allclose(mine, other, rtol=1e-4, atol=1e-5 * largest)  # what lies along x cancels


@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_gradient_is_that_of_the_formula(eps: float) -> None:
    x = torch.randn(3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda y: rms_norm(y, eps), x.requires_grad_())
