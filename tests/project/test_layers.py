"""The structure of the package: order of folders, direction of imports, sizes, unique names."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "personalar"
ORDER = (
    "core", "nano", "config", "models", "data", "concepts", "generation", "scoring", "reports", "training",
    "runs",
)  # fmt: skip
"""The packages, lowest first. A module imports its own package and those before it."""
ENTRY_POINTS = {
    "__init__",
    "__main__",
    "run",
    "sample",
    "evaluate",
    "compare",
    "export",
    "push",
    "doctor",
    "web",
}
WITHOUT = {"scoring": {"models"}, "reports": {"models"}, "models": {"nano"}, "config": {"nano"}}
"""Lower packages that a package must not import although it could."""
HOMES = {
    "lightning": ("data", "training"),
    "transformers": ("models", "scoring"),
    "deepspeed": ("models", "training"),
}
"""The packages that may import a heavy library."""
FAMILIES = {path.parent.name for path in (PACKAGE / "models").glob("*/__init__.py")}
QUESTION = re.compile(r"(what|how|which|where|whether|who|when|why)\b", re.IGNORECASE)
FILES = sorted(PACKAGE.rglob("*.py"))


def home(path: Path) -> str:
    """Return the package of a file; "" for an entry point."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports(path: Path) -> list[tuple[str, bool]]:
    """Return (module, inside a function or TYPE_CHECKING) for every import of a file."""
    tree = parsed(path)
    top = set(map(id, tree.body))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) not in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.module or "", id(node) not in top))
    return found


def test_the_packages_are_those_of_the_order() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == set(ORDER) and len(ORDER) <= 11
    assert {path.stem for path in PACKAGE.glob("*.py")} == ENTRY_POINTS


def misplaced(path: Path) -> Iterator[str]:
    """Yield the imports of a file of the package that do not point down."""
    own = home(path)
    for module, deferred in imports(path):
        name, _, rest = module.partition(".")
        if name != "personalar" or not rest:
            continue
        imported = rest.split(".")[0]
        allowed = ORDER[: ORDER.index(own) + 1] if own else (*ORDER, *ENTRY_POINTS)
        if path.name == "__init__.py" and not own and not deferred:
            yield f"{path} imports {module}: importing the package must load nothing"
        if imported not in allowed:
            yield f"{path} imports {module}, which is above it"
        if imported in WITHOUT.get(own, set()):
            yield f"{path} does without {imported}/"
        if own != "models" and FAMILIES & set(module.split(".")[2:]):
            yield f"{path} knows the model family of {module}"


def test_imports_point_down() -> None:
    assert not [found for path in FILES for found in misplaced(path)]


def heavy_imports(path: Path) -> Iterator[str]:
    """Yield the imports of heavy libraries by a file that must not have them."""
    for module, deferred in imports(path):
        library = module.split(".")[0]
        if library in HOMES and home(path) not in HOMES[library]:
            yield f"{path} imports {library}; allowed in {HOMES[library]}"
        if library == "transformers" and not deferred:
            yield f"{path} imports transformers at import time"


def test_heavy_libraries_stay_where_they_are_allowed() -> None:
    assert not [found for path in FILES for found in heavy_imports(path)]


def test_importing_loads_nothing_heavy() -> None:
    """Error messages and run folders are read without torch, and `import personalar` loads nothing."""
    heavy = {"torch", "transformers", "lightning", "deepspeed"}
    expected = [
        "personalar", "personalar.config.run_config", "personalar.reports.summary",
        "personalar.reports.comparison", "personalar.models.loading", "personalar.doctor",
        "personalar.export", "personalar.sample", "personalar.run",
    ]  # fmt: skip
    code = f"import importlib, sys; heavy = {heavy | {'hydra', 'wandb', 'numpy', 'PIL'}}\n"
    for name in expected:
        code += f"importlib.import_module('{name}'); print('{name}', *heavy & set(sys.modules))\n"
        code += f"heavy = {heavy}\n"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True
    )
    assert done.stdout.split() == expected


def too_large(path: Path) -> Iterator[str]:
    """Yield what of a file is longer than allowed, or worded otherwise."""
    tree = parsed(path)
    if path.read_text(encoding="utf-8").count("\n") > 300:
        yield f"{path} has more than 300 lines"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > 60:
                yield f"{path}:{node.name} has {length} lines, more than 60"
    if QUESTION.match(ast.get_docstring(tree) or ""):
        yield f"{path}: a noun phrase or an imperative"


def test_files_keep_the_house_measure() -> None:
    assert not [found for path in FILES for found in too_large(path)]


def test_folders_are_small_and_file_names_are_found_once() -> None:
    modules = [path for path in FILES if path.name != "__init__.py"]
    folders = Counter(path.parent for path in modules)
    assert max(folders.values()) <= 12, folders.most_common(1)
    names = Counter(path.name for path in modules if path.name != "base.py")
    assert max(names.values()) == 1, names.most_common(3)


def test_tests_are_laid_out_as_the_package_is() -> None:
    """Each test of a package is in the folder with its name; helpers and tests of whole programs are not."""
    tests = PACKAGE.parent / "tests"
    others = {"", "fixtures", "project", "robustness", "experiments", "plugins"}
    for path in tests.rglob("test_*.py"):
        folder = path.parent.relative_to(tests).as_posix().removeprefix(".")
        assert folder in others or (PACKAGE / folder).is_dir(), f"{path} tests no folder of the package"
