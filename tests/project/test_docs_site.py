"""The site of docs/: every page is in its navigation, and it builds without a warning."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def pages(nav: Any) -> list[str]:
    """Return the files of the navigation."""
    if isinstance(nav, str):
        return [nav]
    below = nav if isinstance(nav, list) else nav.values()
    return [page for part in below for page in pages(part)]


def test_every_page_is_in_the_navigation_once() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert sorted(pages(nav)) == sorted(["contributing.md", *(path.name for path in ROOT.glob("docs/*.md"))])


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="pip install -e '.[docs]'")
def test_it_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    page = (tmp_path / "api.html").read_text()
    assert "personalize" in page and "encode_images" in page and "__call__" in page
    assert "experiments/LOG.md" in (tmp_path / "results.html").read_text()
    assert (tmp_path / "contributing.html").is_file() and (tmp_path / "search").is_dir()
