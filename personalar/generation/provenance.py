"""The facts that determine a picture, kept in its PNG, so that it can be drawn again from them."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from personalar.config.commands import SampleConfig
from personalar.config.compose import conf_dir, group_options
from personalar.config.run_config import DecoderConfig
from personalar.core.png import read_png_metadata

HOW = ("decoder", "dtype", "attention", "device", "torch")
"""Chunks of a PNG on how it was drawn; "prompt", "seed", "size", "base" and "concept" say what."""


def how_drawn(decoder: dict[str, Any], *, dtype: str, attention: str, device: str) -> dict[str, str]:
    """Return the text chunks on how a picture is drawn; where all are equal, so are the pixels."""
    return {
        "decoder": json.dumps(decoder, sort_keys=True),
        "dtype": dtype,
        "attention": attention,
        "device": device.partition(":")[0],
        "torch": torch.__version__,
    }


@dataclass(frozen=True)
class Drawn:
    """What a PNG says about itself."""

    prompt: str
    seed: int
    size: str
    base: str
    concept: str
    how: dict[str, str]


def read_drawn(path: Path) -> Drawn:
    """Return what the PNG in `path` says. Raises ValueError where facts are missing."""
    found = read_png_metadata(path)
    needed = ("prompt", "seed", "size", "base", "concept", "decoder", "dtype", "attention")
    missing = [name for name in needed if name not in found]
    if missing or not found["seed"].isdecimal():
        raise ValueError(
            f"like={path} does not say how it was drawn ({', '.join(missing) or 'its seed'} missing): give a "
            "picture that personalar.sample wrote, or its prompt, seed and settings"
        )
    what = {name: found[name] for name in ("prompt", "size", "base", "concept")}
    how = {name: found[name] for name in HOW if name in found}
    return Drawn(seed=int(found["seed"]), how=how, **what)


def like(config: SampleConfig, path: Path) -> SampleConfig:
    """Return `config` with the prompt, seed, size and drawing settings of the PNG in `path`.

    Raises:
        ValueError: facts are missing or strange, or the decoder is not one of this package.
    """
    if config.prompts or config.prompts_file:
        raise ValueError("like= takes the prompt from the picture: leave prompts= and prompts_file= out")
    drawn = read_drawn(path)
    for name in ("dtype", "attention"):
        if drawn.how[name] not in ("float32", "bfloat16", "float16", "eager", "sdpa"):
            raise ValueError(f"like={path} has a strange {name}: {drawn.how[name]!r:.40}")
    return replace(
        config,
        prompts=[drawn.prompt],
        seeds=[drawn.seed],
        size=drawn.size,
        decoder=_decoder(drawn.how["decoder"], path),
        model=replace(config.model, dtype=drawn.how["dtype"]),
        trainer=replace(config.trainer, attention=drawn.how["attention"]),
    )


def _decoder(text: str, path: Path) -> DecoderConfig:
    """Return the decoder that a PNG names, from plain numbers and the classes of conf/decoder alone."""
    try:
        settings = dict(json.loads(text))
        target = settings.pop("_target_")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"like={path} has a damaged decoder: {text!r:.80}") from error
    ours = {
        own["_target_"]: own["_target_"]
        for name in group_options(conf_dir(), "decoder")
        if (own := _yaml(conf_dir() / "decoder" / f"{name}.yaml"))
    }
    known = {field.name for field in fields(DecoderConfig)} - {"_target_", "arguments"}
    if target not in ours or not set(settings) <= known:
        raise ValueError(
            f"like={path} was drawn by a decoder that is not part of personalar ({target!r:.80}): draw it "
            "with that decoder's settings on the command line"
        )
    if not all(type(value) in (int, float) for value in settings.values()):
        raise ValueError(f"like={path} has a damaged decoder: {text!r:.80}")
    return DecoderConfig(_target_=ours[target], **settings)


def _yaml(path: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[return-value]
