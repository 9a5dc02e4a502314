"""A published checkpoint whose transformer is loaded, sharded and written back under its own names.

A family gives the hooks at the end of `PublishedFiles`. torch is imported with the model, not with this file.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from personalar.config.model_config import ProtocolConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True, kw_only=True)
class PublishedFiles:
    """The places of one model's parts; see `stored_base.ModelFiles`."""

    base: Path
    """Folder of config.json and the transformer's weights."""
    tokenizer: Path
    """The text tokenizer."""
    layout: ProtocolConfig
    nearest_problem = "its reserved ids are rows that no token ever used, so none of them means anything"

    def load(self, *, dtype: torch.dtype, device: torch.device | str, attention: str) -> Any:
        """Return the base, frozen and in evaluation mode; the image tokenizer is in float32.

        Each tensor is cast to `dtype` as it is read, so float32 files need no second copy in memory.
        """
        import torch

        from personalar.models.cpu_kernels import use_fast_linears
        from personalar.models.tensor_files import fill

        device = torch.device(device)
        with torch.device("meta"):
            transformer = self.build(attention)
        tensors, shapes = self.tensors(attention, dtype=dtype, device=device)
        fill(transformer, tensors, shapes, where=self.base, published=True, dtype=dtype, device=device)
        use_fast_linears(transformer)
        return self.backend(transformer, device).eval().requires_grad_(False)

    def load_sharded(
        self,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        attention: str,
        changed: Mapping[str, Tensor],
    ) -> Any:
        """Return the base with its weights sharded, within DeepSpeed's sharding context."""
        import torch

        from personalar.models.sharding import ordinary_modules
        from personalar.models.tensor_files import fill_sharded

        device = torch.device(device)
        transformer = self.build(attention)
        with ordinary_modules():  # a family may compute a tensor with a module of its own
            tensors, shapes = self.tensors(attention, dtype=dtype, device=device)
        fill_sharded(
            transformer, tensors, shapes, where=self.base, published=True, dtype=dtype, changed=changed
        )
        with ordinary_modules():
            return self.backend(transformer, device).eval().requires_grad_(False)

    def checkpoint_form(self, backend: Any) -> str:
        """Return in words the form that `write_checkpoint` writes, and the programs that read it."""
        return "every tensor of the base under its own name, in safetensors; what reads the base reads it"

    def write_checkpoint(self, backend: Any, folder: Path, *, dtype: torch.dtype) -> Path:
        """Write the base's tensors, the learned ones in place of its own, and the small files beside them.

        An image tokenizer in a folder of its own is not copied.
        """
        from personalar.models.checkpoint_folder import INDEX, OLD_INDEX
        from personalar.models.tensor_files import write_shards

        folder.mkdir(parents=True, exist_ok=True)
        for file in self.base.glob("*.json"):
            if file.name not in (INDEX, OLD_INDEX):  # they list the base's shards; ours are cut anew
                shutil.copyfile(file, folder / file.name)
        for file in self.tokenizer_files():
            shutil.copyfile(file, folder / file.name)
        write_shards(folder, self._merged(backend), dtype=dtype, shard_bytes=SHARD_BYTES)
        return folder

    def _merged(self, backend: Any) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor of the base by its stored name; the transformer's come from `backend`."""
        from personalar.models.tensor_files import read_tensors

        state = backend.transformer.state_dict()
        for stored, tensor in read_tensors(self.base):
            yield stored, state.get(self.network_name(stored) or "", tensor)

    def tokenizer_files(self) -> list[Path]:
        """Return the files of the text tokenizer."""
        return [self.tokenizer]

    def network_name(self, stored: str) -> str | None:
        """Return the transformer's name of a stored tensor; None: it belongs to another part."""
        raise NotImplementedError

    def build(self, attention: str) -> nn.Module:
        """Return the transformer without weights, on torch's default device."""
        raise NotImplementedError

    def tensors(
        self, attention: str, *, dtype: torch.dtype, device: torch.device
    ) -> tuple[Iterator[tuple[str, Tensor]], dict[str, torch.Size]]:
        """Return the transformer's tensors by its own names, and their shapes."""
        raise NotImplementedError

    def backend(self, transformer: nn.Module, device: torch.device) -> Any:
        """Return the base around a filled `transformer`."""
        raise NotImplementedError
