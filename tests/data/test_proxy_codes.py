"""Codes of many pictures at once are those of each alone."""

from __future__ import annotations

import torch
from conftest_backend import make_backend
from PIL import Image

from personalar.config.recipe import DataNumbers
from personalar.data.codes import ENCODE_BATCH, encode_photos
from personalar.data.proxy_codes import encode_whole


def test_codes_in_batches_are_those_of_each_picture_alone() -> None:
    backend, gradient = make_backend(buckets="aspect"), Image.linear_gradient("L").convert("RGB")
    sizes = [(300, 100), (290, 96), (120, 130), *[(90, 300)] * (ENCODE_BATCH + 2), (310, 100)]
    pictures = [gradient.rotate(3 * turn).resize(size) for turn, size in enumerate(sizes)]
    done: list[int] = []
    found = encode_whole(backend, pictures, done.append)
    alone = encode_photos(backend, pictures, DataNumbers(templates=["{}"]), seed=0)
    assert done == [2, 1, ENCODE_BATCH, 2, 1]
    assert all(torch.equal(codes, single) for codes, single in zip(found, alone, strict=True))
    assert len({tuple(codes.shape) for codes in found}) == 3 and len({str(codes) for codes in found}) > 10
