"""The cache laid out by tables: empty slots, slots given as a tensor, rows at places of their own."""

from __future__ import annotations

import pytest
import torch
from conftest_backend import make_backend

TOKENS = 9


@pytest.fixture(scope="module")
def backend():
    return make_backend(num_key_value_heads=1)


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(0, 60, (2, TOKENS), generator=torch.Generator().manual_seed(0))


def test_empty_slots_change_nothing(backend, ids: torch.Tensor) -> None:
    """Row 0 has empty slots at the start and in the middle, row 1 at the end."""
    whole = backend(backend.embed(ids))
    positions = torch.tensor([[-1, 0, 1, 2, -1, 3, 4, 5, 6, 7, 8], [0, 1, 2, 3, 4, 5, 6, 7, 8, -1, -1]])
    fed = torch.where(positions < 0, 7, ids.gather(1, positions.clamp_min(0)))
    cache = backend.new_cache(positions)
    for _ in range(2):  # laid out again, it starts afresh, with the same tensors
        before = cache.cos.data_ptr()
        cache.place(positions)
        assert cache.cos.data_ptr() == before
        parts = [
            backend(backend.embed(fed[:, a:b]), cache=cache.at(torch.arange(a, b), b))
            for a, b in ((0, 4), (4, 5), (5, 7), (7, 11))
        ]
        out = torch.cat(parts, dim=1)
        for row in range(2):
            real = positions[row] >= 0
            torch.testing.assert_close(out[row, real], whole[row], atol=1e-4, rtol=1e-4)


def test_slots_as_a_tensor_equal_slots_in_order(backend, ids: torch.Tensor) -> None:
    whole = backend(backend.embed(ids))
    cache = backend.new_cache(torch.arange(16).expand(2, -1))
    backend(backend.embed(ids[:, :4]), cache=cache.at(torch.arange(4), 4))
    out = backend(backend.embed(ids[:, 4:7]), cache=cache.at(torch.arange(4, 7), 7))
    torch.testing.assert_close(out, whole[:, 4:7], atol=1e-4, rtol=1e-4)
    longer = backend(
        backend.embed(ids[:, 4:7]), cache=cache.at(torch.arange(4, 7), 16)
    )  # unwritten slots too
    torch.testing.assert_close(longer, whole[:, 4:7], atol=1e-4, rtol=1e-4)


def test_rows_write_where_they_are(backend, ids: torch.Tensor) -> None:
    """Row 0 goes on at token 3, row 1 at token 6; a wrong token that was written before does no harm."""
    whole = backend(backend.embed(ids))
    cache = backend.new_cache(torch.arange(12).expand(2, -1))
    wrong = ids.clone()
    wrong[0, 3:] = 5
    backend(backend.embed(wrong[:, :6]), cache=cache.at(torch.arange(6), 6))
    slots = torch.tensor([[3, 4, 5], [6, 7, 8]])
    out = backend(backend.embed(ids.gather(1, slots)), cache=cache.at(slots, 9))
    expected = whole[torch.arange(2)[:, None], slots]
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)
