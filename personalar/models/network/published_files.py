"""Loading and export of checkpoints in the published formats, for all families.

A family implements the methods at the end of `PublishedFiles`. torch is imported inside of functions, because
this module is imported to locate files, before the model is loaded.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from personalar.config.model_config import ProtocolConfig
from personalar.models.checkpoint_folder import INDEX, OLD_INDEX, read_json, shard_names, write_json

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from personalar.models.network.vq import VQConfig
    from personalar.models.stored_base import BaseShape


@dataclass(frozen=True, kw_only=True)
class PublishedFiles:
    """Paths of the parts of one model; see `stored_base.ModelFiles`."""

    base: Path
    """Folder of config.json and the transformer's weights."""
    tokenizer: Path
    """The text tokenizer."""
    vq: Path
    """Folder of the image tokenizer; `base` if it is part of the checkpoint."""
    layout: ProtocolConfig
    published: bool = True
    """Whether unknown tensors are ignored with a warning; in this package's own format they are an error."""
    checkpoint_form = (
        "safetensors with the tensor names of the base, and its JSON and tokenizer files; its code and an "
        "image tokenizer in a folder of its own are not copied"
    )

    def missing(self) -> list[str]:
        files = [*self._files(), *self.tokenizer_files()]
        return [str(file) for file in files if not file.is_file()]

    def weights(self) -> list[Path]:
        return [file for file in self._files() if file.suffix != ".json"]

    def parts(self) -> dict[str, Path]:
        return {"transformer": self.base, "image tokenizer": self.vq, "text tokenizer": self.tokenizer}

    def _files(self) -> list[Path]:
        return [file for folder in dict.fromkeys((self.base, self.vq)) for file in self.files_of(folder)]

    def files_of(self, folder: Path) -> list[Path]:
        """Return the config.json and the weight files that `folder` should contain; they may be missing."""
        return [folder / name for name in ("config.json", *shard_names(folder))]

    def shape(self, *, images: int) -> BaseShape:
        import torch

        from personalar.models.stored_base import BaseShape

        network, vq = self.numbers()
        side = self.layout.resolution // vq.downsample
        if side < 1:
            raise ValueError(
                f"one code of the image tokenizer covers {vq.downsample} x {vq.downsample} pixels, more than "
                "an image of this base has: use the tokenizer that belongs to it"
            )
        with torch.device("meta"):
            vq_bytes = sum(parameter.nbytes for parameter in vq.build().parameters())
        return BaseShape(
            network=network,
            codes=side * side,
            answer_tokens=self.answer_tokens(side),
            num_codes=vq.num_embeddings,
            vq_bytes=vq_bytes,
            decode_bytes=vq.decode_bytes(images, (side * vq.downsample) ** 2),
        )

    def load(self, *, dtype: torch.dtype, device: torch.device | str) -> Any:
        """Return the base, frozen and in evaluation mode; the image tokenizer is in float32.

        Each tensor is cast to `dtype` when it is read, so float32 files need no second copy in memory.
        """
        import torch

        from personalar.models.cpu_kernels import use_fast_linears
        from personalar.models.tensor_files import fill

        device = torch.device(device)
        with torch.device("meta"):
            transformer = self.numbers()[0].build()
        # Before the weights, so that a wrong tokenizer is an error before 34 GB are read.
        backend = self.backend(transformer, device)
        tensors = self.tensors(transformer, dtype=dtype, device=device)
        fill(transformer, tensors, where=self.base, published=self.published, dtype=dtype, device=device)
        use_fast_linears(transformer)
        return backend.eval().requires_grad_(False)

    def write_checkpoint(self, backend: Any, folder: Path, *, dtype: torch.dtype) -> Path:
        """Write the tensors of the base with the learned weights, and its JSON and tokenizer files.

        An image tokenizer in a separate folder is not copied.

        Args:
            dtype: precision of the transformer; other parts keep that of the base.
        """
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
        write_json(folder / "config.json", config | self.exported_config(backend, dtype))
        write_shards(folder, self.exported_tensors(backend, dtype))
        return folder

    def exported_config(self, backend: Any, dtype: torch.dtype) -> dict[str, Any]:
        """Return the values of an exported config.json that replace those of the base."""
        return {}

    def exported_tensors(self, backend: Any, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
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

    def numbers(self) -> tuple[Any, VQConfig]:
        """Return the sizes of the transformer and of the image tokenizer, without reading tensors."""
        raise NotImplementedError

    def answer_tokens(self, side: int) -> int:
        """Return the number of ids of a picture of `side` x `side` codes in a training example."""
        raise NotImplementedError

    def tensors(self, transformer: Any, *, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """Return the tensors of `transformer`, which has no weights yet, by name."""
        from personalar.models.tensor_files import read_tensors

        return dict(read_tensors(self.base, self.network_name))

    def backend(self, transformer: Any, device: torch.device) -> Any:
        """Return the base with a `transformer` whose weights are loaded afterwards."""
        raise NotImplementedError
