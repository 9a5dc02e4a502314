"""Milliseconds per step of the compiled decoder without and with changes (`changes.py`), in one process.

    export PYTHONPATH=experiments
    python experiments/decode_h200/variants.py --out experiments/decode_h200/variants       # the 7B's shape
    python experiments/decode_h200/variants.py --config tiny --batch 1,2 --rounds 3         # anywhere

All variants use the same buffers, because two caches of a large batch do not fit, and run in turns in every
round. A step is timed at several lengths of the cache. The mean over the steps of an image is interpolated
between them, and steps of two tokens count as steps of one. A variant that fails or does not fit gets a line
in the table. After `--seconds` no further variant is started, so `--variants` lists the most promising first.

equal draws: share of sampled codes that are equal to those of the step run as Python, after the same codes.
equal codes: share of equal codes in pictures of a tiny float32 model, compared with decoder=plain.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from benchmarks.machine import FORMULA, copy_bandwidth, machine, reason, release_memory, step_bytes
from benchmarks.random_weights import random_backend
from changes import CHANGES, Changed
from turns import Contender, Place, compete, square, summary

from personalar.config.model_config import ProtocolConfig
from personalar.core.process import prepare_torch
from personalar.generation.decoders.plain import PlainDecoder
from personalar.generation.sampling import Sampling
from personalar.models.chameleon.backend import ChameleonBackend
from personalar.models.chameleon.transformer import TransformerConfig
from personalar.models.network.vq import VQConfig

PLAIN = "plain step"
VARIANTS = (
    "product,flex,reduce,keep,flex+reduce+keep,flex+keep,mask,mask+reduce+keep,sums,bmm,bucket64,kth,"
    "sums+reduce+keep,reduce+tuned,cudnn"
)
SAMPLING = {"7b": {"cfg_scale": 4.0, "top_k": 2000}, "tiny": {"cfg_scale": 4.0, "top_k": 20}}
TINY = TransformerConfig(
    vocab_size=600, hidden_size=128, intermediate_size=192, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=4,
)  # fmt: skip
TINY_VQ = VQConfig(
    embed_dim=8, num_embeddings=64, latent_channels=8, resolution=32, base_channels=32,
    channel_multiplier=(1, 1), num_res_blocks=1, patch_size=4,
)  # fmt: skip
TINY_LAYOUT = ProtocolConfig(grid_px=16, resolution=32, buckets="square")


def tiny(dtype: torch.dtype, device: torch.device) -> ChameleonBackend:
    """Return a tiny backend (4 x 4 codes) with large differences between logits."""
    torch.manual_seed(0)
    backend = random_backend(TINY, TINY_VQ, TINY_LAYOUT, dtype=dtype, device=device)
    for name, parameter in backend.transformer.named_parameters():
        parameter.data.mul_(1.0 if "norm" in name else 10.0)
    return backend


def seven(layers: int, device: torch.device) -> ChameleonBackend:
    """Return a random model with the shape of Lumina-mGPT 7B, with `layers` layers."""
    torch.manual_seed(0)
    shape = TransformerConfig(num_hidden_layers=layers)
    return random_backend(shape, VQConfig(), ProtocolConfig(), dtype=torch.bfloat16, device=device)


def measure(backend: ChameleonBackend, batch: int, args: Any, until: float) -> list[dict[str, Any]]:
    """Return the rows of the table for one batch size."""
    settings, on_cpu = SAMPLING[args.config], backend.device.type == "cpu"
    contenders = [Contender(name=PLAIN, decoder=Changed("product", as_python=True, **settings))]
    contenders += [
        Contender(name=name, decoder=Changed(name, as_python=on_cpu, **settings)) for name in args.variants
    ]
    try:
        place = Place(backend, batch, Sampling(**settings), args)
    except torch.OutOfMemoryError as error:
        return [{"variant": c.name, "batch": batch, "failed": reason(error)} for c in contenders]
    compete(place, contenders, args.rounds, until)
    return [summary(contender, contenders[0], place) for contender in contenders]


def equal_codes(name: str, device: torch.device) -> float | str:
    """Return the share of a tiny model's codes that equal those of decoder=plain, or an error message."""
    backend, settings = tiny(torch.float32, device), SAMPLING["tiny"]
    request = square(backend, 2)  # four rows
    ids, seeds = list(request.prompts), list(request.seeds)
    try:
        decoder = Changed(name, as_python=device.type == "cpu", **settings)
        codes = decoder(backend, ids, request.grid, seeds)
    except Exception as error:
        return reason(error)
    plain = PlainDecoder(**settings)(backend, ids, request.grid, seeds)
    return float((codes == plain).float().mean())


def table(record: dict[str, Any]) -> str:
    """Return the record as a Markdown table."""
    lines = [
        "| variant | batch | ms/step (p10-p90) | at the places | of roofline | images/s | ready s "
        "| equal draws | equal codes |",
        "|" + "---|" * 9,
    ]
    for row in record["rows"]:
        name = f"| {row['variant']} | {row['batch']} |"
        if "failed" in row:
            lines.append(f"{name} {row['failed']} |" + " |" * 6)
            continue
        codes = record["equal_codes"].get(row["variant"], "-")
        lines.append(
            f"{name} {row['ms_per_step']:.3f} ({row['ms_p10']:.3f}-{row['ms_p90']:.3f}) "
            f"| {', '.join(f'{ms:.3f}' for ms in row['ms_at_places'])} "
            f"| {100 * row['roofline_fraction']:.1f} % | {row['images_per_s']:.2f} | {row['ready_s']:.1f} "
            f"| {share(row['equal_draws'])} | {share(codes)} |"
        )
    return "\n".join(lines)


def share(value: float | str | None) -> str:
    """Format a share, or return its error message."""
    return f"{value:.3f}" if isinstance(value, float) else str(value or "-")


def read_arguments(words: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    numbers, names = (lambda text: [int(n) for n in text.split(",")]), (lambda text: text.split(","))
    parser.add_argument("--config", choices=list(SAMPLING), default="7b")
    parser.add_argument("--layers", type=int, default=32, help="layers of the 7B")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=numbers, default=[1, 100])
    parser.add_argument("--variants", type=names, default=names(VARIANTS), help=", ".join(CHANGES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=8, help="steps timed together")
    parser.add_argument("--lengths", type=int, default=3, help="lengths of the cache, at least 2")
    parser.add_argument("--seconds", type=float, default=420)
    parser.add_argument("--out", type=Path, help="folder for variants.json and variants.md")
    return parser.parse_args(words)


@torch.no_grad()
def main(words: list[str] | None = None) -> dict[str, Any]:
    """Measure, print the table, and write it with the JSON record after every batch."""
    args = read_arguments(words)
    until, device = time.perf_counter() + args.seconds, torch.device(args.device)
    prepare_torch("auto")
    backend = tiny(torch.float32, device) if args.config == "tiny" else seven(args.layers, device)
    bandwidth = copy_bandwidth(device)
    release_memory(device)
    record: dict[str, Any] = {
        "machine": machine(device),
        "settings": {"copy_bandwidth_bytes_per_s": bandwidth, "roofline": FORMULA}
        | {key: value for key, value in vars(args).items() if key != "out"},
        "equal_codes": {},
        "rows": [],
    }
    for batch in args.batch:
        rows = measure(backend, batch, args, until)
        prompt, answer = (
            len(square(backend, 1).prompts[0]),
            len(backend.grammar(*square(backend, 1).grid)),
        )
        read = step_bytes(backend, batch=batch, prompt=prompt, answer=answer, guided=True)
        for row in rows:
            if "failed" not in row:
                row["roofline_fraction"] = 1e3 * read / bandwidth / row["ms_per_step"]
        record["rows"] += rows
        release_memory(device)
        write(record, args.out)
    for name in args.variants:
        record["equal_codes"][name] = (
            equal_codes(name, device) if time.perf_counter() < until else "no time left"
        )
    write(record, args.out)
    print(json.dumps(record["machine"] | record["settings"], indent=1))
    print(table(record))
    return record


def write(record: dict[str, Any], folder: Path | None) -> None:
    """Write the results so far."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "variants.json").write_text(json.dumps(record, indent=1) + "\n")
        (folder / "variants.md").write_text(table(record) + "\n")


if __name__ == "__main__":
    main()
