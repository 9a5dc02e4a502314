"""The agreement of judges with people and with the hidden truth, by toy judges whose answers are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest_run import compose_config
from test_dreambench_plus import make_ratings

from personalar.config.commands import EvaluateConfig
from personalar.core.measures import Measure
from personalar.evaluate import evaluate
from personalar.runs.judge_agreement.agreement import agreement, as_table
from personalar.runs.judge_agreement.planted_faults import RIGHT, pairs_of, planted_views, preferences

BLIND = ("scorer=none", "+scorer.extra.dark._target_=test_agreement.Dark")


class Dark:
    """Likes dark pictures, and prompts with many letters."""

    measures = (
        Measure(name="dark", title="dark", range=(0, 4)),
        Measure(name="letters", title="letters", reads="prompt"),
        Measure(name="cost", title="cost", better="lower"),
    )

    def score(self, samples, subject):
        shades = [float(np.asarray(sample.image.convert("L"), float).mean()) for sample in samples]
        return {
            "dark": [4 - shade / 64 for shade in shades],
            "letters": [float(len(sample.prompt)) for sample in samples],
            "cost": [1.0 for _ in samples],
        }


def config(*words: str) -> EvaluateConfig:
    return compose_config("task=agreement", *words, name="evaluate")


def test_people_and_a_judge_that_agrees(tmp_path: Path, capsys) -> None:
    keys = [f"object_{subject:02d}_vase-{prompt}" for subject in range(3) for prompt in range(3)]
    values = {key: 4 - number * 4 / 8 for number, key in enumerate(keys)}  # the samples get brighter
    mine = {key: [round(value), 4 if number % 2 else 0] for number, (key, value) in enumerate(values.items())}
    other = {key: [min(4, pair[0] + 1), pair[1]] for key, pair in mine.items()}
    make_ratings(tmp_path / "data", {"ann": mine, "bob": other})
    evaluate(config(f"ratings={tmp_path / 'data'}", f"out={tmp_path / 'out'}", *BLIND), [])
    said = capsys.readouterr().out
    table = json.loads((tmp_path / "out" / "agreement_ratings.json").read_text())["table"]
    assert list(table) == ["dark", "letters", "people, likeness", "people, following"]
    assert table["dark"]["AUC"]["value"] == 1 and table["dark"]["AUC"]["pictures"] == 9
    assert 0 < table["dark"]["alpha"]["value"] < 1
    low, high = table["dark"]["alpha"]["interval"]
    assert low <= table["dark"]["alpha"]["value"] <= high
    assert table["letters"]["AUC"]["value"] == 0.5  # all prompts have as many letters
    assert table["people, following"]["alpha"]["value"] == 1
    assert table["people, likeness"]["alpha"]["value"] < 1
    assert "| people, following | – | 1.00" in said and "Krippendorff's" in said


def test_planted_faults_are_seen_by_who_looks(tmp_path: Path) -> None:
    """A judge of brightness sees no fault reliably; the nano DINO sees another individual."""
    words = ("benchmark=nanobench", "benchmark.subjects=[teapot]", f"out={tmp_path}")
    table = agreement(config(*words, "+scorer.extra.dark._target_=test_agreement.Dark"))
    assert table["DINO, same view"]["other individual"]["value"] > 0.9
    assert table["DINO, any view"]["other individual"]["value"] > 0.9
    assert table["CLIP-T, same view"]["place changed"]["value"] > 0.9
    assert table["dark, same view"]["part recoloured"]["value"] < 0.9
    assert table["letters, same view"]["skin changed"]["value"] == 0.5
    assert table["DINO, same view"]["accessory dropped"]["value"] is None  # a teapot wears nothing
    assert "| DINO, same view | 1.00" in (tmp_path / "agreement.md").read_text()


def test_a_pair_differs_in_its_fault_alone() -> None:
    samples, subject = planted_views(compose_config("+subject=cat").subject)
    by_stage = {(sample.stage, sample.seed): sample for sample in samples}
    assert {stage for stage, _ in by_stage} == {
        RIGHT, "part recoloured", "proportions changed", "skin changed", "other individual",
        "accessory dropped", "place changed",
    }  # fmt: skip
    for (stage, seed), sample in by_stage.items():
        right = by_stage[RIGHT, seed]
        assert sample.prompt == right.prompt and (sample.image != right.image) == (stage != RIGHT)
    dropped = [sample for sample in samples if sample.stage == "accessory dropped"]
    assert dropped and all("wearing" in sample.prompt for sample in dropped)
    corner = (0, 0, 90, 4)  # sky above the thing: the place, and nothing else, changes it
    same = [
        s.image.crop(corner) == by_stage[RIGHT, s.seed].image.crop(corner) for s in samples if "re" in s.stage
    ]
    assert np.mean(same) > 0.9 and subject.noun == "cat"


def test_pairs_are_counted() -> None:
    values = {(RIGHT, 0): 0.5, ("x", 0): 0.4, (RIGHT, 1): 0.5, ("x", 1): 0.5, ("x", 2): 0.1, (RIGHT, 3): 1.0}
    assert pairs_of(values, "x") == ([0.5, 0.5], [0.4, 0.5])
    assert preferences([0.5, 0.5, 0.1], [0.4, 0.5, 0.2]) == [1, 0.5, 0]
    cell = {"value": 0.5, "interval": None, "pictures": 2}
    assert as_table({"a": {"x": cell}, "b": {"y": cell}}).splitlines()[2:] == [
        "| a | 0.50 | – |",
        "| b | – | 0.50 |",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("benchmark=nanobench", "scorer=none"), "agreement needs judges"),
        (("ratings=/nowhere", "scorer=none"), "agreement needs judges"),
        (("benchmark=dreambench", "benchmark.path=/x", *BLIND), "agreement needs ratings=DIR"),
        (("ratings=/nowhere", *BLIND), r"ratings=/nowhere: no raw_data/RATER"),
    ],
)
def test_what_it_needs(words: tuple[str, ...], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        agreement(config(*words))


def test_settings_that_contradict() -> None:
    with pytest.raises(ValueError, match="an agreement with people needs others: scorer=dreambench"):
        config("ratings=/nowhere", "scorer=nano")
    with pytest.raises(ValueError, match="ratings=/x is read by task=agreement alone"):
        compose_config("ratings=/x", "benchmark=nanobench", name="evaluate")
