"""A base and a learned concept as something that draws, for `personalar.sample` and `personalar.load`.

Both give the same picture for the same prompt, seed and size, and the same sentence for the same mistake.
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
    from personalar.generation.requests import Ask
    from personalar.models.base import Backend

ELSEWHERE = {
    "concept": "it is the first argument",
    "prompts": "give them to images()",
    "prompts_file": "give its lines to images()",
    "like": "it is for the command",
    "seeds": "give them to images()",
    "size": "give it to images()",
    "out": "save the pictures that images() returns",
}
"""Settings of `personalar.sample` that `load` does not take, and what to use instead."""


def concept_folder(where: str) -> Path:
    """Return the concept folder that `where` is, or that the run folder `where` holds.

    Raises:
        FileNotFoundError: when there is none.
    """
    folder = Path(where).expanduser()
    for candidate in (folder, folder / "concept"):
        if (candidate / "concept.json").is_file():
            return candidate
    raise FileNotFoundError(
        f"concept={where} holds no concept.json: give a concept folder, or the folder of a finished run"
    )


def check_words(prompts: list[str], names: list[str]) -> list[str]:
    """Return notes about prompts that do not name the subject.

    Raises:
        ValueError: when there is no prompt, or one that is empty or not text.
    """
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise ValueError(
            f"prompts={prompts} must hold at least one prompt, such as 'a photo of {SUBJECT_TOKEN} cat'"
        )
    for prompt in prompts:
        check_text(prompt, "prompts")
    silent = [prompt for prompt in prompts if not any(name in prompt for name in names)]
    return [
        f"note: {prompt!r} does not name the subject; write {SUBJECT_TOKEN} before the noun"
        for prompt in silent
    ]


def size_of(config: SampleConfig, layout: ProtocolConfig | Backend) -> Size:
    """Return the size of the pictures; see `read_size`, which refuses what the base does not know."""
    return layout.square if config.size is None else read_size(config.size, layout.sizes)


def open_generator(config: SampleConfig, folder: Path) -> Generator:
    """Return what draws the concept's pictures."""
    import torch

    from personalar.concepts.concept import Concept
    from personalar.core.files import base_fingerprint
    from personalar.core.process import check_memory
    from personalar.generation.generator import Generator

    concept, files = Concept.load(folder), obtain_model(config.model, say=print)
    size_of(config, files.layout)  # before the weights are read
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
    """Return what `open_generator` does, after making this process ready for it."""
    from personalar.core.process import check_memory, prepare_torch

    check_memory()  # before torch is loaded
    prepare_torch(config.trainer.threads)
    return open_generator(config, folder)


def asked_for(config: SampleConfig) -> SampleConfig:
    """Return `config` with every prompt in it: those of `prompts_file`, or the prompt of the picture `like`.

    Raises:
        ValueError, FileNotFoundError: a prompt is a file's name, or a file cannot be read.
    """
    from personalar.generation.provenance import like

    if config.like is not None:
        record = (concept_folder(config.concept) / "concept.json").read_bytes()
        return like(config, Path(config.like).expanduser(), concept=short_hash(record))
    prompts = list(config.prompts)
    for prompt in prompts:
        if len(prompt) < 4096 and "\0" not in prompt and Path(prompt).is_file():
            raise ValueError(f"prompts holds {prompt!r}, which is a file: write prompts_file={prompt}")
    if config.prompts_file is not None:
        prompts += read_prompts(Path(config.prompts_file).expanduser())
    return replace(config, prompts=list(dict.fromkeys(map(normalized, prompts))))


def short_hash(record: bytes) -> str:
    """Return the hash of a concept.json that PNG files carry."""
    return hashlib.sha256(record).hexdigest()[:12]


def free_path(folder: Path, name: str, facts: Mapping[str, str]) -> tuple[Path, bool]:
    """Return where a picture goes, and whether the very picture is there already; nothing is replaced."""
    from personalar.core.png import read_png_metadata

    for number in itertools.count(1):
        path = folder / (name if number == 1 else f"{name.removesuffix('.png')}-{number}.png")
        if not path.exists():
            return path, False
        with suppress(ValueError, OSError):
            if read_png_metadata(path) == facts:
                return path, True
    raise AssertionError("unreachable")


def write_samples(config: SampleConfig, folder: Path) -> list[Path]:
    """Sample every prompt with every seed and write the PNG files; return their paths.

    A picture that is there already, by what its metadata say, is not drawn again.
    """
    from personalar.core.console import Reporter
    from personalar.core.files import sync_files
    from personalar.core.own_files import delete_abandoned
    from personalar.core.png import sample_filename, save_png
    from personalar.generation.batching import even
    from personalar.generation.provenance import how_drawn
    from personalar.generation.requests import check_prompts

    delete_abandoned(Path(config.out))
    record = (folder / "concept.json").read_bytes()
    digest = short_hash(record)
    generator = prepare_generator(config, folder)
    size = size_of(config, generator.backend)
    check_prompts(generator, config.prompts, size=size)
    concept = json.loads(record)
    how = how_drawn(
        config.decoder.settings,
        dtype=config.model.dtype,
        attention=config.trainer.attention,
        device=config.trainer.torch_device,
    )
    base = f"{config.model.name} {concept['base']['fingerprint'][:12]}"
    shared = {"size": written(size), "base": base, "concept": digest, **how}
    plan: dict[Ask, tuple[Path, bool]] = {}
    for ask in dict.fromkeys((prompt, seed) for prompt in config.prompts for seed in config.seeds):
        name = sample_filename(concept["subject"]["name"], *ask, facts=shared)
        plan[ask] = free_path(Path(config.out), name, {"prompt": ask[0], "seed": str(ask[1]), **shared})
    wanted = [ask for ask, (_, there) in plan.items() if not there]
    at_once = even(len(wanted), generator.fitting_batch(config.prompts, size=size))
    batches = [wanted[start : start + at_once] for start in range(0, len(wanted), max(1, at_once))]

    def save(asked: Sequence[Ask], pictures: list[Image]) -> None:
        for (prompt, seed), image in zip(asked, pictures, strict=True):
            save_png(image, plan[prompt, seed][0], {"prompt": prompt, "seed": str(seed), **shared})

    reporter = Reporter()
    with reporter.phase("pictures", len(wanted), "images") as advance:
        list(generator.stream(batches, save, advance, size=size))
    sync_files()
    for path, there in plan.values():
        reporter.say(f"{path} (was there already)" if there else str(path))
    return [path for path, _ in plan.values()]


class Pipeline:
    """A base model that knows a learned subject; it stays in memory as long as this lives."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    def images(self, prompts: Sequence[str], seeds: Sequence[int], *, size: str | None = None) -> list[Image]:
        """Return one picture for each prompt and its seed; as many of both.

        Args:
            size: width x height in pixels, one of the base's sizes ("608x416"); None: its square.

        Raises:
            ValueError: when a prompt or a seed is missing, empty, too long or out of range, or the base does
                not know the size.
        """
        if isinstance(prompts, str) or isinstance(seeds, int):
            raise ValueError(
                f"prompts={prompts!r} with seeds={seeds!r}: give lists, as images(['a cat'], [0])"
            )
        wanted, numbers = list(map(normalized, prompts)), [operator.index(seed) for seed in seeds]
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


def load(concept: str | PathLike[str], settings: Sequence[str]) -> Pipeline:
    """Return the subject of a concept or run folder; see `personalar.load`."""
    config = sample_settings(fspath(concept), settings)
    return Pipeline(prepare_generator(config, concept_folder(config.concept)))


def sample_files(
    concept: str | PathLike[str], prompts: Sequence[str], seeds: Sequence[int], settings: Sequence[str]
) -> list[Path]:
    """Draw every prompt with every seed into files; see `personalar.sample`."""
    folder = fspath(concept)
    cfg = composed("sample", add_base(settings, folder))
    cfg.concept, cfg.prompts, cfg.seeds = folder, list(prompts), list(seeds)
    config = asked_for(read_config(cfg))
    check_words(config.prompts, [SUBJECT_TOKEN])
    return write_samples(config, concept_folder(folder))


def sample_settings(concept: str, settings: Sequence[str]) -> SampleConfig:
    """Return what `personalar.sample` would run with.

    Raises:
        ValueError: for an unknown setting or a wrong value, with what is allowed.
    """
    for setting in settings:
        key = setting.lstrip("+").partition("=")[0]
        if "=" not in setting or setting.startswith(("-", "~")):
            raise ValueError(f"{setting!r} is not a setting: write key=value, as 'decoder=jacobi'")
        if key in ELSEWHERE:
            raise ValueError(f"load takes no {key}=: {ELSEWHERE[key]}")
    config = composed("sample", add_base(settings, concept))
    config.concept, config.prompts = concept, []  # set here: no folder's name is too odd for this
    return read_config(config)
