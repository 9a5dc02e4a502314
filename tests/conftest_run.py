"""Runs in this process on the tiny random model; each takes about a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

import personalar.run
from personalar.config.compose import conf_dir, read_config, register
from personalar.config.run_config import RunConfig, SubjectConfig
from personalar.core.image_sizes import Size
from personalar.core.types import Subject
from personalar.data.subject import load_subject
from personalar.run import personalize, prepare
from personalar.training.context import Session

PAPERS = "model.recipe.stages.transformer.also_train=[]"  # q, k and v, as the method says
QUICK = ["experiment=quick", PAPERS, "trainer.threads=1", "trainer.checkpoint_every_steps=2"]


def compose_config(*overrides: str, name: str = "run") -> RunConfig:
    """Return the typed configuration of `overrides`."""
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return read_config(compose(name, list(overrides)))


@pytest.fixture(scope="session")
def do_run(tiny_model_dir: Path, tiny_scorer_dir: Path) -> Iterator[Callable[..., bool]]:
    """Yield a function that does one run: `do_run(run_dir, "stage=both")`; False: was finished."""
    where = [f"model.path={tiny_model_dir}", f"scorer.clip={tiny_scorer_dir / 'clip'}"]
    where.append(f"scorer.dino={tiny_scorer_dir / 'dino'}")

    def run(run_dir: Path, *overrides: str, subject: str = "+subject=cat") -> bool:
        prepared = prepare(compose_config(subject, *QUICK, *where, *overrides), run_dir)
        if prepared is not None:
            personalize(*prepared, command="test")
        return prepared is not None

    rendered: dict[str, Subject] = {}  # two seconds each, and always the same

    def load_once(config: SubjectConfig, sizes: list[Size] | None = None) -> Subject:
        key = repr(config)
        if key not in rendered:
            rendered[key] = load_subject(config, sizes)
        return rendered[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(personalar.run, "load_subject", load_once)
        yield run


@pytest.fixture(scope="session")
def run_overrides(tiny_model_dir: Path, tiny_scorer_dir: Path) -> list[str]:
    """What `finished_run` was started with, for another process."""
    where = [f"model.path={tiny_model_dir}", f"scorer.clip={tiny_scorer_dir / 'clip'}"]
    return ["+subject=cat", *QUICK, *where, f"scorer.dino={tiny_scorer_dir / 'dino'}", "stage=both"]


@pytest.fixture(scope="session")
def finished_run(do_run: Callable[..., bool], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; do not write into it."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    do_run(run_dir, "stage=both")
    return run_dir


@pytest.fixture
def session(do_run: Callable[..., bool], tiny_model_dir: Path, tmp_path: Path) -> Session:
    """A session without judges, on a folder of its own."""
    config = compose_config("+subject=cat", *QUICK, f"model.path={tiny_model_dir}", "scorer=none")
    prepared = prepare(config, tmp_path / "run")
    assert prepared is not None
    return prepared[0]
