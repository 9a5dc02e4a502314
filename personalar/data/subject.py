"""Load a subject: rendered by the built-in nano world, or read from a folder of photos.

This happens before any model is loaded, so that a bad photo is reported within seconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from personalar.config.plugins import build
from personalar.config.run_config import SamplesConfig, SubjectConfig
from personalar.config.subject_config import STYLE
from personalar.core.image_sizes import Size, fit, written
from personalar.core.process import global_rank
from personalar.core.types import PromptSpec, Subject, image_fingerprint
from personalar.data.dreambench import dreambench_prompts
from personalar.data.photos.companions import caption_template
from personalar.data.photos.masks import mask_box
from personalar.data.photos.photo_folder import Photo, inspect_folder, print_table, usable
from personalar.data.prompts import is_live, plain_prompts, training_prompt
from personalar.data.proxies import read_proxies

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST = 120
"""Characters of a name, a class or a description; a longer one would displace the rest of a prompt."""
CUT_NOTED = 0.2
"""Share of a photo's area; cropping more causes a note. A square base removes a quarter of a 4:3 photo."""
ENLARGED_NOTED = 1.1
"""Enlargement factor; more causes a note, because the photo becomes visibly blurred."""
MANY_PHOTOS = 20
"""More photos than this cause a note."""


def fitted(photo: Photo, sizes: Sequence[Size]) -> Photo:
    """Return `photo` with the share that is cropped, and notes on a large crop or enlargement.

    Args:
        photo: one entry of the folder.
        sizes: the (width, height) that the base supports; the best one for this photo is used.
    """
    if photo.image is None:
        return photo
    found, notes = fit(photo.image.size, sizes), list(photo.notes)
    size = written(found.size)
    if found.cut >= CUT_NOTED:
        where = "at top and bottom" if found.tall else "left and right"
        notes.append(f"a large part is cut off {where} to fit {size}: crop it around the subject yourself")
    if found.enlarged >= ENLARGED_NOTED:
        notes.append(f"enlarged {found.enlarged:.1f} times to fit {size}, so blurred: use a larger photo")
    return replace(photo, cut=found.cut, notes=tuple(notes))


def captioned(photo: Photo, noun: str) -> Photo:
    """Return `photo` with a note on the prompt that it is trained with, if it has a caption."""
    if photo.image is None or photo.caption is None:
        return photo
    template, where = caption_template(photo.caption, noun)
    prompt = training_prompt(template, noun)
    return replace(photo, notes=(*photo.notes, f'prompt "{prompt}" ({where})'))


def wanted(noun: str) -> str:
    """Return what the folder of a subject of this class, or of a style, should contain."""
    return "1 to 10 pictures in one style" if noun == STYLE else "3 to 6 photos of one subject"


def count_note(photos: int, noun: str) -> str | None:
    """Return advice if there is one photo only, or more than `MANY_PHOTOS`; otherwise None."""
    if photos == 1 and noun == STYLE:
        return "only one picture: its motif can become part of the style; several motifs prevent this"
    if photos == 1:
        return "only one photo; 3 to 6 from different sides work better"
    if photos > MANY_PHOTOS:
        usual = "1 to 10" if noun == STYLE else "3 to 6"
        return (
            f"{photos} photos, but the method is designed for {usual}: the number of steps stays the same, "
            "so each photo is seen less often; keep the best few, or raise model.recipe.stages.*.steps"
        )
    return None


def read_folder(folder: Path, sizes: Sequence[Size] | None = None, noun: str = "") -> tuple[Photo, ...]:
    """Return the usable photos of `folder`, and print a table of all its entries.

    Args:
        folder: the user's photos.
        noun: the class of the subject, to show where captions name it; empty: unknown; "style" for a style.
        sizes: image sizes of the base, for notes on crops; None leaves these notes out.

    Raises:
        FileNotFoundError: the folder is missing, or contains no usable photo.
    """
    photos = inspect_folder(folder)
    advice = f"put {wanted(noun)} there, as JPEG, PNG, WebP or TIFF"
    used = tuple(usable(photos, f"subject.path={folder}", advice))
    if global_rank() > 0:  # every process reads the photos, only the first prints the table
        return used
    shown = photos if sizes is None else [fitted(photo, sizes) for photo in photos]
    print_table([captioned(photo, noun) for photo in shown] if noun else shown)
    if (note := count_note(len(used), noun)) is not None:
        print(f"note: {note}")
    return used


def _check_words(config: SubjectConfig) -> None:
    """Raise ValueError for words that would break the prompts and file names that contain them."""
    for key, text in (("noun", config.noun), ("name", config.name), ("description", config.description)):
        if text is None:
            continue
        if not text.strip() or len(text) > LONGEST or not text.isprintable():
            raise ValueError(
                f"subject.{key}={text[:60]!r} must be one line of 1 to {LONGEST} printable characters"
            )


def load_subject(config: SubjectConfig, sizes: Sequence[Size] | None = None) -> Subject:
    """Render or read the subject. All photos are decoded here, so that none can fail later.

    Args:
        config: the `subject` group.
        sizes: image sizes of the base, for notes on crops; None leaves these notes out.

    Raises:
        FileNotFoundError: the folder is missing or contains no usable photo.
        ValueError: a setting is missing or invalid.
    """
    _check_words(config)
    # `subject.source` is used instead of `subject.kind`, so it is tested first.
    if config.source:
        made: Subject = build("subject.source", config.source)
        found = fingerprint_of(made.images, made.masks, made.captions, made.proxies)
        return replace(made, fingerprint=found)
    if config.photographs:
        assert config.path is not None  # checked by SubjectConfig
        photos = read_folder(Path(config.path).expanduser(), sizes, config.noun)
        images = tuple(photo.image for photo in photos if photo.image is not None)
        own: dict[str, Any] = {"boxes": tuple(mask_box(photo.mask) for photo in photos)}
        own |= companions_of(photos, config.noun)
        live, description = is_live(config.noun), config.description
    else:
        # Deferred: the renderer is not needed for photos.
        from personalar.nano.world.subjects import rendered_subject

        rendered = rendered_subject(config.noun, config.seed)
        images, own = rendered.train, {"holdout": rendered.holdout, "others": rendered.others}
        own |= {"boxes": rendered.boxes, "box_source": "truth"}
        live, description = rendered.live, config.description or rendered.description
    proxies = read_proxies(config)
    return Subject(
        name=config.name,
        noun=config.noun,
        images=images,
        live=live if config.live is None else config.live,
        description=description,
        proxies=proxies,
        fingerprint=fingerprint_of(images, own.get("masks", ()), own.get("captions", ()), proxies),
        **own,
    )


def companions_of(photos: Sequence[Photo], noun: str) -> dict[str, Any]:
    """Return the fields "masks" and "captions" of a subject; empty tuples if no photo has any."""
    masks = tuple(photo.mask for photo in photos)
    templates = tuple(
        None if photo.caption is None else caption_template(photo.caption, noun)[0] for photo in photos
    )
    return {"masks": masks if any(masks) else (), "captions": templates if any(templates) else ()}


def fingerprint_of(
    images: Sequence[Image],
    masks: Sequence[Image | None],
    captions: Sequence[str | None],
    proxies: Sequence[Image] = (),
) -> str:
    """Return the fingerprint of a subject: that of its images, and of what else it is trained on, if any."""
    found = image_fingerprint(images)
    if masks or captions:  # without them as in older runs
        parts = [None if mask is None else image_fingerprint([mask]) for mask in masks]
        found = hashlib.sha256(repr((found, parts, list(captions))).encode()).hexdigest()
    if proxies:
        found = hashlib.sha256(f"{found} {image_fingerprint(proxies)}".encode()).hexdigest()
    return found


def validation_prompts(noun: str, config: SamplesConfig, *, live: bool) -> tuple[PromptSpec, ...]:
    """Return `samples.prompts` or, without it, the prompts of `samples.prompt_set` for the class `noun`."""
    if config.prompts is not None:
        return plain_prompts(config.prompts)
    if config.prompt_set == "dreambench":
        return dreambench_prompts(live=live)
    from personalar.nano.world.prompt_set import bench_prompts

    return bench_prompts(noun, live=live)
