"""Sample pictures into PNG files that contain everything to draw them again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from personalar.config.commands import SampleConfig
from personalar.config.plugins import build
from personalar.core.files import check_writable
from personalar.core.image_sizes import Size, written
from personalar.generation.chosen_concepts import (
    ChosenConcept,
    check_unambiguous,
    check_words,
    choose,
    facts_of,
    words_of,
)
from personalar.generation.drawings import Drawing, drawings
from personalar.generation.pipeline import prepare_generator, size_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from personalar.core.console import Reporter
    from personalar.generation.generator import Generator
    from personalar.generation.requests import PromptAndSeed


@dataclass(frozen=True, kw_only=True)
class File:
    """The file of one picture."""

    path: Path
    facts: Mapping[str, str]
    """The text chunks of the PNG."""
    exists: bool
    """True if the file already contains this picture."""


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


def write_samples(config: SampleConfig) -> list[Path]:
    """Sample `drawings(config)` with the concepts of `config` to PNG files; return the path of each.

    A picture that exists already (same metadata) is not sampled again. Prints a note for every prompt that
    does not name the subject.
    """
    from personalar.core.console import Reporter
    from personalar.core.files import sync_files
    from personalar.core.own_files import delete_abandoned

    wanted, chosen, reporter = drawings(config), choose(config), Reporter()
    for note in check_words(list(dict.fromkeys(drawing.prompt for drawing in wanted)), words_of(chosen)):
        print(note)
    check_unambiguous((drawing.negative_prompt for drawing in wanted), words_of(chosen))
    delete_abandoned(Path(config.out))
    by_strength: dict[float | None, dict[Drawing, None]] = {}
    for drawing in wanted:
        by_strength.setdefault(drawing.strength, {})[drawing] = None
    files: dict[Drawing, File] = {}
    say = cache(print)  # each note once: several groups and strengths can have the same prompts
    # Each strength has its own weights. 1 is the last one, because another can be refused: then no picture is
    # sampled.
    for strength in sorted(by_strength, key=lambda number: number == 1):
        own = chosen if strength is None else [replace(each, strength=strength) for each in chosen]
        files |= sample_at_one_strength(list(by_strength[strength]), config, own, reporter, say)
    sync_files()
    for file in (files[drawing] for drawing in dict.fromkeys(wanted)):
        reporter.say(f"{file.path} (already there)" if file.exists else str(file.path))
    return [files[drawing].path for drawing in wanted]


def sample_at_one_strength(
    wanted: Sequence[Drawing],
    config: SampleConfig,
    chosen: Sequence[ChosenConcept],
    reporter: Reporter,
    say: Callable[[str], None],
) -> dict[Drawing, File]:
    """Load the base with the `chosen` concepts, write the pictures, and return their files.

    Args:
        say: called with each note about a prompt.
    """
    from personalar.generation.provenance import check_layout
    from personalar.generation.requests import check_prompts

    generator = prepare_generator(config, chosen, [drawing.size for drawing in wanted])
    check_layout(config, generator.layout)
    groups: dict[tuple, list[Drawing]] = {}
    for drawing in wanted:
        groups.setdefault(drawing.settings, []).append(drawing)
    for group in groups.values():  # all prompts, before the first picture is sampled
        size = size_of(group[0].size, generator.backend)
        check_prompts(generator, [drawing.prompt for drawing in group], size=size, say=say)
        generator.context(group[0].negative_prompt, size)
    files = {drawing: file_of(drawing, config, chosen, generator) for drawing in wanted}
    missing = sum(not file.exists for file in files.values())
    # Before sampling, so that a folder that cannot be written is an error at once.
    check_writable(Path(config.out))
    with reporter.phase("pictures", missing, "images") as advance:
        for group in groups.values():
            left = {drawing: files[drawing] for drawing in group if not files[drawing].exists}
            draw_group(left, config, generator, advance)
    return files


def file_of(
    drawing: Drawing, config: SampleConfig, chosen: Sequence[ChosenConcept], generator: Generator
) -> File:
    """Return the file of a picture of the `chosen` concepts."""
    from personalar.core.png import sample_filename
    from personalar.generation.provenance import drawing_settings

    facts = {
        "size": written(size_of(drawing.size, generator.backend)),
        "base": f"{config.model.name} {chosen[0].base[:12]}",
        "layout": generator.layout,
        **facts_of(chosen, config),
        **drawing_settings(
            drawing.decoder(config.decoder).settings,
            dtype=config.model.dtype,
            device=config.trainer.torch_device,
        ),
    }
    if drawing.negative_prompt is not None:
        facts["negative_prompt"] = drawing.negative_prompt
    subjects = "-".join(concept.name for concept in chosen)
    name = sample_filename(subjects, drawing.prompt, drawing.seed, facts=facts)
    facts = {"prompt": drawing.prompt, "seed": str(drawing.seed), **facts}
    path, exists = free_path(Path(config.out), name, facts)
    return File(path=path, facts=facts, exists=exists)


def draw_group(
    files: Mapping[Drawing, File],
    config: SampleConfig,
    generator: Generator,
    advance: Callable[..., None],
) -> None:
    """Sample pictures that differ in prompt and seed only, and write their files.

    Args:
        files: the file of each picture; may be empty.
        generator: its base and concept are used, with the decoder of these pictures.
        advance: called with the number of images sampled since the last call.
    """
    from personalar.core.png import save_png
    from personalar.generation.batching import even_batch_size
    from personalar.generation.generator import Generator

    if not files:
        return
    first = next(iter(files))
    size: Size = size_of(first.size, generator.backend)
    own = Generator(
        backend=generator.backend,
        identifier=generator.identifier,
        decoder=build("decoder", first.decoder(config.decoder).settings),
        batch=generator.batch,
    )
    by_pair = {(drawing.prompt, drawing.seed): file for drawing, file in files.items()}
    pairs, negative = list(by_pair), first.negative_prompt
    fitting = own.fitting_batch([prompt for prompt, _ in pairs], size=size, negative_prompt=negative)
    at_once = even_batch_size(len(pairs), fitting)
    batches = [pairs[start : start + at_once] for start in range(0, len(pairs), at_once)]

    def save(asked: Sequence[PromptAndSeed], pictures: list[Image]) -> None:
        for pair, image in zip(asked, pictures, strict=True):
            save_png(image, by_pair[pair].path, by_pair[pair].facts)

    list(own.stream(batches, save, advance, size=size, negative_prompt=negative))
    own.close()
