"""The facts that determine a picture, kept in its PNG, so that it can be drawn again from them."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from personalar.config.commands import SampleConfig
from personalar.config.compose import conf_dir, group_options
from personalar.config.fields import check_number, check_seeds
from personalar.config.run_config import DecoderConfig
from personalar.core.png import read_png_metadata

NEEDED = ("prompt", "seed", "size", "concept", "decoder", "dtype", "attention")
"""Text chunks of a PNG without which it cannot be drawn again."""
DTYPES = ("float32", "bfloat16", "float16")


def how_drawn(decoder: dict[str, Any], *, dtype: str, attention: str, device: str) -> dict[str, str]:
    """Return the text chunks on how a picture is drawn; where all are equal, so are the pixels."""
    return {
        "decoder": json.dumps(decoder, sort_keys=True),
        "dtype": dtype,
        "attention": attention,
        "device": device.partition(":")[0],
        "torch": torch.__version__,
    }


def like(config: SampleConfig, path: Path, *, concept: str) -> SampleConfig:
    """Return `config` with the prompt, seed, size and drawing settings of the PNG in `path`.

    The file may be a stranger's: only plain values in range and decoders of this package are taken from it.

    Args:
        concept: hash of the concept that `config` names, as PNG files carry it.

    Raises:
        ValueError: facts are missing or strange, or the picture shows another concept.
    """
    if config.prompts or config.prompts_file:
        raise ValueError("like= takes the prompt from the picture: leave prompts= and prompts_file= out")
    found = read_png_metadata(path)
    missing = [name for name in NEEDED if name not in found]
    if missing or not found["seed"].isdecimal() or len(found["seed"]) > 19:
        raise ValueError(
            f"like={path} does not say how it was drawn ({', '.join(missing) or 'its seed'} missing): give a "
            "picture that personalar.sample wrote, or its prompt, seed and settings"
        )
    if found["concept"] != concept:
        raise ValueError(
            f"like={path} was drawn of another concept ({found['concept']:.40}, and concept= is {concept}): "
            "give the concept folder that it was drawn of"
        )
    for name, allowed in (("dtype", DTYPES), ("attention", ("eager", "sdpa"))):
        if found[name] not in allowed:
            raise ValueError(f"like={path} has a strange {name}: {found[name]!r:.40}")
    check_seeds([int(found["seed"])])
    return replace(
        config,
        prompts=[found["prompt"]],
        seeds=[int(found["seed"])],
        size=found["size"],
        decoder=_decoder(found["decoder"], path),
        model=replace(config.model, dtype=found["dtype"]),
        trainer=replace(config.trainer, attention=found["attention"]),
    )


def _decoder(text: str, path: Path) -> DecoderConfig:
    """Return the decoder that a PNG names, from plain numbers and the classes of conf/decoder alone."""
    try:
        settings = dict(json.loads(text))
        target = str(settings.pop("_target_"))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"like={path} has a damaged decoder: {text!r:.80}") from error
    names = group_options(conf_dir(), "decoder")
    ours = {OmegaConf.load(conf_dir() / "decoder" / f"{name}.yaml")._target_ for name in names}
    limits = {field.name: field.metadata["limits"] for field in fields(DecoderConfig) if field.metadata}
    if target not in ours or not set(settings) <= set(limits):
        raise ValueError(
            f"like={path} was drawn by a decoder that is not part of personalar ({target!r:.80}): draw it "
            "with that decoder's settings on the command line"
        )
    for name, value in settings.items():
        if type(value) not in (int, float):
            raise ValueError(f"like={path} has a damaged decoder: {text!r:.80}")
        check_number(f"like={path}: decoder.{name}", value, *limits[name])
    return DecoderConfig(_target_=target, **settings)
