"""Subjects: a rendered one of the embedded world, or a folder of photos; read before any model loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from personalar.config.plugins import build
from personalar.config.run_config import SamplesConfig, SubjectConfig
from personalar.core.image_sizes import Size, fit, written
from personalar.core.process import global_rank
from personalar.core.types import PromptSpec, Subject, image_fingerprint
from personalar.data.dreambench import dreambench_prompts
from personalar.data.photos import Photo, inspect_folder, print_table
from personalar.data.prompts import LIVE_NOUNS, check_text, plain_prompts

LONGEST = 120
"""Characters of a name, a class or a description; more would crowd the rest out of a prompt."""
CUT_NOTED = 0.2
"""Share of a photo's area; a base of one square cuts a quarter off a 4:3 photo, and a head with it."""
ENLARGED_NOTED = 1.1
"""Times; a little enlargement is not seen."""
MANY_PHOTOS = 20


def fitted(photo: Photo, sizes: Sequence[Size]) -> Photo:
    """Return `photo` with notes on the crop and the enlargement to the best of a base's `sizes`."""
    if photo.image is None:
        return photo
    found, notes = fit(photo.image.size, sizes), list(photo.notes)
    size = written(found.size)
    if found.cut >= CUT_NOTED:
        where = "at top and bottom" if found.tall else "left and right"
        notes.append(f"much is cut off {where} to fill {size}: crop it yourself around the thing")
    if found.enlarged >= ENLARGED_NOTED:
        notes.append(f"enlarged {found.enlarged:.1f} times to fill {size}, blurred: take a larger one")
    return replace(photo, cut=found.cut, notes=tuple(notes))


def count_note(photos: int) -> str | None:
    """Return a note on very few photos or very many; None for a usual number."""
    if photos == 1:
        return "one photo; 3 to 6 from different sides are better"
    if photos > MANY_PHOTOS:
        return (
            f"{photos} photos, and the method is made for 3 to 6: the steps stay the same, so each is seen "
            "less often, and all must be encoded; keep the best few, or raise model.recipe.stages.*.steps"
        )
    return None


def read_folder(folder: Path, sizes: Sequence[Size] | None = None) -> tuple[Image.Image, ...]:
    """Return the usable photos of `folder`, and print the verdict on every entry.

    Args:
        sizes: those of the base that is to learn them; None: without notes on crops.

    Raises:
        FileNotFoundError: the folder is missing, or contains no usable photo.
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
    if global_rank() > 0:  # every process of a run reads them, one shows them
        return images
    print_table(photos if sizes is None else [fitted(photo, sizes) for photo in photos])
    if (note := count_note(len(images))) is not None:
        print(f"note: {note}")
    return images


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


def load_subject(config: SubjectConfig, sizes: Sequence[Size] | None = None) -> Subject:
    """Render or read the subject; every photo is opened here, so that nothing fails later.

    Args:
        sizes: those of the base that is to learn it, for notes on crops.

    Raises:
        FileNotFoundError, ValueError: the folder or a photo in it cannot be used.
    """
    _check_words(config)
    if config.source:
        return build("subject.source", config.source)
    if config.kind == "folder":
        if config.path is None:
            raise ValueError(
                "+subject=folder needs subject.path=DIR (your photos) and subject.noun=dog (what they show)"
            )
        images, own = read_folder(Path(config.path).expanduser(), sizes), {}
        live, description = config.noun in LIVE_NOUNS, config.description
    else:
        from personalar.nano.world.subjects import rendered_subject

        rendered = rendered_subject(config.noun, config.seed)
        images, own = rendered.train, {"holdout": rendered.holdout, "others": rendered.others}
        live, description = rendered.live, config.description or rendered.description
    return Subject(
        name=config.name,
        noun=config.noun,
        images=images,
        live=live if config.live is None else config.live,
        description=description,
        fingerprint=image_fingerprint(images),
        **own,
    )


def validation_prompts(noun: str, config: SamplesConfig, *, live: bool = False) -> tuple[PromptSpec, ...]:
    """Return the prompts of the configuration, or those of its prompt set for `noun`."""
    if config.prompts is not None:
        return plain_prompts(config.prompts)
    if config.prompt_set == "dreambench":
        return dreambench_prompts(live=live)
    from personalar.nano.world.prompt_set import bench_prompts

    return tuple(bench_prompts(noun))
