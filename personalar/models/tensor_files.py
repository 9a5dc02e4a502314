"""Strict, streamed reading of weights into modules, and atomic writing of safetensors.

A missing tensor or a wrong shape raises an error that names the tensor, before any tensor is read. Nothing is
re-initialised silently. Files are memory-mapped and tensors are cast one at a time, so a large model needs
its memory only once. `pytorch_model*.bin` is read with `weights_only=True`, so no code in it is run.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from personalar.core.files import put_in_place, temporary, write_atomic
from personalar.core.process import global_rank
from personalar.core.run_folder import first_few
from personalar.models.checkpoint_folder import INDEX, WEIGHTS, weight_files, write_json

Rename = Callable[[str], str | None]
"""Maps the name of a tensor in a file to its name in the module; None: it is not read."""
SHARD_BYTES = 5_000_000_000  # as in transformers' save_pretrained
SHOWN = 12
"""Maximum number of ignored tensors in a warning."""


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], *, dtype: torch.dtype) -> None:
    """Write `model.safetensors` in `folder`, with all tensors cast to `dtype`."""
    # safetensors refuses views, whose storage is larger.
    cast = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    write_atomic(folder / WEIGHTS, to_safetensors(cast, metadata={"format": "pt"}))


def write_shards(
    folder: Path,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write safetensors shards of about `shard_bytes` and their index; one shard is in memory at a time.

    The index is written last, so a folder without it is unfinished.

    Args:
        dtype: precision of the floating-point tensors; None: as they are.
    """
    shard: dict[str, Tensor] = {}
    files: list[tuple[Path, list[str]]] = []
    total = 0

    def flush() -> None:
        # Under a temporary name, because the final one contains the number of shards.
        file = temporary(folder / f"shard_{len(files)}")
        write_atomic(file, to_safetensors(shard, metadata={"format": "pt"}))
        files.append((file, list(shard)))
        shard.clear()

    try:
        for name, tensor in tensors:
            kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            shard[name] = tensor.detach().to("cpu", kind).contiguous()
            total += shard[name].nbytes
            if sum(held.nbytes for held in shard.values()) >= shard_bytes:
                flush()
        if shard:
            flush()
    # Also after Ctrl-C: abandoned shards would take gigabytes.
    except BaseException:
        for file, _ in files:
            file.unlink(missing_ok=True)
        raise
    places: dict[str, str] = {}
    for number, (file, names) in enumerate(files, start=1):
        final = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        # Not synced here: write_json syncs them all before the index.
        put_in_place(file, folder / final, sync=False)
        places |= dict.fromkeys(names, final)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def read_tensors(folder: Path, rename: Rename = str) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, memory-mapped tensor) of the weights in a folder, file by file; `rename` gives the names.

    Raises:
        ValueError: a file is damaged, or contains objects other than tensors.
    """
    for file in weight_files(folder):
        stored = _safetensors(file) if file.suffix == ".safetensors" else read_pickle(file).items()
        for name, tensor in stored:
            if (ours := rename(name)) is not None:
                yield ours, tensor


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a file of torch.save by name, memory-mapped; no code in it is run.

    Raises:
        ValueError: the file is damaged, or contains no tensors, or objects other than tensors.
    """
    try:
        # Only the newer zip format can be memory-mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except Exception as error:  # torch raises many types of errors for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(
            f"{path} cannot be read with weights_only=True ({reason}): it is damaged, or contains objects "
            "that would run code; copy it again, or save only its state_dict"
        ) from error
    # Lightning and taming-transformers nest the weights, transformers does not.
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    values = state.items() if isinstance(state, Mapping) else ()
    tensors = {name: value for name, value in values if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path} contains no state_dict of tensors; it is not a checkpoint")
    return tensors


def _safetensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                yield name, opened.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{file} is not a complete safetensors file ({error}); copy it again") from error


def check_fit(
    expected: Mapping[str, torch.Size], tensors: Mapping[str, Tensor], *, where: Path, published: bool
) -> None:
    """Compare the shapes of `tensors` with the `expected` ones.

    Args:
        where: file or folder, for messages.
        published: a published checkpoint, in which unknown tensors are ignored with a warning.

    Raises:
        ValueError: tensors are missing, have another shape or, unless `published`, are unknown.
    """
    unknown = [name for name in tensors if name not in expected]
    problems = {
        "missing": [name for name in expected if name not in tensors],
        "unexpected": unknown,
        "of another shape": [
            f"{name} {list(tensor.shape)} instead of {list(expected[name])}"
            for name, tensor in tensors.items()
            if name in expected and tensor.shape != expected[name]
        ],
    }
    # Published files contain more than is needed; in our own format an unknown tensor is a mistake.
    tolerated = ("unexpected",) if published else ()
    if any(names for kind, names in problems.items() if kind not in tolerated):
        listed = "; ".join(
            f"{len(names)} {kind}: {first_few(names)}" for kind, names in problems.items() if names
        )
        raise ValueError(
            f"the weights in {where} do not fit the sizes in its configuration ({listed}): copy both again "
            "from the same source"
        )
    # One warning, not one per process.
    if unknown and global_rank() == 0:
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        warnings.warn(
            f"{where} contains unknown tensors, which are ignored: {', '.join(unknown[:SHOWN])}{more}",
            stacklevel=2,
        )


def fill(
    module: nn.Module,
    tensors: dict[str, Tensor],
    *,
    where: Path,
    published: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Load `tensors` into `module`, which is on meta; they are cast and moved one at a time.

    With `device` meta, only the names and shapes are checked.

    Args:
        tensors: tensors by name; they are removed, so that each is freed when it has been cast.
        where, published: see `check_fit`.

    Raises:
        ValueError: see `check_fit`; no tensor is read then.
    """
    expected = {name: tensor.shape for name, tensor in module.state_dict().items()}
    check_fit(expected, tensors, where=where, published=published)
    if device.type == "meta":
        return
    state = {}
    for name in list(tensors):
        tensor = tensors.pop(name)
        if name in expected:
            state[name] = tensor.to(device, dtype)
    # assign, because parameters on meta have no storage to copy into.
    module.load_state_dict(state, strict=True, assign=True)
