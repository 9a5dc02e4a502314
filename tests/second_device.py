"""A second device made of Python: tensors that say they lie on it, and refuse to meet those of the CPU.

A program that has only seen a CPU mixes devices without noticing. Here every operation is computed on the
CPU, with real numbers, but by a GPU's rules: operands must lie together, and what the host reads is a wait
for the device, which is counted. What it cannot show are the kernels of a GPU. To import this file is to
change torch for the whole process: `test_second_device.py` has a process of its own for it.
"""

from __future__ import annotations

import functools
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "far"
aten = torch.ops.aten
CROSSING = {aten._to_copy.default, aten.copy_.default, aten.lift_fresh.default, aten.set_.source_Tensor}
"""Operations that may see both devices."""


class FarTensor(torch.Tensor):
    """A tensor of the second device; `inner` holds its numbers."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> FarTensor:
        with torch.inference_mode(False):  # a view of an ordinary tensor is an ordinary tensor
            made = torch.Tensor._make_wrapper_subclass(
                cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(),
                dtype=inner.dtype, device=torch.device(NAME, 0), requires_grad=False,
            )  # fmt: skip
        made.inner = inner
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"FarTensor({self.inner!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Be written like a GPU's tensor: as numbers, which are read to the CPU."""
        return self.inner.__reduce_ex__(protocol)

    def tolist(self) -> list[Any]:
        """Read all of it, which is a wait."""
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        """Refuse, as a GPU's tensors do."""
        raise TypeError("can't convert a far tensor to numpy: copy it to the CPU first")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of `second_device()`")


class _Mode(TorchDispatchMode):
    """Computes on the CPU what happens on the second device."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        """Times that the host read from the device, by the line that asked."""
        self.bytes_read = 0
        """What it read in all."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        far = [t for t in given if isinstance(t, FarTensor)]
        asked = kwargs.get("device")
        asked = torch.device(asked) if asked is not None else None
        here = asked.type == NAME if asked is not None else bool(far)
        if func not in CROSSING and far:
            self._check(func, given)
        if isinstance(kwargs.get("generator"), torch.Generator) and here:  # there is none but the CPU's
            raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")
        if func is aten.copy_.default:
            here = isinstance(args[0], FarTensor)
        if far and (func is aten._local_scalar_dense.default or not here or self._counts(func, args)):
            self._wait()
            self.bytes_read += 0 if here else sum(t.nbytes for t in far)
        if asked is not None and here:
            kwargs["device"] = torch.device("cpu")
        own = {id(t.inner): t for t in far}
        result = func(*tree_map(_bare, args), **tree_map(_bare, kwargs))
        return tree_map(functools.partial(_dress, own=own), result) if here else result

    @staticmethod
    def _check(func: Any, given: list[torch.Tensor]) -> None:
        others = [t for t in given if not isinstance(t, FarTensor) and t.ndim > 0]
        index = func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default)
        if others and not index:  # torch itself carries indices over, at the price of a copy
            raise RuntimeError(f"Expected all tensors to be on the same device, {func} got far and cpu")
        if others:
            raise RuntimeError(f"{func}: an index on the CPU is copied to the device each time")

    @staticmethod
    def _counts(func: Any, args: Any) -> bool:
        """Tell whether the result's shape depends on values, for which a GPU is waited for."""
        if func in (aten.nonzero.default, aten.masked_select.default, aten.repeat_interleave.Tensor):
            return True
        indices = args[1] if func in (aten.index.Tensor, aten.index_put_.default) else ()
        return any(t is not None and t.dtype == torch.bool for t in indices)

    def _wait(self) -> None:
        stack = [f for f in traceback.extract_stack() if "/personalar/" in f.filename]
        where = f"{stack[-1].filename.rpartition('/personalar/')[2]}: {stack[-1].line}" if stack else "test"
        self.waits[where] += 1


def _bare(value: Any) -> Any:
    return value.inner if isinstance(value, FarTensor) else value


def _dress(value: Any, own: dict[int, FarTensor]) -> Any:
    if not isinstance(value, torch.Tensor) or isinstance(value, FarTensor):
        return value
    return own.get(id(value)) if id(value) in own else FarTensor(value)


class _Module(_DummyBackendModule):
    """What recomputing asks of a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        """Nothing is drawn: dropout is a hash."""


# Once and for the whole process, before the first backward pass: autograd counts devices then.
_setup_privateuseone_for_python_backend(NAME, backend_module=_Module())


@contextmanager
def second_device() -> Iterator[_Mode]:
    """Offer the device "far"; yields what records the waits for it."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(list, device=far)` goes by way of the CPU
    try:
        with _Mode() as mode:
            yield mode
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
