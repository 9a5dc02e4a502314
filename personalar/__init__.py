"""personalar: personalize autoregressive text-to-image models in two stages.

    folder = personalar.personalize("subject=cat")
    cat = personalar.load(folder)
    cat.images(["a photo of [V] cat in the snow"], seeds=[0])[0].save("cat.png")

Importing this package is fast: a name is imported on its first use, and torch by the first call.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from personalar.generation.pipeline import load
    from personalar.runs.personalize import open_run
    from personalar.runs.personalize import run as personalize
    from personalar.sample import sample_files
    from personalar.scoring.judges import score
    from personalar.training.datamodule import SubjectDataModule
    from personalar.training.module import PersonalizationModule

__version__ = "0.1.0"
PUBLIC = {
    "personalize": "runs.personalize:run",
    "open_run": "runs.personalize:open_run",
    "load": "generation.pipeline:load",
    "sample_files": "sample:sample_files",
    "score": "scoring.judges:score",
    "PersonalizationModule": "training.module:PersonalizationModule",
    "SubjectDataModule": "training.datamodule:SubjectDataModule",
}
"""Public names -> module and name where they are defined."""
__all__ = [
    "PersonalizationModule", "SubjectDataModule", "load", "open_run", "personalize", "sample_files", "score"
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name on its first use."""
    if name in PUBLIC:
        return resolve_name(f"personalar.{PUBLIC[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names too, for help and completion."""
    return [*globals(), *__all__]
