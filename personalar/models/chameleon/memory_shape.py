"""Numbers that decide how much memory a Chameleon model takes, known before any weight is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from personalar.models.chameleon.transformer import TransformerConfig
from personalar.models.chameleon.vq import VQConfig, VQModel
from personalar.models.stored_base import BaseShape

if TYPE_CHECKING:
    from personalar.models.chameleon.model_files import ModelFiles

PIXELS_AT_ONCE = 2**20
"""Of the images that go through the networks together: four of 512x512 keep a GPU busy and take 2.7 GB."""
FLOAT32 = 4


def images_at_once(pixels: int) -> int:
    """Return how many images of `pixels` pixels each go through the networks together."""
    return max(1, PIXELS_AT_ONCE // pixels)


def decode_bytes(vq: VQConfig, images: int, pixels: int) -> int:
    """Return about how many bytes decoding `images` images of `pixels` pixels each takes beside weights.

    Five maps at full resolution exist at one moment: what a block was given, and what its norms, activations
    and convolutions make of it. Libraries' work space is not in it.
    """
    together = min(images, images_at_once(pixels)) * pixels
    return 5 * FLOAT32 * vq.channels[0] * together // vq.patch_size**2


def read_shape(files: ModelFiles, *, attention: str, images: int) -> BaseShape:
    """Return the shape of the base in `files`, for `images` images decoded together."""
    from personalar.models.chameleon.model_files import read_json
    from personalar.models.chameleon.vq_checkpoint import vq_config

    network = TransformerConfig.from_hf(read_json(files.base / "config.json"), attention=attention)
    return shape_of(network, vq_config(files.vq), resolution=files.layout.resolution, images=images)


def shape_of(network: TransformerConfig, vq: VQConfig, *, resolution: int, images: int) -> BaseShape:
    """Return the shape of a base that draws square images of `resolution` pixels."""
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
