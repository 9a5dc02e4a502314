"""The learned rows: where they stand in, that only they move, how they start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from personalar.concepts.adapters.identifier import (
    Identifier,
    assign_tokens,
    class_row,
    random_rows,
    slide,
    word_norms,
    word_row,
)
from personalar.concepts.concept import Concept


def make() -> Identifier:
    return Identifier(tokens={"[V]": 7, "[S1]": 9}, rows=torch.tensor([[1.0, 2.0], [3.0, 4.0]]))


def test_rows_replace_their_ids_only() -> None:
    ids = torch.tensor([[7, 1, 9], [0, 7, 7]])
    embeds = torch.zeros(2, 3, 2)
    out = make()(ids, embeds)
    assert out.tolist() == [[[1, 2], [0, 0], [3, 4]], [[0, 0], [1, 2], [1, 2]]]
    assert embeds.abs().sum() == 0


def test_gradients_reach_the_rows_that_were_used() -> None:
    identifier = make()
    identifier(torch.tensor([[7, 7, 1]]), torch.zeros(1, 3, 2)).sum().backward()
    assert identifier.rows.grad.tolist() == [[2, 2], [0, 0]]


def test_rows_take_the_embeddings_precision() -> None:
    assert make()(torch.tensor([[7]]), torch.zeros(1, 1, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_tokens_are_given_in_order_and_can_run_out() -> None:
    assert assign_tokens(["[V]", "[S1]"], [40, 41, 42]) == {"[V]": 40, "[S1]": 41}
    names = ["[V]", "[V:2]", "[S1]", "[S2]", "[I]"]
    assert list(assign_tokens(names, range(5))) == names
    with pytest.raises(ValueError, match=r"^5 learned tokens .* has 4: use at most 1 photos$"):
        assign_tokens(names, range(4))
    with pytest.raises(ValueError, match=r"has 3: set model\.recipe\.identifier\.rows to less$"):
        assign_tokens(names, range(3))


def test_a_concept_can_have_every_name_that_is_assigned(tmp_path: Path) -> None:
    tokens = assign_tokens(["[V]", "[V:2]", "[S1]", "[I]", "[T2]"], range(80, 90))
    concept = Concept(
        base={"name": "nano", "fingerprint": "abc"},
        subject={"name": "cat", "noun": "cat", "fingerprint": "f"},
        stage="embedding", tokens=tokens, rows=torch.randn(5, 4),
    )  # fmt: skip
    assert Concept.load(concept.save(tmp_path)).tokens == tokens
    with pytest.raises(ValueError, match=r"an adapter needs a token 'image'; allowed: .* \[I\] .*: rename"):
        assign_tokens(["[V]", "image"], [40, 41])


def test_random_rows_have_the_tables_scale_and_come_from_the_seed() -> None:
    table = torch.randn(4000, 8) * torch.arange(1, 9) + 3
    rows = random_rows(table, 4000, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(rows.std(0) / torch.arange(1, 9), torch.ones(8), atol=0.1)
    assert torch.equal(rows[:2], random_rows(table, 4000, generator=torch.Generator().manual_seed(0))[:2])


def test_word_row_is_the_mean_of_words() -> None:
    table = torch.arange(8.0).view(4, 2)
    assert word_row(table, [[0], [1, 3]]).tolist() == [[2, 3]]


def test_the_row_of_a_class_is_the_mean_over_its_tokens(tiny_backend) -> None:
    ids = tiny_backend.encode_text(" duck toy")
    assert torch.equal(class_row(tiny_backend, "duck toy")[0], tiny_backend.word_table[ids].mean(0))


def test_image_codes_are_no_words(janus_backend, tiny_backend) -> None:
    """Janus has its codes in another table, and rows after the named ones that were never trained."""
    table, codes = tiny_backend.word_table, tiny_backend.choices("image_tokens")
    assert torch.equal(
        word_norms(tiny_backend), torch.cat((table[: codes.start], table[codes.stop :])).norm(dim=1)
    )
    named = janus_backend.word_table[janus_backend.trained_rows]
    assert torch.equal(word_norms(janus_backend), named.norm(dim=1))


def test_a_row_turns_from_the_word_and_goes_on_in_a_straight_line() -> None:
    word, rows = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 6.0], [4.0, 0.0, 0.0]])
    half = 4 * 0.5**0.5
    assert torch.allclose(
        slide(word, rows, 0.5), torch.tensor([[half, 0.0, half], [3.0, 0.0, 0.0]]), atol=1e-5
    )
    assert torch.allclose(slide(word, rows, 1.0), rows, atol=1e-5)
    assert torch.allclose(slide(word, rows, 1.5), word + 1.5 * (rows - word))
    assert torch.equal(slide(word, rows, 0.0), word.expand(2, 3))
