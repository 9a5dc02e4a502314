"""Export a concept to files that other programs read, and import such files.

learned_embeds.safetensors      the rows of [V] (n, D) under one key, as textual-inversion tools store them
lora/                           the adapter in PEFT's format, if stage 2 trained one
checkpoint/                     on request: the whole model with the learned weights merged
README.md                       the model card
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor

from personalar.concepts.adapters.identifier import assign_tokens
from personalar.concepts.adapters.lora import merge_lora, name_base
from personalar.concepts.adapters.peft_names import from_transformers, to_transformers
from personalar.concepts.concept import Concept
from personalar.concepts.model_card import is_card, origin, plain, write_card
from personalar.concepts.validation import read_tensors
from personalar.config.compose import composed, read_config
from personalar.config.run_config import ModelConfig
from personalar.core.files import base_fingerprint, content_hash, write_atomic
from personalar.core.own_files import (
    CARD_FILE,
    LORA_CONFIG,
    LORA_FILES,
    RECORD_FILE,
    ROWS_FILE,
    delete_abandoned,
)
from personalar.data.prompts import SUBJECT_TOKEN, row_names
from personalar.models.base import Backend
from personalar.models.loading import obtain_model, offline_model, peft_base, pin
from personalar.models.stored_base import ModelFiles

CHECKPOINT, MOST_ROWS = "checkpoint", 99


def write_export(
    concept: Concept,
    out: Path,
    model: ModelConfig,
    *,
    checkpoint: bool,
    scores: Mapping[str, float] | None = None,
) -> list[Path]:
    """Export a concept and return the paths of the files.

    Args:
        concept: what to export.
        out: target folder, created if missing.
        model: the base; it is loaded for the checkpoint only.
        checkpoint: also write the whole model with the learned weights merged.
        scores: see `model_card`.

    Raises:
        FileNotFoundError: the base is missing.
        ValueError: `model` is not the base of the concept, `out` contains files of something else, or the
            concept has adapters, for which there is no format.
    """
    if concept.adapters:
        raise ValueError(
            f"the concept contains parameters of the adapters {', '.join(concept.adapters)}, which no other "
            "program reads: copy the concept folder itself, which personalar.sample reads"
        )
    check_out(out, lora=bool(concept.lora), checkpoint=checkpoint)
    delete_abandoned(*(out / name for name in ("", "lora", CHECKPOINT, f"{CHECKPOINT}/vq")))
    # Load before the first write: a wrong base must not leave a half-written export.
    learned, form = read_learned(concept, model) if checkpoint else None, None
    # Only [V]: the tokens of single photos are not needed for sampling.
    tensors = {SUBJECT_TOKEN: concept.subject_rows.contiguous()}
    contents = {
        ROWS_FILE: save_safetensors(tensors, metadata={"format": "pt"}),
        **named_adapter(concept, model),
    }
    for name, data in contents.items():
        write_atomic(out / name, data)
    paths = [out / name for name in contents]
    if learned is not None:
        backend, files = learned
        form = files.checkpoint_form
        print(f"{CHECKPOINT}: {form}")
        dtype = getattr(torch, model.dtype)
        paths.append(files.write_checkpoint(backend, out / CHECKPOINT, dtype=dtype))
    elif concept.weights:
        print(
            f"note: stage 2 also changed {len(concept.weights)} tensors of the transformer, which these "
            "files do not contain; to export the whole model, add checkpoint=true with the base "
            f"model={plain(concept.base['name'])}"
        )
    # The card lists the hashes of the files, so it is written last.
    listed = sorted(file for path in paths for file in (path, *path.rglob("*")) if file.is_file())
    card = write_card(concept, out, files=listed, exported=True, checkpoint=form, scores=scores)
    return [*paths, card]


def read_export(folder: Path | str, *settings: str, noun: str, name: str = "adopted") -> Concept:
    """Read an exported embedding, and the PEFT adapter in `lora/` if there is one, as a concept.

    The embedding becomes [V] with the first reserved id of the base; one of several rows has as many ids. The
    base's weights are not loaded.

    Args:
        folder: the exported files.
        settings: the base, as on the command line: "model=lumina_mgpt_7b_512", "model.path=DIR"; nano by
            default. If stage 2 changed weights, set model.path to the exported checkpoint.
        noun: the class of the subject, such as "dog".
        name: name of the subject.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the embedding or the adapter does not match the base.
    """
    folder = Path(folder).expanduser()
    model = read_config(composed("export", ["concept=x", "out=x", *settings])).model
    row, lora = read_row(folder / ROWS_FILE), read_adapter(folder)
    files = obtain_model(model, say=print)
    network = files.shape(images=1).network
    if row.shape[1] != network.hidden_size:
        raise ValueError(
            f"the embedding has width {row.shape[1]}, the base's embeddings {network.hidden_size}: it was "
            "learned on another base"
        )
    if lora:
        lora = from_transformers(lora, stack=target.stack) if (target := peft_base(model)) else lora
        # On the meta device the network has shapes but no storage: enough to check the adapter.
        with torch.device("meta"):
            merge_lora(network.build(), lora)
    return Concept(
        base={"name": model.name, "fingerprint": base_fingerprint(files.weights())},
        subject={"name": name, "noun": noun, "fingerprint": content_hash(folder / ROWS_FILE)},
        stage="transformer" if lora else "embedding",
        tokens=assign_tokens(row_names(SUBJECT_TOKEN, len(row)), files.reserved_ids()),
        rows=row,
        lora=lora,
        config={"adopted": {"embeds": ROWS_FILE, "lora": bool(lora)}, "model": asdict(pin(model))},
    )


def read_adapter(folder: Path) -> dict[str, bytes]:
    """Return the contents of the adapter's files by their path in a concept; empty without `folder`/lora.

    Raises:
        FileNotFoundError: a file of lora/ is missing.
    """
    if not (folder / "lora").exists():
        return {}
    missing = [name for name in LORA_FILES if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder}: {', '.join(missing)} is missing; lora/ must be the folder that PEFT saved, or be "
            "removed if there is no adapter"
        )
    files = {name: (folder / name).read_bytes() for name in LORA_FILES}
    # A damaged config is reported by `merge_lora`, which checks every field.
    with suppress(ValueError, AttributeError):
        # Undo the export's change, so that export and import give back the same bytes.
        files[LORA_CONFIG] = name_base(files[LORA_CONFIG], base=None)
    return files


def read_row(path: Path) -> Tensor:
    """Return the embedding (n, D) in float32 from a safetensors file with one key of any name.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is damaged, or contains several keys or NaN.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give a folder that personalar.export wrote")
    tensors = read_tensors(path, path.read_bytes())
    if len(tensors) != 1:
        raise ValueError(
            f"{path} contains {len(tensors)} keys ({', '.join(sorted(tensors))}); expected one embedding"
        )
    (row,) = tensors.values()
    if row.ndim not in (1, 2) or not 0 < row.numel() <= MOST_ROWS * row.shape[-1]:
        raise ValueError(
            f"{path} contains a tensor of shape {tuple(row.shape)}; expected one embedding (rows, width), at "
            f"most {MOST_ROWS} rows"
        )
    return row.reshape(-1, row.shape[-1]).float()


def check_out(out: Path, *, lora: bool, checkpoint: bool) -> None:
    """Raise ValueError if `out` contains a concept, a foreign README.md, or parts of another export.

    Args:
        out: target folder of the export.
        lora: whether the export will write lora/.
        checkpoint: whether the export will write checkpoint/.
    """
    for name, may_be, reason in (
        (RECORD_FILE, False, "of a concept, whose files an export would overwrite"),
        (
            CARD_FILE,
            (out / CARD_FILE).exists() and is_card(out / CARD_FILE),
            "that was not written by an export",
        ),
        ("lora", lora, "of an earlier export, which this export does not write"),
        (CHECKPOINT, checkpoint, "of an earlier export, which this export does not write"),
    ):
        if (out / name).exists() and not may_be:
            raise ValueError(f"out={out} contains {name} {reason}: choose another folder, or remove it")


def read_learned(concept: Concept, model: ModelConfig) -> tuple[Backend, ModelFiles]:
    """Load the base with the concept's weights and embeddings in it; return it and the base's files.

    Raises:
        FileNotFoundError: the base is missing.
        ValueError: it is not the base of the concept.
    """
    files = obtain_model(model, say=print)
    concept.check_base(name=model.name, fingerprint=base_fingerprint(files.weights()))
    backend = files.load(dtype=getattr(torch, model.dtype), device="cpu")
    identifier = concept.apply(backend)
    table = backend.word_table
    # Programs that read the checkpoint have no identifier module, so its embeddings go into the table.
    with torch.no_grad():
        table[identifier.ids] = identifier.rows.to(table.dtype)
    return backend, files


def local_base(concept: Concept, model: ModelConfig) -> ModelFiles | None:
    """Return the files of `model` if they are on this machine and are the base of the concept, else None."""
    try:
        files = offline_model(model)
        same = files is not None and base_fingerprint(files.weights()) == concept.base["fingerprint"]
    except (FileNotFoundError, ValueError):
        return None
    return files if same else None


def named_adapter(concept: Concept, model: ModelConfig) -> dict[str, bytes]:
    """Return the adapter's files by path; the config names the base (hub id or folder) if it is known."""
    target = peft_base(model)  # None: the family has no class in transformers
    if not concept.lora or target is None:
        return dict(concept.lora)
    lora = to_transformers(concept.lora, stack=target.stack)
    files, settings = local_base(concept, model), concept.config.get("model", {})
    repo, _ = origin(concept)
    if files is not None and model.path is not None:
        base, revision = str(files.parts()["transformer"].resolve()), None
    elif files is not None and model.hub is not None:
        base, revision = model.hub.repo, model.hub.revision
    elif repo is not None and not settings.get("path"):
        base, revision = repo, settings["hub"].get("revision")
    else:
        print(
            "note: lora/adapter_config.json does not name a base, so peft.AutoPeftModel cannot load it; "
            "to add the name, export with the base of the concept (model=..., model.path=DIR)"
        )
        return lora
    named = name_base(lora[LORA_CONFIG], base=base, class_name=target.class_name, revision=revision)
    return {**lora, LORA_CONFIG: named}
