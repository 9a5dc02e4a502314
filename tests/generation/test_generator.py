"""From prompts to pictures: what is asked for, in which order, and that what exists is kept."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import personalar.generation.generator as generator_module
from personalar.core.types import PromptSpec
from personalar.generation import batching
from personalar.generation.batching import draw_in_batches
from personalar.generation.decoders.jacobi import JacobiDecoder
from personalar.generation.decoders.plain import PlainDecoder
from personalar.generation.generator import Generator, generate_files, have_files
from personalar.generation.requests import chunks, pick_grid_prompts, requests_for
from personalar.models.base import PICTURES_AT_ONCE
from personalar.models.network import vq

SPECS = (
    PromptSpec(text="a photo of a {}", category="plain"),
    PromptSpec(text="a {} in the snow", category="recontext", context="snow"),
    PromptSpec(text="a {} on the beach", category="recontext", context="beach"),
    PromptSpec(text="a {} with a hat", category="accessory", accessory="hat"),
)
KINDS = ("subject", "class", "description")


def ask(stage: str, *, seeds=(0, 1), description="red cat"):
    return requests_for(stage, SPECS, seeds=seeds, kinds=KINDS, noun="cat", description=description)


@pytest.fixture(scope="module")
def generator(tiny_backend) -> Generator:
    return Generator(backend=tiny_backend, decoder=PlainDecoder(cfg_scale=2.0), batch=3)


def test_what_each_stage_is_judged_by() -> None:
    assert len(ask("base")) == 4 * 2 * 3 and len(ask("embedding")) == 4 * 2 * 2
    assert len(ask("base", description=None)) == 4 * 2 * 2
    assert {r.prompt for r in ask("transformer") if r.kind == "subject" and r.spec == SPECS[1]} == {
        "a [V] cat in the snow"
    }


def test_grids_take_turns_between_categories() -> None:
    assert pick_grid_prompts(SPECS, 3) == [SPECS[0], SPECS[1], SPECS[3]]
    assert pick_grid_prompts(SPECS, 9) == [SPECS[0], SPECS[1], SPECS[3], SPECS[2]]


def test_equal_prompts_and_seeds_are_sampled_once(generator, monkeypatch) -> None:
    drawn = []
    whole = generator.images
    monkeypatch.setattr(generator, "images", lambda p, s: drawn.extend(p) or whole(p, s))
    samples = generator.samples(ask("base", seeds=(0,), description=None))
    assert len(samples) == 8 and len(drawn) == 4  # on the base the subject is its class
    assert samples[0].image.tobytes() == samples[4].image.tobytes()
    assert samples[0].image.size == (32, 32)


@pytest.mark.parametrize("at_once", [4, 2, 1])
def test_a_picture_is_the_same_alone_and_in_any_batch(generator, monkeypatch, at_once: int) -> None:
    one = generator.backend.vq.config.decode_bytes(1, 32**2)
    monkeypatch.setattr(vq, "BYTES_AT_ONCE", at_once * one)
    decode, sizes = generator.backend.vq.decode, set()
    monkeypatch.setattr(generator.backend.vq, "decode", lambda c: sizes.add(len(c)) or decode(c))
    codes = generator.codes(["a cat"] * 6, range(6))
    together = generator.pictures(codes)
    for i in range(6):
        assert generator.pictures(codes[i : i + 1])[0].tobytes() == together[i].tobytes()
    assert generator.pictures(codes[3:])[1].tobytes() == together[4].tobytes()
    assert sizes == {at_once}


def test_finishing_runs_beside_the_drawing_and_in_order(generator) -> None:
    batches = [[("a cat", 1), ("a dog", 2)], [("a boot", 3)], [("a cat", 4)]]
    threads, counted = set(), []

    def finish(asked, pictures):
        threads.add(threading.current_thread().name)
        return [(seed, picture.tobytes()) for (_, seed), picture in zip(asked, pictures, strict=True)]

    made = list(generator.stream(batches, finish, counted.append))
    assert [[seed for seed, _ in some] for some in made] == [[1, 2], [3], [4]]
    assert made[2][0][1] == generator.images(["a cat"], [4])[0].tobytes()
    assert threading.current_thread().name not in threads and sum(counted) == 4


def test_an_error_while_finishing_is_not_lost(generator) -> None:
    def finish(asked, pictures):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        list(generator.stream([[("a cat", 1)]] * 3, finish))


class Hungry(PlainDecoder):
    """Runs out of memory above two images."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error, self.batches = error, []

    def __call__(self, backend, prompts, *args, **kwargs):
        self.batches.append(len(prompts))
        if len(prompts) > 2:
            raise self.error
        return super().__call__(backend, prompts, *args, **kwargs)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: you tried")]
)
def test_out_of_memory_halves_the_batch_and_goes_on(tiny_backend, error) -> None:
    decoder, counted = Hungry(error), []
    images = Generator(backend=tiny_backend, decoder=decoder, batch=8)
    codes = images.codes(["a cat"] * 7, range(7), counted.append)
    assert decoder.batches == [7, 3, 1, 1, 1, 1, 1, 1, 1] and sum(counted) == 7
    plain = Generator(backend=tiny_backend, decoder=PlainDecoder()).codes(["a cat"] * 7, range(7))
    assert torch.equal(codes, plain)


def test_other_errors_and_one_image_too_many_are_raised(tiny_backend) -> None:
    def fails(part: slice) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        draw_in_batches(fails, 4, 4)
    broken = Generator(backend=tiny_backend, decoder=Hungry(RuntimeError("shapes")))
    with pytest.raises(RuntimeError, match="shapes"):
        broken.codes(["a cat"] * 3, range(3))


def test_the_batch_fits_the_free_memory(tiny_backend) -> None:
    sizes = {"rows": 2, "length": 50}
    token_bytes = 2 * 2 * 32 * 4  # two layers, keys and values, 32 channels, float32
    free = int(10.5 * token_bytes * 100 / batching.CACHE_SHARE)
    assert batching.largest_batch(64, tiny_backend, free=free, **sizes) == 10
    assert batching.largest_batch(4, tiny_backend, free=free, **sizes) == 4
    assert batching.largest_batch(64, tiny_backend, free=-1, **sizes) == 1
    assert batching.free_bytes(torch.device("cpu")) > 2**20


def test_batches_are_cut_by_the_memory_before_the_first(tiny_backend, monkeypatch) -> None:
    """Later it holds what turns the pictures before into pixels, and what a decoder keeps."""
    decoder = Hungry(RuntimeError("shapes"))
    for free, size in ((None, 2), (0, 1)):
        images = Generator(backend=tiny_backend, decoder=decoder, batch=2)
        monkeypatch.setattr(generator_module, "free_bytes", lambda device, free=free: free)
        assert images.fitting_batch(["a cat"] * 4) == size
        monkeypatch.setattr(generator_module, "free_bytes", lambda device: 2**40)
        assert images.fitting_batch(["a cat"] * 4) == size
        decoder.batches.clear()
        images.codes(["a cat"] * 4, range(4))
        assert decoder.batches == [size] * (4 // size)


def test_processes_that_share_a_network_run_equally_many_passes(session, tiny_backend, monkeypatch) -> None:
    """Jacobi's passes depend on the picture, batches on the memory that one process has free."""
    session = replace(session, decoder=JacobiDecoder(cfg_scale=2.0, top_k=20))
    assert session.generator(tiny_backend, None).decoder is session.decoder
    monkeypatch.setattr(type(tiny_backend), "is_sharded", True)
    images = session.generator(tiny_backend, None)
    monkeypatch.setattr(generator_module, "free_bytes", lambda device: 0)
    assert images.fitting_batch(["a cat"] * 40) == 40
    assert type(images.decoder) is PlainDecoder and images.decoder.sampling == session.decoder.sampling
    hungry = Generator(backend=tiny_backend, decoder=Hungry(torch.OutOfMemoryError("CUDA")), batch=None)
    with pytest.raises(torch.OutOfMemoryError):
        hungry.codes(["a cat"] * 4, range(4))
    assert hungry.decoder.batches == [4]


def test_memory_is_kept_for_turning_codes_into_pictures(tiny_backend, monkeypatch) -> None:
    images = Generator(backend=tiny_backend, decoder=PlainDecoder(), batch=64)
    decoding = tiny_backend.decode_bytes(PICTURES_AT_ONCE, tiny_backend.code_shape(None))
    token_bytes = 2 * 2 * 32 * 4
    length = len(images._ids(["a cat"])[0]) + len(tiny_backend.grammar(*tiny_backend.code_shape(None)))
    free = decoding + int(7.5 * token_bytes * length / batching.CACHE_SHARE)
    monkeypatch.setattr(generator_module, "free_bytes", lambda device: free)
    assert images.fitting_batch(["a cat"]) == 7


@given(count=st.integers(0, 500), at_once=st.integers(1, 200))
def test_parts_are_few_and_alike(count: int, at_once: int) -> None:
    """So that a compiled decoder captures its graphs once, and no batch is wasted on two pictures."""
    size = batching.even_batch_size(count, at_once)
    parts = [min(size, count - start) for start in range(0, count, size)] if count else []
    assert size <= at_once and len(parts) == -(-count // at_once)
    assert not parts or max(parts) - parts[-1] < max(2, len(parts))


def test_batches_do_not_depend_on_what_exists() -> None:
    requests = ask("base")
    grid = requests[:2]
    batches = chunks(requests, 8, first=grid)
    assert batches[0][:2] == grid and sum(map(len, batches)) == len(requests)
    pairs = [{(request.prompt, request.seed) for request in batch} for batch in batches]
    assert len(batches[0]) > 2 == len(pairs[0])  # the grid's pictures are also those of kind "class"
    assert not any(pairs[0] & others for others in pairs[1:])  # and are sampled once
    assert sorted(repr(request) for batch in batches for request in batch) == sorted(map(repr, requests))


def test_files_are_written_once_and_read_back(generator, tmp_path: Path) -> None:
    requests = ask("base", seeds=(0,))
    assert not have_files(requests, tmp_path)
    batches, count = [requests[:5], requests[5:]], []
    made = [
        s for some in generate_files(batches, generator, tmp_path, provenance={"base": "x"}) for s in some
    ]
    assert have_files(requests, tmp_path)
    again = generate_files(batches, None, tmp_path, provenance={}, progress=count.append)
    found = [sample for some in again for sample in some]
    assert count == [5, 7]
    assert [(s.prompt, s.kind, s.seed, s.spec) for s in found] == [
        (s.prompt, s.kind, s.seed, s.spec) for s in made
    ]
    assert [s.image.tobytes() for s in found] == [s.image.tobytes() for s in made]
