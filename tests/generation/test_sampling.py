"""Decoders: an image is a function of weights, prompt and seed; the draw follows the distribution."""

from __future__ import annotations

import pytest
import torch
from conftest_backend import make_backend
from hypothesis import given
from hypothesis import strategies as st
from naive import NaiveDecoder
from torch import Tensor

from personalar.generation.decoders.plain import PlainDecoder
from personalar.generation.sampling import (
    Sampling,
    gumbel_argmax,
    gumbel_noise,
    keep_top_p,
    nucleus_argmax,
    seed_tensor,
)
from personalar.generation.schedule import image_schedule
from personalar.models.chameleon.backend import ChameleonBackend

GRID = (4, 4)
SETTINGS = [
    {},
    {"cfg_scale": 3.0},
    {"cfg_scale": 4.0, "top_k": 20},
    {"cfg_scale": 2.0, "top_p": 0.9, "temperature": 0.8},
    {"temperature": 0.0},
]


def prompts(backend: ChameleonBackend, *texts: str) -> list[list[int]]:
    tokens = {"[V]": backend.tokenizer.concept_ids[0]}
    return [backend.prompt_ids(text, None, tokens) for text in texts]


TEXTS = ("a red cat in the snow", "a [V] dog", "a blue teapot on the beach in the jungle and on the beach")


class Rows:
    """An identifier of one row."""

    def __init__(self, backend: ChameleonBackend, value: float) -> None:
        self.id, self.row = backend.tokenizer.concept_ids[0], torch.full((32,), value)

    def __call__(self, ids: Tensor, embeds: Tensor) -> Tensor:
        return torch.where((ids == self.id)[..., None], self.row, embeds)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("grid", [GRID, (2, 6)])
def test_plain_equals_naive(
    tiny_backend: ChameleonBackend, settings: dict[str, float], grid: tuple[int, int]
) -> None:
    """Prompts of three lengths together, and each alone."""
    ids, seeds, decoder = prompts(tiny_backend, *TEXTS), [0, 5, -3], PlainDecoder(**settings)
    plain = decoder(tiny_backend, ids, grid, seeds)
    assert plain.shape == (3, *grid)
    assert torch.equal(plain, NaiveDecoder(**settings)(tiny_backend, ids, grid, seeds))
    alone = [decoder(tiny_backend, [row], grid, [seed]) for row, seed in zip(ids, seeds, strict=True)]
    assert torch.equal(torch.cat(alone), plain)


@pytest.mark.parametrize("numbers", [{"swin_norm": True}, {"num_key_value_heads": 1}])
def test_plain_equals_naive_for_other_architectures(numbers: dict[str, object]) -> None:
    backend = make_backend(7, **numbers)
    ids = prompts(backend, *TEXTS[:2])
    plain = PlainDecoder(cfg_scale=3.0)(backend, ids, (2, 6), [1, 2])
    assert torch.equal(plain, NaiveDecoder(cfg_scale=3.0)(backend, ids, (2, 6), [1, 2]))


def test_one_forward_per_code(tiny_backend: ChameleonBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    widths = []
    forward = tiny_backend.transformer.forward
    monkeypatch.setattr(
        tiny_backend.transformer,
        "forward",
        lambda embeds, *a, **k: widths.append(embeds.shape[:2]) or forward(embeds, *a, **k),
    )
    PlainDecoder(cfg_scale=2.0)(tiny_backend, prompts(tiny_backend, TEXTS[0]), GRID, [0])
    assert len(widths) == 16  # the prompt and 15 codes; nothing is computed after the last
    assert [width[1] for width in widths[1:]] == ([1] * 3 + [2]) * 3 + [1] * 3
    assert {width[0] for width in widths} == {2}
    widths.clear()
    PlainDecoder()(tiny_backend, prompts(tiny_backend, TEXTS[0]), GRID, [0])
    assert {width[0] for width in widths} == {1}


def test_schedule() -> None:
    assert image_schedule([9, 8, None, None, 7, None, None, 7, 6]) == ([9, 8], [[], [7], [], [7, 6]])


# Sampling rules


def test_top_p_is_the_smallest_set() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()[None]
    assert keep_top_p(logits, 0.7).isfinite().tolist() == [[True, True, False, False]]
    assert keep_top_p(logits, 0.81).isfinite().tolist() == [[True, True, True, False]]
    assert keep_top_p(logits, 1e-6).isfinite().sum() == 1


@given(
    st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=40),
    st.integers(1, 40),
    st.floats(0.01, 1.0),
    st.floats(0.1, 5.0),
)
def test_shaping_always_leaves_the_best(values: list[float], k: int, p: float, temperature: float) -> None:
    logits = torch.tensor([values])
    shaped = Sampling(top_k=k, top_p=p, temperature=temperature).shape(logits)
    assert shaped[0, logits.argmax()].isfinite()


@pytest.mark.parametrize("p", [0.05, 0.5, 0.95])
def test_top_p_without_sorting(p: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(5, 40, 100, generator=generator) * 3).round(decimals=1)  # with ties
    values = noise(list(range(5)), list(range(40)), 100)
    expected = gumbel_argmax(keep_top_p(logits, p), values)
    assert torch.equal(nucleus_argmax(logits, values, p), expected)
    sampling = Sampling(top_p=p, top_k=9, temperature=0.7)
    assert torch.equal(sampling.draw(logits, values), gumbel_argmax(sampling.shape(logits), values))


def test_temperature_zero_is_greedy() -> None:
    logits = torch.tensor([[0.0, 1.0, 0.9]])
    assert Sampling(temperature=0.0).draw(logits, torch.tensor([[99.0, 0.0, 0.0]])).item() == 1


# Noise


def noise(seeds: list[int], positions: list[int], num_codes: int) -> Tensor:
    return gumbel_noise(seed_tensor(seeds, torch.device("cpu")), torch.tensor(positions), num_codes)


def test_noise_depends_on_seed_position_and_code_only() -> None:
    all_of_it = noise([3, 9, -1], list(range(20)), 50)
    assert torch.equal(noise([9], [7, 3], 50)[0], all_of_it[1, [7, 3]])
    assert torch.equal(noise([9], [7], 30)[0, 0], all_of_it[1, 7, :30])
    assert all_of_it.unique().numel() == all_of_it.numel()
    assert torch.equal(noise([-1], [0], 50), noise([2**63 - 1], [0], 50))
    assert not torch.equal(noise([2**62 + 9], [7], 50), noise([9], [7], 50))


def test_noise_is_gumbel() -> None:
    values = noise(list(range(20)), list(range(100)), 500).flatten().double()
    assert values.mean().item() == pytest.approx(0.5772, abs=0.006)
    assert values.var().item() == pytest.approx(torch.pi**2 / 6, abs=0.02)
    uniform = torch.exp(-torch.exp(-values)).sort().values  # the distribution function: Kolmogorov-Smirnov
    steps = torch.arange(1, len(values) + 1) / len(values)
    assert (uniform - steps).abs().max() < 1.95 / len(values) ** 0.5  # p = .001


def test_neighbouring_noise_is_uncorrelated() -> None:
    values = noise(list(range(40)), list(range(40)), 400).double()
    values = (values - values.mean()) / values.std()
    for a, b in (
        (values[1:], values[:-1]),
        (values[:, 1:], values[:, :-1]),
        (values[..., 1:], values[..., :-1]),
        (values[1:, :-1], values[:-1, 1:]),
        (values[:, 1:, :-1], values[:, :-1, 1:]),
    ):
        assert abs((a * b).mean().item()) < 5 / a.numel() ** 0.5


def test_no_gradients() -> None:
    backend = make_backend().requires_grad_(True)
    assert not PlainDecoder()(backend, prompts(backend, TEXTS[0]), GRID, [0]).requires_grad


def test_draws_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03])
    draws = 40_000
    values = noise([11], list(range(draws)), 5)[0]
    codes = Sampling().draw(probabilities.log().expand(draws, 5), values)
    counts = torch.bincount(codes, minlength=5)
    chi_square = ((counts - draws * probabilities) ** 2 / (draws * probabilities)).sum().item()
    assert chi_square < 18.47  # 4 degrees of freedom, p = .001
