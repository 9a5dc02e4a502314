"""Settings that become a part of a path: none leads out of the folder that it is joined to."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

KNOBS = ("model.name", "subject.name", "benchmark.name")
"""Each names a folder: outputs/MODEL/SUBJECT, outputs/BENCHMARK, sweeps/MODEL."""
LONGEST = 255
"""Bytes that a file system allows a name."""


def check_folder_names(cfg: DictConfig) -> None:
    """Check `KNOBS`, as far as the configuration has them.

    Raises:
        ValueError: a name is more than the name of one folder.
    """
    for knob in KNOBS:
        name = OmegaConf.select(cfg, knob)
        if name is None:
            continue
        strange = not name.strip() or name in (".", "..") or not name.isprintable()
        if strange or "/" in name or "\\" in name or len(name.encode()) > LONGEST:
            raise ValueError(
                f"{knob}={name[:60]!r} is not the name of one folder; allowed: printable characters on one "
                f"line without / and \\, at most {LONGEST} bytes, and not . or ..; a run is put elsewhere "
                "with hydra.run.dir=DIR"
            )


def inside(path: str) -> str:
    """Return `path` with every step upwards (..) replaced, so that it stays where it is joined to."""
    return "/".join("__" if part == ".." else part for part in str(path).split("/"))
