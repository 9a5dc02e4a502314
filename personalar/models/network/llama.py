"""A Llama-like decoder for all families, with switches for their differences.

Parameter names are those of transformers' `LlamaModel` and `ChameleonModel`. The cache is an argument. There
are no buffers, so a model on `meta` is complete after `load_state_dict(..., assign=True)`.
Shapes: B batch, T tokens, N = B T, D width, H query heads, K key/value heads, hd head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from personalar.config.fields import limits
from personalar.models.base import Head
from personalar.models.dropout import Dropout, drop
from personalar.models.network.attention import attend, separated
from personalar.models.network.cache import CacheWindow, KVCache, Store
from personalar.models.network.norms import HeadNorm, RMSNorm

Rotary = tuple[Tensor, Tensor]  # cos and signed sin, (B or 1, 1, T, hd)


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Sizes of a transformer, with the names and defaults of transformers' `LlamaConfig`."""

    qk_norm: ClassVar[bool] = False
    """Normalise queries and keys per head (Chameleon)."""

    vocab_size: int = field(default=32000, metadata=limits(1, 2**22))
    hidden_size: int = field(default=4096, metadata=limits(1, 2**16))
    intermediate_size: int = field(default=11008, metadata=limits(1, 2**18))
    num_hidden_layers: int = field(default=32, metadata=limits(1, 512))
    num_attention_heads: int = field(default=32, metadata=limits(1, 1024))
    num_key_value_heads: int = field(default=32, metadata=limits(1, 1024))
    rms_norm_eps: float = field(default=1e-6, metadata=limits(0.0, 1.0))
    rope_theta: float = field(default=10000.0, metadata=limits(1.0, 1e12))
    swin_norm: bool = False
    """Normalise the outputs of attention and MLP (Chameleon 34B), and not their inputs."""
    max_position_embeddings: int = field(default=2048, metadata=limits(1, 2**24))

    def __post_init__(self) -> None:
        """Raise ValueError for sizes that do not fit together."""
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
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Read the JSON of a transformers config; missing keys get the defaults of this class.

        Raises:
            ValueError: an unsupported option (biases, scaled RoPE, another head size).
        """
        # transformers 5 writes rope_parameters, older versions rope_theta and rope_scaling.
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        names = [f.name for f in fields(cls) if f.name != "rope_theta"]
        values = {name: config[name] for name in names if config.get(name) is not None}
        # As in transformers: without this key every query head has its own key head.
        values.setdefault("num_key_value_heads", values.get("num_attention_heads", cls.num_attention_heads))
        theta = config.get("rope_theta") or rope.get("rope_theta") or cls.rope_theta
        numbers = cls(**values, rope_theta=theta)
        for name, got, allowed in (
            ("rope_type", rope.get("rope_type", rope.get("type", "default")), "default"),
            ("hidden_act", config.get("hidden_act", "silu"), "silu"),
            ("attention_bias", bool(config.get("attention_bias", False)), False),
            ("mlp_bias", bool(config.get("mlp_bias", False)), False),
            ("head_dim", config.get("head_dim") or numbers.head_dim, numbers.head_dim),
        ):
            # An unsupported option must be an error, because the network would run and give wrong pictures.
            if got != allowed:
                raise ValueError(f"config.json has {name}={got!r}; this network needs {name}={allowed!r}")
        return numbers


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE (rotate-half form) to (B, heads, T, hd); the first half of `sin` is negated."""
    # cat(-x2, x1) * sin of the usual form equals roll(x) * signed sin, with fewer kernels.
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


class Attention(nn.Module):
    """Causal self-attention, with normalised queries and keys if `qk_norm`."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        if config.qk_norm:
            self.q_norm = HeadNorm(config.num_attention_heads, config.head_dim)
            self.k_norm = HeadNorm(config.num_key_value_heads, config.head_dim)

    def forward(self, x: Tensor, rotary: Rotary, mask: Tensor | None, store: Store | None) -> Tensor:
        """Map (N, D) to (N, D)."""
        num_tokens = rotary[0].shape[2]
        # -1, because queries and keys can have different numbers of heads.
        split = (len(x) // num_tokens, num_tokens, -1, self.head_dim)
        query = self.q_norm(self.q_proj(x).view(split)).transpose(1, 2)  # (B, H, T, hd)
        key = self.k_norm(self.k_proj(x).view(split)).transpose(1, 2)  # (B, K, T, hd)
        value = self.v_proj(x).view(split).transpose(1, 2)  # (B, K, T, hd)
        # Queries and keys are rotated together, with half the number of kernels.
        turned = rotate(torch.cat((query, key), dim=1), *rotary)  # (B, H + K, T, hd)
        query, key = turned.tensor_split((query.shape[1],), dim=1)
        if store is not None:
            key, value = store.write(key, value)
        out = attend(query, key, value, mask)  # (B, H, T, hd)
        return self.o_proj(out.transpose(1, 2).reshape(x.shape))


class MLP(nn.Module):
    """Gated SiLU feed-forward network."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, D) to (N, D)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Transformer block: attention and MLP with residual connections."""

    def __init__(self, config: LlamaConfig) -> None:
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
        # The places 0 and 1 give attention and MLP different dropout masks.
        if self.norm_after:
            x = x + drop(self.input_layernorm(self.self_attn(x, rotary, mask, store)), dropout, 0)
            return x + drop(self.post_attention_layernorm(self.mlp(x)), dropout, 1)
        x = x + drop(self.self_attn(self.input_layernorm(x), rotary, mask, store), dropout, 0)
        return x + drop(self.mlp(self.post_attention_layernorm(x)), dropout, 1)


class Stack(nn.Module):
    """Embedding table, blocks and final norm; its name in checkpoints is `model`."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Llama(nn.Module):
    """Maps token embeddings to hidden states; subclasses add the head."""

    head: Callable[[slice], Head]
    """Returns the function from hidden states (..., D) to float32 logits of some ids."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Stack(config)
        self.block_inputs = nn.ModuleList()
        self.separate_ids: list[Sequence[int]] = []

    @property
    def blocks(self) -> nn.ModuleList:
        """The repeated layers."""
        return self.model.layers

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator, *, std: float = 0.02) -> None:
        """Draw every matrix from N(0, std ** 2); set biases to 0 and weights of norms to 1."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.fill_(0.0)
            elif "norm" in name:
                parameter.fill_(1.0)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)

    def embed(self, ids: Tensor) -> Tensor:
        """Map ids (B, T) to embeddings (B, T, D)."""
        return self.model.embed_tokens(ids)

    def rotary(self, positions: Tensor, dtype: torch.dtype) -> Rotary:
        """Return cos and signed sin for (B, T) positions, each (B, 1, T, hd)."""
        channels = torch.arange(0, self.config.head_dim, 2, dtype=torch.float32, device=positions.device)
        # In float32: in bfloat16 positions above 256 would collide.
        frequencies = 1.0 / self.config.rope_theta ** (channels / self.config.head_dim)
        angles = positions[:, None, :, None].float() * frequencies  # (B, 1, T, hd/2)
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)

    def new_cache(self, positions: Tensor) -> KVCache:
        """Allocate a cache for tokens at `positions` (B, L) int64; -1 for an empty slot."""
        config, weight = self.config, self.model.embed_tokens.weight
        rows, slots = positions.shape
        cos, sin = self.rotary(torch.arange(slots, device=weight.device)[None], weight.dtype)
        shape = (rows, config.num_key_value_heads, slots, config.head_dim)
        keys = [weight.new_zeros(shape) for _ in self.model.layers]
        values = [weight.new_zeros(shape) for _ in self.model.layers]
        return KVCache(keys=keys, values=values, cos=cos[0, 0], sin=sin[0, 0], positions=positions)

    def forward(
        self,
        embeds: Tensor,
        cache: CacheWindow | None = None,
        dropout: Dropout | None = None,
        ids: Tensor | None = None,
    ) -> Tensor:
        """Run the blocks and the final norm; return hidden states (B, T, D).

        Args:
            embeds: (B, T, D).
            cache: earlier keys and values, and the slots to which the new ones are written.
            dropout: dropout of the residual branches, for a training pass.
            ids: (B, T), for `block_inputs` and `separate_ids`; None leaves them out.
        """
        num_tokens = embeds.shape[1]
        if cache is not None:
            # The cache has them for every slot, so nothing is computed per token.
            rotary, mask = cache.rotary(), cache.mask()
        else:
            positions = torch.arange(num_tokens, device=embeds.device)[None]
            rotary, mask = self.rotary(positions, embeds.dtype), None  # causal
        if ids is not None and len(self.separate_ids) > 1:
            mask = separated(mask, ids, self.separate_ids, dtype=embeds.dtype)
        # Rows and tokens in one dimension: linear layers on (N, D) need no reshape.
        hidden = embeds.flatten(0, 1)  # (N, D)
        for index, layer in enumerate(self.model.layers):
            store = cache.store(index) if cache is not None else None
            own = dropout.at(index) if dropout is not None else None
            if ids is not None:
                for change in self.block_inputs:
                    hidden = change(index, ids.flatten(), hidden)
            hidden = layer(hidden, rotary, mask, store, own)
        return self.model.norm(hidden).view(embeds.shape)


class LanguageModel(Llama):
    """A Llama with one vocabulary for words and image codes, and a linear head over it."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def head(self, rows: slice) -> Head:
        """Return the function from hidden states (..., D) to float32 logits of the vocabulary rows `rows`."""
        # Read here, not in the function: DeepSpeed may have released it when activations are recomputed.
        weight = self.lm_head.weight[rows]
        # Only the rows that can be sampled or have a loss, because a vocabulary has 65,536 rows and more.
        return lambda hidden: F.linear(hidden, weight).float()

    def logits(self, hidden: Tensor, rows: slice = slice(None)) -> Tensor:
        """Map (..., D) to float32 logits (..., V), or of the vocabulary rows `rows` only."""
        return self.head(rows)(hidden)
