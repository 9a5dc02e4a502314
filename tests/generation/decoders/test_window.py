"""Speculative decoding on every layout: without newlines, and with more between the rows.

The window takes its places from the layout's own table. Each test counts forwards, so that a decoder that
does not move on fails and does not hang.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

import pytest
import torch
from naive import NaiveDecoder
from test_jacobi import SHAPES, in_batches
from test_sampling import TEXTS, prompts

from personalar.generation.decoders import jacobi
from personalar.generation.decoders.jacobi import JacobiDecoder
from personalar.generation.decoders.plain import PlainDecoder
from personalar.models.chameleon.backend import ChameleonBackend

WINDOWS = (2, 4, 8, 16)
SEEDS = [3, -1, 7]
Grammar = Callable[[int, int], list[int | None]]


@pytest.fixture(autouse=True)
def every_pass_moves_on(tiny_backend: ChameleonBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a decoder has more passes than the image has codes."""
    passes = jacobi.Window.passes

    def counted(self: jacobi.Window, identifier: object) -> Sequence[int]:
        most = self.codes.numel()
        finals = list(islice(passes(self, identifier), most + 1))
        assert len(finals) <= most, "more passes than codes"
        return finals

    monkeypatch.setattr(jacobi.Window, "passes", counted)


def flat_rows(h: int, w: int) -> list[int | None]:
    """No newline at all, of any size."""
    return [69, *[None] * (h * w), 68]


def long_ends(h: int, w: int) -> list[int | None]:
    """Two ids after each row, the last one too, and two after the image; id 0 among them."""
    return [69, 90, *([None] * w + [0, 71]) * h, 68, 70]


def uneven(h: int, w: int) -> list[int | None]:
    """Forced ids where no row ends."""
    body = [token for code in range(h * w) for token in ([None, 71] if code % 3 == 1 else [None])]
    return [69, *body, 68]


@pytest.mark.parametrize("size", WINDOWS)
@pytest.mark.parametrize("grammar", [flat_rows, long_ends, uneven])
def test_prompts_mix_in_every_layout_and_size(
    tiny_backend: ChameleonBackend, monkeypatch: pytest.MonkeyPatch, grammar: Grammar, size: int
) -> None:
    monkeypatch.setattr(tiny_backend, "grammar", grammar)
    ids = prompts(tiny_backend, *TEXTS)
    for grid, max_batch in zip(SHAPES, (1, 2, 3), strict=True):
        plain = PlainDecoder(cfg_scale=2.0)(tiny_backend, ids, grid, SEEDS)
        assert torch.equal(NaiveDecoder(cfg_scale=2.0)(tiny_backend, ids, grid, SEEDS), plain)
        decoder = JacobiDecoder(window=size, cfg_scale=2.0, max_batch=max_batch)
        assert torch.equal(in_batches(decoder, tiny_backend, ids, grid, SEEDS), plain), max_batch
