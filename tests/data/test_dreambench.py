"""DreamBench: the published counts, the folder's layout, the archive of the fetch command."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path

import pytest

from personalar.config.run_config import SamplesConfig
from personalar.data.dreambench import SUBJECTS, dreambench_prompts, fetch, find_subjects
from personalar.data.subject import validation_prompts


def test_the_published_counts() -> None:
    assert len(SUBJECTS) == 30 and len(set(SUBJECTS.values())) == 15
    assert sum(noun in ("cat", "dog") for noun in SUBJECTS.values()) == 9
    for live, counts in ((True, (10, 10, 5)), (False, (20, 0, 5))):
        prompts = dreambench_prompts(live=live)
        found = Counter(prompt.category for prompt in prompts)
        assert (found["recontext"], found["accessory"], found["property"]) == counts
        assert len({prompt.text for prompt in prompts}) == 25 and all("{}" in p.text for p in prompts)
    assert dreambench_prompts(live=False)[12].text == "a {} with the Eiffel Tower in the background"


def test_a_run_can_ask_for_them() -> None:
    config = SamplesConfig(prompt_set="dreambench")
    assert validation_prompts("dog", config, live=True) == dreambench_prompts(live=True)
    with pytest.raises(ValueError, match=r"samples.prompt_set='x' is not known; allowed: world, dreambench"):
        SamplesConfig(prompt_set="x")


def make_folder(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "00.jpg").write_bytes(b"a photo")
    return folder


def test_subjects_of_a_folder(tmp_path: Path) -> None:
    make_folder(tmp_path / "dataset", "dog6", "cat2", "vase", "notes")
    found = find_subjects(tmp_path)
    assert [(s.name, s.noun, s.live) for s in found] == [
        ("cat2", "cat", True),
        ("dog6", "dog", True),
        ("vase", "vase", False),
    ]
    assert [s.name for s in find_subjects(tmp_path / "dataset", ["vase"])] == ["vase"]
    with pytest.raises(ValueError, match=r"subjects: 'dog4' is not in DreamBench; allowed: backpack"):
        find_subjects(tmp_path, ["dog4"])
    with pytest.raises(FileNotFoundError, match=r"lacks can: fetch the whole data set"):
        find_subjects(tmp_path, ["can"])
    with pytest.raises(FileNotFoundError, match=r"holds no DreamBench subject.*evaluate fetch"):
        find_subjects(tmp_path / "nowhere")


def test_fetch_unpacks_the_data_set_and_nothing_else(tmp_path: Path) -> None:
    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("dreambooth-4f887af/README.md", "readme")
        made.writestr("dreambooth-4f887af/dataset/dog/00.jpg", "photo")
        made.writestr("dreambooth-4f887af/dataset/references_and_licenses.txt", "credits")
        made.writestr("dreambooth-4f887af/dataset/../../outside", "no")
    assert fetch(tmp_path / "data", archive.as_uri()) == 2
    found = sorted(path.name for path in (tmp_path / "data").rglob("*") if path.is_file())
    assert found == ["00.jpg", "references_and_licenses.txt"] and not (tmp_path / "outside").exists()
    assert [subject.name for subject in find_subjects(tmp_path / "data")] == ["dog"]


def test_fetch_says_what_went_wrong(tmp_path: Path) -> None:
    (tmp_path / "page").write_text("<html>")
    with pytest.raises(ValueError, match=r"is not a zip archive"):
        fetch(tmp_path, (tmp_path / "page").as_uri())
    with pytest.raises(FileNotFoundError, match=r"could not fetch .*copy the folder dataset/"):
        fetch(tmp_path, (tmp_path / "nothing").as_uri())
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as made:
        made.writestr("repo/README.md", "readme")
    with pytest.raises(ValueError, match=r"holds no folder dataset/"):
        fetch(tmp_path, (tmp_path / "other.zip").as_uri())
