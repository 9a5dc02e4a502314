"""Tiny random checkpoints in the formats that are published, with the ids of the real vocabulary."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest_backend import CAPTIONS, sharpen
from safetensors.torch import load_file, save_file
from torch import Tensor

from personalar.config.layout import ProtocolConfig
from personalar.models.chameleon.backend import ChameleonBackend, init_backend
from personalar.models.chameleon.export import export_transformer, hf_config, write_checkpoint
from personalar.models.chameleon.model_files import INDEX, ModelFiles, open_folder, weight_files
from personalar.models.chameleon.tokenizer import Tokenizer, chameleon_names, train_tokenizer
from personalar.models.chameleon.transformer import TransformerConfig
from personalar.models.chameleon.vq import VQConfig, VQModel

LUMINA_IDS = {
    "<s>": 0,
    "<eoss>": 8196,
    "<racm3:break>": 8197,
    "<reserved08706>": 8710,
    "<reserved08799>": 8803,
}
LUMINA = ProtocolConfig(resolution=64, ids=LUMINA_IDS)
ANOLE = ProtocolConfig(
    resolution=64, buckets="square", structure="flat", unconditional="bos", resize="lanczos",
    prompt_template="{prompt}",
)  # fmt: skip
NUMBERS = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 4096,
}  # fmt: skip
VQ_NUMBERS = VQConfig(
    embed_dim=8, latent_channels=8, resolution=64, base_channels=32, channel_multiplier=(1, 1, 1, 1, 1),
    num_res_blocks=1,
)  # fmt: skip
VQGAN_YAML = """
model:
  target: taming.models.vqgan.VQModel
  params:
    embed_dim: 8
    n_embed: 8192
    ddconfig: {double_z: false, z_channels: 8, resolution: 64, in_channels: 3, out_ch: 3, ch: 32,
      ch_mult: [1, 1, 1, 1, 1], num_res_blocks: 1, attn_resolutions: [], dropout: 0.0}
    lossconfig: {target: taming.modules.losses.DummyLoss}
"""


@cache
def lumina_tokenizer() -> Tokenizer:
    """The real special ids up to 9063, and a byte-level BPE over a few captions behind them."""
    specials = chameleon_names(last_reserved=9059)
    return Tokenizer(train_tokenizer(CAPTIONS, specials=specials, vocab_size=len(specials) + 300))


@cache
def lumina_backend() -> ChameleonBackend:
    """Random weights, norms that are no identity and equal for all heads, as every published 7B has them."""
    tokenizer = lumina_tokenizer()
    backend = init_backend(
        transformer=TransformerConfig(vocab_size=tokenizer.vocab_size, **NUMBERS),
        vq=VQ_NUMBERS, tokenizer=tokenizer, protocol=LUMINA, seed=0,
    )  # fmt: skip
    sharpen(backend, 0)
    with torch.no_grad():
        for name, parameter in backend.transformer.named_parameters():
            if ".q_norm." in name or ".k_norm." in name:
                parameter.copy_(parameter[:1].clone().expand_as(parameter))
    return backend.requires_grad_(False)


def save_vqgan(folder: Path, vq: VQModel) -> Path:
    """Write vqgan.ckpt with what Meta's training left in it, and vqgan.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    state = vq.state_dict() | {"loss.perceptual_loss.lin0.model.1.weight": torch.zeros(3)}
    torch.save({"state_dict": state, "global_step": 7}, folder / "vqgan.ckpt")
    (folder / "vqgan.yaml").write_text(VQGAN_YAML)
    return folder


def save_lumina(folder: Path) -> Path:
    """Write what Alpha-VLLM's repositories hold: shards, norms [1, D], no image tokenizer."""
    backend = lumina_backend()
    export_transformer(
        backend.transformer, folder, tokenizer=backend.tokenizer, vq=VQ_NUMBERS, dtype=torch.float32
    )
    reshard(folder, 3)
    return folder


def save_anole(folder: Path, *, decoder: bool = True) -> Path:
    """Write an Anole checkpoint: norms per head, image tokenizer inside; without `decoder`, Chameleon's."""
    backend = lumina_backend()
    vq = {
        f"model.vqmodel.{n}": t for n, t in backend.vq.state_dict().items() if decoder or "decoder." not in n
    }
    config = hf_config(backend.transformer.config, backend.tokenizer, VQ_NUMBERS, dtype=torch.float32)
    return write_checkpoint(
        folder, config=config, tokenizer=backend.tokenizer, dtype=torch.float32, shard_bytes=2**20,
        tensors=(backend.transformer.state_dict() | vq).items(),
    )  # fmt: skip


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a checkpoint folder."""
    return {name: tensor for file in weight_files(folder) for name, tensor in load_file(file).items()}


def replace_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write `tensors` as the only shard of a folder."""
    for file in folder.glob("*.safetensors"):
        file.unlink()
    (folder / INDEX).unlink(missing_ok=True)
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors")


def reshard(folder: Path, count: int) -> None:
    """Spread the tensors of a folder over `count` shards."""
    tensors = tensors_of(folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    names = {name: f"model-{1 + i % count:05d}-of-{count:05d}.safetensors" for i, name in enumerate(tensors)}
    for file in set(names.values()):
        save_file({name: t for name, t in tensors.items() if names[name] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))


@pytest.fixture(scope="session")
def vqgan_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with vqgan.ckpt and vqgan.yaml; do not write into it."""
    return save_vqgan(tmp_path_factory.mktemp("vqgan") / "original_tokenizers", lumina_backend().vq)


@pytest.fixture(scope="session")
def lumina_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Lumina-mGPT checkpoint; do not write into it."""
    return save_lumina(tmp_path_factory.mktemp("lumina") / "model")


@pytest.fixture(scope="session")
def lumina_files(lumina_dir: Path, vqgan_dir: Path) -> ModelFiles:
    """Both, as the loader wants them."""
    return open_folder(lumina_dir, vq=vqgan_dir, layout=LUMINA)
