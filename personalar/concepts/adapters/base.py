"""The contract of adapters: parameters that a stage trains besides [V], weights and LoRA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from personalar.concepts.adapters.identifier import Identifier
from personalar.models.base import Backend, TrainingSequence


class Adapter:
    """New trainable parameters in the network; configured in `method.stages.NAME.adapters`.

    A subclass defines `attach`; the other methods do nothing by default.
    """

    tokens: Sequence[str] = ()
    """Names of tokens that it needs besides [V], such as [I] or [T2]; the concept reserves an id for each."""
    combinable: bool = False
    """True if it changes only passes with [V] or its own tokens, so that concepts with it can be combined."""

    def read_arguments(self, learned: Mapping[str, Tensor]) -> None:
        """Set those arguments that the learned values of a concept determine, before `attach`."""

    def attach(
        self, backend: Backend, *, identifier: Identifier, generator: torch.Generator
    ) -> Mapping[str, nn.Parameter]:
        """Add float32 parameters to `backend.transformer`, in place, and return them by name.

        Draw their initial values from `generator`. When a concept is loaded, its learned values are copied
        into the parameters; names and shapes must therefore depend only on the base, the adapter's
        arguments and `identifier.tokens` (name -> id).
        """
        raise NotImplementedError

    def prepare(
        self,
        backend: Backend,
        identifier: Identifier,
        photos: Sequence[TrainingSequence],
        *,
        initialize: bool,
    ) -> None:
        """Prepare for training, after `attach`.

        Args:
            backend: the network with its weights at the start of the stage.
            identifier: learned embeddings at the start of the stage.
            photos: one sequence with [V] for each photo; the loss mask is true for the image codes.
            initialize: the parameters are new and may be set; otherwise they come from an earlier stage.
        """

    def penalty(self) -> Tensor | None:
        """Return a term (scalar) that is added to the training loss, or None."""
        return None


def attach_learned(
    adapters: Mapping[str, Adapter],
    learned: Mapping[str, Mapping[str, Tensor]],
    backend: Backend,
    identifier: Identifier,
) -> dict[str, Mapping[str, nn.Parameter]]:
    """Attach the adapters of a concept to `backend`, and copy their learned values.

    Args:
        adapters: the configured adapters by name.
        learned: adapter name -> parameter name -> tensor, from a concept.
        backend: the base, which is changed in place.
        identifier: the learned embeddings of the concept.

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
        adapters[name].read_arguments(tensors)
        # The initial values are overwritten below, so any seed will do.
        generator = torch.Generator().manual_seed(0)
        parameters = adapters[name].attach(backend, identifier=identifier, generator=generator)
        shapes = {key: tuple(parameter.shape) for key, parameter in parameters.items()}
        found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        if shapes != found:
            raise ValueError(f"adapter {name!r} has parameters {shapes}, the concept contains {found}")
        with torch.no_grad():
            for key, parameter in parameters.items():
                parameter.copy_(tensors[key])
        attached[name] = parameters
    return attached
