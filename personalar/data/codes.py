"""Encode training photos with the base's image tokenizer, once per run, and cache the codes on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from personalar.config.recipe import DataNumbers
from personalar.core.files import write_atomic
from personalar.models.base import Backend

ENCODE_BATCH = 16
"""Images per forward pass of the image tokenizer."""
LEAST_COVERED = 0.25
"""Share of a code's pixels that the mask must cover; with half, thin parts such as legs would be lost."""


def stream_seed(*parts: object) -> int:
    """Return a 63-bit seed derived from `parts`; changing any part gives an unrelated seed."""
    # Python's hash() is randomized per process, so it cannot seed a reproducible stream.
    # The shift keeps the seed within a signed 64-bit integer, which torch tensors can store.
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def uniform(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    """Draw a float uniformly from [low, high)."""
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def random_crop(photo: Image.Image, scale_min: float, generator: torch.Generator) -> Image.Image:
    """Crop a random window with the photo's aspect ratio.

    Args:
        photo: any size and mode.
        scale_min: smallest side of the window as a fraction of the photo's side, in (0, 1].
        generator: source of the window's scale and position.
    """
    scale = uniform(generator, scale_min)
    width, height = max(1, round(photo.width * scale)), max(1, round(photo.height * scale))
    left = round(uniform(generator, 0, photo.width - width))
    top = round(uniform(generator, 0, photo.height - height))
    return photo.crop((left, top, left + width, top + height))


def view_pixels(
    backend: Backend, photo: Image.Image, data: DataNumbers, *, flip: bool, generator: torch.Generator
) -> Tensor:
    """Return the pixels (A, 3, H, W) in [0, 1] of a photo's random crops and uncropped copies.

    Args:
        backend: the base, which fits a view to one of its sizes.
        photo: any size. The geometry depends only on its size, so a mask of the same size has the
            same views.
        data: number of crops and copies. Copies that are equal, because of crop="center", are returned once.
        flip: mirror the photo first.
        generator: source of the crops.
    """
    photo = ImageOps.mirror(photo) if flip else photo
    size = backend.best_size(photo)
    views = [random_crop(photo, data.crop_scale, generator) for _ in range(data.crops_per_photo)]
    views += [photo] * (min(1, data.copies_per_photo) if data.crop == "center" else data.copies_per_photo)
    return torch.stack(
        [backend.preprocess(view, size=size, crop=data.crop, generator=generator) for view in views]
    )


def all_views(
    backend: Backend,
    photo: Image.Image,
    data: DataNumbers,
    read: Callable[[Tensor], Tensor],
    *,
    seed: int,
    flip: bool,
) -> Tensor:
    """Return `read` of the pixels of all views of a photo; with `flip`, mirrored views come first.

    Args:
        read: maps pixels (A, 3, H, W) to (A, h, w).
        seed: seed of the crops.
        flip: also use mirrored views.
    """
    pools = []
    for mirrored in (True, False) if flip else (False,):
        generator = torch.Generator().manual_seed(seed)
        found = read(view_pixels(backend, photo, data, flip=mirrored, generator=generator))
        # A center crop is deterministic, so all copies have the same codes: repeat those of the one.
        if data.crop == "center" and data.copies_per_photo:
            found = torch.cat((found[:-1], found[-1:].expand(data.copies_per_photo, -1, -1)))
        pools.append(found)
    return torch.cat(pools)


@torch.no_grad()
def encode_photos(
    backend: Backend,
    photos: Sequence[Image.Image],
    data: DataNumbers,
    *,
    seed: int,
    flip: bool = False,
    progress: Callable[[], object] = lambda: None,
) -> list[Tensor]:
    """Encode random crops and uncropped copies of each photo.

    Args:
        backend: the base whose image tokenizer encodes.
        photos: RGB images of any size.
        data: number of crops and copies, and how a photo is fitted to the base's image size.
        seed: seed of the crops; each photo has its own stream, so adding a photo changes no other.
        flip: also encode mirrored crops and copies, before the others.
        progress: called after each photo.

    Returns:
        Per photo an int64 tensor (A, h, w) with the codes of its A views. Photos of different aspect
        ratios can differ in (h, w).
    """

    def encode(pixels: Tensor) -> Tensor:
        return torch.cat([backend.encode_images(part) for part in pixels.split(ENCODE_BATCH)]).cpu()

    pools = []
    for index, photo in enumerate(photos):
        own = stream_seed(seed, "crops", index)
        pools.append(all_views(backend, photo, data, encode, seed=own, flip=flip))
        progress()
    return pools


def subject_codes(
    backend: Backend,
    masks: Sequence[Image.Image | None],
    pools: Sequence[Tensor],
    data: DataNumbers,
    *,
    seed: int,
    flip: bool = False,
) -> list[Tensor]:
    """Return which codes are on the subject, for each photo int64 0 or 1 of the shape of its codes.

    Args:
        masks: the mask of each photo, of its size; None: all codes are on the subject.
        pools: the result of `encode_photos` with the same other arguments.

    Raises:
        ValueError: no view of a photo shows any of its subject.
    """
    found = []
    for index, (mask, pool) in enumerate(zip(masks, pools, strict=True)):
        if mask is None:
            found.append(torch.ones_like(pool))
            continue
        h, w = pool.shape[1:]

        def read(pixels: Tensor, grid: tuple[int, int] = (h, w)) -> Tensor:
            return (F.adaptive_avg_pool2d(pixels.mean(1), grid) >= LEAST_COVERED).long()

        own = stream_seed(seed, "crops", index)
        found.append(all_views(backend, mask.convert("RGB"), data, read, seed=own, flip=flip))
        if not found[-1].any():
            raise ValueError(
                f"photo {index + 1}: its mask leaves nothing of the subject after the crop to the base's "
                "image size: crop the photo around the subject, or make the white part of the mask larger"
            )
    return found


def cached_codes(path: Path, key: object, make: Callable[[], list[Tensor]]) -> list[Tensor]:
    """Return the codes (int64) cached at `path`, or those of `make`, cached; see `cached_tensors`."""
    return [codes.long() for codes in cached_tensors(path, key, lambda: [c.to(torch.int32) for c in make()])]


def cached_tensors(path: Path, key: object, make: Callable[[], list[Tensor]]) -> list[Tensor]:
    """Return the tensors cached at `path`, or call `make` and cache its result.

    Args:
        path: safetensors file; a missing, outdated or truncated file is written again.
        key: JSON-serializable description of everything that determines the tensors.
        make: computes the tensors.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    with suppress(OSError, SafetensorError), safe_open(path, framework="pt") as stored:
        if (stored.metadata() or {}).get("key") == digest:
            return [stored.get_tensor(name) for name in sorted(stored.keys())]
    tensors = make()
    # Zero-padded names keep the photos' order, because the loader above sorts the names as text.
    packed = {f"{index:05d}": tensor.contiguous() for index, tensor in enumerate(tensors)}
    write_atomic(path, save(packed, metadata={"key": digest}))
    return tensors
