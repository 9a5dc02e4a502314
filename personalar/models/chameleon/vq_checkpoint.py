"""Read Chameleon's image tokenizer from one of three formats.

vqgan.ckpt + vqgan.yaml            Meta's files: names without a prefix, under "state_dict"
config.json with "vq_config"       a Hugging Face checkpoint: names with the prefix "model.vqmodel."
config.json                        a separate folder: names without a prefix
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from personalar.models.chameleon.model_files import VQ_CHECKPOINT, VQ_NUMBERS, VQ_PREFIX, vq_name
from personalar.models.checkpoint_folder import check_numbers, read_config, read_json
from personalar.models.network.vq import VQConfig, VQModel
from personalar.models.tensor_files import fill, read_pickle, read_shapes, read_tensors

HINT = (
    "the published decoder is vqgan.ckpt with vqgan.yaml, in original_tokenizers/ of "
    "Alpha-VLLM/Chameleon_7B_mGPT: set model.vq_path to a folder with both"
)
LARGEST_YAML = 1 << 20  # bytes
RENAMED = {"z_channels": "latent_channels", "ch": "base_channels", "ch_mult": "channel_multiplier"}
"""Name in vqgan.yaml -> name in `VQConfig`, where they differ."""


def vq_config(folder: Path) -> VQConfig:
    """Return the sizes of the image tokenizer in `folder`, without reading tensors."""
    if (folder / VQ_CHECKPOINT).is_file():
        return read_numbers(folder / VQ_NUMBERS)
    return read_config(
        folder / "config.json", lambda config: VQConfig.from_hf(config.get("vq_config", config))
    )


def load_vq(folder: Path, *, device: torch.device) -> VQModel:
    """Return the image tokenizer in `folder`, in float32.

    Raises:
        FileNotFoundError, ValueError: it is missing, has no decoder, or a tensor has the wrong shape.
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
        rename = vq_name if published else str
        shapes, tensors = read_shapes(folder, rename), read_tensors(folder, rename)
        if published and not shapes:
            raise ValueError(
                f"{folder} contains no image tokenizer ({VQ_PREFIX}*), like all checkpoints of Lumina-mGPT: "
                f"{HINT}"
            )
    # Meta removed the decoder from its release, and transformers' class has none.
    if not any(name.startswith("decoder.") for name in shapes):
        raise ValueError(
            f"the image tokenizer in {where} has no decoder, so it cannot generate images "
            f"(like that of facebook/chameleon-7b): {HINT}"
        )
    fill(vq, tensors, shapes, where=where, published=published, dtype=torch.float32, device=device)
    return vq


def read_numbers(path: Path) -> VQConfig:
    """Read the sizes from a YAML file of taming-transformers; without the file, those of Meta's model.

    Raises:
        ValueError: it is another YAML file, or describes a model that `VQModel` does not support.
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
        # double_z belongs to KL autoencoders, which predict a mean and a variance.
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
    """Loads plain values only. Aliases raise an error, because they can expand to billions of values."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Return the next value. Raises YAMLError for an alias."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it contains an alias")
        return super().compose_node(parent, index)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a vqgan.ckpt by name, without those of its training loss; see `read_pickle`."""
    # taming-transformers also stores the discriminator and LPIPS, under "loss.".
    return {name: tensor for name, tensor in read_pickle(path).items() if not name.startswith("loss.")}
