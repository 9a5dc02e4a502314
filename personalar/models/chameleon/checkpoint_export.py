"""Write a Chameleon model as upstream code reads it: a Hugging Face folder of shards.

With `norm_rows=1` the query and key norms are (1, head_dim), as Lumina-mGPT's own code reads them; without,
one row per head, as transformers does. `serialization.load_backend` reads both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from personalar.core.files import write_atomic
from personalar.models.chameleon.model_files import VQ_PREFIX, network_name
from personalar.models.chameleon.norm_rows import collapse_norms, is_head_norm
from personalar.models.chameleon.tokenizer import IMAGE, Tokenizer, code_name
from personalar.models.chameleon.transformer import ChameleonTransformer, TransformerConfig
from personalar.models.checkpoint_folder import write_json
from personalar.models.network.vq import VQConfig
from personalar.models.tensor_files import read_shapes, write_shards, write_tensors

if TYPE_CHECKING:  # it reads what is written here
    from personalar.models.chameleon.backend import ChameleonBackend

SHARD_BYTES = 5_000_000_000


def hf_config(
    transformer: TransformerConfig,
    tokenizer: Tokenizer,
    vq: VQConfig,
    *,
    dtype: torch.dtype,
    norm_rows: int | None = 1,
) -> dict[str, Any]:
    """Return the config.json that transformers' Chameleon class reads, and Lumina-mGPT's own code.

    Lumina-mGPT's code has other defaults: without `mask_image_logits: false` it cannot generate image codes,
    without `rope_theta` it uses 10000, and without `model_parallel_size` it expects one row of norms.

    Args:
        norm_rows: rows of the query and key norms in the shards; None is one row per head.
    """
    heads, key_heads = transformer.num_attention_heads, transformer.num_key_value_heads
    own = heads if heads == key_heads else 1  # it has one number for both norms
    return transformer.to_hf() | {
        "architectures": ["ChameleonForConditionalGeneration"],
        "rope_theta": transformer.rope_theta,
        "model_parallel_size": own if norm_rows is None else norm_rows,
        "mask_image_logits": False,
        "bos_token_id": tokenizer.bos,
        "pad_token_id": tokenizer.pad,
        "eos_token_id": [tokenizer.eos, tokenizer.sep],  # Chameleon's and Anole's, Lumina-mGPT's
        "vocabulary_map": vocabulary_map(tokenizer),
        "vq_config": vq.to_hf(),
        "dtype": str(dtype).removeprefix("torch."),
    }


def vocabulary_map(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the names that both read: of the image codes, and of what stands for a picture in a prompt.

    A vocabulary without such an id has no `<image>` here: another token in its place would be replaced.
    """
    names = {code_name(code): code + tokenizer.code_offset for code in range(tokenizer.num_codes)}
    return names if tokenizer.image is None else {IMAGE: tokenizer.image, **names}


def export_transformer(
    transformer: ChameleonTransformer,
    folder: Path,
    *,
    tokenizer: Tokenizer,
    vq: VQConfig,
    dtype: torch.dtype = torch.bfloat16,
    norm_rows: int | None = 1,
    beside: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write `transformer` to `folder`; return it.

    Args:
        beside: further tensors, by their names in the shards.

    Raises:
        ValueError: the norms of the heads differ and cannot be stored in `norm_rows` rows.
    """
    state = transformer.state_dict()
    tensors = {**(collapse_norms(state, rows=norm_rows) if norm_rows else state), **(beside or {})}
    config = hf_config(transformer.config, tokenizer, vq, dtype=dtype, norm_rows=norm_rows)
    return write_checkpoint(folder, config=config, tokenizer=tokenizer, tensors=tensors.items(), dtype=dtype)


def shared_norm_rows(base: Path, state: Mapping[str, Tensor]) -> tuple[int | None, int | None]:
    """Return in how many rows the files of `base` have query and key norms, and `state` can be written.

    None is one row per head. Heads that were trained separately cannot be stored in fewer rows.
    """
    stored = {name: shape[0] for name, shape in read_shapes(base, network_name).items() if is_head_norm(name)}
    fewer = [rows for name, rows in stored.items() if rows < state[name].shape[0]]
    if not fewer:
        return None, None
    try:
        collapse_norms({name: state[name] for name in stored}, rows=max(fewer))
    except ValueError:
        return max(fewer), None
    return max(fewer), max(fewer)


def norm_words(of_base: int | None, rows: int | None, shape: TransformerConfig) -> str:
    """Return in words the form of the query and key norms in a checkpoint, and the programs that read it.

    Args:
        of_base, rows: rows of the norms in the base and in the checkpoint; None is one row per head.
    """
    if rows is not None:
        form = f"query and key norms ({rows}, {shape.head_dim}) for all heads"
        return f"{form}, as Lumina-mGPT's own code reads them"
    form = (
        "a query and a key norm for every head, as transformers' ChameleonForConditionalGeneration reads them"
    )
    if of_base is None:
        return form
    if shape.num_attention_heads == shape.num_key_value_heads:
        return f"{form}; so does Lumina-mGPT's own code"
    return f"{form}; Lumina-mGPT's own code does not: heads that shared a norm now have their own"


def export_backend(
    backend: ChameleonBackend, folder: Path, *, dtype: torch.dtype, norm_rows: int | None
) -> Path:
    """Write all of `backend` to `folder`; return it.

    The folder also contains protocol.json and vq/, so that it is a whole `model.path`.
    With one norm per head the shards also contain the image encoder; without it transformers' class would
    initialise it at random.

    Args:
        dtype: precision of the shards; the image tokenizer in vq/ stays float32.

    Raises:
        ValueError: the norms of the heads differ and cannot be stored in `norm_rows` rows.
    """
    vq = backend.vq.state_dict()
    write_json(folder / "protocol.json", asdict(backend.protocol.config))
    write_json(folder / "vq" / "config.json", backend.vq.config.to_hf())
    write_tensors(folder / "vq", vq, dtype=torch.float32)
    encoder = {f"{VQ_PREFIX}{name}": tensor for name, tensor in vq.items() if "decoder." not in name}
    return export_transformer(
        backend.transformer,
        folder,
        tokenizer=backend.tokenizer,
        vq=backend.vq.config,
        dtype=dtype,
        norm_rows=norm_rows,
        beside=encoder if norm_rows is None else None,
    )


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
    write_atomic(folder / "tokenizer.json", tokenizer.to_json().encode())
    write_shards(folder, tensors, dtype=dtype, shard_bytes=shard_bytes)
    return folder
