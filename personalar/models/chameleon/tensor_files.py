"""Tensors between folders and modules: strict, streamed reading and atomic writing of safetensors.

A tensor that is missing or of another shape is an error that names it, before any is read; nothing is ever
re-initialised in silence. Tensors go one by one from the file to their place: a big model is in memory once.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from personalar.core.files import put_in_place, temporary, write_atomic
from personalar.core.process import global_rank
from personalar.core.run_folder import first_few
from personalar.models.checkpoint_folder import INDEX, WEIGHTS, weight_files, write_json

VQ_PREFIX = "model.vqmodel."
"""Begins the names of the image tokenizer's tensors in a checkpoint that contains it."""
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
        file = temporary(folder / f"shard_{len(files)}")
        write_atomic(file, to_safetensors(shard, metadata={"format": "pt"}))
        files.append((file, list(shard)))
        shard.clear()

    try:
        for name, tensor in tensors:
            shard[name] = tensor.detach().to("cpu", dtype).contiguous()
            total += shard[name].nbytes
            if sum(held.nbytes for held in shard.values()) >= shard_bytes:
                flush()
        if shard:
            flush()
    except BaseException:
        for file, _ in files:
            file.unlink(missing_ok=True)
        raise
    places: dict[str, str] = {}
    for number, (file, names) in enumerate(files, start=1):
        final = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        put_in_place(file, folder / final, sync=False)
        places |= dict.fromkeys(names, final)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def read_shapes(folder: Path, prefix: str = "") -> dict[str, torch.Size]:
    """Return the shape of every tensor that `read_tensors` yields, from the files' headers."""
    shapes = {}
    for file in weight_files(folder):
        with _opened(file) as opened:
            for name, stored in _names(opened, prefix):
                shapes[name] = torch.Size(opened.get_slice(stored).get_shape())
    return shapes


def read_tensors(folder: Path, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of the weights in a folder, file by file, without the image tokenizer inside.

    Args:
        prefix: `VQ_PREFIX`: yield the image tokenizer inside alone; the names are without the prefix.

    Raises:
        ValueError: when a file is damaged.
    """
    for file in weight_files(folder):
        with _opened(file) as opened:
            for name, stored in _names(opened, prefix):
                yield name, opened.get_tensor(stored)


def _names(opened: safe_open, prefix: str) -> Iterator[tuple[str, str]]:
    for stored in opened.keys():  # noqa: SIM118 (not a dict)
        if stored.startswith(VQ_PREFIX) == (prefix == VQ_PREFIX):
            yield stored.removeprefix(prefix), stored


@contextmanager
def _opened(file: Path) -> Iterator[safe_open]:
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except SafetensorError as error:
        raise ValueError(f"{file} is not a complete safetensors file ({error}); copy it again") from error


def check_fit(
    expected: Mapping[str, torch.Size], shapes: Mapping[str, torch.Size], *, where: Path, published: bool
) -> None:
    """Compare the `shapes` in a file with those `expected`.

    Args:
        published: by others: unknown tensors are ignored with a warning that names them.

    Raises:
        ValueError: naming tensors that are missing, of another shape or, unless `published`, unknown.
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
        listed = "; ".join(
            f"{len(names)} {kind}: {first_few(names)}" for kind, names in problems.items() if names
        )
        raise ValueError(f"the weights in {where} do not fit its config.json: {listed}")
    if unknown and global_rank() == 0:
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        warnings.warn(
            f"{where} contains unknown tensors, which are ignored: {', '.join(unknown[:SHOWN])}{more}",
            stacklevel=2,
        )


def fill(
    module: nn.Module,
    tensors: Iterable[tuple[str, Tensor]],
    shapes: Mapping[str, torch.Size],
    *,
    where: Path,
    published: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Put `tensors` of `shapes` into `module`, built on meta, each cast and moved as it comes.

    A query or key norm with fewer rows than heads is repeated to the full number: Lumina-mGPT stores one norm
    per model-parallel shard, (1, head_dim), for all heads of that shard.

    Raises:
        ValueError: see `check_fit`; no tensor is read then.
    """
    expected = {name: tensor.shape for name, tensor in module.state_dict().items()}
    check_fit(expected, shapes, where=where, published=published)
    state = {}
    for name, tensor in tensors:
        if name in expected:
            state[name] = expand_norm(name, tensor, expected[name]).to(device, dtype)
    module.load_state_dict(state, strict=True, assign=True)


def expand_norm(name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    """Return a query or key norm repeated to `shape`, or `tensor` as it is; see `fill`."""
    if tensor.shape == shape or not _can_expand(name, tensor.shape, shape):
        return tensor
    return tensor.repeat_interleave(shape[0] // tensor.shape[0], dim=0)


def collapse_norms(state: Mapping[str, Tensor], *, rows: int) -> dict[str, Tensor]:
    """Return `state` with every query and key norm written as `rows` rows, the inverse of `expand_norm`.

    Raises:
        ValueError: when heads of one group have different norms.
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
    """Return whether `name` is of a query or key norm: a row per head, or fewer for all of them."""
    return ".q_norm." in name or ".k_norm." in name


def _can_expand(name: str, shape: torch.Size, wanted: torch.Size) -> bool:
    shared = is_head_norm(name) and len(shape) == 2 and shape[0] and wanted[0] % shape[0] == 0
    return bool(shared) and shape[1:] == wanted[1:]
