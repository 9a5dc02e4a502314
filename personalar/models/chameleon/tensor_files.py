"""Tensors between folders and modules: strict, streamed reading and atomic writing of safetensors.

Nothing is ever re-initialised in silence: a tensor that is missing or of another shape is an error that names
it, before any is read. An unknown tensor is an error in the files that this program writes; in published ones
it is ignored and named once. Tensors go one by one from the file to their place, so that a big model is in
memory once, and the host holds at most one file beside it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from personalar.core.files import write_atomic
from personalar.core.process import global_rank
from personalar.models.chameleon.model_files import INDEX, WEIGHTS, weight_files, write_json

SHOWN = 12
"""Ignored tensors that a warning names."""


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], *, dtype: torch.dtype) -> None:
    """Write `model.safetensors` in `folder`, everything cast to `dtype`."""
    cast = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    write_atomic(folder / WEIGHTS, to_safetensors(cast, metadata={"format": "pt"}))


def write_shards(
    folder: Path, tensors: Iterable[tuple[str, Tensor]], *, dtype: torch.dtype, shard_bytes: int
) -> None:
    """Write safetensors shards of about `shard_bytes` and their index; one shard is in memory at a time.

    The index is written last, so a folder without it is unfinished.
    """
    shard: dict[str, Tensor] = {}
    files: list[tuple[Path, list[str]]] = []
    total = 0

    def flush() -> None:
        file = folder / f".shard_{len(files)}.{os.getpid()}.tmp"
        write_atomic(file, to_safetensors(shard, metadata={"format": "pt"}))
        files.append((file, list(shard)))
        shard.clear()

    for name, tensor in tensors:
        shard[name] = tensor.detach().to("cpu", dtype).contiguous()
        total += shard[name].nbytes
        if sum(held.nbytes for held in shard.values()) >= shard_bytes:
            flush()
    if shard:
        flush()
    places = {}
    for number, (file, names) in enumerate(files, start=1):
        final = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        os.replace(file, folder / final)
        places |= dict.fromkeys(names, final)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def read_shapes(folder: Path) -> dict[str, torch.Size]:
    """Return the shape of every tensor in a folder, from the files' headers. Raises as `read_tensors`."""
    shapes = {}
    for file in weight_files(folder):
        with _opened(file) as opened:
            shapes |= {name: torch.Size(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    return shapes


def read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of all weights in a folder, file by file. Raises ValueError for a damaged one."""
    for file in weight_files(folder):
        with _opened(file) as opened:
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                yield name, opened.get_tensor(name)


def load_strict(
    module: nn.Module,
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    published: bool,
    prefix: str = "",
    ignore_prefixes: tuple[str, ...] = (),
) -> None:
    """Fill `module`, built on meta, from the safetensors in `folder`.

    A query or key norm with fewer rows than heads is repeated to the full number: Lumina-mGPT stores one norm
    per model-parallel shard, (1, head_dim), for all heads of that shard.

    Args:
        published: see `check_fit`.
        prefix: of the names that belong to `module`, taken off; others are somebody else's.
        ignore_prefixes: of names that are known and not wanted.

    Raises:
        ValueError: see `check_fit`; nothing is read then.
    """
    shapes = read_shapes(folder)
    names = {
        name: name.removeprefix(prefix)
        for name in shapes
        if name.startswith(prefix) and not name.startswith(ignore_prefixes or ("\0",))
    }
    found = {names[name]: shapes[name] for name in names}
    check_fit(shapes_of(module), found, where=folder, published=published)
    wanted = ((names[name], tensor) for name, tensor in read_tensors(folder) if name in names)
    fill(module, wanted, dtype=dtype, device=device)


def shapes_of(module: nn.Module) -> dict[str, torch.Size]:
    """Return the shape of each of the module's tensors."""
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def check_fit(
    expected: Mapping[str, torch.Size], shapes: Mapping[str, torch.Size], *, where: Path, published: bool
) -> None:
    """Compare `shapes`, which a file holds, with those `expected`.

    Args:
        published: by others: unknown tensors are ignored with a warning that names them.

    Raises:
        ValueError: naming every tensor that is missing, of another shape or, unless `published`, unknown.
    """
    unknown = [name for name in shapes if name not in expected]
    problems = {
        "missing": [name for name in expected if name not in shapes],
        "unexpected": unknown,
        "of another shape": [
            f"{name} {list(shape)} instead of {list(expected[name])}"
            for name, shape in shapes.items()
            if name in expected and not (shape == expected[name] or _can_expand(name, shape, expected[name]))
        ],
    }
    tolerated = ("unexpected",) if published else ()
    if any(names for kind, names in problems.items() if kind not in tolerated):
        told = "; ".join(
            f"{len(names)} {kind}: {', '.join(names)}" for kind, names in problems.items() if names
        )
        raise ValueError(f"the weights in {where} do not fit its config.json: {told}")
    if unknown and global_rank() == 0:
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        warnings.warn(
            f"{where} holds tensors of no use here, which are ignored: {', '.join(unknown[:SHOWN])}{more}",
            stacklevel=2,
        )


def fill(
    module: nn.Module, tensors: Iterable[tuple[str, Tensor]], *, dtype: torch.dtype, device: torch.device
) -> None:
    """Put `tensors`, which fit, into `module`, each cast and moved as it comes; unknown ones are ignored."""
    expected, state = shapes_of(module), {}
    for name, tensor in tensors:
        if name not in expected:
            continue
        state[name] = expand_norm(name, tensor, expected[name]).to(device, dtype)
    module.load_state_dict(state, strict=True, assign=True)


def expand_norm(name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    """Return a query or key norm repeated to `shape`, or `tensor` as it is; see `load_strict`."""
    if tensor.shape == shape or not _can_expand(name, tensor.shape, shape):
        return tensor
    return tensor.repeat_interleave(shape[0] // tensor.shape[0], dim=0)


def collapse_norms(state: Mapping[str, Tensor], *, rows: int) -> dict[str, Tensor]:
    """Return `state` with every query and key norm written as `rows` rows, the inverse of loading.

    Raises:
        ValueError: when heads of one group have different norms, which fewer rows cannot say.
    """
    collapsed = dict(state)
    for name, tensor in state.items():
        if not is_head_norm(name):
            continue
        if tensor.shape[0] % rows:
            raise ValueError(f"{name} has {tensor.shape[0]} heads, which {rows} rows cannot stand for")
        groups = tensor.unflatten(0, (rows, -1))
        if not torch.equal(groups, groups[:, :1].expand_as(groups)):
            raise ValueError(
                f"{name} differs between heads (it was trained per head); it cannot be written in {rows} rows"
            )
        collapsed[name] = groups[:, 0].contiguous()
    return collapsed


def is_head_norm(name: str) -> bool:
    """Tell whether a tensor of that name is a query or key norm: a row per head, or fewer for all of them."""
    return ".q_norm." in name or ".k_norm." in name


def _can_expand(name: str, shape: torch.Size, wanted: torch.Size) -> bool:
    shared = is_head_norm(name) and len(shape) == 2 and shape[0] and wanted[0] % shape[0] == 0
    return bool(shared) and shape[1:] == wanted[1:]


@contextmanager
def _opened(file: Path) -> Iterator[safe_open]:
    """Open a safetensors file, with an error that says what to do."""
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except SafetensorError as error:
        raise ValueError(f"{file} is not a complete safetensors file ({error}); copy it again") from error
