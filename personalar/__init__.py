"""personalar: personalize autoregressive text-to-image models in two stages.

    folder = personalar.personalize("subject=cat")
    cat = personalar.load(folder)
    cat.images(["a photo of [V] cat in the snow"], seeds=[0])[0].save("cat.png")

Importing this package is fast: torch is loaded by the first call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike
    from pathlib import Path

    from PIL.Image import Image

    from personalar.config.run_config import Stage
    from personalar.generation.pipeline import Concepts, Pipeline
    from personalar.training.context import RunContext

__version__ = "0.1.0"


def personalize(*settings: str, folder: str | PathLike[str] | None = None) -> Path:
    """Learn a subject, like `python -m personalar.run`, and return the run folder.

    A finished run is not repeated, an interrupted one resumes.

    Args:
        settings: settings as on the command line: "subject=cat", "stage=both", "seed=1".
        folder: the run folder; default: outputs/MODEL/SUBJECT.

    Raises:
        ValueError: an invalid setting or photo, or a folder with another run.
        FileNotFoundError: photos or files of the base are missing.
    """
    from personalar.runs.personalize import run

    return run(settings, folder)


def open_run(*settings: str, folder: str | PathLike[str] | None = None) -> tuple[RunContext, list[Stage]]:
    """Return the context of a run and its stages, to train with your own `lightning.Trainer`.

    See docs/python.md.

    Args:
        settings: as for `personalize`.
        folder: as for `personalize`.

    Raises:
        ValueError: as for `personalize`, or the folder contains a finished run.
        FileNotFoundError: photos or files of the base are missing.
    """
    from personalar.runs.personalize import open_run as open_settings

    return open_settings(settings, folder)


def load(concept: Concepts, *settings: str) -> Pipeline:
    """Return a learned subject; its method `images(prompts, seeds)` samples like `personalar.sample`.

    Args:
        concept: a concept folder, or the folder of a finished run; or a list of them, for several subjects.
        settings: settings as on the command line: "decoder=jacobi", "trainer=gpu", "model.path=DIR".

    Raises:
        FileNotFoundError: the concept or files of the base are missing.
        ValueError: an invalid setting, or the concept belongs to another base.
    """
    from personalar.generation.pipeline import load as load_learned

    return load_learned(concept, settings)


def sample_files(
    concept: Concepts, prompts: Sequence[str], seeds: Sequence[int] = (0,), *settings: str
) -> list[Path]:
    """Sample every prompt with every seed and write PNG files, like `python -m personalar.sample`.

    Args:
        concept: as for `load`.
        prompts: prompts with [V], such as "a photo of [V] cat in the snow".
        settings: settings as on the command line: "out=pictures", "decoder=jacobi".

    Returns:
        The paths of the files, prompt by prompt.

    Raises:
        ValueError, FileNotFoundError: as for `load`.
    """
    from personalar.sample import sample_files as sample_learned

    return sample_learned(concept, prompts, seeds, settings)


def score(
    pictures: Sequence[Image],
    prompts: Sequence[str],
    *settings: str,
    photos: Sequence[Image],
    noun: str,
) -> dict[str, float]:
    """Return the mean scores of any pictures by measure: "dino", "clip_i", "clip_t" and more.

    Args:
        pictures: the pictures to score.
        prompts: the prompt of each picture, with [V] for the subject.
        settings: scorers, as on the command line: "scorer=dreambench"; default: those of nano.
        photos: photos of the subject, with which the pictures are compared.
        noun: the class of the subject, which CLIP reads instead of "[V] noun".

    Raises:
        ValueError: the numbers of pictures and prompts differ, or there is no photo.
    """
    # Inside of the functions, because Hydra and the scorers are slow to import.
    from personalar.config.compose import composed, read_config
    from personalar.scoring.judges import score_pictures

    # A run needs a subject, but only its scorers are used here.
    config = read_config(composed("run", ["subject=cat", *settings])).scorer
    return score_pictures(pictures, prompts, photos=photos, noun=noun, config=config)


def __getattr__(name: str) -> Any:
    """Return the Lightning classes, which are imported on first use because they load torch."""
    if name == "PersonalizationModule":
        from personalar.training.module import PersonalizationModule

        return PersonalizationModule
    if name == "SubjectDataModule":
        from personalar.training.datamodule import SubjectDataModule

        return SubjectDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
