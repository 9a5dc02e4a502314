"""The contract of adapters: things that a stage learns besides rows, the base's weights and LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from personalar.models.base import Backend


class Adapter(Protocol):
    """Something new in the network; named in `method.stages.NAME.adapters`."""

    def attach(self, backend: Backend, *, generator: torch.Generator) -> Mapping[str, nn.Parameter]:
        """Put new parameters into `backend.transformer`, in place, and return them by name.

        They are drawn from `generator`, and float32. Learned values are copied over them when the concept is
        loaded, so names and shapes must depend on the base and on the adapter's arguments alone.
        """


def attach_learned(
    adapters: Mapping[str, Adapter], learned: Mapping[str, Mapping[str, Tensor]], backend: Backend
) -> dict[str, Mapping[str, nn.Parameter]]:
    """Put the `learned` adapters of a concept into `backend`; return their parameters.

    Raises:
        ValueError: an adapter is not configured, or its tensors do not fit.
    """
    attached = {}
    for name, tensors in learned.items():
        if name not in adapters:
            raise ValueError(
                f"the concept contains what an adapter {name!r} learned, and its class is not read from a "
                f"concept: name it, +adapters.{name}._target_=my_package.MyAdapter"
            )
        parameters = adapters[name].attach(backend, generator=torch.Generator().manual_seed(0))
        shapes = {key: tuple(parameter.shape) for key, parameter in parameters.items()}
        found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        if shapes != found:
            raise ValueError(f"adapter {name!r} has parameters {shapes}, the concept contains {found}")
        with torch.no_grad():
            for key, parameter in parameters.items():
                parameter.copy_(tensors[key])
        attached[name] = parameters
    return attached
