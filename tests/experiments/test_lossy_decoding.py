"""The lossy plug-in: smaller, and as close to exact as each way promises."""

from __future__ import annotations

import sys

import pytest
import torch
from conftest_backend import make_backend
from conftest_run import compose_config
from hypothesis import given, settings
from hypothesis import strategies as st
from lossy_decoding.decoder import LossyDecoder, PackedBackend, quantize_weights
from lossy_decoding.low_bits import FORMATS, pack, unpack
from test_sampling import GRID, TEXTS, prompts
from torch import Tensor

from personalar.config.plugins import build
from personalar.generation.decoders.plain import PlainDecoder
from personalar.models.chameleon.backend import ChameleonBackend

ERROR = {"int8": 0.5 / 127, "fp8": 1 / 16}
"""Largest error over the vector's largest number, and over the number itself (three bits of mantissa)."""


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), size=st.integers(1, 70), power=st.integers(-6, 6))
def test_what_is_packed_comes_back_rounded(
    name: str, dtype: torch.dtype, seed: int, size: int, power: int
) -> None:
    x = torch.randn(2, 3, 4, size, generator=torch.Generator().manual_seed(seed)).to(dtype) * 10.0**power
    low, scale = pack(x, name)
    assert low.dtype == torch.int8 and scale.shape == (2, 3, 4, 1)
    error = (unpack(low, scale, name) - x).float().abs()
    largest = x.float().abs().amax(-1, keepdim=True)
    slack = 2.0**-6 if dtype == torch.bfloat16 else 1e-5  # the scale and the product are rounded too
    relative = largest if name == "int8" else x.float().abs() + largest / 448
    assert (error <= ERROR[name] * relative + slack * largest).all()


@pytest.mark.parametrize("name", FORMATS)
def test_a_vector_of_zeros_stays_one(name: str) -> None:
    assert (unpack(*pack(torch.zeros(1, 1, 2, 4), name), name) == 0).all()


@pytest.mark.parametrize("name", FORMATS)
def test_a_packed_cache_is_small_and_nearly_exact(name: str) -> None:
    exact = make_backend()
    packed, row = PackedBackend(exact, name), torch.arange(10, 22)[None]
    cache, other = (backend.new_cache(torch.arange(12)[None]) for backend in (exact, packed))
    wanted = exact.forward(exact.embed(row), cache=cache.at(torch.arange(12), 12))
    steps = torch.arange(12).split(1)
    got = torch.cat(
        [packed.forward(packed.embed(row[:, k]), cache=other.at(k, int(k) + 1)) for k in steps], 1
    )
    assert not torch.equal(got, wanted)
    assert torch.nn.functional.cosine_similarity(got, wanted, dim=-1).min() > 0.98
    assert sum(t.nbytes for t in other.keys) < 0.6 * sum(t.nbytes for t in cache.keys)


@pytest.mark.parametrize("name", FORMATS)
def test_every_way_of_writing_packs_the_same(name: str) -> None:
    backend = PackedBackend(make_backend(), name)
    row = torch.arange(10, 14).expand(2, 4)
    hidden = []
    for slots in (torch.arange(4), torch.arange(4).expand(2, 4)):
        cache = backend.new_cache(torch.arange(6).expand(2, -1))
        hidden.append(backend.forward(backend.embed(row), cache=cache.at(slots, 4)))
    assert torch.allclose(*hidden, atol=1e-5)


def test_a_configuration_loads_it() -> None:
    words = ["decoder._target_=lossy_decoding.decoder.LossyDecoder", "+decoder.arguments.cache=int8"]
    decoder = build("decoder", compose_config("+subject=cat", *words).decoder.settings)
    assert isinstance(decoder, LossyDecoder) and decoder.cache == "int8"


def test_exact_is_plain(tiny_backend: ChameleonBackend) -> None:
    ids = prompts(tiny_backend, *TEXTS)
    drawn = [decoder(tiny_backend, ids, GRID, [1, 2, 3]) for decoder in (LossyDecoder(), PlainDecoder())]
    assert torch.equal(*drawn)


@pytest.mark.parametrize("knob", ["cache", "weights"])
def test_an_unknown_format_is_named(knob: str) -> None:
    with pytest.raises(ValueError, match=rf"{knob}='int4'; allowed: exact, int8, fp8"):
        LossyDecoder(**{knob: "int4"})


def test_a_missing_library_is_named(tiny_backend: ChameleonBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ModuleNotFoundError, match=r"weights=int8 needs torchao.*or choose weights=exact"):
        LossyDecoder(weights="int8")(tiny_backend, prompts(tiny_backend, TEXTS[0]), GRID, [1])


def held_bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor, or of the parts of one that a library packed."""
    names = tensor.__tensor_flatten__()[0] if hasattr(tensor, "__tensor_flatten__") else []
    return sum(held_bytes(getattr(tensor, name)) for name in names) if names else tensor.nbytes


@pytest.mark.parametrize("name", FORMATS)
def test_packed_weights_are_nearly_exact(name: str) -> None:
    pytest.importorskip("torchao", reason="pip install torchao")
    backend = make_backend(hidden_size=64, intermediate_size=96)
    row = torch.arange(10, 22)[None]
    wanted = backend.image_logits(backend.forward(backend.embed(row)))
    before = sum(held_bytes(p) for p in backend.blocks.parameters())
    quantize_weights(backend.transformer.model, name)
    got = backend.image_logits(backend.forward(backend.embed(row)))
    assert not torch.equal(got, wanted)
    assert torch.nn.functional.cosine_similarity(got, wanted, dim=-1).min() > 0.98
    assert sum(held_bytes(p) for p in backend.blocks.parameters()) < 0.5 * before
