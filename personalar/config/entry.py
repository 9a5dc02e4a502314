"""How `sample`, `export` and `doctor` begin: from a command line to work on its settings."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import hydra
from omegaconf import DictConfig

from personalar.config.arguments import prepare_arguments
from personalar.config.base_choice import add_base
from personalar.config.compose import COMMANDS, conf_dir, read_config, register
from personalar.core.errors import told


def start(name: str, work: Callable[[Any], None]) -> None:
    """Do `work` with the typed settings of personalar.`name`; a user's mistake ends in one sentence."""
    conf, schema = conf_dir(), COMMANDS[name]
    with told(f"personalar.{name}"):
        arguments = prepare_arguments(sys.argv[1:], schema=schema, conf=conf, needs_subject=False)
        sys.argv[1:] = add_base(arguments)
    register()

    def launch(cfg: DictConfig) -> None:
        with told(f"personalar.{name}"):
            work(read_config(cfg))

    hydra.main(config_path=str(conf), config_name=name, version_base="1.3")(launch)()
