"""Write Chameleon models in the format of this package, and make untrained ones."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from personalar.config.model_config import ProtocolConfig
from personalar.core.files import write_atomic
from personalar.models.chameleon.backend import ChameleonBackend
from personalar.models.chameleon.tokenizer import IMAGE, Tokenizer, code_name
from personalar.models.chameleon.transformer import ChameleonTransformer, TransformerConfig
from personalar.models.checkpoint_folder import write_json
from personalar.models.network.vq import VQConfig, VQModel
from personalar.models.tensor_files import write_tensors


def hf_config(
    transformer: TransformerConfig, tokenizer: Tokenizer, vq: VQConfig, *, dtype: torch.dtype
) -> dict[str, Any]:
    """Return a config.json for transformers' Chameleon class and for Lumina-mGPT's own code."""
    # Keys that transformers ignores are for Lumina-mGPT's code. Without rope_theta it uses 10000, without
    # model_parallel_size it expects one row of norms, and by default it masks the logits of image codes.
    return transformer.to_hf() | {
        "architectures": ["ChameleonForConditionalGeneration"],
        "rope_theta": transformer.rope_theta,
        "model_parallel_size": transformer.num_attention_heads,
        "mask_image_logits": False,
        "bos_token_id": tokenizer.bos,
        "pad_token_id": tokenizer.pad,
        "eos_token_id": [tokenizer.eos, tokenizer.sep],  # of Chameleon and Anole; of Lumina-mGPT
        "vocabulary_map": vocabulary_map(tokenizer),
        "vq_config": vq.to_hf(),
        "dtype": str(dtype).removeprefix("torch."),
    }


def vocabulary_map(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the ids of the image codes and of `<image>`, the placeholder for a picture in a prompt."""
    # A small vocabulary may have no placeholder. Any other id here would be replaced by image codes.
    names = {code_name(code): code + tokenizer.code_offset for code in range(tokenizer.num_codes)}
    return names if tokenizer.image is None else {IMAGE: tokenizer.image, **names}


def save_backend(backend: ChameleonBackend, path: Path, *, dtype: torch.dtype = torch.float16) -> Path:
    """Write a model folder with weights in `dtype`, each file atomically; return the folder."""
    tokenizer, vq = backend.tokenizer, backend.vq.config
    config = hf_config(backend.transformer.config, tokenizer, vq, dtype=dtype)
    write_json(path / "base" / "config.json", config)
    write_json(path / "vq" / "config.json", vq.to_hf())
    write_atomic(path / "base" / "tokenizer.json", tokenizer.to_json().encode())
    write_tensors(path / "base", backend.transformer.state_dict(), dtype=dtype)
    write_tensors(path / "vq", backend.vq.state_dict(), dtype=dtype)
    # Last, because a folder without it is unfinished.
    write_json(path / "protocol.json", asdict(backend.layout))
    return path


def init_backend(
    *,
    transformer: TransformerConfig,
    vq: VQConfig,
    tokenizer: Tokenizer,
    layout: ProtocolConfig,
    seed: int,
) -> ChameleonBackend:
    """Return an untrained backend with random weights, which depend only on `seed`."""
    with torch.device("meta"):
        networks = ChameleonTransformer(transformer), VQModel(vq)
    generator = torch.Generator().manual_seed(seed)
    for network in networks:
        network.to_empty(device="cpu").init_weights(generator)
    return ChameleonBackend(
        transformer=networks[0], vq=networks[1], tokenizer=tokenizer, layout=layout
    ).eval()
