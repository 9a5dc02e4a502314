"""Measure transformers' own class with the same weights: seconds per image code and per training step.

python experiments/janus_1b_cpu/transformers_side.py CHECKPOINT --dtype bfloat16 --codes 48
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import GenerationConfig, JanusForConditionalGeneration

sys.path.insert(0, str(Path(__file__).parents[1] / "lumina_7b_smoke"))
from memory import peak_host_bytes, reset_peak_memory

BOS, PAD, BOI, USER, ASSISTANT = 100_000, 100_002, 100_003, 100_004, 100_005
PROMPT_TOKENS = 40
CODES = 576


def open_model(folder: Path, dtype: torch.dtype) -> JanusForConditionalGeneration:
    """Return the model, frozen."""
    model = JanusForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval().requires_grad_(False)
    model.generation_config = GenerationConfig(
        bos_token_id=BOS, pad_token_id=PAD, generation_kwargs={"boi_token_id": BOI}
    )
    return model


def prompt() -> torch.Tensor:
    """Return the ids (1, T) of a prompt with the special tokens of a chat turn."""
    words = torch.arange(PROMPT_TOKENS - 4).remainder(200)
    return torch.tensor([[BOS, USER, *words.tolist(), ASSISTANT, BOI]])


def seconds_per_code(model: JanusForConditionalGeneration, codes: int) -> float:
    """Return the seconds per image code of `generate` (guidance scale 5), without the prompt's pass."""
    ids = prompt()
    took = {}
    for count in (2, 2 + codes):  # in the difference, the pass of the prompt and all set-up cancel out
        model.model.vision_model.config.num_image_tokens = count
        started = time.perf_counter()
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_mode="image",
            do_sample=True,
            top_k=0,
            guidance_scale=5,
        )
        took[count] = time.perf_counter() - started
    return (took[2 + codes] - took[2]) / codes


def seconds_per_step(model: JanusForConditionalGeneration, batch: int, steps: int) -> float:
    """Return the median seconds of a forward and backward pass that trains the embedding of one token.

    The loss is that of personalar: cross-entropy of the image head over the 576 codes.
    """
    row = torch.zeros(1, model.config.text_config.hidden_size, dtype=model.dtype, requires_grad=True)
    ids = prompt().expand(batch, -1)
    codes = torch.arange(batch * CODES).view(batch, CODES).remainder(16384)
    times = []
    for _ in range(steps + 1):  # the first is a warm-up
        started = time.perf_counter()
        words = model.get_input_embeddings()(ids)
        words = torch.cat((words[:, :10], row.expand(batch, 1, -1), words[:, 11:]), dim=1)
        embeds = torch.cat((words, model.prepare_embeddings_for_image_generation(codes[:, :-1])), dim=1)
        hidden = model.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        logits = model.model.generation_head(hidden[:, -CODES:]).float()
        F.cross_entropy(logits.flatten(0, 1), codes.flatten()).backward()
        times.append(time.perf_counter() - started)
    return sorted(times[1:])[steps // 2]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--codes", type=int, default=48)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    args = parser.parse_args()
    reset_peak_memory(cuda=False)
    started = time.perf_counter()
    model = open_model(args.checkpoint, getattr(torch, args.dtype))
    found = {"dtype": args.dtype, "load_seconds": time.perf_counter() - started}
    found["seconds_per_code"] = seconds_per_code(model, args.codes)
    if args.steps:
        found["seconds_per_step"] = seconds_per_step(model, args.batch, args.steps)
    found["host_peak_gb"] = peak_host_bytes() / 1e9
    print(json.dumps({key: round(v, 3) if isinstance(v, float) else v for key, v in found.items()}))


if __name__ == "__main__":
    main()
