"""Our decoder against Lumina-mGPT's sampler written out, and that sampler against its own table."""

from __future__ import annotations

import pytest
import reference_sampler as reference
import torch
from conftest_upstream import ANOLE, LUMINA, with_layout
from naive import NaiveDecoder
from torch import Tensor

from personalar.config.model_config import ProtocolConfig
from personalar.generation.decoders.plain import PlainDecoder
from personalar.generation.sampling import Sampling, cfg_combine, keep_top_k
from personalar.models.chameleon.backend import ChameleonBackend

VOCABULARY = 9400
SHAPES = [(64, 64), (96, 32), (32, 128)]


def guided_by_size(backend: ChameleonBackend, w: int, h: int) -> reference.Model:
    """The model's logits, but BOI, the size tokens and SEP are what it is sure of where they belong."""
    sure = {0: reference.BOI, 1: reference.SIZE_ZERO + h // 32, 2: reference.SIZE_ZERO + w // 32}

    def model(ids: list[int]) -> Tensor:
        tensor = torch.tensor([ids])
        logits = backend.transformer.logits(backend(backend.embed(tensor)))[0, -1]
        state = reference.open_image(ids)
        ended = ids[-1] == reference.EOI
        forced = reference.SEP if ended else sure.get(0 if state is None else len(state))
        if forced is not None:
            logits[forced] += 1000.0
        return logits

    return model


@torch.no_grad()
@pytest.mark.parametrize("size", SHAPES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize(
    "settings",
    [
        {"scale": 4.0, "k": 2000, "temperature": 1.0},
        {"scale": 3.0, "k": 7, "temperature": 0.7},
        {"scale": 1.0, "k": 40, "temperature": 1.3},
    ],
    ids=str,
)
def test_codes_equal_the_reference(size: tuple[int, int], settings: dict[str, float]) -> None:
    backend, (w, h) = with_layout(LUMINA), size
    prompt, shape = backend.prompt_ids("a red cat", (w, h)), (h // 16, w // 16)
    decoder = PlainDecoder(
        cfg_scale=settings["scale"], top_k=settings["k"], temperature=settings["temperature"]
    )
    codes = decoder(backend, [prompt], shape, [5])[0]
    answer = reference.sample(guided_by_size(backend, w, h), prompt, seed=5, **settings)
    assert answer == [*backend.image_ids(codes), reference.SEP]


class Scripted:
    """Random logits that depend on the ids; counts its calls."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def __call__(self, ids: list[int]) -> Tensor:
        self.calls.append(list(ids))
        return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(len(ids) + 31 * ids[0]))


IMAGE = [reference.BOI, 8805, 8806]  # 64 x 32 pixels: two rows of four codes
BODY = [4, 5, 6, 7, reference.NEWLINE, 8, 9, 10, 11, reference.NEWLINE]


@pytest.mark.parametrize(
    ("ids", "guided", "allowed", "image_k"),
    [
        ([0, 300, 8710], False, VOCABULARY, False),
        ([0, 8710, *IMAGE[:1]], False, VOCABULARY, True),
        ([0, 8710, *IMAGE[:2]], False, VOCABULARY, True),
        ([0, 8710, *IMAGE], True, 8192, True),
        ([0, 8710, *IMAGE, *BODY[:3]], True, 8192, True),
        ([0, 8710, *IMAGE, *BODY[:4]], True, {reference.NEWLINE}, True),
        ([0, 8710, *IMAGE, *BODY[:5]], True, 8192, True),
        ([0, 8710, *IMAGE, *BODY[:9]], True, {reference.NEWLINE}, True),
        ([0, 8710, *IMAGE, *BODY], True, {reference.EOI}, True),
        ([0, 8710, *IMAGE, *BODY, reference.EOI], False, VOCABULARY, False),
        ([0, reference.EOI], False, VOCABULARY, False),
        ([0, reference.BOI, *IMAGE], False, VOCABULARY, False),
    ],
)  # fmt: skip
def test_the_state_table(ids: list[int], guided: bool, allowed: int | set[int], image_k: bool) -> None:
    model = Scripted()
    logits = model(ids)
    assert torch.equal(reference.guidance(ids, logits, model, 3.0), logits) is not guided
    if guided:
        assert model.calls[1] == ids[ids.index(reference.BOI) :]  # no BOS, no prompt
    masked = reference.structure(ids, logits)
    finite = set(masked.isfinite().nonzero().flatten().tolist())
    assert finite == allowed if isinstance(allowed, set) else len(finite) == allowed
    assert len(reference.top_k(ids, logits, image=50, text=10).isfinite().nonzero()) == (
        50 if image_k else 10
    )


@pytest.mark.parametrize("size", SHAPES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_our_schedule_forces_what_the_table_forces(size: tuple[int, int]) -> None:
    backend, (w, h) = with_layout(LUMINA), size
    grammar = backend.grammar(h // 16, w // 16)
    ids, model = [0, reference.SEP], Scripted()
    for place, forced in enumerate(grammar):
        finite = reference.structure(ids, model(ids)).isfinite().nonzero().flatten().tolist()
        if place >= 3:
            assert finite == ([forced] if forced is not None else list(range(4, 8196)))
        ids.append(forced if forced is not None else 4 + place)


def test_top_k_zero_is_off_and_not_fifty() -> None:
    logits = torch.randn(8192, generator=torch.Generator().manual_seed(0))
    assert Sampling(top_k=0).shape(logits).isfinite().all()
    assert Sampling(top_k=2000).shape(logits).isfinite().sum() == 2000
    tied = torch.tensor([2.0, 1.0, 1.0, 0.0])
    assert keep_top_k(tied, 2).isfinite().tolist() == [True, True, True, False]


def test_the_order_is_guidance_then_top_k_then_temperature() -> None:
    """In another order other codes survive: the case is made so that each swap shows."""
    conditional, unconditional = torch.tensor([3.0, 2.9, 0.0, -1.0]), torch.tensor([3.0, 0.0, -4.0, 0.0])
    ours = Sampling(top_k=2, temperature=0.5).shape(cfg_combine(conditional, unconditional, 4.0))
    assert ours.isfinite().tolist() == [False, True, True, False]
    assert ours[1] == (unconditional + 4 * (conditional - unconditional))[1] / 0.5
    swapped = cfg_combine(keep_top_k(conditional, 2), unconditional, 4.0)
    assert swapped.isfinite().tolist() == [True, True, False, False]


@torch.no_grad()
@pytest.mark.parametrize(
    ("layout", "before"),
    [(ANOLE, [0]), (LUMINA, []), (ProtocolConfig(resolution=64, unconditional="separator"), [8710])],
    ids=["anole", "lumina", "sjd"],
)
def test_the_unconditional_context(layout: ProtocolConfig, before: list[int]) -> None:
    """By hand, from two full passes: what stands before the image in the row without prompt."""
    backend = with_layout(layout)
    prompt = backend.prompt_ids("a red cat", (64, 64))
    decoder = {"cfg_scale": 3.0, "temperature": 0.0}
    codes = PlainDecoder(**decoder)(backend, [prompt], (4, 4), [1])[0]
    assert torch.equal(codes, NaiveDecoder(**decoder)(backend, [prompt], (4, 4), [1])[0])
    answer = backend.image_ids(codes)
    logits = []
    for context in (prompt, before):
        ids = torch.tensor([[*context, *answer]])
        logits.append(backend.image_logits(backend(backend.embed(ids)))[0, len(context) :])
    free = [place - 1 for place, forced in enumerate(backend.grammar(4, 4)) if forced is None]
    assert torch.equal(cfg_combine(*logits, 3.0)[free].argmax(-1), codes.flatten())
