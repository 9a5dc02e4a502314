"""summary.json: closed-form values, the schema that other programs read, and the errors."""

from __future__ import annotations

import json

import pytest
from synthetic_run import make_run

from personalar.core.measures import mean
from personalar.reports.summary import (
    fidelity_of,
    scores_of_concept,
    stage_titles,
    summarise,
    write_summary,
)
from personalar.scoring.score_file import merge_scores

BOUNDS = {"floor": {"dino": 0.5}, "ceiling": {"dino": 0.9}}


def line(
    stage: str,
    kind: str,
    value: float,
    *,
    scorer: str = "dino",
    template: str = "a {}",
    seed: int = 0,
    **more,
):
    prompt = template.replace("{}", "[V] cat" if kind == "subject" and stage != "base" else "cat")
    return {
        "stage": stage,
        "kind": kind,
        "prompt": prompt,
        "template": template,
        "seed": seed,
        "scorer": scorer,
        "value": value,
        **more,
    }


def test_means_fidelity_and_accuracies():
    lines = [
        line("embedding", "subject", 0.6),
        line("embedding", "subject", 0.8, seed=1),
        line("embedding", "subject", 0.3, scorer="clip_t", context_top1=True),
        line("embedding", "subject", 0.1, scorer="clip_t", seed=1, context_top1=False),
        line("embedding", "subject", 0.2, scorer="clip_t", seed=2, accessory_top1=True),
        line("embedding", "class", 0.0),
    ]
    run = {
        "bounds": BOUNDS,
        "stages": {"embedding": {"steps": 7, "seconds": 1.5, "v_moved": 1.2}},
        "subject": "tom",
        "noun": "cat",
    }
    stage = summarise(run, lines)["stages"]["embedding"]
    assert stage == {
        "dino": 0.7,
        "clip_i": None,
        "clip_t": 0.2,
        "fidelity": 0.5,
        "context_accuracy": 0.5,
        "accessory_accuracy": 1.0,
        "style_accuracy": None,
        "images": 3,
        "class_dino": 0.0,
        "class_drift": None,  # nothing to compare with on the base
        "pres": None,
        "diversity": None,
        "drift": None,
        "nearest": None,
        "memorised": None,
        "steps": 7,
        "seconds": 1.5,
        "v_moved": 1.2,
        "pictures_changed": None,
        "selected_step": None,
        "intervals": {"dino": [0.6, 0.8], "clip_i": None, "clip_t": [0.1, 0.3], "fidelity": [0.25, 0.75]},
        "categories": {"plain": {"dino": 0.7, "clip_i": None, "clip_t": 0.2, "images": 3}},
    }


def test_side_effects_are_told_apart_by_kind_and_scorer():
    bounds = {**BOUNDS, "photos": {"dino": 0.7, "dino_max": 0.8}}
    lines = [
        line("embedding", "subject", 0.6, nearest=0.9),
        line("embedding", "subject", 0.6, seed=1, nearest=0.7, category="recontext"),
        line("embedding", "prior", 0.4),
        line("embedding", "prior", 0.2, scorer="diversity"),
        line("embedding", "unrelated", 0.1, scorer="drift"),
        line("embedding", "unrelated", 0.9),
    ]
    stage = summarise({"bounds": bounds, "stages": {"embedding": {}}}, lines)["stages"]["embedding"]
    found = {name: stage[name] for name in ("pres", "diversity", "drift", "nearest", "memorised", "dino")}
    assert found == {
        "pres": 0.4,
        "diversity": 0.2,
        "drift": 0.1,
        "nearest": 0.8,
        "memorised": 0.5,
        "dino": 0.6,
    }
    assert list(stage["categories"]) == ["plain", "recontext"]


def test_class_drift_compares_the_same_prompts_and_seeds():
    lines = [
        line("base", "subject", 0.5),
        line("base", "subject", 0.9, template="a {} in the snow"),  # not drawn later, so it must not count
        line("embedding", "class", 0.6),
        line("transformer", "class", 0.7),
        line("transformer", "class", 0.1, seed=9),  # not drawn on the base
    ]
    stages = summarise({"bounds": BOUNDS}, lines)["stages"]
    assert stages["base"]["class_drift"] == 0.0
    assert "embedding" not in stages  # neither trained to the end nor sampled with the subject
    assert "embedding" not in summarise({"stages": {"embedding": {"checkpoint": {}}}}, lines)["stages"]
    ran = {"embedding": {"steps": 4}, "transformer": {"steps": 4}}
    stages = summarise({"bounds": BOUNDS, "stages": ran}, lines)["stages"]
    assert stages["embedding"]["class_drift"] == pytest.approx(0.25)
    assert stages["transformer"]["class_drift"] == pytest.approx(0.5)


def test_own_class_samples_of_the_base_come_before_its_subject_samples():
    lines = [line("base", "subject", 0.9), line("base", "class", 0.5), line("embedding", "class", 0.5)]
    lines[1]["prompt"] = "one cat"
    stages = summarise({"bounds": BOUNDS, "stages": {"embedding": {"steps": 4}}}, lines)["stages"]
    assert stages["embedding"]["class_drift"] == 0.0


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        (BOUNDS, 0.25),
        (None, None),
        ({"floor": None, "ceiling": None}, None),
        ({"floor": {"dino": 0.9}, "ceiling": {"dino": 0.9}}, None),
        ({"floor": {"dino": 0.9}, "ceiling": {"dino": 0.5}}, None),
    ],
)
def test_fidelity_needs_bounds_that_differ(bounds, expected):
    assert fidelity_of(0.6, bounds) == expected
    assert fidelity_of(None, bounds) is None


def test_mean_of_nothing_or_of_nan_is_null():
    assert mean([]) is None and mean([1.0, float("nan")]) is None and mean([1, None]) is None
    assert mean([True, False]) == 0.5


def test_the_file_has_the_promised_schema(tmp_path):
    summary = write_summary(make_run(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert {
        "subject",
        "model",
        "noun",
        "stages",
        "ceiling",
        "floor",
        "total_seconds",
        "peak_memory_bytes",
    } <= set(summary)
    assert list(summary["stages"]) == ["base", "embedding", "transformer"]
    promised = {"dino", "clip_i", "clip_t", "fidelity", "context_accuracy", "class_drift", "steps", "seconds"}
    for stage in summary["stages"].values():
        assert promised <= set(stage) and all(stage[key] is not None for key in promised)
    fidelities = [stage["fidelity"] for stage in summary["stages"].values()]
    assert fidelities == sorted(fidelities) and summary["description"]["fidelity"] < fidelities[1]
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.endswith(".tmp")]


def test_scores_of_fewer_steps_are_those_beside_their_concept(tmp_path):
    run = make_run(tmp_path / "earlier" / "run")
    now = scores_of_concept(run / "concept", "embedding")
    assert now["DINO"] > 0.6 and scores_of_concept(run / "stages/embedding/concept", "embedding") == now
    concept = run / "earlier" / "embedding_120" / "concept"
    concept.mkdir(parents=True)
    merge_scores(concept.parent / "scores.jsonl", [line("embedding", "subject", 0.1)])
    assert scores_of_concept(concept, "embedding")["DINO"] == 0.1
    assert scores_of_concept(run / "mine" / "more" / "concept", "embedding") == {}


def test_photographs_keep_raw_values_and_have_no_fidelity(tmp_path):
    summary = write_summary(make_run(tmp_path / "run", rendered=False))
    after = summary["stages"]["transformer"]
    assert summary["floor"] is None and summary["ceiling"] is None
    assert after["fidelity"] is None and after["class_drift"] is None and after["dino"] > 0.8


def test_an_unscored_run_still_has_a_summary(tmp_path):
    stage = write_summary(make_run(tmp_path / "run", scored=False, stages=("base", "embedding")))["stages"][
        "embedding"
    ]
    assert stage["dino"] is None and stage["steps"] == 300 and stage["images"] == 0


def test_a_stage_that_trains_adapters_alone_does_not_train_weights():
    stages = {"word": {}, "context": {"adapters": {"context": {}}}, "network": {"parameters": ["*"]}}
    found = [trained for _, trained in stage_titles({"settings": {"method": {"stages": stages}}}).values()]
    assert found == ["before", "[V] learned", "adapters trained", "weights trained"]


def test_it_can_be_written_again(tmp_path):
    run_dir = make_run(tmp_path / "run")
    first = write_summary(run_dir)
    merge_scores(run_dir / "scores.jsonl", [])
    assert write_summary(run_dir) == first


def test_a_folder_that_is_not_a_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not a run folder \(run\.json is missing\)"):
        write_summary(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"is damaged .*: restore it, or run the command again in another"):
        write_summary(tmp_path)
    (tmp_path / "run.json").write_text('{"format_version": 99}')
    with pytest.raises(ValueError, match=r"has format_version 99; this version of personalar reads 1"):
        write_summary(tmp_path)
