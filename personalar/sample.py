"""Sample a learned subject: `python -m personalar.sample concept=DIR 'prompts=["a photo of [V] cat"]'`.

The PNG files contain everything that determines the picture in their metadata. The same concept, prompt, seed
and settings give the same picture.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from personalar.concepts.concept_source import base_settings, with_concept
from personalar.config.command_line import start
from personalar.config.commands import SampleConfig
from personalar.config.compose import composed, read_config
from personalar.config.fields import key_of
from personalar.core.errors import user_errors
from personalar.core.process import keep_memory
from personalar.generation.drawings import axes, resolve_like
from personalar.generation.pipeline import Concepts, check_lists, paths_of
from personalar.generation.sample_files import write_samples
from personalar.reports.picture_grid import write_grid


def sample(config: SampleConfig) -> list[Path]:
    """Write the pictures, and a grid of them; return the paths of the pictures."""
    config = resolve_like(config)
    paths = write_samples(config)
    if varied := axes(config.grid):
        print(f"grid: {write_grid(paths, varied, Path(config.out))}")
    return paths


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
    for word in settings:
        if key_of(word) in ("concept", "prompts", "seeds"):
            raise ValueError(f"{word[:80]}: pass it as an argument, sample_files(concept, prompts, seeds)")
    check_lists(prompts, seeds)
    folders = paths_of(concept)
    cfg = composed("sample", [*settings, *base_settings(folders[0], settings)])
    cfg.concept, cfg.prompts, cfg.seeds = folders, list(prompts), list(seeds)
    return sample(read_config(cfg))


def main() -> None:
    """Entry point."""
    keep_memory()
    with user_errors("personalar.sample"):
        sys.argv[1:] = with_concept(sys.argv[1:])
    start("sample", sample)


if __name__ == "__main__":
    main()
