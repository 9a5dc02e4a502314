"""Speculative decoding: the same images as plain, in fewer forwards, and faults that must show.

Losslessness is tested on a toy whose distribution over whole images is known exactly: the next code depends
on the two tokens before it and on whether there is a prompt, so drafts are often wrong.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch
from conftest_backend import make_backend
from test_sampling import GRID, SETTINGS, TEXTS, Rows, prompts
from torch import Tensor

from personalar.generation.decoders import window
from personalar.generation.decoders.jacobi import JacobiDecoder
from personalar.generation.decoders.plain import PlainDecoder
from personalar.generation.sampling import Sampling
from personalar.models.chameleon.backend import ChameleonBackend
from personalar.models.network.cache import KVCache

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


def test_gumbel_equals_plain_for_other_architectures() -> None:
    backend = make_backend(7, num_key_value_heads=1)
    ids = prompts(backend, *TEXTS[:2])
    plain = PlainDecoder(cfg_scale=3.0)(backend, ids, (2, 6), [1, 2])
    for max_batch in (1, 2):
        decoder = JacobiDecoder(cfg_scale=3.0, max_batch=max_batch)
        assert torch.equal(in_batches(decoder, backend, ids, (2, 6), [1, 2]), plain)


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


def test_progress_counts_final_codes(tiny_backend: ChameleonBackend) -> None:
    calls: list[tuple[int, int]] = []
    JacobiDecoder(max_batch=2)(
        tiny_backend,
        prompts(tiny_backend, *TEXTS[:2]),
        GRID,
        [1, 2],
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls[-1] == (32, 32) and calls == sorted(calls) and len(set(calls)) > 2


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
    drafts = window.first_drafts(codes, torch.tensor([known]), index, 4)
    asked = index[0] >= known
    assert drafts[0][asked].tolist() == torch.tensor(expected)[asked].tolist()


# Losslessness on a toy whose distribution is known

CODES, TOY_GRID = 3, (2, 3)
NEWLINE, BOI, EOI, PROMPT = CODES, CODES + 1, CODES + 2, CODES + 3


class Toy:
    """A backend whose next code depends on the two tokens before it, and on the prompt."""

    device = torch.device("cpu")
    code_offset = 0

    def __init__(self, spread: float) -> None:
        generator = torch.Generator().manual_seed(5)
        shape = (2, CODES + 4, CODES + 4, CODES)  # prompt or not, token before, token, next code
        self.table = torch.randn(shape, generator=generator) * spread

    def unconditional_prompt(self, prompt: list[int]) -> list[int]:
        return []

    def grammar(self, h: int, w: int) -> list[int | None]:
        return [BOI, *([None] * w + [NEWLINE]) * h, EOI]

    def new_cache(self, positions: Tensor) -> KVCache:
        rows, slots = positions.shape
        table, factors = torch.zeros(rows, 1, slots, 1), torch.zeros(slots, 1)
        return KVCache(keys=[table], values=[table.clone()], cos=factors, sin=factors, positions=positions)

    def embed(self, ids: Tensor) -> Tensor:
        return ids[..., None].float()

    def forward(self, embeds: Tensor, cache: KVCache, ids: Tensor | None = None) -> Tensor:
        num_tokens = embeds.shape[1]
        mask = cache.mask(num_tokens)[:, 0].expand(-1, num_tokens, -1)  # (R, T, end)
        stored, _ = cache.store(0, num_tokens).write(embeds[:, None], embeds[:, None])
        cache.advance(num_tokens)
        slots = torch.where(mask == 0, torch.arange(mask.shape[-1]), -1).amax(-1)  # where each token lies
        seen = stored[:, 0, :, 0]
        before = seen.gather(1, (slots - 1).clamp_min(0))
        return torch.stack((seen[:, :1].expand_as(before), before, seen.gather(1, slots)), dim=-1)

    def image_logits(self, hidden: Tensor) -> Tensor:
        if hidden.shape[-1] == 1:  # only the number of codes is asked for
            return hidden.expand(*hidden.shape[:-1], CODES)
        first, before, last = hidden.long().unbind(-1)
        return self.table[(first == PROMPT).long(), before, last]

    def exact(self, sampling: Sampling) -> Tensor:
        """Return the probability of every image, (CODES ** 6,)."""
        h, w = TOY_GRID
        probabilities = []
        for image in product(range(CODES), repeat=h * w):
            before, last, p = PROMPT, BOI, 1.0
            for i, code in enumerate(image):
                if i and i % w == 0:
                    before, last = last, NEWLINE
                logits = torch.stack((self.table[1, before, last], self.table[0, before, last]))
                if i == 0:  # without a prompt, padding stands before BOI
                    logits[1] = self.table[0, BOI, BOI]
                law = sampling.probabilities(sampling.guide(logits if sampling.guided else logits[:1]))[0]
                p *= law[code].item()
                before, last = last, code
            probabilities.append(p)
        return torch.tensor(probabilities, dtype=torch.float64)


def p_value(decoder: JacobiDecoder, *, spread: float, draws: int = 12_000) -> float:
    """Return the chi-square p-value of `draws` images; 0 if one of them is impossible."""
    toy = Toy(spread)
    codes = decoder(toy, [[PROMPT]] * draws, TOY_GRID, list(range(draws))).flatten(1)
    outcome = (codes * CODES ** torch.arange(5, -1, -1)).sum(1)
    counts = torch.bincount(outcome, minlength=CODES**6).double()
    expected = toy.exact(decoder.sampling) * draws
    assert expected.sum().item() == pytest.approx(draws, rel=1e-4)
    if counts[expected == 0].any():
        return 0.0
    rare = expected < 5
    counts = torch.cat((counts[~rare], counts[rare].sum()[None]))
    expected = torch.cat((expected[~rare], expected[rare].sum()[None]))
    kept = expected > 0
    chi_square = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    freedom = torch.tensor((kept.sum().item() - 1) / 2, dtype=torch.float64)
    return torch.special.gammaincc(freedom, chi_square / 2).item()


@pytest.mark.parametrize(
    ("size", "settings"),
    [
        (2, {"cfg_scale": 1.7, "top_k": 2, "temperature": 1.2}),
        (4, {}),
        (5, {"cfg_scale": 2.0, "top_p": 0.8}),
        (9, {"cfg_scale": 0.5}),
    ],
)
def test_the_distribution_is_exact(settings: dict[str, float], size: int) -> None:
    decoder = JacobiDecoder(window=size, max_batch=10**6, **settings)
    assert p_value(decoder, spread=1.0) > 1e-4


def test_the_noise_is_computed_in_parts(
    tiny_backend: ChameleonBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several tensors of its size are needed for it, and all of an image's is the largest there is."""
    noise, at_once = window.gumbel_noise, []
    monkeypatch.setattr(
        window, "gumbel_noise", lambda seeds, at, k: at_once.append(at.numel()) or noise(seeds, at, k)
    )
    JacobiDecoder()(tiny_backend, prompts(tiny_backend, TEXTS[0]), (6, 6), [1])
    assert sum(at_once) == 37 and max(at_once) <= 16


@pytest.mark.parametrize("fault", ["noise of another position", "too many final"])
def test_planted_faults_of_gumbel_are_caught(
    tiny_backend: ChameleonBackend, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    if fault == "too many final":
        count = window.count_final
        monkeypatch.setattr(window, "count_final", lambda *a: (count(*a) + 1).clamp_max(a[0].shape[1]))
    else:
        noise = window.gumbel_noise
        monkeypatch.setattr(window, "gumbel_noise", lambda seeds, at, k: noise(seeds, at.flip(-1), k))
    ids = prompts(tiny_backend, TEXTS[0])
    plain = PlainDecoder()(tiny_backend, ids, GRID, [1])
    assert not torch.equal(JacobiDecoder(window=6)(tiny_backend, ids, GRID, [1]), plain)


def test_identifier_acts(tiny_backend: ChameleonBackend) -> None:
    ids, rows = prompts(tiny_backend, TEXTS[1]), Rows(tiny_backend, 0.5)
    plain = PlainDecoder()(tiny_backend, ids, GRID, [1], identifier=rows)
    assert torch.equal(JacobiDecoder()(tiny_backend, ids, GRID, [1], identifier=rows), plain)
    assert not torch.equal(JacobiDecoder()(tiny_backend, ids, GRID, [1]), plain)
