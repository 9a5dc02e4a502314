"""Data types that all packages use.

Letters for shapes in comments and docstrings: B batch, T sequence, N image tokens, V vocabulary, D width,
H heads; (H, W) pixels, (h, w) image codes. Image tensors are float in [0, 1], (B, 3, H, W); photos and
samples are `PIL.Image` in RGB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # for annotations only: this module is imported by every command and must load nothing
    from PIL.Image import Image

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of a picture, as fractions of its width and height."""
SampleKind = Literal["subject", "class", "description", "prior", "unrelated"]


def image_fingerprint(images: Iterable[Image]) -> str:
    """Return the sha256 (hex) over the sizes and RGB pixels of `images`, in order."""
    digest = hashlib.sha256()
    for image in images:
        rgb = image.convert("RGB")
        # With the size: 2x8 and 4x4 pixels can have the same bytes.
        digest.update(f"{rgb.width}x{rgb.height};".encode())
        digest.update(rgb.tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A subject to learn, with its photos and with images for evaluation."""

    name: str
    """Name of the run folder."""
    noun: str
    """Class in plain words ("duck toy"), part of every prompt; "style" for a style."""
    images: tuple[Image, ...]
    """Training photos, RGB, any size, at least one."""
    live: bool
    """Whether it is an animal or a person, so that prompts with accessories apply."""
    holdout: tuple[Image, ...] = ()
    """Unseen views of the subject (ceiling of fidelity); rendered subjects only."""
    others: tuple[Image, ...] = ()
    """Other individuals of the class (floor of fidelity); rendered subjects only."""
    boxes: tuple[Box | None, ...] = ()
    """Bounding box of the subject in each of `images`, None if unknown; empty: unknown in all."""
    box_source: str = "mask"
    """Origin of `boxes`: "mask" (of the photo), or "truth" (rendered subjects)."""
    masks: tuple[Image | None, ...] = ()
    """Mask of each of `images`, grey and of the same size, 255 on the subject; None, or empty: no mask."""
    captions: tuple[str | None, ...] = ()
    """Training prompt of each of `images`, with "{}" for the subject; None, or empty: those of the recipe."""
    proxies: tuple[Image, ...] = ()
    """Generated pictures of it to train on, RGB, any size; never scored against. See data/proxies.py."""
    description: str | None = None
    """Text description to use instead of [V] on the base, as a comparison."""
    fingerprint: str = ""
    """Of `images`, and of `masks`, `captions` and `proxies` if there are any; set by `load_subject`."""


@dataclass(frozen=True, kw_only=True)
class PromptSpec:
    """A validation prompt with the content that it asks for."""

    text: str
    """Template with "{}" for the subject: "a {} in the snow"."""
    category: str
    """"plain", "recontext", "accessory", "property" or "style"."""
    context: str | None = None
    """Expected place, if the prompt has one."""
    accessory: str | None = None
    """Expected accessory, if the prompt has one."""
    colour: str | None = None
    """Expected colour of the accessory or of the subject."""
    style: str | None = None
    """Expected style, if the prompt has one."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A generated image with its prompt and seed."""

    stage: str
    """"base", or the name of a stage ("embedding", "transformer")."""
    prompt: str
    """Prompt as given to the model, with `[V]` for the identifier."""
    kind: SampleKind
    """"subject" ("[V] cat"), "class" ("cat", to measure class drift), "description" (base only), "prior" (one
    class prompt with many seeds, to measure diversity) or "unrelated" (another class, to measure drift)."""
    seed: int
    spec: PromptSpec
    image: Image
    path: Path | None = None
    """PNG file; None until it is written."""
