"""Speculative decoding on every layout: with newlines, without, and with more between the rows.

The window takes its places from the layout's own table. Each test counts forwards, so that a decoder that
does not move on fails and does not hang.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

import pytest
import torch
from conftest_backend import GRID_PX, IMAGE_PX
from conftest_upstream import ANOLE, lumina_backend
from naive import NaiveDecoder
from test_jacobi import SHAPES, count_forwards, in_batches
from test_sampling import GRID, TEXTS, prompts

from personalar.config.model_config import ProtocolConfig
from personalar.generation.decoders import window
from personalar.generation.decoders.jacobi import JacobiDecoder
from personalar.generation.decoders.plain import PlainDecoder
from personalar.models.chameleon.backend import ChameleonBackend

WINDOWS = (2, 4, 8, 16)
SEEDS = [3, -1, 7]
FLAT = ProtocolConfig(
    grid_px=GRID_PX, resolution=IMAGE_PX, buckets="square", structure="flat", unconditional="bos",
    prompt_template="{prompt}",
)  # fmt: skip
Grammar = Callable[[int, int], list[int | None]]


def relaid(backend: ChameleonBackend, layout: ProtocolConfig) -> ChameleonBackend:
    """Return the networks of `backend` with another layout."""
    parts = {"transformer": backend.transformer, "vq": backend.vq, "tokenizer": backend.tokenizer}
    return ChameleonBackend(**parts, protocol=layout).eval()


@pytest.fixture
def flat(tiny_backend: ChameleonBackend) -> ChameleonBackend:
    """The tiny model with the layout of Anole and Chameleon."""
    return relaid(tiny_backend, FLAT)


@pytest.fixture(autouse=True)
def every_pass_moves_on(tiny_backend: ChameleonBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a decoder has more passes than the image has codes."""
    passes = window.Window.passes

    def counted(self: window.Window, identifier: object) -> Sequence[int]:
        most = self.codes.numel()
        finals = list(islice(passes(self, identifier), most + 1))
        assert len(finals) <= most, "more passes than codes"
        return finals

    monkeypatch.setattr(window.Window, "passes", counted)


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
@pytest.mark.parametrize("settings", [{}, {"cfg_scale": 3.0, "top_k": 20}])
def test_flat_images_are_plains(flat: ChameleonBackend, size: int, settings: dict[str, float]) -> None:
    ids = prompts(flat, *TEXTS)
    assert len(set(map(len, ids))) == len(ids)  # of three lengths
    plain = PlainDecoder(**settings)(flat, ids, GRID, SEEDS)
    assert torch.equal(NaiveDecoder(**settings)(flat, ids, GRID, SEEDS), plain)
    for max_batch in (1, 2, 3):
        decoder = JacobiDecoder(window=size, max_batch=max_batch, **settings)
        assert torch.equal(in_batches(decoder, flat, ids, GRID, SEEDS), plain), max_batch


@pytest.mark.parametrize("size", WINDOWS)
def test_the_real_vocabulary_with_anoles_layout(size: int) -> None:
    backend = relaid(lumina_backend(), ANOLE)
    ids = [backend.protocol.prompt_ids(text, 64, 64) for text in ("a red cat", "a blue dog in the snow")]
    plain = PlainDecoder(cfg_scale=2.0)(backend, ids, (4, 4), [1, 2])
    for max_batch in (1, 2):
        decoder = JacobiDecoder(window=size, cfg_scale=2.0, max_batch=max_batch)
        assert torch.equal(in_batches(decoder, backend, ids, (4, 4), [1, 2]), plain)


@pytest.mark.parametrize("size", WINDOWS)
@pytest.mark.parametrize("grammar", [None, flat_rows, long_ends, uneven])
def test_prompts_mix_in_every_layout_and_size(
    tiny_backend: ChameleonBackend, monkeypatch: pytest.MonkeyPatch, grammar: Grammar | None, size: int
) -> None:
    """`None` is Lumina's own layout."""
    if grammar is not None:
        monkeypatch.setattr(tiny_backend.protocol, "grammar", grammar)
    ids = prompts(tiny_backend, *TEXTS)
    for grid, max_batch in zip(SHAPES, (1, 2, 3), strict=True):
        plain = PlainDecoder(cfg_scale=2.0)(tiny_backend, ids, grid, SEEDS)
        assert torch.equal(NaiveDecoder(cfg_scale=2.0)(tiny_backend, ids, grid, SEEDS), plain)
        decoder = JacobiDecoder(window=size, cfg_scale=2.0, max_batch=max_batch)
        assert torch.equal(in_batches(decoder, tiny_backend, ids, grid, SEEDS), plain), max_batch


@pytest.mark.parametrize(
    ("size", "expected"), [(2, (10, 57)), (4, (11, 77)), (8, (11, 101)), (16, (11, 110))]
)
def test_luminas_layout_takes_as_many_forwards_as_before(
    tiny_backend: ChameleonBackend, monkeypatch: pytest.MonkeyPatch, size: int, expected: tuple[int, int]
) -> None:
    """A change of these numbers is a change of the drafts."""
    shapes = count_forwards(tiny_backend, monkeypatch)
    decoder = JacobiDecoder(window=size, temperature=0.3, max_batch=3)
    decoder(tiny_backend, prompts(tiny_backend, *TEXTS), (2, 6), SEEDS)
    assert (len(shapes), sum(width for _, width in shapes)) == expected


@pytest.mark.parametrize("size", [1, 2, 5, 40])
def test_a_window_holds_its_codes_and_what_stands_between_them(size: int) -> None:
    for grammar in (flat_rows, long_ends, uneven):
        body = grammar(3, 4)
        body = body[body.index(None) : len(body) - body[::-1].index(None)]
        codes = [token for token, forced in enumerate(body) if forced is None]
        for first in (0, *(code + 1 for code in codes)):
            ahead = body[first:]
            wanted = [
                n for n in range(1, len(ahead) + 1) if ahead[:n].count(None) == min(size, ahead.count(None))
            ]
            assert window.span(codes, first, size) == min(wanted, default=0)
