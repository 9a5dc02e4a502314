"""DreamBench++'s folder in its published layout: subjects with their prompts, and people's ratings."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path

import huggingface_hub
import pytest
from PIL import Image

from personalar.data.dreambench_plus import fetch_plus, find_plus_subjects, read_ratings, template


def make_benchmark(folder: Path, *where: str) -> Path:
    """Write pictures and captions; `where` is like "live_subject/animal/00 kitten"."""
    for number, one in enumerate(where):
        place, _, noun = one.partition(" ")
        image, caption = folder / "images" / f"{place}.jpg", folder / "captions" / f"{place}.txt"
        image.parent.mkdir(parents=True, exist_ok=True)
        caption.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), (50 * number, 90, 120)).save(image)
        prompts = [f"A {noun} in the snow, number {n}" for n in range(9)]
        caption.write_text("\n".join([noun.title(), *prompts, ""]))
    return folder


def make_ratings(
    folder: Path, ratings: dict[str, dict[str, list]], *, method: str = "blip_diffusion"
) -> Path:
    """Write the ratings of each rater, and grey samples that are brighter with a higher number."""
    for rater, pairs in ratings.items():
        file = folder / "data_human_rating" / "raw_data" / rater / f"part1-{method}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(pairs))
    samples = folder / "samples" / f"{method}_gs7_5_step100_seed42_torch_float16"
    for number, key in enumerate(next(iter(ratings.values()))):
        subject, _, prompt = key.rpartition("-")
        for kind, shade in (("src_image", 10), ("tgt_image", 20 + 20 * number)):
            place = samples / kind / subject
            place.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (shade, 90, 9)).save(place / f"{prompt}_0.jpg")
        (samples / "text" / subject).mkdir(parents=True, exist_ok=True)
        (samples / "text" / subject / f"{prompt}_0.txt").write_text(f"a kitten, {prompt}")
    return folder


def test_subjects_have_their_own_prompts(tmp_path: Path) -> None:
    make_benchmark(tmp_path, "live_subject/animal/00 kitten", "object/03 alarm clock")
    kitten, clock = find_plus_subjects(tmp_path)
    assert (kitten.name, kitten.noun, kitten.live) == ("live_subject_animal_00_kitten", "kitten", True)
    assert (clock.name, clock.noun, clock.live) == ("object_03_alarm_clock", "alarm clock", False)
    assert len(kitten.prompts) == 9 and clock.prompts[8] == "A {} in the snow, number 8"
    assert find_plus_subjects(tmp_path, ["object_03_alarm_clock"]) == (clock,)


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("A Kitten and a kitten asleep", "A {} and a {} asleep"),
        ("Asleep on a sofa", "a {}: Asleep on a sofa"),
        ("A kitten's smitten kittenish look", "A {}'s smitten kittenish look"),
    ],
)
def test_prompts_name_the_subject(caption: str, found: str) -> None:
    assert template(caption, "kitten") == found


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"contains no picture in images/: unpack the data of https"):
        find_plus_subjects(tmp_path)
    make_benchmark(tmp_path, "object/00 vase")
    with pytest.raises(FileNotFoundError, match=r"'cat' is not in .*; there are object_00_vase"):
        find_plus_subjects(tmp_path, ["cat"])
    (tmp_path / "captions" / "object" / "00.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"00\.txt is missing, the prompts of .*00\.jpg"):
        find_plus_subjects(tmp_path)


def test_ratings_meet_their_pictures(tmp_path: Path, capsys) -> None:
    one = {"object_00_alarm_clock-0": [4, 3], "object_00_alarm_clock-1": [0, None], "gone_01_x-5": [1, 1]}
    make_ratings(tmp_path, {"ann": one, "bob": {"object_00_alarm_clock-0": [2, 3]}})
    for lost in (tmp_path / "samples").rglob("gone_01_x"):
        for file in lost.iterdir():
            file.unlink()
    first, second = read_ratings(tmp_path)
    assert "1 of 3 rated pictures are not in" in capsys.readouterr().out
    assert first.likeness == {"ann": 4, "bob": 2} and first.following == {"ann": 3, "bob": 3}
    assert math.isnan(second.following["ann"]) and second.likeness == {"ann": 0}
    assert first.noun == "alarm clock" and first.prompt == "a kitten, 0"
    assert first.image.parts[-3:] == ("tgt_image", "object_00_alarm_clock", "0_0.jpg")


@pytest.mark.parametrize("text", ["{", "[1]", '{"a_00_b-0": [5, 1]}', '{"a_00_b-0": [1]}', '{"a": "x"}'])
def test_damaged_ratings_name_the_file(text: str, tmp_path: Path) -> None:
    make_ratings(tmp_path, {"ann": {"a_00_b-0": [1, 1]}})
    (tmp_path / "data_human_rating" / "raw_data" / "ann" / "part1-blip_diffusion.json").write_text(text)
    with pytest.raises(ValueError, match=r"part1-blip_diffusion\.json is damaged \("):
        read_ratings(tmp_path)


def test_no_ratings(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no raw_data/RATER/\*-METHOD\.json in it: unpack"):
        read_ratings(tmp_path)
    make_ratings(tmp_path, {"ann": {"a_00_b-0": [1, 1]}})
    (tmp_path / "samples").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="no picture of samples/ was rated"):
        read_ratings(tmp_path)


def make_hub_cache(cache: Path, *extra: str) -> str:
    """Write data.zip into a cache of the hub, in the published layout; return its commit."""
    commit = "d" * 40
    repo = cache / "datasets--yuangpeng--dreambench_plus"
    made = make_benchmark(cache.parent / "made", "live_subject/animal/00 kitten", "object/00 vase")
    archive = repo / "snapshots" / commit / "data.zip"
    archive.parent.mkdir(parents=True)
    with zipfile.ZipFile(archive, "w") as target:
        for path in sorted(made.rglob("*.*")):
            target.write(path, f"data/{path.relative_to(made)}")
        for name in extra:
            target.writestr(name, "x")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    return commit


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache of this machine; the hub itself cannot be reached."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_the_pictures_of_the_hub_are_unpacked_once(offline: Path, tmp_path: Path, capsys) -> None:
    others = ("data/images/../../../../escaped.txt", "/data/images/a.jpg", "data/preview.py")
    commit = make_hub_cache(offline, *others)
    folder = fetch_plus("main")
    assert commit in capsys.readouterr().out and folder.is_relative_to(tmp_path / "home")
    # Python unpacks the path with ".." below the folder.
    (folder / "images" / "escaped.txt").unlink()
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    places = ("live_subject/animal/00", "object/00")
    assert files == {f"images/{place}.jpg" for place in places} | {
        f"captions/{place}.txt" for place in places
    }
    assert list(folder.parent.iterdir()) == [folder] and not list(tmp_path.rglob("escaped.txt"))
    assert [subject.name for subject in find_plus_subjects(folder)] == [
        "live_subject_animal_00_kitten", "object_00_vase"
    ]  # fmt: skip
    before = (folder / "images/object/00.jpg").stat().st_mtime_ns
    assert fetch_plus(commit) == folder and (folder / "images/object/00.jpg").stat().st_mtime_ns == before


def test_without_the_hub_the_message_says_what_to_do(offline: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"the hub cannot be reached.*benchmark\.path=DIR and unpack"):
        fetch_plus("main")


def test_an_unpacked_archive_is_found_in_its_folder_data(tmp_path: Path) -> None:
    make_benchmark(tmp_path / "data", "object/00 vase")
    assert [subject.noun for subject in find_plus_subjects(tmp_path)] == ["vase"]
