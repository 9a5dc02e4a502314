"""DreamBench (Ruiz et al., CVPR 2023): its 30 subjects, its 25 + 25 prompts, and its folder on disk.

The photographs are not part of this package. The original layout is one folder per subject beside
`references_and_licenses.txt`; in a checkout of google/dreambooth these are in `dataset/`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from personalar.config.subject_config import DREAMBENCH_CLASSES as SUBJECTS
from personalar.core.types import PromptSpec

REPOSITORY = "https://github.com/google/dreambooth"
CREDITS_FILE = "references_and_licenses.txt"
ATTRIBUTION = (
    "DreamBench photographs: N. Ruiz, Y. Li, V. Jampani, Y. Pritch, M. Rubinstein, K. Aberman\n"
    "(DreamBooth, CVPR 2023), github.com/google/dreambooth, Creative Commons Attribution 4.0\n"
    f"International (CC BY 4.0); photographers and the licence of each picture: {CREDITS_FILE}"
)

# The phrases are those of the published prompt list, in its order, so that a prompt's number is comparable.
_PLACES = (
    "in the jungle", "in the snow", "on the beach", "on a cobblestone street", "on top of pink fabric",
    "on top of a wooden floor", "with a city in the background", "with a mountain in the background",
    "with a blue house in the background", "on top of a purple rug in a forest",
)  # fmt: skip
_OBJECT_PLACES = (
    "with a wheat field in the background", "with a tree and autumn leaves in the background",
    "with the Eiffel Tower in the background", "floating on top of water", "floating in an ocean of milk",
    "on top of green grass with sunflowers around it", "on top of a mirror",
    "on top of the sidewalk in a crowded street", "on top of a dirt road", "on top of a white rug",
)  # fmt: skip
_ACCESSORIES = (
    "wearing a red hat", "wearing a santa hat", "wearing a rainbow scarf",
    "wearing a black top hat and a monocle", "in a chef outfit", "in a firefighter outfit",
    "in a police outfit", "wearing pink glasses", "wearing a yellow shirt", "in a purple wizard outfit",
)  # fmt: skip
_PROPERTIES = ("red", "purple", "shiny", "wet", "cube shaped")


def dreambench_prompts(*, live: bool) -> tuple[PromptSpec, ...]:
    """Return the 25 prompts in the published order, with "{}" for the subject.

    Args:
        live: the list for cats and dogs (10 places, 10 accessories, 5 properties) instead of the list for
            objects (20 places, 5 properties).
    """
    places = _PLACES if live else _PLACES + _OBJECT_PLACES
    worn = _ACCESSORIES if live else ()
    return (
        *(PromptSpec(text=f"a {{}} {phrase}", category="recontext", context=phrase) for phrase in places),
        *(PromptSpec(text=f"a {{}} {phrase}", category="accessory", accessory=phrase) for phrase in worn),
        *(PromptSpec(text=f"a {word} {{}}", category="property") for word in _PROPERTIES),
    )


def dataset_folder(path: Path) -> Path:
    """Return the folder that contains the subjects' folders: `path` or `path/dataset`.

    Raises:
        FileNotFoundError: neither contains a subject of DreamBench.
    """
    for folder in (path, path / "dataset"):
        if any((folder / name).is_dir() for name in SUBJECTS):
            return folder
    raise FileNotFoundError(
        f"benchmark.path={path} contains no DreamBench subject (cat/, dog/, ...): set it to the folder of "
        f"the photographs, or download them with git clone {REPOSITORY} {shlex.quote(str(path))}"
    )


def find_subjects(path: Path, names: Sequence[str] | None = None) -> dict[str, Path]:
    """Return the folder of each subject, by its name, in the published order.

    Args:
        path: the data set, see `dataset_folder`.
        names: subjects to return; None means every subject that is found in `path`.

    Raises:
        FileNotFoundError: `path` contains no subject, or one of `names` is missing.
        ValueError: a name is not a subject of DreamBench.
    """
    folder = dataset_folder(path)
    unknown = [name for name in names or () if name not in SUBJECTS]
    if unknown:
        raise ValueError(
            f"benchmark.subjects: {unknown[0]!r} is not in DreamBench; allowed: {', '.join(SUBJECTS)}"
        )
    missing = [name for name in names or () if not (folder / name).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"{folder} does not contain {', '.join(missing)}: clone the whole data set, or remove them "
            "from benchmark.subjects"
        )
    wanted = SUBJECTS if names is None else [name for name in SUBJECTS if name in names]
    return {name: folder / name for name in wanted if (folder / name).is_dir()}
