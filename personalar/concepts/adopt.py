"""Make a concept of exported files: `python -m personalar.concepts.adopt embeds=FILE lora=DIR noun=dog out=DIR`.

The row of one learned_embeds.safetensors becomes `[V]` on the first free reserved id of the chosen base; a
PEFT adapter for the same base comes along. No weights are loaded, and what does not fit is refused here.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from personalar.config.commands import AdoptConfig
from personalar.config.entry import start
from personalar.data.prompts import SUBJECT_TOKEN
from personalar.models.loading import obtain_model, pin

if TYPE_CHECKING:  # imported where used: a mistake is answered before torch loads
    from personalar.concepts.concept import Concept
    from personalar.models.chameleon.model_files import ModelFiles


def adopt(config: AdoptConfig, files: ModelFiles) -> Concept:
    """Return the concept that the files of `config` make on the base `files`.

    Raises:
        FileNotFoundError: when a file lacks.
        ValueError: when the row or the adapter does not fit the base.
    """
    from personalar.concepts.adapters.identifier import assign_tokens
    from personalar.concepts.concept import Concept, base_fingerprint, read_row
    from personalar.models.chameleon.tokenizer import Tokenizer

    embeds = Path(config.embeds).expanduser()
    row = read_row(embeds)
    lora = {} if config.lora is None else read_adapter(Path(config.lora).expanduser())
    check_fit(row.shape[1], lora, files)
    tokenizer = Tokenizer.from_file(files.tokenizer)
    return Concept(
        base={"name": config.model.name, "fingerprint": base_fingerprint(files.weights())},
        subject={
            "name": config.name,
            "noun": config.noun,
            "fingerprint": hashlib.sha256(embeds.read_bytes()).hexdigest(),
        },
        stage="transformer" if lora else "embedding",
        tokens=assign_tokens([SUBJECT_TOKEN], tokenizer.concept_ids),
        rows=row,
        lora=lora,
        config={
            "adopted": {"embeds": embeds.name, "lora": bool(lora)},
            "model": asdict(pin(config.model)),
        },
    )


def read_adapter(folder: Path) -> dict[str, bytes]:
    """Return the two files of a PEFT adapter by their path in a concept. Raises FileNotFoundError."""
    from personalar.concepts.concept import LORA_FILES

    found = {name: folder / Path(name).name for name in LORA_FILES}
    missing = [path.name for path in found.values() if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"lora={folder} lacks {', '.join(missing)}: give the folder that PEFT saved; an export has one "
            "after method=lora alone, without it leave lora= out"
        )
    return {name: path.read_bytes() for name, path in found.items()}


def check_fit(width: int, lora: dict[str, bytes], files: ModelFiles) -> None:
    """Raise ValueError unless a row of `width` and the adapter fit the base; on a model without weights."""
    import torch

    from personalar.concepts.adapters.lora import load_lora
    from personalar.models.chameleon.model_files import read_json
    from personalar.models.chameleon.transformer import ChameleonTransformer, TransformerConfig

    numbers = TransformerConfig.from_hf(read_json(files.base / "config.json"))
    if width != numbers.hidden_size:
        raise ValueError(
            f"the row is {width} wide, the base's embeddings {numbers.hidden_size}: another base"
        )
    if lora:
        with torch.device("meta"):
            load_lora(ChameleonTransformer(numbers), {Path(name).name: data for name, data in lora.items()})


def check_out(out: Path) -> None:
    """Raise ValueError when `out` holds files that the concept would replace and no concept has written."""
    from personalar.concepts.concept import RECORD_FILE, ROWS_FILE, WEIGHTS_FILE, files_of

    found = [name for name in (RECORD_FILE, ROWS_FILE, WEIGHTS_FILE, "lora") if (out / name).exists()]
    if found and not files_of(out):
        raise ValueError(f"out={out} holds {', '.join(found)}, but no concept: choose another folder")


def write_concept(config: AdoptConfig) -> None:
    """Do what the command says."""
    concept, out = adopt(config, obtain_model(config.model, say=print)), Path(config.out).expanduser()
    check_out(out)
    print(concept.save(out))


def main() -> None:
    """Entry point."""
    start("adopt", write_concept)


if __name__ == "__main__":
    main()
