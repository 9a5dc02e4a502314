"""The documents are correct: links exist, commands compose, make targets and files exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
WIDE_TABLES = {"compatibility.md", "configuration.md", "licences.md", "reliability.md"}
"""Pages with tables of long names, most of them generated; everything else is at most 100 wide."""
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)


def shell_lines(path: Path) -> list[str]:
    """Return the commands of a document's bash blocks, without comments."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = BLOCK.findall(text)
    lines = [re.sub(r"\s+#.*$", "", line).strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


COMMANDS = sorted(
    {
        line
        for path in DOCUMENTS
        for line in shell_lines(path)
        if line.startswith(("python -m personalar.run", "python -m personalar.sample"))
        and not any(word in line for word in ("--help", "hydra/launcher", "hydra/sweeper"))  # extras
    }
)


def compose(command: str):
    """Compose and check the configuration of a command, as its entry point does."""
    from personalar.config import command_line
    from personalar.config.compose import composed, read_config

    def kept(*words, **flags):
        found.append(composed(*words, **flags))  # of a sweep the first job
        return found[0]

    found = []
    words = shlex.split(command)[2:]
    with pytest.MonkeyPatch.context() as patch:  # composing takes most of the time: once is enough
        patch.setattr(command_line, "composed", kept)
        command_line.prepare(words[0].removeprefix("personalar."), words[1:])
    return read_config(found[0])


EVALUATIONS = sorted(
    {
        line
        for path in DOCUMENTS
        for line in shell_lines(path)
        if line.startswith("python -m personalar.evaluate")
    }
)


@pytest.mark.parametrize("command", EVALUATIONS)
def test_evaluations_compose(command):
    from personalar.config.command_line import read_flags
    from personalar.config.compose import composed, read_config
    from personalar.evaluate import split_arguments

    own, for_runs = split_arguments(shlex.split(command)[3:])
    assert read_config(composed("evaluate", read_flags(own)[0].overrides)).benchmark.name
    assert all("=" in word for word in for_runs)


def test_there_are_commands_to_check():
    assert len(COMMANDS) > 10


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_compose(command):
    compose(command)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
    for name, anchor in re.findall(r"\]\(([^)#\s]*\.md)?#([^)]+)\)", text):
        target = path.parent / name if name else path
        headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
        # GitHub's rule for anchors.
        anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert anchor in anchors, f"{path.name}: {name}#{anchor}"


@pytest.mark.parametrize("path", [DOCUMENTS[0], *DOCUMENTS[2:]], ids=lambda path: path.name)
def test_lines_fit_into_a_terminal(path):
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        is_wide = line.startswith("|") and path.name in WIDE_TABLES
        assert len(line) <= 100 or is_wide, f"{path.name}:{number} has {len(line)} characters"


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = {
        word
        for path in DOCUMENTS
        for word in re.findall(r"(?:^|`)make ([a-z-]+)", path.read_text(), re.MULTILINE)
    }
    assert {"run", "test", "lint"} <= named <= targets


def test_the_file_map_is_true():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.split("## Where things are")[1].split("```")[1]
    for line in block.strip().splitlines():
        folder = ROOT / "personalar" if line.startswith("  ") else ROOT
        for name in re.split(r" {2,}", line.strip())[0].split():
            assert (folder / name).exists(), name


def test_documents_of_every_page_are_linked():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "docs").glob("*.md"):
        assert path.name == "README.md" or f"({path.name})" in index, path.name
