"""Estimate of the memory of a stage, item by item, from the configuration alone: no weight is loaded.

Weights, gradients and optimizer states are counted on a model without storage. Activations are measured: one
forward and backward pass of the real code runs on torch's fake tensors, which have shapes but no values, and
its allocations are added up. A formula would have to be changed with every change of the model.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from personalar.models.dropout import Dropout
from personalar.models.stored_base import NetworkShape
from personalar.training.loss import LOGITS_AT_ONCE, head_loss
from personalar.training.model_prep import prepare_blocks, train_in_float32
from personalar.training.stage import select_parameters

FLOAT32, STATE_BYTES = 4, {"adamw": 8, "adamw8bit": 2}
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes per parameter with double quantization (arXiv 2305.14314): 4 bits, a scale of one byte per 64
parameters, and one float32 per 256 such scales."""
SHALLOW = (4, 8)
"""Numbers of layers of the two small models from which a deep one is extrapolated."""
PROJECTIONS = "model.layers.*_proj.weight"
LIVE_PARAMETERS = 10**9
"""Upper bound on parameters that DeepSpeed gathers at once (the default of stage3_max_live_parameters)."""
OFFLOADED = 10**12
"""Used as the number of shards for weights in host memory: dividing by it gives 0 bytes on the device."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Everything that determines the memory of one stage on one device."""

    shape: NetworkShape
    """The architecture of the transformer."""
    dtype: torch.dtype
    """Of frozen weights and activations; trained parameters are float32."""
    patterns: tuple[str, ...]
    """Names of the transformer's parameters that are trained (fnmatch)."""
    lora_rank: int = 0
    lora_every: int = 1
    """LoRA is applied to every n-th block."""
    identifier_rows: int = 6
    base_bits: int = 16
    batch: int
    """Sequences per forward pass and process (the micro-batch)."""
    tokens: int
    """Length of the longest sequence."""
    image_tokens: int
    """Number of predicted tokens per sequence."""
    choices: int
    """Number of logits per predicted token."""
    recompute: bool = False
    optimizer: str = "adamw"
    dropout: float = 0.0
    shards: tuple[int, int, int] = (1, 1, 1)
    """Numbers of shards of (weights, gradients, optimizer states), or `OFFLOADED`."""
    sample_batch: int = 1
    """Images per sampling batch; guidance needs two sequences per image."""
    extra: int = 0
    """Bytes of other networks on the device (the image tokenizer)."""
    pictures: int = 0
    """Peak bytes of activations when codes are decoded to pixels."""


class _Adapted(nn.Module):
    """A projection with LoRA that allocates as PEFT's does. PEFT itself cannot be built on fake tensors."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, rank, bias=False, dtype=torch.float32)
        self.up = nn.Linear(rank, base.out_features, bias=False, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        result = self.base(x)
        # With the multiplication by the scale, because its result is another activation in memory.
        return (result + self.up(self.down(x.to(torch.float32))) * 1.0).to(result.dtype)


def _adapt(block: nn.Module, rank: int) -> None:
    """Add LoRA to the query, key and value projections of `block`, in place."""
    for module in list(block.modules()):
        for name, child in list(module.named_children()):
            if name in ("q_proj", "k_proj", "v_proj") and isinstance(child, nn.Linear):
                setattr(module, name, _Adapted(child, rank))


class Allocations(TorchDispatchMode):
    """Context manager that counts the bytes of storages which operations allocate and free.

    Attributes:
        current: bytes that are allocated now.
        peak: largest value of `current`.
    """

    def __init__(self, known: nn.Module) -> None:
        """Ignore the parameters of `known`, because views of them share their storage."""
        super().__init__()
        self.current = self.peak = 0
        self._alive = {parameter.untyped_storage()._cdata for parameter in known.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` and count the new storages of its result."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive.add(key)
        self.current += size
        self.peak = max(self.peak, self.current)
        # Called when the storage is freed; atexit=False, because the counts do not matter then.
        weakref.finalize(storage, self._freed, key, size).atexit = False

    def _freed(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.current -= size


def parameter_counts(work: Workload) -> tuple[int, int, int]:
    """Return how many parameters are (frozen, frozen in the blocks' matrices, trained in the transformer).

    Raises:
        ValueError: a pattern matches no parameter.
    """
    with torch.device("meta"):
        network = work.shape.build()
    named = dict(network.named_parameters())
    trained = select_parameters(network, work.patterns)
    frozen = {n: p for n, p in named.items() if n not in trained}
    matrices = sum(p.numel() for n, p in frozen.items() if fnmatchcase(n, PROJECTIONS))
    adapters = 0
    if work.lora_rank:
        for name, parameter in named.items():
            parts = name.split(".")
            if parts[-2] in ("q_proj", "k_proj", "v_proj") and int(parts[2]) % work.lora_every == 0:
                adapters += work.lora_rank * sum(parameter.shape)
    return (
        sum(p.numel() for p in frozen.values()),
        matrices,
        sum(p.numel() for p in trained.values()) + adapters,
    )


def observe_pass(work: Workload) -> int:
    """Return the peak bytes of a forward and backward pass, with gradients and without the parameters.

    All gradients exist from the start, as they do from the second pass on.
    """
    deep = work.shape.num_hidden_layers
    if deep <= max(SHALLOW) + 2:
        return _observe(work)
    # Memory is linear in the number of layers, and a fake pass through 32 of them takes many seconds.
    low, high = (_observe(replace(work, shape=replace(work.shape, num_hidden_layers=n))) for n in SHALLOW)
    return high + (high - low) * (deep - SHALLOW[1]) // (SHALLOW[1] - SHALLOW[0])


def _observe(work: Workload) -> int:
    with FakeTensorMode(allow_non_fake_inputs=True), _default_dtype(work.dtype):
        network = work.shape.build().requires_grad_(False)
        # Not `select_parameters`: a pattern may be of a layer that a shallow model does not have.
        weights = {
            name: p
            for name, p in network.named_parameters()
            if any(fnmatchcase(name, pattern) for pattern in work.patterns)
        }
        # The functions of the training itself, so that an estimate cannot differ from it.
        train_in_float32(network, weights)
        for parameter in weights.values():
            parameter.requires_grad_(True)
        if work.lora_rank:
            for block in network.blocks[:: work.lora_every]:
                _adapt(block, work.lora_rank)
        prepare_blocks(network.blocks, recompute=work.recompute, compiled=False)
        with Allocations(network) as observed:
            # Lightning keeps the gradients of the last step until the next backward pass.
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.empty_like(parameter)
            embeds = torch.empty(work.batch, work.tokens, work.shape.hidden_size, dtype=work.dtype)
            keys = torch.empty(work.batch, dtype=torch.int64)
            dropout = Dropout(chance=work.dropout, keys=keys) if work.dropout else None
            # The embeddings need a gradient, because every stage may train [V].
            hidden = network(embeds.requires_grad_(True), dropout=dropout)[:, : work.image_tokens]
            targets = torch.empty(work.batch * work.image_tokens, dtype=torch.int64)
            head = network.head(slice(0, work.choices))
            flat = hidden.reshape(-1, hidden.shape[-1])
            head_loss(flat, head, targets, num_choices=work.choices).backward()
        return observed.peak


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@cache
def estimate(work: Workload) -> dict[str, int]:
    """Return the peak memory of training on one device, in bytes by item."""
    frozen, matrices, trained = parameter_counts(work)
    width = torch.finfo(work.dtype).bits // 8
    rows = work.identifier_rows * work.shape.hidden_size
    small = matrices * (width - NF4_BYTES) if work.base_bits == 4 else 0
    weights, gradients, states = work.shards
    # The peak was measured as one number. Gradients and the logits of one chunk are listed apart and
    # subtracted from it, so that the items add up to the measured peak.
    observed = observe_pass(work)
    own_gradients = trained * FLOAT32
    logits = min(work.batch * work.image_tokens * work.choices, LOGITS_AT_ONCE) * FLOAT32
    activations = max(observed - own_gradients, 0)
    logits = min(logits, activations)
    base = int(frozen * width - small) // weights
    # ZeRO 3 gathers the weights of some blocks ahead of their use, in full and on every device.
    gathered = min(frozen + trained, LIVE_PARAMETERS) * width if weights > 1 else 0
    return {
        "frozen weights": base,
        "gathered weights": gathered,
        "trained weights": (trained + rows) * FLOAT32 // weights,
        "gradients": (own_gradients + rows * FLOAT32) // gradients,
        "optimizer states": (trained + rows) * STATE_BYTES[work.optimizer] // states,
        "logits": logits,
        "activations": activations - logits,
        "other networks": work.extra,
    }


def sampling_bytes(work: Workload) -> dict[str, int]:
    """Return the peak memory of sampling on one device, in bytes by item."""
    # LoRA is merged into the weights for sampling, and weights are in the base's dtype.
    frozen, _, trained = parameter_counts(replace(work, lora_rank=0))
    width, shape = torch.finfo(work.dtype).bits // 8, work.shape
    # Keys and values of one token; two sequences per image, because guidance needs an unconditional one.
    per_token = 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim * width
    return {
        "weights": (frozen + trained) * width,
        "keys and values": 2 * work.sample_batch * work.tokens * per_token,
        "codes to pictures": work.pictures,
        "other networks": work.extra,
    }


def peak(items: dict[str, int]) -> int:
    """Return the sum of the items, in bytes."""
    return sum(items.values())
