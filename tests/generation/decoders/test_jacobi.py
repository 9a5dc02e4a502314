"""Speculative decoding: the same images as plain, in fewer forwards, and faults that must show."""

from __future__ import annotations

import pytest
import torch
from test_sampling import GRID, SETTINGS, TEXTS, prompts
from torch import Tensor

from personalar.generation.decoders import jacobi
from personalar.generation.decoders.jacobi import JacobiDecoder
from personalar.generation.decoders.plain import PlainDecoder
from personalar.models.chameleon.backend import ChameleonBackend

SHAPES = [(4, 4), (2, 6), (6, 2)]


def in_batches(
    decoder: JacobiDecoder,
    backend: ChameleonBackend,
    ids: list[list[int]],
    grid: tuple[int, int],
    seeds: list[int],
) -> Tensor:
    """Decode in batches of `max_batch` images; a larger one would be decoded plainly."""
    starts = range(0, len(ids), decoder.max_batch)
    parts = [slice(start, start + decoder.max_batch) for start in starts]
    return torch.cat([decoder(backend, ids[part], grid, seeds[part]) for part in parts])


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("size", [2, 5, 16, 40])
def test_gumbel_equals_plain_token_for_token(
    tiny_backend: ChameleonBackend, settings: dict[str, float], size: int
) -> None:
    ids, seeds = prompts(tiny_backend, *TEXTS), [3, -1, 7]
    for grid, max_batch in zip(SHAPES, (1, 2, 3), strict=True):
        plain = PlainDecoder(**settings)(tiny_backend, ids, grid, seeds)
        decoder = JacobiDecoder(window=size, max_batch=max_batch, **settings)
        assert torch.equal(in_batches(decoder, tiny_backend, ids, grid, seeds), plain)


def count_forwards(backend: ChameleonBackend, patch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    shapes: list[tuple[int, int]] = []
    forward = backend.transformer.forward
    patch.setattr(
        backend.transformer,
        "forward",
        lambda embeds, *a, **k: shapes.append(tuple(embeds.shape[:2])) or forward(embeds, *a, **k),
    )
    return shapes


def test_a_large_batch_is_decoded_plainly(
    tiny_backend: ChameleonBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = count_forwards(tiny_backend, monkeypatch)
    ids = prompts(tiny_backend, *TEXTS[:2])
    with pytest.warns(UserWarning, match=r"batch of 2 images, more than decoder\.max_batch=1: falling back"):
        JacobiDecoder(max_batch=1)(tiny_backend, ids, GRID, [1, 2])
    assert len(shapes) == 16 and {rows for rows, _ in shapes} == {2}


def test_agreeing_drafts_save_forwards(
    tiny_backend: ChameleonBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taking the best code of a model that repeats itself: every window is final at once."""
    shapes = count_forwards(tiny_backend, monkeypatch)
    monkeypatch.setattr(
        tiny_backend,
        "image_logits",
        lambda hidden: torch.eye(64)[5].expand(*hidden.shape[:-1], 64),
    )
    codes = JacobiDecoder(window=6, temperature=0.0)(tiny_backend, prompts(tiny_backend, TEXTS[0]), GRID, [1])
    assert (codes == 5).all()
    assert len(shapes) == 4  # the first drafts are all 0: 1 code; then 15 codes, 6 a pass
    assert [width for _, width in shapes[1:]] == [7, 8, 3]  # newlines ride along


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (3, [30, 10, 20, 30]),  # codes 3..6 of rows of four: 10 20 30 | . . . .
        (4, [40, 10, 20, 30]),  # code 3 is known now: its draft is not asked for
        (0, [10, 10, 10, 10]),  # no code has a value yet: all drafts are the first, whatever it is
    ],
)
def test_first_drafts_copy_the_code_above(known: int, expected: list[int]) -> None:
    codes = torch.tensor([[10, 20, 30, 40, 50, 60, 70, 80]])
    index = torch.tensor([[3, 4, 5, 6]])
    drafts = jacobi.first_drafts(codes, torch.tensor([known]), index, 4)
    asked = index[0] >= known
    assert drafts[0][asked].tolist() == torch.tensor(expected)[asked].tolist()


def test_the_noise_is_computed_in_parts(
    tiny_backend: ChameleonBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several tensors of its size are needed for it, and all of an image's is the largest there is."""
    noise, at_once = jacobi.gumbel_noise, []
    monkeypatch.setattr(
        jacobi, "gumbel_noise", lambda seeds, at, k: at_once.append(at.numel()) or noise(seeds, at, k)
    )
    JacobiDecoder()(tiny_backend, prompts(tiny_backend, TEXTS[0]), (6, 6), [1])
    assert sum(at_once) == 37 and max(at_once) <= 16


@pytest.mark.parametrize("fault", ["noise of another position", "too many final"])
def test_planted_faults_of_gumbel_are_caught(
    tiny_backend: ChameleonBackend, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    if fault == "too many final":
        count = jacobi.count_final
        monkeypatch.setattr(jacobi, "count_final", lambda *a: (count(*a) + 1).clamp_max(a[0].shape[1]))
    else:
        noise = jacobi.gumbel_noise
        monkeypatch.setattr(jacobi, "gumbel_noise", lambda seeds, at, k: noise(seeds, at.flip(-1), k))
    ids = prompts(tiny_backend, TEXTS[0])
    plain = PlainDecoder()(tiny_backend, ids, GRID, [1])
    assert not torch.equal(JacobiDecoder(window=6)(tiny_backend, ids, GRID, [1]), plain)
