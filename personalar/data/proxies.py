"""Proxies: generated pictures of the subject that are trained on beside the photos, or instead of them.

After Proxy-Tuning (CVPR 2026), where a diffusion model that has learned the subject generates them. Scores,
references and memorisation use the photos only.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from PIL import Image

from personalar.config.subject_config import SubjectConfig
from personalar.core.errors import printable
from personalar.core.png import DAMAGED
from personalar.core.process import global_rank
from personalar.data.photos.photo_folder import Photo, inspect_folder

MOST_LISTED = 20
"""Number of refused entries that are listed."""


def read_proxies(config: SubjectConfig) -> tuple[Image.Image, ...]:
    """Return the proxies in `subject.proxies`, sorted by name; empty without this setting.

    They pass the same checks as photos. Prints how many were read, and what was refused.

    Raises:
        FileNotFoundError: the folder is missing, or contains no usable picture.
        ValueError: it is the folder of the photos, or inside it.
    """
    if config.proxies is None:
        return ()
    folder = Path(config.proxies).expanduser()
    if config.path is not None and folder.resolve().is_relative_to(Path(config.path).expanduser().resolve()):
        raise ValueError(
            f"subject.proxies={folder} is the folder of the photos (subject.path={config.path}), or "
            "inside it: put the generated pictures into a folder of their own"
        )
    entries = [without_grid(entry) for entry in inspect_folder(folder, "subject.proxies")]
    images = tuple(entry.image for entry in entries if entry.image is not None)
    refused = [reason(entry) for entry in entries if entry.image is None]
    if not images:
        seen = ", ".join(refused[:5]) or "it is empty"
        raise FileNotFoundError(
            f"subject.proxies={folder} contains no usable picture ({seen}): put generated pictures of "
            "the subject there, or leave the setting out"
        )
    if global_rank() == 0:  # every process reads the proxies, only the first prints
        print(f"proxies: {len(images)} read from {folder}, {len(refused)} refused")
        more = [f"and {len(refused) - MOST_LISTED} more"] if len(refused) > MOST_LISTED else []
        for line in [*refused[:MOST_LISTED], *more]:
            print(f"  {printable(line)}")
    return images


def without_grid(entry: Photo) -> Photo:
    """Return `entry`, but refused if it is a grid that `personalar.sample` has made of its pictures."""
    if entry.image is None:  # also: opening a named pipe would block
        return entry
    # Pillow reads the text chunks before the pixels, so nothing is decoded again.
    with suppress(*DAMAGED), Image.open(entry.path, formats=["PNG"]) as image:
        if {"grid", "files"} <= image.info.keys():  # see `picture_grid.write_grid`
            return replace(entry, image=None, notes=("a grid of several pictures",))
    return entry


def reason(entry: Photo) -> str:
    """Return "name: reason" for a refused entry."""
    kind = f", but a {entry.kind} of a proxy is not read" if entry.kind else ""
    return f"{entry.path.name}: {'; '.join(entry.notes)}{kind}"
