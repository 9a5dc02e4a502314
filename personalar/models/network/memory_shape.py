"""Sizes for an estimate of memory, before any weight is read."""

from __future__ import annotations

import torch

from personalar.models.network.vq import VQConfig
from personalar.models.stored_base import BaseShape, NetworkShape

BYTES_AT_ONCE = 2 * 10**9
"""Memory for the images that the VQ model processes together: four of 512x512 with Chameleon's."""
FLOAT32 = 4  # bytes


def images_at_once(vq: VQConfig, pixels: int) -> int:
    """Return the number of images of `pixels` pixels each that the VQ model processes together."""
    return max(1, BYTES_AT_ONCE // _maps_bytes(vq, pixels))


def decode_bytes(vq: VQConfig, images: int, pixels: int) -> int:
    """Return an estimate of the bytes for decoding `images` images of `pixels` pixels each, without weights.

    The workspaces of libraries are not included.
    """
    return min(images, images_at_once(vq, pixels)) * _maps_bytes(vq, pixels)


def _maps_bytes(vq: VQConfig, pixels: int) -> int:
    # Folding patches reduces the number of positions at full resolution.
    return vq.decode_maps * FLOAT32 * vq.channels[0] * pixels // vq.patch_size**2


def shape_of(
    network: NetworkShape, vq: VQConfig, *, codes: tuple[int, int], answer_tokens: int, images: int
) -> BaseShape:
    """Return the sizes of a base for an estimate of memory.

    Args:
        codes: (h, w) of a square image.
        answer_tokens: ids of a square image in a training example.
        images: number of images that are decoded together.

    Raises:
        ValueError: an image is smaller than one code.
    """
    number = codes[0] * codes[1]
    if number < 1:
        raise ValueError(
            f"one code of the image tokenizer covers {vq.downsample} x {vq.downsample} pixels, more than an "
            "image of this base has: use the tokenizer that belongs to it"
        )
    with torch.device("meta"):
        vq_bytes = sum(parameter.nbytes for parameter in vq.build().parameters())
    return BaseShape(
        network=network,
        codes=number,
        answer_tokens=answer_tokens,
        num_codes=vq.num_embeddings,
        vq_bytes=vq_bytes,
        decode_bytes=decode_bytes(vq, images, number * vq.downsample**2),
    )
