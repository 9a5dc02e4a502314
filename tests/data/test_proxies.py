"""Proxies: the folder is read like photos, but is none of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest_run import compose_config
from PIL import Image

from personalar.config.subject_config import SubjectConfig
from personalar.core.png import save_png
from personalar.core.types import Subject
from personalar.data.subject import load_subject


def pictures(folder: Path, *values: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for value in values:
        Image.linear_gradient("L").point([(shade + value) % 256 for shade in range(256)]).convert(
            "RGB"
        ).resize((64, 64)).save(folder / f"{value:03d}.png")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return pictures(tmp_path / "photos", 0, 100)


def load(photos: Path, proxies: Path | None) -> Subject:
    return load_subject(
        SubjectConfig(kind="folder", path=str(photos), name="x", noun="dog", proxies=proxies and str(proxies))
    )


def test_proxies_are_neither_photos_nor_a_limited_number(photos: Path, tmp_path: Path, capsys) -> None:
    made = pictures(tmp_path / "made", *range(0, 250, 2))
    found, alone = load(photos, made), load(photos, None)
    assert len(found.proxies) == 125 and found.images == alone.images and not alone.proxies
    assert f"proxies: 125 read from {made}, 0 refused\n" in capsys.readouterr().out
    (made / "000.png").unlink()
    assert len({found.fingerprint, alone.fingerprint, load(photos, made).fingerprint}) == 3


def test_what_is_no_proxy_is_named(photos: Path, tmp_path: Path, capsys) -> None:
    made = pictures(tmp_path / "made", 10, 20)
    save_png(Image.new("RGB", (90, 40)), made / "grid_seed_0123.png", {"grid": "{}", "files": "[]"})
    save_png(Image.new("RGB", (90, 40), "red"), made / "ours.png", {"prompt": "a [V] dog", "seed": "0"})
    (made / "grid.html").write_text("<p>")
    (made / "020.txt").write_text("a dog")
    (made / "broken.png").write_bytes((made / "010.png").read_bytes()[:100])
    (made / "copy.png").write_bytes((made / "010.png").read_bytes())
    assert len(load(photos, made).proxies) == 3
    said = capsys.readouterr().out
    assert "proxies: 3 read from" in said and "5 refused" in said
    told = " ".join(said.split())
    for line in (
        "grid_seed_0123.png - skipped a grid of several pictures",
        "grid.html - skipped not a picture",
        "020.txt - caption caption of 020.png",
        "broken.png - skipped damaged",
        "copy.png - skipped the same picture as 010.png",
    ):
        assert line in told


def test_folders_that_cannot_be_used(photos: Path, tmp_path: Path) -> None:
    empty, other = tmp_path / "empty", tmp_path / "text"
    for folder in (empty, other):
        folder.mkdir()
    (other / "a.txt").write_text("word")
    for folder, error, message in (
        (tmp_path / "none", FileNotFoundError, r"subject\.proxies=.*none does not exist: give a folder"),
        (empty, FileNotFoundError, r"proxies=.* contains no usable picture \(it is empty\): put generated"),
        (other, FileNotFoundError, r"contains no usable picture \(a\.txt: not a picture .*leave the setting"),
        (photos, ValueError, "is the folder of the photos .* or inside it: put .* of their own"),
        (photos / "../photos/made", ValueError, "is the folder of the photos"),
    ):
        with pytest.raises(error, match=message):
            load(photos, folder)


def test_a_subject_of_ones_own_takes_no_folder() -> None:
    with pytest.raises(ValueError, match=r"subject\.proxies=made is not used .* subject\.source returns"):
        compose_config("+subject=cat", "subject.proxies=made", "+subject.source._target_=mine.red")
