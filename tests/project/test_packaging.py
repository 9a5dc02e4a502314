"""Installation: version bounds, exact versions, and a wheel with configuration, template and weights."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def all_requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    tested = [part for name, part in extras.items() if name != "quantized"]  # needs an NVIDIA GPU
    return [Requirement(text) for text in [*PROJECT["dependencies"], *chain(*tested)]]


def test_compromised_releases_are_excluded():
    for requirement in all_requirements():
        if requirement.name in ("lightning", "pytorch-lightning"):
            assert "2.6.2" not in requirement.specifier and "2.6.3" not in requirement.specifier


def test_every_dependency_has_its_licence_listed():
    page = (ROOT / "docs" / "licences.md").read_text().lower().replace("_", "-")
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *extras["test"], *extras["dev"]]:
        requirement = Requirement(text)
        assert f"| {requirement.name.lower()} " in page, requirement.name
    assert "| unknown" not in page and "| gpl" not in page


def test_every_dependency_has_an_exact_tested_version():
    pinned = {name.lower(): version for name, version in constraints().items()}
    for requirement in all_requirements():
        assert requirement.name.lower() in pinned, requirement.name
        assert pinned[requirement.name.lower()] in requirement.specifier, requirement


def test_every_pin_is_allowed_by_the_other_pinned_packages() -> None:
    pinned = {canonicalize_name(name): version for name, version in constraints().items()}
    for name, version in pinned.items():
        with suppress(PackageNotFoundError):  # of an extra that is not installed
            for requirement in map(Requirement, requires(name) or ()):
                if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                    found = pinned.get(canonicalize_name(requirement.name), "")
                    allowed = not found or requirement.specifier.contains(found)
                    assert allowed, f"{name} {version} needs {requirement}; pinned: {found}"


def imported_names(path: Path) -> set[str]:
    """Return the top-level packages that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    return names


def test_everything_that_is_imported_is_declared():
    declared = {requirement.name.lower().replace("-", "_") for requirement in all_requirements()}
    declared |= {
        "personalar",
        "PIL",
        "hydra",
        "huggingface_hub",
        "bitsandbytes",
        "yaml",
    }  # pillow, hydra-core, pyyaml; the hub is transformers'; the extra `quantized`
    for path in (ROOT / "personalar").rglob("*.py"):
        assert imported_names(path) <= declared | sys.stdlib_module_names, path


def test_licence_and_commands_of_the_repository():
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence and len(licence.splitlines()) > 190
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK) and "make test" in script.read_text()


def test_make_help_lists_the_targets():
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "run " in done.stdout and "test " in done.stdout


def wheel_names(project: Path, out: Path) -> set[str]:
    """Build the wheel of `project`, and return the names of its files."""
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of the files of the repository's wheel."""
    return wheel_names(ROOT, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_what_is_not_python(held):
    wanted = {f"personalar/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    for folder in ("reports/templates", "nano"):
        found = (path for path in (ROOT / "personalar" / folder).rglob("*") if path.is_file())
        wanted |= {path.relative_to(ROOT).as_posix() for path in found}
    assert wanted <= held and "personalar/reports/templates/report.html.j2" in wanted
    assert not {name for name in held if name.startswith(("tests/", "experiments/", "conf/"))}


def test_the_container_is_built_from_all_that_the_wheel_needs(held, tmp_path):
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"]
    context = tmp_path / "context"
    context.mkdir()
    for name in allowed:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, context / name)
    assert wheel_names(context, tmp_path / "wheel") == held
    copied = re.findall(r"^COPY (\S+) ", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert set(copied) <= {".", *allowed}
