"""Build the network that a stage trains, from a base and a concept."""

from __future__ import annotations

import torch
from torch import nn

from personalar.concepts.adapters.identifier import Identifier
from personalar.concepts.adapters.lora import inject_lora
from personalar.concepts.concept import Concept
from personalar.config.run_config import Stage
from personalar.data.codes import stream_seed
from personalar.models.sharding import ordinary_modules
from personalar.training.context import RunContext
from personalar.training.model_prep import prepare_blocks, quantize_base, train_in_float32
from personalar.training.module import Network
from personalar.training.stage import select_parameters


def choose_weights(transformer: nn.Module, stage: Stage, *, seed: int) -> dict[str, nn.Parameter]:
    """Return the transformer's parameters that train in `stage`; LoRA adapters are put in first."""
    lora = stage.trains.lora
    if lora.rank == 0:
        return select_parameters(transformer, stage.trains.parameters)
    generator = torch.Generator().manual_seed(stream_seed(seed, "lora"))
    return inject_lora(transformer, rank=lora.rank, every_n_layers=lora.every_n_layers, generator=generator)


def build_network(session: RunContext, stage: Stage, concept: Concept) -> Network:
    """Return the base in the state of `concept`, with what `stage` puts in."""
    backend = session.load_base()
    identifier = concept.apply(backend)
    if session.plans[stage.name].base_bits == 4:
        quantize_base(backend.blocks)
    weights = choose_weights(backend.transformer, stage, seed=session.config.seed)
    if not session.config.trainer.strategy.startswith("zero"):  # DeepSpeed keeps float32 copies itself
        train_in_float32(backend.transformer, weights)
    return _finished(session, stage, Network(backend=backend, identifier=identifier, weights=weights))


def _finished(session: RunContext, stage: Stage, network: Network) -> Network:
    plan, compiled = session.plans[stage.name], session.config.trainer.compile_blocks
    prepare_blocks(network.backend.blocks, recompute=plan.recompute, compiled=compiled)
    return network


def build_sharded_network(session: RunContext, stage: Stage, concept: Concept) -> Network:
    """Return the same as `build_network`, sharded; call it within DeepSpeed's sharding context."""
    if session.plans[stage.name].base_bits == 4:
        raise ValueError("method.base_bits=4 cannot be sharded: use trainer=gpu, ddp or zero2")
    if concept.lora:
        raise ValueError("a stage after a LoRA stage cannot be sharded: use trainer=ddp or zero2 for it")
    backend = session.model_files.load_sharded(
        dtype=session.dtype,
        device=session.device,
        attention=session.config.trainer.attention,
        changed=concept.weights,
    )
    with ordinary_modules():  # small; DeepSpeed shards them with the rest when training starts
        identifier = Identifier(tokens=concept.tokens, rows=concept.rows).to(session.device)
        weights = choose_weights(backend.transformer, stage, seed=session.config.seed)
    return _finished(session, stage, Network(backend=backend, identifier=identifier, weights=weights))
