"""Write a random checkpoint in the published format, of any size, shard by shard.

It replaces the published weights in measurements of loading, training and sampling: all shapes, names, ids
and files are those of Lumina-mGPT 7B, and only the values are noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from personalar.models.chameleon.checkpoint_export import hf_config, write_checkpoint
from personalar.models.chameleon.tokenizer import Tokenizer, chameleon_names, train_tokenizer
from personalar.models.chameleon.transformer import ChameleonTransformer, TransformerConfig
from personalar.models.network.vq import VQConfig, VQModel

TEXTS = ["Generate an image of 512x512 according to the following prompt:\na photo of a dog"]
TINY_VQ = VQConfig(
    embed_dim=8, latent_channels=8, base_channels=32, channel_multiplier=(1, 1, 1, 1, 1), num_res_blocks=1,
)  # fmt: skip
TINY = TransformerConfig(
    vocab_size=16896, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2,
)  # fmt: skip
SIZES = {"7b": (TransformerConfig(), VQConfig()), "tiny": (TINY, TINY_VQ)}
YAML = """model:
  params:
    embed_dim: {embed_dim}
    n_embed: {num_embeddings}
    ddconfig: {{double_z: false, z_channels: {latent_channels}, resolution: {resolution}, in_channels: 3,
      out_ch: 3, ch: {base_channels}, ch_mult: {multiplier}, num_res_blocks: {num_res_blocks},
      attn_resolutions: [], dropout: 0.0}}
"""


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
    tokenizer = small_tokenizer()
    with torch.device("meta"):
        network = ChameleonTransformer(transformer)
    write_checkpoint(
        folder / "base",
        config=hf_config(transformer, tokenizer, vq, dtype=torch.bfloat16),
        tokenizer=tokenizer,
        tensors=random_tensors(network, device=device),
        dtype=torch.bfloat16,
        shard_bytes=shard_bytes,
    )
    write_vqgan(folder / "vq", vq, device=device)
    return folder


def small_tokenizer() -> Tokenizer:
    """Return a tokenizer with the published special ids, and a byte-level BPE of a few hundred pieces."""
    names = chameleon_names()
    return Tokenizer(train_tokenizer(TEXTS, specials=names, vocab_size=len(names) + 512))


def write_vqgan(folder: Path, config: VQConfig, *, device: str) -> None:
    """Write vqgan.ckpt and vqgan.yaml of a random image tokenizer."""
    with torch.device("meta"):
        network = VQModel(config)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.cpu() for name, tensor in random_tensors(network, device=device)}
    torch.save({"state_dict": state}, folder / "vqgan.ckpt")
    numbers = vars(config) | {"multiplier": list(config.channel_multiplier)}
    (folder / "vqgan.yaml").write_text(YAML.format(**numbers))
