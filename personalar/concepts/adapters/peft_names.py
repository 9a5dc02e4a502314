"""An adapter's files under the names of modules in transformers' class of the base, and back.

In that class the language model is one network of several, so names get its path in front.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors

from personalar.concepts.adapters.lora import CONFIG_FILE, PREFIX, WEIGHTS_FILE, config_bytes
from personalar.core.files import parse_json

_STACK = "model"
"""The module that contains the layers, in our network."""
_PLACE = re.compile(r"\.layers\.(\d+)\.\w+\.(\w+)\.lora_[AB]\.")


def to_transformers(files: Mapping[str, bytes], *, stack: str) -> dict[str, bytes]:
    """Return an adapter's files with the names of modules in transformers' class of the base.

    Bare names of projections would also find those of the class's other networks, so `target_modules` becomes
    a pattern for the whole path.

    Args:
        files: by any path that ends in the file's name.
        stack: dotted path of the layers' owner in that class.
    """
    if stack == _STACK:
        return dict(files)
    tensors, config = _parts(files)
    places = {match.groups() for name in tensors if (match := _PLACE.search(name))}
    # The numbers of layers are part of the pattern: PEFT refuses `layers_to_transform` beside a pattern.
    layers = "|".join(sorted({layer for layer, _ in places}, key=int))
    targets = "|".join(sorted({target for _, target in places}))
    pattern = rf"{re.escape(stack)}\.layers\.({layers})\.\w+\.({targets})"
    config |= {"target_modules": pattern, "layers_to_transform": None, "layers_pattern": None}
    return _joined(files, _moved(tensors, _STACK, stack), config)


def from_transformers(files: Mapping[str, bytes], *, stack: str) -> dict[str, bytes]:
    """Return an adapter's files with our names of tensors, which are all that `merge_lora` reads.

    Raises:
        ValueError: a file is damaged, or the adapter also changes another network of the class.
    """
    if stack == _STACK:
        return dict(files)
    tensors, config = _parts(files)
    foreign = [name for name in tensors if not name.startswith(f"{PREFIX}{stack}.")]
    if foreign or not tensors:
        raise ValueError(
            f"the adapter changes {foreign[0] if foreign else 'nothing'}; allowed: layers below {stack}"
        )
    return _joined(files, _moved(tensors, stack, _STACK), config)


def _parts(files: Mapping[str, bytes]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    by_name = {Path(file).name: data for file, data in files.items()}
    try:
        return from_safetensors(by_name[WEIGHTS_FILE]), parse_json(by_name[CONFIG_FILE])
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"the adapter is damaged ({error!r:.200}); save it again") from error


def _joined(
    files: Mapping[str, bytes], tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> dict[str, bytes]:
    written = {
        WEIGHTS_FILE: to_safetensors(dict(tensors), metadata={"format": "pt"}),
        CONFIG_FILE: config_bytes(config),
    }
    return {file: written[Path(file).name] for file in files}


def _moved(tensors: Mapping[str, torch.Tensor], old: str, new: str) -> dict[str, torch.Tensor]:
    before, after = f"{PREFIX}{old}.", f"{PREFIX}{new}."
    return {after + name.removeprefix(before): tensor for name, tensor in tensors.items()}
