"""Photos as codes of the base's image tokenizer: cropped, encoded once and kept in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from personalar.config.recipe import DataNumbers
from personalar.core.files import write_atomic
from personalar.models.base import Backend

ENCODE_BATCH = 16


def stream_seed(*parts: object) -> int:
    """Return a 63-bit seed that any change of any part changes."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def uniform(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    """Draw a number between `low` and `high`."""
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def random_crop(photo: Image.Image, scale_min: float, generator: torch.Generator) -> Image.Image:
    """Cut a window of the photo's aspect, between `scale_min` and 1 of its size, anywhere in it."""
    scale = uniform(generator, scale_min)
    width, height = max(1, round(photo.width * scale)), max(1, round(photo.height * scale))
    left = round(uniform(generator, 0, photo.width - width))
    top = round(uniform(generator, 0, photo.height - height))
    return photo.crop((left, top, left + width, top + height))


@torch.no_grad()
def encode_photos(
    backend: Backend, photos: Sequence[Image.Image], data: DataNumbers, *, seed: int
) -> list[Tensor]:
    """Return per photo the codes (A, h, w) of its A crops and copies; photos may differ in (h, w)."""
    pools = []
    for index, photo in enumerate(photos):
        generator = torch.Generator().manual_seed(stream_seed(seed, "crops", index))
        size = backend.best_size(photo)
        views = [random_crop(photo, data.crop_scale, generator) for _ in range(data.crops_per_photo)]
        alike = data.crop == "center"  # the same picture has the same codes
        views += [photo] * (min(1, data.copies_per_photo) if alike else data.copies_per_photo)
        pixels = torch.stack(
            [backend.preprocess(view, size=size, crop=data.crop, generator=generator) for view in views]
        )
        codes = torch.cat([backend.encode_images(part) for part in pixels.split(ENCODE_BATCH)]).cpu()
        if alike and data.copies_per_photo:
            codes = torch.cat((codes[:-1], codes[-1:].expand(data.copies_per_photo, -1, -1)))
        pools.append(codes)
    return pools


def cached_codes(path: Path, key: object, make: Callable[[], list[Tensor]]) -> list[Tensor]:
    """Return the tensors stored at `path` for `key`, or make and store them, also where they are damaged."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    with suppress(OSError, SafetensorError), safe_open(path, framework="pt") as stored:
        packed = {name: stored.get_tensor(name) for name in sorted(stored.keys())}
        if (stored.metadata() or {}).get("key") in (
            digest,
            f"{digest} {_hash(packed)}",
        ):  # older, newer files
            return [codes.long() for codes in packed.values()]
    tensors = make()
    packed = {f"{index:05d}": tensor.to(torch.int32).contiguous() for index, tensor in enumerate(tensors)}
    write_atomic(path, save(packed, metadata={"key": f"{digest} {_hash(packed)}"}))
    return tensors


def _hash(tensors: Mapping[str, Tensor]) -> str:
    return hashlib.sha256(save(dict(tensors))).hexdigest()
