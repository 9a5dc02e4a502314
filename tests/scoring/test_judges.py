"""Scorers from outside of the package: in every table, page, curve and objective, by configuration alone."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest_run import compose_config, composed
from hydra.types import RunMode
from PIL import Image
from test_subject_scorer import SNOW, judges, picture, plain, sample, subject

import personalar.run
from personalar.config.fingerprint import request_of
from personalar.core.measures import MEASURES, Measure, measures_of
from personalar.reports.comparison import find_runs, rows_of_runs, table
from personalar.reports.comparison_page import compare_folders
from personalar.reports.comparison_table import markdown, verdicts
from personalar.reports.run_page import read_samples, write_report
from personalar.reports.summary import result_lines
from personalar.runs.sweep import objective_value
from personalar.scoring.features import ClipScorer
from personalar.scoring.judges import Judges, declared, load_judges, score
from personalar.scoring.score_file import read_scores

ROOT = Path(__file__).parents[2]
TOY = ("+scorer.extra.toy._target_=toy_scorer.Sharpness", "+scorer.extra.toy.scale=2")
KINDS = "samples.kinds=[subject,class,prior]"


@pytest.fixture(scope="module")
def toy() -> Iterator[None]:
    """Let Python find tests/plugins/."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tests" / "plugins"))
        yield


@pytest.fixture(scope="module")
def swept(toy: None, do_run: Callable, run_overrides: list[str], tmp_path_factory) -> tuple[Path, float]:
    """A job of a sweep that is judged by the toy too: the folder of runs, and what the sweeper is told.

    Beside it lie one with another scale, and one without the toy.
    """
    root = tmp_path_factory.mktemp("swept")
    job = SimpleNamespace(
        runtime=SimpleNamespace(output_dir=str(root / "judged")), mode=RunMode.MULTIRUN,
        sweep=SimpleNamespace(dir=str(root)), sweeper=SimpleNamespace(_target_="x.BasicSweeper"),
        launcher=SimpleNamespace(_target_="x.BasicLauncher"), overrides=SimpleNamespace(task=[]),
    )  # fmt: skip
    words = [*run_overrides, *TOY, KINDS, "objective=[sharpness*words]", "samples.grid_every_steps=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(personalar.run, "HydraConfig", SimpleNamespace(get=lambda: job))
        patch.setattr(personalar.run, "keep_configuration", lambda *_, **__: None)
        patch.setattr(personalar.run, "command_words", lambda _: ["test"])
        worth = personalar.run.run_one(composed("run", *words, "samples.time_share=1"))
    do_run(root / "rescaled", *TOY[:1], KINDS)
    do_run(root / "without", KINDS)
    return root, worth


def test_every_picture_has_a_line_with_the_value(swept: tuple[Path, float]) -> None:
    run_dir = swept[0] / "judged"
    lines = read_scores(run_dir / "scores.jsonl")
    names = ("sharpness", "variety", "dino")
    by_name = {name: [line for line in lines if line["scorer"] == name] for name in names}
    assert len(by_name["sharpness"]) == len(by_name["dino"]) == len(list((run_dir / "images").rglob("*.png")))
    assert {line["kind"] for line in by_name["variety"]} == {"prior"}

    def step(image: Image.Image) -> float:
        return float(np.abs(np.diff(np.asarray(image.convert("L"), float), axis=1)).mean())

    photos = [Image.open(path) for path in sorted((run_dir / "references").glob("*.png"))]
    usual = np.mean([step(photo) for photo in photos])
    for line in by_name["sharpness"][:5]:
        assert line["value"] == pytest.approx(2 * step(Image.open(run_dir / line["image"])) / usual, abs=1e-5)


def test_a_measure_reads_the_text_that_it_declares(swept: tuple[Path, float]) -> None:
    lines = [line for line in read_scores(swept[0] / "judged" / "scores.jsonl") if line["scorer"] == "words"]
    learned = [line for line in lines if "[V]" in line["prompt"]]
    assert learned and all(line["value"] == len(line["prompt"].split()) - 1 for line in learned)


def test_the_record_says_what_was_measured(swept: tuple[Path, float]) -> None:
    run = json.loads((swept[0] / "judged" / "run.json").read_text())
    found = {entry["name"]: entry for entry in run["measures"]}
    assert list(found)[:3] == ["dino", "clip_i", "clip_t"]
    assert list(found)[-3:] == ["sharpness", "variety", "words"]
    assert found["variety"] == {
        "name": "variety", "title": "variety", "better": "same", "range": [0, 255], "reads": None,
        "kind": "prior", "judges": ["toy"],
    }  # fmt: skip
    assert json.loads(run["scorers"]["toy"]) == {"_target_": "toy_scorer.Sharpness", "scale": 2}
    assert measures_of(run)["words"].reads == "class"


def test_summary_objective_and_curves_have_it(swept: tuple[Path, float]) -> None:
    root, worth = swept
    summary = json.loads((root / "judged" / "summary.json").read_text())
    stage, lines = summary["stages"]["transformer"], read_scores(root / "judged" / "scores.jsonl")
    wanted = ("sharpness", "transformer", "subject")
    mine = [line["value"] for line in lines if (line["scorer"], line["stage"], line["kind"]) == wanted]
    assert stage["sharpness"] == pytest.approx(np.mean(mine), abs=1e-6) and stage["variety"] > 0
    low, high = stage["intervals"]["sharpness"]
    assert low < stage["sharpness"] < high and stage["categories"]["plain"]["sharpness"] is not None
    assert worth == pytest.approx(stage["sharpness"] * stage["words"])
    assert worth == objective_value(summary, ["words*sharpness"])
    logs = [path.read_text().splitlines() for path in (root / "judged" / "logs").rglob("metrics.csv")]
    rows = [row for log in logs for row in csv.DictReader(log)]
    assert any(row.get("val/sharpness") for row in rows) and not any("val/variety" in row for row in rows)


def test_pages_and_tables_are_made_without_the_plugin(
    swept: tuple[Path, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folders alone say it all; nothing is imported or made."""
    monkeypatch.delitem(sys.modules, "toy_scorer")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "plugins" not in path])
    monkeypatch.setattr("hydra.utils.instantiate", None)
    root = shutil.copytree(swept[0], tmp_path / "runs")
    text = write_report(root / "judged").read_text(encoding="utf-8")
    head = text.partition("<thead>")[2].partition("</thead>")[0]
    assert '<th title="higher is better; from 0">Sharpness</th>' in head and ">Variety</th>" in head
    assert (
        "<dt>words</dt><dd>lower is better; the scorer gets the prompt with the class instead of [V]</dd>"
        in text
    )
    assert '<span title="sharpness: higher is better; from 0">' in text
    assert ">Sharpness</th>" not in write_report(root / "without").read_text(encoding="utf-8")
    assert result_lines(root / "judged")[0].split()[-4:] == ["sharpness", "variety", "words", "seconds"]
    records = {record["row"]: record for record in compare_folders([root], tmp_path / "out")}
    assert records["judged"]["sharpness"] > 0 and records["without"]["sharpness"] is None
    page = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    for shown in (page, markdown(list(records.values()))):
        assert all(title in shown.lower() for title in ("sharpness", "variety", "words"))
    samples, _ = read_samples(root / "judged", json.loads((root / "judged" / "run.json").read_text()))
    assert samples and all(isinstance(sample["sharpness"], float) for sample in samples)


def test_other_settings_of_a_scorer_make_another_judge(swept: tuple[Path, float]) -> None:
    rows = {row.title: row for row in rows_of_runs(find_runs(swept[0]), swept[0])}
    records = table(list(rows.values()), rows["judged"])
    found = {record["row"]: record for record in records}
    assert found["rescaled"]["other_judges"] == ["sharpness", "words"]
    assert found["without"]["other_judges"] == []
    assert "sharpness, words not compared" in " ".join(verdicts(records))
    again = table([rows["judged"], rows["judged"]], rows["without"])[0]["versus"]
    assert sorted(again) == ["balance", "clip_t", "likeness"]  # one of the two has no sharpness
    twice = table([rows["judged"], rows["rescaled"]], rows["rescaled"])
    assert twice[0]["titles"] == {"sharpness": "sharpness", "variety": "variety", "words": "words"}


def test_it_judges_alone_and_a_run_is_finished_when_it_has(
    toy: None, do_run: Callable, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    alone = ("scorer.clip=null", "scorer.dino=null", "stage=embedding")
    assert do_run(run_dir, *alone)
    assert do_run(run_dir, *alone, *TOY) and not do_run(run_dir, *alone, *TOY)
    stage = json.loads((run_dir / "summary.json").read_text())["stages"]["embedding"]
    assert stage["dino"] is None and stage["sharpness"] > 0 and stage["images"] > 0
    text = (run_dir / "report.html").read_text()
    assert "was not scored" not in text and ">Sharpness</th>" in text
    assert table(rows_of_runs([run_dir]))[-1]["images"] == stage["images"]


def test_the_arguments_of_a_scorer_are_part_of_what_is_asked_for() -> None:
    assert request_of(compose_config("+subject=cat", *TOY))["scorer"]["extra"]["toy"]["scale"] == 2


class Mistaken:
    """A scorer whose measures and values are given."""

    def __init__(self, values: object, *measures: Measure) -> None:
        self.values, self.measures = values, measures or (Measure(name="mine", title="mine"),)

    def score(self, samples, subject) -> object:
        return self.values


def judged(scorer: object, name: str = "toy") -> list[dict]:
    return Judges(subject(), judges().main, {name: scorer}, {}).score([sample(SNOW, plain(1, 0, 0))])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mine": [1.0, 2.0]}, r"Mistaken\.score returned 2 of mine for 1 samples: it must return a dict "
                               r"with 1 values \(None if a measure does not apply\) for each of mine"),
        ({"mine": [1.0], "more": [1.0]}, "returned 1 of mine, 1 of more for 1 samples"),
        ({}, "returned dict for 1 samples"),
        ([1.0], "returned list for 1 samples"),
        ({"mine": [float("nan")]}, r"returned mine=nan for 'a \[V\] cat in the snow', seed 0: it must be"),
        ({"mine": [float("inf")]}, "returned mine=inf"),
    ],
)  # fmt: skip
def test_wrong_values_are_said_in_one_sentence(values: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judged(Mistaken(values))


@pytest.mark.parametrize("name", ["dino", "likeness", "steps", "subjects", "harmonic", "dino_interval"])
def test_a_name_that_is_taken(name: str) -> None:
    with pytest.raises(ValueError, match=f"measure '{name}': this name is already used; choose another"):
        judged(Mistaken({}, Measure(name=name, title="mine")))
    twice = Mistaken({}, Measure(name="mine", title="mine"), Measure(name="mine", title="mine"))
    with pytest.raises(ValueError, match="measure 'mine': this name is already used"):
        judged(twice)
    with pytest.raises(ValueError, match=r"scorer\.extra\.clip: the name clip is already used"):
        judged(Mistaken({}), name="clip")


def test_a_scorer_with_the_name_of_one_of_ours_is_refused(toy: None) -> None:
    words = ("+scorer.extra.outside._target_=toy_scorer.Sharpness", "scorer.outside=true")
    config = compose_config("+subject=cat", *words).scorer
    with pytest.raises(ValueError, match=r"scorer\.extra\.outside: the name outside is already used"):
        load_judges(config, subject(images=(picture(0), picture(1))), prompts=(), device="cpu")


def test_transparent_parts_are_white_in_photos_and_pictures() -> None:
    """Black is hidden under them: read as it is, it would be compared with white."""
    hidden, white = Image.new("RGBA", (64, 64), (0, 0, 0, 0)), Image.new("RGB", (64, 64), "white")
    words = {"photos": [hidden], "noun": "cat"}
    found = score([white, hidden], ["a [V] cat", "a [V] cat"], **words)
    assert found["dino"] == pytest.approx(1, abs=1e-5)


def test_a_picture_may_have_no_value_and_a_line_more_facts() -> None:
    assert [line["scorer"] for line in judged(Mistaken({"mine": [None]}))] == ["dino", "clip_i", "clip_t"]
    line = judged(Mistaken({"mine": [{"value": 0.12345678, "face": "left"}]}))[-1]
    assert (line["scorer"], line["value"], line["face"]) == ("mine", 0.123457, "left")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"name": "Mine"}, "a name has lower-case letters"),
        ({"title": "a|b"}, "a title is 40 printable characters at most"),
        ({"title": "\x1b[2J"}, "a title is 40 printable"),
        ({"better": "best"}, "better='best'; allowed: higher, lower, same"),
        ({"reads": "caption"}, "reads='caption'; allowed: None, class, prompt"),
        ({"kind": "all"}, "kind='all'; allowed: subject, class"),
        ({"range": (0, float("inf"))}, r"range=\(0, inf\); allowed: two numbers or None"),
        ({"range": (0,)}, r"range=\(0,\); allowed"),
    ],
)
def test_a_measure_that_cannot_be(facts: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Measure(**{"name": "mine", "title": "mine", **facts})


def test_a_measure_can_be_hashed_and_a_score_of_others_can_be_null() -> None:
    assert hash(Measure(name="mine", range=[-1, 1])) == hash(Measure(name="mine", range=(-1, 1)))
    assert MEASURES["context_accuracy"].of({"scorer": "clip_t", "context_top1": None}) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["+scorer.extra.toy._target_=nowhere.Mine"], r"toy: cannot create nowhere\.Mine \(.*PYTHONPATH"),
        ([*TOY, "+scorer.extra.toy.speed=2"], "unexpected keyword argument 'speed'"),
        (["+scorer.extra.toy.scale=2"], r"names no class: set scorer\.extra\.toy\._target_=my_package"),
        (["+scorer.extra.toy._target_=builtins.dict"], r"toy: dict is not a scorer: it needs `measures`"),
        ([*TOY, "objective=[sharpnes]"], "objective='sharpnes'; did you mean sharpness"),
    ],
)  # fmt: skip
def test_a_scorer_that_cannot_be_used_ends_a_run_before_it_begins(
    toy: None, words: list[str], message: str, do_run: Callable, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        do_run(tmp_path / "run", *words)
    assert not (tmp_path / "run" / "images").exists()


def test_a_scorer_gets_one_text() -> None:
    scorer = SimpleNamespace(score=dict, measures=[Measure(name=n, reads=n) for n in ("class", "prompt")])
    with pytest.raises(ValueError, match=r"extra\.mine: .* gets one text: divide it into two scorers"):
        declared("mine", scorer, [])
    scorer.measures[1] = Measure(name="other")
    assert len(declared("mine", scorer, [])) == 2


@pytest.mark.parametrize(
    "entry",
    [
        {"_target_": "os.system", "command": "true"}, "text", 3, None, {"name": "subjects"},
        {"title": ["a"]}, {"name": ["a"]}, {"range": 3}, {"range": ["a", "b"]}, {"better": {}},
    ],
)  # fmt: skip
def test_a_strangers_declaration_is_checked(entry: object) -> None:
    whole = {"name": "mine", "title": "mine", "better": "higher", "range": [0, 1], "reads": None}
    whole |= {"kind": "subject", "judges": []}
    assert "mine" in measures_of({"measures": [whole]})
    damaged = [whole | entry] if isinstance(entry, dict) and "_target_" not in entry else [entry]
    for measures in (damaged, 3):
        with pytest.raises(ValueError, match=r"run\.json is damaged \(.*restore it, or do the run again"):
            measures_of({"measures": measures})


def test_a_prompt_that_clip_cannot_read_whole_is_said(
    tiny_scorer_dir: Path, do_run: Callable, tmp_path: Path
) -> None:
    clip = ClipScorer(tiny_scorer_dir / "clip")  # reads 16 tokens, two of them its own
    assert clip.cut_note(["a " * 14]) is None
    long = "a {} " + "on the beach " * 5
    assert "'a cat on the beach" in str(clip.cut_note(["a " * 14, long.replace("{}", "cat")]))
    kinds = "samples.kinds=[subject,class]"
    do_run(tmp_path / "run", f"samples.prompts=['{long}']", kinds, "stage=embedding")
    said = json.loads((tmp_path / "run" / "run.json").read_text())["warnings"]
    (warning,) = [text for text in said if "CLIP" in text]
    assert warning.startswith("CLIP-T reads only the first 16 tokens of 'a cat on the beach on the")
