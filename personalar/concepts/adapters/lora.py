"""Low-rank adapters on projections, by PEFT and in PEFT's files (arXiv 2504.13162, Table 3).

`PeftModel.from_pretrained` loads them on transformers' Chameleon class: our parameter names are the same.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import nn

from personalar.core.files import parse_json

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BASE_CLASS = "ChameleonForConditionalGeneration"
"""Transformers' class of the base."""
_PREFIX = "base_model.model."  # PEFT's name for what the adapter is put into


def inject_lora(
    transformer: nn.Module,
    *,
    rank: int,
    every_n_layers: int = 1,
    alpha: float | None = None,
    targets: Sequence[str] = ("q_proj", "k_proj", "v_proj"),
    generator: torch.Generator,
) -> dict[str, nn.Parameter]:
    """Put float32 adapters into `transformer`, in place; return their parameters by name.

    Everything else is frozen. The outputs do not change: B starts at zero.

    Args:
        every_n_layers: adapt layers 0, N, 2N, ...
        alpha: adapters act times alpha / rank; by default alpha = rank.
        targets: names of the projections.
        generator: source of A's start.
    """
    if rank < 1 or every_n_layers < 1:
        raise ValueError(f"lora rank={rank} and every_n_layers={every_n_layers} must be at least 1")
    unknown = sorted(set(targets) - set(PROJECTIONS))
    if unknown or not targets:
        raise ValueError(f"lora targets {unknown or list(targets)} are not projections of the transformer")
    shape: Any = transformer.config
    config = {
        "r": rank,
        "lora_alpha": rank if alpha is None else alpha,
        "target_modules": list(targets),
        "layers_to_transform": list(range(0, shape.num_hidden_layers, every_n_layers)),
        "layers_pattern": "layers",
    }
    parameters = _inject(transformer, config)
    for name, parameter in parameters.items():
        if ".lora_A." in name:
            bound = parameter.shape[1] ** -0.5  # PEFT's own start: kaiming uniform with a = sqrt(5)
            # The device and type are named because Lightning and DeepSpeed change the defaults here.
            start = torch.rand(parameter.shape, generator=generator, dtype=torch.float32, device="cpu")
            parameter.data.copy_(start * 2 * bound - bound)
    return parameters


def has_lora(transformer: nn.Module) -> bool:
    """Return True when adapters are in."""
    return any(".lora_A." in name for name, _ in transformer.named_parameters())


def lora_files(transformer: nn.Module, values: Mapping[str, torch.Tensor] | None = None) -> dict[str, bytes]:
    """Return the adapter as PEFT's two files, by name. Raises ValueError without an adapter.

    Args:
        values: the adapter's tensors by parameter name; by default those in `transformer`.
    """
    if not has_lora(transformer):
        raise ValueError("the transformer has no adapter to save: inject_lora first")
    if values is None:
        values = {name: p.detach() for name, p in transformer.named_parameters() if ".lora_" in name}
    tensors = {_saved_name(name): tensor.cpu().contiguous() for name, tensor in values.items()}
    peft_configs: Any = transformer.peft_config
    with tempfile.TemporaryDirectory() as folder:  # PEFT writes its config to folders only
        peft_configs["default"].save_pretrained(folder)
        config = json.loads((Path(folder) / CONFIG_FILE).read_bytes())
    config["target_modules"] = sorted(config["target_modules"])  # a set in PEFT; equal adapters, equal bytes
    return {
        WEIGHTS_FILE: to_safetensors(tensors, metadata={"format": "pt"}),
        CONFIG_FILE: _config_bytes(config),
    }


def name_base(config: bytes, *, base: str | None, revision: str | None = None) -> bytes:
    """Return an adapter's config that names its base, so that `peft.AutoPeftModel` loads both.

    Args:
        base: folder or hub id that transformers reads; None takes the names out of a config that this wrote.
    """
    values = json.loads(config)
    if base is None and config != _config_bytes(values):  # PEFT's own file stays as it is
        return config
    mapping = {"base_model_class": BASE_CLASS, "parent_library": "transformers"}
    values |= {"base_model_name_or_path": base, "revision": revision, "auto_mapping": base and mapping}
    return _config_bytes(values)


def _config_bytes(config: Mapping[str, Any]) -> bytes:
    return json.dumps(config, indent=2, sort_keys=True).encode()


def load_lora(transformer: nn.Module, files: Mapping[str, bytes]) -> dict[str, nn.Parameter]:
    """Put a saved adapter into `transformer`, in place; return its parameters by name.

    Raises:
        ValueError: a file is missing or damaged, or the adapter was made for another architecture.
    """
    missing = sorted({CONFIG_FILE, WEIGHTS_FILE} - set(files))
    if missing:
        raise ValueError(f"the adapter folder is missing {', '.join(missing)}")
    try:
        saved = from_safetensors(files[WEIGHTS_FILE])
        config: dict[str, Any] = parse_json(files[CONFIG_FILE])
        kept = {key: config[key] for key in ("r", "lora_alpha", "target_modules")}
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"the adapter is damaged ({error!r:.200}); save it again") from error
    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("bias", "none") != "none":
        raise ValueError(
            "the adapter is not plain LoRA (peft_type LORA, no DoRA, no bias); it cannot be loaded"
        )
    optional = ("layers_to_transform", "layers_pattern", "use_rslora")
    kept |= {key: config[key] for key in optional if config.get(key)}
    _check_adapter(kept, saved, transformer)
    parameters = _inject(transformer, kept)
    expected = {_saved_name(name): parameter for name, parameter in parameters.items()}
    wrong = sorted(set(saved) ^ set(expected))
    wrong += [name for name in set(saved) & set(expected) if saved[name].shape != expected[name].shape]
    if wrong:
        remove_lora(transformer)
        raise ValueError(f"the adapter is of another architecture; what does not fit: {', '.join(wrong)}")
    for name, parameter in expected.items():
        parameter.data.copy_(saved[name])
    return parameters


def merge_lora(transformer: nn.Module) -> None:
    """Add the adapters to their weights and take them out: plain layers and plain names remain."""
    for module in _adapted(transformer).values():
        module.merge()
    remove_lora(transformer)


def remove_lora(transformer: nn.Module) -> None:
    """Take the adapters out."""
    for name, module in _adapted(transformer).items():
        parent, _, child = name.rpartition(".")
        setattr(transformer.get_submodule(parent), child, module.get_base_layer())
    if hasattr(transformer, "peft_config"):
        del transformer.peft_config


def _check_adapter(
    config: Mapping[str, Any], saved: Mapping[str, torch.Tensor], transformer: nn.Module
) -> None:
    """Raise ValueError for numbers that must not reach PEFT."""
    shape: Any = transformer.config
    depth, width = shape.num_hidden_layers, shape.hidden_size
    rank, alpha, targets = config["r"], config["lora_alpha"], config["target_modules"]
    layers = config.get("layers_to_transform", [])
    fine = {
        "r": type(rank) is int and 1 <= rank <= width,
        "lora_alpha": type(alpha) in (int, float) and abs(alpha) < 1e6,
        "target_modules": bool(targets) and _all(targets, lambda name: name in PROJECTIONS),
        "layers_to_transform": _all(layers, lambda layer: type(layer) is int and 0 <= layer < depth),
        "layers_pattern": config.get("layers_pattern", "layers") in ("layers", ["layers"]),
        "use_rslora": config.get("use_rslora", True) is True,
    }
    if wrong := [f"{key}={config[key]!r:.80}" for key, good in fine.items() if not good]:
        raise ValueError(f"the adapter is of another architecture; what does not fit: {', '.join(wrong)}")
    if strange := [n for n, t in saved.items() if not (t.is_floating_point() and torch.isfinite(t).all())]:
        raise ValueError(f"the adapter's {strange[0]} holds NaN, infinity or whole numbers: train it again")


def _all(values: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(values, list) and all(map(fits, values))


def _saved_name(name: str) -> str:
    return f"{_PREFIX}{name.replace('.default.', '.')}"


def _inject(transformer: nn.Module, config: Mapping[str, Any]) -> dict[str, nn.Parameter]:
    from peft import LoraConfig, inject_adapter_in_model

    if has_lora(transformer):
        raise ValueError("the transformer already has an adapter: merge_lora or remove_lora first")
    device = next(transformer.parameters()).device
    with torch.random.fork_rng(devices=[]):  # PEFT draws a start of its own, which is replaced
        inject_adapter_in_model(LoraConfig(**config), transformer)
    parameters = {name: p for name, p in transformer.named_parameters() if ".lora_" in name}
    for parameter in parameters.values():
        parameter.data = parameter.data.to(device, torch.float32)
    return parameters


def _adapted(transformer: nn.Module) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in transformer.named_modules() if isinstance(module, LoraLayer)}
