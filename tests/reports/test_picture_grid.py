"""Pictures side by side."""

from __future__ import annotations

from synthetic_run import PROMPTS, scribble

from personalar.core.types import Sample
from personalar.reports.picture_grid import grid_picture


def test_the_base_stands_above_the_tuned_model() -> None:
    samples = []
    for spec in PROMPTS[:3]:
        of = {"stage": "embedding", "prompt": spec.text, "kind": "subject", "seed": 0, "spec": spec}
        samples.append(Sample(**of, image=scribble("a", spec, 0)))
    base = {(sample.spec.text, 0): sample.image for sample in samples}
    alone = grid_picture(samples, {}, label="step 5", title="t")
    beside = grid_picture(samples, base, label="step 5", title="t")
    assert beside.width == alone.width and beside.height > 1.5 * alone.height
