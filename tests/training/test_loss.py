"""A loss in chunks equals the plain one, in value and gradient; float32 weights learn from small steps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest_backend import make_backend

from personalar.concepts.adapters.identifier import Identifier
from personalar.data.stream import collate, limit_loss
from personalar.training.loss import head_loss, sequence_loss
from personalar.training.model_prep import (
    prepare_blocks,
    quantize_base,
    require_bitsandbytes,
    train_in_float32,
)
from personalar.training.module import make_optimizer
from personalar.training.stage import select_parameters

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


def gradients(recompute: bool, compiled: bool = False) -> dict[str, torch.Tensor]:
    backend = make_backend()
    weights = select_parameters(backend.transformer, QKV)
    for parameter in weights.values():
        parameter.requires_grad_(True)
    prepare_blocks(backend.blocks, recompute=recompute, compiled=compiled)
    ids = torch.arange(70, 82)[None]
    backend.transformer(backend.embed(ids)).square().mean().backward()
    others = [
        n for n, p in backend.named_parameters() if p.grad is not None and not n.endswith(tuple(weights))
    ]
    assert others == []  # a frozen matrix gets no gradient of its own
    return {name: parameter.grad for name, parameter in weights.items()}


def test_recomputing_changes_no_gradient() -> None:
    plain, recomputed = gradients(recompute=False), gradients(recompute=True)
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


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


@pytest.mark.parametrize(
    "use",
    [
        lambda: require_bitsandbytes("memory.optimizer=adamw8bit"),
        lambda: make_optimizer({"_target_": "torch.optim.AdamW"}, [], eight_bit=True),
        lambda: quantize_base(make_backend().blocks),
    ],
)
def test_what_needs_bitsandbytes_says_so(use, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"(optimizer=adamw8bit|base_bits=4) needs bitsandbytes.*\[quantized\]"
    ):
        use()
