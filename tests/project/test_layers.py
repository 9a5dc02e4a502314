"""Imports point downwards, heavy libraries stay where they may, importing loads nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "personalar"
LAYERS = {
    5: ("run", "sample", "learned", "doctor", "export", "evaluate", "compare"),
    4: ("report", "summary", "plot", "comparison", "comparison_page", "benchmark", "sweep"),
    3: (
        "entry",
        "module",
        "datamodule",
        "generator",
        "request",
        "batching",
        "training",
        "session",
        "dashboard",
        "callbacks",
        "preparation",
        "signs",
        "identifier_start",
        "network",
        "resume",
        "preflight",
        "sharding",
        "strategy",
    ),
    2: (
        "stage",
        "identifier",
        "concept",
        "concept_check",
        "model_card",
        "exchange",
        "run_folder",
        "references",
        "reuse",
        "run_lock",
        "objective",
        "optimizer",
        "blocks",
        "memory",
        "locate",
        "base_choice",
    ),
    1: (
        "subject",
        "photos",
        "prompts",
        "bootstrap",
        "grid",
        "png",
        "models",
        "decoding",
        "scoring",
        "world",
    ),
    0: (
        "config",
        "commands",
        "compose",
        "settings",
        "recipe",
        "ranges",
        "layout",
        "sizes",
        "judges",
        "machine",
        "measures",
        "atomic",
        "reporter",
        "evaluate_config",
        "dreambench",
        "types",
        "process",
        "fault",
        "hashing",
        "arguments",
        "__init__",
    ),
}
LAYER = {name: layer for layer, names in LAYERS.items() for name in names}
SIBLINGS = {  # in layer 1 parts know each other through types.py and protocols only; these pairs are meant
    ("subject", "world"),
    ("subject", "prompts"),
    ("subject", "photos"),
    ("decoding", "models.base"),
}
ALLOWED = {
    "hydra": (
        "compose",
        "arguments",
        "run",
        "entry",
        "sample",
        "learned",
        "evaluate",
        "sweep",
    ),
    "lightning": ("module", "datamodule", "training", "callbacks", "strategy", "resume"),
    "transformers": ("models", "scoring"),
    "deepspeed": ("sharding", "strategy"),
}
FILES = sorted(path for path in PACKAGE.rglob("*.py"))


def part(module: str) -> str:
    """Return "models" for "personalar.models.chameleon.backend"."""
    return module.removeprefix("personalar").lstrip(".").split(".")[0] or "__init__"


def imports(path: Path) -> list[tuple[str, bool]]:
    """Return (module, inside a function or TYPE_CHECKING) for every import of a file."""
    tree = ast.parse(path.read_text())
    top = set(map(id, tree.body))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) not in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = (
                [f"personalar.{alias.name}" for alias in node.names] if module == "personalar" else [module]
            )
            found += [(name, id(node) not in top) for name in names]
    return found


def module_name(path: Path) -> str:
    return "personalar." + path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_point_down(path: Path) -> None:
    importer = part(module_name(path))
    if importer == "nano":
        return
    assert importer in LAYER, f"{path} has no layer: add it to LAYERS in this test"
    for module, deferred in imports(path):
        if not module.startswith("personalar") or module == "personalar.__version__":
            continue
        if importer == "__init__" and deferred and module == "personalar.generation.pipeline":
            continue  # what the package hands out, loaded when it is asked for
        imported = part(module)
        assert LAYER[imported] <= LAYER[importer], f"{path} imports {module}, which lies above it"
        if LAYER[importer] == LAYER[imported] == 1 and importer != imported:
            pair = {(importer, imported), (importer, module.removeprefix("personalar."))}
            assert pair & SIBLINGS, f"{path} imports its sibling {module}; talk through types.py"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_heavy_libraries_stay_where_they_are_allowed(path: Path) -> None:
    importer = part(module_name(path))
    for module, deferred in imports(path):
        library = module.split(".")[0]
        if library not in ALLOWED:
            continue
        assert importer in ALLOWED[library], f"{path} imports {library}; allowed in {ALLOWED[library]}"
        assert library != "transformers" or deferred, f"{path} imports transformers at import time"


def test_importing_loads_nothing_heavy() -> None:
    """Neither what answers mistakes nor what reads run folders loads torch, and the package alone nothing."""
    heavy = {"torch", "transformers", "lightning", "deepspeed"}
    expected = ["__init__", "config", "summary", "comparison", "locate", "doctor", "export", "sample", "run"]
    code = f"import importlib, sys; heavy = {heavy | {'hydra', 'wandb', 'numpy', 'PIL'}}\n"
    for name in expected:
        code += f"importlib.import_module('personalar.{name}'); print('{name}', *heavy & set(sys.modules))\n"
        code += f"heavy = {heavy}\n"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True
    )
    assert done.stdout.split() == expected


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_files_keep_the_house_measure(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 300, f"{path} has more than 300 lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 60, f"{path}:{node.name} has {length} lines, more than 60"
