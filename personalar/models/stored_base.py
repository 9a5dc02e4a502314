"""The contract of a base on disk: its files, its sizes for an estimate of memory, loading and writing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from personalar.models.base import Backend, Loss


class NetworkShape(Protocol):
    """The sizes of a transformer, available before any weight is read; a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""

    @property
    def num_hidden_layers(self) -> int:
        """Number of blocks."""

    @property
    def num_key_value_heads(self) -> int:
        """Number of key/value heads."""

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table."""

    @property
    def head_dim(self) -> int:
        """Channels per head."""

    def build(self) -> Any:
        """Return the transformer, on torch's default device.

        It has `blocks` and `head(rows)`. A call with embeddings (B, T, D) and `dropout=` returns hidden
        states (B, T, D). The memory of a training pass is estimated from such a call on meta.
        """


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

    def checkpoint_form(self, backend: Backend) -> str:
        """Return a message with the format that `write_checkpoint` writes, and the programs that read it."""

    def write_checkpoint(self, backend: Backend, folder: Path, *, dtype: torch.dtype) -> Path:
        """Write the whole `backend`, loaded from these files, for other programs; return `folder`."""

    def load_sharded(
        self, *, dtype: torch.dtype, device: torch.device | str, changed: Mapping[str, Tensor]
    ) -> Backend:
        """Return the base with sharded weights; called within DeepSpeed's sharding context.

        Args:
            changed: weights by name that replace those of the files (from an earlier stage).
        """
