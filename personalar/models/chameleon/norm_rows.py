"""Query and key norms with fewer rows than heads, as in the checkpoints of Lumina-mGPT.

They have one row per model-parallel shard, (1, head_dim) or (2, head_dim), for all heads of that shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor


def expanded(
    tensors: Iterable[tuple[str, Tensor]], expected: Mapping[str, torch.Size]
) -> Iterator[tuple[str, Tensor]]:
    """Yield `tensors`, with every norm repeated to the number of rows in `expected`."""
    for name, tensor in tensors:
        yield name, expand_norm(name, tensor, expected.get(name, tensor.shape))


def expanded_shapes(
    shapes: Mapping[str, torch.Size], expected: Mapping[str, torch.Size]
) -> dict[str, torch.Size]:
    """Return the shapes of the tensors that `expanded` yields."""
    return {
        name: expected[name] if name in expected and _can_expand(name, shape, expected[name]) else shape
        for name, shape in shapes.items()
    }


def expand_norm(name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    """Return a query or key norm repeated to `shape`; any other tensor is returned unchanged."""
    if tensor.shape == shape or not _can_expand(name, tensor.shape, shape):
        return tensor
    # Interleaved, because the heads of one shard follow each other.
    return tensor.repeat_interleave(shape[0] // tensor.shape[0], dim=0)


def collapse_norms(state: Mapping[str, Tensor], *, rows: int) -> dict[str, Tensor]:
    """Return `state` with every query and key norm reduced to `rows` rows, the inverse of `expand_norm`.

    Raises:
        ValueError: heads of one group have different norms.
    """
    collapsed = dict(state)
    for name, tensor in state.items():
        if not is_head_norm(name):
            continue
        if tensor.shape[0] % rows:
            raise ValueError(f"{name} has {tensor.shape[0]} heads, which cannot be stored in {rows} rows")
        groups = tensor.unflatten(0, (rows, -1))  # (rows, heads per row, head_dim)
        # An average would change the model silently.
        if not torch.equal(groups, groups[:, :1].expand_as(groups)):
            raise ValueError(
                f"{name} differs between heads (it was trained per head); it cannot be written in {rows} rows"
            )
        collapsed[name] = groups[:, 0].contiguous()
    return collapsed


def is_head_norm(name: str) -> bool:
    """Return whether `name` is a query or key norm."""
    return ".q_norm." in name or ".k_norm." in name


def _can_expand(name: str, shape: torch.Size, wanted: torch.Size) -> bool:
    shared = is_head_norm(name) and len(shape) == 2 and shape[0] and wanted[0] % shape[0] == 0
    # Another width is an error, which `check_fit` reports.
    return bool(shared) and shape[1:] == wanted[1:]
