"""Proxies: generated pictures of the subject that are trained on beside the photos, or instead of them.

After Proxy-Tuning (CVPR 2026), where a diffusion model that has learned the subject generates them. Scores,
references and memorisation use the photos only.
"""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from PIL import Image

from personalar.config.subject_config import SubjectConfig
from personalar.core.process import global_rank
from personalar.data.photos.photo_folder import Photo, inspect_folder, print_table, usable


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
    advice = "put generated pictures of the subject there, or leave the setting out"
    used = usable(entries, f"subject.proxies={folder}", advice)
    if global_rank() == 0:  # every process reads the proxies, only the first prints
        print(f"proxies: {len(used)} read from {folder}, {len(entries) - len(used)} refused")
        if refused := [entry for entry in entries if entry.image is None]:
            print_table(refused)
    return tuple(entry.image for entry in used if entry.image is not None)


def without_grid(entry: Photo) -> Photo:
    """Return `entry`, but refused if it is a grid that `personalar.sample` has made of its pictures."""
    if entry.image is not None and fnmatch(entry.path.name, "grid_*.png"):  # see `picture_grid.write_grid`
        return replace(entry, image=None, notes=("a grid of several pictures",))
    return entry
