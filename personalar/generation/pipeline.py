"""Sample from a base with a learned concept: the code behind `personalar.sample` and `personalar.load`.

The command and the Python API give the same picture for the same prompt, seed and size, and the same error
message for the same mistake.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from os import PathLike, fspath
from typing import TYPE_CHECKING

from personalar.concepts.concept_source import base_settings, local_concept
from personalar.config.commands import SampleConfig
from personalar.config.compose import composed, read_config
from personalar.config.fields import check_seeds
from personalar.config.model_config import ProtocolConfig
from personalar.config.plugins import build
from personalar.config.trainer_config import check_devices
from personalar.core.image_sizes import Size, read_size
from personalar.data.prompts import normalized
from personalar.generation.chosen_concepts import (
    ChosenConcept,
    check_unambiguous,
    check_words,
    choose,
    words_of,
)
from personalar.models.loading import obtain_model

if TYPE_CHECKING:
    from PIL.Image import Image

    from personalar.generation.generator import Generator
    from personalar.models.base import Backend

Concepts = str | PathLike[str] | Sequence[str | PathLike[str]]
"""One concept or run folder, or several."""
NOT_FOR_LOAD = (
    "concept", "prompts", "prompts_file", "wildcards", "negative_prompt", "like", "seeds", "num_images",
    "grid", "size", "out",
)  # fmt: skip
"""Settings of `personalar.sample` that `load` does not accept."""


def check_negative(pictures: Iterable[tuple[str | None, float]]) -> None:
    """Raise ValueError for a negative prompt that none of its pictures uses, because guidance is off.

    Args:
        pictures: negative prompt and guidance scale of each.
    """
    scales: dict[str, set[float]] = {}
    for negative, scale in pictures:
        if negative is not None:
            scales.setdefault(negative, set()).add(scale)
    for negative, used in scales.items():
        if used == {1}:
            raise ValueError(
                f"negative_prompt={negative[:60]!r} has no effect without guidance: set "
                "decoder.cfg_scale above 1, such as 3"
            )


def check_lists(prompts: Sequence[str], seeds: Sequence[int]) -> None:
    """Raise ValueError for one prompt or seed: the letters of a text would be sampled as prompts."""
    if isinstance(prompts, str) or isinstance(seeds, int):
        raise ValueError(
            f"prompts={prompts!r}, seeds={seeds!r}: both must be lists, such as ['a [V] cat'] and [0]"
        )


def size_of(size: str | None, layout: ProtocolConfig | Backend) -> Size:
    """Return the (width, height) of "WIDTHxHEIGHT"; None means the base's square.

    Raises:
        ValueError: the base does not support the size.
    """
    return layout.square if size is None else read_size(size, layout.sizes)


def prepare_generator(
    config: SampleConfig, chosen: Sequence[ChosenConcept], sizes: Iterable[str | None] = ()
) -> Generator:
    """Set the number of threads, load the base and the concepts, and return a generator.

    Args:
        config: the settings.
        chosen: the concepts.
        sizes: sizes of pictures that will be sampled; see `size_of`.

    Raises:
        FileNotFoundError: a file of the base or the concept is missing.
        ValueError: a file is damaged, a concept was learned on another base, two cannot be combined, or
            there is no GPU although `config` chooses one.
    """
    from personalar.core.process import check_memory, prepare_torch

    check_memory()  # before torch is imported, which itself needs memory
    check_devices(config.trainer)
    prepare_torch(config.trainer.threads)
    import torch

    from personalar.concepts.concept import Concept
    from personalar.concepts.together import Part, apply_together, check_together
    from personalar.core.files import base_fingerprint
    from personalar.generation.generator import Generator
    from personalar.generation.provenance import layout_hash

    adapters = {name: build(f"adapters.{name}", settings) for name, settings in config.adapters.items()}
    parts = [
        Part(concept=Concept.load(each.folder), word=each.word, strength=each.strength) for each in chosen
    ]
    check_together(parts, adapters)
    files = obtain_model(config.model, say=print)
    for size in sizes:  # report a wrong size before gigabytes of weights are read
        size_of(size, files.layout)
    if config.trainer.torch_device == "cpu":
        check_memory(sum(file.stat().st_size for file in files.weights()))
    parts[0].concept.check_base(name=config.model.name, fingerprint=base_fingerprint(files.weights()))
    for part in parts:
        part.concept.check_layout(asdict(files.layout))
    dtype = getattr(torch, config.model.dtype)
    backend = files.load(dtype=dtype, device=config.trainer.torch_device)
    return Generator(
        backend=backend,
        identifier=apply_together(parts, backend, adapters),
        decoder=build("decoder", config.decoder.settings),
        batch=config.model.sampling.batch,
        layout=layout_hash(files.layout),
    )


class Pipeline:
    """A base model with learned concepts, kept in memory for many prompts.

    Args:
        generator: generates the pictures.
        words: the words that name the subjects in prompts.
    """

    def __init__(self, generator: Generator, words: Sequence[str]) -> None:
        self.generator, self.words = generator, list(words)

    def images(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        size: str | None = None,
        negative_prompt: str | None = None,
    ) -> list[Image]:
        """Generate one RGB picture per pair of prompt and seed.

        Args:
            prompts: write [V] before the class, such as "a photo of [V] dog".
            seeds: as many as prompts; the same prompt and seed give the same picture.
            size: "WIDTHxHEIGHT" in pixels, one of the base's sizes, such as "608x416"; None means its square.
            negative_prompt: what the pictures should not show; needs guidance.

        Raises:
            ValueError: the numbers of prompts and seeds differ, a prompt is empty or too long, a seed is out
                of range, or the base does not support the size.
        """
        check_lists(prompts, seeds)
        wanted, numbers = list(map(normalized, prompts)), [operator.index(seed) for seed in seeds]
        if len(wanted) != len(numbers):
            raise ValueError(
                f"got {len(wanted)} prompts and {len(numbers)} seeds: give one seed per prompt; for several "
                "seeds repeat the prompt, as in images([prompt] * 4, range(4))"
            )
        from personalar.generation.requests import check_prompts

        for note in check_words(wanted, self.words):
            warnings.warn(note, stacklevel=2)
        pixels = size_of(size, self.generator.backend)
        if negative_prompt is not None:
            negative_prompt = normalized(negative_prompt)
        check_unambiguous([negative_prompt], self.words)
        check_negative([(negative_prompt, self.generator.decoder.sampling.cfg_scale)])
        check_prompts(self.generator, wanted, size=pixels, say=lambda note: warnings.warn(note, stacklevel=4))
        check_seeds(numbers)
        return self.generator.images(wanted, numbers, size=pixels, negative_prompt=negative_prompt)


def load(concept: Concepts, *settings: str) -> Pipeline:
    """Return a learned subject; its method `images(prompts, seeds)` samples like `personalar.sample`.

    Args:
        concept: a concept folder, or the folder of a finished run; or a list of them, for several subjects.
        settings: settings as on the command line: "decoder=jacobi", "trainer=gpu", "model.path=DIR".

    Raises:
        FileNotFoundError: the concept or files of the base are missing.
        ValueError: an invalid setting, or the concept belongs to another base.
    """
    config = sample_settings(concept, settings)
    chosen = choose(config)
    return Pipeline(prepare_generator(config, chosen), words_of(chosen))


def paths_of(concept: Concepts) -> list[str]:
    """Return the paths of one folder or of several as text; those on the hub are downloaded.

    Raises:
        ValueError: there is none.
    """
    several = [concept] if isinstance(concept, str | PathLike) else concept
    if not several:
        raise ValueError(f"concept={concept}: give a folder, or a list of folders such as ['cat', 'hat']")
    return [local_concept(fspath(each)) for each in several]


def sample_settings(concept: Concepts, settings: Sequence[str]) -> SampleConfig:
    """Return the settings of `personalar.sample` for `load`, from overrides "key=value".

    Raises:
        ValueError: a setting is unknown, has an invalid value, or cannot be used with `load`.
    """
    for setting in settings:
        key = setting.lstrip("+").partition("=")[0]
        own = key.partition(".")[0]
        if "=" not in setting or setting.startswith(("-", "~")):
            raise ValueError(f"{setting!r} is not a setting: write key=value, such as 'decoder=jacobi'")
        if own in NOT_FOR_LOAD:
            raise ValueError(
                f"load does not accept {key}=: the concept is its first argument; prompts, seeds, size and "
                "negative_prompt are arguments of images(); all others are for personalar.sample_files"
            )
    folders = paths_of(concept)
    config = composed("sample", [*settings, *base_settings(folders[0], settings)])
    # Assigned and not passed as an override, because Hydra's grammar would parse special characters in it.
    config.concept, config.prompts = folders, []
    return read_config(config)
