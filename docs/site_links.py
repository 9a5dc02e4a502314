"""Hook of the site: CONTRIBUTING.md is a page; other files outside of docs/ are named, not linked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

OUTSIDE = re.compile(r"\[([^\]]+)\]\(\s*\.\./([^)#\s]+)[^)]*\)")


def on_files(files: Files, *, config: Any) -> Files:
    """Add CONTRIBUTING.md to the pages."""
    text = (Path(config.docs_dir).parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "contributing.md", content=text.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace links that leave docs/: the site has no files of the repository."""
    return OUTSIDE.sub(r"\1 (`\2`)", markdown.replace("](../CONTRIBUTING.md", "](contributing.md"))
