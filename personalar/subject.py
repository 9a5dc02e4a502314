"""Subjects: a rendered one of the embedded world, or a folder of photos; looked at before any model loads."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from personalar.config import SamplesConfig, SubjectConfig
from personalar.dreambench import dreambench_prompts
from personalar.photos import inspect_folder, print_table
from personalar.prompts import LIVE_NOUNS, check_text, plain_prompts
from personalar.types import PromptSpec, Subject, image_fingerprint

LONGEST = 120
"""Characters of a name, a class or a description; more would crowd the rest out of a prompt."""


def read_folder(folder: Path) -> tuple[Image.Image, ...]:
    """Return the usable photos of `folder`, and show what became of every entry.

    Raises:
        FileNotFoundError: when there is no such folder, or no usable photo in it.
    """
    photos = inspect_folder(folder)
    images = tuple(photo.image for photo in photos if photo.image is not None)
    if not images:
        seen = [f"{photo.path.name}: {'; '.join(photo.notes)}" for photo in photos[:5]]
        more = [f"and {len(photos) - 5} more"] if len(photos) > 5 else []
        raise FileNotFoundError(
            f"subject.path={folder} holds no usable photo ({', '.join(seen + more) or 'it is empty'}): "
            "put 3 to 6 photos of one thing there, as JPEG, PNG, WebP or TIFF"
        )
    print_table(photos)
    if len(images) == 1:
        print("note: one photo; 3 to 6 from different sides are better")
    return images


def _folder_subject(config: SubjectConfig) -> Subject:
    if config.path is None:
        raise ValueError(
            "+subject=folder needs subject.path=DIR (your photos) and subject.noun=dog (what they show)"
        )
    images = read_folder(Path(config.path).expanduser())
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


def _check_words(config: SubjectConfig) -> None:
    """Refuse words that would break every prompt and file name they go into."""
    for knob, text in (("noun", config.noun), ("name", config.name), ("description", config.description)):
        if text is None:
            continue
        check_text(text, f"subject.{knob}")
        if not text.strip() or len(text) > LONGEST or not text.isprintable():
            raise ValueError(
                f"subject.{knob}={text[:60]!r} must be plain words, at least one and at most {LONGEST} "
                "characters on one line"
            )


def load_subject(config: SubjectConfig) -> Subject:
    """Render or read the subject; every photo is opened here, so that nothing fails later.

    Raises:
        FileNotFoundError, ValueError: when the folder or a photo in it cannot be used.
    """
    _check_words(config)
    return _folder_subject(config) if config.kind == "folder" else _rendered_subject(config)


def validation_prompts(noun: str, config: SamplesConfig, *, live: bool = False) -> tuple[PromptSpec, ...]:
    """Return the prompts of the configuration, or those of its prompt set for `noun`."""
    if config.prompts is not None:
        return plain_prompts(config.prompts)
    if config.prompt_set == "dreambench":
        return dreambench_prompts(live=live)
    from personalar.world.prompts import bench_prompts

    return tuple(bench_prompts(noun))
