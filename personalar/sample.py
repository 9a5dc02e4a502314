"""Sample a learned subject: `python -m personalar.sample concept=DIR 'prompts=["a photo of [V] cat"]'`.

The PNG files contain prompt, seed and size in their metadata. The same concept, prompt, seed and size give
the same picture.
"""

from __future__ import annotations

from personalar.config.command_line import start
from personalar.config.commands import SampleConfig
from personalar.core.process import keep_memory
from personalar.data.prompts import SUBJECT_TOKEN
from personalar.generation.pipeline import check_words, concept_folder, resolve_prompts, write_samples


def sample(config: SampleConfig) -> None:
    """Write the pictures; print notes about words in the prompts that the base does not know."""
    folder, config = concept_folder(config.concept), resolve_prompts(config)
    for note in check_words(config.prompts, [SUBJECT_TOKEN]):
        print(note)
    write_samples(config, folder)


def main() -> None:
    """Entry point."""
    keep_memory()
    start("sample", sample)


if __name__ == "__main__":
    main()
