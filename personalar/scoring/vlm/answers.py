"""Cache answers on disk by the hash of the complete question, so that the same question is paid once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from personalar.core.files import read_json, write_atomic


def default_folder() -> Path:
    """Return the user's cache folder: $XDG_CACHE_HOME/personalar/answers or ~/.cache/personalar/answers."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "personalar" / "answers"


class Answers:
    """A folder of cached answers, which several processes can use at the same time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def key(url: str, body: Mapping[str, Any], repeat: int) -> str:
        """Return the hash of a question: server, model, settings, text, pictures and number of the repeat."""
        asked = json.dumps([url, body, repeat], sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()

    def get(self, key: str) -> dict[str, Any] | None:
        """Return {"value", "tokens"}, or None if the answer is missing or its file damaged."""
        try:
            found = read_json(self._path(key))
            return {"value": float(found["value"]), "tokens": int(found["tokens"])}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, key: str, answer: Mapping[str, Any]) -> None:
        """Store an answer {"value", "tokens"}."""
        write_atomic(self._path(key), json.dumps(answer).encode(), sync=False)

    def _path(self, key: str) -> Path:
        # Subfolders, because a folder with 100,000 files is slow.
        return self.folder / key[:2] / f"{key}.json"
