"""A concept: the result of a stage, as a folder that stages hand over and people share.

    concept.json                 provenance: base, subject, identifier, stage, config, versions, hashes
    learned_embeds.safetensors   the identifier rows: key "[V]" (1, D), "[S1]", ...
    weights.safetensors          changed transformer tensors, or absent
    lora/                        a PEFT adapter folder, or absent
    adapters/NAME.safetensors    what an adapter of one's own learned, or absent

Loading runs no code: safetensors and json only; hashes, shapes and finiteness are checked. `concept.json` is
written last, so a folder without it is unfinished.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from personalar import __version__
from personalar.concepts.adapters.base import Adapter, attach_learned
from personalar.concepts.adapters.identifier import Identifier
from personalar.concepts.adapters.lora import load_lora, merge_lora
from personalar.concepts.validation import FORMAT_VERSION, join_rows, read_record, read_tensors
from personalar.core.files import write_atomic
from personalar.core.own_files import ADAPTER_FILE, RECORD_FILE, ROWS_FILE, WEIGHTS_FILE
from personalar.models.base import Backend


def package_versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    names = ("torch", "lightning", "safetensors", "tokenizers", "peft")
    return {
        "personalar": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in names},
    }


@dataclass(frozen=True, kw_only=True)
class Concept:
    """A learned subject; plain values and CPU tensors."""

    base: dict[str, str]
    """"name" and "fingerprint" of the base it was learned on."""
    subject: dict[str, str]
    """"name", "noun" and "fingerprint"."""
    stage: str
    tokens: dict[str, int]
    """Identifier names -> reserved ids."""
    rows: Tensor
    """(K, D), one per token."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    """Changed transformer tensors by name."""
    lora: dict[str, bytes] = field(default_factory=dict)
    """The PEFT adapter's two files by their path in the concept folder, or empty."""
    adapters: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """What adapters learned, by their names; see `adapters.base`."""
    config: dict[str, Any] = field(default_factory=dict)
    """The settings that determine it, plain values."""

    def save(self, folder: Path) -> Path:
        """Write the folder, `concept.json` last; return it."""
        if (folder / "lora").is_symlink():
            raise ValueError(f"{folder / 'lora'} is a link: nothing is written outside of a concept's folder")
        try:
            before = set(read_record(folder)["files"])
        except (OSError, ValueError):
            before = set()
        (folder / RECORD_FILE).unlink(missing_ok=True)
        rows = {name: self.rows[k : k + 1].contiguous() for k, name in enumerate(self.tokens)}
        files = {ROWS_FILE: save_safetensors(rows, metadata={"format": "pt"}), **self.lora}
        if self.weights:
            weights = {name: tensor.contiguous() for name, tensor in self.weights.items()}
            files[WEIGHTS_FILE] = save_safetensors(weights, metadata={"format": "pt"})
        for name, tensors in self.adapters.items():
            parts = {key: tensor.contiguous() for key, tensor in tensors.items()}
            files[f"adapters/{name}.safetensors"] = save_safetensors(parts, metadata={"format": "pt"})
        for stale in before - set(files):
            (folder / stale).unlink(missing_ok=True)
        for name, data in files.items():
            write_atomic(folder / name, data, sync=False)
        record = {
            "format_version": FORMAT_VERSION,
            "base": self.base,
            "subject": self.subject,
            "stage": self.stage,
            "identifier": self.tokens,
            "config": self.config,
            "versions": package_versions(),
            "files": {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())},
        }
        write_atomic(folder / RECORD_FILE, json.dumps(record, indent=1).encode())
        return folder

    @classmethod
    def load(cls, folder: Path) -> Concept:
        """Read a concept folder. Raises FileNotFoundError and ValueError, see `validation`."""
        record = read_record(folder)
        files = {name: _read_checked(folder, name, digest) for name, digest in record["files"].items()}
        rows = read_tensors(folder / ROWS_FILE, files.pop(ROWS_FILE))
        changed = files.pop(WEIGHTS_FILE, None)
        weights = {} if changed is None else read_tensors(folder / WEIGHTS_FILE, changed)
        own = [name for name in files if ADAPTER_FILE.fullmatch(name)]
        adapters = {Path(name).stem: read_tensors(folder / name, files.pop(name)) for name in own}
        return cls(
            base=record["base"],
            subject=record["subject"],
            stage=record["stage"],
            tokens=record["identifier"],
            rows=join_rows(folder / ROWS_FILE, rows, record["identifier"]),
            weights=weights,
            lora=files,
            adapters=adapters,
            config=record["config"],
        )

    def check_base(self, *, name: str, fingerprint: str) -> None:
        """Raise ValueError unless the concept was learned on this very base."""
        if self.base["fingerprint"] != fingerprint:
            raise ValueError(
                f"the concept of {self.subject['name']!r} was learned on base {self.base['name']!r} "
                f"({self.base['fingerprint'][:12]}), but {name!r} is loaded ({fingerprint[:12]}): leave "
                "model= out, or set model.path=DIR to the folder where its files lie"
            )

    def apply(
        self,
        backend: Backend,
        adapters: Mapping[str, Adapter] | None = None,
        attached: dict[str, Any] | None = None,
    ) -> Identifier:
        """Put what was learned into `backend`, in place, and return the identifier for it.

        Args:
            adapters: those that the concept may contain, by name.
            attached: takes the parameters of the adapters that it contains.

        Raises:
            ValueError: a tensor is unknown to the backend or has another shape, an id is not reserved, or
                an adapter is not among `adapters`.
        """
        parameters = dict(backend.transformer.named_parameters())
        _check_shapes(self.weights, parameters)
        width = backend.word_table.shape[1]
        if self.rows.shape[1] != width:
            raise ValueError(
                f"the concept's rows are {self.rows.shape[1]} wide, the base's embeddings {width}"
            )
        foreign = {name: index for name, index in self.tokens.items() if index not in backend.reserved_ids}
        if foreign:  # a row in the place of a word or a code would change every prompt or picture
            raise ValueError(
                f"the concept takes the ids {foreign}, which are not reserved for names: another base"
            )
        with torch.no_grad():
            for name, tensor in self.weights.items():
                parameters[name].copy_(tensor)
        if self.lora:
            load_lora(backend.transformer, {Path(name).name: data for name, data in self.lora.items()})
            merge_lora(backend.transformer)
        found = attach_learned(adapters or {}, self.adapters, backend)
        if attached is not None:
            attached.update(found)
        return Identifier(tokens=self.tokens, rows=self.rows).to(backend.device)


def _check_shapes(weights: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
    for name, tensor in weights.items():
        if name not in parameters:
            raise ValueError(
                f"the concept changes {name}, which the base does not have: another architecture"
            )
        if tensor.shape != parameters[name].shape:
            expected = tuple(parameters[name].shape)
            raise ValueError(f"the concept's {name} has shape {tuple(tensor.shape)}, the base's {expected}")


def _read_checked(folder: Path, name: str, digest: str) -> bytes:
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the concept folder was not copied completely")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(f"{path} differs from what {RECORD_FILE} says: truncated or changed, copy it again")
    return data
