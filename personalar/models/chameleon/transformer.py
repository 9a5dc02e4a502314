"""The Chameleon transformer (arXiv 2405.09818): a Llama-like decoder with normalised queries and keys.

Parameter names and numbers are those of transformers' `ChameleonForConditionalGeneration`. Other than there,
image logits are never masked, the cache is an argument, and the head can be sliced to the image rows.
There are no buffers: a model built on `meta` and filled with `assign=True` is complete.
Shapes: B batch, T tokens, N = B T, D width, H query heads, K key/value heads, hd head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from personalar.config.fields import limits
from personalar.models.attention import attend
from personalar.models.base import Head
from personalar.models.cache import KVCache, Store
from personalar.models.dropout import Dropout, drop

QK_NORM_EPS = 1e-5  # a constant in every Chameleon code base, not a config value
Rotary = tuple[Tensor, Tensor]  # cos and signed sin, (B or 1, 1, T, hd)


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Numbers of one Chameleon transformer; the names are those of transformers' `ChameleonConfig`."""

    vocab_size: int = field(default=65536, metadata=limits(1, 2**22))
    hidden_size: int = field(default=4096, metadata=limits(1, 2**16))
    intermediate_size: int = field(default=11008, metadata=limits(1, 2**18))
    num_hidden_layers: int = field(default=32, metadata=limits(1, 512))
    num_attention_heads: int = field(default=32, metadata=limits(1, 1024))
    num_key_value_heads: int = field(default=32, metadata=limits(1, 1024))
    rms_norm_eps: float = field(default=1e-5, metadata=limits(0.0, 1.0))
    rope_theta: float = field(default=10000.0, metadata=limits(1.0, 1e12))
    swin_norm: bool = False
    """Normalise after attention and MLP, before the residual add (the 34B); else before them (the 7B)."""
    max_position_embeddings: int = field(default=4096, metadata=limits(1, 2**24))
    attention: str = "sdpa"
    """How attention is computed, "eager" or "sdpa": eager is far faster in the backward pass on a CPU."""

    def __post_init__(self) -> None:
        """Raise ValueError where the numbers do not fit together."""
        if self.attention not in ("eager", "sdpa"):
            raise ValueError(f"attention={self.attention!r} is unknown; use 'eager' or 'sdpa'")
        if self.hidden_size % self.num_attention_heads or self.head_dim % 2:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be "
                f"num_attention_heads={self.num_attention_heads} times an even number"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], *, attention: str = "sdpa") -> TransformerConfig:
        """Read a transformers `ChameleonConfig` as json; keys it leaves out have the 7B's values.

        Raises ValueError for what this class does not compute (biases, scaled RoPE, tied embeddings).
        """
        rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
        kind = rope.get("rope_type", rope.get("type", "default"))
        for name, got, allowed in (
            ("rope_type", kind, "default"),
            ("hidden_act", config.get("hidden_act", "silu"), "silu"),
            ("attention_bias", bool(config.get("attention_bias", False)), False),
            ("mlp_bias", bool(config.get("mlp_bias", False)), False),
            ("tie_word_embeddings", bool(config.get("tie_word_embeddings", False)), False),
        ):
            if got != allowed:
                raise ValueError(f"config.json has {name}={got!r}; Chameleon needs {name}={allowed!r}")
        names = [n for n in cls.__dataclass_fields__ if n not in ("rope_theta", "attention")]
        values = {name: config[name] for name in names if config.get(name) is not None}
        values.setdefault("num_key_value_heads", values.get("num_attention_heads", 32))
        theta = float(config.get("rope_theta") or rope.get("rope_theta") or 10000.0)
        return cls(**values, rope_theta=theta, attention=attention)

    def build(self) -> ChameleonTransformer:
        """Return a transformer of this shape, on torch's default device."""
        return ChameleonTransformer(self)

    def to_hf(self) -> dict[str, Any]:
        """Return the json that transformers' `ChameleonConfig` and `from_hf` read."""
        names = [n for n in self.__dataclass_fields__ if n not in ("rope_theta", "attention")]
        rope = {"rope_type": "default", "rope_theta": self.rope_theta}
        values = {name: getattr(self, name) for name in names}
        return {"model_type": "chameleon", **values, "rope_parameters": rope, "tie_word_embeddings": False}


class RMSNorm(nn.Module):
    """Root-mean-square norm, statistics in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., D) over its last axis."""
        return self.weight * F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype)


class HeadNorm(nn.Module):
    """The norm on query or key heads: statistics per head, and an own scale and shift for each of them."""

    def __init__(self, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_heads, head_dim))
        self.bias = nn.Parameter(torch.zeros(num_heads, head_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, T, heads, hd) over its last axis."""
        return torch.addcmul(self.bias, F.layer_norm(x, x.shape[-1:], eps=QK_NORM_EPS), self.weight)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE (rotate-half form) to (B, heads, T, hd); `sin` carries the sign of the swapped halves."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


class Attention(nn.Module):
    """Self-attention with normalised queries and keys."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.eager = config.attention == "eager"
        kv_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.q_norm = HeadNorm(config.num_attention_heads, config.head_dim)
        self.k_norm = HeadNorm(config.num_key_value_heads, config.head_dim)

    def forward(self, x: Tensor, rotary: Rotary, mask: Tensor | None, store: Store | None) -> Tensor:
        """Map (N, D) to (N, D)."""
        num_tokens = rotary[0].shape[2]
        split = (len(x) // num_tokens, num_tokens, -1, self.head_dim)
        query = self.q_norm(self.q_proj(x).view(split)).transpose(1, 2)
        key = self.k_norm(self.k_proj(x).view(split)).transpose(1, 2)
        value = self.v_proj(x).view(split).transpose(1, 2)
        turned = rotate(torch.cat((query, key), dim=1), *rotary)  # (B, H + K, T, hd)
        query, key = turned.tensor_split((query.shape[1],), dim=1)
        if store is not None:
            key, value = store.write(key, value)
        out = attend(query, key, value, mask, eager=self.eager)
        return self.o_proj(out.transpose(1, 2).reshape(x.shape))


class MLP(nn.Module):
    """Gated SiLU feed-forward network."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, D) to (N, D)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One block: attention and MLP, each added to the residual stream."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.norm_after = config.swin_norm

    def forward(
        self,
        x: Tensor,
        rotary: Rotary,
        mask: Tensor | None,
        store: Store | None,
        dropout: Dropout | None = None,
    ) -> Tensor:
        """Map (N, D) to (N, D)."""
        if self.norm_after:
            x = x + drop(self.input_layernorm(self.self_attn(x, rotary, mask, store)), dropout, 0)
            return x + drop(self.post_attention_layernorm(self.mlp(x)), dropout, 1)
        x = x + drop(self.self_attn(self.input_layernorm(x), rotary, mask, store), dropout, 0)
        return x + drop(self.mlp(self.post_attention_layernorm(x)), dropout, 1)


class Stack(nn.Module):
    """Embedding table, blocks and final norm: what the checkpoints call `model`."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class ChameleonTransformer(nn.Module):
    """Token embeddings in, hidden states and logits out."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Stack(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def blocks(self) -> nn.ModuleList:
        """The repeated layers."""
        return self.model.layers

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator, *, std: float = 0.02) -> None:
        """Draw every matrix from N(0, std); norms become the identity."""
        for name, parameter in self.named_parameters():
            if "norm" in name:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)

    def embed(self, ids: Tensor) -> Tensor:
        """Look up (B, T) ids, giving (B, T, D)."""
        return self.model.embed_tokens(ids)

    def rotary(self, positions: Tensor, dtype: torch.dtype) -> Rotary:
        """Return cos and signed sin for (B, T) positions, each (B, 1, T, hd)."""
        channels = torch.arange(0, self.config.head_dim, 2, dtype=torch.float32, device=positions.device)
        frequencies = 1.0 / self.config.rope_theta ** (channels / self.config.head_dim)
        angles = positions[:, None, :, None].float() * frequencies  # (B, 1, T, hd/2)
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)

    def new_cache(self, *, capacity: int, pad: Tensor) -> KVCache:
        """Allocate a cache of `capacity` tokens for rows that are left-padded by `pad` (B,) slots."""
        config, weight = self.config, self.lm_head.weight
        slots = torch.arange(capacity, device=weight.device)
        cos, sin = self.rotary((slots - pad[:, None]).clamp_min(0), weight.dtype)
        shape = (len(pad), config.num_key_value_heads, capacity, config.head_dim)
        keys = [weight.new_zeros(shape) for _ in self.model.layers]
        values = [weight.new_zeros(shape) for _ in self.model.layers]
        return KVCache(keys=keys, values=values, cos=cos, sin=sin, pad=pad)

    def forward(
        self,
        embeds: Tensor,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        mask: Tensor | None = None,
        dropout: Dropout | None = None,
    ) -> Tensor:
        """Run the blocks and the final norm; return hidden states (B, T, D).

        Args:
            embeds: (B, T, D).
            positions: (B or 1, T) int; by default 0..T-1, or the cache's.
            cache: keys and values so far; it takes the new ones, and its write position moves by T.
            mask: additive, broadcastable to (B, H, T, S); by default causal, or the cache's.
            dropout: of the outputs that the blocks add, in a training pass.
        """
        num_tokens = embeds.shape[1]
        if positions is None and cache is not None:
            rotary = cache.rotary(num_tokens)
        else:
            counted = torch.arange(num_tokens, device=embeds.device)[None]
            rotary = self.rotary(counted if positions is None else positions, embeds.dtype)
        mask = cache.mask(num_tokens) if mask is None and cache is not None else mask
        hidden = embeds.flatten(0, 1)
        for index, layer in enumerate(self.model.layers):
            store = cache.store(index, num_tokens) if cache is not None else None
            hidden = layer(hidden, rotary, mask, store, dropout.at(index) if dropout is not None else None)
        if cache is not None:
            cache.advance(num_tokens)
        return self.model.norm(hidden).view(embeds.shape)

    def head(self, rows: slice) -> Head:
        """Return the map from hidden states (..., D) to float32 logits of the vocabulary rows `rows`.

        The weight is read once, here: DeepSpeed may have released it when a pass is computed again.
        """
        weight = self.lm_head.weight[rows]
        return lambda hidden: F.linear(hidden, weight).float()

    def logits(self, hidden: Tensor, rows: slice = slice(None)) -> Tensor:
        """Map (..., D) to float32 logits (..., V), or of the vocabulary rows `rows` only."""
        return self.head(rows)(hidden)
