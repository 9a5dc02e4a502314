"""Read the image tokenizer: Meta's vqgan.ckpt, part of a Hugging Face checkpoint, or a folder of its own.

vqgan.ckpt + vqgan.yaml            bare names under "state_dict"; read as tensors, no code in it is run
config.json with "vq_config"       names with the prefix "model.vqmodel." among the transformer's
config.json                        bare names
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from personalar.models.chameleon.model_files import VQ_CHECKPOINT, VQ_NUMBERS, VQ_PREFIX, tokenizer_name
from personalar.models.checkpoint_folder import check_numbers, read_config, read_json
from personalar.models.network.vq import VQConfig, VQModel
from personalar.models.tensor_files import fill, read_pickle, read_shapes, read_tensors

HINT = (
    "the published decoder is vqgan.ckpt with vqgan.yaml, in original_tokenizers/ of "
    "Alpha-VLLM/Chameleon_7B_mGPT: set model.vq_path to a folder with both"
)
LARGEST_YAML = 1 << 20
RENAMED = {"z_channels": "latent_channels", "ch": "base_channels", "ch_mult": "channel_multiplier"}
"""Names in vqgan.yaml and in `VQConfig`, where they differ."""


def vq_config(folder: Path) -> VQConfig:
    """Return the shape of the image tokenizer in `folder`; no tensor is read."""
    if (folder / VQ_CHECKPOINT).is_file():
        return read_numbers(folder / VQ_NUMBERS)
    return read_config(
        folder / "config.json", lambda config: VQConfig.from_hf(config.get("vq_config", config))
    )


def load_vq(folder: Path, *, device: torch.device) -> VQModel:
    """Return the image tokenizer in `folder`, in float32.

    Raises:
        FileNotFoundError, ValueError: when it is missing, has no decoder, or a tensor does not fit.
    """
    with torch.device("meta"):
        vq = VQModel(vq_config(folder))
    where = folder / VQ_CHECKPOINT
    if where.is_file():
        state = read_checkpoint(where)
        published, tensors = True, iter(state.items())
        shapes = {name: tensor.shape for name, tensor in state.items()}
    else:
        where, published = folder, "vq_config" in read_json(folder / "config.json")
        rename = tokenizer_name if published else str
        shapes, tensors = read_shapes(folder, rename), read_tensors(folder, rename)
        if published and not shapes:
            raise ValueError(
                f"{folder} contains no image tokenizer ({VQ_PREFIX}*); Lumina-mGPT's are published so: {HINT}"
            )
    if not any(name.startswith("decoder.") for name in shapes):
        raise ValueError(
            f"the image tokenizer in {where} has no decoder, so it could read images but not draw them "
            f"(facebook/chameleon-7b is published so): {HINT}"
        )
    fill(vq, tensors, shapes, where=where, published=published, dtype=torch.float32, device=device)
    return vq


def read_numbers(path: Path) -> VQConfig:
    """Read the numbers of a taming-transformers yaml; without the file, the published model's.

    Raises:
        ValueError: when the file is another yaml, or describes something that `VQModel` does not compute.
    """
    if not path.is_file():
        return VQConfig()
    try:
        if path.stat().st_size > LARGEST_YAML:
            raise ValueError(f"{path.stat().st_size} bytes, allowed: {LARGEST_YAML}")
        params: Any = yaml.load(path.read_bytes(), PlainLoader)["model"]["params"]
        network: dict[str, Any] = dict(params["ddconfig"])
        numbers = {RENAMED.get(name, name): value for name, value in network.items()}
        sizes = {"embed_dim": int(params["embed_dim"]), "num_embeddings": int(params["n_embed"])}
        found = VQConfig.from_hf({**numbers, **sizes, "double_latent": network.get("double_z", False)})
        check_numbers(found)
    except (KeyError, TypeError, ValueError, ArithmeticError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"{path} is not a VQGAN description ({reason}): it needs model.params with ddconfig, embed_dim "
            "and n_embed"
        ) from error
    if network.get("out_ch", 3) != 3:
        raise ValueError(f"{path} has out_ch={network['out_ch']}; only 3 colours are supported")
    return found


class PlainLoader(yaml.SafeLoader):
    """Loads plain values only. Aliases are refused, because they can expand to billions of values."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Return the next value."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it contains an alias")
        return super().compose_node(parent, index)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a vqgan.ckpt by name, without those of its training loss; see `read_pickle`."""
    return {name: tensor for name, tensor in read_pickle(path).items() if not name.startswith("loss.")}
