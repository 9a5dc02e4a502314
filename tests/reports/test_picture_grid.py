"""Pictures side by side."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from synthetic_run import PROMPTS, scribble

from personalar.core.png import read_png, save_png
from personalar.core.types import Sample
from personalar.reports.picture_grid import grid_picture, write_grid


def test_the_base_stands_above_the_tuned_model() -> None:
    samples = []
    for spec in PROMPTS[:3]:
        of = {"stage": "embedding", "prompt": spec.text, "kind": "subject", "seed": 0, "spec": spec}
        samples.append(Sample(**of, image=scribble("a", spec, 0)))
    base = {(sample.spec.text, 0): sample.image for sample in samples}
    alone = grid_picture(samples, {}, label="step 5", title="t")
    beside = grid_picture(samples, base, label="step 5", title="t")
    assert beside.width == alone.width and beside.height > 1.5 * alone.height


def test_a_grid_of_settings_is_a_picture(tmp_path: Path) -> None:
    colours, paths = ("red", "lime", "blue", "yellow", "cyan", "black"), []
    for number, colour in enumerate(colours):
        facts = {"prompt": "a [V] cat", "seed": str(number // 3)}
        paths.append(save_png(Image.new("RGB", (96, 96), colour), tmp_path / f"{number}.png", facts))
    varied = {"seed": [0, 1], "guidance": [1.0, 2.5, 4.0]}
    picture = write_grid(paths, varied, tmp_path)
    assert write_grid(paths, varied, tmp_path) == picture
    image, facts = read_png(picture)
    shown = [image.getpixel((x, y)) for y in (150, 316) for x in (254, 420, 586)]
    assert shown == [Image.new("RGB", (1, 1), colour).getpixel((0, 0)) for colour in colours]
    assert facts["grid"] == '{"seed": [0, 1], "guidance": [1.0, 2.5, 4.0]}'
    row = write_grid(paths[:3], {"prompt": ["a", "b", "c"]}, tmp_path)
    assert read_png(row)[0].height < image.height
