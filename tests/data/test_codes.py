"""Photos as codes: crops, copies and the file that keeps them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest_backend import make_backend
from PIL import Image, ImageDraw, ImageOps

from personalar.config.recipe import DataNumbers
from personalar.data.codes import cached_codes, encode_photos, random_crop, stream_seed, subject_codes


def test_codes_are_computed_once_per_key(tmp_path: Path) -> None:
    calls = []

    def make() -> list[torch.Tensor]:
        calls.append(1)
        return [torch.tensor([[len(calls)]]), torch.tensor([[7, 8]])]

    path = tmp_path / "cache" / "codes.safetensors"
    first = cached_codes(path, ["a", 1], make)
    again = cached_codes(path, ["a", 1], make)
    assert [t.tolist() for t in again] == [t.tolist() for t in first] and again[0].dtype == torch.int64
    assert cached_codes(path, ["a", 2], make)[0].item() == 2 and len(calls) == 2
    path.write_bytes(path.read_bytes()[:-1])
    assert cached_codes(path, ["a", 2], make)[0].item() == 3


def test_crops_and_copies(tiny_backend) -> None:
    photos = [Image.linear_gradient("L").convert("RGB"), Image.radial_gradient("L").convert("RGB")]
    data = DataNumbers(templates=["{}"], crops_per_photo=3, copies_per_photo=2)
    pools = encode_photos(tiny_backend, photos, data, seed=0)
    assert [tuple(pool.shape) for pool in pools] == [(5, 4, 4)] * 2
    assert torch.equal(pools[0][3], pools[0][4])
    again = encode_photos(tiny_backend, photos, data, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(pools, again, strict=True))
    plain = encode_photos(tiny_backend, photos, dataclasses.replace(data, crops_per_photo=0), seed=0)
    assert torch.equal(plain[1][0], pools[1][4])


def test_random_crops_differ_between_copies_and_repeat_between_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, seen = make_backend(), []
    preprocess = backend.preprocess

    def spy(image: Image.Image, **how: object) -> torch.Tensor:
        seen.append(preprocess(image, **how))
        return seen[-1]

    monkeypatch.setattr(backend, "preprocess", spy)
    wide = [Image.linear_gradient("L").convert("RGB").rotate(90).resize((320, 64))]
    data = DataNumbers(templates=["{}"], crop="random", copies_per_photo=4)
    first = encode_photos(backend, wide, data, seed=3)
    assert len({tuple(view.flatten().tolist()) for view in seen}) > 1
    assert torch.equal(encode_photos(backend, wide, data, seed=3)[0], first[0])
    centred = encode_photos(backend, wide, dataclasses.replace(data, crop="center"), seed=3)[0]
    assert len(seen) == 4 + 4 + 1 and torch.equal(centred[0], centred[3])


def test_a_crop_keeps_the_aspect_and_the_smallest_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [random_crop(Image.new("RGB", (200, 100)), 0.5, generator).size for _ in range(50)]
    assert all(99 <= w <= 200 and abs(w - 2 * h) <= 1 for w, h in sizes) and len(set(sizes)) > 10


def test_seeds_differ_by_any_part() -> None:
    seeds = {stream_seed(0, "a", 1), stream_seed(0, "a", 2), stream_seed(1, "a", 1), stream_seed(0, "b", 1)}
    assert len(seeds) == 4 and all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("crop", ["center", "random"])
@pytest.mark.parametrize("flip", [False, True])
def test_a_mask_takes_the_way_of_its_photo(crop: str, flip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A photo that is white on the subject alone is its own mask: the oracle reads the photo's pixels."""
    backend, seen = make_backend(buckets="aspect"), []
    photo = Image.new("RGB", (300, 120))
    ImageDraw.Draw(photo).ellipse((40, 20, 130, 110), fill="white")
    data = DataNumbers(templates=["{}"], crops_per_photo=3, copies_per_photo=2, crop=crop)
    encode = backend.encode_images
    monkeypatch.setattr(backend, "encode_images", lambda pixels: seen.append(pixels) or encode(pixels))
    pools = encode_photos(backend, [photo, photo], data, seed=1, flip=flip)
    views = [torch.cat(seen[start : start + 1 + flip]) for start in (0, 1 + flip)]
    masked, whole = subject_codes(backend, [photo.convert("L"), None], pools, data, seed=1, flip=flip)
    assert masked.shape == pools[0].shape and torch.equal(whole, torch.ones_like(pools[1]))
    h, w = pools[0].shape[1:]
    expected = views[0].mean(1).unfold(1, 8, 8).unfold(2, 8, 8).mean((-1, -2)) >= 0.25
    assert expected.shape[1:] == (h, w) and 0 < expected.sum() < expected.numel()
    if crop == "random":  # otherwise equal copies are read once
        assert torch.equal(masked.bool(), expected)
    else:
        read = [row for row in masked.bool() if any(torch.equal(row, other) for other in expected)]
        assert len(read) == len(masked)


def test_mirrored_views_come_before_the_others() -> None:
    backend, data = make_backend(), DataNumbers(templates=["{}"], crops_per_photo=2, copies_per_photo=2)
    photo = Image.linear_gradient("L").rotate(90).convert("RGB")
    plain = encode_photos(backend, [photo], data, seed=0)[0]
    mirrored = encode_photos(backend, [ImageOps.mirror(photo)], data, seed=0)[0]
    both = encode_photos(backend, [photo], data, seed=0, flip=True)[0]
    assert torch.equal(both, torch.cat((mirrored, plain))) and not torch.equal(mirrored, plain)


def test_a_mask_that_the_crop_removes_is_an_error(tiny_backend) -> None:
    photo = Image.new("L", (320, 64))
    photo.paste(255, (0, 0, 20, 64))
    data = DataNumbers(templates=["{}"])
    pools = encode_photos(tiny_backend, [photo.convert("RGB")], data, seed=0)
    with pytest.raises(ValueError, match="photo 1: its mask leaves nothing of the subject after the crop"):
        subject_codes(tiny_backend, [photo], pools, data, seed=0)
