"""The commands as a user types them, each in a new process and from another folder."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest_run import QUICK
from hydra.core.hydra_config import HydraConfig
from processes import PRELOAD, forked
from test_concept import make

import personalar
from personalar.core.png import read_png_metadata

ROOT = Path(__file__).parents[2]
PATHS = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])


def command(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Return the result of `python -m ARGUMENTS`, without the seconds that a new process needs to import."""
    return forked(cwd, *arguments, PYTHONPATH=PATHS, OMP_NUM_THREADS="1")


def new_process(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Return the result of `python -m ARGUMENTS` in a new process."""
    environment = os.environ | {"PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", *arguments]
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Return a function that runs a command in this process and returns its last output."""

    def ends(name: str, *arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        # --help, --info and --cfg set it, and later compositions of this process would read it.
        monkeypatch.setattr(HydraConfig.instance(), "cfg", HydraConfig.instance().cfg)
        with pytest.raises(SystemExit) as stopped:
            importlib.import_module(f"personalar.{name}").main()
        said = stopped.value.code
        return said if isinstance(said, str) else capsys.readouterr().err  # Hydra's own

    return ends


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("run", ["+subject=cta"], "did you mean cat?"),
        ("run", ["+subject=folder", "subject.path=.", "subject.noun=dog"], "contains no usable picture"),
        ("run", ["+subject=cat", "model.path=nowhere"], "no model folder at nowhere"),
        ("sample", ["concept=nowhere", "prompts=[a]"], "concept=nowhere contains no concept.json"),
        ("sample", ["prompts=[a]"], "no value for concept"),
        ("sample", ["concept=.", "prompts=[]"], "contains no concept.json"),
    ],
)
def test_mistakes_end_in_one_sentence_at_once(
    mistake: Callable[..., str], name: str, arguments: list[str], message: str
) -> None:
    said = mistake(name, *arguments)
    assert said.startswith(f"personalar.{name}: ") and message in said


def test_a_folder_with_odd_signs_is_given_in_quotes(mistake: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "my dog (1), at sea").mkdir()
    where = ["+subject=folder", 'subject.path="my dog (1), at sea"', "subject.noun=dog"]
    assert "subject.path=my dog (1), at sea contains no usable picture" in mistake("run", *where)


def test_a_benchmark_composes_its_runs_beside_its_own_configuration(mistake: Callable[..., str]) -> None:
    assert "no finished run in here" in mistake("evaluate", "table", "benchmark=nanobench", "out=here")


def test_mistakes_are_found_without_heavy_imports(tmp_path: Path) -> None:
    code = (
        "import sys, personalar.run as run\n"
        "sys.argv = ['run', 'subject=folder', 'subject.path=.', 'subject.noun=dog']\n"
        "try: run.main()\n"
        "except SystemExit as stop: print(stop)\n"
        "print('heavy', *{'torch', 'lightning', 'transformers'} & set(sys.modules))"
    )
    done = new_process(tmp_path, "timeit", "-n1", "-r1", f"exec({code!r})")
    assert "contains no usable picture" in done.stdout and "heavy\n" in done.stdout, done.stderr


def test_a_forked_command_has_all_that_is_loaded_before(tmp_path: Path) -> None:
    """The server passes over what it cannot import without a word; then each command takes seconds more."""
    done = command(tmp_path, "timeit", "-n1", "-r1", f"import sys; print({set(PRELOAD)} - set(sys.modules))")
    assert "set()" in done.stdout, done.stdout + done.stderr


def test_from_photos_to_new_pictures(
    finished_run: Path, tmp_path: Path, tiny_model_dir: Path, tiny_scorer_dir: Path
) -> None:
    photos = [
        "subject=folder",
        f"subject.path={finished_run / 'references'}",
        "subject.noun=cat",
        "subject.name=cat",
    ]
    where = [f"model.path={tiny_model_dir}", "trainer.threads=1"]
    scorers = [f"scorer.{name}={tiny_scorer_dir / name}" for name in ("clip", "dino")]
    done = command(tmp_path, "personalar.run", *photos, *QUICK[:1], *where, *scorers, "logger=tensorboard")
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


def test_what_a_command_refuses_itself_is_one_sentence_too(tmp_path: Path) -> None:
    make().save(tmp_path / "concept")  # its own file is called "__main__" then
    done = command(tmp_path, "personalar.export", "concept=concept", "out=concept")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.startswith("personalar.export: out=concept contains concept.json of a concept")


def test_one_command_for_all(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    from personalar.__main__ import COMMANDS, main

    def said(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["personalar", *words])
        main()
        return capsys.readouterr().out

    assert "  sample    Sample a learned subject\n" in said()
    assert all(re.search(rf"^  {name} +[A-Z][^`]{{20,70}}$", said(), re.MULTILINE) for name in COMMANDS)
    assert said("--version") == f"personalar {personalar.__version__}\n"
    with pytest.raises(SystemExit, match=r"'smaple'; did you mean sample\?\nallowed: run, sample"):
        said("smaple")
    with pytest.raises(SystemExit) as done:
        said("run", "subject=catt")
    assert "did you mean cat" in str(done.value) + capsys.readouterr().err
