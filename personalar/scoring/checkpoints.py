"""Find and load a scorer's checkpoint: in the package, in a local folder, or on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from personalar.config.compose import package_path
from personalar.core.errors import hub_errors
from personalar.core.files import content_hash

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def resolve_folder(where: str | Path) -> Path:
    """Return the local folder of a checkpoint; download it if necessary.

    Args:
        where: "package://nano/clip" (inside the installed package), a local folder, or a hub id with an
            optional revision ("openai/clip-vit-base-patch32@main").

    Raises:
        FileNotFoundError: there is no such folder, or the download failed.
    """
    text = str(where)
    folder = package_path(text)
    if folder.is_dir():
        return folder
    # A typo in a path must not become a question to the hub.
    if text.startswith(("/", ".", "~")) or text.count("/") != 1:
        raise FileNotFoundError(
            f"no folder {text}; give a folder, a hub id such as owner/name, or package://nano/clip"
        )
    return _from_hub(text)


def _from_hub(text: str) -> Path:
    """Download config, tokenizer and weights of a hub model, or find them in the local cache."""
    from huggingface_hub import snapshot_download

    name, _, revision = text.partition("@")
    with hub_errors(f"{text} (https://huggingface.co/{name})", "give a folder with these files instead"):
        # Old repositories have a pickle file only; transformers reads it with weights_only=True.
        for weights in WEIGHT_FILES:
            wanted = ["*.json", "*.txt", weights]
            folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=wanted))
            if (folder / weights).is_file():
                break
    return folder


def weights_name(where: str | Path, folder: Path) -> str:
    """Return `where` and 12 hex digits of the weights' sha256; recorded with results to identify scorers."""
    for file in WEIGHT_FILES:
        if (folder / file).is_file():
            return f"{where}#{content_hash(folder / file)[:12]}"
    raise FileNotFoundError(
        f"{folder} contains neither {' nor '.join(WEIGHT_FILES)}: copy the scorer's weights there"
    )


def load_model(auto_class: Any, folder: Path, *, optional: tuple[str, ...] = ()) -> Any:
    """Load a frozen transformers model in float32, and check that the file contains all of its tensors.

    Args:
        auto_class: a transformers class with `from_pretrained`.
        folder: config and weights.
        optional: prefixes of tensors that may be missing because they are not used.

    Raises:
        ValueError: tensors are missing; transformers would initialise them at random with a warning only.
    """
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # its warning about missing tensors is replaced by our error
    logging.disable_progress_bar()  # it would interrupt our own progress bars
    try:
        model, info = auto_class.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(optional))
    if missing:
        raise ValueError(
            f"{folder}: {len(missing)} tensors are missing from the weights ({', '.join(missing[:3])}, ...); "
            "the weights do not match config.json: download the checkpoint again"
        )
    # float32 on every machine, so that scores do not depend on the dtype of the file.
    return model.float().eval().requires_grad_(False)
