"""Write a Chameleon model in the format of upstream code: a Hugging Face folder with shards.

Query and key norms have one row for all heads with `norm_rows=1`, which Lumina-mGPT's own code reads, or one
row per head with `norm_rows=None`, which transformers reads. `serialization.load_backend` reads both.
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
from personalar.models.tensor_files import SHARD_BYTES, read_shapes, write_shards, write_tensors

if TYPE_CHECKING:  # for annotations only: serialization.py, which loads the backend, imports this module
    from personalar.models.chameleon.backend import ChameleonBackend


def hf_config(
    transformer: TransformerConfig,
    tokenizer: Tokenizer,
    vq: VQConfig,
    *,
    dtype: torch.dtype,
    norm_rows: int | None = 1,
) -> dict[str, Any]:
    """Return a config.json for transformers' Chameleon class and for Lumina-mGPT's own code.

    Args:
        norm_rows: rows of the query and key norms in the shards; None: one row per head.
    """
    heads, key_heads = transformer.num_attention_heads, transformer.num_key_value_heads
    # Lumina-mGPT's code has one number for both norms, so with grouped queries it cannot read a row per head.
    own = heads if heads == key_heads else 1
    # Keys that transformers ignores are for Lumina-mGPT's code. Without rope_theta it uses 10000, without
    # model_parallel_size it expects one row of norms, and by default it masks the logits of image codes.
    return transformer.to_hf() | {
        "architectures": ["ChameleonForConditionalGeneration"],
        "rope_theta": transformer.rope_theta,
        "model_parallel_size": own if norm_rows is None else norm_rows,
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
    """Write `transformer` to `folder`; return the folder.

    Args:
        dtype: precision of the shards.
        norm_rows: see `hf_config`.
        beside: more tensors for the shards, by name.

    Raises:
        ValueError: the norms of the heads differ and cannot be stored in `norm_rows` rows.
    """
    state = transformer.state_dict()
    tensors = {**(collapse_norms(state, rows=norm_rows) if norm_rows else state), **(beside or {})}
    config = hf_config(transformer.config, tokenizer, vq, dtype=dtype, norm_rows=norm_rows)
    return write_checkpoint(folder, config=config, tokenizer=tokenizer, tensors=tensors.items(), dtype=dtype)


def shared_norm_rows(base: Path, state: Mapping[str, Tensor]) -> tuple[int | None, int | None]:
    """Return the number of rows of query and key norms in the files of `base`, and that needed for `state`.

    None stands for one row per head. If heads were trained to different norms, they need a row each.
    """
    # From the headers of the files, because the loaded norms are already expanded.
    stored = {name: shape[0] for name, shape in read_shapes(base, network_name).items() if is_head_norm(name)}
    fewer = [rows for name, rows in stored.items() if rows < state[name].shape[0]]
    if not fewer:
        return None, None
    try:
        # A trial: it raises an error if heads of a group differ.
        collapse_norms({name: state[name] for name in stored}, rows=max(fewer))
    except ValueError:
        return max(fewer), None
    return max(fewer), max(fewer)


def norm_words(of_base: int | None, rows: int | None, shape: TransformerConfig) -> str:
    """Return a message with the format of the norms in a checkpoint, and the programs that read it.

    Args:
        of_base: rows of the norms in the base; None: one row per head.
        rows: rows of the norms in the checkpoint; None: one row per head.
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
    """Write the whole `backend` to `folder`; return the folder.

    It also contains protocol.json and vq/, so it can be used as `model.path`.

    Args:
        dtype: precision of the shards; the image tokenizer in vq/ stays float32.
        norm_rows: see `hf_config`.

    Raises:
        ValueError: the norms of the heads differ and cannot be stored in `norm_rows` rows.
    """
    vq = backend.vq.state_dict()
    write_json(folder / "protocol.json", asdict(backend.protocol.config))
    write_json(folder / "vq" / "config.json", backend.vq.config.to_hf())
    write_tensors(folder / "vq", vq, dtype=torch.float32)
    # transformers' class contains the image encoder, and would initialise it at random if it were missing.
    # It has no decoder.
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
    """Write config.json, tokenizer.json and `tensors` in shards to `folder`; return the folder."""
    write_json(folder / "config.json", config)
    write_atomic(folder / "tokenizer.json", tokenizer.to_json().encode())
    write_shards(folder, tensors, dtype=dtype, shard_bytes=shard_bytes)
    return folder
