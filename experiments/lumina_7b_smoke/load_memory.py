"""Measure the peak memory of loading: it should be at most the model and one shard.

    python experiments/lumina_7b_smoke/load_memory.py WORK

Writes a random checkpoint (by default 2.2 GB in shards of 0.5 GB) and loads it in separate processes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from checkpoint import TINY_VQ, random_tensors, write_base, write_random, write_vqgan
from memory import peak_host_bytes, reset_peak_memory

from personalar.config.model_config import ProtocolConfig
from personalar.models.chameleon.model_files import open_folder
from personalar.models.chameleon.transformer import ChameleonTransformer, TransformerConfig
from personalar.models.checkpoint_folder import weight_files


def write(work: Path, *, width: int, layers: int, vocab: int, shard_bytes: int) -> None:
    """Write a checkpoint in float16 to `work`/base, and a small image tokenizer to `work`/vq."""
    config = TransformerConfig(
        vocab_size=vocab, hidden_size=width, intermediate_size=width * 43 // 16, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=width // 64,
    )  # fmt: skip
    with torch.device("meta"):
        transformer = ChameleonTransformer(config)
    tensors = random_tensors(transformer, device="cpu")
    write_base(work / "base", config, TINY_VQ, tensors, dtype=torch.float16, shard_bytes=shard_bytes)
    write_vqgan(work / "vq", TINY_VQ, device="cpu")


def load(work: Path, dtype: str) -> int:
    """Load `work`; return the peak of the resident set in bytes, minus its size before.

    A tiny model is loaded first, so that imports and caches are not counted.
    """
    files, first = (
        open_folder(folder / "base", vq=folder / "vq", layout=ProtocolConfig(resolution=64))
        for folder in (work, work / "first")
    )
    how = {"dtype": getattr(torch, dtype), "device": "cpu"}
    first.load(**how)
    reset_peak_memory(cuda=False)
    before = peak_host_bytes()
    backend = files.load(**how)
    assert backend.dtype == how["dtype"]
    return peak_host_bytes() - before


def main(arguments: list[str] | None = None) -> list[dict[str, float | str]]:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--vocab", type=int, default=65536)
    parser.add_argument("--shard-mb", type=int, default=500)
    parser.add_argument("--out", type=Path, help="folder for load_memory.json; default: WORK")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.load:
        print(load(args.work, args.load))
        return []
    numbers = {"width": args.width, "layers": args.layers, "vocab": args.vocab}
    write(args.work, **numbers, shard_bytes=args.shard_mb * 10**6)
    write_random(args.work / "first", "tiny", device="cpu")
    sizes = [file.stat().st_size for file in weight_files(args.work / "base")]
    rows = []
    for dtype in ("bfloat16", "float16"):  # every tensor is cast; no tensor is cast
        command = [sys.executable, __file__, str(args.work), "--load", dtype]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(
            {"dtype": dtype, "model_gb": sum(sizes) / 1e9, "largest_shard_gb": max(sizes) / 1e9,
             "peak_gb": int(done.stdout) / 1e9}
        )  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    out = args.out or args.work
    out.mkdir(parents=True, exist_ok=True)
    (out / "load_memory.json").write_text(
        json.dumps({"torch": torch.__version__, "loads": rows}, indent=1) + "\n"
    )
    return rows


if __name__ == "__main__":
    main()
