"""Starting embeddings from the image codes of the photos: centres of k-means (as in UniCTokens)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from personalar.concepts.adapters.identifier import word_norms
from personalar.models.base import Backend

MOST_STEPS = 100


def photo_rows(
    backend: Backend, photos: Sequence[Tensor], count: int, *, generator: torch.Generator
) -> Tensor:
    """Return embeddings (count, D) in float32: the centres of the photos' codes, with the mean norm of words.

    Args:
        backend: the base, which reads a code as an embedding of the width of a word's.
        photos: codes of each photo, of any shape.
        generator: chooses the first centres.

    Raises:
        ValueError: the photos have fewer different codes than `count`.
    """
    codes = torch.cat([photo.flatten() for photo in photos])
    different = len(codes.unique())
    if different < count:
        raise ValueError(
            f"model.recipe.identifier.further=kmeans needs {count} different image codes, but the photos "
            f"have {different}: set model.recipe.identifier.rows={different + 1} or less, or "
            "model.recipe.identifier.further=random"
        )
    with torch.no_grad():
        points = backend.embed(codes.to(backend.device)[None] + backend.code_offset)[0].float().cpu()
    centres = kmeans(points, count, generator=generator)
    return F.normalize(centres, dim=1) * word_norms(backend).mean().cpu()


def kmeans(points: Tensor, count: int, *, generator: torch.Generator) -> Tensor:
    """Return the centres (count, D) of points (N, D) by Lloyd's algorithm, from a k-means++ start."""
    centres = points[torch.randint(len(points), (1,), generator=generator)]
    while len(centres) < count:
        nearest = torch.cdist(points, centres).min(dim=1).values
        centres = torch.cat((centres, points[nearest.square().multinomial(1, generator=generator)]))
    for _ in range(MOST_STEPS):
        members = F.one_hot(torch.cdist(points, centres).argmin(dim=1), count).float()  # (N, count)
        sizes = members.sum(dim=0)[:, None]
        moved = torch.where(sizes > 0, members.T @ points / sizes.clamp_min(1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres
