"""How many images the image tokenizer takes at once, and what that needs."""

from __future__ import annotations

from personalar.models.chameleon.vq import VQConfig

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
