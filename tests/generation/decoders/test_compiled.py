"""The compiled decoder: its static step is tested as it is; compiling and capturing it needs a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch
from conftest_backend import make_backend
from naive import NaiveDecoder
from tape import Tape
from test_sampling import GRID, SETTINGS, TEXTS, prompts
from torch._inductor.compile_fx import compile_fx

from personalar.concepts.adapters.context_vectors import ContextVectors
from personalar.concepts.adapters.identifier import Identifier
from personalar.generation.decoders.compiled import CompiledDecoder
from personalar.generation.decoders.plain import PlainDecoder
from personalar.generation.sampling import gumbel_argmax, keep_top_p
from personalar.models.chameleon.backend import ChameleonBackend
from personalar.training.context import RunContext
from personalar.training.model_prep import train_in_float32
from personalar.training.module import PersonalizationModule

SHAPES = [(4, 4), (2, 6), (6, 2)]
INDUCTOR_MAKES = 2


class Uncompiled(CompiledDecoder):
    """The same buffers, steps and buckets, run as Python."""

    captures = 0

    @staticmethod
    def can_capture(device: torch.device) -> bool:
        return True

    @staticmethod
    def lower(function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    def capture(self, run: Callable[[], None], rewind: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        run()  # as a warm-up does: what it changes must be undone or done again alike
        rewind()
        return run


class Taped(Uncompiled):
    """The same, captured as a GPU does, by a tape."""

    def capture(self, run: Callable[[], None], rewind: Callable[[], None]) -> Callable[[], None]:
        super().capture(run, rewind)
        with patch("personalar.generation.sampling.nucleus_argmax", sorted_draw), Tape() as tape:
            run()
        rewind()
        return tape.replay


def sorted_draw(logits: torch.Tensor, noise: torch.Tensor, p: float) -> torch.Tensor:
    """Draw as everywhere but on a CPU, whose way has a loop that asks when to end."""
    return gumbel_argmax(keep_top_p(logits, p), noise)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("bucket", [1, 8, 128])
def test_static_steps_equal_plain(
    tiny_backend: ChameleonBackend, settings: dict[str, float], bucket: int
) -> None:
    ids, seeds = prompts(tiny_backend, *TEXTS), [3, -1, 7]
    decoder = Taped(bucket=bucket, **settings)
    for grid in SHAPES:
        images = decoder(tiny_backend, ids, grid, seeds)
        assert torch.equal(images, PlainDecoder(**settings)(tiny_backend, ids, grid, seeds))


def test_graphs_hold_for_other_prompts_seeds_and_weights() -> None:
    backend = make_backend()
    ids = prompts(backend, TEXTS[0], TEXTS[2])
    decoder, plain = Taped(bucket=16, cfg_scale=2.0), PlainDecoder(cfg_scale=2.0)
    first = decoder(backend, ids, GRID, [1, 2])
    captures, buffers = decoder.captures, decoder._buffers
    assert torch.equal(first, plain(backend, ids, GRID, [1, 2])) and captures < 15
    assert torch.equal(decoder(backend, ids[::-1], GRID, [8, 9]), plain(backend, ids[::-1], GRID, [8, 9]))
    with torch.no_grad():
        for mine, other in zip(backend.parameters(), make_backend(3).parameters(), strict=True):
            mine.copy_(other)
    again = decoder(backend, ids, GRID, [1, 2])
    assert torch.equal(again, plain(backend, ids, GRID, [1, 2])) and not torch.equal(again, first)
    assert decoder.captures == captures and decoder._buffers is buffers
    other = make_backend(3)  # the same weights elsewhere: graphs of the old ones must not be used
    assert torch.equal(decoder(other, ids, GRID, [1, 2]), again) and decoder._buffers is not buffers


def test_context_vectors_are_in_the_prefill_alone() -> None:
    backend = make_backend()
    tokens = dict(zip(("[V]", "[I]"), backend.reserved_ids, strict=False))
    rows, generator = Identifier(tokens=tokens, rows=torch.ones(2, 32)), torch.Generator().manual_seed(0)
    for vectors in ContextVectors().attach(backend, identifier=rows, generator=generator).values():
        vectors.data.copy_(torch.randn(vectors.shape, generator=generator))
    ids = [backend.prompt_ids(text, tokens=tokens) for text in ("a [V] cat", "a red cat")]
    taped = Taped(cfg_scale=2.0)(backend, ids, GRID, [1, 2], identifier=rows)
    assert torch.equal(taped, NaiveDecoder(cfg_scale=2.0)(backend, ids, GRID, [1, 2], identifier=rows))


def test_buffers_outlive_inference_mode(tiny_backend: ChameleonBackend) -> None:
    ids, decoder = prompts(tiny_backend, TEXTS[0]), Taped()
    with torch.inference_mode():
        first = decoder(tiny_backend, ids, GRID, [1])
    assert torch.equal(decoder(tiny_backend, ids, GRID, [1]), first)


def test_without_a_gpu_it_says_so_and_decodes_plainly(tiny_backend: ChameleonBackend) -> None:
    ids = prompts(tiny_backend, TEXTS[0])
    with pytest.warns(UserWarning, match="decoder=compiled needs a CUDA device, got cpu"):
        codes = CompiledDecoder()(tiny_backend, ids, GRID, [1])
    assert torch.equal(codes, PlainDecoder()(tiny_backend, ids, GRID, [1]))


def test_a_network_in_training_is_decoded_plainly() -> None:
    """The rounded copies of its float32 weights live for one call: a graph would read what is gone."""
    backend, decoder = make_backend().bfloat16(), Taped(cfg_scale=2.0)
    ids = prompts(backend, TEXTS[0])
    first = decoder(backend, ids, GRID, [1])
    assert backend.has_fixed_addresses and decoder.captures > 0
    captures, weights = decoder.captures, dict(backend.transformer.named_parameters())
    train_in_float32(backend.transformer, {name: weights[name] for name in list(weights)[3:6]})
    assert not backend.has_fixed_addresses
    assert torch.equal(decoder(backend, ids, GRID, [1]), first) and decoder.captures == captures


def test_what_a_failed_start_leaves_is_no_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory while the buffers are made: the same batch again starts from nothing."""
    backend, decoder = make_backend(), Taped()
    ids = prompts(backend, TEXTS[0])
    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(backend, "new_cache", Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory")))
        decoder(backend, ids, GRID, [1])
    assert torch.equal(decoder(backend, ids, GRID, [1]), PlainDecoder()(backend, ids, GRID, [1]))


@pytest.mark.filterwarnings("ignore:.*resuming.*")
def test_a_run_holds_no_graph_when_it_loads_and_trains(
    do_run: Callable[..., bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs hold their network and a cache that may fill the device: a second one would not fit beside."""
    made: list[CompiledDecoder] = []
    captures: list[int] = []
    for name in ("can_capture", "lower"):
        monkeypatch.setattr(CompiledDecoder, name, staticmethod(getattr(Uncompiled, name)))

    def capture(self: CompiledDecoder, run: Callable[[], None], rewind: Callable[[], None]) -> object:
        made.append(self)
        run()
        rewind()
        return run

    def held(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            captures.append(len(made))
            assert all(decoder._buffers is None and not decoder._replays for decoder in made)
            return function(*args, **kwargs)

        return run

    monkeypatch.setattr(CompiledDecoder, "capture", capture)
    monkeypatch.setattr(RunContext, "load_base", held(RunContext.load_base))
    monkeypatch.setattr(PersonalizationModule, "training_step", held(PersonalizationModule.training_step))
    assert do_run(tmp_path / "run", "stage=both", "decoder=compiled", "samples.grid_every_steps=1")
    assert len(set(captures)) > 3  # captured anew by pictures, class images and grids


def test_sharded_weights_are_decoded_plainly() -> None:
    backend, decoder = make_backend(), Taped()
    next(backend.transformer.parameters()).ds_id = 0  # as DeepSpeed marks them
    decoder(backend, prompts(backend, TEXTS[0]), GRID, [1])
    assert not backend.has_fixed_addresses and decoder.captures == 0


def test_one_compiled_block_serves_every_layer_length_and_batch() -> None:
    """The compiler is asked a few times, not once for every layer, and the images are those of plain."""
    backend, compiled = make_backend(num_hidden_layers=5), []

    class Compiled(Uncompiled):
        @staticmethod
        def lower(function: Callable[..., Any]) -> Callable[..., Any]:
            return torch.compile(function, fullgraph=True, backend=count)

    def count(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        compiled.append(graph)  # Inductor takes seconds for each: it makes those of the first batch
        return compile_fx(graph, inputs) if len(compiled) <= INDUCTOR_MAKES else graph

    torch._dynamo.reset()
    decoder, plain = Compiled(bucket=16, cfg_scale=2.0), PlainDecoder(cfg_scale=2.0)
    for batch in (1, 2, 3):
        ids, seeds = prompts(backend, *[TEXTS[i % 3] for i in range(batch)]), list(range(batch))
        for grid in (GRID, (6, 6), (2, 6)):
            assert torch.equal(decoder(backend, ids, grid, seeds), plain(backend, ids, grid, seeds))
    assert decoder.captures > len(compiled) > 8, "torch's own limit would have ended this"
    assert len(compiled) <= 3 * 2 * 3, "batches x widths x (one length, any length, all of the cache)"
    assert not any("forward" in vars(block) for block in backend.blocks)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_captured_graphs_equal_plain(tiny_backend: ChameleonBackend) -> None:
    backend = make_backend().cuda()
    ids, decoder = prompts(backend, *TEXTS), CompiledDecoder(bucket=16, cfg_scale=3.0, top_k=20)
    for seeds in ([1, 2, 3], [4, 5, 6]):
        plain = PlainDecoder(cfg_scale=3.0, top_k=20)(backend, ids, GRID, seeds)
        assert torch.equal(decoder(backend, ids, GRID, seeds), plain)
