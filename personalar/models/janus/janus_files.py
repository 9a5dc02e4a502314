"""The files of a Janus-Pro checkpoint: one folder, in DeepSeek's format or in that of transformers.

    config.json, tokenizer.json      the tokenizer may be elsewhere
    pytorch_model*.bin               DeepSeek's; read as tensors alone
    model*.safetensors               transformers'

The image tokenizer is in the weights; the layout comes from the configuration.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from personalar.config.fields import one_of
from personalar.config.model_config import ProtocolConfig
from personalar.models.checkpoint_folder import shard_names, weight_files

if TYPE_CHECKING:  # torch is loaded with the model
    import torch
    from torch import Tensor

    from personalar.models.janus.janus_backend import JanusBackend
    from personalar.models.janus.janus_network import JanusConfig, JanusTransformer
    from personalar.models.network.vq import VQConfig
    from personalar.models.stored_base import BaseShape

SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True, kw_only=True)
class JanusFiles:
    """The places of one model's parts; see `stored_base.ModelFiles`."""

    base: Path
    """Folder of config.json and the weights."""
    tokenizer: Path
    """The tokenizer.json."""
    layout: ProtocolConfig
    losses = ("image_tokens",)
    nearest_problem = "its reserved ids are rows that no token ever used, so none of them means anything"

    def missing(self) -> list[str]:
        """Return the paths of the missing files."""
        needed = [self.base / "config.json", self.tokenizer]
        needed += [self.base / name for name in shard_names(self.base)]
        return [str(file) for file in needed if not file.is_file()]

    def weights(self) -> list[Path]:
        """Return every file that contains tensors."""
        return weight_files(self.base)

    def parts(self) -> dict[str, Path]:
        """Return the place of each part, by its name in plain words."""
        return {"transformer": self.base, "image tokenizer": self.base, "text tokenizer": self.tokenizer}

    def shape(self, *, attention: str, images: int) -> BaseShape:
        """Return the numbers that decide memory, for `images` images decoded together."""
        from personalar.models.network.memory_shape import shape_of

        network, vq = self._numbers(attention)
        side = self.layout.resolution // vq.downsample
        return shape_of(network, vq, codes=(side, side), answer_tokens=1 + side * side, images=images)

    def load(self, *, dtype: torch.dtype, device: torch.device | str, attention: str) -> JanusBackend:
        """Return the base, frozen and in evaluation mode; the image tokenizer is in float32."""
        import torch

        from personalar.models.cpu_kernels import use_fast_linears
        from personalar.models.janus.janus_network import JanusTransformer
        from personalar.models.janus.janus_weights import network_tensors
        from personalar.models.tensor_files import fill

        device = torch.device(device)
        numbers, vq = self._numbers(attention)
        with torch.device("meta"):
            transformer = JanusTransformer(numbers)
        tensors, shapes = network_tensors(self.base, numbers, dtype=dtype, device=device)
        fill(transformer, tensors, shapes, where=self.base, published=True, dtype=dtype, device=device)
        use_fast_linears(transformer)
        return self._backend(transformer, vq, device)

    def load_sharded(
        self,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        attention: str,
        changed: Mapping[str, Tensor],
    ) -> JanusBackend:
        """Return the base with its weights sharded, within DeepSpeed's sharding context."""
        import torch

        from personalar.models.janus.janus_network import JanusTransformer
        from personalar.models.janus.janus_weights import network_tensors
        from personalar.models.sharding import ordinary_modules
        from personalar.models.tensor_files import fill_sharded

        device = torch.device(device)
        numbers, vq = self._numbers(attention)
        transformer = JanusTransformer(numbers)
        with ordinary_modules():
            tensors, shapes = network_tensors(self.base, numbers, dtype=dtype, device=device)
        fill_sharded(
            transformer, tensors, shapes, where=self.base, published=True, dtype=dtype, changed=changed
        )
        with ordinary_modules():
            return self._backend(transformer, vq, device)

    def reserved_ids(self) -> Sequence[int]:
        """Return the ids that no text uses; no weight is read."""
        from personalar.models.janus.vocabulary import JanusVocabulary

        return JanusVocabulary.from_file(self.tokenizer).unnamed_ids(self._numbers("sdpa")[0].vocab_size)

    def checkpoint_form(self, backend: JanusBackend) -> str:
        """Return in words the form that `write_checkpoint` writes, and the programs that read it."""
        return "every tensor of the base under its own name, in safetensors; what reads the base reads it"

    def write_checkpoint(self, backend: JanusBackend, folder: Path, *, dtype: torch.dtype) -> Path:
        """Write the base's tensors, what was learned in place of its own, and the json files beside them."""
        from personalar.models.checkpoint_folder import INDEX, OLD_INDEX
        from personalar.models.tensor_files import write_shards

        folder.mkdir(parents=True, exist_ok=True)
        for file in self.base.glob("*.json"):
            if file.name not in (INDEX, OLD_INDEX, self.tokenizer.name):
                shutil.copyfile(file, folder / file.name)
        shutil.copyfile(self.tokenizer, folder / "tokenizer.json")
        write_shards(folder, self._learned(backend), dtype=dtype, shard_bytes=SHARD_BYTES)
        return folder

    def _learned(self, backend: JanusBackend) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor of the base by its stored name, the transformer's as `backend` has them."""
        from personalar.models.janus.janus_weights import network_name
        from personalar.models.tensor_files import read_tensors

        state = backend.transformer.state_dict()
        for stored, tensor in read_tensors(self.base):
            yield stored, state.get(network_name(stored) or "", tensor)

    def _numbers(self, attention: str) -> tuple[JanusConfig, VQConfig]:
        from personalar.models.janus.janus_weights import read_numbers

        path = self.base / "config.json"
        return read_numbers(path, resolution=self.layout.resolution, attention=attention)

    def _backend(self, transformer: JanusTransformer, numbers: VQConfig, device: Any) -> JanusBackend:
        from personalar.models.janus.janus_backend import JanusBackend
        from personalar.models.janus.janus_weights import load_vq
        from personalar.models.janus.vocabulary import JanusVocabulary

        vocabulary = JanusVocabulary.from_file(self.tokenizer)
        vocabulary.check_ids(self.layout.ids)
        vq = load_vq(self.base, numbers, device=device)
        backend = JanusBackend(transformer=transformer, vq=vq, vocabulary=vocabulary, layout=self.layout)
        return backend.eval().requires_grad_(False)


def open_folder(
    path: Path,
    *,
    vq: Path | None = None,
    tokenizer: Path | None = None,
    layout: ProtocolConfig | None = None,
) -> JanusFiles:
    """Find the parts of a model in the folder `path`; nothing is loaded.

    Args:
        vq: refused: the image tokenizer is in the checkpoint.
        tokenizer: the tokenizer.json, where it is not in `path`.
        layout: needed: no file of the checkpoint says it.

    Raises:
        FileNotFoundError: when there is no such folder.
        ValueError: when the layout is not one of this family.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"no model folder at {path}; set model.path to a Janus-Pro checkpoint")
    if vq is not None:
        raise ValueError(f"model.vq_path={vq} is refused: the image tokenizer of Janus is in its checkpoint")
    if layout is None:
        raise ValueError(
            "a Janus checkpoint does not say its layout: choose model=janus_pro_1b or model=janus_pro_7b"
        )
    one_of("layout.buckets", layout.buckets, ("square",))
    one_of("layout.structure", layout.structure, ("flat",))
    one_of("layout.unconditional", layout.unconditional, ("pad",))
    one_of("layout.resize", layout.resize, ("cover",))
    return JanusFiles(base=path, tokenizer=tokenizer or path / "tokenizer.json", layout=layout)
