"""Models with random weights, because speed does not depend on their values."""

from __future__ import annotations

import torch
from torch import nn

from personalar.config.model_config import ProtocolConfig
from personalar.models.chameleon.backend import ChameleonBackend
from personalar.models.chameleon.tokenizer import Tokenizer, build_tokenizer
from personalar.models.chameleon.transformer import ChameleonTransformer, TransformerConfig
from personalar.models.network.vq import VQConfig, VQModel

SHAPES = {
    "random_7b": TransformerConfig(),  # Lumina-mGPT 7B
    "random_235m": TransformerConfig(
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=16,
    ),
}
"""Shapes of transformers with the vocabulary of Lumina-mGPT."""


def random_model(name: str, *, dtype: torch.dtype, device: torch.device) -> ChameleonBackend:
    """Return a random model of `SHAPES`, with 512 pixels, 32 x 32 of 8192 codes."""
    return random_backend(SHAPES[name], VQConfig(), ProtocolConfig(), dtype=dtype, device=device)


def random_backend(
    transformer: TransformerConfig,
    vq: VQConfig,
    layout: ProtocolConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> ChameleonBackend:
    """Return a random backend of any shape; the weights are drawn on `device`."""
    tokenizer = Tokenizer(
        build_tokenizer(
            [layout.prompt_template],
            num_codes=vq.num_embeddings,
            max_grids=max(48, layout.resolution // layout.grid_px),
            num_concept_ids=12,
            vocab_size=transformer.vocab_size,
        )
    )
    with torch.device("meta"):
        networks: list[tuple[nn.Module, torch.dtype]] = [
            (ChameleonTransformer(transformer), dtype),
            (VQModel(vq), torch.float32),
        ]
    for network, kind in networks:
        network.to(kind).to_empty(device=device)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(False)
            if parameter.ndim == 1 or "norm" in name:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                parameter.normal_(std=0.02)
    return ChameleonBackend(
        transformer=networks[0][0],  # type: ignore[arg-type]
        vq=networks[1][0],  # type: ignore[arg-type]
        tokenizer=tokenizer,
        layout=layout,
    ).eval()
