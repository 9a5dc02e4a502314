"""Read Chameleon's image tokenizer from one of three formats.

vqgan.ckpt                         Meta's file: names without a prefix, under "state_dict"
config.json with "vq_config"       a Hugging Face checkpoint: names with the prefix "model.vqmodel."
config.json                        a separate folder: names without a prefix
"""

from __future__ import annotations

from pathlib import Path

import torch

from personalar.models.chameleon.model_files import VQ_CHECKPOINT, VQ_PREFIX, vq_name
from personalar.models.checkpoint_folder import read_config, read_json
from personalar.models.network.vq import VQConfig, VQModel
from personalar.models.tensor_files import fill, read_pickle, read_tensors

HINT = (
    "the published decoder is vqgan.ckpt in original_tokenizers/ of Alpha-VLLM/Chameleon_7B_mGPT: set "
    "model.vq_path to it"
)


def vq_config(folder: Path) -> VQConfig:
    """Return the sizes of the image tokenizer in `folder`, without reading tensors."""
    config = folder / "config.json"
    # Meta's file comes alone; it has the sizes of Chameleon 7B.
    if (folder / VQ_CHECKPOINT).is_file() and not config.is_file():
        return VQConfig()
    return read_config(config, lambda values: VQConfig.from_hf(values.get("vq_config", values)))


def load_vq(folder: Path, *, device: torch.device) -> VQModel:
    """Return the image tokenizer in `folder`, in float32.

    Raises:
        FileNotFoundError, ValueError: it is missing, has no decoder, or a tensor has the wrong shape.
    """
    with torch.device("meta"):
        vq = VQModel(vq_config(folder))
    where = folder / VQ_CHECKPOINT
    if where.is_file():
        # taming-transformers also stores the discriminator and LPIPS, under "loss.".
        published, stored = True, read_pickle(where)
        tensors = {name: tensor for name, tensor in stored.items() if not name.startswith("loss.")}
    else:
        where, published = folder, "vq_config" in read_json(folder / "config.json")
        tensors = dict(read_tensors(folder, vq_name if published else str))
        if published and not tensors:
            raise ValueError(
                f"{folder} contains no image tokenizer ({VQ_PREFIX}*), like all checkpoints of Lumina-mGPT: "
                f"{HINT}"
            )
    # Meta removed the decoder from its release, and transformers' class has none.
    if not any(name.startswith("decoder.") for name in tensors):
        raise ValueError(
            f"the image tokenizer in {where} has no decoder, so it cannot generate images "
            f"(like that of facebook/chameleon-7b): {HINT}"
        )
    fill(vq, tensors, where=where, published=published, dtype=torch.float32, device=device)
    return vq
