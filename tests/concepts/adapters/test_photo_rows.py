"""Starts of further rows: k-means against clusters that are known."""

from __future__ import annotations

import pytest
import torch

from personalar.concepts.adapters.identifier import word_norms
from personalar.concepts.adapters.photo_rows import kmeans, photo_rows


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_centres_are_the_means_of_clusters() -> None:
    clusters = [torch.randn(n, 5, generator=seeded(n)) + 100 * place for place, n in enumerate((3, 8, 20))]
    centres = kmeans(torch.cat(clusters)[torch.randperm(31, generator=seeded())], 3, generator=seeded(1))
    expected = torch.stack([cluster.mean(0) for cluster in clusters])
    assert torch.allclose(centres[centres[:, 0].argsort()], expected, atol=1e-4)


def test_as_many_centres_as_points_are_the_points() -> None:
    points = torch.randn(6, 3, generator=seeded())
    centres = kmeans(points.repeat(4, 1), 6, generator=seeded(1))
    assert torch.cdist(points, centres).min(dim=1).values.max() < 1e-5


@pytest.mark.parametrize("base", ["tiny_backend", "janus_backend", "emu3_backend"])
def test_rows_are_codes_of_the_photos_with_the_norm_of_words(base: str, request) -> None:
    """One code per cluster: the oracle reads the embedding as the network does, from each family's table."""
    backend = request.getfixturevalue(base)
    photo = torch.tensor([[1, 3], [3, 1]])
    rows = photo_rows(backend, [photo], 2, generator=seeded())
    codes = backend.embed(torch.tensor([[1, 3]]) + backend.code_offset)[0].detach()
    mean = word_norms(backend).mean()
    expected = codes / codes.norm(dim=1, keepdim=True) * mean
    assert torch.cdist(expected, rows).min(dim=1).values.max() < 1e-4 * mean
    assert torch.equal(rows, photo_rows(backend, [photo], 2, generator=seeded()))
    with pytest.raises(
        ValueError,
        match=r"needs 3 different image codes, but the photos have 2: set .*\.rows=3 or less, or model\.",
    ):
        photo_rows(backend, [photo], 3, generator=seeded())
