"""Numbers that decide how much memory a base takes, known before any weight is read."""

from __future__ import annotations

import torch

from personalar.models.network.vq import VQConfig
from personalar.models.stored_base import BaseShape, NetworkShape

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


def shape_of(
    network: NetworkShape, vq: VQConfig, *, codes: tuple[int, int], answer_tokens: int, images: int
) -> BaseShape:
    """Return the shape of a base for square images of (h, w) `codes`, `images` decoded together.

    Raises:
        ValueError: an image has no code.
    """
    number = codes[0] * codes[1]
    if number < 1:
        raise ValueError(
            f"the image tokenizer makes one code of {vq.downsample} x {vq.downsample} pixels, more than an "
            "image of this base has: take the tokenizer that belongs to it"
        )
    with torch.device("meta"):
        tokenizer_bytes = sum(parameter.nbytes for parameter in vq.build().parameters())
    return BaseShape(
        network=network,
        codes=number,
        answer_tokens=answer_tokens,
        num_codes=vq.num_embeddings,
        tokenizer_bytes=tokenizer_bytes,
        decode_bytes=decode_bytes(vq, images, number * vq.downsample**2),
    )
