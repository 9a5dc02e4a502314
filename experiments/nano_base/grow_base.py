"""Initialize a base with a trained base whose tokens, image codes or number of layers differ.

Every text token gets the mean embedding of the old tokens that spell it, special tokens are found by name.
The old image tokenizer must cover as many pixels per code: both tokenizers encode the same pictures, and
every new code gets the mean of the old codes' embeddings at the same places. New layers begin as the
identity. The result is far better than random weights before the first training step.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from pictures import Shards
from safetensors.torch import load_file
from tokenizers.decoders import ByteLevel
from torch import Tensor
from train_vq import load_vq, pixels

from personalar.models.chameleon.tokenizer import Tokenizer

if TYPE_CHECKING:
    from train_base import Base

RESULTS = Path(__file__).parent / "results"


def text_sources(tokens: Tokenizer, old: Tokenizer) -> list[list[int]]:
    """For every id of the new vocabulary, the old ids with the same text; empty for unknown names."""
    decoder = ByteLevel()
    sources: list[list[int]] = [[] for _ in range(tokens.vocab_size)]
    for name, index in tokens.vocabulary.items():
        known = name in old.vocabulary
        sources[index] = [old.vocabulary[name]] if known else old.encode_text(decoder.decode([name]))
    return sources


@torch.no_grad()
def same_places(nano: Path, pictures: Shards, codes: np.ndarray, num_codes: int) -> Tensor:
    """Share (new codes, old codes) of an old code among the pixels of a new one; each row sums to 1."""
    vq = load_vq(nano / "vq")
    counts = torch.zeros(num_codes, vq.config.num_embeddings)
    for start in range(0, len(pictures), 50):
        picks = range(start, min(start + 50, len(pictures)))
        old = vq.encode(pixels(pictures, picks)).flatten()
        new = torch.from_numpy(codes[start : start + len(picks)].astype(np.int64)).flatten()
        counts.index_put_((new, old), torch.ones(len(new)), accumulate=True)
    counts += 1e-3 * counts.sum(0) / counts.sum()  # a code that no picture used gets the mean of all
    return counts / counts.sum(1, keepdim=True)


@torch.no_grad()
def grow(model: Base, tokens: Tokenizer, nano: Path, pictures: Shards, codes: np.ndarray) -> None:
    """Copy the base in `nano` (folders base and vq) into `model`.

    Args:
        model: changed in place. Its width must be the old base's.
        tokens: the tokenizer of `model`.
        nano: folder with `base/`, `vq/`, and `identify.safetensors` (the map of `[V]`; in the package's
            folder it is missing, and read from `results/`).
        pictures: pictures (N) to compare the image tokenizers on.
        codes: their new codes (N, h*w).
    """
    folder_of_map = nano if (nano / "identify.safetensors").exists() else RESULTS
    state = {name: weight.float() for name, weight in load_file(nano / "base" / "model.safetensors").items()}
    old = Tokenizer.from_file(nano / "base" / "tokenizer.json")
    sources = text_sources(tokens, old)
    shares = same_places(nano, pictures, codes, tokens.num_codes)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        table, rows = model.transformer.get_parameter(name), state.pop(name)
        for index, source in enumerate(sources):
            if source:
                table[index] = rows[source].mean(0)
        table[tokens.image_rows] = shares @ rows[old.image_rows]
    fresh = model.transformer.load_state_dict(state, strict=False).missing_keys
    for name in fresh:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            model.transformer.get_parameter(name).zero_()
    model.identify.load_state_dict(load_file(folder_of_map / "identify.safetensors"))
