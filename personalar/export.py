"""Give a learned concept to other programs: `python -m personalar.export concept=DIR out=DIR`.

    learned_embeds.safetensors      the row of [V], one key, as textual-inversion tools pass it around
    lora/                           the adapter as PEFT wrote it, where stage 2 trained one
    checkpoint/                     with checkpoint=true: the whole model, learned weights in it, norms in the
                                    form of the base: for transformers, or for Lumina-mGPT's own code
    README.md                       the model card: use, provenance, hashes, with a head for Hugging Face

`personalar.concepts.adopt` makes a concept of them again. Everything that can fail is tried before a file is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from personalar.config.commands import ExportConfig
from personalar.config.entry import start
from personalar.data.prompts import SUBJECT_TOKEN
from personalar.models.loading import obtain_model, offline_model
from personalar.sample import concept_folder

if TYPE_CHECKING:  # imported where used: a mistake is answered before torch loads
    from personalar.concepts.concept import Concept
    from personalar.models.base import Backend
    from personalar.models.chameleon.transformer import TransformerConfig

CHECKPOINT = "checkpoint"


def write_export(config: ExportConfig) -> list[Path]:
    """Write what `config` asks for; return the paths.

    Raises:
        FileNotFoundError, ValueError: when the concept or the model cannot be read or do not belong together,
            or when `out` holds what the files would be mixed up with.
    """
    from personalar.concepts.concept import Concept, save_row
    from personalar.concepts.export_card import write_export_card
    from personalar.core.files import write_atomic

    concept, out = Concept.load(concept_folder(config.concept)), Path(config.out).expanduser()
    check_out(out, lora=bool(concept.lora), checkpoint=config.checkpoint)
    learned = read_learned(config, concept) if config.checkpoint else None
    row = concept.rows[list(concept.tokens).index(SUBJECT_TOKEN)]
    paths = [save_row(out / "learned_embeds.safetensors", SUBJECT_TOKEN, row)]
    for name, data in concept.lora.items():
        write_atomic(out / name, data)
        paths.append(out / name)
    if learned is not None:
        backend, rows, form = learned
        print(f"{CHECKPOINT}: {form}")
        paths.append(_write_checkpoint(config, backend, out / CHECKPOINT, rows))
    elif concept.weights:
        print(left_out(config, concept))
    return [*paths, write_export_card(concept, out, checkpoint=learned[2] if learned else None)]


def check_out(out: Path, *, lora: bool, checkpoint: bool) -> None:
    """Raise ValueError when `out` holds a concept, a page of somebody's, or parts of another export."""
    from personalar.concepts.model_card import CARD_FILE, is_card

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


def read_learned(config: ExportConfig, concept: Concept) -> tuple[Backend, int | None, str]:
    """Return the base with all that was learned in it, the rows of its norms in files, and that in words.

    Raises:
        FileNotFoundError, ValueError: when the base lacks, or is not the concept's.
    """
    import torch

    from personalar.concepts.concept import base_fingerprint
    from personalar.models.chameleon.export import shared_norm_rows

    files = obtain_model(config.model, say=print)
    concept.check_base(name=config.model.name, fingerprint=base_fingerprint(files.weights()))
    backend = files.load(dtype=getattr(torch, config.model.dtype), device="cpu", attention="sdpa")
    identifier = concept.apply(backend)
    transformer = backend.transformer
    table = transformer.model.embed_tokens.weight
    with torch.no_grad():  # the learned rows go where their reserved ids look them up
        table[identifier.ids] = identifier.rows.to(table.dtype)
    of_base, rows = shared_norm_rows(files.base, transformer.state_dict())
    return backend, rows, norm_words(of_base, rows, transformer.config)


def norm_words(of_base: int | None, rows: int | None, shape: TransformerConfig) -> str:
    """Return which form the query and key norms have in a checkpoint, and who reads it."""
    if rows is not None:
        width = shape.head_dim
        return f"query and key norms ({rows}, {width}) for all heads, as Lumina-mGPT's own code reads them"
    told = (
        "a query and a key norm for every head, as transformers' ChameleonForConditionalGeneration reads them"
    )
    if of_base is None:
        return told
    if shape.num_attention_heads == shape.num_key_value_heads:
        return f"{told}; so does Lumina-mGPT's own code"
    return f"{told}; Lumina-mGPT's own code does not: heads that shared a norm in the base were trained apart"


def left_out(config: ExportConfig, concept: Concept) -> str:
    """Return what the files do not hold, and the arguments that would write it."""
    from personalar.concepts.concept import base_fingerprint
    from personalar.concepts.model_card import plain

    try:
        files = offline_model(config.model)
        here = files is not None and base_fingerprint(files.weights()) == concept.base["fingerprint"]
    except (FileNotFoundError, ValueError):
        here = False
    how = "checkpoint=true writes all of it"
    if not here:
        how += f" where the base lies that they belong to (model={plain(concept.base['name'])})"
    return (
        f"note: {len(concept.weights)} tensors of the transformer were trained too and are in none of these "
        f"files; {how}"
    )


def _write_checkpoint(config: ExportConfig, backend: Backend, folder: Path, norm_rows: int | None) -> Path:
    import torch

    from personalar.models.chameleon.export import export_backend

    return export_backend(backend, folder, dtype=getattr(torch, config.model.dtype), norm_rows=norm_rows)


def export(config: ExportConfig) -> None:
    """Do what the command says."""
    for path in write_export(config):
        print(path)


def main() -> None:
    """Entry point."""
    start("export", export)


if __name__ == "__main__":
    main()
