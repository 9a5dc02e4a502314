"""Measure the structure of Python packages: sizes, functions, documentation, density.

    python tests/project/measure.py DIR [DIR ...]

Each DIR is one row, for example `personalar` or a checkout of another project. Tests are left out.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import tokenize
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

QUESTION = re.compile(r"^(what|how|which|where|whether|who|when|why)\b", re.IGNORECASE)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass
class Counts:
    """Everything that is counted over the files of one package."""

    file_lines: list[int] = field(default_factory=list)
    top_lines: list[int] = field(default_factory=list)
    folder_sizes: dict[Path, int] = field(default_factory=dict)
    function_lines: list[int] = field(default_factory=list)
    public_names: list[int] = field(default_factory=list)
    documented: list[bool] = field(default_factory=list)
    annotated: list[bool] = field(default_factory=list)
    comments: int = 0
    raises: int = 0
    asserts: int = 0
    comprehensions: int = 0
    conditionals: int = 0
    tuple_assignments: int = 0
    fmt_skips: int = 0
    question_docstrings: int = 0


def count_tree(tree: ast.Module, counts: Counts) -> None:
    """Add what the syntax tree of one file holds."""
    for node in ast.walk(tree):
        counts.raises += isinstance(node, ast.Raise)
        counts.asserts += isinstance(node, ast.Assert)
        counts.comprehensions += isinstance(node, COMPREHENSIONS)
        counts.conditionals += isinstance(node, ast.IfExp)
        counts.tuple_assignments += isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple)
        if isinstance(node, FUNCTIONS):
            counts.function_lines.append((node.end_lineno or node.lineno) - node.lineno + 1)
            counts.documented.append(ast.get_docstring(node) is not None or node.name.startswith("_"))
            arguments = [a for a in node.args.args + node.args.kwonlyargs if a.arg not in ("self", "cls")]
            counts.annotated.append(all(a.annotation is not None for a in arguments))
    public = [n for n in tree.body if isinstance(n, (*FUNCTIONS, ast.ClassDef)) and n.name[0] != "_"]
    counts.public_names.append(len(public))
    counts.question_docstrings += bool(QUESTION.match(ast.get_docstring(tree) or ""))


def measure(root: Path) -> Counts:
    """Count over all Python files below `root`."""
    counts = Counts()
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if {"tests", ".venv", "build"} & set(relative.parts):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        lines = text.splitlines()
        counts.file_lines.append(len(lines))
        if path.parent == root:
            counts.top_lines.append(len(lines))
        if path.name != "__init__.py":
            counts.folder_sizes[relative.parent] = counts.folder_sizes.get(relative.parent, 0) + 1
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        counts.comments += sum(token.type == tokenize.COMMENT for token in tokens)
        counts.fmt_skips += text.count("# fmt: skip")
        count_tree(ast.parse(text), counts)
    return counts


def percent(part: float, whole: float) -> str:
    """Return a share in percent."""
    return f"{100 * part / max(whole, 1):.1f}"


def spread(lengths: list[int]) -> str:
    """Return median, 95th percentile and maximum of sorted numbers."""
    return f"{median(lengths):.0f} / {lengths[len(lengths) * 95 // 100]} / {lengths[-1]}"


def row(name: str, counts: Counts) -> dict[str, str]:
    """Return the measures of one package by column title."""
    total = sum(counts.file_lines)
    functions = sorted(counts.function_lines) or [0]
    thousand = max(total, 1) / 1000
    return {
        "package": name,
        "files": str(len(counts.file_lines)),
        "lines": f"{total:,}",
        "flat at top (lines)": f"{len(counts.top_lines)} ({sum(counts.top_lines):,})",
        "most in a folder": str(max(counts.folder_sizes.values(), default=0)),
        "file med / max": f"{median(counts.file_lines):.0f} / {max(counts.file_lines)}",
        "fn med / p95 / max": spread(functions),
        "fn > 60": str(sum(length > 60 for length in functions)),
        "doc %": percent(sum(counts.documented), len(counts.documented)),
        "annot. %": percent(sum(counts.annotated), len(counts.annotated)),
        "comments %": percent(counts.comments, total),
        "public names med.": f"{median(counts.public_names):.0f}",
        "raise:assert": f"{counts.raises}:{counts.asserts}",
        "comprehensions /1000": f"{counts.comprehensions / thousand:.0f}",
        "conditional expr. /1000": f"{counts.conditionals / thousand:.0f}",
        "tuple assignments /1000": f"{counts.tuple_assignments / thousand:.0f}",
        "fmt: skip": str(counts.fmt_skips),
        "question docstrings": str(counts.question_docstrings),
    }


def main() -> None:
    """Print a Markdown table, a column for each package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("packages", nargs="+", type=Path)
    rows = [row(path.name, measure(path)) for path in parser.parse_args().packages]
    for title in rows[0]:
        print("| " + " | ".join([title, *(one[title] for one in rows)]) + " |")
        if title == "package":
            print("|" + "---|" * (len(rows) + 1))


if __name__ == "__main__":
    main()
