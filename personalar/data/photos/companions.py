"""Files that belong to a photo: masks (`x_mask.png`) and captions (`x.txt`), recognized by their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from personalar.config.subject_config import IN_STYLE, STYLE
from personalar.data.photos.photo_file import SUFFIXES, Unusable, check_entry, refusals
from personalar.data.prompts import SUBJECT_TOKEN, normalized

PICTURE_SUFFIXES = frozenset(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
CAPTION_SUFFIXES = (".txt", ".caption")
MASK = re.compile(r"(?P<before>.+)[-_. ]mask(label)?|mask[-_. ](?P<after>.+)")
"""File names of masks, without the suffix: x_mask, x-masklabel, mask_x."""
LONGEST_CAPTION = 1000
"""Characters; a longer text is not a prompt, and could exceed the context of a base."""


def pictures_by_name(entries: Sequence[Path]) -> dict[str, Path]:
    """Return the pictures by their names in small letters, with and without suffix."""
    pictures = [path for path in entries if path.suffix.lower() in PICTURE_SUFFIXES]
    # The mask of x.jpg can be called x_mask.png or x.jpg_mask.png.
    return {name.lower(): path for path in pictures for name in (path.stem, path.name)}


def companions(entries: Sequence[Path]) -> dict[Path, tuple[str, Path]]:
    """Return for each mask and each caption its kind ("mask", "caption") and its photo.

    A file counts only beside a photo of the same name.
    """
    photos = pictures_by_name(entries)
    found: dict[Path, tuple[str, Path]] = {}
    for path in entries:
        if path.suffix.lower() in CAPTION_SUFFIXES and (photo := photos.get(path.stem.lower())):
            found[path] = ("caption", photo)
        mask = MASK.fullmatch(path.stem.lower()) if path in photos.values() else None
        if mask and (photo := photos.get(mask["before"] or mask["after"])):
            found[path] = ("mask", photo)
    return found


def read_caption(path: Path) -> str:
    """Return the text of a caption in one line.

    Raises:
        Unusable: the file cannot be read, is empty, too long, or not UTF-8 text.
    """
    check_entry(path)
    with refusals(path):
        try:
            # -sig, because editors on Windows write a byte-order mark.
            with path.open(encoding="utf-8-sig") as stream:
                written = stream.read(LONGEST_CAPTION + 1)  # not all of a huge file
        except ValueError as error:
            raise Unusable("it is not UTF-8 text") from error
    text = normalized(written)
    if not text:
        raise Unusable("it is empty")
    if len(written) > LONGEST_CAPTION or not text.isprintable():
        raise Unusable(f"it must have 1 to {LONGEST_CAPTION} printable characters")
    return text


def caption_template(caption: str, noun: str) -> tuple[str, str]:
    """Return the training prompt for a caption, with "{}" for the subject, and how the subject was placed.

    Args:
        caption: with [V] it is used as it is; otherwise the first `noun` in it becomes the subject; without
            one the subject is appended. A style is always appended.
        noun: the class of the subject; "style" for a style.
    """
    if SUBJECT_TOKEN in caption or "{}" in caption:
        return caption, f"{SUBJECT_TOKEN} as written"
    if noun == STYLE:
        return f"{caption.rstrip(' .,;')} {IN_STYLE}", "the style appended"
    # Whole words only: "cat" must not be found in "cattle".
    word = re.compile(rf"(?<!\w){re.escape(noun)}(?!\w)", re.IGNORECASE)
    if word.search(caption):
        return word.sub("{}", caption, count=1), f"{SUBJECT_TOKEN} before the class"
    return f"{caption.rstrip(' .,;')}, {{}}", f"{SUBJECT_TOKEN} and the class appended"
