"""The contract of a base on disk: its files, its sizes for an estimate of memory, loading and writing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from personalar.models.base import Backend, Loss

NetworkShape = Any
"""A frozen dataclass like `LlamaConfig`, with `hidden_size`, `num_hidden_layers`, `num_key_value_heads`,
`vocab_size` and `head_dim`. `build()` returns the transformer, on torch's default device: it has `blocks` and
`head(rows)`, and maps embeddings (B, T, D), with `dropout=`, to hidden states (B, T, D)."""


@dataclass(frozen=True, kw_only=True)
class BaseShape:
    """The sizes of a base for an estimate of memory, available before any weight is read."""

    network: NetworkShape
    codes: int
    """Number of image codes of a square image."""
    answer_tokens: int
    """Number of ids of a square image in a training example, with its codes."""
    num_codes: int
    """Size of the codebook."""
    vq_bytes: int
    """Bytes of the image tokenizer's weights."""
    decode_bytes: int
    """Bytes for decoding one batch of codes to images, without weights."""


class ModelFiles(Protocol):
    """The files of a base model on this machine; loads and writes backends."""

    layout: Any
    """Sizes and sequence layout of the base; see `config/model_config.py`."""
    losses: Sequence[Loss]
    """The losses with which the base can be trained."""
    checkpoint_form: str
    """In words, the format that `write_checkpoint` writes."""

    def missing(self) -> list[str]:
        """Return the paths of the missing files."""

    def parts(self) -> dict[str, Path]:
        """Return {part in plain words: its path}; "transformer" is one of them."""

    def weights(self) -> list[Path]:
        """Return all files with tensors; the fingerprint of the base is computed from them."""

    def shape(self, *, images: int) -> BaseShape:
        """Return the sizes for an estimate of memory; `images` images are decoded together."""

    def load(self, *, dtype: torch.dtype, device: torch.device | str) -> Backend:
        """Return the base, frozen and in evaluation mode.

        Args:
            dtype: precision of the transformer.
            device: device of all weights; "meta": files are checked and no weight is read.
        """

    def reserved_ids(self) -> Sequence[int]:
        """Return the ids that no text uses, without reading weights."""

    def write_checkpoint(self, backend: Backend, folder: Path, *, dtype: torch.dtype) -> Path:
        """Write the whole `backend`, loaded from these files, for other programs; return `folder`."""
