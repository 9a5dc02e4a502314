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

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from personalar.config.fields import one_of
from personalar.config.model_config import ProtocolConfig
from personalar.core.files import fits
from personalar.models.checkpoint_folder import read_config, read_json, write_json
from personalar.models.network.published_files import PublishedFiles

if TYPE_CHECKING:  # torch is loaded with the model
    import torch
    from torch import Tensor

    from personalar.models.chameleon.backend import ChameleonBackend
    from personalar.models.chameleon.transformer import ChameleonTransformer, TransformerConfig
    from personalar.models.network.vq import VQConfig

VQ_CHECKPOINT = "vqgan.ckpt"
LAYOUT = {"grid_px": int, "resolution": int, "ids": {"*": int}, "known_words": ([str], None)}
"""Schema of protocol.json, see `files.fits`; all other values are text. `${...}` in them is not resolved."""
VQ_PREFIX = "model.vqmodel."
"""Prefix of the image tokenizer's tensors in a checkpoint that contains it."""
VQ_FOLDERS = ("vq", "original_tokenizers", "tokenizer", ".")  # places in upstream repositories


@dataclass(frozen=True, kw_only=True)
class ChameleonFiles(PublishedFiles):
    """Paths of the parts of one model; see `stored_base.ModelFiles`.

    `vq` is a folder with vqgan.ckpt, or with config.json and safetensors.
    """

    losses = ("image_tokens", "answer")
    checkpoint_form = (
        "safetensors with a query and a key norm for every head, which transformers' "
        "ChameleonForConditionalGeneration and Lumina-mGPT's own code read; the image tokenizer is in vq/"
    )

    def files_of(self, folder: Path) -> list[Path]:
        """Return the files that `folder` should contain; vqgan.ckpt needs no others."""
        checkpoint = folder / VQ_CHECKPOINT
        if not checkpoint.is_file():
            return super().files_of(folder)
        return [*super().files_of(folder), checkpoint] if folder == self.base else [checkpoint]

    def answer_tokens(self, side: int) -> int:
        # BOI, EOI and SEP, and in rows two sizes and a NEWLINE per row of codes.
        return side * side + 3 + (side + 2 if self.layout.structure == "rows" else 0)

    def reserved_ids(self) -> Sequence[int]:
        from personalar.models.chameleon.tokenizer import Tokenizer

        return Tokenizer.from_file(self.tokenizer).concept_ids

    def write_checkpoint(self, backend: ChameleonBackend, folder: Path, *, dtype: torch.dtype) -> Path:
        """Write the whole `backend`; with protocol.json and vq/ the folder can be used as `model.path`."""
        import torch

        from personalar.models.tensor_files import write_tensors

        write_json(folder / "protocol.json", asdict(self.layout))
        write_json(folder / "vq" / "config.json", backend.vq.config.to_hf())
        write_tensors(folder / "vq", backend.vq.state_dict(), dtype=torch.float32)
        return super().write_checkpoint(backend, folder, dtype=dtype)

    def exported_config(self, backend: ChameleonBackend, dtype: torch.dtype) -> dict[str, Any]:
        from personalar.models.chameleon.serialization import hf_config

        return hf_config(backend.transformer.config, backend.tokenizer, backend.vq.config, dtype=dtype)

    def exported_tensors(self, backend: ChameleonBackend, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor) of the transformer in `dtype`, and of the image encoder in float32."""
        for name, tensor in backend.transformer.state_dict().items():
            yield name, tensor.to(dtype)
        # transformers' class has an encoder but no decoder, and initialises missing tensors at random.
        for name, tensor in backend.vq.state_dict().items():
            if "decoder." not in name:
                yield VQ_PREFIX + name, tensor

    def network_name(self, stored: str) -> str | None:
        return None if stored.startswith(VQ_PREFIX) else stored

    def tensors(
        self, transformer: ChameleonTransformer, *, dtype: torch.dtype, device: torch.device
    ) -> dict[str, Tensor]:
        """Return the tensors of the transformer by name, with query and key norms for every head."""
        from personalar.models.chameleon.transformer import expand_norm

        stored = super().tensors(transformer, dtype=dtype, device=device)
        return {name: expand_norm(name, tensor, transformer.config) for name, tensor in stored.items()}

    def backend(self, transformer: ChameleonTransformer, device: torch.device) -> ChameleonBackend:
        from personalar.models.chameleon.backend import ChameleonBackend
        from personalar.models.chameleon.tokenizer import Tokenizer
        from personalar.models.chameleon.vq_checkpoint import load_vq

        tokenizer, config = Tokenizer.from_file(self.tokenizer), self.base / "config.json"
        names = read_json(config).get("vocabulary_map") or {}
        if not fits(names, {"*": int}):
            raise ValueError(f"{config} is damaged (vocabulary_map): copy it again")
        # A tokenizer with the image codes at other ids would load, and decode to wrong pictures.
        codes = {n: i for n, i in names.items() if n.startswith("IMGIMG")}
        tokenizer.check_ids(self.layout.ids | codes)
        vq = load_vq(self.vq, device=device)
        return ChameleonBackend(transformer=transformer, vq=vq, tokenizer=tokenizer, layout=self.layout)

    def numbers(self) -> tuple[TransformerConfig, VQConfig]:
        from personalar.models.chameleon.transformer import TransformerConfig
        from personalar.models.chameleon.vq_checkpoint import vq_config

        return read_config(self.base / "config.json", TransformerConfig.from_hf), vq_config(self.vq)


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
