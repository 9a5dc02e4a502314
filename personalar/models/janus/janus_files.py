"""The files of a Janus-Pro checkpoint: one folder, in the format of DeepSeek or of transformers.

    config.json, tokenizer.json      the tokenizer may be in another folder
    pytorch_model*.bin               DeepSeek; read with weights_only=True
    model*.safetensors               transformers

The image tokenizer is part of the weights. The layout is a setting, because no file contains it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from personalar.config.fields import one_of
from personalar.config.model_config import ProtocolConfig
from personalar.models.network.published_files import PublishedFiles

if TYPE_CHECKING:  # torch is loaded with the model
    import torch
    from torch import Tensor

    from personalar.models.janus.janus_backend import JanusBackend
    from personalar.models.janus.janus_network import JanusConfig, JanusTransformer
    from personalar.models.network.vq import VQConfig


@dataclass(frozen=True, kw_only=True)
class JanusFiles(PublishedFiles):
    """Paths of the parts of one model; all weights are in `base`. See `stored_base.ModelFiles`."""

    losses = ("image_tokens",)

    def numbers(self) -> tuple[JanusConfig, VQConfig]:
        from personalar.models.janus.janus_weights import read_numbers

        return read_numbers(self.base / "config.json", resolution=self.layout.resolution)

    def answer_tokens(self, side: int) -> int:
        return 1 + side * side  # BOI and the codes

    def reserved_ids(self) -> Sequence[int]:
        from personalar.models.janus.vocabulary import JanusVocabulary

        return JanusVocabulary.from_file(self.tokenizer).unnamed_ids(self.numbers()[0].vocab_size)

    def network_name(self, stored: str) -> str | None:
        from personalar.models.janus.janus_weights import network_name

        return network_name(stored)

    def tensors(
        self, transformer: JanusTransformer, *, dtype: torch.dtype, device: torch.device
    ) -> dict[str, Tensor]:
        """Return the tensors of the transformer by name; the embeddings of codes are computed."""
        from personalar.models.janus.janus_weights import network_tensors

        return network_tensors(self.base, transformer.config, dtype=dtype, device=device)

    def backend(self, transformer: Any, device: torch.device) -> JanusBackend:
        from personalar.models.janus.janus_backend import JanusBackend
        from personalar.models.janus.janus_weights import load_vq
        from personalar.models.janus.vocabulary import JanusVocabulary

        tokenizer = JanusVocabulary.from_file(self.tokenizer)
        tokenizer.check_ids(self.layout.ids)
        vq = load_vq(self.base, self.numbers()[1], device=device)
        return JanusBackend(transformer=transformer, vq=vq, tokenizer=tokenizer, layout=self.layout)


def open_folder(
    path: Path,
    *,
    vq: Path | None = None,
    tokenizer: Path | None = None,
    layout: ProtocolConfig | None = None,
) -> JanusFiles:
    """Locate the parts of a model in the folder `path`; nothing is loaded.

    Args:
        vq: must be None, because the image tokenizer is in the checkpoint.
        tokenizer: the tokenizer.json, if it is not in `path`.
        layout: required, because the files of the checkpoint do not contain it.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: the layout is missing or not one of this family, or `vq` is given.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"no model folder at {path}; set model.path to a Janus-Pro checkpoint")
    if vq is not None:
        raise ValueError(
            f"model.vq_path={vq} cannot be used: the image tokenizer of Janus is in its checkpoint; omit it"
        )
    if layout is None:
        raise ValueError(
            "the files of a Janus checkpoint do not contain its layout: choose model=janus_pro_1b or "
            "model=janus_pro_7b"
        )
    # `ProtocolConfig` allows the values of all families; these are the ones that this family supports.
    one_of("layout.buckets", layout.buckets, ("square",))
    one_of("layout.structure", layout.structure, ("flat",))
    one_of("layout.unconditional", layout.unconditional, ("pad",))
    one_of("layout.resize", layout.resize, ("cover",))
    return JanusFiles(base=path, vq=path, tokenizer=tokenizer or path / "tokenizer.json", layout=layout)
