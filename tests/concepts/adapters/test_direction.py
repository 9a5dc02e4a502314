"""The optimizer of directions against its definition."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from personalar.concepts.adapters.direction import Direction

TARGET = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))


def start() -> torch.nn.Parameter:
    rows = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    return torch.nn.Parameter(rows * torch.tensor([[0.1], [1.0], [20.0]]))


def train(rows: torch.nn.Parameter, optimizer: Direction, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        (rows - TARGET).square().sum().backward()
        optimizer.step()


def test_norms_stay_and_each_step_turns_by_the_rate() -> None:
    rows = start()
    norms, optimizer = rows.detach().norm(dim=1), Direction([rows], lr=0.03)
    for _ in range(200):
        before = rows.detach().double()
        train(rows, optimizer, 1)
        cosines = F.cosine_similarity(before, rows.detach().double())
        assert torch.allclose(cosines.arccos(), torch.full((3,), 0.03).double(), atol=1e-5)
        assert torch.allclose(rows.norm(dim=1) / norms, torch.ones(3), atol=1e-6, rtol=0)


def test_a_step_is_down_the_gradient_of_the_direction() -> None:
    """The oracle differentiates the loss with respect to a unit vector, by autograd."""
    rows = start()
    norms = rows.detach().norm(dim=1, keepdim=True)
    unit = (rows.detach() / norms).requires_grad_()
    (norms * F.normalize(unit, dim=1) - TARGET).square().sum().backward()
    expected = math.cos(0.01) * unit.detach() - math.sin(0.01) * F.normalize(unit.grad, dim=1)
    train(rows, Direction([rows], lr=0.01), 1)
    assert torch.allclose(rows.detach() / norms, expected, atol=1e-6)


def test_the_pull_alone_ends_at_its_word_and_rows_without_it_stay() -> None:
    rows = start()
    before, word = rows.detach().clone(), F.normalize(TARGET[:1], dim=1)
    optimizer = Direction([rows], lr=0.01, pull=1e-4 * torch.tensor([[1.0], [1.0], [0.0]]) * word)
    for _ in range(400):
        rows.grad = torch.zeros_like(rows)
        optimizer.step()
    assert F.cosine_similarity(rows[:2].detach(), word).min() > 0.9999
    assert torch.equal(rows[2], before[2])


@pytest.mark.parametrize("done", [0, 3])
def test_a_resumed_optimizer_equals_an_uninterrupted_one(done: int) -> None:
    rows, whole = start(), start()
    first = Direction([rows], lr=0.1)
    train(rows, first, done)
    again = torch.nn.Parameter(rows.detach().clone())
    resumed = Direction([again], lr=0.1)
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    train(again, resumed, 7 - done)
    train(whole, Direction([whole], lr=0.1), 7)
    assert torch.equal(again, whole)
