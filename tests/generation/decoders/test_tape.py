"""The tape that stands for a captured graph: it repeats what a graph would, and misses what a graph would."""

from __future__ import annotations

import pytest
import torch
from tape import Tape
from torch import Tensor


def test_it_repeats_on_the_same_memory_with_what_stands_there_now() -> None:
    given, total, kept = torch.ones(3), torch.zeros(3), torch.zeros(3)
    with Tape() as tape:
        doubled = given * 2
        doubled[1:].add_(1)  # through a view
        total.add_(doubled)
        kept.copy_(doubled.view(3, 1)[:, 0])
    assert total.tolist() == [2, 3, 3]
    given.fill_(10)
    tape.replay()
    assert total.tolist() == [22, 24, 24] and kept.tolist() == [20, 21, 21]


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x + torch.tensor([1.0, 2.0]),  # a copy of what the host has not pinned
    ],
)
def test_host_and_device_do_not_wait_for_each_other(wait: object) -> None:
    given = torch.ones(2)
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"), Tape():
        wait(given)  # type: ignore[operator]


def read_before(cell: list[Tensor]) -> None:
    """Use what the call before left behind, as a step must not."""
    cell.append((cell[-1] if cell else torch.zeros(2)) + 1)


def test_a_step_that_leans_on_the_one_before_is_seen() -> None:
    cell: list[Tensor] = []
    with Tape():
        read_before(cell)
    with Tape():
        read_before(cell)
    out = torch.zeros(2)
    with Tape() as tape:
        out.copy_(cell[-1])
    tape.replay()
    assert out.isnan().all()
