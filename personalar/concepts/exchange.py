"""A concept in files that other programs read, and back.

learned_embeds.safetensors      the row of [V], one key, in the form of textual-inversion tools
lora/                           the adapter as PEFT wrote it, if stage 2 trained one
checkpoint/                     on request: the whole model with the learned weights in it
README.md                       the model card
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor

from personalar.concepts.adapters.identifier import assign_tokens
from personalar.concepts.adapters.lora import load_lora, name_base
from personalar.concepts.concept import Concept
from personalar.concepts.model_card import is_card, origin, plain, write_card
from personalar.concepts.validation import read_tensors
from personalar.config.compose import composed, read_config
from personalar.config.run_config import ModelConfig
from personalar.core.files import base_fingerprint, content_hash, write_atomic
from personalar.core.own_files import CARD_FILE, LORA_FILES, delete_abandoned
from personalar.data.prompts import SUBJECT_TOKEN
from personalar.models.base import Backend
from personalar.models.loading import obtain_model, offline_model, pin
from personalar.models.stored_base import ModelFiles

ROW_FILE = "learned_embeds.safetensors"
CHECKPOINT = "checkpoint"
LORA_CONFIG = "lora/adapter_config.json"


def write_export(concept: Concept, out: Path, model: ModelConfig, *, checkpoint: bool) -> list[Path]:
    """Write the concept's files into `out`; return the paths. Every possible failure comes before a write.

    Args:
        model: the base; read for the checkpoint only.
        checkpoint: also write the whole model.

    Raises:
        FileNotFoundError, ValueError: the model cannot be read or is not the concept's, or `out` contains
            files of something else.
    """
    check_out(out, lora=bool(concept.lora), checkpoint=checkpoint)
    delete_abandoned(*(out / name for name in ("", "lora", CHECKPOINT, f"{CHECKPOINT}/vq")))
    learned, form = read_learned(concept, model) if checkpoint else None, None
    row = concept.rows[list(concept.tokens).index(SUBJECT_TOKEN)]
    tensors = {SUBJECT_TOKEN: row.reshape(1, -1).contiguous()}
    contents = {
        ROW_FILE: save_safetensors(tensors, metadata={"format": "pt"}),
        **named_adapter(concept, model),
    }
    for name, data in contents.items():
        write_atomic(out / name, data)
    paths = [out / name for name in contents]
    if learned is not None:
        backend, files = learned
        form = files.checkpoint_form(backend)
        print(f"{CHECKPOINT}: {form}")
        dtype = getattr(torch, model.dtype)
        paths.append(files.write_checkpoint(backend, out / CHECKPOINT, dtype=dtype))
    elif concept.weights:
        print(left_out(concept, model))
    return [*paths, write_card(concept, out, exported=True, checkpoint=form)]


def read_export(folder: Path | str, *settings: str, noun: str, name: str = "adopted") -> Concept:
    """Return the concept of the row in an exported `folder`, and of the PEFT adapter in its `lora/`.

    The row becomes [V] on the first free reserved id of the base. No weights are loaded.

    Args:
        settings: the base, as on the command line: "model=lumina_mgpt_7b_512", "model.path=DIR"; by default
            nano. For an export with changed weights it is the folder's checkpoint.
        noun: the class in plain words.
        name: the subject's.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the row or the adapter does not fit the base.
    """
    folder = Path(folder).expanduser()
    model = read_config(composed("export", ["concept=x", "out=x", *settings])).model
    row, lora = read_row(folder / ROW_FILE), read_adapter(folder)
    files = obtain_model(model, say=print)
    network = files.shape(attention="sdpa", images=1).network
    if row.shape[1] != network.hidden_size:
        raise ValueError(
            f"the row is {row.shape[1]} wide, the base's embeddings {network.hidden_size}: another base"
        )
    if lora:
        with torch.device("meta"):  # fits or raises, without weights
            load_lora(network.build(), {Path(file).name: data for file, data in lora.items()})
    return Concept(
        base={"name": model.name, "fingerprint": base_fingerprint(files.weights())},
        subject={"name": name, "noun": noun, "fingerprint": content_hash(folder / ROW_FILE)},
        stage="transformer" if lora else "embedding",
        tokens=assign_tokens([SUBJECT_TOKEN], files.reserved_ids()),
        rows=row,
        lora=lora,
        config={"adopted": {"embeds": ROW_FILE, "lora": bool(lora)}, "model": asdict(pin(model))},
    )


def read_adapter(folder: Path) -> dict[str, bytes]:
    """Return the adapter's files by their path in a concept; none without `folder`/lora.

    Raises:
        FileNotFoundError: lora/ is incomplete.
    """
    if not (folder / "lora").exists():
        return {}
    missing = [name for name in LORA_FILES if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} is missing {', '.join(missing)}: lora/ must be the folder that PEFT saved; without an "
            "adapter remove it"
        )
    files = {name: (folder / name).read_bytes() for name in LORA_FILES}
    with suppress(ValueError, AttributeError):  # damaged; it is refused where it is put into the base
        files[LORA_CONFIG] = name_base(files[LORA_CONFIG], base=None)  # as it was before the export
    return files


def read_row(path: Path) -> Tensor:
    """Return the row (1, D), float32, of a file of one key with any name.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: damaged file, several keys, several rows, or NaN.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give a folder that personalar.export wrote")
    tensors = read_tensors(path, path.read_bytes())
    if len(tensors) != 1:
        raise ValueError(
            f"{path} holds {len(tensors)} keys ({', '.join(sorted(tensors))}); one learned row is expected"
        )
    (row,) = tensors.values()
    if row.ndim not in (1, 2) or row.numel() != row.shape[-1]:
        raise ValueError(
            f"{path} holds a tensor of shape {tuple(row.shape)}; one learned row (1, width) is expected"
        )
    return row.reshape(1, -1).float()


def check_out(out: Path, *, lora: bool, checkpoint: bool) -> None:
    """Raise ValueError when `out` contains a concept, somebody's README.md, or parts of another export."""
    if (out / "concept.json").exists():
        raise ValueError(f"out={out} is a concept's own folder, which an export would spoil: choose another")
    if (out / CARD_FILE).exists() and not is_card(out / CARD_FILE):
        raise ValueError(f"out={out} holds a {CARD_FILE} that no export wrote: choose another folder")
    for name, written in (("lora", lora), (CHECKPOINT, checkpoint)):
        if (out / name).exists() and not written:
            raise ValueError(
                f"out={out} holds {name}/ of an earlier export, which this one does not write: choose "
                "another folder, or remove it"
            )


def read_learned(concept: Concept, model: ModelConfig) -> tuple[Backend, ModelFiles]:
    """Return the base with the concept in it, and the base's files.

    Raises:
        FileNotFoundError, ValueError: the base is missing, or is not the concept's.
    """
    files = obtain_model(model, say=print)
    concept.check_base(name=model.name, fingerprint=base_fingerprint(files.weights()))
    backend = files.load(dtype=getattr(torch, model.dtype), device="cpu", attention="sdpa")
    identifier = concept.apply(backend)
    table = backend.word_table
    with torch.no_grad():  # the learned rows go where their reserved ids look them up
        table[identifier.ids] = identifier.rows.to(table.dtype)
    return backend, files


def base_here(concept: Concept, model: ModelConfig) -> ModelFiles | None:
    """Return the files of `model` where they are on this machine and are the concept's base."""
    try:
        files = offline_model(model)
        same = files is not None and base_fingerprint(files.weights()) == concept.base["fingerprint"]
    except (FileNotFoundError, ValueError):
        return None
    return files if same else None


def named_adapter(concept: Concept, model: ModelConfig) -> dict[str, bytes]:
    """Return the adapter's files with the base named, where it is known: a repository, or a folder here."""
    if not concept.lora or model.family != ModelConfig.family:  # another family: another class
        return dict(concept.lora)
    files, settings = base_here(concept, model), concept.config.get("model", {})
    repo, _ = origin(concept)
    if files is not None and model.path is not None:
        base, revision = str(files.parts()["transformer"].resolve()), None
    elif files is not None and model.hub is not None:
        base, revision = model.hub.repo, model.hub.revision
    elif repo is not None and not settings.get("path"):
        base, revision = repo, settings["hub"].get("revision")
    else:
        print(
            "note: lora/adapter_config.json does not name its base, so peft.AutoPeftModel cannot load it: "
            "export with the base that it was learned on (model=..., model.path=DIR)"
        )
        return dict(concept.lora)
    named = name_base(concept.lora[LORA_CONFIG], base=base, revision=revision)
    return {**concept.lora, LORA_CONFIG: named}


def left_out(concept: Concept, model: ModelConfig) -> str:
    """Return a note on the changed tensors, which are not in the files, and the argument that writes them."""
    where = (
        ""
        if base_here(concept, model)
        else f" with the base that they belong to (model={plain(concept.base['name'])})"
    )
    return (
        f"note: {len(concept.weights)} tensors of the transformer were trained too and are in none of these "
        f"files; checkpoint=true writes all of it{where}"
    )
