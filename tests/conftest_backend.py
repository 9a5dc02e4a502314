"""A random backend of tiny size in the real folder format: the test double of every base model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from personalar.models.chameleon.backend import ChameleonBackend, init_backend, load_backend, save_backend
from personalar.models.chameleon.sequence_layout import ProtocolConfig
from personalar.models.chameleon.tokenizer import Tokenizer, build_tokenizer
from personalar.models.chameleon.transformer import TransformerConfig
from personalar.models.chameleon.vq import VQConfig

NUM_CODES = 64
IMAGE_PX = 32
GRID_PX = 16
CAPTIONS = [
    f"a {colour} {noun} {place}"
    for colour in ("red", "blue", "green")
    for noun in ("cat", "dog", "teapot", "boot")
    for place in ("in the snow", "on the beach", "in the jungle")
]
TINY_TRANSFORMER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
TINY_VQ = VQConfig(
    embed_dim=8,
    num_embeddings=NUM_CODES,
    latent_channels=8,
    resolution=IMAGE_PX,
    in_channels=48,
    base_channels=32,
    channel_multiplier=(1, 1),
    num_res_blocks=1,
    patch_size=4,
)


def make_tokenizer(num_codes: int = NUM_CODES) -> Tokenizer:
    """A vocabulary with Chameleon's names over a few dozen captions."""
    wrapped = [f"Generate an image of 32x32 according to the following prompt:\n{text}" for text in CAPTIONS]
    return Tokenizer(
        build_tokenizer(
            wrapped, num_codes=num_codes, max_grids=8, num_concept_ids=12, vocab_size=num_codes + 400
        )
    )


def make_backend(seed: int = 0, *, buckets: str = "square", **transformer: object) -> ChameleonBackend:
    """A random backend: 32 px images of 4x4 codes."""
    tokenizer = make_tokenizer()
    backend = init_backend(
        transformer=TransformerConfig(vocab_size=tokenizer.vocab_size, **(TINY_TRANSFORMER | transformer)),
        vq=TINY_VQ,
        tokenizer=tokenizer,
        protocol=ProtocolConfig(grid_px=GRID_PX, resolution=IMAGE_PX, buckets=buckets),
        seed=seed,
    )
    sharpen(backend, seed)
    return backend.requires_grad_(False)


@torch.no_grad()
def sharpen(backend: ChameleonBackend, seed: int) -> None:
    """Spread the random weights: prompts matter, norms are not the identity, logits are far apart."""
    generator = torch.Generator().manual_seed(seed + 1)
    for name, parameter in backend.transformer.named_parameters():
        if "norm" in name:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
        else:
            parameter.mul_(10.0)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as `load_backend` reads it; do not write into it."""
    return save_backend(make_backend(), tmp_path_factory.mktemp("tiny") / "model", dtype=torch.float32)


@pytest.fixture(scope="session")
def tiny_backend(tiny_model_dir: Path) -> ChameleonBackend:
    """The folder, loaded once; do not train it."""
    return load_backend(tiny_model_dir)
