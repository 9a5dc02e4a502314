"""The files of a Chameleon model. They are located without reading any tensor.

Two formats are supported. The format of this package:

    protocol.json                              settings of the sequence layout (`ProtocolConfig`)
    base/{config.json, tokenizer.json}         as transformers writes them for Chameleon
    base/model.safetensors                     or shards with an index
    vq/{config.json, model.safetensors}        image tokenizer, encoder and decoder

And a Hugging Face checkpoint, with config.json at the top of the folder. Its image tokenizer is in the shards
(`model.vqmodel.*`), in a vqgan.ckpt in one of `VQ_FOLDERS`, or in another folder. tokenizer.json may be in
another folder too. The layout is a setting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from personalar.config.fields import one_of
from personalar.config.model_config import ProtocolConfig
from personalar.core.files import fits
from personalar.models.checkpoint_folder import read_config, read_json, shard_names, weight_files

if TYPE_CHECKING:  # torch is loaded with the model
    import torch
    from torch import Tensor

    from personalar.models.chameleon.backend import ChameleonBackend
    from personalar.models.stored_base import BaseShape

VQ_CHECKPOINT, VQ_NUMBERS = "vqgan.ckpt", "vqgan.yaml"
LAYOUT = {"grid_px": int, "resolution": int, "ids": {"*": int}, "known_words": ([str], None)}
"""Schema of protocol.json, see `files.fits`; all other values are text. `${...}` in them is not resolved."""
VQ_PREFIX = "model.vqmodel."
"""Prefix of the image tokenizer's tensors in a checkpoint that contains it."""
VQ_FOLDERS = ("vq", "original_tokenizers", "tokenizer", ".")  # places in upstream repositories


@dataclass(frozen=True, kw_only=True)
class ChameleonFiles:
    """Paths of the parts of one model; see `stored_base.ModelFiles`."""

    base: Path
    """Folder of config.json and the transformer's safetensors."""
    tokenizer: Path
    """The tokenizer.json."""
    vq: Path
    """Folder of the image tokenizer: vqgan.ckpt, or config.json and safetensors; may be `base`."""
    layout: ProtocolConfig
    published: bool
    """Whether `base` is a Hugging Face checkpoint. Unknown tensors in it are ignored."""
    losses = ("image_tokens", "answer")

    def missing(self) -> list[str]:
        """Return the paths of the missing files."""
        needed = [self.base / "config.json", self.tokenizer]
        needed += [self.base / name for name in shard_names(self.base)]
        # vqgan.ckpt is complete by itself: its yaml has defaults.
        if self.vq != self.base and not (self.vq / VQ_CHECKPOINT).is_file():
            needed += [self.vq / name for name in ("config.json", *shard_names(self.vq))]
        return [str(file) for file in needed if not file.is_file()]

    def weights(self) -> list[Path]:
        """Return all files with tensors, those of the transformer first."""
        files = weight_files(self.base)
        if (self.vq / VQ_CHECKPOINT).is_file():
            return [*files, self.vq / VQ_CHECKPOINT]
        return files if self.vq == self.base else [*files, *weight_files(self.vq)]

    def parts(self) -> dict[str, Path]:
        """Return {part in plain words: its path}."""
        return {"transformer": self.base, "image tokenizer": self.vq, "text tokenizer": self.tokenizer}

    def shape(self, *, images: int) -> BaseShape:
        """Return the sizes for an estimate of memory; `images` images are decoded together."""
        from personalar.models.chameleon.transformer import TransformerConfig
        from personalar.models.chameleon.vq_checkpoint import vq_config
        from personalar.models.network.memory_shape import shape_of

        network = read_config(self.base / "config.json", TransformerConfig.from_hf)
        vq = vq_config(self.vq)
        side = self.layout.resolution // vq.downsample
        # BOI, EOI and SEP, and in rows two sizes and a NEWLINE per row of codes.
        answer = side * side + 3 + (side + 2 if self.layout.structure == "rows" else 0)
        return shape_of(network, vq, codes=(side, side), answer_tokens=answer, images=images)

    def load(self, *, dtype: torch.dtype, device: torch.device | str) -> ChameleonBackend:
        """Return the base; see `serialization.load_backend`."""
        from personalar.models.chameleon.serialization import load_backend

        return load_backend(self, dtype=dtype, device=device)

    def reserved_ids(self) -> Sequence[int]:
        """Return the ids that no text uses, without reading weights."""
        from personalar.models.chameleon.tokenizer import Tokenizer

        return Tokenizer.from_file(self.tokenizer).concept_ids

    def checkpoint_form(self, backend: ChameleonBackend) -> str:
        """Return a message with the format that `write_checkpoint` writes, and the programs that read it."""
        from personalar.models.chameleon.checkpoint_export import norm_words, shared_norm_rows

        of_base, rows = shared_norm_rows(self.base, backend.transformer.state_dict())
        return norm_words(of_base, rows, backend.transformer.config)

    def write_checkpoint(self, backend: ChameleonBackend, folder: Path, *, dtype: torch.dtype) -> Path:
        """Write the whole `backend`, loaded from these files, for other programs; return `folder`."""
        from personalar.models.chameleon.checkpoint_export import export_backend, shared_norm_rows

        _, rows = shared_norm_rows(self.base, backend.transformer.state_dict())
        return export_backend(backend, folder, dtype=dtype, norm_rows=rows)

    def load_sharded(
        self, *, dtype: torch.dtype, device: torch.device | str, changed: Mapping[str, Tensor]
    ) -> ChameleonBackend:
        """Return the base sharded by DeepSpeed; see `serialization.load_sharded_backend`."""
        from personalar.models.chameleon.serialization import load_sharded_backend

        return load_sharded_backend(self, dtype=dtype, device=device, changed=changed)


def open_folder(
    path: Path,
    *,
    vq: Path | None = None,
    tokenizer: Path | None = None,
    layout: ProtocolConfig | None = None,
) -> ChameleonFiles:
    """Locate the parts of a model in the folder `path`; nothing is loaded.

    Args:
        vq: folder of the image tokenizer, or its vqgan.ckpt, if it is not in `path`.
        tokenizer: the tokenizer.json, if it is not in `path`.
        layout: by default that of `protocol.json` in `path`.

    Raises:
        FileNotFoundError: the folder does not exist, or there is neither `layout` nor protocol.json.
        ValueError: the layout is not one of this family.
    """
    if not path.is_dir():
        raise FileNotFoundError(
            f"no model folder at {path}; set model.path to a folder with base/ and vq/, or to a Hugging Face "
            "checkpoint"
        )
    layout = read_layout(path / "protocol.json") if layout is None else layout
    check_layout(layout)
    if vq is not None and not vq.exists():
        raise FileNotFoundError(
            f"no image tokenizer at {vq}; set model.vq_path to a folder with {VQ_CHECKPOINT} or safetensors"
        )
    # Our own format has config.json in base/.
    published = (path / "config.json").is_file()
    base = path if published else path / "base"
    return ChameleonFiles(
        base=base,
        tokenizer=tokenizer or base / "tokenizer.json",
        vq=find_vq(vq or (path if published else path / "vq")),
        layout=layout,
        published=published,
    )


def check_layout(config: ProtocolConfig) -> None:
    """Raise ValueError if `config` is not a layout of this family."""
    # `ProtocolConfig` allows the values of all families; these are the ones that this family supports.
    one_of("layout.structure", config.structure, ("rows", "flat"))
    one_of("layout.unconditional", config.unconditional, ("image", "separator", "bos"))
    one_of("layout.resize", config.resize, ("halving", "lanczos"))
    if config.structure == "flat" and config.buckets != "square":
        raise ValueError("layout.structure=flat has no size tokens: it needs layout.buckets=square")


def network_name(stored: str) -> str | None:
    """Return the transformer's name of a stored tensor; None if it belongs to the image tokenizer."""
    return None if stored.startswith(VQ_PREFIX) else stored


def vq_name(stored: str) -> str | None:
    """Return the image tokenizer's name of a stored tensor; None if it belongs to the transformer."""
    return stored.removeprefix(VQ_PREFIX) if stored.startswith(VQ_PREFIX) else None


def find_vq(path: Path) -> Path:
    """Return the folder of the image tokenizer in `path`; `path` itself if it has no separate one."""
    if path.name == VQ_CHECKPOINT:
        return path.parent
    for name in VQ_FOLDERS:
        if (path / name / VQ_CHECKPOINT).is_file() or (name == "vq" and (path / name).is_dir()):
            return path / name
    return path


def read_layout(path: Path) -> ProtocolConfig:
    """Read a `protocol.json`.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it has unknown keys, or values of a wrong type.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing and the configuration has no model.layout; for a published checkpoint choose "
            "its model=..., such as model=lumina_mgpt_7b_512"
        )
    # Not with OmegaConf, which would resolve ${...}, such as environment variables.
    values = read_json(path)
    unknown = sorted(set(values) - set(ProtocolConfig.__dataclass_fields__))
    if unknown:
        allowed = sorted(ProtocolConfig.__dataclass_fields__)
        raise ValueError(f"{path} has unknown keys {unknown}; allowed are {allowed}")
    wrong = [name for name, value in values.items() if not fits(value, LAYOUT.get(name, str))]
    if wrong:
        raise ValueError(f"{path} is damaged ({', '.join(wrong)}: a value of the wrong type)")
    return ProtocolConfig(**values)
