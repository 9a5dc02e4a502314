"""Pictures of one or two objects, as photos or in a style."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from personalar.nano.world.layers import layers
from personalar.nano.world.scene import SIZE, SUPERSAMPLING, Scene, shrink
from personalar.nano.world.styles import STYLES


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Objects from left to right, in the place of the first scene, and in a style (None: a photo)."""

    scenes: tuple[Scene, ...]
    style: str | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for an unknown style or more than two objects."""
        if self.style is not None and self.style not in STYLES:
            raise ValueError(f"style must be None or one of {', '.join(STYLES)}; got {self.style!r}")
        if not 1 <= len(self.scenes) <= 2:
            raise ValueError(f"a picture has one or two objects; got {len(self.scenes)} scenes")


def draw(picture: Picture, size: int = SIZE) -> Image.Image:
    """Render a picture to an RGB image of size x size pixels; it depends only on `picture`."""
    found = layers(picture.scenes, size * SUPERSAMPLING)
    if picture.style is None:
        return shrink(found.photo)
    return shrink(STYLES[picture.style](found, np.random.default_rng([picture.scenes[0].seed, 1])))
