"""Write a Chameleon transformer as upstream code reads it: a Hugging Face folder of shards.

With `norm_rows=1` the query and key norms are (1, head_dim), as Lumina-mGPT's own code wants them; without,
one row per head, as transformers does. Reading either is `backend.load_backend`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from personalar.models.checkpoint import collapse_norms, write_shards
from personalar.models.files import write_bytes, write_json
from personalar.models.tokenizer import Tokenizer, code_name
from personalar.models.transformer import ChameleonTransformer, TransformerConfig
from personalar.models.vq import VQConfig

SHARD_BYTES = 5_000_000_000


def hf_config(
    transformer: TransformerConfig, tokenizer: Tokenizer, vq: VQConfig, *, dtype: torch.dtype
) -> dict[str, Any]:
    """Return the config.json that transformers' Chameleon class reads."""
    return transformer.to_hf() | {
        "architectures": ["ChameleonForConditionalGeneration"],
        "bos_token_id": tokenizer.bos,
        "pad_token_id": tokenizer.pad,
        "eos_token_id": tokenizer.sep,
        "vocabulary_map": {"<image>": tokenizer.boi},  # transformers cannot construct the model without one
        "vq_config": vq.to_hf(),
        "dtype": str(dtype).removeprefix("torch."),
    }


def export_transformer(
    transformer: ChameleonTransformer,
    folder: Path,
    *,
    tokenizer: Tokenizer,
    vq: VQConfig,
    dtype: torch.dtype = torch.bfloat16,
    norm_rows: int | None = 1,
) -> Path:
    """Write `transformer` to `folder`; return it.

    Raises:
        ValueError: when `norm_rows` rows cannot say what the heads' norms are.
    """
    state = transformer.state_dict()
    tensors = collapse_norms(state, rows=norm_rows) if norm_rows else state
    config = hf_config(transformer.config, tokenizer, vq, dtype=dtype)
    names = {code_name(code): code + tokenizer.code_offset for code in range(tokenizer.num_codes)}
    config["vocabulary_map"] = config["vocabulary_map"] | names
    return write_checkpoint(folder, config=config, tokenizer=tokenizer, tensors=tensors.items(), dtype=dtype)


def write_checkpoint(
    folder: Path,
    *,
    config: dict[str, Any],
    tokenizer: Tokenizer,
    tensors: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write config.json, tokenizer.json and `tensors` in shards to `folder`; return it."""
    write_json(folder / "config.json", config)
    write_bytes(folder / "tokenizer.json", tokenizer.to_json().encode())
    write_shards(folder, tensors, dtype=dtype, shard_bytes=shard_bytes)
    return folder
