"""The commands as a person types them, each in a process of its own and from another folder."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest_run import QUICK
from test_concept import make

from personalar.core.png import read_png_metadata

ROOT = Path(__file__).parents[2]


def command(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", *arguments]
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no subject: say what to learn"),
        (["+subject=cta"], "did you mean cat?"),
        (["+subject=folder", "subject.path=.", "subject.noun=dog"], "holds no usable photo"),
        (["+subject=cat", "trainer.thread=1"], "did you mean threads?"),
        (["+subject=cat", "model.path=nowhere"], "no model folder at nowhere"),
    ],
)
def test_mistakes_end_in_one_sentence_at_once(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = command(tmp_path, "personalar.run", *arguments)
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr


def test_a_folder_with_odd_signs_is_given_in_quotes(tmp_path: Path) -> None:
    (tmp_path / "my dog (1), at sea").mkdir()
    where = ["+subject=folder", 'subject.path="my dog (1), at sea"', "subject.noun=dog"]
    done = command(tmp_path, "personalar.run", *where)
    assert done.returncode == 1 and "subject.path=my dog (1), at sea holds no usable photo" in done.stderr


def test_a_benchmark_composes_its_runs_beside_its_own_configuration(tmp_path: Path) -> None:
    done = command(tmp_path, "personalar.evaluate", "table", "benchmark=nanobench", "out=here")
    assert done.returncode == 1 and "no finished run in here" in done.stderr


def test_mistakes_are_found_without_heavy_imports(tmp_path: Path) -> None:
    code = (
        "import sys, personalar.run as run\n"
        "sys.argv = ['run', 'subject=folder', 'subject.path=.', 'subject.noun=dog']\n"
        "try: run.main()\n"
        "except SystemExit as stop: print(stop)\n"
        "print('heavy', *{'torch', 'lightning', 'transformers'} & set(sys.modules))"
    )
    started = time.process_time()
    done = command(tmp_path, "timeit", "-n1", "-r1", f"exec({code!r})")
    assert "holds no usable photo" in done.stdout and "heavy\n" in done.stdout, done.stderr
    assert time.process_time() - started < 2


def test_help_is_readable(tmp_path: Path) -> None:
    done = command(tmp_path, "personalar.run", "--help")
    assert "subject=      backpack | bear" in done.stdout and "identifier_lr: " in done.stdout
    assert "_schema" not in done.stdout


def test_from_photos_to_new_pictures(tmp_path: Path, tiny_model_dir: Path, tiny_scorer_dir: Path) -> None:
    where = [f"model.path={tiny_model_dir}", "trainer.threads=1"]
    scorers = [f"scorer.{name}={tiny_scorer_dir / name}" for name in ("clip", "dino")]
    done = command(
        tmp_path, "personalar.run", "subject=cat", *QUICK[:1], *where, *scorers, "logger=tensorboard"
    )
    assert done.returncode == 0, done.stderr
    run_dir = tmp_path / "outputs" / "nano" / "cat"  # no date: the same command finds it again
    for name in (".hydra/config.yaml", "concept/concept.json", "summary.json", "report.html"):
        assert (run_dir / name).is_file(), name
    assert list(run_dir.rglob("events.out.tfevents*"))
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
    prompts = 'prompts=["a photo of [V] cat in the snow"]'
    done = command(tmp_path, "personalar.sample", f"concept={run_dir}", prompts, "seeds=[3,4]", *where)
    assert done.returncode == 0, done.stderr
    facts = [read_png_metadata(path) for path in sorted((tmp_path / "samples").glob("*.png"))]
    assert [fact["seed"] for fact in facts] == ["3", "4"]
    assert facts[0]["prompt"] == "a photo of [V] cat in the snow"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["concept=nowhere", "prompts=[a]"], "concept=nowhere holds no concept.json"),
        (["prompts=[a]"], "no value for concept"),
        (["concept=.", "prompts=[]"], "holds no concept.json"),
    ],
)
def test_sample_says_what_it_needs(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = command(tmp_path, "personalar.sample", *arguments)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


def test_what_a_command_refuses_itself_is_one_sentence_too(tmp_path: Path) -> None:
    make().save(tmp_path / "concept")  # its own file is called "__main__" then
    done = command(tmp_path, "personalar.export", "concept=concept", "out=concept")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.startswith("personalar.export: out=concept is a concept's own folder")


def test_prompts_of_the_sample_command() -> None:
    from personalar.sample import check_words

    assert check_words(["a [V] cat"], ["[V]"]) == []
    assert "does not name the subject" in check_words(["a cat"], ["[V]"])[0]
    with pytest.raises(ValueError, match="must hold at least one prompt"):
        check_words([], ["[V]"])
