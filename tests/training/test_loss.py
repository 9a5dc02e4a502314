"""A loss in chunks equals the plain one, in value and gradient; float32 weights learn from small steps."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest_backend import make_backend

from personalar.concepts.adapters.identifier import Identifier
from personalar.config.recipe import PriorConfig, PriorWeights, StageNumbers
from personalar.data.stream import collate, limit_loss
from personalar.models.base import TrainingSequence
from personalar.models.chameleon.backend import ChameleonBackend
from personalar.training.loss import _divergence, _in_chunks, head_loss, sequence_loss
from personalar.training.model_prep import train_in_float32
from personalar.training.stage import select_parameters
from personalar.training.strategy import ZeroPrecision

QKV = ["model.layers.*.self_attn.[qkv]_proj.weight"]


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("at_once", [1, 50, 64, 10_000])
def test_chunks_equal_the_plain_loss(at_once: int, z_loss: float) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(13, 8, generator=generator, requires_grad=True)
    weight = torch.randn(10, 8, generator=generator, requires_grad=True)
    targets = torch.randint(10, (13,), generator=generator)
    logits = hidden @ weight.T
    plain = F.cross_entropy(logits, targets) + z_loss * torch.logsumexp(logits, -1).square().mean()
    expected = torch.autograd.grad(plain, (hidden, weight))
    chunked = head_loss(
        hidden, lambda x: x @ weight.T, targets, num_choices=10, z_loss=z_loss, logits_at_once=at_once
    )
    torch.testing.assert_close(chunked, plain)
    torch.testing.assert_close(torch.autograd.grad(chunked, (hidden, weight)), expected)


def limited_loss(kept: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Return the loss of a sequence, its gradient at the hidden states (T, D), and the places of codes."""
    backend, hidden = make_backend(), []
    sequence = backend.training_sequence("a cat", torch.arange(16).view(4, 4), loss="image_tokens")
    places = [place for place, on in enumerate(sequence.loss_mask) if on]
    if kept is not None:
        sequence = limit_loss(sequence, kept, backend.choices("image_tokens"))
    identifier = Identifier(tokens={"[V]": backend.reserved_ids[0]}, rows=torch.zeros(1, 32))
    backend.transformer.model.embed_tokens.weight.requires_grad_(True)
    forward = backend.forward

    def spy(*given: object, **more: object) -> torch.Tensor:
        hidden.append(forward(*given, **more))
        hidden[0].retain_grad()
        return hidden[0]

    backend.forward = spy
    loss = sequence_loss(backend, identifier, collate([sequence], pad=1), loss="image_tokens", z_loss=1e-3)
    loss.backward()
    return loss.detach(), hidden[0].grad[0], places


def test_masked_codes_have_no_gradient_and_a_full_mask_changes_nothing() -> None:
    whole, gradient, places = limited_loss(None)
    full, same, _ = limited_loss(torch.ones(4, 4))
    assert torch.equal(whole, full) and torch.equal(gradient, same)
    kept = torch.zeros(4, 4)
    kept[1, 1:3] = 1
    loss, limited, _ = limited_loss(kept)
    on = [place - 1 for place, wanted in zip(places, kept.flatten().tolist(), strict=True) if wanted]
    off = [place - 1 for place in places if place - 1 not in on]
    assert (limited[off] == 0).all() and (limited[on].abs().amax(-1) > 0).all() and (gradient[off] != 0).any()
    assert loss != whole
    torch.testing.assert_close(limited[on] * len(on), gradient[on] * len(places))


def masked(backend: ChameleonBackend, sequence: TrainingSequence, count: int) -> TrainingSequence:
    """Return `sequence` with a loss on its first `count` codes only."""
    kept = (torch.arange(16) < count).view(4, 4)
    return limit_loss(sequence, kept, backend.choices("image_tokens"))


@pytest.mark.parametrize("prior", [None, PriorWeights(1.5, 3.0, 3.0)])
def test_masks_of_different_sizes_leave_a_batch_the_mean_of_its_micro_batches(
    prior: PriorWeights | None,
) -> None:
    backend, identifier, sequences = class_images_and_photos()
    sequences[:2] = [masked(backend, sequences[0], 3), masked(backend, sequences[1], 11)]

    def of(part: list[TrainingSequence]) -> torch.Tensor:
        batch = collate(part, pad=backend.pad_id)
        return sequence_loss(backend, identifier, batch, loss="image_tokens", z_loss=0.1, prior=prior)

    parts = [of([sequence]) for sequence in sequences]
    torch.testing.assert_close(of(sequences), torch.stack(parts).mean())


@pytest.mark.parametrize("kind", ["replay", "distill"])
def test_a_prior_of_weight_1_counts_like_the_photos_whatever_their_masks(kind: str) -> None:
    backend, identifier, sequences = class_images_and_photos()
    sequences[:2] = [masked(backend, sequences[0], 3), masked(backend, sequences[1], 11)]
    weights = PriorConfig(kind=kind, weight=1.0).weights(
        StageNumbers(steps=1, batch=3, lr=1, replay_ratio=0.3)
    )
    alone = PriorWeights(1.0, float(kind == "replay"), float(kind == "distill"))

    def of(part: list[TrainingSequence], prior: PriorWeights | None) -> torch.Tensor:
        batch = collate(part, pad=backend.pad_id)
        return sequence_loss(backend, identifier, batch, loss="image_tokens", z_loss=0.0, prior=prior)

    torch.testing.assert_close(of(sequences, weights), of(sequences[:2], alone) + of(sequences[2:], alone))


@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_distillation_is_the_divergence_from_the_frozen_base(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(13, 8, generator=generator, requires_grad=True)
    frozen = torch.randn(13, 10, generator=generator)
    weight = torch.randn(10, 8, generator=generator)
    teacher, student = frozen.softmax(-1), (hidden @ weight.T).softmax(-1)
    expected = (teacher * (teacher / student).log()).sum(-1).mean()
    divergence = partial(_divergence, head=lambda x: x @ weight.T)
    found = _in_chunks(divergence, hidden, frozen, None, rows)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, hidden) for value in (found, expected)))
    same = _in_chunks(divergence, hidden, (hidden @ weight.T).detach(), None, rows)
    assert abs(same.item()) < 1e-6 and torch.autograd.grad(same, hidden)[0].abs().max() < 1e-6


def test_zero_does_not_round_the_frozen_logits() -> None:
    batch = {"ids": torch.zeros(2, dtype=torch.int64), "frozen": torch.tensor([9.999], dtype=torch.float16)}
    found = ZeroPrecision("bf16-true").convert_input(batch)
    assert found["frozen"].dtype == torch.float16 and torch.equal(found["frozen"], batch["frozen"])


def class_images_and_photos() -> tuple[ChameleonBackend, Identifier, list[TrainingSequence]]:
    """Return two photos and one class image, with the logits of a base that has other weights."""
    backend, frozen = make_backend(), make_backend(5)
    tokens = {"[V]": backend.reserved_ids[0]}
    identifier = Identifier(tokens=tokens, rows=torch.ones(1, 32))
    codes = torch.arange(16).view(4, 4)
    photos = [backend.training_sequence(f"a {w} [V] cat", codes, tokens, loss="image_tokens") for w in "ab"]
    image = backend.training_sequence("a cat", codes + 9, loss="image_tokens")
    hidden = frozen.forward(frozen.embed(torch.tensor([image.ids])))[0, :-1]
    logits = frozen.image_logits(hidden[torch.tensor(image.loss_mask[1:])])
    return backend, identifier, [*photos, replace(image, is_class=True, frozen=logits)]


def test_class_images_that_count_like_photos_are_the_plain_loss() -> None:
    backend, identifier, sequences = class_images_and_photos()
    batch, settings = collate(sequences, pad=backend.pad_id), {"loss": "image_tokens", "z_loss": 0.1}
    found = sequence_loss(backend, identifier, batch, prior=PriorWeights(1.0, 1.0, 0.0), **settings)
    torch.testing.assert_close(found, sequence_loss(backend, identifier, batch, **settings))


@pytest.mark.parametrize("kind", ["replay", "distill", "both"])
@pytest.mark.parametrize("loss", ["image_tokens", "answer"])
def test_a_weighted_prior_is_added_to_the_loss_of_the_photos(kind: str, loss: str) -> None:
    """Also in micro-batches of one sequence, whose mean is the loss of the batch."""
    backend, identifier, sequences = class_images_and_photos()
    if loss == "answer":
        sequences = [replace(s, loss_mask=(False, *(True for _ in s.ids[1:]))) for s in sequences]
    numbers = StageNumbers(steps=1, batch=3, lr=1, replay_ratio=0.3)
    prior = PriorConfig(kind=kind, weight=0.25)

    def of(weights: PriorWeights, part: list[TrainingSequence]) -> torch.Tensor:
        batch = collate(part, pad=backend.pad_id)
        return sequence_loss(backend, identifier, batch, prior=weights, loss=loss, z_loss=0.0)

    each = [of(weights, sequences[2:]) for weights in (PriorWeights(0, 1, 0), PriorWeights(0, 0, 1))]
    share = {"replay": (1.0, 0.0), "distill": (0.0, 1.0), "both": (0.5, 0.5)}[kind]
    if loss == "image_tokens":  # all sequences have the same number of tokens
        expected = of(PriorWeights(1, 1, 0), sequences[:2]) + 0.25 * (share[0] * each[0] + share[1] * each[1])
        torch.testing.assert_close(of(prior.weights(numbers), sequences), expected)
        parts = [of(prior.weights(numbers), [sequence]) for sequence in sequences]
        torch.testing.assert_close(torch.stack(parts).mean(), expected)
    else:  # the distribution is distilled over the 16 codes alone
        sums = each[1] * (len(sequences[2].ids) - 1)
        codes = distillation_of_codes(backend, sequences[2])
        torch.testing.assert_close(sums, codes)


def distillation_of_codes(backend: ChameleonBackend, image: TrainingSequence) -> torch.Tensor:
    """Return the sum over an image's codes of KL(frozen || model)."""
    ids = torch.tensor([image.ids])
    codes = backend.choices("image_tokens")
    is_code = (ids[0, 1:] >= codes.start) & (ids[0, 1:] < codes.stop)
    ours = backend.image_logits(backend.forward(backend.embed(ids))[0, :-1][is_code]).softmax(-1)
    theirs = image.frozen.softmax(-1)
    return (theirs * (theirs / ours).log()).sum()


def test_small_steps_reach_weights_of_a_bfloat16_base() -> None:
    transformer = make_backend().transformer.to(torch.bfloat16)
    weights = select_parameters(transformer, QKV)
    before = {name: p.detach().clone() for name, p in weights.items()}
    embeds = transformer.embed(torch.arange(70, 82)[None])
    expected = transformer(embeds)
    train_in_float32(transformer, weights)
    assert all(p.dtype == torch.float32 for p in weights.values())
    assert torch.equal(transformer(embeds), expected)  # what the forward pass sees has not changed
    for parameter in weights.values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights.values(), lr=5e-6, betas=(0.9, 0.95))
    for _ in range(3):
        optimizer.zero_grad()
        transformer(embeds).float().square().mean().backward()
        optimizer.step()
    for name, parameter in weights.items():
        moved = (parameter - before[name].float()).abs().max()
        assert 5e-6 < moved < 1e-4
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32
