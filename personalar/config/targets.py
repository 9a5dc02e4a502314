"""What a configuration may have built: `_target_` reaches our own seams for exchange and nothing else.

Hydra calls whatever a YAML names, `os.system` included, and some of it before this program gets to speak. So
foreign YAML is read as text first, and what is composed is looked at again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

SEAMS = (
    r"personalar\.generation\.decoders\.[a-z]\w*\.\w*Decoder",
    r"personalar\.sweep\.SweepReport",
    r"hydra_plugins(\.\w+)+",
    r"hydra\._internal\.core_plugins(\.\w+)+",
    r"optuna\.samplers\.\w+",
)
ALLOWED = (
    "a decoder (personalar.generation.decoders.plain.PlainDecoder, personalar.generation.decoders.<file>.<Name>Decoder), Hydra's "
    "launchers and sweepers (hydra_plugins.*) and optuna.samplers.*"
)
CALLS = ("_target_", "()")
"""Keys by which Hydra, and Python's logging, are told what to call."""


def check_target(where: str, name: Any) -> None:
    """Raise ValueError unless `name` is one that configurations may have built."""
    text = str(name)
    if text in ("???", "None") or any(re.fullmatch(seam, text) for seam in SEAMS):
        return
    raise ValueError(f"{where}={text!r:.200} is refused, because it could run any code; allowed: {ALLOWED}")


def check_targets(node: Any, where: str = "") -> None:
    """Look at every `_target_` in plain lists and mappings. Raises as `check_target`."""
    if isinstance(node, dict):
        for key, value in node.items():
            inside = f"{where}.{key}".lstrip(".")
            if key in CALLS:
                check_target(inside, value)
            elif key == "searchpath" and value:
                raise ValueError(f"{inside} is refused: give the folder by --config-dir=DIR")
            else:
                check_targets(value, inside)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            check_targets(value, f"{where}[{index}]")


class _Reader(yaml.SafeLoader):
    """Reads the file of another program: tags that it does not know are nothing."""


_Reader.add_multi_constructor("", lambda loader, tag, node: None)


def check_folder(folder: Path) -> None:
    """Look at every YAML file below `folder`, before Hydra does.

    Raises:
        ValueError: one has something built that is none of our seams, or is no YAML.
    """
    for path in sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")]):
        try:
            for content in yaml.load_all(path.read_text(encoding="utf-8"), Loader=_Reader):
                check_targets(content)
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is no YAML ({str(error).splitlines()[0]})") from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: {error}") from error


def foreign_folders(arguments: Sequence[str]) -> list[Path]:
    """Return the folders of foreign configurations that a command line names."""
    flags, found = ("--config-dir", "-cd", "--config-path", "-cp"), []
    for index, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in flags:
            found.append(Path(value if equals else "".join(arguments[index + 1 : index + 2])))
    return found


def check_arguments(arguments: Sequence[str]) -> None:
    """Look at foreign folders of configurations and at `a._target_=x`. Raises as `check_target`."""
    for folder in foreign_folders(arguments):
        check_folder(folder)
    for argument in arguments:
        key, _, value = argument.lstrip("+~").partition("=")
        if key == "hydra.searchpath" or key.startswith("--experimental-rerun"):
            raise ValueError(f"{key} is refused, because it could run any code; use --config-dir=DIR")
        if key.split(".")[-1] in CALLS:
            check_target(key, value)
        elif re.search(r"_target_['\"]?\s*:", value):
            raise ValueError(f"{argument[:200]!r} is refused: write ...._target_=NAME; allowed: {ALLOWED}")
