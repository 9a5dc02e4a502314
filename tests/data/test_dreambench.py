"""DreamBench: the published counts, the folder's layout."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from personalar.config.run_config import SamplesConfig
from personalar.data.dreambench import SUBJECTS, dreambench_prompts, find_subjects
from personalar.data.prompts import is_live
from personalar.data.subject import validation_prompts


def test_the_published_counts() -> None:
    assert len(SUBJECTS) == 30 and len(set(SUBJECTS.values())) == 15
    assert [noun for noun in SUBJECTS.values() if is_live(noun)] == ["cat"] * 2 + ["dog"] * 7
    for live, counts in ((True, (10, 10, 5)), (False, (20, 0, 5))):
        prompts = dreambench_prompts(live=live)
        found = Counter(prompt.category for prompt in prompts)
        assert (found["recontext"], found["accessory"], found["property"]) == counts
        assert len({prompt.text for prompt in prompts}) == 25 and all("{}" in p.text for p in prompts)
    assert dreambench_prompts(live=False)[12].text == "a {} with the Eiffel Tower in the background"


def test_a_run_can_ask_for_them() -> None:
    config = SamplesConfig(prompt_set="dreambench")
    assert validation_prompts("dog", config, live=True) == dreambench_prompts(live=True)
    with pytest.raises(ValueError, match=r"samples.prompt_set='x'; allowed: world, dreambench"):
        SamplesConfig(prompt_set="x")


def make_folder(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "00.jpg").write_bytes(b"a photo")
    return folder


def test_subjects_of_a_folder(tmp_path: Path) -> None:
    make_folder(tmp_path / "dataset", "dog6", "cat2", "vase", "notes")
    folders = {name: tmp_path / "dataset" / name for name in ("cat2", "dog6", "vase")}
    assert list(find_subjects(tmp_path).items()) == list(folders.items())
    assert find_subjects(tmp_path / "dataset", ["vase"]) == {"vase": folders["vase"]}
    with pytest.raises(
        ValueError, match=r"^benchmark\.subjects: 'dog4' is not in DreamBench; allowed: backpack"
    ):
        find_subjects(tmp_path, ["dog4"])
    with pytest.raises(FileNotFoundError, match=r"does not contain can: .* from benchmark\.subjects"):
        find_subjects(tmp_path, ["can"])
    with pytest.raises(FileNotFoundError, match=r"contains no DreamBench subject.*git clone https.*nowhere"):
        find_subjects(tmp_path / "nowhere")
