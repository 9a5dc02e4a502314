"""personalar: personalize autoregressive text-to-image models in two stages.

    folder = personalar.personalize("subject=cat")
    cat = personalar.load(folder)
    cat.images(["a photo of [V] cat in the snow"], seeds=[0])[0].save("cat.png")

Importing this loads nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike
    from pathlib import Path

    from PIL.Image import Image

    from personalar.config.run_config import Stage
    from personalar.generation.pipeline import Pipeline
    from personalar.training.context import RunContext

__version__ = "0.1.0"


def personalize(*settings: str, folder: str | PathLike[str] | None = None) -> Path:
    """Learn a subject as `python -m personalar.run` does; return the run folder.

    A finished run is left as it is, an interrupted one goes on.

    Args:
        settings: as on the command line: "subject=cat", "stage=both", "seed=1".
        folder: of the run; by default outputs/MODEL/SUBJECT.

    Raises:
        ValueError, FileNotFoundError: for what the command would refuse, with what to do.
    """
    from personalar.runs.personalize import run

    return run(settings, folder)


def open_run(*settings: str, folder: str | PathLike[str] | None = None) -> tuple[RunContext, list[Stage]]:
    """Return a run and its stages, for a `lightning.Trainer` of one's own; see docs/python.md.

    Args:
        settings, folder: as for `personalize`.
    """
    from personalar.runs.personalize import open_run as open_settings

    return open_settings(settings, folder)


def load(concept: str | PathLike[str], *settings: str) -> Pipeline:
    """Return a learned subject, whose `images(prompts, seeds)` draws it as `personalar.sample` does.

    Args:
        concept: a concept folder, or the folder of a finished run.
        settings: as on the command line: "decoder=jacobi", "model=lumina_mgpt_7b_512", "trainer=gpu".

    Raises:
        FileNotFoundError: when the concept or files of the base are missing.
        ValueError: for an unknown setting, with what is allowed, or a concept of another base.
    """
    from personalar.generation.pipeline import load as load_learned

    return load_learned(concept, settings)


def sample_files(
    concept: str | PathLike[str], prompts: Sequence[str], seeds: Sequence[int] = (0,), *settings: str
) -> list[Path]:
    """Draw every prompt with every seed and write the PNG files as `python -m personalar.sample` does.

    Args:
        concept: a concept folder, or the folder of a finished run.
        settings: as on the command line: "out=pictures", "decoder=jacobi".

    Returns:
        The files, prompt by prompt.

    Raises:
        ValueError, FileNotFoundError: for what the command would refuse, with what to do.
    """
    from personalar.generation.pipeline import sample_files as sample_learned

    return sample_learned(concept, prompts, seeds, settings)


def score(
    pictures: Sequence[Image],
    prompts: Sequence[str],
    *settings: str,
    photos: Sequence[Image],
    noun: str,
) -> dict[str, float]:
    """Return the means of a run's measures over pictures from anywhere: "dino", "clip_i", "clip_t" and more.

    Args:
        pictures: to be judged.
        prompts: of each picture, with [V] where the subject's name goes.
        settings: the judges, as on the command line: "scorer=dreambench"; by default those of nano.
        photos: of the subject, which likeness is measured with.
        noun: its class, which CLIP reads in the place of "[V] noun".

    Raises:
        ValueError: numbers of pictures and prompts differ, or there is no photo.
    """
    from personalar.config.compose import composed, read_config
    from personalar.scoring.judges import score_pictures

    config = read_config(composed("run", ["subject=cat", *settings])).scorer
    return score_pictures(pictures, prompts, photos=photos, noun=noun, config=config)


def __getattr__(name: str) -> Any:
    """Load Lightning's classes when they are asked for."""
    if name == "PersonalizationModule":
        from personalar.training.module import PersonalizationModule

        return PersonalizationModule
    if name == "SubjectDataModule":
        from personalar.training.datamodule import SubjectDataModule

        return SubjectDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
