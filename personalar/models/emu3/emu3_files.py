"""The files of an Emu3 checkpoint, in BAAI's format or in that of transformers.

    BAAI          config.json, model*.safetensors, emu3.tiktoken, emu3_vision_tokens.txt
                  and the image tokenizer in a folder of its own: config.json, model.safetensors
    transformers  config.json with "vq_config", model*.safetensors of both, tokenizer.json

The layout comes from the configuration.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from personalar.config.fields import one_of
from personalar.config.model_config import ProtocolConfig
from personalar.models.checkpoint_folder import INDEX, shard_names, weight_files

if TYPE_CHECKING:  # torch is loaded with the model
    import torch
    from torch import Tensor

    from personalar.models.emu3.emu3_backend import Emu3Backend
    from personalar.models.network.language_model import LanguageModel
    from personalar.models.stored_base import BaseShape

SHARD_BYTES = 5_000_000_000
RANKS, VISION_TOKENS = "emu3.tiktoken", "emu3_vision_tokens.txt"
"""BAAI's two files of the text tokenizer: the pieces of words, and the names behind the others."""


@dataclass(frozen=True, kw_only=True)
class Emu3Files:
    """The places of one model's parts; see `stored_base.ModelFiles`."""

    base: Path
    """Folder of config.json and the transformer's weights."""
    vq: Path
    """Folder of the image tokenizer; `base` in transformers' format."""
    tokenizer: Path
    """A tokenizer.json, or an emu3.tiktoken with the list of names beside it."""
    layout: ProtocolConfig
    losses = ("image_tokens", "answer")
    nearest_problem = "its reserved ids are rows that no token ever used, so none of them means anything"

    def missing(self) -> list[str]:
        """Return the paths of the missing files."""
        folders = dict.fromkeys((self.base, self.vq))
        needed = [folder / name for folder in folders for name in ("config.json", *shard_names(folder))]
        return [str(file) for file in [*needed, *self._words()] if not file.is_file()]

    def weights(self) -> list[Path]:
        """Return every file that contains tensors, those of the transformer first."""
        return [file for folder in dict.fromkeys((self.base, self.vq)) for file in weight_files(folder)]

    def parts(self) -> dict[str, Path]:
        """Return the place of each part, by its name in plain words."""
        return {"transformer": self.base, "image tokenizer": self.vq, "text tokenizer": self.tokenizer}

    def shape(self, *, attention: str, images: int) -> BaseShape:
        """Return the numbers that decide memory, for `images` images decoded together."""
        from personalar.models.emu3.emu3_weights import network_numbers, vq_numbers
        from personalar.models.network.memory_shape import shape_of

        network, vq = network_numbers(self.base, attention=attention), vq_numbers(self.vq)
        side = self.layout.resolution // vq.downsample
        answer = 2 + len(f"{side}*{side}") + side * (side + 1) + 3  # BOI, size, IMG; rows; EOF, EOI, EOS
        return shape_of(network, vq, codes=(side, side), answer_tokens=answer, images=images)

    def load(self, *, dtype: torch.dtype, device: torch.device | str, attention: str) -> Emu3Backend:
        """Return the base, frozen and in evaluation mode; each tensor is cast to `dtype` as it is read."""
        import torch

        from personalar.models.cpu_kernels import use_fast_linears
        from personalar.models.emu3.emu3_weights import network_name, network_numbers
        from personalar.models.tensor_files import fill, read_shapes, read_tensors

        device = torch.device(device)
        with torch.device("meta"):
            transformer = network_numbers(self.base, attention=attention).build()
        tensors, shapes = read_tensors(self.base, network_name), read_shapes(self.base, network_name)
        fill(transformer, tensors, shapes, where=self.base, published=True, dtype=dtype, device=device)
        use_fast_linears(transformer)
        return self._backend(transformer, device)

    def load_sharded(
        self,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        attention: str,
        changed: Mapping[str, Tensor],
    ) -> Emu3Backend:
        """Return the base with its weights sharded, within DeepSpeed's sharding context."""
        import torch

        from personalar.models.emu3.emu3_weights import network_name, network_numbers
        from personalar.models.sharding import ordinary_modules
        from personalar.models.tensor_files import fill_sharded, read_shapes, read_tensors

        transformer = network_numbers(self.base, attention=attention).build()
        tensors, shapes = read_tensors(self.base, network_name), read_shapes(self.base, network_name)
        fill_sharded(
            transformer, tensors, shapes, where=self.base, published=True, dtype=dtype, changed=changed
        )
        with ordinary_modules():
            return self._backend(transformer, torch.device(device))

    def reserved_ids(self) -> Sequence[int]:
        """Return the ids that no text uses; no weight is read."""
        from personalar.models.emu3.emu3_vocabulary import Emu3Vocabulary

        return Emu3Vocabulary.from_file(self.tokenizer).concept_ids

    def checkpoint_form(self, backend: Emu3Backend) -> str:
        """Return in words the form that `write_checkpoint` writes, and the programs that read it."""
        return "every tensor of the base under its own name, in safetensors; what reads the base reads it"

    def write_checkpoint(self, backend: Emu3Backend, folder: Path, *, dtype: torch.dtype) -> Path:
        """Write the base's tensors, what was learned in place of its own, and the other files beside them.

        An image tokenizer in a folder of its own is not copied.
        """
        from personalar.models.tensor_files import write_shards

        folder.mkdir(parents=True, exist_ok=True)
        beside = [file for file in self.base.glob("*.json") if file.name != INDEX]
        for file in dict.fromkeys([*beside, *self._words()]):
            shutil.copyfile(file, folder / file.name)
        write_shards(folder, self._learned(backend), dtype=dtype, shard_bytes=SHARD_BYTES)
        return folder

    def _learned(self, backend: Emu3Backend) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor of the base by its stored name, the transformer's as `backend` has them."""
        from personalar.models.emu3.emu3_weights import network_name
        from personalar.models.tensor_files import read_tensors

        state = backend.transformer.state_dict()
        for stored, tensor in read_tensors(self.base):
            yield stored, state.get(network_name(stored) or "", tensor)

    def _words(self) -> list[Path]:
        """Return the files of the text tokenizer."""
        names = [] if self.tokenizer.suffix == ".json" else [self.tokenizer.with_name(VISION_TOKENS)]
        return [self.tokenizer, *names]

    def _backend(self, transformer: LanguageModel, device: torch.device) -> Emu3Backend:
        from personalar.models.emu3.emu3_backend import Emu3Backend
        from personalar.models.emu3.emu3_vocabulary import Emu3Vocabulary
        from personalar.models.emu3.emu3_weights import load_vq

        vocabulary = Emu3Vocabulary.from_file(self.tokenizer)
        vocabulary.check_ids(self.layout.ids)
        vq = load_vq(self.vq, bare=self.vq != self.base, device=device)
        backend = Emu3Backend(transformer=transformer, vq=vq, vocabulary=vocabulary, layout=self.layout)
        return backend.eval().requires_grad_(False)


def open_folder(
    path: Path,
    *,
    vq: Path | None = None,
    tokenizer: Path | None = None,
    layout: ProtocolConfig | None = None,
) -> Emu3Files:
    """Find the parts of a model in the folder `path`; nothing is loaded.

    Args:
        vq: folder of the image tokenizer; by default `path`/vq if there is one, or else `path`.
        tokenizer: the tokenizer.json or emu3.tiktoken, where it is not in `path`.
        layout: needed: no file of the checkpoint says it.

    Raises:
        FileNotFoundError: when there is no such folder.
        ValueError: when the layout is not one of this family.
    """
    for folder, setting in ((path, "path"), (vq or path, "vq_path")):
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder at {folder}; set model.{setting} to one with config.json")
    if layout is None:
        raise ValueError(
            "an Emu3 checkpoint does not say its layout: choose model=emu3_gen or model=emu3_stage1_512"
        )
    one_of("layout.buckets", layout.buckets, ("area",))
    one_of("layout.structure", layout.structure, ("rows",))
    one_of("layout.unconditional", layout.unconditional, ("negative", "bos"))
    one_of("layout.resize", layout.resize, ("area",))
    if layout.unconditional == "negative" and not layout.negative_prompt:
        raise ValueError("layout.unconditional=negative needs layout.negative_prompt; or choose bos")
    apart = path / "vq"
    words = path / RANKS if (path / RANKS).is_file() else path / "tokenizer.json"
    return Emu3Files(
        base=path,
        vq=vq or (apart if apart.is_dir() else path),
        tokenizer=tokenizer or words,
        layout=layout,
    )
