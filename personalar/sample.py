"""Make new pictures of a learned subject: `python -m personalar.sample concept=DIR 'prompts=["a [V] cat"]'`.

The PNG files carry prompt, seed and size in their metadata; where these and the concept are equal, so is the
picture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from personalar.config.command_line import start
from personalar.config.commands import SampleConfig
from personalar.config.compose import build_decoder
from personalar.config.layout import ProtocolConfig
from personalar.core.image_sizes import Size, read_size, written
from personalar.core.process import keep_memory
from personalar.data.prompts import SUBJECT_TOKEN, check_text
from personalar.models.loading import obtain_model

if TYPE_CHECKING:
    from PIL.Image import Image

    from personalar.generation.generator import Generator
    from personalar.generation.requests import Ask


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
        ValueError: when there is no prompt, or one that is empty or no text.
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


def size_of(config: SampleConfig, layout: ProtocolConfig) -> Size:
    """Return the size of the pictures; see `read_size`, which refuses what the base does not know."""
    return layout.square if config.size is None else read_size(config.size, layout.sizes)


def open_generator(config: SampleConfig, folder: Path) -> Generator:
    """Return what draws the concept's pictures."""
    import torch

    from personalar.concepts.concept import Concept, base_fingerprint
    from personalar.generation.generator import Generator

    concept, files = Concept.load(folder), obtain_model(config.model, say=print)
    size_of(config, files.layout)  # before the weights are read
    concept.check_base(name=config.model.name, fingerprint=base_fingerprint(files.weights()))
    backend = files.load(
        dtype=getattr(torch, config.model.dtype),
        device=config.trainer.torch_device,
        attention=config.trainer.attention,
    )
    return Generator(
        backend=backend,
        identifier=concept.apply(backend),
        decoder=build_decoder(config.decoder),
        batch=config.model.sampling.batch,
    )


def prepare_generator(config: SampleConfig, folder: Path) -> Generator:
    """Return what `open_generator` does, after making this process ready for it."""
    from personalar.core.process import prepare_torch

    prepare_torch(config.trainer.threads)
    return open_generator(config, folder)


def write_samples(config: SampleConfig, folder: Path) -> list[Path]:
    """Sample every prompt with every seed and write the PNG files; return their paths."""
    from personalar.core.console import Reporter
    from personalar.core.png import sample_filename, save_png
    from personalar.generation.batching import even
    from personalar.generation.requests import check_prompts

    generator = prepare_generator(config, folder)
    layout = generator.backend
    size = size_of(config, layout)
    check_prompts(generator, config.prompts, size=size)
    digest = hashlib.sha256((folder / "concept.json").read_bytes()).hexdigest()[:12]
    wanted = [(prompt, seed) for prompt in config.prompts for seed in config.seeds]
    at_once = even(len(wanted), generator.fitting_batch(config.prompts, size=size))
    batches = [wanted[start : start + at_once] for start in range(0, len(wanted), at_once)]
    other = None if size == layout.square else written(size)
    told = {"size": written(size), "base": config.model.name, "concept": digest}

    def save(asked: Sequence[Ask], pictures: list[Image]) -> list[Path]:
        paths = []
        for (prompt, seed), image in zip(asked, pictures, strict=True):
            facts = {"prompt": prompt, "seed": str(seed), **told}
            name = sample_filename("subject", prompt, seed, size=other)
            paths.append(save_png(image, Path(config.out) / name, facts))
        return paths

    reporter = Reporter()
    with reporter.phase("pictures", len(wanted), "images") as advance:
        paths = [path for some in generator.stream(batches, save, advance, size=size) for path in some]
    for path in paths:
        reporter.say(str(path))
    return paths


def sample(config: SampleConfig) -> None:
    """Do what the command says."""
    folder = concept_folder(config.concept)
    for note in check_words(config.prompts, [SUBJECT_TOKEN]):
        print(note)
    write_samples(config, folder)


def main() -> None:
    """Entry point."""
    keep_memory()
    start("sample", sample)


if __name__ == "__main__":
    main()
