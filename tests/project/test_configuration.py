"""docs/configuration.md lists every setting; `python tests/project/test_configuration.py` updates it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
import typing
from pathlib import Path

from omegaconf import MISSING

from personalar.config.compose import COMMANDS, GROUPS, conf_dir, group_options
from personalar.config.fields import MANY
from personalar.config.scorer_config import ScorerConfig
from personalar.config.trainer_config import LightningArguments

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
HEAD = """# All settings

Written by `python tests/project/test_configuration.py` from the typed configuration. A setting goes
on the command line as `key=value`; a group is chosen by name, `group=choice`. `null` means none.
"""
WIDTH = 100  # of a page, see test_readme.py


def meanings(schema: type) -> dict[str, str]:
    """Return the docstring of each field of a dataclass and of its bases."""
    found: dict[str, str] = {}
    for kind in reversed(schema.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                found[field.target.id] = " ".join(ast.literal_eval(text.value).split())  # type: ignore[union-attr]
    return found


def shown(field: dataclasses.Field) -> str:
    """Return the default of a field, as YAML."""
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value == MISSING:
        return "required"
    if dataclasses.is_dataclass(value):
        return f"`{value.name}`" if isinstance(value, ScorerConfig) else ""
    value = value.replace("\n", "\\n") if isinstance(value, str) else value
    words = {None: "null", True: "true", False: "false"}
    return f"`{words[value] if isinstance(value, bool | None) else value}`" if value != "" else "`''`"


def allowed(field: dataclasses.Field) -> str:
    """Return the range of a number, as text."""
    if "limits" not in field.metadata:
        return ""
    low, high = field.metadata["limits"]
    return f"{low:g} and more" if high >= MANY else f"{low:g} to {high:g}"


def inner(hint: object) -> object:
    """Return the dataclass in a type such as `X | None` or `dict[str, X]`, or None."""
    for part in (hint, *typing.get_args(hint)):
        if dataclasses.is_dataclass(part):
            return part
    return None


def rows(schema: type, prefix: str) -> list[str]:
    """Return a row of the table for every setting below `prefix`."""
    hints, told, lines = typing.get_type_hints(schema), meanings(schema), []
    theirs = {field.name for field in dataclasses.fields(LightningArguments)} if prefix == "trainer." else ()
    for field in dataclasses.fields(schema):
        key = f"{prefix}{field.name}"
        below = inner(hints[field.name])
        if field.name in theirs or key in GROUPS or key.replace(".", "/") in GROUPS:
            continue
        if below is not None and below not in GROUPS.values():
            name = ".NAME" if typing.get_origin(hints[field.name]) is dict else ""
            lines += rows(below, f"{key}{name}.")  # type: ignore[arg-type]
            continue
        text = told.get(field.name, "").replace("|", "\\|")
        lines.append(f"| `{key}` | {shown(field)} | {allowed(field)} | {text} |")
    return lines


def page() -> str:
    """Return the text of docs/configuration.md."""
    parts = [HEAD]
    for group, schema in GROUPS.items():
        parts.append(f"\n## {group}\n")
        choices = f"Choices: {', '.join(group_options(conf_dir(), group))}."
        parts.append(textwrap.fill(choices, WIDTH) + "\n")
        if schema is dict:
            parts.append("`_target_` and arguments; see [Extend it](extending.md).\n")
            continue
        if group == "trainer":
            parts.append("Beside these, arguments of `lightning.Trainer` under their own names.\n")
        table = rows(schema, "model.recipe." if group == "model/recipe" else f"{group}.")
        parts += ["| setting | default | allowed | meaning |\n|---|---|---|---|", *table, ""]
    for command, schema in COMMANDS.items():
        table = rows(schema, "")
        own = [line for line in table if not any(line.startswith(f"| `{group}.") for group in GROUPS)]
        if own:
            parts += [f"\n## Settings of personalar.{command}\n"]
            parts += ["| setting | default | allowed | meaning |\n|---|---|---|---|", *own, ""]
    return "\n".join(parts).rstrip() + "\n"


def test_the_page_is_true() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), f"run: python {Path(__file__).name}"


def test_every_setting_has_a_meaning() -> None:
    lines = [line for line in page().splitlines() if line.startswith("| `") and line.endswith("|  |")]
    silent = [line.split("`")[1] for line in lines]
    assert {key.rpartition(".")[2] for key in silent} <= {"name", "_target_"}, silent


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
