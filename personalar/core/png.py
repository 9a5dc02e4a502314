"""PNG files, written atomically, with prompt, seed and other metadata in text chunks of the image."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from personalar.core.files import write_atomic
from personalar.core.types import PromptSpec, Sample

SAMPLE_NAME = r"(subject|class|description|prior|unrelated)_([a-z0-9-]+_)?[0-9a-f]{6}_s\d+\.png"
"""File names of a run's pictures, as `sample_filename` makes them."""
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, zlib.error, struct.error, Image.DecompressionBombError)
"""Errors that Pillow raises for damaged or oversized PNG files."""


def save_png(image: Image.Image, path: Path, metadata: Mapping[str, str] | None = None) -> Path:
    """Write `image` as a PNG with `metadata` in text chunks (UTF-8), and create the folder.

    It is not synced to disk at once; see `files.sync_files`.
    """
    chunks = PngImagePlugin.PngInfo()
    for key, value in (metadata or {}).items():
        chunks.add_itxt(key, value)
    data = io.BytesIO()  # in memory first, because the write must be atomic
    image.save(data, format="PNG", pnginfo=chunks)
    write_atomic(path, data.getvalue(), sync=False)
    return path


def read_png(path: Path) -> tuple[Image.Image, dict[str, str]]:
    """Return the image and the text chunks of a PNG file.

    Raises:
        FileNotFoundError, PermissionError: the file cannot be opened.
        ValueError: the file is damaged.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()  # before `text`: chunks may follow the pixels
            return image, {key: str(value) for key, value in image.text.items()}  # type: ignore[attr-defined]
    except (FileNotFoundError, PermissionError):
        raise
    except DAMAGED as error:
        raise ValueError(
            f"{path} is a damaged picture ({str(error)[:80] or type(error).__name__}): the command that made "
            "it makes it again"
        ) from error


def read_png_metadata(path: Path) -> dict[str, str]:
    """Return the text chunks of a PNG file; empty if it has none. Raises as `read_png`."""
    return read_png(path)[1]


def is_whole_png(path: Path) -> bool:
    """Return whether `path` is an undamaged PNG file, by its checksums; pixels are not decoded."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()
    except DAMAGED:
        return False
    return True


def sample_filename(kind: str, prompt: str, seed: int, *, facts: Mapping[str, str] | None = None) -> str:
    """Return a readable file name with the prompt's words, six hex digits of its hash, and the seed.

    Args:
        kind: the first part: the kind of a sample in a run folder, otherwise the subject's name.
        facts: everything else that determines the picture; the name ends with eight hex digits of its hash.
    """
    first, words = _slug(kind), _slug(prompt)
    # Words are cut and simplified, so similar prompts differ only in the hash.
    digest = hashlib.sha256(prompt.encode()).hexdigest()[:6]
    drawn = hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()[:8] if facts else None
    return "_".join(filter(None, (first, words, digest, f"s{seed}", drawn))) + ".png"


def _slug(text: str) -> str:
    """Return `text` as lower-case words joined by "-", at most 60 characters."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].strip("-")


def sample_files(folder: Path) -> list[Path]:
    """Return the generated pictures in `folder`, by their names; files of users are left out."""
    # By pattern and not by metadata: opening thousands of files takes seconds.
    return sorted(path for path in folder.glob("*.png") if re.fullmatch(SAMPLE_NAME, path.name))


def save_sample(sample: Sample, run_dir: Path, *, provenance: Mapping[str, str] | None = None) -> Sample:
    """Write `sample` to `run_dir/images/{stage}/` and return it with its path.

    Args:
        provenance: more metadata, such as the base and the hash of the concept.
    """
    spec = {key: value for key, value in dataclasses.asdict(sample.spec).items() if value is not None}
    spec["template"] = spec.pop("text")
    facts = {name: str(getattr(sample, name)) for name in ("stage", "prompt", "kind", "seed")}
    path = run_dir / "images" / sample.stage / sample_filename(sample.kind, sample.prompt, sample.seed)
    save_png(sample.image, path, {**(provenance or {}), **facts, **spec})
    return dataclasses.replace(sample, path=path)


def load_sample(path: Path) -> Sample:
    """Return the sample in a file of `save_sample`. Raises ValueError if the metadata are missing."""
    image, found = read_png(path)
    missing = [key for key in ("stage", "prompt", "kind", "seed", "template", "category") if key not in found]
    if missing:
        raise ValueError(
            f"{path} is not a sample of personalar: {', '.join(missing)} missing in its PNG metadata; "
            "only pictures of a run or of personalar.sample can be read"
        )
    fields: dict[str, Any] = {field.name: found.get(field.name) for field in dataclasses.fields(PromptSpec)}
    spec = PromptSpec(**fields | {"text": found["template"]})
    return Sample(
        stage=found["stage"],
        prompt=found["prompt"],
        kind=found["kind"],  # type: ignore[arg-type]  # written by save_sample
        seed=int(found["seed"]),
        spec=spec,
        image=image.convert("RGB"),
        path=path,
    )
