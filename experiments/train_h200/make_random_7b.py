"""Write a base with the shape of Lumina-mGPT 7B and random weights, to measure speed and memory."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from personalar.config.model_config import LUMINA_PROMPT, ProtocolConfig
from personalar.models.chameleon.serialization import init_backend, save_backend
from personalar.models.chameleon.tokenizer import Tokenizer, build_tokenizer
from personalar.models.chameleon.transformer import TransformerConfig
from personalar.models.network.vq import VQConfig


def main(folder: str) -> None:
    """Write the folder; it needs about 70 GB of host memory and some minutes."""
    shape, vq = TransformerConfig(), VQConfig()
    text = LUMINA_PROMPT.format(width=512, height=512, prompt="a photo of a dog")
    tokenizer = Tokenizer(
        build_tokenizer(
            [text], num_codes=vq.num_embeddings, max_grids=97, num_concept_ids=12, vocab_size=shape.vocab_size
        )
    )
    backend = init_backend(
        transformer=shape, vq=vq, tokenizer=tokenizer, layout=ProtocolConfig(buckets="square"), seed=0
    )
    save_backend(backend, Path(folder), dtype=torch.bfloat16)


if __name__ == "__main__":
    main(*sys.argv[1:])
