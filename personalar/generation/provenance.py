"""Store in a PNG file everything that determines the picture, and read it back to reproduce the picture."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from personalar.config.commands import SampleConfig
from personalar.config.compose import conf_dir, group_options
from personalar.config.fields import check_number, check_values
from personalar.config.model_config import ProtocolConfig
from personalar.config.run_config import DecoderConfig
from personalar.core.png import read_png_metadata

NEEDED = ("prompt", "seed", "size", "concept", "decoder", "dtype")
"""Text chunks of a PNG that are required to reproduce it."""
REPLACED = (
    "prompts",
    "prompts_file",
    "wildcards",
    "names",
    "strength",
    "seeds",
    "num_images",
    "size",
    "negative_prompt",
)
"""Settings of `personalar.sample` that come from the picture."""


def drawing_settings(decoder: dict[str, Any], *, dtype: str, device: str) -> dict[str, str]:
    """Return PNG text chunks with the settings of the sampling; equal settings give equal pixels.

    Args:
        decoder: the decoder's class and arguments.
        dtype: of the weights, such as "bfloat16".
        device: such as "cuda:0"; only its type is stored.
    """
    return {
        "decoder": json.dumps(decoder, sort_keys=True),
        "dtype": dtype,
        "device": device.partition(":")[0],
        "torch": torch.__version__,
    }


def layout_hash(layout: ProtocolConfig) -> str:
    """Return a hash of all settings in a base's layout that can change a picture: 12 hex digits."""
    settings = {name: value for name, value in asdict(layout).items() if name != "known_words"}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def check_layout(config: SampleConfig, layout: str) -> None:
    """Raise ValueError if the picture `like` was sampled with another layout than the hash `layout`."""
    # Older pictures contain no layout.
    if config.like and read_png_metadata(Path(config.like).expanduser()).get("layout", layout) != layout:
        raise ValueError(
            f"like={config.like} was sampled with other values of model.layout: give the same ones "
            "(model.layout.NAME=...), or the files of the base that it was sampled from"
        )


def like(config: SampleConfig, path: Path, *, concept: str) -> SampleConfig:
    """Return `config` with the prompt, seed, size and sampling settings of a PNG file.

    The file may come from a stranger: only plain values within their ranges and this package's decoders are
    accepted.

    Args:
        config: settings of `personalar.sample`.
        path: a picture that `personalar.sample` wrote.
        concept: hashes of the concepts in `config`; see `chosen_concepts.facts_of`.

    Raises:
        ValueError: a text chunk is missing or invalid, the picture shows another concept, or a setting
            has no effect beside `like`.
    """
    usual = SampleConfig(concept=config.concept)
    if given := [name for name in REPLACED if getattr(config, name) != getattr(usual, name)]:
        raise ValueError(f"like= uses those of the picture: leave out {'= and '.join(given)}=")
    found = read_png_metadata(path)
    missing = [name for name in NEEDED if name not in found]
    # 19 digits: the largest seed is 2**63 - 1.
    if missing or not found["seed"].isdecimal() or len(found["seed"]) > 19:
        raise ValueError(
            f"like={path} does not contain the settings to reproduce it (missing: "
            f"{', '.join(missing) or 'a valid seed'}): give a picture that personalar.sample wrote, or its "
            "prompt, seed and settings"
        )
    if found["concept"] != concept:
        raise ValueError(
            f"like={path} was sampled from another concept ({found['concept']:.40}; concept= is {concept}): "
            "give the concept folders that it was sampled from, in the same order"
        )
    decoder = _decoder(found["decoder"], path)
    for name in ("cfg_scale", "top_k", "top_p", "temperature"):
        value = getattr(config.decoder, name)
        if value not in (getattr(config.model.sampling, name), getattr(decoder, name)):
            axis = "guidance" if name == "cfg_scale" else name
            raise ValueError(
                f"decoder.{name}={value} has no effect with like=: vary it with grid.x.{axis}=[{value}]"
            )
    return replace(
        config,
        names=[word.strip("[]") for word in found.get("words", "").split()],
        strength=_strengths(found.get("strength", ""), path) or 1.0,
        prompts=[found["prompt"]],
        seeds=[int(found["seed"])],
        size=found["size"],
        negative_prompt=found.get("negative_prompt"),
        decoder=decoder,
        model=replace(config.model, dtype=found["dtype"]),
    )


def _strengths(text: str, path: Path) -> list[float]:
    """Return the strengths of a PNG; empty if it contains none."""
    try:
        found = [float(number) for number in text.split()]
    except ValueError as error:
        raise ValueError(f"like={path} has a damaged strength: {text!r:.80}") from error
    limits = SampleConfig.__dataclass_fields__["strength"].metadata["limits"]
    for number in found:
        check_number(f"like={path}: strength", number, *limits)
    return found


def _decoder(text: str, path: Path) -> DecoderConfig:
    """Return the decoder settings of a PNG; only numbers and the classes in conf/decoder are accepted."""
    damaged = f"like={path} has a damaged decoder: {text!r:.80}"
    try:
        settings = dict(json.loads(text))
        target = settings.pop("_target_")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(damaged) from error
    # Never instantiate a class that a file names, unless it is one of ours.
    names = group_options(conf_dir(), "decoder")
    if target not in [OmegaConf.load(conf_dir() / "decoder" / f"{name}.yaml")._target_ for name in names]:
        raise ValueError(
            f"like={path} was sampled with a decoder that is not part of personalar ({target!r:.80}): "
            "give its prompt, seed, settings and that decoder on the command line, without like="
        )
    # Numbers only: OmegaConf would resolve interpolations in text, and `arguments` could name a class.
    if not all(type(value) in (int, float) for value in settings.values()):
        raise ValueError(damaged)
    try:
        node: Any = OmegaConf.merge(OmegaConf.structured(DecoderConfig), {"_target_": target, **settings})
        check_values(settings, node, f"like={path}: decoder.")
        decoder: Any = OmegaConf.to_object(node)
    except (OmegaConfBaseException, OverflowError) as error:
        raise ValueError(damaged) from error
    return decoder
