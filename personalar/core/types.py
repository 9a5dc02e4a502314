"""Plain values that all packages share.

One alphabet for shapes, used in every comment and docstring:
B batch, T sequence, N image tokens, V vocabulary, D width, H heads; (H, W) pixels, (h, w) codes.
Images above a backend are float in [0, 1], (B, 3, H, W); photos and samples are
`PIL.Image` in RGB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # a name for annotations only: importing this module loads nothing
    from PIL.Image import Image

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of a picture, as fractions of its width and height."""
SampleKind = Literal["subject", "class", "description", "prior", "unrelated"]


def image_fingerprint(images: Iterable[Image]) -> str:
    """Return the sha256 (hex) over the sizes and RGB pixels of `images`, in order."""
    digest = hashlib.sha256()
    for image in images:
        rgb = image.convert("RGB")
        digest.update(f"{rgb.width}x{rgb.height};".encode())
        digest.update(rgb.tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One thing to learn, with the images to judge the result by."""

    name: str
    """The name of the run folder."""
    noun: str
    """Its class in plain words ("duck toy"), part of every prompt."""
    images: tuple[Image, ...]
    """Training photos, RGB, any size, at least one."""
    live: bool
    """An animal: accessory prompts apply."""
    holdout: tuple[Image, ...] = ()
    """Other views of the same thing (the ceiling of fidelity); rendered subjects only."""
    others: tuple[Image, ...] = ()
    """Other things of the same class (the floor of fidelity); rendered subjects only."""
    boxes: tuple[Box | None, ...] = ()
    """Of the thing in each of `images`, where it is known; empty: in none."""
    box_source: str = "mask"
    """Of `boxes`: "mask", or "truth" of a rendered subject."""
    description: str | None = None
    """The best text description, for the model that has not learned the subject."""
    fingerprint: str
    """`image_fingerprint` of `images`."""


@dataclass(frozen=True, kw_only=True)
class PromptSpec:
    """One validation prompt with the content that it asks for."""

    text: str
    """With "{}" where the subject goes: "a {} in the snow"."""
    category: str
    """"plain", "recontext", "accessory" or "property"."""
    context: str | None = None
    accessory: str | None = None
    colour: str | None = None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One generated image with prompt and seed."""

    stage: str
    """"base", or the name of a stage ("embedding", "transformer")."""
    prompt: str
    """The prompt as given to the model, with `[V]` where the identifier stands."""
    kind: SampleKind
    """"subject" ("[V] cat"), "class" ("cat", shows drift), "description" (base only), "prior" (one class
    prompt with many seeds) or "unrelated" (something else)."""
    seed: int
    spec: PromptSpec
    image: Image
    path: Path | None = None
    """The PNG file, once written."""
