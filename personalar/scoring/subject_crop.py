"""Likeness of the subject's bounding box, in addition to that of the whole picture.

Backgrounds count less there, and details more. The boxes of photos come from masks ("mask") or from the
rendered world ("truth"). For photos without a box, and for all generated pictures, a heat map finds it
("heat"): the projection of each patch's DINO features on the direction from background to subject. The box
contains the patches above the mean of the smallest and the largest value.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from PIL.Image import Image
from torch import Tensor

from personalar.core.measures import Measure
from personalar.core.types import Box, Sample, Subject
from personalar.scoring.base import ImageScorer, ImageTextScorer, Value, mean_similarity

MARGIN = 0.1
"""Share of the longer side of a box that is added to the square around it."""


class SubjectCrop:
    """A scorer (`base.Scorer`) that compares the square around the subject's box in photos and pictures.

    A line of "dino_crop" also contains "box".
    """

    batch = 64

    def __init__(self, clip: ImageTextScorer, dino: ImageScorer, subject: Subject) -> None:
        self.clip, self.dino = clip, dino
        known = subject.boxes or (None,) * len(subject.images)
        self.direction = subject_direction(dino, subject.images, known)
        self.boxes = [box or hot for box, hot in zip(known, self.find(subject.images), strict=True)]
        crops = [crop(image, box) for image, box in zip(subject.images, self.boxes, strict=True)]
        self.dino_references, self.clip_references = dino.features(crops), clip.image_features(crops)
        sources = {subject.box_source if box else "heat" for box in known}
        self.source = "+".join(sorted(sources))
        self.measures = tuple(
            Measure(name=name, title=f"{title} crop ({self.source})", range=(-1, 1))
            for name, title in (("dino_crop", "DINO"), ("clip_i_crop", "CLIP-I"))
        )

    @property
    def version(self) -> str:
        """Checkpoints and settings, recorded with every result."""
        weights = [judge.name.rpartition("#")[2] for judge in (self.dino, self.clip)]
        return json.dumps({"photos": self.source, "pictures": "heat", "margin": MARGIN, "weights": weights})

    def find(self, images: Sequence[Image]) -> list[Box]:
        """Return the box of the subject in each picture, found with the heat map."""
        heat = self.dino.patches(images) @ self.direction  # (B, h, w)
        views = [self.dino.preprocess.view(image.size) for image in images]
        return [heat_box(one, view) for one, view in zip(heat, views, strict=True)]

    def score(self, samples: Sequence[Sample], subject: Subject) -> dict[str, list[Value]]:
        """Return the likeness between the crop of each sample and the crops of the photos."""
        boxes = self.find([sample.image for sample in samples])
        crops = [crop(sample.image, box) for sample, box in zip(samples, boxes, strict=True)]
        likeness = mean_similarity(self.dino.features(crops), self.dino_references).tolist()
        lines: list[Value] = [
            {"value": value, "box": [round(end, 4) for end in box]}
            for value, box in zip(likeness, boxes, strict=True)
        ]
        clip_i = mean_similarity(self.clip.image_features(crops), self.clip_references).tolist()
        return {"dino_crop": lines, "clip_i_crop": clip_i}


def subject_direction(dino: ImageScorer, images: Sequence[Image], boxes: Sequence[Box | None]) -> Tensor:
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
    return (
        view[0] + across * columns[0] / width,
        view[1] + down * rows[0] / height,
        view[0] + across * (columns[-1] + 1) / width,
        view[1] + down * (rows[-1] + 1) / height,
    )


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
