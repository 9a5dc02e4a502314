"""Give a learned concept to other programs: `python -m personalar.export concept=DIR out=DIR`.

    learned_embeds.safetensors      the row of [V], one key, as textual-inversion tools pass it around
    lora/                           the adapter as PEFT wrote it, where stage 2 trained one
    checkpoint/                     with checkpoint=true: the whole transformer, learned weights in it, shards
                                    and norms as Lumina-mGPT's own code reads them
    README.md                       the model card: use, provenance, hashes, with a head for Hugging Face

`personalar.adopt` makes a concept of the first two again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from personalar.arguments import prepare_arguments
from personalar.commands import ExportConfig
from personalar.compose import conf_dir, read_config, register
from personalar.fault import told
from personalar.locate import obtain_model
from personalar.prompts import SUBJECT_TOKEN
from personalar.sample import concept_folder


def write_export(config: ExportConfig) -> list[Path]:
    """Write what `config` asks for; return the paths.

    Raises:
        FileNotFoundError, ValueError: when the concept or the model cannot be read or do not belong together.
    """
    from personalar.concept import Concept, base_fingerprint, save_row, write_atomic
    from personalar.model_card import write_card

    concept, out = Concept.load(concept_folder(config.concept)), Path(config.out).expanduser()
    row = concept.rows[list(concept.tokens).index(SUBJECT_TOKEN)]
    paths = [save_row(out / "learned_embeds.safetensors", SUBJECT_TOKEN, row)]
    for name, data in concept.lora.items():
        write_atomic(out / name, data)
        paths.append(out / name)
    if config.checkpoint:
        files = obtain_model(config.model, say=print)
        concept.check_base(name=config.model.name, fingerprint=base_fingerprint(files.weights()))
        paths.append(_write_checkpoint(config, concept, files, out / "checkpoint"))
    elif concept.weights:
        print(
            f"note: {len(concept.weights)} tensors of the transformer were trained too and are in none of "
            "these files; checkpoint=true writes all of it"
        )
    return [*paths, write_card(concept, out)]


def _write_checkpoint(config: ExportConfig, concept, files, folder: Path) -> Path:
    import torch

    from personalar.models.backend import load_backend
    from personalar.models.export import export_transformer

    dtype = getattr(torch, config.model.dtype)
    backend = load_backend(files, dtype=dtype)
    identifier = concept.apply(backend)
    table = backend.transformer.model.embed_tokens.weight
    with torch.no_grad():  # the learned rows go where their reserved ids look them up
        table[identifier.ids] = identifier.rows.to(table.dtype)
    return export_transformer(
        backend.transformer, folder, tokenizer=backend.tokenizer, vq=backend.vq.config, dtype=dtype
    )


def launch(cfg: DictConfig) -> None:
    """Run one configuration; what a user can get wrong ends in one sentence."""
    with told("personalar.export"):
        for path in write_export(read_config(cfg)):
            print(path)


def main() -> None:
    """Entry point."""
    conf = conf_dir()
    with told("personalar.export"):
        sys.argv[1:] = prepare_arguments(sys.argv[1:], schema=ExportConfig, conf=conf, needs_subject=False)
    register()
    hydra.main(config_path=str(conf), config_name="export", version_base="1.3")(launch)()


if __name__ == "__main__":
    main()
