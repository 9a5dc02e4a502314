"""Lossy sampling: off by default, said aloud, and as close to exact as each way promises."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from conftest_backend import make_backend
from conftest_run import compose_config
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sampling import TEXTS, prompts
from torch import Tensor

from personalar.bench import lossy as bench
from personalar.bench.__main__ import main as bench_command
from personalar.bench.clock import counted_forwards
from personalar.config import commands
from personalar.core.png import read_png_metadata
from personalar.generation.decoders.coupling import relaxed
from personalar.generation.decoders.jacobi import JacobiDecoder
from personalar.generation.decoders.plain import PlainDecoder
from personalar.generation.lossy import make_lossy
from personalar.models.chameleon.backend import ChameleonBackend
from personalar.models.low_bits import FORMATS, pack, unpack
from personalar.sample import write_samples

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
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_packed_cache_is_small_and_nearly_exact(name: str, attention: str) -> None:
    backend = make_backend(attention=attention)
    pad, row = torch.zeros(1, dtype=torch.int64), torch.arange(10, 22)[None]
    exact = backend.new_cache(capacity=12, pad=pad)
    wanted = backend.forward(backend.embed(row), cache=exact)
    make_lossy(backend, cache=name, weights="exact")
    packed = backend.new_cache(capacity=12, pad=pad)
    got = torch.cat([backend.forward(backend.embed(row[:, k : k + 1]), cache=packed) for k in range(12)], 1)
    assert not torch.equal(got, wanted)
    assert torch.nn.functional.cosine_similarity(got, wanted, dim=-1).min() > 0.98
    assert sum(t.nbytes for t in packed.keys) < 0.6 * sum(t.nbytes for t in exact.keys)


@pytest.mark.parametrize("name", FORMATS)
def test_every_way_of_writing_packs_the_same(name: str) -> None:
    backend = make_backend()
    make_lossy(backend, cache=name, weights="exact")
    pad, row = torch.zeros(2, dtype=torch.int64), torch.arange(10, 18).view(2, 4)
    hidden = []
    for slots in (None, torch.arange(4), torch.arange(4).expand(2, 4)):
        cache = backend.new_cache(capacity=6, pad=pad)
        view = cache if slots is None else cache.at(slots, 4)
        hidden.append(backend.forward(backend.embed(row), cache=view))
    assert torch.allclose(hidden[0], hidden[1], atol=1e-5) and torch.allclose(hidden[0], hidden[2], atol=1e-5)


def lent_by_hand(q: Tensor, draft: int, near: list[int], distance: float) -> Tensor:
    q, lent = q.clone(), 0.0
    for code in near:
        if lent + q[code].item() >= distance:
            break
        lent += q[code].item()
        q[draft] += q[code].item()
        q[code] = 0.0
    return q


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), distance=st.floats(0.01, 1.0), count=st.integers(1, 5))
def test_relaxing_moves_what_neighbours_lend_and_no_more(seed: int, distance: float, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q = (torch.randn(2, 3, 6, generator=generator) * 2).softmax(-1)
    drafts = torch.randint(0, 6, (2, 3), generator=generator)
    orders = [
        [c for c in torch.randperm(6, generator=generator).tolist() if c != k][:count] for k in range(6)
    ]
    got = relaxed(q, drafts, torch.tensor(orders), distance=distance)
    for b in range(2):
        for w in range(3):
            draft = int(drafts[b, w])
            wanted = lent_by_hand(q[b, w], draft, orders[draft], distance)
            assert torch.allclose(got[b, w], wanted, atol=1e-6)
    assert torch.allclose(got.sum(-1), torch.ones(2, 3), atol=1e-5)
    assert ((got - q).abs().sum(-1) / 2 < distance + 1e-6).all()


def test_nearest_codes_are_those_of_the_codebook(tiny_backend: ChameleonBackend) -> None:
    table = tiny_backend.vq.quantize.embedding.weight
    apart = ((table[:, None] - table) ** 2).sum(-1)
    wanted = apart.argsort(-1)[:, 1:4]
    assert torch.equal(tiny_backend.nearest_codes(3), wanted)
    with pytest.raises(ValueError, match="relax=99999 must be less than"):
        tiny_backend.nearest_codes(99999)


def forwards(backend: ChameleonBackend, decoder: PlainDecoder) -> int:
    with counted_forwards(backend) as calls:
        decoder(backend, prompts(backend, *TEXTS), (6, 6), [1, 2, 3])
    return len(calls)


@pytest.mark.parametrize("kind", ["maximal", "independent"])
def test_relaxed_drafts_stay_more_often(tiny_backend: ChameleonBackend, kind: str) -> None:
    count = len(tiny_backend.vq.quantize.embedding.weight) - 1
    strict = forwards(tiny_backend, JacobiDecoder(coupling=kind, window=8))
    generous = JacobiDecoder(coupling=kind, window=8, relax=count, relax_distance=0.9)
    assert forwards(tiny_backend, generous) < strict


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"relax": 4}, "relax=4 needs coupling=maximal or independent; gumbel is always exact"),
        ({"relax": -1, "coupling": "maximal"}, "relax=-1 must be at least 0"),
        ({"relax": 1, "relax_distance": 0.0, "coupling": "maximal"}, r"relax_distance=0.0 in \(0, 1\]"),
    ],
)
def test_relaxing_that_cannot_be(numbers: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JacobiDecoder(**numbers)


def test_a_run_is_never_lossy() -> None:
    words = ("+subject=cat", "decoder=jacobi", "decoder.coupling=maximal", "decoder.relax=4")
    with pytest.raises(Exception, match=r"decoder.relax=4 is lossy: it belongs to personalar.sample"):
        compose_config(*words)


@pytest.mark.parametrize("knob", ["cache", "weights"])
def test_an_unknown_format_is_named(knob: str) -> None:
    assert ("exact", *FORMATS) == commands.FORMATS
    with pytest.raises(Exception, match=rf"lossy.{knob}='?int4'?.*exact, int8, fp8"):
        compose_config("concept=none", "prompts=[a]", f"lossy.{knob}=int4", name="sample")


def test_a_missing_library_is_named(tiny_backend: ChameleonBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "personalar\[lossy\]"'):
        make_lossy(tiny_backend, cache="exact", weights="int8")


@pytest.mark.parametrize("name", FORMATS)
def test_packed_weights_are_nearly_exact(name: str) -> None:
    pytest.importorskip("torchao", reason='pip install "personalar[lossy]"')
    backend = make_backend(hidden_size=64, intermediate_size=96)
    row = torch.arange(10, 22)[None]
    wanted = backend.image_logits(backend.forward(backend.embed(row)))
    before = bench.megabytes(backend, 1)
    assert make_lossy(backend, cache="exact", weights=name) == [f"matrices in {name}"]
    got = backend.image_logits(backend.forward(backend.embed(row)))
    assert not torch.equal(got, wanted)
    assert torch.nn.functional.cosine_similarity(got, wanted, dim=-1).min() > 0.98
    assert bench.megabytes(backend, 1) < 0.5 * before


def test_sampling_says_that_it_is_lossy(
    finished_run: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for words, told in ((["lossy.cache=int8"], "keys and values in int8"), ([], None)):
        config = compose_config(
            f"concept={finished_run}", 'prompts=["a [V] cat"]', f"model.path={tiny_model_dir}",
            f"out={tmp_path / 'out'}", *words, name="sample",
        )  # fmt: skip
        (path,) = write_samples(config, finished_run / "concept")
        assert read_png_metadata(path).get("lossy") == told
        assert ("lossy: keys and values in int8" in capsys.readouterr().out) == bool(told)


def test_a_missing_library_is_named_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setattr(bench, "draw", None)
    monkeypatch.setattr(sys, "argv", ["bench", "lossy", "model=nano", "images=2"])
    with pytest.raises(SystemExit) as stopped:
        bench_command()
    missing = "modes=weights_int8,weights_fp8 needs torchao, which is not installed"
    others = "modes=exact,cache_int8,cache_fp8,jacobi_maximal,relaxed_8,relaxed_32"
    ways = f'pip install "personalar[lossy]", or leave that out: {others}'
    assert str(stopped.value) == f"personalar.bench: {missing}: {ways}"


def test_the_measurement_judges_as_a_run_does(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loaded(Exception):
        pass

    def load(clip: str, dino: str, *, dino_preprocess: str) -> None:
        raise Loaded(clip, dino, dino_preprocess)

    monkeypatch.setattr(bench, "load_scorers", load)
    wanted = compose_config("+subject=cat", "scorer=dreambench").scorer
    with pytest.raises(Loaded) as seen:
        bench.run(*bench.read_settings(["modes=exact", "scorer=dreambench"]))
    assert seen.value.args == (wanted.clip, wanted.dino, "resize256_crop224")


def test_the_measurement(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "deep" / "lossy.json"
    bench.main(["model=nano", "modes=cache_int8,relaxed_8", "images=2", f"out={out}", "trainer.threads=1"])
    rows = {row["mode"]: row for row in json.loads(out.read_text())["rows"]}
    assert list(rows) == ["exact", "cache_int8", "jacobi_maximal", "relaxed_8"]  # twins come along
    assert rows["exact"]["kl_nats"] == 0 and rows["exact"]["same_pictures"] == 1
    assert 0 < rows["cache_int8"]["kl_nats"] < 0.01 and rows["cache_int8"]["same_likeliest_code"] > 0.9
    assert rows["cache_int8"]["megabytes"] < rows["exact"]["megabytes"]
    assert rows["relaxed_8"]["of"] == "jacobi_maximal" and rows["relaxed_8"]["kl_nats"] == 0
    assert rows["relaxed_8"]["forwards"] < rows["exact"]["forwards"]
    table = capsys.readouterr().out
    assert "| cache_int8 | exact |" in table and '"torch"' in table


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["modes=int4"], "modes=int4 is not known; allowed: exact, cache_int8"),
        (["images=1"], "images=1 must be a number from 2"),
        (["scorer=nobody"], "scorer='nobody' is not known"),
        (["scorer=none"], "scorer=none judges nothing, and here pictures are judged: scorer=nano does"),
        (["nonsense=1"], "nonsense is no setting"),
    ],
)
def test_the_measurement_refuses_what_it_does_not_know(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bench.read_settings(words)
