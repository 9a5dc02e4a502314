"""What holds of every decoder: identifier, progress, and an error where logits are no numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest_backend import load_backend, make_backend
from naive import NaiveDecoder
from test_compiled import Taped
from test_sampling import GRID, TEXTS, Rows, prompts
from torch import Tensor

from personalar.core.errors import user_message
from personalar.generation.decoders.jacobi import JacobiDecoder
from personalar.generation.decoders.plain import PlainDecoder
from personalar.models.chameleon.backend import ChameleonBackend
from personalar.models.chameleon.serialization import save_backend

NAN, INFINITY = float("nan"), float("inf")
DECODERS: dict[str, Callable[..., PlainDecoder]] = {
    "plain": PlainDecoder,
    "compiled": lambda **sampling: Taped(bucket=8, **sampling),
    "jacobi": lambda **sampling: JacobiDecoder(window=4, max_batch=2, **sampling),
}
SAMPLINGS = [{}, {"cfg_scale": 3.0, "top_k": 20}, {"top_p": 0.9}, {"temperature": 0.0}]


@pytest.mark.parametrize("name", DECODERS)
def test_the_identifier_acts_and_progress_counts_the_codes(name: str, tiny_backend: ChameleonBackend) -> None:
    """With and without guidance, whose unconditional rows have no identifier."""
    ids, rows, other = prompts(tiny_backend, *TEXTS[:2]), Rows(tiny_backend, 0.5), Rows(tiny_backend, -0.5)
    for sampling in ({}, {"cfg_scale": 2.0}):
        calls: list[tuple[int, int]] = []
        decoder, arguments = DECODERS[name](**sampling), (tiny_backend, ids, GRID, [1, 2])
        codes = decoder(*arguments, identifier=rows, progress=lambda *call, to=calls: to.append(call))
        assert torch.equal(codes, NaiveDecoder(**sampling)(*arguments, identifier=rows))
        assert not torch.equal(codes, decoder(*arguments, identifier=other))
        assert calls[-1] == (32, 32) and calls == sorted(calls)
        assert name != "jacobi" or len(set(calls)) > 2


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("name", DECODERS)
def test_broken_weights_are_told(name: str, sampling: dict[str, float]) -> None:
    backend = make_backend()
    decoder, ids = DECODERS[name](**sampling), prompts(backend, *TEXTS[:2])
    decoder(backend, ids, GRID, [1, 2])
    backend.transformer.model.layers[1].mlp.down_proj.weight[3, 5] = NAN
    with pytest.raises(FloatingPointError, match=r"for 2 of 2 pictures.*use bfloat16 or float32") as told:
        decoder(backend, ids, GRID, [1, 2])
    assert user_message(told.value) == str(told.value), "a person can mend it"


@pytest.mark.parametrize("name", ["plain", "compiled", "jacobi"])
def test_the_picture_that_is_lost_is_counted(name: str) -> None:
    """A code whose row is broken: only the picture that draws it, and not at its first step."""
    backend = make_backend()
    decoder, ids = DECODERS[name](), prompts(backend, *TEXTS[:2])
    one, two = decoder(backend, ids, GRID, [1, 2]).flatten(1).tolist()
    code = next(code for code in one if code not in two and code != one[0])
    backend.transformer.model.embed_tokens.weight[code + backend.code_offset] = INFINITY
    with pytest.raises(FloatingPointError, match=r"for [12] of 2 pictures"):  # a draft may meet it too
        decoder(backend, ids, GRID, [1, 2])


@pytest.mark.parametrize("value", [NAN, INFINITY])
@pytest.mark.parametrize("name", ["plain", "jacobi"])
@pytest.mark.parametrize("step", [1, 3, -1])
def test_one_step_is_enough(monkeypatch: pytest.MonkeyPatch, name: str, value: float, step: int) -> None:
    """The last layer may overflow at one step and leave no trace in keys and values."""
    backend, calls = make_backend(), []
    decoder, ids, head = DECODERS[name](), prompts(backend, TEXTS[0]), backend.image_logits

    def image_logits(hidden: Tensor) -> Tensor:
        logits = head(hidden).clone()
        if len(calls) == broken:
            logits[0, ..., 7] = value
        calls.append(1)
        return logits

    monkeypatch.setattr(backend, "image_logits", image_logits)
    broken = -1
    decoder(backend, ids, GRID, [1])
    broken = range(len(calls))[step]
    calls.clear()
    with pytest.raises(FloatingPointError, match="for 1 of 1 pictures"):
        decoder(backend, ids, GRID, [1])


@pytest.mark.parametrize("name", DECODERS)
def test_a_backend_may_forbid_codes(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    backend = make_backend()
    head = backend.image_logits
    forbidden = torch.full((64,), 0.0)
    forbidden[:60] = -INFINITY
    monkeypatch.setattr(backend, "image_logits", lambda hidden: head(hidden) + forbidden)
    assert DECODERS[name]()(backend, prompts(backend, TEXTS[0]), GRID, [1]).min() >= 60


def overflowing() -> ChameleonBackend:
    """A model whose residual stream passes 65504, as a large one's may."""
    backend = make_backend()
    backend.transformer.model.layers[-1].mlp.down_proj.weight.mul_(1e5)
    return backend


@pytest.mark.parametrize("name", ["plain", "compiled", "jacobi"])
def test_float16_overflows_and_bfloat16_does_not(name: str) -> None:
    ids = prompts(make_backend(), TEXTS[0])
    for dtype in (torch.float32, torch.bfloat16):
        DECODERS[name](cfg_scale=2.0)(overflowing().to(dtype), ids, GRID, [1])
    with pytest.raises(FloatingPointError, match="float16 overflows beyond 65504"):
        DECODERS[name](cfg_scale=2.0)(overflowing().to(torch.float16), ids, GRID, [1])


def test_a_run_on_a_broken_base_saves_no_picture(
    do_run: Callable[..., bool], tiny_model_dir: Path, tmp_path: Path
) -> None:
    backend = load_backend(tiny_model_dir)
    backend.transformer.lm_head.weight[backend.code_offset + 3] = NAN
    broken = save_backend(backend, tmp_path / "model", dtype=torch.float32)
    with pytest.raises(FloatingPointError, match="files are damaged"):
        do_run(tmp_path / "run", f"model.path={broken}", "stage=embedding", "scorer=none")
    assert {path.parent.name for path in (tmp_path / "run").rglob("*.png")} == {"references"}
