"""Sets of uploaded photos, each in its own folder, and the checks of their photos."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from PIL import Image

from personalar.config.command_line import as_value
from personalar.config.compose import composed, conf_dir, group_options, read_config
from personalar.config.model_config import ProtocolConfig
from personalar.config.subject_config import NOT_RENDERED, STYLE
from personalar.core.files import plain_name, read_json, write_text
from personalar.data.photos.photo_folder import Photo, inspect_folder
from personalar.data.subject import captioned, fitted, load_subject
from personalar.models.loading import offline_model

MOST_FILES, LARGEST_FILE = 100, 64 << 20
"""Limits of a set, and of a file in bytes."""
SHOWN_PX = 320


class PhotoSets:
    """The sets in a folder: NAME/ contains the files, NAME.json the class of the subject."""

    def __init__(self, folder: Path) -> None:
        """Manage the sets in `folder`."""
        self.root = folder

    def names(self) -> list[str]:
        """Return the names of all sets."""
        return sorted(path.stem for path in self.root.glob("*.json"))

    def folder(self, name: str) -> Path:
        """Return the folder of a set, always inside `root`, and different from the names of examples."""
        plain = plain_name(name, longest=60).replace(".", "_").strip("-_") or "photos"
        return self.root / (f"my_{plain}" if plain in examples() else plain)

    def add(self, name: str, noun: str, files: Sequence[Path]) -> str:
        """Copy `files` into the set `name`, with plain file names; return the name of its folder.

        Args:
            noun: class of the subject.

        Raises:
            ValueError: an invalid noun, or too many or too large files.
        """
        if not noun.strip() or not noun.isprintable() or len(noun) > 60:
            raise ValueError(f"the noun {noun[:60]!r} must be one or a few plain words, such as dog")
        folder = self.folder(name if name.strip() else noun)
        folder.mkdir(parents=True, exist_ok=True)
        if len(files) + len(list(folder.iterdir())) > MOST_FILES:
            raise ValueError(f"more than {MOST_FILES} files in a set: 3 to 6 photos are enough")
        for file in files:
            if file.stat().st_size > LARGEST_FILE:
                raise ValueError(f"{file.name!r:.80} is larger than {LARGEST_FILE >> 20} MB")
        for file in files:
            shutil.copyfile(file, upload_path(folder, file.name))
        write_text(self._record(folder.name), json.dumps({"noun": noun.strip()}))
        return folder.name

    def _record(self, name: str) -> Path:
        return self.root / f"{name}.json"

    def clear(self, name: str) -> None:
        """Delete a set."""
        folder = self.folder(name)
        self._record(folder.name).unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)

    def settings(self, name: str) -> list[str]:
        """Return the settings that select a set or an example as the subject of a run.

        Raises:
            ValueError: no set has this name.
        """
        if name in examples():
            return [f"subject={name}"]
        folder = self.folder(name)
        words = {"path": str(folder), "noun": self.noun(name), "name": folder.name}
        option = "style" if words["noun"] == STYLE else "folder"
        return [f"subject={option}", *(f"subject.{key}={as_value(text)}" for key, text in words.items())]

    def noun(self, name: str) -> str:
        """Return what the photos of a set show; raises ValueError if no set has this name."""
        try:
            return str(read_json(self._record(self.folder(name).name))["noun"])
        except (OSError, ValueError, TypeError, KeyError):
            raise ValueError(f"there are no photos {name!r:.80}: upload some on the screen Photos") from None

    def photos(self, name: str, layout: ProtocolConfig | None) -> list[Photo]:
        """Return the check of every file of a set, or of the pictures of an example."""
        if name in examples():
            subject = load_subject(read_config(composed("run", [f"subject={name}"])).subject)
            named = enumerate(subject.images, start=1)
            photos = [Photo(path=Path(f"{name} {number}"), image=image) for number, image in named]
        else:
            photos = [captioned(photo, self.noun(name)) for photo in inspect_folder(self.folder(name))]
        return photos if layout is None else [fitted(photo, layout.sizes) for photo in photos]


def upload_path(folder: Path, name: str) -> Path:
    """Return the path for an uploaded file: a plain, unused name in `folder`."""
    # The name comes from the browser. A leading dot would hide the file.
    given = Path(plain_name(name, longest=80).lstrip(".") or "photo")
    path = folder / given
    for number in itertools.count(2):
        if not path.exists():
            break
        path = folder / f"{given.stem}-{number}{given.suffix}"
    return path


def examples() -> list[str]:
    """Return the names of the rendered subjects."""
    return [name for name in group_options(conf_dir(), "subject") if name not in NOT_RENDERED]


def layout_of(model: str) -> ProtocolConfig | None:
    """Return the image sizes of a base; None if they are only in files that are not downloaded yet."""
    config = read_config(composed("doctor", [f"model={model}"])).model
    files = offline_model(config)
    return files.layout if files else config.layout


def crops(photos: Sequence[Photo], layout: ProtocolConfig | None) -> list[tuple[Image.Image, str]]:
    """Return each usable photo, cropped as for training, with its name."""
    from personalar.models.image_transforms import fill_size

    shown = []
    for photo in photos:
        if photo.image is None:
            continue
        image = photo.image.copy()
        if layout is not None:
            image = fill_size(image, sizes=layout.sizes, resize=layout.resize)
        image.thumbnail((SHOWN_PX, SHOWN_PX))
        shown.append((image, photo.path.name))
    return shown
