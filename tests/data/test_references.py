"""What a base sees of a photo: how much is cut off, where, how much it is enlarged; said, saved and shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest_run import compose_config
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from personalar.config.model_config import ProtocolConfig
from personalar.core.image_sizes import fit
from personalar.core.run_folder import RunFolder
from personalar.core.types import image_fingerprint
from personalar.data.references import save_redrawn, save_references
from personalar.data.subject import read_folder
from personalar.models.chameleon.backend import ChameleonBackend
from personalar.models.image_transforms import fill_size, to_uint8
from personalar.runs.record import record_settings

LUMINA, SQUARE = ProtocolConfig(resolution=512), ProtocolConfig(resolution=512, buckets="square")
SMALL = ProtocolConfig(grid_px=16, resolution=32, buckets="square")


def gradient(width: int, height: int) -> Image.Image:
    """Red says the column, green the row: a crop tells where it was made."""
    across = np.linspace(0, 255, width, dtype=np.uint8)[None].repeat(height, 0)
    down = np.linspace(0, 255, height, dtype=np.uint8)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack((across, down, 255 - across), axis=-1))


def noise(width: int, height: int) -> Image.Image:
    """What looks like no other."""
    return Image.effect_noise((width, height), 90).convert("RGB")


def test_a_phones_photo_loses_little_to_its_bucket_and_a_quarter_to_a_square() -> None:
    assert fit((1600, 1200), LUMINA.sizes).size == (576, 448)
    assert fit((1600, 1200), LUMINA.sizes).cut == pytest.approx(1 - (576 / 448) / (4 / 3))
    wide, tall = fit((1600, 1200), SQUARE.sizes), fit((1200, 1600), SQUARE.sizes)
    assert wide.cut == tall.cut == 0.25 and tall.tall and not wide.tall
    assert wide.enlarged == pytest.approx(512 / 1200)
    assert fit((40, 40), LUMINA.sizes).enlarged == 12.8 and fit((700, 700), LUMINA.sizes).cut == 0


@given(st.integers(64, 400), st.integers(64, 400), st.sampled_from([LUMINA, SQUARE]))
def test_what_is_said_to_be_cut_off_is_what_the_crop_leaves_out(width: int, height: int, layout) -> None:
    found = fit((width, height), layout.sizes)
    left = fill_size(gradient(width, height), sizes=layout.sizes)
    assert left.size == found.size
    shown = np.asarray(left, dtype=float)
    seen = [(shown[..., k].max() - shown[..., k].min()) / 255 for k in (0, 1)]  # of all columns, of all rows
    assert 1 - seen[0] * seen[1] == pytest.approx(found.cut, abs=0.05)
    if found.cut > 0.1:
        assert (seen[1] < seen[0]) == found.tall


def table(folder: Path, photos: dict[str, Image.Image], layout: ProtocolConfig, capsys) -> str:
    """Return what is said about `photos` on a base of `layout`."""
    for name, photo in photos.items():
        photo.save(folder / name)
    read_folder(folder, layout.sizes)
    return " ".join(capsys.readouterr().out.split())


def test_the_table_says_how_much_is_cut_off(tmp_path: Path, capsys) -> None:
    photos = {"a.png": noise(600, 800), "b.png": noise(800, 600), "c.png": noise(900, 900)}
    (tmp_path / "d.txt").write_text("word")
    said = table(tmp_path, photos, SQUARE, capsys)
    assert "photo pixels cut off verdict" in said
    note = "a large part is cut off {} to fit 512x512: crop it around the subject yourself"
    assert f"a.png 600x800 25% used {note.format('at top and bottom')}" in said
    assert f"b.png 800x600 25% used {note.format('left and right')}" in said
    assert "c.png 900x900 0% used d.txt - - skipped" in said


def test_where_little_is_cut_off_nothing_is_noted(tmp_path: Path, capsys) -> None:
    said = table(tmp_path, {"a.png": noise(600, 800), "b.png": noise(1000, 750)}, LUMINA, capsys)
    assert "a.png 600x800 4% used b.png 1000x750 4% used" in said and "note" not in said


@pytest.mark.parametrize(("side", "note"), [(40, "enlarged 12.8 times to fit 512x512"), (480, "")])
def test_a_photo_below_the_bases_size_is_noted(side: int, note: str, tmp_path: Path, capsys) -> None:
    said = table(tmp_path, {f"{n}.png": gradient(side, side + n) for n in range(2)}, LUMINA, capsys)
    assert said.count("enlarged") == (2 if note else 0) and note in said


def test_without_a_base_no_crop_is_spoken_of(tmp_path: Path, capsys) -> None:
    gradient(40, 80).save(tmp_path / "a.png")
    read_folder(tmp_path)
    assert "cut off" not in (out := capsys.readouterr().out) and "enlarged" not in out


@pytest.mark.parametrize(
    ("photos", "noted", "noun", "usual"),
    [(20, False, "dog", "3 to 6"), (21, True, "dog", "3 to 6"), (21, True, "style", "1 to 10")],
)
def test_very_many_photos_are_noted(
    photos: int, noted: bool, noun: str, usual: str, tmp_path: Path, capsys
) -> None:
    for index in range(photos):
        Image.new("RGB", (40, 40), (index * 9, 255 - index * 9, index * 5)).save(tmp_path / f"{index}.png")
    read_folder(tmp_path, noun=noun)
    note = (
        f"note: {photos} photos, but the method is designed for {usual}: the number of steps stays the same"
    )
    assert (note in capsys.readouterr().out) == noted


def test_the_pictures_of_what_a_base_sees(tmp_path: Path, tiny_backend: ChameleonBackend) -> None:
    photos = [gradient(64, 96), gradient(64, 64)]
    save_references(tmp_path, photos, tiny_backend.layout)
    save_redrawn(tmp_path, photos, tiny_backend)
    for index, photo in enumerate(photos):
        whole, cropped, redrawn = (
            Image.open(tmp_path / view / f"{index:02d}.png") for view in (".", "cropped", "redrawn")
        )
        assert whole.size == photo.size and cropped.size == redrawn.size == (32, 32)
        pixels = tiny_backend.preprocess(photo)
        assert np.array_equal(np.asarray(cropped), (pixels * 255).round().byte().permute(1, 2, 0).numpy())
        again = tiny_backend.decode_images(tiny_backend.encode_images(pixels[None]))
        assert np.array_equal(np.asarray(redrawn), to_uint8(again)[0].numpy())


def test_photos_that_lose_nothing_are_not_shown_twice(tmp_path: Path) -> None:
    save_references(tmp_path, [gradient(64, 64), gradient(96, 96)], SMALL)
    assert [path.name for path in sorted(tmp_path.rglob("*.png"))] == ["00.png", "01.png"]


def test_other_photos_replace_those_of_a_refused_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    session = SimpleNamespace(folder=folder, config=compose_config("+subject=cat"), base={"fingerprint": "b"})
    for photos in ([gradient(64, 64), gradient(96, 96)], [noise(80, 80)], [noise(80, 80)]):
        session.subject = SimpleNamespace(fingerprint=image_fingerprint(photos))
        record_settings(session)
        save_references(tmp_path / "references", photos, SMALL)
        assert [path.name for path in sorted((tmp_path / "references").iterdir())] == [
            f"{index:02d}.png" for index in range(len(photos))
        ]


def test_a_run_shows_what_the_base_sees(do_run: Callable[..., bool], tmp_path: Path) -> None:
    photos, run = tmp_path / "photos", tmp_path / "run"
    photos.mkdir()
    for index in range(2):
        gradient(64 + index, 96).save(photos / f"{index}.png")
    words = ["stage=embedding", "scorer=none", f"subject.path={photos}", "subject.noun=dog"]
    do_run(run, *words, subject="+subject=folder")
    assert len(list((run / "references" / "cropped").glob("*.png"))) == 2
    assert len(list((run / "references" / "redrawn").glob("*.png"))) == 2
    page = (run / "report.html").read_text(encoding="utf-8")
    for label in ("reference 2", "reference 2, cropped", "reference 2, redrawn"):
        assert page.count(f'alt="{label}"') == 1
    assert "cropped at the centre to the base's image sizes; training can use other crops" in page


def test_a_rendered_subject_is_shown_whole_and_redrawn(finished_run: Path) -> None:
    assert not (finished_run / "references" / "cropped").exists()
    assert len(list((finished_run / "references" / "redrawn").glob("*.png"))) == 5
    page = (finished_run / "report.html").read_text(encoding="utf-8")
    assert 'alt="reference 5, redrawn"' in page and "about the best quality that it can generate" in page
