"""The loss against a plain computation, the trained parameters, and the content of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest_backend import load_backend
from conftest_run import compose_config

from personalar.concepts.adapters.direction import Direction
from personalar.concepts.adapters.identifier import Identifier
from personalar.config.recipe import StageNumbers
from personalar.config.run_config import Stage, StageMethod
from personalar.data.stream import collate
from personalar.training.loss import sequence_loss
from personalar.training.module import Network, PersonalizationModule
from personalar.training.stage import select_parameters

QKV = ["model.layers.*.self_attn.[qkv]_proj.weight"]


@pytest.fixture
def backend(tiny_model_dir: Path):
    return load_backend(tiny_model_dir)


@pytest.fixture
def identifier(backend) -> Identifier:
    tokens = dict(zip(["[V]", "[S1]"], backend.tokenizer.concept_ids, strict=False))
    return Identifier(tokens=tokens, rows=torch.randn(2, 32, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def batch(backend, identifier):
    codes = torch.arange(16).view(4, 4)
    sequences = [
        backend.training_sequence(prompt, codes, identifier.tokens, loss="image_tokens")
        for prompt in ("a [V] cat", "a long [V] cat [S1]")
    ]
    return collate(sequences, pad=backend.tokenizer.pad)


def module(
    backend, identifier, *patterns: str, rows: bool = True, settings: Sequence[str] = ()
) -> PersonalizationModule:
    trains = StageMethod(numbers="x", identifier=rows, parameters=list(patterns))
    numbers = StageNumbers(steps=10, batch=2, lr=1e-2, identifier_lr=0.1)
    weights = select_parameters(backend.transformer, patterns)
    config = compose_config("+subject=cat", *settings)
    subject = SimpleNamespace(noun="cat")
    plans = {"transformer": SimpleNamespace(optimizer="adamw")}
    context = SimpleNamespace(config=config, subject=subject, plans=plans)
    made = PersonalizationModule(context, Stage(name="transformer", trains=trains, numbers=numbers))
    made.set_network(Network(backend=backend, identifier=identifier, weights=weights, adapters={}))
    return made


def test_answer_loss_and_z_loss(backend, identifier) -> None:
    codes = torch.arange(16).view(4, 4)
    sequence = backend.training_sequence("a [V] cat", codes, identifier.tokens, loss="answer")
    batch = collate([sequence], pad=backend.tokenizer.pad)
    plain = sequence_loss(backend, identifier, batch, loss="answer", z_loss=0.0)
    ids = batch["ids"]
    logits = backend.transformer.logits(backend.transformer(identifier(ids, backend.embed(ids))))
    predicted = logits[0, :-1][batch["loss_mask"][0, 1:]]
    assert torch.allclose(plain, F.cross_entropy(predicted, ids[0, 1:][batch["loss_mask"][0, 1:]]), atol=1e-5)
    with_z = sequence_loss(backend, identifier, batch, loss="answer", z_loss=0.1)
    assert torch.allclose(with_z - plain, 0.1 * torch.logsumexp(predicted, -1).square().mean(), atol=1e-3)


@pytest.mark.parametrize("patterns", [(), tuple(QKV)])
def test_only_what_the_stage_names_moves(backend, identifier, batch, patterns) -> None:
    before = {name: value.clone() for name, value in backend.state_dict().items()}
    rows = identifier.rows.detach().clone()
    trained = module(backend, identifier, *patterns)
    optimizer = trained.configure_optimizers()["optimizer"]
    for _ in range(2):
        optimizer.zero_grad()
        sequence_loss(backend, identifier, batch, loss="image_tokens", z_loss=0.0).backward()
        optimizer.step()
    changed = {name for name, value in backend.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"transformer.{name}" for name in select_parameters(backend.transformer, patterns)}
    assert not torch.equal(identifier.rows, rows)


def test_directions_are_trained_alone_and_the_subject_is_pulled_to_its_class(backend, identifier) -> None:
    settings = [f"model.recipe.identifier.{word}" for word in ("optimizer=direction", "pull=0.5")]
    optimizer = module(backend, identifier, settings=settings).configure_optimizers()["optimizer"]
    assert isinstance(optimizer, Direction) and optimizer.param_groups[0]["lr"] == 0.1
    (word,) = backend.encode_text(" cat")
    expected = 0.5 * F.normalize(backend.word_table[word], dim=0)
    assert torch.allclose(optimizer.pull, torch.stack((expected, torch.zeros(32))))
    both = module(backend, identifier, *QKV, settings=settings).configure_optimizers()["optimizer"]
    assert isinstance(both, torch.optim.AdamW)


def test_the_switch_holds_the_rows(backend, identifier) -> None:
    trained = module(backend, identifier, *QKV, rows=False)
    assert not identifier.rows.requires_grad
    assert [group["name"] for group in trained.configure_optimizers()["optimizer"].param_groups] == [
        "weights"
    ]


def test_a_checkpoint_holds_what_trains_and_loads_safely(backend, identifier, tmp_path: Path) -> None:
    trained = module(backend, identifier, *QKV)
    checkpoint = {"state_dict": trained.state_dict()}
    trained.on_save_checkpoint(checkpoint)
    assert set(checkpoint["state_dict"]) == {"identifier.rows"} | {
        f"transformer.model.layers.{layer}.self_attn.{part}_proj.weight"
        for layer in range(2)
        for part in "qkv"
    }
    torch.save(checkpoint, tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert not trained.strict_loading
