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
from personalar.models.chameleon.tensor_files import check_fit, expand_norm, read_shapes, read_tensors
from personalar.models.chameleon.transformer import ChameleonTransformer, TransformerConfig
from personalar.models.chameleon.vq_checkpoint import PREFIX as VQ_PREFIX


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
    shapes = {name: torch.Size(getattr(p, "ds_shape", p.shape)) for name, p in parameters.items()}
    found = {name: s for name, s in read_shapes(files.base).items() if not name.startswith(VQ_PREFIX)}
    check_fit(shapes, found, where=files.base, published=files.published)
    for name, tensor in read_tensors(files.base):
        if name not in parameters:
            continue
        tensor = changed.get(name, expand_norm(name, tensor, shapes[name])).to(dtype)
        if tensor.shape != shapes[name]:
            raise ValueError(
                f"{name} was learned with shape {list(tensor.shape)}, {files.base} has {list(shapes[name])}: "
                "take the base that it was learned on"
            )
        assign(parameters[name], tensor)
    with ordinary_modules():
        return load_backend(files, dtype=dtype, device=device, attention=attention, transformer=transformer)
