"""Tensor names and sizes in Emu3 checkpoints of BAAI and of transformers.

The names that transformers writes differ from those of its class in memory; both are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch

from personalar.config.fields import limits
from personalar.models.checkpoint_folder import read_config
from personalar.models.emu3.emu3_files import VQ_PREFIXES
from personalar.models.emu3.one_frame_vq import OneFrameVQ, OneFrameVQConfig
from personalar.models.network.llama import LanguageModel, LlamaConfig
from personalar.models.tensor_files import fill, read_tensors

VQ_NAMES = {
    r"^encoder\.down\.": "encoder.down_block.down.",
    r"^decoder\.up\.": "decoder.up_block.up.",
    r"\bmid\.attn_1\.norm\.": "middle_block.attn_norm.",
    r"\bmid\.": "middle_block.",
    r"\battn\.(\d+)\.norm\.": r"attn_norms.\1.",
    r"\b([qkv])\.": r"\1_proj.",
    r"\bproj_out\.": "out_proj.",
}
"""Part of a name in BAAI's image tokenizer (pattern) -> part in transformers', which are the names here."""
VQ_NUMBERS = {"codebook_size": "num_embeddings", "z_channels": "latent_channels", "ch": "base_channels",
              "ch_mult": "channel_multiplier", "double_z": "double_latent"}  # fmt: skip
"""Name in the image tokenizer's config.json -> name in `OneFrameVQConfig`, where they differ."""


@dataclass(frozen=True, kw_only=True)
class Emu3Config(LlamaConfig):
    """Sizes of the transformer; defaults are those of Emu3-Gen."""

    vocab_size: int = field(default=184622, metadata=limits(1, 2**22))
    intermediate_size: int = field(default=14336, metadata=limits(1, 2**18))
    num_key_value_heads: int = field(default=8, metadata=limits(1, 1024))
    rms_norm_eps: float = field(default=1e-5, metadata=limits(0.0, 1.0))
    rope_theta: float = field(default=1e6, metadata=limits(1.0, 1e12))
    max_position_embeddings: int = field(default=9216, metadata=limits(1, 2**24))

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Read a config.json of BAAI or transformers; missing keys get the values of Emu3-Gen.

        Raises:
            ValueError: another family, or an unsupported option.
        """
        if str(config.get("model_type")).lower() != "emu3":
            raise ValueError(
                f"config.json has model_type={config.get('model_type')!r}, which is not an Emu3: model.path "
                "needs a folder with model_type 'emu3' (transformers' files) or 'Emu3' (BAAI's)"
            )
        text = config.get("text_config") or config
        if config.get("tie_word_embeddings") or text.get("tie_word_embeddings"):
            raise ValueError("config.json has tie_word_embeddings=true; Emu3 needs it false")
        # LlamaConfig's default is the number of heads, but Emu3 has grouped queries.
        return super().from_hf({"num_key_value_heads": cls.num_key_value_heads, **text})

    def build(self) -> LanguageModel:
        """Return a transformer of this shape, on torch's default device."""
        return LanguageModel(self)


def vq_name(stored: str, *, bare: bool) -> str | None:
    """Return the image tokenizer's name of a stored tensor; None if it does not belong to it.

    Args:
        bare: the folder contains only the image tokenizer, so names have no prefix.
    """
    prefix = next((prefix for prefix in VQ_PREFIXES if stored.startswith(prefix)), "")
    if not (prefix or bare):
        return None
    name = stored.removeprefix(prefix)
    # In order: specific patterns come before general ones.
    for theirs, ours in VQ_NAMES.items():
        name = re.sub(theirs, ours, name)
    return name


def vq_numbers(folder: Path) -> OneFrameVQConfig:
    """Return the sizes of the image tokenizer in `folder`, without reading tensors."""

    def parse(config: dict[str, Any]) -> OneFrameVQConfig:
        own = config.get("vq_config") or config
        return OneFrameVQConfig.from_hf({VQ_NUMBERS.get(name, name): value for name, value in own.items()})

    return read_config(folder / "config.json", parse)


def network_numbers(folder: Path) -> Emu3Config:
    """Return the sizes of the transformer in `folder`, without reading tensors."""
    return read_config(folder / "config.json", Emu3Config.from_hf)


def load_vq(folder: Path, *, bare: bool, device: torch.device) -> OneFrameVQ:
    """Return the image tokenizer in `folder`, in float32. Raises ValueError if it is missing or damaged."""
    tensors = dict(read_tensors(folder, partial(vq_name, bare=bare)))
    if not tensors:
        raise ValueError(
            f"{folder} contains no image tokenizer ({VQ_PREFIXES[0]}*), which BAAI publishes separately: "
            "set model.vq_path to a copy of BAAI/Emu3-VisionTokenizer"
        )
    for name, tensor in tensors.items():
        # Attention has 1x1 convolutions in BAAI's files, but linear layers in transformers'.
        if tensor.ndim == 4 and "_proj." in name:
            tensors[name] = tensor.flatten(1)
    with torch.device("meta"):
        vq = vq_numbers(folder).build()
    fill(vq, tensors, where=folder, published=True, dtype=torch.float32, device=device)
    return vq
