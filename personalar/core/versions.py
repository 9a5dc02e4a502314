"""Versions of Python and of the libraries that results depend on."""

from __future__ import annotations

import platform
from importlib import metadata

from personalar import __version__

PACKAGES = (
    "torch", "lightning", "transformers", "safetensors", "tokenizers", "huggingface_hub", "peft", "deepspeed"
)  # fmt: skip


def package_versions() -> dict[str, str]:
    """Return the versions by name; DeepSpeed, for example, is installed on Linux only."""
    found = {"python": platform.python_version(), "personalar": __version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
