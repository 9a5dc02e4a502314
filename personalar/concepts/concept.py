"""A concept: what a stage has learned, as a folder that later stages read and people can share.

    concept.json                 provenance: base, subject, identifier, stage, config, versions, hashes
    learned_embeds.safetensors   the learned embeddings: key "[V]" (1, D), "[S1]", ...
    weights.safetensors          changed tensors of the transformer (optional)
    lora/                        a PEFT adapter folder (optional)
    adapters/NAME.safetensors    parameters of a user-defined adapter (optional)

Loading never executes code: the files are safetensors and JSON, and hashes, shapes and finiteness are
checked. `concept.json` is written last, so a folder without it is incomplete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor

from personalar.concepts.adapters.base import Adapter, attach_learned
from personalar.concepts.adapters.identifier import Identifier, class_row, slide
from personalar.concepts.adapters.lora import merge_lora
from personalar.concepts.validation import FORMAT_VERSION, join_rows, read_record, read_tensors
from personalar.core.files import write_atomic
from personalar.core.own_files import ADAPTER_FILE, RECORD_FILE, ROWS_FILE, WEIGHTS_FILE
from personalar.core.process import package_versions
from personalar.data.prompts import SUBJECT_TOKEN, subject_names, word_of
from personalar.models.base import Backend

WITHOUT_WEIGHTS = (
    "train with method=lora, or use the concept of a stage that learns [V] alone, such as the first of "
    "method=paper (RUN/stages/embedding/concept)"
)
"""Advice where a concept replaces tensors of the base."""


@dataclass(frozen=True, kw_only=True)
class Concept:
    """A learned subject: plain values and CPU tensors."""

    base: dict[str, str]
    """"name" and "fingerprint" of the base model that it was learned on."""
    subject: dict[str, str]
    """"name", "noun" (the class, or "style"), "fingerprint" (of the photos) and "word" (for prompts, such as
    "[cat]")."""
    stage: str
    """Name of the last stage that was trained."""
    tokens: dict[str, int]
    """Name of each learned token ("[V]", "[S1]", ...) -> its reserved id in the base's vocabulary."""
    rows: Tensor
    """Learned embeddings (K, D), one per entry of `tokens`, in the same order."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    """Changed tensors of the transformer by parameter name."""
    lora: dict[str, bytes] = field(default_factory=dict)
    """Contents of the PEFT adapter's two files by their path in the concept folder, or empty."""
    adapters: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Parameters of user-defined adapters: adapter name -> parameter name -> tensor; see `adapters.base`."""
    config: dict[str, Any] = field(default_factory=dict)
    """The settings that determine the result, as plain values."""

    @property
    def subject_rows(self) -> Tensor:
        """The embeddings (n, D) of [V]."""
        return self.rows[[list(self.tokens).index(name) for name in subject_names(self.tokens)]]

    @property
    def word(self) -> str:
        """The word for this subject in prompts; concepts of older versions do not contain it."""
        return self.subject.get("word") or word_of(self.subject["name"])

    def unscalable(self) -> str:
        """Return the reason, in words, why the concept can be neither scaled nor combined; empty: it can."""
        if self.weights:
            return f"replaces {len(self.weights)} tensors of the base"
        return f"contains the adapters {', '.join(self.adapters)}" if self.adapters else ""

    def save(self, folder: Path) -> Path:
        """Write the concept to `folder`, replace an earlier one in it, and return `folder`."""
        if links := [part for part in ("lora", "adapters") if (folder / part).is_symlink()]:
            raise ValueError(
                f"{folder / links[0]} is a symbolic link, and a concept is written inside its folder only: "
                "remove the link"
            )
        try:
            before = set(read_record(folder)["files"])
        except (OSError, ValueError):
            before = set()
        # Removed first and written last: if the process is killed in between, no reader takes the mixture of
        # old and new files for a concept.
        (folder / RECORD_FILE).unlink(missing_ok=True)
        rows = {name: self.rows[k : k + 1].contiguous() for k, name in enumerate(self.tokens)}
        files = {ROWS_FILE: save_safetensors(rows, metadata={"format": "pt"}), **self.lora}
        if self.weights:
            weights = {name: tensor.contiguous() for name, tensor in self.weights.items()}
            files[WEIGHTS_FILE] = save_safetensors(weights, metadata={"format": "pt"})
        for name, tensors in self.adapters.items():
            parts = {key: tensor.contiguous() for key, tensor in tensors.items()}
            files[f"adapters/{name}.safetensors"] = save_safetensors(parts, metadata={"format": "pt"})
        # Files of an earlier concept, such as weights.safetensors of another method.
        for stale in before - set(files):
            (folder / stale).unlink(missing_ok=True)
        for name, data in files.items():
            # Synced together with the record below, which is cheaper than one fsync per file.
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
        """Read and check a concept folder.

        Raises:
            FileNotFoundError: the folder contains no concept, or a file of it is missing.
            ValueError: a file is damaged or contains something that is not allowed; see `validation`.
        """
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
        """Raise ValueError unless the concept was learned on the base with this fingerprint."""
        if self.base["fingerprint"] == fingerprint:
            return
        where, advice = "base", "leave model= out"
        if self.base["name"] == name:
            where, advice = "other weights of base", "train it again"
        raise ValueError(
            f"the concept of {self.subject['name']!r} was learned on {where} {self.base['name']!r} "
            f"({self.base['fingerprint'][:12]}), but {name!r} is loaded ({fingerprint[:12]}): {advice}, "
            "or set model.path=DIR to the folder with its files"
        )

    def check_layout(self, layout: Mapping[str, Any]) -> None:
        """Raise ValueError if prompts are written otherwise than those that the concept was learned with.

        Args:
            layout: the settings `model.layout`. Sizes and guidance may differ from those in training.
        """
        before = (self.config.get("model") or {}).get("layout") or {}
        names = [name for name in ("structure", "grid_px", "prompt_template") if name in before]
        if changed := [name for name in names if before[name] != layout[name]]:
            wanted = ", ".join(f"model.layout.{name}={before[name]!r}" for name in changed)
            raise ValueError(
                f"the concept of {self.subject['name']!r} was learned with {wanted}, but the base is loaded "
                f"with {', '.join(repr(layout[name]) for name in changed)}: give the same settings"
            )

    def check_strength(self, strength: float) -> None:
        """Raise ValueError if the concept can only be used as learned, and `strength` is not 1."""
        if strength != 1 and (self.weights or self.adapters):
            raise ValueError(
                f"strength={strength:g}, but the concept of {self.subject['name']!r} {self.unscalable()}: "
                f"set strength=1, or {WITHOUT_WEIGHTS}"
            )

    def apply(
        self,
        backend: Backend,
        adapters: Mapping[str, Adapter] | None = None,
        attached: dict[str, Any] | None = None,
        *,
        strength: float = 1.0,
    ) -> Identifier:
        """Load the learned weights into `backend`, in place, and return the learned embeddings as a module.

        A LoRA adapter is merged into the weights.

        Args:
            backend: the base; see `check_base`.
            adapters: the configured user-defined adapters by name; the concept may use some of them.
            attached: if given, it is filled with the parameters of the adapters that the concept contains.
            strength: 1 as learned, 0 the base with the class word for [V]. It scales LoRA, and turns [V] from
                its class word; see `identifier.slide`.

        Raises:
            ValueError: a tensor is unknown to the backend or has another shape, an id is not reserved, an
                adapter of the concept is not configured, or the concept has a single strength only.
        """
        self.check_strength(strength)
        parameters = dict(backend.transformer.named_parameters())
        shapes = {name: parameter.shape for name, parameter in parameters.items()}
        # All before the first change: a concept that is refused changes nothing.
        wrong = [name for name, tensor in self.weights.items() if shapes.get(name) != tensor.shape]
        if wrong or self.rows.shape[1] != backend.word_table.shape[1]:
            raise ValueError(
                f"this base has no {', '.join(wrong[:3]) or 'embeddings'} of the shape in the concept, which "
                "was learned on another architecture"
            )
        foreign = {name: index for name, index in self.tokens.items() if index not in backend.reserved_ids}
        if foreign:  # replacing the embedding of a word or an image code would change every image
            raise ValueError(
                f"the concept uses the ids {foreign}, which this base does not reserve for learned tokens: "
                "it was learned on another base"
            )
        with torch.no_grad():
            for name, tensor in self.weights.items():
                parameters[name].copy_(tensor)
        if self.lora:
            merge_lora(backend.transformer, self.lora, strength=strength)
        identifier = self.identifier(backend, strength)
        found = attach_learned(adapters or {}, self.adapters, backend, identifier)
        if attached is not None:
            attached.update(found)
        return identifier

    def identifier(self, backend: Backend, strength: float = 1.0) -> Identifier:
        """Return the learned embeddings as a module on the device of `backend`; see `apply`."""
        names = subject_names(self.tokens)
        rows = self.rows.to(backend.device, torch.float32, copy=True)  # the next stage trains them
        if strength != 1:
            subject = [list(self.tokens).index(name) for name in names]
            word = class_row(backend, self.subject["noun"]).to(rows)
            rows[subject] = slide(word, rows[subject], strength)
        words = dict.fromkeys((SUBJECT_TOKEN, self.word), names)
        return Identifier(tokens=self.tokens, rows=rows, words=words).to(backend.device)


def _read_checked(folder: Path, name: str, digest: str) -> bytes:
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: copy the complete concept folder")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(
            f"{path} does not match its hash in {RECORD_FILE}: it is truncated or was changed, copy it again"
        )
    return data
