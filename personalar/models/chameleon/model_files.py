"""The files of a base model, without reading a tensor: which there must be, where they lie, which lack.

Two kinds of folder are understood. Ours:

    protocol.json                              the sequence layout's numbers (`ProtocolConfig`)
    base/{config.json, tokenizer.json}         as transformers writes them for Chameleon
    base/model.safetensors                     or shards with an index
    vq/{config.json, model.safetensors}        the image tokenizer, encoder and decoder

and a Hugging Face checkpoint (config.json at its top), whose image tokenizer lies in it (`model.vqmodel.*`
tensors, or vqgan.ckpt in a folder of that name) or elsewhere, as may tokenizer.json, and whose layout the
configuration gives.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from personalar.config.layout import ProtocolConfig
from personalar.core.files import write_atomic

if TYPE_CHECKING:  # torch is loaded where a model is
    import torch
    from torch import Tensor

    from personalar.models.chameleon.backend import ChameleonBackend
    from personalar.models.stored_base import BaseShape

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
VQ_CHECKPOINT, VQ_NUMBERS = "vqgan.ckpt", "vqgan.yaml"
VQ_FOLDERS = ("vq", "original_tokenizers", "tokenizer", ".")  # where upstream repositories keep it


def read_json(path: Path) -> dict[str, Any]:
    """Read a json object. Raises FileNotFoundError or ValueError, naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; a model folder holds base/, vq/ and protocol.json")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid json: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, expected a json object")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a json object, atomically."""
    write_atomic(path, (json.dumps(value, indent=2) + "\n").encode())


def shard_names(folder: Path) -> list[str]:
    """Return the names of a Hugging Face folder's safetensors files: those of its index, or the one."""
    index = folder / INDEX
    if not index.is_file():
        return [WEIGHTS]
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(n, str) for n in shards.values()):
        raise ValueError(f"{index} has no weight_map: copy it again")
    return sorted(set(shards.values()))


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a Hugging Face folder, one or sharded. Raises FileNotFoundError."""
    files = [folder / name for name in shard_names(folder)]
    for file in files:
        if file.parent != folder or not file.is_file():
            raise FileNotFoundError(f"{file} is missing; {folder} needs {WEIGHTS} or all shards of {INDEX}")
    return files


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """Where the parts of one base model lie."""

    base: Path
    """Folder of config.json and the transformer's safetensors."""
    tokenizer: Path
    """The tokenizer.json."""
    vq: Path
    """Folder of the image tokenizer: vqgan.ckpt, or config.json and safetensors; may be `base`."""
    layout: ProtocolConfig
    published: bool
    """Whether `base` is a Hugging Face checkpoint, where unknown tensors are ignored, and not our format."""

    def missing(self) -> list[str]:
        """Return the files that lack, as paths."""
        needed = [self.base / "config.json", self.tokenizer]
        needed += [self.base / name for name in shard_names(self.base)]
        if self.vq != self.base and not (self.vq / VQ_CHECKPOINT).is_file():
            needed += [self.vq / name for name in ("config.json", *shard_names(self.vq))]
        return [str(file) for file in needed if not file.is_file()]

    def weights(self) -> list[Path]:
        """Return every file that holds tensors, those of the transformer first."""
        files = weight_files(self.base)
        if (self.vq / VQ_CHECKPOINT).is_file():
            return [*files, self.vq / VQ_CHECKPOINT]
        return files if self.vq == self.base else [*files, *weight_files(self.vq)]

    def parts(self) -> dict[str, Path]:
        """Return where each part of the base is, by its name in plain words."""
        return {"transformer": self.base, "image tokenizer": self.vq, "text tokenizer": self.tokenizer}

    def shape(self, *, attention: str, images: int) -> BaseShape:
        """Return the numbers that decide memory, for `images` images decoded together."""
        from personalar.models.chameleon.memory_shape import read_shape

        return read_shape(self, attention=attention, images=images)

    def load(self, *, dtype: torch.dtype, device: torch.device | str, attention: str) -> ChameleonBackend:
        """Return the base; see `serialization.load_backend`."""
        from personalar.models.chameleon.serialization import load_backend

        return load_backend(self, dtype=dtype, device=device, attention=attention)

    def reserved_ids(self) -> Sequence[int]:
        """Return the ids that no text uses; no weight is read."""
        from personalar.models.chameleon.tokenizer import Tokenizer

        return Tokenizer.from_file(self.tokenizer).concept_ids

    def checkpoint_form(self, backend: ChameleonBackend) -> str:
        """Return in words what form `write_checkpoint` writes, and which programs read it."""
        from personalar.models.chameleon.checkpoint_export import norm_form

        return norm_form(backend, self.base)

    def write_checkpoint(self, backend: ChameleonBackend, folder: Path, *, dtype: torch.dtype) -> Path:
        """Write all of `backend`, loaded from these files, for other programs; return `folder`."""
        from personalar.models.chameleon.checkpoint_export import export_backend, shared_norm_rows

        _, rows = shared_norm_rows(self.base, backend.transformer.state_dict())
        return export_backend(backend, folder, dtype=dtype, norm_rows=rows)

    def load_sharded(
        self,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        attention: str,
        changed: Mapping[str, Tensor],
    ) -> ChameleonBackend:
        """Return the base sharded by DeepSpeed; see `serialization.load_sharded_backend`."""
        from personalar.models.chameleon.serialization import load_sharded_backend

        return load_sharded_backend(self, dtype=dtype, device=device, attention=attention, changed=changed)


def open_folder(
    path: Path,
    *,
    vq: Path | None = None,
    tokenizer: Path | None = None,
    layout: ProtocolConfig | None = None,
) -> ModelFiles:
    """Find the parts of a base model in the folder `path`; nothing is loaded.

    Args:
        vq: the image tokenizer's folder or its vqgan.ckpt, where it is not in `path`.
        tokenizer: the tokenizer.json, where it is not in `path`.
        layout: by default what `protocol.json` in `path` says.

    Raises:
        FileNotFoundError: when there is no such folder, or nothing says the layout.
    """
    if not path.is_dir():
        raise FileNotFoundError(
            f"no model folder at {path}; set model.path to a folder with base/ and vq/, or to a Hugging Face "
            "checkpoint"
        )
    layout = read_layout(path / "protocol.json") if layout is None else layout
    if vq is not None and not vq.exists():
        raise FileNotFoundError(
            f"no image tokenizer at {vq}; set model.vq_path to a folder with {VQ_CHECKPOINT} or safetensors"
        )
    published = (path / "config.json").is_file()
    base = path if published else path / "base"
    return ModelFiles(
        base=base,
        tokenizer=tokenizer or base / TOKENIZER,
        vq=find_vq(vq or (path if published else path / "vq")),
        layout=layout,
        published=published,
    )


def find_vq(path: Path) -> Path:
    """Return the folder at or below `path` that holds an image tokenizer; `path` where none is apart."""
    if path.name == VQ_CHECKPOINT:
        return path.parent
    for name in VQ_FOLDERS:
        if (path / name / VQ_CHECKPOINT).is_file() or (name == "vq" and (path / name).is_dir()):
            return path / name
    return path


def read_layout(path: Path) -> ProtocolConfig:
    """Read a `protocol.json`. Raises FileNotFoundError or ValueError, naming the keys that are allowed."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing and the configuration has no model.layout; for a published checkpoint choose "
            "its model=..., such as model=lumina_mgpt_7b_512"
        )
    values = read_json(path)
    unknown = sorted(set(values) - set(ProtocolConfig.__dataclass_fields__))
    if unknown:
        allowed = sorted(ProtocolConfig.__dataclass_fields__)
        raise ValueError(f"{path} has unknown keys {unknown}; allowed are {allowed}")
    try:  # typed: a text in the place of a number is told here and not where it is first used
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ProtocolConfig), values))
    except OmegaConfBaseException as error:
        raise ValueError(f"{path} is damaged ({str(error).splitlines()[0]})") from error
