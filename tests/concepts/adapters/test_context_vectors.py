"""Context vectors: they replace what the first blocks read at [V] and [I], and nothing else."""

from __future__ import annotations

import pytest
import torch
from conftest_backend import make_backend
from torch import Tensor, nn

from personalar.concepts.adapters.context_vectors import ContextVectors
from personalar.concepts.adapters.identifier import Identifier
from personalar.generation.generator import Generator
from personalar.models.base import Backend

PROMPT = "a red [V] cat"


def identifier(backend: Backend) -> Identifier:
    tokens = {"[V]": backend.reserved_ids[0], "[I]": backend.reserved_ids[1]}
    return Identifier(tokens=tokens, rows=torch.randn(2, 32, generator=torch.Generator().manual_seed(0)))


def attached(backend: Backend, rows: Identifier, **arguments: object) -> dict[str, nn.Parameter]:
    """Return random vectors that are attached to `backend`."""
    generator = torch.Generator().manual_seed(1)
    made = ContextVectors(**arguments).attach(backend, identifier=rows, generator=generator)
    for parameter in made.values():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return made


def hidden_states(backend: Backend, rows: Identifier, ids: list[int]) -> Tensor:
    tensor = torch.tensor([ids])
    return backend.forward(rows(tensor, backend.embed(tensor)), ids=tensor)


def test_without_blocks_it_is_the_base() -> None:
    plain, adapted = make_backend(), make_backend()
    rows = identifier(plain)
    attached(adapted, rows, blocks=0)
    ids = plain.prompt_ids(PROMPT, tokens=rows.tokens)
    assert adapted.prompt_ids(PROMPT, tokens=rows.tokens) == ids
    assert torch.equal(hidden_states(adapted, rows, ids), hidden_states(plain, rows, ids))


def test_one_block_without_an_image_context_is_the_identifier() -> None:
    """In values and in gradients, and with another embedding of [V], which is not read."""
    plain, adapted = make_backend(), make_backend()
    rows = identifier(plain)
    other = Identifier(tokens=rows.tokens, rows=torch.ones(2, 32))
    (vectors,) = attached(adapted, other, blocks=1, place=None).values()
    vectors.data.copy_(rows.rows[:1])
    ids = plain.prompt_ids(PROMPT, tokens=rows.tokens)
    expected, found = hidden_states(plain, rows, ids), hidden_states(adapted, other, ids)
    assert torch.equal(found, expected)
    expected.square().sum().backward()
    found.square().sum().backward()
    assert torch.equal(vectors.grad[0], rows.rows.grad[0]) and not other.rows.grad.any()


def test_the_vectors_are_what_the_blocks_read_at_their_places() -> None:
    backend = make_backend(num_hidden_layers=4)
    rows = identifier(backend)
    vectors = attached(backend, rows, blocks=3)
    ids = backend.prompt_ids(PROMPT, tokens=rows.tokens)
    assert ids[-1] == rows.tokens["[I]"]  # directly before the image
    read: list[Tensor] = []
    for block in backend.blocks:
        block.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    hidden_states(backend, rows, ids)
    places = ids.index(rows.tokens["[V]"]), len(ids) - 1
    for place, values in zip(places, vectors.values(), strict=True):
        assert all(torch.equal(states[place], own) for states, own in zip(read, values, strict=False))
        assert not torch.equal(read[3][place], values[-1])  # block 3 reads what block 2 computed
    embeds = backend.embed(torch.tensor([ids]))[0]
    others = [place for place in range(len(ids)) if place not in places]
    assert torch.equal(read[0][others], embeds[others])


def test_a_base_with_fewer_blocks_has_vectors_before_all() -> None:
    backend = make_backend()
    assert {p.shape for p in attached(backend, identifier(backend)).values()} == {(2, 32)}


def test_prompts_without_the_subject_have_no_context() -> None:
    plain, adapted = make_backend(), make_backend()
    rows = identifier(plain)
    attached(adapted, rows)
    assert adapted.prompt_ids("a red cat", tokens=rows.tokens) == plain.prompt_ids("a red cat")
    class_prompt = adapted.prompt_ids("a red cat[I]", tokens=rows.tokens)
    assert class_prompt == [*plain.prompt_ids("a red cat"), rows.tokens["[I]"]]


@pytest.mark.parametrize(("place", "kept"), [("prompt", False), ("both", True)])
def test_the_unconditional_context_has_it_if_asked(place: str, kept: bool) -> None:
    plain, adapted = make_backend(), make_backend()
    rows = identifier(plain)
    attached(adapted, rows, place=place)
    ids = adapted.prompt_ids(PROMPT, tokens=rows.tokens)
    ending = [rows.tokens["[I]"]] if kept else []
    assert adapted.unconditional_prompt(ids) == [*plain.unconditional_prompt(ids), *ending]
    codes = torch.zeros(4, 4, dtype=torch.int64)
    dropped = adapted.unconditional_sequence(PROMPT, codes, rows.tokens, loss="image_tokens")
    assert (rows.tokens["[I]"] in dropped.ids) == kept

    def decoder(*_: object, contexts: list[list[int]], **__: object) -> Tensor:
        negative = plain.prompt_ids("a dog")
        assert contexts == [[*negative, *ending], negative]
        return torch.zeros(2, 4, 4)

    generator = Generator(backend=adapted, decoder=decoder, identifier=rows, batch=None)
    generator.codes([PROMPT, "a cat"], [0, 1], negative_prompt="a dog")


def prepared(**arguments: object) -> tuple[Backend, Identifier, ContextVectors, dict[str, nn.Parameter]]:
    backend = make_backend()
    rows = identifier(backend)
    adapter = ContextVectors(**arguments)
    vectors = adapter.attach(backend, identifier=rows, generator=torch.Generator())
    codes = torch.arange(16).view(4, 4)
    photo = backend.training_sequence(PROMPT, codes, rows.tokens, loss="image_tokens")
    adapter.prepare(backend, rows, [photo], initialize=True)
    return backend, rows, adapter, vectors


def test_the_start_of_the_text_vectors_changes_nothing() -> None:
    """They start at what [V]'s embedding becomes in each block."""
    backend, rows, _, _ = prepared(place=None)
    ids = backend.prompt_ids(PROMPT, tokens=rows.tokens)
    expected = hidden_states(make_backend(), rows, ids)
    torch.testing.assert_close(hidden_states(backend, rows, ids), expected)


@pytest.mark.parametrize("distance", ["squared", "plain"])
def test_the_penalty_is_the_distance_from_the_mean_image_token(distance: str) -> None:
    _, rows, adapter, vectors = prepared(regularizer=0.5, distance=distance)
    plain = make_backend()
    ids = torch.tensor([plain.training_sequence(
        PROMPT, torch.arange(16).view(4, 4), rows.tokens, loss="image_tokens").ids])  # fmt: skip
    images = (ids[0] >= plain.code_offset) & (ids[0] < plain.code_offset + 64)
    mean = rows(ids, plain.embed(ids))[0, images].mean(0)  # what block 0 reads
    torch.testing.assert_close(vectors["image"][0], mean)
    start = adapter.penalty()
    assert start == 0
    start.backward()
    assert torch.isfinite(vectors["image"].grad).all()
    vectors["image"].data.add_(2.0)  # |difference| = 2 sqrt(32) in each of two blocks
    expected = 0.5 * (4.0 * 32 if distance == "squared" else 2.0 * 32**0.5)
    assert adapter.penalty().item() == pytest.approx(expected)


def test_a_concept_contains_the_number_of_blocks_and_the_place() -> None:
    adapter = ContextVectors()
    adapter.read_arguments({"text": torch.zeros(1, 32), "image_in_both_contexts": torch.zeros(1, 32)})
    assert (adapter.blocks, adapter.place) == (1, "both")
    adapter.read_arguments({"text": torch.zeros(3, 32)})
    assert (adapter.blocks, adapter.place) == (3, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"blocks": -1}, "blocks=-1 .* must be at least 0"),
        ({"place": "after"}, "place='after', .* allowed are place=prompt, both or null"),
        ({"distance": "cosine"}, "distance=squared, plain"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ContextVectors(**arguments)


def test_what_cannot_be_attached_or_trained_is_refused() -> None:
    backend = make_backend()
    alone = Identifier(tokens={"[V]": backend.reserved_ids[0]}, rows=torch.zeros(1, 32))
    with pytest.raises(ValueError, match=r"the concept has no id for \[I\], which context vectors need"):
        ContextVectors().attach(backend, identifier=alone, generator=torch.Generator())
    with pytest.raises(ValueError, match="blocks=0 trains nothing"):
        prepared(blocks=0)
