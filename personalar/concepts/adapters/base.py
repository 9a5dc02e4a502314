"""The contract of user-defined adapters: parameters that a stage trains besides [V], weights and LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from personalar.models.base import Backend


class Adapter(Protocol):
    """New trainable parameters in the network; configured in `method.stages.NAME.adapters`."""

    def attach(self, backend: Backend, *, generator: torch.Generator) -> Mapping[str, nn.Parameter]:
        """Add float32 parameters to `backend.transformer`, in place, and return them by name.

        Draw their initial values from `generator`. When a concept is loaded, its learned values are copied
        into the parameters; names and shapes must therefore depend only on the base and on the adapter's
        arguments.
        """


def attach_learned(
    adapters: Mapping[str, Adapter], learned: Mapping[str, Mapping[str, Tensor]], backend: Backend
) -> dict[str, Mapping[str, nn.Parameter]]:
    """Attach the adapters of a concept to `backend`, and copy their learned values.

    Args:
        adapters: the configured adapters by name.
        learned: adapter name -> parameter name -> tensor, from a concept.
        backend: the base, which is changed in place.

    Returns:
        Adapter name -> parameter name -> parameter.

    Raises:
        ValueError: an adapter is not configured, or its parameters have other names or shapes.
    """
    attached = {}
    for name, tensors in learned.items():
        if name not in adapters:
            raise ValueError(
                f"the concept contains parameters of an adapter {name!r}, whose class must be set on the "
                f"command line: +adapters.{name}._target_=my_package.MyAdapter"
            )
        # The initial values are overwritten below, so any seed will do.
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
