"""Dropout: what it leaves out, by what it is drawn, and that only training passes know it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_model_prep import NO_COMPILER
from test_transformer import build, random_ids

from personalar.concepts.concept import Concept
from personalar.models.chameleon.transformer import ChameleonTransformer
from personalar.models.dropout import Dropout
from personalar.training.model_prep import prepare_blocks

KEYS = torch.tensor([5, 2**62 + 3])
WORDS = ("scorer=none", "model.recipe.dropout=0.2")


def splitmix(x: int) -> int:
    """The finaliser of splitmix64 in Python's own numbers."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def stays(key: int, places: tuple[int, ...], number: int, chance: float) -> bool:
    """Tell, for one number of one sequence, what `Dropout` must say."""
    for place in places:
        key = splitmix((key + place) % 2**64)
    drawn = splitmix((splitmix(key) + number * 0x1E3779B97F4A7C15) % 2**64) >> 32
    return drawn >= int(chance * 2**32)


def test_what_is_left_out_is_a_hash_of_sequence_place_and_number() -> None:
    """Golden by arithmetic: a stage that is learned again, elsewhere or later, drops the same."""
    got = Dropout(chance=0.25, keys=KEYS).at(3).at(1)(torch.ones(2 * 7, 10))
    wanted = [[stays(key, (3, 1), n, 0.25) for n in range(70)] for key in KEYS.tolist()]
    assert torch.equal(got.view(2, 70) != 0, torch.tensor(wanted))
    assert got.unique().tolist() == pytest.approx([0, 4 / 3])


@pytest.mark.parametrize("chance", [0.05, 0.5, 0.9])
def test_the_chance_is_kept_and_so_is_the_mean(chance: float) -> None:
    dropout = Dropout(chance=chance, keys=KEYS)
    got = dropout(torch.ones(2 * 500, 100))
    assert (got == 0).float().mean().item() == pytest.approx(chance, abs=0.01)
    assert got.mean().item() == pytest.approx(1, rel=0.05)
    # Neither places nor sequences drop alike.
    other, (one, two) = dropout.at(1)(torch.ones(2 * 500, 100)), got.view(2, -1)
    for a, b in ((got, other), (one, two)):
        both = ((a == 0) & (b == 0)).float().mean().item()
        assert both == pytest.approx(chance**2, abs=0.015)


@pytest.mark.parametrize("swin_norm", [False, True])
def test_dropout_falls_on_what_a_block_adds(swin_norm: bool) -> None:
    """By hand: on attention's output and on the MLP's, before each is added, in both kinds of layer."""
    transformer, dropout = build(swin_norm=swin_norm, num_hidden_layers=1), Dropout(chance=0.5, keys=KEYS)
    embeds = transformer.embed(random_ids(2, 6))
    layer, x = transformer.model.layers[0], embeds.flatten(0, 1)
    rotary = transformer.rotary(torch.arange(6)[None], embeds.dtype)
    one, two = (dropout.at(0).at(place) for place in (0, 1))
    if swin_norm:
        x = x + one(layer.input_layernorm(layer.self_attn(x, rotary, None, None)))
        x = x + two(layer.post_attention_layernorm(layer.mlp(x)))
    else:
        x = x + one(layer.self_attn(layer.input_layernorm(x), rotary, None, None))
        x = x + two(layer.mlp(layer.post_attention_layernorm(x)))
    got = transformer(embeds, dropout=dropout)
    torch.testing.assert_close(got, transformer.model.norm(x).view(embeds.shape))
    assert not torch.equal(got, transformer(embeds))


def test_a_sequence_drops_the_same_alone_and_padded() -> None:
    """The memory that is there decides how a batch is split; it must not decide what is learned."""
    transformer, ids = build(), random_ids(2, 9)
    together = transformer(transformer.embed(ids), dropout=Dropout(chance=0.3, keys=KEYS))
    alone = transformer(transformer.embed(ids[1:, :5]), dropout=Dropout(chance=0.3, keys=KEYS[1:]))
    torch.testing.assert_close(alone, together[1:, :5], atol=1e-5, rtol=0)


def gradient(*, recompute: bool, compiled: bool) -> torch.Tensor:
    transformer = build().requires_grad_(True)
    prepare_blocks(transformer.blocks, recompute=recompute, compiled=compiled)
    embeds = transformer.embed(random_ids(2, 7)).detach()
    transformer(embeds, dropout=Dropout(chance=0.3, keys=KEYS)).square().sum().backward()
    return torch.cat([p.grad.flatten() for p in transformer.model.layers.parameters()])


def test_blocks_that_are_computed_again_drop_the_same() -> None:
    plain = gradient(recompute=False, compiled=False)
    assert torch.equal(gradient(recompute=True, compiled=False), plain)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's own look
@pytest.mark.skipif(NO_COMPILER, reason="torch.compile needs a C++ compiler on a CPU; none is in PATH")
@pytest.mark.slow  # half a minute of compiling
def test_compiled_blocks_that_are_computed_again_drop_the_same() -> None:
    plain, fused = (gradient(recompute=both, compiled=both) for both in (False, True))
    torch.testing.assert_close(fused, plain, atol=1e-3, rtol=1e-3)


def tensors(run_dir: Path, stage: str) -> dict[str, torch.Tensor]:
    concept = Concept.load(run_dir / "stages" / stage / "concept")
    return {"rows": concept.rows, **concept.weights}


def test_what_is_learned_depends_on_dropout_and_not_on_recomputing(
    do_run: Callable[..., bool], finished_run: Path, tmp_path: Path
) -> None:
    do_run(tmp_path / "whole", *WORDS)
    do_run(tmp_path / "again", *WORDS, "memory.recompute=true")
    for stage in ("embedding", "transformer"):
        dropped, again, plain = (
            tensors(d, stage) for d in (tmp_path / "whole", tmp_path / "again", finished_run)
        )
        assert all(torch.equal(again[name], tensor) for name, tensor in dropped.items())
        assert not torch.equal(dropped["rows"], plain["rows"])


def test_only_training_passes_drop(
    do_run: Callable[..., bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the grids between the steps, nor the pictures after them, nor the search for where [V] starts."""
    forward, seen = ChameleonTransformer.forward, []

    def spy(self: ChameleonTransformer, *args: object, **kwargs: object) -> torch.Tensor:
        given = inspect.signature(forward).bind(self, *args, **kwargs).arguments
        seen.append((torch.is_grad_enabled(), given.get("dropout") is not None))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(ChameleonTransformer, "forward", spy)
    do_run(tmp_path / "run", *WORDS, "samples.grid_every_steps=2", "model.recipe.identifier.init=nearest")
    assert set(seen) == {(True, True), (False, False)}
    assert seen.count((True, True)) == 8  # four steps of each stage, a pass each
