"""The image tokenizer from what holds it: Meta's vqgan.ckpt, a Hugging Face checkpoint, or our own folder.

vqgan.ckpt + vqgan.yaml            bare names under "state_dict"; read as tensors, nothing in it is run
config.json with "vq_config"       names with the prefix "model.vqmodel." among the transformer's
config.json                        bare names
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from personalar.models.chameleon.model_files import VQ_CHECKPOINT, VQ_NUMBERS, read_json
from personalar.models.chameleon.tensor_files import check_fit, fill, load_strict, read_shapes, shapes_of
from personalar.models.chameleon.vq import VQConfig, VQModel

PREFIX = "model.vqmodel."
HINT = (
    "the published decoder is vqgan.ckpt with vqgan.yaml, in original_tokenizers/ of "
    "Alpha-VLLM/Chameleon_7B_mGPT: set model.vq_path to a folder with both"
)
# vqgan.yaml's name -> ours; what the yaml calls out_ch and double_z is checked, not read
TAMING_NAMES = {
    "z_channels": "latent_channels",
    "ch": "base_channels",
    "ch_mult": "channel_multiplier",
    "resolution": "resolution",
    "in_channels": "in_channels",
    "num_res_blocks": "num_res_blocks",
    "attn_resolutions": "attn_resolutions",
    "dropout": "dropout",
    "attn_type": "attn_type",
}


def vq_config(folder: Path) -> VQConfig:
    """Return the shape of the image tokenizer that lies in `folder`; no tensor is read."""
    if (folder / VQ_CHECKPOINT).is_file():
        return read_numbers(folder / VQ_NUMBERS)
    numbers = read_json(folder / "config.json")
    return VQConfig.from_hf(numbers.get("vq_config", numbers))


def load_vq(folder: Path, *, device: torch.device) -> VQModel:
    """Build the image tokenizer that lies in `folder` and fill it, in float32.

    Raises:
        FileNotFoundError, ValueError: when there is none, it has no decoder, or a tensor does not fit.
    """
    checkpoint = folder / VQ_CHECKPOINT
    if checkpoint.is_file():
        with torch.device("meta"):
            vq = VQModel(vq_config(folder))
        state = read_checkpoint(checkpoint)
        _check_decoder(state, checkpoint)
        shapes = {name: tensor.shape for name, tensor in state.items()}
        check_fit(shapes_of(vq), shapes, where=checkpoint, published=True)
        fill(vq, state.items(), dtype=torch.float32, device=device)
        return vq
    inside = "vq_config" in read_json(folder / "config.json")
    with torch.device("meta"):
        vq = VQModel(vq_config(folder))
    prefix = PREFIX if inside else ""
    shapes = read_shapes(folder)
    if inside and not any(name.startswith(PREFIX) for name in shapes):
        raise ValueError(f"{folder} holds no image tokenizer ({PREFIX}*), as Lumina-mGPT's do not: {HINT}")
    _check_decoder([name.removeprefix(prefix) for name in shapes if name.startswith(prefix)], folder)
    load_strict(vq, folder, dtype=torch.float32, device=device, published=inside, prefix=prefix)
    return vq


def read_numbers(path: Path) -> VQConfig:
    """Read the numbers of a taming-transformers yaml; without the file, the published model's.

    Raises:
        ValueError: when the file is no such yaml, or describes what `VQModel` does not compute.
    """
    if not path.is_file():
        return VQConfig()
    try:
        params: Any = OmegaConf.to_container(OmegaConf.load(path))["model"]["params"]
        network = dict(params["ddconfig"])
        sizes = {"embed_dim": int(params["embed_dim"]), "num_embeddings": int(params["n_embed"])}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is no VQGAN description ({error!r}): it needs model.params with ddconfig, embed_dim and "
            "n_embed"
        ) from error
    if network.get("out_ch", 3) != 3:
        raise ValueError(f"{path} has out_ch={network['out_ch']}; only 3 colours are supported")
    renamed = {ours: network[theirs] for theirs, ours in TAMING_NAMES.items() if theirs in network}
    return VQConfig.from_hf({**renamed, **sizes, "double_latent": network.get("double_z", False)})


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a vqgan.ckpt by name, without those of its training loss.

    Raises:
        ValueError: when the file is damaged, holds no tensors, or objects that only running code would load.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read as tensors alone ({str(error).splitlines()[0]}): it is damaged, or holds "
            "objects that would run code; copy it again, or save its state_dict apart"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    values = state.items() if isinstance(state, Mapping) else ()
    tensors = {name: value for name, value in values if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no state_dict of tensors; it is not a VQGAN checkpoint")
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("loss.")}


def _check_decoder(names: Any, where: Path) -> None:
    if not any(name.startswith("decoder.") for name in names):
        raise ValueError(
            f"the image tokenizer in {where} has no decoder, so it could read images but not draw them "
            f"(facebook/chameleon-7b is published so): {HINT}"
        )
