"""Reading of sharded weights (DeepSpeed's ZeRO 3)."""

from __future__ import annotations

from torch import Tensor, nn


def is_sharded(parameter: nn.Parameter) -> bool:
    """Return whether `parameter` is sharded over processes (DeepSpeed's ZeRO 3)."""
    return hasattr(parameter, "ds_id")


def whole_copy(parameter: nn.Parameter) -> Tensor:
    """Return the gathered `parameter` as a copy on the CPU; all processes must call it, in the same order."""
    if not is_sharded(parameter):
        return parameter.detach().to("cpu", copy=True)
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().to("cpu", copy=True)
