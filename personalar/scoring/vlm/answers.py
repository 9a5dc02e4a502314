"""Answers on disk by the hash of all that was asked: the same question is paid once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from personalar.core.files import read_json, write_atomic


def default_folder() -> Path:
    """Return the user's cache folder for answers."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "personalar" / "answers"


class Answers:
    """A folder of answers; several processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def key(url: str, body: Mapping[str, Any], repeat: int) -> str:
        """Return the hash of a question: server, model, settings, words, pictures and its repeat."""
        asked = json.dumps([url, body, repeat], sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()

    def get(self, key: str) -> dict[str, Any] | None:
        """Return {"value", "tokens"}, or None; a damaged file counts as none and is written again."""
        try:
            found = read_json(self._path(key))
            return {"value": float(found["value"]), "tokens": int(found["tokens"])}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, key: str, answer: Mapping[str, Any]) -> None:
        """Keep an answer."""
        write_atomic(self._path(key), json.dumps(answer).encode(), sync=False)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
