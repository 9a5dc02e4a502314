"""Tensor names and sizes in Janus checkpoints of DeepSeek and of transformers.

Parts that are not needed to generate images are not read: the image encoder for understanding (SigLIP and its
aligner), and the text head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from personalar.models.checkpoint_folder import read_config
from personalar.models.janus.janus_network import JanusConfig
from personalar.models.network.vq import VQConfig, VQModel
from personalar.models.tensor_files import fill, read_tensors

FORMATS = {"janus": "text_config", "multi_modality": "language_config"}
"""`model_type` in config.json (of transformers, of DeepSeek) -> its section for the language model."""
PREFIXES = {
    "language_model.model.": "model.",
    "gen_embed.": "generation_embeddings.",
    "gen_aligner.layers.0.": "generation_aligner.fc1.",
    "gen_aligner.layers.2.": "generation_aligner.hidden_layers.0.",
    "gen_aligner.": "generation_aligner.",  # any other layer is unknown, and then an error
    "gen_head.output_mlp_projector.": "generation_head.proj_out.",
    "gen_head.vision_head.": "generation_head.vision_head.",
    "model.language_model.": "model.",
    "model.generation_": "generation_",
}
"""Prefix in files of DeepSeek or transformers -> prefix in this package."""
UNREAD = ("lm_head.", "language_model.lm_head.", "vision_model.", "model.vision_model.", "aligner.",
          "model.aligner.")  # fmt: skip
VQ_PREFIXES = ("gen_vision_model.", "model.vqmodel.")
VQ_NAMES = {
    "encoder.conv_blocks.": "encoder.down.",
    "decoder.conv_blocks.": "decoder.up.",
    ".res.": ".block.",
    ".mid.0.": ".mid.block_1.",
    ".mid.1.": ".mid.attn_1.",
    ".mid.2.": ".mid.block_2.",
}
"""Part of a name in DeepSeek's image tokenizer -> part in this package."""
VQ_16 = {"embed_dim": 8, "num_embeddings": 16384, "latent_channels": 256, "base_channels": 128,
         "channel_multiplier": (1, 1, 2, 2, 4), "num_res_blocks": 2}  # fmt: skip
"""Sizes of the image tokenizer (LlamaGen's VQ-16), if config.json has none."""
HEAD_SIZE = 2048
"""Width of the hidden layer of the image head, if config.json has none."""
HEAD = "generation_head."


def our_name(stored: str) -> str | None:
    """Return the name of a tensor in `JanusTransformer` or its code embedder; None if it is in neither."""
    if stored.startswith((*UNREAD, *VQ_PREFIXES)):
        return None
    for theirs, ours in PREFIXES.items():
        if stored.startswith(theirs):
            return ours + stored.removeprefix(theirs)
    return stored


def network_name(stored: str) -> str | None:
    """Return the name of a stored tensor in `JanusTransformer`; None if it is not there."""
    return None if embedder_name(stored) else our_name(stored)


def embedder_name(stored: str) -> str | None:
    """Return the name of a stored tensor in the code embedder; None if it is not there."""
    name = our_name(stored)
    return name if name and name.startswith(("generation_embeddings.", "generation_aligner.")) else None


def vq_name(stored: str, *, levels: int) -> str | None:
    """Return the name of a stored tensor in `VQModel`; None if it is not there.

    Args:
        levels: number of resolutions of the image tokenizer.
    """
    prefix = next((prefix for prefix in VQ_PREFIXES if stored.startswith(prefix)), None)
    # A training statistic of DeepSeek's.
    if prefix is None or stored.endswith("quantize.codebook_used"):
        return None
    name = stored.removeprefix(prefix)
    for theirs, ours in VQ_NAMES.items():
        name = name.replace(theirs, ours)
    # Both formats count the levels of the decoder from the lowest resolution, `VQModel` from full.
    return re.sub(r"^decoder\.up\.(\d+)", lambda m: f"decoder.up.{levels - 1 - int(m[1])}", name)


def read_numbers(path: Path, *, resolution: int) -> tuple[JanusConfig, VQConfig]:
    """Read the sizes from a config.json; missing keys get the defaults of its format.

    Args:
        resolution: side of the images in pixels.

    Raises:
        ValueError: another family, or an unsupported option.
    """
    vq = read_config(path, partial(vq_numbers, resolution=resolution))
    return read_config(path, partial(network_numbers, vq=vq)), vq


def vq_numbers(config: Mapping[str, Any], *, resolution: int) -> VQConfig:
    """Return the sizes of the image tokenizer in the JSON of a config.json."""
    own = config.get("vq_config") or {}
    params = config.get("gen_vision_config", {}).get("params", {})
    if params:
        # DeepSeek's config.json names only these two.
        own = {"num_embeddings": params["image_token_size"], "embed_dim": params["n_embed"]}
    numbers = VQ_16 | {name: value for name, value in own.items() if value is not None}
    # The published tokenizer has attention at the lowest resolution only, which no config.json states.
    lowest = resolution // 2 ** (len(numbers["channel_multiplier"]) - 1)
    return VQConfig.from_hf({**numbers, "resolution": resolution, "attn_resolutions": [lowest]})


def network_numbers(config: Mapping[str, Any], *, vq: VQConfig) -> JanusConfig:
    """Return the sizes of the transformer in the JSON of a config.json; ValueError for other families."""
    kind = config.get("model_type")
    if kind not in FORMATS:
        raise ValueError(
            f"config.json has model_type={kind!r}, which is not a Janus: model.path needs a folder with "
            "model_type 'janus' (transformers' files) or 'multi_modality' (DeepSeek's)"
        )
    # Only in DeepSeek's files; transformers derives the sizes of the head from projection_dim.
    head = config.get("gen_head_config", {}).get("params", {})
    width = (config.get("vq_config") or {}).get("projection_dim", HEAD_SIZE)
    own = {
        "num_codes": vq.num_embeddings,
        "code_dim": vq.embed_dim,
        "head_size": head.get("image_token_embed", width),
    }
    return JanusConfig.from_hf({**(config.get(FORMATS[kind]) or {}), **own})


def network_tensors(
    folder: Path, config: JanusConfig, *, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Return the tensors of a `JanusTransformer` by name.

    The embeddings of codes are computed here, on `device` and in `dtype`.

    Raises:
        ValueError: the checkpoint has no image head, or a tensor for the embeddings has the wrong shape.
    """
    from transformers.models.janus.modeling_janus import JanusVQVAEAlignerMLP

    tensors = dict(read_tensors(folder, network_name))
    if not any(name.startswith(HEAD) for name in tensors):
        raise ValueError(
            f"{folder} contains no image head (gen_head.* or model.generation_head.*), so it can read "
            "images but not generate them: take a whole Janus-Pro checkpoint"
        )
    # The published computation of the embeddings of codes: a narrow table and an MLP.
    with torch.device("meta"):
        table = nn.Embedding(config.num_codes, config.code_dim)
        aligner = JanusVQVAEAlignerMLP(config.mlp_config(config.hidden_size))
        embedder = nn.ModuleDict({"generation_embeddings": table, "generation_aligner": aligner})
    parts = dict(read_tensors(folder, embedder_name))
    fill(embedder, parts, where=folder, published=False, dtype=dtype, device=device)
    # In the precision of the weights, and not in float32, because upstream rounds after every layer too.
    with torch.no_grad():
        return tensors | {"code_table.weight": aligner(table.weight)}


def load_vq(folder: Path, config: VQConfig, *, device: torch.device) -> VQModel:
    """Return the image tokenizer, in float32, with the rows of its codebook normalised.

    DeepSeek's code normalises latents and codebook rows, both to find the nearest row and to decode. With
    rows of length 1 the nearest row of a latent does not depend on its length, so latents are not normalised.
    """

    def rename(stored: str) -> str | None:
        return vq_name(stored, levels=len(config.channel_multiplier))

    with torch.device("meta"):
        vq = VQModel(config)
    tensors, codebook = dict(read_tensors(folder, rename)), "quantize.embedding.weight"
    if codebook in tensors:
        # In float32, like the whole image tokenizer; bfloat16 would round the lengths.
        tensors[codebook] = F.normalize(tensors[codebook].float(), dim=-1)
    fill(vq, tensors, where=folder, published=True, dtype=torch.float32, device=device)
    return vq
