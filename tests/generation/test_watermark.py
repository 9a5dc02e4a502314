"""The invisible mark: read back from what was marked, refused where it cannot be, absent unless asked for."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest_run import compose_config
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from personalar.core.png import read_png_metadata
from personalar.generation.watermark import check_watermark, main, mark, read_mark
from personalar.sample import write_samples


def picture(side: int = 512, seed: int = 0) -> Image.Image:
    """Something like a photograph: soft shapes and a little grain."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((side, side))
    grain = rng.normal(0, 4, (side, side, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("text", "side", "message"),
    [
        ("", 512, "allowed are 1 to 16 bytes of printable text .it has 0"),
        ("longer than sixteen", 512, "it has 19"),
        ("ä" * 9, 512, "it has 18"),
        ("a\nb", 512, "printable"),
        ("personalar", 32, "at least 64 pixels a side, and this base makes 32"),
    ],
)
def test_what_cannot_be_hidden(text: str, side: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_watermark(text, side=side)


def test_a_missing_library_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pywt", None)
    with pytest.raises(ValueError, match=r'pip install "personalar\[watermark\]"'):
        check_watermark("personalar", side=512)


def test_a_base_of_small_pictures_refuses_before_it_samples(
    finished_run: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    config = compose_config(
        f"concept={finished_run}", "prompts=[a]", f"model.path={tiny_model_dir}", "watermark=personalar",
        f"out={tmp_path / 'out'}", name="sample",
    )  # fmt: skip
    with pytest.raises(ValueError, match="at least 64 pixels a side"):
        write_samples(config, finished_run / "concept")
    assert not (tmp_path / "out").exists()


def test_every_written_picture_is_marked(
    finished_run: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch
) -> None:
    """The tiny model's pictures are too small for the real one, so another mark stands in for it."""
    monkeypatch.setattr("personalar.generation.watermark.check_watermark", lambda text, side: None)
    monkeypatch.setattr("personalar.generation.watermark.mark", lambda image, text: ImageOps.invert(image))
    pixels, facts = [], []
    for words in ([], ["watermark=ours"]):
        config = compose_config(
            f"concept={finished_run}", 'prompts=["a [V] cat"]', "seeds=[0,1]", f"model.path={tiny_model_dir}",
            f"out={tmp_path / 'out'}", *words, name="sample",
        )  # fmt: skip
        paths = write_samples(config, finished_run / "concept")
        pixels.append([np.asarray(Image.open(path)) for path in paths])
        facts.append([read_png_metadata(path).get("watermark") for path in paths])
    assert facts == [[None, None], ["ours", "ours"]]
    for plain, marked in zip(*pixels, strict=True):
        np.testing.assert_array_equal(255 - plain, marked)


@settings(max_examples=25, deadline=None)
@given(
    text=st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1).filter(
        lambda text: len(text.encode()) <= 16
    ),
    sides=st.tuples(st.integers(64, 150), st.integers(64, 150)),
    seed=st.integers(0, 99),
)
def test_what_is_hidden_is_read(text: str, sides: tuple[int, int], seed: int) -> None:
    check_watermark(text, side=min(sides))
    assert read_mark(mark(picture(150, seed).resize(sides), text)) == text


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def test_it_outlives_what_pictures_go_through() -> None:
    plain = picture()
    marked = mark(plain, "personalar")
    through = {
        "JPEG": jpeg(marked, 75),
        "a resize and back": marked.resize((448, 448)).resize((512, 512)),
        "a crop": marked.crop((21, 14, 500, 470)),
        "another mode": marked.convert("RGBA"),
        "two levels more": Image.fromarray(np.asarray(marked) + (np.asarray(marked) < 254) * np.uint8(2)),
    }
    assert {name: read_mark(image) for name, image in through.items()} == dict.fromkeys(through, "personalar")


def test_nobody_sees_it_and_nobody_reads_what_is_not_there() -> None:
    for seed in range(3):
        plain = picture(seed=seed)
        change = np.asarray(mark(plain, "personalar")).astype(int) - np.asarray(plain)
        assert np.abs(change).max() <= 6 and 10 * np.log10(255**2 / np.square(change).mean()) > 45
        assert read_mark(plain) is None
    for grey in (0, 3, 128, 252, 255):  # a plain surface agrees with itself, which is no mark
        flat = Image.new("RGB", (128, 128), (grey, grey, grey))
        assert read_mark(flat) is None
        assert read_mark(mark(flat, "personalar")) == "personalar"
    assert read_mark(picture(63)) is None


def test_the_command_that_reads_it(tmp_path: Path, monkeypatch, capsys) -> None:
    picture(64).save(tmp_path / "small.png")
    monkeypatch.setattr(sys, "argv", ["watermark", str(tmp_path / "small.png")])
    main()
    assert "no mark found" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["watermark", str(tmp_path / "none.png")])
    with pytest.raises(SystemExit, match=r"personalar\.watermark: .*none\.png: No such file"):
        main()
