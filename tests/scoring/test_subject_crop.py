"""The subject's box, found by heat and checked against the rendered world, and the likeness on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest_run import compose_config
from PIL import Image
from test_subject_scorer import SNOW, picture, sample, subject

from personalar.config.fingerprint import request_of
from personalar.core.types import Box
from personalar.data.subject import load_subject
from personalar.nano.world.album import Picture, draw
from personalar.nano.world.prompt_set import bench_prompts
from personalar.nano.world.scene import thing_box
from personalar.nano.world.subjects import scene_for_prompt, subject_instance
from personalar.scoring.image_processor import ImagePreprocessor
from personalar.scoring.judges import Judges, load_judges
from personalar.scoring.subject_crop import Outside, SubjectCrop, crop, heat_box, unchanged_share
from personalar.scoring.subject_scorer import load_pair

WHOLE = (0.0, 0.0, 1.0, 1.0)


def overlap(one: Box, other: Box) -> float:
    """Return intersection over union."""

    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(0, right - left) * max(0, bottom - top)

    low, high = (map(max, one[:2], other[:2]), map(min, one[2:], other[2:]))
    shared = area(*low, *high)
    return shared / (area(*one) + area(*other) - shared)


@pytest.mark.parametrize("known", [True, False])
def test_heat_finds_the_thing_in_unseen_views(known: bool) -> None:
    """With and without the photos' own boxes; mean overlap with the truth of 0.70 over five kinds."""
    config = compose_config("+subject=cat").scorer
    clip, dino = load_pair(config)
    found = []
    for noun in ("cat", "teapot"):
        owner = load_subject(compose_config(f"+subject={noun}").subject)
        judge = SubjectCrop(clip, dino, owner if known else replace(owner, boxes=()))
        rng = np.random.default_rng(0)
        scenes = [scene_for_prompt(subject_instance(noun, 0), spec, rng) for spec in bench_prompts(noun)]
        boxes = judge.finder.find([draw(Picture(scenes=(scene,))) for scene in scenes])
        found += [overlap(box, thing_box(scene)) for box, scene in zip(boxes, scenes, strict=True)]
    assert np.mean(found) > 0.6 and np.mean(np.array(found) > 0.5) > 0.85


def test_hot_patches_become_a_box_of_the_picture() -> None:
    heat = torch.zeros(4, 8)
    heat[1:3, 2:6] = 1
    heat[0, 0] = 0.4
    assert heat_box(heat, WHOLE) == (0.25, 0.25, 0.75, 0.75)
    assert heat_box(heat, (0.5, 0.0, 1.0, 1.0)) == (0.625, 0.25, 0.875, 0.75)
    assert heat_box(torch.zeros(2, 2), WHOLE) == WHOLE
    assert heat_box(torch.zeros(2, 2), (-0.4, -0.4, 1.4, 1.4)) == WHOLE  # a crop larger than the picture


def test_the_view_is_what_the_preprocessing_leaves() -> None:
    square = ImagePreprocessor.resize_256_crop_224()
    assert square.view((512, 512)) == (16 / 256, 16 / 256, 240 / 256, 240 / 256)
    left, top, right, bottom = square.view((1024, 512))
    assert (left, right) == (144 / 512, 368 / 512) and (top, bottom) == (16 / 256, 240 / 256)
    assert ImagePreprocessor(size={"height": 20, "width": 20}).view((30, 20)) == WHOLE


@pytest.mark.parametrize(
    ("box", "size", "corner"),
    [
        ((0.4, 0.4, 0.6, 0.6), 22, (39, 39)),  # around the centre, with a margin
        ((0.0, 0.4, 0.1, 0.6), 22, (0, 39)),  # shifted to lie inside
        ((0.0, 0.0, 1.0, 1.0), 110, None),  # more than the picture: black around it
    ],
)
def test_the_crop_is_a_square_inside_the_picture(box: Box, size: int, corner: tuple | None) -> None:
    values = np.arange(100 * 100, dtype=np.int32).reshape(100, 100)
    image = Image.fromarray(np.stack([values % 256, values // 256, values * 0 + 9], -1).astype(np.uint8))
    found = crop(image, box)
    assert found.size == (size, size)
    expected = image.getpixel(corner) if corner else (0, 0, 0)
    assert found.getpixel((0, 0)) == expected


def test_it_is_measured_beside_the_plain_number(tiny_scorer_dir: Path) -> None:
    words = [f"scorer.{name}={tiny_scorer_dir / name}" for name in ("clip", "dino")]
    config = compose_config("+subject=cat", *words, "scorer.subject_crop=true")
    photos = (picture(1, (96, 96)), picture(2, (96, 96)))
    masked = subject(images=photos, boxes=((0.25, 0.25, 0.75, 0.75), None))
    judges = load_judges(config.scorer, masked, prompts=(), device="cpu")
    titles = {measure.name: measure.title for measure in judges.measures}
    assert (
        titles["dino_crop"] == "DINO crop (heat+mask)" and titles["clip_i_crop"] == "CLIP-I crop (heat+mask)"
    )
    assert '"photos": "heat+mask"' in judges.names["subject_crop"].replace("\\", "")
    lines = {line["scorer"]: line for line in judges.score([sample(SNOW, photos[0])])}
    assert {"dino", "dino_crop", "clip_i_crop"} <= set(lines) and len(lines["dino_crop"]["box"]) == 4
    assert -1 <= lines["dino_crop"]["value"] <= 1
    assert request_of(config)["scorer"]["subject_crop"] is True


def test_a_picture_that_is_the_photo_is_alike(tiny_scorer_dir: Path) -> None:
    config = compose_config("+subject=cat", *[f"scorer.{n}={tiny_scorer_dir / n}" for n in ("clip", "dino")])
    photo = picture(3, (96, 96))
    judge = SubjectCrop(*load_pair(config.scorer), subject(images=(photo,)))
    lines = Judges(subject(images=(photo,)), None, {"crop": judge}, {}).score([sample(SNOW, photo)])
    assert [line["value"] for line in lines] == pytest.approx([1, 1], abs=1e-5)


def test_a_change_outside_of_the_subject_is_seen_and_one_inside_is_not() -> None:
    """Rendered scenes with another individual of the class: the truth is that nothing else has changed."""
    owner = load_subject(compose_config("+subject=cat").subject)
    judge = Outside(load_pair(compose_config("+subject=cat").scorer)[1], owner)
    pictures = []
    for number, spec in enumerate(bench_prompts("cat")[:4]):
        scenes = [
            scene_for_prompt(subject_instance("cat", seed), spec, np.random.default_rng(number))
            for seed in (0, 5)
        ]
        one, other = (draw(Picture(scenes=(scene,))) for scene in scenes)
        assert unchanged_share(one, other, [thing_box(scene) for scene in scenes]) > 0.99
        pictures.append((spec, one, other))
    base = [sample(spec, one) for spec, one, _ in pictures]
    same = [sample(spec, other) for spec, _, other in pictures]
    moved = [sample(pictures[k][0], pictures[-1 - k][2]) for k in range(4)]  # pictures of other prompts
    assert judge.score([replace(one, stage="base") for one in base], owner)["outside"] == [None] * 4
    assert min(judge.score([replace(one, stage="embedding") for one in same], owner)["outside"]) > 0.98
    assert np.mean(judge.score([replace(one, stage="embedding") for one in moved], owner)["outside"]) < 0.5


def test_the_unchanged_share_counts_pixels_outside_of_both_boxes() -> None:
    one, other = Image.new("RGB", (10, 10), (100, 100, 100)), Image.new("RGB", (10, 10), (100, 100, 100))
    other.paste((200, 100, 100), (0, 0, 10, 1))  # a third of the difference is above a tenth of the range
    other.paste((160, 100, 100), (0, 9, 10, 10))  # 20 of 255 in the mean is not
    assert unchanged_share(one, other, []) == pytest.approx(0.9)
    assert unchanged_share(one, other, [(0.0, 0.0, 0.5, 0.1)]) == pytest.approx(90 / 95)
    assert unchanged_share(one, other, [WHOLE]) is None
