"""Scaled dot-product attention with grouped queries.

Shapes: B batch, T queries, S keys, H query heads, K key/value heads, hd head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, eager: bool) -> Tensor:
    """Return softmax(q k^T / sqrt(hd) + mask) v, (B, H, T, hd).

    Args:
        query: (B, H, T, hd).
        key, value: (B, K, S, hd); K divides H.
        mask: additive, broadcastable to (B, H, T, S); None: causal, which requires S = T.
        eager: use single operations instead of PyTorch's fused kernel.
    """
    if not eager:
        grouped = key.shape[1] != query.shape[1]
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped
        )
    groups = query.shape[1] // key.shape[1]  # query heads per key head
    if groups > 1:
        # Query heads of a group are neighbours, as in transformers' repeat_kv.
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    # Softmax in float32 also for bfloat16, as in transformers.
    weights = _scores(query, key, mask).softmax(-1, dtype=torch.float32).to(query.dtype)  # (B, H, T, S)
    return torch.bmm(weights.flatten(0, 1), value.flatten(0, 1)).view_as(query)


def separated(
    mask: Tensor | None, ids: Tensor, groups: Sequence[Sequence[int]], *, dtype: torch.dtype
) -> Tensor:
    """Return `mask`, in which tokens of different groups do not attend to each other.

    Args:
        mask: additive, (B, 1, T, S), whose last T keys are the tokens `ids`; None: causal, with S = T.
        ids: (B, T).
        groups: the ids of each group; tokens with other ids are not affected.
        dtype: of a causal mask.
    """
    if mask is None:
        mask = torch.full((ids.shape[1],) * 2, float("-inf"), dtype=dtype, device=ids.device).triu(1)
    group = torch.zeros_like(ids)  # 0: in no group
    for number, own in enumerate(groups, 1):
        group[torch.isin(ids, torch.tensor(own, device=ids.device))] = number
    query, key = group[:, None, :, None], group[:, None, None, :]
    apart = (query != key) & (query > 0) & (key > 0)  # (B, 1, T, T)
    return mask.masked_fill(F.pad(apart, (mask.shape[-1] - ids.shape[1], 0)), float("-inf"))


def _scores(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """Return q k^T / sqrt(hd) + mask, (B, H, T, S)."""
    scale = query.shape[-1] ** -0.5
    if mask is None:
        # -inf above the diagonal: a token does not attend to later ones.
        later = query.new_full((query.shape[2], query.shape[2]), float("-inf")).triu(1)
        # One kernel for product, scale and mask.
        scores = torch.baddbmm(later, query.flatten(0, 1), key.flatten(0, 1).mT, alpha=scale)
        return scores.unflatten(0, query.shape[:2])
    products = _one_query(query, key) if query.shape[2] == 1 else query @ key.mT
    return torch.add(mask, products, alpha=scale)  # (B, H, T, S)


def _one_query(query: Tensor, key: Tensor) -> Tensor:
    """Return `query @ key.mT`, (B, H, 1, S), as `key @ query.mT`, which is faster on a CPU."""
    products = torch.bmm(key.flatten(0, 1), query.flatten(0, 1).mT)  # (B H, S, 1)
    return products.view(*query.shape[:2], 1, -1)
