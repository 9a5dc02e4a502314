"""Numbers that decide how much memory a Chameleon model takes, known before any weight is read."""

from __future__ import annotations

import torch

from personalar.models.chameleon.transformer import TransformerConfig
from personalar.models.chameleon.vq import VQConfig, VQModel
from personalar.models.stored_base import BaseShape

PIXELS_AT_ONCE = 2**20
"""Of the images that go through the VQ model together: four of 512x512, which take 2.7 GB."""
FLOAT32 = 4


def images_at_once(pixels: int) -> int:
    """Return how many images of `pixels` pixels each go through the VQ model together."""
    return max(1, PIXELS_AT_ONCE // pixels)


def decode_bytes(vq: VQConfig, images: int, pixels: int) -> int:
    """Return about how many bytes besides weights decoding `images` images of `pixels` pixels each takes.

    Five maps at full resolution exist at one moment: the input of a block, and its norms, activations and
    convolutions. Libraries' work space is not included.
    """
    together = min(images, images_at_once(pixels)) * pixels
    return 5 * FLOAT32 * vq.channels[0] * together // vq.patch_size**2


def shape_of(network: TransformerConfig, vq: VQConfig, *, resolution: int, images: int) -> BaseShape:
    """Return the shape of a base for square images of `resolution` pixels, `images` decoded together."""
    side = resolution // vq.downsample
    with torch.device("meta"):
        tokenizer_bytes = sum(parameter.nbytes for parameter in VQModel(vq).parameters())
    return BaseShape(
        network=network,
        codes=side * side,
        answer_tokens=side * (side + 1) + 5,
        num_codes=vq.num_embeddings,
        tokenizer_bytes=tokenizer_bytes,
        decode_bytes=decode_bytes(vq, images, resolution**2),
    )
