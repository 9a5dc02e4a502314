"""Scaled dot-product attention with grouped queries.

Shapes: B batch, T queries, S keys, H query heads, K key/value heads, hd head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Return softmax(q k^T / sqrt(hd) + mask) v, (B, H, T, hd).

    Args:
        query: (B, H, T, hd).
        key, value: (B, K, S, hd); K divides H.
        mask: additive, broadcastable to (B, H, T, S); None: causal, which requires S = T.
    """
    if query.shape[2] == 1 and query.dtype == torch.bfloat16 and query.is_cpu:
        # On a CPU torch 2.13 takes three times as long for one bfloat16 query as for two.
        return attend(torch.cat((query, query), dim=2), key, value, mask)[:, :, :1]
    grouped = key.shape[1] != query.shape[1]
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped
    )


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
