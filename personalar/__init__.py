"""personalar: personalize autoregressive text-to-image models in two stages.

    cat = personalar.load("outputs/nano/cat")
    cat.images(["a photo of [V] cat in the snow"], seeds=[0])[0].save("cat.png")

Importing this loads nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike

    from personalar.generation.pipeline import Pipeline

__version__ = "0.1.0"


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
