"""A captured graph made of Python: a run's operations, done once more on the same memory.

It keeps the rules of a CUDA graph, so that a step that breaks one is seen without a GPU. No Python runs
again, so numbers of the host stay what they were. What an operation makes lies where it lay at first. The
host neither reads from the device nor writes to it. And what a graph makes for itself is worth nothing once
it has run, since graphs share a pool. What it cannot show are CUDA's own errors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
CROSSING = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default,
    aten.repeat_interleave.Tensor, aten.equal.default, aten.lift_fresh.default,
}  # fmt: skip
"""Operations by which host and device wait for each other."""


class Tape(TorchDispatchMode):
    """Records what runs inside of it; `replay` does it again."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in CROSSING or _counts(func, args):
            raise RuntimeError(f"{func}: operation not permitted when stream is capturing")
        result = func(*args, **kwargs)
        made = _made(result, (args, kwargs))
        if made or func._schema.is_mutable:  # a view goes on showing what lies there
            self._calls.append((func, args, kwargs, made))
        return result

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        self._spoil()

    def replay(self) -> None:
        """Do it again."""
        for func, args, kwargs, made in self._calls:
            again = _made(func(*args, **kwargs), (args, kwargs))
            for old, new in zip(made, again, strict=True):
                old.copy_(new)
        self._spoil()

    def _spoil(self) -> None:
        for *_, made in self._calls:
            for tensor in made:
                memory = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
                memory.fill_(0xFF)  # NaN, or -1


def _made(result: Any, given: Any) -> list[Tensor]:
    """Return the tensors of `result` that have memory of their own."""
    before = {_memory(t) for t in tree_leaves(given) if isinstance(t, Tensor)}
    return [t for t in tree_leaves(result) if isinstance(t, Tensor) and _memory(t) not in before]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _counts(func: Any, args: Any) -> bool:
    """Tell whether the result's shape depends on values."""
    indices = args[1] if func in (aten.index.Tensor, aten.index_put_.default) else ()
    return any(t is not None and t.dtype == torch.bool for t in indices)
