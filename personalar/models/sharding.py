"""Weights that no process holds alone (ZeRO 3): build them cut up, fill them, read them back whole.

Everything here also works on ordinary parameters, so that callers do not ask which kind they have. All
processes must call these functions together and in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from personalar.models.chameleon.backend import ChameleonBackend, is_sharded, load_backend
from personalar.models.chameleon.model_files import ModelFiles, read_json
from personalar.models.chameleon.tensor_files import expand_norm, read_tensors
from personalar.models.chameleon.transformer import ChameleonTransformer, TransformerConfig


@contextmanager
def ordinary_modules() -> Iterator[None]:
    """Within DeepSpeed's sharding context, build what follows as ordinary modules."""
    from deepspeed.runtime.zero import partition_parameters

    partition_parameters.shutdown_init_context()
    try:
        yield
    finally:
        partition_parameters.restore_init_context()


def whole(parameter: nn.Parameter, *, changed: bool = False):
    """Return a context in which `parameter` is whole; with `changed`, rank zero's values are kept."""
    if not is_sharded(parameter):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0 if changed else None)


def whole_copy(parameter: nn.Parameter) -> Tensor:
    """Return all of `parameter` as a tensor of its own on the CPU."""
    with whole(parameter):
        return parameter.detach().to("cpu", copy=True)


@torch.no_grad()
def assign(parameter: nn.Parameter, values: Tensor) -> None:
    """Overwrite `parameter` with `values` of its (whole) shape."""
    with whole(parameter, changed=True):
        if parameter.shape == values.shape:
            parameter.copy_(values)


def load_sharded_backend(
    files: ModelFiles,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    attention: str,
    changed: Mapping[str, Tensor],
) -> ChameleonBackend:
    """Read a base within DeepSpeed's sharding context, one tensor at a time.

    A layer is cut up as soon as it is made, so that a process never holds more than its share and one tensor.

    Args:
        files, dtype, device, attention: as for `load_backend`.
        changed: weights by name to take in place of the files' (an earlier stage's).
    """
    numbers = read_json(files.base / "config.json")
    transformer = ChameleonTransformer(TransformerConfig.from_hf(numbers, attention=attention))
    parameters = dict(transformer.named_parameters())
    filled = set()
    for name, tensor in read_tensors(files.base):
        if name.startswith("model.vqmodel."):
            continue
        if name not in parameters:
            raise ValueError(f"the weights in {files.base} hold {name}, which config.json does not know")
        shape = torch.Size(getattr(parameters[name], "ds_shape", parameters[name].shape))
        tensor = changed.get(name, expand_norm(name, tensor, shape)).to(dtype)
        if tensor.shape != shape:
            raise ValueError(
                f"{name} in {files.base} has shape {list(tensor.shape)} instead of {list(shape)}"
            )
        assign(parameters[name], tensor)
        filled.add(name)
    if missing := [name for name in parameters if name not in filled]:
        raise ValueError(f"the weights in {files.base} lack {', '.join(missing)}")
    with ordinary_modules():
        return load_backend(files, dtype=dtype, device=device, attention=attention, transformer=transformer)
