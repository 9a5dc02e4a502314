"""Loading, sharded loading and export of published checkpoints; Emu3 and Janus share it.

A family implements the methods at the end of `PublishedFiles`. torch is imported inside of functions, because
this module is imported to locate files, before the model is loaded.
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


@dataclass(frozen=True, kw_only=True)
class PublishedFiles:
    """Paths of the parts of one model; see `stored_base.ModelFiles`."""

    base: Path
    """Folder of config.json and the transformer's weights."""
    tokenizer: Path
    """The text tokenizer."""
    layout: ProtocolConfig

    def load(self, *, dtype: torch.dtype, device: torch.device | str) -> Any:
        """Return the base, frozen and in evaluation mode; the image tokenizer is in float32.

        Each tensor is cast to `dtype` when it is read, so float32 files need no second copy in memory.
        """
        import torch

        from personalar.models.cpu_kernels import use_fast_linears
        from personalar.models.tensor_files import fill

        device = torch.device(device)
        with torch.device("meta"):
            transformer = self.build()
        # Before the weights, so that a wrong tokenizer is an error before 34 GB are read.
        backend = self.backend(transformer, device)
        tensors, shapes = self.tensors(dtype=dtype, device=device)
        # published=True: the other parts of the checkpoint are unknown here.
        fill(transformer, tensors, shapes, where=self.base, published=True, dtype=dtype, device=device)
        use_fast_linears(transformer)
        return backend.eval().requires_grad_(False)

    def load_sharded(
        self, *, dtype: torch.dtype, device: torch.device | str, changed: Mapping[str, Tensor]
    ) -> Any:
        """Return the base with sharded weights; call it within DeepSpeed's sharding context.

        Args:
            changed: weights by name that replace those of the files (from an earlier stage).
        """
        import torch

        from personalar.models.sharding import ordinary_modules
        from personalar.models.tensor_files import fill_sharded

        device = torch.device(device)
        transformer = self.build()
        with ordinary_modules():  # Janus computes the embeddings of codes with a module
            backend = self.backend(transformer, device)
            tensors, shapes = self.tensors(dtype=dtype, device=device)
        fill_sharded(
            transformer, tensors, shapes, where=self.base, published=True, dtype=dtype, changed=changed
        )
        return backend.eval().requires_grad_(False)

    def checkpoint_form(self, backend: Any) -> str:
        """Return a message with the format that `write_checkpoint` writes, and the programs that read it."""
        return (
            "safetensors with the tensor names of the base, and its JSON and tokenizer files; its code and "
            "an image tokenizer in a folder of its own are not copied"
        )

    def write_checkpoint(self, backend: Any, folder: Path, *, dtype: torch.dtype) -> Path:
        """Write the tensors of the base with the learned weights, and its JSON and tokenizer files.

        An image tokenizer in a separate folder is not copied.

        Args:
            dtype: precision of the transformer; other parts keep that of the base.
        """
        from personalar.models.checkpoint_folder import INDEX, OLD_INDEX, read_json, write_json
        from personalar.models.tensor_files import write_shards

        folder.mkdir(parents=True, exist_ok=True)
        for file in self.base.glob("*.json"):
            if file.name not in (INDEX, OLD_INDEX):  # they list the old shards; write_shards writes a new one
                shutil.copyfile(file, folder / file.name)
        for file in self.tokenizer_files():
            shutil.copyfile(file, folder / file.name)
        config = read_json(self.base / "config.json")
        for section in (config, config.get("text_config") or {}, config.get("language_config") or {}):
            written = dict.fromkeys(
                section.keys() & {"dtype", "torch_dtype"}, str(dtype).removeprefix("torch.")
            )
            section.update(written)
        write_json(folder / "config.json", config)
        write_shards(folder, self._merged(backend, dtype))
        return folder

    def _merged(self, backend: Any, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Yield (stored name, tensor) of the base; the transformer's are those of `backend`, in `dtype`."""
        from personalar.models.tensor_files import read_tensors

        state = backend.transformer.state_dict()
        # Other parts are copied from the base: bfloat16 would change the codes of the image tokenizer.
        for stored, tensor in read_tensors(self.base):
            learned = state.get(self.network_name(stored) or "")
            yield stored, tensor if learned is None else learned.to(dtype)

    def tokenizer_files(self) -> list[Path]:
        """Return the files of the text tokenizer."""
        return [self.tokenizer]

    def network_name(self, stored: str) -> str | None:
        """Return the transformer's name of a stored tensor; None if it belongs to another part."""
        raise NotImplementedError

    def build(self) -> nn.Module:
        """Return the transformer without weights, on torch's default device."""
        raise NotImplementedError

    def tensors(
        self, *, dtype: torch.dtype, device: torch.device
    ) -> tuple[Iterator[tuple[str, Tensor]], dict[str, torch.Size]]:
        """Return the (name, tensor) pairs of the transformer, and their shapes by name."""
        raise NotImplementedError

    def backend(self, transformer: nn.Module, device: torch.device) -> Any:
        """Return the base with a `transformer` whose weights are loaded afterwards."""
        raise NotImplementedError
