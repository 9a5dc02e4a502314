"""Where [V] starts: from words, or from the one that fits the photos."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from personalar.concepts.adapters.identifier import Identifier
from personalar.config.recipe import IdentifierNumbers
from personalar.core.console import Reporter
from personalar.data.datamodule import collate
from personalar.training.inputs import nearest_row, start_identifier
from personalar.training.loss import sequence_loss

SILENT = Reporter(enabled=False)


def photos() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, 16, (4, 4), generator=generator) for _ in range(2)]


def start(backend, **numbers) -> Identifier:
    generator = torch.Generator().manual_seed(0)
    return start_identifier(
        backend, IdentifierNumbers(**numbers), prompt="a [V] cat", photos=photos(), generator=generator,
        reporter=SILENT,
    )  # fmt: skip


@pytest.mark.parametrize("prompt", ["a photo of a [V] cat", "a [V]"])
def test_the_nearest_row_is_the_one_with_the_least_loss(tiny_backend, prompt: str) -> None:
    rows = torch.randn(
        6, tiny_backend.transformer.config.hidden_size, generator=torch.Generator().manual_seed(1)
    )
    tokens = {"[V]": tiny_backend.tokenizer.concept_ids[0]}
    ids = [tiny_backend.protocol.training_ids(prompt, p, tokens) for p in photos()]
    batch = collate(ids, pad=tiny_backend.tokenizer.pad)
    losses = [
        sequence_loss(
            tiny_backend, Identifier(tokens=tokens, rows=row[None]), batch, loss="image_tokens", z_loss=0.0
        ).item()
        for row in rows
    ]
    assert len({round(loss, 4) for loss in losses}) > 1
    said = io.StringIO()
    reporter = Reporter(console=Console(file=said, soft_wrap=True))
    found = nearest_row(tiny_backend, rows, prompt=prompt, photos=photos(), reporter=reporter)
    assert torch.equal(found, rows[losses.index(min(losses))][None])
    assert said.getvalue().startswith("start of [V]: 6 names tried on 2 photos in ")
    assert said.getvalue().endswith(f"least loss {min(losses):.3f}\n")


def test_nearest_starts_at_a_reserved_row_and_leaves_the_photos_tokens_random(tiny_backend) -> None:
    table = tiny_backend.transformer.model.embed_tokens.weight
    nearest, random = start(tiny_backend, init="nearest"), start(tiny_backend)
    assert list(nearest.tokens) == ["[V]", "[S1]", "[S2]"]
    assert any(torch.equal(nearest.rows[0], table[index]) for index in tiny_backend.tokenizer.concept_ids)
    assert torch.equal(nearest.rows[1:], random.rows[1:])


@pytest.mark.parametrize("init", ["random", "nearest"])
def test_a_start_is_a_function_of_its_seed(tiny_backend, init: str) -> None:
    assert torch.equal(start(tiny_backend, init=init).rows, start(tiny_backend, init=init).rows)
