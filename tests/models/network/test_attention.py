"""Separate groups of tokens against a mask written by hand, and one query in bfloat16 against float32."""

from __future__ import annotations

import pytest
import torch

from personalar.models.network.attention import attend, separated

_ = float("-inf")
A, A_IMAGE, B, B_IMAGE, WORD = 1, 2, 3, 4, 7
GROUPS = [[A, A_IMAGE], [B, B_IMAGE]]
# Rows are queries: the text of two concepts, then their image tokens.
IDENTITY = torch.tensor([
    [0, _, _, _],
    [_, 0, _, _],
    [0, _, 0, _],
    [_, 0, _, 0],
])  # fmt: skip


def test_tokens_of_two_concepts_do_not_see_each_other() -> None:
    ids = torch.tensor([[A, B, A_IMAGE, B_IMAGE]])
    assert torch.equal(separated(None, ids, GROUPS, dtype=torch.float32)[0, 0], IDENTITY)


def test_other_tokens_stay_causal() -> None:
    ids = torch.tensor([[A, WORD, B, WORD], [WORD, WORD, B, B_IMAGE]])
    mask = separated(None, ids, GROUPS, dtype=torch.float32)
    causal = torch.full((4, 4), _).triu(1)
    assert torch.equal(mask[1, 0], causal)
    causal[2, 0] = _
    assert torch.equal(mask[0, 0], causal)


def test_a_cache_adds_earlier_keys() -> None:
    ids, before = torch.tensor([[A, B, A_IMAGE, B_IMAGE]]), torch.zeros(1, 1, 4, 6)
    before[..., 2:] = torch.full((4, 4), _).triu(1)
    before[..., 0] = _  # padding
    mask = separated(before, ids, GROUPS, dtype=torch.float32)
    assert torch.equal(mask[0, 0, :, 2:], IDENTITY)
    assert torch.equal(mask[..., :2], before[..., :2])


def test_attention_with_the_mask_is_that_of_each_concept_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 4, 8, generator=generator)
    ids = torch.tensor([[A, B, A_IMAGE, B_IMAGE]])
    found = attend(query, key, value, separated(None, ids, GROUPS, dtype=torch.float32))
    for places in ([0, 2], [1, 3]):
        alone = attend(*(part[:, :, places] for part in (query, key, value)), None)
        torch.testing.assert_close(found[:, :, places], alone)


@pytest.mark.parametrize("keys", [1, 5])
@pytest.mark.parametrize("heads", [2, 4])
def test_one_query_in_bfloat16_is_that_of_float32(keys: int, heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, heads, 1, 8, generator=generator).bfloat16()
    key, value = torch.randn(2, 3, 2, keys, 8, generator=generator).bfloat16()
    mask = torch.zeros(3, 1, 1, keys)
    mask[1, ..., : keys // 2] = _  # padding
    found = attend(query, key, value, mask.bfloat16())
    assert found.shape == query.shape and found.dtype == torch.bfloat16
    expected = attend(query.float(), key.float(), value.float(), mask)
    torch.testing.assert_close(found.float(), expected, atol=0.02, rtol=0.02)
    if keys == 1:
        torch.testing.assert_close(attend(query, key, value, None), found)
