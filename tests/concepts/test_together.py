"""Strength, and several concepts in one picture, against the base and each concept alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest_backend import load_backend
from naive import NaiveDecoder
from test_compiled import Uncompiled
from test_exchange import adapter

from personalar.concepts.adapters.base import Adapter
from personalar.concepts.adapters.context_vectors import ContextVectors
from personalar.concepts.adapters.identifier import Identifier, class_row, slide
from personalar.concepts.concept import Concept
from personalar.concepts.together import Part, apply_together, check_together
from personalar.data.prompts import spell
from personalar.generation.decoders.jacobi import JacobiDecoder
from personalar.generation.decoders.plain import PlainDecoder
from personalar.generation.generator import Generator
from personalar.models.base import Backend

QKV = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def load(tiny_model_dir: Path):
    return lambda: load_backend(tiny_model_dir)


def concept(backend: Backend, seed: int = 0, **changes: object) -> Concept:
    ids = backend.reserved_ids
    values = {
        "base": {"name": "nano", "fingerprint": "abc"},
        "subject": {"name": "tom", "noun": "cat", "fingerprint": "f", "word": "[tom]"},
        "stage": "embedding",
        "tokens": {"[V]": ids[0], "[S1]": ids[1]},
        "rows": torch.randn(2, 32, generator=torch.Generator().manual_seed(seed)),
    }
    return Concept(**(values | changes))


def draw(backend: Backend, identifier: Identifier | None, prompt: str) -> torch.Tensor:
    return Generator(backend=backend, decoder=PlainDecoder(), identifier=identifier).codes([prompt], [3])


def weights(backend: Backend) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in backend.transformer.state_dict().items()}


def test_strength_0_is_the_base_with_the_class_word(load) -> None:
    """The oracle puts the word's id into the prompt of a base that has learned nothing."""
    backend, base = load(), load()
    identifier = concept(backend, lora=adapter()).apply(backend, strength=0)
    (word,) = base.encode_text(" cat")
    ids = base.prompt_ids("a [V] cat", tokens={"[V]": word})
    expected = PlainDecoder()(base, [ids], base.code_shape(), [3])
    assert torch.equal(draw(backend, identifier, "a [V] cat"), expected)
    assert all(torch.equal(value, weights(base)[name]) for name, value in weights(backend).items())


def test_strength_scales_lora_and_leaves_the_photos_tokens(load) -> None:
    base, found = weights(load()), {}
    for strength in (0.5, 1.0, 1.5):
        backend = load()
        learned = concept(backend, lora=adapter())
        rows = learned.apply(backend, strength=strength).rows.detach()
        assert torch.allclose(rows[:1], slide(class_row(backend, "cat"), learned.rows[:1], strength))
        assert torch.equal(rows[1], learned.rows[1])
        found[strength] = weights(backend)[QKV] - base[QKV]
    assert found[1.0].abs().max() > 0.1
    for strength in (0.5, 1.5):
        assert torch.allclose(found[strength], strength * found[1.0], atol=1e-5)


def test_strength_1_is_the_concept_bit_for_bit(load) -> None:
    plain, same = load(), load()
    learned = concept(plain, lora=adapter())
    assert torch.equal(learned.apply(plain).rows, learned.rows)
    assert torch.equal(learned.apply(same, strength=1.0).rows, learned.rows)
    assert all(torch.equal(value, weights(plain)[name]) for name, value in weights(same).items())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"weights": {QKV: torch.zeros(32, 32)}}, "replaces 1 tensors of the base"),
        ({"adapters": {"shift": {"shift": torch.zeros(2)}}}, "contains the adapters shift"),
    ],
)
def test_what_cannot_be_scaled_is_refused_with_a_way(load, changes: dict, reason: str) -> None:
    backend = load()
    fixed = concept(backend, **changes)
    with pytest.raises(
        ValueError, match=rf"strength=0.5, .*'tom' {reason}: set strength=1, or train with method=lora"
    ):
        fixed.apply(backend, strength=0.5)
    parts = [Part(concept=concept(backend), word="[a]"), Part(concept=fixed, word="[b]")]
    with pytest.raises(ValueError, match=rf"\[b\] {reason}, so it cannot be combined with others: train"):
        check_together(parts)
    check_together(parts[1:])


def test_other_bases_are_refused(load) -> None:
    first = concept(load())
    second = replace(first, base={"name": "anole", "fingerprint": "xyz"})
    with pytest.raises(ValueError, match=r"different bases, nano \(abc\), anole \(xyz\): train them on one"):
        check_together([Part(concept=first, word="[a]"), Part(concept=second, word="[b]")])


def test_each_of_several_concepts_is_drawn_as_alone(load) -> None:
    """Both have the same ids in their files, so one must move."""
    cat, dog = concept(load(), 1), concept(load(), 2)
    backend = load()
    both = apply_together([Part(concept=cat, word="[cat]"), Part(concept=dog, word="[rex]")], backend)
    for word, alone in (("[cat]", cat), ("[rex]", dog)):
        fresh = load()
        expected = draw(fresh, alone.apply(fresh), "a [V] in the snow")
        assert torch.equal(draw(backend, both, f"a {word} in the snow"), expected)
    assert not torch.equal(
        draw(backend, both, "a [cat] and a [rex]"), draw(backend, both, "a [rex] and a [cat]")
    )


def test_lora_of_several_concepts_adds_up(load) -> None:
    base, sums = weights(load())[QKV], []
    first, second = concept(load(), lora=adapter()), concept(load(), lora=adapter())
    for parts in (
        [Part(concept=first, word="[a]")],
        [Part(concept=second, word="[b]", strength=0.5)],
        [Part(concept=first, word="[a]"), Part(concept=second, word="[b]", strength=0.5)],
    ):
        backend = load()
        apply_together(parts, backend)
        sums.append(weights(backend)[QKV] - base)
    assert torch.allclose(sums[2], sums[0] + sums[1], atol=1e-5) and sums[0].abs().max() > 0.1


def test_a_concept_alone_has_two_words(load) -> None:
    backend = load()
    learned = concept(backend)
    identifier = apply_together([Part(concept=learned, word="[rex]")], backend)
    assert identifier.tokens == learned.tokens
    assert torch.equal(draw(backend, identifier, "a [rex] cat"), draw(backend, identifier, "a [V] cat"))


def test_ids_can_run_out(load) -> None:
    backend = load()
    many = [Part(concept=concept(backend), word=f"[c{k}]") for k in range(len(backend.reserved_ids) + 1)]
    with pytest.raises(ValueError, match=r"reserved ids, but this base has .*: use fewer concepts"):
        apply_together(many, backend)


def with_vectors(backend: Backend, seed: int) -> Concept:
    """A concept of context vectors before the first of two blocks: the mask acts after the last of them."""
    generator, ids = torch.Generator().manual_seed(seed), backend.reserved_ids
    vectors = {name: 3 * torch.randn(1, 32, generator=generator) for name in ("text", "image")}
    tokens = {"[V]": ids[0], "[S1]": ids[1], "[I]": ids[2]}
    return concept(
        backend,
        tokens=tokens,
        rows=torch.randn(3, 32, generator=generator),
        adapters={"context": vectors},
    )


def adapters() -> dict[str, Adapter]:
    return {"context": ContextVectors()}


def test_context_vectors_of_two_concepts_are_in_one_picture(load) -> None:
    """All decoders draw what the naive one does, and a prompt with one of them what it draws alone."""
    cat, snow = with_vectors(load(), 1), with_vectors(load(), 2)
    parts = [Part(concept=cat, word="[cat]"), Part(concept=snow, word="[snow]")]
    check_together(parts, adapters())
    backend = load()
    both = apply_together(parts, backend, adapters())
    for word, alone in (("[cat]", cat), ("[snow]", snow)):
        fresh = load()
        expected = draw(fresh, alone.apply(fresh, adapters()), "a [V] in the snow")
        assert torch.equal(draw(backend, both, f"a {word} in the snow"), expected)
    texts = ("a [cat] in [snow] style", "a [snow] and a red [cat]")
    ids = [backend.prompt_ids(spell(text, both.words), tokens=both.tokens) for text in texts]
    first, second = both.tokens["[I] of [cat]"], both.tokens["[I] of [snow]"]
    assert [prompt[-2:] for prompt in ids] == [[first, second], [second, first]]
    sampling = {"cfg_scale": 3.0, "top_k": 20}
    arguments = (backend, ids, backend.code_shape(), [1, 2], both)
    naive = NaiveDecoder(**sampling)(*arguments)
    decoders = (
        PlainDecoder(**sampling),
        JacobiDecoder(window=4, max_batch=2, **sampling),
        Uncompiled(**sampling),
    )
    assert all(torch.equal(decoder(*arguments), naive) for decoder in decoders)
    backend.separate_ids.clear()
    assert not torch.equal(NaiveDecoder(**sampling)(*arguments), naive)


def test_states_of_one_concept_do_not_depend_on_the_other(load) -> None:
    """Two prompts that differ in the style's vectors have equal states at the subject's tokens."""
    states = []
    for seed in (2, 3):
        backend = load()
        parts = [with_vectors(backend, 1), with_vectors(backend, seed)]
        both = apply_together(
            [Part(concept=each, word=f"[{k}]") for k, each in enumerate(parts)], backend, adapters()
        )
        # Only tokens of the concepts, because other ones see both.
        ids = torch.tensor([list(both.tokens.values())])
        hidden = backend.forward(both(ids, backend.embed(ids)), ids=ids)[0]
        states.append(dict(zip(both.tokens, hidden, strict=True)))
    for name in states[0]:
        assert torch.equal(states[0][name], states[1][name]) == name.endswith("[0]")
