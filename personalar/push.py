"""Upload a learned concept to the Hugging Face hub: `python -m personalar.push DIR repo=OWNER/NAME`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from personalar.concepts.concept_source import concept_folder
from personalar.config.command_line import as_value, start
from personalar.config.commands import PushConfig
from personalar.core.errors import printable
from personalar.core.own_files import CARD_FILE


def push(config: PushConfig) -> None:
    """List the files, and upload them unless it is a dry run."""
    folder = concept_folder(config.concept)
    # This loads torch: a wrong folder is reported before.
    from personalar.concepts.upload import check_repo, contents, obstacle, size, upload

    check_repo(config.repo)
    files = contents(folder, config.repo)
    seen = "private" if config.private else "public, visible to everybody"
    print(f"{config.repo} ({seen}), from {folder}:")
    for name, content in files.items():
        print(f"  {name}  {size(content) / 1e6:.3f} MB")
    if config.dry_run:
        print(f"\n{CARD_FILE}:\n{printable(bytes(files[CARD_FILE]).decode())}")
        print("dry run: nothing was uploaded")
        if reason := obstacle():
            print(f"note: {reason}")
        return
    total = sum(map(size, files.values()))
    print(f"uploading {len(files)} files, {total / 1e6:.3f} MB", flush=True)
    print(upload(files, config.repo, private=config.private))
    print(f"use it with concept=hub://{config.repo}")


def named(words: Sequence[str]) -> list[str]:
    """Return the words of a command line with a first word that is a folder written as concept=FOLDER."""
    first = words[0] if words else "-"
    if first.startswith("-") or ("=" in first and not Path(first).exists()):  # a sweep's folder has "="
        return list(words)
    return [f"concept={as_value(first)}", *words[1:]]


def main() -> None:
    """Entry point."""
    sys.argv[1:] = named(sys.argv[1:])
    start("push", push)


if __name__ == "__main__":
    main()
