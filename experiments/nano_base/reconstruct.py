"""Encode and decode pictures with the image tokenizer.

`python experiments/nano_base/reconstruct.py DATA VQ --shards 0:6` writes reconstructed shards for the
training of the scorers; finished shards are skipped. `--sheet FILE.png` writes a sheet of pictures (odd rows)
and their reconstructions (even rows) instead, and prints the quality per kind of picture as JSON.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
from pictures import Shards
from PIL import Image
from train_vq import JUDGE, evaluate, load_vq
from vq_losses import InstanceJudge

from personalar.models.network.vq import VQModel

COLUMNS, ROWS = 12, 3


@torch.no_grad()
def reconstruct(vq: VQModel, pictures: np.ndarray) -> np.ndarray:
    """Return the reconstructions of pictures (N, H, W, 3) uint8."""
    x = torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
    out = vq.decode(vq.encode(x))
    return ((out + 1) / 2 * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def write_sheet(vq: VQModel, source: np.ndarray, path: Path) -> None:
    """Save a sheet with pictures from the whole shard, each row above its reconstructions."""
    chosen = source[np.linspace(0, len(source) - 1, COLUMNS * ROWS).astype(int)]
    made = reconstruct(vq, chosen)
    rows = [part[row : row + COLUMNS] for row in range(0, len(chosen), COLUMNS) for part in (chosen, made)]
    Image.fromarray(np.concatenate([np.concatenate(list(row), 1) for row in rows])).save(path)


def report(vq: VQModel, shards: Shards) -> None:
    """Print the quality on all pictures, and for each style with one and with two objects."""
    kinds: dict[str, list[int]] = {"all": list(range(len(shards)))}
    for number, fact in enumerate(shards.facts):
        kind = (fact["style"] or "photo") + (" of two" if fact["beside"] else "")
        kinds.setdefault(kind, []).append(number)
    judge = InstanceJudge(JUDGE)
    for kind, picks in kinds.items():
        found = evaluate(vq, judge, shards, np.array(picks))
        print(json.dumps({"kind": kind, "pictures": len(picks), **found}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("vq", type=Path)
    parser.add_argument("--shards", default="0:6")
    parser.add_argument("--kind", default="scorer")
    parser.add_argument("--sheet", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    vq = load_vq(args.vq)
    for number in range(*map(int, args.shards.split(":"))):
        source = np.load(args.data / f"{args.kind}_{number:03d}.npy", mmap_mode="r")
        if args.sheet:
            write_sheet(vq, source, args.sheet)
            report(vq, Shards(args.data, args.kind))
            return
        target = args.data / f"{args.kind}_recon_{number:03d}.npy"
        if target.exists():
            continue
        parts = [reconstruct(vq, source[start : start + 95]) for start in range(0, len(source), 95)]
        temporary = target.with_suffix(".tmp.npy")
        np.save(temporary, np.concatenate(parts))
        os.replace(temporary, target)
        print(target, flush=True)


if __name__ == "__main__":
    main()
