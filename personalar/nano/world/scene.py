"""An instance in a place: its pose, solids, light and shadow."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from personalar.core.types import Box
from personalar.nano.world.objects.animals import HEADS, accessory, bear, cat, dog, duck
from personalar.nano.world.objects.skin import COLOURS, Skin, sample_skin
from personalar.nano.world.objects.solids import Proportions, Solid, cast, screen_extent, view_matrix
from personalar.nano.world.objects.things import backpack, boot, candle, car, clock, robot, teapot, vase

SHAPES: dict[str, Callable[[Proportions], list[Solid]]] = {
    "cat": cat,
    "dog": dog,
    "bear": bear,
    "duck toy": duck,
    "robot toy": robot,
    "teapot": teapot,
    "vase": vase,
    "backpack": backpack,
    "boot": boot,
    "clock": clock,
    "candle": candle,
    "car": car,
}
"""Noun -> function that builds its solids. The order defines the class index and must not change."""
CLASSES = tuple(SHAPES)
ACCESSORIES = ("hat", "scarf", "glasses", "bow tie")
ACCESSORY_COLOURS = ("red", "yellow", "green", "blue", "purple", "pink")
SIZE = 128  # pixels of a side, as the nano base generates
SUPERSAMPLING = 2
_LIGHT = np.array([-0.45, 0.72, 0.62], np.float32) / np.float32(np.linalg.norm([-0.45, 0.72, 0.62]))


@dataclass(frozen=True, kw_only=True)
class Instance:
    """An individual: everything that all of its pictures have in common."""

    noun: str
    skin: Skin
    proportions: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One picture of an instance.

    yaw, pitch: degrees. zoom: 1 fills about 80 % of the frame's height. shift: fraction of the frame.
    context: a name in CONTEXTS or None (studio). worn: (kind, colour name) or None. mood: brightness of the
    light.
    """

    instance: Instance
    context: str | None
    yaw: float
    pitch: float
    zoom: float
    shift: tuple[float, float]
    seed: int
    worn: tuple[str, str] | None = None
    shiny: bool = False
    mood: float = 1.0


def sample_instance(noun: str, rng: np.random.Generator) -> Instance:
    """Draw a random individual of a class.

    Raises:
        ValueError: the class is unknown.
    """
    if noun not in SHAPES:
        raise ValueError(f"noun={noun!r} is unknown; allowed: {', '.join(CLASSES)}")
    return Instance(
        noun=noun, skin=sample_skin(rng), proportions=tuple(float(x) for x in rng.uniform(-1.3, 1.3, 6))
    )


def sample_scene(
    instance: Instance, rng: np.random.Generator, *, context: str | None, worn=None, shiny=False
) -> Scene:
    """Draw a random view of an instance; `context` None means the studio."""
    return Scene(
        instance=instance,
        context=context,
        worn=worn,
        shiny=shiny,
        # Long objects are shown from the side, where they can be recognised.
        yaw=float(rng.uniform(-40, 40))
        + {"car": 50, "dog": 38, "boot": 42, "duck toy": 30}.get(instance.noun, 0),
        pitch=float(rng.uniform(6, 20)),
        zoom=float(rng.uniform(0.9, 1.08)),
        shift=(float(rng.uniform(-0.05, 0.05)), float(rng.uniform(-0.02, 0.03))),
        seed=int(rng.integers(2**31)),
        mood=float(rng.uniform(0.92, 1.06)),
    )


def _frame(solids, view, size, scene):
    """Return pixels per object unit and the pixel (x, y) of the origin, so that the object fills the frame.

    Accessories are not counted, so that an individual has the same size with and without them.
    """
    boxes = [(view @ np.asarray(s.centre), screen_extent(s, view)) for s in solids]
    low, high = min(c[1] - e[1] for c, e in boxes), max(c[1] + e[1] for c, e in boxes)
    left, right = min(c[0] - e[0] for c, e in boxes), max(c[0] + e[0] for c, e in boxes)
    scale = scene.zoom * size * 0.78 / max(high - low, 0.95 * (right - left))
    x = size * (0.5 + scene.shift[0]) - scale * (left + right) / 2
    y = size * (0.93 + scene.shift[1]) + scale * low
    return scale, (x, y)


@dataclass(frozen=True, kw_only=True)
class PlacedObject:
    """The object of a scene and its accessory as solids, with the camera; see `solids.cast`."""

    solids: list[Solid]
    view: np.ndarray
    scale: float
    centre: tuple[float, float]
    reach: float
    worn: tuple[float, float, float]


def place_object(scene: Scene, size: int) -> PlacedObject:
    """Return the solids and the camera of a scene for a picture of size x size pixels."""
    proportions = np.asarray(scene.instance.proportions)
    solids = SHAPES[scene.instance.noun](proportions)
    view = view_matrix(scene.yaw, scene.pitch)
    scale, centre = _frame(solids, view, size, scene)
    reach = max(abs(s.centre[0]) + max(s.size[0], s.size[2]) for s in solids)
    worn = (0.0, 0.0, 0.0)
    if scene.worn:
        kind, colour = scene.worn
        solids = solids + accessory(kind, HEADS[scene.instance.noun](proportions))
        worn = COLOURS[colour]
    return PlacedObject(solids=solids, view=view, scale=scale, centre=centre, reach=reach, worn=worn)


def light(scene: Scene, material: str, normal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return diffuse light and specular shine, (N,) each, for surface normals (N, 3) of a material."""
    ambient, gloss = 0.58 * scene.mood, 0.55 if scene.shiny else 0.10
    lit = ambient + 0.10 * normal[:, 1] + 0.50 * np.maximum(normal @ _LIGHT, 0)
    # A flame emits light, so it has no shading.
    if material == "flame":
        lit = np.ones_like(lit)
    # Blinn-Phong: the half vector between light and viewer.
    half = (_LIGHT + np.array([0, 0, 1], np.float32)) / np.linalg.norm(_LIGHT + np.array([0, 0, 1]))
    return lit, gloss * np.maximum(normal @ half, 0) ** (14 if scene.shiny else 24)


def cast_shadow(image: np.ndarray, thing: PlacedObject, floating: bool) -> np.ndarray:
    """Darken an ellipse on the floor around the object's origin; weaker if the object floats on water."""
    size = image.shape[0]
    ys, xs = np.mgrid[0:size, 0:size].astype(np.float32)
    half = thing.scale * (thing.reach * 0.95)
    # The floor seen from the side is a line; the shadow keeps a minimum height.
    flat = max(abs(float(thing.view[1, 2])), 0.18)
    # Shifted to the right, away from the light.
    d = ((xs - thing.centre[0] - 0.12 * half) / half) ** 2 + (
        (ys - thing.centre[1]) / (half * flat * 1.3)
    ) ** 2
    strength = 0.22 if floating else 0.48
    return image * (1 - strength * np.clip(1.25 - d, 0, 1))[..., None]


def _shrink(image: np.ndarray) -> np.ndarray:
    """Halve the height with weights 1 3 3 1; a mean of two would be too sharp for image codes."""
    padded = np.concatenate((image[:1], image, image[-1:]))
    return (padded[:-3:2] + 3 * padded[1:-2:2] + 3 * padded[2:-1:2] + padded[3::2]) / 8


def thing_box(scene: Scene, size: int = SIZE) -> Box:
    """Return the bounding box of the object and its accessory, as fractions of the picture."""
    thing = place_object(scene, size)
    hits = cast(thing.solids, view=thing.view, scale=thing.scale, centre=thing.centre, size=size)
    rows, columns = (np.flatnonzero((hits.solid >= 0).any(axis=axis)) for axis in (1, 0))
    left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return float(left / size), float(top / size), float(right / size), float(bottom / size)


def shrink(image: np.ndarray) -> Image.Image:
    """Scale a supersampled image (S, S, 3) in [0, 1] to an RGB picture of half the size."""
    small = _shrink(_shrink(np.clip(image, 0, 1)).transpose(1, 0, 2)).transpose(1, 0, 2)
    return Image.fromarray((small * 255 + 0.5).astype(np.uint8))
