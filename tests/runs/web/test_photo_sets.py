"""Uploaded photos: only into their own folder, whatever they are called, and not too many."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from personalar.config.compose import composed, read_config
from personalar.data.photos.photo_folder import Photo
from personalar.runs.web import photo_sets
from personalar.runs.web.markup import verdict_table
from personalar.runs.web.photo_sets import PhotoSets, crops, examples, layout_of

ODD = ["../../evil.png", ".hidden", "a b;$(rm).PNG", "ü.png", "u.png", "x" * 200 + ".png", "con\n.png"]


def upload(folder: Path, *names: str) -> list[Path]:
    """Return files with those names, each in a folder of its own, as Gradio leaves them."""
    files = [folder / str(index) / Path(name).name for index, name in enumerate(names)]
    for index, file in enumerate(files):
        file.parent.mkdir(parents=True)
        Image.new("RGB", (64, 96), (index * 20, 0, 0)).save(file, format="PNG")
    return files


@pytest.mark.parametrize("name", ["../../x", "..", "", "/etc/passwd", "cat", ".json", "a/b", "my dog!"])
def test_a_set_is_inside_its_folder_and_no_example(tmp_path: Path, name: str) -> None:
    sets = PhotoSets(tmp_path / "photos")
    added = sets.add(name, "dog", upload(tmp_path / "up", "a.png"))
    assert sets.names() == [added] and added != "cat"
    assert [path.relative_to(tmp_path).parts[:2] for path in (tmp_path / "photos").rglob("*.png")] == [
        ("photos", added)
    ]
    config = read_config(composed("run", sets.settings(added)))
    assert (config.subject.path, config.subject.noun) == (str(tmp_path / "photos" / added), "dog")
    sets.clear(added)
    assert sets.names() == [] and not list((tmp_path / "photos").iterdir())


def test_no_upload_replaces_another(tmp_path: Path) -> None:
    sets = PhotoSets(tmp_path / "photos")
    files = upload(tmp_path / "up", *ODD)
    sets.add("mine", "toy", files)
    kept = list((tmp_path / "photos/mine").iterdir())
    assert {path.read_bytes() for path in kept} == {file.read_bytes() for file in files}
    assert all(path.name.isascii() and path.name.isprintable() and len(path.name) < 100 for path in kept)


def test_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = PhotoSets(tmp_path / "photos")
    files = upload(tmp_path / "up", "a.png", "b.png")
    for noun in ("", "  ", "a\nb", "x" * 61):
        with pytest.raises(ValueError, match="must be one or a few plain words"):
            sets.add("mine", noun, files)
    monkeypatch.setattr(photo_sets, "LARGEST_FILE", 10)
    with pytest.raises(ValueError, match=r"'a.png' is larger than 0 MB"):
        sets.add("mine", "toy", files)
    monkeypatch.setattr(photo_sets, "MOST_FILES", 1)
    with pytest.raises(ValueError, match="more than 1 files in a set"):
        sets.add("mine", "toy", files)
    with pytest.raises(ValueError, match="there are no photos 'mine'"):
        sets.settings("mine")


def test_verdicts_and_crops_come_from_the_base(tmp_path: Path) -> None:
    sets = PhotoSets(tmp_path / "photos")
    (text := tmp_path / "what.txt").write_text("a dog")
    sets.add("mine", "dog", [*upload(tmp_path / "up", "a.png"), text])
    layout = layout_of("nano")
    used, skipped = sets.photos("mine", layout)
    assert (used.verdict, skipped.verdict) == ("used", "skipped") and used.cut == pytest.approx(
        1 / 3, abs=0.01
    )
    [(image, name)] = crops([used, skipped], layout)
    assert name == "a.png" and image.size == (layout.resolution, layout.resolution)
    assert len(sets.photos("cat", layout)) == 5


def test_names_are_shown_as_text() -> None:
    shown = verdict_table([Photo(path=Path("<img src=x onerror=alert(1)>.png"), notes=("<b>",))], noun="cat")
    assert "<img" not in shown and "<b>" not in shown.replace("<b>0 of 1", "")


def test_the_word_style_selects_a_style(tmp_path: Path) -> None:
    sets = PhotoSets(tmp_path / "sets")
    added = sets.add("ink", "style", upload(tmp_path, "a.png"))
    config = read_config(composed("run", sets.settings(added)))
    assert (config.subject.kind, config.subject.name) == ("style", "ink")
    assert "style" not in examples() and "cat" in examples()
