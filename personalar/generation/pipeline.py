"""Sample from a base with a learned concept: the code behind `personalar.sample` and `personalar.load`.

The command and the Python API give the same picture for the same prompt, seed and size, and the same error
message for the same mistake.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import operator
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING

from personalar.config.command_line import add_base
from personalar.config.commands import SampleConfig
from personalar.config.compose import composed, read_config
from personalar.config.fields import check_seeds
from personalar.config.model_config import ProtocolConfig
from personalar.config.plugins import build
from personalar.core.image_sizes import Size, read_size, written
from personalar.data.prompts import SUBJECT_TOKEN, check_text, normalized, read_prompts
from personalar.models.loading import obtain_model

if TYPE_CHECKING:
    from PIL.Image import Image

    from personalar.generation.generator import Generator
    from personalar.generation.requests import PromptAndSeed
    from personalar.models.base import Backend

ELSEWHERE = {
    "concept": "it is the first argument",
    "prompts": "pass them to images()",
    "prompts_file": "pass its lines to images()",
    "like": "it is available in the command only",
    "seeds": "pass them to images()",
    "size": "pass it to images()",
    "out": "save the pictures that images() returns",
}
"""Settings of `personalar.sample` that `load` does not accept, and what to use instead."""


def concept_folder(where: str) -> Path:
    """Return the concept folder for `where`, which is a concept folder or the folder of a finished run.

    Raises:
        FileNotFoundError: neither contains a concept.
    """
    folder = Path(where).expanduser()
    for candidate in (folder, folder / "concept"):
        if (candidate / "concept.json").is_file():
            return candidate
    raise FileNotFoundError(
        f"concept={where} contains no concept.json: give a concept folder, or the folder of a finished run"
    )


def check_words(prompts: list[str], names: list[str]) -> list[str]:
    """Return a note for every prompt that contains none of the learned tokens `names`.

    Raises:
        ValueError: there is no prompt, or one is empty or cannot be encoded.
    """
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise ValueError(
            f"prompts={prompts}: give at least one prompt and no empty one, such as "
            f"'a photo of {SUBJECT_TOKEN} cat'"
        )
    notes = []
    for prompt in prompts:
        check_text(prompt, "prompts")
        if not any(name in prompt for name in names):
            notes.append(f"note: {prompt!r} does not name the subject; write {SUBJECT_TOKEN} before the noun")
    return notes


def size_of(config: SampleConfig, layout: ProtocolConfig | Backend) -> Size:
    """Return the (width, height) of the pictures; raise ValueError if the base does not support it."""
    return layout.square if config.size is None else read_size(config.size, layout.sizes)


def open_generator(config: SampleConfig, folder: Path) -> Generator:
    """Load the base and the concept in `folder`, and return a generator.

    Raises:
        FileNotFoundError: a file of the base or the concept is missing.
        ValueError: a file is damaged, or the concept was learned on another base.
    """
    import torch

    from personalar.concepts.concept import Concept
    from personalar.core.files import base_fingerprint
    from personalar.core.process import check_memory
    from personalar.generation.generator import Generator

    concept, files = Concept.load(folder), obtain_model(config.model, say=print)
    size_of(config, files.layout)  # report a wrong size before gigabytes of weights are read
    if config.trainer.torch_device == "cpu":
        check_memory(sum(file.stat().st_size for file in files.weights()))
    concept.check_base(name=config.model.name, fingerprint=base_fingerprint(files.weights()))
    backend = files.load(
        dtype=getattr(torch, config.model.dtype),
        device=config.trainer.torch_device,
        attention=config.trainer.attention,
    )
    adapters = {name: build(f"adapters.{name}", settings) for name, settings in config.adapters.items()}
    return Generator(
        backend=backend,
        identifier=concept.apply(backend, adapters),
        decoder=build("decoder", config.decoder.settings),
        batch=config.model.sampling.batch,
    )


def prepare_generator(config: SampleConfig, folder: Path) -> Generator:
    """Set the number of threads, check the free memory, and return `open_generator(config, folder)`."""
    from personalar.core.process import check_memory, prepare_torch

    check_memory()  # before torch is imported, which itself needs memory
    prepare_torch(config.trainer.threads)
    return open_generator(config, folder)


def resolve_prompts(config: SampleConfig) -> SampleConfig:
    """Return `config` with all prompts in `prompts`: also those of `prompts_file` or of the picture `like`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file cannot be used, or a prompt is the path of a file.
    """
    from personalar.generation.provenance import like

    if config.like is not None:
        record = (concept_folder(config.concept) / "concept.json").read_bytes()
        return like(config, Path(config.like).expanduser(), concept=short_hash(record))
    prompts = list(config.prompts)
    for prompt in prompts:
        # is_file() raises an error for a null byte and for text longer than a path may be.
        if len(prompt) < 4096 and "\0" not in prompt and Path(prompt).is_file():
            raise ValueError(f"prompts contains {prompt!r}, which is a file: write prompts_file={prompt}")
    if config.prompts_file is not None:
        prompts += read_prompts(Path(config.prompts_file).expanduser())
    return replace(config, prompts=list(dict.fromkeys(map(normalized, prompts))))


def short_hash(record: bytes) -> str:
    """Return the hash of a concept.json as PNG files contain it: 12 hex digits."""
    return hashlib.sha256(record).hexdigest()[:12]


def free_path(folder: Path, name: str, facts: Mapping[str, str]) -> tuple[Path, bool]:
    """Return a path for a picture that overwrites no other, and whether it already contains this picture.

    Args:
        folder: target folder.
        name: preferred file name; a number is appended if another picture has it.
        facts: the text chunks of the PNG; equal ones mean the same picture.
    """
    from personalar.core.png import read_png_metadata

    # name.png, name-2.png, name-3.png, ... until one is free or already contains this picture.
    for number in itertools.count(1):
        path = folder / (name if number == 1 else f"{name.removesuffix('.png')}-{number}.png")
        if not path.exists():
            return path, False
        with suppress(ValueError, OSError):
            if read_png_metadata(path) == facts:
                return path, True
    raise AssertionError("unreachable")


def write_samples(config: SampleConfig, folder: Path) -> list[Path]:
    """Sample every prompt with every seed, write PNG files, and return their paths.

    A picture that exists already (same metadata) is not sampled again.
    """
    from personalar.core.console import Reporter
    from personalar.core.files import sync_files
    from personalar.core.own_files import delete_abandoned
    from personalar.core.png import sample_filename, save_png
    from personalar.generation.batching import even_batch_size
    from personalar.generation.provenance import drawing_settings
    from personalar.generation.requests import check_prompts

    delete_abandoned(Path(config.out))
    record = (folder / "concept.json").read_bytes()
    # The hash of concept.json identifies the concept, because it contains the hashes of all files.
    digest = short_hash(record)
    generator = prepare_generator(config, folder)
    size = size_of(config, generator.backend)
    check_prompts(generator, config.prompts, size=size)
    concept = json.loads(record)
    how = drawing_settings(
        config.decoder.settings,
        dtype=config.model.dtype,
        attention=config.trainer.attention,
        device=config.trainer.torch_device,
    )
    base = f"{config.model.name} {concept['base']['fingerprint'][:12]}"
    shared = {"size": written(size), "base": base, "concept": digest, **how}
    paths: dict[PromptAndSeed, tuple[Path, bool]] = {}
    for pair in dict.fromkeys(itertools.product(config.prompts, config.seeds)):
        name = sample_filename(concept["subject"]["name"], *pair, facts=shared)
        paths[pair] = free_path(Path(config.out), name, {"prompt": pair[0], "seed": str(pair[1]), **shared})
    missing = [pair for pair, (_, exists) in paths.items() if not exists]
    at_once = even_batch_size(len(missing), generator.fitting_batch(config.prompts, size=size))
    batches = [missing[start : start + at_once] for start in range(0, len(missing), max(1, at_once))]

    def save(asked: Sequence[PromptAndSeed], pictures: list[Image]) -> None:
        for (prompt, seed), image in zip(asked, pictures, strict=True):
            save_png(image, paths[prompt, seed][0], {"prompt": prompt, "seed": str(seed), **shared})

    reporter = Reporter()
    with reporter.phase("pictures", len(missing), "images") as advance:
        list(generator.stream(batches, save, advance, size=size))
    sync_files()
    for path, exists in paths.values():
        reporter.say(f"{path} (already there)" if exists else str(path))
    return [path for path, _ in paths.values()]


class Pipeline:
    """A base model with a learned concept, kept in memory for many prompts."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    def images(self, prompts: Sequence[str], seeds: Sequence[int], *, size: str | None = None) -> list[Image]:
        """Generate one RGB picture per pair of prompt and seed.

        Args:
            prompts: write [V] before the class, such as "a photo of [V] dog".
            seeds: as many as prompts; the same prompt and seed give the same picture.
            size: "WIDTHxHEIGHT" in pixels, one of the base's sizes, such as "608x416"; None means its square.

        Raises:
            ValueError: the numbers of prompts and seeds differ, a prompt is empty or too long, a seed is out
                of range, or the base does not support the size.
        """
        if isinstance(prompts, str) or isinstance(seeds, int):
            raise ValueError(
                f"prompts={prompts!r}, seeds={seeds!r}: both must be lists, as in images(['a cat'], [0])"
            )
        wanted, numbers = list(map(normalized, prompts)), [operator.index(seed) for seed in seeds]
        if len(wanted) != len(numbers):
            raise ValueError(
                f"got {len(wanted)} prompts and {len(numbers)} seeds: give one seed per prompt; for several "
                "seeds repeat the prompt, as in images([prompt] * 4, range(4))"
            )
        from personalar.generation.requests import check_prompts

        for note in check_words(wanted, [SUBJECT_TOKEN]):
            warnings.warn(note, stacklevel=2)
        pixels = None if size is None else read_size(size, self.generator.backend.sizes)
        check_prompts(self.generator, wanted, size=pixels, say=lambda note: warnings.warn(note, stacklevel=4))
        check_seeds(numbers)
        return self.generator.images(wanted, numbers, size=pixels)


def load(concept: str | PathLike[str], settings: Sequence[str]) -> Pipeline:
    """Load the concept of a concept or run folder; see `personalar.load`."""
    config = sample_settings(fspath(concept), settings)
    return Pipeline(prepare_generator(config, concept_folder(config.concept)))


def sample_files(
    concept: str | PathLike[str], prompts: Sequence[str], seeds: Sequence[int], settings: Sequence[str]
) -> list[Path]:
    """Sample every prompt with every seed to PNG files; see `personalar.sample`."""
    folder = fspath(concept)
    cfg = composed("sample", add_base(settings, folder))
    cfg.concept, cfg.prompts, cfg.seeds = folder, list(prompts), list(seeds)
    config = resolve_prompts(read_config(cfg))
    check_words(config.prompts, [SUBJECT_TOKEN])
    return write_samples(config, concept_folder(folder))


def sample_settings(concept: str, settings: Sequence[str]) -> SampleConfig:
    """Return the settings of `personalar.sample` for `load`, from overrides "key=value".

    Raises:
        ValueError: a setting is unknown, has an invalid value, or cannot be used with `load`.
    """
    for setting in settings:
        key = setting.lstrip("+").partition("=")[0]
        if "=" not in setting or setting.startswith(("-", "~")):
            raise ValueError(f"{setting!r} is not a setting: write key=value, such as 'decoder=jacobi'")
        if key in ELSEWHERE:
            raise ValueError(f"load does not accept {key}=: {ELSEWHERE[key]}")
    config = composed("sample", add_base(settings, concept))
    # Assigned and not passed as an override, because Hydra's grammar would parse special characters in it.
    config.concept, config.prompts = concept, []
    return read_config(config)
