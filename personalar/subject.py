"""Subjects: a rendered one of the embedded world, or a folder of photos, checked before any model loads."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from personalar.config import SamplesConfig, SubjectConfig
from personalar.dreambench import dreambench_prompts
from personalar.prompts import LIVE_NOUNS, plain_prompts
from personalar.types import PromptSpec, Subject, image_fingerprint

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn a photo upright (EXIF), put transparency on white, and return it in RGB."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        layered = upright.convert("RGBA")
        canvas = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(canvas, layered).convert("RGB")
    return upright.convert("RGB")


def find_photos(folder: Path) -> list[Path]:
    """List the photos of `folder` by name.

    Raises:
        FileNotFoundError: when there is no such folder, or no photo in it.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise FileNotFoundError(f"subject.path={folder} {what}: give a folder with a few photos of one thing")
    names = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    photos = [path for path in names if path.suffix.lower() in PHOTO_SUFFIXES]
    if not photos:
        seen = f"only {', '.join(path.name for path in names[:5])}" if names else "nothing"
        raise FileNotFoundError(
            f"subject.path={folder} holds no photo ({seen}): put 3 to 6 photos of one thing there; "
            f"allowed: {', '.join(PHOTO_SUFFIXES)}"
        )
    return photos


def read_photo(path: Path) -> Image.Image:
    """Open one photo as upright RGB.

    Raises:
        ValueError: when the file is no readable picture.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture ({error}): remove or replace it") from error


def _folder_subject(config: SubjectConfig) -> Subject:
    if config.path is None:
        raise ValueError(
            "+subject=folder needs subject.path=DIR (your photos) and subject.noun=dog (what they show)"
        )
    images = tuple(read_photo(path) for path in find_photos(Path(config.path).expanduser()))
    return Subject(
        name=config.name,
        noun=config.noun,
        images=images,
        live=config.noun in LIVE_NOUNS if config.live is None else config.live,
        description=config.description,
        fingerprint=image_fingerprint(images),
    )


def _rendered_subject(config: SubjectConfig) -> Subject:
    from personalar.world.subjects import rendered_subject

    rendered = rendered_subject(config.noun, config.seed)
    images = tuple(rendered.train)
    return Subject(
        name=config.name,
        noun=config.noun,
        images=images,
        live=rendered.live if config.live is None else config.live,
        holdout=tuple(rendered.holdout),
        others=tuple(rendered.others),
        description=config.description or rendered.description,
        fingerprint=image_fingerprint(images),
    )


def load_subject(config: SubjectConfig) -> Subject:
    """Render or read the subject; every photo is opened here, so that nothing fails later.

    Raises:
        FileNotFoundError, ValueError: when the folder or a photo in it cannot be used.
    """
    return _folder_subject(config) if config.kind == "folder" else _rendered_subject(config)


def validation_prompts(noun: str, config: SamplesConfig, *, live: bool = False) -> tuple[PromptSpec, ...]:
    """Return the prompts of the configuration, or those of its prompt set for `noun`."""
    if config.prompts is not None:
        return plain_prompts(config.prompts)
    if config.prompt_set == "dreambench":
        return dreambench_prompts(live=live)
    from personalar.world.prompts import bench_prompts

    return tuple(bench_prompts(noun))
