"""Folders of safetensors: strict, streamed reading and atomic writing.

Nothing is ever re-initialised in silence: a tensor that is missing, unknown or of another shape is an error
that names it. Tensors go one by one from the file to their place, so that a big model is in memory once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def read_json(path: Path) -> dict[str, Any]:
    """Read a json object. Raises FileNotFoundError or ValueError, naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; a model folder holds base/, vq/ and protocol.json")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid json: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, expected a json object")
    return value


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that it is there completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a json object, atomically."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], *, dtype: torch.dtype) -> None:
    """Write `model.safetensors` in `folder`, everything cast to `dtype`."""
    cast = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    write_bytes(folder / WEIGHTS, to_safetensors(cast, metadata={"format": "pt"}))


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a Hugging Face folder, one or sharded. Raises FileNotFoundError."""
    index = folder / INDEX
    names = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else [WEIGHTS]
    files = [folder / name for name in names]
    for file in files:
        if file.parent != folder or not file.is_file():
            raise FileNotFoundError(f"{file} is missing; {folder} needs {WEIGHTS} or all shards of {INDEX}")
    return files


def read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of all weights in a folder. Raises ValueError for a damaged file."""
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (not a dict)
                    yield name, opened.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(f"{file} is not a complete safetensors file ({error}); copy it again") from error


def load_strict(
    module: nn.Module,
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    ignore_prefixes: tuple[str, ...] = (),
) -> None:
    """Fill `module`, built on meta, from the weights in `folder`.

    A query or key norm with fewer rows than heads is repeated to the full number: Lumina-mGPT stores one norm
    per model-parallel shard, (1, head_dim), for all heads of that shard.

    Raises:
        ValueError: naming every tensor that is missing, unknown or of another shape.
    """
    expected = {name: tensor.shape for name, tensor in module.state_dict().items()}
    state: dict[str, Tensor] = {}
    unexpected, reshaped = [], []
    for name, tensor in read_tensors(folder):
        if name.startswith(ignore_prefixes or ("\0",)):
            continue
        if name not in expected:
            unexpected.append(name)
            continue
        tensor = expand_norm(name, tensor, expected[name])
        if tensor.shape != expected[name]:
            reshaped.append(f"{name} {list(tensor.shape)} instead of {list(expected[name])}")
            continue
        state[name] = tensor.to(device, dtype)
    known = {*state, *(told.split()[0] for told in reshaped)}
    missing = [name for name in expected if name not in known]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    if any(problems.values()):
        told = "; ".join(
            f"{len(names)} {kind}: {', '.join(names)}" for kind, names in problems.items() if names
        )
        raise ValueError(f"the weights in {folder} do not fit its config.json: {told}")
    module.load_state_dict(state, strict=True, assign=True)


def expand_norm(name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    """Return a query or key norm repeated to `shape`, or `tensor` as it is; see `load_strict`."""
    is_head_norm = ".q_norm." in name or ".k_norm." in name
    if not is_head_norm or tensor.ndim != 2 or tensor.shape[0] == 0 or shape[0] % tensor.shape[0]:
        return tensor
    return tensor.repeat_interleave(shape[0] // tensor.shape[0], dim=0)
