"""Features are computed once for the same content, in batches."""

from __future__ import annotations

import torch
from PIL import Image
from test_subject_scorer import plain, subject

from personalar.scoring.features import ClipScorer, DinoScorer, FeatureCache
from personalar.scoring.subject_scorer import SubjectScorer


def counted() -> tuple[FeatureCache, list[list[int]]]:
    calls: list[list[int]] = []

    def forward(items: list[int]) -> torch.Tensor:
        calls.append(list(items))
        return torch.tensor([[float(item), 1.0] for item in items])

    return FeatureCache(forward, int, batch_size=2), calls


def test_known_content_is_not_computed_again() -> None:
    cache, calls = counted()
    assert cache([3, 4, 3, 5])[:, 0].tolist() == [3, 4, 3, 5] and calls == [[3, 4], [5]]
    assert cache([5, 6])[:, 0].tolist() == [5, 6] and calls[2:] == [[6]]
    assert cache([]).shape == (0, 0)


def test_references_are_judged_by_content_once(tiny_scorer_dir, monkeypatch) -> None:
    """A second subject with the same photos, and its bounds, need no forward pass."""
    pair = ClipScorer(tiny_scorer_dir / "clip"), DinoScorer(tiny_scorer_dir / "dino")
    photos = [plain(200, 0, 0), plain(0, 200, 0)]
    first = SubjectScorer(*pair, subject(images=tuple(photos)))
    for cache in (pair[0].image_features, pair[1].features):
        monkeypatch.setattr(cache, "forward", None)
    copies = tuple(Image.new("RGB", photo.size, photo.getpixel((0, 0))) for photo in photos)
    again = SubjectScorer(*pair, subject(images=copies, holdout=copies[:1]))
    torch.testing.assert_close(again.dino_references, first.dino_references)
    assert again.bounds()["ceiling"]["images"] == 1
