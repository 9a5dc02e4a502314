"""LoRA on projections: trained with PEFT, and in PEFT's file format (arXiv 2504.13162, Table 3).

A concept contains the adapter under our names of modules; `peft_names` gives it those of the base's
class in transformers, on which `PeftModel.from_pretrained` loads it.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import nn

from personalar.concepts.validation import read_tensors
from personalar.core.files import fits, parse_json
from personalar.core.own_files import LORA_CONFIG, LORA_FILES, LORA_WEIGHTS

CONFIG_SCHEMA = {"r!": int, "lora_alpha!": float, "use_rslora": (bool, None)}
MOST_ALPHA = 1e6
"""A larger alpha could overflow the weights."""
NOT_READ = ("rank_pattern", "alpha_pattern", "layer_replication", "alora_invocation_tokens", "use_qalora")
"""Settings of PEFT that change what the stored matrices mean."""
PREFIX = "base_model.model."  # what PEFT puts in front of parameter names in its files


def inject_lora(
    transformer: nn.Module, *, rank: int, every_n_layers: int = 1, generator: torch.Generator
) -> dict[str, nn.Parameter]:
    """Add float32 LoRA matrices to q, k and v of `transformer`, in place, and freeze everything else.

    B starts at zero, so the outputs do not change. The output of the matrices is not scaled: alpha = rank.

    Args:
        transformer: the network, without LoRA matrices.
        rank: rank of the matrices, at least 1.
        every_n_layers: adapt layers 0, N, 2N, ...
        generator: source of the initial values of A.

    Returns:
        The trainable parameters by name.
    """
    from peft import LoraConfig, inject_adapter_in_model

    shape: Any = transformer.config
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=["q_proj", "k_proj", "v_proj"],
        layers_to_transform=list(range(0, shape.num_hidden_layers, every_n_layers)),
        layers_pattern="layers",
    )
    device = next(transformer.parameters()).device
    # PEFT draws initial values of its own from the global generator, whose state must not change.
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(config, transformer)
    parameters = {name: p for name, p in transformer.named_parameters() if ".lora_" in name}
    for name, parameter in parameters.items():
        # PEFT uses the base's dtype; in bfloat16 small updates would be rounded away.
        parameter.data = parameter.data.to(device, torch.float32)
        if ".lora_A." in name:
            # PEFT's own initialization (Kaiming uniform with a = sqrt(5)), but from our seeded generator.
            bound = parameter.shape[1] ** -0.5
            # dtype and device are explicit because Lightning and DeepSpeed change the defaults here.
            start = torch.rand(parameter.shape, generator=generator, dtype=torch.float32, device="cpu")
            parameter.data.copy_(start * 2 * bound - bound)
    return parameters


def lora_files(transformer: nn.Module, values: Mapping[str, torch.Tensor] | None = None) -> dict[str, bytes]:
    """Return the contents of PEFT's two adapter files by their path in a concept.

    Args:
        transformer: the network with the adapter.
        values: the adapter's tensors by parameter name; None means those in `transformer`.
    """
    if values is None:
        values = {name: p.detach() for name, p in transformer.named_parameters() if ".lora_" in name}
    # PEFT's files leave out the name of the adapter, "default".
    saved = {name: f"{PREFIX}{name.replace('.default.', '.')}" for name in values}
    tensors = {saved[name]: tensor.cpu().contiguous() for name, tensor in values.items()}
    peft_configs: Any = transformer.peft_config
    with tempfile.TemporaryDirectory() as folder:  # PEFT can write its config to a folder only
        peft_configs["default"].save_pretrained(folder)
        config = json.loads((Path(folder) / Path(LORA_CONFIG).name).read_bytes())
    # PEFT stores a set, whose order is random; sorted, equal adapters give equal files and hashes.
    config["target_modules"] = sorted(config["target_modules"])
    return {
        LORA_WEIGHTS: to_safetensors(tensors, metadata={"format": "pt"}),
        LORA_CONFIG: config_bytes(config),
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


def merge_lora(transformer: nn.Module, files: Mapping[str, bytes], *, strength: float = 1.0) -> None:
    """Add a saved adapter to the weights of `transformer`, in place.

    Args:
        transformer: the network.
        files: as from `lora_files`; they may come from a stranger.
        strength: factor of the adapter's output.

    Raises:
        ValueError: a file is missing or damaged, or the adapter does not match the architecture; the weights
            are unchanged.
    """
    if missing := sorted(set(LORA_FILES) - set(files)):
        raise ValueError(f"the adapter lacks {', '.join(missing)}: copy it again")
    config = parse_config(files[LORA_CONFIG])
    left = read_tensors(Path(LORA_WEIGHTS), files[LORA_WEIGHTS])
    rank, pairs, wrong = config["r"], [], []
    for name, weight in transformer.named_parameters():
        key = f"{PREFIX}{name.removesuffix('.weight')}.lora_"
        pair = [left.pop(f"{key}{part}.weight") for part in "AB" if f"{key}{part}.weight" in left]
        shapes = [tuple(tensor.shape) for tensor in pair]
        if weight.ndim == 2 and shapes == [(rank, weight.shape[1]), (weight.shape[0], rank)]:
            pairs.append((weight, *pair))
        elif pair:
            wrong.append(name)
    if left or wrong or not pairs:
        found = ", ".join([*wrong, *left]) or "it is empty"
        raise ValueError(f"the adapter is for another architecture; mismatches: {found:.500}")
    scale = strength * config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    with torch.no_grad():
        for changed, a, b in pairs:
            change = b.to(changed.device, torch.float32) @ a.to(changed.device, torch.float32)
            changed.add_(change * scale)


def parse_config(data: bytes) -> dict[str, Any]:
    """Return the settings of an adapter. Raises ValueError unless it is plain LoRA of one rank and alpha."""
    try:
        config: dict[str, Any] = parse_json(data)
    except ValueError as error:
        raise ValueError(f"the adapter is damaged ({error!r:.200}); save it again") from error
    if not fits(config, CONFIG_SCHEMA) or config["r"] < 1 or not abs(config["lora_alpha"]) < MOST_ALPHA:
        raise ValueError(
            f"{LORA_CONFIG} is damaged: r must be an integer from 1, and lora_alpha a number; save it again"
        )
    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("bias", "none") != "none":
        raise ValueError(
            "the adapter is not plain LoRA and cannot be loaded; expected peft_type LORA, no DoRA, no bias"
        )
    if found := [key for key in NOT_READ if config.get(key)]:
        raise ValueError(
            f"the adapter sets {', '.join(found)}, which cannot be loaded; expected plain LoRA with one rank "
            "and one alpha for all layers: train it again without"
        )
    return config
