"""The files of an Emu3 checkpoint, in the format of BAAI or of transformers.

    BAAI          config.json, model*.safetensors, emu3.tiktoken, emu3_vision_tokens.txt,
                  and the image tokenizer in a separate folder: config.json, model.safetensors
    transformers  config.json with "vq_config", model*.safetensors with both networks, tokenizer.json

The layout is a setting, because no file contains it.
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

    from personalar.models.emu3.emu3_backend import Emu3Backend
    from personalar.models.emu3.emu3_weights import Emu3Config
    from personalar.models.emu3.one_frame_vq import OneFrameVQConfig

RANKS, VISION_TOKENS = "emu3.tiktoken", "emu3_vision_tokens.txt"
"""BAAI's two files of the text tokenizer: the pieces of words, and the names of the image tokens."""
PREFIXES = {"model.text_model.": "model.", "text_model.": ""}
"""Prefix in transformers' files -> prefix in this package, which is that of BAAI."""
VQ_PREFIXES = ("vqmodel.", "model.vqmodel.")


@dataclass(frozen=True, kw_only=True)
class Emu3Files(PublishedFiles):
    """Paths of the parts of one model; see `stored_base.ModelFiles`.

    `tokenizer` is a tokenizer.json, or an emu3.tiktoken with emu3_vision_tokens.txt in the same folder.
    """

    losses = ("image_tokens", "answer")

    def numbers(self) -> tuple[Emu3Config, OneFrameVQConfig]:
        from personalar.models.emu3.emu3_weights import network_numbers, vq_numbers

        return network_numbers(self.base), vq_numbers(self.vq)

    def answer_tokens(self, side: int) -> int:
        # The size is written in digits, each of which is one token.
        return 2 + len(f"{side}*{side}") + side * (side + 1) + 3  # BOI, size, IMG; rows; EOF, EOI, EOS

    def reserved_ids(self) -> Sequence[int]:
        from personalar.models.emu3.emu3_vocabulary import Emu3Vocabulary

        return Emu3Vocabulary.from_file(self.tokenizer).concept_ids

    def tokenizer_files(self) -> list[Path]:
        names = [] if self.tokenizer.suffix == ".json" else [self.tokenizer.with_name(VISION_TOKENS)]
        return [self.tokenizer, *names]

    def network_name(self, stored: str) -> str | None:
        if stored.startswith(VQ_PREFIXES):
            return None
        for theirs, ours in PREFIXES.items():
            if stored.startswith(theirs):
                return ours + stored.removeprefix(theirs)
        return stored

    def backend(self, transformer: Any, device: torch.device) -> Emu3Backend:
        from personalar.models.emu3.emu3_backend import Emu3Backend
        from personalar.models.emu3.emu3_vocabulary import Emu3Vocabulary
        from personalar.models.emu3.emu3_weights import load_vq

        tokenizer = Emu3Vocabulary.from_file(self.tokenizer)
        tokenizer.check_ids(self.layout.ids)
        vq = load_vq(self.vq, bare=self.vq != self.base, device=device)
        return Emu3Backend(transformer=transformer, vq=vq, tokenizer=tokenizer, layout=self.layout)


def open_folder(
    path: Path,
    *,
    vq: Path | None = None,
    tokenizer: Path | None = None,
    layout: ProtocolConfig | None = None,
) -> Emu3Files:
    """Locate the parts of a model in the folder `path`; nothing is loaded.

    Args:
        vq: folder of the image tokenizer; by default `path`/vq if it exists, otherwise `path`.
        tokenizer: the tokenizer.json or emu3.tiktoken, if it is not in `path`.
        layout: required, because the files of the checkpoint do not contain it.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: the layout is missing or not one of this family.
    """
    for folder, setting in ((path, "path"), (vq or path, "vq_path")):
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder at {folder}; set model.{setting} to one with config.json")
    if layout is None:
        raise ValueError(
            "the files of an Emu3 checkpoint do not contain its layout: choose model=emu3_gen or "
            "model=emu3_stage1_512"
        )
    # `ProtocolConfig` allows the values of all families; these are the ones that this family supports.
    one_of("layout.buckets", layout.buckets, ("area",))
    one_of("layout.structure", layout.structure, ("rows",))
    one_of("layout.unconditional", layout.unconditional, ("negative", "bos"))
    one_of("layout.resize", layout.resize, ("area",))
    if layout.unconditional == "negative" and not layout.negative_prompt:
        raise ValueError("layout.unconditional=negative needs layout.negative_prompt; or choose bos")
    # BAAI publishes the image tokenizer in a repository of its own; `vq` is where a copy of it is looked for.
    apart = path / "vq"
    # Without a tokenizer.json, expect BAAI's emu3.tiktoken, so that the error about a missing file names it.
    converted = (path / "tokenizer.json").is_file() and not (path / RANKS).is_file()
    return Emu3Files(
        base=path,
        vq=vq or (apart if apart.is_dir() else path),
        tokenizer=tokenizer or path / ("tokenizer.json" if converted else RANKS),
        layout=layout,
    )
