"""Reading and writing of sharded weights (DeepSpeed's ZeRO 3).

These functions also work with ordinary parameters. They are collective: all processes must call them, in the
same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn


def is_sharded(parameter: nn.Parameter) -> bool:
    """Return whether `parameter` is sharded over processes (DeepSpeed's ZeRO 3)."""
    return hasattr(parameter, "ds_id")


@contextmanager
def ordinary_modules() -> Iterator[None]:
    """Create modules in the block without sharding, although DeepSpeed's sharding context is active."""
    from deepspeed.runtime.zero import partition_parameters

    partition_parameters.shutdown_init_context()
    try:
        yield
    finally:
        partition_parameters.restore_init_context()


def whole(parameter: nn.Parameter, *, changed: bool = False):
    """Return a context in which `parameter` is gathered; with `changed`, rank zero's new values are kept."""
    if not is_sharded(parameter):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if changed else None)


def whole_copy(parameter: nn.Parameter) -> Tensor:
    """Return the gathered `parameter` as a copy on the CPU."""
    with whole(parameter):
        return parameter.detach().to("cpu", copy=True)


@torch.no_grad()
def assign(parameter: nn.Parameter, values: Tensor) -> None:
    """Overwrite `parameter` with `values`, which have its gathered shape."""
    with whole(parameter, changed=True):
        if parameter.shape == values.shape:
            parameter.copy_(values)
