"""Render the training pictures in shards.

`python experiments/nano_base/render.py OUT --kind base --shards 0:30`. kind=base: independent pictures for
the tokenizer and the transformer, with one or two objects, as photos or in a style. kind=scorer: groups of
views of an individual and its twins, only for the scorers. Finished shards are skipped, so the command
resumes.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
from training_pictures import identity_vector, sample_picture, twins

from personalar.nano.world.album import STYLES, Picture, draw
from personalar.nano.world.captions import place, wearing
from personalar.nano.world.contexts import CONTEXTS
from personalar.nano.world.objects.animals import HEADS
from personalar.nano.world.scene import (
    ACCESSORIES,
    ACCESSORY_COLOURS,
    CLASSES,
    Instance,
    Scene,
    sample_instance,
    sample_scene,
)

SHARD, HELDOUT = 2000, 500  # pictures in a shard
SEEDS = {"base": 21, "scorer": 22, "heldout": 23, "scorer_heldout": 24}
STYLED = 0.15  # share of the scorers' pictures that are no photos
GROUP = 7  # three views of an individual, two of a twin with another shape, two of a recoloured twin


def facts(scene: Scene) -> dict:
    """Return the ground truth of a picture, for training and for accuracy on held-out pictures."""
    skin = scene.instance.skin
    kind, worn_colour = scene.worn or ("none", "none")
    return {
        "noun": scene.instance.noun,
        "context": scene.context or "studio",
        "colour": skin.colours[0][0],
        "second": skin.colours[1][0],
        "pattern": skin.pattern,
        "worn": kind,
        "worn_colour": worn_colour,
    }


def identity(named: Instance | None) -> list[float] | None:
    """Return the parameters of an individual that a caption names, or None."""
    return None if named is None else [round(float(x), 4) for x in identity_vector(named)]


def base_picture(rng: np.random.Generator) -> tuple[Picture, dict]:
    """Draw a picture with its caption, the individuals that it names, and the ground truth of its objects."""
    example = sample_picture(rng)
    things = [facts(scene) for scene in example.picture.scenes]
    return example.picture, {
        "caption": example.caption,
        "identities": [identity(named) for named in example.named],
        "style": example.picture.style,
        "beside": things[1] if len(things) == 2 else None,
        **things[0],
    }


def _view(instance: Instance, rng: np.random.Generator) -> Scene:
    worn = None
    if instance.noun in HEADS and rng.uniform() < 0.4:
        worn = (str(rng.choice(ACCESSORIES)), str(rng.choice(ACCESSORY_COLOURS)))
    context = None if rng.uniform() < 0.1 else str(rng.choice(list(CONTEXTS)))
    return sample_scene(instance, rng, context=context, worn=worn, shiny=rng.uniform() < 0.08)


def group_pictures(rng: np.random.Generator, group: int) -> list[tuple[Picture, dict]]:
    instance = sample_instance(str(rng.choice(CLASSES)), rng)
    reshaped, recoloured = twins(instance, 2, rng)
    members = [instance] * 3 + [reshaped] * 2 + [recoloured] * 2
    scenes = [_view(member, rng) for member in members]
    styles = [str(rng.choice(list(STYLES))) if rng.uniform() < STYLED else None for _ in members]
    who = [0, 0, 0, 1, 1, 2, 2]
    items = []
    for scene, style, i in zip(scenes, styles, who, strict=True):
        known = {"style": style, "tail": wearing(scene.worn) + place(scene.context), **facts(scene)}
        items.append((Picture(scenes=(scene,), style=style), {"individual": group * 3 + i, **known}))
    return items


def write_shard(path: Path, kind: str, number: int, size: int) -> None:
    rng = np.random.default_rng([SEEDS[kind], number])
    if kind in ("base", "heldout"):
        items = [base_picture(rng) for _ in range(HELDOUT if kind == "heldout" else SHARD)]
    else:
        groups = SHARD // GROUP
        items = [item for g in range(groups) for item in group_pictures(rng, number * groups + g)]
    images = np.stack([np.asarray(draw(picture, size)) for picture, _ in items])
    temporary = path.with_suffix(".tmp.npy")
    np.save(temporary, images)
    path.with_suffix(".json").write_text(json.dumps([meta for _, meta in items]))
    os.replace(temporary, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kind", choices=tuple(SEEDS), default="base")
    parser.add_argument("--shards", default="0:30", help="first:end, 2000 pictures each")
    parser.add_argument("--size", type=int, default=128)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    first, end = map(int, args.shards.split(":"))
    for number in range(first, end):
        path = args.out / f"{args.kind}_{number:03d}.npy"
        if not path.exists():
            write_shard(path, args.kind, number, args.size)
            print(path, flush=True)


if __name__ == "__main__":
    main()
