"""Scorers with the subject's bounding box: likeness inside, and what a concept changes outside.

In the box backgrounds count less, and details more. The boxes of photos come from masks ("mask") or from the
rendered world ("truth"). For photos without a box, and for all generated pictures, a heat map finds it
("heat"): the projection of each patch's DINO features on the direction from background to subject. The box
contains the patches above the mean of the smallest and the largest value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import ImageChops
from PIL.Image import Image
from torch import Tensor

from personalar.core.measures import Measure
from personalar.core.types import Box, Sample, Subject
from personalar.scoring.base import Value, mean_similarity
from personalar.scoring.features import ClipScorer, DinoScorer

MARGIN = 0.1
"""Share of the longer side of a box that is added to the square around it."""
SAME = 0.1
"""Largest difference of a pixel that counts as unchanged, as a share of the range of its values."""


class BoxFinder:
    """Finds the box of a subject in pictures with DINO's heat map.

    Attributes:
        source: where the boxes of the photos come from: "mask", "truth", "heat", or several of these.
        weights: hash of DINO's weights.
    """

    def __init__(self, dino: DinoScorer, subject: Subject) -> None:
        self.dino, self.weights = dino, dino.name.rpartition("#")[2]
        self.known = subject.boxes or (None,) * len(subject.images)
        self.direction = subject_direction(dino, subject.images, self.known)
        self.source = "+".join(sorted({subject.box_source if box else "heat" for box in self.known}))

    def find(self, images: Sequence[Image]) -> list[Box]:
        """Return the box of the subject in each picture."""
        heat = self.dino.patches(images) @ self.direction  # (B, h, w)
        views = [self.dino.preprocess.view(image.size) for image in images]
        return [heat_box(one, view) for one, view in zip(heat, views, strict=True)]


class SubjectCrop:
    """A scorer (`base.Scorer`) that compares the square around the subject's box in photos and pictures.

    A line of "dino_crop" also contains "box".
    """

    batch = 64

    def __init__(self, clip: ClipScorer, dino: DinoScorer, subject: Subject) -> None:
        self.clip, self.dino, self.finder = clip, dino, BoxFinder(dino, subject)
        found = zip(self.finder.known, self.finder.find(subject.images), strict=True)
        self.boxes = [box or hot for box, hot in found]
        crops = [crop(image, box) for image, box in zip(subject.images, self.boxes, strict=True)]
        self.dino_references, self.clip_references = dino.features(crops), clip.image_features(crops)
        self.source = self.finder.source
        self.measures = tuple(
            Measure(name=name, title=f"{title} crop ({self.source})", range=(-1, 1))
            for name, title in (("dino_crop", "DINO"), ("clip_i_crop", "CLIP-I"))
        )

    @property
    def version(self) -> str:
        """Checkpoints and settings, recorded with every result."""
        weights = [judge.name.rpartition("#")[2] for judge in (self.dino, self.clip)]
        return json.dumps({"photos": self.source, "pictures": "heat", "margin": MARGIN, "weights": weights})

    def score(self, samples: Sequence[Sample], subject: Subject) -> dict[str, list[Value]]:
        """Return the likeness between the crop of each sample and the crops of the photos."""
        boxes = self.finder.find([sample.image for sample in samples])
        crops = [crop(sample.image, box) for sample, box in zip(samples, boxes, strict=True)]
        likeness = mean_similarity(self.dino.features(crops), self.dino_references).tolist()
        lines: list[Value] = [
            {"value": value, "box": [round(end, 4) for end in box]}
            for value, box in zip(likeness, boxes, strict=True)
        ]
        clip_i = mean_similarity(self.clip.image_features(crops), self.clip_references).tolist()
        return {"dino_crop": lines, "clip_i_crop": clip_i}


class Outside:
    """A scorer (`base.Scorer`) of what a concept leaves unchanged outside of the subject.

    Each picture of the subject is compared with the base's picture of the same prompt, without [V], and the
    same seed. What is in the subject's box in either picture is left out. This follows Seg-Cons of PureCC
    (CVPR 2026), with boxes instead of segments.
    """

    batch = 64
    measures = (Measure(name="outside", title="unchanged outside", range=(0, 1)),)

    def __init__(self, dino: DinoScorer, subject: Subject) -> None:
        self.finder = BoxFinder(dino, subject)
        self.before: dict[tuple[str, int], Image] = {}
        """Pictures of the base by (prompt template, seed), stored when the base's samples are scored."""

    @property
    def version(self) -> str:
        """Scorer and rule; part of every result."""
        return json.dumps({"photos": self.finder.source, "same": SAME, "weights": self.finder.weights})

    def score(self, samples: Sequence[Sample], subject: Subject) -> dict[str, list[Value]]:
        """Return for each picture of the subject the share of pixels that are unchanged; None for others."""
        found: dict[int, Value] = {}
        pairs: dict[int, tuple[Image, Image]] = {}
        for place, sample in enumerate(samples):
            key = (sample.spec.text, sample.seed)
            if sample.kind == "subject" and sample.stage == "base":
                self.before[key] = sample.image
            elif sample.kind == "subject" and key in self.before:
                pairs[place] = (self.before[key], sample.image)
        if pairs:
            then, now = zip(*pairs.values(), strict=True)
            boxes = zip(self.finder.find(then), self.finder.find(now), strict=True)
            for (place, pair), both in zip(pairs.items(), boxes, strict=True):
                found[place] = unchanged_share(*pair, both)
        return {"outside": [found.get(place) for place in range(len(samples))]}


def unchanged_share(one: Image, other: Image, boxes: Sequence[Box]) -> float | None:
    """Return the share of the pixels outside of all `boxes` that are the same in two pictures of one size.

    A pixel is the same if its channels differ by at most `SAME` in the mean. None if nothing is outside.
    """
    difference = torch.from_numpy(np.asarray(ImageChops.difference(one, other), dtype=np.float32))
    same = difference.mean(dim=2) <= SAME * 255  # (height, width)
    outside = torch.ones_like(same)
    for left, top, right, bottom in boxes:
        rows = slice(int(top * one.height), math.ceil(bottom * one.height))
        outside[rows, int(left * one.width) : math.ceil(right * one.width)] = False
    return float(same[outside].float().mean()) if outside.any() else None


def subject_direction(dino: DinoScorer, images: Sequence[Image], boxes: Sequence[Box | None]) -> Tensor:
    """Return the direction (D,) from background to subject: the difference of their mean features.

    For a photo without a box the class token is used for the subject, and the outermost patches for the
    background.
    """
    patches, tokens = dino.patches(images), dino.features(images)  # (R, h, w, D), (R, D)
    subjects, backgrounds = [], []
    for patch, token, image, box in zip(patches, tokens, images, boxes, strict=True):
        inside = _inside(box, dino.preprocess.view(image.size), patch.shape[:2])
        border = torch.ones(patch.shape[:2], dtype=torch.bool)
        border[1:-1, 1:-1] = False
        # A box that covers all patches, or none, has no background, or no subject.
        usable = box is not None and inside.any() and not inside.all()
        subjects.append(patch[inside].mean(dim=0) if usable else token)
        backgrounds.append(patch[~inside if usable else border].mean(dim=0))
    return torch.stack(subjects).mean(dim=0) - torch.stack(backgrounds).mean(dim=0)


def _inside(box: Box | None, view: Box, grid: tuple[int, int]) -> Tensor:
    """Return a mask (h, w) of the patches whose centre is in the box."""
    if box is None:
        return torch.zeros(grid, dtype=torch.bool)
    height, width = grid
    xs = view[0] + (view[2] - view[0]) * (torch.arange(width) + 0.5) / width
    ys = view[1] + (view[3] - view[1]) * (torch.arange(height) + 0.5) / height
    return ((ys >= box[1]) & (ys < box[3]))[:, None] & ((xs >= box[0]) & (xs < box[2]))[None]


def heat_box(heat: Tensor, view: Box) -> Box:
    """Return the bounding box of the patches with large values in `heat` (h, w).

    Args:
        view: the part of the picture that the patches cover, see `ImagePreprocessor.view`.
    """
    hot = heat >= (heat.min() + heat.max()) / 2
    height, width = heat.shape
    rows, columns = hot.any(dim=1).nonzero().flatten().tolist(), hot.any(dim=0).nonzero().flatten().tolist()
    across, down = view[2] - view[0], view[3] - view[1]
    left, right = (view[0] + across * end / width for end in (columns[0], columns[-1] + 1))
    top, bottom = (view[1] + down * end / height for end in (rows[0], rows[-1] + 1))
    # The view, and so the box, can extend beyond the picture.
    return max(0.0, left), max(0.0, top), min(1.0, right), min(1.0, bottom)


def crop(image: Image, box: Box) -> Image:
    """Return the square around the box, moved into the picture if it fits; the outside is black."""
    left, right = box[0] * image.width, box[2] * image.width
    top, bottom = box[1] * image.height, box[3] * image.height
    side = max(1, round(max(right - left, bottom - top) * (1 + MARGIN)))
    x, y = _start((left + right) / 2, side, image.width), _start((top + bottom) / 2, side, image.height)
    return image.crop((x, y, x + side, y + side))


def _start(centre: float, side: int, size: int) -> int:
    """Return the start of a side: around `centre`, but inside the picture; centred if it is too long."""
    if side >= size:
        return (size - side) // 2
    return min(max(0, round(centre - side / 2)), size - side)
