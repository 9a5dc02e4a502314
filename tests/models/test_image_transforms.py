"""Photographs to pixels: Lumina's buckets with their golden choices, crops and exact levels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from personalar.core.image_sizes import MAX_RATIO, Size, area_sizes, bucket_sizes, choose_bucket, fit
from personalar.models.image_transforms import preprocess, to_model_range, to_uint8

GOLDEN = {
    (1024, 1024): ((512, 512), (768, 768), (1024, 1024)),
    (1600, 1200): ((576, 448), (864, 640), (1152, 864)),
    (1920, 1080): ((672, 384), (1024, 576), (1344, 768)),
    (640, 480): ((576, 448), (864, 640), (1152, 864)),
    (512, 768): ((416, 608), (608, 928), (832, 1248)),
    (3000, 500): ((1024, 256), (1536, 384), (2048, 512)),
    (700, 512): ((576, 416), (864, 640), (1184, 864)),
}
SIZES_512 = """
1024x256 992x256 960x256 928x256 896x256 896x288 864x288 832x288 800x288 800x320 768x320 736x320
736x352 704x352 672x352 672x384 640x384 608x384 608x416 576x416 576x448 544x448 544x480 512x480
512x512 480x512 480x544 448x544 448x576 416x576 416x608 384x608 384x640 384x672 352x672 352x704
352x736 320x736 320x768 320x800 288x800 288x832 288x864 288x896 256x896 256x928 256x960 256x992
256x1024
"""


def picture(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize(("resolution", "count"), [(512, 49), (768, 73), (1024, 97)])
def test_bucket_counts(resolution: int, count: int) -> None:
    sizes = bucket_sizes(resolution, 32)
    assert len(sizes) == len(set(sizes)) == count
    assert {(height, width) for width, height in sizes} == set(sizes)
    assert (resolution, resolution) in sizes
    assert sizes[0] == (2 * resolution, resolution // 2)


def test_golden_sizes() -> None:
    assert [f"{width}x{height}" for width, height in bucket_sizes(512, 32)] == SIZES_512.split()
    assert len(SIZES_512.split()) == 49


@pytest.mark.parametrize(
    ("photo", "sizes", "chosen"),
    [
        ((512, 512), [(256, 512), (512, 256)], (512, 256)),  # both keep half of it
        ((64, 32), [(64, 16), (64, 64)], (64, 64)),  # of equal width the higher
        ((64, 32), [(32, 32), (64, 16)], (64, 16)),  # width comes before height
        ((10, 10), [(32, 32), (64, 64), (48, 48)], (64, 64)),
    ],
)
def test_of_sizes_that_keep_as_much_the_widest_then_the_highest(photo, sizes, chosen) -> None:
    assert choose_bucket(*photo, sizes) == choose_bucket(*photo, sizes[::-1]) == chosen


@pytest.mark.parametrize("size", GOLDEN)
def test_golden_choices(size: tuple[int, int]) -> None:
    got = tuple(choose_bucket(*size, bucket_sizes(resolution, 32)) for resolution in (512, 768, 1024))
    assert got == GOLDEN[size]


def rounded(ratio: float, resolution: int) -> Size:
    """The size that BAAI gives a photo of this width / height: each side of the area is rounded by itself."""
    sides = (resolution * ratio**0.5, resolution / ratio**0.5)
    return round(sides[0] / 8) * 8, round(sides[1] / 8) * 8


@pytest.mark.parametrize(("resolution", "count"), [(720, 271), (512, 193), (40, 17)])
def test_areas_with_rounded_sides_are_all_that_a_photo_can_get(resolution: int, count: int) -> None:
    sizes = area_sizes(resolution, 8)
    ratios = [MAX_RATIO ** (place / 20000 - 1) for place in range(40001)]
    assert set(sizes) == {rounded(ratio, resolution) for ratio in ratios}
    assert len(sizes) == count and (resolution, resolution) in sizes
    assert sizes[0][0] == sizes[-1][1] == 2 * resolution


@pytest.mark.parametrize("resolution", [720, 512])
def test_of_rounded_areas_a_photo_is_never_cropped(resolution: int) -> None:
    """What is stretched without a crop is not said to be cut off; only beyond 4:1 is something lost."""
    sizes = area_sizes(resolution, 8)
    shapes = [(width, 1000) for width in range(250, 4001, 25)]
    assert {fit(shape, sizes).cut for shape in shapes} == {0}
    assert fit((5000, 1000), sizes).cut == pytest.approx(0.2)


def test_a_shape_of_its_size_is_stretched_and_another_is_cropped() -> None:
    photo, how = picture(202, 160), {"sizes": [(80, 64)], "resize": "area"}
    expected = np.asarray(photo.resize((80, 64), Image.Resampling.BICUBIC))
    assert np.array_equal(to_uint8(preprocess(photo, **how)).numpy(), expected)
    wide = picture(300, 160)
    cropped = np.asarray(wide.resize((120, 64), Image.Resampling.BICUBIC))[:, 20:100]
    assert np.array_equal(to_uint8(preprocess(wide, **how)).numpy(), cropped)


def test_halvings_then_one_bicubic_step() -> None:
    image = picture(1920, 1080)
    half = image.resize((960, 540), Image.Resampling.BOX).resize((683, 384), Image.Resampling.BICUBIC)
    got = preprocess(image, sizes=bucket_sizes(512, 32))
    assert got.shape == (3, 384, 672)
    assert np.array_equal(to_uint8(got * (1 + 1e-6)).numpy(), np.asarray(half)[:, 5 : 5 + 672])


def test_random_crops_are_repeatable_and_cover_the_room() -> None:
    image, sizes = picture(48, 32), [(32, 32)]
    crops = [
        preprocess(image, sizes=sizes, crop="random", generator=torch.Generator().manual_seed(seed))
        for seed in range(60)
    ]
    assert torch.equal(
        crops[7], preprocess(image, sizes=sizes, crop="random", generator=torch.Generator().manual_seed(7))
    )
    lefts = {
        left for left in range(17) for crop in crops if np.array_equal(level(crop), level_of(image, left))
    }
    assert len(lefts) > 10 and {0, 16} <= lefts


def level(image: torch.Tensor) -> np.ndarray:
    return (image * 255).round().numpy().astype(np.uint8)


def level_of(image: Image.Image, left: int) -> np.ndarray:
    return np.asarray(image)[:, left : left + 32].transpose(2, 0, 1)


def test_center_crop_is_central() -> None:
    image = picture(48, 32)
    assert np.array_equal(level(preprocess(image, sizes=[(32, 32)])), level_of(image, 8))


def test_levels_are_bit_exact() -> None:
    levels = np.arange(256)
    images = torch.from_numpy(levels / 255.0).float()
    assert torch.equal(to_model_range(images), torch.from_numpy(levels / 255 * 2 - 1).float())
    assert to_model_range(torch.tensor([0.1234567])).item() == pytest.approx(2 * 0.1234567 - 1, abs=1e-7)


def test_uint8_truncates() -> None:
    image = torch.tensor([0.0, 0.5, 0.999, 1.0]).view(1, 4, 1).expand(3, 4, 1)
    assert to_uint8(image)[:, 0, 0].tolist() == [0, 127, 254, 255]
    assert to_uint8(torch.tensor([-1.0, 2.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1))[:, 0, 0, 0].tolist() == [
        0,
        255,
    ]


def test_chameleon_resizes_in_one_lanczos_step() -> None:
    image = picture(300, 200)
    expected = image.resize((96, 64), Image.Resampling.LANCZOS).crop((16, 0, 80, 64))
    got = preprocess(image, sizes=[(64, 64)], resize="lanczos")
    assert np.array_equal(level(got), np.asarray(expected).transpose(2, 0, 1))
