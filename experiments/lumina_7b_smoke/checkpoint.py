"""Write a random checkpoint in the published format, of any size, shard by shard.

It replaces the published weights in measurements of loading, training and sampling: all shapes, names, ids
and files are those of Lumina-mGPT 7B, and only the values are noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from personalar.core.files import write_text
from personalar.models.chameleon.serialization import hf_config
from personalar.models.chameleon.tokenizer import Tokenizer, chameleon_names, train_tokenizer
from personalar.models.chameleon.transformer import ChameleonTransformer, TransformerConfig
from personalar.models.checkpoint_folder import write_json
from personalar.models.network.vq import VQConfig, VQModel
from personalar.models.tensor_files import write_shards

TEXTS = ["Generate an image of 512x512 according to the following prompt:\na photo of a dog"]
TINY_VQ = VQConfig(
    embed_dim=8, latent_channels=8, base_channels=32, channel_multiplier=(1, 1, 1, 1, 1), num_res_blocks=1,
)  # fmt: skip
TINY = TransformerConfig(
    vocab_size=16896, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2,
)  # fmt: skip
SIZES = {"7b": (TransformerConfig(), VQConfig()), "tiny": (TINY, TINY_VQ)}


def random_tensors(network: nn.Module, *, device: str, seed: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, noise) for every tensor of `network` (on any device); query and key norms have one row."""
    generator = torch.Generator(device).manual_seed(seed)
    for name, tensor in network.state_dict().items():
        shape = (1, *tensor.shape[1:]) if ".q_norm." in name or ".k_norm." in name else tensor.shape
        noise = torch.randn(shape, generator=generator, device=device) * 0.02
        yield name, noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)


def write_random(folder: Path, size: str, *, device: str, shard_bytes: int = 5_000_000_000) -> Path:
    """Write `folder`/base in the format of Alpha-VLLM, and `folder`/vq with vqgan.ckpt; return `folder`."""
    transformer, vq = SIZES[size]
    with torch.device("meta"):
        network = ChameleonTransformer(transformer)
    tensors = random_tensors(network, device=device)
    write_base(folder / "base", transformer, vq, tensors, dtype=torch.bfloat16, shard_bytes=shard_bytes)
    write_vqgan(folder / "vq", vq, device=device)
    return folder


def write_base(
    folder: Path,
    transformer: TransformerConfig,
    vq: VQConfig,
    tensors: Iterator[tuple[str, Tensor]],
    *,
    dtype: torch.dtype,
    shard_bytes: int,
) -> None:
    """Write config.json, tokenizer.json, and `tensors` in shards."""
    tokenizer = small_tokenizer()
    write_json(folder / "config.json", hf_config(transformer, tokenizer, vq, dtype=dtype))
    write_text(folder / "tokenizer.json", tokenizer.to_json())
    write_shards(folder, tensors, dtype=dtype, shard_bytes=shard_bytes)


def small_tokenizer() -> Tokenizer:
    """Return a tokenizer with the published special ids, and a byte-level BPE of a few hundred pieces."""
    names = chameleon_names()
    return Tokenizer(train_tokenizer(TEXTS, specials=names, vocab_size=len(names) + 512))


def write_vqgan(folder: Path, config: VQConfig, *, device: str) -> None:
    """Write vqgan.ckpt of a random image tokenizer, and a config.json with its sizes."""
    with torch.device("meta"):
        network = VQModel(config)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.cpu() for name, tensor in random_tensors(network, device=device)}
    torch.save({"state_dict": state}, folder / "vqgan.ckpt")
    write_json(folder / "config.json", config.to_hf())
