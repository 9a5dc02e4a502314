"""LoRA on the transformer's projections, with PEFT and in PEFT's file format (arXiv 2504.13162, Table 3).

A concept contains the adapter under our names of modules; `peft_names` gives it those of the base's
class in transformers, on which `PeftModel.from_pretrained` loads it.
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
NOT_READ = ("rank_pattern", "alpha_pattern", "layer_replication", "alora_invocation_tokens", "use_qalora")
"""Settings of PEFT that change what the stored matrices mean."""
PREFIX = "base_model.model."  # what PEFT puts in front of parameter names in its files


def inject_lora(
    transformer: nn.Module,
    *,
    rank: int,
    every_n_layers: int = 1,
    alpha: float | None = None,
    targets: Sequence[str] = ("q_proj", "k_proj", "v_proj"),
    generator: torch.Generator,
) -> dict[str, nn.Parameter]:
    """Add float32 LoRA matrices to `transformer`, in place, and freeze everything else.

    B starts at zero, so the outputs do not change.

    Args:
        transformer: the network.
        rank: rank of the matrices, at least 1.
        every_n_layers: adapt layers 0, N, 2N, ...
        alpha: the adapter's output is scaled by alpha / rank; None means alpha = rank.
        targets: projections to adapt, some of `PROJECTIONS`.
        generator: source of the initial values of A.

    Returns:
        The trainable parameters by name.

    Raises:
        ValueError: a number is too small, or a target is unknown.
    """
    if rank < 1 or every_n_layers < 1:
        raise ValueError(f"lora rank={rank} and every_n_layers={every_n_layers} must be at least 1")
    unknown = sorted(set(targets) - set(PROJECTIONS))
    if unknown or not targets:
        raise ValueError(
            f"lora targets={unknown or list(targets)} are unknown; allowed: {', '.join(PROJECTIONS)}"
        )
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
            # PEFT's own initialization (Kaiming uniform with a = sqrt(5)), but from our seeded generator.
            bound = parameter.shape[1] ** -0.5
            # dtype and device are explicit because Lightning and DeepSpeed change the defaults here.
            start = torch.rand(parameter.shape, generator=generator, dtype=torch.float32, device="cpu")
            parameter.data.copy_(start * 2 * bound - bound)
    return parameters


def has_lora(transformer: nn.Module) -> bool:
    """Return True if `transformer` contains LoRA matrices."""
    return any(".lora_A." in name for name, _ in transformer.named_parameters())


def lora_files(transformer: nn.Module, values: Mapping[str, torch.Tensor] | None = None) -> dict[str, bytes]:
    """Return the contents of PEFT's two adapter files by file name.

    Args:
        transformer: the network with the adapter.
        values: the adapter's tensors by parameter name; None means those in `transformer`.

    Raises:
        ValueError: `transformer` has no adapter.
    """
    if not has_lora(transformer):
        raise ValueError("the transformer has no adapter to save: call inject_lora first")
    if values is None:
        values = {name: p.detach() for name, p in transformer.named_parameters() if ".lora_" in name}
    tensors = {_saved_name(name): tensor.cpu().contiguous() for name, tensor in values.items()}
    peft_configs: Any = transformer.peft_config
    with tempfile.TemporaryDirectory() as folder:  # PEFT can write its config to a folder only
        peft_configs["default"].save_pretrained(folder)
        config = json.loads((Path(folder) / CONFIG_FILE).read_bytes())
    # PEFT stores a set, whose order is random; sorted, equal adapters give equal files and hashes.
    config["target_modules"] = sorted(config["target_modules"])
    return {
        WEIGHTS_FILE: to_safetensors(tensors, metadata={"format": "pt"}),
        CONFIG_FILE: config_bytes(config),
    }


def name_base(
    config: bytes, *, base: str | None, class_name: str | None = None, revision: str | None = None
) -> bytes:
    """Return an adapter config that names its base, so that `peft.AutoPeftModel` loads both.

    Args:
        config: content of the adapter's config file.
        base: folder or hub id that transformers reads; None removes the name again.
        class_name: the class of the base in transformers.
        revision: commit of the hub repository.
    """
    values = json.loads(config)
    # `task_type` stays None: AutoPeftModel refuses a config with a task. With `auto_mapping` it finds the
    # base's class, and so does AutoPeftModelForCausalLM.
    # A file that PEFT wrote itself is formatted differently; it is returned unchanged.
    if base is None and config != config_bytes(values):
        return config
    mapping = {"base_model_class": class_name, "parent_library": "transformers"}
    values |= {"base_model_name_or_path": base, "revision": revision, "auto_mapping": base and mapping}
    return config_bytes(values)


def config_bytes(config: Mapping[str, Any]) -> bytes:
    """Return the content of an adapter config file; equal configs give equal bytes."""
    return json.dumps(config, indent=2, sort_keys=True).encode()


def load_lora(
    transformer: nn.Module, files: Mapping[str, bytes], *, strength: float = 1.0
) -> dict[str, nn.Parameter]:
    """Load a saved adapter into `transformer`, in place, and return its parameters by name.

    Args:
        transformer: the network, without an adapter.
        files: contents of PEFT's two files by file name; they may come from a stranger.
        strength: factor of the adapter's output.

    Raises:
        ValueError: a file is missing or damaged, or the adapter does not match the architecture.
    """
    missing = sorted({CONFIG_FILE, WEIGHTS_FILE} - set(files))
    if missing:
        raise ValueError(f"the adapter folder does not contain {', '.join(missing)}: copy it again")
    try:
        saved = from_safetensors(files[WEIGHTS_FILE])
        config: dict[str, Any] = parse_json(files[CONFIG_FILE])
        kept = {key: config[key] for key in ("r", "lora_alpha", "target_modules")}
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"the adapter is damaged ({error!r:.200}); save it again") from error
    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("bias", "none") != "none":
        raise ValueError(
            "the adapter is not plain LoRA and cannot be loaded; expected peft_type LORA, no DoRA, no bias"
        )
    if found := [key for key in NOT_READ if config.get(key)]:
        raise ValueError(
            f"the adapter sets {', '.join(found)}, which cannot be loaded; expected plain LoRA with one rank "
            "and one alpha for all layers: train it again without"
        )
    # Only these keys reach PEFT: others could make it import or download something.
    optional = ("layers_to_transform", "layers_pattern", "use_rslora")
    kept |= {key: config[key] for key in optional if config.get(key)}
    _check_adapter(kept, saved, transformer)
    parameters = _inject(transformer, kept | {"lora_alpha": strength * kept["lora_alpha"]})
    expected = {_saved_name(name): parameter for name, parameter in parameters.items()}
    wrong = sorted(set(saved) ^ set(expected))
    wrong += [name for name in set(saved) & set(expected) if saved[name].shape != expected[name].shape]
    if wrong:
        remove_lora(transformer)  # leave the network as it was
        raise ValueError(f"the adapter is for another architecture; mismatches: {', '.join(wrong)}")
    for name, parameter in expected.items():
        parameter.data.copy_(saved[name])
    return parameters


def merge_lora(transformer: nn.Module) -> None:
    """Add the adapters to the weights and remove them, so that plain layers and parameter names remain."""
    for module in _adapted(transformer).values():
        module.merge()
    remove_lora(transformer)


def remove_lora(transformer: nn.Module) -> None:
    """Remove the adapters, in place; the weights stay as they are."""
    for name, module in _adapted(transformer).items():
        # Replace each PEFT layer by the plain layer inside it.
        parent, _, child = name.rpartition(".")
        setattr(transformer.get_submodule(parent), child, module.get_base_layer())
    if hasattr(transformer, "peft_config"):
        del transformer.peft_config


def _check_adapter(
    config: Mapping[str, Any], saved: Mapping[str, torch.Tensor], transformer: nn.Module
) -> None:
    """Raise ValueError for values that must not reach PEFT, such as a rank that would fill the memory."""
    shape: Any = transformer.config
    depth, width = shape.num_hidden_layers, shape.hidden_size
    rank, alpha, targets = config["r"], config["lora_alpha"], config["target_modules"]
    layers = config.get("layers_to_transform", [])
    # type() and not isinstance(): True is an instance of int.
    valid = {
        "r": type(rank) is int and 1 <= rank <= width,
        "lora_alpha": type(alpha) in (int, float) and abs(alpha) < 1e6,
        "target_modules": bool(targets) and _all(targets, lambda name: name in PROJECTIONS),
        "layers_to_transform": _all(layers, lambda layer: type(layer) is int and 0 <= layer < depth),
        "layers_pattern": config.get("layers_pattern", "layers") in ("layers", ["layers"]),
        "use_rslora": config.get("use_rslora", True) is True,
    }
    if wrong := [f"{key}={config[key]!r:.80}" for key, good in valid.items() if not good]:
        raise ValueError(f"the adapter is for another architecture; mismatches: {', '.join(wrong)}")
    for name, tensor in saved.items():
        if not (tensor.is_floating_point() and torch.isfinite(tensor).all()):
            raise ValueError(f"the adapter's {name} contains NaN, infinity or integers: train it again")


def _all(values: Any, is_valid: Callable[[Any], bool]) -> bool:
    return isinstance(values, list) and all(map(is_valid, values))


def _saved_name(name: str) -> str:
    return f"{PREFIX}{name.replace('.default.', '.')}"


def _inject(transformer: nn.Module, config: Mapping[str, Any]) -> dict[str, nn.Parameter]:
    from peft import LoraConfig, inject_adapter_in_model

    if has_lora(transformer):
        raise ValueError("the transformer already has an adapter: merge_lora or remove_lora first")
    device = next(transformer.parameters()).device
    # PEFT draws initial values of its own from the global generator, whose state must not change.
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(LoraConfig(**config), transformer)
    parameters = {name: p for name, p in transformer.named_parameters() if ".lora_" in name}
    for parameter in parameters.values():
        # PEFT uses the base's dtype; in bfloat16 small updates would be rounded away.
        parameter.data = parameter.data.to(device, torch.float32)
    return parameters


def _adapted(transformer: nn.Module) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in transformer.named_modules() if isinstance(module, LoraLayer)}
