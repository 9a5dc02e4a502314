"""A learned concept in Python: `personalar.load("outputs/nano/cat").images(prompts, seeds)`.

The way is that of `python -m personalar.sample`: the same prompt, seed and size give the same picture, and
the same mistake gives the same sentence, as a FileNotFoundError or ValueError.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING

from personalar.config.command_line import add_base, prepare_arguments
from personalar.config.commands import SampleConfig
from personalar.config.compose import composed, conf_dir, read_config
from personalar.config.fields import check_seeds
from personalar.core.image_sizes import read_size
from personalar.data.prompts import SUBJECT_TOKEN
from personalar.sample import check_words, concept_folder, prepare_generator

if TYPE_CHECKING:
    from PIL.Image import Image

    from personalar.generation.generator import Generator

ELSEWHERE = {
    "concept": "it is the first argument",
    "prompts": "give them to images()",
    "seeds": "give them to images()",
    "size": "give it to images()",
    "out": "save the pictures that images() returns",
}
"""Settings of `personalar.sample` that are none here, and what takes their place."""


class Learned:
    """A base model that knows a learned subject; it stays in memory as long as this lives."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    def images(self, prompts: Sequence[str], seeds: Sequence[int], *, size: str | None = None) -> list[Image]:
        """Return one picture for each prompt and its seed; as many of both.

        Args:
            size: width x height in pixels, one of the base's sizes ("608x416"); None: its square.

        Raises:
            ValueError: when there is no prompt, or one is empty, no text or too long; when a seed lacks, or
                is out of range; when the base does not know the size.
        """
        if isinstance(prompts, str) or isinstance(seeds, int):
            raise ValueError(
                f"prompts={prompts!r} with seeds={seeds!r}: give lists, as images(['a cat'], [0])"
            )
        wanted, numbers = list(prompts), [operator.index(seed) for seed in seeds]
        if len(wanted) != len(numbers):
            raise ValueError(
                f"{len(wanted)} prompts and {len(numbers)} seeds: give one seed for each prompt; for several "
                "seeds repeat the prompt, as images([prompt] * 4, range(4))"
            )
        from personalar.generation.requests import check_prompts

        for note in check_words(wanted, [SUBJECT_TOKEN]):
            warnings.warn(note, stacklevel=2)
        pixels = None if size is None else read_size(size, self.generator.backend.sizes)
        check_prompts(self.generator, wanted, size=pixels, say=lambda note: warnings.warn(note, stacklevel=4))
        check_seeds(numbers)
        return self.generator.images(wanted, numbers, size=pixels)


def load(concept: str | PathLike[str], settings: Sequence[str]) -> Learned:
    """Return the subject of a concept or run folder; see `personalar.load`."""
    config = sample_settings(fspath(concept), settings)
    return Learned(prepare_generator(config, concept_folder(config.concept)))


def sample_settings(concept: str, settings: Sequence[str]) -> SampleConfig:
    """Return what `personalar.sample` would run with.

    Raises:
        ValueError: for an argument that is no setting of it, or no value, with what is allowed.
    """
    for setting in settings:
        key = setting.lstrip("+").partition("=")[0]
        if "=" not in setting or setting.startswith(("-", "~")):
            raise ValueError(f"{setting!r} is no setting: write key=value, as 'decoder=jacobi'")
        if key in ELSEWHERE:
            raise ValueError(f"load takes no {key}=: {ELSEWHERE[key]}")
    arguments = prepare_arguments(settings, schema=SampleConfig, conf=conf_dir(), needs_subject=False)
    config = composed("sample", add_base(arguments, concept))
    config.concept, config.prompts = concept, []  # set here: no folder's name is too odd for this
    return read_config(config)
