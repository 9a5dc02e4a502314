"""Candidate changes for a faster step of the compiled decoder on a GPU. None of them is in the package.

A change is active while a step is compiled and captured, and stays part of the captured step. If a step runs
as Python (on a CPU), the change is active while it runs. `variants.py` measures them.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, flex_attention, sdpa_kernel

import personalar.generation.sampling as sampling
import personalar.models.network.llama as network
from personalar.generation.decoders import plain
from personalar.generation.decoders.compiled import CompiledDecoder, Function, Replay
from personalar.models import random_keys as hashing
from personalar.models.network.attention import attend
from personalar.models.network.cache import CacheWindow

FEW_ROWS = 4
"""An image with guidance has two rows, and two tokens in each if a newline is part of the step."""


class Changed(CompiledDecoder):
    """The compiled decoder with changes, such as "flex+keep"; "product" is without changes.

    Args:
        names: keys of `CHANGES`, joined by "+".
        as_python: neither compile nor capture.
        settings: cfg_scale, top_k, top_p, temperature.

    Raises:
        ValueError: an unknown name.
    """

    def __init__(self, names: str, *, as_python: bool, **settings: Any) -> None:
        if unknown := set(names.split("+")) - set(CHANGES):
            raise ValueError(
                f"variant {names} has {', '.join(sorted(unknown))}; "
                f"allowed: {', '.join(CHANGES)}, or several with + between them"
            )
        self.names, self.as_python = names, as_python
        self.changes = [CHANGES[name] for name in names.split("+")]
        self.most_rows = min(change.most_rows for change in self.changes)
        self._copies: dict[Any, Function] = {}
        super().__init__(bucket=min(change.bucket for change in self.changes), **settings)

    @staticmethod
    def can_capture(device: torch.device) -> bool:
        """Return True, because a CPU runs the steps as Python."""
        return True

    def lower(self, function: Function) -> Function:  # type: ignore[override]
        """Compile a copy of `function`, because Dynamo caches programs per code object."""
        if self.as_python:
            return function
        if function not in self._copies:
            code = function.__code__.replace(co_name=f"{function.__name__}_{self.names.replace('+', '_')}")
            self._copies[function] = types.FunctionType(
                code, function.__globals__, code.co_name, function.__defaults__, function.__closure__
            )
        return torch.compile(self._copies[function])

    def capture(self, run: Callable[[], None], rewind: Callable[[], None]) -> Replay:
        """Return a function that repeats `run` with the changes."""
        if self.as_python:
            return partial(self._changed, run)
        # The key of this cache contains the call of attention, but not the kernel that PyTorch chose.
        with torch._functorch.config.patch(enable_autograd_cache=False), self.in_force():
            return super().capture(run, rewind)

    def _changed(self, run: Callable[[], None]) -> None:
        with self.in_force():
            run()

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Apply the changes in the block."""
        with ExitStack() as stack:
            for change in self.changes:
                stack.enter_context(change.apply(self))
            yield


def cudnn(decoder: Changed) -> AbstractContextManager[None]:
    """Use cuDNN for attention, or fail."""
    return nullcontext() if decoder.as_python else sdpa_kernel(SDPBackend.CUDNN_ATTENTION)


@contextmanager
def flex(decoder: Changed) -> Iterator[None]:
    """Use flex_attention, which splits the keys if there is only one query."""
    with (  # otherwise flex_attention compiles itself, also when it runs as Python
        patch.object(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", decoder.as_python),
        patch.object(network, "attend", flex_attend),
    ):
        yield


def flex_attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Like `attend`, with flex_attention."""

    def masked(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score + mask[b, 0, q, k]

    grouped = key.shape[1] != query.shape[1]
    return flex_attention.flex_attention(query, key, value, score_mod=masked, enable_gqa=grouped)


def spelled_out(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Like `attend`, with two matrix products and a softmax."""
    groups = query.shape[1] // key.shape[1]  # query heads per key head
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.add(mask, query @ key.mT, alpha=query.shape[-1] ** -0.5)  # (B, H, T, S)
    return scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ value


def sums_attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Like `attend`, but with sums for a single query, which the compiler can fuse with other operations."""
    if query.shape[2] > 1:
        return attend(query, key, value, mask)
    grouped = query.float().unflatten(1, (key.shape[1], -1))  # (B, K, H / K, 1, hd)
    key, value = key[:, :, None].float(), value[:, :, None].float()  # (B, K, 1, S, hd)
    scores = (grouped * key).sum(-1) * query.shape[-1] ** -0.5 + mask.float()  # (B, K, H / K, S)
    weights = scores.softmax(-1)
    return (weights[..., None] * value).sum(-2).view(query.shape).to(query.dtype)


@contextmanager
def reduce(decoder: Changed) -> Iterator[None]:
    """Compute products of a few rows as sums: one kernel reads each weight once for all rows."""
    with (
        patch.object(nn.Linear, "forward", lambda module, x: few_rows(x, module.weight)),
        patch.object(network.MLP, "forward", gated),
    ):
        yield


def few_rows(x: Tensor, weight: Tensor) -> Tensor:
    """Like `F.linear`, with sums in float32 if x (N, in) has at most `FEW_ROWS` rows."""
    if len(x) > FEW_ROWS:
        return F.linear(x, weight)
    wide = weight.float()
    return torch.stack([(wide * x[row].float()).sum(-1) for row in range(len(x))]).to(x.dtype)


def gated(mlp: network.MLP, x: Tensor) -> Tensor:
    """Like `MLP.forward`; the last product is not a sum, because every output would repeat the SiLU."""
    return F.linear(F.silu(mlp.gate_proj(x)) * mlp.up_proj(x), mlp.down_proj.weight)


@contextmanager
def keep(decoder: Changed) -> Iterator[None]:
    """Also compile head, guidance, noise and sampling."""
    program = decoder.lower(plain.Step.keep)
    with (
        patch.object(plain, "gumbel_noise", table_noise),
        patch.object(plain.Step, "keep", lambda self, hidden: program(self, hidden)),
    ):
        yield


def table_noise(seeds: Tensor, positions: Tensor, num_codes: int) -> Tensor:
    """Like `gumbel_noise`, with a table of codes: Triton has no 64-bit index for them."""
    place = hashing.mix(hashing.mix(seeds[:, None]) + positions)
    drawn = hashing._shift_right(hashing.mix(place[:, :, None] + spread(num_codes, seeds.device)), 32)
    uniform = drawn.float().add_(0.5).mul_(2.0**-32).clamp_max_(1.0 - 2.0**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_()


@torch.compiler.assume_constant_result
def spread(num_codes: int, device: torch.device) -> Tensor:
    """Return `arange(K) * _ODD`, always as the same tensor, because captured steps read it again."""
    return _spread(num_codes, device)


@lru_cache
def _spread(num_codes: int, device: torch.device) -> Tensor:
    return torch.arange(num_codes, device=device) * hashing._ODD


def kth_of_logits(logits: Tensor, k: int) -> Tensor:
    """Like `keep_top_k`, with `torch.kthvalue`."""
    if k >= logits.shape[-1]:
        return logits
    threshold = logits.kthvalue(logits.shape[-1] - k + 1, dim=-1, keepdim=True).values
    return logits.masked_fill(logits < threshold, float("-inf"))


@contextmanager
def whole_mask(decoder: Changed) -> Iterator[None]:
    """Slice the mask inside of the blocks.

    If it is sliced before, a program with dynamic lengths cannot prove that the stride is a multiple of 8,
    which the kernel requires, and every block copies the mask.
    """
    with patch.object(CacheWindow, "mask", mask_of_all_slots), patch.object(network, "attend", cut_attend):
        yield


def mask_of_all_slots(window: CacheWindow) -> Tensor:
    """Like `CacheWindow.mask`, for all slots: (B, 1, T, L)."""
    visible = window._cache._visible
    slots = torch.arange(visible.shape[-1], device=visible.device)
    return visible.masked_fill(slots > window._slots[:, None], float("-inf"))


def cut_attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Like `attend`, for a mask of all slots."""
    return attend(query, key, value, mask[..., : key.shape[2]])


def tuned(decoder: Changed) -> AbstractContextManager[None]:
    """Let the compiler tune the block sizes of its kernels, which takes longer."""
    return torch._inductor.config.patch(coordinate_descent_tuning=True)


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change of the decoder."""

    what: str
    apply: Callable[[Changed], AbstractContextManager[None]] = lambda decoder: nullcontext()
    bucket: int = 128
    most_rows: int = 2**31
    """Largest number of rows of a step for which the change has an effect."""


def swap(name: str, new: Callable[..., Any], owner: Any = network) -> Callable[[Changed], Any]:
    """Return a change that replaces `owner.name` by `new`."""
    return lambda decoder: patch.object(owner, name, new)


CHANGES = {
    "product": Change(what="as it is"),
    "cudnn": Change(what="attention by cuDNN", apply=cudnn),
    "flex": Change(what="attention by flex_attention", apply=flex),
    "bmm": Change(what="attention by two products and a softmax", apply=swap("attend", spelled_out)),
    "sums": Change(what="attention of one query by sums", apply=swap("attend", sums_attend)),
    "reduce": Change(what="products of up to 4 rows by sums", apply=reduce, most_rows=FEW_ROWS),
    "keep": Change(what="head and draw compiled", apply=keep),
    "mask": Change(what="the mask cut inside of blocks", apply=whole_mask),
    "kth": Change(what="top-k by kthvalue", apply=swap("keep_top_k", kth_of_logits, sampling)),
    "bucket64": Change(what="lengths by 64 slots", bucket=64),
    "tuned": Change(what="block sizes tried out", apply=tuned),
}
