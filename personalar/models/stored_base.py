"""The contract of a base on disk: its files, the numbers that decide its memory, loading and writing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from personalar.models.base import Backend, Loss


class NetworkShape(Protocol):
    """The numbers of a transformer, known before any weight is read; a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def hidden_size(self) -> int:
        """Width."""

    @property
    def num_hidden_layers(self) -> int:
        """Depth."""

    @property
    def num_key_value_heads(self) -> int:
        """Heads of keys and values."""

    @property
    def vocab_size(self) -> int:
        """Rows of the word table."""

    @property
    def head_dim(self) -> int:
        """Width of a head."""

    def build(self) -> Any:
        """Return the transformer, on torch's default device.

        It has `blocks` and `head(rows)`; a call with embeddings (B, T, D) and `dropout=` returns hidden
        states (B, T, D), from which the memory of a training pass is estimated.
        """


@dataclass(frozen=True, kw_only=True)
class BaseShape:
    """The numbers of a base that decide how much memory it takes; known before any weight is read."""

    network: NetworkShape
    codes: int
    """Image codes of a square image."""
    answer_tokens: int
    """Ids of a square image in a training example, its codes among them."""
    num_codes: int
    """Size of the codebook."""
    tokenizer_bytes: int
    """Weights of the image tokenizer."""
    decode_bytes: int
    """Memory beside weights for turning one batch of codes into images."""


class ModelFiles(Protocol):
    """The files of one base model on this machine, and how they become a backend."""

    layout: Any
    """Sizes and sequence layout of the base; see `config/model_config.py`."""
    losses: Sequence[Loss]
    """The losses that the base can be trained with."""
    nearest_problem: str | None
    """Why `identifier.init=nearest` is refused; None: pretraining gave the reserved ids a meaning."""

    def missing(self) -> list[str]:
        """Return the paths of the missing files."""

    def parts(self) -> dict[str, Path]:
        """Return where each part of the base is, by its name in plain words; "transformer" is among them."""

    def weights(self) -> list[Path]:
        """Return every file that contains tensors; they make the base's fingerprint."""

    def shape(self, *, attention: str, images: int) -> BaseShape:
        """Return the numbers that decide memory, for `images` images decoded together."""

    def load(self, *, dtype: torch.dtype, device: torch.device | str, attention: str) -> Backend:
        """Return the base, frozen and in evaluation mode.

        Args:
            dtype: precision of the transformer.
            attention: "eager" or "sdpa".
        """

    def reserved_ids(self) -> Sequence[int]:
        """Return the ids that no text uses; no weight is read."""

    def checkpoint_form(self, backend: Backend) -> str:
        """Return in words what form `write_checkpoint` writes, and which programs read it."""

    def write_checkpoint(self, backend: Backend, folder: Path, *, dtype: torch.dtype) -> Path:
        """Write all of `backend`, loaded from these files, for other programs; return `folder`."""

    def load_sharded(
        self,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        attention: str,
        changed: Mapping[str, Tensor],
    ) -> Backend:
        """Return the base with its weights sharded, within DeepSpeed's sharding context.

        Args:
            changed: weights by name to take instead of the files' (an earlier stage's).
        """
