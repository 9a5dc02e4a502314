"""The benchmark command: its runs, resuming, its files, and calibration against published values."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest_run import compose_config
from PIL import Image
from synthetic_run import make_run
from test_dreambench_plus import make_benchmark
from test_subject_scorer import TableClip, TableDino, plain

import personalar.evaluate
import personalar.runs.benchmark
from personalar.config.command_line import quote
from personalar.config.commands import EvaluateConfig
from personalar.data.subject import load_subject
from personalar.evaluate import evaluate, main, split_arguments
from personalar.reports.summary import write_summary
from personalar.runs.benchmark import (
    BenchRun,
    plan,
    run_all,
    share,
    show_results,
    subject_overrides,
    write_results,
)
from personalar.runs.calibration import real_images_row, verdict
from personalar.runs.personalize import personalize, prepare
from personalar.scoring.base import similarity_between
from personalar.scoring.features import ClipScorer, DinoScorer

TINY = (
    "model.recipe.stages.embedding={steps: 1, batch: 2, lr: 0.01}",
    "model.recipe.stages.transformer={steps: 1, batch: 2, lr: 0.001, identifier_lr: 0.01}",
    "model.recipe.stages.joint={steps: 1, batch: 2, lr: 0.001, identifier_lr: 0.01}",
    "model.recipe.data.crops_per_photo=1",
    "model.recipe.data.copies_per_photo=1",
    "samples.prompts=['a photo of a {}', 'a {} in the snow']",
    "samples.prior_images=2",
    "samples.grid_every_steps=0",
    "trainer.threads=1",
)

KNOWS = "scorer.photo_warning=null"
"""Settings with which the tiny scorers count as trained on photographs."""


def config(*overrides: str) -> EvaluateConfig:
    return compose_config(*overrides, name="evaluate")


@pytest.fixture
def run_here(monkeypatch, do_run, tiny_model_dir: Path, tiny_scorer_dir: Path) -> list[str]:
    """Runs happen in this process on the tiny model (`do_run` caches the rendered subjects)."""
    asked: list[str] = []
    where = [f"model.path={tiny_model_dir}", *(f"scorer.{n}={tiny_scorer_dir / n}" for n in ("clip", "dino"))]

    def execute(command, log) -> bool:
        *overrides, folder = command[1:]
        run_dir = Path(folder.removeprefix("hydra.run.dir=").strip('"'))
        asked.append("/".join(run_dir.parts[-2:]))
        try:
            prepared = prepare(compose_config(*overrides, *TINY, *where), run_dir)
        except ValueError:
            return False
        if prepared is not None:
            personalize(*prepared, command="test")
        return True

    monkeypatch.setattr(personalar.runs.benchmark, "execute", execute)
    return asked


def test_two_subjects_by_two_methods(run_here: list[str], tmp_path: Path, capsys) -> None:
    out = tmp_path / "bench"
    settings = config(
        "benchmark.subjects=[cat,teapot]", "benchmark.methods=[two_stage,dreambooth]", f"out={out}"
    )
    evaluate(settings, [])
    assert run_here == ["two_stage/cat", "dreambooth/cat", "two_stage/teapot", "dreambooth/teapot"]
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    rows = list(dict.fromkeys(line["row"] for line in lines))
    assert rows == [
        "base", "text description", "textual inversion (stage 1)", "two stages", "one-stage DreamBooth"
    ]  # fmt: skip
    assert len(lines) == 2 * len(rows)
    last = lines[-1]
    assert last["scorers"]["dino"] and last["pres"] is not None and last["diversity"] is not None
    assert last["drift"] >= 0 and set(last["categories"]) == {"plain"}
    table = (out / "comparison.md").read_text()
    assert "| two stages | 2 | 4 |" in table and "one-stage DreamBooth against two stages: likeness" in table
    assert (out / "comparison.html").is_file()
    base = [out / method / "cat" / "images" / "base" for method in ("two_stage", "dreambooth")]
    assert {p.name: p.read_bytes() for p in base[0].iterdir()} == {
        p.name: p.read_bytes() for p in base[1].iterdir()
    }
    before = (out / "results.jsonl").read_bytes()
    evaluate(settings, [])  # finished runs are found, not repeated
    assert "already finished" in capsys.readouterr().out and (out / "results.jsonl").read_bytes() == before
    evaluate(config("task=table", *settings_of(settings)), [])
    assert len(run_here) == 8


def test_the_first_method_is_the_reference_even_if_its_first_run_failed(tmp_path: Path) -> None:
    methods = "benchmark.methods=[joint,two_stage,lora]"
    settings = config("benchmark.subjects=[cat,dog]", methods, f"out={tmp_path}")
    for name in ("joint/dog", "two_stage/cat", "lora/dog"):
        make_run(tmp_path / name, noun=name.partition("/")[2])
        write_summary(tmp_path / name)
    records = {record["row"]: record["against"] for record in write_results(plan(settings), settings)}
    other = dict.fromkeys(
        ("base", "text description", "two stages", "joint embedding", "two stages, LoRA"), "joint transformer"
    )
    assert records == {**other, "joint transformer": None}


def test_all_subjects_are_those_of_the_rendered_world() -> None:
    assert len(subject_overrides(config("benchmark.subjects=null").benchmark)) == 12


def settings_of(settings: EvaluateConfig) -> list[str]:
    return [
        f"benchmark.subjects=[{','.join(settings.benchmark.subjects or [])}]",
        f"benchmark.methods=[{','.join(settings.benchmark.methods)}]",
        f"out={settings.out}",
    ]


def make_photos(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for photo in range(3):
            Image.new("RGB", (50, 40), (60 * number, 80 * photo, 120)).save(
                folder / name / f"{photo:02d}.jpg"
            )
    (folder / "references_and_licenses.txt").write_text("credits")
    return folder


def test_dreambench_from_a_folder_shows_whose_photographs_they_are(
    run_here: list[str], tmp_path: Path, capsys
) -> None:
    photos = make_photos(tmp_path / "it's here" / "dataset", "dog6", "wolf_plushie")
    settings = config(
        "benchmark=dreambench", f"benchmark.path={quote(photos.parent)}", "benchmark.methods=[two_stage]",
        KNOWS, f"out={tmp_path / 'out'}",
    )  # fmt: skip
    with pytest.raises(FileNotFoundError, match="no finished run"):
        evaluate(settings, ["stage=transformer"])  # without a stage 1
    with pytest.raises(ValueError, match=r"recipe\.loss='nonsense'; allowed: image_tokens"):
        evaluate(settings, ["model.recipe.loss=nonsense"])  # once, before any run
    evaluate(settings, [])
    assert "CC BY 4.0" in capsys.readouterr().out
    assert (tmp_path / "out" / "references_and_licenses.txt").read_text() == "credits"
    assert "CC BY 4.0" in (tmp_path / "out" / "comparison.md").read_text()
    run = json.loads((tmp_path / "out" / "two_stage" / "wolf_plushie" / "run.json").read_text())
    assert (run["noun"], run["live"], run["rendered"]) == ("stuffed animal", False, False)


def test_every_picture_of_dreambench_plus_is_a_subject_with_its_own_prompts(tmp_path: Path) -> None:
    photos = make_benchmark(tmp_path / "it's here", "live_subject/human/02 old man", "object/00 vase")
    runs = plan(
        config(
            "benchmark=dreambench_plus", f"benchmark.path={quote(photos)}", "benchmark.methods=[two_stage]",
            "protocol=dreambooth", KNOWS,
        )
    )  # fmt: skip
    assert [run.subject for run in runs] == ["live_subject_human_02_old_man", "object_00_vase"]
    run = compose_config(*runs[0].overrides)
    assert len(run.samples.prompts) == 9 and run.samples.prompts[1] == "A {} in the snow, number 1"
    assert run.samples.seeds == [0, 1, 2, 3] and run.subject.photographs
    subject = load_subject(run.subject)
    assert (subject.name, subject.noun, subject.live) == (runs[0].subject, "old man", True)
    assert len(subject.images) == 1


def test_both_protocols_and_the_order_of_runs() -> None:
    runs = plan(config("benchmark.methods=[two_stage,paper]", "protocol=dreambooth"), ["trainer=gpu"])
    assert len(runs) == 12 * 2
    assert [run.method for run in runs[:2]] == ["two_stage", "paper"] and runs[0].subject == runs[1].subject
    assert "samples.seeds=[0,1,2,3]" in runs[0].overrides and runs[0].overrides[-1] == "trainer=gpu"
    assert "experiment=paper/two_stage" in runs[0].overrides and "method=paper" in runs[1].overrides
    assert "samples.seeds=[0]" in plan(config())[0].overrides


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["benchmark.methods=[x]"],
            r"unknown option method='x'\nallowed: dcoar, embedding_only, full, joint, lora, paper, qlora$",
        ),
        (["benchmark.methods=[]"], "name at least one"),
        (["benchmark.subjects=[]"], r"benchmark\.subjects is empty: name at least one"),
        (["benchmark.subjects=[x]"], "benchmark.subjects: unknown 'x'; allowed: backpack, bear"),
        (["protocol=x"], "protocol='x'; allowed: paper, dreambooth"),
        (["task=x"], "allowed: benchmark, calibrate, agreement, table"),
        (["benchmark=dreambench"], r"needs benchmark\.path=DIR.*git clone"),
        (
            ["benchmark=dreambench", "benchmark.path=photos"],
            r"^scorer=nano was trained on rendered pictures, so its scores .* mean nothing; "
            r"benchmark=dreambench needs others: scorer=dreambench, scorer=none \(no scores\), or your own",
        ),
        (
            ["task=calibrate", "benchmark=dreambench", "benchmark.path=photos"],
            r"needs others: scorer=dreambench, or your own scorers",
        ),
    ],
)
def test_mistakes_name_what_is_allowed(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(config(*overrides))


def test_arguments_of_this_command_and_of_its_runs_are_told_apart() -> None:
    own, for_runs = split_arguments(
        ["calibrate", "benchmark=nanobench", "model=nano", "~callbacks.checkpoint", "scorer.clip=x", "--help"]
    )
    assert own == ["task=calibrate", "benchmark=nanobench", "scorer.clip=x", "--help"]
    assert for_runs == ["model=nano", "~callbacks.checkpoint", "scorer.clip=x"]
    with pytest.raises(ValueError, match=r"a benchmark has several subjects: use benchmark\.subjects="):
        split_arguments(["subject=cat"])
    for word in ("method=lora", "+experiment=quick", "stage=embedding"):
        with pytest.raises(ValueError, match=r"its methods: use benchmark\.methods="):
            split_arguments([word])
    for word in ("samples.seeds=[7]", "+samples.kinds=[subject]"):
        with pytest.raises(ValueError, match=r"samples all kinds, and the seeds of protocol=paper"):
            split_arguments([word])
    with pytest.raises(ValueError, match=r"unknown setting trainer\.thread.*did you mean threads"):
        split_arguments(["benchmark=nanobench", "trainer.thread=1"])


def test_the_users_own_options_reach_the_runs(tmp_path: Path) -> None:
    """With --config-dir and with hydra.searchpath, also together."""
    own = {name: tmp_path / name for name in ("one", "two")}
    for name, folder in own.items():
        (folder / "method").mkdir(parents=True)
        yaml = f"defaults: [method_schema]\nname: {name}\nstages: {{embedding: {{numbers: embedding}}}}\n"
        (folder / "method" / f"{name}.yaml").write_text(yaml)
    search = f"hydra.searchpath=[file://{own['two']}]"
    mine, for_runs = split_arguments(["--config-dir", str(own["one"]), search, "seed=1"])
    assert mine == ["--config-dir", str(own["one"]), search] and for_runs[0] == "seed=1"
    runs = plan(config("benchmark.methods=[one,two]", "benchmark.subjects=[cat]"), for_runs)
    assert [compose_config(*run.overrides).method.name for run in runs] == ["one", "two"]


def test_the_base_is_shared_but_a_begun_run_is_left_alone(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name / "images" / "base").mkdir(parents=True)
    (tmp_path / "one" / "images" / "base" / "a.png").write_bytes(b"picture")
    (tmp_path / "three" / "run.json").write_text("{}")
    same = {"subject": "cat", "log": tmp_path / "log", "overrides": ()}
    runs = {name: BenchRun(method=name, folder=tmp_path / name, **same) for name in ("one", "two", "three")}
    for name in ("two", "three"):
        assert share([runs["one"]], runs[name]) == ()
    found = [len(list((tmp_path / name / "images" / "base").iterdir())) for name in ("two", "three")]
    assert found == [1, 0]


def test_real_images_have_their_closed_form() -> None:
    photos = {
        "cat": [plain(1, 0, 0), plain(0, 1, 0)],
        "dog": [plain(3, 4, 0), plain(3, 4, 0), plain(1, 0, 0)],
    }
    row = real_images_row(TableClip(), TableDino(), photos)
    # cat: one pair, 0; dog: pairs 1, .6, .6, so the photos have .8, .8, .6
    assert row["dino"] == pytest.approx((0 + 2.2 / 3) / 2, abs=1e-6) and row["clip_i"] == row["dino"]
    assert row["subjects"]["dog"]["dino"] == pytest.approx(2.2 / 3, abs=1e-6) and row["photos"] == 5


def test_the_verdict_passes_within_tolerance_and_over_all_subjects_only() -> None:
    published = {"dino": 0.774, "clip_i": 0.885, "subjects": 2}
    row = {"dino": 0.78, "clip_i": 0.88, "subjects": {"cat": {}, "dog": {}}}
    passed, sentence = verdict(row, published)
    assert passed and sentence.startswith("PASS: dino 0.780 (published 0.774, off by +0.006)")
    passed, sentence = verdict({**row, "dino": 0.70}, published)
    assert not passed and "FAIL" in sentence and "scorer.dino_preprocess" in sentence
    passed, sentence = verdict(row, {**published, "subjects": 30})
    assert not passed and "2 of 30 subjects" in sentence


def test_the_calibrate_command_on_tiny_checkpoints(tmp_path: Path, tiny_scorer_dir: Path, capsys) -> None:
    photos = make_photos(tmp_path / "photos", "cat", "vase")
    judges = [f"scorer.{name}={tiny_scorer_dir / name}" for name in ("clip", "dino")]
    dino_scorer, clip_scorer = DinoScorer(tiny_scorer_dir / "dino"), ClipScorer(tiny_scorer_dir / "clip")
    opened = [[Image.open(path).convert("RGB") for path in sorted((photos / name).glob("*.jpg"))]
              for name in ("cat", "vase")]  # fmt: skip
    features = [dino_scorer.features(images) for images in opened]
    expected = float(torch.stack([similarity_between(found).mean() for found in features]).mean())
    clip = [clip_scorer.image_features(images) for images in opened]
    clip_i = float(torch.stack([similarity_between(found).mean() for found in clip]).mean())
    common = (
        "task=calibrate",
        "benchmark=dreambench",
        f"benchmark.path={photos}",
        *judges,
        KNOWS,
        f"out={tmp_path}",
    )
    row = f"{{dino: {expected:.6f}, clip_i: {clip_i:.6f}, subjects: 2}}"
    evaluate(config(*common, f"benchmark.published={row}"), [])
    facts = json.loads((tmp_path / "calibration.json").read_text())
    said = capsys.readouterr().out
    assert re.findall(r"\n(\w+)\nphoto +pixels +verdict", said) == ["cat", "vase"]  # whose table it is
    assert facts["passed"] and facts["dino"] == pytest.approx(expected, abs=1e-5)
    assert facts["scorers"]["dino_preprocessing"].startswith("shorter side 32, bicubic, centre crop")
    with pytest.raises(SystemExit, match="1"):
        evaluate(config(*common), [])  # the real row: 30 subjects
    assert "2 of 30 subjects" in capsys.readouterr().out
    with pytest.raises(ValueError, match="calibrate needs photographs with published values"):
        evaluate(config("task=calibrate"), [])
    with pytest.raises(
        ValueError, match="trainer=gpu is for the runs of a benchmark, and calibrate has none"
    ):
        evaluate(config("task=calibrate"), ["scorer=nano", "trainer=gpu"])
    with pytest.raises(ValueError, match="calibrate needs scorers: scorer=dreambench"):
        evaluate(config(*common[:3], "scorer=none"), [])


def started(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Start the command in this process."""
    monkeypatch.setattr(sys, "argv", ["personalar.evaluate", *words])
    main()


def test_with_m_every_subject_is_a_job(tmp_path: Path, monkeypatch) -> None:
    words = ["-m", "benchmark.subjects=[cat,teapot]", "benchmark.methods=[two_stage,lora]", f"out={tmp_path}"]
    done: list[str] = []
    monkeypatch.setattr(personalar.evaluate, "take_gpu", lambda: done.append("a job"))
    monkeypatch.setattr(personalar.runs.benchmark, "execute", lambda command, log: not done.append(log.stem))
    monkeypatch.setattr(personalar.runs.benchmark, "share", lambda done, run: ())
    monkeypatch.setattr(
        personalar.runs.benchmark, "show_results", lambda runs, config: done.append(f"{len(runs)} results")
    )
    started(monkeypatch, *words)
    assert done == [
        "a job", "two_stage-cat", "lora-cat", "a job", "two_stage-teapot", "lora-teapot", "4 results"
    ]  # fmt: skip


def test_help_with_m_needs_no_benchmark(monkeypatch, capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        started(monkeypatch, "-m", "--help")
    assert "personalar.evaluate" in capsys.readouterr().out


def test_a_failed_run_is_named_whichever_job_did_it(tmp_path: Path, monkeypatch, capsys) -> None:
    runs = plan(config("benchmark.subjects=[cat,dog]", "benchmark.methods=[two_stage]", f"out={tmp_path}"))
    monkeypatch.setattr(personalar.runs.benchmark, "execute", lambda command, log: "+subject=dog" in command)
    run_all(runs)
    assert [run.unfinished.exists() for run in runs] == [True, False]
    monkeypatch.setattr(personalar.runs.benchmark, "write_results", lambda runs, config: [])
    monkeypatch.setattr(personalar.runs.benchmark, "markdown", lambda records: "the table")
    settings = config("benchmark.subjects=[cat,dog]", f"out={tmp_path}")
    with pytest.raises(
        SystemExit, match=r"1 of 2 runs failed \(two_stage cat\).*the same command repeats them"
    ):
        show_results(runs, settings)
    assert "the table" in capsys.readouterr().out


def test_what_is_no_parallel_benchmark_is_refused(monkeypatch) -> None:
    message = "-m is for a benchmark, each subject of which is a job; got the task table"
    with pytest.raises(SystemExit, match=message):
        started(monkeypatch, "table", "-m")


@pytest.mark.slow
def test_a_launcher_does_the_subjects_at_the_same_time(
    tmp_path: Path, tiny_model_dir: Path, tiny_scorer_dir: Path
) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    judges = [f"scorer.{name}={tiny_scorer_dir / name}" for name in ("clip", "dino")]
    words = ["-m", "benchmark.subjects=[cat,teapot]", "benchmark.methods=[two_stage]", f"out={tmp_path}"]
    words += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"model.path={tiny_model_dir}"]
    tiny = [word for word in TINY if "joint" not in word]  # a setting that two_stage does not read is refused
    command = [sys.executable, "-m", "personalar.evaluate", *words, *judges, *tiny]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {path.parent.name for path in tmp_path.glob("two_stage/*/summary.json")} == {"cat", "teapot"}
    assert (tmp_path / "logs" / "two_stage-cat.log").is_file() and "| two stages | 2 |" in done.stdout
