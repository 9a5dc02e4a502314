"""An adapter's files under the names of modules in transformers' class of the base, and back.

In that class the language model is one network of several, so names get its path in front.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save as to_safetensors

from personalar.concepts.adapters.lora import PREFIX, config_bytes, parse_config
from personalar.concepts.validation import read_tensors
from personalar.core.own_files import LORA_CONFIG, LORA_WEIGHTS

_STACK = "model"
"""The module that contains the layers, in our network."""
_PLACE = re.compile(r"\.layers\.(\d+)\.\w+\.(\w+)\.lora_[AB]\.")


def to_transformers(files: Mapping[str, bytes], *, stack: str) -> dict[str, bytes]:
    """Return an adapter's files with the names of modules in transformers' class of the base.

    Bare names of projections would also find those of the class's other networks, so `target_modules` becomes
    a pattern for the whole path.

    Args:
        stack: dotted path of the layers' owner in that class.
    """
    if stack == _STACK:
        return dict(files)
    tensors, config = read_tensors(Path(LORA_WEIGHTS), files[LORA_WEIGHTS]), parse_config(files[LORA_CONFIG])
    places = {match.groups() for name in tensors if (match := _PLACE.search(name))}
    # The numbers of layers are part of the pattern: PEFT refuses `layers_to_transform` beside a pattern.
    layers = "|".join(sorted({layer for layer, _ in places}, key=int))
    targets = "|".join(sorted({target for _, target in places}))
    pattern = rf"{re.escape(stack)}\.layers\.({layers})\.\w+\.({targets})"
    config |= {"target_modules": pattern, "layers_to_transform": None, "layers_pattern": None}
    return {LORA_WEIGHTS: _moved(tensors, _STACK, stack), LORA_CONFIG: config_bytes(config)}


def from_transformers(files: Mapping[str, bytes], *, stack: str) -> dict[str, bytes]:
    """Return an adapter's files with our names of tensors, which are all that `merge_lora` reads.

    Raises:
        ValueError: a file is damaged, or the adapter also changes another network of the class.
    """
    if stack == _STACK:
        return dict(files)
    tensors = read_tensors(Path(LORA_WEIGHTS), files[LORA_WEIGHTS])
    foreign = [name for name in tensors if not name.startswith(f"{PREFIX}{stack}.")]
    if foreign or not tensors:
        raise ValueError(
            f"the adapter changes {foreign[0] if foreign else 'nothing'}; allowed: layers below {stack}"
        )
    return {**files, LORA_WEIGHTS: _moved(tensors, stack, _STACK)}


def _moved(tensors: Mapping[str, torch.Tensor], old: str, new: str) -> bytes:
    before, after = f"{PREFIX}{old}.", f"{PREFIX}{new}."
    moved = {after + name.removeprefix(before): tensor for name, tensor in tensors.items()}
    return to_safetensors(moved, metadata={"format": "pt"})
